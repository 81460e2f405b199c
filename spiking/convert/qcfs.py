"""Quantised activations to train with, so that the spiking network that a conversion makes has little left to lose."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from spiking.errors import SpikingError

__all__ = ["QCFS", "quantize_activations"]


class _ClipFloorShift(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, levels: int) -> Tensor:
        ratio = (x / threshold).clamp(0, 1)
        y = threshold * (levels * ratio + 0.5).floor() / levels
        ctx.save_for_backward(x, threshold, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, threshold, y = ctx.saved_tensors
        inside = (x > 0) & (x < threshold)
        to_threshold = torch.where(inside, (y - x) / threshold, (x >= threshold).to(x.dtype))
        return grads[0] * inside, (grads[0] * to_threshold).sum().reshape(threshold.shape), None


class QCFS(nn.Module):
    """Quantisation clip-floor-shift: an activation of L levels, which an integrate-and-fire neuron reproduces in T = L steps.

        y = θ·floor(L·clip(x/θ, 0, 1) + ½)/L;   θ is learned

    Gradient: the floor passes it on: dy/dx is 1 for 0 < x < θ, else 0; dy/dθ is (y - x)/θ inside, 1 from θ on, 0 below 0.
    Errors: SpikingError unless levels >= 1 and threshold > 0.
    Source: Bu et al. 2022 (ICLR), "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency SNNs".

    >>> QCFS(levels=4, threshold=1.0)(torch.tensor([-1.0, 0.1, 0.2, 0.6, 3.0])).tolist()
    [0.0, 0.0, 0.25, 0.5, 1.0]
    """

    def __init__(self, levels: int = 4, threshold: float = 8.0) -> None:
        super().__init__()
        if not (isinstance(levels, int) and levels >= 1):
            raise SpikingError(f"QCFS.levels: got {levels!r}; expected a whole number of at least 1.")
        if not threshold > 0:
            raise SpikingError(f"QCFS.threshold: got {threshold}; expected a number above 0.")
        self.levels = levels
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))

    def forward(self, x: Tensor) -> Tensor:
        return _ClipFloorShift.apply(x, self.threshold, self.levels)

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


def quantize_activations(ann: nn.Module, levels: int = 4, threshold: float = 8.0) -> nn.Module:
    """A copy of a network whose ReLU layers are `QCFS`, to be trained and then given to `from_ann(…, method="qcfs")`.

    Errors: SpikingError if the network has no ReLU layer (functional ones cannot be replaced).

    >>> quantize_activations(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), levels=8)[1]
    QCFS(levels=8)
    """
    ann = copy.deepcopy(ann)
    replaced = 0
    for parent in list(ann.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, nn.ReLU):
                parent._modules[name] = QCFS(levels, threshold)
                replaced += 1
    if not replaced:
        raise SpikingError(
            f"quantize_activations: got {type(ann).__name__} without a ReLU layer; expected nn.ReLU modules to replace."
        )
    return ann
