"""Launches of wkv.cu: one thread for each channel of each sequence.

FORWARD and BACKWARD hold each kernel argument's (name, C type), as launch.py's tables do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from spiking.cuda_kernels.ops import CHUNK

from . import launch
from .launch import Launch

__all__ = ["BACKWARD", "FORWARD", "backward", "backward_launch", "forward", "forward_launch"]

SIZES = (("steps", "i64"), ("batch", "i64"), ("channels", "i64"))
FORWARD = (
    ("w", "const T*"),
    ("u", "const T*"),
    ("k", "const IO*"),
    ("v", "const IO*"),
    ("state0", "const T*"),
    ("y", "IO*"),
    ("state1", "T*"),
    ("saved", "T*"),
    *SIZES,
)
BACKWARD = (
    ("w", "const T*"),
    ("u", "const T*"),
    ("k", "const IO*"),
    ("v", "const IO*"),
    ("state0", "const T*"),
    ("saved", "const T*"),
    ("grad_y", "const IO*"),
    ("grad_state1", "const T*"),
    ("grad_k", "IO*"),
    ("grad_v", "IO*"),
    ("grad_state0", "T*"),
    ("grad_params", "double*"),
    *SIZES,
)
_IO = ("float", "double", f"{launch.NAMESPACE}bf16", f"{launch.NAMESPACE}f16")  # by ops.py's number of a dtype
_THREADS = 64  # of a block: few, so that 6,000 channels still reach every processor


def _launch(
    name: str, table: tuple[tuple[str, str], ...], addresses: Sequence[int], sizes: Sequence[int], dtype: int, kept: int
) -> Launch:
    io = _IO[dtype]
    arguments = launch.scalars(table, io, (*addresses, *sizes))
    shared = _THREADS * kept * (8 if io == "double" else 4)
    return Launch(
        f"{launch.NAMESPACE}{name}<{io}>", arguments, -(-sizes[1] * sizes[2] // _THREADS), _THREADS, shared, "wkv.cu"
    )


def forward_launch(addresses: Sequence[int], sizes: Sequence[int], dtype: int) -> Launch:
    """The launch of one forward pass over sizes [T, B, C]; addresses as the table has them."""
    return _launch("wkv_forward", FORWARD, addresses, sizes, dtype, 0)


def backward_launch(addresses: Sequence[int], sizes: Sequence[int], dtype: int) -> Launch:
    """The launch of one backward pass over sizes [T, B, C]; addresses as the table has them."""
    return _launch("wkv_backward", BACKWARD, addresses, sizes, dtype, 4 * CHUNK)


def forward(addresses: Sequence[int], sizes: Sequence[int], dtype: int, device: torch.device) -> None:
    """Run wkv_forward on a device."""
    launch.run(forward_launch(addresses, sizes, dtype), device)


def backward(addresses: Sequence[int], sizes: Sequence[int], dtype: int, device: torch.device) -> None:
    """Run wkv_backward on a device."""
    launch.run(backward_launch(addresses, sizes, dtype), device)
