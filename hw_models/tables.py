"""Estimates as tables for the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spiking.hw_models.energy import Estimate
from spiking.hw_models.units import figure, si

if TYPE_CHECKING:
    from rich.table import Table
    from spiking.hw_models.intervals import Interval
    from spiking.hw_models.validation import Check


def table(found: Estimate) -> Table:
    """The per-layer table of an estimate, for `rich.print`."""
    from rich.table import Table
    from rich.text import Text

    accounting = found.accounting
    title = f"{found.hardware.title} · {found.precision} · {accounting} · per sample"
    out = Table(title=title, title_justify="left", show_footer=True, footer_style="bold")
    columns = (
        ("layer", "left", "total"),
        ("operand", "left", ""),
        ("synops", "right", si(sum(r.syn for r in found.per_layer), "")),
        ("MACs", "right", si(sum(r.mac for r in found.per_layer), "")),
        ("spikes", "right", si(sum(r.spikes for r in found.per_layer), "")),
        ("rate", "right", ""),
        ("SNN", "right", si(found.energy.nominal, "J")),
        ("ANN", "right", si(found.ann.nominal, "J")),
    )
    for name, side, footer in columns:
        out.add_column(name, justify=side, footer=footer, no_wrap=name != "layer", overflow="fold")  # type: ignore[arg-type]
    for row in found.per_layer:
        neuron = row.kind == "neuron"
        out.add_row(
            Text(printable(row.name)),
            row.operand_class,
            "" if neuron else si(row.syn, ""),
            "" if neuron else si(row.mac, ""),
            si(row.spikes, "") if neuron else "",
            f"{row.firing_rate:.3f}" if neuron else "",
            si(row.energy.nominal, "J"),
            si(row.ann.nominal, "J"),
        )
    return out


def comparison(estimates: Sequence[Estimate]) -> Table:
    """One row per estimate, for `rich.print`: energy and its bounds, the fair twin, the ratio with its interval, latency.

    "5 – 95 %" holds 90 % of the draws of the constants, of which the nominal ones may be an extreme; "break-even" is in
    spikes per synapse and step. A dash: not known.
    """
    from rich import box
    from rich.table import Table

    out = Table(title="Energy per sample", title_justify="left", box=box.SIMPLE)
    first = [
        name
        for name, values in (
            ("hardware", {e.hardware.name for e in estimates}),
            ("accounting", {e.accounting for e in estimates}),
        )
        if len(values) > 1 or len(estimates) == 1
    ]
    for name in first:
        out.add_column(name, no_wrap=True)
    for name in ("SNN", "low – high", "fair ANN", "SNN / ANN", "5 – 95 %", "break-even", "latency"):
        out.add_column(name, justify="right")
    for e in estimates:
        fair = e.fair
        cells = (
            si(e.energy.nominal, "J"),
            span(e.energy, "J"),
            "" if fair is None else f"{si(fair.energy.nominal, 'J')} {fair.name}",
            "" if fair is None else figure(fair.ratio.nominal),
            "" if fair is None else span(fair.ratio_drawn),
            "" if fair is None else _rate(fair.break_even),
            "–" if e.latency is None else si(e.latency.nominal, "s"),
        )
        heads = {"hardware": e.hardware.name, "accounting": e.accounting}
        out.add_row(*(heads[name] for name in first), *(cell.replace(" ", "\u00a0") for cell in cells))
    return out


def verification(checks: Sequence[Check]) -> Table:
    """The validation table, for `rich.print`."""
    from rich.table import Table

    failed = sum(not c.passed for c in checks)
    out = Table(title=f"{len(checks)} figures recomputed, {failed} outside of their tolerance", title_justify="left")
    for name, side in (("figure", "left"), ("expected", "right"), ("found", "right"), ("error", "right"), ("", "left")):
        out.add_column(name, justify=side)  # type: ignore[arg-type]
    for c in checks:
        out.add_row(c.name, f"{c.expected:.6g}", f"{c.found:.6g}", f"{c.error:.1e}", "ok" if c.passed else "OUTSIDE")
    return out


def span(interval: Interval, unit: str = "") -> str:
    """low – high in one unit, or a dash for an interval without width."""
    if not interval.known:
        return "–"
    low, high = (si(v, unit) if unit else figure(v) for v in (interval.low, interval.high))
    if unit and low.split()[-1] == high.split()[-1]:
        low = low.split()[0]
    return f"{low} – {high}"


def _rate(interval: Interval | None) -> str:
    """Spikes per synapse and step."""
    if interval is None:
        return "–"
    if interval.nominal <= 0:
        return "never"
    return f"{interval.nominal:.1%}" if interval.nominal < 1 else "always"


def printable(text: str) -> str:
    """Text without control characters, which a terminal would obey."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "�", text)
