"""Zero-shot retrieval across two senses: features of two reservoirs, a small trained projection each, classes that were never seen.

    a = GELU(W_a·features_a + c_a), b likewise;   logits L = a·bᵀ/tau;   loss: cross-entropy of L and Lᵀ against targets

        hard         pairs are right, everything else is wrong
        soft         targets softmax((a·aᵀ + b·bᵀ)·tau/2)
        supervised   targets uniform over all items of the same label

With two unseen classes a run is close to one coin flip (which cluster lands nearer), so that the protocol averages over all pairs of
unseen classes: the pair is the unit of its confidence interval, and seeds are nested in it. Always the last epoch; nothing is chosen on
unseen classes. Source: Lin et al. 2025 (doi 10.1038/s43588-024-00751-z), whose published 88 % were selected on the test set.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as tf

from spiking.errors import SpikingError

Loss = Literal["hard", "soft", "supervised"]
LOSSES = ("hard", "soft", "supervised")
CONFIDENCE = 0.95


def contrastive_loss(
    a: Tensor, b: Tensor, labels: Tensor | None = None, *, kind: Loss = "hard", tau: float = 1.0, cosine: bool = False
) -> Tensor:
    """How far paired embeddings a, b [B, D] are from finding each other; a scalar, differentiable.

    Errors: SpikingError for an unknown kind, shapes that differ, or "supervised" without labels [B].

    >>> round(float(contrastive_loss(torch.eye(2), torch.eye(2))), 4)
    0.3133
    """
    if kind not in LOSSES:
        raise SpikingError(f"contrastive_loss.kind: got {kind!r}; expected one of {', '.join(LOSSES)}.")
    if a.shape != b.shape or a.dim() != 2:
        raise SpikingError(
            f"contrastive_loss: got shapes {list(a.shape)} and {list(b.shape)}; expected two equal ones, [B, D]."
        )
    if kind == "supervised" and (labels is None or labels.shape != (len(a),)):
        raise SpikingError(f"contrastive_loss.labels: got none that fit; expected {len(a)} with kind='supervised'.")
    if cosine:
        a, b = tf.normalize(a, dim=1), tf.normalize(b, dim=1)
    logits = a @ b.T / tau
    if kind == "hard":
        targets = torch.eye(len(a), dtype=a.dtype, device=a.device)
    elif kind == "soft":
        targets = torch.softmax((a @ a.T + b @ b.T) * tau / 2, 1)
    else:
        assert labels is not None
        same = (labels[:, None] == labels).to(a.dtype)
        targets = same / same.sum(1, keepdim=True)
    there = -(targets * tf.log_softmax(logits, 1)).sum(1)
    back = -(targets.T * tf.log_softmax(logits.T, 1)).sum(1)
    return (there + back).mean() / 2


def retrieval_accuracy(
    queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor, cosine: bool = False
) -> float:
    """The share of queries [Q, D] whose nearest item of the gallery [G, D] (largest product) has their label.

    >>> retrieval_accuracy(torch.eye(2), torch.eye(2), torch.tensor([3, 4]), torch.tensor([3, 5]))
    0.5
    """
    if cosine:
        queries, gallery = tf.normalize(queries, dim=1), tf.normalize(gallery, dim=1)
    nearest = (queries @ gallery.T).argmax(1)
    return float((gallery_labels[nearest] == query_labels).double().mean())


class Sense(NamedTuple):
    """Features of one sense: training [S, F] and labels [S], test [R, F] and labels [R]."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Alignment:
    """How projections are trained; the published recipe has batches of 8 for 100 epochs, with `loss` "hard" and a dot product."""

    dim: int = 64
    loss: Loss = "hard"
    tau: float = 1.0
    cosine: bool = False
    lr: float = 1e-3
    batch_size: int = 64
    epochs: int = 30


class Outcome(NamedTuple):
    """Accuracies of one direction over pairs of unseen classes [pairs, seeds]: unseen, seen, and unseen queries among all classes."""

    unseen: np.ndarray
    seen: np.ndarray
    generalised: np.ndarray


class Interval(NamedTuple):
    """A mean over pairs of unseen classes with its 95 % interval, the pair being the unit; and the spread of single runs."""

    mean: float
    low: float
    high: float
    run_std: float

    def __str__(self) -> str:
        return (
            f"{100 * self.mean:.1f} % (95 % interval over pairs {100 * self.low:.1f}–{100 * self.high:.1f}; "
            f"single runs ± {100 * self.run_std:.1f})"
        )


def interval(runs: np.ndarray) -> Interval:
    """Mean and interval of accuracies [pairs, seeds], as if pairs were independent: those of one set of classes share them, which makes
    the interval too narrow.

    >>> str(interval(np.array([[0.4, 0.6], [0.5, 0.5], [0.45, 0.55]])))
    '50.0 % (95 % interval over pairs 50.0–50.0; single runs ± 7.1)'
    """
    from scipy.stats import t

    pairs = runs.mean(1)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1)) * pairs.std(ddof=1) / len(pairs) ** 0.5
    return Interval(
        float(pairs.mean()), float(pairs.mean() - half), float(pairs.mean() + half), float(runs.std(ddof=1))
    )


def zero_shot(
    senses: Callable[[int], tuple[Sense, Sense]],
    *,
    classes: Sequence[int] = tuple(range(1, 10)),
    pairs: Sequence[tuple[int, int]] | None = None,
    seeds: int = 10,
    config: Alignment = Alignment(),
    shuffled: bool = False,
    untrained: bool = False,
) -> dict[str, Outcome]:
    """All pairs of unseen classes: train projections on the others, retrieve the unseen in both directions.

    `senses(seed)` gives the features of both senses, from reservoirs of that seed. `pairs`: only these instead of all. Controls, for both
    of which chance is 50 %: `shuffled`, the second sense's classes are permuted before pairing, so that nothing right can be learnt;
    `untrained`, projections as they were drawn.
    -> {"a to b": Outcome, "b to a": Outcome}.
    Errors: SpikingError for a class without recordings, or fewer than four classes.
    """
    if len(set(classes)) < 4:
        raise SpikingError(f"zero_shot.classes: got {list(classes)}; expected four or more, two of which stay unseen.")
    pairs = list(itertools.combinations(classes, 2)) if pairs is None else list(pairs)
    found = {name: np.zeros((3, len(pairs), seeds)) for name in ("a to b", "b to a")}
    for seed in range(seeds):
        a, b = senses(seed)
        for where, sense in (("first", a), ("second", b)):
            for part, labels in (("training", sense.train_labels), ("test", sense.test_labels)):
                missing = sorted(set(classes) - set(labels.tolist()))
                if missing:
                    raise SpikingError(
                        f"zero_shot: got no {part} recording of class {', '.join(map(str, missing))} in the {where} sense; "
                        "expected some of each."
                    )
        for i, unseen in enumerate(pairs):
            seen = [c for c in classes if c not in unseen]
            embed = _aligned(a, b, seen, config, 1000 * seed + i, shuffled, untrained)
            for name, accuracies in zip(found, _retrieve(a, b, embed, seen, list(unseen), config.cosine)):
                found[name][:, i, seed] = accuracies
    return {name: Outcome(*accuracies) for name, accuracies in found.items()}


def _aligned(
    a: Sense, b: Sense, seen: list[int], config: Alignment, seed: int, shuffled: bool, untrained: bool
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Both projections, trained on pairs of the seen classes."""
    draws = torch.Generator().manual_seed(seed)
    others = seen
    if shuffled:  # no class keeps its own partner
        order = torch.randperm(len(seen), generator=draws).tolist()
        ring = [seen[k] for k in order]
        others = [ring[(ring.index(c) + 1) % len(ring)] for c in seen]
    first, second, labels = [], [], []
    for c, other in zip(seen, others):
        mine, theirs = (a.train_labels == c).nonzero()[:, 0], (b.train_labels == other).nonzero()[:, 0]
        n = min(len(mine), len(theirs))
        first.append(mine[:n])
        second.append(theirs[:n])
        labels += [c] * n
    x, y, targets = a.train[torch.cat(first)].float(), b.train[torch.cat(second)].float(), torch.tensor(labels)
    branches = [_branch(part, config.dim, draws) for part in (x, y)]
    if not untrained:
        parameters = [p for weight, bias, *_ in branches for p in (weight, bias)]
        optimiser = torch.optim.Adam(parameters, lr=config.lr)
        for _ in range(config.epochs):
            for part in torch.randperm(len(targets), generator=draws).split(config.batch_size):
                loss = contrastive_loss(
                    _project(x[part], branches[0]), _project(y[part], branches[1]), targets[part],
                    kind=config.loss, tau=config.tau, cosine=config.cosine,
                )  # fmt: skip
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return (lambda t: _project(t, branches[0]).detach()), (lambda t: _project(t, branches[1]).detach())


Branch = tuple[nn.Parameter, nn.Parameter, Tensor, Tensor]


def _branch(x: Tensor, dim: int, draws: torch.Generator) -> Branch:
    """Weight and bias drawn as torch's linear layer draws them; mean and spread of the seen training features."""
    bound, width = x.shape[1] ** -0.5, x.shape[1]
    weight, bias = (
        nn.Parameter((2 * torch.rand(*shape, generator=draws) - 1) * bound) for shape in ((dim, width), (dim,))
    )
    std = x.std(0, correction=0)
    return weight, bias, x.mean(0), torch.where(std > 1e-6, std, 1.0)


def _project(x: Tensor, branch: Branch) -> Tensor:
    weight, bias, mean, std = branch
    return tf.gelu(tf.linear((x.float() - mean) / std, weight, bias))


def _retrieve(a: Sense, b: Sense, embed: Any, seen: list[int], unseen: list[int], cosine: bool) -> list[list[float]]:
    """(unseen, seen, generalised) from the first sense to the second, and back."""
    sides = [(embed[0](a.test), a.test_labels), (embed[1](b.test), b.test_labels)]

    def pool(side: int, classes: list[int]) -> tuple[Tensor, Tensor]:
        embedded, labels = sides[side]
        kept = torch.isin(labels, torch.tensor(classes))
        return embedded[kept], labels[kept]

    out = []
    for query, gallery in ((0, 1), (1, 0)):
        row = []
        for asked, among in ((unseen, unseen), (seen, seen), (unseen, seen + unseen)):
            (q, q_labels), (g, g_labels) = pool(query, asked), pool(gallery, among)
            row.append(retrieval_accuracy(q, g, q_labels, g_labels, cosine))
        out.append(row)
    return out
