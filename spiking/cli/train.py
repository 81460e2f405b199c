"""`spiking train`: from recordings to a trained network and its energy report."""

from __future__ import annotations

import json
from collections.abc import Callable
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
    from spiking.cli.config import named_as_written, read_yaml
    from spiking.models.nmnist import Recipe, run
    from spiking.training import Interrupted

    given = _nested(
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
    folder = _folder(out, resume)
    file = folder / "config.yaml" if resume else config
    settings = {} if file is None else read_yaml(file)
    try:
        with named_as_written(Recipe, _writer(file, settings, given)):
            recipe = _recipe(file, settings, given)
            if resume:
                _check_resumed(folder, recipe, settings, given)
            recipe.train.check_machine()
            recordings = run.open_recordings(recipe)
            if not resume:
                recipe = _with_epochs(recipe, recordings, settings, given)
            _keep(folder, recipe)
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


def _nested(options: dict[str, Any]) -> dict[str, Any]:
    """Options that were given, as nested settings."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if value is not None:
            section, _, key = name.rpartition(".")
            (found.setdefault(section, {}) if section else found)[key] = value
    return found


def _option(path: str) -> str:
    """The option of a setting: "train.batch_size" is --batch-size."""
    return "--model" if path == "model.kind" else "--" + path.rpartition(".")[2].replace("_", "-")


def _holds(settings: dict[str, Any], path: str) -> bool:
    section, _, key = path.rpartition(".")
    part = settings.get(section) if section else settings
    return isinstance(part, dict) and key in part


def _writer(file: Path | None, settings: dict[str, Any], given: dict[str, Any]) -> Callable[[str], str]:
    """How the user wrote a setting: as an option, else as a key of the file, else not at all ("")."""

    def name_of(path: str) -> str:
        if _holds(given, path):
            return _option(path)
        return f"{file}: {path.replace('.', ': ')}" if _holds(settings, path) else ""

    return name_of


def _recipe(file: Path | None, settings: dict[str, Any], given: dict[str, Any]) -> Recipe:
    """Defaults, then the file, then the line. A setting that the line replaces is not looked at in the file."""
    from spiking.cli.config import override
    from spiking.models.nmnist import Recipe

    return override(Recipe(), _merged(settings, given), str(file or "spiking train nmnist"))


def _merged(settings: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for name, value in given.items():
        below = merged.get(name, {})
        if not isinstance(value, dict):
            merged[name] = value
        elif isinstance(below, dict):  # another kind of value is left for `override` to refuse
            merged[name] = {**below, **value}
    return merged


def _with_epochs(recipe: Recipe, recordings: Any, settings: dict[str, Any], given: dict[str, Any]) -> Recipe:
    """The recipe with as many epochs as the number of training recordings calls for, unless file or line say how many."""
    from dataclasses import replace

    from spiking.models.nmnist.run import default_epochs

    if any(_holds(source, "train.epochs") for source in (settings, given)):
        return recipe
    n = len(recordings.train) * (1 - recipe.validation)
    if recipe.folds:
        n = (len(recordings.train) + len(recordings.test)) * (1 - 1 / recipe.folds)
    return replace(recipe, train=replace(recipe.train, epochs=default_epochs(round(n), recordings.simulated)))


def _check_resumed(folder: Path, recipe: Recipe, settings: dict[str, Any], given: dict[str, Any]) -> None:
    """Options may repeat what the run was started with, and raise the number of epochs; nothing else."""
    from dataclasses import asdict

    started, wanted = asdict(_recipe(folder / "config.yaml", settings, {})), asdict(recipe)
    for section, value in given.items():
        for name in value if isinstance(value, dict) else [""]:
            old, new = (r[section][name] if name else r[section] for r in (started, wanted))
            path = f"{section}.{name}" if name else section
            if old == new or (path == "train.epochs" and new > old and not recipe.folds):
                continue
            advice = "Leave the option out, or start another run."
            if path == "train.epochs":
                advice = (
                    "Folds are compared at a number of epochs fixed beforehand: start another run."
                    if recipe.folds
                    else "A run can be made longer, not shorter."
                )
            raise SpikingError(f"{_option(path)}: got {new!r}; the run in {folder} was started with {old!r}. {advice}")


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


def _keep(folder: Path, recipe: Recipe) -> None:
    """Write the settings of the run, so that it can be resumed with them."""
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
