"""Pooling, scale and neurons in one pass against the same layers one after the other."""

import copy

import pytest
import torch
from spiking.cuda_kernels import backend

import spiking

module = backend.compiled()
pytestmark = pytest.mark.skipif(module is None, reason="the compiled module was not built")

POOLS = {"average": spiking.AvgPool2d, "maximum": spiking.MaxPool2d}
NEURONS = {
    "subtract": lambda: spiking.LIF(beta=0.75, threshold=0.5),
    "zero": lambda: spiking.LIF(beta=0.75, threshold=0.5, reset="zero"),
    "gt": lambda: spiking.LIF(beta=0.5, threshold=0.5, tie="gt", decay_input=True),
    "learned": lambda: spiking.LIF(beta=0.75, threshold=0.5, learn_beta=True, learn_threshold=True),
    "half": lambda: spiking.LIF(beta=0.75, threshold=0.5, save="half"),
    "recompute": lambda: spiking.LIF(beta=0.75, threshold=0.5, save="recompute"),
    "if": lambda: spiking.IF(threshold=0.5),
    "parametric": lambda: spiking.ParametricLIF(threshold=0.5),
}


def _one_by_one(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def _equal(net, x, tolerance):
    """The chain in `Sequential` against its layers one by one: spikes, gradients of the input and of every parameter."""
    twin = copy.deepcopy(net)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    s, wanted = net(a), _one_by_one(twin, b)
    assert torch.equal(s, wanted)
    assert 0 < s.mean() < 1
    grad = torch.randn(s.shape, generator=torch.Generator().manual_seed(1), dtype=s.dtype)
    found = torch.autograd.grad(s, [a, *net.parameters()], grad)
    right = torch.autograd.grad(wanted, [b, *twin.parameters()], grad)
    for f, r in zip(found, right, strict=True):
        torch.testing.assert_close(f, r, rtol=tolerance, atol=tolerance * float(r.abs().max()) + 1e-12)
    for (name, f), r in zip(net.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(f, r, rtol=1e-6, atol=1e-7, msg=name)


def _input(shape, dtype=torch.float32):
    """Eighths, so that averages of four and sums over time are exact in any order."""
    g = torch.Generator().manual_seed(2)
    return torch.randint(-6, 12, shape, generator=g).to(dtype) / 8


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("size", [(4, 3, 5, 8, 8), (7, 2, 3, 9, 11), (1, 1, 1, 2, 2), (5, 2, 6, 30, 34)])
def test_windows_of_two(level, pool, neuron, size):
    if size == (1, 1, 1, 2, 2):
        x = torch.full(size, 0.75)
        net = spiking.Sequential(POOLS[pool](2), NEURONS[neuron]())
        assert torch.equal(net(x), _one_by_one(net, x))
        return
    _equal(spiking.Sequential(POOLS[pool](2), NEURONS[neuron]()), _input(size), 1e-6)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("window", [1, 3, 4])
def test_other_windows(level, pool, window):
    less = 1.0 if pool == "maximum" and window > 1 else 0.0  # the largest of many drives too much
    _equal(
        spiking.Sequential(POOLS[pool](window), NEURONS["subtract"]()),
        _input((4, 2, 3, 12, 13), torch.float64) - less,
        1e-12,
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pool", POOLS)
def test_convolution_norm_pool_and_neuron(pool, bias, training):
    torch.manual_seed(0)
    net = spiking.Sequential(
        spiking.Conv2d(2, 6, 3, bias=bias),
        spiking.BatchNorm2d(6),
        POOLS[pool](2),
        spiking.LIF(beta=0.75, threshold=0.5),
    ).double()
    with torch.no_grad():
        net[1].running_mean.uniform_(-0.2, 0.2)
        net[1].running_var.uniform_(0.5, 2)
    net.train(training)
    x = (torch.rand(5, 4, 2, 12, 12) < 0.2).double()
    _equal(net, x, 1e-9)


@pytest.mark.parametrize("pool", POOLS)
def test_states_continue_a_sequence(pool):
    net = spiking.Sequential(POOLS[pool](2), spiking.LIF(beta=0.75, threshold=0.5))
    x = _input((6, 2, 3, 8, 8))
    whole, last = net(x, return_state=True)
    first, state = net(x[:2], return_state=True)
    second, state = net(x[2:], state=state, return_state=True)
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(state[1].v, last[1].v)
    steps, state = [], None
    for x_t in x:
        s, state = net.step(x_t, state)
        steps.append(s)
    assert torch.equal(torch.stack(steps), whole)


def test_a_nan_reaches_its_own_neuron_only():
    x = _input((3, 1, 2, 6, 6))
    x[1, 0, 1, 2, 3] = float("nan")
    for pool in POOLS.values():
        net = spiking.Sequential(pool(2), spiking.LIF(beta=0.75, threshold=0.5))
        torch.testing.assert_close(net(x), _one_by_one(net, x), equal_nan=True, rtol=0, atol=0)


def test_hooks_see_every_layer():
    net = spiking.Sequential(spiking.AvgPool2d(2), spiking.LIF(beta=0.75, threshold=0.5))
    seen = []
    net[0].register_forward_hook(lambda layer, args, out: seen.append(tuple(out.shape)))
    net(_input((3, 2, 3, 8, 8)))
    assert seen == [(3, 2, 3, 4, 4)]
