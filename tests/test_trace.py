"""Traces: counters against brute force, what the recorder sees, files that survive and files that are refused."""

import copy
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from golden_nets import ARRAYS, MICRO, MICRO_ARRAYS, NETS, Frames, Neuron, build, micro_layer, recorded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import spiking
from spiking import EventTrace, record
from spiking._counters import Levels
from spiking.errors import SpikingError
from spiking.trace import COUNTERS, LayerTrace


def binary(*shape: int, rate: float = 0.3, seed: int = 0) -> Tensor:
    """Random spikes."""
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def trace_of(model: nn.Module, *inputs: Tensor, **options: Any) -> EventTrace:
    """The trace of one pass per input."""
    with record(model, **options) as trace, torch.no_grad():
        for x in inputs:
            model(x)
    return trace


def counter(row: LayerTrace, name: str, t: int) -> Any:
    """A golden counter's counterpart in a row."""
    if name in ("ac", "mac", "in_abs_sum", "class_step"):
        return getattr(row, name)[t]
    if name in ("dense", "dense_padded"):
        return getattr(row, name) * row.calls[t]
    if name == "out_numel":
        return row.n_outputs * row.calls[t]
    return row.counts["pool_adds" if name == "pool_adds_event" else name][t]


# golden counters


@pytest.mark.parametrize("case", MICRO, ids=[case["name"] for case in MICRO])
def test_micro_layers_count_as_brute_force_does(case):
    model = Frames(micro_layer(case))
    x = torch.tensor(MICRO_ARRAYS[f"{case['name']}.x"])
    with record(model) as trace, torch.no_grad():
        y = model(x)
    np.testing.assert_allclose(y.numpy(), MICRO_ARRAYS[f"{case['name']}.y"], atol=1e-6 * max(1, float(y.abs().max())))
    row = trace.layers[0]
    assert (row.operand_class, row.repeated_input) == (case["operand_class"], case["repeated_input"])
    assert row.operand_scale == pytest.approx(case["operand_scale"], rel=1e-6)  # float32 ninths
    assert (list(row.in_shape), list(row.out_shape)) == (case["in_shape"], case["out_shape"])
    assert (row.params, row.bias) == (case["params"], case["bias"])
    np.testing.assert_array_equal(row.fan_out, MICRO_ARRAYS[f"{case['name']}.fan_out"].ravel())
    for t, expected in enumerate(case["per_step"]):
        for name, value in expected.items():
            if name == "in_abs_sum":
                assert counter(row, name, t) == pytest.approx(value, rel=1e-6)  # golden sums are of float64 values
            elif name != "dense_eff":
                assert counter(row, name, t) == value, (t, name)


@pytest.mark.parametrize("name", NETS)
def test_small_networks_count_as_brute_force_does(name):
    trace = recorded(name)
    for layer in NETS[name]["layers"]:
        row = trace[layer["name"]]
        for t, expected in enumerate(layer["per_step"]):
            for key, value in expected.items():
                if key == "pool_adds_dense":
                    assert row.config["dense_ops"] * trace.n_samples == value
                else:
                    assert counter(row, key, t) == value, (layer["name"], t, key)
        for key in ("operand_class", "operand_scale", "repeated_input", "params", "w_nnz", "w_abs_max", "w_abs_mean"):
            if key in layer:
                assert getattr(row, key) == pytest.approx(layer[key]), (layer["name"], key)
        if "spike_count" in layer:
            assert row.spike_count.tolist() == layer["spike_count"]


@pytest.mark.parametrize("name", ["mlp", "conv", "recurrent", "residual"])
def test_our_neurons_give_the_golden_spikes_and_counts(name):
    model, x = build(name)
    plain = trace_of(model, x)
    ours = copy.deepcopy(model)
    for key, module in model.named_children():
        if isinstance(module, Neuron):
            lif = spiking.LIF(beta=module.beta, threshold=module.threshold, reset=module.reset)
            if hasattr(module, "recurrent"):
                wrapped = spiking.Recurrent(lif, module.recurrent.in_features)
                wrapped.recurrent = module.recurrent
                setattr(ours, key, wrapped)
            else:
                setattr(ours, key, lif)
    trace = trace_of(ours, x)
    assert [row.name for row in trace.layers] == [row.name for row in plain.layers]
    for row, other in zip(trace.layers, plain.layers):
        for counter_name in COUNTERS:
            np.testing.assert_array_equal(row.counts[counter_name], other.counts[counter_name], err_msg=row.name)


# what recording does to a model: nothing


def test_results_and_gradients_do_not_change():
    torch.manual_seed(0)
    model = nn.Sequential(
        Frames(nn.Conv2d(1, 4, 3)),
        Frames(nn.BatchNorm2d(4)),
        spiking.LIF(threshold=0.5),
        nn.Flatten(2),
        spiking.Recurrent(spiking.IF(), 64),
        nn.Linear(64, 3),
    )
    x = torch.rand(5, 2, 1, 6, 6)
    other = copy.deepcopy(model)
    plain = model(x)
    plain.square().sum().backward()
    with record(other, keep_spikes=1):
        watched = other(x)
    watched.square().sum().backward()
    assert torch.equal(plain, watched)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)
    for mine, theirs in zip(model.buffers(), other.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_hooks_are_gone_afterwards():
    model, x = build("mlp")
    trace = trace_of(model, x)
    model(x)
    assert trace.n_samples == x.shape[1]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_are_gone_after_an_error():
    model, _ = build("mlp")
    with pytest.raises(RuntimeError, match="boom"), record(model):
        raise RuntimeError("boom")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# layouts


def test_time_major_flat_and_stepwise_calls_count_alike():
    class Steps(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.layer(x_t) for x_t in x])

    layer, x = nn.Linear(5, 3), binary(4, 2, 5)
    rows = [trace_of(model, x).layers[0] for model in (nn.Sequential(layer), Frames(layer), Steps(layer))]
    for row in rows[1:]:
        for name in COUNTERS:
            np.testing.assert_array_equal(row.counts[name], rows[0].counts[name])
        assert row.repeated_input == rows[0].repeated_input
        np.testing.assert_array_equal(row.syn_sample, rows[0].syn_sample)


def test_a_neuron_may_run_step_by_step():
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = spiking.LIF(beta=0.5)

        def forward(self, x: Tensor) -> Tensor:
            state, out = None, []
            for x_t in x:
                s, state = self.lif.step(x_t, state)
                out.append(s)
            return torch.stack(out)

    x = torch.rand(6, 3, 4, generator=torch.Generator().manual_seed(1))
    steps, whole = trace_of(Steps(), x).layers[0], trace_of(nn.Sequential(spiking.LIF(beta=0.5)), x).layers[0]
    for name in COUNTERS:
        np.testing.assert_array_equal(steps.counts[name], whole.counts[name])
    assert steps.counts["spikes"].sum() > 0


def test_a_model_without_a_time_axis_states_its_steps():
    class Repeats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 3), spiking.LIF()

        def forward(self, image: Tensor) -> Tensor:
            return self.lif(self.fc(image.expand(5, *image.shape)))

    image = torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    trace = trace_of(Repeats(), image, steps=5)
    assert (trace.n_steps, trace.n_samples) == (5, 2)
    row = trace["fc"]
    assert (row.operand_class, row.repeated_input, row.mac.tolist()) == ("analogue", True, [24] * 5)


def test_a_layer_used_twice_makes_two_rows():
    shared = spiking.LIF(threshold=0.5)
    model = nn.Sequential(nn.Linear(4, 6), shared, nn.Linear(6, 2), shared)
    trace = trace_of(model, binary(3, 2, 4))
    assert [row.name for row in trace.layers] == ["0", "1", "2", "1#2"]
    assert [row.n_outputs for row in trace.neurons] == [6, 2]


def test_readout_after_the_mean_over_time_counts_once():
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif, self.out = spiking.LIF(threshold=0.5), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.lif(x).mean(0))

    row = trace_of(Mean(), torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0)))["out"]
    assert row.counts["in_numel"].tolist() == [12, 0, 0, 0, 0]
    assert row.counts["bias_adds"].tolist() == [6, 0, 0, 0, 0]
    assert row.operand_class == "graded"


def test_recurrent_state_feeds_the_first_step():
    layer = spiking.Recurrent(spiking.LIF(threshold=0.5), 4)
    x = torch.rand(6, 2, 4, generator=torch.Generator().manual_seed(0))
    whole = trace_of(layer, x)
    head, state = layer(x[:3], return_state=True)

    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rec = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.rec(x, state=state)

    tail = trace_of(Tail(), x[3:])
    row, rest = whole["Recurrent.recurrent"], tail["rec.recurrent"]
    np.testing.assert_array_equal(row.counts["syn"][3:], rest.counts["syn"])
    assert rest.counts["syn"][0] == head[-1].sum() * 4
    assert row.config["recurrent"] is True
    assert whole.recurrent


def test_spikes_in_another_order_are_counted_anew():
    class Permuted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif, self.conv = spiking.LIF(threshold=0.9), nn.Conv1d(4, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            s = self.lif(x).transpose(2, 3)
            return self.conv(s.flatten(0, 1)).unflatten(0, s.shape[:2])

    model, x = Permuted(), torch.rand(3, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    spikes = model.lif(x).transpose(2, 3).contiguous()
    alone = trace_of(Frames(model.conv), spikes).layers[0]
    row = trace_of(model, x)["conv"]
    assert row.counts["syn"].tolist() == alone.counts["syn"].tolist()
    assert row.spike_count.tolist() == alone.spike_count.tolist()


# norms and pooling


def conv_bn() -> nn.Module:
    return nn.Sequential(Frames(nn.Conv2d(1, 2, 3, padding=1)), Frames(nn.BatchNorm2d(2)), spiking.LIF())


def test_batch_norm_behind_a_convolution_is_folded():
    trace = trace_of(conv_bn().eval(), binary(2, 3, 1, 4, 4))
    row = trace["1.layer"]
    assert (row.folded_into, row.mac.sum()) == ("0.layer", 0)


def test_batch_norm_in_training_mode_is_not_folded():
    row = trace_of(conv_bn().train(), binary(2, 3, 1, 4, 4))["1.layer"]
    assert (row.folded_into, row.train_mode, row.mac.sum()) == ("", True, 2 * 3 * 2 * 16)


def test_batch_norm_whose_convolution_has_another_reader_is_not_folded():
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.lif = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), spiking.LIF()

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x.flatten(0, 1))
            return self.norm(y).unflatten(0, x.shape[:2]) + self.lif(y.unflatten(0, x.shape[:2]))

    assert trace_of(Fork().eval(), binary(2, 3, 1, 5, 5))["norm"].folded_into == ""


def test_layer_norm_is_never_folded():
    row = trace_of(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)).eval(), binary(2, 3, 4))["1"]
    assert (row.folded_into, row.mac.tolist()) == ("", [18, 18])


@pytest.mark.parametrize(
    ("pool", "windows"),
    [
        (nn.AvgPool2d(2), [[1, 1, 1, 1]] * 4),
        (nn.AvgPool2d(3, stride=1, padding=1), [[4, 6, 6, 4], [6, 9, 9, 6], [6, 9, 9, 6], [4, 6, 6, 4]]),
        (nn.AvgPool2d(3, stride=3), [[1, 1, 1, 0]] * 3 + [[0, 0, 0, 0]]),
        (nn.AdaptiveAvgPool2d(1), [[1] * 4] * 4),
    ],
)
def test_average_pooling_adds_once_per_spike_and_window(pool, windows):
    x = torch.zeros(16, 1, 1, 4, 4)
    for t in range(16):
        x[t, 0, 0, t // 4, t % 4] = 1
    row = trace_of(Frames(pool), x).layers[0]
    assert row.counts["pool_adds"].reshape(4, 4).tolist() == windows


def test_max_pooling_compares_and_keeps_spikes_binary():
    model = nn.Sequential(Frames(nn.MaxPool2d(2)), nn.Flatten(2), nn.Linear(4, 3))
    trace = trace_of(model, binary(2, 3, 1, 4, 4))
    assert trace.layers[0].counts["pool_cmps"].tolist() == [36, 36]
    assert trace.layers[1].operand_class == "binary"


def test_circular_padding_connects_every_input_equally():
    row = trace_of(Frames(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")), binary(1, 1, 1, 5, 5)).layers[0]
    assert row.fan_out.tolist() == [18] * 25


def test_same_padding_counts_what_the_layer_computes():
    row = trace_of(Frames(nn.Conv1d(1, 1, 5, padding="same")), binary(1, 1, 1, 6)).layers[0]
    assert row.fan_out.tolist() == [3, 4, 5, 5, 4, 3]


# operand classes


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ("binary", 1.0)),
        ([1.0], ("binary", 1.0)),
        ([0.5], ("scaled_binary", 0.5)),
        ([0.25, 0.75], ("graded", 0.25)),
        ([0.5, 0.75], ("graded", 0.25)),
        ([1.0, 32.0], ("graded", 1.0)),
        ([1.0, 33.0], ("analogue", 1.0)),
        ([1.0, 3.14159], ("analogue", 1.0)),
    ],
)
def test_levels_decide_the_class(values, expected):
    assert Levels(tuple(values)).classify() == expected


def test_signed_spikes_are_ternary():
    assert Levels((1.0,), True).classify() == ("ternary", 1.0)
    assert Levels((0.5,), True).classify() == ("scaled_ternary", 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tiny", [1e-7, 2**-23, -1e-7])
def test_tiny_values_beside_spikes_are_not_spikes(dtype, tiny):
    x = binary(1, 4, 64).to(dtype)
    x[0, 0, 0] = tiny
    row = trace_of(nn.Linear(64, 2).to(dtype), x).layers[0]
    assert row.operand_class == "analogue"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_spikes_of_every_dtype_are_binary(dtype):
    row = trace_of(nn.Linear(64, 2).to(dtype), binary(2, 4, 64).to(dtype)).layers[0]
    assert (row.operand_class, row.counts["syn"].sum()) == ("binary", 2 * int(binary(2, 4, 64).sum()))


def test_one_analogue_batch_makes_the_run_analogue():
    layer = nn.Linear(6, 2)
    trace = trace_of(layer, binary(2, 3, 6), torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(0)))
    row = trace.layers[0]
    assert (row.operand_class, row.mac.tolist(), row.ac.sum()) == ("analogue", [72, 72], 0)
    assert row.mac_sparse.tolist() == row.counts["syn"].tolist()


@given(
    steps=st.integers(1, 4),
    batch=st.integers(1, 3),
    rate=st.floats(0, 1),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_synaptic_operations_equal_a_convolution_with_ones(steps, batch, rate, stride, padding, groups, seed):
    layer = nn.Conv2d(2, 4, 3, stride=stride, padding=padding, groups=groups, bias=False)
    x = binary(steps, batch, 2, 5, 6, rate=rate, seed=seed)
    row = trace_of(Frames(layer), x).layers[0]
    ones = nn.functional.conv2d(
        x.flatten(0, 1).double(),
        torch.ones(4, 2 // groups, 3, 3, dtype=torch.float64),
        None,
        stride,
        padding,
        1,
        groups,
    )
    by_step = ones.reshape(steps, -1).sum(1).long().tolist()
    assert row.counts["syn"].tolist() == by_step
    assert row.syn_sample.tolist() == ones.reshape(steps, batch, -1).sum((0, 2)).long().tolist()
    assert row.dense == int(row.fan_out.sum()) <= row.dense_padded


def test_large_fan_outs_stay_exact():
    layer = nn.Linear(300, 100_000, bias=False)  # 30 M connections: more than float32 counts
    x = torch.ones(1, 1, 300)
    x[0, 0, 7] = 0
    assert trace_of(layer, x).layers[0].counts["syn"].tolist() == [29_900_000]


def test_counts_do_not_depend_on_the_precision_of_matrix_products():
    model, x = build("conv")
    expected = trace_of(model, x)
    torch.set_float32_matmul_precision("medium")
    try:
        found = trace_of(model, x)
    finally:
        torch.set_float32_matmul_precision("highest")
    for row, other in zip(found.layers, expected.layers):
        np.testing.assert_array_equal(row.counts["syn"], other.counts["syn"])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_counts_do_not_depend_on_autocast_or_inference_mode(mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 500), spiking.LIF(threshold=0.3), spiking.Recurrent(spiking.IF(), 500))
    x = binary(3, 2, 300)
    expected = trace_of(model, x)
    with mode(), torch.autocast("cpu", torch.bfloat16), record(model) as found:
        model(x)
    assert found["0"].counts["syn"].tolist() == expected["0"].counts["syn"].tolist()
    spikes = found["1"].spike_count
    assert found["2.recurrent"].counts["syn"].sum() == found["2.recurrent"].spike_count.sum() * 500
    assert found["1"].counts["spikes"].sum() == spikes.sum() > 0


@pytest.mark.gpu
def test_counts_on_a_gpu_equal_those_on_the_cpu():
    model, x = build("conv")
    expected, found = trace_of(model, x), trace_of(model.cuda(), x.cuda())
    for row, other in zip(found.layers, expected.layers, strict=True):
        for name in ("in_nnz", "syn", "syn_eff", "updates"):
            np.testing.assert_array_equal(row.counts[name], other.counts[name])


# several passes, several traces


def halves(name: str) -> tuple[EventTrace, EventTrace, EventTrace]:
    model, x = build(name)
    return trace_of(model, x[:, :1]), trace_of(model, x[:, 1:]), trace_of(model, x)


def assert_same_counts(a: EventTrace, b: EventTrace) -> None:
    assert (a.n_samples, a.n_steps) == (b.n_samples, b.n_steps)
    for row, other in zip(a.layers, b.layers, strict=True):
        for name in COUNTERS:
            np.testing.assert_array_equal(row.counts[name], other.counts[name], err_msg=f"{row.name} {name}")
        for name in ("spike_count", "syn_sample", "mac_sample", "updates_sample", "spikes_sample", "fan_out"):
            np.testing.assert_array_equal(getattr(row, name), getattr(other, name), err_msg=f"{row.name} {name}")
        assert (row.operand_class, row.class_step) == (other.operand_class, other.class_step)
        assert (row.operand_scale, row.repeated_input) == (other.operand_scale, other.repeated_input)
        assert (row.name, row.kind, row.neuron) == (other.name, other.kind, other.neuron)
        assert row.folded_into == other.folded_into
        np.testing.assert_allclose(row.in_abs_sum, other.in_abs_sum, rtol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "conv", "recurrent"])
def test_two_halves_merge_into_the_whole(name):
    first, second, whole = halves(name)
    assert_same_counts(EventTrace.merge([first, second]), whole)


@pytest.mark.parametrize("name", ["mlp", "conv", "recurrent"])
def test_two_passes_of_one_recording_make_the_whole(name):
    model, x = build(name)
    assert_same_counts(trace_of(model, x[:, :1], x[:, 1:]), trace_of(model, x))


def test_merge_refuses_another_model():
    first, second, _ = halves("mlp")
    second.model_hash = "f00"
    with pytest.raises(SpikingError, match=r"merge: got model_hash \w+ and f00"):
        EventTrace.merge([first, second])


def test_merge_refuses_other_lengths():
    model, x = build("mlp")
    with pytest.raises(SpikingError, match="merge: got n_steps 6 and 5"):
        EventTrace.merge([trace_of(model, x), trace_of(model, x[:5])])


def test_merge_refuses_other_shapes():
    first, second, _ = halves("mlp")
    second.layers[1].in_shape = (3,)
    with pytest.raises(SpikingError, match=r"merge: got layers .*lif0.*\(16,\).* and .*lif0.*\(3,\)"):
        EventTrace.merge([first, second])


def test_merge_wants_traces():
    with pytest.raises(SpikingError, match="merge: got no traces"):
        EventTrace.merge([])


# samples kept whole


def test_kept_samples_hold_input_spikes_and_output():
    model, x = build("mlp")
    with record(model, keep_spikes=2) as trace, torch.no_grad():
        y = model(x[:, :1])
        model(x[:, 1:])
    assert len(trace.recordings) == 2
    kept = trace.recordings[0]
    np.testing.assert_array_equal(kept.input, x[:, 0].numpy())
    np.testing.assert_array_equal(kept.spikes["lif0"], ARRAYS["mlp/lif0.s"][:, 0])
    np.testing.assert_array_equal(kept.output, y[:, 0].numpy())
    assert kept.prediction == str(int(y[:, 0].sum(0).argmax()))
    np.testing.assert_array_equal(trace.recordings[1].spikes["lif1"], ARRAYS["mlp/lif1.s"][:, 1])


# refusals of the recorder


class Between(nn.Module):
    """Two linear layers, with a function between them."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.first, self.second, self.change = nn.Linear(4, 3), nn.Linear(3, 2), change

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.change(self.first(x)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_the_layer(bad):
    with pytest.raises(SpikingError, match="layer second: the operand holds NaN or Inf; expected finite values"):
        trace_of(Between(lambda y: y * 0 + bad), binary(2, 1, 4))


def test_neurons_that_emit_nan_are_named():
    with pytest.raises(SpikingError, match="layer LIF: the neurons emit NaN"):
        trace_of(spiking.LIF(), torch.full((2, 1, 4), float("nan")))


def test_other_shapes_name_the_layer():
    with pytest.raises(SpikingError, match=r"layer second: got an input of shape \[7, 3\]; .*T=5, B=2.*steps=T"):
        trace_of(Between(lambda y: y.flatten(0, 1)[:7]), binary(5, 2, 4))


def test_another_length_in_a_later_pass_is_refused():
    with pytest.raises(SpikingError, match="got 3 time steps after 2 in the pass before"):
        trace_of(nn.Linear(4, 3), binary(2, 1, 4), binary(3, 1, 4))


def test_a_layer_that_runs_too_often_is_refused():
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = x[0]
            for _ in range(4):
                y = self.fc(y)
            return y

    with pytest.raises(SpikingError, match="layer fc ran for more than T=3 steps"):
        trace_of(Loop(), binary(3, 2, 4))


def test_other_layers_in_a_later_pass_are_refused():
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.turn = nn.Linear(4, 2), nn.Linear(4, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            self.turn += 1
            return self.a(x) if self.turn == 1 else self.b(x)

    with pytest.raises(SpikingError, match="layer b did not run in the passes before"):
        trace_of(Branch(), binary(2, 1, 4), binary(2, 1, 4))


def test_a_neuron_with_another_batch_is_refused():
    class Slice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 2), spiking.LIF()

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(self.fc(x)[:, :1])

    with pytest.raises(SpikingError, match=r"layer lif: got an input of shape \[2, 1, 2\]; expected .* B=3"):
        trace_of(Slice(), binary(2, 3, 4))


def test_a_model_without_layers_is_refused():
    with pytest.raises(SpikingError, match="Identity has no layer that can be counted"):
        trace_of(nn.Identity(), binary(2, 1, 4))


def test_a_call_without_tensors_is_refused():
    class Nothing(nn.Module):
        def forward(self) -> None:
            return None

    model = Nothing()
    with pytest.raises(SpikingError, match="Nothing was called without a dense tensor"), record(model):
        model()


def test_record_wants_a_module_and_a_count():
    with pytest.raises(SpikingError, match=r"record: got str; expected a torch\.nn\.Module"):
        record("net")  # type: ignore[arg-type]
    with pytest.raises(SpikingError, match="record: got keep_spikes=-1"):
        record(nn.Linear(1, 1), keep_spikes=-1)


def test_unknown_rows_name_the_known_ones():
    with pytest.raises(SpikingError, match="got layer name 'x'; expected one of: fc0, lif0"):
        recorded("mlp")["x"]


# files


@pytest.fixture
def saved(tmp_path):
    model, x = build("conv")
    with record(model, keep_spikes=1, data_id="golden", seed=3, dt=1e-3) as trace, torch.no_grad():
        model(x)
    path = tmp_path / "run.h5"
    trace.save(path)
    return path, trace


@pytest.mark.parametrize("name", NETS)
def test_a_saved_trace_comes_back_whole(name, tmp_path):
    trace = recorded(name)
    trace.save(tmp_path / "run.h5")
    back = EventTrace.load(tmp_path / "run.h5")
    assert_same_counts(back, trace)
    assert [row.operand_of for row in back.layers] == [row.operand_of for row in trace.layers]


def test_provenance_and_recordings_come_back(saved):
    path, trace = saved
    trace.recordings[0].label, trace.recordings[0].classes = "seven", ("a", "b")
    trace.save(path)
    back = EventTrace.load(path)
    for name in ("model_name", "model_hash", "data_id", "seed", "dt", "dtype", "device", "created", "software"):
        assert getattr(back, name) == getattr(trace, name)
    kept, expected = back.recordings[0], trace.recordings[0]
    assert (kept.label, kept.classes) == ("seven", ("a", "b"))
    np.testing.assert_array_equal(kept.input, expected.input)
    assert list(kept.spikes) == list(expected.spikes) == ["lif0", "lif1", "lif2"]
    np.testing.assert_array_equal(kept.spikes["lif1"], expected.spikes["lif1"])
    np.testing.assert_array_equal(kept.output, expected.output)
    assert len(back.merged_from) == 1


def test_files_follow_the_schema(saved):
    with h5py.File(saved[0]) as file:
        assert dict(file.attrs)["format"] == "spiking-trace"
        assert (file.attrs["schema"], file.attrs["mode"], bool(file.attrs["complete"])) == ("1.2", "summary", True)
        assert file["graph/edges"][()].tolist() == [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6], [6, 7]]
        conv = file["layers/0003"]
        assert (conv.attrs["operand_class"], conv.attrs["operand_scale"]) == ("graded", 0.25)
        assert conv["per_sample"].shape == (2, 4)
        assert conv["syn"].dtype == np.int64


def test_a_trace_of_zero_samples_is_not_saved(tmp_path):
    with pytest.raises(SpikingError, match=r"run\.h5: got a trace of zero samples"):
        EventTrace().save(tmp_path / "run.h5")
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_nothing_behind(saved, tmp_path):
    with pytest.raises(SpikingError, match=r"absent/run\.h5': the trace cannot be written"):
        saved[1].save(tmp_path / "absent" / "run.h5")


def test_a_full_disk_keeps_the_old_file(saved, monkeypatch):
    path, trace = saved
    before = path.read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spiking._tracefile._write", full)
    with pytest.raises(SpikingError, match=r"run\.h5: the trace cannot be written: .*No space left"):
        trace.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["run.h5"]


def test_missing_files_are_named(tmp_path):
    with pytest.raises(SpikingError, match=r"none\.h5: there is no such file"):
        EventTrace.load(tmp_path / "none.h5")


@pytest.mark.parametrize("length", [0, 7, 100, 4000, -1])
def test_cut_files_are_refused(saved, length):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(SpikingError, match=r"run\.h5: this is not a readable trace"):
        EventTrace.load(path)


def test_foreign_files_are_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(SpikingError, match=r"other\.h5: got an HDF5 file that is no trace"):
        EventTrace.load(tmp_path / "other.h5")


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("schema", "2.0", r"got trace schema 2\.0; this version reads 1\.2"),
        ("complete", False, "the trace is incomplete"),
    ],
)
def test_newer_and_incomplete_files_are_refused(saved, attribute, value, message):
    with h5py.File(saved[0], "a") as file:
        file.attrs[attribute] = value
    with pytest.raises(SpikingError, match=message):
        EventTrace.load(saved[0])


def test_a_newer_minor_version_is_read(saved):
    with h5py.File(saved[0], "a") as file:
        file.attrs["schema"] = "1.7"
    with pytest.warns(UserWarning, match=r"got trace schema 1\.7; this version knows 1\.2 and reads what it knows"):
        assert EventTrace.load(saved[0]).n_samples == 2


def test_a_missing_dataset_is_refused(saved):
    with h5py.File(saved[0], "a") as file:
        del file["layers/0000/fan_out"]
    with pytest.raises(SpikingError, match=r"run\.h5: this is not a readable trace .*fan_out"):
        EventTrace.load(saved[0])


@pytest.mark.parametrize(
    ("dataset", "value", "message"),
    [
        ("layers/0000/syn", 10**9, "layer conv0.layer: got 1000000000 synaptic operations of at most"),
        ("layers/0000/syn", -1, "layer conv0.layer: got a negative syn"),
        ("layers/0000/in_nnz", 10**9, "layer conv0.layer: got more non-zeros than elements"),
        ("layers/0000/syn_eff", 10**6, "layer conv0.layer: got more effective synaptic operations"),
        ("layers/0000/in_abs_sum", np.nan, "layer conv0.layer: got an in_abs_sum that is not finite"),
        ("layers/0001/spikes", 10**6, "layer lif0: got more spikes than neuron updates"),
        ("layers/0001/spike_count", 1, "layer lif0: got 256 spikes over neurons"),
        ("layers/0000/spike_count", 1, "layer conv0.layer: got .* synaptic operations by fan-out"),
    ],
)
def test_contradicting_counters_are_refused(saved, dataset, value, message):
    with h5py.File(saved[0], "a") as file:
        file[dataset][...] = value
    with pytest.raises(SpikingError, match=message):
        EventTrace.load(saved[0])


@pytest.mark.parametrize("name", ["syn", "fan_out", "in_numel"])
def test_text_in_place_of_numbers_is_refused(saved, name):
    with h5py.File(saved[0], "a") as file:
        del file[f"layers/0000/{name}"]
        file[f"layers/0000/{name}"] = "hello"
    with pytest.raises(SpikingError, match=r"run\.h5: this is not a readable trace .*numbers|has not"):
        EventTrace.load(saved[0])


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("kind", "magic", "unknown kind magic"),
        ("neuron", "[]", "no readable description"),
        ("neuron", '{"ops": {"mul": -1}}', "needs -1 of the operation mul"),
        ("neuron", '{"ops": {"mul": "many"}}', "could not convert"),
        ("levels", "[[1, 2", "Expecting"),
        ("params", "many", "no attribute"),
    ],
)
def test_descriptions_that_make_no_sense_are_refused(saved, attribute, value, reason):
    with h5py.File(saved[0], "a") as file:
        file["layers/0001"].attrs[attribute] = value
    with pytest.raises(SpikingError, match=rf"run\.h5: this is not a readable trace .*{reason}"):
        EventTrace.load(saved[0])


def test_claims_of_huge_data_are_refused_unread(saved):
    with h5py.File(saved[0], "a") as file:
        file.attrs["n_steps"] = 2**50
    with pytest.raises(SpikingError, match=f"has not {2**50} steps"):
        EventTrace.load(saved[0])
    with h5py.File(saved[0], "a") as file:
        file.attrs["n_steps"] = 4
        del file["layers/0000/spike_count"]
        file["layers/0000"].create_dataset("spike_count", (2**40,), "i8", chunks=(1024,))
    with pytest.raises(SpikingError, match=f"spike_count claims {2**43} bytes"):
        EventTrace.load(saved[0])


@pytest.mark.parametrize("seed", range(20))
def test_damaged_files_end_in_one_message_or_a_trace(saved, seed):
    path, _ = saved
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, len(data), 40):
        data[place] = rng.integers(0, 256)
    path.write_bytes(data)
    said = ""
    try:
        found = EventTrace.load(path)
    except SpikingError as err:
        said = str(err)
    assert ("run.h5" in said and "\n" not in said) if said else found.n_steps > 0
