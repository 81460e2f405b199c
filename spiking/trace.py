"""What a run did: who spiked, and what that touched.

`record` watches a model without changing its results and fills an `EventTrace`: per layer and time step the exact
number of synaptic operations, the class of the operand (binary spikes, graded values, analogue values), neuron
updates and spikes. A trace is all that an energy estimate needs; it is saved as one HDF5 file.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from spiking._counters import CLASSES, Levels
from spiking.errors import SpikingError

if TYPE_CHECKING:
    from torch import nn

    from spiking._recorder import Recorder

COUNTERS = (
    "in_numel",
    "in_nnz",
    "syn",
    "syn_eff",
    "bias_adds",
    "add_ops",
    "add_ops_event",
    "pool_adds",
    "pool_cmps",
    "and_ops",
    "updates",
    "updates_active",
    "spikes",
    "out_nnz",
)
"""Counters of a layer: int64, one value per time step, summed over the samples."""

OTHER_KINDS = ("neuron", "avgpool", "maxpool", "norm", "add", "matmul")
WEIGHT_KINDS = (
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "convtranspose1d",
    "convtranspose2d",
    "convtranspose3d",
)


@dataclass
class Events:
    """Where the non-zero elements of one tensor were: `sample`, `step`, `index` (flat, C order), uint32 [n], sorted so.

    `value` float32 [n], or empty if all are 1.
    """

    sample: np.ndarray
    step: np.ndarray
    index: np.ndarray
    value: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __len__(self) -> int:
        return len(self.index)

    def followed_by(self, other: Events, samples: int) -> Events:
        """These events and those of further samples, which are counted on from `samples`."""
        value = self.value
        if len(self.value) != len(other.value) or len(self.value) or len(other.value):
            value = np.concatenate([e.value if len(e.value) else np.ones(len(e), np.float32) for e in (self, other)])
        return Events(
            np.concatenate([self.sample, other.sample + np.uint32(samples)]),
            np.concatenate([self.step, other.step]),
            np.concatenate([self.index, other.index]),
            value,
        )


@dataclass
class LayerTrace:
    """One row of a trace: a layer's shapes and its counters per time step, summed over the samples.

    `counts[name]` is int64 [n_steps] for every name in `COUNTERS`; `in_abs_sum` float64 [n_steps]; `spike_count`
    int64 [N], spikes (neuron rows) or operand non-zeros (weight rows) of each element over the run; `syn_sample`,
    `updates_sample`, `spikes_sample` int64 [n_samples]. `dense` and `dense_padded` are per sample and step.
    `row_abs_w` float32 [inputs of one output, all groups]: Σ|w| over the outputs of each row of the weight matrix.
    `row_siemens` float64, likewise: ΣG over the memory cells of each row, if the layer is on an array of them; then
    `config["cell"]` has their name, volts and seconds of a read [low, nominal, high], seconds since writing and kelvin.
    `active_rows`: size of a block of such rows → (position, block) pairs with a non-zero operand over the run; `events`
    where each non-zero operand or spike was. Both only where `record` was asked for them.
    A "matmul" row is a product [.., M, K] × [.., K, N] of two activations: `levels` are those of the left operand,
    `levels_right` of the right one; `in_nnz` counts the left; `syn` and `syn_eff` are the additions if only the left or
    only the right operand were spikes, `and_ops` the products in which both are not zero.
    """

    name: str
    module: str
    kind: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    n_steps: int
    weight_shape: tuple[int, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    params: int = 0
    w_nnz: int = 0
    w_abs_mean: float = 0.0
    w_abs_max: float = 0.0
    bias: bool = False
    dense: int = 0
    dense_padded: int = 0
    neuron: dict[str, Any] = field(default_factory=dict)
    operand_of: tuple[str, ...] = ()
    folded_into: str = ""
    train_mode: bool = False
    repeated_input: bool = False
    levels: Levels = field(default_factory=Levels)
    levels_step: list[Levels] = field(default_factory=list, repr=False)
    levels_right: Levels = field(default_factory=Levels)
    counts: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    in_abs_sum: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    spike_count: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    fan_out: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    syn_sample: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    updates_sample: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    spikes_sample: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    row_abs_w: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32), repr=False)
    row_siemens: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    active_rows: dict[int, int] = field(default_factory=dict, repr=False)
    events: Events | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        zeros = np.zeros((len(COUNTERS), self.n_steps), np.int64)
        self.counts = {name: self.counts.get(name, zeros[i]) for i, name in enumerate(COUNTERS)}
        if self.in_abs_sum.size == 0:
            self.in_abs_sum = np.zeros(self.n_steps)
        if not self.levels_step:
            self.levels_step = [Levels() for _ in range(self.n_steps)]

    @property
    def operand_class(self) -> str:
        """Class of the operand over the whole run, one of `spiking._counters.CLASSES`."""
        return self.levels.classify()[0]

    @property
    def operand_scale(self) -> float:
        """Scale of which every operand value is an integer multiple; 1 for binary, ternary and analogue operands."""
        return self.levels.classify()[1]

    @property
    def class_step(self) -> list[str]:
        """Class of the operand of each step alone."""
        return [levels.classify()[0] for levels in self.levels_step]

    @property
    def is_weight_layer(self) -> bool:
        """True for the rows that have synaptic operations."""
        return self.kind in WEIGHT_KINDS

    @property
    def n_inputs(self) -> int:
        """Elements of one sample's operand."""
        return int(np.prod(self.in_shape, dtype=np.int64))

    @property
    def n_outputs(self) -> int:
        """Elements of one sample's output; for a neuron row the number of neurons."""
        return int(np.prod(self.out_shape, dtype=np.int64))

    @property
    def calls(self) -> np.ndarray:
        """Samples that passed in each step, int64 [n_steps]."""
        return self.counts["in_numel"] // max(self.n_inputs, 1)

    @property
    def ac(self) -> np.ndarray:
        """Accumulates per step: one per synaptic operation where the operand is spikes, signed or scaled spikes."""
        if self.kind == "matmul":
            sides = _are_spikes(self.levels), _are_spikes(self.levels_right)
            name = {(True, True): "and_ops", (True, False): "syn", (False, True): "syn_eff"}.get(sides)
            return self.counts[name] if name else np.zeros(self.n_steps, np.int64)
        spikes = self.is_weight_layer and self.operand_class not in ("graded", "analogue")
        return self.counts["syn"] if spikes else np.zeros(self.n_steps, np.int64)

    @property
    def mac(self) -> np.ndarray:
        """Multiply-accumulates per step: one per event of a graded operand, every connection of an analogue one."""
        if self.kind == "norm":
            return np.zeros(self.n_steps, np.int64) if self.folded_into else self.counts["in_numel"]
        if self.kind == "matmul":
            neither = not (_are_spikes(self.levels) or _are_spikes(self.levels_right))
            return self.dense * self.calls if neither else np.zeros(self.n_steps, np.int64)
        if not self.is_weight_layer or self.operand_class not in ("graded", "analogue"):
            return np.zeros(self.n_steps, np.int64)
        return self.counts["syn"] if self.operand_class == "graded" else self.dense * self.calls

    @property
    def mac_sparse(self) -> np.ndarray:
        """Multiply-accumulates per step on hardware that skips zeros: those that meet a non-zero operand."""
        return np.minimum(self.mac, self.counts["syn"]) if self.is_weight_layer else self.mac

    @property
    def mac_sample(self) -> np.ndarray:
        """Multiply-accumulates of each sample over its steps, int64 [n_samples]."""
        if self.is_weight_layer and self.operand_class == "graded":
            return self.syn_sample
        total = int(self.mac.sum())
        n = max(len(self.syn_sample), 1)
        return np.full(len(self.syn_sample), total // n, np.int64)

    @property
    def firing_rate(self) -> float:
        """Spikes per neuron and step of a neuron row, 0…1."""
        updates = int(self.counts["updates"].sum())
        return int(self.counts["spikes"].sum()) / updates if updates else 0.0

    @property
    def silent(self) -> int:
        """Neurons of a neuron row that never spiked."""
        return int((self.spike_count == 0).sum()) if self.kind == "neuron" else 0

    @property
    def saturated(self) -> int:
        """Neurons of a neuron row that spiked in at least 90 % of all steps of all samples."""
        if self.kind != "neuron" or not self.spike_count.size:
            return 0
        chances = int(self.counts["updates"].sum()) // self.spike_count.size
        return int((self.spike_count >= 0.9 * chances).sum()) if chances else 0


def _are_spikes(levels: Levels) -> bool:
    return levels.classify()[0] not in ("graded", "analogue")


@dataclass
class Recording:
    """One sample kept whole, for looking at: its input, the spikes of every neuron layer, the model's output.

    Shapes: input [T, *], each of spikes [T, *] uint8, output as the model returned it, without the batch axis.
    `label`, `classes` and `note` are the caller's, and are shown as they are.
    """

    input: np.ndarray
    spikes: dict[str, np.ndarray]
    output: np.ndarray | None = None
    label: str = ""
    classes: tuple[str, ...] = ()
    note: str = ""

    @property
    def prediction(self) -> str:
        """The class with the largest output, summed over time; empty if the model's output has no class axis."""
        if self.output is None or self.output.ndim == 0 or self.output.ndim > 2 or not self.output.size:
            return ""
        scores = self.output.sum(0) if self.output.ndim == 2 else self.output
        best = int(scores.argmax())
        return self.classes[best] if best < len(self.classes) else str(best)


@dataclass
class EventTrace:
    """Counters of a run, layer by layer in the order of execution, with where they come from.

    `layers` holds one `LayerTrace` per row; `recordings` the samples kept whole; `software` the versions; `model_hash`
    the sha256 of the weights, `precision` the model's bits and the accuracy measured at them (`weight_bits`, `state_bits`,
    `accuracy`, `samples`), if the model states them as `model.precision`. Save with `save`, read with `load`, join runs of
    one model with `merge`.

    >>> import torch, spiking
    >>> model = torch.nn.Linear(6, 4)
    >>> x = torch.zeros(3, 1, 6)                  # [T, B, features]
    >>> x[0, 0, :2] = 1.0
    >>> with spiking.record(model) as trace:
    ...     _ = model(x)
    >>> layer = trace.layers[0]
    >>> layer.operand_class, layer.counts["syn"].tolist(), layer.counts["bias_adds"].tolist()
    ('binary', [8, 0, 0], [4, 4, 4])
    """

    n_steps: int = 0
    n_samples: int = 0
    layers: list[LayerTrace] = field(default_factory=list, repr=False)
    recordings: list[Recording] = field(default_factory=list, repr=False)
    model_name: str = ""
    model_hash: str = ""
    data_id: str = ""
    seed: int | None = None
    dt: float | None = None
    dtype: str = ""
    device: str = ""
    created: str = ""
    software: dict[str, str] = field(default_factory=dict)
    merged_from: list[str] = field(default_factory=list)
    precision: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> LayerTrace:
        """The row of that name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        names = ", ".join(layer.name for layer in self.layers)
        raise SpikingError(f"EventTrace: got layer name {name!r}; expected one of: {names}.")

    @property
    def recurrent(self) -> bool:
        """True if some layer reads spikes of the previous step: the equal ANN must then see every step, too."""
        return any(layer.config.get("recurrent") for layer in self.layers)

    @property
    def neurons(self) -> list[LayerTrace]:
        """The neuron rows."""
        return [layer for layer in self.layers if layer.kind == "neuron"]

    @property
    def firing_rates(self) -> dict[str, float]:
        """Spikes per neuron and step of each neuron row, 0…1."""
        return {layer.name: layer.firing_rate for layer in self.neurons}

    def spike_matrix(self, row: LayerTrace) -> Any:
        """Non-zero operands (weight rows) or spikes (neuron rows) as a scipy sparse array [samples·steps, elements].

        None if the trace holds no events for the row.
        """
        events = row.events
        if events is None and row.operand_of and row.is_weight_layer:
            before = next((r for r in self.layers if r.name == row.operand_of[0]), None)
            events = before.events if before is not None and before.n_outputs == row.n_inputs else None
        if events is None:
            return None
        from scipy.sparse import csr_array

        where = events.sample.astype(np.int64) * self.n_steps + events.step
        shape = (self.n_samples * self.n_steps, row.n_inputs)
        return csr_array((np.ones(len(events)), (where, events.index.astype(np.int64))), shape=shape)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the trace to an HDF5 file, which appears under its name only when it is complete."""
        from spiking._tracefile import save

        save(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> EventTrace:
        """Read and check a trace file.

        Errors: SpikingError naming the file if it is cut, foreign, written by a newer major version, or if its
        counters contradict each other.
        """
        from spiking._tracefile import load

        return load(path)

    @classmethod
    def merge(cls, traces: Sequence[EventTrace]) -> EventTrace:
        """Join runs of one model over different samples: counters add, samples follow each other.

        Errors: SpikingError naming both values if the runs differ in model, time steps or layers.
        """
        if not traces:
            raise SpikingError("EventTrace.merge: got no traces; expected at least one.")
        whole = copy.deepcopy(traces[0])
        for other in traces[1:]:
            for what in ("model_hash", "n_steps"):
                ours, theirs = getattr(whole, what), getattr(other, what)
                if ours != theirs:
                    raise SpikingError(f"EventTrace.merge: got {what} {ours} and {theirs}; expected one and the same.")
            ours, theirs = (
                [(row.name, row.kind, row.in_shape, row.out_shape) for row in t.layers] for t in (whole, other)
            )
            if ours != theirs:
                differing = next((a, b) for a, b in zip([*ours, None], [*theirs, None]) if a != b)
                raise SpikingError(
                    f"EventTrace.merge: got layers {differing[0]} and {differing[1]}; expected the same."
                )
            for mine, more in zip(whole.layers, other.layers):
                join_layer(mine, more)
            whole.n_samples += other.n_samples
            whole.recordings += other.recordings
            whole.merged_from += [h for h in other.merged_from if h not in whole.merged_from]
        return whole


def join_layer(mine: LayerTrace, more: LayerTrace) -> None:
    """Add the counters of `more` (other samples of the same layer) to `mine`."""
    for name, values in more.counts.items():
        if values.any():
            mine.counts[name] = mine.counts[name] + values
    mine.in_abs_sum = mine.in_abs_sum + more.in_abs_sum
    mine.spike_count = mine.spike_count + more.spike_count
    mine.levels = mine.levels.join(more.levels)
    mine.levels_right = mine.levels_right.join(more.levels_right)
    mine.levels_step = [a.join(b) for a, b in zip(mine.levels_step, more.levels_step)]
    mine.repeated_input = mine.repeated_input and more.repeated_input
    mine.train_mode = mine.train_mode or more.train_mode
    mine.folded_into = mine.folded_into if mine.folded_into == more.folded_into else ""
    if mine.operand_of != more.operand_of:
        mine.operand_of = ()
    shared = mine.active_rows.keys() & more.active_rows.keys()
    mine.active_rows = {size: mine.active_rows[size] + more.active_rows[size] for size in sorted(shared)}
    both = mine.events is not None and more.events is not None
    mine.events = mine.events.followed_by(more.events, len(mine.syn_sample)) if both else None  # type: ignore[union-attr,arg-type]
    for name in ("syn_sample", "updates_sample", "spikes_sample"):
        setattr(mine, name, np.concatenate([getattr(mine, name), getattr(more, name)]))


def record(
    model: nn.Module,
    *,
    keep_spikes: int = 0,
    events: bool = False,
    active_rows: bool = False,
    steps: int | None = None,
    step_by_step: bool = False,
    data_id: str = "",
    seed: int | None = None,
    dt: float | None = None,
    to: str | PathLike[str] | None = None,
) -> Recorder:
    """Watch a model: every forward pass inside the `with` block adds its counts to the trace.

    Weight layers (nn.Linear, nn.Conv*, nn.ConvTranspose*), poolings, norms, spiking neurons, and additions and matrix
    products of two tensors of which such a layer made at least one, are seen wherever they sit in the model. Results of
    the model stay as they are, bit for bit; several passes of the same number of steps are joined.

    Shapes: the model's first argument is [T, B, *]. A layer may get [T, B, *], [T·B, *], or one step [B, *] at a time.
    `steps` states T for a model whose input has no time axis (it repeats or encodes its input itself). With
    `step_by_step=True` the loop over time lies outside of the model: each call is one step [B, *], and `steps` calls make one
    pass. Neurons of snnTorch, SpikingJelly, Norse and sinabs are known by name; models with sinabs neurons take [B, T, *].
    `keep_spikes` keeps the input, spikes and output of that many first samples in `trace.recordings`.
    `events` keeps where every spike was, which the latency of a mesh needs; 12 bytes a spike. `active_rows` counts the row
    blocks of memory arrays that hold a spike, which is slow for convolutions. With `to`, a file name, the trace is written there:
    events after each pass, so that a long run fills no memory (read them with `EventTrace.load`: `events` stay out of the trace
    in memory), everything else when the block ends. The file appears under its name only when it is complete.
    Inside the block, rows that somebody holds are brought up to date when the trace is looked at; after it, all are complete.
    Only passes of the thread that opened the block are counted. Hooks come and go with the block, and torch asks that no other thread
    runs the model in that moment.
    Units: dt in seconds per step.
    Errors: SpikingError naming the layer, if an operand holds NaN or Inf, its shape fits none of the three, or a neuron of
    another library is not known; SpikingError if a pass ends before its last step.

    >>> import torch, spiking
    >>> model = torch.nn.Conv2d(1, 2, 3, padding=1)
    >>> with spiking.record(model) as trace:
    ...     _ = model(torch.ones(1, 1, 4, 4))      # T·B = 1 frame of 4 × 4 spikes: corners reach 4 positions, edges 6
    >>> trace.layers[0].counts["syn"].tolist(), trace.layers[0].dense_padded
    ([200], 288)
    """
    from spiking._recorder import Recorder

    return Recorder(
        model,
        keep_spikes=keep_spikes,
        events=events,
        active_rows=active_rows,
        steps=steps,
        step_by_step=step_by_step,
        data_id=data_id,
        seed=seed,
        dt=dt,
        to=to,
    )


__all__ = ["CLASSES", "COUNTERS", "EventTrace", "Events", "LayerTrace", "Recording", "record"]
