"""A weight matrix on arrays of memory cells: what a product gives with their noise, wires, tiles and converters.

Noise acts on each device, never on the difference of a pair: two devices at 50 µS with 2 % read noise each put an error of 1.4 µS on
a weight of zero. Voltages are inputs over full scale; currents are in units of one device fully on, (G_max - G_min)·V_read.

>>> array = Crossbar(torch.randn(4, 6), "pcm", seed=1)
>>> array(torch.ones(2, 6)).shape
torch.Size([2, 4])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from os import PathLike

import numpy as np
import torch
from spiking.hw_models import draws
from spiking.hw_models.cellfile import load_cell
from spiking.hw_models.devices import Cell, Devices
from spiking.hw_models.effects import T_ROOM
from spiking.hw_models.placement import ArrayConfig, place, sign_magnitude
from spiking.hw_models.wires import effective_matrix
from torch import Tensor, nn
from torch.nn import functional as tf

from spiking.errors import SpikingError

_RESAMPLED = 1 << 24  # devices that are drawn at a time
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
_CALIBRATED = 1 << 18  # currents that a converter's range is chosen by
_PERCENTILE = 0.9999  # of the currents' sizes that a calibrated converter still resolves


class Crossbar(nn.Module):
    """One weight matrix on arrays of devices: `array(x)` is x·Wᵀ as that hardware would give it.

    The devices are those of `seed`: another seed is another chip. `age(t, kelvin)` moves on to another time since writing; every
    call is a fresh read. `matrix` [outputs, inputs] is what a noiseless read would multiply by, `variance` that of each weight.

    Shapes: weight [n, m]; x [..., m] -> [..., n], in the weight's dtype.
    Errors: SpikingError for weights that are not finite, a tile larger than the cell's macro, inputs of another width.
    Source: exact moments of independent reads: y = x·W + sqrt(x²·V)·ξ.

    >>> weight = torch.randn(8, 16)
    >>> x = torch.rand(5, 16)
    >>> torch.allclose(Crossbar(weight, "ideal")(x), x @ weight.T, atol=1e-5)
    True
    >>> month_old = Crossbar(weight, "pcm", seed=3).age(30 * 86_400.0)
    >>> bool(month_old.matrix.abs().sum() < weight.abs().sum())
    True
    """

    matrix: Tensor
    variance: Tensor

    def __init__(
        self,
        weight: Tensor,
        cell: str | PathLike[str] | Cell,
        config: ArrayConfig | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.cell, self.config, self.seed = load_cell(cell), config or ArrayConfig(), seed
        self.rows, self.columns = (self._tile(name) for name in ("rows", "columns"))
        placed = place(weight, self.cell, self.config)
        self.worth, self.shift = placed.worth, placed.shift
        self.devices = Devices(self.cell, placed.targets, seed)
        self.dtype = weight.dtype
        self.t, self.kelvin = 0.0, T_ROOM
        self.compensation: Tensor | None = None
        self.clipped = 0.0
        self.restart_reads()
        self._adc_range: Tensor | None = None
        if self.cell.current is not None and any(self.config.wires):
            raise SpikingError(
                f"ArrayConfig.wires: got {self.config.wires} with {self.cell.name}, whose current is not proportional to the "
                "voltage; expected wires without resistance. Take the curve out: replace(cell, current=None)."
            )
        for name in ("matrix", "variance"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.age(0.0)

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def n_tiles(self) -> int:
        """Physical arrays: tiles of rows and columns, for each pair and side."""
        n, m = self.shape
        pairs, sides = self.devices.shape[:2]
        return math.ceil(m / self.rows) * math.ceil(n / self.columns) * pairs * sides

    @property
    def row_siemens(self) -> np.ndarray:
        """ΣG over all devices that an input drives, now: float64 [inputs]; V²·t·ΣG is what driving it for t dissipates in them."""
        return self._row_siemens.cpu().numpy()

    @property
    def cell_facts(self) -> dict[str, object]:
        """What a trace says of the devices: JSON."""
        known = {name: self.cell.constants.get(name) for name in ("v_read", "t_read")}
        found = {name: None if c is None else [c.low, c.value, c.high] for name, c in known.items()}
        found["v_read"] = found["v_read"] or [self.cell.v_read] * 3
        return {"name": self.cell.name, **found, "t": self.t, "kelvin": self.kelvin}

    def extra_repr(self) -> str:
        n, m = self.shape
        return f"{m}×{n}, {self.cell.name}, {self.config}, seed={self.seed}, t={self.t:g}, kelvin={self.kelvin:g}"

    def age(self, t: float, kelvin: float = T_ROOM) -> Crossbar:
        """The same devices t seconds after writing, at that temperature, without compensation. Returns itself.

        Errors: SpikingError for a negative time, or a temperature that is not in kelvin.
        """
        mean, std = self.devices.read_moments(t, kelvin)  # [pairs, sides, m, n]
        self.t, self.kelvin, self.compensation = t, kelvin, None
        self._row_siemens = mean.sum((0, 1, 3))
        effective = self._through_wires(mean)
        ratio = torch.where(mean > 0, effective / mean, 0.0)
        self._ratio = ratio if any(self.config.wires) else None
        sign = _signs(mean)
        self._pairs = (effective * sign).sum(1)  # [pairs, m, n] siemens
        self._pair_variances = ((std * ratio) ** 2).sum(1)
        self._curved: tuple[Tensor, Tensor] | None = None
        if self.cell.current is not None:
            second, third = ((c * sign).sum(1) for c in self.cell.current.coefficients(mean))
            self._curved = (second * self.cell.v_read, third * self.cell.v_read**2)
        self._noisy = self.config.read != "none" and bool(self._pair_variances.any())
        self._combine()
        return self

    def compensate(self, by: str = "array") -> Crossbar:
        """Scale the outputs so that unit inputs give in all what they gave when the array was new. Returns itself.

            y <- y·Σ|y(0)|/max(Σ|y(t)|, 1e-4·Σ|y(0)|), over the array or of each column

        Source: Joshi et al. 2020 (doi 10.1038/s41467-020-16108-9).
        """
        if by not in ("array", "column"):
            raise SpikingError(f"Crossbar.compensate: got {by!r}; expected array or column.")
        t, kelvin = self.t, self.kelvin
        new = self.age(0.0).matrix.double().abs().sum(1)
        now = self.age(t, kelvin).matrix.double().abs().sum(1)
        if by == "array":
            new, now = new.sum().expand_as(new), now.sum().expand_as(now)
        self.compensation = torch.where(new > 0, new / torch.maximum(now, 1e-4 * new).clamp(min=1e-300), 1.0)
        self._combine()
        return self

    def _combine(self) -> None:
        """The linear map of all pairs together, compensation included."""
        worth = self.worth[:, None, :]
        if self.compensation is not None:
            worth = worth * self.compensation.to(worth)
        shift = self.shift if self.compensation is None else self.shift * self.compensation.to(self.shift)
        place = (self.matrix.device, self.dtype)
        self.matrix = ((worth * self._pairs).sum(0) + shift).T.to(*place).contiguous()
        self.variance = (worth**2 * self._pair_variances).sum(0).T.to(*place).contiguous()

    def restart_reads(self, stream: str = "") -> None:
        """Begin a sequence of reads: the same one for the same seed and stream, whatever was read before."""
        self._stream, self._n_reads = stream, 0

    def calibrate(self, x: Tensor) -> Crossbar:
        """Set the range of a "calibrated" converter: nearly all currents that these inputs cause fit in. Returns itself."""
        with torch.no_grad():
            u, _ = self._driven(x.reshape(-1, x.shape[-1]).to(self.dtype))
            return self._calibrated(self._currents(u))

    def calibrate_by(self, product: Callable[[Tensor, int], Tensor], full: Tensor) -> Crossbar:
        """As `calibrate`, of inputs that only their products tell of: see `converted_products`."""
        with torch.no_grad():
            return self._calibrated(self._currents_by(product, torch.where(full > 0, full, 1.0)))

    def _calibrated(self, currents: list[Tensor]) -> Crossbar:
        tops = []
        for c in currents:
            n = min(len(c), max(1, _CALIBRATED // c.shape[1]))
            some = c[torch.arange(n, device=c.device) * len(c) // n]
            tops.append(torch.quantile(some.abs().flatten(), _PERCENTILE))
        # A pair that no input drives still needs a range.
        self._adc_range = torch.stack(tops).clamp(min=1e-9)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 0 or x.shape[-1] != self.matrix.shape[1]:
            raise SpikingError(
                f"Crossbar: got input of shape {list(x.shape)}; expected {self.matrix.shape[1]} on the last axis."
            )
        return self.linear(x, tf.linear) if self.is_linear else self._converted(x)

    @property
    def converts_outputs_only(self) -> bool:
        """Whether converters stand behind products that are linear, so that these may be taken in any way."""
        return (
            self.config.input_bits is None
            and self._curved is None
            and (self.config.read != "resample" or not self._noisy)
        )

    def converted_products(self, product: Callable[[Tensor, int], Tensor], full: Tensor) -> Tensor:
        """Outputs [N, n] through converters where `converts_outputs_only`, of inputs that only their products tell of.

        `product(matrix [n, m], power)` is (the inputs to that power)·matrixᵀ [N, n], such as a convolution; `full` [N, 1] the largest
        size of each input, which is driven at full scale unless the configuration states a range.
        """
        if self.config.input_range is None:
            full = torch.where(full > 0, full, 1.0)
        else:
            full = torch.full_like(full, self.config.input_range)
        n_blocks = len(self._blocks())
        currents = [self._adc(c, k, n_blocks) for k, c in enumerate(self._currents_by(product, full))]
        y = self._outputs(currents)
        if bool(self.shift.any()):
            y = y + product(self.shift.to(y).reshape(-1, 1).expand(*self.shape), 1) / full
        y = y * full
        return (y if self.compensation is None else y * self.compensation.to(y)).to(self.dtype)

    @property
    def is_calibrated(self) -> bool:
        """Whether `calibrate` has set the range of the converters."""
        return self._adc_range is not None

    @property
    def is_linear(self) -> bool:
        """Whether a product is one linear map plus Gaussian noise, so that it costs what an ideal product does."""
        return not self.config.converts and self._curved is None and (self.config.read != "resample" or not self._noisy)

    def linear(self, x: Tensor, product: Product, gain: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
        """`product(x, matrix, offset)` with the noise of one fresh read; product is linear in both, such as a convolution.

        `gain` [n] multiplies each output and its noise, `offset` [n] is added.
        """
        matrix, variance = self.matrix, self.variance
        if gain is not None:
            matrix, variance = gain[:, None] * matrix, gain.square()[:, None] * variance
        y = product(x, matrix, offset)
        if self._noisy:
            y = torch.addcmul(y, self._fresh(y), product(x * x, variance, None).clamp_(min=0).sqrt_())
        return y

    # Devices

    def _tile(self, name: str) -> int:
        asked, macro = getattr(self.config, name), getattr(self.cell, name)
        if asked is not None and asked > macro:
            raise SpikingError(
                f"ArrayConfig.{name}: got {asked}; expected at most {macro}, those of a {self.cell.name} macro. "
                "Leave it out, and the matrix is split over as many macros as it needs."
            )
        return asked or macro

    def _through_wires(self, G: Tensor) -> Tensor:
        """What each device is worth at the outputs, tile by tile."""
        if not any(self.config.wires):
            return G
        out = torch.empty_like(G)
        for top in range(0, G.shape[-2], self.rows):
            for left in range(0, G.shape[-1], self.columns):
                tile = (..., slice(top, top + self.rows), slice(left, left + self.columns))
                out[tile] = effective_matrix(G[tile], self.config.wires)
        return out

    # Products through converters

    def _blocks(self) -> list[slice]:
        return [slice(top, top + self.rows) for top in range(0, self.matrix.shape[1], self.rows)]

    def _driven(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [N, m] over full scale, converted; and full scale [N, 1]."""
        if self.config.input_range is None:
            full = x.abs().amax(-1, keepdim=True)
            full = torch.where(full > 0, full, 1.0)
        else:
            full = torch.full_like(x[:, :1], self.config.input_range)
        u = x / full
        return (u if self.config.input_bits is None else sign_magnitude(u, self.config.input_bits)), full

    def _phases(self, u: Tensor) -> list[tuple[float, Tensor]]:
        """What is driven one after the other, and what its result counts: the whole input, or groups of its bits."""
        bits, each = self.config.input_bits, self.config.serial_bits
        if bits is None or each is None:
            return [(1.0, u)]
        top, full = 2 ** (bits - 1) - 1, 2**each - 1
        magnitude = torch.round(u.abs() * top).to(torch.int64)
        phases = []
        for k in range(math.ceil((bits - 1) / each)):
            digit = (magnitude >> (k * each)) & full
            phases.append((2 ** (k * each) * full / top, digit.to(u.dtype) / full * torch.sign(u)))
        return phases

    def _currents(self, u: Tensor) -> list[Tensor]:
        """Output currents of each pair, all tiles of rows together in one batch [tiles·N, n], with a fresh read's noise."""
        unit = self.cell.G_max - self.cell.G_min
        found = []
        samples = self._resampled(u) if self._noisy and self.config.read == "resample" else None
        for k in range(self._pairs.shape[0]):
            parts = []
            for block in self._blocks():
                v = u[:, block]
                if samples is not None:
                    c = torch.einsum("bm,bmn->bn", v, samples[k][:, block])
                else:
                    c = v @ self._pairs[k, block].to(u)
                if self._curved is not None:
                    c = c + v**2 @ self._curved[0][k, block].to(u) + v**3 @ self._curved[1][k, block].to(u)
                if self._noisy and samples is None:
                    c = c + self._fresh(c) * (v**2 @ self._pair_variances[k, block].to(u)).sqrt()
                parts.append(c / unit)
            found.append(torch.cat(parts))
        return found

    def _currents_by(self, product: Callable[[Tensor, int], Tensor], full: Tensor) -> list[Tensor]:
        """As `_currents`, by products with all inputs at once: a tile of rows is the matrix with all other rows 0."""
        unit = self.cell.G_max - self.cell.G_min
        found = []
        for pair, variance in zip(self._pairs, self._pair_variances):
            parts = []
            for block in self._blocks():
                tile, noise = torch.zeros_like(pair), torch.zeros_like(pair)
                tile[block], noise[block] = pair[block], variance[block]
                c = product(tile.T.to(full), 1)
                if self._noisy:
                    c = torch.addcmul(c, self._fresh(c), product(noise.T.to(full), 2).clamp_(min=0).sqrt_())
                parts.append(c / (full * unit))
            found.append(torch.cat(parts))
        return found

    def _resampled(self, u: Tensor) -> list[Tensor]:
        """Signed conductances of each pair for every product anew: [pairs] of [N, m, n]."""
        reads = self.devices.read(self._generator(u.device), len(u), self.t, self.kelvin)
        if self._ratio is not None:
            reads = reads * self._ratio
        signed = (reads * _signs(reads[0])).sum(2)
        return [signed[:, k].to(u) for k in range(signed.shape[1])]

    def _converted(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if self.config.read == "resample":
            step = max(1, _RESAMPLED // math.prod(self.devices.shape))
        else:
            step = max(1, len(flat))
        parts = [self._converted_part(part) for part in flat.split(step)]
        y = torch.cat(parts)
        if self.compensation is not None:
            y = y * self.compensation.to(y)
        return y.to(self.dtype).reshape(*x.shape[:-1], y.shape[1])

    def _converted_part(self, x: Tensor) -> Tensor:
        u, full = self._driven(x.to(self.dtype))
        phases, n_blocks = self._phases(u), len(self._blocks())
        totals: list[Tensor] | None = None
        for value, v in phases:
            currents = self._currents(v)
            if not self.config.analogue_sum:
                currents = [self._adc(c, k, n_blocks) for k, c in enumerate(currents)]
            scaled = [value * c for c in currents]
            totals = scaled if totals is None else [a + b for a, b in zip(totals, scaled)]
        assert totals is not None
        if self.config.analogue_sum:
            totals = [self._adc(c, k, n_blocks) for k, c in enumerate(totals)]
        y = self._outputs(totals)
        if bool(self.shift.any()):
            y = y + u.sum(-1, keepdim=True) * self.shift.to(u)
        return y * full

    def _outputs(self, currents: list[Tensor]) -> Tensor:
        """Currents of each pair [tiles·N, n] added up in the unit of the weights, [N, n]."""
        unit, n_blocks = self.cell.G_max - self.cell.G_min, len(self._blocks())
        parts = [c.unflatten(0, (n_blocks, -1)).sum(0) * (unit * self.worth[k].to(c)) for k, c in enumerate(currents)]
        return torch.stack(parts).sum(0)

    def _adc(self, c: Tensor, pair: int, n_blocks: int) -> Tensor:
        """What the converters of one pair make of its currents [tiles·N, n]."""
        config = self.config
        if config.adc_offset:
            n = c.shape[1]
            index = torch.arange(n_blocks * n, device=c.device).reshape(n_blocks, 1, n)
            offset = config.adc_offset * draws.normal(self.seed, f"adc/{pair}", index)
            c = (c.reshape(n_blocks, len(c) // n_blocks, n) + offset.to(c)).reshape_as(c)
        if config.adc_noise:
            c = c + config.adc_noise * self._fresh(c)
        if config.adc_bits is None:
            return c
        top = self._adc_top(pair)
        self.clipped = float((c.abs() > top).double().mean())
        return sign_magnitude(c, config.adc_bits, top)

    def _adc_top(self, pair: int) -> float:
        config, cell = self.config, self.cell
        if config.adc_range == "calibrated":
            if self._adc_range is None:
                raise SpikingError(
                    "ArrayConfig.adc_range: got 'calibrated' before any data were seen. Call calibrate(x), or deploy with calibration=x."
                )
            return float(self._adc_range[pair])
        if config.adc_range == "max":
            return min(self.rows, self.matrix.shape[1]) * cell.G_max / (cell.G_max - cell.G_min)
        if config.adc_range == "granular":
            return self._smallest_step() * (2 ** (config.adc_bits or 1) - 2) / 2
        return float(config.adc_range)

    def _smallest_step(self) -> float:
        """The least difference between two currents, in devices fully on."""
        config = self.config
        if config.weight_bits is None and not self.cell.bits:
            raise SpikingError("ArrayConfig.adc_range: got 'granular' with continuous weights; expected weight_bits.")
        if config.weight_bits is None:
            levels = 2**self.cell.bits - 1
        else:
            levels = 2 ** math.ceil((config.weight_bits - 1) / config.slices) - 1
        inputs = 1
        if config.input_bits is not None:
            inputs = 2 ** (config.serial_bits or config.input_bits - 1) - 1
        return 1 / (levels * inputs)

    # Fresh numbers

    def _generator(self, device: torch.device) -> torch.Generator:
        """A generator of the next read's own: reads are counted, so that a run with the same seed repeats."""
        self._n_reads += 1
        return torch.Generator(device).manual_seed(draws.seed_of(self.seed, f"read/{self._stream}/{self._n_reads}"))

    def _fresh(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator(like.device), dtype=like.dtype, device=like.device)


def _signs(G: Tensor) -> Tensor:
    """+1 for the first side and -1 for the second, to multiply [pairs, sides, m, n] by."""
    return torch.tensor([1.0, -1.0][: G.shape[1]], dtype=G.dtype, device=G.device)[:, None, None]


__all__ = ["ArrayConfig", "Crossbar"]
