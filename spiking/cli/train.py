"""`spiking train`: from recordings to a trained network and its energy report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spiking.errors import SpikingError

if TYPE_CHECKING:
    from spiking.models.nmnist import Recipe

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def train() -> None:
    """Train a spiking network; ends with its accuracy, its energy and a report."""


NMNIST_HELP = """Train the tutorial network on N-MNIST: handwritten digits seen by an event camera.

Without --data it trains on SIMULATED recordings, which need no download. For the real ones, download train.zip and \
test.zip by hand from data.mendeley.com/datasets/468j46mzdv/1 (DOI 10.17632/468j46mzdv.1, about 1.2 GB), put both into \
one folder, as they are, and name it with --data.

Examples:

  spiking train nmnist                              (simulated, minutes)

  spiking train nmnist --data ~/nmnist --epochs 10  (real recordings)

  spiking train nmnist --resume                     (go on with the latest)

  spiking train nmnist --data ~/nmnist --folds 5    (cross-validation)

Ctrl-C saves the run and ends with exit code 130; --resume continues it to the same bits. Into the run's folder go \
config.yaml, metrics.jsonl (one line an epoch), metrics.json, checkpoint.safetensors, model/ (for from_pretrained), \
predictions.npz, confusion and firing_rates (PNG, SVG), trace.h5, report.html and report.json.
"""


@app.command(help=NMNIST_HELP, epilog="All settings, with their defaults: any run's config.yaml, which --config reads.")
def nmnist(
    data: Annotated[
        Path | None, typer.Option(help="Folder or archive with N-MNIST; simulated recordings without it.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="conv (the tutorial network, default) or mlp.")] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training recordings; without it about 72,000 recordings in all, 20,000 simulated ones."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run; runs/nmnist-1, -2, … without it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or with the latest.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with settings; options on this line go before it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Recordings a step.")] = None,
    time_bins: Annotated[int | None, typer.Option(help="Frames a recording.")] = None,
    lr: Annotated[float | None, typer.Option(help="Largest learning rate.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.")] = None,
    log_with: Annotated[str | None, typer.Option(help="none, tensorboard or wandb.")] = None,
    folds: Annotated[int | None, typer.Option(help="Cross-validate over so many folds instead.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    from spiking.models.nmnist import run
    from spiking.training import Interrupted

    given = _nested(
        {
            "data": None if data is None else str(data),
            "folds": folds,
            "model.kind": model,
            "train.epochs": epochs,
            "train.seed": seed,
            "train.batch_size": batch_size,
            "frames.time_bins": time_bins,
            "train.lr": lr,
            "train.device": device,
            "train.mixed_precision": mixed_precision,
            "train.log_with": log_with,
        }
    )
    folder = _folder(out, resume)
    recipe = _resumed(folder, given) if resume else _recipe(config, given)
    recordings = run.open_recordings(recipe.data)
    if not resume:
        recipe = _with_epochs(recipe, recordings, config, given)
        _start(folder, recipe)
    typer.echo(f"{recordings.description}\nrun in {folder}", err=True)
    try:
        if recipe.folds:
            metrics = run.cross_validate(recipe, recordings, folder, resume)
        else:
            metrics = run.train(recipe, recordings, folder, resume)
    except Interrupted as err:
        typer.echo(f"stopped and saved; go on with: spiking train nmnist --out {folder} --resume", err=True)
        raise typer.Exit(128 + err.signum) from err
    if as_json:
        typer.echo(json.dumps(metrics, indent=2, default=float))
    else:
        typer.echo("\n".join(_folds_answer(metrics, folder) if recipe.folds else _answer(metrics)))


def _nested(options: dict[str, Any]) -> dict[str, Any]:
    """Options that were given, as nested settings."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if value is not None:
            section, _, key = name.rpartition(".")
            (found.setdefault(section, {}) if section else found)[key] = value
    return found


def _recipe(config: Path | None, given: dict[str, Any]) -> Recipe:
    from spiking.cli.config import override, read_yaml
    from spiking.models.nmnist import Recipe

    recipe = Recipe()
    if config is not None:
        recipe = override(recipe, read_yaml(config), str(config))
    return override(recipe, given, "spiking train nmnist")


def _with_epochs(recipe: Recipe, recordings: Any, config: Path | None, given: dict[str, Any]) -> Recipe:
    """The recipe with as many epochs as the number of training recordings calls for, unless file or line say how many."""
    from dataclasses import replace

    from spiking.cli.config import read_yaml
    from spiking.models.nmnist.run import default_epochs

    file = read_yaml(config) if config else {}
    if any("epochs" in (settings.get("train") or {}) for settings in (file, given)):
        return recipe
    n = len(recordings.train) * (1 - recipe.validation)
    if recipe.folds:
        n = (len(recordings.train) + len(recordings.test)) * (1 - 1 / recipe.folds)
    return replace(recipe, train=replace(recipe.train, epochs=default_epochs(round(n), recordings.simulated)))


def _resumed(folder: Path, given: dict[str, Any]) -> Recipe:
    """The recipe that the run was started with; options may repeat it, not change it."""
    from spiking.cli.config import override, read_yaml
    from spiking.models.nmnist import Recipe

    path = folder / "config.yaml"
    started = override(Recipe(), read_yaml(path), str(path))
    wanted = override(started, given, "spiking train nmnist")
    for section, name in (
        (s, n) for s, values in given.items() for n in (values if isinstance(values, dict) else [""])
    ):
        old, new = (getattr(r, section) for r in (started, wanted))
        if name:
            old, new = getattr(old, name), getattr(new, name)
        if old != new:
            raise SpikingError(
                f"--resume: got {name or section}={new!r}; the run in {folder} was started with {old!r}. "
                "Leave the option out, or start another run."
            )
    return started


def _folder(out: Path | None, resume: bool) -> Path:
    runs = sorted(
        (p for p in Path("runs").glob("nmnist-*") if p.name[7:].isdigit() and p.is_dir()), key=lambda p: int(p.name[7:])
    )
    if out is None and resume:
        if not runs:
            raise SpikingError("--resume: got no --out, and there is no run in runs/; expected a run that was stopped.")
        return runs[-1]
    if out is None:
        return Path("runs") / f"nmnist-{int(runs[-1].name[7:]) + 1 if runs else 1}"
    if resume and not (out / "config.yaml").is_file():
        raise SpikingError(f"{out}: there is no run to resume here (no config.yaml). Leave --resume out to start one.")
    if not resume and out.exists() and not out.is_dir():
        raise SpikingError(f"{out}: is a file; expected a folder for the run. Name another with --out.")
    # A run that stopped before its first checkpoint left nothing to lose.
    if not resume and out.exists() and any(path.name != "config.yaml" for path in out.iterdir()):
        raise SpikingError(f"{out}: is not empty. Add --resume to go on with the run in it, or name another folder.")
    return out


def _start(folder: Path, recipe: Recipe) -> None:
    from spiking.checkpoint import write_atomically
    from spiking.cli.config import to_yaml

    write_atomically(folder / "config.yaml", to_yaml(recipe).encode())


def _answer(metrics: dict[str, Any]) -> list[str]:
    from spiking.models.nmnist.run import Proportion

    mark = "SIMULATED " if metrics["simulated"] else ""
    energy = metrics["energy"]
    lines = [metrics["recordings"]] if metrics["simulated"] else []
    return [
        *lines,
        f"{mark}accuracy {Proportion(**metrics['accuracy'])}; "
        f"linear baseline on the same time bins {100 * metrics['linear_baseline']['value']:.1f} %",
        f"{mark}{energy['summary']} on {energy['hardware']}",
        f"report: {energy['report']}",
    ]


def _folds_answer(metrics: dict[str, Any], folder: Path) -> list[str]:
    from spiking.models.nmnist.run import Proportion

    mark = "SIMULATED " if metrics["simulated"] else ""
    names = {
        "spiking": "spiking network",
        "logistic_regression": "logistic regression, three time bins",
        "svm": "SVM with radial kernel, three time bins",
    }
    folds = "  ".join(f"{100 * fold['spiking']:.1f}" for fold in metrics["per_fold"])
    return [
        f"{metrics['folds']}-fold cross-validation of {metrics['n']} recordings, seed {metrics['seed']}, "
        f"{metrics['epochs']} epochs fixed beforehand; spiking network by fold: {folds} %",
        *(f"{mark}{text}: {Proportion(**metrics['pooled'][name])}" for name, text in names.items()),
        f"folds and predictions: {folder / 'predictions.npz'}",
    ]
