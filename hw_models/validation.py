"""The validation table: published figures, silicon, closed formulas and simulated networks, recomputed by the estimator.

Every row goes through the code that prices a trace, or through the formula that it uses; nothing is looked up.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from spiking.hw_models import crossbar, intervals, mesh, scaling
from spiking.hw_models._checks import check_claim
from spiking.hw_models.digital import Prices
from spiking.hw_models.energy import break_even_rate, estimate
from spiking.hw_models.hardware import Hardware, load
from spiking.hw_models.intervals import Interval, Term
from spiking.hw_models.mapping import Mesh, Projection

from spiking._counters import Levels
from spiking.trace import EventTrace, LayerTrace

DATA = Path(__file__).parent / "expected"


class Check(NamedTuple):
    """One row: what was recomputed, the figure expected and found, the relative tolerance, and where it was published."""

    name: str
    expected: float
    found: float
    tolerance: float
    source: str

    @property
    def error(self) -> float:
        """Relative deviation; absolute where the expected figure is 0."""
        return abs(self.found - self.expected) / (abs(self.expected) or 1.0)

    @property
    def passed(self) -> bool:
        """True if the figure found lies within the tolerance."""
        return self.error <= self.tolerance


def verify() -> list[Check]:
    """Every row of the validation table, recomputed.

    >>> rows = verify()
    >>> all(row.passed for row in rows), len(rows) > 100
    (True, True)
    """
    return [*published(), *silicon(), *formulas(), *meshes(), *arrays()]


def _read(name: str) -> Any:
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


# published figures


def counted(
    ac: int = 0, mac: int = 0, *, dense: int = 0, updates: int = 0, n_steps: int = 1, n_samples: int = 1
) -> EventTrace:
    """A trace that has nothing but these counts: `ac` events of spikes, `mac` operations of an analogue operand."""
    rows = []
    calls = np.full(n_steps, n_samples, np.int64)

    def spread(total: int) -> np.ndarray:
        return np.bincount(np.arange(total % n_steps), minlength=n_steps).astype(np.int64) + total // n_steps

    def weights(name: str, connections: int, levels: Levels) -> LayerTrace:
        row = LayerTrace(
            name, "", "linear", (1,), (1,), n_steps, (1, 1), dense=connections, dense_padded=connections, levels=levels
        )
        row.counts["in_numel"] = calls
        return row

    if mac:
        rows.append(weights("analogue", mac, Levels(None)))
    if ac or dense:
        row = weights("spikes", dense or ac, Levels((1.0,)))
        row.counts["syn"], row.counts["in_nnz"] = spread(ac), calls
        rows.append(row)
    if updates:
        shape = (updates // (n_steps * n_samples),)
        row = LayerTrace("neurons", "IF", "neuron", shape, shape, n_steps, neuron={"type": "IF"})
        row.counts["updates"] = spread(updates)
        rows.append(row)
    return EventTrace(n_steps=n_steps, n_samples=n_samples, layers=rows)


def _with(chip: Hardware, **values: float) -> Hardware:
    """The chip with other values of some constants."""
    changed = {k: replace(chip[k], value=v, low=v, high=v) for k, v in values.items()}
    return replace(chip, constants={**chip.constants, **changed})


def published() -> Iterator[Check]:
    """Figures that papers and tools print."""
    for case in _read("published"):
        name, mark = case["id"], case["mark"]
        if name.startswith(("spikingformer", "syops")):
            scale = 1 if "mac" in case else 1e9
            ac, mac = (round(case.get(k, case.get(f"{k}_G", 0)) * scale) for k in ("ac", "mac"))
            found = estimate(counted(ac, mac), "digital-45nm", accounting="published").energy.nominal * 1e3
            tolerance = case.get("tol_rel", case.get("tol_abs", 0) / case["energy_mJ"])
            yield Check(f"{name}: mJ", case["energy_mJ"], found, tolerance, mark)
        elif name.startswith("keras-spiking"):
            trace = counted(dense=case["connections"], updates=case["neurons"])
            chip = _with(load("cpu"), synop=case["e_synop_J"], neuron_update=case["e_neuron_J"])
            yield Check(f"{name}: J", case["energy_J"], estimate(trace, chip).energy.nominal, case["tol_rel"], mark)
        elif name.startswith("spikesim"):
            yield from _spikesim(case)
        elif name.startswith("trap"):
            joules, ratio, warnings = check_claim(case["op_ann"], case["rate"], case["printed_energy_J"])
            yield Check(f"{name}: J, corrected", case["correct_energy_J"], joules, 1e-7, mark)
            yield Check(f"{name}: ratio, corrected", case["correct_ratio"], ratio, 1e-7, mark)
            yield Check(f"{name}: W05", 1, sum(w.code == "W05" for w in warnings), 0, mark)
        elif name.startswith("crossover"):
            yield from _crossover(case)
        elif not name.startswith("silicon"):
            yield from _counters(case)


def _spikesim(case: dict[str, Any]) -> Iterator[Check]:
    """A processing-element cycle of the 65 nm resistive design, and its cycles over a network."""
    read = 8 * (case["kernel"] ** 2 * 1.76423 + 8 * (2.03084 + 0.094245))
    cycle = 157.12 + 4.64 + 397 + 5.096 + 1.6 + 1.5e-4 + read
    layers = list(zip(case["in_channels"], case["out_channels"], case["out_size"]))
    size = case["xbar"]
    blocks = [math.ceil(i / size) * math.ceil(o / size) for i, o, _ in layers]
    cycles = sum(b * n * n for b, (_, _, n) in zip(blocks, layers))
    yield Check(f"{case['id']}: pJ per cycle", case["pe_cycle_pJ"], cycle, 1e-6, case["mark"])
    yield Check(f"{case['id']}: elements", case["pes"], sum(blocks), 0, case["mark"])
    yield Check(f"{case['id']}: cycles per step", case["cycles_per_step"], cycles, 0, case["mark"])
    yield Check(f"{case['id']}: pJ", case["energy_pJ"], case["pe_cycle_pJ"] * cycles * case["T"], 1e-9, case["mark"])


def _crossover(case: dict[str, Any]) -> Iterator[Check]:
    """The spike rate at which a spiking network costs what its quantised twin does, movement over a network on chip included.

    Per input of a neuron with many of them: rate·T·(event + accumulate + weight) = ⌈log2(T+1)⌉·bit + MAC + weight.
    """
    for point in case["cases"]:
        steps, weight = point["T"], case["e_weight_4bit_pJ"] * point["weight_bits"] / 4
        event = case["e_event_pJ"] * point.get("event", 1.0)
        bit = case["e_dense_bit_pJ"] * point.get("dense", 1.0)
        twin = math.ceil(math.log2(steps + 1)) * bit + case["e_mac_pJ"] + weight
        rate = break_even_rate(twin, 0.0, steps * (event + case["e_acc_pJ"] + weight))
        yield Check(f"{case['id']}, {point['name']}: rate", point["rate"], rate, point["tol_rel"], case["mark"])


def _counters(case: dict[str, Any]) -> Iterator[Check]:
    """Operation counts that other counters print for small layers."""
    import torch
    from torch import nn

    from spiking.trace import record

    def count(layer: nn.Module, x: Any) -> LayerTrace:
        model = nn.Sequential(nn.Flatten(0, 1), layer)
        with record(model) as trace, torch.no_grad():
            model(x)
        return trace.layers[0]

    name, mark = case["id"], case["mark"]
    if "syn_eff" in case:
        one_dimension = "conv1d" in name
        side = 12 if "12x12" in name else 3
        layer = nn.Conv1d(5, 1, 5, bias=False) if one_dimension else nn.Conv2d(1, 1, 3, bias=False)
        nn.init.ones_(layer.weight)
        x = torch.ones(1, 1, 5, 10) if one_dimension else torch.ones(1, 1, 1, side, side)
        x.view(-1)[0] = 4
        yield Check(f"{name}: operations", case["syn_eff"], int(count(layer, x).counts["syn_eff"].sum()), 0, mark)
    elif "ac_per_sample" in case:
        found = int(count(nn.Linear(20, 5), torch.ones(10, 5, 20)).ac.sum()) / 5
        yield Check(f"{name}: accumulates", case["ac_per_sample"], found, 0, mark)
    elif "mac_per_sample" in case:
        gates = {"RNN": 1, "LSTM": 4, "GRU": 3}[next(k for k in ("RNN", "LSTM", "GRU") if k in name)]
        x = torch.linspace(0.1, 0.7, 25).exp()
        inner = torch.linspace(0.1, 0.7, 5).exp()
        found = sum(
            int(count(nn.Linear(n, 5 * gates), v.view(1, 1, -1)).mac.sum()) for n, v in ((25, x), (5, inner))
        ) + (15 if gates > 1 else 0)  # products of gates
        yield Check(f"{name}: MACs", case["mac_per_sample"], found, 0, mark)
    elif "linear" in name:
        x = torch.zeros(1, 2, 3)
        x[0, 0, 0], x[0, 1, 1] = 3.0, 5.0
        row = count(nn.Linear(3, 5), x)
        unrolled = float(row.in_abs_sum.sum()) / row.operand_scale * 5 / 2
        yield Check(f"{name}: accumulates, unrolled", case["amplitude_weighted_synops_per_sample"], unrolled, 0, mark)
        yield Check(f"{name}: MACs over the batch", 10, int(row.mac.sum()), 0, mark)
    else:
        row = count(nn.Conv2d(1, 5, 2), torch.eye(3).view(1, 1, 1, 3, 3))
        yield Check(f"{name}: synaptic operations", case["synops"], int(row.counts["syn"].sum()), 0, mark)


# silicon


def silicon() -> Iterator[Check]:
    """Power and energy measured on chips."""
    for case in _read("published"):
        if not case["id"].startswith("silicon"):
            continue
        name, mark = case["id"], case["mark"]
        if "truenorth" in name:
            chip = load("truenorth")
            per_hz = case["neurons"] * case["synapses_per_neuron"] * chip["synop"].value
            power = (chip["static_power"].value + per_hz * case["check_rate_hz"]) * 1e3
            yield Check(f"{name}: mW at {case['check_rate_hz']} Hz", case["published_mW"], power, case["tol_rel"], mark)
        elif "odin" in name:
            chip = load("odin")
            frequency = case["f_MHz"] * 1e6
            power = chip["static_power"].value + chip["idle_cycle"].value * frequency
            power = (power + chip["synop"].value * case["sop_per_s"]) * 1e6
            yield Check(f"{name}: uW", case["published_uW"], power, case["tol_rel"], mark)
        else:
            for spikes, predicted in zip(case["spikes"], case["predicted_mJ"]):
                updates = case["targets"] * case["steps"]
                trace = counted(spikes * case["targets"], updates=updates, n_steps=case["steps"])
                found = estimate(trace, "loihi-sop", accounting="operations")
                joules = found.by_source["compute"] + found.by_source["neurons"]
                yield Check(f"{name}: mJ, {spikes} spikes", predicted, joules * 1e3, 1e-6, mark)
                yield Check(f"{name}: mJ, measured", case["measured_mJ"], joules * 1e3, case["tol_rel"], mark)


# closed formulas


def formulas() -> Iterator[Check]:
    """Scaling between nodes, memory and converter models, break-even rates, intervals."""
    data = _read("models")
    derived = "closed formula"
    for case in data["node_scaling"]:
        factor = scaling.energy_factor(case["node2"], case["V2"]) / scaling.energy_factor(case["node1"], case["V1"])
        name = f"scaling {case['node1']} -> {case['node2']}: pJ"
        yield Check(name, case["E2_pJ"], case["E1_pJ"] * factor, 1e-6, derived)
    prices = Prices(load("digital-45nm"), "fp32")
    for case in data["sram_pJ_per_word"]:
        price, _ = prices.word(case["capacity_bytes"], case["bits"])
        for end, found in zip(("low", "nominal", "high"), price):
            name = f"memory of {case['capacity_bytes']} B, {case['bits']} bit, {end}: pJ"
            yield Check(name, case[end], found * 1e12, 1e-6, derived)
    for case in data["adc_pJ"]:
        if case["model"] == "survey":
            found = crossbar.adc_survey(case["bits"], case["nm"], case["rate_hz"])
        else:
            found = crossbar.adc_k1k2(case["bits"], case["V"])
        yield Check(f"converter {case['model']}, {case['bits']} bit: pJ", case["pJ"], found * 1e12, 1e-6, derived)
    for case in data["break_even"]:
        per_rate = case["T"] * case["ac_layer_connections"] * case["e_ac_total_pJ"]
        rate = break_even_rate(case["e_ann_pJ"], case["fixed_first_layer_pJ"] + case["fixed_neuron_pJ"], per_rate)
        yield Check(f"break-even, {case['name']}", case["r_star"], rate, 1e-6, derived)
    yield from _interval(data["interval"])


def _interval(case: dict[str, Any]) -> Iterator[Check]:
    terms = [Term("", "", t["count"], Interval(t["low"], t["value"], t["high"]), t["group"]) for t in case["terms"]]
    expected, derived = case["expect_pJ"], "closed formula"
    for end, found in zip(("low", "nominal", "high"), intervals.total(terms)):
        yield Check(f"interval, {end}: pJ", expected[end], found, 1e-6, derived)
    spans = intervals.tornado(terms)
    for group, ends in expected["tornado"].items():
        for end, want, found in zip(("low", "high"), ends, spans[group]):
            yield Check(f"tornado of {group}, {end}: pJ", want, found, 1e-6, derived)
    draws = intervals.drawn(terms)
    yield Check("Monte Carlo, mean: pJ", expected["mc_mean_exact"], float(draws.mean()), 0.02, derived)
    for name, found in zip(("q05", "q50", "q95"), intervals.quantiles(draws)):
        yield Check(f"Monte Carlo, {name}: pJ", expected["mc"][name], found, 0.02, "2 million draws")


# placed networks


class Placed:
    """A network on a mesh as the file states it: routes, spikes [steps, neurons], constants in pJ and ns."""

    def __init__(self, case: dict[str, Any]) -> None:
        m = case["mesh"]
        self.mesh = Mesh(m["width_tiles"], m["height_tiles"], m["cores_per_tile"])
        self.cores = [np.array(c) for c in case["placement_core_of_neuron"]]
        self.spikes = [np.array([[float(s) for s in step] for step in text.split("|")]) for text in case["spikes"]]
        self.constants: dict[str, float] = case["constants_pJ_ns"]
        self.links: list[tuple[int, int, Projection]] = []
        for link in case["connections"]:
            source, target = link["src"], link["dst"]
            used = sorted(set(self.cores[target].tolist()))
            reach = np.zeros((len(used), len(self.cores[source])), np.int64)
            for i, j, _ in link["src_dst_weight"]:
                reach[used.index(self.cores[target][j]), i] += 1
            row = LayerTrace("", "", "linear", (len(self.cores[source]),), (len(self.cores[target]),), 1)
            self.links.append((source, target, Projection("", row, f"{target}", used, reach, self.cores[source])))

    def prices(self) -> list[np.ndarray]:
        """pJ of a spike of each neuron of each layer."""
        c = self.constants
        found = [np.full(len(cores), c["e_spk"] if layer else 0.0) for layer, cores in enumerate(self.cores)]
        for source, _, projection in self.links:
            r = mesh.route(projection, self.mesh)
            found[source] = found[source] + (
                r.synops * c["e_syn"]
                + r.packets * (c["e_out"] + c["e_in"])
                + r.hops_x * c["e_ew"]
                + r.hops_y * c["e_ns"]
            )
        return found

    def counts(self) -> dict[str, float]:
        """Connections reached, packets, and hops along x and y over the run."""
        found = dict.fromkeys(("packets", "hops_x", "hops_y", "syn"), 0.0)
        for source, _, projection in self.links:
            counts = self.spikes[source].sum(0)
            for name, per_spike in zip(found, mesh.route(projection, self.mesh)):
                found[name] += float(counts @ per_spike)
        return found


def meshes() -> Iterator[Check]:
    """Networks that a published simulator ran: packets, hops, and its energies."""
    for case in _read("mesh"):
        placed, expect, by = Placed(case), case["expect"], case["simulator"]["name"]
        for name, found in placed.counts().items():
            yield Check(f"mesh {case['name']}: {name}", expect[name], found, 0, by)
        c = placed.constants
        spikes = sum(float(s.sum(0) @ p) for s, p in zip(placed.spikes, placed.prices()))
        neurons = expect["neuron_steps"] * c["e_acc"] + expect["active_neuron_steps"] * c["e_upd"]
        yield Check(f"mesh {case['name']}: pJ", case["simulator"]["energy_pJ"]["total"], spikes + neurons, 1e-9, by)


# arrays


def tiling_of(case: dict[str, Any]) -> crossbar.Tiling:
    """The tiling that a case of `expected/xbar.json` describes."""
    return crossbar.tile(
        case["weight_shape"],
        groups=case["groups"],
        positions=case["out_positions"],
        rows=case["array_rows"],
        columns=case["array_cols"],
        weight_bits=case["weight_bits"],
        cell_bits=case["cell_bits"],
        differential=case["differential"],
        input_bits=case["input_bits"],
        dac_bits=case["dac_bits"],
        spikes=case["spike_operand"],
    )


def arrays() -> Iterator[Check]:
    """Crossbars: tilings, and reads solved node by node against the formula without wires."""
    data = _read("xbar")
    for case in data["tilings"]:
        found = tiling_of(case)
        for name, value in case["expect"].items():
            yield Check(f"tiling {case['name']}: {name}", value, getattr(found, name), 1e-15, "closed formula")
    for case in data["arrays"]:
        g = crossbar.conductances(np.array(case["weights_out_in"]), case["g_min_S"], case["g_max_S"])
        v = np.array(case["input_spikes"]) * case["v_read"]
        read = crossbar.read_array(g, v, case["t_read_s"], case["r_word_ohm"], case["r_bit_ohm"])
        name = f"array {case['name']}"
        yield Check(f"{name}: J without wires", case["energy_ideal_J"], read.energy_ideal, 1e-6, "nodal solution")
        yield Check(f"{name}: J", case["energy_nodal_J"], read.energy, 1e-6, "nodal solution")
        if case["energy_nodal_J"]:
            loss = {"x8": 0.003, "x16_lowR": 0.003, "x16_badwire": 0.046}[case["name"]]
            yield Check(
                f"{name}: formula without wires", case["energy_nodal_J"], read.energy_ideal, loss, "nodal solution"
            )
