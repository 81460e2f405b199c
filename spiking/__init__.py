"""Spiking neural networks on torch: fused neurons, event data, energy figures that survive review.

>>> import torch, spiking
>>> spiking.LIF(beta=0.5)(torch.full((4, 1, 1), 0.6)).flatten().tolist()
[0.0, 0.0, 1.0, 0.0]
"""

from importlib.metadata import version

from . import functional, surrogate
from .errors import SpikingError
from .neuron import IF, LIF, AdaptiveLIF, CuBaLIF, Neuron, ParametricLIF, Recurrent
from .trace import EventTrace, record

__version__ = version("spiking")
__all__ = [
    "IF",
    "LIF",
    "AdaptiveLIF",
    "CuBaLIF",
    "EventTrace",
    "Neuron",
    "ParametricLIF",
    "Recurrent",
    "SpikingError",
    "__version__",
    "functional",
    "record",
    "surrogate",
]
