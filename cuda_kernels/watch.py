"""What kernels count on the side while a run is recorded, so that nobody reads their tensors again to find out.

A recorder puts a `Watch` in force; kernels that see one leave their counts there, and the recorder takes them when it hears of the
layer. Counts are filed under the memory of the tensors that they are of: they are taken at once, while those tensors live.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["InputCounts", "NeuronCounts", "Watch", "Watches", "current"]


class NeuronCounts(NamedTuple):
    """Counts of neurons [T, B, features], int64."""

    active: np.ndarray  # [T, B] neurons whose current is not zero
    spikes: np.ndarray  # [T, B]
    images: np.ndarray  # [T, B] numbers that are not zero in the images whose windows drive them, where windows do
    per_neuron: np.ndarray  # [features] spikes
    binary: bool  # every output is 0 or 1

    @classmethod
    def of(cls, counts: np.ndarray, steps: int, features: int) -> NeuronCounts:
        """From the counters of the threads, as `TallyCall` (cpu/neuron_api.h) lays them out."""
        total = counts.sum(0, dtype=np.int64)
        active, spikes, images = total[: -features - 1].reshape(3, steps, -1)
        return cls(active, spikes, images, total[-features - 1 : -1], not total[-1])


class InputCounts(NamedTuple):
    """Counts of the input [rows, n] of a weight layer."""

    per_row: np.ndarray  # [rows] int64
    per_input: np.ndarray  # [n] int64
    binary: bool  # every input is 0 or 1


class Watch:
    """Where kernels leave counts; `heard(pool, neuron, x, s)` is called after layers that ran in one pass."""

    def __init__(self, heard: Callable[[nn.Module, nn.Module, Tensor, Tensor], None]) -> None:
        self.heard = heard
        self.wants_input = False  # whether the layer that runs now reads something that nobody has counted
        self._neurons: dict[tuple[int, int], NeuronCounts] = {}
        self._inputs: dict[int, InputCounts] = {}

    def start(self) -> None:
        """Be in force in this thread or task, beside those that are already."""
        if self not in _in_force.get():
            _in_force.set((*_in_force.get(), self))

    def stop(self) -> None:
        """Be in force no longer; recordings inside of one another may end in any order."""
        self._neurons.clear()
        self._inputs.clear()
        _in_force.set(tuple(watch for watch in _in_force.get() if watch is not self))

    def leave_neurons(self, x: Tensor, s: Tensor, counts: NeuronCounts) -> None:
        """File the counts of neurons with input x and output s, until the layer is heard of."""
        self._neurons[x.data_ptr(), s.data_ptr()] = counts

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

    def take_input(self, x: Tensor) -> InputCounts | None:
        """What was counted of a layer's input x [.., n]; None if it was not."""
        found = self._inputs.get(x.data_ptr())
        self._inputs.clear()
        if found is None or not x.is_contiguous() or found.per_input.size != x.shape[-1]:
            return None
        return found if found.per_row.size * found.per_input.size == x.numel() else None


_in_force: ContextVar[tuple[Watch, ...]] = ContextVar("spiking_watches", default=())


class Watches:
    """All that are in force, spoken to as one."""

    def __init__(self, watches: tuple[Watch, ...]) -> None:
        self._watches = watches

    @property
    def wants_input(self) -> bool:
        """Whether any of them does."""
        return any(watch.wants_input for watch in self._watches)

    def together(self, pool: nn.Module, neuron: nn.Module, x: Tensor, s: Tensor) -> None:
        """Layers ran in one pass, from x [T, B, C, H, W] to spikes s."""
        for watch in self._watches:
            watch.heard(pool, neuron, x, s)

    def leave_neurons(self, x: Tensor, s: Tensor, counts: NeuronCounts) -> None:
        """See `Watch.leave_neurons`."""
        for watch in self._watches:
            watch.leave_neurons(x, s, counts)

    def leave_input(self, x: Tensor, counts: InputCounts) -> None:
        """See `Watch.leave_input`."""
        for watch in self._watches:
            watch.leave_input(x, counts)


def current() -> Watches | None:
    """The watches in force in this thread or task; none are while `torch.compile` traces."""
    if torch.compiler.is_compiling():
        return None
    found = _in_force.get()
    return Watches(found) if found else None


def is_of_watch(hook: Any) -> bool:
    """Whether a module's hook is that of a recorder, which need not see what passes inside of layers that run together."""
    return getattr(hook, "of_watch", False)
