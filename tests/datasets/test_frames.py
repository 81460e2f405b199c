"""Frames: every event once by default, tonic's result on request, straight from bytes or from events."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spiking.datasets import Events, ToFrames, _kernels
from spiking.datasets.events import decode_bin, encode_bin
from spiking.datasets.frames import frames_from_bin, frames_many

from spiking.errors import SpikingError

PROPERTY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
RULES = [
    {"time_bins": 1}, {"time_bins": 7}, {"time_window": 1000}, {"event_count": 13}, {"event_bins": 4},
    {"event_bins": 700},
]  # fmt: skip


def histogram(events, bins):
    """The default rule by numpy's own histogram, whose bins are closed at the left and the last one at both sides."""
    edges = [events.t[0] + (events.t[-1] - events.t[0]) * i / bins for i in range(bins + 1)]
    sample = np.stack([events.t, events.p, events.y, events.x], 1)
    return np.histogramdd(sample, [edges, np.arange(3), np.arange(35), np.arange(35)])[0]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 12, 13, 500])
def test_every_event_is_counted_once(backend, make_events, rule, n):
    events = make_events(n, n)
    frames = ToFrames(**rule)(events)
    assert frames.dtype == np.int32
    assert frames.shape[1:] == (2, 34, 34)
    assert frames.sum() == n
    pixels = np.zeros((2, 34, 34), int)
    np.add.at(pixels, (events.p, events.y, events.x), 1)
    assert np.array_equal(frames.sum(0), pixels)


def test_time_bins_are_numpys_histogram(backend, make_events):
    for seed in range(5):
        events = make_events(seed, 300, last=5000 + seed)
        assert np.array_equal(ToFrames(time_bins=8)(events), histogram(events, 8))


times = st.lists(st.integers(0, 2**40), min_size=1, max_size=40)


@PROPERTY
@given(t=times, bins=st.integers(1, 50))
def test_bins_of_any_times_are_exact_in_integers(backend, t, bins):
    t = sorted(t)
    frames = ToFrames(time_bins=bins)(Events(t, [0] * len(t), [0] * len(t), [0] * len(t), (1, 1)))[:, 0, 0, 0]
    span = max(t[-1] - t[0], 1)
    expected = np.bincount([min((v - t[0]) * bins // span, bins - 1) for v in t], minlength=bins)
    assert frames.tolist() == expected.tolist()


@PROPERTY
@given(t=times, bins=st.integers(1, 9), start=st.integers(0, 2**40), length=st.integers(0, 2**40))
def test_a_window_keeps_the_events_inside_it(backend, t, bins, start, length):
    events = Events(sorted(t), [0] * len(t), [0] * len(t), [1] * len(t), (1, 1))
    frames = ToFrames(time_bins=bins, start_time=start, end_time=start + length)(events)
    assert frames.sum() == sum(start <= v <= start + length for v in t)


def test_times_in_any_order_fall_into_the_same_bins(backend, make_events):
    events = make_events(3, 400)
    shuffled = events[np.random.default_rng(0).permutation(400)]
    for rule in ({"time_bins": 6}, {"time_window": 20_000}):
        assert np.array_equal(ToFrames(**rule)(events), ToFrames(**rule)(shuffled))


def test_windows_and_counts_cut_where_they_say(backend):
    events = Events([0, 9, 10, 25], [0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], (1, 1))
    assert ToFrames(time_window=10)(events)[:, 1, 0, 0].tolist() == [2, 1, 1]
    assert ToFrames(time_window=10, start_time=5, end_time=35)(events)[:, 1, 0, 0].tolist() == [2, 0, 1, 0]
    assert ToFrames(event_count=3)(events)[:, 1, 0, 0].tolist() == [3, 1]
    assert ToFrames(event_bins=3)(events)[:, 1, 0, 0].tolist() == [2, 1, 1]
    assert ToFrames(time_bins=2, start_time=9)(events)[:, 1, 0, 0].tolist() == [2, 1]


def test_one_polarity_and_clipping(backend, make_events):
    events = make_events(5, 3000)
    both = ToFrames(time_bins=3)(events)
    merged = ToFrames(time_bins=3, sensor_size=(34, 34, 1))(events)
    assert np.array_equal(merged[:, 0], both.sum(1))
    assert both.max() > 1
    for rule in ({"time_bins": 3}, {"event_count": 1000}):
        clipped, full = ToFrames(**rule, clip=True, dtype="float32")(events), ToFrames(**rule)(events)
        assert clipped.dtype == np.float32
        assert np.array_equal(clipped, np.minimum(full, 1))


def test_counts_do_not_wrap_where_tonics_do(backend):
    n = 70_000
    events = Events(np.arange(n), np.zeros(n, int), np.zeros(n, int), np.ones(n, int), (1, 1))
    assert ToFrames(time_bins=1)(events).max() == n
    assert ToFrames(event_bins=1, compat="tonic")(events).max() == n - 65536


def test_no_events_give_empty_frames(backend):
    nothing = Events([], [], [], [], (4, 3))
    assert ToFrames(time_bins=5)(nothing).shape == (5, 2, 3, 4)
    assert ToFrames(time_window=5)(nothing).shape == (1, 2, 3, 4)
    tonic = ToFrames(time_bins=5, compat="tonic")(nothing)
    assert (tonic.shape, tonic.dtype) == ((5, 2, 4, 3), np.float64)


@pytest.mark.parametrize("compat", [None, "tonic"])
@pytest.mark.parametrize("rule", [{"time_bins": 10}, {"event_bins": 5}], ids=str)
@pytest.mark.parametrize("time_major", [False, True])
def test_straight_from_bytes_is_decoding_then_framing(backend, recordings, compat, rule, time_major):
    to_frames = ToFrames(**rule, sensor_size=(34, 34), compat=compat)
    frames = frames_many(recordings, to_frames, time_major=time_major, threads=2)
    expected = [to_frames(decode_bin(r)) for r in recordings]
    assert np.array_equal(frames, np.stack(expected, 1 if time_major else 0))
    assert frames.dtype == to_frames.out_dtype


def test_straight_from_bytes_obeys_window_overlap_and_overflow_words(backend, make_events):
    data = bytearray(encode_bin(make_events(8, 300, last=100_000)))
    data[500:505] = bytes([0, 240, 0, 0, 0])
    for options in (
        {"time_bins": 4, "start_time": 20_000, "end_time": 70_000},
        {"time_bins": 4},
        {"time_bins": 4, "compat": "tonic", "overlap": 0.25},
        {"time_bins": 4, "compat": "tonic"},
        {"event_bins": 4, "compat": "tonic", "overlap": 0.25},
        {"time_bins": 4, "clip": True},
    ):
        to_frames = ToFrames(**options, sensor_size=(34, 34))
        assert np.array_equal(frames_from_bin(bytes(data), to_frames), to_frames(decode_bin(bytes(data))))


def test_paths_and_an_array_to_fill(backend, recordings, tmp_path):
    paths = [tmp_path / f"{i}.bin" for i in range(len(recordings))]
    for path, data in zip(paths, recordings, strict=True):
        path.write_bytes(data)
    to_frames = ToFrames(time_bins=3, sensor_size=(34, 34))
    out = np.full((5, 3, 2, 34, 34), 7, np.int32)
    assert frames_many(paths, to_frames, out=out) is out
    assert np.array_equal(out, frames_many(recordings, to_frames))
    with pytest.raises(SpikingError, match=r"frames_many: out: got shape \[5, 4, 2, 34, 34\]; expected \[5, 3"):
        frames_many(paths, to_frames, out=np.zeros((5, 4, 2, 34, 34), np.int32))
    with pytest.raises(SpikingError, match="out: got float32; expected int32"):
        frames_many(paths, to_frames, out=np.zeros((5, 3, 2, 34, 34), np.float32))


def test_a_bad_recording_among_many_is_named(backend, recordings, tmp_path):
    path = tmp_path / "cut.bin"
    path.write_bytes(recordings[1][:-3])
    to_frames = ToFrames(time_bins=3, sensor_size=(34, 34))
    with pytest.raises(SpikingError, match=r"cut\.bin: byte 250: got 2 of the 5 bytes"):
        frames_many([recordings[0], path], to_frames)
    with pytest.raises(SpikingError, match="recording 1: got 0 bytes without an event"):
        frames_many([recordings[0], b""], to_frames)
    with pytest.raises(SpikingError, match=r"recording 0: event 0 \(byte 0\): got x=33, y=0; expected x < 30"):
        frames_many([bytes([33, 0, 0, 0, 0])], ToFrames(time_bins=3, sensor_size=(30, 30)))
    with pytest.raises(SpikingError, match=r"recording 0: event 1 .*: got t=1 µs after 2"):
        frames_many([bytes([0, 0, 0, 0, 2, 0, 0, 0, 0, 1])], to_frames)


def test_the_rule_is_checked_when_it_is_given():
    for options, told in [
        ({}, "ToFrames: got no rule; expected exactly one of time_bins"),
        ({"time_bins": 1, "event_bins": 2}, "got time_bins and event_bins"),
        ({"time_bins": 0}, r"ToFrames\.time_bins: got 0; expected a whole number from 1"),
        ({"time_window": 2.5}, r"ToFrames\.time_window: got 2\.5"),
        ({"time_window": 0, "compat": "tonic"}, "time_window: got 0; expected more than 0"),
        ({"time_bins": 2, "compat": "sj"}, r"ToFrames\.compat: got 'sj'"),
        ({"time_bins": 2, "overlap": 0.1}, 'got overlap=0.1, .*compat="tonic"'),
        ({"event_bins": 2, "start_time": 1}, "got start_time or end_time with event_bins"),
        ({"time_bins": 2, "compat": "tonic", "overlap": 1}, "overlap: got 1; expected less than 1"),
        ({"time_window": 5, "compat": "tonic", "overlap": 5}, "overlap: got 5; expected less than 5"),
        ({"time_bins": 2, "compat": "tonic", "clip": True}, "got clip or dtype with compat"),
        ({"time_bins": 2, "sensor_size": (0, 4)}, r"ToFrames\.sensor_size: got \(0, 4\)"),
    ]:
        with pytest.raises(SpikingError, match=told):
            ToFrames(**options)


def test_the_events_are_checked_when_they_come(backend):
    events = Events([1, 2], [0, 40], [0, 0], [0, 1])
    with pytest.raises(SpikingError, match="sensor_size: got None for events that do not say"):
        ToFrames(time_bins=2)(events)
    for rule in RULES:
        with pytest.raises(SpikingError, match="ToFrames: event 1: got x=40, y=0; expected x < 34"):
            ToFrames(**rule, sensor_size=(34, 34))(events)
    with pytest.raises(SpikingError, match="got start 9 µs after end 2 µs"):
        ToFrames(time_window=3, start_time=9, sensor_size=(41, 1))(events)
    with pytest.raises(SpikingError, match="expected at most 2\\^33 values"):
        ToFrames(time_window=1, sensor_size=(34, 34))(Events([0, 2**40], [0, 0], [0, 0], [0, 0]))
    with pytest.raises(SpikingError, match=r"frames_many: got ToFrames.*expected time_bins"):
        frames_many([b""], ToFrames(time_window=3, sensor_size=(34, 34)))


def test_one_polarity_is_refused_where_tonic_refuses_it(make_events):
    with pytest.raises(SpikingError, match="got 1 polarity for events of both"):
        ToFrames(time_bins=2, sensor_size=(34, 34, 1), compat="tonic")(make_events(1))


def test_the_callers_events_stay_as_they_are(backend, make_events):
    array = make_events(4).to_structured()
    before = array.copy()
    ToFrames(time_bins=3, sensor_size=(34, 34, 1))(array)
    assert np.array_equal(array, before)


# Golden frames of tonic on real recordings.

TONIC_NAMES = {"n_time_bins": "time_bins", "n_event_bins": "event_bins"}


def test_tonics_frames_on_eight_recordings(backend, subset, golden, facts):
    frames = np.load(golden / "data" / "nmnist_frames.npz")
    settings_of = {
        "n_time_bins": {"time_bins": 10},
        "time_window": {"time_window": 20_000},
        "n_event_bins": {"event_bins": 5},
    }
    for name, entry in facts("nmnist.json").items():
        events = decode_bin(subset[name], sensor_size=(34, 34))
        for rule, options in settings_of.items():
            got = ToFrames(**options, compat="tonic")(events)
            assert got.dtype == np.int16
            assert np.array_equal(got, frames[f"{entry['index']}/{rule}"])
            if rule != "time_window":
                fused = frames_from_bin(subset[name], ToFrames(**options, compat="tonic", sensor_size=(34, 34)))
                assert np.array_equal(fused, got)


def check_frames(events, entries, digest):
    for entry in entries:
        options = {TONIC_NAMES.get(name, name): value for name, value in entry["args"].items()}
        got = ToFrames(**options, compat="tonic")(events)
        assert list(got.shape) == entry["shape"]
        assert got.sum((2, 3)).tolist() == entry["per_frame_per_polarity"]
        assert digest(got, "<i2") == entry["sha256_i16"]


def test_tonics_seven_settings_on_six_recordings(backend, subset, facts, digest):
    for name, expected in facts("nmnist_more.json").items():
        assert len(expected["frames"]) == 7
        check_frames(decode_bin(subset[name], sensor_size=(34, 34)), expected["frames"], digest)


@pytest.mark.parametrize("name", ["dvs-gesture-clips/1.bs2", "dvs-gesture-clips/5.bs2"])
def test_tonics_frames_on_gesture_clips(backend, shared, facts, digest, name):
    events = decode_bin(shared / "data" / name, sensor_size=(128, 128))
    check_frames(events, facts("formats.json")[name]["frames"], digest)


def test_the_compiled_functions_are_there_if_a_compiler_was():
    import importlib.util

    built = importlib.util.find_spec("spiking.cuda_kernels._cpu") is not None
    assert (_kernels._compiled is not None) == built


@PROPERTY
@given(
    rule=st.sampled_from(["time_bins", "event_bins", "time_window", "event_count"]), size=st.integers(1, 60),
    overlap=st.sampled_from([0, 0.1, 0.5]), incomplete=st.booleans(), n=st.integers(1, 120), seed=st.integers(0, 50),
)  # fmt: skip
def test_tonic_agrees_where_it_is_installed(make_events, rule, size, overlap, incomplete, n, seed):
    transforms = pytest.importorskip("tonic.transforms", reason="tonic is not installed")
    whole = rule in ("time_window", "event_count")
    value = size * 50 if rule == "time_window" else size
    options = {"overlap": int(overlap * value) if whole else overlap, "include_incomplete": incomplete and whole}
    names = {"time_bins": "n_time_bins", "event_bins": "n_event_bins"}
    events = make_events(seed, n, last=3000)
    theirs = transforms.ToFrame((34, 34, 2), **{names.get(rule, rule): value}, **options)(events.to_structured())
    assert np.array_equal(ToFrames(**{rule: value}, **options, compat="tonic")(events), theirs)
