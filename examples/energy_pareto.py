"""How much energy does accuracy cost? Train with the energy in the loss, at several weights, and draw the Pareto front.

    python examples/energy_pareto.py [--data DIR] [--chip NAME|FILE] [--weights W …] [--seeds N] [--epochs N] [--quick]

Each run starts from fresh weights and trains on  cross-entropy + weight · (energy of the pass / energy of the equal ANN).
Without --data the recordings are SIMULATED.
"""

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

import spiking
from spiking import datasets, hw_models
from spiking.models.nmnist import EventBatches, Recipe, build, hold_out, objective
from spiking.progress import Display
from spiking.training import Trainer

TRACED = 100  # test recordings that an estimate rests on


class Bar(Display):
    """One bar over all runs; a Trainer moves it on."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self.progress, self.task = progress, task

    def step(self, step: int, running: dict[str, Any]) -> None:
        self.progress.advance(self.task)


def price(network: torch.nn.Module, frames: EventBatches, chip: str) -> hw_models.Estimate:
    """The network's energy on some recordings."""
    x, _ = frames.batch(np.arange(min(TRACED, len(frames))), None)
    network.eval()
    with torch.no_grad(), spiking.record(network) as trace:
        network(x)
    return hw_models.estimate(trace, chip)


def front(points: dict[float, tuple[float, float]]) -> list[float]:
    """Weights whose mean (energy, accuracy) no other one beats in both, by rising energy."""
    best, kept = -1.0, []
    for weight, (_, accuracy) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if accuracy > best:
            best = accuracy
            kept.append(weight)
    return kept


def draw(
    runs: list[tuple[float, int, float, float]], means: dict[float, tuple[float, float]], what: str, path: str
) -> None:
    """Every run as a dot, the means of each weight, and the front through the means that no other beats."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    ax = figure.subplots()
    ax.scatter([1e6 * r[2] for r in runs], [100 * r[3] for r in runs], s=14, color="#9aa5b1", label="one run")
    kept = [means[weight] for weight in front(means)]
    ax.step([1e6 * e for e, _ in kept], [100 * a for _, a in kept], where="post", color="#d9622b", label="Pareto front")
    for weight, (energy, accuracy) in means.items():
        ax.plot(1e6 * energy, 100 * accuracy, "o", color="#2b6cb0")
        ax.annotate(f"{weight:g}", (1e6 * energy, 100 * accuracy), textcoords="offset points", xytext=(5, -12))
    ax.plot([], [], "o", color="#2b6cb0", label="mean at a weight of the energy")
    ax.set(xlabel="energy per sample (µJ)", ylabel="test accuracy (%)", title=what)
    ax.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder or archive with N-MNIST; simulated recordings without it")
    parser.add_argument("--chip", default="digital-sram", help="a chip of hw_models.available(), or a TOML file")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.3, 1.0, 3.0, 10.0, 30.0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", default="energy_pareto.png")
    parser.add_argument("--quick", action="store_true", help="a hundred recordings, one epoch, two weights")
    arguments = parser.parse_args()

    train, test = datasets.NMNIST(arguments.data, train=True), datasets.NMNIST(arguments.data, train=False)
    events, test_events = train.events(), test.events()
    if arguments.quick:
        events, test_events = events.select(np.arange(100)), test_events.select(np.arange(50))
        arguments.weights, arguments.seeds, arguments.epochs = [0.0, 10.0], 1, 1
    mark = "SIMULATED N-MNIST" if train.simulated else "N-MNIST"

    recipe = Recipe()
    batches = -(-len(hold_out(events.labels, recipe.validation, 0)[0]) // recipe.train.batch_size)
    steps = arguments.seeds * len(arguments.weights) * arguments.epochs * batches
    runs: list[tuple[float, int, float, float]] = []
    with Progress(console=Console(stderr=True)) as progress:
        bar = Bar(progress, progress.add_task("training", total=steps))
        for weight in arguments.weights:
            for seed in range(arguments.seeds):
                config = replace(recipe.train, epochs=arguments.epochs, seed=seed)
                frames = EventBatches(events, config=recipe.frames, seed=seed)
                test_frames = EventBatches(test_events, config=recipe.frames)
                training, validation = hold_out(events.labels, recipe.validation, seed)
                network = build(replace(recipe, train=config))
                ann = price(network, test_frames, arguments.chip).ann.nominal
                with hw_models.energy_loss(network, arguments.chip, reference=ann) as energy:
                    judge = energy.added_to(objective(recipe.label_smoothing), weight)
                    trainer = Trainer(network, judge, config, display=bar)
                    trainer.fit(frames.subset(training), frames.subset(validation))
                    accuracy = trainer.evaluate(test_frames).accuracy
                network.cpu()
                found = price(network, test_frames, arguments.chip)
                runs.append((weight, seed, found.energy.nominal, accuracy))
                progress.console.print(
                    f"weight {weight:g}, seed {seed}: accuracy {100 * accuracy:.1f} %, "
                    f"{hw_models.si(found.energy.nominal, 'J')}, SNN/ANN {hw_models.figure(found.ratio.nominal)}"
                )

    means = {}
    print(f"{mark}, {len(test_events)} test recordings, {arguments.chip}, {arguments.seeds} seed(s)")
    print(f"{'weight':>8} {'accuracy':>16} {'energy per sample':>20} {'against weight 0':>17}")
    for weight in arguments.weights:
        energies = np.array([e for w, _, e, _ in runs if w == weight])
        accuracies = 100 * np.array([a for w, _, _, a in runs if w == weight])
        means[weight] = (float(energies.mean()), float(accuracies.mean()) / 100)
        first = means[arguments.weights[0]][0]
        spread = f" ± {accuracies.std(ddof=1):.1f}" if len(accuracies) > 1 else ""
        print(
            f"{weight:8g} {f'{accuracies.mean():.1f}{spread} %':>16} {hw_models.si(energies.mean(), 'J'):>20} "
            f"{energies.mean() / first:17.2f}"
        )
    print("on the front: weights " + ", ".join(f"{w:g}" for w in front(means)))
    draw(runs, means, f"{mark} on {arguments.chip}", arguments.out)
    print(f"figure: {arguments.out}")


if __name__ == "__main__":
    main()
