"""Labelled images: MNIST's idx files, the CIFAR archives, and folders of pictures, told apart by what they contain.

    MNIST, Fashion-MNIST   a folder with train-images-idx3-ubyte(.gz) and its three companions
    CIFAR-10, CIFAR-100    the archive (.tar.gz) or the unpacked folder, of the python or the binary version
    pictures               DIR/train/CLASS/*.png and DIR/test/CLASS/*.png (or .jpg, .bmp …), all of one size

Source: LeCun, Cortes, Burges (MNIST); Xiao, Rasul, Vollgraf 2017 (arXiv 1708.07747); Krizhevsky 2009 (CIFAR).
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from spiking.datasets.idx import find_idx, read_idx

from spiking.errors import SpikingError

__all__ = ["Images", "read_images"]

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm")
SIDE, CHANNELS = 32, 3  # of CIFAR
PIXELS = SIDE * SIDE * CHANNELS


class Images(NamedTuple):
    """Images uint8 [N, C, H, W], labels int64 [N], the names of the classes, and what they were read from."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    kind: str


def read_images(path: str | os.PathLike[str], train: bool = True) -> Images:
    """One split of a set of labelled images; see the module for what is understood.

    Errors: SpikingError naming the file and what was expected: nothing known there, a cut file, labels that do not fit,
    pictures of several sizes. A python CIFAR file is a pickle; only arrays, numbers and text are taken out of it.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name, head in (("images-idx3", [2, 1, 1]), ("labels-idx1", [2])):
    ...     bytes_ = b"".join(n.to_bytes(4, "big") for n in [0x800 + len(head), *head]) + bytes([0, 1])
    ...     _ = (folder / f"train-{name}-ubyte").write_bytes(bytes_)
    >>> read_images(folder).images.shape, read_images(folder).labels.tolist()
    ((2, 1, 1, 1), [0, 1])
    """
    place = Path(path)
    if not place.exists():
        raise SpikingError(f"{place}: there is no such file or folder; expected MNIST, CIFAR or folders of pictures.")
    if place.is_file():
        return _cifar(place, _members_of_archive(place), train)
    if next(place.glob("*-idx3-ubyte*"), None) is not None:
        return _mnist(place, train)
    if (place / ("train" if train else "test")).is_dir():
        return _folder(place, train)
    members = {str(p.relative_to(place)): p.read_bytes for p in place.rglob("*") if p.is_file() and _is_cifar(p.name)}
    if members:
        return _cifar(place, members, train)
    archives = sorted(place.glob("cifar-*.tar.gz"))
    if archives:
        return _cifar(archives[0], _members_of_archive(archives[0]), train)
    raise SpikingError(
        f"{place}: got a folder without known images; expected idx files, cifar-*.tar.gz or its contents, or the folders "
        "train/ and test/ with one folder of pictures a class."
    )


def _mnist(folder: Path, train: bool) -> Images:
    files = find_idx(folder, train)
    images, labels = (read_idx(file) for file in files)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise SpikingError(
            f"{files[0]}: got images {list(images.shape)} and labels {list(labels.shape)}; expected [N, H, W] and [N]."
        )
    if not len(labels):
        raise SpikingError(f"{files[0]}: got no images; expected at least one.")
    classes = max(10, int(labels.max()) + 1)
    return Images(images[:, None], labels.astype(np.int64), tuple(map(str, range(classes))), "mnist")


# CIFAR

_NAMES = re.compile(
    r"(data_batch_\d|test_batch|train|test|meta|batches\.meta|(fine|coarse)_label_names\.txt)(\.bin|\.txt)?$"
)


def _is_cifar(name: str) -> bool:
    return _NAMES.fullmatch(name) is not None


def _members_of_archive(file: Path) -> dict[str, Callable[[], bytes]]:
    try:
        with tarfile.open(file) as archive:
            names = [m.name for m in archive.getmembers() if m.isfile() and _is_cifar(Path(m.name).name)]
    except (tarfile.TarError, OSError, EOFError) as err:
        raise SpikingError(
            f"{file}: cannot be unpacked ({err}); expected a whole CIFAR archive. Download it again."
        ) from err

    def reader(name: str) -> Callable[[], bytes]:
        def read() -> bytes:
            try:
                with tarfile.open(file) as archive:
                    member = archive.extractfile(name)
                    assert member is not None
                    return member.read()
            except (tarfile.TarError, OSError, EOFError) as err:
                raise SpikingError(f"{file}: {name} cannot be unpacked ({err}). Download the archive again.") from err

        return read

    return {name: reader(name) for name in names}


def _cifar(source: Path, members: dict[str, Callable[[], bytes]], train: bool) -> Images:
    files = {Path(name).name: read for name, read in members.items()}
    hundred = "train" in files or "train.bin" in files or "fine_label_names.txt" in files
    if hundred:
        split = "train" if train else "test"
        wanted = [name for name in (split, f"{split}.bin") if name in files][:1]
    else:
        pattern = re.compile(r"data_batch_\d(\.bin)?" if train else r"test_batch(\.bin)?")
        wanted = sorted(name for name in files if pattern.fullmatch(name))
    if not wanted:
        raise SpikingError(f"{source}: no {'training' if train else 'test'} images in it; expected a CIFAR archive.")
    parts = [_cifar_file(f"{source}: {name}", files[name](), name.endswith(".bin"), hundred) for name in wanted]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    classes = 100 if hundred else 10
    if labels.max() >= classes or labels.min() < 0:
        raise SpikingError(f"{source}: got labels from {labels.min()} to {labels.max()}; expected 0 to {classes - 1}.")
    return Images(images.reshape(-1, CHANNELS, SIDE, SIDE), labels, _class_names(files, classes), f"cifar{classes}")


def _cifar_file(where: str, data: bytes, binary: bool, hundred: bool) -> tuple[np.ndarray, np.ndarray]:
    if binary:
        row = PIXELS + (2 if hundred else 1)
        if not data or len(data) % row:
            raise SpikingError(f"{where}: got {len(data)} bytes; expected a multiple of {row}, one image each.")
        rows = np.frombuffer(data, np.uint8).reshape(-1, row)
        return rows[:, -PIXELS:], rows[:, -PIXELS - 1].astype(np.int64)
    found = _Plain.loads(where, data)
    images, labels = found.get(b"data"), found.get(b"fine_labels" if hundred else b"labels")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or labels is None:
        raise SpikingError(f"{where}: got {sorted(map(str, found))}; expected data and labels of a CIFAR batch.")
    labels = np.asarray(labels, np.int64)
    if images.ndim != 2 or images.shape != (len(labels), PIXELS):
        raise SpikingError(
            f"{where}: got data {list(images.shape)}; expected [{len(labels)}, {PIXELS}], one row a label."
        )
    return images, labels


def _class_names(files: dict[str, Callable[[], bytes]], classes: int) -> tuple[str, ...]:
    text = "fine_label_names.txt" if classes == 100 else "batches.meta.txt"
    if text in files:
        return tuple(files[text]().decode("ascii", "replace").split())[:classes]
    pickled, key = ("meta", b"fine_label_names") if classes == 100 else ("batches.meta", b"label_names")
    if pickled in files:
        names = _Plain.loads(pickled, files[pickled]()).get(key, [])
        if len(names) == classes:
            return tuple(n.decode("ascii", "replace") if isinstance(n, bytes) else str(n) for n in names)
    return tuple(map(str, range(classes)))


class _Plain(pickle.Unpickler):
    """Reads arrays, numbers and text; whatever would run code is refused."""

    ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "scalar", "_codecs.encode"})

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in self.ALLOWED:
            core: Any = importlib.import_module(
                "numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray"
            )
            return getattr(core, name, None) or getattr(np, name)
        if (module, name) == ("_codecs", "encode"):
            import _codecs

            return _codecs.encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    @classmethod
    def loads(cls, where: str, data: bytes) -> dict[Any, Any]:
        try:
            found = cls(io.BytesIO(data), encoding="bytes").load()
        except Exception as err:
            raise SpikingError(
                f"{where}: not a whole CIFAR batch ({type(err).__name__}: {err}). Download it again, or use the binary version."
            ) from err
        if not isinstance(found, dict):
            raise SpikingError(f"{where}: got a {type(found).__name__}; expected a CIFAR batch, a dictionary.")
        return found


# Folders of pictures


def _folder(folder: Path, train: bool) -> Images:
    from PIL import Image, UnidentifiedImageError

    root = folder / ("train" if train else "test")
    classes = tuple(
        sorted(p.name for p in (folder / "train" if (folder / "train").is_dir() else root).iterdir() if p.is_dir())
    )
    arrays: list[np.ndarray] = []
    labels: list[int] = []
    for file, name in _pictures(root):
        if name not in classes:
            raise SpikingError(f"{file}: its class {name!r} is not one of {folder / 'train'}: {', '.join(classes)}.")
        try:
            with Image.open(file) as picture:
                gray = picture.mode in ("1", "L", "I", "F", "I;16")
                array = np.asarray(picture.convert("L" if gray else "RGB"))
        except (UnidentifiedImageError, OSError) as err:
            raise SpikingError(f"{file}: cannot be read as a picture ({err}). Take it out, or replace it.") from err
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        if arrays and array.shape != arrays[0].shape:
            raise SpikingError(
                f"{file}: got channels and size {list(array.shape)}; expected {list(arrays[0].shape)} as the pictures before. "
                "Bring all to one size first."
            )
        arrays.append(array)
        labels.append(classes.index(name))
    if not arrays:
        raise SpikingError(f"{root}: got no pictures; expected {', '.join(PICTURES)} in one folder a class.")
    return Images(np.stack(arrays), np.array(labels, np.int64), classes, "pictures")


def _pictures(root: Path) -> Iterator[tuple[Path, str]]:
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() in PICTURES and file.is_file() and file.parent != root:
            yield file, file.relative_to(root).parts[0]
