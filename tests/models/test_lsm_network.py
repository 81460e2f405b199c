"""A reservoir as a network of layers: the same spikes and scores, and every product counted exactly."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import spiking
from spiking import hw_models
from spiking.errors import SpikingError
from spiking.models import LiquidStateMachine
from spiking.models.lsm import ReservoirNetwork, Weights

T, B, INPUTS, N = 12, 7, 20, 30


def events():
    return (torch.rand(T, B, INPUTS, generator=torch.Generator().manual_seed(0)) < 0.2).float()


def machine(**options):
    lsm = LiquidStateMachine(INPUTS, N, out=2, const=0.3, **options)
    x = events()
    lsm.fit(lsm.features(x), torch.arange(B) % 2)
    return lsm, x


def by_hand(lsm, x):
    """Additions of the event-driven machine, one by one: a row of weights for every event and for every spike of the step before."""
    counted = np.zeros((2, B), np.int64)
    spikes = lsm.spikes(x)
    for t in range(T):
        for b in range(B):
            for i in range(INPUTS):
                counted[0, b] += lsm.n if x[t, b, i] != 0 else 0
            for k in range(lsm.n if t and lsm.w_rec is not None else 0):
                counted[1, b] += lsm.n if spikes[t - 1, b, k] != 0 else 0
    return counted


@pytest.mark.parametrize("recurrent", [True, False])
def test_products_are_counted_exactly(recurrent):
    lsm, x = machine(recurrent=recurrent)
    network = ReservoirNetwork(lsm)
    assert_close(network(x), lsm(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(network.spikes(x), lsm.spikes(x))
    with torch.no_grad(), spiking.record(network) as trace:
        network(x)
    rows = {row.name: row for row in trace.layers}
    expected = by_hand(lsm, x)
    assert expected[0].min() > 0
    assert rows["input"].syn_sample.tolist() == expected[0].tolist()
    assert rows["input"].dense * T == T * INPUTS * N
    if recurrent:
        assert expected[1].min() > 0
        assert rows["reservoir.recurrent"].syn_sample.tolist() == expected[1].tolist()
    assert (lsm.run(x).events.T.numpy()[: 1 + recurrent] * N == expected[: 1 + recurrent]).all()


def test_the_trace_is_priced_on_crossbar_and_digital_chips():
    lsm, x = machine()
    network = ReservoirNetwork(lsm)
    with torch.no_grad(), spiking.record(network) as trace:
        network(x)
    for chip in ("rram-crossbar", "digital-45nm"):
        found = hw_models.estimate(trace, chip)
        assert 0 < found.energy.low <= found.energy.nominal <= found.energy.high
        assert found.ann_steps == T  # what its equal network does: the same products densely in every step


def test_what_cannot_be_laid_out_is_named():
    with pytest.raises(SpikingError, match="got a reservoir with 3 bins of counts; expected spike counts of whole"):
        ReservoirNetwork(LiquidStateMachine(4, 5, time_bins=3))
    with pytest.raises(SpikingError, match="got a reservoir on memory cells"):
        ReservoirNetwork(LiquidStateMachine(4, 5, crossbar="ideal"))


def test_a_bias_is_kept():
    draws = torch.Generator().manual_seed(1)
    weights = Weights(torch.randn(5, 4, generator=draws), torch.randn(5, 5, generator=draws), torch.full((5,), 0.4))
    lsm = LiquidStateMachine(4, 5, threshold=1.0, weights=weights)
    x = torch.zeros(10, 2, 4)
    assert lsm.spikes(x).any()
    assert torch.equal(ReservoirNetwork(lsm).spikes(x), lsm.spikes(x))
