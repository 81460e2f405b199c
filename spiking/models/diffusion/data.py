"""Images for a diffusion model, in -1…1: the digits that come with scikit-learn, the sets of `datasets.read_images`, or any folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from spiking.datasets import read_images
from spiking.errors import SpikingError
from spiking.training import Objective, seed_for

__all__ = ["DiffusionBatches", "FileImages", "ImageSet", "Pictures", "load_digits", "objective", "open_images"]

FOLDERS = {
    "mnist": ("mnist",),
    "fashion": ("fashion-mnist", "fashion"),
    "cifar10": (
        "cifar-10-batches-py",
        "cifar-10-batches-bin",
        "cifar-10-python.tar.gz",
        "cifar-10-binary.tar.gz",
        "cifar10",
    ),
}  # below the root, for the sets that have a name
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp")
DIGITS_TRAIN = 1400


class Pictures(Protocol):
    """Images uint8 or float by index: [n, C, H, W] in 0…255."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """These images."""
        ...


@dataclass(frozen=True)
class InMemory:
    """Images that lie in memory."""

    images: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self.images[indices]


class ImageSet(NamedTuple):
    """Training and test images, their labels (zeros where there are none), and the number of classes (0: no labels)."""

    train: Any
    train_labels: np.ndarray
    test: Any
    test_labels: np.ndarray
    classes: int
    name: str
    shape: tuple[int, int, int]


class FileImages:
    """The pictures below a folder, read when they are asked for, so that a set of any size needs no memory.

    `side` resizes: the largest square in the middle (of at most `crop` pixels), to side×side. Without it all must be of one size.
    Errors: SpikingError for a folder without pictures, a file that is none, and pictures of several sizes without `side`.
    """

    def __init__(self, files: list[Path], side: int = 0, crop: int = 0) -> None:
        self.files, self.side, self.crop = files, side, crop
        channels, height, width = self._one(files[0]).shape
        self.shape: tuple[int, int, int] = channels, height, width

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: np.ndarray) -> np.ndarray:
        found = []
        for i in indices:
            image = self._one(self.files[int(i)])
            if image.shape != self.shape:
                raise SpikingError(
                    f"{self.files[int(i)]}: got a picture of {image.shape[1]}×{image.shape[2]}; expected "
                    f"{self.shape[1]}×{self.shape[2]} as {self.files[0].name}. Resize all on reading with --side."
                )
            found.append(image)
        return np.stack(found)

    def _one(self, file: Path) -> np.ndarray:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(file) as opened:
                picture: Image.Image = opened.convert("L" if opened.mode in ("1", "L", "I;16", "I") else "RGB")
                if self.side:
                    edge = min(*picture.size, self.crop or max(picture.size))
                    left, top = (picture.size[0] - edge) // 2, (picture.size[1] - edge) // 2
                    picture = picture.crop((left, top, left + edge, top + edge))
                    picture = picture.resize((self.side, self.side), Image.Resampling.BILINEAR)
                pixels = np.asarray(picture)
        except (UnidentifiedImageError, OSError) as err:
            raise SpikingError(
                f"{file}: not a picture that can be read ({err}). Remove it, or convert it to PNG."
            ) from err
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def load_digits() -> ImageSet:
    """8×8 handwritten digits: 1400 to train with, 397 to compare with (scikit-learn's copy of the UCI set).

    >>> load_digits().shape, len(load_digits().test)
    ((1, 8, 8), 397)
    """
    from sklearn.datasets import load_digits as load

    found = load()
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0)).numpy()
    images = (found.images[order, None] * (255 / 16)).astype(np.float32)
    labels = found.target[order].astype(np.int64)
    train, test = slice(DIGITS_TRAIN), slice(DIGITS_TRAIN, None)
    return ImageSet(
        InMemory(images[train]), labels[train], InMemory(images[test]), labels[test], 10, "digits", (1, 8, 8)
    )


def open_images(data: str, root: str | None = None, side: int = 0, crop: int = 0) -> ImageSet:
    """digits, mnist, fashion or cifar10 (below `root`), an archive or folder that `datasets.read_images` knows, or a folder of pictures.

    A folder of pictures is read as it is needed; every 20th picture is kept for comparison. `side` resizes them.
    Errors: SpikingError for a set that is not there, an empty folder, or what the readers find wrong.
    """
    if data == "digits":
        return load_digits()
    place = Path(data)
    if data in FOLDERS:
        places = [Path(root or ".") / name for name in FOLDERS[data]]
        place = next((p for p in places if p.exists()), places[0])
        if not place.exists():
            raise SpikingError(
                f"--data {data}: found no {' or '.join(FOLDERS[data])} in {root or 'the current folder'}. Name its folder with --root."
            )
    if not place.exists():
        raise SpikingError(
            f"--data: got {data}; expected digits, {', '.join(FOLDERS)}, or a folder or archive that is there."
        )
    known = place.is_file() or any(place.glob("*-idx3-ubyte*")) or (place / "train").is_dir() or data in FOLDERS
    if known:
        train, test = read_images(place), read_images(place, train=False)
        shape = train.images.shape[1:]
        return ImageSet(
            InMemory(train.images),
            train.labels,
            InMemory(test.images),
            test.labels,
            len(train.classes),
            train.kind,
            shape,
        )
    files = sorted(p for p in map(Path, _walk(place)) if p.suffix.lower() in PICTURES)
    if len(files) < 2:
        raise SpikingError(
            f"{place}: got {len(files)} pictures; expected at least 2 files ending in {', '.join(PICTURES)}."
        )
    held = files[::20]
    kept = [f for i, f in enumerate(files) if i % 20]
    parts = FileImages(kept, side, crop), FileImages(held, side, crop)
    zeros = [np.zeros(len(part), np.int64) for part in parts]
    return ImageSet(parts[0], zeros[0], parts[1], zeros[1], 0, "pictures", parts[0].shape)


def _walk(folder: Path) -> list[str]:
    return [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]


def scaled(images: np.ndarray) -> Tensor:
    """0…255 -> -1…1, float32."""
    return torch.from_numpy(np.asarray(images, dtype=np.float32)) / 127.5 - 1


class DiffusionBatches:
    """Images [1, B, C, H, W] in -1…1 and labels [B] by index, for `Trainer`; mirrored at random if `flip`.

    `pad` surrounds images with so many pixels of the smallest value. What happens to an image depends on (seed, epoch, index).

    >>> digits = load_digits()
    >>> DiffusionBatches(digits.train, digits.train_labels).batch(np.array([0, 3]), None)[0].shape
    torch.Size([1, 2, 1, 8, 8])
    """

    def __init__(self, images: Pictures, labels: np.ndarray, flip: bool = False, pad: int = 0, seed: int = 0) -> None:
        self.images, self.labels, self.flip, self.pad, self.seed = images, labels, flip, pad, seed

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        x = scaled(self.images.read(indices))
        if self.pad:
            x = torch.nn.functional.pad(x, (self.pad,) * 4, value=-1.0)
        if self.flip and epoch is not None:
            mirrored = [seed_for(self.seed, 3, epoch, int(i)) & 1 for i in indices]
            x = torch.where(torch.tensor(mirrored, dtype=torch.bool)[:, None, None, None], x.flip(3), x)
        return x.unsqueeze(0), torch.from_numpy(self.labels[indices])


def objective(model: Any, x: Tensor, labels: Tensor) -> Objective:
    """The mean square error of `SpikingDiffusion.loss`; the noise of an evaluation is the same each time."""
    whole = getattr(model, "module", model)
    generator = None if whole.training else torch.Generator().manual_seed(0)
    return Objective(whole.loss(x[0], labels, generator=generator, through=model))
