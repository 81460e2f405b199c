"""A whole training step of the convolutional tutorial network: ours against every peer and against ourselves, dense.

Conv 12×5×5 – pool 2 – LIF – Conv 32×5×5 – pool 2 – LIF – Linear – LIF (beta 0.9; the rest as training_step.py says) on simulated
digits in 16 frames of zeros and ones, batch 64; once with the largest of each window, as the tutorial writes it, once with the average.
The weights are scaled so that every layer fires sparsely from the start, as layers of trained networks do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from spiking.benchmarks import training_step
from spiking.benchmarks.run import Row
from torch import Tensor, nn

from spiking import functional as F
from spiking.models.nmnist import EventBatches, FrameConfig, Recipe
from spiking.models.nmnist.run import open_recordings

NAME = "train_conv"
TITLE = "training step of the convolutional tutorial network, against peers, with loss curves and peak memory"
BETA = 0.9
CLASSES = 10


class Size(NamedTuple):
    """Frames, recordings in a batch, channels of the two convolutions."""

    steps: int
    batch: int
    channels: tuple[int, int]


def network(maximum: bool, gains: Sequence[float], name: str, size: Size, save: F.Save) -> nn.Module:
    """The network with the neurons of a contestant; the same weights for all."""
    torch.manual_seed(0)
    parts = training_step.parts_of(name, save)
    pool = parts.maximum if maximum else parts.average
    one, two = size.channels
    net = parts.whole(
        parts.conv(2, one, 5),
        pool(2),
        parts.neuron(BETA),
        parts.conv(one, two, 5),
        pool(2),
        parts.neuron(BETA),
        parts.flatten(),
        parts.linear(two * 5 * 5, CLASSES),
        parts.neuron(BETA),
    )
    with torch.no_grad():
        for layer, gain in zip([m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))], gains):
            layer.weight.mul_(gain)
    return net


@functools.cache
def _recordings(steps: int) -> EventBatches:
    return EventBatches(open_recordings(Recipe()).train, config=FrameConfig(time_bins=steps))


def batch(size: Size, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Spikes [T, B, 2, 34, 34] and labels [B], each epoch of recordings augmented in its own way."""
    recordings = _recordings(size.steps)
    order = np.random.default_rng(seed).permutation(len(recordings))
    x, labels = recordings.batch(order[: size.batch], seed)
    return x.to(device, torch.get_default_dtype()), labels.to(device)


def _contest(group: str, maximum: bool, gains: Sequence[float]) -> training_step.Contest:
    sizes: dict[str, Any] = {
        "full": Size(16, 64, (12, 32)),
        "quick": Size(4, 4, (4, 8)),
        "tiny": Size(2, 1, (2, 2)),
    }
    build = functools.partial(network, maximum, gains)
    return training_step.Contest(NAME, f"spiking.benchmarks.cases.{NAME}", build, batch, **sizes, group=group)


CONTESTS = [_contest("max pool", True, (1.0, 2.0, 2.0)), _contest("average pool", False, (2.0, 4.0, 2.0))]


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    for contest in CONTESTS:
        yield from contest.rows(quick, device)


def summary(rows: Sequence[Row]) -> list[str]:
    """Against the fastest and the leanest peer."""
    return training_step.summary(rows, 2.0)


if __name__ == "__main__":
    training_step.main(CONTESTS)
