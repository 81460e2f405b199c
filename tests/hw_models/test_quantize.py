"""Quantised networks: what values they may hold, what training does to them, how they are saved, and what is refused."""

import copy
import pickle
import re

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.hw_models.quantize import FixedPoint, Precision, _Grid
from torch import nn
from torch.testing import assert_close

import spiking
from spiking import EventTrace, checkpoint, hw_models, loss, training
from spiking.errors import SpikingError
from spiking.models import NMNISTConfig, NMNISTNet


def small_net(seed: int = 0) -> spiking.Sequential:
    torch.manual_seed(seed)
    return spiking.Sequential(
        spiking.Conv2d(2, 4, 3, bias=False),
        spiking.BatchNorm2d(4),
        spiking.AvgPool2d(2),
        spiking.LIF(beta=0.8, threshold=0.4),
        spiking.Flatten(),
        spiking.Linear(36, 5),
        spiking.LIF(beta=0.9, threshold=0.3),
    ).eval()


def frames(batch: int = 3, seed: int = 1) -> torch.Tensor:
    noise = torch.Generator().manual_seed(seed)
    return (torch.rand(6, batch, 2, 8, 8, generator=noise) < 0.3).float()


def levels(values: torch.Tensor, tolerance: float = 1e-6) -> np.ndarray:
    """Distinct values, those that differ by rounding taken as one."""
    found = np.sort(np.unique(values.detach().double().numpy()))
    return found[np.r_[True, np.diff(found) > tolerance * np.abs(found).max()]] if found.size else found


# what a weight may be


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("grid", ["symmetric", "fixed-point"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_hold_only_values_of_their_bits(bits, grid, per_channel):
    small = hw_models.quantize(small_net(), bits, grid=grid, per_channel=per_channel)
    aware = hw_models.quantize(small_net(), bits, grid=grid, per_channel=per_channel, aware=True)
    high = 2 ** (bits - 1) - 1
    for index in (0, 5):
        rule = aware[index].parametrizations.weight
        step = rule[0].step(rule.original)
        assert step.numel() == (len(rule.original) if per_channel else 1)
        integers = (small[index].weight / step).detach().double()
        assert_close(integers, integers.round(), rtol=0, atol=1e-4)
        assert float(integers.max()) <= high + 1e-4
        assert float(integers.min()) >= (-high if grid == "symmetric" else -high - 1) - 1e-4
        if grid == "fixed-point":
            assert bool((step.frexp().mantissa == 0.5).all()), "powers of two"
    assert type(small[0]) is spiking.Conv2d
    assert isinstance(small[1], nn.Identity)


@given(bits=st.integers(2, 10), seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3), per_channel=st.booleans())
@settings(deadline=None, max_examples=60)
def test_rounding_is_to_the_nearest_value_of_the_grid(bits, seed, scale, per_channel):
    w = scale * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rule = _Grid(w, bits, per_channel, "symmetric")
    step = rule.step(w).expand(5, 1) if per_channel else rule.step(w)
    grid = step.unsqueeze(-1) * torch.arange(rule.low, rule.high + 1, dtype=torch.float64)
    expected = (w.unsqueeze(-1) - grid).abs().amin(-1)
    assert_close((rule(w) - w).abs(), expected, rtol=0, atol=1e-9 * scale)


@given(bits=st.integers(2, 11), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_the_chosen_clip_loses_no_more_than_none(bits, seed):
    w = torch.randn(4, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen, plain = _Grid(w, bits, True, "symmetric"), _Grid(w, bits, True, "symmetric")
    plain.clip = torch.ones_like(plain.clip)
    lost = [(rule(w) - w).square().sum(1) for rule in (chosen, plain)]
    assert bool((lost[0] <= lost[1] * (1 + 1e-12)).all())


def test_more_bits_lose_less_and_many_lose_nothing():
    net, x = small_net(), frames()
    weights = net[5].weight
    lost = [(hw_models.quantize(net, b)[5].weight - weights).abs().max().item() for b in (2, 4, 8, 16, 32)]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < 1e-7
    assert torch.equal(hw_models.quantize(net, 32)(x), net(x))


def test_a_layer_of_zeros_stays_one():
    layer = nn.Linear(3, 2)
    nn.init.zeros_(layer.weight)
    assert not hw_models.quantize(nn.Sequential(layer), 4)[0].weight.any()


# what a state may be


NEURONS = [
    pytest.param(lambda: spiking.LIF(beta=0.8, threshold=0.5), id="LIF"),
    pytest.param(lambda: spiking.LIF(beta=0.8, threshold=0.5, reset="zero", v_reset=0.25, tie="gt"), id="zero"),
    pytest.param(lambda: spiking.LIF(beta=0.8, threshold=0.5, refractory=2), id="refractory"),
    pytest.param(lambda: spiking.LIF(beta=0.8, threshold=0.5, reset_delay=True), id="delay"),
    pytest.param(lambda: spiking.IF(threshold=0.5), id="IF"),
    pytest.param(lambda: spiking.ParametricLIF(beta=0.7, threshold=0.5), id="ParametricLIF"),
    pytest.param(lambda: spiking.CuBaLIF(beta=0.8, beta_syn=0.6, threshold=0.5), id="CuBaLIF"),
    pytest.param(lambda: spiking.AdaptiveLIF(beta=0.8, threshold=0.5), id="AdaptiveLIF"),
    pytest.param(lambda: spiking.AdaptiveLIF(beta=0.8, threshold=0.5, refractory=1), id="AdaptiveLIF-refractory"),
]


@pytest.mark.parametrize("make", NEURONS)
@pytest.mark.parametrize("rounding", ["nearest", "toward-zero"])
def test_a_quantised_neuron_is_the_neuron_with_its_state_rounded_each_step(make, rounding):
    bits, limit = 5, 1.0
    neuron = make()
    x = torch.randn(12, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, state = FixedPoint(neuron, bits, limit, rounding)(x, return_state=True)

    step = 2 * limit / 2**bits
    now, spikes = None, []
    for x_t in x:
        s, now = neuron.step(x_t, now)
        spikes.append(s)
        rows = []
        for field, row in zip(now._fields, now):
            if field != "resting" and row is not None:
                q = np.asarray((row / step).detach())
                q = np.trunc(q) if rounding == "toward-zero" else np.rint(q)
                row = torch.from_numpy(np.clip(q, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step)
            rows.append(row)
        now = type(now)(*rows)
    assert torch.equal(found, torch.stack(spikes))
    for mine, expected in zip(state, now):
        assert mine is expected is None or torch.equal(mine, expected)
    assert found.any()
    assert not found.all()


@pytest.mark.parametrize("make", NEURONS)
def test_a_quantised_sequence_may_be_cut_anywhere(make):
    layer = FixedPoint(make(), 4, 1.0)
    x = torch.randn(8, 2, 5, generator=torch.Generator().manual_seed(3))
    head, state = layer(x[:3], return_state=True)
    assert torch.equal(torch.cat([head, layer(x[3:], state=state)]), layer(x))
    state, spikes = None, []
    for x_t in x:
        s, state = layer.step(x_t, state)
        spikes.append(s)
    assert torch.equal(torch.stack(spikes), layer(x))


@given(bits=st.integers(2, 16), limit=st.sampled_from([0.25, 1.0, 8.0]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_states_stay_on_the_grid_and_in_the_range(bits, limit, seed):
    layer = FixedPoint(spiking.LIF(beta=0.9), bits, limit)
    x = 3 * torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(seed))
    _, state = layer(x, return_state=True)
    integers = state.v.double() / (2 * limit / 2**bits)
    assert torch.equal(integers, integers.round())
    assert float(integers.min()) >= -(2 ** (bits - 1))
    assert float(integers.max()) <= 2 ** (bits - 1) - 1


@pytest.mark.parametrize("training", [True, False])
def test_no_faster_pass_leaves_the_rounding_out(training):
    """Sequential runs some layers together with the neuron after them; a watched layer always runs by itself."""
    layers = [spiking.BatchNorm2d(2), spiking.AvgPool2d(2), FixedPoint(spiking.LIF(threshold=0.5), 3, 1.0)]
    net = spiking.Sequential(*layers, spiking.MaxPool2d(2), FixedPoint(spiking.LIF(threshold=0.3), 3, 1.0))
    net.train(training)
    x = torch.randn(6, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    _, states = net(x, return_state=True)
    for state in (states[2], states[4]):
        assert torch.equal(state.v * 4, (state.v * 4).round())
        assert state.v.any()


def test_wide_states_change_nothing():
    net, x = small_net(), frames()
    assert torch.equal(hw_models.quantize(net, None, 24, state_range=64.0)(x), net(x))


def test_saturation_holds_a_membrane_back():
    layer = FixedPoint(spiking.LIF(beta=1.0, threshold=10.0), 4, 1.0)
    _, state = layer(torch.full((20, 1, 1), 0.5), return_state=True)
    assert state.v.item() == 1.0 - 0.125


def test_the_gradient_passes_where_nothing_was_saturated():
    layer = FixedPoint(spiking.LIF(beta=1.0, threshold=100.0, detach_reset=True), 6, 1.0)
    x = torch.tensor([[[0.3, 0.9]], [[0.2, 0.9]]], requires_grad=True)
    _, state = layer(x, return_state=True)
    state.v.sum().backward()
    assert x.grad.flatten().tolist() == [1.0, 0.0, 1.0, 0.0]


def test_ranges_are_those_that_lose_least_and_are_powers_of_two():
    net = spiking.Sequential(spiking.IF(threshold=1000.0))
    x = torch.full((4, 1, 8), 0.2)  # membranes 0.2, 0.4, 0.6, 0.8
    small = hw_models.quantize(net, None, 8, calibration=[x])
    assert small[0].range.tolist() == [1.0]
    assert hw_models.quantize(net, None, 8, calibration=[(3 * x, "label")])[0].range.tolist() == [4.0]


def test_a_neuron_that_saw_nothing_gets_the_range_of_its_threshold():
    net = spiking.Sequential(spiking.LIF(threshold=0.5), spiking.CuBaLIF(threshold=4.0))
    small = hw_models.quantize(net, None, 8, calibration=[torch.zeros(3, 1, 4)])
    assert [small[0].range.tolist(), small[1].range.tolist()] == [[0.5], [4.0, 4.0]]


def test_a_sequence_of_no_steps_has_no_spikes():
    spikes, state = FixedPoint(spiking.LIF(), 4, 1.0)(torch.zeros(0, 2, 3), return_state=True)
    assert spikes.shape == (0, 2, 3)
    assert not state.v.any()


def test_ranges_may_be_given_by_layer():
    net = small_net()
    small = hw_models.quantize(net, 8, 8, state_range={"3": 2.0, "6": 4.0})
    assert [small[3].range.tolist(), small[6].range.tolist()] == [[2.0], [4.0]]
    assert net[3].describe()["type"] == small[3].describe()["type"] == "LIF"
    assert small[3].describe()["state_bits"] == 8


def test_recurrent_layers_are_quantised_inside():
    torch.manual_seed(0)
    net = spiking.Sequential(spiking.Linear(6, 8), spiking.Recurrent(spiking.LIF(threshold=0.3), 8, bias=True))
    x = (torch.rand(5, 2, 6) < 0.5).float()
    small = hw_models.quantize(net, 3, 6, calibration=[x])
    assert isinstance(small[1].neuron, FixedPoint)
    assert all(levels(row).size <= 7 for row in small[1].recurrent.weight)
    assert small(x).shape == (5, 2, 8)
    with spiking.record(small) as trace:
        small(x)
    assert [row.kind for row in trace.layers] == ["linear", "linear", "neuron"]


def test_a_neuron_that_stands_in_two_places_stays_one():
    lif = spiking.LIF()
    small = hw_models.quantize(spiking.Sequential(lif, nn.Sequential(lif)), None, 8, state_range=1.0)
    assert small[0] is small[1][0]


# a model like any other


def test_the_model_itself_is_left_alone():
    net = small_net()
    before = copy.deepcopy(net.state_dict())
    hw_models.quantize(net, 3, 5, calibration=[frames()], aware=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert isinstance(net[3], spiking.LIF)


def test_modes_survive_calibration():
    net = small_net()
    net[5].train()
    small = hw_models.quantize(net, 4, 6, calibration=[frames()])
    assert not small.training
    assert small[5].training


def test_it_is_saved_and_loaded_with_its_ranges(tmp_path):
    x = frames()
    net = NMNISTNet(NMNISTConfig(kind="mlp", hidden=8)).eval()
    frames34 = (torch.rand(3, 2, 2, 34, 34) < 0.1).float()
    small = hw_models.quantize(net, 4, 6, calibration=[frames34])
    path = tmp_path / "small.safetensors"
    checkpoint.save(path, checkpoint.Checkpoint(small.state_dict(), checkpoint.identity(small)))
    other = hw_models.quantize(NMNISTNet(NMNISTConfig(kind="mlp", hidden=8)).eval(), 4, 6, state_range=1.0)
    checkpoint.restore(path, other)
    assert torch.equal(other(frames34), small(frames34))
    again = pickle.loads(pickle.dumps(hw_models.quantize(small_net(), 4, 6, calibration=[x])))
    assert torch.equal(again(x), hw_models.quantize(small_net(), 4, 6, calibration=[x])(x))


def test_the_state_of_other_bits_is_refused():
    state = hw_models.quantize(small_net(), 4).state_dict()
    with pytest.raises(
        SpikingError, match=r"got the state of a model of 4-bit weights and 32-bit states; expected 8 and"
    ):
        hw_models.quantize(small_net(), 8).load_state_dict(state)


def test_the_readout_of_the_nmnist_network_is_quantised_too():
    net = NMNISTNet(NMNISTConfig(kind="mlp", hidden=8)).eval()
    x = (torch.rand(3, 2, 2, 34, 34) < 0.1).float()
    small = hw_models.quantize(net, 8, 4, state_range=2.0)
    _, membrane = small(x, return_membrane=True)
    assert torch.equal(membrane / 0.25, (membrane / 0.25).round())
    assert not torch.equal(membrane, net(x, return_membrane=True)[1])


def test_a_trace_carries_the_precision_and_its_accuracy(tmp_path):
    small = hw_models.quantize(small_net(), 4, 6, calibration=[frames()])
    small.precision.measured(accuracy=0.9, samples=200)
    with spiking.record(small) as trace:
        small(frames())
    stated = {"weight_bits": 4, "state_bits": 6, "accuracy": 0.9, "samples": 200}
    assert trace.precision == stated
    trace.save(tmp_path / "trace.h5")
    assert EventTrace.load(tmp_path / "trace.h5").precision == stated
    assert trace["3"].neuron["state_bits"] == 6


@pytest.mark.parametrize(
    ("bits", "precision", "accuracy", "said"),
    [
        ((4, 6), "int8", 0.9, None),
        ((8, 8), "int8", 0.9, None),
        ((8, 8), "fp32", 0.9, None),
        ((None, None), "fp32", 0.9, None),
        ((4, None), "int8", None, r"priced as int8, but what ran had states of 32 bits"),
        ((None, None), "int8", None, r"had weights of 32 bits and states of 32 bits"),
        ((12, 16), "int8", None, r"had weights of 12 bits and states of 16 bits"),
    ],
)
def test_an_estimate_says_whether_its_precision_was_evaluated(bits, precision, accuracy, said):
    net = hw_models.quantize(small_net(), *bits, state_range=4.0)
    net.precision.measured(0.9, 100)
    with spiking.record(net) as trace:
        net(frames())
    found = hw_models.estimate(trace, "digital-sram", precision=precision)
    assert found.accuracy == accuracy
    warned = [w.text for w in found.warnings if w.code == "W23"]
    assert len(warned) == (said is not None)
    if said is not None:
        assert re.search(said, warned[0])


def test_traces_from_before_precision_are_read(tmp_path):
    net = small_net()
    with spiking.record(net) as trace:
        net(frames())
    assert trace.precision == {}
    trace.save(tmp_path / "trace.h5")
    with h5py.File(tmp_path / "trace.h5", "r+") as file:
        del file.attrs["precision"]
    assert EventTrace.load(tmp_path / "trace.h5").precision == {}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"weight_bits": 99, "state_bits": 8, "accuracy": null, "samples": null}', "99 and 8 bits"),
        ('{"weight_bits": 8, "state_bits": 8, "accuracy": 7, "samples": 1}', "an accuracy of 7"),
        ('{"weight_bits": 8}', "state_bits"),
    ],
)
def test_a_trace_that_lies_about_its_precision_is_refused(tmp_path, text, what):
    net = small_net()
    with spiking.record(net) as trace:
        net(frames())
    trace.save(tmp_path / "trace.h5")
    with h5py.File(tmp_path / "trace.h5", "r+") as file:
        file.attrs["precision"] = text
    with pytest.raises(SpikingError, match=rf"trace.h5: .*{what}"):
        EventTrace.load(tmp_path / "trace.h5")


# training


def test_aware_and_baked_models_give_the_same_results():
    x = frames()
    aware = hw_models.quantize(small_net(), 3, 6, calibration=[x], aware=True)
    after = hw_models.quantize(small_net(), 3, 6, calibration=[x])
    assert torch.equal(aware(x), after(x))
    baked = hw_models.bake(copy.deepcopy(aware))
    assert torch.equal(baked(x), aware(x))
    assert type(baked[0]) is spiking.Conv2d
    assert set(baked.state_dict()) == set(after.state_dict())


def test_gradients_pass_straight_through_the_rounding():
    layer = nn.Linear(4, 3, bias=False)
    aware = hw_models.quantize(nn.Sequential(layer), 8, grid="fixed-point", aware=True)
    aware(torch.eye(4)).sum().backward()
    rule = aware[0].parametrizations.weight
    assert_close(rule.original, layer.weight, rtol=0, atol=0)
    inside = (layer.weight / rule[0].step(layer.weight)).round().abs() <= 127
    assert torch.equal(rule.original.grad, inside.float())


def toy() -> tuple[spiking.Sequential, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    patterns = torch.rand(4, 16)
    labels = torch.arange(4).repeat(16)
    x = (torch.rand(8, 64, 16) < patterns[labels] ** 2).float()
    net = spiking.Sequential(spiking.Linear(16, 12), spiking.LIF(), spiking.Linear(12, 4), spiking.LIF())
    return net, x, labels


def test_training_at_two_bits_in_a_plain_loop_lowers_the_loss():
    net, x, labels = toy()
    aware = hw_models.quantize(net, 2, 5, calibration=[x], aware=True)
    optimizer = torch.optim.Adam(aware.parameters(), lr=1e-2)
    found = []
    for _ in range(40):
        value = loss.rate(aware(x), labels, scale=8.0)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        found.append(value.item())
    assert found[-1] < 0.6 * found[0]
    baked = hw_models.bake(aware)
    assert all(levels(row).size <= 3 for row in baked[0].weight)
    assert loss.rate(baked(x), labels, scale=8.0).item() < 0.6 * found[0]


def test_the_trainer_trains_it(tmp_path):
    net, x, labels = toy()
    aware = hw_models.quantize(net, 3, 6, calibration=[x], aware=True)
    data = training.TensorBatches(x.transpose(0, 1), labels)
    config = training.TrainConfig(epochs=6, batch_size=16, lr=1e-2, ema_decay=0.5)
    trainer = training.Trainer(aware, config=config, run_dir=tmp_path, display=training.Display())
    history = trainer.fit(data, data)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert set(history[0]["rates"]) == {"1", "3"}
    assert all(levels(row).size <= 7 for row in aware[0].weight)
    assert trainer.evaluate(data).accuracy > 0.5


# refusals


@pytest.mark.parametrize("bits", [1, 33, 0, -4, 4.0, True, "8"])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(SpikingError, match=rf"quantize\.weight_bits: got {bits!r}; expected 2 to 32"):
        hw_models.quantize(small_net(), bits)
    with pytest.raises(SpikingError, match=rf"quantize\.state_bits: got {bits!r}; expected 2 to 32"):
        hw_models.quantize(small_net(), 8, bits, state_range=1.0)


def test_states_need_a_range_or_calibration():
    with pytest.raises(SpikingError, match=r"got state_bits without calibration data"):
        hw_models.quantize(small_net(), 8, 8)
    with pytest.raises(SpikingError, match=r"quantize\.calibration: got no batches"):
        hw_models.quantize(small_net(), 8, 8, calibration=[])
    with pytest.raises(SpikingError, match=r"quantize\.calibration: got a batch of ndarray"):
        hw_models.quantize(small_net(), 8, 8, calibration=[np.zeros(3)])


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        (0.0, r"state_range: got 0\.0; expected a finite number above 0"),
        (float("nan"), r"state_range: got nan"),
        ({"3": 1.0}, r"state_range: layer '6' is missing"),
        ({"3": 1.0, "6": 1.0, "lif": 1.0}, r"state_range: got layer 'lif'; expected one of: 3, 6"),
    ],
)
def test_ranges_that_cannot_be_are_refused(ranges, message):
    with pytest.raises(SpikingError, match=message):
        hw_models.quantize(small_net(), 8, 8, state_range=ranges)


def test_choices_are_checked():
    with pytest.raises(SpikingError, match=r"quantize\.grid: got 'log'; expected"):
        hw_models.quantize(small_net(), 8, grid="log")
    with pytest.raises(SpikingError, match=r"quantize\.rounding: got 'up'; expected"):
        hw_models.quantize(small_net(), 8, rounding="up")
    with pytest.raises(SpikingError, match=r"quantize: got str; expected a torch\.nn\.Module"):
        hw_models.quantize("model", 8)


def test_weights_that_are_not_finite_are_refused():
    net = small_net()
    with torch.no_grad():
        net[5].weight[0, 0] = float("nan")
    with pytest.raises(SpikingError, match=r'"5\.weight" holds values that are not finite'):
        hw_models.quantize(net, 8)


def test_states_that_are_not_finite_are_refused():
    x = frames()
    x[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(SpikingError, match=r"LIF: a state is not finite on the calibration data"):
        hw_models.quantize(small_net(), 8, 8, calibration=[x])


class Foreign(nn.Module):
    def forward(self, x):
        return x


Foreign.__module__ = "snntorch._neurons.leaky"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.LayerNorm(4), r'layer "0" \(LayerNorm\) has weights of its own'),
        (nn.ConvTranspose2d(2, 2, 3), r'layer "0" \(ConvTranspose2d\) has weights of its own'),
        (nn.Embedding(4, 4), r'layer "0" \(Embedding\)'),
        (nn.BatchNorm1d(4, affine=False), r'layer "0" \(BatchNorm1d\) does not follow weights'),
        (Foreign(), r'layer "0" \(Foreign\) belongs to another library. Convert it first'),
    ],
)
def test_layers_that_cannot_be_quantised_are_named(layer, message):
    with pytest.raises(SpikingError, match=message):
        hw_models.quantize(nn.Sequential(layer, nn.Linear(4, 4)), 8)


def test_a_quantised_or_parametrised_model_is_refused():
    with pytest.raises(SpikingError, match=r"the model is quantised already"):
        hw_models.quantize(hw_models.quantize(small_net(), 4, aware=True), 8)
    with pytest.raises(SpikingError, match=r"the model is quantised already"):
        hw_models.quantize(hw_models.quantize(small_net(), 4), 8)
    weight_norm = nn.utils.parametrizations.weight_norm
    with pytest.raises(SpikingError, match=r'layer "0" has a parametrisation of its own'):
        hw_models.quantize(nn.Sequential(weight_norm(nn.Linear(3, 3))), 8)


def test_accuracies_are_checked():
    with pytest.raises(SpikingError, match=r"Precision\.accuracy: got 97; expected a fraction from 0 to 1"):
        Precision(8, 8).measured(97, 100)
    with pytest.raises(SpikingError, match=r"Precision\.samples: got 0; expected at least 1"):
        Precision(8, 8).measured(0.97, 0)
