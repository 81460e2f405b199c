"""torch.library registration of `spiking::event_conv2d`, a convolution from the non-zeros of its input, and the choice between it and torch's.

`event_conv2d(x, weight, bias, spikes, ones, stride, padding, groups, always)` -> y: x [N, C, H, W], contiguous or channels last, and y in the
same order. `spikes` are what `scan` found in x ([] for: not scanned yet), `ones` says that each is exactly 1, and without `always` the cost
model may still take torch's convolution. The weight gradient touches active inputs only; the input gradient is dense.

`event_conv_pool(x, weight, spikes, ones, stride, padding, groups, window)` -> (pooled, moments): what `pool_moments` gives of that
convolution, whose full output is never in memory; the backward computes it again, picture by picture.

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
from .event_linear_ops import _learns, _panels_of, _plain
from .ops import _DTYPES as _ALL_DTYPES
from .ops import _library as library
from .ops import state_dtype

__all__ = ["Geometry", "conv2d", "event_conv2d", "event_conv_pool", "scan"]

_DTYPES = {dtype: code for code, dtype in enumerate(_ALL_DTYPES)}
_NO_LIMIT = 1 << 62
_LARGEST = (1 << 31) - 64  # numbers of one picture: their places are 32-bit numbers
_TEAM_BYTES = 64 << 20  # of private weight gradients, over all threads

_CALL = "int[] stride, int[] padding, int groups"
library.define(
    f"event_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor[] spikes, bool ones, {_CALL}, bool always) -> Tensor"
)
library.define(
    "event_conv2d_backward(Tensor grad_y, Tensor? x, Tensor weight, Tensor? bits, SymInt[] x_shape, bool x_last, "
    f"{_CALL}, bool[] mask) -> (Tensor, Tensor, Tensor)"
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
    def pictures(self) -> int:
        return self.images * self.groups

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.images, self.outputs, self.out_height, self.out_width


def geometry(
    x_shape: Any, weight_shape: Any, stride: tuple[int, int], padding: tuple[int, int], groups: int
) -> Geometry:
    n, c, h, w = x_shape
    o, _, ky, kx = weight_shape
    (sy, sx), (py, px) = stride, padding
    return Geometry(
        n, c, h, w, o, (h + 2 * py - ky) // sy + 1, (w + 2 * px - kx) // sx + 1, ky, kx, sy, sx, py, px, groups
    )


def _is_last(x: Tensor) -> bool:
    """Whether channels are neighbours in memory (and planes are not)."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _in_order(x: Tensor, last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, last: bool) -> Tensor:
    if not last:
        return memory.empty(shape, dtype, device)
    n, c, h, w = shape
    return memory.empty((n, h, w, c), dtype, device).permute(0, 3, 1, 2)


# --- kernels ------------------------------------------------------------------------------------------------------------


class Spikes(NamedTuple):
    """What `scan` found: the masks, whether each spike is exactly 1, and how many there are."""

    masks: Tensor  # [images, groups, height, width, chunks of 32 channels]
    ones: bool
    count: int


def _compiled_for(x: Tensor, weight: Tensor, g: Geometry) -> Any:
    """The compiled module where it can compute this call, else None."""
    dtype = x.dtype
    if dtype not in _DTYPES or weight.dtype != dtype or x.device.type != "cpu" or weight.device.type != "cpu":
        return None
    if min(g.y_shape) <= 0 or min(g.inputs, g.height, g.width) <= 0:
        return None
    deep = max(g.inputs // g.groups, g.kernel_y, g.kernel_x, 1)
    if max(g.height + 2 * g.pad_y, g.out_height) * max(g.width + 2 * g.pad_x, g.out_width) * deep > _LARGEST:
        return None
    return backend.compiled() if backend.choose(x.device).name == "cpu" else None


def _scratch(module: Any, g: Geometry, flags: list[int], backward: bool = False, grad_x: bool = False) -> Tensor:
    n_bytes = module.conv_scratch(list(g), flags, backward, grad_x) * backend.threads()
    return memory.empty((-(-n_bytes // 8),), torch.float64, torch.device("cpu"))


def _flags(
    x_last: bool, y_last: bool, ones: bool, dtype: torch.dtype, window: int = 0, teams: int = 1
) -> list[int]:
    return [x_last, y_last, ones, _DTYPES[dtype], window, backend.threads(), teams]


def scan(module: Any, x: Tensor, g: Geometry, limit: int = _NO_LIMIT) -> Spikes | None:
    """The spikes of x [N, C, H, W] in memory order; None for more than `limit`."""
    last = _is_last(x)
    masks = torch.empty((g.images, g.groups, g.height, g.width, -(-g.inputs // (32 * g.groups))), dtype=torch.int32)
    flags = _flags(last, last, False, x.dtype)
    room = _scratch(module, g, flags)
    found = module.conv_count(list(g), flags, [x.data_ptr(), masks.data_ptr(), room.data_ptr()], limit)
    return None if found < 0 else Spikes(masks, bool(found & 1), found // 2)
