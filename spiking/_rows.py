"""What one call of a watched layer adds to the trace."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spiking import _counters as counters
from spiking import _peers as peers
from spiking._again import (
    Again,
    NeuronAgain,
    NormAgain,
    PoolAgain,
    ReadsCounted,
    ReadsNeurons,
    ReadsTensor,
    TogetherAgain,
)
from spiking._counters import OperandCounts
from spiking._forward_pass import ForwardPass, LayerPass, version
from spiking._watched import BATCH_NORMS, describe, pool_dims, recurrent_weights
from spiking.cuda_kernels import counting
from spiking.cuda_kernels.watch import NeuronCounts, Reach, Watch
from spiking.errors import SpikingError
from spiking.trace import Events, LayerTrace

_LARGEST_SUM = 2**31  # of what the spikes of a sample reach: kernels count in 32 bits


class Fans(NamedTuple):
    """Connections of each input element: stored weights, weights that are not zero; and facts about the weights."""

    stored: Tensor
    nonzero: Tensor
    uniform: int | None  # what every element has, if all weights count and all elements have the same
    reach: Reach | None  # both as kernels take them; None where sums of them might not fit
    dense: int
    w_nnz: int
    w_abs_mean: float
    w_abs_max: float
    row_abs_w: np.ndarray


@contextmanager
def counting_of(x: Tensor) -> Iterator[None]:
    """No gradients; and since counts are products of float32, a lower precision chosen for the model does not reach them."""
    lower = torch.is_autocast_enabled(x.device.type)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False) if lower else nullcontext():
        yield


class Rows:
    """Counts the calls of layers into `run`, the pass that goes on; what a layer's shapes decide is kept between passes.

    Where a kernel counted what it read and wrote anyway, `watch` has its counts; else the tensors are counted here.
    """

    def __init__(self, *, events: bool, active_rows: bool) -> None:
        self.run = ForwardPass()
        self.watch = Watch(self.together)
        self.names: dict[int, str] = {}  # of the watched modules, by identity
        self.modules: dict[str, int] = {}  # the other way round
        self.again: dict[
            Any, Any
        ] = {}  # plans for layers that run as they did before, by name, or the names of two that ran together
        self.events, self.active_rows = events, active_rows
        self.apart = ""  # a layer that ran while the model itself did not
        self.keep = 0  # how many samples' spikes are kept whole in this pass
        self._fans: dict[tuple[str, tuple[int, ...]], tuple[int, Fans]] = {}
        self._windows: dict[tuple[str, tuple[int, ...]], tuple[Tensor, int]] = {}

    def before(self, module: nn.Module, x: Tensor) -> None:
        """A layer is about to read x."""
        self.watch.begins(module)
        found = self.run.maker(x)
        self.watch.wants_input = found is None or found.counts is None

    def ran_again(self, label: Any, module: nn.Module, x: Tensor, y: Tensor) -> bool:
        """Whether a call was like one of an earlier pass; then it has been counted. `label`: of a layer, or of two together."""
        run = self.run
        call = run.calls.get(label, 0)
        plan = self.again.get((label, call) if call else label)
        return plan is not None and self.keep <= 0 and plan.runs(run, self.watch, module, x, y)

    def _may_run_again(self, steps: slice, x: Tensor) -> bool:
        """Whether a call is of the kind that a plan is made for."""
        odd = self.events or self.active_rows or self.run.step_by_step or self.run.batch_first
        return steps.stop - steps.start == self.run.steps and not odd and x.is_cpu and x.is_contiguous()

    def _plan(self, plan: Again) -> None:
        """Keep a plan for later passes, if this one ends well."""
        self.run.plans[(plan.label, plan.call) if plan.call else plan.label] = plan

    def weights(self, name: str, layer: Any, x: Tensor, y: Tensor) -> None:
        """One call of a linear or convolutional layer."""
        kind = counters.layer_kind(layer)
        dims = 1 if kind == "linear" else len(layer.weight.shape) - 1
        seq = self.run.sequence(x.detach(), name, dims)
        out_shape = tuple(y.shape[-dims:] if kind != "linear" else (*seq.shape[2:-1], y.shape[-1]))
        row = self.operand(name, layer, seq, out_shape, source=x)
        self.run.produced(y, row.name)

    def operand(
        self,
        name: str,
        layer: Any,
        seq: Tensor,
        out_shape: tuple[int, ...],
        source: Tensor | None = None,
        **config: Any,
    ) -> LayerTrace:
        """Count the operand [t, B, *] of a weight layer."""
        in_shape = tuple(seq.shape[2:])
        fans = self._fan(name, layer, in_shape, out_shape)
        done, steps = self.run.start(
            name, len(seq), lambda key: self._weight_row(key, layer, in_shape, out_shape, fans, config)
        )
        row = done.row
        known = None if source is None else self.run.reads(source, done)
        if known is not None and (not seq.is_contiguous() or known.nnz.shape != seq.shape[:2]):
            known = None  # the same values in another order
        from_neurons = known is not None
        found = None if known is not None or source is None else self.watch.take_input(source)
        if found is not None and found.binary and seq.is_contiguous() and len(in_shape) == 1:
            per_input = found.per_input.sum(0, dtype=np.int64)
            known = counters.counts_of_spikes(found.per_row.reshape(seq.shape[:2]), per_input, seq)
        try:
            counts = counters.count_operand(seq, fans.stored, fans.nonzero, known, fans.uniform)
        except FloatingPointError as err:
            raise SpikingError(
                f"record: layer {name}: {err}; expected finite values. Find the layer before it that makes them."
            ) from err
        self._add_operand(done, steps, counts, seq)
        if source is not None and fans.reach is not None and self._may_run_again(steps, source):
            constants = {"in_numel": math.prod(seq.shape[1:]), "bias_adds": row.bias * row.n_outputs * self.run.batch}
            reads = ReadsNeurons if from_neurons else ReadsTensor if known is None else ReadsCounted
            plan = reads(done, source, constants, layer.weight, fans.uniform, self._reach(fans, done, from_neurons))
            if reads is not ReadsCounted or fans.uniform is not None:
                self._plan(plan)
        if not from_neurons:
            self._note_events(done, steps, seq)
        if self.active_rows:
            kind = (layer, seq) if isinstance(layer, nn.Linear) else (layer, seq.flatten(0, 1))
            for size, blocks in counters.active_row_blocks(*kind).items():
                done.active_rows[size] = done.active_rows.get(size, 0) + blocks
        if row.bias:
            done.add("bias_adds", steps, row.n_outputs * self.run.batch)
        return row

    def _reach(self, fans: Fans, done: LayerPass, from_neurons: bool) -> Reach:
        """The fan-outs of an operand; neurons that send it are told of them, if they differ."""
        assert fans.reach is not None
        sender = self.modules.get(done.operand_of[0]) if done.operand_of else None
        if not from_neurons or fans.uniform is not None or sender is None:
            return fans.reach
        known = self.watch.reaches.get(sender)
        if known is None or not known.same_as(fans.reach):
            known = self.watch.reaches[sender] = fans.reach
        return known

    def _add_operand(self, done: LayerPass, steps: slice, counts: OperandCounts, seq: Tensor) -> None:
        done.add("in_numel", steps, math.prod(seq.shape[1:]))
        done.add("in_nnz", steps, counts.nnz.sum(1))
        done.add("syn", steps, counts.syn.sum(1))
        done.add("syn_eff", steps, counts.syn_eff)
        if len(seq) == self.run.steps and done.abs_sum is None:
            done.abs_sum = counts.abs_sum
        else:
            done.abs_sum = np.zeros(self.run.steps) if done.abs_sum is None else done.abs_sum.copy()
            done.abs_sum[steps] += counts.abs_sum
        done.add_elements(counts.per_element)
        done.levels += counts.levels
        done.syn.append(counts.syn)
        done.repeated &= len(seq) == 1 or counts.repeated
        if len(seq) < self.run.steps and done.repeated:
            if done.first is None:
                done.first = seq[0].clone()
            done.repeated = torch.equal(done.first, seq[0])

    def _note_events(self, done: LayerPass, steps: slice, seq: Tensor) -> None:
        """Keep where the non-zeros of [t, B, *] are, if events were asked for."""
        if not self.events:
            return
        whole = seq.detach().reshape(*seq.shape[:2], -1).transpose(0, 1).contiguous()  # in the order of the list
        where = np.flatnonzero((whole != 0).cpu().numpy())
        sample, rest = np.divmod(where, math.prod(whole.shape[1:]))
        step, index = np.divmod(rest, whole.shape[2])
        value = whole.reshape(-1)[torch.from_numpy(where).to(whole.device)].float().cpu().numpy()
        sample, step, index = (a.astype(np.uint32) for a in (sample, step + steps.start, index))
        done.where.append(Events(sample, step, index, value))

    def _fan(self, name: str, layer: Any, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Fans:
        now = version(layer.weight)
        key = (name, in_shape)
        if key not in self._fans or self._fans[key][0] != now:
            weight = layer.weight.detach()
            stored = counters.connections(layer, in_shape, out_shape, torch.ones(weight.shape))
            w_nnz = int(torch.count_nonzero(weight))
            sparse = w_nnz < weight.numel()
            nonzero = counters.connections(layer, in_shape, out_shape, weight) if sparse else stored
            magnitude = weight.double().abs()
            mean, largest = (float(magnitude.mean()), float(magnitude.max())) if weight.numel() else (0.0, 0.0)
            low, high = (int(v) for v in stored.aminmax()) if stored.numel() else (0, 1)
            uniform = low if low == high and not sparse else None
            magnitudes = counters.row_magnitudes(layer)
            narrow = counting.narrow(stored)
            reach = None
            if narrow is not None and int(stored.sum()) < _LARGEST_SUM:
                reach = Reach(narrow, nonzero.int() if sparse else None)
            found = Fans(stored, nonzero, uniform, reach, int(stored.sum()), w_nnz, mean, largest, magnitudes)
            self._fans[key] = (now, found)
        return self._fans[key][1]

    def _weight_row(
        self,
        name: str,
        layer: Any,
        in_shape: tuple[int, ...],
        out_shape: tuple[int, ...],
        fans: Fans,
        config: dict[str, Any],
    ) -> LayerTrace:
        weight = layer.weight.detach()
        bias = getattr(layer, "bias", None)
        for key in ("stride", "padding", "dilation", "groups", "output_padding", "padding_mode"):
            if hasattr(layer, key):
                config[key] = getattr(layer, key)
        array: Any = getattr(layer, "array", None)  # of memory cells, for a network that was deployed on them
        cells = array is not None and hasattr(array, "row_siemens")
        if cells:
            config["cell"] = array.cell_facts
        return LayerTrace(
            name,
            type(layer).__name__,
            counters.layer_kind(layer) or "other",
            in_shape,
            out_shape,
            self.run.steps,
            weight_shape=tuple(weight.shape),
            config=config,
            params=weight.numel() + (0 if bias is None else bias.numel()),
            w_nnz=fans.w_nnz,
            w_abs_mean=fans.w_abs_mean,
            w_abs_max=fans.w_abs_max,
            bias=bias is not None,
            dense=fans.dense,
            dense_padded=counters.padded_macs(layer, in_shape, out_shape),
            spike_count=np.zeros(math.prod(in_shape), np.int64),
            fan_out=fans.stored.numpy(),
            row_abs_w=fans.row_abs_w,
            row_siemens=array.row_siemens if cells else np.zeros(0),
        )

    def neuron(self, name: str, layer: Any, x: Tensor, y: Tensor, before: Tensor | None = None) -> None:
        """One call of a neuron layer, [T, B, *] → [T, B, *]; `before` are the spikes that precede a recurrent one."""
        current, spikes = x.detach(), y.detach()
        theirs = peers.is_neuron(layer)
        recurrent = None if theirs else recurrent_weights(layer)
        found = None if theirs or recurrent is not None else self.watch.take_neurons(x, y)
        if theirs:
            current, spikes = self.run.sequence(current, name, 1), self.run.sequence(spikes, name, 1)
        steps_here, batch = current.shape[0], current.shape[1] if current.ndim > 1 else 1
        fits = batch == self.run.batch and steps_here <= self.run.steps
        if not fits and self.run.layers:
            raise SpikingError(
                f"record: layer {name}: got an input of shape {list(x.shape)}; expected [T, B, …] with "
                f"T={self.run.steps}, B={self.run.batch}. If the model's input has no time axis, pass steps=T."
            )
        if not fits:
            self.run.steps, self.run.batch = steps_here, batch
        if recurrent is not None:
            first = torch.zeros_like(spikes[:1]) if before is None else before.detach().unsqueeze(0)
            previous = torch.cat([first, spikes[:-1]])
            self.operand(f"{name}.recurrent", recurrent, previous, tuple(spikes.shape[2:]), recurrent=True)
            weight, bias = (None if p is None else p.to(current.dtype) for p in (recurrent.weight, recurrent.bias))
            current = current + nn.functional.linear(previous.to(current.dtype), weight, bias)
        done, steps = self._neuron_row(name, layer, spikes)
        self.run.reads(x, done)
        active = counters.count_nonzero_per_step(current) if found is None else found.active.sum(1)
        self._spikes(name, done, steps, y, spikes, active, found)
        if found is not None and found.binary and self._may_run_again(steps, x):
            self._plan(self._neuron_again(done, x, spikes))

    @staticmethod
    def _neuron_again(done: LayerPass, x: Tensor, spikes: Tensor) -> NeuronAgain:
        numel = math.prod(spikes.shape[1:])
        return NeuronAgain(done, x, {"in_numel": numel, "updates": numel})

    def _neuron_row(self, name: str, layer: Any, spikes: Tensor) -> tuple[LayerPass, slice]:
        shape = tuple(spikes.shape[2:])

        def make(key: str) -> LayerTrace:
            theirs = peers.is_neuron(layer)
            own = not theirs and recurrent_weights(layer) is not None  # its weights have a row of their own
            inner = layer.neuron if own and isinstance(getattr(layer, "neuron", None), nn.Module) else layer
            return LayerTrace(
                key,
                type(inner).__name__,
                "neuron",
                shape,
                shape,
                self.run.steps,
                neuron=peers.describe(name, inner) if theirs else describe(inner),
                params=sum(p.numel() for p in inner.parameters(recurse=not own)),
                spike_count=np.zeros(math.prod(shape), np.int64),
            )

        return self.run.start(name, len(spikes), make)

    def _spikes(
        self,
        name: str,
        done: LayerPass,
        steps: slice,
        y: Tensor,
        spikes: Tensor,
        active: np.ndarray,
        found: NeuronCounts | None,
    ) -> None:
        """What neurons gave: `spikes` are y as [t, B, *]."""
        numel = math.prod(spikes.shape[1:])
        if found is not None and found.binary:
            counts = counters.counts_of_spikes(found.spikes, found.per_neuron, spikes)
        else:
            none = torch.zeros(math.prod(spikes.shape[2:]), dtype=torch.int64)
            try:
                counts = counters.count_operand(spikes, none, none)
            except FloatingPointError as err:
                raise SpikingError(
                    f"record: layer {name}: the neurons emit NaN or Inf; expected spikes. Its input or its "
                    "parameters hold NaN."
                ) from err
        spiking = counters.Levels()
        for levels in counts.levels:
            spiking = spiking if levels is spiking else spiking.join(levels)
        done.add("in_numel", steps, numel)
        done.add("updates", steps, numel)
        done.add("updates_active", steps, active)
        nnz = counts.nnz.sum(1)
        done.add("out_nnz", steps, nnz)
        if spiking.classify()[0] == "analogue":
            done.row.neuron["output"] = "membrane"  # a readout that emits its potential does not spike
        else:
            done.add("spikes", steps, nnz)
            done.add_elements(counts.per_element)
            done.spikes.append(counts.nnz)
            self._note_events(done, steps, spikes)
        if self.keep > 0:
            self.run.kept.setdefault(done.row.name, []).append(spikes[:, : self.keep].cpu().clone())
        self.run.produced(y, done.row.name, counts if y.is_contiguous() else None)

    def pool(self, name: str, layer: Any, x: Tensor, y: Tensor) -> None:
        """One call of an average or maximum pooling."""
        dims = pool_dims(layer)
        seq = self.run.sequence(x.detach(), name, dims + 1)
        in_shape, out_shape = tuple(seq.shape[2:]), tuple(y.shape[-dims - 1 :])
        done, steps, windows = self._pool_row(name, layer, len(seq), in_shape, out_shape)
        self.run.reads(x, done)
        constants = self._add_constants_of_pool(done, steps, seq)
        narrow = None
        if done.row.kind == "avgpool":
            nnz, reached = counters.count_windows(seq, windows)
            done.add("in_nnz", steps, nnz)
            done.add("pool_adds", steps, reached)
            narrow = counting.narrow(windows)
        self.run.produced(y, done.row.name)
        if self._may_run_again(steps, x):
            largest = done.row.kind == "maxpool"
            plan = NormAgain(done, x, constants) if largest or narrow is None else PoolAgain(done, x, constants, narrow)
            self._plan(plan)

    def _add_constants_of_pool(self, done: LayerPass, steps: slice, seq: Tensor) -> dict[str, int]:
        """Add what is the same in every pass, and return it."""
        constants = {"in_numel": math.prod(seq.shape[1:])}
        if done.row.kind == "maxpool":
            constants["pool_cmps"] = done.row.config["dense_ops"] * self.run.batch
        for name, value in constants.items():
            done.add(name, steps, value)
        return constants

    def _pool_row(
        self, name: str, layer: Any, n: int, in_shape: tuple[int, ...], out_shape: tuple[int, ...]
    ) -> tuple[LayerPass, slice, Tensor]:
        """The running pass, the steps, and how many windows hold each input."""
        key = (name, in_shape)
        if key not in self._windows:
            self._windows[key] = counters.pool_windows(layer, in_shape, out_shape)
        windows, reached = self._windows[key]
        kind = "avgpool" if "avg" in type(layer).__name__.lower() else "maxpool"
        config = {"dense_ops": reached - math.prod(out_shape)}
        module, steps = type(layer).__name__, self.run.steps
        return *self.run.start(
            name, n, lambda key: LayerTrace(key, module, kind, in_shape, out_shape, steps, config=config)
        ), windows

    def together(self, pool: nn.Module, neuron: nn.Module, x: Tensor, s: Tensor) -> None:
        """A pooling and the neurons after it ran in one pass, from x [T, B, C, H, W] to spikes s."""
        names = [self.names.get(id(module)) for module in (pool, neuron)]
        if names[0] is None or names[1] is None or self.ran_again((*names,), pool, x, s):
            return
        with counting_of(x):
            found = self.watch.take_neurons(x, s)
            if found is None or x.shape[1] != self.run.batch or x.shape[0] > self.run.steps:
                pooled = type(pool).forward(pool, x.detach())
                self.pool(names[0], pool, x, pooled)
                self.neuron(names[1], neuron, pooled, s)
                return
            seq, out_shape = x.detach(), tuple(s.shape[2:])
            done, steps, _ = self._pool_row(names[0], pool, len(seq), tuple(seq.shape[2:]), out_shape)
            self.run.reads(x, done)
            constants = self._add_constants_of_pool(done, steps, seq)
            if done.row.kind == "avgpool":
                nnz = found.images.sum(1)
                done.add("in_nnz", steps, nnz)
                done.add("pool_adds", steps, nnz - found.beyond.sum(1))  # no number is in two windows
            of_pool = done
            done, steps = self._neuron_row(names[1], neuron, s.detach())
            self.run.reads_from(of_pool.row.name, done)
            self._spikes(names[1], done, steps, s, s.detach(), found.active.sum(1), found)
            if found.binary and of_pool.call == done.call == 0 and self._may_run_again(steps, x):
                after = self._neuron_again(done, x, s)
                self.run.plans[names[0], names[1]] = TogetherAgain(of_pool, x, constants, after)

    def norm(self, name: str, layer: Any, x: Tensor, y: Tensor) -> None:
        """One call of a normalisation."""
        spatial = re.search(r"Norm([23])d$", type(layer).__name__)
        seq = self.run.sequence(x.detach(), name, int(spatial[1]) + 1 if spatial else 1)
        shape = tuple(seq.shape[2:])

        def make(key: str) -> LayerTrace:
            foldable = isinstance(layer, BATCH_NORMS) or "BatchNorm" in type(layer).__name__
            return LayerTrace(
                key,
                type(layer).__name__,
                "norm",
                shape,
                shape,
                self.run.steps,
                params=sum(p.numel() for p in layer.parameters()),
                config={"foldable": foldable},
            )

        done, steps = self.run.start(name, len(seq), make)
        done.train_mode = layer.training
        self.run.reads(x, done)
        numel = math.prod(seq.shape[1:])
        done.add("in_numel", steps, numel)
        self.run.produced(y, done.row.name)
        if self._may_run_again(steps, x):
            self._plan(NormAgain(done, x, {"in_numel": numel}))

    def addition(self, a: Tensor, b: Tensor, y: Tensor) -> None:
        """An addition of two tensors of one shape, at least one of which a recorded layer made."""
        if a.shape != b.shape:
            return
        found = self._pair(
            a, b, "+", lambda key, left, right: LayerTrace(key, "add", "add", left, left, self.run.steps)
        )
        if found is None:
            return
        done, steps, seq_a, seq_b = found
        numel = math.prod(seq_a.shape[1:])
        done.add("in_numel", steps, numel)
        done.add("add_ops", steps, numel)
        done.add("add_ops_event", steps, ((seq_a != 0) & (seq_b != 0)).flatten(1).sum(1).cpu().numpy())
        self.run.produced(y, done.row.name)

    def product(self, a: Tensor, b: Tensor, y: Tensor) -> None:
        """A matrix product of two activations [.., M, K] × [.., K, N], at least one of which a recorded layer made."""
        if a.ndim < 3 or a.shape[:-2] != b.shape[:-2]:
            return

        def make(key: str, left: tuple[int, ...], right: tuple[int, ...]) -> LayerTrace:
            dense = math.prod(left) * right[-1]
            return LayerTrace(
                key, "matmul", "matmul", left, (*left[:-1], right[-1]), self.run.steps,
                config={"right_shape": right}, dense=dense, dense_padded=dense,
            )  # fmt: skip

        found = self._pair(a, b, "@", make)
        if found is None or found[2].ndim < 4:
            return
        done, steps, left, right = found
        x, w = left != 0, right != 0
        done.add("in_numel", steps, math.prod(left.shape[1:]))
        done.add("in_nnz", steps, x.flatten(1).sum(1).cpu().numpy())
        done.add("syn", steps, (x.flatten(1).sum(1) * right.shape[-1]).cpu().numpy())
        done.add("syn_eff", steps, (w.flatten(1).sum(1) * left.shape[-2]).cpu().numpy())
        both = x.sum(-2, dtype=torch.int64) * w.sum(-1, dtype=torch.int64)  # [t, B, *, K]
        done.add("and_ops", steps, both.flatten(1).sum(1).cpu().numpy())
        done.levels += [counters.levels_of(step) for step in left]
        for step in right:
            done.levels_right = done.levels_right.join(counters.levels_of(step))
        self.run.produced(y, done.row.name)

    def _pair(
        self, a: Tensor, b: Tensor, sign: str, make: Callable[[str, tuple[int, ...], tuple[int, ...]], LayerTrace]
    ) -> tuple[LayerPass, slice, Tensor, Tensor] | None:
        """The row of an operation on two tensors [t, B, *] that some recorded layer made, or None if it is none."""
        makers = [found.name if (found := self.run.maker(x)) else "" for x in (a, b)]
        if not any(makers) or a.ndim < 2 or not (a.is_floating_point() and b.is_floating_point()):
            return None
        lead = (self.run.steps, self.run.batch)
        if tuple(a.shape[:2]) == lead:
            seq_a, seq_b = a, b
        elif a.shape[0] == math.prod(lead):
            seq_a, seq_b = (x.reshape(*lead, *x.shape[1:]) for x in (a, b))
        elif a.shape[0] == self.run.batch:
            seq_a, seq_b = a.unsqueeze(0), b.unsqueeze(0)
        else:
            return None
        name = sign.join(maker or "(other)" for maker in makers)
        running = self.run.layers.get(name)
        if running is not None and running.next_step + len(seq_a) > self.run.steps:
            name = f"{name}#{self.run.calls[name] + 1}"
        shapes = tuple(seq_a.shape[2:]), tuple(seq_b.shape[2:])
        done, steps = self.run.start(name, len(seq_a), lambda key: make(key, *shapes))
        done.operand_of = done.operand_of or tuple(maker for maker in makers if maker)
        for maker in filter(None, makers):
            self.run.reads_from(maker, done)
        return done, steps, seq_a.detach(), seq_b.detach()
