"""The reservoir's kernel: against its oracle at every instruction set, dense and sparse, binary and graded, cut anywhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.cuda_kernels import reference
from spiking.cuda_kernels.reservoir_ops import ReservoirWeights, run_reservoir
from torch.testing import assert_close


def case(T, B, inputs, n, *, seed=0, density=0.2, graded=False, dtype=torch.float64, zeros=0.0):
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(T, B, inputs, generator=g) < density).to(dtype)
    if graded:
        x = x * torch.rand(x.shape, generator=g, dtype=dtype)
    w_in = torch.randn(n, inputs, generator=g, dtype=dtype) * 0.5
    w_rec = torch.randn(n, n, generator=g, dtype=dtype) * 0.2
    w_rec = torch.where(torch.rand(n, n, generator=g) < zeros, 0.0, w_rec)
    return x, w_in, w_rec, torch.randn(n, generator=g, dtype=dtype) * 0.05


def run(x, weights, **options):
    T = len(x)
    bins, worth = torch.arange(T) * 3 // max(T, 1), torch.linspace(0.5, 1.5, T, dtype=torch.float64)
    return run_reservoir(
        x, weights, beta=0.8, threshold=0.9, bins=bins, worth=worth, keep_spikes=True, keep_membrane=True, **options
    )


SHAPES = [(7, 3, 5, 1), (12, 2, 70, 63), (9, 40, 16, 64), (6, 1, 3, 65), (5, 4, 130, 200), (1, 2, 4, 17)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("zeros", [0.0, 0.9, 1.0])
def test_spikes_equal_the_oracle(level, shape, graded, zeros):
    x, w_in, w_rec, bias = case(*shape, graded=graded, zeros=zeros)
    found = run(x, ReservoirWeights(w_in, w_rec, bias))
    B, n = shape[1], shape[3]
    rest = x.new_zeros(B, n)
    spikes, membrane = reference.reservoir(x, w_in, w_rec, bias, rest, rest, 0.8, 0.9)
    assert (membrane - 0.9).abs().min() > 1e-9  # else summation order could decide
    assert torch.equal(found.spikes, spikes)
    assert_close(found.membrane, membrane, rtol=1e-12, atol=1e-12)
    worth = torch.linspace(0.5, 1.5, len(x), dtype=torch.float64)
    bins = torch.arange(len(x)) * 3 // len(x)
    for k in range(int(bins[-1]) + 1):
        expected = (spikes * worth[:, None, None])[bins == k].sum(0)
        assert_close(found.features[k], expected, rtol=1e-12, atol=1e-12)
    sent = torch.cat([rest[None], spikes[:-1]])
    assert torch.equal(found.events, torch.stack([x.count_nonzero(dim=(0, 2)), sent.count_nonzero(dim=(0, 2))], 1))


def test_every_level_gives_the_same_bits():
    from spiking.cuda_kernels import backend

    module = backend.compiled()
    if module is None:
        pytest.skip("nothing was compiled")
    found = []
    for name in module.levels():
        module.set_level(name)
        for graded in (False, True):
            x, *weights = case(20, 3, 40, 90, graded=graded, dtype=torch.float32)
            ran = run(x, ReservoirWeights(*weights))
            found.append((graded, ran.membrane, ran.spikes))
    module.set_level(module.levels()[0])
    for graded, membrane, spikes in found:
        first = next(f for f in found if f[0] == graded)
        assert torch.equal(membrane, first[1])
        assert torch.equal(spikes, first[2])


@given(cut=st.integers(1, 10), seed=st.integers(0, 5), zeros=st.sampled_from([0.0, 0.9]))
@settings(deadline=None, max_examples=20)
def test_a_sequence_may_be_cut_anywhere(cut, seed, zeros):
    x, *weights = case(11, 2, 20, 30, seed=seed, dtype=torch.float32, zeros=zeros)
    packed = ReservoirWeights(*weights)
    whole, head = run(x, packed), run(x[:cut], packed)
    tail = run(x[cut:], packed, u=head.u, s=head.s)
    assert torch.equal(torch.cat([head.spikes, tail.spikes]), whole.spikes)
    assert torch.equal(tail.u, whole.u)
    assert torch.equal(head.events + tail.events, whole.events)


def test_threads_do_not_change_anything():
    x, *weights = case(8, 70, 30, 100, dtype=torch.float32)
    packed, before = ReservoirWeights(*weights), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(x, packed))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(f.membrane, found[0].membrane) for f in found)
    assert all(torch.equal(f.features, found[0].features) for f in found)


def test_nothing_in_nothing_out():
    x, *weights = case(0, 2, 4, 5)
    found = run_reservoir(
        x,
        ReservoirWeights(*weights),
        beta=0.5,
        threshold=1.0,
        bins=torch.zeros(0, dtype=torch.int64),
        worth=torch.zeros(0),
    )
    assert found.features.shape == (1, 2, 5)
    assert not found.u.any()


def test_input_is_left_as_it_was_and_may_lie_anyhow():
    x, *weights = case(6, 3, 10, 20)
    u = torch.randn(3, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    kept = u.clone()
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    a, b = run(x, ReservoirWeights(*weights), u=u), run(turned, ReservoirWeights(*weights), u=u)
    assert torch.equal(u, kept)
    assert torch.equal(a.spikes, b.spikes)


@pytest.mark.parametrize("zeros", [0.0, 0.9])
@pytest.mark.parametrize("kept", [False, True])
def test_torch_accepts_the_op(zeros, kept):
    x, w_in, w_rec, bias = case(4, 2, 6, 20, zeros=zeros)
    w = ReservoirWeights(w_in, w_rec, bias)
    given = (
        x, w.w_in, w.packed_in, w.bias, w.w_rec, w.packed_rec, w.offsets, w.receivers, w.values, None, x.new_ones(2, 20),
        torch.tensor([0, 0, 1, 1]), torch.ones(4), 2, 0.8, 0.9, kept, kept,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.spiking.reservoir.default, given)


def test_a_compiled_program_holds_the_op_as_it_is():
    x, w_in, w_rec, bias = case(5, 2, 6, 20)
    w = ReservoirWeights(w_in, w_rec, bias)
    bins, worth = torch.zeros(5, dtype=torch.int64), torch.ones(5)

    def features(x):
        rest = (None, None, bins, worth, 1, 0.8, 0.9, False, False)
        weights = (w.w_in, w.packed_in, w.bias, w.w_rec, w.packed_rec, w.offsets, w.receivers, w.values)
        return torch.ops.spiking.reservoir(x, *weights, *rest)[0] + 1

    assert torch.equal(torch.compile(features, fullgraph=True, backend="eager")(x), features(x))
