"""Graded spikes: golden sequences and gradients of the published neuron (tests/golden/iir_snn/mlif.npz), and their price."""

import numpy as np
import pytest
import torch

import spiking
from spiking import MultiLevelLIF, SpikingError, hw_models
from spiking.convert import retrainable_lif


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_octaves_are_the_published_lanes(golden, lanes):
    with np.load(golden / "iir_snn/mlif.npz") as file:
        g = {key.split("/")[1]: torch.tensor(file[key]) for key in file.files if key.startswith(f"S{lanes}/")}
    x = g["I"].unsqueeze(1).requires_grad_()
    neuron = MultiLevelLIF(
        lanes, "octave", beta=float(g["leak"]), threshold=float(g["v"]), learn_beta=True, learn_threshold=True
    )
    neuron.double()
    with torch.no_grad():
        neuron.beta.copy_(g["leak"])
        neuron.threshold.copy_(g["v"])
    spikes, state = neuron(x, return_state=True)
    torch.testing.assert_close(spikes.squeeze(1), g["value"], rtol=0, atol=0)
    torch.testing.assert_close(state.v.squeeze(0), g["u"][-1], rtol=0, atol=1e-13)
    if lanes == 1:
        return
    beta, threshold = neuron.cells().values()
    v, loss = torch.zeros_like(x[0]), 0
    for t, x_t in enumerate(x):  # the file weighs each lane by itself
        h = beta * v + x_t
        sent = torch.stack(neuron.lanes(h, threshold))
        assert torch.equal(sent.squeeze(1), g["lanes"][t])
        loss = loss + (sent.squeeze(1) * g["grad_lanes"][t]).sum()
        v = h - threshold * sum(2**k * lane for k, lane in enumerate(sent)).detach()
    loss.backward()  # the file's surrogate is float32
    torch.testing.assert_close(x.grad.squeeze(1), g["grad_I"], rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(neuron.threshold.grad, g["grad_v"].double(), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(neuron.beta.grad, g["grad_leak"].double(), rtol=1e-5, atol=2e-6)


def test_one_octave_is_the_binary_neuron():
    x = torch.randn(6, 3, 20, generator=torch.Generator().manual_seed(0))
    graded, binary = MultiLevelLIF(1, "octave", beta=0.9, learn_threshold=True), retrainable_lif(beta=0.9)
    found = []
    for neuron in (graded, binary):
        driven = x.clone().requires_grad_()
        spikes = neuron(driven)
        (spikes * torch.arange(20.0)).sum().backward()
        found.append((spikes.detach(), driven.grad, neuron.threshold.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=1e-4, atol=1e-4)


def test_linear_levels_pass_gradient_straight_through_inside():
    x = torch.tensor([-1.0, 0.2, 1.4, 3.0, 9.0]).reshape(1, 1, 5).requires_grad_()
    neuron = MultiLevelLIF(levels=3, threshold=0.5, learn_threshold=True)
    spikes = neuron(x)
    assert spikes.tolist() == [[[0.0, 0.0, 2.0, 3.0, 3.0]]]
    spikes.sum().backward()
    assert x.grad.tolist() == [[[0.0, 2.0, 2.0, 0.0, 0.0]]]
    assert neuron.threshold.grad.item() == pytest.approx(-(0.2 + 1.4) / 0.25)


def test_graded_spikes_are_priced_as_multiplications():
    torch.manual_seed(0)
    made = {}
    for name, neuron in (("graded", MultiLevelLIF(4, threshold=0.2)), ("binary", spiking.LIF(threshold=0.2))):
        net = spiking.Sequential(spiking.Linear(8, 32), neuron, spiking.Linear(32, 4))
        with torch.no_grad(), spiking.record(net) as trace:
            net(torch.rand(1, 16, 8))
        made[name] = trace
        assert hw_models.estimate(trace).energy.nominal > 0
    assert made["graded"]["2"].operand_class == "graded"
    assert made["graded"]["2"].mac.sum() == made["graded"]["2"].counts["syn"].sum() > 0
    assert made["binary"]["2"].mac.sum() == 0


def test_compiled_networks_run_it_as_it_stands():
    net = spiking.Sequential(spiking.Linear(8, 6), MultiLevelLIF(4, threshold=0.1), spiking.Linear(6, 4)).eval()
    x = torch.rand(3, 2, 8)
    compiled = spiking.compile_events(net, x)
    torch.testing.assert_close(compiled(x), net(x).detach(), rtol=0, atol=1e-5)
    with pytest.raises(SpikingError, match="MultiLevelLIF"):
        spiking.compile_events(net, x, strict=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, r"MultiLevelLIF\.levels: got 0"),
        ({"levels": 11, "spacing": "octave"}, r"MultiLevelLIF\.levels: got 11; expected a whole number from 1 to 10"),
        ({"spacing": "even"}, r"MultiLevelLIF\.spacing: got 'even'"),
        ({"threshold": 0.0}, r"MultiLevelLIF\.threshold: got 0\.0"),
        ({"beta": 2.0}, r"MultiLevelLIF\.beta: got 2\.0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(SpikingError, match=message):
        MultiLevelLIF(**options)
