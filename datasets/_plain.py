"""The compiled functions in plain numpy: the oracle of their tests, and what runs where no compiler was found."""

from __future__ import annotations

import numpy as np

OVERFLOW_ROW = 240
OVERFLOW_STEP = 1 << 13

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Window = tuple[int, int] | None


def decode_words(raw: np.ndarray) -> Arrays:
    """(t int64, x int16, y int16, p uint8) of whole 5-byte words; y == 240 shifts every later time by 2^13 µs."""
    words = raw[: raw.size // 5 * 5].reshape(-1, 5)
    bits = words.astype(np.int64)
    t = (bits[:, 2] & 127) << 16 | bits[:, 3] << 8 | bits[:, 4]
    overflow = words[:, 1] == OVERFLOW_ROW
    t += np.cumsum(overflow) * OVERFLOW_STEP
    kept = ~overflow
    return t[kept], words[kept, 0].astype(np.int16), words[kept, 1].astype(np.int16), words[kept, 2] >> 7


def first_outside(x: np.ndarray, y: np.ndarray, p: np.ndarray, width: int, height: int) -> int:
    """Index of the first event beyond the sensor (or whose polarity is not 0 or 1), -1 where there is none."""
    wrong = (x < 0) | (y < 0) | (p > 1) | (x >= (width or 32768)) | (y >= (height or 32768))
    return int(np.argmax(wrong)) if wrong.any() else -1


def first_backwards(t: np.ndarray) -> int:
    """Index of the first event whose time is negative or below its predecessor's, -1 where there is none."""
    wrong = np.diff(t, prepend=t.dtype.type(0)) < 0
    return int(np.argmax(wrong)) if wrong.any() else -1


def time_bin(t: np.ndarray, bins: int, start: int, end: int) -> np.ndarray:
    """Bin of each time among `bins` equal ones over [start, end], the last closed at both sides; -1 outside."""
    index = np.minimum((t.astype(np.int64) - start) * bins // max(end - start, 1), bins - 1)
    return np.where((t >= start) & (t <= end), index, -1)


def event_bin(n: int, bins: int) -> np.ndarray:
    """Bin of each of n events when all bins get the same number of them, give or take one."""
    return np.arange(n) * bins // max(n, 1)


def tonic_slices(t: np.ndarray, bins: int, by_events: bool, overlap: float) -> tuple[np.ndarray, np.ndarray]:
    """First and one-past-last event of each frame by tonic's SliceByTimeBins or SliceByEventBins."""
    if by_events:
        count = int(t.size // bins * (1 + overlap))
        starts = np.arange(bins) * int(count * (1 - overlap))
        return starts, starts + count
    width = (t[-1] - t[0]) // bins * (1 + overlap)
    edges = np.arange(bins) * (width * (1 - overlap)) + t[0]
    return np.searchsorted(t, edges), np.searchsorted(t, edges + width)


def mapped(
    affine: np.ndarray, warp: np.ndarray | None, x: np.ndarray, y: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, ...]:
    """Nearest pixel (u, v) of each event under the 2×3 map and the warp [2, K, K], and whether it lies inside width × height."""
    u = affine[0, 0] * x + affine[0, 1] * y + affine[0, 2]
    v = affine[1, 0] * x + affine[1, 1] * y + affine[1, 2]
    if warp is not None:
        knots = warp.shape[1]
        gx = np.clip(u, 0, max(width - 1, 1)) / max(width - 1, 1) * (knots - 1)
        gy = np.clip(v, 0, max(height - 1, 1)) / max(height - 1, 1) * (knots - 1)
        i, j = np.minimum(gx.astype(np.int64), knots - 2), np.minimum(gy.astype(np.int64), knots - 2)
        fx, fy = gx - i, gy - j
        du, dv = (
            (f[j, i] * (1 - fx) + f[j, i + 1] * fx) * (1 - fy) + (f[j + 1, i] * (1 - fx) + f[j + 1, i + 1] * fx) * fy
            for f in warp
        )
        u, v = u + du, v + dv
    u, v = np.floor(u + 0.5), np.floor(v + 0.5)
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    return np.where(inside, u, 0).astype(np.int64), np.where(inside, v, 0).astype(np.int64), inside


def add_events(
    frames: np.ndarray, bins: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray, clip: bool = False
) -> None:
    """Count events into frames [T, P, H, W]; `bins` holds each event's frame, -1 drops it."""
    n_bins, channels, height, width = frames.shape
    kept = bins >= 0
    channel = p[kept].astype(np.int64) if channels > 1 else 0
    flat = ((bins[kept] * channels + channel) * height + y[kept]) * width + x[kept]
    counts = np.bincount(flat, minlength=n_bins * channels * height * width).reshape(frames.shape)
    frames += (np.minimum(counts, 1) if clip else counts).astype(frames.dtype)


def add_slices(
    frames: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    p: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    clip: bool = False,
) -> None:
    """Count events [starts[i], ends[i]) into frame i; slices may overlap."""
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        part = slice(start, max(start, end))
        add_events(frames[i : i + 1], np.zeros(len(x[part]), np.int64), x[part], y[part], p[part], clip)


def frames_of(
    arrays: Arrays,
    frames: np.ndarray,
    *,
    by_events: bool = False,
    window: Window = None,
    affine: np.ndarray | None = None,
    warp: np.ndarray | None = None,
    clip: bool = False,
) -> None:
    """Count one recording into frames [T, P, H, W] by the default rule: every event (of the window) once."""
    t, x, y, p = arrays
    if not t.size:
        return
    bins = len(frames)
    index = event_bin(t.size, bins) if by_events else time_bin(t, bins, *(window or (int(t.min()), int(t.max()))))
    if affine is None:
        add_events(frames, index, x, y, p, clip)
        return
    u, v, inside = mapped(affine, warp, x, y, frames.shape[3], frames.shape[2])
    add_events(frames, np.where(inside, index, -1), u, v, p, clip)
