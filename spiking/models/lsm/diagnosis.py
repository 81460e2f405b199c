"""What a reservoir is like before anything is trained on it: stability, rates, separation, memory; and a warning where it is dead."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spiking.errors import SpikingError
from spiking.models.lsm.model import LiquidStateMachine

SILENT, SATURATED = 1e-3, 0.5  # spikes per neuron and step: hardly any, and half of all that there could be
DENSE = 2000  # neurons up to which all eigenvalues are computed


class LiquidWarning(UserWarning):
    """A reservoir that is nearly silent or saturated, so that its states say little about its input."""


@dataclass(frozen=True)
class Diagnosis:
    """What a reservoir did with some input.

    `firing_rate`: spikes per neuron and step; `silent`, `saturated`: shares of neurons that never fire, or in half of all steps;
    `spectral_radius`: of the recurrent weights, over the threshold, so that from 1 on a spike tends to cause more than one;
    `separation`: distance between the mean states of classes over 1 + the spread within them (NaN without labels).
    """

    spectral_radius: float
    firing_rate: float
    silent: float
    saturated: float
    separation: float


def diagnose(lsm: LiquidStateMachine, x: Tensor, labels: Any = None) -> Diagnosis:
    """Run x [T, B, I] and describe what the reservoir did; warns (LiquidWarning) where it is silent or saturated.

    Source of the separation: Norton, Ventura 2010 (doi 10.1016/j.neucom.2010.06.014).

    >>> x = (torch.rand(30, 4, 16, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    >>> 0.001 < diagnose(LiquidStateMachine(16, 50, const=0.3), x).firing_rate < 0.5
    True
    """
    spikes = lsm.spikes(x)
    rates = spikes.mean((0, 1))
    rate = float(rates.mean())
    advice = None
    if rate < SILENT:
        advice = f"nearly silent ({rate:.2g} spikes per neuron and step). Raise const or lower the threshold"
    elif rate > SATURATED:
        advice = f"saturated ({rate:.2g} spikes per neuron and step). Lower const or raise the threshold"
    if advice:
        warnings.warn(
            f"LiquidStateMachine: {advice}; const={lsm.const}, threshold={lsm.threshold}.", LiquidWarning, stacklevel=2
        )
    return Diagnosis(
        spectral_radius(lsm),
        rate,
        float((rates == 0).float().mean()),
        float((rates >= SATURATED).float().mean()),
        float("nan") if labels is None else separation(lsm.features(x), labels),
    )


def spectral_radius(lsm: LiquidStateMachine) -> float:
    """The largest size of an eigenvalue of the recurrent weights over the threshold; 0 without recurrence."""
    weight = lsm.w_rec if lsm.rec_array is None else lsm.rec_array.matrix
    if weight is None:
        return 0.0
    matrix = weight.double().cpu().numpy() / lsm.threshold
    if len(matrix) <= DENSE:
        return float(np.abs(np.linalg.eigvals(matrix)).max())
    from scipy.sparse.linalg import eigs

    return float(np.abs(eigs(matrix, k=1, return_eigenvectors=False, v0=np.ones(len(matrix)))).max())


def separation(features: Tensor, labels: Any) -> float:
    """Mean distance between the mean states of classes, over 1 + the mean spread of states around their own."""
    y = np.asarray(labels)
    if y.shape != (len(features),) or len(np.unique(y)) < 2:
        raise SpikingError(
            f"separation: got labels of shape {list(y.shape)} with {len(np.unique(y))} classes; expected {len(features)} of two "
            "or more classes."
        )
    x = features.double().cpu().numpy()
    classes = np.unique(y)
    centres = np.stack([x[y == c].mean(0) for c in classes])
    between = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    spread = np.mean([np.linalg.norm(x[y == c] - centres[i], axis=1).mean() for i, c in enumerate(classes)])
    return float(between[np.triu_indices(len(classes), 1)].mean() / (1 + spread))


def memory_capacity(
    lsm: LiquidStateMachine, steps: int = 2000, delays: int = 30, rate: float = 0.1, seed: int = 0
) -> float:
    """How many steps of a random input can be read off the states, linearly: Σ over delays of the squared correlation.

    Every step, all inputs are silent or, as probably, fire with 2·rate; that is what is to be recalled, from spikes filtered
    with `trace_beta`, by ridge regression on the first half of the steps, measured on the second.
    Source: Jaeger 2001, "Short term memory in echo state networks" (GMD Report 152).
    """
    if steps < 4 * delays or delays < 1:
        raise SpikingError(
            f"memory_capacity: got {steps} steps and {delays} delays; expected four steps a delay or more."
        )
    draws = torch.Generator().manual_seed(seed)
    signal = 2 * rate * (torch.rand(steps, generator=draws) < 0.5).float()
    x = (torch.rand(steps, 1, lsm.in_features, generator=draws) < signal[:, None, None]).to(lsm.w_in.dtype)
    spikes = lsm.spikes(x)[:, 0].double()
    states, trace = torch.empty_like(spikes), torch.zeros_like(spikes[0])
    for t in range(steps):
        trace = lsm.trace_beta * trace + spikes[t]
        states[t] = trace
    states = torch.cat([states, torch.ones(steps, 1, dtype=torch.float64)], 1)[delays:]
    wanted = torch.stack([signal[delays - k : steps - k] for k in range(1, delays + 1)], 1).double()
    half = len(states) // 2
    train = states[:half]
    gram = train.T @ train + 1e-3 * half * torch.eye(train.shape[1], dtype=torch.float64)
    read = states[half:] @ torch.linalg.solve(gram, train.T @ wanted[:half])
    a, b = read - read.mean(0), wanted[half:] - wanted[half:].mean(0)
    power = (a * a).sum(0) * (b * b).sum(0)
    return float(torch.where(power > 0, (a * b).sum(0) ** 2 / power.clamp(min=1e-300), 0.0).sum())
