"""What the ops of event-driven convolutions share: geometry, the spikes of an input, weights in blocks, gradients, and torch's convolution
where it alone is right.

Weights are read in blocks (cpu/event_conv_api.h), which are kept and renewed as the panels of a linear layer are (event_linear_ops.py).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as tf

from spiking.errors import SpikingError

from . import backend, memory
from .event_linear_ops import _compiled, _panels_of
from .ops import _DTYPES as _ORDER
from .ops import state_dtype

__all__ = ["CALL", "NO_LIMIT", "Geometry", "Spikes", "geometry", "has_kernel", "is_finite", "is_last", "scan"]

_DTYPES = {dtype: code for code, dtype in enumerate(_ORDER)}
NO_LIMIT = 1 << 62
_LARGEST = (1 << 31) - 64  # numbers of one picture: their places are 32-bit numbers
_TEAM_BYTES = 64 << 20  # of private weight gradients, over all threads
CALL = "int[] stride, int[] padding, int groups"


# --- geometry ---------------------------------------------------------------------------------------------------------


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


# --- kernels ----------------------------------------------------------------------------------------------------------


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


def scan(module: Any, x: Tensor, g: Geometry, limit: int = NO_LIMIT) -> Spikes | None:
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


# --- dense ------------------------------------------------------------------------------------------------------------


def is_finite(x: Tensor) -> bool:
    """Whether x surely holds no infinity and no NaN, which reach a result even through zeros; one sum tells."""
    return bool(torch.isfinite(x.sum(dtype=state_dtype(x.dtype))))


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, groups: int) -> Tensor:
    """torch's convolution, in the order of x."""
    return _in_order(tf.conv2d(x, weight, bias, stride, padding, 1, groups), is_last(x))


def _unpacked(masks: Tensor, g: Geometry, weight: Tensor) -> Tensor:
    """The input that masks of ones stand for."""
    bits = (masks.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32)) & 1
    channels = bits.flatten(4)[..., : g.inputs // g.groups]
    return channels.permute(0, 1, 4, 2, 3).reshape(g.x_shape).to(weight.dtype)


# --- fake -------------------------------------------------------------------------------------------------------------


def _like(x: Tensor, shape: Any) -> Tensor:
    """An empty tensor in the order of x."""
    return x.new_empty(shape).contiguous(memory_format=torch.channels_last if is_last(x) else torch.contiguous_format)


def _y_shape(x_shape: Any, weight: Tensor, stride: Any, padding: Any) -> tuple[Any, Any, Any, Any]:
    high, wide = (
        (size + 2 * pad - kernel) // step + 1
        for size, pad, kernel, step in zip(x_shape[2:], padding, weight.shape[2:], stride)
    )
    return x_shape[0], weight.shape[0], high, wide


def _grads_fake(grad: Tensor, weight: Tensor, x_shape: Any, x_last: bool, mask: list[bool]) -> tuple[Tensor, Tensor]:
    order = torch.channels_last if x_last else torch.contiguous_format
    grad_x = grad.new_empty(x_shape).contiguous(memory_format=order) if mask[0] else grad.new_empty(0)
    return grad_x, grad.new_empty(weight.shape if mask[1] else (0,))


# --- autograd ---------------------------------------------------------------------------------------------------------


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
