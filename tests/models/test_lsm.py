"""Liquid state machines: the published reservoir number by number, weights, features, arrays, readouts, diagnosis."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from spiking.hw_models import ArrayConfig
from torch.testing import assert_close

from spiking.errors import SpikingError
from spiking.models.lsm import (
    LinearReadout,
    LiquidStateMachine,
    LiquidWarning,
    Weights,
    diagnose,
    memory_capacity,
    separation,
    spectral_radius,
)


def unpacked(data, name, shape):
    return torch.from_numpy(np.unpackbits(data[name])[: np.prod(shape)].reshape(shape))


@pytest.fixture(params=["lsm_small", "lsm_nmnist", "lsm_ntidigits", "lsm_bias"])
def published(request, golden):
    """Arrays of a published run, its input [T, B, I] and its spikes [T, B, N]."""
    data = np.load(golden / "lsm" / f"{request.param}.npz")
    shape = tuple(data["x_shape"])
    n = len(data["dG_rec_uS"])
    return data, unpacked(data, "x", shape), unpacked(data, "spikes", (*shape[:2], n))


def reservoir(data, dtype):
    const = float(data["const"])
    w_in, w_rec = (const * torch.from_numpy(data[k].astype(np.float64)) for k in ("dG_in_uS", "dG_rec_uS"))
    bias = None
    if "b_in" in data:
        bias = torch.from_numpy(data["b_in"].astype(np.float64) + data["b_rec"]).to(dtype)
    n, inputs = w_in.shape
    return LiquidStateMachine(
        inputs, n, beta=float(data["decay"]), threshold=float(data["vth"]), const=const,
        weights=Weights(w_in.to(dtype), w_rec.to(dtype), bias),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_published_run_spike_by_spike(level, published, dtype):
    data, x, spikes = published
    found = reservoir(data, dtype).run(x.to(dtype), keep_spikes=True, keep_membrane=True)
    assert torch.equal(found.spikes, spikes.to(dtype))
    assert_close(found.features[0].float(), torch.from_numpy(data["feature"]), rtol=1e-6, atol=0)
    kept = {"mem": slice(None), "mem_last": -1, "mem_mid": len(x) // 2}
    for name, at in kept.items():
        if name in data:
            expected = torch.from_numpy(data[name]).double()
            # Stored in float32; a float32 run sums up to the drift that the golden file states.
            assert_close(
                found.membrane[at].double(), expected, rtol=1e-5, atol=1e-5 if dtype == torch.float64 else 5e-5
            )


def test_a_membrane_at_the_threshold_does_not_fire(level, golden):
    data = np.load(golden / "lsm" / "lsm_tie.npz")
    w_in, w_rec = (torch.from_numpy(data[k]).double() for k in ("W_in", "W_rec"))
    n, inputs = w_in.shape
    lsm = LiquidStateMachine(
        inputs, n, beta=float(data["decay"]), threshold=float(data["vth"]), weights=Weights(w_in, w_rec)
    )
    found = lsm.run(torch.from_numpy(data["x"]).double(), keep_spikes=True, keep_membrane=True)
    assert torch.equal(found.membrane, torch.from_numpy(data["mem"]).double())
    assert torch.equal(found.spikes, torch.from_numpy(data["spikes"]).double())
    assert int((found.membrane == float(data["vth"])).sum()) == 2


def events(T, B, inputs, density=0.1, seed=0):
    return (torch.rand(T, B, inputs, generator=torch.Generator().manual_seed(seed)) < density).float()


# Weights


def test_weights_have_the_moments_of_the_chip():
    for device in ("gaussian", "rram-40nm"):
        lsm = LiquidStateMachine(256, 400, const=0.07, device=device)
        for weight, std in ((lsm.w_in, 6.61329), (lsm.w_rec, 6.67268 if device == "gaussian" else 6.61329)):
            n = weight.numel()
            assert abs(weight.double().mean()) < 4 * 0.07 * std / n**0.5 + 0.07 * 0.01
            assert abs(weight.double().std() / (0.07 * std) - 1) < 4 / (2 * n) ** 0.5 + 1e-3


def test_unformed_pairs_are_absent_and_the_variance_follows():
    lsm = LiquidStateMachine(8, 600, const=1.0, sparsity=0.49)
    p = 1 - 0.7
    absent = float((lsm.w_rec == 0).double().mean())
    assert abs(absent - 0.49) < 4 * (0.49 * 0.51) ** 0.5 / 600
    variance = 2 * p * (4.676**2 + (1 - p) * 50.0**2)
    # Unformed cells conduct 0.1 µS instead of nothing, which shifts the mean of a formed one against them.
    assert abs(float(lsm.w_rec.double().var()) / variance - 1) < 0.02
    assert float(lsm.w_in.eq(0).double().mean()) == 0


def test_another_seed_is_another_reservoir_and_the_same_is_the_same():
    a, b, c = (LiquidStateMachine(5, 9, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.w_rec, b.w_rec)
    assert not torch.equal(a.w_rec, c.w_rec)


def test_measured_conductances_are_weights():
    g = torch.Generator().manual_seed(0)
    plus, minus = (torch.rand(4, 3, generator=g, dtype=torch.float64) * 1e-4 for _ in range(2))
    lsm = LiquidStateMachine.from_conductance((plus, minus), const=0.1)
    assert_close(lsm.w_in, (0.1 * 1e6 * (plus - minus)).float())
    assert lsm.w_rec is None


# Features


def test_features_are_sums_over_parts_and_filtered_traces():
    x = events(23, 4, 12, 0.3)
    options = {"const": 0.3, "device": "gaussian"}
    spikes = LiquidStateMachine(12, 30, **options).spikes(x).double()
    parts = torch.arange(23) * 3 // 23
    counted = LiquidStateMachine(12, 30, time_bins=3, **options).features(x).reshape(4, 3, 30)
    traced = (
        LiquidStateMachine(12, 30, time_bins=3, features="traces", trace_beta=0.7, **options)
        .features(x)
        .reshape(4, 3, 30)
    )
    trace = torch.zeros(4, 30, dtype=torch.float64)
    for t in range(23):
        trace = 0.7 * trace + spikes[t]
        if t == 22 or parts[t + 1] != parts[t]:
            assert_close(traced[:, parts[t]].double(), trace, rtol=1e-5, atol=1e-6)
    for k in range(3):
        assert_close(counted[:, k].double(), spikes[parts == k].sum(0) * 3 / 23, rtol=1e-6, atol=0)


def test_the_window_divides_and_not_the_length():
    x = events(10, 2, 12, 0.3)
    lsm = LiquidStateMachine(12, 30, const=0.3, window=40, time_bins=4)
    found = lsm.features(x).reshape(2, 4, 30)
    assert_close(found[:, 0], lsm.spikes(x).sum(0) * 4 / 40)
    assert not found[:, 1:].any()


def test_steps_chunks_and_the_whole_are_one():
    x = events(12, 3, 10, 0.4)
    lsm = LiquidStateMachine(10, 40, const=0.3, sparsity=0.9)
    whole, state = lsm.spikes(x), None
    for t in range(12):
        s, state = lsm.step(x[t], state)
        assert torch.equal(s, whole[t])
    head, state = lsm.spikes(x[:5], return_state=True)
    assert torch.equal(torch.cat([head, lsm.spikes(x[5:], state)]), whole)


def test_copies_and_saved_weights_run_the_same():
    x = events(12, 3, 10, 0.4)
    lsm = LiquidStateMachine(10, 40, const=0.3)
    features = lsm.features(x)
    other = LiquidStateMachine(10, 40, const=0.3, seed=5)
    assert not torch.equal(other.features(x), features)
    other.load_state_dict(lsm.state_dict())
    for again in (copy.deepcopy(lsm), pickle.loads(pickle.dumps(lsm)), other):
        assert torch.equal(again.features(x), features)
    assert not list(lsm.parameters())


# Arrays


def test_ideal_arrays_change_nothing():
    x = events(15, 3, 20, 0.3)
    plain = LiquidStateMachine(20, 50, const=0.3, device="gaussian")
    on_arrays = LiquidStateMachine(20, 50, const=0.3, device="gaussian", crossbar="ideal")
    assert torch.equal(on_arrays.spikes(x), plain.spikes(x))


def test_noisy_reads_move_membranes_by_what_the_cell_says():
    x = events(1, 2000, 20, 0.3)[:, :1].expand(1, 2000, 20).contiguous()
    lsm = LiquidStateMachine(20, 50, const=0.3, crossbar="rram-40nm")
    found = lsm.run(x, keep_membrane=True).membrane[0]
    expected = (x[0, 0] ** 2 @ lsm.in_array.variance.T).sqrt()
    assert_close(found.std(0), expected, rtol=0.1, atol=1e-6)
    assert_close(found.mean(0), x[0, 0] @ lsm.in_array.matrix.T, rtol=0, atol=float(4 * expected.max() / 2000**0.5))


def test_a_noiseless_read_of_a_chip_runs_its_matrix():
    x = events(15, 3, 20, 0.3)
    lsm = LiquidStateMachine(20, 50, const=0.3, crossbar="rram-40nm", arrays=ArrayConfig(read="none"))
    same = LiquidStateMachine(20, 50, weights=Weights(lsm.in_array.matrix, lsm.rec_array.matrix))
    assert torch.equal(lsm.spikes(x), same.spikes(x))
    other = LiquidStateMachine(20, 50, weights=Weights(lsm.w_in, lsm.w_rec))
    assert not torch.equal(lsm.run(x, keep_membrane=True).membrane, other.run(x, keep_membrane=True).membrane)


# Readouts


def clouds(n=120, f=30, classes=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    return torch.randn(classes, f, generator=g)[y] + 0.7 * torch.randn(n, f, generator=g), y


@pytest.mark.parametrize("kind", ["ridge", "logistic", "linear"])
@pytest.mark.parametrize("classes", [2, 3])
def test_readouts_learn_what_can_be_learnt(kind, classes):
    x, y = clouds(classes=classes)
    layer = LinearReadout(30, classes)
    times = 40 if kind == "linear" else 1  # the published recipe makes small steps: one per 100 samples and epoch
    fit = layer.fit(x[:80].repeat(times, 1), y[:80].repeat(times), kind)
    assert float((layer(x[80:]).argmax(1) == y[80:]).float().mean()) > 0.9
    assert np.isnan(fit.accuracy) if kind == "linear" else fit.accuracy > 0.9


@pytest.mark.parametrize("f", [10, 200])
def test_ridge_equals_scikit_learn(f):
    from sklearn.linear_model import Ridge

    x, y = clouds(f=f)
    layer = LinearReadout(f, 3).double()
    fit = layer.fit(x.double(), y)
    z = ((x.double() - x.double().mean(0)) / x.double().std(0, correction=0)).numpy()
    model = Ridge(alpha=fit.strength * len(y)).fit(z, np.eye(3)[y.numpy()])
    assert_close(layer.weight.numpy(), model.coef_, rtol=1e-8, atol=1e-10)
    assert_close(layer.bias.numpy(), model.intercept_, rtol=1e-8, atol=1e-10)


def test_features_that_never_vary_do_no_harm():
    x, y = clouds()
    x[:, 3] = 5.0
    layer = LinearReadout(30, 3)
    layer.fit(x, y)
    assert bool(torch.isfinite(layer(x)).all())


# Diagnosis


def test_diagnosis_sees_rates_and_warns_of_dead_ones():
    x = events(30, 5, 20, 0.3)
    fine = diagnose(LiquidStateMachine(20, 60, const=0.3), x, torch.arange(5) % 2)
    assert 1e-3 < fine.firing_rate < 0.5
    assert fine.separation > 0
    with pytest.warns(LiquidWarning, match=r"nearly silent .* Raise const"):
        silent = diagnose(LiquidStateMachine(20, 60, const=1e-4), x)
    assert silent.silent == 1
    bias = torch.full((60,), 9.0)
    full = LiquidStateMachine(20, 60, weights=Weights(torch.zeros(60, 20), None, bias))
    with pytest.warns(LiquidWarning, match="saturated"):
        assert diagnose(full, x).saturated == 1


def test_the_spectral_radius_is_that_of_a_rotation():
    turn = 4.0 * torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    lsm = LiquidStateMachine(1, 2, threshold=8.0, weights=Weights(torch.zeros(2, 1), turn))
    assert spectral_radius(lsm) == pytest.approx(0.5, rel=1e-6)
    assert spectral_radius(LiquidStateMachine(1, 2, recurrent=False)) == 0


def test_separation_grows_with_distance():
    x, y = clouds()
    assert separation(3 * x, y) > separation(x, y) > 0
    with pytest.raises(SpikingError, match=r"separation: got labels of shape \[2\]"):
        separation(x, y[:2])


def test_a_chain_of_ten_neurons_remembers_nine_steps_beside_the_latest():
    w_in = torch.tensor([[2.0]] + 9 * [[0.0]])
    chain = LiquidStateMachine(
        1, 10, beta=0.0, threshold=1.0, trace_beta=0.0, weights=Weights(w_in, 2 * torch.eye(10).roll(1, 0).tril())
    )
    found = memory_capacity(chain, steps=1000, delays=15, rate=0.5)
    assert 8.9 < found < 9.3  # and 6 correlations of nothing, each about 1/500 squared
    silent = memory_capacity(LiquidStateMachine(32, 100, const=1e-5), steps=800, delays=10)
    assert silent < 1e-20
    with pytest.raises(SpikingError, match="memory_capacity: got 10 steps and 30 delays"):
        memory_capacity(LiquidStateMachine(4, 5), steps=10)


# Bad input

WRONG = [
    ({"in_features": 0}, r"LiquidStateMachine\.in_features: got 0"),
    ({"n": 2.5}, r"LiquidStateMachine\.n: got 2\.5"),
    ({"beta": 20.0}, r"LiquidStateMachine\.beta: got 20\.0"),
    ({"threshold": -1.0}, r"LiquidStateMachine\.threshold: got -1\.0"),
    ({"const": float("nan")}, r"LiquidStateMachine\.const: got nan"),
    ({"sparsity": 1.0}, r"LiquidStateMachine\.sparsity: got 1\.0"),
    ({"features": "rates"}, r"LiquidStateMachine\.features: got 'rates'"),
    ({"window": 0}, r"LiquidStateMachine\.window: got 0"),
    ({"device": "pcm"}, r"LiquidStateMachine\.device: got pcm, a cell without statistics of forming"),
    ({"weights": Weights(torch.zeros(3, 3), None)}, r"weights: got w_in torch.float32 of shape \[3, 3\]"),
    ({"weights": Weights(torch.full((200, 4), torch.inf), None)}, "weights: got values in w_in that are not finite"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")
def test_bad_arguments_are_named(options, message):
    with pytest.raises(SpikingError, match=message):
        LiquidStateMachine(**{"in_features": 4, **options})


def test_bad_input_is_named():
    lsm = LiquidStateMachine(4, 8, window=5)
    for x, message in (
        (torch.zeros(3, 4), "got input of shape [3, 4]; expected [T, B, 4]"),
        (torch.zeros(3, 1, 5), "got input of shape [3, 1, 5]"),
        (torch.zeros(6, 1, 4), "got 6 steps; expected at most window=5"),
        (torch.full((3, 1, 4), torch.nan), "got input that is not finite"),
    ):
        with pytest.raises(SpikingError, match=re.escape(message)):
            lsm.features(x)
    with pytest.raises(SpikingError, match="LinearReadout: got features before any fit"):
        lsm(torch.zeros(3, 1, 4))
    with pytest.raises(SpikingError, match=r"LinearReadout: got features of shape \[3, 4\]"):
        lsm.fit(torch.zeros(3, 4), [0, 1, 2])


def test_bad_labels_are_named():
    layer, x = LinearReadout(2, 3), torch.randn(6, 2)
    for labels, message in (
        ([0, 1, 2], "got labels of shape [3] with 0 to 2; expected 6 of 0 to 2"),
        ([0, 1, 2, 0, 1, 3], "got labels of shape [6] with 0 to 3"),
        ([0, 1, 0, 1, 0, 1], "got no sample of class 2"),
    ):
        with pytest.raises(SpikingError, match=re.escape(message)):
            layer.fit(x, labels)
    with pytest.raises(SpikingError, match="got 'forest'; expected one of ridge, logistic, linear"):
        layer.fit(x, [0, 1, 2, 0, 1, 2], "forest")


def test_bad_conductances_are_named():
    G = torch.full((4, 3), 1e-5)
    with pytest.raises(SpikingError, match=r"from_conductance\.G_in: got shapes \[4, 3\] and \[3, 4\]"):
        LiquidStateMachine.from_conductance((G, G.T))
    with pytest.raises(SpikingError, match=r"from_conductance\.G_rec: got conductances that are negative"):
        LiquidStateMachine.from_conductance((G, G), (-torch.ones(4, 4), torch.ones(4, 4)))
