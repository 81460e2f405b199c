"""Products of the published network, and the two ways to price a call."""

import pytest
import torch

from spiking.models.diffusion import SpikingUNet, UNetConfig
from spiking.models.diffusion.energy import AC, MAC, price_call


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    net = SpikingUNet()
    return price_call(net, torch.randn(1, 3, 32, 32), torch.tensor([500]))


def test_products_of_the_published_network(published):
    layers = published.layers
    linear = sum(c.macs for name, c in layers.items() if "proj" in name or "time_embedding" in name)
    convolutions = sum(c.macs for c in layers.values()) - linear - layers["output_conv"].macs
    assert convolutions == pytest.approx(6.4799e9, rel=1e-4)
    assert linear == pytest.approx(3.80e6, rel=1e-2)
    assert layers["output_conv"].macs == pytest.approx(0.083e6, rel=1e-2)
    shortcuts = sum(c.macs for name, c in layers.items() if name.endswith("shortcut"))
    assert shortcuts == pytest.approx(272.6e6, rel=1e-3)
    assert published.conventional == pytest.approx(6.484e9 * 4.6e-12, rel=1e-3)


def test_the_two_sums(published):
    floats = {name for name, c in published.layers.items() if not c.binary}
    assert {name.rsplit(".")[-1] for name in floats} >= {"conv", "shortcut", "tail_conv", "output_conv", "time_proj"}
    assert not any(name.endswith(("conv1", "conv2")) for name in floats)
    difference = sum(
        c.steps * c.macs * (MAC - AC * c.density)
        for name, c in published.layers.items()
        if not c.binary and name != "conv"
    )
    assert published.honest - published.published == pytest.approx(difference)
    assert published.per_image(50) == (50 * published.published, 50 * published.honest)


def test_pricing_leaves_the_network_as_it_was():
    net = SpikingUNet(UNetConfig(1, 8, (1, 2), 1)).train()
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0, 5, 999])
    first = price_call(net, x, t)
    assert net.training
    assert price_call(net, x, t) == first
    assert all(not layer._forward_hooks for layer in net.modules())
