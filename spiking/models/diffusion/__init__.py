"""Spiking diffusion models: images from noise, by a spiking U-Net.

config.py holds every number, unet.py the denoiser, tsm.py its temporal weights.
Source: Cao et al. 2024, Spiking Diffusion Models (IEEE TAI; arXiv 2408.16467).
"""

from spiking.models.diffusion.config import DiffusionConfig, UNetConfig
from spiking.models.diffusion.tsm import TemporalWise, temporal_weights, temporal_wise
from spiking.models.diffusion.unet import ResBlock, SpikingUNet, from_published, with_threshold

__all__ = [
    "DiffusionConfig",
    "ResBlock",
    "SpikingUNet",
    "TemporalWise",
    "UNetConfig",
    "from_published",
    "temporal_weights",
    "temporal_wise",
    "with_threshold",
]
