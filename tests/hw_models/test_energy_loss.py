"""The energy as a loss: the value of an estimate of the same pass, a gradient that is the price of a spike, training with it."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_nets import build
from spiking.hw_models import energy_loss
from torch import Tensor, nn
from torch.testing import assert_close

import spiking
from spiking import hw_models, loss, training
from spiking.errors import SpikingError

CHIPS = hw_models.available()
ACCOUNTINGS = ("published", "operations", "with-memory")
GOLDEN = json.loads((Path(hw_models.__file__).parent / "expected" / "models.json").read_text())["regulariser"]


def dynamic(model: nn.Module, x: Tensor, chip: Any, **options: Any) -> float:
    """Joules per sample of an estimate of a recorded pass, leakage excepted."""
    with torch.no_grad(), spiking.record(model) as trace:
        model(x)
    found = hw_models.estimate(trace, chip, **options)
    return sum(t.amount * t.price.nominal for t in found.terms if t.source != "leakage")


def ours(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name == "conv":
        model = spiking.Sequential(
            spiking.Conv2d(2, 6, 3, padding=1, bias=False),
            spiking.BatchNorm2d(6),
            spiking.AvgPool2d(2),
            spiking.LIF(threshold=0.3),
            spiking.Conv2d(6, 8, 3, stride=2),
            spiking.LIF(threshold=0.1),
            spiking.AvgPool2d(2),
            spiking.Flatten(),
            spiking.Linear(8, 3),
            spiking.LIF(threshold=0.1),
        )
        return model.eval(), (torch.rand(5, 4, 2, 12, 12) < 0.2).float()
    if name == "recurrent":
        model = spiking.Sequential(
            spiking.Linear(20, 30),
            spiking.Recurrent(spiking.AdaptiveLIF(threshold=0.3), 30, bias=True),
            spiking.Linear(30, 10),
            spiking.CuBaLIF(threshold=0.3),
        )
        return model.eval(), torch.rand(8, 7, 20)
    model = spiking.Sequential(
        spiking.Linear(20, 50), spiking.LIF(threshold=0.3), spiking.Linear(50, 10), spiking.LIF(threshold=0.3)
    )
    levels = {"spikes": (torch.rand(8, 7, 20) < 0.3).float(), "graded": torch.randint(0, 4, (8, 7, 20)) * 0.5}
    levels |= {"signed": torch.randint(-1, 2, (8, 7, 20)).float(), "scaled": 0.25 * levels["spikes"]}
    return model.eval(), levels[name]


NAMES = ("conv", "recurrent", "spikes", "graded", "signed", "scaled")


# the value


@pytest.mark.parametrize("name", ["mlp", "conv", "recurrent", "residual"])
@pytest.mark.parametrize("accounting", ACCOUNTINGS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_value_is_the_estimate_of_a_golden_network(name, accounting, precision):
    model, x = build(name)
    options = {"accounting": accounting, "precision": precision}
    with energy_loss(model, "digital-45nm", **options) as energy:
        model(x)
        assert energy().item() == pytest.approx(dynamic(model, x, "digital-45nm", **options), rel=1e-12, abs=0)


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", NAMES)
def test_the_value_is_the_estimate_on_every_chip(chip, name):
    model, x = ours(name)
    with energy_loss(model, chip) as energy:
        model(x)
        assert energy().item() == pytest.approx(dynamic(model, x, chip), rel=1e-12, abs=0)


@pytest.mark.parametrize("accounting", ACCOUNTINGS)
@pytest.mark.parametrize("chip", ["loihi", "rram-crossbar", "truenorth"])
def test_the_value_is_the_estimate_in_every_accounting(chip, accounting):
    model, x = ours("conv")
    with energy_loss(model, chip, accounting=accounting) as energy:
        model(x)
        assert energy().item() == pytest.approx(dynamic(model, x, chip, accounting=accounting), rel=1e-12, abs=0)


@pytest.mark.parametrize("chip", ["digital-sram", "seneca", "rram-crossbar"])
def test_every_pass_is_priced_by_what_it_did(chip):
    model, x = ours("spikes")
    with energy_loss(model, chip) as energy:
        inputs = [x, x[:, :3], 2 * x, torch.rand_like(x), torch.zeros_like(x), x.flip(0), 0.5 * torch.ones_like(x)]
        for other in inputs:
            model(other)
            assert energy().item() == pytest.approx(dynamic(model, other, chip), rel=1e-12, abs=0)


@pytest.mark.parametrize("name", ["spikes", "recurrent"])
def test_a_sequence_in_steps_costs_what_it_costs_at_once(name):
    class Steps(nn.Module):
        def __init__(self, net: spiking.Sequential) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            state, out = None, []
            for x_t in x:
                y, state = self.net.step(x_t, state)
                out.append(y)
            return torch.stack(out)

    net, x = ours(name)
    with energy_loss(net) as energy:
        net(x)
        at_once = energy().item()
    with energy_loss(Steps(net)) as energy:
        energy.model(x)
        assert energy().item() == pytest.approx(at_once, rel=1e-12, abs=0)


def test_the_constants_are_those_of_the_deployed_network():
    model, x = ours("conv")
    model.train()
    before = copy.deepcopy(model.state_dict())
    noise = torch.random.get_rng_state()
    with energy_loss(model) as energy:
        with torch.no_grad():
            model(x)
        in_training = energy()
        assert torch.equal(torch.random.get_rng_state(), noise)
        assert model[1].num_batches_tracked - before["1.num_batches_tracked"] == 1
        assert model.training
        per_sample = energy._known[next(iter(energy._known))].rows["1"].fixed["spikes"]
        assert per_sample == 0
    assert in_training > 0


# the gradient


def test_the_gradient_is_the_golden_one():
    spikes = torch.tensor(GOLDEN["spikes_TBN"], requires_grad=True)
    model = nn.Linear(8, 1)
    with energy_loss(model, reference=GOLDEN["E_ref_pJ"]) as energy:
        with torch.no_grad():
            model(spikes)
        (prices,) = energy._known.values()
        prices.rows["Linear"].operand["spikes"] = torch.tensor(GOLDEN["price_pJ"], dtype=torch.float64)
        prices.rows["Linear"].fixed["spikes"] = GOLDEN["constant_pJ"]
        model(spikes)
        value = GOLDEN["lam"] * energy()
    value.backward()
    assert value.item() == pytest.approx(GOLDEN["loss"], rel=1e-12, abs=0)
    expected = torch.tensor(GOLDEN["grad_wrt_each_spike"]).expand(spikes.shape)
    assert_close(spikes.grad, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("chip", ["digital-45nm", "digital-sram", "truenorth", "spinnaker", "loihi", "loihi-sanafe"])
def test_the_gradient_is_what_one_spike_more_costs(chip):
    """Exact, since energy is linear in spikes: a finite difference of the estimate itself."""
    torch.manual_seed(1)
    layer = spiking.Conv2d(2, 3, 3, stride=2, padding=1)
    spikes = (torch.rand(3, 2, 2, 5, 5) < 0.4).float().requires_grad_()
    with energy_loss(layer, chip, accounting="with-memory") as energy:
        layer(spikes)
        energy().backward()
    base = dynamic(layer, spikes.detach(), chip, accounting="with-memory")
    for index in itertools.product((0, 2), (1,), (0, 1), (0, 3), (2, 4)):
        flipped = spikes.detach().clone()
        flipped[index] = 1 - flipped[index]
        change = dynamic(layer, flipped, chip, accounting="with-memory") - base
        sign = 1 if flipped[index] else -1
        assert sign * float(spikes.grad[index]) == pytest.approx(change, rel=1e-5, abs=0), index


@pytest.mark.parametrize("chip", ["rram-crossbar", "pcm-crossbar"])
def test_on_arrays_the_gradient_is_the_slope_of_the_curve(chip):
    torch.manual_seed(1)
    layer = nn.Linear(600, 40)
    spikes = (torch.rand(4, 10, 600) < 0.02).float().requires_grad_()
    with energy_loss(layer, chip) as energy:
        layer(spikes)
        energy().backward()
    more = spikes.detach().clone()
    silent = (more == 0).nonzero()[:8]
    for index in silent:
        more[tuple(index)] = 1.0
    change = dynamic(layer, more, chip) - dynamic(layer, spikes.detach(), chip)
    assert 8 * float(spikes.grad[tuple(silent[0])]) == pytest.approx(change, rel=0.02, abs=0)


@pytest.mark.parametrize(("unit", "chip"), [(0.25, "digital-45nm"), (0.25, "seneca")])
def test_graded_values_have_the_gradient_of_what_they_add(unit, chip):
    """A value of k levels is one event on digital logic, and k where it is sent as k spikes."""
    layer = nn.Linear(4, 3)
    x = (unit * torch.tensor([0.0, 1.0, 3.0, 1.0])).repeat(2, 1, 1).requires_grad_()
    with energy_loss(layer, chip) as energy:
        layer(x)
        energy().backward()
    one = float(x.grad[0, 0, 1])
    assert one > 0
    shares = (x.grad[0, 0] / one).tolist()
    assert shares == pytest.approx([1, 1, 0 if chip == "digital-45nm" else 1, 1])


def test_the_surrogate_carries_the_price_to_the_weights():
    model, x = ours("spikes")
    with energy_loss(model, "digital-45nm") as energy:
        model(x)
        energy().backward()
    found = model[0].weight.grad.clone()
    model.zero_grad()
    hidden = model[1](model[0](x))
    output = model[3](model[2](hidden))
    e_add = hw_models.load("digital-45nm")["fp32_add"].value
    by_hand = (
        (hidden.sum() * (10 + 1) + output.sum()) * e_add / x.shape[1]
    ).double()  # 10 synapses and a reset, a reset
    by_hand.backward()
    assert_close(found, model[0].weight.grad, rtol=1e-5, atol=1e-20)
    assert bool((found != 0).any())


def test_analogue_operands_have_no_gradient():
    layer = nn.Linear(40, 3)
    x = torch.rand(2, 3, 40, requires_grad=True)
    with energy_loss(layer) as energy:
        layer(x)
        value = energy()
    assert not value.requires_grad or not torch.autograd.grad(value, x, allow_unused=True)[0]


def test_reference_and_budget_scale_the_value():
    model, x = ours("spikes")
    with energy_loss(model) as energy:
        model(x)
        joules = energy().item()
    with energy_loss(model, reference=2 * joules) as energy:
        model(x)
        assert energy().item() == pytest.approx(0.5, rel=1e-12, abs=0)
    for factor, expected in ((2.0, 0.0), (0.8, 0.25)):
        with energy_loss(model, budget=factor * joules) as energy:
            model(x)
            assert energy().item() == pytest.approx(expected, abs=1e-12)


def test_a_chip_may_be_a_file_or_hardware(tmp_path):
    model, x = ours("spikes")
    chip = hw_models.load("digital-45nm")
    text = Path(chip.path).read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("value = 0.9", "value = 1.8").replace('name = "digital-45nm"', 'name = "mine"'))
    found = []
    for where in ("digital-45nm", chip, path):
        with energy_loss(model, where, accounting="published") as energy:
            model(x)
            found.append(energy().item())
    assert found[0] == found[1]
    assert found[2] == pytest.approx(2 * found[0], rel=1e-12, abs=0)


# in training


def toy(seed: int) -> tuple[spiking.Sequential, Tensor, Tensor]:
    torch.manual_seed(seed)
    patterns = torch.rand(4, 16)
    labels = torch.arange(4).repeat(16)
    x = (torch.rand(8, 64, 16) < patterns[labels]).float()
    net = spiking.Sequential(spiking.Linear(16, 32), spiking.LIF(), spiking.Linear(32, 4), spiking.LIF())
    return net, x, labels


def test_a_plain_loop_trades_accuracy_for_energy():
    found = {}
    for weight in (0.0, 10.0):
        net, x, labels = toy(0)
        with energy_loss(net, "digital-45nm", reference=dynamic(net, x, "digital-45nm")) as energy:
            optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
            for _ in range(30):
                value = loss.rate(net(x), labels, scale=8.0) + weight * energy()
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
            net(x)
            found[weight] = energy().item()
    assert found[10.0] < 0.95 * found[0.0]


def test_the_trainer_takes_it():
    energies = []
    for weight in (0.0, 20.0):
        net, x, labels = toy(1)
        data = training.TensorBatches(x.transpose(0, 1), labels)
        config = training.TrainConfig(epochs=15, batch_size=24, lr=1e-2)  # the last batch is smaller
        with energy_loss(net, "loihi", reference=dynamic(net, x, "loihi")) as energy:
            objective = energy.added_to(training.rate_objective, weight)
            trainer = training.Trainer(net, objective, config, display=training.Display())
            history = trainer.fit(data)
            assert np.isfinite([record["loss"] for record in history]).all()
        energies.append(dynamic(net, x, "loihi"))
    assert energies[1] < 0.95 * energies[0]


def test_a_quantised_network_is_trained_with_it():
    net, x, _ = toy(2)
    aware = hw_models.quantize(net, 4, 6, calibration=[x], aware=True)
    with energy_loss(aware, precision="int8") as energy:
        aware(x)
        value = energy()
        value.backward()
    assert value.item() == pytest.approx(dynamic(aware, x, "digital-45nm", precision="int8"), rel=1e-12, abs=0)
    assert bool(aware[0].parametrizations.weight.original.grad.any())


def test_a_copy_of_the_model_does_not_feed_it():
    model, x = ours("spikes")
    with energy_loss(model) as energy:
        model(x)
        before = energy().item()
        copy.deepcopy(model)(torch.zeros_like(x))
        model[0](torch.zeros_like(x))  # a layer by itself is no pass of the model
        assert energy().item() == before
    assert not model._forward_hooks
    assert not model[0]._forward_hooks


# refusals


def test_asking_before_the_model_ran_is_refused():
    model, _ = ours("spikes")
    with energy_loss(model) as energy, pytest.raises(SpikingError, match=r"energy_loss: the model has not run yet"):
        energy()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chip": "loihy"}, r"hardware: got 'loihy'; expected a \.toml file or a known chip, such as loihi"),
        ({"reference": 0.0}, r"energy_loss\.reference: got 0\.0; expected joules above 0"),
        ({"budget": float("nan")}, r"energy_loss\.budget: got nan; expected joules above 0"),
        ({"budget": 1.0, "reference": 1.0}, r"energy_loss: got reference and budget; expected one of them"),
        ({"reuse_static": True}, r"energy_loss: got the option 'reuse_static'; expected one of precision, accounting"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(SpikingError, match=message):
        energy_loss(ours("spikes")[0], **options)


def test_other_refusals():
    with pytest.raises(SpikingError, match=r"energy_loss: got str; expected a torch\.nn\.Module"):
        energy_loss("model")
    model, x = ours("spikes")
    with energy_loss(model) as energy, pytest.raises(SpikingError, match=r"added_to\.weight: got -1\.0; expected"):
        energy.added_to(training.rate_objective, -1.0)
    with energy_loss(model, precision="fp64"), pytest.raises(SpikingError, match=r"estimate: got precision='fp64'"):
        model(x)
