"""Spiking diffusion models: images from noise, by a spiking U-Net.

config.py holds every number, unet.py the denoiser, tsm.py its temporal weights, schedule.py noise and samplers,
model.py all of it together.
Source: Cao et al. 2024, Spiking Diffusion Models (IEEE TAI; arXiv 2408.16467).
"""

from spiking.models.diffusion.config import DiffusionConfig, UNetConfig
from spiking.models.diffusion.model import Samples, SpikingDiffusion
from spiking.models.diffusion.schedule import NoiseSchedule, published_steps, spaced_steps
from spiking.models.diffusion.tsm import TemporalWise, temporal_weights, temporal_wise
from spiking.models.diffusion.unet import ResBlock, SpikingUNet, from_published, with_threshold

__all__ = [
    "DiffusionConfig",
    "NoiseSchedule",
    "ResBlock",
    "Samples",
    "SpikingDiffusion",
    "SpikingUNet",
    "TemporalWise",
    "UNetConfig",
    "from_published",
    "published_steps",
    "spaced_steps",
    "temporal_weights",
    "temporal_wise",
    "with_threshold",
]
