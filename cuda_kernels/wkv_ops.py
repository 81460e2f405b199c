"""torch.library registration of `spiking::wkv`: RWKV-4's WKV over whole sequences, its state in and out.

`wkv(w, u, k, v, state, save)` -> (y, last state, saved): w, u [C] and the state [3, B, C] (p, q, o; None: an empty past) in float32, or
in float64 where k is; k, v, y [T, B, C]. `saved` holds the state at every CHUNK steps where a backward will follow, which runs each
chunk forward again. The exponent o is only a scale: its gradient is zero, and those of p and q hold it constant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backend, memory, reference
from .ops import _DTYPES as DTYPES
from .ops import CHUNK, state_dtype
from .ops import _address as address
from .ops import _library as library
from .ops import _threads_for as threads_for

__all__ = ["wkv"]

library.define("wkv(Tensor w, Tensor u, Tensor k, Tensor v, Tensor? state, bool save) -> (Tensor, Tensor, Tensor)")
library.define(
    "wkv_backward(Tensor? grad_y, Tensor? grad_state, Tensor w, Tensor u, Tensor k, Tensor v, Tensor? state, Tensor saved) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _borders(steps: int) -> int:
    """How many chunks begin with a state that another chunk left."""
    return max(0, -(-steps // CHUNK) - 1)


def _rest(k: Tensor) -> Tensor:
    state = torch.zeros((3, *k.shape[1:]), dtype=state_dtype(k.dtype), device=k.device)
    state[2] = reference.WKV_REST
    return state


# --- kernels ------------------------------------------------------------------------------------------------------------


def _wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor | None, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    choice = backend.choose(k.device).name
    wide = state_dtype(k.dtype)
    if choice == "reference" or k.numel() == 0:
        y, last = reference.wkv(w, u, k, v, _rest(k) if state is None else state)
        return y, last, torch.zeros((_borders(len(k)) if save else 0, 3, *k.shape[1:]), dtype=wide, device=k.device)
    given = [t if t is None else t.contiguous() for t in (w, u, k, v, state)]
    y = memory.empty(k.shape, k.dtype, k.device)
    last = memory.empty((3, *k.shape[1:]), wide, k.device)
    saved = memory.empty((_borders(len(k)) if save else 0, 3, *k.shape[1:]), wide, k.device)
    addresses = tuple(map(address, (*given, y, last, saved)))
    if choice == "cuda":
        from .cuda import wkv

        wkv.forward(addresses, tuple(k.shape), DTYPES.index(k.dtype), k.device)
    else:
        call = (*k.shape, DTYPES.index(k.dtype), threads_for(k.numel()))
        backend.kernels().wkv_forward(*addresses, *call)
    return y, last, saved


def _wkv_backward(
    grad_y: Tensor | None,
    grad_state: Tensor | None,
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None,
    saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of w, u, k, v, and of the state (empty where none was given)."""
    choice = backend.choose(k.device).name
    if choice == "reference" or k.numel() == 0:
        return _backward_reference(grad_y, grad_state, w, u, k, v, state)
    if len(saved) < _borders(len(k)):
        saved = _wkv(w, u, k, v, state, True)[2]
    wide = state_dtype(k.dtype)
    given = [t if t is None else t.contiguous() for t in (w, u, k, v, state, saved, grad_y, grad_state)]
    grad_k, grad_v = (memory.empty(k.shape, k.dtype, k.device) for _ in range(2))
    grad_state0 = memory.empty((3, *k.shape[1:]) if state is not None else (0,), wide, k.device)
    grad_params = memory.empty((2, *k.shape[1:]), torch.float64, k.device)
    addresses = tuple(map(address, (*given, grad_k, grad_v, grad_state0, grad_params)))
    if choice == "cuda":
        from .cuda import wkv

        wkv.backward(addresses, tuple(k.shape), DTYPES.index(k.dtype), k.device)
    else:
        call = (*k.shape, DTYPES.index(k.dtype), threads_for(k.numel()))
        backend.kernels().wkv_backward(*addresses, *call)
    sums = grad_params.sum(1).to(wide)
    return sums[0].clone(), sums[1].clone(), grad_k, grad_v, grad_state0


def _backward_reference(
    grad_y: Tensor | None, grad_state: Tensor | None, w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    start = _rest(k) if state is None else state
    leaves = [t.detach().requires_grad_() for t in (w, u, k, v, start)]
    with torch.enable_grad():
        outputs = reference.wkv(*leaves)
        pairs = [(out, g) for out, g in zip(outputs, (grad_y, grad_state)) if g is not None and out.requires_grad]
    found = (
        torch.autograd.grad([o for o, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)
        if pairs
        else [None] * len(leaves)
    )
    full = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found)]
    full[4][2] = 0
    return full[0], full[1], full[2], full[3], full[4] if state is not None else start.new_empty(0)


for key in ("CPU", "CUDA"):
    library.impl("wkv", _wkv, key)
    library.impl("wkv_backward", _wkv_backward, key)


# --- fake ---------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("spiking::wkv")
def _wkv_fake(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wide, steps = state_dtype(k.dtype), k.shape[0]
    # A symbolic number of steps has no `max` of its own.
    borders = torch.sym_max(0, (steps + CHUNK - 1) // CHUNK - 1) if save else 0
    return (
        k.new_empty(k.shape),
        k.new_empty((3, *k.shape[1:]), dtype=wide),
        k.new_empty((borders, 3, *k.shape[1:]), dtype=wide),
    )


@torch.library.register_fake("spiking::wkv_backward")
def _wkv_backward_fake(
    grad_y: Tensor | None,
    grad_state: Tensor | None,
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None,
    saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = state_dtype(k.dtype)
    of_state = k.new_empty((3, *k.shape[1:]) if state is not None else (0,), dtype=wide)
    return torch.empty_like(w), torch.empty_like(u), k.new_empty(k.shape), v.new_empty(v.shape), of_state


# --- autograd -----------------------------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    w, u, k, v, state, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(w, u, k, v, state, output[2])


def _backward(ctx: Any, grad_y: Tensor | None, grad_state: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    w, u, k, v, state, saved = ctx.saved_tensors
    if grad_y is None and grad_state is None:
        return (None,) * 6
    found = torch.ops.spiking.wkv_backward(grad_y, grad_state, w, u, k, v, state, saved)
    return (*found[:4], None if state is None else found[4], None)


torch.library.register_autograd("spiking::wkv", _backward, setup_context=_setup_context)

wkv = torch.ops.spiking.wkv
