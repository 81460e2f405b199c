"""Threshold guidance: better samples from a trained network by one other threshold, found by trying.

Source: Cao et al. 2024 (arXiv 2408.16467), section IV, who searched by FID. Here a threshold counts as better only where it is
better by more than the spread over sampling seeds, on seeds and images that the choice has not seen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spiking.checkpoint import write_atomically
from spiking.errors import SpikingError
from spiking.models.diffusion.metrics import Interval, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ThresholdSearch", "search_threshold"]

CANDIDATES = (0.90, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0, 1.005, 1.01, 1.02, 1.03, 1.05, 1.10)


@dataclass(frozen=True)
class ThresholdSearch:
    """What was tried, which was chosen, and both it and threshold 1 on seeds that were kept for the report (lower is better)."""

    tried: dict[float, Interval]
    chosen: float
    at_chosen: Interval
    at_one: Interval

    @property
    def is_better(self) -> bool:
        """Whether the chosen threshold beats 1 by more than the intervals of both are wide."""
        return self.chosen != 1.0 and self.at_chosen.high < self.at_one.low

    def __str__(self) -> str:
        verdict = "better than 1" if self.is_better else "no better than 1 beyond the spread over seeds"
        return f"threshold {self.chosen:g}: {self.at_chosen}; threshold 1: {self.at_one}; {verdict}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """The figure over thresholds, a bar for each interval."""
        from spiking.plot import BLUE, GREY

        at = sorted(self.tried)
        rows = [self.tried[t] for t in at]
        if ax is None:
            from matplotlib.figure import Figure

            ax = Figure(figsize=(6, 3.5), layout="constrained").subplots()
        errors = [[r.mean - r.low for r in rows], [r.high - r.mean for r in rows]]
        ax.errorbar(at, [r.mean for r in rows], yerr=errors, fmt="o-", color=BLUE, capsize=3)
        ax.axvline(1.0, color=GREY, linestyle="--")
        ax.set(xlabel="threshold of all neurons", ylabel="distance to real images")
        return ax


def search_threshold(
    metric: Callable[[float, int, bool], float],
    candidates: Sequence[float] = CANDIDATES,
    seeds: int = 3,
    cache: str | Path | None = None,
) -> ThresholdSearch:
    """The threshold with the lowest mean of `metric(threshold, seed, report)` over seeds; 1 is always a candidate.

    `report` False asks for the half of the real images that the choice may see, True for the other half; the seeds of the
    report are new ones. `cache`: a JSON file that keeps each figure, so that a search that was stopped goes on.
    Errors: SpikingError for no seeds, or a cache that is something else.

    >>> found = search_threshold(lambda threshold, seed, report: (threshold - 0.99) ** 2 + seed / 1e9, seeds=2)
    >>> found.chosen, found.is_better
    (0.99, True)
    """
    if seeds < 1:
        raise SpikingError(f"search_threshold.seeds: got {seeds}; expected at least 1.")
    known: dict[str, float] = {}
    if cache is not None and Path(cache).is_file():
        try:
            known = {str(k): float(v) for k, v in json.loads(Path(cache).read_text()).items()}
        except (ValueError, AttributeError, TypeError) as err:
            raise SpikingError(
                f"{cache}: not a cache of a threshold search ({err}). Remove it, or name another."
            ) from err

    def figure(threshold: float, seed: int, report: bool) -> float:
        key = f"{threshold:.6g}/{seed}/{'report' if report else 'select'}"
        if key not in known:
            known[key] = metric(threshold, seed, report)
            if cache is not None:
                write_atomically(cache, json.dumps(known, indent=1).encode())
        return known[key]

    def over(threshold: float, first: int, report: bool) -> Interval:
        return interval([figure(threshold, first + i, report) for i in range(seeds)])

    tried = {t: over(t, 0, False) for t in sorted({*candidates, 1.0})}
    chosen = min(tried, key=lambda t: (tried[t].mean, abs(t - 1)))
    return ThresholdSearch(tried, chosen, over(chosen, seeds, True), over(1.0, seeds, True))
