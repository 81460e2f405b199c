"""Other people's models as models of this library, or a reason why not."""

from spiking.convert.ann import (
    ConversionConfig,
    ConversionReport,
    ConvertedNet,
    LayerReport,
    from_ann,
    percentile,
    retrainable_lif,
)
from spiking.convert.network import SpikingNet, Wired
from spiking.convert.offset import OffsetLIF
from spiking.convert.qcfs import QCFS, quantize_activations

__all__ = [
    "QCFS",
    "ConversionConfig",
    "ConversionReport",
    "ConvertedNet",
    "LayerReport",
    "OffsetLIF",
    "SpikingNet",
    "Wired",
    "from_ann",
    "percentile",
    "quantize_activations",
    "retrainable_lif",
]
