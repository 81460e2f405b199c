"""The network for spoken digits: frames [T, B, channels] in, output spikes [T, B, classes] out."""

from collections import OrderedDict
from typing import cast

import torch
from torch import nn

from spiking import layer
from spiking.classify import Classifier
from spiking.delays import DelayedLinear
from spiking.hub import MODEL_CARD, HubModel
from spiking.models.ntidigits.config import NTIDIGITSConfig
from spiking.neuron import LIF, Recurrent
from spiking.surrogate import ATan
from spiking.training import TrainConfig

RECURRENT_GAIN = 0.3  # of the orthogonal weights that recurrence starts from


class NTIDIGITSNet(
    Classifier,
    HubModel,
    library_name="spiking",
    tags=["spiking-neural-network", "n-tidigits", "event-based-audio"],
    model_card_template=MODEL_CARD,
):
    """A spiking classifier of event sound.

        twice:  (delayed) Linear – batch norm – (recurrent) LIF – dropout;   then Linear – LIF

    Shapes: x [T, B, channels] -> output spikes [T, B, classes]. With `return_membrane=True` also the output membrane before reset under
    the readout's leak. `step(x_t, state)` takes one frame [B, channels].
    `training_steps`: how many there will be, for a network that is to be trained: the width of delays falls over a share of them.
    Source: Hammouamri, Khalfaoui-Hassani, Masquelier 2024 (arXiv 2306.17670), whose network has wider layers and no recurrence.

    >>> net = NTIDIGITSNet()
    >>> net(torch.zeros(40, 1, 64)).shape
    torch.Size([40, 1, 10])
    """

    def __init__(self, config: NTIDIGITSConfig | None = None, training_steps: int = 0) -> None:
        super().__init__()
        self.config = config = config or NTIDIGITSConfig()
        anneal = round(config.anneal * training_steps)
        layers: list[tuple[str, nn.Module]] = []
        for i, before in enumerate((config.inputs, config.hidden), start=1):
            layers += [
                (f"linear{i}", _weights(config, before, anneal)),
                (f"norm{i}", layer.BatchNorm1d(config.hidden)),
                (f"lif{i}", _neurons(config)),
                (f"dropout{i}", layer.Dropout(config.dropout)),
            ]
        self.body = layer.Sequential(OrderedDict([*layers, ("linear", layer.Linear(config.hidden, config.classes))]))
        self.output = LIF(
            beta=config.output_beta,
            threshold=config.threshold,
            reset="none",
            detach_reset=True,
            surrogate=ATan(alpha=config.surrogate_alpha),
        )


def optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, delays learning faster than weights and without decay."""
    named = [*model.named_parameters()]
    delays = [p for name, p in named if name.endswith("delay")]
    own = cast(NTIDIGITSConfig, model.config)
    groups = [
        {"params": [p for name, p in named if not name.endswith("delay")], "weight_decay": config.weight_decay},
        {"params": delays, "weight_decay": 0.0, "lr_scale": own.delay_lr},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr)


def _weights(config: NTIDIGITSConfig, before: int, anneal: int) -> layer.Linear:
    if not config.max_delay:
        return layer.Linear(before, config.hidden, bias=False)
    return DelayedLinear(before, config.hidden, config.max_delay, bias=False, anneal=anneal)


def _neurons(config: NTIDIGITSConfig) -> nn.Module:
    lif = LIF(
        beta=config.beta,
        threshold=config.threshold,
        detach_reset=True,
        surrogate=ATan(alpha=config.surrogate_alpha),
    )
    if not config.recurrent:
        return lif
    neurons = Recurrent(lif, config.hidden)
    nn.init.orthogonal_(neurons.recurrent.weight, RECURRENT_GAIN)
    return neurons
