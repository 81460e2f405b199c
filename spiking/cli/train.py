"""`spiking train`: from recordings to a trained network and its energy report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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

  spiking train nmnist --resume --epochs 20         (go on for longer)

Ctrl-C saves the run and ends with exit code 130; --resume continues it to the same bits. With --resume, --epochs may be \
raised (not with --folds): from there on the learning rate follows the longer half cosine, so the result is not that of \
a run started with so many.

Into the run's folder go config.yaml, metrics.jsonl (one line an epoch), checkpoint.safetensors (the latest state), \
best-NNNN.safetensors (the best epoch's weights), metrics.json, model/ (config.json, model.safetensors and README.md, \
for from_pretrained), predictions.npz, confusion.png and .svg, firing_rates.png and .svg, trace.h5, report.html and \
report.json; with --folds instead config.yaml, folds.npz, fold-N/ (checkpoint.safetensors and metrics.jsonl), \
predictions.npz and metrics.json.
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
    drop_tail: Annotated[
        bool, typer.Option("--drop-tail", help="Forgive recordings that end inside an event.")
    ] = False,
    sort_events: Annotated[
        bool, typer.Option("--sort-events", help="Put the events of recordings that run backwards in order.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    from spiking.cli import runs
    from spiking.cli.config import named_as_written, read_yaml
    from spiking.models.nmnist import Recipe, run
    from spiking.training import Interrupted

    given = runs.nested(
        {
            "data": None if data is None else str(data),
            "folds": folds,
            "drop_tail": drop_tail or None,
            "sort_events": sort_events or None,
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
    folder = runs.folder("nmnist", out, resume)
    file = folder / "config.yaml" if resume else config
    settings = {} if file is None else read_yaml(file)
    try:
        with named_as_written(Recipe, runs.writer(file, settings, given)):
            recipe = runs.recipe(Recipe(), file, settings, given, "spiking train nmnist")
            if resume:
                started = runs.recipe(Recipe(), file, settings, {}, "spiking train nmnist")
                _check_resumed(folder, started, recipe, given)
            recipe.train.check_machine()
            recordings = run.open_recordings(recipe)
            if not resume:
                recipe = _with_epochs(recipe, recordings, settings, given)
            runs.keep(folder, recipe)
            typer.echo(f"{recordings.description}\nrun in {folder}", err=True)
            what = run.cross_validate if recipe.folds else run.train
            metrics = what(recipe, recordings, folder, resume)
    except Interrupted as err:
        typer.echo(f"stopped and saved; go on with: spiking train nmnist --out {folder} --resume", err=True)
        raise typer.Exit(128 + err.signum) from err
    if as_json:
        typer.echo(json.dumps(metrics, indent=2, default=float))
    else:
        typer.echo("\n".join(_folds_answer(metrics, folder) if recipe.folds else _answer(metrics)))


NTIDIGITS_HELP = """Train a recurrent spiking network with learned synaptic delays on spoken digits, heard by a cochlea.

Without --data it trains on SIMULATED digits that nobody spoke, which need no download. --data takes a folder with \
n-tidigits.hdf5, or with shd_train.h5 and shd_test.h5, or with spoken digits as wav files (<digit>_<speaker>_<take>.wav, a folder or a zip \
file; heard through a simulated cochlea; the speaker yweweler is the test set). Nothing is downloaded.

Examples:

  spiking train ntidigits                               (simulated, about two minutes)

  spiking train ntidigits --data ~/fsdd                 (speakers never heard in training)

  spiking train ntidigits --data ~/fsdd --max-delay 0   (without delays)

  spiking train ntidigits --data ~/fsdd --validation theo   (choose the epoch on a training speaker)

  spiking train ntidigits --resume                      (go on with the latest)

Ctrl-C saves the run and ends with exit code 130; --resume continues it to the same bits.

Into the run's folder go config.yaml, metrics.jsonl (one line an epoch), checkpoint.safetensors (the latest state), \
best-NNNN.safetensors (with --validation, the best epoch's weights), metrics.json, model/ (config.json, model.safetensors and README.md, \
for from_pretrained), predictions.npz, confusion.png and .svg, firing_rates.png and .svg, trace.h5, report.html and report.json.
"""


@app.command(
    help=NTIDIGITS_HELP, epilog="All settings, with their defaults: any run's config.yaml, which --config reads."
)
def ntidigits(
    data: Annotated[
        Path | None, typer.Option(help="Folder or file with sound or its events; simulated digits without it.")
    ] = None,
    max_delay: Annotated[int | None, typer.Option(help="Longest learned delay in steps; 0 for no delays.")] = None,
    recurrent: Annotated[
        bool | None, typer.Option("--recurrent/--no-recurrent", help="Whether hidden layers hear their own spikes.")
    ] = None,
    hidden: Annotated[int | None, typer.Option(help="Neurons of each hidden layer.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training recordings.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run; runs/ntidigits-1, -2, … without it.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or with the latest.")] = False,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with settings; options on this line go before it.")
    ] = None,
    cochlea: Annotated[str | None, typer.Option(help="What hears wav files: gammatone, cascade or hair-cell.")] = None,
    validation: Annotated[
        str | None, typer.Option(help="A training speaker to choose the epoch on; the last epoch without one.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Decides everything random.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Recordings a step.")] = None,
    steps: Annotated[int | None, typer.Option(help="Frames a recording.")] = None,
    lr: Annotated[float | None, typer.Option(help="Largest learning rate.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    from spiking.cli import runs
    from spiking.cli.config import named_as_written, read_yaml
    from spiking.models.ntidigits import Recipe, run
    from spiking.training import Interrupted

    given = runs.nested(
        {
            "data": None if data is None else str(data),
            "cochlea": cochlea,
            "validation": validation,
            "model.max_delay": max_delay,
            "model.recurrent": recurrent,
            "model.hidden": hidden,
            "train.epochs": epochs,
            "train.seed": seed,
            "train.batch_size": batch_size,
            "frames.steps": steps,
            "train.lr": lr,
            "train.device": device,
        }
    )
    folder = runs.folder("ntidigits", out, resume)
    file = folder / "config.yaml" if resume else config
    settings = {} if file is None else read_yaml(file)
    try:
        with named_as_written(Recipe, runs.writer(file, settings, given)):
            recipe = runs.recipe(Recipe(), file, settings, given, "spiking train ntidigits")
            if resume:
                started = runs.recipe(Recipe(), file, settings, {}, "spiking train ntidigits")
                runs.check_resumed(folder, started, recipe, given, "Start another run.")
            recipe.train.check_machine()
            recordings = run.open_recordings(recipe)
            for text in recordings.told:
                typer.echo(f"warning: {text}", err=True)
            run.split(recipe, recordings)
            runs.keep(folder, recipe)
            typer.echo(f"{recordings.description}\nrun in {folder}", err=True)
            metrics = run.train(recipe, recordings, folder, resume)
    except Interrupted as err:
        typer.echo(f"stopped and saved; go on with: spiking train ntidigits --out {folder} --resume", err=True)
        raise typer.Exit(128 + err.signum) from err
    typer.echo(
        json.dumps(metrics, indent=2, default=float)
        if as_json
        else "\n".join(_answer(metrics, "logistic regression on counts in five parts"))
    )


def _with_epochs(recipe: Recipe, recordings: Any, settings: dict[str, Any], given: dict[str, Any]) -> Recipe:
    """The recipe with as many epochs as the number of training recordings calls for, unless file or line say how many."""
    from dataclasses import replace

    from spiking.cli.runs import holds
    from spiking.models.nmnist.run import default_epochs

    if any(holds(source, "train.epochs") for source in (settings, given)):
        return recipe
    n = len(recordings.train) * (1 - recipe.validation)
    if recipe.folds:
        n = (len(recordings.train) + len(recordings.test)) * (1 - 1 / recipe.folds)
    return replace(recipe, train=replace(recipe.train, epochs=default_epochs(round(n), recordings.simulated)))


def _check_resumed(folder: Path, started: Recipe, recipe: Recipe, given: dict[str, Any]) -> None:
    """Options may repeat what the run was started with, and raise the number of epochs; nothing else."""
    from spiking.cli import runs

    advice = "A run can be made longer, not shorter."
    if recipe.folds:
        advice = "Folds are compared at a number of epochs fixed beforehand: start another run."
    runs.check_resumed(folder, started, recipe, given, epochs_advice=advice, longer=not recipe.folds)


def _answer(metrics: dict[str, Any], baseline: str = "linear baseline on the same time bins") -> list[str]:
    from spiking.split import Proportion

    mark = "SIMULATED " if metrics["simulated"] else ""
    energy = metrics["energy"]
    lines = [metrics["recordings"]] if metrics["simulated"] else []
    return [
        *lines,
        f"{mark}accuracy {Proportion(**metrics['accuracy'])}; "
        f"{baseline} {100 * metrics['linear_baseline']['value']:.1f} %",
        f"{mark}{energy['summary']} on {energy['hardware']}",
        f"report: {energy['report']}",
    ]


def _folds_answer(metrics: dict[str, Any], folder: Path) -> list[str]:
    from spiking.split import Proportion

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
