"""Training steps of the ladder of IIR-SNN at five steps and at one, with other libraries' neurons in the same network.

A quarter as wide as the published VGG of six layers, for images 28×28; thresholds are calibrated over one step, so that a tenth of
all neurons fires. The peers' network is the same one made of torch's own layers, dropout with one mask for all steps, and the peer's
integrate-and-fire neurons with a fixed threshold and no learned leak, which is less work than ours do; loss and optimiser are the same.
Networks whose neurons do nothing are timed beside them: no neuron, however fast, gets below those with the same layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from spiking.benchmarks import peers
from spiking.benchmarks.run import Row, interleaved
from torch import nn

from spiking import LIF, encode
from spiking.convert import from_ann
from spiking.models.iir import VGG

NAME = "ladder"
TITLE = "training steps of the ladder of IIR-SNN at T=5 and T=1, against the same network with peers' neurons"
OURS, FLOOR, OUR_FLOOR = "spiking", "identity neurons", "identity neurons, our layers"
BATCH, LEAK = 64, 0.99


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    torch.manual_seed(0)
    width, batch = (0.05, 4) if quick else (0.25, BATCH)
    images, labels = torch.rand(batch, 1, 28, 28, device=device), torch.arange(batch, device=device) % 10
    ann = VGG("vgg6", in_channels=1, image_size=28, width=width, dropout=0.2).to(device)
    contestants: dict[str, Callable[[float], nn.Module] | None] = {OURS: None, OUR_FLOOR: _nothing, FLOOR: _nothing}
    contestants |= peers.installed("spikingjelly", "snntorch")
    for timesteps in (5, 1):
        steps = {}
        for name, make in contestants.items():
            network: nn.Module = from_ann(ann, images, timesteps=1)
            for neuron in network.modules():
                if make is not None and isinstance(neuron, LIF):
                    neuron.beta.requires_grad_(False).fill_(LEAK)  # type: ignore[union-attr]
            network = network if make is None else peers.with_neurons(network, make, own_layers=name == OUR_FLOOR)
            steps[name] = _step(network.to(device).train(), images, labels, timesteps)
        times = interleaved(steps, 2 if quick else 15)
        for name, seconds in times.items():
            yield Row(NAME, name, seconds, None if name == OURS else OURS, f"T={timesteps}, batch {batch}")


def _nothing(beta: float) -> nn.Module:
    return nn.Identity()


def _step(network: nn.Module, images: torch.Tensor, labels: torch.Tensor, timesteps: int) -> Callable[[], None]:
    """One training step, to be timed."""
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4, amsgrad=True, fused=True)
    x = encode.direct(images, timesteps)

    def step() -> None:
        loss = nn.functional.cross_entropy(network(x).sum(0), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()

    return step


def summary(rows: Sequence[Row]) -> list[str]:
    """For each number of steps, how many times as fast as the faster peer, and as with neurons that cost nothing."""
    lines = []
    for group in dict.fromkeys(row.group for row in rows):
        seconds = {row.what: row.median for row in rows if row.group == group}
        theirs = [seconds[p] for p in ("spikingjelly", "snntorch") if p in seconds]
        text = f"{group}: a step takes {1e3 * seconds[OURS]:.1f} ms, {1e3 * seconds[OUR_FLOOR]:.1f} ms with neurons that cost nothing"
        if theirs:
            text += f"; {min(theirs) / seconds[OURS]:.2f}× as fast as the faster of snntorch and spikingjelly"
            text += f" (free neurons among torch's own layers: {min(theirs) / seconds[FLOOR]:.2f}×)"
        lines.append(text)
    return lines
