"""Losses against their formulas, and gradients where a loss is meant to push."""

import pytest
import torch
from torch.nn import functional as tf
from torch.testing import assert_close

from spiking import loss
from spiking.errors import SpikingError

LABELS = torch.tensor([0, 2, 1])


def spikes(seed: int = 0) -> torch.Tensor:
    return torch.bernoulli(torch.full((5, 3, 4), 0.4), generator=torch.Generator().manual_seed(seed))


def test_rate_is_cross_entropy_on_rates():
    s = spikes()
    scores = torch.exp(2.0 * s.mean(0))
    expected = -torch.log(scores[torch.arange(3), LABELS] / scores.sum(1)).mean()
    assert_close(loss.rate(s, LABELS, scale=2.0), expected)
    assert_close(loss.rate(s, LABELS, label_smoothing=0.1), tf.cross_entropy(s.mean(0), LABELS, label_smoothing=0.1))


def test_count_is_zero_at_the_target_and_squared_elsewhere():
    target = torch.zeros(10, 1, 2)
    target[:8, 0, 0] = 1
    target[:1, 0, 1] = 1
    assert loss.count(target, torch.tensor([0])).item() < 1e-12
    assert_close(loss.count(torch.zeros(10, 1, 2), torch.tensor([0])), torch.tensor((0.8**2 + 0.1**2) / 2))


@pytest.mark.parametrize(
    ("over", "reduce"), [("mean", lambda v: v.mean(0)), ("max", lambda v: v.amax(0)), ("last", lambda v: v[-1])]
)
def test_membrane_reduces_over_time_as_asked(over, reduce):
    v = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    assert_close(loss.membrane(v, LABELS, over=over), tf.cross_entropy(reduce(v), LABELS))


def test_membrane_over_steps_is_the_mean_of_each_steps_cross_entropy():
    v = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([tf.cross_entropy(v[t], LABELS) for t in range(5)]).mean()
    assert_close(loss.membrane(v, LABELS), expected)


def test_half_precision_is_summed_in_float32():
    s = torch.ones(4096, 1, 2, dtype=torch.float16)
    assert loss.rate(s, torch.tensor([0])).dtype == torch.float32
    assert_close(loss.rate(s, torch.tensor([0])), torch.tensor(0.5).log().neg())


def test_rate_regulariser_is_zero_inside_and_pushes_from_both_sides():
    s = torch.zeros(4, 1, 3)
    s[:2, 0, 1] = 1
    s[:, 0, 2] = 1
    s.requires_grad_()
    value = loss.rate_regulariser([s], low=0.25, high=0.75)
    assert_close(value, torch.tensor(2 * 0.25**2 / 3))
    value.backward()
    assert (s.grad[:, 0, 0] < 0).all()
    assert (s.grad[:, 0, 1] == 0).all()
    assert (s.grad[:, 0, 2] > 0).all()
    assert_close(loss.rate_regulariser([s, torch.full((2, 1, 1), 0.5)], low=0.25, high=0.75), value / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: loss.rate(torch.zeros(3, 4), LABELS), r"loss.rate: got output of shape \[3, 4\]"),
        (lambda: loss.rate(spikes(), LABELS[:2]), r"loss.rate.labels: got shape \[2\]; expected \[3\]"),
        (lambda: loss.rate(spikes(), LABELS.float()), r"loss.rate.labels: got dtype torch.float32"),
        (lambda: loss.count(spikes(), LABELS + 2), r"loss.count.labels: got classes 2 to 4; expected 0 to 3"),
        (lambda: loss.count(spikes(), LABELS, correct_rate=1.5), r"loss.count.correct_rate: got 1.5"),
        (lambda: loss.membrane(spikes(), LABELS, over="sum"), r'loss.membrane.over: got "sum"'),
        (lambda: loss.rate_regulariser([]), r"rate_regulariser: got no spikes"),
        (lambda: loss.rate_regulariser([spikes()], low=0.5, high=0.1), r"rate_regulariser: got low=0.5, high=0.1"),
        (lambda: loss.rate_regulariser([torch.zeros(3)]), r"rate_regulariser: got spikes of shape \[3\]"),
    ],
)
def test_refusals_name_the_culprit(call, message):
    with pytest.raises(SpikingError, match=message):
        call()


def test_membrane_regulariser_is_zero_at_rest_and_at_the_threshold():
    h = torch.tensor([[[0.0, 1.0, 0.25, 0.75, -0.5, 1.5]]], requires_grad=True)
    value = loss.membrane_regulariser([h])
    assert_close(value, torch.tensor((0.25**2 * 2 + 0.5**2 * 2) / 6))
    value.backward()
    assert h.grad.sign().flatten().tolist() == [0.0, 0.0, 1.0, -1.0, -1.0, 1.0]


def test_tet_is_cross_entropy_at_every_step_and_a_pull():
    logits = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(2))
    expected = torch.stack([tf.cross_entropy(step, LABELS) for step in logits]).mean()
    assert_close(loss.tet(logits, LABELS, mix=0.0), expected)
    assert_close(loss.tet(logits, LABELS, mix=1.0, target=0.5), ((logits - 0.5) ** 2).mean())


def test_losses_of_few_steps_refuse():
    with pytest.raises(SpikingError, match=r"loss\.tet\.mix: got 2"):
        loss.tet(torch.zeros(2, 3, 4), LABELS, mix=2)
    with pytest.raises(SpikingError, match=r"loss\.tet\.labels: got shape"):
        loss.tet(torch.zeros(2, 3, 4), LABELS[:2])
    with pytest.raises(SpikingError, match="membrane_regulariser: got no membranes"):
        loss.membrane_regulariser([])
