"""Memory cells that are not ideal: a kind of cell with the effects that it has, and the devices of an array as instances of it.

What happens to a device, in this order:

    target → levels → device spread → cycle spread → programming noise → faults      when it is written
           → drift or relaxation over the time since → temperature                    until it is read
           → white and 1/f noise, telegraph noise                                     anew at every read

Everything but the reads belongs to the device: it is a function of (seed, device index) and of how often the device was written
(`cycle`), so it is the same in any batch, order or array shape. Formulas take and give µS, as their sources do; `Devices`, and
the `G_…` of `Cell`, are in siemens: the border is crossed here and nowhere else.

>>> from spiking.hw_models.cellfile import load_cell
>>> cell = load_cell("pcm")
>>> devices = Devices(cell, torch.full((2, 3), 10e-6), seed=1)
>>> after_a_month = devices.at(30 * 86_400.0)
>>> bool((after_a_month < devices.at(0.0)).all()), torch.equal(after_a_month, devices.at(30 * 86_400.0))
(True, True)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from spiking.hw_models import hardware
from spiking.hw_models.effects import (
    MICRO,
    T_ROOM,
    AgedSpread,
    CurrentVoltage,
    Draws,
    Faults,
    Forming,
    LogNormal,
    ProgrammingNoise,
    Range,
    ReadNoise,
    Retention,
    Telegraph,
    Temperature,
    quantise,
)
from torch import Tensor

from spiking.errors import SpikingError

PAIRINGS = ("one-sided", "two-sided", "offset")


@dataclass(frozen=True)
class Cell:
    """A kind of memory cell: its range and the effects it has, with every constant's source.

    `G_min`, `G_max` in siemens; `bits` 0 means a continuous conductance; `rows` and `columns` are those of one macro, `r_wire` the
    ohms of a wire segment between two cells, `v_read` the volts of a full-scale input. `pairing` is how a weight usually lies on
    it (see `placement`). What is None does not happen. Change one with `dataclasses.replace`.
    Errors: SpikingError if the range is empty or a number out of range.

    >>> from dataclasses import replace
    >>> from spiking.hw_models.cellfile import load_cell
    >>> from spiking.hw_models.curves import Proportional
    >>> from spiking.hw_models.effects import WhiteNoise
    >>> noisier = replace(load_cell("rram-40nm"), reads=(WhiteNoise(Proportional(0.05)),))
    """

    name: str
    G_min: float
    G_max: float
    title: str = ""
    bits: int = 0
    pairing: str = "one-sided"
    rows: int = 512
    columns: int = 512
    r_wire: float = 0.0
    v_read: float = 0.2
    spread: LogNormal | None = None
    cycle_spread: LogNormal | None = None
    programming: ProgrammingNoise | None = None
    faults: Faults | None = None
    forming: Forming | None = None
    retention: Retention | None = None
    temperature: Temperature | None = None
    reads: tuple[ReadNoise, ...] = ()
    telegraph: Telegraph | None = None
    current: CurrentVoltage | None = None
    constants: dict[str, hardware.Constant] = field(default_factory=dict, repr=False)
    sources: dict[str, str] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()
    path: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        where = self.path or f"Cell {self.name}"
        if not 0 <= self.G_min < self.G_max < math.inf:
            raise SpikingError(
                f"{where}: got G_min={self.G_min:.4g} S and G_max={self.G_max:.4g} S; expected 0 <= G_min < G_max."
            )
        if self.pairing not in PAIRINGS:
            raise SpikingError(f"{where}: got pairing={self.pairing!r}; expected one of {', '.join(PAIRINGS)}.")
        least = {"bits": 0, "rows": 1, "columns": 1, "r_wire": 0}
        for name, low in least.items():
            if not low <= getattr(self, name) < math.inf:
                raise SpikingError(f"{where}: got {name}={getattr(self, name)}; expected at least {low}.")
        if not 0 < self.v_read < math.inf:
            raise SpikingError(f"{where}: got v_read={self.v_read}; expected volts above 0.")

    @property
    def span(self) -> Range:
        """Lowest and highest conductance in µS."""
        return Range(self.G_min * MICRO, self.G_max * MICRO)


class Devices:
    """Devices of one kind that were written to target conductances: what they hold at any time, and what reading them gives.

    `target` in siemens, any shape; what lies outside the cell's range goes to its border. `index` (int64, as target) says which
    device each one is, 0, 1, 2, … where it is not given; `cycle` counts how often they were written before.
    Errors: SpikingError for targets that are not finite, a negative time, or a temperature that is not in kelvin.

    >>> from spiking.hw_models.curves import Constant
    >>> cell = Cell("plain", 0.0, 1e-4, programming=ProgrammingNoise(Constant(1.0)))
    >>> targets = torch.tensor([20e-6, 50e-6, 80e-6])
    >>> torch.equal(Devices(cell, targets, seed=0).at(0.0), Devices(cell, targets, seed=0).at(3600.0))
    True
    """

    def __init__(self, cell: Cell, target: Tensor, seed: int = 0, index: Tensor | None = None, cycle: int = 0) -> None:
        if not bool(torch.isfinite(target).all()):
            raise SpikingError(f"Devices: got {_count_bad(target)} target conductances that are not finite numbers.")
        if index is None:
            index = torch.arange(target.numel(), device=target.device).reshape(target.shape)
        self.cell, self.cycle = cell, cycle
        self._own = Draws(seed, index)
        wanted = (target.detach().double() * MICRO).clamp(cell.span.low, cell.span.high)
        self._target = quantise(wanted, cell.bits, cell.span)
        self._aim = self._aimed()
        self._written = self._aim
        if cell.programming is not None:
            self._written = cell.programming.apply(self._aim, cell.span, self._own, cycle)
        self._written = self._with_faults(self._written)

    @property
    def shape(self) -> torch.Size:
        """One device for each element."""
        return self._target.shape

    def rewritten(self) -> Devices:
        """The same devices after one more write: what belongs to the device stays, what belongs to the write is new."""
        return Devices(self.cell, self._target / MICRO, self._own.seed, self._own.index, self.cycle + 1)

    def at(self, t: float = 0.0, kelvin: float = T_ROOM) -> Tensor:
        """Conductance t seconds after writing and at that temperature, without the noise of a read: siemens, as target."""
        return self._at(t, kelvin) / MICRO

    def read_moments(self, t: float = 0.0, kelvin: float = T_ROOM) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of one read, siemens."""
        g = self._at(t, kelvin)
        variance = sum((r.std(g, self._written, t, self.cell.span) ** 2 for r in self.cell.reads), torch.zeros_like(g))
        if self.cell.telegraph is not None:
            a, p = self.cell.telegraph.depth(g, self._own), self.cell.telegraph.occupancy(self._own)
            variance = variance * (1 - p + p * (1 - a) ** 2) + (a * g) ** 2 * p * (1 - p)
            g = g * (1 - a * p)
        return g / MICRO, variance.sqrt() / MICRO

    def read(self, generator: torch.Generator, n: int = 1, t: float = 0.0, kelvin: float = T_ROOM) -> Tensor:
        """n reads far enough apart to be independent: siemens, [n, *target.shape]."""
        g = self._at(t, kelvin)
        out = g.expand(n, *g.shape)
        for noise in self.cell.reads:
            out = out + noise.std(g, self._written, t, self.cell.span) * _randn(out, generator)
        if self.cell.telegraph is not None:
            a, p = self.cell.telegraph.depth(g, self._own), self.cell.telegraph.occupancy(self._own)
            filled = torch.rand(out.shape, generator=generator, dtype=out.dtype, device=out.device) < p
            out = torch.where(filled, out * (1 - a), out)
        return out / MICRO

    def _aimed(self) -> Tensor:
        g, cell = self._target, self.cell
        if cell.spread is not None:
            g = cell.spread.apply(g, cell.span, self._own.normal("device"))
        if cell.cycle_spread is not None:
            g = cell.cycle_spread.apply(g, cell.span, self._own.normal(f"cycle/{self.cycle}"))
        return g

    def _with_faults(self, g: Tensor) -> Tensor:
        return g if self.cell.faults is None else self.cell.faults.apply(g, self.cell.span, self._own.uniform("fault"))

    def _at(self, t: float, kelvin: float) -> Tensor:
        check_time("Devices.at", t)
        check_kelvin("Devices.at", kelvin)
        g, cell = self._written, self.cell
        aged = t if cell.temperature is None else cell.temperature.aged(t, kelvin)
        if cell.retention is not None:
            written = self._aim if isinstance(cell.retention, AgedSpread) else g
            g = self._with_faults(cell.retention.apply(written, self._aim, aged, cell.span, self._own, self.cycle))
        return g if cell.temperature is None else cell.temperature.apply(g, kelvin, cell.span)


def _randn(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _count_bad(x: Tensor) -> int:
    return int((~torch.isfinite(x)).sum())


def check_time(where: str, t: float) -> None:
    """SpikingError unless t is a time since programming."""
    if not 0 <= t < math.inf:
        raise SpikingError(f"{where}: got t={t}; expected seconds since programming, 0 or more.")


def check_kelvin(where: str, kelvin: float) -> None:
    """SpikingError unless the temperature is one at which a chip works, in kelvin."""
    if not 150 <= kelvin <= 700:
        raise SpikingError(f"{where}: got {kelvin} K; expected kelvin from 150 to 700. 80 °C is 353.15 K.")


__all__ = ["PAIRINGS", "Cell", "Devices", "check_kelvin", "check_time"]
