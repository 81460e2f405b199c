"""Events and the N-MNIST layout: decoding, encoding, and what each kind of bad file is told."""

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spiking.datasets import Events, _kernels, _plain, read_events, write_bin
from spiking.datasets.events import TONIC_DTYPE, decode_bin, encode_bin

from spiking.errors import SpikingError

PROPERTY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def word(t, x, y, p):
    return bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255])


def test_a_word_decodes_to_its_fields(backend):
    events = decode_bin(word(0x12_3456, 33, 7, 1) + word(0x12_3457, 0, 255, 0))
    assert events.to_structured().tolist() == [(33, 7, 0x123456, 1), (0, 255, 0x123457, 0)]
    assert (events.t.dtype, events.x.dtype, events.y.dtype, events.p.dtype) == (np.int64, np.int16, np.int16, np.uint8)


events_lists = st.lists(
    st.tuples(
        st.integers(0, 2**23 - 1),
        st.integers(0, 255),
        st.integers(0, 255).filter(lambda y: y != 240),
        st.integers(0, 1),
    ),
    max_size=60,
)


@PROPERTY
@given(rows=events_lists)
def test_reading_gives_what_was_written(backend, rows):
    rows.sort(key=lambda row: row[0])
    t, x, y, p = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [], [])
    events = Events(np.array(t, int), np.array(x, int), np.array(y, int), np.array(p, int))
    assert decode_bin(encode_bin(events), allow_empty=True) == events


@PROPERTY
@given(data=st.binary(max_size=400))
def test_compiled_and_plain_decoders_agree_on_any_bytes(data):
    raw = np.frombuffer(data, np.uint8)
    arrays, backwards, outside = _kernels.decode_words(raw, 100, 90)
    expected = _plain.decode_words(raw)
    for got, want in zip(arrays, expected, strict=True):
        assert got.dtype == want.dtype
        assert np.array_equal(got, want)
    assert backwards == _plain.first_backwards(expected[0])
    assert outside == _plain.first_outside(*expected[1:], 100, 90)


def test_y_240_shifts_every_later_time_and_is_no_event(backend):
    data = word(10, 1, 1, 0) + word(0, 0, 240, 0) + word(20, 2, 2, 1) + word(5, 9, 240, 1) + word(30, 3, 3, 1)
    events = decode_bin(data)
    assert events.t.tolist() == [10, 20 + 8192, 30 + 2 * 8192]
    assert events.x.tolist() == [1, 2, 3]


@pytest.mark.parametrize("tail", [1, 2, 3, 4])
def test_a_cut_file_is_refused_by_name_byte_and_remainder(backend, tmp_path, tail):
    path = tmp_path / "cut.bin"
    path.write_bytes(word(1, 2, 3, 0) + word(2, 2, 3, 0)[:tail])
    with pytest.raises(
        SpikingError, match=rf"cut\.bin: byte 5: got {tail} of the 5 bytes .* of {5 + tail} bytes is cut"
    ):
        read_events(path)
    assert len(read_events(path, drop_tail=True)) == 1


def test_an_empty_file_is_refused(backend, tmp_path):
    path = tmp_path / "empty.bin"
    path.write_bytes(b"")
    with pytest.raises(SpikingError, match=r"empty\.bin: got 0 bytes without an event"):
        read_events(path)
    assert len(decode_bin(b"", allow_empty=True)) == 0


def test_coordinates_outside_the_sensor_are_named_with_index_and_byte(backend):
    data = word(1, 33, 33, 0) + word(0, 0, 240, 0) + word(2, 34, 5, 1)
    with pytest.raises(SpikingError, match=r"a\.bin: event 1 \(byte 10\): got x=34, y=5; expected x < 34 and y < 34"):
        decode_bin(data, sensor_size=(34, 34), name="a.bin")
    assert decode_bin(data).extent == (35, 34)


def test_times_running_backwards_are_refused_or_sorted(backend, tmp_path):
    path = tmp_path / "back.bin"
    path.write_bytes(word(5, 1, 1, 1) + word(9, 2, 2, 0) + word(8, 3, 3, 1) + word(9, 4, 4, 1))
    with pytest.raises(SpikingError, match=r"back\.bin: event 2 \(byte 10\): got t=8 µs after 9 µs; .*sort=True"):
        read_events(path)
    events = read_events(path, sort=True)
    assert events.t.tolist() == [5, 8, 9, 9]
    assert events.x.tolist() == [1, 3, 2, 4]


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(SpikingError, match=r"nowhere\.bin: no such file"):
        read_events(tmp_path / "nowhere.bin")
    with pytest.raises(SpikingError, match=r"got a folder; .*datasets\.NMNIST"):
        read_events(tmp_path)


@pytest.mark.parametrize(
    ("name", "head", "told"),
    [
        ("a.aedat4", b"#!AER-DAT4.0\r\n", "AEDAT format"),
        ("a.bin", b"#!AER-DAT3.1\r\n", "AEDAT format"),
        ("a.raw", b"% evt 3.0\n", "Prophesee EVT3"),
        ("a.raw", b"% geometry", "Prophesee raw or DAT"),
        ("a.es", b"Event Stream\2\0\0\1", "Event Stream"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("a.bs1", b"\0\1\2\3\4", "SLAYER bs1"),
        ("a.zip", b"PK\3\4", "zip archive"),
        ("a.txt", b"hello", 'extension ".txt" and no known signature'),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, name, head, told):
    (tmp_path / name).write_bytes(head + bytes(11))
    with pytest.raises(SpikingError, match=told):
        read_events(tmp_path / name)


def test_bytes_that_look_like_another_format_by_chance_are_events(tmp_path):
    (tmp_path / "chance.bs2").write_bytes(b"% \0\0\0" + b"PK\0\3\4")
    assert read_events(tmp_path / "chance.bs2").x.tolist() == [ord("%"), ord("P")]


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("t", 2**23, "got t=8388608; expected 0 to 8388607"),
        ("t", -1, "got t=-1"),
        ("x", 256, "got x=256; expected 0 to 255"),
        ("y", 240, "got y=240; .*overflow mark"),
        ("p", 2, "got p=2; expected 0 or 1"),
    ],
)
def test_writing_refuses_what_the_layout_cannot_hold(tmp_path, field, value, told):
    values = {"t": [1, 2], "x": [0, 0], "y": [0, 0], "p": [0, 0]}
    values[field][1] = value
    with pytest.raises(SpikingError, match=f"event 1: {told}"):
        write_bin(tmp_path / "out.bin", Events(**values))


def test_fields_are_checked_when_given():
    with pytest.raises(SpikingError, match=r"Events: got fields of different lengths, \{'t': 2"):
        Events([1, 2], [1], [1], [1])
    with pytest.raises(SpikingError, match=r"Events\.x: event 1: got 40000; expected -32768 to 32767"):
        Events([1, 2], [1, 40000], [1, 1], [1, 1])
    with pytest.raises(SpikingError, match=r"Events\.t: got float64 of shape \[1\]; expected integers"):
        Events([0.5], [1], [1], [1])
    with pytest.raises(SpikingError, match=r"sensor_size: got \(34,\); expected \(width, height\)"):
        Events([1], [1], [1], [1], (34,))


def test_check_finds_negative_times_and_coordinates_and_other_polarities(backend):
    with pytest.raises(SpikingError, match="event 0: got t=-3 µs; expected no negative time"):
        Events([-3], [1], [1], [1]).check()
    with pytest.raises(SpikingError, match="event 1: got x=-1, y=0; expected no negative"):
        Events([1, 2], [1, -1], [0, 0], [1, 1]).check()
    with pytest.raises(SpikingError, match="event 0: got p=2; expected 0"):
        Events([1], [1], [1], [2]).check()
    events = Events([1, 2], [1, 2], [0, 0], [1, 1], (34, 34))
    assert events.check() is events


def test_events_slice_like_an_array(make_events):
    events = make_events(1)
    assert len(events[10:20]) == 10
    assert events[events.p == 1].p.all()
    assert events[-1].t.tolist() == [events.t[-1]]
    assert [int(one.t[0]) for one in events[:3]] == events.t[:3].tolist()
    assert np.array_equal(events["x"], events.x)
    assert events[3:].sensor_size == (34, 34, 2)
    with pytest.raises(SpikingError, match='got field "ts"'):
        events["ts"]


def test_structured_arrays_there_and_back(make_events):
    events = make_events(2)
    array = events.to_structured()
    assert array.dtype == TONIC_DTYPE
    assert Events.from_structured(array) == events
    gesture = np.dtype([("x", np.int16), ("y", np.int16), ("p", bool), ("t", np.int64)])
    assert Events.from_structured(events.to_structured(gesture)) == events
    with pytest.raises(SpikingError, match="expected Events or a structured array"):
        Events.from_structured(np.zeros(3))


def test_rate_and_duration():
    events = Events([0, 500_000, 1_000_000], [0, 0, 0], [0, 0, 0], [0, 0, 0])
    assert (events.duration, events.rate_hz) == (1_000_000, 3.0)
    assert (events[:1].duration, events[:1].rate_hz, events[:0].extent) == (0, 0.0, (0, 0))


# Real files.


@pytest.mark.parametrize("name", ["sample_nmnist.bin", "dvs-gesture-clips/1.bs2", "dvs-gesture-clips/5.bs2"])
def test_real_files_decode_to_the_golden_arrays(backend, shared, facts, digest, name):
    expected = facts("formats.json")[name]
    folder = shared / "data" / ("" if "/" in name else "events")
    events = read_events(folder / name)
    assert len(events) == expected["n"]
    for field in "txyp":
        assert digest(events[field]) == expected["sha256_i64"][field]


def test_the_golden_nmnist_recordings(backend, subset, facts, digest):
    for name, expected in facts("nmnist_more.json").items():
        events = decode_bin(subset[name], sensor_size=(34, 34))
        assert len(events) == expected["n"]
        assert {field: digest(events[field]) for field in "txyp"} == expected["sha256_i64"]
        assert encode_bin(events) == subset[name]


def test_the_golden_overflow_word(backend, shared, facts, digest):
    data = bytearray((shared / "data" / "events" / "sample_nmnist.bin").read_bytes())
    data[500:505] = bytes.fromhex("00F0000000")
    (expected,) = facts("odd_files.json").values()
    events = decode_bin(data)
    assert len(events) == expected["n"]
    assert {field: digest(events[field]) for field in "txyp"} == expected["sha256_i64"]


def test_every_prefix_of_a_real_file_decodes_or_fails_by_name(shared):
    data = (shared / "data" / "events" / "sample_nmnist.bin").read_bytes()[:2500]
    for size in range(len(data)):
        if size and size % 5 == 0:
            assert len(decode_bin(data[:size], sensor_size=(34, 34), name="part.bin")) == size // 5
        else:
            with pytest.raises(SpikingError, match=r"^part\.bin: "):
                decode_bin(data[:size], sensor_size=(34, 34), name="part.bin")


def test_64_kb_of_garbage_is_done_with_quickly(backend):
    garbage = np.random.default_rng(0).bytes(65_535)
    begin = time.perf_counter()
    assert len(decode_bin(garbage, sort=True)) > 13_000
    assert time.perf_counter() - begin < 1.0  # 50 ms on a quiet machine
