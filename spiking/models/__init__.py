"""Whole models, one room each."""

from spiking.models.iir import SpikingResNet, SpikingVGG
from spiking.models.lsm import LiquidStateMachine
from spiking.models.nmnist import NMNISTConfig, NMNISTNet
from spiking.models.ntidigits import NTIDIGITSConfig, NTIDIGITSNet
from spiking.models.spikegpt import SpikeGPT, SpikeGPTConfig

__all__ = [
    "LiquidStateMachine",
    "NMNISTConfig",
    "NMNISTNet",
    "NTIDIGITSConfig",
    "NTIDIGITSNet",
    "SpikeGPT",
    "SpikeGPTConfig",
    "SpikingResNet",
    "SpikingVGG",
]
