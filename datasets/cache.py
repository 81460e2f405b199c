"""Recordings packed into one file on disk, so that a data set of many small files is opened once.

A cache file holds a magic line, a JSON header (its length before it), then the arrays that the header names. It is
written under another name, flushed to the disk and renamed, so that a reader sees a whole file or none, and two
processes that build it at once both end well. A file that does not match its header and checksum is built again, with
a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from spiking.datasets._kernels import Packed

MAGIC = b"spiking recordings 1\n"
ALIGN = 64


def cache_root() -> Path:
    """The folder for caches: SPIKING_CACHE where it is set, else `~/.cache/spiking`."""
    return Path(os.environ.get("SPIKING_CACHE") or Path.home() / ".cache" / "spiking")


def fingerprint(path: Path, hashed: int = 256 << 20) -> list[Any]:
    """What tells one state of a file from another: its hash, or size and time of change where it is larger than `hashed` bytes.

    A folder has none: its files' names and sizes have to do.
    """
    if not path.is_file():
        return []
    status = path.stat()
    if status.st_size > hashed:
        return [status.st_size, status.st_mtime_ns]
    return [hashlib.sha256(path.read_bytes()).hexdigest()]


def key_of(*parts: Any) -> str:
    """A name made of content and settings; parts are numbers, strings, lists, dicts, bytes and arrays."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, (bytes, np.ndarray)):
            data = np.ascontiguousarray(part).data if isinstance(part, np.ndarray) else part
            digest.update(
                repr((type(part).__name__, getattr(part, "shape", len(part)), getattr(part, "dtype", ""))).encode()
            )
            digest.update(data)
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


class Stored(NamedTuple):
    """A data set as bytes: the packed recordings, labels int64 [N], and the numbers that name them, int64 [N]."""

    recordings: Packed
    labels: np.ndarray
    ids: np.ndarray


def pack(recordings: list[bytes], labels: Any, ids: Any) -> Stored:
    """Recordings, their labels and numbers in memory, in the form that the cache gives back."""
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in recordings])]).astype(np.int64)
    data = np.frombuffer(b"".join(recordings), np.uint8)
    return Stored(Packed(data, offsets), np.asarray(labels, np.int64), np.asarray(ids, np.int64))


def load_or_build(path: Path, build: Callable[[], Stored]) -> Stored:
    """What the cache file holds, or what `build()` gives, which is then written there.

    A file that cannot be written (no room, no permission) costs a warning, not the result.
    """
    if path.exists():
        try:
            return read(path)
        except (OSError, ValueError, KeyError, TypeError) as err:
            warnings.warn(f"{path}: the cache file is damaged ({err}); building it again", stacklevel=3)
    stored = build()
    try:
        write(path, stored)
    except OSError as err:
        warnings.warn(f"{path}: cannot write the cache ({err.strerror or err}); going on without it", stacklevel=3)
    return stored


def write(path: Path, stored: Stored) -> None:
    """Write a cache file so that nobody ever sees half of it."""
    (data, offsets), labels, ids = stored
    arrays = {"data": data, "offsets": offsets, "labels": labels, "ids": ids}
    table, at, crc = {}, 0, 0
    for name, array in arrays.items():
        table[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "at": at}
        at += -(-array.nbytes // ALIGN) * ALIGN
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    header = json.dumps({"arrays": table, "size": at, "crc32": crc}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(MAGIC + len(header).to_bytes(8, "little") + header)
            file.write(b"\0" * (-file.tell() % ALIGN))
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data)
                file.write(b"\0" * (-array.nbytes % ALIGN))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read(path: Path) -> Stored:
    """The content of a cache file, mapped into memory; ValueError where it is not what its header says."""
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError("no cache header")
        length = int.from_bytes(file.read(8), "little")
        if length > 1 << 20:
            raise ValueError("header too long")
        header = json.loads(file.read(length))
        start = -(-file.tell() // ALIGN) * ALIGN
        size = os.fstat(file.fileno()).st_size
        if size != start + header["size"]:
            raise ValueError(f"{size} bytes instead of {start + header['size']}")
        view = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    arrays, crc = {}, 0
    for name, entry in header["arrays"].items():
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        count = int(np.prod(shape, dtype=object))
        arrays[name] = view[start + entry["at"] :][: count * dtype.itemsize].view(dtype).reshape(shape)
        crc = zlib.crc32(arrays[name], crc)
    if crc != header["crc32"]:
        raise ValueError("checksum differs")
    return Stored(Packed(arrays["data"], arrays["offsets"]), arrays["labels"], arrays["ids"])
