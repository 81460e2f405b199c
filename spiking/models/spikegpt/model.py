"""The network: tokens [B, T] and a state in, logits [B, T, V] and the state out; time-major [T, B, C] inside.

    x = H(E[token])                                 a binary embedding; H is the step
    x = x + LIF(TimeMix(norm(x)))                   placement "post"; "pre": x + TimeMix(LIF(norm(x)))
    x = x + LIF(ChannelMix(norm(x)))
    logits = W_head·norm(x)

Names of parameters are those of the authors' code. One token is one time step of every neuron.
Source: Zhu et al. 2023 (arXiv 2302.13939), section 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as tf

from spiking import functional as F
from spiking.checkpoint import write_atomically
from spiking.cuda_kernels import reference
from spiking.datasets.text import Tokenizer, load_tokenizer
from spiking.errors import SpikingError
from spiking.hub import MODEL_CARD, HubModel, fetch
from spiking.layer import Linear
from spiking.models.spikegpt import authors, start
from spiking.models.spikegpt.config import SpikeGPTConfig
from spiking.models.spikegpt.sample import Writer
from spiking.neuron import LIF, LIFState
from spiking.surrogate import ATan

__all__ = ["STATE_ROWS", "Block", "ChannelMix", "SpikeGPT", "TimeMix", "language_loss"]

TOKENIZER_FILE = "tokenizer.json"
STATE_ROWS = ("time_x", "p", "q", "o", "channel_x", "time_v", "channel_v", "activation_v")
_GREATEST_DECAY = 80.0  # exp of more is no float32


def _neuron(config: SpikeGPTConfig) -> LIF | None:
    if not config.spiking:
        return None
    surrogate = ATan(alpha=config.surrogate_alpha)
    return LIF(
        config.beta, config.threshold, "zero", surrogate, decay_input=True, detach_reset=config.detach_reset
    )  # fmt: skip


def _fire(neuron: LIF | None, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and the last membrane; x itself in a network without neurons."""
    if neuron is None:
        return x, v
    spikes, state = neuron(x, state=LIFState(v), return_state=True)
    return spikes, state.v


def _shifted(x: Tensor, before: Tensor) -> Tensor:
    """x of the step before; `before` [B, C] stands before the first."""
    return torch.cat([before.to(x.dtype).unsqueeze(0), x[:-1]])


def _mixed(layer: Linear, mix: Tensor, x: Tensor, before: Tensor, spikes: bool) -> Tensor:
    """W·(mix·x[t] + (1 - mix)·x[t-1]); of spikes as two products, (W·mix)·x[t] and (W·(1 - mix))·x[t-1], with binary operands."""
    if not spikes:
        return layer(mix * x + (1 - mix) * before)
    share = mix.reshape(-1)
    parts = ((x, share), (before, 1 - share))
    # Calls of the layer itself, so that whoever watches it sees both products.
    now, then = (functional_call(layer, {"weight": layer.weight * part}, spikes) for spikes, part in parts)
    return now + then


class TimeMix(nn.Module):
    """Attention by recurrence: keys, values and gates of this step and the one before, averaged over the past by `functional.wkv`.

        k, v, r = W_k·mix_k(x), W_v·mix_v(x), sigmoid(W_r·mix_r(x));   out = W_o·(r·wkv(k, v))

    Shapes: x [T, B, C], x_before [B, C], past (p, q, o) of [B, C] -> out [T, B, C], the last past.   `spikes`: x holds spikes only.

    >>> layer = TimeMix(8, layer=0, n_layer=1)
    >>> out, past = layer(torch.randn(5, 2, 8), torch.zeros(2, 8))
    >>> out.shape, past.p.shape
    (torch.Size([5, 2, 8]), torch.Size([2, 8]))
    """

    def __init__(self, channels: int, layer: int, n_layer: int) -> None:
        super().__init__()
        mix, dtype = start.mixes(channels, layer, n_layer), torch.get_default_dtype()
        self.time_decay = nn.Parameter(start.time_decay(channels, layer / max(1, n_layer - 1)).to(dtype))
        self.time_first = nn.Parameter(start.time_first(channels).to(dtype))
        self.time_mix_k, self.time_mix_v, self.time_mix_r = (nn.Parameter(mix[n].to(dtype)) for n in "kvr")
        self.key, self.value, self.receptance, self.output = (Linear(channels, channels, bias=False) for _ in range(4))

    def forward(
        self, x: Tensor, x_before: Tensor, past: tuple[Tensor, Tensor, Tensor] | None = None, spikes: bool = False
    ) -> tuple[Tensor, F.WKVState]:
        before = _shifted(x, x_before)
        k = _mixed(self.key, self.time_mix_k, x, before, spikes)
        v = _mixed(self.value, self.time_mix_v, x, before, spikes)
        r = torch.sigmoid(_mixed(self.receptance, self.time_mix_r, x, before, spikes))
        y, last = F.wkv(-torch.exp(self.time_decay.clamp(max=_GREATEST_DECAY)), self.time_first, k, v, past)
        return self.output(r * y), last


class ChannelMix(nn.Module):
    """The gated feed-forward: four times as wide inside.

        out = sigmoid(W_r·mix_r(x)) · W_v·relu(W_k·mix_k(x))²;   with a neuron: W_v·LIF(W_k·mix_k(x))

    Shapes: x [T, B, C], x_before [B, C], v [B, 4 C] (membranes of the neuron) -> out [T, B, C], the last membranes.

    >>> layer = ChannelMix(8, layer=0, n_layer=1)
    >>> layer(torch.randn(5, 2, 8), torch.zeros(2, 8), torch.zeros(2, 32))[0].shape
    torch.Size([5, 2, 8])
    """

    def __init__(self, channels: int, layer: int, n_layer: int, neuron: LIF | None = None) -> None:
        super().__init__()
        key = start.mixes(channels, layer, n_layer)["k"].to(torch.get_default_dtype())
        self.time_mix_k, self.time_mix_r = nn.Parameter(key), nn.Parameter(key.clone())
        self.key = Linear(channels, 4 * channels, bias=False)
        self.receptance = Linear(channels, channels, bias=False)
        self.value = Linear(4 * channels, channels, bias=False)
        self.neuron = neuron

    def forward(self, x: Tensor, x_before: Tensor, v: Tensor, spikes: bool = False) -> tuple[Tensor, Tensor]:
        before = _shifted(x, x_before)
        k = _mixed(self.key, self.time_mix_k, x, before, spikes)
        if self.neuron is None:
            k = torch.relu(k) ** 2
        else:
            k, v = _fire(self.neuron, k, v)
        return torch.sigmoid(_mixed(self.receptance, self.time_mix_r, x, before, spikes)) * self.value(k), v


class Block(nn.Module):
    """One layer: attention and feed-forward, each with its norm and its neurons, added to the stream.

    Shapes: x [T, B, C], state [11, B, C] (the rows of STATE_ROWS; activation_v takes four) -> both again.
    """

    def __init__(self, config: SpikeGPTConfig, layer: int) -> None:
        super().__init__()
        channels, place = config.n_embd, (config.n_embd, layer, config.n_layer)
        self.pre = config.placement == "pre" and config.spiking
        self.ln1, self.ln2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        if layer == 0:
            self.ln0 = nn.LayerNorm(channels)
        self.first = layer == 0
        if layer == 0 and config.ffn_pre:
            self.ffnPre = ChannelMix(*place)
        else:
            self.att = TimeMix(*place)
        own = _neuron(config) if config.activation == "spike" else None
        self.ffn = ChannelMix(*place, own)
        self.lif1, self.lif2 = _neuron(config), _neuron(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        time_x, p, q, o, channel_x, time_v, channel_v = state[:7].unbind(0)
        inside = state[7:].transpose(0, 1).flatten(1)
        if self.first:
            x = self.ln0(x)
        norm = self.ln1(x)
        if self.pre:
            norm, time_v = _fire(self.lif1, norm, time_v)
        out, (p, q, o) = self._attend(norm, time_x, (p, q, o))
        if not self.pre:
            out, time_v = _fire(self.lif1, out, time_v)
        x, time_x = x + out, norm[-1].to(state.dtype)
        norm = self.ln2(x)
        if self.pre:
            norm, channel_v = _fire(self.lif2, norm, channel_v)
        out, inside = self.ffn(norm, channel_x, inside, self.pre)
        if not self.pre:
            out, channel_v = _fire(self.lif2, out, channel_v)
        x, channel_x = self.dropout(x + out), norm[-1].to(state.dtype)
        rows = torch.stack([time_x, p, q, o, channel_x, time_v, channel_v])
        return x, torch.cat([rows, inside.unflatten(1, (4, -1)).transpose(0, 1)])

    def driven(self) -> list[tuple[LIF, Tensor]]:
        """In the order in which they fire: the neurons behind a matrix product, and the weight that scales their current."""
        first = self.att.output if hasattr(self, "att") else self.ffnPre.value
        found = [] if self.pre else [(self.lif1, first.weight)]
        found.append((self.ffn.neuron, self.ffn.key.weight))
        found += [] if self.pre else [(self.lif2, self.ffn.value.weight)]
        return [(neuron, weight) for neuron, weight in found if neuron is not None]

    def _attend(self, x: Tensor, before: Tensor, past: Any) -> tuple[Tensor, Any]:
        if hasattr(self, "att"):
            return self.att(x, before, past, self.pre)
        return self.ffnPre(x, before, x.new_empty(0), self.pre)[0], past


class SpikeGPT(
    nn.Module,
    HubModel,
    library_name="spiking",
    tags=["spiking-neural-network", "language-model"],
    model_card_template=MODEL_CARD,
):
    """A spiking language model whose cost per token does not grow with the text before it.

    `tokenizer` is the one that it was trained with, None for a model that was not; it is saved and loaded with the weights.

    Shapes: tokens [B, T] (int64) -> logits [B, T, V], state [n_layer, 11, B, C]. The state is one tensor: clone, detach, index its
    batch with state[:, :, i], or save it as any other. None begins a text. A text at once, in chunks, or token by token gives the
    same logits.
    Errors: SpikingError for tokens outside the vocabulary or a state of another model.
    Source: Zhu et al. 2023 (arXiv 2302.13939).

    >>> lm = SpikeGPT(SpikeGPTConfig(vocab_size=10, n_layer=2, n_embd=16))
    >>> logits, state = lm(torch.tensor([[1, 2, 3]]))
    >>> following, state = lm(torch.tensor([[4]]), state)
    >>> logits.shape, following.shape
    (torch.Size([1, 3, 10]), torch.Size([1, 1, 10]))
    """

    def __init__(self, config: SpikeGPTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SpikeGPTConfig()
        self.tokenizer: Tokenizer | None = None
        self.emb = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_out = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.init == "firing":
            nn.init.normal_(self.head.weight, std=0.01)  # logits near zero: the first loss is ln V
            if config.spiking:
                self._fire_from_the_start()

    @classmethod
    def pretrained(cls) -> SpikeGPT:
        """The small model that ships with the package, trained on the characters of tiny Shakespeare; README.md beside it is its card.

        >>> lm = SpikeGPT.pretrained()
        >>> len(lm.write("ROMEO:", 20, seed=0))
        20
        """
        return cls.from_pretrained(Path(__file__).parent / "pretrained")

    def generate(self, prompt: Iterable[int], n: int, **options: Any) -> Writer:
        """An iterator over n tokens that follow the prompt; `options` as `Writer` takes them (temperature, top_k, top_p, seed, …).

        Each token costs the same time, and the state's memory only.
        """
        return Writer(self, prompt, n, **options)

    def write(self, prompt: str, n: int, **options: Any) -> str:
        """The text of n tokens that follow a prompt, by the tokenizer of the model; `options` as `generate` takes them.

        Errors: SpikingError for a model without a tokenizer, and for a prompt outside its vocabulary.
        """
        if self.tokenizer is None:
            raise SpikingError("SpikeGPT.write: the model has no tokenizer. Set lm.tokenizer, or call generate.")
        training = self.training
        self.eval()
        written = self.tokenizer.decode(self.generate(self.tokenizer.encode(prompt), n, **options))
        self.train(training)
        return written

    @classmethod
    def from_authors(cls, path: str | PathLike[str], **changes: Any) -> SpikeGPT:
        """The model in a checkpoint of the authors' code, its size read from the shapes of its tensors.

        Only tensors are unpickled. `changes`: numbers of the config that the file does not hold, such as `ctx_len` or `dropout`.
        Errors: SpikingError naming the file and what does not fit: a name that is missing or unknown, a shape, a number that is not finite.

        >>> lm = SpikeGPT.from_authors("SpikeGPT-216M.pth")  # doctest: +SKIP
        """
        weights = authors.read_weights(path)
        config = authors.config_of(weights, fspath(path), **changes)
        with torch.device("meta"):
            lm = cls(config)
        expected = dict(lm.named_parameters())
        for name in (*expected, *weights):
            if name not in weights or name not in expected:
                word, what = ("no", "expected one") if name not in weights else ("an unknown", "expected none")
                raise SpikingError(
                    f"{fspath(path)}: got {word} tensor {name}; {what} in a model of {len(lm.blocks)} blocks."
                )
            got, wanted = weights[name], expected[name]
            if got.shape != wanted.shape:
                raise SpikingError(
                    f"{fspath(path)}: {name}: got shape {list(got.shape)}; expected {list(wanted.shape)}."
                )
            if not torch.isfinite(got).all():
                raise SpikingError(f"{fspath(path)}: {name}: got a number that is not finite. Download the file again.")
        lm.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
        return lm.requires_grad_(True)

    def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, state = self.features(tokens, state)
        return self.head(x).transpose(0, 1), state

    def features(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the head reads, [T, B, C], and the state; as `forward` otherwise."""
        state = self._checked(tokens, state)
        x = self.embed(tokens)
        rows = []
        for block, row in zip(self.blocks, state.unbind(0)):
            x, after = block(x, row)
            rows.append(after)
        return self.ln_out(x), torch.stack(rows)

    def embed(self, tokens: Tensor) -> Tensor:
        """What enters the first block, [T, B, C]: spikes, with the surrogate's gradient to the embedding."""
        e = self.emb(tokens.t())
        if not (self.config.spiking and self.config.binary_embedding):
            return e
        return reference.spike(e, reference.Rule(ATan(alpha=self.config.surrogate_alpha)))

    def initial_state(self, batch: int) -> Tensor:
        """The state before a text: nothing remembered, all membranes at rest."""
        weight = self.emb.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        shape = (self.config.n_layer, 11, batch, self.config.n_embd)
        state = torch.zeros(shape, dtype=dtype, device=weight.device)
        state[:, STATE_ROWS.index("o")] = reference.WKV_REST
        return state

    def _checked(self, tokens: Tensor, state: Tensor | None) -> Tensor:
        if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.dtype != torch.int64 or tokens.shape[1] < 1:
            found = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise SpikingError(f"SpikeGPT: got tokens {found}; expected int64 [B, T] with at least one step.")
        if tokens.numel() and not torch.compiler.is_compiling():
            low, high = (int(v) for v in tokens.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                raise SpikingError(
                    f"SpikeGPT: got token {low if low < 0 else high}; expected 0 to {self.config.vocab_size - 1}. "
                    "Use the tokenizer that the model was trained with."
                )
        if state is None:
            return self.initial_state(len(tokens))
        expected = (self.config.n_layer, 11, len(tokens), self.config.n_embd)
        if not isinstance(state, Tensor) or tuple(state.shape) != expected:
            found = str(list(state.shape)) if isinstance(state, Tensor) else type(state).__name__
            raise SpikingError(
                f"SpikeGPT: got a state of {found}; expected {list(expected)}, as this model returns it for {len(tokens)} texts. "
                "Use state=None to begin a text."
            )
        return state

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        if self.tokenizer is not None:
            write_atomically(save_directory / TOKENIZER_FILE, self.tokenizer.to_json().encode())

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> SpikeGPT:
        if isinstance(
            options.get("config"), dict
        ):  # annotations are text in this module, so the mixin has not made it one
            options["config"] = SpikeGPTConfig(**options["config"])
        model = super()._from_pretrained(model_id=model_id, **options)
        path = fetch(model_id, TOKENIZER_FILE, **options)
        if path is not None:
            model.tokenizer = load_tokenizer(path)
        return model

    @torch.no_grad()
    def _fire_from_the_start(self) -> None:
        """Scale the branches, first block first, so that their neurons fire at start.RATE on random tokens."""
        tokens = torch.randint(self.config.vocab_size, (4, 64), device=self.emb.weight.device)
        x, state = self.embed(tokens), self.initial_state(4)
        for module, row in zip(self.blocks, state.unbind(0)):
            block = cast("Block", module)
            dropout, block.dropout.p = block.dropout.p, 0.0
            if block.pre:  # a normalised current rarely reaches twice the threshold, which is what a single step needs
                for norm in (block.ln1, block.ln2):
                    nn.init.constant_(norm.weight, 3.0)
            for neuron, weight in block.driven():
                weight.mul_(_scale_of(block, neuron, x, row))
            x, _ = block(x, row)
            block.dropout.p = dropout


def _scale_of(block: Block, neuron: LIF, x: Tensor, row: Tensor) -> float:
    """The factor by which to drive a neuron of a block stronger."""
    driven: list[Tensor] = []
    handle = neuron.register_forward_pre_hook(lambda module, given: driven.append(given[0]))
    block(x, row)
    handle.remove()
    return start.scale_to_fire(lambda factor: neuron(driven[0] * factor).mean().item())


def language_loss(logits: Tensor, targets: Tensor, damper: float = 1e-4) -> Tensor:
    """The mean cross-entropy over all positions, with a term that keeps the largest logit small.

        mean(CE) + damper/2 · mean(max_V(logits)²)

    The damper's gradient is that of RWKV's L2Wrap, but it scales with the loss. Shapes: logits [B, T, V], targets [B, T].
    Units: nats.   Source: the authors' code; arXiv 2305.13048.

    >>> round(language_loss(torch.zeros(1, 2, 10), torch.tensor([[3, 4]])).item(), 4)  # ln 10
    2.3026
    """
    loss = tf.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return loss + 0.5 * damper * logits.amax(-1).square().mean() if damper else loss
