"""Launches of graded.cu: one thread for each neuron.

FORWARD and BACKWARD hold each kernel argument's (name, C type), as launch.py's tables do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import launch
from .launch import Launch

__all__ = ["BACKWARD", "FORWARD", "backward", "backward_launch", "expression", "forward", "forward_launch"]

RULE = (
    ("steps", "i64"),
    ("neurons", "i64"),
    ("n_params", "i64"),
    ("inner", "i64"),
    ("levels", "int"),
    ("beta", "T"),
    ("threshold", "T"),
    ("v_leak", "T"),
)
FORWARD = (
    ("x", "const IO*"),
    ("state0", "const T*"),
    ("params", "const T*"),
    ("s", "IO*"),
    ("state1", "T*"),
    ("saved", "T*"),
    *RULE,
)
BACKWARD = (
    ("state0", "const T*"),
    ("params", "const T*"),
    ("saved", "const T*"),
    ("grad_s", "const IO*"),
    ("grad_state1", "const T*"),
    ("grad_x", "IO*"),
    ("grad_state0", "T*"),
    ("grad_params", "double*"),
    *RULE,
)
_IO = ("float", "double", f"{launch.NAMESPACE}bf16", f"{launch.NAMESPACE}f16")  # by ops.py's number of a dtype
_SPACINGS = ("linear", "octave")
_THREADS = 128


def expression(way: str, spacing: int, dtype: int) -> str:
    """The instantiation for a spacing and a dtype."""
    return f"{launch.NAMESPACE}graded_{way}<{launch.NAMESPACE}Spacing::{_SPACINGS[spacing]}, {_IO[dtype]}>"


def _launch(
    way: str,
    table: tuple[tuple[str, str], ...],
    addresses: Sequence[int],
    sizes: Sequence[int],
    packed: Sequence[int],
    numbers: Sequence[float],
) -> Launch:
    dtype, spacing, levels = packed
    arguments = launch.scalars(table, _IO[dtype], (*addresses, *sizes, levels, *numbers))
    return Launch(expression(way, spacing, dtype), arguments, -(-sizes[1] // _THREADS), _THREADS, 0, "graded.cu")


def forward_launch(
    addresses: Sequence[int], sizes: Sequence[int], packed: Sequence[int], numbers: Sequence[float]
) -> Launch:
    """The launch of one forward pass; arguments as graded_ops.py hands them to a backend."""
    return _launch("forward", FORWARD, addresses, sizes, packed, numbers)


def backward_launch(
    addresses: Sequence[int], sizes: Sequence[int], packed: Sequence[int], numbers: Sequence[float]
) -> Launch:
    """The launch of one backward pass; arguments as graded_ops.py hands them to a backend."""
    return _launch("backward", BACKWARD, addresses, sizes, packed, numbers)


def forward(
    addresses: Sequence[int],
    sizes: Sequence[int],
    packed: Sequence[int],
    numbers: Sequence[float],
    device: torch.device,
) -> None:
    """Run graded_forward on a device; nothing to do where there are no neurons."""
    if sizes[1] > 0:
        launch.run(forward_launch(addresses, sizes, packed, numbers), device)


def backward(
    addresses: Sequence[int],
    sizes: Sequence[int],
    packed: Sequence[int],
    numbers: Sequence[float],
    device: torch.device,
) -> None:
    """Run graded_backward on a device; nothing to do where there are no neurons."""
    if sizes[1] > 0:
        launch.run(backward_launch(addresses, sizes, packed, numbers), device)
