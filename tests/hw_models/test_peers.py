"""Against others: a chip simulator as a black box, and the counts of four other tools on the same layers."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from golden_nets import FOLDER
from spiking.hw_models import mesh
from spiking.hw_models.mapping import place
from torch import nn

import spiking
from spiking import hw_models, record

PEERS = json.loads((FOLDER / "peers.json").read_text())
MICRO = {case["name"]: case for case in json.loads((FOLDER / "micro.json").read_text())}

# the simulator


class Simulated:
    """A network of two spiking layers, placed by us and run by the simulator on its own description of the chip."""

    def __init__(
        self, sanafe: Any, sizes: tuple[int, int, int], steps: int, seed: int, rate: float = 0.3, per_core: int = 1024
    ) -> None:
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(sizes[0], sizes[1], bias=False), spiking.LIF(threshold=1.0),
            nn.Linear(sizes[1], sizes[2], bias=False), spiking.LIF(threshold=1.0),
        )  # fmt: skip
        with torch.no_grad():
            for layer in (model[0], model[2]):
                layer.weight.copy_(torch.randint(-3, 6, layer.weight.shape) / 8)
        self.sizes, self.steps = sizes, steps
        rng = np.random.default_rng(seed)
        self.input = rng.random((steps, sizes[0])) < rate
        with record(model) as self.trace, torch.no_grad():
            model(torch.tensor(self.input, dtype=torch.float32).unsqueeze(1))
        chip = hw_models.load("loihi-sanafe")
        most = replace(chip["max_neurons"], value=per_core, low=per_core, high=per_core)
        self.chip = replace(chip, constants={**chip.constants, "max_neurons": most})
        self.placement = place(self.trace, self.chip)
        self.weights = [model[i].weight.detach().double().numpy() for i in (0, 2)]
        self._build(sanafe)

    def _build(self, sanafe: Any) -> None:
        self.sanafe = sanafe
        self.arch, self.net = sanafe.load_loihi(), sanafe.Network()
        cores = self.arch.cores()
        groups = []
        lif = {"threshold": 1.0, "leak_decay": 0.75}
        names = list(self.placement.populations)
        for k, (name, size) in enumerate(zip(names, self.sizes)):
            group = self.net.create_neuron_group(
                f"layer{k}", size, model_attributes=lif if k else {}, soma_hw_name="loihi_lif" if k else "",
                default_synapse_hw_name="loihi_dense_synapse", default_dendrite_hw_name="loihi_dendrites", log_spikes=True,
            )  # fmt: skip
            for part in self.placement.populations[name]:
                for n in range(part.start, part.stop):
                    if not k:
                        group[n].set_attributes(
                            soma_hw_name=f"loihi_inputs[{n - part.start}]",
                            model_attributes={"spikes": self.input[:, n].tolist()},
                        )
                    group[n].map_to_core(cores[part.core])
            groups.append(group)
        for k, weight in enumerate(self.weights):
            pairs = [(i, j) for i in range(self.sizes[k]) for j in range(self.sizes[k + 1])]
            groups[k].connect_neurons_sparse(groups[k + 1], {"weight": [float(weight[j, i]) for i, j in pairs]}, pairs)

    def run(self, timing: str) -> dict[str, Any]:
        chip = self.sanafe.SpikingChip(self.arch)
        chip.load(self.net)
        return chip.sim(self.steps, timing_model=timing, spike_trace=True, perf_trace=True)

    def spikes(self, result: dict[str, Any]) -> list[np.ndarray]:
        """[steps, neurons] of each layer."""
        found = [np.zeros((self.steps, size)) for size in self.sizes]
        for step, fired in enumerate(result["spike_trace"]):
            for neuron in fired:
                layer, _, index = str(neuron).partition(".")
                found[int(layer.removeprefix("layer"))][step, int(index)] = 1
        return found


@pytest.mark.parametrize(
    ("sizes", "steps", "seed"), [((20, 12, 5), 12, 0), ((60, 300, 10), 8, 1), ((40, 1500, 4), 4, 2)]
)
def test_energy_and_hops_are_those_of_the_simulator(sizes, steps, seed, capfd):
    sanafe = pytest.importorskip("sanafe", reason="sanafe is not installed: pip install sanafe==2.2.9")
    net = Simulated(sanafe, sizes, steps, seed)
    result = net.run("simple")
    spikes = net.spikes(result)
    assert (spikes[0] == net.input).all()
    assert spikes[1].any()
    c = {name: constant.value for name, constant in net.chip.constants.items()}
    packets = hops = synapse = network = 0.0
    for projection, fired in zip(net.placement.projections, spikes):
        counts, r = fired.sum(0), mesh.route(projection, net.placement.mesh)
        packets += counts @ r.packets
        hops += counts @ (r.hops_x + r.hops_y)
        synapse += counts @ r.synops * c["synop"]
        network += counts @ (r.packets * c["packet_out"] + r.hops_x * c["hop_ew"] + r.hops_y * c["hop_ns"])
    assert packets == result["packets_sent"]
    assert hops == sum(result["perf_trace"]["hops"])
    assert synapse == pytest.approx(result["energy"]["synapse"], rel=1e-9)
    assert network == pytest.approx(result["energy"]["network"], rel=1e-9)
    prices = mesh.spike_prices(net.placement, net.chip)
    assert sum(
        float(fired.sum(0) @ prices[p.name]) for p, fired in zip(net.placement.projections, spikes)
    ) == pytest.approx(result["energy"]["synapse"] + result["energy"]["network"], rel=1e-9)
    active = active_neurons(net, spikes)
    neurons = sum(sizes[1:])
    soma = steps * neurons * c["neuron_idle"] + active.sum() * (c["neuron_active"] - c["neuron_idle"])
    soma += (spikes[1].sum() + spikes[2].sum()) * c["spike"]
    assert soma == pytest.approx(result["energy"]["soma"], rel=1e-9)
    low, serial, high = step_seconds(net, spikes, active)
    assert low == pytest.approx(result["perf_trace"]["sim_time"], rel=1e-9)
    detailed = net.run("detailed")["sim_time"]
    assert low.sum() * (1 - 1e-9) <= detailed <= serial.sum() * (1 + 1e-9) <= high.sum() * (1 + 2e-9)


@pytest.mark.parametrize(("sizes", "per_core"), [((32, 32, 32), 2), ((32, 64, 32), 4), ((64, 16, 64), 2)])
def test_congested_steps_lie_within_the_interval(sizes, per_core, capfd):
    """Nine of ten inputs fire in each step, from few neurons a core to all cores: packets queue, and the serial time is too short."""
    sanafe = pytest.importorskip("sanafe", reason="sanafe is not installed: pip install sanafe==2.2.9")
    net = Simulated(sanafe, sizes, steps=4, seed=0, rate=0.9, per_core=per_core)
    for timing in ("detailed", "cycle"):
        result = net.run(timing)
        spikes = net.spikes(result)
        low, _, high = step_seconds(net, spikes, active_neurons(net, spikes))
        seconds = np.array(result["perf_trace"]["sim_time"])
        assert (low <= seconds * (1 + 1e-9)).all()
        assert (seconds <= high).all()


def active_neurons(net: Simulated, spikes: list[np.ndarray]) -> np.ndarray:
    """Active neurons [steps, all hidden and output neurons]: with input from the step before, or with a potential."""
    found = []
    for layer, weights in enumerate(net.weights, 1):
        v, active = np.zeros(net.sizes[layer]), np.zeros((net.steps, net.sizes[layer]), bool)
        for step in range(net.steps):
            before = spikes[layer - 1][step - 1] if step else np.zeros(net.sizes[layer - 1])
            active[step] = before.any() | (v != 0)  # dense layers: one spike reaches every neuron
            h = np.trunc(0.75 * v * 64) / 64 + weights @ before
            v = np.where(spikes[layer][step], 0.0, h)
        found.append(active)
    return np.concatenate(found, 1)


def step_seconds(net: Simulated, spikes: list[np.ndarray], active: np.ndarray) -> tuple[np.ndarray, ...]:
    """(overlapped, serial, congested) seconds of each step."""
    occupied: dict[mesh.Link, np.ndarray] = {}
    t = mesh.times(net.chip, 1)
    n = net.placement.n_cores
    generate, receive, longest = np.zeros((net.steps, n)), np.zeros((net.steps, n)), np.zeros(net.steps)
    offset = 0
    for layer, name in enumerate(list(net.placement.populations)[1:], 1):
        busy = t.idle + active[:, offset : offset + net.sizes[layer]] * (t.active - t.idle) + spikes[layer] * t.spike
        for core in net.placement.populations[name]:
            generate[:, core.core] += busy[:, core.start : core.stop].sum(1)
        offset += net.sizes[layer]
    for projection, fired in zip(net.placement.projections, spikes):
        traffic = mesh.Traffic(projection, fired, net.placement.mesh)
        generate[:, traffic.source_cores] += traffic.sent * t.packet_out
        receive[:, traffic.cores] += traffic.receive(t)
        longest = np.maximum(longest, traffic.path(t))
        for link, seconds in traffic.occupied(t).items():
            occupied[link] = occupied.get(link, 0.0) + seconds
    links = np.stack([*occupied.values()], 1) if occupied else np.zeros((net.steps, 0))
    wait = mesh.barrier(net.chip, net.placement.n_tiles, 1).nominal
    return tuple(seconds + wait for seconds in mesh.step_times(generate, receive, longest, links))


# counters of other tools


@pytest.mark.parametrize("peer", PEERS, ids=lambda p: p["name"])
def test_other_counters_agree_where_they_are_right(peer):
    """SpikingJelly and sinabs count spikes as we do; NeuroBench leaves zero weights out; syops multiplies a mean."""
    ours, case = peer["ours"], MICRO[peer["name"]]
    binary = case["operand_class"] == "binary"
    jelly = peer["spikingjelly"]
    if binary:
        assert jelly["synop"] == ours["syn"] == ours["ac"]
    else:
        assert (jelly["synop"], jelly["mac"]) == (0, ours["dense_padded"])
    if "neurobench" in peer:
        assert (peer["neurobench"]["effective"], peer["neurobench"]["dense"]) == (ours["syn_eff"], ours["dense"])
    if "sinabs" in peer and binary:
        assert peer["sinabs"]["synops"] == ours["syn"]
    if "syops" in peer and binary:  # the mean times the conventional count: padding and biases are in it
        total, ops = case["total"], peer["syops"]["ops"]
        assert ours["dense_padded"] <= ops <= ours["dense_padded"] + ours["bias_adds"]
        assert peer["syops"]["ac"] == pytest.approx(total["in_abs_sum"] / total["in_numel"] * ops, rel=1e-5)


# NeuroBench's names


def test_neurobench_names_give_neurobench_figures():
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight[0] = 0
    model = nn.Sequential(layer, spiking.LIF(threshold=0.5), nn.Linear(4, 2))
    x = torch.ones(3, 2, 6)
    with torch.no_grad():
        trace_spikes = float(model[:2](x).sum())
        with record(model) as trace:
            model(x)
    found = hw_models.neurobench(trace)
    operations = found["SynapticOperations"]
    assert found["ParameterCount"] == 6 * 4 + 4 + 4 * 2 + 2
    assert found["Footprint"] == 4 * found["ParameterCount"]
    assert found["ConnectionSparsity"] == pytest.approx(6 / 32)
    assert found["ActivationSparsity"] == pytest.approx(1 - trace_spikes / 24)
    assert operations["Effective_ACs"] == pytest.approx((3 * 2 * 18 + trace_spikes * 2) / 2)
    assert operations["Effective_MACs"] == 0
    assert operations["Dense"] == (24 + 8) * 3
    assert found["MembraneUpdates"] == 12


def test_neurobench_takes_scaled_spikes_for_macs():
    layer = nn.Linear(4, 3)
    with record(layer) as trace, torch.no_grad():
        layer(torch.full((1, 1, 4), 0.25))
    assert hw_models.neurobench(trace)["SynapticOperations"] == {"Effective_MACs": 12, "Effective_ACs": 0, "Dense": 12}
