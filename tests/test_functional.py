"""What the functions refuse, by name, and that every argument reaches the neurons."""

import pytest
import torch

import spiking
from spiking import SpikingError, surrogate
from spiking import functional as F

X = torch.full((4, 2, 3), 0.6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spiking.LIF(beta=20.0), r"LIF\.beta: got 20\.0; expected 0 <= beta <= 1\. beta is the decay per step"),
        (lambda: spiking.LIF(beta=-0.1), r"LIF\.beta: got -0\.1; expected 0 <= beta <= 1"),
        (lambda: spiking.LIF(beta=float("nan")), r"LIF\.beta: got nan"),
        (lambda: spiking.LIF(beta=torch.tensor([0.5, 1.5])), r"LIF\.beta: got 1\.5"),
        (lambda: spiking.LIF(beta="a"), r"LIF\.beta: got 'a'; expected a number or a tensor between 0 and 1"),
        (lambda: spiking.LIF()([1, 2]), r"LIF: got input of type list; expected a tensor \[T, B, \*\]"),
        (lambda: spiking.LIF(threshold=0.0), r"LIF\.threshold: got 0\.0; expected finite numbers > 0"),
        (lambda: spiking.LIF(threshold=float("inf")), r"LIF\.threshold: got inf"),
        (lambda: spiking.LIF(reset="hard"), r"LIF\.reset: got 'hard'; expected \"subtract\", \"zero\" or \"none\""),
        (lambda: spiking.LIF(tie="eq"), r"LIF\.tie: got 'eq'"),
        (lambda: spiking.LIF(surrogate="atan"), r"LIF\.surrogate: got 'atan'; expected one of spiking\.surrogate"),
        (lambda: spiking.LIF(refractory=-1), r"LIF\.refractory: got -1; expected a whole number of steps >= 0"),
        (lambda: spiking.LIF(v_reset=float("inf")), r"LIF\.v_reset: got inf; expected a finite number"),
        (lambda: spiking.LIF(residual_reset=True, reset="zero"), r"LIF\.residual_reset: needs reset=\"subtract\""),
        (lambda: spiking.LIF(refractory=1, reset_delay=True), r"LIF\.refractory: cannot be combined"),
        (lambda: spiking.LIF(save="all")(X), r"LIF\.save: got 'all'"),
        (lambda: spiking.ParametricLIF(beta=1.0), r"ParametricLIF\.beta: got 1\.0; expected 0 < beta < 1"),
        (lambda: spiking.CuBaLIF(beta_syn=1.5), r"CuBaLIF\.beta_syn: got 1\.5; expected 0 <= beta_syn <= 1"),
        (lambda: spiking.AdaptiveLIF(beta_adapt=2.0), r"AdaptiveLIF\.beta_adapt: got 2\.0"),
        (lambda: spiking.Recurrent(torch.nn.ReLU(), 3), r"Recurrent\.neuron: got ReLU; expected a neuron"),
        (
            lambda: spiking.Recurrent(spiking.LIF(), 5)(X),
            r"Recurrent: got input of shape \[4, 2, 3\]; expected \[T, B, 5\]",
        ),
        (
            lambda: spiking.LIF()(torch.zeros(784)),
            r"LIF: got input of shape \[784\]; expected \[T, B, \*\]\. For one time step",
        ),
        (lambda: spiking.LIF()(X.int()), r"LIF: got input of dtype torch\.int32; expected a floating dtype"),
        (lambda: spiking.LIF()(X, state=(X[0],)), r"LIF: got a state of type tuple; expected LIFState"),
        (lambda: F.lif(X, v0=torch.zeros(2, 4)), r"lif: got a state of shape \[2, 4\]; expected \[2, 3\] as one step"),
        (
            lambda: F.lif(X, beta=torch.full((5,), 0.5)),
            r"lif\.beta: got shape \[5\] for input \[4, 2, 3\]; expected \(\), \[3\]",
        ),
        (lambda: F.lif(X, threshold=-1.0), r"lif\.threshold: got -1\.0"),
        (lambda: F.cuba_lif(X, beta_syn=-0.5), r"cuba_lif\.beta_syn: got -0\.5"),
        (lambda: surrogate.ATan(alpha=0.0), r"ATan\.alpha: got 0\.0; expected a finite number > 0"),
        (lambda: surrogate.PiecewiseLeakyReLU(leak=-1.0), r"PiecewiseLeakyReLU\.leak: got -1\.0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(SpikingError, match=message):
        call()


def test_a_function_and_its_layer_agree():
    x = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0))
    s, v = F.lif(x, beta=0.7, threshold=0.8, reset="zero", tie="gt", decay_input=True)
    layer = spiking.LIF(beta=0.7, threshold=0.8, reset="zero", tie="gt", decay_input=True)
    expected, state = layer(x, return_state=True)
    assert torch.equal(s, expected)
    assert torch.equal(v, state.v)
    s, (v, i) = F.cuba_lif(x, beta=0.7, beta_syn=0.4)
    expected, state = spiking.CuBaLIF(beta=0.7, beta_syn=0.4)(x, return_state=True)
    assert torch.equal(s, expected)
    assert torch.equal(i, state.i_syn)
    s, (v, b) = F.adaptive_lif(x, beta_adapt=0.5, adapt_scale=1.0)
    expected, state = spiking.AdaptiveLIF(beta_adapt=0.5, adapt_scale=1.0)(x, return_state=True)
    assert torch.equal(s, expected)
    assert torch.equal(b, state.threshold_shift)


def test_a_sequence_continues_from_the_states_that_functions_return():
    x = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0))
    whole = F.cuba_lif(x)[0]
    head, (v, i) = F.cuba_lif(x[:4])
    assert torch.equal(torch.cat([head, F.cuba_lif(x[4:], v0=v, i0=i)[0]]), whole)
    whole = F.adaptive_lif(x)[0]
    head, (v, b) = F.adaptive_lif(x[:4])
    assert torch.equal(torch.cat([head, F.adaptive_lif(x[4:], v0=v, threshold_shift0=b)[0]]), whole)


def test_per_channel_and_per_neuron_parameters_reach_their_neurons():
    x = torch.full((3, 2, 2, 2, 2), 0.5)
    thresholds = torch.tensor([0.5, 10.0])
    spikes, _ = F.lif(x, beta=0.9, threshold=thresholds)
    assert spikes[0, :, 0].eq(1).all()
    assert spikes[:, :, 1].eq(0).all()
    single = torch.full((2, 2, 2), 10.0)
    single[1, 0, 1] = 0.5
    spikes, _ = F.lif(x, beta=0.9, threshold=single)
    assert spikes[0].sum() == 2
    assert spikes[0, :, 1, 0, 1].eq(1).all()


def test_learned_decay_is_clamped_where_it_is_used_and_learns_nothing_beyond():
    layer = spiking.LIF(beta=1.0, learn_beta=True)
    with torch.no_grad():
        layer.beta.fill_(1.3)
    x = torch.rand(5, 1, 3)
    assert torch.equal(layer(x), spiking.IF()(x))
    layer(x.requires_grad_()).sum().backward()
    assert layer.beta.grad == 0


def test_detached_reset_still_trains_the_threshold():
    layer = spiking.LIF(learn_threshold=True, detach_reset=True)
    v = layer(torch.full((3, 1, 1), 0.8).requires_grad_(), return_state=True)[1].v
    v.sum().backward()
    assert layer.threshold.grad.item() == pytest.approx(
        -1.9
    )  # spikes at t = 1 and t = 2; the first decays once: -(0.9 + 1)
