"""From images to a model that makes more of them: train, second stage, samples, figures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spiking.checkpoint import write_atomically
from spiking.errors import SpikingError
from spiking.models.diffusion.config import DiffusionConfig, UNetConfig
from spiking.models.diffusion.data import DiffusionBatches, ImageSet, objective, open_images
from spiking.models.diffusion.metrics import (
    Features,
    frechet_distance,
    interval,
    precision_recall,
    sliced_wasserstein,
    train_features,
)
from spiking.models.diffusion.model import SpikingDiffusion
from spiking.progress import Display
from spiking.training import TrainConfig, Trainer

__all__ = ["Recipe", "build", "evaluate", "feature_sets", "gaussian_fit", "run", "save_animation", "save_grid"]

MEASURED = 2000  # real images that the spread of the predicted noise is measured on


@dataclass(frozen=True)
class Recipe:
    """A whole run. The defaults are the digits model that ships with the package (8×8, minutes).

    `data`, `root`, `side`, `crop`: see `data.open_images`; `pad` surrounds images, `flip` mirrors at random. `multipliers` is text
    such as "1,2,2,4". `conditional` learns labels. `temporal_epochs` above 0 trains weights for each time step afterwards, at
    `temporal_lr`. A grid of samples is drawn every `grid_epochs` epochs (0: never).
    `gamma_pairs`: images and noise, for each of 50 noise steps, that "analytic" sampling is prepared with.
    """

    data: str = "digits"
    root: str = "data"
    side: int = 0
    crop: int = 0
    pad: int = 0
    flip: bool = False
    channels: int = 16
    multipliers: str = "1,2"
    blocks: int = 1
    timesteps: int = 4
    beta: float = 1.0
    readout: str = "exp"
    input_skip: bool = True
    prediction: str = "v"
    schedule: str = "linear"
    conditional: bool = False
    temporal_epochs: int = 0
    temporal_lr: float = 1e-5
    grid_epochs: int = 20
    sampler: str = "analytic"
    steps: int = 50
    gamma_pairs: int = 1000
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=160, batch_size=64, lr=2e-3, weight_decay=0.0, warmup_epochs=5.0, clip_norm=1.0, ema_decay=0.995
        )
    )

    def __post_init__(self) -> None:
        for name in ("side", "crop", "pad", "temporal_epochs", "grid_epochs"):
            if getattr(self, name) < 0:
                raise SpikingError(f"Recipe.{name}: got {getattr(self, name)}; expected at least 0.")
        if self.gamma_pairs < 1:
            raise SpikingError(f"Recipe.gamma_pairs: got {self.gamma_pairs}; expected at least 1.")
        if not (self.temporal_lr > 0 and math.isfinite(self.temporal_lr)):
            raise SpikingError(f"Recipe.temporal_lr: got {self.temporal_lr}; expected a number above 0.")
        self.levels()

    def levels(self) -> tuple[int, ...]:
        """The multipliers as numbers."""
        try:
            return tuple(int(part) for part in self.multipliers.split(","))
        except ValueError as err:
            raise SpikingError(
                f"Recipe.multipliers: got {self.multipliers!r}; expected whole numbers such as 1,2,2,4."
            ) from err


def build(recipe: Recipe, images: ImageSet) -> SpikingDiffusion:
    """The untrained model of a recipe. Errors: SpikingError for images that its levels do not divide."""
    unet = UNetConfig(
        images.shape[0],
        recipe.channels,
        recipe.levels(),
        recipe.blocks,
        recipe.timesteps,
        classes=images.classes if recipe.conditional else 0,
        beta=recipe.beta,
        readout=recipe.readout,
        input_skip=recipe.input_skip,
    )
    factor = 2 ** (len(unet.multipliers) - 1)
    high, wide = (size + 2 * recipe.pad for size in images.shape[1:])
    if high % factor or wide % factor:
        raise SpikingError(
            f"--multipliers: got {recipe.multipliers} for images of {high}×{wide}; {len(unet.multipliers)} levels need multiples of "
            f"{factor}. Use --pad or --side, or fewer levels."
        )
    torch.manual_seed(recipe.train.seed)
    return SpikingDiffusion(DiffusionConfig(unet, recipe.schedule, prediction=recipe.prediction))


def adam(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam on what learns."""
    learning = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.Adam(learning, lr=config.lr, weight_decay=config.weight_decay)


def constant_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The second stage learns at one rate."""
    return config.lr


def run(
    recipe: Recipe, out: Path, resume: bool = False, data: ImageSet | None = None, display: Display | None = None
) -> dict[str, Any]:
    """Train a model into a folder: checkpoints, metrics.jsonl, grids, model/ (for from_pretrained), metrics.json; returns the last."""
    images = data or open_images(recipe.data, recipe.root, recipe.side, recipe.crop)
    model = build(recipe, images)
    size = images.shape[1] + 2 * recipe.pad, images.shape[2] + 2 * recipe.pad
    train, test = (
        DiffusionBatches(part, labels, recipe.flip and part is images.train, recipe.pad, recipe.train.seed)
        for part, labels in ((images.train, images.train_labels), (images.test, images.test_labels))
    )

    def draw(now: nn.Module, record: dict[str, Any]) -> None:
        if recipe.grid_epochs and (record["epoch"] + 1) % recipe.grid_epochs == 0:
            assert isinstance(now, SpikingDiffusion)
            save_grid(
                now.sample(64, size, steps=20, sampler="ddpm-small").images,
                out / f"samples-{record['epoch'] + 1:04d}.png",
            )

    def fit(module: SpikingDiffusion, config: TrainConfig, folder: Path, **options: Any) -> Trainer:
        trainer = Trainer(module, objective, config, folder, display, adam, after_epoch=draw, **options)
        trainer.fit(train, resume=resume and (folder / "checkpoint.safetensors").is_file())
        return trainer

    trainer = fit(model, recipe.train, out)
    metrics: dict[str, Any] = {
        "data": images.name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "test_loss": trainer.evaluate(test).loss,
    }
    if recipe.temporal_epochs:
        second = replace(recipe.train, epochs=recipe.temporal_epochs, lr=recipe.temporal_lr, warmup_epochs=0.0)
        plain = SpikingDiffusion(model.config)
        plain.load_state_dict(model.state_dict())
        # The same number of steps without temporal weights is the control.
        metrics["test_loss_control"] = fit(plain, second, out / "control", schedule=constant_rate).evaluate(test).loss
        model = model.with_temporal_weights()
        metrics["test_loss_temporal"] = fit(model, second, out / "temporal", schedule=constant_rate).evaluate(test).loss
    model.cpu()
    chosen = np.arange(min(len(train), MEASURED))
    model.estimate_gamma(train.batch(chosen, None)[0][0], pairs=recipe.gamma_pairs, seed=recipe.train.seed)
    model.save_pretrained(out / "model")
    samples = model.sample(100, size, sampler=recipe.sampler, steps=recipe.steps, seed=recipe.train.seed)
    save_grid(samples.images, out / "samples.png")
    metrics["samples"] = str(out / "samples.png")
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=1).encode())
    return metrics


def feature_sets(images: ImageSet, pad: int = 0, seeds: int = 3) -> list[Features]:
    """Classifiers of a set, one a seed, whose features images are compared by. Errors: SpikingError for a set without labels."""
    if not images.classes:
        raise SpikingError(f"feature_sets: got {images.name}, which has no labels; expected a set with classes.")
    shown, test = (
        DiffusionBatches(part, labels, pad=pad).batch(np.arange(len(part)), None)[0][0]
        for part, labels in ((images.train, images.train_labels), (images.test, images.test_labels))
    )
    return [
        train_features(shown, images.train_labels, test, images.test_labels, images.classes, images.name, seed)
        for seed in range(seeds)
    ]


def gaussian_fit(images: Tensor, n: int, seed: int = 0) -> Tensor:
    """n images of a normal distribution with the mean and covariance of these, clipped: what a model has to beat."""
    flat = images.flatten(1).double().numpy()
    drawn = np.random.default_rng(seed).multivariate_normal(flat.mean(0), np.cov(flat, rowvar=False), n, method="eigh")
    return torch.from_numpy(drawn).float().reshape(n, *images.shape[1:]).clamp(-1, 1)


def evaluate(
    images: ImageSet,
    makers: dict[str, Callable[[int, int], Tensor]],
    features: list[Features],
    n: int = 0,
    pad: int = 0,
) -> dict[str, dict[str, Any]]:
    """Distances of sets of images to the test images, each over as many seeds as there are features.

    `makers`: for each name, images [n, C, H, W] for (n, seed). "real" (training images) and "gaussian" (a normal fit) stand beside
    them. n = 0: as many as there are test images.
    """
    test = DiffusionBatches(images.test, images.test_labels, pad=pad).batch(np.arange(len(images.test)), None)[0][0]
    train = DiffusionBatches(images.train, images.train_labels, pad=pad).batch(np.arange(len(images.train)), None)[0][0]
    n = n or len(test)

    def real(n: int, seed: int) -> Tensor:
        return train[torch.from_numpy(np.random.default_rng(seed).permutation(len(train))[:n])]

    everyone = {"real": real, "gaussian": lambda n, seed: gaussian_fit(train, n, seed), **makers}
    found: dict[str, dict[str, Any]] = {}
    for name, make in everyone.items():
        columns: dict[str, list[float]] = {}
        for seed, feature in enumerate(features):
            made = make(n, seed)
            ours, theirs = feature(made), feature(test)
            precision, recall = precision_recall(theirs, ours)
            row = {
                f"{images.name}-frechet": frechet_distance(ours, theirs),
                "sliced_wasserstein": sliced_wasserstein(made.numpy(), test.numpy()),
                "precision": precision,
                "recall": recall,
                "confidence": float(feature.probabilities(made).max(1).mean()),
                "to_nearest_training_image": float(torch.cdist(made.flatten(1), train.flatten(1)).min(1).values.mean()),
            }
            for key, value in row.items():
                columns.setdefault(key, []).append(value)
        found[name] = {key: interval(values)._asdict() for key, values in columns.items()}
    return found


def grid(images: Tensor, columns: int = 0, scale: int = 0) -> np.ndarray:
    """Images [N, C, H, W] in -1…1 as one picture uint8 [H', W'] or [H', W', 3]; each pixel `scale` wide (0: about 4 for small ones)."""
    n, channels, high, wide = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = scale or max(1, 32 // high)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    sheet = np.full((rows * (high + 1) + 1, columns * (wide + 1) + 1, channels), 64, np.uint8)
    for i, image in enumerate(pixels):
        top, left = 1 + i // columns * (high + 1), 1 + i % columns * (wide + 1)
        sheet[top : top + high, left : left + wide] = image.transpose(1, 2, 0)
    sheet = sheet.repeat(scale, 0).repeat(scale, 1)
    return sheet if channels == 3 else sheet[..., 0]


def save_grid(images: Tensor, path: str | Path, columns: int = 0) -> None:
    """Images [N, C, H, W] in -1…1 as a PNG.

    >>> import tempfile
    >>> save_grid(torch.zeros(4, 1, 8, 8), Path(tempfile.mkdtemp()) / "grid.png")
    """
    from PIL import Image

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid(images, columns)).save(path)


def save_animation(trajectory: list[tuple[int, Tensor, Tensor]], path: str | Path, milliseconds: int = 80) -> None:
    """A sampling run as a GIF: on the left x_t, on the right the image that is found in it."""
    from PIL import Image

    frames = []
    for _, x, x0 in trajectory:
        both = [grid(part / max(1.0, float(part.abs().max()))) for part in (x, x0)]
        frames.append(Image.fromarray(np.concatenate(both, 1)))
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=[milliseconds] * (len(frames) - 1) + [1500], loop=0
    )
