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
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as tf

from spiking.errors import SpikingError

Loss = Literal["hard", "soft", "supervised"]
LOSSES = ("hard", "soft", "supervised")
CONFIDENCE = 0.95
ABSENT = -1e9  # what is added to the logit of an item that is not there


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
    there = torch.ones(1, len(a), dtype=torch.bool, device=a.device)
    return _losses(a[None], b[None], None if labels is None else labels[None], there, kind, tau, cosine)[0]


def _losses(a: Tensor, b: Tensor, labels: Tensor | None, there: Tensor, kind: Loss, tau: float, cosine: bool) -> Tensor:
    """The loss of each of P batches a, b [P, B, D], of whose items only those that are `there` [P, B] count."""
    if cosine:
        a, b = tf.normalize(a, dim=2), tf.normalize(b, dim=2)
    absent = torch.zeros_like(there, dtype=a.dtype).masked_fill_(~there, ABSENT)[:, None]

    def products(x: Tensor, y: Tensor) -> Tensor:
        return x @ y.transpose(1, 2)

    logits = products(a, b) / tau
    if kind == "hard":
        targets = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    elif kind == "soft":
        targets = torch.softmax((products(a, a) + products(b, b)) * tau / 2 + absent, 2)
    else:
        assert labels is not None
        same = ((labels[:, :, None] == labels[:, None]) & there[:, None]).to(a.dtype)
        targets = same / same.sum(2, keepdim=True).clamp_min(1)
    targets = targets * there[:, :, None]  # an item that is not there asks for nothing
    forth = (targets * tf.log_softmax(logits + absent, 2)).sum(2)
    back = (targets.transpose(-1, -2) * tf.log_softmax(logits.transpose(1, 2) + absent, 2)).sum(2)
    return -torch.where(there, forth + back, 0).sum(1) / (2 * there.sum(1))


def retrieval_accuracy(
    queries: Tensor, gallery: Tensor, query_labels: Tensor, gallery_labels: Tensor, cosine: bool = False
) -> float:
    """The share of queries [Q, D] whose nearest item of the gallery [G, D] (largest product) has their label.

    >>> retrieval_accuracy(torch.eye(2), torch.eye(2), torch.tensor([3, 4]), torch.tensor([3, 5]))
    0.5
    """
    nearest = _products(queries, gallery, cosine).argmax(1)
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
    """One direction over pairs of unseen classes: accuracies [pairs, seeds] of unseen queries among unseen ones, of seen among seen,
    and (`generalised`) of unseen among all; `confusion` [pairs, C, C] counts, over all seeds, the class that was retrieved (columns) for
    queries of every class (rows) among all.
    """

    unseen: np.ndarray
    seen: np.ndarray
    generalised: np.ndarray
    confusion: np.ndarray


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
    `untrained`, projections as they were drawn. All pairs of a seed are trained side by side, each as if it were alone.
    -> {"a to b": Outcome, "b to a": Outcome}.
    Errors: SpikingError for a class without recordings, or fewer than four classes.
    """
    if len(set(classes)) < 4:
        raise SpikingError(f"zero_shot.classes: got {list(classes)}; expected four or more, two of which stay unseen.")
    pairs = list(itertools.combinations(classes, 2)) if pairs is None else list(pairs)
    accuracies = np.zeros((2, 3, len(pairs), seeds))
    confusion = np.zeros((2, len(pairs), len(classes), len(classes)), np.int64)
    for seed in range(seeds):
        a, b = senses(seed)
        _check(a, b, classes)
        embedded = align(a, b, pairs, classes, config, seed, shuffled=shuffled, untrained=untrained)
        for way, (queries, gallery) in enumerate(((0, 1), (1, 0))):
            asked, there = ((a, b)[side].test_labels for side in (queries, gallery))
            for i, unseen in enumerate(pairs):
                products = _products(embedded[queries][i], embedded[gallery][i], config.cosine)
                found = _retrieved(products, asked, there, list(classes), list(unseen))
                accuracies[way, :, i, seed], confusion[way, i] = found[:3], confusion[way, i] + found[3]
    return {
        name: Outcome(accuracies[k, 0], accuracies[k, 1], accuracies[k, 2], confusion[k])
        for k, name in enumerate(("a to b", "b to a"))
    }


def _check(a: Sense, b: Sense, classes: Sequence[int]) -> None:
    for where, sense in (("first", a), ("second", b)):
        for part, labels in (("training", sense.train_labels), ("test", sense.test_labels)):
            missing = sorted(set(classes) - set(labels.tolist()))
            if missing:
                raise SpikingError(
                    f"zero_shot: got no {part} recording of class {', '.join(map(str, missing))} in the {where} sense; "
                    "expected some of each."
                )


def align(
    a: Sense,
    b: Sense,
    pairs: Sequence[tuple[int, int]],
    classes: Sequence[int],
    config: Alignment,
    seed: int,
    *,
    shuffled: bool = False,
    untrained: bool = False,
) -> tuple[Tensor, Tensor]:
    """Train a projection of each sense for every pair of unseen classes -> test recordings as they embed them, [pairs, R, D] each.

    Recordings of one class are paired in their order; every epoch cuts them anew into batches of at most `batch_size`, as equal as
    can be.
    """
    draws = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(pairs))]
    first, second, labels = [], [], []
    for unseen, own in zip(pairs, draws):
        seen = [c for c in classes if c not in unseen]
        order = torch.randperm(len(seen), generator=own).tolist() if shuffled else []
        partner = {seen[k]: seen[order[(n + 1) % len(seen)]] for n, k in enumerate(order)}  # no class keeps its own
        mine, theirs, of = [], [], []
        for c in seen:
            x, y = (a.train_labels == c).nonzero()[:, 0], (b.train_labels == partner.get(c, c)).nonzero()[:, 0]
            n = min(len(x), len(y))
            mine.append(x[:n])
            theirs.append(y[:n])
            of += [c] * n
        first.append(torch.cat(mine))
        second.append(torch.cat(theirs))
        labels.append(torch.tensor(of))
    branches = [
        _Branch(part, config.dim, draws) for part in ([a.train[i] for i in first], [b.train[i] for i in second])
    ]
    if not untrained:
        _train(branches, labels, config, draws)
    with torch.no_grad():
        return branches[0](a.test), branches[1](b.test)


class _Branch:
    """Projections of one sense, one for each of P sets of training features: GELU(W·(x - mean)/std + c), all side by side."""

    def __init__(self, trained_on: list[Tensor], dim: int, draws: list[torch.Generator]) -> None:
        width = trained_on[0].shape[1]
        bound = width**-0.5

        def drawn(*shape: int) -> nn.Parameter:  # as torch's linear layer draws them
            return nn.Parameter(torch.stack([(2 * torch.rand(*shape, generator=g) - 1) * bound for g in draws]))

        self.weight, self.bias = drawn(width, dim), drawn(1, dim)
        self.mean = torch.stack([x.float().mean(0, keepdim=True) for x in trained_on])
        std = torch.stack([x.float().std(0, correction=0, keepdim=True) for x in trained_on])
        self.std = torch.where(std > 1e-6, std, 1.0)
        most = max(len(x) for x in trained_on)
        self.inputs = torch.stack([tf.pad(x.float(), (0, 0, 0, most - len(x))) for x in trained_on])
        self.inputs = ((self.inputs - self.mean) / self.std).flatten(0, 1)

    def batch(self, rows: Tensor) -> Tensor:
        """Embeddings of training items [P, B], counted through all sets."""
        return self.project(self.inputs.index_select(0, rows.flatten()).unflatten(0, rows.shape))

    def project(self, x: Tensor) -> Tensor:
        return tf.gelu(torch.baddbmm(self.bias, x, self.weight))

    def __call__(self, x: Tensor) -> Tensor:
        return self.project((x.float() - self.mean) / self.std)


def _train(branches: list[_Branch], labels: list[Tensor], config: Alignment, draws: list[torch.Generator]) -> None:
    parameters = [p for branch in branches for p in (branch.weight, branch.bias)]
    optimiser = torch.optim.Adam(parameters, lr=config.lr, fused=True)
    lengths = torch.tensor([len(part) for part in labels])
    targets = torch.stack([tf.pad(part, (0, int(lengths.max()) - len(part))) for part in labels])
    batches = -(-int(lengths.max()) // config.batch_size)
    rows = targets.shape[1] * torch.arange(len(labels))[:, None]
    for _ in range(config.epochs):
        orders = [torch.randperm(int(n), generator=g) for n, g in zip(lengths, draws)]
        order = torch.stack([tf.pad(o, (0, config.batch_size + targets.shape[1] - len(o))) for o in orders])
        for k in range(batches):
            start, end = lengths * k // batches, lengths * (k + 1) // batches
            at = start[:, None] + torch.arange(int((end - start).max()))
            kept = order.gather(1, at)
            loss = _losses(
                branches[0].batch(rows + kept), branches[1].batch(rows + kept), targets.gather(1, kept),
                at < end[:, None], config.loss, config.tau, config.cosine,
            )  # fmt: skip
            optimiser.zero_grad()
            loss.sum().backward()
            optimiser.step()


def _products(queries: Tensor, gallery: Tensor, cosine: bool) -> Tensor:
    if cosine:
        queries, gallery = tf.normalize(queries, dim=1), tf.normalize(gallery, dim=1)
    return queries @ gallery.T


def _retrieved(
    products: Tensor, query_labels: Tensor, gallery_labels: Tensor, classes: list[int], unseen: list[int]
) -> tuple[float, float, float, np.ndarray]:
    """Accuracies (unseen, seen, generalised) from the products of all queries with the whole gallery, and confusions among all."""
    place = {c: k for k, c in enumerate(classes)}

    def nearest(asked: list[int], among: list[int]) -> tuple[Tensor, Tensor]:
        queries, gallery = (
            torch.isin(labels, torch.tensor(kept)).nonzero()[:, 0]
            for labels, kept in ((query_labels, asked), (gallery_labels, among))
        )
        return query_labels[queries], gallery_labels[gallery[products[queries][:, gallery].argmax(1)]]

    def share(asked: list[int], among: list[int]) -> float:
        true, found = nearest(asked, among)
        return float((true == found).double().mean())

    seen = [c for c in classes if c not in unseen]
    counts = np.zeros((len(classes),) * 2, np.int64)
    for true, found in zip(*(part.tolist() for part in nearest(classes, classes))):
        counts[place[true], place[found]] += 1
    return share(unseen, unseen), share(seen, seen), share(unseen, classes), counts
