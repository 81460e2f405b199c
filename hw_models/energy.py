"""Energy of a recorded run on a piece of hardware, with intervals, beside the equal ANN.

An estimate is a sum of terms: a count from the trace times a price from the hardware file. Each kind of hardware has its
own module that turns a trace into terms: `digital`, `event`, `mesh` and `crossbar`. Three accountings exist:

    published    what papers print: syn·e for every operand that is not analogue, padded MACs for analogue ones
    operations   every operation: weights, biases, pooling, residual additions, neuron updates, packets, converters
    with-memory  operations, and the words that move: weights, accumulators, membranes, events

The prices of processors for events, meshes and crossbars contain the memory of an operation, so that for these the last
two are one. The equal ANN has the same weights, runs densely once (T times for a recurrent model) and is priced on the
same hardware where it can run there, else on a digital host of the same node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike

import numpy as np
from spiking.hw_models import crossbar, digital, event, intervals, mesh
from spiking.hw_models._checks import EnergyWarning, check
from spiking.hw_models.digital import Costs, Prices, host_prices
from spiking.hw_models.hardware import ACCOUNTINGS, PRECISIONS, Constant, Hardware, load
from spiking.hw_models.intervals import Interval, Term, drawn, quantiles, ratio_of, total
from spiking.hw_models.units import figure

from spiking.errors import SpikingError
from spiking.trace import EventTrace, LayerTrace

SOURCES = (
    "compute",
    "neurons",
    "weights",
    "accumulators",
    "membranes",
    "communication",
    "converters",
    "host",
    "leakage",
)
"""Where energy goes; every term belongs to one."""

_RESAMPLES = 1000
_REAL_TIME = 1e-3  # seconds per step of real-time operation, where the trace states none


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
class Twin:
    """A conventional network of the same shape, and what the spiking network is to it.

    `name`: "q3" has activations of 3 bits, "int8" and "fp32" are whole networks of that precision. `ratio` is SNN over
    twin, with its bounds; `ratio_drawn` the 5, 50 and 95 % points of the Monte Carlo draws, `ratio_sampling` 5 and 95 % of
    a bootstrap over the recorded samples with nominal constants. `break_even`: the spikes per
    synapse and step at which both cost the same, None where the trace has no spikes; below 0 no rate breaks even.
    """

    name: str
    title: str
    energy: Interval
    ratio: Interval
    ratio_drawn: Interval
    ratio_sampling: Interval
    break_even: Interval | None
    constants: list[Constant] = field(repr=False)
    terms: list[Term] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class Options:
    """Choices that only some hardware knows; see `estimate`."""

    chips: int = 1
    weight_sharing: bool = False
    adc: str = "isaac"
    adc_bits: int | None = None
    gating: bool = True
    ann_zeros: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """What `estimate` found. Energies in joules per sample; `ratio` is SNN/ANN: below 1 the spiking network is cheaper.

    `energy`, `ann`, `ratio`: low and high are reached with all constants inside their intervals; both sides of the
    ratio use the same constants. `energy_drawn`, `ratio_drawn`: 5, 50 and 95 % points over 10 000 draws of log-uniform
    constants. `sampling`, `ratio_sampling`: 5 and 95 % of a bootstrap over the recorded samples, constants nominal.
    `twins`: the fair twin (⌈log2(T+1)⌉ bits per activation) first, then the INT8 and the FP32 network. `tornado`,
    `shares`: what each group of constants does to the energy and to its variance. `spike_rate`: spikes per synapse and
    step of the layers that get spikes. `latency` seconds per sample, None where the hardware file gives no time;
    `realtime` the energy per sample if each step takes the trace's dt, or 1 ms, None where static power is unknown.
    `per_layer` rows, `by_source` joules, `warnings` what a reviewer would object to, `constants` those that were used,
    `sources` their BibTeX, `facts` what the back-end found besides: cores, placement, tilings.
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
    energy_drawn: Interval
    ratio_drawn: Interval
    spike_rate: float
    twins: list[Twin] = field(default_factory=list, repr=False)
    accuracy: float | None = None
    latency: Interval | None = None
    realtime: Interval | None = None
    ann_steps: int = 1
    reuse_static: bool = False
    options: Options = field(default_factory=Options, repr=False)
    terms: list[Term] = field(default_factory=list, repr=False)
    ann_terms: list[Term] = field(default_factory=list, repr=False)
    facts: dict[str, object] = field(default_factory=dict, repr=False)
    seed: int = 0

    @property
    def fair(self) -> Twin | None:
        """The fair twin: activations quantised to what T steps of spikes can say; None if it cannot be priced."""
        return next((twin for twin in self.twins if twin.name.startswith("q")), None)

    @property
    def tornado(self) -> dict[str, tuple[float, float]]:
        """Energy with one group of constants at its ends and all others nominal; the largest span first."""
        return intervals.tornado(self.terms)

    @property
    def shares(self) -> dict[str, float]:
        """Share of the energy's variance that each group of constants causes; the largest first."""
        return intervals.shares(self.terms, self.seed)

    @property
    def throughput(self) -> Interval | None:
        """Samples per second, one sample after the other."""
        if self.latency is None or not self.latency.low:
            return None
        return Interval(1 / self.latency.high, 1 / self.latency.nominal, 1 / self.latency.low)

    @property
    def sources(self) -> dict[str, str]:
        """BibTeX of the sources of all constants used, twins included."""
        known = {**load(digital.HOST).sources, **self.hardware.sources}
        used = [*self.constants, *(c for twin in self.twins for c in twin.constants)]
        keys = dict.fromkeys(key for c in used for key in (c.source, *c.bounds))
        return {key: known[key] for key in keys}

    def accountings(self) -> dict[str, Estimate]:
        """The same trace and hardware under each of the three accountings."""
        return {name: self if name == self.accounting else reprice(self, name) for name in ACCOUNTINGS}

    def summary(self) -> str:
        """The answer in one line: the ratio against the fair twin, both intervals, and the number of warnings."""
        twin = self.fair
        name = "ANN of the same precision" if twin is None else twin.title
        r, s = (self.ratio, self.ratio_sampling) if twin is None else (twin.ratio, twin.ratio_sampling)
        constants = (
            f"{figure(r.low)}–{figure(r.high)} over the constants" if r.known else "constants without a known interval"
        )
        inputs = (
            f"{figure(s.low)}–{figure(s.high)} over {self.trace.n_samples} samples"
            if self.trace.n_samples > 1
            else "1 sample"
        )
        n = len(self.warnings)
        return f"SNN/ANN energy {figure(r.nominal)} ({name}; {constants}; {inputs}); {n} warning{'s' * (n != 1)}"


def estimate(
    trace: EventTrace,
    hardware: str | PathLike[str] | Hardware = "digital-45nm",
    *,
    precision: str | None = None,
    accounting: str | None = None,
    accuracy: float | None = None,
    ann_steps: int | None = None,
    ann_zeros: float = 0.0,
    reuse_static: bool = False,
    chips: int = 1,
    weight_sharing: bool = False,
    adc: str = "isaac",
    adc_bits: int | None = None,
    gating: bool = True,
    seed: int = 0,
) -> Estimate:
    """Price a trace on a piece of hardware, beside the equal ANN.

        E = Σ ac·e_add + mac·e_mac + (bias_adds + add_ops + pool_adds)·e_add
              + updates·(n_mul·e_mul + (n_add + n_cmp)·e_add) + spikes·n_reset·e_add          ("operations", digital)

    `hardware` is a name of `hw_models.available()`, a TOML file or a `Hardware`; `precision` one of fp32, fp16, int32,
    int8, and `accounting` one of published, operations, with-memory: without them the hardware file's own choice holds.
    `ann_steps` passes of the equal ANN: 1, or T for a recurrent model, unless stated; `ann_zeros`: share of its activations
    that are zero and that digital hardware skips (0…1, beyond the first layer). `reuse_static=True` counts the MACs
    of an input that is the same in every step once. `accuracy` (0…1) at this precision is carried into the report; without
    it, the one that the trace states, if what ran had no more bits than are priced.
    Meshes: `chips` in a row that may be used; `weight_sharing` stores a kernel once per core. Crossbars: the converter
    model `adc` (isaac, survey, k1k2) at `adc_bits` (None: as many as lose nothing); `gating` skips the reads of row blocks
    without a spike. `seed` of the bootstrap and of the draws of the constants.
    Errors: SpikingError naming the argument, the hardware file and the constant that it lacks, or by how much a network
    does not fit.
    Source: Horowitz 2014 (10.1109/ISSCC.2014.6757323) for the constants of "digital-45nm".

    >>> import torch, spiking
    >>> from spiking import hw_models
    >>> model = torch.nn.Linear(6, 4, bias=False)
    >>> with spiking.record(model) as trace:
    ...     _ = model(torch.eye(6).reshape(1, 6, 6))      # T = 1, six samples of one spike each
    >>> found = hw_models.estimate(trace, "digital-45nm")
    >>> round(found.energy.nominal * 1e12, 6), round(found.ann.nominal * 1e12, 6)    # 4·0.9 pJ; 24·4.6 pJ
    (3.6, 110.4)
    >>> [twin.name for twin in found.twins]
    ['q1', 'int8', 'fp32']
    """
    if not isinstance(trace, EventTrace):
        raise SpikingError(f"estimate: got {type(trace).__name__}; expected an EventTrace. Use spiking.record or load.")
    if trace.n_samples == 0:
        raise SpikingError("estimate: got a trace of zero samples; expected at least one recorded forward pass.")
    chip = load(hardware)
    precision, accounting = precision or chip.precision, accounting or chip.accounting
    if precision not in PRECISIONS:
        raise SpikingError(f"estimate: got precision={precision!r}; expected one of {', '.join(PRECISIONS)}.")
    if accounting not in ACCOUNTINGS:
        raise SpikingError(f"estimate: got accounting={accounting!r}; expected one of {', '.join(ACCOUNTINGS)}.")
    if accuracy is None and trace.precision:
        fits = max(trace.precision["weight_bits"], trace.precision["state_bits"]) <= PRECISIONS[precision]
        accuracy = trace.precision["accuracy"] if fits else None
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise SpikingError(f"estimate: got accuracy={accuracy}; expected a fraction between 0 and 1.")
    if ann_steps is not None and ann_steps < 1:
        raise SpikingError(f"estimate: got ann_steps={ann_steps}; expected 1 or more.")
    if not 0 <= ann_zeros < 1:
        raise SpikingError(f"estimate: got ann_zeros={ann_zeros}; expected a fraction from 0 to less than 1.")
    if chips < 1:
        raise SpikingError(f"estimate: got chips={chips}; expected 1 or more.")
    passes = ann_steps if ann_steps is not None else trace.n_steps if trace.recurrent else 1
    options = Options(chips, weight_sharing, adc, adc_bits, gating, ann_zeros)
    costs = spiking_costs(trace, chip, precision, accounting, reuse_static, options)
    equal = _ann(trace, chip, precision, accounting, passes, options)
    dynamic = costs.terms
    snn, ann = list(dynamic), list(equal.terms)
    if accounting != "published":
        snn += costs.leakage()
        ann += equal.leakage()
    energy, ann_energy = total(snn), total(ann)
    sampling = _bootstrap(trace, snn, seed)
    inverse = 1 / ann_energy.nominal if ann_energy.nominal else math.nan
    draws = drawn(snn, seed)
    rows = [row for row in trace.layers if row.is_weight_layer and row.operand_class != "analogue"]
    connections = sum(row.dense * int(row.calls.sum()) for row in rows)
    rate = sum(int(row.counts["syn"].sum()) for row in rows) / connections if connections else 0.0
    found = Estimate(
        trace=trace,
        hardware=chip,
        precision=precision,
        accounting=accounting,
        energy=energy,
        ann=ann_energy,
        ratio=ratio_of(snn, ann),
        sampling=sampling,
        ratio_sampling=sampling * inverse,
        per_layer=_layers(trace, snn, ann),
        by_source=_by_source(snn),
        warnings=[],
        constants=list(dict.fromkeys([*costs.used, *equal.used])),
        energy_drawn=quantiles(draws),
        ratio_drawn=_quotient(draws, drawn(ann, seed)),
        spike_rate=rate,
        accuracy=accuracy,
        latency=costs.latency,
        realtime=_realtime(costs, trace),
        ann_steps=passes,
        reuse_static=reuse_static,
        options=options,
        terms=snn,
        ann_terms=ann,
        facts=costs.facts,
        seed=seed,
    )
    found = replace(found, twins=_twins(found, draws))
    return replace(found, warnings=check(found))


def spiking_costs(
    trace: EventTrace, chip: Hardware, precision: str, accounting: str, reuse_static: bool, options: Options
) -> Costs:
    if chip.kind == "mesh":
        return mesh.cost(trace, chip, precision, accounting, reuse_static, options.chips, options.weight_sharing)
    if chip.kind in ("crossbar", "macro"):
        return crossbar.cost(trace, chip, precision, accounting, options.adc, options.adc_bits, options.gating)
    price: Callable[..., Costs] = {"digital": digital.cost, "event": event.cost}[chip.kind]
    return price(trace, chip, precision, accounting, reuse_static)


def _ann(
    trace: EventTrace,
    chip: Hardware,
    precision: str,
    accounting: str,
    passes: int,
    options: Options,
    bits: int | None = None,
) -> Costs:
    """The equal network on the same hardware where it can run there, else on a digital host of the same node."""
    if chip.kind == "digital":
        return digital.ann_cost(trace, Prices(chip, precision), accounting, passes, bits, options.ann_zeros)
    if chip.kind == "event" and not chip.skips_zeros:
        return event.ann_cost(trace, chip, precision, accounting, passes)
    if chip.kind in ("crossbar", "macro") and precision == "int8":
        return crossbar.ann_cost(trace, chip, accounting, passes, bits or 8, options.adc, options.adc_bits)
    host = host_prices(chip, precision)
    return digital.ann_cost(trace, host, digital.on_host(accounting), passes, bits, options.ann_zeros)


def _twins(found: Estimate, draws: np.ndarray) -> list[Twin]:
    trace, chip = found.trace, found.hardware
    bits = math.ceil(math.log2(trace.n_steps + 1))
    weights = found.precision if chip.kind == "digital" else "int8"
    wanted = [
        (f"q{bits}", f"ANN, {weights} weights, {bits}-bit activations", weights, bits),
        ("int8", "ANN, int8", "int8", None),
        ("fp32", "ANN, fp32", "fp32", None),
    ]
    twins = []
    for name, title, precision, width in wanted:
        if chip.kind == "digital" and f"{precision}_mul" not in chip.constants:
            continue
        costs = _ann(trace, chip, precision, found.accounting, found.ann_steps, found.options, width)
        terms = [*costs.terms, *(costs.leakage() if found.accounting != "published" else ())]
        energy = total(terms)
        twins.append(
            Twin(
                name=name,
                title=title,
                energy=energy,
                ratio=ratio_of(found.terms, terms),
                ratio_drawn=_quotient(draws, drawn(terms, found.seed)),
                ratio_sampling=found.sampling * (1 / energy.nominal if energy.nominal else math.nan),
                break_even=_break_even(found, terms),
                constants=costs.used,
                terms=terms,
            )
        )
    return twins


def by_rate(found: Estimate) -> tuple[list[Term], list[Term]]:
    """(terms that scale with the rate of the spikes, all others); none scale where the trace has no spikes."""
    analogue = {row.name for row in found.trace.layers if row.operand_class == "analogue" and row.is_weight_layer}
    active: list[Term] = []
    fixed: list[Term] = []
    for t in found.terms:
        scales = found.spike_rate and t.follows in ("syn", "mac", "spikes") and t.layer not in analogue
        (active if scales else fixed).append(t)
    return active, fixed


def _break_even(found: Estimate, twin: Sequence[Term]) -> Interval | None:
    """Spikes per synapse and step at which both networks cost the same: what follows spikes scales with their rate."""
    active, fixed = by_rate(found)
    if not any(t.amount for t in active):
        return None
    margin = [*twin, *(t._replace(amount=-t.amount) for t in fixed)]
    return ratio_of(margin, active) * found.spike_rate


def break_even_rate(ann: float, fixed: float, per_rate: float) -> float:
    """The rate r at which fixed + r·per_rate equals the energy of the ANN; below 0 no rate breaks even.

        r* = (E_ANN − E_fixed) / (T · Σ A)

    Units: energies in one unit; `per_rate` is what one spike per synapse and step costs, T·Σ A.

    >>> round(break_even_rate(ann=4.6, fixed=0.0, per_rate=0.9), 3)      # FP32 operations alone: spikes per synapse
    5.111
    """
    return (ann - fixed) / per_rate


def _quotient(a: np.ndarray, b: np.ndarray) -> Interval:
    """5, 50 and 95 % points of a ratio whose two sides were drawn with the same constants."""
    if not b.all():
        return Interval(math.nan, math.nan, math.nan)
    return quantiles(a / b)


def _realtime(costs: Costs, trace: EventTrace) -> Interval | None:
    if costs.static is None:
        return None
    seconds = trace.n_steps * (trace.dt or _REAL_TIME)
    return total([*costs.terms, *costs.leakage(Interval(seconds, seconds, seconds))])


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


def reprice(found: Estimate, accounting: str, accuracy: float | None = None) -> Estimate:
    """The same trace, hardware and options under another accounting, or with another accuracy."""
    return estimate(
        found.trace,
        found.hardware,
        precision=found.precision,
        accounting=accounting,
        accuracy=found.accuracy if accuracy is None else accuracy,
        ann_steps=found.ann_steps,
        reuse_static=found.reuse_static,
        seed=found.seed,
        **vars(found.options),
    )


def _by_source(terms: Sequence[Term]) -> dict[str, float]:
    sums = dict.fromkeys(SOURCES, 0.0)
    for term in terms:
        sums[term.source] += term.amount * term.price.nominal
    return sums


def _bootstrap(trace: EventTrace, terms: Sequence[Term], seed: int) -> Interval:
    """5, nominal and 95 % of the mean energy over resampled recordings, constants nominal."""
    energies = sample_energies(trace, terms)
    rng = np.random.default_rng(seed)
    n = len(energies)
    at_once = max(1, min(_RESAMPLES, 2**20 // n))
    chunks = [min(at_once, _RESAMPLES - start) for start in range(0, _RESAMPLES, at_once)]
    means = np.concatenate([energies[rng.integers(0, n, (k, n))].mean(1) for k in chunks])
    return Interval(float(np.quantile(means, 0.05)), float(energies.mean()), float(np.quantile(means, 0.95)))


def sample_energies(trace: EventTrace, terms: Sequence[Term]) -> np.ndarray:
    """Energy of each recorded sample in joules, constants nominal, float64 [n_samples]."""
    rows = {row.name: row for row in trace.layers}
    energies = np.zeros(trace.n_samples)
    for term in terms:
        joules = term.amount * term.price.nominal
        counts = np.zeros(0)
        if term.follows:
            row = rows[term.layer]
            counts = {
                "syn": row.syn_sample,
                "mac": row.mac_sample,
                "updates": row.updates_sample,
                "spikes": row.spikes_sample,
            }[term.follows].astype(np.float64)
        if counts.size == trace.n_samples and counts.sum():
            energies += joules * counts / counts.mean()
        else:
            energies += joules
    return energies


def _layers(trace: EventTrace, snn: Sequence[Term], ann: Sequence[Term]) -> list[LayerEnergy]:
    mine: dict[str, list[Term]] = {}
    equal: dict[str, list[Term]] = {}
    for terms, by_layer in ((snn, mine), (ann, equal)):
        for term in terms:
            by_layer.setdefault(term.layer, []).append(term)
    return [_layer_energy(row, trace, mine.get(row.name, []), equal.get(row.name, [])) for row in trace.layers]


def _layer_energy(row: LayerTrace, trace: EventTrace, mine: Sequence[Term], ann: Sequence[Term]) -> LayerEnergy:
    n = trace.n_samples
    return LayerEnergy(
        name=row.name,
        kind=row.kind,
        operand_class=row.operand_class if row.is_weight_layer else "",
        energy=total(mine),
        ann=total(ann),
        by_source=_by_source(mine),
        syn=int(row.counts["syn"].sum()) / n,
        ac=int(row.ac.sum()) / n,
        mac=int(row.mac.sum()) / n,
        updates=int(row.counts["updates"].sum()) / n,
        spikes=int(row.counts["spikes"].sum()) / n,
        firing_rate=row.firing_rate,
    )
