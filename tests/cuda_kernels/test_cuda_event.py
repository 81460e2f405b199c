"""The event-driven CUDA kernels: compiled without a driver, and the same source run on the CPU against the oracle.

Tests marked `gpu` run them for real; the others pretend that the tensors lie on a CUDA device (conftest.py).
"""

import math
import re
from pathlib import Path

import pytest
import torch
from cuda_sources import assert_compiles, assert_table_is_the_kernel_s, needs_nvrtc, on_gpu
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.cuda_kernels import backend, driven, event_linear_ops, ops, reference
from spiking.cuda_kernels.cuda import compile, event, launch
from spiking.cuda_kernels.reference import Rule
from torch import nn

import spiking
from spiking import functional as F
from spiking import surrogate
from spiking.errors import SpikingError

SOURCE = (Path(compile.__file__).parent / "event.cu").read_text()
NUMBERS = (0.5, 1.0, 0.6)
RULES = {
    **{f"lif-{r}": {"reset": r} for r in ops.RESETS},
    "tie": {"tie": "gt"},
    "leak": {"v_leak": 0.1, "decay_input": True},
    "refractory": {"refractory": 2},
    "delay": {"reset_delay": True, "reset": "zero"},
    "normalize": {"normalize": True},
    "cuba": {"kind": "cuba"},
    "adaptive": {"kind": "adaptive", "beta_adapt": 0.8, "adapt_scale": 0.7, "refractory": 2},
}
SHAPES = [  # rows, inputs, outputs: rests of every span, tile and vector
    (1, 1, 1), (1, 7, 10), (3, 300, 130), (2, 2048, 5), (1, 2049, 128), (2, 4100, 514), (9, 33, 1000), (5, 16, 512),
]  # fmt: skip


def neuron_expression(rule, dtype=torch.float32):
    integers, numbers = ops.pack(rule, *NUMBERS)
    return event.neuron_launch((0,) * 7, (1, 10, 1, 1), dtype, 10, 10, [0, 0, *integers], numbers).expression


def rule_of(name):
    return Rule(surrogate.ATan(), **RULES[name])


LINEAR = [f"{launch.NAMESPACE}event_linear<{io}, {tiles}>" for io in event._DTYPES.values() for tiles in (1, 4)]
NEURON = list(dict.fromkeys(neuron_expression(rule_of(n), d) for n in RULES for d in event._DTYPES))


# --- compiled without a driver ------------------------------------------------------------------------------------------


@needs_nvrtc
@pytest.mark.parametrize("architecture", compile.ARCHITECTURES)
def test_kernels_compile_without_spills_and_within_registers(architecture):
    expressions = [*LINEAR, *(neuron_expression(rule_of(n)) for n in ("lif-subtract", "delay", "cuba", "adaptive"))]
    # six or eight blocks of 128 threads a processor
    assert_compiles(expressions, architecture, "event.cu", lambda expression: 80 if expression.endswith(", 4>") else 64)


@needs_nvrtc
@pytest.mark.parametrize("expression", LINEAR[:2])
def test_weights_are_read_four_at_a_time_past_the_coherent_cache(expression):
    ptx, _, _ = compile.build([expression], "compute_90", source="event.cu")
    assert ptx.count(b"ld.global.nc.v4") == 4 + 8  # a thread's 16 inputs; eight vectors of weights a turn
    assert b"fma.rn.f32" not in ptx  # the same sums on every machine, and on the CPU below


@needs_nvrtc
def test_binaries_of_the_two_sources_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKING_CACHE", str(tmp_path))
    first = compile.binary(LINEAR[:1], 90, "event.cu")
    assert first.path.read_bytes()[:4] == b"\x7fELF"
    monkeypatch.setattr(compile, "build", None)  # a second compilation would fail
    assert compile.binary(LINEAR[:1], 90, "event.cu") == first
    with pytest.raises(TypeError, match="not callable"):
        compile.binary(LINEAR[:1], 90, "neuron.cu")


# --- one table of arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "table"), [("event_linear", event.LINEAR), ("event_neuron", event.NEURON)])
def test_the_table_of_arguments_is_the_kernel_s(name, table):
    assert_table_is_the_kernel_s("event.cu", name, table)


def test_constants_of_python_and_c_agree():
    each = int(re.search(r"EACH = (\d+);", SOURCE).group(1))
    threads = int(re.search(r"THREADS = (\d+);", (Path(compile.__file__).parent / "common.cuh").read_text()).group(1))
    assert (threads, 4 * 32) == (event._THREADS, event._TILE)
    assert threads + threads * each * (4 + 2) == event._LIST


# --- the same source on the CPU -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def kernels(compile_for_host):
    return compile_for_host("event.cu", {**dict.fromkeys(LINEAR, event.LINEAR), **dict.fromkeys(NEURON, event.NEURON)})


@pytest.fixture
def on_host(kernels, run_on_host, monkeypatch):
    """CPU tensors pass for a CUDA device's, and launches run here; the list of them."""
    monkeypatch.setattr(event, "here", lambda x: True)
    monkeypatch.setattr(event, "FEWEST_BYTES", 0)
    yield run_on_host(kernels)
    event_linear_ops.release()


def spikes(*shape, density=0.1, seed=0, dtype=torch.float32, grid=True):
    """Zeros and small multiples of 1/4 (whose sums with weights on a grid are exact), or any numbers."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 9, shape, generator=g) / 4 if grid else torch.randn(shape, generator=g)
    return (values * (torch.rand(shape, generator=g) < density)).to(dtype)


def weights(outputs, inputs, seed=1, dtype=torch.float32, grid=True):
    g = torch.Generator().manual_seed(seed)
    values = (
        torch.randint(-32, 33, (outputs, inputs), generator=g) / 32
        if grid
        else torch.randn(outputs, inputs, generator=g)
    )
    return values.to(dtype)


@pytest.mark.parametrize("tiles", [1, 4])
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_event_linear_is_the_dense_product(on_host, monkeypatch, shape, density, tiles):
    monkeypatch.setattr(event, "_MANY_BLOCKS", 0 if tiles == 4 else 1 << 40)
    rows, inputs, outputs = shape
    x, w, b = spikes(rows, inputs, density=density), weights(outputs, inputs), weights(1, outputs)[0]
    for bias in (b, None):
        expected = torch.nn.functional.linear(x.double(), w.double(), None if bias is None else bias.double())
        assert torch.equal(F.event_linear(x, w, bias), expected.float())
    assert [plan.expression.split(", ")[-1] for plan in on_host] == [f"{tiles}>"] * 2


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 140)),
    density=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40)
def test_any_numbers_agree_with_the_dense_product_to_rounding(kernels, launch_on_host, shape, density, seed):
    rows, inputs, outputs = shape
    x = spikes(rows, inputs, density=density, seed=seed, grid=False)
    w = weights(outputs, inputs, seed=seed + 1, grid=False)
    y = torch.full((rows, outputs), math.nan)
    turned = event.transposed(w)
    addresses = (x.data_ptr(), turned.data_ptr(), 0, y.data_ptr())
    launch_on_host(kernels, event.linear_launch(addresses, shape, torch.float32))
    bound = (x.abs().double() @ w.abs().double().T) * (inputs + 1) * 2**-24
    assert ((y.double() - x.double() @ w.double().T).abs() <= bound).all()


def test_bfloat16_is_summed_in_float32_and_rounded_once(on_host):
    x, w = spikes(2, 1000, dtype=torch.bfloat16), weights(130, 1000, dtype=torch.bfloat16)
    b = weights(1, 130, seed=5, dtype=torch.bfloat16)[0]
    y = F.event_linear(x, w, b)
    assert torch.equal(y, (x.double() @ w.double().T + b.double()).to(torch.bfloat16))


def test_a_row_gives_the_same_bits_in_any_batch_and_launch(on_host, monkeypatch):
    x, w = spikes(6, 2500, grid=False), weights(600, 2500, grid=False)
    whole = F.event_linear(x, w)
    monkeypatch.setattr(event, "_MANY_BLOCKS", 0)
    assert torch.equal(F.event_linear(x, w), whole)
    assert torch.equal(torch.cat([F.event_linear(row, w) for row in x.split(1)]), whole)
    assert torch.equal(F.event_linear(x.reshape(3, 2, -1), w), whole.reshape(3, 2, -1))


def test_memory_that_is_not_aligned_or_not_contiguous_is_read_all_the_same(on_host):
    x, w = spikes(3, 64), weights(20, 64)
    expected = F.event_linear(x, w)
    shifted = torch.cat([torch.zeros(1), x.flatten()])[1:].view(3, 64)
    assert shifted.data_ptr() % 16
    assert torch.equal(F.event_linear(shifted, w), expected)
    assert torch.equal(F.event_linear(x.t().contiguous().t(), w.t().contiguous().t()), expected)
    assert [plan.arguments[-1] for plan in on_host] == [1, 0, 1]


def test_what_is_not_finite_passes_through_as_in_a_dense_product(on_host):
    x, w = spikes(2, 50), weights(20, 50)
    x[1, 3] = math.nan
    y = F.event_linear(x, w)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()
    w[5, 7] = math.inf  # zero times infinity is not a number, which skipping zeros would hide
    x[:, 7] = 0.0
    n = len(on_host)
    assert F.event_linear(x, w)[0, 5].isnan()
    assert len(on_host) == n


def test_weights_that_change_are_seen(on_host):
    layer = spiking.Linear(40, 12)
    x = spikes(2, 40)
    with torch.no_grad():
        for _ in range(2):
            assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5)
            layer.weight.mul_(2.0)
        layer.load_state_dict(spiking.Linear(40, 12).state_dict())
        assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5)
    assert len(on_host) == 3


# --- with the neurons ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["number", "channel"])
@pytest.mark.parametrize("name", RULES)
def test_neurons_spike_as_the_oracle_does_on_the_same_current(on_host, name, per):
    rule, (steps, batch, inputs, outputs) = rule_of(name), (5, 2, 300, 130)
    x, w, b = spikes(steps, batch, inputs, density=0.02), weights(outputs, inputs), weights(1, outputs)[0]
    g = torch.Generator().manual_seed(3)
    state = torch.randn((rule.n_states, batch, outputs), generator=g) * 0.3
    if rule.refractory:
        state[-1] = torch.randint(0, rule.refractory + 1, (batch, outputs), generator=g)
    cells = [torch.full((outputs,), n) + torch.rand(outputs, generator=g) * 0.1 for n in NUMBERS]
    numbers = NUMBERS if per == "number" else (0.0, 0.0, 0.0)
    params = None if per == "number" else torch.stack(cells)
    integers, packed = ops.pack(rule, *numbers)
    with torch.no_grad():
        found = event_linear_ops.linear_neurons(x[:4], w, b, state, params, 1, integers, packed)
        current = F.event_linear(x[:4], w, b)
    cells = cells if per == "channel" else [torch.tensor(n) for n in NUMBERS]
    s, last, _ = reference.run(current, state, *cells, rule)
    assert torch.equal(found[0], s)
    assert torch.equal(found[1], last)
    assert 0 < s.mean() < 1
    assert ["neuron" in plan.expression for plan in on_host] == [True, False]


def test_bfloat16_neurons_keep_a_float_state_and_round_their_current(on_host):
    x, w = spikes(4, 2, 100, dtype=torch.bfloat16), weights(20, 100, dtype=torch.bfloat16)
    rule = rule_of("lif-subtract")
    integers, packed = ops.pack(rule, *NUMBERS)
    with torch.no_grad():
        s, last = event_linear_ops.linear_neurons(x, w, None, None, None, 1, integers, packed)
        current = F.event_linear(x, w)
    expected, after, _ = reference.run(current, torch.zeros(1, 2, 20), *(torch.tensor(n) for n in NUMBERS), rule)
    assert (s.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(s, expected)
    assert torch.equal(last, after)


def network():
    torch.manual_seed(0)
    net = spiking.Sequential(
        spiking.Linear(60, 40), spiking.LIF(beta=0.5, threshold=0.2), spiking.Linear(40, 9), spiking.CuBaLIF()
    )
    return net.eval()


def test_a_network_streams_through_one_kernel_a_layer_and_cuts_anywhere(on_host):
    net, x = network(), spikes(6, 1, 60, density=0.3)
    with torch.no_grad():
        whole, state = net(x, return_state=True)
        assert ["neuron" in plan.expression for plan in on_host] == [True, True]
        assert torch.equal(net(x), whole)
        head, half = net(x[:2], return_state=True)
        tail, last = net(x[2:], state=half, return_state=True)
        assert torch.equal(torch.cat([head, tail]), whole)
        steps, streamed = [], None
        for x_t in x:
            s, streamed = net.step(x_t, streamed)
            steps.append(s)
        assert torch.equal(torch.stack(steps), whole)
    for a in (last, streamed):
        assert a[0] is None
        assert torch.equal(a[1].v, state[1].v)
        assert torch.equal(a[3].i_syn, state[3].i_syn)


def test_somebody_who_watches_a_layer_sees_its_output(on_host):
    net, seen = network(), []
    net[0].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    with torch.no_grad():
        current = net[0](spikes(2, 1, 60))
        on_host.clear()
        with pytest.raises(KeyError):  # the neurons run alone, through a kernel that is not compiled here
            net(spikes(2, 1, 60))
    assert torch.equal(seen[1], current)


def test_a_wrong_state_is_refused_by_name(on_host):
    with torch.no_grad(), pytest.raises(SpikingError, match=r'layer "0": LIF: got a state of shape \[1, 7\]'):
        network().step(spikes(1, 60), (None, spiking.neuron.LIFState(torch.zeros(1, 7)), None, None))


# --- who decides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "w", "options", "reason"),
    [
        ((1, 8), (8, 8), {"learns": True}, "training multiplies densely on CUDA"),
        ((9, 8), (8, 8), {}, "9 rows share each weight that a dense product reads; up to 8 "),
        ((3, 3, 8), (8, 8), {}, "9 rows"),
        ((1, 8), (8, 8), {}, "256 bytes of weights are read sooner than a kernel is launched; expected 16,777,216"),
        ((1, 0), (8, 0), {"always": True}, "there is nothing to multiply"),
        ((1, 8), (8, 8), {"always": True}, "backend cpu: the tensors are on cpu"),
        ((1, 8), (8, 8), {"neurons": True}, "backend cpu: the tensors are on cpu"),
    ],
)
def test_the_reason_for_a_dense_product_is_said(x, w, options, reason):
    with torch.no_grad():
        said = event.why_dense(torch.zeros(x), torch.zeros(w), **{"learns": False, **options})
    assert said is not None
    assert reason in said


def test_other_dtypes_and_autocast_are_dense():
    x, w = torch.zeros(1, 8, dtype=torch.float64), torch.zeros(8, 8, dtype=torch.float64)
    assert (
        event.why_dense(x, w, learns=False)
        == "torch.float64 has no event-driven CUDA kernel; float32 and bfloat16 have"
    )
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=False):
        assert "bytes of weights" in event.why_dense(x.float(), w.float(), learns=False)


def test_the_mode_and_the_rows_decide(on_host, monkeypatch):
    layer = spiking.Linear(40, 12)
    few, many = spikes(8, 1, 40), spikes(9, 1, 40)
    ran = []
    for x, mode, grad in [
        (few, "auto", False), (many, "auto", False), (many, "always", False), (few, "never", False), (few, "auto", True),
    ]:  # fmt: skip
        with driven.event_driven(mode), torch.set_grad_enabled(grad):
            n = len(on_host)
            assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5)
            ran.append(len(on_host) > n)
    assert ran == [True, False, True, False, False]
    x = few.clone().requires_grad_()
    layer(x).sum().backward()
    F.event_linear(x, layer.weight, layer.bias).sum().backward()
    assert layer.weight.grad is not None
    assert len(on_host) == 2


def test_explain_says_why(on_host, monkeypatch, capsys):
    net = network()
    rows = spiking.explain(net[:1], spikes(8, 1, 60))
    assert [(row.choice, row.reason) for row in rows] == [("event-driven", "at most 8 rows share the weights")]
    assert "(nan)" not in capsys.readouterr().out
    assert "9 rows share each weight" in spiking.explain(net[:1], spikes(9, 1, 60), show=False)[0].reason
    conv = spiking.Sequential(spiking.Conv2d(1, 2, 3))
    rows = spiking.explain(conv, torch.zeros(1, 1, 1, 5, 5), show=False) if hasattr(conv[0], "event_choice") else []
    assert all(row.reason == "convolutions are dense on CUDA (cuDNN)" for row in rows)
    net[0].weight.data[0, 0] = math.inf
    assert "a weight is infinite or NaN" in spiking.explain(net[:1], spikes(1, 1, 60), show=False)[0].reason


def test_the_report_says_what_is_dense_on_cuda():
    said = backend.report()["event_driven_on_cuda"]
    assert said.startswith(f"linear layers in inference, up to {event.MOST_ROWS} rows (T·B)")
    assert "dense (cuBLAS, cuDNN)" in said


# --- on a real device ---------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (512, 4096, 4096)], ids=str)
def test_a_device_gives_the_dense_product(shape, dtype):
    rows, inputs, outputs = shape
    x, w = spikes(rows, inputs, density=0.05, dtype=dtype), weights(outputs, inputs, dtype=dtype)
    y = F.event_linear(x.cuda(), w.cuda(), w.cuda()[:, 0].contiguous())
    assert torch.equal(y.cpu(), (x.double() @ w.double().T + w.double()[:, 0]).to(dtype))


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("name", RULES)
def test_a_device_s_fused_neurons_are_those_of_two_kernels(name):
    x, w = spikes(6, 1, 300, density=0.02).cuda(), weights(130, 300).cuda()
    integers, packed = ops.pack(rule_of(name), *NUMBERS)
    with torch.no_grad():
        s, last = event_linear_ops.linear_neurons(x, w, None, None, None, 1, integers, packed)
        expected, after, _ = ops.integrate(F.event_linear(x, w), None, None, 1, integers, packed, 0)
    assert torch.equal(s, expected)
    assert torch.equal(last, after)


@pytest.mark.gpu
@on_gpu
def test_a_device_streams_a_network_on_a_side_stream_and_in_a_graph():
    net, x = network().cuda(), spikes(6, 1, 60, density=0.3).cuda()
    with torch.no_grad():
        expected = net(x)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            there = net(x)
        stream.synchronize()
        assert torch.equal(there, expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = net(x)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, expected)
