"""Windows of a text for the Trainer, its objective, and what a text costs a model in bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as tf

from spiking import loss
from spiking.errors import SpikingError
from spiking.models.spikegpt.model import SpikeGPT, language_loss
from spiking.models.spikegpt.sample import READ_AT_ONCE
from spiking.neuron import Neuron
from spiking.training import Objective, seed_for

__all__ = ["Score", "TextWindows", "objective", "score"]


class TextWindows:
    """Windows of `length` tokens and what follows each: `n` random ones for training; one after the other without n.

    `batch(indices, epoch)` gives tokens [B, T] and targets [B, T]. Windows derive from (seed, epoch, index) only, so that a resumed run
    sees the same. Errors: SpikingError for a text that is shorter than a window.

    >>> TextWindows(np.arange(10), 4).batch(np.array([0, 1]), None)[1].tolist()
    [[1, 2, 3, 4], [5, 6, 7, 8]]
    """

    def __init__(self, tokens: np.ndarray, length: int, n: int = 0, seed: int = 0, where: str = "TextWindows") -> None:
        if len(tokens) <= length:
            raise SpikingError(
                f"{where}: got a text of {len(tokens)} tokens; expected more than a window of {length}. "
                "Take a longer text or a shorter window."
            )
        self.tokens, self.length, self.seed = tokens, length, seed
        self.n = n or (len(tokens) - 1) // length
        self._random = n > 0

    def __len__(self) -> int:
        return self.n

    def batch(self, indices: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        if self._random:
            rng = np.random.default_rng(seed_for(self.seed, 2, epoch or 0))
            starts = rng.integers(len(self.tokens) - self.length, size=self.n)[indices]
        else:
            starts = np.asarray(indices) * self.length
        rows = np.stack([self.tokens[i : i + self.length + 1] for i in starts]).astype(np.int64)
        found = torch.from_numpy(rows)
        return found[:, :-1], found[:, 1:]


def objective(
    model: nn.Module, damper: float = 1e-4, rate_limit: float = 1.0, rate_weight: float = 0.0
) -> Callable[[nn.Module, Tensor, Tensor], Objective]:
    """What a step on TextWindows is judged by: `language_loss` in training, plain cross-entropy where the model only evaluates.

    With `rate_weight`, in training a penalty on every neuron that fires more than `rate_limit` is added (`loss.rate_regulariser`).
    """
    spikes: list[Tensor] = []

    def keep(layer: nn.Module, given: Any, output: Any) -> None:
        if layer.training:
            spikes.append(output[0] if isinstance(output, tuple) else output)

    if rate_weight:
        for layer in model.modules():
            if isinstance(layer, Neuron):
                layer.register_forward_hook(keep)

    def judge(run: nn.Module, tokens: Tensor, targets: Tensor) -> Objective:
        spikes.clear()
        logits, _ = run(tokens)
        found = language_loss(logits.float(), targets, damper if run.training else 0.0)
        if spikes:
            found = found + rate_weight * loss.rate_regulariser(spikes, high=rate_limit)
        return Objective(found, None)

    return judge


@dataclass(frozen=True)
class Score:
    """What a text costs a model: nats over `tokens` predicted tokens, which are `characters` and `bytes` of text."""

    nats: float
    tokens: int
    characters: int
    bytes: int
    protocol: str

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    @property
    def bits_per_character(self) -> float:
        return self.nats / math.log(2) / self.characters

    @property
    def perplexity(self) -> float:
        """Per token: not to be compared between tokenizers."""
        return math.exp(min(700.0, self.nats / self.tokens))


@torch.no_grad()
def score(model: SpikeGPT, tokens: np.ndarray, text: str, *, window: int = 0, stride: int = 0) -> Score:
    """What a text costs a model, every token but the first counted once.

    Without `window` the state is carried through the whole text, so that each token is predicted from all before it. With one, each
    window begins from nothing, moves on by `stride` (without it: by the window), and its last `stride` targets count; all of the
    first window's. `text`: what the counted tokens say, for its characters and bytes.

    >>> from spiking.models.spikegpt import SpikeGPTConfig
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <...
    >>> lm = SpikeGPT(SpikeGPTConfig(vocab_size=4, n_layer=1, n_embd=8)).eval()
    >>> round(score(lm, np.array([0, 1, 2, 3] * 10), "b" * 39).bits_per_byte, 1)
    2.0
    """
    stride = stride or window
    if window < 0 or not (0 <= stride <= window):
        raise SpikingError(f"--window, --stride: got {window} and {stride}; expected 0 < stride <= window.")
    if len(tokens) < 2:
        raise SpikingError(f"lm eval: got a text of {len(tokens)} tokens; expected two at least.")
    device, n = model.emb.weight.device, len(tokens) - 1
    nats, state = 0.0, None
    for begin, first, end in _spans(n, window, stride):
        part = torch.from_numpy(np.asarray(tokens[begin : end + 1], dtype=np.int64)).to(device)
        logits, state = model(part[None, :-1], None if window else state)
        counted = end - first
        exact = logits[0, -counted:].to(torch.promote_types(logits.dtype, torch.float32))
        nats += float(tf.cross_entropy(exact, part[-counted:], reduction="sum"))
    protocol = "state carried through the text" if not window else f"windows of {window}, the last {stride} counted"
    return Score(nats, n, len(text), len(text.encode()), protocol)


def _spans(n: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """For each call the first token that is read, the first whose successor counts, and the end of both."""
    if not window:
        yield from ((first, first, min(first + READ_AT_ONCE, n)) for first in range(0, n, READ_AT_ONCE))
        return
    end = min(window, n)
    yield 0, 0, end
    while end < n:
        first, end = end, min(end + stride, n)
        yield max(0, end - window), first, end
