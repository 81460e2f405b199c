"""N-MNIST: 60,000 + 10,000 recordings of handwritten digits by an event camera in three saccades, 34×34 pixels.

Source: Orchard, Jayawant, Cohen, Thakor 2015, "Converting static image datasets to spiking neuromorphic datasets using
saccades" (arXiv 1507.07629); record: Mendeley Data, DOI 10.17632/468j46mzdv.1; licence as stated there.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from spiking.datasets import _kernels
from spiking.datasets.cache import Stored, cache_root, fingerprint, key_of, load_or_build, pack
from spiking.datasets.events import decode_bin, encode_bin, read_bytes
from spiking.datasets.recordings import HOW_TO_GET, RecordingSet

from spiking.errors import SpikingError

FORMAT = 1  # of the cached content; part of the key
FULL = {"train": 60_000, "test": 10_000}
MD5 = {"train": "20959b8e626244a1b502305a9e6e2031", "test": "69ca8762b2fe404d9b9bad1103e97832"}
MEMBER = re.compile(r"(?:^|/)(train|test)/([0-9])/([^/]+)\.bin$", re.IGNORECASE)
BARE_MEMBER = re.compile(r"^([0-9])/([^/]+)\.bin$")
MOST_BYTES = 50_000_000  # of one recording: a real one has under 100,000


class Member(NamedTuple):
    """One recording in a folder or archive; `stamp` changes when its content does."""

    name: str
    label: int
    number: int
    size: int
    stamp: int


class Source(NamedTuple):
    """Where a split was found: a folder, or a zip file."""

    path: Path
    members: list[Member]
    archive: bool


class NMNIST(RecordingSet):
    """The N-MNIST recordings in `root`; with root=None simulated ones of scikit-learn's digits, the embedded default.

    root may be a folder with `Train/<digit>/*.bin` and `Test/…`, a folder with the original train.zip and test.zip, a
    zip file that holds both trees (in part or whole), or a folder with one of these in it. Nothing is downloaded. The
    first opening packs a split into one file in `cache_dir` (None: `cache_root()`), keyed by names, sizes, the archive's hash and
    checksums.

    train: which split.  transform, target_transform: applied to each item.  structured: items are tonic's arrays, so
    that tonic's transforms work.  first_saccade_only: events before 100 ms.  stabilize: take the camera's motion out.
    sort, drop_tail: repair recordings that run backwards or end inside an event instead of refusing them.
    verify: compare complete archives with the md5 of the originals.  threads: over recordings while packing.
    skip_broken: leave damaged recordings out instead of refusing the set; `broken` has one line for each, and they are
    looked for anew at each opening.
    Errors: SpikingError saying what was looked for, or naming the recording that is damaged.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "Train" / "3").mkdir(parents=True)
    >>> (folder / "Train" / "3" / "00008.bin").write_bytes(bytes([3, 4, 0x80, 0, 9]))
    5
    >>> NMNIST(folder, cache_dir=folder / "cache")[0]
    (Events(1 events in 0.0 ms, 34×34×2), 3)
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        *,
        target_transform: Callable[[int], Any] | None = None,
        structured: bool = False,
        first_saccade_only: bool = False,
        stabilize: bool = False,
        sort: bool = False,
        drop_tail: bool = False,
        verify: bool = True,
        skip_broken: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        threads: int = 1,
    ) -> None:
        self.train = bool(train)
        self.simulated = root is None
        self.broken: list[str] = []
        folder = cache_root() if cache_dir is None else Path(cache_dir)
        if root is None:
            from spiking.datasets.simulate import SimulatedNMNIST

            simulated = SimulatedNMNIST(train=self.train, cache_dir=folder)
            stored, self._description = simulated.stored, simulated.describe()
        else:
            split = "train" if train else "test"
            source = find(Path(root), split)
            repair = {"sort": bool(sort), "drop_tail": bool(drop_tail)}
            members = [list(m) for m in source.members]
            key = key_of("nmnist", FORMAT, split, members, fingerprint(Path(source.path)), repair)
            try:
                stored = load_or_build(
                    folder / f"nmnist-{split}-{key}.recordings", lambda: load(source, split, verify, repair, threads)
                )
            except SpikingError:
                if not skip_broken:
                    raise
                stored = load(source, split, verify, repair, threads, self.broken)
            part = "" if len(stored.labels) == FULL[split] else f" (a part of the {FULL[split]:,})"
            self._description = (
                f"{len(stored.labels):,} real N-MNIST recordings, {split} split{part}, from {source.path}."
            )
        super().__init__(
            stored,
            transform=transform,
            target_transform=target_transform,
            structured=structured,
            first_saccade_only=first_saccade_only,
            stabilize=stabilize,
        )

    def describe(self) -> str:
        return self._description


def find(root: Path, split: str) -> Source:
    """The folder or archive below `root` that holds recordings of the split."""
    source = search(root, split)
    if source is not None:
        return source
    if root.is_file():
        raise SpikingError(
            f"{root}: got an archive without {split.title()}/<digit>/*.bin; expected N-MNIST. {HOW_TO_GET}"
        )
    raise SpikingError(
        f"{root}: got a folder with {_listing(root)}; expected {split.title()}/<digit>/*.bin, {split}.zip, or a zip "
        f"file that holds {split.title()}/<digit>/*.bin, here or in nmnist/. {HOW_TO_GET}"
    )


def search(root: Path, split: str) -> Source | None:
    """The folder or archive below `root` that holds recordings of the split, None where there are none."""
    if not root.exists():
        raise SpikingError(f"{root}: no such file or folder; expected N-MNIST there. {HOW_TO_GET}")
    if root.is_file():
        return in_archive(root, split)
    for folder in (
        root,
        *(child for child in _entries(root) if child.is_dir() and child.name.lower() in ("nmnist", "n-mnist")),
    ):
        entries = _entries(folder)
        trees = [e for e in entries if e.is_dir() and e.name.lower() == split]
        archives = [e for e in entries if e.is_file() and e.suffix.lower() == ".zip"]
        archives.sort(key=lambda e: e.stem.lower() != split)  # train.zip before a zip that holds everything
        found = (in_tree(tree) for tree in trees)
        source = next((s for s in found if s), None) or next(
            (s for s in (in_archive(a, split) for a in archives) if s), None
        )
        if source is not None:
            return source
    return None


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def _listing(folder: Path) -> str:
    names = [entry.name + "/" * entry.is_dir() for entry in _entries(folder)]
    return (
        ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing in it"
    )


def in_tree(tree: Path) -> Source | None:
    """Recordings in tree/<digit>/*.bin."""
    members: list[Member] = []
    for digit in _entries(tree):
        if digit.is_dir() and re.fullmatch("[0-9]", digit.name):
            for entry in os.scandir(digit):
                if entry.name.lower().endswith(".bin"):
                    info = entry.stat()
                    number = _number(entry.name, len(members))
                    members.append(Member(entry.path, int(digit.name), number, info.st_size, info.st_mtime_ns))
    return Source(tree, _in_order(members), archive=False) if members else None


def in_archive(path: Path, split: str) -> Source | None:
    """Recordings of the split in a zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as err:
        raise SpikingError(f"{path}: not a readable zip file ({err}); expected N-MNIST. Download it again.") from err
    members: list[Member] = []
    for info in infos:
        match = MEMBER.search(info.filename)
        if match and match[1].lower() == split:
            label, stem = match[2], match[3]
        elif path.stem.lower() == split and (bare := BARE_MEMBER.match(info.filename)):
            label, stem = bare[1], bare[2]
        else:
            continue
        members.append(Member(info.filename, int(label), _number(stem, len(members)), info.file_size, info.CRC))
    return Source(path, _in_order(members), archive=True) if members else None


def _number(name: str, otherwise: int) -> int:
    digits = re.match(r"\d+", name)
    return int(digits[0]) if digits else otherwise


def _in_order(members: Iterable[Member]) -> list[Member]:
    return sorted(members, key=lambda m: (m.number, m.name))


def load(
    source: Source,
    split: str,
    verify: bool,
    repair: dict[str, bool],
    threads: int,
    broken: list[str] | None = None,
) -> Stored:
    """All recordings of a source, each decoded once to be sure of it; with `broken`, damaged ones are named there and left out."""
    if source.archive and verify and len(source.members) == FULL[split]:
        check_md5(source.path, MD5[split])
    for member in source.members:
        if member.size > MOST_BYTES:
            raise SpikingError(f"{_label(source, member)}: got {member.size:,} bytes; expected at most {MOST_BYTES:,}.")
    recordings = read_archive(source) if source.archive else [read_bytes(m.name) for m in source.members]
    _, _, faults = _kernels.decode_sources(recordings, 34, 34, threads)
    left_out = set()
    for i in np.flatnonzero(faults).tolist():
        name = _label(source, source.members[i])
        try:
            recordings[i] = encode_bin(decode_bin(recordings[i], sensor_size=(34, 34), name=name, **repair), name)
        except SpikingError as err:
            if broken is None:
                raise
            broken.append(str(err))
            left_out.add(i)
    kept = [i for i in range(len(recordings)) if i not in left_out]
    members = [source.members[i] for i in kept]
    return pack([recordings[i] for i in kept], [m.label for m in members], [m.number for m in members])


def _label(source: Source, member: Member) -> str:
    return f"{source.path}: {member.name}" if source.archive else member.name


def read_archive(source: Source) -> list[bytes]:
    """Bytes of every member, checked by zip's own checksums."""
    out = []
    with zipfile.ZipFile(source.path) as archive:
        for member in source.members:
            try:
                out.append(archive.read(member.name))
            except (
                zipfile.BadZipFile,
                RuntimeError,
                NotImplementedError,
                zlib.error,
                lzma.LZMAError,
                EOFError,
                OSError,
            ) as err:
                raise SpikingError(
                    f"{_label(source, member)}: cannot be unpacked ({err}); expected a whole archive. "
                    "Download it again."
                ) from err
    return out


def check_md5(path: Path, expected: str) -> None:
    """SpikingError where a complete archive is not byte for byte the original."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise SpikingError(
            f"{path}: got md5 {digest.hexdigest()}; expected {expected}, the original archive's. Download it again, "
            "or, if you packed it yourself, name a folder that it is unpacked in (verify=False in Python)."
        )
