"""How the weights of a SpikeGPT begin: the published vectors, and a scale of each branch at which its neurons fire."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["RATE", "mixes", "scale_to_fire", "time_decay", "time_first"]

RATE = 0.12  # of the neurons of each branch before training


def time_decay(channels: int, depth: float) -> Tensor:
    """Logarithms of the decay rates, from -5 to 3 over the channels; `depth` is 0 in the first layer and 1 in the last."""
    place = torch.arange(channels, dtype=torch.float64) / max(1, channels - 1)
    return -5 + 8 * place ** (0.7 + 1.3 * depth)


def time_first(channels: int) -> Tensor:
    """Bonuses of the present step: ln 0.3, and half more or less by turns."""
    return math.log(0.3) + 0.5 * ((torch.arange(channels, dtype=torch.float64) + 1) % 3 - 1)


def mixes(channels: int, layer: int, n_layer: int) -> dict[str, Tensor]:
    """Shares of the present step in what keys, values and gates read, [1, 1, C] each."""
    ascent = 1 - layer / n_layer
    place = (torch.arange(channels, dtype=torch.float64) / channels).reshape(1, 1, -1)
    key = place**ascent
    return {"k": key, "v": key + 0.3 * layer / max(1, n_layer - 1), "r": place ** (ascent / 2)}


def scale_to_fire(rate_at: Callable[[float], float]) -> float:
    """The factor at which a branch drives its neurons to fire at RATE, found by halving an interval of powers."""
    low, high = -3.0, 5.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if rate_at(10**middle) < RATE else (low, middle)
    return float(10**high)
