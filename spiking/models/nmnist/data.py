"""From stored events to frames: each epoch bins them anew under its own rotation, zoom, shear and shift."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spiking.errors import SpikingError
from spiking.models.nmnist.config import FrameConfig
from spiking.training import seed_for

SIDE = 34  # pixels of the sensor
CENTRE = (SIDE - 1) / 2
KNOTS = 5  # of the elastic displacement, along each side
SUBPIXELS = 3  # stored steps a pixel, once the camera's motion is undone; odd, so that none lies between two pixels
MARGIN = 5  # pixels around the sensor into which the motion carries events


def undo_saccades(events: Any) -> Any:
    """The same recordings with the camera's motion taken out, to a third of a pixel: the digit stands still, in the middle.

        x + 4 − 3.5u, y + 2 − 7u;   x + 0.5 − 3.5u, y − 5 + 7u;   x − 3 + 7u, y + 2     (u = (t − start) / 105 ms)

    Unlike `datasets.NMNIST(stabilize=True)`, which rounds to whole pixels, so that augmentation rounds only once.
    Errors: SpikingError for another sensor than 34×34.
    Source: tonic's `stabilize`, from the data set's authors' code (Orchard et al. 2015, arXiv 1507.07629).
    """
    if tuple(events.sensor_size[:2]) != (SIDE, SIDE):
        raise SpikingError(f"undo_saccades: got a sensor of {events.sensor_size}; expected {SIDE} by {SIDE} pixels.")
    third = 105_000.0
    t = events.t / third
    leg = np.clip(t.astype(np.int64), 0, 2)
    u = t - leg
    dx = np.choose(leg, [-3.5 * u, -3.5 - 3.5 * u, -7 + 7 * u]) + 4.0
    dy = np.choose(leg, [-7 * u, -7 + 7 * u, 0 * u]) + 2.0
    # Shifted by a margin, so that what leaves the sensor stays representable; the frames cut it off.
    x = np.rint((events.x + dx + MARGIN) * SUBPIXELS)
    y = np.rint((events.y + dy + MARGIN) * SUBPIXELS)
    side = (SIDE + 2 * MARGIN) * SUBPIXELS
    return type(events)(events.t, x, y, events.p, events.offsets, (side, side, 2), events.labels)


class EventBatches:
    """Frames [T, B, 2, 34, 34] and labels [B] of recordings, by index; augmented anew each epoch.

    A recording's augmentation depends on (seed, epoch, index) alone, not on the batch that it comes in.
    Errors: SpikingError if the recordings carry no labels, or not one each.
    """

    def __init__(
        self,
        events: Any,
        labels: Any = None,
        config: FrameConfig | None = None,
        seed: int = 0,
        indices: Any = None,
        threads: int = 1,
    ) -> None:
        self.config = config = config or FrameConfig()
        self.labels = np.asarray(events.labels if labels is None else labels)
        if self.labels.shape != (len(events),):
            raise SpikingError(f"EventBatches.labels: got shape {list(self.labels.shape)}; expected [{len(events)}].")
        self.events = undo_saccades(events) if config.saccades == "undo" else events
        self.seed, self.threads = seed, threads
        self.indices = np.arange(len(events)) if indices is None else np.asarray(indices)
        self._draws: tuple[int | None, np.ndarray, np.ndarray] = (None, np.empty(0), np.empty(0))

    def subset(self, indices: Any) -> EventBatches:
        """Some of the recordings, sharing the stored events; a recording keeps its augmentation."""
        part = object.__new__(EventBatches)
        part.__dict__.update(self.__dict__, indices=self.indices[np.asarray(indices)])
        return part

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        which, c = self.indices[indices], self.config
        affine, warp = self._maps(which, epoch)
        frames = self.events.frames(
            which,
            time_bins=c.time_bins,
            t_window=(0, c.window_us - 1),
            affine=affine,
            warp=warp,
            out_size=(SIDE, SIDE),
            clip=c.counts == "clip",
            time_major=True,
            dtype=np.float32,
            threads=self.threads,
        )
        x = torch.from_numpy(frames)
        return (x.log1p_() if c.counts == "log" else x), torch.from_numpy(self.labels[which].astype(np.int64))

    def _maps(self, which: np.ndarray, epoch: int | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Affine maps [B, 2, 3] from stored coordinates to pixels, and displacements [B, 2, K, K] after them."""
        warp = None
        c = self.config
        maps = np.tile(np.eye(2), (len(which), 1, 1))
        shift = np.zeros((len(which), 2))
        if epoch is not None:
            if self._draws[0] != epoch:
                rng = np.random.default_rng(seed_for(self.seed, 2, epoch))
                n = len(self.labels)
                self._draws = (epoch, rng.uniform(-1, 1, (n, 6)), rng.standard_normal((n, 2, KNOTS, KNOTS)))
            _, even, normal = self._draws
            warp = c.elastic * normal[which] if c.elastic else None
            maps, shift = self._augmented(even[which])
        scale, margin = (SUBPIXELS, MARGIN) if self.config.saccades == "undo" else (1, 0)
        offset = CENTRE + shift - (maps @ np.full((2, 1), CENTRE + margin))[:, :, 0]
        return np.concatenate([maps / scale, offset[:, :, None]], axis=2), warp

    def _augmented(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rotation · zoom · shear about the centre [B, 2, 2], and shift [B, 2], from numbers in -1…1."""
        c = self.config
        angle, zoom, shear = np.deg2rad(c.rotation) * draws[:, 0], 1 + c.zoom * draws[:, 1], c.shear * draws[:, 2]
        cos, sin = np.cos(angle), np.sin(angle)
        maps = np.stack([cos, shear * cos - sin, sin, shear * sin + cos], axis=1).reshape(-1, 2, 2)
        return maps * zoom[:, None, None], c.shift * draws[:, 3:5]
