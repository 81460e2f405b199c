"""IIR-SNN: image classifiers that are converted and then retrained at ever fewer time steps, down to one."""

from spiking.models.iir.energy import price, published_energy
from spiking.models.iir.ladder import LadderConfig, LadderResult, StageReport, reduce_timesteps
from spiking.models.iir.networks import VGG, ResNet, SpikingResNet, SpikingVGG, layer_macs
from spiking.models.iir.watch import Finding, diagnose

__all__ = [
    "VGG",
    "Finding",
    "LadderConfig",
    "LadderResult",
    "ResNet",
    "SpikingResNet",
    "SpikingVGG",
    "StageReport",
    "diagnose",
    "layer_macs",
    "price",
    "published_energy",
    "reduce_timesteps",
]
