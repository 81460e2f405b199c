"""Every number of a spiking diffusion model, with its default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from spiking.classify import check_fields
from spiking.errors import SpikingError

__all__ = ["DiffusionConfig", "UNetConfig"]


@dataclass(frozen=True)
class UNetConfig:
    """The denoiser. The defaults are the published network for CIFAR-10 (66,696,413 parameters).

    `multipliers`: channels of each level, times `channels`; images must be divisible by 2^(levels - 1). `beta` below 1 gives
    the neurons a leak. `readout`: "exp" weighs time step n with `decay`^(T-1-n), "mean" takes the mean. `input_skip` adds the
    noisy image, times a learned function of the diffusion step, to the output. `classes` above 0 conditions on labels.
    """

    image_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    blocks: int = 2
    timesteps: int = 4
    n_diffusion_steps: int = 1000
    classes: int = 0
    threshold: float = 1.0
    beta: float = 1.0
    surrogate_alpha: float = 2.0
    readout: str = "exp"
    decay: float = 0.8
    input_skip: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))  # a list, from JSON
        check_fields(
            self,
            {"readout": ("exp", "mean")},
            {
                "image_channels": (1, math.inf),
                "channels": (2, math.inf),
                "blocks": (1, math.inf),
                "timesteps": (1, math.inf),
                "n_diffusion_steps": (1, math.inf),
                "classes": (0, math.inf),
                "beta": (0, 1),
                "decay": (0, 1),
            },
        )
        if not self.multipliers or any(not isinstance(m, int) or m < 1 for m in self.multipliers):
            raise SpikingError(
                f"UNetConfig.multipliers: got {self.multipliers}; expected whole numbers of at least 1, one a level."
            )
        if self.channels % 2:
            raise SpikingError(
                f"UNetConfig.channels: got {self.channels}; expected an even number (sines and cosines of the diffusion step)."
            )


@dataclass(frozen=True)
class DiffusionConfig:
    """A denoiser, the noise, and what is predicted: "eps" (the noise), "x0" (the image) or "v" (their rotation).

    `schedule` of the variances: "linear" from beta_first to beta_last, or "cosine", which has no parameters. `temporal`: each
    convolution has a weight for every time step.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    schedule: str = "linear"
    beta_first: float = 1e-4
    beta_last: float = 0.02
    prediction: str = "eps"
    temporal: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.unet, dict):  # from JSON
            object.__setattr__(self, "unet", UNetConfig(**self.unet))
        check_fields(
            self,
            {"schedule": ("linear", "cosine"), "prediction": ("eps", "x0", "v")},
            {"beta_first": (1e-12, 0.999), "beta_last": (1e-12, 0.999)},
        )
