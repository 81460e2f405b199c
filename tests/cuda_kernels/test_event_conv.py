"""Event-driven convolution against torch's own, at every instruction set of this machine."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.cuda_kernels import backend, event_conv_ops, event_linear_ops
from torch import nn
from torch.nn import functional as tf

import spiking
from spiking import functional as F
from spiking.errors import SpikingError

module = backend.compiled()
pytestmark = pytest.mark.skipif(module is None, reason="the compiled module was not built")

SHAPES = {
    "tutorial": ((3, 2, 2, 34, 34), (12, 2, 5, 5), {}),
    "padded": ((2, 2, 16, 9, 7), (24, 16, 3, 3), {"padding": 1}),
    "strided": ((1, 3, 8, 11, 10), (20, 8, 3, 3), {"stride": 2, "padding": (1, 0)}),
    "grouped": ((2, 1, 12, 8, 8), (18, 4, 3, 3), {"groups": 3, "padding": 1}),
    "pointwise": ((2, 2, 70, 5, 5), (33, 70, 1, 1), {}),
    "uneven": ((1, 2, 5, 6, 9), (3, 5, 2, 4), {"stride": (1, 2), "padding": (0, 2)}),
}


def _case(name, dtype=torch.float64, density=0.2, graded=False):
    g = torch.Generator().manual_seed(3)
    size, kernel, call = SHAPES[name]
    x = (torch.rand(size, generator=g) < density).to(dtype)
    if graded:
        x *= torch.randint(1, 5, size, generator=g).to(dtype) / 4
    return x, torch.randn(kernel, generator=g, dtype=dtype), torch.randn(kernel[0], generator=g, dtype=dtype), call


def _dense(x, weight, bias, call):
    return tf.conv2d(x.flatten(0, 1), weight, bias, **call).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("graded", [False, True], ids=["spikes", "graded"])
@pytest.mark.parametrize("name", SHAPES)
def test_result_and_gradients_are_those_of_torch(level, name, graded):
    x, weight, bias, call = _case(name, graded=graded)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = F.event_conv2d(*leaves, **call)
    wanted = _dense(*leaves, call)
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    for found, right in zip(
        torch.autograd.grad(y, leaves, grad), torch.autograd.grad(wanted, leaves, grad), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_narrow_dtypes_sum_in_float32(level, dtype, tolerance):
    x, weight, bias, call = _case("padded")
    y = F.event_conv2d(x.to(dtype), weight.to(dtype), bias.to(dtype), **call)
    assert y.dtype == dtype
    exact = _dense(x, weight.to(dtype).double(), bias.to(dtype).double(), call)
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("name", ["tutorial", "grouped"])
def test_silent_and_full_inputs(name, density):
    x, weight, bias, call = _case(name, density=density)
    torch.testing.assert_close(
        F.event_conv2d(x, weight, bias, **call), _dense(x, weight, bias, call), rtol=1e-12, atol=1e-12
    )


@given(
    name=st.sampled_from(sorted(SHAPES)),
    density=st.floats(0, 1),
    layout=st.sampled_from(["contiguous", "channels last", "expanded", "strided", "bool", "int"]),
)
@settings(deadline=None, max_examples=40)
def test_any_memory_order_and_dtype_of_the_input(name, density, layout):
    x, weight, _, call = _case(name, torch.float32, density)
    given_x = {
        "contiguous": x,
        "channels last": x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2]),
        "expanded": x[:1].expand(3, *x.shape[1:]),
        "strided": x.repeat_interleave(2, -1)[..., ::2],
        "bool": x.bool(),
        "int": x.int(),
    }[layout]
    wanted = _dense(given_x.float(), weight, None, call)
    found = F.event_conv2d(given_x, weight, **call)
    assert found.dtype == weight.dtype
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * (float(wanted.abs().max()) + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["tutorial", "padded"])
def test_any_memory_order_of_the_weight(name, dtype):
    x, weight, bias, call = _case(name, dtype)
    for other in (
        weight.to(memory_format=torch.channels_last),
        weight.flatten(1).T.contiguous().T.reshape(weight.shape),
    ):
        assert not other.is_contiguous()
        leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, other, bias)]
        plain = [t.clone().contiguous().requires_grad_() for t in (x, weight, bias)]
        y, wanted = F.event_conv2d(*leaves, **call), F.event_conv2d(*plain, **call)
        assert torch.equal(y, wanted)
        grad = torch.ones_like(y)
        for found, right in zip(
            torch.autograd.grad(y, leaves, grad), torch.autograd.grad(wanted, plain, grad), strict=True
        ):
            torch.testing.assert_close(found, right)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_passes_through_as_in_torch(bad):
    x, weight, bias, call = _case("padded")
    x[0, 0, 3, 2, 2] = bad
    torch.testing.assert_close(F.event_conv2d(x, weight, bias, **call), _dense(x, weight, bias, call), equal_nan=True)
    x[0, 0, 3, 2, 2] = 1
    weight[0, 0, 0, 0] = bad
    torch.testing.assert_close(F.event_conv2d(x, weight, bias, **call), _dense(x, weight, bias, call), equal_nan=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("graded", [False, True], ids=["spikes", "graded"])
@pytest.mark.parametrize("name", ["padded", "strided", "grouped"])
def test_gradients_that_are_not_finite_pass_through_as_in_torch(name, graded, bad):
    x, weight, bias, call = _case(name, graded=graded)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = F.event_conv2d(*leaves, **call)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    grad[0, 0, 1, 0, 0] = grad[-1, -1, 2, -1, 2] = bad
    wanted = torch.autograd.grad(_dense(*leaves, call), leaves, grad)
    for found, right in zip(torch.autograd.grad(y, leaves, grad), wanted, strict=True):
        torch.testing.assert_close(found, right, equal_nan=True, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["input", "weight", "gradient"])
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("pool", [spiking.MaxPool2d, spiking.AvgPool2d])
def test_training_with_what_is_not_finite_is_that_of_torch(pool, norm, where, bad):
    g = torch.Generator().manual_seed(0)
    x = (torch.rand(2, 2, 3, 8, 8, generator=g) < 0.3).float()
    conv, norms = spiking.Conv2d(3, 4, 3, padding=1, bias=False), [spiking.BatchNorm2d(4)] * norm
    plain = [nn.Conv2d(3, 4, 3, padding=1, bias=False), *[nn.BatchNorm2d(4)] * norm, pool.__base__(2)]
    if where == "input":
        x[0, 0, 1, 3, 3] = bad
    if where == "weight":
        with torch.no_grad():
            conv.weight[1, 2, 0, 0] = bad
    plain[0].load_state_dict(conv.state_dict())
    y, wanted = spiking.Sequential(conv, *norms, pool(2))(x), nn.Sequential(*plain)(x.flatten(0, 1))
    grad = torch.randn(wanted.shape, generator=g)
    if where == "gradient":
        grad[0, 1, 0, 0] = bad
    y.flatten(0, 1).backward(grad)
    wanted.backward(grad)
    torch.testing.assert_close(y.flatten(0, 1), wanted, equal_nan=True, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(conv.weight.grad, plain[0].weight.grad, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_threads_levels_and_batch_change_no_bit():
    x, weight, bias, call = _case("tutorial", torch.float32)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name in module.levels():
            module.set_level(name)
            results.append(F.event_conv2d(x, weight, bias, **call))
    module.set_level(module.levels()[0])
    torch.set_num_threads(before)
    results.append(torch.cat([F.event_conv2d(x[:, b : b + 1], weight, bias, **call) for b in range(x.shape[1])], 1))
    assert all(torch.equal(y, results[0]) for y in results[1:])


def test_a_changed_weight_is_seen():
    x, weight, _, call = _case("padded", torch.float32)
    layer = nn.Parameter(weight.clone())
    optimiser = torch.optim.SGD([layer], lr=0.5)
    for _ in range(3):
        F.event_conv2d(x, layer, **call).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        torch.testing.assert_close(F.event_conv2d(x, layer, **call), _dense(x, layer, None, call), rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        layer.mul_(-1)
    torch.testing.assert_close(F.event_conv2d(x, layer, **call), _dense(x, layer, None, call), rtol=1e-4, atol=1e-3)


def _short(x, weight, bias, call, always=True):
    steps, pads = (call.get(name, start) for name, start in (("stride", 1), ("padding", 0)))
    steps, pads = ((size, size) if isinstance(size, int) else size for size in (steps, pads))
    return event_conv_ops.at_hand(x, weight, bias, steps, pads, call.get("groups", 1), always)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("graded", [False, True], ids=["spikes", "graded"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_short_way_gives_the_same_bits(level, name, graded, dtype):
    x, weight, bias, call = _case(name, dtype, graded=graded)
    images = x.flatten(0, 1)
    last = images.contiguous(memory_format=torch.channels_last)
    event_linear_ops.release()
    for of in (x, images, last):
        event_linear_ops.release()
        assert _short(of, weight, bias, call) is None
        wanted = F.event_conv2d(of, weight, bias, **call)
        found = _short(of, weight, bias, call)
        assert torch.equal(found, wanted)
        assert found.stride() == wanted.stride()
        torch.testing.assert_close(found, _dense(x, weight, bias, call).view(found.shape), rtol=1e-4, atol=1e-4)


def test_the_short_way_is_taken_by_plain_calls_only():
    x, weight, bias, call = _case("padded", torch.float32)

    def short(x=x, weight=weight, bias=bias, call=call, always=True):
        return _short(x, weight, bias, call, always)

    event_linear_ops.release()
    wanted = F.event_conv2d(x, weight, bias, **call)
    assert torch.equal(short(), wanted)
    assert short(x=x.double()) is None
    assert short(x=x[..., :-1]) is None
    assert short(x=x[:1]) is None
    assert short(x=x.transpose(3, 4)) is None
    assert short(x=x.to("meta")) is None
    assert short(x=x.clone().requires_grad_()) is None
    assert short(bias=bias[1:]) is None
    assert short(bias=bias.double()) is None
    assert short(call={"padding": [1, 1]}) is None
    assert short(call={"padding": "same"}) is None
    with torch.no_grad():
        assert torch.equal(short(x=x.clone().requires_grad_()), wanted)
    with spiking.event_driven("never"):
        assert short(always=False) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert short(always=False) is None
    weight.mul_(2)
    assert short() is None
    torch.testing.assert_close(F.event_conv2d(x, weight, bias, **call), _dense(x, weight, bias, call))


def test_the_short_way_is_dense_where_spikes_are_many():
    conv = spiking.Conv2d(32, 64, 3, padding=1)
    full, few = torch.ones(1, 32, 16, 16), torch.zeros(1, 32, 16, 16)
    few[0, 3, 4, 5] = 1
    dense = {x: tf.conv2d(x, conv.weight, conv.bias, padding=1).detach() for x in (full, few)}

    def short(x):
        return event_conv_ops.at_hand(x, conv.weight, conv.bias, (1, 1), (1, 1), 1, False)

    with torch.no_grad():
        assert torch.equal(conv(full), dense[full])
        assert torch.equal(short(full), dense[full])  # counts; its weights are not packed yet
        assert short(few) is None
        torch.testing.assert_close(conv(few), dense[few])
        torch.testing.assert_close(short(few), dense[few])
        assert torch.equal(short(full), dense[full])


def test_plans_of_one_weight_are_few():
    weight = torch.randn(4, 3, 1, 1)
    for side in range(1, 200):
        F.event_conv2d(torch.ones(1, 3, 1, side), weight)
    (known,) = (known for known in event_linear_ops._known.values() if known.of() is weight)
    assert 0 < len(known.plans) <= 64


def test_gradcheck_and_compile():
    x = (torch.rand(1, 2, 2, 5, 5, dtype=torch.float64) < 0.4).double()
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: F.event_conv2d(x, w, padding=1), (weight,))
    layer = spiking.Conv2d(2, 3, 3).double()
    assert torch.allclose(torch.compile(layer, fullgraph=True)(x), layer(x))


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
def test_the_layer_gives_the_same_whoever_chooses(mode):
    x, weight, bias, call = _case("padded")
    layer = spiking.Conv2d(16, 24, 3, padding=1).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    with spiking.event_driven(mode):
        torch.testing.assert_close(layer(x), _dense(x, weight, bias, call), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(layer(x[0]), _dense(x, weight, bias, call)[0], rtol=1e-12, atol=1e-12)


POOLED = [("tutorial", 2), ("padded", 3), ("strided", 2), ("grouped", 2), ("uneven", 2)]


def _layers(name, pool, window, last=False, graded=False, bias=True):
    """A convolution, the pooling after it, and an input."""
    x, weight, start, call = _case(name, graded=graded)
    channels = weight.shape[1] * call.get("groups", 1)
    conv = spiking.Conv2d(channels, weight.shape[0], weight.shape[2:], bias=bias, **call).double()
    with torch.no_grad():
        conv.weight.copy_(weight)
        if bias:
            conv.bias.copy_(start)
    x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2]) if last else x
    return conv, pool(window), x.requires_grad_()


def _grads(y, conv, x):
    leaves = [x, *conv.parameters()]
    return torch.autograd.grad(y, leaves, torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y))


@pytest.mark.parametrize("last", [False, True], ids=["planes", "channels last"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("name", "window"), POOLED)
@pytest.mark.parametrize("pool", [spiking.MaxPool2d, spiking.AvgPool2d])
def test_a_convolution_and_the_pooling_after_it_run_as_one(level, pool, name, window, bias, last):
    conv, after, x = _layers(name, pool, window, last, graded=last, bias=bias)
    with spiking.event_driven("always"):
        y = spiking.Sequential(conv, after)(x)
        grads = _grads(y, conv, x)
    wanted = after(nn.Conv2d.forward(conv, x.flatten(0, 1)).unflatten(0, x.shape[:2]))
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    for found, right in zip(grads, _grads(wanted, conv, x), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)


def test_the_largest_of_a_window_is_bit_for_bit_that_of_the_convolution():
    conv, after, x = _layers("tutorial", spiking.MaxPool2d, 2)
    conv, x = conv.float(), x.detach().float()
    with spiking.event_driven("always"), torch.no_grad():
        assert torch.equal(spiking.Sequential(conv, after)(x), after(conv(x)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_largest_of_a_window_where_something_is_not_finite(bad):
    conv, after, x = _layers("padded", spiking.MaxPool2d, 2)
    for spoilt in (x.detach()[0, 0, 3, 2], conv.weight.detach()[0, 0, 0]):
        spoilt[0] = bad
        with spiking.event_driven("always"):
            y = spiking.Sequential(conv, after)(x)
        wanted = after(nn.Conv2d.forward(conv, x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        torch.testing.assert_close(y, wanted, equal_nan=True)
    for found, right in zip(_grads(y, conv, x), _grads(wanted, conv, x), strict=True):  # with such a weight, torch's
        torch.testing.assert_close(found, right, equal_nan=True)


def test_the_maximum_op_is_registered_right():
    conv, _, x = _layers("grouped", spiking.MaxPool2d, 2)
    images = x.detach().flatten(0, 1)
    g = event_conv_ops.geometry(images.shape, conv.weight, *conv.call)
    spikes = event_conv_ops.scan(module, images, g)
    call = (conv.weight, conv.bias, spikes.masks, spikes.ones, *conv.call, 2)
    torch.library.opcheck(event_conv_ops.event_conv_max, (images, *call), test_utils=("test_schema", "test_faketensor"))
    y, _ = event_conv_ops.event_conv_max(images, *call)
    with pytest.raises(SpikingError, match="event_conv_max: second derivatives"):
        torch.autograd.grad(y.sum(), conv.weight, create_graph=True)


def test_the_pooled_convolution_leaves_hooks_and_evaluation_alone():
    seen = []
    conv, after, x = _layers("tutorial", spiking.AvgPool2d, 2)
    hook = after.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-1]))
    spiking.Sequential(conv, after)(x)
    hook.remove()
    with torch.no_grad():
        y = spiking.Sequential(conv, after)(x)
        assert torch.equal(y, after(conv(x)))
    assert seen == [30]


def test_a_busy_input_is_seen_from_a_few_words():
    x = torch.ones(64, 16, 32, 32)
    weight = torch.zeros(8, 16, 3, 3)
    g = event_conv_ops.geometry(x.shape, weight, [1, 1], [0, 0], 1)
    assert event_conv_ops.scan(module, x, g, x.numel() // 2) is None
    x[:, 1:] = 0
    for images in (x, x.contiguous(memory_format=torch.channels_last)):
        spikes = event_conv_ops.scan(module, images, g, x.numel() // 2)
        assert (spikes.n, spikes.ones) == (x.numel() // 16, True)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(
        SpikingError, match=r"event_conv2d: got input of shape \[1, 1, 3, 3\]; expected \[T, B, 2, H, W\]"
    ):
        F.event_conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 2, 2, 2))
    with pytest.raises(SpikingError, match=r"images of \[1, 3\] with padding \[0, 0\]; expected at least \[2, 2\]"):
        F.event_conv2d(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, 2, 2))
