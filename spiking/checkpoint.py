"""Checkpoints: one file each, written all or not at all, readable without running anything that it contains.

A checkpoint is a safetensors file. Its tensors are named `model.*`, `optimizer.*` and, with averaged weights, `average.*`;
its header carries one JSON text with the format version, what model it belongs to, and the training position. There is no
pickle in it, so a file from a stranger can be wrong but cannot run code.

Writing goes to a neighbour file, which is flushed to the disk and then renamed over the old one: at any moment, after a
crash or on a full disk, the path holds the previous checkpoint or the new one, whole.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spiking.errors import SpikingError

__all__ = ["FORMAT_VERSION", "Checkpoint", "identity", "load", "restore", "save"]

FORMAT_VERSION = 1
_GROUPS = ("model", "optimizer", "average")


@dataclass
class Checkpoint:
    """What a checkpoint holds: named tensors and plain JSON values.

    `optimizer` is what `torch.optim.Optimizer.state_dict()` gives, `average` the averaged weights (None without them),
    `model_identity` what `identity(model)` gave, `state` any JSON values (epoch, step, metrics so far).
    """

    model: dict[str, Tensor]
    model_identity: dict[str, Any]
    optimizer: dict[str, Any] | None = None
    average: dict[str, Tensor] | None = None
    state: dict[str, Any] = field(default_factory=dict)


def identity(model: nn.Module) -> dict[str, Any]:
    """What tells one model from another, as JSON: its class and, where it has one, its configuration.

    >>> identity(nn.Linear(2, 1))["class"]
    'torch.nn.modules.linear.Linear'
    """
    kind = type(model)
    found: dict[str, Any] = {"class": f"{kind.__module__}.{kind.__qualname__}"}
    config = getattr(model, "config", None)
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        found["config"] = dataclasses.asdict(config)
    return json.loads(json.dumps(found, default=str))


def save(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    Errors: SpikingError if it cannot be written (a full disk, no permission); what was at `path` is then untouched.

    >>> import tempfile
    >>> model = nn.Linear(2, 1)
    >>> path = Path(tempfile.mkdtemp()) / "last.safetensors"
    >>> save(path, Checkpoint(model.state_dict(), identity(model), state={"epoch": 3}))
    >>> load(path, model).state
    {'epoch': 3}
    """
    from safetensors.torch import save as to_bytes

    tensors = {f"model.{name}": value for name, value in checkpoint.model.items()}
    header: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": checkpoint.model_identity,
        "state": checkpoint.state,
        "optimizer": None,
        "average": checkpoint.average is not None,
    }
    if checkpoint.optimizer is not None:
        flat, header["optimizer"] = _split_optimizer(checkpoint.optimizer)
        tensors.update({f"optimizer.{name}": value for name, value in flat.items()})
    if checkpoint.average is not None:
        tensors.update({f"average.{name}": value for name, value in checkpoint.average.items()})
    # Clones, because safetensors refuses tensors that share memory (tied weights), and they may lie on a GPU.
    plain = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    write_atomically(path, to_bytes(plain, metadata={"spiking": json.dumps(header)}))


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Replace the file at `path` by `content`, whole or not at all, also through a power cut.

    Errors: SpikingError if it cannot be written; what was there is then untouched.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
        if os.name == "posix":
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the rename itself lives in the folder
            finally:
                os.close(folder)
    except OSError as err:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        kept = "The previous one is untouched. " if target.exists() else ""
        advice = (
            "Free some space" if err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "Choose another folder"
        )
        raise SpikingError(
            f"{target}: cannot write {len(content)} bytes: {err.strerror or err}. {kept}{advice} and go on with --resume."
        ) from err


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> Checkpoint:
    """Read a checkpoint and, with a model, make sure that it belongs to that model.

    Nothing is loaded into the model: `restore` does that, once everything has been found right.
    Errors: SpikingError naming the file and the culprit: no such file, cut or foreign content, a newer format, another
    model class or configuration, missing, unexpected or misshapen tensors.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise SpikingError(f"{path}: there is no checkpoint here.")
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("spiking")
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                tensors[name] = file.get_tensor(name)
    except (SafetensorError, OSError) as err:
        raise SpikingError(
            f"{path}: not a whole safetensors file of {path.stat().st_size} bytes ({err}). "
            "It is cut or something else; use an earlier checkpoint."
        ) from err
    if text is None:
        raise SpikingError(f"{path}: a safetensors file, but not a checkpoint made by this library (no header entry).")
    header = _header(path, text)
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        if group not in groups:
            raise SpikingError(f'{path}: got tensor "{name}"; expected names starting with {", ".join(_GROUPS)}.')
        groups[group][rest] = tensor
    if model is not None:
        _compare_identity(path, header["model"], identity(model))
        _compare_tensors(path, "model", groups["model"], model.state_dict())
        if header["average"]:
            _compare_tensors(path, "average", groups["average"], model.state_dict())
    optimizer = None
    if header["optimizer"] is not None:
        optimizer = _join_optimizer(path, groups["optimizer"], header["optimizer"])
    average = groups["average"] if header["average"] else None
    return Checkpoint(groups["model"], header["model"], optimizer, average, header["state"])


def restore(
    path: str | os.PathLike[str], model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> Checkpoint:
    """Load a checkpoint into a model and, if given, its optimizer; nothing is touched unless all of it fits.

    Errors: as `load`; also if the optimizer is of another kind or size.
    """
    checkpoint = load(path, model)
    if optimizer is not None:
        if checkpoint.optimizer is None:
            raise SpikingError(f"{path}: got a checkpoint without optimizer state; expected one to continue from.")
        _compare_optimizer(Path(path), checkpoint.optimizer, optimizer)
        optimizer.load_state_dict(checkpoint.optimizer)
    model.load_state_dict(checkpoint.model)
    return checkpoint


def _header(path: Path, text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
        version = header["format_version"]
    except (ValueError, TypeError, KeyError) as err:
        raise SpikingError(f"{path}: the header is not that of a checkpoint ({type(err).__name__}: {err}).") from err
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise SpikingError(
            f"{path}: got checkpoint format {version}; this version of spiking reads up to {FORMAT_VERSION}. Update spiking."
        )
    wanted: dict[str, Any] = {"model": dict, "state": dict, "average": bool, "optimizer": (dict, type(None))}
    for name, kind in wanted.items():
        if not isinstance(header.get(name), kind):
            raise SpikingError(f'{path}: header entry "{name}" is missing or of the wrong kind; the file is damaged.')
    return header


def _compare_identity(path: Path, got: dict[str, Any], expected: dict[str, Any]) -> None:
    if got.get("class") != expected["class"]:
        raise SpikingError(f"{path}: got a checkpoint of {got.get('class')}; expected one of {expected['class']}.")
    theirs, ours = got.get("config") or {}, expected.get("config") or {}
    for name in sorted({*theirs, *ours}):
        if theirs.get(name) != ours.get(name):
            raise SpikingError(
                f"{path}: the checkpoint's model has {name}={theirs.get(name)!r}; this one has {name}={ours.get(name)!r}. "
                "Build the model with the checkpoint's configuration."
            )


def _compare_tensors(path: Path, group: str, got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        if name not in got:
            raise SpikingError(f'{path}: {group} tensor "{name}" is missing; the model needs it.')
        if got[name].shape != tensor.shape:
            raise SpikingError(
                f'{path}: {group} tensor "{name}" has shape {list(got[name].shape)}; the model expects {list(tensor.shape)}.'
            )
        if got[name].dtype != tensor.dtype:
            raise SpikingError(
                f'{path}: {group} tensor "{name}" has dtype {got[name].dtype}; the model expects {tensor.dtype}.'
            )
    for name in got:
        if name not in expected:
            raise SpikingError(f'{path}: {group} tensor "{name}" is unknown to the model.')


def _split_optimizer(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the rest as JSON."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state_dict["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"state": plain, "param_groups": state_dict["param_groups"]}


def _join_optimizer(path: Path, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    try:
        for index, entries in rest["state"].items():
            state.setdefault(int(index), {}).update(entries)
        for name, tensor in tensors.items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        groups = [dict(group) for group in rest["param_groups"]]
        for group in groups:
            if "betas" in group:
                group["betas"] = tuple(group["betas"])
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise SpikingError(f"{path}: the optimizer state is damaged ({type(err).__name__}: {err}).") from err
    return {"state": state, "param_groups": groups}


def _compare_optimizer(path: Path, got: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    expected = optimizer.state_dict()
    counts = [len(group.get("params", [])) for group in got["param_groups"]]
    wanted = [len(group["params"]) for group in expected["param_groups"]]
    if counts != wanted:
        raise SpikingError(f"{path}: optimizer groups hold {counts} parameters; this optimizer has {wanted}.")
    names = set().union(*got["param_groups"])
    ours = set().union(*expected["param_groups"])
    if names != ours:
        raise SpikingError(
            f"{path}: the optimizer state has options {sorted(names ^ ours)} that this one ({type(optimizer).__name__}) "
            "does not share; it belongs to another optimizer."
        )
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entries in got["state"].items():
        if not 0 <= index < len(parameters):
            raise SpikingError(f"{path}: optimizer state {index} belongs to none of the {len(parameters)} parameters.")
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.dim() and value.shape != parameters[index].shape:
                raise SpikingError(
                    f'{path}: optimizer tensor "{index}.{name}" has shape {list(value.shape)}; '
                    f"its parameter has {list(parameters[index].shape)}."
                )
