"""torch.library registration of `spiking::event_conv_pool`, an event-driven convolution and the average pooling after it in one pass.

`event_conv_pool(x, weight, masks, ones, stride, padding, groups, window)` -> (pooled, moments): what `pool_moments` gives of that
convolution, whose full output is never in memory; the backward computes it again, picture by picture. `masks` and `ones` are as in
event_conv_ops.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backend
from .event_conv_kernels import (
    CALL,
    Spikes,
    _adjoint,
    _blocks,
    _dense,
    _empty,
    _flags,
    _grads_fake,
    _in_order,
    _keep,
    _like,
    _module_for,
    _refuse_second_derivatives,
    _scratch,
    _spikes,
    _unpacked,
    _y_shape,
    geometry,
    is_finite,
    is_last,
)
from .ops import _library as library
from .pool_ops import pool_moments

__all__ = ["event_conv_pool"]

library.define(
    f"event_conv_pool(Tensor x, Tensor weight, Tensor masks, bool ones, {CALL}, int window) -> (Tensor, Tensor)"
)
library.define(
    "event_conv_pool_backward(Tensor grad_pooled, Tensor grad_moments, Tensor? x, Tensor weight, Tensor masks, bool ones, "
    f"SymInt[] x_shape, bool x_last, {CALL}, int window, bool[] mask) -> (Tensor, Tensor)"
)


# --- kernels ----------------------------------------------------------------------------------------------------------


def _event_conv_pool(
    x: Tensor, weight: Tensor, masks: Tensor, ones: bool, stride: Any, padding: Any, groups: int, window: int
) -> tuple[Tensor, Tensor]:
    g = geometry(x.shape, weight, stride, padding, groups)
    module = _module_for(x.dtype, weight, x.device, g)
    blocks = None if module is None else _blocks(module, weight, g)
    if blocks is None:
        return pool_moments(_dense(x, weight, None, stride, padding, groups), window)
    last = is_last(x)
    x = _in_order(x, last)
    flags = _flags(last, last, ones, x.dtype, window)
    room = _scratch(module, g, flags)
    shape = (g.images, g.outputs, g.out_height // window, g.out_width // window)
    pooled = _empty(shape, x.dtype, x.device, last)
    moments = torch.zeros((backend.threads(), 2, g.outputs), dtype=torch.float64)
    outputs = [0, pooled.data_ptr(), moments.data_ptr(), 0]
    module.conv_forward(g, flags, _spikes(x, masks, room), blocks.data_ptr(), 0, outputs)
    return pooled, moments.sum(0)


def _event_conv_pool_backward(
    grad_pooled: Tensor,
    grad_moments: Tensor,
    x: Tensor | None,
    weight: Tensor,
    masks: Tensor,
    ones: bool,
    x_shape: Any,
    x_last: bool,
    stride: Any,
    padding: Any,
    groups: int,
    window: int,
    mask: list[bool],
) -> tuple[Tensor, Tensor]:
    g = geometry(x_shape, weight, stride, padding, groups)
    module = _module_for(grad_pooled.dtype, weight, grad_pooled.device, g)
    nothing = grad_pooled.new_empty(0)
    finite = is_finite(grad_pooled) and is_finite(grad_moments)
    if module is None or not finite or _blocks(module, weight, g) is None:
        given = _unpacked(masks, g, weight) if x is None else x
        y = _dense(given, weight, None, stride, padding, groups)
        grad_y = torch.ops.spiking.pool_moments_backward(grad_pooled, grad_moments, y, window)
        call = (None, list(stride), list(padding), [1, 1], False, [0, 0], groups, [*mask, False])
        grads = torch.ops.aten.convolution_backward(grad_y, given, weight, *call)
        return _in_order(grads[0], x_last) if mask[0] else nothing, grads[1] if mask[1] else nothing
    grads = (None, _in_order(grad_pooled, x_last), grad_moments.contiguous(), None)
    spikes = Spikes(masks, ones, 0)
    found = _adjoint(module, g, x, spikes, weight, x_last, x_last, grads, mask[0], mask[1], window)
    return nothing if found[0] is None else found[0], nothing if found[1] is None else found[1]


for key in ("CPU", "CUDA"):
    library.impl("event_conv_pool", _event_conv_pool, key)
    library.impl("event_conv_pool_backward", _event_conv_pool_backward, key)


# --- fake -------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("spiking::event_conv_pool")
def _event_conv_pool_fake(
    x: Tensor, weight: Tensor, masks: Tensor, ones: bool, stride: Any, padding: Any, groups: int, window: int
) -> tuple[Tensor, Tensor]:
    n, c, high, wide = _y_shape(x.shape, weight, stride, padding)
    return _like(x, (n, c, high // window, wide // window)), x.new_empty((2, c), dtype=torch.float64)


@torch.library.register_fake("spiking::event_conv_pool_backward")
def _event_conv_pool_backward_fake(
    grad_pooled: Tensor,
    grad_moments: Tensor,
    x: Tensor | None,
    weight: Tensor,
    masks: Tensor,
    ones: bool,
    x_shape: Any,
    x_last: bool,
    stride: Any,
    padding: Any,
    groups: int,
    window: int,
    mask: list[bool],
) -> tuple[Tensor, Tensor]:
    return _grads_fake(grad_pooled, weight, x_shape, x_last, mask)


# --- autograd ---------------------------------------------------------------------------------------------------------


def _setup_conv_pool(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, masks, ctx.ones, ctx.stride, ctx.padding, ctx.groups, ctx.window = inputs
    _keep(ctx, x, weight, masks)


def _conv_pool_backward(ctx: Any, grad_pooled: Tensor, grad_moments: Tensor) -> tuple[Tensor | None, ...]:
    _refuse_second_derivatives("event_conv_pool")
    x, weight, masks = ctx.saved_tensors
    mask = list(ctx.needs_input_grad[:2])
    call = (ctx.ones, ctx.x_shape, ctx.x_last, ctx.stride, ctx.padding, ctx.groups, ctx.window, mask)
    grads = torch.ops.spiking.event_conv_pool_backward(grad_pooled, grad_moments, x, weight, masks, *call)
    return *(grad if wanted else None for grad, wanted in zip(grads, mask)), *(None,) * 6


torch.library.register_autograd("spiking::event_conv_pool", _conv_pool_backward, setup_context=_setup_conv_pool)

event_conv_pool = torch.ops.spiking.event_conv_pool
