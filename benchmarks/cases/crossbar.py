"""Products of 256 inputs with 200 outputs on arrays of memory cells, one thread: ideal, with read noise, through resistive wires.

Reference is torch's own product. Every way is checked first: against the product, the moments of resampled devices, and the sparse
solution of all nodes. The set-up of the wires is a row of its own, beside the sparse solution for as many inputs as the array has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from spiking.benchmarks.run import Row, interleaved
from spiking.hw_models import ArrayConfig, Crossbar
from spiking.hw_models.placement import place
from spiking.hw_models.wires import Wires, effective_matrix, solve_nodes

from spiking.errors import SpikingError

NAME = "crossbar"
TITLE = "products on arrays of memory cells: read noise and exact wires at the speed of ideal ones"
INPUTS, OUTPUTS, BATCH = 256, 200, 1024
WIRES = Wires(1.0, 1.0)
PRODUCTS = {"ideal": 300_000, "read noise": 100_000, "exact wires": 300_000}  # a second, what this was built to reach
SET_UP = 3.0  # seconds


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _rows(quick, device)
    finally:
        torch.set_num_threads(threads)


def _rows(quick: bool, device: str) -> Iterable[Row]:
    generator = torch.Generator().manual_seed(0)
    m, n, repeats = (64, 50, 3) if quick else (INPUTS, OUTPUTS, 15)
    weight = torch.randn(n, m, generator=generator)
    x = (torch.rand(BATCH, m, generator=generator) < 0.1).float()
    began = time.perf_counter()
    wired = Crossbar(weight, "rram-40nm", ArrayConfig(wires=WIRES, read="none"))
    set_up = time.perf_counter() - began
    arrays = {"ideal": Crossbar(weight, "ideal"), "read noise": Crossbar(weight, "rram-40nm"), "exact wires": wired}
    nodes = _check(weight, x, arrays)
    x, weight = x.to(device), weight.to(device)
    arrays = {name: array.to(device) for name, array in arrays.items()}

    def run(array: Crossbar) -> None:
        array(x)
        if device == "cuda":
            torch.cuda.synchronize()

    contestants: dict[str, Callable[[], object]] = {"torch": lambda: torch.nn.functional.linear(x, weight)}
    contestants |= {name: partial(run, array) for name, array in arrays.items()}
    resampled = Crossbar(weight.cpu(), "rram-40nm", ArrayConfig(read="resample"))
    few = x[:8].cpu()
    contestants["every device resampled"] = lambda: resampled(few)
    with torch.no_grad():
        for name, seconds in interleaved(contestants, repeats, warm_up=2).items():
            size = len(few) if name == "every device resampled" else BATCH
            each = [s / size for s in seconds]
            yield Row(
                NAME,
                name,
                each,
                None if name == "torch" else "torch",
                f"{m}→{n}, a product",
                f"{1 / sorted(each)[len(each) // 2]:,.0f} a second",
            )
    yield Row(NAME, "effective matrices of a pair", [set_up], None, f"{m}→{n}, set-up")
    yield Row(NAME, "all nodes, sparse", [nodes], None, f"{m}→{n}, set-up", "for one input vector, one array")


def _check(weight: torch.Tensor, x: torch.Tensor, arrays: dict[str, Crossbar]) -> float:
    """Results before speed; returns the seconds of one sparse solution."""
    exact = x @ weight.T
    ideal = arrays["ideal"](x)
    if not torch.allclose(ideal, exact, rtol=1e-4, atol=1e-3):
        raise SpikingError("bench crossbar: ideal cells do not give the product.")
    noisy, noise = arrays["read noise"], []
    clean = x @ noisy.matrix.T
    for _ in range(20):
        noise.append(noisy(x) - clean)
    std, expected = torch.stack(noise).std(0), (x**2 @ noisy.variance.T).sqrt()
    if abs(float((std / expected)[expected > 0].mean()) - 1) > 0.05:
        raise SpikingError("bench crossbar: the noise has other moments than its devices.")
    wired = arrays["exact wires"]
    targets = wired.devices.at()[0]
    began = time.perf_counter()
    currents = [solve_nodes(G, x[:1].T.double(), WIRES).I_out for G in targets]
    seconds = (time.perf_counter() - began) / 2
    worth = float(place(weight, wired.cell).worth)
    nodal = torch.from_numpy((currents[0] - currents[1]) * worth)
    if not torch.allclose(wired(x[:1]).double(), nodal, rtol=1e-4, atol=1e-4 * float(nodal.abs().max())):
        raise SpikingError("bench crossbar: the effective matrix differs from the nodal solution.")
    both = effective_matrix(targets, WIRES)
    if not torch.allclose(x[:1].double() @ both[0], torch.from_numpy(currents[0]), rtol=1e-9, atol=0):
        raise SpikingError("bench crossbar: the effective matrix differs from the nodal solution.")
    return seconds


def summary(rows: Sequence[Row]) -> list[str]:
    """Products a second beside what was aimed at."""
    lines = []
    for row in rows:
        if row.what in PRODUCTS and f"{INPUTS}→{OUTPUTS}" in row.group:
            lines.append(f"{row.what}: {1 / row.median:,.0f} products a second (aim: {PRODUCTS[row.what]:,})")
        if row.what.startswith("effective") and f"{INPUTS}→{OUTPUTS}" in row.group:
            lines.append(f"exact wires are set up in {row.median:.2f} s (aim: at most {SET_UP:g} s)")
    return lines
