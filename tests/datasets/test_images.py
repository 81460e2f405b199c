"""Labelled images from every layout that is understood, and the ways in which files are wrong."""

import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest
from spiking.datasets import read_images

from spiking import SpikingError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 3072), dtype=np.uint8)
LABELS = np.arange(20) % 10


def idx(array):
    head = (0x800 + array.ndim).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_files_plain_and_packed(tmp_path, packed):
    images, labels = RNG.integers(0, 256, (5, 4, 3)), np.arange(5)
    for split in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(array)
            name = f"{split}-{kind}-ubyte" + (".gz" if packed else "")
            (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    found = read_images(tmp_path, train=False)
    assert np.array_equal(found.images[:, 0], images)
    assert found.labels.tolist() == labels.tolist()
    assert found.kind == "mnist"
    (tmp_path / ("t10k-labels-idx1-ubyte" + (".gz" if packed else ""))).write_bytes(idx(np.arange(4)))
    with pytest.raises(SpikingError, match=r"got images \[5, 4, 3\] and labels \[4\]"):
        read_images(tmp_path, train=False)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_real_sets(shared, name):
    train, test = (read_images(shared / "data" / name, train=split) for split in (True, False))
    assert train.images.shape == (60000, 1, 28, 28)
    assert test.images.shape == (10000, 1, 28, 28)
    assert np.bincount(train.labels).min() > 5000
    assert len(test.classes) == 10


def cifar_files(version, classes):
    """Name and content of the files of one version."""
    key = b"fine_labels" if classes == 100 else b"labels"
    batches = {"data_batch_1": slice(0, 8), "data_batch_2": slice(8, 16), "test_batch": slice(16, 20)}
    if classes == 100:
        batches = {"train": slice(0, 16), "test": slice(16, 20)}
    for name, part in batches.items():
        if version == "python":
            yield name, pickle.dumps({b"data": PIXELS[part], key: LABELS[part].tolist()}, protocol=2)
        else:
            columns = [LABELS[part, None] // 2] if classes == 100 else []
            rows = np.concatenate([*columns, LABELS[part, None], PIXELS[part]], axis=1).astype(np.uint8)
            yield f"{name}.bin", rows.tobytes()
    names = [f"class{i}" for i in range(classes)]
    if version == "python":
        meta = {b"fine_label_names" if classes == 100 else b"label_names": [n.encode() for n in names]}
        yield ("meta" if classes == 100 else "batches.meta"), pickle.dumps(meta, protocol=2)
    else:
        yield ("fine_label_names.txt" if classes == 100 else "batches.meta.txt"), "\n".join(names).encode()


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("version", ["python", "binary"])
def test_cifar_in_all_its_versions(tmp_path, version, classes, archive):
    if archive:
        with tarfile.open(tmp_path / f"cifar-{classes}.tar.gz", "w:gz") as file:
            for name, content in cifar_files(version, classes):
                entry = tarfile.TarInfo(f"cifar/{name}")
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
        places = [tmp_path, tmp_path / f"cifar-{classes}.tar.gz"]
    else:
        folder = tmp_path / "cifar"
        folder.mkdir()
        for name, content in cifar_files(version, classes):
            (folder / name).write_bytes(content)
        places = [tmp_path, folder]
    for place in places:
        train, test = read_images(place), read_images(place, train=False)
        assert np.array_equal(train.images.reshape(16, -1), PIXELS[:16])
        assert np.array_equal(test.labels, LABELS[16:])
        assert train.images.shape == (16, 3, 32, 32)
        assert train.kind == f"cifar{classes}"
        assert train.classes[3] == "class3"
        assert len(train.classes) == classes


def picture(path, size=(6, 5), mode="RGB"):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, 100 if mode == "L" else (10, 20, 30)).save(path)


def test_folders_of_pictures(tmp_path):
    for split, n in (("train", 2), ("test", 1)):
        for name in ("dog", "cat"):
            for i in range(n):
                picture(tmp_path / split / name / f"{i}.png")
    train, test = read_images(tmp_path), read_images(tmp_path, train=False)
    assert train.images.shape == (4, 3, 5, 6)
    assert train.images[0, :, 0, 0].tolist() == [10, 20, 30]
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 1, 1]
    assert test.labels.tolist() == [0, 1]
    picture(tmp_path / "train/dog/9.png", size=(7, 5))
    with pytest.raises(SpikingError, match=r"9\.png: got channels and size \[3, 5, 7\]; expected \[3, 5, 6\]"):
        read_images(tmp_path)
    (tmp_path / "test/cat/9.png").write_bytes(b"no picture")
    with pytest.raises(SpikingError, match=r"9\.png: cannot be read as a picture"):
        read_images(tmp_path, train=False)
    (tmp_path / "test/cat/9.png").unlink()
    picture(tmp_path / "test/cow/1.png")
    with pytest.raises(SpikingError, match=r"its class 'cow' is not one of"):
        read_images(tmp_path, train=False)


def test_gray_pictures_have_one_channel(tmp_path):
    picture(tmp_path / "train/a/1.png", mode="L")
    assert read_images(tmp_path).images.shape == (1, 1, 5, 6)


class Harmful:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_1.bin", b"123", r"data_batch_1\.bin: got 3 bytes; expected a multiple of 3073"),
        ("data_batch_1", b"123", r"data_batch_1: not a whole CIFAR batch"),
        (
            "data_batch_1",
            pickle.dumps(Harmful()),
            r"not a whole CIFAR batch \(UnpicklingError: it asks for builtins\.print",
        ),
        ("data_batch_1", pickle.dumps([1]), r"got a list; expected a CIFAR batch"),
        ("data_batch_1", pickle.dumps({b"data": 1}), r"expected data and labels of a CIFAR batch"),
        (
            "data_batch_1",
            pickle.dumps({b"data": PIXELS, b"labels": [1]}, 2),
            r"got data \[20, 3072\]; expected \[1, 3072\]",
        ),
        ("data_batch_1", pickle.dumps({b"data": PIXELS, b"labels": [11] * 20}, 2), r"got labels from 11 to 11"),
        ("test_batch", pickle.dumps({b"data": PIXELS, b"labels": [1] * 20}, 2), r"no training images in it"),
        ("notes.txt", b"", r"got a folder without known images"),
    ],
)
def test_files_that_are_wrong(tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SpikingError, match=message):
        read_images(tmp_path)
    assert "ran" not in capsys.readouterr().out


def test_places_that_are_wrong(tmp_path):
    with pytest.raises(SpikingError, match="there is no such file or folder"):
        read_images(tmp_path / "nowhere")
    (tmp_path / "cifar-10.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(SpikingError, match="cannot be unpacked"):
        read_images(tmp_path / "cifar-10.tar.gz")
    (tmp_path / "train").mkdir()
    with pytest.raises(SpikingError, match="got no pictures"):
        read_images(tmp_path)
