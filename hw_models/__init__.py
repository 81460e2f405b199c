"""Energy of a recorded run on real hardware: constants with sources, estimates with intervals, reports."""

from spiking.hw_models.energy import Estimate, Twin, compare, estimate, ratio
from spiking.hw_models.hardware import Constant, Hardware, available, load
from spiking.hw_models.intervals import Interval
from spiking.hw_models.mapping import Placement, place
from spiking.hw_models.quantize import FixedPoint, Precision, bake, quantize
from spiking.hw_models.regulariser import EnergyLoss, energy_loss
from spiking.hw_models.report import report, table
from spiking.hw_models.units import figure, si

__all__ = [
    "Constant",
    "EnergyLoss",
    "Estimate",
    "FixedPoint",
    "Hardware",
    "Interval",
    "Placement",
    "Precision",
    "Twin",
    "available",
    "bake",
    "compare",
    "energy_loss",
    "estimate",
    "figure",
    "load",
    "place",
    "quantize",
    "ratio",
    "report",
    "si",
    "table",
]
