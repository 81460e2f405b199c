"""Decoding and framing: the compiled functions, or their plain numpy forms where no compiler was found."""

from __future__ import annotations

import importlib
import math
import os
from typing import Any, NamedTuple

import numpy as np
from spiking.datasets import _plain

from spiking.errors import SpikingError


def _module() -> Any:
    """The compiled module, None where the package was built without it; one that is there but broken raises."""
    try:
        return importlib.import_module("spiking.cuda_kernels._cpu")
    except ModuleNotFoundError:
        return None


_compiled = _module()
_HOME = os.getpid()


def _allowed(threads: int) -> int:
    """`threads`, but one in a forked child: OpenMP's threads did not come along, and waiting for them would never end."""
    return min(threads, 256) if os.getpid() == _HOME else 1


FAULTS = ("", "cut", "backwards", "outside", "span", "empty")  # the numbers of Fault in decode.h


class Framing(NamedTuple):
    """How a whole recording becomes a fixed number of frames. `tonic` and `overlap` follow tonic's slicers."""

    bins: int
    by_events: bool = False
    tonic: bool = False
    overlap: float = 0.0
    window: tuple[int, int] | None = None
    clip: bool = False


class Packed(NamedTuple):
    """Many recordings in one buffer: recording i is bytes[offsets[i]:offsets[i + 1]]."""

    bytes: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        return self.bytes[self.offsets[index] : self.offsets[index + 1]]


Sources = list[bytes] | Packed


def decode_words(raw: np.ndarray, width: int = 0, height: int = 0) -> tuple[_plain.Arrays, int, int]:
    """((t, x, y, p), first event that runs backwards, first event outside) of whole words; -1: none."""
    if _compiled is None:
        t, x, y, p = _plain.decode_words(raw)
        return (t, x, y, p), _plain.first_backwards(t), _plain.first_outside(x, y, p, width, height)
    words = raw.size // 5
    t, x, y, p = (
        np.empty(words, np.int64),
        np.empty(words, np.int16),
        np.empty(words, np.int16),
        np.empty(words, np.uint8),
    )
    n, backwards, outside, _ = _compiled.decode_bin(raw, width, height, t, x, y, p)
    if n != words:
        t, x, y, p = t[:n].copy(), x[:n].copy(), y[:n].copy(), p[:n].copy()
    return (t, x, y, p), backwards, outside


def scan(arrays: _plain.Arrays, width: int = 0, height: int = 0) -> tuple[int, int]:
    """(first event that runs backwards, first event outside) of contiguous arrays; -1: none."""
    t, x, y, p = arrays
    if _compiled is None:
        return _plain.first_backwards(t), _plain.first_outside(x, y, p, width, height)
    return _compiled.scan_events(t, x, y, p, width, height)


def decode_sources(
    sources: Sources, width: int, height: int, threads: int
) -> tuple[_plain.Arrays, np.ndarray, np.ndarray]:
    """((t int32, x, y, p) of all recordings one after another, events of each, fault of each)."""
    status = np.zeros((len(sources), 2), np.int64)
    if _compiled is None:
        return _decode_plain(sources, width, height, status)
    lengths = np.diff(sources.offsets) if isinstance(sources, Packed) else np.array([len(s) for s in sources], np.int64)
    words = lengths // 5
    total = int(words.sum())
    arrays = np.empty(total, np.int32), np.empty(total, np.int16), np.empty(total, np.int16), np.empty(total, np.uint8)
    if isinstance(sources, Packed):
        _compiled.decode_buffer(*sources, width, height, *arrays, status, _allowed(threads))
    else:
        _compiled.decode_list(sources, width, height, *arrays, status, _allowed(threads))
    events = status[:, 0]
    if (events != words).any():  # overflow words left gaps at the ends
        kept = np.concatenate([s + np.arange(n) for s, n in zip(np.cumsum(words) - words, events, strict=True)])
        arrays = tuple(a[kept] for a in arrays)  # type: ignore[assignment]
    return arrays, events, status[:, 1]


def _decode_plain(
    sources: Sources, width: int, height: int, status: np.ndarray
) -> tuple[_plain.Arrays, np.ndarray, np.ndarray]:
    parts = []
    for i in range(len(sources)):
        raw = np.frombuffer(sources[i], np.uint8)
        t, x, y, p = _plain.decode_words(raw)
        faults = {
            "cut": raw.size % 5 != 0,
            "empty": t.size == 0,
            "outside": _plain.first_outside(x, y, p, width, height) >= 0,
            "span": bool(t.size) and t.max() > np.iinfo(np.int32).max,
            "backwards": _plain.first_backwards(t) >= 0,
        }
        status[i] = t.size, FAULTS.index(next((name for name, found in faults.items() if found), ""))
        parts.append((t.astype(np.int32), x, y, p))
    empty = (np.empty(0, np.int32), np.empty(0, np.int16), np.empty(0, np.int16), np.empty(0, np.uint8))
    t, x, y, p = (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else empty
    return (t, x, y, p), status[:, 0], status[:, 1]


def frames_from_sources(
    sources: Sources, framing: Framing, out: np.ndarray, time_major: bool, threads: int
) -> np.ndarray:
    """Fill out [N, T, P, H, W] (or [T, N, …]) straight from the bytes; returns each recording's fault."""
    channels, height, width = out.shape[2:]
    status = np.zeros(len(sources), np.int64)
    if _compiled is not None:
        run = _compiled.frames_buffer if isinstance(sources, Packed) else _compiled.frames_list
        first = sources if isinstance(sources, Packed) else (sources,)
        bins, by_events, tonic, overlap, window, clip = framing
        run(
            *first,
            bins,
            by_events,
            tonic,
            overlap,
            window,
            clip,
            time_major,
            width,
            height,
            channels,
            out,
            status,
            _allowed(threads),
        )
        return status
    out[...] = 0
    for i in range(len(sources)):
        raw = np.frombuffer(sources[i], np.uint8)
        t, x, y, p = _plain.decode_words(raw)
        fault = (
            "cut" if raw.size % 5
            else "outside" if _plain.first_outside(x, y, p, width, height) >= 0
            else "backwards" if _plain.first_backwards(t) >= 0
            else "" if t.size else "empty"
        )  # fmt: skip
        status[i] = FAULTS.index(fault)
        if fault:
            continue
        frames = out[:, i] if time_major else out[i]
        if framing.tonic:
            slices = _plain.tonic_slices(t, framing.bins, framing.by_events, framing.overlap)
            _plain.add_slices(frames, x, y, p, *slices, framing.clip)
        else:
            _plain.frames_of(
                (t, x, y, p), frames, by_events=framing.by_events, window=framing.window, clip=framing.clip
            )
    return status


def frames_from_arrays(
    arrays: _plain.Arrays,
    offsets: np.ndarray,
    indices: np.ndarray,
    framing: Framing,
    sensor: tuple[int, int],
    out: np.ndarray,
    *,
    affine: np.ndarray | None = None,
    warp: np.ndarray | None = None,
    time_major: bool = False,
    threads: int = 1,
) -> np.ndarray:
    """Fill out [N, T, P, H, W] (or [T, N, …]) with recordings `indices` of a ragged store; returns each one's fault."""
    channels, height, width = out.shape[2:]
    status = np.zeros(len(indices), np.int64)
    if _compiled is not None:
        bins, by_events, _, _, window, clip = framing
        _compiled.frames_ragged(
            *arrays, offsets, indices, bins, by_events, window, affine, warp,
            0 if warp is None else warp.shape[-1], clip, time_major, *sensor, width, height,
            channels, out, status, _allowed(threads),
        )  # fmt: skip
        return status
    out[...] = 0
    for i, which in enumerate(indices):
        part = slice(int(offsets[which]), int(offsets[which + 1]))
        t, x, y, p = (a[part] for a in arrays)
        beyond = affine is None and (width < sensor[0] or height < sensor[1])
        if t.size and (beyond or _plain.first_outside(x, y, p, *sensor) >= 0):
            status[i] = FAULTS.index("outside")
            continue
        frames, m = out[:, i] if time_major else out[i], None if affine is None else affine[i]
        field = None if warp is None else warp[i]
        _plain.frames_of(
            (t, x, y, p),
            frames,
            by_events=framing.by_events,
            window=framing.window,
            affine=m,
            warp=field,
            clip=framing.clip,
        )
    return status


def add_slices(
    frames: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray, starts: np.ndarray, ends: np.ndarray, clip: bool
) -> bool:
    """Fill frames [T, P, H, W] with events [starts[i], ends[i]); False where an event lies outside."""
    channels, height, width = frames.shape[1:]
    if _compiled is not None:
        return _compiled.frames_slices(x, y, p, starts, ends, clip, width, height, channels, frames)
    if _plain.first_outside(x, y, p, width, height) >= 0:
        return False
    frames[...] = 0
    _plain.add_slices(frames, x, y, p, starts, ends, clip)
    return True


def check_room(shape: tuple[int, ...], where: str) -> None:
    """Refuse a result that no machine of ours holds, before anything is allocated."""
    if math.prod(shape) > 1 << 33:
        raise SpikingError(
            f"{where}: got settings that make an array of shape {list(shape)}; expected at most 2^33 values. "
            "Use fewer or longer bins."
        )
