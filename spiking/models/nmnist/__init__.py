"""The common tutorial: handwritten digits seen by a moving event camera (N-MNIST).

config.py holds every number, model.py the networks, data.py frames and augmentation, baseline.py what is not spiking,
run.py training from recordings to report.
Source of the data: Orchard et al. 2015 (arXiv 1507.07629).
"""

from spiking.classify import objective
from spiking.models.nmnist.config import FrameConfig, NMNISTConfig, Recipe
from spiking.models.nmnist.data import EventBatches
from spiking.models.nmnist.model import NMNISTNet
from spiking.models.nmnist.run import build, default_epochs, hold_out, proportion

__all__ = [
    "EventBatches",
    "FrameConfig",
    "NMNISTConfig",
    "NMNISTNet",
    "Recipe",
    "build",
    "default_epochs",
    "hold_out",
    "objective",
    "proportion",
]
