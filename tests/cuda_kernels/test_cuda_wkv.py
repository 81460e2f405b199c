"""The CUDA kernels of WKV: compiled without a driver, and the same source run on the CPU against the oracle."""

import importlib.util
import math
import re
from pathlib import Path

import pytest
import torch
from spiking.cuda_kernels import backend, memory, ops, reference, wkv_ops
from spiking.cuda_kernels.backend import Choice
from spiking.cuda_kernels.cuda import compile, launch, wkv

SOURCE = (Path(compile.__file__).parent / "wkv.cu").read_text()
TABLES = {
    f"{launch.NAMESPACE}wkv_{way}<{io}>": table
    for io in wkv._IO
    for way, table in (("forward", wkv.FORWARD), ("backward", wkv.BACKWARD))
}
SHAPES = [(1, 1, 1), (16, 2, 33), (37, 3, 50), (50, 1, 129)]

needs_nvrtc = pytest.mark.skipif(
    compile.nvrtc_version() is None, reason="NVRTC was not found (pip install nvidia-cuda-nvrtc)"
)


@needs_nvrtc
@pytest.mark.parametrize("architecture", compile.ARCHITECTURES)
def test_kernels_compile_without_spills_and_within_registers(architecture):
    code, symbols, log = compile.build(list(TABLES), f"sm_{architecture}", ["--ptxas-options=-v"], "wkv.cu")
    assert code[:4] == b"\x7fELF"
    reports = log.split("Function properties for")[1:]
    assert len(reports) == len(set(symbols.values())) == len(TABLES)
    names = {symbol: name for name, symbol in symbols.items()}
    for report in reports:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report
        most = 128 if "double" in names[report.split()[0]] else 96
        assert int(re.search(r"Used (\d+) registers", report).group(1)) <= most


@pytest.mark.parametrize(("name", "table"), [("wkv_forward", wkv.FORWARD), ("wkv_backward", wkv.BACKWARD)])
def test_the_table_of_arguments_is_the_kernel_s(name, table):
    found = re.search(rf" {name}\(\n(.*?)\) \{{", SOURCE, re.DOTALL)
    declared = [argument.replace("__restrict__ ", "").split() for argument in found.group(1).split(",")]
    assert [(words[-1], " ".join(words[:-1])) for words in declared] == list(table)


@pytest.fixture(scope="session")
def kernels(compile_for_host):
    return compile_for_host("wkv.cu", TABLES)


@pytest.fixture
def on_host(kernels, launch_on_host, monkeypatch):
    """Launches run here; new memory holds NaN, so that nothing passes by being left over. The list of launches."""
    launched = []

    def run(plan, device):
        launch_on_host(kernels, plan)
        launched.append(plan)

    def empty(shape, dtype, device):
        return torch.full(tuple(shape), math.nan, dtype=dtype, device=device)

    monkeypatch.setattr(backend, "choose", lambda device: Choice("cuda"))
    monkeypatch.setattr(memory, "empty", empty)
    monkeypatch.setattr(launch, "run", run)
    return launched


def _case(shape, dtype, with_state, device="cpu"):
    _, batch, channels = shape
    g = torch.Generator().manual_seed(0)
    wide = ops.state_dtype(dtype)
    k, v, gy = (torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for _ in range(3))
    w, u = (torch.randn(channels, generator=g, dtype=torch.float64).to(wide) for _ in range(2))
    state = torch.rand(3, batch, channels, generator=g, dtype=torch.float64).add(0.5).to(wide) if with_state else None
    g1 = torch.randn(3, batch, channels, generator=g, dtype=torch.float64).to(wide)
    g1[2] = 0
    leaves = [t.to(device).requires_grad_() for t in (-w.exp(), u, k, v, state) if t is not None]
    return leaves, [gy.to(device), g1.to(device)]


def _run(leaves, grads):
    y, last, _ = wkv_ops.wkv(*leaves[:4], leaves[4] if len(leaves) > 4 else None, True)
    return [y, last, *torch.autograd.grad([y, last], leaves, grads)]


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_source_gives_the_oracle_s_numbers(on_host, dtype, shape, with_state):
    leaves, grads = _case(shape, dtype, with_state)
    found = _run(leaves, grads)
    assert [plan.expression for plan in on_host] == [
        f"{launch.NAMESPACE}wkv_{way}<{wkv._IO[ops._DTYPES.index(dtype)]}>" for way in ("forward", "backward")
    ]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    outputs = reference.wkv(*exact[:4], exact[4] if with_state else wkv_ops._rest(exact[2]))
    wanted = [*outputs, *torch.autograd.grad(outputs, exact, [t.double() for t in grads], allow_unused=True)]
    for got, expected in zip(found, wanted):
        most = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[got.dtype]
        assert torch.isfinite(got).all()
        expected = torch.zeros_like(got) if expected is None else expected
        assert (got.double() - expected).abs().max() <= most * max(1, expected.abs().max())


def test_no_channels_launch_nothing(on_host):
    leaves, grads = _case((3, 2, 0), torch.float32, False)
    assert _run(leaves, grads)[0].shape == (3, 2, 0)
    assert on_host == []


WITHOUT_GPU = (
    "torch sees no CUDA device"
    if not torch.cuda.is_available()
    else "cupy is not installed"
    if importlib.util.find_spec("cupy") is None
    else compile.why_not()
)


@pytest.mark.gpu
@pytest.mark.skipif(WITHOUT_GPU is not None, reason=str(WITHOUT_GPU))
@pytest.mark.parametrize("shape", [*SHAPES, (4096, 2, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_device_gives_the_numbers_of_the_cpu(dtype, shape):
    for there, here in zip(_run(*_case(shape, dtype, True, "cuda")), _run(*_case(shape, dtype, True))):
        most = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[here.dtype]
        assert (there.cpu().double() - here.double()).abs().max() <= most * max(1, here.double().abs().max())
