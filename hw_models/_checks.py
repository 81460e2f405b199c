"""What a reviewer would object to in an estimate, found in the trace itself.

One function per code; each yields the text of its warnings, and the text names the layer or the constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from spiking.trace import EventTrace, LayerTrace

if TYPE_CHECKING:
    from spiking.hw_models.energy import Estimate

SILENT_RATE = 1e-4
DEAD_SHARE = 0.5
DROPPED_SHARE = 0.05
FEW_SAMPLES = 100


class EnergyWarning(NamedTuple):
    """One objection: its code and what it is about."""

    code: str
    text: str


def check(found: Estimate) -> list[EnergyWarning]:
    """All warnings of an estimate, in the order of their codes."""
    return [EnergyWarning(code, text) for code, rule in _RULES.items() for text in rule(found)]


def _encodes(row: LayerTrace, trace: EventTrace) -> bool:
    """True for a weight layer that runs before any neuron: it turns the input into currents."""
    before = trace.layers[: trace.layers.index(row)]
    return not any(other.kind == "neuron" for other in before)


def _weights(found: Estimate, operand_class: str) -> list[LayerTrace]:
    return [r for r in found.trace.layers if r.is_weight_layer and r.operand_class == operand_class]


def _analogue_inside(found: Estimate) -> Iterator[str]:
    for row in _weights(found, "analogue"):
        if not _encodes(row, found.trace):
            yield (
                f"{row.name} gets analogue values, not spikes: it is priced as {row.dense:,} dense MACs per step; "
                "a count of events times the price of an addition would be wrong here."
            )


def _direct_coding(found: Estimate) -> Iterator[str]:
    for row in _weights(found, "analogue"):
        if _encodes(row, found.trace):
            yield (
                f"{row.name} reads analogue input: its operations are MACs, not accumulates"
                f"{'' if row.repeated_input else _sparse(row)}."
            )


def _sparse(row: LayerTrace) -> str:
    """How many of a dense layer's MACs meet a non-zero operand."""
    macs, met = int(row.mac.sum()), int(row.mac_sparse.sum())
    return f"; hardware that skips zeros would need {met / macs:.0%} of them" if met < macs else ""


def _graded(found: Estimate) -> Iterator[str]:
    kinds = {row.name: row.kind for row in found.trace.layers}
    for row in _weights(found, "graded"):
        source = kinds.get(row.operand_of[0], row.operand_of[0]) if row.operand_of else ""
        reason = {"avgpool": "after average pooling", "(input)": "event counts as input"}.get(
            source, "after an addition or a scaling"
        )
        price = "accumulates, as papers do" if found.accounting == "published" else "one MAC per event"
        yield f"{row.name} gets graded values ({reason}; multiples of {row.operand_scale:.3g}): priced as {price}."


def _static_input(found: Estimate) -> Iterator[str]:
    for row in found.trace.layers:
        if row.is_weight_layer and row.repeated_input and row.counts["in_nnz"].any():
            counted = "only once" if found.reuse_static else f"in all {found.trace.n_steps} steps"
            yield f"{row.name} gets the same input in every step; its operations are counted {counted}."


def _padding(found: Estimate) -> Iterator[str]:
    if found.accounting != "published":
        return
    for row in _weights(found, "analogue"):
        if row.dense_padded != row.dense:
            more = row.dense_padded / max(row.dense, 1) - 1
            yield f"{row.name}: multiplications with zero padding are counted, {more:.0%} more than there are."


def _dropped(found: Estimate) -> Iterator[str]:
    if found.accounting != "published":
        return
    from spiking.hw_models.energy import reprice

    whole = reprice(found, "operations")
    priced = {row.name: row.energy.nominal for row in found.per_layer}
    missing = {
        row.name: row.energy.nominal - min(priced[row.name], row.energy.nominal)
        for row in whole.per_layer
        if row.kind in ("neuron", "norm", "avgpool", "add") or row.operand_class not in ("analogue", "graded")
    }
    share = sum(missing.values()) / whole.energy.nominal if whole.energy.nominal else 0.0
    if share > DROPPED_SHARE:
        worst = max(missing, key=lambda name: missing[name])
        yield (
            f"{share:.0%} of the operations' energy is dropped (biases, neuron updates, normalisation, pooling); "
            f"most of it at {worst}."
        )


def _no_memory(found: Estimate) -> Iterator[str]:
    if found.accounting != "with-memory":
        yield (
            "memory traffic (weights, accumulators, membranes, events) is not included; "
            "the accounting with-memory adds it."
        )


def _batch_norm(found: Estimate) -> Iterator[str]:
    for row in found.trace.layers:
        if row.kind != "norm" or not row.config.get("foldable"):
            continue
        if row.train_mode:
            yield f"{row.name} was recorded in training mode; call model.eval() before recording."
        elif not row.folded_into:
            yield f"{row.name} cannot be folded into the weights before it; one MAC per value and step is charged."


def _silent(found: Estimate) -> Iterator[str]:
    for row in found.trace.neurons:
        if row.neuron.get("output") == "membrane" or not row.spike_count.size:
            continue
        dead = row.silent / row.spike_count.size
        if row.firing_rate < SILENT_RATE:
            yield f"{row.name} is silent (rate {row.firing_rate:.1e}): the figure is low because nothing works there."
        elif dead > DEAD_SHARE:
            yield f"{row.name}: {dead:.0%} of the neurons never spiked."


def _no_accuracy(found: Estimate) -> Iterator[str]:
    if found.accuracy is None:
        yield "the accuracy at this precision is not stated; energy without accuracy compares nothing."


def _single_source(found: Estimate) -> Iterator[str]:
    lone = [c.name for c in found.constants if c.single_source]
    if lone:
        yield f"{found.hardware.name}: no interval is known for {', '.join(lone)}: one source each."


def _no_leakage(found: Estimate) -> Iterator[str]:
    if not any(t.source == "leakage" for t in found.terms):
        yield f"{found.hardware.name}: leakage is not included; the hardware file gives no static_power and step_time."


def _few_samples(found: Estimate) -> Iterator[str]:
    if found.trace.n_samples < FEW_SAMPLES:
        n = found.trace.n_samples
        yield f"only {n} sample{'s' * (n != 1)} recorded; {FEW_SAMPLES} or more give a stable mean."


_RULES: dict[str, Callable[[Estimate], Iterator[str]]] = {
    "W01": _analogue_inside,
    "W02": _direct_coding,
    "W03": _graded,
    "W04": _static_input,
    "W07": _padding,
    "W08": _dropped,
    "W09": _no_memory,
    "W12": _batch_norm,
    "W14": _silent,
    "W15": _no_accuracy,
    "W18": _single_source,
    "W19": _no_leakage,
    "W20": _few_samples,
}
