"""`spiking lsm run`: a reservoir on recordings of sight or sound, beside the controls that it has to beat.

Every row is measured on the same folds (images) or the same speaker-independent split (sound), with the same crop and time bins; whatever
is chosen (the strength of a penalty) is chosen inside the training part. Constants of the reservoirs are fixed in `PRESETS`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spiking import datasets
from spiking.errors import SpikingError
from spiking.models.lsm.model import LiquidStateMachine
from spiking.models.lsm.readout import LinearReadout, folds_of
from spiking.models.lsm.weights import draw, receptive_fields
from spiking.split import proportion

BATCH = 128  # recordings that are encoded at once
FOLDS = 5
WINDOW = {"published": 300_000, "zero-shot": 300_000, "tuned": 315_000}  # µs of a recording of images
MOST_FOR_SVM = 5_000  # recordings beyond which the support vector machine is left out
PUBLISHED = {"images": {"software": 89.11, "hardware": 89.66}, "sound": {"software": 70.79, "hardware": 70.11}}


@dataclass(frozen=True)
class Preset:
    """Numbers of one reservoir; recurrent weights are `recurrence` times those of `const`; `cochlea` hears wav files.

    `field` 0: every neuron sees every input; `sparsity` 0: every neuron sees every neuron.
    """

    neurons: int
    steps: int
    beta: float
    threshold: float
    const: float
    time_bins: int
    crop: tuple[int, int] = (0, 1)
    polarity: str = "on"
    field: int = 0
    sparsity: float = 0.0
    recurrence: float = 1.0
    cochlea: str = "cascade"


PRESETS = {
    "images": {
        "published": Preset(200, 50, 0.9, 5.0, 0.07, 1, crop=(9, 25)),
        "zero-shot": Preset(200, 50, 0.9, 5.0, 0.3, 1, crop=(9, 25)),
        "tuned": Preset(2000, 50, 0.9, 5.0, 0.1, 3, crop=(2, 32), polarity="both", field=9, sparsity=0.99),
    },
    "sound": {
        "published": Preset(200, 129, 0.97, 5.3, 0.08, 1),
        "zero-shot": Preset(200, 129, 0.97, 5.3, 0.1, 1),
        "tuned": Preset(1000, 129, 0.9, 5.3, 0.3, 1, recurrence=0.5, cochlea="gammatone"),
    },
}


@dataclass(frozen=True)
class Recipe:
    """Settings of `spiking lsm run`. `data` "": simulated images or sound. `cell` "": no arrays.

    Errors: SpikingError naming the field that is out of range.
    """

    task: str = "images"
    data: str = ""
    preset: str = "published"
    neurons: int = 0
    device: str = "gaussian"
    cell: str = ""
    readout: str = "ridge"
    seeds: int = 3
    limit: int = 900

    def __post_init__(self) -> None:
        choices = {
            "task": tuple(PRESETS),
            "preset": tuple(PRESETS.get(self.task, ("published",))),
            "readout": ("ridge", "logistic", "linear"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise SpikingError(f"Recipe.{name}: got {getattr(self, name)!r}; expected {' or '.join(allowed)}.")
        for name, least in {"neurons": 0, "seeds": 1, "limit": 50}.items():
            if getattr(self, name) < least:
                raise SpikingError(f"Recipe.{name}: got {getattr(self, name)}; expected {least} or more.")

    @property
    def numbers(self) -> Preset:
        return PRESETS[self.task][self.preset]


class Recordings(NamedTuple):
    """Recordings ready for a reservoir: batches of x [T, B, I] in order, labels, splits (training, test), counts [S, time_bins·I]."""

    description: str
    simulated: bool
    shape: tuple[int, int, int]  # channels, height, width of the inputs
    n_classes: int
    labels: np.ndarray
    splits: list[tuple[np.ndarray, np.ndarray]]
    counts: np.ndarray
    batches: Callable[[], Iterator[Tensor]]


def open_recordings(recipe: Recipe) -> Recordings:
    """The recordings that a recipe names. Errors: SpikingError saying what was looked for."""
    return _images(recipe) if recipe.task == "images" else _sound(recipe)


def _images(recipe: Recipe) -> Recordings:
    p, window = recipe.numbers, WINDOW[recipe.preset]
    parts = [datasets.NMNIST(recipe.data or None, train=train) for train in (True, False)]
    stores = [part.events() for part in parts]
    labels = np.concatenate([part.labels for part in parts])
    kept = np.sort(np.random.default_rng(0).permutation(len(labels))[: recipe.limit])
    owner = [(0, i) for i in range(len(parts[0]))] + [(1, i) for i in range(len(parts[1]))]
    (low, high), polarities = p.crop, slice(None) if p.polarity == "both" else slice(1, 2)

    def frames(indices: np.ndarray, bins: int, clip: bool) -> np.ndarray:
        both = []
        for which in (0, 1):
            mine = [owner[i][1] for i in indices if owner[i][0] == which]
            if mine:
                framed = stores[which].frames(
                    mine, time_bins=bins, t_window=(0, window - 1), dtype=np.float32, clip=clip, time_major=True
                )
                both.append(framed[:, :, polarities, low:high, low:high])
        return np.concatenate(both, 1)

    def batches() -> Iterator[Tensor]:
        for at in range(0, len(kept), BATCH):
            yield torch.from_numpy(np.ascontiguousarray(frames(kept[at : at + BATCH], p.steps, True))).flatten(2)

    counted = frames(kept, p.time_bins, False)
    y = labels[kept]
    fold = folds_of(y, FOLDS, 0)
    splits = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(FOLDS)]
    side = high - low
    what = f"{len(kept):,} of {len(labels):,} recordings, both splits together, {FOLDS} folds. {parts[0].describe()}"
    counts = counted.transpose(1, 0, 2, 3, 4).reshape(len(kept), -1)
    return Recordings(
        what, parts[0].simulated, (counted.shape[2], side, side), len(parts[0].classes), y, splits, counts, batches
    )


def _sound(recipe: Recipe) -> Recordings:
    p = recipe.numbers
    train, test = datasets.open_sound(recipe.data or None, datasets.Cochlea(model=p.cochlea))
    labels = np.concatenate([train.labels, test.labels])
    n = len(train)

    def batches() -> Iterator[Tensor]:
        for part in (train, test):
            for at in range(0, len(part), BATCH):
                indices = np.arange(at, min(at + BATCH, len(part)))
                yield torch.from_numpy(part.frames(p.steps, indices=indices))

    bins = [part.frames(p.time_bins, binary=False).transpose(1, 0, 2).reshape(len(part), -1) for part in (train, test)]
    what = f"{train.describe()} {test.describe()}"
    splits = [(np.arange(n), n + np.arange(len(test)))]
    shape = (1, 1, train.n_channels)
    n_classes = len(train.classes)
    return Recordings(what, train.simulated, shape, n_classes, labels, splits, np.concatenate(bins), batches)


def reservoir(recipe: Recipe, recordings: Recordings, seed: int, recurrent: bool = True) -> LiquidStateMachine:
    """The reservoir of a recipe, of one seed."""
    p = recipe.numbers
    inputs, n = int(np.prod(recordings.shape)), recipe.neurons or p.neurons
    weights = draw(
        inputs,
        n,
        const=p.const,
        device=recipe.device,
        seed=seed,
        sparsity=p.sparsity or None,
        recurrent=recurrent,
    )
    if weights.w_rec is not None and p.recurrence != 1:
        weights = weights._replace(w_rec=p.recurrence * weights.w_rec)
    if p.field:
        weights = weights._replace(w_in=weights.w_in * receptive_fields(*recordings.shape, n, p.field, seed))
    return LiquidStateMachine(
        inputs,
        n,
        recordings.n_classes,
        beta=p.beta,
        threshold=p.threshold,
        const=p.const,
        device=recipe.device,
        seed=seed,
        time_bins=p.time_bins,
        weights=weights,
        crossbar=recipe.cell or None,
    )


def run(recipe: Recipe, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """All rows of a recipe: accuracies with intervals, spike rates, synaptic operations; `say` is told each row as it is ready."""
    recordings = open_recordings(recipe)
    rows: dict[str, dict[str, Any]] = {}
    facts: dict[str, list[float]] = {"firing_rate": [], "synops": []}
    variants = {"reservoir": True, "reservoir without recurrence": False}
    for name, recurrent in variants.items():
        hits = []
        for seed in range(recipe.seeds):
            lsm = reservoir(recipe, recordings, seed, recurrent)
            runs = [lsm.run(x) for x in recordings.batches()]
            features = torch.cat([r.features.transpose(0, 1).flatten(1) for r in runs])
            hits.append(_by_readout(features, recordings, recipe.readout))
            if recurrent:
                facts["firing_rate"].append(float(features.mean()))
                events = torch.cat([r.events for r in runs]).double().mean(0)
                facts["synops"].append(float(events.sum()) * lsm.n)
        rows[name] = _row(hits, recordings)
        say(f"{name}: {shown(rows[name])}")
    controls = {
        "counts, same readout": lambda: _by_readout(torch.from_numpy(recordings.counts), recordings, recipe.readout),
        "logistic regression, roots of counts": lambda: _by_readout(
            torch.from_numpy(np.sqrt(recordings.counts)), recordings, "logistic"
        ),
    }
    if len(recordings.labels) <= MOST_FOR_SVM:
        controls["support vectors, counts"] = lambda: _by_support_vectors(recordings)
    for name, measure in controls.items():
        rows[name] = _row([measure()], recordings)
        say(f"{name}: {shown(rows[name])}")
    return {
        "task": recipe.task,
        "preset": recipe.preset,
        "recordings": recordings.description,
        "simulated": recordings.simulated,
        "rows": rows,
        "loses_to": [n for n in rows if not n.startswith("reservoir") and rows[n]["mean"] > rows["reservoir"]["mean"]],
        "published": PUBLISHED[recipe.task],
        "firing_rate": statistics.mean(facts["firing_rate"]),
        "synops": statistics.mean(facts["synops"]),
        "dense_macs": recipe.numbers.steps * lsm.n * (lsm.in_features + lsm.n),
    }


def instances(recipe: Recipe, n: int, say: Callable[[str], None] = lambda text: None) -> dict[str, list[float]]:
    """Accuracy of n chips with the reservoir of a recipe on its `cell`, each with devices and weights of its own.

    Three columns: the same weights without a cell; the cell, with the readout fitted through the same chip; the cell, with the readout
    that was fitted without.
    Errors: SpikingError for a recipe without a cell.
    """
    if not recipe.cell:
        raise SpikingError("instances: got a recipe without a cell; expected a memory cell such as rram-40nm.")
    recordings = open_recordings(recipe)
    batches, exact = list(recordings.batches()), replace(recipe, cell="")
    n_tested = sum(len(test) for _, test in recordings.splits)
    found: dict[str, list[float]] = {}
    for seed in range(n):
        clean, chip = (
            torch.cat([lsm.features(x) for x in batches])
            for lsm in (reservoir(r, recordings, seed) for r in (exact, recipe))
        )
        columns = {
            "exact weights": (clean, clean),
            "readout fitted through the chip": (chip, chip),
            "readout fitted on exact weights": (clean, chip),
        }
        for name, (fitted_on, used_on) in columns.items():
            hits = _by_readout(fitted_on, recordings, recipe.readout, used_on)
            found.setdefault(name, []).append(hits / n_tested)
        say(f"chip {seed + 1} of {n}: " + ", ".join(f"{name} {100 * of[-1]:.1f} %" for name, of in found.items()))
    return found


def _by_readout(features: Tensor, recordings: Recordings, kind: Any, used_on: Tensor | None = None) -> int:
    """Hits over all test parts; `used_on`: the features that the fitted readout meets there, others than those it is fitted to."""
    hits, met = 0, features if used_on is None else used_on
    for train, test in recordings.splits:
        readout = LinearReadout(features.shape[1], recordings.n_classes)
        readout.fit(features[train], recordings.labels[train], kind)
        hits += int((readout(met[test]).argmax(1).numpy() == recordings.labels[test]).sum())
    return hits


def _by_support_vectors(recordings: Recordings) -> int:
    from sklearn.svm import SVC

    x, y = recordings.counts, recordings.labels
    return sum(int((SVC(C=10.0).fit(x[a], y[a]).predict(x[b]) == y[b]).sum()) for a, b in recordings.splits)


def _row(hits: list[int], recordings: Recordings) -> dict[str, Any]:
    """Mean over seeds, spread between them, and the interval of the recordings at the mean."""
    n = sum(len(test) for _, test in recordings.splits)
    found = proportion(round(statistics.mean(hits)), n)
    spread = statistics.stdev(hits) / n if len(hits) > 1 else 0.0
    return {
        "mean": statistics.mean(hits) / n,
        "std": spread,
        "low": found.low,
        "high": found.high,
        "n": n,
        "hits": hits,
    }


def shown(row: dict[str, Any]) -> str:
    """A row in words."""
    spread = f" ± {100 * row['std']:.1f} over {len(row['hits'])} seeds" if len(row["hits"]) > 1 else ""
    return f"{100 * row['mean']:.1f} %{spread} (95 % interval {100 * row['low']:.1f}–{100 * row['high']:.1f} of {row['n']})"
