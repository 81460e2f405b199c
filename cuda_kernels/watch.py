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
    by_sample: np.ndarray  # [planes, B], or of several passes [planes, passes·B]
    by_neuron: np.ndarray  # [features]


class NeuronCounts:
    """Counts of neurons [T, B, features]: the counters of the threads as `TallyCall` (cpu/neuron_api.h) lays them out, and sums of them.

    Planes, each [T, B]: 0 neurons whose current is not zero; 1 spikes; with images whose windows drive them, 2 numbers that are not zero
    there, 3 those of them beyond the last whole window; last, with a `reach`, what the spikes reach.
    """

    __slots__ = (
        "batch", "binary", "call", "counts", "driven", "features", "folded", "kind", "planes", "reach", "shared", "steps"
    )  # fmt: skip

    def __init__(
        self, threads: int, steps: int, batch: int, features: int, driven: bool = False, reach: Reach | None = None
    ) -> None:
        self.kind = (threads, steps, batch, features, driven, reach)
        self.planes = 2 + 2 * driven + (0 if reach is None else 1 + (reach.nonzero is not None))
        self.steps, self.batch, self.features = steps, batch, features
        self.driven, self.reach = driven, reach
        self.counts = np.zeros((threads, self.planes * steps * batch + features + 1), np.int32)
        to = (0, 0) if reach is None else reach.addresses
        self.call = [features, self.counts.ctypes.data, *to, self.counts.shape[1]]  # as the compiled module takes it
        self.binary = True  # every output is 0 or 1
        self.shared = False  # several watches have these
        self.folded: Folded | None = None

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
        if self.folded is None:
            self.folded = fold([self])
        return self.folded.by_neuron

    def _plane(self, i: int) -> np.ndarray:
        cells = self.steps * self.batch
        return self.counts[:, i * cells : (i + 1) * cells].sum(0, dtype=np.int64).reshape(self.steps, self.batch)


def fold(found: list[NeuronCounts], clear: bool = False) -> Folded:
    """The sums of counts of one kind; with `clear`, the counters are zero afterwards, unless others have them, too."""
    one, n = found[0], len(found)
    clear = clear and not any(counts.shared for counts in found)
    steps, samples = one.planes * one.steps, one.planes * n * one.batch
    sums = np.zeros(steps + samples + one.features, np.int64)
    to, size = sums.ctypes.data, sums.itemsize
    sizes = (one.planes, one.steps, one.batch, one.features, 1)
    addresses = (to, to + size * steps, to + size * (steps + samples))
    backend.kernels().fold([counts.call[1] for counts in found], len(one.counts), *sizes, *addresses, clear)
    by_step, by_sample = sums[:steps].reshape(one.planes, -1), sums[steps : steps + samples]
    return Folded(by_step, by_sample.reshape(one.planes, -1), sums[steps + samples :])


class InputCounts(NamedTuple):
    """Counts of the input [rows, n] of a weight layer."""

    per_row: np.ndarray  # [rows] int64
    per_input: np.ndarray  # [threads, n]
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
        self._spare: dict[tuple[Any, ...], list[NeuronCounts]] = {}  # all zero, by kind

    def start(self) -> None:
        """Be in force in this thread or task, beside those that are already."""
        others = _in_force.get()
        if self not in others:
            _in_force.set((*others, self))

    def stop(self) -> None:
        """Be in force no longer; recordings inside of one another may end in any order."""
        self._neurons.clear()
        self._inputs.clear()
        self._reach = None
        _in_force.set(tuple(watch for watch in _in_force.get() if watch is not self))

    def begins(self, neuron: nn.Module) -> None:
        """A layer of neurons is about to run."""
        self._reach = self.reaches.get(id(neuron))

    def room(self, threads: int, steps: int, batch: int, features: int, driven: bool) -> NeuronCounts:
        """Where the counts of the neurons go that run now, with what their spikes reach if that is wanted."""
        reach, self._reach = self._reach, None
        reach = reach if reach is not None and reach.stored.numel() == features else None
        spare = self._spare.get((threads, steps, batch, features, driven, reach))
        return spare.pop() if spare else NeuronCounts(threads, steps, batch, features, driven, reach)

    def give_back(self, counts: list[NeuronCounts]) -> None:
        """Counts that were taken from `room` and are zero again; they may go to other neurons."""
        if any(found.shared for found in counts):
            return
        if len(self._spare) > _KINDS:
            self._spare.clear()
        for found in counts:
            found.folded = None
        self._spare.setdefault(counts[0].kind, []).extend(counts)

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
        if found is None or not x.is_contiguous() or found.per_input.shape[1] != x.shape[-1]:
            return None
        return found if found.per_row.size * found.per_input.shape[1] == x.numel() else None


_KINDS = 64  # of counts, of which spare ones are kept
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
        """See `Watch.begins`."""

    def room(self, threads: int, steps: int, batch: int, features: int, driven: bool) -> NeuronCounts:
        """See `Watch.room`; nobody gets sums of what spikes reach, and nobody may give the counts back."""
        counts = NeuronCounts(threads, steps, batch, features, driven)
        counts.shared = True
        return counts

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
