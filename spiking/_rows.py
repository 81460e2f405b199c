"""What one call of a watched layer adds to the trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spiking import _counters as counters
from spiking import _peers as peers
from spiking._counters import OperandCounts
from spiking._forward_pass import ForwardPass, LayerPass, version
from spiking._watched import BATCH_NORMS, describe, pool_dims, recurrent_weights
from spiking.errors import SpikingError
from spiking.trace import LayerTrace


class Fans(NamedTuple):
    """Connections of each input element: stored weights, weights that are not zero; and facts about the weights."""

    stored: Tensor
    nonzero: Tensor
    dense: int
    w_nnz: int
    w_abs_mean: float
    w_abs_max: float
    row_abs_w: np.ndarray


class Rows:
    """Counts the calls of layers into the rows of `run`, the pass that goes on; what a layer's shapes decide is kept between passes."""

    def __init__(self, *, events: bool, active_rows: bool) -> None:
        self.run = ForwardPass()
        self.events, self.active_rows = events, active_rows
        self.keep = 0  # how many samples' spikes are kept whole in this pass
        self._fans: dict[tuple[str, tuple[int, ...]], tuple[int, Fans]] = {}
        self._windows: dict[tuple[str, tuple[int, ...]], tuple[Tensor, int]] = {}

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
        known = None if source is None else self.run.reads(source, row)
        if known is not None and (not seq.is_contiguous() or known.nnz.shape != seq.shape[:2]):
            known = None  # the same values in another order
        try:
            counts = counters.count_operand(seq, fans.stored, fans.nonzero, known)
        except FloatingPointError as err:
            raise SpikingError(
                f"record: layer {name}: {err}; expected finite values. Find the layer before it that makes them."
            ) from err
        self._add_operand(done, steps, counts, seq)
        if known is None:
            self._note_events(done, steps, seq)
        if self.active_rows:
            kind = (layer, seq) if isinstance(layer, nn.Linear) else (layer, seq.flatten(0, 1))
            for size, blocks in counters.active_row_blocks(*kind).items():
                row.active_rows[size] = row.active_rows.get(size, 0) + blocks
        if row.bias:
            row.counts["bias_adds"][steps] += row.n_outputs * self.run.batch
        return row

    def _add_operand(self, done: LayerPass, steps: slice, counts: OperandCounts, seq: Tensor) -> None:
        row = done.row
        row.counts["in_numel"][steps] += math.prod(seq.shape[1:])
        row.counts["in_nnz"][steps] += counts.nnz.sum(1)
        row.counts["syn"][steps] += counts.syn.sum(1)
        row.counts["syn_eff"][steps] += counts.syn_eff
        row.in_abs_sum[steps] += counts.abs_sum
        row.spike_count = row.spike_count + counts.per_element
        done.levels += counts.levels
        done.syn = np.concatenate([done.syn.reshape(-1, self.run.batch), counts.syn])
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
        at = (sample, step + steps.start, index)
        done.where.append((*(a.astype(np.uint32) for a in at), value))

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
            self._fans[key] = (
                now,
                Fans(stored, nonzero, int(stored.sum()), w_nnz, mean, largest, counters.row_magnitudes(layer)),
            )
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
        if theirs:
            current, spikes = self.run.sequence(current, name, 1), self.run.sequence(spikes, name, 1)
        steps_here, batch = (current.shape[0], current.shape[1] if current.ndim > 1 else 1)
        fits = batch == self.run.batch and steps_here <= self.run.steps
        if not fits and self.run.layers:
            raise SpikingError(
                f"record: layer {name}: got an input of shape {list(x.shape)}; expected [T, B, …] with "
                f"T={self.run.steps}, B={self.run.batch}. If the model's input has no time axis, pass steps=T."
            )
        if not fits:
            self.run.steps, self.run.batch = steps_here, batch
        shape = tuple(spikes.shape[2:])
        recurrent = None if theirs else recurrent_weights(layer)
        if recurrent is not None:
            first = torch.zeros_like(spikes[:1]) if before is None else before.detach().unsqueeze(0)
            previous = torch.cat([first, spikes[:-1]])
            self.operand(f"{name}.recurrent", recurrent, previous, shape, recurrent=True)
            weight, bias = (None if p is None else p.to(current.dtype) for p in (recurrent.weight, recurrent.bias))
            current = current + nn.functional.linear(previous.to(current.dtype), weight, bias)
            layer = layer.neuron if isinstance(getattr(layer, "neuron", None), nn.Module) else layer
        done, steps = self.run.start(
            name,
            len(current),
            lambda key: LayerTrace(
                key,
                type(layer).__name__,
                "neuron",
                shape,
                shape,
                self.run.steps,
                neuron=peers.describe(name, layer) if theirs else describe(layer),
                params=sum(p.numel() for p in layer.parameters(recurse=recurrent is None)),
                spike_count=np.zeros(math.prod(shape), np.int64),
            ),
        )
        row = done.row
        self.run.reads(x, row)
        none = torch.zeros(math.prod(shape), dtype=torch.int64)
        try:
            counts = counters.count_operand(spikes, none, none)
        except FloatingPointError as err:
            raise SpikingError(
                f"record: layer {name}: the neurons emit NaN or Inf; expected spikes. Its input or its "
                "parameters hold NaN."
            ) from err
        spiking = counters.Levels()
        for levels in counts.levels:
            spiking = spiking.join(levels)
        row.counts["in_numel"][steps] += math.prod(current.shape[1:])
        row.counts["updates"][steps] += math.prod(spikes.shape[1:])
        row.counts["updates_active"][steps] += counters.count_nonzero_per_step(current)
        row.counts["out_nnz"][steps] += counts.nnz.sum(1)
        if spiking.classify()[0] == "analogue":
            row.neuron["output"] = "membrane"  # a readout that emits its potential does not spike
        else:
            row.counts["spikes"][steps] += counts.nnz.sum(1)
            row.spike_count = row.spike_count + counts.per_element
            done.spikes = np.concatenate([done.spikes.reshape(-1, self.run.batch), counts.nnz])
            self._note_events(done, steps, spikes)
        if self.keep > 0:
            self.run.kept.setdefault(row.name, []).append(spikes[:, : self.keep].cpu().clone())
        self.run.produced(y, row.name, counts if y.is_contiguous() else None)

    def pool(self, name: str, layer: Any, x: Tensor, y: Tensor) -> None:
        """One call of an average or maximum pooling."""
        dims = pool_dims(layer)
        seq = self.run.sequence(x.detach(), name, dims + 1)
        in_shape, out_shape = tuple(seq.shape[2:]), tuple(y.shape[-dims - 1 :])
        key = (name, in_shape)
        if key not in self._windows:
            self._windows[key] = counters.pool_windows(layer, in_shape, out_shape)
        windows, reached = self._windows[key]
        average = "avg" in type(layer).__name__.lower()
        done, steps = self.run.start(
            name,
            len(seq),
            lambda key: LayerTrace(
                key,
                type(layer).__name__,
                "avgpool" if average else "maxpool",
                in_shape,
                out_shape,
                self.run.steps,
                config={"dense_ops": reached - math.prod(out_shape)},
            ),
        )
        row = done.row
        self.run.reads(x, row)
        row.counts["in_numel"][steps] += math.prod(seq.shape[1:])
        if average:
            nnz, reached_windows = counters.count_windows(seq, windows)
            row.counts["in_nnz"][steps] += nnz
            row.counts["pool_adds"][steps] += reached_windows
        else:
            row.counts["pool_cmps"][steps] += row.config["dense_ops"] * self.run.batch
        self.run.produced(y, row.name)

    def norm(self, name: str, layer: Any, x: Tensor, y: Tensor) -> None:
        """One call of a normalisation."""
        seq = self.run.sequence(x.detach(), name, 1)
        shape = tuple(seq.shape[2:])
        batch_norm = isinstance(layer, BATCH_NORMS) or "BatchNorm" in type(layer).__name__
        done, steps = self.run.start(
            name,
            len(seq),
            lambda key: LayerTrace(
                key,
                type(layer).__name__,
                "norm",
                shape,
                shape,
                self.run.steps,
                params=sum(p.numel() for p in layer.parameters()),
                config={"foldable": batch_norm},
                train_mode=layer.training,
            ),
        )
        self.run.reads(x, done.row)
        done.row.counts["in_numel"][steps] += math.prod(seq.shape[1:])
        self.run.produced(y, done.row.name)

    def addition(self, a: Tensor, b: Tensor, y: Tensor) -> None:
        """An addition of two tensors of one shape, at least one of which a recorded layer made."""
        if a.shape != b.shape:
            return
        found = self._pair(
            a, b, "+", lambda key, left, right: LayerTrace(key, "add", "add", left, left, self.run.steps)
        )
        if found is None:
            return
        row, steps, seq_a, seq_b, _ = found
        numel = math.prod(seq_a.shape[1:])
        row.counts["in_numel"][steps] += numel
        row.counts["add_ops"][steps] += numel
        row.counts["add_ops_event"][steps] += ((seq_a != 0) & (seq_b != 0)).flatten(1).sum(1).cpu().numpy()
        self.run.produced(y, row.name)

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
        row, steps, left, right, done = found
        x, w = left != 0, right != 0
        row.counts["in_numel"][steps] += math.prod(left.shape[1:])
        row.counts["in_nnz"][steps] += x.flatten(1).sum(1).cpu().numpy()
        row.counts["syn"][steps] += (x.flatten(1).sum(1) * right.shape[-1]).cpu().numpy()
        row.counts["syn_eff"][steps] += (w.flatten(1).sum(1) * left.shape[-2]).cpu().numpy()
        both = x.sum(-2, dtype=torch.int64) * w.sum(-1, dtype=torch.int64)  # [t, B, *, K]
        row.counts["and_ops"][steps] += both.flatten(1).sum(1).cpu().numpy()
        done.levels += [counters.levels_of(step) for step in left]
        for step in right:
            row.levels_right = row.levels_right.join(counters.levels_of(step))
        self.run.produced(y, row.name)

    def _pair(
        self, a: Tensor, b: Tensor, sign: str, make: Callable[[str, tuple[int, ...], tuple[int, ...]], LayerTrace]
    ) -> tuple[LayerTrace, slice, Tensor, Tensor, LayerPass] | None:
        """The row of an operation on two tensors [t, B, *] that some recorded layer made, or None if it is none."""
        makers = [self.run.maker(x) for x in (a, b)]
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
        done.row.operand_of = done.row.operand_of or tuple(maker for maker in makers if maker)
        for maker in filter(None, makers):
            self.run.readers.setdefault(maker, set()).add(done.row.name)
        return done.row, steps, seq_a.detach(), seq_b.detach(), done
