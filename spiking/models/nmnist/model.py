"""The N-MNIST networks: frames [T, B, 2, 34, 34] in, output spikes [T, B, 10] out."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from torch import nn

from spiking import layer
from spiking.classify import Classifier
from spiking.hub import MODEL_CARD, HubModel
from spiking.models.nmnist.config import NMNISTConfig
from spiking.neuron import LIF
from spiking.surrogate import ATan


class NMNISTNet(
    Classifier,
    HubModel,
    library_name="spiking",
    tags=["spiking-neural-network", "n-mnist", "event-camera"],
    model_card_template=MODEL_CARD,
):
    """A spiking classifier of event-camera digits.

        conv:  Conv 12×5×5 – norm – pool 2 – LIF – Conv 32×5×5 – norm – pool 2 – LIF – Linear 800→10 – LIF
        mlp:   Linear 2312→hidden – norm – LIF – Linear hidden→10 – LIF

    Shapes: x [T, B, 2, 34, 34] -> output spikes [T, B, 10]. With `return_membrane=True` also the output membrane before
    reset under the readout's leak, [T, B, 10]. `step(x_t, state)` takes one frame [B, 2, 34, 34].
    Source: the convolutional tutorial network of snnTorch (Eshraghian et al. 2023, arXiv 2109.12894) and of tonic.

    >>> import torch
    >>> net = NMNISTNet()
    >>> net(torch.zeros(6, 1, 2, 34, 34)).shape
    torch.Size([6, 1, 10])
    """

    def __init__(self, config: NMNISTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NMNISTConfig()
        layers = _conv_layers(config) if config.kind == "conv" else _mlp_layers(config)
        self.body = layer.Sequential(OrderedDict(layers))
        self.output = LIF(
            beta=config.output_beta,
            threshold=config.threshold,
            reset=config.output_reset,
            detach_reset=config.detach_reset,
            surrogate=ATan(alpha=config.surrogate_alpha),
        )

    @classmethod
    def pretrained(cls) -> "NMNISTNet":
        """The network that ships with the package: trained on real N-MNIST recordings, for frames as `FrameConfig()` makes.

        >>> import torch
        >>> NMNISTNet.pretrained()(torch.zeros(6, 1, 2, 34, 34)).shape
        torch.Size([6, 1, 10])
        """
        return cls.from_pretrained(Path(__file__).parent / "pretrained")


def _neuron(config: NMNISTConfig) -> LIF:
    return LIF(
        beta=config.beta,
        threshold=config.threshold,
        reset=config.reset,
        detach_reset=config.detach_reset,
        surrogate=ATan(alpha=config.surrogate_alpha),
    )


def _conv_layers(config: NMNISTConfig) -> list[tuple[str, nn.Module]]:
    pool = {"max": layer.MaxPool2d, "avg": layer.AvgPool2d}[config.pool]
    kinds: dict[str, Callable[[int], nn.Module]] = {
        "batch": layer.BatchNorm2d,
        "td": lambda n: layer.TDBatchNorm2d(n, threshold=config.threshold),
    }
    norm = kinds.get(config.norm)
    layers: list[tuple[str, nn.Module]] = []
    for i, (before, after) in enumerate(((2, 12), (12, 32)), start=1):
        layers.append((f"conv{i}", layer.Conv2d(before, after, 5, bias=norm is None)))
        if norm is not None:
            layers.append((f"norm{i}", norm(after)))
        layers += [(f"pool{i}", pool(2)), (f"lif{i}", _neuron(config))]
    return [*layers, *_head(config, 800)]


def _mlp_layers(config: NMNISTConfig) -> list[tuple[str, nn.Module]]:
    kinds: dict[str, Callable[[int], nn.Module]] = {
        "batch": layer.BatchNorm1d,
        "td": lambda n: layer.TDBatchNorm1d(n, threshold=config.threshold),
    }
    norm = kinds.get(config.norm)
    layers: list[tuple[str, nn.Module]] = [
        ("flatten1", layer.Flatten()),
        ("linear1", layer.Linear(2 * 34 * 34, config.hidden, bias=norm is None)),
    ]
    if norm is not None:
        layers.append(("norm1", norm(config.hidden)))
    return [*layers, ("lif1", _neuron(config)), *_head(config, config.hidden)]


def _head(config: NMNISTConfig, features: int) -> list[tuple[str, nn.Module]]:
    dropout = [("dropout", layer.Dropout(config.dropout))] if config.dropout else []
    return [("flatten", layer.Flatten()), *dropout, ("linear", layer.Linear(features, config.classes))]
