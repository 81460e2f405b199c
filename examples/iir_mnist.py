"""One time step is all you need? Three ways to a spiking network of one step, side by side, on MNIST or Fashion-MNIST.

    python examples/iir_mnist.py --data DIR [--seeds N] [--epochs N] [--stage-epochs N] [--out DIR] [--quick]

DIR holds MNIST's four idx files (or Fashion-MNIST's). Without --data, and with --quick, the 8×8 digits of scikit-learn stand in.
Each seed trains one conventional network and converts it thrice: thresholds from one step and training at one step ("short"), the
published ladder 5, 4, 3, 2, 1 ("published"), and training at one step with thresholds from 500 steps ("direct").
A run that was stopped goes on where it was when the same line is given again.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from spiking.datasets import Images

from spiking.models.iir import Recipe, run, split
from spiking.progress import Display, open_display
from spiking.split import Proportion

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", help="folder with MNIST's or Fashion-MNIST's idx files")
parser.add_argument("--seeds", type=int, default=1)
parser.add_argument("--epochs", type=int, default=10, help="of the conventional network")
parser.add_argument(
    "--stage-epochs", type=int, default=2, help="of a stage of the ladder; five times as many of a single stage"
)
parser.add_argument("--width", type=float, default=0.25, help="1 is the published VGG of six layers")
parser.add_argument("--out", type=Path, default=Path("runs/iir_mnist"))
parser.add_argument("--quick", action="store_true", help="a few epochs, for a look")
arguments = parser.parse_args()

recipe = Recipe(
    data=arguments.data or "digits",
    preset="compare",
    width=arguments.width,
    stage_epochs=arguments.stage_epochs,
)
recipe = replace(recipe, train=replace(recipe.train, epochs=arguments.epochs))
if arguments.quick:
    recipe = replace(recipe, width=0.1, stage_epochs=1, train=replace(recipe.train, epochs=8, lr=0.05))


def digits() -> tuple[Images, Images]:
    """The embedded digits of scikit-learn, 1,437 to train and 360 to test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.rint(found.images * 255 / 16).astype(np.uint8)[:, None]
    order = np.random.default_rng(0).permutation(len(images))
    names = tuple(map(str, range(10)))
    train, test = (
        Images(images[part], found.target[part].astype(np.int64), names, "mnist") for part in np.split(order, [1437])
    )
    return train, test


runs = []
for seed in range(arguments.seeds):
    seeded = replace(recipe, train=replace(recipe.train, seed=seed))
    data = None if arguments.data else split(seeded, *digits())
    folder = arguments.out / f"seed{seed}"
    display = Display() if arguments.quick else open_display()
    runs.append(run(seeded, folder, resume=folder.exists(), display=display, data=data))

name = runs[0]["images"] if arguments.data else "DIGITS 8×8 (not MNIST)"
console = Console(width=118)
console.print(f"{name}: {runs[0]['n_train']} images to train, {runs[0]['n_test']} to test; {len(runs)} seeds")


def over_seeds(values: list[float], form: str) -> str:
    """Mean and, of several seeds, the standard deviation."""
    spread = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{spread}"


def figures(found: list[dict]) -> list[str]:
    """Accuracy, its difference from the conventional network of the same seed, and how many times less energy by each accounting."""
    accuracy = [100 * f["test"]["value"] for f in found]
    lost = [a - 100 * r["ann"]["value"] for a, r in zip(accuracy, runs)]
    gains = [
        over_seeds([f["energy"][a]["gain"] for f in found], ".1f") for a in ("published", "operations", "with-memory")
    ]
    return [over_seeds(accuracy, ".2f"), over_seeds(lost, "+.2f").replace("± +", "± "), *gains]


columns = ("test accuracy %", "points to it", "published ×", "operations ×", "with memory ×", "spikes / neuron")
table = Table("network", "T", *columns)
ann = over_seeds([100 * r["ann"]["value"] for r in runs], ".2f")
table.add_row("conventional, FP32", "-", ann, "", "1", "1", "1", "")
for i, kind in enumerate(runs[0]["unretrained"]):
    graded = f", {kind['levels']} levels" if kind["levels"] > 1 else ""
    found = [r["unretrained"][i] for r in runs]
    table.add_row(f"converted{graded}, not retrained", str(kind["timesteps"]), *figures(found), "")
for start in runs[0]["starts"]:
    for i, stage in enumerate(runs[0]["starts"][start]["stages"]):
        found = [r["starts"][start]["stages"][i] for r in runs]
        rates = [float(np.mean(list(s["rates"].values()))) * stage["timesteps"] for s in found]
        table.add_row(start, str(stage["timesteps"]), *figures(found), over_seeds(rates, ".2f"))
console.print(table)
print("× : energy of the FP32 network / energy of this one; below 1 the spiking network costs more")
for start, found in runs[0]["starts"].items():
    last = found["stages"][-1]
    twins = ", ".join(f"{twin} {ratio:.2f}" for twin, ratio in last["energy"]["twins"].items())
    print(
        f"{start}, T={last['timesteps']}: {Proportion(**last['test'])}; energy / that of a twin, with memory: {twins}"
    )
times = ", ".join(f"{what} {1e3 * t:.2f} ms" for what, t in runs[0]["latency"].items())
print(f"one image on this machine, {runs[0]['threads']} threads, medians of networks that ran in turn: {times}")
print(f"figure: {arguments.out / 'seed0' / 'accuracy_energy.png'}")
