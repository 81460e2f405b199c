"""N-MNIST recordings to ten time bins: tonic's reader and ToFrame against ours, from memory and from disk.

All contestants run in turn, repeat by repeat, so that they meet the same load. Before any timing, our frames in tonic's mode
are compared with tonic's, number by number. One thread. Recordings: those that --data names, else simulated.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from spiking.benchmarks.run import Row, interleaved, ratio_of
from spiking.datasets import NMNIST, ToFrames, decode_many
from spiking.datasets.frames import frames_from_bin, frames_many

NAME = "decode"
TITLE = "N-MNIST recordings to frames (10 time bins)"

Contestants = dict[str, Callable[[], Any]]


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    """One row a contestant: seconds of each repeat for all recordings, and the row it is compared with."""
    recordings, source = load(data, 100 if quick else 300)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i:05d}.bin" for i in range(len(recordings))]
        for path, recording in zip(paths, recordings, strict=True):
            path.write_bytes(recording)
        contestants, references = ours(recordings, paths), {}
        theirs = tonics(recordings, paths)
        contestants |= theirs
        if theirs:
            check(recordings)
        for name in contestants:
            where = "disk" if "disk" in name else "memory"
            whole = name.startswith(
                "spiking, from"
            )  # decoding only, or framing only, is not what tonic's figure covers
            references[name] = f"tonic, from {where}" if theirs and whole else None
        seconds = interleaved(contestants, 7 if quick else 15, warm_up=1)
    for name, times in seconds.items():
        each = median(times) / len(recordings) * 1e6
        note = f"{len(recordings)} recordings of {source}, {each:.1f} µs each, one thread"
        missing = "" if theirs else "; tonic is not installed"
        yield Row(NAME, name, times, references[name], note=note + missing)


def load(data: str | None, count: int) -> tuple[list[bytes], str]:
    """Bytes of `count` recordings, real ones where a folder is given."""
    recordings = NMNIST(data)
    source = "simulated N-MNIST" if recordings.simulated else "real N-MNIST"
    return [bytes(recordings.stored.recordings[i]) for i in range(min(count, len(recordings)))], source


def ours(recordings: list[bytes], paths: list[Path]) -> Contestants:
    to_frames = ToFrames(time_bins=10, sensor_size=(34, 34))
    store = decode_many(recordings)
    maps = np.tile([[0.95, 0.1, 1.0], [-0.1, 0.95, 1.0]], (len(store), 1, 1))
    batches = [slice(at, at + 64) for at in range(0, len(recordings), 64)]
    return {
        "spiking, from memory, 64 at a time": lambda: each(
            batches, lambda part: frames_many(recordings[part], to_frames)
        ),
        "spiking, from memory, one at a time": lambda: each(recordings, lambda one: frames_from_bin(one, to_frames)),
        "spiking, from disk, 64 at a time": lambda: each(batches, lambda part: frames_many(paths[part], to_frames)),
        "spiking, from disk, one at a time": lambda: each(paths, lambda path: frames_from_bin(path, to_frames)),
        "spiking, decoding only": lambda: decode_many(recordings),
        "spiking, decoded before, random maps": lambda: each(
            batches, lambda part: store.frames(np.arange(len(store))[part], time_bins=10, affine=maps[part])
        ),
    }


def each(items: Iterable[Any], work: Callable[[Any], Any]) -> None:
    """Do the work for every item and drop the result at once, as a training loop does; kept ones would time page faults."""
    for item in items:
        work(item)


def tonics(recordings: list[bytes], paths: list[Path]) -> Contestants:
    """tonic's read_mnist_file and ToFrame; nothing where it is not installed."""
    try:
        from tonic.datasets import NMNIST as Theirs
        from tonic.io import read_mnist_file
        from tonic.transforms import ToFrame
    except ImportError:
        return {}
    to_frame = ToFrame(sensor_size=Theirs.sensor_size, n_time_bins=10)

    def from_memory() -> None:
        for recording in recordings:
            to_frame(read_mnist_file(io.BytesIO(recording), dtype=Theirs.dtype, is_stream=True))

    def from_disk() -> None:
        for path in paths:
            to_frame(read_mnist_file(str(path), dtype=Theirs.dtype))

    return {"tonic, from memory": from_memory, "tonic, from disk": from_disk}


def check(recordings: list[bytes]) -> None:
    """Our frames in tonic's mode have to be tonic's before their speeds are compared."""
    from tonic.datasets import NMNIST as Theirs
    from tonic.io import read_mnist_file
    from tonic.transforms import ToFrame

    to_frame = ToFrame(sensor_size=Theirs.sensor_size, n_time_bins=10)
    same = ToFrames(time_bins=10, sensor_size=(34, 34), compat="tonic")
    for i, recording in enumerate(recordings):
        theirs = to_frame(read_mnist_file(io.BytesIO(recording), dtype=Theirs.dtype, is_stream=True))
        if not np.array_equal(frames_from_bin(recording, same), theirs):
            raise AssertionError(f"recording {i}: frames differ from tonic's")


def summary(rows: Sequence[Row]) -> list[str]:
    """How many times as fast as tonic, from memory and from disk."""
    lines = []
    for where in ("memory", "disk"):
        found = {row.what: ratio_of(row, rows) for row in rows if f"from {where}" in row.what}
        ratios = ", ".join(
            f"{name.rsplit(', ', 1)[-1]} {ratio:.1f}×" for name, ratio in found.items() if ratio is not None
        )
        if ratios:
            lines.append(f"decode + frame from {where}, against tonic: {ratios}")
    return lines
