"""Bernoulli masks: the compiled kernel's, from a counter, or torch's."""

from __future__ import annotations

import torch
from torch import Tensor

from . import backend, memory
from .event_linear_ops import _plain

__all__ = ["dropout_mask"]


def dropout_mask(like: Tensor, p: float) -> Tensor:
    """Numbers of the shape of `like`, 0 with probability p and else 1 / (1 - p); they follow torch's random state.

    >>> sorted(set(dropout_mask(torch.empty(100), 0.5).tolist()))
    [0.0, 2.0]
    """
    plain = like.is_cpu and like.dtype is torch.float32 and not torch.compiler.is_compiling() and _plain(like)
    module = backend.compiled() if plain and backend.choose(like.device).name == "cpu" else None
    if module is None:
        return torch.empty_like(like).bernoulli_(1 - p).div_(1 - p)
    mask = memory.empty(like.shape, torch.float32, like.device)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    module.draw_mask(mask.data_ptr(), mask.numel(), seed, p, 1 / (1 - p), backend.threads())
    return mask
