"""Spoken digits heard by a cochlea (N-TIDIGITS and its kin): a recurrent spiking network, with learned synaptic delays if wanted.

config.py holds every number, model.py the network, data.py frames and augmentation, run.py training from recordings to report.
Sources: Anumula, Neil, Delbruck, Liu 2018 (doi 10.3389/fnins.2018.00023) for the data; Hammouamri, Khalfaoui-Hassani, Masquelier 2024
(arXiv 2306.17670) for the delays.
"""

from spiking.models.ntidigits.config import FrameConfig, NTIDIGITSConfig, Recipe
from spiking.models.ntidigits.data import SoundBatches
from spiking.models.ntidigits.model import NTIDIGITSNet, optimizer
from spiking.models.ntidigits.run import Recordings, build, open_recordings, split

__all__ = [
    "FrameConfig",
    "NTIDIGITSConfig",
    "NTIDIGITSNet",
    "Recipe",
    "Recordings",
    "SoundBatches",
    "build",
    "open_recordings",
    "optimizer",
    "split",
]
