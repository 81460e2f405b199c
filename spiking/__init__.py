"""Spiking neural networks on torch: fused neurons, event data, energy figures that survive review.

>>> import torch, spiking
>>> spiking.LIF(beta=0.5)(torch.full((4, 1, 1), 0.6)).flatten().tolist()
[0.0, 0.0, 1.0, 0.0]
"""

import importlib
from importlib.metadata import version
from types import ModuleType

from . import encode, functional, loss, surrogate
from ._multilevel import MultiLevelLIF
from .delays import DelayedLinear
from .engine import compile_events
from .errors import SpikingError
from .explain import explain
from .functional import event_driven
from .layer import (
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    Linear,
    MaxPool2d,
    Sequential,
    TDBatchNorm1d,
    TDBatchNorm2d,
)
from .neuron import IF, LIF, AdaptiveLIF, CuBaLIF, Neuron, ParametricLIF, Recurrent
from .trace import EventTrace, record

__version__ = version("spiking")
__all__ = [
    "IF",
    "LIF",
    "AdaptiveLIF",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "CuBaLIF",
    "DelayedLinear",
    "Dropout",
    "EventTrace",
    "Flatten",
    "Linear",
    "MaxPool2d",
    "MultiLevelLIF",
    "Neuron",
    "ParametricLIF",
    "Recurrent",
    "Sequential",
    "SpikingError",
    "TDBatchNorm1d",
    "TDBatchNorm2d",
    "__version__",
    "compile_events",
    "encode",
    "event_driven",
    "explain",
    "functional",
    "loss",
    "record",
    "surrogate",
]

# Loaded at their first use (spiking.models.NMNISTNet), because they import optional or slow packages.
_LATER = ("benchmarks", "checkpoint", "convert", "datasets", "hw_models", "models", "plot", "training")


def __getattr__(name: str) -> ModuleType:
    if name in _LATER:
        return importlib.import_module(f"spiking.{name}")
    raise AttributeError(f"module 'spiking' has no attribute {name!r}")
