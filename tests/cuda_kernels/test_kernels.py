"""The compiled CPU kernels, at every instruction set of this machine, against the plain-torch oracle."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.cuda_kernels import backend, ops, reference
from spiking.cuda_kernels.reference import Rule
from torch.testing import assert_close

from spiking import functional as F
from spiking import surrogate

module = backend.compiled()
pytestmark = pytest.mark.skipif(module is None, reason="the compiled module was not built")

RULES = {
    **{f"lif-{r}": {"reset": r} for r in ("subtract", "zero", "none")},
    **{f"detached-{r}": {"reset": r, "detach_reset": True} for r in ("subtract", "zero")},
    "tie": {"tie": "gt"},
    "decay-input": {"decay_input": True, "reset": "zero", "v_reset": -0.25, "v_leak": -0.25},
    "normalize": {"normalize": True, "tie": "gt", "detach_reset": True},
    "normalize-zero": {"normalize": True, "reset": "zero"},
    **{f"delay-{r}": {"reset": r, "reset_delay": True} for r in ("subtract", "zero", "none")},
    "delay-detached": {"reset_delay": True, "detach_reset": True, "tie": "gt"},
    "delay-normalize": {"reset_delay": True, "normalize": True},
    "residual": {"residual_reset": True, "tie": "gt"},
    **{f"refractory-{r}": {"reset": r, "refractory": 3} for r in ("subtract", "zero", "none")},
    **{f"cuba-{r}": {"kind": "cuba", "reset": r} for r in ("subtract", "zero")},
    **{
        f"adaptive-{r}": {"kind": "adaptive", "reset": r, "beta_adapt": 0.8, "adapt_scale": 0.7}
        for r in ("subtract", "zero")
    },
    "cuba-refractory": {"kind": "cuba", "refractory": 2},
    "adaptive-refractory": {"kind": "adaptive", "refractory": 2, "beta_adapt": 0.8, "adapt_scale": 0.7},
}
RECOMPUTE_ONLY = ("cuba", "adaptive", "refractory", "residual")


def _case(rule, shape, dtype, seed=0, per="scalar"):
    """Seeded x, state and cells. Values on a 1/4 grid half of the time, so that many membranes land exactly on the threshold."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    x[:, :, ::2] = (x[:, :, ::2] * 4).round() / 4
    state = torch.randn((rule.n_states, *shape[1:]), generator=g, dtype=torch.float64).mul(0.3)
    if rule.refractory:
        state[-1] = torch.randint(0, rule.refractory + 1, shape[1:], generator=g)
    count = {"scalar": 1, "channel": shape[2], "full": math.prod(shape[2:])}[per]
    params = torch.rand((3, count), generator=g, dtype=torch.float64) * 0.5 + torch.tensor(
        [[0.4], [0.6], [0.3]], dtype=torch.float64
    )
    if per == "scalar":
        params = torch.tensor([[0.5], [1.0], [0.5]], dtype=torch.float64)
    inner = math.prod(shape[2:]) // count if count > 1 else 1
    wide = ops.state_dtype(dtype)
    return x.to(dtype), state.to(wide), params.to(wide), inner


def _reference(x, state, params, inner, rule, grads):
    wide = ops.state_dtype(x.dtype)
    leaves = [t.clone().requires_grad_() for t in (x, state, params)]
    cells = leaves[2].repeat_interleave(inner, 1) if params.shape[1] > 1 else leaves[2]
    cells = cells.reshape(3, *(x.shape[2:] if params.shape[1] > 1 else ()))
    s, last, _ = reference.run(leaves[0].to(wide), leaves[1], *cells, rule)
    out = torch.autograd.grad([s, last], leaves, [grads[0].to(wide), grads[1]], allow_unused=True)
    return s.to(x.dtype), last, out


def _kernel(x, state, params, inner, rule, grads, save):
    leaves = [t.clone().requires_grad_() for t in (x, state, params)]
    integers, numbers = ops.pack(rule, 0.0, 0.0, 0.0)
    s, last, _ = ops.integrate(*leaves, inner, integers, numbers, ops.SAVES.index(save))
    return s, last, torch.autograd.grad([s, last], leaves, list(grads))


def _close(got, expected, relative):
    assert (got - expected).abs().max() <= relative * expected.abs().max(), (
        got - expected
    ).abs().max() / expected.abs().max()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("save", ["value", "recompute"])
def test_spikes_are_identical_and_gradients_equal(level, name, dtype, save):
    if save == "value" and name.startswith(RECOMPUTE_ONLY):
        save = "recompute"
    rule = Rule(surrogate.ATan(), **RULES[name])
    g = torch.Generator().manual_seed(5)
    for per, shape in (
        ("scalar", (37, 2, 77)),
        ("channel", (18, 3, 5, 4, 2)),
        ("full", (3, 2, 4, 5)),
        ("scalar", (1, 1, 1)),
    ):
        x, state, params, inner = _case(rule, shape, dtype, per=per)
        grads = (torch.randn(shape, generator=g, dtype=dtype), torch.randn(state.shape, generator=g, dtype=dtype))
        s, last, found = _kernel(x, state, params, inner, rule, grads, save)
        s_ref, last_ref, wanted = _reference(x, state, params, inner, rule, grads)
        assert torch.equal(s, s_ref)
        assert torch.equal(last, last_ref)
        tight = dtype == torch.float64
        _close(found[0], wanted[0], 1e-13 if tight else 1e-6)
        _close(found[1][0], wanted[1][0], 1e-13 if tight else 1e-6)
        rows = 3 if rule.kind == "cuba" else 2
        _close(found[2][:rows], wanted[2][:rows], 1e-12 if tight else 1e-5)


@pytest.mark.parametrize("kind", surrogate.ALL, ids=lambda k: k.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_surrogate_is_the_same_in_kernel_and_reference(level, kind, dtype):
    u = torch.linspace(-6, 6, 1201, dtype=dtype)
    x = (u + 1).reshape(1, 1, -1).requires_grad_()
    s, _ = F.lif(x, beta=0.0, surrogate=kind())
    s.sum().backward()
    expected = kind().grad((u + 1) - 1)
    assert_close(x.grad.flatten(), expected, rtol=1e-12 if dtype == torch.float64 else 2e-6, atol=1e-30)


@pytest.mark.parametrize("kind", surrogate.ALL, ids=lambda k: k.__name__)
def test_surrogates_stay_finite_far_out_and_pass_nan(kind):
    x = torch.tensor([1e4, -1e4, 3e38, -3e38, float("nan")]).reshape(1, 1, -1).requires_grad_()
    F.lif(x, beta=0.0, surrogate=kind())[0].nansum().backward()
    assert x.grad.flatten()[:4].isfinite().all()
    assert torch.isnan(kind().grad(torch.tensor(float("nan"))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["lif-subtract", "lif-zero", "tie", "normalize", "decay-input"])
def test_save_half_keeps_every_spike_and_gradients_to_its_precision(level, name, dtype):
    rule = Rule(surrogate.ATan(), **RULES[name])
    x, state, params, inner = _case(rule, (21, 2, 130), dtype)
    grads = (torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(dtype), torch.zeros(state.shape))
    s, _, found = _kernel(x, state, params, inner, rule, grads, "half")
    s_ref, _, wanted = _kernel(x, state, params, inner, rule, grads, "value")
    assert torch.equal(s, s_ref)
    _close(found[0].float(), wanted[0].float(), 4e-3)  # 11 bits of u, through slopes of up to 1.6 per unit of u
    _close(found[2][:2], wanted[2][:2], 4e-3)


def test_save_half_holds_the_spike_of_a_membrane_a_hair_below_the_threshold():
    x = torch.tensor([1.0, math.nextafter(1.0, 0.0), 1 - 2**-24, 3e38]).float().reshape(1, 1, -1).requires_grad_()
    s, v = F.lif(x, beta=0.5, reset="zero", save="half", surrogate=surrogate.StraightThrough(), detach_reset=True)
    v.sum().backward()  # dv/dx is 0 exactly where it spiked: the backward must know the spikes of the forward
    assert torch.equal(x.grad.flatten(), 1 - s.flatten())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_rounding_equals_torch(level, dtype):
    g = torch.Generator().manual_seed(0)
    x = torch.cat(
        [
            torch.randn(4000, generator=g) * 10.0 ** torch.randint(-9, 5, (4000,), generator=g),
            torch.tensor([0.0, 65519.0, 7e4]),
        ]
    )
    grad = x.to(dtype).reshape(1, 1, -1)  # reset none, straight-through: grad_x = grad_s, widened and narrowed once
    leaf = torch.zeros_like(grad).requires_grad_()
    F.lif(leaf, beta=0.0, reset="none", surrogate=surrogate.StraightThrough())[0].backward(grad)
    assert torch.equal(leaf.grad, grad)
    halved = torch.zeros_like(grad).requires_grad_()
    F.lif(halved, beta=0.0, reset="none", surrogate=surrogate.StraightThrough(scale=1 / 3))[0].backward(grad)
    expected = (grad.float() * torch.tensor(1 / 3)).to(dtype)
    assert torch.equal(halved.grad, expected)


@given(
    beta=st.floats(0, 0.99),
    threshold=st.floats(0.5, 2),
    steps=st.integers(1, 30),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=50)
def test_soft_reset_conserves_charge(beta, threshold, steps, seed):
    x = torch.rand(steps, 1, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    s, v = F.lif(x, beta=beta, threshold=threshold)
    w = beta ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    assert_close(v, torch.einsum("t,tbn->bn", w, x - threshold * s))


@given(
    size=st.integers(1, 5000),
    steps=st.integers(1, 40),
    seed=st.integers(0, 99),
    save=st.sampled_from(["value", "recompute"]),
)
@settings(deadline=None, max_examples=40)
def test_any_size_equals_the_reference(size, steps, seed, save):
    rule = Rule(surrogate.FastSigmoid(), reset="zero")
    x, state, params, inner = _case(rule, (steps, 1, size), torch.float32, seed)
    grads = (torch.ones(x.shape), torch.ones(state.shape))
    s, last, found = _kernel(x, state, params, inner, rule, grads, save)
    s_ref, last_ref, wanted = _reference(x, state, params, inner, rule, grads)
    assert torch.equal(s, s_ref)
    assert torch.equal(last, last_ref)
    _close(found[0], wanted[0], 1e-6)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, 330_001), (torch.float64, 165_003), (torch.bfloat16, 660_007), (torch.float32, 21 << 14)],
)
@pytest.mark.parametrize("save", ["value", "recompute"])
def test_outputs_that_are_streamed_past_the_caches_equal_the_reference(level, dtype, size, save):
    """6 MB and more take another way to memory; odd sizes leave rows that start between two cache lines."""
    rule = Rule(surrogate.ATan())
    x, state, params, inner = _case(rule, (5, 1, size), dtype)
    assert x.nbytes >= 6 << 20
    grads = (
        torch.randn(x.shape, generator=torch.Generator().manual_seed(4)).to(dtype),
        torch.zeros(state.shape, dtype=state.dtype),
    )
    s, last, found = _kernel(x, state, params, inner, rule, grads, save)
    s_ref, last_ref, wanted = _reference(x, state, params, inner, rule, grads)
    assert torch.equal(s, s_ref)
    assert torch.equal(last, last_ref)
    narrow = 2**-7 if dtype == torch.bfloat16 else 1e-6  # one rounding of the gradient to 8 bits
    _close(found[0].double(), wanted[0].double(), narrow)


PLAIN = [(kind, reset) for kind in surrogate.ALL for reset in ("subtract", "zero", "none")]


@pytest.mark.parametrize(("kind", "reset"), PLAIN, ids=[f"{kind.__name__}-{reset}" for kind, reset in PLAIN])
@pytest.mark.parametrize("shape", [(1, 1, 5), (9, 1, 1003), (7, 1, 4096), (4, 3, 640)])
def test_strips_of_the_plain_neuron_equal_the_reference(level, kind, reset, shape):
    """Numbers for beta and threshold: four steps at a time, the rest singly, the neurons beyond the last vector one by one."""
    _plain_equals_reference(Rule(kind(), reset=reset), shape)


@pytest.mark.parametrize("size", [330_001, 21 << 14])
def test_streamed_strips_of_the_plain_neuron_equal_the_reference(level, size):
    _plain_equals_reference(Rule(surrogate.FastSigmoid(), reset="zero"), (5, 1, size))


def _plain_equals_reference(rule, shape):
    x, state, _, _ = _case(rule, shape, torch.float32)
    grads = (torch.randn(x.shape, generator=torch.Generator().manual_seed(4)), torch.randn(state.shape))
    integers, numbers = ops.pack(rule, 0.75, 1.0, 0.0)
    leaf = x.clone().requires_grad_()
    s, last, _ = ops.integrate(leaf, state, None, 1, integers, numbers, 1)
    (found,) = torch.autograd.grad((s, last), leaf, grads)
    params = torch.tensor([[0.75], [1.0], [0.0]])
    s_ref, last_ref, wanted = _reference(x, state, params, 1, rule, grads)
    assert torch.equal(s, s_ref)
    assert torch.equal(last, last_ref)
    _close(found, wanted[0], 1e-6)
    scaled = torch.autograd.grad(ops.integrate(leaf, state, None, 1, integers, numbers, 1)[0].sum(), leaf)[0]
    _, _, wanted = _reference(x, state, params, 1, rule, (torch.ones(x.shape), torch.zeros(state.shape)))
    _close(scaled, wanted[0], 1e-6)


def test_the_number_of_threads_changes_nothing():
    rule = Rule(surrogate.ATan())
    x, state, params, inner = _case(rule, (9, 4, 9001), torch.float32)
    grads = (torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), torch.zeros(state.shape))
    before = torch.get_num_threads()
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(_kernel(x, state, params, inner, rule, grads, "value"))
    torch.set_num_threads(before)
    for s, last, grad in results[1:]:
        assert torch.equal(s, results[0][0])
        assert torch.equal(last, results[0][1])
        assert torch.equal(grad[0], results[0][2][0])
        assert_close(grad[2], results[0][2][2], rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["lif-subtract", "lif-zero", "normalize", "decay-input", "cuba-zero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_input_that_is_the_same_at_every_step_equals_its_copy(level, name, dtype):
    rule = Rule(surrogate.ATan(2.0), **RULES[name])
    integers, numbers = ops.pack(rule, 0.8, 0.6, 0.5)
    current = torch.rand(1, 3, 2500, generator=torch.Generator().manual_seed(5)).to(dtype)
    for steps in (1, 2, 5, 8):
        shown = current.expand(steps, *current.shape[1:])
        save = 3 if name.startswith(RECOMPUTE_ONLY) else 1
        for got, wanted in zip(
            *(ops.integrate(x, None, None, 1, integers, numbers, save) for x in (shown, shown.clone()))
        ):
            assert_close(got, wanted, rtol=0, atol=0)


def test_all_levels_give_the_same_bits():
    rule = Rule(surrogate.Sigmoid(), decay_input=True)
    x, state, params, inner = _case(rule, (30, 2, 501), torch.float32)
    grads = (torch.ones(x.shape), torch.ones(state.shape))
    results = []
    for level in module.levels():
        module.set_level(level)
        s, last, (grad_x, _, _) = _kernel(x, state, params, inner, rule, grads, "value")
        results.append((s, last, grad_x))
    module.set_level(module.levels()[0])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0]))


@pytest.mark.parametrize(
    "name", [n for n in RULES if "none" in n or n in ("cuba-subtract", "adaptive-subtract", "decay-input")]
)
def test_gradcheck_on_the_membrane_path(name):
    """gradcheck sees no step function, so the loss reads the last state of neurons that stay below the threshold."""
    rule = Rule(surrogate.ATan(), **{**RULES[name], "reset": "none", "detach_reset": True})
    x, state, _, _ = _case(rule, (5, 2, 3), torch.float64)
    if rule.refractory:
        state[-1] = torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64)
    params = torch.tensor([[0.7, 0.6, 0.5], [50.0, 60.0, 70.0], [0.4, 0.5, 0.6]], dtype=torch.float64)
    integers, numbers = ops.pack(rule, 0.0, 0.0, 0.0)

    def membrane(x, v, cells):
        start = torch.cat([v.unsqueeze(0), state[1:]])
        _, last, _ = ops.integrate(x, start, cells, 1, integers, numbers, 3)
        return last[0]

    leaves = [t.clone().requires_grad_() for t in (x, state[0], params)]
    assert torch.autograd.gradcheck(membrane, leaves)


@pytest.mark.parametrize("save", ["value", "half", "recompute"])
@pytest.mark.parametrize("given_state", [True, False])
def test_opcheck(save, given_state):
    rule = Rule(surrogate.ATan())
    x, state, params, inner = _case(rule, (4, 2, 3), torch.float32)
    integers, numbers = ops.pack(rule, 0.5, 1.0, 0.0)
    leaves = [x.requires_grad_(), state.requires_grad_() if given_state else None, params.requires_grad_()]
    torch.library.opcheck(
        torch.ops.spiking.integrate.default, (*leaves, inner, integers, numbers, ops.SAVES.index(save))
    )
    s, last, saved = ops.integrate(*leaves, inner, integers, numbers, ops.SAVES.index(save))
    detached = [None if t is None else t.detach() for t in leaves]
    torch.library.opcheck(
        torch.ops.spiking.integrate_backward.default,
        (
            torch.ones_like(s),
            torch.ones_like(last),
            *detached,
            saved.detach(),
            inner,
            integers,
            numbers,
            ops.SAVES.index(save),
            True,
        ),
    )


@pytest.mark.parametrize(("save", "bound"), [("value", 4.2), ("half", 2.1), ("recompute", 0.5)])
def test_bytes_kept_for_the_backward(save, bound):
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(64, 1, 1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        F.lif(x, save=save)
    beyond = sum(n for address, n in kept.items() if address != x.untyped_storage().data_ptr())
    assert beyond <= bound * x.numel()
    if save != "recompute":
        assert x.untyped_storage().data_ptr() not in kept


def test_an_expanded_gradient_equals_the_same_numbers_written_out():
    x = torch.randn(6, 2, 50, generator=torch.Generator().manual_seed(0)).requires_grad_()
    one = torch.autograd.grad(F.lif(x)[0], x, torch.full((), 0.5).expand(x.shape))[0]
    other = torch.autograd.grad(F.lif(x)[0], x, torch.full(x.shape, 0.5))[0]
    assert torch.equal(one, other)


@pytest.mark.parametrize("arguments", [{"save": "recompute"}, {"decay_input": True}], ids=["recompute", "decay"])
def test_an_expanded_input_equals_the_same_numbers_written_out(arguments):
    beta = torch.tensor(0.5, requires_grad=True)
    one = torch.full((), 0.7, requires_grad=True)
    found = [
        torch.autograd.grad(F.lif(x, beta=beta, threshold=0.5, **arguments)[0].sum(), [one, beta])
        for x in (one.expand(20, 1, 64), one.expand(20, 1, 64).clone())
    ]
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_constants_of_python_and_c_agree():
    assert module.CHUNK == ops.CHUNK
