"""Learned synaptic delays: against their definition in float64, streaming, annealing, counting."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import spiking
from spiking import DelayedLinear
from spiking.errors import SpikingError


def layer_of(inputs=3, outputs=2, max_delay=4, seed=0, **options):
    torch.manual_seed(seed)
    return DelayedLinear(inputs, outputs, max_delay, **options).double()


def spread(layer):
    """g_k(d) of the definition, [max_delay + 1, out, in]."""
    k = torch.arange(layer.max_delay + 1, dtype=torch.float64)[:, None, None]
    g = torch.exp(-((k - layer.delay.clamp(0, layer.max_delay)) ** 2) / (2 * layer.sigma**2))
    return g / g.sum(0)


def by_definition(layer, x, g):
    y = torch.zeros(len(x), x.shape[1], layer.out_features, dtype=torch.float64)
    for t in range(len(x)):
        for k in range(min(t, layer.max_delay) + 1):
            y[t] = y[t] + x[t - k] @ (layer.weight * g[k]).T
    return y if layer.bias is None else y + layer.bias


@given(
    steps=st.integers(1, 9),
    batch=st.integers(1, 3),
    max_delay=st.integers(0, 6),
    seed=st.integers(0, 9),
    bias=st.booleans(),
)
@settings(deadline=None, max_examples=30)
def test_training_and_evaluation_are_their_definitions(steps, batch, max_delay, seed, bias):
    layer = layer_of(max_delay=max_delay, seed=seed, bias=bias)
    x = torch.rand(steps, batch, 3, dtype=torch.float64)
    assert_close(layer(x), by_definition(layer, x, spread(layer)))
    layer.eval()
    one = torch.nn.functional.one_hot(layer.steps, max_delay + 1).permute(2, 0, 1).double()
    assert_close(layer(x), by_definition(layer, x, one))


def test_gradients_are_those_of_the_definition():
    layer, x = layer_of(), torch.rand(7, 2, 3, dtype=torch.float64, requires_grad=True)
    mine = torch.autograd.grad(layer(x).pow(2).sum(), [x, layer.weight, layer.delay, layer.bias])
    theirs = torch.autograd.grad(
        by_definition(layer, x, spread(layer)).pow(2).sum(), [x, layer.weight, layer.delay, layer.bias]
    )
    for a, b in zip(mine, theirs):
        assert_close(a, b)
    assert float(mine[2].abs().min()) > 0
    assert torch.autograd.gradcheck(lambda v: layer(v), x)


def test_evaluation_gives_no_gradient_to_delays_but_to_weights():
    layer = layer_of().eval()
    layer(torch.rand(5, 1, 3, dtype=torch.float64)).sum().backward()
    assert layer.delay.grad is None
    assert layer.weight.grad is not None


def test_a_delay_is_learned():
    """A layer whose spike has to arrive after 6 steps moves its delay there."""
    torch.manual_seed(0)
    layer = DelayedLinear(1, 1, 10, bias=False, anneal=150)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.delay.fill_(2.0)
    x, target = torch.zeros(12, 1, 1), torch.zeros(12, 1, 1)
    x[0], target[6] = 1, 1
    optimizer = torch.optim.Adam([layer.delay], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (layer(x) - target).pow(2).sum().backward()
        optimizer.step()
    assert layer.steps.item() == 6
    assert_close(layer.eval()(x), target)


@given(cut=st.integers(1, 8), training=st.booleans())
@settings(deadline=None, max_examples=20)
def test_a_sequence_may_be_cut_anywhere(cut, training):
    layer = layer_of(max_delay=3).train(training)
    x = torch.rand(9, 2, 3, dtype=torch.float64)
    head, state = layer(x[:cut], return_state=True)
    tail, _ = layer(x[cut:], state=state, return_state=True)
    assert_close(torch.cat([head, tail]), layer(x))
    state, steps = None, []
    for x_t in x:
        y_t, state = layer.step(x_t, state)
        steps.append(y_t)
    assert_close(torch.stack(steps), layer(x))


def test_a_network_streams_through_it():
    net = spiking.Sequential(DelayedLinear(3, 5, 2), spiking.LIF(), spiking.Linear(5, 2)).eval()
    x = (torch.rand(6, 2, 3) < 0.5).float()
    state, found = None, []
    for x_t in x:
        y, state = net.step(x_t, state)
        found.append(y)
    assert_close(torch.stack(found), net(x))


def test_the_width_falls_by_the_same_factor_and_is_saved():
    layer = DelayedLinear(2, 2, 8, anneal=4)
    widths = []
    for _ in range(6):
        widths.append(layer.sigma)
        layer(torch.zeros(1, 1, 2))
    assert widths[0] == 4.0
    assert widths[4:] == [0.5, 0.5]
    assert [a / b for a, b in zip(widths[1:5], widths)] == pytest.approx([8 ** (-1 / 4)] * 4)
    layer.eval()(torch.zeros(1, 1, 2))
    assert int(layer.passes) == 6
    again = DelayedLinear(2, 2, 8, anneal=4)
    again.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert again.sigma == 0.5
    assert DelayedLinear(2, 2, 8).sigma == 0.5


def test_a_trace_counts_every_spike_once_for_each_weight():
    net = spiking.Sequential(DelayedLinear(4, 6, 3, bias=False), spiking.LIF()).eval()
    x = (torch.rand(5, 2, 4) < 0.4).float()
    with torch.no_grad(), spiking.record(net) as trace:
        net(x)
    row = trace.layers[0]
    assert (row.kind, row.module) == ("linear", "DelayedLinear")
    assert int(row.counts["syn"].sum()) == int(x.sum()) * 6
    assert row.dense == 4 * 6


def test_bad_arguments_are_named():
    with pytest.raises(SpikingError, match=r"DelayedLinear\.max_delay: got -1; expected a whole number"):
        DelayedLinear(2, 2, -1)
    with pytest.raises(SpikingError, match=r"DelayedLinear\.anneal: got 1\.5"):
        DelayedLinear(2, 2, 3, anneal=1.5)
    layer = DelayedLinear(2, 2, 3)
    for x in (torch.zeros(2, 2), torch.zeros(4, 1, 3)):
        with pytest.raises(SpikingError, match=r"DelayedLinear: got input of shape .*; expected \[T, B, 2\]"):
            layer(x)
