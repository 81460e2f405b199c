"""torch.library registration of `spiking::reservoir`: recurrent leaky neurons whose weights never change, over whole sequences.

    u[t] = beta·u[t-1]·(1 - s[t-1]) + W_in·x[t] + W_rec·s[t-1] + bias;   s[t] = 1 if u[t] > threshold else 0

Only the rows of inputs and neurons that were active are read. Sums follow the order of the neurons, each product and addition
rounded once, so that spikes are the same at every instruction set and on a GPU. No gradient passes. Oracle: reference.py::reservoir.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as tf

from . import backend, memory, reference
from .ops import _address as address
from .ops import _library as library

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
    """Weights as the kernels read them: by sender, in panels of 64 receivers (on a GPU in whole rows), or in lists where few are not zero.

    Shapes: w_in [N, I], w_rec [N, N] or None for no recurrence, bias [N] or None.
    """

    def __init__(self, w_in: Tensor, w_rec: Tensor | None = None, bias: Tensor | None = None) -> None:
        self.w_in, self.w_rec, self.bias = w_in.contiguous(), w_rec, None if bias is None else bias.contiguous()
        packed = _panels if w_in.device.type == "cpu" else _rows
        self.packed_in = packed(self.w_in)
        self.packed_rec: Tensor | None = None
        self.offsets: Tensor | None = None
        self.receivers: Tensor | None = None
        self.values: Tensor | None = None
        if w_rec is None or not bool(w_rec.any()):
            return
        if int(w_rec.count_nonzero()) > SPARSE * w_rec.numel():
            self.packed_rec = packed(w_rec)
            return
        by_sender = w_rec.T.contiguous()
        sender, receiver = by_sender.nonzero(as_tuple=True)
        self.offsets = tf.pad(torch.bincount(sender, minlength=len(w_rec)).cumsum(0), (1, 0))
        self.receivers, self.values = receiver.to(torch.int32), by_sender[sender, receiver].contiguous()


def _rows(weight: Tensor) -> Tensor:
    return weight.T.contiguous()


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
    w = weights
    features, last_u, last_s, events, spikes, membrane = torch.ops.spiking.reservoir(
        x.detach().to(w.w_in.dtype), w.w_in, w.packed_in, w.bias, w.w_rec, w.packed_rec, w.offsets, w.receivers, w.values,
        u, s, bins, worth, int(bins[-1]) + 1 if len(bins) else 1, beta, threshold, keep_spikes, keep_membrane,
    )  # fmt: skip
    return ReservoirRun(
        features, last_u, last_s, events, spikes if keep_spikes else None, membrane if keep_membrane else None
    )


# --- kernels ------------------------------------------------------------------------------------------------------------

library.define(
    "reservoir(Tensor x, Tensor w_in, Tensor packed_in, Tensor? bias, Tensor? w_rec, Tensor? packed_rec, Tensor? offsets, "
    "Tensor? receivers, Tensor? values, Tensor? u, Tensor? s, Tensor bins, Tensor worth, SymInt n_bins, float beta, float threshold, "
    "bool keep_spikes, bool keep_membrane) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _reservoir(
    x: Tensor,
    w_in: Tensor,
    packed_in: Tensor,
    bias: Tensor | None,
    w_rec: Tensor | None,
    packed_rec: Tensor | None,
    offsets: Tensor | None,
    receivers: Tensor | None,
    values: Tensor | None,
    u: Tensor | None,
    s: Tensor | None,
    bins: Tensor,
    worth: Tensor,
    n_bins: int,
    beta: float,
    threshold: float,
    keep_spikes: bool,
    keep_membrane: bool,
) -> tuple[Tensor, ...]:
    """Features, last u and s, events, spikes and membrane (both of no steps where they are not kept)."""
    (T, B, inputs), n = x.shape, w_in.shape[0]
    x, worth = x.contiguous(), worth.to(x).contiguous()
    u, s = (
        x.new_zeros((B, n)) if t is None else t.detach().to(x.dtype).clone(memory_format=torch.contiguous_format)
        for t in (u, s)
    )
    choice = backend.choose(x.device).name
    if choice == "reference" or T == 0 or B == 0:
        spikes, membrane = reference.reservoir(x, w_in, w_rec, bias, u, s, beta, threshold)
        features = x.new_zeros((n_bins, B, n)).index_add_(0, bins.to(x.device), spikes * worth[:, None, None])
        sent = torch.cat([s[None], spikes[:-1]])[:T]
        events = torch.stack([x.count_nonzero(dim=(0, 2)), sent.count_nonzero(dim=(0, 2))], 1)
        if T:
            u, s = membrane[-1].clone(), spikes[-1].clone()
        return (
            features,
            u,
            s,
            events,
            spikes if keep_spikes else x.new_empty((0, B, n)),
            (membrane if keep_membrane else x.new_empty((0, B, n))),
        )
    features = torch.zeros((n_bins, B, n), dtype=x.dtype, device=x.device)
    events = torch.zeros((B, 2), dtype=torch.int64, device=x.device)
    spikes, membrane = (
        memory.empty((T if kept else 0, B, n), x.dtype, x.device) for kept in (keep_spikes, keep_membrane)
    )
    lists = torch.empty(B * (inputs + n + 2 * SLACK), dtype=torch.int32, device=x.device)
    currents = None if offsets is None else torch.empty_like(u)
    steps = bins.to(x.device, torch.int32).contiguous()
    tensors = (
        x, packed_in, bias, packed_rec, offsets, receivers, values, u, s, spikes if keep_spikes else None,
        membrane if keep_membrane else None, features, steps, worth, lists, currents, events,
    )  # fmt: skip
    addresses, sizes, wide = [address(t) for t in tensors], [T, B, inputs, n], x.dtype == torch.float64
    if choice == "cuda":
        from .cuda import reservoir

        reservoir.reservoir(addresses, sizes, beta, threshold, wide, x.device)
    else:
        backend.kernels().reservoir_run(addresses, sizes, beta, threshold, wide, backend.threads())
    return features, u, s, events, spikes, membrane


for key in ("CPU", "CUDA"):
    library.impl("reservoir", _reservoir, key)


@torch.library.register_fake("spiking::reservoir")
def _reservoir_fake(
    x: Tensor, w_in: Tensor, packed_in: Tensor, bias: Tensor | None, w_rec: Tensor | None, packed_rec: Tensor | None,
    offsets: Tensor | None, receivers: Tensor | None, values: Tensor | None, u: Tensor | None, s: Tensor | None,
    bins: Tensor, worth: Tensor, n_bins: int, beta: float, threshold: float, keep_spikes: bool, keep_membrane: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    (T, B, _), n = x.shape, w_in.shape[0]
    last = x.new_empty((B, n))
    events = x.new_empty((B, 2), dtype=torch.int64)
    kept = [x.new_empty((T if wanted else 0, B, n)) for wanted in (keep_spikes, keep_membrane)]
    return x.new_empty((n_bins, B, n)), last, torch.empty_like(last), events, *kept
