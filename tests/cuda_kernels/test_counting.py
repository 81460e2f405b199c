"""The compiled counting pass against plain torch, at every instruction set of this machine."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.cuda_kernels import backend, counting

module = backend.compiled()
pytestmark = pytest.mark.skipif(module is None, reason="the compiled module was not built")

VALUES = {
    "spikes": (0.0, 0.0, 0.0, 1.0),
    "ternary": (0.0, -1.0, 1.0),
    "quarters": (0.0, 0.25, 0.5, 0.75, 1.0),
    "silent": (0.0,),
}


def _check(x, steps, fan, fan_nonzero):
    found = counting.count(x, steps, fan, fan_nonzero)
    hit = x != 0
    assert np.array_equal(found.nonzero, hit.sum(1).numpy())
    assert np.array_equal(found.per_element, hit.sum(0).numpy())
    assert np.array_equal(found.synops[0], (hit * fan).sum(1).numpy())
    assert np.array_equal(found.synops[1], (hit * (fan if fan_nonzero is None else fan_nonzero)).sum(1).numpy())
    np.testing.assert_allclose(found.magnitude, x.double().abs().sum(1).numpy(), rtol=1e-12)
    assert found.ones == bool(((x == 0) | (x == 1)).all())
    assert found.finite
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", VALUES)
def test_counts_and_levels_of_few_values(level, name, dtype):
    g = torch.Generator().manual_seed(1)
    values = torch.tensor(VALUES[name], dtype=dtype)
    x = values[torch.randint(0, len(values), (12, 5003), generator=g)]
    fan = torch.randint(0, 300, (5003,), generator=g)
    found = _check(x, 4, fan, fan // 2)
    expected = tuple(sorted({abs(v) for v in VALUES[name]} - {0.0}))
    if found.ones:
        assert found.levels is None
    else:
        assert found.levels == [(expected, min(VALUES[name]) < 0)] * 4


@given(
    rows=st.integers(1, 9),
    n=st.sampled_from([1, 7, 16, 33, 2047, 2048, 2049, 70000]),
    density=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=40)
def test_analogue_values_of_any_size(rows, n, density, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, n, generator=g) * (torch.rand(rows, n, generator=g) < density)
    _check(x, 1, torch.randint(0, 50, (n,), generator=g), None)


def test_many_magnitudes_are_no_levels():
    assert counting.count(torch.rand(2, 500), 1).levels == [(None, False)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_found(level, bad):
    x = torch.zeros(3, 4000)
    x[1, 3999] = bad
    assert not counting.count(x, 1).finite


def test_without_values_only_the_counts_are_made():
    x = torch.tensor([[0.0, -2.5, float("nan")]])
    found = counting.count(x, 1, torch.tensor([5, 6, 7]), values=False)
    assert found.nonzero.tolist() == [2]
    assert found.synops.tolist() == [[13], [13]]
    assert found.levels is None


def test_what_it_cannot_count_is_left_to_torch():
    assert counting.count(torch.zeros(0, 5), 1) is None
    assert counting.count(torch.ones(2, 5, dtype=torch.int64), 1) is None
    assert counting.count(torch.ones(1, 2), 1, torch.tensor([1, 1 << 17])) is None
