"""Handwritten digits from noise by a spiking network: train, sample, compare with real digits.

    python examples/diffusion_digits.py [--epochs N] [--out DIR] [--quick]

Trains the 8×8 digits model (178,094 parameters; minutes on one core), draws a grid of samples, an animation of the denoising, and prices
a call of the denoiser. A run that was stopped goes on where it was when the same line is given again.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from spiking.models.diffusion import SpikingDiffusion
from spiking.models.diffusion.data import load_digits
from spiking.models.diffusion.energy import price_call
from spiking.models.diffusion.run import Recipe, evaluate, feature_sets, run, save_animation

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=160)
parser.add_argument("--out", type=Path, default=Path("runs/diffusion_digits"))
parser.add_argument("--quick", action="store_true", help="a small network and two epochs, for a look")
arguments = parser.parse_args()

recipe = Recipe()
recipe = replace(recipe, train=replace(recipe.train, epochs=arguments.epochs))
if arguments.quick:
    recipe = replace(
        recipe, channels=4, timesteps=2, steps=5, gamma_pairs=16, train=replace(recipe.train, epochs=2, warmup_epochs=0)
    )
metrics = run(recipe, arguments.out, resume=(arguments.out / "checkpoint.safetensors").is_file())
print(f"{metrics['parameters']:,} parameters, test loss {metrics['test_loss']:.3f}; samples: {metrics['samples']}")

model = SpikingDiffusion.from_pretrained(arguments.out / "model")
shown = model.sample(16, 8, sampler=recipe.sampler, steps=recipe.steps, keep=range(recipe.steps))
save_animation(shown.trajectory, arguments.out / "denoising.gif")

digits = load_digits()
n, seeds = (50, 1) if arguments.quick else (0, 3)
makers = {
    f"{sampler}, {recipe.steps} steps": lambda n, seed, s=sampler: (
        model.sample(n, 8, sampler=s, steps=recipe.steps, seed=100_000 * seed).images
    )
    for sampler in ("analytic", "ddim")
}
for name, row in evaluate(digits, makers, feature_sets(digits, seeds=seeds), n).items():
    distance = row["digits-frechet"]
    print(f"{name}: digits-Fréchet {distance['mean']:.1f} [{distance['low']:.1f}, {distance['high']:.1f}]")

cost = price_call(model.unet, torch.randn(8, 1, 8, 8), torch.full((8,), 500))
print(
    f"a call: {1e6 * cost.published:.2f} µJ by the published formula, {1e6 * cost.honest:.2f} µJ with every float counted, "
    f"{1e6 * cost.conventional:.2f} µJ for a conventional network"
)
