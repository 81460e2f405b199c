"""How a weight matrix lies on pairs of devices, and what the converters at an array's edges do to numbers.

A weight W lies on devices as a difference of conductances, W ~ Σ_k worth_k·(G⁺_k - G⁻_k), where k counts the pairs of a weight:

    one-sided   G⁺ = G_min + (G_max - G_min)·max(W, 0)/W_max, G⁻ likewise of -W: the unused device stays at G_min
    two-sided   G^± = G_min + (G_max - G_min)·(1 ± W/W_max)/2: zero is the middle of the range on both
    offset      one device, G = G_min + (G_max - G_min)·(W - W_min)/(W_max - W_min); the shift is taken off digitally
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from spiking.hw_models.devices import PAIRINGS, Cell
from spiking.hw_models.effects import Range, quantise
from spiking.hw_models.wires import NO_RESISTANCE, Wires
from torch import Tensor

from spiking.errors import SpikingError

READS = ("moments", "resample", "none")
RANGES = ("max", "calibrated", "granular")
_MOST_BITS = 32


@dataclass(frozen=True)
class ArrayConfig:
    """How weights lie on arrays and how arrays are driven and read. None means: as the cell is, or not at all.

    `rows`, `columns`: the largest tile; more inputs or outputs take several, whose results are added digitally.
    `pairing`: one-sided, two-sided or offset.   `scale`: "array" or "column": what W_max is the largest of.
    `weight_bits`: the weight as sign and weight_bits - 1 bits of magnitude, in `slices` pairs of equal numbers of bits.
    `significance`: without weight_bits, the worth of each of several pairs, filled one after the other, lowest first.
    `input_bits`: sign and magnitude in 2^bits - 1 levels over ±`input_range` (None: each vector's largest size);
        `serial_bits`: so many bits of the magnitude are driven at a time, and the results added behind the converter, or, with
        `analogue_sum`, before it.
    `adc_bits`: 2^bits - 1 levels over ±`adc_range`: a number of devices fully on, "max" (all rows fully on), "granular" (the
        smallest step of current is one level) or "calibrated" (`Crossbar.calibrate`); `adc_noise` (fresh) and `adc_offset` (of
        each column, fixed) are standard deviations in the same unit.
    `wires`: ohms of the wires (`cell.r_wire` holds the cell's own), solved exactly.
    `read`: "moments" (the noise's exact distribution at the output), "resample" (every device, every product) or "none".
    Errors: SpikingError naming the field that is out of range.

    >>> ArrayConfig(weight_bits=8, slices=4, adc_bits=8)
    ArrayConfig(weight_bits=8, slices=4, adc_bits=8)
    """

    rows: int | None = None
    columns: int | None = None
    pairing: str | None = None
    scale: str = "array"
    weight_bits: int | None = None
    slices: int = 1
    significance: tuple[float, ...] = (1.0,)
    input_bits: int | None = None
    input_range: float | None = None
    serial_bits: int | None = None
    analogue_sum: bool = False
    adc_bits: int | None = None
    adc_range: float | str = "max"
    adc_noise: float = 0.0
    adc_offset: float = 0.0
    wires: Wires = NO_RESISTANCE
    read: str = "moments"

    def __post_init__(self) -> None:
        bits = {
            "weight_bits": 2,
            "input_bits": 2,
            "adc_bits": 1 if self.adc_range == "granular" else 2,
            "serial_bits": 1,
        }
        for name, least in bits.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and least <= value <= _MOST_BITS):
                raise SpikingError(
                    f"ArrayConfig.{name}: got {value} bits; expected {least} to {_MOST_BITS}, or None for none."
                )
        for name in ("rows", "columns", "slices"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise SpikingError(f"ArrayConfig.{name}: got {value}; expected a whole number, 1 or more.")
        for name in ("adc_noise", "adc_offset"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpikingError(f"ArrayConfig.{name}: got {getattr(self, name)}; expected 0 or more.")
        for name, allowed in (("read", READS), ("scale", ("array", "column"))):
            if getattr(self, name) not in allowed:
                raise SpikingError(f"ArrayConfig.{name}: got {getattr(self, name)!r}; expected {' or '.join(allowed)}.")
        if self.pairing is not None and self.pairing not in PAIRINGS:
            raise SpikingError(f"ArrayConfig.pairing: got {self.pairing!r}; expected one of {', '.join(PAIRINGS)}.")
        self._check_combinations()
        self.wires.check()

    def _check_combinations(self) -> None:
        number = isinstance(self.adc_range, int | float)
        if not (self.adc_range in RANGES or (number and 0 < float(self.adc_range) < math.inf)):
            raise SpikingError(
                f"ArrayConfig.adc_range: got {self.adc_range!r}; expected a number of devices above 0, or {', '.join(RANGES)}."
            )
        if self.input_range is not None and not 0 < self.input_range < math.inf:
            raise SpikingError(f"ArrayConfig.input_range: got {self.input_range}; expected a number above 0.")
        if self.slices > 1 and (self.weight_bits is None or self.slices > self.weight_bits - 1):
            raise SpikingError(
                f"ArrayConfig.slices: got {self.slices} with weight_bits={self.weight_bits}; expected at most a slice a bit "
                "of the magnitude, weight_bits - 1."
            )
        if not self.significance or min(self.significance) <= 0 or sorted(self.significance) != list(self.significance):
            raise SpikingError(f"ArrayConfig.significance: got {self.significance}; expected rising numbers above 0.")
        if len(self.significance) > 1 and (self.weight_bits is not None or self.pairing not in (None, "one-sided")):
            raise SpikingError(
                "ArrayConfig.significance: got several pairs with weight_bits or another pairing; expected one way."
            )
        if self.serial_bits is not None and self.input_bits is None:
            raise SpikingError(
                "ArrayConfig.serial_bits: got it without input_bits; expected the width of the input too."
            )

    def __repr__(self) -> str:
        plain = {name: f.default for name, f in self.__dataclass_fields__.items()}
        changed = [f"{name}={getattr(self, name)!r}" for name in plain if getattr(self, name) != plain[name]]
        return f"ArrayConfig({', '.join(changed)})"

    @property
    def converts(self) -> bool:
        """Whether products pass converters, so that they are not one linear map."""
        return self.adc_bits is not None or self.input_bits is not None or self.adc_noise > 0 or self.adc_offset > 0


# Weights on devices


class Placement(NamedTuple):
    """Target conductances [pairs, sides, m, n] in siemens; W = Σ worth·(G⁺ - G⁻) + shift, worth [pairs, 1 or n], shift [1 or n]."""

    targets: Tensor
    worth: Tensor
    shift: Tensor


def place(weight: Tensor, cell: Cell, config: ArrayConfig | None = None) -> Placement:
    """Where each weight goes: the conductances to be written, and what they are worth.

    Shapes: weight [n, m] -> targets [pairs, sides, m, n], float64.
    Errors: SpikingError for weights that are not finite.

    >>> from spiking.hw_models.cellfile import load_cell
    >>> place(torch.tensor([[1.0, -0.5]]), load_cell("pcm")).targets.flatten().tolist()
    [2.5e-05, 0.0, 0.0, 1.25e-05]
    """
    config = config or ArrayConfig()
    if weight.dim() != 2 or not weight.numel():
        raise SpikingError(
            f"Crossbar: got weights of shape {list(weight.shape)}; expected [outputs, inputs], none of them 0."
        )
    if not bool(torch.isfinite(weight).all()):
        bad = int((~torch.isfinite(weight)).sum())
        raise SpikingError(f"Crossbar: got {bad} weights that are NaN or infinite; expected finite numbers.")
    w = weight.detach().double().T  # [m, n]
    low, span = cell.G_min, cell.G_max - cell.G_min
    largest = w.abs().amax(0) if config.scale == "column" else w.abs().max().reshape(1)
    largest = torch.where(largest > 0, largest, 1.0)
    none = torch.zeros(1, dtype=torch.float64, device=w.device)
    pairing = config.pairing or cell.pairing
    if config.weight_bits is not None:
        digits, worth = _slices(w / largest, config.weight_bits, config.slices)
        if pairing == "offset":
            raise SpikingError(
                "ArrayConfig.pairing: got 'offset' with weight_bits; expected pairs, which carry the sign."
            )
        return Placement(_sides(digits, pairing, low, span), worth[:, None] * largest / span, none)
    if len(config.significance) > 1:
        return _several(w, largest, config.significance, low, span)
    if pairing == "offset":
        bottom, top = (w.amin(0), w.amax(0)) if config.scale == "column" else (w.min().reshape(1), w.max().reshape(1))
        reach = torch.where(top > bottom, top - bottom, 1.0)
        worth = reach / span
        return Placement((low + (w - bottom) / worth)[None, None], worth[None], bottom - low * worth)
    return Placement(_sides((w / largest)[None], pairing, low, span), (largest / span)[None], none)


def _sides(x: Tensor, pairing: str, low: float, span: float) -> Tensor:
    """Both conductances of pairs whose value x is in -1…1: [pairs, 2, m, n]."""
    if pairing == "two-sided":
        return low + span * torch.stack([1 + x, 1 - x], 1) / 2
    return low + span * torch.stack([x, -x], 1).clamp(min=0)


def _slices(x: Tensor, bits: int, slices: int) -> tuple[Tensor, Tensor]:
    """The magnitude's bits in slices, lowest first: each slice's value in -1…1, and its worth for x."""
    top = 2 ** (bits - 1) - 1
    magnitude = torch.round(x.abs() * top).to(torch.int64)
    each = math.ceil((bits - 1) / slices)
    digits, worth = [], []
    for k in range(slices):
        full = 2**each - 1 if slices > 1 else top
        digit = (magnitude >> (k * each)) & full if slices > 1 else magnitude
        digits.append(digit.double() / full * torch.sign(x))
        worth.append(2 ** (k * each) * full / top)
    return torch.stack(digits), torch.tensor(worth, dtype=torch.float64, device=x.device)


def _several(w: Tensor, largest: Tensor, factors: tuple[float, ...], low: float, span: float) -> Placement:
    """Pairs of growing worth, filled one after the other."""
    s = sum(factors) * span / largest
    targets, before = [], 0.0
    for factor in factors:
        value = torch.stack([w, -w]).clamp(min=0) * s
        targets.append(((value - before) / factor + low).clamp(low, low + span))
        before += factor * span
    worth = torch.tensor(factors, dtype=torch.float64, device=w.device)[:, None] / s
    return Placement(torch.stack(targets), worth, torch.zeros(1, dtype=torch.float64, device=w.device))


# Converters


def sign_magnitude(x: Tensor, bits: int, top: float | Tensor = 1.0) -> Tensor:
    """The nearest of 2^bits - 1 levels on [-top, top], of which one is 0; half to even.

    >>> sign_magnitude(torch.tensor([-2.0, 0.2, 0.6]), 2).tolist()
    [-1.0, 0.0, 1.0]
    """
    step = top / (2 ** (bits - 1) - 1)
    return torch.round(_clip(x, top) / step) * step


def affine(x: Tensor, bits: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """The nearest of 2^bits levels on [low, high]; half to even.

    >>> affine(torch.tensor([0.2, 0.9]), 1).tolist()
    [0.0, 1.0]
    """
    return quantise(x.clamp(low, high), bits, Range(low, high))


def _clip(x: Tensor, top: float | Tensor) -> Tensor:
    return torch.maximum(
        torch.minimum(x, torch.as_tensor(top, dtype=x.dtype, device=x.device)),
        -torch.as_tensor(top, dtype=x.dtype, device=x.device),
    )


__all__ = ["RANGES", "READS", "ArrayConfig", "Placement", "affine", "place", "sign_magnitude"]
