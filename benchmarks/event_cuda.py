"""The event-driven kernels on a CUDA device: a linear layer for few and for many rows, and a streaming step with its neurons.

Each row is timed twice: as it is called (launches from Python included, which is what streaming one sample costs), and as `device`, many
calls captured in one CUDA graph, which leaves the kernels alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from spiking.benchmarks.run import Row, interleaved
from torch import Tensor
from torch.nn import functional as tf

import spiking
from spiking import functional as F

__all__ = ["rows", "summary"]

SHAPES = ((1, 4096, 4096), (8, 4096, 4096), (512, 4096, 4096))  # rows, inputs, outputs
QUICK = ((2, 256, 128),)
DENSITIES = (0.01, 0.05, 0.2)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DENSE, EVENT, SPARSE = "F.linear", "F.event_linear", "torch.sparse"
TWO, FUSED = "F.linear, then LIF", "one kernel"
CALLS = 20  # in a graph
PUBLISHED = "a published kernel, on another card: 0.367 against 1.083 ms dense, 3.0×"


def rows(case: str, quick: bool) -> Iterable[Row]:
    """Rows of the case; none, with the reason on standard error, where the kernels cannot run."""
    reason = why_not()
    if reason is not None:
        print(f"bench: {case} is left out on cuda: {reason}", file=sys.stderr)
        return
    with torch.no_grad():
        for name, dtype in DTYPES.items():
            for shape in QUICK if quick else SHAPES:
                for density in DENSITIES[:1] if quick else DENSITIES:
                    calls = _linear(shape, density, dtype) | (_step(shape, density, dtype) if shape[0] <= 8 else {})
                    yield from _timed(
                        case, calls, f"cuda {name} {shape[0]} × {shape[1]}→{shape[2]}, {100 * density:g} %"
                    )


def why_not() -> str | None:
    """Why the CUDA kernels cannot run here."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    from spiking.cuda_kernels import backend

    choice = backend.choose(torch.device("cuda"))
    return None if choice.name == "cuda" else choice.not_used["cuda"]


def _inputs(shape: tuple[int, int, int], density: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = (torch.rand(shape[0], shape[1], generator=g) < density).to("cuda", dtype)
    weight = (torch.randn(shape[2], shape[1], generator=g) / shape[1] ** 0.5).to("cuda", dtype)
    return x, weight, torch.randn(shape[2], generator=g).to("cuda", dtype)


def _linear(shape: tuple[int, int, int], density: float, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    x, weight, bias = _inputs(shape, density, dtype)
    calls: dict[str, Callable[[], Tensor]] = {
        DENSE: lambda: tf.linear(x, weight, bias),
        EVENT: lambda: F.event_linear(x, weight, bias),
    }
    _agree(calls, dtype)
    if dtype == torch.float32:
        rows, columns = x.to_sparse_csr(), weight.t().contiguous()
        calls[SPARSE] = lambda: rows @ columns + bias
    return calls


def _step(shape: tuple[int, int, int], density: float, dtype: torch.dtype) -> dict[str, Callable[[], Tensor]]:
    """A layer with its neurons, one time step from a state at hand."""
    x, weight, bias = _inputs(shape, density, dtype)
    layer = spiking.Linear(shape[1], shape[2]).to(x)
    layer.load_state_dict({"weight": weight, "bias": bias})
    neurons = spiking.LIF()
    network = spiking.Sequential(layer, neurons)
    _, state = network.step(x)

    def two() -> Tensor:
        return neurons.step(tf.linear(x, weight, bias), state[1])[0]

    return {TWO: two, FUSED: lambda: network.step(x, state)[0]}


def _agree(calls: dict[str, Callable[[], Tensor]], dtype: torch.dtype) -> None:
    """All sides agree before anything is timed."""
    first, *others = (call().float() for call in calls.values())
    for other in others:
        if not torch.allclose(first, other, atol=1e-3 if dtype == torch.float32 else 5e-2):
            raise AssertionError("the contestants disagree")


def _timed(case: str, calls: dict[str, Callable[[], Tensor]], group: str) -> Iterable[Row]:
    against = {EVENT: DENSE, SPARSE: DENSE, FUSED: TWO}
    called = {name: _waiting(call) for name, call in calls.items()}
    for name, times in interleaved(called, 10, 3, in_a_row=5).items():
        yield Row(case, name, times, against.get(name), group)
    alone = {name: _waiting(_graph(call)) for name, call in calls.items() if name != SPARSE}  # which cannot be captured
    for name, times in interleaved(alone, 10, 3, in_a_row=3).items():
        yield Row(case, name, [t / CALLS for t in times], against.get(name), f"{group}, device")


def _waiting(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def _graph(call: Callable[[], Any]) -> Callable[[], None]:
    """The call as often as CALLS says, captured once and replayed."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    return graph.replay


def summary(rows: Sequence[Row]) -> list[str]:
    """Speed-ups against dense by group, and beside the published figure where the sizes are its own."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row.group, {})[row.what] = row.median
    lines = []
    for group, m in found.items():
        parts = [
            f"{what} {m[what] * 1e3:.3f} against {m[other] * 1e3:.3f} ms, {m[other] / m[what]:.1f}×"
            for what, other in ((EVENT, DENSE), (FUSED, TWO))
            if what in m and other in m
        ]
        theirs = f" ({PUBLISHED})" if group.startswith("cuda float32 512 × 4096→4096, 1 %") else ""
        lines.append(f"{group}: " + "; ".join(parts) + theirs)
    return lines
