"""Where the marks of the page's charts lie, in percent of their axes; the template draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from spiking.hw_models.units import figure, si

_LONGEST = 14  # bars of a tornado


def log_axis(rows: Sequence[Mapping[str, Any]], reference: float | None = None, unit: str = "") -> dict[str, Any]:
    """Places of several figures with their intervals on one logarithmic axis, which holds `reference`, too.

    Each row has `label`, `text` and `chosen`, and `value`, `bounds`, `drawn`, `samples` as the document states intervals.
    """
    names = ("value", "bounds", "drawn", "samples")
    values = [v for row in rows for name in names for v in (row.get(name) or {}).values() if v and v > 0]
    around = [] if reference is None else [reference / 2, reference * 2]
    low, high = min([*values, *around], default=1.0), max([*values, *around], default=1.0)
    start, stop = math.log10(low) - 0.1, math.log10(high) + 0.1

    def place(v: float | None) -> float | None:
        return None if v is None or v <= 0 else round(100 * (math.log10(v) - start) / (stop - start), 3)

    def span(interval: Mapping[str, float | None] | None) -> tuple[float, float] | None:
        ends = [place(interval[end]) for end in ("low", "high")] if interval else [None]
        return None if None in ends else (ends[0], ends[1] - ends[0])  # type: ignore[operator,return-value]

    return {
        "reference": place(reference),
        "ticks": [{"x": place(m), "label": si(m, unit) if unit else f"{m:g}"} for m in _marks(start, stop)],
        "rows": [
            {
                **{key: row[key] for key in ("label", "text", "chosen")},
                "x": place(row["value"]["nominal"]),
                **{name: span(row.get(name)) for name in names[1:]},
            }
            for row in rows
        ],
    }


def _marks(start: float, stop: float) -> list[float]:
    """Round figures between 10^start and 10^stop, seven at most."""
    decades = range(math.floor(start), math.ceil(stop) + 1)
    for factors in ((1, 2, 5), (1,)):
        shown = [m * 10.0**e for e in decades for m in factors if start <= math.log10(m) + e <= stop]
        if len(shown) <= 6:
            return shown
    return shown[:: math.ceil(len(shown) / 6)]


def layer_bars(e: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Bars of the layers' energies by source, with the equal ANN's below, as widths in percent of the widest."""
    widest = max([max(r["energy_J"]["nominal"], r["ann_J"]["nominal"]) for r in e["layers"]], default=0) or 1.0
    return [
        {
            "row": r,
            "parts": [(s, j, 100 * j / widest) for s, j in r["by_source_J"].items() if j],
            "ann": 100 * r["ann_J"]["nominal"] / widest,
            "text": _layer_text(r),
        }
        for r in e["layers"]
        if r["energy_J"]["nominal"] or r["ann_J"]["nominal"]
    ]


def _layer_text(r: Mapping[str, Any]) -> str:
    parts = [f"{source} {si(joules, 'J')}" for source, joules in r["by_source_J"].items() if joules]
    total, ann = si(r["energy_J"]["nominal"], "J"), si(r["ann_J"]["nominal"], "J")
    return f"{r['name']}: {total} ({', '.join(parts) or 'nothing'}); equal ANN {ann}"


def tornado(e: Mapping[str, Any]) -> dict[str, Any]:
    """Bars of the energy with one group of constants at its ends, all others nominal; the longest first."""
    nominal = e["energy_J"]["nominal"]
    spans = [(name, low, high) for name, (low, high) in e["tornado_J"].items() if low < high][:_LONGEST]
    first = min([low for _, low, _ in spans], default=0.0)
    width = max([high for _, _, high in spans], default=1.0) - first or 1.0
    return {
        "nominal": 100 * (nominal - first) / width,
        "rows": [
            {
                "name": name,
                "low": low,
                "high": high,
                "x": 100 * (low - first) / width,
                "width": 100 * (high - low) / width,
                "share": e["variance_share"].get(name, 0.0),
            }
            for name, low, high in spans
        ],
        "fixed": [name for name, (low, high) in e["tornado_J"].items() if low >= high],
    }


def rate_plot(e: Mapping[str, Any]) -> dict[str, Any] | None:
    """Energy over the rate of the spikes beside the twins, which do not depend on it: where they meet is break-even."""
    curve = e["rate_curve"]
    if curve is None:
        return None
    meets = [t["break_even_rate"]["nominal"] for t in e["twins"] if t["break_even_rate"]]
    first = next((t["break_even_rate"]["nominal"] for t in e["twins"] if t["break_even_rate"]), None)
    reached = [1.3 * m for m in meets if 0 < m <= 12 * curve["rate"] or m == first]
    right = min(1.0, max([1.6 * curve["rate"], *reached]))  # no synapse gets more than one spike a step
    top = 1.15 * max(curve["fixed_J"]["nominal"] + right * curve["per_rate_J"]["nominal"], _fair_top(e))

    def at(rate: float, joules: float) -> str:
        return f"{100 * rate / right:.2f} {100 - 100 * min(joules, 5 * top) / top:.2f}"

    def line(end: str) -> list[str]:
        return [at(r, curve["fixed_J"][end] + r * curve["per_rate_J"][end]) for r in (0.0, right)]

    lines = [{"css": "snn", "d": "M" + " L".join(line("nominal")), "label": "spiking network"}]
    for i, twin in enumerate(e["twins"]):
        level = twin["energy_J"]["nominal"]
        if level <= top:
            lines.append({"css": f"twin{i}", "d": f"M{at(0, level)} L{at(right, level)}", "label": twin["title"]})
    return {
        "right": right,
        "top": top,
        "lines": lines,
        "hidden": [t["title"] for t in e["twins"] if t["energy_J"]["nominal"] > top],
        "band": "M" + " L".join([*line("low"), *reversed(line("high"))]) + " Z",
        "now": 100 * curve["rate"] / right,
        "meet": None if first is None or not 0 < first <= right else 100 * first / right,
        "x_ticks": [{"x": 100 * v / right, "label": f"{100 * v:.3g} %"} for v in _steps(right)],
        "y_ticks": [{"y": 100 * v / top, "label": si(v, "J")} for v in _steps(top)],
    }


def _fair_top(e: Mapping[str, Any]) -> float:
    return float(next((t["energy_J"]["nominal"] for t in e["twins"] if t["name"] == e["fair"]), 0.0))


def rates_plot(activity: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Rates of all spiking layers over time, on one pair of axes."""
    rows = [row for row in activity if not row["readout"] and row["rate_per_step"]]
    if not rows:
        return None
    steps = max(len(row["rate_per_step"]) for row in rows)
    top = 1.1 * max(max(row["rate_per_step"]) for row in rows) or 1.0
    lines = []
    for i, row in enumerate(rows):
        rates = row["rate_per_step"]
        places = [(100 * (t + 0.5) / steps, 100 - 100 * r / top) for t, r in enumerate(rates)]
        if steps == 1:
            places = [(0.0, places[0][1]), (100.0, places[0][1])]
        lines.append(
            {"css": f"p{i % 8}", "d": "M" + " L".join(f"{x:.2f} {y:.2f}" for x, y in places), "label": row["name"]}
        )
    shown = sorted({round(v) for v in _steps(steps)} | {1})
    return {
        "lines": lines,
        "x_ticks": [{"x": 100 * (t - 0.5) / steps, "label": str(t)} for t in shown if 1 <= t <= steps],
        "y_ticks": [{"y": 100 * v / top, "label": f"{100 * v:.3g} %"} for v in _steps(top)],
    }


def _steps(top: float, n: int = 4) -> list[float]:
    """Round figures from one step above 0 up to `top`."""
    rough = top / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    return [step * i for i in range(1, math.floor(top / step * 1.0001) + 1)]


def mesh(placement: Mapping[str, Any]) -> dict[str, Any]:
    """Squares of the cores in use within their tiles; one unit of length per tile."""
    width, height = placement["tiles"]
    side = math.ceil(math.sqrt(placement["cores_per_tile"]))
    cell = 0.84 / side
    squares = []
    for i, population in enumerate(placement["populations"]):
        for core in population["cores"]:
            row, column = divmod(core["id"] % placement["cores_per_tile"], side)
            x, y = core["tile"]
            squares.append(
                {
                    "x": round(x + 0.08 + column * cell, 4),
                    "y": round(y + 0.08 + row * cell, 4),
                    "css": f"p{i % 8}",
                    "text": f"core {core['id']}, tile ({x}, {y}): {core['neurons']} of {population['name']}",
                }
            )
    return {"width": width, "height": height, "size": round(0.9 * cell, 4), "squares": squares}


def ratio_rows(e: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ratios against the twins, for `log_axis`."""
    return [
        {
            "label": twin["title"],
            "text": figure(twin["ratio"]["nominal"]) if twin["ratio"]["nominal"] is not None else "–",
            "chosen": twin["name"] == e["fair"],
            "value": twin["ratio"],
            "bounds": twin["ratio"],
            "drawn": twin["ratio_drawn"],
            "samples": twin["ratio_sampling"],
        }
        for twin in e["twins"]
    ]


def _named(e: Mapping[str, Any]) -> str:
    return f"{e['hardware']} · {e['label']}" if e["label"] else str(e["hardware"])


def energy_rows(estimates: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The energies on several pieces of hardware, for `log_axis`."""
    several = len({(e["accounting"], e["precision"]) for e in estimates}) > 1
    return [
        {
            "label": _named(e) + (f" · {e['precision']} · {e['accounting']}" if several else ""),
            "text": si(e["energy_J"]["nominal"], "J"),
            "chosen": i == 0,
            "value": e["energy_J"],
            "bounds": e["energy_J"],
            "drawn": e["energy_drawn_J"],
            "samples": e["sampling_J"],
        }
        for i, e in enumerate(estimates)
    ]


def sparkline(rates: Sequence[float], width: int = 120, height: int = 24) -> str:
    """SVG path of a rate over time, its height relative to its own maximum."""
    top = max([*rates, 0]) or 1.0
    n = max(len(rates) - 1, 1)
    points = [(width * t / n, height - 2 - (height - 4) * r / top) for t, r in enumerate(rates)]
    if len(points) == 1:
        points.append((width, points[0][1]))
    return "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
