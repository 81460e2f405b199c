"""torch.library registration of `spiking::event_conv_max`, an event-driven convolution and the maximum pooling after it in one pass.

`event_conv_max(x, weight, bias, masks, ones, stride, padding, groups, window)` -> (pooled, places): the largest of each window of that
convolution, whose full output is never in memory, and the place in its window of the first that large. `masks` and `ones` are as in
event_conv_ops.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as tf

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
from .event_linear_ops import _compiled
from .ops import _library as library

__all__ = ["event_conv_max"]

library.define(
    f"event_conv_max(Tensor x, Tensor weight, Tensor? bias, Tensor masks, bool ones, {CALL}, int window) -> (Tensor, Tensor)"
)
library.define(
    "event_conv_max_backward(Tensor grad_pooled, Tensor? x, Tensor weight, Tensor masks, Tensor places, bool ones, "
    f"SymInt[] x_shape, bool x_last, {CALL}, int window, bool[] mask) -> (Tensor, Tensor, Tensor)"
)


# --- kernels ----------------------------------------------------------------------------------------------------------


def _event_conv_max(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    masks: Tensor,
    ones: bool,
    stride: Any,
    padding: Any,
    groups: int,
    window: int,
) -> tuple[Tensor, Tensor]:
    g = geometry(x.shape, weight, stride, padding, groups)
    module = _module_for(x.dtype, weight, x.device, g)
    blocks = None if module is None else _blocks(module, weight, g)
    if blocks is None:
        pooled = tf.max_pool2d(_dense(x, weight, bias, stride, padding, groups), window)
        return _in_order(pooled, is_last(x)), x.new_empty(0, dtype=torch.uint8)
    last = is_last(x)
    x = _in_order(x, last)
    flags = _flags(last, last, ones, x.dtype, window)
    room = _scratch(module, g, flags)
    high, wide = g.out_height // window, g.out_width // window
    pooled = _empty((g.images, g.outputs, high, wide), x.dtype, x.device, last)
    places = torch.empty((g.images, g.groups, high, wide, g.outputs // g.groups), dtype=torch.uint8)
    bias = None if bias is None else bias.contiguous()
    outputs = [0, pooled.data_ptr(), 0, places.data_ptr()]
    to_bias = 0 if bias is None else bias.data_ptr()
    module.conv_forward(g, flags, _spikes(x, masks, room), blocks.data_ptr(), to_bias, outputs)
    return pooled, places


def _event_conv_max_backward(
    grad_pooled: Tensor,
    x: Tensor | None,
    weight: Tensor,
    masks: Tensor,
    places: Tensor,
    ones: bool,
    x_shape: Any,
    x_last: bool,
    stride: Any,
    padding: Any,
    groups: int,
    window: int,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    g = geometry(x_shape, weight, stride, padding, groups)
    nothing = grad_pooled.new_empty(0)
    grad_bias = grad_pooled.sum((0, 2, 3)) if mask[2] else nothing
    if places.numel() == 0 or not is_finite(
        grad_bias if mask[2] else grad_pooled
    ):  # torch's convolution ran, or is right alone
        given = (_unpacked(masks, g, weight) if x is None else x).detach().requires_grad_()
        leaf = weight.detach().requires_grad_()
        with torch.enable_grad():
            pooled = tf.max_pool2d(tf.conv2d(given, leaf, None, stride, padding, 1, groups), window)
        grad_x, grad_weight = torch.autograd.grad(pooled, [given, leaf], grad_pooled)
        return _in_order(grad_x, x_last) if mask[0] else nothing, grad_weight if mask[1] else nothing, grad_bias
    grads = (None, _in_order(grad_pooled, x_last), None, places)
    call = (weight, x_last, x_last, grads, mask[0], mask[1], window)
    found = _adjoint(_compiled(), g, x, Spikes(masks, ones, 0), *call)
    return nothing if found[0] is None else found[0], nothing if found[1] is None else found[1], grad_bias


for key in ("CPU", "CUDA"):
    library.impl("event_conv_max", _event_conv_max, key)
    library.impl("event_conv_max_backward", _event_conv_max_backward, key)


# --- fake -------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("spiking::event_conv_max")
def _event_conv_max_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    masks: Tensor,
    ones: bool,
    stride: Any,
    padding: Any,
    groups: int,
    window: int,
) -> tuple[Tensor, Tensor]:
    n, c, high, wide = _y_shape(x.shape, weight, stride, padding)
    places = (n, groups, high // window, wide // window, c // groups)
    return _like(x, (n, c, high // window, wide // window)), x.new_empty(places, dtype=torch.uint8)


@torch.library.register_fake("spiking::event_conv_max_backward")
def _event_conv_max_backward_fake(
    grad_pooled: Tensor,
    x: Tensor | None,
    weight: Tensor,
    masks: Tensor,
    places: Tensor,
    ones: bool,
    x_shape: Any,
    x_last: bool,
    stride: Any,
    padding: Any,
    groups: int,
    window: int,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight = _grads_fake(grad_pooled, weight, x_shape, x_last, mask)
    return grad_x, grad_weight, grad_pooled.new_empty((weight.shape[0],) if mask[2] else (0,))


# --- autograd ---------------------------------------------------------------------------------------------------------


def _setup_conv_max(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, masks, ctx.ones, ctx.stride, ctx.padding, ctx.groups, ctx.window = inputs
    ctx.mark_non_differentiable(output[1])
    _keep(ctx, x, weight, masks, output[1])


def _conv_max_backward(ctx: Any, grad_pooled: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    _refuse_second_derivatives("event_conv_max")
    x, weight, masks, places = ctx.saved_tensors
    mask = list(ctx.needs_input_grad[:3])
    call = (ctx.ones, ctx.x_shape, ctx.x_last, ctx.stride, ctx.padding, ctx.groups, ctx.window, mask)
    grads = torch.ops.spiking.event_conv_max_backward(grad_pooled, x, weight, masks, places, *call)
    return *(grad if wanted else None for grad, wanted in zip(grads, mask)), *(None,) * 6


torch.library.register_autograd("spiking::event_conv_max", _conv_max_backward, setup_context=_setup_conv_max)

event_conv_max = torch.ops.spiking.event_conv_max
