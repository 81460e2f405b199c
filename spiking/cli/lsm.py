"""`spiking lsm`: liquid state machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from spiking.errors import SpikingError

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def lsm() -> None:
    """Fixed random reservoirs of spiking neurons, and linear readouts (liquid state machines)."""


RUN_HELP = """Measure a reservoir on recordings, beside the controls that it has to beat.

--task images takes N-MNIST (a folder or archive; SIMULATED recordings without --data), cross-validated over five folds; --task sound \
takes spoken digits as wav files (a folder or zip file of <digit>_<speaker>_<take>.wav, heard through a simulated cochlea; the speaker \
yweweler is the test set), n-tidigits.hdf5 or SHD's files; SIMULATED digits without --data. Nothing is downloaded.

Examples:

  spiking lsm run                                          (simulated, a minute)

  spiking lsm run --data ~/nmnist --preset tuned           (2,000 neurons with local receptive fields)

  spiking lsm run --task sound --data ~/fsdd --seeds 10

  spiking lsm run --data ~/nmnist --cell rram-40nm         (both products through arrays of memory cells)

  spiking lsm run --zero-shot --data ~/nmnist --sound ~/fsdd

--zero-shot trains a projection of each sense so that images and spoken digits of one class meet, and asks for classes that neither saw: \
every pair of digits in turn, ten seeds, the last epoch, beside controls. Presets: published (15 minutes), soft, label-aware (3 minutes).

Into the run's folder go config.yaml and metrics.json; with --zero-shot also confusion.png and embedding.png.
"""


@app.command(help=RUN_HELP)
def run(
    task: Annotated[str | None, typer.Option(help="images or sound.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder or file with the recordings.")] = None,
    zero_shot: Annotated[bool, typer.Option("--zero-shot", help="Images and sound of classes never seen.")] = False,
    sound: Annotated[Path | None, typer.Option(help="The spoken digits; only with --zero-shot.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="published or tuned: numbers of the reservoir. How projections are trained with --zero-shot."
        ),
    ] = None,
    neurons: Annotated[int | None, typer.Option(help="Neurons, in place of the preset's.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where weights are from: gaussian, or a memory cell that is formed (rram-40nm).")
    ] = None,
    cell: Annotated[
        str | None, typer.Option(help="A memory cell whose arrays hold the weights; none without it.")
    ] = None,
    readout: Annotated[str | None, typer.Option(help="ridge, logistic or linear.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Reservoirs to average over.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use so many recordings of images only.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run; runs/lsm-1, -2, … without it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    from spiking.cli import runs
    from spiking.cli.config import named_as_written
    from spiking.models.lsm import pairing
    from spiking.models.lsm.run import Recipe, shown
    from spiking.models.lsm.run import run as run_recipe

    unfitting = {"task": task, "readout": readout} if zero_shot else {"sound": sound}
    for name, value in unfitting.items():
        if value is not None:
            said = "none of it with" if zero_shot else "it only with"
            raise SpikingError(f"--{name}: got {str(value)!r}; expected {said} --zero-shot. Leave it out.")
    given = runs.nested(
        {
            "task": task,
            "data": None if data is None else str(data),
            "sound": None if sound is None else str(sound),
            "preset": preset,
            "neurons": neurons,
            "device": device,
            "cell": cell,
            "readout": readout,
            "seeds": seeds,
            "limit": limit,
        }
    )
    folder = runs.folder("lsm", out, False)
    if zero_shot:
        with named_as_written(pairing.ZeroShotRecipe, lambda path: f"--{path}"):
            chosen = runs.recipe(pairing.ZeroShotRecipe(), None, {}, given, "spiking lsm run")
            metrics = pairing.run(chosen, lambda text: typer.echo(text, err=True), folder)
        _keep(folder, chosen, metrics)
        typer.echo(json.dumps(metrics, indent=2) if as_json else "\n".join(_zero_shot_lines(metrics, folder)))
        return
    with named_as_written(Recipe, lambda path: f"--{path}"):
        recipe = runs.recipe(Recipe(), None, {}, given, "spiking lsm run")
        metrics = run_recipe(recipe, lambda text: typer.echo(text, err=True))
    _keep(folder, recipe, metrics)
    if as_json:
        typer.echo(json.dumps(metrics, indent=2))
        return
    mark = "SIMULATED " if metrics["simulated"] else ""
    lines = [metrics["recordings"], *(f"{mark}{name}: {shown(row)}" for name, row in metrics["rows"].items())]
    if metrics["loses_to"]:
        lines.append(f"the reservoir LOSES to: {'; '.join(metrics['loses_to'])}")
    lines += [
        f"{metrics['firing_rate']:.3f} spikes per neuron and step; {metrics['synops']:,.0f} synaptic operations a recording "
        f"(a dense network: {metrics['dense_macs']:,})",
        f"figures: {folder / 'metrics.json'}",
    ]
    typer.echo("\n".join(lines))


def _keep(folder: Path, recipe: Any, metrics: dict[str, Any]) -> None:
    from spiking.checkpoint import write_atomically
    from spiking.cli import runs

    runs.keep(folder, recipe)
    write_atomically(folder / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())


def _zero_shot_lines(metrics: dict[str, Any], folder: Path) -> list[str]:
    from spiking.models.lsm.pairing import shown

    mark = "SIMULATED " if metrics["simulated"] else ""
    lines = list(metrics["recordings"])
    for name, ways in metrics["rows"].items():
        for way, row in ways.items():
            lines.append(f"{mark}{name}, {way}: unseen {shown(row['unseen'])}; seen {100 * row['seen']['mean']:.1f} %")
    for way, skilled in metrics["shows_skill"].items():
        word = "lies above" if skilled else "does NOT lie above"
        lines.append(f"{way}: the interval of unseen classes {word} chance (50 %)")
    return [*lines, f"figures: {folder / 'metrics.json'}, confusion.png, embedding.png"]
