"""The benchmark cases: what they count, and that every one of them runs."""

import pytest
import torch
from spiking.benchmarks.cases import lif


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


def test_views_and_the_input_are_not_counted_twice():
    x = torch.ones(4, 8, requires_grad=True)
    assert lif.kept_bytes(lambda x: x * x, x) == 0
    assert lif.kept_bytes(lambda x: torch.stack([(x + 1)[i] * x[i] for i in range(4)]), x) == 4 * x.numel() * 4
    y = torch.ones(4, 8)
    assert lif.kept_bytes(lambda x: x[0] * y[0] + x[1] * y[1], x) == pytest.approx(4 * y.numel())
