"""Event recordings: files, frames, and the data sets made of them; labelled images. Needs numpy only."""

from spiking.datasets.events import Events, read_events, write_bin
from spiking.datasets.frames import ToFrames
from spiking.datasets.images import Images, read_images
from spiking.datasets.nmnist import NMNIST
from spiking.datasets.ragged import RaggedEvents, decode_many
from spiking.datasets.simulate import SimulatedNMNIST

__all__ = [
    "NMNIST",
    "Events",
    "Images",
    "RaggedEvents",
    "SimulatedNMNIST",
    "ToFrames",
    "decode_many",
    "read_events",
    "read_images",
    "write_bin",
]
