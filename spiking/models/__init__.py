"""Whole models, one room each."""

from spiking.models.iir import SpikingResNet, SpikingVGG
from spiking.models.nmnist import NMNISTConfig, NMNISTNet

__all__ = ["NMNISTConfig", "NMNISTNet", "SpikingResNet", "SpikingVGG"]
