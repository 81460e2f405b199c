"""A layer that runs as it did in an earlier pass: the same shapes, fed by the same layer, counted in the same way.

Then all that its row of the trace needs is known but the numbers: they are added to the row in place, and few questions are asked. What
differs in any way takes the long way of `spiking._rows`, which comes to the same counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from torch import Tensor

from spiking import _counters as counters
from spiking._counters import Levels
from spiking._forward_pass import ForwardPass, Growing, LayerPass, join_levels, version
from spiking.cuda_kernels import counting
from spiking.cuda_kernels.watch import InputCounts, NeuronCounts, Reach, Watch
from spiking.trace import LayerTrace


class Again(ABC):
    """What passes of one layer have in common. `runs` takes a call that is like the first; what it found waits for `commit`.

    `maker` is the layer that made the input, "" if none did; `constants` are what each pass adds to counters in every step.
    """

    def __init__(self, done: LayerPass, x: Tensor, constants: dict[str, int]) -> None:
        self.row, self.next_step, self.samples = done.row, done.steps, done.samples
        self.label, self.call = done.label, done.call
        self.maker = done.operand_of[0] if done.operand_of else ""
        self.shape, self.dtype = x.shape, x.dtype
        self.constants = [(done.row.counts[name], value) for name, value in constants.items() if value]

    @abstractmethod
    def runs(self, run: ForwardPass, watch: Watch, module: Any, x: Tensor, y: Tensor) -> bool:
        """Take a call of the module, if it is like the first."""

    def fits(self, run: ForwardPass, x: Tensor) -> bool:
        """Whether x is like the first input, and this the same call of the pass."""
        return (
            x.shape == self.shape
            and x.dtype is self.dtype
            and x.is_contiguous()
            and run.batch == self.samples
            and run.steps == self.next_step
            and run.calls.get(self.label, 0) == self.call
        )

    def starts(self, run: ForwardPass) -> None:
        """Be the layer's part of the pass."""
        run.calls[self.label] = self.call + 1
        run.layers[self.row.name] = self

    def made(self, run: ForwardPass, x: Tensor) -> bool:
        """Whether the layer before made x."""
        found = run.maker(x)
        return self.maker == (found.name if found is not None else "")

    def check(self) -> None:  # noqa: B027 (nothing to look at: a LayerPass, its twin, has)
        """Shapes are those of the row."""

    def commit(self, fresh: bool, samples: dict[str, Growing], silent: np.ndarray) -> None:
        """Add the pass to the row; see `LayerPass.commit`."""
        row = self.row
        for counter, value in self.constants:
            counter += value
        row.syn_sample = row.spikes_sample = row.updates_sample = silent
        self.add(row, samples)

    @abstractmethod
    def add(self, row: LayerTrace, samples: dict[str, Growing]) -> None:
        """Add what differs from pass to pass."""

    def grow(self, samples: dict[str, Growing], name: str, values: np.ndarray) -> None:
        """Append a sum of each sample."""
        setattr(self.row, name, samples[f"{self.row.name} {name}"].with_more(values))


class NormAgain(Again):
    """A normalisation, or a pooling of maxima: nothing differs."""

    def runs(self, run: ForwardPass, watch: Watch, module: Any, x: Tensor, y: Tensor) -> bool:
        if not (self.fits(run, x) and (self.row.train_mode or not module.training) and self.made(run, x)):
            return False
        self.starts(run)
        run.produced(y, self.row.name)
        return True

    def add(self, row: LayerTrace, samples: dict[str, Growing]) -> None:
        """Nothing."""


class PoolAgain(Again):
    """An average pooling that ran alone."""

    def __init__(self, done: LayerPass, x: Tensor, constants: dict[str, int], windows: Tensor) -> None:
        super().__init__(done, x, constants)
        self.windows = None if bool((windows == 1).all()) else windows

    def runs(self, run: ForwardPass, watch: Watch, module: Any, x: Tensor, y: Tensor) -> bool:
        if not (self.fits(run, x) and self.made(run, x)):
            return False
        rows = x.detach().view(self.next_step * self.samples, -1)
        found = counting.count(rows, self.next_step, self.windows, values=False)
        if found is None:
            return False
        self.found = found
        self.starts(run)
        run.produced(y, self.row.name)
        return True

    def add(self, row: LayerTrace, samples: dict[str, Growing]) -> None:
        nnz = self.found.nonzero.reshape(self.next_step, -1).sum(1)
        reached = nnz if self.windows is None else self.found.synops[0].reshape(self.next_step, -1).sum(1)
        row.counts["in_nnz"] += nnz
        row.counts["pool_adds"] += reached


class NeuronAgain(Again):
    """Neurons that count while they run."""

    counts: NeuronCounts

    def __init__(self, done: LayerPass, x: Tensor, constants: dict[str, int]) -> None:
        super().__init__(done, x, constants)
        updates = constants["updates"] * done.steps // max(done.samples, 1)
        self.updates = np.full(done.samples, updates, np.int64)

    def runs(self, run: ForwardPass, watch: Watch, module: Any, x: Tensor, y: Tensor) -> bool:
        if not (self.fits(run, x) and self.made(run, x)):
            return False
        found = watch.take_neurons(x, y)
        return found is not None and found.binary and self.takes(run, found, y)

    def takes(self, run: ForwardPass, found: NeuronCounts, y: Tensor) -> bool:
        """Take a call of which these are the counts."""
        self.counts = found
        self.starts(run)
        run.produced(y, self.row.name, found)
        return True

    def add(self, row: LayerTrace, samples: dict[str, Growing]) -> None:
        by_step, by_sample, by_neuron = self.counts.folded
        row.counts["updates_active"] += by_step[0]
        row.counts["out_nnz"] += by_step[1]
        row.counts["spikes"] += by_step[1]
        row.spike_count += by_neuron
        self.grow(samples, "spikes_sample", by_sample[1])
        self.grow(samples, "updates_sample", self.updates)


class TogetherAgain(Again):
    """A pooling and the neurons after it in one pass."""

    def __init__(self, done: LayerPass, x: Tensor, constants: dict[str, int], neurons: NeuronAgain) -> None:
        super().__init__(done, x, constants)
        self.neurons, self.averages = neurons, done.row.kind == "avgpool"

    def runs(self, run: ForwardPass, watch: Watch, module: Any, x: Tensor, y: Tensor) -> bool:
        after = self.neurons
        fits = self.fits(run, x) and run.calls.get(after.label, 0) == after.call and self.made(run, x)
        found = watch.take_neurons(x, y) if fits else None
        if found is None or not found.binary:
            return False
        self.starts(run)
        return self.neurons.takes(run, found, y)

    def add(self, row: LayerTrace, samples: dict[str, Growing]) -> None:
        if self.averages:
            by_step = self.neurons.counts.folded.by_step
            row.counts["in_nnz"] += by_step[2]
            row.counts["pool_adds"] += by_step[2] - by_step[3]


class WeightsAgain(Again):
    """A layer with weights; `uniform` is the fan-out of every input, if all have the same."""

    def __init__(
        self, done: LayerPass, x: Tensor, constants: dict[str, int], weight: Tensor, uniform: int | None, reach: Reach
    ) -> None:
        super().__init__(done, x, constants)
        self.version, self.uniform, self.reach = version(weight), uniform, reach
        self.repeated = False
        self.settled = False  # whether the levels hold all that spikes can add

    def runs(self, run: ForwardPass, watch: Watch, module: Any, x: Tensor, y: Tensor) -> bool:
        if not self.fits(run, x) or version(module.weight) != self.version:
            return False
        found = run.maker(x)
        known = None if found is None else found.counts
        if self.maker != ("" if found is None else found.name) or not self.finds(watch, x, known):
            return False
        self.repeated = self.row.repeated_input and self._repeats(x)
        self.starts(run)
        run.produced(y, self.row.name)
        return True

    @abstractmethod
    def finds(self, watch: Watch, x: Tensor, known: Any) -> bool:
        """Find the counts of x; `known` are those that its maker has."""

    @abstractmethod
    def nonzeros(self) -> np.ndarray:
        """[T, B] of what was found."""

    def _repeats(self, x: Tensor) -> bool:
        return counters.repeated(self.nonzeros(), x.detach().view(self.next_step, -1))

    def add_spikes(
        self, row: LayerTrace, samples: dict[str, Growing], by_step: np.ndarray, by_input: np.ndarray
    ) -> None:
        """Add an operand that is 0 and 1."""
        row.counts["in_nnz"] += by_step
        row.in_abs_sum += by_step
        row.spike_count += by_input
        if not self.settled:
            join_levels(row, counters.levels_of_spikes(by_step))
            self.settled = bool(by_step.all())

    def commit(self, fresh: bool, samples: dict[str, Growing], silent: np.ndarray) -> None:
        super().commit(fresh, samples, silent)
        self.row.repeated_input = self.repeated

    def add_synops(
        self, row: LayerTrace, samples: dict[str, Growing], all_weights: Any, nonzero: Any, each: Any
    ) -> None:
        """Add synaptic operations: of each step with all weights, with those that are not zero, and of each sample."""
        row.counts["syn"] += all_weights
        row.counts["syn_eff"] += nonzero
        self.grow(samples, "syn_sample", each)


class ReadsNeurons(WeightsAgain):
    """The operand was counted when it left its neurons."""

    counts: NeuronCounts

    def finds(self, watch: Watch, x: Tensor, known: Any) -> bool:
        if type(known) is not NeuronCounts or (self.uniform is None and known.reach is not self.reach):
            return False
        self.counts = known
        return True

    def nonzeros(self) -> np.ndarray:
        return self.counts.spikes

    def add(self, row: LayerTrace, samples: dict[str, Growing]) -> None:
        by_step, by_sample, by_neuron = self.counts.folded
        self.add_spikes(row, samples, by_step[1], by_neuron)
        if self.uniform is not None:
            syn = by_step[1] * self.uniform
            self.add_synops(row, samples, syn, syn, by_sample[1] * self.uniform)
            return
        first = 4 if self.counts.driven else 2
        last = first if self.reach.nonzero is None else first + 1
        self.add_synops(row, samples, by_step[first], by_step[last], by_sample[first])


class ReadsCounted(WeightsAgain):
    """An event-driven layer counted the spikes of its operand."""

    counts: InputCounts

    def finds(self, watch: Watch, x: Tensor, known: Any) -> bool:
        found = watch.take_input(x) if known is None else None
        if found is None or not found.binary:
            return False
        self.counts = found
        return True

    def nonzeros(self) -> np.ndarray:
        return self.counts.per_row.reshape(self.next_step, self.samples)

    def add(self, row: LayerTrace, samples: dict[str, Growing]) -> None:
        assert self.uniform is not None  # else there is no such plan
        nnz = self.nonzeros()
        by_step = nnz.sum(1)
        self.add_spikes(row, samples, by_step, self.counts.per_input)
        syn = by_step * self.uniform
        self.add_synops(row, samples, syn, syn, nnz.sum(0) * self.uniform)


class ReadsTensor(WeightsAgain):
    """The operand is counted here, in one compiled pass."""

    counts: counting.Counted

    def finds(self, watch: Watch, x: Tensor, known: Any) -> bool:
        if known is not None:
            return False
        rows = x.detach().view(self.next_step * self.samples, -1)
        found = counting.count(rows, self.next_step, self.reach.stored, self.reach.nonzero)
        if found is None or not found.finite:
            return False
        self.counts, self.levels = found, self._levels(found, x)
        return True

    def nonzeros(self) -> np.ndarray:
        return self.counts.nonzero.reshape(self.next_step, self.samples)

    def _levels(self, found: counting.Counted, x: Tensor) -> list[Levels] | None:
        """Of each step; None for spikes. A step that is known to be analogue stays so, and is not looked at again."""
        if found.levels is None:
            return None
        analogue = Levels(None)
        known = zip(self.row.levels_step, found.levels, x.view(self.next_step, -1), strict=True)
        return [analogue if was.magnitudes is None else counters.met_levels(met, step) for was, met, step in known]

    def add(self, row: LayerTrace, samples: dict[str, Growing]) -> None:
        shape = (self.next_step, self.samples)
        nnz, syn, useful = (a.reshape(shape) for a in (self.counts.nonzero, *self.counts.synops))
        by_step = nnz.sum(1)
        if self.levels is None:
            self.add_spikes(row, samples, by_step, self.counts.per_element)
        else:
            row.counts["in_nnz"] += by_step
            row.in_abs_sum += self.counts.magnitude.reshape(shape).sum(1)
            row.spike_count += self.counts.per_element
            join_levels(row, self.levels)
        self.add_synops(row, samples, syn.sum(1), useful.sum(1), syn.sum(0))
