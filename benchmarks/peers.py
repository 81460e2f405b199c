"""Other libraries' LIF neurons as modules `[T, B, *] -> [T, B, *]`, each run the fastest way that its documentation shows.

All follow `h = beta·v + x`, fire at threshold 1 and subtract it. Where a library offers the arctangent surrogate it is used; the
others run with their own default.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spiking import LIF, AvgPool2d, BatchNorm2d, Conv2d, Dropout, Linear, MaxPool2d

__all__ = ["NEURONS", "installed", "with_neurons"]


class SpikingJelly(nn.Module):
    """LIFNode in multi-step mode; step by step it keeps its state in itself, and starts anew where none is passed."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron, surrogate

        self.node = neuron.LIFNode(
            tau=1 / (1 - beta),
            decay_input=False,
            v_reset=None,
            surrogate_function=surrogate.ATan(alpha=2.0),
            detach_reset=True,
            step_mode="m",
        )

    def forward(self, x: Tensor) -> Tensor:
        from spikingjelly.activation_based import functional

        functional.reset_net(self.node)
        self.node.step_mode = "m"
        return self.node(x)

    def advance(self, x_t: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        if state is None:
            self.node.reset()
            self.node.step_mode = "s"
        return self.node(x_t), self.node


class SnnTorch(nn.Module):
    """Leaky, in the loop over time that its tutorials write. By its default the reset comes one step late."""

    def __init__(self, beta: float, reset_delay: bool = True) -> None:
        super().__init__()
        import snntorch
        from snntorch import surrogate

        self.node = snntorch.Leaky(
            beta=beta, spike_grad=surrogate.atan(alpha=2.0), reset_mechanism="subtract", reset_delay=reset_delay
        )

    def forward(self, x: Tensor) -> Tensor:
        membrane, spikes = self.node.reset_mem(), []
        for x_t in x.unbind(0):
            s, membrane = self.node(x_t, membrane)
            spikes.append(s)
        return torch.stack(spikes)

    def advance(self, x_t: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.node(x_t, self.node.reset_mem() if state is None else state)


class Norse(nn.Module):
    """LIFBoxCell; its input is multiplied with dt/tau, which is undone here."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        from norse.torch import LIFBoxCell, LIFBoxParameters
        from norse.torch.functional.reset import reset_subtract

        self.gain = 1 / (1 - beta)
        self.node = LIFBoxCell(
            LIFBoxParameters(tau_mem_inv=torch.tensor((1 - beta) / 1e-3), reset_method=reset_subtract)
        )

    def forward(self, x: Tensor) -> Tensor:
        state, spikes = None, []
        for x_t in (x * self.gain).unbind(0):
            s, state = self.node(x_t, state)
            spikes.append(s)
        return torch.stack(spikes)

    def advance(self, x_t: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self.node(x_t * self.gain, state)


class Sinabs(nn.Module):
    """LIF layer with single spikes, batch first."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        from sinabs.activation import MembraneSubtract, SingleSpike
        from sinabs.layers import LIF as Layer

        self.node = Layer(
            tau_mem=-1 / math.log(beta),
            norm_input=False,
            spike_fn=SingleSpike,
            reset_fn=MembraneSubtract(),
            train_alphas=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        self.node.reset_states()
        return self.node(x.transpose(0, 1)).transpose(0, 1)


NEURONS: dict[str, Callable[[float], nn.Module]] = {
    "spikingjelly": SpikingJelly,
    "snntorch": SnnTorch,
    "norse": Norse,
    "sinabs": Sinabs,
}


def installed(*names: str) -> dict[str, Callable[[float], nn.Module]]:
    """Those of `names` (all where none is named) that can be built here; the others are named on standard error."""
    found = {}
    for name in names or NEURONS:
        try:
            NEURONS[name](0.9)
        except ImportError as err:
            print(f"bench: {name} is left out: {err} (pip install spiking[peers])", file=sys.stderr)
        else:
            found[name] = NEURONS[name]
    return found


class Folded(nn.Module):
    """What torch's own layer does on [T, B, *], with time folded into the batch as the peers' layers and tutorials do it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.torchs: Any = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch."))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.torchs.forward(self.layer, x.flatten(0, 1))
        return y.unflatten(0, x.shape[:2])


class OneMask(nn.Module):
    """Dropout of [T, B, *] with one mask for all steps, as a peer's user writes it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * nn.functional.dropout(torch.ones_like(x[0]), self.p, self.training)


def with_neurons(network: nn.Module, make: Callable[[float], nn.Module], own_layers: bool = False) -> nn.Module:
    """The network with every hidden LIF replaced by `make(beta)`; weights stay.

    Layers with weights, norms, pooling and dropout run as torch's own, which know no events, unless `own_layers` keeps ours.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LIF) and child.rule.reset != "none":
                setattr(parent, name, make(float(child.cells()["beta"])))
            elif isinstance(child, (Conv2d, Linear, BatchNorm2d, AvgPool2d, MaxPool2d)) and not own_layers:
                setattr(parent, name, Folded(child))
            elif isinstance(child, Dropout) and not own_layers:
                setattr(parent, name, OneMask(child.p))
    return network
