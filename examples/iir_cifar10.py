"""The full recipe of IIR-SNN on CIFAR-10: VGG16 trained, converted, and retrained from five time steps to one.

    python examples/iir_cifar10.py --data DIR|cifar-10-python.tar.gz [--preset short|published|compare] [--device cuda]
    python examples/iir_cifar10.py --smoke

At full size this takes days on a CPU and wants a GPU. --smoke (or --quick) runs every step of it in a minute, with a narrow network
on made-up images: figures from it mean nothing.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from spiking.datasets import Images

from spiking.models.iir import Recipe, run, split
from spiking.progress import Display, open_display
from spiking.split import Proportion

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", help="folder or archive with CIFAR-10 (or CIFAR-100)")
parser.add_argument("--network", default="vgg16", help="vgg9 … vgg19, resnet12, resnet20 or resnet34")
parser.add_argument("--preset", default="short", help="short, published, direct or compare")
parser.add_argument(
    "--batch-norm", action="store_true", help="train with batch norm and fold it, rather than without, as published"
)
parser.add_argument("--epochs", type=int, default=500)
parser.add_argument("--stage-epochs", type=int, default=100)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--device", default="auto")
parser.add_argument("--out", type=Path, default=Path("runs/iir_cifar10"))
parser.add_argument("--smoke", "--quick", action="store_true", help="every step in a minute, on made-up images")
arguments = parser.parse_args()

recipe = Recipe(
    data=arguments.data or "cifar10",
    network=arguments.network,
    width=1.0,
    batch_norm=arguments.batch_norm,
    preset=arguments.preset,
    stage_epochs=arguments.stage_epochs,
)
recipe = replace(
    recipe, train=replace(recipe.train, epochs=arguments.epochs, seed=arguments.seed, device=arguments.device)
)
data = None
if arguments.smoke:
    recipe = replace(recipe, width=0.0625, preset="compare", stage_epochs=1, percentile=95.0, calibration_steps=5)
    recipe = replace(recipe, train=replace(recipe.train, epochs=2, batch_size=20, lr=0.03))
    rng = np.random.default_rng(arguments.seed)
    labels = np.arange(240) % 10
    tints = rng.integers(0, 156, (10, 3, 1, 1))
    images = (rng.integers(0, 100, (240, 3, 32, 32)) + tints[labels]).astype(np.uint8)
    names = tuple(f"tint {i}" for i in range(10))
    parts = [Images(images[part], labels[part], names, "pictures") for part in (slice(0, 200), slice(200, 240))]
    data = split(recipe, *parts)
    print("MADE-UP images: every step runs, and no figure means anything")

display = Display() if arguments.smoke else open_display()
found = run(recipe, arguments.out, resume=arguments.out.exists(), display=display, data=data)

print(f"conventional network: {Proportion(**found['ann'])}")
for start, result in found["starts"].items():
    for stage in result["stages"]:
        gains = ", ".join(
            f"{name} {stage['energy'][name]['gain']:.1f}" for name in ("published", "operations", "with-memory")
        )
        print(f"{start}, T={stage['timesteps']}: {Proportion(**stage['test'])}; FP32 energy / this: {gains}")
print(f"report: {found['report']}")
