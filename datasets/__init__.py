"""Event recordings of sight and sound: files, frames, and the data sets made of them; labelled images. Needs numpy only."""

from spiking.datasets.audio import AudioSet
from spiking.datasets.cochlea import Cochlea, read_wav
from spiking.datasets.events import Events, read_events, write_bin
from spiking.datasets.frames import ToFrames
from spiking.datasets.images import Images, read_images
from spiking.datasets.nmnist import NMNIST
from spiking.datasets.ntidigits import NTIDIGITS, SHD, SSC
from spiking.datasets.ragged import RaggedEvents, decode_many
from spiking.datasets.simulate import SimulatedNMNIST
from spiking.datasets.sound import open_sound
from spiking.datasets.spoken import SpokenDigits
from spiking.datasets.voices import SimulatedDigits

__all__ = [
    "NMNIST",
    "NTIDIGITS",
    "SHD",
    "SSC",
    "AudioSet",
    "Cochlea",
    "Events",
    "Images",
    "RaggedEvents",
    "SimulatedDigits",
    "SimulatedNMNIST",
    "SpokenDigits",
    "ToFrames",
    "decode_many",
    "open_sound",
    "read_events",
    "read_images",
    "read_wav",
    "write_bin",
]
