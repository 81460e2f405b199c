"""Energy of a recorded run on real hardware: constants with sources, estimates with intervals, reports."""

from spiking.hw_models.energy import Estimate, Interval, compare, estimate, ratio
from spiking.hw_models.hardware import Constant, Hardware, available, load

__all__ = ["Constant", "Estimate", "Hardware", "Interval", "available", "compare", "estimate", "load", "ratio"]
