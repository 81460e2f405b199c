"""The networks of IIR-SNN: VGG and residual ones for any image size, as conventional networks and as spiking ones.

A conventional network is trained, converted (`spiking.convert.from_ann`) and retrained at ever fewer time steps
(`reduce_timesteps`). The spiking network of the same name has the same layers, and the same names for them: what
`from_ann` makes of a `VGG` fits into a `SpikingVGG`.

Source: Chowdhury, Rathi & Roy 2021, "One Timestep is All You Need" (arXiv 2110.05929), and its published code.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from spiking.convert.ann import retrainable_lif, spiking_body
from spiking.convert.network import SpikingNet
from spiking.errors import SpikingError
from spiking.hub import MODEL_CARD, HubModel

__all__ = ["RESNETS", "VGG", "VGGS", "ResNet", "SpikingResNet", "SpikingVGG"]

A = 0  # 2×2 average pooling
VGGS: dict[str, tuple[int, ...]] = {
    "vgg4": (64, A, 128, A),
    "vgg6": (64, A, 128, 128, A),
    "vgg9": (64, A, 128, 256, A, 256, 512, A, 512, A, 512),
    "vgg11": (64, A, 128, 256, A, 512, 512, A, 512, A, 512, 512),
    "vgg13": (64, 64, A, 128, 128, A, 256, 256, A, 512, 512, 512, A, 512),
    "vgg16": (64, 64, A, 128, 128, A, 256, 256, 256, A, 512, 512, 512, A, 512, 512, 512),
    "vgg19": (64, 64, A, 128, 128, A, *(256,) * 4, A, *(512,) * 4, A, *(512,) * 4),
    "vgg16-224": (64, 64, A, 128, 128, A, 256, 256, 256, A, 512, 512, 512, A, 512, 512, 512, A),
}
"""Channels of the convolutions, 0 for a pooling. "vgg6" was published under the name "vgg5", which is understood too."""

RESNETS: dict[str, tuple[int, ...]] = {"resnet12": (1, 1, 1, 1), "resnet20": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
"""Blocks in each of the four stages."""


def _known(kind: str, name: str, table: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    key = {"vgg5": "vgg6"}.get(name, name)
    if key not in table:
        raise SpikingError(f"{kind}.name: got {name!r}; expected one of {', '.join(table)}.")
    return table[key]


def _check(kind: str, dropout: float, **counts: float) -> None:
    for name, value in counts.items():
        whole = isinstance(value, int) or name == "width"
        if not (whole and math.isfinite(value) and value > 0):
            raise SpikingError(f"{kind}.{name}: got {value!r}; expected a number above 0.")
    if not 0 <= dropout < 1:
        raise SpikingError(f"{kind}.dropout: got {dropout}; expected 0 <= dropout < 1.")


class VGG(nn.Sequential):
    """The conventional VGG network, of plain torch layers.

    Every convolution (3×3) is followed by ReLU, and by average pooling or, where there is none, dropout. `width` scales all
    channels and hidden layers. Without `batch_norm` and `bias`, as published, nothing is added anywhere.

    Shapes: images [B, in_channels, image_size, image_size] -> scores [B, classes].
    Errors: SpikingError for an unknown name, numbers out of range, or an image that pooling leaves nothing of.

    >>> VGG("vgg6", in_channels=1, image_size=28, width=0.25)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        name: str = "vgg16",
        classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        width: float = 1.0,
        batch_norm: bool = False,
        bias: bool = False,
        dropout: float = 0.2,
    ) -> None:
        plan = _known("VGG", name, VGGS)
        _check("VGG", dropout, classes=classes, in_channels=in_channels, image_size=image_size, width=width)
        layers: list[tuple[str, nn.Module]] = []
        channels, side, conv, pool = in_channels, image_size, 0, 0
        for i, entry in enumerate(plan):
            if entry == A:
                pool, side = pool + 1, side // 2
                layers.append((f"pool{pool}", nn.AvgPool2d(2)))
                continue
            conv += 1
            wide = max(1, round(entry * width))
            layers.append((f"conv{conv}", nn.Conv2d(channels, wide, 3, padding=1, bias=bias and not batch_norm)))
            if batch_norm:
                layers.append((f"norm{conv}", nn.BatchNorm2d(wide)))
            layers.append((f"act{conv}", nn.ReLU()))
            if i + 1 == len(plan) or plan[i + 1] != A:
                layers.append((f"drop{conv}", nn.Dropout(dropout)))
            channels = wide
        if side < 1:
            raise SpikingError(
                f"VGG.image_size: got {image_size}; expected at least {2**pool} for the {pool} poolings."
            )
        layers.append(("flatten", nn.Flatten()))
        features = channels * side * side
        hidden = (1024,) if name == "vgg4" else (4096, 4096)
        for j, size in enumerate(hidden, start=1):
            wide = max(1, round(size * width))
            layers.append((f"fc{j}", nn.Linear(features, wide, bias=False)))
            layers += [(f"act{conv + j}", nn.ReLU()), (f"drop{conv + j}", nn.Dropout(dropout))]
            features = wide
        layers.append((f"fc{len(hidden) + 1}", nn.Linear(features, classes, bias=False)))
        super().__init__(OrderedDict(layers))
        initialise(self)


class _Block(nn.Module):
    """Two convolutions beside a shortcut. "sum": the last activation is that of the sum; "sew": it lies before the sum."""

    def __init__(self, before: int, after: int, stride: int, batch_norm: bool, dropout: float, residual: str) -> None:
        super().__init__()
        self.first = _convolution(before, after, 3, stride, batch_norm)
        self.act1 = nn.ReLU()
        self.drop = nn.Dropout(dropout)
        self.second = _convolution(after, after, 3, 1, batch_norm)
        plain = before == after and stride == 1
        shortcut = nn.Sequential() if plain else _convolution(before, after, 1, stride, batch_norm)
        if residual == "sew" and not plain:
            shortcut.append(nn.ReLU())  # spikes are added to spikes
        self.shortcut = shortcut
        self.act2 = nn.ReLU()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.drop(self.act1(self.first(x))))
        if self.residual == "sew":
            return self.act2(y) + self.shortcut(x)
        return self.act2(y + self.shortcut(x))


def _convolution(before: int, after: int, kernel: int, stride: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)]
    return nn.Sequential(*layers, *([nn.BatchNorm2d(after)] if batch_norm else []))


class ResNet(nn.Module):
    """The conventional residual network: three convolutions and a pooling, four stages of blocks, one linear layer.

    residual: "sum" activates the sum of block and shortcut, as published; "sew" adds activations (spikes, once converted),
    so that a shortcut passes on what came in unchanged, and what it carries are small whole numbers.

    Shapes: images [B, in_channels, image_size, image_size] -> scores [B, classes].   Errors: as `VGG`.
    Source: published code of arXiv 2110.05929; "sew" Fang et al. 2021 (arXiv 2102.04159), with g = ADD.

    >>> ResNet("resnet12", width=0.125)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        name: str = "resnet20",
        classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        width: float = 1.0,
        batch_norm: bool = False,
        dropout: float = 0.2,
        residual: str = "sum",
    ) -> None:
        super().__init__()
        blocks = _known("ResNet", name, RESNETS)
        _check("ResNet", dropout, classes=classes, in_channels=in_channels, image_size=image_size, width=width)
        if residual not in ("sum", "sew"):
            raise SpikingError(f'ResNet.residual: got {residual!r}; expected "sum" or "sew".')
        if image_size < 2:
            raise SpikingError(f"ResNet.image_size: got {image_size}; expected at least 2.")
        channels = [max(1, round(c * width)) for c in (64, 64, 128, 256, 512)]
        stem: list[tuple[str, nn.Module]] = []
        for i in range(3):
            stem.append(
                (f"conv{i + 1}", _convolution(in_channels if i == 0 else channels[0], channels[0], 3, 1, batch_norm))
            )
            stem.append((f"act{i + 1}", nn.ReLU()))
            stem.append((f"drop{i + 1}", nn.Dropout(dropout)) if i < 2 else ("pool", nn.AvgPool2d(2)))
        self.stem = nn.Sequential(OrderedDict(stem))
        self.blocks = nn.Sequential()
        side = image_size // 2
        for stage, n in enumerate(blocks):
            before, after = channels[stage], channels[stage + 1]
            for i in range(n):
                stride = 2 if i == 0 and stage else 1
                self.blocks.append(_Block(before if i == 0 else after, after, stride, batch_norm, dropout, residual))
                side = -(-side // stride)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels[-1] * side * side, classes, bias=False)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(self.blocks(self.stem(x))))


def initialise(network: nn.Module) -> None:
    """He's weights: normal, with the variance 2/(k²·outputs) in convolutions, and 2/inputs in linear layers.

    The published code draws linear layers narrower; networks of eight layers without biases then often do not start.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels)))
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / layer.in_features))
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


class SpikingVGG(
    SpikingNet,
    HubModel,
    library_name="spiking",
    tags=["spiking-neural-network", "image-classification"],
    model_card_template=MODEL_CARD,
):
    """The spiking VGG network: convolutions, neurons of `convert.retrainable_lif`, average pooling, no neuron at the end.

    Its layers have the names of those of `VGG`, with which it shares the arguments; biases are there where batch norms were
    folded. Thresholds are 1 until a conversion or training sets them.

    Shapes: x [T, B, in_channels, image_size, image_size] -> currents [T, B, classes]; `scores(images)` runs `timesteps`
    steps of the same image.   Errors: as `VGG`.
    Source: Chowdhury, Rathi & Roy 2021 (arXiv 2110.05929).

    >>> net = SpikingVGG("vgg6", in_channels=1, image_size=28, width=0.125)
    >>> net(torch.zeros(3, 2, 1, 28, 28)).shape
    torch.Size([3, 2, 10])
    """

    def __init__(
        self,
        name: str = "vgg16",
        classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        width: float = 1.0,
        bias: bool = False,
        dropout: float = 0.2,
        timesteps: int = 1,
    ) -> None:
        super().__init__()
        _check("SpikingVGG", dropout, timesteps=timesteps)
        network = VGG(name, classes, in_channels, image_size, width, bias=bias, dropout=dropout)
        self.body = spiking_body(network, torch.zeros(1, in_channels, image_size, image_size), retrainable_lif)
        self._timesteps = timesteps

    @property
    def timesteps(self) -> int:
        return self._timesteps


class SpikingResNet(
    SpikingNet,
    HubModel,
    library_name="spiking",
    tags=["spiking-neural-network", "image-classification"],
    model_card_template=MODEL_CARD,
):
    """The spiking residual network, as `ResNet`; `bias` where batch norms were folded.

    Shapes: x [T, B, in_channels, image_size, image_size] -> currents [T, B, classes].   Errors: as `ResNet`.
    Source: Chowdhury, Rathi & Roy 2021 (arXiv 2110.05929); "sew" Fang et al. 2021 (arXiv 2102.04159).

    >>> SpikingResNet("resnet12", width=0.0625)(torch.zeros(2, 1, 3, 32, 32)).shape
    torch.Size([2, 1, 10])
    """

    def __init__(
        self,
        name: str = "resnet20",
        classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        width: float = 1.0,
        bias: bool = False,
        dropout: float = 0.2,
        residual: str = "sum",
        timesteps: int = 1,
    ) -> None:
        super().__init__()
        _check("SpikingResNet", dropout, timesteps=timesteps)
        network = ResNet(name, classes, in_channels, image_size, width, bias, dropout, residual)
        self.body = spiking_body(network, torch.zeros(1, in_channels, image_size, image_size), retrainable_lif)
        self._timesteps = timesteps

    @property
    def timesteps(self) -> int:
        return self._timesteps
