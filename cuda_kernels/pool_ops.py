"""torch.library registration of `spiking::average_pool`, and of `spiking::pool_moments`, which also gives the moments of its input.

`average_pool(x, window)` -> pooled: x [N, C, H, W]; pooled [N, C, H // window, W // window], the mean of each window.

`pool_moments(x, window)` -> (pooled, moments): x [N, C, H, W]; pooled [N, C, H // window, W // window], the mean of each window;
moments [2, C] in float64, the sums of x and of x² over N, H and W, from which batch normalisation follows. Its adjoint is

    dL/dx = dL/dmoments[0] + 2·x·dL/dmoments[1] + dL/dpooled / window²
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as tf

from . import backend, memory
from .ops import _library as library

__all__ = ["average_pool", "pool_moments"]

library.define("average_pool(Tensor x, int window) -> Tensor")
library.define("average_pool_backward(Tensor grad, int height, int width, int window) -> Tensor")
library.define("pool_moments(Tensor x, int window) -> (Tensor, Tensor)")
library.define("pool_moments_backward(Tensor grad_pooled, Tensor grad_moments, Tensor x, int window) -> Tensor")


# --- kernels ------------------------------------------------------------------------------------------------------------


def _compiled_for(x: Tensor) -> Any:
    runs = x.dtype in (torch.float32, torch.float64) and x.numel() > 0 and backend.choose(x.device).name == "cpu"
    return backend.compiled() if runs else None


def _threads_for(items: int) -> int:
    return backend.threads() if items >= 32768 else 1  # below, waking a second thread costs more than it saves


def _average_pool(x: Tensor, window: int) -> Tensor:
    module = _compiled_for(x)
    if module is None:
        return tf.avg_pool2d(x, window)
    x = x.contiguous()
    n, c, h, w = x.shape
    pooled = memory.empty((n, c, h // window, w // window), x.dtype, x.device)
    sizes = (n, c, h, w, window, x.dtype == torch.float64, _threads_for(x.numel()))
    module.pool_forward(x.data_ptr(), pooled.data_ptr(), 0, *sizes)
    return pooled


def _average_pool_backward(grad: Tensor, height: int, width: int, window: int) -> Tensor:
    module = _compiled_for(grad)
    n, c, h, w = grad.shape
    if module is None:
        whole = grad.repeat_interleave(window, 2).repeat_interleave(window, 3) / window**2
        return tf.pad(whole, (0, width - w * window, 0, height - h * window))
    grad = grad.contiguous()
    grad_x = memory.empty((n, c, height, width), grad.dtype, grad.device)
    sizes = (n, c, height, width, window, grad.dtype == torch.float64, _threads_for(grad_x.numel()))
    module.pool_backward(0, grad.data_ptr(), 0, grad_x.data_ptr(), *sizes)
    return grad_x


def _pool_moments(x: Tensor, window: int) -> tuple[Tensor, Tensor]:
    module = _compiled_for(x)
    if module is None:
        wide = x.double()
        return tf.avg_pool2d(x, window), torch.stack([wide.sum((0, 2, 3)), (wide * wide).sum((0, 2, 3))])
    x = x.contiguous()
    n, c, h, w = x.shape
    threads = backend.threads()
    pooled = memory.empty((n, c, h // window, w // window), x.dtype, x.device)
    moments = torch.zeros((threads, 2, c), dtype=torch.float64)
    wide_type = x.dtype == torch.float64
    module.pool_forward(x.data_ptr(), pooled.data_ptr(), moments.data_ptr(), n, c, h, w, window, wide_type, threads)
    return pooled, moments.sum(0)


def _pool_moments_backward(grad_pooled: Tensor, grad_moments: Tensor, x: Tensor, window: int) -> Tensor:
    module = _compiled_for(x)
    if module is None:
        constant, slope = (row.to(x.dtype)[:, None, None] for row in grad_moments)
        whole = grad_pooled.repeat_interleave(window, 2).repeat_interleave(window, 3) / window**2
        missing = (0, x.shape[3] - whole.shape[3], 0, x.shape[2] - whole.shape[2])
        return constant + 2 * slope * x + tf.pad(whole, missing)
    x, grad_pooled, grad_moments = x.contiguous(), grad_pooled.contiguous(), grad_moments.contiguous()
    n, c, h, w = x.shape
    grad_x = memory.empty(x.shape, x.dtype, x.device)
    addresses = (x.data_ptr(), grad_pooled.data_ptr(), grad_moments.data_ptr(), grad_x.data_ptr())
    module.pool_backward(*addresses, n, c, h, w, window, x.dtype == torch.float64, backend.threads())
    return grad_x


for key in ("CPU", "CUDA"):
    library.impl("average_pool", _average_pool, key)
    library.impl("average_pool_backward", _average_pool_backward, key)
    library.impl("pool_moments", _pool_moments, key)
    library.impl("pool_moments_backward", _pool_moments_backward, key)


# --- fake ---------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("spiking::average_pool")
def _average_pool_fake(x: Tensor, window: int) -> Tensor:
    n, c, h, w = x.shape
    return x.new_empty((n, c, h // window, w // window))


@torch.library.register_fake("spiking::average_pool_backward")
def _average_pool_backward_fake(grad: Tensor, height: int, width: int, window: int) -> Tensor:
    return grad.new_empty((*grad.shape[:2], height, width))


@torch.library.register_fake("spiking::pool_moments")
def _pool_moments_fake(x: Tensor, window: int) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    return x.new_empty((n, c, h // window, w // window)), x.new_empty((2, c), dtype=torch.float64)


@torch.library.register_fake("spiking::pool_moments_backward")
def _pool_moments_backward_fake(grad_pooled: Tensor, grad_moments: Tensor, x: Tensor, window: int) -> Tensor:
    return x.new_empty(x.shape)


# --- autograd -----------------------------------------------------------------------------------------------------------


def _setup_pool(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    x, ctx.window = inputs
    ctx.height, ctx.width = x.shape[2:]


def _pool_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return torch.ops.spiking.average_pool_backward(grad, ctx.height, ctx.width, ctx.window), None


torch.library.register_autograd("spiking::average_pool", _pool_backward, setup_context=_setup_pool)


def _setup_spread(ctx: Any, inputs: tuple[Tensor, int, int, int], output: Tensor) -> None:
    ctx.window = inputs[3]


def _spread_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return average_pool(grad, ctx.window), None, None, None


torch.library.register_autograd("spiking::average_pool_backward", _spread_backward, setup_context=_setup_spread)


def _setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.window = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, grad_pooled: Tensor, grad_moments: Tensor) -> tuple[Tensor, None]:
    (x,) = ctx.saved_tensors
    return torch.ops.spiking.pool_moments_backward(grad_pooled, grad_moments, x, ctx.window), None


torch.library.register_autograd("spiking::pool_moments", _backward, setup_context=_setup_context)

average_pool = torch.ops.spiking.average_pool
pool_moments = torch.ops.spiking.pool_moments
