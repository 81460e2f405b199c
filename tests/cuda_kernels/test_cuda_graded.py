"""The CUDA kernels of graded spikes: compiled without a driver, and the same source run on the CPU against the oracle."""

import pytest
import torch
from cuda_sources import assert_compiles, assert_table_is_the_kernel_s, needs_nvrtc
from graded_cases import RULES, case, run_op, run_oracle
from spiking.cuda_kernels import graded_ops, ops
from spiking.cuda_kernels.cuda import compile, graded

TABLES = {
    graded.expression(way, spacing, dtype): table
    for spacing in range(len(graded_ops.SPACINGS))
    for dtype in range(len(ops._DTYPES))
    for way, table in (("forward", graded.FORWARD), ("backward", graded.BACKWARD))
}


@needs_nvrtc
@pytest.mark.parametrize("architecture", compile.ARCHITECTURES)
def test_kernels_compile_without_spills_and_within_registers(architecture):
    assert_compiles(list(TABLES), architecture, "graded.cu")


@pytest.mark.parametrize(("name", "table"), [("graded_forward", graded.FORWARD), ("graded_backward", graded.BACKWARD)])
def test_the_table_of_arguments_is_the_kernel_s(name, table):
    assert_table_is_the_kernel_s("graded.cu", name, table)


@pytest.fixture(scope="session")
def kernels(compile_for_host):
    return compile_for_host("graded.cu", TABLES)


@pytest.fixture
def on_host(kernels, run_on_host):
    return run_on_host(kernels)


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("cells", ["one", "channels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("spacing", "levels"), RULES)
def test_the_source_gives_the_oracle_s_numbers(on_host, spacing, levels, dtype, cells, with_state):
    x, state, params, grads = case((5, 2, 3, 50), dtype, cells, with_state)
    found = []
    for run, extra in ((run_op, (50 if cells == "channels" else 1,)), (run_oracle, ())):
        leaves = [t.clone().requires_grad_() for t in (x, state, params) if t is not None]
        given = iter(leaves)
        outputs = run(next(given), None if state is None else next(given), next(given), spacing, levels, 0.1, *extra)
        found.append((*outputs, *torch.autograd.grad(outputs, leaves, grads)))
    assert len(on_host) == 2
    most = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 2**-7, torch.float16: 2**-10}
    for got, expected in zip(*found):
        assert (got - expected).abs().max() <= most[got.dtype] * max(1, expected.abs().max())


def test_no_neurons_launch_nothing(on_host):
    x, state, params, _ = case((3, 2, 0), torch.float32, "one", True)
    assert run_op(x, state, params, "linear", 2, 0.0, 1)[0].shape == (3, 2, 0)
    assert on_host == []
