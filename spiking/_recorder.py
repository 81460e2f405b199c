"""Hooks that watch a model run and fill an `EventTrace`; see `spiking.trace.record`."""

from __future__ import annotations

import hashlib
import math
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from spiking import _counters as counters
from spiking import _peers as peers
from spiking._counters import Levels, OperandCounts
from spiking.errors import SpikingError
from spiking.trace import Events, EventTrace, LayerTrace, Recording, join_layer

INPUT = "(input)"
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OTHER_NORMS = tuple(
    kind
    for kind in (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, getattr(nn, "RMSNorm", None))
    if kind is not None
)


class Fans(NamedTuple):
    """Connections of each input element: stored weights, weights that are not zero; and facts about the weights."""

    stored: Tensor
    nonzero: Tensor
    dense: int
    w_nnz: int
    w_abs_mean: float
    w_abs_max: float
    row_abs_w: np.ndarray


@dataclass
class Pass:
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


class Recorder:
    """Context manager that attaches the hooks; entering it returns the trace that they fill."""

    def __init__(
        self,
        model: nn.Module,
        *,
        keep_spikes: int,
        events: bool,
        active_rows: bool,
        steps: int | None,
        step_by_step: bool,
        data_id: str,
        seed: int | None,
        dt: float | None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise SpikingError(f"record: got {type(model).__name__}; expected a torch.nn.Module.")
        if keep_spikes < 0:
            raise SpikingError(f"record: got keep_spikes={keep_spikes}; expected a number of samples, 0 or more.")
        if steps is not None and steps < 1:
            raise SpikingError(f"record: got steps={steps}; expected 1 or more.")
        if step_by_step and steps is None:
            raise SpikingError("record: got step_by_step=True without steps; expected the number of steps of one pass.")
        self.model = model
        self.keep_spikes = keep_spikes
        self.events = events
        self.active_rows = active_rows
        self.stated_steps = steps
        self.step_by_step = step_by_step
        self.batch_first = any(peers.batch_first(module) for module in model.modules())
        self.trace = EventTrace(
            model_name=type(model).__name__,
            data_id=data_id,
            seed=seed,
            dt=dt,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            software=_versions(),
        )
        self._handles: list[Any] = []
        self._fans: dict[tuple[str, tuple[int, ...]], tuple[int, Fans]] = {}
        self._windows: dict[tuple[str, tuple[int, ...]], tuple[Tensor, int]] = {}
        self._consumers: dict[str, set[str]] = {}
        self._operations = Operations(self)
        self._reset()

    def __enter__(self) -> EventTrace:
        self.trace.model_hash = model_hash(self.model)
        stated: Any = getattr(self.model, "precision", None)
        if is_dataclass(stated) and not isinstance(stated, type):
            self.trace.precision = {name: _plain(value) for name, value in asdict(stated).items()}
        first = next(self.model.parameters(), None)
        if first is not None:
            self.trace.dtype, self.trace.device = str(first.dtype).removeprefix("torch."), str(first.device)
        self._handles.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        for name, module, observe in _observed(self.model):
            self._handles.append(module.register_forward_pre_hook(self._operations.step_in))
            self._handles.append(module.register_forward_hook(_hook(observe, self, name), with_kwargs=True))
        self._handles.append(self.model.register_forward_hook(self._end, with_kwargs=True))
        return self.trace

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._operations.stop()
        call = self._call
        self._reset()
        if call and kind is None:
            raise SpikingError(
                f"record: got {call} steps of the last pass; expected {self.stated_steps}. Call the model once per step."
            )

    # one forward pass of the model

    def _reset(self) -> None:
        self._passes: dict[str, Pass] = {}
        self._calls: dict[str, int] = {}
        self._producers: dict[int, Producer] = {}
        self._kept: dict[str, list[Tensor]] = {}
        self._steps = self._batch = self._call = 0
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._call:
            self._reset()
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if x is None or x.ndim == 0 or x.layout != torch.strided:
            raise SpikingError(f"record: {type(model).__name__} was called without a dense tensor; expected [T, B, …].")
        self._produced(x, INPUT)
        self._operations.start()
        steps = self.stated_steps
        if self.step_by_step:
            assert steps is not None
            if self._call and x.shape[0] != self._batch:
                raise SpikingError(
                    f"record: step {self._call + 1}: got {x.shape[0]} samples after {self._batch} in the step before; "
                    f"expected one number in all {steps} steps of a pass."
                )
            self._steps, self._batch = steps, x.shape[0]
        elif self.batch_first:
            self._steps, self._batch = self._batch_and_steps(x)[::-1]
        elif steps is None:
            time_first = x.is_floating_point() or x.ndim != 2  # token indices [B, T] are the exception
            self._steps, self._batch = _first_two(x) if time_first else (x.shape[1], x.shape[0])
        else:
            self._steps = steps
            self._batch = x.shape[1] if x.ndim > 1 and x.shape[0] == steps and x.is_floating_point() else x.shape[0]
        if self.keep_spikes:
            self._inputs.append(x.detach().clone() if self.step_by_step else x.detach())

    def _batch_and_steps(self, x: Tensor) -> tuple[int, int]:
        """(B, T) of the input of a model whose neurons take [B, T, *], or [B·T, *] where they unfold it themselves."""
        steps = self.stated_steps
        for module in self.model.modules() if steps is None else ():
            if "Squeeze" in type(module).__name__ and peers.batch_first(module):
                known, batch = getattr(module, "num_timesteps", -1) or -1, getattr(module, "batch_size", -1) or -1
                steps = known if known > 0 else x.shape[0] // batch if batch > 0 and x.shape[0] != batch else None
                break
        if steps is None or (x.ndim > 1 and x.shape[1] == steps) or x.shape[0] % steps:
            return _first_two(x)
        return x.shape[0] // steps, steps

    def _end(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        self._operations.stop()
        if isinstance(out, tuple | list):
            out = next((v for v in out if isinstance(v, Tensor)), None)
        if self.keep_spikes and isinstance(out, Tensor):
            self._outputs.append(out.detach().float())
        if self.step_by_step:
            self._call += 1
            if self._call < self._steps:
                return
        if not self._passes:
            raise SpikingError(f"record: {type(model).__name__} has no layer that can be counted (weights or neurons).")
        if self.trace.n_steps and self.trace.n_steps != self._steps:
            raise SpikingError(
                f"record: got {self._steps} time steps after {self.trace.n_steps} in the pass before; "
                "expected one length. Record the lengths in separate traces."
            )
        known = {row.name: row for row in self.trace.layers}
        for name, done in self._passes.items():
            self._finish(done)
            if name in known:
                join_layer(known[name], done.row)
            elif self.trace.n_samples:
                raise SpikingError(f"record: layer {name} did not run in the passes before; expected the same layers.")
            else:
                self.trace.layers.append(done.row)
        if len(known) > len(self._passes):
            missing = next(n for n in known if n not in self._passes)
            raise SpikingError(f"record: layer {missing} did not run in this pass; expected the same layers.")
        self.trace.n_steps = self._steps
        self.trace.n_samples += self._batch
        self._fold_norms()
        self._keep()
        self._reset()

    def _finish(self, done: Pass) -> None:
        row = done.row
        if done.levels:
            row.levels_step = done.levels + [Levels()] * (self._steps - len(done.levels))
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

    def _fold_norms(self) -> None:
        """A batch norm in eval mode, directly behind the weights and their only reader, becomes part of them."""
        for row in self.trace.layers:
            if row.kind != "norm" or row.train_mode or not row.config.get("foldable") or len(row.operand_of) != 1:
                continue
            source = row.operand_of[0]
            if self._consumers.get(source) == {row.name} and source != INPUT and self.trace[source].is_weight_layer:
                row.folded_into = source

    def _keep(self) -> None:
        missing = self.keep_spikes - len(self.trace.recordings)
        if missing <= 0 or not self._inputs:
            return
        lead = (self._steps, self._batch)
        kept = {name: torch.cat(parts) for name, parts in self._kept.items()}
        x = torch.stack(self._inputs) if self.step_by_step else self._time_first(self._inputs[0])
        o = None
        if self._outputs:
            o = torch.stack(self._outputs) if self.step_by_step else self._time_first(self._outputs[0])
        for b in range(min(missing, self._batch)):
            shown = x[:, b] if tuple(x.shape[:2]) == lead else x[b : b + 1]
            answer = None
            if o is not None:
                answer = o[:, b] if tuple(o.shape[:2]) == lead else o[b] if o.shape[0] == self._batch else None
            self.trace.recordings.append(
                Recording(
                    _numpy(shown),
                    {name: _numpy(s[:, b] != 0).astype(np.uint8) for name, s in kept.items()},
                    None if answer is None else _numpy(answer),
                )
            )

    # who made a tensor, who reads it

    def _produced(self, x: Tensor, name: str, counts: OperandCounts | None = None) -> None:
        storage = x.untyped_storage()
        self._producers[storage._cdata] = Producer(name, StorageWeakRef(storage), _version(x), x.numel(), counts)

    def _reads(self, x: Tensor, row: LayerTrace) -> OperandCounts | None:
        """Note who made x; return its counts if they were made when it left its neurons."""
        found = self._producers.get(x.untyped_storage()._cdata)
        if found is None or found.storage.expired() or found.version != _version(x) or found.numel != x.numel():
            return None
        self._consumers.setdefault(found.name, set()).add(row.name)
        if not row.operand_of:
            row.operand_of = (found.name,)
        return found.counts

    # shapes

    def _time_first(self, x: Tensor) -> Tensor:
        """[T, B, *] of [B, T, *] or [B·T, *], if the model's neurons have the batch first; else x."""
        lead = (self._batch, self._steps)
        if self.batch_first and tuple(x.shape[:2]) == lead:
            return x.transpose(0, 1).contiguous()
        if self.batch_first and x.shape[0] == math.prod(lead):
            return x.reshape(*lead, *x.shape[1:]).transpose(0, 1).contiguous()
        return x

    def sequence(self, x: Tensor, name: str, feature_dims: int) -> Tensor:
        """x as [t, B, *]: the whole sequence, a part of it, or one step."""
        lead = (self._steps, self._batch)
        if self.step_by_step and x.ndim > feature_dims and x.shape[0] == self._batch:
            return x.unsqueeze(0)
        x = self._time_first(x)
        if x.ndim >= feature_dims + 2 and tuple(x.shape[:2]) == lead:
            return x
        if x.ndim > feature_dims and x.shape[0] == self._steps * self._batch:
            return x.reshape(*lead, *x.shape[1:])
        if x.ndim == feature_dims + 2 and x.shape[1] == self._batch and x.shape[0] < self._steps:
            return x
        if x.ndim > feature_dims and x.shape[0] == self._batch:
            return x.unsqueeze(0)
        raise SpikingError(
            f"record: layer {name}: got an input of shape {list(x.shape)}; expected [T, B, …], [T·B, …] or one step "
            f"[B, …] with T={self._steps}, B={self._batch}. If the model's input has no time axis, pass steps=T."
        )

    def start(self, name: str, n: int, make: Callable[[str], LayerTrace]) -> tuple[Pass, slice]:
        """The running pass of a layer and the n steps that this call covers."""
        whole = n == self._steps
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        key = name if not whole or call == 0 else f"{name}#{call + 1}"
        if key not in self._passes:
            self._passes[key] = Pass(make(key), self._batch)
        done = self._passes[key]
        steps = slice(0, n) if whole else slice(done.next_step, done.next_step + n)
        if steps.stop > self._steps:
            raise SpikingError(
                f"record: layer {name} ran for more than T={self._steps} steps in one pass; expected the whole "
                "sequence at once, or its steps one by one. If the model's input has no time axis, pass steps=T."
            )
        done.next_step = steps.stop
        return done, steps

    # layers

    def weights(self, name: str, layer: Any, x: Tensor, y: Tensor) -> None:
        """One call of a linear or convolutional layer."""
        kind = counters.layer_kind(layer)
        dims = 1 if kind == "linear" else len(layer.weight.shape) - 1
        seq = self.sequence(x.detach(), name, dims)
        out_shape = tuple(y.shape[-dims:] if kind != "linear" else (*seq.shape[2:-1], y.shape[-1]))
        row = self.operand(name, layer, seq, out_shape, source=x)
        self._produced(y, row.name)

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
        done, steps = self.start(
            name, len(seq), lambda key: self._weight_row(key, layer, in_shape, out_shape, fans, config)
        )
        row = done.row
        known = None if source is None else self._reads(source, row)
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
            row.counts["bias_adds"][steps] += row.n_outputs * self._batch
        return row

    def _add_operand(self, done: Pass, steps: slice, counts: OperandCounts, seq: Tensor) -> None:
        row = done.row
        row.counts["in_numel"][steps] += math.prod(seq.shape[1:])
        row.counts["in_nnz"][steps] += counts.nnz.sum(1)
        row.counts["syn"][steps] += counts.syn.sum(1)
        row.counts["syn_eff"][steps] += counts.syn_eff
        row.in_abs_sum[steps] += counts.abs_sum
        row.spike_count = row.spike_count + counts.per_element
        done.levels += counts.levels
        done.syn = np.concatenate([done.syn.reshape(-1, self._batch), counts.syn])
        done.repeated &= len(seq) == 1 or counts.repeated
        if len(seq) < self._steps and done.repeated:
            if done.first is None:
                done.first = seq[0].clone()
            done.repeated = torch.equal(done.first, seq[0])

    def _note_events(self, done: Pass, steps: slice, seq: Tensor) -> None:
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
        version = _version(layer.weight)
        key = (name, in_shape)
        if key not in self._fans or self._fans[key][0] != version:
            weight = layer.weight.detach()
            stored = counters.connections(layer, in_shape, out_shape, torch.ones(weight.shape))
            w_nnz = int(torch.count_nonzero(weight))
            sparse = w_nnz < weight.numel()
            nonzero = counters.connections(layer, in_shape, out_shape, weight) if sparse else stored
            magnitude = weight.double().abs()
            mean, largest = (float(magnitude.mean()), float(magnitude.max())) if weight.numel() else (0.0, 0.0)
            self._fans[key] = (
                version,
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
            self._steps,
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
            current, spikes = self.sequence(current, name, 1), self.sequence(spikes, name, 1)
        steps_here, batch = _first_two(current)
        fits = batch == self._batch and steps_here <= self._steps
        if not fits and self._passes:
            raise SpikingError(
                f"record: layer {name}: got an input of shape {list(x.shape)}; expected [T, B, …] with "
                f"T={self._steps}, B={self._batch}. If the model's input has no time axis, pass steps=T."
            )
        if not fits:
            self._steps, self._batch = steps_here, batch
        shape = tuple(spikes.shape[2:])
        recurrent = None if theirs else recurrent_weights(layer)
        if recurrent is not None:
            first = torch.zeros_like(spikes[:1]) if before is None else before.detach().unsqueeze(0)
            previous = torch.cat([first, spikes[:-1]])
            self.operand(f"{name}.recurrent", recurrent, previous, shape, recurrent=True)
            weight, bias = (None if p is None else p.to(current.dtype) for p in (recurrent.weight, recurrent.bias))
            current = current + nn.functional.linear(previous.to(current.dtype), weight, bias)
            layer = layer.neuron if isinstance(getattr(layer, "neuron", None), nn.Module) else layer
        done, steps = self.start(
            name,
            len(current),
            lambda key: LayerTrace(
                key,
                type(layer).__name__,
                "neuron",
                shape,
                shape,
                self._steps,
                neuron=peers.describe(name, layer) if theirs else describe(layer),
                params=sum(p.numel() for p in layer.parameters(recurse=recurrent is None)),
                spike_count=np.zeros(math.prod(shape), np.int64),
            ),
        )
        row = done.row
        self._reads(x, row)
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
            done.spikes = np.concatenate([done.spikes.reshape(-1, self._batch), counts.nnz])
            self._note_events(done, steps, spikes)
        missing = self.keep_spikes - len(self.trace.recordings)
        if missing > 0:
            self._kept.setdefault(row.name, []).append(spikes[:, :missing].cpu().clone())
        self._produced(y, row.name, counts if y.is_contiguous() else None)

    def pool(self, name: str, layer: Any, x: Tensor, y: Tensor) -> None:
        """One call of an average or maximum pooling."""
        dims = pool_dims(layer)
        seq = self.sequence(x.detach(), name, dims + 1)
        in_shape, out_shape = tuple(seq.shape[2:]), tuple(y.shape[-dims - 1 :])
        key = (name, in_shape)
        if key not in self._windows:
            self._windows[key] = counters.pool_windows(layer, in_shape, out_shape)
        windows, reached = self._windows[key]
        average = "avg" in type(layer).__name__.lower()
        done, steps = self.start(
            name,
            len(seq),
            lambda key: LayerTrace(
                key,
                type(layer).__name__,
                "avgpool" if average else "maxpool",
                in_shape,
                out_shape,
                self._steps,
                config={"dense_ops": reached - math.prod(out_shape)},
            ),
        )
        row = done.row
        self._reads(x, row)
        row.counts["in_numel"][steps] += math.prod(seq.shape[1:])
        if average:
            nnz, reached_windows = counters.count_windows(seq, windows)
            row.counts["in_nnz"][steps] += nnz
            row.counts["pool_adds"][steps] += reached_windows
        else:
            row.counts["pool_cmps"][steps] += row.config["dense_ops"] * self._batch
        self._produced(y, row.name)

    def norm(self, name: str, layer: Any, x: Tensor, y: Tensor) -> None:
        """One call of a normalisation."""
        seq = self.sequence(x.detach(), name, 1)
        shape = tuple(seq.shape[2:])
        batch_norm = isinstance(layer, _BATCH_NORMS) or "BatchNorm" in type(layer).__name__
        done, steps = self.start(
            name,
            len(seq),
            lambda key: LayerTrace(
                key,
                type(layer).__name__,
                "norm",
                shape,
                shape,
                self._steps,
                params=sum(p.numel() for p in layer.parameters()),
                config={"foldable": batch_norm},
                train_mode=layer.training,
            ),
        )
        self._reads(x, done.row)
        done.row.counts["in_numel"][steps] += math.prod(seq.shape[1:])
        self._produced(y, done.row.name)

    def addition(self, a: Tensor, b: Tensor, y: Tensor) -> None:
        """An addition of two tensors of one shape, at least one of which a recorded layer made."""
        if a.shape != b.shape:
            return
        found = self._pair(a, b, "+", lambda key, left, right: LayerTrace(key, "add", "add", left, left, self._steps))
        if found is None:
            return
        row, steps, seq_a, seq_b, _ = found
        numel = math.prod(seq_a.shape[1:])
        row.counts["in_numel"][steps] += numel
        row.counts["add_ops"][steps] += numel
        row.counts["add_ops_event"][steps] += ((seq_a != 0) & (seq_b != 0)).flatten(1).sum(1).cpu().numpy()
        self._produced(y, row.name)

    def product(self, a: Tensor, b: Tensor, y: Tensor) -> None:
        """A matrix product of two activations [.., M, K] × [.., K, N], at least one of which a recorded layer made."""
        if a.ndim < 3 or a.shape[:-2] != b.shape[:-2]:
            return

        def make(key: str, left: tuple[int, ...], right: tuple[int, ...]) -> LayerTrace:
            dense = math.prod(left) * right[-1]
            return LayerTrace(
                key, "matmul", "matmul", left, (*left[:-1], right[-1]), self._steps,
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
        self._produced(y, row.name)

    def _pair(
        self, a: Tensor, b: Tensor, sign: str, make: Callable[[str, tuple[int, ...], tuple[int, ...]], LayerTrace]
    ) -> tuple[LayerTrace, slice, Tensor, Tensor, Pass] | None:
        """The row of an operation on two tensors [t, B, *] that some recorded layer made, or None if it is none."""
        makers = [self._maker(x) for x in (a, b)]
        if not any(makers) or a.ndim < 2 or not (a.is_floating_point() and b.is_floating_point()):
            return None
        lead = (self._steps, self._batch)
        if tuple(a.shape[:2]) == lead:
            seq_a, seq_b = a, b
        elif a.shape[0] == math.prod(lead):
            seq_a, seq_b = (x.reshape(*lead, *x.shape[1:]) for x in (a, b))
        elif a.shape[0] == self._batch:
            seq_a, seq_b = a.unsqueeze(0), b.unsqueeze(0)
        else:
            return None
        name = sign.join(maker or "(other)" for maker in makers)
        running = self._passes.get(name)
        if running is not None and running.next_step + len(seq_a) > self._steps:
            name = f"{name}#{self._calls[name] + 1}"
        shapes = tuple(seq_a.shape[2:]), tuple(seq_b.shape[2:])
        done, steps = self.start(name, len(seq_a), lambda key: make(key, *shapes))
        done.row.operand_of = done.row.operand_of or tuple(maker for maker in makers if maker)
        for maker in filter(None, makers):
            self._consumers.setdefault(maker, set()).add(done.row.name)
        return done.row, steps, seq_a.detach(), seq_b.detach(), done

    def copied(self, x: Tensor, copy: Tensor) -> None:
        """The copy has the maker of x, which is about to be overwritten."""
        maker = self._maker(x)
        if maker:
            self._produced(copy, maker)

    def _maker(self, x: Tensor) -> str:
        found = self._producers.get(x.untyped_storage()._cdata)
        if found is None or found.storage.expired() or found.version != _version(x) or found.numel != x.numel():
            return ""
        return found.name


class Operations(TorchFunctionMode):
    """Sees additions and matrix products of two tensors outside of the watched layers, while a pass of the model runs."""

    _ADD = frozenset({torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__})
    _PRODUCT = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm})

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.inside = 0
        self.running = self.entered = False

    def start(self) -> None:
        self.stop()
        self.inside, self.running = 0, True
        self._enter()

    def stop(self) -> None:
        self.running = False
        self._leave()

    def _enter(self) -> None:
        if self.running and not self.entered:
            self.entered = True
            self.__enter__()

    def _leave(self) -> None:
        if self.entered:
            self.entered = False
            self.__exit__(None, None, None)

    def step_in(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.inside += 1
        self._leave()  # what happens inside a watched layer is its own, and must not pay for being looked at

    def step_out(self) -> None:
        self.inside -= 1
        if not self.inside:
            self._enter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        adds, multiplies = func in self._ADD, func in self._PRODUCT
        seen = (adds or multiplies) and len(args) == 2 and not kwargs
        if not seen or not all(isinstance(x, Tensor) and not isinstance(x, nn.Parameter) for x in args):
            return func(*args, **kwargs)
        changed = func in (Tensor.add_, Tensor.__iadd__)
        a = args[0].detach().clone() if changed else args[0]
        if changed:
            self.recorder.copied(args[0], a)
        y = func(*args)
        with torch.no_grad(), torch.autocast(y.device.type, enabled=False):
            (self.recorder.addition if adds else self.recorder.product)(a, args[1], y)
        return y


Observe = Callable[..., None]


def _observed(model: nn.Module) -> list[tuple[str, nn.Module, Observe]]:
    """The modules to watch: nothing inside a watched module is watched again, so that nothing counts twice."""
    found: list[tuple[str, nn.Module, Observe]] = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        observe = _observer(module)
        if observe is not None:
            found.append((name, module, observe))
            inside += (f"{name}." if name else "",)
    return found


def _observer(module: nn.Module) -> Observe | None:
    if counters.layer_kind(module) is not None:
        return Recorder.weights
    if is_neuron(module) or peers.is_neuron(module):
        return Recorder.neuron
    if pool_dims(module):
        return Recorder.pool
    if isinstance(module, _BATCH_NORMS + _OTHER_NORMS) or re.search(
        r"(Batch|Layer|Group|RMS)Norm", type(module).__name__
    ):
        return Recorder.norm
    return None


def is_neuron(module: nn.Module) -> bool:
    """True for a spiking neuron, which says so itself through `describe()`, and for a recurrent layer of such."""
    if recurrent_weights(module) is not None and isinstance(getattr(module, "neuron", None), nn.Module):
        return True
    says: Any = getattr(module, "describe", None)
    return callable(says) and "state_vars" in says()


def recurrent_weights(module: nn.Module) -> nn.Linear | None:
    """The weights that carry a layer's own spikes of the step before, if it has any."""
    found = getattr(module, "recurrent", None)
    return found if isinstance(found, nn.Linear) else None


def describe(layer: Any) -> dict[str, Any]:
    """What a neuron says about itself, in plain numbers and strings."""
    return {key: _plain(value) for key, value in layer.describe().items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().item() if value.numel() == 1 else value.detach().float().mean().item()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def pool_dims(module: nn.Module) -> int:
    """Spatial axes of a pooling layer; 0 if the module is none."""
    found = re.search(r"(Avg|Max)Pool([123])d$", type(module).__name__)
    return int(found[2]) if found else 0


def _hook(observe: Observe, recorder: Recorder, name: str) -> Callable[..., None]:
    def seen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        y = next((v for v in out if isinstance(v, Tensor)), None) if isinstance(out, tuple | list) else out
        if x is None or not isinstance(y, Tensor):
            raise SpikingError(f"record: layer {name} was called without tensors; expected one in and one out.")
        label = name or type(module).__name__
        # counts are products of float32: a lower precision chosen for the model must not reach them
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            if observe is Recorder.neuron:
                state = next((v for v in (*args, *kwargs.values()) if hasattr(v, "spikes")), None)
                recorder.neuron(label, module, x, y, None if state is None else state.spikes)
            else:
                observe(recorder, label, module, x, y)
        recorder._operations.step_out()

    return seen


def model_hash(model: nn.Module) -> str:
    """sha256 over the names and bytes of the state, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version(), "torch": torch.__version__, "spiking": version("spiking")}


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _first_two(x: Tensor) -> tuple[int, int]:
    return x.shape[0], (x.shape[1] if x.ndim > 1 else 1)


def _numpy(x: Tensor) -> np.ndarray:
    x = x.detach()
    return (x.float() if x.is_floating_point() else x).cpu().contiguous().numpy()
