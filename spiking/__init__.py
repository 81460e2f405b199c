"""Spiking neural networks on torch: fused neurons, event data, energy figures that survive review."""

from importlib.metadata import version

__version__ = version("spiking")
