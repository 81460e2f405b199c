"""A CUDA source -> machine code through NVRTC, called directly: no driver, no GPU and no CUDA toolkit needed; kept on disk.

NVRTC comes with torch's CUDA builds, with `pip install nvidia-cuda-nvrtc`, or with a CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import hashlib
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from spiking.cuda_kernels import backend

from spiking.errors import SpikingError

__all__ = ["ARCHITECTURES", "Binary", "binary", "build", "nvrtc_version", "options", "why_not"]

ARCHITECTURES = (80, 90, 100)  # compiled in the tests; any other that NVRTC knows compiles on demand
_HERE = Path(__file__).resolve().parent
_INCLUDE = _HERE.parent / "include"


@dataclass(frozen=True)
class Binary:
    """Kernels for one architecture: a file that the driver loads, and each name expression's symbol in it."""

    path: Path
    symbols: dict[str, str]


def options(target: str) -> list[str]:
    """NVRTC's options: contraction off, or the same input would spike differently on another machine."""
    folders = [f"--include-path={folder}" for folder in (_INCLUDE, _HERE)]
    return [f"--gpu-architecture={target}", "--std=c++17", "--fmad=false", *folders]


# --- NVRTC -------------------------------------------------------------------------------------------------------------------------


def _candidates() -> list[Path]:
    """Every NVRTC here: those of torch's CUDA version first, then the newest."""
    folders = [Path(entry) / "nvidia" for entry in sys.path if entry]
    found = [path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.*")]
    found += Path("/usr/local").glob("cuda*/lib64/libnvrtc.so.*")
    system = ctypes.util.find_library("nvrtc")
    if system is not None:
        found.append(Path(system))

    def order(path: Path) -> tuple[bool, int]:
        version = re.search(r"\.so\.(\d+)", path.name)
        major = int(version.group(1)) if version else 0
        return str(major) != (torch.version.cuda or "").split(".")[0], -major

    return sorted((p for p in found if "alt" not in p.name), key=order)


@functools.cache
def _nvrtc() -> ctypes.CDLL | None:
    for path in _candidates():
        try:
            for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins))  # NVRTC opens it by its bare name, which the loader then knows
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    return None


@functools.cache
def nvrtc_version() -> str | None:
    """NVRTC's version as "13.0", or None where there is no NVRTC."""
    library = _nvrtc()
    if library is None:
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def why_not() -> str | None:
    """Why nothing can be compiled here, in one sentence, or None where it can."""
    return "NVRTC was not found (pip install nvidia-cuda-nvrtc)" if nvrtc_version() is None else None


def _architectures(library: ctypes.CDLL) -> list[int]:
    count = ctypes.c_int()
    library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    values = (ctypes.c_int * count.value)()
    library.nvrtcGetSupportedArchs(values)
    return list(values)


def _target(library: ctypes.CDLL, architecture: int) -> str:
    """Machine code where NVRTC knows the architecture, else PTX of the newest older one, which the driver translates."""
    known = _architectures(library)
    if architecture in known:
        return f"sm_{architecture}"
    older = [a for a in known if a < architecture]
    if not older:
        raise SpikingError(
            f"cuda kernels: got a device of compute capability {architecture / 10}; expected at least {min(known) / 10}, "
            f'the oldest that NVRTC {nvrtc_version()} compiles for. Set SPIKING_BACKEND="reference".'
        )
    return f"compute_{max(older)}"


def build(
    expressions: Sequence[str], target: str, more: Sequence[str] = (), source: str = "neuron.cu"
) -> tuple[bytes, dict[str, str], str]:
    """Compile name expressions of a source for a target (sm_90 …, or compute_90 … for PTX) -> (code, symbol of each expression, log).

    Errors: SpikingError where there is no NVRTC; RuntimeError with NVRTC's log where the source does not compile.
    """
    library = _nvrtc()
    if library is None:
        raise SpikingError(f'cuda kernels: {why_not()}. Or set SPIKING_BACKEND="reference".')
    program = ctypes.c_void_p()

    def check(status: int) -> None:
        if status:
            raise RuntimeError(f"NVRTC: {library.nvrtcGetErrorString(status).decode()}\n{log()}")

    def fetch(size: str, get: str) -> bytes:
        n = ctypes.c_size_t()
        getattr(library, size)(program, ctypes.byref(n))
        buffer = ctypes.create_string_buffer(n.value)
        getattr(library, get)(program, buffer)
        return buffer.raw

    def log() -> str:
        return fetch("nvrtcGetProgramLogSize", "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace")

    text = (_HERE / source).read_bytes()
    check(library.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), 0, None, None))
    try:
        for expression in expressions:
            check(library.nvrtcAddNameExpression(program, expression.encode()))
        flags = [option.encode() for option in (*options(target), *more)]
        check(library.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags)))
        symbols = {}
        for expression in expressions:
            name = ctypes.c_char_p()
            check(library.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(name)))
            symbols[expression] = (name.value or b"").decode()
        kind = "CUBIN" if target.startswith("sm_") else "PTX"
        return fetch(f"nvrtcGet{kind}Size", f"nvrtcGet{kind}"), symbols, log()
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


# --- kept on disk ------------------------------------------------------------------------------------------------------------------


@functools.cache
def _sources(source: str) -> bytes:
    headers = (*sorted(_HERE.glob("*.cuh")), *sorted(_INCLUDE.glob("*.h")))
    return b"\0".join(path.read_bytes() for path in (_HERE / source, *headers))


def _write(path: Path, content: bytes) -> None:
    """A whole file or none, also where two processes write it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@functools.cache
def _for_this_process() -> Path:
    return Path(tempfile.mkdtemp(prefix="spiking-cuda-"))


def binary(expressions: Sequence[str], architecture: int, source: str = "neuron.cu") -> Binary:
    """The compiled kernels, from the disk cache (SPIKING_CACHE, else ~/.cache/spiking) where they were compiled before.

    A cache that cannot be written costs a warning and a compilation in each process.
    """
    library = _nvrtc()
    target = f"sm_{architecture}" if library is None else _target(library, architecture)
    digest = hashlib.sha256(_sources(source))
    # Options hold the package's path, which decides nothing: the headers' content is in the digest.
    flags = [option for option in options(target) if "include-path" not in option]
    digest.update(repr((sorted(expressions), target, flags, nvrtc_version())).encode())
    name = digest.hexdigest()[:32] + (".cubin" if target.startswith("sm_") else ".ptx")
    path = backend.cache_dir() / "cuda" / name
    try:
        symbols = json.loads(path.with_suffix(".json").read_text())
        if path.stat().st_size > 0 and set(symbols) == set(expressions):
            return Binary(path, symbols)
    except (OSError, ValueError):
        pass  # not there yet, or cut: compiled and written again
    code, symbols, _ = build(expressions, target, source=source)
    try:
        _write(path.with_suffix(".json"), json.dumps(symbols).encode())
        _write(path, code)
    except OSError as error:
        warnings.warn(f"{path}: cannot keep compiled kernels there ({error}); compiling in each process", stacklevel=2)
        path = _for_this_process() / name
        _write(path, code)
    return Binary(path, symbols)
