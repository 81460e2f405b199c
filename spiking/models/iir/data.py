"""Images for the trainer: normalised, and varied anew each epoch as the paper does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from spiking.errors import SpikingError
from spiking.training import seed_for

__all__ = ["STATISTICS", "ImageBatches", "statistics"]

STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "mnist": ((0.0,), (1.0,)),
}
"""Mean and standard deviation of each channel, of values in 0…1, as the paper takes them. MNIST is left as it is."""


def statistics(kind: str, images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel: the published ones, or those of these training images uint8 [N, C, H, W]."""
    if kind in STATISTICS:
        return STATISTICS[kind]
    values = images.transpose(1, 0, 2, 3).reshape(images.shape[1], -1) / 255
    return tuple(values.mean(1).tolist()), tuple(np.maximum(values.std(1), 1e-6).tolist())


class ImageBatches:
    """Images [1, B, C, H, W] and labels [B] by index, for `Trainer` and `reduce_timesteps`.

        y = (x/255 - mean)/std

    images: uint8 [N, C, H, W]. In training, each image is shifted by up to `crop` pixels (what enters is 0 before
    normalising) and mirrored with probability one half if `flip`. What happens to an image depends on (seed, epoch, index).
    Errors: SpikingError for shapes or labels that do not fit.

    >>> batches = ImageBatches(np.zeros((4, 1, 6, 6), np.uint8), np.arange(4), classes=10)
    >>> batches.batch(np.array([0, 3]), None)[0].shape
    torch.Size([1, 2, 1, 6, 6])
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        classes: int,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
        crop: int = 0,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        if images.ndim != 4 or images.dtype != np.uint8 or labels.shape != (len(images),):
            raise SpikingError(
                f"ImageBatches: got images {list(images.shape)} of {images.dtype} and labels {list(labels.shape)}; expected "
                "uint8 [N, C, H, W] and [N]."
            )
        if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
            raise SpikingError(
                f"ImageBatches.labels: got {labels.min()} to {labels.max()}; expected 0 to {classes - 1}, one a class."
            )
        if crop < 0:
            raise SpikingError(f"ImageBatches.crop: got {crop}; expected at least 0 pixels.")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, images.shape[1]) or (name == "std" and min(values) <= 0):
                raise SpikingError(
                    f"ImageBatches.{name}: got {values}; expected one number or {images.shape[1]}, one a channel"
                    f"{', above 0' if name == 'std' else ''}."
                )
        self.images = torch.from_numpy(images if images.flags.writeable else images.copy())
        self.labels = np.asarray(labels, np.int64)
        self.mean, self.std = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))
        self.crop, self.flip, self.seed = crop, flip, seed
        self.indices = np.arange(len(images))
        self._draws: tuple[int | None, Any] = (None, None)

    def subset(self, indices: Any) -> ImageBatches:
        """Some of the images, which are shared; an image keeps its augmentation."""
        part = object.__new__(ImageBatches)
        part.__dict__.update(self.__dict__, indices=self.indices[np.asarray(indices)])
        return part

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        which = self.indices[indices]
        x = self.images[torch.from_numpy(which)]
        if epoch is not None and (self.crop or self.flip):
            x = self._varied(x, which, epoch)
        x = (x.float() / 255 - self.mean) / self.std
        return x.unsqueeze(0), torch.from_numpy(self.labels[which])

    def _varied(self, x: Tensor, which: np.ndarray, epoch: int) -> Tensor:
        if self._draws[0] != epoch:
            rng = np.random.default_rng(seed_for(self.seed, 2, epoch))
            n = len(self.labels)
            self._draws = (epoch, (rng.integers(0, 2 * self.crop + 1, (n, 2)), rng.random(n) < 0.5))
        shifts, mirrored = self._draws[1]
        high, wide = x.shape[2:]
        if self.crop:
            padded = torch.nn.functional.pad(x, (self.crop,) * 4)
            rows, columns = (
                torch.from_numpy(shifts[which, axis])[:, None] + torch.arange(size)
                for axis, size in ((0, high), (1, wide))
            )
            b = torch.arange(len(which))[:, None, None]
            x = padded.permute(0, 2, 3, 1)[b, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        if self.flip:
            turned = torch.from_numpy(mirrored[which])[:, None, None, None]
            x = torch.where(turned, x.flip(3), x)
        return x
