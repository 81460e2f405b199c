"""Named memory cells: TOML files whose every constant has a unit, an interval and a source.

A file states the cell's name and in `[forms]` which effects it has, by the names below; its `[[constant]]` tables, checked like
those of a chip (`hardware`), hold the numbers. The constants of an effect are called `<effect>_<field>`; coefficients of a
polynomial `<effect>_c0`, `<effect>_c1`, …

    programming     a curve (`curves`): standard deviation of what is written
    retention       power-law (curves nu_mean, nu_std), relaxation, or aged: one curve an age, age0, age1, …
    flicker, white  curves of the read noise; log-flicker has constants only
    spread, cycle, faults, forming, temperature, telegraph    "yes"
    current         "polynomial": a current that is not proportional to the voltage
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from spiking.hw_models.curves import CURVES, Curve, field_names
from spiking.hw_models.devices import Cell
from spiking.hw_models.effects import (
    MICRO,
    AgedSpread,
    CurrentVoltage,
    Faults,
    FlickerNoise,
    Forming,
    LogFlickerNoise,
    LogNormal,
    PowerLawDrift,
    ProgrammingNoise,
    ReadNoise,
    Relaxation,
    Retention,
    Telegraph,
    Temperature,
    WhiteNoise,
)
from spiking.hw_models.hardware import MARKS, UNITS, Constant, read_constants, read_description

from spiking.errors import SpikingError

CELL_MARKS = {**MARKS, "A": "assumed: no published figure; change it where you know better"}
_CELLS = Path(__file__).parent / "cells"
_FORMS = ("programming", "retention", "nu_mean", "nu_std", "aging", "flicker", "log_flicker", "white", "spread", "cycle",
          "faults", "forming", "temperature", "telegraph", "current")  # fmt: skip
_SCALES = ("log", "linear")
T = TypeVar("T")


def available_cells() -> list[str]:
    """Names of the cells that come with the package, sorted.

    >>> "pcm" in available_cells()
    True
    """
    return sorted(path.stem for path in _CELLS.glob("*.toml"))


def load_cell(cell: str | PathLike[str] | Cell) -> Cell:
    """The cell of a preset's name or of a TOML file, or the one given.

    Errors: SpikingError naming the file and the constant, or near names if the preset is unknown.

    >>> load_cell("pcm").G_max
    2.5e-05
    """
    if isinstance(cell, Cell):
        return cell
    data, path = read_description(cell, _CELLS, "cell", "preset")
    return _Reader(data, path).cell()


class _Reader:
    """Builds a cell from a file's constants and sees that none is left over."""

    def __init__(self, data: dict[str, Any], path: str) -> None:
        for key, kind in (("name", str), ("constant", list)):
            if not isinstance(data.get(key), kind):
                raise SpikingError(
                    f"{path}: got {key}={data.get(key)!r}; every cell states name and [[constant]] tables."
                )
        self.data, self.path = data, path
        self.constants, self.sources = read_constants(data, path, CELL_MARKS, signed=True)
        self.forms: dict[str, str] = dict(data.get("forms", {}))
        for name in self.forms:
            if name not in _FORMS:
                raise SpikingError(f"{path}: [forms]: got {name!r}; expected one of {', '.join(_FORMS)}.")
        self.used: set[str] = set()

    def cell(self) -> Cell:
        data = self.data
        retention, programming = self.retention(), self.programming()
        if isinstance(retention, AgedSpread) and programming is not None:
            raise SpikingError(
                f"{self.path}: [forms]: got programming and retention = 'aged'; expected one of them: both describe what is written."
            )
        found = Cell(
            name=data["name"],
            title=str(data.get("title", data["name"])),
            G_min=self.take("g_min", "S") / MICRO,
            G_max=self.take("g_max", "S") / MICRO,
            bits=int(self.take("bits", "bit", 0)),
            pairing=str(data.get("pairing", "one-sided")),
            rows=int(self.take("rows", "1", 512)),
            columns=int(self.take("columns", "1", 512)),
            r_wire=self.take("r_wire", "ohm", 0),
            v_read=self.take("v_read", "V", 0.2),
            spread=self.effect(LogNormal, "spread"),
            cycle_spread=self.effect(LogNormal, "cycle"),
            programming=programming,
            faults=self.effect(Faults, "faults"),
            forming=self.effect(Forming, "forming"),
            retention=retention,
            temperature=self.effect(Temperature, "temperature", si=True),
            reads=self.reads(),
            telegraph=self.effect(Telegraph, "telegraph", si=True),
            current=self.current(),
            constants=self.constants,
            sources=self.sources,
            notes=tuple(str(note) for note in data.get("notes", [])),
            path=self.path,
        )
        left = [name for name in self.constants if name not in self.used]
        if left:
            raise SpikingError(
                f"{self.path}: {left[0]}: no effect in [forms] uses this constant. Name the effect, or take it out."
            )
        return found

    # Numbers

    def take(self, name: str, si: str, default: float | None = None, in_si: bool = False) -> float:
        """A constant in the unit in which it is written down (µS, nA, s, …), or in SI units."""
        if name not in self.constants:
            if default is not None:
                return default
            raise SpikingError(f"{self.path}: {name}: the constant is missing; expected it with unit and source.")
        found = self.constants[name]
        self.used.add(name)
        if found.si_unit != si:
            fitting = [unit for unit, (base, _) in UNITS.items() if base == si]
            raise SpikingError(f"{self.path}: {name}: got unit {found.unit!r}; expected {' or '.join(fitting)}.")
        return found.value if in_si else _written(found)

    def coefficients(self, prefix: str, out: str, per_siemens: bool) -> tuple[float, ...]:
        found: list[float] = []
        while not found or f"{prefix}_c{len(found)}" in self.constants:
            found.append(self.take(f"{prefix}_c{len(found)}", _over_siemens(out, len(found)) if per_siemens else out))
        return tuple(found)

    # Effects

    def curve(self, slot: str, out: str, form: str | None = None) -> Curve:
        form = form or self.forms.get(slot, "")
        if form not in CURVES:
            raise SpikingError(f"{self.path}: [forms]: got {slot}={form!r}; expected one of {', '.join(CURVES)}.")
        kind = CURVES[form]
        values: dict[str, Any] = {}
        for name in field_names(kind):
            unit = kind.units[name]
            if name == "coefficients":
                values[name] = self.coefficients(slot, out, unit == "out/S^k")
            elif (
                unit == "uS" and f"{slot}_{name}" in self.constants and self.constants[f"{slot}_{name}"].si_unit == "A"
            ) or (unit == "out" and out == "S" and self.constants.get(f"{slot}_{name}", _NONE).si_unit == "A"):
                values[name] = self.current_as_conductance(f"{slot}_{name}")
            else:
                default = 0.0 if name in ("reference", "floor") else None
                values[name] = self.take(f"{slot}_{name}", {"out": out, "uS": "S"}.get(unit, unit), default)
        return kind(**values)

    def current_as_conductance(self, name: str) -> float:
        """µS of a current that was measured at v_read."""
        return self.take(name, "A", in_si=True) / self.take("v_read", "V") * MICRO

    def effect(self, kind: type[T], slot: str, si: bool = False) -> T | None:
        """An effect that has numbers only; in µS and the file's units, or in SI."""
        if slot not in self.forms:
            return None
        units: dict[str, str] = kind.units  # type: ignore[attr-defined]
        return kind(
            **{name: self.take(f"{slot}_{name}", {"uS": "S"}.get(unit, unit), in_si=si) for name, unit in units.items()}
        )

    def programming(self) -> ProgrammingNoise | None:
        return ProgrammingNoise(self.curve("programming", "S")) if "programming" in self.forms else None

    def retention(self) -> Retention | None:
        form = self.forms.get("retention")
        if form is None:
            return None
        if form == "power-law":
            return PowerLawDrift(
                self.curve("nu_mean", "1"), self.curve("nu_std", "1"), self.take("t0", "s", in_si=True)
            )
        if form == "relaxation":
            return self.effect(Relaxation, "retention")
        if form in CURVES:
            scale = self.forms.get("aging", "log")
            if scale not in _SCALES:
                raise SpikingError(f"{self.path}: [forms]: got aging={scale!r}; expected {' or '.join(_SCALES)}.")
            ages: list[float] = []
            curves: list[Curve] = []
            while not ages or f"age{len(ages)}_time" in self.constants:
                slot = f"age{len(ages)}"
                ages.append(self.take(f"{slot}_time", "s", in_si=True))
                curves.append(self.curve(slot, "S", form))
            return AgedSpread(tuple(ages), tuple(curves), scale)
        raise SpikingError(
            f"{self.path}: [forms]: got retention={form!r}; expected power-law, relaxation, or a curve that every age has."
        )

    def reads(self) -> tuple[ReadNoise, ...]:
        found: list[ReadNoise] = []
        if "flicker" in self.forms:
            t0, t_read = (self.take(name, "s", in_si=True) for name in ("t0", "t_read"))
            found.append(FlickerNoise(self.curve("flicker", "1"), t0, t_read))
        if "log_flicker" in self.forms:
            found.append(
                LogFlickerNoise(self.take("log_flicker_factor", "S"), self.take("log_flicker_t_read", "s", in_si=True))
            )
        if "white" in self.forms:
            found.append(WhiteNoise(self.curve("white", "S")))
        return tuple(found)

    def current(self) -> CurrentVoltage | None:
        if "current" not in self.forms:
            return None
        return CurrentVoltage(self.coefficients("second", "A/V2", False), self.coefficients("third", "A/V3", False))


def _written(constant: Constant) -> float:
    return constant.value / constant.factor


def _over_siemens(out: str, power: int) -> str:
    """SI unit of the coefficient of G^power in a polynomial whose value has the unit `out` (S or 1)."""
    exponent = (1 if out == "S" else 0) - power
    return {1: "S", 0: "1"}.get(exponent, f"1/S{-exponent if exponent < -1 else ''}")


_NONE = Constant("", 0.0, 0.0, 0.0, "", "", 1.0, "", (), "", "")

__all__ = ["CELL_MARKS", "available_cells", "load_cell"]
