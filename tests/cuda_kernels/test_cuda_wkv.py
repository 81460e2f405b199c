"""The CUDA kernels of WKV: compiled without a driver, and the same source run on the CPU against the oracle."""

import pytest
import torch
from cuda_sources import assert_compiles, assert_table_is_the_kernel_s, needs_nvrtc, on_gpu
from spiking.cuda_kernels import ops, reference, wkv_ops
from spiking.cuda_kernels.cuda import compile, launch, wkv

TABLES = {
    f"{launch.NAMESPACE}wkv_{way}<{io}>": table
    for io in wkv._IO
    for way, table in (("forward", wkv.FORWARD), ("backward", wkv.BACKWARD))
}
SHAPES = [(1, 1, 1), (16, 2, 33), (37, 3, 50), (50, 1, 129)]


@needs_nvrtc
@pytest.mark.parametrize("architecture", compile.ARCHITECTURES)
def test_kernels_compile_without_spills_and_within_registers(architecture):
    assert_compiles(list(TABLES), architecture, "wkv.cu")


@pytest.mark.parametrize(("name", "table"), [("wkv_forward", wkv.FORWARD), ("wkv_backward", wkv.BACKWARD)])
def test_the_table_of_arguments_is_the_kernel_s(name, table):
    assert_table_is_the_kernel_s("wkv.cu", name, table)


@pytest.fixture(scope="session")
def kernels(compile_for_host):
    return compile_for_host("wkv.cu", TABLES)


@pytest.fixture
def on_host(kernels, run_on_host):
    return run_on_host(kernels)


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


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("shape", [*SHAPES, (4096, 2, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_device_gives_the_numbers_of_the_cpu(dtype, shape):
    for there, here in zip(_run(*_case(shape, dtype, True, "cuda")), _run(*_case(shape, dtype, True))):
        most = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[here.dtype]
        assert (there.cpu().double() - here.double()).abs().max() <= most * max(1, here.double().abs().max())
