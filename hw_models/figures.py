"""Figures of estimates for papers: matplotlib, saved as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spiking.hw_models import charts
from spiking.hw_models.document import document
from spiking.hw_models.energy import SOURCES, Estimate
from spiking.hw_models.mapping import Placement

from spiking.errors import SpikingError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {
    "compute": "#2b6cb0", "neurons": "#6b4fa0", "weights": "#c9541f", "accumulators": "#d99a2b", "membranes": "#3f8f6b",
    "communication": "#8a94a0", "converters": "#b83a6a", "host": "#7a8f2a", "leakage": "#4a4f57",
}  # fmt: skip
_TWINS = ("#2b6cb0", "#3f8f6b", "#6b4fa0")
_SNN, _INK = "#c9541f", "#1f2933"


def figures(estimates: Estimate | Sequence[Estimate]) -> dict[str, Figure]:
    """Matplotlib figures of estimates of one trace: `hardware`, `ratios`, and of the first `layers`, `tornado`, `break_even`.

    `placement` is there if the first estimate's hardware is a mesh, `rates` if the trace has spikes; a figure that would be
    empty is left out.
    Errors: SpikingError if there are no estimates.

    >>> import torch, spiking
    >>> from spiking import hw_models
    >>> model = torch.nn.Linear(6, 4, bias=False)
    >>> with spiking.record(model) as trace:
    ...     _ = model(torch.eye(6).reshape(1, 6, 6))
    >>> sorted(hw_models.figures(hw_models.estimate(trace, "digital-sram")))
    ['break_even', 'hardware', 'layers', 'ratios', 'tornado']
    """
    found = [estimates] if isinstance(estimates, Estimate) else list(estimates)
    if not found:
        raise SpikingError("figures: got no estimates; expected at least one. Call hw_models.estimate first.")
    content = document(found)
    first = content["estimates"][0]
    placed = found[0].facts.get("placement")
    made = {
        "hardware": _spans(charts.energy_rows(content["estimates"]), "energy per sample / J"),
        "ratios": _spans(charts.ratio_rows(first), "SNN / ANN energy", one=True) if first["twins"] else None,
        "layers": _layers(first),
        "tornado": _tornado(first),
        "break_even": _break_even(first),
        "rates": _rates(content["activity"]),
        "placement": placed.draw() if isinstance(placed, Placement) else None,
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def save_figures(estimates: Estimate | Sequence[Estimate], folder: str | PathLike[str]) -> list[Path]:
    """Write every figure of `figures` into a folder as PNG and as SVG; return the paths.

    Errors: SpikingError if the folder cannot be made or written.
    """
    paths = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, figure in figures(estimates).items():
            for suffix in ("png", "svg"):
                paths.append(Path(folder) / f"{name}.{suffix}")
                figure.savefig(paths[-1], dpi=150)
    except OSError as err:
        raise SpikingError(f"{folder}: the figures cannot be written: {err.strerror}.") from err
    return paths


def _axes(rows: int, width: float = 6.5) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 1.0 + 0.34 * max(rows, 2)), layout="constrained")
    ax = figure.add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def _names(ax: Any, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)  # a layer may be called "$\frac$"
    ax.invert_yaxis()


def _legend(ax: Any, **options: Any) -> None:
    for text in ax.legend(fontsize=8, frameon=False, **options).get_texts():
        text.set_parse_math(False)


def _spans(rows: Sequence[dict[str, Any]], label: str, one: bool = False) -> Figure | None:
    """Bounds over the constants, 90 % of the draws, and the nominal value, on a logarithmic axis."""
    if not any(row["value"]["nominal"] for row in rows):
        return None
    figure, ax = _axes(len(rows))
    for i, row in enumerate(rows):
        for key, width, alpha in (("bounds", 7, 0.25), ("drawn", 7, 0.45)):
            low, high = row[key]["low"], row[key]["high"]
            if low and high:
                ax.plot([low, high], [i, i], color=_TWINS[0], alpha=alpha, linewidth=width, solid_capstyle="butt")
        ax.plot([row["value"]["nominal"]], [i], "o", color=_SNN if row["chosen"] else _TWINS[0])
    if one:
        ax.axvline(1.0, color=_INK, linewidth=1)
    ax.set_xscale("log")
    ax.set_xlabel(label)
    _names(ax, [row["label"] for row in rows])
    return figure


def _layers(e: dict[str, Any]) -> Figure | None:
    rows = [bar["row"] for bar in charts.layer_bars(e)]
    if not rows:
        return None
    figure, ax = _axes(len(rows))
    left = [0.0] * len(rows)
    for source in SOURCES:
        joules = [row["by_source_J"].get(source, 0.0) for row in rows]
        if any(joules):
            ax.barh(range(len(rows)), joules, left=left, height=0.55, color=_COLOURS[source], label=source)
            left = [a + b for a, b in zip(left, joules)]
    ann = [row["ann_J"]["nominal"] for row in rows]
    ax.barh([i + 0.38 for i in range(len(rows))], ann, height=0.12, color="0.75", label="equal ANN")
    ax.set_xlabel("energy per sample / J")
    _names(ax, [row["name"] for row in rows])
    _legend(ax)
    return figure


def _tornado(e: dict[str, Any]) -> Figure | None:
    rows = charts.tornado(e)["rows"]
    if not rows:
        return None
    figure, ax = _axes(len(rows))
    for i, row in enumerate(rows):
        ax.barh(i, row["high"] - row["low"], left=row["low"], height=0.6, color=_TWINS[0])
    ax.axvline(e["energy_J"]["nominal"], color=_INK, linewidth=1)
    ax.set_xlabel("energy per sample / J")
    _names(ax, [row["name"] for row in rows])
    return figure


def _break_even(e: dict[str, Any]) -> Figure | None:
    curve, plan = e["rate_curve"], charts.rate_plot(e)
    if curve is None or plan is None:
        return None
    figure, ax = _axes(8)
    right = plan["right"]
    ends = {
        end: [curve["fixed_J"][end] + r * curve["per_rate_J"][end] for r in (0.0, right)] for end in curve["fixed_J"]
    }
    ax.fill_between([0, right], ends["low"], ends["high"], color=_SNN, alpha=0.18, linewidth=0)
    ax.plot([0, right], ends["nominal"], color=_SNN, label="spiking network")
    for colour, twin in zip(_TWINS, e["twins"]):
        joules = twin["energy_J"]["nominal"]
        if joules <= plan["top"]:
            ax.axhline(joules, color=colour, label=twin["title"])
    ax.axvline(curve["rate"], color=_SNN, linestyle="--", linewidth=1, label=f"this run, {curve['rate']:.3g}")
    ax.set(xlim=(0, right), ylim=(0, plan["top"]), xlabel="spikes per synapse and step", ylabel="energy per sample / J")
    _legend(ax)
    return figure


def _rates(activity: Sequence[dict[str, Any]]) -> Figure | None:
    rows = [row for row in activity if not row["readout"] and row["rate_per_step"]]
    if not rows:
        return None
    figure, ax = _axes(7)
    for row in rows:
        steps = range(1, len(row["rate_per_step"]) + 1)
        ax.plot(steps, row["rate_per_step"], marker=".", label=f"{row['name']}, mean {row['firing_rate']:.3g}")
    ax.set(xlabel="time step", ylabel="spikes per neuron and step", ylim=(0, None))
    _legend(ax)
    return figure


__all__ = ["figures", "save_figures"]
