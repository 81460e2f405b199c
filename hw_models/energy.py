"""Energy of a recorded run on a piece of hardware, with intervals, beside the equal ANN.

An estimate is a sum of terms: a count from the trace times a price from the hardware file. Three accountings exist:

    published    syn·e_add for every operand that is not analogue, padded MACs for analogue ones; nothing else
    operations   ac·e_add + mac·e_mac + (bias + residual + pooling adds)·e_add + neuron updates + resets
    with-memory  operations, and the words that move: weights, accumulators, membranes, events

The equal ANN has the same weights, runs densely once (T times for a recurrent model) and is priced in the same way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import NamedTuple

import numpy as np
from spiking.hw_models._checks import EnergyWarning, check
from spiking.hw_models.hardware import Constant, Hardware, load

from spiking.errors import SpikingError
from spiking.trace import EventTrace, LayerTrace

ACCOUNTINGS = ("published", "operations", "with-memory")
PRECISIONS = {"fp32": 32, "fp16": 16, "int32": 32, "int8": 8}
"""Bits of one word of each precision."""

SOURCES = ("compute", "neurons", "weights", "accumulators", "membranes", "events", "leakage")
"""Where energy goes; every term belongs to one."""

_NEURON_OPS = {  # per update: mul, add, cmp; further adds per spike besides the reset; words of state
    "IF": (0, 1, 1, 0, 1),
    "LIF": (1, 1, 1, 0, 1),
    "ParametricLIF": (1, 1, 1, 0, 1),
    "CuBaLIF": (2, 2, 1, 0, 2),
    "AdaptiveLIF": (2, 3, 1, 1, 2),
}
_RESAMPLES = 1000


class Interval(NamedTuple):
    """A figure with its guaranteed bounds."""

    low: float
    nominal: float
    high: float

    def __mul__(self, factor: float) -> Interval:  # type: ignore[override]
        return Interval(self.low * factor, self.nominal * factor, self.high * factor)

    @property
    def known(self) -> bool:
        """True if the interval has a width."""
        return self.low < self.high


class Term(NamedTuple):
    """amount · price joules per sample; `follows` names the layer's per-sample figure that the amount scales with."""

    layer: str
    source: str
    amount: float
    price: Interval
    group: str
    follows: str = ""


@dataclass(frozen=True)
class LayerEnergy:
    """One row of the per-layer table; energies in joules per sample, counts per sample over all steps."""

    name: str
    kind: str
    operand_class: str
    energy: Interval
    ann: Interval
    by_source: dict[str, float]
    syn: float
    ac: float
    mac: float
    updates: float
    spikes: float
    firing_rate: float


@dataclass(frozen=True)
class Estimate:
    """What `estimate` found. Energies in joules per sample; `ratio` is SNN/ANN: below 1 the spiking network is cheaper.

    `energy`, `ann`, `ratio`: low and high are reached with all constants inside their intervals; both sides of the
    ratio use the same constants. `sampling`, `ratio_sampling`: 5 and 95 % of a bootstrap over the recorded samples,
    constants nominal. `per_layer` rows, `by_source` joules, `warnings` what a reviewer would object to, `constants`
    the constants that were used, `latency` seconds per sample or None where the hardware file gives no step time.
    """

    trace: EventTrace = field(repr=False)
    hardware: Hardware = field(repr=False)
    precision: str
    accounting: str
    energy: Interval
    ann: Interval
    ratio: Interval
    sampling: Interval
    ratio_sampling: Interval
    per_layer: list[LayerEnergy] = field(repr=False)
    by_source: dict[str, float]
    warnings: list[EnergyWarning] = field(repr=False)
    constants: list[Constant] = field(repr=False)
    accuracy: float | None = None
    latency: float | None = None
    ann_steps: int = 1
    reuse_static: bool = False
    terms: list[Term] = field(default_factory=list, repr=False)
    ann_terms: list[Term] = field(default_factory=list, repr=False)

    def summary(self) -> str:
        """The answer in one line: the ratio, both intervals, and the number of warnings."""
        r, s = self.ratio, self.ratio_sampling
        constants = (
            f"{figure(r.low)}–{figure(r.high)} over the constants" if r.known else "constants without a known interval"
        )
        inputs = (
            f"{figure(s.low)}–{figure(s.high)} over {self.trace.n_samples} samples"
            if self.trace.n_samples > 1
            else "1 sample"
        )
        n = len(self.warnings)
        return f"SNN/ANN energy {figure(r.nominal)} ({constants}; {inputs}); {n} warning{'s' * (n != 1)}"


def estimate(
    trace: EventTrace,
    hardware: str | PathLike[str] | Hardware = "digital-45nm",
    *,
    precision: str = "fp32",
    accounting: str = "operations",
    accuracy: float | None = None,
    ann_steps: int | None = None,
    reuse_static: bool = False,
    seed: int = 0,
) -> Estimate:
    """Price a trace on a piece of hardware, beside the equal ANN.

        E = Σ ac·e_add + mac·e_mac + (bias_adds + add_ops + pool_adds)·e_add
              + updates·(n_mul·e_mul + (n_add + n_cmp)·e_add) + spikes·n_reset·e_add          ("operations")

    `hardware` is a name of `hw_models.available()`, a TOML file or a `Hardware`; `precision` one of fp32, fp16, int32,
    int8; `accounting` one of published, operations, with-memory. `ann_steps` passes of the equal ANN: 1, or T for a
    recurrent model, unless stated. `reuse_static=True` counts the MACs of an input that is the same in every step once.
    `accuracy` (0…1) at this precision is carried into the report.
    Errors: SpikingError naming the argument, or the hardware file and the constant that it lacks.
    Source: Horowitz 2014 (10.1109/ISSCC.2014.6757323) for the constants of "digital-45nm".

    >>> import torch, spiking
    >>> from spiking import hw_models
    >>> model = torch.nn.Linear(6, 4, bias=False)
    >>> with spiking.record(model) as trace:
    ...     _ = model(torch.eye(6).reshape(1, 6, 6))      # T = 1, six samples of one spike each
    >>> found = hw_models.estimate(trace, "digital-45nm")
    >>> round(found.energy.nominal * 1e12, 6), round(found.ann.nominal * 1e12, 6)    # 4·0.9 pJ; 24·4.6 pJ
    (3.6, 110.4)
    """
    if not isinstance(trace, EventTrace):
        raise SpikingError(f"estimate: got {type(trace).__name__}; expected an EventTrace. Use spiking.record or load.")
    if trace.n_samples == 0:
        raise SpikingError("estimate: got a trace of zero samples; expected at least one recorded forward pass.")
    if precision not in PRECISIONS:
        raise SpikingError(f"estimate: got precision={precision!r}; expected one of {', '.join(PRECISIONS)}.")
    if accounting not in ACCOUNTINGS:
        raise SpikingError(f"estimate: got accounting={accounting!r}; expected one of {', '.join(ACCOUNTINGS)}.")
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise SpikingError(f"estimate: got accuracy={accuracy}; expected a fraction between 0 and 1.")
    if ann_steps is not None and ann_steps < 1:
        raise SpikingError(f"estimate: got ann_steps={ann_steps}; expected 1 or more.")
    chip = load(hardware)
    passes = ann_steps if ann_steps is not None else trace.n_steps if trace.recurrent else 1
    prices = Prices(chip, precision)
    snn = list(_snn_terms(trace, prices, accounting, reuse_static))
    ann = list(_ann_terms(trace, prices, accounting, passes))
    if accounting != "published":
        snn += _leakage(trace.n_steps, prices)
        ann += _leakage(passes, prices)
    energy, equal = total(snn), total(ann)
    sampling = _bootstrap(trace, snn, seed)
    inverse = 1 / equal.nominal if equal.nominal else math.nan
    step = chip.constants.get("step_time")
    found = Estimate(
        trace=trace,
        hardware=chip,
        precision=precision,
        accounting=accounting,
        energy=energy,
        ann=equal,
        ratio=ratio_of(snn, ann),
        sampling=sampling,
        ratio_sampling=sampling * inverse,
        per_layer=[_layer_energy(row, trace, snn, ann) for row in trace.layers],
        by_source={s: total(t for t in snn if t.source == s).nominal for s in SOURCES},
        warnings=[],
        constants=prices.used,
        accuracy=accuracy,
        latency=None if step is None else step.value * trace.n_steps,
        ann_steps=passes,
        reuse_static=reuse_static,
        terms=snn,
        ann_terms=ann,
    )
    return replace(found, warnings=check(found))


def compare(
    trace: EventTrace, hardware: Sequence[str | PathLike[str] | Hardware] = ("digital-45nm",), **options: object
) -> list[Estimate]:
    """One estimate of the trace per piece of hardware, with the same options; see `estimate`."""
    return [estimate(trace, chip, **options) for chip in hardware]  # type: ignore[arg-type]


def ratio(a: Estimate, b: Estimate) -> Interval:
    """Energy of `a` over energy of `b`; constants that both use take the same value on both sides.

    Errors: SpikingError if the two differ in hardware, precision or accounting.
    """
    for what in ("precision", "accounting"):
        if getattr(a, what) != getattr(b, what):
            raise SpikingError(f"ratio: got {what} {getattr(a, what)} and {getattr(b, what)}; expected the same.")
    if a.hardware.name != b.hardware.name:
        raise SpikingError(f"ratio: got hardware {a.hardware.name} and {b.hardware.name}; expected the same.")
    return ratio_of(a.terms, b.terms)


def reprice(found: Estimate, accounting: str) -> Estimate:
    """The same trace, hardware and options under another accounting."""
    return estimate(
        found.trace,
        found.hardware,
        precision=found.precision,
        accounting=accounting,
        accuracy=found.accuracy,
        ann_steps=found.ann_steps,
        reuse_static=found.reuse_static,
    )


class Prices:
    """Prices of operations and words on one chip at one precision, in joules; remembers which constants it gave."""

    def __init__(self, chip: Hardware, precision: str) -> None:
        self.chip = chip
        self.precision = precision
        self.bits = PRECISIONS[precision]
        self.used: list[Constant] = []

    def constant(self, name: str) -> Constant:
        """The constant, noted as used."""
        found = self.chip[name]
        if found not in self.used:
            self.used.append(found)
        return found

    def operation(self, kind: str) -> tuple[Interval, str]:
        """Price and group of one "add" or "mul"."""
        c = self.constant(f"{self.precision}_{kind}")
        return Interval(c.low, c.value, c.high), c.group

    def word(self, capacity: float, bits: int) -> tuple[Interval, str]:
        """Price and group of moving one word of `bits` to or from a memory of `capacity` bytes.

        Low: the share b/64 of an access; nominal: half an access per 32 bits; high: whole accesses of 64 bits.
        Between the sizes of the source the price follows a power law; above the largest one the word is in DRAM.
        """
        access, group = self._access(capacity)
        return Interval(
            bits / 64 * access.low, math.ceil(bits / 32) / 2 * access.nominal, math.ceil(bits / 64) * access.high
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

    def event_bit(self) -> tuple[Interval, str]:
        """Price and group of one bit through an event queue of at most 8 KiB."""
        c = self.constant("sram_8KiB")
        return Interval(c.low, c.value, c.high) * (1 / 64), c.group


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


def _snn_terms(trace: EventTrace, prices: Prices, accounting: str, reuse_static: bool) -> Iterable[Term]:
    per_sample = 1 / trace.n_samples
    for row in trace.layers:
        if accounting == "published":
            terms = _published(row, prices)
        else:
            terms = _operations(row, prices, reuse_static)
            if accounting == "with-memory":
                terms = [*terms, *_memory(row, prices, reuse_static)]
        for term in terms:
            yield term._replace(amount=term.amount * per_sample)


def _published(row: LayerTrace, prices: Prices) -> list[Term]:
    if not row.is_weight_layer:
        return []
    if row.operand_class == "analogue":
        return _macs(row.name, "compute", row.dense_padded * int(row.calls.sum()), prices, "")
    return [_adds(row.name, "compute", int(row.counts["syn"].sum()), prices, "syn")]


def _operations(row: LayerTrace, prices: Prices, reuse_static: bool) -> list[Term]:
    c = {name: int(values.sum()) for name, values in row.counts.items()}
    if row.kind == "neuron":
        mul, add, cmp, reset, _ = neuron_ops(row)
        price, group = prices.operation("mul")
        return [
            Term(row.name, "neurons", c["updates"] * mul, price, group, "updates"),
            _adds(row.name, "neurons", c["updates"] * (add + cmp), prices, "updates"),
            _adds(row.name, "neurons", c["spikes"] * reset, prices, "spikes"),
        ]
    ac, mac, extra = _work(row, reuse_static)
    terms = [
        _adds(row.name, "compute", ac, prices, "syn"),
        *_macs(row.name, "compute", mac, prices, "mac"),
        _adds(row.name, "compute", c["bias_adds"] + c["add_ops"] + c["pool_adds"] + extra, prices, ""),
    ]
    return [term for term in terms if term.amount]


def _work(row: LayerTrace, reuse_static: bool) -> tuple[int, int, int]:
    """(accumulates, multiply-accumulates, further adds) over the run."""
    if reuse_static and row.is_weight_layer and row.repeated_input and row.n_steps > 1:
        later = int(row.calls[1:].sum()) * row.n_outputs
        return int(row.ac[0]), int(row.mac[0]), later
    return int(row.ac.sum()), int(row.mac.sum()), 0


def _memory(row: LayerTrace, prices: Prices, reuse_static: bool) -> list[Term]:
    c = {name: int(values.sum()) for name, values in row.counts.items()}
    bits = prices.bits
    outputs = row.n_outputs * bits / 8
    queue, queue_group = prices.event_bit()
    if row.kind == "neuron":
        *_, words = neuron_ops(row)
        price, group = prices.word(outputs, bits)
        return [
            Term(row.name, "membranes", 2 * c["updates"] * words, price, group, "updates"),
            Term(row.name, "events", c["spikes"] * _address_bits(row.n_outputs), queue, queue_group, "spikes"),
        ]
    if not row.is_weight_layer:
        return []
    ac, mac, _ = _work(row, reuse_static)
    follows = "syn" if ac else "mac"
    address = _address_bits(row.n_inputs)
    if row.operand_class == "analogue":
        moved = c["in_numel"] * bits
    else:
        moved = c["in_nnz"] * (address + (bits if row.operand_class == "graded" else 0))
    weight, weight_group = prices.word(math.prod(row.weight_shape) * bits / 8, bits)
    accumulator, accumulator_group = prices.word(outputs, bits)
    return [
        Term(row.name, "weights", ac + mac, weight, weight_group, follows),
        Term(row.name, "accumulators", 2 * (ac + mac), accumulator, accumulator_group, follows),
        Term(row.name, "events", moved, queue, queue_group),
    ]


def _address_bits(n: int) -> int:
    return (n - 1).bit_length()


def _ann_terms(trace: EventTrace, prices: Prices, accounting: str, passes: int) -> Iterable[Term]:
    """The equal ANN: every weight layer dense, activations instead of spikes, no neuron state."""
    bits = prices.bits
    for row in trace.layers:
        if row.is_weight_layer:
            macs = passes * (row.dense_padded if accounting == "published" else row.dense)
            yield from _macs(row.name, "compute", macs, prices, "")
            if accounting == "published":
                continue
            if row.bias:
                yield _adds(row.name, "compute", passes * row.n_outputs, prices, "")
            if accounting == "with-memory":
                weight, group = prices.word(math.prod(row.weight_shape) * bits / 8, bits)
                yield Term(row.name, "weights", macs, weight, group)
                accumulator, group = prices.word(row.n_outputs * bits / 8, bits)
                yield Term(row.name, "accumulators", 2 * macs, accumulator, group)
                queue, group = prices.event_bit()
                yield Term(row.name, "events", passes * row.n_inputs * bits, queue, group)
        elif row.kind == "norm" and not row.folded_into and accounting != "published":
            yield from _macs(row.name, "compute", passes * row.n_inputs, prices, "")
        elif row.kind == "neuron" and accounting == "with-memory":
            queue, group = prices.event_bit()
            yield Term(row.name, "events", passes * row.n_outputs * bits, queue, group)


def _adds(layer: str, source: str, count: float, prices: Prices, follows: str) -> Term:
    price, group = prices.operation("add")
    return Term(layer, source, count, price, group, follows)


def _macs(layer: str, source: str, count: float, prices: Prices, follows: str) -> list[Term]:
    """A multiply-accumulate is a multiplication and an addition, each with its own constant."""
    if not count:
        return []
    price, group = prices.operation("mul")
    return [Term(layer, source, count, price, group, follows), _adds(layer, source, count, prices, follows)]


def _leakage(steps: int, prices: Prices) -> list[Term]:
    """Static power over the time of the steps, where the hardware file states both."""
    if "static_power" not in prices.chip.constants or "step_time" not in prices.chip.constants:
        return []
    power, step = prices.constant("static_power"), prices.constant("step_time")
    price = Interval(power.low * step.low, power.value * step.value, power.high * step.high)
    return [Term("", "leakage", steps, price, power.group)]


def total(terms: Iterable[Term]) -> Interval:
    """Sum of the terms, with all constants at their low, nominal and high values."""
    terms = list(terms)
    return Interval(*(math.fsum(t.amount * t.price[i] for t in terms) for i in range(3)))


def ratio_of(a: Sequence[Term], b: Sequence[Term]) -> Interval:
    """Σa / Σb with the same constants on both sides.

    A ratio of two sums that are linear in each group of constants takes its extremes at corners of the box.
    """
    groups = sorted({t.group for t in (*a, *b)})
    if len(groups) > 12:
        raise SpikingError(f"ratio: got {len(groups)} groups of constants; expected at most 12.")

    def by_group(terms: Sequence[Term]) -> np.ndarray:
        sums = np.zeros((len(groups), 3))
        for t in terms:
            sums[groups.index(t.group)] += t.amount * np.asarray(t.price)
        return sums

    top, bottom = by_group(a), by_group(b)
    if bottom[:, 1].sum() == 0:
        return Interval(math.nan, math.nan, math.nan)
    index = np.arange(len(groups))
    corners = [
        float(top[index, list(corner)].sum() / bottom[index, list(corner)].sum())
        for corner in itertools.product((0, 2), repeat=len(groups))
    ]
    nominal = float(top[:, 1].sum() / bottom[:, 1].sum())
    low, high = min(corners), max(corners)
    # summation order alone must not make an interval
    tight = math.isclose(low, high, rel_tol=1e-12)
    return Interval(nominal, nominal, nominal) if tight else Interval(min(low, nominal), nominal, max(high, nominal))


def _bootstrap(trace: EventTrace, terms: Sequence[Term], seed: int) -> Interval:
    """5, nominal and 95 % of the mean energy over resampled recordings, constants nominal."""
    energies = sample_energies(trace, terms)
    rng = np.random.default_rng(seed)
    n = len(energies)
    means = np.array([energies[rng.integers(0, n, n)].mean() for _ in range(_RESAMPLES)])
    return Interval(float(np.quantile(means, 0.05)), float(energies.mean()), float(np.quantile(means, 0.95)))


def sample_energies(trace: EventTrace, terms: Sequence[Term]) -> np.ndarray:
    """Energy of each recorded sample in joules, constants nominal, float64 [n_samples]."""
    rows = {row.name: row for row in trace.layers}
    energies = np.zeros(trace.n_samples)
    for term in terms:
        joules = term.amount * term.price.nominal
        figure = np.zeros(0)
        if term.follows:
            row = rows[term.layer]
            figure = {
                "syn": row.syn_sample,
                "mac": row.mac_sample,
                "updates": row.updates_sample,
                "spikes": row.spikes_sample,
            }[term.follows].astype(np.float64)
        if figure.size == trace.n_samples and figure.sum():
            energies += joules * figure / figure.mean()
        else:
            energies += joules
    return energies


def _layer_energy(row: LayerTrace, trace: EventTrace, snn: Sequence[Term], ann: Sequence[Term]) -> LayerEnergy:
    mine = [t for t in snn if t.layer == row.name]
    n = trace.n_samples
    return LayerEnergy(
        name=row.name,
        kind=row.kind,
        operand_class=row.operand_class if row.is_weight_layer else "",
        energy=total(mine),
        ann=total(t for t in ann if t.layer == row.name),
        by_source={s: total(t for t in mine if t.source == s).nominal for s in SOURCES},
        syn=int(row.counts["syn"].sum()) / n,
        ac=int(row.ac.sum()) / n,
        mac=int(row.mac.sum()) / n,
        updates=int(row.counts["updates"].sum()) / n,
        spikes=int(row.counts["spikes"].sum()) / n,
        firing_rate=row.firing_rate,
    )


def figure(value: float) -> str:
    """A figure with three significant digits, trailing zeros included.

    >>> figure(2.0), figure(0.2412), figure(128.3)
    ('2.00', '0.241', '128')
    """
    return f"{value:#.3g}".rstrip(".")


def si(value: float, unit: str) -> str:
    """A figure with three significant digits and an SI prefix.

    >>> si(3.0219e-9, "J"), si(0, "J"), si(1234.0, "")
    ('3.02 nJ', '0 J', '1.23 k')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g} {unit}".rstrip()
    exponent = min(max(math.floor(math.log10(abs(value)) / 3), -6), 4)
    scaled = value / 1000**exponent
    if abs(float(f"{scaled:.3g}")) >= 1000 and exponent < 4:
        exponent += 1
        scaled = value / 1000**exponent
    prefix = "afpnµm kMGT"[exponent + 6].strip()
    digits = max(0, 2 - math.floor(math.log10(abs(scaled)))) if abs(scaled) < 1000 else 0
    return f"{scaled:.{digits}f} {prefix}{unit}".rstrip()
