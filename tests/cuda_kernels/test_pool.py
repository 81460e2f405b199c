"""Pooling and moments in one pass: against torch's own layers, at every instruction set; and the layers that use it."""

import pytest
import torch
from spiking.cuda_kernels import backend
from spiking.cuda_kernels.pool_ops import average_pool, pool_moments
from torch.nn import functional as tf
from torch.testing import assert_close

import spiking

module = backend.compiled()


@pytest.mark.parametrize("shape", [(3, 5, 9, 11), (2, 3, 30, 30), (1, 1, 2, 2), (4, 2, 16, 47)])
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pool_and_moments_equal_torch(level, shape, window, dtype):
    if min(shape[2:]) < window:
        return
    g = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=g, dtype=dtype).requires_grad_()
    pooled, moments = pool_moments(x, window)
    wide = x.double()
    expected = tf.avg_pool2d(wide, window), torch.stack([wide.sum((0, 2, 3)), (wide**2).sum((0, 2, 3))])
    tight = 1e-12 if dtype == torch.float64 else 1e-6
    assert (pooled - expected[0]).abs().max() <= tight * expected[0].abs().max().clamp(min=1)
    assert (moments - expected[1]).abs().max() <= tight * expected[1].abs().max()
    weights = [torch.randn(t.shape, generator=g, dtype=t.dtype) for t in (pooled, moments)]
    got = torch.autograd.grad([pooled, moments], x, weights)[0]
    wanted = torch.autograd.grad(list(expected), x, [w.double() for w in weights])[0]
    assert (got - wanted).abs().max() <= tight * wanted.abs().max()


@pytest.mark.parametrize("shape", [(3, 5, 9, 11), (2, 3, 30, 30), (1, 1, 2, 2), (64, 8, 16, 14)])
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_averages_equal_torch(level, shape, window, dtype):
    if min(shape[2:]) < window:
        return
    g = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=g, dtype=dtype).requires_grad_()
    pooled, expected = average_pool(x, window), tf.avg_pool2d(x, window)
    weights = torch.randn(pooled.shape, generator=g, dtype=dtype)
    got, wanted = (torch.autograd.grad(y, x, weights)[0] for y in (pooled, expected))
    slack = 0 if window < 3 else 1e-15 if dtype == torch.float64 else 5e-7  # a ninth is no binary fraction
    assert_close(pooled, expected, rtol=0, atol=slack)
    assert_close(got, wanted, rtol=0, atol=slack)


@pytest.mark.parametrize(
    "layer",
    [spiking.AvgPool2d(2), spiking.AvgPool2d(2, 1), spiking.AvgPool2d(2, padding=1), spiking.AvgPool2d((2, 4))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pooling_layer_equals_torch(layer, dtype):
    x = torch.randn(3, 2, 4, 10, 12, generator=torch.Generator().manual_seed(4)).to(dtype)
    plain = torch.nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding)
    for given in (x, x.transpose(3, 4), x[0]):
        images = given.flatten(0, -4)
        assert torch.equal(layer(given).flatten(0, -4), plain(images))


def test_an_image_smaller_than_the_window_is_refused():
    with pytest.raises(RuntimeError, match="Output size is too small"):
        spiking.AvgPool2d(2)(torch.zeros(1, 1, 1, 1, 1))


def test_gradcheck_and_opcheck():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: average_pool(t, 2), x)
    assert torch.autograd.gradgradcheck(lambda t: average_pool(t, 2), x)
    torch.library.opcheck(torch.ops.spiking.average_pool.default, (x, 2))
    torch.library.opcheck(
        torch.ops.spiking.average_pool_backward.default, (torch.ones(2, 3, 2, 2, dtype=torch.float64), 5, 4, 2)
    )


def test_moments_gradcheck_and_opcheck():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: pool_moments(t, 2), x)
    torch.library.opcheck(torch.ops.spiking.pool_moments.default, (x, 2))
    gradients = (torch.ones(2, 3, 2, 2, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64))
    torch.library.opcheck(torch.ops.spiking.pool_moments_backward.default, (*gradients, x.detach(), 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("window", [2, 3])
def test_a_sequence_of_norm_and_pool_trains_as_the_two_layers_do(dtype, window):
    def net():
        torch.manual_seed(0)
        return spiking.Sequential(
            spiking.Conv2d(2, 5, 3, bias=False),
            spiking.BatchNorm2d(5),
            spiking.AvgPool2d(window),
            spiking.LIF(beta=0.5),
        ).to(dtype)

    ours, apart = net(), net()
    x = torch.rand(4, 3, 2, 13, 12, generator=torch.Generator().manual_seed(2), dtype=dtype)
    weights = torch.rand(
        4, 3, 5, *(s // window for s in (11, 10)), generator=torch.Generator().manual_seed(3), dtype=dtype
    )
    (ours(x) * weights).sum().backward()
    y = x
    for layer in apart:
        y = layer(y)
    (y * weights).sum().backward()
    tight = 1e-12 if dtype == torch.float64 else 2e-5
    for (name, p), q in zip(ours.named_parameters(), apart.parameters()):
        assert_close(p.grad, q.grad, rtol=tight, atol=tight * q.grad.abs().max().item(), msg=name)
    for name, buffer in ours.named_buffers():
        assert_close(buffer, apart.get_buffer(name), rtol=1e-6, atol=1e-7)


def test_a_watched_layer_runs_by_itself_and_evaluation_too():
    torch.manual_seed(0)
    net = spiking.Sequential(spiking.BatchNorm2d(3), spiking.AvgPool2d(2))
    x = torch.rand(2, 2, 3, 6, 6)
    seen = []
    handle = net[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    watched = net(x)
    handle.remove()
    assert seen == [x.shape]
    assert_close(net(x), watched)
    net.eval()
    assert torch.equal(net(x), net[1](net[0](x)))


def test_training_compiles_whole():
    torch.manual_seed(0)
    torch.compiler.reset()
    net = spiking.Sequential(spiking.BatchNorm2d(3), spiking.AvgPool2d(2), spiking.LIF())
    x = torch.rand(2, 2, 3, 6, 6)
    assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(x), net(x), rtol=0, atol=0)
