"""Measures the constants of cost.py on this machine: small calls of every kind, fitted by non-negative least squares."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as tf

from spiking.errors import SpikingError

from . import backend, cost, dense, event_conv_ops, event_linear_ops

__all__ = ["MEASURES", "Measure", "Sample", "best_of", "calibrate"]

_DENSITIES = (0.02, 0.1, 0.3, 0.6)
_DTYPES = {4: torch.float32, 8: torch.float64, 2: torch.bfloat16}


class Sample(NamedTuple):
    """One timed call: the non-zeros that the event-driven kernel met, or None for the dense one."""

    work: cost.Work
    nonzeros: int | None
    seconds: float


class Measure(NamedTuple):
    """How a kind of layer is measured: its samples for an item size (few of them when quick), and its packing in seconds a byte."""

    samples: Callable[[int, bool], Iterator[Sample]]
    pack: Callable[[int], float]


def best_of(call: Callable[[], Any], budget_s: float = 0.02) -> float:
    """The lower quartile of repeated calls, in seconds."""
    call()
    seconds: list[float] = []
    end = time.perf_counter() + budget_s
    while len(seconds) < 4 or (time.perf_counter() < end and len(seconds) < 40):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 4]


def _linear(item: int, quick: bool) -> Iterator[Sample]:
    for rows, inputs, outputs in _shapes(quick, 1 << 31):
        work = cost.Work.linear(rows, inputs, outputs, item, backend.threads())
        weight, bias, full = _tensors(rows, inputs, outputs, _DTYPES[item])
        with torch.no_grad():
            yield Sample(work, None, best_of(lambda: dense.linear(full, weight, bias)))  # noqa: B023 - called at once
            for x in _spikes(full):
                call = best_of(lambda: event_linear_ops.event_linear(x, weight, bias))  # noqa: B023
                yield Sample(work, int(x.count_nonzero()), call)


def _linear_training(item: int, quick: bool) -> Iterator[Sample]:
    for rows, inputs, outputs in _shapes(quick, 1 << 29):
        work = cost.Work.linear(rows, inputs, outputs, item, backend.threads(), "linear_training")
        weight, bias, full = _tensors(rows, inputs, outputs, _DTYPES[item])
        weight.requires_grad_()
        grad = torch.randn(rows, outputs).to(weight.dtype)

        def step(call: Callable[..., Tensor], x: Tensor) -> float:
            return best_of(lambda: torch.autograd.grad(call(x, weight, bias), weight, grad))  # noqa: B023

        yield Sample(work, None, step(dense.learnable, full))
        for x in _spikes(full):
            yield Sample(work, int(x.count_nonzero()), step(event_linear_ops.event_linear, x))


def _shapes(quick: bool, largest: int) -> Iterator[tuple[int, int, int]]:
    for rows in (1, 8) if quick else (1, 4, 16, 64, 256, 1024):
        for inputs in (64, 512) if quick else (64, 512, 2048, 4096):
            for outputs in (10, 256) if quick else (10, 64, 512, 4096):
                if rows * inputs * outputs <= largest:
                    yield rows, inputs, outputs


def _tensors(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias, and an input without a zero."""
    shapes = (outputs, inputs), (outputs,), (rows, inputs)
    weight, bias, dense = (torch.rand(shape).add_(0.1).to(dtype) for shape in shapes)
    return weight, bias, dense


def _spikes(dense: Tensor) -> Iterator[Tensor]:
    for density in _DENSITIES:
        yield (torch.rand(dense.shape) < density).to(dense.dtype)


def _linear_pack(item: int) -> float:
    weight = torch.rand(2048, 1024).to(_DTYPES[item])
    x = torch.zeros(1, 1024, dtype=weight.dtype)

    def pack() -> None:
        event_linear_ops.release()
        event_linear_ops.event_linear(x, weight)

    return best_of(pack, 0.1) / (weight.numel() * item)


# images, channels in, side, channels out, kernel, padding, stride
_CONVOLUTIONS = (
    (1, 16, 16, 16, 3, 1, 1),
    (8, 12, 15, 32, 5, 0, 1),
    (8, 2, 34, 12, 5, 0, 1),
    (1, 64, 32, 64, 3, 1, 1),
    (4, 128, 16, 128, 3, 1, 1),
    (1, 2, 34, 12, 5, 0, 1),
    (1, 12, 15, 32, 5, 0, 1),
    (1, 128, 16, 128, 3, 1, 1),
    (1, 256, 8, 256, 3, 1, 1),
    (1, 512, 8, 512, 3, 1, 1),
    (8, 16, 32, 16, 3, 1, 1),
    (8, 64, 32, 64, 3, 1, 1),
    (16, 256, 8, 256, 3, 1, 1),
    (4, 512, 8, 512, 3, 1, 1),
    (96, 2, 34, 12, 5, 0, 1),
    (96, 12, 15, 32, 5, 0, 1),
    (64, 32, 16, 32, 3, 1, 1),
    (8, 2, 34, 12, 6, 0, 2),
    (96, 2, 34, 12, 6, 0, 2),
    (96, 12, 15, 32, 6, 0, 2),
    (16, 64, 16, 128, 3, 1, 2),
)
_Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def _conv2d_calls(
    item: int, quick: bool, kind: str
) -> Iterator[tuple[cost.Work, Tensor, Tensor, Tensor, _Call, _Call]]:
    """Work, input without a zero, weight and bias of every shape, and both ways to convolve."""
    for images, inputs, side, outputs, kernel, pad, stride in _CONVOLUTIONS[:5] if quick else _CONVOLUTIONS:
        shapes = (images, inputs, side, side), (outputs, inputs, kernel, kernel), (outputs,)
        x, weight, bias = (torch.rand(shape).add_(0.1).to(_DTYPES[item]) for shape in shapes)
        convolve: _Call = functools.partial(tf.conv2d, padding=pad, stride=stride)
        call: dict[str, Any] = {"stride": [stride] * 2, "padding": [pad] * 2, "groups": 1}
        event: _Call = functools.partial(event_conv_ops.event_conv2d, **call)
        pixels = images * side**2, images * ((side + 2 * pad - kernel) // stride + 1) ** 2
        work = cost.Work.conv2d(*pixels, tuple(weight.shape), 1, item, backend.threads(), kind)
        yield work, x, weight, bias, convolve, event


def _conv2d(item: int, quick: bool) -> Iterator[Sample]:
    for work, full, weight, bias, convolve, event in _conv2d_calls(item, quick, "conv2d"):
        with torch.no_grad():
            yield Sample(work, None, best_of(lambda: convolve(full, weight, bias)))  # noqa: B023 - called at once
            for x in _spikes(full):
                yield Sample(work, int(x.count_nonzero()), best_of(lambda: event(x, weight, bias)))  # noqa: B023


def _conv2d_training(item: int, quick: bool) -> Iterator[Sample]:
    for work, full, weight, bias, convolve, event in _conv2d_calls(item, quick, "conv2d_training"):
        weight.requires_grad_()
        grad = torch.randn_like(convolve(full, weight, bias))

        def step(call: _Call, x: Tensor) -> float:
            return best_of(lambda: torch.autograd.grad(call(x, weight, bias), weight, grad))  # noqa: B023

        yield Sample(work, None, step(convolve, full))
        for x in _spikes(full):
            yield Sample(work, int(x.count_nonzero()), step(event, x))


def _conv2d_pack(item: int) -> float:
    weight = torch.rand(128, 128, 3, 3).to(_DTYPES[item])
    x = torch.zeros(1, 128, 1, 1, dtype=weight.dtype)

    def pack() -> None:
        event_linear_ops.release()
        event_conv_ops.event_conv2d(x, weight, None, [1, 1], [1, 1], 1)

    return best_of(pack, 0.1) / (weight.numel() * item)


MEASURES = {
    "linear": Measure(_linear, _linear_pack),
    "linear_training": Measure(_linear_training, _linear_pack),
    "conv2d": Measure(_conv2d, _conv2d_pack),
    "conv2d_training": Measure(_conv2d_training, _conv2d_pack),
}


def calibrate(quick: bool = False, progress: Callable[[str], None] | None = None) -> Path:
    """Measure every kind of layer at every size of number, and keep the constants; returns the file. Takes about a minute.

    Errors: SpikingError where no compiled kernels are.
    """
    if backend.compiled() is None:
        raise SpikingError("calibrate: there is nothing to choose from, because the compiled kernels were not built.")
    measured = {}
    for kind, measure in MEASURES.items():
        for item in _DTYPES:
            if progress is not None:
                progress(f"{kind}, {_DTYPES[item]}")
            samples = list(measure.samples(item, quick))
            event = [s for s in samples if s.nonzeros is not None]
            dense = [s for s in samples if s.nonzeros is None]
            measured[f"{kind}/{item}"] = cost.Rates(_fitted(dense), _fitted(event), measure.pack(item))
    return cost.save(measured, backend.threads())


def _fitted(samples: list[Sample]) -> tuple[float, ...]:
    """The constants that predict the samples with the least relative error; rates that no sample reached take their neighbour's."""
    import numpy as np
    from scipy.optimize import nnls

    factors = np.array([cost.terms(s.work, s.nonzeros) for s in samples]) / np.array([[s.seconds] for s in samples])
    scale = factors.max(0)
    reached = scale > 0
    constants = np.zeros(len(scale))
    constants[reached] = nnls(factors[:, reached] / scale[reached], np.ones(len(samples)))[0] / scale[reached]
    grid = constants[-len(cost.ROWS) * len(cost.BYTES) :].reshape(len(cost.ROWS), len(cost.BYTES))
    known = reached[-grid.size :].reshape(grid.shape)
    for row, of_row in zip(grid, known):
        if of_row.any():
            at = np.arange(len(row))
            row[:] = np.interp(at, at[of_row], row[of_row])
    for i in range(1, len(grid)):
        if not known[i].any():
            grid[i] = grid[i - 1]
    return tuple(float(c) for c in constants)
