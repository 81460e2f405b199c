"""What a network under conversion does over time, one layer at a time: spike trains, a bit a spike, and currents."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from spiking.convert._reading import Piece
from spiking.convert.network import INPUT
from spiking.layer import Dropout
from spiking.neuron import LIF, Neuron

_NUMBERS = 1 << 26  # of one layer that are in memory at once


class Trains:
    """Spike trains of the neurons of a list of pieces for images shown over so many steps.

    Each layer is run once, from the trains of those before it, which are kept packed; so calibration costs as many steps as
    it has, whatever the depth. What is driven by the image alone is the same at every step and computed once.
    """

    def __init__(self, pieces: list[Piece], x: Tensor, steps: int) -> None:
        self.pieces = {piece.name: piece for piece in pieces}
        self.x, self.steps = x, steps
        largest = max([x[0].numel(), *(int(np.prod(piece.shape)) for piece in pieces)])
        self.chunk = max(1, min(steps, _NUMBERS // max(1, largest * len(x))))
        self.trains: dict[str, list[_Packed]] = {}
        self.last_use = {source: piece.name for piece in pieces for source in self._neurons_of(piece)}

    def currents(self, piece: Piece) -> Iterator[Tensor]:
        """The input current of some neurons, [B, *], at every step; once if it is the same at all of them."""
        for k in range(self._n_chunks()):
            current = self._value(piece.inputs[0], k, {})
            yield from current
            if self._constant(piece.inputs[0]):
                return

    def run(self, piece: Piece) -> None:
        """Let the neurons of a piece fire, and keep what they do."""
        neuron = piece.module
        assert isinstance(neuron, Neuron)
        state, packed = None, []
        binary = isinstance(neuron, LIF)
        for k in range(self._n_chunks()):
            current = self._value(piece.inputs[0], k, {})
            n = min(self.chunk, self.steps - k * self.chunk)
            spikes, state = neuron(current.expand(n, *current.shape[1:]), state=state, return_state=True)
            packed.append(_Packed(spikes, binary))
        self.trains[piece.name] = packed

    def done_with(self, piece: Piece) -> None:
        """Let go of the trains that only this piece and those before it needed."""
        for name in [name for name, last in self.last_use.items() if last == piece.name and name != piece.name]:
            self.trains.pop(name, None)

    def rates(self, piece: Piece) -> Tensor:
        """Mean over the steps of what the neurons of a piece sent, [B, *]."""
        total = sum((part.unpacked(self.x).sum(0) for part in self.trains[piece.name]), torch.zeros(()))
        return total / self.steps

    def _n_chunks(self) -> int:
        return -(-self.steps // self.chunk)

    def _value(self, name: str, k: int, known: dict[str, Tensor]) -> Tensor:
        """What a piece gives in the k-th chunk, [t, B, *]; t = 1 where it is the same at every step."""
        if name == INPUT:
            return self.x.unsqueeze(0)
        if name not in known:
            piece = self.pieces[name]
            if piece.kind == "neuron":
                known[name] = self.trains[name][k].unpacked(self.x)
            else:
                value = self._value(piece.inputs[0], k, known)
                for source in piece.inputs[1:]:
                    value = value + self._value(source, k, known)
                assert piece.module is not None
                known[name] = value if isinstance(piece.module, Dropout) else piece.module(value)
        return known[name]

    def _constant(self, name: str) -> bool:
        return name == INPUT or (
            self.pieces[name].kind != "neuron" and all(self._constant(source) for source in self.pieces[name].inputs)
        )

    def _neurons_of(self, piece: Piece) -> Iterator[str]:
        """The neurons whose spikes reach a piece without passing others."""
        for source in piece.inputs:
            if source == INPUT:
                continue
            before = self.pieces[source]
            if before.kind == "neuron":
                yield source
            else:
                yield from self._neurons_of(before)


class _Packed:
    """Spikes [t, B, *] as one bit each, or graded ones as they are in 16 bits."""

    def __init__(self, spikes: Tensor, binary: bool) -> None:
        self.shape, self.binary = spikes.shape, binary
        if binary:
            self.bits: np.ndarray | Tensor = np.packbits((spikes != 0).cpu().numpy().reshape(-1))
        else:
            self.bits = spikes.to(torch.int16)

    def unpacked(self, like: Tensor) -> Tensor:
        if isinstance(self.bits, Tensor):
            return self.bits.to(like)
        flat = np.unpackbits(self.bits, count=self.shape.numel())
        return torch.from_numpy(flat).to(like).reshape(self.shape)
