"""Counting what an operand touches, in one compiled pass over it; `spiking._counters` holds the same in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import backend

__all__ = ["Counted", "count"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_LARGEST_FAN = 1 << 17  # sums of a block are 32-bit


class Counted(NamedTuple):
    """Counts of x [steps·batch, n], a row for each step and sample."""

    nonzero: np.ndarray  # [rows] int64
    synops: np.ndarray  # [2, rows] int64: sums of fan and of fan_nonzero over the non-zeros
    magnitude: np.ndarray  # [rows] float64: sums of |x|
    per_element: np.ndarray  # [n] int64
    ones: bool  # every value is 0 or 1
    finite: bool
    levels: list[tuple[tuple[float, ...] | None, bool]] | None
    """For each step the distinct magnitudes that are not zero (None: too many), and whether a value is negative. None with `ones`."""


def count(
    x: Tensor, steps: int, fan: Tensor | None = None, fan_nonzero: Tensor | None = None, *, values: bool = True
) -> Counted | None:
    """Count x [rows, n] against the fan-out of its n elements; None where the compiled module cannot.

    Without `values`, only `nonzero`, `synops` and `ones` are found: half the work where x is analogue.

    >>> found = count(torch.eye(3), 1, torch.tensor([5, 6, 7]))
    >>> found is None or (found.nonzero.tolist(), found.synops[0].tolist(), found.ones) == ([1, 1, 1], [5, 6, 7], True)
    True
    """
    fits = x.dtype in _DTYPES and x.numel() > 0 and x.device.type == "cpu" and x.dim() == 2
    if not fits or backend.choose(x.device).name != "cpu" or (fan is not None and int(fan.max()) >= _LARGEST_FAN):
        return None
    module = backend.compiled()
    assert module is not None
    x = x.contiguous()
    rows, n = x.shape
    threads = backend.threads() if x.numel() >= 1 << 16 else 1
    narrow = [None if f is None else f.to(torch.int32).contiguous() for f in (fan, fan_nonzero)]
    nonzero, synops, magnitude = np.empty(rows, np.int64), np.empty((2, rows), np.int64), np.empty(rows)
    per_element = np.zeros(n, np.int64)
    levels = np.empty((threads, steps, module.LEVELS))
    n_levels, negative = np.zeros((threads, steps), np.int32), np.zeros((threads, steps), np.int32)
    arrays = (nonzero, synops, magnitude, per_element, levels, n_levels, negative)
    found = module.count(
        x.data_ptr(),
        *(0 if f is None else f.data_ptr() for f in narrow),
        *(0 if a is levels and not values else a.ctypes.data for a in arrays),
        rows,
        n,
        steps,
        _DTYPES.index(x.dtype),
        threads,
    )
    ones, finite = bool(found & 1), bool(found & 2)
    met = None if ones or not values else [_levels(levels[:, t], n_levels[:, t], negative[:, t]) for t in range(steps)]
    return Counted(nonzero, synops, magnitude, per_element, ones, finite, met)


def _levels(levels: np.ndarray, n_levels: np.ndarray, negative: np.ndarray) -> tuple[tuple[float, ...] | None, bool]:
    """The union of what the threads met."""
    if (n_levels > levels.shape[1]).any():
        return None, False
    met = {value for row, n in zip(levels.tolist(), n_levels.tolist(), strict=True) for value in row[:n]}
    return (None if len(met) > levels.shape[1] else tuple(sorted(met))), bool(negative.any())
