"""Networks with the precision that a chip has: weights and neuron states that hold only values of so many bits.

A weight of b bits is an integer times a step, one step for each output channel or one for the whole tensor:

    W_q = step·clamp(round(W / step), -n, n);   n = 2^(b-1) - 1;   step = clip·max|W| / n

`grid="fixed-point"` takes the next power of two as the step, and two's complement (-n - 1 … n). clip ≤ 1 is what loses least,
in the mean square, over each channel's weights. A state of b bits (membrane, synaptic current, threshold shift) is rounded and
saturated after every step, on the two's complement grid of a stated range:

    v_q = step·clamp(round(v / step), -2^(b-1), 2^(b-1) - 1);   step = 2·range / 2^b

Sums are exact: a step computes h from the stored state and the currents, compares it with the threshold, and stores what the
reset leaves. Constants of a neuron (threshold, decays) keep their values; chips hold them in registers of their own.

Source: Jacob et al. 2018 (arXiv 1712.05877) for the integer weights; Bengio et al. 2013 (arXiv 1308.3432) for the straight-through
gradient; Nagel et al. 2021 (arXiv 2106.08295), sections 3.1 and 4, for the choice of the range.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spiking import functional as F
from spiking.errors import SpikingError
from spiking.fold import fold_batch_norm
from spiking.neuron import Neuron

__all__ = ["FixedPoint", "Precision", "bake", "quantize"]

Grid: TypeAlias = Literal["symmetric", "fixed-point"]
Rounding: TypeAlias = Literal["nearest", "toward-zero"]

_WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PEERS = ("snntorch", "spikingjelly", "norse", "sinabs")
_CLIPS = tuple(i / 50 for i in range(50, 14, -1))
_FINE_BITS = 12  # from here on no clipping is better than none
_RANGES = tuple(2.0**k for k in range(-12, 17))


@dataclass
class Precision:
    """Bits of weights and neuron states (32: floating point), and the accuracy measured at them, if it was.

    A model carries it as `model.precision`, and a trace recorded from the model as `trace.precision`.
    Errors: SpikingError for an accuracy outside 0…1, or without samples.

    >>> Precision(8, 8).measured(accuracy=0.95, samples=200)
    Precision(weight_bits=8, state_bits=8, accuracy=0.95, samples=200)
    """

    weight_bits: int = 32
    state_bits: int = 32
    accuracy: float | None = None
    samples: int | None = None

    def measured(self, accuracy: float, samples: int) -> Precision:
        """Note the accuracy (0…1) that the model has at this precision on so many samples."""
        if not 0 <= accuracy <= 1:
            raise SpikingError(f"Precision.accuracy: got {accuracy}; expected a fraction from 0 to 1.")
        if samples < 1:
            raise SpikingError(f"Precision.samples: got {samples}; expected at least 1.")
        self.accuracy, self.samples = float(accuracy), int(samples)
        return self


def quantize(
    model: nn.Module,
    weight_bits: int | None = 8,
    state_bits: int | None = None,
    *,
    calibration: Iterable[Any] | None = None,
    state_range: float | Mapping[str, float] | None = None,
    per_channel: bool = True,
    grid: Grid = "symmetric",
    rounding: Rounding = "nearest",
    aware: bool = False,
) -> nn.Module:
    """A copy of the model with weights of `weight_bits` and neuron states of `state_bits`; None leaves them in floating point.

    Batch norms are folded into the weights before them first. Biases are values like a membrane's: they get `state_bits`
    (`weight_bits` where no states are quantised) and one step for each tensor. The range of the states is `state_range` (one
    number, or one a neuron layer by name), or what loses least over the batches of `calibration`: inputs, or tuples that begin
    with the input. `rounding` is how a state is rounded.

    The copy is a model of the same class: it trains, saves (`state_dict`), records and runs as any. Its `precision` says what it
    is. With `aware=True` the weights stay trainable numbers that are rounded whenever they are used, with straight-through
    gradients (quantisation-aware training, in the Trainer or any loop); `bake` then makes the rounded ones final. A saved one is
    loaded into a model quantised in the same way: `quantize(Model(config), 8, 8, state_range=1.0).load_state_dict(…)`.

    Errors: SpikingError for bits outside 2…32, states without range and calibration, weights that are not finite, and,
    naming the layer, for what cannot be quantised (norms that cannot be folded, other layers with weights, peers' neurons).

    >>> import spiking
    >>> net = spiking.Sequential(spiking.Linear(4, 3), spiking.LIF())
    >>> small = quantize(net, weight_bits=4, state_bits=6, calibration=[torch.rand(5, 2, 4)])
    >>> small.precision.weight_bits, small[0].weight.unique().numel() <= 3 * 15, small(torch.rand(5, 2, 4)).shape
    (4, True, torch.Size([5, 2, 3]))
    """
    _check_bits("weight_bits", weight_bits)
    _check_bits("state_bits", state_bits)
    if grid not in ("symmetric", "fixed-point"):
        raise SpikingError(f'quantize.grid: got {grid!r}; expected "symmetric" or "fixed-point".')
    if rounding not in ("nearest", "toward-zero"):
        raise SpikingError(f'quantize.rounding: got {rounding!r}; expected "nearest" or "toward-zero".')
    if state_bits is not None and state_range is None and calibration is None:
        raise SpikingError(
            "quantize: got state_bits without calibration data; expected calibration=[some inputs], or state_range=…, "
            "the largest magnitude that a state may take."
        )
    _check_layers(model)
    small = fold_batch_norm(model)
    _check_folded(small)
    if weight_bits is not None:
        for _, layer in _weight_layers(small):
            _put_on_grid(layer, weight_bits, state_bits or weight_bits, per_channel, grid)
    if state_bits is not None:
        neurons: dict[str, FixedPoint] = {}
        small = _replace_neurons(small, state_bits, rounding, neurons)
        if state_range is not None:
            _set_ranges(neurons, state_range)
        else:
            assert calibration is not None
            _calibrate(small, neurons, calibration)
    if weight_bits is not None and not aware:
        small = bake(small)
    bits = Precision(weight_bits or 32, state_bits or 32)
    small.precision = bits  # type: ignore[assignment]
    first = next(small.parameters(), None)
    both = torch.tensor([bits.weight_bits, bits.state_bits], device=None if first is None else first.device)
    small.register_buffer("precision_bits", both)
    small.register_load_state_dict_pre_hook(_same_bits)
    return small


def bake(model: nn.Module) -> nn.Module:
    """The model itself, its rounded weights now plain ones: what quantisation-aware training leaves to be deployed.

    The results do not change; the layers become the plain classes again.

    >>> model = bake(quantize(nn.Sequential(nn.Linear(4, 3)), 4, aware=True))
    >>> type(model[0]).__name__, model[0].weight.unique().numel() <= 3 * 15
    ('Linear', True)
    """
    for _, layer in _weight_layers(model):
        rules: Any = getattr(layer, "parametrizations", {})
        if rules and all(isinstance(rule[0], _Grid) for rule in rules.values()):
            values = {name: getattr(layer, name).detach() for name in rules}
            # torch's remove_parametrizations changes the class, which a copy of the layer shares
            del layer.parametrizations
            layer.__class__ = type(layer).__bases__[0]
            for name, value in values.items():
                setattr(layer, name, nn.Parameter(value))
    return model


class _ToGrid(torch.autograd.Function):
    """step·clamp(round(x / step), low, high); the gradient passes where nothing was clamped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: float, high: float, rounding: Rounding) -> Tensor:
        q = x / step
        q = q.trunc() if rounding == "toward-zero" else q.round()
        ctx.save_for_backward((q >= low) & (q <= high))
        return q.clamp(low, high) * step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None, None, None, None


class _Grid(nn.Module):
    """Weights or biases of so many bits; `clip` is the share of the largest magnitude that the grid reaches."""

    clip: Tensor

    def __init__(self, values: Tensor, bits: int, per_channel: bool, grid: Grid) -> None:
        super().__init__()
        self.bits, self.per_channel, self.fixed_point = bits, per_channel, grid == "fixed-point"
        self.high = 2 ** (bits - 1) - 1
        self.low = -self.high - self.fixed_point
        self.register_buffer("clip", torch.ones_like(self._largest(values.detach())))
        if bits < _FINE_BITS:
            self.clip = self._least_loss(values.detach())

    def _largest(self, values: Tensor) -> Tensor:
        magnitude = values.abs()
        return (
            magnitude.flatten(1).amax(1).reshape(-1, *(1,) * (values.dim() - 1))
            if self.per_channel
            else magnitude.amax()
        )

    def step(self, values: Tensor) -> Tensor:
        """The step of each channel, or of all values."""
        step = self.clip * self._largest(values) / self.high
        step = torch.where(step > 0, step, torch.ones_like(step))
        return step.log2().ceil().exp2() if self.fixed_point else step

    def _least_loss(self, values: Tensor) -> Tensor:
        def loss(clip: float) -> Tensor:
            self.clip = torch.full_like(best, clip)
            square = (self(values) - values).double().square()
            return square.flatten(1).sum(1).reshape(best.shape) if self.per_channel else square.sum()

        best = self.clip
        least = loss(1.0)
        for clip in _CLIPS[1:]:
            now = loss(clip)
            best, least = torch.where(now < least, clip, best), torch.minimum(now, least)
        return best

    def forward(self, values: Tensor) -> Tensor:
        return _ToGrid.apply(values, self.step(values.detach()), self.low, self.high, "nearest")


def _put_on_grid(layer: nn.Module, bits: int, bias_bits: int, per_channel: bool, grid: Grid) -> None:
    weight: Any = layer.weight
    parametrize.register_parametrization(layer, "weight", _Grid(weight, bits, per_channel, grid))
    bias: Any = layer.bias
    if bias is not None:
        parametrize.register_parametrization(layer, "bias", _Grid(bias, bias_bits, False, grid))


class FixedPoint(Neuron):
    """A neuron whose states are rounded and saturated to `bits` bits after every step, within ±`range`.

        v_q = step·clamp(round(v / step), -2^(b-1), 2^(b-1) - 1);   step = 2·range / 2^b

    `range` holds one number a state variable: membrane, then synaptic current or threshold shift. Everything else is that of
    the `neuron` inside. Made by `quantize`.

    Shapes: [T, B, *] -> [T, B, *].   Gradient: straight through where a state was not saturated.

    >>> import spiking
    >>> layer = FixedPoint(spiking.LIF(beta=0.5), bits=3, range=1.0)        # steps of 1/4
    >>> _, state = layer(torch.full((1, 1, 1), 0.6), return_state=True)
    >>> state.v.item()
    0.5
    """

    range: Tensor

    def __init__(
        self, neuron: Neuron, bits: int, range: float | Iterable[float], rounding: Rounding = "nearest"
    ) -> None:
        super().__init__()
        self.neuron = neuron
        self.bits = bits
        self.rounding: Rounding = rounding
        self.rule, self.save, self.state_type = neuron.rule, neuron.save, neuron.state_type
        self.high = 2 ** (bits - 1) - 1
        n = neuron.rule.n_states - (neuron.rule.refractory > 0)
        ranges = [range] * n if isinstance(range, int | float) else list(range)
        self.register_buffer("range", torch.tensor(ranges, dtype=torch.float64))
        self._losses: Tensor | None = None  # [candidate ranges, states] while calibrating

    def cells(self) -> dict[str, float | Tensor]:
        return self.neuron.cells()

    def forward(self, x: Tensor, state: Any = None, return_state: bool = False) -> Any:
        where = type(self.neuron).__name__
        rows = None if state is None else self._rows(state, x)
        cells: dict[str, Any] = self.cells()
        spikes = []
        for x_t in x.split(1) if x.shape[0] else (x,):
            s, rows = F.integrate(where, x_t, rows, self.rule, **cells, save=self.save)
            n = len(self.range)
            rows = self._store(rows) if n == len(rows) else torch.cat([self._store(rows[:n]), rows[n:]])
            spikes.append(s)
        out = spikes[0] if len(spikes) == 1 else torch.cat(spikes)
        assert rows is not None
        return (out, self.state_type(*rows.unbind(0))) if return_state else out

    def stored(self, v: Tensor) -> Tensor:
        """A membrane potential as it is stored."""
        return self._store(v.unsqueeze(0)).squeeze(0)

    def _store(self, rows: Tensor) -> Tensor:
        """State rows [S, …] on the grid, the first S of the state variables."""
        if self._losses is not None:
            self._observe(rows.detach())
            return rows
        step = (self.range[: len(rows)] * 2.0 ** (1 - self.bits)).to(rows.dtype)
        step = step.reshape(-1, *(1,) * (rows.dim() - 1))
        return _ToGrid.apply(rows, step, -self.high - 1, self.high, self.rounding)

    def _observe(self, rows: Tensor) -> None:
        """Add what each candidate range would lose on these states."""
        assert self._losses is not None
        if not bool(torch.isfinite(rows).all()):
            raise SpikingError(
                f"quantize: {type(self.neuron).__name__}: a state is not finite on the calibration data. Look at its input."
            )
        for i, candidate in enumerate(_RANGES):
            step = torch.tensor(candidate * 2.0 ** (1 - self.bits), dtype=rows.dtype, device=rows.device)
            kept = _ToGrid.apply(rows, step, -self.high - 1, self.high, self.rounding)
            self._losses[i, : len(rows)] += (kept - rows).double().square().flatten(1).sum(1).cpu()

    def start_calibration(self) -> None:
        """From now on states are left as they are, and looked at."""
        self._losses = torch.zeros(len(_RANGES), len(self.range), dtype=torch.float64)

    def finish_calibration(self) -> None:
        """Take the ranges that lose least on what was seen; of equals (no state ever moved) the one nearest the threshold."""
        assert self._losses is not None
        ranges = torch.tensor(_RANGES, dtype=torch.float64)
        threshold = torch.as_tensor(self.cells()["threshold"]).detach().double().mean().cpu()
        equal = self._losses <= self._losses.amin(0)
        distance = (ranges.log2() - threshold.log2()).abs().unsqueeze(1)
        best = torch.where(equal, distance, math.inf).argmin(0)
        self.range = ranges[best].to(self.range.device)
        self._losses = None

    def describe(self) -> dict[str, Any]:
        """What the neuron inside says, and the grid of its states."""
        return {**self.neuron.describe(), "state_bits": self.bits, "state_range": self.range.tolist()}

    def extra_repr(self) -> str:
        return f"bits={self.bits}, range={self.range.tolist()}, rounding={self.rounding!r}"


def _replace_neurons(model: nn.Module, bits: int, rounding: Rounding, found: dict[str, FixedPoint]) -> nn.Module:
    """The model with every neuron in a FixedPoint, which `found` then lists by name; shared ones stay shared."""
    made: dict[int, FixedPoint] = {}
    first = next(model.parameters(), None)

    def visit(module: nn.Module, name: str) -> nn.Module:
        if isinstance(module, Neuron):
            if id(module) not in made:
                neuron = FixedPoint(module, bits, 1.0, rounding).train(module.training)
                made[id(module)] = found[name] = neuron if first is None else neuron.to(first.device)
            return made[id(module)]
        for own, child in module._modules.items():
            if child is not None:
                module._modules[own] = visit(child, f"{name}.{own}" if name else own)
        return module

    return visit(model, "")


def _set_ranges(neurons: dict[str, FixedPoint], ranges: float | Mapping[str, float]) -> None:
    for name in ranges if isinstance(ranges, Mapping) else ():
        if name not in neurons:
            raise SpikingError(
                f"quantize.state_range: got layer {name!r}; expected one of: {', '.join(neurons) or 'no neuron'}."
            )
    for name, neuron in neurons.items():
        if isinstance(ranges, Mapping) and name not in ranges:
            raise SpikingError(
                f"quantize.state_range: layer {name!r} is missing; expected a range for every neuron layer."
            )
        value = ranges[name] if isinstance(ranges, Mapping) else ranges
        if not (0 < value < math.inf):
            raise SpikingError(f"quantize.state_range: got {value}; expected a finite number above 0.")
        neuron.range.fill_(value)


@torch.no_grad()
def _calibrate(model: nn.Module, neurons: dict[str, FixedPoint], batches: Iterable[Any]) -> None:
    modes = [(module, module.training) for module in model.modules()]
    first = next(model.parameters(), None)
    model.eval()
    for neuron in neurons.values():
        neuron.start_calibration()
    empty = True
    for batch in batches:
        empty = False
        x = batch[0] if isinstance(batch, tuple | list) else batch
        if not isinstance(x, Tensor):
            raise SpikingError(f"quantize.calibration: got a batch of {type(x).__name__}; expected tensors [T, B, …].")
        model(x if first is None else x.to(first.device))
    if empty:
        raise SpikingError("quantize.calibration: got no batches; expected at least one.")
    for neuron in neurons.values():
        neuron.finish_calibration()
    for module, training in modes:
        module.training = training


def _weight_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _WEIGHTS)]


def _check_bits(name: str, bits: int | None) -> None:
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 32):
        raise SpikingError(f"quantize.{name}: got {bits!r}; expected 2 to 32, or None for floating point.")


def _check_layers(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise SpikingError(f"quantize: got {type(model).__name__}; expected a torch.nn.Module.")
    if any(hasattr(module, "precision_bits") for module in model.modules()):
        raise SpikingError("quantize: the model is quantised already. Start from the one in floating point.")
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise SpikingError(
                f'quantize: layer "{name}" has a parametrisation of its own; expected plain weights. Remove it first '
                "(torch.nn.utils.parametrize.remove_parametrizations)."
            )
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise SpikingError(
                f'quantize: "{name}" holds values that are not finite. Train it again, or load other weights.'
            )


def _check_folded(model: nn.Module) -> None:
    """Refuse what would stay in floating point without a word."""
    inside = ""
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, Neuron):
            inside = f"{name}." if name else ""
        if isinstance(module, (*_WEIGHTS, Neuron)):
            continue
        kind = type(module).__name__
        if isinstance(module, nn.modules.batchnorm._NormBase):
            raise SpikingError(
                f'quantize: layer "{name}" ({kind}) does not follow weights in a Sequential, so that it cannot be folded '
                "into them. Put it behind them, or leave it out."
            )
        if type(module).__module__.split(".")[0] in _PEERS:
            raise SpikingError(
                f'quantize: layer "{name}" ({kind}) belongs to another library. Convert it first (spiking.convert.from_peer).'
            )
        leaf = next(module.children(), None) is None
        if any(True for _ in module.parameters(recurse=False)) or (leaf and any(True for _ in module.buffers())):
            supported = ", ".join(kind.__name__ for kind in _WEIGHTS)
            raise SpikingError(
                f'quantize: layer "{name}" ({kind}) has weights of its own; expected only {supported} and our neurons to have '
                "any."
            )


def _same_bits(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    theirs, ours = state.get(f"{prefix}precision_bits"), module.precision_bits
    if isinstance(theirs, Tensor) and isinstance(ours, Tensor) and theirs.tolist() != ours.tolist():
        w, s = theirs.tolist()
        raise SpikingError(
            f"quantize: got the state of a model of {w}-bit weights and {s}-bit states; expected {ours.tolist()[0]} and "
            f"{ours.tolist()[1]}. Quantise with the bits of the one that was saved."
        )
