"""From recordings to a report: train, choose the epoch on held-out training data, test once, record, price, draw."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from spiking.classify import facts, finish, objective, train_and_test, write_json
from spiking.errors import SpikingError
from spiking.models.nmnist import baseline
from spiking.models.nmnist.config import Recipe
from spiking.models.nmnist.data import EventBatches
from spiking.models.nmnist.model import NMNISTNet
from spiking.progress import Display
from spiking.split import Proportion, hold_out, proportion
from spiking.training import Trainer, seed_for

# Recordings that a run looks at unless told otherwise: 100 epochs of 720 real ones, 15 of 1,300 simulated ones.
SEEN, SEEN_SIMULATED = 72_000, 20_000


class Recordings(NamedTuple):
    """Both splits of the recordings, opened."""

    train: Any
    test: Any
    simulated: bool
    description: str


def open_recordings(recipe: Recipe) -> Recordings:
    """N-MNIST below the folder `recipe.data`; the embedded simulated recordings for "". Errors: those of `datasets.NMNIST`."""
    from spiking.datasets import NMNIST

    train, test = (
        NMNIST(recipe.data or None, train=split, drop_tail=recipe.drop_tail, sort=recipe.sort_events)
        for split in (True, False)
    )
    threads = torch.get_num_threads()
    description = f"{train.describe()} {test.describe()}" if not train.simulated else train.describe()
    return Recordings(train.events(threads), test.events(threads), train.simulated, description)


def default_epochs(n: int, simulated: bool = False) -> int:
    """Epochs that show a network about as many recordings however many there are: fixed before any is looked at.

    >>> default_epochs(720), default_epochs(54_000), default_epochs(1_298, simulated=True)
    (100, 5, 15)
    """
    return max(5, round((SEEN_SIMULATED if simulated else SEEN) / n))


def build(recipe: Recipe, *more: int) -> NMNISTNet:
    """The network, its first weights drawn from the seed."""
    torch.manual_seed(seed_for(recipe.train.seed, 3, *more))
    return NMNISTNet(recipe.model)


def batches(recipe: Recipe, events: Any) -> EventBatches:
    return EventBatches(events, config=recipe.frames, seed=recipe.train.seed, threads=torch.get_num_threads())


def train(
    recipe: Recipe, recordings: Recordings, out: Path, resume: bool = False, display: Display | None = None
) -> dict[str, Any]:
    """Train and test; everything that is found lands in the folder `out`, the figures also in what is returned."""
    began = time.perf_counter()
    train_part, held_out = hold_out(recordings.train.labels, recipe.validation, recipe.train.seed)
    everything, test = batches(recipe, recordings.train), batches(recipe, recordings.test)
    model = build(recipe)
    trainer = Trainer(model, objective(recipe.label_smoothing), recipe.train, out, display)

    def linear() -> np.ndarray:
        few = [baseline.counts(e, recipe.frames.time_bins, recipe.frames.window_us) for e in recordings[:2]]
        return baseline.logistic_regression(few[0], recordings.train.labels, few[1])

    parts = everything.subset(train_part), everything.subset(held_out), test
    found, figures = train_and_test(trainer, *parts, linear, resume)
    metrics = {**facts(recipe, recordings.description, recordings.simulated), **figures}
    finish(model, found, test, out, metrics, "N-MNIST")
    metrics["seconds"] = round(time.perf_counter() - began, 1)
    write_json(out / "metrics.json", metrics)
    return metrics


def cross_validate(
    recipe: Recipe,
    recordings: Recordings,
    out: Path,
    resume: bool = False,
    display: Display | None = None,
    network: Callable[[Recipe, int], NMNISTNet] = build,
) -> dict[str, Any]:
    """Train `recipe.folds` networks on all recordings but a fold each, for the number of epochs in the recipe, and test each on
    the fold left out. folds.npz holds the assignment, predictions.npz every recording's prediction by every method.
    `network(recipe, fold)` makes the network of a fold, the recipe's own where it is not given.
    """
    from sklearn.model_selection import StratifiedKFold

    events = type(recordings.train).concatenate([recordings.train, recordings.test])
    labels, folds = np.asarray(events.labels), recipe.folds
    smallest = int(np.bincount(labels).min())
    if not 2 <= folds <= smallest:
        raise SpikingError(f"--folds: got {folds}; expected 2 to {smallest}, the recordings of the rarest class.")
    splitter = StratifiedKFold(folds, shuffle=True, random_state=recipe.train.seed)
    splits = [(np.asarray(a), np.asarray(b)) for a, b in splitter.split(labels, labels)]
    fold_of = np.empty(len(labels), np.int64)
    for k, (_, left_out) in enumerate(splits):
        fold_of[left_out] = k
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "folds.npz", fold=fold_of, label=labels)
    data, few_bins = batches(recipe, events), baseline.counts(events)
    predicted = {name: np.empty(len(labels), np.int64) for name in ("spiking", "logistic_regression", "svm")}
    per_fold = []
    for k, (training, left_out) in enumerate(splits):
        trainer = Trainer(
            network(recipe, k), objective(recipe.label_smoothing), recipe.train, out / f"fold-{k}", display
        )
        trainer.display.message(f"fold {k + 1} of {folds}: {len(training)} recordings, tested on {len(left_out)}")
        path = trainer.checkpoint_path
        trainer.fit(data.subset(training), resume=resume and path is not None and path.exists())
        predicted["spiking"][left_out] = trainer.evaluate(data.subset(left_out)).predictions
        for name, fit in (("logistic_regression", baseline.logistic_regression), ("svm", baseline.support_vectors)):
            predicted[name][left_out] = fit(few_bins[training], labels[training], few_bins[left_out])
        per_fold.append({name: float((p == labels)[left_out].mean()) for name, p in predicted.items()})
        trainer.display.message("  ".join(f"{name} {100 * value:.1f} %" for name, value in per_fold[-1].items()))
    np.savez(out / "predictions.npz", label=labels, fold=fold_of, **predicted)  # type: ignore[arg-type]
    metrics = {
        **facts(recipe, recordings.description, recordings.simulated),
        "folds": folds,
        "n": len(labels),
        "epochs": recipe.train.epochs,
        "per_fold": per_fold,
        "pooled": {name: proportion(int((p == labels).sum()), len(labels))._asdict() for name, p in predicted.items()},
    }
    write_json(out / "metrics.json", metrics)
    return metrics


__all__ = [
    "Proportion",
    "Recordings",
    "build",
    "cross_validate",
    "default_epochs",
    "hold_out",
    "open_recordings",
    "proportion",
    "train",
]
