"""Events of one recording (t, x, y, p) and the files that hold them.

The N-MNIST layout (`.bin`, and SLAYER's `.bs2`, which holds the same bytes) has five bytes an event and no header:
x, y, then 24 bits big-endian: polarity, 23 bits of time in µs. A word with y == 240 is no event: every later time
grows by 2^13 µs. Source: Orchard et al. 2015 (N-MNIST), tonic's `read_mnist_file`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from spiking.datasets import _kernels

from spiking.errors import SpikingError

WORD = 5  # bytes an event
LAST_TIME = (1 << 23) - 1  # µs, the largest that a word holds
TONIC_DTYPE = np.dtype([("x", np.int64), ("y", np.int64), ("t", np.int64), ("p", np.int64)])

Sensor = tuple[int, int, int]


class Events:
    """Events of one recording as four arrays of equal length.

    Fields: t [N] int64, µs, never decreasing in files that were read; x, y [N] int16, pixels; p [N] uint8, 1 = ON.
    `sensor_size` is (width, height, polarities), or None where nobody said. `events["t"]` is `events.t`; a slice or a
    mask gives Events again; `to_structured()` gives tonic's array.
    Errors: SpikingError if the lengths differ, or a value does not fit its field.

    >>> events = Events(t=[10, 25, 30], x=[1, 2, 3], y=[0, 0, 5], p=[1, 0, 1], sensor_size=(34, 34))
    >>> len(events), events.duration, events[1:].x.tolist()
    (3, 20, [2, 3])
    """

    __slots__ = ("p", "sensor_size", "t", "x", "y")

    def __init__(
        self, t: Any, x: Any, y: Any, p: Any, sensor_size: tuple[int, int] | Sensor | None = None, name: str = "Events"
    ) -> None:
        self.t = _field(t, "t", np.int64, name)
        self.x = _field(x, "x", np.int16, name)
        self.y = _field(y, "y", np.int16, name)
        self.p = _field(p, "p", np.uint8, name)
        sizes = {field: len(getattr(self, field)) for field in ("t", "x", "y", "p")}
        if len(set(sizes.values())) != 1:
            raise SpikingError(
                f"{name}: got fields of different lengths, {sizes}; expected one value an event in each."
            )
        self.sensor_size = None if sensor_size is None else sensor(sensor_size, name)

    @classmethod
    def from_structured(
        cls, array: Any, sensor_size: tuple[int, int] | Sensor | None = None, name: str = "Events"
    ) -> Events:
        """Events from an array with fields t, x, p and perhaps y (zero where missing), such as tonic's."""
        names = getattr(getattr(array, "dtype", None), "names", None) or ()
        if not {"t", "x", "p"} <= set(names):
            raise SpikingError(
                f"{name}: got {type(array).__name__} with fields {list(names)}; expected Events or a structured array "
                "with fields t, x, y, p."
            )
        y = array["y"] if "y" in names else np.zeros(len(array), np.int16)
        return cls(array["t"], array["x"], y, array["p"], sensor_size, name)

    def to_structured(self, dtype: Any = None) -> np.ndarray:
        """A structured array with tonic's field names; `dtype` defaults to tonic's for N-MNIST (x, y, t, p as int64).

        >>> Events(t=[7], x=[1], y=[2], p=[1]).to_structured().tolist()
        [(1, 2, 7, 1)]
        """
        dtype = TONIC_DTYPE if dtype is None else np.dtype(dtype)
        out = np.empty(len(self), dtype)
        for field in dtype.names or ():
            out[field] = self[field]
        return out

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            if index not in ("t", "x", "y", "p"):
                raise SpikingError(f'Events: got field "{index}"; expected "t", "x", "y" or "p".')
            return getattr(self, index)
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"event {index} of {len(self)}")
            index = slice(index % len(self), index % len(self) + 1)
        return _trusted(self.t[index], self.x[index], self.y[index], self.p[index], self.sensor_size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Events):
            return NotImplemented
        return all(np.array_equal(self[field], other[field]) for field in "txyp")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        size = "unknown sensor" if self.sensor_size is None else "{}×{}×{}".format(*self.sensor_size)
        return f"Events({len(self):,} events in {self.duration / 1000:.1f} ms, {size})"

    @property
    def duration(self) -> int:
        """µs from the first event to the last; 0 with fewer than two."""
        return int(self.t[-1] - self.t[0]) if len(self) else 0

    @property
    def rate_hz(self) -> float:
        """Events per second between the first and the last; 0 where there is no time between them."""
        return len(self) / self.duration * 1e6 if self.duration else 0.0

    @property
    def extent(self) -> tuple[int, int]:
        """(largest x + 1, largest y + 1): the smallest sensor that could have seen these events."""
        return (int(self.x.max()) + 1, int(self.y.max()) + 1) if len(self) else (0, 0)

    def sorted(self) -> Events:
        """The same events in order of time; events of equal time keep their order."""
        order = np.argsort(self.t, kind="stable")
        return self[order]

    def check(self, name: str = "Events", *, offset_of: Any = None) -> Events:
        """Return self, or raise SpikingError at the first event outside the sensor or behind its predecessor."""
        width, height = (self.sensor_size or (0, 0))[:2]
        backwards, outside = _kernels.scan((self.t, self.x, self.y, self.p), width, height)
        if outside >= 0:
            raise outside_error(self, outside, name, offset_of)
        if backwards >= 0:
            raise backwards_error(self, backwards, name, offset_of)
        return self


def _field(values: Any, field: str, dtype: Any, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iub"):
        raise SpikingError(
            f"{name}.{field}: got {array.dtype} of shape {list(array.shape)}; expected integers, one an event."
        )
    if array.dtype == dtype:
        return np.ascontiguousarray(array)
    limits = np.iinfo(dtype)
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < limits.min or high > limits.max:
        wrong = low if low < limits.min else high
        raise SpikingError(
            f"{name}.{field}: event {int(np.argmax(array == wrong))}: got {wrong}; "
            f"expected {limits.min} to {limits.max}."
        )
    return np.ascontiguousarray(array, dtype)


def _trusted(t: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray, sensor_size: Sensor | None) -> Events:
    """Events from arrays known to be right: no checks, for paths that run once a recording."""
    events = object.__new__(Events)
    events.t, events.x, events.y, events.p, events.sensor_size = t, x, y, p, sensor_size
    return events


def sensor(size: Any, name: str) -> Sensor:
    """(width, height, polarities) from two or three positive integers."""
    try:
        numbers = tuple(int(n) for n in size)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) not in (2, 3) or min(numbers) < 1 or max(numbers) > 32767 or (len(numbers) == 3 and numbers[2] > 2):
        raise SpikingError(
            f"{name}.sensor_size: got {size!r}; expected (width, height) or (width, height, polarities), "
            "1 to 32767 pixels, 1 or 2 polarities."
        )
    return numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else 2


def outside_error(events: Events, index: int, name: str, offset_of: Any = None) -> SpikingError:
    x, y, p = int(events.x[index]), int(events.y[index]), int(events.p[index])
    where = f"{name}: event {index}" + (f" (byte {offset_of(index)})" if offset_of else "")
    if p > 1:
        return SpikingError(f"{where}: got p={p}; expected 0 (OFF) or 1 (ON).")
    if events.sensor_size is None:
        return SpikingError(f"{where}: got x={x}, y={y}; expected no negative coordinates.")
    width, height, _ = events.sensor_size
    return SpikingError(
        f"{where}: got x={x}, y={y}; expected x < {width} and y < {height}, the sensor's size. "
        "Give the size of the sensor that was used, or download the file again."
    )


def backwards_error(events: Events, index: int, name: str, offset_of: Any = None) -> SpikingError:
    where = f"{name}: event {index}" + (f" (byte {offset_of(index)})" if offset_of else "")
    t = int(events.t[index])
    if t < 0:
        return SpikingError(
            f"{where}: got t={t} µs; expected no negative time. Subtract the first time from all of them."
        )
    return SpikingError(
        f"{where}: got t={t} µs after {int(events.t[index - 1])} µs; expected times that never decrease. "
        "To put the events in order of time, pass sort=True (--sort-events on the command line)."
    )


def decode_bin(
    source: bytes | bytearray | memoryview | np.ndarray | str | os.PathLike[str],
    *,
    sensor_size: tuple[int, int] | Sensor | None = None,
    name: str | None = None,
    drop_tail: bool = False,
    sort: bool = False,
    allow_empty: bool = False,
) -> Events:
    """Events from N-MNIST bytes (`.bin`, `.bs2`), or from a path to them.

    drop_tail: forgive a file that ends inside an event.  sort: put events in order of time instead of refusing them.
    allow_empty: zero bytes give zero events instead of an error.  name: what error messages call the source.
    Errors: SpikingError naming source, event index and byte: a cut file, no events, coordinates outside `sensor_size`,
    times that run backwards.
    Source: Orchard et al. 2015 (arXiv 1507.07629).   Oracle: datasets/_plain.py::decode_words.

    >>> decode_bin(bytes([3, 4, 0x80, 0, 9])).to_structured().tolist()
    [(3, 4, 9, 1)]
    """
    if isinstance(source, (str, os.PathLike)):
        name = name or os.fspath(source)
        raw = np.frombuffer(read_bytes(source), np.uint8)
    else:
        name = name or "events"
        raw = np.frombuffer(source, np.uint8)
    tail = raw.size % WORD
    if tail and not drop_tail:
        raise SpikingError(
            f"{name}: byte {raw.size - tail}: got {tail} of the {WORD} bytes of an event; the file of {raw.size} bytes "
            "is cut. Download it again, or leave the rest out with drop_tail=True (--drop-tail on the command line)."
        )
    size = None if sensor_size is None else sensor(sensor_size, "decode_bin")
    width, height = (size or (0, 0))[:2]
    raw = raw[: raw.size - tail]
    arrays, backwards, outside = _kernels.decode_words(raw, width, height)
    events = _trusted(*arrays, size)
    if not len(events) and not allow_empty:
        raise SpikingError(
            f"{name}: got {raw.size} bytes without an event; expected {WORD} bytes an event. Download it again."
        )
    if outside >= 0:
        raise outside_error(events, outside, name, lambda i: _byte_of(raw, i))
    if backwards >= 0 and not sort:
        raise backwards_error(events, backwards, name, lambda i: _byte_of(raw, i))
    return events.sorted() if backwards >= 0 else events


def _byte_of(raw: np.ndarray, event: int) -> int:
    return int(np.flatnonzero(raw[1::WORD] != 240)[event]) * WORD


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """A whole file with few system calls; SpikingError names what cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as err:
        raise SpikingError(
            f"{os.fspath(path)}: {(err.strerror or str(err)).lower()}; expected a file of events."
        ) from err
    try:
        size = os.fstat(descriptor).st_size
        data = os.read(descriptor, size)
        while len(data) < size:
            more = os.read(descriptor, size - len(data))
            if not more:
                break
            data += more
        return data
    except OSError as err:
        raise SpikingError(
            f"{os.fspath(path)}: {(err.strerror or str(err)).lower()}; expected a file of events."
        ) from err
    finally:
        os.close(descriptor)


# What a file starts with, for formats that are known but not read; the second item needs no extension to be sure.
SIGNATURES = (
    (b"#!AER-DAT", "AEDAT"),
    (b"Event Stream", "Event Stream (.es)"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"\x93NUMPY", "NumPy array"),
    (b"% evt 2", "Prophesee EVT2"),
    (b"% evt 3", "Prophesee EVT3"),
    (b"% ", "Prophesee raw or DAT"),
    (b"PK\x03\x04", "zip archive"),
)
EXTENSIONS = {
    ".bs1": "SLAYER bs1", ".bs3": "SLAYER bs3", ".bsn": "SLAYER bsn", ".raw": "Prophesee raw", ".dat": "Prophesee DAT",
    ".aedat": "AEDAT", ".aedat4": "AEDAT4", ".es": "Event Stream (.es)", ".npy": "NumPy array", ".mat": "MATLAB",
}  # fmt: skip


def format_of(path: str | os.PathLike[str], head: bytes) -> str:
    """ "bin" for the N-MNIST layout; SpikingError naming the format of anything else."""
    suffix = Path(path).suffix.lower()
    ours = suffix in (".bin", ".bs2")
    # Four bytes may be an event by chance; a long signature may not.
    known = next((name for sign, name in SIGNATURES if head.startswith(sign) and (not ours or len(sign) > 5)), None)
    if known is None and ours:
        return "bin"
    known = known or EXTENSIONS.get(suffix)
    if known == "zip archive":
        raise SpikingError(
            f"{os.fspath(path)}: got a zip archive; expected a file of events. Open N-MNIST with datasets.NMNIST."
        )
    what = f"a file in {known} format" if known else f'extension "{suffix}" and no known signature'
    raise SpikingError(f"{os.fspath(path)}: got {what}; expected the N-MNIST layout (.bin or .bs2), the one read here.")


def read_events(
    path: str | os.PathLike[str],
    *,
    sensor_size: tuple[int, int] | Sensor | None = None,
    drop_tail: bool = False,
    sort: bool = False,
) -> Events:
    """Events of one file; the format is told by content, then by extension (`.bin` and `.bs2` are read).

    Errors: as `decode_bin`; another format is refused by its name.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "one.bin"
    >>> write_bin(path, Events(t=[5], x=[33], y=[0], p=[0]))
    >>> read_events(path, sensor_size=(34, 34))
    Events(1 events in 0.0 ms, 34×34×2)
    """
    if Path(path).is_dir():
        raise SpikingError(
            f"{os.fspath(path)}: got a folder; expected a file of events. Open N-MNIST with datasets.NMNIST."
        )
    raw = read_bytes(path)
    format_of(path, raw[:16])
    return decode_bin(raw, sensor_size=sensor_size, name=os.fspath(path), drop_tail=drop_tail, sort=sort)


def encode_bin(events: Events, name: str = "encode_bin") -> bytes:
    """The N-MNIST bytes of events: t < 2^23 µs, x < 256, y < 256 but not 240, which the layout keeps for itself.

    >>> encode_bin(Events(t=[9], x=[3], y=[4], p=[1])).hex()
    '0304800009'
    """
    t, x, y, p = events.t, events.x, events.y, events.p
    for field, values, wrong, expected in (
        ("t", t, (t < 0) | (t > LAST_TIME), f"0 to {LAST_TIME} µs, what 23 bits hold"),
        ("x", x, (x < 0) | (x > 255), "0 to 255"),
        ("y", y, (y < 0) | (y > 255) | (y == 240), "0 to 255 but not 240, the layout's overflow mark"),
        ("p", p, p > 1, "0 or 1"),
    ):
        if wrong.any():
            index = int(np.argmax(wrong))
            raise SpikingError(f"{name}: event {index}: got {field}={int(values[index])}; expected {expected}.")
    words = np.empty((len(events), WORD), np.uint8)
    words[:, 0], words[:, 1] = x, y
    words[:, 2] = p.astype(np.int64) << 7 | t >> 16
    words[:, 3], words[:, 4] = t >> 8 & 255, t & 255
    return words.tobytes()


def write_bin(path: str | os.PathLike[str], events: Events) -> None:
    """Write events in the N-MNIST layout, which `read_events` reads back unchanged. Errors: as `encode_bin`."""
    Path(path).write_bytes(encode_bin(events, os.fspath(path)))
