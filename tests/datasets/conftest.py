"""Recordings for the tests: random ones made here, real ones from the shared folder, each on both back-ends."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from spiking.datasets import Events, _kernels
from spiking.datasets.events import encode_bin


@pytest.fixture(params=["compiled", "plain"])
def backend(request, monkeypatch):
    """Runs the test on the compiled functions and on plain numpy, which stands in where no compiler was found."""
    if request.param == "plain":
        monkeypatch.setattr(_kernels, "_compiled", None)
    elif _kernels._compiled is None:
        pytest.skip("the package was built without a compiler")
    return request.param


def random_events(seed: int, n: int = 500, width: int = 34, height: int = 34, last: int = 300_000) -> Events:
    rng = np.random.default_rng(seed)
    return Events(
        np.sort(rng.integers(0, last, n)), rng.integers(0, width, n), rng.integers(0, height, n), rng.integers(0, 2, n),
        (width, height),
    )  # fmt: skip


@pytest.fixture
def make_events():
    return random_events


@pytest.fixture
def recordings():
    """Five recordings of different lengths in N-MNIST's bytes."""
    return [encode_bin(random_events(seed, 50 * seed + 1)) for seed in range(5)]


@pytest.fixture(scope="session")
def subset(shared) -> dict[str, bytes]:
    """Every real N-MNIST recording at hand, by its name in the archive."""
    with zipfile.ZipFile(shared / "data" / "nmnist" / "nmnist-subset.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.endswith(".bin")}


@pytest.fixture(scope="session")
def facts(golden):
    """Golden figures of area "data" by file name."""
    return lambda name: json.loads((golden / "data" / name).read_text())


def sha256(array: np.ndarray, dtype: str = "<i8") -> str:
    return hashlib.sha256(np.ascontiguousarray(array, dtype)).hexdigest()


@pytest.fixture(scope="session")
def digest():
    return sha256


@pytest.fixture
def tree(tmp_path) -> Path:
    """A folder in N-MNIST's layout: three train and two test recordings."""
    for number, name in enumerate(("Train/3/00002", "Train/1/00001", "Train/3/00010", "Test/0/00001", "Test/9/00002")):
        path = tmp_path / "tree" / f"{name}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_bin(random_events(number, 20 + number)))
    return tmp_path / "tree"
