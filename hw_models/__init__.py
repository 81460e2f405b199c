"""Energy of a recorded run on real hardware: constants with sources, estimates with intervals, reports."""

from spiking.hw_models.energy import Estimate, Interval, compare, estimate, ratio, si
from spiking.hw_models.hardware import Constant, Hardware, available, load
from spiking.hw_models.quantize import FixedPoint, Precision, bake, quantize
from spiking.hw_models.regulariser import EnergyLoss, energy_loss
from spiking.hw_models.report import report, table

__all__ = [
    "Constant",
    "EnergyLoss",
    "Estimate",
    "FixedPoint",
    "Hardware",
    "Interval",
    "Precision",
    "available",
    "bake",
    "compare",
    "energy_loss",
    "estimate",
    "load",
    "quantize",
    "ratio",
    "report",
    "si",
    "table",
]
