"""torch.library registration of the neuron kernels: one differentiable op, `spiking::integrate`, for the whole family.

`integrate(x, state, params, inner, rule, numbers, save)` -> (spikes, last state, saved). x is [T, B, *]; state [S, B, *] or None (at
rest); params [3, C] (beta, threshold, beta_syn; the state's dtype) or None for the numbers. `rule` and `numbers` are flat lists, since
ops take no dataclasses: their order is that of `pack` and of cpu/neuron_bind.cpp.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import backend, memory, reference, watch

__all__ = ["CHUNK", "KINDS", "RESETS", "SAVES", "integrate", "pack", "state_dtype"]

CHUNK = 16  # steps between two saved states where the backward recomputes; equals CHUNK in cpu/neuron_api.h (tested)
KINDS = ("lif", "cuba", "adaptive")
RESETS = ("subtract", "zero", "none")
SAVES = ("nothing", "value", "half", "recompute")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_KIND, _RESET, _SURROGATE, _REFRACTORY, _TIE = 0, 1, 2, 3, 4


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 input, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def pack(rule: reference.Rule, beta: float, threshold: float, beta_syn: float) -> tuple[list[int], list[float]]:
    """The flat form of a rule: 10 integers and 9 numbers."""
    a, b = rule.surrogate.kernel_parameters
    flags = (
        rule.tie == "gt",
        rule.decay_input,
        rule.detach_reset,
        rule.reset_delay,
        rule.residual_reset,
        rule.normalize,
    )
    integers = [
        KINDS.index(rule.kind),
        RESETS.index(rule.reset),
        rule.surrogate.kernel_id,
        rule.refractory,
        *map(int, flags),
    ]
    return integers, [beta, threshold, beta_syn, rule.v_reset, rule.v_leak, rule.beta_adapt, rule.adapt_scale, a, b]


def n_states(rule: list[int]) -> int:
    return 1 + (rule[_KIND] != 0) + (rule[_REFRACTORY] > 0)


def saved_like(
    shape: tuple[int, ...], dtype: torch.dtype, rule: list[int], save: int
) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of what the forward keeps for the backward of neurons [T, *] beside their inputs."""
    if save == 1:
        return tuple(shape), state_dtype(dtype)
    if save == 2:
        return tuple(shape), torch.int16
    borders = max(0, math.ceil(shape[0] / CHUNK) - 1) if save == 3 else 0
    return (borders, n_states(rule), *shape[1:]), state_dtype(dtype)


class Drive(NamedTuple):
    """What neurons are driven by where it is not the input itself: windows of x [T, B, C, H, W], pooled, and scaled by channel."""

    window: int
    maximum: bool  # else the average
    affine: Tensor | None  # [2, C]: scale and shift

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """Of the neurons."""
        return (*x.shape[:3], x.shape[3] // self.window, x.shape[4] // self.window)

    def numbers(self, x: Tensor, grad_affine: Tensor | None = None) -> list[int]:
        """As the compiled module takes it."""
        at = (0, 0) if self.affine is None else (self.affine[0].data_ptr(), self.affine[1].data_ptr())
        sizes = (x.shape[2], x.shape[3], x.shape[4], x.shape[1:].numel())
        return [self.maximum, self.window, *sizes, *at, _address(grad_affine)]


_library = torch.library.Library("spiking", "DEF")
_library.define(
    "integrate(Tensor x, Tensor? state, Tensor? params, int inner, int[] rule, float[] numbers, int save) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "integrate_backward(Tensor? grad_s, Tensor? grad_state, Tensor x, Tensor? state, Tensor? params, Tensor saved, int inner, "
    "int[] rule, float[] numbers, int save, bool want_params) -> (Tensor, Tensor, Tensor)"
)


# --- kernels -------------------------------------------------------------------------------------------------------------------------


def _is_stand_in(tensor: Tensor) -> bool:
    """One number expanded to a shape."""
    return tensor.numel() > 1 and all(s == 0 or d == 1 for s, d in zip(tensor.stride(), tensor.shape))


def is_constant(x: Tensor) -> bool:
    """Whether x [T, *] is one step in memory, seen at each of several."""
    return x.shape[0] > 1 and x.stride(0) == 0 and x[0].is_contiguous()


def reads_input(params: Tensor | None, rule: list[int], save: int, drive: Drive | None = None) -> bool:
    """Whether the backward needs x: to run the forward again, for the decay of a decayed input, or for what a drive did with it."""
    again = save in (0, 3) or (bool(rule[_TIE + 1]) and params is not None)
    return again or (drive is not None and (drive.maximum or drive.affine is not None))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _threads_for(items: int) -> int:
    return backend.threads() if items >= 32768 else 1  # below, waking a second thread costs more than it saves


def _integrate(
    x: Tensor, state: Tensor | None, params: Tensor | None, inner: int, rule: list[int], numbers: list[float], save: int
) -> tuple[Tensor, Tensor, Tensor]:
    if backend.choose(x.device).name == "reference":
        return _integrate_reference(x, state, params, inner, rule, numbers, save)
    return run_forward(x, state, params, inner, rule, numbers, save)


def run_forward(
    x: Tensor,
    state: Tensor | None,
    params: Tensor | None,
    inner: int,
    rule: list[int],
    numbers: list[float],
    save: int,
    drive: Drive | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(spikes, last state, saved) by a kernel; only that of CPUs knows a `drive`."""
    choice = backend.choose(x.device).name
    constant = choice == "cpu" and drive is None and is_constant(x)
    given, x = x, x if constant else x.contiguous()
    shape = tuple(x.shape) if drive is None else drive.shape(x)
    state = None if state is None else state.contiguous()
    params = None if params is None else params.contiguous()
    s = memory.empty(shape, x.dtype, x.device)
    last = memory.empty((n_states(rule), *shape[1:]), state_dtype(x.dtype), x.device)
    saved = memory.empty(*saved_like(shape, x.dtype, rule, save), x.device)
    steps, neurons = shape[0], math.prod(shape[1:])
    sizes = (steps, neurons, 1 if params is None else params.shape[1], inner)
    packed = [_DTYPES.index(x.dtype), save, *rule]
    addresses = (_address(x), _address(state), _address(params), _address(s), _address(last), _address(saved))
    if choice == "cuda":
        from .cuda import launch

        launch.neuron_forward(addresses, sizes, packed, numbers, x)
    else:
        driven = [] if drive is None else drive.numbers(x)
        threads, features = _threads_for(x.numel()), math.prod(shape[2:])
        watching = watch.current() if s.numel() else None
        counts = None
        if watching is not None:
            counts = watching.room(threads, steps, shape[1], features, drive is not None)
        call = (packed, numbers, threads, driven, [] if counts is None else counts.call, constant)
        binary = backend.kernels().neuron_forward(*addresses, *sizes, *call)
        if watching is not None and counts is not None:
            counts.binary = binary
            watching.leave_neurons(given, s, counts)
    return s, last, saved


def _integrate_backward(
    grad_s: Tensor | None,
    grad_state: Tensor | None,
    x: Tensor,
    state: Tensor | None,
    params: Tensor | None,
    saved: Tensor,
    inner: int,
    rule: list[int],
    numbers: list[float],
    save: int,
    want_params: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if backend.choose(saved.device).name == "reference":
        return _backward_reference(grad_s, grad_state, x, state, params, inner, rule, numbers)
    call = (inner, rule, numbers, save, want_params)
    return run_backward(grad_s, grad_state, x, state, params, saved, *call)[:3]


def run_backward(
    grad_s: Tensor | None,
    grad_state: Tensor | None,
    x: Tensor,
    state: Tensor | None,
    params: Tensor | None,
    saved: Tensor,
    inner: int,
    rule: list[int],
    numbers: list[float],
    save: int,
    want_params: bool,
    drive: Drive | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, of the initial state, of the parameters, and of the drive's scale and shift, by a kernel."""
    choice = backend.choose(saved.device).name
    shape, dtype = tuple(x.shape) if drive is None else drive.shape(x), x.dtype
    reads = reads_input(params, rule, save, drive)
    # The loss is often a sum: its gradient is one number expanded, and copying it out would cost a whole tensor.
    scalar = grad_s is not None and _is_stand_in(grad_s)
    grad_s = grad_s if grad_s is None or scalar else grad_s.contiguous()
    grad_state = None if grad_state is None else grad_state.contiguous()
    constant = choice == "cpu" and drive is None and is_constant(x)
    x = x.contiguous() if reads and not constant else x
    state = None if state is None else state.contiguous()
    params = None if params is None else params.contiguous()
    steps, neurons = shape[0], math.prod(shape[1:])
    n_params = 1 if params is None else params.shape[1]
    grad_x = memory.empty(x.shape, dtype, saved.device)
    grad_affine = None
    if drive is not None and (x.shape[3] % drive.window or x.shape[4] % drive.window):
        grad_x.zero_()  # what no window covers
    grad_state0 = memory.empty(
        (n_states(rule), *shape[1:]) if state is not None else (0,), state_dtype(dtype), saved.device
    )
    packed = [_DTYPES.index(dtype), save, *rule]
    sizes = (steps, neurons, n_params, inner)
    threads = _threads_for(x.numel())
    wanted = want_params and params is not None
    rows = threads if choice == "cpu" else 1
    grad_params = torch.zeros(
        (rows, 3, n_params) if wanted else (0, 3, n_params), dtype=torch.float64, device=saved.device
    )
    if drive is not None and drive.affine is not None:
        grad_affine = torch.zeros((rows, 2, x.shape[2]), dtype=torch.float64)
    before = (
        _address(x) if reads else 0,
        _address(state),
        _address(params),
        _address(saved),
        _address(grad_s),
        scalar,
        _address(grad_state),
    )
    outputs = (_address(grad_x), _address(grad_state0), _address(grad_params))
    if choice == "cuda":
        from .cuda import launch

        launch.neuron_backward((*before, *outputs), sizes, packed, numbers, x)
    else:
        driven = [] if drive is None else drive.numbers(x, grad_affine)
        backend.kernels().neuron_backward(*before, *outputs, *sizes, packed, numbers, threads, driven, constant)
    return (
        grad_x,
        grad_state0,
        grad_params.sum(0).to(state_dtype(dtype)) if wanted else grad_params.new_empty(0, dtype=state_dtype(dtype)),
        None if grad_affine is None else grad_affine.sum(0).to(state_dtype(dtype)),
    )


def _reference_arguments(
    x: Tensor, state: Tensor | None, params: Tensor | None, inner: int, rule: list[int], numbers: list[float]
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], reference.Rule]:
    from spiking.surrogate import ALL

    dtype = state_dtype(x.dtype)
    if params is None:
        beta, threshold, beta_syn = (torch.full((), value, dtype=dtype, device=x.device) for value in numbers[:3])
    else:
        features = x.shape[2:].numel()
        flat = (
            params.repeat_interleave(inner, dim=1)
            if params.shape[1] * inner == features and params.shape[1] > 1
            else params
        )
        shape = x.shape[2:] if flat.shape[1] == features and features > 1 else torch.Size(())
        beta, threshold, beta_syn = (row.reshape(shape) for row in flat.unbind(0))
    a, b = numbers[7], numbers[8]
    surrogate = _Curve(rule[_SURROGATE], a, b, {kind.kernel_id: kind for kind in reversed(ALL)})
    flags = dict(
        zip(("decay_input", "detach_reset", "reset_delay", "residual_reset", "normalize"), map(bool, rule[_TIE + 1 :]))
    )
    meaning = reference.Rule(
        surrogate,
        kind=KINDS[rule[_KIND]],
        reset=RESETS[rule[_RESET]],
        tie="gt" if rule[_TIE] else "ge",
        v_reset=numbers[3],
        v_leak=numbers[4],
        beta_adapt=numbers[5],
        adapt_scale=numbers[6],
        refractory=rule[_REFRACTORY],
        **flags,
    )
    if state is None:
        state = torch.zeros((meaning.n_states, *x.shape[1:]), dtype=dtype, device=x.device)
        state[0] = meaning.v_leak
    return state, (beta, threshold, beta_syn), meaning


class _Curve:
    """The surrogate that a kernel id and its two numbers stand for."""

    def __init__(self, kernel_id: int, a: float, b: float, by_id: dict[int, Any]) -> None:
        kind = by_id[kernel_id]
        self.grad = (kind(b) if kind.__name__ == "StraightThrough" else kind(a, b)).grad


def _integrate_reference(
    x: Tensor, state: Tensor | None, params: Tensor | None, inner: int, rule: list[int], numbers: list[float], save: int
) -> tuple[Tensor, Tensor, Tensor]:
    state, cells, meaning = _reference_arguments(x, state, params, inner, rule, numbers)
    s, last, _ = reference.run(x, state, *cells, meaning)
    shape, dtype = saved_like(tuple(x.shape), x.dtype, rule, save)
    return s, last, torch.zeros(shape, dtype=dtype, device=x.device)


def _backward_reference(
    grad_s: Tensor | None,
    grad_state: Tensor | None,
    x: Tensor,
    state: Tensor | None,
    params: Tensor | None,
    inner: int,
    rule: list[int],
    numbers: list[float],
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = state_dtype(x.dtype)
    given = state is not None
    leaves = [t.detach().requires_grad_() for t in (x, state, params) if t is not None]
    x_leaf = leaves[0]
    params_leaf = leaves[-1] if params is not None else None
    with torch.enable_grad():
        start, cells, meaning = _reference_arguments(
            x_leaf, leaves[1] if given else None, params_leaf, inner, rule, numbers
        )
        s, last, _ = reference.run(x_leaf, start, *cells, meaning)
        pairs = [
            (out, grad) for out, grad in ((s, grad_s), (last, grad_state)) if grad is not None and out.requires_grad
        ]
    grads = (
        torch.autograd.grad([o for o, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)
        if pairs
        else [None] * len(leaves)
    )
    full = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads)]
    nothing = torch.empty(0, dtype=dtype, device=x.device)
    return full[0], full[1] if given else nothing, full[-1] if params is not None else nothing


for key in ("CPU", "CUDA"):
    _library.impl("integrate", _integrate, key)
    _library.impl("integrate_backward", _integrate_backward, key)


# --- fake --------------------------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("spiking::integrate")
def _integrate_fake(
    x: Tensor, state: Tensor | None, params: Tensor | None, inner: int, rule: list[int], numbers: list[float], save: int
) -> tuple[Tensor, Tensor, Tensor]:
    shape, dtype = saved_like(tuple(x.shape), x.dtype, rule, save)
    last = x.new_empty((n_states(rule), *x.shape[1:]), dtype=state_dtype(x.dtype))
    return x.new_empty(x.shape), last, x.new_empty(shape, dtype=dtype)


@torch.library.register_fake("spiking::integrate_backward")
def _integrate_backward_fake(
    grad_s: Tensor | None,
    grad_state: Tensor | None,
    x: Tensor,
    state: Tensor | None,
    params: Tensor | None,
    saved: Tensor,
    inner: int,
    rule: list[int],
    numbers: list[float],
    save: int,
    want_params: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = state_dtype(x.dtype)
    wanted = want_params and params is not None
    return (
        x.new_empty(x.shape),
        x.new_empty((n_states(rule), *x.shape[1:]) if state is not None else (0,), dtype=dtype),
        x.new_empty((3, params.shape[1]) if wanted and params is not None else (0,), dtype=dtype),
    )


# --- autograd ----------------------------------------------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, state, params, ctx.inner, ctx.rule, ctx.numbers, ctx.save = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(kept_input(x, params, ctx.rule, ctx.save), state, params, output[2])


def kept_input(x: Tensor, params: Tensor | None, rule: list[int], save: int, drive: Drive | None = None) -> Tensor:
    """x itself where the backward reads it; elsewhere a view of one number, which keeps shape and dtype but no memory."""
    if reads_input(params, rule, save, drive) or x.numel() == 0 or backend.choose(x.device).name == "reference":
        return x
    return x.new_empty(1).expand(x.shape)


def _backward(ctx: Any, grad_s: Tensor | None, grad_state: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    x, state, params, saved = ctx.saved_tensors
    if grad_s is None and grad_state is None:
        return (None,) * 7
    grad_x, grad_state0, grad_params = torch.ops.spiking.integrate_backward(
        grad_s, grad_state, x, state, params, saved, ctx.inner, ctx.rule, ctx.numbers, ctx.save, ctx.needs_input_grad[2]
    )
    return (
        grad_x if ctx.needs_input_grad[0] else None,
        grad_state0 if state is not None and ctx.needs_input_grad[1] else None,
        grad_params if params is not None and ctx.needs_input_grad[2] else None,
        None,
        None,
        None,
        None,
    )


torch.library.register_autograd("spiking::integrate", _backward, setup_context=_setup_context)

integrate = torch.ops.spiking.integrate
