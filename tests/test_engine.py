"""Compiled event networks against the plain model: every layer, every neuron, every way to run them.

Spikes are equal in float64. In float32 a neuron may differ where its membrane comes within the stated rounding bound of the
threshold; those that do are counted.
"""

import copy
import itertools
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spiking.cuda_kernels import backend
from torch import nn
from torch.testing import assert_close

import spiking
from spiking import datasets, engine
from spiking.models.nmnist import NMNISTConfig, NMNISTNet

module = backend.compiled()
pytestmark = pytest.mark.skipif(module is None, reason="the compiled module was not built")


@pytest.fixture(autouse=True)
def seeded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def spikes(*shape, density=0.15, dtype=torch.float64, seed=0):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < density).to(dtype)


def lively(model):
    """Weights large enough that neurons fire, statistics as after training, evaluation."""
    for m in model.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)):
            nn.init.normal_(m.weight, 0.3 / m.weight[0].numel(), 1.5 * m.weight[0].numel() ** -0.5)
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_var is not None:
            m.running_mean.normal_(0, 0.2)
            m.running_var.uniform_(0.3, 2)
            if m.weight is not None:
                nn.init.uniform_(m.weight, 0.4, 1.6)
                nn.init.normal_(m.bias, 0.1, 0.2)
    return model.eval()


def check(model, x, fires=True):
    """At once, in chunks and step by step, the compiled network gives what the plain one gives; returns it."""
    compiled = spiking.compile_events(model, x)
    with torch.no_grad():
        expected, last = model(x, return_state=True)
        found, state = compiled(x, return_state=True)
        same(found, expected)
        if fires:
            assert 0 < expected.mean() < 1
        equal_states(state, last)
        cut = x.shape[0] // 2
        head, state = compiled(x[:cut], return_state=True)
        assert torch.equal(torch.cat([head, compiled(x[cut:], state=state)]), found)
        state, steps = None, []
        for x_t in x:
            y, state = compiled.step(x_t, state)
            steps.append(y)
        assert torch.equal(torch.stack(steps), found)
        # Either model continues from the other's state.
        _, middle = model(x[:cut], return_state=True)
        same(compiled(x[cut:], state=middle), expected[cut:])
        same(model(x[cut:], state=compiled(x[:cut], return_state=True)[1]), expected[cut:])
    return compiled


def same(found, expected):
    """Equal to the rounding of sums in another order: spikes, which are 0 or 1, only where they are the same."""
    assert found.dtype == expected.dtype
    assert_close(found, expected, rtol=1e-11, atol=1e-11)


def equal_states(found, expected):
    if isinstance(expected, torch.Tensor):
        assert_close(found.to(expected.dtype), expected, rtol=1e-10, atol=1e-10)
    elif expected is None:
        assert found is None
    else:
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            equal_states(a, b)


IMAGE = (9, 3, 3, 11, 10)  # T, B, C, H, W
NETS = {
    "conv": lambda: [spiking.Conv2d(3, 5, 3), spiking.LIF()],
    "conv-padded": lambda: [spiking.Conv2d(3, 17, 3, padding=1, bias=False), spiking.LIF()],
    "conv-strided": lambda: [spiking.Conv2d(3, 16, 4, stride=3, padding=2), spiking.LIF()],
    "conv-dilated": lambda: [spiking.Conv2d(3, 4, 3, dilation=2, padding=1), spiking.LIF()],
    "conv-same": lambda: [spiking.Conv2d(3, 4, (5, 3), padding="same"), spiking.LIF()],
    "conv-oblong": lambda: [spiking.Conv2d(3, 20, (2, 5), padding=(0, 2)), spiking.LIF()],
    "conv-grouped": lambda: [spiking.Conv2d(3, 12, 3, groups=3, padding=1), spiking.LIF()],
    "conv-one-by-one": lambda: [spiking.Conv2d(3, 40, 1), spiking.LIF()],
    "norm-then-pool": lambda: [spiking.Conv2d(3, 12, 3), spiking.BatchNorm2d(12), spiking.AvgPool2d(2), spiking.LIF()],
    "pool-then-norm": lambda: [
        spiking.Conv2d(3, 33, 3),
        spiking.AvgPool2d(3, 2),
        spiking.TDBatchNorm2d(33),
        spiking.LIF(),
    ],
    "pool-strided-conv": lambda: [spiking.Conv2d(3, 8, 3, stride=2, padding=1), spiking.AvgPool2d(2), spiking.LIF()],
    "two-pools": lambda: [spiking.Conv2d(3, 8, 3), spiking.AvgPool2d(2), spiking.AvgPool2d(2, 1), spiking.LIF()],
    "pool-grouped": lambda: [
        spiking.Conv2d(3, 6, 3, groups=3),
        spiking.AvgPool2d(2),
        spiking.BatchNorm2d(6),
        spiking.LIF(),
    ],
    "max": lambda: [spiking.Conv2d(3, 12, 3), spiking.MaxPool2d(2), spiking.LIF()],
    "max-then-norm": lambda: [
        spiking.Conv2d(3, 12, 3),
        spiking.MaxPool2d(3, 2, 1, ceil_mode=True),
        spiking.BatchNorm2d(12),
        spiking.LIF(),
    ],
    "max-dilated": lambda: [spiking.Conv2d(3, 4, 3), spiking.MaxPool2d(2, 1, dilation=3), spiking.LIF()],
    "max-then-avg": lambda: [spiking.Conv2d(3, 4, 3), spiking.MaxPool2d(2), spiking.AvgPool2d(2), spiking.LIF()],
    "max-then-flat-norm": lambda: [
        spiking.Conv2d(3, 2, 3),
        spiking.MaxPool2d(2),
        spiking.BatchNorm2d(2),
        spiking.Flatten(),
        spiking.BatchNorm1d(32),
        spiking.LIF(),
    ],
    "flat-norm": lambda: [spiking.Conv2d(3, 2, 3), spiking.Flatten(), spiking.BatchNorm1d(144), spiking.LIF()],
    "norm-first": lambda: [spiking.BatchNorm2d(3), spiking.Conv2d(3, 16, 3, padding=1), spiking.LIF()],
    "pool-first": lambda: [spiking.AvgPool2d(2), spiking.Conv2d(3, 16, 3, padding=1), spiking.LIF()],
    "pool-norm-first": lambda: [
        spiking.AvgPool2d(2),
        spiking.BatchNorm2d(3),
        spiking.Flatten(),
        spiking.Linear(75, 20),
        spiking.LIF(),
    ],
    "pools-that-overlap-first": lambda: [spiking.AvgPool2d(3, 2), spiking.Conv2d(3, 16, 3, padding=1), spiking.LIF()],
    "pool-alone": lambda: [spiking.AvgPool2d(2), spiking.LIF(threshold=0.3)],
    "norm-alone": lambda: [spiking.BatchNorm2d(3), spiking.LIF(threshold=0.5)],
    "max-first": lambda: [spiking.MaxPool2d(2), spiking.Conv2d(3, 16, 3), spiking.LIF()],
    "neuron-alone": lambda: [spiking.LIF(threshold=1.2)],
    "two-neurons": lambda: [
        spiking.LIF(threshold=0.9),
        spiking.LIF(threshold=1.1),
        spiking.AvgPool2d(2),
        spiking.LIF(threshold=0.2),
    ],
    "linear": lambda: [spiking.Flatten(), spiking.Linear(330, 70), spiking.LIF()],
    "linear-norm": lambda: [
        spiking.Flatten(),
        spiking.Linear(330, 70),
        spiking.BatchNorm1d(70),
        spiking.Dropout(0.3),
        spiking.LIF(),
    ],
    "linear-norms": lambda: [
        spiking.Flatten(),
        spiking.BatchNorm1d(330),
        nn.Linear(330, 9, bias=False),
        spiking.TDBatchNorm1d(9),
        spiking.BatchNorm1d(9, affine=False),
        spiking.LIF(),
    ],
    "no-neuron": lambda: [spiking.Conv2d(3, 4, 3), spiking.Flatten(), spiking.Linear(288, 7)],
    "two-linear": lambda: [
        spiking.Flatten(),
        spiking.Linear(330, 20),
        nn.Identity(),
        spiking.Linear(20, 30),
        spiking.LIF(),
        spiking.Linear(30, 4),
    ],
    "deep": lambda: [
        spiking.Conv2d(3, 12, 3),
        spiking.BatchNorm2d(12),
        spiking.AvgPool2d(2),
        spiking.LIF(beta=0.5),
        spiking.MaxPool2d(2),
        spiking.Conv2d(12, 20, 2, padding=1),
        spiking.ParametricLIF(),
        spiking.Sequential(spiking.Flatten(), spiking.Linear(180, 30), spiking.LIF()),
        spiking.Linear(30, 5),
        spiking.LIF(),
    ],
}


@pytest.mark.parametrize("name", NETS)
def test_every_chain_of_layers_equals_the_plain_model(name):
    model = lively(spiking.Sequential(*NETS[name]()).double())
    compiled = check(model, spikes(*IMAGE, density=0.3), fires=name not in ("no-neuron", "two-linear"))
    assert "plain" not in compiled.report()


@pytest.mark.parametrize("name", ["deep", "conv-strided", "linear", "max", "norm-then-pool"])
@pytest.mark.parametrize("kind", ["float frames", "all ones", "silent", "counts"])
def test_any_input_is_right_not_only_spikes(name, kind):
    model = lively(spiking.Sequential(*NETS[name]()).double())
    x = {
        "float frames": torch.randn(IMAGE, dtype=torch.float64),
        "all ones": torch.ones(IMAGE, dtype=torch.float64),
        "silent": torch.zeros(IMAGE, dtype=torch.float64),
        "counts": spikes(*IMAGE) * torch.randint(1, 4, IMAGE),
    }[kind]
    check(model, x, fires=False)


@pytest.mark.parametrize("name", NETS)
def test_every_level_equals_the_plain_model(level, name):
    model = lively(spiking.Sequential(*NETS[name]()).double())
    for density in (0.05, 0.9):  # by events, and over every input
        x = spikes(*IMAGE, density=density)
        with torch.no_grad():
            same(spiking.compile_events(model, x)(x), model(x))


@st.composite
def chains(draw):
    """Any sequence of layers that fits the shapes, over images first and features then."""
    channels, side = draw(st.integers(1, 3)), draw(st.integers(4, 9))
    image, layers = (channels, side, side + draw(st.integers(0, 2))), []
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(["conv", "norm", "avg", "max", "neuron", "dropout"]))
        size, step, small = draw(st.integers(1, 3)), draw(st.integers(1, 2)), min(side, 3)
        if kind == "conv":
            groups = draw(st.sampled_from([1, 1, channels]))
            out = groups * draw(st.integers(1, 9))
            options = {"stride": step, "padding": draw(st.integers(0, 2)), "dilation": draw(st.integers(1, 2))}
            layers.append(spiking.Conv2d(channels, out, size, groups=groups, bias=draw(st.booleans()), **options))
            channels = out
        elif kind == "norm":
            layers.append(draw(st.sampled_from([spiking.BatchNorm2d, spiking.TDBatchNorm2d]))(channels))
        elif kind == "avg":
            layers.append(spiking.AvgPool2d(min(size, small), draw(st.sampled_from([None, step]))))
        elif kind == "max":
            layers.append(spiking.MaxPool2d(min(size, small), step, ceil_mode=draw(st.booleans())))
        elif kind == "neuron":
            layers.append(spiking.LIF(threshold=draw(st.floats(0.3, 1.2))))
        else:
            layers.append(spiking.Dropout(0.4))
        with torch.no_grad():
            try:
                shape = spiking.Sequential(*layers).eval()(torch.zeros(1, 1, *image)).shape
            except RuntimeError:  # the image has become too small for this layer
                layers.pop()
                channels = layers_out(layers, image)
                continue
        channels = shape[2]
    if draw(st.booleans()):
        features = int(spiking.Sequential(*layers).eval()(torch.zeros(1, 1, *image)).numel())
        layers.append(spiking.Flatten())
        for _ in range(draw(st.integers(0, 4))):
            kind = draw(st.sampled_from(["linear", "norm", "neuron", "recurrent"]))
            if kind == "linear":
                out = draw(st.integers(1, 80))
                layers.append(spiking.Linear(features, out, bias=draw(st.booleans())))
                features = out
            elif kind == "norm":
                layers.append(spiking.BatchNorm1d(features))
            elif kind == "neuron":
                layers.append(spiking.LIF(threshold=draw(st.floats(0.3, 1.2))))
            elif features < 100:
                layers.append(spiking.Recurrent(spiking.LIF(), features))
    return image, layers or [spiking.LIF()]


def layers_out(layers, image):
    with torch.no_grad():
        return spiking.Sequential(*layers).eval()(torch.zeros(1, 1, *image)).shape[2]


@given(chain=chains(), seed=st.integers(0, 9), density=st.sampled_from([0.05, 0.3, 0.8]))
@settings(deadline=None, max_examples=60)
def test_any_chain_of_layers_equals_the_plain_model(chain, seed, density):
    torch.manual_seed(seed)
    image, layers = chain
    model = lively(spiking.Sequential(*layers).double())
    compiled = check(model, spikes(5, 3, *image, density=density, seed=seed), fires=False)
    assert "plain" not in compiled.report()


def test_a_network_runs_as_it_stands_where_the_compiled_kernels_are_not_in_use(tmp_path):
    code = """
import torch, spiking
model = spiking.Sequential(spiking.Linear(6, 3), spiking.LIF(beta=0.8)).eval()
x = (torch.rand(5, 2, 6) < 0.5).float()
network = spiking.compile_events(model, x)
state = None
with torch.no_grad():
    for x_t in x:
        y, state = network.step(x_t, state)
    assert torch.equal(network(x), model(x)) and torch.equal(y, model(x)[-1])
print(network.report())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | {"SPIKING_BACKEND": "reference"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    reason = "the compiled kernels are not in use: SPIKING_BACKEND=reference"
    assert done.stdout == f"plain      0 (Linear): {reason}\nplain      1 (LIF): {reason}\n"


FLAGS = st.fixed_dictionaries(
    {
        "reset": st.sampled_from(["subtract", "zero", "none"]),
        "tie": st.sampled_from(["ge", "gt"]),
        "v_reset": st.sampled_from([0.0, -0.3]),
    }
)
LEAK = st.fixed_dictionaries({"v_leak": st.sampled_from([0.0, 0.2, -0.1, 1.3])})
DECAY = st.fixed_dictionaries({"decay_input": st.booleans()})


def tensor_or_number(low, high, size):
    return st.one_of(
        st.floats(low, high),
        st.integers(0, 99).map(
            lambda seed: torch.empty(size, dtype=torch.float64).uniform_(
                low, high, generator=torch.Generator().manual_seed(seed)
            )
        ),
    )


@st.composite
def neurons(draw, size=6):
    kind = draw(st.sampled_from(["LIF", "IF", "ParametricLIF", "CuBaLIF", "AdaptiveLIF"]))
    arguments = draw(FLAGS) | {"threshold": draw(tensor_or_number(0.4, 1.5, size))}
    if kind != "IF":
        arguments |= draw(LEAK)
    if kind not in ("IF", "CuBaLIF"):
        arguments |= draw(DECAY)
    if kind in ("LIF", "AdaptiveLIF", "CuBaLIF"):
        arguments["beta"] = draw(tensor_or_number(0.0, 1.0, size))
    if kind == "CuBaLIF":
        arguments["beta_syn"] = draw(tensor_or_number(0.0, 1.0, size))
    if kind == "AdaptiveLIF":
        arguments |= {"beta_adapt": draw(st.floats(0.3, 1)), "adapt_scale": draw(st.floats(-0.2, 2))}
    extra = draw(st.sampled_from(["", "refractory", "reset_delay", "residual_reset", "normalize"]))
    if extra == "refractory" and kind != "CuBaLIF":
        arguments["refractory"] = draw(st.integers(1, 4))
    if kind == "LIF":
        if extra == "normalize" or (extra == "residual_reset" and arguments["reset"] == "subtract"):
            arguments[extra] = True
        if extra == "reset_delay":
            arguments[extra] = True
    return getattr(spiking, kind)(**arguments).double()


@given(neuron=neurons(), image=st.booleans(), seed=st.integers(0, 9), density=st.sampled_from([0.0, 0.05, 0.3, 1.0]))
@settings(deadline=None, max_examples=50)
def test_every_neuron_with_all_its_options_equals_the_plain_model(neuron, image, seed, density):
    torch.manual_seed(seed)
    layer = spiking.Conv2d(2, 6, 3) if image else spiking.Linear(20, 6)
    model = lively(spiking.Sequential(layer, neuron).double())
    x = spikes(12, 2, *((2, 6, 5) if image else (20,)), density=density, seed=seed)
    check(model, x, fires=False)


@given(neuron=neurons(5), bias=st.booleans(), first=st.booleans(), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=25)
def test_recurrent_layers_equal_the_plain_model(neuron, bias, first, seed):
    torch.manual_seed(seed)
    layers = [spiking.Recurrent(neuron, 5, bias=bias)]
    model = lively(
        spiking.Sequential(*([spiking.Linear(8, 5)] if first else []), *layers, spiking.Linear(5, 2)).double()
    )
    check(model, spikes(12, 2, 8 if first else 5, density=0.3, seed=seed), fires=False)


@given(
    t=st.integers(1, 40),
    b=st.integers(1, 5),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    threads=st.integers(1, 2),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=30)
def test_chunks_of_any_size_are_the_whole(t, b, cuts, threads, seed):
    torch.manual_seed(seed)
    model = lively(spiking.Sequential(*NETS["deep"]()).double())
    x = spikes(t, b, *IMAGE[2:], seed=seed)
    compiled = spiking.compile_events(model, x)
    torch.set_num_threads(threads)
    whole, state, parts = compiled(x), None, []
    edges = [0, *sorted(min(c, t) for c in cuts), t]
    for start, stop in itertools.pairwise(edges):
        y, state = compiled(x[start:stop], state=state, return_state=True)
        parts.append(y)
    assert torch.equal(torch.cat(parts), whole)
    torch.set_num_threads(1)
    with torch.no_grad():
        assert torch.equal(whole, model(x))


# float32: spikes may differ where the membrane comes within the stated bound of the threshold


def test_float32_spikes_differ_only_within_the_rounding_bound():
    torch.manual_seed(3)
    n, differing, total = 400, 0, 0
    beta, threshold = 0.9, 1.0
    model = lively(spiking.Sequential(spiking.Linear(300, n), spiking.LIF(beta=beta, threshold=threshold)))
    with torch.no_grad():
        for seed in range(8):
            x = spikes(60, 4, 300, density=0.2, dtype=torch.float32, seed=seed)
            found, expected = spiking.compile_events(model, x)(x), model(x)
            wide = copy.deepcopy(model).double()
            h = v = a = torch.zeros(4, n, dtype=torch.float64)
            agree = torch.ones(4, n, dtype=torch.bool)
            for t in range(60):
                xt = x[t].double()
                h = beta * v + wide[0](xt)
                # What is summed into the membrane: the weights of active inputs, and what the reset took, with the leak of the membrane.
                a = beta * a + xt @ wide[0].weight.abs().T + wide[0].bias.abs() + threshold * expected[t].double()
                active = xt.sum(1, keepdim=True)
                bound = (active.max() + 4) * 2.0**-24 * a
                new = agree & (found[t] != expected[t])
                assert ((h - threshold).abs()[new] <= bound[new]).all()
                agree &= found[t] == expected[t]
                v = h - threshold * expected[t].double()
                differing, total = differing + int(new.sum()), total + int(agree.numel())
    assert differing <= total * 1e-4
    assert total == 8 * 60 * 4 * n


def test_shipped_network_spikes_alike_in_float64_and_decides_alike_in_float32(shared_batch):
    x, _ = shared_batch
    net = NMNISTNet.pretrained().eval()
    compiled = spiking.compile_events(net, x)
    assert "plain" not in compiled.report()
    with torch.no_grad():
        for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-12)):
            net.to(dtype)  # noticed at the next call
            y = x.to(dtype)
            (s, v), (s_, v_) = net(y, return_membrane=True), compiled(y, return_membrane=True)
            assert s_.dtype == dtype
            if dtype == torch.float64:
                assert torch.equal(s, s_)
            assert_close(v_, v, rtol=tolerance, atol=tolerance)
            assert torch.equal(net.scores(y).argmax(1), compiled.scores(y).argmax(1))
            found = compiled(y, return_state=True, return_membrane=True)
            assert_close(found[1], v, rtol=tolerance, atol=tolerance)
            equal_states(
                tuple(found[2][0])[3].v.double(), net(y, return_state=True)[1][0][3].v.double()
            ) if dtype == torch.float64 else None


@pytest.fixture(scope="module")
def shared_batch():
    """Frames as the shipped network wants them, of simulated recordings, and their labels."""
    from spiking.models.nmnist import EventBatches, Recipe
    from spiking.models.nmnist.run import open_recordings

    recordings = open_recordings(Recipe())
    return EventBatches(recordings.test).batch(np.arange(24), None)


@pytest.mark.parametrize("kind", ["conv", "mlp"])
@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("norm", ["batch", "td", "none"])
def test_every_network_of_the_tutorial_compiles(kind, pool, norm):
    config = NMNISTConfig(
        kind=kind, pool=pool, norm=norm, dropout=0.2, readout="rate", output_reset="subtract", hidden=40
    )
    net = lively(NMNISTNet(config).double())
    x = spikes(5, 2, 2, 34, 34, density=0.1)
    compiled = spiking.compile_events(net, x)
    assert "plain" not in compiled.report()
    with torch.no_grad():
        assert torch.equal(compiled(x), net(x))
        assert_close(compiled.scores(x), net.scores(x), rtol=0, atol=0)
        state, plain = None, None
        for x_t in x:
            y, state = compiled.step(x_t, state)
            z, plain = net.step(x_t, plain)
            assert torch.equal(y, z)
        equal_states(state, plain)


# NaN and infinity pass through as they do in the plain model


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_no_numbers_pass_as_in_the_plain_model(value):
    model = lively(
        spiking.Sequential(spiking.Linear(20, 6), spiking.LIF(), spiking.Linear(6, 3), spiking.LIF()).double()
    )
    x = spikes(8, 2, 20)
    x[3, 0, 5] = value
    with torch.no_grad():
        found, expected = spiking.compile_events(model, x)(x), model(x)
    assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert bool(expected.isnan().any()) or not np.isnan(value)


# Sizes


@pytest.mark.parametrize(("t", "b"), [(0, 2), (4, 0), (0, 0), (1, 1), (1, 33), (50, 1)])
def test_any_number_of_steps_and_rows(t, b):
    model = lively(spiking.Sequential(*NETS["deep"]()).double())
    compiled = spiking.compile_events(model, spikes(1, 1, *IMAGE[2:]))
    x = spikes(t, b, *IMAGE[2:])
    found, state = compiled(x, return_state=True)
    with torch.no_grad():
        expected, last = model(x, return_state=True) if b else (torch.zeros(t, 0, 5, dtype=torch.float64), None)
    assert torch.equal(found, expected)
    if last is not None:
        equal_states(state, last)


def test_rows_are_shared_out_between_threads_with_the_same_result():
    model = lively(spiking.Sequential(*NETS["deep"]()).double())
    x = spikes(20, 31, *IMAGE[2:])
    compiled = spiking.compile_events(model, x)
    alone = compiled(x)
    torch.set_num_threads(3)
    assert torch.equal(compiled(x), alone)


def test_layouts_that_are_not_contiguous_and_other_dtypes_are_read_right():
    model = lively(spiking.Sequential(*NETS["deep"]()).double())
    x = spikes(6, 2, *IMAGE[2:])
    compiled = spiking.compile_events(model, x)
    expected = compiled(x)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(compiled(turned), expected)
    assert torch.equal(compiled(x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (6, 2))), expected)
    assert torch.equal(compiled(x[:1].expand(6, -1, -1, -1, -1)), compiled(x[:1].repeat(6, 1, 1, 1, 1)))
    for dtype in (torch.bool, torch.uint8, torch.int64):
        assert torch.equal(compiled(x.to(dtype)), expected)


# Weights that change


def changed(model, how):
    first = model[0]
    if how == "optimiser":
        optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
        model(spikes(3, 2, 20)).sum().backward()
        optimiser.step()
    elif how == "load_state_dict":
        model.load_state_dict({k: v * 1.7 if v.is_floating_point() else v for k, v in model.state_dict().items()})
    elif how == "in place":
        with torch.no_grad():
            first.weight.mul_(1.9)
    elif how == "one entry":
        with torch.no_grad():
            first.weight[0, 0] += 3
    elif how == "data":
        first.weight.data = first.weight.data * 2
    elif how == "parameter":
        first.weight = nn.Parameter(torch.randn(6, 20, dtype=torch.float64))
    elif how == "statistics":
        model[1].running_mean.sub_(0.7)
    elif how == "eps":
        model[1].eps = 0.8
    elif how == "threshold":
        model[2].threshold = 0.4
    elif how == "beta":
        with torch.no_grad():
            model[2].beta.fill_(0.1)


@pytest.mark.parametrize(
    "how",
    [
        "optimiser",
        "load_state_dict",
        "in place",
        "one entry",
        "data",
        "parameter",
        "statistics",
        "eps",
        "threshold",
        "beta",
    ],
)
def test_changed_weights_are_never_stale(how):
    model = lively(
        spiking.Sequential(
            spiking.Linear(20, 6), spiking.BatchNorm1d(6), spiking.LIF(learn_beta=True), spiking.Linear(6, 3)
        ).double()
    )
    x = spikes(9, 2, 20, density=0.4)
    compiled = spiking.compile_events(model, x)
    before = compiled(x)
    changed(model, how)
    with torch.no_grad():
        assert_close(compiled(x), model(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(compiled(x), before)


def test_a_change_that_torch_does_not_count_is_taken_over_by_refresh():
    model = lively(spiking.Sequential(spiking.Linear(20, 6)).double())
    x = spikes(3, 1, 20, density=0.4)
    compiled = spiking.compile_events(model, x)
    before = compiled(x)
    model[0].weight.detach().numpy()[:] *= 2
    assert torch.equal(compiled(x), before)
    compiled.refresh()
    with torch.no_grad():
        assert_close(compiled(x), model(x), rtol=1e-12, atol=1e-12)


def test_weights_changed_by_another_thread_give_one_set_or_the_other():
    model = lively(spiking.Sequential(spiking.Linear(200, 64)).double())
    x = spikes(4, 2, 200)
    compiled = spiking.compile_events(model, x)
    weights = [model[0].weight.detach().clone(), model[0].weight.detach() * 3]
    with torch.no_grad():
        allowed = []
        for w in weights:
            model[0].weight.copy_(w)
            allowed.append(compiled(x))
    stop = threading.Event()

    def change():
        k = 0
        while not stop.is_set():
            with torch.no_grad():
                model[0].weight = nn.Parameter(weights[k % 2].clone())
            k += 1

    other = threading.Thread(target=change)
    other.start()
    found = [compiled(x) for _ in range(200)]
    stop.set()
    other.join()
    assert all(any(torch.allclose(y, a, rtol=1e-12) for a in allowed) for y in found)


def test_several_threads_may_call_one_network():
    model = lively(spiking.Sequential(*NETS["deep"]()).double())
    inputs = [spikes(10, 2, *IMAGE[2:], seed=k) for k in range(4)]
    compiled = spiking.compile_events(model, inputs[0])
    expected = [compiled(x) for x in inputs]
    right = [False] * 4

    def work(k):
        right[k] = all(torch.equal(compiled(inputs[k]), expected[k]) for _ in range(20))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(right)


# A module among modules


def test_copies_and_pickles_run_on_their_own():
    model = lively(spiking.Sequential(*NETS["deep"]()).double())
    x = spikes(5, 2, *IMAGE[2:])
    compiled = spiking.compile_events(model, x)
    expected = compiled(x)
    for twin in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert torch.equal(twin(x), expected)
        with torch.no_grad():
            twin.model[0].weight.zero_()
        assert torch.equal(compiled(x), expected)
        assert not torch.equal(twin(x), expected)


def test_the_model_is_left_as_it_was():
    model = lively(spiking.Sequential(*NETS["deep"]()).double()).train()
    before = copy.deepcopy(model.state_dict())
    compiled = spiking.compile_events(model, spikes(5, 2, *IMAGE[2:]))
    compiled(spikes(5, 2, *IMAGE[2:]))
    compiled.eval()
    assert all(m.training for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert not list(compiled.parameters())


def test_it_may_stand_in_for_a_part_of_another_model():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = spiking.Sequential(*NETS["deep"]())

        def forward(self, x):
            return self.body(x).mean(0)

    model = lively(Classifier().double())
    x = spikes(5, 2, *IMAGE[2:])
    with torch.no_grad():
        expected = model(x)
        model.body = spiking.compile_events(model.body, x)
        assert torch.equal(model(x), expected)


# What is not compiled


class Odd(nn.Module):
    def forward(self, x):
        return x * 2


class Counting(spiking.Linear):
    def forward(self, input):
        return super().forward(input) + 1


def hooked():
    layer = spiking.Linear(20, 8)
    layer.register_forward_hook(lambda m, i, o: o + 1)
    return layer


PLAIN = {
    "unknown": (Odd, "the engine does not know Odd"),
    "own forward": (lambda: Counting(20, 20), "Counting has a forward of its own"),
    "hooks": (hooked, "it has forward hooks"),
    "parametrized": (
        lambda: nn.utils.parametrizations.weight_norm(spiking.Linear(20, 8)),
        r"its weights are computed \(parametrizations\)",
    ),
}
PLAIN_IMAGES = {
    "padding": (lambda: spiking.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), 'padding_mode="circular"'),
    "stride": (lambda: spiking.Conv2d(2, 3, 3, stride=(1, 2)), r"stride \(1, 2\) differs"),
    "pool": (lambda: spiking.AvgPool2d(2, padding=1), "average pooling with padding"),
    "oblong": (lambda: spiking.AvgPool2d((1, 2)), "windows that are not square"),
    "custom neuron": (lambda: Slow(), "Slow has a forward of its own"),
}


class Slow(spiking.LIF):
    def forward(self, x, state=None, return_state=False):
        return super().forward(x * 0.5, state, return_state)


@pytest.mark.parametrize("name", [*PLAIN, *PLAIN_IMAGES])
def test_layers_that_cannot_be_folded_run_as_they_stand_and_say_why(name):
    make, reason = (PLAIN | PLAIN_IMAGES)[name]
    images = name in PLAIN_IMAGES
    x = spikes(6, 2, *((2, 7, 6) if images else (20,)), density=0.4)
    odd = make()
    model = lively(spiking.Sequential(spiking.LIF(threshold=0.9), odd, spiking.LIF(beta=0.8)).double())
    compiled = check(model, x, fires=False)
    lines = compiled.report().splitlines()
    assert [line.split()[0] for line in lines] == ["compiled", "plain", "compiled"]
    assert lines[1].startswith(f"plain      1 ({type(odd).__name__}): ")
    assert lines[1] in repr(compiled)
    with pytest.raises(spiking.SpikingError, match=rf"compile_events: layer 1: .*{reason}.*strict=False"):
        spiking.compile_events(model, x, strict=True)


def test_plain_layers_have_to_be_in_evaluation_mode():
    model = spiking.Sequential(spiking.BatchNorm1d(4, track_running_stats=False), spiking.LIF()).train()
    compiled = spiking.compile_events(model, torch.rand(3, 2, 4))
    assert "0 (BatchNorm1d): it keeps no running statistics" in compiled.report()
    with pytest.raises(spiking.SpikingError, match=r'layer "0" is in training mode; expected evaluation'):
        compiled(torch.rand(3, 2, 4))


HALVES = (torch.bfloat16, torch.float16)


def half_model(dtype):
    model = spiking.Sequential(
        spiking.Conv2d(2, 5, 3),
        spiking.BatchNorm2d(5),
        spiking.AvgPool2d(2),
        spiking.LIF(beta=0.7),
        spiking.Flatten(),
        spiking.Linear(45, 30),
        spiking.Recurrent(spiking.LIF(), 30),
        spiking.Linear(30, 6),
        spiking.AdaptiveLIF(),
    )
    return lively(model).to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_sixteen_bit_networks_compute_in_float32_from_their_weights(dtype):
    model, x = half_model(dtype), spikes(12, 3, 2, 8, 8, density=0.3, dtype=dtype)
    compiled = spiking.compile_events(model, x, strict=True)
    found, state = compiled(x, return_state=True)
    assert found.dtype == dtype
    wide = copy.deepcopy(model).float()
    assert torch.equal(found.float(), spiking.compile_events(wide, x.float())(x.float()))
    assert 0 < found.float().mean() < 1
    with torch.no_grad():
        expected, last = model(x, return_state=True)
        differ = (found != expected).float().mean()
        assert differ < 0.1  # the plain model rounds its currents to 16 bits
        assert [getattr(s, "v", None) is None or s.v.dtype for s in state] == [
            getattr(s, "v", None) is None or s.v.dtype for s in last
        ]
        # In steps, in chunks, and on from the plain model's state.
        head, middle = compiled(x[:5], return_state=True)
        assert torch.equal(torch.cat([head, compiled(x[5:], state=middle)]), found)
        steps, now = [], None
        for x_t in x:
            y, now = compiled.step(x_t, now)
            steps.append(y)
        assert torch.equal(torch.stack(steps), found)
        assert compiled(x[5:], state=model(x[:5], return_state=True)[1]).dtype == dtype
        assert model(x[5:], state=middle).dtype == dtype
    model.float()
    assert compiled(x.float()).dtype == torch.float32


@pytest.mark.parametrize("dtype", HALVES)
def test_sixteen_bit_networks_take_events(dtype):
    model = half_model(dtype)
    rng = np.random.default_rng(0)
    events = np.zeros(200, dtype=[("t", "i8"), ("x", "i2"), ("y", "i2"), ("p", "u1")])
    events["t"] = np.sort(rng.integers(0, 12_000, 200))
    events["x"], events["y"], events["p"] = (rng.integers(0, n, 200) for n in (8, 8, 2))
    compiled = spiking.compile_events(model, torch.zeros(1, 1, 2, 8, 8, dtype=dtype))
    found = compiled.run_events(events, 1e-3, start=0, steps=12)
    frames = torch.zeros(12, 1, 2, 8, 8, dtype=dtype)
    for t, x, y, p in events.tolist():
        frames[t // 1000, 0, p, y, x] += 1
    assert found.dtype == dtype
    assert torch.equal(found, compiled(frames))


def test_weights_of_several_dtypes_run_as_they_stand():
    model = spiking.Sequential(spiking.Linear(6, 3).to(torch.bfloat16), spiking.LIF(learn_beta=True)).eval()
    compiled = spiking.compile_events(model, spikes(*SMALL, dtype=torch.bfloat16))
    assert compiled.report().count("its weights are torch.bfloat16, torch.float32") == 2
    with pytest.raises(spiking.SpikingError, match=r"layer 0: its weights are torch\.bfloat16, torch\.float32"):
        spiking.compile_events(model, spikes(*SMALL, dtype=torch.bfloat16), strict=True)


# Errors


SMALL = (4, 2, 6)


def small(**options):
    model = lively(spiking.Sequential(spiking.Linear(6, 3), spiking.LIF()))
    return spiking.compile_events(model, torch.zeros(SMALL), **options)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: spiking.compile_events(Odd(), torch.zeros(SMALL)),
            r"compile_events: got Odd; expected a spiking\.Sequential",
        ),
        (lambda: spiking.compile_events(spiking.Sequential(), torch.zeros(SMALL)), "got a model without layers"),
        (
            lambda: spiking.compile_events(spiking.Sequential(spiking.LIF()), torch.zeros(3, 4)),
            r"example: got shape \[3, 4\]",
        ),
        (
            lambda: spiking.compile_events(spiking.Sequential(spiking.LIF()), [1]),
            r"example: got type list; expected an input \[T, B, \*\]",
        ),
        (
            lambda: spiking.compile_events(spiking.Sequential(spiking.Linear(5, 2)), torch.zeros(SMALL)),
            r'layer "0": Linear: got input of shape',
        ),
        (lambda: small()(torch.zeros(4, 2, 7)), r"EventNetwork: got input of shape \[4, 2, 7\]; expected \[T, B, 6\]"),
        (lambda: small().step(torch.zeros(SMALL)), r"got input of shape \[4, 2, 6\]; expected \[B, 6\]"),
        (
            lambda: small()(torch.zeros(SMALL, dtype=torch.float64)),
            r"got input of dtype torch\.float64; expected torch\.float32",
        ),
        (lambda: small()(torch.zeros(SMALL, requires_grad=True)), "got input that requires a gradient; expected none"),
        (lambda: small()(torch.zeros(SMALL), state=(None,)), "state: got 1 entries; expected 2"),
        (
            lambda: small()(torch.zeros(SMALL), state=3),
            "state: got a int; expected what the last call returned, or None",
        ),
        (
            lambda: small()(torch.zeros(SMALL).to_sparse()),
            r"got input with layout torch\.sparse_coo; expected a dense tensor",
        ),
        (
            lambda: small()(torch.zeros(SMALL), state=(None, spiking.neuron.LIFState(torch.zeros(2, 4)))),
            r"LIF: got a state of shape \[2, 4\]; expected \[2, 3\]",
        ),
        (lambda: small()(torch.zeros(SMALL), state=(None, 3)), "LIF: got a state of type int; expected LIFState"),
        (lambda: small()(torch.zeros(4, 1, 6), state=small_state()), "LIF: got a state of shape"),
        (
            lambda: small()(torch.zeros(SMALL), return_membrane=True),
            "got return_membrane=True; expected a model whose readout has a membrane",
        ),
        (
            lambda: small().early_exit(torch.zeros(SMALL), -1.0),
            r"early_exit\.margin: got -1\.0; expected a number >= 0",
        ),
        (lambda: small().early_exit(torch.zeros(0, 2, 6), 0.0), "early_exit: got no time step"),
        (lambda: engine.early_exit_cost(small(), [], [0.1]), "early_exit_cost: got no batch"),
        (lambda: small().train(), r"EventNetwork\.train: compiled networks are for inference only"),
        (
            lambda: small().run_events(events_of([]), 0.001),
            r"run_events: got a network for input \[6\]; expected \[polarities, height, width\]",
        ),
    ],
)
def test_wrong_calls_are_told_what_was_expected(call, match):
    with pytest.raises(spiking.SpikingError, match=match):
        call()


def small_state():
    return small()(torch.zeros(SMALL), return_state=True)[1]


def test_a_layer_that_gives_no_tensor_is_named():
    net = spiking.Sequential(torch.nn.GRU(4, 4)).eval()
    with pytest.raises(
        spiking.SpikingError, match=r'compile_events: layer "0": GRU gives a tuple; expected one tensor'
    ):
        spiking.compile_events(net, torch.zeros(6, 1, 4))


def test_a_state_of_another_batch_is_refused():
    compiled = small()
    _, state = compiled(torch.zeros(SMALL), return_state=True)
    with pytest.raises(spiking.SpikingError, match=r"state: got a state of 2 rows in torch\.float32; expected 3"):
        compiled(torch.zeros(4, 3, 6), state=state)


def test_a_threshold_that_no_neuron_can_have_is_refused_when_it_is_met():
    compiled = small()
    compiled.model[1].threshold = -1.0
    with pytest.raises(spiking.SpikingError, match=r"LIF\.threshold: got -1\.0"):
        compiled(torch.zeros(SMALL))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_when_they_are_met(value):
    compiled = small()
    with torch.no_grad():
        compiled.model[0].weight[1, 2] = value
    with pytest.raises(spiking.SpikingError, match=r'layer "0": got weights that are not finite'):
        compiled(torch.zeros(SMALL))


@pytest.mark.parametrize("call", ["run_events", "early_exit"])
def test_what_needs_the_whole_network_says_which_layer_is_in_the_way(call):
    compiled = spiking.compile_events(spiking.Sequential(Odd(), spiking.LIF()).eval(), torch.zeros(2, 1, 2, 4, 4))
    arguments = (events_of([]), 0.001) if call == "run_events" else (torch.zeros(2, 1, 2, 4, 4), 0.1)
    with pytest.raises(
        spiking.SpikingError,
        match=rf"{call}: got a network with layers that were not compiled \(0: the engine does not know Odd\)",
    ):
        getattr(compiled, call)(*arguments)


# Early exit


@pytest.mark.parametrize("readout", ["membrane", "rate"])
def test_early_exit_stops_where_the_lead_reaches_the_margin(readout, shared_batch):
    x, labels = shared_batch
    net = NMNISTNet.pretrained().double().eval()
    net.config = copy.copy(net.config)
    object.__setattr__(net.config, "readout", readout)
    x = x.double()
    compiled = spiking.compile_events(net, x)
    with torch.no_grad():
        output, membrane = net(x, return_membrane=True)
    sums = (membrane if readout == "membrane" else output).cumsum(0)
    best = sums.topk(2, dim=2).values
    lead = (best[..., 0] - best[..., 1]) / len(x)
    for margin in (0.0, 0.1, 0.4, 1e9):
        scores, steps = compiled.early_exit(x, margin)
        reached = torch.cat([lead >= margin, torch.ones(1, lead.shape[1], dtype=torch.bool)]).to(torch.int64)
        expected = (reached.argmax(0) + 1).clamp(max=len(x))
        assert torch.equal(steps, expected)
        rows = torch.arange(len(steps))
        assert_close(scores, (sums[steps - 1, rows] / steps[:, None]).float(), rtol=1e-6, atol=1e-6)
    full = engine.early_exit_cost(compiled, [(x, labels)], [0.0, 1e9])
    assert full[1].steps == 1
    assert full[1].accuracy == full[1].full_accuracy == full[0].full_accuracy
    assert full[0].steps == pytest.approx(1 / 6)


# Events


def events_of(rows, sensor=(10, 11)):
    t, x, y, p = zip(*rows, strict=True) if rows else ([], [], [], [])
    return datasets.Events(
        np.array(t, np.int64), np.array(x, np.int64), np.array(y, np.int64), np.array(p, np.int64), sensor
    )


def frames_of(events, dt_us, start, steps, shape, clip=False):
    """Frames [steps, 1, *shape] by a loop over the events."""
    x = torch.zeros(steps, 1, *shape, dtype=torch.float64)
    for t, column, line, p in zip(events.t, events.x, events.y, events.p, strict=True):
        k = (int(t) - start) // dt_us
        if 0 <= k < steps:
            at = (k, 0, int(p) if shape[0] == 2 else 0, int(line), int(column))
            x[at] = 1 if clip else x[at] + 1
    return x


def sparse_stream(seed, n=300, gap=2000, sensor=(10, 11)):
    """Bursts of events with long silences between them."""
    rng = np.random.default_rng(seed)
    t = np.cumsum(np.where(rng.random(n) < 0.05, rng.integers(0, gap * 1000, n), rng.integers(0, 300, n)))
    return datasets.Events(
        t, rng.integers(0, sensor[0], n), rng.integers(0, sensor[1], n), rng.integers(0, 2, n), sensor
    )


def close_runs(found, expected):
    for a, b in zip(found, expected, strict=True):
        if isinstance(b, torch.Tensor):
            same(a, b) if bool(((b == 0) | (b == 1)).all()) else assert_close(a, b, rtol=1e-9, atol=1e-9)
        else:
            equal_states_within(a, b)


def equal_states_within(found, expected):
    if isinstance(expected, torch.Tensor):
        assert_close(found, expected, rtol=1e-8, atol=1e-10)
    elif expected is not None:
        for a, b in zip(found, expected, strict=True):
            equal_states_within(a, b)


@given(neuron=neurons(6), seed=st.integers(0, 30), clip=st.booleans(), polarities=st.integers(1, 2), low=st.booleans())
@settings(deadline=None, max_examples=50)
def test_events_with_long_gaps_give_what_their_frames_give(neuron, seed, clip, polarities, low):
    torch.manual_seed(seed)
    model = spiking.Sequential(
        spiking.Conv2d(polarities, 6, 3),
        spiking.AvgPool2d(2),
        neuron,
        spiking.Flatten(),
        spiking.Linear(96, 4),
        spiking.LIF(),
    )
    lively(model.double())
    with torch.no_grad():
        for m in (model[0], model[4]):
            m.bias.fill_(-0.01 if low else 0.05)
    events = sparse_stream(seed, n=120, gap=400)
    compiled = spiking.compile_events(model, spikes(1, 1, polarities, 11, 10))
    found = compiled.run_events(events, 0.001, clip=clip, return_state=True)
    x = frames_of(events, 1000, int(events.t[0]), len(found[0]), (polarities, 11, 10), clip)
    with torch.no_grad():
        close_runs(found, model(x, return_state=True))


def test_quiet_time_is_jumped_over():
    model = lively(
        spiking.Sequential(
            spiking.Conv2d(2, 8, 3, bias=False),
            spiking.LIF(),
            spiking.Flatten(),
            spiking.Linear(576, 5, bias=False),
            spiking.LIF(),
        ).double()
    )
    events = events_of([(0, 1, 1, 1), (6_000_000, 4, 4, 0)])
    compiled = spiking.compile_events(model, spikes(1, 1, 2, 11, 10))
    out = compiled.run_events(events, 0.001)
    assert out.shape == (6_001, 1, 5)
    assert compiled.steps_jumped > 1.99 * 6_000
    with torch.no_grad():
        assert torch.equal(out, model(frames_of(events, 1000, 0, 6_001, (2, 11, 10))))


def test_what_fires_in_silence_is_stepped_not_jumped():
    """A bias that charges the neuron until it fires, refractory rest, and a membrane that stays above its threshold."""
    for neuron in (
        spiking.LIF(0.99),
        spiking.LIF(0.9, refractory=5),
        spiking.LIF(0.99, reset="none"),
        spiking.CuBaLIF(0.9, 0.99),
        spiking.AdaptiveLIF(0.99),
    ):
        model = lively(spiking.Sequential(spiking.Flatten(), spiking.Linear(220, 5), neuron).double())
        with torch.no_grad():
            model[1].bias.copy_(torch.tensor([0.3, 0.0098, 0.0102, 0.0, -1.0]))
        events = events_of([(0, 1, 1, 1), (700_000, 2, 2, 1)])
        compiled = spiking.compile_events(model, spikes(1, 1, 2, 11, 10))
        found = compiled.run_events(events, 0.001, return_state=True)
        with torch.no_grad():
            close_runs(found, model(frames_of(events, 1000, 0, 701, (2, 11, 10)), return_state=True))
        assert found[0].sum() > 20


def test_recurrent_networks_take_events_too():
    model = lively(
        spiking.Sequential(
            spiking.Flatten(),
            spiking.Linear(220, 9, bias=False),
            spiking.Recurrent(spiking.LIF(0.8), 9),
            spiking.Linear(9, 3),
        ).double()
    )
    nn.init.normal_(model[2].recurrent.weight, 0, 0.2)
    events = sparse_stream(4, n=80)
    compiled = spiking.compile_events(model, spikes(1, 1, 2, 11, 10))
    found = compiled.run_events(events, 0.002, return_state=True)
    with torch.no_grad():
        close_runs(
            found, model(frames_of(events, 2000, int(events.t[0]), len(found[0]), (2, 11, 10)), return_state=True)
        )
    assert compiled.steps_jumped > 0


@given(seed=st.integers(0, 20), start=st.integers(-3000, 9000), steps=st.integers(0, 40), cut=st.integers(0, 40))
@settings(deadline=None, max_examples=25)
def test_a_window_of_the_stream_and_its_continuation(seed, start, steps, cut):
    model = lively(
        spiking.Sequential(
            *NETS["deep"]()[1:1],
            spiking.Conv2d(2, 8, 3),
            spiking.LIF(),
            spiking.Flatten(),
            spiking.Linear(576, 5),
            spiking.LIF(),
        ).double()
    )
    events = sparse_stream(seed, gap=5)
    compiled = spiking.compile_events(model, spikes(1, 1, 2, 11, 10))
    whole, last = compiled.run_events(events, 0.0005, start=start, steps=steps, return_state=True)
    x = frames_of(events, 500, start, steps, (2, 11, 10))
    with torch.no_grad():
        close_runs((whole, last), model(x, return_state=True) if steps else (whole, last))
    cut = min(cut, steps)
    head, state = compiled.run_events(events, 0.0005, start=start, steps=cut, return_state=True)
    tail = compiled.run_events(events, 0.0005, start=start + 500 * cut, steps=steps - cut, state=state)
    assert torch.equal(torch.cat([head, tail]), whole)


def test_structured_arrays_and_no_events():
    model = lively(spiking.Sequential(spiking.Conv2d(2, 8, 3), spiking.LIF()).double())
    compiled = spiking.compile_events(model, spikes(1, 1, 2, 11, 10))
    events = sparse_stream(1, n=50, gap=3)
    assert torch.equal(compiled.run_events(events, 0.001), compiled.run_events(events.to_structured(), 0.001))
    assert compiled.run_events(events_of([]), 0.001).shape == (0, 1, 8, 9, 8)
    silent, state = compiled.run_events(events_of([]), 0.001, steps=7, return_state=True)
    expected, last = compiled(torch.zeros(7, 1, 2, 11, 10, dtype=torch.float64), return_state=True)
    assert torch.equal(silent, expected)
    equal_states(state, last)


@pytest.mark.parametrize(
    ("events", "options", "match"),
    [
        ([(0, 10, 0, 1)], {}, r"event 0: got x=10, y=0, p=1; expected x < 10, y < 11"),
        ([(0, 1, 1, 1), (1, 1, 1, 2)], {}, r"event 1: got x=1, y=1, p=2; expected .* p 0 or 1"),
        ([(5, 1, 1, 1), (4, 1, 1, 1)], {}, r"event 1: got t=4 µs; expected times from 0 on that never decrease"),
        ([(0, 1, 1, 1)], {"dt": 1e-7}, r"run_events\.dt: got 1e-07 s; expected a whole number of microseconds"),
        ([(0, 1, 1, 1)], {"dt": 1.5e-6}, r"run_events\.dt: got 1\.5e-06 s"),
        ([(0, 1, 1, 1)], {"steps": -1}, r"run_events\.steps: got -1; expected a number >= 0"),
        (
            [(0, 1, 1, 1)],
            {"return_membrane": True},
            "got return_membrane=True; expected a model whose readout has a membrane",
        ),
    ],
)
def test_wrong_events_are_told_what_was_expected(events, options, match):
    model = spiking.Sequential(spiking.Conv2d(2, 8, 3), spiking.LIF())
    compiled = spiking.compile_events(model, torch.zeros(1, 1, 2, 11, 10))
    options = {"dt": 0.001, **options}
    with pytest.raises(spiking.SpikingError, match=match):
        compiled.run_events(events_of(events, sensor=None), **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dt": "1 ms"}, r"run_events\.dt: got '1 ms'; expected a number of seconds"),
        ({"dt": None}, r"run_events\.dt: got None"),
        ({"dt": float("nan")}, r"run_events\.dt: got nan s; expected a whole number of microseconds"),
        ({"dt": float("inf")}, r"run_events\.dt: got inf s"),
        ({"dt": 0.001, "steps": 1.5}, r"run_events\.steps: got 1\.5; expected a whole number or None"),
        ({"dt": 0.001, "start": "now"}, r"run_events\.start: got 'now'"),
        (
            {"dt": 0.001, "steps": 1 << 40},
            r"run_events: got 1099511627776 steps; expected at most .* Run the stream in parts",
        ),
        ({"dt": 0.001, "state": 4}, "EventNetwork.state: got a int"),
    ],
)
def test_numbers_that_make_no_steps_are_refused(options, match):
    model = spiking.Sequential(spiking.Flatten(), spiking.Linear(128, 5), spiking.LIF())
    network = spiking.compile_events(model, torch.zeros(1, 1, 2, 8, 8))
    with pytest.raises(spiking.SpikingError, match=match):
        network.run_events(events_of([]), **options)


def test_other_things_than_events_are_refused():
    compiled = spiking.compile_events(spiking.Sequential(spiking.Conv2d(2, 8, 3)), torch.zeros(1, 1, 2, 11, 10))
    with pytest.raises(
        spiking.SpikingError, match=r"run_events: got ndarray; expected datasets\.Events or a structured array"
    ):
        compiled.run_events(np.zeros((3, 4)), 0.001)
    wide = np.zeros(1, [("t", np.float64), ("x", np.float64), ("y", np.int64), ("p", np.int64)])
    wide["x"] = 0.5
    with pytest.raises(spiking.SpikingError, match="got events whose fields are no whole numbers"):
        compiled.run_events(wide, 0.001)


def test_real_recordings_give_what_their_frames_give(shared):
    archive = shared / "data/nmnist/nmnist-subset.zip"
    recordings = datasets.NMNIST(archive, train=False, stabilize=True)
    net = NMNISTNet.pretrained().double().eval()
    compiled = spiking.compile_events(net, spikes(1, 1, 2, 34, 34))
    to_frames = datasets.ToFrames(time_window=5000, start_time=0, sensor_size=(34, 34), clip=True)
    spiked = 0
    for index in range(0, len(recordings), max(len(recordings) // 12, 1)):
        events, _ = recordings[index]
        x = torch.from_numpy(to_frames(events)).double().unsqueeze(1)
        found = compiled.run_events(events, 0.005, start=0, clip=True, return_membrane=True, return_state=True)
        with torch.no_grad():
            expected = net(x, return_membrane=True, return_state=True)
        assert torch.equal(found[0], expected[0])
        assert_close(found[1], expected[1], rtol=1e-10, atol=1e-10)
        equal_states_within(found[2], expected[2])
        spiked += int(expected[0].sum())
    assert spiked > 0
