"""N-TIDIGITS18: spoken digits through a silicon cochlea of 64 channels, and the readers of the Heidelberg spike sets.

Sources: Anumula, Neil, Delbruck, Liu 2018, "Feature representations for neuromorphic audio spike streams"
(doi 10.3389/fnins.2018.00023); Cramer, Stradmann, Schemmel, Zenke 2020 (doi 10.1109/TNNLS.2020.3044364) for SHD and SSC.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from spiking.datasets.audio import AudioSet

from spiking.errors import SpikingError

LABEL_MAPS = {
    "lsm": {**{str(d): d for d in range(1, 10)}, "z": 0, "o": 10},
    "tonic": {**{str(d): d for d in range(1, 10)}, "o": 0, "z": 10},
}
HOW_TO_GET = "Get n-tidigits.hdf5 from the record of N-TIDIGITS18 (docs.google.com form linked from sensors.ini.ch/databases) and name it."


class _Handle:
    """An HDF5 file that each process opens for itself: a handle survives neither fork nor pickle."""

    def __init__(self, path: Path) -> None:
        self.path, self._process, self._file = path, -1, None

    def __call__(self) -> Any:
        if self._file is None or self._process != os.getpid():
            import h5py

            try:
                self._file = h5py.File(self.path, "r")
            except OSError as err:
                raise SpikingError(f"{self.path}: not a readable HDF5 file ({err}). Download it again.") from err
            self._process = os.getpid()
        return self._file

    def group(self, name: str) -> Any:
        """What lies under `name`; SpikingError where nothing does."""
        file = self()
        if name not in file:
            raise SpikingError(
                f"{self.path}: got {', '.join(sorted(file)) or 'an empty file'}; expected {name} too. It is another file."
            )
        return file[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_process": -1, "_file": None}


def found_file(root: str | os.PathLike[str], names: tuple[str, ...], how: str) -> Path:
    """`root` itself if it is a file, else the first of `names` in it."""
    path = Path(root)
    if path.is_file():
        return path
    for name in names:
        for candidate in (path / name, *sorted(path.glob(f"*/{name}"))):
            if candidate.is_file():
                return candidate
    what = "a folder without it" if path.is_dir() else "nothing there"
    raise SpikingError(f"{path}: got {what}; expected {' or '.join(names)}. {how}")


class NTIDIGITS(AudioSet):
    """N-TIDIGITS18 recordings: 64 channels, classes zero to nine and oh; single digits unless `single_digits=False`.

    root: n-tidigits.hdf5, or a folder that holds it. Nothing is downloaded; recordings are read when they are asked for.
    label_map: "lsm" (z is 0, o is 10) or "tonic" (o is 0, z is 10).  With single_digits=False labels are those of the first digit, and
    `texts` has what was said.  train, transform, target_transform: as `NMNIST`.
    Errors: SpikingError naming file and group or recording: something missing, text outside of the alphabet, addresses outside 0…63,
    times that are not finite, arrays of different lengths.
    """

    classes = (*"0123456789", "oh")
    n_channels = 64

    def __init__(
        self,
        root: str | os.PathLike[str],
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        *,
        target_transform: Callable[[int], Any] | None = None,
        single_digits: bool = True,
        label_map: str = "lsm",
    ) -> None:
        super().__init__(transform, target_transform)
        if label_map not in LABEL_MAPS:
            raise SpikingError(f"NTIDIGITS.label_map: got {label_map!r}; expected lsm or tonic.")
        self.train, self.split = bool(train), "train" if train else "test"
        self.path = found_file(root, ("n-tidigits.hdf5",), HOW_TO_GET)
        self._file = _Handle(self.path)
        ids = [self._text(i) for i in np.asarray(self._file.group(f"{self.split}_labels")).ravel().tolist()]
        for part in ("addresses", "timestamps"):
            group = self._file.group(f"{self.split}_{part}")
            missing = next((i for i in ids if i not in group), None)
            if missing is not None:
                raise SpikingError(f"{self.path}: {self.split}_{part}: got no {missing!r}, which is among the labels.")
        known = LABEL_MAPS[label_map]
        for i in ids:
            said = i.rpartition("-")[2]
            if not said or not set(said) <= set(known):
                raise SpikingError(
                    f"{self.path}: {self.split}_labels: got {i!r}; expected digits 1 to 9, z and o after the last dash."
                )
        self.ids = [i for i in ids if not single_digits or len(i.rpartition("-")[2]) == 1]
        if not self.ids:
            raise SpikingError(f"{self.path}: {self.split}_labels: got {len(ids)} recordings, none of a single digit.")
        self.texts = [i.rpartition("-")[2] for i in self.ids]
        self.labels = np.array([known[text[0]] for text in self.texts], np.int64)
        self.speakers = np.array([i.partition("-")[0] for i in self.ids])

    @staticmethod
    def _text(value: Any) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    def describe(self) -> str:
        return f"{len(self):,} N-TIDIGITS recordings, {self.split} split, from {self.path}."

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        name = self.ids[index]
        channels = np.asarray(self._file.group(f"{self.split}_addresses")[name])
        times = np.asarray(self._file.group(f"{self.split}_timestamps")[name], np.float64)
        return checked_arrays(f"{self.path}: {name}", times, channels, self.n_channels)


class _HeidelbergSet(AudioSet):
    """Recordings in the layout of SHD and SSC."""

    n_channels = 700

    def __init__(
        self,
        root: str | os.PathLike[str],
        names: tuple[str, ...],
        split: str,
        transform: Callable[[Any], Any] | None,
        target_transform: Callable[[int], Any] | None,
    ) -> None:
        super().__init__(transform, target_transform)
        self.split = split
        self.path = found_file(root, names, "Get it from zenkelab.org/datasets and unpack it.")
        self._file = _Handle(self.path)
        self.labels = np.asarray(self._file.group("labels"), np.int64)
        keys = [NTIDIGITS._text(k) for k in np.asarray(self._file.group("extra/keys")).tolist()]
        self.classes = tuple(keys)
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(keys)))
        if len(wrong):
            raise SpikingError(
                f"{self.path}: labels: got {self.labels[wrong[0]]} at {wrong[0]}; expected 0 to {len(keys) - 1}."
            )
        lengths = {part: len(self._file.group(f"spikes/{part}")) for part in ("times", "units")}
        if set(lengths.values()) != {len(self.labels)}:
            raise SpikingError(
                f"{self.path}: got {lengths} recordings for {len(self.labels)} labels; expected as many."
            )
        has_speakers = "extra/speaker" in self._file()
        speakers = np.asarray(self._file.group("extra/speaker")).astype(str) if has_speakers else np.array([])
        self.speakers = speakers if len(speakers) == len(self.labels) else np.full(len(self.labels), "")

    def describe(self) -> str:
        return f"{len(self):,} {type(self).__name__} recordings, {self.split} split, from {self.path}."

    def arrays(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        # Stored as float16, which would overflow in microseconds.
        times = np.asarray(self._file.group("spikes/times")[index], np.float64)
        units = np.asarray(self._file.group("spikes/units")[index])
        return checked_arrays(f"{self.path}: recording {index}", times, units, self.n_channels)


class SHD(_HeidelbergSet):
    """Spiking Heidelberg Digits: 700 channels, 20 classes (zero to nine in English and German). Times are good to about 0.5 ms.

    root: shd_train.h5 or shd_test.h5, or a folder that holds them. Nothing is downloaded.
    Errors: SpikingError naming file and group or recording.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        *,
        target_transform: Callable[[int], Any] | None = None,
    ) -> None:
        split = "train" if train else "test"
        super().__init__(root, (f"shd_{split}.h5",), split, transform, target_transform)


class SSC(_HeidelbergSet):
    """Spiking Speech Commands: 700 channels, 35 classes; split train, valid or test. Otherwise as `SHD`."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        transform: Callable[[Any], Any] | None = None,
        *,
        target_transform: Callable[[int], Any] | None = None,
    ) -> None:
        if split not in ("train", "valid", "test"):
            raise SpikingError(f"SSC.split: got {split!r}; expected train, valid or test.")
        super().__init__(root, (f"ssc_{split}.h5",), split, transform, target_transform)


def checked_arrays(where: str, times: np.ndarray, channels: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Times in order and channels as int16. Errors: SpikingError saying what is wrong with them."""
    if times.ndim != 1 or times.shape != channels.shape:
        raise SpikingError(
            f"{where}: got {list(times.shape)} times and {list(channels.shape)} addresses; expected as many of each."
        )
    if len(times) and (not np.isfinite(times).all() or times.min() < 0):
        raise SpikingError(f"{where}: got times that are negative or not finite; expected seconds.")
    if len(channels) and (channels.min() < 0 or channels.max() >= n):
        raise SpikingError(f"{where}: got addresses {channels.min()} to {channels.max()}; expected 0 to {n - 1}.")
    if (np.diff(times) < 0).any():
        order = np.argsort(times, kind="stable")
        times, channels = times[order], channels[order]
    return times, channels.astype(np.int16)
