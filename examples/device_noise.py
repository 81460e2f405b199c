"""How much accuracy do real memory cells cost? The packaged N-MNIST network on many chips, one effect after the other.

    python examples/device_noise.py --data ~/nmnist [--trials 50] [--preset pcm] [--out device_noise]

Sweeps read noise, time since writing, stuck devices, converter bits and wire resistance on three presets, each with the network as
it was trained and with outputs calibrated through the same chip; then trains the network through each preset's own noise and
asks the same chips again. No test recording is looked at before. Every figure is kept in --out; a second call goes on there.
Without --data it trains a small network on SIMULATED recordings first.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from spiking.hw_models import ArrayConfig, Cell, MonteCarlo, load_cell, monte_carlo, noise_aware
from spiking.hw_models.curves import Proportional
from spiking.hw_models.effects import Faults, WhiteNoise
from spiking.hw_models.wires import Wires
from torch import Tensor, nn

from spiking import plot
from spiking.models.nmnist import EventBatches, FrameConfig, NMNISTNet, Recipe, objective
from spiking.models.nmnist.run import open_recordings
from spiking.training import TrainConfig, Trainer

PRESETS = ("rram-40nm", "rram-wan", "pcm")
DAY = 86_400.0
READ_NOISE = (0.0, 0.05, 0.1, 0.2, 0.5)  # of each device's conductance, in place of the preset's
TIMES = (0.0, 3600.0, DAY, 30 * DAY, 365.25 * DAY)
STUCK = (0.0, 0.01, 0.02, 0.05, 0.1)  # half of them at the lowest, half at the highest conductance
ADC_BITS = (3, 4, 5, 6, 8)
OHMS = (0.0, 0.35, 1.0, 3.0, 10.0)  # of a piece of wire between two cells
AT_ONCE = 10  # recordings: what a pass holds stays in the caches
WRITTEN_FOR = (0.0, 2 * DAY)  # ages that the network is trained for


class Task(NamedTuple):
    """The network, recordings to train on, test batches, frames to calibrate by, and what the recordings are."""

    model: NMNISTNet
    learn: EventBatches
    test: list[tuple[Tensor, Tensor]]
    seen: Tensor
    description: str


def sweeps(cell: Cell, some: slice) -> Iterator[tuple[str, float, Cell, ArrayConfig]]:
    """(effect, value, cell, arrays): the preset with one thing changed; a value of 0 changes nothing but the read noise."""
    for fraction in READ_NOISE[some]:
        yield "read noise", fraction, replace(cell, reads=(WhiteNoise(Proportional(fraction)),)), ArrayConfig()
    for share in STUCK[some]:
        stuck = replace(cell, faults=Faults(lrs=share / 2, hrs=share / 2)) if share else cell
        yield "stuck devices", share, stuck, ArrayConfig()
    for bits in ADC_BITS[some]:
        yield "converter bits", float(bits), cell, ArrayConfig(adc_bits=bits, adc_range="calibrated")
    for ohms in OHMS[some]:
        yield "ohms a wire", ohms, cell, ArrayConfig(wires=Wires(ohms, ohms))


def prepare(data: str | None, quick: bool) -> Task:
    recordings = open_recordings(Recipe(data=data or ""))
    learn, test = (EventBatches(events, config=FrameConfig()) for events in recordings[:2])
    if data is None:
        torch.manual_seed(0)
        model = NMNISTNet(Recipe().model)
        learn = learn.subset(np.arange(400)) if quick else learn
        Trainer(model, objective(), TrainConfig(epochs=4 if quick else 15, warmup_epochs=1)).fit(learn)
    else:
        model = NMNISTNet.pretrained()
    n = 2 * AT_ONCE if quick else min(len(test), 300)
    batches = [test.batch(np.arange(i, min(i + AT_ONCE, n)), None) for i in range(0, n, AT_ONCE)]
    chosen = np.linspace(0, len(learn) - 1, 16 if quick else 32).round().astype(int)
    return Task(model.eval(), learn, batches, learn.batch(chosen, None)[0], recordings.description)


def trained_for(cell: Cell, t: float, task: Task, epochs: int, path: Path) -> nn.Module:
    """The network trained on through the noise of fresh chips of that age; kept at the path."""
    if not path.exists():
        learner = noise_aware(task.model, cell, t=t)
        Trainer(learner, objective(0.1), TrainConfig(epochs=epochs, lr=2e-3, warmup_epochs=1)).fit(task.learn)
        model = NMNISTNet(task.model.config)
        model.load_state_dict(learner.state_dict())
        model.save_pretrained(path)
    return NMNISTNet.from_pretrained(path).eval()


def study(task: Task, model: nn.Module, cell: Cell, trials: int, where: Path, **options: object) -> MonteCarlo:
    return monte_carlo(model, task.test, cell, trials, calibration=task.seen, out=where, **options)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with N-MNIST; simulated recordings without it")
    parser.add_argument("--trials", type=int, default=50, help="chips for each figure")
    parser.add_argument("--preset", action="append", help="cells; may be repeated")
    parser.add_argument("--epochs", type=int, default=40, help="of training through the noise")
    parser.add_argument("--out", default="device_noise", help="folder for figures")
    parser.add_argument("--quick", action="store_true", help="two chips and a few values")
    arguments = parser.parse_args()
    quick, out = arguments.quick, Path(arguments.out)
    trials, epochs = (2, 1) if quick else (arguments.trials, arguments.epochs)
    some = slice(0, None, 4) if quick else slice(None)
    task = prepare(arguments.data, quick)
    print(task.description)

    rows: list[dict[str, object]] = []
    drawn: dict[tuple[str, str], tuple[list[float], list[MonteCarlo]]] = {}

    def show(effect: str, values: list[float], studies: list[MonteCarlo]) -> None:
        for i, value in enumerate(values):
            found, t = (studies[0], i) if len(studies) == 1 else (studies[i], 0)
            bands = {column: found.band(column, t) for column in found.columns}
            rows.extend(
                {"preset": found.cell, "effect": effect, "value": value, "clean": found.clean, "column": column, **band._asdict()}
                for column, band in bands.items()
            )  # fmt: skip
            print(f"{found.cell:<10} {effect:<16} {value:<12g} " + "  ".join(f"{c} {b}" for c, b in bands.items()))

    for name in arguments.preset or PRESETS[: 1 if quick else None]:
        cell, folder = load_cell(name), out / name
        times = list(TIMES[some])
        found = study(task, task.model, cell, trials, folder / "time", times=sorted({*times, *WRITTEN_FOR}))
        at = [found.times.index(t) for t in times]
        shown = replace(found, times=tuple(times), accuracy=found.accuracy[:, :, at])
        drawn["time", name] = times, [shown]
        show("time", times, [shown])
        for effect, value, changed, config in sweeps(cell, some):
            same = changed == cell and config == ArrayConfig()
            where = folder / ("time" if same else f"{effect.replace(' ', '-')}-{value:g}")
            figures = study(task, task.model, changed, trials, where, config=config)
            drawn.setdefault((effect, name), ([], []))[0].append(value)
            drawn[effect, name][1].append(figures)
            show(effect, [value], [figures])
        for t in WRITTEN_FOR[: 1 if quick or cell.retention is None else None]:
            longer = trained_for(load_cell("ideal"), 0.0, task, epochs, out / "model-longer")
            aware = trained_for(cell, t, task, epochs, folder / f"model-{t:g}")
            lost = found.clean - found.band(time=found.times.index(t)).mean
            print(f"{name:<10} at {t:g} s: {100 * lost:.2f} points lost")
            for effect, model in (("trained longer", longer), ("noise-aware", aware)):
                figures = study(task, model, cell, trials, folder / f"{effect.replace(' ', '-')}-{t:g}", times=(t,))
                show(effect, [t], [figures])
                left = found.clean - figures.band().mean
                rows.append({"preset": name, "effect": effect, "value": t, "lost": lost, "left": left})
                print(f"{name:<10} {effect}: {100 * left:.2f} points left")
    out.mkdir(parents=True, exist_ok=True)
    document = {"recordings": task.description, "trials": trials, "rows": rows}
    (out / "device_noise.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    draw(drawn, out / "device_noise.png")
    print(f"figures: {out / 'device_noise.png'}")


def draw(drawn: dict[tuple[str, str], tuple[list[float], list[MonteCarlo]]], path: Path) -> None:
    """A row for each preset, a column for each effect: mean and 5–95 % band of both columns."""
    presets, effects = (list(dict.fromkeys(key[i] for key in drawn)) for i in (1, 0))
    figure = Figure(figsize=(3.0 * len(effects), 2.6 * len(presets)), layout="constrained")
    for axes, name in zip(figure.subplots(len(presets), len(effects), squeeze=False, sharey=True), presets):
        for ax, effect in zip(axes, effects):
            values, studies = drawn[effect, name]
            accuracy = np.concatenate([study.accuracy[:, :, :, 0] for study in studies], axis=2)
            series = {column: 100 * accuracy[k] for k, column in enumerate(studies[0].columns)}
            plot.bands(values, series, ax, log=effect == "time", reference=100 * studies[0].clean)
            ax.set(xlabel="seconds since writing" if effect == "time" else effect, title=name)
            ax.label_outer()
        axes[0].set_ylabel("accuracy (%)")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
