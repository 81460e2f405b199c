"""torch.library registration of `spiking::pool_integrate`: pooling and neurons in one pass over time, forward and backward.

`pool_integrate(x, affine, state, params, inner, rule, numbers, save, window, maximum)` -> (spikes, last state, saved): the neurons of
`integrate`, one for each window of x [T, B, C, H, W], driven by the window's average or maximum, times affine[0] plus affine[1] of its
channel ([2, C] in the state's dtype, or None). The pooled currents and their gradient are never in memory. Windows are square and side by
side; what they leave over at the right and at the bottom drives nobody.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as tf

from . import backend
from .ops import Drive, kept_input, n_states, run_backward, run_forward, saved_like, state_dtype
from .ops import _library as library

__all__ = ["pool_integrate"]

_NEURON = "int inner, int[] rule, float[] numbers, int save, int window, bool maximum"
library.define(
    f"pool_integrate(Tensor x, Tensor? affine, Tensor? state, Tensor? params, {_NEURON}) -> (Tensor, Tensor, Tensor)"
)
library.define(
    "pool_integrate_backward(Tensor? grad_s, Tensor? grad_state, Tensor x, Tensor? affine, Tensor? state, Tensor? params, Tensor saved, "
    f"{_NEURON}, bool want_params) -> (Tensor, Tensor, Tensor, Tensor)"
)


# --- kernels ------------------------------------------------------------------------------------------------------------


def _drives(x: Tensor) -> bool:
    return x.device.type == "cpu" and backend.choose(x.device).name == "cpu"


def _current(x: Tensor, affine: Tensor | None, window: int, maximum: bool) -> Tensor:
    """What drives the neurons, with plain torch."""
    images = x.flatten(0, 1)
    pooled = tf.max_pool2d(images, window) if maximum else tf.avg_pool2d(images, window)
    pooled = pooled.unflatten(0, x.shape[:2])
    if affine is None:
        return pooled
    scale, shift = (row[:, None, None] for row in affine)
    return (shift + pooled.to(affine.dtype) * scale).to(x.dtype)


def _pool_integrate(
    x: Tensor,
    affine: Tensor | None,
    state: Tensor | None,
    params: Tensor | None,
    inner: int,
    rule: list[int],
    numbers: list[float],
    save: int,
    window: int,
    maximum: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    call = (state, params, inner, rule, numbers, save)
    if not _drives(x):
        return torch.ops.spiking.integrate(_current(x, affine, window, maximum), *call)
    return run_forward(x, *call, Drive(window, maximum, None if affine is None else affine.contiguous()))


def _pool_integrate_backward(
    grad_s: Tensor | None,
    grad_state: Tensor | None,
    x: Tensor,
    affine: Tensor | None,
    state: Tensor | None,
    params: Tensor | None,
    saved: Tensor,
    inner: int,
    rule: list[int],
    numbers: list[float],
    save: int,
    window: int,
    maximum: bool,
    want_params: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = (inner, rule, numbers, save, want_params)
    nothing = saved.new_empty(0, dtype=state_dtype(x.dtype))
    if _drives(x):
        drive = Drive(window, maximum, None if affine is None else affine.contiguous())
        grad_x, grad_state0, grad_params, grad_affine = run_backward(
            grad_s, grad_state, x, state, params, saved, *call, drive
        )
        return grad_x, nothing if grad_affine is None else grad_affine, grad_state0, grad_params
    leaves = [t.detach().requires_grad_() for t in (x, affine) if t is not None]
    with torch.enable_grad():
        current = _current(leaves[0], leaves[1] if affine is not None else None, window, maximum)
    given = (grad_s, grad_state, current.detach(), state, params, saved)
    grad_current, grad_state0, grad_params = torch.ops.spiking.integrate_backward(*given, *call)
    grads = torch.autograd.grad(current, leaves, grad_current)
    return grads[0], grads[1] if affine is not None else nothing, grad_state0, grad_params


for key in ("CPU", "CUDA"):
    library.impl("pool_integrate", _pool_integrate, key)
    library.impl("pool_integrate_backward", _pool_integrate_backward, key)


# --- fake ---------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("spiking::pool_integrate")
def _pool_integrate_fake(
    x: Tensor,
    affine: Tensor | None,
    state: Tensor | None,
    params: Tensor | None,
    inner: int,
    rule: list[int],
    numbers: list[float],
    save: int,
    window: int,
    maximum: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (*x.shape[:3], x.shape[3] // window, x.shape[4] // window)
    kept, dtype = saved_like(shape, x.dtype, rule, save)
    last = x.new_empty((n_states(rule), *shape[1:]), dtype=state_dtype(x.dtype))
    return x.new_empty(shape), last, x.new_empty(kept, dtype=dtype)


@torch.library.register_fake("spiking::pool_integrate_backward")
def _pool_integrate_backward_fake(
    grad_s: Tensor | None,
    grad_state: Tensor | None,
    x: Tensor,
    affine: Tensor | None,
    state: Tensor | None,
    params: Tensor | None,
    saved: Tensor,
    inner: int,
    rule: list[int],
    numbers: list[float],
    save: int,
    window: int,
    maximum: bool,
    want_params: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = state_dtype(x.dtype)
    wanted = want_params and params is not None
    return (
        x.new_empty(x.shape),
        x.new_empty((0,) if affine is None else (2, x.shape[2]), dtype=dtype),
        x.new_empty((0,) if state is None else state.shape, dtype=dtype),
        x.new_empty((3, params.shape[1]) if wanted and params is not None else (0,), dtype=dtype),
    )


# --- autograd -----------------------------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, affine, state, params, ctx.inner, ctx.rule, ctx.numbers, ctx.save, ctx.window, ctx.maximum = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    kept = kept_input(x, params, ctx.rule, ctx.save, Drive(ctx.window, ctx.maximum, affine))
    ctx.save_for_backward(kept, affine, state, params, output[2])


def _backward(ctx: Any, grad_s: Tensor | None, grad_state: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    x, affine, state, params, saved = ctx.saved_tensors
    if grad_s is None and grad_state is None:
        return (None,) * 10
    call = (ctx.inner, ctx.rule, ctx.numbers, ctx.save, ctx.window, ctx.maximum, ctx.needs_input_grad[3])
    grads = torch.ops.spiking.pool_integrate_backward(grad_s, grad_state, x, affine, state, params, saved, *call)
    given = (x, affine, state, params)
    wanted = [grad if t is not None and need else None for grad, t, need in zip(grads, given, ctx.needs_input_grad)]
    return *wanted, *(None,) * 6


torch.library.register_autograd("spiking::pool_integrate", _backward, setup_context=_setup_context)

pool_integrate = torch.ops.spiking.pool_integrate
