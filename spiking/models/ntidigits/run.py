"""From recordings to a report: train, test once on voices that were never heard, record, price, draw."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from spiking.classify import facts, finish, objective, train_and_test, write_json
from spiking.errors import SpikingError
from spiking.models.ntidigits.config import Recipe
from spiking.models.ntidigits.data import SoundBatches
from spiking.models.ntidigits.model import NTIDIGITSNet, optimizer
from spiking.progress import Display
from spiking.training import Trainer, seed_for

BASELINE_BINS = 5  # of the linear classifier beside the network


class Recordings(NamedTuple):
    """Both splits of the recordings, opened, and what was said about them on the way."""

    train: Any
    test: Any
    description: str
    told: tuple[str, ...]

    @property
    def simulated(self) -> bool:
        return bool(self.train.simulated)


def open_recordings(recipe: Recipe) -> Recordings:
    """The sound at `recipe.data`, simulated digits for "". Errors: those of `datasets.open_sound`."""
    from spiking.datasets import Cochlea, open_sound

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        train, test = open_sound(recipe.data or None, Cochlea(model=recipe.cochlea))
    description = train.describe() if train.simulated else f"{train.describe()} {test.describe()}"
    return Recordings(train, test, description, tuple(str(w.message) for w in caught))


def split(recipe: Recipe, recordings: Recordings) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on, and those of the speaker held out for choosing the epoch (none without one).

    Errors: SpikingError for a speaker who is not there, or says not all that others say.
    """
    speakers = np.asarray(recordings.train.speakers)
    everything = np.arange(len(speakers))
    if not recipe.validation:
        return everything, everything[:0]
    theirs = speakers == recipe.validation
    if not theirs.any() or theirs.all():
        known = ", ".join(sorted(set(speakers.tolist())))
        raise SpikingError(
            f"Recipe.validation: got {recipe.validation!r}; expected one of several training speakers: {known}."
        )
    return everything[~theirs], everything[theirs]


def fitted(recipe: Recipe, recordings: Recordings) -> Recipe:
    """The recipe with the inputs and classes of the recordings."""
    size = {"inputs": recordings.train.n_channels, "classes": len(recordings.train.classes)}
    return replace(recipe, model=replace(recipe.model, **size))


def build(recipe: Recipe, n_train: int) -> NTIDIGITSNet:
    """The network, its first weights drawn from the seed, for a training on so many recordings."""
    torch.manual_seed(seed_for(recipe.train.seed, 3))
    steps = recipe.train.epochs * max(1, n_train // recipe.train.batch_size)
    return NTIDIGITSNet(recipe.model, training_steps=steps)


def train(
    recipe: Recipe, recordings: Recordings, out: Path, resume: bool = False, display: Display | None = None
) -> dict[str, Any]:
    """Train and test; everything that is found lands in the folder `out`, the figures also in what is returned."""
    began = time.perf_counter()
    recipe = fitted(recipe, recordings)
    training, held_out = split(recipe, recordings)
    everything = SoundBatches(recordings.train, recipe.frames, recipe.train.seed)
    test = SoundBatches(recordings.test, recipe.frames)
    model = build(recipe, len(training))
    trainer = Trainer(model, objective(recipe.label_smoothing), recipe.train, out, display, optimizer=optimizer)
    parts = everything.subset(training), everything.subset(held_out), test
    found, figures = train_and_test(trainer, *parts, lambda: linear_baseline(recordings), resume)
    told = {"told": list(recordings.told)}
    metrics = {**facts(recipe, recordings.description, recordings.simulated), **told, **figures}
    finish(model, found, test, out, metrics, task(recordings), recordings.test.classes)
    metrics["seconds"] = round(time.perf_counter() - began, 1)
    write_json(out / "metrics.json", metrics)
    return metrics


def task(recordings: Recordings) -> str:
    """What the recordings are, in a word or two."""
    name = type(recordings.train).__name__
    return {"NTIDIGITS": "N-TIDIGITS", "SpokenDigits": "Spoken digits", "SimulatedDigits": "Spoken digits"}.get(
        name, name
    )


def linear_baseline(recordings: Recordings) -> np.ndarray:
    """Predictions for the test recordings by logistic regression on roots of the counts in a few parts of each recording."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    few = [
        np.sqrt(part.frames(BASELINE_BINS, binary=False)).transpose(1, 0, 2).reshape(len(part), -1)
        for part in recordings[:2]
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=0.01, max_iter=300).fit(few[0], recordings.train.labels)
    return model.predict(few[1])
