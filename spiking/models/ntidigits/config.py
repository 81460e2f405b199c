"""Every number of the recipe for spoken digits, with its default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from spiking.classify import check_fields
from spiking.errors import SpikingError
from spiking.training import TrainConfig


@dataclass(frozen=True)
class NTIDIGITSConfig:
    """The network: two hidden layers, each with weights, batch norm and LIF neurons, and a readout.

    `max_delay`: the longest learned delay in steps between two layers, 0 for none.   `recurrent`: whether each hidden layer also hears
    its own spikes of the step before.   `delay_lr`: how many times faster delays are learned than weights.   `anneal`: the share of the
    training over which the width of delays falls; see `spiking.DelayedLinear`.   `readout`: the mean "membrane" of the output or its
    spike "rate".
    """

    inputs: int = 64
    hidden: int = 128
    classes: int = 10
    max_delay: int = 12
    recurrent: bool = True
    delay_lr: float = 20.0
    anneal: float = 0.5
    dropout: float = 0.15
    beta: float = 0.8
    threshold: float = 1.0
    surrogate_alpha: float = 2.0
    output_beta: float = 0.9
    readout: str = "membrane"

    def __post_init__(self) -> None:
        check_fields(
            self,
            {"readout": ("membrane", "rate")},
            {
                "inputs": (1, math.inf),
                "hidden": (1, math.inf),
                "classes": (2, math.inf),
                "max_delay": (0, 1000),
                "delay_lr": (0, math.inf),
                "anneal": (0, 1),
                "beta": (0, 1),
                "output_beta": (0, 1),
            },
        )
        if not 0 <= self.dropout < 1:
            raise SpikingError(f"NTIDIGITSConfig.dropout: got {self.dropout}; expected 0 <= dropout < 1.")


@dataclass(frozen=True)
class FrameConfig:
    """How events become frames [T, B, channels], and how training varies them anew each epoch.

    `time`: "recording" stretches every recording, from its first event to its last, over `span` of the `steps`, so that tempo is lost
    (as the published reservoir's chunks do); "fixed" gives a frame `bin_ms` from the first event on.   `counts`: "clip" makes a channel
    0 or 1 in each frame, so that the network reads spikes and multiplies nothing; "root" takes √n, "linear" n.
    Augmentation, drawn for each recording: `stretch` of time by up to e^±stretch, a delay of up to `late` frames, a `shift` of all channels
    by up to so many (another length of the vocal tract), and `thin`: events are dropped with a probability that varies smoothly over
    the channels, up to `thin` (another colour of the voice).
    """

    steps: int = 40
    time: str = "recording"
    span: float = 0.9
    bin_ms: float = 10.0
    counts: str = "root"
    stretch: float = 0.2
    late: float = 3.0
    shift: float = 3.0
    thin: float = 0.4

    def __post_init__(self) -> None:
        check_fields(
            self,
            {"time": ("recording", "fixed"), "counts": ("clip", "root", "linear")},
            {
                "steps": (1, 10_000),
                "span": (0.01, 1),
                "bin_ms": (1e-3, math.inf),
                "stretch": (0, 2),
                "late": (0, 10_000),
                "shift": (0, 10_000),
                "thin": (0, 1),
            },
        )


@dataclass(frozen=True)
class Recipe:
    """A whole run: where the recordings are ("" means simulated ones), what is held out, and the rest.

    `cochlea`: what hears sound that is not events yet: "gammatone", "cascade" or "hair-cell"; see `datasets.Cochlea`.
    `validation`: the training speaker on whom the epoch is chosen, by name; "" takes the last epoch, with nobody held out.
    """

    data: str = ""
    cochlea: str = "gammatone"
    validation: str = ""
    label_smoothing: float = 0.1
    model: NTIDIGITSConfig = field(default_factory=NTIDIGITSConfig)
    frames: FrameConfig = field(default_factory=FrameConfig)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=20, batch_size=64, warmup_epochs=2.0, ema_decay=0.0)
    )

    def __post_init__(self) -> None:
        check_fields(self, {"cochlea": ("gammatone", "cascade", "hair-cell")}, {"label_smoothing": (0, 0.99)})
