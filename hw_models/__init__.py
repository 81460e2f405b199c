"""Energy of a recorded run on real hardware: constants with sources, estimates with intervals, reports."""

from spiking.hw_models.energy import Estimate, Twin, compare, estimate, ratio
from spiking.hw_models.hardware import Constant, Hardware, available, load
from spiking.hw_models.intervals import Interval
from spiking.hw_models.mapping import Placement, place
from spiking.hw_models.report import report, table
from spiking.hw_models.units import figure, si

__all__ = [
    "Constant",
    "Estimate",
    "Hardware",
    "Interval",
    "Placement",
    "Twin",
    "available",
    "compare",
    "estimate",
    "figure",
    "load",
    "place",
    "ratio",
    "report",
    "si",
    "table",
]
