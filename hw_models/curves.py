"""Published fits: how a spread, a drift exponent or a noise depends on a device's conductance.

A curve is called as `curve(g, g_max)` with conductances in µS and gives float64 of g's shape: µS where it stands for a standard
deviation, a plain number where it stands for an exponent or a relative noise. r is g/g_max.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

_SMALLEST = 1e-7  # of r inside a logarithm, as in the fits' own code


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        value = value * x + c
    return value


class Curve(ABC):
    """A fitted function of the conductance. `units` names the unit of each field: "out" is that of the result."""

    units: ClassVar[dict[str, str]]

    @abstractmethod
    def __call__(self, g: Tensor, g_max: float) -> Tensor:
        """The curve at g µS, for devices whose largest conductance is g_max µS."""


@dataclass(frozen=True)
class Constant(Curve):
    """The same at every conductance.

    >>> Constant(0.2)(torch.tensor([1.0, 9.0]), 25.0).tolist()
    [0.2, 0.2]
    """

    value: float
    units: ClassVar = {"value": "out"}

    def __call__(self, g: Tensor, g_max: float) -> Tensor:
        return torch.full_like(g, self.value, dtype=torch.float64)


@dataclass(frozen=True)
class Proportional(Curve):
    """fraction·g.

    >>> Proportional(0.02)(torch.tensor([50.0]), 80.0).tolist()
    [1.0]
    """

    fraction: float
    units: ClassVar = {"fraction": "1"}

    def __call__(self, g: Tensor, g_max: float) -> Tensor:
        return self.fraction * g


@dataclass(frozen=True)
class Inverse(Curve):
    """factor·g_max²/g, no more than g_max: the noise of devices that are the less certain the less they conduct."""

    factor: float
    units: ClassVar = {"factor": "1"}

    def __call__(self, g: Tensor, g_max: float) -> Tensor:
        return (self.factor * g_max**2 / g).clamp(max=g_max)


@dataclass(frozen=True)
class RelativePolynomial(Curve):
    """(c0 + c1·r + c2·r² + …)·g_max/reference, the fit of devices of another range scaled to this one; reference 0: not scaled.

    >>> RelativePolynomial((1.0, 2.0), 25.0)(torch.tensor([10.0], dtype=torch.float64), 50.0).tolist()
    [2.8]
    """

    coefficients: tuple[float, ...]
    reference: float = 0.0
    units: ClassVar = {"coefficients": "out", "reference": "uS"}

    def __call__(self, g: Tensor, g_max: float) -> Tensor:
        scale = g_max / self.reference if self.reference else 1.0
        return _horner(self.coefficients, g / g_max) * scale


@dataclass(frozen=True)
class Polynomial(Curve):
    """max(floor, c0 + c1·g + c2·g² + …), g in µS.

    >>> Polynomial((1.0, -0.5))(torch.tensor([1.0, 4.0]), 25.0).tolist()
    [0.5, 0.0]
    """

    coefficients: tuple[float, ...]
    floor: float = 0.0
    units: ClassVar = {"coefficients": "out/S^k", "floor": "out"}

    def __call__(self, g: Tensor, g_max: float) -> Tensor:
        return _horner(self.coefficients, g).clamp(min=self.floor)


@dataclass(frozen=True)
class Saturating(Curve):
    """amplitude·(1 - exp(-g/scale)).

    >>> Saturating(2.0, 1.0)(torch.tensor([0.0, 100.0]), 25.0).tolist()
    [0.0, 2.0]
    """

    amplitude: float
    scale: float
    units: ClassVar = {"amplitude": "out", "scale": "uS"}

    def __call__(self, g: Tensor, g_max: float) -> Tensor:
        return self.amplitude * (1 - torch.exp(-g / self.scale))


@dataclass(frozen=True)
class ClippedLog(Curve):
    """slope·ln r + offset, kept between low and high.

    >>> ClippedLog(-0.0155, 0.0244, 0.049, 0.1)(torch.tensor([0.0, 25.0], dtype=torch.float64), 25.0).tolist()
    [0.1, 0.049]
    """

    slope: float
    offset: float
    low: float
    high: float
    units: ClassVar = {"slope": "out", "offset": "out", "low": "out", "high": "out"}

    def __call__(self, g: Tensor, g_max: float) -> Tensor:
        r = (g / g_max).clamp(min=_SMALLEST)
        return (self.slope * torch.log(r) + self.offset).clamp(self.low, self.high)


@dataclass(frozen=True)
class LogThenPolynomial(Curve):
    """`ClippedLog` below r = cut, and from there c0 + c1·r + c2·r² + …"""

    cut: float
    slope: float
    offset: float
    low: float
    high: float
    coefficients: tuple[float, ...]
    units: ClassVar = {"cut": "1", **ClippedLog.units, "coefficients": "out"}

    def __call__(self, g: Tensor, g_max: float) -> Tensor:
        below = ClippedLog(self.slope, self.offset, self.low, self.high)(g, g_max)
        return torch.where(g / g_max < self.cut, below, RelativePolynomial(self.coefficients)(g, g_max))


@dataclass(frozen=True)
class InversePower(Curve):
    """min(ceiling, factor / max(r^exponent, floor)).

    >>> InversePower(0.0088, 0.65, 1e-3, 0.2)(torch.tensor([0.0, 25.0], dtype=torch.float64), 25.0).tolist()
    [0.2, 0.0088]
    """

    factor: float
    exponent: float
    floor: float
    ceiling: float
    units: ClassVar = {"factor": "out", "exponent": "1", "floor": "1", "ceiling": "out"}

    def __call__(self, g: Tensor, g_max: float) -> Tensor:
        return (self.factor / ((g / g_max) ** self.exponent).clamp(min=self.floor)).clamp(max=self.ceiling)


CURVES: dict[str, type[Curve]] = {
    "constant": Constant,
    "proportional": Proportional,
    "inverse": Inverse,
    "relative-polynomial": RelativePolynomial,
    "polynomial": Polynomial,
    "saturating": Saturating,
    "clipped-log": ClippedLog,
    "log-then-polynomial": LogThenPolynomial,
    "inverse-power": InversePower,
}
"""Name in a cell's file → curve."""


def field_names(curve: type[Any]) -> list[str]:
    """The constants that a curve or an effect takes, in its own order."""
    return [f.name for f in fields(curve)]


__all__ = [
    "CURVES",
    "ClippedLog",
    "Constant",
    "Curve",
    "Inverse",
    "InversePower",
    "LogThenPolynomial",
    "Polynomial",
    "Proportional",
    "RelativePolynomial",
    "Saturating",
    "field_names",
]
