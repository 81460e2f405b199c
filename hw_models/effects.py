"""What happens to memory cells: one small frozen model for each effect, in the order in which they act.

Formulas take and give µS, as their sources do, and seconds, kelvin, joules. Whatever is random here is handed in, as the numbers
that belong to each device (`Draws`) or as a generator for what is fresh.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from spiking.hw_models import draws
from spiking.hw_models.curves import Curve
from torch import Tensor

from spiking.errors import SpikingError

MICRO = 1e6  # µS in a siemens
BOLTZMANN = 1.380649e-23  # J/K
T_ROOM = 300.0  # K; the temperature at which the fits hold


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers of some devices: each stream gives every device one number that is its own."""

    seed: int
    index: Tensor

    def normal(self, stream: str) -> Tensor:
        return draws.normal(self.seed, stream, self.index)

    def uniform(self, stream: str) -> Tensor:
        return draws.uniform(self.seed, stream, self.index)


class Range(NamedTuple):
    """Smallest and largest conductance, µS."""

    low: float
    high: float

    def relative(self, g: Tensor) -> Tensor:
        """0 at the lowest and 1 at the highest conductance."""
        return ((g - self.low) / (self.high - self.low)).clamp(0, 1)


# Writing


def quantise(g: Tensor, bits: int, span: Range) -> Tensor:
    """The nearest of 2^bits equidistant levels (half to even); bits 0: unchanged.

    >>> quantise(torch.tensor([0.0, 0.6, 1.0]), 1, Range(0.0, 1.0)).tolist()
    [0.0, 1.0, 1.0]
    """
    if bits == 0:
        return g
    steps = 2**bits - 1
    return span.low + torch.round((g - span.low) * (steps / (span.high - span.low))) * ((span.high - span.low) / steps)


@dataclass(frozen=True)
class LogNormal:
    """Spread from device to device, or from write to write, that keeps the mean.

    G' = G·exp(σ·ξ - σ²/2);   σ = sigma_hrs at the lowest conductance, sigma_lrs at the highest, linear between
    """

    sigma_lrs: float
    sigma_hrs: float
    units: ClassVar = {"sigma_lrs": "1", "sigma_hrs": "1"}

    def apply(self, g: Tensor, span: Range, normal: Tensor) -> Tensor:
        sigma = self.sigma_hrs + (self.sigma_lrs - self.sigma_hrs) * span.relative(g)
        return g * torch.exp(sigma * normal - sigma**2 / 2)


@dataclass(frozen=True)
class ProgrammingNoise:
    """What is written instead of what was asked for: G = max(0, G_T + σ(G_T)·ξ); "uniform": G_T + σ·u with u in ±½."""

    sigma: Curve
    distribution: str = "normal"

    def apply(self, g: Tensor, span: Range, own: Draws, cycle: int) -> Tensor:
        sigma = self.sigma(g, span.high)
        if self.distribution == "uniform":
            return (g + sigma * (own.uniform(f"programming/{cycle}") - 0.5)).clamp(min=0)
        return (g + sigma * own.normal(f"programming/{cycle}")).clamp(min=0)


@dataclass(frozen=True)
class Faults:
    """Devices that hold one conductance whatever is written: one categorical draw a device, so no device is stuck twice.

    `lrs`, `hrs` and `open`: probabilities of being stuck at the highest conductance, at the lowest, and of not conducting.
    Errors: SpikingError unless they are probabilities with a sum of at most 1.
    """

    lrs: float = 0.0
    hrs: float = 0.0
    open: float = 0.0
    units: ClassVar = {"lrs": "1", "hrs": "1", "open": "1"}

    def __post_init__(self) -> None:
        shares = (self.lrs, self.hrs, self.open)
        if min(shares) < 0 or sum(shares) > 1 or not all(map(math.isfinite, shares)):
            raise SpikingError(
                f"Faults: got lrs={self.lrs}, hrs={self.hrs}, open={self.open}; expected probabilities with a sum up to 1."
            )

    def apply(self, g: Tensor, span: Range, uniform: Tensor) -> Tensor:
        g = torch.where(uniform < self.lrs, span.high, g)
        first = self.lrs + self.hrs
        g = torch.where((uniform >= self.lrs) & (uniform < first), span.low, g)
        return torch.where((uniform >= first) & (uniform < first + self.open), 0.0, g)


@dataclass(frozen=True)
class Forming:
    """Dielectric breakdown as a source of random weights.

    A cell breaks down at its own voltage V_bd ~ N(mean, std²); below it conducts `unformed` µS, above N(formed, formed_std²) µS
    cut off at 0. A higher pulse only ever forms more cells.
    Units: volts and µS.   Source: Lin et al. 2025 (doi 10.1038/s43588-024-00751-z).

    >>> round(Forming(3.433, 0.114, 50.0, 4.676, 0.1).sparsity(3.3), 4)
    0.8783
    """

    mean: float
    std: float
    formed: float
    formed_std: float
    unformed: float
    units: ClassVar = {"mean": "V", "std": "V", "formed": "uS", "formed_std": "uS", "unformed": "uS"}

    def sparsity(self, voltage: float) -> float:
        """The share of cells that a pulse leaves unformed: 1 - Φ((V - mean)/std)."""
        return float(torch.special.ndtr(torch.tensor((self.mean - voltage) / self.std, dtype=torch.float64)))

    def voltage(self, sparsity: float) -> float:
        """The pulse that leaves this share unformed.

        Errors: SpikingError unless 0 < sparsity < 1.
        """
        if not 0 < sparsity < 1:
            raise SpikingError(f"Forming.voltage: got a sparsity of {sparsity}; expected 0 < sparsity < 1.")
        return self.mean + self.std * float(torch.special.ndtri(torch.tensor(1 - sparsity, dtype=torch.float64)))

    def conductance(self, voltage: float, seed: int, index: Tensor) -> Tensor:
        """Siemens of each device after a pulse of `voltage`; index int64 of any shape."""
        own = Draws(seed, index)
        broken = self.mean + self.std * own.normal("breakdown") <= voltage
        formed = (self.formed + self.formed_std * own.normal("formed")).clamp(min=0)
        return torch.where(broken, formed, self.unformed) / MICRO


# Waiting


class Retention(ABC):
    """How a written conductance changes with time."""

    @abstractmethod
    def apply(self, g: Tensor, target: Tensor, t: float, span: Range, own: Draws, cycle: int) -> Tensor:
        """Conductance t seconds after writing: g was written where target was meant."""


@dataclass(frozen=True)
class PowerLawDrift(Retention):
    """G(t) = G·((t + t0)/t0)^(-ν), ν = |μ(G_T) + σ(G_T)·ξ| of each device."""

    nu_mean: Curve
    nu_std: Curve
    t0: float
    units: ClassVar = {"t0": "s"}

    def drifted(self, g: Tensor, nu: Tensor, t: float) -> Tensor:
        """Conductance after t seconds at the exponents nu."""
        return g * ((t + self.t0) / self.t0) ** -nu

    def apply(self, g: Tensor, target: Tensor, t: float, span: Range, own: Draws, cycle: int) -> Tensor:
        nu = self.nu_mean(target, span.high) + self.nu_std(target, span.high) * own.normal("drift")
        return self.drifted(g, nu.abs(), t)


@dataclass(frozen=True)
class Relaxation(Retention):
    """G(t) = G + shift·ln t + (growth·ln t + base)·ξ between lowest and highest conductance; held before 1 s, where the data begin.

    Units: µS, t in seconds.
    """

    shift: float
    growth: float
    base: float
    units: ClassVar = {"shift": "uS", "growth": "uS", "base": "uS"}

    def mean(self, g: Tensor, t: float, span: Range) -> Tensor:
        return (g + self.shift * math.log(max(t, 1.0))).clamp(span.low, span.high)

    def std(self, t: float) -> float:
        return self.growth * math.log(max(t, 1.0)) + self.base

    def apply(self, g: Tensor, target: Tensor, t: float, span: Range, own: Draws, cycle: int) -> Tensor:
        moved = g + self.shift * math.log(max(t, 1.0)) + self.std(t) * own.normal("relaxation")
        return moved.clamp(span.low, span.high)


@dataclass(frozen=True)
class AgedSpread(Retention):
    """Programming noise that was measured at several ages: G(t) = max(0, G_T + σ(G_T, t)·ξ), with one ξ a device.

    σ is linear between the ages, in t (`scale` "linear") or in log t ("log"), and held outside.
    """

    ages: tuple[float, ...]
    curves: tuple[Curve, ...]
    scale: str = "log"

    def sigma(self, g: Tensor, t: float, span: Range) -> Tensor:
        t = min(max(t, self.ages[0]), self.ages[-1])
        i = max(k for k, age in enumerate(self.ages) if age <= t)
        first = self.curves[i](g, span.high)
        if t == self.ages[i]:
            return first
        place = [math.log(v) if self.scale == "log" else v for v in (t, self.ages[i], self.ages[i + 1])]
        part = (place[0] - place[1]) / (place[2] - place[1])
        return first + part * (self.curves[i + 1](g, span.high) - first)

    def apply(self, g: Tensor, target: Tensor, t: float, span: Range, own: Draws, cycle: int) -> Tensor:
        return (g + self.sigma(g, t, span) * own.normal(f"programming/{cycle}")).clamp(min=0)


@dataclass(frozen=True)
class Temperature:
    """Conduction and ageing at another temperature than the fits' 300 K.

        G(T) = G·(r/(1 + alpha·(T - 300)) + (1 - r)·exp(-(activation/k)(1/T - 1/300)))
        t ages as t·exp((ageing/k)(1/300 - 1/T))

    r runs from 0 at the lowest conductance (thermally activated) to 1 at the highest (metallic).   Units: 1/K and joules.
    """

    alpha: float
    activation: float
    ageing: float
    units: ClassVar = {"alpha": "1/K", "activation": "J", "ageing": "J"}

    def apply(self, g: Tensor, kelvin: float, span: Range) -> Tensor:
        r = span.relative(g)
        metallic = 1 / (1 + self.alpha * (kelvin - T_ROOM))
        activated = math.exp(-self.activation / BOLTZMANN * (1 / kelvin - 1 / T_ROOM))
        return g * (r * metallic + (1 - r) * activated)

    def aged(self, t: float, kelvin: float) -> float:
        """Seconds at 300 K that age a device as t seconds at this temperature do."""
        return t * math.exp(self.ageing / BOLTZMANN * (1 / T_ROOM - 1 / kelvin))


# Reading


class ReadNoise(ABC):
    """The standard deviation of one read, µS."""

    @abstractmethod
    def std(self, g: Tensor, programmed: Tensor, t: float, span: Range) -> Tensor:
        """At conductance g, t seconds after `programmed` was written."""


@dataclass(frozen=True)
class WhiteNoise(ReadNoise):
    """σ(G): independent from read to read."""

    sigma: Curve

    def std(self, g: Tensor, programmed: Tensor, t: float, span: Range) -> Tensor:
        return self.sigma(g, span.high)


@dataclass(frozen=True)
class FlickerNoise(ReadNoise):
    """1/f noise that has gathered since the device was written: σ = G(t)·Q(G)·sqrt(ln((t + t0 + t_read)/(2·t_read)))."""

    q: Curve
    t0: float
    t_read: float
    units: ClassVar = {"t0": "s", "t_read": "s"}

    def std(self, g: Tensor, programmed: Tensor, t: float, span: Range) -> Tensor:
        gathered = math.log((t + self.t0 + self.t_read) / (2 * self.t_read))
        return g * self.q(programmed, span.high) * math.sqrt(max(gathered, 0.0))


@dataclass(frozen=True)
class LogFlickerNoise(ReadNoise):
    """σ = factor·log10(G)·sqrt(ln((t + t_read)/(2·t_read))), not below 0; G in µS."""

    factor: float
    t_read: float
    units: ClassVar = {"factor": "uS", "t_read": "s"}

    def std(self, g: Tensor, programmed: Tensor, t: float, span: Range) -> Tensor:
        gathered = math.log((t + self.t_read) / (2 * self.t_read))
        return self.factor * torch.log10(g.clamp(min=1.0)) * math.sqrt(max(gathered, 0.0))


def flicker_sequence(shape: tuple[int, ...], n: int, generator: torch.Generator, processes: int = 8) -> Tensor:
    """1/f noise of variance 1 over n reads in a row: the sum of first-order processes, their time constants log-spaced over the record.

    Shapes: -> [n, *shape], float64.   Equation: x_k[i] = a_k·x_k[i-1] + sqrt(1 - a_k²)·ξ, a_k = exp(-1/τ_k), started at rest in law.
    """
    tau = torch.logspace(0, math.log10(max(n, 2)), processes, dtype=torch.float64)
    a = torch.exp(-1 / tau).reshape(-1, *[1] * len(shape))

    def noise() -> Tensor:
        return torch.randn(processes, *shape, generator=generator, dtype=torch.float64)

    x, kick, out = noise(), (1 - a**2).sqrt(), []
    for _ in range(n):
        out.append(x.sum(0) / math.sqrt(processes))
        x = a * x + kick * noise()
    return torch.stack(out)


@dataclass(frozen=True)
class Telegraph:
    """Random telegraph noise of a share of the devices: a trap that holds a charge for a while makes G(1 - a) of G.

        a = amplitude/(1 + R0·G);   mean times free and trapped: log-uniform over tau_low … tau_high, for each device
        P(trapped) = p = τ_e/(τ_c + τ_e);   mean G(1 - a·p), variance a²G²p(1 - p), correlation exp(-Δt(1/τ_c + 1/τ_e))

    Units: R0 in ohms, times in seconds.   Source of the growth with resistance: Ielmini et al. 2010 (doi 10.1063/1.3304167).
    """

    share: float
    amplitude: float
    resistance: float
    tau_low: float
    tau_high: float
    units: ClassVar = {"share": "1", "amplitude": "1", "resistance": "ohm", "tau_low": "s", "tau_high": "s"}

    def depth(self, g: Tensor, own: Draws) -> Tensor:
        """a of each device, 0 for those without a trap; g in µS."""
        a = self.amplitude / (1 + self.resistance * g / MICRO)
        return torch.where(own.uniform("trap") < self.share, a, 0.0)

    def times(self, own: Draws) -> tuple[Tensor, Tensor]:
        """Mean time free and mean time trapped of each device, seconds."""
        span = math.log(self.tau_high / self.tau_low)
        free, trapped = (self.tau_low * torch.exp(span * own.uniform(f"trap/{state}")) for state in ("free", "trapped"))
        return free, trapped

    def occupancy(self, own: Draws) -> Tensor:
        """p of each device: how much of the time its trap is filled."""
        free, trapped = self.times(own)
        return trapped / (free + trapped)

    def sequence(self, n: int, dt: float, own: Draws, generator: torch.Generator) -> Tensor:
        """Whether the trap of each device is filled at n reads dt seconds apart; started in equilibrium, exact steps.

        Shapes: -> bool [n, *index.shape].
        """
        free, trapped = self.times(own)
        p = trapped / (free + trapped)
        change = 1 - torch.exp(-dt * (1 / free + 1 / trapped))
        chance = lambda: torch.rand(p.shape, generator=generator, dtype=torch.float64)  # noqa: E731
        state, out = chance() < p, []
        for _ in range(n):
            out.append(state)
            u = chance()
            state = torch.where(state, u >= (1 - p) * change, u < p * change)
        return torch.stack(out)


@dataclass(frozen=True)
class CurrentVoltage:
    """A current that is not proportional to the voltage: I = G·V + N2(G)·V² + N3(G)·V³, N polynomials of l = log10(G in S).

    Units: siemens, volts, amperes; fitted for |V| <= 0.5 V.   Source: Milo et al., IRPS 2021 (doi 10.1109/IRPS46558.2021.9405119).
    """

    second: tuple[float, ...]
    third: tuple[float, ...]

    def coefficients(self, G: Tensor) -> tuple[Tensor, Tensor]:
        """N2 [A/V²] and N3 [A/V³] of each device; 0 where it does not conduct."""
        l = torch.log10(G.clamp(min=1e-12))
        found = []
        for polynomial in (self.second, self.third):
            value = torch.zeros_like(l)
            for c in reversed(polynomial):
                value = value * l + c
            found.append(torch.where(G > 0, value, 0.0))
        return found[0], found[1]

    def current(self, G: Tensor, V: Tensor | float) -> Tensor:
        """Amperes of each device at V volts."""
        second, third = self.coefficients(G)
        return G * V + second * V**2 + third * V**3


__all__ = [
    "MICRO",
    "T_ROOM",
    "AgedSpread",
    "CurrentVoltage",
    "Draws",
    "Faults",
    "FlickerNoise",
    "Forming",
    "LogFlickerNoise",
    "LogNormal",
    "PowerLawDrift",
    "ProgrammingNoise",
    "Range",
    "ReadNoise",
    "Relaxation",
    "Retention",
    "Telegraph",
    "Temperature",
    "WhiteNoise",
    "flicker_sequence",
    "quantise",
]
