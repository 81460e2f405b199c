"""The benchmark cases: what they count, and that every one of them runs."""

import copy
import math

import pytest
import torch
from spiking.benchmarks import density, event_cuda, peers, training_step
from spiking.benchmarks.cases import estimate, event_conv, event_linear, lif, lsm, train_conv, train_mlp, wkv
from spiking.benchmarks.run import Row, draw, run
from spiking.cuda_kernels import event_conv_ops, event_linear_ops
from torch.testing import assert_close

import spiking
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


def test_the_wkv_case_compares_with_a_loop_and_the_memory():
    rows = list(wkv.rows(quick=True, device="cpu"))
    assert {row.what for row in rows} == {wkv.OURS, wkv.LOOP, wkv.FLOOR}
    forward, both = wkv.summary(rows)
    assert forward.startswith("T=128 B=2 C=32 forward: ")
    assert f"× as fast as {wkv.LOOP}" in both


def test_the_lsm_case_compares_spikes_before_it_times(monkeypatch):
    monkeypatch.setattr(lsm, "QUICK", lsm.QUICK[:1])
    rows = {row.what: row for row in lsm.rows(quick=True, device="cpu")}
    assert rows[lsm.OURS].note.endswith("spikes per neuron and step")
    assert rows[lsm.LOOP].note == "0.0e+00 of spikes differ"
    (line,) = lsm.summary([Row("lsm", lsm.OURS, [1e-3], None, "g"), Row("lsm", lsm.BRIAN, [3e-2], lsm.OURS, "g")])
    assert line == "g: 1.00 ms; as fast as 30× brian2 (targets 10×, Brian2 20×)"
    reset = lsm._torch
    monkeypatch.setattr(lsm, "_torch", lambda: lambda current, state: (reset()(current, None)[0], None))
    with pytest.raises(AssertionError, match="torch loop gives other spikes"):
        lsm.check()


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


def _density_rows(case):
    """Dense takes 8 ms whatever the density; the event-driven kernel 1 ms and 0.1 ms a spike."""
    rows = []
    for share in (0.1, 0.2):
        group = density.group("3 × 4→5", share)
        rows += [Row(case, "dense", [8e-3], None, group), Row(case, "event", [1e-3 + share / 100], "dense", group)]
    rows += [Row(case, f"{n}", [1e-3 + n * 1e-4], None, "fit 3 × 4→5", f"{n} spikes") for n in (10, 20, 40)]
    return rows


def test_the_answers_over_densities():
    rows, pair = _density_rows("c"), density.Pair("dense", "event")
    assert density.speedups(rows, [pair], lambda shape, share: 3.4 if share == 0.1 else None) == [
        "3 × 4→5, against dense: 10 %: 4.0× (target 3.4), 20 %: 2.7×"
    ]
    assert density.fits(rows) == ["3 × 4→5: 1e+03 µs + 1e+05 ns a spike from 1 to 30 %, R² = 1.0000 (target 0.98)"]


@pytest.mark.parametrize(
    ("dense", "auto", "said"),
    [
        (10e-3, 10.2e-3, "+200.0 µs (+2.0 %) beside dense, within the limit of 3 %"),
        (10e-3, 10.4e-3, "+400.0 µs (+4.0 %) beside dense, OVER the limit of 3 %"),
        (0.1e-3, 0.11e-3, "+10.0 µs (+10.0 %) beside dense, within the limit of 15 µs"),
        (0.1e-3, 0.12e-3, "+20.0 µs (+20.0 %) beside dense, OVER the limit of 15 µs"),
    ],
)
def test_what_choosing_may_cost(dense, auto, said):
    rows = [Row("c", "dense", [dense], None, "worst case 1"), Row("c", "auto", [auto], "dense", "worst case 1")]
    assert density.overheads(rows) == [f"worst case 1: auto takes {said}"]


def test_figures_are_drawn_for_cases_that_have_one(tmp_path):
    names = {"dense": event_conv.PAIRS[1].dense, "event": event_conv.PAIRS[1].event}
    rows = [
        Row(row.case, names.get(row.what, row.what), row.seconds, row.reference, row.group, row.note)
        for row in _density_rows(event_conv.NAME)
    ]
    made = draw([*rows, Row("lif", "spiking", [1.0])], str(tmp_path / "new"))
    assert [path.rsplit("/", 1)[1] for path in made] == ["event_conv.png", "event_conv.svg"]
    assert "3 × 4→5" in "".join(event_conv.figure(rows).axes[0].get_legend_handles_labels()[1])
    assert (tmp_path / "new" / "event_conv.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("case", [train_mlp, train_conv], ids=lambda case: case.NAME)
def test_a_training_step_is_compared_with_ourselves_where_no_peer_is(case, monkeypatch):
    monkeypatch.setattr(training_step.peers, "installed", dict)
    monkeypatch.setattr(training_step.Contest, "peak_megabytes", lambda self, name, quick: 1.0)
    rows = list(case.rows(True, "cpu"))
    assert {row.what for row in rows} == {training_step.OURS, training_step.DENSE}
    for row in rows:
        assert "0e+00 from ours" in row.note or "e-1" in row.note  # 20 losses in float64, equal to rounding
    assert len(case.summary(rows)) == len({row.group for row in rows})


def test_training_steps_against_peers_and_their_memory():
    times = {training_step.OURS: (1.0, 40), training_step.DENSE: (2.0, 70), "snntorch": (5.0, 90), "sinabs": (4.0, 120)}
    rows = [Row("c", what, [s], None, "g", f"x; peak {peak} MB") for what, (s, peak) in times.items()]
    assert training_step.summary(rows, 2.0) == [
        "g: against the same network with dense products: 2.0×",
        "g: against the fastest peer (sinabs): 4.0× (target 2×)",
        "g: peak memory 40.0 MB, 0.44 of the leanest peer's (snntorch; target 0.50)",
    ]


def test_peers_run_among_torchs_own_layers(monkeypatch):
    net = spiking.Sequential(spiking.Conv2d(2, 3, 3), spiking.LIF(), spiking.Flatten(), spiking.Linear(3 * 16, 2))
    x = torch.rand(4, 2, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    theirs = peers.with_neurons(copy.deepcopy(net), lambda beta: torch.nn.Identity())
    ours = peers.with_neurons(copy.deepcopy(net), lambda beta: torch.nn.Identity(), own_layers=True)
    assert_close(theirs(x), ours(x))

    def refuse(*arguments):
        raise AssertionError("an event-driven kernel was asked")

    monkeypatch.setattr(event_conv_ops, "conv2d", refuse)
    monkeypatch.setattr(event_linear_ops, "linear", refuse)
    with pytest.raises(AssertionError):
        ours(x)
    theirs(x)
