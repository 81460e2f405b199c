"""The figures of a trace under the names that NeuroBench gives them."""

from __future__ import annotations

from spiking.trace import EventTrace

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def neurobench(trace: EventTrace) -> dict[str, float | dict[str, float]]:
    """NeuroBench's workload and static metrics from a trace, averaged per sample where NeuroBench does.

    Footprint: bytes of the parameters (there, of buffers, too). ConnectionSparsity: zero weights over weights.
    ActivationSparsity: steps of neurons without a spike over all of them. SynapticOperations: those that meet a non-zero
    operand and a non-zero weight, as ACs where all operands are -1, 0 or 1 over the whole run, else as MACs; and all of
    them. MembraneUpdates: every neuron in every step (NeuroBench counts those that changed). ParameterCount.
    Source: Yik et al. 2025 (arXiv 2304.04640).

    >>> import torch, spiking
    >>> with spiking.record(layer := torch.nn.Linear(20, 5)) as trace, torch.no_grad():
    ...     _ = layer(torch.ones(10, 5, 20))                                       # 10 steps, 5 samples
    >>> neurobench(trace)["SynapticOperations"]
    {'Effective_MACs': 0.0, 'Effective_ACs': 1000.0, 'Dense': 1000.0}
    """
    rows = [row for row in trace.layers if row.is_weight_layer]
    n = max(trace.n_samples, 1)
    operations = {"Effective_MACs": 0.0, "Effective_ACs": 0.0, "Dense": 0.0}
    for row in rows:
        spikes = row.operand_class in ("binary", "ternary")
        operations["Effective_ACs" if spikes else "Effective_MACs"] += int(row.counts["syn_eff"].sum()) / n
        operations["Dense"] += row.dense * int(row.calls.sum()) / n
    weights = sum(_size(row.weight_shape) for row in rows)
    updates = sum(int(row.counts["updates"].sum()) for row in trace.neurons)
    spikes_out = sum(int(row.counts["out_nnz"].sum()) for row in trace.neurons)
    params = sum(row.params for row in trace.layers)
    return {
        "Footprint": float(params * _BYTES.get(trace.dtype, 4)),
        "ConnectionSparsity": 1 - sum(row.w_nnz for row in rows) / weights if weights else 0.0,
        "ActivationSparsity": 1 - spikes_out / updates if updates else 0.0,
        "SynapticOperations": operations,
        "MembraneUpdates": updates / n,
        "ParameterCount": float(params),
    }


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
