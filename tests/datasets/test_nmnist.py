"""N-MNIST as folders and archives: what is found, what is refused, and what the items are."""

import hashlib
import pickle
import shutil
import warnings
import zipfile

import numpy as np
import pytest
from spiking.datasets import NMNIST, Events, ToFrames, nmnist
from spiking.datasets.events import encode_bin

from spiking.errors import SpikingError

TRAIN = [77, 96, 79, 73, 85, 72, 74, 97, 67, 80]
TEST = [8, 14, 8, 11, 14, 7, 10, 15, 2, 11]


@pytest.fixture
def cached(tmp_path):
    return {"cache_dir": tmp_path / "cache"}


def zip_tree(tree, path, names=("Train", "Test"), strip=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for file in sorted(tree.rglob("*.bin")):
            name = file.relative_to(tree).as_posix()
            if name.startswith(names):
                archive.write(file, name.removeprefix(strip))
    return path


def test_a_tree_is_read_in_the_order_of_its_numbers(backend, tree, cached):
    train, test = NMNIST(tree, **cached), NMNIST(tree, train=False, **cached)
    assert (train.labels.tolist(), train.ids.tolist()) == ([1, 3, 3], [1, 2, 10])
    assert (test.labels.tolist(), test.ids.tolist()) == ([0, 9], [1, 2])
    events, label = train[1]
    assert label == 3
    assert events.sensor_size == (34, 34, 2)
    assert encode_bin(events) == (tree / "Train/3/00002.bin").read_bytes()
    assert [label for _, label in train] == [1, 3, 3]
    assert train[-1][0] == train[2][0]
    with pytest.raises(IndexError):
        train[3]
    assert train.counts == [0, 1, 0, 2, 0, 0, 0, 0, 0, 0]
    assert not train.simulated
    assert "3 real N-MNIST recordings, train split (a part of the 60,000), from" in train.describe()


def test_every_way_to_give_the_same_recordings(tree, tmp_path, cached):
    both = tmp_path / "both"
    pair = tmp_path / "pair" / "NMNIST"
    for folder in (both, pair):
        folder.mkdir(parents=True)
    zip_tree(tree, both / "subset.zip")
    zip_tree(tree, pair / "train.zip", ("Train",))
    zip_tree(tree, pair / "test.zip", ("Test",), strip="Test/")
    lower = tmp_path / "lower"
    shutil.copytree(tree / "Train", lower / "train")
    shutil.copytree(tree / "Test", lower / "test")
    expected = [NMNIST(tree, train=train, **cached).events() for train in (True, False)]
    for root in (both, both / "subset.zip", pair, pair.parent, lower):
        for train, want in zip((True, False), expected, strict=True):
            got = NMNIST(root, train=train, **cached).events()
            assert np.array_equal(got.t, want.t)
            assert np.array_equal(got.labels, want.labels)


def test_the_cache_is_used_and_follows_the_files(tree, cached, monkeypatch):
    first = NMNIST(tree, **cached)
    with monkeypatch.context() as patch:
        patch.setattr(nmnist, "load", lambda *_: pytest.fail("read again"))
        assert NMNIST(tree, **cached).events().t.tolist() == first.events().t.tolist()
    (tree / "Train/3/00002.bin").write_bytes(encode_bin(Events([1], [1], [1], [1])))
    assert len(NMNIST(tree, **cached)[1][0]) == 1


def test_a_damaged_cache_file_is_built_again_with_a_warning(tree, cached):
    NMNIST(tree, **cached)
    (file,) = cached["cache_dir"].iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=f"{file.name}: the cache file is damaged"):
        assert len(NMNIST(tree, **cached)) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NMNIST(tree, **cached)


def test_transforms_and_tonics_arrays(tree, cached):
    frames, label = NMNIST(tree, transform=ToFrames(time_bins=4), target_transform=str, **cached)[0]
    assert frames.shape == (4, 2, 34, 34)
    assert label == "1"
    array, _ = NMNIST(tree, structured=True, **cached)[0]
    assert array.dtype.names == ("x", "y", "t", "p")
    again = pickle.loads(pickle.dumps(NMNIST(tree, transform=ToFrames(time_bins=4), **cached)))
    assert np.array_equal(again[0][0], frames)


def test_tonics_transforms_work_on_our_recordings(tree, cached):
    transforms = pytest.importorskip("tonic.transforms", reason="tonic is not installed")
    theirs = NMNIST(tree, structured=True, transform=transforms.ToFrame((34, 34, 2), n_time_bins=4), **cached)
    ours = NMNIST(tree, transform=ToFrames(time_bins=4, compat="tonic"), **cached)
    assert np.array_equal(theirs[2][0], ours[2][0])


def test_a_wrong_place_says_what_was_looked_for(tree, tmp_path, cached):
    with pytest.raises(
        SpikingError, match=r"gone: no such file or folder.*train\.zip and test\.zip.*10\.17632/468j46mzdv\.1"
    ):
        NMNIST(tmp_path / "gone", **cached)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        SpikingError, match=r"empty: got a folder with nothing in it; expected Train/<digit>/\*\.bin, train\.zip"
    ):
        NMNIST(empty, **cached)
    shutil.rmtree(tree / "Test")
    with pytest.raises(SpikingError, match=r"tree: got a folder with Train/; expected Test/<digit>/\*\.bin, test\.zip"):
        NMNIST(tree, train=False, **cached)
    only = zip_tree(tree, tmp_path / "only.zip")
    with pytest.raises(SpikingError, match=r"only\.zip: got an archive without Test/"):
        NMNIST(only, train=False, **cached)
    (tmp_path / "no.zip").write_bytes(b"PK\3\4 not really")
    with pytest.raises(SpikingError, match=r"no\.zip: not a readable zip file"):
        NMNIST(tmp_path / "no.zip", **cached)


def test_a_damaged_recording_is_named_and_can_be_repaired(backend, tree, cached):
    path = tree / "Train/3/00002.bin"
    path.write_bytes(bytes([0, 0, 0, 0, 9, 1, 1, 0, 0, 5, 7]))
    with pytest.raises(SpikingError, match=r"Train/3/00002\.bin: byte 10: got 1 of the 5"):
        NMNIST(tree, **cached)
    with pytest.raises(SpikingError, match=r"Train/3/00002\.bin: event 1 \(byte 5\): got t=5 µs after 9"):
        NMNIST(tree, drop_tail=True, **cached)
    events, _ = NMNIST(tree, drop_tail=True, sort=True, **cached)[1]
    assert events.t.tolist() == [5, 9]


def test_a_damaged_archive_is_named(tree, tmp_path, cached):
    path = tmp_path / "cut.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.write(tree / "Train/1/00001.bin", "Train/1/00001.bin")
    data = bytearray(path.read_bytes())
    data[60] ^= 255
    path.write_bytes(data)
    with pytest.raises(SpikingError, match=r"cut\.zip: Train/1/00001\.bin: cannot be unpacked \(Bad CRC"):
        NMNIST(path, **cached)


def test_a_member_that_claims_gigabytes_is_refused(tree, tmp_path, cached, monkeypatch):
    monkeypatch.setattr(nmnist, "MOST_BYTES", 100)
    with pytest.raises(SpikingError, match=r"Train/1/00001\.bin: got 105 bytes; expected at most 100"):
        NMNIST(zip_tree(tree, tmp_path / "big.zip"), **cached)


def test_complete_archives_are_compared_with_the_originals_md5(tree, tmp_path, cached, monkeypatch):
    archive = zip_tree(tree, tmp_path / "train.zip")
    monkeypatch.setattr(nmnist, "FULL", {"train": 3, "test": 2})
    with pytest.raises(SpikingError, match=r"train\.zip: got md5 [0-9a-f]{32}; expected 20959b8e.*verify=False"):
        NMNIST(archive, **cached)
    assert len(NMNIST(archive, verify=False, cache_dir=tmp_path / "other")) == 3
    monkeypatch.setitem(nmnist.MD5, "train", hashlib.md5(archive.read_bytes()).hexdigest())
    whole = NMNIST(archive, **cached)
    assert "a part of" not in whole.describe()


# Real recordings.


@pytest.fixture(scope="session")
def real(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    return [NMNIST(shared / "data" / "nmnist", train=train, cache_dir=folder) for train in (True, False)]


def test_the_real_subset(real):
    train, test = real
    assert (train.counts, test.counts) == (TRAIN, TEST)
    assert len(train.events().t) + len(test.events().t) == 3_687_547
    assert (test.ids.min(), test.ids.max()) == (60_001, 60_100)
    assert train[0][0].sensor_size == (34, 34, 2)


def test_first_saccade_and_stabilised_recordings_are_tonics(real, facts, digest, shared, tmp_path):
    cut = {"first_saccade_only": True, "cache_dir": tmp_path}
    for train, whole in zip((True, False), real, strict=True):
        first = NMNIST(shared / "data" / "nmnist", train=train, **cut)
        still = NMNIST(shared / "data" / "nmnist", train=train, stabilize=True, cache_dir=tmp_path)
        index = {
            f"{'Train' if train else 'Test'}/{label}/{i:05d}.bin": k
            for k, (label, i) in enumerate(zip(whole.labels, whole.ids, strict=True))
        }
        for name, expected in facts("nmnist_more.json").items():
            if name not in index:
                continue
            assert len(first[index[name]][0]) == expected["first_saccade_only_n"]
            events = still[index[name]][0]
            assert len(events) == expected["stabilized"]["n"]
            assert {f: digest(events[f]) for f in "txyp"} == expected["stabilized"]["sha256_i64"]
    assert len(still.events()) == 100
