"""Energy as a loss: what the last forward pass would cost on a chip, differentiable through the spikes that caused it.

    E = constant + Σ_layers Σ_n p[n]·(1/B) Σ_tb s[t,b,n]

Energy is linear in the spikes for a fixed network and chip. p[n] is what one spike of element n costs: its synaptic
operations, its reset, the words and packets that move. Prices come from `estimate` itself, asked about one event of each kind,
so that the value is that of an estimate of the same pass. The spikes' own surrogate gradients carry ∂E/∂s on to the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
import torch
from spiking.hw_models.energy import Estimate, estimate
from spiking.hw_models.hardware import Hardware, load
from torch import Tensor, nn

from spiking import _counters as counters
from spiking._counters import Levels
from spiking._recorder import Recorder, _observed, recurrent_weights
from spiking.errors import SpikingError
from spiking.trace import EventTrace, LayerTrace, record

__all__ = ["EnergyLoss", "energy_loss"]

Judge: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Any]  # gives a NamedTuple with a loss

_EVENTS = 2**40  # events of a probe: a price is what so many cost
_COUNTED = ("syn", "syn_eff", "in_nnz", "spikes", "out_nnz", "pool_adds")  # counters that follow the spikes
_LEVELS = {"spikes": Levels((1.0,)), "graded": Levels((1.0, 2.0)), "analogue": Levels(None)}


@dataclass
class _RowPrices:
    """Joules of a layer: fixed ones per sample for each class of its operand, and those of one event."""

    row: LayerTrace
    fixed: dict[str, float] = field(default_factory=dict)
    operand: dict[str, Tensor] = field(default_factory=dict)  # per non-zero of each input element, float64
    unrolled: bool = False  # a graded value k costs as much as k spikes
    spike: float = 0.0
    windows: Tensor | None = None  # per non-zero of each input element of an average pooling


@dataclass
class _PassPrices:
    rows: dict[str, _RowPrices]
    samples: int
    fixed: float  # joules per sample of what is no layer's, and of layers whose cost does not depend on values


class EnergyLoss:
    """Joules per sample of the last forward pass; made by `energy_loss`. Call it for the value; `close` takes its hooks off."""

    def __init__(
        self,
        model: nn.Module,
        chip: Hardware,
        reference: float | None,
        budget: float | None,
        steps: int | None,
        options: dict[str, Any],
    ) -> None:
        self.model, self.chip, self.reference, self.budget = model, chip, reference, budget
        self._steps, self._options = steps, options
        self._known: dict[tuple[Any, ...], _PassPrices] = {}
        self._now: _PassPrices | None = None
        self._parts: list[Tensor] = []
        self._calls: dict[str, int] = {}
        self._fixed = 0.0
        self._measuring = self._running = False
        self._handles = [model.register_forward_pre_hook(_Hook(self._begin), with_kwargs=True)]
        kinds: dict[Any, Callable[..., None]] = {
            Recorder.weights: self._weights,
            Recorder.neuron: self._neuron,
            Recorder.pool: self._pool,
        }
        for name, module, observe in _observed(model):
            if observe in kinds:
                hook = _Hook(self._seen, kinds[observe], name or type(module).__name__)
                self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
        self._handles.append(model.register_forward_hook(_Hook(self._end)))

    def __call__(self) -> Tensor:
        """The energy, a float64 scalar: joules per sample, or what `reference` or `budget` make of them.

        Errors: SpikingError if the model has not run yet.
        """
        if self._now is None:
            raise SpikingError(
                "energy_loss: the model has not run yet; expected a forward pass before the energy is asked for."
            )
        joules = (torch.stack(self._parts).sum() + self._fixed) / self._now.samples + self._now.fixed
        if self.budget is not None:
            return (joules / self.budget - 1).clamp(min=0)
        return joules if self.reference is None else joules / self.reference

    def added_to(self, objective: Judge, weight: float) -> Judge:
        """The objective of a Trainer with `weight` times the energy added to its loss.

        Errors: SpikingError for a weight that is not finite or below 0.
        """
        if not (0 <= weight < math.inf):
            raise SpikingError(f"EnergyLoss.added_to.weight: got {weight}; expected a finite number of at least 0.")

        def judge(model: nn.Module, x: Tensor, labels: Tensor) -> Any:
            found = objective(model, x, labels)
            return found._replace(loss=found.loss + (weight * self()).to(found.loss.dtype))

        return judge

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> EnergyLoss:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # one forward pass

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._measuring:
            return
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        key = None if x is None else (tuple(x.shape), x.device)
        if key not in self._known:
            self._known[key or ()] = self._measure(args, kwargs)
        self._now = self._known[key or ()]
        self._parts = [torch.zeros((), dtype=torch.float64, device=None if x is None else x.device)]
        self._fixed = 0.0
        self._calls = {}
        self._running = True

    def _end(self, *_: Any) -> None:
        if not self._measuring:
            self._running = False

    def _seen(self, add: Callable[..., None], name: str, module: nn.Module, *call: Any) -> None:
        """A layer ran: part of the model's pass, and not of the one that finds the prices."""
        if self._running and not self._measuring:
            add(name, module, *call)

    def _row(self, name: str) -> _RowPrices | None:
        """The prices of this call of a layer: a second call on a whole sequence has a row of its own."""
        assert self._now is not None
        call = self._calls[name] = self._calls.get(name, 0) + 1
        return self._now.rows.get(f"{name}#{call}", self._now.rows.get(name))

    def _weights(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        found = self._row(name)
        if found is not None:
            self._operand(found, _first(args, kwargs))

    def _operand(self, found: _RowPrices, x: Tensor) -> None:
        x = x.reshape(-1, found.row.n_inputs)
        kind, hits, times = _hits(x)
        self._fixed += found.fixed[kind] * len(x) / found.row.n_steps
        if kind != "analogue":
            price = found.operand[kind].to(x.device)
            if found.unrolled and times != 1:
                price = price * times
            self._parts.append(hits.double() @ price)

    def _neuron(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        found = self._row(name)
        s = next(v for v in out if isinstance(v, Tensor)) if isinstance(out, tuple | list) else out
        assert self._now is not None
        if recurrent_weights(layer) is not None:
            again = self._now.rows[f"{name}.recurrent"]
            state = next((v for v in (*args, *kwargs.values()) if hasattr(v, "spikes")), None)
            first = torch.zeros_like(s[:1]) if state is None else state.spikes.unsqueeze(0)
            self._operand(again, torch.cat([first, s[:-1]]))
        if found is not None and found.spike:
            self._parts.append(_total(s.reshape(-1, found.row.n_outputs)) * found.spike)

    def _pool(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        found = self._row(name)
        if found is None or found.windows is None:
            return
        x = _first(args, kwargs).reshape(-1, found.row.n_inputs)
        _, hits, _ = _hits(x)
        self._parts.append(hits.double() @ found.windows.to(x.device))

    # prices

    def _measure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _PassPrices:
        """Run the model once without gradient, as it would be deployed, and ask the estimate for the prices of its parts."""
        modes = [(module, module.training) for module in self.model.modules()]
        x = _first(args, kwargs)
        self._measuring = True
        try:
            self.model.eval()
            own_numbers = torch.random.fork_rng(devices=[x.device] if x.is_cuda else [])
            with torch.no_grad(), own_numbers, record(self.model, steps=self._steps) as trace:
                self.model(*args, **kwargs)
        finally:
            self._measuring = False
            for module, training in modes:
                module.training = training
        return self._prices(trace)

    def _prices(self, trace: EventTrace) -> _PassPrices:
        samples = trace.n_samples
        rows = {row.name: _RowPrices(row) for row in trace.layers}
        for kind in _LEVELS:
            for name, joules in self._ask(trace, kind).items():
                if name:
                    rows[name].fixed[kind] = joules
        for kind in ("spikes", "graded"):
            one = {c: self._ask(trace, kind, **{c: _EVENTS}) for c in ("syn", "in_nnz")}
            for found in rows.values():
                if found.row.is_weight_layer:
                    syn, event = (self._price(one[c], found, kind) for c in ("syn", "in_nnz"))
                    found.operand[kind] = torch.from_numpy(found.row.fan_out.astype(np.float64)) * syn + event
        spikes, pools = self._ask(trace, "spikes", spikes=_EVENTS), self._ask(trace, "spikes", pool_adds=_EVENTS)
        for found in rows.values():
            if found.row.kind == "neuron" and found.row.neuron.get("output") != "membrane":
                found.spike = self._price(spikes, found, "spikes")
            elif found.row.kind == "avgpool":
                price = self._price(pools, found, "spikes")
                layer = dict(self.model.named_modules())[found.row.name.partition("#")[0]]
                windows, _ = counters.pool_windows(layer, found.row.in_shape, found.row.out_shape)
                found.windows = windows.double() * price if price else None
        fixed = math.fsum(f.fixed["spikes"] for f in rows.values() if not f.row.is_weight_layer)
        return _PassPrices(rows, samples, fixed)

    @staticmethod
    def _price(asked: dict[str, float], found: _RowPrices, kind: str) -> float:
        return (asked[found.row.name] - found.fixed[kind]) / _EVENTS

    def _ask(self, trace: EventTrace, kind: str, **events: int) -> dict[str, float]:
        """Joules per sample of each layer, leakage excepted, if its operand were of a class and it saw these events."""
        found = self._estimate(
            replace(trace, n_samples=1, layers=[_probe(row, trace.n_samples, kind, events) for row in trace.layers])
        )
        joules = dict.fromkeys((row.name for row in trace.layers), 0.0)
        for term in found.terms:
            if term.source != "leakage":
                joules[term.layer] += term.amount * term.price.nominal
        return joules

    def _estimate(self, trace: EventTrace) -> Estimate:
        return estimate(trace, self.chip, **self._options)


def energy_loss(
    model: nn.Module,
    chip: str | PathLike[str] | Hardware = "digital-45nm",
    *,
    reference: float | None = None,
    budget: float | None = None,
    steps: int | None = None,
    **options: Any,
) -> EnergyLoss:
    """The energy of a model's last forward pass on a chip as a differentiable number, to be added to a loss.

        E = constant + Σ_layers Σ_n p[n]·(1/B) Σ_tb s[t,b,n];   loss = task + weight·E        (joules per sample)

    p[n] is what one spike of element n costs on the chip, at nominal constants; the constant holds what no spike changes
    (neuron updates, biases, layers with analogue operands) of the network as deployed, its batch norms folded. Leakage is left
    out. E equals `estimate` on a recording of the same pass, ∂E/∂s[t,b,n] = p[n]/B, and the surrogate gradient does the rest.

    `chip` is a name of `hw_models.available()`, a TOML file or a `Hardware`; `options` are those of `estimate` (precision,
    accounting). Joules are small numbers: `reference` divides by so many joules, and `budget` gives max(0, E/budget − 1).
    `steps` states T for a model whose input has no time axis. In a Trainer: `energy.added_to(objective, weight)`.

    Errors: SpikingError for an unknown chip or option, a reference or budget that is not above 0, or as `record`.
    Source: the price of a spike as its gradient: Sorbaro et al. 2020 (Frontiers in Neuroscience 14:662), equation 4.

    >>> import spiking
    >>> model = spiking.Sequential(spiking.Linear(6, 4), spiking.LIF(), spiking.Linear(4, 2), spiking.LIF())
    >>> energy = energy_loss(model, "digital-45nm", reference=1e-9)
    >>> out = model((torch.rand(5, 3, 6) < 0.5).float())
    >>> loss = out.mean() + 0.1 * energy()
    >>> loss.backward()
    >>> energy.close()
    """
    if not isinstance(model, nn.Module):
        raise SpikingError(f"energy_loss: got {type(model).__name__}; expected a torch.nn.Module.")
    for name, value in (("reference", reference), ("budget", budget)):
        if value is not None and not (0 < value < math.inf):
            raise SpikingError(f"energy_loss.{name}: got {value}; expected joules above 0.")
    if reference is not None and budget is not None:
        raise SpikingError("energy_loss: got reference and budget; expected one of them.")
    return EnergyLoss(model, load(chip), reference, budget, steps, options)


class _Hook:
    """A hook that a copy of the model does not inherit: the copy's passes are not the original's."""

    def __init__(self, run: Callable[..., None] | None = None, *first: Any) -> None:
        self.run, self.first = run, first

    def __call__(self, *args: Any) -> None:
        if self.run is not None:
            self.run(*self.first, *args)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook()

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return (_Hook, ())


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))


def _total(x: Tensor) -> Tensor:
    """Σx in float64, in two steps so that no large intermediate is made."""
    return x.sum(0, dtype=torch.promote_types(x.dtype, torch.float32)).sum(dtype=torch.float64)


def _hits(x: Tensor) -> tuple[str, Tensor, float]:
    """(class, non-zeros of each element [N], mean level of the non-zeros) of an operand [rows, N].

    The non-zeros carry the gradient of min(|x|/scale, 1), which equals the count: x itself where x is spikes.
    """
    plain = x.detach()
    at_least_single = torch.promote_types(x.dtype, torch.float32)
    if counters.count_equal(plain, 0.0, 1.0) == plain.numel():
        return "spikes", x.sum(0, dtype=at_least_single), 1.0
    levels = counters._levels(plain)
    kind, scale = levels.classify()
    nonzero = plain != 0
    counted = nonzero.sum(0).to(at_least_single)
    if kind == "analogue":
        return kind, counted, 1.0
    single = torch.where(plain < 0, -x, x) / scale
    soft = single.clamp(max=1).sum(0, dtype=at_least_single)
    hits = counted + (soft - soft.detach())
    if kind != "graded":
        return "spikes", hits, 1.0
    level = float(plain.abs().sum(dtype=torch.float64)) / scale / max(int(nonzero.sum()), 1)
    return kind, hits, max(1.0, level)


def _probe(row: LayerTrace, samples: int, kind: str, events: dict[str, int]) -> LayerTrace:
    """One sample's share of a row, with an operand of a class, and so many events in place of what its spikes caused."""
    counts = {name: values // samples for name, values in row.counts.items()}
    for name in _COUNTED:
        counts[name] = np.zeros_like(counts[name])
    for name, value in events.items():
        counts[name][0] = value
    none = np.zeros(1, np.int64)
    return replace(
        row,
        counts=counts,
        levels=_LEVELS[kind],
        levels_step=[],
        in_abs_sum=np.zeros(row.n_steps),
        spike_count=np.zeros_like(row.spike_count),
        syn_sample=none,
        updates_sample=none,
        spikes_sample=none,
    )
