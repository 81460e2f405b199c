"""What every set of labelled N-MNIST recordings offers, whether a camera made them or a simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from spiking.datasets.cache import Stored
from spiking.datasets.events import Events, Sensor, _trusted, decode_bin
from spiking.datasets.labelled import LabelledSet
from spiking.datasets.ragged import RaggedEvents, decode_many

SACCADE = 105_000  # µs; there are three of them
FIRST_SACCADE = 100_000  # µs, where tonic's first_saccade_only cuts
DOI = "10.17632/468j46mzdv.1"
HOW_TO_GET = (
    "Download train.zip and test.zip by hand from the N-MNIST record, data.mendeley.com/datasets/468j46mzdv/1 "
    f"(DOI {DOI}), put both into one folder and name it."
)


class RecordingSet(LabelledSet):
    """Labelled recordings: `set[i]` is (transform(events), label).

    `labels` int64 [N], `ids` int64 [N] (numbers in the original order), `classes`, `sensor_size`, `simulated`;
    `events()` gives all recordings as RaggedEvents, `describe()` one sentence on where they come from.
    """

    classes: tuple[str, ...] = tuple("0123456789")
    sensor_size: Sensor = (34, 34, 2)
    simulated: bool

    def __init__(
        self,
        stored: Stored,
        *,
        transform: Callable[[Any], Any] | None,
        target_transform: Callable[[int], Any] | None,
        structured: bool,
        first_saccade_only: bool,
        stabilize: bool,
    ) -> None:
        self.stored, self.labels = stored, stored.labels
        self.transform = transform
        self.target_transform = target_transform
        self.structured = structured
        self.first_saccade_only = first_saccade_only
        self.stabilize = stabilize

    @property
    def ids(self) -> np.ndarray:
        return self.stored.ids

    def item(self, index: int) -> Any:
        events = self.recording(index)
        return events.to_structured() if self.structured else events

    def recording(self, index: int) -> Events:
        """Events of one recording, cut or stabilised as the set was asked to, before any transform."""
        events = decode_bin(
            self.stored.recordings[index], sensor_size=self.sensor_size, name=f"recording {self.ids[index]}"
        )
        if self.first_saccade_only:
            events = events[: int(np.searchsorted(events.t, FIRST_SACCADE))]
        return stabilized(events) if self.stabilize else events

    def events(self, threads: int = 1) -> RaggedEvents:
        """All recordings with their labels in one store, `threads` decoded at a time."""
        if self.first_saccade_only or self.stabilize:
            parts = [self.recording(i) for i in range(len(self))]
            return RaggedEvents.from_events(parts, self.labels, self.sensor_size)
        return decode_many(self.stored.recordings, sensor_size=self.sensor_size, labels=self.labels, threads=threads)


def stabilized(events: Events) -> Events:
    """The same events with the motion of the three saccades taken out, so that the digit stands still; 34×34 pixels.

        x + 4 − 3.5u, y + 2 − 7u;   x + 0.5 − 3.5u, y − 5 + 7u;   x − 3 + 7u, y + 2     (u = (t − start) / 105 ms)

    Rounded half to even; what lay outside before rounding is dropped. Source: tonic's `stabilize`, from the authors'
    code.
    """
    t = events.t.astype(np.float64)
    second, third = (events.t > SACCADE) & (events.t <= 2 * SACCADE), events.t > 2 * SACCADE
    # The order of the operations is tonic's, so that halves round as there.
    x, y = 4 + events.x.astype(np.float64), 2 + events.y.astype(np.float64)
    late, later = t - SACCADE, t - 2 * SACCADE
    x = np.where(
        third, x - 7 + 7 * later / SACCADE, np.where(second, x - 3.5 - 3.5 * late / SACCADE, x - 3.5 * t / SACCADE)
    )
    y = np.where(third, y, np.where(second, y - 7 + 7 * late / SACCADE, y - 7 * t / SACCADE))
    kept = (x >= 0) & (y >= 0) & (x <= 33) & (y <= 33)
    rounded_x, rounded_y = np.round(x[kept]).astype(np.int16), np.round(y[kept]).astype(np.int16)
    return _trusted(events.t[kept], rounded_x, rounded_y, events.p[kept], (34, 34, 2))
