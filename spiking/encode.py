"""Values to spikes and back: encoders give [T, B, *] from values, readouts give [B, *] from what a network put out.

Encoders: `direct`, `rate`, `latency`, `delta`.
Readouts: `spike_count`, `firing_rate`, `first_spike_time` (of spikes); `last_membrane`, `max_membrane` (of membranes).
Survey of codes: Auge et al. 2021, Neural Processing Letters 53, 4693.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spiking.errors import SpikingError

__all__ = [
    "delta",
    "direct",
    "firing_rate",
    "first_spike_time",
    "last_membrane",
    "latency",
    "max_membrane",
    "rate",
    "spike_count",
]


def _check_bins(where: str, time_bins: int) -> None:
    if time_bins < 1:
        raise SpikingError(f"{where}.time_bins: got {time_bins}; expected at least 1.")


def _check_unit(where: str, x: Tensor) -> None:
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):
        low, high = x.min().item(), x.max().item()
        raise SpikingError(
            f"{where}.x: got values from {low:g} to {high:g}; expected 0 <= x <= 1. Scale the input first."
        )


def direct(x: Tensor, time_bins: int) -> Tensor:
    """The same values at every time step, as an input current: the first layer of neurons makes the spikes.

        y[t] = x

    Shapes: x [B, *] -> [T, B, *], a view that takes no memory.   Errors: SpikingError if time_bins < 1.
    Source: Rueckauer et al. 2017, Frontiers in Neuroscience 11:682.

    >>> direct(torch.tensor([[0.5]]), time_bins=3).flatten().tolist()
    [0.5, 0.5, 0.5]
    """
    _check_bins("direct", time_bins)
    return x.unsqueeze(0).expand(time_bins, *x.shape)


def rate(x: Tensor, time_bins: int, generator: torch.Generator | None = None) -> Tensor:
    """Random spikes whose mean rate is the value.

        s[t] ~ Bernoulli(x), independent in t

    Shapes: x [B, *] in [0, 1] -> spikes [T, B, *].   Dtype: as x.
    Errors: SpikingError if time_bins < 1 or x leaves [0, 1] (NaN included).
    Source: Heeger 2000, Poisson model of spike generation, in discrete time.

    >>> s = rate(torch.full((1, 1000), 0.25), time_bins=10, generator=torch.Generator().manual_seed(0))
    >>> s.shape, abs(s.mean().item() - 0.25) < 0.02
    (torch.Size([10, 1, 1000]), True)
    """
    _check_bins("rate", time_bins)
    _check_unit("rate", x)
    return torch.bernoulli(direct(x, time_bins), generator=generator)


def latency(x: Tensor, time_bins: int, tau: float | None = None, threshold: float = 0.01) -> Tensor:
    """One spike a value, the earlier the larger the value; values below the threshold never fire.

        linear (tau=None):  t = round((T - 1)·(1 - x))
        charging membrane:  t = min(round(tau·ln(x / (x - threshold))), T - 1)      (tau in time steps)

    Shapes: x [B, *] in [0, 1] -> spikes [T, B, *], at most one along T.   Dtype: as x.
    Errors: SpikingError if time_bins < 1, x leaves [0, 1], tau <= 0, or threshold is not in (0, 1).
    Source: Thorpe, Gautrais 1998 (rank order); the logarithm is the charging time of an RC membrane under current x.

    >>> latency(torch.tensor([[1.0, 0.5, 0.0]]), time_bins=3)[:, 0].tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    _check_bins("latency", time_bins)
    _check_unit("latency", x)
    if not 0 < threshold < 1:
        raise SpikingError(f"latency.threshold: got {threshold}; expected 0 < threshold < 1.")
    if tau is not None and not (tau > 0 and math.isfinite(tau)):
        raise SpikingError(f"latency.tau: got {tau}; expected a number above 0, in time steps.")
    if tau is None:
        when = torch.round((time_bins - 1) * (1 - x))
    else:
        when = torch.round(tau * torch.log(x / (x - threshold).clamp(min=torch.finfo(x.dtype).tiny)))
    when = when.clamp(max=time_bins - 1)
    steps = torch.arange(time_bins, dtype=x.dtype, device=x.device).reshape(-1, *[1] * x.dim())
    return ((steps == when) & (x >= threshold)).to(x.dtype)


def delta(x: Tensor, threshold: float, polarity: bool = False) -> Tensor:
    """A spike wherever the signal rose by the threshold or more since the step before; with polarity, falls as well.

        on[t]  = 1 if x[t] - x[t-1] >=  threshold;   off[t] = 1 if x[t] - x[t-1] <= -threshold;   x[-1] = x[0]

    Shapes: x [T, B, *] -> on [T, B, *], or [on, off] on a new axis [T, B, 2, *] as an event camera's two polarities
    (on is 1, off is 0 there: here on comes second).   Dtype: as x.   Units: threshold as x.
    Errors: SpikingError if x has no [T, B] or threshold <= 0.
    Source: Lichtsteiner, Posch, Delbruck 2008, IEEE JSSC 43(2), 566, sampled at the step.

    >>> delta(torch.tensor([0.0, 0.2, 0.9, 0.1]).reshape(4, 1), threshold=0.5).flatten().tolist()
    [0.0, 0.0, 1.0, 0.0]
    """
    if x.dim() < 2:
        raise SpikingError(f"delta.x: got shape {list(x.shape)}; expected [T, B, *].")
    if not threshold > 0:
        raise SpikingError(f"delta.threshold: got {threshold}; expected a number above 0.")
    change = torch.diff(x, dim=0, prepend=x[:1])
    on = (change >= threshold).to(x.dtype)
    if not polarity:
        return on
    off = (change <= -threshold).to(x.dtype)
    return torch.stack([off, on], dim=2)


def _check_sequence(where: str, x: Tensor) -> None:
    if x.dim() < 2 or x.shape[0] == 0:
        raise SpikingError(f"{where}: got shape {list(x.shape)}; expected [T, B, *] with at least one time step.")


def spike_count(spikes: Tensor) -> Tensor:
    """How often each neuron fired: the sum over time, [T, B, *] -> [B, *].

    >>> spike_count(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])).tolist()
    [[2.0, 1.0]]
    """
    _check_sequence("spike_count", spikes)
    return spikes.sum(0)


def firing_rate(spikes: Tensor) -> Tensor:
    """Spikes per time step of each neuron: the mean over time, [T, B, *] -> [B, *], from 0 to 1.

    >>> firing_rate(torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])).tolist()
    [[1.0, 0.5]]
    """
    _check_sequence("firing_rate", spikes)
    return spikes.mean(0)


def first_spike_time(spikes: Tensor) -> Tensor:
    """The step of each neuron's first spike, T where it never fired: [T, B, *] -> int64 [B, *]. Negate it for scores.

    >>> first_spike_time(torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]]])).tolist()
    [[1, 2]]
    """
    _check_sequence("first_spike_time", spikes)
    fired = spikes != 0
    return torch.where(fired.any(0), fired.to(torch.int8).argmax(0), spikes.shape[0])


def last_membrane(v: Tensor) -> Tensor:
    """The membrane potential after the last step, [T, B, *] -> [B, *].

    >>> last_membrane(torch.tensor([[[0.3]], [[0.1]]])).item() == torch.tensor(0.1).item()
    True
    """
    _check_sequence("last_membrane", v)
    return v[-1]


def max_membrane(v: Tensor) -> Tensor:
    """The largest membrane potential over time, [T, B, *] -> [B, *].

    Source: Gütig, Sompolinsky 2006, Nature Neuroscience 9, 420 (the tempotron decides by it).

    >>> max_membrane(torch.tensor([[[0.25]], [[0.125]]])).item()
    0.25
    """
    _check_sequence("max_membrane", v)
    return v.amax(0)
