"""What every set of event sound offers: labelled recordings of a cochlea's channels, and how they become frames.

Two ways to frames [T, N, channels]. "chunk" squeezes every recording into at most T frames, as the published liquid state machine does:

    slots of 1 ms, D = ceil(max(1000·t)) + 1 of them; c = ceil(D / T) slots a frame; frame of an event = floor(1000·t) // c

so that the width of a frame jumps with the length of the recording, and tempo is lost. "fixed" gives every frame `bin_ms`.
Source: Lin et al. 2025 (doi 10.1038/s43588-024-00751-z), its published script.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from spiking.datasets.events import Events
from spiking.datasets.labelled import LabelledSet

from spiking.errors import SpikingError

MICRO = 1e6  # µs in a second
MODES = ("chunk", "fixed")


def chunk_of(times: np.ndarray, steps: int) -> tuple[np.ndarray, int]:
    """The frame of each event and the milliseconds of a frame, so that all events lie in at most `steps` frames; times in seconds.

    >>> chunk_of(np.array([0.0, 0.64]), 129)
    (array([  0, 128]), 5)
    """
    if not len(times):
        return np.zeros(0, np.int64), 1
    milliseconds = 1000 * np.asarray(times, np.float64)
    slots = math.ceil(milliseconds.max()) + 1
    width = math.ceil(slots / steps)
    return np.floor(milliseconds).astype(np.int64) // width, width


class AudioSet(LabelledSet):
    """Labelled recordings of event sound: `set[i]` is (transform(events), label).

    Events have x = channel, y = 0, p = 1 and times in µs. `labels` int64 [N]; `speakers` [N], text, empty where unknown; `classes`;
    `n_channels`. `frames()` gives all recordings as one array, `describe()` one sentence on where they come from.
    """

    n_channels: int
    speakers: np.ndarray
    simulated: bool = False  # whether nobody spoke

    def __init__(self, transform: Callable[[Any], Any] | None, target_transform: Callable[[int], Any] | None) -> None:
        self.transform, self.target_transform = transform, target_transform

    @abstractmethod
    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Times in seconds (float64, never decreasing) and channels (int16) of one recording."""

    def item(self, index: int) -> Events:
        times, channels = self.arrays(index)
        t = np.floor(times * MICRO).astype(np.int64)
        return Events(t, channels, np.zeros_like(channels), np.ones(len(t), np.uint8), (self.n_channels, 1, 1))

    def frames(
        self, steps: int = 129, *, mode: str = "chunk", bin_ms: float = 8.0, binary: bool = True, indices: Any = None
    ) -> np.ndarray:
        """Frames [steps, N, channels] float32 of all recordings, or of `indices`; binary, or counts of events.

        mode "fixed": frames of `bin_ms` from time 0 on; what comes after the last one is left out.
        Errors: SpikingError for another mode, or numbers out of range.
        """
        if mode not in MODES:
            raise SpikingError(f"frames.mode: got {mode!r}; expected chunk or fixed.")
        if steps < 1 or not bin_ms > 0:
            raise SpikingError(f"frames: got steps={steps}, bin_ms={bin_ms}; expected a frame or more, of some length.")
        which = np.arange(len(self)) if indices is None else np.asarray(indices)
        out = np.zeros((steps, len(which), self.n_channels), np.float32)
        for column, index in enumerate(which):
            times, channels = self.arrays(int(index))
            if mode == "chunk":
                frame, _ = chunk_of(times, steps)
            else:
                frame = np.floor(1000 * times / bin_ms).astype(np.int64)
            inside = frame < steps
            np.add.at(out[:, column], (frame[inside], channels[inside]), 1.0)
        return np.minimum(out, 1.0, out=out) if binary else out
