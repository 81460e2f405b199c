"""Output memory: large CPU tensors come from the compiled module's arena, everything else from torch.

Arena blocks return to a bounded cache when their tensor dies, so that a training loop meets no page fault after its first step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from . import backend

__all__ = ["SMALLEST", "empty", "limit", "release", "stats"]

SMALLEST = 1 << 20  # below, glibc reuses its own heap and costs no page faults
_CODES = {
    torch.float32: (2, 32),
    torch.float64: (2, 64),
    torch.float16: (2, 16),
    torch.bfloat16: (4, 16),
    torch.int16: (0, 16),
}


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised contiguous tensor, from the arena where that is quicker.

    >>> empty((2, 3), torch.float32, torch.device("cpu")).shape
    torch.Size([2, 3])
    """
    items = 1
    for d in shape:
        items *= d
    module = (
        backend.compiled() if device.type == "cpu" and dtype in _CODES and items * dtype.itemsize >= SMALLEST else None
    )
    if module is None or not backend.arena_on():
        return torch.empty(shape, dtype=dtype, device=device)
    return from_dlpack(module.arena_empty(list(shape), *_CODES[dtype]))


def limit(n_bytes: int) -> None:
    """Keep at most `n_bytes` of unused blocks; 0 switches the arena off."""
    backend.set_arena_limit(n_bytes)


def release() -> None:
    """Give every unused block back to the system."""
    module = backend.compiled()
    if module is not None:
        module.arena_release()


def stats() -> dict[str, int]:
    """Bytes cached and in use, the limit, and how many requests were met from the cache (empty where nothing is compiled)."""
    module = backend.compiled()
    return dict(module.arena_stats()) if module is not None else {}
