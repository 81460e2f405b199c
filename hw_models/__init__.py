"""Energy of a recorded run on real hardware: constants with sources, estimates with intervals, reports."""

from spiking.hw_models.cellfile import available_cells, load_cell
from spiking.hw_models.arrays import Crossbar
from spiking.hw_models.devices import Cell, Devices
from spiking.hw_models.energy import Estimate, Interval, compare, estimate, ratio, si
from spiking.hw_models.hardware import Constant, Hardware, available, load
from spiking.hw_models.placement import ArrayConfig
from spiking.hw_models.report import report, table

__all__ = [
    "ArrayConfig",
    "Cell",
    "Constant",
    "Crossbar",
    "Devices",
    "Estimate",
    "Hardware",
    "Interval",
    "available",
    "available_cells",
    "compare",
    "estimate",
    "load",
    "load_cell",
    "ratio",
    "report",
    "si",
    "table",
]
