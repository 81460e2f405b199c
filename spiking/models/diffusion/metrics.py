"""How near generated images come to real ones: distances, each with an interval over seeds, beside what real images reach.

`frechet` compares means and covariances of features. Here the features are those of a small classifier trained on the training
images, so figures compare only with figures of the same features and the same number of images; they are no FID, whose features
are those of one Inception network.
Sources: Heusel et al. 2017 (Fréchet distance; arXiv 1706.08500); Bonneel et al. 2015 (sliced Wasserstein); Kynkäänniemi et al.
2019 (precision and recall; arXiv 1904.06991).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as tf

from spiking.errors import SpikingError
from spiking.training import seed_for

__all__ = [
    "Features",
    "Interval",
    "frechet",
    "frechet_distance",
    "interval",
    "precision_recall",
    "sliced_wasserstein",
    "train_features",
]


class Interval(NamedTuple):
    """A mean over seeds and its 95 % interval (Student's t); the ends equal the mean where there is one seed."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.mean:.3g} ({self.low:.3g} … {self.high:.3g}, {len(self.values)} seeds)"


def interval(values: Sequence[float]) -> Interval:
    """The mean of one value a seed, with its 95 % interval.

    >>> print(interval([1.0, 2.0, 3.0]))
    2 (-0.484 … 4.48, 3 seeds)
    """
    n, mean = len(values), float(np.mean(values))
    half = 0.0 if n < 2 else float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, tuple(float(v) for v in values))


def frechet(mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray) -> float:
    """The Fréchet distance of two normal distributions.

        |m1 - m2|² + tr C1 + tr C2 - 2·tr (C1^½ C2 C1^½)^½

    By symmetric eigendecompositions with negative eigenvalues cut off, so that singular covariances do no harm.

    >>> frechet(np.zeros(2), np.eye(2), np.ones(2), 4 * np.eye(2))
    4.0
    """
    values, vectors = np.linalg.eigh(covariance1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ covariance2 @ root).clip(0)
    return float(
        ((mean1 - mean2) ** 2).sum() + np.trace(covariance1) + np.trace(covariance2) - 2 * np.sqrt(inner).sum()
    )


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of normal distributions fitted to two sets of features [N, D]."""
    for x in (a, b):
        if x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
            raise SpikingError(
                f"frechet_distance: got features {list(x.shape)}; expected at least 2 rows of finite numbers."
            )
    parts = [
        (x.mean(0), np.cov(x, rowvar=False).reshape(x.shape[1], -1))
        for x in (a.astype(np.float64), b.astype(np.float64))
    ]
    return frechet(*parts[0], *parts[1])


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, projections: int = 256, seed: int = 0) -> float:
    """The 2-Wasserstein distance of two sets [N, …] along random directions (rms), with the same directions for a seed."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    directions = np.random.default_rng(seed).standard_normal((a.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    at = (np.arange(max(len(a), len(b))) + 0.5) / max(len(a), len(b))
    sorted_ = [np.quantile(x @ directions, at, axis=0, method="hazen") for x in (a, b)]
    return float(np.sqrt(((sorted_[0] - sorted_[1]) ** 2).mean()))


def precision_recall(real: np.ndarray, made: np.ndarray, k: int = 3) -> tuple[float, float]:
    """The share of made features that lie among the real ones, and of real ones among the made; [N, D] each.

    Among: no farther from one of them than that one's k-th nearest neighbour.
    """

    def share(inside: np.ndarray, of: np.ndarray) -> float:
        radius = torch.cdist(torch.from_numpy(of), torch.from_numpy(of)).kthvalue(k + 1, dim=1).values
        return float((torch.cdist(torch.from_numpy(inside), torch.from_numpy(of)) <= radius).any(1).double().mean())

    real, made = real.astype(np.float64), made.astype(np.float64)
    return share(made, real), share(real, made)


@dataclass(frozen=True)
class Features:
    """A classifier whose last hidden layer gives features; `name` says what it was trained on, with its seed and test accuracy."""

    network: nn.Sequential
    name: str
    accuracy: float

    @torch.no_grad()
    def __call__(self, images: Tensor) -> np.ndarray:
        """Features [N, 32] of images [N, C, H, W] in -1…1."""
        return torch.cat([self.network[:-1](part) for part in images.split(1000)]).numpy()

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> np.ndarray:
        """Class probabilities [N, classes]."""
        return torch.cat([self.network(part).softmax(1) for part in images.split(1000)]).numpy()


def train_features(
    images: Tensor,
    labels: np.ndarray,
    test: Tensor,
    test_labels: np.ndarray,
    classes: int,
    name: str,
    seed: int = 0,
    epochs: int = 0,
) -> Features:
    """A classifier of images [N, C, H, W] in -1…1 with 32 features: two hidden layers, with two convolutions before them above 16×16.

    `epochs` 0: as many as make about 3000 steps of 64 images.
    """
    channels, height, width = images.shape[1:]
    generator = torch.Generator().manual_seed(seed_for(seed, 5))
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(seed, 6))
        before: list[nn.Module] = [nn.Flatten()]
        n = channels * height * width
        if height * width > 256:
            before = [
                nn.Conv2d(channels, 16, 5, 2, 2),
                nn.ReLU(),
                nn.Conv2d(16, 32, 5, 2, 2),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(4),
                *before,
            ]
            n = 32 * 16
        network = nn.Sequential(
            *before, nn.Linear(n, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes)
        )
    target = torch.from_numpy(labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(epochs or max(1, 3000 * 64 // len(images))):
        for part in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            tf.cross_entropy(network(images[part]), target[part]).backward()
            optimizer.step()
    network.eval().requires_grad_(False)
    made = Features(network, f"{name}-features (seed {seed})", 0.0)
    return Features(network, made.name, float((made.probabilities(test).argmax(1) == test_labels).mean()))
