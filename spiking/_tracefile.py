"""Trace files: HDF5, schema 1.1, written under a temporary name and renamed when complete."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from spiking._counters import CLASSES, Levels
from spiking.errors import SpikingError
from spiking.trace import COUNTERS, OTHER_KINDS, WEIGHT_KINDS, Events, EventTrace, LayerTrace, Recording

FORMAT = "spiking-trace"
SCHEMA = "1.2"
"""1.1 added row_abs_w, active_rows, events and matmul rows, 1.2 row_siemens; a file without them is read as it is."""
_STATIC = ("params", "w_nnz", "w_abs_mean", "w_abs_max", "dense", "dense_padded")
_MAX_BYTES = 2**30
_CHUNK = 65536
_FLAGS = ("bias", "train_mode", "repeated_input")
_ROWS = ("row_abs_w", "row_siemens")
_ARRAYS = ("in_abs_sum", "spike_count", "fan_out", "syn_sample", "updates_sample", "spikes_sample")
_USED = {  # counters a kind of layer has; the others are zero and not stored
    "neuron": ("in_numel", "updates", "updates_active", "spikes", "out_nnz"),
    "avgpool": ("in_numel", "in_nnz", "pool_adds"),
    "maxpool": ("in_numel", "pool_cmps"),
    "norm": ("in_numel",),
    "add": ("in_numel", "add_ops", "add_ops_event"),
    "matmul": ("in_numel", "in_nnz", "syn", "syn_eff", "and_ops"),
}
_WEIGHTS = ("in_numel", "in_nnz", "syn", "syn_eff", "bias_adds")


def save(trace: EventTrace, path: str | PathLike[str]) -> None:
    """Write a trace; a failure leaves neither a half-written file nor the loss of an older one."""
    Writer(path).finish(trace)


class Writer:
    """A trace file in the making, under a temporary name until it is complete: events as they come, everything else at the end."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = os.fspath(path)
        if not Path(self.path).name or Path(self.path).is_dir() or not Path(self.path).parent.is_dir():
            raise SpikingError(
                f"{self.path!r}: the trace cannot be written: expected the name of a file in a folder that exists."
            )
        self._part = Path(f"{self.path}.part")
        self._file: h5py.File | None = None

    def append(self, layer: int, events: Events, samples: int) -> None:
        """Add events of the layer with that number, whose samples are counted on from `samples`."""
        with self._told() as file:
            group = file.require_group(f"events/{layer:04d}")
            have = len(group["index"]) if "index" in group else 0
            if (have + len(events)) * 4 > _MAX_BYTES:
                raise SpikingError(
                    f"{self.path}: layer {layer}: got more than {_MAX_BYTES // 4} events; expected as many as a file holds. "
                    "Record fewer samples in one trace."
                )
            _extend(group, "sample", have, (events.sample + np.uint32(samples)).astype(np.uint32))
            _extend(group, "step", have, events.step.astype(np.uint32))
            _extend(group, "index", have, events.index.astype(np.uint32))
            if len(events.value) or "value" in group:
                _extend(group, "value", have, events.value if len(events.value) else np.ones(len(events), np.float32))

    def finish(self, trace: EventTrace) -> None:
        """Write the counters, and give the file its name."""
        if trace.n_samples == 0:
            self.abort()
            raise SpikingError(f"{self.path}: got a trace of zero samples; expected at least one recorded pass.")
        with self._told() as file:
            _write(file, trace)
            file.attrs["complete"] = True
            file.close()
            os.replace(self._part, self.path)

    def abort(self) -> None:
        """Leave no file behind."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._part.unlink(missing_ok=True)

    @contextmanager
    def _told(self) -> Iterator[h5py.File]:
        """The file; what goes wrong with it is told in one line, and it is gone."""
        try:
            if self._file is None:
                self._file = h5py.File(self._part, "w")
            yield self._file
        except (OSError, RuntimeError) as err:  # h5py gives a full disk as either, in HDF5's own words
            said = str(err)
            with suppress(OSError, RuntimeError):
                self.abort()
            self._part.unlink(missing_ok=True)
            full = "No space left on device" in said or "errno = 28" in said
            reason = "No space left on device" if full else said.splitlines()[0]
            raise SpikingError(f"{self.path}: the trace cannot be written: {reason}.") from err


def _extend(group: h5py.Group, name: str, have: int, values: np.ndarray) -> None:
    """Write values behind the first `have` ones; those that were never written are 1."""
    if name not in group:
        group.create_dataset(
            name,
            (have,),
            values.dtype,
            maxshape=(None,),
            chunks=(_CHUNK,),
            fillvalue=1,
            compression="gzip",
            compression_opts=4,
            shuffle=True,
        )
    group[name].resize((have + len(values),))
    group[name][have:] = values


def _write(file: h5py.File, trace: EventTrace) -> None:
    file.attrs.update(
        {
            "format": FORMAT,
            "schema": SCHEMA,
            "mode": "events" if "events" in file or any(row.events is not None for row in trace.layers) else "summary",
            "complete": False,
            "n_samples": trace.n_samples,
            "n_steps": trace.n_steps,
            "dt_s": np.nan if trace.dt is None else trace.dt,
            "created_utc": trace.created,
            "software": json.dumps(trace.software),
            "model_hash": trace.model_hash,
            "model_name": trace.model_name,
            "data_id": trace.data_id,
            "seed": -1 if trace.seed is None else trace.seed,
            "dtype": trace.dtype,
            "device": trace.device,
            "merged_from": json.dumps(trace.merged_from),
            "precision": json.dumps(trace.precision),
            "units": json.dumps(dict.fromkeys((*COUNTERS, *_ARRAYS), "1")),
        }
    )
    names = [layer.name for layer in trace.layers]
    edges, kinds = [], []
    for i, layer in enumerate(trace.layers):
        for source in layer.operand_of:
            if source in names:
                edges.append((names.index(source), i))
                kinds.append(0)
    file["graph/edges"] = np.array(edges, np.int32).reshape(-1, 2)
    file["graph/kind"] = np.array(kinds, np.uint8)
    for i, layer in enumerate(trace.layers):
        _write_layer(file.create_group(f"layers/{i:04d}"), layer)
        if layer.events is not None:
            _write_events(file.create_group(f"events/{i:04d}"), layer.events)
    for i, recording in enumerate(trace.recordings):
        _write_recording(file.create_group(f"recordings/{i:04d}"), recording, names)


def _write_layer(group: h5py.Group, layer: LayerTrace) -> None:
    for name in ("name", "module", "kind", "operand_class", "operand_scale", "folded_into", *_STATIC, *_FLAGS):
        group.attrs[name] = getattr(layer, name)
    for name in ("in_shape", "out_shape", "weight_shape"):
        group.attrs[name] = np.array(getattr(layer, name), np.int64)
    for name in ("config", "neuron", "operand_of"):
        group.attrs[name] = json.dumps(getattr(layer, name))
    group.attrs["levels"] = _pack_levels(layer.levels)
    if layer.kind == "matmul":
        group.attrs["levels_right"] = _pack_levels(layer.levels_right)
    for name in _USED.get(layer.kind, _WEIGHTS):
        _dataset(group, name, layer.counts[name])
    if layer.is_weight_layer:
        group.attrs["levels_step"] = json.dumps([_pack_levels(levels) for levels in layer.levels_step])
        _dataset(group, "class_step", np.array([CLASSES.index(c) for c in layer.class_step], np.uint8))
        per_sample = [layer.syn_sample, layer.mac_sample, layer.updates_sample, layer.spikes_sample]
        _dataset(group, "per_sample", np.stack(per_sample, 1).astype(np.float64))
    for name in _ARRAYS:
        _dataset(group, name, getattr(layer, name))

    for name in _ROWS:
        if getattr(layer, name).size:
            _dataset(group, name, getattr(layer, name))
    if layer.active_rows:
        _dataset(group, "active_rows", np.array([*layer.active_rows.values()], np.int64))
        group["active_rows"].attrs["sizes"] = np.array([*layer.active_rows], np.int64)


def _write_events(group: h5py.Group, events: Events) -> None:
    for name in ("sample", "step", "index"):
        _dataset(group, name, getattr(events, name).astype(np.uint32))
    if len(events.value):
        _dataset(group, "value", events.value)


def _pack_levels(levels: Levels) -> str:
    return json.dumps([levels.magnitudes, levels.signed])


def _unpack_levels(text: str) -> Levels:
    magnitudes, signed = json.loads(text)
    return Levels(None if magnitudes is None else tuple(float(m) for m in magnitudes), bool(signed))


def _dataset(group: h5py.Group, name: str, values: np.ndarray) -> None:
    if values.nbytes <= 2048:  # a chunk's index would be larger than the data
        group.create_dataset(name, data=values)
        return
    chunks = (min(len(values), _CHUNK), *values.shape[1:])
    group.create_dataset(name, data=values, chunks=chunks, compression="gzip", compression_opts=4, shuffle=True)


def _write_recording(group: h5py.Group, recording: Recording, names: list[str]) -> None:
    group.attrs["label"], group.attrs["note"] = recording.label, recording.note
    group.attrs["classes"] = json.dumps(recording.classes)
    _dataset(group, "input", recording.input)
    for name, spikes in recording.spikes.items():
        key = f"spikes/{names.index(name):04d}"
        _dataset(group, key, spikes)
    if recording.output is not None:
        group["output"] = recording.output


def load(path: str | PathLike[str]) -> EventTrace:
    """Read and check a trace file; see `EventTrace.load`."""
    where = os.fspath(path)
    if not Path(path).is_file():
        raise SpikingError(f"{where}: there is no such file. Record a trace and save it first.")
    try:
        with h5py.File(path, "r") as file:
            _check_header(file, where)
            trace = _read(file)
    except SpikingError:
        raise
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError) as err:
        reason = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise SpikingError(f"{where}: this is not a readable trace ({reason}). Record it again.") from err
    for layer in trace.layers:
        _check_layer(layer, trace, where)
    trace.merged_from.append(hashlib.sha256(Path(path).read_bytes()).hexdigest())
    return trace


def _check_header(file: h5py.File, where: str) -> None:
    if file.attrs.get("format") != FORMAT:
        raise SpikingError(f"{where}: got an HDF5 file that is no trace; expected one written by EventTrace.save.")
    schema = str(file.attrs.get("schema", ""))
    if schema.partition(".")[0] != SCHEMA.partition(".")[0]:
        raise SpikingError(f"{where}: got trace schema {schema}; this version reads {SCHEMA}. Update spiking.")
    if _minor(schema) > _minor(SCHEMA):
        warnings.warn(
            f"{where}: got trace schema {schema}; this version knows {SCHEMA} and reads what it knows.", stacklevel=4
        )
    if not bool(file.attrs.get("complete", False)):
        raise SpikingError(f"{where}: the trace is incomplete: its run ended before it was saved. Record it again.")


def _minor(schema: str) -> int:
    minor = schema.partition(".")[2]
    return int(minor) if minor.isdigit() else 0


def _read(file: h5py.File) -> EventTrace:
    a = file.attrs
    dt, seed = float(a["dt_s"]), int(a["seed"])
    trace = EventTrace(
        n_steps=int(a["n_steps"]),
        n_samples=int(a["n_samples"]),
        model_name=str(a["model_name"]),
        model_hash=str(a["model_hash"]),
        data_id=str(a["data_id"]),
        seed=None if seed < 0 else seed,
        dt=None if np.isnan(dt) else dt,
        dtype=str(a["dtype"]),
        device=str(a["device"]),
        created=str(a["created_utc"]),
        software=json.loads(a["software"]),
        merged_from=json.loads(a["merged_from"]),
        precision=_read_precision(a.get("precision", "{}")),
    )
    layers = file["layers"]
    trace.layers = [_read_layer(layers[key], trace.n_steps) for key in sorted(layers)]
    for key in sorted(file.get("events", {})):
        group = file["events"][key]
        parts = [_values(group, name) for name in ("sample", "step", "index")]
        value = [_values(group, "value")] if "value" in group else []
        trace.layers[int(key)].events = Events(*parts, *value)
    names = [layer.name for layer in trace.layers]
    for key in sorted(file.get("recordings", {})):
        group = file["recordings"][key]
        trace.recordings.append(
            Recording(
                _values(group, "input"),
                {names[int(i)]: _values(group["spikes"], i) for i in sorted(group.get("spikes", {}))},
                _values(group, "output") if "output" in group else None,
                str(group.attrs["label"]),
                tuple(json.loads(group.attrs["classes"])),
                str(group.attrs["note"]),
            )
        )
    return trace


def _read_precision(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if found:
        bits = (found["weight_bits"], found["state_bits"])
        if not all(isinstance(b, int) and 2 <= b <= 32 for b in bits):
            raise ValueError(f"it states a precision of {bits[0]} and {bits[1]} bits")
        accuracy = found["accuracy"]
        if accuracy is not None and not 0 <= float(accuracy) <= 1:
            raise ValueError(f"it states an accuracy of {accuracy}")
        found = {name: found[name] for name in ("weight_bits", "state_bits", "accuracy", "samples")}
    return found


def _read_layer(group: h5py.Group, n_steps: int) -> LayerTrace:
    a = group.attrs
    fields: dict[str, Any] = {name: str(a[name]) for name in ("name", "module", "kind", "folded_into")}
    fields |= {name: a[name].item() for name in _STATIC}
    fields |= {name: bool(a[name]) for name in _FLAGS}
    fields |= {name: tuple(int(n) for n in a[name]) for name in ("in_shape", "out_shape", "weight_shape")}
    fields |= {name: json.loads(a[name]) for name in ("config", "neuron")}
    fields |= {name: _values(group, name) for name in _ARRAYS}
    if fields["kind"] not in (*WEIGHT_KINDS, *OTHER_KINDS):
        raise ValueError(f"layer {fields['name']} is of an unknown kind {fields['kind']}")
    if group["in_numel"].shape != (n_steps,):
        raise ValueError(f"layer {fields['name']} has not {n_steps} steps")
    if not isinstance(fields["config"], dict) or not isinstance(fields["neuron"], dict):
        raise ValueError(f"layer {fields['name']} has no readable description")
    for op, number in dict(fields["neuron"].get("ops", {})).items():
        if not 0 <= float(number) < 1e6:
            raise ValueError(f"layer {fields['name']} needs {number} of the operation {op}")
    layer = LayerTrace(
        **fields,
        n_steps=n_steps,
        operand_of=tuple(json.loads(a["operand_of"])),
        levels=_unpack_levels(a["levels"]),
    )
    if "levels_right" in a:
        layer.levels_right = _unpack_levels(a["levels_right"])
    if "levels_step" in a:
        layer.levels_step = [_unpack_levels(text) for text in json.loads(a["levels_step"])]
    for name in _ROWS:
        if name in group:
            setattr(layer, name, _values(group, name))
    if "active_rows" in group:
        sizes = group["active_rows"].attrs["sizes"]
        layer.active_rows = dict(zip((int(n) for n in sizes), (int(n) for n in _values(group, "active_rows"))))
    for name in COUNTERS:
        if name in group:
            layer.counts[name] = _values(group, name)
    return layer


def _values(group: h5py.Group, name: str) -> np.ndarray:
    """A dataset's values; its size is looked at first, since a small file may claim a huge one."""
    dataset = group[name]
    if dataset.nbytes > _MAX_BYTES:
        raise ValueError(f"{dataset.name} claims {dataset.nbytes} bytes")
    if dataset.dtype.kind not in "biuf":
        raise ValueError(f"{dataset.name} holds no numbers")
    return dataset[()]


def _check_layer(layer: LayerTrace, trace: EventTrace, where: str) -> None:
    """Refuse counters that contradict each other."""

    def refuse(what: str) -> None:
        raise SpikingError(f"{where}: layer {layer.name}: {what}; the counters contradict each other. Record it again.")

    c = layer.counts
    for name, values in c.items():
        if values.shape != (trace.n_steps,):
            refuse(f"got {name} of shape {list(values.shape)} with {trace.n_steps} steps")
        if (values < 0).any():
            refuse(f"got a negative {name}")
    if not np.isfinite(layer.in_abs_sum).all():
        refuse("got an in_abs_sum that is not finite")
    if (c["syn"] > layer.dense * trace.n_samples).any():
        refuse(f"got {c['syn'].max()} synaptic operations of at most {layer.dense * trace.n_samples}")
    if layer.kind != "matmul" and (c["syn_eff"] > c["syn"]).any():
        refuse("got more effective synaptic operations than synaptic operations")
    if (c["in_nnz"] > c["in_numel"]).any():
        refuse("got more non-zeros than elements")
    if (c["spikes"] > c["updates"]).any():
        refuse("got more spikes than neuron updates")
    if layer.kind == "neuron" and layer.spike_count.sum() != c["spikes"].sum():
        refuse(f"got {layer.spike_count.sum()} spikes over neurons and {c['spikes'].sum()} over steps")
    if layer.is_weight_layer and int(layer.spike_count @ layer.fan_out) != c["syn"].sum():
        refuse(
            f"got {int(layer.spike_count @ layer.fan_out)} synaptic operations by fan-out and {c['syn'].sum()} by step"
        )
    for name in _ROWS:
        if not np.isfinite(getattr(layer, name)).all():
            refuse(f"got {name} that is not finite")
    if layer.row_siemens.size and (
        layer.row_siemens.shape != (math.prod(layer.weight_shape[1:]),) or (layer.row_siemens < 0).any()
    ):
        refuse(f"got row_siemens of {layer.row_siemens.size} rows of a weight {list(layer.weight_shape)}, or negative")
    if any(n < 0 for n in layer.active_rows.values()):
        refuse("got negative active_rows")
    if layer.events is not None:
        _check_events(layer, layer.events, trace, refuse)
    if len(layer.syn_sample) not in (0, trace.n_samples):
        refuse(f"got figures of {len(layer.syn_sample)} samples of {trace.n_samples}")


def _check_events(layer: LayerTrace, events: Events, trace: EventTrace, refuse: Callable[[str], None]) -> None:
    n = len(events)
    if any(len(part) != n for part in (events.sample, events.step)) or len(events.value) not in (0, n):
        refuse("got lists of events of different lengths")
    limits = ((events.sample, trace.n_samples), (events.step, trace.n_steps), (events.index, layer.spike_count.size))
    if n and any(int(part.max()) >= limit for part, limit in limits):
        refuse("got events outside of the run")
    expected = int(layer.counts["spikes" if layer.kind == "neuron" else "in_nnz"].sum())
    if n != expected:
        refuse(f"got {n} events and a count of {expected}")
