"""Many recordings in one store: decoding, choosing, and framing through maps of the pixels."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spiking.datasets import Events, RaggedEvents, ToFrames, _kernels, decode_many
from spiking.datasets.events import decode_bin, encode_bin

from spiking.errors import SpikingError

PROPERTY = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def store(recordings):
    return decode_many(recordings, labels=range(5))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_store_holds_what_each_recording_decodes_to(backend, recordings, threads, tmp_path):
    path = tmp_path / "first.bin"
    path.write_bytes(recordings[0])
    store = decode_many([path, *recordings[1:]], threads=threads)
    assert len(store) == 5
    for i, recording in enumerate(recordings):
        assert store[i] == decode_bin(recording)
    assert store[-1] == store[4]
    with pytest.raises(IndexError):
        store[5]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_decodes_after_its_parent_used_threads():
    """OpenMP hangs in a child that enters a parallel region; the child has to stay on one thread."""
    code = """
        import os, signal
        from spiking.datasets import ToFrames, decode_many
        from spiking.datasets.frames import frames_many
        recordings = [bytes([1, 2, 0, 0, 3])] * 64
        rule = ToFrames(time_bins=2, sensor_size=(34, 34))
        def work():
            store = decode_many(recordings, threads=2)
            return len(store.t) + store.frames(time_bins=2, threads=2).sum() + frames_many(recordings, rule, threads=2).sum()
        assert work() == 192
        child = os.fork()
        if child == 0:
            signal.alarm(40)  # a child that hangs dies, and fails the test
            os._exit(0 if work() == 192 else 1)
        print(os.waitpid(child, 0)[1])
        """
    command = [sys.executable, "-P", "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == "0\n"


def test_overflow_words_leave_no_gaps(backend, recordings):
    odd = recordings[1][:50] + bytes([0, 240, 0, 0, 0]) + recordings[1][50:]
    store = decode_many([odd, recordings[2], odd])
    assert [len(store[i]) for i in range(3)] == [51, 101, 51]
    assert store[0] == store[2] == decode_bin(odd)
    assert store[1] == decode_bin(recordings[2])


def test_a_bad_recording_is_named(backend, recordings, tmp_path):
    path = tmp_path / "cut.bin"
    path.write_bytes(recordings[1][:-1])
    with pytest.raises(SpikingError, match=r"cut\.bin: byte 250: got 4 of the 5"):
        decode_many([recordings[0], path])
    with pytest.raises(SpikingError, match="recording 1: got 0 bytes"):
        decode_many([recordings[0], b""])
    with pytest.raises(SpikingError, match=r"recording 0: event 0 .* got x=34"):
        decode_many([bytes([34, 0, 0, 0, 0])])
    with pytest.raises(SpikingError, match=r"recording 0: event 1 .*: got t=1 µs after 2"):
        decode_many([bytes([0, 0, 0, 0, 2, 0, 0, 0, 0, 1])])


def test_choosing_and_joining(store):
    some = store.select([3, 0])
    assert some[0] == store[3]
    assert some.labels.tolist() == [3, 0]
    assert store.select(np.array([False, True, False, False, True])).labels.tolist() == [1, 4]
    joined = RaggedEvents.concatenate([some, store])
    assert len(joined) == 7
    assert joined[2] == store[0]
    assert joined.labels.tolist() == [3, 0, 0, 1, 2, 3, 4]
    assert len(store.select([])) == 0
    with pytest.raises(SpikingError, match="got recording 5; expected 0 to 4"):
        store.select([5])
    with pytest.raises(SpikingError, match="got indices of float64"):
        store.select([0.5])


def test_a_store_is_checked_when_it_is_made(make_events):
    event = np.zeros(2, int)
    with pytest.raises(SpikingError, match=r"RaggedEvents\.offsets: got 2 numbers ending with 3 for 2 events"):
        RaggedEvents(event, event, event, event, [0, 3], (34, 34))
    with pytest.raises(SpikingError, match=r"RaggedEvents\.labels: got 2 for 1 recordings"):
        RaggedEvents(event, event, event, event, [0, 2], (34, 34), [1, 2])
    with pytest.raises(SpikingError, match="sensor_size: got None"):
        RaggedEvents.from_events([Events([1], [1], [1], [1])])
    with pytest.raises(SpikingError, match="recording 0: got t=2147483648 µs"):
        RaggedEvents.from_events([Events([2**31], [1], [1], [1], (34, 34))])
    with pytest.raises(SpikingError, match="recording 1: event 0: got x=33"):
        RaggedEvents.from_events([Events([1], [1], [1], [1]), Events([1], [33], [1], [1])], sensor_size=(33, 33))
    with pytest.raises(SpikingError, match="expected stores of one sensor"):
        RaggedEvents.concatenate([])
    assert RaggedEvents.from_events([make_events(1), make_events(2)], [1, 2])[1] == make_events(2)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int16])
@pytest.mark.parametrize("threads", [1, 2])
def test_frames_are_those_of_each_recording(backend, store, dtype, threads):
    frames = store.frames(time_bins=4, dtype=dtype, threads=threads)
    assert frames.dtype == dtype
    for i in range(5):
        assert np.array_equal(frames[i], ToFrames(time_bins=4)(store[i]))
    chosen = store.frames([4, 1, 4], time_bins=4, time_major=True)
    assert np.array_equal(chosen, frames[[4, 1, 4]].swapaxes(0, 1))
    merged = store.frames(time_bins=4, merge_polarity=True)
    assert np.array_equal(merged, frames.sum(2, keepdims=True))
    assert np.array_equal(store.frames(time_bins=4, clip=True), np.minimum(frames, 1))
    by_events = store.frames(time_bins=3, by_events=True)
    assert np.array_equal(by_events[2], ToFrames(event_bins=3)(store[2]))
    window = store.frames(time_bins=3, t_window=(50_000, 200_000))
    assert np.array_equal(window[3], ToFrames(time_bins=3, start_time=50_000, end_time=200_000)(store[3]))


def test_a_larger_output_leaves_a_margin(backend, store):
    frames = store.frames(time_bins=2, out_size=(40, 36))
    assert frames.shape == (5, 2, 2, 36, 40)
    assert np.array_equal(frames[..., :34, :34], store.frames(time_bins=2))
    assert frames.sum() == len(store.t)
    with pytest.raises(SpikingError, match="out_size: got 30×34 for a sensor of 34×34"):
        store.frames(time_bins=2, out_size=(30, 34))


def test_maps_that_are_known_by_heart(backend, store):
    plain = store.frames(time_bins=3)
    assert np.array_equal(store.frames(time_bins=3, affine=[[1, 0, 0], [0, 1, 0]]), plain)
    shifted = store.frames(time_bins=3, affine=[[1, 0, 2], [0, 1, -1]])
    assert np.array_equal(shifted[..., :33, 2:], plain[..., 1:, :32])
    assert not shifted[..., :2].any()
    assert np.array_equal(store.frames(time_bins=3, affine=[[-1, 0, 33], [0, 1, 0]]), plain[..., ::-1])
    assert np.array_equal(store.frames(time_bins=3, affine=[[0, 1, 0], [1, 0, 0]]), plain.swapaxes(3, 4))
    halved = store.frames(time_bins=3, affine=[[0.5, 0, -0.25], [0, 0.5, -0.25]], out_size=(17, 17))
    assert np.array_equal(halved, plain.reshape(5, 3, 2, 17, 2, 17, 2).sum((4, 6)))
    assert not store.frames(time_bins=3, affine=np.full((2, 3), np.nan)).any()
    own = store.frames([1, 2], time_bins=3, affine=[[[1, 0, 2], [0, 1, -1]], [[1, 0, 0], [0, 1, 0]]])
    assert np.array_equal(own, np.stack([shifted[1], plain[2]]))


numbers = st.floats(-3, 3, allow_nan=False)


@PROPERTY
@given(
    affine=st.lists(numbers, min_size=6, max_size=6), shift=st.floats(-40, 40), bins=st.integers(1, 6),
    clip=st.booleans(), channels=st.sampled_from([1, 2]), seed=st.integers(0, 20),
)  # fmt: skip
def test_compiled_and_plain_maps_agree(make_events, affine, shift, bins, clip, channels, seed):
    events = make_events(seed, 200)
    store = RaggedEvents.from_events([events, events[:7]])
    maps = np.array(affine).reshape(2, 3) + np.array([[0, 0, shift], [0, 0, -shift]])
    options = {"time_bins": bins, "affine": maps, "clip": clip, "merge_polarity": channels == 1, "out_size": (20, 30)}
    got = store.frames(**options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_kernels, "_compiled", None)
        assert np.array_equal(got, store.frames(**options))


def test_a_constant_warp_is_a_shift_and_none_changes_nothing(backend, store):
    identity = [[1, 0, 0], [0, 1, 0]]
    still = np.zeros((5, 2, 3, 3))
    moved = np.broadcast_to(np.array([2.0, -1.0])[None, :, None, None], still.shape)
    assert np.array_equal(store.frames(time_bins=3, affine=identity, warp=still), store.frames(time_bins=3))
    shifted = store.frames(time_bins=3, affine=[[1, 0, 2], [0, 1, -1]])
    assert np.array_equal(store.frames(time_bins=3, affine=identity, warp=moved), shifted)


@PROPERTY
@given(size=st.sampled_from([7, 2000]), knots=st.integers(2, 6), seed=st.integers(0, 50))
def test_compiled_and_plain_warps_agree(make_events, size, knots, seed):
    """Sizes on both sides of the number of pixels: mapped event by event, and through a table."""
    store = RaggedEvents.from_events([make_events(seed, size)])
    rng = np.random.default_rng(seed)
    options = {
        "time_bins": 3,
        "affine": np.eye(2, 3) + rng.normal(0, 0.2, (2, 3)),
        "warp": rng.normal(0, 2, (1, 2, knots, knots)),
        "out_size": (20, 30),
    }
    got = store.frames(**options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_kernels, "_compiled", None)
        assert np.array_equal(got, store.frames(**options))


def test_arguments_are_checked(store):
    with pytest.raises(SpikingError, match=r"warp: got shape \[5, 2, 1, 1\]; expected \[5, 2, K, K\] with K >= 2"):
        store.frames(time_bins=2, affine=np.eye(2, 3), warp=np.zeros((5, 2, 1, 1)))
    with pytest.raises(SpikingError, match=r"warp: .* beside an affine map"):
        store.frames(time_bins=2, warp=np.zeros((5, 2, 3, 3)))
    with pytest.raises(SpikingError, match=r"affine: got shape \[3, 2\]; expected \[2, 3\] or \[5, 2, 3\]"):
        store.frames(time_bins=2, affine=np.zeros((3, 2)))
    with pytest.raises(SpikingError, match="time_bins: got 0"):
        store.frames(time_bins=0)
    with pytest.raises(SpikingError, match=r"t_window: got \(5, 4\)"):
        store.frames(time_bins=2, t_window=(5, 4))
    with pytest.raises(SpikingError, match="t_window: got 5; expected \\(start, end\\)"):
        store.frames(time_bins=2, t_window=5)
    with pytest.raises(SpikingError, match="dtype: got float64"):
        store.frames(time_bins=2, dtype=float)
    with pytest.raises(SpikingError, match="expected at most 2\\^33 values"):
        store.frames(time_bins=1 << 20)
    store.x[0] = 99
    with pytest.raises(SpikingError, match="recording 0: event 0: got x=99"):
        store.frames(time_bins=2)


def test_all_real_recordings(subset):
    store = decode_many(list(subset.values()), threads=2)
    assert len(store.t) == 3_687_547
    counts = np.diff(store.offsets)
    assert (counts.min(), counts.max(), np.median(counts)) == (1069, 7152, 4143)
    assert (int(store.x.max()), int(store.y.max())) == (33, 33)
    last = store.t[store.offsets[1:] - 1]
    assert (last.min(), last.max()) == (296_841, 336_040)
    assert store.frames(time_bins=3, dtype=np.int32).sum() == 3_687_547


def test_encoding_a_store_gives_the_bytes_back(backend, recordings):
    store = decode_many(recordings)
    assert [encode_bin(store[i]) for i in range(5)] == recordings
