"""What `spiking.record` adds to a forward pass, and whether a trace grows with the run.

The network runs plainly and under `record` in turn, eight batches each. "naive hooks" copy every input and output and count their
non-zeros, which is what one would write first. Then the same trace is fed 4 and 16 times as many batches: its size on disk and in memory
must not follow (three sums per sample are kept for the bootstrap).
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from spiking.benchmarks.run import Row, interleaved
from torch import Tensor, nn

import spiking
from spiking.models.nmnist import NMNISTNet

NAME = "trace"
TITLE = "recording a trace: cost beside the plain forward pass, and growth with the length of the run"
BATCHES = 8
PLAIN, RECORDED, NAIVE = "plain forward", "recorded", "naive hooks"


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    for name, (network, x) in _networks(quick, device).items():
        with torch.no_grad():
            calls = {PLAIN: _plain(network, x), RECORDED: _recorded(network, x), NAIVE: _naive(network, x)}
            seconds = interleaved(calls, 3 if quick else 9, 2)
        for what, times in seconds.items():
            yield Row(NAME, what, [t / BATCHES for t in times], None if what == PLAIN else PLAIN, name)
        yield _growth(name, network, x, quick)


def _networks(quick: bool, device: str) -> dict[str, tuple[nn.Module, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def events(steps: int, batch: int) -> Tensor:
        return (torch.rand(steps, batch, 2, 34, 34, generator=generator) < 0.05).float().to(device)

    layers: list[nn.Module] = [spiking.Flatten()]
    for fan_in, fan_out in ((2312, 512), (512, 512), (512, 10)):
        layers += [spiking.Linear(fan_in, fan_out), spiking.LIF()]
    torch.manual_seed(0)
    batch = 16 if quick else 256
    return {
        f"N-MNIST network, batch {batch}": (NMNISTNet.pretrained().eval().to(device), events(6, batch)),
        f"MLP 2312-512-512-10, T=16, batch {batch}": (
            spiking.Sequential(*layers).eval().to(device),
            events(16, batch),
        ),
    }


def _plain(network: nn.Module, x: Tensor) -> Callable[[], None]:
    def call() -> None:
        for _ in range(BATCHES):
            network(x)

    return call


def _recorded(network: nn.Module, x: Tensor) -> Callable[[], None]:
    def call() -> None:
        with spiking.record(network):
            for _ in range(BATCHES):
                network(x)

    return call


def _naive(network: nn.Module, x: Tensor) -> Callable[[], None]:
    def call() -> None:
        counts: list[int] = []

        def seen(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            counts.extend(int((v.detach().clone() != 0).sum()) for v in (*args, out) if isinstance(v, Tensor))

        handles = [m.register_forward_hook(seen) for m in network.modules() if not list(m.children())]
        for _ in range(BATCHES):
            network(x)
        for handle in handles:
            handle.remove()

    return call


def _growth(name: str, network: nn.Module, x: Tensor, quick: bool) -> Row:
    """Bytes of a trace after 1, 4 and 16 batches, in memory and on disk."""
    sizes = []
    for batches in (1, 4) if quick else (1, 4, 16):
        with torch.no_grad(), spiking.record(network) as trace:
            for _ in range(batches):
                network(x)
        per_sample = sum(
            row.syn_sample.nbytes + row.spikes_sample.nbytes + row.updates_sample.nbytes for row in trace.layers
        )
        with tempfile.TemporaryDirectory() as folder:
            trace.save(Path(folder) / "trace.h5")
            disk = (Path(folder) / "trace.h5").stat().st_size
        kept = len(pickle.dumps(trace)) - per_sample
        sizes.append(
            f"{batches} batches: {kept / 1e3:.0f} kB and {per_sample / 1e3:.0f} kB per-sample sums, {disk / 1e3:.0f} kB on disk"
        )
    return Row(NAME, "trace size", [0.0], None, name, "; ".join(sizes))


def summary(rows: Sequence[Row]) -> list[str]:
    """Overheads."""
    medians: dict[str, dict[str, float]] = {}
    for row in rows:
        medians.setdefault(row.group, {})[row.what] = row.median
    return [
        f"{group}: recording adds {100 * (m[RECORDED] / m[PLAIN] - 1):.1f} % to a forward pass of {1e3 * m[PLAIN]:.1f} ms "
        f"(naive hooks {100 * (m[NAIVE] / m[PLAIN] - 1):.1f} %)"
        for group, m in medians.items()
    ]
