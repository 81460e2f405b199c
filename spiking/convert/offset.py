"""Offset spikes: neurons that look at an image for some steps first, and then start where they come nearest to the activation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spiking.errors import SpikingError
from spiking.neuron import LIF, LIFState

__all__ = ["OffsetLIF"]


class OffsetLIF(LIF):
    """Integrate-and-fire that simulates the first `offset_steps` to find where its membrane has to start, for each image anew.

    Beyond its first steps, a neuron that fired and ends below 0 has sent a spike too many, and one that ends at the threshold
    or above one too few. It starts lower, or higher, by one threshold, or by as much more as one spike takes:

        v0 <- v0 - max(threshold, a little more than the smallest h of a step with a spike - threshold)   ended below 0 and fired
        v0 <- v0 + max(threshold, a little more than threshold - the largest h of a step without one)     ended at threshold or above

    Both parts of the input then run from the new start: the spikes of the first are for the layers that follow to find theirs.

    Shapes: x [offset_steps + T, B, *] -> the same.
    Errors: SpikingError for fewer steps, and for a state: these neurons need the image from its beginning.
    Source: Hao et al. 2023 (ICLR), "Bridging the gap between ANNs and SNNs by calibrating offset spikes" (arXiv 2302.10685).

    >>> neuron = OffsetLIF.of(LIF(beta=1.0, v_leak=0.5), offset_steps=2)
    >>> x = torch.tensor([2.0, -2.0, 2.0, -2.0]).reshape(4, 1, 1)  # on average nothing
    >>> neuron(x).flatten().tolist(), LIF(beta=1.0, v_leak=0.5)(x[:2]).flatten().tolist()
    ([0.0, 0.0, 0.0, 0.0], [1.0, 0.0])
    """

    offset_steps: int

    @classmethod
    def of(cls, neuron: LIF, offset_steps: int) -> OffsetLIF:
        """The same neuron, its parameters shared, with pre-simulation."""
        if not (isinstance(offset_steps, int) and not isinstance(offset_steps, bool) and offset_steps >= 1):
            raise SpikingError(f"OffsetLIF.offset_steps: got {offset_steps!r}; expected a whole number of at least 1.")
        rule = neuron.rule
        if (
            type(neuron) is not LIF
            or rule.reset != "subtract"
            or rule.refractory
            or rule.reset_delay
            or rule.residual_reset
        ):
            raise SpikingError(f'OffsetLIF.of: got {neuron!r}; expected a LIF with reset="subtract" and no delays.')
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.__dict__.update({name: value for name, value in vars(neuron).items() if not name.startswith("_")})
        made._parameters.update(neuron._parameters)
        made._buffers.update(neuron._buffers)
        made.offset_steps = offset_steps
        return made.train(neuron.training)

    def forward(self, x: Tensor, state: Any = None, return_state: bool = False) -> Any:
        """Spikes [offset_steps + T, B, *] for input of the same shape."""
        if state is not None or return_state:
            raise SpikingError(
                "OffsetLIF.state: got a sequence in pieces; expected all steps at once. The first ones decide where the others start."
            )
        if x.shape[0] <= self.offset_steps:
            raise SpikingError(
                f"OffsetLIF: got {x.shape[0]} time steps; expected more than the {self.offset_steps} that are simulated in advance."
            )
        start = LIFState(self.start(x[: self.offset_steps]))
        parts = (x[: self.offset_steps], x[self.offset_steps :])
        return torch.cat([super(OffsetLIF, self).forward(part, state=start) for part in parts])

    def step(self, x_t: Tensor, state: Any = None) -> Any:
        return self(x_t.unsqueeze(0), state=state, return_state=True)

    @torch.no_grad()
    def start(self, x: Tensor) -> Tensor:
        """Where the membranes have to start, [B, *], from input [offset_steps, B, *]."""
        beta, threshold = (torch.as_tensor(cell, dtype=x.dtype, device=x.device) for cell in self.cells().values())
        v = v0 = torch.full_like(x[0], self.rule.v_leak)
        fired = torch.zeros_like(v, dtype=torch.bool)
        smallest, largest = torch.full_like(v, torch.inf), torch.full_like(v, -torch.inf)
        for x_t in x:
            h = beta * v + x_t + (1 - beta) * self.rule.v_leak
            s = h > threshold if self.rule.tie == "gt" else h >= threshold
            smallest = torch.where(s, torch.minimum(smallest, h), smallest)
            largest = torch.where(s, largest, torch.maximum(largest, h))
            fired |= s
            v = h - threshold * s
        little = threshold / 1024
        down = torch.maximum(threshold, smallest - threshold + little)
        up = torch.maximum(threshold, threshold - largest + little)
        lower, higher = fired & (v < 0), (v >= threshold) & largest.isfinite()  # one that always fires has no step left
        return torch.where(lower, v0 - down, torch.where(higher, v0 + up, v0))

    def extra_repr(self) -> str:
        return f"offset_steps={self.offset_steps}, {super().extra_repr()}"
