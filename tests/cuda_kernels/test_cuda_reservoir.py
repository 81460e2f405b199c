"""CUDA kernel of the reservoir: compiled without a driver, and the same source run on the CPU with the CPU kernel's bits."""

import numpy as np
import pytest
import torch
from cuda_sources import assert_compiles, assert_table_is_the_kernel_s, needs_nvrtc, on_gpu
from spiking.cuda_kernels import reservoir_ops as ops
from spiking.cuda_kernels.cuda import compile, launch, reservoir

TABLES = {f"{launch.NAMESPACE}reservoir<{io}>": reservoir.TABLE for io in ("float", "double")}


@needs_nvrtc
@pytest.mark.parametrize("architecture", compile.ARCHITECTURES)
def test_the_kernel_compiles_without_spills(architecture):
    assert_compiles(list(TABLES), architecture, "reservoir.cu")


def test_the_table_of_arguments_is_the_kernel_s():
    assert_table_is_the_kernel_s("reservoir.cu", "reservoir", reservoir.TABLE)


def case(T, B, inputs, n, *, graded=False, zeros=0.0, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    x = (torch.rand(T, B, inputs, generator=g) < 0.3).to(dtype)
    if graded:
        x = x * torch.randn(x.shape, generator=g, dtype=dtype)
    w_in, w_rec = (torch.randn(n, k, generator=g, dtype=dtype) * 0.4 for k in (inputs, n))
    w_rec = torch.where(torch.rand(n, n, generator=g) < zeros, 0.0, w_rec)
    return x, w_in, w_rec, torch.randn(n, generator=g, dtype=dtype) * 0.05


def run(x, w_in, w_rec, bias, device="cpu", **state):
    x, *weights = (t.to(device) for t in (x, w_in, w_rec, bias))
    bins = torch.arange(len(x)) * 2 // len(x)
    return ops.run_reservoir(
        x, ops.ReservoirWeights(*weights), beta=0.8, threshold=0.9, bins=bins, worth=torch.linspace(0.5, 1.5, len(x)),
        keep_spikes=True, keep_membrane=True, **state,
    )  # fmt: skip


@pytest.fixture(scope="session")
def kernels(compile_for_host):
    return compile_for_host("reservoir.cu", TABLES)


@pytest.fixture
def on_host(kernels, run_on_host, monkeypatch):
    """Launches run here, on weights as they lie on a device."""
    monkeypatch.setattr(ops, "_panels", ops._rows)
    return run_on_host(kernels)


@pytest.mark.parametrize("shape", [(6, 3, 5, 1), (9, 2, 300, 70), (4, 1, 3, 200)])
@pytest.mark.parametrize(("graded", "zeros"), [(False, 0.0), (True, 0.0), (False, 0.9), (False, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_source_gives_the_bits_of_the_cpu_kernel(request, shape, graded, zeros, dtype):
    given = case(*shape, graded=graded, zeros=zeros, dtype=dtype)
    here = run(*given)
    again = run(*given, u=here.u, s=here.s)
    launched = request.getfixturevalue("on_host")
    there = run(*given)
    assert [plan.source for plan in launched] == ["reservoir.cu"]
    for a, b in ((there, here), (run(*given, u=there.u, s=there.s), again)):
        assert all(torch.equal(x, y) for x, y in zip(a, b))


def test_the_source_does_not_fire_at_the_threshold(on_host, golden):
    data = np.load(golden / "lsm" / "lsm_tie.npz")
    x, w_in, w_rec, spikes = (torch.from_numpy(data[name]) for name in ("x", "W_in", "W_rec", "spikes"))
    found = ops.run_reservoir(
        x, ops.ReservoirWeights(w_in, w_rec), beta=float(data["decay"]), threshold=float(data["vth"]),
        bins=torch.zeros(len(x), dtype=torch.int64), worth=torch.ones(len(x)), keep_spikes=True,
    )  # fmt: skip
    assert len(on_host) == 1
    assert torch.equal(found.spikes, spikes)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("zeros", [0.0, 0.9])
@pytest.mark.parametrize("graded", [False, True])
def test_a_device_gives_the_bits_of_the_cpu(graded, zeros):
    given = case(50, 64, 256, 200, graded=graded, zeros=zeros)
    assert all(torch.equal(x.cpu(), y) for x, y in zip(run(*given, device="cuda"), run(*given)))
