"""IIR-SNN: image classifiers that are converted and then retrained at ever fewer time steps, down to one."""

from spiking.models.iir.networks import VGG, ResNet, SpikingResNet, SpikingVGG, layer_macs

__all__ = ["VGG", "ResNet", "SpikingResNet", "SpikingVGG", "layer_macs"]
