"""Reports of estimates: a JSON document, one self-contained HTML page, a table for the terminal.

The page needs no network: figures are drawn into it, its only script is named by its hash in the page's own
content policy, and everything that comes from a trace or a caller (layer names, titles, notes) is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from spiking.hw_models.energy import SOURCES, Estimate, reprice
from spiking.hw_models.hardware import ACCOUNTINGS, MARKS
from spiking.hw_models.intervals import Interval
from spiking.hw_models.units import figure, si

from spiking.errors import SpikingError
from spiking.trace import EventTrace, Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERSION = "1.1"
_HERE = Path(__file__).parent
_MAX_PIXELS = 400_000
_MAX_ROWS = 96
_DESCRIPTIONS = {
    "published": "what papers print: spikes × addition, nothing else",
    "operations": "every operation: weights, biases, pooling, neuron updates, resets",
    "with-memory": "operations and the words they move",
}


def report(
    estimates: Estimate | Sequence[Estimate],
    path: str | PathLike[str] = "report.html",
    *,
    title: str = "",
    recording: Recording | None = None,
    accuracy: float | None = None,
    facts: Mapping[str, str] | None = None,
    figures: Mapping[str, Figure | bytes | str | PathLike[str]] | None = None,
) -> dict[str, Any]:
    """Write an HTML page and, beside it under the same stem, the same content as JSON; return that content.

    The first estimate gives the page's opening ratio. `recording` is the sample that plays (default: the first that
    the trace kept); `accuracy` (0…1) is the accuracy at the priced precision; `facts` are further lines for the head;
    `figures` maps captions to matplotlib figures, PNG bytes or image files, which are copied into the page.
    Errors: SpikingError if there is nothing to report, or a file cannot be read or written.

    >>> import os, tempfile, torch, spiking
    >>> from spiking import hw_models
    >>> model = torch.nn.Linear(6, 4, bias=False)
    >>> with spiking.record(model) as trace:
    ...     _ = model(torch.eye(6).reshape(1, 6, 6))
    >>> folder = tempfile.mkdtemp()
    >>> content = hw_models.report(hw_models.estimate(trace), os.path.join(folder, "report.html"))
    >>> sorted(os.listdir(folder)), round(content["estimates"][0]["ratio"]["nominal"], 4)
    (['report.html', 'report.json'], 0.0326)
    """
    found = [estimates] if isinstance(estimates, Estimate) else list(estimates)
    if not found:
        raise SpikingError("report: got no estimates; expected at least one. Call hw_models.estimate first.")
    if accuracy is not None:
        found = [reprice(e, e.accounting, accuracy) for e in found]
    page = Path(path)
    if page.suffix.lower() not in (".html", ".htm"):
        raise SpikingError(f"{page}: got the ending {page.suffix!r}; expected .html.")
    content = document(found, title=title, facts=facts)
    if recording is None and found[0].trace.recordings:
        recording = found[0].trace.recordings[0]
    images = [(str(caption), _data_url(image, str(caption))) for caption, image in (figures or {}).items()]
    text = _render(content, found, recording, images)
    _write(page, text)
    _write(page.with_suffix(".json"), json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return content


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as err:
        part.unlink(missing_ok=True)
        raise SpikingError(f"{path}: the report cannot be written: {err.strerror}.") from err


# the document


def document(
    estimates: Sequence[Estimate], *, title: str = "", facts: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The report's content as plain data; `report.schema.json` beside this file describes it."""
    trace = estimates[0].trace
    priced = [e.accountings() for e in estimates]
    return {
        "schema": "spiking-report",
        "version": VERSION,
        "created_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "title": title or f"Energy of {trace.model_name}",
        "facts": {str(k): str(v) for k, v in (facts or {}).items()},
        "trace": {
            "model_name": trace.model_name,
            "model_hash": trace.model_hash,
            "data_id": trace.data_id,
            "n_samples": trace.n_samples,
            "n_steps": trace.n_steps,
            "seed": trace.seed,
            "dtype": trace.dtype,
            "device": trace.device,
            "recorded_utc": trace.created,
            "software": trace.software,
        },
        "estimates": [_estimate(e, of) for e, of in zip(estimates, priced)],
        "activity": [_activity(row) for row in trace.neurons],
        "assumptions": _assumptions(estimates),
        "constants": _constants(priced),
        "bibtex": _bibtex(priced),
    }


def _interval(i: Interval) -> dict[str, float | None]:
    """A figure as plain data; null where it does not exist."""
    return {k: (None if math.isnan(v) else float(v)) for k, v in zip(("low", "nominal", "high"), i)}


def _estimate(e: Estimate, priced: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        "hardware": e.hardware.name,
        "hardware_title": e.hardware.title,
        "precision": e.precision,
        "accounting": e.accounting,
        "accuracy": e.accuracy,
        "energy_J": _interval(e.energy),
        "ann_J": _interval(e.ann),
        "ratio": _interval(e.ratio),
        "sampling_J": _interval(e.sampling),
        "ratio_sampling": _interval(e.ratio_sampling),
        "energy_drawn_J": _interval(e.energy_drawn),
        "ratio_drawn": _interval(e.ratio_drawn),
        "latency_s": None if e.latency is None else e.latency.nominal,
        "latency_bounds_s": None if e.latency is None else _interval(e.latency),
        "realtime_J": None if e.realtime is None else _interval(e.realtime),
        "spike_rate": e.spike_rate,
        "twins": [
            {
                "name": twin.name,
                "title": twin.title,
                "energy_J": _interval(twin.energy),
                "ratio": _interval(twin.ratio),
                "ratio_drawn": _interval(twin.ratio_drawn),
                "break_even_rate": None if twin.break_even is None else _interval(twin.break_even),
            }
            for twin in e.twins
        ],
        "tornado_J": {name: list(ends) for name, ends in e.tornado.items()},
        "variance_share": e.shares,
        "cores": e.facts.get("cores"),
        "arrays": e.facts.get("arrays"),
        "ann_steps": e.ann_steps,
        "by_source_J": e.by_source,
        "warnings": [{"code": w.code, "text": w.text} for w in e.warnings],
        "layers": [
            {
                "name": row.name,
                "kind": row.kind,
                "operand_class": row.operand_class,
                "energy_J": _interval(row.energy),
                "ann_J": _interval(row.ann),
                "by_source_J": row.by_source,
                "syn": row.syn,
                "ac": row.ac,
                "mac": row.mac,
                "updates": row.updates,
                "spikes": row.spikes,
            }
            for row in e.per_layer
        ],
        "accountings": [_accounting(priced[name]) for name in ACCOUNTINGS],
    }


def _accounting(priced: Estimate) -> dict[str, Any]:
    return {
        "accounting": priced.accounting,
        "energy_J": _interval(priced.energy),
        "ann_J": _interval(priced.ann),
        "ratio": _interval(priced.ratio),
        "ratio_sampling": _interval(priced.ratio_sampling),
    }


def _activity(row: Any) -> dict[str, Any]:
    updates = np.maximum(row.counts["updates"], 1)
    return {
        "name": row.name,
        "type": str(row.neuron.get("type", row.module)),
        "neurons": row.n_outputs,
        "firing_rate": row.firing_rate,
        "rate_per_step": (row.counts["spikes"] / updates).tolist(),
        "silent": row.silent,
        "saturated": row.saturated,
        "readout": row.neuron.get("output") == "membrane",
    }


def _assumptions(estimates: Sequence[Estimate]) -> list[str]:
    trace = estimates[0].trace
    passes = sorted({e.ann_steps for e in estimates})
    text = [
        "Counts come from a recorded run: operations are counted connection by connection, without zero padding.",
        f"The equal ANN has the same weights at the same precision, runs every layer densely, and needs "
        f"{' or '.join(str(p) for p in passes)} pass{'' if passes == [1] else 'es'} per sample; for event recordings "
        "one pass means that it gets the whole recording as one dense input.",
        "Neurons are updated in every step, whether they get input or not.",
        "A batch normalisation in eval mode directly behind its weights is folded into them and costs nothing.",
        "Low and high are bounds over the intervals of all constants; both networks use the same constants. "
        "The interval over samples is a bootstrap (5–95 %, 1000 resamples) with nominal constants.",
    ]
    text.append(
        "In the accounting with-memory every operation moves its weight and its accumulator, without reuse, in both "
        "networks; spikes move as addresses through a queue, activations of the ANN as words."
    )
    if trace.recurrent:
        text.append("The model is recurrent, so the equal ANN is charged for every step, too.")
    for e in estimates:
        text += [f"{e.hardware.name}: {note}" for note in e.hardware.notes]
    return list(dict.fromkeys(text))


def _constants(priced: Sequence[Mapping[str, Estimate]]) -> list[dict[str, Any]]:
    """Every constant of the estimates and of their twins, under all accountings."""
    rows = {}
    for accountings in priced:
        for e in accountings.values():
            for c in (*e.constants, *(c for twin in e.twins for c in twin.constants)):
                rows[c.chip, c.name] = {
                    "hardware": c.chip,
                    "name": c.name,
                    "value": c.value / c.factor,
                    "low": c.low / c.factor,
                    "high": c.high / c.factor,
                    "unit": c.unit,
                    "single_source": c.single_source,
                    "source": c.source,
                    "bounds": list(c.bounds),
                    "mark": MARKS[c.mark],
                    "note": c.note,
                }
    return list(rows.values())


def _bibtex(priced: Sequence[Mapping[str, Estimate]]) -> dict[str, str]:
    return dict(sorted({key: text for of in priced for e in of.values() for key, text in e.sources.items()}.items()))


# the page


def _render(
    content: dict[str, Any],
    estimates: Sequence[Estimate],
    recording: Recording | None,
    images: Sequence[tuple[str, str]],
) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["si"] = lambda value, unit="": si(value, unit)
    environment.filters["span"] = _span
    environment.filters["figure"] = lambda value: "–" if value is None else figure(value)
    environment.filters["number"] = lambda value: f"{value:.4g}"
    environment.filters["percent"] = lambda value: f"{100 * value:.3g} %"
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    first = content["estimates"][0]
    return environment.get_template("report.html.j2").render(
        doc=content,
        first=first,
        accuracy=None if any(k.lower() == "accuracy" for k in content["facts"]) else first["accuracy"],
        chart=ratio_chart(first["accountings"]),
        layers=_layer_bars(first),
        sources=[s for s in SOURCES if first["by_source_J"].get(s)],
        sparklines={row["name"]: _sparkline(row["rate_per_step"]) for row in content["activity"]},
        descriptions=_DESCRIPTIONS,
        recording=None if recording is None else playable(recording, estimates[0].trace),
        still=None if recording is None else _still(recording),
        images=images,
        script=script,
        script_hash=digest,
    )


def _span(interval: Mapping[str, float | None], unit: str) -> str:
    """low – high, or "not known" for an interval without width."""
    low, high = interval["low"], interval["high"]
    if low is None or high is None or low == high:
        return "not known"
    return f"{si(low, unit)} – {si(high, unit)}" if unit else f"{figure(low)} – {figure(high)}"


def ratio_chart(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Places, in percent of the width, of the ratios of several accountings on one logarithmic axis around 1."""
    values = [v for r in rows for v in (*r["ratio"].values(), *r["ratio_sampling"].values()) if v]
    low, high = min([*values, 0.5]), max([*values, 2.0])
    start, stop = math.log10(low) - 0.1, math.log10(high) + 0.1

    def place(v: float | None) -> float | None:
        return None if not v else round(100 * (math.log10(v) - start) / (stop - start), 3)

    marks = [m * 10.0**e for e in range(math.floor(start), math.ceil(stop) + 1) for m in (1, 2, 5)]
    shown = [m for m in marks if start <= math.log10(m) <= stop]
    if len(shown) > 7:
        shown = [m for m in shown if f"{m:e}"[0] == "1"]
    return {
        "one": place(1.0),
        "ticks": [{"x": place(m), "label": f"{m:g}"} for m in shown],
        "rows": [
            {
                "accounting": r["accounting"],
                "ratio": r["ratio"]["nominal"],
                "x": place(r["ratio"]["nominal"]),
                "constants": (place(r["ratio"]["low"]), place(r["ratio"]["high"])),
                "samples": (place(r["ratio_sampling"]["low"]), place(r["ratio_sampling"]["high"])),
            }
            for r in rows
        ],
    }


def _layer_bars(e: Mapping[str, Any]) -> list[dict[str, Any]]:
    widest = max([max(r["energy_J"]["nominal"], r["ann_J"]["nominal"]) for r in e["layers"]], default=0) or 1.0
    return [
        {
            "row": r,
            "parts": [(s, j, 100 * j / widest) for s, j in r["by_source_J"].items() if j],
            "ann": 100 * r["ann_J"]["nominal"] / widest,
        }
        for r in e["layers"]
        if r["energy_J"]["nominal"] or r["ann_J"]["nominal"]
    ]


def _sparkline(rates: Sequence[float], width: int = 120, height: int = 24) -> str:
    """SVG path of a rate over time, its height relative to its own maximum."""
    top = max([*rates, 0]) or 1.0
    n = max(len(rates) - 1, 1)
    points = [(width * t / n, height - 2 - (height - 4) * r / top) for t, r in enumerate(rates)]
    if len(points) == 1:
        points.append((width, points[0][1]))
    return "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def playable(recording: Recording, trace: EventTrace) -> dict[str, Any]:
    """What the page's player needs: input frames and spikes as base64 bytes, scores per step, names."""
    x = np.nan_to_num(np.asarray(recording.input, np.float64))
    steps = len(x)
    picture = _channels(x)
    frames = None
    if picture is not None:
        while picture.size > _MAX_PIXELS * 4 and min(picture.shape[2:]) > 16:
            h, w = (n - n % 2 for n in picture.shape[2:])
            even = picture[:, :, :h, :w]
            picture = even.reshape(*even.shape[:2], h // 2, 2, w // 2, 2).max((3, 5))
        scaled = np.clip(np.rint(255 * picture / (picture.max() or 1.0)), 0, 255).astype(np.uint8)
        frames = {"shape": list(scaled.shape), "data": base64.b64encode(scaled.tobytes()).decode()}
    strips = {} if picture is not None else {"input": x.reshape(steps, -1) != 0}
    strips |= {name: np.asarray(s).reshape(len(s), -1) != 0 for name, s in recording.spikes.items()}
    return {
        "steps": steps,
        "frames": frames,
        "layers": [_strip(name, s) for name, s in strips.items() if len(s) == steps and s.shape[1]],
        "scores": _scores(recording, steps),
        "classes": [str(c) for c in recording.classes],
        "label": recording.label,
        "prediction": recording.prediction,
        "note": recording.note,
        "dt_ms": None if trace.dt is None else trace.dt * 1e3,
    }


def _channels(x: np.ndarray) -> np.ndarray | None:
    """The input as [T, C, H, W] with one or two channels that are not negative, or None if it is no picture."""
    if x.ndim == 3 and min(x.shape[1:]) > 3:
        x = x[:, None]
    if x.ndim != 4 or min(x.shape[2:]) < 2:
        return None
    if x.shape[1] > 2:
        x = np.abs(x).mean(1, keepdims=True)
    if x.min() < 0 and x.shape[1] == 1:
        x = np.concatenate([np.maximum(-x, 0), np.maximum(x, 0)], 1)
    return np.abs(x)


def _strip(name: str, spikes: np.ndarray) -> dict[str, Any]:
    """Evenly chosen neurons of a layer for the raster, [steps, shown] as bytes."""
    n = spikes.shape[1]
    chosen = np.unique(np.linspace(0, n - 1, min(n, _MAX_ROWS)).round().astype(int))
    data = np.ascontiguousarray(spikes[:, chosen]).astype(np.uint8)
    return {"name": name, "neurons": n, "shown": len(chosen), "data": base64.b64encode(data.tobytes()).decode()}


def _scores(recording: Recording, steps: int) -> list[list[float]]:
    """Scores per class, added up over the steps so far; one row if the model answered only once."""
    out = recording.output
    if out is None or not recording.prediction or out.shape[-1] > 64:
        return []
    rows = np.nan_to_num(np.atleast_2d(np.asarray(out, np.float64)))
    if len(rows) == steps and out.ndim == 2:
        rows = rows.cumsum(0)
    return [[round(float(v), 4) for v in row] for row in rows]


def _still(recording: Recording) -> str:
    """The recording as one picture, for readers without scripts and for paper."""
    from matplotlib.figure import Figure

    from spiking import plot

    picture = _channels(np.nan_to_num(np.asarray(recording.input, np.float64)))
    strips = {name: s for name, s in recording.spikes.items() if np.asarray(s).reshape(len(s), -1).shape[1]}
    figure = Figure(figsize=(7.0, 1.2 + 1.3 * max(len(strips), 1)), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(1, 2))
    left, right = halves
    ax = left.add_subplot()
    if picture is not None:
        ax.imshow(plot.frame_pictures(picture.sum(0, keepdims=True))[0], interpolation="nearest")
    ax.set_axis_off()
    ax.set_title("input, all steps", fontsize=8)
    for i, (name, spikes) in enumerate(strips.items()):
        below = right.add_subplot(len(strips), 1, i + 1)
        plot.raster(spikes, below)
        below.set(xlabel="time step" if i == len(strips) - 1 else "", ylabel="")
        # mathtext is off: a layer may be called "$\frac$"
        below.set_title(name, fontsize=8, loc="left", parse_math=False)
        below.tick_params(labelsize=7)
    return _data_url(figure, "still")


_IMAGES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif"}


def _data_url(image: Figure | bytes | str | PathLike[str], caption: str) -> str:
    if isinstance(image, str | PathLike):
        try:
            data = Path(image).read_bytes()
        except OSError as err:
            raise SpikingError(f"{os.fspath(image)}: the figure cannot be read: {err.strerror}.") from err
    elif isinstance(image, bytes):
        data = image
    elif hasattr(image, "savefig"):
        buffer = io.BytesIO()
        image.savefig(buffer, format="png", dpi=110)
        data = buffer.getvalue()
    else:
        raise SpikingError(
            f"report: figure {caption!r}: got {type(image).__name__}; expected a matplotlib figure, PNG "
            "bytes or a file."
        )
    for magic, kind in _IMAGES.items():
        if data.startswith(magic):
            return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    raise SpikingError(f"report: figure {caption!r}: got data that is no PNG, JPEG or GIF; expected one of these.")
