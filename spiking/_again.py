"""A layer that runs as it did in an earlier pass: the same shapes, fed by the same layer, counted in the same way.

Then all that its row of the trace needs is known but the numbers, and few questions are asked. The numbers of a few such passes are kept
as kernels left them, and added to the row together. What differs in any way takes the long way of `spiking._rows`, which comes to the
same counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from spiking import _counters as counters
from spiking._counters import Levels
from spiking._forward_pass import ForwardPass, Growing, LayerPass, join_levels, version
from spiking.cuda_kernels import backend, counting
from spiking.cuda_kernels.watch import Folded, InputCounts, NeuronCounts, Reach, Watch, fold
from spiking.trace import LayerTrace


class Sums:
    """What several passes add to the rows: how many there are, what grows with them, and sums that several rows want."""

    def __init__(self, passes: int, samples: dict[str, Growing], silent: np.ndarray) -> None:
        self.passes, self.samples, self.silent = passes, samples, silent
        self._folded: dict[int, tuple[list[NeuronCounts], Folded]] = {}

    def of(self, found: list[NeuronCounts]) -> Folded:
        """The counts of neurons, one of each pass."""
        key = id(found[0])
        if key not in self._folded:
            self._folded[key] = found, fold(found, clear=True)
        return self._folded[key][1]

    def give_back(self, watch: Watch) -> None:
        """The counters may be used again."""
        for found, _ in self._folded.values():
            watch.give_back(found)


class Again(ABC):
    """What passes of one layer have in common. `runs` takes a call that is like the first; what it found waits for `commit`.

    `maker` is the layer that made the input, "" if none did; `constants` are what each pass adds to counters in every step.
    """

    gives = True  # whether the output is the layer's
    counts_output = False  # whether what was found are counts of the output

    def __init__(self, done: LayerPass, x: Tensor, constants: dict[str, int]) -> None:
        self.row, self.next_step, self.samples = done.row, done.steps, done.samples
        self.label, self.call = done.label, done.call
        self.maker = done.operand_of[0] if done.operand_of else ""
        self.shape, self.dtype = x.shape, x.dtype
        self.constants = [(done.row.counts[name], value) for name, value in constants.items() if value]
        self.found: list[Any] = []  # in passes that are not in the row yet

    def runs(self, run: ForwardPass, watch: Watch, module: Any, x: Tensor, y: Tensor) -> bool:
        """Take a call of the module, if it is like the first."""
        if (
            x.shape != self.shape
            or x.dtype is not self.dtype
            or not x.is_contiguous()
            or run.batch != self.samples
            or run.steps != self.next_step
            or run.calls.get(self.label, 0) != self.call
        ):
            return False
        made = run.maker(x)
        if self.maker != ("" if made is None else made.name):
            return False
        found = self.finds(run, watch, module, x, y, None if made is None else made.counts)
        if found is None:
            return False
        self.starts(run, found)
        if self.gives:
            run.produced(y, self.row.name, found if self.counts_output else None)
        return True

    @abstractmethod
    def finds(self, run: ForwardPass, watch: Watch, module: Any, x: Tensor, y: Tensor, known: Any) -> Any:
        """What the row will need of this call, None if it is unlike the first; `known` are the counts of x that its maker has."""

    def starts(self, run: ForwardPass, found: Any) -> None:
        """Be the layer's part of the pass."""
        run.calls[self.label] = self.call + 1
        run.layers[self.row.name] = self
        self.found.append(found)

    def check(self) -> None:  # noqa: B027 (nothing to look at: a LayerPass, its twin, has)
        """Shapes are those of the row."""

    def drop(self) -> None:
        """The pass that goes on did not end well."""
        del self.found[-1:]

    def commit(self, sums: Sums) -> None:
        """Add the first passes that wait to the row; see `LayerPass.commit`."""
        found, self.found = self.found[: sums.passes], self.found[sums.passes :]
        row = self.row
        for counter, value in self.constants:
            counter += value * sums.passes
        row.syn_sample = row.spikes_sample = row.updates_sample = sums.silent
        self.add(row, found, sums)

    @abstractmethod
    def add(self, row: LayerTrace, found: list[Any], sums: Sums) -> None:
        """Add what differs from pass to pass."""

    def grow(self, sums: Sums, name: str, values: np.ndarray) -> None:
        """Append a sum of each sample."""
        setattr(self.row, name, sums.samples[f"{self.row.name} {name}"].with_more(values))


class NormAgain(Again):
    """A normalisation, or a pooling of maxima: nothing differs."""

    def finds(self, run: ForwardPass, watch: Watch, module: Any, x: Tensor, y: Tensor, known: Any) -> bool | None:
        return True if self.row.train_mode or not module.training else None

    def add(self, row: LayerTrace, found: list[bool], sums: Sums) -> None:
        """Nothing."""


class Rooms:
    """Counts the inputs of one layer, each in a room that is used again when its counts are in the trace."""

    def __init__(self, of: Again, fans: tuple[Tensor | None, Tensor | None], values: bool) -> None:
        rows = of.next_step * of.samples
        self._kind = rows, of.shape.numel() // rows, of.next_step, of.dtype, fans, values
        self._spare: list[counting.Counting] = []
        self._threads = 0

    def count(self, x: Tensor) -> tuple[counting.Counting, counting.Counted] | None:
        """The counts of x, which fits, and their room; None where the compiled module is not to be used."""
        if backend.choose(x.device).name != "cpu":
            return None
        if self._threads != backend.threads():
            self._threads = backend.threads()
            self._spare.clear()
        room = self._spare.pop() if self._spare else counting.Counting(*self._kind)
        return room, room(x)

    def clear(self, rooms: list[counting.Counting]) -> None:
        """The counts are in the trace."""
        for room in rooms:
            room.clear()
        self._spare += rooms


class PoolAgain(Again):
    """An average pooling that ran alone."""

    def __init__(self, done: LayerPass, x: Tensor, constants: dict[str, int], windows: Tensor) -> None:
        super().__init__(done, x, constants)
        self.windows = None if bool((windows == 1).all()) else windows
        self.rooms = Rooms(self, (self.windows, None), values=False)

    def finds(
        self, run: ForwardPass, watch: Watch, module: Any, x: Tensor, y: Tensor, known: Any
    ) -> tuple[counting.Counting, counting.Counted] | None:
        return self.rooms.count(x)

    def add(self, row: LayerTrace, found: list[tuple[counting.Counting, counting.Counted]], sums: Sums) -> None:
        nnz = np.stack([counted.nonzero for _, counted in found])
        reached = nnz if self.windows is None else np.stack([counted.synops[0] for _, counted in found])
        for name, each in (("in_nnz", nnz), ("pool_adds", reached)):
            row.counts[name] += each.reshape(len(found), self.next_step, -1).sum((0, 2))
        self.rooms.clear([room for room, _ in found])


class NeuronAgain(Again):
    """Neurons that count while they run."""

    counts_output = True

    def __init__(self, done: LayerPass, x: Tensor, constants: dict[str, int]) -> None:
        super().__init__(done, x, constants)
        self.updates = constants["updates"] * done.steps // max(done.samples, 1)  # of a sample

    def finds(
        self, run: ForwardPass, watch: Watch, module: Any, x: Tensor, y: Tensor, known: Any
    ) -> NeuronCounts | None:
        found = watch.take_neurons(x, y)
        return found if found is not None and self.takes(found) else None

    def takes(self, found: NeuronCounts) -> bool:
        """Whether counts are of the kind of those that wait, all outputs being 0 or 1."""
        return found.binary and not (self.found and found.kind != self.found[0].kind)

    def add(self, row: LayerTrace, found: list[NeuronCounts], sums: Sums) -> None:
        by_step, by_sample, by_neuron = sums.of(found)
        row.counts["updates_active"] += by_step[0]
        row.counts["out_nnz"] += by_step[1]
        row.counts["spikes"] += by_step[1]
        row.spike_count += by_neuron
        self.grow(sums, "spikes_sample", by_sample[1])
        self.grow(sums, "updates_sample", np.full(self.samples * sums.passes, self.updates, np.int64))


class TogetherAgain(Again):
    """A pooling and the neurons after it in one pass."""

    gives = False

    def __init__(self, done: LayerPass, x: Tensor, constants: dict[str, int], neurons: NeuronAgain) -> None:
        super().__init__(done, x, constants)
        self.neurons, self.averages = neurons, done.row.kind == "avgpool"

    def finds(
        self, run: ForwardPass, watch: Watch, module: Any, x: Tensor, y: Tensor, known: Any
    ) -> NeuronCounts | None:
        after = self.neurons
        found = watch.take_neurons(x, y) if run.calls.get(after.label, 0) == after.call else None
        if found is None or not after.takes(found):
            return None
        after.starts(run, found)
        run.produced(y, after.row.name, found)
        return found

    def add(self, row: LayerTrace, found: list[NeuronCounts], sums: Sums) -> None:
        if self.averages:
            by_step = sums.of(found).by_step
            row.counts["in_nnz"] += by_step[2]
            row.counts["pool_adds"] += by_step[2] - by_step[3]


class Operand(NamedTuple):
    """The operand of weights in one pass: whether it was the same in every step, its counts, and what comes with them."""

    repeated: bool
    counts: Any
    room: counting.Counting | None = None
    levels: list[Levels] | None = None  # of each step; None for spikes


class WeightsAgain(Again):
    """A layer with weights; `uniform` is the fan-out of every input, if all have the same."""

    def __init__(
        self, done: LayerPass, x: Tensor, constants: dict[str, int], weight: Tensor, uniform: int | None, reach: Reach
    ) -> None:
        super().__init__(done, x, constants)
        self.version, self.uniform, self.reach = version(weight), uniform, reach
        self.settled = False  # whether the levels hold all that spikes can add

    def finds(self, run: ForwardPass, watch: Watch, module: Any, x: Tensor, y: Tensor, known: Any) -> Operand | None:
        return None if version(module.weight) != self.version else self.operand(watch, x, known)

    @abstractmethod
    def operand(self, watch: Watch, x: Tensor, known: Any) -> Operand | None:
        """The counts of x."""

    def repeats(self, x: Tensor, nonzeros: np.ndarray) -> bool:
        """Whether all steps of x are equal, of which so many numbers are not zero, [T, B]."""
        return counters.repeated(nonzeros, x.detach().view(self.next_step, -1))

    def add_spikes(self, row: LayerTrace, by_step: np.ndarray, by_input: np.ndarray) -> None:
        """Add an operand that is 0 and 1."""
        row.counts["in_nnz"] += by_step
        row.in_abs_sum += by_step
        row.spike_count += by_input
        if not self.settled:
            join_levels(row, counters.levels_of_spikes(by_step))
            self.settled = bool(by_step.all())

    def commit(self, sums: Sums) -> None:
        still = all(one.repeated for one in self.found[: sums.passes])
        super().commit(sums)
        self.row.repeated_input = self.row.repeated_input and still

    def add_synops(self, row: LayerTrace, sums: Sums, all_weights: Any, nonzero: Any, each: Any) -> None:
        """Add synaptic operations: of each step with all weights, with those that are not zero, and of each sample."""
        row.counts["syn"] += all_weights
        row.counts["syn_eff"] += nonzero
        self.grow(sums, "syn_sample", each)


class ReadsNeurons(WeightsAgain):
    """The operand was counted when it left its neurons."""

    def operand(self, watch: Watch, x: Tensor, known: Any) -> Operand | None:
        if type(known) is not NeuronCounts or (self.uniform is None and known.reach is not self.reach):
            return None
        return Operand(self.row.repeated_input and self.repeats(x, known.spikes), known)

    def add(self, row: LayerTrace, found: list[Operand], sums: Sums) -> None:
        of_neurons = [one.counts for one in found]
        by_step, by_sample, by_neuron = sums.of(of_neurons)
        self.add_spikes(row, by_step[1], by_neuron)
        if self.uniform is not None:
            syn = by_step[1] * self.uniform
            self.add_synops(row, sums, syn, syn, by_sample[1] * self.uniform)
            return
        first = 4 if of_neurons[0].driven else 2
        last = first if self.reach.nonzero is None else first + 1
        self.add_synops(row, sums, by_step[first], by_step[last], by_sample[first])


class ReadsCounted(WeightsAgain):
    """An event-driven layer counted the spikes of its operand."""

    def operand(self, watch: Watch, x: Tensor, known: Any) -> Operand | None:
        found = watch.take_input(x) if known is None else None
        if found is None or not found.binary:
            return None
        nonzeros = found.per_row.reshape(self.next_step, self.samples)
        return Operand(self.row.repeated_input and self.repeats(x, nonzeros), found)

    def add(self, row: LayerTrace, found: list[Operand], sums: Sums) -> None:
        assert self.uniform is not None  # else there is no such plan
        of_inputs: list[InputCounts] = [one.counts for one in found]
        nnz = np.concatenate([counts.per_row.reshape(self.next_step, -1) for counts in of_inputs], axis=1)
        by_step = nnz.sum(1)
        self.add_spikes(row, by_step, np.concatenate([counts.per_input for counts in of_inputs]).sum(0, dtype=np.int64))
        syn = by_step * self.uniform
        self.add_synops(row, sums, syn, syn, nnz.sum(0) * self.uniform)


class ReadsTensor(WeightsAgain):
    """The operand is counted here, in one compiled pass."""

    def __init__(
        self, done: LayerPass, x: Tensor, constants: dict[str, int], weight: Tensor, uniform: int | None, reach: Reach
    ) -> None:
        super().__init__(done, x, constants, weight, uniform, reach)
        self.rooms = Rooms(self, (reach.stored, reach.nonzero), values=True)

    def operand(self, watch: Watch, x: Tensor, known: Any) -> Operand | None:
        found = None if known is not None else self.rooms.count(x)
        if found is None or not found[1].finite:
            return None
        room, counted = found
        repeated = self.row.repeated_input and self.repeats(x, counted.nonzero.reshape(self.next_step, -1))
        return Operand(repeated, counted, room, self._levels(counted, x))

    def _levels(self, found: counting.Counted, x: Tensor) -> list[Levels] | None:
        """Of each step; None for spikes. A step that is known to be analogue stays so, and is not looked at again."""
        if found.levels is None:
            return None
        analogue = Levels(None)
        known = zip(self.row.levels_step, found.levels, x.view(self.next_step, -1), strict=True)
        with torch.no_grad():
            return [analogue if was.magnitudes is None else counters.met_levels(met, step) for was, met, step in known]

    def add(self, row: LayerTrace, found: list[Operand], sums: Sums) -> None:
        steps, counted = self.next_step, [one.counts for one in found]
        nnz = np.stack([counts.nonzero for counts in counted]).reshape(-1, steps, self.samples)
        syn, useful = np.stack([counts.synops for counts in counted], axis=1).reshape(2, *nnz.shape)
        row.counts["syn"] += syn.sum((0, 2))
        row.counts["syn_eff"] += useful.sum((0, 2))
        self.grow(sums, "syn_sample", syn.sum(1).reshape(-1))
        of_steps = nnz.sum(2)
        if all(one.levels is None for one in found):
            self.add_spikes(row, of_steps.sum(0), np.sum([counts.per_element for counts in counted], axis=0))
        else:
            for one, by_step in zip(found, of_steps, strict=True):
                if one.levels is None:
                    self.add_spikes(row, by_step, one.counts.per_element)
                    continue
                row.counts["in_nnz"] += by_step
                row.in_abs_sum += one.counts.magnitude.reshape(steps, -1).sum(1)
                row.spike_count += one.counts.per_element
                join_levels(row, one.levels)
        self.rooms.clear([one.room for one in found if one.room is not None])
