"""From event sound to frames: each epoch bins the recordings anew, under another tempo, tract and colour of the voice."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spiking.models.ntidigits.config import FrameConfig
from spiking.training import seed_for

KNOTS = 5  # of the smooth course over the channels with which events are dropped
SHORTEST = 0.05  # seconds: what is shorter is taken to be as long


class SoundBatches:
    """Frames [T, B, channels] and labels [B] of a `datasets.AudioSet`, by index; augmented anew each epoch.

    A recording's augmentation depends on (seed, epoch, index) alone, not on the batch that it comes in.
    """

    def __init__(self, sound: Any, config: FrameConfig | None = None, seed: int = 0, indices: Any = None) -> None:
        self.sound, self.config, self.seed = sound, config or FrameConfig(), seed
        self.labels = np.asarray(sound.labels)
        self.indices = np.arange(len(sound)) if indices is None else np.asarray(indices)
        self._events: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def subset(self, indices: Any) -> SoundBatches:
        """Some of the recordings; a recording keeps its augmentation."""
        part = object.__new__(SoundBatches)
        part.__dict__.update(self.__dict__, indices=self.indices[np.asarray(indices)])
        return part

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        which, c = self.indices[indices], self.config
        frames = np.empty((c.steps, len(which), self.sound.n_channels), np.float32)
        for column, index in enumerate(which.tolist()):
            frames[:, column] = self._frames(index, epoch)
        x = torch.from_numpy(frames)
        shown = x.clamp_(max=1) if c.counts == "clip" else x.sqrt_() if c.counts == "root" else x
        return shown, torch.from_numpy(self.labels[which].astype(np.int64))

    def _frames(self, index: int, epoch: int | None) -> np.ndarray:
        """Events of one recording in each frame and channel, [T, channels]."""
        c, n = self.config, self.sound.n_channels
        if index not in self._events:
            self._events[index] = self.sound.arrays(index)
        times, channels = self._events[index]
        if not len(times):
            return np.zeros((c.steps, n))
        at = times - times[0]
        if c.time == "recording":
            at = at * (c.span * c.steps / max(at[-1] * (1 + 1e-9), SHORTEST))
        else:
            at = at * (1000 / c.bin_ms)
        if epoch is not None:
            draws = np.random.default_rng(seed_for(self.seed, 2, epoch, index))
            stretch, late, shift = draws.uniform((-c.stretch, 0, -c.shift), (c.stretch, c.late, c.shift))
            keep = np.interp(np.arange(n), np.linspace(0, n - 1, KNOTS), 1 - c.thin * draws.random(KNOTS))
            kept = draws.random(len(at)) < keep[channels]
            at, channels = at[kept] * np.exp(stretch) + late, channels[kept] + round(shift)
        frame = at.astype(np.int64)
        inside = (frame < c.steps) & (channels >= 0) & (channels < n)
        flat = frame[inside] * n + channels[inside]
        return np.bincount(flat, minlength=c.steps * n).reshape(c.steps, n)
