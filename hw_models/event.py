"""Event processors: a price per synaptic event and neuron update, and static power while the run lasts.

    E = synops·e_synop + updates·e_neuron + (P_static + e_cycle·f)·seconds

What a chip publishes as its energy per synaptic operation is either the marginal price of one more event or its power
over its event rate at one operating point; hardware files of the second sort say `average = true`, and have no P_static.
Layers with analogue operands run on a digital host, priced as `digital-45nm` with its memory.
"""

from __future__ import annotations

import math

from spiking.hw_models.digital import Costs, Prices, host_prices, on_host, row_terms
from spiking.hw_models.hardware import Constant, Hardware
from spiking.hw_models.intervals import Interval, Term

from spiking.trace import EventTrace, LayerTrace


def neurons(trace: EventTrace) -> int:
    """Neurons that a chip has to hold: those of the trace, and the outputs of weight layers that end in none."""
    return sum(row.n_outputs for row in trace.layers if row.kind == "neuron") + sum(
        row.n_outputs for row in readouts(trace)
    )


def readouts(trace: EventTrace) -> list[LayerTrace]:
    """Weight layers whose outputs no other layer reads."""
    read = {name for row in trace.layers for name in row.operand_of}
    last = {row.name for row in trace.layers if row.kind == "neuron"}
    return [
        row
        for row in trace.layers
        if row.is_weight_layer and row.name not in read and row.name.removesuffix(".recurrent") not in last
    ]


def synops(row: LayerTrace) -> tuple[int, float]:
    """(events that reach a synapse, the same where a graded value k is sent as k spikes) over the run."""
    events = int(row.counts["syn"].sum())
    if row.operand_class != "graded":
        return events, float(events)
    nonzero = int(row.counts["in_nnz"].sum())
    return events, events * max(1.0, float(row.in_abs_sum.sum()) / row.operand_scale / max(nonzero, 1))


def interval(constant: Constant) -> Interval:
    """The constant's low, value and high."""
    return Interval(constant.low, constant.value, constant.high)


def synapse_terms(row: LayerTrace, prices: Prices, accounting: str, sparse: bool = True) -> list[Term]:
    """Synaptic events of a weight layer over the run; a graded value is sent as spikes (low: as one event)."""
    c = prices.constant("synop")
    if not sparse:
        return [Term(row.name, "compute", row.dense * int(row.calls.sum()), interval(c), c.group)]
    events, unrolled = synops(row)
    if accounting == "published":
        return [Term(row.name, "compute", events, interval(c), c.group, "syn")]
    share = events / unrolled if unrolled else 1.0
    price = interval(c)
    return [Term(row.name, "compute", unrolled, price._replace(low=price.low * share), c.group, "syn")]


def host_terms(row: LayerTrace, host: Prices, accounting: str, reuse_static: bool) -> list[Term]:
    """A layer that runs on the digital host, its memory included: the prices beside it contain theirs."""
    terms = row_terms(row, host, on_host(accounting), reuse_static)
    return [term._replace(source="host") for term in terms]


def cost(trace: EventTrace, chip: Hardware, precision: str, accounting: str, reuse_static: bool) -> Costs:
    """The spiking network on an event processor."""
    prices, host = Prices(chip, precision), host_prices(chip, precision)
    terms: list[Term] = []
    for row in trace.layers:
        if row.is_weight_layer and row.operand_class == "analogue" and chip.skips_zeros:
            terms += host_terms(row, host, accounting, reuse_static)
        elif row.is_weight_layer or (row.kind == "matmul" and not chip.skips_zeros):
            terms += synapse_terms(row, prices, accounting, chip.skips_zeros)
        elif row.kind in ("matmul", "norm"):
            terms += host_terms(row, host, accounting, reuse_static)
        elif row.kind == "neuron" and "neuron_update" in chip.constants and accounting != "published":
            c = prices.constant("neuron_update")
            terms.append(Term(row.name, "neurons", int(row.counts["updates"].sum()), interval(c), c.group, "updates"))
    terms = [term._replace(amount=term.amount / trace.n_samples) for term in terms]
    found = Costs(terms, used=[*prices.used, *host.used])
    found.latency = _latency(trace, prices)
    _static(found, trace, prices)
    found.used = list(dict.fromkeys([*prices.used, *host.used]))
    return found


def ann_cost(trace: EventTrace, chip: Hardware, precision: str, accounting: str, passes: int) -> Costs:
    """The conventional network on a processor that computes zeros as well: every connection once per pass."""
    prices = Prices(chip, precision)
    synop, terms = prices.constant("synop"), []
    for row in trace.layers:
        if row.is_weight_layer or row.kind == "matmul":
            terms.append(Term(row.name, "compute", passes * row.dense, interval(synop), synop.group))
        elif row.kind == "neuron" and "neuron_update" in chip.constants and accounting != "published":
            c = prices.constant("neuron_update")
            terms.append(Term(row.name, "neurons", passes * row.n_outputs, interval(c), c.group))
    return Costs(terms, used=prices.used)


def _latency(trace: EventTrace, prices: Prices) -> Interval | None:
    known = prices.chip.constants
    if "step_time" in known:
        return interval(prices.constant("step_time")) * trace.n_steps
    if {"synop_cycles", "clock"} <= known.keys():
        cycles, clock = prices.constant("synop_cycles"), prices.constant("clock")
        rows = [row for row in trace.layers if row.is_weight_layer and row.operand_class != "analogue"]
        events = sum(synops(row)[1] for row in rows) / trace.n_samples
        return Interval(
            events * cycles.low / clock.high, events * cycles.value / clock.value, events * cycles.high / clock.low
        )
    return None


def _static(found: Costs, trace: EventTrace, prices: Prices) -> None:
    """Power that flows whether there are events or not: low counts the cores in use only, high whole chips."""
    known = prices.chip.constants
    held = int(known["max_neurons"].value) if "max_neurons" in known else 0
    used = math.ceil(neurons(trace) / held) if held else 1
    cores = int(known["cores"].value) if "cores" in known else 1
    chips = math.ceil(used / cores)
    if "static_power" in known:
        c = prices.constant("static_power")
        found.static, found.static_group = Interval(c.low * used / cores, c.value * chips, c.high * chips), c.group
    elif "core_power" in known:
        c = prices.constant("core_power")
        found.static, found.static_group = Interval(c.low * used, c.value * used, c.high * cores * chips), c.group
    if "idle_cycle" in known and "clock" in known and found.static is not None:
        cycle, clock = interval(prices.constant("idle_cycle")), interval(prices.constant("clock"))
        found.static = found.static.plus(cycle.times(clock) * chips)
    found.facts |= {"cores": used, "chips": chips}
