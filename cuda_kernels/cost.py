"""Dense or event-driven: a small cost model that predicts both from the shape of a call and the spikes in it.

    dense = call + macs·mac(rows, weight bytes)
    event = call + inputs·scan + outputs·store + synops·synop(rows, weight bytes);   synops = spikes·macs / inputs

All constants are seconds; `mac` and `synop` are interpolated (in logarithms) between measured shapes. Each kind of layer has its own
constants: defaults that stand in this file, or those of this machine where `spiking doctor --calibrate` has measured them.

>>> work = Work.linear(rows=1, in_features=4096, out_features=4096)
>>> choose(work, nonzeros=80).event, choose(work, nonzeros=4096).event
(True, False)
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

__all__ = ["Choice", "Rates", "Work", "choose", "most_spikes", "packing", "rates"]


class Work(NamedTuple):
    """What one call computes, whatever the spikes: the numbers that the model prices.

    rows: how many results share one set of weights (T·B for a linear layer; T·B·H'·W' for a convolution); inputs, outputs: numbers read
    and written; macs: multiply-adds of the dense call; weight_bytes: size of the weights; threads: cores at work.
    """

    kind: str
    rows: int
    inputs: int
    outputs: int
    macs: int
    weight_bytes: int
    threads: int = 1

    @classmethod
    def linear(
        cls, rows: int, in_features: int, out_features: int, item: int = 4, threads: int = 1, kind: str = "linear"
    ) -> Work:
        """The work of y = x·Wᵀ + b for x [rows, in_features]; `item` is the size of one number in bytes."""
        weights = in_features * out_features
        return cls(kind, rows, rows * in_features, rows * out_features, rows * weights, weights * item, threads)


class Choice(NamedTuple):
    """Whether the event-driven kernel is predicted to win, and what both would take, in seconds."""

    event: bool
    event_s: float
    dense_s: float


class Rates(NamedTuple):
    """Constants of one kind of layer on one machine with `threads` threads; the grids are {(rows, weight_bytes): seconds}."""

    dense_call: float
    event_call: float
    scan: float
    store: float
    pack: float
    mac: dict[tuple[int, int], float]
    synop: dict[tuple[int, int], float]


_DEFAULT = {
    "linear": Rates(
        dense_call=2e-6,
        event_call=8e-6,
        scan=2e-11,
        store=2e-11,
        pack=1e-10,
        mac={(1, 1 << 20): 4e-11, (1, 1 << 26): 1.5e-10, (64, 1 << 20): 9e-12, (64, 1 << 26): 1.2e-11},
        synop={(1, 1 << 20): 5e-11, (1, 1 << 26): 8e-11, (64, 1 << 20): 3e-11, (64, 1 << 26): 5e-11},
    )
}
_DEFAULT["linear_training"] = _DEFAULT["linear"]


def rates(kind: str, threads: int) -> Rates:
    """The constants in use for a kind of layer."""
    return _DEFAULT[kind]


def choose(work: Work, nonzeros: int) -> Choice:
    """Predict both times of a call in which `nonzeros` of the inputs are not zero, and say which is shorter."""
    constants = rates(work.kind, work.threads)
    fixed, each = _event(work, constants)
    event_s, dense_s = fixed + nonzeros * each, _dense(work, constants)
    return Choice(event_s < dense_s, event_s, dense_s)


@functools.lru_cache(maxsize=4096)
def most_spikes(work: Work) -> int:
    """The largest number of non-zero inputs at which the event-driven kernel is predicted to win; -1 where it never is."""
    constants = rates(work.kind, work.threads)
    fixed, each = _event(work, constants)
    spare = _dense(work, constants) - fixed
    if spare <= 0 or work.inputs == 0:
        return -1
    return min(work.inputs, math.ceil(spare / each) - 1)


def packing(work: Work) -> float:
    """Seconds to bring the weights into the order in which the event-driven kernel reads them."""
    return work.weight_bytes * rates(work.kind, work.threads).pack


def _dense(work: Work, constants: Rates) -> float:
    return constants.dense_call + work.macs * _interpolated(constants.mac, work)


def _event(work: Work, constants: Rates) -> tuple[float, float]:
    """(seconds without a spike, seconds a spike)."""
    fan_out = work.macs / max(1, work.inputs)
    fixed = constants.event_call + work.inputs * constants.scan + work.outputs * constants.store
    return fixed, fan_out * _interpolated(constants.synop, work)


def _interpolated(grid: dict[tuple[int, int], float], work: Work) -> float:
    """Bilinear in the logarithms of rows, weight bytes and seconds; beyond the grid its border holds."""
    rows = sorted({r for r, _ in grid})
    sizes = sorted({b for _, b in grid})
    r0, r1, u = _between(rows, work.rows)
    b0, b1, v = _between(sizes, work.weight_bytes)
    low = (1 - v) * math.log(grid[r0, b0]) + v * math.log(grid[r0, b1])
    high = (1 - v) * math.log(grid[r1, b0]) + v * math.log(grid[r1, b1])
    return math.exp((1 - u) * low + u * high)


def _between(marks: list[int], value: int) -> tuple[int, int, float]:
    """The marks on both sides of a value, and how far it lies from the first to the second."""
    if value <= marks[0]:
        return marks[0], marks[0], 0.0
    for low, high in itertools.pairwise(marks):
        if value <= high:
            return low, high, math.log(value / low) / math.log(high / low)
    return marks[-1], marks[-1], 0.0
