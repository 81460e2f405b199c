"""IIR-SNN: image classifiers that are converted and then retrained at ever fewer time steps, down to one."""

from spiking.models.iir.data import ImageBatches
from spiking.models.iir.energy import price, published_energy
from spiking.models.iir.ladder import LadderConfig, LadderResult, StageReport, reduce_timesteps
from spiking.models.iir.networks import VGG, ResNet, SpikingResNet, SpikingVGG
from spiking.models.iir.run import PRESETS, Preset, Recipe, build, open_images, run, split, train_ann
from spiking.models.iir.sizes import LayerSize, layer_macs, layer_sizes, price_at_rates, read_rates
from spiking.models.iir.watch import Finding, diagnose

__all__ = [
    "PRESETS",
    "VGG",
    "Finding",
    "ImageBatches",
    "LadderConfig",
    "LadderResult",
    "LayerSize",
    "Preset",
    "Recipe",
    "ResNet",
    "SpikingResNet",
    "SpikingVGG",
    "StageReport",
    "build",
    "diagnose",
    "layer_macs",
    "layer_sizes",
    "open_images",
    "price",
    "price_at_rates",
    "published_energy",
    "read_rates",
    "reduce_timesteps",
    "run",
    "split",
    "train_ann",
]
