"""`spiking lsm run --zero-shot`: do event images and event sound meet where neither class was seen, on recordings?

Every row is averaged over all pairs of unseen classes and over seeds (reservoirs, projections, and which third of the images is held
out). Beside the reservoirs stand controls: pairs of wrong classes, projections as drawn, no recurrence, counts of the recordings
themselves. The last epoch is taken, and nothing is chosen on unseen classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spiking.errors import SpikingError
from spiking.models.lsm.readout import folds_of
from spiking.models.lsm.run import Recipe, open_recordings, reservoir
from spiking.models.lsm.zero_shot import Alignment, Outcome, Sense, align, interval, zero_shot

HELD_OUT = 3  # one image in so many is a test image
PRESETS = {
    "published": Alignment(batch_size=8, epochs=100),
    "soft": Alignment(loss="soft"),
    "label-aware": Alignment(loss="supervised", cosine=True, tau=0.07),
}
# %: audio to image, seen and unseen, of digits 8 and 9 only; the epoch and the constants were selected on the test set
PUBLISHED = {"software": {"seen": 66.1, "unseen": 88.0}, "hardware": {"seen": 67.42, "unseen": 87.5}}
WAYS = {"a to b": "image to sound", "b to a": "sound to image"}
CHANCE = 0.5


@dataclass(frozen=True)
class ZeroShotRecipe:
    """Settings of `spiking lsm run --zero-shot`. `data`, `sound` "": simulated recordings. `controls`: measure the controls, too.

    Errors: SpikingError naming the field that is out of range.
    """

    data: str = ""
    sound: str = ""
    preset: str = "published"
    neurons: int = 0
    device: str = "gaussian"
    cell: str = ""
    seeds: int = 10
    epochs: int = 0
    limit: int = 900
    controls: bool = True

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise SpikingError(f"ZeroShotRecipe.preset: got {self.preset!r}; expected {' or '.join(PRESETS)}.")
        for name, least in {"neurons": 0, "seeds": 1, "epochs": 0, "limit": 100}.items():
            if getattr(self, name) < least:
                raise SpikingError(f"ZeroShotRecipe.{name}: got {getattr(self, name)}; expected {least} or more.")

    @property
    def alignment(self) -> Alignment:
        chosen = PRESETS[self.preset]
        return replace(chosen, epochs=self.epochs) if self.epochs else chosen

    def of(self, task: str) -> Recipe:
        """The recordings and reservoirs of one sense."""
        return Recipe(
            task=task, data=self.data if task == "images" else self.sound, preset="zero-shot", neurons=self.neurons,
            device=self.device, cell=self.cell, limit=self.limit,
        )  # fmt: skip


class Senses:
    """Both senses of a recipe: what is read once, and features of a seed's reservoirs, held until another seed is asked for."""

    def __init__(self, recipe: ZeroShotRecipe) -> None:
        self.recipes = [recipe.of("images"), recipe.of("sound")]
        self.recordings = [open_recordings(r) for r in self.recipes]
        self._batches: list[list[Tensor]] = [list(r.batches()) for r in self.recordings]
        self._held: dict[tuple[int, bool], tuple[Sense, Sense]] = {}
        self.rates: dict[int, tuple[float, float]] = {}  # of each seed

    @property
    def classes(self) -> list[int]:
        """The classes that both senses have."""
        found = [set(r.labels.tolist()) for r in self.recordings]
        return sorted(found[0] & found[1])

    def states(self, seed: int, recurrent: bool = True) -> tuple[Sense, Sense]:
        """Spike counts of both reservoirs."""
        if (seed, recurrent) not in self._held:
            self._held = {key: kept for key, kept in self._held.items() if key[0] == seed}
            features = []
            for recipe, recordings, batches in zip(self.recipes, self.recordings, self._batches):
                lsm = reservoir(recipe, recordings, seed, recurrent)
                features.append(torch.cat([lsm.features(x) for x in batches]))
            if recurrent:
                self.rates[seed] = float(features[0].mean()), float(features[1].mean())
            self._held[seed, recurrent] = self._cut(features, seed)
        return self._held[seed, recurrent]

    def counts(self, seed: int) -> tuple[Sense, Sense]:
        """Event counts of the recordings, in place of reservoirs."""
        return self._cut([torch.from_numpy(r.counts).float() for r in self.recordings], seed)

    def _cut(self, features: list[Tensor], seed: int) -> tuple[Sense, Sense]:
        images, sound = self.recordings
        fold = folds_of(images.labels, HELD_OUT, 0)
        held = np.flatnonzero(fold == seed % HELD_OUT), sound.splits[0][1]
        kept = np.flatnonzero(fold != seed % HELD_OUT), sound.splits[0][0]

        def sense(side: int) -> Sense:
            labels = torch.from_numpy(np.asarray(self.recordings[side].labels))
            own, test = torch.from_numpy(kept[side]), torch.from_numpy(held[side])
            return Sense(features[side][own], labels[own], features[side][test], labels[test])

        return sense(0), sense(1)


def run(
    recipe: ZeroShotRecipe, say: Callable[[str], None] = lambda text: None, folder: Path | None = None
) -> dict[str, Any]:
    """All rows of a recipe, each told to `say`; into the folder, if there is one, go confusion matrices and a picture of embeddings."""
    senses = Senses(recipe)
    classes, config = senses.classes, recipe.alignment
    variants: dict[str, tuple[Callable[[int], tuple[Sense, Sense]], dict[str, Any]]] = {
        "reservoirs": (senses.states, {})
    }
    if recipe.controls:
        variants |= {
            "control, pairs of wrong classes": (senses.states, {"shuffled": True}),
            "control, projections as drawn": (senses.states, {"untrained": True}),
            "reservoirs without recurrence": (lambda seed: senses.states(seed, False), {}),
            "event counts, no reservoirs": (senses.counts, {}),
        }
    rows: dict[str, Any] = {}
    for name, (features, options) in variants.items():
        found = zero_shot(features, classes=classes, seeds=recipe.seeds, config=config, **options)
        rows[name] = {WAYS[way]: _row(outcome) for way, outcome in found.items()}
        for way, row in rows[name].items():
            say(f"{name}, {way}: unseen {shown(row['unseen'])}; seen {100 * row['seen']['mean']:.1f} %")
        if name == "reservoirs" and folder is not None:
            _draw(folder, found, senses, classes, config)
    return {
        "recordings": [r.description for r in senses.recordings],
        "simulated": any(r.simulated for r in senses.recordings),
        "classes": classes,
        "rows": rows,
        "firing_rates": dict(zip(("images", "sound"), np.mean(list(senses.rates.values()), 0).tolist())),
        "published": PUBLISHED,
        "shows_skill": {way: row["unseen"]["low"] > CHANCE for way, row in rows["reservoirs"].items()},
    }


def _row(outcome: Outcome) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: interval(getattr(outcome, name))._asdict() for name in ("unseen", "seen", "generalised")
    }
    row["runs"] = outcome.unseen.round(4).tolist()
    row["confusion"] = outcome.confusion.sum(0).tolist()
    return row


def shown(row: dict[str, float]) -> str:
    """An interval over pairs in words."""
    return (
        f"{100 * row['mean']:.1f} % (95 % interval over pairs {100 * row['low']:.1f}–{100 * row['high']:.1f}; single runs "
        f"± {100 * row['run_std']:.1f})"
    )


def _draw(folder: Path, found: dict[str, Outcome], senses: Senses, classes: list[int], config: Alignment) -> None:
    """Confusions of unseen classes among all, and where test recordings of the first pair and seed lie."""
    from matplotlib.figure import Figure

    from spiking import plot

    folder.mkdir(parents=True, exist_ok=True)
    pairs = [(i, j) for i in range(len(classes)) for j in range(i + 1, len(classes))]
    figure = Figure(figsize=(11, 5), layout="constrained")
    for k, (way, outcome) in enumerate(found.items()):
        unseen = np.zeros((len(classes), len(classes)))
        for counts, pair in zip(outcome.confusion, pairs):
            unseen[list(pair)] += counts[list(pair)]
        ax = plot.confusion_matrix(
            (100 * unseen / unseen.sum(1, keepdims=True)).round(), figure.add_subplot(1, 2, k + 1),
            classes=[str(c) for c in classes], title=f"{WAYS[way]}: unseen queries among all classes, %",
        )  # fmt: skip
        ax.set(xlabel="class retrieved", ylabel="class of the query, never seen")
    figure.savefig(folder / "confusion.png", dpi=110)
    pair = (classes[-2], classes[-1])
    a, b = senses.states(0)
    sight, sound = align(a, b, [pair], classes, config, 0)
    figure = Figure(figsize=(7, 5), layout="constrained")
    plot.embedding(
        {"images": (sight[0], a.test_labels), "sound": (sound[0], b.test_labels)}, figure.add_subplot(),
        title=f"embeddings of test recordings; classes {pair[0]} and {pair[1]} were never seen",
    )  # fmt: skip
    figure.savefig(folder / "embedding.png", dpi=110)
