"""Traces that are written while they are recorded."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spiking
from spiking import EventTrace
from spiking.errors import SpikingError


def network() -> nn.Module:
    torch.manual_seed(0)
    return spiking.Sequential(spiking.Linear(50, 40), spiking.LIF(threshold=0.1), spiking.Linear(40, 3))


def spikes(batch: int, seed: int, rate: float = 0.3) -> Tensor:
    return (torch.rand(4, batch, 50, generator=torch.Generator().manual_seed(seed)) < rate).float()


def record_to(path: Path | None, passes: list[Tensor]) -> EventTrace:
    net = network()
    with torch.no_grad(), spiking.record(net, events=True, to=path) as trace:
        for x in passes:
            net(x)
    return trace


def test_a_file_written_while_recording_is_the_one_saved_afterwards(tmp_path):
    passes = [spikes(3, 0), spikes(2, 1), spikes(5, 2)]
    trace = record_to(tmp_path / "now.h5", passes)
    assert all(row.events is None for row in trace.layers)
    record_to(None, passes).save(tmp_path / "later.h5")
    now, later = (EventTrace.load(tmp_path / name) for name in ("now.h5", "later.h5"))
    assert now.n_samples == later.n_samples == 10
    for mine, other in zip(now.layers, later.layers, strict=True):
        for counter, values in mine.counts.items():
            np.testing.assert_array_equal(values, other.counts[counter])
        np.testing.assert_array_equal(mine.syn_sample, other.syn_sample)
        assert (mine.events is None) == (other.events is None)
        if mine.events is not None:
            for part in ("sample", "step", "index", "value"):
                np.testing.assert_array_equal(getattr(mine.events, part), getattr(other.events, part))
    assert now["0"].events is not None
    assert len(now["0"].events) == sum(int(x.sum()) for x in passes)


def test_values_that_come_late_fill_the_events_before_them_with_ones(tmp_path):
    passes = [spikes(2, 0), spikes(2, 1) / 2, spikes(1, 2)]
    record_to(tmp_path / "run.h5", passes)
    events = EventTrace.load(tmp_path / "run.h5")["0"].events
    assert events is not None
    counts = [int((x != 0).sum()) for x in passes]
    assert events.value.tolist() == [1.0] * counts[0] + [0.5] * counts[1] + [1.0] * counts[2]


def test_passes_without_events_leave_a_file_that_can_be_read(tmp_path):
    record_to(tmp_path / "run.h5", [spikes(2, 0) * 0, spikes(2, 1)])
    events = EventTrace.load(tmp_path / "run.h5")["0"].events
    assert events is not None
    assert set(events.sample.tolist()) == {2, 3}


def test_a_run_that_fails_leaves_no_file_and_the_older_one(tmp_path):
    path = tmp_path / "run.h5"
    record_to(path, [spikes(2, 0)])
    before = path.read_bytes()
    with pytest.raises(SpikingError, match="50 features"):
        record_to(path, [spikes(2, 0), torch.zeros(4, 1, 7)])
    with pytest.raises(SpikingError, match=r"run.h5: got a trace of zero samples"):
        record_to(path, [])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.h5"]


def test_a_file_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(SpikingError, match=r"missing/run\.h5': the trace cannot be written"):
        record_to(tmp_path / "missing" / "run.h5", [spikes(2, 0)])


def test_more_events_than_a_file_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("spiking._tracefile._MAX_BYTES", 400)
    with pytest.raises(SpikingError, match=r"run.h5: layer 0: got more than 100 events"):
        record_to(tmp_path / "run.h5", [spikes(4, 0)])
    assert not [*tmp_path.iterdir()]


def peak(path: Path | None, passes: int) -> int:
    """Bytes that Python and numpy held at most, beyond what they held before."""
    x = (torch.rand(80, 10, 50, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    record_to(path, [x])
    tracemalloc.start()
    try:
        record_to(path, [x] * passes)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_length_of_the_run(tmp_path):
    events = 80 * 10 * 50 * 0.3 * 12  # bytes of one pass, at least
    assert peak(tmp_path / "run.h5", 24) < peak(tmp_path / "run.h5", 4) + 2 * events
    assert peak(None, 24) > peak(None, 4) + 15 * events
