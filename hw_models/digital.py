"""Prices of digital logic and memory: what a layer's operations and words cost, for both networks.

    operations   ac·e_add + mac·e_mac + (bias + residual + pooling adds)·e_add + neuron updates + resets
    memory       a read of the weight, a read and a write of the accumulator per operation; states; events by the bit

A multiply-accumulate is a multiplication and an addition. Other hardware uses these prices for what runs on its digital
host: layers with analogue operands, neurons beside a memory array, and the conventional network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spiking.hw_models.hardware import PRECISIONS, Constant, Hardware, load
from spiking.hw_models.intervals import Interval, Term
from spiking.hw_models.scaling import scale

from spiking.errors import SpikingError
from spiking.trace import EventTrace, LayerTrace

HOST = "digital-45nm"
_ONE = Interval(1.0, 1.0, 1.0)
_NEURON_OPS = {  # per update: mul, add, cmp; further adds per spike besides the reset; words of state
    "IF": (0, 1, 1, 0, 1),
    "LIF": (1, 1, 1, 0, 1),
    "ParametricLIF": (1, 1, 1, 0, 1),
    "CuBaLIF": (2, 2, 1, 0, 2),
    "AdaptiveLIF": (2, 3, 1, 1, 2),
}
_SIGNIFICANDS = {"fp32": 24, "fp16": 11, "int32": 32, "int8": 8}


@dataclass
class Costs:
    """What a back-end found: terms in joules per sample, seconds per sample, static power, constants, further facts."""

    terms: list[Term]
    latency: Interval | None = None
    static: Interval | None = None  # watts, while the sample runs
    static_group: str = ""
    used: list[Constant] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def leakage(self, seconds: Interval | None = None) -> list[Term]:
        """Static power over the latency, or over the seconds given; none if either is unknown."""
        seconds = seconds or self.latency
        if self.static is None or seconds is None:
            return []
        return [Term("", "leakage", 1.0, self.static.times(seconds), self.static_group)]


class Prices:
    """Prices of operations and words on one chip at one precision, in joules; remembers which constants it gave.

    `logic` scales operations to another node; words keep their price, since memory does not scale as logic does.
    """

    def __init__(self, chip: Hardware, precision: str, logic: Interval = _ONE) -> None:
        self.chip = chip
        self.precision = precision
        self.bits = PRECISIONS[precision]
        self.logic = logic
        self.used: list[Constant] = []

    def constant(self, name: str) -> Constant:
        """The constant, noted as used."""
        found = self.chip[name]
        if found not in self.used:
            self.used.append(found)
        return found

    def operation(self, kind: str) -> tuple[Interval, str]:
        """Price and group of one "add", "mul" or "cmp"; a compare without a price of its own costs an addition."""
        if kind == "cmp" and f"{self.precision}_cmp" not in self.chip.constants:
            kind = "add"
        c = self.constant(f"{self.precision}_{kind}")
        return Interval(c.low, c.value, c.high).times(self.logic), c.group

    def multiplication(self, bits: int | None) -> tuple[Interval, str]:
        """Price and group of a weight times an activation of `bits` bits (None: as wide as the precision).

        A multiplier's energy follows a power of the product of its operands' widths; the exponent comes from the chip's
        own two multipliers of the same kind of number. High: the full multiplier all the same.
        """
        price, group = self.operation("mul")
        width = _SIGNIFICANDS[self.precision]
        if bits is None or bits >= width:
            return price, group
        narrow, wide = ("fp16", "fp32") if self.precision.startswith("fp") else ("int8", "int32")
        exponent = 1.0
        if {f"{narrow}_mul", f"{wide}_mul"} <= self.chip.constants.keys():
            energies = self.constant(f"{wide}_mul").value / self.constant(f"{narrow}_mul").value
            exponent = math.log(energies) / (2 * math.log(_SIGNIFICANDS[wide] / _SIGNIFICANDS[narrow]))
        share = (bits / width) ** exponent
        return Interval(price.low * share, price.nominal * share, price.high), f"{group} at {bits} bit"

    def word(self, capacity: float, bits: int) -> tuple[Interval, str]:
        """Price and group of moving one word of `bits` to or from a memory of `capacity` bytes.

        Low: the share b/64 of an access; nominal: half an access per 32 bits; high: whole accesses of 64 bits.
        Between the sizes of the source the price follows a power law; above the largest one the word is in DRAM.
        """
        if "memory_bit" in self.chip.constants:
            c = self.constant("memory_bit")
            return Interval(c.low, c.value, c.high) * bits, c.group
        access, group = self._access(capacity)
        return Interval(
            bits / 64 * access.low,
            math.ceil(bits / 32) / 2 * access.nominal,
            math.ceil(bits / 64) * access.high,
        ), group

    def _access(self, capacity: float) -> tuple[Interval, str]:
        kib = capacity / 1024
        if kib > 1024:
            c = self.constant("dram")
            return Interval(c.low, c.value, c.high), c.group
        small, middle, large = (self.constant(name) for name in ("sram_8KiB", "sram_32KiB", "sram_1MiB"))
        if kib <= 8:
            shrink = math.sqrt(max(kib, 1.0) / 8)
            return Interval(small.low * shrink, small.value, small.high), small.group
        below, above, size, larger = (small, middle, 8, 32) if kib <= 32 else (middle, large, 32, 1024)
        x = math.log(kib / size) / math.log(larger / size)

        def between(a: float, b: float) -> float:
            return a * (b / a) ** x

        return Interval(
            between(below.low, above.low), between(below.value, above.value), between(below.high, above.high)
        ), small.group

    def weight(self, row: LayerTrace, operations: float, passes: float) -> tuple[Interval, str]:
        """Price and group of the weight of one operation; a chip that keeps what it read bounds it from below."""
        price, group = self.word(math.prod(row.weight_shape) * self.bits / 8, self.bits)
        if "register_bit" in self.chip.constants and operations:
            once = min(1.0, math.prod(row.weight_shape) * passes / operations)
            price = price._replace(low=price.low * once)
        return price, group

    def accumulator(self, row: LayerTrace) -> tuple[Interval, str]:
        """Price and group of a read or a write of an accumulator."""
        price, group = self.word(row.n_outputs * self.bits / 8, self.bits)
        if "register_bit" in self.chip.constants:
            register = self.constant("register_bit").low * self.bits
            price = price._replace(low=min(price.low, register))
        return price, group

    def event_bit(self) -> tuple[Interval, str]:
        """Price and group of one bit through an event queue of at most 8 KiB."""
        if "memory_bit" in self.chip.constants:
            return self.word(0, 1)
        c = self.constant("sram_8KiB")
        return Interval(c.low, c.value, c.high) * (1 / 64), c.group


def on_host(accounting: str) -> str:
    """The accounting of what runs beside hardware whose prices contain memory: its own memory, too."""
    return accounting if accounting == "published" else "with-memory"


def host_prices(chip: Hardware, precision: str) -> Prices:
    """Digital prices beside a chip that is not digital itself: 45 nm logic, scaled to its node where its voltage is known."""
    host = load(HOST)
    if chip.voltage is None or not 7 <= chip.node_nm <= 130 or host.voltage is None:
        return Prices(host, precision)
    return Prices(host, precision, scale(host.node_nm, host.voltage, chip.node_nm, chip.voltage))


class Work(NamedTuple):
    """Operations of a weight layer over the run: accumulates, multiply-accumulates, further adds."""

    ac: int
    mac: int
    adds: int


def work(row: LayerTrace, reuse_static: bool) -> Work:
    """Operations over the run; those of a static input once, and an addition per output and later step, if reused."""
    if reuse_static and row.is_weight_layer and row.repeated_input and row.n_steps > 1:
        later = int(row.calls[1:].sum()) * row.n_outputs
        return Work(int(row.ac[0]), int(row.mac[0]), later)
    return Work(int(row.ac.sum()), int(row.mac.sum()), 0)


def neuron_ops(row: LayerTrace) -> tuple[float, float, float, float, int]:
    """(mul, add, cmp per update; add per spike; words of state) of a neuron row.

    Errors: SpikingError naming the layer if the neuron neither states its operations nor has a known type.
    """
    facts = row.neuron
    kind = str(facts.get("type", row.module))
    ops = facts.get("ops")
    if isinstance(ops, dict):
        return (
            float(ops.get("mul", 0)),
            float(ops.get("add", 0)),
            float(ops.get("cmp", 0)),
            float(ops.get("reset_add", 0)),
            int(facts.get("state_vars", 1)),
        )
    if kind not in _NEURON_OPS:
        known = ", ".join(_NEURON_OPS)
        raise SpikingError(
            f"estimate: layer {row.name}: got a neuron of type {kind} without its operations; expected "
            f"one of {known}, or describe() with ops."
        )
    mul, add, cmp, per_spike, words = _NEURON_OPS[kind]
    return mul, add, cmp, per_spike + (facts.get("reset") == "subtract"), int(facts.get("state_vars", words))


def cost(trace: EventTrace, chip: Hardware, precision: str, accounting: str, reuse_static: bool) -> Costs:
    """The spiking network on a digital chip."""
    prices = Prices(chip, precision)
    per_sample = 1 / trace.n_samples
    terms = [
        term._replace(amount=term.amount * per_sample)
        for row in trace.layers
        for term in row_terms(row, prices, accounting, reuse_static)
    ]
    return _timed(terms, trace.n_steps, prices)


def ann_cost(
    trace: EventTrace,
    prices: Prices,
    accounting: str,
    passes: int,
    activation_bits: int | None = None,
    zeros: float = 0.0,
) -> Costs:
    """The equal conventional network: every weight layer dense, activations instead of spikes, no neuron state.

    `zeros` of its activations are zero, and hardware skips them, in all layers behind the first activations.
    """
    return _timed(list(_ann_terms(trace, prices, accounting, passes, activation_bits, zeros)), passes, prices)


def _timed(terms: list[Term], steps: int, prices: Prices) -> Costs:
    """Terms with the chip's time: a published step time, or operations over lanes and bytes over bandwidth."""
    found = Costs(terms, used=prices.used)
    known = prices.chip.constants
    if "step_time" in known:
        step = prices.constant("step_time")
        found.latency = Interval(step.low, step.value, step.high) * steps
    elif {"lanes", "clock"} <= known.keys():
        clock, lanes = prices.constant("clock"), prices.constant("lanes")
        operations = sum(t.amount for t in terms if t.source in ("compute", "neurons"))
        words = sum(t.amount for t in terms if t.source in ("weights", "accumulators", "membranes"))
        band = prices.constant("bandwidth") if "bandwidth" in known else None
        seconds = [
            max(
                operations / (getattr(lanes, end) * getattr(clock, end)),
                words * prices.bits / 8 / getattr(band, end) if band else 0.0,
            )
            for end in ("high", "value", "low")
        ]
        found.latency = Interval(*seconds)
    if "static_power" in known and found.latency is not None:
        power = prices.constant("static_power")
        found.static, found.static_group = Interval(power.low, power.value, power.high), power.group
    return found


def row_terms(row: LayerTrace, prices: Prices, accounting: str, reuse_static: bool) -> list[Term]:
    """Terms of one row over the whole run."""
    if accounting == "published":
        return _published(row, prices)
    terms = _operations(row, prices, reuse_static)
    return [*terms, *_memory(row, prices, reuse_static)] if accounting == "with-memory" else terms


def _published(row: LayerTrace, prices: Prices) -> list[Term]:
    if row.kind == "matmul":  # attention, which papers count as accumulates
        return [adds(row.name, "compute", int(row.counts["syn"].sum()), prices)]
    if not row.is_weight_layer:
        return []
    if row.operand_class == "analogue":
        return macs(row.name, "compute", row.dense_padded * int(row.calls.sum()), prices)
    return [adds(row.name, "compute", int(row.counts["syn"].sum()), prices, "syn")]


def _operations(row: LayerTrace, prices: Prices, reuse_static: bool) -> list[Term]:
    c = {name: int(values.sum()) for name, values in row.counts.items()}
    if row.kind == "neuron":
        mul, add, cmp, reset, _ = neuron_ops(row)
        price, group = prices.operation("mul")
        compare, compare_group = prices.operation("cmp")
        return [
            Term(row.name, "neurons", c["updates"] * mul, price, group, "updates"),
            adds(row.name, "neurons", c["updates"] * add, prices, "updates"),
            Term(row.name, "neurons", c["updates"] * cmp, compare, compare_group, "updates"),
            adds(row.name, "neurons", c["spikes"] * reset, prices, "spikes"),
        ]
    ac, mac, extra = work(row, reuse_static)
    terms = [
        adds(row.name, "compute", ac, prices, "syn"),
        *macs(row.name, "compute", mac, prices, "mac"),
        adds(row.name, "compute", c["bias_adds"] + c["add_ops"] + extra, prices),
        adds(row.name, "compute", c["pool_adds"], prices),
    ]
    return [term for term in terms if term.amount]


def _memory(row: LayerTrace, prices: Prices, reuse_static: bool) -> list[Term]:
    c = {name: int(values.sum()) for name, values in row.counts.items()}
    bits = prices.bits
    queue, queue_group = prices.event_bit()
    if row.kind == "neuron":
        *_, words = neuron_ops(row)
        price, group = prices.word(row.n_outputs * bits / 8, bits)
        return [
            Term(row.name, "membranes", 2 * c["updates"] * words, price, group, "updates"),
            Term(row.name, "communication", c["spikes"] * _address_bits(row.n_outputs), queue, queue_group, "spikes"),
        ]
    if not row.is_weight_layer:
        return []
    ac, mac, _ = work(row, reuse_static)
    follows = "syn" if ac else "mac"
    address = _address_bits(row.n_inputs)
    if row.operand_class == "analogue":
        moved, with_events = c["in_numel"] * bits, ""
    else:
        moved = c["in_nnz"] * (address + (bits if row.operand_class == "graded" else 0))
        with_events = follows
    weight, weight_group = prices.weight(row, ac + mac, int(row.calls.sum()))
    accumulator, accumulator_group = prices.accumulator(row)
    return [
        Term(row.name, "weights", ac + mac, weight, weight_group, follows),
        Term(row.name, "accumulators", 2 * (ac + mac), accumulator, accumulator_group, follows),
        Term(row.name, "communication", moved, queue, queue_group, with_events),
    ]


def _address_bits(n: int) -> int:
    return (n - 1).bit_length()


def _ann_terms(
    trace: EventTrace, prices: Prices, accounting: str, passes: int, activation_bits: int | None, zeros: float
) -> Iterable[Term]:
    moved = activation_bits or prices.bits
    active = 1.0
    for row in trace.layers:
        if row.kind == "neuron":
            active = 1.0 - zeros
        if row.is_weight_layer:
            count = active * passes * (row.dense_padded if accounting == "published" else row.dense)
            yield from macs(row.name, "compute", count, prices, bits=activation_bits)
            if accounting == "published":
                continue
            if row.bias:
                yield adds(row.name, "compute", passes * row.n_outputs, prices)
            if accounting == "with-memory":
                weight, group = prices.weight(row, count, passes)
                yield Term(row.name, "weights", count, weight, group)
                accumulator, group = prices.accumulator(row)
                yield Term(row.name, "accumulators", 2 * count, accumulator, group)
                queue, group = prices.event_bit()
                yield Term(row.name, "communication", active * passes * row.n_inputs * moved, queue, group)
        elif row.kind == "matmul":
            yield from macs(row.name, "compute", passes * row.dense, prices, bits=activation_bits)
        elif row.kind == "norm" and not row.folded_into and accounting != "published":
            yield from macs(row.name, "compute", passes * row.n_inputs, prices)
        elif row.kind == "neuron" and accounting == "with-memory":
            queue, group = prices.event_bit()
            yield Term(row.name, "communication", passes * row.n_outputs * moved, queue, group)


def adds(layer: str, source: str, count: float, prices: Prices, follows: str = "") -> Term:
    """Additions of one layer."""
    price, group = prices.operation("add")
    return Term(layer, source, count, price, group, follows)


def macs(
    layer: str, source: str, count: float, prices: Prices, follows: str = "", bits: int | None = None
) -> list[Term]:
    """A multiply-accumulate is a multiplication and an addition; an activation of one bit needs the addition only."""
    if not count:
        return []
    product = []
    if bits != 1:
        price, group = prices.multiplication(bits)
        product = [Term(layer, source, count, price, group, follows)]
    return [*product, adds(layer, source, count, prices, follows)]
