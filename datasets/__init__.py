"""Event recordings: files, frames, and the data sets made of them. Needs numpy only."""

from spiking.datasets.events import Events, read_events, write_bin
from spiking.datasets.frames import ToFrames
from spiking.datasets.ragged import RaggedEvents, decode_many

__all__ = ["Events", "RaggedEvents", "ToFrames", "decode_many", "read_events", "write_bin"]
