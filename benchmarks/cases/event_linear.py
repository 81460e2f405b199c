"""y = x·Wᵀ + b at a few densities and shapes: event-driven against torch's dense product and the sparse matrices of torch and scipy.

Every contestant gets the same x and W in the same run; the sparse ones get x already converted (their conversion is a row of its own).
`auto` is `spiking.Linear` as users call it, counting and choosing included; `never loses` asks it for an input without a zero, in
pairs with `torch.nn.Linear`. The fit takes the event-driven kernel's time over the number of spikes, from 1 to 30 % density.
On CUDA the rows are those of event_cuda.py.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

import torch
from spiking.benchmarks import event_cuda
from spiking.benchmarks.run import Row, interleaved
from torch import Tensor
from torch.nn import functional as tf

import spiking
from spiking import functional as F

NAME = "event_linear"
TITLE = "event-driven linear layer against dense and sparse products"
SHAPES = ((1, 4096, 4096), (16, 4096, 4096), (256, 1024, 1024))  # rows, inputs, outputs
QUICK = ((2, 256, 128),)
SMALL = ((1, 128, 64), (32, 256, 128), (64, 784, 128))  # where a call takes less than a millisecond
DENSITIES = (0.02, 0.05, 0.10, 0.20)
FIT = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
DENSE, EVENT, AUTO = "F.linear", "F.event_linear", "spiking.Linear, auto"
LAYER, WORST = "torch.nn.Linear", "worst case"


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    check()
    if device == "cuda":
        yield from event_cuda.rows(NAME, quick)
        return
    with torch.no_grad():
        for shape in QUICK if quick else SHAPES:
            weight, bias = _weights(*shape[1:])
            for density in DENSITIES:
                yield from _contest(shape, density, weight, bias, device, 3 if quick else 15)
            yield from _line(shape, weight, bias, device, 3 if quick else 15)
        for shape in QUICK if quick else (*SHAPES, *SMALL):
            yield from _worst(shape, device, 3 if quick else 40)


def _weights(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(outputs, inputs, generator=g), torch.randn(outputs, generator=g)


def _spikes(rows: int, inputs: int, density: float) -> Tensor:
    return (torch.rand(rows, inputs, generator=torch.Generator().manual_seed(1)) < density).float()


def _contest(
    shape: tuple[int, int, int], density: float, weight: Tensor, bias: Tensor, device: str, repeats: int
) -> Iterable[Row]:
    layer = spiking.Linear(shape[1], shape[2])
    layer.load_state_dict({"weight": weight, "bias": bias})
    layer.to(device)
    x, w, b = (t.to(device) for t in (_spikes(*shape[:2], density), weight, bias))
    calls: dict[str, Callable[[], Any]] = {
        DENSE: lambda: tf.linear(x, w, b),
        EVENT: lambda: F.event_linear(x, w, b),
        AUTO: lambda: layer(x),
    }
    if device == "cpu":
        calls |= _sparse(x, w, b)
    seconds = interleaved(calls, max(3, repeats // 3), 2, in_a_row=3)
    for name, times in seconds.items():
        yield Row(NAME, name, times, DENSE if name != DENSE else None, _group(shape, density))


def _group(shape: tuple[int, int, int], density: float) -> str:
    return f"{shape[0]} × {shape[1]}→{shape[2]}, {100 * density:g} %"


def _sparse(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Callable[[], Any]]:
    """x as a compressed sparse row matrix, in torch and in scipy."""
    from scipy import sparse

    with warnings.catch_warnings():  # torch calls its sparse layouts beta
        warnings.simplefilter("ignore")
        ours = x.to_sparse_csr()
    theirs, columns, b = sparse.csr_array(x.numpy()), weight.t().contiguous(), bias.numpy()
    flat = columns.numpy()
    return {
        "torch.sparse": lambda: ours @ columns + bias,
        "scipy.sparse": lambda: theirs @ flat + b,
        "scipy.sparse, converted": lambda: sparse.csr_array(x.numpy()) @ flat + b,
    }


def _line(shape: tuple[int, int, int], weight: Tensor, bias: Tensor, device: str, repeats: int) -> Iterable[Row]:
    """The event-driven kernel alone, over densities: the rows of the fit."""
    w, b = weight.to(device), bias.to(device)
    inputs = {density: _spikes(*shape[:2], density).to(device) for density in FIT}
    calls = {density: functools.partial(F.event_linear, x, w, b) for density, x in inputs.items()}
    names = {f"{100 * density:g} %": call for density, call in calls.items()}
    for (name, times), x in zip(interleaved(names, max(3, repeats // 3), 2, in_a_row=3).items(), inputs.values()):
        note = f"{int(x.count_nonzero())} spikes"
        yield Row(NAME, name, times, None, f"fit {shape[0]} × {shape[1]}→{shape[2]}", note)


def _worst(shape: tuple[int, int, int], device: str, repeats: int) -> Iterable[Row]:
    layer, plain = spiking.Linear(*shape[1:]), torch.nn.Linear(*shape[1:])
    plain.load_state_dict(layer.state_dict())
    x = torch.rand(shape[0], shape[1], generator=torch.Generator().manual_seed(1)).add_(0.1).to(device)
    layer.to(device), plain.to(device)
    calls = {LAYER: lambda: plain(x), AUTO: lambda: layer(x)}
    for name, times in interleaved(calls, repeats, 5, in_a_row=2).items():
        yield Row(NAME, name, times, LAYER if name != LAYER else None, f"{WORST} {shape[0]} × {shape[1]}→{shape[2]}")


def check() -> None:
    """All sides agree before anything is timed."""
    weight, bias = _weights(300, 70)
    x = _spikes(9, 300, 0.1)
    expected = tf.linear(x.double(), weight.double(), bias.double())
    for y in (F.event_linear(x, weight, bias), *(call() for call in _sparse(x, weight, bias).values())):
        if not torch.allclose(torch.as_tensor(y).double(), expected, atol=1e-4):
            raise AssertionError("the contestants disagree")


def summary(rows: Sequence[Row]) -> list[str]:
    """Speed-ups per shape, the fit of time over spikes, and what `auto` costs where nothing can be gained."""
    if rows and rows[0].group.startswith("cuda"):
        return event_cuda.summary(rows)
    return [*_speedups(rows), *_fits(rows), *_overheads(rows)]


def _by_group(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row.group, {})[row.what] = row.median
    return found


def _speedups(rows: Sequence[Row]) -> list[str]:
    shapes: dict[str, list[str]] = {}
    for group, m in _by_group(rows).items():
        if EVENT in m and DENSE in m:
            shape, density = group.rsplit(", ", 1)
            shapes.setdefault(shape, []).append(
                f"{density}: {m[DENSE] / m[EVENT]:.1f}× (as a layer {m[DENSE] / m[AUTO]:.1f}×)"
            )
    return [f"{shape}, against dense: " + ", ".join(each) for shape, each in shapes.items()]


def _fits(rows: Sequence[Row]) -> list[str]:
    import numpy as np

    lines = []
    for group in dict.fromkeys(row.group for row in rows if row.group.startswith("fit ")):
        points = [(int(row.note.split()[0]), row.median) for row in rows if row.group == group]
        spikes, seconds = np.array(points).T
        slope, fixed = np.polyfit(spikes, seconds, 1)
        rest = seconds - (slope * spikes + fixed)
        r2 = 1 - (rest**2).sum() / ((seconds - seconds.mean()) ** 2).sum()
        lines.append(f"{group[4:]}: {fixed * 1e6:.3g} µs + {slope * 1e9:.3g} ns a spike from 1 to 30 %, R² = {r2:.4f}")
    return lines


def _overheads(rows: Sequence[Row]) -> list[str]:
    lines = []
    for group in dict.fromkeys(row.group for row in rows if row.group.startswith(WORST)):
        dense, auto = (next(r for r in rows if r.group == group and r.what == what) for what in (LAYER, AUTO))
        more = median(a - d for a, d in zip(auto.seconds, dense.seconds))
        lines.append(
            f"{group}: auto takes {more * 1e6:+.1f} µs ({100 * more / dense.median:+.1f} %) beside torch.nn.Linear"
        )
    return lines
