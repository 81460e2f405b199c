"""What kernels count on the side while a run is recorded, so that nobody reads their tensors again to find out.

A recorder puts a `Watch` in force; kernels that see one leave their counts there, and the recorder takes them when it hears of the
layer. Counts are filed under the memory of the tensors that they are of: they are taken at once, while those tensors live.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["InputCounts", "NeuronCounts", "Watch", "current"]


class NeuronCounts(NamedTuple):
    """Counts of neurons [T, B, features], int64."""

    active: np.ndarray  # [T, B] neurons whose current is not zero
    spikes: np.ndarray  # [T, B]
    pooled: np.ndarray  # [T, B] numbers that are not zero in the windows that drive them, where windows do
    per_neuron: np.ndarray  # [features] spikes
    binary: bool  # every output is 0 or 1

    @classmethod
    def of(cls, counts: np.ndarray, steps: int, features: int) -> NeuronCounts:
        """From the counters of the threads, as `TallyCall` (cpu/neuron_api.h) lays them out."""
        total = counts.sum(0, dtype=np.int64)
        active, spikes, pooled = total[: -features - 1].reshape(3, steps, -1)
        return cls(active, spikes, pooled, total[-features - 1 : -1], not total[-1])


class InputCounts(NamedTuple):
    """Counts of the input [rows, n] of a weight layer."""

    per_row: np.ndarray  # [rows] int64
    per_input: np.ndarray  # [n] int64
    binary: bool  # every input is 0 or 1


class Watch:
    """Where kernels leave counts; `heard(pool, neuron, x, s)` is called after layers that ran in one pass."""

    def __init__(self, heard: Callable[[nn.Module, nn.Module, Tensor, Tensor], None]) -> None:
        self._heard = heard
        self._wants_input = False
        self._neurons: dict[tuple[int, int], NeuronCounts] = {}
        self._inputs: dict[int, InputCounts] = {}
        self._outer: Watch | None = None  # of a recorder around this one
        self._token: Token[Watch | None] | None = None

    def start(self) -> None:
        """Be the one in force in this thread or task; one that was in force before still hears everything."""
        if self._token is None:
            self._outer = current()
            self._token = _current.set(self)

    def stop(self) -> None:
        """Be in force no longer."""
        self._neurons.clear()
        self._inputs.clear()
        if self._token is not None:
            _current.reset(self._token)
            self._token = self._outer = None

    def together(self, pool: nn.Module, neuron: nn.Module, x: Tensor, s: Tensor) -> None:
        """Layers ran in one pass, from x [T, B, C, H, W] to spikes s."""
        self._heard(pool, neuron, x, s)
        if self._outer is not None:
            self._outer.together(pool, neuron, x, s)

    @property
    def wants_input(self) -> bool:
        """Whether the layer that runs now reads something that nobody has counted."""
        return self._wants_input or (self._outer is not None and self._outer.wants_input)

    @wants_input.setter
    def wants_input(self, wanted: bool) -> None:
        self._wants_input = wanted

    def leave_neurons(self, x: Tensor, s: Tensor, counts: NeuronCounts) -> None:
        """File the counts of neurons with input x and output s, until the layer is heard of."""
        self._neurons[x.data_ptr(), s.data_ptr()] = counts
        if self._outer is not None:
            self._outer.leave_neurons(x, s, counts)

    def take_neurons(self, x: Tensor, s: Tensor) -> NeuronCounts | None:
        """What was counted of neurons with input x and output s, [T, B, *] as they lie in memory; None if they were not."""
        found = self._neurons.get((x.data_ptr(), s.data_ptr()))
        self._neurons.clear()
        if found is None or not s.is_contiguous() or found.spikes.shape != s.shape[:2]:
            return None
        return found if found.per_neuron.size * found.spikes.size == s.numel() else None

    def leave_input(self, x: Tensor, counts: InputCounts) -> None:
        """File the counts of a layer's input x, until the layer is heard of."""
        self._inputs[x.data_ptr()] = counts
        if self._outer is not None:
            self._outer.leave_input(x, counts)

    def take_input(self, x: Tensor) -> InputCounts | None:
        """What was counted of a layer's input x [.., n]; None if it was not."""
        found = self._inputs.get(x.data_ptr())
        self._inputs.clear()
        if found is None or not x.is_contiguous() or found.per_input.size != x.shape[-1]:
            return None
        return found if found.per_row.size * found.per_input.size == x.numel() else None


_current: ContextVar[Watch | None] = ContextVar("spiking_watch", default=None)


def current() -> Watch | None:
    """The watch in force in this thread or task; none is while `torch.compile` traces."""
    return None if torch.compiler.is_compiling() else _current.get()


def is_of_watch(hook: Any) -> bool:
    """Whether a module's hook is that of a recorder, which need not see what passes inside of layers that run together."""
    return getattr(hook, "of_watch", False)
