"""IIR-SNN: image classifiers that are converted and then retrained at ever fewer time steps, down to one."""

from spiking.models.iir.data import ImageBatches
from spiking.models.iir.energy import price, published_energy
from spiking.models.iir.ladder import LadderConfig, LadderResult, StageReport, reduce_timesteps
from spiking.models.iir.networks import VGG, ResNet, SpikingResNet, SpikingVGG, layer_macs
from spiking.models.iir.run import PRESETS, Preset, Recipe, build, open_images, run, split, train_ann
from spiking.models.iir.watch import Finding, diagnose

__all__ = [
    "PRESETS",
    "VGG",
    "Finding",
    "ImageBatches",
    "LadderConfig",
    "LadderResult",
    "Preset",
    "Recipe",
    "ResNet",
    "SpikingResNet",
    "SpikingVGG",
    "StageReport",
    "build",
    "diagnose",
    "layer_macs",
    "open_images",
    "price",
    "published_energy",
    "reduce_timesteps",
    "run",
    "split",
    "train_ann",
]
