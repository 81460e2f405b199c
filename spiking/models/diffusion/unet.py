"""The spiking U-Net: noisy images and diffusion steps in, what is to be removed out.

An image drives the network as a constant current over T time steps (direct coding). Residual blocks fire before each
convolution and add floats; the tail is a conventional one; a weighted sum over time is the output. Membranes start at rest at
each call, since nothing is kept between two.

Source: Cao, Wang, Guo, Cheng, Zhang, Xu 2024, Spiking Diffusion Models (IEEE TAI; arXiv 2408.16467).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as tf

from spiking.errors import SpikingError
from spiking.layer import BatchNorm2d, Conv2d
from spiking.models.diffusion.config import UNetConfig
from spiking.neuron import IF, LIF
from spiking.surrogate import ATan

__all__ = [
    "DownBlock",
    "ResBlock",
    "SpikingUNet",
    "TimeEmbedding",
    "UpBlock",
    "from_published",
    "readout_weights",
    "with_threshold",
]


def _neuron(config: UNetConfig) -> IF | LIF:
    surrogate = ATan(alpha=config.surrogate_alpha)
    if config.beta == 1:
        return IF(config.threshold, reset="zero", surrogate=surrogate)
    return LIF(config.beta, config.threshold, reset="zero", surrogate=surrogate)


def _xavier(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> None:
    nn.init.xavier_uniform_(layer.weight, gain=gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> Conv2d:
    conv = Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
    _xavier(conv)
    return conv


class TimeEmbedding(nn.Module):
    """Diffusion steps [B] -> vectors [B, 4·channels]: sines and cosines, a linear layer, Swish, a linear layer.

        table[t] = sin(t·f0), cos(t·f0), sin(t·f1), …;   f_k = 10000^(-2k/channels)

    The table is computed in float32, as the published weights were trained with, and does not learn.

    >>> TimeEmbedding(8, 1000)(torch.tensor([3, 617])).shape
    torch.Size([2, 32])
    """

    def __init__(self, channels: int, n_diffusion_steps: int) -> None:
        super().__init__()
        frequency = torch.exp(-torch.arange(0, channels, 2, dtype=torch.float32) / channels * math.log(10000))
        angle = torch.arange(n_diffusion_steps, dtype=torch.float32)[:, None] * frequency
        table = torch.stack([angle.sin(), angle.cos()], -1).reshape(n_diffusion_steps, channels)
        self.table = nn.Parameter(table, requires_grad=False)
        self.hidden = nn.Linear(channels, 4 * channels)
        self.output = nn.Linear(4 * channels, 4 * channels)
        _xavier(self.hidden)
        _xavier(self.output)

    def forward(self, t: Tensor) -> Tensor:
        return self.output(tf.silu(self.hidden(self.table[t])))


class ResBlock(nn.Module):
    """A residual block that fires before each of its two convolutions.

        h = BN(conv(IF(x))) + W·Swish(time);   y = BN(conv(IF(h))) + shortcut(x)

    The shortcut is x itself, or its 1×1 convolution where the number of channels changes: floats, not spikes.

    Shapes: x [T, B, C_in, H, W], time [B, D] -> [T, B, C_out, H, W].
    """

    def __init__(self, inputs: int, outputs: int, config: UNetConfig) -> None:
        super().__init__()
        self.neuron1 = _neuron(config)
        self.conv1 = _conv(inputs, outputs)
        self.bn1 = BatchNorm2d(outputs)
        self.time_proj = nn.Linear(4 * config.channels, outputs)
        _xavier(self.time_proj)
        self.neuron2 = _neuron(config)
        self.conv2 = _conv(outputs, outputs)
        self.bn2 = BatchNorm2d(outputs)
        self.shortcut = _conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.bn1(self.conv1(self.neuron1(x)))
        h = h + self.time_proj(tf.silu(time))[None, :, :, None, None]
        h = self.bn2(self.conv2(self.neuron2(h)))
        return h + self.shortcut(x)


class DownBlock(nn.Module):
    """Half the height and width: IF, convolution of stride 2, BN. Shapes: [T, B, C, H, W] -> [T, B, C, H/2, W/2]."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.neuron = _neuron(config)
        self.conv = _conv(channels, channels, stride=2)
        self.bn = BatchNorm2d(channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.bn(self.conv(self.neuron(x)))


class UpBlock(nn.Module):
    """Twice the height and width: IF, each spike four times, convolution, BN. Shapes: [T, B, C, H, W] -> [T, B, C, 2H, 2W]."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.neuron = _neuron(config)
        self.conv = _conv(channels, channels)
        self.bn = BatchNorm2d(channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        s = self.neuron(x)
        s = tf.interpolate(s.flatten(0, 1), scale_factor=2.0, mode="nearest").unflatten(0, s.shape[:2])
        return self.bn(self.conv(s))


def readout_weights(config: UNetConfig) -> Tensor:
    """What each time step of the output counts, [T]; they need not add up to 1.

    >>> readout_weights(UNetConfig(timesteps=3)).tolist()
    [0.6400000000000001, 0.8, 1.0]
    """
    T = config.timesteps
    if config.readout == "mean":
        return torch.full((T,), 1 / T, dtype=torch.float64)
    return config.decay ** torch.arange(T - 1, -1, -1, dtype=torch.float64)


class SpikingUNet(nn.Module):
    """A spiking denoiser: what is predicted from noisy images at diffusion steps.

    Shapes: x [B, C, H, W], t int64 [B] in 0…n_diffusion_steps - 1, labels int64 [B] or None -> [B, C, H, W].
    With `config.classes`, label -1 (and labels=None) means "no label".
    Errors: SpikingError for images that the levels do not divide, other channels, steps or labels out of range.
    Source: Cao et al. 2024 (arXiv 2408.16467), the network of their code; `from_published` reads its weights.

    >>> net = SpikingUNet(UNetConfig(image_channels=1, channels=8, multipliers=(1, 2), blocks=1))
    >>> net(torch.zeros(2, 1, 8, 8), torch.tensor([3, 617])).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, config: UNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or UNetConfig()
        n = config.channels
        self.time_embedding = TimeEmbedding(n, config.n_diffusion_steps)
        self.label_embedding = nn.Embedding(config.classes + 1, 4 * n) if config.classes else None
        self.conv = _conv(config.image_channels, n)
        self.bn = BatchNorm2d(n)
        self.neuron = _neuron(config)
        self.conv_identity = Conv2d(n, n, 3, padding=1)
        self.bn_identity = BatchNorm2d(n)
        sizes, now = [n], n
        down: list[nn.Module] = []
        for level, multiplier in enumerate(config.multipliers):
            for _ in range(config.blocks):
                down.append(ResBlock(now, n * multiplier, config))
                now = n * multiplier
                sizes.append(now)
            if level + 1 < len(config.multipliers):
                down.append(DownBlock(now, config))
                sizes.append(now)
        self.downblocks = nn.ModuleList(down)
        self.middleblocks = nn.ModuleList([ResBlock(now, now, config) for _ in range(2)])
        up: list[nn.Module] = []
        for level, multiplier in reversed([*enumerate(config.multipliers)]):
            for _ in range(config.blocks + 1):
                up.append(ResBlock(now + sizes.pop(), n * multiplier, config))
                now = n * multiplier
            if level:
                up.append(UpBlock(now, config))
        self.upblocks = nn.ModuleList(up)
        self.tail_bn = BatchNorm2d(now)
        self.tail_conv = Conv2d(now, config.image_channels, 3, padding=1)
        _xavier(self.tail_conv, 1e-5)
        self.output_conv = Conv2d(config.image_channels, config.image_channels, 3, padding=1)
        self.last_bn = BatchNorm2d(config.image_channels)
        self.skip_proj = nn.Linear(4 * n, config.image_channels) if config.input_skip else None
        if self.skip_proj is not None:
            nn.init.zeros_(self.skip_proj.weight)
            nn.init.zeros_(self.skip_proj.bias)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self._check(x, t, labels)
        time = self.time_embedding(t)
        if self.label_embedding is not None:
            time = time + self.label_embedding(self._classes(labels, len(x), x.device))
        # Each step sees the same image: it is convolved once.
        h = self.bn(self.conv(x.unsqueeze(0)).expand(self.config.timesteps, -1, -1, -1, -1))
        h = self.bn_identity(self.conv_identity(self.neuron(h)))
        passed = [h]
        for block in self.downblocks:
            h = block(h, time)
            passed.append(h)
        for block in self.middleblocks:
            h = block(h, time)
        for block in self.upblocks:
            h = block(h if isinstance(block, UpBlock) else torch.cat([h, passed.pop()], 2), time)
        z = self.tail_conv(tf.silu(self.tail_bn(h)))
        z = z + tf.silu(self.last_bn(self.output_conv(z)))
        weights = readout_weights(self.config).to(z)
        y = torch.tensordot(weights, z, dims=1)
        return y if self.skip_proj is None else y + self.skip_proj(tf.silu(time))[:, :, None, None] * x

    def _check(self, x: Tensor, t: Tensor, labels: Tensor | None) -> None:
        c, side = self.config, 2 ** (len(self.config.multipliers) - 1)
        if x.dim() != 4 or x.shape[1] != c.image_channels:
            raise SpikingError(f"SpikingUNet: got x {list(x.shape)}; expected [B, {c.image_channels}, H, W].")
        if x.shape[2] % side or x.shape[3] % side:
            raise SpikingError(
                f"SpikingUNet: got images of {x.shape[2]}×{x.shape[3]}; expected multiples of {side}, since {len(c.multipliers)} "
                "levels halve them. Resize them, or take fewer multipliers."
            )
        if t.shape != x.shape[:1] or t.is_floating_point():
            raise SpikingError(f"SpikingUNet.t: got {t.dtype} {list(t.shape)}; expected whole numbers [{len(x)}].")
        if t.numel() and not (int(t.min()) >= 0 and int(t.max()) < c.n_diffusion_steps):
            raise SpikingError(
                f"SpikingUNet.t: got steps from {int(t.min())} to {int(t.max())}; expected 0 to {c.n_diffusion_steps - 1}."
            )
        if labels is not None and not c.classes:
            raise SpikingError("SpikingUNet.labels: got labels for a network without classes; set UNetConfig.classes.")

    def _classes(self, labels: Tensor | None, n: int, device: torch.device) -> Tensor:
        classes = self.config.classes
        if labels is None:
            return torch.full((n,), classes, device=device)
        if labels.shape != (n,) or (n and not (int(labels.min()) >= -1 and int(labels.max()) < classes)):
            raise SpikingError(
                f"SpikingUNet.labels: got {labels.tolist()[:8]}; expected {n} numbers from 0 to {classes - 1}, or -1 for none."
            )
        return torch.where(labels < 0, classes, labels)


@contextmanager
def with_threshold(model: nn.Module, threshold: float | Mapping[str, float]) -> Iterator[None]:
    """Every neuron of a model with another threshold, or those named in a mapping; weights stay, thresholds come back after.

    Errors: SpikingError for a name that is no neuron, and a threshold that is not positive.
    Source: threshold guidance of Cao et al. 2024 (arXiv 2408.16467), section IV.

    >>> net = SpikingUNet(UNetConfig(image_channels=1, channels=8, multipliers=(1,), blocks=1))
    >>> with with_threshold(net, 0.997):
    ...     net.neuron.threshold
    0.997
    >>> net.neuron.threshold
    1.0
    """
    neurons = {name: layer for name, layer in model.named_modules() if isinstance(layer, (IF, LIF))}
    wanted = threshold if isinstance(threshold, Mapping) else dict.fromkeys(neurons, threshold)
    for name, value in wanted.items():
        if name not in neurons:
            raise SpikingError(
                f'with_threshold: got "{name}"; expected the name of a neuron such as {next(iter(neurons), None)}.'
            )
        if not (value > 0 and math.isfinite(value)):
            raise SpikingError(f"with_threshold: got {value}; expected a finite number above 0.")
    before = {name: neurons[name].threshold for name in wanted}
    try:
        for name, value in wanted.items():
            neurons[name].threshold = value
        yield
    finally:
        for name, kept in before.items():
            neurons[name].threshold = kept


_RENAMED = {
    "time_embedding.timembedding.0.weight": "time_embedding.table",
    "time_embedding.timembedding.1.": "time_embedding.hidden.",
    "time_embedding.timembedding.3.": "time_embedding.output.",
    ".temb_proj.1.": ".time_proj.",
    "temb_proj.1.": "time_proj.",
    "T_output_layer.": "output_conv.",
    ".tsmconv.": ".layer.",
    ".tsmp": ".p",
}


def from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the authors' code under the names and shapes of this one.

    >>> list(from_published({"T_output_layer.weight": torch.zeros(3, 3, 3, 3, 1)}))
    ['output_conv.weight']
    """
    found = {}
    for name, value in weights.items():
        ours = name
        for theirs, new in _RENAMED.items():
            ours = ours.replace(theirs, new)
        if ours == "output_conv.weight":
            value = value.squeeze(-1)
        elif ours.endswith(".p"):
            value = value.flatten()
        found[ours] = value
    return found
