"""Networks on real hardware: energy with intervals, accuracy on arrays of memory cells; every constant with its source."""

from spiking.hw_models._checks import EnergyWarning, check_claim
from spiking.hw_models.arrays import Crossbar
from spiking.hw_models.calibration import LayerError, calibrate, layer_errors
from spiking.hw_models.cellfile import available_cells, load_cell
from spiking.hw_models.deploy import age, array_layers, deploy
from spiking.hw_models.devices import Cell, Devices
from spiking.hw_models.energy import Estimate, Twin, compare, estimate, ratio
from spiking.hw_models.figures import figures, save_figures
from spiking.hw_models.hardware import Constant, Hardware, available, load
from spiking.hw_models.intervals import Interval
from spiking.hw_models.mapping import Placement, place
from spiking.hw_models.metrics import neurobench
from spiking.hw_models.montecarlo import MonteCarlo, monte_carlo
from spiking.hw_models.noisy import noise_aware
from spiking.hw_models.placement import ArrayConfig
from spiking.hw_models.quantize import FixedPoint, Precision, bake, quantize
from spiking.hw_models.regulariser import EnergyLoss, energy_loss
from spiking.hw_models.report import report
from spiking.hw_models.tables import comparison, table
from spiking.hw_models.units import figure, si
from spiking.hw_models.validation import Check, verify

__all__ = [
    "ArrayConfig",
    "Cell",
    "Check",
    "Constant",
    "Crossbar",
    "Devices",
    "EnergyLoss",
    "EnergyWarning",
    "Estimate",
    "FixedPoint",
    "Hardware",
    "Interval",
    "LayerError",
    "MonteCarlo",
    "Placement",
    "Precision",
    "Twin",
    "age",
    "array_layers",
    "available",
    "available_cells",
    "bake",
    "calibrate",
    "check_claim",
    "compare",
    "comparison",
    "deploy",
    "energy_loss",
    "estimate",
    "figure",
    "figures",
    "layer_errors",
    "load",
    "load_cell",
    "monte_carlo",
    "neurobench",
    "noise_aware",
    "place",
    "quantize",
    "ratio",
    "report",
    "save_figures",
    "si",
    "table",
    "verify",
]
