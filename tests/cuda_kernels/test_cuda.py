"""The CUDA kernels: compiled for three architectures without a driver, and the same source run on the CPU against the oracle.

host/cuda_on_cpu.h runs neuron.cu block by block and thread by thread; the launches, their arguments included, are those that CuPy
would make. Tests marked `gpu` make them for real.
"""

import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cuda_sources import assert_compiles, assert_table_is_the_kernel_s, needs_nvrtc, on_gpu, pretend_cuda
from spiking.cuda_kernels import ops, reference
from spiking.cuda_kernels.cuda import compile, launch
from spiking.cuda_kernels.reference import Rule

from spiking import functional as F
from spiking import surrogate
from spiking.errors import SpikingError

PACKAGE = Path(compile.__file__).parent.parent

ADAPTIVE = {"kind": "adaptive", "beta_adapt": 0.8, "adapt_scale": 0.7}
RULES = {
    **{f"lif-{r}": {"reset": r} for r in ops.RESETS},
    "detached": {"reset": "zero", "detach_reset": True},
    "tie": {"tie": "gt"},
    "decay-input": {"decay_input": True, "reset": "zero", "v_reset": -0.25, "v_leak": -0.25},
    "leak-none": {"v_leak": 0.1, "reset": "none"},
    "normalize": {"normalize": True, "tie": "gt", "detach_reset": True},
    "normalize-zero": {"normalize": True, "reset": "zero"},
    **{f"delay-{r}": {"reset": r, "reset_delay": True} for r in ops.RESETS},
    "delay-normalize": {"reset_delay": True, "normalize": True},
    "residual": {"residual_reset": True, "tie": "gt"},
    **{f"refractory-{r}": {"reset": r, "refractory": 3} for r in ops.RESETS},
    **{f"cuba-{r}": {"kind": "cuba", "reset": r} for r in ops.RESETS},
    **{f"adaptive-{r}": {"reset": r, **ADAPTIVE} for r in ops.RESETS},
    "adaptive-refractory": {"refractory": 2, **ADAPTIVE},
    "cuba-refractory": {"kind": "cuba", "refractory": 2},
}
RECOMPUTE_ONLY = ("cuba", "adaptive", "refractory", "residual")

# Where the cells come from, and [T, B, *]: rows that fit wide loads and rows that do not; blocks within one channel and across.
SHAPES = {
    "odd": ("scalar", (37, 2, 77)),
    "wide": ("scalar", (18, 2, 70)),
    "channel": ("channel", (17, 3, 5, 4, 2)),
    "block-in-channel": ("channel", (3, 1, 3, 161)),
    "full": ("full", (3, 2, 4, 5)),
    "one": ("scalar", (1, 1, 1)),
}


# --- compiled without a driver -------------------------------------------------------------------------------------------------------


def _plan(kind="lif", flags=(0,) * 6, save=1, dtype=0, params=1, reset=0, surrogate_id=0, wide=True):
    """The name expressions of one forward and one backward launch."""
    neurons = 1 << 20 if wide else 1
    packed = [dtype, save, ops.KINDS.index(kind), reset, surrogate_id, 0, *flags]
    numbers = [0.5, 1.0, 0.5, 0.0, 0.0, 0.8, 0.7, 2.0, 1.0]
    sizes = (4, neurons, 1, 1)
    return [
        launch.forward_launch((0,) * 6, sizes, packed, numbers).expression,
        launch.backward_launch((0,) * 9 + (params,), sizes, packed, numbers).expression,
    ]


PLAIN, COMMON, ALL = (0,) * 6, (1, 0, 0, 0, 0, 0), (0, 0, 0, 1, 0, 0)
REPRESENTATIVE = {
    **{
        f"{kind}-{ops.RESETS[reset]}": _plan(kind, reset=reset, save=1 if kind == "lif" else 3)
        for kind in ops.KINDS
        for reset in range(3)
    },
    **{f"dtype-{dtype}": _plan(dtype=dtype, save=2 if dtype > 1 else 1) for dtype in (1, 2, 3)},
    "common": _plan(flags=COMMON),
    "all": _plan(flags=ALL),
    "no-params": _plan(params=0),
    "narrow": _plan(wide=False),
    "recompute-double": _plan("adaptive", dtype=1, save=3),
    "recompute-all": _plan(flags=ALL, save=3, surrogate_id=5),
}


@needs_nvrtc
@pytest.mark.parametrize("architecture", compile.ARCHITECTURES)
def test_kernels_compile_without_spills_and_within_registers(architecture):
    expressions = list(dict.fromkeys(e for plan in REPRESENTATIVE.values() for e in plan))
    assert_compiles(expressions, architecture)


@needs_nvrtc
def test_every_surrogate_compiles():
    expressions = [_plan(surrogate_id=k, wide=False)[1] for k in range(len(launch._SURROGATES))]
    _, symbols, _ = compile.build(expressions, "sm_90")
    assert len(set(symbols.values())) == len(expressions)


@needs_nvrtc
def test_rows_are_read_with_wide_loads_past_the_coherent_cache():
    ptx, _, _ = compile.build(_plan()[:1], "compute_90")
    assert b"ld.global.nc.v4" in ptx
    assert b"st.global.v4" in ptx
    assert b"fma.rn.f32" not in ptx  # contraction would change spikes


@needs_nvrtc
def test_compiled_kernels_are_kept_and_damaged_ones_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKING_CACHE", str(tmp_path))
    expressions = _plan(wide=False)[:1]
    first = compile.binary(expressions, 90)
    assert first.path.parent == tmp_path / "cuda"
    content = first.path.read_bytes()
    assert content[:4] == b"\x7fELF"
    monkeypatch.setattr(compile, "build", None)  # a second compilation would fail
    assert compile.binary(expressions, 90) == first
    monkeypatch.undo()
    monkeypatch.setenv("SPIKING_CACHE", str(tmp_path))
    first.path.write_bytes(b"")
    first.path.with_suffix(".json").write_text("{")
    assert compile.binary(expressions, 90) == first
    assert first.path.read_bytes() == content
    assert sorted(p.suffix for p in first.path.parent.iterdir()) == [".cubin", ".json"]


@needs_nvrtc
def test_a_cache_that_cannot_be_written_costs_a_warning_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPIKING_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot keep compiled kernels there"):
        found = compile.binary(_plan(wide=False)[:1], 90)
    assert found.path.read_bytes()[:4] == b"\x7fELF"


@needs_nvrtc
def test_devices_newer_and_older_than_nvrtc(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKING_CACHE", str(tmp_path))
    newer = compile.binary(_plan(wide=False)[:1], 999)
    assert newer.path.suffix == ".ptx"
    assert b".target sm_" in newer.path.read_bytes()
    with pytest.raises(SpikingError, match=r"compute capability 1.0; expected at least"):
        compile.binary(_plan()[:1], 10)


@needs_nvrtc
def test_a_source_that_does_not_compile_shows_the_log():
    with pytest.raises(RuntimeError, match="nonsense"):
        compile.build(["spiking_cuda::nonsense<1>"], "sm_90")


def test_without_nvrtc_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(compile, "_candidates", lambda: [])
    compile._nvrtc.cache_clear()
    compile.nvrtc_version.cache_clear()
    try:
        assert compile.nvrtc_version() is None
        assert compile.why_not() == "NVRTC was not found (pip install nvidia-cuda-nvrtc)"
        with pytest.raises(SpikingError, match="NVRTC was not found"):
            compile.build([], "sm_90")
    finally:
        compile._nvrtc.cache_clear()
        compile.nvrtc_version.cache_clear()


# --- one table of arguments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_the_table_of_arguments_is_the_kernel_s(name):
    assert_table_is_the_kernel_s(
        "neuron.cu", f"neuron_{name}", launch.FORWARD if name == "forward" else launch.BACKWARD
    )


def test_constants_and_names_of_python_and_c_agree():
    header = (PACKAGE / "include" / "surrogate.h").read_text()
    listed = re.search(r"enum class Surrogate : int \{(.*?)\}", header, re.DOTALL).group(1)
    names = dict(re.findall(r"(\w+) = (\d+)", listed))
    del names["count"]
    assert {name: int(number) for name, number in names.items()} == {n: i for i, n in enumerate(launch._SURROGATES)}
    assert {kind.kernel_id for kind in surrogate.ALL} <= set(range(len(launch._SURROGATES)))
    assert f"CHUNK = {ops.CHUNK};" in (PACKAGE / "include" / "chunk.h").read_text()
    assert f"THREADS = {launch._THREADS};" in (PACKAGE / "cuda" / "common.cuh").read_text()
    header = (PACKAGE / "include" / "neuron.h").read_text()
    for kind, names in (("Kind", ops.KINDS), ("Reset", ops.RESETS)):
        listed = re.search(rf"enum class {kind} : int \{{(.*?)\}}", header).group(1)
        assert re.findall(r"(\w+) = \d", listed) == list(names)


# --- the same source on the CPU --------------------------------------------------------------------------------------------------------


def _case(rule, per, shape, dtype, seed=0):
    """Seeded x, state and cells. Half of the values on a 1/4 grid, so that many membranes land exactly on the threshold."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64)
    x[:, :, ::2] = (x[:, :, ::2] * 4).round() / 4
    state = torch.randn((rule.n_states, *shape[1:]), generator=g, dtype=torch.float64).mul(0.3)
    if rule.refractory:
        state[-1] = torch.randint(0, rule.refractory + 1, shape[1:], generator=g)
    params = torch.tensor([[0.5], [1.0], [0.5]], dtype=torch.float64)
    count = {"scalar": 1, "channel": shape[2], "full": math.prod(shape[2:])}[per]
    if count > 1:
        params = torch.rand((3, count), generator=g, dtype=torch.float64) * 0.5 + params * 0.6
    wide = ops.state_dtype(dtype)
    grads = (torch.randn(shape, generator=g).to(dtype), torch.randn(state.shape, generator=g).to(wide))
    return x.to(dtype), state.to(wide), params.to(wide), math.prod(shape[2:]) // count if count > 1 else 1, grads


def _oracle(x, state, params, inner, grads, rule):
    wide = ops.state_dtype(x.dtype)
    leaves = [t.clone().requires_grad_() for t in (x.to(wide), state, params)]
    cells = leaves[2].repeat_interleave(inner, 1) if params.shape[1] > 1 else leaves[2]
    cells = cells.reshape(3, *(x.shape[2:] if params.shape[1] > 1 else ()))
    s, last, _ = reference.run(leaves[0], leaves[1], *cells, rule)
    return s.to(x.dtype), last, torch.autograd.grad([s, last], leaves, [grads[0].to(wide), grads[1]], allow_unused=True)


def _op(x, state, params, inner, grads, rule, save):
    leaves = [t.clone().requires_grad_() for t in (x, state, params)]
    integers, numbers = ops.pack(rule, 0.0, 0.0, 0.0)
    s, last, _ = ops.integrate(*leaves, inner, integers, numbers, ops.SAVES.index(save))
    return s, last, torch.autograd.grad([s, last], leaves, list(grads))


def _through_the_op(rule_name, shape_name, dtype, save, state=True):
    per, shape = SHAPES[shape_name]
    rule = Rule(surrogate.ATan(), **RULES[rule_name])
    x, start, params, inner, grads = _case(rule, per, shape, dtype)
    return rule, (x, start, params, inner, grads), _op(x, start, params, inner, grads, rule, save)


def _saves(name, dtype=torch.float32):
    return ["recompute"] if name.startswith(RECOMPUTE_ONLY) else ["value", "recompute"]


AGAINST_ORACLE = [
    *((name, torch.float32, save) for name in RULES for save in _saves(name)),
    *((name, torch.float64, save) for name in ("lif-subtract", "delay-zero", "cuba-zero") for save in _saves(name)[:1]),
]
HALF = [(name, dtype) for name in ("lif-subtract", "tie", "normalize-zero") for dtype in (torch.float32, torch.float16)]
SIXTEEN = [(name, dtype) for name in ("lif-zero", "adaptive-subtract") for dtype in (torch.bfloat16, torch.float16)]


def _everything():
    """All that the tests below launch, once, so that one compilation covers it."""
    for name, dtype, save in AGAINST_ORACLE:
        for shape in SHAPES:
            _through_the_op(name, shape, dtype, save)
    for name, dtype in HALF:
        _through_the_op(name, "wide", dtype, "half")
    for name, dtype in SIXTEEN:
        _through_the_op(name, "wide", dtype, _saves(name)[0])
    for kind in surrogate.ALL:
        _one_step(kind)
    for save in ("value", "half", "recompute"):
        _at_rest(save)
    _without_gradients()
    _no_steps()


def _one_step(kind):
    x = torch.linspace(-5, 7, 1201, dtype=torch.float64).reshape(1, 1, -1).requires_grad_()
    F.lif(x, beta=0.0, surrogate=kind())[0].sum().backward()
    return x


def _at_rest(save):
    x = torch.randn(20, 1, 30, generator=torch.Generator().manual_seed(0)).requires_grad_()
    s, v = F.lif(x, v_leak=0.1, save=save)
    s.sum().backward()  # the gradient of a sum is one number, expanded
    return x, s, v


def _without_gradients():
    with torch.no_grad():
        return F.lif(torch.randn(5, 1, 30, generator=torch.Generator().manual_seed(0)))[0]


def _no_steps():
    x = torch.zeros(0, 2, 3).requires_grad_()
    s, v = F.lif(x, v_leak=0.0)
    (s.sum() + v.sum()).backward()
    return x, s, v


@pytest.fixture(scope="session")
def host_kernels(compile_for_host):
    """name expression -> the compiled host function, for all that `_everything` launches."""
    wanted = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_WIDE_FROM", 1)
        pretend_cuda(patch, lambda plan, device: wanted.setdefault(plan.expression))
        _everything()
    tables = {e: launch.FORWARD if "neuron_forward" in e else launch.BACKWARD for e in wanted}
    return compile_for_host("neuron.cu", tables)


@pytest.fixture
def on_host(host_kernels, run_on_host, monkeypatch):
    """Launches run here, on the CPU; the list of them."""
    monkeypatch.setattr(launch, "_WIDE_FROM", 1)
    return run_on_host(host_kernels)


def _close(got, expected, relative):
    assert torch.isfinite(got).all()
    assert (got - expected).abs().max() <= relative * expected.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "dtype", "save"), AGAINST_ORACLE, ids=lambda v: str(v).removeprefix("torch."))
def test_spikes_are_identical_and_gradients_equal(on_host, name, dtype, save, shape):
    rule, case, (s, last, found) = _through_the_op(name, shape, dtype, save)
    s_ref, last_ref, wanted = _oracle(*case, rule)
    assert len(on_host) == 2
    assert torch.equal(s, s_ref)
    assert torch.equal(last, last_ref)
    tight = dtype == torch.float64
    _close(found[0], wanted[0], 1e-13 if tight else 1e-6)
    _close(found[1][0], wanted[1][0], 1e-13 if tight else 1e-6)
    if rule.kind != "lif":
        _close(found[1][1], wanted[1][1], 1e-13 if tight else 1e-6)
    rows = 3 if rule.kind == "cuba" else 2
    _close(found[2][:rows], wanted[2][:rows], 1e-12 if tight else 1e-5)


def test_wide_and_narrow_launches_are_both_tried(on_host):
    widths = set()
    for shape in SHAPES:
        _through_the_op("lif-subtract", shape, torch.float32, "value")
    for plan in on_host:
        widths.add(int(plan.expression[:-1].split(", ")[-1]))
    assert widths == {1, 4}


@pytest.mark.parametrize(("name", "dtype"), HALF)
def test_save_half_keeps_every_spike_and_gradients_to_its_precision(on_host, name, dtype):
    rule, case, (s, _, found) = _through_the_op(name, "wide", dtype, "half")
    s_ref, _, wanted = _oracle(*case, rule)
    assert torch.equal(s, s_ref)
    _close(found[0].float(), wanted[0], 4e-3)  # 11 bits of u, through slopes of up to 1.6 per unit of u
    _close(found[2][:2], wanted[2][:2], 4e-3)


@pytest.mark.parametrize(("name", "dtype"), SIXTEEN)
def test_sixteen_bit_input_keeps_a_float_state(on_host, name, dtype):
    rule, case, (s, last, found) = _through_the_op(name, "wide", dtype, _saves(name)[0])
    s_ref, last_ref, wanted = _oracle(*case, rule)
    assert s.dtype == dtype
    assert torch.equal(s, s_ref)
    assert torch.equal(last, last_ref)
    _close(found[0].float(), wanted[0], 2**-8 if dtype == torch.bfloat16 else 2**-11)  # one rounding of grad_x
    _close(found[2][:2], wanted[2][:2], 1e-5)


@pytest.mark.parametrize("kind", surrogate.ALL, ids=lambda k: k.__name__)
def test_every_surrogate_is_the_reference_s(on_host, kind):
    x = _one_step(kind)
    torch.testing.assert_close(x.grad, kind().grad(x.detach() - 1), rtol=1e-12, atol=1e-30)


@pytest.mark.parametrize("save", ["value", "half", "recompute"])
def test_no_state_means_at_rest(on_host, save):
    x, s, v = _at_rest(save)
    leaf = x.detach().clone().requires_grad_()
    rest = torch.full((1, *x.shape[1:]), 0.1)
    numbers = [torch.tensor(value) for value in (0.9, 1.0, 0.0)]
    s_ref, v_ref, _ = reference.run(leaf, rest, *numbers, Rule(surrogate.ATan(), v_leak=0.1))
    s_ref.sum().backward()
    assert torch.equal(s, s_ref)
    assert torch.equal(v, v_ref[0])
    _close(x.grad, leaf.grad, 4e-3 if save == "half" else 1e-6)


def test_without_gradients_nothing_is_saved(on_host):
    s = _without_gradients()
    assert set(s.unique().tolist()) <= {0.0, 1.0}
    (plan,) = on_host
    assert plan.arguments[5] == 0


def test_no_steps_leave_the_neurons_at_rest(on_host):
    x, s, v = _no_steps()
    assert s.shape == x.grad.shape == x.shape
    assert torch.equal(v, torch.zeros(2, 3))


def test_no_neurons_launch_nothing(on_host):
    x = torch.zeros(4, 2, 0).requires_grad_()
    F.lif(x)[0].sum().backward()
    assert x.grad.shape == x.shape
    assert on_host == []


# --- what CuPy is asked for ------------------------------------------------------------------------------------------------------------


@needs_nvrtc
@pytest.mark.parametrize("release", [13, 14])
def test_a_launch_goes_to_torch_s_stream_and_device(release, tmp_path, monkeypatch):
    asked = {}

    class Context:
        def __init__(self, value):
            asked[type(self).__name__] = value

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    class ExternalStream(Context):
        pass

    class Device(Context):
        pass

    class Module:
        def __init__(self, path):
            asked["code"] = Path(path).read_bytes()[:4]

        def get_function(self, symbol):
            asked["symbol"] = symbol
            return lambda grid, block, args, shared_mem: asked.update(call=(grid, block, args, shared_mem))

    class Stream:
        pass

    if release > 13:
        Stream.from_external = lambda stream: ExternalStream(stream.__cuda_stream__()[1])
    cuda = SimpleNamespace(Device=Device, Stream=Stream, ExternalStream=ExternalStream)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, RawModule=Module))
    monkeypatch.setenv("SPIKING_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=1000 + index))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    launch._kernel.cache_clear()
    packed, numbers = [0, 1, *[0] * 10], [0.5, 1.0, 0.5, 0.0, 0.0, 0.8, 0.7, 2.0, 1.0]
    plan = launch.forward_launch((64,) * 6, (4, 300, 1, 1), packed, numbers)
    launch.run(plan, torch.device("cuda", 3))
    launch._kernel.cache_clear()
    assert (asked["ExternalStream"], asked["Device"], asked["code"]) == (1003, 3, b"\x7fELF")
    assert "neuron_forward" in asked["symbol"]
    assert asked["call"] == ((3,), (128,), plan.arguments, 0)


# --- on a real device ------------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "dtype", "save"), AGAINST_ORACLE, ids=lambda v: str(v).removeprefix("torch."))
def test_a_device_gives_the_spikes_and_gradients_of_the_cpu(monkeypatch, name, dtype, save, shape, wide):
    monkeypatch.setattr(launch, "_WIDE_FROM", 1 if wide else 1 << 60)
    rule, case, (s, last, found) = _through_the_op(name, shape, dtype, save)
    x, state, params, inner, grads = case
    there = [t.cuda() for t in (x, state, params)]
    s_gpu, last_gpu, found_gpu = _op(*there, inner, [g.cuda() for g in grads], rule, save)
    assert torch.equal(s_gpu.cpu(), s)
    assert torch.equal(last_gpu.cpu(), last)
    tight = dtype == torch.float64
    _close(found_gpu[0].cpu(), found[0], 1e-13 if tight else 1e-6)
    _close(found_gpu[1][0].cpu(), found[1][0], 1e-13 if tight else 1e-6)
    _close(found_gpu[2].cpu()[:2], found[2][:2], 1e-12 if tight else 1e-5)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("save", ["value", "half", "recompute"])
def test_a_device_runs_sixteen_bits_on_a_side_stream(dtype, save):
    x = torch.randn(21, 2, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
    s, _ = F.lif(x, save=save)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        leaf = x.cuda().requires_grad_()
        s_gpu, _ = F.lif(leaf, save=save)
        s_gpu.sum().backward()
    stream.synchronize()
    assert torch.equal(s_gpu.cpu(), s)
    here = x.clone().requires_grad_()
    F.lif(here, save=save)[0].sum().backward()
    _close(leaf.grad.cpu().float(), here.grad.float(), 2**-7 if dtype == torch.bfloat16 else 2**-10)
