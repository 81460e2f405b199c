"""Distances between sets of images: golden numbers, closed forms, and sets whose distance is known."""

import numpy as np
import pytest
import torch

from spiking import SpikingError
from spiking.models.diffusion import metrics
from spiking.models.diffusion.data import load_digits, scaled


def test_frechet_golden(golden):
    data = np.load(golden / "sdm" / "frechet.npz")
    assert metrics.frechet(data["mu1"], data["s1"], data["mu2"], data["s2"]) == pytest.approx(
        float(data["fd"]), rel=1e-8
    )
    assert metrics.frechet_distance(data["a"], data["b"]) == pytest.approx(float(data["fd"]), rel=1e-8)
    assert metrics.frechet_distance(data["a"], data["a"]) == pytest.approx(0, abs=1e-9)


def test_frechet_closed_form_and_singular_covariances():
    c, mean = 0.25, np.array([1.0, -2.0, 0.5])
    closed = (mean**2).sum() + 3 * (1 - np.sqrt(c)) ** 2
    assert metrics.frechet(np.zeros(3), np.eye(3), mean, c * np.eye(3)) == pytest.approx(closed)
    flat = np.random.default_rng(0).standard_normal((50, 4)) * [1, 1, 0, 0]
    assert metrics.frechet_distance(flat, flat + np.array([0, 0, 3, 0])) == pytest.approx(9)


def test_sliced_wasserstein():
    g = np.random.default_rng(1)
    a = g.standard_normal((500, 1, 4, 4))
    assert metrics.sliced_wasserstein(a, a[::-1]) < 1e-15  # sums in another order
    assert metrics.sliced_wasserstein(a, a + 1) == pytest.approx(1, rel=0.2)  # a direction sees a shift of about 1
    assert metrics.sliced_wasserstein(a, g.standard_normal((300, 1, 4, 4))) < 0.3


def test_precision_and_recall():
    g = np.random.default_rng(2)
    both = g.standard_normal((400, 4))
    half = np.abs(both)
    precision, recall = metrics.precision_recall(both, half)
    assert precision > 0.8
    assert recall < 0.4
    assert metrics.precision_recall(both, both) == (1.0, 1.0)
    assert metrics.precision_recall(both, both + 100) == (0.0, 0.0)


def test_interval():
    found = metrics.interval([1.0, 2.0, 3.0])
    assert found.high - found.mean == pytest.approx(4.3026527 / np.sqrt(3), rel=1e-6)
    assert metrics.interval([2.0])[:3] == (2.0, 2.0, 2.0)
    assert str(found) == "2 (-0.484 … 4.48, 3 seeds)"


def test_features_tell_digits_from_noise():
    digits = load_digits()
    train, test = scaled(digits.train.images), scaled(digits.test.images)
    features = metrics.train_features(train, digits.train_labels, test, digits.test_labels, 10, "digits", epochs=20)
    assert features.accuracy > 0.93
    assert features.name == "digits-features (seed 0)"
    real, noise = (
        metrics.frechet_distance(features(train[:397]), features(test)),
        metrics.frechet_distance(features(torch.rand(397, 1, 8, 8) * 2 - 1), features(test)),
    )
    assert noise > 20 * real
    wide = metrics.train_features(
        torch.zeros(4, 1, 20, 20), np.arange(4) % 2, torch.zeros(2, 1, 20, 20), np.zeros(2), 2, "x", epochs=1
    )
    assert wide(torch.zeros(3, 1, 20, 20)).shape == (3, 32)


def test_errors():
    with pytest.raises(SpikingError, match=r"frechet_distance: got features \[1, 3\]; expected at least 2 rows"):
        metrics.frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))
