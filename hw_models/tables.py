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

    The ratio's interval in brackets holds 90 % of the draws of the constants; `leakage` is its share of the energy.
    """
    from rich.table import Table

    out = Table(title="Energy per sample", title_justify="left")
    for name, side in (
        ("hardware", "left"),
        ("accounting", "left"),
        ("SNN", "right"),
        ("low – high", "right"),
        ("fair ANN", "right"),
        ("SNN / fair ANN", "right"),
        ("[5 %, 95 %]", "right"),
        ("break-even", "right"),
        ("latency", "right"),
        ("leakage", "right"),
    ):
        out.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for e in estimates:
        fair = e.fair
        leakage = e.by_source["leakage"] / e.energy.nominal if e.energy.nominal else 0.0
        out.add_row(
            e.hardware.name,
            e.accounting,
            si(e.energy.nominal, "J"),
            span(e.energy, "J"),
            "" if fair is None else f"{si(fair.energy.nominal, 'J')} ({fair.name})",
            "" if fair is None else figure(fair.ratio.nominal),
            "" if fair is None else span(fair.ratio_drawn),
            "" if fair is None else _rate(fair.break_even),
            "not known" if e.latency is None else si(e.latency.nominal, "s"),
            f"{leakage:.0%}" if e.by_source["leakage"] else "not known",
        )
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
    """low – high, or "not known" for an interval without width."""
    if not interval.known:
        return "not known"
    low, high = (si(v, unit) if unit else figure(v) for v in (interval.low, interval.high))
    return f"{low} – {high}"


def _rate(interval: Interval | None) -> str:
    if interval is None:
        return "not known"
    return f"{interval.nominal:.1%}" if interval.nominal > 0 else "never"


def printable(text: str) -> str:
    """Text without control characters, which a terminal would obey."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "�", text)
