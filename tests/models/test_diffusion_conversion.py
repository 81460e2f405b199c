"""A quantised ReLU of 2^b - 1 levels is what an integrate-and-fire neuron fires in as many steps: the authors' numbers, and exactly."""

import numpy as np
import pytest
import torch
from torch import nn

from spiking.convert import QCFS, from_ann, quantize_activations
from spiking.neuron import IF, LIFState


def fired(x: torch.Tensor, alpha: float) -> torch.Tensor:
    """What a neuron of threshold alpha that starts at half of it sends for [T, N], in units of alpha."""
    neuron = IF(threshold=alpha)
    s, _ = neuron(x[:, None], state=LIFState(torch.full_like(x[:1], alpha / 2)), return_state=True)
    return alpha * s[:, 0]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_golden_quantised_relu_and_spike_trains(golden, bits):
    data = np.load(golden / "sdm" / "conversion.npz")
    get = lambda name: torch.from_numpy(np.asarray(data[f"b{bits}/{name}"], dtype=np.float64))  # noqa: E731
    alpha, levels = float(get("alpha")), 2**bits - 1
    activation = QCFS(levels, alpha).double()
    x = get("x").requires_grad_()
    y = activation(x)
    torch.testing.assert_close(y.detach(), get("y"), rtol=1e-6, atol=1e-6)
    (y * get("cot")).sum().backward()
    torch.testing.assert_close(x.grad, get("gx"), rtol=1e-6, atol=1e-6)
    assert activation.threshold.grad.item() == pytest.approx(float(get("galpha")), rel=1e-6, abs=1e-6)
    constant = fired(x.detach().expand(levels, -1), alpha)
    torch.testing.assert_close(constant, get("const_train_sign0"), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fired(get("var_x"), alpha), get("var_train_sign0"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_the_mean_of_the_spikes_is_the_activation(bits):
    levels, alpha = 2**bits - 1, 1.5
    x = torch.linspace(-1, 3, 997, dtype=torch.float64)  # no ties
    torch.testing.assert_close(
        fired(x.expand(levels, -1), alpha).mean(0), QCFS(levels, alpha).double()(x), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("bits", [2, 3])
def test_a_convolution_converted_by_from_ann_is_the_same_function(bits):
    torch.manual_seed(0)
    levels = 2**bits - 1
    ann = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    ann = quantize_activations(ann, levels=levels, threshold=0.7).double().eval()
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    net = from_ann(ann, [x], method="qcfs", timesteps=levels)
    with torch.no_grad():
        torch.testing.assert_close(net.scores(x), ann(x), rtol=1e-9, atol=1e-9)
