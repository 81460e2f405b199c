"""A reservoir over whole sequences in one compiled call: recurrent leaky neurons whose weights never change.

    u[t] = beta·u[t-1]·(1 - s[t-1]) + W_in·x[t] + W_rec·s[t-1] + bias;   s[t] = 1 if u[t] > threshold else 0

Only the rows of inputs and neurons that were active are read. Sums follow the order of the neurons, each product and addition
rounded once, so that spikes are the same at every instruction set. No gradient passes. Oracle: reference.py::reservoir.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as tf

from . import backend, memory, reference

__all__ = ["ReservoirRun", "ReservoirWeights", "run_reservoir"]

PANEL, LANES, SLACK = 64, 16, 16  # as gather.h and spikes.h have them
SPARSE = 0.25  # share of recurrent weights that are not zero, above which rows of zeros and all are quicker


class ReservoirRun(NamedTuple):
    """What a run gave: features [bins, B, N]; u and s [B, N] to go on from; events [B, 2]; spikes and membrane [T, B, N] if asked for.

    `events` counts inputs that were not zero and spikes that met the recurrent weights: times N they are the synaptic operations.
    """

    features: Tensor
    u: Tensor
    s: Tensor
    events: Tensor
    spikes: Tensor | None
    membrane: Tensor | None


class ReservoirWeights:
    """Weights as the compiled kernel reads them: by sender, in panels of 64 receivers, or in lists where few are not zero.

    Shapes: w_in [N, I], w_rec [N, N] or None for no recurrence, bias [N] or None.
    """

    def __init__(self, w_in: Tensor, w_rec: Tensor | None = None, bias: Tensor | None = None) -> None:
        self.w_in, self.w_rec, self.bias = w_in.contiguous(), w_rec, None if bias is None else bias.contiguous()
        self.in_panels = _panels(self.w_in)
        self.rec_panels: Tensor | None = None
        self.lists: tuple[Tensor, Tensor, Tensor] | None = None
        if w_rec is None or not bool(w_rec.any()):
            return
        if int(w_rec.count_nonzero()) > SPARSE * w_rec.numel():
            self.rec_panels = _panels(w_rec)
            return
        by_sender = w_rec.T.contiguous()
        sender, receiver = by_sender.nonzero(as_tuple=True)
        offsets = torch.zeros(len(w_rec) + 1, dtype=torch.int64)
        offsets[1:] = torch.bincount(sender, minlength=len(w_rec)).cumsum(0)
        self.lists = offsets, receiver.to(torch.int32), by_sender[sender, receiver].contiguous()


def _panels(weight: Tensor) -> Tensor:
    """[N, I] -> panels [I, 64] of receivers one after the other, the last cut to a multiple of 16."""
    parts = []
    for part in weight.T.split(PANEL, 1):
        parts.append(tf.pad(part, (0, -part.shape[1] % LANES)).reshape(-1))
    return torch.cat(parts)


def run_reservoir(
    x: Tensor,
    weights: ReservoirWeights,
    *,
    beta: float,
    threshold: float,
    bins: Tensor,
    worth: Tensor,
    u: Tensor | None = None,
    s: Tensor | None = None,
    keep_spikes: bool = False,
    keep_membrane: bool = False,
) -> ReservoirRun:
    """Run whole sequences and sum up each neuron's spikes: features[k] = Σ over steps t with bins[t] = k of worth[t]·s[t].

    Shapes: x [T, B, I]; bins [T] int64, rising from 0; worth [T]; u, s [B, N], None at rest.   Dtype: float32 or float64, of the weights.

    >>> weights = ReservoirWeights(torch.tensor([[0.6]]))
    >>> one = torch.ones(4, 1, 1)
    >>> found = run_reservoir(one, weights, beta=0.5, threshold=0.8, bins=torch.zeros(4, dtype=torch.int64), worth=torch.ones(4))
    >>> found.features.flatten().tolist(), round(found.u.item(), 3)
    ([2.0], 0.9)
    """
    n = weights.w_in.shape[0]
    T, B, inputs = x.shape
    x = x.detach().to(weights.w_in.dtype).contiguous()
    u = x.new_zeros((B, n)) if u is None else u.detach().to(x.dtype).clone(memory_format=torch.contiguous_format)
    s = x.new_zeros((B, n)) if s is None else s.detach().to(x.dtype).clone(memory_format=torch.contiguous_format)
    worth = worth.to(x).contiguous()
    n_bins = int(bins[-1]) + 1 if T else 1
    module = backend.compiled() if backend.choose(x.device).name == "cpu" else None
    if module is None:
        return _by_reference(x, weights, beta, threshold, bins, worth, n_bins, u, s, keep_spikes, keep_membrane)
    features = torch.zeros((n_bins, B, n), dtype=x.dtype)
    events = torch.zeros((B, 2), dtype=torch.int64)
    spikes = memory.empty((T, B, n), x.dtype, x.device) if keep_spikes else None
    membrane = memory.empty((T, B, n), x.dtype, x.device) if keep_membrane else None
    lists = torch.empty(B * (inputs + n + 2 * SLACK), dtype=torch.int32)
    offsets, receivers, values = weights.lists or (None, None, None)
    currents = None if weights.lists is None else torch.empty_like(u)
    steps = bins.to(torch.int32).contiguous()
    tensors = (
        x, weights.in_panels, weights.bias, weights.rec_panels, offsets, receivers, values, u, s, spikes, membrane,
        features, steps, worth, lists, currents, events,
    )  # fmt: skip
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    wide = x.dtype == torch.float64
    module.reservoir_run(addresses, [T, B, inputs, n], beta, threshold, wide, backend.threads())
    return ReservoirRun(features, u, s, events, spikes, membrane)


def _by_reference(
    x: Tensor,
    weights: ReservoirWeights,
    beta: float,
    threshold: float,
    bins: Tensor,
    worth: Tensor,
    n_bins: int,
    u: Tensor,
    s: Tensor,
    keep_spikes: bool,
    keep_membrane: bool,
) -> ReservoirRun:
    w_rec: Any = weights.w_rec if weights.w_rec is not None else x.new_zeros((u.shape[1],) * 2)
    spikes, membrane = reference.reservoir(x, weights.w_in, w_rec, weights.bias, u, s, beta, threshold)
    features = x.new_zeros((n_bins, *u.shape)).index_add_(0, bins.to(x.device), spikes * worth[:, None, None])
    sent = torch.cat([s[None], spikes[:-1]])[: len(x)]
    events = torch.stack([x.count_nonzero(dim=(0, 2)), sent.count_nonzero(dim=(0, 2))], 1)
    last = (membrane[-1], spikes[-1]) if len(x) else (u, s)
    return ReservoirRun(features, *last, events, spikes if keep_spikes else None, membrane if keep_membrane else None)
