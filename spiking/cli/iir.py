"""`spiking iir`: image classifiers of one time step."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from spiking.errors import SpikingError

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def iir() -> None:
    """Convert image classifiers to spiking ones and retrain them down to one time step (IIR-SNN)."""


RUN_HELP = """Train a network on images, convert it, retrain it at ever fewer time steps, and price each stage.

--data takes mnist, fashion, cifar10 or cifar100, looked for below --root, or a folder or archive: MNIST's \
idx files, a CIFAR archive as downloaded, or pictures in train/CLASS/ and test/CLASS/. Nothing is downloaded.

Examples:

  spiking iir run --data mnist --root ~/data                     (one step, from thresholds of one step)

  spiking iir run --data fashion --root ~/data --preset compare  (three ways to one step, side by side)

  spiking iir run --data ~/cifar-10-python.tar.gz --network vgg16 --width 1 --epochs 300 --stage-epochs 100

  spiking iir run --resume --out runs/iir-1                      (go on with a run that was stopped)

Ctrl-C saves the run and ends with exit code 130. Into the run's folder go config.yaml, ann/ and a folder a start with one a \
stage (checkpoints, metrics.jsonl, stage.safetensors), metrics.json, model/ (for from_pretrained), accuracy_energy.png and .svg, \
trace.h5 and report.html.
"""


@app.command(help=RUN_HELP, epilog="All settings, with their defaults: any run's config.yaml, which --config reads.")
def run(
    data: Annotated[str | None, typer.Option(help="mnist, fashion, cifar10, cifar100, or a folder or archive.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that holds the named sets.")] = None,
    network: Annotated[str | None, typer.Option(help="vgg4 … vgg19, resnet12, resnet20 or resnet34.")] = None,
    width: Annotated[
        float | None, typer.Option(help="Scales channels and hidden layers; 1 is the published size.")
    ] = None,
    batch_norm: Annotated[bool, typer.Option("--batch-norm", help="With batch norms, folded at conversion.")] = False,
    preset: Annotated[str | None, typer.Option(help="short, published, direct, or compare for all three.")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Numbers of steps in place of the preset's, such as 5,3,1.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of the conventional network.")] = None,
    stage_epochs: Annotated[
        int | None, typer.Option(help="Epochs of a stage of the ladder; starts of one stage get five times as many.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run; runs/iir-1, -2, … without it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or with the latest.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with settings; options on this line go before it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use so many training images only.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Largest learning rate of the conventional network.")] = None,
    stage_lr: Annotated[float | None, typer.Option(help="Largest learning rate of a stage.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    from spiking.cli import runs
    from spiking.cli.config import named_as_written, read_yaml
    from spiking.models.iir import Recipe
    from spiking.models.iir.run import build, open_images
    from spiking.models.iir.run import run as run_recipe
    from spiking.training import Interrupted

    given = runs.nested(
        {
            "data": data,
            "root": None if root is None else str(root),
            "network": network,
            "width": width,
            "batch_norm": batch_norm or None,
            "preset": preset,
            "schedule": schedule,
            "stage_epochs": stage_epochs,
            "limit": limit,
            "stage_lr": stage_lr,
            "train.epochs": epochs,
            "train.seed": seed,
            "train.batch_size": batch_size,
            "train.lr": lr,
            "train.device": device,
        }
    )
    folder = runs.folder("iir", out, resume)
    file = folder / "config.yaml" if resume else config
    settings = {} if file is None else read_yaml(file)
    try:
        with named_as_written(Recipe, runs.writer(file, settings, given)):
            recipe = runs.recipe(Recipe(), file, settings, given, "spiking iir run")
            if resume:
                started = runs.recipe(Recipe(), file, settings, {}, "spiking iir run")
                runs.check_resumed(folder, started, recipe, given)
            recipe.train.check_machine()
            images = open_images(recipe)
            build(recipe, images.shape, len(images.classes))  # what does not fit leaves no folder behind
            runs.keep(folder, recipe)
            typer.echo(f"run in {folder}", err=True)
            metrics = run_recipe(recipe, folder, resume, data=images)
    except Interrupted as err:
        typer.echo(f"stopped and saved; go on with: spiking iir run --out {folder} --resume", err=True)
        raise typer.Exit(128 + err.signum) from err
    typer.echo(json.dumps(metrics, indent=2, default=float) if as_json else "\n".join(_answer(metrics)))


SIZES_HELP = """Print what a network holds and multiplies, layer by layer, and what it would cost at measured firing rates.

With --rates, a spiking network of these sizes with random weights is given the firing rates of a finished run, taken over by relative \
depth (its thresholds are set so), and priced as that run's networks were, at each number of steps.

Examples:

  spiking iir sizes --network vgg16 --side 32                    (338.4 M products)

  spiking iir sizes --network vgg16 --rates runs/iir-1/metrics.json
"""


@app.command(help=SIZES_HELP)
def sizes(
    network: Annotated[str, typer.Option(help="vgg4 … vgg19, vgg16-224, resnet12, resnet20 or resnet34.")] = "vgg16",
    side: Annotated[int, typer.Option(help="Height and width of images.")] = 32,
    channels: Annotated[int, typer.Option(help="Channels of images.")] = 3,
    classes: Annotated[int, typer.Option(help="Classes.")] = 10,
    width: Annotated[float, typer.Option(help="Scales channels and hidden layers; 1 is the published size.")] = 1.0,
    rates: Annotated[Path | None, typer.Option(help="metrics.json of a run, to price its firing rates.")] = None,
    images: Annotated[int, typer.Option(help="Random images to price with.")] = 4,
    seed: Annotated[int, typer.Option(help="Decides weights and images.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    import torch

    from spiking.models.iir import (
        VGG,
        ResNet,
        SpikingResNet,
        SpikingVGG,
        layer_sizes,
        price_at_rates,
        read_rates,
    )  # fmt: skip

    stages = [] if rates is None else read_rates(rates)
    if images < 1:
        raise SpikingError(f"--images: got {images}; expected at least 1.")
    residual = network.startswith("resnet")
    plan = (network, classes, channels, side, width)
    with torch.device("meta"):
        conventional = ResNet(*plan) if residual else VGG(*plan)
    found: dict[str, Any] = {
        "network": network,
        "layers": {name: size._asdict() for name, size in layer_sizes(conventional, channels, side, side).items()},
    }
    if stages:
        torch.manual_seed(seed)
        spiking_one = SpikingResNet(*plan) if residual else SpikingVGG(*plan)
        shown = torch.rand(images, channels, side, side)
        found["start"] = stages[0].start
        found["rates_of"] = str(rates)
        found["stages"] = [asdict(price_at_rates(spiking_one, shown, s.rates, s.timesteps)) for s in stages]
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(_sizes(found)))


def _sizes(found: dict[str, Any]) -> list[str]:
    layers: dict[str, dict[str, int]] = found["layers"]
    total = {key: sum(size[key] for size in layers.values()) for key in ("macs", "parameters", "neurons")}
    wide = max(map(len, layers))
    lines = [f"{'layer':<{wide}} {'products':>15} {'weights':>13} {'neurons':>9}"]
    for name, size in [*layers.items(), ("in all", total)]:
        lines.append(f"{name:<{wide}} {size['macs']:>15,} {size['parameters']:>13,} {size['neurons']:>9,}")
    if "stages" not in found:
        return lines
    lines.append(
        f"energy of one image against FP32, with random weights and the firing rates of {found['rates_of']} (start {found['start']}), "
        "taken over by relative depth:"
    )
    for stage in found["stages"]:
        lines.append(f"T={stage['timesteps']}: {_gains(stage['energy'])}; {_dearer(stage['energy']['twins'])}")
        off = max(abs(a - b) for a, b in zip(stage["wanted"], stage["reached"]))
        lines.append(
            f"  rates {' '.join(f'{rate:.3f}' for rate in stage['reached'])} (at most {off:.3f} from those wanted)"
        )
    return lines


def _gains(energy: dict[str, Any]) -> str:
    return ", ".join(f"{a} {energy[a]['gain']:.1f}×" for a in ("published", "operations", "with-memory"))


def _answer(metrics: dict[str, Any]) -> list[str]:
    from spiking.models.iir.run import unretrained_name
    from spiking.split import Proportion

    lines = [f"conventional network: test {Proportion(**metrics['ann'])}"]
    for found in metrics["unretrained"]:
        lines.append(
            f"{unretrained_name(found)}: test {Proportion(**found['test'])}; energy against FP32: {_gains(found['energy'])}"
        )
    for name, start in metrics["starts"].items():
        for stage in start["stages"]:
            lines.append(
                f"{name}, T={stage['timesteps']}: test {Proportion(**stage['test'])}; energy against FP32: {_gains(stage['energy'])}; "
                f"{_dearer(stage['energy']['twins'])}"
            )
    return [*lines, *_latency(metrics["latency"], metrics["threads"]), f"report: {metrics['report']}"]


def _latency(seconds: dict[str, float], threads: int) -> list[str]:
    """The time of one image, and of each start how many times as fast the last stage is as the first and as the dense network."""
    times = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in seconds.items())
    lines = [
        f"one image on this machine ({threads} thread{'s' * (threads != 1)}, medians of networks that ran in turn): {times}"
    ]
    starts: dict[str, list[tuple[str, float]]] = {}
    for name, value in seconds.items():
        start, _, steps = name.partition(" ")
        if steps:
            starts.setdefault(start, []).append((steps, value))
    for start, stages in starts.items():
        (first, slow), (last, quick) = stages[0], stages[-1]
        against = f", and {slow / quick:.2f}× as fast as at {first}" if len(stages) > 1 else ""
        lines.append(f"{start}, {last}: {seconds['conventional'] / quick:.2f}× as fast as the dense network{against}")
    return lines


def _dearer(twins: dict[str, float]) -> str:
    """Which conventional networks are cheaper, all words of memory counted."""
    cheaper = [f"{name} ({ratio:.2f}×)" for name, ratio in twins.items() if ratio > 1]
    return f"costs MORE than {', '.join(cheaper)}" if cheaper else "cheaper than all its conventional twins"
