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
from spiking.models.lsm.network import ReservoirNetwork
from spiking.models.lsm.readout import Fit, LinearReadout
from spiking.models.lsm.weights import Weights
from spiking.models.lsm.zero_shot import (
    Alignment,
    Sense,
    align,
    contrastive_loss,
    interval,
    retrieval_accuracy,
    zero_shot,
)

__all__ = [
    "Alignment",
    "Diagnosis",
    "Fit",
    "LinearReadout",
    "LiquidStateMachine",
    "LiquidWarning",
    "ReservoirNetwork",
    "ReservoirState",
    "Sense",
    "Weights",
    "align",
    "contrastive_loss",
    "diagnose",
    "interval",
    "memory_capacity",
    "retrieval_accuracy",
    "separation",
    "spectral_radius",
    "zero_shot",
]
