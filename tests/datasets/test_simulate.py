"""Simulated recordings: alike in every statistic that is known of real ones, the same for the same seed."""

import gzip

import numpy as np
import pytest
from spiking.datasets import NMNIST, SimulatedNMNIST
from spiking.datasets.events import decode_bin
from spiking.datasets.idx import read_idx
from spiking.datasets.simulate import Camera, simulate, sklearn_digits

from spiking.errors import SpikingError


@pytest.fixture(scope="session")
def some(tmp_path_factory):
    """The first 200 recordings of the default set."""
    return SimulatedNMNIST(limit=200, cache_dir=tmp_path_factory.mktemp("simulated"))


def blob():
    image = np.zeros((28, 28), np.uint8)
    image[8:20, 12:16] = 255
    return image


def test_counts_times_and_coordinates_are_like_real_ones(some):
    events = some.events()
    counts = np.diff(events.offsets)
    first, last = events.t[events.offsets[:-1]], events.t[events.offsets[1:] - 1]
    assert 3700 < np.median(counts) < 4600  # real: 4,143
    assert counts.min() > 1000
    assert counts.max() < 7500  # real: 1,069 to 7,152
    assert last.min() > 290_000
    assert last.max() < 340_000  # real: 296,841 to 336,040
    assert first.max() < 26_000
    assert max(events.x.max(), events.y.max()) <= 33
    assert 0.47 < events.p.mean() < 0.53
    assert (some.sensor_size, some.simulated) == ((34, 34, 2), True)


def test_three_saccades_show_in_the_rate(some):
    rate = some.events().frames(time_bins=15, t_window=(0, 315_000)).sum((0, 2, 3, 4)).reshape(3, 5)
    assert (rate[:, 1:4].min(1) > 2 * rate[:, 0]).all()
    assert (rate.max(1) < 1.5 * rate.max(1).min()).all()


def test_polarities_lie_as_in_real_recordings(some):
    """OFF leads and ON trails the motion of the digit: down right, up right, left."""
    frames = some.events().frames(time_bins=3, t_window=(0, 315_000)).sum(0)
    y, x = np.mgrid[:34, :34]
    centre = np.array([[[(f * x).sum() / f.sum(), (f * y).sum() / f.sum()] for f in pair] for pair in frames])
    lead = centre[:, 0] - centre[:, 1]
    assert (np.sign(lead[:2]) == [[1, 1], [1, -1]]).all()
    assert lead[2, 0] < 0


def test_a_recording_depends_on_the_seed_and_its_own_number_only():
    images, _, numbers = sklearn_digits(True)
    whole = simulate(images[:70], numbers[:70], seed=3)
    assert simulate(images[60:70], numbers[60:70], seed=3) == whole[60:]
    assert simulate(images[:2], numbers[:2], seed=4)[0] != whole[0]
    assert simulate(images[:1], numbers[1:2], seed=3)[0] != whole[0]


def test_the_split_is_fixed_stratified_and_disjoint(some):
    (_, train, train_numbers), (_, test, test_numbers) = sklearn_digits(True), sklearn_digits(False)
    assert sorted([*train_numbers, *test_numbers]) == list(range(1797))
    assert (np.bincount(test) == np.bincount(np.concatenate([train, test])) // 5).all()
    assert some.labels.tolist() == train[:200].tolist()
    assert some.ids.tolist() == train_numbers[:200].tolist()


def test_it_says_that_it_is_simulated(some):
    assert "200 SIMULATED recordings" in some.describe()
    for told in ("not N-MNIST itself", "train.zip and test.zip", "10.17632/468j46mzdv.1"):
        assert told in some.describe()


def test_the_embedded_default_is_the_simulated_set(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "spiking.datasets.simulate.sklearn_digits", lambda train: tuple(a[:6] for a in sklearn_digits(train))
    )
    default, simulated = NMNIST(cache_dir=tmp_path), SimulatedNMNIST(cache_dir=tmp_path)
    assert default.simulated
    assert default.describe() == simulated.describe()
    assert default[3][0] == simulated[3][0]
    assert len(list(tmp_path.iterdir())) == 1


def test_images_may_be_arrays_of_any_size(tmp_path):
    for image in (blob(), blob()[4:24, 4:24], blob() / 255.0):
        data = SimulatedNMNIST(image[None], [4], cache_dir=tmp_path)
        events, label = data[0]
        assert label == 4
        assert len(events) > 500


def test_more_noise_less_contrast_and_longer_silence_do_what_they_say():
    def events(**camera):
        return decode_bin(simulate(blob()[None], np.array([0]), camera=Camera(**camera))[0])

    base = events()
    assert len(events(threshold=1.0)) < len(base)
    assert len(events(noise_hz=5.0)) > len(base) + 1000
    quiet = events(refractory=20_000)
    pixel = quiet.y.astype(int) * 34 + quiet.x
    order = np.lexsort((quiet.t, pixel))
    gaps = np.diff(quiet.t[order])[np.diff(pixel[order]) == 0]
    assert gaps.min() >= 20_000


def test_idx_files_and_folders(tmp_path):
    images, labels = np.stack([blob(), blob().T]), np.array([1, 7], np.uint8)
    head = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in images.shape)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(head + images.tobytes())
    packed = gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2]) + labels.tobytes())
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(packed)
    assert np.array_equal(read_idx(tmp_path / "t10k-images-idx3-ubyte"), images)
    folder = SimulatedNMNIST(tmp_path, train=False, cache_dir=tmp_path / "cache")
    files = SimulatedNMNIST(
        tmp_path / "t10k-images-idx3-ubyte", tmp_path / "t10k-labels-idx1-ubyte.gz", cache_dir=tmp_path / "cache"
    )
    assert folder.labels.tolist() == [1, 7]
    assert folder[1][0] == files[1][0]
    with pytest.raises(SpikingError, match="no train-images-idx3-ubyte, with or without"):
        SimulatedNMNIST(tmp_path, cache_dir=tmp_path / "cache")
    with pytest.raises(SpikingError, match="labels: got None with"):
        SimulatedNMNIST(tmp_path / "t10k-images-idx3-ubyte", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "byte 0: got nothing; expected 000008"),
        (b"\0\0\x0d\1\0\0\0\0", "byte 0: got 00000d01"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 9, 1, 2]), "byte 8: got 2 bytes; expected 9 for shape"),
        (bytes([0, 0, 8, 3, 255]), "byte 16: got 0 bytes; expected"),
        (gzip.compress(b"x" * 100, mtime=0)[:20], "cannot be unpacked"),
    ],
    ids=["empty", "wrong type", "too short", "no shape", "cut gzip"],
)
def test_bad_idx_files_are_named(tmp_path, data, told):
    path = tmp_path / "bad-idx"
    path.write_bytes(data)
    with pytest.raises(SpikingError, match=rf"bad-idx: {told}"):
        read_idx(path)


def test_bad_images_and_labels_are_refused(tmp_path):
    one = np.zeros((1, 28, 28))
    for images, labels, told in [
        (np.zeros((28, 28)), [1], r"images: got float64 of shape \[28, 28\]; expected \[N, height, width\]"),
        (one + 2, [1], "images: got values from 2.0 to 2.0; expected bytes, or numbers from 0 to 1"),
        (one + np.nan, [1], "images: got values from nan"),
        (one, [1, 2], r"labels: got int64 of shape \[2\] for 1 images"),
        (one, [10], "labels: got .*expected one of 0 to 9"),
        (one, None, "labels: got float64 of shape"),
    ]:
        with pytest.raises(SpikingError, match=told):
            SimulatedNMNIST(images, labels, cache_dir=tmp_path)


def test_real_mnist_files_are_read(shared, tmp_path):
    data = SimulatedNMNIST(shared / "data" / "mnist", train=False, limit=3, cache_dir=tmp_path)
    assert data.labels.tolist() == [7, 2, 1]
    assert "test split" in data.describe()
    assert min(len(events) for events, _ in data) > 500
