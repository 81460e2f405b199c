"""Classifying sentences: a head on a SpikeGPT, movie reviews (MR, SST-2), and a bag of words to compare with."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as tf

from spiking import checkpoint as ckpt
from spiking.datasets.text import Sentences, Tokenizer, WordTokenizer, read_mr, read_sst2
from spiking.errors import SpikingError
from spiking.models.spikegpt.config import SpikeGPTConfig
from spiking.models.spikegpt.model import SpikeGPT
from spiking.models.spikegpt.run import adamw
from spiking.progress import Display
from spiking.split import proportion
from spiking.training import Objective, TrainConfig, Trainer, seed_for

__all__ = ["ClassifyRecipe", "SentenceBatches", "SpikeGPTClassifier", "bag_of_words", "classify", "open_sentences"]

PADDING = -1


class SpikeGPTClassifier(nn.Module):
    """A linear layer on what a SpikeGPT remembers of each text.

        "mean"  of all its tokens      "last"  at its last token

    Shapes: tokens [B, T], -1 behind the end of each text -> logits [B, classes]. How much padding follows does not matter.
    Errors: SpikingError for a text without tokens.

    >>> net = SpikeGPTClassifier(SpikeGPT(SpikeGPTConfig(vocab_size=9, n_layer=1, n_embd=8)), classes=2)
    >>> net(torch.tensor([[1, 2, 3], [4, -1, -1]])).shape
    torch.Size([2, 2])
    """

    def __init__(self, backbone: SpikeGPT, classes: int, pool: Literal["mean", "last"] = "mean") -> None:
        super().__init__()
        if pool not in ("mean", "last"):
            raise SpikingError(f'SpikeGPTClassifier.pool: got "{pool}"; expected mean or last.')
        self.config, self.pool = backbone.config, pool
        self.backbone = backbone
        self.classify_head = nn.Linear(backbone.config.n_embd, classes)
        nn.init.normal_(self.classify_head.weight, std=0.02)
        nn.init.zeros_(self.classify_head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        real = tokens >= 0
        lengths = real.sum(1)
        if not bool((lengths > 0).all()):
            raise SpikingError("SpikeGPTClassifier: got a text without tokens; expected one at least in each.")
        x, _ = self.backbone.features(tokens.clamp(min=0))
        if self.pool == "last":
            pooled = x[lengths - 1, torch.arange(len(tokens), device=x.device)]
        else:
            pooled = (x * real.t().unsqueeze(-1)).sum(0) / lengths.unsqueeze(-1)
        return self.classify_head(pooled)


class SentenceBatches:
    """Sentences for the Trainer: tokens [B, T], padded with -1 to the longest of the batch, and labels [B]."""

    def __init__(self, sentences: Sentences, tokenizer: Tokenizer, longest: int) -> None:
        self.tokens = [tokenizer.encode(text)[:longest].astype(np.int64) for text in sentences.texts]
        self.labels = torch.from_numpy(np.asarray(sentences.labels, np.int64))

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        chosen = [self.tokens[i] for i in indices]
        padded = np.full((len(chosen), max(len(tokens) for tokens in chosen)), PADDING, np.int64)
        for row, tokens in zip(padded, chosen):
            row[: len(tokens)] = tokens
        return torch.from_numpy(padded), self.labels[torch.from_numpy(np.asarray(indices, np.int64))]


@dataclass(frozen=True)
class ClassifyRecipe:
    """Everything that a run of `spiking lm classify` depends on. `data`: the folder with the files; `start`: a trained model's folder,
    whose weights and tokenizer are taken; without it a small network over words begins from nothing."""

    task: Literal["sst2", "mr"] = "sst2"
    data: str = ""
    start: str = ""
    pool: Literal["mean", "last"] = "mean"
    longest: int = 256
    model: SpikeGPTConfig = field(
        default_factory=lambda: SpikeGPTConfig.preset("tiny", n_layer=2, n_embd=64, dropout=0.2)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=6, batch_size=32, lr=2e-3, weight_decay=0.1, warmup_epochs=0.5, clip_norm=1.0, ema_decay=0.0
        )
    )


def open_sentences(recipe: ClassifyRecipe) -> dict[str, Sentences]:
    """The three splits. Errors: SpikingError for an unknown task or a file that is missing."""
    if not recipe.data:
        raise SpikingError(
            "--data: got nothing; expected the folder with the sentences of MR (rt-polarity.pos and .neg) or SST-2 (train.tsv, dev.tsv, "
            "test.tsv)."
        )
    return read_mr(recipe.data, recipe.train.seed) if recipe.task == "mr" else read_sst2(recipe.data)


def classify(
    recipe: ClassifyRecipe,
    sentences: dict[str, Sentences],
    out: Path,
    resume: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Train a classifier, choose the epoch on the validation sentences, test once; metrics.json lands in the folder `out`."""
    began = time.perf_counter()
    torch.manual_seed(seed_for(recipe.train.seed, 3))
    tokenizer: Tokenizer
    if recipe.start:
        backbone = SpikeGPT.from_pretrained(recipe.start)
        if backbone.tokenizer is None:
            raise SpikingError(f"{recipe.start}: the model has no tokenizer.json; expected one beside its weights.")
        tokenizer = backbone.tokenizer
    else:
        tokenizer = WordTokenizer.of(sentences["train"].texts, least=2)
        backbone = SpikeGPT(SpikeGPTConfig(**{**asdict(recipe.model), "vocab_size": tokenizer.vocab_size}))
    for parameter in backbone.head.parameters():  # it reads nothing here
        parameter.requires_grad_(False)
    model = SpikeGPTClassifier(backbone, 2, recipe.pool)
    parts = {split: SentenceBatches(part, tokenizer, recipe.longest) for split, part in sentences.items()}
    trainer = Trainer(model, _objective, recipe.train, out, display, adamw)
    path = trainer.checkpoint_path
    trainer.fit(parts["train"], parts["validation"], resume=resume and path is not None and path.exists())
    found = trainer.evaluate(parts["test"])
    by_words = bag_of_words(sentences["train"], sentences["test"].texts)
    truth = sentences["test"].labels
    metrics: dict[str, Any] = {
        "task": recipe.task,
        "sizes": {split: len(part.texts) for split, part in sentences.items()},
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "accuracy": proportion(int((found.predictions == truth).sum()), len(truth))._asdict(),
        "bag_of_words": proportion(int((by_words == truth).sum()), len(truth))._asdict(),
        "majority": float(max(truth.mean(), 1 - truth.mean())),
        "firing_rates": found.rates,
        "recipe": asdict(recipe),
        "seconds": round(time.perf_counter() - began, 1),
    }
    ckpt.write_atomically(out / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
    return metrics


def bag_of_words(train: Sentences, texts: Sequence[str]) -> np.ndarray:
    """Predictions of a logistic regression on which words a sentence holds: what any model of sentences has to beat."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    words = CountVectorizer(binary=True, token_pattern=r"\S+")
    x = words.fit_transform(train.texts)
    fitted = LogisticRegression(C=0.3, max_iter=1000).fit(x, train.labels)
    return np.asarray(fitted.predict(words.transform(texts)))


def _objective(model: nn.Module, tokens: Tensor, labels: Tensor) -> Objective:
    logits = model(tokens).float()
    return Objective(tf.cross_entropy(logits, labels), logits)
