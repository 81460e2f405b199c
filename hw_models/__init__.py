"""Energy of a recorded run on real hardware: constants with sources, estimates with intervals, reports."""

from spiking.hw_models.energy import Estimate, Interval, compare, estimate, ratio, si
from spiking.hw_models.hardware import Constant, Hardware, available, load
from spiking.hw_models.report import report, table

__all__ = [
    "Constant",
    "Estimate",
    "Hardware",
    "Interval",
    "available",
    "compare",
    "estimate",
    "load",
    "ratio",
    "report",
    "si",
    "table",
]
