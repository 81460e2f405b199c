"""Spoken digits as events: wav recordings through a simulated cochlea. A stand-in for N-TIDIGITS, which cannot be shipped.

Source of the recordings: Free Spoken Digit Dataset (Jackson et al., doi 10.5281/zenodo.1342401), licence CC BY-SA 4.0.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from spiking.datasets.audio import AudioSet
from spiking.datasets.cache import Stored, cache_root, fingerprint, key_of, load_or_build, pack
from spiking.datasets.cochlea import Cochlea, read_wav, resampled

from spiking.errors import SpikingError

FORMAT = 1  # rises when the same settings give other events; part of the cache key
NAME = re.compile(r"(?:^|/)([0-9])_([A-Za-z]+)_(\d+)\.wav$")
EVENT = np.dtype([("t", "<f8"), ("channel", "<i2")])
TEST_TAKES = 5  # of each speaker and digit, the first ones: the official split
TEST_SPEAKER = "yweweler"
CLIPPED = 0.01  # share of samples at full scale from which a recording is called clipped
HOW_TO_GET = "Get the Free Spoken Digit Dataset (github.com/Jakobovski/free-spoken-digit-dataset) and name its folder."


class Take(NamedTuple):
    """One wav file, and what its name says."""

    name: str
    label: int
    speaker: str
    number: int
    stamp: list[int]


class SpokenDigits(AudioSet):
    """Spoken digits (Free Spoken Digit Dataset) as events of a simulated cochlea: ten classes, `n_channels` of the cochlea.

    root: a folder or zip file with `<digit>_<speaker>_<take>.wav` in it.  split: "speakers" (one speaker, yweweler, is the test set:
    nobody is heard in both), or "official" (takes 0–4 of everybody are).  Sound of another rate than `rate` is resampled, channels are
    mixed into one, and both are told in a warning, as are clipped recordings.  `takes`: the number of each recording.
    The first opening runs the cochlea and keeps the events in `cache_dir`.  Other arguments: as `NMNIST`.
    Errors: SpikingError naming the file that is no sound, or saying what was looked for; classes without recordings are named.
    """

    classes = tuple("0123456789")

    def __init__(
        self,
        root: str | os.PathLike[str],
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        *,
        target_transform: Callable[[int], Any] | None = None,
        split: str = "speakers",
        cochlea: Cochlea | None = None,
        rate: int = 8000,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(transform, target_transform)
        if split not in ("speakers", "official"):
            raise SpikingError(f"SpokenDigits.split: got {split!r}; expected speakers or official.")
        self.train, self.split, self.cochlea = bool(train), split, cochlea or Cochlea()
        self.n_channels = self.cochlea.n_channels
        self.path = Path(root)
        takes = [t for t in find_takes(self.path) if self._is_test(t) != self.train]
        missing = sorted(set(range(10)) - {t.label for t in takes})
        if missing:
            raise SpikingError(
                f"{self.path}: got no {'training' if train else 'test'} recording of {', '.join(map(str, missing))}; expected some of "
                f"each digit. {HOW_TO_GET}"
            )
        folder = cache_root() if cache_dir is None else Path(cache_dir)
        key = key_of("spoken", FORMAT, [list(t) for t in takes], fingerprint(self.path), asdict(self.cochlea), rate)
        stored = load_or_build(folder / f"spoken-{key}.recordings", lambda: self._hear(takes, rate))
        self._recordings, self.labels = stored.recordings, stored.labels
        self.speakers = np.array([t.speaker for t in takes])
        self.takes = np.array([t.number for t in takes])

    def _is_test(self, take: Take) -> bool:
        return take.speaker == TEST_SPEAKER if self.split == "speakers" else take.number < TEST_TAKES

    def _hear(self, takes: list[Take], rate: int) -> Stored:
        recordings, told = [], {"were resampled": 0, "had several channels, now mixed into one": 0, "are clipped": 0}
        for raw, take in zip(read_takes(self.path, takes), takes, strict=True):
            sound = read_wav(raw, take.name)
            told["were resampled"] += sound.rate != rate
            told["had several channels, now mixed into one"] += sound.channels > 1
            told["are clipped"] += sound.clipped > CLIPPED
            times, channels = self.cochlea.events(resampled(sound, rate).samples, rate)
            events = np.empty(len(times), EVENT)
            events["t"], events["channel"] = times, channels
            recordings.append(events.tobytes())
        for what, n in told.items():
            if n:
                warnings.warn(
                    f"{self.path}: {n} of {len(takes)} recordings {what} ({rate} samples a second)", stacklevel=4
                )
        return pack(recordings, [t.label for t in takes], np.arange(len(takes)))

    def describe(self) -> str:
        who = ", ".join(sorted(set(self.speakers.tolist())))
        return (
            f"{len(self):,} spoken digits ({'train' if self.train else 'test'}, split by {self.split}: {who}) through a SIMULATED cochlea "
            f"({self.cochlea.model}), from {self.path}; not N-TIDIGITS."
        )

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        events = np.frombuffer(self._recordings[index], EVENT)
        return events["t"].astype(np.float64), events["channel"].astype(np.int16)


def find_takes(root: Path) -> list[Take]:
    """Every wav below a folder, or in a zip file, whose name says digit, speaker and take; in the order of their names."""
    if not root.exists():
        raise SpikingError(f"{root}: no such file or folder; expected spoken digits there. {HOW_TO_GET}")
    if root.is_file():
        try:
            with zipfile.ZipFile(root) as archive:
                found = [(i.filename, [i.file_size, i.CRC]) for i in archive.infolist()]
        except (zipfile.BadZipFile, OSError, NotImplementedError) as err:
            raise SpikingError(
                f"{root}: not a readable zip file ({err}); expected spoken digits. {HOW_TO_GET}"
            ) from err
    else:
        archives = sorted(root.glob("*.zip"))
        files = sorted(root.rglob("*.wav"))
        if not files and len(archives) == 1:
            return find_takes(archives[0])
        found = [(str(f), [f.stat().st_size, f.stat().st_mtime_ns]) for f in files]
    takes = [Take(name, int(m[1]), m[2], int(m[3]), stamp) for name, stamp in found if (m := NAME.search(name))]
    if not takes:
        raise SpikingError(
            f"{root}: got {len(found)} files, none named <digit>_<speaker>_<take>.wav; expected spoken digits. {HOW_TO_GET}"
        )
    return sorted(takes, key=lambda t: (t.label, t.speaker, t.number, t.name))


def read_takes(root: Path, takes: list[Take]) -> Iterator[bytes]:
    """The content of each take's file."""
    if root.is_dir() and Path(takes[0].name).is_file():
        for take in takes:
            yield Path(take.name).read_bytes()
        return
    with zipfile.ZipFile(root if root.is_file() else sorted(root.glob("*.zip"))[0]) as archive:
        for take in takes:
            yield archive.read(take.name)
