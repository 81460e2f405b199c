"""CUDA sources compiled for the CPU: host/cuda_on_cpu.h runs them block by block and thread by thread."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cuda_sources import pretend_cuda
from spiking.cuda_kernels.cuda import compile

HOST = Path(__file__).parent / "host"
PACKAGE = Path(compile.__file__).parent.parent


def _host_source(source, tables):
    """The source with one entry per instantiation; arguments arrive as the driver takes them, an address each."""
    parts = [f'#include "cuda_on_cpu.h"\n#include "{source}"\nusing namespace spiking_cuda;\n']
    for number, (expression, table) in enumerate(tables.items()):
        io = re.search(r"(float|double|spiking_cuda::b?f16)", expression).group(1)
        state = "double" if io == "double" else "float"
        types = [re.sub(r"\bT\b", state, re.sub(r"\bIO\b", io, c_type)) for _, c_type in table]
        values = ", ".join(f"*static_cast<{c_type}*>(a[{i}])" for i, c_type in enumerate(types))
        parts.append(
            f'extern "C" int kernel_{number}(unsigned blocks, unsigned threads, unsigned shared, void** a) {{\n'
            f"    void (*kernel)({', '.join(types)}) = {expression};\n"
            f"    return launch(blocks, threads, shared, [=] {{ kernel({values}); }});\n}}\n"
        )
    return "".join(parts)


@pytest.fixture(scope="session")
def compile_for_host(tmp_path_factory):
    """(source, {name expression: its table of arguments}) -> {name expression: the compiled host function}."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the kernels for the CPU with")

    def build(source, tables):
        folder = tmp_path_factory.mktemp("host")
        (folder / "host.cpp").write_text(_host_source(source, tables))
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-w"]
        folders = [f"-I{p}" for p in (HOST, PACKAGE / "cuda", PACKAGE / "include")]
        subprocess.run([compiler, *flags, *folders, "host.cpp", "-o", "host.so"], cwd=folder, check=True)
        library = ctypes.CDLL(str(folder / "host.so"))
        return {expression: getattr(library, f"kernel_{number}") for number, expression in enumerate(tables)}

    return build


@pytest.fixture(scope="session")
def launch_on_host():
    """Run a launch with a compiled host function; the arguments are those that CuPy would pass."""

    def run(kernels, plan):
        held = [np.array(argument) for argument in plan.arguments]  # one value each, in the type that a launch passes
        addresses = (ctypes.c_void_p * len(held))(*(h.ctypes.data for h in held))
        assert kernels[plan.expression](plan.blocks, plan.threads, plan.shared, addresses) == 0

    return run


@pytest.fixture
def run_on_host(launch_on_host, monkeypatch):
    """kernels -> the list of launches, which from now on run here, with these compiled host functions."""

    def begin(kernels):
        launched = []

        def run(plan, device):
            launch_on_host(kernels, plan)
            launched.append(plan)

        pretend_cuda(monkeypatch, run)
        return launched

    return begin
