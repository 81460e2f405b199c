"""Settings from YAML files and options into the frozen dataclasses that hold them, and back."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from spiking.errors import SpikingError

T = TypeVar("T")


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file. Errors: SpikingError naming file and line."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise SpikingError(f"{path}: {(err.strerror or str(err)).lower()}; expected a YAML file of settings.") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise SpikingError(f"{path}: not a YAML file: {' '.join(str(err).split())}") from err
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise SpikingError(f"{path}: got a {type(found).__name__}; expected settings as `name: value` lines.")
    return found


def to_yaml(config: Any) -> str:
    """All settings of a dataclass, nested ones indented.

    >>> @dataclasses.dataclass
    ... class Small:
    ...     lr: float = 0.1
    >>> to_yaml(Small())
    'lr: 0.1\\n'
    """
    import yaml

    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def override(config: T, settings: Mapping[str, Any], where: str) -> T:
    """The dataclass with some fields replaced; a nested dataclass takes a mapping of its own.

    Errors: SpikingError naming `where` and the field: an unknown name (with the nearest known one), a wrong type.

    >>> @dataclasses.dataclass
    ... class Small:
    ...     lr: float = 0.1
    >>> override(Small(), {"lr": "1e-3"}, "small.yaml").lr
    0.001
    """
    hints = get_type_hints(type(config))
    changes = {}
    for name, value in settings.items():
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            meant = f' Did you mean "{near[0]}"?' if near else ""
            raise SpikingError(f'{where}: unknown setting "{name}"; expected one of {", ".join(hints)}.{meant}')
        current = getattr(config, name)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise SpikingError(f"{where}: {name}: got {value!r}; expected settings of its own, indented below it.")
            changes[name] = override(current, value, f"{where}: {name}")
        else:
            changes[name] = _typed(value, hints[name], f"{where}: {name}")
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


@contextmanager
def named_as_written(config: Any, name_of: Callable[[str], str]) -> Iterator[None]:
    """Errors about a field (`TrainConfig.epochs: …`) name what the user wrote instead: `name_of("train.epochs")`.

    `config` is the outermost dataclass or its type. Where `name_of` returns "" the error stays as it is.

    >>> @dataclasses.dataclass
    ... class Small:
    ...     lr: float = 0.1
    >>> with named_as_written(Small, lambda path: f"--{path}"):
    ...     raise SpikingError("Small.lr: got 0; expected more.")
    Traceback (most recent call last):
    ...
    spiking.errors.SpikingError: --lr: got 0; expected more.
    """
    try:
        yield
    except SpikingError as err:
        found = re.match(r"(\w+)\.(\w+): ", str(err))
        path = _path_of(config if isinstance(config, type) else type(config), *found.groups()) if found else ""
        name = name_of(path) if path else ""
        if not found or not name:
            raise
        raise SpikingError(f"{name}: {str(err)[found.end() :]}") from err


def _path_of(kind: type, owner: str, field: str) -> str:
    """Where the field of the dataclass called `owner` lies below `kind`, such as "train.epochs"; "" where it does not."""
    if kind.__name__ == owner:
        return field
    for name, hint in get_type_hints(kind).items():
        below = _path_of(hint, owner, field) if dataclasses.is_dataclass(hint) else ""  # type: ignore[arg-type]
        if below:
            return f"{name}.{below}"
    return ""


def _typed(value: Any, kind: Any, where: str) -> Any:
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise SpikingError(f"{where}: got {value!r}; expected {' or '.join(get_args(kind))}.")
    if kind is float and not isinstance(value, bool):
        try:
            return float(value)  # YAML takes 1e-3, which has no dot, for text
        except (TypeError, ValueError):
            pass
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    raise SpikingError(f"{where}: got {value!r}; expected {names.get(kind, kind.__name__)}.")
