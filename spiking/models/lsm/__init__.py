"""Liquid state machines: fixed random reservoirs, as the randomness of memory cells gives them, and linear readouts."""

from spiking.models.lsm.diagnosis import (
    Diagnosis,
    LiquidWarning,
    diagnose,
    memory_capacity,
    separation,
    spectral_radius,
)
from spiking.models.lsm.model import LiquidStateMachine, ReservoirState
from spiking.models.lsm.readout import Fit, LinearReadout
from spiking.models.lsm.weights import Weights

__all__ = [
    "Diagnosis",
    "Fit",
    "LinearReadout",
    "LiquidStateMachine",
    "LiquidWarning",
    "ReservoirState",
    "Weights",
    "diagnose",
    "memory_capacity",
    "separation",
    "spectral_radius",
]
