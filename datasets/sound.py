"""Whatever sound a folder or file holds, as the two splits of a set."""

from __future__ import annotations

import os
from pathlib import Path

from spiking.datasets.audio import AudioSet
from spiking.datasets.cochlea import Cochlea
from spiking.datasets.ntidigits import NTIDIGITS, SHD
from spiking.datasets.spoken import SpokenDigits
from spiking.datasets.voices import SimulatedDigits

from spiking.errors import SpikingError


def open_sound(root: str | os.PathLike[str] | None = None, cochlea: Cochlea | None = None) -> tuple[AudioSet, AudioSet]:
    """Training and test split of the sound at `root`: n-tidigits.hdf5, shd_train.h5 and shd_test.h5 in a folder, or spoken digits as wav
    files (a folder or zip file of `<digit>_<speaker>_<take>.wav`); None: SIMULATED digits.

    `cochlea` hears what is sound and not events yet.
    Errors: SpikingError saying what was found and what is missing; those of the sets.

    >>> train, test = open_sound()
    >>> train.simulated, len(train), len(test)
    (True, 640, 240)
    """
    if root is None:
        return SimulatedDigits(train=True, cochlea=cochlea), SimulatedDigits(train=False, cochlea=cochlea)
    path = Path(root)
    found: type[NTIDIGITS] | type[SHD] | None
    if path.is_dir():
        kinds: dict[str, type[NTIDIGITS] | type[SHD]] = {
            "n-tidigits.hdf5": NTIDIGITS,
            "shd_train.h5": SHD,
            "shd_test.h5": SHD,
        }
        found = next((kind for name, kind in kinds.items() if (path / name).is_file()), None)
    elif path.suffix in (".hdf5", ".h5"):
        if path.name.startswith("shd_"):
            raise SpikingError(f"{path}: got one split of SHD; expected the folder with shd_train.h5 and shd_test.h5.")
        found = NTIDIGITS
    else:
        found = None
    if found is None:
        return SpokenDigits(path, train=True, cochlea=cochlea), SpokenDigits(path, train=False, cochlea=cochlea)
    return found(path, train=True), found(path, train=False)
