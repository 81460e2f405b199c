"""Hardware descriptions: TOML files whose every constant has a unit, an interval and a source.

A file states a chip's name, its kind and its `[[constant]]` tables: name, value, unit, and where more than one source
is known low and high; source is a key of `[sources]`, which holds BibTeX. Values are converted to SI once, here.

Five kinds exist, and each reads its own constants (`QUANTITIES` lists all names with the unit that they need):

    digital    an operation and a memory word have prices                                         (digital.py)
    event      an event processor: price per synaptic event and neuron update, static power       (event.py)
    mesh       a many-core with routers: packets and hops besides                                 (mesh.py)
    crossbar   weights in memory arrays: rows, converters, shift-and-add                          (crossbar.py)
    macro      a crossbar of which only the energy of a whole array read is published             (crossbar.py)
"""

from __future__ import annotations

import difflib
import math
import os
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

from spiking.errors import SpikingError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNITS = {
    "pJ": ("J", 1e-12),
    "fJ": ("J", 1e-15),
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
    "GHz": ("Hz", 1e9),
    "GB/s": ("B/s", 1e9),
    "uS": ("S", 1e-6),
    "1/uS": ("1/S", 1e6),
    "1/uS2": ("1/S2", 1e12),
    "1/uS3": ("1/S3", 1e18),
    "V": ("V", 1.0),
    "nA": ("A", 1e-9),
    "A/V2": ("A/V2", 1.0),
    "A/V3": ("A/V3", 1.0),
    "ohm": ("ohm", 1.0),
    "kohm": ("ohm", 1e3),
    "K": ("K", 1.0),
    "1/K": ("1/K", 1.0),
    "eV": ("J", 1.602176634e-19),
    "um2": ("m2", 1e-12),
    "mm2": ("m2", 1e-6),
    "bit": ("bit", 1.0),
    "1": ("1", 1.0),
}
"""Units that a file may use: unit → (SI unit, factor)."""

_DIMENSIONS = {
    "J": "an energy",
    "s": "a time",
    "W": "a power",
    "Hz": "a frequency",
    "B/s": "a bandwidth",
    "S": "a conductance",
    "V": "a voltage",
    "ohm": "a resistance",
    "m2": "an area",
    "bit": "a number of bits",
    "1": "a plain number",
}
_DIGITAL = [f"{p}_{op}" for p in ("fp32", "fp16", "int32", "int8") for op in ("add", "mul", "cmp")]
_EVENTS = ("synop", "neuron_idle", "neuron_active", "spike", "packet_out", "packet_in", "hop_ew", "hop_ns")
QUANTITIES: dict[str, str] = {
    **dict.fromkeys((*_DIGITAL, "sram_8KiB", "sram_32KiB", "sram_1MiB", "dram", "memory_bit", "register_bit"), "J"),
    **dict.fromkeys((*_EVENTS, "neuron_update", "mac", "idle_cycle"), "J"),
    **dict.fromkeys((*(f"{name}_time" for name in _EVENTS), "step_time", "read_time", "barrier_chips_time"), "s"),
    **dict.fromkeys(("static_power", "core_power"), "W"),
    **dict.fromkeys(("clock", "adc_rate"), "Hz"),
    "bandwidth": "B/s",
    **dict.fromkeys(("cores", "lanes", "synop_cycles", "tiles_x", "tiles_y", "cores_per_tile"), "1"),
    **dict.fromkeys(("max_neurons", "max_axons_in", "max_axons_out"), "1"),
    **dict.fromkeys(("synapse_memory", "weight_bits", "cell_bits", "dac_bits", "adc_bits"), "bit"),
    **dict.fromkeys(("rows", "columns", "columns_per_weight", "adcs"), "1"),
    **dict.fromkeys(("cell_read", "dac", "sample_hold", "shift_add", "buffer_byte", "bus_byte", "flit_hop"), "J"),
    **{f"adc_{bits}b": "J" for bits in range(1, 17)},
    "macro_mac": "J",
    **dict.fromkeys(("g_min", "g_max"), "S"),
    "v_read": "V",
    **dict.fromkeys(("r_word", "r_bit"), "ohm"),
    **dict.fromkeys(("core_area", "cell_area", "adc_area"), "m2"),
}
"""Constants that a file may hold: name → SI unit. `barrier_<n>_time`, the barrier over n tiles, is a time as well."""

KINDS = ("digital", "event", "mesh", "crossbar", "macro")
ACCOUNTINGS = ("published", "operations", "with-memory")
PRECISIONS = {"fp32": 32, "fp16": 16, "int32": 32, "int8": 8}
"""Bits of one word of each precision."""

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
    chip: str = ""
    node_nm: float | None = None
    voltage: float | None = None

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
    """A chip: its constants by name, the BibTeX of its sources, and notes that every report repeats.

    `average`: its price per event is chip power over event rate at one operating point, which contains what does not
    depend on events. `modelled`: its constants come from simulation, not from silicon. `skips_zeros`: False if an
    operation costs the same whether its operand is zero or not. `accounting`, `precision`: what an estimate uses
    unless told otherwise.
    """

    name: str
    title: str
    kind: str
    node_nm: float
    voltage: float | None = None
    average: bool = False
    modelled: bool = False
    skips_zeros: bool = True
    accounting: str = "operations"
    precision: str = "fp32"
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

    def get(self, name: str) -> float:
        """The value of a constant in SI units, 0 if the file does not have it."""
        return self.constants[name].value if name in self.constants else 0.0


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
    text = os.fspath(hardware)
    return _read(text) if text.endswith(".toml") else _shipped(text)


@cache
def _shipped(name: str) -> Hardware:
    """A chip of the package, read once: every estimate needs its host and its twins again."""
    return _read(name)


def _read(name: str) -> Hardware:
    return _parse(*read_description(name, _CHIPS, "hardware", "chip"))


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


_CHOICES: dict[str, tuple[str, ...]] = {"kind": KINDS, "accounting": ACCOUNTINGS, "precision": tuple(PRECISIONS)}
_SWITCHES = ("average", "modelled", "skips_zeros")


def _parse(data: dict[str, Any], path: str) -> Hardware:
    for key, kind in (("name", str), ("node_nm", (int, float)), ("constant", list)):
        if not isinstance(data.get(key), kind):
            raise SpikingError(
                f"{path}: got {key}={data.get(key)!r}; every hardware file states name, node_nm and [[constant]] tables."
            )
    facts: dict[str, Any] = {"kind": "digital"}
    for key, choices in _CHOICES.items():
        if key in data:
            facts[key] = data[key]
            if data[key] not in choices:
                raise SpikingError(f"{path}: got {key}={data[key]!r}; expected one of {', '.join(choices)}.")
    for key in _SWITCHES:
        if key in data:
            facts[key] = data[key]
            if not isinstance(data[key], bool):
                raise SpikingError(f"{path}: got {key}={data[key]!r}; expected true or false.")
    for key in ("node_nm", "voltage"):
        number = data.get(key, 1.0)
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
            raise SpikingError(f"{path}: got {key}={number!r}; expected a finite number above 0.")
    constants, sources = read_constants(data, path, chip=data["name"])
    return Hardware(
        name=data["name"],
        title=str(data.get("title", data["name"])),
        node_nm=float(data["node_nm"]),
        voltage=float(data["voltage"]) if "voltage" in data else None,
        constants=constants,
        sources=sources,
        notes=tuple(str(note) for note in data.get("notes", [])),
        path=path,
        **facts,
    )


def _check_unit(name: str, unit: str, where: str) -> None:
    """SpikingError unless an estimate knows a constant of this name, in units of this kind."""
    if name not in QUANTITIES and not re.fullmatch(r"barrier_\d+_time", name):
        near = difflib.get_close_matches(name, QUANTITIES, n=3, cutoff=0.5)
        hint = f", such as {', '.join(near)}" if near else ": hw_models.hardware.QUANTITIES lists them"
        raise SpikingError(f"{where}: no estimate uses a constant of this name; expected a known one{hint}.")
    got, expected = UNITS[unit][0], QUANTITIES.get(name, "s")
    if got != expected:
        fitting = next(u for u, (si, _) in UNITS.items() if si == expected)
        raise SpikingError(
            f"{where}: got unit {unit!r}, {_DIMENSIONS.get(got, f'a quantity in {got}')}; "
            f"expected {_DIMENSIONS[expected]} such as {fitting!r}."
        )


def read_constants(
    data: dict[str, Any], path: str, marks: dict[str, str] = MARKS, signed: bool = False, chip: str | None = None
) -> tuple[dict[str, Constant], dict[str, str]]:
    """The `[[constant]]` tables of a description by name, and its `[sources]`; `signed` admits zero and negative values.

    With `chip`, the constants are that chip's: only the names of `QUANTITIES`, each in its unit.
    Errors: SpikingError naming the file and the constant.
    """
    sources = {str(key): str(text).strip() for key, text in data.get("sources", {}).items()}
    constants: dict[str, Constant] = {}
    for entry in data["constant"]:
        constant = _constant(entry, path, sources, marks, signed, chip)
        if constant.name in constants:
            raise SpikingError(f"{path}: {constant.name}: the constant is given twice; expected once.")
        constants[constant.name] = constant
    return constants, sources


def _constant(
    entry: dict[str, Any], path: str, sources: dict[str, str], marks: dict[str, str], signed: bool, chip: str | None
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
    if chip is not None:
        _check_unit(name, unit, where)
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
        chip=chip or "",
        node_nm=entry.get("node_nm"),
        voltage=entry.get("voltage"),
    )
