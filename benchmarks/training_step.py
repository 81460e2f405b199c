"""A whole training step of one network, ours against every peer and against ourselves, dense: what the cases that time one share.

All start from the same weights, see the same spikes, minimise the same loss (cross-entropy of the mean output) with the same optimiser,
and fire and reset alike (threshold 1, soft reset without gradient, arctangent surrogate where a peer has it). The losses of 20 steps are
compared first, in float64, since in float32 another order of summation flips a spike now and then; how far apart they are in float32 is
printed too. Peak memory is that of a process of its own: the highest resident set of three steps above what the process held before the
first, when weights and data were there, but no gradient and no optimiser state.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from spiking.benchmarks import peers
from spiking.benchmarks.run import Row, interleaved, memory
from spiking.cuda_kernels import driven
from torch import Tensor, nn
from torch.nn import functional as tf

import spiking
from spiking import functional as F
from spiking import surrogate

__all__ = ["DENSE", "OURS", "Contest", "Parts", "Trainer", "main", "parts_of", "summary"]

RATE = 0.02
CURVE = 20
OURS, DENSE = "spiking", "spiking, dense products"
SINGLE = ("snntorch", "sinabs")  # their spikes are float32 whatever goes in


@dataclass(frozen=True)
class Contest:
    """What is trained: `network(name, size, save)` with a contestant's neurons, on `batch(size, seed, device)`: spikes and labels.

    The sizes are the case's own: the one that is timed, one for a quick look, and a tiny one whose first step loads what libraries load
    at their first step. `module` runs `main` for a process of its own.
    """

    case: str
    module: str
    network: Callable[[str, Any, F.Save], nn.Module]
    batch: Callable[[Any, int, str], tuple[Tensor, Tensor]]
    full: Any
    quick: Any
    tiny: Any
    group: str = ""

    def rows(self, quick: bool, device: str) -> Iterable[Row]:
        size = self.quick if quick else self.full
        names, steps = [OURS, DENSE, *peers.installed()], 3 if quick else CURVE
        curves = {name: self.losses(name, size, device, steps) for name in names}
        check(curves)
        singles = {name: self.losses(name, size, device, steps, torch.float32) for name in names}
        trainers = {name: Trainer(self, name, size, device) for name in names}
        x, labels = self.batch(size, 0, device)
        calls = {name: functools.partial(trainer.step, x, labels) for name, trainer in trainers.items()}
        seconds = interleaved(calls, 3 if quick else 6, 3, in_a_row=3)
        for name, times in seconds.items():
            notes = [
                f"loss {curves[name][0]:.4f} → {curves[name][-1]:.4f}, {_apart(curves[name], curves[OURS]):.0e} from ours",
                f"in float32 {_apart(singles[name], singles[OURS]):.0e}",
                trainers[name].activity(x),
            ]
            if device == "cpu" and sys.platform == "linux":
                notes.append(f"peak {self.peak_megabytes(name, quick):.1f} MB")
            yield Row(self.case, name, times, OURS if name != OURS else None, self.group, "; ".join(notes))

    def losses(self, name: str, size: Any, device: str, steps: int, dtype: torch.dtype = torch.float64) -> list[float]:
        """The loss of each of the first steps, on fresh spikes each time; in float32 for peers that know no other spikes."""
        before = torch.get_default_dtype()
        trainer = Trainer(
            self, name, size, device, save="value"
        )  # of halves, the last bit hangs on the order of summation
        try:
            if name not in SINGLE:
                trainer.net.to(dtype)
                torch.set_default_dtype(dtype)  # some peers make their states in it
            return [trainer.step(*self.batch(size, 1 + i, device)) for i in range(steps)]
        finally:
            torch.set_default_dtype(before)

    def peak_megabytes(self, name: str, quick: bool) -> float:
        """Peak of the resident set above the start, in a process of its own."""
        arguments = [sys.executable, "-W", "ignore", "-m", self.module, name, "--group", self.group]
        with tempfile.TemporaryDirectory() as elsewhere:
            done = subprocess.run(
                arguments + (["--quick"] if quick else []),
                cwd=elsewhere,
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        return float(done.stdout.splitlines()[-1])


def _apart(curve: Sequence[float], ours: Sequence[float]) -> float:
    return max(abs(a - b) / b for a, b in zip(curve, ours))


def check(curves: dict[str, list[float]]) -> None:
    """Event-driven and dense products learn alike, and as the peer that has the same surrogate does."""
    for name in (DENSE, "spikingjelly"):
        if not torch.allclose(torch.tensor(curves.get(name, curves[OURS])), torch.tensor(curves[OURS]), rtol=1e-6):
            raise AssertionError(f"the losses of {name} and {OURS} differ")


class Trainer:
    """One contestant: its network, its optimiser, one step of both."""

    def __init__(self, contest: Contest, name: str, size: Any, device: str, save: F.Save = "half") -> None:
        self.net = contest.network(name, size, save).to(device)
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
        """The share of spikes that each layer with weights is given."""
        given = []
        for layer in self.net.children():
            if any(isinstance(part, (nn.Linear, nn.Conv2d)) for part in layer.modules()):
                given.append(f"{100 * x.count_nonzero().item() / x.numel():.1f}")
            x = layer(x)
        return f"inputs active: {', '.join(given)} %"


@dataclass(frozen=True)
class Parts:
    """What a contestant builds its network from."""

    neuron: Callable[[float], nn.Module]
    linear: Callable[[int, int], nn.Module]
    conv: Callable[[int, int, int], nn.Module]
    average: Callable[[int], nn.Module]
    maximum: Callable[[int], nn.Module]
    flatten: Callable[[], nn.Module]
    whole: type[nn.Sequential]


def parts_of(name: str, save: F.Save) -> Parts:
    """Ours, or torch's layers among a peer's neurons."""
    if name in (OURS, DENSE):
        arctangent = surrogate.ATan(2.0)
        return Parts(
            lambda beta: spiking.LIF(beta, surrogate=arctangent, detach_reset=True, save=save),
            spiking.Linear,
            spiking.Conv2d,
            spiking.AvgPool2d,
            spiking.MaxPool2d,
            spiking.Flatten,
            spiking.Sequential,
        )
    return Parts(
        peers.NEURONS[name],
        nn.Linear,
        lambda *sizes: peers.Folded(nn.Conv2d(*sizes)),
        lambda side: peers.Folded(nn.AvgPool2d(side)),
        lambda side: peers.Folded(nn.MaxPool2d(side)),
        lambda: nn.Flatten(2),
        nn.Sequential,
    )


def main(contests: Sequence[Contest]) -> None:
    """Peak memory of three training steps, in MB above the start; of the process that the command line describes."""
    parser = argparse.ArgumentParser(description="Peak memory of three training steps, in MB above the start.")
    parser.add_argument("name")
    parser.add_argument("--group", default="")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    contest = next(contest for contest in contests if contest.group == given.group)
    size = contest.quick if given.quick else contest.full
    Trainer(contest, given.name, contest.tiny, "cpu").step(*contest.batch(contest.tiny, 0, "cpu"))
    trainer, (x, labels) = Trainer(contest, given.name, size, "cpu"), contest.batch(size, 0, "cpu")
    before = memory("VmRSS", reset=True)
    for _ in range(3):
        trainer.step(x, labels)
    print(memory("VmHWM") - before)


def summary(rows: Sequence[Row], goal: float) -> list[str]:
    """Against ourselves with dense products, against the fastest peer (`goal` times as fast), and against the leanest one."""
    lines = []
    for group in dict.fromkeys(row.group for row in rows):
        by_name = {row.what: row for row in rows if row.group == group}
        ours, at = by_name[OURS], f"{group}: " if group else ""
        lines.append(f"{at}against the same network with dense products: {by_name[DENSE].median / ours.median:.1f}×")
        others = [row for name, row in by_name.items() if name in peers.NEURONS]
        if not others:
            continue
        fastest = min(others, key=lambda row: row.median)
        ratio = fastest.median / ours.median
        lines.append(f"{at}against the fastest peer ({fastest.what}): {ratio:.1f}× (target {goal:g}×)")
        if "peak" in ours.note:
            leanest = min(others, key=_peak)
            share = _peak(ours) / _peak(leanest)
            lines.append(
                f"{at}peak memory {_peak(ours):.1f} MB, {share:.2f} of the leanest peer's ({leanest.what}; target 0.50)"
            )
    return lines


def _peak(row: Row) -> float:
    return float(row.note.rsplit("peak ", 1)[1].split()[0])
