"""Accuracy in cross-validation with other libraries' neurons in the same network, on the same folds, with the same recipe.

Hours rather than minutes on slow machines, so it runs only where it is named: `spiking bench folds --data DIR`. Every contestant has
the same first weights, batches, augmentation and number of epochs; only the hidden neurons differ.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from spiking.benchmarks import peers
from spiking.benchmarks.run import Row
from torch import nn

from spiking.models.nmnist import NMNISTNet, Recipe, default_epochs
from spiking.models.nmnist.run import build, cross_validate, open_recordings

NAME = "folds"
TITLE = "accuracy in 5-fold cross-validation, against the same network with peers' neurons (long)"
LONG = True
FOLDS = 5
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
    right: dict[str, np.ndarray] = {}
    for name, make in contestants.items():
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            metrics = cross_validate(recipe, recordings, Path(folder) / "run", network=_network(make))
            with np.load(Path(folder) / "run" / "predictions.npz") as found:
                right[name] = found["spiking"] == found["label"]
        note = {"accuracy": metrics["pooled"][OURS], "against": _against(right[OURS], right[name])}
        if name == OURS:
            note["baselines"] = {key: metrics["pooled"][key] for key in ("logistic_regression", "svm")}
        yield Row(NAME, name, [time.perf_counter() - start], None if name == OURS else OURS, note=json.dumps(note))


def _network(make: Callable[[float], nn.Module] | None) -> Callable[[Recipe, int], NMNISTNet]:
    def network(recipe: Recipe, fold: int) -> NMNISTNet:
        ours = build(recipe, fold)
        if make is not None:
            peers.with_neurons(ours, make)
        return ours

    return network


def _against(ours: np.ndarray, theirs: np.ndarray) -> list[float]:
    """Our accuracy minus theirs on the same recordings, with its 95 % interval: [difference, low, high] (paired bootstrap)."""
    from scipy.stats import bootstrap

    difference = ours.astype(float) - theirs.astype(float)
    if not difference.any():
        return [0.0, 0.0, 0.0]
    interval = bootstrap((difference,), np.mean, n_resamples=10_000, method="percentile", rng=0).confidence_interval
    return [float(difference.mean()), float(interval.low), float(interval.high)]


def summary(rows: Sequence[Row]) -> list[str]:
    """Accuracies with intervals, and the paired differences."""
    lines = []
    for row in rows:
        note = json.loads(row.note)
        accuracy = note["accuracy"]
        line = f"{row.what}: {100 * accuracy['value']:.1f} % (95 % interval {100 * accuracy['low']:.1f}–{100 * accuracy['high']:.1f})"
        if row.what != OURS:
            difference, low, high = (100 * v for v in note["against"])
            line += f"; spiking minus {row.what}: {difference:+.1f} points ({low:+.1f} … {high:+.1f})"
        lines.append(line)
        for name, found in note.get("baselines", {}).items():
            lines.append(f"{name} on three time bins: {100 * found['value']:.1f} %")
    return lines
