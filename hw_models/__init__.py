"""Energy of a recorded run on real hardware: constants with sources, estimates with intervals, reports."""

from spiking.hw_models._checks import EnergyWarning, check_claim
from spiking.hw_models.energy import Estimate, Twin, compare, estimate, ratio
from spiking.hw_models.hardware import Constant, Hardware, available, load
from spiking.hw_models.intervals import Interval
from spiking.hw_models.mapping import Placement, place
from spiking.hw_models.metrics import neurobench
from spiking.hw_models.quantize import FixedPoint, Precision, bake, quantize
from spiking.hw_models.regulariser import EnergyLoss, energy_loss
from spiking.hw_models.report import report
from spiking.hw_models.tables import comparison, table
from spiking.hw_models.units import figure, si
from spiking.hw_models.validation import Check, verify

__all__ = [
    "Check",
    "Constant",
    "EnergyLoss",
    "EnergyWarning",
    "Estimate",
    "FixedPoint",
    "Hardware",
    "Interval",
    "Placement",
    "Precision",
    "Twin",
    "available",
    "bake",
    "check_claim",
    "compare",
    "comparison",
    "energy_loss",
    "estimate",
    "figure",
    "load",
    "neurobench",
    "place",
    "quantize",
    "ratio",
    "report",
    "si",
    "table",
    "verify",
]
