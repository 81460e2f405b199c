"""Logic energy at another process node and supply voltage.

    E₂ = E₁ · f(node₂, V₂) / f(node₁, V₁),     f = a₂·V² + a₁·V + a₀

The polynomials hold for logic only: memory beyond the core, wires, converters and memory cells do not scale with them.
Source: Stillmaker, Baas 2017 (10.1016/j.vlsi.2017.02.002), tables of coefficients, with the authors' correction.
"""

from __future__ import annotations

import math

from spiking.hw_models.intervals import Interval

from spiking.errors import SpikingError

_ENERGY: dict[str, tuple[float, float, float]] = {  # HP: high performance, LP: low power
    "130": (7.171, -6.709, 2.904),
    "90": (4.762, -4.781, 2.092),
    "65": (3.755, -4.398, 1.975),
    "HP45": (1.018, -0.3107, 0.1539),
    "LP45": (1.103, -0.362, 0.2767),
    "HP32": (0.8367, -0.4341, 0.1701),
    "LP32": (0.9559, -0.7823, 0.471),
    "HP20": (0.373, -0.1582, 0.04104),
    "LP20": (0.2632, -0.14, 0.06841),
    "HP16": (0.2958, -0.1241, 0.03024),
    "LP16": (0.2139, -0.1187, 0.05639),
    "HP14": (0.2363, -0.09675, 0.02239),
    "LP14": (0.1556, -0.06472, 0.03066),
    "HP10": (0.2068, -0.09311, 0.02375),
    "LP10": (0.1261, -0.0518, 0.02769),
    "HP7": (0.1776, -0.09097, 0.02447),
    "LP7": (0.09365, -0.03409, 0.02043),
}
_NODES = sorted({int(name.lstrip("HLP")) for name in _ENERGY})
_AREA = {180: 19.0, 130: 6.4, 90: 2.8, 65: 1.5, 45: 1.0, 32: 0.46, 20: 0.21, 16: 0.19, 14: 0.17, 10: 0.1, 7: 0.059}
BIBTEX = """@article{stillmaker2017,
  author  = {Stillmaker, Aaron and Baas, Bevan},
  title   = {Scaling equations for the accurate prediction of {CMOS} device performance from 180 nm to 7 nm},
  journal = {Integration},
  volume  = {58},
  pages   = {74--81},
  year    = {2017},
  doi     = {10.1016/j.vlsi.2017.02.002},
}"""


def energy_factor(process: str, voltage: float) -> float:
    """Relative logic energy of a process of the table, such as "HP45", "LP14" or "65", at a supply voltage.

    Errors: SpikingError if the table does not have the process.

    >>> round(energy_factor("HP32", 0.9) / energy_factor("65", 1.3), 5)
    0.17558
    """
    if process not in _ENERGY:
        raise SpikingError(f"energy_factor: got process {process!r}; expected one of {', '.join(_ENERGY)}.")
    a2, a1, a0 = _ENERGY[process]
    return a2 * voltage**2 + a1 * voltage + a0


def scale(node: float, voltage: float, to_node: float, to_voltage: float) -> Interval:
    """Factor on a logic energy between two nodes, with its uncertainty.

    Nominal: both ends in the high-performance process. Low and high: over both processes at the target, and its supply
    voltage ±10 %. A node between two of the table is interpolated in the logarithms of node and energy.
    Units: nodes in nm, voltages in volts.
    Errors: SpikingError if a node lies outside of the table (7 to 130 nm).

    >>> factor = scale(45, 0.9, 14, 0.75)
    >>> round(factor.nominal, 4), factor.low < factor.nominal < factor.high
    (0.1184, True)
    >>> scale(45, 0.9, 45, 0.9)
    Interval(low=1.0, nominal=1.0, high=1.0)
    """
    if (node, voltage) == (to_node, to_voltage):
        return Interval(1.0, 1.0, 1.0)
    start = _at(node, voltage, "HP")
    spread = [_at(to_node, to_voltage * v, kind) / start for kind in ("HP", "LP") for v in (0.9, 1.0, 1.1)]
    return Interval(min(spread), _at(to_node, to_voltage, "HP") / start, max(spread))


def area_factor(node: int, to_node: int) -> float:
    """Factor on a logic area between two nodes of the table.

    >>> area_factor(45, 14)
    0.17
    """
    for n in (node, to_node):
        if n not in _AREA:
            raise SpikingError(f"area_factor: got node {n} nm; expected one of {', '.join(map(str, sorted(_AREA)))}.")
    return _AREA[to_node] / _AREA[node]


def _at(node: float, voltage: float, kind: str) -> float:
    if not _NODES[0] <= node <= _NODES[-1]:
        raise SpikingError(f"scale: got a node of {node:g} nm; expected {_NODES[0]} to {_NODES[-1]} nm.")

    def exact(n: int) -> float:
        return energy_factor(f"{n}" if f"{n}" in _ENERGY else f"{kind}{n}", voltage)

    below = max(n for n in _NODES if n <= node)
    above = min(n for n in _NODES if n >= node)
    if below == above:
        return exact(below)
    x = math.log(node / below) / math.log(above / below)
    return exact(below) ** (1 - x) * exact(above) ** x
