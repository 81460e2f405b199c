"""Simulated spoken digits, and opening whatever sound there is."""

import h5py
import numpy as np
import pytest
from spiking.datasets import NTIDIGITS, SHD, Cochlea, SimulatedDigits, open_sound, voices

from spiking.errors import SpikingError


@pytest.fixture(autouse=True)
def few(monkeypatch, tmp_path):
    monkeypatch.setattr(voices, "SPEAKERS", {"train": 2, "test": 1})
    monkeypatch.setattr(voices, "TAKES", {"train": 1, "test": 1})
    monkeypatch.setenv("SPIKING_CACHE", str(tmp_path))


def test_simulated_digits_say_so_and_are_the_same_every_time(tmp_path):
    data = SimulatedDigits()
    assert data.simulated
    assert "20 SIMULATED spoken digits" in data.describe()
    assert "nobody spoke" in data.describe()
    assert data.counts == [2] * 10
    again = SimulatedDigits(cache_dir=tmp_path / "other")
    assert np.array_equal(again.frames(50), data.frames(50))
    assert not np.array_equal(SimulatedDigits(seed=1).frames(50), data.frames(50))
    assert set(SimulatedDigits(train=False).speakers).isdisjoint(data.speakers)


def test_they_sound_like_speech():
    """The rate of events is that of speech; six hisses at its ends, where high channels fire, and two does not."""
    data = SimulatedDigits(cochlea=Cochlea(model="gammatone"))
    lengths = [data.arrays(i) for i in range(20)]
    assert 4_000 < sum(len(t) for t, _ in lengths) / sum(t[-1] for t, _ in lengths) < 25_000
    high = data.frames(10, binary=False)[:, :, :12].sum(2)  # [10, N], above 2 kHz
    six, two = (high[:, data.labels == digit].mean(1) for digit in (6, 2))
    assert six[-2:].mean() > 2 * six[4:6].mean()
    assert six[-2:].mean() > 2 * two[-2:].mean()


def test_a_digit_depends_on_its_seed_and_speaker_only():
    assert np.array_equal(voices.speak(3, 1, [5]), voices.speak(3, 1, [5]))
    assert len(voices.speak(3, 1, [5])) != len(voices.speak(3, 2, [5]))
    for digit in range(10):
        assert np.isfinite(voices.speak(digit, 0, [digit])).all()


def ntidigits(path):
    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            file[f"{split}_labels"] = np.array([b"a-1"])
            file[f"{split}_addresses/a-1"], file[f"{split}_timestamps/a-1"] = np.array([3]), np.array([0.5])


def test_sound_is_opened_by_what_is_there(tmp_path):
    train, test = open_sound()
    assert (type(train), len(train), len(test)) == (SimulatedDigits, 20, 10)
    one = tmp_path / "one"
    one.mkdir()
    ntidigits(one / "n-tidigits.hdf5")
    for where in (one, one / "n-tidigits.hdf5"):
        assert type(open_sound(where)[0]) is NTIDIGITS
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(SpikingError, match=r"other: got 0 files, none named <digit>_<speaker>_<take>\.wav"):
        open_sound(other)
    for split in ("train", "test"):
        with h5py.File(other / f"shd_{split}.h5", "w") as file:
            file["labels"], file["extra/keys"] = np.array([0]), np.array([b"zero"])
            for part, kind in (("times", "f2"), ("units", "u2")):
                rows = file.create_dataset(f"spikes/{part}", (1,), h5py.vlen_dtype(np.dtype(kind)))
                rows[0] = np.array([1, 2], kind)
    assert type(open_sound(other)[1]) is SHD
    with pytest.raises(SpikingError, match=r"shd_train\.h5: got one split of SHD; expected the folder"):
        open_sound(other / "shd_train.h5")
    with pytest.raises(SpikingError, match="nowhere: no such file or folder"):
        open_sound(tmp_path / "nowhere")
