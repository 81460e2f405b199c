"""`spiking data`: what is in a file or a set of event recordings."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spiking.errors import SpikingError

if TYPE_CHECKING:
    from rich.table import Table

    from spiking.datasets import Events

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def data() -> None:
    """Event recordings: what is in them."""


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="A .bin or .bs2 file, or N-MNIST: a folder or a zip file.")],
    sensor: Annotated[str, typer.Option(help="Check coordinates against a sensor, such as 34x34.")] = "",
    drop_tail: Annotated[
        bool, typer.Option("--drop-tail", help="Forgive recordings that end inside an event.")
    ] = False,
    sort_events: Annotated[
        bool, typer.Option("--sort-events", help="Put the events of recordings that run backwards in order.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON.")] = False,
) -> None:
    """Show format, events, duration, rate and sensor of recordings, and how many there are of each class.

    Damaged recordings of a set are left out of its figures and named; the exit code is then 2.
    """
    repair = {"drop_tail": drop_tail, "sort": sort_events}
    several = path.is_dir() or path.suffix.lower() == ".zip"
    facts = set_facts(path, **repair) if several else file_facts(path, sensor, **repair)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _print(facts)
    broken = facts.get("broken", [])
    if broken:
        more = f" {len(broken) - 1} more cannot be read: all are listed above." if len(broken) > 1 else ""
        raise SpikingError(f"{broken[0]}{more}")


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    console.print(f"{facts['path']}: {facts['format']}", soft_wrap=True, markup=False)
    console.print(table(facts))
    said = [split["description"] for split in facts.get("splits", [])] + facts.get("not_found", [])
    broken = facts.get("broken", [])
    for line in [*said, *(broken if len(broken) > 1 else [])]:  # a single one is the error that the command ends with
        console.print(line, style="dim", soft_wrap=True, markup=False)


def file_facts(path: Path, sensor: str = "", *, drop_tail: bool = False, sort: bool = False) -> dict[str, Any]:
    """Figures of one recording. Errors: as `read_events`."""
    from spiking.datasets import read_events

    events = read_events(path, sensor_size=sensor_of(sensor), drop_tail=drop_tail, sort=sort)
    return {"path": str(path), "format": "N-MNIST events (5 bytes each)", **recording_facts(events)}


def recording_facts(events: Events) -> dict[str, Any]:
    """Figures of one recording's events."""
    width, height = events.sensor_size[:2] if events.sensor_size else events.extent
    return {
        "events": len(events),
        "first_us": int(events.t[0]),
        "last_us": int(events.t[-1]),
        "duration_ms": events.duration / 1000,
        "rate_hz": events.rate_hz,
        "sensor": f"{width}×{height}" + ("" if events.sensor_size else " (largest coordinates seen)"),
        "on_share": float(events.p.mean()),
    }


def set_facts(path: Path, *, drop_tail: bool = False, sort: bool = False) -> dict[str, Any]:
    """Figures of both splits of an N-MNIST folder or archive, of what can be read of them.

    `broken` has a line for each recording or split that is damaged, `not_found` one for a split that is not there.
    Errors: SpikingError where nothing can be read.
    """
    from spiking.datasets import NMNIST
    from spiking.datasets.nmnist import search

    splits: list[dict[str, Any]] = []
    broken: list[str] = []
    not_found: list[str] = []
    for train in (True, False):
        missing = False
        try:
            missing = search(path, "train" if train else "test") is None
            recordings = NMNIST(path, train=train, drop_tail=drop_tail, sort=sort, skip_broken=True)
        except SpikingError as err:
            (not_found if missing else broken).append(str(err))
            continue
        broken += recordings.broken
        if not len(recordings):
            continue
        events = recordings.events()
        starts, ends = events.offsets[:-1], events.offsets[1:]
        duration = (events.t[ends - 1] - events.t[starts]) / 1000
        splits.append(
            {
                "split": "train" if train else "test",
                "recordings": len(recordings),
                "events": len(events.t),
                "median_events": int(median((ends - starts).tolist())),
                "median_duration_ms": float(median(duration.tolist())),
                "rate_hz": float(len(events.t) / duration.sum() * 1000) if duration.sum() else 0.0,
                "sensor": "{}×{}".format(*recordings.sensor_size),
                "on_share": float(events.p.mean()),
                "per_class": recordings.counts,
                "simulated": recordings.simulated,
                "description": recordings.describe(),
            }
        )
    if not splits:
        raise SpikingError([*broken, *not_found][0])
    return {
        "path": str(path),
        "format": "N-MNIST recordings",
        "splits": splits,
        "broken": broken,
        "not_found": not_found,
    }


def sensor_of(text: str) -> tuple[int, int] | None:
    """(width, height) of "34x34"; None of nothing."""
    if not text:
        return None
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(p.strip().isdigit() for p in parts):
        raise SpikingError(f'--sensor: got "{text}"; expected WIDTHxHEIGHT such as 34x34.')
    return int(parts[0]), int(parts[1])


def table(facts: dict[str, Any]) -> Table:
    """The figures as a table: one column a recording or split."""
    from rich.table import Table

    splits = facts.get("splits")
    columns = splits or [facts]
    out = Table()
    out.add_column("")
    for column in columns:
        out.add_column(column["split"] if splits else "recording", justify="right")
    rows: list[tuple[str, str, Any]] = [
        ("recordings", "recordings", "{:,}".format),
        ("events", "events", "{:,}".format),
        ("median events", "median_events", "{:,}".format),
        ("first event", "first_us", "{:,} µs".format),
        ("last event", "last_us", "{:,} µs".format),
        ("duration", "duration_ms", "{:,.1f} ms".format),
        ("median duration", "median_duration_ms", "{:,.1f} ms".format),
        ("rate", "rate_hz", "{:,.0f} events/s".format),
        ("sensor", "sensor", str),
        ("ON share", "on_share", "{:.1%}".format),
    ]
    for title, key, show in rows:
        if key in columns[0]:
            out.add_row(title, *(show(column[key]) for column in columns))
    if splits:
        for label in range(len(columns[0]["per_class"])):
            out.add_row(f"class {label}", *(f"{column['per_class'][label]:,}" for column in columns))
    return out
