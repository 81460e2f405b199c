"""The recording that plays at the head of a report: what the page's script draws, and one still picture of it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from spiking.trace import EventTrace, Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_PIXELS = 400_000
_MAX_ROWS = 96


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


def still(recording: Recording) -> Figure:
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
    return figure
