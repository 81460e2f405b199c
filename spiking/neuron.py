"""Spiking neurons as thin modules over `functional`: `[T, B, *] -> [T, B, *]`, from a fresh state each call.

A neuron remembers nothing between calls. Streaming is explicit: `spikes, state = layer.step(x_t, state)`, or
`layer(x, state=..., return_state=True)` to continue a sequence. A sequence run at once, in chunks or step by step gives the same spikes.

>>> import torch
>>> layer = LIF(beta=0.5)
>>> x = torch.full((4, 1, 1), 0.6)
>>> head, state = layer(x[:2], return_state=True)
>>> torch.equal(torch.cat([head, layer(x[2:], state=state)]), layer(x))
True
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from spiking.cuda_kernels import event_linear_ops
from spiking.cuda_kernels.reference import Rule

from . import functional as F
from .errors import SpikingError
from .surrogate import ATan, Surrogate

__all__ = [
    "IF",
    "LIF",
    "AdaptiveLIF",
    "AdaptiveLIFState",
    "CuBaLIF",
    "CuBaLIFState",
    "LIFState",
    "Neuron",
    "ParametricLIF",
    "Recurrent",
    "RecurrentState",
]


class LIFState(NamedTuple):
    """Membrane potential after the reset and, with `refractory > 0`, the steps for which each neuron still rests; [B, *]."""

    v: Tensor
    resting: Tensor | None = None


class CuBaLIFState(NamedTuple):
    """Membrane potential after the reset and synaptic current; [B, *]."""

    v: Tensor
    i_syn: Tensor


class AdaptiveLIFState(NamedTuple):
    """Membrane potential after the reset, threshold shift and, with `refractory > 0`, the steps of rest left; [B, *]."""

    v: Tensor
    threshold_shift: Tensor
    resting: Tensor | None = None


NeuronState: TypeAlias = LIFState | CuBaLIFState | AdaptiveLIFState


class Neuron(nn.Module, ABC):
    """What every integrate-and-fire neuron offers. Not to be built itself: a member sets `rule` and says its decay and threshold.

    A member holds parameters and returns them from `cells`; calls, streaming and description are the same for all.
    """

    rule: Rule
    save: F.Save
    state_type: type[NeuronState]

    @abstractmethod
    def cells(self) -> dict[str, float | Tensor]:
        """beta, threshold (and beta_syn) as they are used: numbers, or tensors that broadcast over the features."""

    def forward(self, x: Tensor, state: NeuronState | None = None, return_state: bool = False) -> Any:
        """Spikes [T, B, *] for input [T, B, *]; with `return_state` also the state after the last step."""
        rows = None if state is None else self._rows(state, x)
        s, last = F.integrate(type(self).__name__, x, rows, self.rule, **self.cells(), save=self.save)  # type: ignore[arg-type]
        return (s, self.state_type(*last.unbind(0))) if return_state else s

    def sends(self) -> bool:
        """Whether `sending` may run in place of a call, and tells a linear layer something of use: the surrogate derivative ends."""
        plain = type(self).forward is Neuron.forward and "forward" not in vars(self)
        return plain and math.isfinite(self.rule.surrogate.reach) and torch.is_grad_enabled()

    def sending(
        self, x: Tensor, state: NeuronState | None
    ) -> tuple[Tensor, NeuronState, event_linear_ops.Membrane | None]:
        """Spikes, state, and the membranes from which a linear layer sees which of its input gradients will be multiplied with zero."""
        rows = None if state is None else self._rows(state, x)
        call = (type(self).__name__, x, rows, self.rule)
        s, last, sent_by = F.integrate_sending(*call, **self.cells(), save=self.save)  # type: ignore[arg-type]
        return s, self.state_type(*last.unbind(0)), sent_by

    def after_linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, state: NeuronState | None
    ) -> tuple[Tensor, NeuronState] | None:
        """Spikes and state for input x·Wᵀ + b, x [T, B, in], where one kernel computes both; None where none does."""
        rows = None if state is None else self._rows(state, x)
        cells = self.cells()
        found = F.linear_integrate(type(self).__name__, x, weight, bias, rows, self.rule, **cells)  # type: ignore[arg-type]
        return None if found is None else (found[0], self.state_type(*found[1].unbind(0)))

    def after_pool(
        self, x: Tensor, window: int, maximum: bool, affine: Tensor | None, state: NeuronState | None
    ) -> tuple[Tensor, NeuronState]:
        """Spikes and state for x [T, B, C, H, W] pooled over windows, and scaled by channel; see `functional.pool_integrate`."""
        rows = None if state is None else self._rows(state, x)
        drive = (x, window, maximum, affine, rows, self.rule)
        s, last = F.pool_integrate(type(self).__name__, *drive, **self.cells(), save=self.save)  # type: ignore[arg-type]
        return s, self.state_type(*last.unbind(0))

    def step(self, x_t: Tensor, state: NeuronState | None = None) -> tuple[Tensor, NeuronState]:
        """One time step: x_t [B, *] and the state before (None: at rest) -> spikes [B, *] and the state after."""
        s, after = self(x_t.unsqueeze(0), state=state, return_state=True)
        return s.squeeze(0), after

    def stored(self, v: Tensor) -> Tensor:
        """A membrane potential as the neuron keeps it between two steps: as it is, unless its precision is limited."""
        return v

    def _rows(self, state: NeuronState, x: Tensor) -> Tensor:
        if not isinstance(state, self.state_type):
            raise SpikingError(
                f"{type(self).__name__}: got a state of type {type(state).__name__}; expected {self.state_type.__name__}."
            )
        rows = [row for row in state if row is not None]
        if len(rows) == self.rule.n_states - 1 and self.rule.refractory:
            rows.append(torch.zeros_like(rows[0]))
        return rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)

    def describe(self) -> dict[str, Any]:
        """Type, state variables, parameters and the arithmetic of one update, for traces and reports (JSON values only)."""
        kind = self.rule.kind
        leaky = self.cells()["beta"]
        no_decay = isinstance(leaky, (int, float)) and leaky == 1
        operations = {
            "lif": {"mul": 0 if no_decay else 1, "add": 1, "cmp": 1},
            "cuba": {"mul": 2, "add": 2, "cmp": 1},
            "adaptive": {"mul": 2, "add": 3, "cmp": 1},
        }[kind]
        operations["mul"] += int(self.rule.decay_input)
        operations["reset_add"] = int(self.rule.reset == "subtract") + int(kind == "adaptive")
        numbers = {name: float(torch.as_tensor(value).detach().mean()) for name, value in self.cells().items()}
        return {
            "type": type(self).__name__,
            "state_vars": 1 + (kind != "lif"),
            "reset": self.rule.reset,
            **numbers,
            "ops": operations,
        }

    def extra_repr(self) -> str:
        shown = [
            f"{name}={value:g}" if isinstance(value, (int, float)) else f"{name}={list(value.shape)}"
            for name, value in self.cells().items()
        ]
        defaults = Rule(ATan())
        for name in Rule.__dataclass_fields__:
            value = getattr(self.rule, name)
            if name != "kind" and value != getattr(defaults, name):
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)

    def _constant(self, name: str, value: float | Tensor, learn: bool) -> None:
        """A learnable parameter, a buffer for a tensor, or a plain number."""
        if learn:
            setattr(self, name, nn.Parameter(torch.as_tensor(value, dtype=torch.get_default_dtype()).clone()))
        elif isinstance(value, Tensor):
            self.register_buffer(name, value.detach().clone())
        else:
            setattr(self, name, float(value))


class LIF(Neuron):
    """Leaky integrate-and-fire.

        h[t] = beta·v[t-1] + x[t];   s[t] = 1 if h[t] >= threshold else 0;   v[t] = h[t] - threshold·s[t]

    Arguments beyond the equation are those of `functional.lif`; `learn_beta` keeps beta in [0, 1] by clamping where it is used;
    for `refractory` steps after a spike v stays as the reset left it and input is ignored. `beta` and `threshold` may be tensors of
    shape [C] or x.shape[2:].

    Shapes: [T, B, *] -> [T, B, *].   Errors: SpikingError naming the argument.
    Source: Neftci, Mostafa & Zenke 2019 (arXiv 1901.09948).

    >>> LIF(beta=0.5)(torch.full((4, 1, 1), 0.6)).flatten().tolist()
    [0.0, 0.0, 1.0, 0.0]
    """

    state_type = LIFState
    beta: float | Tensor
    threshold: float | Tensor

    def __init__(
        self,
        beta: float | Tensor = 0.9,
        threshold: float | Tensor = 1.0,
        reset: F.Reset = "subtract",
        surrogate: Surrogate = ATan(alpha=2.0),  # noqa: B008 - frozen
        decay_input: bool = False,
        detach_reset: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        refractory: int = 0,
        tie: F.Tie = "ge",
        v_reset: float = 0.0,
        v_leak: float = 0.0,
        reset_delay: bool = False,
        residual_reset: bool = False,
        normalize: bool = False,
        save: F.Save = "value",
    ) -> None:
        super().__init__()
        self.rule = Rule(
            surrogate,
            reset=reset,
            tie=tie,
            decay_input=decay_input,
            detach_reset=detach_reset,
            reset_delay=reset_delay,
            residual_reset=residual_reset,
            normalize=normalize,
            v_reset=v_reset,
            v_leak=v_leak,
            refractory=refractory,
        )
        self.save = save
        F.check_rule("LIF", self.rule)
        F.check_beta("LIF", "beta", beta)
        F.check_threshold("LIF", threshold)
        self._constant("beta", beta, learn_beta)
        self._constant("threshold", threshold, learn_threshold)

    def cells(self) -> dict[str, float | Tensor]:
        beta = self.beta.clamp(0, 1) if isinstance(self.beta, nn.Parameter) else self.beta
        return {"beta": beta, "threshold": self.threshold}


class IF(Neuron):
    """Integrate-and-fire without leak: `LIF` with beta = 1.

    >>> IF()(torch.full((4, 1, 1), 0.5)).flatten().tolist()
    [0.0, 1.0, 0.0, 1.0]
    """

    state_type = LIFState
    threshold: float | Tensor

    def __init__(
        self,
        threshold: float | Tensor = 1.0,
        reset: F.Reset = "subtract",
        surrogate: Surrogate = ATan(alpha=2.0),  # noqa: B008 - frozen
        detach_reset: bool = False,
        learn_threshold: bool = False,
        refractory: int = 0,
        tie: F.Tie = "ge",
        v_reset: float = 0.0,
        save: F.Save = "value",
    ) -> None:
        super().__init__()
        self.rule = Rule(
            surrogate, reset=reset, tie=tie, detach_reset=detach_reset, v_reset=v_reset, refractory=refractory
        )
        self.save = save
        F.check_rule("IF", self.rule)
        F.check_threshold("IF", threshold)
        self._constant("threshold", threshold, learn_threshold)

    def cells(self) -> dict[str, float | Tensor]:
        return {"beta": 1.0, "threshold": self.threshold}


class ParametricLIF(Neuron):
    """LIF with a learned decay: `beta = 1 - sigmoid(w)`, so that it stays inside (0, 1); `beta` is where it starts.

    Source: Fang et al. 2021 (arXiv 2007.05785), whose 1/tau is sigmoid(w).

    >>> layer = ParametricLIF(beta=0.5)
    >>> layer.w.item(), layer(torch.full((4, 1, 1), 0.6)).flatten().tolist()
    (0.0, [0.0, 0.0, 1.0, 0.0])
    """

    state_type = LIFState
    threshold: float | Tensor

    def __init__(
        self,
        beta: float = 0.5,
        threshold: float | Tensor = 1.0,
        reset: F.Reset = "subtract",
        surrogate: Surrogate = ATan(alpha=2.0),  # noqa: B008 - frozen
        decay_input: bool = False,
        detach_reset: bool = False,
        learn_threshold: bool = False,
        refractory: int = 0,
        tie: F.Tie = "ge",
        v_reset: float = 0.0,
        v_leak: float = 0.0,
        save: F.Save = "value",
    ) -> None:
        super().__init__()
        self.rule = Rule(
            surrogate,
            reset=reset,
            tie=tie,
            decay_input=decay_input,
            detach_reset=detach_reset,
            v_reset=v_reset,
            v_leak=v_leak,
            refractory=refractory,
        )
        self.save = save
        F.check_rule("ParametricLIF", self.rule)
        F.check_threshold("ParametricLIF", threshold)
        if not 0 < beta < 1:
            raise SpikingError(
                f"ParametricLIF.beta: got {beta}; expected 0 < beta < 1. It is where the learned decay starts."
            )
        self.w = nn.Parameter(torch.tensor(math.log((1 - beta) / beta)))
        self._constant("threshold", threshold, learn_threshold)

    def cells(self) -> dict[str, float | Tensor]:
        return {"beta": 1 - torch.sigmoid(self.w), "threshold": self.threshold}


class CuBaLIF(Neuron):
    """Current-based LIF: `i[t] = beta_syn·i[t-1] + x[t]` drives the membrane.

    Source: Neftci, Mostafa & Zenke 2019 (arXiv 1901.09948).

    >>> CuBaLIF(beta=0.5, beta_syn=0.5)(torch.full((3, 1, 1), 0.5)).flatten().tolist()
    [0.0, 1.0, 0.0]
    """

    state_type = CuBaLIFState
    beta: float | Tensor
    beta_syn: float | Tensor
    threshold: float | Tensor

    def __init__(
        self,
        beta: float | Tensor = 0.9,
        beta_syn: float | Tensor = 0.8,
        threshold: float | Tensor = 1.0,
        reset: F.Reset = "subtract",
        surrogate: Surrogate = ATan(alpha=2.0),  # noqa: B008 - frozen
        detach_reset: bool = False,
        learn_beta: bool = False,
        learn_beta_syn: bool = False,
        learn_threshold: bool = False,
        tie: F.Tie = "ge",
        v_reset: float = 0.0,
        v_leak: float = 0.0,
    ) -> None:
        super().__init__()
        self.rule = Rule(
            surrogate, kind="cuba", reset=reset, tie=tie, detach_reset=detach_reset, v_reset=v_reset, v_leak=v_leak
        )
        self.save = "recompute"
        F.check_rule("CuBaLIF", self.rule)
        F.check_beta("CuBaLIF", "beta", beta)
        F.check_beta("CuBaLIF", "beta_syn", beta_syn)
        F.check_threshold("CuBaLIF", threshold)
        self._constant("beta", beta, learn_beta)
        self._constant("beta_syn", beta_syn, learn_beta_syn)
        self._constant("threshold", threshold, learn_threshold)

    def cells(self) -> dict[str, float | Tensor]:
        decays = {
            name: value.clamp(0, 1) if isinstance(value, nn.Parameter) else value
            for name, value in (("beta", self.beta), ("beta_syn", self.beta_syn))
        }
        return {**decays, "threshold": self.threshold}


class AdaptiveLIF(Neuron):
    """LIF with an adaptive threshold: `θ[t] = threshold + adapt_scale·b[t-1]`, `b[t] = beta_adapt·b[t-1] + (1-beta_adapt)·s[t]`.

    Source: Bellec et al. 2018 (arXiv 1803.09574).

    >>> AdaptiveLIF(beta=0.0, beta_adapt=0.5, adapt_scale=1.0)(torch.full((6, 1, 1), 1.0)).flatten().tolist()
    [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """

    state_type = AdaptiveLIFState
    beta: float | Tensor
    threshold: float | Tensor

    def __init__(
        self,
        beta: float | Tensor = 0.9,
        threshold: float | Tensor = 1.0,
        beta_adapt: float = 0.97,
        adapt_scale: float = 1.8,
        reset: F.Reset = "subtract",
        surrogate: Surrogate = ATan(alpha=2.0),  # noqa: B008 - frozen
        decay_input: bool = False,
        detach_reset: bool = False,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        refractory: int = 0,
        tie: F.Tie = "ge",
        v_reset: float = 0.0,
        v_leak: float = 0.0,
    ) -> None:
        super().__init__()
        self.rule = Rule(
            surrogate,
            kind="adaptive",
            reset=reset,
            tie=tie,
            decay_input=decay_input,
            detach_reset=detach_reset,
            v_reset=v_reset,
            v_leak=v_leak,
            beta_adapt=beta_adapt,
            adapt_scale=adapt_scale,
            refractory=refractory,
        )
        self.save = "recompute"
        F.check_rule("AdaptiveLIF", self.rule)
        F.check_beta("AdaptiveLIF", "beta", beta)
        F.check_threshold("AdaptiveLIF", threshold)
        self._constant("beta", beta, learn_beta)
        self._constant("threshold", threshold, learn_threshold)

    def cells(self) -> dict[str, float | Tensor]:
        beta = self.beta.clamp(0, 1) if isinstance(self.beta, nn.Parameter) else self.beta
        return {"beta": beta, "threshold": self.threshold}


class RecurrentState(NamedTuple):
    """State of the wrapped neuron and its last spikes [B, features]."""

    neuron: Any
    spikes: Tensor


class Recurrent(nn.Module):
    """A neuron that also hears its own layer: `x[t] + W·s[t-1]` (+ bias) drives it; no spikes precede the first step.

    Shapes: [T, B, features] -> [T, B, features].   Errors: SpikingError if the last axis is not `features`.

    >>> layer = Recurrent(LIF(), features=3)
    >>> layer(torch.rand(5, 2, 3)).shape
    torch.Size([5, 2, 3])
    """

    def __init__(self, neuron: Neuron, features: int, bias: bool = False) -> None:
        super().__init__()
        if not isinstance(neuron, Neuron):
            raise SpikingError(
                f"Recurrent.neuron: got {type(neuron).__name__}; expected a neuron such as spiking.LIF()."
            )
        self.neuron = neuron
        self.features = features
        self.recurrent = nn.Linear(features, features, bias=bias)

    def forward(self, x: Tensor, state: RecurrentState | None = None, return_state: bool = False) -> Any:
        """Spikes [T, B, features]; with `return_state` also the state after the last step."""
        if x.dim() != 3 or x.shape[-1] != self.features:
            raise SpikingError(f"Recurrent: got input of shape {list(x.shape)}; expected [T, B, {self.features}].")
        if x.shape[0] == 0:
            out, rest = self.neuron(x, state=None if state is None else state.neuron, return_state=True)
            after: RecurrentState | None = state or RecurrentState(rest, x.new_zeros(x.shape[1:]))
        else:
            spikes = []
            after = state
            for x_t in x.unbind(0):
                s, after = self.step(x_t, after)
                spikes.append(s)
            out = torch.stack(spikes)
        return (out, after) if return_state else out

    def step(self, x_t: Tensor, state: RecurrentState | None = None) -> tuple[Tensor, RecurrentState]:
        """One time step: x_t [B, features] and the state before (None: at rest) -> spikes and the state after."""
        if state is not None:
            x_t = x_t + self.recurrent(state.spikes)
        elif self.recurrent.bias is not None:
            x_t = x_t + self.recurrent.bias
        s, after = self.neuron.step(x_t, None if state is None else state.neuron)
        return s, RecurrentState(after, s)
