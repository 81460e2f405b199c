"""torch.library registration of `spiking::event_conv2d`, a convolution from the non-zeros of its input; the choice between it and torch's.

`event_conv2d(x, weight, bias, masks, ones, stride, padding, groups, always)` -> y: x [N, C, H, W], contiguous or channels last, and y in
the same order. `masks` are the spikes of x as `scan` finds them (None: not looked for yet), `ones` says that each is exactly 1, and without
`always` the cost model may still take torch's convolution. The weight gradient touches active inputs only; the input gradient is dense.

`event_conv_pool(x, weight, masks, ones, stride, padding, groups, window)` -> (pooled, moments): what `pool_moments` gives of that
convolution, whose full output is never in memory; the backward computes it again, picture by picture.

`event_conv_max(x, weight, bias, masks, ones, stride, padding, groups, window)` -> (pooled, places): the largest of each window of that
convolution, whose full output is never in memory either, and the place in its window of the first that large.

Weights are read in blocks (cpu/event_conv_api.h), which are kept and renewed as the panels of a linear layer are (event_linear_ops.py).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as tf

from spiking.errors import SpikingError

from . import backend, cost, driven, memory
from .event_linear_ops import _compiled, _fits, _keeps, _known, _learns, _panels_of, _plain
from .ops import _DTYPES as _ORDER
from .ops import _library as library
from .ops import state_dtype
from .pool_ops import pool_moments

__all__ = [
    "at_hand",
    "averaged",
    "choice",
    "conv2d",
    "event_conv2d",
    "event_conv_max",
    "event_conv_pool",
    "has_kernel",
    "scan",
]

_DTYPES = {dtype: code for code, dtype in enumerate(_ORDER)}
_NO_LIMIT = 1 << 62
_CPU = torch.device("cpu")
_MOST_PLANS = 64  # of one weight: networks see few shapes
_CALLS = 8  # as in event_linear_ops.py
_LARGEST = (1 << 31) - 64  # numbers of one picture: their places are 32-bit numbers
_TEAM_BYTES = 64 << 20  # of private weight gradients, over all threads

_CALL = "int[] stride, int[] padding, int groups"
library.define(
    f"event_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? masks, bool ones, {_CALL}, bool always) -> Tensor"
)
library.define(
    "event_conv2d_backward(Tensor grad_y, Tensor? x, Tensor weight, Tensor? masks, bool ones, SymInt[] x_shape, bool x_last, "
    f"{_CALL}, bool[] mask) -> (Tensor, Tensor, Tensor)"
)
library.define(
    f"event_conv_pool(Tensor x, Tensor weight, Tensor masks, bool ones, {_CALL}, int window) -> (Tensor, Tensor)"
)
library.define(
    "event_conv_pool_backward(Tensor grad_pooled, Tensor grad_moments, Tensor? x, Tensor weight, Tensor masks, bool ones, "
    f"SymInt[] x_shape, bool x_last, {_CALL}, int window, bool[] mask) -> (Tensor, Tensor)"
)
library.define(
    f"event_conv_max(Tensor x, Tensor weight, Tensor? bias, Tensor masks, bool ones, {_CALL}, int window) -> (Tensor, Tensor)"
)
library.define(
    "event_conv_max_backward(Tensor grad_pooled, Tensor? x, Tensor weight, Tensor masks, Tensor places, bool ones, "
    f"SymInt[] x_shape, bool x_last, {_CALL}, int window, bool[] mask) -> (Tensor, Tensor, Tensor)"
)


# --- geometry -----------------------------------------------------------------------------------------------------------


class Geometry(NamedTuple):
    """The sizes of a call, in the order of ConvShape (cpu/event_conv_api.h)."""

    images: int
    inputs: int
    height: int
    width: int
    outputs: int
    out_height: int
    out_width: int
    kernel_y: int
    kernel_x: int
    stride_y: int
    stride_x: int
    pad_y: int
    pad_x: int
    groups: int

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.images, self.inputs, self.height, self.width

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.images, self.outputs, self.out_height, self.out_width


@lru_cache(maxsize=4096)
def _geometry(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    groups: int,
) -> Geometry:
    n, c, h, w = x_shape
    o, _, ky, kx = weight_shape
    (sy, sx), (py, px) = stride, padding
    high, wide = (h + 2 * py - ky) // sy + 1, (w + 2 * px - kx) // sx + 1
    return Geometry(n, c, h, w, o, high, wide, ky, kx, sy, sx, py, px, groups)


def has_kernel(dtype: torch.dtype) -> bool:
    """Whether convolutions in a dtype can be event-driven."""
    return dtype in _DTYPES


def geometry(x_shape: Any, weight: Tensor, stride: Any, padding: Any, groups: int) -> Geometry:
    return _geometry(tuple(x_shape), tuple(weight.shape), tuple(stride), tuple(padding), groups)


def is_last(x: Tensor) -> bool:
    """Whether channels are neighbours in memory, and planes are not."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _in_order(x: Tensor, last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _empty(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, last: bool) -> Tensor:
    if not last:
        return memory.empty(shape, dtype, device)
    n, c, h, w = shape
    return memory.empty((n, h, w, c), dtype, device).permute(0, 3, 1, 2)


# --- kernels ------------------------------------------------------------------------------------------------------------


class Spikes(NamedTuple):
    """What `scan` found: the masks, whether each spike is exactly 1, and how many there are."""

    masks: Tensor  # [images, groups, height, width, chunks of 32 channels]
    ones: bool
    n: int


def _module_for(dtype: torch.dtype, weight: Tensor, device: torch.device, g: Geometry) -> Any:
    """The compiled module where it can compute this call, else None."""
    if device.type != "cpu" or not weight.is_cpu or dtype not in _DTYPES or weight.dtype != dtype:
        return None
    return _compiled() if _within(g) else None


@lru_cache(maxsize=4096)
def _within(g: Geometry) -> bool:
    if min(g) < 0 or min(*g.x_shape, *g.y_shape) == 0:
        return False
    pixels = max(g.height + 2 * g.pad_y, g.out_height) * max(g.width + 2 * g.pad_x, g.out_width)
    return pixels * max(g.inputs // g.groups, g.kernel_y, g.kernel_x) <= _LARGEST


def _flags(x_last: bool, y_last: bool, ones: bool, dtype: torch.dtype, window: int = 0, teams: int = 1) -> list[int]:
    return [x_last, y_last, ones, _DTYPES[dtype], window, backend.threads(), teams]


def _scratch(module: Any, g: Geometry, flags: list[int], backward: bool = False, grad_x: bool = False) -> Tensor:
    n_bytes = module.conv_scratch(g, flags, backward, grad_x) * backend.threads()
    return memory.empty((n_bytes // 8,), torch.float64, torch.device("cpu"))


def scan(module: Any, x: Tensor, g: Geometry, limit: int = _NO_LIMIT) -> Spikes | None:
    """The spikes of x [N, C, H, W], which lies in memory without gaps; None for more than `limit`."""
    last = is_last(x)
    shape = (g.images, g.groups, g.height, g.width, -(-g.inputs // (32 * g.groups)))
    masks = memory.empty(shape, torch.float32, x.device).view(torch.int32)
    flags = _flags(last, last, False, x.dtype)
    row = 0 if last or shape[-1] == 1 else -(-g.height * g.width // 16) * 8  # masks of a chunk of channels
    room = torch.empty((flags[5] * row,), dtype=torch.float64)
    found = module.conv_count(g, flags, _spikes(x, masks, room), limit)
    return None if found < 0 else Spikes(masks, bool(found & 1), found // 2)


def _spikes(x: Tensor | None, masks: Tensor, room: Tensor) -> list[int]:
    return [0 if x is None else x.data_ptr(), masks.data_ptr(), room.data_ptr()]


def _blocks(module: Any, weight: Tensor, g: Geometry) -> Tensor | None:
    """A weight in blocks; None where it holds infinity or NaN, which reach a result even through zeros."""
    return _blocks_of(module, _panels_of(module, weight, (g.stride_x, g.groups)), weight, g)


def _blocks_of(module: Any, entry: Any, weight: Tensor, g: Geometry) -> Tensor | None:
    if entry.panels is None and entry.finite:
        blocks = memory.empty((module.conv_items(g)[0],), state_dtype(weight.dtype), weight.device)
        plain = weight.contiguous()  # a copy has to live until it is read
        entry.finite = module.conv_pack(g, plain.data_ptr(), _DTYPES[weight.dtype], blocks.data_ptr(), 0)
        entry.panels = blocks
    return entry.panels if entry.finite else None


def _back_weights(module: Any, weight: Tensor, g: Geometry) -> Tensor:
    back = torch.empty((module.conv_items(g)[1],), dtype=state_dtype(weight.dtype))
    plain = weight.contiguous()
    module.conv_pack(g, plain.data_ptr(), _DTYPES[weight.dtype], 0, back.data_ptr())
    return back


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
    if entry.panels is None and limit != _NO_LIMIT:
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


def is_finite(x: Tensor) -> bool:
    """Whether x surely holds no infinity and no NaN, which reach a result even through zeros; one sum tells."""
    return bool(torch.isfinite(x.sum(dtype=state_dtype(x.dtype))))


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, groups: int) -> Tensor:
    """torch's convolution, in the order of x."""
    return _in_order(tf.conv2d(x, weight, bias, stride, padding, 1, groups), is_last(x))


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
        y = _at_once(module, x, weight, bias, g, _NO_LIMIT if mode == "always" else _limit(g, weight))
    else:
        last = is_last(x)
        y = _forward(module, _in_order(x, last), weight, bias, g, Spikes(masks, ones, 0), last)
    return _dense(x, weight, bias, stride, padding, groups) if y is None else y


def _adjoint(
    module: Any,
    g: Geometry,
    x: Tensor | None,
    spikes: Spikes,
    weight: Tensor,
    x_last: bool,
    y_last: bool,
    grads: tuple[Tensor | None, ...],
    want_x: bool,
    want_weight: bool,
    window: int = 0,
) -> tuple[Tensor | None, Tensor | None]:
    """dL/dx and dL/dW from `grads`: dL/dy, or dL/dpooled with dL/dmoments or places; None for the others of the four."""
    dtype = weight.dtype
    items, item = module.conv_items(g)[0], state_dtype(dtype).itemsize
    teams = max(1, min(backend.threads(), g.images, _TEAM_BYTES // (items * item)))
    flags = _flags(x_last, y_last, spikes.ones, dtype, window, teams)
    room = _scratch(module, g, flags, True, want_x)
    sums = torch.zeros((teams, items), dtype=state_dtype(dtype)) if want_weight else None
    grad_x = _empty(g.x_shape, dtype, weight.device, x_last) if want_x else None
    blocks = _blocks(module, weight, g) if grads[2] is not None else None
    back = _back_weights(module, weight, g) if want_x else None
    module.conv_backward(
        g,
        flags,
        _spikes(None if spikes.ones else x, spikes.masks, room),
        [0 if t is None else t.data_ptr() for t in (blocks, None, back)],
        [0 if t is None else t.data_ptr() for t in grads],
        [0 if t is None else t.data_ptr() for t in (sums, None, grad_x)],
    )
    if sums is None:
        return grad_x, None
    grad_weight = torch.empty(weight.shape, dtype=dtype)
    module.conv_unpack(g, sums.data_ptr(), teams, grad_weight.data_ptr(), _DTYPES[dtype])
    return grad_x, grad_weight


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
        limit = _NO_LIMIT if driven.mode() == "always" else _training_limit(g, weight)
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


def _unpacked(masks: Tensor, g: Geometry, weight: Tensor) -> Tensor:
    """The input that masks of ones stand for."""
    bits = (masks.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32)) & 1
    channels = bits.flatten(4)[..., : g.inputs // g.groups]
    return channels.permute(0, 1, 4, 2, 3).reshape(g.x_shape).to(weight.dtype)


for key in ("CPU", "CUDA"):
    library.impl("event_conv2d", _event_conv2d, key)
    library.impl("event_conv2d_backward", _event_conv2d_backward, key)
    library.impl("event_conv_pool", _event_conv_pool, key)
    library.impl("event_conv_pool_backward", _event_conv_pool_backward, key)
    library.impl("event_conv_max", _event_conv_max, key)
    library.impl("event_conv_max_backward", _event_conv_max_backward, key)


# --- fake ---------------------------------------------------------------------------------------------------------------


def _like(x: Tensor, shape: Any) -> Tensor:
    """An empty tensor in the order of x."""
    return x.new_empty(shape).contiguous(memory_format=torch.channels_last if is_last(x) else torch.contiguous_format)


def _y_shape(x_shape: Any, weight: Tensor, stride: Any, padding: Any) -> tuple[Any, Any, Any, Any]:
    high, wide = (
        (size + 2 * pad - kernel) // step + 1
        for size, pad, kernel, step in zip(x_shape[2:], padding, weight.shape[2:], stride)
    )
    return x_shape[0], weight.shape[0], high, wide


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


def _grads_fake(grad: Tensor, weight: Tensor, x_shape: Any, x_last: bool, mask: list[bool]) -> tuple[Tensor, Tensor]:
    order = torch.channels_last if x_last else torch.contiguous_format
    grad_x = grad.new_empty(x_shape).contiguous(memory_format=order) if mask[0] else grad.new_empty(0)
    return grad_x, grad.new_empty(weight.shape if mask[1] else (0,))


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


# --- autograd -----------------------------------------------------------------------------------------------------------


def _keep(ctx: Any, x: Tensor, weight: Tensor, masks: Tensor | None, *more: Tensor) -> None:
    ctx.x_shape, ctx.x_last = x.shape, is_last(x)
    packed = masks is not None and ctx.ones  # one bit for what would be kept in 32
    ctx.save_for_backward(x if not packed and ctx.needs_input_grad[1] else None, weight, masks, *more)


def _refuse_second_derivatives(where: str) -> None:
    if torch.is_grad_enabled():
        raise SpikingError(
            f"{where}: second derivatives were asked for; only first ones exist. "
            'Run the forward pass under spiking.event_driven("never").'
        )


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


torch.library.register_autograd("spiking::event_conv2d", _conv2d_backward, setup_context=_setup_conv2d)
torch.library.register_autograd("spiking::event_conv_pool", _conv_pool_backward, setup_context=_setup_conv_pool)
torch.library.register_autograd("spiking::event_conv_max", _conv_max_backward, setup_context=_setup_conv_max)


# --- calls --------------------------------------------------------------------------------------------------------------


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
    limit = _NO_LIMIT if mode == "always" else cost.most_spikes_conv2d(*plan.price, backend.threads(), _CALLS)
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
            return _sparse(module, x, weight, bias, g, _NO_LIMIT, stride, padding, groups)
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
    limit = _NO_LIMIT
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


conv_of_spikes = torch.ops.spiking.event_conv2d
event_conv_pool = torch.ops.spiking.event_conv_pool
event_conv_max = torch.ops.spiking.event_conv_max
