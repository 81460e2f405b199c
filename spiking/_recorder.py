"""The context manager that watches a model run and fills an `EventTrace`; see `spiking.trace.record`."""

from __future__ import annotations

import hashlib
import platform
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass
from datetime import datetime, timezone
from os import PathLike
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from spiking import _peers as peers
from spiking._again import Again, Sums
from spiking._forward_pass import ForwardPass, Growing
from spiking._operations import Operations
from spiking._rows import Rows, counting_of
from spiking._watched import Kind, in_quiet, listened, plain, watched
from spiking.errors import SpikingError
from spiking.trace import Events, EventTrace, LayerTrace, Recording

if TYPE_CHECKING:
    from spiking._tracefile import Writer

INPUT = "(input)"
PASSES = 8  # that are like the ones before, whose counts are added to the rows together


class LiveTrace(EventTrace):
    """The trace of a recording that goes on: it takes in what waits when somebody looks at it."""

    _catch_up: Callable[[], None]

    @classmethod
    def begin(cls, trace: EventTrace, catch_up: Callable[[], None]) -> None:
        """Make a trace live, and `catch_up` the way to what waits."""
        trace.__class__ = cls
        cast(LiveTrace, trace)._catch_up = catch_up

    @property
    def layers(self) -> list[LayerTrace]:  # type: ignore[override]
        self._catch_up()
        return self.__dict__["layers"]

    @layers.setter
    def layers(self, rows: list[LayerTrace]) -> None:
        self.__dict__["layers"] = rows

    @property
    def n_samples(self) -> int:  # type: ignore[override]
        self._catch_up()
        return self.__dict__["n_samples"]

    @n_samples.setter
    def n_samples(self, n: int) -> None:
        self.__dict__["n_samples"] = n

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies are of what was recorded so far."""
        return EventTrace, tuple(getattr(self, field.name) for field in fields(self))


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
        to: str | PathLike[str] | None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise SpikingError(f"record: got {type(model).__name__}; expected a torch.nn.Module.")
        if keep_spikes < 0:
            raise SpikingError(f"record: got keep_spikes={keep_spikes}; expected a number of samples, 0 or more.")
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise SpikingError(f"record: got steps={steps}; expected 1 or more, a whole number.")
        if to is not None and not isinstance(to, str | PathLike):
            raise SpikingError(f"record: got to={to!r}; expected the name of a file.")
        if step_by_step and steps is None:
            raise SpikingError("record: got step_by_step=True without steps; expected the number of steps of one pass.")
        self.model = model
        self.keep_spikes = keep_spikes
        self.stated_steps = steps
        self.step_by_step = step_by_step
        self.batch_first = any(peers.batch_first(module) for module in model.modules())
        self._behind = 0  # passes that wait to be added to the rows
        self._plans: list[Again] = []  # of these passes, in the order of execution
        self.trace = EventTrace(
            model_name=type(model).__name__,
            data_id=data_id,
            seed=seed,
            dt=dt,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            software=_versions(),
        )
        self._to = to
        self._writer: Writer | None = None
        self._handles: list[Any] = []
        self._readers: dict[str, set[str]] = {}  # of each layer, in any pass
        self._known: dict[str, LayerTrace] = {}  # the rows of the trace by name
        self._samples: dict[str, Growing] = {}
        self._listens = True
        self._continued = self._looped = False  # whether these were spoken of
        self._rows = Rows(events=events, active_rows=active_rows)
        self._operations = Operations(self._rows)
        self._fresh_pass()

    def __enter__(self) -> EventTrace:
        if self._to is not None:
            from spiking._tracefile import Writer

            self._writer = Writer(self._to)
        self.trace.model_hash = model_hash(self.model)
        stated: Any = getattr(self.model, "precision", None)
        if is_dataclass(stated) and not isinstance(stated, type):
            self.trace.precision = {name: plain(value) for name, value in asdict(stated).items()}
        first = next(self.model.parameters(), None)
        if first is not None:
            self.trace.dtype, self.trace.device = str(first.dtype).removeprefix("torch."), str(first.device)
        self._handles.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True))
        layers = watched(self.model)
        chains = listened(self.model, [module for _, module, _ in layers])
        self._listens = chains.pop(self.model, True)
        quiet = in_quiet(self.model, {self.model: self._listens, **chains})
        for module, listens in chains.items():
            if module in quiet and not listens:
                continue
            self._handles.append(module.register_forward_pre_hook(_Before(self._operations, listens)))
            self._handles.append(module.register_forward_hook(_After(self._operations)))
        for name, module, kind in layers:
            label = name or type(module).__name__
            self._rows.names[id(module)] = label
            self._rows.modules[label] = id(module)
            rows = self._rows if kind == "neuron" or isinstance(module, nn.Linear) else None
            if module not in quiet or rows is not None:
                before = _Before(self._operations, None if module in quiet else False, rows)
                self._handles.append(module.register_forward_pre_hook(before))
            after = _Seen(self._operations, self._rows, kind, label, module not in quiet)
            self._handles.append(module.register_forward_hook(after, with_kwargs=True))
        self._handles.append(self.model.register_forward_hook(self._end, with_kwargs=True))
        LiveTrace.begin(self.trace, self._catch_up)
        return self.trace

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._operations.stop()
        self._rows.watch.stop()
        call, apart = self._call, self._rows.apart
        self._reset()
        self._catch_up()
        self.trace.__class__ = EventTrace
        vars(self.trace).pop("_catch_up", None)
        if self._writer is not None and (call or kind is not None):
            self._writer.abort()
        elif self._writer is not None:
            self._writer.finish(self.trace)
        if call and kind is None:
            raise SpikingError(
                f"record: got {call} steps of the last pass; expected {self.stated_steps}. Call the model once per step."
            )
        if apart and not self.trace.n_samples and kind is None:
            raise SpikingError(
                f"record: {type(self.model).__name__} itself was never called, but its layer {apart} was; expected calls of the "
                "model. Call it with whole sequences, or record the part of it that is called."
            )

    def _reset(self) -> None:
        """Be ready for another pass; one that goes on did not end well."""
        for done in self._run.layers.values():
            if isinstance(done, Again):
                done.drop()
        self._fresh_pass()

    def _fresh_pass(self) -> None:
        how = {"batch_first": self.batch_first, "step_by_step": self.step_by_step}
        self._run = self._rows.run = ForwardPass(self._known, self._readers, **how)
        self._rows.keep = self.keep_spikes - len(self.trace.recordings)
        self._call, self._open = 0, False
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if get_ident() != self._operations.thread:
            return
        if not self._call and self._open:
            self._reset()
        self._open = True
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if x is None or x.ndim == 0 or x.layout != torch.strided:
            raise SpikingError(f"record: {type(model).__name__} was called without a dense tensor; expected [T, B, …].")
        if not x.numel():
            raise SpikingError(
                f"record: {type(model).__name__} was called with an input of shape {list(x.shape)}; expected at least one "
                "step of one sample."
            )
        self._run.produced(x, INPUT)
        if kwargs:
            self._look_at_state(x, kwargs)
        self._operations.start(self._listens)
        self._rows.watch.start()
        steps = self.stated_steps
        if self.step_by_step:
            assert steps is not None
            # `.step` of our models gives the step a time axis, and asks for the state
            self._run.has_time = bool(kwargs.get("return_state")) and x.ndim > 1 and x.shape[0] == 1
            batch = x.shape[int(self._run.has_time)]
            if self._call and batch != self._run.batch:
                raise SpikingError(
                    f"record: step {self._call + 1}: got {batch} samples after {self._run.batch} in the step before; "
                    f"expected one number in all {steps} steps of a pass."
                )
            self._run.steps, self._run.batch = steps, batch
        elif self.batch_first:
            self._run.steps, self._run.batch = self._batch_and_steps(x)[::-1]
        elif steps is None:
            time_first = x.is_floating_point() or x.ndim != 2  # token indices [B, T] are the exception
            self._run.steps, self._run.batch = _first_two(x) if time_first else (x.shape[1], x.shape[0])
        else:
            self._run.steps = steps
            self._run.batch = x.shape[1] if x.ndim > 1 and x.shape[0] == steps and x.is_floating_point() else x.shape[0]
        if self._rows.keep > 0:
            self._inputs.append(self._one_step(x).clone() if self.step_by_step else x.detach())

    def _one_step(self, x: Tensor) -> Tensor:
        """A step of the model's input or output as [B, *]."""
        return x.detach()[0] if self._run.has_time else x.detach()

    def _look_at_state(self, x: Tensor, kwargs: dict[str, Any]) -> None:
        """Say so, once, where a sequence is continued by calls that would each count as samples of their own."""
        if self.step_by_step or self._continued or kwargs.get("state") is None:
            return
        self._continued = True
        warnings.warn(
            f"record: {type(self.model).__name__} is given the state of the call before, so that the calls are parts of one sequence, "
            f"but each is counted as samples of its own, of {x.shape[0]} step{'s' * (x.shape[0] != 1)}. "
            "Call the model with whole sequences; or, if each call is one step, record(..., step_by_step=True, steps=T).",
            stacklevel=6,
        )

    def _look_at_calls(self) -> None:
        """Say so, once, where neurons of others ran step by step and nobody said how many steps there are."""
        if self.stated_steps is not None or self._looped:
            return
        names = self._rows.names
        theirs = [names[id(m)] for m in self.model.modules() if id(m) in names and peers.is_neuron(m)]
        name = next((n for n in theirs if f"{n}#2" in self._run.layers), None)
        if name is not None:
            self._looped = True
            n, run = self._run.calls[name], self._run
            warnings.warn(
                f"record: layer {name} ran {n} times in one pass, each time as if for {run.steps} steps of {run.batch} samples: T and B "
                f"are likely swapped. If the model loops over time itself, record(..., steps={n}).",
                stacklevel=6,
            )

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
        if get_ident() != self._operations.thread:
            return
        self._operations.stop()
        self._rows.watch.stop()
        if isinstance(out, tuple | list):
            out = next((v for v in out if isinstance(v, Tensor)), None)
        if self._rows.keep > 0 and isinstance(out, Tensor):
            self._outputs.append(self._one_step(out).float() if self.step_by_step else out.detach().float())
        if self.step_by_step:
            self._call += 1
            if self._call < self._run.steps:
                return
        if self._plans and not self._run.long and [*self._run.layers.values()] == self._plans:
            self._behind += 1
            self._fresh_pass()
            if self._behind == PASSES:
                self._catch_up()
            return
        self._catch_up()
        if not self._run.layers:
            raise SpikingError(f"record: {type(model).__name__} has no layer that can be counted (weights or neurons).")
        if self.trace.n_steps and self.trace.n_steps != self._run.steps:
            raise SpikingError(
                f"record: got {self._run.steps} time steps after {self.trace.n_steps} in the pass before; "
                "expected one length. Record the lengths in separate traces."
            )
        self._look_at_calls()
        for name, done in self._run.layers.items():
            done.check()
            if self.trace.n_samples and name not in self._known:
                raise SpikingError(f"record: layer {name} did not run in the passes before; expected the same layers.")
        for name in self._known:
            if name not in self._run.layers:
                raise SpikingError(f"record: layer {name} did not run in this pass; expected the same layers.")
        sums = self._sums(1, self._run.batch)
        for name, done in self._run.layers.items():
            if isinstance(done, Again):
                done.commit(sums)
                continue
            fresh = name not in self._known
            events = done.commit(fresh, self._samples, sums.silent)
            if fresh:
                self._known[name] = done.row
                self.trace.layers.append(done.row)
            if events is not None or done.row.events is not None:
                self._events(done.row, events, fresh)
        sums.give_back(self._rows.watch)
        self.trace.n_steps = self._run.steps
        self.trace.n_samples += self._run.batch
        self._rows.again.update(self._run.plans)
        if self._run.long:
            self._fold_norms()
        self._plans = [] if self._run.long else [*self._run.layers.values()]
        self._keep()
        self._fresh_pass()

    def _sums(self, passes: int, batch: int) -> Sums:
        silent = self._samples.setdefault("", Growing()).with_more(np.zeros(passes * batch, np.int64))
        return Sums(passes, self._samples, silent)

    def _catch_up(self) -> None:
        """Add the passes that wait to the rows."""
        passes, self._behind = self._behind, 0
        if not passes:
            return
        batch = self._plans[0].samples
        sums = self._sums(passes, batch)
        for plan in self._plans:
            plan.commit(sums)
        sums.give_back(self._rows.watch)
        self.trace.n_samples += passes * batch

    def _events(self, row: LayerTrace, events: Events | None, fresh: bool) -> None:
        """Keep where the events of a pass were, or write them to the file."""
        if events is None:
            row.events = None
        elif self._writer is not None:
            self._writer.append([*self._known].index(row.name), events, self.trace.n_samples)
        elif fresh:
            row.events = events
        elif row.events is not None:
            row.events = row.events.followed_by(events, self.trace.n_samples)

    def _fold_norms(self) -> None:
        """A batch norm in eval mode, directly behind the weights and their only reader, becomes part of them."""
        for row in self.trace.layers:
            if row.kind != "norm" or row.train_mode or not row.config.get("foldable") or len(row.operand_of) != 1:
                continue
            source = row.operand_of[0]
            row.folded_into = ""
            if self._readers.get(source) == {row.name} and source != INPUT and self._known[source].is_weight_layer:
                row.folded_into = source

    def _keep(self) -> None:
        missing = self.keep_spikes - len(self.trace.recordings)
        if missing <= 0 or not self._inputs:
            return
        lead = (self._run.steps, self._run.batch)
        kept = {name: torch.cat(parts) for name, parts in self._run.kept.items()}
        x = torch.stack(self._inputs) if self.step_by_step else self._run.time_first(self._inputs[0])
        o = None
        if self._outputs:
            o = torch.stack(self._outputs) if self.step_by_step else self._run.time_first(self._outputs[0])
        for b in range(min(missing, self._run.batch)):
            shown = x[:, b] if tuple(x.shape[:2]) == lead else x[b : b + 1]
            answer = None
            if o is not None:
                answer = o[:, b] if tuple(o.shape[:2]) == lead else o[b] if o.shape[0] == self._run.batch else None
            self.trace.recordings.append(
                Recording(
                    _numpy(shown),
                    {name: _numpy(s[:, b] != 0).astype(np.uint8) for name, s in kept.items()},
                    None if answer is None else _numpy(answer),
                )
            )


class _Before:
    """Hook: a module begins; `listens` None: one where nobody listens anyway."""

    of_watch = True

    def __init__(self, operations: Operations, listens: bool | None, rows: Rows | None = None) -> None:
        self.operations, self.listens, self.rows = operations, listens, rows

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if get_ident() != self.operations.thread:
            return
        if self.listens is not None:
            self.operations.step_in(self.listens)
        if self.rows is not None and args and isinstance(args[0], Tensor):
            self.rows.before(module, args[0])


class _After:
    """Hook: a module that is not counted ends."""

    of_watch = True

    def __init__(self, operations: Operations) -> None:
        self.operations = operations

    def __call__(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if get_ident() == self.operations.thread:
            self.operations.step_out()


class _Seen:
    """Hook: a watched layer ends, and is counted."""

    of_watch = True

    def __init__(self, operations: Operations, rows: Rows, kind: Kind, label: str, steps: bool) -> None:
        self.operations, self.rows, self.kind, self.label, self.steps = operations, rows, kind, label, steps

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if get_ident() != self.operations.thread:
            return
        rows = self.rows
        if not rows.run.steps:  # the model itself does not run
            rows.apart = rows.apart or self.label
            return
        x, y = args[0] if args else None, out[0] if isinstance(out, tuple) and out else out
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and rows.ran_again(self.label, module, x, y)):
            self._count(module, args, kwargs, out)
        if self.steps:
            self.operations.step_out()

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        x = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        y = next((v for v in out if isinstance(v, Tensor)), None) if isinstance(out, tuple | list) else out
        if x is None or not isinstance(y, Tensor):
            raise SpikingError(f"record: layer {self.label} was called without tensors; expected one in and one out.")
        with counting_of(x):
            if self.kind == "neuron":
                state = next((v for v in (*args, *kwargs.values()) if hasattr(v, "spikes")), None)
                self.rows.neuron(self.label, module, x, y, None if state is None else state.spikes)
            else:
                getattr(self.rows, self.kind)(self.label, module, x, y)


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


def _first_two(x: Tensor) -> tuple[int, int]:
    return x.shape[0], (x.shape[1] if x.ndim > 1 else 1)


def _numpy(x: Tensor) -> np.ndarray:
    x = x.detach()
    return (x.float() if x.is_floating_point() else x).cpu().contiguous().numpy()
