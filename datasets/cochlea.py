"""Sound to events: a simulated silicon cochlea of 64 channels.

    cascade     low-pass sections of second order in a row, from high to low; a channel is the difference of neighbouring outputs, as on
                the chip that recorded N-TIDIGITS
    gammatone   a bank of gammatone filters of fourth order, ERB wide
    hair-cell   the same, and Meddis's inner hair cells behind it (adaptation: onsets fire most)

Every channel is as loud as the others at the frequency that it answers most; on pink noise, which is as loud in every octave, their
long-term rates are about the same. Behind each channel: half-wave rectification, and a neuron that integrates and fires, v += y·dt, with
the threshold mismatched from channel to channel and a refractory period. Event times are interpolated inside a sample. Lower channels
are higher frequencies. Sources: Liu, van Schaik, Minch, Delbruck 2014 (doi 10.1109/TBCAS.2013.2281834) for the chip; Meddis 1986
(doi 10.1121/1.393460) for the hair cell; Glasberg, Moore 1990 for the width of the filters.
"""

from __future__ import annotations

import functools
import io
import math
import os
import wave
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from spiking.datasets import _kernels

from spiking.errors import SpikingError

MODELS = ("cascade", "gammatone", "hair-cell")
LOUDNESS = 0.3  # root mean square that sound is brought to
SILENT = 1e-6  # root mean square, of full scale, below which there is nothing to bring anywhere
MOTION = 50.0  # root mean square of the membrane's motion that hair cells see on pink noise
CALIBRATION = 2.0  # seconds of pink noise
# y, g, l, r, x (1/s), A, B, h, M of Meddis's hair cell
HAIR_CELL = np.array([5.05, 2000.0, 2500.0, 6580.0, 66.3, 5.0, 300.0, 50000.0, 1.0])


class Sound(NamedTuple):
    """Samples in -1…1 (float64), samples a second, channels that were mixed into one, and the share of samples at full scale."""

    samples: np.ndarray
    rate: int
    channels: int
    clipped: float


def read_wav(file: str | os.PathLike[str] | bytes, name: str = "") -> Sound:
    """One wav file (PCM of 8, 16, 24 or 32 bits), channels mixed into one; `bytes` are the file's content.

    Errors: SpikingError naming the file if it is no such file, cut, or empty.
    """
    where = name or (os.fspath(file) if not isinstance(file, bytes) else "wav")
    try:
        source: Any = io.BytesIO(file) if isinstance(file, bytes) else os.fspath(file)
        with wave.open(source) as opened:
            channels, width, rate, n = opened.getparams()[:4]
            raw = opened.readframes(n)
    except (wave.Error, EOFError) as err:
        raise SpikingError(f"{where}: not a readable wav file ({err or 'it is cut'}); expected PCM sound.") from err
    except OSError as err:
        raise SpikingError(f"{where}: {(err.strerror or str(err)).lower()}; expected a wav file.") from err
    if width not in (1, 2, 3, 4) or channels < 1:
        raise SpikingError(f"{where}: got {8 * width} bits and {channels} channels; expected PCM of 8 to 32 bits.")
    if len(raw) < n * width * channels:
        raise SpikingError(f"{where}: got {len(raw)} of {n * width * channels} bytes of sound; the file is cut.")
    if not n:
        raise SpikingError(f"{where}: got no samples; expected sound. Leave the file out.")
    if width == 1:
        values = np.frombuffer(raw, np.uint8).astype(np.float64) - 128
    elif width == 3:
        padded = np.zeros((len(raw) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        values = (padded.view("<i4")[:, 0] >> 8).astype(np.float64)
    else:
        values = np.frombuffer(raw, f"<i{width}").astype(np.float64)
    full = 2.0 ** (8 * width - 1)
    clipped = float((np.abs(values) >= full - 1).mean())
    return Sound(values.reshape(-1, channels).mean(1) / full, rate, channels, clipped)


def resampled(sound: Sound, rate: int) -> Sound:
    """The same sound at another number of samples a second."""
    if sound.rate == rate:
        return sound
    from scipy.signal import resample_poly

    common = math.gcd(sound.rate, rate)
    return sound._replace(samples=resample_poly(sound.samples, rate // common, sound.rate // common), rate=rate)


@dataclass(frozen=True)
class Cochlea:
    """A simulated cochlea: `times, channels = cochlea.events(samples, rate)`.

    `model`: cascade, gammatone or hair-cell.   `f_low`, `f_high`: hertz of the lowest and highest channel (at most 0.45 of the sample
    rate).   `rate_hz`: events a second and channel on pink noise, on average.   `mismatch`: standard deviation of the
    logarithm of the thresholds, drawn with `seed`.   `refractory`: seconds.
    Errors: SpikingError naming the field that is out of range.

    >>> tone = np.sin(2 * np.pi * 1000 * np.arange(4000) / 16000)
    >>> times, channels = Cochlea(n_channels=16).events(tone, 16000)
    >>> len(times) > 100, bool(times.max() < 0.25), bool((np.diff(times) >= 0).all())
    (True, True, True)
    """

    model: str = "cascade"
    n_channels: int = 64
    f_low: float = 100.0
    f_high: float = 8000.0
    q: float = 0.95
    rate_hz: float = 150.0
    mismatch: float = 0.1
    refractory: float = 0.0005
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise SpikingError(f"Cochlea.model: got {self.model!r}; expected one of {', '.join(MODELS)}.")
        if not 2 <= self.n_channels <= 4096:
            raise SpikingError(f"Cochlea.n_channels: got {self.n_channels}; expected 2 to 4096.")
        if not 0 < self.f_low < self.f_high < math.inf:
            raise SpikingError(
                f"Cochlea.f_low: got {self.f_low} Hz to f_high={self.f_high} Hz; expected 0 < low < high."
            )
        for name, least in {"q": 0.1, "rate_hz": 1e-3, "mismatch": 0.0, "refractory": 0.0}.items():
            if not least <= getattr(self, name) < math.inf:
                raise SpikingError(f"Cochlea.{name}: got {getattr(self, name)}; expected at least {least}.")

    def events(self, samples: Any, rate: int) -> tuple[np.ndarray, np.ndarray]:
        """Times in seconds (float64, rising) and channels (int16) of sound [n]; silence gives none."""
        audio = _checked(samples, rate)
        audio = audio - audio.mean()
        loudness = float(np.sqrt((audio * audio).mean()))
        if loudness < SILENT:
            return np.zeros(0), np.zeros(0, np.int16)
        return _fire(
            self._responses(audio * (LOUDNESS / loudness), rate), rate, *_calibrated(self, rate), self.refractory
        )

    def centres(self, rate: int) -> np.ndarray:
        """The frequency in hertz that each channel answers most, [channels]."""
        return _tuning(self, rate)[0]

    def bands(self, samples: Any, rate: int) -> np.ndarray:
        """What the filters make of sound [n]: [n, channels], each with gain 1 at the frequency that it answers most."""
        return _filtered(self, _checked(samples, rate), rate) / _tuning(self, rate)[1]

    def _responses(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """Rectified channels, before gains: what drives the neurons."""
        bands = self.bands(audio, rate)
        if self.model != "hair-cell":
            return np.maximum(bands, 0.0, out=bands)
        bands *= _motion(self, rate)
        released = hair_cells(bands, rate)
        return np.maximum(released - _released_at_rest(rate), 0.0)


def _checked(samples: Any, rate: int) -> np.ndarray:
    audio = np.ascontiguousarray(samples, np.float64)
    if audio.ndim != 1 or not audio.size or not np.isfinite(audio).all() or rate < 1:
        raise SpikingError(
            f"Cochlea: got sound of shape {list(audio.shape)} at {rate} samples a second; expected [samples], finite, one or more."
        )
    return audio


def _pink(rate: int) -> np.ndarray:
    """Two seconds of pink noise, the same every time."""
    n = int(CALIBRATION * rate)
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(n))
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, n)
    return noise * (LOUDNESS / np.sqrt((noise * noise).mean()))


def _filtered(cochlea: Cochlea, audio: np.ndarray, rate: int) -> np.ndarray:
    f_high = min(0.45 * rate, cochlea.f_high)
    if f_high <= cochlea.f_low:
        raise SpikingError(f"Cochlea: got {rate} samples a second; expected more than {cochlea.f_low / 0.45:.0f}.")
    if cochlea.model == "cascade":
        return _cascade(audio, _sections(np.geomspace(f_high, cochlea.f_low, cochlea.n_channels + 1), rate, cochlea.q))
    return _gammatone(audio, _poles(np.geomspace(f_high, cochlea.f_low, cochlea.n_channels), rate))


@functools.lru_cache(maxsize=32)
def _tuning(cochlea: Cochlea, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """The frequency that each channel answers most, to 1 Hz, and its gain there, from one second of an impulse response."""
    impulse = np.zeros(rate)
    impulse[0] = 1.0
    spectrum = np.abs(np.fft.rfft(_filtered(cochlea, impulse, rate), axis=0))
    return spectrum.argmax(0).astype(np.float64), spectrum.max(0)


@functools.lru_cache(maxsize=32)
def _motion(cochlea: Cochlea, rate: int) -> float:
    bands = cochlea.bands(_pink(rate), rate)
    return MOTION / float(np.sqrt((bands * bands).mean()))


@functools.lru_cache(maxsize=32)
def _calibrated(cochlea: Cochlea, rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Gains, so that channels have `rate_hz` on average on pink noise but for the refractory period, and thresholds."""
    response = cochlea._responses(_pink(rate), rate).mean()
    spread = np.random.default_rng([cochlea.seed, 1]).standard_normal(cochlea.n_channels)
    return np.full(cochlea.n_channels, cochlea.rate_hz / response), np.exp(cochlea.mismatch * spread)


def _sections(frequencies: np.ndarray, rate: int, q: float) -> np.ndarray:
    """b0, b1, b2, a1, a2 of low-pass sections of second order, by the bilinear transform."""
    k = np.tan(np.pi * frequencies / rate)
    norm = 1 + k / q + k * k
    b = k * k / norm
    return np.ascontiguousarray(np.stack([b, 2 * b, b, 2 * (k * k - 1) / norm, (1 - k / q + k * k) / norm], 1))


def _poles(frequencies: np.ndarray, rate: int) -> np.ndarray:
    """Real part, imaginary part and gain of gammatone filters."""
    width = 1.019 * 24.7 * (4.37 * frequencies / 1000 + 1)
    pole = np.exp(2 * np.pi * (-width + 1j * frequencies) / rate)
    return np.ascontiguousarray(np.stack([pole.real, pole.imag, 2 * (1 - np.abs(pole)) ** 4], 1))


def _released_at_rest(rate: float) -> float:
    y, g, l, r, _, A, B, h, M = HAIR_CELL
    k = g * A / (A + B)
    return float(h * M * y * k / (l * k + y * (l + r)) / rate)


# Compiled, or plain where no compiler was found


def _cascade(audio: np.ndarray, sections: np.ndarray) -> np.ndarray:
    bands = np.empty((len(audio), len(sections) - 1))
    if _kernels._compiled is not None:
        _kernels._compiled.cochlea_cascade(audio, sections, bands)
        return bands
    from scipy.signal import lfilter

    before = lfilter(sections[0, :3], [1, *sections[0, 3:]], audio)
    for k, section in enumerate(sections[1:]):
        after = lfilter(section[:3], [1, *section[3:]], before)
        bands[:, k] = before - after
        before = after
    return bands


def _gammatone(audio: np.ndarray, poles: np.ndarray) -> np.ndarray:
    bands = np.empty((len(audio), len(poles)))
    if _kernels._compiled is not None:
        _kernels._compiled.cochlea_gammatone(audio, poles, bands)
        return bands
    from scipy.signal import lfilter

    for k, (re, im, gain) in enumerate(poles):
        out = gain * audio
        for _ in range(4):
            out = lfilter([1.0], [1.0, -(re + 1j * im)], out)
        bands[:, k] = out.real
    return bands


def hair_cells(motion: np.ndarray, rate: float) -> np.ndarray:
    """Meddis's inner hair cells: membrane motion [n] or [n, channels] to the probability of a release in each sample.

        k = g(s + A)/(s + A + B) where s + A > 0, else 0; free q, in the cleft c, in the reprocessing store w:
        q' = y(M - q) - kq + xw;   c' = kq - (l + r)c;   w' = rc - xw;   probability h·c·dt       (forward Euler, none below 0)

    Source: Meddis 1986 (doi 10.1121/1.393460), constants of Meddis, Hewitt, Shackleton 1990.

    >>> out = hair_cells(np.zeros(160), 16000.0)
    >>> bool(np.ptp(out) < 1e-12 * out[0])
    True
    """
    bands = np.array(motion, np.float64, order="C")
    flat = bands.reshape(len(bands), -1)
    if _kernels._compiled is not None:
        _kernels._compiled.cochlea_hair_cells(flat, rate, HAIR_CELL)
        return bands
    y, g, l, r, x, A, B, h, M = HAIR_CELL
    dt, k0 = 1 / rate, g * A / (A + B)
    c = np.full(flat.shape[1], M * y * k0 / (l * k0 + y * (l + r)))
    q, w = c * (l + r) / k0, c * r / x
    for s in flat:
        k = np.where(s + A > 0, g * (s + A) / np.where(s + A > 0, s + A + B, 1), 0.0)
        eject, replenish, reuptake = k * q * dt, y * dt * np.maximum(M - q, 0), x * dt * w
        lost, reprocess = (l + r) * dt * c, r * dt * c
        q = np.maximum(q + replenish - eject + reuptake, 0)
        c = np.maximum(c + eject - lost, 0)
        w = np.maximum(w + reprocess - reuptake, 0)
        s[:] = h * c * dt
    return bands


def _fire(
    bands: np.ndarray, rate: float, gain: np.ndarray, threshold: np.ndarray, refractory: float
) -> tuple[np.ndarray, np.ndarray]:
    if _kernels._compiled is not None:
        room = 1 << 14
        while True:
            times, channels = np.empty(room), np.empty(room, np.int16)
            found = _kernels._compiled.cochlea_fire(bands, float(rate), gain, threshold, refractory, times, channels)
            if found <= room:
                break
            room = found
        times, channels = times[:found], channels[:found]
    else:
        times, channels = _fire_plain(bands, float(rate), gain, threshold, refractory)
    order = np.lexsort((channels, times))
    return times[order], channels[order]


def _fire_plain(
    bands: np.ndarray, rate: float, gain: np.ndarray, threshold: np.ndarray, refractory: float
) -> tuple[np.ndarray, np.ndarray]:
    dt, times, channels = 1 / rate, [], []
    charge, ready = np.zeros(len(gain)), np.zeros(len(gain))
    for t, band in enumerate(bands):
        start, end = t * dt, (t + 1) * dt
        y = gain * band
        for k in np.flatnonzero((y > 0) & (ready < end)):
            v = charge[k] + y[k] * (end - max(ready[k], start))
            while v >= threshold[k]:
                at = end - (v - threshold[k]) / y[k]
                times.append(at)
                channels.append(k)
                ready[k] = at + refractory
                v = y[k] * (end - ready[k]) if ready[k] < end else 0.0
            charge[k] = v
    return np.array(times, np.float64), np.array(channels, np.int16)
