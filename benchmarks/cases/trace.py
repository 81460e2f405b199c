"""What `spiking.record` adds to a forward pass, and whether a trace, or the memory of a long run, grows with its length.

Two copies of a network run in turn, one plainly, one under `record`, eight batches each: passes of the steady run, and all that adds
their counts to the trace. What a recording costs once (the hash of the weights, fan-out tables) is a row of its own. "naive hooks" copy
every input and output and count their non-zeros, which is what one would write first. The network of torch's layers is then run with
neurons of other libraries: plainly, with what each library has for counting spikes or synaptic operations, and under `record`. Then a
trace is fed 4 and 16 times as many batches: its size on disk and in memory must not follow (three sums per sample are kept for the
bootstrap). Last, runs that write event lists to a file, and ten times as many batches of them, each in a process of its own: their peak
memory must not follow either.
"""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from spiking.benchmarks import peers
from spiking.benchmarks.run import Row, interleaved
from torch import Tensor, nn

import spiking
from spiking.models.nmnist import NMNISTNet

NAME = "trace"
TITLE = "recording a trace: cost beside the plain forward pass, and growth with the length of the run"
BATCHES = 8
PLAIN, RECORDED, NAIVE, ONCE = "plain forward", "recorded", "naive hooks", "once per recording"
SIZE = "trace size"


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    for name, (network, x) in _networks(quick, device).items():
        watched = copy.deepcopy(network)
        with torch.no_grad(), spiking.record(watched):
            calls = {PLAIN: _batches(network, x), RECORDED: _batches(watched, x), NAIVE: _naive(network, x)}
            seconds = interleaved(calls, 3 if quick else 9, 2)
        for what, times in seconds.items():
            batches = 1 if what == NAIVE else BATCHES
            yield Row(NAME, what, [t / batches for t in times], None if what == PLAIN else PLAIN, name)
        passes = median(seconds[RECORDED]) / BATCHES
        yield Row(NAME, ONCE, [max(t - passes, 0.0) for t in _first(network, x)], None, name, "beside its first pass")
        yield _growth(name, network, x, quick)
    yield from _peers(quick, device)
    yield _memory(quick)


def _networks(quick: bool, device: str) -> dict[str, tuple[nn.Module, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def events(steps: int, batch: int) -> Tensor:
        return (torch.rand(steps, batch, 2, 34, 34, generator=generator) < 0.05).float().to(device)

    torch.manual_seed(0)
    layers: list[nn.Module] = [spiking.Flatten()]
    for fan_in, fan_out in ((2312, 512), (512, 512), (512, 10)):
        layers += [spiking.Linear(fan_in, fan_out), spiking.LIF()]
    found: dict[str, tuple[nn.Module, Tensor]] = {}
    for batch in (16,) if quick else (256, 32):
        network = NMNISTNet.pretrained().eval().to(device)
        found[f"N-MNIST network, batch {batch}"] = (network, events(6, batch))
    batch = 16 if quick else 256
    mlp = spiking.Sequential(*layers).eval().to(device)
    found[f"MLP 2312-512-512-10, T=16, batch {batch}"] = (mlp, events(16, batch))
    batch = 16 if quick else 32
    found[f"torch layers and LIF, T=6, batch {batch}"] = (_Ordinary().eval().to(device), events(6, batch))
    return found


class _Ordinary(nn.Module):
    """A network of torch's own layers, with spiking neurons between them, as one would write it without the library's layers."""

    def __init__(self, neuron: Callable[[float], nn.Module] = lambda beta: spiking.LIF(beta, 0.25)) -> None:
        super().__init__()
        self.conv1, self.conv2, self.linear = nn.Conv2d(2, 12, 5), nn.Conv2d(12, 32, 5), nn.Linear(800, 10)
        self.pool = nn.AvgPool2d(2)
        self.neurons = nn.ModuleList(neuron(0.5) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        steps = x.shape[:2]
        for conv, neuron in zip((self.conv1, self.conv2), self.neurons):
            x = neuron(self.pool(conv(x.flatten(0, 1))).unflatten(0, steps))
        return self.neurons[2](self.linear(x.flatten(2)))


def _batches(network: nn.Module, x: Tensor) -> Callable[[], None]:
    def call() -> None:
        for _ in range(BATCHES):
            network(x)

    return call


def _peers(quick: bool, device: str) -> Iterable[Row]:
    """Peers' networks: plainly, counted by their own library, and recorded."""
    own: dict[str, dict[str, Callable[[nn.Module, Tensor], Callable[[], None]]]] = {
        "spikingjelly": {"its OutputMonitor": _spikingjelly_monitor, "its SynOpCounter": _spikingjelly_counter},
        "snntorch": {"its OutputMonitor": _snntorch_monitor},
        "sinabs": {"its synops and rate hooks": _sinabs_hooks},
    }
    batch = 16 if quick else 32
    x = (torch.rand(6, batch, 2, 34, 34, generator=torch.Generator().manual_seed(0)) < 0.05).float().to(device)
    for name, make in peers.installed(*own).items():
        ways = {PLAIN: _batches, **own[name], RECORDED: _batches}
        networks = {what: _Ordinary(make).eval().to(device) for what in ways}
        with torch.no_grad(), spiking.record(networks[RECORDED]):
            calls = {what: way(networks[what], x) for what, way in ways.items()}
            seconds = interleaved(calls, 2 if quick else 5, 1)
        group = f"torch layers and {name}, T=6, batch {batch}"
        for what, times in seconds.items():
            yield Row(NAME, what, [t / BATCHES for t in times], None if what == PLAIN else PLAIN, group)


def _monitored(network: nn.Module, x: Tensor, monitor: Any) -> Callable[[], None]:
    run = _batches(network, x)

    def call() -> None:
        monitor.clear_recorded_data()
        run()

    return call


def _spikingjelly_monitor(network: nn.Module, x: Tensor) -> Callable[[], None]:
    """Spikes of each neuron."""
    from spikingjelly.activation_based import monitor, neuron

    return _monitored(network, x, monitor.OutputMonitor(network, neuron.LIFNode, lambda s: s.sum((0, 1))))


def _spikingjelly_counter(network: nn.Module, x: Tensor) -> Callable[[], None]:
    """Synaptic operations of each layer."""
    from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter

    run = _batches(network, x)

    def call() -> None:
        with DispatchCounterMode([SynOpCounter()]):
            run()

    return call


def _snntorch_monitor(network: nn.Module, x: Tensor) -> Callable[[], None]:
    """Spikes of each neuron in each step."""
    import snntorch
    from snntorch.functional import probe

    return _monitored(network, x, probe.OutputMonitor(network, snntorch.Leaky, lambda out: out[0].sum(0)))


def _sinabs_hooks(network: nn.Module, x: Tensor) -> Callable[[], None]:
    """Spikes of each neuron, synaptic operations of each layer."""
    from sinabs import hooks, layers

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(hooks.conv_layer_synops_hook)
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(hooks.linear_layer_synops_hook)
        elif isinstance(module, layers.StatefulLayer):
            module.register_forward_hook(hooks.firing_rate_per_neuron_hook)
    return _batches(network, x)


def _first(network: nn.Module, x: Tensor) -> list[float]:
    """Seconds of recordings of one pass."""
    found = []
    with torch.no_grad():
        for _ in range(3):
            start = time.perf_counter()
            with spiking.record(network):
                network(x)
            found.append(time.perf_counter() - start)
    return found


def _naive(network: nn.Module, x: Tensor) -> Callable[[], None]:
    """One batch, which takes as long as many others."""

    def call() -> None:
        counts: list[int] = []

        def seen(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            counts.extend(int((v.detach().clone() != 0).sum()) for v in (*args, out) if isinstance(v, Tensor))

        handles = [m.register_forward_hook(seen) for m in network.modules() if not list(m.children())]
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
    return Row(NAME, SIZE, [0.0], None, name, "; ".join(sizes))


_LONG_RUN = """
import sys, torch, spiking
from spiking.benchmarks.run import memory
path, passes = sys.argv[1], int(sys.argv[2])
net = spiking.Sequential(spiking.Linear(2312, 512), spiking.LIF(threshold=0.1), spiking.Linear(512, 10), spiking.LIF())
x = (torch.rand(16, 64, 2312, generator=torch.Generator().manual_seed(0)) < 0.05).float()
with torch.no_grad(), spiking.record(net, events=True, to=path or None) as trace:
    for _ in range(passes):
        net(x)
events = sum(int(row.counts["in_nnz"].sum() + row.counts["spikes"].sum()) for row in trace.layers)
print(memory("VmHWM"), events)
"""


def _memory(quick: bool) -> Row:
    """Peak memory of runs that keep events: written to a file, 1 and 10 times as long, and held in memory."""
    passes = 1 if quick else 4
    notes = []
    with tempfile.TemporaryDirectory() as folder:
        runs = (("to a file", f"{folder}/a.h5", 1), ("to a file", f"{folder}/b.h5", 10), ("in memory", "", 10))
        for what, path, times in runs[:1] if quick else runs:
            command = [sys.executable, "-P", "-c", _LONG_RUN, path, str(times * passes)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            notes.append(f"{times}× {what}: {float(said[0]):.0f} MB peak with {int(said[1]) / 1e6:.1f} M events")
    return Row(NAME, "peak memory", [0.0], None, "event lists", "; ".join(notes))


def summary(rows: Sequence[Row]) -> list[str]:
    """Overheads."""
    medians: dict[str, dict[str, float]] = {}
    for row in rows:
        medians.setdefault(row.group, {})[row.what] = row.median
    found = []
    for group, m in medians.items():
        if PLAIN not in m:
            continue
        adds = {what: f"{100 * (seconds / m[PLAIN] - 1):.1f} %" for what, seconds in m.items()}
        others = ", ".join(f"{what} {adds[what]}" for what in m if what not in (PLAIN, RECORDED, ONCE, SIZE))
        once = f", and {1e3 * m[ONCE]:.1f} ms once" if ONCE in m else ""
        found.append(
            f"{group}: recording adds {adds[RECORDED]} to a forward pass of {1e3 * m[PLAIN]:.1f} ms ({others}){once}"
        )
    return found + [row.note for row in rows if row.what == "peak memory"]
