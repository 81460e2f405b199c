"""What the trainings of classifiers share: the network's frame, its objective, and what a run leaves in its folder."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as tf

from spiking import checkpoint as ckpt
from spiking import hw_models, layer, plot
from spiking.engine import Readout
from spiking.errors import SpikingError
from spiking.neuron import LIF
from spiking.split import Proportion, proportion
from spiking.trace import record
from spiking.training import Batches, Evaluation, Objective, Trainer

__all__ = [
    "Classifier",
    "check_fields",
    "facts",
    "finish",
    "integrate",
    "objective",
    "train_and_test",
    "write_json",
]

TRACED = 200  # test recordings that the energy estimate rests on
HARDWARE = ("digital-45nm", "digital-sram", "loihi", "rram-crossbar")


class Classifier(nn.Module):
    """Layers `body`, and `output` neurons whose mean membrane ("membrane") or spike rate ("rate") decides, as `config.readout` says.

    Shapes: x [T, B, …] -> output spikes [T, B, classes]. With `return_membrane=True` also the output membrane before reset under the
    readout's leak, [T, B, classes]. `step(x_t, state)` takes one frame [B, …].
    """

    config: Any  # has readout and output_beta
    body: layer.Sequential
    output: LIF

    def forward(
        self, x: Tensor, state: tuple[Any, Any] | None = None, return_state: bool = False, return_membrane: bool = False
    ) -> Any:
        body_state, output_state = state or (None, None)
        current, body_state = self.body(x, state=body_state, return_state=True)
        spikes, output_state = self.output(current, state=output_state, return_state=True)
        found: list[Any] = [spikes]
        if return_membrane:
            found.append(integrate(current, self.config.output_beta, self.output.stored))
        if return_state:
            found.append((body_state, output_state))
        return tuple(found) if len(found) > 1 else spikes

    def step(self, x_t: Tensor, state: tuple[Any, Any] | None = None) -> tuple[Tensor, tuple[Any, Any]]:
        body_state, output_state = state or (None, None)
        current, body_state = self.body.step(x_t, body_state)
        spikes, output_state = self.output.step(current, output_state)
        return spikes, (body_state, output_state)

    def event_chain(self) -> tuple[list[nn.Module], Readout]:
        """The layers in order and what decides, for `spiking.compile_events`."""
        return [self.body, self.output], Readout(self.config.readout, self.config.output_beta)

    def scores(self, x: Tensor) -> Tensor:
        """What decides, [B, classes]: the mean output membrane, or the output firing rate, as config.readout says."""
        if self.config.readout == "rate":
            return self(x).float().mean(0)
        _, membrane = self(x, return_membrane=True)
        return membrane.float().mean(0)


def check_fields(config: Any, choices: dict[str, tuple[str, ...]], ranges: dict[str, tuple[float, float]]) -> None:
    """Refuse a configuration whose texts are none of the choices or whose numbers lie outside their ranges (both ends inside)."""
    kind = type(config).__name__
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise SpikingError(f'{kind}.{name}: got "{getattr(config, name)}"; expected {" or ".join(allowed)}.')
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not (low <= value <= high and math.isfinite(value)):
            above = f"{low} to {high}" if math.isfinite(high) else f"at least {low}"
            raise SpikingError(f"{kind}.{name}: got {value}; expected {above}.")


def integrate(current: Tensor, beta: float, stored: Callable[[Tensor], Tensor]) -> Tensor:
    """The membrane of a leaky integrator that never fires: v[t] = stored(beta·v[t-1] + current[t]); [T, B, *] -> [T, B, *]."""
    v = torch.zeros_like(current[0])
    steps = []
    for x in current:
        v = stored(beta * v + x)
        steps.append(v)
    return torch.stack(steps)


def objective(label_smoothing: float = 0.0) -> Any:
    """Cross-entropy on what the network decides by: the mean membrane, or the spike count."""

    def judge(model: nn.Module, x: Tensor, labels: Tensor) -> Objective:
        config: Any = getattr(model, "module", model).config  # .module: behind a distributed wrapper
        if config.readout == "rate":
            scores = model(x).float().sum(0)
        else:
            _, membrane = model(x, return_membrane=True)
            scores = membrane.float().mean(0)
        return Objective(tf.cross_entropy(scores, labels, label_smoothing=label_smoothing), scores)

    return judge


def facts(recipe: Any, description: str, simulated: bool) -> dict[str, Any]:
    """What metrics.json says about a run before there are any figures."""
    from spiking import __version__

    return {
        "simulated": simulated,
        "recordings": description,
        "seed": recipe.train.seed,
        "recipe": asdict(recipe),
        "versions": {"spiking": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
    }


def train_and_test(
    trainer: Trainer,
    train: Batches,
    held_out: Batches,
    test: Batches,
    baseline: Callable[[], np.ndarray],
    resume: bool,
) -> tuple[Evaluation, dict[str, Any]]:
    """Train, choose the epoch on `held_out` (empty: take the last) and test once -> scores of the test, and the figures of both.

    `baseline()` gives the test predictions of a linear classifier. `resume` goes on with the trainer's checkpoint, if there is one.
    """
    began = time.perf_counter()
    path = trainer.checkpoint_path  # none yet where the run was stopped before its first
    history = trainer.fit(
        train, held_out if len(held_out) else None, resume=resume and path is not None and path.exists()
    )
    trained = time.perf_counter()
    found = trainer.evaluate(test)

    def share(predictions: np.ndarray) -> dict[str, Any]:
        return proportion(int((predictions == found.labels).sum()), len(test))._asdict()

    return found, {
        "n_train": len(train),
        "n_validation": len(held_out),
        "n_test": len(test),
        "accuracy": share(found.predictions),
        "linear_baseline": share(baseline()),
        "firing_rates": found.rates,
        "test_loss": found.loss,
        "best_epoch": _best_epoch(history),
        "warnings": trainer.warnings,
        "seconds_training": round(trained - began, 1),
    }


def _best_epoch(history: list[dict[str, Any]]) -> int:
    """The epoch whose weights a trained model ends with: the best on validation, or the last."""
    if "validation_accuracy" not in history[-1]:
        return int(history[-1]["epoch"])
    return int(max(history, key=lambda r: (r["validation_accuracy"], -r["validation_loss"]))["epoch"])


def _save_predictions(out: Path, found: Evaluation) -> None:
    """predictions.npz: label, prediction (`spiking`) and scores of every test sample."""
    np.savez(out / "predictions.npz", label=found.labels, spiking=found.predictions, scores=found.logits)


def _save_model(model: Any, out: Path, metrics: dict[str, Any], task: str) -> None:
    """The folder model/, for from_pretrained."""
    accuracy = Proportion(**metrics["accuracy"])
    model.save_pretrained(
        out / "model",
        model_card_kwargs={
            "title": f"{task} classifier" + (" (trained on SIMULATED recordings)" if metrics["simulated"] else ""),
            "class_name": type(model).__name__,
            "trained_on": metrics["recordings"],
            "results": f"Accuracy on {accuracy.n} test recordings: {accuracy}.",
        },
    )


def _draw(found: Evaluation, out: Path) -> None:
    """Confusion matrix and firing rates, each as PNG and SVG."""
    from sklearn.metrics import confusion_matrix

    matrix = confusion_matrix(found.labels, found.predictions, labels=np.arange(found.logits.shape[1]))
    for name, axes in (("confusion", plot.confusion_matrix(matrix)), ("firing_rates", plot.firing_rates(found.rates))):
        figure: Any = axes.figure
        for suffix in ("png", "svg"):
            figure.savefig(out / f"{name}.{suffix}", dpi=150)


def _price(
    model: Any, test: Batches, out: Path, metrics: dict[str, Any], task: str, classes: Sequence[str]
) -> dict[str, Any]:
    """Trace of some test recordings, and what the 45 nm estimate makes of it; trace.h5, report.html and report.json."""
    simulated, accuracy = metrics["simulated"], Proportion(**metrics["accuracy"])
    model.to("cpu").eval()
    n = min(TRACED, len(test))
    with torch.no_grad(), record(model, keep_spikes=1) as trace:
        for at in range(0, n, 50):
            x, _ = test.batch(np.arange(at, min(at + 50, n)), None)
            model(x)
    x, labels = test.batch(np.arange(1), None)
    shown = trace.recordings[0]
    with torch.no_grad():
        shown.output = model.scores(x)[0].numpy()
    shown.label, shown.classes = classes[int(labels[0])], tuple(classes)
    shown.note = "SIMULATED recording" if simulated else f"{task} recording"
    trace.save(out / "trace.h5")
    # the accuracy was measured in fp32; hardware that prices another precision is warned about
    chips = [hw_models.load(name) for name in HARDWARE]
    found = [hw_models.estimate(trace, c, accuracy=accuracy.value if c.precision == "fp32" else None) for c in chips]
    hw_models.report(
        found,
        out / "report.html",
        title=task + (" (SIMULATED recordings)" if simulated else ""),
        recording=shown,
        facts={"Recordings": metrics["recordings"].split(". ")[0], "Accuracy": str(accuracy)},
        figures={"Confusion matrix of the test recordings": out / "confusion.png"},
    )
    first = found[0]
    assert first.fair is not None  # digital hardware prices every twin
    return {
        "hardware": first.hardware.name,
        "accounting": first.accounting,
        "twin": first.fair.title,
        "ratio": first.fair.ratio._asdict(),
        "energy": first.energy._asdict(),
        "ann": first.fair.energy._asdict(),
        "n_warnings": len(first.warnings),
        "summary": first.summary(),
        "report": str(out / "report.html"),
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A JSON file, whole or not at all."""
    ckpt.write_atomically(path, (json.dumps(value, indent=2, default=float) + "\n").encode())


def finish(
    model: Any,
    found: Evaluation,
    test: Batches,
    out: Path,
    metrics: dict[str, Any],
    task: str,
    classes: Sequence[str] = tuple("0123456789"),
) -> None:
    """Everything that a trained and tested network leaves in the folder of its run; metrics get "energy"."""
    _save_predictions(out, found)
    _save_model(model, out, metrics, task)
    _draw(found, out)
    metrics["energy"] = _price(model, test, out, metrics, task, classes)
