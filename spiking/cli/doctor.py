"""`spiking doctor`: what runs on this machine, and in one sentence why not what does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

app = typer.Typer()


@app.command()
def doctor(
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="First measure when event-driven kernels win here (about a minute); kept."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Show which backends run here and why not the others, threads, instruction sets, and the cost of memory."""
    from spiking.cuda_kernels import backend

    if calibrate:
        from spiking.cuda_kernels.calibrate import calibrate as measure

        measure(progress=lambda what: typer.echo(f"measuring {what} …", err=True))
    facts = backend.report()
    if as_json:
        typer.echo(json.dumps(facts, indent=2, default=str))
        return
    from rich.console import Console
    from rich.table import Table

    from spiking import __version__

    table = Table(title=f"spiking {__version__}", title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, value in _rows(facts):
        table.add_row(name, value)
    Console().print(table)


def _rows(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        title = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, dict) and value:
            yield from _rows(value, f"{title}: ")
        elif isinstance(value, (list, tuple)):
            yield title, ", ".join(str(item) for item in value)
        elif isinstance(value, float):
            yield title, f"{value:.4g}"
        else:
            yield title, str(value)
