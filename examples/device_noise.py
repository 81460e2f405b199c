"""How much accuracy do real memory cells cost? The packaged N-MNIST network on many chips, one effect after the other.

    python examples/device_noise.py --data ~/nmnist [--trials 50] [--out device_noise]

Sweeps read noise, time since writing, stuck devices, converter bits and wire resistance on three presets, each with the network
as it was trained and with outputs calibrated through the same chip. Every figure is kept in --out; a second call goes on there.
Without --data it trains a small network on SIMULATED recordings first.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from spiking.hw_models import ArrayConfig, Cell, load_cell, monte_carlo
from spiking.hw_models.curves import Proportional
from spiking.hw_models.effects import Faults, WhiteNoise
from spiking.hw_models.wires import Wires
from torch import Tensor, nn

from spiking import hw_models, plot
from spiking.models.nmnist import EventBatches, FrameConfig, NMNISTNet, Recipe, objective
from spiking.models.nmnist.run import open_recordings
from spiking.training import TrainConfig, Trainer

PRESETS = ("rram-40nm", "rram-wan", "pcm")
DAY = 86_400.0
READ_NOISE = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)  # of each device's conductance
TIMES = (0.0, 3600.0, DAY, 30 * DAY, 365.25 * DAY)
STUCK = (0.0, 0.01, 0.02, 0.05, 0.1)  # half of them at the lowest, half at the highest conductance
ADC_BITS = (3, 4, 5, 6, 8)
OHMS = (0.0, 0.1, 0.35, 1.0, 3.0)


def sweeps(cell: Cell, quick: bool) -> Iterator[tuple[str, float, Cell, ArrayConfig]]:
    """(effect, value, cell, arrays): the preset with one thing changed."""
    some = slice(0, None, 4) if quick else slice(None)
    for fraction in READ_NOISE[some]:
        yield "read noise", fraction, replace(cell, reads=(WhiteNoise(Proportional(fraction)),)), ArrayConfig()
    for share in STUCK[some]:
        yield "stuck devices", share, replace(cell, faults=Faults(lrs=share / 2, hrs=share / 2)), ArrayConfig()
    for bits in ADC_BITS[some]:
        yield "converter bits", float(bits), cell, ArrayConfig(adc_bits=bits, adc_range="calibrated")
    for ohms in OHMS[some]:
        yield "ohms a wire", ohms, cell, ArrayConfig(wires=Wires(ohms, ohms))


def network(data: str | None, quick: bool) -> tuple[nn.Module, list[tuple[Tensor, Tensor]], Tensor, str]:
    """The network, test batches, frames to calibrate by, and what the recordings are."""
    recordings = open_recordings(Recipe(data=data or ""))
    train, test = (EventBatches(events, config=FrameConfig()) for events in recordings[:2])
    if data is None:
        torch.manual_seed(0)
        model = NMNISTNet(Recipe().model)
        part = train.subset(range(200 if quick else len(train)))
        Trainer(model, objective(), TrainConfig(epochs=2 if quick else 15)).fit(part)
    else:
        model = NMNISTNet.pretrained()
    n = 40 if quick else min(len(test), 300)
    chosen = np.linspace(0, len(train) - 1, 16 if quick else 64).round().astype(int)
    return model.eval(), [test.batch(np.arange(n), None)], train.batch(chosen, None)[0], recordings.description


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with N-MNIST; simulated recordings without it")
    parser.add_argument("--trials", type=int, default=50, help="chips for each figure")
    parser.add_argument("--out", default="device_noise", help="folder for figures")
    parser.add_argument("--quick", action="store_true", help="two chips and a few values")
    arguments = parser.parse_args()
    out, trials = Path(arguments.out), 2 if arguments.quick else arguments.trials
    model, batches, seen, description = network(arguments.data, arguments.quick)
    print(description)

    rows: list[dict[str, object]] = []
    drawn: dict[tuple[str, str], tuple[list[float], list[hw_models.MonteCarlo]]] = {}
    for name in PRESETS[: 1 if arguments.quick else None]:
        cell = load_cell(name)
        folder = out / name
        times = TIMES[::3] if arguments.quick else TIMES
        found = monte_carlo(model, batches, cell, trials, times, calibration=seen, out=folder / "time")
        drawn["time", name] = (list(times), [found])
        print(f"{name}: clean {100 * found.clean:.1f} %, new {found.band()}, calibrated {found.band('calibrated')}")
        for effect, value, changed, config in sweeps(cell, arguments.quick):
            where = folder / f"{effect.replace(' ', '-')}-{value:g}"
            found = monte_carlo(model, batches, changed, trials, config=config, calibration=seen, out=where)
            values, studies = drawn.setdefault((effect, name), ([], []))
            values.append(value)
            studies.append(found)
            row = {"preset": name, "effect": effect, "value": value}
            rows += [{**row, "column": column, **found.band(column)._asdict()} for column in found.columns]
            bands = ", ".join(f"{column} {found.band(column)}" for column in found.columns)
            print(f"{name}, {effect} {value:g}: {bands}")
    rows += [
        {"preset": name, "effect": "time", "value": t, "column": column, **studies[0].band(column, i)._asdict()}
        for (effect, name), (values, studies) in drawn.items() if effect == "time"
        for i, t in enumerate(values) for column in studies[0].columns
    ]  # fmt: skip
    (out / "device_noise.json").write_text(
        json.dumps({"recordings": description, "trials": trials, "rows": rows}, indent=1)
    )
    draw(drawn, out / "device_noise.png")
    print(f"figures: {out / 'device_noise.png'}")


def draw(drawn: dict[tuple[str, str], tuple[list[float], list[hw_models.MonteCarlo]]], path: Path) -> None:
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
