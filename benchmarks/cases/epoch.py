"""One training epoch of the default N-MNIST network, with other libraries' neurons in the same network, on the same batches.

The peers' network is the same network made of torch's own layers and the peer's neurons; data and optimiser are the same code for
all. Networks whose neurons do nothing are timed beside them, once with torch's layers and once with ours: no neuron, however fast,
gets below them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import median

import torch
from spiking.benchmarks import peers
from spiking.benchmarks.run import Row
from torch import nn

from spiking.models.nmnist import EventBatches, NMNISTNet, Recipe, objective
from spiking.models.nmnist.run import open_recordings

NAME = "epoch"
TITLE = "a training epoch of the default N-MNIST network, against the same network with peers' neurons"
OURS, FLOOR, OUR_FLOOR = "spiking", "identity neurons", "identity neurons, our layers"
PARTS = ("convolution", "neurons", "data", "optimiser", "rest")


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    recipe = Recipe(data=data or "")
    recordings = open_recordings(recipe)
    n = min(64 if quick else 800, len(recordings.train))
    events = recordings.train.subset(range(n)) if hasattr(recordings.train, "subset") else recordings.train
    batches = EventBatches(events, config=recipe.frames, seed=0, threads=torch.get_num_threads())
    contestants: dict[str, Callable[[float], nn.Module] | None] = {OURS: None, OUR_FLOOR: _nothing, FLOOR: _nothing}
    contestants |= peers.installed("spikingjelly", "snntorch")
    networks: dict[str, nn.Module] = {}
    for name, make in contestants.items():
        torch.manual_seed(0)
        network: nn.Module = NMNISTNet(replace(recipe.model)).to(device)
        networks[name] = network if make is None else peers.with_neurons(network, make, own_layers=name == OUR_FLOOR)
    optimisers = {name: torch.optim.AdamW(network.parameters(), lr=1e-3) for name, network in networks.items()}
    spent: dict[str, list[dict[str, float]]] = {name: [] for name in networks}
    for epoch in range(2 if quick else 6):
        for name, network in networks.items():
            times = _epoch(network, optimisers[name], batches, n, recipe.train.batch_size, epoch, device)
            if epoch > 0:  # the first warms up
                spent[name].append(times)
    convolution = _convolutions(NMNISTNet(recipe.model).to(device), batches, n, recipe.train.batch_size, device)
    source = "simulated" if recordings.simulated else "real"
    for name, runs in spent.items():
        mean = {part: median(t[part] for t in runs) for part in runs[0]}
        idle = spent[OUR_FLOOR if name in (OURS, OUR_FLOOR) else FLOOR]
        neurons = max(mean["network"] - median(t["network"] for t in idle), 0.0)
        breakdown = dict(
            zip(PARTS, (convolution, neurons, mean["data"], mean["optimiser"], mean["network"] - neurons - convolution))
        )
        note = ", ".join(f"{part} {1e3 * seconds:.0f} ms" for part, seconds in breakdown.items())
        reference = None if name == OURS else OURS
        yield Row(NAME, name, [t["all"] for t in runs], reference, f"{n} {source} recordings", note)


def _nothing(beta: float) -> nn.Module:
    return nn.Identity()


def _epoch(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    batches: EventBatches,
    n: int,
    size: int,
    epoch: int,
    device: str,
) -> dict[str, float]:
    judge = objective(0.1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(epoch)).numpy()
    spent = {"data": 0.0, "network": 0.0, "optimiser": 0.0}
    network.train()
    began = time.perf_counter()
    for first in range(0, n, size):
        start = time.perf_counter()
        x, labels = batches.batch(order[first : first + size], epoch)
        x, labels = x.to(device), labels.to(device)
        loaded = time.perf_counter()
        loss = judge(network, x, labels).loss
        loss.backward()
        loss.item()
        differentiated = time.perf_counter()
        optimiser.step()
        optimiser.zero_grad()
        spent["data"] += loaded - start
        spent["network"] += differentiated - loaded
        spent["optimiser"] += time.perf_counter() - differentiated
    return spent | {"all": time.perf_counter() - began}


def _convolutions(network: nn.Module, batches: EventBatches, n: int, size: int, device: str) -> float:
    """Seconds an epoch that the convolutions alone take, forward and backward, on inputs of the same shapes."""
    x, _ = batches.batch(torch.arange(min(size, n)).numpy(), None)
    shapes: list[tuple[nn.Module, torch.Size]] = []

    def look(layer: nn.Module, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        shapes.append((layer, inputs[0].shape))

    hooks = [m.register_forward_hook(look) for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        network(x.to(device))
    for hook in hooks:
        hook.remove()
    total = 0.0
    for i, (layer, shape) in enumerate(shapes):
        given = torch.rand(shape, device=device, requires_grad=i > 0)
        grad = torch.ones_like(layer(given))
        times = []
        for _ in range(8):
            start = time.perf_counter()
            layer(given).backward(grad)
            times.append(time.perf_counter() - start)
        total += median(times[2:])
    return total * n / size


def summary(rows: Sequence[Row]) -> list[str]:
    """How many times as fast an epoch is as the faster peer's, and how near it comes to neurons that cost nothing."""
    seconds = {row.what: row.median for row in rows}
    theirs = [seconds[p] for p in ("spikingjelly", "snntorch") if p in seconds]
    lines = [
        f"an epoch takes {seconds[OURS]:.2f} s; with neurons that cost nothing {seconds[OUR_FLOOR]:.2f} s, "
        f"with those and torch's own layers {seconds[FLOOR]:.2f} s"
    ]
    if theirs:
        lines.append(
            f"{min(theirs) / seconds[OURS]:.2f}× as fast as the faster of snntorch and spikingjelly "
            f"(free neurons among torch's own layers: {min(theirs) / seconds[FLOOR]:.2f}×)"
        )
    return lines
