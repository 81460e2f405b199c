"""One forward pass of a model that is recorded: what every layer did, in which step, and who made which tensor.

Counts reach the rows of the trace when the pass is complete, so that a pass that fails leaves no trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spiking._counters import Levels, OperandCounts, counts_of_spikes
from spiking.cuda_kernels.watch import NeuronCounts
from spiking.errors import SpikingError
from spiking.trace import Events, LayerTrace


class Growing:
    """An array that grows at its end, without being copied each time; it begins with `n` zeros."""

    def __init__(self, n: int = 0) -> None:
        self._room = np.zeros(n, np.int64)
        self._n = n

    def with_more(self, values: np.ndarray) -> np.ndarray:
        """All values so far, these among them; a view that later calls leave as it is."""
        n = self._n + len(values)
        if n > len(self._room):
            self._room = np.concatenate([self._room[: self._n], np.zeros(max(n, 64), np.int64)])
        self._room[self._n : n] = values
        self._n = n
        return self._room[:n]


@dataclass
class LayerPass:
    """What one layer did during one pass; `row` is its row of the trace."""

    row: LayerTrace
    steps: int
    samples: int
    label: str = ""  # the layer's name; its row has it with a number from the second call on
    call: int = 0
    next_step: int = 0
    counts: dict[str, np.ndarray | int] = field(default_factory=dict)  # [T], or one number for every step
    abs_sum: np.ndarray | None = None
    per_element: np.ndarray | None = None
    levels: list[Levels] = field(default_factory=list)
    levels_right: Levels = field(default_factory=Levels)
    syn: list[np.ndarray] = field(default_factory=list)  # [t, B] of each piece of the sequence
    spikes: list[np.ndarray] = field(default_factory=list)  # likewise
    where: list[Events] = field(default_factory=list)
    active_rows: dict[int, int] = field(default_factory=dict)
    operand_of: tuple[str, ...] = ()
    train_mode: bool = False
    first: Tensor | None = None  # operand of the first step while every later one equals it
    repeated: bool = True

    def add(self, name: str, steps: slice, values: np.ndarray | int) -> None:
        """Add to a counter in some steps."""
        if name not in self.counts and steps.stop - steps.start == self.steps:
            self.counts[name] = values
            return
        whole = np.zeros(self.steps, np.int64)
        whole += self.counts.get(name, 0)
        whole[steps] += values
        self.counts[name] = whole

    def add_elements(self, per_element: np.ndarray) -> None:
        """Add to the counts of each element."""
        self.per_element = per_element if self.per_element is None else self.per_element + per_element

    def check(self) -> None:
        """Refuse to be added to a row of another shape."""
        row = self.row
        if self.per_element is not None and self.per_element.size != row.spike_count.size:
            raise SpikingError(
                f"record: layer {row.name}: got {self.per_element.size} elements after {row.spike_count.size} in the "
                "pass before; expected one shape. Record the shapes in separate traces."
            )

    def commit(self, fresh: bool, samples: dict[str, Growing], silent: np.ndarray) -> Events | None:
        """Add the pass to the row; returns where its events were. `samples` grow with each pass; `silent` has a 0 for each sample."""
        row = self.row
        for name, values in self.counts.items():
            row.counts[name] += values
        if self.abs_sum is not None:
            row.in_abs_sum += self.abs_sum
        if self.per_element is not None:
            row.spike_count += self.per_element
        if self.levels:
            quiet = Levels()
            join_levels(row, self.levels + [quiet] * (self.steps - len(self.levels)))
        row.levels_right = row.levels_right.join(self.levels_right)
        repeated = self.repeated and self.next_step > 1 and row.is_weight_layer
        row.repeated_input = repeated and (fresh or row.repeated_input)
        row.train_mode = row.train_mode or self.train_mode
        row.operand_of = self.operand_of if fresh or row.operand_of == self.operand_of else ()
        for size, blocks in self.active_rows.items():
            row.active_rows[size] = row.active_rows.get(size, 0) + blocks
        updated = self.counts.get("updates", 0)
        updates = updated * self.steps if isinstance(updated, int) else int(updated.sum())
        per_sample = {
            "syn_sample": _over_steps(self.syn),
            "spikes_sample": _over_steps(self.spikes),
            "updates_sample": np.full(self.samples, updates // max(self.samples, 1), np.int64) if updates else None,
        }
        for name, of_sample in per_sample.items():
            key = f"{row.name} {name}"
            if of_sample is None and key not in samples:
                setattr(row, name, silent)
                continue
            grown = samples.setdefault(key, Growing(len(silent) - self.samples))
            setattr(row, name, grown.with_more(silent[: self.samples] if of_sample is None else of_sample))
        return self._events()

    def _events(self) -> Events | None:
        if not self.where:
            return None
        parts = [
            np.concatenate([getattr(e, name) for e in self.where]) for name in ("sample", "step", "index", "value")
        ]
        if len(self.where) > 1:  # pieces of the sequence; one piece is sorted as it comes
            order = np.lexsort((parts[2], parts[1], parts[0]))
            parts = [part[order] for part in parts]
        plain = (parts[3] == 1).all()
        return Events(*parts[:3]) if plain else Events(*parts)


def join_levels(row: LayerTrace, levels: list[Levels]) -> None:
    """Add the levels of each step to a row's."""
    row.levels_step = [a if a is b else a.join(b) for a, b in zip(row.levels_step, levels)]
    for step in levels:
        row.levels = row.levels if step is row.levels else row.levels.join(step)


def _over_steps(parts: list[np.ndarray]) -> np.ndarray | None:
    """Sums of [t, B] over the steps of all parts."""
    if not parts:
        return None
    return parts[0].sum(0) if len(parts) == 1 else np.concatenate(parts).sum(0)


_free_weak_ref = torch.UntypedStorage._free_weak_ref


class Producer(NamedTuple):
    """Who wrote a storage."""

    name: str
    version: int
    numel: int
    counts: OperandCounts | NeuronCounts | None = None


class ForwardPass:
    """`steps` T and `batch` B may be corrected by the first layer, where the model's input does not show them."""

    def __init__(
        self,
        known: dict[str, LayerTrace] | None = None,
        readers: dict[str, set[str]] | None = None,
        *,
        batch_first: bool = False,
        step_by_step: bool = False,
    ) -> None:
        self.steps = self.batch = 0
        self.batch_first, self.step_by_step = batch_first, step_by_step
        self.has_time = False  # of single steps: whether they are [1, B, *]
        self.layers: dict[str, Any] = {}  # LayerPass, or the plan that took its place
        self.plans: dict[Any, Any] = {}  # how layers may be counted in later passes that are like this one
        self.readers = {} if readers is None else readers
        self.kept: dict[str, list[Tensor]] = {}
        self.calls: dict[str, int] = {}
        self._known = {} if known is None else known
        self.long = False  # whether some layer was counted the long way, not by a plan
        self._producers: dict[int, Producer] = {}  # of storages by identity
        self._held: list[int] = []  # weak references, which keep these identities from becoming those of others

    def __del__(self) -> None:
        for held in self._held:
            _free_weak_ref(held)

    def start(self, name: str, n: int, make: Callable[[str], LayerTrace]) -> tuple[LayerPass, slice]:
        """The running pass of a layer and the n steps that this call covers; `make` gives a row that the trace does not have yet."""
        whole = n == self.steps
        call = self.calls.get(name, 0)
        self.calls[name] = call + 1
        key = name if not whole or call == 0 else f"{name}#{call + 1}"
        done = self.layers.get(key)
        if done is None:
            row = self._known.get(key)
            row = make(key) if row is None else row
            done = self.layers[key] = LayerPass(row, self.steps, self.batch, name, call)
            self.long = True
        steps = slice(0, n) if whole else slice(done.next_step, done.next_step + n)
        if steps.stop > self.steps:
            raise SpikingError(
                f"record: layer {name} ran for more than T={self.steps} steps in one pass; expected the whole "
                "sequence at once, or its steps one by one. If the model's input has no time axis, pass steps=T."
            )
        done.next_step = steps.stop
        return done, steps

    # who made a tensor, who reads it

    def produced(self, x: Tensor, name: str, counts: OperandCounts | NeuronCounts | None = None) -> None:
        storage: Any = x.untyped_storage()
        key = storage._cdata
        if key not in self._producers:
            self._held.append(storage._weak_ref())
        self._producers[key] = Producer(name, 0 if x.is_inference() else x._version, x.numel(), counts)

    def maker(self, x: Tensor) -> Producer | None:
        """Who made x, as it is."""
        found = self._producers.get(x.untyped_storage()._cdata)
        if found is None or found.numel != x.numel() or found.version != (0 if x.is_inference() else x._version):
            return None
        return found

    def reads(self, x: Tensor, done: LayerPass) -> OperandCounts | None:
        """Note who made x; return its counts if they were made when it left its neurons."""
        found = self.maker(x)
        if found is None:
            return None
        self.reads_from(found.name, done)
        if isinstance(found.counts, NeuronCounts):
            whole = x.detach().reshape(found.counts.steps, found.counts.batch, -1)
            return counts_of_spikes(found.counts.spikes, found.counts.per_neuron, whole)
        return found.counts

    def reads_from(self, name: str, done: LayerPass) -> None:
        self.readers.setdefault(name, set()).add(done.row.name)
        if not done.operand_of:
            done.operand_of = (name,)

    def copied(self, x: Tensor, copy: Tensor) -> None:
        """The copy has the maker of x, which is about to be overwritten."""
        found = self.maker(x)
        if found is not None:
            self.produced(copy, found.name)

    # shapes

    def time_first(self, x: Tensor) -> Tensor:
        """[T, B, *] of [B, T, *] or [B·T, *], if the model's neurons have the batch first; else x."""
        lead = (self.batch, self.steps)
        if self.batch_first and tuple(x.shape[:2]) == lead:
            return x.transpose(0, 1).contiguous()
        if self.batch_first and x.shape[0] == math.prod(lead):
            return x.reshape(*lead, *x.shape[1:]).transpose(0, 1).contiguous()
        return x

    def sequence(self, x: Tensor, name: str, feature_dims: int) -> Tensor:
        """x as [t, B, *]: the whole sequence, a part of it, or one step."""
        lead = (self.steps, self.batch)
        if self.has_time and x.ndim > feature_dims + 1 and tuple(x.shape[:2]) == (1, self.batch):
            return x
        if self.step_by_step and x.ndim > feature_dims and x.shape[0] == self.batch:
            return x.unsqueeze(0)
        x = self.time_first(x)
        if x.ndim >= feature_dims + 2 and tuple(x.shape[:2]) == lead:
            return x
        if x.ndim > feature_dims and x.shape[0] == self.steps * self.batch:
            return x.reshape(*lead, *x.shape[1:])
        if x.ndim == feature_dims + 2 and x.shape[1] == self.batch and x.shape[0] < self.steps:
            return x
        if x.ndim > feature_dims and x.shape[0] == self.batch:
            return x.unsqueeze(0)
        raise SpikingError(
            f"record: layer {name}: got an input of shape {list(x.shape)}; expected [T, B, …], [T·B, …] or one step "
            f"[B, …] with T={self.steps}, B={self.batch}. If the model's input has no time axis, pass steps=T."
        )


def version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
