"""`spiking diffusion`: images from noise by a spiking network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spiking.errors import SpikingError

if TYPE_CHECKING:
    from spiking.models.diffusion import SpikingDiffusion

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def diffusion() -> None:
    """Train spiking diffusion models, sample from them, and measure how near their images come to real ones."""


TRAIN_HELP = """Train a spiking U-Net to make images.

--data takes digits (8×8, comes with the package), mnist, fashion or cifar10 (looked for below --root), an archive or folder of \
labelled images, or any folder of pictures, which is read as it is needed. Nothing is downloaded.

Examples:

  spiking diffusion train                                          (digits, minutes)

  spiking diffusion train --data fashion --root ~/data --pad 2 --channels 32 --multipliers 1,2,2 --epochs 20

  spiking diffusion train --data ~/celeba --side 64 --crop 148 --flip --channels 128 --multipliers 1,2,2,4 --blocks 2

  spiking diffusion train --resume                                 (go on with the latest)

Ctrl-C saves the run and ends with exit code 130; --resume continues it to the same bits. Into the run's folder go config.yaml, \
checkpoint.safetensors, metrics.jsonl (one line an epoch), samples-NNNN.png, samples.png, metrics.json and model/ (for from_pretrained).
"""


@app.command(help=TRAIN_HELP, epilog="All settings, with their defaults: any run's config.yaml, which --config reads.")
def train(
    data: Annotated[str | None, typer.Option(help="digits, mnist, fashion, cifar10, or a folder or archive.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that holds the named sets.")] = None,
    side: Annotated[int | None, typer.Option(help="Resize pictures of a folder to so many pixels.")] = None,
    crop: Annotated[int | None, typer.Option(help="First cut so many pixels from the middle.")] = None,
    pad: Annotated[int | None, typer.Option(help="Surround images with so many pixels.")] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror images at random.")] = False,
    channels: Annotated[
        int | None, typer.Option(help="Channels of the first level; 128 is the published size.")
    ] = None,
    multipliers: Annotated[str | None, typer.Option(help="Channels of each level, such as 1,2,2,4.")] = None,
    blocks: Annotated[int | None, typer.Option(help="Residual blocks a level.")] = None,
    timesteps: Annotated[int | None, typer.Option(help="Time steps of a call.")] = None,
    prediction: Annotated[str | None, typer.Option(help="eps (as published), x0 or v.")] = None,
    schedule: Annotated[str | None, typer.Option(help="linear (as published) or cosine.")] = None,
    conditional: Annotated[bool, typer.Option("--conditional", help="Learn the labels too.")] = False,
    temporal_epochs: Annotated[
        int | None, typer.Option(help="Epochs of the second stage: weights for each time step.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run; runs/diffusion-1, -2, … without it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or with the latest.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with settings; options on this line go before it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Largest learning rate.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    from spiking.cli import runs
    from spiking.cli.config import named_as_written, read_yaml
    from spiking.models.diffusion.data import open_images
    from spiking.models.diffusion.run import Recipe, build
    from spiking.models.diffusion.run import run as run_recipe
    from spiking.training import Interrupted

    given = runs.nested(
        {
            "data": data,
            "root": None if root is None else str(root),
            "side": side,
            "crop": crop,
            "pad": pad,
            "flip": flip or None,
            "channels": channels,
            "multipliers": multipliers,
            "blocks": blocks,
            "timesteps": timesteps,
            "prediction": prediction,
            "schedule": schedule,
            "conditional": conditional or None,
            "temporal_epochs": temporal_epochs,
            "train.epochs": epochs,
            "train.seed": seed,
            "train.batch_size": batch_size,
            "train.lr": lr,
            "train.device": device,
            "train.mixed_precision": mixed_precision,
        }
    )
    folder = runs.folder("diffusion", out, resume)
    file = folder / "config.yaml" if resume else config
    settings = {} if file is None else read_yaml(file)
    try:
        with named_as_written(Recipe, runs.writer(file, settings, given)):
            recipe = runs.recipe(Recipe(), file, settings, given, "spiking diffusion train")
            if resume:
                started = runs.recipe(Recipe(), file, settings, {}, "spiking diffusion train")
                runs.check_resumed(folder, started, recipe, given)
            recipe.train.check_machine()
            images = open_images(recipe.data, recipe.root, recipe.side, recipe.crop)
            build(recipe, images)  # what does not fit leaves no folder behind
            runs.keep(folder, recipe)
            typer.echo(f"run in {folder}", err=True)
            metrics = run_recipe(recipe, folder, resume, data=images)
    except Interrupted as err:
        typer.echo(f"stopped and saved; go on with: spiking diffusion train --out {folder} --resume", err=True)
        raise typer.Exit(128 + err.signum) from err
    if as_json:
        typer.echo(json.dumps(metrics, indent=2))
    else:
        typer.echo(
            f"test loss {metrics['test_loss']:.4f} ({metrics['parameters']:,} parameters)\nsamples: {metrics['samples']}"
        )


SAMPLE_HELP = """Make images: by the digits model that ships with the package, or the model of a run.

Examples:

  spiking diffusion sample                                         (64 digits into samples.png)

  spiking diffusion sample --animation denoising.gif --n 16

  spiking diffusion sample --model runs/diffusion-1/model --side 32 --sampler ddim --steps 20
"""


@app.command(help=SAMPLE_HELP)
def sample(
    model: Annotated[
        str | None, typer.Option(help="Folder with a model, or its name on the hub; the digits without it.")
    ] = None,
    n: Annotated[int, typer.Option(help="Images.")] = 64,
    side: Annotated[int, typer.Option(help="Height and width.")] = 8,
    sampler: Annotated[str, typer.Option(help="analytic, ddpm, ddpm-small or ddim.")] = "analytic",
    steps: Annotated[int, typer.Option(help="Calls of the denoiser.")] = 50,
    eta: Annotated[float, typer.Option(help="Share of DDPM's noise that ddim adds.")] = 0.0,
    threshold: Annotated[float | None, typer.Option(help="Threshold of all neurons.")] = None,
    label: Annotated[int | None, typer.Option(help="Class, for a conditional model.")] = None,
    guidance: Annotated[float, typer.Option(help="How far to go beyond what the class suggests.")] = 0.0,
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("samples.png"),
    animation: Annotated[Path | None, typer.Option(help="GIF of the run to write.")] = None,
    seed: Annotated[int, typer.Option(help="Image i depends on seed + i.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print how they were made as JSON.")] = False,
) -> None:
    import torch

    from spiking.models.diffusion.run import save_animation, save_grid

    net = _model(model)
    labels = None if label is None else torch.full((n,), label)
    found = net.sample(
        n, side, sampler=sampler, steps=steps, eta=eta, threshold=threshold, labels=labels, guidance=guidance, seed=seed,
        keep=range(steps) if animation else (),
    )  # fmt: skip
    save_grid(found.images, out)
    if animation is not None:
        save_animation(found.trajectory, animation)
    made = {**found.made, "images": n, "out": str(out)}
    typer.echo(json.dumps(made, indent=2) if as_json else f"{n} images, {steps} steps of {sampler}, seed {seed}: {out}")


EVAL_HELP = """Measure how near a model's images come to the test images, beside real images and a normal fit.

The Fréchet distance is that of the features of classifiers trained here (one a seed), named after the data: it is no FID, and \
compares only with figures of the same data and number of images.

Examples:

  spiking diffusion eval                                           (the digits model)

  spiking diffusion eval --model runs/diffusion-1/model --sampler ddim --steps 50 --search thresholds.json
"""


@app.command("eval", help=EVAL_HELP)
def evaluate(
    model: Annotated[
        str | None, typer.Option(help="Folder with a model, or its name on the hub; the digits without it.")
    ] = None,
    data: Annotated[str, typer.Option(help="digits, mnist, fashion, cifar10, or a folder or archive.")] = "digits",
    root: Annotated[Path, typer.Option(help="Folder that holds the named sets.")] = Path("data"),
    pad: Annotated[int, typer.Option(help="Surround images with so many pixels.")] = 0,
    sampler: Annotated[str, typer.Option(help="analytic, ddpm, ddpm-small or ddim; several with commas.")] = "analytic",
    steps: Annotated[int, typer.Option(help="Calls of the denoiser.")] = 50,
    threshold: Annotated[float | None, typer.Option(help="Threshold of all neurons.")] = None,
    search: Annotated[
        Path | None, typer.Option(help="Search for a better threshold; figures are kept in this JSON file.")
    ] = None,
    n: Annotated[int, typer.Option(help="Images; 0: as many as the test set has.")] = 0,
    seeds: Annotated[int, typer.Option(help="Seeds of classifiers and of samples.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    from spiking.models.diffusion.data import open_images
    from spiking.models.diffusion.run import evaluate as measure
    from spiking.models.diffusion.run import feature_sets

    if seeds < 1:
        raise SpikingError(f"--seeds: got {seeds}; expected at least 1.")
    net, images = _model(model), open_images(data, str(root))
    size = images.shape[1] + 2 * pad, images.shape[2] + 2 * pad

    def maker(name: str) -> Any:
        return lambda n, seed: (
            net.sample(n, size, sampler=name, steps=steps, threshold=threshold, seed=100_000 * seed).images
        )

    features = feature_sets(images, pad, seeds)
    found: dict[str, Any] = measure(
        images, {f"{name}-{steps}": maker(name) for name in sampler.split(",")}, features, n, pad
    )
    lines = [
        f"features: classifiers of {images.name}, test accuracy {', '.join(f'{f.accuracy:.3f}' for f in features)}"
    ]
    for name, row in found.items():
        figures = "  ".join(f"{key} {v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for key, v in row.items())
        lines.append(f"{name}: {figures}")
    if search is not None:
        result = _search(net, images, pad, sampler.split(",")[0], steps, features[0], seeds, search)
        found["threshold"] = {"chosen": result.chosen, "is_better": result.is_better, "says": str(result)}
        lines.append(str(result))
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines))


def _model(folder: str | None) -> SpikingDiffusion:
    from spiking.models.diffusion import SpikingDiffusion

    return SpikingDiffusion.pretrained() if folder is None else SpikingDiffusion.from_pretrained(folder)


def _search(net: Any, images: Any, pad: int, sampler: str, steps: int, feature: Any, seeds: int, cache: Path) -> Any:
    """Choose on one half of the test images, report on the other."""
    import numpy as np

    from spiking.models.diffusion.data import DiffusionBatches
    from spiking.models.diffusion.metrics import frechet_distance
    from spiking.models.diffusion.threshold import search_threshold

    test = DiffusionBatches(images.test, images.test_labels, pad=pad).batch(np.arange(len(images.test)), None)[0][0]
    halves = [feature(test[start::2]) for start in (0, 1)]

    def metric(threshold: float, seed: int, report: bool) -> float:
        real = halves[int(report)]
        made = net.sample(
            len(real), test.shape[2:], sampler=sampler, steps=steps, threshold=threshold, seed=100_000 * seed
        )
        return frechet_distance(feature(made.images), real)

    return search_threshold(metric, seeds=seeds, cache=cache)
