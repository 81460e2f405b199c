"""Many recordings in one store: what training bins anew every epoch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from spiking.datasets import _kernels
from spiking.datasets._kernels import FAULTS, Framing, Packed, Sources
from spiking.datasets.events import Events, Sensor, _trusted, decode_bin, read_bytes, sensor

from spiking.errors import SpikingError


class RaggedEvents:
    """Recordings one after another: recording i is t[offsets[i]:offsets[i + 1]], and so on.

    Fields: t int32 (µs), x, y int16, p uint8, all [events]; offsets int64 [N + 1]; labels int64 [N] or None;
    sensor_size (width, height, polarities). Times never decrease within a recording.
    `store[i]` gives one recording as Events; `store.select(indices)` some of them as a store of their own.

    >>> store = RaggedEvents.from_events([Events([1, 5], [0, 1], [0, 0], [1, 0], (2, 1))], labels=[7])
    >>> store.frames(time_bins=2).shape
    (1, 2, 2, 1, 2)
    """

    __slots__ = ("labels", "offsets", "p", "sensor_size", "t", "x", "y")

    def __init__(
        self,
        t: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
        p: np.ndarray,
        offsets: Any,
        sensor_size: tuple[int, int] | Sensor,
        labels: Any = None,
    ) -> None:
        self.t, self.x = np.ascontiguousarray(t, np.int32), np.ascontiguousarray(x, np.int16)
        self.y, self.p = np.ascontiguousarray(y, np.int16), np.ascontiguousarray(p, np.uint8)
        self.offsets = np.ascontiguousarray(offsets, np.int64)
        self.sensor_size = sensor(sensor_size, "RaggedEvents")
        self.labels = None if labels is None else np.ascontiguousarray(labels, np.int64)
        o = self.offsets
        if (
            o.ndim != 1
            or not o.size
            or o[0] != 0
            or (np.diff(o) < 0).any()
            or any(a.shape != (o[-1],) for a in self.arrays)
        ):
            raise SpikingError(
                f"RaggedEvents.offsets: got {o.size} numbers ending with {o[-1] if o.size else None} "
                f"for {len(self.t)} events; expected 0, then the end of each recording, never decreasing."
            )
        if self.labels is not None and len(self.labels) != len(self):
            raise SpikingError(
                f"RaggedEvents.labels: got {len(self.labels)} for {len(self)} recordings; expected one each."
            )

    @classmethod
    def from_events(cls, recordings: Iterable[Events], labels: Any = None, sensor_size: Any = None) -> RaggedEvents:
        """A store of the given recordings. Errors: SpikingError for times beyond 2^31 µs or no sensor size."""
        parts = list(recordings)
        sensor_size = sensor_size or (parts[0].sensor_size if parts else None)
        if sensor_size is None:
            raise SpikingError(
                "RaggedEvents.sensor_size: got None, and the events do not say; expected (width, height)."
            )
        size = sensor(sensor_size, "RaggedEvents")
        for i, events in enumerate(parts):
            _trusted(events.t, events.x, events.y, events.p, size).check(f"recording {i}")
            if len(events) and int(events.t[-1]) > np.iinfo(np.int32).max:
                raise SpikingError(
                    f"recording {i}: got t={int(events.t[-1])} µs; expected at most 2^31 - 1. Subtract its start."
                )
        columns = [np.concatenate([getattr(e, f) for e in parts]) if parts else np.empty(0, np.int32) for f in "txyp"]
        t, x, y, p = columns
        return cls(t, x, y, p, np.cumsum([0, *(len(e) for e in parts)]), size, labels)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.t, self.x, self.y, self.p

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Events:
        if not -len(self) <= index < len(self):
            raise IndexError(f"recording {index} of {len(self)}")
        i = index % len(self)
        part = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        return _trusted(self.t[part].astype(np.int64), self.x[part], self.y[part], self.p[part], self.sensor_size)

    def __repr__(self) -> str:
        return f"RaggedEvents({len(self):,} recordings, {len(self.t):,} events, sensor {self.sensor_size})"

    def select(self, indices: Any) -> RaggedEvents:
        """The given recordings, in the given order, as a store of their own."""
        which = self._indices(indices)
        starts, lengths = self.offsets[which], np.diff(self.offsets)[which]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        at = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        labels = None if self.labels is None else self.labels[which]
        return RaggedEvents(self.t[at], self.x[at], self.y[at], self.p[at], offsets, self.sensor_size, labels)

    @classmethod
    def concatenate(cls, stores: Sequence[RaggedEvents]) -> RaggedEvents:
        """The recordings of several stores of one sensor, one store after another."""
        if not stores or len({s.sensor_size for s in stores}) != 1:
            raise SpikingError(
                f"RaggedEvents.concatenate: got sensors {[s.sensor_size for s in stores]}; "
                "expected stores of one sensor."
            )
        t, x, y, p = (np.concatenate([getattr(s, f) for s in stores]) for f in "txyp")
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(s.offsets) for s in stores]))])
        labels = [s.labels for s in stores if s.labels is not None]
        joined = np.concatenate(labels) if len(labels) == len(stores) else None
        return cls(t, x, y, p, offsets, stores[0].sensor_size, joined)

    def _indices(self, indices: Any) -> np.ndarray:
        which = np.arange(len(self)) if indices is None else np.asarray(indices)
        if which.dtype == bool and which.shape == (len(self),):
            which = np.flatnonzero(which)
        if which.ndim != 1 or (which.size and which.dtype.kind not in "iu"):
            raise SpikingError(
                f"RaggedEvents: got indices of {which.dtype}, shape {list(which.shape)}; "
                "expected whole numbers or a mask."
            )
        which = np.ascontiguousarray(which, np.int64)
        if which.size and (which.min() < 0 or which.max() >= len(self)):
            raise SpikingError(
                f"RaggedEvents: got recording {int(which.max() if which.max() >= len(self) else which.min())}; "
                f"expected 0 to {len(self) - 1}."
            )
        return which

    def frames(
        self,
        indices: Any = None,
        *,
        time_bins: int,
        affine: Any = None,
        warp: Any = None,
        t_window: tuple[int, int] | None = None,
        out_size: tuple[int, int] | None = None,
        dtype: Any = np.float32,
        clip: bool = False,
        merge_polarity: bool = False,
        by_events: bool = False,
        time_major: bool = False,
        threads: int = 1,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Frames [N, T, P, H, W] of the given recordings (all of them if None), each through its own map of the pixels.

            (x', y') = A·(x, y, 1), rounded to the nearest pixel;   frames[n, bin(t), p, y', x'] += 1

        affine: A as [2, 3] for all or [N, 2, 3]; events that it sends outside are dropped.  warp: [N, 2, K, K]
        displacements in pixels, added after the map: (Δx', Δy') at K×K knots spread evenly over the frame, bilinear
        between them.  t_window: (start, end) in µs, both included, else first to last event; events outside are dropped.
        Bins have equal width, the last one is closed at both sides; `by_events` gives every bin the same number of
        events instead.  out_size: (width, height), else the sensor's.  clip: at most one event a pixel and bin.
        merge_polarity: P = 1.  time_major: [T, N, P, H, W]. dtype: float32, int32 or int16 (wraps above 32,767).
        threads: over recordings.  out: an array to fill, else a new one.
        Errors: SpikingError for a wrong shape of `affine` or `out`, an empty window, a wrong index.
        Oracle: datasets/_plain.py::frames_of.
        """
        which = self._indices(indices)
        width, height, polarities = self.sensor_size
        channels = 1 if merge_polarity else polarities
        to_width, to_height = out_size or (width, height)
        bins = positive(time_bins, "RaggedEvents.frames: time_bins")
        maps = None
        if affine is not None:
            maps = np.asarray(affine, np.float64)
            if maps.shape not in ((2, 3), (len(which), 2, 3)):
                raise SpikingError(
                    f"RaggedEvents.frames: affine: got shape {list(maps.shape)}; "
                    f"expected [2, 3] or [{len(which)}, 2, 3]."
                )
            maps = np.ascontiguousarray(np.broadcast_to(maps, (len(which), 2, 3)))
        field = None
        if warp is not None:
            field = np.ascontiguousarray(warp, np.float64)
            knots = field.shape[-1] if field.ndim == 4 else 0
            if maps is None or knots < 2 or field.shape != (len(which), 2, knots, knots):
                raise SpikingError(
                    f"RaggedEvents.frames: warp: got shape {list(field.shape)}; expected [{len(which)}, 2, K, K] with K >= 2, "
                    "beside an affine map."
                )
        if maps is None and (to_width < width or to_height < height):
            raise SpikingError(
                f"RaggedEvents.frames: out_size: got {to_width}×{to_height} for a sensor of {width}×{height}; "
                "expected at least that. Give an affine map that shrinks."
            )
        shape = (bins, len(which)) if time_major else (len(which), bins)
        frames = output((*shape, channels, to_height, to_width), dtype, out, "RaggedEvents.frames")
        framing = Framing(
            bins, by_events, window=window(t_window, bins, "RaggedEvents.frames: t_window"), clip=bool(clip)
        )
        status = _kernels.frames_from_arrays(
            self.arrays, self.offsets, which, framing, (width, height), frames,
            affine=maps, warp=field, time_major=time_major, threads=threads,
        )  # fmt: skip
        if np.count_nonzero(status):
            i = int(which[np.argmax(status != 0)])
            self[i].check(f"recording {i}")
        return frames


def positive(value: Any, where: str, most: int = 1 << 20) -> int:
    """A whole number from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 1 <= value <= most:
        raise SpikingError(f"{where}: got {value!r}; expected a whole number from 1 to {most}.")
    return int(value)


def window(value: Any, bins: int, where: str) -> tuple[int, int] | None:
    """(start, end) in µs that `bins` bins can divide exactly in 63 bits."""
    if value is None:
        return None
    try:
        start, end = (int(v) for v in value)
    except (TypeError, ValueError) as err:
        raise SpikingError(f"{where}: got {value!r}; expected (start, end) in µs.") from err
    if not (-(1 << 62) < start <= end < 1 << 62 and (end - start) * (bins + 1) < 1 << 63):
        raise SpikingError(f"{where}: got ({start}, {end}); expected start <= end, in µs.")
    return start, end


def output(shape: tuple[int, ...], dtype: Any, out: np.ndarray | None, where: str) -> np.ndarray:
    """An array for frames: `out` if it fits, else a new one."""
    wanted = np.dtype(dtype if out is None else out.dtype)
    if wanted not in (np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.int16)):
        raise SpikingError(f"{where}: dtype: got {wanted}; expected float32, int32 or int16.")
    if out is None:
        _kernels.check_room(shape, where)
        return np.empty(shape, wanted)
    if out.shape != shape or not out.flags.c_contiguous:
        raise SpikingError(f"{where}: out: got shape {list(out.shape)}; expected {list(shape)}, contiguous.")
    return out


def sources(recordings: Any) -> tuple[Sources, Any]:
    """Bytes of every recording (paths are read), and a function giving recording i's name."""
    if isinstance(recordings, Packed):
        return recordings, lambda i: f"recording {i}"
    items = list(recordings)
    loaded = [
        read_bytes(item) if isinstance(item, (str, os.PathLike)) else item if isinstance(item, bytes) else bytes(item)
        for item in items
    ]
    return loaded, lambda i: os.fspath(items[i]) if isinstance(items[i], (str, os.PathLike)) else f"recording {i}"


def explain(source: Any, fault: int, name: str, size: Any) -> SpikingError:
    """The error of one recording that a batch call refused; told by decoding it alone."""
    try:
        events = decode_bin(source, sensor_size=size, name=name)
    except SpikingError as err:
        return err
    last = int(events.t[-1]) if len(events) else 0
    return SpikingError(
        f"{name}: got times up to {last} µs ({FAULTS[fault]}); expected at most 2^31 - 1 µs. Read it alone."
    )


def decode_many(
    recordings: Any, *, sensor_size: tuple[int, int] | Sensor = (34, 34), labels: Any = None, threads: int = 1
) -> RaggedEvents:
    """All recordings (paths, or bytes in the N-MNIST layout) decoded into one store, `threads` at a time.

    Errors: as `decode_bin`, for the first recording that has one, by its path or number.

    >>> decode_many([bytes([3, 4, 0x80, 0, 9]), bytes([1, 2, 0, 0, 5, 1, 3, 0, 0, 6])])
    RaggedEvents(2 recordings, 3 events, sensor (34, 34, 2))
    """
    size = sensor(sensor_size, "decode_many")
    loaded, name = sources(recordings)
    arrays, events, faults = _kernels.decode_sources(loaded, size[0], size[1], threads)
    if np.count_nonzero(faults):
        i = int(np.argmax(faults != 0))
        raise explain(loaded[i], int(faults[i]), name(i), size)
    return RaggedEvents(*arrays, np.concatenate([[0], np.cumsum(events)]), size, labels)
