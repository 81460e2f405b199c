"""torch.library registration of neurons with graded spikes: one differentiable op, `spiking::graded`.

`graded(x, state, params, inner, rule, numbers, keep)` -> (spikes, last membrane, saved). x is [T, B, *]; state [B, *] or None (v_leak);
params [3, C] (beta, threshold, a row that nobody reads; the state's dtype) or None for the numbers. rule: spacing, levels; numbers: beta,
threshold, v_leak, in the order of cpu/graded_bind.cpp. `keep` says that a backward will follow. Where no kernel runs, the caller takes
`by_reference`, which autograd derives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spiking.errors import SpikingError

from . import backend, memory, reference
from .ops import _DTYPES, _address, _threads_for, state_dtype
from .ops import _library as library

__all__ = ["SPACINGS", "by_reference", "graded"]

SPACINGS = ("linear", "octave")

library.define(
    "graded(Tensor x, Tensor? state, Tensor? params, int inner, int[] rule, float[] numbers, bool keep) -> (Tensor, Tensor, Tensor)"
)
library.define(
    "graded_backward(Tensor? grad_s, Tensor? grad_state, Tensor? state, Tensor? params, Tensor saved, ScalarType dtype, int inner, "
    "int[] rule, float[] numbers, bool want_params) -> (Tensor, Tensor, Tensor)"
)


# --- kernels ------------------------------------------------------------------------------------------------------------


def _sizes(shape: Any, params: Tensor | None, inner: int) -> tuple[int, int, int, int]:
    return shape[0], shape[1:].numel(), 1 if params is None else params.shape[1], inner


def by_reference(
    x: Tensor, state: Tensor | None, params: Tensor | None, inner: int, rule: list[int], numbers: list[float]
) -> tuple[Tensor, Tensor]:
    """Spikes and last membrane by the oracle; arguments as those of the operator."""
    wide, features = state_dtype(x.dtype), x.shape[2:]
    if params is None:
        beta, threshold = (torch.full((), value, dtype=wide, device=x.device) for value in numbers[:2])
    else:
        rows = params[:2].repeat_interleave(inner, dim=1) if params.shape[1] > 1 else params[:2]
        beta, threshold = (row.reshape(features if row.numel() == features.numel() else ()) for row in rows)
    v = torch.full(x.shape[1:], numbers[2], dtype=wide, device=x.device) if state is None else state
    return reference.graded(x, v, beta, threshold, rule[1], SPACINGS[rule[0]], numbers[2])


def _graded(
    x: Tensor,
    state: Tensor | None,
    params: Tensor | None,
    inner: int,
    rule: list[int],
    numbers: list[float],
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if backend.choose(x.device).name == "reference":  # inside torch.compile, which sees no backend
        return *by_reference(x, state, params, inner, rule, numbers), x.new_empty(0, dtype=state_dtype(x.dtype))
    x = x.contiguous()
    state = None if state is None else state.contiguous()
    params = None if params is None else params.contiguous()
    wide = state_dtype(x.dtype)
    s, last = memory.empty(x.shape, x.dtype, x.device), memory.empty(x.shape[1:], wide, x.device)
    saved = memory.empty(x.shape if keep else (0,), wide, x.device)
    addresses = [_address(t) for t in (x, state, params, s, last, saved)]
    sizes, packed = _sizes(x.shape, params, inner), [_DTYPES.index(x.dtype), *rule]
    if backend.choose(x.device).name == "cuda":
        from .cuda import graded as cuda

        cuda.forward(addresses, sizes, packed, numbers, x.device)
    else:
        backend.kernels().graded_forward(*addresses, *sizes, packed, numbers, _threads_for(x.numel()))
    return s, last, saved


def _graded_backward(
    grad_s: Tensor | None,
    grad_state: Tensor | None,
    state: Tensor | None,
    params: Tensor | None,
    saved: Tensor,
    dtype: torch.dtype,
    inner: int,
    rule: list[int],
    numbers: list[float],
    want_params: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_s, grad_state, state, params = (
        None if t is None else t.contiguous() for t in (grad_s, grad_state, state, params)
    )
    choice = backend.choose(saved.device).name
    if choice == "reference":
        raise SpikingError(
            "MultiLevelLIF: got torch.compile, gradients and no kernels; expected one of these less. Train it uncompiled."
        )
    on_cuda = choice == "cuda"
    grad_x = memory.empty(saved.shape, dtype, saved.device)
    grad_state0 = memory.empty(saved.shape[1:] if state is not None else (0,), saved.dtype, saved.device)
    threads = _threads_for(saved.numel())
    sizes, packed = _sizes(saved.shape, params, inner), [_DTYPES.index(dtype), *rule]
    rows = (1 if on_cuda else threads) if want_params and params is not None else 0
    grad_params = torch.zeros((rows, 3, sizes[2]), dtype=torch.float64, device=saved.device)
    tensors = (state, params, saved, grad_s, grad_state, grad_x, grad_state0, grad_params)
    addresses = [_address(t) for t in tensors]
    if on_cuda:
        from .cuda import graded as cuda

        cuda.backward(addresses, sizes, packed, numbers, saved.device)
    else:
        backend.kernels().graded_backward(*addresses, *sizes, packed, numbers, threads)
    sums = grad_params.sum(0).to(saved.dtype) if rows else saved.new_empty(0)
    return grad_x, grad_state0, sums


for key in ("CPU", "CUDA"):
    library.impl("graded", _graded, key)
    library.impl("graded_backward", _graded_backward, key)


# --- fake ---------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("spiking::graded")
def _graded_fake(
    x: Tensor,
    state: Tensor | None,
    params: Tensor | None,
    inner: int,
    rule: list[int],
    numbers: list[float],
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = state_dtype(x.dtype)
    saved = x.new_empty(x.shape if keep else (0,), dtype=wide)
    return x.new_empty(x.shape), x.new_empty(x.shape[1:], dtype=wide), saved


@torch.library.register_fake("spiking::graded_backward")
def _graded_backward_fake(
    grad_s: Tensor | None,
    grad_state: Tensor | None,
    state: Tensor | None,
    params: Tensor | None,
    saved: Tensor,
    dtype: torch.dtype,
    inner: int,
    rule: list[int],
    numbers: list[float],
    want_params: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        saved.new_empty(saved.shape, dtype=dtype),
        saved.new_empty(saved.shape[1:] if state is not None else (0,)),
        saved.new_empty((3, params.shape[1]) if want_params and params is not None else (0,)),
    )


# --- autograd -----------------------------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, state, params, ctx.inner, ctx.rule, ctx.numbers, _ = inputs
    ctx.dtype = x.dtype
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(state, params, output[2])


def _backward(ctx: Any, grad_s: Tensor | None, grad_state: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    state, params, saved = ctx.saved_tensors
    if grad_s is None and grad_state is None:
        return (None,) * 7
    on_x, on_state, on_params = ctx.needs_input_grad[:3]
    call = (ctx.dtype, ctx.inner, ctx.rule, ctx.numbers, on_params)
    grad_x, grad_state0, grad_params = torch.ops.spiking.graded_backward(
        grad_s, grad_state, state, params, saved, *call
    )
    return (
        grad_x if on_x else None,
        grad_state0 if on_state else None,
        grad_params if on_params else None,
        *(None,) * 4,
    )


torch.library.register_autograd("spiking::graded", _backward, setup_context=_setup_context)

graded = torch.ops.spiking.graded
