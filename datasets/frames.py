"""Events to frames [T, P, H, W]: by time or by number of events.

Two rules. Ours (`compat=None`) counts every event exactly once, in int32. `compat="tonic"` gives the result of tonic
1.7's ToFrame bit for bit, with what it loses: `time_bins` rounds the bin width down and closes no bin at the right,
so the last event and up to `time_bins` µs before it are gone; `event_bins` drops the last N mod n events; counts wrap
in int16.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from spiking.datasets import _kernels
from spiking.datasets._kernels import Framing
from spiking.datasets.events import Events, Sensor, sensor
from spiking.datasets.ragged import explain, output, positive, sources, window

from spiking.errors import SpikingError

RULES = ("time_bins", "time_window", "event_count", "event_bins")


@dataclass(frozen=True)
class ToFrames:
    """A transform from events (ours, or a structured array such as tonic's) to frames [T, P, H, W].

    Give exactly one rule:
      time_bins=n     n bins of equal width from the first event (or start_time) to the last (or end_time); each bin is
                      closed at the left, the last one at both sides.
      time_window=W   as many windows of W µs as cover the recording; the last may be cut short.
      event_count=c   c events a frame; the last may have fewer.
      event_bins=n    n frames of equally many events, give or take one.
    Frames sum to the number of events (with start_time or end_time: of those between them). No events: T is n, or 1.

    sensor_size: (width, height[, polarities]); None takes the events' own. One polarity counts ON and OFF together.
    clip: at most one event a pixel and frame.  dtype: int32 unless float32 or int16 is asked for.
    compat="tonic": tonic's ToFrame(n_time_bins=, time_window=, event_count=, n_event_bins=, overlap=,
    include_incomplete=, start_time=, end_time=), its losses included; int16, and float64 with H and W swapped for a
    recording without events.
    Errors: SpikingError for no rule or several, an unknown sensor, events outside it, options of the other mode.
    Oracle: datasets/_plain.py::frames_of, tonic_slices.

    >>> events = Events(t=[0, 4, 9], x=[0, 1, 1], y=[0, 0, 0], p=[1, 1, 0], sensor_size=(2, 1))
    >>> ToFrames(time_bins=2)(events).tolist()
    [[[[0, 0]], [[1, 1]]], [[[0, 1]], [[0, 0]]]]
    >>> int(ToFrames(time_bins=2, compat="tonic")(events).sum())
    2
    """

    time_bins: int | None = None
    time_window: int | None = None
    event_count: int | None = None
    event_bins: int | None = None
    sensor_size: tuple[int, int] | Sensor | None = None
    compat: str | None = None
    overlap: float = 0
    include_incomplete: bool = False
    start_time: int | None = None
    end_time: int | None = None
    clip: bool = False
    dtype: str | None = None

    def __post_init__(self) -> None:
        given = [rule for rule in RULES if getattr(self, rule) is not None]
        if len(given) != 1:
            raise SpikingError(
                f"ToFrames: got {' and '.join(given) or 'no rule'}; expected exactly one of {', '.join(RULES)}."
            )
        if self.compat not in (None, "tonic"):
            raise SpikingError(f'ToFrames.compat: got {self.compat!r}; expected None or "tonic".')
        value = getattr(self, given[0])
        if self.compat == "tonic" and given[0] == "time_window":
            if not value > 0:
                raise SpikingError(f"ToFrames.time_window: got {value!r}; expected more than 0 µs.")
        else:
            positive(
                value, f"ToFrames.{given[0]}", most=1 << 40 if given[0] in ("time_window", "event_count") else 1 << 20
            )
        if self.sensor_size is not None:
            sensor(self.sensor_size, "ToFrames")
        if self.compat is None:
            self._check_default(given[0])
        elif self.clip or self.dtype is not None:
            raise SpikingError(
                'ToFrames: got clip or dtype with compat="tonic"; expected neither. tonic counts in int16.'
            )
        else:
            self._check_tonic(given[0], value)

    def _check_default(self, rule: str) -> None:
        if self.overlap or self.include_incomplete:
            raise SpikingError(
                f"ToFrames: got overlap={self.overlap!r}, include_incomplete={self.include_incomplete!r}; "
                'expected neither where every event counts once. Pass compat="tonic" for tonic\'s slices.'
            )
        if (self.start_time is not None or self.end_time is not None) and rule not in ("time_bins", "time_window"):
            raise SpikingError(f"ToFrames: got start_time or end_time with {rule}; expected time_bins or time_window.")

    def _check_tonic(self, rule: str, value: Any) -> None:
        stride = value - self.overlap if rule in ("time_window", "event_count") else 1 - self.overlap
        if not stride > 0:
            limit = value if rule in ("time_window", "event_count") else 1
            raise SpikingError(f"ToFrames.overlap: got {self.overlap!r}; expected less than {limit}.")

    @cached_property
    def framing(self) -> Framing | None:
        """The rule as the batch functions know it; None where the number of frames depends on the recording."""
        bins = self.time_bins or self.event_bins
        if bins is None:
            return None
        tonic, limits = self.compat == "tonic", None
        if not tonic and (self.start_time is not None or self.end_time is not None):
            if self.start_time is None or self.end_time is None:
                return None
            limits = window((self.start_time, self.end_time), bins, "ToFrames: start_time, end_time")
        return Framing(bins, self.event_bins is not None, tonic, float(self.overlap), limits, self.clip)

    @cached_property
    def size(self) -> Sensor | None:
        """(width, height, polarities), None where the events have to say."""
        return None if self.sensor_size is None else sensor(self.sensor_size, "ToFrames")

    @cached_property
    def out_dtype(self) -> np.dtype:
        return np.dtype(np.int16 if self.compat == "tonic" else self.dtype or np.int32)

    def __call__(self, events: Any) -> np.ndarray:
        if not isinstance(events, Events):
            events = Events.from_structured(events, name="ToFrames")
        width, height, channels = self._sensor(events)
        if not len(events):
            n = self.time_bins or self.event_bins or 1
            shape = (n, channels, width, height) if self.compat == "tonic" else (n, channels, height, width)
            return np.zeros(shape, np.float64 if self.compat == "tonic" else self.out_dtype)
        framing = self.framing
        if framing is not None and not framing.tonic:
            return self._fixed(events, framing, (width, height, channels))
        starts, ends, events = self._slices(events)
        shape = (len(starts), channels, height, width)
        if self.compat == "tonic" and channels == 1 and len(np.unique(events.p)) > 1:
            raise SpikingError("ToFrames.sensor_size: got 1 polarity for events of both; expected 2, as tonic demands.")
        frames = output(shape, self.out_dtype, None, "ToFrames")
        if not _kernels.add_slices(frames, events.x, events.y, events.p, starts, ends, self.clip):
            raise self._outside(events, (width, height, channels))
        return frames

    def _sensor(self, events: Events) -> Sensor:
        if self.size is not None:
            return self.size
        if events.sensor_size is not None:
            return events.sensor_size
        if self.compat == "tonic" and len(events):
            return (*events.extent, len(np.unique(events.p)))
        raise SpikingError("ToFrames.sensor_size: got None for events that do not say; expected (width, height).")

    def _outside(self, events: Events, size: Sensor) -> SpikingError:
        try:
            Events(events.t, events.x, events.y, events.p, size).check("ToFrames")
        except SpikingError as err:
            return err
        return SpikingError("ToFrames: got times too far apart; expected a span times the number of bins below 2^63.")

    def _fixed(self, events: Events, framing: Framing, size: Sensor) -> np.ndarray:
        span = (int(events.t.min()), int(events.t.max())) if framing.window is None else framing.window
        window(span, framing.bins, "ToFrames: times")
        frames = output((1, framing.bins, *size[::-1]), self.out_dtype, None, "ToFrames")
        arrays, offsets = (events.t, events.x, events.y, events.p), np.array([0, len(events)])
        if _kernels.frames_from_arrays(arrays, offsets, np.zeros(1, np.int64), framing, size[:2], frames).any():
            raise self._outside(events, size)
        return frames[0]

    def _slices(self, events: Events) -> tuple[np.ndarray, np.ndarray, Events]:
        """First and one-past-last event of each frame, and the events these count."""
        tonic, n = self.compat == "tonic", len(events)
        if not tonic and self.time_window is not None and (np.diff(events.t) < 0).any():
            events = events.sorted()
        if tonic:
            starts, ends = self._tonic_slices(events.t)
        elif self.event_count is not None:
            starts = np.arange(0, n, self.event_count)
            ends = starts + self.event_count
        else:
            edges = self._window_edges(events.t)
            starts, ends = np.searchsorted(events.t, edges[:-1]), np.searchsorted(events.t, edges[1:])
        starts, ends = (np.ascontiguousarray(np.clip(at, 0, n), np.int64) for at in (starts, ends))
        return starts, ends, events

    def _window_edges(self, t: np.ndarray) -> np.ndarray:
        start = int(t[0]) if self.start_time is None else int(self.start_time)
        end = int(t[-1]) if self.end_time is None else int(self.end_time)
        if end < start:
            raise SpikingError(f"ToFrames: got start {start} µs after end {end} µs; expected start_time <= end_time.")
        if self.time_window is None:  # time_bins with one of its two ends given
            bins = self.time_bins or 1
            width = max(end - start, 1)
            return np.array([*(start + -(-i * width // bins) for i in range(bins)), end + 1])
        n = (end - start) // self.time_window + 1
        _kernels.check_room((n, 1), "ToFrames")
        edges = start + np.arange(n + 1) * self.time_window
        edges[-1] = end + 1
        return edges

    def _tonic_slices(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n, count = t.size, math.ceil if self.include_incomplete else math.floor
        if self.time_bins is not None:
            width = (t[-1] - t[0]) // self.time_bins * (1 + self.overlap)
            edges = np.arange(self.time_bins) * (width * (1 - self.overlap)) + t[0]
            return np.searchsorted(t, edges), np.searchsorted(t, edges + width)
        if self.event_bins is not None:
            events = int(n // self.event_bins * (1 + self.overlap))
            starts = np.arange(self.event_bins) * int(events * (1 - self.overlap))
            return starts, starts + events
        if self.event_count is not None:
            stride, events = self.event_count - self.overlap, min(self.event_count, n)
            starts = (np.arange(count((n - events) / stride) + 1) * stride).astype(int)
            return starts, starts + events
        assert self.time_window is not None
        stride = self.time_window - self.overlap
        start = t[0] if self.start_time is None else self.start_time
        end = t[-1] if self.end_time is None else self.end_time
        frames = max(count((end - start - self.time_window) / stride) + 1, 1)
        _kernels.check_room((frames, 1), "ToFrames")
        edges = np.arange(frames) * stride + start
        return np.searchsorted(t, edges), np.searchsorted(t, edges + self.time_window)


def frames_many(
    recordings: Any,
    to_frames: ToFrames,
    *,
    time_major: bool = False,
    threads: int = 1,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Frames [N, T, P, H, W] (time_major: [T, N, …]) of many N-MNIST recordings, straight from paths or bytes.

    One compiled pass a recording, no events in between; `threads` recordings at a time. The rule has to give the same
    number of frames for all: `time_bins` (with both start_time and end_time, or neither) or `event_bins`. out: an
    array to fill; reusing one saves the page faults of fresh memory.
    Errors: as `decode_bin`, naming the first recording that has one; SpikingError for another rule.

    >>> frames_many([bytes([3, 4, 0x80, 0, 9])], ToFrames(time_bins=2, sensor_size=(34, 34))).shape
    (1, 2, 2, 34, 34)
    """
    framing = to_frames.framing
    size = to_frames.size
    if framing is None or size is None:
        raise SpikingError(
            f"frames_many: got {to_frames}; expected time_bins (start_time and end_time both or neither) or "
            "event_bins, and sensor_size. Apply other rules to one recording at a time."
        )
    loaded, name = sources(recordings)
    shape = (framing.bins, len(loaded)) if time_major else (len(loaded), framing.bins)
    frames = output((*shape, *size[::-1]), to_frames.out_dtype, out, "frames_many")
    if frames.dtype != to_frames.out_dtype:
        raise SpikingError(f"frames_many: out: got {frames.dtype}; expected {to_frames.out_dtype}.")
    faults = _kernels.frames_from_sources(loaded, framing, frames, time_major, threads)
    if np.count_nonzero(faults):
        i = int(np.argmax(faults != 0))
        raise explain(loaded[i], int(faults[i]), name(i), size)
    return frames


def frames_from_bin(recording: Any, to_frames: ToFrames) -> np.ndarray:
    """Frames [T, P, H, W] of one N-MNIST recording, straight from its path or bytes. Errors: as `frames_many`."""
    return frames_many([recording], to_frames)[0]
