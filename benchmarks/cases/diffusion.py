"""Spiking diffusion: a training step and a sampling call of the 8×8 U-Net, ours and with SpikingJelly's neurons in multi-step mode.

Both networks have the same weights, torch's optimiser and the same images; outputs are compared first, in float64. In ours without neurons
(each an identity) all that remains is what the layers with weights cost: the ceiling for any neuron. The energy of a call of the published
network, with random weights, stands in the summary beside the published figures.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from spiking.benchmarks.run import Row, interleaved
from torch import Tensor, nn

from spiking.models.diffusion import SpikingUNet, UNetConfig
from spiking.models.diffusion.energy import price_call
from spiking.neuron import Neuron

NAME = "diffusion"
TITLE = "training step and sampling call of a spiking U-Net, against SpikingJelly's layers; energy of the published one"
OURS, PEER, CEILING = "spiking", "spikingjelly", "spiking, no neurons"
SMALL = UNetConfig(image_channels=1, channels=16, multipliers=(1, 2), blocks=1)


class _Jelly(nn.Module):
    """IFNode in multi-step mode, reset at each call."""

    def __init__(self) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron, surrogate

        self.node = neuron.IFNode(
            v_reset=0.0, surrogate_function=surrogate.ATan(alpha=2.0), detach_reset=False, step_mode="m"
        )

    def forward(self, x: Tensor) -> Tensor:
        self.node.reset()
        return self.node(x)


class _Folded(nn.Module):
    """torch's layer on images, with the time axis folded as SpikingJelly's layer module does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def network(name: str, net: SpikingUNet) -> SpikingUNet:
    """A copy with a contestant's layers and neurons, and the same weights."""
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        for child_name, child in list(parent.named_children()):
            if isinstance(child, Neuron) and name != OURS:
                setattr(parent, child_name, _Jelly() if name == PEER else nn.Identity())
            elif isinstance(child, (nn.Conv2d, nn.BatchNorm2d)) and name == PEER and not isinstance(parent, _Folded):
                setattr(parent, child_name, _Folded(_plain(child)))
    return net


def _plain(layer: Any) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        shape: Any = (layer.kernel_size, layer.stride, layer.padding)
        made: Any = nn.Conv2d(layer.in_channels, layer.out_channels, *shape)
    else:
        made = nn.BatchNorm2d(layer.num_features)
    made.load_state_dict(layer.state_dict())
    return made.to(next(layer.parameters()).dtype)


def check(net: SpikingUNet, names: Sequence[str]) -> None:
    """Both give the same output in float64."""
    x, t = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([3, 617])
    with torch.no_grad():
        found = {name: network(name, net).double().train()(x, t) for name in names if name != CEILING}
    for name, y in found.items():
        if not torch.allclose(y, found[OURS], rtol=1e-6, atol=1e-9):
            raise AssertionError(f"the outputs of {name} and {OURS} differ")


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    from spiking.benchmarks import peers

    torch.manual_seed(0)
    base = SpikingUNet(SMALL)
    names = [OURS, CEILING, *([PEER] if PEER in peers.installed() else [])]
    check(base, names)
    batch = 16 if quick else 64
    x, noise = torch.randn(2, batch, 1, 8, 8, device=device).unbind(0)
    t = torch.randint(0, 1000, (batch,), device=device)
    nets = {name: network(name, base).to(device) for name in names}
    for group in ("training step", "sampling call"):
        calls = {}
        for name, net in nets.items():
            net.train(group == "training step")
            if net.training:
                learning = [p for p in net.parameters() if p.requires_grad]
                calls[name] = functools.partial(_train, net, torch.optim.Adam(learning), x, t, noise)
            else:
                calls[name] = functools.partial(_call, net, x, t)
        for name, seconds in interleaved(calls, 2 if quick else 8, 1 if quick else 3).items():
            yield Row(
                NAME, name, seconds, OURS if name != OURS else None, group, f"8×8, batch {batch}, T = {SMALL.timesteps}"
            )


def _train(net: nn.Module, optimiser: torch.optim.Optimizer, x: Tensor, t: Tensor, noise: Tensor) -> None:
    optimiser.zero_grad()
    ((net(x, t) - noise) ** 2).mean().backward()
    optimiser.step()


@torch.no_grad()
def _call(net: nn.Module, x: Tensor, t: Tensor) -> None:
    net(x, t)


def summary(rows: Sequence[Row]) -> list[str]:
    """How many times as fast as the peer, the share of the ceiling, and what a call of the published network costs."""
    lines = []
    for group in dict.fromkeys(row.group for row in rows):
        by_name = {row.what: row.median for row in rows if row.group == group}
        if PEER in by_name:
            lines.append(f"{group}: {by_name[PEER] / by_name[OURS]:.2f}× as fast as {PEER} (target 3×)")
        lines.append(f"{group}: {100 * by_name[CEILING] / by_name[OURS]:.0f} % of the speed without neurons")
    torch.manual_seed(0)
    cost = price_call(SpikingUNet(), torch.randn(1, 3, 32, 32), torch.tensor([500]))
    spikes = [c.density for c in cost.layers.values() if c.binary]
    lines.append(
        f"a call of the published network, T = 4, random weights, {sum(spikes) / len(spikes):.3f} of the spiking inputs active: "
        f"{1e3 * cost.published:.2f} mJ by the published formula (published: 10.97), "
        f"{1e3 * cost.honest:.2f} mJ with floats counted as such; "
        f"conventional {1e3 * cost.conventional:.2f} mJ (published: 29.23)"
    )
    return lines
