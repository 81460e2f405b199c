"""The kernels of graded spikes against the oracle: forward, adjoint, odd sizes, all dtypes, and the same bits at every level."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from graded_cases import RULES, case, run_op, run_oracle
from spiking.cuda_kernels import backend

from spiking import MultiLevelLIF, SpikingError

needs_kernels = pytest.mark.skipif(backend.compiled() is None, reason="the CPU kernels were not built")
SHAPES = [(1, 1, 1), (5, 2, 3, 4), (7, 3, 5, 1100), (4, 0, 3)]


@needs_kernels
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("cells", ["one", "channels"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("spacing", "levels"), RULES)
def test_spikes_and_gradients_are_the_oracles(spacing, levels, shape, cells, with_state):
    x, state, params, grads = case(shape, torch.float64, cells, with_state)
    inner = x[0, 0].numel() // params.shape[1] if x.shape[1] and params.shape[1] > 1 else 1
    found = []
    for run, extra in ((run_op, (inner,)), (run_oracle, ())):
        leaves = [t.clone().requires_grad_() for t in (x, state, params) if t is not None]
        given = iter(leaves)
        outputs = run(next(given), None if state is None else next(given), next(given), spacing, levels, 0.1, *extra)
        found.append((*outputs, *torch.autograd.grad(outputs, leaves, grads, allow_unused=True)))
    for ours, oracle in zip(*found):
        oracle = torch.zeros_like(ours) if oracle is None else oracle
        torch.testing.assert_close(ours, oracle, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("spacing", "levels"), RULES)
def test_other_dtypes_send_the_oracles_spikes(spacing, levels, dtype):
    x, state, params, grads = case((9, 3, 70), dtype, "one", True)
    leaf = x.clone().requires_grad_()
    s, last = run_op(leaf, state, params, spacing, levels, 0.0, 1)
    oracle, v = run_oracle(x, state, params, spacing, levels, 0.0)
    assert s.dtype == dtype
    torch.testing.assert_close(s, oracle, rtol=0, atol=0)
    torch.testing.assert_close(last, v, rtol=0, atol=1e-5)
    exact = x.double().requires_grad_()
    outputs = run_oracle(exact, state.double(), params.double(), spacing, levels, 0.0)
    (expected,) = torch.autograd.grad(outputs, exact, [g.double() for g in grads])
    (found,) = torch.autograd.grad((s, last), leaf, grads)
    most = {torch.float32: 1e-4, torch.bfloat16: 2**-7, torch.float16: 2**-9}[dtype]
    near = (found.double() - expected).abs() <= most * expected.abs().max()
    assert near.double().mean() > 0.99  # a membrane at an edge may lie on its other side in float64


@needs_kernels
@pytest.mark.parametrize(("spacing", "levels"), RULES)
def test_nan_stays_nan(spacing, levels):
    x = torch.tensor([1.5, float("nan"), 0.2]).reshape(1, 1, 3)
    s, last = run_op(x, None, torch.ones(3, 1), spacing, levels, 0.0, 1)
    assert s.isnan().tolist() == [[[False, True, False]]]
    assert last.isnan().tolist() == [[False, True, False]]


@needs_kernels
def test_the_operator_is_registered_right():
    x, state, params, _ = case((3, 2, 4), torch.float64, "channels", True)
    leaves = [t.requires_grad_() for t in (x, state, params)]
    torch.library.opcheck(torch.ops.spiking.graded.default, (*leaves, 1, [1, 3], [0.9, 1.0, 0.0], True))


@needs_kernels
def test_every_level_gives_the_same_bits():
    code = (
        "import torch, hashlib; from spiking import MultiLevelLIF; torch.manual_seed(0);"
        "x = torch.randn(6, 3, 1100, requires_grad=True); h = hashlib.sha256()\n"
        "for spacing in ('linear', 'octave'):\n"
        "    s = MultiLevelLIF(4, spacing, beta=0.9)(x); s.square().sum().backward()\n"
        "    h.update(s.detach().numpy().tobytes()); h.update(x.grad.numpy().tobytes())\n"
        "print(h.hexdigest())"
    )
    found = set()
    for level in backend.compiled().levels():
        environment = {**os.environ, "SPIKING_LEVEL": level}
        run = subprocess.run([sys.executable, "-P", "-c", code], env=environment, stdout=subprocess.PIPE, check=True)
        found.add(run.stdout)
    assert len(found) == 1
    assert len(found.pop().strip()) == hashlib.sha256().digest_size * 2


@pytest.mark.parametrize("cells", ["one", "channels"])
def test_without_kernels_the_oracle_runs_and_learns(monkeypatch, cells):
    layer = MultiLevelLIF(4, threshold=torch.tensor([0.5, 0.7, 1.0]) if cells == "channels" else 0.5)
    x = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = layer(x)
    (grad,) = torch.autograd.grad(expected.square().sum(), x)
    monkeypatch.setattr(backend, "choose", lambda device: backend.Choice("reference"))
    found = layer(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], grad)
    compiled = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=0, atol=0)
    with pytest.raises(SpikingError, match="Train it uncompiled"):
        compiled(x).sum().backward()
