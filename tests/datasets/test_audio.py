"""Event sound: published framing bit by bit, the cochlea and its hair cells, wav files, N-TIDIGITS, SHD, SSC, spoken digits."""

import io
import os
import pickle
import re
import wave
import zipfile
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.datasets import NTIDIGITS, SHD, SSC, Cochlea, SpokenDigits, ToFrames, read_wav
from spiking.datasets.audio import AudioSet, chunk_of
from spiking.datasets.cochlea import MODELS, hair_cells

from spiking.errors import SpikingError

RATE = 8000
PLAIN = {"mismatch": 0.0, "refractory": 0.0}


class Given(AudioSet):
    """Recordings from arrays."""

    classes, n_channels = ("a", "b"), 64

    def __init__(self, recordings):
        super().__init__(None, None)
        self.recordings = recordings
        self.labels, self.speakers = np.zeros(len(recordings), np.int64), np.full(len(recordings), "")

    def describe(self):
        return "given"

    def arrays(self, index):
        return self.recordings[index]


# Frames


def test_published_frames_bit_by_bit(golden):
    data = np.load(golden / "lsm" / "ntidigits_frames.npz")
    cases = [key[: -len("_frames")] for key in data.files if key.endswith("_frames")]
    assert len(cases) == 6
    for case in cases:
        times, channels, steps = data[f"{case}_t_s"], data[f"{case}_addr"], int(data[f"{case}_ts"])
        expected = np.unpackbits(data[f"{case}_frames"])[: 64 * steps].reshape(64, steps)
        order = np.argsort(times, kind="stable")
        found = Given([(times[order], channels[order].astype(np.int16))]).frames(steps)
        assert np.array_equal(found[:, 0].T, expected)
        frame, width = chunk_of(times, steps)
        assert width == int(data[f"{case}_bin_ms"])
        assert frame.max() < int(data[f"{case}_frames_used"])


@given(last=st.floats(0, 5), steps=st.integers(1, 200))
@settings(deadline=None, max_examples=100)
def test_chunks_always_fit(last, steps):
    frame, width = chunk_of(np.array([0.0, last / 2, last]), steps)
    assert 0 <= frame.min() <= frame.max() < steps
    assert width >= 1


def test_fixed_frames_keep_the_tempo_and_counts():
    times, channels = np.array([0.0, 0.0019, 0.002, 0.0021, 0.5]), np.array([3, 3, 3, 3, 5], np.int16)
    data = Given([(times, channels)])
    found = data.frames(10, mode="fixed", bin_ms=2.0, binary=False)
    assert found[0, 0, 3] == 2
    assert found[1, 0, 3] == 2
    assert found.sum() == 4
    assert data.frames(10, mode="fixed", bin_ms=2.0).sum() == 2


def test_the_real_recording_frames(shared):
    raw = np.frombuffer((shared / "data/events/ntidigits_1.bs1").read_bytes(), np.uint8).reshape(-1, 5).astype(np.int64)
    times = (((raw[:, 2] & 127) << 16) | (raw[:, 3] << 8) | raw[:, 4]) / 1e6
    channels = (raw[:, 0] << 8 | raw[:, 1]).astype(np.int16)
    assert len(times) == 898
    data = Given([(times, channels)])
    events, _ = data[0]
    assert int(ToFrames(time_bins=20)(events).sum()) == 898
    assert data.frames(129, binary=False).sum() == 898
    assert data.frames(129, indices=[0, 0]).shape == (129, 2, 64)


def test_bad_frames_are_named():
    data = Given([(np.array([0.1]), np.array([1], np.int16))])
    with pytest.raises(SpikingError, match=r"frames\.mode: got 'sliding'; expected chunk or fixed"):
        data.frames(mode="sliding")
    with pytest.raises(SpikingError, match="frames: got steps=0"):
        data.frames(0)


# Cochlea


def tone(hertz, rate=RATE, seconds=0.3):
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def test_hair_cells_equal_the_published_ones(golden, backend):
    data = np.load(golden / "lsm" / "hair_cell.npz")
    found = hair_cells(data["bm"], float(data["fs"]))
    assert np.abs(found - data["out"]).max() <= 1e-9 * np.abs(data["out"]).max()
    both = hair_cells(np.stack([data["bm"], 0 * data["bm"]], 1), float(data["fs"]))
    assert np.array_equal(both[:, 0], found)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_tone_excites_the_channel_nearest_to_it_most(model, rate):
    cochlea = Cochlea(model=model, **PLAIN)
    centres = cochlea.centres(rate)
    assert (np.diff(centres) < 0).all()
    assert 99 <= centres[-1] <= 103
    for hertz in (300.0, 1000.0, 2000.0):
        _, channels = cochlea.events(tone(hertz, rate), rate)
        loudest = np.bincount(channels, minlength=64).argmax()
        # Hair cells saturate, so that neighbours come close.
        assert abs(int(loudest) - int(np.abs(centres - hertz).argmin())) <= (4 if model == "hair-cell" else 1)


@pytest.mark.parametrize("model", MODELS)
def test_plain_and_compiled_hear_the_same(model, monkeypatch):
    from spiking.datasets import _kernels

    if _kernels._compiled is None:
        pytest.skip("the package was built without a compiler")
    cochlea, sound = Cochlea(model=model, n_channels=12), np.random.default_rng(0).standard_normal(600)
    times, channels = cochlea.events(sound, RATE)
    monkeypatch.setattr(_kernels, "_compiled", None)
    plain_times, plain_channels = cochlea.events(sound, RATE)
    assert np.array_equal(channels, plain_channels)
    assert len(times) > 50
    assert np.abs(times - plain_times).max() < 1e-9


def test_filters_equal_their_definition():
    from scipy.signal import lfilter, sosfilt

    sound = np.random.default_rng(1).standard_normal(500)
    cochlea = Cochlea(n_channels=8)
    k = np.tan(np.pi * np.geomspace(3600, 100, 9) / RATE)
    out, bands = sound, []
    for stage in k:
        n = 1 + stage / 0.95 + stage**2
        section = [
            stage**2 / n,
            2 * stage**2 / n,
            stage**2 / n,
            1,
            2 * (stage**2 - 1) / n,
            (1 - stage / 0.95 + stage**2) / n,
        ]
        after = sosfilt([section], out)
        bands.append(out - after)
        out = after
    found = cochlea.bands(sound, RATE)
    for j, band in enumerate(bands[1:]):
        assert np.abs(found[:, j] / found[:, j].std() - band / band.std()).max() < 1e-9
    pole = np.exp(2 * np.pi * (-1.019 * 24.7 * (4.37 * 0.1 + 1) + 100j) / RATE)
    lowest = sound.astype(complex)
    for _ in range(4):
        lowest = lfilter([1], [1, -pole], lowest)
    found = Cochlea(model="gammatone", n_channels=8).bands(sound, RATE)[:, -1]
    assert np.abs(found / found.std() - lowest.real / lowest.real.std()).max() < 1e-9


def test_events_follow_the_integral():
    """Without refractory period a channel's k-th event is where its integral reaches k thresholds."""
    cochlea = Cochlea(n_channels=4, rate_hz=3000.0, **PLAIN)
    sound = tone(440.0)
    times, channels = cochlea.events(sound, RATE)
    from spiking.datasets.cochlea import LOUDNESS, _calibrated

    audio = sound - sound.mean()
    response = np.maximum(cochlea.bands(audio * LOUDNESS / np.sqrt((audio**2).mean()), RATE), 0)
    gain, threshold = _calibrated(cochlea, RATE)
    for k in range(4):
        integral = np.concatenate([[0], np.cumsum(gain[k] * response[:, k]) / RATE])
        mine = times[channels == k]
        assert len(mine) == int(integral[-1] / threshold[k] + 1e-9)
        at = np.interp(mine, np.arange(len(sound) + 1) / RATE, integral)
        assert np.abs(at - np.arange(1, len(mine) + 1)).max(initial=0) < 1e-6


def test_louder_driving_gives_more_events_and_the_refractory_period_is_kept():
    sound = np.random.default_rng(0).standard_normal(RATE)
    counts = [len(Cochlea(rate_hz=hz).events(sound, RATE)[0]) for hz in (50.0, 100.0, 200.0)]
    assert counts[0] < counts[1] < counts[2]
    times, channels = Cochlea(rate_hz=500.0, refractory=0.002).events(sound, RATE)
    assert min(np.diff(times[channels == k]).min() for k in range(64)) >= 0.002 - 1e-12
    assert len(Cochlea().events(100 * sound, RATE)[0]) == len(
        Cochlea().events(sound, RATE)[0]
    )  # loudness is evened out


def test_silence_is_silent():
    for sound in (np.zeros(RATE), np.full(RATE, 0.5)):
        assert len(Cochlea().events(sound, RATE)[0]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ear"}, r"Cochlea\.model: got 'ear'"),
        ({"n_channels": 1}, r"Cochlea\.n_channels: got 1"),
        ({"f_low": 0.0}, r"Cochlea\.f_low: got 0\.0 Hz"),
        ({"refractory": -1.0}, r"Cochlea\.refractory: got -1\.0"),
    ],
)
def test_bad_cochleas_are_named(options, message):
    with pytest.raises(SpikingError, match=message):
        Cochlea(**options)


def test_bad_sound_is_named():
    for sound in (np.zeros((3, 2)), np.zeros(0), np.array([np.nan])):
        with pytest.raises(SpikingError, match="Cochlea: got sound of shape"):
            Cochlea().events(sound, RATE)
    with pytest.raises(SpikingError, match="Cochlea: got 100 samples a second; expected more than 222"):
        Cochlea().events(np.ones(5) * [1, 2, 1, 2, 1], 100)


# Wav files


def wav(samples, rate=RATE, channels=1, width=2):
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples)
    return out.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_reads_the_same(width):
    values = np.array([0, 64, -128, 127], np.int64) << 8 * (width - 1)
    raw = (
        (values + 128).astype(np.uint8).tobytes()
        if width == 1
        else b"".join(int(v).to_bytes(width, "little", signed=True) for v in values)
    )
    sound = read_wav(wav(raw, width=width))
    assert sound.samples.tolist() == [0.0, 0.5, -1.0, 127 / 128]


def test_channels_are_mixed():
    sound = read_wav(wav(np.array([[100, 300], [0, -100]], "<i2").tobytes(), channels=2))
    assert (sound.samples * 32768).tolist() == [200, -50]
    assert sound.channels == 2


def test_bad_wavs_are_named(tmp_path):
    fine = wav(np.zeros(100, "<i2").tobytes())
    for raw, message in (
        (b"", "one.wav: not a readable wav file"),
        (b"RIFF....nothing", "one.wav: not a readable wav file"),
        (fine[:100], "one.wav: got 56 of 200 bytes of sound; the file is cut"),
        (wav(b""), "one.wav: got no samples"),
    ):
        with pytest.raises(SpikingError, match=message):
            read_wav(raw, "one.wav")
    with pytest.raises(SpikingError, match=r"nowhere\.wav: no such file"):
        read_wav(tmp_path / "nowhere.wav")


# Spoken digits


def voice(digit, speaker, take, seconds=0.1, rate=RATE, gain=0.3):
    rng = np.random.default_rng([digit, take, sum(speaker.encode())])
    sound = gain * tone(300 + 250 * digit, rate, seconds) + 0.01 * rng.standard_normal(int(seconds * rate))
    return wav((sound.clip(-1, 1) * 32767).astype("<i2").tobytes(), rate)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "recordings"
    root.mkdir()
    for digit in range(10):
        for speaker in ("ann", "yweweler"):
            for take in (0, 7):
                (root / f"{digit}_{speaker}_{take}.wav").write_bytes(voice(digit, speaker, take))
    return root


def test_spoken_digits_split_by_speaker_or_take(folder, tmp_path):
    cache = tmp_path / "cache"
    found = SpokenDigits(folder, cache_dir=cache)
    assert found.counts == [2] * 10
    assert set(found.speakers) == {"ann"}
    assert sorted(set(found.takes.tolist())) == [0, 7]
    assert set(SpokenDigits(folder, train=False, cache_dir=cache).speakers) == {"yweweler"}
    official = SpokenDigits(folder, train=False, split="official", cache_dir=cache)
    assert set(official.takes.tolist()) == {0}
    events, label = found[3]
    assert label == 1
    assert len(events) > 20
    assert events.sensor_size == (64, 1, 1)
    assert "SIMULATED cochlea" in found.describe()
    again = SpokenDigits(folder, cache_dir=cache)
    assert np.array_equal(again.frames(50), found.frames(50))
    assert not np.array_equal(
        SpokenDigits(folder, cochlea=Cochlea(seed=3), cache_dir=cache).frames(50), found.frames(50)
    )


def test_a_zip_file_holds_the_same(folder, tmp_path):
    archive = tmp_path / "digits.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.iterdir():
            file.write(path, f"recordings/{path.name}")
    one, other = (SpokenDigits(p, cache_dir=tmp_path / "cache") for p in (archive, folder))
    assert np.array_equal(one.frames(60), other.frames(60))
    alone = tmp_path / "alone"
    alone.mkdir()
    archive.rename(alone / "digits.zip")
    assert len(SpokenDigits(alone, cache_dir=tmp_path / "cache")) == 20


def test_other_rates_several_channels_and_clipping_are_told(folder, tmp_path):
    (folder / "0_ann_0.wav").write_bytes(voice(0, "ann", 0, rate=16000))
    sound = (0.3 * tone(500.0) * 32767).astype("<i2")
    (folder / "1_ann_0.wav").write_bytes(wav(np.stack([sound, sound], 1).tobytes(), channels=2))
    (folder / "2_ann_0.wav").write_bytes(voice(2, "ann", 0, gain=3.0))
    with pytest.warns(UserWarning, match="20 recordings") as said:
        SpokenDigits(folder, cache_dir=tmp_path / "cache")
    texts = [str(w.message) for w in said]
    for what in (
        "1 of 20 recordings were resampled",
        "1 of 20 recordings had several channels",
        "1 of 20 recordings are clipped",
    ):
        assert any(what in text for text in texts), texts


def test_bad_folders_are_named(folder, tmp_path):
    with pytest.raises(SpikingError, match="nowhere: no such file or folder"):
        SpokenDigits(tmp_path / "nowhere")
    other = tmp_path / "other"
    other.mkdir()
    (other / "hello.txt").write_text("x")
    with pytest.raises(SpikingError, match=r"got 0 files, none named <digit>_<speaker>_<take>\.wav"):
        SpokenDigits(other)
    with pytest.raises(SpikingError, match=r"hello\.txt: not a readable zip file"):
        SpokenDigits(other / "hello.txt")
    with pytest.raises(SpikingError, match=r"SpokenDigits\.split: got 'random'"):
        SpokenDigits(folder, split="random")
    for path in folder.glob("[37]_ann_*.wav"):
        path.unlink()
    with pytest.raises(SpikingError, match="got no training recording of 3, 7; expected some of each digit"):
        SpokenDigits(folder)
    (folder / "3_ann_0.wav").write_bytes(b"")
    (folder / "7_ann_0.wav").write_bytes(voice(7, "ann", 0))
    with pytest.raises(SpikingError, match=r"3_ann_0\.wav: not a readable wav file"):
        SpokenDigits(folder, cache_dir=tmp_path / "cache")


def test_the_real_recordings_become_events(shared, tmp_path):
    """Two of each digit out of the real set: the number of events is that of speech, and digits differ."""
    folder = tmp_path / "real"
    folder.mkdir()
    with zipfile.ZipFile(shared / "data/fsdd/fsdd.zip") as archive:
        for name in archive.namelist():
            if re.search(r"_(george|yweweler)_[01]\.wav$", name):
                (folder / os.path.basename(name)).write_bytes(archive.read(name))
    data = SpokenDigits(folder, cache_dir=tmp_path / "cache")
    assert data.counts == [2] * 10
    lengths = [data.arrays(i) for i in range(20)]
    rate = sum(len(t) for t, _ in lengths) / sum(t[-1] for t, _ in lengths)
    assert 5_000 < rate < 20_000


# HDF5


TEXTS = {"train": ["ann-a-z", "bob-a-o", "ann-a-38o"], "test": ["eve-a-1", "eve-b-9", "eve-a-zz"]}


@pytest.fixture
def ntidigits(tmp_path):
    path, rng = tmp_path / "n-tidigits.hdf5", np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for split, ids in TEXTS.items():
            file[f"{split}_labels"] = np.array([i.encode() for i in ids])
            for i in ids:
                n = int(rng.integers(5, 50))
                file[f"{split}_addresses/{i}"] = rng.integers(0, 64, n)
                file[f"{split}_timestamps/{i}"] = np.sort(rng.uniform(0, 1, n))
    return path


def test_ntidigits_as_its_authors_laid_it_out(ntidigits):
    data = NTIDIGITS(ntidigits.parent)
    assert data.ids == ["ann-a-z", "bob-a-o"]
    assert data.labels.tolist() == [0, 10]
    assert NTIDIGITS(ntidigits, label_map="tonic").labels.tolist() == [10, 0]
    assert data.speakers.tolist() == ["ann", "bob"]
    everything = NTIDIGITS(ntidigits, single_digits=False)
    assert everything.texts == ["z", "o", "38o"]
    assert everything.labels.tolist() == [0, 10, 3]
    assert NTIDIGITS(ntidigits, train=False).labels.tolist() == [1, 9]
    with h5py.File(ntidigits) as file:
        times, channels = data.arrays(0)
        assert np.array_equal(times, file["train_timestamps/ann-a-z"][:])
        assert np.array_equal(channels, file["train_addresses/ann-a-z"][:])
    events, label = data[0]
    assert label == 0
    assert np.array_equal(events.t, np.floor(times * 1e6))
    assert data.frames().shape == (129, 2, 64)
    assert np.array_equal(pickle.loads(pickle.dumps(data)).frames(), data.frames())
    assert data.counts == [1, *[0] * 9, 1]


def test_recordings_that_run_backwards_are_put_in_order(ntidigits):
    with h5py.File(ntidigits, "a") as file:
        del file["train_timestamps/ann-a-z"], file["train_addresses/ann-a-z"]
        file["train_timestamps/ann-a-z"], file["train_addresses/ann-a-z"] = [0.3, 0.1], [5, 7]
    times, channels = NTIDIGITS(ntidigits).arrays(0)
    assert times.tolist() == [0.1, 0.3]
    assert channels.tolist() == [7, 5]


def test_bad_ntidigits_are_named(ntidigits, tmp_path):
    def broken(name, value=None):
        with h5py.File(ntidigits, "a") as file:
            if name in file:
                del file[name]
            if value is not None:
                file[name] = value

    broken("train_timestamps/ann-a-z", [0.1])
    with pytest.raises(SpikingError, match=r"ann-a-z: got \[1\] times and \[\d+\] addresses"):
        NTIDIGITS(ntidigits)[0]
    broken("train_addresses/ann-a-z", [64])
    with pytest.raises(SpikingError, match="ann-a-z: got addresses 64 to 64; expected 0 to 63"):
        NTIDIGITS(ntidigits)[0]
    broken("train_timestamps/ann-a-z", [np.nan])
    with pytest.raises(SpikingError, match="ann-a-z: got times that are negative or not finite"):
        NTIDIGITS(ntidigits)[0]
    broken("train_timestamps/ann-a-z")
    with pytest.raises(SpikingError, match="train_timestamps: got no 'ann-a-z'"):
        NTIDIGITS(ntidigits)
    broken("train_labels", np.array([b"ann-a-x"]))
    broken("train_addresses/ann-a-x", [1])
    broken("train_timestamps/ann-a-x", [0.1])
    with pytest.raises(SpikingError, match="train_labels: got 'ann-a-x'; expected digits 1 to 9, z and o"):
        NTIDIGITS(ntidigits)
    broken("train_labels")
    with pytest.raises(SpikingError, match=r"got test_addresses, .*; expected train_labels too"):
        NTIDIGITS(ntidigits)
    with pytest.raises(SpikingError, match=r"NTIDIGITS\.label_map: got 'mine'"):
        NTIDIGITS(ntidigits, label_map="mine")
    with pytest.raises(SpikingError, match=r"expected n-tidigits\.hdf5"):
        NTIDIGITS(tmp_path / "nowhere")
    text = tmp_path / "a.hdf5"
    text.write_text("no such thing")
    with pytest.raises(SpikingError, match=r"a\.hdf5: not a readable HDF5 file"):
        NTIDIGITS(text)


def heidelberg(path, labels=(1, 0), speakers=True):
    ragged, units = h5py.vlen_dtype(np.float16), h5py.vlen_dtype(np.uint16)
    with h5py.File(path, "w") as file:
        file["labels"] = np.array(labels)
        file["extra/keys"] = np.array([b"zero", b"eins"])
        if speakers:
            file["extra/speaker"] = np.array([4, 7])
        times = file.create_dataset("spikes/times", (2,), ragged)
        channels = file.create_dataset("spikes/units", (2,), units)
        times[0], channels[0] = np.array([0.1, 0.9], np.float16), np.array([3, 699], np.uint16)
        times[1], channels[1] = np.array([1.2], np.float16), np.array([0], np.uint16)


def test_heidelberg_sets(tmp_path):
    heidelberg(tmp_path / "shd_train.h5")
    data = SHD(tmp_path)
    assert data.classes == ("zero", "eins")
    assert data.labels.tolist() == [1, 0]
    assert data.speakers.tolist() == ["4", "7"]
    events, label = data[1]
    assert label == 0
    assert events.t.tolist() == [int(float(np.float16(1.2)) * 1e6)]  # would be infinite in float16
    assert data.frames(10).shape == (10, 2, 700)
    heidelberg(tmp_path / "ssc_valid.h5", speakers=False)
    assert SSC(tmp_path, "valid").speakers.tolist() == ["", ""]
    heidelberg(tmp_path / "shd_test.h5", labels=(1, 2))
    with pytest.raises(SpikingError, match=r"shd_test\.h5: labels: got 2 at 1; expected 0 to 1"):
        SHD(tmp_path, train=False)
    heidelberg(tmp_path / "shd_test.h5", labels=(1, 0, 1))
    with pytest.raises(SpikingError, match="recordings for 3 labels"):
        SHD(tmp_path, train=False)
    with pytest.raises(SpikingError, match=r"SSC\.split: got 'dev'"):
        SSC(tmp_path, "dev")
    with pytest.raises(SpikingError, match=r"expected ssc_train\.h5"):
        SSC(tmp_path)


def test_settings_of_a_cochlea_are_values():
    assert replace(Cochlea(), q=1.0) != Cochlea()
    assert hash(Cochlea()) == hash(Cochlea())
