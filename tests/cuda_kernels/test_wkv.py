"""WKV: golden numbers, the kernel against its oracle at every instruction set, laws, and sequences cut anywhere."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.cuda_kernels import backend, ops, reference, wkv_ops
from torch.testing import assert_close

from spiking import SpikingError
from spiking import functional as F

CASES = ("basic", "t1", "odd", "long512", "extreme", "bigkeys")


def case(golden, name, dtype):
    """w, u, k, v (leaves), the gradient of y, and the file; sequences come first in time, as everywhere here."""
    file = np.load(golden / "spikegpt" / f"wkv_{name}.npz")
    decay, u = (torch.tensor(file[n], dtype=dtype).requires_grad_() for n in ("decay", "u"))
    k, v, gy = (torch.tensor(file[n], dtype=dtype).transpose(0, 1).contiguous() for n in ("k", "v", "gy"))
    return decay, u, k.requires_grad_(), v.requires_grad_(), gy, file


def off_by(got, expected):
    """Largest difference over the largest number, as the golden files state their tolerances."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    got = got.detach().double()
    assert torch.isfinite(got).all()
    largest = expected.abs().max().item()
    return (got - expected).abs().max().item() / (largest or 1.0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_outputs_gradients_and_states(level, golden, name, dtype):
    decay, u, k, v, gy, file = case(golden, name, dtype)
    y, state = F.wkv(-torch.exp(decay.clamp(max=80)), u, k, v)
    found = torch.autograd.grad(y, (decay, u, k, v), gy)
    most = 1e-12 if dtype == torch.float64 else 3e-5 if name in ("extreme", "bigkeys") else 1e-5
    assert off_by(y.transpose(0, 1), file["y"]) <= most
    for got, key in zip(found[:2], ("gdecay", "gu")):
        assert off_by(got, file[key]) <= most
    for got, key in zip(found[2:], ("gk", "gv")):
        assert off_by(got.transpose(0, 1), file[key]) <= most
    for row, key in zip(state, ("pT", "qT", "oT")):
        assert off_by(row, file[key]) <= most


@pytest.mark.parametrize("name", ["basic", "odd", "long512", "extreme", "bigkeys"])
def test_golden_state_after_the_first_tokens(golden, name):
    decay, u, k, v, _, file = case(golden, name, torch.float64)
    cut, w = int(file["split"]), -torch.exp(decay)
    first, state = F.wkv(w, u, k[:cut], v[:cut])
    for row, key in zip(state, ("ps", "qs", "os")):
        assert off_by(row, file[key]) <= 1e-12
    rest, _ = F.wkv(w, u, k[cut:], v[cut:], state)
    assert off_by(torch.cat([first, rest]).transpose(0, 1), file["y"]) <= 1e-12


def inputs(steps, batch, channels, dtype=torch.float64, state=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(steps, batch, channels, generator=g, dtype=torch.float64).mul(2).to(dtype) for _ in range(2))
    wide = ops.state_dtype(dtype)
    w = -torch.exp(torch.linspace(-5, 3, channels, dtype=torch.float64)).to(wide)
    u = torch.randn(channels, generator=g, dtype=torch.float64).to(wide)
    p, q, o = torch.randn(3, batch, channels, generator=g, dtype=torch.float64).to(wide)
    return w, u, k, v, torch.stack([p, q.abs() + 1, o]) if state else None


SHAPES = [(1, 1, 1), (7, 3, 5), (16, 2, 33), (17, 1, 64), (33, 2, 70), (50, 1, 257), (0, 2, 3), (4, 0, 3), (3, 2, 0)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_state", [True, False])
def test_the_kernel_equals_the_oracle(level, shape, dtype, with_state):
    w, u, k, v, state = inputs(*shape, dtype, with_state)
    wide = ops.state_dtype(dtype)
    leaves = [t.clone().requires_grad_() for t in (w, u, k, v, *([state] if with_state else []))]
    y, last, _ = wkv_ops.wkv(*leaves[:4], leaves[4] if with_state else None, True)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    start = exact[4] if with_state else wkv_ops._rest(k.double()).requires_grad_()  # no steps: nothing else would learn
    y_ref, last_ref = reference.wkv(*exact[:4], start)
    g = torch.Generator().manual_seed(9)
    grads = [torch.randn(y.shape, generator=g).to(dtype), torch.randn(last.shape, generator=g).to(wide)]
    grads[1][2] = 0
    found = torch.autograd.grad([y, last], leaves, grads, allow_unused=True)
    wanted = torch.autograd.grad([y_ref, last_ref], exact, [t.double() for t in grads], allow_unused=True)
    assert y.dtype == dtype
    assert last.dtype == wide
    own = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    tight = 1e-12 if dtype == torch.float64 else 2e-6
    for got, expected, most in ((y, y_ref, own), (last, last_ref, tight)):
        assert_close(
            got.double(), expected, rtol=most, atol=most * expected.abs().max().item() if expected.numel() else 0
        )
    for got, expected, most in zip(found, wanted, (tight, tight, own, own, tight)):
        expected = torch.zeros_like(got, dtype=torch.float64) if expected is None else expected
        assert_close(
            got.double(), expected, rtol=most, atol=most * (expected.abs().max().item() if expected.numel() else 0)
        )


def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(level):
    w, u, k, v, state = inputs(37, 3, 130, torch.float32)
    leaves = [t.requires_grad_() for t in (w, u, k, v, state)]
    module, threads = backend.compiled(), torch.get_num_threads()

    def run():
        y, last, _ = wkv_ops.wkv(*leaves, True)
        return [y, last, *torch.autograd.grad([y, last], leaves, [torch.ones_like(y), torch.ones_like(last)])]

    here = run()
    if module is not None:
        module.set_level(module.levels()[-1])
    try:
        torch.set_num_threads(3)
        for a, b in zip(here, run()):
            assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


def test_without_kernels_the_oracle_runs(monkeypatch):
    w, u, k, v, state = inputs(20, 2, 5)
    leaves = [t.requires_grad_() for t in (w, u, k, v, state)]
    runs = []
    for name in ("cpu", "reference"):
        monkeypatch.setattr(backend, "choose", lambda device, name=name: backend.Choice(name))
        y, last, _ = wkv_ops.wkv(*leaves, True)
        runs.append(
            [y, last, *torch.autograd.grad([y, last[:2]], leaves, [torch.ones_like(y), torch.ones_like(last[:2])])]
        )
    for a, b in zip(*runs):
        assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradcheck_also_through_the_state():
    w, u, k, v, state = inputs(19, 2, 3)
    p, q, o = (row.clone() for row in state)
    leaves = [t.requires_grad_() for t in (w, u, k, v, p, q)]
    assert torch.autograd.gradcheck(lambda w, u, k, v, p, q: F.wkv(w, u, k, v, (p, q, o))[0], leaves)

    def sums(w, u, k, v, p, q):  # P and Q do not depend on which exponent holds them
        last = F.wkv(w, u, k, v, (p, q, o))[1]
        return last.p * torch.exp(last.o), last.q * torch.exp(last.o)

    assert torch.autograd.gradcheck(sums, leaves)


@pytest.mark.parametrize("with_state", [True, False])
def test_opcheck(with_state):
    w, u, k, v, state = inputs(40, 2, 3, state=with_state)
    leaves = [t if t is None else t.requires_grad_() for t in (w, u, k, v, state)]
    torch.library.opcheck(torch.ops.spiking.wkv.default, (*leaves, True))
    plain = [t if t is None else t.detach() for t in leaves]
    y, last, saved = wkv_ops.wkv(*plain, True)
    torch.library.opcheck(
        torch.ops.spiking.wkv_backward.default, (torch.ones_like(y), torch.ones_like(last), *plain, saved)
    )


def test_it_compiles_whole():
    w, u, k, v, _ = inputs(40, 2, 3)
    k.requires_grad_()

    def loss(k):
        y, state = F.wkv(w, u, k, v)
        return (y * v).sum() + state.p.sum()

    torch.compiler.reset()
    assert torch.equal(
        *(torch.autograd.grad(f(k), k)[0] for f in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")))
    )


@given(
    cuts=st.lists(st.integers(1, 39), max_size=4), seed=st.integers(0, 99), channels=st.sampled_from([1, 3, 16, 40]),
)  # fmt: skip
@settings(deadline=None, max_examples=25)
def test_a_sequence_may_be_cut_anywhere(cuts, seed, channels):
    w, u, k, v, _ = inputs(40, 2, channels, seed=seed)
    leaves = [t.requires_grad_() for t in (w, u, k, v)]
    whole, last = F.wkv(*leaves)
    parts, state = [], None
    edges = sorted({0, 40, *cuts})
    for start, stop in itertools.pairwise(edges):
        y, state = F.wkv(w, u, k[start:stop], v[start:stop], state)
        parts.append(y)
    assert torch.equal(torch.cat(parts), whole)
    for a, b in zip(state, last):
        assert torch.equal(a, b)
    weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(seed), dtype=whole.dtype)
    for a, b in zip(*(torch.autograd.grad(y, leaves, weights) for y in (torch.cat(parts), whole))):
        assert_close(a, b, rtol=1e-12, atol=1e-12 * b.abs().max().item())


@given(
    scale=st.sampled_from([0.1, 1.0, 30.0, 1e4]),
    decay=st.floats(-30, 80),
    bonus=st.floats(-50, 50),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=60)
def test_outputs_are_means_of_the_values_so_far(scale, decay, bonus, seed):
    g = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(24, 1, 18, generator=g) for _ in range(2))
    k = (k * scale).requires_grad_()
    w, u = torch.full((18,), -math.exp(decay)).requires_grad_(), torch.full((18,), bonus)
    y, _ = F.wkv(w, u, k, v)
    room = 1e-5 * v.abs().max()
    assert (y <= v.cummax(0).values + room).all()
    assert (y >= v.cummin(0).values - room).all()
    assert torch.equal(y[0], v[0])
    gw, gk = torch.autograd.grad(y.sum(), (w, k))
    assert torch.isfinite(gk).all()
    assert torch.isfinite(gw * w).all()  # the gradient of the decay's logarithm


def test_a_constant_added_to_all_keys_changes_nothing():
    w, u, k, v, _ = inputs(30, 2, 8)
    assert_close(F.wkv(w, u, k + 3, v)[0], F.wkv(w, u, k, v)[0], rtol=1e-12, atol=1e-12)


def test_a_past_that_decays_at_once_leaves_the_last_two_tokens():
    _, u, k, v, _ = inputs(30, 2, 8)
    y, _ = F.wkv(torch.full((8,), -1e30, dtype=torch.float64), u, k, v)
    share = torch.sigmoid(u + k[1:] - k[:-1])
    assert_close(y[1:], share * v[1:] + (1 - share) * v[:-1], rtol=1e-12, atol=1e-12)


def test_long_sequences_keep_their_precision():
    w, u, k, v, _ = inputs(20000, 1, 8, torch.float32, state=False)
    y, state = F.wkv(w, u, k, v)
    exact, wide = F.wkv(w.double(), u.double(), k.double(), v.double())
    assert_close(y.double(), exact, rtol=0, atol=1e-5 * v.abs().max().item())
    assert_close(state.q.double().log() + state.o.double(), wide.q.log() + wide.o, rtol=1e-5, atol=1e-5)


def test_nan_stays_visible():
    w, u, k, v, _ = inputs(20, 1, 4)
    k[5, 0, 2] = math.nan
    y, _ = F.wkv(w, u, k, v)
    assert y[5:, 0, 2].isnan().all()
    assert torch.isfinite(y[:5]).all()
    assert torch.isfinite(y[:, 0, [0, 1, 3]]).all()


def test_inputs_need_not_be_contiguous_and_half_precision_weights_are_widened():
    w, u, k, v, state = inputs(12, 3, 10, torch.float32)
    expected = F.wkv(w, u, k, v, tuple(state))
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (k, v)]
    assert torch.equal(F.wkv(w, u, *turned, tuple(state))[0], expected[0])
    low = F.wkv(w.bfloat16(), u.bfloat16(), k, v, tuple(state))[0]
    assert torch.equal(low, F.wkv(w.bfloat16().float(), u.bfloat16().float(), k, v, tuple(state))[0])


def test_without_gradients_nothing_is_kept():
    w, u, k, v, _ = inputs(40, 1, 3)
    assert wkv_ops.wkv(w, u, k, v, None, False)[2].numel() == 0
    assert wkv_ops.wkv(w, u, k, v, None, True)[2].shape == (2, 3, 1, 3)
    k.requires_grad_()
    late = torch.autograd.grad(wkv_ops.wkv(w, u, k, v, None, False)[0].sum(), k)[0]  # what was not kept is made again
    assert torch.equal(late, torch.autograd.grad(F.wkv(w, u, k, v)[0].sum(), k)[0])


K = torch.zeros(4, 2, 3)
W = torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.wkv(0.5, W, K, K), r"wkv\.w: got an input of type float; expected a tensor of a floating dtype"),
        (
            lambda: F.wkv(W, W, K.int(), K),
            r"wkv\.k: got torch\.int32 \[4, 2, 3\]; expected a tensor of a floating dtype",
        ),
        (lambda: F.wkv(W, W, K[0], K), r"wkv\.k: got torch\.float32 \[2, 3\]; expected \[T, B, C\] in float32"),
        (
            lambda: F.wkv(W, W, K, K[1:]),
            r"wkv\.v: got torch\.float32 \[3, 2, 3\] on cpu; expected torch\.float32 \[4, 2, 3\]",
        ),
        (lambda: F.wkv(W, W, K, K.double()), r"wkv\.v: got torch\.float64 .* as the keys"),
        (lambda: F.wkv(W[:2], W, K, K), r"wkv\.w: got shape \[2\] on cpu beside keys \[4, 2, 3\]; expected \[3\]"),
        (lambda: F.wkv(W, K, K, K), r"wkv\.u: got shape \[4, 2, 3\] on cpu beside keys \[4, 2, 3\]; expected \[3\]"),
        (lambda: F.wkv(W, W, K, K, K), r"wkv\.state: got Tensor; expected \(p, q, o\) of \[2, 3\] each"),
        (
            lambda: F.wkv(W, W, K, K, (K[0], K[0], W)),
            r"wkv\.state: got \[\[2, 3\], \[2, 3\], \[3\]\]; expected \(p, q, o\)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(SpikingError, match=message):
        call()


def test_the_empty_past_is_the_same_in_python_and_c():
    header = (Path(wkv_ops.__file__).parent / "include" / "wkv.h").read_text()
    assert float(re.search(r"WKV_REST = T\((.+?)\);", header).group(1)) == reference.WKV_REST
