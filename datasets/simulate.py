"""Images to event recordings: a simulated event camera that looks at digits in the three saccades of N-MNIST.

The camera turns so that the image moves along a triangle, (0, 0) → (3.5, 7) → (7, 0) → (0, 0) pixels, 105 ms a side,
with velocity sin(π·u). A pixel keeps the log intensity of its last event and fires when it has moved on by the
threshold:

    L(t) = log(1 + floor − I(t));   events every time |L − L_last| reaches threshold·(1 + mismatch);   ON where L rose

The digits are dark on a bright ground, so that ON and OFF lie on the sides of a stroke where N-MNIST has them (measured
there: ON trails the motion). Added are time jitter, a refractory period and background events; the threshold is such
that a recording has as many events as a real one (median 4,100). Sources: Orchard et al. 2015 (arXiv 1507.07629) and
its stabilisation constants for the motion; Rebecq et al. 2018 (ESIM) for the pixel. The recordings are N-MNIST's own
bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from spiking.datasets.cache import Stored, cache_root, key_of, load_or_build, pack
from spiking.datasets.events import Events, encode_bin
from spiking.datasets.idx import find_idx, read_idx
from spiking.datasets.recordings import HOW_TO_GET, SACCADE, RecordingSet

from spiking.errors import SpikingError

FORMAT = 1  # rises when the same settings give other recordings; part of the cache key
ORIGIN = np.array([-0.5, 1.0])  # (x, y) of the image's corner at rest, pixels; as the real digits lie on average
SIZE = 34  # pixels, width and height of the sensor
BOX = 28  # pixels, the image on the sensor
PAD = 10  # pixels around the image that motion may bring into view
CORNERS = np.array([(0.0, 0.0), (3.5, 7.0), (7.0, 0.0), (0.0, 0.0)])  # (x, y) of the image at the ends of the saccades
BATCH = 64  # recordings simulated together: their images stay in the second-level cache


@dataclass(frozen=True)
class Camera:
    """The simulated sensor. Times in µs, thresholds in units of log intensity, noise in events a second and pixel."""

    threshold: float = 0.355
    mismatch: float = 0.05
    contrast_spread: float = 0.08
    floor: float = 0.08
    refractory: int = 1000
    jitter: float = 400.0
    noise_hz: float = 0.3
    steps: int = 48
    timing_spread: float = 0.01
    placement: float = 0.5


class SimulatedNMNIST(RecordingSet):
    """Simulated N-MNIST: three saccades of an event camera looking at handwritten digits. Not real recordings.

    images: None takes scikit-learn's 1,797 digits of 8×8 pixels, enlarged, split per class 4 : 1 in a fixed way; or an
    array [N, h, w] (bytes, or 0…1) with `labels` [N]; or paths of two idx files (.gz or not); or a folder of MNIST or
    Fashion-MNIST files. train: the split, where there are two.  limit: only the first so many images.
    seed: recording i depends on (seed, i) only, i being the image's number in the whole set.
    Other arguments: as `NMNIST`.  Errors: SpikingError for shapes and files that do not fit.

    >>> import tempfile
    >>> one = SimulatedNMNIST(np.eye(8)[None], [3], cache_dir=tempfile.mkdtemp())
    >>> events, label = one[0]
    >>> len(events) > 500, label, one.simulated
    (True, 3, True)
    """

    simulated = True

    def __init__(
        self,
        images: Any = None,
        labels: Any = None,
        train: bool = True,
        seed: int = 0,
        transform: Callable[[Any], Any] | None = None,
        *,
        target_transform: Callable[[int], Any] | None = None,
        structured: bool = False,
        first_saccade_only: bool = False,
        stabilize: bool = False,
        camera: Camera | None = None,
        limit: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.train = bool(train)
        self.seed = int(seed)
        self.camera = camera or Camera()
        folder = cache_root() if cache_dir is None else Path(cache_dir)
        settings = [FORMAT, asdict(self.camera), self.seed, limit]
        if images is None:
            self._what = f"scikit-learn's 8×8 digits, {'train' if train else 'test'} split"
            key = key_of("digits", self.train, settings)
            load: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]] = lambda: sklearn_digits(self.train)  # noqa: E731
        else:
            pixels, targets, self._what = given_images(images, labels, self.train)
            key = key_of("images", pixels, targets, settings)
            load = lambda: (pixels, targets, np.arange(len(pixels)))  # noqa: E731

        def build() -> Stored:
            pictures, targets, numbers = (column[:limit] for column in load())
            recordings = simulate(pictures, numbers, seed=self.seed, camera=self.camera)
            return pack(recordings, targets, numbers)

        super().__init__(
            load_or_build(folder / f"simulated-{key}.recordings", build),
            transform=transform,
            target_transform=target_transform,
            structured=structured,
            first_saccade_only=first_saccade_only,
            stabilize=stabilize,
        )

    def describe(self) -> str:
        return (
            f"{len(self):,} SIMULATED recordings: an event camera in three saccades over {self._what}; "
            f"not N-MNIST itself. For the real recordings: {HOW_TO_GET}"
        )


def sklearn_digits(train: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images 0…1 [N, 8, 8], labels, numbers) of one split: of every class, each fifth digit is for testing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as err:
        raise SpikingError(
            f"SimulatedNMNIST: scikit-learn, which holds the default digits, cannot be imported ({err}). "
            "Install scikit-learn, or give images and labels."
        ) from err
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    test = np.zeros(len(labels), bool)
    for label in range(10):
        test[np.flatnonzero(labels == label)[4::5]] = True
    chosen = np.flatnonzero(~test if train else test)
    return (digits.images[chosen] / 16.0).astype(np.float32), labels[chosen], chosen


def given_images(images: Any, labels: Any, train: bool) -> tuple[np.ndarray, np.ndarray, str]:
    """Images [N, h, w], labels [N], and where they are from, out of arrays, idx files or a folder of them."""
    what = "images that were given"
    if isinstance(images, (str, os.PathLike)):
        path = Path(images)
        what = f"the images of {path}"
        if path.is_dir():
            images, labels = find_idx(path, train)
            what += f", {'train' if train else 'test'} split"
        if labels is None:
            raise SpikingError(f"SimulatedNMNIST.labels: got None with {path}; expected the idx file of the labels.")
        images = read_idx(images)
    if isinstance(labels, (str, os.PathLike)):
        labels = read_idx(labels)
    pixels, targets = np.asarray(images), np.asarray(labels if labels is not None else [])
    if pixels.ndim != 3 or not pixels.size or pixels.dtype.kind not in "uif":
        raise SpikingError(
            f"SimulatedNMNIST.images: got {pixels.dtype} of shape {list(pixels.shape)}; expected [N, height, width]."
        )
    if targets.shape != (len(pixels),) or targets.dtype.kind not in "ui" or targets.min() < 0 or targets.max() > 9:
        raise SpikingError(
            f"SimulatedNMNIST.labels: got {targets.dtype} of shape {list(targets.shape)} for {len(pixels)} images; "
            "expected one of 0 to 9 each."
        )
    top = 255 if pixels.dtype == np.uint8 else 1
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= top):
        raise SpikingError(
            f"SimulatedNMNIST.images: got values from {pixels.min()} to {pixels.max()}; "
            "expected bytes, or numbers from 0 to 1."
        )
    return pixels, targets.astype(np.int64), what


def simulate(images: np.ndarray, numbers: np.ndarray, *, seed: int = 0, camera: Camera | None = None) -> list[bytes]:
    """Recordings in N-MNIST's bytes of images [N, h, w] (bytes, or 0…1); recording i depends on (seed, numbers[i]).

    28×28 images are taken as they are, others enlarged or reduced so that their longer side covers 20 pixels.
    """
    camera = camera or Camera()
    fixed = np.random.default_rng([seed, 0]).normal(0, camera.mismatch, (SIZE, SIZE)).astype(np.float32)
    out: list[bytes] = []
    for at in range(0, len(images), BATCH):
        part = np.asarray(images[at : at + BATCH])
        scaled = part.astype(np.float32) / (255 if part.dtype == np.uint8 else 1)
        # A generator each: streams (seed, 1, i) never meet the camera's own (seed, 0).
        draws = [np.random.default_rng([seed, 1, int(i)]) for i in numbers[at : at + BATCH]]
        out += _batch(scaled, draws, camera, np.maximum(1 + fixed, 0.5))
    return out


def _batch(images: np.ndarray, draws: list[np.random.Generator], camera: Camera, mismatch: np.ndarray) -> list[bytes]:
    n = len(images)
    shift = np.array([d.uniform(-camera.placement, camera.placement, 2) for d in draws])
    contrast = np.array([np.exp(d.normal(0, camera.contrast_spread)) for d in draws], np.float32)
    threshold = camera.threshold * contrast[:, None, None] * mismatch
    canvas = np.log(np.float32(1 + camera.floor) - _placed(images, shift))
    reference = _view(canvas, 0.0, camera)
    reference += np.stack([d.uniform(-0.5, 0.5, (SIZE, SIZE)) for d in draws]).astype(np.float32) * threshold
    found: list[tuple[np.ndarray, ...]] = []
    before = _view(canvas, 0.0, camera)
    for step in range(1, 3 * camera.steps + 1):
        now = _view(canvas, step / camera.steps, camera)
        crossed = np.trunc((now - reference) / threshold)
        where = np.flatnonzero(crossed)
        many = crossed.ravel()[where]
        sign, times = np.sign(many), np.abs(many).astype(np.int64)
        at = np.repeat(where, times)
        rank = np.arange(len(at)) - np.repeat(np.cumsum(times) - times, times) + 1
        level = reference.ravel()[at] + rank * np.repeat(sign, times) * threshold.ravel()[at]
        change = (now - before).ravel()[at]
        part = np.clip((level - before.ravel()[at]) / np.where(change == 0, 1, change), 0, 1)
        found.append((at, step - 1 + part, np.repeat(sign, times) > 0))
        reference += crossed * threshold
        before = now
    at, steps, on = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(at // SIZE**2, kind="stable")
    at, steps, on = at[order], steps[order], on[order]
    bounds = np.searchsorted(at // SIZE**2, np.arange(n + 1))
    return [
        _recording(at[a:b] % SIZE**2, steps[a:b], on[a:b], draw, camera)
        for a, b, draw in zip(bounds[:-1], bounds[1:], draws, strict=True)
    ]


def _recording(
    pixel: np.ndarray, steps: np.ndarray, on: np.ndarray, draw: np.random.Generator, camera: Camera
) -> bytes:
    """One recording's bytes: times in µs with jitter, the refractory period, background events, order."""
    pace = SACCADE / camera.steps * (1 + draw.normal(0, camera.timing_spread))
    end = 3 * camera.steps * pace
    t = steps * pace + draw.normal(0, camera.jitter, len(steps))
    extra = draw.poisson(camera.noise_hz * SIZE**2 * end / 1e6)
    t = np.concatenate([t, draw.uniform(0, end, extra)])
    pixel = np.concatenate([pixel, draw.integers(0, SIZE**2, extra)])
    on = np.concatenate([on, draw.integers(0, 2, extra) > 0])
    t = np.clip(np.rint(t), 0, None).astype(np.int64)
    order = np.lexsort((t, pixel))
    t, pixel, on = t[order], pixel[order], on[order]
    while True:  # the first event too close to the one before it goes, until none is
        close = np.zeros(len(t), bool)
        close[1:] = (pixel[1:] == pixel[:-1]) & (np.diff(t) < camera.refractory)
        close[1:] &= ~close[:-1]
        if not close.any():
            break
        t, pixel, on = t[~close], pixel[~close], on[~close]
    order = np.argsort(t, kind="stable")
    events = Events(t[order], pixel[order] % SIZE, pixel[order] // SIZE, on[order].astype(np.uint8), (SIZE, SIZE))
    return encode_bin(events, "simulate")


def _view(canvas: np.ndarray, time: float, camera: Camera) -> np.ndarray:
    """What the sensor sees after `time` saccades (0…3): the canvas moved along the path, between pixels linearly."""
    side = min(int(time), 2)
    u = (1 - np.cos(np.pi * (time - side))) / 2
    x, y = ORIGIN + CORNERS[side] + u * (CORNERS[side + 1] - CORNERS[side])
    column, row = int(np.floor(x)), int(np.floor(y))
    fx, fy = np.float32(x - column), np.float32(y - row)
    top, left = PAD - row, PAD - column
    rows = (1 - fy) * canvas[:, top : top + SIZE] + fy * canvas[:, top - 1 : top - 1 + SIZE]
    return (1 - fx) * rows[:, :, left : left + SIZE] + fx * rows[:, :, left - 1 : left - 1 + SIZE]


def _placed(images: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Images [N, h, w] on an empty canvas, enlarged if they are not 28×28, each moved by its part of a pixel (x, y)."""
    _, height, width = images.shape
    scale = 1.0 if (height, width) == (BOX, BOX) else 20 / max(height, width)
    side = SIZE + 2 * PAD
    rows, columns = (_kernel(side, size, scale, shift[:, axis]) for size, axis in ((height, 1), (width, 0)))
    placed = np.matmul(np.matmul(rows, images), columns.transpose(0, 2, 1))
    return np.clip(placed, 0, 1)


def _kernel(side: int, size: int, scale: float, shift: np.ndarray) -> np.ndarray:
    """Weights [N, side, size] of a cubic (Catmull-Rom) resampling that centres the image in its box, plus a shift."""
    centre = PAD + BOX / 2
    source = (np.arange(side) + 0.5 - centre - shift[:, None]) / scale + size / 2 - 0.5
    d = np.abs(source[:, :, None] - np.arange(size))
    near, far = 1 - 2.5 * d**2 + 1.5 * d**3, 2 - 4 * d + 2.5 * d**2 - 0.5 * d**3
    return np.where(d < 1, near, np.where(d < 2, far, 0)).astype(np.float32)
