"""Images and labels in MNIST's idx format, plain or gzip-compressed.

Big-endian: two zero bytes, a type (8: unsigned bytes), the number of axes, each axis as 32 bits, then the values.
Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
from spiking.datasets.events import read_bytes

from spiking.errors import SpikingError

NAMES = {True: "train", False: "t10k"}


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of an idx file, uint8. Errors: SpikingError naming the file, the byte and what was expected."""
    name, data = os.fspath(path), read_bytes(path)
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as err:
            raise SpikingError(
                f"{name}: cannot be unpacked ({err}); expected a whole gzip file. Download it again."
            ) from err
    if len(data) < 4 or data[:3] != b"\0\0\x08" or not 1 <= data[3] <= 4:
        raise SpikingError(
            f"{name}: byte 0: got {data[:4].hex() or 'nothing'}; expected 000008 and the number of axes (idx)."
        )
    head = 4 + 4 * data[3]
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, head, 4)]
    size = int(np.prod(shape, dtype=object))
    if len(data) - head != size:
        raise SpikingError(
            f"{name}: byte {head}: got {max(len(data) - head, 0)} bytes; expected {size} for shape {shape}."
        )
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def find_idx(folder: Path, train: bool) -> tuple[Path, Path]:
    """The image and the label file of one split in a folder of MNIST or Fashion-MNIST."""
    found = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        options = [folder / f"{NAMES[train]}-{kind}{suffix}" for suffix in ("", ".gz")]
        path = next((p for p in options if p.exists()), None)
        if path is None:
            raise SpikingError(f"{folder}: no {options[0].name}, with or without .gz; expected MNIST's idx files.")
        found.append(path)
    return found[0], found[1]
