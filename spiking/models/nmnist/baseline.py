"""What classifies the recordings without a spike: logistic regression and a support vector machine on event counts."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np


def counts(events: Any, time_bins: int = 3, window_us: int = 315_000) -> np.ndarray:
    """Event counts of each pixel and polarity in a few time bins, [N, T·2·34·34], as the sensor saw them."""
    frames = events.frames(time_bins=time_bins, t_window=(0, window_us - 1), dtype=np.float32)
    return frames.reshape(len(frames), -1)


def logistic_regression(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predictions of a linear classifier on square roots of counts (which evens out their variance), L2-regularised."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=0.01, max_iter=1000).fit(np.sqrt(train), labels)
    return model.predict(np.sqrt(test))


def support_vectors(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predictions of a support vector machine with a radial kernel on counts."""
    from sklearn.svm import SVC

    return SVC(C=10.0).fit(train, labels).predict(test)
