"""Dense or event-driven: a small cost model that predicts both from the shape of a call and the spikes in it.

    dense = call + inputs·read + outputs·write + macs·rate(rows, weight bytes)
    event = call + inputs·read + outputs·write + spikes·spike + synops·rate(rows, weight bytes);   synops = spikes·macs / inputs

The constants are seconds, different ones for each kind of layer, size of a number, and side; `rate` is interpolated between the marks
below. cost.json holds those of one machine (Zen 5, two threads); `spiking doctor --calibrate` measures those of yours (calibrate.py).

>>> work = Work.linear(rows=16, in_features=4096, out_features=4096)
>>> choose(work, nonzeros=16 * 80).event
True
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import backend

__all__ = [
    "BYTES",
    "ROWS",
    "Choice",
    "Rates",
    "Work",
    "choose",
    "most_spikes",
    "most_spikes_conv2d",
    "most_spikes_linear",
    "packing",
    "rates",
    "save",
    "terms",
]

ROWS = (1, 16, 256)  # between these rows that share the weights,
BYTES = (1 << 16, 1 << 20, 1 << 23, 1 << 26)  # and these sizes of them, rates are interpolated (in logarithms of both)
MARGIN = 1.25  # the event-driven kernel has to win by this, so that an error of the prediction costs nothing
VERSION = 1


class Work(NamedTuple):
    """What one call computes, whatever the spikes: the numbers that the model prices.

    kind: whose constants; rows: how many results share one set of weights (T·B for a linear layer, T·B·H'·W' for a convolution);
    inputs, outputs: numbers read and written; macs: multiply-adds of the dense call; weight_bytes: size of the weights; item: bytes of a
    number; threads: cores at work.
    """

    kind: str
    rows: int
    inputs: int
    outputs: int
    macs: int
    weight_bytes: int
    item: int = 4
    threads: int = 1

    @classmethod
    def linear(
        cls, rows: int, in_features: int, out_features: int, item: int = 4, threads: int = 1, kind: str = "linear"
    ) -> Work:
        """The work of y = x·Wᵀ + b for x [rows, in_features]."""
        weights = in_features * out_features
        return cls(kind, rows, rows * in_features, rows * out_features, rows * weights, weights * item, item, threads)

    @classmethod
    def conv2d(
        cls, pixels_in: int, pixels_out: int, weight: tuple[int, ...], groups: int, item: int, threads: int, kind: str
    ) -> Work:
        """The work of a convolution with `weight` [out, in / groups, kernel, kernel]; pixels are those of all images."""
        outputs, inputs, ky, kx = weight
        weights = outputs * inputs * ky * kx
        sizes = pixels_in * inputs * groups, pixels_out * outputs, pixels_out * weights
        return cls(kind, pixels_out, *sizes, weights * item, item, threads)


class Choice(NamedTuple):
    """Whether the event-driven kernel is predicted to win, and what both would take, in seconds."""

    event: bool
    event_s: float
    dense_s: float


@dataclass(frozen=True)
class Rates:
    """Constants of one kind of layer: dense [call, read, write, rates], event [call, read, write, spike, rates], pack (s / byte).

    The rates follow one another as ROWS × BYTES.
    """

    dense: tuple[float, ...]
    event: tuple[float, ...]
    pack: float


def terms(work: Work, nonzeros: int | None = None) -> list[float]:
    """What the constants are multiplied with: those of the dense side, or with `nonzeros` those of the event-driven one."""
    grid = [r * b for r in _weights(ROWS, work.rows) for b in _weights(BYTES, work.weight_bytes)]
    if nonzeros is None:
        return [1.0, work.inputs, work.outputs, *(work.macs * share for share in grid)]
    synops = nonzeros * work.macs / max(1, work.inputs)
    return [1.0, work.inputs, work.outputs, nonzeros, *(synops * share for share in grid)]


def choose(work: Work, nonzeros: int, extra_s: float = 0.0) -> Choice:
    """Predict both times of a call in which `nonzeros` of the inputs are not zero, and say which to take.

    `extra_s` are seconds that the event-driven side would have to spend besides, such as `packing`.
    """
    constants = rates(work.kind, work.item, work.threads)
    dense_s, event_s = _sum(constants.dense, terms(work)), _sum(constants.event, terms(work, nonzeros))
    return Choice((event_s + extra_s) * MARGIN < dense_s, event_s, dense_s)


@functools.lru_cache(maxsize=4096)
def most_spikes(work: Work, extra_s: float = 0.0) -> int:
    """The largest number of non-zero inputs at which the event-driven kernel is predicted to win; -1 where it never does.

    `extra_s` as in `choose`.
    """
    constants = rates(work.kind, work.item, work.threads)
    fixed = _sum(constants.event, terms(work, 0)) + extra_s
    each = _sum(constants.event, terms(work, 1)) + extra_s - fixed
    spare = _sum(constants.dense, terms(work)) / MARGIN - fixed
    if spare <= 0 or work.inputs == 0:
        return -1
    return min(work.inputs, math.ceil(spare / each) - 1) if each > 0 else work.inputs


@functools.lru_cache(maxsize=4096)
def most_spikes_linear(
    rows: int, in_features: int, out_features: int, item: int, threads: int, kind: str = "linear", calls: int = 1
) -> int:
    """`most_spikes` of y = x·Wᵀ + b where each call bears its share of packing the weight, which serves `calls` of them."""
    work = Work.linear(rows, in_features, out_features, item, threads, kind)
    return most_spikes(work, packing(work) / calls)


@functools.lru_cache(maxsize=4096)
def most_spikes_conv2d(
    pixels_in: int, pixels_out: int, weight: tuple[int, ...], groups: int, item: int, threads: int, calls: int = 1
) -> int:
    """`most_spikes` of a convolution without gradients (arguments as of `Work.conv2d`), `calls` as in `most_spikes_linear`."""
    work = Work.conv2d(pixels_in, pixels_out, weight, groups, item, threads, "conv2d")
    return most_spikes(work, packing(work) / calls)


def packing(work: Work) -> float:
    """Seconds to bring the weights into the order in which the event-driven kernel reads them."""
    return work.weight_bytes * rates(work.kind, work.item, work.threads).pack


def _sum(constants: tuple[float, ...], factors: list[float]) -> float:
    return sum(c * f for c, f in zip(constants, factors, strict=True))


def _weights(marks: tuple[int, ...], value: int) -> list[float]:
    """The share of each mark at a value: 1 at the mark, falling to 0 at its neighbours; beyond the last, the last holds."""
    shares = [0.0] * len(marks)
    if value <= marks[0]:
        shares[0] = 1.0
        return shares
    for i, (low, high) in enumerate(itertools.pairwise(marks)):
        if value <= high:
            shares[i + 1] = math.log(value / low) / math.log(high / low)
            shares[i] = 1.0 - shares[i + 1]
            return shares
    shares[-1] = 1.0
    return shares


# --- where the constants come from --------------------------------------------------------------------------------------


@functools.cache
def rates(kind: str, item: int, threads: int) -> Rates:
    """The constants in use: those measured on this machine with as many threads, else the ones that came with the library."""
    name = f"{kind}/{item}"
    measured = _read(_file(threads)).get(name)
    if measured is not None:
        return measured
    default = _read(Path(__file__).with_name("cost.json"))[name]
    share = 2 / threads  # cost.json was measured with two threads
    return Rates(_scaled(default.dense, share), _scaled(default.event, share), default.pack * share)


def _scaled(constants: tuple[float, ...], by: float) -> tuple[float, ...]:
    return (constants[0], *(c * by for c in constants[1:]))  # the call itself takes one thread


def save(measured: dict[str, Rates], threads: int) -> Path:
    """Keep the constants of this machine, by "kind/item", for later processes and for this one; returns the file."""
    path = _file(threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {name: asdict(constants) for name, constants in {**_read(path), **measured}.items()}
    beside = path.with_suffix(".new")
    beside.write_text(
        json.dumps({"version": VERSION, "machine": backend.machine(), "threads": threads, "kinds": kinds})
    )
    beside.replace(path)
    forget()
    return path


def forget() -> None:
    """Read the constants again when they are next needed."""
    rates.cache_clear()
    most_spikes.cache_clear()
    most_spikes_linear.cache_clear()
    most_spikes_conv2d.cache_clear()


def calibrated(threads: int) -> Path | None:
    """The file with this machine's constants, if they have been measured."""
    path = _file(threads)
    return path if path.exists() else None


def _file(threads: int) -> Path:
    return backend.cache_dir() / "cost" / f"{backend.machine()}-{threads}.json"


def _read(path: Path) -> dict[str, Rates]:
    """The constants in a file, none where there is no such file; one that cannot be used is named, once a process."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        if found["version"] != VERSION:
            return {}
        return {name: _checked(kind) for name, kind in found["kinds"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        warnings.warn(
            f"{path}: cannot be read ({err}); the constants that came with the library are used. Run spiking doctor --calibrate.",
            stacklevel=2,
        )
        return {}


def _checked(kind: dict[str, Any]) -> Rates:
    dense, event = (tuple(float(c) for c in kind[side]) for side in ("dense", "event"))
    grid = len(ROWS) * len(BYTES)
    if (len(dense), len(event)) != (3 + grid, 4 + grid):
        raise ValueError(f"{len(dense)} and {len(event)} constants instead of {3 + grid} and {4 + grid}")
    return Rates(dense, event, float(kind["pack"]))
