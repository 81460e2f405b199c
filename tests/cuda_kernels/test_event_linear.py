"""The event-driven linear kernels, at every instruction set of this machine, against torch's own products in float64."""

import gc
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.cuda_kernels import backend, event_linear_ops, ops
from torch.nn import functional as tf
from torch.testing import assert_close

import spiking
from spiking import functional as F
from spiking.errors import SpikingError

module = backend.compiled()
needs_kernels = pytest.mark.skipif(module is None, reason="the compiled module was not built")
TIGHT = {
    torch.float32: 2e-6,
    torch.float64: 1e-14,
    torch.bfloat16: 4e-3,
}  # times the sum of magnitudes: rounding of each addition


@pytest.fixture
def level(level):
    """The shared fixture, with no panels kept from the level before."""
    event_linear_ops.release()
    return level


def case(rows, inputs, outputs, dtype, density=0.2, ones=True, seed=0):
    """Spikes or graded values [rows, inputs], weight and bias; everything seeded."""
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(rows, inputs, generator=g) < density).to(dtype)
    if not ones:
        x = x * torch.randn(rows, inputs, generator=g).to(dtype)
    weight = torch.randn(outputs, inputs, generator=g).to(dtype)
    return x, weight, torch.randn(outputs, generator=g).to(dtype)


def assert_sums(got, expected, magnitudes, dtype):
    """Equal but for the order of summation: within a few roundings of the sum of magnitudes."""
    assert got.dtype == dtype
    assert got.shape == expected.shape
    assert bool(((got.double() - expected).abs() <= TIGHT[dtype] * (magnitudes + 1e-30)).all())


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 70, 5), (130, 200, 100), (5, 64, 64), (2, 4096, 130), (66, 129, 48)])
@pytest.mark.parametrize("dtype", list(TIGHT))
@pytest.mark.parametrize("ones", [True, False])
def test_products_and_gradients_equal_the_dense_ones(level, shape, dtype, ones):
    x, weight, bias = case(*shape, dtype, ones=ones)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = F.event_linear(*leaves)
    wide = [t.detach().double() for t in leaves]
    assert_sums(y, tf.linear(*wide), tf.linear(*(t.abs() for t in wide)), dtype)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = torch.autograd.grad(y, leaves, grad)
    assert_close(got[0], grad @ weight, rtol=0, atol=0)
    assert_sums(got[1], grad.double().t() @ wide[0], grad.double().abs().t() @ wide[0].abs(), dtype)
    assert_close(got[2], grad.sum(0), rtol=0, atol=0)


@given(
    rows=st.integers(0, 9),
    inputs=st.integers(1, 150),
    outputs=st.integers(1, 80),
    density=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    threads=st.integers(1, 2),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_integers_sum_exactly_at_any_sparsity(rows, inputs, outputs, density, threads, seed):
    g = torch.Generator().manual_seed(seed)
    x = (torch.rand(rows, inputs, generator=g) < density).float() * torch.randint(-3, 4, (rows, inputs), generator=g)
    weight, bias = torch.randint(-9, 9, (outputs, inputs), generator=g).float(), torch.ones(outputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weight.requires_grad_()
        y = F.event_linear(x, weight, bias)
        (grad,) = torch.autograd.grad(y.sum() + (y * y).sum(), weight)
    finally:
        torch.set_num_threads(before)
    expected = tf.linear(x, weight.detach(), bias)
    assert torch.equal(y, expected)
    assert torch.equal(grad, (1 + 2 * expected).t() @ x)


@pytest.mark.parametrize("density", [0.0005, 0.004, 0.03])
@pytest.mark.parametrize("shape", [(301, 700, 20), (2000, 70, 20), (30, 9000, 20)])
def test_threads_do_not_write_over_each_other(level, shape, density):
    """Lists shorter than a vector, where two threads meet: sizes that are worth a second thread, sums that are exact."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for seed in range(3):
            x = (torch.rand(shape[:2], generator=torch.Generator().manual_seed(seed)) < density).float()
            weight = torch.arange(1.0, shape[1] + 1).expand(shape[2], -1).contiguous().requires_grad_()
            y = F.event_linear(x, weight)
            rows = torch.arange(1.0, shape[0] + 1).unsqueeze(1).expand(-1, shape[2])
            (grad,) = torch.autograd.grad(y, weight, rows)
            assert torch.equal(y, tf.linear(x, weight))
            assert torch.equal(grad, rows.t() @ x)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_infinities_and_nan_pass_through_as_dense(level, value):
    x, weight, bias = case(6, 100, 40, torch.float32)
    x[2, 7] = value
    assert_close(F.event_linear(x, weight, bias), tf.linear(x, weight, bias), equal_nan=True)
    x[2, 7] = 0
    weight[3, 9] = value  # reaches every row, since 0·inf is NaN
    for _ in range(2):
        got = F.event_linear(x, weight, bias)
        assert_close(got, tf.linear(x, weight, bias), equal_nan=True)
        assert not bool(got[:, 3].isfinite().any())


VIEWS = {
    "every second row": lambda x: x[::2],
    "every second input": lambda x: torch.stack([x, x], -1).flatten(-2)[:, ::2],
    "transposed": lambda x: x.t().contiguous().t(),
    "sliced": lambda x: torch.cat([x, x], 1)[:, 7 : 7 + x.shape[1]],
    "expanded": lambda x: x[:1].expand(5, -1),
    "time and batch swapped": lambda x: x.reshape(2, 3, -1).transpose(0, 1),
    "one vector": lambda x: x[0],
    "no rows": lambda x: x[:0],
    "many axes": lambda x: x.reshape(1, 2, 3, 1, -1),
}


@pytest.mark.parametrize("name", VIEWS)
def test_layouts(name):
    x, weight, bias = case(6, 90, 33, torch.float64, ones=False)
    view = VIEWS[name](x)
    weight.requires_grad_()
    y = F.event_linear(view, weight, bias)
    assert_close(y, tf.linear(view, weight, bias), rtol=1e-13, atol=1e-13)
    grad = torch.autograd.grad(y.square().sum(), weight)[0]
    expected = torch.autograd.grad(tf.linear(view, weight, bias).square().sum(), weight)[0]
    assert_close(grad, expected, rtol=1e-12, atol=1e-12)
    for other in (weight.detach().t().contiguous().t(), torch.stack([weight.detach()] * 2, -1)[..., 0]):
        assert_close(F.event_linear(view, other, bias), y.detach(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.int64])
def test_integer_and_bool_spikes_take_the_dtype_of_the_weight(dtype):
    x, weight, bias = case(4, 50, 20, torch.float32)
    y = F.event_linear(x.to(dtype), weight, bias)
    assert torch.equal(y, F.event_linear(x, weight, bias))
    assert y.dtype == torch.float32


def test_errors_name_what_does_not_fit():
    x, weight, bias = case(4, 50, 20, torch.float32)
    with pytest.raises(SpikingError, match=r"event_linear: got input of shape \[4, 49\] and weight \[20, 50\]"):
        F.event_linear(x[:, 1:], weight)
    with pytest.raises(SpikingError, match=r"event_linear\.bias: got shape \[19\]; expected \[20\]"):
        F.event_linear(x, weight, bias[1:])
    with pytest.raises(SpikingError, match=r"event_linear: got torch\.float64 beside a weight of torch\.float32"):
        F.event_linear(x.double(), weight, bias)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": [0.0] * 50}, "got input of type list; expected a tensor"),
        ({"x": None}, "got input of type NoneType"),
        ({"weight": [[1.0]]}, "got weight of type list"),
        ({"bias": 3}, "got bias of type int"),
        ({"x": torch.zeros(4, 50).to_sparse()}, r"got input with layout torch\.sparse_coo .* expected a dense tensor"),
    ],
)
def test_other_things_than_dense_tensors_are_refused(change, match):
    x, weight, bias = case(4, 50, 20, torch.float32)
    for remembered in (False, True):
        if remembered:
            F.event_linear(x, weight, bias)
        with pytest.raises(SpikingError, match="event_linear: " + match):
            F.event_linear(**{"x": x, "weight": weight, "bias": bias, **change})


def test_the_layer_takes_shapes_without_data_and_refuses_other_things():
    layer = spiking.Linear(50, 20, device="meta")
    assert layer(torch.zeros(4, 50, device="meta")).shape == (4, 20)
    with pytest.raises(SpikingError, match="Linear: got input of type list; expected a dense tensor"):
        spiking.Linear(50, 20)([0.0] * 50)


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("dtype", list(TIGHT))
def test_a_call_gives_the_same_bits_whether_panels_were_at_hand_or_not(level, density, dtype):
    x, weight, bias = case(5, 70, 40, dtype, density)
    calls = {
        "floats": lambda: F.event_linear(x, weight, bias),
        "without bias": lambda: F.event_linear(x, weight) + bias,
        "sequence": lambda: F.event_linear(x.reshape(1, 5, 70), weight, bias)[0],
        "strided": lambda: F.event_linear(torch.stack([x, x], -1)[..., 0], weight, bias),
        "bool": lambda: F.event_linear(x.bool(), weight, bias),
    }
    event_linear_ops.release()
    first = {name: (event_linear_ops.release(), call())[1] for name, call in calls.items()}
    for name, call in calls.items():
        assert torch.equal(call(), first[name]), name
        assert_sums(
            call(),
            tf.linear(x.double(), weight.double(), bias.double()),
            80 + 9 * x.double().sum(-1, keepdim=True),
            dtype,
        )


@needs_kernels
def test_the_short_way_is_taken_by_plain_calls_only():
    x, weight, bias = case(5, 70, 40, torch.float32)

    def short(x=x, weight=weight, bias=bias):
        return event_linear_ops.at_hand(x, weight, bias, True)

    event_linear_ops.release()
    assert short() is None
    expected = F.event_linear(x, weight, bias)
    assert torch.equal(short(), expected)
    assert short(x=x.double()) is None
    assert short(x=x[:, :-1]) is None
    assert short(x=x[:0]) is None
    assert short(x=x.t().contiguous().t()) is None
    assert short(x=x.to("meta")) is None
    assert short(x=x.clone().requires_grad_()) is None
    assert short(bias=bias[1:]) is None
    assert short(bias=bias.double()) is None
    with torch.no_grad():
        assert torch.equal(short(x=x.clone().requires_grad_()), expected)
    weight.mul_(2)
    assert short() is None
    assert_close(F.event_linear(x, weight, bias), tf.linear(x, weight, bias))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("graded", [False, True], ids=["spikes", "graded"])
def test_gradients_that_are_not_finite_pass_through_as_in_torch(level, graded, bad):
    x, weight, bias = case(70, 90, 130, torch.float64)
    x = x * torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype) if graded else x
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    grad = torch.randn(70, 130, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad[3, 129] = grad[69, 0] = bad
    wanted = torch.autograd.grad(tf.linear(*leaves), leaves, grad)
    for found, right in zip(torch.autograd.grad(F.event_linear(*leaves), leaves, grad), wanted, strict=True):
        assert_close(found, right, equal_nan=True, rtol=1e-11, atol=1e-11)


# Torch citizens


def test_gradcheck_and_opcheck():
    g = torch.Generator().manual_seed(0)
    x = (torch.rand(2, 3, 20, generator=g) < 0.3) * torch.randn(2, 3, 20, generator=g, dtype=torch.float64)
    leaves = [
        t.requires_grad_()
        for t in (x, torch.randn(5, 20, generator=g).double(), torch.randn(5, generator=g, dtype=torch.float64))
    ]
    assert torch.autograd.gradcheck(F.event_linear, leaves)
    assert torch.autograd.gradgradcheck(F.event_linear, leaves)
    for always in (True, False):
        torch.library.opcheck(torch.ops.spiking.event_linear.default, (*leaves, None, False, always))
    grads = (torch.randn(2, 3, 5, generator=g, dtype=torch.float64), x.detach())
    torch.library.opcheck(torch.ops.spiking.event_weight_grad.default, (*grads, None, False, 20, True))


def test_second_derivatives_of_bits_are_refused():
    x, weight, _ = case(3, 70, 5, torch.float64)
    y = F.event_linear(x.requires_grad_(), weight.requires_grad_())
    if module is None:
        return
    with pytest.raises(
        SpikingError, match="event_linear: second derivatives were asked for, but the input was kept as bits"
    ):
        torch.autograd.grad(y.square().sum(), weight, create_graph=True)


def test_compiles_whole_and_gives_the_same_gradients():
    torch.compiler.reset()
    x, weight, bias = case(6, 90, 33, torch.float64)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    whole = torch.compile(lambda *t: F.event_linear(*t).square(), fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(whole(*leaves).sum(), leaves)
    expected = torch.autograd.grad(F.event_linear(*leaves).square().sum(), leaves)
    for a, b in zip(got, expected):
        assert_close(a, b, rtol=1e-13, atol=1e-13)


@needs_kernels
def test_one_bit_an_input_is_kept_for_the_backward():
    x, weight, _ = case(64, 640, 8, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        F.event_linear(x, weight.requires_grad_())
    assert {(t.dtype, tuple(t.shape)) for t in kept} == {(torch.int64, (64, 10))}


def test_the_reference_backend_runs_dense(monkeypatch):
    x, weight, bias = case(6, 90, 33, torch.float32)
    monkeypatch.setattr(event_linear_ops, "_compiled", lambda: None)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = F.event_linear(*leaves)
    assert torch.equal(y, tf.linear(*leaves))
    got = torch.autograd.grad(y.sum(), leaves)
    for a, b in zip(got, torch.autograd.grad(tf.linear(*leaves).sum(), leaves)):
        assert_close(a, b)


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    """An expanded row is read in place, so that 2^31 inputs cost no memory; offsets beyond 32 bits must hold."""
    row = torch.zeros(512)
    row[511] = 1
    x = row.expand((1 << 22) + 1, 512)
    weight = torch.arange(512.0).unsqueeze(0)
    assert bool((F.event_linear(x, weight) == 511).all())


# Weights that change

CHANGES = {
    "an optimiser step": lambda w: _step(w),
    "load_state_dict": lambda w: _load(w),
    "one weight, in place": lambda w: w.__setitem__((0, 3), 7.0),
    "add_": lambda w: w.add_(1),
    "its data, swapped": lambda w: setattr(w, "data", torch.ones_like(w)),
    "its data, all of it in place": lambda w: w.data.mul_(2),
    "through numpy, all of it": lambda w: w.detach().numpy().__imul__(2),
    "transposed in place": lambda w: w.t_() if w.shape[0] == w.shape[1] else None,
}


def _step(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.5).step()
    weight.grad = None


def _load(weight):
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = weight
    layer.load_state_dict({"weight": torch.full_like(weight, 3.0)})


@pytest.mark.parametrize("name", CHANGES)
def test_panels_are_never_stale(name):
    x, weight, _ = case(5, 40, 40, torch.float32, density=1.0)
    weight = torch.nn.Parameter(weight)
    with torch.no_grad():
        F.event_linear(x, weight)
        CHANGES[name](weight)
        assert_close(F.event_linear(x, weight), tf.linear(x, weight))
        assert_close(F.event_linear(x, weight), tf.linear(x, weight))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
@pytest.mark.parametrize("way", ["plain", "foreach", "fused", "compiled"])
def test_every_optimiser_step_is_seen(kind, way):
    """Fused ones leave the version counter alone; inputs that never fire leave most of a large weight as it was."""
    if way == "compiled" and kind is not torch.optim.SGD:
        return  # the same path, and slow to compile
    g = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(512, 512, generator=g))
    options = {"foreach": {"foreach": True}, "fused": {"fused": True}}.get(way, {})
    optimiser = kind([weight], lr=0.1, **options)
    step = torch.compile(optimiser.step, backend="aot_eager") if way == "compiled" else optimiser.step
    x = torch.zeros(4, 512)
    x[:, 77] = 1
    for _ in range(3):
        with torch.no_grad():
            assert_close(F.event_linear(x, weight), tf.linear(x, weight))
        tf.linear(x, weight).sum().backward()
        step()
        optimiser.zero_grad()
        with torch.no_grad():
            assert_close(F.event_linear(x, weight), tf.linear(x, weight))


@needs_kernels
def test_panels_live_no_longer_than_their_weight():
    event_linear_ops.release()
    x, weight, _ = case(5, 40, 30, torch.float32)
    F.event_linear(x, weight)
    assert len(event_linear_ops._known) == 1
    del weight
    gc.collect()
    assert not event_linear_ops._known


def test_weights_changed_from_another_thread_are_seen_and_never_mixed_up():
    x = torch.ones(3, 64)
    weights = [torch.zeros(32, 64) for _ in range(4)]
    faults: list[str] = []

    def work(weight, seed):
        for value in range(1, 60):
            weight.fill_(value * seed)
            y = F.event_linear(x, weight)
            if not bool((y == 64 * value * seed).all()):
                faults.append(f"{seed}: {y[0, 0].item()} instead of {64 * value * seed}")

    threads = [threading.Thread(target=work, args=(w, i + 1)) for i, w in enumerate(weights)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    shared = torch.zeros(32, 64)
    changer = threading.Thread(target=lambda: [shared.fill_(i) for i in range(200)])
    changer.start()
    while changer.is_alive():
        F.event_linear(x, shared)
    changer.join()
    assert bool((F.event_linear(x, shared) == 64 * 199).all())


def test_inference_tensors_are_multiplied_but_not_remembered():
    with torch.inference_mode():
        x, weight, bias = case(5, 40, 30, torch.float32)
        for _ in range(2):
            assert_close(F.event_linear(x, weight, bias), tf.linear(x, weight, bias))
            weight.mul_(2)


# Input gradients of neurons without a derivative


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 70, 5), (33, 300, 130), (4, 129, 64)])
@pytest.mark.parametrize("dtype", list(TIGHT))
@pytest.mark.parametrize("codes", [False, True])
def test_input_gradients_are_exact_where_the_derivative_is_not_zero(level, shape, dtype, codes):
    rows, inputs, outputs = shape
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=g).to(dtype)
    grad_y = torch.randn(rows, outputs, generator=g).to(dtype)
    u = torch.randn(rows, inputs, generator=g)
    u[0, 0] = float("nan")
    membrane = u.half().view(torch.int16) if codes else (u + 0.75).to(ops.state_dtype(dtype))
    F.event_linear(torch.zeros(1, inputs, dtype=dtype), weight)  # makes the panels
    with spiking.event_driven("always"):
        got = torch.ops.spiking.event_input_grad(grad_y, weight, membrane, 0.75, 0.5)
    expected = grad_y.double() @ weight.double()
    free = ~(u.abs() >= 0.5)
    assert_sums(
        torch.where(free, got, 0), torch.where(free, expected, 0), grad_y.double().abs() @ weight.double().abs(), dtype
    )
    surely_not = u.abs() > 0.503
    assert bool((got[surely_not] == 0).all())
    torch.library.opcheck(torch.ops.spiking.event_input_grad.default, (grad_y, weight, membrane, 0.75, 0.5))


@needs_kernels
def test_where_most_neurons_have_a_derivative_the_dense_product_is_taken():
    grad_y, weight = torch.randn(20, 64), torch.randn(64, 100)
    F.event_linear(torch.zeros(1, 100), weight)
    got = torch.ops.spiking.event_input_grad(grad_y, weight, torch.zeros(20, 100), 0.0, 0.5)
    assert torch.equal(got, grad_y @ weight)
