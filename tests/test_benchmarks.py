"""The benchmark cases: what they count, and that every one of them runs."""

import math

import pytest
import torch
from spiking.benchmarks import event_cuda
from spiking.benchmarks.cases import estimate, event_linear, lif
from spiking.benchmarks.run import Row, run

from spiking import hw_models
from spiking.errors import SpikingError


def test_the_lif_case_prints_the_bytes_kept_for_the_backward_pass(monkeypatch):
    monkeypatch.setattr(lif, "QUICK", ((64, 100),))
    rows = list(lif.rows(quick=True, device="cpu"))
    notes = {row.what: row.note for row in rows}
    assert notes["spiking"] == "keeps 4.00 bytes"
    assert notes["spiking, half"] == "keeps 2.00 bytes"
    assert (
        notes["spiking, recompute"] == "keeps 0.19 bytes"
    )  # three of four borders between chunks of 16 steps, 4 bytes each
    assert notes[lif.FLOOR] == ""
    line = lif.summary(rows)[-1]
    assert line.startswith("kept for the backward pass per neuron and step, beyond the input: spiking: 4.00 bytes, ")
    assert "spiking, recompute: 0.19 bytes" in line


def test_the_estimate_case_prices_every_chip_and_states_the_peak():
    rows = {row.what: row for row in estimate.rows(quick=True, device="cpu")}
    assert set(rows) == {estimate.LOAD, estimate.ALL, *hw_models.available()}
    assert float(rows[estimate.ALL].group.split()[0]) * 1e6 >= estimate.QUICK
    assert rows[estimate.ALL].median >= rows["loihi"].median > 0
    (line,) = estimate.summary([*rows.values()])
    assert f"{len(hw_models.available())} chips, peak " in line


def test_views_and_the_input_are_not_counted_twice():
    x = torch.ones(4, 8, requires_grad=True)
    assert lif.kept_bytes(lambda x: x * x, x) == 0
    assert lif.kept_bytes(lambda x: torch.stack([(x + 1)[i] * x[i] for i in range(4)]), x) == 4 * x.numel() * 4
    y = torch.ones(4, 8)
    assert lif.kept_bytes(lambda x: x[0] * y[0] + x[1] * y[1], x) == pytest.approx(4 * y.numel())


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_the_cuda_rows_are_left_out_with_a_reason(capsys):
    assert list(event_linear.rows(True, "cuda")) == []
    assert capsys.readouterr().err == "bench: event_linear is left out on cuda: torch sees no CUDA device\n"
    assert event_linear.summary([]) == []
    with pytest.raises(SpikingError, match="got --device cuda, but torch sees no CUDA device"):
        run(["event_linear"], quick=True, device="cuda")


def test_the_cuda_summary_compares_with_dense_and_with_the_published_figure():
    group = "cuda float32 512 × 4096→4096, 1 %"
    times = {event_cuda.DENSE: 3e-3, event_cuda.EVENT: 1e-3, event_cuda.TWO: 2e-5, event_cuda.FUSED: 1e-5}
    (line,) = event_linear.summary([Row("event_linear", what, [s], None, group) for what, s in times.items()])
    assert line.startswith(
        f"{group}: F.event_linear 1.000 against 3.000 ms, 3.0×; one kernel 0.010 against 0.020 ms, 2.0×"
    )
    assert line.endswith("(a published kernel, on another card: 0.367 against 1.083 ms dense, 3.0×)")


@pytest.mark.gpu
@pytest.mark.skipif(event_cuda.why_not() is not None, reason=str(event_cuda.why_not()))
def test_the_cuda_rows_on_a_device():
    rows = list(event_linear.rows(True, "cuda"))
    assert {row.what for row in rows} >= {event_cuda.DENSE, event_cuda.EVENT, event_cuda.FUSED}
    assert all(math.isfinite(row.median) for row in rows)
    assert len(event_linear.summary(rows)) == 4
