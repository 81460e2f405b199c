"""Neurons with graded spikes for tests: inputs, and the operator and the oracle called alike."""

import torch
from spiking.cuda_kernels import graded_ops, reference

RULES = [("linear", 1), ("linear", 8), ("octave", 1), ("octave", 4)]


def case(shape, dtype, cells, with_state, seed=0):
    """Input, state, beta and threshold (of each channel, or of all neurons), and gradients of both outputs."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = (torch.randn(shape, generator=g, dtype=torch.float64) * 2 + 0.5).to(dtype)
    state = torch.randn(shape[1:], generator=g, dtype=torch.float64).to(wide) if with_state else None
    count = shape[2] if cells == "channels" else 1
    params = torch.rand(3, count, generator=g, dtype=torch.float64).add(0.3).clamp(max=1).to(wide)
    grads = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype), torch.randn(shape[1:], generator=g).to(wide)
    return x, state, params, grads


def run_op(x, state, params, spacing, levels, v_leak, inner):
    rule = [graded_ops.SPACINGS.index(spacing), levels]
    return graded_ops.graded(x, state, params, inner, rule, [0.0, 1.0, v_leak], True)[:2]


def run_oracle(x, state, params, spacing, levels, v_leak):
    wide = params.dtype
    v = torch.full(x.shape[1:], v_leak, dtype=wide) if state is None else state
    shape = (params.shape[1], *(1,) * (x.dim() - 3)) if params.shape[1] > 1 else ()
    return reference.graded(x, v, params[0].reshape(shape), params[1].reshape(shape), levels, spacing, v_leak)
