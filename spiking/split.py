"""Samples held out for choosing, and shares of successes with their intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spiking.errors import SpikingError

__all__ = ["Proportion", "hold_out", "proportion"]

INTERVAL = 0.95


class Proportion(NamedTuple):
    """A share of successes with its 95 % interval (Wilson 1927), all in 0…1."""

    value: float
    low: float
    high: float
    hits: int
    n: int

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % (95 % interval {100 * self.low:.1f}–{100 * self.high:.1f}, {self.hits} of {self.n})"


def proportion(hits: int, n: int) -> Proportion:
    """Hits of n with their interval.

    >>> str(proportion(97, 100))
    '97.0 % (95 % interval 91.5–99.0, 97 of 100)'
    """
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(INTERVAL, method="wilson")
    return Proportion(hits / n, float(interval.low), float(interval.high), hits, n)


def hold_out(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training and for validation, with the same mix of classes; of each class one at least is held out."""
    everything = np.arange(len(labels))
    if share == 0:
        return everything, everything[:0]
    from sklearn.model_selection import train_test_split

    n = max(round(share * len(labels)), len(np.unique(labels)))
    try:
        train, held_out = train_test_split(everything, test_size=n, random_state=seed, stratify=labels)
    except ValueError as err:
        raise SpikingError(f"Recipe.validation: got {share} of {len(labels)} recordings: {err}") from err
    return np.sort(train), np.sort(held_out)
