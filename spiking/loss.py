"""Losses that read spikes or membranes over time, and a regulariser that keeps firing rates in a range.

All take [T, B, C] and class numbers [B], and return a scalar.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as tf

from spiking.errors import SpikingError

__all__ = ["count", "membrane", "membrane_regulariser", "rate", "rate_regulariser", "tet"]


def _check(where: str, x: Tensor, labels: Tensor) -> None:
    if x.dim() != 3 or x.shape[0] == 0:
        raise SpikingError(f"{where}: got output of shape {list(x.shape)}; expected [T, B, C] with T >= 1.")
    if labels.shape != x.shape[1:2]:
        raise SpikingError(f"{where}.labels: got shape {list(labels.shape)}; expected [{x.shape[1]}], one a sample.")
    if labels.is_floating_point():
        raise SpikingError(f"{where}.labels: got dtype {labels.dtype}; expected class numbers (int64).")
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < x.shape[2]):
        raise SpikingError(
            f"{where}.labels: got classes {int(labels.min())} to {int(labels.max())}; expected 0 to {x.shape[2] - 1}, "
            "one an output neuron."
        )


def rate(spikes: Tensor, labels: Tensor, *, scale: float = 1.0, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the firing rates as scores.

        L = mean_b CE(scale·r_b, label_b);   r_bc = (1/T)·Σ_t s[t,b,c]

    Rates lie in 0…1, so scale bounds how sure the network can be (scale = T is cross-entropy on spike counts).
    Shapes: spikes [T, B, C], labels [B] int64 -> scalar.   Errors: SpikingError for other shapes or classes.
    Source: Eshraghian et al. 2023, Proc. IEEE 111(9), 1016 (arXiv 2109.12894), section "spike count".

    >>> round(rate(torch.tensor([[[1.0, 0.0]]]), torch.tensor([0])).item(), 4)
    0.3133
    """
    _check("loss.rate", spikes, labels)
    return tf.cross_entropy(scale * spikes.float().mean(0), labels, label_smoothing=label_smoothing)


def count(spikes: Tensor, labels: Tensor, *, correct_rate: float = 0.8, incorrect_rate: float = 0.1) -> Tensor:
    """Squared distance of spike counts from target counts, in units of the number of steps.

        L = mean_bc ((n_bc - n*_bc) / T)²;   n_bc = Σ_t s[t,b,c];   n*_bc = T·(correct_rate if c = label_b else incorrect_rate)

    Shapes: spikes [T, B, C], labels [B] int64 -> scalar.
    Errors: SpikingError for other shapes or classes, or target rates outside 0…1.
    Source: Shrestha, Orchard 2018, SLAYER (arXiv 1810.08646), section 4 (target counts).

    >>> count(torch.ones(5, 1, 1), torch.tensor([0]), correct_rate=0.5).item()
    0.25
    """
    _check("loss.count", spikes, labels)
    for name, value in (("correct_rate", correct_rate), ("incorrect_rate", incorrect_rate)):
        if not 0 <= value <= 1:
            raise SpikingError(f"loss.count.{name}: got {value}; expected spikes per step from 0 to 1.")
    target = torch.full(spikes.shape[1:], incorrect_rate, dtype=torch.float32, device=spikes.device)
    target.scatter_(1, labels.unsqueeze(1), correct_rate)
    return tf.mse_loss(spikes.float().mean(0), target)


def membrane(v: Tensor, labels: Tensor, *, over: str = "steps", label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with membrane potentials as scores.

        over="steps":  L = mean_tb CE(v[t,b], label_b)
        over="mean", "max", "last":  L = mean_b CE(reduce_t v[t,b], label_b)

    Shapes: v [T, B, C], labels [B] int64 -> scalar.   Errors: SpikingError for other shapes, classes or `over`.
    Source: Deng et al. 2022, temporal efficient training (arXiv 2202.11946) for "steps"; Gütig, Sompolinsky 2006 for "max".

    >>> round(membrane(torch.zeros(3, 1, 2), torch.tensor([0])).item(), 4)
    0.6931
    """
    _check("loss.membrane", v, labels)
    v = v.float()
    if over == "steps":
        return tf.cross_entropy(v.flatten(0, 1), labels.repeat(v.shape[0]), label_smoothing=label_smoothing)
    if over == "mean":
        scores = v.mean(0)
    elif over == "max":
        scores = v.amax(0)
    elif over == "last":
        scores = v[-1]
    else:
        raise SpikingError(f'loss.membrane.over: got "{over}"; expected "steps", "mean", "max" or "last".')
    return tf.cross_entropy(scores, labels, label_smoothing=label_smoothing)


def tet(logits: Tensor, labels: Tensor, *, mix: float = 1e-3, target: float = 1.0) -> Tensor:
    """Cross-entropy at every step, so that every prefix of the sequence becomes a usable classifier.

        L = (1 - mix)·mean_t CE(o[t], label) + mix·mean (o - target)²

    Shapes: logits [T, B, C], labels [B] int64 -> scalar.   Errors: SpikingError for other shapes or classes, or mix outside 0…1.
    Source: Deng et al. 2022, temporal efficient training (arXiv 2202.11946), equations 10 and 12.

    >>> round(tet(torch.zeros(3, 1, 2), torch.tensor([0]), mix=0.0).item(), 4)
    0.6931
    """
    if not 0 <= mix <= 1:
        raise SpikingError(f"loss.tet.mix: got {mix}; expected 0 to 1.")
    _check("loss.tet", logits, labels)
    return (1 - mix) * membrane(logits, labels) + mix * (logits.float() - target).square().mean()


def membrane_regulariser(membranes: Iterable[Tensor]) -> Tensor:
    """A penalty on membranes between rest and threshold, where a spike tells least about them (RMP).

        L = mean_layers mean min(|h|, |1 - h|)²;   h before the reset, in units of the threshold

    Shapes: an iterable of membranes [T, B, *] divided by their thresholds, one a layer -> scalar.
    Errors: SpikingError if there is no layer.
    Source: Guo et al. 2023, RMP-Loss (arXiv 2308.06787).

    >>> membrane_regulariser([torch.tensor([[0.0, 1.0, 0.5, 0.5]])]).item()
    0.125
    """
    penalties = [torch.minimum(h.float().abs(), (1 - h.float()).abs()).square().mean() for h in membranes]
    if not penalties:
        raise SpikingError("membrane_regulariser: got no membranes; expected at least one layer's [T, B, *].")
    return torch.stack(penalties).mean()


def rate_regulariser(spikes: Iterable[Tensor], *, low: float = 0.0, high: float = 1.0) -> Tensor:
    """A penalty on neurons whose firing rate leaves low…high: dead neurons come alive, busy ones cost less.

        L = mean_layers mean_n [ max(0, low - r_n)² + max(0, r_n - high)² ];   r_n = mean_tb s[t,b,n]

    Shapes: an iterable of spikes [T, B, *], one a layer -> scalar.
    Errors: SpikingError unless 0 <= low <= high <= 1, or if there is no layer.
    Source: Zenke, Vogels 2021, Neural Computation 33(4), 899, section "activity regularisation" (theirs sums, this averages).

    >>> rate_regulariser([torch.ones(4, 2, 3)], high=0.5).item()
    0.25
    """
    if not 0 <= low <= high <= 1:
        raise SpikingError(f"rate_regulariser: got low={low}, high={high}; expected 0 <= low <= high <= 1.")
    penalties = []
    for s in spikes:
        if s.dim() < 2:
            raise SpikingError(f"rate_regulariser: got spikes of shape {list(s.shape)}; expected [T, B, *].")
        r = s.float().mean((0, 1))
        penalties.append(((low - r).clamp(min=0) ** 2 + (r - high).clamp(min=0) ** 2).mean())
    if not penalties:
        raise SpikingError("rate_regulariser: got no spikes; expected at least one layer's [T, B, *].")
    return torch.stack(penalties).mean()
