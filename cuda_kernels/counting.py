"""Counting what an operand touches, in one compiled pass over it; `spiking._counters` holds the same in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import backend

__all__ = ["Counted", "Counting", "count", "narrow"]

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


class Counting:
    """The counting of inputs [rows, n] of one kind: room for the counts of one of them, and all else that the compiled pass is told.

    `fans` are int32 [n], or None; see `count`, of which this is the part that passes that are alike need only once.
    """

    def __init__(
        self, rows: int, n: int, steps: int, dtype: torch.dtype, fans: tuple[Tensor | None, Tensor | None], values: bool
    ) -> None:
        module = backend.kernels()
        self._run, self._fans, self._values = module.count, fans, values
        self._shape = rows, steps
        threads = backend.threads() if rows * n >= 1 << 16 else 1
        self._whole = np.zeros(3 * rows + n, np.int64)
        self._real = np.empty(rows + threads * steps * module.LEVELS)
        self._met = np.zeros((2, threads, steps), np.int32)
        to, to_real, to_met = (a.ctypes.data for a in (self._whole, self._real, self._met))
        self._call = (
            *(0 if f is None else f.data_ptr() for f in fans),
            to,
            to + 8 * rows,
            to_real,
            to + 24 * rows if values else 0,
            to_real + 8 * rows if values else 0,
            to_met,
            to_met + 4 * threads * steps,
            rows,
            n,
            steps,
            _DTYPES.index(dtype),
            threads,
        )

    def __call__(self, x: Tensor) -> Counted:
        """Count x, contiguous and of that kind; the counts are those of this room, until it is cleared."""
        found = self._run(x.data_ptr(), *self._call)
        rows, steps = self._shape
        whole, ones = self._whole, bool(found & 1)
        levels = None
        if self._values and not ones:
            seen = self._real[rows:].reshape(self._met.shape[1], steps, -1)
            levels = [_levels(seen[:, t], self._met[0, :, t], self._met[1, :, t]) for t in range(steps)]
        synops = whole[rows : 3 * rows].reshape(2, rows)
        return Counted(whole[:rows], synops, self._real[:rows], whole[3 * rows :], ones, bool(found & 2), levels)

    def clear(self) -> None:
        """Be ready for another input."""
        self._whole[3 * self._shape[0] :] = 0
        self._met.fill(0)


def count(
    x: Tensor, steps: int, fan: Tensor | None = None, fan_nonzero: Tensor | None = None, *, values: bool = True
) -> Counted | None:
    """Count x [rows, n] against the fan-out of its n elements; None where the compiled module cannot.

    Without `values`, only `nonzero` and the first half of `synops` are found: half the work where x is analogue. Fans in int32
    are known to fit (`narrow`).

    >>> found = count(torch.eye(3), 1, torch.tensor([5, 6, 7]))
    >>> found is None or (found.nonzero.tolist(), found.synops[0].tolist(), found.ones) == ([1, 1, 1], [5, 6, 7], True)
    True
    """
    fits = x.dtype in _DTYPES and x.numel() > 0 and x.device.type == "cpu" and x.dim() == 2
    if not fits or backend.choose(x.device).name != "cpu":
        return None
    first, second = (None if f is None else narrow(f) for f in (fan, fan_nonzero))
    if fan is not None and first is None:
        return None
    rows, n = x.shape
    return Counting(rows, n, steps, x.dtype, (first, second), values)(x.contiguous())


def narrow(fan: Tensor) -> Tensor | None:
    """Fan-outs as `count` reads them, int32; None where they are too large for it."""
    if fan.dtype == torch.int32:
        return fan
    return None if fan.numel() and int(fan.max()) >= _LARGEST_FAN else fan.to(torch.int32).contiguous()


def _levels(levels: np.ndarray, n_levels: np.ndarray, negative: np.ndarray) -> tuple[tuple[float, ...] | None, bool]:
    """The union of what the threads met."""
    if (n_levels > levels.shape[1]).any():
        return None, False
    met = {value for row, n in zip(levels.tolist(), n_levels.tolist(), strict=True) for value in row[:n]}
    return (None if len(met) > levels.shape[1] else tuple(sorted(met))), bool(negative.any())
