"""`spiking deploy`: a trained network on many chips of memory cells: accuracy over devices, time and temperature."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from spiking.errors import SpikingError

if TYPE_CHECKING:
    from torch import Tensor

    from spiking.hw_models import Cell, MonteCarlo
    from spiking.models.nmnist import EventBatches, NMNISTNet, Recipe

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
UNITS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "a": 31_557_600.0}

HELP = """Put a trained network on arrays of memory cells, many chips over, and test each of them.

RUN is the folder of a finished `spiking train nmnist`, or "pretrained" for the network that comes with the package. Every chip is \
tested as the network was trained and, with --calibrate, again after each output was corrected digitally through the same chip.

Examples:

  spiking deploy pretrained --preset pcm --trials 20 --time 0 --time 1d --time 30d

  spiking deploy runs/nmnist-1 --preset rram-wan --preset rram-40nm --kelvin 300 --kelvin 353.15

  spiking deploy runs/nmnist-1 --preset rram-40nm --adc-bits 6 --wire 0.35 --out runs/chips

Into --out go a folder for each preset with every chip's figures, by which the same command goes on where it was stopped, \
deploy.json, and accuracy.png and .svg with the 5 to 95 % band over the chips. `torchrun` shares the chips out.
"""


@app.command(help=HELP)
def deploy(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help='Folder of a run, or "pretrained".', show_default=False)
    ] = "",
    preset: Annotated[list[str] | None, typer.Option(help="Cell's name or .toml file; may be repeated.")] = None,
    trials: Annotated[int, typer.Option(help="Chips: sets of devices.")] = 20,
    time: Annotated[
        list[str] | None, typer.Option(help="Since writing: seconds, or 5min, 2h, 30d, 1a; may be repeated.")
    ] = None,
    kelvin: Annotated[list[float] | None, typer.Option(help="Temperature; may be repeated.")] = None,
    calibrate: Annotated[int, typer.Option(help="Training recordings to correct each chip by; 0: none.")] = 32,
    compensate: Annotated[str, typer.Option(help="Scaling against drift: none, array or column.")] = "none",
    adc_bits: Annotated[
        int | None, typer.Option(help="Converters at the outputs, ranges from the training recordings.")
    ] = None,
    wire: Annotated[float, typer.Option(help="Ohms of a piece of wire between two cells.")] = 0.0,
    data: Annotated[Path | None, typer.Option(help="Recordings, where they are not those of the run.")] = None,
    limit: Annotated[int | None, typer.Option(help="Test on so many recordings only.")] = None,
    seed: Annotated[int, typer.Option(help="Decides which chips.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for figures; a second call goes on in it.")] = None,
    presets: Annotated[bool, typer.Option("--list", help="List the presets.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    from spiking.cli.config import named_as_written
    from spiking.hw_models import ArrayConfig, available_cells, load_cell, monte_carlo
    from spiking.hw_models.devices import check_kelvin, check_time
    from spiking.hw_models.wires import Wires

    if presets:
        _list([load_cell(name) for name in available_cells()], as_json)
        return
    if not run or not preset:
        raise SpikingError("spiking deploy: got no RUN or no --preset; expected both. --list shows the presets.")
    cells = [load_cell(name) for name in preset]
    times = [_seconds(text) for text in time or ["0"]]
    for t in times:
        check_time("--time", t)
    for temperature in kelvin or []:
        check_kelvin("--kelvin", temperature)
    if trials < 1:
        raise SpikingError(f"--trials: got {trials}; expected at least one chip.")
    if not 0 <= wire < math.inf:
        raise SpikingError(f"--wire: got {wire} ohms; expected 0 or more.")
    with named_as_written(ArrayConfig, lambda path: "--adc-bits" if path == "adc_bits" else ""):
        config = ArrayConfig(
            adc_bits=adc_bits, adc_range="calibrated" if adc_bits is not None else "max", wires=Wires(wire, wire)
        )
    if calibrate < 0:
        raise SpikingError(f"--calibrate: got {calibrate}; expected a number of recordings, 0 for none.")
    if compensate not in ("none", "array", "column"):
        raise SpikingError(f"--compensate: got {compensate!r}; expected none, array or column.")
    if calibrate < 1 and adc_bits is not None:
        raise SpikingError(
            "--adc-bits: got it with --calibrate 0; expected recordings to choose the converters' ranges by."
        )
    model, recipe = _model(run)
    recordings = _open(recipe, data)
    batches, seen = _batches(recipe, recordings, limit, calibrate)
    studies = []
    for cell in cells:
        studies.append(
            monte_carlo(
                model,
                batches,
                cell,
                trials,
                times,
                kelvin or [300.0],
                config=config,
                calibration=seen,
                compensation=None if compensate == "none" else compensate,
                seed=seed,
                out=None if out is None else out / cell.name,
            )
        )
    if not _is_first_rank():
        return
    document = {"recordings": recordings.description, "simulated": recordings.simulated, "run": run,
                "config": repr(config), "studies": [_study(found) for found in studies]}  # fmt: skip
    if out is not None:
        _save(out, document, studies)
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False))
    else:
        _print(document, studies, out)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(-?[\d.]+(?:e[+-]?\d+)?)\s*(s|min|h|d|a)?", text.strip())
    try:
        if found is None:
            raise ValueError
        return float(found[1]) * UNITS[found[2] or ""]
    except ValueError as err:
        raise SpikingError(f"--time: got {text!r}; expected seconds, or a number with s, min, h, d or a.") from err


def _model(run: str) -> tuple[NMNISTNet, Recipe]:
    from spiking.cli.config import override, read_yaml
    from spiking.models.nmnist import NMNISTNet, Recipe

    if run == "pretrained":
        return NMNISTNet.pretrained(), Recipe()
    folder = Path(run)
    path = folder / "config.yaml"
    if not path.is_file() or not (folder / "model").is_dir():
        raise SpikingError(
            f"{run}: not a finished run (config.yaml and model/ are missing); expected a folder of spiking train."
        )
    return NMNISTNet.from_pretrained(folder / "model"), override(Recipe(), read_yaml(path), str(path))


def _open(recipe: Recipe, data: Path | None) -> Any:
    from spiking.models.nmnist.run import open_recordings

    return open_recordings(recipe if data is None else replace(recipe, data=str(data)))


def _batches(
    recipe: Recipe, recordings: Any, limit: int | None, n_seen: int
) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
    """Test recordings in batches, and frames of some training recordings to calibrate by."""
    from spiking.models.nmnist.run import batches

    test: EventBatches = batches(recipe, recordings.test)
    n = len(test) if limit is None else min(limit, len(test))
    if n < 1:
        raise SpikingError(f"--limit: got {limit}; expected at least one recording.")
    size = 10  # what a pass holds stays in the caches
    parts = [test.batch(np.arange(first, min(first + size, n)), None) for first in range(0, n, size)]
    if not n_seen:
        return parts, None
    training = batches(recipe, recordings.train)
    chosen = np.linspace(0, len(training) - 1, min(n_seen, len(training))).round().astype(int)
    return parts, training.batch(chosen, None)[0]


def _is_first_rank() -> bool:
    from torch import distributed

    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def _study(found: MonteCarlo) -> dict[str, Any]:
    return {"cell": found.cell, "clean": found.clean, "n": found.n, "trials": found.trials, "rows": list(found.rows())}


def _save(out: Path, document: dict[str, Any], studies: list[MonteCarlo]) -> None:
    from matplotlib.figure import Figure

    from spiking.checkpoint import write_atomically

    write_atomically(out / "deploy.json", (json.dumps(document, indent=1) + "\n").encode())
    figure = Figure(figsize=(4.2 * len(studies), 3.2), layout="constrained")
    axes = figure.subplots(1, len(studies), squeeze=False, sharey=True)[0]
    for ax, found in zip(axes, studies):
        found.plot(ax)
    for suffix in ("png", "svg"):
        figure.savefig(out / f"accuracy.{suffix}", dpi=150)


def _print(document: dict[str, Any], studies: list[MonteCarlo], out: Path | None) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    console.print(Text(document["recordings"]))
    for found in studies:
        console.print(found.table())
    if out is not None:
        console.print(Text(f"figures: {out / 'accuracy.png'}"))


def _list(cells: list[Cell], as_json: bool) -> None:
    if as_json:
        rows = [
            {"name": c.name, "title": c.title, "G_min": c.G_min, "G_max": c.G_max, "constants": len(c.constants)}
            for c in cells
        ]
        typer.echo(json.dumps(rows))
        return
    for cell in cells:
        low, high = cell.span
        typer.echo(f"{cell.name:<12} {low:>5.3g} to {high:<5.4g} uS  {cell.title} ({len(cell.constants)} constants)")


__all__ = ["app", "deploy"]
