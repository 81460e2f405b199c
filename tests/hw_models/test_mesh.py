"""Placement and the mesh: exact connectivity, hops and energies of placed networks, times of their steps, refusals."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from golden_nets import Frames, recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.hw_models import mesh, validation
from spiking.hw_models.intervals import Interval
from spiking.hw_models.mapping import Connectivity, mesh_of, place
from torch import nn

import spiking
from spiking import hw_models, record
from spiking.errors import SpikingError

CASES = json.loads((validation.DATA / "mesh.json").read_text())


@pytest.fixture(params=CASES, ids=lambda c: c["name"])
def case(request):
    return request.param


# golden networks


def test_packets_and_hops_are_exact(case):
    found = validation.Placed(case).counts()
    assert found == {name: case["expect"][name] for name in found}


def test_energies_are_those_of_the_simulator(case):
    """Energy of a spike of each neuron: what reads it, where its packets go, and what it costs at its neuron."""
    placed, expect, c = validation.Placed(case), case["expect"], case["constants_pJ_ns"]
    prices = placed.prices()
    for layer, values in enumerate(prices):
        for n, value in enumerate(values):
            assert value == pytest.approx(expect["price_pJ_per_spike"][f"{layer}.{n}"], rel=1e-12)
    spikes = sum(float(s.sum(0) @ p) for s, p in zip(placed.spikes, prices))
    neurons = expect["neuron_steps"] * c["e_acc"] + expect["active_neuron_steps"] * c["e_upd"]
    assert spikes + neurons == pytest.approx(expect["energy_pJ"]["total"], rel=1e-9)
    assert spikes + neurons == pytest.approx(case["simulator"]["energy_pJ"]["total"], rel=1e-9)


def replay(case: dict[str, Any], spikes: list[np.ndarray]) -> list[np.ndarray]:
    """Which neurons of each layer are active in each step: they have input or hold a potential. Spikes must come out again."""
    steps, sizes = case["steps"], case["layer_sizes"]
    v, inputs, reached = ([np.zeros(n) for n in sizes] for _ in range(3))
    active = [np.zeros((steps, n), bool) for n in sizes]
    for step in range(steps):
        for k in range(1, len(sizes)):
            kept = np.trunc(0.75 * v[k] * 64) / 64 if step else v[k]
            active[k][step] = (reached[k] != 0) | (v[k] != 0)
            h = kept + inputs[k]
            fires = h > 1.0
            assert (fires == spikes[k][step]).all()
            v[k] = np.where(fires, 0.0, h)
            inputs[k], reached[k] = np.zeros(sizes[k]), np.zeros(sizes[k])
        for link in case["connections"]:
            for i, j, weight in link["src_dst_weight"]:
                if spikes[link["src"]][step, i]:
                    inputs[link["dst"]][j] += weight
                    reached[link["dst"]][j] = 1
    return active


def test_step_times_are_the_golden_ones(case):
    """The overlapped time is the simulator's simple one; its detailed one lies between overlapped and serial."""
    placed, c, steps = validation.Placed(case), case["constants_pJ_ns"], case["steps"]
    t = mesh.Times(
        c["t_syn"], c["t_acc"], c["t_acc"] + c["t_upd"], c["t_spk"], c["t_out"], c["t_in"], c["t_ew"], c["t_ns"]
    )
    n = 1 + max(int(cores.max()) for cores in placed.cores)
    generate, receive, longest = np.zeros((steps, n)), np.zeros((steps, n)), np.zeros(steps)
    occupied: dict[mesh.Link, np.ndarray] = {}
    active = replay(case, placed.spikes)
    assert [sum(int(a[step].sum()) for a in active) for step in range(steps)] == case["expect"]["active_per_step"]
    for layer, cores in enumerate(placed.cores[1:], 1):
        busy = np.where(active[layer], t.active, t.idle) + placed.spikes[layer] * t.spike
        for step in range(steps):
            np.add.at(generate[step], cores, busy[step])
    for source, _, projection in placed.links:
        traffic = mesh.Traffic(projection, placed.spikes[source], placed.mesh)
        generate[:, traffic.source_cores] += traffic.sent * t.packet_out
        receive[:, traffic.cores] += traffic.receive(t)
        longest = np.maximum(longest, traffic.path(t))
        for link, seconds in traffic.occupied(t).items():
            occupied[link] = occupied.get(link, 0.0) + seconds
    links = np.stack([*occupied.values()], 1) if occupied else np.zeros((steps, 0))
    low, serial, high = (s + c["t_sync"] for s in mesh.step_times(generate, receive, longest, links))
    np.testing.assert_allclose(low, case["expect"]["latency_ns_per_step_overlapped"], rtol=1e-12)
    np.testing.assert_allclose(low, case["simulator"]["sim_time_ns_simple_per_step"], rtol=1e-12)
    np.testing.assert_allclose(serial, case["expect"]["latency_ns_per_step_serial"], rtol=1e-12)
    detailed = case["simulator"]["sim_time_ns_detailed"]
    assert low.sum() * (1 - 1e-12) <= detailed <= serial.sum() * (1 + 1e-12) <= high.sum() * (1 + 2e-12)


# connectivity


SHAPES = st.tuples(
    st.sampled_from(["conv1d", "conv2d", "conv3d", "convT1d", "convT2d"]),
    st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.sampled_from([1, 2]),
)  # fmt: skip


@given(SHAPES, st.data())
@settings(deadline=None, max_examples=40)
def test_connections_into_any_range_are_those_of_the_layer(shape, data):
    kind, kernel, stride, padding, dilation, groups = shape
    dims = int(kind[-2])
    padding = min(padding, dilation * (kernel - 1) // 2)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    size = [dilation * (kernel - 1) + 1 + extra for extra in (3, 1, 2)[:dims]]
    made = getattr(nn, f"ConvTranspose{dims}d" if kind.startswith("convT") else f"Conv{dims}d")
    layer = made(2 * groups, 4, kernel, **options)
    x = torch.ones(1, 1, 2 * groups, *size)
    model = Frames(layer)
    with record(model) as trace, torch.no_grad():
        model(x)
    row = trace.layers[0]
    connectivity = Connectivity(row)
    start = data.draw(st.integers(0, row.n_outputs - 1))
    stop = data.draw(st.integers(start + 1, row.n_outputs))
    mask = torch.zeros(row.n_outputs)
    mask[start:stop] = 1
    leaf = torch.zeros(1, *row.in_shape, requires_grad=True)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    (layer(leaf).reshape(-1) * mask).sum().backward()
    assert connectivity.reach(start, stop).tolist() == leaf.grad.reshape(-1).long().tolist()


def test_connections_of_linear_layers_with_leading_axes():
    layer = nn.Linear(3, 4)
    with record(layer) as trace, torch.no_grad():
        layer(torch.ones(1, 1, 2, 3))
    connectivity = Connectivity(trace.layers[0])
    assert connectivity.reach(0, 8).tolist() == [4] * 6
    assert connectivity.reach(2, 5).tolist() == [2, 2, 2, 1, 1, 1]
    assert connectivity.inputs(2, 4) == 3


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding": 1, "padding_mode": "circular"}])
def test_connections_with_other_padding(options):
    layer = nn.Conv2d(1, 2, 3, **options)
    model = Frames(layer)
    with record(model) as trace, torch.no_grad():
        model(torch.ones(1, 1, 1, 5, 5))
    assert Connectivity(trace.layers[0]).reach(0, 50).tolist() == trace.layers[0].fan_out.tolist()


def test_connections_that_cannot_be_rebuilt_are_refused():
    layer = nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")
    model = Frames(layer)
    with record(model) as trace, torch.no_grad():
        model(torch.ones(1, 1, 1, 5, 5))
    with pytest.raises(SpikingError, match=r"layer layer: its connections cannot be rebuilt"):
        Connectivity(trace.layers[0])


# placement


def spikes(*shape: int, rate: float = 0.3, seed: int = 0) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def trace_of(model: nn.Module, x: torch.Tensor, **options: Any) -> spiking.EventTrace:
    with record(model, **options) as trace, torch.no_grad():
        model(x)
    return trace


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        Frames(nn.Conv2d(2, 6, 5)), spiking.LIF(threshold=0.2), Frames(nn.AvgPool2d(2)), Frames(nn.Conv2d(6, 8, 3)),
        spiking.LIF(threshold=0.1), nn.Flatten(2), nn.Linear(8 * 8 * 8, 40), spiking.LIF(threshold=0.1), nn.Linear(40, 10),
    )  # fmt: skip


def test_every_neuron_lies_on_one_core_within_its_limits(net):
    chip = hw_models.load("loihi")
    trace = trace_of(net, spikes(3, 2, 2, 24, 24))
    found = place(trace, chip)
    assert list(found.populations) == ["(input)", "1", "4", "7", "8"]
    seen = [c for cores in found.populations.values() for c in cores]
    assert [c.core for c in seen] == list(range(found.n_cores))
    for name, cores in found.populations.items():
        assert [c.start for c in cores[1:]] == [c.stop for c in cores[:-1]]
        assert cores[-1].stop == (2 * 24 * 24 if name == "(input)" else trace[name].n_outputs)
        assert all(0 < c.stop - c.start <= 1024 for c in cores)
    assert max(found.synapse_bits.values()) <= chip["synapse_memory"].value
    assert max(found.axons_in.values()) <= chip["max_axons_in"].value
    for projection in found.projections:
        if projection.row.kind == "linear":
            assert (projection.reach.sum(0) == projection.row.fan_out).all()
    assert 0 < found.utilisation()["4"] <= 1


def test_synapses_of_the_mesh_are_those_of_the_trace(net):
    trace = trace_of(net, spikes(3, 2, 2, 24, 24))
    found = place(trace, hw_models.load("loihi"))
    rows = {p.name: p for p in found.projections}
    for name in ("3.layer", "6", "8"):
        assert int(rows[name].reach.sum(0) @ trace[name].spike_count) == trace[name].counts["syn"].sum()


def test_networks_that_do_not_fit_are_refused_with_the_shortfall():
    model = nn.Sequential(nn.Linear(4000, 3000), spiking.LIF(threshold=0.2))
    trace = trace_of(model, spikes(1, 1, 4000))
    needed = place(trace, hw_models.load("loihi"), chips=2).n_cores
    with pytest.raises(
        SpikingError, match=rf"place: the network needs {needed} cores and loihi has 128 .1 chip.: {needed - 128} short"
    ):
        hw_models.estimate(trace, "loihi")
    assert hw_models.estimate(trace, "loihi", chips=2).facts["cores"] == needed


def test_a_neuron_that_fits_on_no_core_is_named():
    model = nn.Sequential(nn.Linear(5000, 3), spiking.LIF(threshold=0.2))
    trace = trace_of(model, spikes(1, 1, 5000))
    with pytest.raises(
        SpikingError, match="place: neuron 0 of 1 alone needs 5,000 distinct inputs and a core has 4,096: 904"
    ):
        hw_models.estimate(trace, "loihi")


def test_shared_kernels_need_fewer_cores():
    torch.manual_seed(0)
    model = nn.Sequential(Frames(nn.Conv2d(8, 8, 5, padding=2)), spiking.LIF(threshold=0.2))
    trace = trace_of(model, spikes(1, 1, 8, 20, 20))
    chip = hw_models.load("loihi")
    plain, shared = (place(trace, chip, weight_sharing=s).n_cores for s in (False, True))
    assert shared < plain


def test_a_placement_can_be_drawn(net, tmp_path):
    found = place(trace_of(net, spikes(2, 1, 2, 24, 24)), hw_models.load("loihi"))
    figure = found.draw()
    figure.savefig(tmp_path / "map.png")
    assert len(figure.axes[0].patches) == 32 + found.n_cores
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == list(found.populations)


# energy and time of a trace on the mesh


def test_energy_of_a_linear_network_by_hand():
    """Two cores of one tile: no hops. Six of eight inputs spike in one step; every neuron is active."""
    layer = nn.Linear(8, 5, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    model = nn.Sequential(layer, spiking.LIF(threshold=100.0))
    x = torch.zeros(1, 1, 8)
    x[..., :6] = 1
    found = hw_models.estimate(trace_of(model, x), "loihi")
    assert found.energy.nominal - found.by_source["leakage"] == pytest.approx((6 * 5 * 23.6 + 5 * 81 + 6 * 1.7) * 1e-12)
    assert found.by_source["communication"] == pytest.approx(6 * 1.7e-12)
    assert found.facts["cores"] == 2


def test_hops_of_a_placed_network_follow_from_counts():
    model = nn.Sequential(nn.Linear(3000, 2000), spiking.LIF(threshold=0.5))
    trace = trace_of(model, spikes(2, 2, 3000, rate=0.05))
    chip = hw_models.load("loihi")
    found = place(trace, chip)
    expected = 0.0
    for n, count in enumerate(trace.layers[0].spike_count):
        at = next(c.core for c in found.populations["(input)"] if c.start <= n < c.stop)
        for core in found.populations["1"]:
            x, y = mesh_of(chip).hops(at, core.core)
            expected += count * (1.7 + 3.0 * x + 4.0 * y)
    estimate = hw_models.estimate(trace, "loihi")
    assert estimate.by_source["communication"] * 2e12 == pytest.approx(expected, rel=1e-9)
    prices = mesh.spike_prices(found, chip)["0"]
    syn = int(trace.layers[0].counts["syn"].sum()) * 23.6
    assert float(prices @ trace.layers[0].spike_count) * 1e12 == pytest.approx(expected + syn, rel=1e-9)


def test_both_sets_of_constants_lie_in_the_interval(net):
    trace = trace_of(net, spikes(4, 2, 2, 24, 24))
    ours, board = (hw_models.estimate(trace, chip) for chip in ("loihi", "loihi-sanafe"))
    dynamic = board.energy.nominal - board.by_source["leakage"]
    assert ours.energy.low < dynamic < ours.energy.high


def test_exact_steps_lie_within_the_bounds_from_counts(net):
    x = spikes(4, 3, 2, 24, 24)
    plain = hw_models.estimate(trace_of(net, x), "loihi-sanafe")
    exact = hw_models.estimate(trace_of(net, x, events=True), "loihi-sanafe")
    assert plain.latency.low <= exact.latency.low <= exact.latency.nominal <= exact.latency.high <= plain.latency.high
    assert plain.energy.nominal - plain.by_source["leakage"] == pytest.approx(
        exact.energy.nominal - exact.by_source["leakage"], rel=1e-12
    )
    assert exact.throughput.nominal == pytest.approx(1 / exact.latency.nominal)


def test_silent_layers_still_cost():
    model = nn.Sequential(nn.Linear(8, 50, bias=False), spiking.LIF(threshold=1.0))
    found = hw_models.estimate(trace_of(model, torch.zeros(5, 1, 8)), "loihi")
    assert found.by_source["neurons"] == pytest.approx(5 * 50 * 52e-12)


@pytest.mark.parametrize(
    ("tiles", "nanoseconds"), [(1, 113), (2, 113 + 352 / 31), (16, 113 + 15 * 352 / 31), (32, 465)]
)
def test_the_barrier_grows_linearly_with_the_tiles(tiles, nanoseconds):
    wait = mesh.barrier(hw_models.load("loihi"), tiles, 1)
    assert wait.nominal == pytest.approx(nanoseconds * 1e-9)
    assert wait.low <= wait.nominal < wait.high
    assert mesh.barrier(hw_models.load("loihi"), 32, 3).nominal == pytest.approx(15e-6, rel=0.01)


@pytest.mark.parametrize(
    ("tiles", "microseconds"), [(1, 0.6), (2, 1.0), (3, 1.0), (4, 1.4), (28, 1.4), (29, 1.8), (32, 1.8)]
)
def test_the_barrier_of_the_regression_is_a_step_function(tiles, microseconds):
    assert mesh.barrier(hw_models.load("loihi-sanafe"), tiles, 1).nominal == pytest.approx(microseconds * 1e-6)


def test_graded_operands_are_sent_as_spikes():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), spiking.LIF(threshold=10.0))
    found = hw_models.estimate(trace_of(model, torch.tensor([[[1.0, 2.0, 0.0, 3.0]]])), "loihi-sop")
    assert found.by_source["compute"] == pytest.approx(6 * 3 * 23.6e-12)
    assert found.energy.low == pytest.approx((3 * 3 * 23.6 + 3 * 51.2) * 1e-12 + 0.0)


def test_golden_nets_fit_and_add_up():
    for name in ("mlp", "conv", "recurrent", "residual"):
        found = hw_models.estimate(recorded(name), "loihi")
        assert sum(found.by_source.values()) == pytest.approx(found.energy.nominal, rel=1e-12)
        assert isinstance(found.latency, Interval)
