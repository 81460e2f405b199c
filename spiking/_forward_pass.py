"""One forward pass of a model that is recorded: what every layer did, in which step, and who made which tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from spiking._counters import Levels, OperandCounts
from spiking.errors import SpikingError
from spiking.trace import Events, LayerTrace


@dataclass
class LayerPass:
    """What one layer did during one forward pass of the model, before it is added to the trace."""

    row: LayerTrace
    samples: int
    next_step: int = 0
    levels: list[Levels] = field(default_factory=list)
    syn: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # [T, B]
    spikes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # [T, B]
    where: list[tuple[np.ndarray, ...]] = field(default_factory=list)  # sample, step, index, value of every event
    first: Tensor | None = None  # operand of the first step while every later one equals it
    repeated: bool = True


class Producer(NamedTuple):
    """Who wrote a storage; the weak reference keeps its address from being used again while we remember it."""

    name: str
    storage: StorageWeakRef
    version: int
    numel: int
    counts: OperandCounts | None = None


class ForwardPass:
    """`steps` T and `batch` B may be corrected by the first layer, where the model's input does not show them."""

    def __init__(
        self, steps: int = 0, batch: int = 0, *, batch_first: bool = False, step_by_step: bool = False
    ) -> None:
        self.steps, self.batch = steps, batch
        self.batch_first, self.step_by_step = batch_first, step_by_step
        self.layers: dict[str, LayerPass] = {}
        self.readers: dict[str, set[str]] = {}
        self.kept: dict[str, list[Tensor]] = {}
        self.calls: dict[str, int] = {}
        self._producers: dict[int, Producer] = {}

    def start(self, name: str, n: int, make: Callable[[str], LayerTrace]) -> tuple[LayerPass, slice]:
        """The running pass of a layer and the n steps that this call covers."""
        whole = n == self.steps
        call = self.calls.get(name, 0)
        self.calls[name] = call + 1
        key = name if not whole or call == 0 else f"{name}#{call + 1}"
        if key not in self.layers:
            self.layers[key] = LayerPass(make(key), self.batch)
        done = self.layers[key]
        steps = slice(0, n) if whole else slice(done.next_step, done.next_step + n)
        if steps.stop > self.steps:
            raise SpikingError(
                f"record: layer {name} ran for more than T={self.steps} steps in one pass; expected the whole "
                "sequence at once, or its steps one by one. If the model's input has no time axis, pass steps=T."
            )
        done.next_step = steps.stop
        return done, steps

    def finish(self, done: LayerPass) -> None:
        row = done.row
        if done.levels:
            row.levels_step = done.levels + [Levels()] * (self.steps - len(done.levels))
            row.levels = Levels()
            for levels in done.levels:
                row.levels = row.levels.join(levels)
        row.repeated_input = done.repeated and done.next_step > 1 and row.is_weight_layer
        row.syn_sample = done.syn.sum(0) if done.syn.size else np.zeros(done.samples, np.int64)
        row.spikes_sample = done.spikes.sum(0) if done.spikes.size else np.zeros(done.samples, np.int64)
        per_sample = int(row.counts["updates"].sum()) // max(done.samples, 1)
        row.updates_sample = np.full(done.samples, per_sample, np.int64)
        if done.where:
            sample, step, index, value = (np.concatenate(parts) for parts in zip(*done.where))
            if len(done.where) > 1:  # pieces of the sequence; one piece is sorted as it comes
                order = np.lexsort((index, step, sample))
                sample, step, index, value = (part[order] for part in (sample, step, index, value))
            plain = np.zeros(0, np.float32) if (value == 1).all() else value
            row.events = Events(sample, step, index, plain)

    def produced(self, x: Tensor, name: str, counts: OperandCounts | None = None) -> None:
        storage = x.untyped_storage()
        self._producers[storage._cdata] = Producer(name, StorageWeakRef(storage), version(x), x.numel(), counts)

    def reads(self, x: Tensor, row: LayerTrace) -> OperandCounts | None:
        """Note who made x; return its counts if they were made when it left its neurons."""
        found = self._producers.get(x.untyped_storage()._cdata)
        if found is None or found.storage.expired() or found.version != version(x) or found.numel != x.numel():
            return None
        self.readers.setdefault(found.name, set()).add(row.name)
        if not row.operand_of:
            row.operand_of = (found.name,)
        return found.counts

    def maker(self, x: Tensor) -> str:
        found = self._producers.get(x.untyped_storage()._cdata)
        if found is None or found.storage.expired() or found.version != version(x) or found.numel != x.numel():
            return ""
        return found.name

    def copied(self, x: Tensor, copy: Tensor) -> None:
        """The copy has the maker of x, which is about to be overwritten."""
        maker = self.maker(x)
        if maker:
            self.produced(copy, maker)

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
