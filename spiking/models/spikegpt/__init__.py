"""SpikeGPT: a language model of spiking RWKV blocks with one stateful forward.

config.py holds every number, model.py the blocks and the network, start.py how its weights begin.
Source: Zhu et al. 2023 (arXiv 2302.13939).
"""

from spiking.models.spikegpt.config import SpikeGPTConfig
from spiking.models.spikegpt.model import Block, ChannelMix, SpikeGPT, TimeMix, language_loss

__all__ = ["Block", "ChannelMix", "SpikeGPT", "SpikeGPTConfig", "TimeMix", "language_loss"]
