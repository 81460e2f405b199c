"""Hardware descriptions: TOML files whose every constant has a unit, an interval and a source.

A file states a chip's name and its `[[constant]]` tables: name, value, unit, and where more than one source is known
low and high; source is a key of `[sources]`, which holds BibTeX. Values are converted to SI once, here.
"""

from __future__ import annotations

import difflib
import math
import os
import sys
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from spiking.errors import SpikingError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNITS = {
    "fJ": ("J", 1e-15),
    "pJ": ("J", 1e-12),
    "nJ": ("J", 1e-9),
    "uJ": ("J", 1e-6),
    "J": ("J", 1.0),
    "ns": ("s", 1e-9),
    "us": ("s", 1e-6),
    "ms": ("s", 1e-3),
    "s": ("s", 1.0),
    "uW": ("W", 1e-6),
    "mW": ("W", 1e-3),
    "W": ("W", 1.0),
    "MHz": ("Hz", 1e6),
    "uS": ("S", 1e-6),
    "1/uS": ("1/S", 1e6),
    "1/uS2": ("1/S2", 1e12),
    "1/uS3": ("1/S3", 1e18),
    "V": ("V", 1.0),
    "nA": ("A", 1e-9),
    "A/V2": ("A/V2", 1.0),
    "A/V3": ("A/V3", 1.0),
    "Ohm": ("Ohm", 1.0),
    "kOhm": ("Ohm", 1e3),
    "K": ("K", 1.0),
    "1/K": ("1/K", 1.0),
    "eV": ("J", 1.602176634e-19),
    "um2": ("m2", 1e-12),
    "mm2": ("m2", 1e-6),
    "bit": ("bit", 1.0),
    "1": ("1", 1.0),
}
"""Units that a file may use: unit → (SI unit, factor)."""

MARKS = {"R": "read in the source", "2": "read in a work that quotes the source", "D": "derived by arithmetic"}
_CHIPS = Path(__file__).parent / "chips"
_FIELDS = {"name", "value", "unit", "low", "high", "source", "bounds", "mark", "group", "note", "node_nm", "voltage"}


@dataclass(frozen=True)
class Constant:
    """One physical constant in SI units, with the interval over all its sources."""

    name: str
    value: float
    low: float
    high: float
    si_unit: str
    unit: str
    factor: float
    source: str
    bounds: tuple[str, ...]
    mark: str
    group: str
    note: str = ""

    @property
    def single_source(self) -> bool:
        """True if no interval is known: low, value and high are one number from one source."""
        return self.low == self.high

    def __str__(self) -> str:
        value, low, high = (f"{v / self.factor:.4g}" for v in (self.value, self.low, self.high))
        interval = "no interval known" if self.single_source else f"[{low}, {high}]"
        return f"{value} {self.unit} {interval}"


@dataclass(frozen=True)
class Hardware:
    """A chip: its constants by name, the BibTeX of its sources, and notes that every report repeats."""

    name: str
    title: str
    kind: str
    node_nm: float
    voltage: float
    constants: dict[str, Constant] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    path: str = ""

    def __getitem__(self, name: str) -> Constant:
        """The constant of that name.

        Errors: SpikingError naming the file and the constant, if the file does not have it.
        """
        if name not in self.constants:
            known = ", ".join(self.constants)
            raise SpikingError(
                f"{self.path}: constant {name!r} is missing; the file has: {known}. Add it with a source."
            )
        return self.constants[name]


def available() -> list[str]:
    """Names of the chips that come with the package, sorted.

    >>> "digital-45nm" in available()
    True
    """
    return sorted(path.stem for path in _CHIPS.glob("*.toml"))


def load(hardware: str | PathLike[str] | Hardware) -> Hardware:
    """The hardware of a name, of a TOML file, or the one given.

    Errors: SpikingError naming the file and the constant, or near names if the chip is unknown.

    >>> load("digital-45nm")["fp32_add"].value
    9e-13
    """
    if isinstance(hardware, Hardware):
        return hardware
    data, path = read_description(hardware, _CHIPS, "hardware", "chip")
    return _parse(data, path)


def read_description(name: str | PathLike[str], folder: Path, what: str, kind: str) -> tuple[dict[str, Any], str]:
    """The content of a description, by name from the folder or by path, and the path it was read from.

    Errors: SpikingError naming near names, or the file that cannot be read.
    """
    text = os.fspath(name)
    path = Path(text)
    if not text.endswith(".toml"):
        names = sorted(p.stem for p in folder.glob("*.toml"))
        if text not in names:
            near = difflib.get_close_matches(text, names, n=3, cutoff=0.4) or names
            raise SpikingError(
                f"{what}: got {text!r}; expected a .toml file or a known {kind}, such as {', '.join(near)}."
            )
        path = folder / f"{text}.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), str(path)
    except OSError as err:
        raise SpikingError(f"{path}: the {what} file cannot be read: {err.strerror}.") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise SpikingError(f"{path}: this is not TOML: {err}.") from err


def _parse(data: dict[str, Any], path: str) -> Hardware:
    for key, kind in (("name", str), ("node_nm", (int, float)), ("voltage", (int, float)), ("constant", list)):
        if not isinstance(data.get(key), kind):
            raise SpikingError(
                f"{path}: got {key}={data.get(key)!r}; every hardware file states name, node_nm, voltage "
                "and [[constant]] tables."
            )
    constants, sources = read_constants(data, path)
    return Hardware(
        name=data["name"],
        title=str(data.get("title", data["name"])),
        kind=str(data.get("kind", "digital")),
        node_nm=float(data["node_nm"]),
        voltage=float(data["voltage"]),
        constants=constants,
        sources=sources,
        notes=tuple(str(note) for note in data.get("notes", [])),
        path=path,
    )


def read_constants(
    data: dict[str, Any], path: str, marks: dict[str, str] = MARKS, signed: bool = False
) -> tuple[dict[str, Constant], dict[str, str]]:
    """The `[[constant]]` tables of a description by name, and its `[sources]`; `signed` admits zero and negative values.

    Errors: SpikingError naming the file and the constant.
    """
    sources = {str(key): str(text).strip() for key, text in data.get("sources", {}).items()}
    constants: dict[str, Constant] = {}
    for entry in data["constant"]:
        constant = _constant(entry, path, sources, marks, signed)
        if constant.name in constants:
            raise SpikingError(f"{path}: {constant.name}: the constant is given twice; expected once.")
        constants[constant.name] = constant
    return constants, sources


def _constant(
    entry: dict[str, Any], path: str, sources: dict[str, str], marks: dict[str, str], signed: bool
) -> Constant:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise SpikingError(f"{path}: got a constant without a name; expected name, value, unit and source.")
    where = f"{path}: {name}"
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        raise SpikingError(f"{where}: got the field {unknown[0]!r}; expected only {', '.join(sorted(_FIELDS))}.")
    unit = entry.get("unit")
    if unit not in UNITS:
        raise SpikingError(f"{where}: got unit {unit!r}; expected one of {', '.join(UNITS)}.")
    source = entry.get("source")
    if not source:
        raise SpikingError(f"{where}: the constant has no source; expected the key of an entry in [sources].")
    for key in (source, *entry.get("bounds", ())):
        if key not in sources:
            raise SpikingError(
                f"{where}: got source {key!r}; expected a key of [sources]: {', '.join(sources) or 'none'}."
            )
    mark = entry.get("mark")
    if mark not in marks:
        raise SpikingError(f"{where}: got mark {mark!r}; expected {', '.join(f'{k} ({v})' for k, v in marks.items())}.")
    value: Any = entry.get("value")
    low: Any = entry.get("low", value)
    high: Any = entry.get("high", value)
    for what, number in (("value", value), ("low", low), ("high", high)):
        finite = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if not finite or (number <= 0 and not signed):
            above = "" if signed else " above 0"
            raise SpikingError(f"{where}: got {what}={number!r}; expected a finite number{above}.")
    if not low <= value <= high:
        raise SpikingError(f"{where}: got low={low}, value={value}, high={high}; expected low <= value <= high.")
    si_unit, factor = UNITS[unit]
    return Constant(
        name=name,
        value=value * factor,
        low=low * factor,
        high=high * factor,
        si_unit=si_unit,
        unit=unit,
        factor=factor,
        source=source,
        bounds=tuple(entry.get("bounds", ())),
        mark=mark,
        group=str(entry.get("group", name)),
        note=str(entry.get("note", "")),
    )
