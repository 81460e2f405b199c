"""SpikeGPT: a language model of spiking RWKV blocks with one stateful forward.

config.py holds every number, model.py the blocks and the network, start.py how its weights begin; windows.py cuts texts for
training and counts bits, sample.py writes, run.py trains.
Source: Zhu et al. 2023 (arXiv 2302.13939).
"""

from spiking.models.spikegpt.classify import SpikeGPTClassifier
from spiking.models.spikegpt.config import SpikeGPTConfig
from spiking.models.spikegpt.model import Block, ChannelMix, SpikeGPT, TimeMix, language_loss
from spiking.models.spikegpt.sample import Writer, load_state, next_token_probabilities, save_state
from spiking.models.spikegpt.windows import Score, TextWindows, score

__all__ = [
    "Block",
    "ChannelMix",
    "Score",
    "SpikeGPT",
    "SpikeGPTClassifier",
    "SpikeGPTConfig",
    "TextWindows",
    "TimeMix",
    "Writer",
    "language_loss",
    "load_state",
    "next_token_probabilities",
    "save_state",
    "score",
]
