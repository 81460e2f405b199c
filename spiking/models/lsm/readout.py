"""Linear readouts of reservoir states: ridge regression, logistic regression, and a layer trained by gradient.

    scores = W·(features - mean)/std + b

Whatever is chosen (the strength of the penalty) is chosen by cross-validation inside the training set.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from spiking.errors import SpikingError

Readout = Literal["ridge", "logistic", "linear"]
READOUTS = ("ridge", "logistic", "linear")
STRENGTHS = tuple(10.0**k for k in np.arange(-4.0, 2.1, 0.5))  # of the penalty, per training sample
FOLDS = 5


class Fit(NamedTuple):
    """What fitting chose: the strength of the penalty, and the cross-validated accuracy with it (NaN where nothing was chosen)."""

    strength: float
    accuracy: float


class LinearReadout(nn.Module):
    """Scores [B, C] from features [B, F], standardised by the training set; zeros until it was fitted.

    Errors: SpikingError for features of another width, for labels that do not fit, or if it was never fitted.

    >>> x, y = torch.tensor([[0.0], [0.1], [0.9], [1.0]] * 5), torch.tensor([0, 0, 1, 1] * 5)
    >>> layer = LinearReadout(1, 2)
    >>> fit = layer.fit(x, y)
    >>> layer(torch.tensor([[0.2], [0.8]])).argmax(1).tolist()
    [0, 1]
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor
    fitted: Tensor

    def __init__(self, in_features: int, out: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(out, in_features))
        self.register_buffer("bias", torch.zeros(out))
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("std", torch.ones(in_features))
        self.register_buffer("fitted", torch.tensor(False))

    def forward(self, features: Tensor) -> Tensor:
        if not bool(self.fitted):
            raise SpikingError("LinearReadout: got features before any fit; expected fit(features, labels) first.")
        self._check(features)
        return torch.nn.functional.linear((features - self.mean) / self.std, self.weight, self.bias)

    def fit(self, features: Tensor, labels: Any, kind: Readout = "ridge", seed: int = 0) -> Fit:
        """Fit to features [S, F] and labels [S] (0 … out - 1): "ridge", "logistic" (both cross-validated), or "linear" (Adam).

        "linear" is the published recipe: Adam with rate 1e-4, batches of 100, 100 epochs, the last one taken.
        """
        self._check(features)
        x, y = self._standardised(features), self._checked_labels(labels, len(features))
        if kind not in READOUTS:
            raise SpikingError(f"LinearReadout.fit: got {kind!r}; expected one of {', '.join(READOUTS)}.")
        out = len(self.bias)
        if kind == "linear":
            weight, bias, fit = _by_gradient(x, y, out, seed)
        else:
            weight, bias, fit = (_ridge if kind == "ridge" else _logistic)(x, y, out, seed)
        self.weight.copy_(torch.as_tensor(weight))
        self.bias.copy_(torch.as_tensor(bias))
        self.fitted.fill_(True)
        return fit

    def _standardised(self, features: Tensor) -> np.ndarray:
        x = features.detach().double()
        std = x.std(0, correction=0)
        self.mean.copy_(x.mean(0))
        self.std.copy_(torch.where(std > 1e-12, std, 1.0))
        return ((x - self.mean) / self.std).cpu().numpy()

    def _check(self, features: Tensor) -> None:
        if features.dim() != 2 or features.shape[1] != self.weight.shape[1]:
            raise SpikingError(
                f"LinearReadout: got features of shape {list(features.shape)}; expected [B, {self.weight.shape[1]}]."
            )

    def _checked_labels(self, labels: Any, n: int) -> np.ndarray:
        y, out = np.asarray(labels), len(self.bias)
        if y.shape != (n,) or y.dtype.kind not in "iu" or not n or y.min() < 0 or y.max() >= out:
            shown = f"{y.min()} to {y.max()}" if y.size and y.dtype.kind in "iuf" else "nothing"
            raise SpikingError(
                f"LinearReadout.fit: got labels of shape {list(y.shape)} with {shown}; expected {n} of 0 to {out - 1}."
            )
        missing = sorted(set(range(out)) - set(y.tolist()))
        if missing:
            raise SpikingError(
                f"LinearReadout.fit: got no sample of class {', '.join(map(str, missing))}; expected some of each of the {out}. "
                "Give out= the number of classes that there are."
            )
        return y


def folds_of(y: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """The fold of each sample, with the same mix of classes in each."""
    fold, rng = np.empty(len(y), np.int64), np.random.default_rng(seed)
    start = 0
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        fold[members] = (start + np.arange(len(members))) % n_folds
        start += len(members)
    return fold


def _ridge_path(x: np.ndarray, targets: np.ndarray, strengths: tuple[float, ...]) -> list[np.ndarray]:
    """Weights [F, C] for each strength, from one decomposition of the smaller Gram matrix."""
    n, f = x.shape
    if n <= f:
        values, vectors = np.linalg.eigh(x @ x.T)
        turned = vectors.T @ targets
        return [x.T @ (vectors @ (turned / (values + s * n)[:, None])) for s in strengths]
    values, vectors = np.linalg.eigh(x.T @ x)
    turned = vectors.T @ (x.T @ targets)
    return [vectors @ (turned / (values + s * n)[:, None]) for s in strengths]


def _ridge(x: np.ndarray, y: np.ndarray, out: int, seed: int) -> tuple[np.ndarray, np.ndarray, Fit]:
    """min Σ|W·x + b - target|² + strength·S·|W|² with targets one-hot."""
    targets = np.eye(out)[y]
    fold = folds_of(y, FOLDS, seed)
    hits = np.zeros(len(STRENGTHS))
    for k in range(FOLDS):
        held = fold == k
        if held.all() or not held.any():
            continue
        mean = x[~held].mean(0)
        centre = targets[~held].mean(0)
        for i, w in enumerate(_ridge_path(x[~held] - mean, targets[~held] - centre, STRENGTHS)):
            hits[i] += (((x[held] - mean) @ w + centre).argmax(1) == y[held]).sum()
    best = int(hits.argmax())
    centre = targets.mean(0)
    (weight,) = _ridge_path(x, targets - centre, (STRENGTHS[best],))  # x has mean 0
    return weight.T, centre, Fit(STRENGTHS[best], float(hits[best] / len(y)))


def _logistic(x: np.ndarray, y: np.ndarray, out: int, seed: int) -> tuple[np.ndarray, np.ndarray, Fit]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    def fitted(part: np.ndarray, strength: float) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=1 / (strength * part.sum()), max_iter=300).fit(x[part], y[part])

    fold, strengths = folds_of(y, FOLDS, seed), STRENGTHS[::2]
    hits = [
        sum(int((fitted(fold != k, s).predict(x[fold == k]) == y[fold == k]).sum()) for k in range(FOLDS))
        for s in strengths
    ]
    best = int(np.argmax(hits))
    model = fitted(np.ones(len(y), bool), strengths[best])
    weight, bias = model.coef_, model.intercept_
    if out == 2:  # scikit-learn keeps one row for two classes
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias, Fit(strengths[best], hits[best] / len(y))


def _by_gradient(x: np.ndarray, y: np.ndarray, out: int, seed: int) -> tuple[np.ndarray, np.ndarray, Fit]:
    draws = torch.Generator().manual_seed(seed)
    inputs, targets = torch.from_numpy(x).float(), torch.from_numpy(y.astype(np.int64))
    bound = x.shape[1] ** -0.5
    weight = ((2 * torch.rand(out, x.shape[1], generator=draws) - 1) * bound).requires_grad_()
    bias = torch.zeros(out, requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], lr=1e-4)
    for _ in range(100):
        for part in torch.randperm(len(y), generator=draws).split(100):
            loss = torch.nn.functional.cross_entropy(inputs[part] @ weight.T + bias, targets[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return weight.detach().numpy(), bias.detach().numpy(), Fit(float("nan"), float("nan"))
