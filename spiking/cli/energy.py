"""`spiking energy`: price recorded traces on hardware, print the table, write the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spiking.errors import SpikingError

if TYPE_CHECKING:
    from spiking.hw_models import Estimate


app = typer.Typer(add_completion=False)


@app.command()
def energy(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="A.h5 [B.h5]", help="One trace or run folder, or two to compare.", show_default=False),
    ] = None,
    hardware: Annotated[
        list[str] | None,
        typer.Option("--hardware", metavar="NAME|FILE", help="Chip name or .toml file; may be repeated."),
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, int32 or int8.")] = "fp32",
    accounting: Annotated[str, typer.Option(help="published, operations or with-memory.")] = "operations",
    accuracy: Annotated[float | None, typer.Option(help="Accuracy at this precision, 0…1, for the report.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as one HTML page (and as JSON).")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report's content as JSON instead of a table.")
    ] = False,
    chips: Annotated[bool, typer.Option("--list", help="List the chips that come with the package.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap over the samples.")] = 0,
) -> None:
    """Energy of a recorded run, beside the equal ANN, with intervals and warnings."""
    if chips:
        _list(as_json)
        return
    from spiking.hw_models import estimate, report
    from spiking.hw_models.report import document
    from spiking.trace import EventTrace

    if not files or len(files) > 2:
        raise SpikingError(f"spiking energy: got {len(files or [])} trace files; expected one, or two to compare.")
    files = [_trace_file(file) for file in files]
    traces = [EventTrace.load(file) for file in files]
    estimates = [
        estimate(trace, chip, precision=precision, accounting=accounting, accuracy=accuracy, seed=seed)
        for chip in hardware or ["digital-45nm"]
        for trace in traces
    ]
    if html is not None:
        report(estimates, html)
    if as_json:
        content = document(estimates)
        for entry, e in zip(content["estimates"], estimates):
            entry["file"] = str(files[traces.index(e.trace)])
        if len(files) == 2:
            content["comparison"] = _comparisons(estimates)
        typer.echo(json.dumps(content, ensure_ascii=False, allow_nan=False))
        return
    _print(estimates, [str(f) for f in files], html)


def _trace_file(path: Path) -> Path:
    """The trace itself, where a run's folder was named."""
    if not path.is_dir():
        return path
    if not (path / "trace.h5").is_file():
        raise SpikingError(
            f"{path}: got a folder without trace.h5; expected a trace, or the folder of a run that has ended."
        )
    return path / "trace.h5"


def _comparisons(estimates: list[Estimate]) -> list[dict[str, Any]]:
    from spiking.hw_models import ratio

    pairs = zip(estimates[::2], estimates[1::2])
    return [
        {"hardware": a.hardware.name, "ratio": dict(zip(("low", "nominal", "high"), ratio(a, b)))} for a, b in pairs
    ]


def _list(as_json: bool) -> None:
    from spiking.hw_models import available, load

    chips = [load(name) for name in available()]
    if as_json:
        rows = [{"name": c.name, "title": c.title, "node_nm": c.node_nm, "constants": len(c.constants)} for c in chips]
        typer.echo(json.dumps(rows))
        return
    for chip in chips:
        typer.echo(f"{chip.name:<16} {chip.title} ({len(chip.constants)} constants)")


def _print(estimates: list[Estimate], files: list[str], html: Path | None) -> None:
    from rich.console import Console
    from rich.text import Text

    from spiking.hw_models import table
    from spiking.hw_models.energy import figure
    from spiking.hw_models.report import printable

    console = Console(soft_wrap=True)
    for i, found in enumerate(estimates):
        if len(files) == 2:
            console.print(Text(files[i % 2], style="bold"))
        console.print(table(found))
        for warning in found.warnings:
            console.print(Text(printable(f"{warning.code}  {warning.text}"), style="yellow"))
        console.print(Text(found.summary(), style="bold"))
    if len(files) == 2:
        for row in _comparisons(estimates):
            r = row["ratio"]
            console.print(
                Text(
                    f"{files[0]} / {files[1]} on {row['hardware']}: {figure(r['nominal'])} "
                    f"[{figure(r['low'])}, {figure(r['high'])}]",
                    style="bold",
                )
            )
    if html is not None:
        console.print(Text(f"report: {html}"))
