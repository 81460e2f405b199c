"""What an operand touches: fan-out of every input element, exact counts, and the class of the values.

A weight layer connects input element i to output element o through one stored weight, inside the real input and
output: zero padding makes no connection, nor do the cropped outputs of a transposed convolution. F[i] is the number
of connections of element i; one non-zero operand costs F[i] synaptic operations. F depends on shapes only, so it is
built once, as the adjoint of the layer with all weights one, and counting is a product of the operand with F.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as TF

from spiking.cuda_kernels import counting

CLASSES = ("binary", "ternary", "scaled_binary", "scaled_ternary", "graded", "analogue")
"""Operand classes, in the order of their number in a trace file."""

MAX_LEVELS = 32
_EXACT = 2**24  # integers below this are exact in float32, and so are sums of them that stay below it
_LEVEL_TOLERANCE = 1e-3
_BLOCK = 2**16  # elements that stay in the second-level cache between two looks at them
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = {nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3}


class Levels(NamedTuple):
    """The distinct non-zero magnitudes that an operand took; `magnitudes=None` once there are too many to be levels."""

    magnitudes: tuple[float, ...] | None = ()
    signed: bool = False

    def join(self, other: Levels) -> Levels:
        """The levels of both together."""
        if self is other or self == other or other == _NO_LEVELS:
            return self
        if self.magnitudes is None or other.magnitudes is None:
            return Levels(None)
        magnitudes = _cluster(self.magnitudes + other.magnitudes)
        return Levels(magnitudes, magnitudes is not None and (self.signed or other.signed))

    def classify(self) -> tuple[str, float]:
        """(class, scale): every value is an integer multiple of the scale unless the class is "analogue"."""
        if self.magnitudes is None:
            return "analogue", 1.0
        if not self.magnitudes:
            return "binary", 1.0
        if len(self.magnitudes) == 1:
            name = "ternary" if self.signed else "binary"
            scale = self.magnitudes[0]
            return (name, 1.0) if scale == 1.0 else (f"scaled_{name}", scale)
        smallest = self.magnitudes[0]
        for m in range(1, 9):
            k = np.asarray(self.magnitudes) * (m / smallest)
            if np.abs(k - np.rint(k)).max() < _LEVEL_TOLERANCE and np.rint(k).max() <= MAX_LEVELS:
                return "graded", smallest / m
        return "analogue", 1.0


class OperandCounts(NamedTuple):
    """Counts of one operand [T, B, *]: per step and sample where a bootstrap over samples needs them."""

    nnz: np.ndarray  # [T, B] int64
    abs_sum: np.ndarray  # [T] float64
    syn: np.ndarray  # [T, B] int64
    syn_eff: np.ndarray  # [T] int64
    per_element: np.ndarray  # [I] int64: non-zeros of each element over steps and batch
    levels: list[Levels]  # T of them
    repeated: bool  # bit-identical in all steps, of which there are at least two


_NO_LEVELS = Levels()
_SPIKES = Levels((1.0,))


def connections(layer: Any, in_shape: tuple[int, ...], out_shape: tuple[int, ...], weight: Tensor) -> Tensor:
    """Connections of each input element [numel(in_shape)], int64, counting the non-zero entries of `weight`.

    `weight` is the layer's own, or ones of its shape for weights stored densely. Shapes are those of one sample.
    """
    ones = (weight.detach() != 0).to("cpu", torch.float64)
    if isinstance(layer, nn.Linear):
        return ones.sum(0).long().expand(*in_shape[:-1], -1).reshape(-1)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        x = torch.zeros(1, *in_shape, dtype=torch.float64, requires_grad=True)
        ones = ones.clone()  # a tensor made under inference_mode cannot take part in autograd
        (adjoint,) = torch.autograd.grad(_convolve(layer, x, ones, out_shape).sum(), x)
    return adjoint.round().long().flatten()


def _convolve(layer: Any, x: Tensor, weight: Tensor, out_shape: tuple[int, ...]) -> Tensor:
    for kind in _CONVOLUTIONS:
        if isinstance(layer, kind):
            forward: Any = kind._conv_forward
            return forward(layer, x, weight, None)
    dims = len(out_shape) - 1
    # output_padding may come from the call's output_size, so it is read off the shapes
    extra = [
        out_shape[1 + d]
        - ((x.shape[2 + d] - 1) * layer.stride[d] - 2 * layer.padding[d])
        - (layer.dilation[d] * (layer.kernel_size[d] - 1) + 1)
        for d in range(dims)
    ]
    transposed = (TF.conv_transpose1d, TF.conv_transpose2d, TF.conv_transpose3d)[dims - 1]
    return transposed(x, weight, None, layer.stride, layer.padding, extra, layer.groups, layer.dilation)


def layer_kind(layer: nn.Module) -> str | None:
    """The kind under which a weight layer is recorded, or None if it is none."""
    if isinstance(layer, nn.Linear):
        return "linear"
    for dims, kind in enumerate(_CONVOLUTIONS, 1):
        if isinstance(layer, kind):
            return f"conv{dims}d"
    for transposed, dims in _TRANSPOSED.items():
        if isinstance(layer, transposed):
            return f"convtranspose{dims}d"
    return None


def row_magnitudes(layer: Any) -> np.ndarray:
    """Σ|w| over the outputs of each row of the weight matrix, all groups in order, float32 [inputs of one output · groups]."""
    w = layer.weight.detach().abs().cpu()
    groups = getattr(layer, "groups", 1)
    if isinstance(layer, tuple(_TRANSPOSED)):
        w = w.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # outputs first, as in a convolution
    return w.float().flatten(1).unflatten(0, (groups, -1)).sum(1).flatten().numpy()


ROW_BLOCKS = (64, 128, 256, 512)
"""Sizes of blocks of weight-matrix rows whose activity is counted."""


def active_row_blocks(layer: Any, x: Tensor) -> dict[int, int]:
    """(position, row block) pairs of an operand [N, *] that hold a non-zero, for each size in `ROW_BLOCKS`.

    Rows are ordered as the weights are: input channel, then kernel position. Empty for transposed convolutions.
    """
    if isinstance(layer, tuple(_TRANSPOSED)):
        return {}
    found = dict.fromkeys(ROW_BLOCKS, 0)
    frames = (x.detach() != 0).flatten(0, 1) if isinstance(layer, nn.Linear) else x.detach() != 0
    for part in frames.split(16):
        rows = part.reshape(-1, part.shape[-1]) if isinstance(layer, nn.Linear) else _receptive_fields(layer, part)
        for size in ROW_BLOCKS:
            padded = TF.pad(rows, (0, -rows.shape[-1] % size))
            found[size] += int(padded.reshape(len(rows), -1, size).any(-1).sum())
    return found


def _receptive_fields(conv: Any, x: Tensor) -> Tensor:
    """Operands of every output position and group, bool [N·positions·groups, inputs of one output]."""
    dims = x.ndim - 2
    fields = TF.pad(x, conv._reversed_padding_repeated_twice)
    for d in range(dims):
        reach = conv.dilation[d] * (conv.kernel_size[d] - 1) + 1
        fields = fields.unfold(2 + d, reach, conv.stride[d])[..., :: conv.dilation[d]]
    grouped = fields.unflatten(1, (conv.groups, -1))  # [N, groups, channels, *positions, *kernel]
    order = (0, *range(3, 3 + dims), 1, 2, *range(3 + dims, 3 + 2 * dims))
    inputs = (x.shape[1] // conv.groups) * math.prod(conv.kernel_size)
    return grouped.permute(order).reshape(-1, inputs)


def padded_macs(layer: Any, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> int:
    """Multiplications that conventional FLOP counters report for one sample: padding counted as if it were input."""
    if isinstance(layer, nn.Linear):
        return math.prod(in_shape) * layer.out_features
    kernel = math.prod(layer.kernel_size)
    if isinstance(layer, _CONVOLUTIONS):
        return math.prod(out_shape) * (layer.in_channels // layer.groups) * kernel
    return math.prod(in_shape) * (layer.out_channels // layer.groups) * kernel


def pool_windows(pool: Any, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> tuple[Tensor, int]:
    """(windows that contain each input element [numel(in_shape)], elements of one window summed over all outputs)."""
    dims = len(in_shape) - 1
    per_axis = []
    for d in range(dims):
        n_in, n_out = in_shape[1 + d], out_shape[1 + d]
        kernel = getattr(pool, "kernel_size", None)
        if kernel is None:  # adaptive
            spans = [(i * n_in // n_out, -(-(i + 1) * n_in // n_out)) for i in range(n_out)]
        else:
            k, s, p = (_axis(v, d) for v in (kernel, pool.stride or kernel, pool.padding))
            step = _axis(getattr(pool, "dilation", 1), d)
            if step != 1:
                spans = [(i * s - p + j * step, i * s - p + j * step + 1) for i in range(n_out) for j in range(k)]
            else:
                spans = [(i * s - p, i * s - p + k) for i in range(n_out)]
        hits = torch.zeros(n_in, dtype=torch.int64)
        for start, stop in spans:
            hits[max(start, 0) : max(min(stop, n_in), 0)] += 1
        per_axis.append(hits)
    windows = per_axis[0]
    for hits in per_axis[1:]:
        windows = windows.unsqueeze(-1) * hits
    windows = windows.expand(in_shape[0], *windows.shape).reshape(-1)
    return windows, int(windows.sum())


def _axis(value: int | tuple[int, ...], d: int) -> int:
    return value[d] if isinstance(value, tuple | list) else value


def count_equal(x: Tensor, *values: float) -> int:
    """Elements of x that equal one of the values, which differ."""
    if x.is_cuda or x.dtype not in (torch.float32, torch.float64):
        return sum(int((x == value).sum()) for value in values)
    flat = x.contiguous().view(-1).numpy()
    hits = np.empty(min(flat.size, _BLOCK), np.bool_)
    wanted = [flat.dtype.type(value) for value in values]
    found = 0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        for value in wanted:
            found += int(np.count_nonzero(np.equal(block, value, out=hits[: block.size])))
    return found


def count_nonzero_per_step(x: Tensor) -> np.ndarray:
    """Non-zero elements of x [T, B, ...] in each step, int64 [T]."""
    found = counting.count(x.reshape(x.shape[0] * x.shape[1], -1), len(x), values=False)
    if found is not None:
        return found.nonzero.reshape(len(x), -1).sum(1)
    return np.array([step.numel() - count_equal(step, 0.0) for step in x], np.int64)


def count_windows(x: Tensor, windows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(non-zeros, windows that they reach) of an input [T, B, *] of a pooling layer, int64 [T] each."""
    found = counting.count(x.detach().reshape(x.shape[0] * x.shape[1], -1), len(x), windows, values=False)
    if found is not None:
        nnz_step, reached_step = (c.reshape(len(x), -1).sum(1) for c in (found.nonzero, found.synops[0]))
        return nnz_step, reached_step
    reach = windows.numpy()
    nnz, reached = [], []
    for step in x.detach().cpu().float():
        zero = step.contiguous().view(-1).numpy() == 0
        n_zero = int(np.count_nonzero(zero))
        nnz.append(zero.size - n_zero)
        if 2 * n_zero < zero.size:  # sums run over the rarer kind
            reached.append(x.shape[1] * int(reach.sum()) - int(reach[np.flatnonzero(zero) % reach.size].sum()))
        else:
            reached.append(int(reach[np.flatnonzero(~zero) % reach.size].sum()))
    return np.array(nnz, np.int64), np.array(reached, np.int64)


def counts_of_spikes(nnz: np.ndarray, per_element: np.ndarray, x: Tensor) -> OperandCounts:
    """The counts of x [T, B, *], of which others found that every value is 0 or 1; the products are still to be made."""
    per_step = nnz.sum(1)
    levels = levels_of_spikes(per_step)
    none = np.zeros_like(nnz)
    return OperandCounts(nnz, per_step.astype(np.float64), none, none[:, 0], per_element, levels, repeated(nnz, x))


def levels_of_spikes(nnz: np.ndarray) -> list[Levels]:
    """The levels of steps with so many spikes."""
    return [_SPIKES if n else _NO_LEVELS for n in nnz.tolist()]


def count_operand(
    x: Tensor, fan: Tensor, fan_eff: Tensor, known: OperandCounts | None = None, uniform: int | None = None
) -> OperandCounts:
    """Count an operand [T, B, *] against the fan-out of its elements.

    `known` are counts of the same values, made when they left their neurons: then only the products are new, and not even those
    if all elements have the same fan-out, `uniform`.
    Raises FloatingPointError if x holds NaN or Inf; the caller knows the layer's name.
    """
    x = x.detach()
    spikes = known is not None and all(levels in (_NO_LEVELS, _SPIKES) for levels in known.levels)
    if spikes and known is not None and uniform is not None:
        syn = known.nnz * uniform
        return known._replace(syn=syn, syn_eff=syn.sum(1))
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    steps, batch = x.shape[:2]
    if steps > 1 and x.stride(0) == 0:  # one step expanded over time: direct coding
        one = count_operand(x[:1], fan, fan_eff)
        return OperandCounts(
            one.nnz.repeat(steps, 0),
            one.abs_sum.repeat(steps),
            one.syn.repeat(steps, 0),
            one.syn_eff.repeat(steps),
            one.per_element * steps,
            one.levels * steps,
            True,
        )
    flat = x.reshape(steps * batch, -1)
    if spikes and known is not None:
        syn = _synops(flat, fan, known)
        syn_eff = syn if fan_eff is fan else _synops(flat, fan_eff, known)
        return known._replace(syn=syn.reshape(steps, batch), syn_eff=syn_eff.reshape(steps, batch).sum(1))
    found = counting.count(flat, steps, fan, None if fan_eff is fan else fan_eff)
    if found is not None:
        return _from_compiled(found, x)
    row_sum = flat.sum(1, dtype=torch.float64 if flat.shape[1] >= _EXACT else None)
    if count_equal(flat, 0.0, 1.0) == flat.numel():
        counted, nnz, abs_rows = flat, row_sum, row_sum.double()
        sums = row_sum.reshape(steps, batch).sum(1).tolist()
        levels = [_SPIKES if s else _NO_LEVELS for s in sums]
    else:
        abs_rows = torch.linalg.vector_norm(flat, 1, dim=1, dtype=torch.float64)
        if not bool(torch.isfinite(abs_rows).all()):
            raise FloatingPointError("the operand holds NaN or Inf")
        levels = [levels_of(step) for step in x.reshape(steps, -1)]
        counted = (flat != 0).to(torch.float32)
        nnz = counted.sum(1)
    syn = _product(counted, fan)
    syn_eff = syn if fan_eff is fan else _product(counted, fan_eff)
    if steps * batch < _EXACT:
        per_element = counted.sum(0)
    else:
        per_element = counted.sum(0, dtype=torch.float64)
    return OperandCounts(
        _int(nnz).reshape(steps, batch),
        abs_rows.reshape(steps, batch).sum(1).cpu().numpy(),
        syn.reshape(steps, batch),
        syn_eff.reshape(steps, batch).sum(1),
        _int(per_element),
        levels,
        _repeats(x),
    )


def _repeats(x: Tensor) -> bool:
    """Whether all steps of x are bit-identical, where there are several."""
    return len(x) > 1 and all(torch.equal(x[0], x[t]) for t in range(1, len(x)))


def repeated(nnz: np.ndarray, x: Tensor) -> bool:
    """Whether all steps of x are equal; that equal steps have equal counts is a look that costs nothing."""
    return len(x) > 1 and bool((nnz == nnz[0]).all()) and (not nnz.any() or _repeats(x))


def _from_compiled(found: counting.Counted, x: Tensor) -> OperandCounts:
    """What the compiled pass found in x [T, B, *]."""
    steps, batch = x.shape[:2]
    if not found.finite:
        raise FloatingPointError("the operand holds NaN or Inf")
    nnz, syn = found.nonzero.reshape(steps, batch), found.synops.reshape(2, steps, batch)
    if found.levels is None:
        levels = levels_of_spikes(nnz.sum(1))
    else:
        levels = [met_levels(met, step) for met, step in zip(found.levels, x, strict=True)]
    abs_sum = found.magnitude.reshape(steps, batch).sum(1)
    return OperandCounts(nnz, abs_sum, syn[0], syn[1].sum(1), found.per_element, levels, repeated(nnz, x))


def met_levels(met: tuple[tuple[float, ...] | None, bool], step: Tensor) -> Levels:
    """The levels of a step in which the compiled pass met these magnitudes; None of them where they were too many for it."""
    magnitudes, signed = met
    clustered = None if magnitudes is None else _cluster(magnitudes)
    if magnitudes is None:
        return levels_of(step)
    return Levels(clustered, clustered is not None and signed)


def _int(x: Tensor) -> np.ndarray:
    return x.round().long().cpu().numpy()


def _synops(spikes: Tensor, fan: Tensor, known: OperandCounts) -> np.ndarray:
    """Synaptic operations of each row of spikes, which were counted before."""
    low, high = fan.aminmax()
    return known.nnz.reshape(-1) * int(low) if low == high else _product(spikes, fan)


def _product(mask: Tensor, fan: Tensor) -> np.ndarray:
    """mask [R, I] @ fan [I], exact: in slices whose sums stay below 2^24, or in float64 where products are rounded."""
    total = int(fan.sum())
    if total == 0:
        return np.zeros(len(mask), np.int64)
    if mask.is_cuda or torch.get_float32_matmul_precision() != "highest":
        return _int(mask.double() @ fan.to(mask.device, torch.float64))
    if total < _EXACT:
        return _int(mask @ fan.to(mask.dtype))
    bounds = [0]
    running = torch.cumsum(fan, 0).tolist()
    spent = 0
    for i, value in enumerate(running):
        if value - spent >= _EXACT:
            bounds.append(i)
            spent = running[i - 1]
    bounds.append(len(running))
    parts = [_int(mask[:, a:b] @ fan[a:b].to(mask.dtype)) for a, b in itertools.pairwise(bounds)]
    return np.sum(parts, axis=0)


def levels_of(step: Tensor) -> Levels:
    """The levels of one step."""
    flat = step.reshape(-1)
    # A look at a few values settles most analogue operands; looking at all of them is slow.
    for part in (flat[:8192], flat):
        nonzero = part[part != 0].double()
        if nonzero.numel() == 0:
            continue
        magnitude = nonzero.abs()
        smallest, largest = (float(v) for v in magnitude.aminmax())
        if largest > (MAX_LEVELS + 0.5) * smallest:
            return Levels(None)
        found = torch.unique(magnitude)
        if torch.unique((found / smallest).round(decimals=4)).numel() > MAX_LEVELS:
            return Levels(None)
        if part is flat or flat.numel() <= 8192:
            magnitudes = _cluster(tuple(found.tolist()))
            return Levels(magnitudes, magnitudes is not None and bool((nonzero < 0).any()))
    return Levels()


def _cluster(magnitudes: tuple[float, ...]) -> tuple[float, ...] | None:
    """Sorted magnitudes, those that differ by rounding only taken as one; None if more than MAX_LEVELS remain."""
    kept: list[float] = []
    for value in sorted(magnitudes):
        if not kept or value - kept[-1] > 1e-4 * kept[0]:
            kept.append(value)
            if len(kept) > MAX_LEVELS:
                return None
    return tuple(kept)
