"""Networks on real hardware: energy with intervals, accuracy on arrays of memory cells; every constant with its source."""

from spiking.hw_models.arrays import Crossbar
from spiking.hw_models.calibration import LayerError, calibrate, layer_errors
from spiking.hw_models.cellfile import available_cells, load_cell
from spiking.hw_models.deploy import age, array_layers, deploy
from spiking.hw_models.devices import Cell, Devices
from spiking.hw_models.energy import Estimate, Interval, compare, estimate, ratio, si
from spiking.hw_models.hardware import Constant, Hardware, available, load
from spiking.hw_models.montecarlo import MonteCarlo, monte_carlo
from spiking.hw_models.noisy import noise_aware
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
    "LayerError",
    "MonteCarlo",
    "age",
    "array_layers",
    "available",
    "available_cells",
    "calibrate",
    "compare",
    "deploy",
    "estimate",
    "layer_errors",
    "load",
    "load_cell",
    "monte_carlo",
    "noise_aware",
    "ratio",
    "report",
    "si",
    "table",
]
