"""Encoders and readouts against their formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from spiking import encode
from spiking.errors import SpikingError


def test_direct_repeats_without_copying():
    x = torch.rand(2, 3)
    y = encode.direct(x, 4)
    assert y.shape == (4, 2, 3)
    assert y.data_ptr() == x.data_ptr()
    assert torch.equal(y[3], x)


def test_rate_is_the_value_and_repeats_with_its_generator():
    x = torch.tensor([[0.0, 0.1, 0.5, 1.0]])
    s = encode.rate(x, 20000, torch.Generator().manual_seed(3))
    assert torch.equal(s, encode.rate(x, 20000, torch.Generator().manual_seed(3)))
    assert set(s.unique().tolist()) == {0.0, 1.0}
    assert_close(s.mean(0), x, rtol=0, atol=4 * 0.5 / math.sqrt(20000))  # four standard deviations
    assert s[..., 0].sum() == 0
    assert s[..., 3].sum() == 20000


@given(
    x=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8),
    T=st.integers(1, 30),
    tau=st.sampled_from([None, 2.0, 5.0]),
)
@settings(deadline=None, max_examples=60)
def test_latency_fires_once_and_larger_values_never_later(x, T, tau):
    values = torch.tensor([x])
    s = encode.latency(values, T, tau=tau, threshold=0.05)
    assert torch.equal(s.sum(0), (values >= 0.05).float())
    times = encode.first_spike_time(s)[0]
    order = values[0].argsort(descending=True)
    assert bool((times[order].diff() >= 0).all())


def test_latency_follows_the_two_formulas():
    x = torch.tensor([[1.0, 0.75, 0.5, 0.25]])
    assert encode.first_spike_time(encode.latency(x, 9)).tolist() == [[0, 2, 4, 6]]
    expected = [[round(5 * math.log(v / (v - 0.2))) for v in (1.0, 0.75, 0.5, 0.25)]]
    assert encode.first_spike_time(encode.latency(x, 30, tau=5.0, threshold=0.2)).tolist() == expected


def test_delta_marks_rises_and_with_polarity_falls():
    x = torch.tensor([0.0, 0.5, 0.6, 0.1, 0.6]).reshape(5, 1, 1)
    assert encode.delta(x, 0.5).flatten().tolist() == [0, 1, 0, 0, 1]
    both = encode.delta(x, 0.5, polarity=True)
    assert both.shape == (5, 1, 2, 1)
    assert both[:, 0, :, 0].tolist() == [[0, 0], [0, 1], [0, 0], [1, 0], [0, 1]]


def test_readouts():
    s = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]).unsqueeze(1)
    v = torch.tensor([[0.5, -1.0], [0.75, -2.0], [0.25, -3.0]]).unsqueeze(1)
    assert encode.spike_count(s).tolist() == [[1, 2]]
    assert_close(encode.firing_rate(s), torch.tensor([[1 / 3, 2 / 3]]))
    assert encode.first_spike_time(s).tolist() == [[1, 0]]
    assert encode.first_spike_time(torch.zeros(3, 1, 2)).tolist() == [[3, 3]]
    assert encode.last_membrane(v).tolist() == [[0.25, -3.0]]
    assert encode.max_membrane(v).tolist() == [[0.75, -1.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode.direct(torch.zeros(1), 0), r"direct.time_bins: got 0"),
        (lambda: encode.rate(torch.tensor([0.5, 1.5]), 3), r"rate.x: got values from 0.5 to 1.5; expected 0 <= x <= 1"),
        (lambda: encode.rate(torch.tensor([math.nan]), 3), r"rate.x: got values from nan"),
        (lambda: encode.latency(torch.tensor([-0.5]), 3), r"latency.x: got values from -0.5"),
        (lambda: encode.latency(torch.tensor([0.5]), 3, tau=0.0), r"latency.tau: got 0.0"),
        (lambda: encode.latency(torch.tensor([0.5]), 3, threshold=1.0), r"latency.threshold: got 1.0"),
        (lambda: encode.delta(torch.zeros(3), 0.1), r"delta.x: got shape \[3\]"),
        (lambda: encode.delta(torch.zeros(3, 1), 0.0), r"delta.threshold: got 0.0"),
        (lambda: encode.spike_count(torch.zeros(3)), r"spike_count: got shape \[3\]"),
        (lambda: encode.max_membrane(torch.zeros(0, 2)), r"max_membrane: got shape \[0, 2\]"),
    ],
)
def test_refusals_name_the_culprit(call, message):
    with pytest.raises(SpikingError, match=message):
        call()
