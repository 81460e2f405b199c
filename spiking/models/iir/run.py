"""From images to a report: train a network, convert it, retrain it at ever fewer steps, test once a stage, price, draw."""

from __future__ import annotations

import itertools
import json
import math
import platform
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as tf

from spiking import checkpoint as ckpt
from spiking import compile_events, hw_models
from spiking.convert import SpikingNet, from_ann
from spiking.datasets import Images, read_images
from spiking.errors import SpikingError
from spiking.layer import Sequential
from spiking.models.iir.data import ImageBatches, statistics
from spiking.models.iir.energy import price
from spiking.models.iir.ladder import LadderConfig, LadderResult, StageReport, reduce_timesteps
from spiking.models.iir.networks import RESNETS, VGG, VGGS, ResNet, SpikingResNet, SpikingVGG
from spiking.progress import Display, open_display
from spiking.split import hold_out, proportion
from spiking.training import Objective, TrainConfig, Trainer, milestones, seed_for

__all__ = [
    "PRESETS",
    "Preset",
    "Recipe",
    "build",
    "open_images",
    "parse_schedule",
    "run",
    "split",
    "train_ann",
    "unretrained_name",
]

FOLDERS = {  # below the root, for the sets that have a name
    "mnist": ("mnist",),
    "fashion": ("fashion-mnist", "fashion"),
    "cifar10": (
        "cifar-10-batches-py",
        "cifar-10-batches-bin",
        "cifar-10-python.tar.gz",
        "cifar-10-binary.tar.gz",
        "cifar10",
    ),
    "cifar100": (
        "cifar-100-python",
        "cifar-100-binary",
        "cifar-100-python.tar.gz",
        "cifar-100-binary.tar.gz",
        "cifar100",
    ),
}
CALIBRATED = 512  # training images that thresholds are found with


class Preset(NamedTuple):
    """A way to one step: over how many steps thresholds are calibrated (0: as many as the first stage has), and the stages.

    `share`: epochs of a stage, as a multiple of the recipe's; what a start saves in stages it may spend in epochs.
    """

    calibration_steps: int
    schedule: tuple[int, ...]
    share: int = 1
    on_silent: str = "stop"


PRESETS = {
    "short": Preset(0, (1,), 5),
    "published": Preset(500, (5, 4, 3, 2, 1)),
    "direct": Preset(500, (1,), 5, "warn"),
}
"""Ways to one time step with the same number of epochs in all.

"short" calibrates over one step and trains at one; "published" is the ladder of the paper; "direct" trains at one step with
thresholds from 500, which starves deep layers, the more the deeper: it is there to be compared with.
"""


@dataclass(frozen=True)
class Recipe:
    """A whole run. `data`: mnist, fashion, cifar10, cifar100 (looked for below `root`), or a folder or archive.

    `preset`: one of `PRESETS`, or "compare" for all of them from one network. `schedule`, such as "5,3,1", and
    `calibration_steps` replace the preset's; `sigma` scales thresholds. `validation` is the share of the training images
    that epochs are chosen on; `limit` above 0 uses so many training images only (and a fifth as many for testing).
    Two conversions are measured without retraining, by least squared error: at one step with `graded_levels` levels a spike (1:
    not), and at `converted_steps` steps with one (0: not).
    Errors: SpikingError naming the field that is out of range.
    """

    data: str = "mnist"
    root: str = "data"
    network: str = "vgg6"
    width: float = 0.25
    batch_norm: bool = False
    residual: str = "sum"
    dropout: float = 0.2
    preset: str = "short"
    schedule: str = ""
    calibration_steps: int = 0
    percentile: float = 90.0
    sigma: float = 1.0
    stage_epochs: int = 2
    stage_lr: float = 1e-3
    threshold_lr: float = 1.0
    loss: str = "sum"
    graded_levels: int = 8
    converted_steps: int = 5
    validation: float = 0.1
    limit: int = 0
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=10, batch_size=64, lr=0.01, weight_decay=5e-4, warmup_epochs=0.0, ema_decay=0.0
        )
    )

    def __post_init__(self) -> None:
        if self.preset not in (*PRESETS, "compare"):
            raise SpikingError(
                f"Recipe.preset: got {self.preset!r}; expected one of {', '.join((*PRESETS, 'compare'))}."
            )
        names = ("vgg5", *VGGS, *RESNETS)
        for name, allowed in (("network", names), ("residual", ("sum", "sew"))):
            if getattr(self, name) not in allowed:
                raise SpikingError(f"Recipe.{name}: got {getattr(self, name)!r}; expected one of {', '.join(allowed)}.")
        parse_schedule(self.schedule)
        ranges = {"calibration_steps": 0, "stage_epochs": 1, "graded_levels": 1, "converted_steps": 0, "limit": 0}
        for name, low in ranges.items():
            if not getattr(self, name) >= low:
                raise SpikingError(f"Recipe.{name}: got {getattr(self, name)}; expected at least {low}.")
        for name, high in (("stage_lr", math.inf), ("sigma", math.inf), ("width", math.inf), ("percentile", 100.0)):
            if not 0 < getattr(self, name) <= high:
                limit = "" if high == math.inf else f", at most {high:g}"
                raise SpikingError(f"Recipe.{name}: got {getattr(self, name)}; expected a number above 0{limit}.")
        if not 0 < self.validation <= 0.9:
            raise SpikingError(
                f"Recipe.validation: got {self.validation}; expected above 0, at most 0.9: the epoch is chosen on these images."
            )
        self.ladder(PRESETS["short"])

    def ladder(self, preset: Preset) -> LadderConfig:
        """How the stages of a preset are trained."""
        train = replace(
            self.train,
            epochs=self.stage_epochs * preset.share,
            lr=self.stage_lr,
            weight_decay=0.0,
            seed=self.train.seed,
        )
        return LadderConfig(
            train, threshold_lr=self.threshold_lr, dropout=self.dropout, loss=self.loss, on_silent=preset.on_silent
        )


def parse_schedule(text: str) -> tuple[int, ...]:
    """Numbers of steps from text such as "5,4,3,2,1". Errors: SpikingError for anything else, or where they do not decrease.

    >>> parse_schedule("5, 3, 1")
    (5, 3, 1)
    """
    try:
        steps = tuple(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError as err:
        raise SpikingError(f"Recipe.schedule: got {text!r}; expected numbers of steps such as 5,4,3,2,1.") from err
    if any(t < 1 for t in steps) or any(a <= b for a, b in itertools.pairwise(steps)):
        raise SpikingError(
            f"Recipe.schedule: got {text!r}; expected numbers of at least 1, each smaller than the one before, such as 5,4,3,2,1."
        )
    return steps


class Data(NamedTuple):
    """The images of a run, split: epochs are chosen on `validation`, `test` is looked at once a stage."""

    train: ImageBatches
    validation: ImageBatches
    test: ImageBatches
    calibration: Tensor
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    name: str


def open_images(recipe: Recipe) -> Data:
    """The images of a recipe. Errors: those of `datasets.read_images`; SpikingError where a named set is not found, or where
    images are not square.
    """
    place = _place(recipe)
    train, test = (read_images(place, train=split) for split in (True, False))
    return split(recipe, train, test, str(place))


def split(recipe: Recipe, train: Images, test: Images, place: str = "images") -> Data:
    """Images in memory, with a part of the training images held out, normalised and, if they are natural, augmented.

    Errors: SpikingError naming `place` where training and test images differ in shape, are not square, or have labels out of range.
    """
    if train.images.shape[1:] != test.images.shape[1:]:
        raise SpikingError(
            f"{place}: got training images {list(train.images.shape[1:])} and test images {list(test.images.shape[1:])}; "
            "expected one shape."
        )
    if train.images.shape[2] != train.images.shape[3]:
        raise SpikingError(
            f"{place}: got images of {train.images.shape[3]}×{train.images.shape[2]}; expected square ones."
        )
    missing = sorted(set(range(10, len(train.classes))) - set(train.labels.tolist()))  # idx files do not say how many
    if missing:
        raise SpikingError(
            f"{place}: got training labels up to {train.labels.max()}, but none is {missing[0]}; expected images of every class. "
            "A label that is out of range looks like this."
        )
    if test.labels.max() >= len(train.classes):
        raise SpikingError(
            f"{place}: got the label {test.labels.max()} among the test images; expected 0 to {len(train.classes) - 1}, as in training."
        )
    if recipe.limit:
        rng = np.random.default_rng(seed_for(recipe.train.seed, 4))
        train, test = (_some(part, n, rng) for part, n in ((train, recipe.limit), (test, max(1, recipe.limit // 5))))
    mean, std = statistics(train.kind, train.images)
    natural = train.kind.startswith("cifar") or train.kind == "pictures"
    crop = 4 if natural else 0
    whole = ImageBatches(
        train.images,
        train.labels,
        len(train.classes),
        mean,
        std,
        seed=recipe.train.seed,
        crop=crop,
        flip=natural,
    )
    chosen, held_out = hold_out(train.labels, recipe.validation, recipe.train.seed)
    part = whole.subset(chosen)
    calibration, _ = part.batch(np.arange(min(CALIBRATED, len(part))), None)
    channels, side, _ = train.images.shape[1:]
    return Data(
        part,
        whole.subset(held_out),
        ImageBatches(test.images, test.labels, len(train.classes), mean, std),
        calibration[0],
        (channels, side, side),
        train.classes,
        recipe.data if recipe.data in FOLDERS else train.kind,
    )


def _place(recipe: Recipe) -> Path:
    if recipe.data not in FOLDERS:
        return Path(recipe.data)
    root = Path(recipe.root).expanduser()
    for name in FOLDERS[recipe.data]:
        if (root / name).exists():
            return root / name
    raise SpikingError(
        f"{recipe.data}: got none of {', '.join(FOLDERS[recipe.data])} in {root}; expected one of them. Download the set by "
        "hand, and name the folder that holds it with --root, or the set itself with --data."
    )


def _some(images: Images, n: int, rng: np.random.Generator) -> Images:
    chosen = np.sort(rng.permutation(len(images.labels))[:n])
    return images._replace(images=images.images[chosen], labels=images.labels[chosen])


def build(recipe: Recipe, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The conventional network of a recipe, its first weights drawn from the seed."""
    torch.manual_seed(seed_for(recipe.train.seed, 3))
    common: dict[str, Any] = {"batch_norm": recipe.batch_norm, "dropout": recipe.dropout}
    sizes = (recipe.network, classes, shape[0], shape[1], recipe.width)
    if recipe.network.startswith("resnet"):
        return ResNet(*sizes, residual=recipe.residual, **common)
    return VGG(*sizes, **common)


def _spiking_twin(recipe: Recipe, data: Data, timesteps: int) -> SpikingVGG | SpikingResNet:
    common: dict[str, Any] = {"bias": recipe.batch_norm, "dropout": recipe.dropout, "timesteps": timesteps}
    sizes = (recipe.network, len(data.classes), data.shape[0], data.shape[1], recipe.width)
    if recipe.network.startswith("resnet"):
        return SpikingResNet(*sizes, residual=recipe.residual, **common)
    return SpikingVGG(*sizes, **common)


def train_ann(
    ann: nn.Module, recipe: Recipe, data: Data, out: Path | None, resume: bool = False, display: Display | None = None
) -> Trainer:
    """Train the conventional network as published: SGD with momentum, learning rate divided by 5 after 45, 70 and 90 %."""
    trainer = Trainer(
        ann,
        _ann_objective,
        recipe.train,
        out,
        display,
        optimizer=_sgd,
        schedule=milestones((0.45, 0.7, 0.9), factor=5),
    )
    path = trainer.checkpoint_path
    trainer.fit(data.train, data.validation, resume=resume and path is not None and path.exists())
    return trainer


def _ann_objective(model: nn.Module, x: Tensor, labels: Tensor) -> Objective:
    scores = model(x[0])
    return Objective(tf.cross_entropy(scores, labels), scores)


def _sgd(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay, fused=True)


def run(
    recipe: Recipe, out: Path, resume: bool = False, display: Display | None = None, data: Data | None = None
) -> dict[str, Any]:
    """Everything from images to a report; what is found lands in the folder `out`, the figures also in what is returned.

    `data`: images that are in memory (see `split`) in place of those that the recipe names.
    """
    began = time.perf_counter()
    display = display or open_display()
    data = data or open_images(recipe)
    ann = build(recipe, data.shape, len(data.classes))
    display.message(
        f"{data.name}: {len(data.train)} images to train on, {len(data.validation)} to choose, {len(data.test)} to test"
    )
    trainer = train_ann(ann, recipe, data, out / "ann", resume, display)
    accuracy = _tested(trainer, data.test)
    ann = ann.to("cpu").eval()
    display.message(f"conventional network: test {accuracy}")
    metrics: dict[str, Any] = {
        **_facts(recipe, data),
        "ann": accuracy._asdict(),
        "unretrained": [
            _unretrained(ann, data, trainer, steps, levels)
            for steps, levels in ((recipe.converted_steps, 1), (1, recipe.graded_levels))
            if steps and steps * levels > 1
        ],
        "starts": {},
    }
    names = list(PRESETS) if recipe.preset == "compare" else [recipe.preset]
    results = {}
    for name in names:
        display.message(f"start: {name}")
        results[name], metrics["starts"][name] = _start(name, ann, recipe, data, out, resume, display)
    best = max(results, key=lambda n: results[n].stages[-1].validation_accuracy)
    metrics["best_start"] = best
    network = results[best].model
    metrics["latency"] = _latencies(ann, results, data)
    _save_model(network, recipe, data, out, results[best].stages[-1])
    metrics["report"] = _report(network, data, out, results[best].stages[-1], display)
    metrics["seconds"] = round(time.perf_counter() - began, 1)
    ckpt.write_atomically(out / "metrics.json", (json.dumps(metrics, indent=2, default=float) + "\n").encode())
    _draw(metrics, out)
    return metrics


def _start(
    name: str, ann: nn.Module, recipe: Recipe, data: Data, out: Path, resume: bool, display: Display
) -> tuple[LadderResult, dict[str, Any]]:
    preset = PRESETS[name]
    schedule = parse_schedule(recipe.schedule) or preset.schedule
    network = from_ann(
        ann,
        data.calibration,
        timesteps=schedule[0],
        calibration_steps=recipe.calibration_steps or preset.calibration_steps or schedule[0],
        percentile=recipe.percentile,
        sigma=recipe.sigma,
    )
    display.message(str(network.report))
    config = recipe.ladder(preset)
    if recipe.preset == "compare":
        config = replace(config, on_silent="warn")  # one start must not keep the others from being seen
    result = reduce_timesteps(
        network, data.train, data.validation, schedule, config=config, test=data.test,
        run_dir=out / name, resume=resume, display=display,
    )  # fmt: skip
    stages = [{**asdict(stage), "test": stage.test._asdict() if stage.test else None} for stage in result.stages]
    conversion = {"error": network.report.error, "agreement": network.report.agreement}
    return result, {"conversion": conversion, "stages": stages}


def _tested(trainer: Trainer, test: ImageBatches) -> Any:
    found = trainer.evaluate(test)
    return proportion(int((found.predictions == found.labels).sum()), len(found.labels))


def _unretrained(ann: nn.Module, data: Data, trainer: Trainer, timesteps: int, levels: int) -> dict[str, Any]:
    """Test accuracy and energy of a conversion that is not trained any further."""
    network = from_ann(ann, data.calibration, method="optimal", timesteps=timesteps, levels=levels)
    hits = 0
    with torch.no_grad():
        for first in range(0, len(data.test), 256):
            x, labels = data.test.batch(np.arange(first, min(first + 256, len(data.test))), None)
            hits += int((network.scores(x[0]).argmax(1) == labels).sum())
    energy, _ = price(network, data.calibration[:100], timesteps)
    found = {
        "timesteps": timesteps,
        "levels": levels,
        "test": proportion(hits, len(data.test))._asdict(),
        "energy": energy,
    }
    trainer.display.message(f"{unretrained_name(found)}: test {proportion(hits, len(data.test))}")
    return found


def unretrained_name(found: dict[str, Any]) -> str:
    """What a conversion that was not trained any further is called in tables.

    >>> unretrained_name({"timesteps": 1, "levels": 8})
    'converted, 8 levels a spike, T=1, no retraining'
    """
    graded = f"{found['levels']} levels a spike, " if found["levels"] > 1 else ""
    return f"converted, {graded}T={found['timesteps']}, no retraining"


def _latencies(ann: nn.Module, results: dict[str, LadderResult], data: Data, repeats: int = 20) -> dict[str, float]:
    """Seconds of one image on this machine: the conventional network, and each stage's network compiled for events.

    Medians over images that all networks see in turn, so that a machine that is busy for a while is so for all of them.
    """
    images = data.calibration[:repeats]
    contestants: dict[str, tuple[nn.Module, list[Tensor]]] = {"conventional": (ann, [x[None] for x in images])}
    for name, result in results.items():
        for timesteps, network in result.models.items():
            if isinstance(network, SpikingNet) and isinstance(network.body, Sequential):
                shown = [x.expand(timesteps, 1, *x.shape).contiguous() for x in images]
                contestants[f"{name} T={timesteps}"] = compile_events(network, shown[0]), shown
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with torch.no_grad():
        for network, shown in contestants.values():
            network(shown[0])
        for i in range(len(images)):
            for name, (network, shown) in contestants.items():
                began = time.perf_counter()
                network(shown[i])
                seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(times)) for name, times in seconds.items()}


def _save_model(network: nn.Module, recipe: Recipe, data: Data, out: Path, stage: StageReport) -> None:
    twin = _spiking_twin(recipe, data, stage.timesteps)
    twin.load_state_dict(network.state_dict())
    twin.save_pretrained(
        out / "model",
        model_card_kwargs={
            "title": f"Image classifier of {stage.timesteps} time step{'s' * (stage.timesteps != 1)}",
            "class_name": type(twin).__name__,
            "trained_on": f"{len(data.train)} images, {data.name}.",
            "results": f"Accuracy on the test images: {stage.test}.",
        },
    )


def _report(network: nn.Module, data: Data, out: Path, stage: StageReport, display: Display) -> str:
    _, trace = price(network, data.calibration[:100], stage.timesteps)
    trace.save(out / "trace.h5")
    accuracy = None if stage.test is None else stage.test.value
    estimates = []
    for name in ("digital-45nm", "digital-sram", "loihi", "rram-crossbar"):
        chip = hw_models.load(name)
        try:
            stated = accuracy if chip.precision == "fp32" else None
            estimates.append(hw_models.estimate(trace, chip, reuse_static=True, accuracy=stated))
        except SpikingError as err:  # a wide network is too large for a chip, which must not cost the run
            display.message(f"not in the report: {err}")
    hw_models.report(
        estimates, out / "report.html", title=f"{data.name}, T={stage.timesteps}", facts={"Accuracy": str(stage.test)}
    )
    return str(out / "report.html")


def _facts(recipe: Recipe, data: Data) -> dict[str, Any]:
    from spiking import __version__

    return {
        "recipe": asdict(recipe),
        "images": data.name,
        "n_train": len(data.train),
        "n_validation": len(data.validation),
        "n_test": len(data.test),
        "versions": {"spiking": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
    }


def _draw(metrics: dict[str, Any], out: Path) -> None:
    """Accuracy and energy against the number of steps, as PNG and SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.axhline(100 * metrics["ann"]["value"], color="gray", linestyle="--", label="conventional network")
    for name, start in metrics["starts"].items():
        steps = [stage["timesteps"] for stage in start["stages"]]
        values = [stage["test"] for stage in start["stages"]]
        spread = [[100 * (v["value"] - v["low"]) for v in values], [100 * (v["high"] - v["value"]) for v in values]]
        left.errorbar(steps, [100 * v["value"] for v in values], yerr=spread, marker="o", capsize=3, label=name)
        for accounting, line in (("published", ":"), ("with-memory", "-")):
            gains = [stage["energy"][accounting]["gain"] for stage in start["stages"]]
            right.plot(steps, gains, line, marker="o", label=f"{name}, {accounting}")
    right.axhline(1, color="gray", linestyle="--")
    left.set(xlabel="time steps", ylabel="test accuracy (%)")
    right.set(xlabel="time steps", ylabel="energy of the FP32 network / this one", yscale="log")
    for axes in (left, right):
        axes.invert_xaxis()
        axes.legend(fontsize="small")
    for suffix in ("png", "svg"):
        figure.savefig(out / f"accuracy_energy.{suffix}", dpi=150)
