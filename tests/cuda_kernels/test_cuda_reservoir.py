"""CUDA kernel of the reservoir: compiled without a driver, and the same source run on the CPU with the CPU kernel's bits."""

import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from spiking.cuda_kernels import backend, memory
from spiking.cuda_kernels import reservoir_ops as ops
from spiking.cuda_kernels.backend import Choice
from spiking.cuda_kernels.cuda import compile, launch, reservoir

SOURCE = (Path(compile.__file__).parent / "reservoir.cu").read_text()
TABLES = {f"{launch.NAMESPACE}reservoir<{io}>": reservoir.TABLE for io in ("float", "double")}

needs_nvrtc = pytest.mark.skipif(
    compile.nvrtc_version() is None, reason="NVRTC was not found (pip install nvidia-cuda-nvrtc)"
)


@needs_nvrtc
@pytest.mark.parametrize("architecture", compile.ARCHITECTURES)
def test_the_kernel_compiles_without_spills(architecture):
    code, symbols, log = compile.build(list(TABLES), f"sm_{architecture}", ["--ptxas-options=-v"], "reservoir.cu")
    assert code[:4] == b"\x7fELF"
    reports = log.split("Function properties for")[1:]
    assert len(reports) == len(set(symbols.values())) == len(TABLES)
    names = {symbol: name for name, symbol in symbols.items()}
    for report in reports:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report
        most = 128 if "double" in names[report.split()[0]] else 96
        assert int(re.search(r"Used (\d+) registers", report).group(1)) <= most


def test_the_table_of_arguments_is_the_kernel_s():
    found = re.search(r" reservoir\(\n(.*?)\) \{", SOURCE, re.DOTALL)
    declared = [argument.replace("__restrict__ ", "").split() for argument in found.group(1).split(",")]
    assert [(words[-1], " ".join(words[:-1])) for words in declared] == list(reservoir.TABLE)


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
def on_host(kernels, launch_on_host, monkeypatch):
    """Launches run here, on weights as they lie on a device; new memory holds NaN, so that nothing passes by being left over."""
    launched = []

    def launch_here(plan, device):
        launch_on_host(kernels, plan)
        launched.append(plan)

    def empty(shape, dtype, device):
        return torch.full(tuple(shape), math.nan, dtype=dtype, device=device)

    monkeypatch.setattr(backend, "choose", lambda device: Choice("cuda"))
    monkeypatch.setattr(memory, "empty", empty)
    monkeypatch.setattr(launch, "run", launch_here)
    monkeypatch.setattr(ops, "_panels", ops._rows)
    return launched


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


WITHOUT_GPU = (
    "torch sees no CUDA device"
    if not torch.cuda.is_available()
    else "cupy is not installed"
    if importlib.util.find_spec("cupy") is None
    else compile.why_not()
)


@pytest.mark.gpu
@pytest.mark.skipif(WITHOUT_GPU is not None, reason=str(WITHOUT_GPU))
@pytest.mark.parametrize("zeros", [0.0, 0.9])
@pytest.mark.parametrize("graded", [False, True])
def test_a_device_gives_the_bits_of_the_cpu(graded, zeros):
    given = case(50, 64, 256, 200, graded=graded, zeros=zeros)
    assert all(torch.equal(x.cpu(), y) for x, y in zip(run(*given, device="cuda"), run(*given)))
