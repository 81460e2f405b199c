"""`spiking energy`: price recorded traces on hardware, print the tables, write the report, re-run the validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spiking.errors import SpikingError

if TYPE_CHECKING:
    from rich.console import Console

    from spiking.hw_models import Estimate
    from spiking.trace import EventTrace


app = typer.Typer(add_completion=False)


@app.command()
def energy(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="A.h5 [B.h5]", help="One trace or run folder, or two to compare.", show_default=False),
    ] = None,
    hardware: Annotated[
        list[str] | None,
        typer.Option("--hardware", metavar="NAME|FILE|all", help="Chip name or .toml file; may be repeated."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, int32 or int8; the chip's own if not given.")
    ] = None,
    accounting: Annotated[
        str | None, typer.Option(help="published, operations or with-memory; the chip's own if not given.")
    ] = None,
    accuracy: Annotated[float | None, typer.Option(help="Accuracy at this precision, 0…1, for the report.")] = None,
    chips: Annotated[int, typer.Option(help="Chips in a row that a network on a mesh may use.")] = 1,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as one HTML page (and as JSON).")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option("--figures", metavar="DIR", help="Write the figures as PNG and SVG into a folder.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report's content as JSON instead of a table.")
    ] = False,
    listing: Annotated[bool, typer.Option("--list", help="List the chips that come with the package.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Recompute the validation table and print it.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap and of the draws of the constants.")] = 0,
) -> None:
    """Energy of a recorded run, beside conventional networks, with intervals and warnings."""
    if listing:
        _list(as_json)
        return
    if verify:
        _verify(as_json)
        return
    from spiking.hw_models import available, report, save_figures
    from spiking.hw_models.document import document
    from spiking.trace import EventTrace

    if not files or len(files) > 2:
        raise SpikingError(f"spiking energy: got {len(files or [])} trace files; expected one, or two to compare.")
    files = [_trace_file(file) for file in files]
    traces = [EventTrace.load(file) for file in files]
    names = available() if hardware == ["all"] else hardware or ["digital-45nm"]
    options = {
        "precision": precision,
        "accounting": accounting,
        "accuracy": accuracy,
        "chips": chips,
        "seed": seed,
    }
    estimates, refused = _estimates(traces, names, options, [_accuracy_beside(file) for file in files])
    if html is not None:
        labels = [str(files[traces.index(e.trace)]) for e in estimates] if len(files) == 2 else ()
        report(estimates, html, labels=labels)
    if pictures is not None:
        save_figures(estimates[:: len(files)], pictures)
    if as_json:
        content = document(estimates)
        for entry, e in zip(content["estimates"], estimates):
            entry["file"] = str(next(file for file, trace in zip(files, traces) if trace is e.trace))
        if len(files) == 2:
            content["comparison"] = _comparisons(estimates)
        if refused:
            content["refused"] = refused
        typer.echo(json.dumps(content, ensure_ascii=False, allow_nan=False))
        return
    _print(estimates, refused, [str(f) for f in files])
    for what, path in (("report", html), ("figures", pictures)):
        if path is not None:
            typer.echo(f"{what}: {path}")


def _accuracy_beside(file: Path) -> float | None:
    """The accuracy that a run's metrics.json states, in the folder of its trace; it was measured in the precision of training."""
    try:
        metrics = json.loads((file.parent / "metrics.json").read_text(encoding="utf-8"))
        accuracy = metrics["accuracy"]
        value = float(accuracy["value"] if isinstance(accuracy, dict) else accuracy)
    except (OSError, ValueError, KeyError, TypeError):  # a trace need not lie in the folder of a run
        return None
    return value if 0 <= value <= 1 else None


def _with_accuracy(found: Estimate, accuracy: float | None) -> Estimate:
    """An estimate that states the accuracy, if that is known at the precision which it prices."""
    from spiking.hw_models.energy import reprice

    same = found.precision == "fp32" and found.trace.dtype == "float32" and not found.trace.precision
    return (
        reprice(found, found.accounting, accuracy)
        if same and accuracy is not None and found.accuracy is None
        else found
    )


def _estimates(
    traces: list[EventTrace], names: list[str], options: dict[str, Any], accuracies: list[float | None]
) -> tuple[list[Estimate], dict[str, str]]:
    """Estimates of all traces on each piece of hardware; of several, one that cannot hold the network is left out."""
    from spiking.hw_models import estimate, load

    found, refused = [], {}
    for name in names:
        chip = load(name)
        try:
            found += [
                _with_accuracy(estimate(trace, chip, **options), known) for trace, known in zip(traces, accuracies)
            ]
        except SpikingError as err:
            if len(names) == 1:
                raise
            refused[chip.name] = str(err)
    if not found:
        raise SpikingError(next(iter(refused.values())))
    return found, refused


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
        rows = [
            {"name": c.name, "title": c.title, "kind": c.kind, "node_nm": c.node_nm, "constants": len(c.constants)}
            for c in chips
        ]
        typer.echo(json.dumps(rows))
        return
    for chip in chips:
        typer.echo(f"{chip.name:<16} {chip.kind:<9} {chip.title} ({len(chip.constants)} constants)")


def _verify(as_json: bool) -> None:
    from rich.console import Console

    from spiking.hw_models import verify
    from spiking.hw_models.tables import verification

    checks = verify()
    if as_json:
        typer.echo(json.dumps([c._asdict() | {"error": c.error, "passed": c.passed} for c in checks]))
    else:
        Console(soft_wrap=True).print(verification(checks))
    wrong = [c.name for c in checks if not c.passed]
    if wrong:
        raise SpikingError(
            f"spiking energy --verify: {len(wrong)} figures lie outside of their tolerance: {wrong[0]}, …"
        )


def _print(estimates: list[Estimate], refused: dict[str, str], files: list[str]) -> None:
    from rich.console import Console
    from rich.text import Text

    from spiking.hw_models import comparison, figure
    from spiking.hw_models.tables import printable

    console = Console(soft_wrap=True)
    several = len(estimates) > len(files)
    for i, file in enumerate(files):
        if len(files) == 2:
            console.print(Text(printable(file), style="bold"))
        mine = estimates[i :: len(files)]
        if several:
            console.print(comparison(mine))
            _warnings(mine, console)
        else:
            _one(mine[0], console)
    for name, reason in refused.items():
        console.print(Text(printable(f"{name} is left out: {reason}"), style="yellow"))
    if len(files) == 2:
        for row in _comparisons(estimates):
            r = row["ratio"]
            text = f"{files[0]} / {files[1]} on {row['hardware']}: {figure(r['nominal'])} "
            console.print(Text(printable(f"{text}[{figure(r['low'])}, {figure(r['high'])}]"), style="bold"))


def _one(found: Estimate, console: Console) -> None:
    """One piece of hardware: layers, the three accountings, warnings, the answer."""
    from rich.text import Text

    from spiking.hw_models import comparison, table

    console.print(table(found))
    console.print(comparison(list(found.accountings().values())))
    _warnings([found], console)
    console.print(Text(found.summary(), style="bold"))


def _warnings(estimates: list[Estimate], console: Console) -> None:
    """Each warning once, however many pieces of hardware it concerns."""
    from rich.text import Text

    from spiking.hw_models.tables import printable

    for code, text in sorted(dict.fromkeys(w for e in estimates for w in e.warnings), key=lambda w: w.code):
        console.print(Text(printable(f"{code}  {text}"), style="yellow"))
