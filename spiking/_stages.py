"""Layers of a network folded into the stages that cpu/engine.cpp runs: link -> max pooling -> scale and shift -> neuron.

Everything that is linear before a neuron becomes one link: batch normalisation scales its weights, average pooling widens its kernel,
and its bias is what the layers make of silence. `Group` collects the layers of one stage, `fold` turns it into arrays. Rows of images lie
channels last with channels padded, so that what one spike reaches is contiguous; `Layout` says where each value lies.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .fold import gain_and_shift
from .functional import check_beta, check_threshold
from .layer import (
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    MaxPool2d,
    TDBatchNorm1d,
    TDBatchNorm2d,
)
from .neuron import IF, LIF, AdaptiveLIF, CuBaLIF, Neuron, ParametricLIF, Recurrent

LANES = 16  # values in a vector of gather.h
PANEL = 64  # outputs in a panel of gather.h
CELLS = 64  # neurons in a word of engine.cpp
NOWHERE = 2**32 - 1
ENTRY = np.dtype([("weight", np.uint32), ("target", np.uint32), ("rows", np.uint32), ("length", np.uint32)])

NORMS = (BatchNorm1d, BatchNorm2d, TDBatchNorm1d, TDBatchNorm2d)
NEURONS = (LIF, IF, ParametricLIF, CuBaLIF, AdaptiveLIF)


def role_of(layer: nn.Module) -> tuple[str, str]:
    """What a layer is to the engine, and "" or the reason why it is "plain": run as it stands."""
    for role, kinds in (
        ("gone", (Dropout, nn.Dropout, nn.Identity)),
        ("flatten", (Flatten,)),
        ("weight", (Linear, nn.Linear, Conv2d)),
        ("norm", NORMS),
        ("avg", (AvgPool2d,)),
        ("max", (MaxPool2d,)),
        ("neuron", (*NEURONS, Recurrent)),
    ):
        if isinstance(layer, kinds):
            own = type(layer).forward not in {kind.forward for kind in kinds}
            reason = f"{type(layer).__name__} has a forward of its own" if own else _obstacle(layer, role)
            return ("plain", reason) if reason else (role, "")
    return "plain", f"the engine does not know {type(layer).__name__}"


def _obstacle(layer: Any, role: str) -> str:
    """Why a layer of a known kind cannot be folded; "" where it can."""
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has forward hooks"
    if "parametrizations" in layer._modules:
        return "its weights are computed (parametrizations)"
    if role == "weight" and isinstance(layer, Conv2d):
        if layer.padding_mode != "zeros":
            return f'padding_mode="{layer.padding_mode}"'
        if layer.stride[0] != layer.stride[1]:
            return f"stride {layer.stride} differs between the axes"
    if role == "norm" and layer.running_mean is None:
        return "it keeps no running statistics"
    if role == "avg" and (pair(layer.padding) != (0, 0) or layer.ceil_mode or layer.divisor_override is not None):
        return "average pooling with padding, ceil_mode or divisor_override"
    if role == "avg" and (len(set(pair(layer.kernel_size))) > 1 or len(set(pair(layer.stride))) > 1):
        return "average pooling over windows that are not square"
    if role == "max" and layer.return_indices:
        return "it returns indices"
    if isinstance(layer, Recurrent) and role_of(layer.neuron)[0] != "neuron":
        return f"its neuron: {role_of(layer.neuron)[1]}"
    return ""


def pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


@dataclass(frozen=True)
class Layout:
    """Where values lie: `place[i]` is the flat index, in a plain tensor of `shape`, of value i of a row; -1 is padding."""

    shape: tuple[int, ...]
    place: np.ndarray

    @classmethod
    def plain(cls, shape: Sequence[int]) -> Layout:
        return cls(tuple(shape), np.arange(int(np.prod(shape))))

    @property
    def inside(self) -> np.ndarray:
        """Where each plain value lies in a row."""
        found = np.empty(int(np.prod(self.shape)), np.int64)
        found[self.place[self.place >= 0]] = np.flatnonzero(self.place >= 0)
        return found

    def spread(self, values: Tensor | float, dtype: torch.dtype, otherwise: float = 0.0) -> Tensor:
        """Plain values [shape], or one number, as a row."""
        whole = torch.full((len(self.place),), otherwise, dtype=dtype)
        flat = torch.as_tensor(values, dtype=torch.float64).broadcast_to(self.shape).reshape(-1)
        whole[torch.from_numpy(self.inside)] = flat.to(dtype)
        return whole


@dataclass
class Group:
    """The layers of one stage: all that is linear (and Flatten before it), a max pooling, norms after it, a neuron."""

    linear: list[Any] = field(default_factory=list)
    weight: Any = None
    pool: Any = None
    after: list[tuple[Any, bool]] = field(default_factory=list)  # norms that follow the pooling; whether on flat values
    neuron: Any = None
    flat: bool = False  # whether a Flatten came after the weights or the pooling

    def takes(self, role: str, layer: Any) -> bool:
        """Whether a layer may join this stage."""
        if self.neuron is not None:
            return False
        if role == "weight":
            return self.weight is None and self.pool is None
        if role == "avg":
            averaged = any(isinstance(m, AvgPool2d) for m in self.linear)
            fits = isinstance(self.weight, Conv2d) and not self.flat if self.weight is not None else not averaged
            return self.pool is None and fits
        if role == "max":
            return self.pool is None and not self.flat
        if isinstance(layer, Recurrent):  # needs whole vectors of currents, as a linear layer makes them
            return self.pool is None and not isinstance(self.weight, Conv2d)
        return True

    def add(self, role: str, layer: Any, shape: Sequence[int]) -> None:
        """Take a layer whose input has the given shape."""
        if role == "neuron":
            self.neuron = layer
        elif role == "max":
            self.pool = layer
        elif role == "norm" and (self.pool is not None or (self.flat and isinstance(self.weight, Conv2d))):
            self.after.append((layer, self.flat))
        elif role == "flatten" and (self.weight is not None or self.pool is not None):
            self.flat = True
        elif role == "avg" and self.weight is None and pair(layer.kernel_size) != pair(layer.stride):
            self._take_weight(_mean_of_windows(layer, shape[0]))
        elif role == "weight":
            self._take_weight(layer)
        else:
            self.linear.append(layer)

    def _take_weight(self, layer: Any) -> None:
        self.weight = layer
        self.linear.append(layer)


def _mean_of_windows(pool: Any, channels: int) -> Conv2d:
    """Average pooling over windows that overlap, as the convolution that it is."""
    size = pair(pool.kernel_size)[0]
    layer = Conv2d(channels, channels, size, pair(pool.stride)[0], groups=channels, bias=False, dtype=torch.float64)
    nn.init.constant_(layer.weight, 1 / size**2)
    return layer


def groups_of(layers: Sequence[tuple[str, Any, tuple[int, ...]]]) -> list[Group]:
    """Layers, as (role, layer, shape of its input), in stages."""
    groups: list[Group] = []
    for role, layer, shape in layers:
        if role == "gone":
            continue
        if not groups or not groups[-1].takes(role, layer):
            groups.append(Group())
        groups[-1].add(role, layer, shape)
    return groups or [Group()]


@dataclass
class Stage:
    """One stage as arrays: the three lists that `EnginePlan.add` takes, what they point to, and where things lie."""

    out: Layout
    addresses: list[int]
    sizes: list[int]
    numbers: list[float]
    kept: list[Any]


@dataclass
class Link:
    """The linear part of a stage."""

    out: Layout
    bias: Tensor | None
    kind: int = 0
    weights: Tensor | None = None
    table: np.ndarray | None = None
    strides: tuple[int, int] = (0, 0)
    dense: Tensor | None = None
    framed: np.ndarray | None = None
    window: tuple[int, ...] = (0,) * 9  # channels_in … dense_above of EngineStage


def padded(channels: int) -> int:
    """Channels with padding: whole vectors, or a power of two below one."""
    return -(-channels // LANES) * LANES if channels > LANES // 2 else 1 << (channels - 1).bit_length()


def _per_channel(values: Tensor, shape: Sequence[int]) -> Tensor:
    return values.reshape(-1, *(1,) * (len(shape) - 1)).expand(tuple(shape))


def fold_link(group: Group, given: Layout, dtype: torch.dtype) -> Link:
    """The linear layers of a group as one link from a row laid out as `given`."""
    layers = [copy.deepcopy(m).double().eval() for m in group.linear]
    shape = given.shape
    gain = torch.ones(shape, dtype=torch.float64)
    where = np.arange(int(np.prod(shape)))  # plain input -> input of the weights; -1: pooling leaves it out
    before = True
    weight, tail = None, []
    for layer in layers:
        if before and isinstance(layer, NORMS):
            gain = gain * _per_channel(gain_and_shift(layer)[0], gain.shape)
        elif before and isinstance(layer, AvgPool2d):
            gain, where = _pooled_before(layer, gain, where)
        elif before and isinstance(layer, Flatten):
            gain = gain.flatten()
        elif before:
            weight, before = layer, False
        else:
            tail.append(layer)
    silence: Tensor = torch.zeros((1, 1, *shape), dtype=torch.float64)
    for layer in layers:
        silence = layer(silence)
    silence = silence[0, 0]
    source = np.where(given.place >= 0, where[np.maximum(given.place, 0)], -1)  # row -> input of the weights
    if weight is None and not isinstance(group.neuron, Recurrent):
        return _direct(silence, gain, source, given, dtype)
    if weight is None:
        return _matrix(torch.diag(gain.flatten()), silence, source, dtype)
    if isinstance(weight, Conv2d):
        kernel, stride, pads = _widened(weight, gain[:, 0, 0], tail)
        return _convolution(kernel, weight.groups, stride, pads, tuple(gain.shape), silence, source, dtype)
    matrix = weight.weight.detach() * gain
    for layer in tail:
        if isinstance(layer, NORMS):
            matrix = matrix * gain_and_shift(layer)[0][:, None]
    return _matrix(matrix, silence, source, dtype)


def _pooled_before(layer: Any, gain: Tensor, where: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Average pooling before the weights: every input stands for its window, with a share of the window's weight."""
    size, step = pair(layer.kernel_size)[0], pair(layer.stride)[0]
    assert size == step
    c, h, w = gain.shape
    high, wide = h // size, w // size
    index = np.full((c, h, w), -1)
    rows, columns = np.arange(high * size) // size, np.arange(wide * size) // size
    index[:, : high * size, : wide * size] = (np.arange(c)[:, None, None] * high + rows[:, None]) * wide + columns
    return gain[:, ::size, ::size][:, :high, :wide] / size**2, np.where(where >= 0, index.reshape(-1)[where], -1)


def _widened(conv: Any, gain: Tensor, tail: Sequence[Any]) -> tuple[Tensor, int, tuple[int, int]]:
    """Kernel [C_out, C_in / groups, K, K], stride and padding at the top left of a convolution with all that follows it."""
    kernel = conv.weight.detach() * gain.reshape(conv.groups, 1, -1).expand(
        conv.groups, conv.out_channels // conv.groups, -1
    ).reshape(conv.out_channels, -1, 1, 1)
    high, wide = ((k - 1) * d + 1 for k, d in zip(conv.kernel_size, conv.dilation))
    side = max(high, wide)
    spaced = kernel.new_zeros((*kernel.shape[:2], side, side))
    spaced[:, :, : high : conv.dilation[0], : wide : conv.dilation[1]] = kernel
    pads = (
        ((high - 1) // 2, (wide - 1) // 2)
        if conv.padding == "same"
        else (0, 0)
        if conv.padding == "valid"
        else pair(conv.padding)
    )
    stride = conv.stride[0]
    for layer in tail:
        if isinstance(layer, NORMS):
            spaced = spaced * gain_and_shift(layer)[0][:, None, None, None]
        elif isinstance(layer, AvgPool2d):
            size, step = pair(layer.kernel_size)[0], pair(layer.stride)[0]
            wider = spaced.new_zeros((*spaced.shape[:2], *(side + stride * (size - 1),) * 2))
            for i in range(size):
                for j in range(size):
                    wider[:, :, i * stride : i * stride + side, j * stride : j * stride + side] += spaced / size**2
            spaced, side, stride = wider, wider.shape[2], stride * step
    return spaced, stride, pads


def _direct(silence: Tensor, gain: Tensor, source: np.ndarray, given: Layout, dtype: torch.dtype) -> Link:
    """No weights: the input itself, or scaled and pooled, one value an input."""
    if bool((gain == 1).all()) and not silence.any() and np.array_equal(source, given.place):
        return Link(Layout(tuple(silence.shape), given.place), None)
    table = np.zeros(len(source), ENTRY)
    used = source >= 0
    table["weight"][used] = table["target"][used] = source[used]
    table["rows"][used] = table["length"][used] = 1
    return Link(Layout.plain(silence.shape), silence.flatten().to(dtype), 2, gain.flatten().to(dtype), table)


def _matrix(matrix: Tensor, silence: Tensor, source: np.ndarray, dtype: torch.dtype) -> Link:
    """A linear layer: weights in panels [inputs of the row, outputs]."""
    n = matrix.shape[0]
    wide = -(-n // LANES) * LANES
    place = np.full(wide, -1)
    place[:n] = np.arange(n)
    out = Layout((n,), place)
    whole = torch.zeros((len(source), wide), dtype=torch.float64)
    used = torch.from_numpy(np.flatnonzero(source >= 0))
    whole[used, :n] = matrix.t()[torch.from_numpy(source[source >= 0])]
    above = int(len(source) * DENSE_VECTOR / LINEAR_VECTOR)
    return Link(out, out.spread(silence, dtype), 1, in_panels(whole.to(dtype)), window=(*(0,) * 8, above))


def in_panels(matrix: Tensor) -> Tensor:
    """[inputs, outputs], outputs a multiple of 16, as gather.h reads it."""
    return torch.cat([part.reshape(-1) for part in matrix.split(PANEL, dim=1)]) if matrix.numel() else matrix.flatten()


def _convolution(
    kernel: Tensor,
    groups: int,
    stride: int,
    pads: tuple[int, int],
    image: tuple[int, ...],
    silence: Tensor,
    source: np.ndarray,
    dtype: torch.dtype,
) -> Link:
    """A convolution by table: an input reaches `rows` runs of neighbouring output pixels, all channels of its group at once."""
    (channels, high, wide), (_, rows_out, columns_out) = image, silence.shape
    side, per_in, per_out = kernel.shape[2], channels // groups, kernel.shape[0] // groups
    room = padded(per_out)
    taps = -(-side // stride)
    # An input at phase (p, q) of the stride meets every stride-th weight, the later ones in the earlier outputs: that order, reversed.
    pieces = torch.zeros((channels, stride, stride, taps, taps, room), dtype=torch.float64)
    whole = kernel.reshape(groups, per_out, per_in, side, side).permute(0, 2, 3, 4, 1).reshape(channels, side, side, -1)
    for p in range(stride):
        for q in range(stride):
            part = whole[:, p::stride, q::stride].flip(1, 2)
            pieces[:, p, q, taps - part.shape[1] :, taps - part.shape[2] :, :per_out] = part

    def reach(size: int, pad: int, n_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """For each coordinate: phase, first output, first tap, number of outputs."""
        at = np.arange(size) + pad
        last, phase = at // stride, at % stride
        first = np.maximum(-((side - 1 - at) // stride), 0)
        stop = np.minimum(last, n_out - 1)
        return phase, first, taps - 1 - (last - first), np.maximum(stop - first + 1, 0)

    py, y0, ty, ny = reach(high, pads[0], rows_out)
    px, x0, tx, nx = reach(wide, pads[1], columns_out)
    c, y, x = np.unravel_index(np.arange(channels * high * wide), image)
    entry = np.zeros(channels * high * wide, ENTRY)
    base = ((c * stride + py[y]) * stride + px[x]) * taps * taps
    reached = (ny[y] > 0) & (nx[x] > 0)
    entry["weight"] = np.where(reached, (base + ty[y] * taps + tx[x]) * room, 0)
    entry["target"] = np.where(reached, ((c // per_in * rows_out + y0[y]) * columns_out + x0[x]) * room, 0)
    entry["rows"] = np.where(reached, ny[y], 0)
    entry["length"] = np.where(reached, nx[x] * room, 0)
    table = np.zeros(len(source), ENTRY)
    table[source >= 0] = entry[source[source >= 0]]

    g, i, j, k = np.indices((groups, rows_out, columns_out, room)).reshape(4, -1)
    place = np.where(k < per_out, ((g * per_out + k) * rows_out + i) * columns_out + j, -1)
    out = Layout(tuple(silence.shape), place)
    link = Link(
        out, out.spread(silence, dtype), 2, pieces.flatten().to(dtype), table, (taps * room, columns_out * room)
    )
    if groups == 1 and room % LANES == 0:
        _add_dense(link, whole, stride, pads, image, (rows_out, columns_out, room), source, dtype)
    return link


def _add_dense(
    link: Link,
    whole: Tensor,
    stride: int,
    pads: tuple[int, int],
    image: tuple[int, ...],
    out: tuple[int, int, int],
    source: np.ndarray,
    dtype: torch.dtype,
) -> None:
    """The same convolution over every input, for steps in which most are active."""
    channels, high, wide = image
    side, (rows_out, columns_out, room) = whole.shape[1], out
    tall = max((rows_out - 1) * stride + side, high + pads[0])
    broad = max((columns_out - 1) * stride + side, wide + pads[1])
    weights = torch.zeros((side, side, channels, room), dtype=torch.float64)
    weights[..., : whole.shape[3]] = whole.permute(1, 2, 0, 3)
    c, y, x = np.unravel_index(np.maximum(source, 0), image)
    framed = ((y + pads[0]) * broad + x + pads[1]) * channels + c
    n_framed = tall * broad * channels
    link.framed = np.where(source >= 0, framed, n_framed).astype(
        np.uint32
    )  # one value more, for what pooling leaves out
    link.dense = weights.unflatten(3, (-1, LANES)).movedim(3, 0).flatten().to(dtype)
    everything = rows_out * columns_out * side * side * channels * room // LANES
    added = float((link.table["rows"].astype(np.int64) * link.table["length"]).sum()) / LANES  # type: ignore[index]
    above = int(DENSE_VECTOR * everything / (EVENT + EVENT_VECTOR * added / max((source >= 0).sum(), 1)))
    link.window = (channels, broad * channels, room, rows_out, columns_out, side, stride, n_framed + 1, above)


# Nanoseconds of one spike, of 16 weights that it adds (in a convolution, in a linear layer) and of 16 weights in the loops over every
# input; measured (Zen 4, float32), where only their ratios matter.
EVENT, EVENT_VECTOR, LINEAR_VECTOR, DENSE_VECTOR = 2.0, 0.5, 0.8, 0.2


def fold(group: Group, given: Layout, dtype: torch.dtype, state: int) -> Stage:
    """A group as a stage whose state begins at `state`."""
    link = fold_link(group, given, dtype)
    out = link.out
    kept: list[Any] = [link.weights, link.bias, link.table, link.dense, link.framed]
    pool, taps = None, 0
    if group.pool is not None:
        pool, out = _pooled(group.pool, out)
        taps = pool.shape[1]
    scale = shift = None
    if group.after:
        gains, shifts = torch.ones(out.shape, dtype=torch.float64), torch.zeros(out.shape, dtype=torch.float64)
        for norm, flat in group.after:
            gains, shifts = (values.flatten() if flat else values for values in (gains, shifts))
            a, b = (_per_channel(value, gains.shape) for value in gain_and_shift(norm))
            gains, shifts = gains * a, shifts * a + b
        scale, shift = (out.spread(values.reshape(out.shape), dtype) for values in (gains, shifts))
    if group.flat:
        out = Layout((int(np.prod(out.shape)),), out.place)
    cells, neuron_sizes, numbers = _neuron(group.neuron, out, dtype)
    kept += [pool, scale, shift, *cells]
    bias = link.bias
    recurrent = group.neuron if isinstance(group.neuron, Recurrent) else None
    if recurrent is not None:
        bias, weights = _recurrent(recurrent, bias, link.out, dtype)
        kept += [bias, weights]
    valid = np.zeros(-(-len(out.place) // CELLS) * CELLS, bool)
    valid[: len(out.place)] = out.place >= 0
    bits = np.packbits(valid, bitorder="little").view(np.uint64)
    kept.append(bits)
    addresses = [link.weights, bias, link.table, link.dense, link.framed, pool, scale, shift, *cells, bits]
    addresses.append(weights if recurrent is not None else None)
    channels = list(link.window)
    sizes = [link.kind, len(given.place), len(link.out.place), *link.strides, *channels, taps, *neuron_sizes]
    sizes += [len(out.place), state]
    return Stage(out, [address_of(array) for array in addresses], sizes, numbers, kept)


def _pooled(layer: Any, given: Layout) -> tuple[np.ndarray, Layout]:
    """For each pooled value of a row, the places that it is the largest of."""
    (c, high, wide), inside = given.shape, given.inside
    index = torch.arange(1, c * high * wide + 1, dtype=torch.float64).reshape(1, c, high, wide)
    shown = nn.functional.max_pool2d(
        index, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode
    ).shape[2:]
    size, step, pads, gap = (pair(v) for v in (layer.kernel_size, layer.stride, layer.padding, layer.dilation))

    def taps(k: int, n_out: int, n: int) -> np.ndarray:
        at = np.arange(n_out)[:, None] * step[k] - pads[k] + np.arange(size[k]) * gap[k]
        fits = (at >= 0) & (at < n)
        return np.where(fits, at, at[np.arange(n_out), fits.argmax(1)][:, None])  # twice the same changes no maximum

    rows, columns = taps(0, shown[0], high), taps(1, shown[1], wide)
    where = (rows[:, None, :, None] * wide + columns[None, :, None, :]).reshape(shown[0], shown[1], -1)
    plain = np.arange(c)[None, None, :, None] * high * wide + where[:, :, None, :]  # [H', W', C, taps]
    channel, i, j = np.arange(c), np.arange(shown[0]), np.arange(shown[1])
    place = (channel[None, None, :] * shown[0] + i[:, None, None]) * shown[1] + j[None, :, None]
    out = Layout((c, *shown), place.reshape(-1))
    return np.ascontiguousarray(inside[plain].reshape(-1, plain.shape[-1]).astype(np.uint32)), out


def _neuron(neuron: Any, out: Layout, dtype: torch.dtype) -> tuple[list[Tensor | None], list[int], list[float]]:
    """Cells (beta, threshold, beta_syn), the integers and the numbers of a stage's neuron."""
    if neuron is None:
        return [None] * 3, [0] * 9, [0.0] * 4
    inner: Neuron = neuron.neuron if isinstance(neuron, Recurrent) else neuron
    rule = inner.rule
    given = {"beta": 1.0, "threshold": 1.0, "beta_syn": 0.0, **inner.cells()}
    where = type(inner).__name__
    check_threshold(where, given["threshold"])
    for name in ("beta", "beta_syn"):
        check_beta(where, name, given[name])
    values = [_in(given[name], dtype) for name in ("beta", "threshold", "beta_syn")]
    alike = all(value.numel() == 1 for value in values)
    cells: list[Tensor | None] = []
    for value in values:
        if alike:
            cells.append(value.reshape(1).expand(CELLS).contiguous())
        else:
            whole = value if value.dim() != 1 or value.numel() == 1 else _per_channel(value, out.shape)
            cells.append(out.spread(whole, dtype, otherwise=1.0))
    sizes = [
        1,
        ("lif", "cuba", "adaptive").index(rule.kind),
        ("subtract", "zero", "none").index(rule.reset),
        rule.refractory,
        int(rule.tie == "gt"),
        int(rule.decay_input),
        int(rule.reset_delay) + 2 * int(rule.residual_reset),
        int(rule.normalize),
        int(alike),
    ]
    return cells, sizes, [rule.v_reset, rule.v_leak, rule.beta_adapt, rule.adapt_scale]


def _in(value: float | Tensor, dtype: torch.dtype) -> Tensor:
    return value.detach().to(dtype) if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)


def _recurrent(layer: Any, bias: Tensor | None, out: Layout, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    """A link's bias with the recurrent one, and the recurrent weights in panels, over the padded row of a layer."""
    used = torch.from_numpy(out.inside)
    n = len(out.place)
    whole = torch.zeros((n, -(-n // LANES) * LANES), dtype=torch.float64)
    whole[used[:, None], used[None, :]] = layer.recurrent.weight.detach().double().t()
    if layer.recurrent.bias is not None:
        own = out.spread(layer.recurrent.bias.detach(), torch.float64)
        bias = (own if bias is None else own + bias.double()).to(dtype)
    return bias, in_panels(whole.to(dtype))


def address_of(array: Any) -> int:
    if array is None:
        return 0
    return int(array.data_ptr() if isinstance(array, Tensor) else array.ctypes.data)
