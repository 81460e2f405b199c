"""Training for memory cells: layers that are on another chip in every pass."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from os import PathLike
from typing import Any, TypeVar

import torch
from spiking.cuda_kernels import event_linear_ops
from spiking.hw_models.arrays import Crossbar
from spiking.hw_models.cellfile import load_cell
from spiking.hw_models.deploy import check_layers, convolve, replace_layers
from spiking.hw_models.devices import Cell
from spiking.hw_models.placement import ArrayConfig
from torch import Tensor, nn

from spiking.errors import SpikingError

M = TypeVar("M", bound=nn.Module)


class _Noisy(nn.Module):
    """A layer that is on another chip in every training pass; gradients reach the weights as if they had been written exactly."""

    cell: Cell
    config: ArrayConfig
    t: float
    clip: float

    def _chip(self, weight: Tensor) -> Crossbar:
        """The array of a chip that nobody has seen yet; torch's own seed decides which."""
        if self.clip:
            with torch.no_grad():
                weight.clamp_(-self.clip * weight.std(), self.clip * weight.std())
        seed = int(torch.randint(2**62, (1,)))
        array = Crossbar(weight.detach().flatten(1), self.cell, self.config, seed)
        return array.age(self.t) if self.t else array

    def _run(self, x: Tensor, weight: Tensor, product: Any) -> Tensor:
        array = self._chip(weight)
        read = array.matrix.to(weight).reshape(weight.shape)
        y = product(x, weight + (read - weight).detach())
        if not bool(array.variance.any()):
            return y
        with torch.no_grad():
            std = product(x * x, array.variance.to(weight).reshape(weight.shape)).clamp_(min=0).sqrt_()
            noise = std * torch.randn_like(std)
        return y + noise


class NoisyLinear(_Noisy, nn.Linear):
    """A linear layer for training: see `noise_aware`."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return event_linear_ops.linear(input, self.weight, self.bias)
        y = self._run(input, self.weight, event_linear_ops.linear)
        return y if self.bias is None else y + self.bias


class NoisyConv2d(_Noisy, nn.Conv2d):
    """A convolution for training: see `noise_aware`."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 5:
            return self.forward(input.flatten(0, 1)).unflatten(0, input.shape[:2])
        if not self.training:
            return convolve(self, input, self.weight, self.bias)
        y = self._run(input, self.weight, partial(convolve, self))
        return y if self.bias is None else y + self.bias[:, None, None]


def noise_aware(
    model: M,
    preset: str | PathLike[str] | Cell,
    config: ArrayConfig | None = None,
    *,
    t: float = 0.0,
    clip: float = 2.5,
    digital: Sequence[str] = (),
) -> M:
    """A copy of a model to be trained for the cells that it will be on: every training pass meets another chip and its read noise.

    The forward pass takes the weights as a fresh chip, t seconds after writing, would give them; the gradient reaches the weights as
    if they had been written exactly. Weights are kept within `clip` standard deviations of their layer (0: not at all), because the
    largest one takes the whole range of the cells and leaves less of it to all others. Converters are not part of it.
    In evaluation the copy is the plain network. Names and parameters are the model's, so
    `model.load_state_dict(trained.state_dict())` takes them back, and `deploy` takes the copy as it is.
    Errors: those of `deploy`.
    Source: Joshi et al. 2020 (doi 10.1038/s41467-020-16108-9).

    >>> net = nn.Sequential(nn.Linear(8, 4))
    >>> learner = noise_aware(net, "rram-40nm")
    >>> x = torch.rand(3, 8)
    >>> torch.equal(learner.train()(x), learner(x)), torch.equal(learner.eval()(x), net(x))
    (False, True)
    """
    cell = load_cell(preset)
    config = ArrayConfig() if config is None else config
    if config.converts or config.read == "resample":
        raise SpikingError(
            f"noise_aware: got {config}; expected no converters and read='moments': a rounded value has no gradient."
        )
    if not (0 <= clip < math.inf):
        raise SpikingError(f"noise_aware: got clip={clip}; expected standard deviations, or 0 for none.")
    names = check_layers("noise_aware", model, digital)

    def make(name: str, layer: nn.Module) -> nn.Module:
        kind = NoisyConv2d if isinstance(layer, nn.Conv2d) else NoisyLinear
        noisy = kind.__new__(kind)
        noisy.__dict__.update(layer.__dict__)
        noisy.cell, noisy.config, noisy.t, noisy.clip = cell, config, t, clip
        noisy._chip(layer.weight.detach().clone())  # type: ignore[operator]  # refuses what cannot be placed, now
        return noisy

    return replace_layers(copy.deepcopy(model), names, make)


__all__ = ["NoisyConv2d", "NoisyLinear", "noise_aware"]
