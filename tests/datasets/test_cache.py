"""The cache of recordings: whole or not there at all, whoever writes it."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from spiking.datasets import cache
from spiking.datasets.cache import fingerprint, key_of, load_or_build, pack


@pytest.fixture
def stored():
    return pack([b"12345", b"", b"1234567890"], [1, 2, 3], [7, 8, 9])


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip((*a.recordings, *a[1:]), (*b.recordings, *b[1:]), strict=True))


def never():
    raise AssertionError("built again")


def test_what_was_stored_comes_back(tmp_path, stored):
    path = tmp_path / "deep" / "a.recordings"
    assert same(load_or_build(path, lambda: stored), stored)
    assert same(load_or_build(path, never), stored)
    assert bytes(load_or_build(path, never).recordings[2]) == b"1234567890"
    assert [p.name for p in path.parent.iterdir()] == ["a.recordings"]


def test_any_damage_is_noticed_named_and_repaired(tmp_path, stored):
    path = tmp_path / "a.recordings"
    cache.write(path, stored)
    whole = path.read_bytes()
    places = range(0, len(whole), 7)
    for damaged in (
        whole[:-1],
        whole[:10],
        b"",
        whole + b"x",
        *(whole[:i] + bytes([whole[i] ^ 85]) + whole[i + 1 :] for i in places),
    ):
        path.write_bytes(damaged)
        try:
            found = cache.read(path)
        except (ValueError, KeyError, TypeError, OSError):
            with pytest.warns(UserWarning, match=r"a\.recordings: the cache file is damaged \(.*building it again"):
                found = load_or_build(path, lambda: stored)
            assert path.read_bytes() == whole
        assert same(found, stored)  # damage that goes unnoticed may only lie in the padding


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path, stored):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match=r"a\.recordings: cannot write the cache \(.*going on without it"):
        assert same(load_or_build(tmp_path / "file" / "a.recordings", lambda: stored), stored)


def test_a_full_disk_leaves_nothing_behind(tmp_path, stored, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        load_or_build(tmp_path / "a.recordings", lambda: stored)
    assert list(tmp_path.iterdir()) == []


def test_keys_follow_content_and_settings():
    base = key_of("a", 1, [2, "b"], {"sort": True}, b"bytes", np.arange(3))
    assert base == key_of("a", 1, [2, "b"], {"sort": True}, b"bytes", np.arange(3))
    others = [
        key_of("a", 1, [2, "b"], {"sort": False}, b"bytes", np.arange(3)),
        key_of("a", 1, [2, "b"], {"sort": True}, b"bytez", np.arange(3)),
        key_of("a", 1, [2, "b"], {"sort": True}, b"bytes", np.arange(3).astype(np.int32)),
        key_of("a", 12, ["b"], {"sort": True}, b"bytes", np.arange(3)),
        key_of("a", 1, [2, "b"], {"sort": True}, b"bytes", np.arange(3).reshape(1, 3)),
    ]
    assert len({base, *others}) == 6


def test_the_folder_comes_from_the_environment_or_the_home(monkeypatch):
    monkeypatch.setenv("SPIKING_CACHE", "/somewhere/else")
    assert cache.cache_root() == Path("/somewhere/else")
    monkeypatch.delenv("SPIKING_CACHE")
    assert cache.cache_root() == Path.home() / ".cache" / "spiking"


def test_two_processes_that_build_at_once_both_get_it(tree, tmp_path):
    """Both find no cache, both read the tree, both write; a third then reads what they left."""
    folder = tmp_path / "cache"
    code = textwrap.dedent(
        """
        import sys, time, pathlib
        from spiking.datasets import NMNIST, nmnist
        tree, folder, me, other = map(pathlib.Path, sys.argv[1:])
        load = nmnist.load
        def together(*args):
            me.touch()
            until = time.monotonic() + 60
            while not other.exists() and time.monotonic() < until:
                time.sleep(0.005)
            return load(*args)
        nmnist.load = together
        print(len(NMNIST(tree, cache_dir=folder).events().t))
        """
    )
    marks = [tmp_path / "one", tmp_path / "two"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", "-W", "error", "-c", code, tree, folder, *order],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        )
        for order in (marks, marks[::-1])
    ]  # fmt: skip
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out.strip(), err) == (0, "63", "")
    assert all(mark.exists() for mark in marks)
    (left,) = folder.iterdir()
    assert len(cache.read(left).labels) == 3


def test_a_damaged_copy_of_an_archive_never_meets_the_good_ones_cache(tmp_path):
    good, bad = tmp_path / "good.zip", tmp_path / "bad.zip"
    good.write_bytes(bytes(1000))
    bad.write_bytes(bytes(500) + b"x" + bytes(499))
    same = tmp_path / "same.zip"
    same.write_bytes(bytes(1000))
    assert fingerprint(good) == fingerprint(same)
    assert fingerprint(good) != fingerprint(bad)
    assert fingerprint(good, hashed=10)[0] == 1000
    assert fingerprint(tmp_path) == []
