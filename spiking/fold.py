"""Batch normalisation as part of the weights before it: what a network becomes before it meets hardware."""

from __future__ import annotations

import copy
import itertools
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spiking.errors import SpikingError

__all__ = ["fold_batch_norm", "gain_and_shift"]

_WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy of the model in which every batch norm directly behind a linear or convolutional layer is part of its weights.

        W' = W·g;   b' = (b - mean)·g + bias;   g = scale·weight / sqrt(var + eps)

    mean and var are the running ones, scale is alpha·threshold for threshold-dependent norms and 1 for others. A folded
    norm becomes `nn.Identity`, so that all other layers keep their names. "Directly behind" means the next child of a
    Sequential, behind a layer that stands nowhere else; other norms stay as they are. In evaluation the copy gives the
    model's results up to rounding.

    Errors: SpikingError naming a norm that keeps no running statistics, or that has another number of channels.
    Source: Jacob et al. 2018 (arXiv 1712.05877), equation 14; threshold-dependent: Zheng et al. 2021 (arXiv 2011.05280).

    >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.BatchNorm1d(3)).eval()
    >>> x = torch.rand(4, 2)
    >>> folded = fold_batch_norm(model)
    >>> folded[1], torch.allclose(folded(x), model(x), atol=1e-6)
    (Identity(), True)
    """
    model = copy.deepcopy(model)
    used = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    for name, chain in model.named_modules():
        if isinstance(chain, nn.Sequential):
            children = list(chain._modules.items())
            for (_, layer), (own, norm) in itertools.pairwise(children):
                if isinstance(layer, _WEIGHTS) and isinstance(norm, _BatchNorm) and used[id(layer)] == 1:
                    _fold(layer, norm, f"{name}.{own}" if name else own)
                    chain._modules[own] = nn.Identity()
    return model


def gain_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation as y = gain·x + shift, [C] each, in float64.

    >>> gain, shift = gain_and_shift(nn.BatchNorm1d(2, eps=0.0))
    >>> gain.tolist(), shift.tolist()
    ([1.0, 1.0], [0.0, 0.0])
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    gain = gain * getattr(norm, "alpha", 1.0) * getattr(norm, "threshold", 1.0)  # of a threshold-dependent norm
    if norm.weight is not None:
        gain = gain * norm.weight.detach()
    shift = -norm.running_mean.double() * gain
    return gain, shift if norm.bias is None else shift + norm.bias.detach()


@torch.no_grad()
def _fold(layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, norm: _BatchNorm, name: str) -> None:
    weight, bias = layer.weight, layer.bias
    if norm.running_mean is None or norm.running_var is None:
        raise SpikingError(
            f'fold_batch_norm: layer "{name}" keeps no running statistics; expected track_running_stats=True. Its values '
            "depend on the batch, so no weights can hold them."
        )
    if norm.num_features != len(weight):
        raise SpikingError(
            f'fold_batch_norm: layer "{name}" normalises {norm.num_features} channels; the layer before it has {len(weight)}.'
        )
    gain, shift = gain_and_shift(norm)
    if bias is not None:
        shift = shift + bias * gain
    folded = weight * gain.reshape(-1, *(1,) * (weight.dim() - 1))
    layer.weight = nn.Parameter(folded.to(weight.dtype), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)
