"""What a reviewer would object to in an estimate, found in the trace itself.

One function per code; each yields the text of its warnings, and the text names the layer or the constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from spiking.hw_models.hardware import PRECISIONS

from spiking.trace import EventTrace, LayerTrace

if TYPE_CHECKING:
    from spiking.hw_models.energy import Estimate

SILENT_RATE = 1e-4
DEAD_SHARE = 0.5
DROPPED_SHARE = 0.05
FEW_SAMPLES = 100
WIRE_LOSS = 0.01
_STATED = {"weights": "weight_bits", "states": "state_bits"}


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


def _place(found: Estimate) -> str:
    """Where a layer with analogue operands runs, if not on the hardware itself."""
    hosted = found.hardware.kind in ("event", "mesh") and found.hardware.skips_zeros
    return " on a digital host" if hosted else ""


def _analogue_inside(found: Estimate) -> Iterator[str]:
    for row in _weights(found, "analogue"):
        if not _encodes(row, found.trace):
            yield (
                f"{row.name} gets analogue values, not spikes: it is priced as {row.dense:,} dense MACs per step"
                f"{_place(found)}; a count of events times the price of an addition would be wrong here."
            )


def _direct_coding(found: Estimate) -> Iterator[str]:
    for row in _weights(found, "analogue"):
        if _encodes(row, found.trace):
            yield (
                f"{row.name} reads analogue input: its operations are MACs{_place(found)}, not accumulates"
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
        price = "as one MAC per event"
        if found.accounting == "published":
            price = "as accumulates, as papers do"
        elif found.hardware.kind in ("event", "mesh"):
            price = "as if each value were sent as that many spikes"
        yield f"{row.name} gets graded values ({reason}; multiples of {row.operand_scale:.3g}): priced {price}."


def _static_input(found: Estimate) -> Iterator[str]:
    for row in found.trace.layers:
        if row.is_weight_layer and row.repeated_input and row.counts["in_nnz"].any():
            counted = "only once" if found.reuse_static else f"in all {found.trace.n_steps} steps"
            yield f"{row.name} gets the same input in every step; its operations are counted {counted}."


def _mean_as_rate(found: Estimate) -> Iterator[str]:
    if found.accounting != "published":
        return
    for row in found.trace.layers:
        numel, nonzero = int(row.counts["in_numel"].sum()), int(row.counts["in_nnz"].sum())
        if not row.is_weight_layer or row.operand_class in ("binary", "ternary", "analogue") or not nonzero:
            continue
        mean = float(row.in_abs_sum.sum()) / numel
        yield (
            f"{row.name}: the mean of the operand ({mean:.3g}) is not its rate of events ({nonzero / numel:.3g}): counters "
            "that take one for the other are wrong here."
        )


def _padding(found: Estimate) -> Iterator[str]:
    if found.accounting != "published" or found.hardware.kind != "digital":
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
        if row.kind in ("neuron", "norm", "avgpool", "add", "matmul") or row.operand_class not in ("analogue", "graded")
    }
    share = sum(missing.values()) / whole.energy.nominal if whole.energy.nominal else 0.0
    if share > DROPPED_SHARE:
        worst = max(missing, key=lambda name: missing[name])
        yield (
            f"{share:.0%} of the operations' energy is dropped (biases, neuron updates, normalisation, pooling); "
            f"most of it at {worst}."
        )


def _no_memory(found: Estimate) -> Iterator[str]:
    if found.accounting != "with-memory" and found.hardware.kind == "digital":
        yield (
            "memory traffic (weights, accumulators, membranes, events) is not included; "
            "the accounting with-memory adds it."
        )


def _precision(found: Estimate) -> Iterator[str]:
    if found.hardware.kind != "digital" and found.hardware.skips_zeros and found.precision.startswith("fp"):
        yield (
            f"{found.hardware.name} computes with integers; an {found.precision.upper()} network beside it compares "
            "different precisions. precision='int8' compares like with like."
        )


def _unquantised(found: Estimate) -> Iterator[str]:
    fair = found.fair
    if fair is not None and fair.ratio.nominal > (1 + DROPPED_SHARE) * found.ratio.nominal:
        yield (
            f"{found.trace.n_steps} steps of spikes say no more than {fair.name[1:]}-bit activations: against that network "
            f"the ratio is {fair.ratio.nominal:.3g}, not {found.ratio.nominal:.3g}."
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


def _not_evaluated(found: Estimate) -> Iterator[str]:
    stated, bits = found.trace.precision, PRECISIONS[found.precision]
    finer = [f"{what} of {stated[key]} bits" for what, key in _STATED.items() if stated and stated[key] > bits]
    if finer:
        yield (
            f"priced as {found.precision}, but what ran had {' and '.join(finer)}: quantise the model, and state the accuracy "
            "that it has then."
        )


def _single_source(found: Estimate) -> Iterator[str]:
    lone = [c.name for c in found.constants if c.single_source]
    if lone:
        yield f"{found.hardware.name}: no interval is known for {', '.join(lone)}: one source each."


def _attention(found: Estimate) -> Iterator[str]:
    for row in found.trace.layers:
        if row.kind == "matmul" and (row.mac.any() or found.accounting == "published"):
            dense = int(row.mac.sum()) / found.trace.n_samples
            what = f"{dense:,.0f} MACs per sample, not accumulates" if row.mac.any() else "as accumulates, as papers do"
            kind = "of two operands that are not spikes" if row.mac.any() else "of activations"
            yield f"{row.name} is a matrix product {kind}: priced as {what}."


def _converters(found: Estimate) -> Iterator[str]:
    if found.hardware.kind not in ("crossbar", "macro"):
        return
    if found.accounting == "published":
        yield f"{found.hardware.name}: the figure has no converters, buffers or neurons in it."
    yield from _wires(found)
    bits, lossless = found.facts.get("adc_bits"), found.facts.get("adc_bits_lossless")
    if isinstance(bits, int) and isinstance(lossless, int) and bits < lossless:
        yield f"{found.hardware.name}: converters of {bits} bits; {lossless} lose nothing. State the accuracy with {bits}."


def _wires(found: Estimate) -> Iterator[str]:
    loss = found.facts.get("wire_loss")
    if isinstance(loss, float) and loss > WIRE_LOSS:
        yield (
            f"{found.hardware.name}: the wires of its arrays take {loss:.1%} of a read's energy and more of its currents: "
            "smaller arrays, or lower conductances, would keep the values."
        )


def _mixed(found: Estimate) -> Iterator[str]:
    chip = found.hardware
    nodes = {c.name: c.node_nm for c in found.constants if c.node_nm and c.node_nm != chip.node_nm}
    if nodes:
        yield f"{chip.name}: constants of other nodes: {', '.join(f'{n} ({nm:g} nm)' for n, nm in nodes.items())}."
    foreign = sorted({c.chip for c in found.constants if c.chip != chip.name})
    if foreign:
        scaled = "scaled to" if chip.voltage is not None and chip.node_nm <= 130 else "not scaled to"
        yield (
            f"what {chip.name} cannot do, and the equal ANN, are priced with {', '.join(foreign)}, {scaled} "
            f"{chip.node_nm:g} nm."
        )


def _operating_point(found: Estimate) -> Iterator[str]:
    if found.hardware.average:
        yield (
            f"{found.hardware.name}: the price per event is an average at one operating point, with static power in it; at "
            "another rate it is wrong."
        )


def _modelled(found: Estimate) -> Iterator[str]:
    if found.hardware.modelled:
        yield f"{found.hardware.name}: the constants come from a model or from before silicon, not from a measurement."


def _no_leakage(found: Estimate) -> Iterator[str]:
    if found.hardware.average:
        return  # the price per event contains it
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
    "W06": _mean_as_rate,
    "W07": _padding,
    "W08": _dropped,
    "W09": _no_memory,
    "W10": _precision,
    "W11": _unquantised,
    "W12": _batch_norm,
    "W13": _attention,
    "W14": _silent,
    "W15": _no_accuracy,
    "W16": _converters,
    "W17": _mixed,
    "W18": _single_source,
    "W19": _no_leakage,
    "W20": _few_samples,
    "W21": _operating_point,
    "W22": _modelled,
    "W23": _not_evaluated,
}


def check_claim(
    ann_operations: float, firing_rate: float, energy: float, *, e_ac: float = 0.9e-12, e_mac: float = 4.6e-12
) -> tuple[float, float, list[EnergyWarning]]:
    """What a published estimate should read: (joules, ratio ANN/SNN, warnings) of E = operations·rate·e_ac.

    `ann_operations` of the conventional network, `firing_rate` as published, `energy` the joules printed for the spiking
    one. W05: the printed figure is what comes out if operations that are sparse already are multiplied with the rate
    once more.

    >>> joules, ratio, (warning,) = check_claim(18.39e6, 0.1366, 3.09e-7)
    >>> round(joules * 1e6, 3), round(ratio, 1), warning.code
    (2.261, 37.4, 'W05')
    """
    right = ann_operations * firing_rate * e_ac
    twice = right * firing_rate
    warnings = []
    if abs(energy / twice - 1) < 0.01 < abs(energy / right - 1):
        warnings.append(
            EnergyWarning(
                "W05", f"the rate {firing_rate:g} is applied twice: {energy:.3g} J should read {right:.4g} J."
            )
        )
    return right, ann_operations * e_mac / right, warnings
