"""Accuracy in repeated cross-validation with other libraries' neurons in the same network, on the same folds, with the same recipe.

Hours rather than minutes on slow machines, so it runs only where it is named: `spiking bench folds --data DIR`. Every contestant has
the same first weights, batches, augmentation and number of epochs; only the hidden neurons differ. Rounding alone sends two trainings
of the same network apart (by up to a point here), so each seed draws folds, weights and batches again, and a recording counts by the
share of seeds that got it right.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from spiking.benchmarks import peers
from spiking.benchmarks.run import Row
from torch import nn

from spiking.models.nmnist import NMNISTNet, Recipe, default_epochs
from spiking.models.nmnist.run import Recordings, build, cross_validate, open_recordings

NAME = "folds"
TITLE = "accuracy in 5-fold cross-validation, against the same network with peers' neurons (long)"
LONG = True
FOLDS = 5
SEEDS = (0, 1, 2)
OURS = "spiking"


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    recipe = Recipe(data=data or "", folds=FOLDS)
    recordings = open_recordings(recipe)
    n = (len(recordings.train) + len(recordings.test)) * (FOLDS - 1) // FOLDS
    epochs = 1 if quick else default_epochs(n, recordings.simulated)
    recipe = replace(recipe, train=replace(recipe.train, device=device, epochs=epochs))
    contestants: dict[str, Callable[[float], nn.Module] | None] = {
        OURS: None,
        **peers.installed("snntorch", "spikingjelly"),
    }
    right: dict[str, np.ndarray] = {}  # [seeds, recordings]
    for name, make in contestants.items():
        start = time.perf_counter()
        found = [_predictions(recipe, seed, recordings, make) for seed in SEEDS[: 1 if quick else None]]
        right[name] = np.stack([one[OURS] == one["label"] for one in found])
        note: dict[str, Any] = {
            "accuracy": _interval(right[name]),
            "per_seed": right[name].mean(1).tolist(),
            "against": _interval(right[OURS] - right[name].astype(float)),
        }
        if name == OURS:
            baselines = ("logistic_regression", "svm")
            note["baselines"] = {k: float(np.mean([one[k] == one["label"] for one in found])) for k in baselines}
        yield Row(NAME, name, [time.perf_counter() - start], None if name == OURS else OURS, note=json.dumps(note))


def _predictions(
    recipe: Recipe, seed: int, recordings: Recordings, make: Callable[[float], nn.Module] | None
) -> dict[str, np.ndarray]:
    recipe = replace(recipe, train=replace(recipe.train, seed=seed))
    with tempfile.TemporaryDirectory() as folder:
        cross_validate(recipe, recordings, Path(folder) / "run", network=_network(make))
        with np.load(Path(folder) / "run" / "predictions.npz") as found:
            return dict(found)


def _network(make: Callable[[float], nn.Module] | None) -> Callable[[Recipe, int], NMNISTNet]:
    def network(recipe: Recipe, fold: int) -> NMNISTNet:
        ours = build(recipe, fold)
        if make is not None:
            peers.with_neurons(ours, make)
        return ours

    return network


def _interval(values: np.ndarray) -> list[float]:
    """[mean, low, high]: the 95 % interval over recordings of the mean over seeds (bootstrap); values [seeds, recordings]."""
    from scipy.stats import bootstrap

    each = values.mean(0, dtype=float)
    if np.ptp(each) == 0:
        return [float(each[0])] * 3
    interval = bootstrap((each,), np.mean, n_resamples=10_000, method="percentile", rng=0).confidence_interval
    return [float(each.mean()), float(interval.low), float(interval.high)]


def summary(rows: Sequence[Row]) -> list[str]:
    """Accuracies with intervals, and the paired differences."""
    lines = []
    for row in rows:
        note = json.loads(row.note)
        mean, low, high = (100 * v for v in note["accuracy"])
        each = ", ".join(f"{100 * v:.1f}" for v in note["per_seed"])
        line = f"{row.what}: {mean:.1f} % (95 % interval {low:.1f}–{high:.1f}; each seed {each})"
        if row.what != OURS:
            difference, low, high = (100 * v for v in note["against"])
            line += f"; spiking minus {row.what}: {difference:+.1f} points ({low:+.1f} … {high:+.1f})"
        lines.append(line)
        for name, found in note.get("baselines", {}).items():
            lines.append(f"{name} on three time bins: {100 * found:.1f} %")
    return lines
