"""The integrate-and-fire family, and WKV, in plain torch: the oracle that every kernel must match, and the fallback without kernels.

Autograd differentiates these loops; only the spike itself has a hand-written backward (the surrogate). No tricks, no early exits.
State tensors are `[S, B, *]` with rows v, then i (CuBa) or b (adaptive), then the refractory steps left where `refractory > 0`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["WKV_REST", "Rule", "graded", "lanes", "reservoir", "run", "spike", "wkv"]

WKV_REST = -1e38  # the exponent of an empty past; equals WKV_REST in include/wkv.h (tested)


@dataclass(frozen=True)
class Rule:
    """What is the same for all neurons of a call. `surrogate` is an object with `grad(u)`."""

    surrogate: Any
    kind: str = "lif"  # lif | cuba | adaptive
    reset: str = "subtract"  # subtract | zero | none
    tie: str = "ge"  # ge | gt
    decay_input: bool = False
    detach_reset: bool = False
    reset_delay: bool = False
    residual_reset: bool = False
    normalize: bool = False
    v_reset: float = 0.0
    v_leak: float = 0.0
    beta_adapt: float = 0.0
    adapt_scale: float = 0.0
    refractory: int = 0

    @property
    def n_states(self) -> int:
        return 1 + (self.kind != "lif") + (self.refractory > 0)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, tie: str, grad: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(u)
        ctx.grad = grad
        fired = u > 0 if tie == "gt" else u >= 0
        return torch.where(u.isnan(), u, fired.to(u.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return grads[0] * ctx.grad(u), None, None


def spike(u: Tensor, rule: Rule) -> Tensor:
    """1 where `u` reaches 0 (`tie="ge"`) or exceeds it (`"gt"`), else 0; NaN where u is NaN. ds/du is the surrogate's."""
    return _Spike.apply(u, rule.tie, rule.surrogate.grad)


def _distance(h: Tensor, theta: Tensor, rule: Rule) -> Tensor:
    return h / theta - 1 if rule.normalize else h - theta


def _step(
    x: Tensor, v: Tensor, extra: Tensor, beta: Tensor, threshold: Tensor, beta_syn: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step -> (spike, v, extra, h); `extra` is the synaptic current (CuBa) or the adaptation (adaptive)."""
    theta = threshold + rule.adapt_scale * extra if rule.kind == "adaptive" else threshold
    drive = (1 - beta) * x if rule.decay_input else x
    if rule.kind == "cuba":
        extra = beta_syn * extra + x
        drive = extra
    due = torch.zeros_like(v)  # the spike whose reset is still to come, or was not enough
    if rule.reset_delay or rule.residual_reset:
        due = spike(_distance(v, theta, rule), rule)
        due = due.detach() if rule.detach_reset or rule.residual_reset else due
    if rule.reset_delay and rule.reset == "zero":
        v = (1 - due) * v + due * rule.v_reset
    h = beta * v + drive + (1 - beta) * rule.v_leak
    if (rule.reset_delay or rule.residual_reset) and rule.reset == "subtract":
        h = h - theta * due
    s = spike(_distance(h, theta, rule), rule)
    r = s.detach() if rule.detach_reset else s
    after = h
    if not rule.reset_delay:
        if rule.reset == "subtract":
            after = h - theta * (r - due if rule.residual_reset else r)
        elif rule.reset == "zero":
            after = torch.where(r == 0, h - r * (h - rule.v_reset), rule.v_reset + (1 - r) * (h - rule.v_reset))
    return s, after, extra, h


def run(
    x: Tensor, state: Tensor, beta: Tensor, threshold: Tensor, beta_syn: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """Whole sequences: x [T, B, *], state [S, B, *] -> (spikes [T, B, *], last state [S, B, *], h [T, B, *]).

    The parameters broadcast against x[0]. Maths in the dtype of `state`; spikes return in the dtype of x.
    """
    rows = list(state.unbind(0))
    left = rows.pop() if rule.refractory else None
    v = rows[0]
    extra = rows[1] if rule.kind != "lif" else v
    beta_adapt = torch.tensor(rule.beta_adapt, dtype=state.dtype, device=state.device)
    spikes, membranes = [], []
    for x_t in x.to(state.dtype).unbind(0):
        s, after, new_extra, h = _step(x_t, v, extra, beta, threshold, beta_syn, rule)
        if left is not None:
            resting = left > 0
            h = torch.where(resting, v, h)
            s = torch.where(resting, torch.zeros_like(s), s)
            after = torch.where(resting, v, after)
            left = torch.where(resting, left - 1, s.detach() * rule.refractory)
        if rule.kind == "adaptive":
            new_extra = beta_adapt * extra + (1 - beta_adapt) * s
        v, extra = after, new_extra
        spikes.append(s)
        membranes.append(h)
    last = [v] + ([extra] if rule.kind != "lif" else []) + ([left] if left is not None else [])
    if not spikes:
        return torch.empty_like(x), torch.stack(last), x.new_empty(x.shape, dtype=state.dtype)
    return torch.stack(spikes).to(x.dtype), torch.stack(last), torch.stack(membranes)


def _tip(z: Tensor) -> Tensor:
    return 0.3 * (1 - z.abs()).clamp(min=0)


class _Lane(torch.autograd.Function):
    """Whether v·low < p <= v·high (no upper end for None); the derivative has a triangle at either edge, both positive."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, v: Tensor, low: float, high: float | None) -> Tensor:
        ctx.save_for_backward(p, v)
        ctx.edges = [low] if high is None else [low, high]
        fired = p > low * v
        if high is not None:
            fired = fired & (p <= high * v)
        return torch.where(p.isnan(), p, fired.to(p.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        p, v = ctx.saved_tensors
        slope = sum((_tip(p / (edge * v) - 1) / (edge * v) for edge in ctx.edges), torch.zeros_like(p))
        grad = grads[0] * slope
        return grad, (-grad * p / v).sum_to_size(v.shape), None, None


class _Steps(torch.autograd.Function):
    """floor(p / v) within 0…levels; straight through where it is not clipped."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, v: Tensor, levels: int) -> Tensor:
        ctx.save_for_backward(p, v)
        ctx.levels = levels
        return (p / v).floor().clamp(0, levels)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        p, v = ctx.saved_tensors
        inside = (p > 0) & (p < (ctx.levels + 1) * v)
        grad = grads[0] * inside / v
        return grad, (-grad * p / v).sum_to_size(v.shape), None


def lanes(h: Tensor, threshold: Tensor, levels: int) -> list[Tensor]:
    """Which octave a membrane is in, one tensor of 0 and 1 each."""
    ends = [*(2.0 ** (k + 1) for k in range(levels - 1)), None]
    return [_Lane.apply(h, threshold, 2.0**k, end) for k, end in enumerate(ends)]


def graded(
    x: Tensor, v: Tensor, beta: Tensor, threshold: Tensor, levels: int, spacing: str, v_leak: float
) -> tuple[Tensor, Tensor]:
    """Neurons with graded spikes: x [T, B, *], v [B, *] -> (spikes [T, B, *], last v [B, *]); see include/graded.h."""
    out = []
    for x_t in x.to(v.dtype).unbind(0):
        h = beta * v + x_t + (1 - beta) * v_leak
        if spacing == "linear":
            s = _Steps.apply(h, threshold, levels)
        else:
            s = sum((lane * 2.0**k for k, lane in enumerate(lanes(h, threshold, levels))), torch.zeros_like(h))
        v = h - threshold * s.detach()
        out.append(s)
    return torch.stack(out).to(x.dtype) if out else torch.empty_like(x), v


def reservoir(
    x: Tensor,
    w_in: Tensor,
    w_rec: Tensor | None,
    bias: Tensor | None,
    u: Tensor,
    s: Tensor,
    beta: float,
    threshold: float,
) -> tuple[Tensor, Tensor]:
    """A recurrent layer of fixed weights: x [T, B, I], state u, s [B, N] -> (spikes, u before the reset), both [T, B, N].

    u[t] = beta·u[t-1]·(1 - s[t-1]) + W_in·x[t] + W_rec·s[t-1];   s[t] = 1 if u[t] > threshold else 0   (w_rec None: no recurrence)
    """
    spikes, membranes = [], []
    for x_t in x.unbind(0):
        u = beta * u * (1 - s) + torch.nn.functional.linear(x_t, w_in, bias)
        if w_rec is not None:
            u = u + s @ w_rec.T
        s = (u > threshold).to(u.dtype)
        spikes.append(s)
        membranes.append(u)
    if not spikes:
        return x.new_empty((0, *u.shape)), x.new_empty((0, *u.shape))
    return torch.stack(spikes), torch.stack(membranes)


def wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """RWKV-4's WKV: w, u [C], k, v [T, B, C], state [3, B, C] -> (y [T, B, C], last state).

    Rows of the state: p, q and the exponent o that scales them. Exponents are only scales: no gradient flows through them.
    """
    p, q, o = state.unbind(0)
    outputs = []
    for k_t, v_t in zip(k.to(state.dtype).unbind(0), v.to(state.dtype).unbind(0)):
        top = torch.maximum(o, u + k_t).detach()
        a, b = torch.exp(o.detach() - top), torch.exp(u + k_t - top)
        outputs.append((a * p + b * v_t) / (a * q + b))
        top = torch.maximum(w + o, k_t).detach()
        a, b = torch.exp(w + o.detach() - top), torch.exp(k_t - top)
        p, q, o = a * p + b * v_t, a * q + b, top
    y = torch.stack(outputs).to(k.dtype) if outputs else k * v  # empty, and still part of the graph
    return y, torch.stack([p, q, o.detach()])
