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

from . import backend

__all__ = ["InputCounts", "NeuronCounts", "Reach", "Watch", "Watches", "current"]


class Reach:
    """What a spike of each neuron reaches in the layer after it, int32 [features]: all weights, and those that are not zero if some are."""

    def __init__(self, stored: Tensor, nonzero: Tensor | None) -> None:
        self.stored, self.nonzero = stored.contiguous(), None if nonzero is None else nonzero.contiguous()
        self.addresses = (self.stored.data_ptr(), 0 if self.nonzero is None else self.nonzero.data_ptr())

    def same_as(self, other: Reach) -> bool:
        """Whether both hold the same numbers."""
        pairs = ((self.stored, other.stored), (self.nonzero, other.nonzero))
        return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


class Folded(NamedTuple):
    """Sums of counts, int64."""

    by_step: np.ndarray  # [planes, T]
    by_sample: np.ndarray  # [planes, B]
    by_neuron: np.ndarray  # [features]


class NeuronCounts:
    """Counts of neurons [T, B, features]: the counters of the threads as `TallyCall` (cpu/neuron_api.h) lays them out, and sums of them.

    Planes, each [T, B]: 0 neurons whose current is not zero; 1 spikes; with images whose windows drive them, 2 numbers that are not zero
    there, 3 those of them beyond the last whole window; last, with a `reach`, what the spikes reach.
    """

    __slots__ = ("_folded", "batch", "binary", "counts", "driven", "features", "planes", "reach", "steps")

    def __init__(
        self, threads: int, steps: int, batch: int, features: int, driven: bool = False, reach: Reach | None = None
    ) -> None:
        self.planes = 2 + 2 * driven + (0 if reach is None else 1 + (reach.nonzero is not None))
        self.steps, self.batch, self.features = steps, batch, features
        self.driven, self.reach = driven, reach
        self.counts = np.zeros((threads, self.planes * steps * batch + features + 1), np.int32)
        self.binary = True  # every output is 0 or 1
        self._folded: Folded | None = None

    @property
    def call(self) -> list[int]:
        """As the compiled module takes it."""
        to = (0, 0) if self.reach is None else self.reach.addresses
        return [self.features, self.counts.ctypes.data, *to, self.counts.shape[1]]

    @property
    def active(self) -> np.ndarray:
        """[T, B] neurons whose current is not zero."""
        return self._plane(0)

    @property
    def spikes(self) -> np.ndarray:
        """[T, B]"""
        return self._plane(1)

    @property
    def images(self) -> np.ndarray:
        """[T, B] numbers that are not zero in the images whose windows drive them."""
        return self._plane(2)

    @property
    def beyond(self) -> np.ndarray:
        """[T, B] those of them beyond the last whole window."""
        return self._plane(3)

    @property
    def per_neuron(self) -> np.ndarray:
        """[features] spikes."""
        return self.folded.by_neuron

    def _plane(self, i: int) -> np.ndarray:
        cells = self.steps * self.batch
        return self.counts[:, i * cells : (i + 1) * cells].sum(0, dtype=np.int64).reshape(self.steps, self.batch)

    @property
    def folded(self) -> Folded:
        """The sums, made once."""
        if self._folded is None:
            steps, samples = self.planes * self.steps, self.planes * self.batch
            sums = np.zeros(steps + samples + self.features, np.int64)
            to, size = sums.ctypes.data, sums.itemsize
            sizes = (self.planes, self.steps, self.batch, self.features, 1)
            module = backend.compiled()
            assert module is not None  # who else would have counted
            addresses = (to, to + size * steps, to + size * (steps + samples))
            module.fold(self.counts.ctypes.data, len(self.counts), *sizes, *addresses)
            by_step, by_sample = sums[:steps].reshape(self.planes, -1), sums[steps : steps + samples]
            self._folded = Folded(by_step, by_sample.reshape(self.planes, -1), sums[steps + samples :])
        return self._folded


class InputCounts(NamedTuple):
    """Counts of the input [rows, n] of a weight layer."""

    per_row: np.ndarray  # [rows] int64
    per_input: np.ndarray  # [n] int64
    binary: bool  # every input is 0 or 1


class Watch:
    """Where kernels leave counts; `together(pool, neuron, x, s)` is called after layers that ran in one pass."""

    def __init__(self, together: Callable[[nn.Module, nn.Module, Tensor, Tensor], None]) -> None:
        self.together = together
        self.wants_input = False  # whether the layer that runs now reads something that nobody has counted
        self.reaches: dict[int, Reach] = {}  # of neurons, by identity, whose spikes reach differently many weights
        self._reach: Reach | None = None
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
        self._reach = None
        _in_force.set(tuple(watch for watch in _in_force.get() if watch is not self))

    def begins(self, neuron: nn.Module) -> None:
        """A layer of neurons is about to run."""
        self._reach = self.reaches.get(id(neuron))

    def take_reach(self, features: int) -> Reach | None:
        """What the spikes of the neurons that run now reach, if that is wanted."""
        found, self._reach = self._reach, None
        return found if found is not None and found.stored.numel() == features else None

    def leave_neurons(self, x: Tensor, s: Tensor, counts: NeuronCounts) -> None:
        """File the counts of neurons with input x and output s, until the layer is heard of."""
        self._neurons[x.data_ptr(), s.data_ptr()] = counts

    def take_neurons(self, x: Tensor, s: Tensor) -> NeuronCounts | None:
        """What was counted of neurons with input x and output s, [T, B, *] as they lie in memory; None if they were not."""
        found = self._neurons.get((x.data_ptr(), s.data_ptr()))
        self._neurons.clear()
        if found is None or not s.is_contiguous() or (found.steps, found.batch) != s.shape[:2]:
            return None
        return found if found.features * found.steps * found.batch == s.numel() else None

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
    """Several that are in force, spoken to as one."""

    def __init__(self, watches: tuple[Watch, ...]) -> None:
        self._watches = watches

    @property
    def wants_input(self) -> bool:
        """Whether any of them does."""
        return any(watch.wants_input for watch in self._watches)

    def together(self, pool: nn.Module, neuron: nn.Module, x: Tensor, s: Tensor) -> None:
        """Layers ran in one pass, from x [T, B, C, H, W] to spikes s."""
        for watch in self._watches:
            watch.together(pool, neuron, x, s)

    def begins(self, neuron: nn.Module) -> None:
        """See `Watch.begins`; each wants other sums, so nobody gets them."""

    def take_reach(self, features: int) -> Reach | None:
        """See `Watch.take_reach`."""
        return None

    def leave_neurons(self, x: Tensor, s: Tensor, counts: NeuronCounts) -> None:
        """See `Watch.leave_neurons`."""
        for watch in self._watches:
            watch.leave_neurons(x, s, counts)

    def leave_input(self, x: Tensor, counts: InputCounts) -> None:
        """See `Watch.leave_input`."""
        for watch in self._watches:
            watch.leave_input(x, counts)


def current() -> Watch | Watches | None:
    """The watches in force in this thread or task; none are while `torch.compile` traces."""
    if torch.compiler.is_compiling():
        return None
    found = _in_force.get()
    return (found[0] if len(found) == 1 else Watches(found)) if found else None


def is_of_watch(hook: Any) -> bool:
    """Whether a module's hook is that of a recorder, which need not see what passes inside of layers that run together."""
    return getattr(hook, "of_watch", False)
