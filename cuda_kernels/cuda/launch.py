"""Launches of neuron.cu (and what event.py shares with them): which instantiation, with which arguments, over how many blocks.

FORWARD and BACKWARD hold each kernel argument's (name, C type). CuPy would pass Python's numbers as int64 and float64 whatever the
kernel expects, so the numpy type of every argument comes from here; so does the launcher that runs the same source on the CPU in the
tests. `IO` is the element type of x, `T` that of the state.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from spiking.cuda_kernels.ops import CHUNK, KINDS, RESETS, SAVES
from torch import Tensor

from . import compile

__all__ = [
    "BACKWARD",
    "FORWARD",
    "RULE",
    "Launch",
    "backward_launch",
    "forward_launch",
    "neuron_backward",
    "neuron_forward",
    "rule_expression",
    "run",
    "scalars",
]

RULE = (
    ("steps", "i64"),
    ("neurons", "i64"),
    ("n_params", "i64"),
    ("inner", "i64"),
    ("beta", "T"),
    ("threshold", "T"),
    ("beta_syn", "T"),
    ("v_reset", "T"),
    ("v_leak", "T"),
    ("beta_adapt", "T"),
    ("adapt_scale", "T"),
    ("a", "T"),
    ("b", "T"),
    ("refractory", "int"),
    ("tie_gt", "int"),
    ("decay_input", "int"),
    ("detach_reset", "int"),
    ("reset_delay", "int"),
    ("residual_reset", "int"),
    ("normalize", "int"),
)
FORWARD = (
    ("x", "const IO*"),
    ("state0", "const T*"),
    ("params", "const T*"),
    ("s", "IO*"),
    ("state1", "T*"),
    ("saved", "void*"),
    *RULE,
)
BACKWARD = (
    ("x", "const IO*"),
    ("state0", "const T*"),
    ("params", "const T*"),
    ("saved", "const void*"),
    ("grad_s", "const IO*"),
    ("grad_s_is_scalar", "int"),
    ("grad_state1", "const T*"),
    ("grad_x", "IO*"),
    ("grad_state0", "T*"),
    ("grad_params", "double*"),
    *RULE,
)

NAMESPACE = "spiking_cuda::"
_IO = ("float", "double", f"{NAMESPACE}bf16", f"{NAMESPACE}f16")  # by ops.py's number of a dtype
_SURROGATES = (  # by kernel_id; the enum in include/surrogate.h
    "atan",
    "sigmoid",
    "fast_sigmoid",
    "triangle",
    "rectangle",
    "gaussian",
    "exponential",
    "piecewise_leaky_relu",
    "straight_through",
)
_THREADS = 128  # of a block; at most THREADS in neuron.cu, and a power of two
_WIDE_FROM = 1 << 18  # neurons: below, wide loads would leave processors without threads


class Launch(NamedTuple):
    """What a launch needs: the template's instantiation, its arguments as numpy scalars, blocks, threads and bytes of shared memory."""

    expression: str
    arguments: tuple[Any, ...]
    blocks: int
    threads: int
    shared: int
    source: str = "neuron.cu"


def _enum(kind: str, name: str) -> str:
    return f"{NAMESPACE}{kind}::{name}"


def _flags(packed: Sequence[int], numbers: Sequence[float]) -> str:
    """The fewest flags that hold the rule, as in cpu/neuron.cpp."""
    _, _, kind, reset, _, refractory, tie_gt, decay_input, _, reset_delay, residual_reset, normalize = packed
    v_reset, v_leak = numbers[3], numbers[4]
    if kind == 0 and (reset_delay or residual_reset or normalize):
        return "all"
    some = kind != 0 or tie_gt or decay_input or refractory > 0 or v_leak != 0.0 or (reset == 1 and v_reset != 0.0)
    return "common" if some else "plain"


def rule_expression(packed: Sequence[int], numbers: Sequence[float]) -> str:
    """The template arguments that a rule stands for: kind, reset, flags."""
    names = {"Kind": KINDS[packed[2]], "Reset": RESETS[packed[3]], "Flags": _flags(packed, numbers)}
    return ", ".join(_enum(kind, name) for kind, name in names.items())


def _width(sizes: Sequence[int], io: str, addresses: Sequence[int]) -> int:
    """Neurons per thread: 4, which is 16 bytes of state, where rows, cells and addresses allow it; 1 for float64."""
    _, neurons, n_params, inner = sizes
    fits = neurons % 4 == 0 and (n_params == 1 or inner % 4 == 0) and all(a % 16 == 0 for a in addresses)
    return 4 if fits and neurons >= _WIDE_FROM and io != "double" else 1


def scalars(table: tuple[tuple[str, str], ...], io: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """Values as numpy scalars of the table's types."""
    state = np.float64 if io == "double" else np.float32
    types: dict[str, Any] = {"i64": np.int64, "int": np.int32, "T": state}
    return tuple(
        (np.uint64 if c_type.endswith("*") else types[c_type])(value)
        for (_, c_type), value in zip(table, values, strict=True)
    )


@functools.lru_cache(maxsize=1024)
def _rule_scalars(
    io: str, sizes: tuple[int, ...], packed: tuple[int, ...], numbers: tuple[float, ...]
) -> tuple[Any, ...]:
    """The arguments that stay the same from call to call."""
    return scalars(RULE, io, (*sizes, *numbers, *packed[5:]))


def _arguments(
    table: tuple[tuple[str, str], ...],
    io: str,
    addresses: Sequence[int],
    sizes: Sequence[int],
    packed: Sequence[int],
    numbers: Sequence[float],
) -> tuple[Any, ...]:
    own = table[: len(table) - len(RULE)]
    return (*scalars(own, io, addresses), *_rule_scalars(io, tuple(sizes), tuple(packed), tuple(numbers)))


def forward_launch(
    addresses: Sequence[int], sizes: Sequence[int], packed: Sequence[int], numbers: Sequence[float]
) -> Launch:
    """The launch of one forward pass; arguments as ops.py hands them to a backend."""
    io, save = _IO[packed[0]], packed[1]
    width = _width(sizes, io, addresses)
    expression = f"{NAMESPACE}neuron_forward<{rule_expression(packed, numbers)}, {io}, {save}, {width}>"
    arguments = _arguments(FORWARD, io, addresses, sizes, packed, numbers)
    return Launch(expression, arguments, -(-sizes[1] // (_THREADS * width)), _THREADS, 0)


def backward_launch(
    addresses: Sequence[int], sizes: Sequence[int], packed: Sequence[int], numbers: Sequence[float]
) -> Launch:
    """The launch of one backward pass; arguments as ops.py hands them to a backend."""
    io, save, kind, flags = _IO[packed[0]], packed[1], KINDS[packed[2]], _flags(packed, numbers)
    recompute = save == SAVES.index("recompute")
    x, state0, _, saved, grad_s, is_scalar, grad_state1, grad_x, grad_state0, grad_params = addresses
    streamed = (x, state0, saved, 0 if is_scalar else grad_s, grad_state1, grad_x, grad_state0)
    width = 1 if recompute else _width(sizes, io, streamed)
    expression = (
        f"{NAMESPACE}neuron_backward<{rule_expression(packed, numbers)}, "
        f"{_enum('Surrogate', _SURROGATES[packed[4]])}, {io}, {save}, {'true' if grad_params else 'false'}, {width}>"
    )
    rows = 1 + (kind != "lif") + (flags != "plain")
    states = CHUNK * rows * (8 if io == "double" else 4) if recompute else 0  # bytes a thread: the states of a chunk
    sums = 3 * 8 if grad_params else 0
    arguments = _arguments(BACKWARD, io, addresses, sizes, packed, numbers)
    return Launch(expression, arguments, -(-sizes[1] // (_THREADS * width)), _THREADS, _THREADS * max(states, sums))


@functools.cache
def _kernel(expression: str, source: str, device: int) -> Any:
    import cupy

    major, minor = torch.cuda.get_device_capability(device)
    built = compile.binary([expression], 10 * major + minor, source)
    return cupy.RawModule(path=str(built.path)).get_function(built.symbols[expression])


class _TorchStream(NamedTuple):
    """A stream's address under the CUDA stream protocol, which torch's own class lacks in older releases."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


def _stream(address: int) -> Any:
    import cupy

    if hasattr(cupy.cuda.Stream, "from_external"):  # CuPy 14, which deprecates ExternalStream
        return cupy.cuda.Stream.from_external(_TorchStream(address))
    return cupy.cuda.ExternalStream(address)


def run(launch: Launch, device: torch.device) -> None:
    """Launch on torch's current stream of the device; nothing is copied and nothing waits."""
    import cupy

    index = torch.cuda.current_device() if device.index is None else device.index
    with cupy.cuda.Device(index), _stream(torch.cuda.current_stream(index).cuda_stream):
        kernel = _kernel(launch.expression, launch.source, index)
        kernel((launch.blocks,), (launch.threads,), launch.arguments, shared_mem=launch.shared)


def neuron_forward(
    addresses: Sequence[int], sizes: Sequence[int], packed: Sequence[int], numbers: Sequence[float], x: Tensor
) -> None:
    """Run neuron_forward on x's device; nothing to do where there are no neurons."""
    if sizes[1] > 0:
        run(forward_launch(addresses, sizes, packed, numbers), x.device)


def neuron_backward(
    addresses: Sequence[int], sizes: Sequence[int], packed: Sequence[int], numbers: Sequence[float], x: Tensor
) -> None:
    """Run neuron_backward on x's device; nothing to do where there are no neurons."""
    if sizes[1] > 0:
        run(backward_launch(addresses, sizes, packed, numbers), x.device)
