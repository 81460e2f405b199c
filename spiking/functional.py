"""Pure functions on tensors: integrate-and-fire neurons and WKV over whole sequences. They keep no state and choose no backend.

All neurons run the same step (the membrane of `LIF`), differing in what drives it and in its threshold. `beta`, `threshold` and
`beta_syn` are numbers or tensors of shape (), [C] (C = x.shape[2]) or x.shape[2:]; gradients flow to x, the initial state and these.

>>> import torch
>>> spikes, v = lif(torch.full((4, 1, 1), 0.6), beta=0.5)
>>> spikes.flatten().tolist()
[0.0, 0.0, 1.0, 0.0]
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from spiking.cuda_kernels import event_conv_ops, event_linear_ops, ops, pool_integrate_ops, wkv_ops
from spiking.cuda_kernels.driven import event_driven
from spiking.cuda_kernels.reference import Rule

from .errors import SpikingError
from .surrogate import ATan, Surrogate

__all__ = [
    "Reset",
    "Save",
    "Tie",
    "WKVState",
    "adaptive_lif",
    "cuba_lif",
    "event_conv2d",
    "event_driven",
    "event_linear",
    "integrate",
    "lif",
    "wkv",
]

Reset: TypeAlias = Literal["subtract", "zero", "none"]
Save: TypeAlias = Literal["value", "half", "recompute"]
Tie: TypeAlias = Literal["ge", "gt"]


def lif(
    x: Tensor,
    *,
    beta: float | Tensor = 0.9,
    threshold: float | Tensor = 1.0,
    reset: Reset = "subtract",
    surrogate: Surrogate = ATan(),  # noqa: B008 - frozen
    v0: Tensor | None = None,
    decay_input: bool = False,
    detach_reset: bool = False,
    tie: Tie = "ge",
    v_reset: float = 0.0,
    v_leak: float = 0.0,
    reset_delay: bool = False,
    residual_reset: bool = False,
    normalize: bool = False,
    save: Save = "value",
) -> tuple[Tensor, Tensor]:
    """Run leaky integrate-and-fire neurons over a whole sequence.

        h[t] = beta·v[t-1] + x[t];   s[t] = 1 if h[t] >= threshold else 0;   v[t] = h[t] - threshold·s[t]

    with `reset="zero"`: v[t] = v_reset where s[t] = 1; `"none"`: v[t] = h[t]. `decay_input` multiplies x with (1 - beta); `v_leak` is
    where the membrane decays to; `tie="gt"` fires only above the threshold; `reset_delay` applies the reset one step later, after the
    decay; `residual_reset` pre-subtracts where v is still above the threshold after a reset (snnTorch's reset_delay=False);
    `normalize` spikes on h/threshold - 1 (IIR-SNN). The refractory period needs a counter: see `spiking.LIF`.

    Shapes: x [T, B, *] -> spikes [T, B, *], last v [B, *]; v0 [B, *], None means at rest (v_leak).
    Units: x, v, threshold share one; beta is per step.   Dtype: spikes as x; v in float32 for half-precision x.
    Gradient: surrogate.grad(h - threshold) replaces ds/dh, through the reset too unless `detach_reset`.
    Memory: kept for the backward per neuron and step: 4 bytes (`save="value"`), 2 (`"half"`), or x and 1/4 byte (`"recompute"`).
    Errors: SpikingError if x has no time axis, a parameter is out of range or v0 does not match x[0].
    Source: Neftci, Mostafa & Zenke 2019 (arXiv 1901.09948).   Oracle: cuda_kernels/reference.py.

    >>> spikes, v = lif(torch.full((4, 1, 1), 0.6), beta=0.5)
    >>> spikes.flatten().tolist()
    [0.0, 0.0, 1.0, 0.0]
    """
    rule = Rule(
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
    )
    check_rule("lif", rule)
    state = None if v0 is None else v0.unsqueeze(0)
    s, last = integrate("lif", x, state, rule, beta, threshold, save=save)
    return s, last[0]


def cuba_lif(
    x: Tensor,
    *,
    beta: float | Tensor = 0.9,
    beta_syn: float | Tensor = 0.8,
    threshold: float | Tensor = 1.0,
    reset: Reset = "subtract",
    surrogate: Surrogate = ATan(),  # noqa: B008 - frozen
    v0: Tensor | None = None,
    i0: Tensor | None = None,
    detach_reset: bool = False,
    tie: Tie = "ge",
    v_reset: float = 0.0,
    v_leak: float = 0.0,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run current-based (second-order) LIF neurons: a synaptic current drives the membrane.

        i[t] = beta_syn·i[t-1] + x[t];   h[t] = beta·v[t-1] + i[t];   spike and reset as `lif`

    Shapes: x [T, B, *] -> spikes [T, B, *], (last v [B, *], last i [B, *]).
    Memory: x and half a byte per neuron and step are kept for the backward, which recomputes the rest.
    Errors: as `lif`.   Source: Neftci, Mostafa & Zenke 2019 (arXiv 1901.09948).

    >>> spikes, (v, i) = cuba_lif(torch.full((3, 1, 1), 0.5), beta=0.5, beta_syn=0.5)
    >>> spikes.flatten().tolist()
    [0.0, 1.0, 0.0]
    """
    rule = Rule(surrogate, kind="cuba", reset=reset, tie=tie, detach_reset=detach_reset, v_reset=v_reset, v_leak=v_leak)
    check_rule("cuba_lif", rule)
    s, last = integrate("cuba_lif", x, _pair(x, v0, i0, v_leak), rule, beta, threshold, beta_syn)
    return s, (last[0], last[1])


def adaptive_lif(
    x: Tensor,
    *,
    beta: float | Tensor = 0.9,
    threshold: float | Tensor = 1.0,
    beta_adapt: float = 0.97,
    adapt_scale: float = 1.8,
    reset: Reset = "subtract",
    surrogate: Surrogate = ATan(),  # noqa: B008 - frozen
    v0: Tensor | None = None,
    threshold_shift0: Tensor | None = None,
    decay_input: bool = False,
    detach_reset: bool = False,
    tie: Tie = "ge",
    v_reset: float = 0.0,
    v_leak: float = 0.0,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run LIF neurons whose threshold rises with their own spikes.

        θ[t] = threshold + adapt_scale·b[t-1];   b[t] = beta_adapt·b[t-1] + (1 - beta_adapt)·s[t];   otherwise as `lif`

    Shapes: x [T, B, *] -> spikes [T, B, *], (last v [B, *], last b [B, *]).
    Memory: x and half a byte per neuron and step are kept for the backward, which recomputes the rest.
    Errors: as `lif`.   Source: Bellec et al. 2018 (arXiv 1803.09574).

    >>> spikes, _ = adaptive_lif(torch.full((6, 1, 1), 1.0), beta=0.0, beta_adapt=0.5, adapt_scale=1.0)
    >>> spikes.flatten().tolist()
    [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    rule = Rule(
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
    )
    check_rule("adaptive_lif", rule)
    s, last = integrate("adaptive_lif", x, _pair(x, v0, threshold_shift0, v_leak), rule, beta, threshold)
    return s, (last[0], last[1])


class WKVState(NamedTuple):
    """What `wkv` remembers of the past, three tensors [B, C]: the sums P = p·exp(o) and Q = q·exp(o)."""

    p: Tensor
    q: Tensor
    o: Tensor


def wkv(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: tuple[Tensor, Tensor, Tensor] | None = None
) -> tuple[Tensor, WKVState]:
    """Average values over the past, each weighed by its key and by how long ago it was: the attention of RWKV-4 and SpikeGPT.

        y[t] = (P[t] + exp(u + k[t])·v[t]) / (Q[t] + exp(u + k[t]))
        P[t+1] = exp(w)·P[t] + exp(k[t])·v[t];   Q[t+1] = exp(w)·Q[t] + exp(k[t])

    w is minus the decay rate of a channel (models store its logarithm: w = -exp(time_decay)), u the bonus of the present step. A
    sequence may be cut anywhere: training on whole sequences, on chunks, and one step at a time are this function. Safe for any
    finite k, since no exponent exceeds 0; time and memory are linear in T.

    Shapes: w, u [C]; k, v [T, B, C] -> y [T, B, C], state (p, q, o) of [B, C] each; None means an empty past.
    Dtype: y as k (float32, float64, bfloat16, float16); w, u and the state in float32, or in float64 where k is.
    Gradient: exact, through the state too; o is only a scale, held constant. Kept for the backward: k, v, and the state at every 16 steps.
    Errors: SpikingError for shapes, dtypes or devices that do not fit.
    Source: Peng et al. 2023 (arXiv 2305.13048), equations 19-22; Zhu et al. 2023 (arXiv 2302.13939).   Oracle: cuda_kernels/reference.py.

    >>> k, v = torch.zeros(3, 1, 1), torch.tensor([1.0, 2.0, 6.0]).reshape(3, 1, 1)
    >>> y, state = wkv(torch.tensor([-0.0]), torch.tensor([0.0]), k, v)  # no decay, no bonus: a running mean
    >>> y.flatten().tolist()
    [1.0, 1.5, 3.0]
    """
    dtype = _check_wkv(w, u, k, v, state)
    given = None if state is None else torch.stack([row.to(dtype) for row in state])
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (w, u, k, v, given))
    y, last, _ = wkv_ops.wkv(w.to(dtype), u.to(dtype), k, v, given, learns)
    p, q, o = last.unbind(0)
    return y, WKVState(p, q, o.detach())


def _check_wkv(w: Any, u: Any, k: Any, v: Any, state: Any) -> torch.dtype:
    """The dtype of the state."""
    for name, tensor in (("w", w), ("u", u), ("k", k), ("v", v)):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise SpikingError(f"wkv.{name}: got {_kind_of(tensor)}; expected a tensor of a floating dtype.")
    if k.dim() != 3 or k.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise SpikingError(f"wkv.k: got {_kind_of(k)}; expected [T, B, C] in float32, float64, bfloat16 or float16.")
    if v.shape != k.shape or v.dtype != k.dtype or v.device != k.device:
        raise SpikingError(
            f"wkv.v: got {_kind_of(v)} on {v.device}; expected {_kind_of(k)} on {k.device}, as the keys. Convert one of them."
        )
    for name, tensor in (("w", w), ("u", u)):
        if tensor.shape != k.shape[2:] or tensor.device != k.device:
            raise SpikingError(
                f"wkv.{name}: got shape {list(tensor.shape)} on {tensor.device} beside keys {list(k.shape)}; "
                f"expected [{k.shape[2]}] on {k.device}, one number for each channel."
            )
    if state is not None:
        rows = list(state) if isinstance(state, tuple) else []
        if len(rows) != 3 or not all(
            isinstance(r, Tensor) and r.shape == k.shape[1:] and r.device == k.device for r in rows
        ):
            found = [list(r.shape) if isinstance(r, Tensor) else type(r).__name__ for r in rows] or type(state).__name__
            raise SpikingError(
                f"wkv.state: got {found}; expected (p, q, o) of {list(k.shape[1:])} each on {k.device}, as wkv returns it. "
                "Use state=None for an empty past."
            )
    return ops.state_dtype(k.dtype)


def _kind_of(given: Any) -> str:
    return (
        f"{given.dtype} {list(given.shape)}"
        if isinstance(given, Tensor)
        else f"an input of type {type(given).__name__}"
    )


def event_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply spikes with a weight: only the non-zeros of x cost anything.

        y = x·Wᵀ + b = b + Σ_k x_k·W[:, k], over the k with x_k ≠ 0

    Any values are allowed, not only 0 and 1. The result is that of `torch.nn.functional.linear` but for the order of summation; infinities
    and NaN pass through likewise (a weight that holds one is multiplied the dense way). `spiking.Linear` chooses between the two by itself.

    Shapes: x [*, in], weight [out, in], bias [out] or None -> [*, out].
    Dtype: the weight's; x has it too, or is an integer or bool. float32, float64, bfloat16 (summed in float32) on CPUs; others run dense.
    Gradient: dL/dW touches active inputs only; dL/dx = dL/dy·W. Of x one bit a number is kept where it holds zeros and ones only.
    Errors: SpikingError for shapes that do not fit, or another floating dtype.

    >>> event_linear(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([[1.0, 2.0, 3.0]])).tolist()
    [2.0]
    """
    y = event_linear_ops.at_hand(x, weight, bias, True)
    if y is not None:
        return y
    _check_tensors("event_linear", x, weight, bias)
    if weight.dim() != 2 or x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise SpikingError(
            f"event_linear: got input of shape {list(x.shape)} and weight {list(weight.shape)}; expected [*, in] and [out, in]."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise SpikingError(
            f"event_linear.bias: got shape {list(bias.shape)}; expected [{weight.shape[0]}], one per output."
        )
    x = _in_one_dtype("event_linear", x, weight, bias)
    return event_linear_ops.event_linear(x, weight, bias)


def event_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    groups: int = 1,
) -> Tensor:
    """Convolve spikes: only the non-zeros of x cost anything.

        y[o, i, j] = b[o] + Σ W[o, c, k, l]·x[c, stride·i + k - padding, stride·j + l - padding], over the x ≠ 0

    Any values are allowed, not only 0 and 1. The result is that of `torch.nn.functional.conv2d` but for the order of summation, which is
    the same on every machine and for any batch; infinities and NaN pass through likewise (a weight that holds one is convolved the dense
    way). `spiking.Conv2d` chooses between the two by itself.

    Shapes: x [T, B, C, H, W] or [B, C, H, W], weight [out, C / groups, kernel, kernel], bias [out] or None -> [T, B, out, H', W'] or
    [B, out, H', W'], in the memory order of x (contiguous or channels last).
    Dtype: the weight's; x has it too, or is an integer or bool. float64, float32, bfloat16 and float16 (summed in float32) on CPUs.
    Gradient: dL/dW touches active inputs only; dL/dx is dense. Of x one bit a number is kept where it holds zeros and ones only.
    Errors: SpikingError for shapes that do not fit, numbers that make no convolution, or another floating dtype.

    >>> x = torch.zeros(1, 1, 3, 3)
    >>> x[0, 0, 1, 1] = 1
    >>> event_conv2d(x, torch.arange(4.0).reshape(1, 1, 2, 2)).flatten().tolist()
    [3.0, 2.0, 1.0, 0.0]
    """
    y = event_conv_ops.at_hand(x, weight, bias, _both(stride), _both(padding), groups, True)
    if y is not None:
        return y
    _check_tensors("event_conv2d", x, weight, bias)
    steps, pads = _pair_of("stride", stride, 1), _pair_of("padding", padding, 0)
    if not isinstance(groups, int) or groups < 1 or weight.dim() != 4 or weight.shape[0] % groups:
        raise SpikingError(
            f"event_conv2d: got a weight {list(weight.shape)} and groups={groups}; expected [out, in / groups, kernel, kernel] "
            "with out a multiple of groups."
        )
    if x.dim() not in (4, 5) or x.shape[-3] != weight.shape[1] * groups:
        raise SpikingError(
            f"event_conv2d: got input of shape {list(x.shape)}; expected [T, B, {weight.shape[1] * groups}, H, W] or one step of it."
        )
    if any(size + 2 * pad < kernel for size, pad, kernel in zip(x.shape[-2:], pads, weight.shape[2:])):
        raise SpikingError(
            f"event_conv2d: got images of {list(x.shape[-2:])} with padding {pads}; expected at least {list(weight.shape[2:])}, the kernel."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise SpikingError(
            f"event_conv2d.bias: got shape {list(bias.shape)}; expected [{weight.shape[0]}], one per output channel."
        )
    x = _in_one_dtype("event_conv2d", x, weight, bias)
    images = x.flatten(0, 1) if x.dim() == 5 else x
    y = event_conv_ops.event_conv2d(images, weight, bias, steps, pads, groups)
    return y.unflatten(0, x.shape[:2]) if x.dim() == 5 else y


def _both(size: Any) -> Any:
    return (size, size) if type(size) is int else size


def _check_tensors(where: str, x: Any, weight: Any, bias: Any) -> None:
    for name, given in (("input", x), ("weight", weight), ("bias", bias)):
        if not isinstance(given, Tensor) and not (given is None and name == "bias"):
            raise SpikingError(f"{where}: got {name} of type {type(given).__name__}; expected a tensor.")
        if given is not None and (given.layout != torch.strided or given.is_quantized or given.is_nested):
            raise SpikingError(
                f"{where}: got {name} with layout {given.layout} and dtype {given.dtype}; expected a dense tensor. "
                "Convert it with to_dense(), dequantize() or to_padded_tensor(0)."
            )


def _in_one_dtype(where: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Spikes that are integers or bools in the dtype of the weight; floating ones, and the bias, have to have it already."""
    x = x if x.is_floating_point() else x.to(weight.dtype)
    for given in (x, bias):
        if given is not None and given.dtype != weight.dtype:
            raise SpikingError(
                f"{where}: got {given.dtype} beside a weight of {weight.dtype}; expected one dtype. Convert one of them."
            )
    return x


def _pair_of(name: str, given: int | tuple[int, int], least: int) -> list[int]:
    pair = [given, given] if isinstance(given, int) else list(given)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise SpikingError(
            f"event_conv2d.{name}: got {given!r}; expected one or two whole numbers of at least {least}."
        )
    return pair


def _pair(x: Tensor, v: Tensor | None, extra: Tensor | None, v_leak: float) -> Tensor | None:
    if v is None and extra is None:
        return None
    dtype = ops.state_dtype(x.dtype)
    v = torch.full(x.shape[1:], v_leak, dtype=dtype, device=x.device) if v is None else v
    extra = torch.zeros(x.shape[1:], dtype=dtype, device=x.device) if extra is None else extra
    return torch.stack([v.to(dtype), extra.to(dtype)])


def integrate(
    where: str,
    x: Tensor,
    state: Tensor | None,
    rule: Rule,
    beta: float | Tensor,
    threshold: float | Tensor,
    beta_syn: float | Tensor = 0.0,
    *,
    save: Save = "value",
) -> tuple[Tensor, Tensor]:
    """The one call behind every neuron: x [T, B, *], state [S, B, *] or None -> (spikes [T, B, *], last state [S, B, *]).

    `where` names the caller in errors. State rows: v, then the synaptic current or the threshold shift, then the refractory counter.
    """
    s, last, _ = integrate_sending(where, x, state, rule, beta, threshold, beta_syn, save=save)
    return s, last


def integrate_sending(
    where: str,
    x: Tensor,
    state: Tensor | None,
    rule: Rule,
    beta: float | Tensor,
    threshold: float | Tensor,
    beta_syn: float | Tensor = 0.0,
    *,
    save: Save = "value",
) -> tuple[Tensor, Tensor, event_linear_ops.Membrane | None]:
    """`integrate`, and what it keeps of membranes whose surrogate derivative is zero far from the threshold; None for all others."""
    _check_input(where, x, state, rule)
    params, inner, numbers = _cells(where, x, beta, threshold, beta_syn)
    integers, packed = ops.pack(rule, *numbers)
    again = save == "value" and x.is_cpu and not torch.compiler.is_compiling() and ops.is_constant(x)
    # One step that is seen at each is read again at less cost than membranes of all steps would be.
    mode = _save_mode(where, rule, "recompute" if again else save, x, state, params)
    if state is not None:
        state = state.to(ops.state_dtype(x.dtype))
    s, last, kept = ops.integrate(x, state, params, inner, integers, packed, mode)
    ends = math.isfinite(rule.surrogate.reach) and ops.SAVES[mode] in ("value", "half") and params is None
    if not ends or rule.normalize or rule.reset_delay or not x.is_cpu:
        return s, last, None
    return s, last, event_linear_ops.Membrane(kept, numbers[1], rule.surrogate.reach)


def pool_integrate(
    where: str,
    x: Tensor,
    window: int,
    maximum: bool,
    affine: Tensor | None,
    state: Tensor | None,
    rule: Rule,
    beta: float | Tensor,
    threshold: float | Tensor,
    beta_syn: float | Tensor = 0.0,
    *,
    save: Save = "value",
) -> tuple[Tensor, Tensor]:
    """`integrate` of pooled input in one pass, the pooled input never in memory: x [T, B, C, H, W], one neuron for each window.

    Each is driven by the maximum or the average of its window, times affine[0] plus affine[1] of its channel
    where `affine` [2, C] is given.
    """
    neurons = x.new_empty(1).expand(*x.shape[:3], x.shape[3] // window, x.shape[4] // window)
    _check_input(where, neurons, state, rule)
    params, inner, numbers = _cells(where, neurons, beta, threshold, beta_syn)
    integers, packed = ops.pack(rule, *numbers)
    mode = _save_mode(where, rule, save, x, affine, state, params)
    if state is not None:
        state = state.to(ops.state_dtype(x.dtype))
    call = (params, inner, integers, packed, mode, window, maximum)
    s, last, _ = pool_integrate_ops.pool_integrate(x, affine, state, *call)
    return s, last


def _save_mode(where: str, rule: Rule, save: Save, *tensors: Tensor | None) -> int:
    """How the forward is to save for a backward, by its place in ops.SAVES: 0 where there will be none."""
    if save not in ("value", "half", "recompute"):
        raise SpikingError(f'{where}.save: got {save!r}; expected "value", "half" or "recompute".')
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)):
        return 0
    # These keep more state than h alone can give back, so their backward always recomputes.
    must_recompute = (
        rule.kind != "lif" or rule.refractory > 0 or rule.residual_reset or (save == "half" and rule.reset_delay)
    )
    return ops.SAVES.index("recompute" if must_recompute else save)


def linear_integrate(
    where: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    rule: Rule,
    beta: float | Tensor,
    threshold: float | Tensor,
    beta_syn: float | Tensor = 0.0,
) -> tuple[Tensor, Tensor] | None:
    """`integrate` of x·Wᵀ + b in one kernel where one exists (CUDA, inference, few rows), with the same spikes; None elsewhere.

    x [T, B, in], weight [out, in], state [S, B, out] or None -> (spikes [T, B, out], last state [S, B, out]).
    """
    if x.dim() != 3 or x.shape[2] != weight.shape[1] or x.dtype != weight.dtype:
        return None
    current = x.new_empty(1).expand(*x.shape[:2], weight.shape[0])  # what the neurons would be given, for the checks
    _check_input(where, current, state, rule)
    params, inner, numbers = _cells(where, current, beta, threshold, beta_syn)
    integers, packed = ops.pack(rule, *numbers)
    state = None if state is None else state.to(ops.state_dtype(x.dtype))
    return event_linear_ops.linear_neurons(x, weight, bias, state, params, inner, integers, packed)


def check_rule(where: str, rule: Rule) -> None:
    """Raise SpikingError for a rule that no neuron can follow."""
    if rule.reset not in ops.RESETS:
        raise SpikingError(f'{where}.reset: got {rule.reset!r}; expected "subtract", "zero" or "none".')
    if rule.tie not in ("ge", "gt"):
        raise SpikingError(
            f'{where}.tie: got {rule.tie!r}; expected "ge" (fires at the threshold) or "gt" (only above).'
        )
    if not isinstance(rule.surrogate, Surrogate):
        raise SpikingError(
            f"{where}.surrogate: got {rule.surrogate!r}; expected one of spiking.surrogate, such as surrogate.ATan()."
        )
    for name in ("v_reset", "v_leak", "adapt_scale"):
        if not math.isfinite(getattr(rule, name)):
            raise SpikingError(f"{where}.{name}: got {getattr(rule, name)}; expected a finite number.")
    if not 0 <= rule.beta_adapt <= 1:
        raise SpikingError(
            f"{where}.beta_adapt: got {rule.beta_adapt}; expected 0 <= beta_adapt <= 1, the decay per step."
        )
    if rule.refractory < 0 or rule.refractory != int(rule.refractory):
        raise SpikingError(f"{where}.refractory: got {rule.refractory}; expected a whole number of steps >= 0.")
    if rule.residual_reset and (rule.reset != "subtract" or rule.reset_delay):
        raise SpikingError(
            f'{where}.residual_reset: needs reset="subtract" without reset_delay; it says what remains after such a reset.'
        )
    if rule.refractory and (rule.reset_delay or rule.residual_reset):
        raise SpikingError(f"{where}.refractory: cannot be combined with reset_delay or residual_reset. Choose one.")


def check_beta(where: str, name: str, beta: float | Tensor) -> None:
    """Raise SpikingError unless every decay lies in [0, 1]."""
    if not isinstance(beta, (int, float, Tensor)):
        raise SpikingError(f"{where}.{name}: got {beta!r}; expected a number or a tensor between 0 and 1.")
    low, high = (beta, beta) if isinstance(beta, (int, float)) else (beta.min().item(), beta.max().item())
    if not (low >= 0 and high <= 1):
        worst = low if not low >= 0 else high
        raise SpikingError(
            f"{where}.{name}: got {worst}; expected 0 <= {name} <= 1. {name} is the decay per step: for a time constant use exp(-dt/tau)."
        )


def check_threshold(where: str, threshold: float | Tensor) -> None:
    """Raise SpikingError unless every threshold is finite and positive."""
    if isinstance(threshold, (int, float)) and 0 < threshold < math.inf:
        return
    values = torch.as_tensor(threshold)
    if not bool((values.isfinite() & (values > 0)).all()):
        raise SpikingError(f"{where}.threshold: got {values.min().item()}; expected finite numbers > 0.")


def _check_input(where: str, x: Tensor, state: Tensor | None, rule: Rule) -> None:
    if not isinstance(x, Tensor):
        raise SpikingError(f"{where}: got input of type {type(x).__name__}; expected a tensor [T, B, *].")
    if x.dim() < 2:
        raise SpikingError(
            f"{where}: got input of shape {list(x.shape)}; expected [T, B, *]. For one time step call layer.step(x_t, state)."
        )
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise SpikingError(
            f"{where}: got input of dtype {x.dtype}; expected a floating dtype. Convert it with x.float()."
        )
    if state is not None:
        expected = (rule.n_states, *x.shape[1:])
        if tuple(state.shape) != expected:
            raise SpikingError(
                f"{where}: got a state of shape {list(state.shape[1:])}; expected {list(expected[1:])} as one step of the input. "
                "Use state=None to start at rest."
            )
        if state.device != x.device:
            raise SpikingError(f"{where}: got a state on {state.device} and input on {x.device}; expected one device.")


def _cells(
    where: str, x: Tensor, beta: float | Tensor, threshold: float | Tensor, beta_syn: float | Tensor
) -> tuple[Tensor | None, int, tuple[float, float, float]]:
    """(params [3, C] or None, neurons per parameter, the three numbers)."""
    named = {"beta": beta, "threshold": threshold, "beta_syn": beta_syn}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    for name, value in named.items():
        if name not in tensors:
            check_threshold(where, value) if name == "threshold" else check_beta(where, name, value)
    if not tensors:
        return None, 1, (float(beta), float(threshold), float(beta_syn))
    features = x.shape[2:]
    shape = torch.Size(())
    for name, tensor in tensors.items():
        if tensor.dim() == 0 or tensor.shape == features:
            fits = tensor.shape
        elif tensor.dim() == 1 and len(features) and tensor.shape[0] in (1, features[0]):
            fits = tensor.shape if tensor.shape[0] > 1 else torch.Size(())
        else:
            raise SpikingError(
                f"{where}.{name}: got shape {list(tensor.shape)} for input {list(x.shape)}; "
                f"expected (), [{features[0] if features else 1}] or {list(features)}."
            )
        shape = fits if len(fits) > len(shape) else shape
    dtype = ops.state_dtype(x.dtype)
    count = shape.numel()
    inner = 1 if shape == features else features.numel() // count if count > 1 else 1
    rows = []
    for value in named.values():
        row = value.to(dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=x.device)
        if row.dim() == 1 and len(shape) > 1 and row.numel() > 1:
            row = row.reshape(-1, *(1,) * (len(shape) - 1))
        elif row.numel() == 1:
            row = row.reshape(())
        rows.append(row.expand(shape).reshape(count))
    return torch.stack(rows), inner, (0.0, 0.0, 0.0)
