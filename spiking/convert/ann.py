"""A trained conventional network as a spiking one.

`from_ann` reads a torch network of convolutions, linear layers, batch norms, ReLU, pooling, dropout and additions, puts a
neuron where each ReLU was, finds the neurons' thresholds on calibration images, and measures what the conversion cost.

A spike has the size 1 and stands for an amount of the activation that it replaces: the product of the thresholds up to
there. Weights stay as they are, and thresholds take the amounts up; a chain without biases needs no more. With `rescale=True`
biases are divided by the amount that their input stands for, and what meets in a sum is brought to one amount; without it, as
published, what biases and shortcuts lose is left to training.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx, nn

from spiking import encode
from spiking._multilevel import MultiLevelLIF
from spiking.convert._reading import Piece, Reading, read
from spiking.convert._trains import Trains
from spiking.convert.network import INPUT, SpikingNet, Wired
from spiking.convert.offset import OffsetLIF
from spiking.convert.qcfs import QCFS
from spiking.engine import Readout
from spiking.errors import SpikingError
from spiking.layer import Sequential
from spiking.neuron import LIF, Neuron
from spiking.surrogate import Triangle

__all__ = [
    "ConversionConfig",
    "ConversionReport",
    "ConvertedNet",
    "LayerReport",
    "from_ann",
    "percentile",
    "retrainable_lif",
    "spiking_body",
]

Method: TypeAlias = Literal["balance", "max", "percentile", "optimal", "qcfs"]
METHODS = ("balance", "max", "percentile", "optimal", "qcfs")
PERCENTILES = {"balance": 90.0, "percentile": 99.9}


@dataclass(frozen=True)
class ConversionConfig:
    """How a network was converted; see `from_ann`. Errors: SpikingError naming the field that is out of range."""

    method: str = "balance"
    timesteps: int = 5
    levels: int = 1
    spacing: str = "linear"
    percentile: float | None = None
    calibration_steps: int | None = None
    sigma: float = 1.0
    rescale: bool = True
    images: int = 512
    offset_steps: int = 0

    def __post_init__(self) -> None:
        where = "from_ann"
        if self.method not in METHODS:
            raise SpikingError(f"{where}.method: got {self.method!r}; expected one of {', '.join(METHODS)}.")
        for name in ("timesteps", "calibration_steps", "levels", "images"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
                raise SpikingError(f"{where}.{name}: got {value!r}; expected a whole number of at least 1.")
        if self.percentile is not None and not 0 < self.percentile <= 100:
            raise SpikingError(f"{where}.percentile: got {self.percentile}; expected a number above 0, at most 100.")
        whole = isinstance(self.offset_steps, int) and not isinstance(self.offset_steps, bool)
        if not (whole and self.offset_steps >= 0):
            raise SpikingError(
                f"{where}.offset_steps: got {self.offset_steps!r}; expected a whole number of at least 0."
            )
        if self.offset_steps and (self.method == "balance" or self.levels > 1):
            got = f"levels={self.levels}" if self.levels > 1 else 'method="balance"'
            raise SpikingError(
                f"{where}.offset_steps: got {self.offset_steps} with {got}; expected one level and a method that needs no retraining, "
                'such as "qcfs" or "optimal".'
            )
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise SpikingError(f"{where}.sigma: got {self.sigma}; expected a number above 0. It scales all thresholds.")


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer: `source` is its path in the network that was converted.

    Of a neuron also: its threshold, the activation that one spike stands for (`unit`), spikes per neuron and step on the
    calibration images (`rate`), and the root mean square of the difference to the activations it replaces, relative to
    theirs (`error`).
    """

    layer: str
    source: str
    did: str
    threshold: float | None = None
    unit: float | None = None
    rate: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did layer by layer, the relative error of its scores, and on how many images both networks agree."""

    config: ConversionConfig
    layers: list[LayerReport] = field(default_factory=list)
    error: float = 0.0
    agreement: float = 0.0
    images: int = 0

    def __str__(self) -> str:
        c = self.config
        steps = f"{c.timesteps} time step{'s' * (c.timesteps != 1)}"
        if c.offset_steps:
            steps = f"{c.offset_steps} + {c.timesteps} time steps, {c.offset_steps} of them to calibrate offset spikes"
        lines = [
            f"{c.method}, {steps}: scores within "
            f"{100 * self.error:.1f} % (rms) of the network's, same class for {100 * self.agreement:.1f} % of {self.images} images"
        ]
        for row in self.layers:
            figures = ""
            if row.threshold is not None and row.rate is not None and row.error is not None:
                figures = f"; threshold {row.threshold:.4g}, rate {row.rate:.3f}, error {100 * row.error:.1f} %"
            lines.append(f"{row.source:<20} {row.did}{figures}")
        return "\n".join(lines)


class ConvertedNet(SpikingNet):
    """What `from_ann` returns: a spiking network with the `report` of its conversion.

    Shapes: x [T, B, …] -> currents [T, B, classes]; `scores(images)` takes images [B, …] and runs `timesteps` steps. With
    `offset_steps`, these are among the T and give no output: currents [T - offset_steps, B, classes].
    """

    def __init__(self, body: Sequential | Wired, config: ConversionConfig, report: ConversionReport) -> None:
        super().__init__()
        self.body = body
        self.config = config
        self.report = report

    @property
    def timesteps(self) -> int:
        """For how many time steps the network is meant, those that it is simulated in advance included."""
        return self.config.offset_steps + self.config.timesteps

    def forward(self, x: Tensor, state: tuple[Any, ...] | None = None, return_state: bool = False) -> Any:
        y = super().forward(x, state, return_state)
        return y[self.config.offset_steps :] if self.config.offset_steps else y

    def event_chain(self) -> tuple[list[nn.Module], Readout]:
        if self.config.offset_steps:
            raise SpikingError(
                f"ConvertedNet: got offset_steps={self.config.offset_steps}; expected 0. What runs twice over the first steps is not "
                "compiled: convert without it."
            )
        return super().event_chain()


def retrainable_lif(threshold: float = 1.0, beta: float = 1.0, tie: Literal["gt", "ge"] = "gt", v0: float = 0.0) -> LIF:
    """The neuron of IIR-SNN: threshold and leak are learned, one each a layer, and the reset is soft.

        h = beta·v + x;   z = h/threshold - 1;   s = 1 if z > 0;   v = h - threshold·s;   ds/dz = 0.3·max(0, 1 - |z|)

    A `spiking.LIF` with these settings: the gradient passes to the threshold through the reset, but not to the spike.
    Source: Chowdhury, Rathi & Roy 2021 (arXiv 2110.05929); Rathi & Roy 2020 (arXiv 2008.03658).

    >>> retrainable_lif(threshold=0.5)(torch.full((2, 1, 1), 0.5)).flatten().tolist()
    [0.0, 1.0]
    """
    return LIF(
        beta=beta,
        threshold=threshold,
        tie=tie,
        normalize=True,
        detach_reset=True,
        learn_beta=True,
        learn_threshold=True,
        v_leak=v0,
        surrogate=Triangle(1.0, scale=0.3),
    )


def percentile(x: Tensor, q: float) -> float:
    """The q-th percentile as IIR-SNN takes it: the k-th smallest value, k = 1 + round(0.01·q·(n - 1)), never between two.

    Errors: SpikingError for an empty tensor.

    >>> percentile(torch.arange(11.0), 90)
    9.0
    """
    if not x.numel():
        raise SpikingError("percentile: got an empty tensor; expected at least one value.")
    return float(x.flatten().kthvalue(1 + round(0.01 * q * (x.numel() - 1))).values)


def spiking_body(ann: nn.Module, example: Tensor, neuron: Callable[[], nn.Module]) -> Sequential | Wired:
    """The layers of a network with `neuron()` in the place of every ReLU, weights as they are and nothing calibrated.

    >>> spiking_body(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.zeros(1, 2), retrainable_lif)[0]
    Linear(in_features=2, out_features=2, bias=True)
    """
    pieces = _with_gains(read(ann, example))
    for piece in pieces:
        if piece.kind == "neuron":
            piece.module = neuron()
    return _assembled(pieces)


def from_ann(
    ann: nn.Module,
    batches: Tensor | Iterable[Any],
    *,
    method: Method = "balance",
    timesteps: int = 5,
    levels: int = 1,
    spacing: Literal["linear", "octave"] = "linear",
    percentile: float | None = None,
    calibration_steps: int | None = None,
    sigma: float = 1.0,
    rescale: bool = True,
    images: int = 512,
    offset_steps: int = 0,
) -> ConvertedNet:
    """A spiking network that does what a trained network does, for input that is the same at every step.

    batches: calibration images [B, …], or an iterable of such, or of (images, labels); the first `images` are used.
    method:
      "balance"     thresholds from the currents of the spiking network itself, layer by layer: the largest over
                    `calibration_steps` steps (default: timesteps) of their `percentile` (90), times `sigma`; for retraining.
      "max", "percentile"   thresholds from the ReLU's largest value, or a percentile (99.9) of them.
      "optimal"     the threshold with the least squared error at this number of steps, membranes that start at half of it,
                    and biases corrected by channel, for the difference that remains.
      "qcfs"        for a network trained with `quantize_activations`: its learned thresholds, membranes start at half.
    levels, spacing: above 1 the neurons are `MultiLevelLIF` with so many levels, for one or two time steps.
    rescale: see the module; `False` with "balance" is the published procedure.
    offset_steps: above 0, neurons simulate so many steps of each image in advance, and start where that makes up for spikes too
      many or too few (`OffsetLIF`). The steps cost what others cost: the network's `timesteps` and its report count them.

    Errors: SpikingError naming the layer and the reason for what cannot be converted; for no or constant images, weights
    that are not finite, a layer that stays silent, or an argument out of range.
    Source: "balance" Chowdhury et al. 2021 (arXiv 2110.05929); "max" Diehl et al. 2015 (IJCNN); "percentile" Rueckauer
    et al. 2017 (Frontiers in Neuroscience 11:682); "optimal" Deng & Gu 2021 (arXiv 2103.00476) for the half threshold, Li
    et al. 2021 (arXiv 2106.06984) for least squares and bias correction; "qcfs" Bu et al. 2022 (arXiv 2303.04347);
    offset_steps Hao et al. 2023 (arXiv 2302.10685).

    >>> ann = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> net = from_ann(ann, torch.rand(64, 4), method="max", timesteps=64)
    >>> net.report.error < 0.1
    True
    """
    config = ConversionConfig(
        method, timesteps, levels, spacing, percentile, calibration_steps, sigma, rescale, images, offset_steps
    )
    x = _images(batches, images)
    reading = read(ann, x[:2])
    conversion = _Conversion(reading, x, config)
    conversion.run()
    return conversion.finish()


def _images(batches: Tensor | Iterable[Any], n: int) -> Tensor:
    """Up to n calibration images in one tensor, floating and finite, and not all alike."""
    parts: list[Tensor] = []
    if not isinstance(batches, Iterable):
        raise SpikingError(f"from_ann.batches: got {type(batches).__name__}; expected tensors [B, …].")
    for batch in [batches] if isinstance(batches, Tensor) else batches:
        part = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
        if not isinstance(part, Tensor) or not part.dim():
            what = "a number" if isinstance(part, Tensor) else type(part).__name__
            raise SpikingError(f"from_ann.batches: got {what}; expected tensors [B, …].")
        if parts and part.shape[1:] != parts[0].shape[1:]:
            raise SpikingError(
                f"from_ann.batches: got images of shapes {list(parts[0].shape[1:])} and {list(part.shape[1:])}; expected one shape."
            )
        parts.append(part)
        if sum(map(len, parts)) >= n:
            break
    x = torch.cat(parts)[:n] if parts else torch.empty(0)
    if not x.numel():
        raise SpikingError("from_ann.batches: got no images; expected at least one to find thresholds with.")
    if not x.is_floating_point():
        raise SpikingError(
            f"from_ann.batches: got dtype {x.dtype}; expected floats, scaled as the network was trained."
        )
    if not bool(torch.isfinite(x).all()):
        raise SpikingError("from_ann.batches: got values that are not finite (NaN or infinity). Clean the images.")
    if bool((x == x.flatten()[0]).all()):
        raise SpikingError(
            f"from_ann.batches: got {float(x.flatten()[0])} everywhere; expected images as the network was trained with. "
            "A constant batch says nothing about activations."
        )
    return x


class _Gain(nn.Module):
    """What is added to something, in units of that."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value


def _with_gains(reading: Reading) -> list[Piece]:
    """The pieces, with a gain wherever what meets in a sum, or is the output, cannot take up a factor in weights of its own."""
    used = Counter(name for piece in reading.pieces for name in piece.inputs)
    own = {piece.name for piece in reading.pieces if piece.kind == "weights" and used[piece.name] == 1}
    spikes: dict[str, bool] = {INPUT: False}
    pieces: list[Piece] = []

    def gain(name: str, source: str, reference: str) -> str:
        made = Piece(name, "gain", _Gain(), [source], name, reference=reference)
        pieces.append(made)
        return made.name

    for piece in reading.pieces:
        spikes[piece.name] = piece.kind == "neuron" or (
            piece.kind != "weights" and all(spikes[name] for name in piece.inputs)
        )
        if piece.kind == "add":
            reference = next((name for name in piece.inputs if name not in own), piece.inputs[0])
            inputs = [
                name if name == reference or name in own else gain(f"{piece.name}_gain{i}", name, reference)
                for i, name in enumerate(piece.inputs)
            ]
            piece = replace(piece, inputs=inputs, reference=reference)
        pieces.append(piece)
    if spikes[reading.output]:
        gain("output_gain", reading.output, INPUT)
    return pieces


def _assembled(pieces: list[Piece]) -> Sequential | Wired:
    modules: dict[str, nn.Module] = {}
    chain, before = True, INPUT
    for piece in pieces:
        assert piece.module is not None
        modules[piece.name] = piece.module
        chain &= piece.inputs == [before]
        before = piece.name
    if chain:
        return Sequential(OrderedDict(modules))
    return Wired(modules, {piece.name: piece.inputs for piece in pieces})


class _Recorded(fx.Interpreter):
    """Runs the network and keeps what some of its nodes give."""

    def __init__(self, traced: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(traced)
        self.wanted = wanted
        self.kept: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        y = super().run_node(n)
        if n in self.wanted:
            self.kept[n] = y.detach().clone()  # a ReLU in place comes later, perhaps
        return y


class _Conversion:
    """One conversion under way: pieces get their neurons and weights their scale in the order of execution."""

    def __init__(self, reading: Reading, x: Tensor, config: ConversionConfig) -> None:
        self.reading, self.x, self.config = reading, x, config
        self.pieces = _with_gains(reading)
        self._named = {piece.name: piece for piece in self.pieces}
        wanted = {p.node for p in self.pieces if p.kind == "neuron" and p.node is not None}
        recorded = _Recorded(reading.traced, wanted)
        with torch.no_grad():
            self.scores = recorded.run(x)
        self.ann = {p.name: recorded.kept[p.node] for p in self.pieces if p.kind == "neuron" and p.node is not None}
        steps = config.calibration_steps or config.timesteps
        self.steps = steps if config.method == "balance" else config.timesteps
        self.unit = {INPUT: 1.0}  # of what a piece gives, in the network's own units
        self.trains = Trains(self.pieces, x, self.steps)

    @torch.no_grad()
    def run(self) -> None:
        for piece in self.pieces:
            unit = self.unit[piece.inputs[0]]
            if piece.kind == "weights" and self.config.rescale:
                _scale(piece, 1.0, 1 / unit)
            elif piece.kind == "add" and self.config.rescale:
                unit = self.unit[piece.reference]
                for name in piece.inputs:
                    if self.unit[name] != unit:
                        _scale(self._named[name], self.unit[name] / unit, self.unit[name] / unit)
                        self.unit[name] = unit
            elif piece.kind == "gain" and self.config.rescale:
                assert isinstance(piece.module, _Gain)
                reference = self.unit[piece.reference]
                piece.module.value.fill_(unit / reference)
                unit = reference
            elif piece.kind == "neuron":
                amount = self._neuron(piece, unit)
                unit *= amount
                if self.config.method == "optimal":
                    self._correct_bias(piece, unit)
                self.trains.run(piece)
                self.trains.done_with(piece)
            self.unit[piece.name] = unit
        if self.config.rescale and self.config.method != "balance":
            self._scale_output()
        if self.config.sigma != 1:
            for piece in self.pieces:
                if isinstance(piece.module, Neuron):
                    _threshold_of(piece.module).mul_(self.config.sigma)

    def _scale_output(self) -> None:
        """Bring the scores to the network's units, in the last weights; training would begin elsewhere with that."""
        name = self.reading.output
        while name in self._named and self._named[name].kind == "pass":
            name = self._named[name].inputs[0]
        last = self._named.get(name)
        if last is not None and last.kind == "weights" and sum(name in p.inputs for p in self.pieces) <= 1:
            unit = self.unit[name]
            _scale(last, unit, unit)
            self.unit[self.reading.output] = self.unit[name] = 1.0

    def finish(self) -> ConvertedNet:
        output = self.pieces[-1].name if self.pieces[-1].name == "output_gain" else self.reading.output
        for piece in self.pieces:
            if self.config.offset_steps and isinstance(piece.module, LIF):
                piece.module = OffsetLIF.of(piece.module, self.config.offset_steps)
                piece.did = f"{piece.did}, offset spikes calibrated over {self.config.offset_steps} steps"
        body = _assembled(self.pieces)
        rates, scores = self._run_whole(body)
        rows = [self._row(piece, rates) for piece in self.pieces]
        ours, theirs = scores * self.unit[output], self.scores
        same = float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
        report = ConversionReport(self.config, rows, _relative(ours, theirs), same, len(self.x))
        return ConvertedNet(body, self.config, report).eval()

    # thresholds

    def _neuron(self, piece: Piece, unit: float) -> float:
        """Put a neuron where the activation was; returns the current that one of its spikes stands for."""
        c = self.config
        started = 0.5 if c.method in ("optimal", "qcfs") else 0.0
        threshold = {
            "balance": self._balanced,
            "max": lambda p, u: float(self.ann[p.name].max()) / u,
            "percentile": lambda p, u: percentile(self.ann[p.name], c.percentile or PERCENTILES["percentile"]) / u,
            "optimal": self._least_squares,
            "qcfs": self._learned,
        }[c.method](piece, unit)
        if not threshold > 0:
            source = (
                "layers before it are silent" if c.method == "balance" else "the network's activations are zero there"
            )
            raise SpikingError(
                f'from_ann: layer "{piece.source}": got {threshold:g} as its threshold; expected a number above 0. Most of its '
                f"input is negative, or {source}: raise percentile, or use other calibration images."
            )
        largest = 1 if c.levels == 1 else c.levels if c.spacing == "linear" else 2 ** (c.levels - 1)
        threshold /= largest
        if c.levels == 1:
            tie: Literal["gt", "ge"] = "gt" if c.method == "balance" else "ge"
            neuron: LIF | MultiLevelLIF = retrainable_lif(threshold, tie=tie, v0=started * threshold)
        else:
            spacing: Any = c.spacing
            neuron = MultiLevelLIF(
                c.levels,
                spacing,
                threshold=threshold,
                learn_beta=True,
                learn_threshold=True,
                v_leak=started * threshold,
            )
        piece.module = neuron.to(self.x)
        _threshold_of(neuron).fill_(threshold)  # in the images' precision
        piece.did = f"neurons ({'one' if c.levels == 1 else c.levels} level{'s' * (c.levels != 1)})"
        return threshold

    def _balanced(self, piece: Piece, unit: float) -> float:
        q = PERCENTILES["balance"] if self.config.percentile is None else self.config.percentile
        return max((percentile(current, q) for current in self.trains.currents(piece)), default=0.0)

    def _least_squares(self, piece: Piece, unit: float) -> float:
        """Of 60 thresholds up to the largest activation, the one whose quantised activations come nearest to them."""
        a, n = self.ann[piece.name].flatten().float(), self.config.timesteps * self.config.levels
        candidates = a.max() * torch.linspace(0.05, 1.0, 60, device=a.device)
        errors = torch.stack([((a - t * (n * (a / t).clamp(0, 1) + 0.5).floor() / n) ** 2).mean() for t in candidates])
        return float(candidates[errors.argmin()]) / unit if float(a.max()) > 0 else 0.0

    def _learned(self, piece: Piece, unit: float) -> float:
        if not isinstance(piece.module, QCFS):
            raise SpikingError(
                f'from_ann: layer "{piece.source}": got a ReLU; method "qcfs" needs learned thresholds. Train '
                "spiking.convert.quantize_activations(ann) first, or choose another method."
            )
        return float(piece.module.threshold) / unit

    def _correct_bias(self, piece: Piece, unit: float) -> None:
        """Move the biases of the layer that drives these neurons by the mean difference of each channel."""
        before = self._named.get(piece.inputs[0])
        if before is None or before.kind != "weights" or not self.config.rescale:
            return
        assert isinstance(before.module, (nn.Conv2d, nn.Linear))
        rest = [axis for axis in range(self.ann[piece.name].dim()) if axis != 1]
        self.trains.run(piece)
        missing = (self.ann[piece.name] - unit * self.trains.rates(piece)).mean(rest) / self.unit[before.name]
        if before.module.bias is None:
            before.module.bias = nn.Parameter(torch.zeros_like(missing))
        before.module.bias.add_(missing)
        before.did = f"{before.did}, biases corrected"

    # the check

    @torch.no_grad()
    def _run_whole(self, body: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        """Rates of all neurons, and mean output over the steps, of the network as it is now."""
        rates: dict[str, list[Tensor]] = {}
        hooks = []
        advance, steps = self.config.offset_steps, self.config.offset_steps + self.config.timesteps
        for name, module in body.named_children():
            if isinstance(module, Neuron):
                hooks.append(module.register_forward_hook(_note_rate(rates.setdefault(name, []), advance)))
        body.eval()
        parts = [body(encode.direct(part, steps))[advance:].mean(0) for part in self.x.split(64)]
        for hook in hooks:
            hook.remove()
        return {name: torch.cat(found) for name, found in rates.items()}, torch.cat(parts)

    def _row(self, piece: Piece, rates: dict[str, Tensor]) -> LayerReport:
        if isinstance(piece.module, _Gain):
            return LayerReport(piece.name, piece.source, f"times {float(piece.module.value):.4g}")
        if piece.kind != "neuron":
            return LayerReport(piece.name, piece.source, piece.did or "added")
        assert isinstance(piece.module, Neuron)
        unit = self.unit[piece.name]
        return LayerReport(
            piece.name,
            piece.source,
            piece.did,
            threshold=float(torch.as_tensor(piece.module.cells()["threshold"]).detach()),
            unit=unit,
            rate=float(rates[piece.name].mean()),
            error=_relative(unit * rates[piece.name], self.ann[piece.name]),
        )


def _threshold_of(neuron: Any) -> Tensor:
    threshold: Tensor = neuron.threshold
    return threshold


def _scale(piece: Piece, weights: float, bias: float) -> None:
    assert isinstance(piece.module, (nn.Conv2d, nn.Linear))
    piece.module.weight.mul_(weights)
    if piece.module.bias is not None:
        piece.module.bias.mul_(bias)


def _note_rate(kept: list[Tensor], advance: int) -> Callable[..., None]:
    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output)[advance:].mean(0))

    return note


def _relative(got: Tensor, expected: Tensor) -> float:
    size = float((expected.double() ** 2).mean().sqrt())
    return float(((got.double() - expected.double()) ** 2).mean().sqrt()) / size if size else math.inf
