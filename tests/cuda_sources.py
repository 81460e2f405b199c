"""What the tests of every CUDA source ask: that it compiles without a driver, takes the arguments of its table, and runs on a device."""

import importlib.util
import math
import re
from pathlib import Path

import pytest
import torch
from spiking.cuda_kernels import backend, memory
from spiking.cuda_kernels.backend import Choice
from spiking.cuda_kernels.cuda import compile, launch

FOLDER = Path(compile.__file__).parent
REGISTERS = {"float": 96, "double": 128}  # of 65 536 in a processor: five and four blocks of 128 threads

needs_nvrtc = pytest.mark.skipif(
    compile.nvrtc_version() is None, reason="NVRTC was not found (pip install nvidia-cuda-nvrtc)"
)
WITHOUT_GPU = (
    "torch sees no CUDA device"
    if not torch.cuda.is_available()
    else "cupy is not installed"
    if importlib.util.find_spec("cupy") is None
    else compile.why_not()
)
on_gpu = pytest.mark.skipif(WITHOUT_GPU is not None, reason=str(WITHOUT_GPU))


def registers(expression):
    """How many a kernel may use."""
    return REGISTERS["double" if "double" in expression else "float"]


def assert_compiles(expressions, architecture, source="neuron.cu", most=registers):
    """Every instantiation compiles, spills nothing, and uses at most `most(expression)` registers."""
    code, symbols, log = compile.build(expressions, f"sm_{architecture}", ["--ptxas-options=-v"], source)
    assert code[:4] == b"\x7fELF"
    reports = log.split("Function properties for")[1:]
    assert len(reports) == len(set(symbols.values())) == len(expressions)
    names = {symbol: name for name, symbol in symbols.items()}
    for report in reports:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in report
        assert int(re.search(r"Used (\d+) registers", report).group(1)) <= most(names[report.split()[0]])


def assert_table_is_the_kernel_s(source, name, table):
    """Names and C types of a kernel's arguments are those of its table."""
    found = re.search(rf"\b{name}\(\n(.*?)\) \{{", (FOLDER / source).read_text(), re.DOTALL)
    declared = [argument.replace("__restrict__ ", "").split() for argument in found.group(1).split(",")]
    assert [(words[-1], " ".join(words[:-1])) for words in declared] == list(table)


def pretend_cuda(patch, run):
    """Let ops believe that they run on CUDA, `run(plan, device)` being a launch; new memory holds NaN, so that nothing passes by
    being left over."""

    def empty(shape, dtype, device):
        return torch.full(tuple(shape), math.nan if dtype.is_floating_point else -1, dtype=dtype, device=device)

    patch.setattr(backend, "choose", lambda device: Choice("cuda"))
    patch.setattr(memory, "empty", empty)
    patch.setattr(launch, "run", run)
