"""From a text to a trained model: train, choose the best evaluation, score the held-out text, write a sample, save."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spiking import checkpoint as ckpt
from spiking.datasets.text import ByteTokenizer, CharTokenizer, Corpus, Tokenizer, open_corpus
from spiking.errors import SpikingError
from spiking.models.spikegpt.config import SpikeGPTConfig
from spiking.models.spikegpt.model import SpikeGPT
from spiking.models.spikegpt.windows import Score, TextWindows, objective, score
from spiking.progress import Display, open_display
from spiking.training import TrainConfig, Trainer, seed_for

__all__ = ["Recipe", "adamw", "build", "described", "open_data", "score_text", "train", "unit"]

SAMPLE = 400  # tokens of the sample text in metrics.json


@dataclass(frozen=True)
class Recipe:
    """Everything that a run of `spiking lm train` depends on.

    `steps` is rounded up to whole evaluations, one every `eval_every`; `train.epochs` follows from both. `eval_tokens`: the validation
    text is cut to so many for them. `rate_weight` and `rate_limit`: see `windows.objective`; 0 is off. `half`: the trained weights are
    rounded to half precision before they are scored, and saved so.
    """

    data: str = ""
    tokenizer: str = "characters"
    steps: int = 1200
    eval_every: int = 200
    eval_tokens: int = 60_000
    rate_limit: float = 0.1
    rate_weight: float = 0.0
    half: bool = False
    model: SpikeGPTConfig = field(default_factory=lambda: SpikeGPTConfig.preset("tiny"))
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            batch_size=16, lr=3e-3, weight_decay=0.1, warmup_epochs=0.25, clip_norm=1.0, ema_decay=0.0
        )
    )

    def __post_init__(self) -> None:
        for name, low in {"steps": 1, "eval_every": 1, "eval_tokens": 2, "rate_weight": 0}.items():
            if not (getattr(self, name) >= low and math.isfinite(getattr(self, name))):
                raise SpikingError(f"Recipe.{name}: got {getattr(self, name)}; expected at least {low}.")
        if not 0 < self.rate_limit <= 1:
            raise SpikingError(f"Recipe.rate_limit: got {self.rate_limit}; expected 0 < rate_limit <= 1.")

    def completed(self, vocab_size: int) -> Recipe:
        """With the epochs that the steps make, and the vocabulary of the tokenizer."""
        return replace(
            self,
            model=replace(self.model, vocab_size=vocab_size),
            train=replace(self.train, epochs=math.ceil(self.steps / self.eval_every)),
        )


def open_data(recipe: Recipe) -> Corpus:
    """The corpus of a recipe. Errors: those of `open_corpus`; SpikingError for a text too short for a window of the model."""
    corpus = open_corpus(recipe.data, recipe.tokenizer)
    for name in ("train", "validation"):
        TextWindows(getattr(corpus, name), recipe.model.ctx_len, where=f"{recipe.data or 'the text'}: {name} split")
    return corpus


def build(config: SpikeGPTConfig, tokenizer: Tokenizer | None, seed: int) -> SpikeGPT:
    """The model, its first weights drawn from the seed."""
    torch.manual_seed(seed_for(seed, 3))
    model = SpikeGPT(config)
    model.tokenizer = tokenizer
    return model


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW with betas (0.9, 0.99) that decays matrices only, not norms, mixes and decay rates."""
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() != 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99))


def train(
    recipe: Recipe, corpus: Corpus, out: Path, resume: bool = False, display: Display | None = None
) -> dict[str, Any]:
    """Train and score; everything that is found lands in the folder `out`, the figures also in what is returned."""
    began = time.perf_counter()
    config, seed = recipe.model, recipe.train.seed
    model = build(config, corpus.tokenizer, seed)
    windows = TextWindows(corpus.train, config.ctx_len, recipe.eval_every * recipe.train.batch_size, seed)
    held_out = TextWindows(corpus.validation[: max(recipe.eval_tokens, config.ctx_len + 1)], config.ctx_len)
    judge = objective(model, rate_limit=recipe.rate_limit, rate_weight=recipe.rate_weight if config.spiking else 0.0)
    display = display or open_display(_summary(windows, corpus.tokenizer))
    trainer = Trainer(model, judge, recipe.train, out, display, adamw)
    path = trainer.checkpoint_path  # none yet where the run was stopped before its first
    history = trainer.fit(windows, held_out, resume=resume and path is not None and path.exists())
    trained = time.perf_counter()
    if recipe.half:
        model.half().float()
    found = trainer.evaluate(held_out)
    model.eval()
    metrics: dict[str, Any] = {
        "corpus": corpus.description,
        "unit": unit(corpus.tokenizer),
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": asdict(recipe),
        "validation_loss": found.loss,
        "validation": described(score_text(model, corpus.validation, corpus.tokenizer)),
        "test": described(score_text(model, corpus.test, corpus.tokenizer)) if len(corpus.test) > 1 else None,
        "firing_rates": found.rates,
        "mean_rate": float(np.mean(list(found.rates.values()))) if found.rates else None,
        "steps": sum(1 for _ in history) * recipe.eval_every,
        "best_step": (min(history, key=lambda r: r["validation_loss"])["epoch"] + 1) * recipe.eval_every,
        "warnings": trainer.warnings,
        "sample": _sample(model, corpus, seed),
        "threads": torch.get_num_threads(),
        "seconds_training": round(trained - began, 1),
        "versions": _versions(),
    }
    if trainer.accelerator.is_main_process:
        _save_model(model, out, metrics)
        ckpt.write_atomically(out / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
    return metrics


def score_text(model: SpikeGPT, tokens: np.ndarray, tokenizer: Tokenizer, window: int = 0, stride: int = 0) -> Score:
    """`windows.score` of a text of which only the tokens are given."""
    return score(model, tokens, tokenizer.decode(tokens[1:]), window=window, stride=stride)


def described(found: Score) -> dict[str, Any]:
    """A score with all its units, for JSON."""
    return {
        **asdict(found),
        "nats_per_token": found.nats / found.tokens,
        "bits_per_byte": found.bits_per_byte,
        "bits_per_character": found.bits_per_character,
        "perplexity": found.perplexity,
    }


def unit(tokenizer: Tokenizer) -> str:
    """What a token is: "byte", "character" or "token"."""
    return {ByteTokenizer: "byte", CharTokenizer: "character"}.get(type(tokenizer), "token")


def _summary(windows: TextWindows, tokenizer: Tokenizer) -> Callable[..., str]:
    def words(record: dict[str, Any], rates: bool = True) -> str:
        parts = [f"loss {record['loss']:.3f} ({record['loss'] / math.log(2):.3f} bits/{unit(tokenizer)})"]
        if "validation_loss" in record:
            parts.append(f"validation {record['validation_loss']:.3f}")
        if record["seconds"]:
            parts.append(f"{record.get('samples', len(windows)) * windows.length / record['seconds']:,.0f} tokens/s")
        if rates and record["rates"]:
            parts.append(f"rate {sum(record['rates'].values()) / len(record['rates']):.3f}")
        return "  ".join(parts)

    return words


def _sample(model: SpikeGPT, corpus: Corpus, seed: int) -> dict[str, str]:
    prompt = corpus.validation[:64].tolist()
    written = model.generate(prompt, SAMPLE, temperature=0.8, seed=seed)
    return {"prompt": corpus.tokenizer.decode(prompt), "text": corpus.tokenizer.decode(written)}


def _save_model(model: SpikeGPT, out: Path, metrics: dict[str, Any]) -> None:
    found = metrics["validation"]
    rate = metrics["mean_rate"]
    fires = "" if rate is None else f" Neurons fire at {100 * rate:.1f} % on average."
    if metrics["recipe"]["half"]:
        model.half()
    model.save_pretrained(
        out / "model",
        model_card_kwargs={
            "title": "SpikeGPT language model",
            "class_name": "SpikeGPT",
            "usage": 'print(model.write("The ", 200))',
            "trained_on": f"{metrics['corpus']}. {metrics['steps']} steps in {metrics['seconds_training']:.0f} s.",
            "results": f"Validation text: {found['nats_per_token']:.3f} nats a {metrics['unit']}, "
            f"{found['bits_per_byte']:.3f} bits a byte ({found['protocol']}).{fires}",
        },
    )
    model.float()


def _versions() -> dict[str, str]:
    from spiking import __version__

    return {"spiking": __version__, "torch": torch.__version__, "python": platform.python_version()}
