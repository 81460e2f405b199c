"""A whole training step of a sparse network, 2312–512–512–10 over 16 steps, batch 64: ours against every peer and against ourselves, dense.

All start from the same weights, see the same spikes (8 % of the inputs on average, each class with its own rates), minimise the same
loss (cross-entropy of the mean output) with the same optimiser, and fire and reset alike (beta 0.9, threshold 1, soft reset without
gradient, arctangent surrogate where a peer has it). The weights are scaled so that the hidden layers, too, fire at 4 to 6 % at the start;
the step is small enough that they stay sparse while they are timed. The losses of 20 steps are compared first, in float64, since in
float32 another order of summation flips a spike now and then. Peak memory is that of a process of its own: the highest resident set of
three steps above what the process held before the first, when weights and data were there, but no gradient and no optimiser state.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence

import torch
from spiking.benchmarks import peers
from spiking.benchmarks.run import Row, interleaved, memory
from spiking.cuda_kernels import driven
from torch import Tensor, nn
from torch.nn import functional as tf

import spiking
from spiking import functional as F
from spiking import surrogate

NAME = "train_mlp"
TITLE = "training step of an MLP on sparse spikes, against peers, with loss curves and peak memory"
SIZES = (2312, 512, 512, 10)
STEPS, BATCH, DENSITY = 16, 64, 0.08
QUICK = (200, 64, 64, 10)
GAINS = (2.0, 4.0, 1.0)  # of the weights, layer by layer
BETA = 0.9
RATE = 0.02
CURVE = 20
OURS, DENSE = "spiking", "spiking, dense products"
SINGLE = ("snntorch", "sinabs")  # their spikes are float32 whatever goes in


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    sizes = QUICK if quick else SIZES
    names = [OURS, DENSE, *peers.installed()]
    curves = {name: losses(name, sizes, device, 3 if quick else CURVE) for name in names}
    check(curves)
    trainers = {name: Trainer(name, sizes, device) for name in names}
    x, labels = batch(sizes, 0, device)
    calls = {name: functools.partial(trainer.step, x, labels) for name, trainer in trainers.items()}
    seconds = interleaved(calls, 3 if quick else 6, 3, in_a_row=3)
    for name, times in seconds.items():
        apart = max(abs(a - b) / b for a, b in zip(curves[name], curves[OURS]))
        notes = [
            f"loss {curves[name][0]:.4f} → {curves[name][-1]:.4f}, {apart:.0e} from ours",
            trainers[name].activity(x),
        ]
        if device == "cpu" and sys.platform == "linux":
            notes.append(f"peak {peak_megabytes(name, quick):.1f} MB")
        yield Row(NAME, name, times, OURS if name != OURS else None, "", "; ".join(notes))


def check(curves: dict[str, list[float]]) -> None:
    """Event-driven and dense products learn alike, and as the peer that has the same surrogate does."""
    for name in (DENSE, "spikingjelly"):
        if not torch.allclose(torch.tensor(curves.get(name, curves[OURS])), torch.tensor(curves[OURS]), rtol=1e-6):
            raise AssertionError(f"the losses of {name} and {OURS} differ")


def network(name: str, sizes: Sequence[int], save: F.Save) -> nn.Module:
    """The network with the neurons of a contestant; the same weights for all."""
    torch.manual_seed(0)
    if name in (OURS, DENSE):
        neuron: Callable[[], nn.Module] = lambda: spiking.LIF(  # noqa: E731
            BETA, surrogate=surrogate.ATan(2.0), detach_reset=True, save=save
        )
        layer: Callable[[int, int], nn.Module] = spiking.Linear
        whole: type[nn.Sequential] = spiking.Sequential
    else:
        neuron, layer, whole = lambda: peers.NEURONS[name](BETA), nn.Linear, nn.Sequential
    parts: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes[:-1]):
        parts += [layer(inputs, outputs), neuron()]
    net = whole(*parts, layer(sizes[-2], sizes[-1]))
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


class Trainer:
    """One contestant: its network, its optimiser, one step of both."""

    def __init__(self, name: str, sizes: Sequence[int], device: str, save: F.Save = "half") -> None:
        self.net = network(name, sizes, save).to(device)
        self.optimiser = torch.optim.SGD(self.net.parameters(), lr=RATE)
        self.mode: driven.Mode = "never" if name == DENSE else "auto"

    def step(self, x: Tensor, labels: Tensor) -> float:
        with spiking.event_driven(self.mode):
            self.optimiser.zero_grad()
            loss = tf.cross_entropy(self.net(x).mean(0), labels)
            loss.backward()
            self.optimiser.step()
        return loss.item()

    @torch.no_grad()
    def activity(self, x: Tensor) -> str:
        """The share of spikes that each layer is given."""
        given = []
        for layer in self.net.children():
            if isinstance(layer, nn.Linear):
                given.append(f"{100 * x.count_nonzero().item() / x.numel():.1f}")
            x = layer(x)
        return f"inputs active: {', '.join(given)} %"


def losses(name: str, sizes: Sequence[int], device: str, steps: int) -> list[float]:
    """The loss of each of the first steps, on fresh spikes each time; in float64 but for peers that know float32 spikes only."""
    before = torch.get_default_dtype()
    trainer = Trainer(name, sizes, device, save="value")  # of halves, the last bit hangs on the order of summation
    try:
        if name not in SINGLE:
            trainer.net.double()
            torch.set_default_dtype(torch.float64)  # some peers make their states in it
        return [trainer.step(*batch(sizes, 1 + i, device)) for i in range(steps)]
    finally:
        torch.set_default_dtype(before)


def peak_megabytes(name: str, quick: bool) -> float:
    """Peak of the resident set above the start, in a process of its own."""
    arguments = [sys.executable, "-W", "ignore", "-m", __spec__.name, name, *(["--quick"] if quick else [])]
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(arguments, cwd=elsewhere, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def _main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of three training steps, in MB above the start.")
    parser.add_argument("name")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    tiny, sizes = (8, 4, 4, 2), QUICK if given.quick else SIZES
    Trainer(given.name, tiny, "cpu").step(
        *batch(tiny, 0, "cpu")
    )  # what a library loads at its first step is not the step's memory
    trainer, (x, labels) = Trainer(given.name, sizes, "cpu"), batch(sizes, 0, "cpu")
    before = memory("VmRSS", reset=True)
    for _ in range(3):
        trainer.step(x, labels)
    print(memory("VmHWM") - before)


def summary(rows: Sequence[Row]) -> list[str]:
    """Against the fastest and the leanest peer."""
    by_name = {row.what: row for row in rows}
    ours = by_name[OURS]
    lines = [f"against the same network with dense products: {by_name[DENSE].median / ours.median:.1f}×"]
    others = [row for name, row in by_name.items() if name in peers.NEURONS]
    if others:
        fastest = min(others, key=lambda row: row.median)
        lines.append(f"against the fastest peer ({fastest.what}): {fastest.median / ours.median:.1f}×")
        if "peak" in ours.note:
            leanest = min(others, key=_peak)
            lines.append(
                f"peak memory {_peak(ours):.1f} MB, {_peak(ours) / _peak(leanest):.2f} of the leanest peer's ({leanest.what})"
            )
    return lines


def _peak(row: Row) -> float:
    return float(row.note.rsplit("peak ", 1)[1].split()[0])


if __name__ == "__main__":
    _main()
