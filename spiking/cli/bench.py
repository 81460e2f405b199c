"""`spiking bench`: the benchmarks, peers side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(rich_markup_mode="rich")


@app.command()
def bench(
    cases: Annotated[list[str] | None, typer.Argument(help="Which cases; all where none is named.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: does everything run?")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    data: Annotated[
        Path | None, typer.Option(help="N-MNIST recordings (folder or archive); simulated ones where none is given.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    figure: Annotated[
        Path | None,
        typer.Option(help="Save the figures of the cases that have one (event_linear, event_conv) in this folder."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Say which cases there are.")] = False,
) -> None:
    """Time the hot paths, each against its peers in the same run.

    Peers are optional: [bold]pip install spiking\\[peers][/bold]. Examples:

      spiking bench lif                 LIF forward + backward against four libraries and torch.compile

      spiking bench epoch --data DIR    one training epoch of the default network, with its breakdown
    """
    from rich.console import Console

    from spiking.benchmarks import run as runner

    console = Console()
    if list_:
        for name, title in runner.list_cases().items():
            console.print(f"{name:10} {title}")
        return
    result = runner.run(cases or [], quick=quick, device=device, data=None if data is None else str(data))
    text = runner.as_json(result)
    if out is not None:
        out.write_text(text)
    figures = [] if figure is None else runner.draw(result["rows"], str(figure))
    if json:
        print(text)
        return
    console.print(runner.table(result["rows"]))
    facts = result["machine"]
    console.print(f"[dim]{facts['processor']}, {facts['threads']} threads, torch {facts['torch']}[/dim]")
    for line in result["summary"]:
        console.print(line, soft_wrap=True)
    for path in figures:
        console.print(f"figure: {path}", soft_wrap=True)
