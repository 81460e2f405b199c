"""Launches of event.cu: a linear layer that reads the weights of non-zero inputs only, alone and with the neurons after it.

LINEAR and NEURON hold each kernel argument's (name, C type), as launch.py's tables do; `IO` is float or bf16, the type of inputs, weights
and spikes, `T` is float. Neither kernel learns how many inputs are not zero before it runs, and the host never waits to be told: whether
they run is decided from shapes (`why_dense`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from spiking.cuda_kernels import backend, memory
from spiking.cuda_kernels.ops import n_states
from torch import Tensor

from . import launch
from .launch import RULE, Launch

__all__ = [
    "LINEAR",
    "MOST_ROWS",
    "NEURON",
    "here",
    "linear",
    "linear_launch",
    "neuron_launch",
    "neurons",
    "transposed",
    "why_dense",
]

LINEAR = (
    ("x", "const IO*"),
    ("weight", "const IO*"),
    ("bias", "const IO*"),
    ("y", "IO*"),
    ("rows", "i64"),
    ("inputs", "i64"),
    ("outputs", "i64"),
    ("stride", "i64"),
    ("wide", "int"),
)
NEURON = (
    ("x", "const IO*"),
    ("weight", "const IO*"),
    ("bias", "const IO*"),
    ("state0", "const T*"),
    ("params", "const T*"),
    ("s", "IO*"),
    ("state1", "T*"),
    ("inputs", "i64"),
    ("outputs", "i64"),
    ("stride", "i64"),
    ("wide", "int"),
    *RULE,
)

# A row reads its own weights: at a tenth of the inputs active, ten rows read as many as a dense product, which reads each once.
MOST_ROWS = 8
# Below, a dense product takes less time to read its weights than to be launched (16 MB: 5 µs at 3 TB/s).
FEWEST_BYTES = 16 << 20

_DTYPES = {torch.float32: "float", torch.bfloat16: f"{launch.NAMESPACE}bf16"}
_THREADS, _TILE = 128, 128  # THREADS and TILE in the source
_LIST = 128 + 2048 * (4 + 2)  # bytes of Events in the source
_MANY_BLOCKS = (
    1024  # that keep any device busy: from there on a block takes four tiles, and reads its row of x once for them
)
_MOST_BLOCKS = (1 << 31) - 1


def here(x: Tensor) -> bool:
    """Whether x lies on a CUDA device."""
    return x.is_cuda


def why_dense(x: Tensor, weight: Tensor, *, learns: bool, always: bool = False, neurons: bool = False) -> str | None:
    """In one sentence why x·Wᵀ is left to cuBLAS; None where the event-driven kernel runs.

    `always`: asked for, at any size (`event_driven("always")`, `F.event_linear`). `neurons`: together with the neurons after it, which
    saves a launch, so that the size of the weights does not matter.

    >>> why_dense(torch.zeros(64, 4096), torch.zeros(4096, 4096), learns=True)
    'training multiplies densely on CUDA; the event-driven kernels are for inference'
    """
    if learns:
        return "training multiplies densely on CUDA; the event-driven kernels are for inference"
    if weight.device != x.device:
        return f"the input is on {x.device} and the weights are on {weight.device}"
    rows, outputs = x.numel() // max(1, x.shape[-1]), weight.shape[0]
    if x.dtype not in _DTYPES or weight.dtype != x.dtype:
        return f"{x.dtype} has no event-driven CUDA kernel; float32 and bfloat16 have"
    if torch.is_autocast_enabled("cuda"):
        return "autocast chooses the precision of dense products"
    if not (x.numel() and outputs) or rows * -(-outputs // _TILE) > _MOST_BLOCKS:
        return "there is nothing to multiply, or more than one launch can hold"
    if not always:
        if rows > MOST_ROWS:
            return f"{rows} rows share each weight that a dense product reads; up to {MOST_ROWS} the event-driven kernel reads fewer"
        size = weight.numel() * weight.dtype.itemsize
        if not neurons and size < FEWEST_BYTES:
            return (
                f"{size:,} bytes of weights are read sooner than a kernel is launched; expected {FEWEST_BYTES:,} or more, or neurons "
                "right after it in a Sequential, which then share its kernel"
            )
    choice = backend.choose(x.device)
    if choice.name != "cuda":
        return f"backend {choice.name}: {choice.not_used['cuda']}"
    return None


def transposed(weight: Tensor) -> Tensor:
    """The weights as the kernels read them: [in, out], each row filled up with zeros to a multiple of four."""
    outputs, inputs = weight.shape
    copy = torch.zeros((inputs, -(-outputs // 4) * 4), dtype=weight.dtype, device=weight.device)
    copy[:, :outputs] = weight.detach().t()
    return copy


def _wide(address: int, inputs: int, item: int) -> bool:
    """Whether every row of x may be read four numbers at a time."""
    return address % (4 * item) == 0 and inputs % 4 == 0


def linear_launch(addresses: Sequence[int], sizes: Sequence[int], dtype: torch.dtype) -> Launch:
    """The launch of y = x·Wᵀ + b; addresses of x, transposed weight, bias (0: none), y; sizes: rows, inputs, outputs."""
    io = _DTYPES[dtype]
    rows, inputs, outputs = sizes
    tiles = 4 if rows * -(-outputs // (4 * _TILE)) >= _MANY_BLOCKS else 1
    stride = -(-outputs // 4) * 4
    wide = _wide(addresses[0], inputs, dtype.itemsize)
    arguments = launch.scalars(LINEAR, io, (*addresses, rows, inputs, outputs, stride, wide))
    blocks = rows * -(-outputs // (tiles * _TILE))
    expression = f"{launch.NAMESPACE}event_linear<{io}, {tiles}>"
    return Launch(expression, arguments, blocks, _THREADS, _LIST + _partial(tiles), "event.cu")


def neuron_launch(
    addresses: Sequence[int],
    sizes: Sequence[int],
    dtype: torch.dtype,
    inputs: int,
    outputs: int,
    packed: Sequence[int],
    numbers: Sequence[float],
) -> Launch:
    """The launch of a linear layer with its neurons; sizes, packed and numbers as ops.py hands them to a backend."""
    io = _DTYPES[dtype]
    stride = -(-outputs // 4) * 4
    own = (*addresses, inputs, outputs, stride, _wide(addresses[0], inputs, dtype.itemsize))
    arguments = launch.scalars(NEURON, io, (*own, *sizes, *numbers, *packed[5:]))
    blocks = sizes[1] // outputs * -(-outputs // _TILE)
    expression = f"{launch.NAMESPACE}event_neuron<{launch.rule_expression(packed, numbers)}, {io}>"
    return Launch(expression, arguments, blocks, _THREADS, _LIST + _partial(1), "event.cu")


def _partial(tiles: int) -> int:
    return 4 * tiles * _TILE * 4  # the sums of four warps


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """y [*, out] = x·Wᵀ + b on x's device; `weight` as `transposed` gives it."""
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    y = memory.empty((*x.shape[:-1], outputs), x.dtype, x.device)
    inputs = x.shape[-1]
    addresses = (x.data_ptr(), weight.data_ptr(), _address(bias), y.data_ptr())
    launch.run(linear_launch(addresses, (x.numel() // inputs, inputs, outputs), x.dtype), x.device)
    return y


def neurons(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    outputs: int,
    state: Tensor | None,
    params: Tensor | None,
    inner: int,
    rule: list[int],
    numbers: list[float],
) -> tuple[Tensor, Tensor]:
    """Spikes [T, B, out] and last state [S, B, out] of the neurons that x [T, B, in]·Wᵀ + b drives; the rest as for `ops.integrate`."""
    x, bias, state, params = (t if t is None else t.contiguous() for t in (x, bias, state, params))  # type: ignore[assignment]
    steps, batch, inputs = x.shape
    s = memory.empty((steps, batch, outputs), x.dtype, x.device)
    last = memory.empty((n_states(rule), batch, outputs), torch.float32, x.device)
    addresses = (x, weight, bias, state, params, s, last)
    sizes = (steps, batch * outputs, 1 if params is None else params.shape[1], inner)
    plan = neuron_launch(tuple(map(_address, addresses)), sizes, x.dtype, inputs, outputs, [0, 0, *rule], numbers)
    launch.run(plan, x.device)
    return s, last


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
