"""Every number of a SpikeGPT network, with its default."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from spiking.errors import SpikingError

# "tiny" has a faster membrane and a wider surrogate than published: 0.02 and 0.03 nats better on tiny Shakespeare after 500 steps.
PRESETS: dict[str, dict[str, float]] = {
    "tiny": {"vocab_size": 256, "n_layer": 4, "n_embd": 128, "ctx_len": 128, "beta": 0.2, "surrogate_alpha": 1.0},
    "45m": {"vocab_size": 256, "n_layer": 12, "n_embd": 512, "ctx_len": 1024},
    "216m": {"vocab_size": 50277, "n_layer": 18, "n_embd": 768, "ctx_len": 1024},
}


@dataclass(frozen=True)
class SpikeGPTConfig:
    """The network: `n_layer` blocks of width `n_embd` over `vocab_size` tokens, trained on windows of `ctx_len`.

    `placement`: where a block's neurons stand. "post", as published: on what a branch adds, so that its matrix products read
    real numbers. "pre": before the products, whose operands then are spikes. `activation` of the feed-forward: "relu2", the published
    squared ReLU, or "spike", a neuron in its place. With "pre" and "spike" all products but that of the attention's output read spikes.
    `spiking=False` is the same network without neurons (its twin), `binary_embedding=False` one whose embedding stays real.
    `ffn_pre` replaces the first attention by a feed-forward. `init`: "firing" scales the branches so that neurons fire from the start;
    "published" is what the authors' code does, where no neuron fires.
    """

    vocab_size: int = 256
    n_layer: int = 4
    n_embd: int = 128
    ctx_len: int = 256
    dropout: float = 0.03
    ffn_pre: bool = False
    placement: Literal["post", "pre"] = "post"
    activation: Literal["relu2", "spike"] = "relu2"
    spiking: bool = True
    binary_embedding: bool = True
    beta: float = 0.5
    threshold: float = 1.0
    detach_reset: bool = False
    surrogate_alpha: float = 2.0
    init: Literal["firing", "published"] = "firing"

    def __post_init__(self) -> None:
        choices = {"placement": ("post", "pre"), "activation": ("relu2", "spike"), "init": ("firing", "published")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise SpikingError(
                    f'SpikeGPTConfig.{name}: got "{getattr(self, name)}"; expected {" or ".join(allowed)}.'
                )
        for name in ("vocab_size", "n_layer", "n_embd", "ctx_len"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise SpikingError(f"SpikeGPTConfig.{name}: got {value!r}; expected a whole number of at least 1.")
        if self.ffn_pre and self.activation == "spike":
            raise SpikingError(
                'SpikeGPTConfig.ffn_pre: cannot be combined with activation="spike". Use activation="relu2".'
            )
        if not 0 <= self.dropout < 1:
            raise SpikingError(f"SpikeGPTConfig.dropout: got {self.dropout}; expected 0 <= dropout < 1.")
        if not (self.surrogate_alpha > 0 and math.isfinite(self.surrogate_alpha)):
            raise SpikingError(
                f"SpikeGPTConfig.surrogate_alpha: got {self.surrogate_alpha}; expected a finite number > 0."
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> SpikeGPTConfig:
        """A published size ("45m", "216m") or one for a laptop ("tiny"), with single numbers changed.

        "45m" has 41,226,240 parameters for bytes, and 46,553,088 with the 5,458 characters of enwik8; "216m" has 215,399,424.

        Errors: SpikingError for a name that is not a preset.

        >>> SpikeGPTConfig.preset("45m", vocab_size=5458).n_layer
        12
        """
        if name not in PRESETS:
            raise SpikingError(f'SpikeGPTConfig.preset: got "{name}"; expected one of {", ".join(PRESETS)}.')
        numbers: dict[str, Any] = {**PRESETS[name], **changes}
        return cls(**numbers)
