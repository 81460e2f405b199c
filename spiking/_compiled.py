"""Neighbouring layers that the engine runs: the plan for the weights of today, and their states in the plain model's terms and back."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spiking.cuda_kernels import backend
from spiking.cuda_kernels.ops import state_dtype

from . import _stages
from ._stages import Layout
from .errors import SpikingError
from .neuron import Recurrent, RecurrentState

_PARALLEL = 1 << 16  # neurons and steps of all rows, below which waking a second thread costs more than it saves


# Numbers and rules of a layer that are folded into a plan.
_FOLLOWED = ("beta", "beta_syn", "threshold", "rule", "eps", "alpha")
_version_of = operator.attrgetter("_version")


class Snapshot:
    """What plans were made from: tensors by identity, version and address, numbers and rules by identity. `holds` runs at every call."""

    __slots__ = ("_addresses", "_ids", "_objects", "_places", "_tensors", "_versions")

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        found: list[tuple[dict[str, Any], str, Any]] = []
        for module in (module for layer in layers for module in layer.modules()):
            for table in (module._parameters, module._buffers):
                found += [(table, key, value) for key, value in table.items() if key != "num_batches_tracked"]
            found += [(module.__dict__, key, module.__dict__[key]) for key in _FOLLOWED if key in module.__dict__]
        self._places = [(table, key) for table, key, _ in found]
        self._objects = [value for _, _, value in found]
        self._ids = list(map(id, self._objects))
        self._tensors = [value for value in self._objects if isinstance(value, Tensor)]
        # Tensors made in inference mode count no versions: what holds one never holds.
        self._versions = None if any(t.is_inference() for t in self._tensors) else list(map(_version_of, self._tensors))
        self._addresses = list(map(Tensor.data_ptr, self._tensors))

    def holds(self) -> bool:
        """Whether nothing has changed."""
        return (
            self._versions is not None
            and list(map(_version_of, self._tensors)) == self._versions
            and list(map(Tensor.data_ptr, self._tensors)) == self._addresses
            and [id(table.get(key)) for table, key in self._places] == self._ids
        )


class Leaf(NamedTuple):
    """One layer of the chain, its name in the model and the shape of one row of its input."""

    name: str
    layer: Any
    role: str
    reason: str
    shape: tuple[int, ...]


@dataclass
class Prepared:
    """A plan and what it points to, for one set of weights."""

    plan: Any
    stages: list[_stages.Stage]
    rest: Tensor
    width: int
    kept: list[Any]


class Compiled:
    """Neighbouring layers that the engine runs: groups, sizes, and the plan for the weights of today."""

    def __init__(self, leaves: Sequence[Leaf], out_shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.leaves, self.out_shape = leaves, out_shape
        self.given, self.dtype = (
            dtype,
            state_dtype(dtype),
        )  # of what goes in and out, and of weights, currents and states
        self.in_shape = leaves[0].shape
        self.groups = _stages.groups_of([(leaf.role, leaf.layer, leaf.shape) for leaf in leaves])
        self.prepared = self.prepare()
        rows, self.neurons = 0, []
        for group, stage in zip(self.groups, self.prepared.stages):
            rows += len(stage.out.place)
            if group.neuron is not None:
                self.neurons.append((group.neuron, stage.out, stage.sizes[-1]))
        self.work = rows

    def prepare(self) -> Prepared:
        """Fold the weights as they are now."""
        for leaf in self.leaves:
            for tensor in leaf.layer.parameters():
                if not bool(tensor.isfinite().all()):
                    raise SpikingError(
                        f'layer "{leaf.name}": got weights that are not finite; expected numbers, since silent inputs are skipped. '
                        "Run the model itself."
                    )
        layout, state, stages, rests = Layout.plain(self.in_shape), 0, [], []
        for group in self.groups:
            stage = _stages.fold(group, layout, self.dtype, state)
            if group.neuron is not None:
                n = -(-len(stage.out.place) // 16) * 16
                rest = torch.zeros(n * _state_rows(group.neuron), dtype=self.dtype)
                rest[:n] = _inner(group.neuron).rule.v_leak
                state += len(rest)
                rests.append(rest)
            stages.append(stage)
            layout = stage.out
        rest = torch.cat(rests) if rests else torch.zeros(0, dtype=self.dtype)
        place = layout.place.astype(np.int64)
        place[place < 0] = _stages.NOWHERE
        place = place.astype(np.uint32)
        n_in, n_out = math.prod(self.in_shape), math.prod(self.out_shape)
        wide = self.dtype == torch.float64
        module: Any = backend.compiled()
        plan = module.EnginePlan([place.ctypes.data, rest.data_ptr()], [n_in, n_out, len(rest)], wide)
        for stage in stages:
            plan.add(stage.addresses, stage.sizes, stage.numbers)
        return Prepared(plan, stages, rest, len(rest), [place])

    def run(
        self, x: Tensor, lead: tuple[int, ...], rows: Tensor | None, beta: float | None = None, margin: float = -1.0
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """x [*lead, *in], lead (T, B) or (B,) -> output, state rows [B, S], membrane (with beta), sums and steps (with margin >= 0)."""
        now = self.prepared
        batch = lead[-1]
        steps = lead[0] if len(lead) > 1 else 1
        x = x.to(self.dtype).contiguous()
        out = torch.empty((*lead, *self.out_shape), dtype=self.dtype)
        after = torch.empty((batch, now.width), dtype=self.dtype)
        membrane = None if beta is None else torch.empty_like(out)
        sums = taken = None
        if margin >= 0:
            out.zero_()  # a row that stops early has no output after it
            sums = torch.zeros((batch, math.prod(self.out_shape)), dtype=torch.float64)
            taken = torch.empty(batch, dtype=torch.int64)
            if membrane is not None:
                membrane.zero_()
        threads = min(backend.threads(), batch) if batch > 1 and batch * steps * self.work >= _PARALLEL else 1
        now.plan.run(
            x.data_ptr(),
            out.data_ptr(),
            address(rows),
            after.data_ptr(),
            steps,
            batch,
            threads,
            address(membrane),
            beta or 0.0,
            margin,
            address(sums),
            address(taken),
        )
        membrane = None if membrane is None else membrane.to(self.given)
        return out.to(self.given), after, membrane, sums, taken

    def rows_of(self, states: Sequence[Any], batch: int) -> Tensor | None:
        """State rows [B, S] from the plain states of these layers; None where all of them are at rest."""
        given = [state for leaf, state in zip(self.leaves, states) if leaf.role == "neuron"]
        if all(state is None for state in given):
            return None
        rows = self.prepared.rest.expand(batch, -1).clone()
        for state, (neuron, layout, at) in zip(given, self.neurons):
            if state is None:
                continue
            n, inside = len(layout.place), torch.from_numpy(layout.inside)
            for k, value in enumerate(_values(neuron, state)):
                if value is None:
                    continue
                if value.shape != (batch, *layout.shape):
                    raise SpikingError(
                        f"{type(neuron).__name__}: got a state of shape {list(value.shape)}; expected {[batch, *layout.shape]}. "
                        "Use state=None to start at rest."
                    )
                rows[:, at + k * n + inside] = value.detach().flatten(1).to(self.dtype)
        return rows

    def states_of(self, rows: Tensor) -> list[Any]:
        """The plain states of these layers, one each."""
        found: list[Any] = []
        neurons = iter(self.neurons)
        for leaf in self.leaves:
            if leaf.role != "neuron":
                found.append(None)
                continue
            neuron, layout, at = next(neurons)
            n, inside = len(layout.place), torch.from_numpy(layout.inside)
            values = [rows[:, at + k * n + inside].unflatten(1, layout.shape) for k in range(_state_rows(neuron))]
            if isinstance(neuron, Recurrent):
                values[-1] = values[-1].to(self.given)
            found.append(_state_from(neuron, values))
        return found


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _inner(neuron: Any) -> Any:
    return neuron.neuron if isinstance(neuron, Recurrent) else neuron


def _state_rows(neuron: Any) -> int:
    return _inner(neuron).rule.n_states + isinstance(neuron, Recurrent)


def _values(neuron: Any, state: Any) -> list[Tensor | None]:
    """A plain state as rows in the engine's order: v, then the second variable, the steps of rest, the last spikes."""
    expected = RecurrentState if isinstance(neuron, Recurrent) else neuron.state_type
    if not isinstance(state, expected):
        raise SpikingError(
            f"{type(neuron).__name__}: got a state of type {type(state).__name__}; expected {expected.__name__}."
        )
    if isinstance(state, RecurrentState):
        return [*_values(neuron.neuron, state.neuron), state.spikes]
    return list(state)[: neuron.rule.n_states]


def _state_from(neuron: Any, values: list[Tensor]) -> Any:
    if isinstance(neuron, Recurrent):
        return RecurrentState(_state_from(neuron.neuron, values[:-1]), values[-1])
    return neuron.state_type(*values)
