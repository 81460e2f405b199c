"""What the cases that time event-driven layers over densities share: groups, the answers drawn from their rows, and the figure.

A group of rows is "SHAPE, D %": one input at density D. A group "fit SHAPE" times one kernel over densities, each row with its number of
spikes in the note. A group "worst case SHAPE" times a layer on an input without a zero, call by call beside the dense one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from spiking.benchmarks.run import Row, interleaved
from torch import Tensor

from spiking import plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIT", "SLACK", "Pair", "figure", "fits", "group", "line", "overheads", "speedups", "worst"]

FIT = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
SLACK = 0.85  # of a target, which is a figure of a prototype
WORST = "worst case"
LIMIT_LONG, LIMIT_SHORT, LONG = (
    0.03,
    15e-6,
    1e-3,
)  # what auto may cost: a share of calls of a millisecond or more, seconds of others


class Pair(NamedTuple):
    """A dense contestant, the event-driven one that answers it, and what to call the two together."""

    dense: str
    event: str
    name: str = ""


def group(shape: str, density: float) -> str:
    return f"{shape}, {100 * density:g} %"


def line(
    case: str, shape: str, inputs: Mapping[float, Tensor], call: Callable[[Tensor], Any], repeats: int
) -> Iterable[Row]:
    """The event-driven kernel alone, over densities: the rows of the fit."""
    calls = {f"{100 * density:g} %": lambda x=x: call(x) for density, x in inputs.items()}
    for (name, times), x in zip(interleaved(calls, repeats, 2, in_a_row=3).items(), inputs.values()):
        yield Row(case, name, times, None, f"fit {shape}", f"{int(x.count_nonzero())} spikes")


def worst(case: str, shape: str, calls: dict[str, Callable[[], Any]], repeats: int) -> Iterable[Row]:
    """A dense call and ours on the same input without a zero, in turn; the first is the reference."""
    reference = next(iter(calls))
    for name, times in interleaved(calls, repeats, 5, in_a_row=2).items():
        yield Row(case, name, times, None if name == reference else reference, f"{WORST} {shape}")


def _by_group(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row.group, {})[row.what] = row.median
    return found


def _ratios(rows: Sequence[Row], pair: Pair) -> dict[str, dict[float, float]]:
    """By shape and density, how many times as fast as the dense call the other one is."""
    shapes: dict[str, dict[float, float]] = {}
    for name, m in _by_group(rows).items():
        if pair.dense in m and pair.event in m:
            shape, density = name.rsplit(", ", 1)
            shapes.setdefault(shape, {})[float(density.split()[0]) / 100] = m[pair.dense] / m[pair.event]
    return shapes


def speedups(
    rows: Sequence[Row],
    pairs: Sequence[Pair],
    targets: Callable[[str, float], float | None] = lambda shape, density: None,
) -> list[str]:
    """One line a shape and pair; a target (less SLACK) stands beside the figure that it is for."""
    lines = []
    for pair in pairs:
        for shape, ratios in _ratios(rows, pair).items():
            told = []
            for density, ratio in ratios.items():
                target = targets(shape, density)
                told.append(
                    f"{100 * density:g} %: {ratio:.1f}×" + ("" if target is None else f" (target {target:.2g})")
                )
            lines.append(f"{shape}, against {pair.name or pair.dense}: " + ", ".join(told))
    return lines


def fits(rows: Sequence[Row]) -> list[str]:
    """The straight line of time over the number of spikes, and how near it is."""
    import numpy as np

    lines = []
    for name in dict.fromkeys(row.group for row in rows if row.group.startswith("fit ")):
        points = [(int(row.note.split()[0]), row.median) for row in rows if row.group == name]
        spikes, seconds = np.array(points).T
        slope, fixed = np.polyfit(spikes, seconds, 1)
        rest = seconds - (slope * spikes + fixed)
        r2 = 1 - (rest**2).sum() / ((seconds - seconds.mean()) ** 2).sum()
        lines.append(
            f"{name[4:]}: {fixed * 1e6:.3g} µs + {slope * 1e9:.3g} ns a spike from 1 to 30 %, R² = {r2:.4f} (target 0.98)"
        )
    return lines


def overheads(rows: Sequence[Row]) -> list[str]:
    """What choosing costs where nothing can be gained, and whether that is within its limit."""
    lines = []
    for name in dict.fromkeys(row.group for row in rows if row.group.startswith(WORST)):
        dense, auto = (row for row in rows if row.group == name)
        more = median(a - d for a, d in zip(auto.seconds, dense.seconds))
        limit = LIMIT_LONG * dense.median if dense.median >= LONG else LIMIT_SHORT
        said = f"{limit * 1e6:.0f} µs" if dense.median < LONG else f"{100 * LIMIT_LONG:g} %"
        lines.append(
            f"{name}: {auto.what} takes {more * 1e6:+.1f} µs ({100 * more / dense.median:+.1f} %) beside {dense.what}, "
            f"{'within' if more <= limit else 'OVER'} the limit of {said}"
        )
    return lines


def figure(rows: Sequence[Row], pair: Pair, title: str) -> Figure:
    """Speed-up over density on logarithmic axes, one line a shape; below 1, dense wins."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    drawing = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = drawing.subplots()
    shapes = _ratios(rows, pair)
    colours = (plot.BLUE, plot.ORANGE, "#2f855a", "#805ad5", "#b7791f", plot.INK)
    for (shape, ratios), colour in zip(shapes.items(), colours * len(shapes)):
        ax.plot([100 * d for d in ratios], list(ratios.values()), marker="o", markersize=4, color=colour, label=shape)
    ax.axhline(1, color=plot.GREY, linestyle="--", linewidth=1)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="inputs that are not zero (%)",
        ylabel=f"times as fast as {pair.name or pair.dense}",
    )
    densities = sorted({100 * d for ratios in shapes.values() for d in ratios})
    ax.xaxis.set_major_locator(FixedLocator(densities))
    ax.xaxis.set_minor_locator(NullLocator())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_title(title, loc="left", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return drawing
