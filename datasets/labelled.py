"""What every set of labelled recordings offers, of sight or of sound."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


class LabelledSet(ABC):
    """Recordings with a class each: `set[i]` is (transform(recording), target_transform(label)); `labels` int64 [N], `classes`."""

    classes: tuple[str, ...]
    labels: np.ndarray
    transform: Callable[[Any], Any] | None
    target_transform: Callable[[int], Any] | None

    @abstractmethod
    def describe(self) -> str:
        """Where the recordings come from and how many there are, in one sentence."""

    @abstractmethod
    def item(self, index: int) -> Any:
        """Recording `index`, 0 … N - 1, before any transform."""

    @property
    def counts(self) -> list[int]:
        """Recordings of each class."""
        return np.bincount(self.labels, minlength=len(self.classes)).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"recording {index} of {len(self)}")
        recording, label = self.item(index % len(self)), int(self.labels[index])
        return (
            self.transform(recording) if self.transform is not None else recording,
            self.target_transform(label) if self.target_transform is not None else label,
        )

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return (self[i] for i in range(len(self)))
