"""Spoken digits that nobody spoke: formants of a simple voice, through the simulated cochlea. A stand-in where there is no sound.

A digit is a row of phonemes, each with a length, three formants, a strength of voice and a band of noise; a voice moves smoothly from one
to the next. Voiced sound is the harmonics of a falling pitch under the resonances of the formants,

    sound(t) = Σ_k A(k·f0(t), t)·sin(2π k ∫f0),   A(f, t) = 1/k · Σ_j g_j / (1 + ((f - F_j(t))/B_j)²)

and noise lies in the band of its phoneme. A speaker is a length of the vocal tract (which scales all formants), a pitch and a tempo;
speakers of the test set are others than those of the training set. Formants after Peterson, Barney 1952 (doi 10.1121/1.1906875);
resonances in parallel as in Klatt 1980 (doi 10.1121/1.383940).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from spiking.datasets.audio import AudioSet
from spiking.datasets.cache import Stored, cache_root, key_of, load_or_build, pack
from spiking.datasets.cochlea import Cochlea
from spiking.datasets.spoken import EVENT, HOW_TO_GET

FORMAT = 1  # rises when the same settings give other recordings; part of the cache key
RATE = 8000
SPEAKERS = {"train": 16, "test": 6}
TAKES = {"train": 4, "test": 4}  # of each digit by each speaker
BANDWIDTH = np.array([90.0, 130.0, 190.0])  # hertz, of the formants
GAIN = np.array([1.0, 0.6, 0.3])
GLIDE = 0.03  # seconds over which one phoneme becomes the next


class Phoneme(NamedTuple):
    """Seconds, formants in hertz, strength of voice, and strength, centre and width in hertz of noise."""

    seconds: float
    formants: tuple[float, float, float]
    voice: float = 1.0
    noise: float = 0.0
    centre: float = 2000.0
    width: float = 1000.0


PHONEMES = {
    "ah": Phoneme(0.10, (640, 1190, 2390)),
    "ao": Phoneme(0.13, (570, 840, 2410)),
    "ay1": Phoneme(0.10, (730, 1090, 2440)),
    "ay2": Phoneme(0.08, (400, 1900, 2550)),
    "eh": Phoneme(0.10, (530, 1840, 2480)),
    "ey": Phoneme(0.14, (430, 2100, 2650)),
    "f": Phoneme(0.10, (400, 1100, 2300), 0.0, 0.10, 2800, 2500),
    "ih": Phoneme(0.08, (390, 1990, 2550)),
    "iy": Phoneme(0.15, (270, 2290, 3010)),
    "k": Phoneme(0.04, (400, 1800, 2400), 0.0, 0.30, 1800, 600),
    "n": Phoneme(0.08, (280, 1250, 2300), 0.45),
    "ow": Phoneme(0.15, (480, 870, 2300)),
    "r": Phoneme(0.07, (420, 1200, 1600), 0.8),
    "s": Phoneme(0.12, (400, 1700, 2600), 0.0, 0.45, 3600, 700),
    "silence": Phoneme(0.05, (400, 1500, 2500), 0.0),
    "t": Phoneme(0.04, (400, 1700, 2600), 0.0, 0.40, 3200, 1200),
    "th": Phoneme(0.08, (400, 1400, 2500), 0.0, 0.08, 3000, 2500),
    "uw": Phoneme(0.16, (310, 950, 2240)),
    "v": Phoneme(0.07, (300, 1100, 2300), 0.4, 0.05, 2800, 2500),
    "w": Phoneme(0.07, (300, 650, 2200), 0.7),
    "z": Phoneme(0.09, (300, 1600, 2500), 0.3, 0.25, 3500, 900),
}
WORDS = (
    "z ih r ow", "w ah n", "t uw", "th r iy", "f ao r", "f ay1 ay2 v", "s ih silence k s", "s eh v ah n", "ey silence t", "n ay1 ay2 n",
)  # fmt: skip


class SimulatedDigits(AudioSet):
    """SIMULATED spoken digits, formants through a simulated cochlea: ten classes, `n_channels` of the cochlea. Not recordings of speech.

    train: 16 speakers, or 6 others; each says every digit four times.  seed: recording i depends on (seed, i) and its speaker only.
    cochlea, cache_dir: as `SpokenDigits`; transform, target_transform: as `NMNIST`.

    >>> import tempfile
    >>> data = SimulatedDigits(train=False, cache_dir=tempfile.mkdtemp())
    >>> events, label = data[0]
    >>> len(data), label, len(events) > 300, data.simulated
    (240, 0, True, True)
    """

    classes = tuple("0123456789")
    simulated = True

    def __init__(
        self,
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        *,
        target_transform: Callable[[int], Any] | None = None,
        seed: int = 0,
        cochlea: Cochlea | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(transform, target_transform)
        self.split, self.cochlea = "train" if train else "test", cochlea or Cochlea()
        self.n_channels = self.cochlea.n_channels
        folder = cache_root() if cache_dir is None else Path(cache_dir)
        key = key_of("voices", FORMAT, self.split, int(seed), asdict(self.cochlea))
        first = 0 if train else SPEAKERS["train"]
        who = [first + s for s in range(SPEAKERS[self.split]) for _ in range(10 * TAKES[self.split])]
        said = [n // TAKES[self.split] for n in range(10 * TAKES[self.split])] * SPEAKERS[self.split]

        def hear() -> Stored:
            found = []
            for i, (speaker, digit) in enumerate(zip(who, said)):
                times, channels = self.cochlea.events(speak(digit, speaker, [int(seed), 1, first, i]), RATE)
                events = np.empty(len(times), EVENT)
                events["t"], events["channel"] = times, channels
                found.append(events.tobytes())
            return pack(found, said, np.arange(len(said)))

        stored = load_or_build(folder / f"voices-{key}.recordings", hear)
        self._recordings, self.labels = stored.recordings, stored.labels
        self.speakers = np.array([f"voice {s}" for s in who])

    def describe(self) -> str:
        return (
            f"{len(self):,} SIMULATED spoken digits ({self.split} split, {SPEAKERS[self.split]} voices of its own): formants through a "
            f"simulated cochlea ({self.cochlea.model}); nobody spoke. For real sound: {HOW_TO_GET}"
        )

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        events = np.frombuffer(self._recordings[index], EVENT)
        return events["t"].astype(np.float64), events["channel"].astype(np.int16)


def speak(digit: int, speaker: int, seed: list[int]) -> np.ndarray:
    """One digit said by one of the voices, 8,000 samples a second; the seed decides how it is said this time.

    >>> sound = speak(6, speaker=0, seed=[0])
    >>> 2000 < len(sound) < 6000, bool(np.isfinite(sound).all())
    (True, True)
    """
    voice, draws = np.random.default_rng([7, speaker]), np.random.default_rng(seed)
    tract, pitch, tempo = (
        voice.uniform(0.86, 1.18),
        np.exp(voice.uniform(np.log(85), np.log(230))),
        voice.uniform(0.8, 1.25),
    )
    accent = voice.normal(1, 0.1, (len(PHONEMES), 3))
    names = [*PHONEMES]
    row = [PHONEMES[name] for name in WORDS[digit].split()]
    lengths = np.array([p.seconds for p in row]) / tempo * np.exp(draws.normal(0, 0.12, len(row)))
    ends = np.cumsum(lengths)
    t = np.arange(int(ends[-1] * RATE)) / RATE

    def track(values: np.ndarray) -> np.ndarray:
        """A number for each phoneme as a smooth course over time, [samples]."""
        steps = 1 / (1 + np.exp(-(t[:, None] - ends[:-1]) / (GLIDE / 4)))
        return values[0] + steps @ np.diff(values)

    own = np.array([np.array(p.formants) * accent[names.index(n)] for p, n in zip(row, WORDS[digit].split())])
    own = own * tract * np.exp(draws.normal(0, 0.05, own.shape))
    formants = np.stack([track(own[:, j]) for j in range(3)])  # [3, samples]
    f0 = pitch * np.exp(draws.normal(0, 0.06)) * (1.08 - 0.2 * t / ends[-1])
    phase = 2 * np.pi * np.cumsum(f0) / RATE
    sound = np.zeros(len(t))
    for k in range(1, int(0.45 * RATE / f0.min()) + 1):
        apart = (k * f0 - formants) / BANDWIDTH[:, None]
        strength = (GAIN[:, None] / (1 + apart * apart)).sum(0) / k**0.5
        sound += np.where(k * f0 < 0.45 * RATE, strength, 0.0) * np.sin(k * phase + draws.uniform(0, 2 * np.pi))
    sound *= track(np.array([p.voice for p in row])) / 3
    for i, p in enumerate(row):
        if p.noise:
            alone = np.zeros(len(row))
            alone[i] = p.noise
            sound += track(alone) * _band(len(t), p.centre * tract**0.5, p.width, draws)
    fade = np.minimum(1, np.minimum(t, t[::-1]) / 0.015)
    return sound * fade + 10 ** draws.uniform(-2, -1) * draws.standard_normal(len(t))


def _band(n: int, centre: float, width: float, draws: np.random.Generator) -> np.ndarray:
    """Noise of standard deviation 1 around a frequency."""
    spectrum = np.fft.rfft(draws.standard_normal(n))
    frequency = np.fft.rfftfreq(n, 1 / RATE)
    noise = np.fft.irfft(spectrum * np.exp(-0.5 * ((frequency - min(centre, 0.45 * RATE)) / (width / 2)) ** 2), n)
    return noise / noise.std()
