"""Noise schedules, and the samplers as coefficients: what each update takes of the image, of x_t, of the noise found, and of new noise.

    x_t = a_t·x_0 + s_t·eps;   a_t = sqrt(abar_t), s_t = sqrt(1 - abar_t), abar_t = (1 - beta_0)…(1 - beta_t)

t = 0 is the least noisy step; s = -1 stands for the clean image (abar = 1). All tables are float64.
Sources: Ho, Jain, Abbeel 2020 (DDPM; arXiv 2006.11239); Song, Meng, Ermon 2021 (DDIM; 2010.02502); Nichol, Dhariwal 2021
(cosine; 2102.09672); Salimans, Ho 2022 (v; 2202.00512); Bao, Li, Zhu, Zhang 2022 (Analytic-DPM; 2201.06503).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spiking.errors import SpikingError

__all__ = ["SAMPLERS", "NoiseSchedule", "Update", "follow", "published_steps", "spaced_steps"]

SAMPLERS = ("ddpm", "ddpm-small", "ddim", "analytic")
LAST_STD = 2 * (2 / 255) * math.sqrt(math.pi / 2)  # Analytic-DPM's limit on the noise added just before the last step


class Update(NamedTuple):
    """x_s = of_x0·x_0 + of_x·x_t + of_eps·eps + std·noise."""

    of_x0: float
    of_x: float
    of_eps: float
    std: float


class NoiseSchedule:
    """The variances of n noise steps, and what follows from them.

    >>> schedule = NoiseSchedule(1000)
    >>> f"{schedule.abar(999):.4e}", schedule.abar(-1)
    ('4.0358e-05', 1.0)
    """

    def __init__(self, n: int, kind: str = "linear", beta_first: float = 1e-4, beta_last: float = 0.02) -> None:
        if kind == "linear":
            self.betas = np.linspace(beta_first, beta_last, n)
        elif kind == "cosine":
            at = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * math.pi / 2) ** 2
            self.betas = np.minimum(1 - at[1:] / at[:-1], 0.999)
        else:
            raise SpikingError(f'NoiseSchedule: got "{kind}"; expected linear or cosine.')
        self.alphas_bar = np.cumprod(1 - self.betas)

    def __len__(self) -> int:
        return len(self.betas)

    def abar(self, t: int) -> float:
        return 1.0 if t < 0 else float(self.alphas_bar[t])

    def scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and s_t for steps [B], shaped to go with images like [B, C, H, W]."""
        abar = torch.from_numpy(self.alphas_bar)[t.cpu()].reshape(-1, *(1,) * (like.dim() - 1))
        return abar.sqrt().to(like), (1 - abar).sqrt().to(like)

    def noisy(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of images and noise."""
        a, s = self.scales(t, x0)
        return a * x0 + s * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor, prediction: str) -> Tensor:
        """What a denoiser has to say: the noise, the image, or v = a·noise - s·x_0."""
        if prediction == "eps":
            return noise
        if prediction == "x0":
            return x0
        a, s = self.scales(t, x0)
        return a * noise - s * x0

    def split(self, output: Tensor, x: Tensor, t: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
        """The image and the noise that a denoiser's output says x_t consists of."""
        a, s = self.scales(t, x)
        if prediction == "eps":
            return (x - s * output) / a, output
        if prediction == "x0":
            return output, (x - a * output) / s
        return a * x - s * output, s * x + a * output

    def update(
        self, sampler: str, t: int, s: int, eta: float = 0.0, gamma: float = 1.0, last_std: float = LAST_STD
    ) -> Update:
        """The coefficients of a sampler's update from step t to the less noisy step s.

        "ddpm" adds noise of variance b = 1 - abar_t/abar_s scaled to the step, "ddpm-small" of the posterior's variance,
        "ddim" as much as `eta` says (0: none), "analytic" the posterior's and what the denoiser does not know, which follows
        from `gamma`, the mean square of the noise that it finds at t; on the way to step 0 at most `last_std`, which nobody sees.
        """
        if sampler not in SAMPLERS:
            raise SpikingError(f'sampler: got "{sampler}"; expected {", ".join(SAMPLERS)}.')
        at, as_ = self.abar(t), self.abar(s)
        kept = at / as_
        added = (1 - at) - kept * (1 - as_)
        posterior = (1 - as_) * added / (1 - at)
        if sampler == "ddim":
            std = eta * math.sqrt((1 - kept) * (1 - as_) / (1 - at))
            return Update(math.sqrt(as_), 0.0, math.sqrt(max(0.0, 1 - as_ - std**2)), std)
        mean = math.sqrt(as_) * added / (1 - at), math.sqrt(kept) * (1 - as_) / (1 - at)
        variance = {"ddpm": added, "ddpm-small": posterior}.get(sampler)
        if variance is None:
            unknown = min(max((1 - at) / at * (1 - gamma), 0.0), 1.0)
            variance = min(max(posterior + mean[0] ** 2 * unknown, 0.0), 1.0)
            if s == 0:
                variance = min(variance, last_std**2)
        return Update(*mean, 0.0, math.sqrt(variance) if s >= 0 else 0.0)


def published_steps(n: int, steps: int) -> list[int]:
    """The published list of noise steps: steps of equal length from the noisiest, and 0.

    >>> published_steps(1000, 4)
    [999, 749, 499, 249, 0]
    """
    found = [max(math.floor(n - 1 - n / steps * i), 0) for i in range(steps)]
    return found if found[-1] == 0 else [*found, 0]


def spaced_steps(n: int, steps: int) -> list[int]:
    """So many noise steps, evenly from the noisiest to 0: as many calls of the denoiser, with the last one to the clean image.

    >>> spaced_steps(1000, 4)
    [999, 666, 333, 0]
    """
    if not 1 <= steps <= n:
        raise SpikingError(f"steps: got {steps}; expected 1 to {n}, the noise steps of the model.")
    return [round(t) for t in np.linspace(n - 1, 0, steps)] if steps > 1 else [n - 1]


def follow(
    predict: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    x: Tensor,
    steps: list[int],
    update: Callable[[int, int], Update],
    noise: Callable[[], Tensor],
    clip: float | None = 1.0,
    seen: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Go down a list of noise steps from x: `predict(x, t)` gives image and noise, `update(t, s)` the coefficients.

    Images found are clipped to ±`clip` (None: not), the noise found is not changed. The result stands at the last of the steps, -1 for
    the clean image. `seen(t, x_t, x_0)` is told of each call.
    """
    for t, s in itertools.pairwise(steps):
        x0, eps = predict(x, t)
        x0 = x0 if clip is None else x0.clamp(-clip, clip)
        if seen is not None:
            seen(t, x, x0)
        c = update(t, s)
        x = c.of_x0 * x0 + c.of_x * x + c.of_eps * eps
        if c.std:
            x = x + c.std * noise()
    return x
