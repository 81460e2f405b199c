"""What a trace holds on request, and operations between layers: events, row blocks, additions, products, older files."""

from typing import Any

import h5py
import numpy as np
import pytest
import torch
from golden_nets import Frames, Neuron
from torch import Tensor, nn

import spiking
from spiking import EventTrace, record
from spiking.errors import SpikingError
from spiking.trace import Events


def binary(*shape: int, rate: float = 0.3, seed: int = 0) -> Tensor:
    """Random spikes."""
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def trace_of(model: nn.Module, *inputs: Tensor, **options: Any) -> EventTrace:
    """The trace of one pass per input."""
    with record(model, **options) as trace, torch.no_grad():
        for x in inputs:
            model(x)
    return trace


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        Frames(nn.Conv2d(2, 3, 3, padding=1)), spiking.LIF(threshold=0.2), Frames(nn.AvgPool2d(2)), nn.Flatten(2),
        nn.Linear(27, 5), spiking.LIF(threshold=0.1), nn.Linear(5, 2),
    )  # fmt: skip


# events


def test_events_are_where_the_spikes_were(net):
    x = binary(4, 3, 2, 6, 6)
    trace = trace_of(net, x, events=True)
    for row, expected in ((trace["0.layer"], x), (trace["1"], net[:2](x)), (trace["5"], net[:6](x))):
        events = row.events
        assert events is not None
        flat = expected.transpose(0, 1).flatten(2)  # [B, T, elements]
        sample, step, index = (flat != 0).nonzero(as_tuple=True)
        assert events.sample.tolist() == sample.tolist()
        assert events.step.tolist() == step.tolist()
        assert events.index.tolist() == index.tolist()
        assert len(events) == int(row.counts["spikes" if row.kind == "neuron" else "in_nnz"].sum())
        assert not events.value.size
    pooled = trace["4"].events
    assert set(pooled.value.tolist()) <= {0.25, 0.5, 0.75, 1.0}
    assert trace["6"].events is None  # they are those of the neurons before it
    assert trace.spike_matrix(trace["6"]).sum() == trace["6"].counts["in_nnz"].sum()
    assert trace.spike_matrix(trace["1"]).shape == (12, 108)
    plain = trace_of(net, x)
    assert all(row.events is None for row in plain.layers)
    assert plain.spike_matrix(plain["6"]) is None


def test_events_of_several_passes_count_the_samples_on(net):
    x = binary(4, 6, 2, 6, 6)
    whole = trace_of(net, x, events=True)
    parts = trace_of(net, x[:, :2], x[:, 2:], events=True)
    merged = EventTrace.merge([trace_of(net, part, events=True) for part in (x[:, :2], x[:, 2:])])
    for row in whole.layers:
        if row.events is not None:
            for other in (parts, merged):
                for name in ("sample", "step", "index", "value"):
                    np.testing.assert_array_equal(getattr(row.events, name), getattr(other[row.name].events, name))


def test_joining_events_with_and_without_values_keeps_both():
    one = np.zeros(2, np.uint32)
    plain, graded = Events(one, one, one), Events(one, one, one, np.array([2.0, 3.0], np.float32))
    assert plain.followed_by(graded, 4).value.tolist() == [1, 1, 2, 3]
    assert graded.followed_by(plain, 4).value.tolist() == [2, 3, 1, 1]
    assert plain.followed_by(plain, 4).sample.tolist() == [0, 0, 4, 4]


def test_steps_one_by_one_give_the_same_events():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)

    class Stepwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.layer(step) for step in x])

    x = binary(5, 3, 6)
    a, b = (trace_of(m, x, events=True).layers[0].events for m in (layer, Stepwise()))
    for name in ("sample", "step", "index"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# additions and products


class Residual(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.lif, self.second = nn.Linear(6, 6), Neuron(threshold=0.2), nn.Linear(6, 6)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        s = self.lif(self.first(x))
        if self.how == "operator":
            y = s + x
        elif self.how == "function":
            y = torch.add(s, x)
        elif self.how == "method":
            y = s.add(x)
        elif self.how == "in place":
            s += x
            y = s
        elif self.how == "bias":
            y = s + torch.ones(6)
        elif self.how == "membrane":
            y = self.second(s) + self.first(x)
        else:
            y = s * x
        return self.second(y) if self.how != "membrane" else y


@pytest.mark.parametrize("how", ["operator", "function", "method", "in place"])
def test_residual_additions_are_counted(how):
    model, x = Residual(how), binary(4, 2, 6)
    trace = trace_of(model, x)
    row = trace["lif+(input)"]
    with torch.no_grad():
        spikes = model.lif(model.first(x))
    assert row.counts["add_ops"].tolist() == [12] * 4
    assert row.counts["add_ops_event"].tolist() == ((spikes != 0) & (x != 0)).flatten(1).sum(1).tolist()
    assert row.operand_of == ("lif", "(input)")
    assert trace["second"].operand_of == ("lif+(input)",)
    assert trace["second"].operand_class in ("graded", "binary")


def test_membrane_shortcuts_are_additions_too():
    trace = trace_of(Residual("membrane"), binary(4, 2, 6))
    assert trace["second+first#2"].counts["add_ops"].sum() == 4 * 12


@pytest.mark.parametrize("how", ["bias", "product"])
def test_other_operations_are_no_additions(how):
    assert not [row for row in trace_of(Residual(how), binary(4, 2, 6)).layers if row.kind == "add"]


def test_additions_inside_a_neuron_are_its_own():
    trace = trace_of(nn.Sequential(nn.Linear(6, 4), Neuron()), binary(5, 2, 6))
    assert [row.kind for row in trace.layers] == ["linear", "neuron"]


def test_recording_additions_changes_nothing():
    model, x = Residual("in place"), binary(4, 2, 6)
    with torch.no_grad():
        plain = model(x)
        with record(model):
            watched = model(x)
    assert torch.equal(plain, watched)


def test_a_model_that_fails_leaves_nothing_watching():
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("as it does")

    model = Fails()
    with pytest.raises(RuntimeError, match="as it does"), record(model):
        model(torch.ones(1, 1, 3))
    assert torch._C._len_torch_function_stack() == 0


def test_products_of_activations_are_counted_by_brute_force():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q, self.k, self.v = (nn.Linear(5, 4) for _ in range(3))
            self.q_lif, self.k_lif = Neuron(threshold=-0.1), Neuron(threshold=-0.1)

        def forward(self, x: Tensor) -> Tensor:
            scores = self.q_lif(self.q(x)) @ self.k_lif(self.k(x)).transpose(-1, -2)
            return torch.matmul(scores, self.v(x))

    model, x = Attention(), binary(3, 2, 6, 5)
    trace = trace_of(model, x)
    with torch.no_grad():
        q, k = model.q_lif(model.q(x)), model.k_lif(model.k(x))
    scores, mixed = (row for row in trace.layers if row.kind == "matmul")
    assert scores.counts["and_ops"].tolist() == torch.einsum("tbik,tbjk->t", q, k).long().tolist()
    assert scores.counts["syn"].tolist() == (q.flatten(1).sum(1) * 6).long().tolist()
    assert scores.counts["syn_eff"].tolist() == (k.flatten(1).sum(1) * 6).long().tolist()
    assert scores.ac.tolist() == scores.counts["and_ops"].tolist()
    assert (scores.name, scores.dense, scores.out_shape) == ("q_lif@k_lif", 6 * 6 * 4, (6, 6))
    assert mixed.mac.tolist() == [2 * 6 * 6 * 4] * 3  # counts times floats
    assert not mixed.ac.any()


def test_one_side_of_spikes_needs_additions_only():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.lif = nn.Linear(5, 4), nn.Linear(5, 4), Neuron(threshold=0.2)

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(self.a(x)) @ self.b(x).transpose(-1, -2)

    model, x = Half(), binary(3, 2, 6, 5)
    row = next(r for r in trace_of(model, x).layers if r.kind == "matmul")
    with torch.no_grad():
        spikes = model.lif(model.a(x))
    assert row.ac.tolist() == (spikes.flatten(1).sum(1) * 6).long().tolist()
    assert not row.mac.any()


# static facts and files


def test_rows_of_the_weight_matrix_have_their_magnitudes():
    conv = nn.Conv2d(4, 6, 3, groups=2)
    row = trace_of(Frames(conv), binary(1, 1, 4, 5, 5)).layers[0]
    w = conv.weight.detach().abs()
    expected = torch.cat([w[:3].sum(0).flatten(), w[3:].sum(0).flatten()])
    np.testing.assert_allclose(row.row_abs_w, expected.numpy(), rtol=1e-6)
    turned = nn.ConvTranspose1d(4, 6, 3, groups=2)
    row = trace_of(Frames(turned), binary(1, 1, 4, 5)).layers[0]
    w = turned.weight.detach().abs()  # [inputs, outputs of a group, kernel]
    expected = torch.cat([w[:2].sum(1).flatten(), w[2:].sum(1).flatten()])
    np.testing.assert_allclose(row.row_abs_w, expected.numpy(), rtol=1e-6)


def test_details_survive_the_file(net, tmp_path):
    trace = trace_of(net, binary(4, 3, 2, 6, 6), events=True, active_rows=True)
    trace.save(tmp_path / "run.h5")
    back = EventTrace.load(tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        assert file.attrs["mode"] == "events"
    for row in trace.layers:
        other = back[row.name]
        assert other.active_rows == row.active_rows
        np.testing.assert_array_equal(other.row_abs_w, row.row_abs_w)
        assert (other.events is None) == (row.events is None)
        if row.events is not None:
            for name in ("sample", "step", "index", "value"):
                np.testing.assert_array_equal(getattr(other.events, name), getattr(row.events, name))


def test_row_blocks_of_several_passes_add(net):
    x = binary(4, 6, 2, 6, 6)
    whole, parts = trace_of(net, x, active_rows=True), trace_of(net, x[:, :2], x[:, 2:], active_rows=True)
    for name in ("0.layer", "4", "6"):
        assert whole[name].active_rows == parts[name].active_rows
        assert set(whole[name].active_rows) == {64, 128, 256, 512}


def test_products_survive_the_file(tmp_path):
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.lif = nn.Linear(5, 4), Neuron(threshold=0.2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return y @ self.lif(y).transpose(-1, -2)

    trace = trace_of(Product(), binary(3, 2, 6, 5))
    trace.save(tmp_path / "run.h5")
    row, other = (
        next(r for r in t.layers if r.kind == "matmul") for t in (trace, EventTrace.load(tmp_path / "run.h5"))
    )
    assert other.levels_right == row.levels_right
    assert other.ac.tolist() == row.ac.tolist()


def test_files_of_the_schema_before_are_read(net, tmp_path):
    trace = trace_of(net, binary(4, 3, 2, 6, 6))
    trace.save(tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "a") as file:
        file.attrs["schema"] = "1.0"
        for group in file["layers"].values():
            if "row_abs_w" in group:
                del group["row_abs_w"]
    back = EventTrace.load(tmp_path / "old.h5")
    assert [row.name for row in back.layers] == [row.name for row in trace.layers]
    assert not back.layers[0].row_abs_w.size
    assert spiking.hw_models.estimate(back, "loihi").energy == spiking.hw_models.estimate(trace, "loihi").energy
    assert spiking.hw_models.estimate(back, "rram-crossbar").energy.nominal > 0


@pytest.mark.parametrize(
    ("dataset", "change", "message"),
    [
        ("step", lambda v: v + 9, "got events outside of the run"),
        ("index", lambda v: v + 10**6, "got events outside of the run"),
        ("sample", lambda v: v[:-1], "got lists of events of different lengths"),
    ],
)
def test_events_that_contradict_the_counts_are_refused(net, tmp_path, dataset, change, message):
    path = tmp_path / "run.h5"
    trace_of(net, binary(4, 3, 2, 6, 6), events=True).save(path)
    with h5py.File(path, "a") as file:
        group = file["events/0000"]
        values = change(group[dataset][()])
        del group[dataset]
        group[dataset] = values
    with pytest.raises(SpikingError, match=f"layer 0.layer: {message}"):
        EventTrace.load(path)


def test_lost_events_are_refused(net, tmp_path):
    path = tmp_path / "run.h5"
    trace_of(net, binary(4, 3, 2, 6, 6), events=True).save(path)
    with h5py.File(path, "a") as file:
        for name in ("sample", "step", "index"):
            values = file["events/0000"][name][()][1:]
            del file["events/0000"][name]
            file["events/0000"][name] = values
    with pytest.raises(SpikingError, match=r"layer 0.layer: got \d+ events and a count of \d+"):
        EventTrace.load(path)
