"""torch.library registration of `spiking::event_conv2d`, a convolution from the non-zeros of its input; the choice between it and torch's.

`event_conv2d(x, weight, bias, masks, ones, stride, padding, groups, always)` -> y: x [N, C, H, W], contiguous or channels last, and y in
the same order. `masks` are the spikes of x as `scan` finds them (None: not looked for yet), `ones` says that each is exactly 1, and without
`always` the cost model may still take torch's convolution. The weight gradient touches active inputs only; the input gradient is dense.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as tf

from . import backend, cost, driven, memory
from .event_conv_kernels import (
    _DTYPES,
    CALL,
    NO_LIMIT,
    Geometry,
    Spikes,
    _adjoint,
    _blocks,
    _blocks_of,
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
    has_kernel,
    is_finite,
    is_last,
    scan,
)
from .event_conv_max_ops import event_conv_max
from .event_conv_pool_ops import event_conv_pool
from .event_linear_ops import _fits, _keeps, _known, _learns, _panels_of, _plain
from .ops import _library as library
from .ops import state_dtype

__all__ = [
    "at_hand",
    "averaged",
    "choice",
    "conv2d",
    "conv_of_spikes",
    "event_conv2d",
    "event_conv_max",
    "event_conv_pool",
    "geometry",
    "has_kernel",
    "is_finite",
    "scan",
    "spikes_for",
]

_CPU = torch.device("cpu")
_MOST_PLANS = 64  # of one weight: networks see few shapes
_CALLS = 8  # as in event_linear_ops.py

library.define(
    f"event_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? masks, bool ones, {CALL}, bool always) -> Tensor"
)
library.define(
    "event_conv2d_backward(Tensor grad_y, Tensor? x, Tensor weight, Tensor? masks, bool ones, SymInt[] x_shape, bool x_last, "
    f"{CALL}, bool[] mask) -> (Tensor, Tensor, Tensor)"
)


# --- kernels ----------------------------------------------------------------------------------------------------------


def _forward(
    module: Any, x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, spikes: Spikes, y_last: bool
) -> Tensor | None:
    """y from the spikes of x; None where only torch's convolution is right."""
    blocks = _blocks(module, weight, g)
    if blocks is None:
        return None
    flags = _flags(is_last(x), y_last, spikes.ones, x.dtype)
    room = _scratch(module, g, flags)
    y = _empty(g.y_shape, x.dtype, x.device, y_last)
    bias = None if bias is None else bias.to(blocks.dtype).contiguous()
    to_bias = 0 if bias is None else bias.data_ptr()
    outputs = [y.data_ptr(), 0, 0, 0]
    module.conv_forward(g, flags, _spikes(x, spikes.masks, room), blocks.data_ptr(), to_bias, outputs)
    return y


class _Plan(NamedTuple):
    """One call without gradients, prepared: what to run, the weights that it reads (None: it only counts, since the spikes have been too
    many so far), how y lies in memory, and what `cost` needs to know."""

    run: Any
    blocks: Tensor | None
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    weight_shape: torch.Size
    dtype: torch.dtype
    price: tuple[int, int, tuple[int, ...], int, int]

    def into(self) -> Tensor:
        """Memory for y."""
        if math.prod(self.shape) * self.dtype.itemsize < memory.SMALLEST:
            return torch.empty_strided(self.shape, self.strides, dtype=self.dtype)
        return memory.empty((math.prod(self.shape),), self.dtype, _CPU).as_strided(self.shape, self.strides)

    def summed(self, x: Tensor, bias: Tensor | None, limit: int) -> Tensor | None:
        """y from the spikes of x; None for more than `limit`, or where another thread has just changed the weight."""
        y = self.into()
        to_bias = 0 if bias is None else bias.data_ptr()
        return y if self.run(x.data_ptr(), limit, to_bias, y.data_ptr(), backend.threads()) >= 0 else None

    def is_busy(self, x: Tensor, limit: int) -> bool:
        """Whether x has more spikes than `limit`."""
        return self.run(x.data_ptr(), limit, 0, 0, backend.threads()) < 0


def _plan(module: Any, entry: Any, weight: Tensor, g: Geometry, last: bool, blocks: Tensor | None) -> _Plan:
    # From the mark, which was made before: what changes meanwhile is noticed at the next call.
    _, address, _, sample, _ = entry.mark or (0, 0, (), 0, None)
    looked_at = weight.numel() * weight.dtype.itemsize if entry.mark and blocks is not None else 0
    at = 0 if blocks is None else blocks.data_ptr()
    call = module.ConvPlan(g, last, _DTYPES[weight.dtype], at, address, looked_at, sample)
    c, h, w = g.y_shape[1:]
    strides = (h * w * c, 1, w * c, c) if last else (c * h * w, h * w, w, 1)
    plan = _Plan(call.run, blocks, g.y_shape, strides, weight.shape, weight.dtype, _price(g, weight))
    if len(entry.plans) >= _MOST_PLANS:
        entry.plans.clear()
    entry.plans[_key(g, last)] = plan
    return plan


def _key(g: Geometry, last: bool) -> tuple[Any, ...]:
    return g.x_shape, last, (g.stride_y, g.stride_x), (g.pad_y, g.pad_x), g.groups


def _at_once(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, limit: int) -> Tensor | None:
    """y without gradients, counted and summed in one go; None where torch's convolution is the better (or only right) choice."""
    if limit < 0:
        return None
    entry, last = _panels_of(module, weight, (g.stride_x, g.groups)), is_last(x)
    x = _in_order(x, last)
    plan = entry.plans.get(_key(g, last))
    if entry.panels is None and limit != NO_LIMIT:
        plan = _plan(module, entry, weight, g, last, None) if plan is None else plan
        if plan.is_busy(x, limit):
            return None
    if plan is None or plan.blocks is None:
        blocks = _blocks_of(module, entry, weight, g)
        if blocks is None:
            return None
        plan = _plan(module, entry, weight, g, last, blocks)
    bias = None if bias is None else bias.to(state_dtype(weight.dtype)).contiguous()
    return plan.summed(x, bias, limit)


def _work(g: Geometry, weight: Tensor, kind: str) -> cost.Work:
    return cost.Work.conv2d(*_price(g, weight), backend.threads(), kind)


def _limit(g: Geometry, weight: Tensor) -> int:
    """The most spikes at which a call without gradients wins."""
    # Whether blocks are at hand must not decide: the same call has to give the same bits each time.
    return cost.most_spikes_conv2d(*_price(g, weight), backend.threads(), _CALLS if _keeps(weight) else 1)


def _price(g: Geometry, weight: Tensor) -> tuple[int, int, tuple[int, ...], int, int]:
    pixels = g.images * g.height * g.width, g.images * g.out_height * g.out_width
    return *pixels, tuple(weight.shape), g.groups, weight.dtype.itemsize


def _training_limit(g: Geometry, weight: Tensor) -> int:
    work = _work(g, weight, "conv2d_training")
    return cost.most_spikes(work, cost.packing(work))


def choice(x: Tensor, weight: Tensor, stride: Any, padding: Any, groups: int) -> cost.Choice:
    """What the cost model says of a convolution without gradients, for x [N, C, H, W] as it is."""
    work = _work(geometry(x.shape, weight, stride, padding, groups), weight, "conv2d")
    return cost.choose(work, int(x.count_nonzero()), cost.packing(work) / (_CALLS if _keeps(weight) else 1))


def _event_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    masks: Tensor | None,
    ones: bool,
    stride: Any,
    padding: Any,
    groups: int,
    always: bool,
) -> Tensor:
    g = geometry(x.shape, weight, stride, padding, groups)
    mode = "always" if always else driven.mode()
    module = _module_for(x.dtype, weight, x.device, g) if mode != "never" else None
    if module is None:
        return _dense(x, weight, bias, stride, padding, groups)
    if masks is None:
        y = _at_once(module, x, weight, bias, g, NO_LIMIT if mode == "always" else _limit(g, weight))
    else:
        last = is_last(x)
        y = _forward(module, _in_order(x, last), weight, bias, g, Spikes(masks, ones, 0), last)
    return _dense(x, weight, bias, stride, padding, groups) if y is None else y


def _event_conv2d_backward(
    grad_y: Tensor,
    x: Tensor | None,
    weight: Tensor,
    masks: Tensor | None,
    ones: bool,
    x_shape: Any,
    x_last: bool,
    stride: Any,
    padding: Any,
    groups: int,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    g = geometry(x_shape, weight, stride, padding, groups)
    nothing = grad_y.new_empty(0)
    grad_bias = grad_y.sum((0, 2, 3)) if mask[2] else nothing
    module = _module_for(grad_y.dtype, weight, grad_y.device, g) if mask[1] else None
    spikes = Spikes(masks, ones, 0) if masks is not None else None
    if module is not None and spikes is None and driven.mode() != "never":
        assert x is not None  # masks without x are left by an event-driven forward pass only
        limit = NO_LIMIT if driven.mode() == "always" else _training_limit(g, weight)
        spikes = scan(module, x, g, limit) if limit >= 0 else None
    sparse = module is not None and spikes is not None and is_finite(grad_bias if mask[2] else grad_y)
    grad_x, grad_weight = nothing, nothing
    if mask[0] or (mask[1] and not sparse):
        if x is not None:
            given = x
        elif mask[1] and not sparse:
            given = _unpacked(masks, g, weight)  # type: ignore[arg-type]
        else:
            given = grad_y.new_empty(1).expand(g.x_shape)
        call = (
            None,
            list(stride),
            list(padding),
            [1, 1],
            False,
            [0, 0],
            groups,
            [mask[0], mask[1] and not sparse, False],
        )
        dense = torch.ops.aten.convolution_backward(grad_y, given, weight, *call)
        grad_x = nothing if dense[0] is None else _in_order(dense[0], x_last)
        grad_weight = nothing if dense[1] is None else dense[1].contiguous()
    if sparse:
        y_last = is_last(grad_y)
        grads = (_in_order(grad_y, y_last), None, None, None)
        found = _adjoint(module, g, x, spikes, weight, x_last, y_last, grads, False, True)[1]  # type: ignore[arg-type]
        grad_weight = nothing if found is None else found
    return grad_x, grad_weight, grad_bias


for key in ("CPU", "CUDA"):
    library.impl("event_conv2d", _event_conv2d, key)
    library.impl("event_conv2d_backward", _event_conv2d_backward, key)


# --- fake -------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("spiking::event_conv2d")
def _event_conv2d_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    masks: Tensor | None,
    ones: bool,
    stride: Any,
    padding: Any,
    groups: int,
    always: bool,
) -> Tensor:
    return _like(x, _y_shape(x.shape, weight, stride, padding))


@torch.library.register_fake("spiking::event_conv2d_backward")
def _event_conv2d_backward_fake(
    grad_y: Tensor,
    x: Tensor | None,
    weight: Tensor,
    masks: Tensor | None,
    ones: bool,
    x_shape: Any,
    x_last: bool,
    stride: Any,
    padding: Any,
    groups: int,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight = _grads_fake(grad_y, weight, x_shape, x_last, mask)
    return grad_x, grad_weight, grad_y.new_empty((weight.shape[0],) if mask[2] else (0,))


# --- autograd ---------------------------------------------------------------------------------------------------------


def _setup_conv2d(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, masks, ctx.ones, ctx.stride, ctx.padding, ctx.groups, _ = inputs
    _keep(ctx, x, weight, masks)


def _conv2d_backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    _refuse_second_derivatives("event_conv2d")
    x, weight, masks = ctx.saved_tensors
    mask = list(ctx.needs_input_grad[:3])
    call = (ctx.ones, ctx.x_shape, ctx.x_last, ctx.stride, ctx.padding, ctx.groups, mask)
    grads = torch.ops.spiking.event_conv2d_backward(grad_y, x, weight, masks, *call)
    return *(grad if wanted else None for grad, wanted in zip(grads, mask)), *(None,) * 6


torch.library.register_autograd("spiking::event_conv2d", _conv2d_backward, setup_context=_setup_conv2d)

conv_of_spikes = torch.ops.spiking.event_conv2d


# --- calls ------------------------------------------------------------------------------------------------------------


def at_hand(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, groups: int, always: bool
) -> Tensor | None:
    """The short way of `event_conv2d` (`always`) and `conv2d`, for x [N, C, H, W] or [T, B, C, H, W]: y where the call has a plan and no
    gradient is wanted; else None.

    A convolution of microseconds is worth as few questions as are enough. Nothing is refused here: what does not fit takes the long way.
    """
    if torch.compiler.is_compiling():
        return None
    known = _known.get(id(weight))
    if known is None or not known.plans or known.of() is not weight or not _plain(x):
        return None
    if x.layout is not torch.strided or not x.is_cpu:
        return None
    shape, last = x.shape, False
    if not x.is_contiguous():
        last = len(shape) == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if not last:
            return None
    images = (shape[0] * shape[1], *shape[2:]) if len(shape) == 5 else tuple(shape)
    try:
        plan = known.plans.get((images, last, stride, padding, groups))
    except TypeError:  # a list
        return None
    if (
        plan is None
        or x.dtype is not plan.dtype
        or weight.dtype is not plan.dtype
        or plan.dtype.itemsize < 4  # biases have to be widened
        or weight._version != known.mark[0]
        or weight.data_ptr() != known.mark[1]
        or weight.stride() != known.mark[2]
        or weight.shape != plan.weight_shape
        or (bias is not None and not _fits(bias, plan.weight_shape[0], plan.dtype))
        or _learns(x, weight, bias)
    ):
        return None
    mode = "always" if always else driven.mode()
    if mode == "never" or (not always and torch.is_autocast_enabled("cpu")):
        return None
    limit = NO_LIMIT if mode == "always" else cost.most_spikes_conv2d(*plan.price, backend.threads(), _CALLS)
    y = None
    if plan.blocks is not None and limit >= 0:
        y = plan.summed(x, bias, limit)
    elif limit >= 0 and not plan.is_busy(x, limit):
        return None
    if y is None:
        y = tf.conv2d(x.view(images), weight, bias, stride, padding, 1, groups)
    return y.view(*shape[:2], *y.shape[1:]) if len(shape) == 5 else y


def event_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], groups: int
) -> Tensor:
    """The convolution of x [N, C, H, W] from its non-zeros, whatever their number; see `functional.event_conv2d`."""
    x = _gapless(x)
    if not torch.compiler.is_compiling() and _plain(x):
        g = geometry(x.shape, weight, stride, padding, groups)
        module = _module_for(x.dtype, weight, x.device, g)
        if module is not None:
            return _sparse(module, x, weight, bias, g, NO_LIMIT, stride, padding, groups)
    return torch.ops.spiking.event_conv2d(x, weight, bias, None, False, stride, padding, groups, True)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], groups: int
) -> Tensor:
    """torch's convolution, or the event-driven one where the cost model predicts that it wins; `event_driven` says who decides."""
    if torch.compiler.is_compiling():
        return torch.ops.spiking.event_conv2d(_gapless(x), weight, bias, None, False, stride, padding, groups, False)
    found = _chosen(x, weight, bias, stride, padding, groups)
    if found is None:
        return tf.conv2d(x, weight, bias, stride, padding, 1, groups)
    return _sparse(found[0], x, weight, bias, *found[1:], stride, padding, groups)


def averaged(weight: Tensor, window: int) -> Tensor:
    """The weight [out, in, k + window - 1, …] of the convolution that, with stride `window`, gives the averages over windows of another's.

    An output pixel of that one meets k² products, window² times; here it is (k + window - 1)² for the whole window.
    """
    edge = window - 1
    return tf.avg_pool2d(tf.pad(weight, (edge, edge, edge, edge)), window, 1)


def spikes_for(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], groups: int
) -> tuple[Any, Tensor, Geometry, Spikes] | None:
    """(module, x in memory without gaps, geometry, spikes) where the event-driven convolution is to run, else None."""
    found = _chosen(x, weight, bias, stride, padding, groups)
    if found is None:
        return None
    module, g, limit = found
    x = _gapless(x)
    spikes = scan(module, x, g, limit)
    return None if spikes is None else (module, x, g, spikes)


def _chosen(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], groups: int
) -> tuple[Any, Geometry, int] | None:
    """(module, geometry, the most spikes) where the event-driven convolution may run, else None."""
    mode = driven.mode()
    if mode == "never" or not _plain(x) or torch.is_autocast_enabled(x.device.type):
        return None
    g = geometry(x.shape, weight, stride, padding, groups)
    module = _module_for(x.dtype, weight, x.device, g)
    if module is None:
        return None
    limit = NO_LIMIT
    if mode == "auto":
        learns = _learns(x, weight, bias)
        if learns and not weight.requires_grad:
            return None
        limit = _training_limit(g, weight) if learns else _limit(g, weight)
    return None if limit < 0 else (module, g, limit)


def _sparse(
    module: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    g: Geometry,
    limit: int,
    stride: list[int],
    padding: list[int],
    groups: int,
) -> Tensor:
    """From the spikes of x, if there are at most `limit`."""
    if not _learns(x, weight, bias):
        y = _at_once(module, x, weight, bias, g, limit)
        return tf.conv2d(x, weight, bias, stride, padding, 1, groups) if y is None else y
    x = _gapless(x)
    spikes = scan(module, x, g, limit)
    if spikes is None:
        return tf.conv2d(x, weight, bias, stride, padding, 1, groups)
    return torch.ops.spiking.event_conv2d(x, weight, bias, spikes.masks, spikes.ones, stride, padding, groups, True)


def _gapless(x: Tensor) -> Tensor:
    return _in_order(x, is_last(x))
