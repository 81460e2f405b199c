"""Dense products by oneDNN, where it is the wider one: torch's values, gradients and second derivatives."""

from __future__ import annotations

import pytest
import torch
from spiking.cuda_kernels import backend, dense
from torch.nn import functional as tf

SIZES = (40, 200, 150)  # rows, inputs, outputs: enough products for oneDNN


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    """As on a processor on which it is."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(dense, "_onednn", lambda: torch.ops.mkldnn._linear_pointwise)


def tensors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, inputs, outputs = SIZES
    generator = torch.Generator().manual_seed(seed)
    shapes = (rows, inputs), (outputs, inputs), (outputs,)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def test_onednn_is_asked_for_large_products_of_single_precision_only():
    x, weight, _ = tensors()
    assert dense.is_wider(x, weight)
    assert not dense.is_wider(x[:3], weight)
    assert not dense.is_wider(x.double(), weight.double())
    assert not dense.is_wider(x[:, :10], weight[:, :10])


def test_it_is_taken_on_wide_processors_of_amd_only(monkeypatch):
    monkeypatch.undo()
    dense._onednn.cache_clear()
    monkeypatch.setattr(backend, "is_wide_amd", lambda: False)
    assert dense._onednn() is None
    dense._onednn.cache_clear()


@pytest.mark.parametrize("with_bias", [False, True])
def test_products_are_torchs_within_rounding(with_bias):
    x, weight, bias = tensors()
    bias = bias if with_bias else None
    exact = tf.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(dense.linear(x, weight, bias).double(), exact, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        dense.linear(x.view(4, 10, -1), weight, bias).flatten(0, 1).double(), exact, rtol=1e-5, atol=1e-4
    )
    torch.testing.assert_close(
        dense.product(weight, x.t()).double(), weight.double() @ x.t().double(), rtol=1e-5, atol=1e-4
    )


def test_gradients_are_torchs_within_rounding():
    x, weight, bias = (t.requires_grad_() for t in tensors())
    grad = torch.randn(4, 10, SIZES[2])
    found = torch.autograd.grad(dense.learnable(x.view(4, 10, -1), weight, bias), (x, weight, bias), grad)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = torch.autograd.grad(tf.linear(exact[0].view(4, 10, -1), *exact[1:]), exact, grad.double())
    for a, b in zip(found, expected):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4)


def test_what_does_not_learn_gets_no_gradient():
    x, weight, _ = tensors()
    weight.requires_grad_()
    y = dense.learnable(x, weight, None)
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), weight)[0], x.sum(0).expand_as(weight), rtol=1e-5, atol=1e-4
    )


def test_second_derivatives_are_torchs_within_rounding():
    found = []
    for linear, dtype in ((dense.learnable, torch.float32), (tf.linear, torch.float64)):
        x, weight, bias = (t.to(dtype).requires_grad_() for t in tensors())
        (grad,) = torch.autograd.grad(linear(x, weight, bias).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), weight)[0].double())
    torch.testing.assert_close(*found, rtol=0, atol=1e-5 * found[1].abs().max().item())


def test_forward_mode_derivatives_are_torchs():
    x, weight, _ = tensors()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(dense.learnable(dual, weight, None)).tangent
    torch.testing.assert_close(tangent[0], weight.sum(1), rtol=1e-4, atol=1e-4)
