"""What a network of IIR-SNN holds and multiplies, layer by layer, and what it would cost at firing rates that a run measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spiking import encode
from spiking.convert.ann import percentile
from spiking.convert.network import SpikingNet
from spiking.errors import SpikingError
from spiking.models.iir.energy import price
from spiking.neuron import LIF

__all__ = ["LayerSize", "Measured", "PricedTopology", "layer_macs", "layer_sizes", "price_at_rates", "read_rates"]


class LayerSize(NamedTuple):
    """A layer with weights, for one image: products as papers count them, weights, and the neurons behind it."""

    macs: int
    parameters: int
    neurons: int


def layer_sizes(network: nn.Module, *image: int) -> dict[str, LayerSize]:
    """The sizes of each layer with weights for one image (channels, height, width).

    Multiply-accumulates are output pixels times weights of one: what lies outside of the image is counted too. Neurons are
    those of the activation that follows.

    >>> from spiking.models.iir.networks import VGG
    >>> with torch.device("meta"):
    ...     network = VGG("vgg16")
    >>> sizes = layer_sizes(network, 3, 32, 32)
    >>> [sum(column) for column in zip(*sizes.values())]
    [338403328, 39917248, 284672]
    """
    found: dict[str, LayerSize] = {}
    hooks = []

    def count(name: str) -> Any:
        def note(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            weight = next(layer.parameters())
            parameters = sum(p.numel() for p in layer.parameters())
            found[name] = LayerSize(output[0].numel() // weight.shape[0] * weight.numel(), parameters, 0)

        return note

    def activate(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        last = next(reversed(found))
        found[last] = found[last]._replace(neurons=output[0].numel())

    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            hooks.append(layer.register_forward_hook(count(name)))
        elif isinstance(layer, nn.ReLU):
            hooks.append(layer.register_forward_hook(activate))
    first = next(network.parameters())
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *image, device=first.device, dtype=first.dtype))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return found


def layer_macs(network: nn.Module, *image: int) -> dict[str, int]:
    """Multiply-accumulates of each layer with weights for one image (channels, height, width); see `layer_sizes`.

    >>> layer_macs(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), 3, 32, 32)
    {'0': 221184}
    """
    return {name: size.macs for name, size in layer_sizes(network, *image).items()}


@dataclass(frozen=True)
class Measured:
    """What a run measured at one number of steps: spikes per neuron and step, from the first layer of neurons to the last."""

    start: str
    timesteps: int
    rates: tuple[float, ...]


def read_rates(path: str | Path) -> list[Measured]:
    """The firing rates of all stages of the best start of a run, from its metrics.json.

    Errors: SpikingError naming the file, where it is not there or not of `spiking iir run`.
    """
    file = Path(path)
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
        best = metrics["best_start"]
        stages = metrics["starts"][best]["stages"]
        found = [Measured(best, int(s["timesteps"]), tuple(map(float, s["rates"].values()))) for s in stages]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        why = "there is no such file" if not file.is_file() else "it is not one"
        raise SpikingError(f"{file}: {why}; expected the metrics.json of a run of spiking iir.") from err
    for stage in found:
        if not stage.rates or not all(0 <= rate <= 1 for rate in stage.rates):
            raise SpikingError(
                f"{file}: got the rates {list(stage.rates)}; expected 0 to 1 spikes per neuron and step."
            )
    return found


@dataclass(frozen=True)
class PricedTopology:
    """A network's energies at given rates: see `price`; `wanted` and `reached` are its rates, layer by layer."""

    timesteps: int
    wanted: tuple[float, ...]
    reached: tuple[float, ...]
    energy: dict[str, Any]


def price_at_rates(network: SpikingNet, images: Tensor, rates: Sequence[float], timesteps: int) -> PricedTopology:
    """What a network of this shape costs at the firing rates of another one, which it takes over by relative depth.

    The weights of `network` stay as they are (random ones, say); the threshold of each layer of neurons, in the order of
    execution, is set so that on `images` [B, …] the layer fires as often as the measured one at the same share of the way from
    first to last, in between linearly interpolated. Then the trace of these images is priced. What depends on where spikes
    fall, such as how many windows of a pooling are empty, is that of spikes from random weights.
    Errors: SpikingError for no rates, rates outside of 0…1, or neurons that conversions do not make.

    >>> from spiking.models.iir.networks import SpikingVGG
    >>> net = SpikingVGG("vgg6", in_channels=1, image_size=8, width=0.1)
    >>> found = price_at_rates(net, torch.rand(4, 1, 8, 8), rates=[0.1, 0.2], timesteps=1)
    >>> [round(rate, 2) for rate in found.reached]
    [0.1, 0.12, 0.15, 0.17, 0.2]
    """
    if not len(rates) or not all(0 <= rate <= 1 for rate in rates):
        raise SpikingError(
            f"price_at_rates.rates: got {list(rates)}; expected at least one, 0 to 1 spikes per neuron and step."
        )
    neurons = [layer for layer in network.modules() if isinstance(layer, LIF)]
    if not neurons:
        raise SpikingError("price_at_rates: got a network without LIF neurons; expected one that a conversion made.")
    measured = np.linspace(0, 1, len(rates)) if len(rates) > 1 else np.zeros(1)
    wanted = np.interp(np.linspace(0, 1, len(neurons)), measured, rates).tolist()
    targets, reached = iter(wanted), []

    def settle(layer: LIF, inputs: tuple[Tensor, ...]) -> None:
        threshold = layer.threshold
        assert isinstance(threshold, Tensor)
        reached.append(_settled(layer, threshold, inputs[0], next(targets)))

    hooks = [layer.register_forward_pre_hook(settle) for layer in neurons]
    network.eval()
    try:
        with torch.no_grad():
            network(encode.direct(images, timesteps))
    finally:
        for hook in hooks:
            hook.remove()
    return PricedTopology(timesteps, tuple(wanted), tuple(reached), price(network, images, timesteps)[0])


def _settled(layer: LIF, threshold: Tensor, current: Tensor, rate: float) -> float:
    """Set the threshold so that neurons with this input fire at a rate, or come as near as they can; returns the rate."""

    def found(value: float) -> float:
        threshold.fill_(value)
        return float(type(layer).forward(layer, current).mean())

    if current.shape[0] == 1:
        return found(max(percentile(current, 100 * (1 - rate)), 1e-6 * float(current.abs().max())))
    low, high = 1e-6 * float(current.abs().max()), float(current.abs().sum(0).max())
    for _ in range(24):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if found(middle) > rate else (low, middle)
    return found(high)
