"""The temporal-wise mechanism: each time step of a convolution has a weight of its own, learned after the rest.

    y[n] = p[n]·(W·s[n] + b);   p starts at 1

Source: Cao et al. 2024 (arXiv 2408.16467), section IV, in the form of their code (the bias is scaled too).
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from spiking.errors import SpikingError

__all__ = ["TemporalWise", "temporal_weights", "temporal_wise"]

M = TypeVar("M", bound=nn.Module)


class TemporalWise(nn.Module):
    """A convolution or linear layer whose output at time step n counts p[n] times.

    Shapes: [T, B, …] -> [T, B, …], or [1, B, …] (the same input at every step) -> [T, B, …].   With p = 1 bit for bit the layer.
    Errors: SpikingError for another number of time steps than `timesteps`.

    >>> from spiking import Linear
    >>> layer = TemporalWise(Linear(2, 3), timesteps=4)
    >>> layer(torch.ones(4, 1, 2)).shape, layer.p.tolist()
    (torch.Size([4, 1, 3]), [1.0, 1.0, 1.0, 1.0])
    """

    def __init__(self, layer: nn.Module, timesteps: int) -> None:
        super().__init__()
        if timesteps < 1:
            raise SpikingError(f"TemporalWise.timesteps: got {timesteps}; expected at least 1.")
        self.layer = layer
        weight = next(layer.parameters())
        self.p = nn.Parameter(torch.ones(timesteps, dtype=weight.dtype, device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] not in (1, len(self.p)):
            raise SpikingError(
                f"TemporalWise: got {x.shape[0]} time steps; expected {len(self.p)}, for which it has weights. "
                "A network with temporal weights runs as many steps as it was trained with."
            )
        y = self.layer(x)
        return y * self.p.reshape(-1, *(1,) * (y.dim() - 1))

    def extra_repr(self) -> str:
        return f"timesteps={len(self.p)}"


def temporal_wise(
    model: M,
    timesteps: int,
    kinds: tuple[type[nn.Module], ...] = (nn.Conv2d,),
    skip: tuple[str, ...] = ("output_conv",),
) -> M:
    """A copy of a model in which each layer of these kinds has a weight for every time step, all 1: the same function.

    `skip` names layers left as they are. The published stage trains the copy on for a tenth of the steps, at learning rate 1e-5.
    Errors: SpikingError if there is no such layer, or the model has such weights already.

    >>> from spiking import LIF, Linear, Sequential
    >>> [*temporal_wise(Sequential(Linear(2, 3), LIF()), 4, kinds=(nn.Linear,)).state_dict()]
    ['0.p', '0.layer.weight', '0.layer.bias']
    """
    model = copy.deepcopy(model)
    if any(isinstance(layer, TemporalWise) for layer in model.modules()):
        raise SpikingError("temporal_wise: got a model that has temporal weights; expected one without.")
    places = [
        (parent, name, child)
        for at, parent in model.named_modules()
        for name, child in parent.named_children()
        if isinstance(child, kinds) and (f"{at}.{name}" if at else name) not in skip and name not in skip
    ]
    if not places:
        wanted = ", ".join(kind.__name__ for kind in kinds)
        raise SpikingError(f"temporal_wise: got {type(model).__name__} without a layer of kind {wanted}.")
    for parent, name, child in places:
        setattr(parent, name, TemporalWise(child, timesteps))
    return model


def temporal_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights p [T] of every layer that has them, by name."""
    return {name: layer.p.detach().clone() for name, layer in model.named_modules() if isinstance(layer, TemporalWise)}
