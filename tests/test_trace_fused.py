"""Traces of layers that run together, and of kernels that count on the side, against the same networks counted layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.cuda_kernels.watch import Watch, current
from torch import Tensor, nn

import spiking
from spiking._recorder import Recorder
from spiking._rows import Rows
from spiking.errors import SpikingError
from spiking.trace import EventTrace

NEURONS: dict[str, Callable[[], nn.Module]] = {
    "lif": lambda: spiking.LIF(0.5, 0.5),
    "zero": lambda: spiking.LIF(0.75, 0.25, reset="zero"),
    "if": lambda: spiking.IF(0.5),
    "refractory": lambda: spiking.LIF(0.5, 0.25, refractory=1),
    "cuba": lambda: spiking.CuBaLIF(0.5, 0.5, 0.5),
    "adaptive": lambda: spiking.AdaptiveLIF(0.5, 0.5),
}
OPERANDS = ("spikes", "signed", "graded", "analogue", "silent")


def operand(kind: str, shape: tuple[int, ...], seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    spikes = (torch.rand(shape, generator=g) < 0.2).float()
    if kind == "signed":
        return spikes * torch.randint(0, 2, shape, generator=g).mul(2).sub(1)
    if kind == "graded":
        return spikes * torch.randint(1, 4, shape, generator=g) / 4
    if kind == "analogue":
        return torch.randint(-64, 64, shape, generator=g) / 64
    return spikes * 0 if kind == "silent" else spikes


def in_eighths(net: nn.Module, seed: int, zeros: bool) -> None:
    """Weights whose sums are exact in any order; a third of them 0 where asked for."""
    g = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        if p.dim() > 1:
            values = torch.randint(-4, 6, p.shape, generator=g) / 8
            p.data = torch.where(values == 0, 0.125, values)
            if zeros:
                p.data *= torch.rand(p.shape, generator=g) < 0.67


@contextmanager
def counted_by_hooks(net: nn.Module) -> Iterator[None]:
    """No layers run together, and no kernel counts."""
    handles = [m.register_forward_hook(lambda *_: None) for m in net.modules() if "Pool" in type(m).__name__]
    with mock.patch.object(Watch, "start"):
        yield
    for handle in handles:
        handle.remove()


def recorded(net: nn.Module, passes: list[Tensor], **options: bool) -> tuple[EventTrace, list[Tensor]]:
    with torch.no_grad(), spiking.record(net, **options) as trace:
        out = [net(x) for x in passes]
    return trace, out


def assert_same(a: EventTrace, b: EventTrace) -> None:
    assert [row.name for row in a.layers] == [row.name for row in b.layers]
    assert (a.n_samples, a.n_steps) == (b.n_samples, b.n_steps)
    for mine, other in zip(a.layers, b.layers):
        for name, value in vars(mine).items():
            expected = getattr(other, name)
            where = f"{mine.name}.{name}"
            if name == "counts":
                for counter, values in value.items():
                    np.testing.assert_array_equal(values, expected[counter], f"{where}[{counter}]")
            elif name == "events" and value is not None:
                for part in ("sample", "step", "index", "value"):
                    np.testing.assert_array_equal(getattr(value, part), getattr(expected, part), f"{where}.{part}")
            elif isinstance(value, np.ndarray):
                np.testing.assert_array_equal(value, expected, where)
                assert value.dtype == expected.dtype, where
            else:
                assert value == expected, where


def convolutional(pool: str, window: int, neuron: str, norm: bool, padding: int) -> nn.Module:
    pools = {"avg": spiking.AvgPool2d, "max": spiking.MaxPool2d}
    layers: list[nn.Module] = [spiking.Conv2d(2, 3, 3, padding=padding, bias=not norm)]
    if norm:
        layers.append(spiking.BatchNorm2d(3))
    layers += [pools[pool](window), NEURONS[neuron](), spiking.Conv2d(3, 4, 2, stride=2, groups=1), NEURONS[neuron]()]
    return spiking.Sequential(
        *layers, spiking.Flatten(), spiking.Linear(4 * side(padding, window) ** 2, 5), spiking.LIF()
    )


def side(padding: int, window: int) -> int:
    return ((9 + 2 * padding - 2) // window - 2) // 2 + 1


@settings(deadline=None, max_examples=40)
@given(
    pool=st.sampled_from(["avg", "max"]),
    window=st.sampled_from([2, 3]),
    neuron=st.sampled_from([*NEURONS]),
    norm=st.booleans(),
    padding=st.integers(0, 1),
    kind=st.sampled_from(OPERANDS),
    steps=st.integers(1, 4),
    batch=st.integers(1, 3),
    zeros=st.booleans(),
    double=st.booleans(),
    events=st.booleans(),
    seed=st.integers(0, 99),
)
def test_layers_that_run_together_are_counted_as_if_apart(
    pool: str, window: int, neuron: str, norm: bool, padding: int, kind: str, steps: int, batch: int, zeros: bool,
    double: bool, events: bool, seed: int,
) -> None:  # fmt: skip
    net = convolutional(pool, window, neuron, norm, padding).eval()
    in_eighths(net, seed, zeros)
    net = net.double() if double else net
    passes = [
        operand(kind, (steps, batch, 2, 9, 9), seed + i).to(torch.float64 if double else torch.float32)
        for i in range(2)
    ]
    with torch.no_grad():
        plain = [net(x) for x in passes]
    together, out = recorded(net, passes, events=events)
    with counted_by_hooks(net):
        apart, _ = recorded(net, passes, events=events)
    assert all(torch.equal(a, b) for a, b in zip(plain, out))
    assert_same(together, apart)


@settings(deadline=None, max_examples=40)
@given(
    neuron=st.sampled_from([*NEURONS]),
    kind=st.sampled_from(OPERANDS),
    width=st.sampled_from([3, 64, 70, 200]),
    steps=st.integers(1, 5),
    batch=st.integers(1, 4),
    zeros=st.booleans(),
    mode=st.sampled_from(["auto", "always", "never"]),
    gradients=st.booleans(),
    seed=st.integers(0, 99),
)
def test_fully_connected_networks_are_counted_as_layer_by_layer(
    neuron: str, kind: str, width: int, steps: int, batch: int, zeros: bool, mode: str, gradients: bool, seed: int
) -> None:
    layers = (spiking.Linear(width, 70), NEURONS[neuron](), spiking.Linear(70, 6), NEURONS[neuron]())
    net = spiking.Sequential(*layers)
    in_eighths(net, seed, zeros)
    x = operand(kind, (steps, batch, width), seed)
    with spiking.event_driven(mode), torch.set_grad_enabled(gradients):  # type: ignore[arg-type]
        plain = net(x)
        with spiking.record(net) as together:
            out = net(x)
        with counted_by_hooks(net), spiking.record(net) as apart:
            net(x)
    assert torch.equal(plain, out)
    assert_same(together, apart)


def test_event_driven_layers_hand_over_what_they_counted():
    net = spiking.Sequential(spiking.Linear(300, 40), spiking.LIF())
    x = operand("spikes", (4, 100, 300), 0)
    with spiking.event_driven("always"), mock.patch("spiking._counters.counting.count") as counted:
        trace, _ = recorded(net, [x])
    counted.assert_not_called()
    assert trace["0"].counts["in_nnz"].tolist() == x.sum((1, 2)).int().tolist()
    assert trace["0"].spike_count.tolist() == x.sum((0, 1)).int().tolist()
    assert trace["1"].counts["updates_active"].sum() > 0


def test_more_rows_than_a_byte_counts():
    net = spiking.Sequential(spiking.Linear(70, 3), spiking.LIF())
    x = torch.ones(3, 600, 70)
    with spiking.event_driven("always"):
        trace, _ = recorded(net, [x])
    assert trace["0"].spike_count.tolist() == [1800] * 70


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_counted_as_layer_by_layer(dtype: torch.dtype):
    net = spiking.Sequential(
        spiking.AvgPool2d(2), spiking.LIF(0.5, 0.25), spiking.Flatten(), spiking.Linear(32, 3), spiking.LIF()
    )
    in_eighths(net, 3, False)
    x = operand("graded", (3, 2, 2, 9, 8), 4).to(dtype)
    together, _ = recorded(net.to(dtype), [x])
    with counted_by_hooks(net):
        apart, _ = recorded(net, [x])
    assert_same(together, apart)


def test_pieces_of_a_sequence_are_counted_as_the_whole():
    class InTwoParts(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            head, state = self.net(x[:2], return_state=True)
            return torch.cat([head, self.net(x[2:], state=state)])

    net = convolutional("avg", 2, "lif", True, 1).eval()
    in_eighths(net, 5, False)
    x = operand("spikes", (5, 2, 2, 9, 9), 6)
    parts, _ = recorded(InTwoParts(net), [x], events=True)
    whole, _ = recorded(net, [x], events=True)
    for mine, other in zip(parts.layers, whole.layers):
        assert mine.name == f"net.{other.name}"
        for counter, values in mine.counts.items():
            np.testing.assert_array_equal(values, other.counts[counter], f"{other.name}[{counter}]")
        np.testing.assert_array_equal(mine.spike_count, other.spike_count)


def test_two_recorders_hear_of_the_same_layers():
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = convolutional("max", 2, "lif", False, 0)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    net = Wrapped().eval()
    x = operand("spikes", (3, 2, 2, 9, 9), 1)
    with torch.no_grad(), spiking.record(net) as outer, spiking.record(net.body) as inner:
        net(x)
    assert [row.name for row in outer.layers] == [f"body.{row.name}" for row in inner.layers]
    for a, b in zip(outer.layers, inner.layers):
        assert {name: values.tolist() for name, values in a.counts.items()} == {
            name: values.tolist() for name, values in b.counts.items()
        }


def test_nothing_is_counted_after_a_recording_or_a_failed_pass():
    net = spiking.Sequential(spiking.Linear(4, 3), spiking.LIF())
    recorder = spiking.record(net)
    assert isinstance(recorder, Recorder)
    with pytest.raises(spiking.SpikingError, match="4 features"), recorder:
        net(torch.zeros(2, 1, 5))
    assert current() is None
    recorded(net, [torch.zeros(2, 1, 4)])
    assert current() is None


def test_a_failed_pass_leaves_the_trace_as_it_was():
    net = spiking.Sequential(spiking.Linear(4, 3), spiking.LIF(), spiking.Linear(3, 2))
    x = operand("spikes", (2, 1, 4), 0)
    with torch.no_grad(), spiking.record(net) as trace:
        net(x)
        before = {row.name: row.counts["in_numel"].tolist() for row in trace.layers}
        with mock.patch.object(net[2], "forward", side_effect=RuntimeError("stop")), pytest.raises(RuntimeError):
            net(x)
        assert {row.name: row.counts["in_numel"].tolist() for row in trace.layers} == before
        net(x)
    assert trace.n_samples == 2
    assert trace["0"].counts["in_numel"].tolist() == [2 * n for n in before["0"]]


def test_a_pass_of_another_width_is_refused():
    conv = spiking.Conv2d(1, 1, 3)
    with pytest.raises(spiking.SpikingError, match=r"layer Conv2d: got 25 elements after 16 in the pass before"):
        recorded(conv, [torch.zeros(2, 1, 1, 4, 4), torch.zeros(2, 1, 1, 5, 5)])


def test_additions_between_layers_of_a_chain_are_still_seen():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = spiking.Sequential(spiking.Linear(4, 4), spiking.LIF())

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    net = spiking.Sequential(spiking.Linear(4, 4), spiking.LIF(), Residual(), spiking.Linear(4, 2))
    trace, _ = recorded(net, [operand("spikes", (3, 2, 4), 2)])
    assert [row.kind for row in trace.layers] == ["linear", "neuron", "linear", "neuron", "add", "linear"]


class Branching(nn.Module):
    """Neurons with two readers, a pooling that runs twice, an addition, a normalisation, and a readout that is given its state."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(2, 3, 3, padding=1), spiking.BatchNorm2d(3), nn.AvgPool2d(2)
        self.first, self.second, self.out = spiking.LIF(0.5, 0.25), spiking.LIF(0.5, 0.5), spiking.LIF()
        self.left, self.right = nn.Conv2d(3, 2, 2, bias=bias), nn.Conv2d(3, 2, 2, bias=bias)
        self.head = spiking.Sequential(spiking.Flatten(), spiking.Linear(2, 4), spiking.LIF(0.5, 0.25))
        self.last = spiking.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        lead = x.shape[:2]
        s = self.first(self.norm(self.conv(x.flatten(0, 1)).unflatten(0, lead)))
        s = self.second(self.pool(s.flatten(0, 1)).unflatten(0, lead)).flatten(0, 1)
        y = (self.left(s) + self.right(s)).unflatten(0, lead)
        y = self.head(self.pool(y.flatten(0, 1)).unflatten(0, lead))
        return self.out(self.last(y), state=None, return_state=True)[0]


CHANGES = ("nothing", "looked at", "batch", "weights", "zeros", "training", "keeps still", "fails")


@settings(deadline=None, max_examples=50)
@given(
    which=st.sampled_from(["branching", "avg", "max"]),
    neuron=st.sampled_from([*NEURONS]),
    passes=st.lists(st.tuples(st.sampled_from(OPERANDS), st.sampled_from(CHANGES)), min_size=2, max_size=5),
    steady=st.sampled_from([0, 1, 6, 7, 8, 17]),
    steps=st.integers(1, 5),
    apart=st.booleans(),
    seed=st.integers(0, 99),
)
def test_passes_that_are_like_earlier_ones_are_counted_as_if_they_were_not(
    which: str, neuron: str, passes: list[tuple[str, str]], steady: int, steps: int, apart: bool, seed: int
) -> None:
    passes = passes[:1] + [("spikes", "nothing")] * steady + passes[1:]

    def run() -> EventTrace:
        torch.manual_seed(seed)
        net = Branching(True) if which == "branching" else convolutional(which, 2, neuron, True, 0)
        net.eval()
        in_eighths(net, seed, False)
        batch = 2
        with torch.no_grad(), spiking.record(net) as trace:
            for i, (kind, change) in enumerate(passes):
                batch += change == "batch"
                x = operand(kind, (steps, batch, 2, *(2 * [8 if which == "branching" else 9])), seed + i)
                x = x[:1].expand_as(x).clone() if change == "keeps still" else x
                if change == "looked at":
                    assert trace.n_samples == sum(len(row.syn_sample) for row in trace.layers[:1])
                if change == "fails":
                    x[-1, 0, 0, 0, 0] = float("nan")
                    with pytest.raises(SpikingError, match="NaN"):
                        net(x)
                    continue
                for p in net.parameters() if change in ("weights", "zeros") else ():
                    p *= 0.5 if change == "weights" else torch.arange(p.numel()).view(p.shape) % 3 != 0
                net.train(change == "training")
                net(x)
        return trace

    with counted_by_hooks(nn.Module()) if apart and which == "branching" else nullcontext():
        planned = run()
        with mock.patch.object(Rows, "ran_again", return_value=False):
            unplanned = run()
    assert_same(planned, unplanned)


def test_layers_of_steady_passes_take_no_long_way() -> None:
    x = operand("spikes", (3, 2, 2, 8, 8), 0)
    for net in (Branching(False).eval(), spiking.Sequential(spiking.Flatten(), spiking.Linear(128, 3), spiking.LIF())):
        with torch.no_grad(), spiking.record(net) as trace:
            for _ in range(2):  # in the second pass neurons hear what their readers want to know
                net(x)
            before = {row.name: row.counts["in_numel"].sum() for row in trace.layers}
            with mock.patch.object(Rows, "operand", side_effect=AssertionError("a layer was counted anew")):
                net(x)
        assert all(2 * row.counts["in_numel"].sum() == 3 * before[row.name] for row in trace.layers)


def test_a_trace_that_is_looked_at_while_it_grows_is_of_all_passes_so_far(tmp_path: Path) -> None:
    x = operand("spikes", (3, 2, 128), 0)
    net = spiking.Sequential(spiking.Linear(128, 3), spiking.LIF())
    with torch.no_grad(), spiking.record(net) as trace:
        for n in range(1, 30):
            net(x)
            if n % 5 == 0:
                assert (trace.n_samples, trace.layers[0].counts["in_numel"].tolist()) == (2 * n, [2 * n * 128] * 3)
            if n == 20:
                copied = copy.deepcopy(trace)
                trace.save(tmp_path / "trace.h5")
                merged = EventTrace.merge([trace, trace])
    assert type(trace) is type(copied) is type(merged) is EventTrace
    assert (trace.n_samples, copied.n_samples, merged.n_samples) == (58, 40, 80)
    assert_same(EventTrace.load(tmp_path / "trace.h5"), copied)


def test_a_recorder_may_be_entered_again() -> None:
    x = operand("spikes", (3, 2, 128), 0)
    net = spiking.Sequential(spiking.Linear(128, 3), spiking.LIF())
    recorder = spiking.record(net)
    for n in (3, 6):
        with torch.no_grad(), recorder as trace:
            for _ in range(3):
                net(x)
            assert trace.n_samples == 2 * n
    assert trace.layers[0].counts["in_numel"].tolist() == [2 * 6 * 128] * 3
