"""Whole models, one room each."""

from spiking.models.nmnist import NMNISTConfig, NMNISTNet

__all__ = ["NMNISTConfig", "NMNISTNet"]
