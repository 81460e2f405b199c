"""From five time steps to one: retrain a converted network at ever fewer steps, each stage starting from the one before."""

from __future__ import annotations

import copy
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spiking import checkpoint as ckpt
from spiking import encode, loss
from spiking.errors import SpikingError
from spiking.layer import Dropout
from spiking.models.iir.energy import price
from spiking.models.iir.watch import Finding, diagnose, watch
from spiking.neuron import Neuron
from spiking.progress import Display, open_display
from spiking.split import Proportion, proportion
from spiking.training import Batches, Objective, TrainConfig, Trainer, milestones

__all__ = ["LadderConfig", "LadderResult", "StageReport", "reduce_timesteps"]

LEAST_THRESHOLD = 1e-3
MOST_LOST = 3.0  # percentage points between two stages
PATIENCE = 2  # epochs until validation has to be above chance
AFTERWARDS = ("leaks", "dead output")  # what a trained stage is looked at for


@dataclass(frozen=True)
class LadderConfig:
    """How the stages are trained. As published: Adam with amsgrad, learning rate divided by 5 after 60, 80 and 90 % of a
    stage's epochs, cross-entropy on the summed output.

    `threshold_lr`: thresholds and leaks learn so many times faster than weights. `dropout`: probability in all dropout
    layers, None leaves them as they are. `loss`: "sum", or "tet" for cross-entropy at every step. `membrane_weight` and
    `rate_weight` scale two optional penalties, the one on membranes far from rest and threshold, the other on neurons that
    fire in less than the share `least_rate` of steps. `on_silent`: "stop" before a stage in which nothing can be learned,
    or only "warn".
    Errors: SpikingError naming the field that is out of range.
    """

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=20, batch_size=64, lr=1e-4, weight_decay=0.0, warmup_epochs=0.0, ema_decay=0.0
        )
    )
    milestones: tuple[float, ...] = (0.6, 0.8, 0.9)
    threshold_lr: float = 1.0
    dropout: float | None = None
    loss: str = "sum"
    tet_mix: float = 1e-3
    membrane_weight: float = 0.0
    rate_weight: float = 0.0
    least_rate: float = 0.05
    on_silent: str = "stop"
    traced: int = 100

    def __post_init__(self) -> None:
        for name, allowed in (("loss", ("sum", "tet")), ("on_silent", ("stop", "warn"))):
            if getattr(self, name) not in allowed:
                raise SpikingError(
                    f"LadderConfig.{name}: got {getattr(self, name)!r}; expected {' or '.join(allowed)}."
                )
        for name in ("threshold_lr", "membrane_weight", "rate_weight"):
            if not getattr(self, name) >= 0:
                raise SpikingError(f"LadderConfig.{name}: got {getattr(self, name)}; expected at least 0.")
        for name in ("tet_mix", "least_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpikingError(f"LadderConfig.{name}: got {getattr(self, name)}; expected 0 to 1.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise SpikingError(f"LadderConfig.dropout: got {self.dropout}; expected 0 <= dropout < 1.")
        if self.traced < 1:
            raise SpikingError(f"LadderConfig.traced: got {self.traced}; expected at least 1.")


@dataclass
class StageReport:
    """What one stage ended with. Rates are spikes per neuron and step, energies joules per image (see `price`).

    `before`: rates at this number of steps before training. `test`: the accuracy on test images, counted once, after
    training. `seconds_per_image` is the time of the plain model on this machine, in batches.
    """

    timesteps: int
    validation_accuracy: float
    best_epoch: int
    epochs: int
    rates: dict[str, float]
    before: dict[str, float]
    thresholds: dict[str, float]
    leaks: dict[str, float]
    energy: dict[str, Any]
    seconds_per_image: float
    seconds: float
    warnings: list[str]
    test: Proportion | None = None

    def __str__(self) -> str:
        tested = "" if self.test is None else f"  test {self.test}"
        gains = ", ".join(f"{name} {found['gain']:.1f}×" for name, found in self.energy.items() if name != "twins")
        return f"T={self.timesteps}  validation {100 * self.validation_accuracy:.2f} %{tested}  energy against FP32: {gains}"


@dataclass
class LadderResult:
    """The reports of all stages, and the network of each by its number of steps, each with its best validation epoch."""

    stages: list[StageReport]
    models: dict[int, nn.Module]

    @property
    def model(self) -> nn.Module:
        """The network of the last stage."""
        return self.models[self.stages[-1].timesteps]


@dataclass(frozen=True)
class StageConfig:
    """What tells the checkpoint of one stage from that of another."""

    timesteps: int


class Stage(nn.Module):
    """A network that sees an image for so many steps: input [1, B, …], output currents [T, B, classes]."""

    def __init__(self, network: nn.Module, timesteps: int) -> None:
        super().__init__()
        self.network = network
        self.config = StageConfig(timesteps)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] != 1:
            raise SpikingError(
                f"reduce_timesteps: got samples of {x.shape[0]} time steps; expected images, [1, B, …], which are shown at "
                "every step. A recording is binned into fewer frames instead."
            )
        return self.network(encode.direct(x[0], self.config.timesteps))


def reduce_timesteps(
    model: nn.Module,
    train: Batches,
    validation: Batches,
    schedule: Sequence[int] = (5, 4, 3, 2, 1),
    *,
    config: LadderConfig | None = None,
    test: Batches | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    display: Display | None = None,
    after_stage: Callable[[StageReport, nn.Module], None] | None = None,
) -> LadderResult:
    """Retrain a spiking network at each number of time steps of the schedule, each stage from the best epoch before it.

    model: takes [T, B, …], gives currents [T, B, classes] (see `convert.from_ann`); it is left as it is.
    train, validation, test: batches of images [1, B, …] with labels. The epoch of a stage is the best on `validation`;
    `test` is looked at once a stage, after training.
    Each stage starts with weights, thresholds and leaks of the one before and a fresh optimizer; leaks are kept in 0…1,
    thresholds above 0.001; a dropout mask holds for all steps. Silent layers are found before anything is trained.
    With `run_dir`, each stage has a folder T5, T4, …: a trainer's checkpoint, and stage.safetensors once it is complete;
    `resume=True` goes on where the run was stopped, in the middle of a stage too. A schedule of one stage is the direct
    start, which needs thresholds calibrated over as many steps (`from_ann(…, calibration_steps=1)` for T = 1).
    Errors: SpikingError for a schedule that does not decrease or is below 1, for labels outside the classes, for a silent
    layer with the remedy, for files of another run or stage; those of `Trainer`.
    Source: Chowdhury, Rathi & Roy 2021 (arXiv 2110.05929); direct start: Abillama et al. 2025.

    >>> from spiking.convert import from_ann
    >>> from spiking.training import TensorBatches
    >>> x, labels = torch.rand(60, 1, 4), torch.arange(60) % 2
    >>> ann = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> net = from_ann(ann, x[:, 0], timesteps=2)
    >>> one = LadderConfig(TrainConfig(epochs=1, warmup_epochs=0, ema_decay=0, device="cpu"))
    >>> data = TensorBatches(x, labels)
    >>> found = reduce_timesteps(net, data, data, (2, 1), config=one, display=Display())
    >>> [stage.timesteps for stage in found.stages]
    [2, 1]
    """
    steps = _checked(schedule)
    settings = config or LadderConfig()
    display = display or open_display()
    folder = None if run_dir is None else Path(run_dir)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise SpikingError(
                f'reduce_timesteps: "{name}" holds values that are not finite. Convert the network again, or load other weights.'
            )
    _note_settings(folder, steps, settings, resume)
    network = copy.deepcopy(model)
    if settings.dropout is not None:
        for layer in network.modules():
            if isinstance(layer, (Dropout, nn.Dropout)):
                layer.p = settings.dropout
    result = LadderResult([], {})
    for timesteps in steps:
        run = _StageRun(Stage(copy.deepcopy(network), timesteps), settings, folder, resume, display)
        report = run.finished() or run.train(train, validation, test)
        network = copy.deepcopy(network)  # not the one that was trained, which the trainer's hooks watch
        network.load_state_dict(run.stage.network.state_dict())
        if result.stages:
            _look_at_drop(result.stages[-1], report, display)
        result.stages.append(report)
        result.models[timesteps] = network.eval()
        display.message(str(report))
        if after_stage is not None:
            after_stage(report, network)
    return result


def _checked(schedule: Sequence[int]) -> tuple[int, ...]:
    steps = tuple(schedule)
    whole = all(isinstance(t, int) and t >= 1 for t in steps)
    if not steps or not whole or any(a <= b for a, b in itertools.pairwise(steps)):
        raise SpikingError(
            f"reduce_timesteps.schedule: got {list(steps)}; expected whole numbers of at least 1, each smaller than the one "
            "before, such as 5, 4, 3, 2, 1."
        )
    return steps


def _look_at_drop(before: StageReport, after: StageReport, display: Display) -> None:
    lost = 100 * (before.validation_accuracy - after.validation_accuracy)
    if lost > MOST_LOST:
        text = (
            f"T={after.timesteps} lost {lost:.1f} points against T={before.timesteps}. Take a smaller step in between, train "
            "longer, or start at the last number of steps with thresholds calibrated over as many."
        )
        after.warnings.append(text)
        display.message(f"warning: {text}")


def _note_settings(folder: Path | None, steps: tuple[int, ...], config: LadderConfig, resume: bool) -> None:
    """Write what the run was started with, or compare with it."""
    if folder is None:
        if resume:
            raise SpikingError("reduce_timesteps: got resume=True without run_dir; expected the folder of the run.")
        return
    file = folder / "ladder.json"
    settings = json.loads(json.dumps({"schedule": steps, **asdict(config)}))
    if resume and file.is_file():
        started = json.loads(file.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if started.get(name) != value:
                raise SpikingError(
                    f"{file}: the run was started with {name}={started.get(name)!r}; got {value!r}. Resume it with its own "
                    "settings, or start another."
                )
    else:
        ckpt.write_atomically(file, (json.dumps(settings, indent=2) + "\n").encode())


class _ChanceWatch(Display):
    """Passes on to a stage's display, and looks at what validation says after the first epochs."""

    def __init__(self, stage: _StageRun, validation: Batches) -> None:
        self.stage, self.validation, self.best = stage, validation, 0.0

    def start(self, epochs: int, steps: int, epoch: int) -> None:
        self.stage.display.start(epochs, steps, epoch)

    def step(self, step: int, running: dict[str, Any]) -> None:
        self.stage.display.step(step, running)

    def epoch(self, record: dict[str, Any], epochs: int) -> None:
        self.stage.display.epoch(record, epochs)
        self.best = max(self.best, record["validation_accuracy"])
        if record["epoch"] + 1 == PATIENCE < epochs:
            self.stage.look_at_chance(self.best, record["accuracy"], self.validation)

    def message(self, text: str) -> None:
        self.stage.display.message(text)

    def close(self) -> None:
        self.stage.display.close()


class _StageRun:
    """One stage: its checks, its training, its report."""

    def __init__(self, stage: Stage, config: LadderConfig, folder: Path | None, resume: bool, display: Display) -> None:
        self.stage, self.config, self.display, self.resume = stage, config, display, resume
        self.folder = None if folder is None else folder / f"T{stage.config.timesteps}"
        self.warnings: list[str] = []
        self.clamped: set[str] = set()

    def finished(self) -> StageReport | None:
        """The report of a stage that a resumed run has completed, its weights loaded; None where there is something to do."""
        if self.folder is None or not self.resume or not (self.folder / "stage.safetensors").is_file():
            return None
        state = ckpt.restore(self.folder / "stage.safetensors", self.stage).state
        return StageReport(**{**state, "test": None if state["test"] is None else Proportion(*state["test"])})

    def train(self, train: Batches, validation: Batches, test: Batches | None) -> StageReport:
        began = time.perf_counter()
        timesteps = self.stage.config.timesteps
        resumes = self.resume and self.folder is not None and (self.folder / "checkpoint.safetensors").is_file()
        trainer = Trainer(
            self.stage,
            self.objective,
            self.config.train,
            self.folder,
            _ChanceWatch(self, validation),
            optimizer=self.optimizer,
            schedule=milestones(self.config.milestones, factor=5),
        )
        images, labels = self._some(train, trainer)
        if not resumes:
            self._look_at(diagnose(self.stage.network, images, timesteps, labels))
        before = self._rates(images)
        history = trainer.fit(train, validation, resume=resumes)
        best = max(history, key=lambda r: (r["validation_accuracy"], -r["validation_loss"]))
        tested = None if test is None else trainer.evaluate(test)
        self.stage.to("cpu")
        images = images.to("cpu")
        self._look_at(
            [f for f in diagnose(self.stage.network, images, timesteps, trained=True) if f.kind in AFTERWARDS]
        )
        rates = self._rates(images)
        report = StageReport(
            timesteps=timesteps,
            validation_accuracy=best["validation_accuracy"],
            best_epoch=best["epoch"],
            epochs=len(history),
            rates=rates,
            before=before,
            thresholds=self._of_neurons("threshold"),
            leaks=self._of_neurons("beta"),
            energy=price(self.stage.network, images, timesteps)[0],
            seconds_per_image=self._latency(images),
            seconds=round(time.perf_counter() - began, 1),
            warnings=[*self.warnings, *trainer.warnings, *sorted(self.clamped)],
            test=None
            if tested is None
            else proportion(int((tested.predictions == tested.labels).sum()), len(tested.labels)),
        )
        if self.folder is not None:
            state = json.loads(json.dumps(asdict(replace(report, test=None))))
            state["test"] = None if report.test is None else list(report.test)
            ckpt.save(
                self.folder / "stage.safetensors",
                ckpt.Checkpoint(self.stage.state_dict(), ckpt.identity(self.stage), state=state),
            )
        return report

    # what the trainer is given

    def objective(self, model: nn.Module, x: Tensor, labels: Tensor) -> Objective:
        c = self.config
        if not (model.training and (c.membrane_weight or c.rate_weight)):
            logits = model(x)
            return Objective(self._loss(logits, labels), logits.sum(0))
        with watch(model) as activity:
            logits = model(x)
        value = self._loss(logits, labels)
        if c.membrane_weight:
            value = value + c.membrane_weight * loss.membrane_regulariser(activity.membranes().values())
        if c.rate_weight:
            value = value + c.rate_weight * loss.rate_regulariser(activity.spikes.values(), low=c.least_rate)
        return Objective(value, logits.sum(0))

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.loss == "tet":
            return loss.tet(logits, labels, mix=self.config.tet_mix)
        return loss.rate(logits, labels, scale=logits.shape[0])

    def optimizer(self, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        neurons = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Neuron)]
        own = {id(p) for _, layer in neurons for p in layer.parameters()}
        groups = [
            {"params": [p for p in model.parameters() if id(p) not in own], "lr_scale": 1.0},
            {"params": [p for p in model.parameters() if id(p) in own], "lr_scale": self.config.threshold_lr},
        ]
        made = torch.optim.Adam(
            [g for g in groups if g["params"]],
            lr=config.lr,
            weight_decay=config.weight_decay,
            amsgrad=True,
            fused=True,
        )

        @torch.no_grad()
        def keep_in_range(*_: Any) -> None:
            for name, layer in neurons:
                beta, threshold = getattr(layer, "beta", None), getattr(layer, "threshold", None)
                if isinstance(beta, nn.Parameter):
                    beta.clamp_(0, 1)
                if isinstance(threshold, nn.Parameter):
                    if float(threshold.min()) < LEAST_THRESHOLD:
                        self.clamped.add(
                            f'the threshold of layer "{name}" was kept at {LEAST_THRESHOLD}. Lower threshold_lr.'
                        )
                    threshold.clamp_(min=LEAST_THRESHOLD)

        made.register_step_post_hook(keep_in_range)
        return made

    # looking at the network

    def _some(self, train: Batches, trainer: Trainer) -> tuple[Tensor, Tensor]:
        """Some training images [B, …] with their labels, the same in every stage."""
        x, labels = train.batch(np.arange(min(self.config.traced, len(train))), None)
        return x[0].to(trainer.accelerator.device), labels.to(trainer.accelerator.device)

    def look_at_chance(self, accuracy: float, in_training: float, validation: Batches) -> None:
        """Say, or stop, where after some epochs no more is right than guessing the most frequent class would get.

        Of training images neither: few validation images may be wrong by accident.
        """
        n, size = len(validation), self.config.train.batch_size
        if max(accuracy, in_training) > 0.6 or not n:
            return
        places = (np.arange(first, min(first + size, n)) for first in range(0, n, size))
        labels = torch.cat([validation.batch(indices, None)[1] for indices in places])
        share = float(labels.bincount().max()) / n
        if accuracy > share + 2 * math.sqrt(share * (1 - share) / n) or in_training > share + 0.02:
            return
        text = (
            f"after {PATIENCE} epochs {100 * accuracy:.1f} % of validation images are right, what always naming the most frequent "
            f"class gets too: nothing is learned. Convert with calibration_steps={self.stage.config.timesteps}, or raise the "
            "learning rate."
        )
        self._look_at([Finding("", "chance", text, stops=True)])

    def _look_at(self, findings: list[Finding]) -> None:
        for finding in findings:
            if finding.stops and self.config.on_silent == "stop":
                raise SpikingError(f"reduce_timesteps: T={self.stage.config.timesteps}: {finding.text}")
            self.warnings.append(finding.text)
            self.display.message(f"warning: {finding.text}")

    @torch.no_grad()
    def _rates(self, images: Tensor) -> dict[str, float]:
        self.stage.eval()
        with watch(self.stage.network) as activity:
            self.stage(images.unsqueeze(0))
        return {name: float(spikes.mean()) for name, spikes in activity.spikes.items()}

    def _of_neurons(self, what: str) -> dict[str, float]:
        return {
            name: float(torch.as_tensor(layer.cells()[what]).detach().mean())
            for name, layer in self.stage.network.named_modules()
            if isinstance(layer, Neuron)
        }

    @torch.no_grad()
    def _latency(self, images: Tensor) -> float:
        self.stage.eval()
        times = []
        for _ in range(4):
            began = time.perf_counter()
            self.stage(images.unsqueeze(0))
            times.append(time.perf_counter() - began)
        return float(np.median(times[1:])) / len(images)
