"""Training: epochs, metrics, checkpoints and exact resume, on one machine or many.

Everything random derives from (seed, epoch, step or sample index), never from the order in which things arrive. So a rank
is only an offset into the epoch's order, and a run that was stopped and resumed ends with the same bits as one that was
not (on the same machine with the same number of threads; convolutions may add in another order elsewhere).
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from spiking import checkpoint as ckpt
from spiking import loss
from spiking.errors import SpikingError
from spiking.interrupt import Interrupted, watch_signals
from spiking.neuron import Neuron, Recurrent
from spiking.progress import Display, open_display

__all__ = [
    "Batches",
    "Evaluation",
    "Interrupted",
    "Objective",
    "TensorBatches",
    "TrainConfig",
    "Trainer",
    "milestones",
    "rate_objective",
    "seed_for",
]

SILENT, SATURATED = 1e-4, 0.95  # firing rates beyond which a layer passes on next to nothing
LOOK_AFTER = 10  # steps of the first epoch after which the rates are first looked at


@dataclass(frozen=True)
class TrainConfig:
    """How to train. `batch_size` counts samples over all ranks; `ema_decay` 0 and `clip_norm` 0 switch those off.
    `accumulate`: parts in which a step goes through its batch, whose gradients are added up, where memory is short.

    Errors: SpikingError naming the field that is out of range.
    """

    epochs: int = 40
    batch_size: int = 32
    lr: float = 4e-3
    weight_decay: float = 1e-2
    warmup_epochs: float = 3.0
    clip_norm: float = 0.0
    ema_decay: float = 0.98
    accumulate: int = 1
    mixed_precision: str = "no"
    device: str = "auto"
    seed: int = 0
    log_with: str = "none"

    def check_machine(self) -> None:
        """Return if this machine has the device, the precision and the tracker; SpikingError naming the field otherwise."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SpikingError('TrainConfig.device: got "cuda"; torch sees no CUDA device here. Use "auto" or "cpu".')
        if self.mixed_precision == "fp16" and (self.device == "cpu" or not torch.cuda.is_available()):
            raise SpikingError('TrainConfig.mixed_precision: got "fp16"; it needs a GPU. Use "bf16" or "no" on a CPU.')
        if self.log_with != "none" and importlib.util.find_spec(self.log_with) is None:
            raise SpikingError(
                f'TrainConfig.log_with: got "{self.log_with}", which is not installed. '
                f"Install it (pip install {self.log_with}), or leave it out."
            )

    def __post_init__(self) -> None:
        at_least = {"epochs": 1, "batch_size": 1, "accumulate": 1}
        at_least |= {"weight_decay": 0, "warmup_epochs": 0, "clip_norm": 0, "seed": 0}
        for name, low in at_least.items():
            if not (getattr(self, name) >= low and math.isfinite(getattr(self, name))):
                raise SpikingError(f"TrainConfig.{name}: got {getattr(self, name)}; expected at least {low}.")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise SpikingError(f"TrainConfig.lr: got {self.lr}; expected a number above 0.")
        if not 0 <= self.ema_decay < 1:
            raise SpikingError(f"TrainConfig.ema_decay: got {self.ema_decay}; expected 0 (off) <= ema_decay < 1.")
        choices = {
            "mixed_precision": ("no", "bf16", "fp16"),
            "device": ("auto", "cpu", "cuda"),
            "log_with": ("none", "tensorboard", "wandb"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise SpikingError(f'TrainConfig.{name}: got "{getattr(self, name)}"; expected {" or ".join(allowed)}.')


class Batches(Protocol):
    """Samples by index. `epoch` chooses the random augmentation of each sample; None means none (for evaluation)."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        """Inputs [T, B, …] and labels [B] of these samples, or what else the objective takes."""
        ...


class TensorBatches:
    """Samples that lie in memory: x [N, T, …] and labels [N].

    >>> TensorBatches(torch.zeros(5, 3, 2), torch.zeros(5, dtype=torch.int64)).batch(np.array([0, 4]), None)[0].shape
    torch.Size([3, 2, 2])
    """

    def __init__(self, x: Tensor, labels: Tensor) -> None:
        if len(x) != len(labels):
            raise SpikingError(f"TensorBatches: got {len(x)} samples and {len(labels)} labels; expected as many.")
        self.x, self.labels = x, labels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        return self.x[chosen].transpose(0, 1), self.labels[chosen]


class Objective(NamedTuple):
    """What a step is judged by: a scalar loss, and scores [B, C] whose largest is the prediction; None where nothing is to be
    predicted for a sample as a whole, as of a text: the loss then chooses the best epoch."""

    loss: Tensor
    logits: Tensor | None = None


def rate_objective(model: nn.Module, x: Tensor, labels: Tensor) -> Objective:
    """Cross-entropy on spike counts: for any model that gives output spikes [T, B, C]."""
    spikes = model(x)
    return Objective(loss.rate(spikes, labels, scale=spikes.shape[0]), spikes.float().mean(0))


@dataclass
class Evaluation:
    """Scores of every sample in order, with what follows from them (none where the objective gives none); firing rates by layer."""

    logits: np.ndarray
    labels: np.ndarray
    loss: float
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def predictions(self) -> np.ndarray:
        if not self.logits.shape[1]:
            raise SpikingError("Evaluation.predictions: got an objective without scores; expected one that classifies.")
        return self.logits.argmax(1)

    @property
    def accuracy(self) -> float:
        return float((self.predictions == self.labels).mean())


def seed_for(*numbers: int) -> int:
    """One 63-bit seed from several numbers, well mixed.

    >>> seed_for(0, 1) != seed_for(1, 0)
    True
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW on all parameters."""
    return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=False)


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Linear warm-up, then half a cosine down to 0: a pure function of the step, so there is no schedule to save."""
    total, warm = config.epochs * steps_per_epoch, config.warmup_epochs * steps_per_epoch
    rising = min(1.0, (step + 1) / warm) if warm else 1.0
    return config.lr * rising * 0.5 * (1 + math.cos(math.pi * step / total))


def milestones(fractions: tuple[float, ...], factor: float) -> Callable[[TrainConfig, int, int], float]:
    """A learning rate that is divided by `factor` after each of these fractions of the epochs, for `Trainer(schedule=…)`.

    >>> falling = milestones((0.5, 0.75), factor=10)
    >>> [falling(TrainConfig(epochs=4, lr=1.0), step, steps_per_epoch=1) for step in range(4)]
    [1.0, 1.0, 0.1, 0.01]
    """

    def rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
        passed = sum(step // steps_per_epoch >= int(fraction * config.epochs) for fraction in fractions)
        return config.lr / factor**passed

    return rate


class Trainer:
    """Trains a model on batches of sequences.

    `objective(model, x, labels)` gives loss and scores; with `run_dir`, metrics.jsonl (one line an epoch) and
    checkpoint.safetensors appear there, and `fit(…, resume=True)` continues. `optimizer(model, config)` makes the optimizer;
    a parameter group with an entry "lr_scale" learns at so many times the rate that `schedule(config, step, steps_per_epoch)` gives.
    `after_epoch(model, record)` is called once an epoch is saved, with the averaged weights in the model; of no concern to the training.
    Raises Interrupted (a KeyboardInterrupt) after Ctrl-C or SIGTERM, once the checkpoint is written.
    Errors: SpikingError, naming layer and step, where an input, weight or loss stops being finite; where a checkpoint
    does not fit; where a device or precision is not to be had.

    >>> from spiking import LIF, Linear, Sequential
    >>> data = TensorBatches(torch.rand(8, 4, 3), torch.tensor([0, 1] * 4))
    >>> trainer = Trainer(Sequential(Linear(3, 2), LIF()), config=TrainConfig(epochs=2, batch_size=4), display=Display())
    >>> [record["epoch"] for record in trainer.fit(data)]
    [0, 1]
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Callable[[nn.Module, Tensor, Tensor], Objective] = rate_objective,
        config: TrainConfig | None = None,
        run_dir: str | Path | None = None,
        display: Display | None = None,
        optimizer: Callable[[nn.Module, TrainConfig], torch.optim.Optimizer] = adamw,
        schedule: Callable[[TrainConfig, int, int], float] = learning_rate,
        after_epoch: Callable[[nn.Module, dict[str, Any]], None] | None = None,
    ) -> None:
        self.config = config or TrainConfig()
        self.objective = objective
        self.schedule = schedule
        self.after_epoch = after_epoch
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.display = display or open_display()
        self.accelerator = _accelerator(self.config, self.run_dir)
        self.model = model
        self.optimizer = optimizer(model, self.config)
        self._run, self._optimizer = self.accelerator.prepare(model, self.optimizer)
        if self.accelerator.num_processes > 1:
            atexit.unregister(_part_ranks)
            atexit.register(_part_ranks)
        self._average = _Average(model, self.config.ema_decay) if self.config.ema_decay else None
        self._rates = _Rates(model)
        self._position = _Position()
        self._best: dict[str, Tensor] | None = None

    @property
    def checkpoint_path(self) -> Path | None:
        return None if self.run_dir is None else self.run_dir / "checkpoint.safetensors"

    @property
    def warnings(self) -> list[str]:
        """What was said about silent and saturated layers."""
        return list(self._position.warnings)

    def fit(self, train: Batches, validation: Batches | None = None, resume: bool = False) -> list[dict[str, Any]]:
        """Train to the last epoch; the model ends with the weights of the best validation epoch (without validation:
        the last), averaged ones if ema_decay is set. Returns one record an epoch.

        A resumed run may be given more epochs than it was started with: from where it stands, the learning rate then
        follows the longer half cosine.
        """
        for data in (train,) if validation is None else (train, validation):
            _check_batches("Trainer.fit", data)
        steps = self._steps_per_epoch(train)
        if resume:
            self._resume(len(train), steps)
        place = self._position
        place.train_size = len(train)
        self._start_trackers()
        self.display.start(self.config.epochs, steps, place.epoch)
        try:
            with watch_signals() as received:
                while place.epoch < self.config.epochs:
                    self._epoch(train, steps, received)
                    self._finish_epoch(validation)
        except SpikingError as err:
            if self.checkpoint_path is None or not self.checkpoint_path.exists():
                raise
            raise SpikingError(f"{err} The last good state is in {self.checkpoint_path}.") from err
        finally:
            self.display.close()
        for tracker in self.accelerator.trackers:  # end_training would also part the ranks, which evaluate together
            tracker.finish()
        if self._best is not None:
            self.model.load_state_dict(self._best)
        elif self._average is not None:
            self.model.load_state_dict(self._average.values)
        return place.history

    def evaluate(self, data: Batches) -> Evaluation:
        """Scores and loss of the model as it is now on all samples, without augmentation.

        Errors: SpikingError naming the weight, layer or sample where values are not finite.
        """
        from accelerate.utils import gather_object

        _check_batches("Trainer.evaluate", data)
        size, world, rank = self.config.batch_size, self.accelerator.num_processes, self.accelerator.process_index
        if not len(data):
            raise SpikingError("Trainer.evaluate: got no samples; expected at least one.")
        self._check_weights("Trainer.evaluate", "Load other weights")
        was_training = self.model.training
        self.model.eval()
        parts = []
        with torch.no_grad():
            for first in range(rank * size, len(data), world * size):
                indices = np.arange(first, min(first + size, len(data)))
                x, labels = self._to_device(data.batch(indices, None))
                self._check_input("Trainer.evaluate", x, indices)
                # The bare model: ranks may have unequal numbers of batches, and the distributed one would wait for all.
                result = self.objective(self.model, x, labels)
                scores = np.empty((len(indices), 0), np.float32)
                if result.logits is not None:
                    scores = result.logits.float().cpu().numpy()
                if not (np.isfinite(scores).all() and math.isfinite(float(result.loss))):
                    raise SpikingError(f"Trainer.evaluate: {self._what_is_not_finite('Load other weights.')}")
                parts.append((first, scores, labels.cpu().numpy(), float(result.loss), self._rates.latest()))
        self.model.train(was_training)
        if world > 1:
            parts = gather_object(parts)
        _, logits, targets, losses, rates = zip(*sorted(parts, key=lambda part: part[0]))
        sizes = [len(part) for part in logits]
        return Evaluation(
            np.concatenate(logits),
            np.concatenate(targets),
            float(np.average(losses, weights=sizes)),
            {name: float(np.average([part[name] for part in rates], weights=sizes)) for name in rates[0]},
        )

    # One epoch

    def _epoch(self, train: Batches, steps: int, received: Callable[[], int | None]) -> None:
        place, world, rank = self._position, self.accelerator.num_processes, self.accelerator.process_index
        order = np.random.default_rng(seed_for(self.config.seed, 0, place.epoch)).permutation(len(train))
        self.model.train()
        began = time.perf_counter()
        while place.step < steps:
            everyone = order[place.step * self.config.batch_size : (place.step + 1) * self.config.batch_size]
            self._step(train, everyone[rank::world], len(everyone), place.epoch * steps + place.step, steps)
            place.step += 1
            seconds = place.seconds + time.perf_counter() - began
            self.display.step(place.step, {**self._running(), "samples": place.samples, "seconds": seconds})
            if place.epoch == 0 and place.step == min(LOOK_AFTER, steps):
                self._look_at_rates({k: v / place.samples for k, v in place.rates.items()})
            signal = received()
            if signal is not None:
                self.accelerator.set_trigger()
            if self.accelerator.check_trigger():  # agreed on by all ranks, so that they stop at the same step
                self._save()
                raise Interrupted(signal or 2, self.checkpoint_path)
        place.seconds += time.perf_counter() - began

    def _step(self, train: Batches, indices: np.ndarray, n_everyone: int, step: int, steps_per_epoch: int) -> None:
        torch.manual_seed(seed_for(self.config.seed, 1, step, self.accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.config, step, steps_per_epoch) * group.get("lr_scale", 1.0)
        # Ranks hold unequal shares of the last batch; this makes their mean the mean over samples.
        share = self.accelerator.num_processes / n_everyone
        self._optimizer.zero_grad()
        parts = np.array_split(indices, min(self.config.accumulate, len(indices)))
        for part in parts[:-1]:
            with self.accelerator.no_sync(self._run):  # ranks exchange gradients once a step
                self._add_gradients(train, part, share)
        self._add_gradients(train, parts[-1], share)
        self._check_gradients()
        self._optimizer.step()
        if self._average is not None:
            self._average.update(step)

    def _add_gradients(self, train: Batches, indices: np.ndarray, share: float) -> None:
        place = self._position
        x, labels = self._to_device(train.batch(indices, place.epoch))
        self._check_input(f"Trainer: {self._where()}", x, indices)
        result = self.objective(self._run, x, labels)
        found = float(result.loss.detach())
        if not math.isfinite(found):
            advice = "Lower lr, or set clip_norm."
            raise SpikingError(f"Trainer: {self._where()}: {self._what_is_not_finite(advice)}")
        self.accelerator.backward(result.loss * (share * len(indices)))
        place.loss += found * len(indices)
        if result.logits is not None:
            place.correct += int((result.logits.detach().argmax(1) == labels).sum())
            place.scored += len(indices)
        place.samples += len(indices)
        for name, rate in self._rates.latest().items():
            place.rates[name] = place.rates.get(name, 0.0) + rate * len(indices)

    def _finish_epoch(self, validation: Batches | None) -> None:
        place = self._position
        record: dict[str, Any] = {"epoch": place.epoch, **self._running(), "seconds": round(place.seconds, 3)}
        self._look_at_rates(record["rates"])
        # An infinite weight has finite gradients, then becomes NaN.
        self._check_weights(f"Trainer: {self._where()}", "Start from other weights, or lower lr")
        if validation is not None:
            with self._averaged_weights():
                held_out = self.evaluate(validation)
                record["validation_loss"], score = held_out.loss, [-held_out.loss]
                if held_out.logits.shape[1]:
                    record["validation_accuracy"] = held_out.accuracy
                    # Of equally accurate epochs the one with the lower loss.
                    score = [held_out.accuracy, -held_out.loss]
                if place.best is None or score > place.best["score"]:
                    place.best = {"epoch": place.epoch, "score": score}
                    self._best = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
                    self._save_best()
        place.history.append(record)
        place.next_epoch()
        self._save()
        self.display.epoch(record, self.config.epochs)
        self.accelerator.log(_flat(record), step=record["epoch"])
        if self.after_epoch is not None and self.accelerator.is_main_process:
            with self._averaged_weights():
                self.after_epoch(self.model, record)

    def _running(self) -> dict[str, Any]:
        """Loss, accuracy and firing rates of this epoch so far (of this rank's share)."""
        place, n = self._position, max(1, self._position.samples)
        return {
            "loss": place.loss / n,
            **({"accuracy": place.correct / place.scored} if place.scored else {}),
            "rates": {name: total / n for name, total in place.rates.items()},
        }

    # Checks

    def _where(self) -> str:
        return f"epoch {self._position.epoch}, step {self._position.step}"

    def _check_weights(self, where: str, advice: str) -> None:
        for name, value in self.model.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise SpikingError(f'{where}: "{name}" holds values that are not finite. {advice}.')

    def _check_input(self, where: str, x: Tensor, indices: np.ndarray) -> None:
        if x.is_floating_point() and not math.isfinite(float(x.sum())):
            bad = (~torch.isfinite(x)).flatten(2).any(2).any(0).nonzero()
            if len(bad):
                raise SpikingError(
                    f"{where}: the input of sample {int(indices[int(bad[0])])} holds values that are not "
                    "finite (NaN or infinity). Clean the data, or leave that sample out."
                )

    def _what_is_not_finite(self, advice: str) -> str:
        for name, value in self.model.named_parameters():
            if not bool(torch.isfinite(value).all()):
                return f'weight "{name}" holds values that are not finite. {advice}'
        for name, rate in self._rates.latest().items():
            if not math.isfinite(rate):
                return f'layer "{name}" is the first whose membrane is not a number. {advice}'
        return "loss or scores are not finite, though all weights and layers are. Look at the objective."

    def _check_gradients(self) -> None:
        """Stop at a gradient that is not finite, before anything is scaled by it; then clip."""
        self.accelerator.unscale_gradients()
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not math.isfinite(float(norm)) and self.config.mixed_precision != "fp16":  # there the scaler skips the step
            for name, value in self.model.named_parameters():
                if value.grad is not None and not bool(torch.isfinite(value.grad).all()):
                    raise SpikingError(
                        f'Trainer: {self._where()}: the gradient of "{name}" holds values that are not finite. Lower lr.'
                    )
        if self.config.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.config.clip_norm, norm)

    def _look_at_rates(self, rates: dict[str, float]) -> None:
        for name, rate in rates.items():
            if rate < SILENT:
                kind, advice = "silent", "Raise its input (initial weights, batch norm) or lower its threshold."
            elif rate > SATURATED:
                kind, advice = "saturated", "Lower its input or raise its threshold."
            else:
                continue
            text = f'layer "{name}" is {kind}: {rate:.2g} spikes per neuron and step, so it passes on next to nothing. {advice}'
            if not any(f'layer "{name}" is {kind}' in said for said in self._position.warnings):
                self._position.warnings.append(text)
                self.display.message(f"warning: {text}")

    # Saving and resuming

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The averaged weights in the model's place, and the trained ones back afterwards."""
        if self._average is None:
            yield
            return
        trained = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self._average.values)
        try:
            yield
        finally:
            self.model.load_state_dict(trained)

    def _best_path(self, epoch: int) -> Path | None:
        return None if self.run_dir is None else self.run_dir / f"best-{epoch:04d}.safetensors"

    def _save_best(self) -> None:
        path = self._best_path(self._position.epoch)
        if path is not None and self._best is not None and self.accelerator.is_main_process:
            ckpt.save(path, ckpt.Checkpoint(self._best, ckpt.identity(self.model)))

    def _save(self) -> None:
        place, path = self._position, self.checkpoint_path
        if path is None or not self.accelerator.is_main_process:
            return
        state = {"position": asdict(place), "config": asdict(self.config), "scaler": self._scaler_state()}
        average = None if self._average is None else self._average.values
        ckpt.save(
            path,
            ckpt.Checkpoint(
                self.model.state_dict(), ckpt.identity(self.model), self.optimizer.state_dict(), average, state
            ),
        )
        lines = "".join(json.dumps(record) + "\n" for record in place.history)
        ckpt.write_atomically(path.with_name("metrics.jsonl"), lines.encode())
        for old in path.parent.glob("best-*.safetensors"):
            if place.best is None or old != self._best_path(place.best["epoch"]):
                old.unlink()

    def _resume(self, train_size: int, steps: int) -> None:
        path = self.checkpoint_path
        if path is None:
            raise SpikingError("Trainer.fit: got resume=True without run_dir; expected the directory of the run.")
        found = ckpt.load(path, self.model)
        started_with = found.state.get("config", {})
        defaults = asdict(TrainConfig())  # a setting that is younger than the run
        for name, value in asdict(self.config).items():
            longer = name == "epochs" and value > started_with.get(name, value)
            if started_with.get(name, defaults[name]) != value and name not in ("device", "log_with") and not longer:
                raise SpikingError(
                    f"{path}: the run was started with {name}={started_with.get(name)!r}; got {value!r}. "
                    "A run is resumed with its own settings, more epochs excepted; start another for others."
                )
        place = _Position(**found.state["position"])
        if self.config.epochs > started_with.get("epochs", self.config.epochs):
            self._say_longer(started_with["epochs"], place.epoch * steps + place.step, steps)
        if place.train_size != train_size:
            raise SpikingError(f"{path}: the run trains on {place.train_size} samples; got {train_size}.")
        if place.best is not None:
            best_path = self._best_path(place.best["epoch"])
            assert best_path is not None
            self._best = ckpt.load(best_path, self.model).model
        ckpt.restore(path, self.model, self.optimizer)
        if self._average is not None and found.average is not None:
            self._average.load(found.average)
        if self.accelerator.scaler is not None and found.state["scaler"]:
            self.accelerator.scaler.load_state_dict(found.state["scaler"])
        self._position = place

    def _say_longer(self, epochs: int, step: int, steps: int) -> None:
        old, new = (self.schedule(c, step, steps) for c in (replace(self.config, epochs=epochs), self.config))
        shape = "longer half cosine" if self.schedule is learning_rate else "schedule of the longer run"
        self.display.message(
            f"epochs raised from {epochs} to {self.config.epochs}: from epoch {step // steps + 1} on the learning rate follows the "
            f"{shape} ({old:.2g} becomes {new:.2g}), so the result is not that of a run started with so many."
        )

    def _scaler_state(self) -> dict[str, Any]:
        return {} if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()

    # Small things

    def _steps_per_epoch(self, train: Batches) -> int:
        """Batches an epoch; a last one too small to give every rank a sample is left out."""
        if not len(train):
            raise SpikingError("Trainer.fit: got no training samples; expected at least one.")
        full, rest = divmod(len(train), self.config.batch_size)
        steps = full + (rest >= self.accelerator.num_processes)
        if self.config.batch_size < self.accelerator.num_processes or not steps:
            raise SpikingError(
                f"Trainer.fit: got batches of {min(self.config.batch_size, len(train))} for "
                f"{self.accelerator.num_processes} ranks; expected a sample for each at least."
            )
        return steps

    def _to_device(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, labels = batch
        return x.to(self.accelerator.device, non_blocking=True), labels.to(self.accelerator.device, non_blocking=True)

    def _start_trackers(self) -> None:
        if self.config.log_with == "none":
            return
        try:
            self.accelerator.init_trackers("spiking", config=asdict(self.config))
        except (ImportError, ValueError) as err:
            raise SpikingError(f"TrainConfig.log_with: {self.config.log_with} cannot start: {err}") from err


@dataclass
class _Position:
    """Where the training is: next step, sums over the epoch so far, records of the epochs before. All of it is JSON."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: int = 0
    scored: int = 0
    samples: int = 0
    seconds: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    best: dict[str, Any] | None = None
    train_size: int = 0

    def next_epoch(self) -> None:
        self.epoch, self.step, self.loss, self.correct = self.epoch + 1, 0, 0.0, 0
        self.scored, self.samples, self.seconds, self.rates = 0, 0, 0.0, {}


class _Rates:
    """Firing rates of all neuron layers, read off as they run. NaN where a membrane is not a number."""

    def __init__(self, model: nn.Module) -> None:
        self._now: dict[str, Tensor] = {}
        within = {id(layer.neuron) for layer in model.modules() if isinstance(layer, Recurrent)}  # called step by step
        for name, layer in model.named_modules():
            if isinstance(layer, Neuron | Recurrent) and id(layer) not in within:
                layer.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def read(layer: nn.Module, inputs: Any, output: Any) -> None:
            spikes = output[0] if isinstance(output, tuple) else output
            self._now[name] = spikes.detach().float().mean()

        return read

    def latest(self) -> dict[str, float]:
        return {name: float(rate) for name, rate in self._now.items()}


class _Average:
    """Exponential moving average of all weights and buffers, with a decay that rises from 0.1 over the first steps.

        a <- d·a + (1 - d)·w;   d = min(decay, (1 + step) / (10 + step))

    Source: Polyak, Juditsky 1992, in the form of TensorFlow's ExponentialMovingAverage(num_updates).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = model.state_dict()  # shares memory with the model
        self.values = {name: value.detach().clone() for name, value in self._live.items()}
        floats = [name for name, value in self._live.items() if value.is_floating_point()]
        self._floats = ([self.values[n] for n in floats], [self._live[n] for n in floats])
        self._others = [n for n in self._live if n not in set(floats)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._floats[0], self._floats[1], 1 - decay)
        for name in self._others:
            self.values[name].copy_(self._live[name])

    def load(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.values[name].copy_(value)


def _check_batches(where: str, data: object) -> None:
    if not callable(getattr(data, "batch", None)):
        raise SpikingError(
            f"{where}: got {type(data).__name__}; expected samples with batch(indices, epoch), such as "
            "TensorBatches(x, labels)."
        )


def _accelerator(config: TrainConfig, run_dir: Path | None) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    config.check_machine()
    # One process may train several models; accelerate otherwise keeps the first one's precision for ever.
    AcceleratorState._reset_state()
    try:
        return Accelerator(
            cpu=config.device == "cpu",
            mixed_precision=config.mixed_precision,
            log_with=None if config.log_with == "none" else config.log_with,
            project_dir=None if run_dir is None else str(run_dir),
        )
    except (ImportError, ValueError) as err:
        raise SpikingError(
            f"Trainer: cannot use {config.device}, {config.mixed_precision}, {config.log_with}: {err}"
        ) from err


def _part_ranks() -> None:
    """Leave the group, and let its threads drop the tensors of the last collective: they need the interpreter for that,
    and one that finds it ending aborts the process, after all the work. DistributedDataParallel keeps them alive."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    time.sleep(0.1)


def _flat(record: dict[str, Any]) -> dict[str, float]:
    plain = {name: value for name, value in record.items() if not isinstance(value, dict)}
    return {**plain, **{f"rate/{name}": value for name, value in record["rates"].items()}}
