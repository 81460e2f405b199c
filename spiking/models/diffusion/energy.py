"""What a call of the denoiser costs, by the paper's formula and with every multiplication counted.

The published formula takes each convolution but the first as additions, one for each nonzero input and weight. But the shortcuts, the
tail and the embedding of the diffusion step are given floats: those are multiplications. Both lines stand side by side here.
Source: Cao et al. 2024 (arXiv 2408.16467), section V; energies of 45 nm from Horowitz 2014 (ISSCC), 32-bit floats.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spiking.models.diffusion.unet import SpikingUNet

__all__ = ["CallCost", "LayerCost", "price_call"]

MAC, AC = 4.6e-12, 0.9e-12  # joules


class LayerCost(NamedTuple):
    """One layer in one call, per image: products a time step, time steps, share of nonzero inputs, and whether these are 0 and 1."""

    macs: int
    steps: int
    density: float
    binary: bool


class CallCost(NamedTuple):
    """Joules of one call per image: as published, honest, and of the same network with a multiplication everywhere and one step."""

    published: float
    honest: float
    conventional: float
    layers: dict[str, LayerCost]

    def per_image(self, calls: int) -> tuple[float, float]:
        """Joules of an image that takes so many calls: as published, and honest."""
        return calls * self.published, calls * self.honest


@torch.no_grad()
def price_call(net: SpikingUNet, x: Tensor, t: Tensor, labels: Tensor | None = None) -> CallCost:
    """The energy of a call, per image, at the activity that these images cause.

        published = 4.6 pJ·MAC(first) + 0.9 pJ·Σ density·T·MAC(l);   honest: 4.6 pJ·T·MAC(l) wherever the input is not 0 and 1

    The first convolution sees the same image at each step and is counted once in both.

    >>> from spiking.models.diffusion import UNetConfig
    >>> net = SpikingUNet(UNetConfig(image_channels=1, channels=8, multipliers=(1, 2), blocks=1))
    >>> cost = price_call(net, torch.randn(2, 1, 8, 8), torch.tensor([3, 617]))
    >>> cost.honest > cost.published
    True
    """
    found: dict[str, LayerCost] = {}
    names = {layer: name for name, layer in net.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}

    def note(layer: Any, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        (given,) = inputs
        sequence = given.dim() == 5
        steps = given.shape[0] if sequence else 1
        if names[layer] == "conv":
            steps = 1
        if isinstance(layer, nn.Conv2d):
            macs = layer.weight[0].numel() * y.shape[-3] * y.shape[-2] * y.shape[-1]
        else:
            macs = layer.weight.numel()
        active = float(given.count_nonzero()) / max(1, given.numel())
        binary = bool(((given == 0) | (given == 1)).all())
        found[names[layer]] = LayerCost(macs, steps, active, binary)

    hooks = [layer.register_forward_hook(note) for layer in names]
    was = net.training
    try:
        net.eval()
        net(x, t, labels)
    finally:
        net.train(was)
        for hook in hooks:
            hook.remove()
    published = honest = conventional = 0.0
    for name, layer in found.items():
        additions = AC * layer.density * layer.steps * layer.macs
        products = MAC * layer.steps * layer.macs
        published += products if name == "conv" else additions
        honest += additions if layer.binary and name != "conv" else products
        conventional += MAC * layer.macs
    return CallCost(published, honest, conventional, found)
