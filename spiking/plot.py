"""Figures of spikes, membranes, event frames and results.

Every function draws into the `ax` it is given, or into a new figure, and returns what it drew into; nothing touches
pyplot's global state, so it works in threads, servers and notebooks. Save with `raster(spikes).figure.savefig(…)`.
Tensors and arrays are taken alike.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from spiking.errors import SpikingError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1f2933"
BLUE = "#2b6cb0"
ORANGE = "#d9622b"
GREY = "#9aa5b1"
_ON, _OFF = np.array([217, 98, 43]), np.array([43, 108, 176])  # ORANGE and BLUE as RGB


def raster(spikes: Any, ax: Axes | None = None, *, dt: float | None = None, colour: str = INK) -> Axes:
    """Draw one dot per spike: time along x, neurons along y.

    Shapes: spikes [T, *], flattened to [T, N].   Units: dt in seconds per step puts milliseconds on the axis.
    Errors: SpikingError if spikes has no neuron axis.

    >>> ax = raster(np.eye(4))
    >>> ax.collections[0].get_offsets().data.tolist()
    [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    """
    s = _array(spikes, "raster", 2)
    s = s.reshape(len(s), -1)
    ax = _axes(ax)
    t, n = np.nonzero(s)
    step = 1.0 if dt is None else dt * 1e3
    ax.scatter(t * step, n, s=max(2.0, min(40.0, 3000.0 / max(s.size, 1) ** 0.5)), marker="|", linewidths=1.2, c=colour)
    ax.set(xlim=(-0.5 * step, (len(s) - 0.5) * step), ylim=(-0.5, s.shape[1] - 0.5))
    ax.set(xlabel="time step" if dt is None else "time (ms)", ylabel="neuron")
    return ax


def membrane(
    v: Any,
    ax: Axes | None = None,
    *,
    threshold: float | None = None,
    spikes: Any = None,
    dt: float | None = None,
) -> Axes:
    """Draw membrane potentials over time, the threshold as a dashed line and spikes as ticks above it.

    Shapes: v [T] or [T, N], one line per neuron; spikes as v.   Units: dt in seconds per step.
    Errors: SpikingError if spikes and v differ in shape.

    >>> ax = membrane([0.0, 0.6, 0.2], threshold=1.0)
    >>> ax.lines[0].get_ydata().tolist(), ax.lines[1].get_ydata()
    ([0.0, 0.6, 0.2], [1.0, 1.0])
    """
    potential = _array(v, "membrane", 1)
    potential = potential.reshape(len(potential), -1)
    ax = _axes(ax)
    time = np.arange(len(potential)) * (1.0 if dt is None else dt * 1e3)
    for trace in potential.T:
        ax.plot(time, trace, linewidth=1.4)
    top = float(np.nanmax(potential)) if potential.size else 0.0
    if threshold is not None:
        ax.axhline(threshold, color=GREY, linestyle="--", linewidth=1.0)
        top = max(top, threshold)
    if spikes is not None:
        s = _array(spikes, "membrane", 1)
        if s.size != potential.size:
            raise SpikingError(f"membrane: got spikes of shape {list(np.shape(spikes))}; expected {list(np.shape(v))}.")
        for neuron, row in enumerate(s.reshape(len(potential), -1).T):
            ax.plot(
                time[row != 0], np.full(int((row != 0).sum()), top * 1.08), "|", color=f"C{neuron % 10}", markersize=9
            )
    ax.set(xlabel="time step" if dt is None else "time (ms)", ylabel="membrane potential")
    return ax


def frames(x: Any, figure: Figure | None = None, *, columns: int = 10) -> Figure:
    """Draw event frames side by side, one picture per time step; ON events are orange, OFF events blue.

    Shapes: x [T, C, H, W] with C = 1 or 2 (OFF, ON), or [T, H, W].

    >>> figure = frames(np.ones((3, 2, 4, 5)))
    >>> [axes.get_title() for axes in figure.axes], figure.axes[0].images[0].get_array().shape
    (['0', '1', '2'], (4, 5, 3))
    """
    from matplotlib.figure import Figure

    pictures = frame_pictures(x)
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure = Figure(figsize=(1.2 * columns, 1.4 * rows), layout="constrained") if figure is None else figure
    for t, picture in enumerate(pictures):
        ax = figure.add_subplot(rows, columns, t + 1)
        ax.imshow(picture, interpolation="nearest")
        ax.set_title(str(t), fontsize=8)
        ax.set_axis_off()
    return figure


def frame_pictures(x: Any) -> np.ndarray:
    """Event frames as pictures, uint8 [T, H, W, 3] on white: the more events, the stronger the colour.

    Shapes: x [T, C, H, W] with C = 1 or 2 (OFF, ON), or [T, H, W].
    Errors: SpikingError for other shapes.

    >>> frame_pictures(np.zeros((1, 1, 1, 1))).tolist()
    [[[[255, 255, 255]]]]
    """
    f = _array(x, "frames", 3).astype(np.float64)
    if f.ndim == 3:
        f = f[:, None]
    if f.ndim != 4 or f.shape[1] not in (1, 2):
        raise SpikingError(
            f"frames: got shape {list(np.shape(x))}; expected [T, C, H, W] with C = 1 or 2, or [T, H, W]."
        )
    if f.shape[1] == 1:
        f = np.stack([np.maximum(-f[:, 0], 0), np.maximum(f[:, 0], 0)], 1)
    largest = float(np.nanmax(f)) if f.size else 0.0
    strength = np.clip(np.nan_to_num(f) / (largest or 1.0), 0, 1)[..., None]
    ink = strength[:, 0] * (255 - _OFF) + strength[:, 1] * (255 - _ON)
    return np.clip(255 - ink, 0, 255).round().astype(np.uint8)


def animation(
    x: Any,
    path: str | PathLike[str],
    *,
    spikes: Mapping[str, Any] | None = None,
    scale: int = 8,
    milliseconds: int = 150,
) -> None:
    """Save event frames as an animated GIF; below them the spikes of each layer, appearing as time runs.

    Shapes: x [T, C, H, W] or [T, H, W]; each of spikes [T, *].   Units: milliseconds per step.
    Errors: SpikingError if spikes has another number of steps, or the file cannot be written.

    >>> import tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), "events.gif")
    >>> animation(np.eye(3).reshape(3, 1, 1, 3), file, scale=2)
    >>> from PIL import Image
    >>> with Image.open(file) as image:
    ...     image.n_frames, image.size
    (3, (6, 2))
    """
    from PIL import Image

    pictures = frame_pictures(x).repeat(scale, 1).repeat(scale, 2)
    steps, _, width = pictures.shape[:3]
    strips = []
    for name, values in (spikes or {}).items():
        s = _array(values, "animation", 2)
        if len(s) != steps:
            raise SpikingError(
                f"animation: layer {name}: got {len(s)} time steps; expected {steps}, as the frames have."
            )
        strips.append(_raster_picture(s.reshape(steps, -1), width))
    shots = []
    for t in range(steps):
        parts = [pictures[t]]
        for strip in strips:
            seen = strip.copy()
            seen[:, (t + 1) * width // steps :] = 255
            parts += [np.full((6, width, 3), 255, np.uint8), seen]
        shots.append(Image.fromarray(np.concatenate(parts)).quantize(64, method=Image.Quantize.MEDIANCUT))
    try:
        shots[0].save(path, format="GIF", save_all=True, append_images=shots[1:], duration=milliseconds, loop=0)
    except OSError as err:
        raise SpikingError(f"{os.fspath(path)}: the animation cannot be written: {err}.") from err


def _raster_picture(spikes: np.ndarray, width: int, height: int = 90) -> np.ndarray:
    """A raster as pixels: one column block per step, at most `height` evenly chosen neurons."""
    steps, n = spikes.shape
    chosen = np.unique(np.linspace(0, n - 1, min(n, height)).round().astype(int)) if n else np.zeros(0, int)
    dots = np.full((len(chosen), width), 255, np.uint8)
    for t in range(steps):
        left, right = t * width // steps, max(t * width // steps + 1, (t + 1) * width // steps - 1)
        dots[spikes[t, chosen] != 0, left:right] = 40
    return np.repeat(dots[..., None], 3, -1)


def confusion_matrix(
    matrix: Any, ax: Axes | None = None, *, classes: Sequence[str] | None = None, title: str = ""
) -> Axes:
    """Draw how often each class (rows) was taken for each class (columns), the counts written into the cells.

    Shapes: matrix [K, K], rows true, columns predicted.
    Errors: SpikingError if the matrix is not square or the number of class names differs.

    >>> ax = confusion_matrix([[5, 1], [0, 4]], classes=["cat", "dog"])
    >>> [text.get_text() for text in ax.texts]
    ['5', '1', '', '4']
    """
    counts = _array(matrix, "confusion_matrix", 2)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise SpikingError(f"confusion_matrix: got shape {list(counts.shape)}; expected [K, K].")
    names = [str(k) for k in range(len(counts))] if classes is None else [str(c) for c in classes]
    if len(names) != len(counts):
        raise SpikingError(f"confusion_matrix: got {len(names)} class names; expected {len(counts)}.")
    ax = _axes(ax, (0.42 * len(counts) + 1.8, 0.42 * len(counts) + 1.6))
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            colour = "white" if share[i, j] > 0.5 else INK
            ax.text(j, i, f"{count:g}" if count else "", ha="center", va="center", fontsize=8, color=colour)
    ax.set_xticks(range(len(names)), names)
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="predicted", ylabel="true")
    if title:
        ax.set_title(title)
    return ax


def embedding(sets: Mapping[str, tuple[Any, Any]], ax: Axes | None = None, *, title: str = "") -> Axes:
    """Draw sets of labelled vectors in the plane of their two largest principal components: a colour a class, a marker a set.

    Shapes: each of sets is (vectors [R, D], labels [R]), vectors of one D; every vector is scaled to length 1.
    Errors: SpikingError for shapes that do not fit.

    >>> ax = embedding({"sight": (np.eye(3), [0, 1, 1]), "sound": (-np.eye(3), [0, 1, 1])})
    >>> sum(len(points.get_offsets()) for points in ax.collections)
    6
    """
    vectors = [_array(v, "embedding", 2).astype(np.float64) for v, _ in sets.values()]
    labels = [_array(of, "embedding", 1) for _, of in sets.values()]
    for name, v, of in zip(sets, vectors, labels):
        if v.ndim != 2 or v.shape[1] != vectors[0].shape[1] or of.shape != (len(v),):
            raise SpikingError(
                f"embedding: {name}: got shapes {list(v.shape)} and {list(of.shape)}; expected [R, {vectors[0].shape[1]}] and [R]."
            )
    ax = _axes(ax, (6.5, 5.0))
    unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in vectors]
    everything = np.concatenate(unit)
    centre = everything.mean(0)
    plane = np.linalg.svd(everything - centre, full_matrices=False)[2][:2].T
    classes = sorted(set(np.concatenate(labels).tolist()))
    for v, of, marker in zip(unit, labels, "ox^s" * len(unit)):
        at = (v - centre) @ plane
        for k, c in enumerate(classes):
            ax.scatter(at[of == c, 0], at[of == c, 1], s=14, marker=marker, c=f"C{k % 10}", linewidths=0.8, alpha=0.7)
    for k, c in enumerate(classes):
        ax.plot([], [], "s", color=f"C{k % 10}", label=f"{c:g}")
    for name, marker in zip(sets, "ox^s" * len(unit)):
        ax.plot([], [], marker, color=INK, label=name)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    ax.set(xlabel="first principal component", ylabel="second")
    if title:
        ax.set_title(title, fontsize=10)
    return ax


def firing_rates(rates: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Draw how active each layer is, as horizontal bars: spikes per neuron and step, 0…1.

    `rates` maps a layer's name to its rate, or to one rate per neuron, of which the mean is drawn and the 5…95 %
    range as a line; `trace.firing_rates` fits.

    >>> ax = firing_rates({"lif1": 0.25, "lif2": [0.0, 0.1, 0.2]})
    >>> [round(float(bar.get_width()), 6) for bar in ax.patches], [text.get_text() for text in ax.get_yticklabels()]
    ([0.25, 0.1], ['lif1', 'lif2'])
    """
    values = [np.atleast_1d(_array(rate, "firing_rates", 0)).astype(np.float64) for rate in rates.values()]
    ax = _axes(ax, (6.0, 0.45 * len(values) + 1.2))
    means = [float(v.mean()) if v.size else 0.0 for v in values]
    ax.barh(range(len(values)), means, color=BLUE, height=0.6)
    for row, v in enumerate(values):
        if v.size > 1:
            ax.plot(np.quantile(v, [0.05, 0.95]), [row, row], color=INK, linewidth=1.2)
    ax.set_yticks(range(len(values)), list(rates))
    ax.invert_yaxis()
    ax.set(xlabel="spikes per neuron and step", xlim=(0, None))
    return ax


def bands(
    x: Sequence[float],
    series: Mapping[str, Any],
    ax: Axes | None = None,
    *,
    log: bool = False,
    reference: float | None = None,
) -> Axes:
    """Draw repeated results over x: the mean as a line, what lies between the 5th and 95th percentile as a band.

    `log` spreads x by its logarithm, a 0 among it too; `reference` is a dashed line.
    Shapes: each of series [repeats, len(x)].
    Errors: SpikingError if a series has another number of columns.

    >>> ax = bands([1, 2, 3], {"pcm": [[0.9, 0.8, 0.7], [0.8, 0.7, 0.6]]})
    >>> [round(float(v), 2) for v in ax.lines[0].get_ydata()]
    [0.85, 0.75, 0.65]
    """
    ax = _axes(ax)
    for colour, (name, values) in zip((BLUE, ORANGE, INK, GREY) * len(series), series.items()):
        repeats = _array(values, "bands", 2).astype(np.float64)
        if repeats.shape[1] != len(x):
            raise SpikingError(f"bands: {name}: got {repeats.shape[1]} columns; expected {len(x)}, as x has.")
        low, high = np.percentile(repeats, [5, 95], axis=0)
        ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        ax.plot(x, repeats.mean(0), color=colour, marker="o", markersize=3.5, linewidth=1.4, label=name)
    if reference is not None:
        ax.axhline(reference, color=GREY, linestyle="--", linewidth=1.0)
    positive = [v for v in x if v > 0]
    if log and positive:
        ax.set_xscale("symlog", linthresh=min(positive))
        ax.set_xlim(left=min(min(x), -0.2 * min(positive)))
    if series:
        ax.legend(frameon=False, fontsize=8)
    return ax


def _axes(ax: Axes | None, size: tuple[float, float] = (6.0, 3.5)) -> Axes:
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    ax = Figure(figsize=size, layout="constrained").add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _array(x: Any, where: str, dims: int) -> np.ndarray:
    """x as an array with at least `dims` axes."""
    if hasattr(x, "detach"):
        x = x.detach().float().cpu().numpy()
    try:
        values = np.asarray(x)
        values = values if values.dtype.kind in "biuf" else values.astype(np.float64)
    except (TypeError, ValueError) as err:
        raise SpikingError(f"{where}: got {type(x).__name__}; expected numbers as a tensor or an array.") from err
    if values.ndim < dims:
        expected = {1: "[T] or [T, N]", 2: "[T, N]", 3: "[T, H, W] or [T, C, H, W]"}.get(dims, "numbers")
        raise SpikingError(f"{where}: got shape {list(values.shape)}; expected {expected}.")
    return values
