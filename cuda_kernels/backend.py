"""Which implementation runs on a device, and in one sentence each why the others do not. The only reader of the environment.

Variables: SPIKING_BACKEND (auto, cpu, cuda, reference), SPIKING_LEVEL (v2, v3, v4), SPIKING_ARENA (on, off),
SPIKING_ARENA_MB (bound of unused memory that the arena keeps), SPIKING_CACHE (folder of caches, here compiled CUDA kernels).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from spiking.errors import SpikingError

__all__ = ["Choice", "arena_on", "cache_dir", "choose", "compiled", "machine", "report", "set_arena_limit", "threads"]

BACKENDS = ("auto", "cpu", "cuda", "reference")


@dataclass(frozen=True)
class Choice:
    """The backend that runs, and why each other one does not.

    >>> Choice("cpu", not_used={"cuda": "cupy is not installed"}).name
    'cpu'
    """

    name: str
    not_used: dict[str, str] = field(default_factory=dict)


def _setting(name: str, default: str, allowed: tuple[str, ...]) -> str:
    value = os.environ.get(name, default)
    if value not in allowed:
        raise SpikingError(
            f"environment variable {name}: got {value!r}; expected one of {', '.join(allowed)}. Unset it for the default."
        )
    return value


@functools.cache
def compiled() -> ModuleType | None:
    """The compiled CPU module, or None (said once) where it was not built."""
    try:
        from spiking.cuda_kernels import _cpu  # type: ignore[attr-defined]
    except ImportError:
        warnings.warn(
            "spiking: the CPU kernels were not built (no C++17 compiler at install time?); the slower torch reference runs instead.",
            stacklevel=2,
        )
        return None
    os.register_at_fork(after_in_child=_one_thread_in_children)
    level = os.environ.get("SPIKING_LEVEL")
    if level is not None:
        if level not in _cpu.levels():
            raise SpikingError(
                f"environment variable SPIKING_LEVEL: got {level!r}; expected one of {', '.join(_cpu.levels())}, which this machine runs."
            )
        _cpu.set_level(level)
    _set_limit(_cpu, _arena_limit())
    if _arena_on:
        _cpu.keep_heap()
    return _cpu


def kernels() -> ModuleType:
    """The compiled CPU module, for calls that `choose` has sent to "cpu", which it does only where the module was built."""
    module = compiled()
    assert module is not None
    return module


_forked = False
_arena_on = False


def _set_limit(module: ModuleType, n_bytes: int) -> None:
    global _arena_on
    _arena_on = n_bytes > 0
    module.arena_limit(n_bytes)


def set_arena_limit(n_bytes: int) -> None:
    """Bound of the unused memory that the arena keeps; 0 switches it off."""
    module = compiled()
    if module is not None:
        _set_limit(module, n_bytes)


def arena_on() -> bool:
    """Whether outputs come from the arena."""
    return _arena_on


def _one_thread_in_children() -> None:
    # OpenMP's thread pool does not survive a fork: a second thread would wait for ever.
    global _forked
    _forked = True


def threads() -> int:
    """How many threads the CPU kernels may use: torch.get_num_threads(), or one in a forked child."""
    return 1 if _forked else torch.get_num_threads()


def _arena_limit() -> int:
    if _setting("SPIKING_ARENA", "on", ("on", "off")) == "off":
        return 0
    given = os.environ.get("SPIKING_ARENA_MB")
    if given is None:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return min(pages * size // 4, 8 << 30)
    if not given.isdigit():
        raise SpikingError(
            f"environment variable SPIKING_ARENA_MB: got {given!r}; expected a whole number of megabytes."
        )
    return int(given) << 20


def cache_dir() -> Path:
    """Where compiled kernels are kept: SPIKING_CACHE where it is set, else ~/.cache/spiking."""
    return Path(os.environ.get("SPIKING_CACHE") or Path.home() / ".cache" / "spiking")


@functools.cache
def _processor() -> tuple[str, ...]:
    """What the system says of the processor's maker, family, model and name."""
    try:
        with open("/proc/cpuinfo") as file:
            found = [line for line in file if line.startswith(("vendor_id", "model name", "cpu family", "model\t"))]
    except OSError:
        return (platform.processor() or platform.machine(),)
    return tuple(dict.fromkeys(line.split(":", 1)[1].strip() for line in found))


@functools.cache
def is_wide_amd() -> bool:
    """Whether this is a processor of AMD with 512-bit vectors."""
    module = compiled()
    return module is not None and "v4" in module.levels() and "AuthenticAMD" in _processor()


@functools.cache
def machine() -> str:
    """A name for this processor, its number of cores and the instruction set in use, fit for a file name."""
    module = compiled()
    words = re.findall(r"[A-Za-z0-9]+", " ".join(_processor()))
    return "-".join([*words, f"{os.cpu_count()}cores", "none" if module is None else module.level()])


@functools.cache
def _missing_for_cuda() -> str | None:
    if importlib.util.find_spec("cupy") is None:
        return "cupy is not installed (pip install spiking[cuda])"
    from .cuda import compile

    return compile.why_not()


def _why_not_cuda(device: torch.device) -> str | None:
    return _missing_for_cuda() if device.type == "cuda" else f"the tensors are on {device.type}"


def _why_not_cpu(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"the tensors are on {device.type}"
    if compiled() is None:
        return "the compiled module was not built"
    return None


@functools.cache  # read once: a look at the environment costs a microsecond, and this is asked at every call
def _wanted() -> str:
    return _setting("SPIKING_BACKEND", "auto", BACKENDS)


_CPU = Choice("cpu", {"cuda": "the tensors are on cpu", "reference": "it is slower"})


def choose(device: torch.device) -> Choice:
    """The backend for tensors on `device`.

    Errors: SpikingError where SPIKING_BACKEND asks for one that cannot run here.
    """
    wanted = _wanted()
    if wanted == "auto" and device.type == "cpu" and compiled() is not None:
        return _CPU
    reasons = {"cpu": _why_not_cpu(device), "cuda": _why_not_cuda(device), "reference": None}
    if wanted != "auto":
        reason = reasons[wanted]
        if reason is not None:
            raise SpikingError(
                f'backend "{wanted}" cannot run here: {reason}. Unset SPIKING_BACKEND to let the library pick, or use "reference".'
            )
        return Choice(wanted, {name: f"SPIKING_BACKEND={wanted}" for name in reasons if name != wanted})
    not_used: dict[str, str] = {}
    for name, reason in reasons.items():
        if reason is None:
            return Choice(name, not_used)
        not_used[name] = reason
    raise AssertionError("the reference runs everywhere")


def report() -> dict[str, Any]:
    """Facts for `spiking doctor`: backends and reasons, instruction sets, threads, arena, cost of fresh memory."""
    from . import cost
    from .cuda import compile

    module = compiled()
    device = torch.device("cpu")
    measured = cost.calibrated(threads())
    facts: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": threads(),
        "cpu": choose(device).__dict__,
        "cuda": choose(torch.device("cuda")).__dict__ if torch.cuda.is_available() else "torch sees no CUDA device",
        "cupy": importlib.util.find_spec("cupy") is not None,
        "nvrtc": compile.nvrtc_version() or compile.why_not(),
        "event_driven_on_cuda": _events_on_cuda(),
        "event_driven_costs": "those that came with the library (spiking doctor --calibrate measures this machine)"
        if measured is None
        else f"measured here: {measured}",
    }
    if module is not None:
        facts["compiled"] = {"level": module.level(), "levels": module.levels(), "openmp": module.threaded}
        stats = module.arena_stats()
        facts["arena"] = {
            **{f"{name}_mb": stats[name] >> 20 for name in ("limit", "cached", "in_use")},
            **{name: stats[name] for name in ("hits", "misses")},
        }
        facts["memory"] = _memory(module)
    return facts


def _events_on_cuda() -> str:
    from .cuda import event

    return (
        f"linear layers in inference, up to {event.MOST_ROWS} rows (T·B), float32 or bfloat16; all else is dense (cuBLAS, cuDNN): in "
        "training and in larger batches each weight that is read serves many rows"
    )


_PROBE_MB = 128
_TUNED = "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000"


def _memory(module: ModuleType) -> dict[str, Any]:
    """What a fresh and a reused block cost on this machine, and what would help the tensors that torch itself allocates."""
    fresh = min(module.page_fault_seconds(_PROBE_MB << 20) for _ in range(3)) * 1e3
    block = torch.zeros(_PROBE_MB << 18)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        block.fill_(1.0)
        times.append(time.perf_counter() - start)
    reused = min(times) * 1e3
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
            huge_pages = file.read().split("[")[1].split("]")[0]
    except (OSError, IndexError):
        huge_pages = "unknown"
    keeps = os.environ.get("MALLOC_MMAP_MAX_") == "0"
    advice = "nothing: fresh memory is cheap here"
    if keeps:
        advice = "nothing more: the allocator already keeps freed memory"
    elif fresh > 2 * reused:
        advice = (
            f"every large tensor that torch itself makes pays for its pages anew; on glibc start Python with {_TUNED}"
            + ("" if huge_pages == "always" else ", or set transparent huge pages to always")
        )
    return {
        f"fresh_ms_per_{_PROBE_MB}_mb": fresh,
        f"reused_ms_per_{_PROBE_MB}_mb": reused,
        "huge_pages": huge_pages,
        "what_would_help_the_rest_of_a_model": advice,
    }
