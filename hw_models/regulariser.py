"""Energy as a loss: what the last forward pass would cost on a chip, differentiable through the spikes that caused it.

    E = constant + Σ_layers Σ_n p[n]·(1/B) Σ_tb s[t,b,n]

Energy is linear in the spikes for a fixed network and chip. p[n] is what one spike of element n costs: its synaptic
operations, its reset, the words and packets that move. Prices come from `estimate` itself, asked about events of each kind,
so that the value is that of an estimate of the same pass. The spikes' own surrogate gradients carry ∂E/∂s on to the weights.
Arrays of memory cells are the exception: reads of row blocks are skipped where no spike is, and the energy of a layer is a
curve over its synaptic operations. There p[n] is the slope at those of the pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
import torch
from spiking.hw_models._event_prices import CURVED, EventPrices, RowPrices
from spiking.hw_models.hardware import Hardware, load
from torch import Tensor, nn

from spiking import _counters as counters
from spiking._watched import recurrent_weights, watched
from spiking.errors import SpikingError
from spiking.trace import record

__all__ = ["EnergyLoss", "energy_loss"]

Judge: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Any]  # gives a NamedTuple with a loss

_OPTIONS = ("precision", "accounting", "chips", "weight_sharing", "adc", "adc_bits", "gating")


@dataclass
class _Operand:
    """What a layer of a curved chip has read in this pass."""

    kind: str
    synops: list[Tensor] = field(default_factory=list)
    events: float = 0.0


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
        self._known: dict[tuple[Any, ...], EventPrices] = {}
        self._now: EventPrices | None = None
        self._parts: list[Tensor] = []
        self._calls: dict[str, int] = {}
        self._curved: dict[str, _Operand] = {}
        self._fixed = 0.0
        self._measuring = self._running = False
        self._handles = [
            model.register_forward_pre_hook(_Hook(self._begin), with_kwargs=True),
            model.register_forward_hook(_Hook(self._end)),
        ]
        self._hooked: set[str] = set()

    def __call__(self) -> Tensor:
        """The energy, a float64 scalar: joules per sample, or what `reference` or `budget` make of them.

        Errors: SpikingError if the model has not run yet.
        """
        if self._now is None:
            raise SpikingError(
                "energy_loss: the model has not run yet; expected a forward pass before the energy is asked for."
            )
        parts = self._parts + self._on_curves(self._now)
        joules = (torch.stack(parts).sum() + self._fixed) / self._now.trace.n_samples + self._now.fixed
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
        x = _first(args, kwargs)
        key = (tuple(x.shape), x.device)
        if key not in self._known:
            self._known[key] = self._measure(args, kwargs)
            self._watch(self._known[key])
        self._now = self._known[key]
        self._parts = [torch.zeros((), dtype=torch.float64, device=x.device)]
        self._fixed = 0.0
        self._calls, self._curved = {}, {}
        self._running = True

    def _measure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> EventPrices:
        """Run the model once without gradient, as it would be deployed, and find the prices of its parts."""
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
        return EventPrices(trace, self.chip, self._options)

    def _watch(self, prices: EventPrices) -> None:
        """Put hooks on the layers whose events have a price; a hook on others could keep them from a faster path."""
        kinds: dict[str, Callable[..., None]] = {"weights": self._weights, "neuron": self._neuron, "pool": self._pool}
        for name, module, kind in watched(self.model):
            label = name or type(module).__name__
            priced = label in prices.rows and (kind != "pool" or prices.rows[label].pool > 0)
            if kind in kinds and priced and label not in self._hooked:
                self._hooked.add(label)
                hook = _Hook(self._seen, kinds[kind], label)
                first = module is self.model  # before the hook that ends the pass
                self._handles.append(module.register_forward_hook(hook, with_kwargs=True, prepend=first))

    def _end(self, *_: Any) -> None:
        if not self._measuring:
            self._running = False

    def _seen(self, add: Callable[..., None], name: str, module: nn.Module, *call: Any) -> None:
        """A layer ran: part of the model's pass, and not of the one that finds the prices."""
        if self._running and not self._measuring:
            count = self._calls[name] = self._calls.get(name, 0) + 1
            assert self._now is not None
            rows = self._now.rows  # a second call on a whole sequence has a row of its own
            add(rows.get(f"{name}#{count}", rows[name]), module, *call)

    def _weights(
        self, found: RowPrices, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        self._operand(found, _first(args, kwargs))

    def _operand(self, found: RowPrices, x: Tensor) -> None:
        x = x.reshape(-1, found.row.n_inputs)
        kind, hits = _hits(x, found.unrolled)
        if self.chip.kind in CURVED:
            fan_out = torch.from_numpy(found.row.fan_out.astype(np.float64)).to(x.device)
            operand = self._curved.setdefault(found.row.name, _Operand(kind))
            operand.synops.append(hits.double() @ fan_out)
            operand.events += float(hits.detach().double().sum())
            return
        self._fixed += found.fixed[kind] * len(x) / found.row.n_steps
        if kind != "analogue":
            self._parts.append(hits.double() @ found.operand[kind].to(x.device))

    def _neuron(
        self, found: RowPrices, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        s = next(v for v in out if isinstance(v, Tensor)) if isinstance(out, tuple | list) else out
        assert self._now is not None
        if recurrent_weights(layer) is not None:
            state = next((v for v in (*args, *kwargs.values()) if hasattr(v, "spikes")), None)
            first = torch.zeros_like(s[:1]) if state is None else state.spikes.unsqueeze(0)
            self._operand(self._now.rows[f"{found.row.name}.recurrent"], torch.cat([first, s[:-1]]))
        if found.spike and found.row.neuron.get("output") != "membrane":
            self._parts.append(_total(s.reshape(-1, found.row.n_outputs)) * found.spike)

    def _pool(
        self, found: RowPrices, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        windows, _ = counters.pool_windows(layer, found.row.in_shape, found.row.out_shape)
        x = _first(args, kwargs).reshape(-1, found.row.n_inputs)
        _, hits = _hits(x, False)
        self._parts.append(hits.double() @ windows.to(x.device).double() * found.pool)

    def _on_curves(self, now: EventPrices) -> list[Tensor]:
        """Joules of the pass on each layer's curve, with its slope there as the gradient."""
        if not self._curved:
            return []
        synops = {name: torch.stack(operand.synops).sum() for name, operand in self._curved.items()}
        at = {name: round(float(total.detach())) for name, total in synops.items()}
        step = {name: max(1, n // 1000) for name, n in at.items()}

        def kind_of(name: str) -> str:
            return self._curved[name].kind if name in self._curved else "spikes"

        def joules(counts: dict[str, int]) -> dict[str, float]:
            return now.joules(
                kind_of,
                lambda name: (
                    {"syn": counts[name], "in_nnz": round(self._curved[name].events)} if name in counts else {}
                ),
            )

        here, beyond = joules(at), joules({name: n + step[name] for name, n in at.items()})
        samples, found = now.trace.n_samples, []
        for name, total in synops.items():
            slope = samples * (beyond[name] - here[name]) / step[name]
            found.append(slope * (total - total.detach()) + samples * here[name])
        return found


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

    `chip` is a name of `hw_models.available()`, a TOML file or a `Hardware`; `options` are those of `estimate`: precision,
    accounting, chips, weight_sharing, adc, adc_bits, gating. On a mesh the share of neurons that count as active is that of
    the first pass of a batch size; on arrays of memory cells p[n] is the slope of the layer's energy at this pass. Joules
    are small numbers: `reference` divides by so many joules, and `budget` gives max(0, E/budget − 1). `steps` states T for
    a model whose input has no time axis. In a Trainer: `energy.added_to(objective, weight)`.

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
    for name in options:
        if name not in _OPTIONS:
            raise SpikingError(f"energy_loss: got the option {name!r}; expected one of {', '.join(_OPTIONS)}.")
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


def _hits(x: Tensor, unrolled: bool) -> tuple[str, Tensor]:
    """(class, events of each element [N]) of an operand [rows, N]; `unrolled`: a graded value of k levels is k events.

    Where x is spikes, the events are x itself. Elsewhere they carry the gradient of min(|x|/scale, 1), which equals the
    count of non-zeros, or of |x|/scale if unrolled.
    """
    plain = x.detach()
    if counters.count_equal(plain, 0.0, 1.0) == plain.numel():
        return "spikes", x.sum(0, dtype=torch.promote_types(x.dtype, torch.float32))
    kind, scale = counters.levels_of(plain).classify()
    nonzero = plain != 0
    counted = nonzero.sum(0).double()
    if kind == "analogue":
        return kind, counted
    levels = torch.where(plain < 0, -x, x) / scale
    unrolled &= kind == "graded"
    soft = (levels if unrolled else levels.clamp(max=1)).sum(0, dtype=torch.float64)
    if unrolled:
        mean = float(plain.abs().sum(dtype=torch.float64)) / scale / max(int(nonzero.sum()), 1)
        counted = counted * max(1.0, mean)
    return "graded" if kind == "graded" else "spikes", counted + (soft - soft.detach())
