"""Weights in arrays of memory cells: tiling, converters, wires, and the energy of a run.

A layer of R rows (inputs of one output) and M columns takes S = ⌈(b_w − d)/b_cell⌉ slices of cells per weight (d = 1 if a
pair of columns carries the sign). An array read drives the rows of one position and one bit of the input; its energy is

    E = Σ active rows (cells·e_cell + e_dac) + used columns (e_hold + e_adc) + shift-and-add, buffers, bus

Row blocks without a spike are skipped (`gating`). The bill of the converters falls with the rate only through that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from spiking.hw_models.devices import Cell
from spiking.hw_models.digital import Costs, Prices, host_prices, row_terms
from spiking.hw_models.event import interval
from spiking.hw_models.hardware import Constant, Hardware
from spiking.hw_models.intervals import Interval, Term
from spiking.hw_models.mapping import axis_values, padding_values
from spiking.hw_models.placement import ArrayConfig, place
from spiking.hw_models.wires import Wires, solve_nodes

from spiking.errors import SpikingError
from spiking.trace import EventTrace, LayerTrace

ADC_MODELS = ("isaac", "survey", "k1k2")
_MOST_BITS = 16


class Tiling(NamedTuple):
    """How one layer lies on arrays; counts of one read are per sample and step, all positions."""

    rows_needed: int
    slices: int
    phys_columns: int
    row_blocks: int
    col_blocks: int
    tiles: int
    utilisation: float
    positions: int
    groups: int
    columns: int  # logical outputs per group
    phases: int
    adc_bits_lossless: int
    adc_conversions_dense: int
    shift_adds: int
    array_activations_dense: int


def tile(
    weight_shape: Sequence[int],
    *,
    groups: int = 1,
    positions: int = 1,
    rows: int = 128,
    columns: int = 128,
    weight_bits: int = 8,
    cell_bits: int = 2,
    differential: bool = True,
    input_bits: int = 8,
    dac_bits: int = 1,
    spikes: bool = True,
) -> Tiling:
    """How a layer of `weight_shape` [outputs, inputs/groups, *kernel] lies on arrays of `rows` × `columns` cells.

    `positions` outputs per channel of one sample and step; `differential`: a pair of columns per weight carries the sign,
    else one offset column is shared. Inputs of spikes need one phase, others one per `dac_bits` of their `input_bits`.

    >>> found = tile([128, 784], rows=128, columns=128, weight_bits=8, cell_bits=2)
    >>> found.tiles, found.utilisation, found.adc_bits_lossless
    (56, 0.875, 9)
    """
    rows_needed = math.prod(weight_shape[1:])
    outputs = weight_shape[0] // groups
    slices = math.ceil((weight_bits - (1 if differential else 0)) / cell_bits)
    physical = outputs * slices * 2 if differential else outputs * slices + 1
    row_blocks, col_blocks = math.ceil(rows_needed / rows), math.ceil(physical / columns)
    tiles = groups * row_blocks * col_blocks
    phases = 1 if spikes else math.ceil(input_bits / dac_bits)
    levels = (1 if spikes else 2**dac_bits - 1) * (2**cell_bits - 1)
    return Tiling(
        rows_needed=rows_needed,
        slices=slices,
        phys_columns=physical,
        row_blocks=row_blocks,
        col_blocks=col_blocks,
        tiles=tiles,
        utilisation=groups * rows_needed * physical / (tiles * rows * columns),
        positions=positions,
        groups=groups,
        columns=outputs,
        phases=phases,
        adc_bits_lossless=math.ceil(math.log2(min(rows, rows_needed) * levels + 1)),
        adc_conversions_dense=positions * groups * phases * row_blocks * physical,
        shift_adds=positions * groups * (slices * phases * row_blocks - 1) * outputs,
        array_activations_dense=positions * phases * tiles,
    )


# converters


def adc_survey(bits: float, nm: float, rate: float) -> float:
    """Joules per conversion of the best published converters, by a fit over a survey.

    Units: nm of the process, conversions per second; from 4 bits on.
    Source: Andrulis et al. 2024 (arXiv 2404.06553).

    >>> round(adc_survey(8, 32, 1e8) * 1e12, 3)
    1.711
    """
    if bits < 4:
        raise SpikingError(f"adc_survey: got {bits} bits; expected 4 or more: the survey's fit begins there.")
    merit = min(213.7807 - 2.8719059 * math.log(rate), 128.3068 + 3.2205115 * math.ceil(bits))
    trend = math.exp(24.5794127 + 1.8800369 * math.log(nm) - 2.8291256 * math.log(bits))
    return 10 ** ((6.02 * bits + 1.76 - merit) / 10) / 2 * trend * 1e-12


def adc_k1k2(bits: int, voltage: float) -> float:
    """Joules per conversion of a capacitive converter: (100·b + 0.001·4^b) fF · V².

    Source: Houshmand, Sun, Verhelst 2023 (arXiv 2305.18335).

    >>> round(adc_k1k2(8, 0.9) * 1e12, 3)
    0.701
    """
    return (100 * bits + 0.001 * 4**bits) * voltage**2 * 1e-15


def adc_price(prices: Prices, model: str, bits: int) -> tuple[Interval, str]:
    """Price and group of one conversion: the model's figure, and the interval over all models at that width.

    Errors: SpikingError for an unknown model or a width for which no model has a figure.
    """
    if model not in ADC_MODELS:
        raise SpikingError(f"estimate: got adc={model!r}; expected one of {', '.join(ADC_MODELS)}.")
    if not 1 <= bits <= _MOST_BITS:
        raise SpikingError(f"estimate: got converters of {bits} bits; expected 1 to {_MOST_BITS}.")
    known = [int(name[4:-1]) for name in prices.chip.constants if name.startswith("adc_") and name.endswith("b")]
    voltage = prices.chip.voltage or 0.9
    formulas = [adc_k1k2(bits, voltage)]
    if bits >= 4:
        formulas.append(adc_survey(bits, prices.chip.node_nm, 1e8))
    if bits in known:
        c = prices.constant(f"adc_{bits}b")
        low, value, high, group = c.low, c.value, c.high, c.group
    elif known and bits < min(known):  # fewer bits cost no more than the narrowest converter with a figure
        c = prices.constant(f"adc_{min(known)}b")
        low, value, high, group = min(c.low, *formulas), min(c.value, *formulas), c.value, c.group
    else:
        low, value, high, group = min(formulas), max(formulas), max(formulas), "adc"
    if model == "survey" and bits >= 4:
        value = formulas[-1]
    elif model == "k1k2":
        value = formulas[0]
    return Interval(min(low, value), value, max(high, value)), group


# energy


def positions(row: LayerTrace) -> int:
    """Outputs per channel of one sample: reads of the layer's arrays in a step."""
    if row.kind == "linear":
        return math.prod(row.out_shape[:-1])
    return math.prod(row.out_shape[1:])


def active_blocks(row: LayerTrace, tiling: Tiling, rows: int, gating: bool) -> Interval:
    """(position, row block) pairs of the run that hold a spike: exact if recorded, else bounds from the counts.

    With Q active rows over N reads of R rows: at least ⌈Q/rows⌉, at most min(Q, all); nominal with the rows active
    independently of each other.
    """
    reads = int(row.calls.sum()) * tiling.positions * tiling.groups
    every = float(reads * tiling.row_blocks)
    if not gating:
        return Interval(every, every, every)
    if rows in row.active_rows:
        exact = float(row.active_rows[rows])
        return Interval(exact, exact, exact)
    active = int(row.counts["syn"].sum()) / max(tiling.columns, 1)
    if not reads or not active:
        return Interval(0.0, 0.0, 0.0)
    rate = min(active / (reads * tiling.rows_needed), 1.0)
    full, rest = divmod(tiling.rows_needed, rows)
    nominal = reads * (full * (1 - (1 - rate) ** rows) + (1 - (1 - rate) ** rest))
    low, high = float(math.ceil(active / rows)), min(active, every)
    return Interval(low, min(max(nominal, low), high), high)


def _tiling(row: LayerTrace, chip: Hardware, weight_bits: int, input_bits: int, spikes: bool) -> Tiling:
    shape = row.weight_shape
    groups = int(row.config.get("groups", 1))
    if row.kind.startswith("convtranspose"):
        shape = (shape[1] * groups, shape[0] // groups, *shape[2:])
    return tile(
        shape,
        groups=groups,
        positions=positions(row),
        rows=int(chip.get("rows")),
        columns=int(chip.get("columns")),
        weight_bits=weight_bits,
        cell_bits=int(chip.get("cell_bits")),
        differential=chip.get("columns_per_weight") == 2,
        input_bits=input_bits,
        dac_bits=int(chip.get("dac_bits")),
        spikes=spikes,
    )


def weight_bits(chip: Hardware, precision: str) -> int:
    """Bits of a weight on the arrays: those of the precision, at most what the design holds."""
    return min({"int8": 8}.get(precision, 16), int(chip.get("weight_bits")) or 16)


def cost(
    trace: EventTrace, chip: Hardware, precision: str, accounting: str, adc: str, adc_bits: int | None, gating: bool
) -> Costs:
    """The spiking network on arrays; neurons, pooling and norms beside them are digital."""
    prices = Prices(chip, precision)
    host = host_prices(chip, precision if precision == "int8" else "int32")
    terms: list[Term] = []
    facts: dict[str, object] = {}
    tilings: dict[str, Tiling] = {}
    latency = cells = Interval(0.0, 0.0, 0.0)
    for row in trace.layers:
        if not row.is_weight_layer:
            if accounting != "published":
                terms += row_terms(row, host, "operations", False)
            continue
        spikes = row.operand_class not in ("graded", "analogue")
        if chip.kind == "macro":
            terms += _macro_terms(row, prices, accounting, gating)
            if row.row_siemens.size and row.config["cell"]["t_read"]:
                seconds = Interval(*row.config["cell"]["t_read"])
                devices = _device_term(row, prices, seconds)
                cells = cells.plus(devices.price * (devices.amount / trace.n_samples))
                facts["cells"] = cells  # contained in the published price of a read
            continue
        tiling = _tiling(row, chip, weight_bits(chip, precision), 8, spikes)
        tilings[row.name] = tiling
        blocks = active_blocks(row, tiling, int(chip.get("rows")), gating)
        active = int(row.counts["syn"].sum()) / max(tiling.columns, 1)
        if row.operand_class == "analogue" and row.repeated_input:
            facts["static_input"] = row.name
        terms += _array_terms(row, tiling, prices, accounting, blocks, active, adc, adc_bits)
        latency = latency.plus(_read_time(tiling, chip) * (int(row.calls.sum()) * tiling.positions))
    found = Costs([t._replace(amount=t.amount / trace.n_samples) for t in terms])
    if tilings:
        facts |= {"tilings": tilings, "arrays": sum(t.tiles for t in tilings.values())}
        lossless = max(t.adc_bits_lossless for t in tilings.values())
        facts |= {"adc_bits_lossless": lossless, "adc_bits": adc_bits or lossless}
        rows = [row for row in trace.layers if row.name in tilings]
        events = sum(int(row.counts["in_nnz"].sum()) for row in rows)
        facts["wire_loss"] = wire_loss(chip, events / max(sum(int(row.counts["in_numel"].sum()) for row in rows), 1))
        found.latency = latency * (1 / trace.n_samples)
    found.facts = facts
    found.used = list(dict.fromkeys([*prices.used, *host.used]))
    return found


def _array_terms(
    row: LayerTrace,
    tiling: Tiling,
    prices: Prices,
    accounting: str,
    blocks: Interval,
    active_rows: float,
    adc: str,
    adc_bits: int | None,
) -> list[Term]:
    """Reads of the arrays of one layer, over as many (position, row block) pairs as hold a spike."""
    dac = prices.constant("dac")
    phases, columns = tiling.phases, tiling.phys_columns
    driven = active_rows * phases
    terms = _cell_terms(row, tiling, prices, driven)
    if accounting == "published":
        return terms
    conversions = blocks.nominal * phases * columns
    price, group = adc_price(prices, adc, adc_bits or tiling.adc_bits_lossless)
    hold, add = prices.constant("sample_hold"), prices.constant("shift_add")
    spread = Interval(*(b / blocks.nominal for b in blocks)) if blocks.nominal else blocks

    def term(source: str, amount: float, c: Constant) -> Term:
        return Term(row.name, source, amount, interval(c).times(spread), c.group, "syn")

    terms += [
        Term(row.name, "converters", driven * tiling.col_blocks, interval(dac), dac.group, "syn"),
        term("converters", conversions, hold),
        Term(row.name, "converters", conversions, price.times(spread), group, "syn"),
        term("compute", blocks.nominal * phases * tiling.slices * tiling.columns, add),
    ]
    if accounting == "with-memory":
        moved = blocks.nominal * tiling.columns * prices.bits / 8
        received = driven / 8
        terms += [
            term("accumulators", 2 * moved, prices.constant("buffer_byte")),
            Term(row.name, "communication", received, *_priced(prices.constant("buffer_byte")), "syn"),
            term("communication", moved, prices.constant("bus_byte")),
        ]
    return terms


def _cell_terms(row: LayerTrace, tiling: Tiling, prices: Prices, driven: float) -> list[Term]:
    """Reading the cells of the driven rows: V²·t·ΣG with the conductances of the devices themselves where the run was on arrays,
    with the weights' own where the file states a cell's (`g_min`, `g_max`, `v_read`; one cell per weight and sign, a run's
    rows known), else a price per cell.
    """
    known = prices.chip.constants
    if row.row_siemens.size and driven:
        phases = driven * tiling.columns / max(int(row.counts["syn"].sum()), 1)  # or passes of the conventional network
        return [_device_term(row, prices, interval(prices.constant("read_time")), phases)]
    if not {"g_min", "g_max", "v_read"} <= known.keys() or tiling.slices != 1 or not driven:
        cell = prices.constant("cell_read")
        return [Term(row.name, "compute", driven * tiling.phys_columns, interval(cell), cell.group, "syn")]
    counts = row_counts(row)
    if counts is None or not row.row_abs_w.size:
        raise SpikingError(
            f"{prices.chip.name}: the file states conductances, and the trace has no weight magnitudes for layer {row.name}. "
            "Record it again, or state cell_read instead."
        )
    low, high, volt, time = (interval(prices.constant(n)) for n in ("g_min", "g_max", "v_read", "read_time"))
    pulse = volt.times(volt).times(time)
    span = Interval(max(high.low - low.high, 0.0), high.nominal - low.nominal, high.high - low.low)
    times = driven / max(float(counts.sum()), 1.0)  # phases, or passes of the conventional network
    weights = float(counts @ row.row_abs_w.astype(np.float64)) / (row.w_abs_max or 1.0)
    group = prices.constant("g_max").group
    return [
        Term(row.name, "compute", times * float(counts.sum()) * 2 * tiling.columns, low.times(pulse), group, "syn"),
        Term(row.name, "compute", times * weights, span.times(pulse), group, "syn"),
    ]


def _device_term(row: LayerTrace, prices: Prices, seconds: Interval, phases: float = 1.0) -> Term:
    """V²·t·ΣG of the devices that the run was on, at the read voltage of their kind, over all driven rows."""
    counts = row_counts(row)
    if counts is None:
        raise SpikingError(
            f"{prices.chip.name}: layer {row.name} was on memory cells, and a padding other than zeros hides how often each row "
            "was driven. Pad with zeros, or record the model that was deployed."
        )
    volt = Interval(*row.config["cell"]["v_read"])
    amount = phases * float(counts @ row.row_siemens)
    return Term(row.name, "compute", amount, volt.times(volt).times(seconds), "cells", "syn")


def row_counts(row: LayerTrace) -> np.ndarray | None:
    """How often each row of the weight matrix met a non-zero operand over the run, int64 [rows of all groups].

    Exact, from the counts per operand element. None for transposed convolutions and other padding than zeros.
    """
    counts = row.spike_count.reshape(row.in_shape)
    if row.kind == "linear":
        return counts.reshape(-1, row.in_shape[-1]).sum(0)
    if row.kind.startswith("convtranspose") or row.config.get("padding_mode", "zeros") != "zeros":
        return None
    dims = len(row.in_shape) - 1
    kernel = row.weight_shape[2:]
    stride, dilation = (axis_values(row.config.get(n, 1), dims) for n in ("stride", "dilation"))
    padding = padding_values(row.config.get("padding", 0), kernel, dilation)
    found = np.zeros((row.in_shape[0], *kernel), np.int64)
    for tap in np.ndindex(*kernel):
        taken = counts
        for d, k in enumerate(tap):
            at = np.arange(row.out_shape[1 + d]) * stride[d] - padding[d] + k * dilation[d]
            taken = taken.take(at[(at >= 0) & (at < row.in_shape[1 + d])], axis=1 + d)
        found[(slice(None), *tap)] = taken.reshape(row.in_shape[0], -1).sum(1)
    return found.reshape(-1)


def wire_loss(chip: Hardware, rate: float) -> float:
    """Error of reads without wires, E/E_nodal − 1, for an array of mean conductance of which `rate` of the rows are driven.

    0 where the hardware file states no wires (`r_word`, `r_bit`) or no conductances.
    """
    names = ("r_word", "r_bit", "g_min", "g_max", "v_read", "rows", "columns")
    if not all(name in chip.constants for name in names):
        return 0.0
    r_word, r_bit, g_min, g_max, volt, rows, columns = (chip.get(name) for name in names)
    driven = np.zeros(int(rows))
    driven[np.linspace(0, rows - 1, max(1, round(rate * rows))).round().astype(int)] = volt
    cells = np.full((int(rows), int(columns)), (g_min + g_max) / 2)
    return read_array(cells, driven, 1.0, r_word, r_bit).error


def _priced(c: Constant) -> tuple[Interval, str]:
    return interval(c), c.group


def _macro_terms(row: LayerTrace, prices: Prices, accounting: str, gating: bool) -> list[Term]:
    """Whole-array reads at the published energy per multiply-accumulate, converters included."""
    chip = prices.chip
    rows, columns = int(chip.get("rows")), int(chip.get("columns"))
    c = prices.constant("macro_mac")
    tiling = tile(
        row.weight_shape if not row.kind.startswith("convtranspose") else (row.weight_shape[1], row.weight_shape[0]),
        groups=int(row.config.get("groups", 1)),
        positions=positions(row),
        rows=rows,
        columns=columns,
        weight_bits=1,
        cell_bits=1,
        differential=False,
    )
    wide = math.ceil(tiling.columns / columns)
    if accounting == "published":
        return [Term(row.name, "compute", int(row.counts["syn"].sum()), interval(c), c.group, "syn")]
    dense = row.operand_class == "analogue"
    blocks = active_blocks(row, tiling, rows, gating and not dense)
    spread = Interval(*(b / blocks.nominal for b in blocks)) if blocks.nominal else blocks
    amount = blocks.nominal * wide * rows * columns
    return [Term(row.name, "compute", amount, interval(c).times(spread), c.group, "" if dense else "syn")]


def _read_time(tiling: Tiling, chip: Hardware) -> Interval:
    """Seconds of one matrix-vector product: its phases, each a read and the conversions of an array's columns."""
    read, rate = interval(chip["read_time"]), chip["adc_rate"]
    used = min(tiling.phys_columns, int(chip.get("columns")))
    convert = math.ceil(used / int(chip.get("adcs")))
    return Interval(*(tiling.phases * (r + convert / f) for r, f in zip(read, (rate.high, rate.value, rate.low))))


def ann_cost(
    trace: EventTrace, chip: Hardware, accounting: str, passes: int, bits: int, adc: str, adc_bits: int | None
) -> Costs:
    """The conventional network on the same arrays: every row block of every position, one phase per bit of the input."""
    prices = Prices(chip, "int8")
    terms: list[Term] = []
    latency = Interval(0.0, 0.0, 0.0)
    for row in trace.layers:
        if not row.is_weight_layer:
            continue
        reads = float(passes * positions(row))
        if chip.kind == "macro":
            rows, columns = int(chip.get("rows")), int(chip.get("columns"))
            c = prices.constant("macro_mac")
            groups = int(row.config.get("groups", 1))
            per_output = math.prod(row.weight_shape[1:])
            tiles = groups * math.ceil(per_output / rows) * math.ceil(row.weight_shape[0] / groups / columns)
            amount = passes * row.dense if accounting == "published" else reads * tiles * rows * columns
            terms.append(Term(row.name, "compute", amount, *_priced(c)))
            continue
        tiling = _tiling(row, chip, weight_bits(chip, "int8"), bits, False)
        every = reads * tiling.groups * tiling.row_blocks
        rows_driven = reads * tiling.groups * tiling.rows_needed
        terms += [
            t._replace(follows="")
            for t in _array_terms(
                row, tiling, prices, accounting, Interval(every, every, every), rows_driven, adc, adc_bits
            )
        ]
        latency = latency.plus(_read_time(tiling, chip) * reads)
    return Costs(terms, latency=latency if chip.kind == "crossbar" else None, used=prices.used)


# wires


class ArrayRead(NamedTuple):
    """One read of an array: column currents in amperes, and joules, without wires (ideal) and with them (nodal)."""

    ideal_currents: np.ndarray
    currents: np.ndarray
    row_currents: np.ndarray
    energy_ideal: float
    energy: float

    @property
    def error(self) -> float:
        """Relative error of the formula without wires, E = t·Σ V²·G."""
        return self.energy_ideal / self.energy - 1 if self.energy else 0.0

    @property
    def worst_column(self) -> float:
        """Largest relative loss of a column's current in the wires."""
        some = self.ideal_currents != 0
        return float((1 - self.currents[some] / self.ideal_currents[some]).max()) if some.any() else 0.0


def read_array(conductance: np.ndarray, voltages: np.ndarray, seconds: float, r_word: float, r_bit: float) -> ArrayRead:
    """Read an array of cells through wires that have a resistance, by solving for every node.

    Each cell joins a node of its word line to one of its bit line. Word lines have a segment of `r_word` ohms from the
    driver to the first column and between columns; bit lines one of `r_bit` between rows and from the last row to ground.
    Every driver is on, at its voltage or at 0. Dissipated energy: t·Σ V·I over the drivers.

    Shapes: conductance [rows, columns] in siemens, voltages [rows].   Units: volts, seconds, ohms.
    Errors: SpikingError if shapes do not match, a conductance or a resistance is negative, or a value is not finite.

    >>> found = read_array(np.full((8, 8), 1e-4), np.full(8, 0.2), 1e-8, r_word=1.0, r_bit=1.0)
    >>> 0 < found.error < 0.02, found.worst_column > 0
    (True, True)
    """
    g = np.asarray(conductance, np.float64)
    v = np.asarray(voltages, np.float64)
    if g.ndim != 2 or v.shape != g.shape[:1]:
        raise SpikingError(
            f"read_array: got conductance {list(g.shape)} and voltages {list(v.shape)}; expected [rows, columns] and [rows]."
        )
    found = solve_nodes(torch.from_numpy(g), torch.from_numpy(v)[:, None], Wires(r_word, r_bit))
    row_currents = found.I_device[:, :, 0].sum(1)
    return ArrayRead(
        ideal_currents=v @ g,
        currents=found.I_out[0],
        row_currents=row_currents,
        energy_ideal=float(seconds * (v**2 @ g.sum(1))),
        energy=float(seconds * (v @ row_currents)),
    )


def conductances(weights: np.ndarray, g_min: float, g_max: float) -> np.ndarray:
    """Weights [outputs, rows] as pairs of columns [rows, 2·outputs]: positive parts in even columns, negative in odd ones.

    Scaled by the largest magnitude: G = G_min + (G_max − G_min)·|w|/max|w|.
    """
    placed = place(torch.from_numpy(np.asarray(weights, np.float64)), Cell("cells", g_min, g_max), ArrayConfig())
    return placed.targets[0].permute(1, 2, 0).flatten(1).numpy()
