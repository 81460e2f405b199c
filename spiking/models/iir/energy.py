"""What a stage of the ladder costs: the published accounting and the full one beside each other, from one trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spiking import encode, hw_models
from spiking.errors import SpikingError
from spiking.trace import EventTrace, LayerTrace, record

__all__ = ["E_AC", "E_MAC", "price", "published_energy"]

E_MAC, E_AC = 4.6e-12, 0.9e-12
"""Joules of a multiply-accumulate and an accumulate, 32-bit floating point, 45 nm (Horowitz 2014)."""


def published_energy(trace: EventTrace) -> tuple[float, float]:
    """Joules per image of the spiking network and of the conventional one, as the paper on IIR-SNN counts them.

        E_ANN = 4.6 pJ·Σ MAC_l;   E_SNN = 4.6 pJ·MAC_1 + 0.9 pJ·Σ_{l>1} r_l·MAC_l

    r_l are the spikes per neuron over all steps of the neurons that layer l reads (its non-zero inputs where sums of scaled
    spikes hide them), MAC_l counts padding, and the first layer is counted once. Membranes, weights and what pooling does to
    spikes cost nothing here: compare `price`.
    Errors: SpikingError for a trace without samples.
    Source: Chowdhury, Rathi & Roy 2021 (arXiv 2110.05929), section on energy.

    >>> with record(nn.Linear(6, 4, bias=False)) as trace:
    ...     pass
    >>> published_energy(trace)
    Traceback (most recent call last):
    ...
    spiking.errors.SpikingError: published_energy: got a trace of zero samples; expected at least one pass.
    """
    if not trace.n_samples:
        raise SpikingError("published_energy: got a trace of zero samples; expected at least one pass.")
    rows = {row.name: row for row in trace.layers}
    spiking_one = conventional = 0.0
    for row in trace.layers:
        if not row.is_weight_layer:
            continue
        conventional += E_MAC * row.dense_padded
        sources = _neurons_before(row, rows)
        if sources is None:
            rate = int(row.counts["in_nnz"].sum()) / (row.n_inputs * trace.n_samples)
        else:
            rate = sum(int(r.counts["spikes"].sum()) / (r.n_outputs * trace.n_samples) for r in sources)
        spiking_one += row.dense_padded * (E_MAC if sources == [] else E_AC * rate)
    return spiking_one, conventional


def _neurons_before(row: LayerTrace, rows: dict[str, LayerTrace]) -> list[LayerTrace] | None:
    """The neuron rows that a row's operand comes from, through pooling and sums; None where a sum does not tell of all its parts."""
    found: list[LayerTrace] = []
    if row.kind == "add" and len(row.operand_of) < 2:
        return None
    for name in row.operand_of:
        before = rows.get(name)
        if before is None or before.is_weight_layer:
            continue
        further = [before] if before.kind == "neuron" else _neurons_before(before, rows)
        if further is None:
            return None
        found += further
    return found


def price(model: nn.Module, images: Tensor, timesteps: int) -> tuple[dict[str, Any], EventTrace]:
    """Energies of one image in joules, from a trace of these images [B, …] at so many steps, and the trace.

    "published": see `published_energy`. "operations" and "with-memory": all operations, and all words moved besides, of the
    spiking network and of the conventional one on 45 nm logic, the products of the first layer once, since the image is the
    same at every step and `SpikingNet` computes them once. "twins": the ratio to the conventional network with activations
    of as many bits as the spikes of T steps can say, in INT8 and in FP32, with memory; above 1 the spiking one costs more.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), record(model) as trace:
            for part in images.split(50):
                model(encode.direct(part, timesteps))
    finally:
        model.train(training)
    spiking_one, conventional = published_energy(trace)
    found: dict[str, Any] = {"published": _pair(spiking_one, conventional)}
    for accounting in ("operations", "with-memory"):
        estimate = hw_models.estimate(trace, "digital-45nm", accounting=accounting, reuse_static=True)
        fp32 = next(twin for twin in estimate.twins if twin.name == "fp32")
        found[accounting] = _pair(estimate.energy.nominal, fp32.energy.nominal)
        found["twins"] = {twin.name: twin.ratio.nominal for twin in estimate.twins}
    return found, trace


def _pair(spiking_one: float, conventional: float) -> dict[str, float]:
    return {
        "snn": spiking_one,
        "ann": conventional,
        "gain": conventional / spiking_one if spiking_one else float("inf"),
    }
