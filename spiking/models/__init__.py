"""Whole models, one room each."""

from spiking.models.iir import SpikingResNet, SpikingVGG
from spiking.models.nmnist import NMNISTConfig, NMNISTNet
from spiking.models.spikegpt import SpikeGPT, SpikeGPTConfig

__all__ = ["NMNISTConfig", "NMNISTNet", "SpikeGPT", "SpikeGPTConfig", "SpikingResNet", "SpikingVGG"]
