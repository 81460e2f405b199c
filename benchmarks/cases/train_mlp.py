"""A whole training step of a sparse network, 2312–512–512–10 over 16 steps, batch 64: ours against every peer and against ourselves, dense.

8 % of the inputs are active on average, each class with its own rates (beta 0.9; the rest as training_step.py says). The weights are scaled
so that the hidden layers, too, fire at 4 to 6 % at the start; the step is small enough that they stay sparse while they are timed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
from spiking.benchmarks import training_step
from spiking.benchmarks.run import Row
from torch import Tensor, nn

from spiking import functional as F

NAME = "train_mlp"
TITLE = "training step of an MLP on sparse spikes, against peers, with loss curves and peak memory"
STEPS, BATCH, DENSITY = 16, 64, 0.08
GAINS = (2.0, 4.0, 1.0)  # of the weights, layer by layer
BETA = 0.9


def network(name: str, sizes: Sequence[int], save: F.Save) -> nn.Module:
    """The network with the neurons of a contestant; the same weights for all."""
    torch.manual_seed(0)
    parts = training_step.parts_of(name, save)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes[:-1]):
        layers += [parts.linear(inputs, outputs), parts.neuron(BETA)]
    net = parts.whole(*layers, parts.linear(sizes[-2], sizes[-1]))
    with torch.no_grad():
        for linear, gain in zip([p for p in net.children() if isinstance(p, nn.Linear)], GAINS):
            linear.weight.mul_(gain)
    return net


def batch(sizes: Sequence[int], seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Spikes [T, B, inputs] and labels [B]."""
    g = torch.Generator().manual_seed(7)
    rates = torch.rand(sizes[-1], sizes[0], generator=g, dtype=torch.float32) ** 3 * 4 * DENSITY
    g.manual_seed(seed)
    labels = torch.randint(0, sizes[-1], (BATCH,), generator=g)
    spikes = torch.rand(STEPS, BATCH, sizes[0], generator=g, dtype=torch.float32) < rates[labels]
    return spikes.to(device, torch.get_default_dtype()), labels.to(device)


CONTEST = training_step.Contest(
    NAME,
    f"spiking.benchmarks.cases.{NAME}",
    network,
    batch,
    full=(2312, 512, 512, 10),
    quick=(200, 64, 64, 10),
    tiny=(8, 4, 4, 2),
)


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    yield from CONTEST.rows(quick, device)


def summary(rows: Sequence[Row]) -> list[str]:
    """Against the fastest and the leanest peer."""
    return training_step.summary(rows, 3.0)


if __name__ == "__main__":
    training_step.main([CONTEST])
