"""Spiking neural networks on torch: fused neurons, event data, energy figures that survive review."""

from importlib.metadata import version

from spiking.trace import EventTrace, record

__version__ = version("spiking")
__all__ = ["EventTrace", "record"]
