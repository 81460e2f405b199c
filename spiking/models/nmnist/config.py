"""Every number of the N-MNIST recipe, with its default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from spiking.classify import check_fields
from spiking.errors import SpikingError
from spiking.functional import Reset
from spiking.training import TrainConfig


@dataclass(frozen=True)
class NMNISTConfig:
    """The network: "conv" is the common tutorial network, "mlp" has one hidden layer.

    `norm`: "batch" normalises each convolution's output over time and batch, "td" scales by the threshold, "none" neither.
    `readout`: what decides, the mean of the output's "membrane" or its spike "rate". An `output_reset` of "none" lets the
    output membrane add up evidence undisturbed by its own spikes.
    """

    kind: str = "conv"
    hidden: int = 256
    norm: str = "batch"
    pool: str = "avg"
    dropout: float = 0.0
    beta: float = 0.5
    threshold: float = 1.0
    reset: Reset = "subtract"
    detach_reset: bool = True
    surrogate_alpha: float = 2.0
    output_beta: float = 0.9
    output_reset: Reset = "none"
    readout: str = "membrane"
    classes: int = 10

    def __post_init__(self) -> None:
        resets = ("subtract", "zero", "none")
        check_fields(
            self,
            {
                "kind": ("conv", "mlp"),
                "norm": ("batch", "td", "none"),
                "pool": ("max", "avg"),
                "reset": resets,
                "output_reset": resets,
                "readout": ("membrane", "rate"),
            },
            {"hidden": (1, math.inf), "classes": (10, math.inf), "beta": (0, 1), "output_beta": (0, 1)},
        )
        if not 0 <= self.dropout < 1:
            raise SpikingError(f"NMNISTConfig.dropout: got {self.dropout}; expected 0 <= dropout < 1.")


@dataclass(frozen=True)
class FrameConfig:
    """How events become frames [T, 2, 34, 34], and how training varies them anew each epoch.

    `saccades`: "undo" shifts each event back by the known motion of the camera, which makes the digit stand still; "keep"
    leaves events where the sensor saw them. `counts`: "clip" makes a pixel 0 or 1 in each bin, so that the network reads
    spikes and multiplies nothing; "log" takes log(1 + n), "linear" n.
    Augmentation, each drawn evenly from ± its value: rotation in degrees, zoom and shear as a ratio, shift in pixels; `elastic`
    is the standard deviation, in pixels, of a smooth random displacement (5×5 knots over the sensor).
    """

    time_bins: int = 6
    window_us: int = 315_000
    saccades: str = "undo"
    counts: str = "clip"
    rotation: float = 15.0
    zoom: float = 0.15
    shear: float = 0.2
    shift: float = 3.0
    elastic: float = 1.2

    def __post_init__(self) -> None:
        check_fields(
            self,
            {"saccades": ("undo", "keep"), "counts": ("log", "clip", "linear")},
            {
                "time_bins": (1, 1000),
                "window_us": (1, math.inf),
                "rotation": (0, 180),
                "zoom": (0, 0.9),
                "shear": (0, 1),
                "shift": (0, 17),
                "elastic": (0, 10),
            },
        )


@dataclass(frozen=True)
class Recipe:
    """A whole run: where the recordings are ("" means the embedded simulated ones), what is held out, and the rest.

    `validation` is the share of the training recordings on which the epoch is chosen; 0 takes the last epoch. With
    `folds` above 0 all recordings are cross-validated over so many folds instead, and the last epoch is taken.
    `drop_tail`, `sort_events`: repair recordings that end inside an event or run backwards instead of refusing them.
    """

    data: str = ""
    drop_tail: bool = False
    sort_events: bool = False
    folds: int = 0
    validation: float = 0.1
    label_smoothing: float = 0.1
    model: NMNISTConfig = field(default_factory=NMNISTConfig)
    frames: FrameConfig = field(default_factory=FrameConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.folds == 1:
            raise SpikingError("Recipe.folds: got 1; expected 0 (none) or at least 2.")
        check_fields(self, {}, {"folds": (0, math.inf), "validation": (0, 0.9), "label_smoothing": (0, 0.99)})
