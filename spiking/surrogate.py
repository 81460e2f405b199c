"""Surrogate gradients: what replaces the derivative of the step function in the backward pass.

A spike is `s = step(u)` with `u = h - threshold`; its derivative is zero almost everywhere. Each surrogate below is a small
frozen dataclass that gives a usable derivative `ds/du` instead. The forward pass is never changed. `scale` multiplies the curve;
the families ATan, Sigmoid, Gaussian, Exponential, Triangle and Rectangle have area 1 at `scale=1`.

Adding one: a dataclass here (a `kernel_id`, the two numbers in `kernel_parameters`, `grad` in plain torch), its line in `ALL`, and its
branch in `cuda_kernels/include/surrogate.h`. The tests run every member of `ALL` against the kernels.

>>> import torch
>>> [round(g, 3) for g in ATan(alpha=2.0).grad(torch.tensor([0.0, 1.0])).tolist()]
[1.0, 0.092]
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .errors import SpikingError

__all__ = [
    "ALL",
    "ATan",
    "Exponential",
    "FastSigmoid",
    "Gaussian",
    "PiecewiseLeakyReLU",
    "Rectangle",
    "Sigmoid",
    "StraightThrough",
    "SuperSpike",
    "Surrogate",
    "Triangle",
]


@dataclass(frozen=True)
class Surrogate(ABC):
    """What every surrogate offers: `grad(u)`, the derivative at `u`, and the numbers that the kernels need.

    `kernel_id` selects the branch in `include/surrogate.h` (a test compares the two); `kernel_parameters` are its two numbers.
    """

    kernel_id: ClassVar[int]

    @abstractmethod
    def grad(self, u: Tensor) -> Tensor:
        """Derivative ds/du at `u`, elementwise and in the dtype of `u`."""

    @property
    @abstractmethod
    def kernel_parameters(self) -> tuple[float, float]:
        """The two numbers that the kernels take."""

    @property
    def reach(self) -> float:
        """The derivative is zero where |u| is this or more; infinite for curves that never end."""
        return math.inf

    def _require_positive(self, **values: float) -> None:
        for name, value in values.items():
            if not (math.isfinite(value) and value > 0):
                raise SpikingError(
                    f"{type(self).__name__}.{name}: got {value}; expected a finite number > 0. It sets how wide the surrogate is."
                )


@dataclass(frozen=True)
class ATan(Surrogate):
    """Arctangent: `scale·alpha/2 / (1 + (pi/2·alpha·u)²)`. Source: Fang et al. 2021 (arXiv 2007.05785)."""

    alpha: float = 2.0
    scale: float = 1.0
    kernel_id: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self._require_positive(alpha=self.alpha, scale=self.scale)

    def grad(self, u: Tensor) -> Tensor:
        w = math.pi / 2 * self.alpha * u
        return self.scale * self.alpha / 2 / (1 + w * w)

    @property
    def kernel_parameters(self) -> tuple[float, float]:
        return self.alpha, self.scale


@dataclass(frozen=True)
class Sigmoid(Surrogate):
    """Logistic: `scale·alpha·σ(alpha·u)·(1 - σ(alpha·u))`, finite for any u. Source: Zenke & Ganguli 2018 (arXiv 1705.11146)."""

    alpha: float = 4.0
    scale: float = 1.0
    kernel_id: ClassVar[int] = 1

    def __post_init__(self) -> None:
        self._require_positive(alpha=self.alpha, scale=self.scale)

    def grad(self, u: Tensor) -> Tensor:
        e = torch.exp(-(self.alpha * u).abs())
        return self.scale * self.alpha * e / ((1 + e) * (1 + e))

    @property
    def kernel_parameters(self) -> tuple[float, float]:
        return self.alpha, self.scale


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """Fast sigmoid: `scale / (1 + slope·|u|)²`. Source: Zenke & Ganguli 2018 (arXiv 1705.11146)."""

    slope: float = 25.0
    scale: float = 1.0
    kernel_id: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self._require_positive(slope=self.slope, scale=self.scale)

    def grad(self, u: Tensor) -> Tensor:
        d = 1 + self.slope * u.abs()
        return self.scale / (d * d)

    @property
    def kernel_parameters(self) -> tuple[float, float]:
        return self.slope, self.scale


@dataclass(frozen=True)
class SuperSpike(Surrogate):
    """SuperSpike: `alpha / (1 + |u|)²`, that is alpha·FastSigmoid(1). Source: Zenke & Ganguli 2018 (arXiv 1705.11146)."""

    alpha: float = 1.0
    kernel_id: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self._require_positive(alpha=self.alpha)

    def grad(self, u: Tensor) -> Tensor:
        d = 1 + u.abs()
        return self.alpha / (d * d)

    @property
    def kernel_parameters(self) -> tuple[float, float]:
        return 1.0, self.alpha


@dataclass(frozen=True)
class Triangle(Surrogate):
    """Triangle: `scale·alpha·max(0, 1 - alpha·|u|)`. Source: Bellec et al. 2018 (arXiv 1803.09574); compact support |u| < 1/alpha."""

    alpha: float = 1.0
    scale: float = 1.0
    kernel_id: ClassVar[int] = 3

    def __post_init__(self) -> None:
        self._require_positive(alpha=self.alpha, scale=self.scale)

    def grad(self, u: Tensor) -> Tensor:
        return self.scale * self.alpha * (1 - self.alpha * u.abs()).clamp(min=0)

    @property
    def reach(self) -> float:
        return 1 / self.alpha

    @property
    def kernel_parameters(self) -> tuple[float, float]:
        return self.alpha, self.scale


@dataclass(frozen=True)
class Rectangle(Surrogate):
    """Rectangle: `scale·alpha` where `|u| < 1/(2·alpha)`, else 0. Source: Wu et al. 2018 (arXiv 1706.02609)."""

    alpha: float = 1.0
    scale: float = 1.0
    kernel_id: ClassVar[int] = 4

    def __post_init__(self) -> None:
        self._require_positive(alpha=self.alpha, scale=self.scale)

    def grad(self, u: Tensor) -> Tensor:
        inside = (u.abs() < 0.5 / self.alpha).to(u.dtype)
        return self.scale * self.alpha * inside + 0 * u  # 0·u: NaN in, NaN out, as in the kernels

    @property
    def reach(self) -> float:
        return 0.5 / self.alpha

    @property
    def kernel_parameters(self) -> tuple[float, float]:
        return self.alpha, self.scale


@dataclass(frozen=True)
class Gaussian(Surrogate):
    """Gaussian: `scale·alpha/√pi·exp(-(alpha·u)²)`. Source: Yin, Corradi & Bohté 2021 (arXiv 2103.12593); erf' of other libraries."""

    alpha: float = 2.0
    scale: float = 1.0
    kernel_id: ClassVar[int] = 5

    def __post_init__(self) -> None:
        self._require_positive(alpha=self.alpha, scale=self.scale)

    def grad(self, u: Tensor) -> Tensor:
        w = self.alpha * u
        return self.scale * self.alpha / math.sqrt(math.pi) * torch.exp(-(w * w))

    @property
    def kernel_parameters(self) -> tuple[float, float]:
        return self.alpha, self.scale


@dataclass(frozen=True)
class Exponential(Surrogate):
    """Two-sided exponential: `scale·alpha/2·exp(-alpha·|u|)`. Source: Shrestha & Orchard 2018 (arXiv 1810.08646)."""

    alpha: float = 1.0
    scale: float = 1.0
    kernel_id: ClassVar[int] = 6

    def __post_init__(self) -> None:
        self._require_positive(alpha=self.alpha, scale=self.scale)

    def grad(self, u: Tensor) -> Tensor:
        return self.scale * self.alpha / 2 * torch.exp(-self.alpha * u.abs())

    @property
    def kernel_parameters(self) -> tuple[float, float]:
        return self.alpha, self.scale


@dataclass(frozen=True)
class PiecewiseLeakyReLU(Surrogate):
    """Rectangle with a floor: `1/(2·width)` where `|u| < width`, else `leak`. Source: Fang et al. 2023 (arXiv 2310.16620)."""

    width: float = 1.0
    leak: float = 0.01
    kernel_id: ClassVar[int] = 7

    def __post_init__(self) -> None:
        self._require_positive(width=self.width)
        if not (math.isfinite(self.leak) and self.leak >= 0):
            raise SpikingError(
                f"PiecewiseLeakyReLU.leak: got {self.leak}; expected a finite number >= 0. It is the slope far from the threshold."
            )

    def grad(self, u: Tensor) -> Tensor:
        inside = (u.abs() < self.width).to(u.dtype)
        return inside / (2 * self.width) + (1 - inside) * self.leak + 0 * u

    @property
    def kernel_parameters(self) -> tuple[float, float]:
        return self.width, self.leak


@dataclass(frozen=True)
class StraightThrough(Surrogate):
    """Straight-through estimator: `scale` everywhere. Source: Bengio, Léonard & Courville 2013 (arXiv 1308.3432)."""

    scale: float = 1.0
    kernel_id: ClassVar[int] = 8

    def __post_init__(self) -> None:
        self._require_positive(scale=self.scale)

    def grad(self, u: Tensor) -> Tensor:
        return torch.full_like(u, self.scale) + 0 * u

    @property
    def kernel_parameters(self) -> tuple[float, float]:
        return 1.0, self.scale


ALL: tuple[type[Surrogate], ...] = (
    ATan,
    Sigmoid,
    FastSigmoid,
    SuperSpike,
    Triangle,
    Rectangle,
    Gaussian,
    Exponential,
    PiecewiseLeakyReLU,
    StraightThrough,
)
