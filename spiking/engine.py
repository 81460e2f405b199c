"""Compiled event networks: a trained model as one call that runs all its layers over all time steps, for inference on the CPU.

`compile_events(model, example)` folds what lies between two neurons (convolution or linear layer, batch normalisation, pooling) into
one stage, and runs the stages at the cost of the spikes that there are: a silent input adds nothing, a spike adds the weights that it
reaches. Spikes go from stage to stage as lists of indices, membranes stay in cache, Python is entered once a call.

Accuracy: neurons follow the same arithmetic as the plain model's, bit by bit; the currents that drive them are the same sums in another
order, so that a membrane may differ from the plain model's by at most (n + 4)·ε·A, where n is the number of inputs that were active, ε the
rounding unit of the dtype and A the sum of |weight·input| with the membrane's own leak over time. Only where it comes that near to the
threshold can a spike differ. In float64 that does not happen in practice, in float32 about once in a million neurons and steps.
A network in bfloat16 or float16 takes and gives that type, and computes in float32 from its 16-bit weights: the plain model rounds the
currents of each layer to 16 bits besides, so that there ε is the rounding unit of the 16-bit type.

>>> import torch, spiking
>>> model = spiking.Sequential(spiking.Linear(20, 8), spiking.LIF(beta=0.9), spiking.Linear(8, 3), spiking.LIF())
>>> x = (torch.rand(10, 4, 20) < 0.1).float()
>>> compiled = compile_events(model, x)
>>> compiled(x).shape
torch.Size([10, 4, 3])
>>> spikes, state = compiled.step(x[0])
>>> spikes.shape
torch.Size([4, 3])
"""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from spiking.cuda_kernels import backend

from . import _stages
from ._compiled import Compiled, Leaf, Snapshot, address
from .errors import SpikingError
from .layer import Sequential

__all__ = ["EarlyExit", "EventNetwork", "EventState", "Readout", "compile_events", "early_exit_cost"]

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
)  # that compile; the last two are computed in float32
_MOST = 1 << 34  # numbers that one call may give: beyond, events are surely damaged or dt is too short


class Readout(NamedTuple):
    """What decides: the mean over time of the output's "rate", or of a "membrane" that leaks by `beta` and never fires.

    A beta also offers that membrane with `return_membrane=True`, whatever decides.
    """

    kind: str = "rate"
    beta: float | None = None


@runtime_checkable
class Chain(Protocol):
    """A model that is a chain of layers although it is no `Sequential`: its state is a tuple with one entry for each of them."""

    def event_chain(self) -> tuple[Sequence[nn.Module], Readout]:
        """The layers in order (each may be a Sequential), and what decides."""


class EventState(Sequence[Any]):
    """Where a compiled network stands: what it needs itself, and, read as a tuple, the state of the plain model.

    It has one entry a layer, as the plain model's state has, made when it is asked for; either model continues from it.
    """

    __slots__ = ("_network", "_parts", "_seen")

    def __init__(self, network: EventNetwork, parts: tuple[Any, ...]) -> None:
        self._network, self._parts = network, parts
        self._seen: tuple[Any, ...] | None = None

    def _plain(self) -> tuple[Any, ...]:
        if self._seen is None:
            self._seen = self._network._as_plain(self._parts)
        return self._seen

    def __len__(self) -> int:
        return len(self._plain())

    def __getitem__(self, index: Any) -> Any:
        return self._plain()[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._plain())

    def __repr__(self) -> str:
        return f"EventState{self._plain()!r}"


class EventNetwork(nn.Module):
    """What `compile_events` returns: the model's call signature, for inference only.

    `network(x, state=None, return_state=False)`, `network.step(x_t, state)`, and, for a model whose readout is a membrane,
    `return_membrane=True`, as the model offers them; `scores(x)`, `run_events(events, dt)`, `report()`.
    It follows the model that it was made from (`network.model`): changed weights, statistics and thresholds are noticed at the next call
    (through torch's version counters; after a change past them, by `.data` or numpy, call `refresh()`). Layers put in afterwards are not.
    Not differentiable, CPU only. One network may be called from several threads.
    """

    model: nn.Module

    def __init__(self, model: nn.Module, modules: Sequence[nn.Module], readout: Readout, example: Tensor) -> None:
        super().__init__()
        self.__dict__["model"] = model  # not registered: its mode and device are its own
        self.training = False
        self._modules_in_order = tuple(modules)
        self.readout = readout
        names = {id(module): name for name, module in model.named_modules()}
        found = list(_leaves(modules, names))
        self._example = example[:2, :2].detach().clone()
        self._build(found)

    # --- making ---------------------------------------------------------------------------------------------------------------------

    def _build(self, found: list[tuple[str, Any]]) -> None:
        self._dtype = _dtype_of(self.model, self._example)
        whole = _why_nothing_compiles(self.model, self._dtype)
        leaves, out = _with_shapes(found, self._example, whole)
        self._leaves = leaves
        self.in_shape, self.out_shape = tuple(self._example.shape[2:]), out
        shapes = [leaf.shape for leaf in leaves[1:]] + [out]
        now = self._now()
        self._segments: list[Any] = []
        first = 0
        while first < len(leaves):
            last = first
            while last < len(leaves) and leaves[last].role != "plain":
                last += 1
            if last > first:
                self._segments.append(Compiled(leaves[first:last], shapes[last - 1], self._dtype))
            if last < len(leaves):
                self._segments.append(leaves[last])
                last += 1
            first = last
        self._only = self._segments[0] if len(self._segments) == 1 and isinstance(self._segments[0], Compiled) else None
        self._seen = now

    def _now(self) -> Snapshot:
        return Snapshot(leaf.layer for leaf in self._leaves if leaf.role != "plain")

    def refresh(self) -> None:
        """Take over the model's weights as they are now."""
        if _dtype_of(self.model, self._example) != self._dtype or _why_nothing_compiles(self.model, self._dtype):
            self._example = self._example.to(_dtype_of(self.model, self._example))
            self._build([(leaf.name, leaf.layer) for leaf in self._leaves])
            return
        now = self._now()  # before the weights are read: what changes from here on is noticed at the next call
        for segment in self._segments:
            if isinstance(segment, Compiled):
                segment.prepared = segment.prepare()
        self._seen = now

    # --- running --------------------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, state: Any = None, return_state: bool = False, return_membrane: bool = False) -> Any:
        """As the model: output [T, B, *]; with `return_membrane` the readout's membrane, with `return_state` the state after it."""
        x = self._checked(x, 2)
        beta = self._membrane_beta("return_membrane=True") if return_membrane else None
        out, parts, membrane = self._run(x, self._parts(state, x.shape[1]), beta)
        found: list[Any] = [out]
        if return_membrane:
            found.append(membrane)
        if return_state:
            found.append(EventState(self, parts))
        return tuple(found) if len(found) > 1 else out

    def step(self, x_t: Tensor, state: Any = None) -> tuple[Tensor, EventState]:
        """One time step: x_t [B, *] and the state before (None: at rest) -> output [B, *] and the state after."""
        x_t = self._checked(x_t, 1)
        batch = x_t.shape[0]
        parts = None if state is None else self._parts(state, batch)
        if self._only is not None:
            out, rows, _, _, _ = self._only.run(x_t, (batch,), None if parts is None else parts[0])
            return out, EventState(self, (rows,))
        out, after, _ = self._run(x_t.unsqueeze(0), parts, None)
        return out.squeeze(0), EventState(self, after)

    def scores(self, x: Tensor) -> Tensor:
        """What decides, [B, classes]: the mean over time of the readout's membrane, or of the output."""
        if self.readout.kind == "membrane":
            return self(x, return_membrane=True)[1].float().mean(0)
        return self(x).float().mean(0)

    def early_exit(self, x: Tensor, margin: float) -> tuple[Tensor, Tensor]:
        """Scores [B, classes], and for each row the steps [B] after which its best class was ahead for good, as `margin` has it.

        A row stops when the best score, were nothing to be added until the end, would lead the second by `margin`:
        best - second >= margin, each the sum so far divided by T. Its scores are the mean over the steps that were run. With a margin
        above 1, which a "rate" readout cannot reach, every step runs; `early_exit_cost` tells what a margin costs.
        Errors: SpikingError for a negative margin, or a network that was not compiled whole.
        """
        if not margin >= 0:
            raise SpikingError(
                f"early_exit.margin: got {margin}; expected a number >= 0. Call scores(x) to run every step."
            )
        if self._only is None:
            raise SpikingError(
                f"early_exit: got a network with layers that were not compiled ({self._why()}); expected none."
            )
        x = self._checked(x, 2)
        if x.shape[0] == 0:
            raise SpikingError("early_exit: got no time step; expected at least one.")
        beta = self.readout.beta if self.readout.kind == "membrane" else None
        _, _, _, sums, taken = self._only.run(x, tuple(x.shape[:2]), None, beta, margin)
        assert sums is not None
        assert taken is not None
        return (sums / taken[:, None]).to(torch.float32).reshape(len(taken), *self.out_shape), taken

    def run_events(
        self,
        events: Any,
        dt: float,
        *,
        start: int | None = None,
        steps: int | None = None,
        clip: bool = False,
        state: Any = None,
        return_state: bool = False,
        return_membrane: bool = False,
    ) -> Any:
        """As `forward` on the frames of one recording, without making them: quiet time is jumped over.

            step k sees the events with start + k·dt <= t < start + (k + 1)·dt

        While nothing arrives and no neuron comes near its threshold, a stage leaps over the empty steps by the closed form of its leak
        (beta^n); where a spike is possible, a neuron rests or a recurrent layer has just fired, it takes them one by one. The result is
        that of the frames up to the rounding of beta^n; `steps_jumped` says how many steps were leapt over, summed over the stages.
        events: `datasets.Events` or a structured array with fields t (µs), x, y, p, in order of time; dt: seconds, whole microseconds.
        start: µs, None means the first event; steps: None means up to the last event. clip: at most one event a pixel and step.
        Shapes: output [steps, 1, *]; the input is [polarities, height, width], 1 or 2 polarities.
        Errors: SpikingError for events outside the sensor or out of order, another input shape, or layers that were not compiled.
        Oracle: `forward` on `datasets.ToFrames(time_window=…, start_time=…)`.
        """
        chain = self._only
        if chain is None:
            raise SpikingError(
                f"run_events: got a network with layers that were not compiled ({self._why()}); expected none."
            )
        if len(self.in_shape) != 3 or self.in_shape[0] not in (1, 2):
            raise SpikingError(
                f"run_events: got a network for input {list(self.in_shape)}; expected [polarities, height, width] with 1 or 2 polarities."
            )
        for name, given, kind in (
            ("dt", dt, numbers.Real),
            ("start", start, numbers.Integral),
            ("steps", steps, numbers.Integral),
        ):
            if not isinstance(given, kind) and (given is not None or name == "dt"):
                wanted = "a number of seconds" if name == "dt" else "a whole number or None"
                raise SpikingError(f"run_events.{name}: got {given!r}; expected {wanted}.")
        polarities, height, width = self.in_shape
        window = round(dt * 1e6) if math.isfinite(dt) else 0
        if window < 1 or not math.isclose(window, dt * 1e6, rel_tol=1e-9):
            raise SpikingError(f"run_events.dt: got {dt} s; expected a whole number of microseconds, such as 0.001.")
        fields = _fields(events, width, height)
        t = fields[0]
        begin = int(start) if start is not None else int(t[0]) if len(t) else 0
        if steps is None:
            steps = max((int(t[-1]) - begin) // window + 1, 0) if len(t) else 0
        elif steps < 0:
            raise SpikingError(f"run_events.steps: got {steps}; expected a number >= 0.")
        if steps * math.prod(self.out_shape) > _MOST:
            raise SpikingError(
                f"run_events: got {steps} steps; expected at most {_MOST // math.prod(self.out_shape)}. "
                "Run the stream in parts: start=…, steps=…, state=…."
            )
        beta = self._membrane_beta("return_membrane=True") if return_membrane else None
        if not self._seen.holds():
            self.refresh()
        parts = self._parts(state, 1)
        out = torch.zeros((steps, 1, *self.out_shape), dtype=chain.dtype)
        now = chain.prepared
        after = torch.empty((1, now.width), dtype=chain.dtype)
        membrane = None if beta is None else torch.empty_like(out)
        rows = None if parts is None else parts[0]
        self.steps_jumped = now.plan.run_events(
            [field.ctypes.data for field in fields],
            [len(t), begin, window, width, height, polarities],
            clip,
            out.data_ptr(),
            address(rows),
            after.data_ptr(),
            steps,
            address(membrane),
            beta or 0.0,
        )
        found: list[Any] = [out.to(chain.given)]
        if membrane is not None:
            found.append(membrane.to(chain.given))
        if return_state:
            found.append(EventState(self, (after,)))
        return tuple(found) if len(found) > 1 else found[0]

    def _run(
        self, x: Tensor, parts: tuple[Any, ...] | None, beta: float | None
    ) -> tuple[Tensor, tuple[Any, ...], Tensor | None]:
        after: list[Any] = []
        membrane = None
        for i, segment in enumerate(self._segments):
            before = None if parts is None else parts[i]
            last = i + 1 == len(self._segments)
            if isinstance(segment, Compiled):
                x, new, membrane, _, _ = segment.run(x, (x.shape[0], x.shape[1]), before, beta if last else None)
            else:
                x, new = _run_plain(segment, x, before)
            after.append(new)
        return x, tuple(after), membrane

    def _checked(self, x: Any, axes: int) -> Tensor:
        """The input, `axes` before those of a row, in the network's dtype, after a look at whether the weights have changed."""
        if not isinstance(x, Tensor) or x.shape[axes:] != self.in_shape:
            raise SpikingError(
                f"EventNetwork: got input of {_described(x)}; expected [{'T, B' if axes == 2 else 'B'}, "
                f"{', '.join(map(str, self.in_shape))}], as it was compiled for. Call compile_events again for another shape."
            )
        if not self._seen.holds():
            self.refresh()
        if x.layout != torch.strided:
            raise SpikingError(f"EventNetwork: got input with layout {x.layout}; expected a dense tensor.")
        if x.dtype != self._dtype:
            if x.is_floating_point() or x.is_complex():
                raise SpikingError(
                    f"EventNetwork: got input of dtype {x.dtype}; expected {self._dtype}, the model's. Convert it with x.to(…)."
                )
            x = x.to(self._dtype)
        if self._only is not None and not x.is_cpu:
            raise SpikingError(
                f"EventNetwork: got input on {x.device}; expected cpu. Compiled networks run there only."
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise SpikingError(
                "EventNetwork: got input that requires a gradient; expected none, since compiled networks have no backward. "
                "Train the model itself, or call under torch.no_grad()."
            )
        return x

    def _membrane_beta(self, what: str) -> float:
        if self.readout.beta is None:
            raise SpikingError(
                f"EventNetwork: got {what}; expected a model whose readout has a membrane, such as NMNISTNet."
            )
        if not isinstance(self._segments[-1], Compiled):
            raise SpikingError(
                f"EventNetwork: got {what}, but the last layer was not compiled ({self._why()}). Ask the model itself."
            )
        return self.readout.beta

    # --- states ---------------------------------------------------------------------------------------------------------------------

    def _parts(self, state: Any, batch: int) -> tuple[Any, ...] | None:
        """A state as one entry a segment: rows of the engine, or what a plain layer wants."""
        if state is None:
            return None
        if type(state) is EventState and state._network is self:
            parts = state._parts
            for segment, part in zip(self._segments, parts):
                if (
                    isinstance(segment, Compiled)
                    and part is not None
                    and (len(part) != batch or part.dtype != segment.dtype)
                ):
                    raise SpikingError(
                        f"EventNetwork.state: got a state of {len(part)} rows in {part.dtype}; expected {batch} in {segment.dtype}. "
                        "Use state=None to start at rest."
                    )
            return parts
        flat = list(_flattened(self._modules_in_order, state))
        parts_found: list[Any] = []
        at = 0
        for segment in self._segments:
            if isinstance(segment, Compiled):
                parts_found.append(segment.rows_of(flat[at : at + len(segment.leaves)], batch))
                at += len(segment.leaves)
            else:
                parts_found.append(flat[at])
                at += 1
        return tuple(parts_found)

    def _as_plain(self, parts: tuple[Any, ...]) -> tuple[Any, ...]:
        flat: list[Any] = []
        for segment, part in zip(self._segments, parts):
            flat += segment.states_of(part) if isinstance(segment, Compiled) else [part]
        return _nested(self._modules_in_order, iter(flat))

    # --- telling --------------------------------------------------------------------------------------------------------------------

    def report(self) -> str:
        """What runs where, one line a stage: the layers that went into it, or why a layer runs as it stands."""
        lines = []
        for segment in self._segments:
            if not isinstance(segment, Compiled):
                lines.append(f"plain      {segment.name} ({type(segment.layer).__name__}): {segment.reason}")
                continue
            names = {id(leaf.layer): leaf.name for leaf in segment.leaves}
            for group, stage in zip(segment.groups, segment.prepared.stages):
                layers = [*group.linear, group.pool, *(norm for norm, _ in group.after), group.neuron]
                inside = " + ".join(names[id(m)] for m in layers if m is not None and id(m) in names)
                link = ("as it comes", "linear", "by table")[stage.sizes[0]]
                what = "spikes" if group.neuron is not None else "values"
                lines.append(f"compiled   {inside}: {link}, {list(stage.out.shape)} {what}")
        return "\n".join(lines)

    def _why(self) -> str:
        plain = [segment for segment in self._segments if not isinstance(segment, Compiled)]
        return "; ".join(f"{leaf.name}: {leaf.reason}" for leaf in plain)

    def extra_repr(self) -> str:
        return self.report()

    def train(self, mode: bool = True) -> EventNetwork:
        if mode:
            raise SpikingError(
                "EventNetwork.train: compiled networks are for inference only. Train the model that it was made from."
            )
        return self

    def __getstate__(self) -> dict[str, Any]:
        kept = ("model", "_modules_in_order", "readout", "_example", "_leaves")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(state, training=False)
        self._build([(leaf.name, leaf.layer) for leaf in self._leaves])


# --- compiling ----------------------------------------------------------------------------------------------------------------------


def compile_events(model: nn.Module, example: Tensor, *, strict: bool = False) -> EventNetwork:
    """A trained model as an `EventNetwork`: the same call, the same result, at the cost of the spikes that there are.

    model: a `Sequential` (it may hold others), or a model that says by `event_chain()` that it is a chain (`NMNISTNet` does). Within any
    other model, compile its Sequentials: `model.body = compile_events(model.body, x)`.
    example: input [T, B, *] such as the network will see; it fixes the shape of one row, T and B stay free.
    Linear and Conv2d (any stride, padding, dilation, groups), batch norms, average and max pooling, Flatten, Dropout and every neuron with
    all its options are compiled. Other layers run as they stand between compiled ones, and `report()` says why; with `strict=True` they are
    refused instead. Batch norms use their running statistics and Dropout passes everything, whatever mode the model is in.
    Dtype: float32, float64, bfloat16 or float16 (both computed in float32), one for all weights; mixed ones run as they stand.
    Errors: SpikingError for a model that is no chain, an example that does not fit, or, with strict, naming layer and reason.

    >>> import spiking
    >>> model = spiking.Sequential(spiking.Conv2d(2, 4, 3), spiking.BatchNorm2d(4), spiking.AvgPool2d(2), spiking.LIF())
    >>> print(compile_events(model, torch.zeros(1, 1, 2, 8, 8)).report())
    compiled   0 + 1 + 2 + 3: by table, [4, 3, 3] spikes
    """
    if isinstance(model, Sequential):
        modules: Sequence[nn.Module] = list(model.children())
        readout = Readout()
    elif isinstance(model, Chain):
        modules, readout = model.event_chain()
    else:
        raise SpikingError(
            f"compile_events: got {type(model).__name__}; expected a spiking.Sequential, or a model with event_chain(). "
            "Compile the Sequentials inside it: model.body = compile_events(model.body, x)."
        )
    if not modules:
        raise SpikingError("compile_events: got a model without layers; expected at least one.")
    if not isinstance(example, Tensor) or example.dim() < 3 or 0 in example.shape:
        raise SpikingError(
            f"compile_events.example: got {_described(example)}; expected an input [T, B, *] with at least one step and one row."
        )
    network = EventNetwork(model, modules, readout, example)
    if strict and any(not isinstance(segment, Compiled) for segment in network._segments):
        raise SpikingError(
            f"compile_events: layer {network._why()}. Take it out, or pass strict=False to run it as it stands."
        )
    return network


def _described(x: Any) -> str:
    return f"shape {list(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"


def _leaves(modules: Iterable[nn.Module], names: dict[int, str]) -> Iterator[tuple[str, nn.Module]]:
    for i, module in enumerate(modules):
        if isinstance(module, Sequential):
            yield from _leaves(module.children(), names)
        else:
            yield names.get(id(module), str(i)), module


def _dtype_of(model: nn.Module, example: Tensor) -> torch.dtype:
    """The dtype of the model's weights, else that of the example (float32 for spikes given as integers)."""
    floats = [t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    return floats[0] if floats else example.dtype if example.is_floating_point() else torch.float32


def _why_nothing_compiles(model: nn.Module, dtype: torch.dtype) -> str:
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    if len({t.dtype for t in tensors}) > 1 or dtype not in DTYPES:
        return f"its weights are {', '.join(sorted({str(t.dtype) for t in tensors} or {str(dtype)}))}"
    elsewhere = next((t.device for t in tensors if t.device.type != "cpu"), None)
    choice = backend.choose(torch.device("cpu"))
    if elsewhere is not None:
        return f"its weights are on {elsewhere}"
    return "" if choice.name == "cpu" else f"the compiled kernels are not in use: {choice.not_used.get('cpu', '')}"


def _with_shapes(found: list[tuple[str, Any]], example: Tensor, whole: str) -> tuple[list[Leaf], tuple[int, ...]]:
    """Leaves with their roles and shapes, and the shape of the output, from a run of the layers on a corner of the example."""
    leaves = []
    devices = {t.device for _, layer in found for t in (*layer.parameters(), *layer.buffers())}
    dtypes = [t.dtype for _, layer in found for t in layer.parameters()]
    x = example.to(device=next(iter(devices), example.device), dtype=dtypes[0] if dtypes else None)
    for name, layer in found:
        role, reason = ("plain", whole) if whole else _stages.role_of(layer)
        leaves.append(Leaf(name, layer, role, reason, tuple(x.shape[2:])))
        try:
            with torch.no_grad():
                x = copy.deepcopy(layer).eval()(x)
        except (SpikingError, RuntimeError, ValueError) as err:
            raise SpikingError(f'compile_events: layer "{name}": {err}') from err
        if not isinstance(x, Tensor):
            raise SpikingError(
                f'compile_events: layer "{name}": {type(layer).__name__} gives a {type(x).__name__}; expected one tensor, '
                "as every layer of a chain gives. Leave it out of what is compiled."
            )
    return leaves, tuple(x.shape[2:])


def _run_plain(leaf: Leaf, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    layer = leaf.layer
    if layer.training:
        raise SpikingError(
            f'EventNetwork: layer "{leaf.name}" is in training mode; expected evaluation, since it runs as it stands. Call model.eval().'
        )
    try:
        with torch.no_grad():
            if hasattr(layer, "step"):
                return layer(x, state=state, return_state=True)
            return layer(x), None
    except SpikingError as err:
        raise SpikingError(f'layer "{leaf.name}": {err}') from err


def _flattened(modules: Sequence[nn.Module], state: Any) -> Iterator[Any]:
    """The states of the leaves, None where a part is at rest."""
    if state is not None and not isinstance(state, (tuple, list, EventState)):
        raise SpikingError(
            f"EventNetwork.state: got a {type(state).__name__}; expected what the last call returned, or None."
        )
    if state is not None and len(state) != len(modules):
        raise SpikingError(
            f"EventNetwork.state: got {len(state)} entries; expected {len(modules)}, one a layer. Pass on what the last call returned."
        )
    for module, own in zip(modules, state if state is not None else (None,) * len(modules)):
        if isinstance(module, Sequential):
            yield from _flattened(list(module.children()), own)
        else:
            yield own


def _nested(modules: Sequence[nn.Module], flat: Iterator[Any]) -> tuple[Any, ...]:
    return tuple(
        _nested(list(module.children()), flat) if isinstance(module, Sequential) else next(flat) for module in modules
    )


def _fields(events: Any, width: int, height: int) -> list[np.ndarray]:
    """t (int64), x, y (int16), p (uint8) of events that lie inside the sensor and in order of time."""
    names = getattr(getattr(events, "dtype", None), "names", None)
    if not all(hasattr(events, name) for name in "txyp") and not set("txyp") <= set(names or ()):
        raise SpikingError(
            f"run_events: got {type(events).__name__}; expected datasets.Events or a structured array with fields t, x, y, p."
        )
    given = [np.asarray(events[name]) for name in "txyp"]
    fields = [np.ascontiguousarray(v, d) for v, d in zip(given, (np.int64, np.int16, np.int16, np.uint8))]
    module: Any = backend.compiled()
    if any(not np.array_equal(a, b) for a, b in zip(given, fields)):
        raise SpikingError(
            "run_events: got events whose fields are no whole numbers of 64, 16, 16 and 8 bits; expected t, x, y, p."
        )
    backwards, outside = module.scan_events(*fields, width, height)
    if outside >= 0:
        x, y, p = (int(field[outside]) for field in fields[1:])
        raise SpikingError(
            f"run_events: event {outside}: got x={x}, y={y}, p={p}; expected x < {width}, y < {height} and p 0 or 1, as in the input."
        )
    if backwards >= 0:
        raise SpikingError(
            f"run_events: event {backwards}: got t={int(fields[0][backwards])} µs; expected times from 0 on that never decrease. "
            "Call events.sorted() first."
        )
    return fields


# --- early exit ---------------------------------------------------------------------------------------------------------------------


class EarlyExit(NamedTuple):
    """What one margin costs and saves: accuracy with it and without, and the mean share of the steps that were run."""

    margin: float
    accuracy: float
    full_accuracy: float
    steps: float


def early_exit_cost(
    network: EventNetwork, batches: Iterable[tuple[Tensor, Tensor]], margins: Sequence[float]
) -> list[EarlyExit]:
    """For each margin, what `early_exit` would have cost on labelled batches (x [T, B, *], labels [B]).

    >>> model = Sequential(nn.Linear(4, 2))
    >>> x = torch.rand(5, 3, 4)
    >>> early_exit_cost(compile_events(model, x), [(x, torch.zeros(3))], margins=[0.0])[0].steps
    0.2
    """
    hits, steps = dict.fromkeys(margins, 0), dict.fromkeys(margins, 0)
    full = n = total = 0
    for x, labels in batches:
        full += int((network.scores(x).argmax(1) == labels).sum())
        n += len(labels)
        total += x.shape[0] * len(labels)
        for margin in margins:
            scores, taken = network.early_exit(x, margin)
            hits[margin] += int((scores.argmax(1) == labels).sum())
            steps[margin] += int(taken.sum())
    if n == 0:
        raise SpikingError("early_exit_cost: got no batch; expected at least one sample.")
    return [EarlyExit(margin, hits[margin] / n, full / n, steps[margin] / total) for margin in margins]
