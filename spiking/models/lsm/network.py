"""A liquid state machine as a network of this library's layers: what `spiking.record` counts, and a chip prices, layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import spiking
from spiking.errors import SpikingError
from spiking.models.lsm.model import LiquidStateMachine


class ReservoirNetwork(nn.Module):
    """The same neurons, spikes and scores as of a liquid state machine, step by step in layers: events [T, B, I] -> scores [B, out].

    `input` and `reservoir.recurrent` are the fixed weights; `readout` is the fitted one with the standardisation of features in it, used
    once a recording. An event, or a spike, that meets a row of weights is one addition for every neuron.
    Errors: SpikingError for features that are not spike counts of whole sequences, or a reservoir on memory cells.

    >>> lsm = LiquidStateMachine(16, 50, out=2, const=0.3)
    >>> x = (torch.rand(20, 3, 16, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    >>> bool((ReservoirNetwork(lsm).spikes(x) == lsm.spikes(x)).all())
    True
    """

    def __init__(self, lsm: LiquidStateMachine) -> None:
        super().__init__()
        if lsm.kind != "counts" or lsm.time_bins != 1 or lsm.in_array is not None:
            where = "on memory cells" if lsm.in_array is not None else f"with {lsm.time_bins} bins of {lsm.kind}"
            raise SpikingError(
                f"ReservoirNetwork: got a reservoir {where}; expected spike counts of whole sequences, and no arrays."
            )
        self.window = lsm.window
        self.input = spiking.Linear(lsm.in_features, lsm.n, bias=lsm.bias is not None)
        neuron = spiking.LIF(beta=lsm.beta, threshold=lsm.threshold, reset="zero", tie="gt")
        self.reservoir: nn.Module = neuron if lsm.w_rec is None else spiking.Recurrent(neuron, lsm.n)
        self.readout = nn.Linear(lsm.n, lsm.out)
        weight = lsm.readout.weight / lsm.readout.std
        with torch.no_grad():
            self.input.weight.copy_(lsm.w_in)
            if lsm.bias is not None and self.input.bias is not None:
                self.input.bias.copy_(lsm.bias)
            if lsm.w_rec is not None and isinstance(self.reservoir, spiking.Recurrent):
                self.reservoir.recurrent.weight.copy_(lsm.w_rec)
            self.readout.weight.copy_(weight)
            self.readout.bias.copy_(lsm.readout.bias - weight @ lsm.readout.mean)
        self.requires_grad_(False)

    def spikes(self, x: Tensor) -> Tensor:
        """Spikes [T, B, N]."""
        return self.reservoir(self.input(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.spikes(x).sum(0) / (self.window or max(len(x), 1)))
