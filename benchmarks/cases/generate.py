"""One token of generation: SpikeGPT, whose state has one size, beside a Transformer of the same size with a key-value cache.

Both read a context first; then tokens are timed one by one. The Transformer is torch's own attention over a cache that is allocated for
the whole context, with as many layers and channels. The spike-fed form runs with its products event-driven and dense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from spiking.benchmarks.run import Row, interleaved
from torch import Tensor, nn
from torch.nn import functional as tf

import spiking
from spiking.models.spikegpt import SpikeGPT, SpikeGPTConfig

NAME = "generate"
TITLE = "milliseconds per generated token: SpikeGPT against a Transformer with a key-value cache, over the context"
CONTEXTS, QUICK = (128, 1024, 4096, 16384), (16,)
LAYERS, CHANNELS, HEADS, VOCABULARY = 12, 512, 8, 256
FORMS: dict[str, dict[str, Any]] = {"published": {}, "spike-fed": {"placement": "pre", "activation": "spike"}}
TRANSFORMER = "Transformer"
Way = Literal["auto", "never"]


@torch.no_grad()
def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    torch.manual_seed(0)
    size = (2, 32) if quick else (LAYERS, CHANNELS)
    transformer = _Transformer(*size).to(device).eval()
    models = {name: _spikegpt(*size, changes).to(device).eval() for name, changes in FORMS.items()}
    for context in QUICK if quick else CONTEXTS:
        tokens = torch.randint(VOCABULARY, (1, context), device=device)
        calls = {"SpikeGPT, published": _next(models["published"], tokens, "auto")}
        for way, word in zip(get_args(Way), ("event-driven", "dense"), strict=True):
            calls[f"SpikeGPT, spike-fed, {word}"] = _next(models["spike-fed"], tokens, way)
        transformer.fill(context)
        calls[TRANSFORMER] = partial(transformer, tokens[:, :1])
        for name, times in interleaved(calls, 3 if quick else 30).items():
            yield Row(NAME, name, times, None if name == TRANSFORMER else TRANSFORMER, f"context {context}")


def summary(rows: Sequence[Row]) -> list[str]:
    lines = []
    for name in dict.fromkeys(row.what for row in rows):
        found = [f"{1e3 * row.median:.2f}" for row in rows if row.what == name]
        lines.append(f"{name}: {', '.join(found)} ms a token")
    return lines


def _spikegpt(layers: int, channels: int, changes: dict[str, Any]) -> SpikeGPT:
    return SpikeGPT(SpikeGPTConfig(vocab_size=VOCABULARY, n_layer=layers, n_embd=channels, **changes))


def _next(lm: SpikeGPT, tokens: Tensor, way: Way) -> Callable[[], None]:
    """One token after a context; each call goes on from the one before."""
    state = lm(tokens)[1]

    def call() -> None:
        nonlocal state
        with spiking.event_driven(way):
            state = lm(tokens[:, :1], state)[1]

    return call


class _Transformer(nn.Module):
    """A GPT whose cache is filled as if a context had been read; a call computes one token and leaves the cache as it is."""

    def __init__(self, layers: int, channels: int) -> None:
        super().__init__()
        self.emb, self.head = nn.Embedding(VOCABULARY, channels), nn.Linear(channels, VOCABULARY, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2 * layers + 1))
        shapes = ((channels, 3 * channels), (channels, channels), (channels, 4 * channels), (4 * channels, channels))
        self.products = nn.ModuleList(nn.Linear(*shape, bias=False) for _ in range(layers) for shape in shapes)
        self.cache: list[Tensor] = []

    def fill(self, context: int) -> None:
        weight = self.emb.weight
        channels = weight.shape[1]
        shape = (2, 1, HEADS, context + 1, channels // HEADS)
        self.cache = [torch.randn(shape, device=weight.device) for _ in range(len(self.products) // 4)]

    def forward(self, token: Tensor) -> Tensor:
        x = self.emb(token)
        for layer, cache in enumerate(self.cache):
            qkv, out, wide, narrow = self.products[4 * layer : 4 * layer + 4]
            q, k, v = (
                part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in qkv(self.norms[2 * layer](x)).chunk(3, 2)
            )
            cache[0, :, :, -1:], cache[1, :, :, -1:] = k, v
            x = x + out(tf.scaled_dot_product_attention(q, *cache).transpose(1, 2).flatten(2))
            x = x + narrow(tf.gelu(wide(self.norms[2 * layer + 1](x))))
        return self.head(self.norms[-1](x))
