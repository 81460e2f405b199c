"""Dense products on CPUs: torch's own, or oneDNN's where torch would multiply with half of the vector width.

torch multiplies float32 matrices with MKL, which takes its 256-bit kernels on processors of other makers than its own, whatever
these can do; oneDNN, which torch brings along for convolutions, asks the processor (AMD Zen 5: 460 against 210 GFLOP/s).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as tf

from . import backend

__all__ = ["is_wider", "learnable", "linear", "product"]

_LEAST_ROWS = 4  # below, memory is what a product waits for
_LEAST_MACS = 1 << 20  # below, calling oneDNN costs more than it saves


@functools.cache
def _onednn() -> Any:
    """oneDNN's linear layer where it is the wider one, else None."""
    wider = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and backend.is_wide_amd()
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None) if wider else None


def is_wider(a: Tensor, b: Tensor) -> bool:
    """Whether a·bᵀ, a [n, k] and b [m, k], is quicker by oneDNN."""
    return (
        a.dtype is torch.float32
        and b.dtype is torch.float32
        and a.is_cpu
        and b.is_cpu
        and a.layout is torch.strided
        and a.shape[0] >= _LEAST_ROWS
        and a.shape[0] * a.shape[1] * b.shape[0] >= _LEAST_MACS
        and _onednn() is not None
        and torch._C._get_mkldnn_enabled()
    )


def _by_onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = _onednn()(a, b, bias, "none", [], "")
    return y


def product(a: Tensor, b: Tensor) -> Tensor:
    """a·b of matrices, without derivatives of its own."""
    return _by_onednn(a, b.t(), None) if is_wider(a, b.t()) else a @ b


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·Wᵀ + b, without derivatives of its own."""
    rows = x.reshape(-1, x.shape[-1]) if x.dim() else x
    if not (x.dim() and is_wider(rows, weight)) or (bias is not None and bias.dtype is not torch.float32):
        return tf.linear(x, weight, bias)
    return _by_onednn(rows, weight, bias).view(*x.shape[:-1], weight.shape[0])


def learnable(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·Wᵀ + b that can be derived as often as torch's."""
    rows = x.reshape(-1, x.shape[-1])
    forward_mode = torch.autograd.forward_ad._current_level >= 0  # derivatives that `_Linear` does not have
    if forward_mode or not is_wider(rows, weight) or (bias is not None and bias.dtype is not torch.float32):
        return tf.linear(x, weight, bias)
    y: Tensor = _Linear.apply(rows, weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight if x.requires_grad else None)
        return _by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        times = torch.matmul if torch.is_grad_enabled() else product
        grad = grads[0]
        on_x, on_weight, on_bias = ctx.needs_input_grad
        return (
            times(grad, weight) if on_x else None,
            times(grad.t(), x) if on_weight else None,
            grad.sum(0) if on_bias else None,
        )
