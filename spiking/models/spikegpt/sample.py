"""Writing: the next token from the logits, one token after the other from a state that does not grow."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from spiking import checkpoint as ckpt
from spiking.errors import SpikingError

if TYPE_CHECKING:
    from spiking.models.spikegpt.model import SpikeGPT

__all__ = ["Writer", "load_state", "next_token_probabilities", "save_state"]

Order = Literal["top_p_first", "temperature_first"]
READ_AT_ONCE = 1024  # tokens of a prompt: memory stays flat whatever its length


def next_token_probabilities(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    order: Order = "top_p_first",
    ban: Sequence[int] = (),
) -> Tensor:
    """Probabilities of the next token, [V], from its logits [V].

    `top_k` keeps the k likeliest tokens (0: all), `top_p` the fewest whose probabilities exceed it together, the crossing one and its
    ties included; the temperature T raises what is left to 1/T. `order`: "top_p_first", as the authors do, or
    "temperature_first". Temperature 0 is certain of the likeliest token. `ban`: tokens that never come.
    Errors: SpikingError for a value out of range.

    >>> next_token_probabilities(torch.tensor([2.0, 1.0, 0.0]), temperature=0).tolist()
    [1.0, 0.0, 0.0]
    """
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise SpikingError(f"temperature: got {temperature}; expected a number of at least 0.")
    if not 0 < top_p <= 1:
        raise SpikingError(f"top_p: got {top_p}; expected 0 < top_p <= 1 (1 keeps everything).")
    if top_k < 0:
        raise SpikingError(f"top_k: got {top_k}; expected 0 (all) or more.")
    if order not in ("top_p_first", "temperature_first"):
        raise SpikingError(f'order: got "{order}"; expected top_p_first or temperature_first.')
    logits = logits.detach().double()
    if len(ban):
        logits = logits.index_fill(0, torch.tensor(list(ban)), -math.inf)
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).to(torch.float32)
    if 0 < top_k < len(logits):
        logits = torch.where(logits < logits.topk(top_k).values[-1], -math.inf, logits)
    if order == "temperature_first":
        logits = logits / temperature
    p = torch.softmax(logits, 0)
    if top_p < 1:
        falling = p.sort(descending=True).values
        crossing = int((falling.cumsum(0) > top_p).to(torch.int8).argmax())
        p = torch.where(p < falling[crossing], 0.0, p)
    if order == "top_p_first" and temperature != 1:
        p = (p / p.max()) ** (1 / temperature)
    return (p / p.sum()).float()


class Writer(Iterator[int]):
    """Tokens that a model writes after a prompt, one with every `next`, each at the same cost.

    The prompt is read in few calls, however long. `state` is what is remembered of all tokens but the last, `last` that token:
    `save_state` keeps both, and a writer with them goes on where this one stopped, with a prompt or without.
    `stop`: tokens after which no more come.
    Errors: SpikingError for an empty prompt without a state, tokens outside the vocabulary, numbers out of range.

    >>> from spiking.models.spikegpt import SpikeGPT, SpikeGPTConfig
    >>> lm = SpikeGPT(SpikeGPTConfig(vocab_size=9, n_layer=1, n_embd=8)).eval()
    >>> len(list(Writer(lm, [1, 2], 5, seed=0)))
    5
    """

    def __init__(
        self,
        model: SpikeGPT,
        prompt: Iterable[int],
        n: int,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        order: Order = "top_p_first",
        ban: Sequence[int] = (),
        stop: Sequence[int] = (),
        seed: int | None = None,
        state: Tensor | None = None,
        last: int | None = None,
    ) -> None:
        self.model, self.left, self._stop, self.state = model, n, frozenset(stop), state
        if n < 0:
            raise SpikingError(f"generate: got {n} tokens to write; expected 0 or more.")
        self._how: dict[str, Any] = {
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "order": order, "ban": tuple(ban)
        }  # fmt: skip
        if any(not 0 <= token < model.config.vocab_size for token in ban):
            raise SpikingError(f"ban: got {list(ban)}; expected tokens 0 to {model.config.vocab_size - 1}.")
        next_token_probabilities(torch.zeros(model.config.vocab_size), **self._how)  # refuses before anything is read
        self._generator = torch.Generator()
        self._generator.manual_seed(torch.seed() if seed is None else seed)
        tokens = ([] if last is None else [last]) + [int(token) for token in prompt]
        if not tokens:
            raise SpikingError("generate: got an empty prompt; expected one token at least, or a state to go on from.")
        self._unread = tokens[:-1]
        self.last = tokens[-1]

    @torch.no_grad()
    def __next__(self) -> int:
        if not self.left:
            raise StopIteration
        self.left -= 1
        tokens = [*self._unread, self.last]
        self._unread = []
        for first in range(0, len(tokens), READ_AT_ONCE):
            part = torch.tensor([tokens[first : first + READ_AT_ONCE]], device=self.model.emb.weight.device)
            logits, self.state = self.model(part, self.state)
        p = next_token_probabilities(logits[0, -1].float().cpu(), **self._how)
        if not bool(torch.isfinite(p).all()):
            raise SpikingError("generate: the logits are not finite. Load other weights.")
        self.last = int(torch.multinomial(p, 1, generator=self._generator))
        if self.last in self._stop:
            self.left = 0
        return self.last


def save_state(path: str | Path, writer: Writer) -> None:
    """Keep what a writer remembers, as a safetensors file: about 5.6 kB for each layer of 128 channels, whatever was written.

    Errors: SpikingError if it has not written anything, or the file cannot be written.
    """
    from safetensors.torch import save as to_bytes

    if writer.state is None:
        raise SpikingError(f"{path}: nothing was read yet; expected a writer with a state.")
    tensors = {"state": writer.state.detach().cpu().contiguous(), "last": torch.tensor([writer.last])}
    ckpt.write_atomically(path, to_bytes(tensors, metadata={"spikegpt": _fingerprint(writer.model)}))


def load_state(path: str | Path, model: SpikeGPT) -> dict[str, Any]:
    """State and last token of a file, as `Writer` takes them: `Writer(model, prompt, n, **load_state(path, model))`.

    Errors: SpikingError if there is no such file, it is something else, or it was written by another model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            whose = (file.metadata() or {}).get("spikegpt")
            if whose is not None:
                found = {name: file.get_tensor(name) for name in ("state", "last")}
    except (SafetensorError, OSError) as err:
        raise SpikingError(f"{path}: not a state that was saved ({err}).") from err
    if whose is None:
        raise SpikingError(f"{path}: a safetensors file, but no state of a SpikeGPT.")
    if whose != _fingerprint(model):
        raise SpikingError(f"{path}: got the state of another model; expected one that this model's weights made.")
    return {"state": found["state"].to(model.emb.weight.device), "last": int(found["last"])}


def _fingerprint(model: SpikeGPT) -> str:
    digest = hashlib.sha256(repr(model.config).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
