"""A spiking diffusion model: the denoiser with its noise schedule; what it learns by, and how it makes images."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spiking.errors import SpikingError
from spiking.hub import MODEL_CARD, HubModel
from spiking.models.diffusion.config import DiffusionConfig
from spiking.models.diffusion.schedule import NoiseSchedule, follow, published_steps, spaced_steps
from spiking.models.diffusion.tsm import temporal_wise
from spiking.models.diffusion.unet import SpikingUNet, with_threshold
from spiking.training import seed_for

__all__ = ["Samples", "SpikingDiffusion", "Threshold"]

Threshold = float | Mapping[str, float] | Callable[[int], float]
PUBLIC_NAMES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}  # of diffusers


@dataclass(frozen=True)
class Samples:
    """Images [N, C, H, W] in -1…1 and how they were made; `trajectory` holds (t, x_t, x_0 found) of the steps that were kept."""

    images: Tensor
    made: dict[str, Any]
    trajectory: list[tuple[int, Tensor, Tensor]]


class SpikingDiffusion(
    nn.Module,
    HubModel,
    library_name="spiking",
    tags=["spiking-neural-network", "diffusion", "image-generation"],
    model_card_template=MODEL_CARD,
):
    """Images in -1…1 from noise, by a spiking U-Net.

    Shapes: `loss(x0 [B, C, H, W])` -> a scalar; `sample(n, side)` -> images [n, C, H, W].
    Errors: SpikingError naming the argument.
    Source: Cao et al. 2024 (arXiv 2408.16467).

    >>> from spiking.models.diffusion import UNetConfig
    >>> model = SpikingDiffusion(DiffusionConfig(UNetConfig(image_channels=1, channels=8, multipliers=(1, 2), blocks=1)))
    >>> model.sample(2, 8, steps=3).images.shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, config: DiffusionConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiffusionConfig()
        self.unet = SpikingUNet(config.unet)
        if config.temporal:
            self.unet = temporal_wise(self.unet, config.unet.timesteps)
        self.schedule = NoiseSchedule(
            config.unet.n_diffusion_steps, config.schedule, config.beta_first, config.beta_last
        )
        self.gamma: Tensor  # mean square of the noise found, by noise step; -1 where not estimated
        self.register_buffer("gamma", torch.full((config.unet.n_diffusion_steps,), -1.0))

    @classmethod
    def pretrained(cls) -> "SpikingDiffusion":
        """The model of 8×8 handwritten digits that ships with the package."""
        return cls.from_pretrained(Path(__file__).parent / "pretrained")

    def with_temporal_weights(self) -> "SpikingDiffusion":
        """A copy whose convolutions have a weight for every time step, all 1: what the second stage trains."""
        made = SpikingDiffusion(replace(self.config, temporal=True))
        made.unet = temporal_wise(self.unet, self.config.unet.timesteps)
        return made.to(self.gamma.device)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The denoiser's output: noise, image or v, as config.prediction says."""
        return self.unet(x, t, labels)

    def loss(
        self,
        x0: Tensor,
        labels: Tensor | None = None,
        generator: torch.Generator | None = None,
        drop: float = 0.1,
        through: nn.Module | None = None,
    ) -> Tensor:
        """Mean square error of the prediction at random noise steps; with classes, a share `drop` of the labels is hidden.

        `through`: a wrapper of this model to call in its place, such as that of data-parallel training.
        """
        n, device = len(x0), x0.device
        t = torch.randint(len(self.schedule), (n,), generator=generator).to(device)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(device)
        if self.config.unet.classes and labels is not None:
            hidden = torch.rand(n, generator=generator).to(device) < drop
            labels = torch.where(hidden, -1, labels)
        found = (through or self)(self.schedule.noisy(x0, noise, t), t, labels if self.config.unet.classes else None)
        return ((found - self.schedule.target(x0, noise, t, self.config.prediction)) ** 2).mean()

    def predict(self, x: Tensor, t: int, labels: Tensor | None = None, guidance: float = 0.0) -> tuple[Tensor, Tensor]:
        """Image and noise in x_t; with labels, (1 + guidance) times what they suggest, less guidance times what x_t alone does."""
        steps = torch.full((len(x),), t, device=x.device)
        found = self(x, steps, labels)
        if guidance and labels is not None:
            found = (1 + guidance) * found - guidance * self(x, steps)
        return self.schedule.split(found, x, steps, self.config.prediction)

    @torch.no_grad()
    def estimate_gamma(self, images: Tensor, at: Sequence[int] = (), pairs: int = 1000, seed: int = 0) -> None:
        """Measure what "analytic" sampling needs: the mean square of the noise found, at noise steps `at`; between them it is interpolated.

        gamma_t = E |eps(x_t, t)|² / numbers of an image
        """
        at = sorted(set(at)) or spaced_steps(len(self.schedule), min(50, len(self.schedule)))[::-1]
        was, values = self.training, []
        self.eval()
        for t in at:
            generator = torch.Generator().manual_seed(seed_for(seed, t))
            chosen = torch.randint(len(images), (pairs,), generator=generator)
            total = 0.0
            for part in chosen.split(500):
                x0 = images[part].to(self.gamma.device)
                noise = torch.randn(x0.shape, generator=generator).to(x0)
                x = self.schedule.noisy(x0, noise, torch.full((len(x0),), t))
                total += float(self.predict(x, t)[1].double().square().mean()) * len(x0)
            values.append(total / pairs)
        self.train(was)
        table = torch.from_numpy(_interpolated(len(self.schedule), at, values))
        self.gamma.copy_(table)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        side: int | tuple[int, int],
        *,
        sampler: str = "ddim",
        steps: int = 50,
        eta: float = 0.0,
        threshold: Threshold | None = None,
        labels: Tensor | None = None,
        guidance: float = 0.0,
        seed: int = 0,
        clip: bool = True,
        compat: bool = False,
        batch_size: int = 256,
        keep: Sequence[int] = (),
    ) -> Samples:
        """n images of a height and width, in `steps` calls of the denoiser.

        `sampler`: "ddim" (with `eta` of DDPM's noise), "ddpm", "ddpm-small", or "analytic" (after `estimate_gamma`).
        `threshold` replaces that of all neurons, of those named, or says it for each noise step. Image i depends on seed + i
        alone, whatever the batch. `compat` follows the authors' list of steps, whose last images are neither denoised nor
        clipped. `keep`: positions in the list of steps whose images go into the trajectory.
        """
        height, width = (side, side) if isinstance(side, int) else side
        if n < 1:
            raise SpikingError(f"sample.n: got {n}; expected at least 1 image.")
        if labels is not None and labels.shape != (n,):
            raise SpikingError(f"sample.labels: got {list(labels.shape)}; expected [{n}], one an image.")
        if sampler == "analytic" and bool((self.gamma < 0).any()):
            raise SpikingError('sample.sampler: got "analytic"; call estimate_gamma(images) first, or choose another.')
        device = self.gamma.device
        total = len(self.schedule)
        path = published_steps(total, steps) if compat else [*spaced_steps(total, steps), -1]
        updates = {
            (t, s): self.schedule.update(sampler, t, s, eta, float(self.gamma[t])) for t, s in itertools.pairwise(path)
        }
        was, images = self.training, []
        trajectory: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.eval()
        shape = (self.config.unet.image_channels, height, width)
        for first in range(0, n, batch_size):
            count = min(batch_size, n - first)
            generators = [torch.Generator().manual_seed(seed + first + i) for i in range(count)]

            def noise(generators: list[torch.Generator] = generators) -> Tensor:
                return torch.stack([torch.randn(shape, generator=g, dtype=torch.float32) for g in generators]).to(
                    device
                )

            given = None if labels is None else labels[first : first + count].to(device)

            def predict(x: Tensor, t: int, given: Tensor | None = given) -> tuple[Tensor, Tensor]:
                value = threshold(t) if callable(threshold) else threshold
                with nullcontext() if value is None else with_threshold(self.unet, value):
                    return self.predict(x, t, given, guidance)

            kept: list[tuple[int, Tensor, Tensor]] = []

            def seen(t: int, x: Tensor, x0: Tensor, kept: list[Any] = kept) -> None:
                if path.index(t) in keep:
                    kept.append((t, x.cpu(), x0.cpu()))

            found = follow(predict, noise(), path, lambda t, s: updates[t, s], noise, 1.0 if clip else None, seen)
            images.append(found.cpu())
            for t, x, x0 in kept:
                trajectory.setdefault(t, []).append((x, x0))
        self.train(was)
        made = {
            "sampler": sampler, "steps": steps, "calls": len(path) - 1, "eta": eta, "seed": seed, "guidance": guidance, "compat": compat,
            "threshold": "by step" if callable(threshold) else threshold,
        }  # fmt: skip
        joined = [
            (t, torch.cat([x for x, _ in pairs]), torch.cat([x0 for _, x0 in pairs])) for t, pairs in trajectory.items()
        ]
        return Samples(torch.cat(images), made, joined)

    @torch.no_grad()
    def sample_with(self, scheduler: Any, n: int, side: int, steps: int = 50, seed: int = 0) -> Tensor:
        """n images by a scheduler of Hugging Face diffusers (or one that has its interface), [n, C, side, side].

        Errors: SpikingError where the scheduler expects another kind of prediction, or was made for other noise.
        """
        config = scheduler.config
        wanted, has = PUBLIC_NAMES[self.config.prediction], getattr(config, "prediction_type", "epsilon")
        if has != wanted:
            raise SpikingError(
                f'sample_with: got a scheduler with prediction_type="{has}"; this model predicts "{wanted}". Build the scheduler with that.'
            )
        theirs = torch.as_tensor(scheduler.alphas_cumprod).double().cpu()
        ours = torch.from_numpy(self.schedule.alphas_bar)
        if theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=1e-3, atol=1e-6):
            raise SpikingError(
                f"sample_with: got a scheduler of {len(theirs)} noise steps with other variances than the model's {len(ours)}; "
                f'build it with num_train_timesteps={len(ours)} and beta_schedule="{self.config.schedule}", '
                f"beta_start={self.config.beta_first:g}, beta_end={self.config.beta_last:g}."
            )
        was, device = self.training, self.gamma.device
        self.eval()
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((n, self.config.unet.image_channels, side, side), generator=generator).to(device)
        scheduler.set_timesteps(steps)
        x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
        extra = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            found = self(scaled, torch.full((n,), round(float(t)), device=device))
            x = scheduler.step(found, t, x, **extra).prev_sample
        self.train(was)
        return x.cpu()


def _interpolated(n: int, at: Sequence[int], values: Sequence[float]) -> Any:
    import numpy as np

    return np.interp(np.arange(n), at, values)
