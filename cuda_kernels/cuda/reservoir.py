"""Launches of reservoir.cu: one block for each sample. TABLE holds each kernel argument's (name, C type), as launch.py's tables do."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import launch
from .launch import Launch

__all__ = ["TABLE", "reservoir", "reservoir_launch"]

TABLE = (
    ("x", "const T*"),
    ("in_rows", "const T*"),
    ("bias", "const T*"),
    ("rec_rows", "const T*"),
    ("rec_offsets", "const i64*"),
    ("rec_receivers", "const u32*"),
    ("rec_weights", "const T*"),
    ("u", "T*"),
    ("s", "T*"),
    ("spikes", "T*"),
    ("membrane", "T*"),
    ("features", "T*"),
    ("bin", "const int*"),
    ("worth", "const T*"),
    ("lists", "u32*"),
    ("currents", "T*"),
    ("events", "i64*"),
    ("steps", "i64"),
    ("batch", "i64"),
    ("inputs", "i64"),
    ("neurons", "i64"),
    ("beta", "T"),
    ("threshold", "T"),
)
_THREADS = 128  # of a block; at most THREADS in common.cuh


def reservoir_launch(
    addresses: Sequence[int], sizes: Sequence[int], beta: float, threshold: float, wide: bool
) -> Launch:
    """The launch of one run over sizes [T, B, I, N]; addresses as the table has them, 0 where there is none."""
    io = "double" if wide else "float"
    arguments = launch.scalars(TABLE, io, (*addresses, *sizes, beta, threshold))
    return Launch(f"{launch.NAMESPACE}reservoir<{io}>", arguments, sizes[1], _THREADS, 4 * _THREADS, "reservoir.cu")


def reservoir(
    addresses: Sequence[int], sizes: Sequence[int], beta: float, threshold: float, wide: bool, device: torch.device
) -> None:
    """Run reservoir on a device."""
    launch.run(reservoir_launch(addresses, sizes, beta, threshold, wide), device)
