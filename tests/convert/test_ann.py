"""Conversions: golden thresholds and logits (tests/golden/iir_snn, from the authors' code), every method, every refusal."""

import numpy as np
import pytest
import torch
from golden_iir import golden_ann, neurons
from torch import nn
from torch.nn import functional as tf

import spiking
from spiking import SpikingError, encode
from spiking.convert import QCFS, OffsetLIF, Wired, from_ann, percentile, quantize_activations, retrainable_lif
from spiking.convert.ann import spiking_body


@pytest.fixture
def images():
    return torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def ann(images):
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, 10),
    )  # fmt: skip
    for _ in range(20):
        net(images)
    return net.eval()


class Residual(nn.Module):
    """A network as torchvision writes them: one ReLU used twice, a downsampled shortcut, functional ends."""

    def __init__(self, join: str = "sum") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.down = nn.Sequential(nn.Conv2d(6, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8))
        self.conv4 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)
        self.join = join

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.conv3(self.relu(self.bn2(self.conv2(x))))
        y = self.relu(y + self.down(x))
        z = self.conv4(y)
        y = tf.relu(z + y) if self.join == "sum" else tf.relu(z) + y
        y = tf.adaptive_avg_pool2d(y, 1)
        return self.fc(torch.flatten(y, 1))


# Golden


@pytest.mark.parametrize("name", ["net_a", "net_bias"])
@pytest.mark.parametrize("steps", [1, 5, 100, 500])
@pytest.mark.parametrize("q", [90.0, 99.0])
def test_balanced_thresholds_are_the_published_ones(golden, name, steps, q):
    ann, g = golden_ann(golden, name)
    net = from_ann(ann, torch.tensor(g["x"]), timesteps=1, calibration_steps=steps, percentile=q, rescale=False)
    found = [neuron.threshold.item() for neuron in neurons(net)]
    assert found == g[f"thr_T{steps}_q{q}"].tolist()


@pytest.mark.parametrize(
    ("name", "group"), [("net_a", "s1"), ("net_a", "s06"), ("net_a", "s06_l09"), ("net_a", "long"), ("net_bias", "s1")]
)
def test_logits_and_spike_counts_for_one_to_five_steps(golden, name, group):
    ann, g = golden_ann(golden, name)
    x = torch.tensor(g["x"])
    net = from_ann(ann, x, timesteps=1, rescale=False)
    for neuron, threshold in zip(neurons(net), g.get(f"{group}/thr", g["thr_T500_q90.0"])):
        neuron.threshold.data.fill_(float(threshold))
        neuron.beta.data.fill_(float(g.get(f"{group}/leak", 1.0)))
    exact = group in ("s1", "long")
    for steps in (int(key.rpartition("T")[2]) for key in g if key.startswith(f"{group}/logits")):
        with spiking.record(net) as trace:
            logits = net(encode.direct(x, steps)).sum(0)
        counts = np.stack([row.counts["spikes"] for row in trace.neurons], axis=1)
        assert np.abs(counts - g[f"{group}/spike_count_T{steps}"]).max() <= (0 if exact else 1)
        torch.testing.assert_close(
            logits, torch.tensor(g[f"{group}/logits_T{steps}"]), rtol=0, atol=0 if exact else 1e-5
        )


def test_percentiles_are_ranks_without_interpolation(golden):
    with np.load(golden / "iir_snn/percentile.npz") as g:
        cases = [key for key in g.files if key.startswith("p_")]
        for key in cases:
            _, n, q = key.split("_")
            assert percentile(torch.tensor(g[f"x_{n}"]), float(q)) == float(g[key]), key
    assert len(cases) > 20


@pytest.mark.parametrize("levels", [4, 8])
def test_quantised_activation_and_its_neuron(golden, levels):
    with np.load(golden / "iir_snn/qcfs.npz") as file:
        g = {key.split("/")[1]: torch.tensor(file[key]) for key in file.files if key.startswith(f"L{levels}/")}
    layer = QCFS(levels, float(g["thresh"]))
    x = g["x"].float().requires_grad_()
    y = layer(x)
    torch.testing.assert_close(y, g["y"].float(), rtol=0, atol=1e-6)
    y.backward(g["grad_y"].float())
    inner = (x != 0) & (x != layer.threshold)  # there the clamp of the torch version decides
    torch.testing.assert_close(x.grad[inner], g["grad_x"].float()[inner], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(layer.threshold.grad, g["grad_thresh"].float().reshape(()), rtol=1e-4, atol=1e-5)
    theta = float(g["thresh"])
    neuron = retrainable_lif(theta, tie="ge", v0=theta / 2)
    for key in (key for key in g if key.startswith("if_T")):
        spikes = neuron(encode.direct(g["x"].float().unsqueeze(0), int(key[4:])))
        torch.testing.assert_close(spikes.squeeze(1) * theta, g[key].float(), rtol=0, atol=1e-6)


# Methods


@pytest.mark.parametrize(("method", "steps"), [("max", 64), ("percentile", 64), ("optimal", 32)])
def test_rates_of_many_steps_are_the_activations(ann, images, method, steps):
    net = from_ann(ann, images, method=method, timesteps=steps, percentile=100.0 if method == "percentile" else None)
    torch.testing.assert_close(net.scores(images), ann(images), rtol=0, atol=0.1 * ann(images).abs().max().item())
    assert net.report.agreement > 0.9
    assert net.report.error < 0.06


def test_the_optimal_conversion_beats_the_plain_one_at_few_steps(ann, images):
    errors = {m: from_ann(ann, images, method=m, timesteps=4).report.error for m in ("max", "percentile", "optimal")}
    assert errors["optimal"] < 0.5 * min(errors["max"], errors["percentile"])


def test_graded_spikes_need_one_step(ann, images):
    net = from_ann(ann, images, method="optimal", timesteps=1, levels=8)
    assert net.report.error < 0.07
    assert net.report.error < 0.5 * from_ann(ann, images, method="optimal", timesteps=1).report.error


@pytest.mark.parametrize("q", [80.0, 90.0, 95.0])
def test_balancing_over_one_step_sets_the_rates(ann, images, q):
    net = from_ann(ann, images, timesteps=1, percentile=q)
    rates = [row.rate for row in net.report.layers if row.rate is not None]
    assert all(abs(rate - (1 - q / 100)) < 0.01 for rate in rates)


def test_rescaling_changes_nothing_in_a_chain_without_biases(golden):
    ann, g = golden_ann(golden, "net_a")
    x = torch.tensor(g["x"])
    plain, rescaled = (from_ann(ann, x, timesteps=3, rescale=r) for r in (False, True))
    assert torch.equal(plain.scores(x), rescaled.scores(x))


def test_rescaling_divides_biases_by_what_a_spike_stands_for(golden):
    ann, g = golden_ann(golden, "net_bias")
    x = torch.tensor(g["x"])
    net = from_ann(ann, x, timesteps=3)
    unit = net.report.layers[1].unit
    assert unit == net.report.layers[1].threshold
    torch.testing.assert_close(net.body[3].bias, ann[3].bias / unit)
    assert torch.equal(net.body[0].bias, ann[0].bias)


def test_sigma_scales_all_thresholds(ann, images):
    whole, part = (neurons(from_ann(ann, images, timesteps=2, sigma=s)) for s in (1.0, 0.25))
    assert [n.threshold.item() * 0.25 for n in whole] == [n.threshold.item() for n in part]


def test_quantised_training_converts_with_its_own_thresholds(ann, images):
    quantised = quantize_activations(ann, levels=4, threshold=1.0)
    layers = [m for m in quantised.modules() if isinstance(m, QCFS)]
    layers[1].threshold.data.fill_(0.25)
    net = from_ann(quantised, images, method="qcfs", timesteps=4)
    assert [n.threshold.item() for n in neurons(net)] == [1.0, 0.25]
    first = net.report.layers[1]
    assert first.error < 1e-5  # constant input: exact at T = L


@pytest.mark.parametrize("join", ["sum", "spikes"])
def test_branching_networks(images, join):
    torch.manual_seed(3)
    ann = Residual(join)
    for _ in range(20):
        ann(images)
    ann.eval()
    net = from_ann(ann, images, method="max", timesteps=128)
    assert isinstance(net.body, Wired)
    assert len(neurons(net)) == 4
    torch.testing.assert_close(net.scores(images), ann(images), rtol=0, atol=0.06 * ann(images).abs().max().item())
    text = str(net.report)
    assert 'batch norm "bn1" folded in' in text
    assert 'batch norm "down.1" folded in' in text


def test_the_report_names_every_layer_as_the_user_did(ann, images):
    lines = str(from_ann(ann, images, timesteps=2).report).splitlines()
    assert lines[0].startswith("balance, 2 time steps: scores within")
    assert [line.split()[0] for line in lines[1:]] == ["0", "2", "3", "4", "5", "6", "7", "8"]
    assert "neurons (one level); threshold" in lines[2]


def test_the_network_is_left_as_it_was(ann, images):
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    from_ann(ann.train(), images, method="optimal", timesteps=4)
    assert ann.training
    assert all(torch.equal(value, before[name]) for name, value in ann.state_dict().items())


def test_images_may_come_in_batches_with_labels(ann, images):
    whole = from_ann(ann, images, timesteps=2)
    parts = from_ann(ann, [(part, torch.zeros(len(part))) for part in images.split(20)], timesteps=2)
    assert [n.threshold.item() for n in neurons(whole)] == [n.threshold.item() for n in neurons(parts)]


# What a converted network can do


@pytest.mark.parametrize("branches", [False, True])
def test_streams_in_chunks_and_steps(ann, images, branches):
    net = from_ann(Residual().eval() if branches else ann, images, timesteps=6)
    x = encode.direct(images, 6)
    whole = net(x.contiguous())
    torch.testing.assert_close(net(x), whole, rtol=0, atol=1e-5)  # the first layer once, in another batch
    head, state = net(x[:2], return_state=True)
    tail, state = net(x[2:5], state=state, return_state=True)
    last, _ = net.step(x[5], state)
    torch.testing.assert_close(torch.cat([head, tail, last[None]]), whole, rtol=0, atol=1e-5)


def test_compiles_to_events(ann, images):
    net = from_ann(ann, images, timesteps=3)
    x = encode.direct(images, 3).contiguous()
    compiled = spiking.compile_events(net, x, strict=True)
    torch.testing.assert_close(compiled(x), net(x).detach(), rtol=0, atol=1e-4)
    with pytest.raises(SpikingError, match=r'ConvertedNet: layer "down_0" takes what "relu" gives'):
        spiking.compile_events(from_ann(Residual().eval(), images, timesteps=2), x)


def test_gradients_reach_weights_thresholds_and_leaks(ann, images):
    net = from_ann(ann, images, timesteps=3)
    net(encode.direct(images, 3)).sum(0).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


# Bad input


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), *layers)


class Odd(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.fc, self.norm, self.way = nn.Linear(4, 4), nn.BatchNorm1d(4), way
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        y = torch.relu(self.fc(x))
        ways = {
            "mul": lambda: y * 2,
            "number": lambda: y + 1,
            "norm": lambda: self.norm(y),
            "twice": lambda: self.fc(y),
            "branch": lambda: y if y.sum() > 0 else x,
            "two": lambda: (y, x),
            "parameter": lambda: y + self.scale,
            "mean": lambda: y.mean(1),
        }
        return ways[self.way]()


REFUSED = [
    (chain(nn.LeakyReLU()), r'layer "2": LeakyReLU cannot be converted\. Spikes are never negative'),
    (chain(nn.Softmax(1)), r'layer "2": Softmax cannot be converted\. Leave it out'),
    (chain(nn.LayerNorm(4)), r'layer "2": LayerNorm cannot be converted\. It cannot be folded'),
    (chain(nn.LSTM(4, 4)), r"from_ann: .*(cannot be traced|LSTM|does not run|not return one tensor)"),
    (nn.Sequential(nn.Linear(4, 4)), "has no ReLU"),
    (Odd("mul"), r'layer "mul": mul\(\) cannot be converted\. Known are'),
    (Odd("number"), r'layer "add": adding a number cannot be converted'),
    (Odd("parameter"), r"cannot be converted"),
    (Odd("norm"), r'layer "norm": BatchNorm1d cannot be converted\. Only a batch norm directly behind'),
    (Odd("twice"), r'layer "fc": called twice cannot be converted'),
    (Odd("branch"), r"Odd cannot be traced by torch\.fx: line \d+ of test_ann\.py asks for the values"),
    (Odd("two"), r"does not return one tensor"),
    (Odd("mean"), r'layer "mean": mean\(\) cannot be converted'),
]


@pytest.mark.parametrize(("ann", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_what_cannot_be_converted_is_named_with_the_reason(ann, message):
    with pytest.raises(SpikingError, match=message):
        from_ann(ann, torch.rand(8, 4))


class Two(nn.Module):
    def forward(self, x, y):
        return torch.relu(x) + y


def test_networks_and_images_that_do_not_fit(capfd):
    with pytest.raises(SpikingError, match=r"from_ann: got int; expected a torch\.nn\.Module"):
        from_ann(3, torch.rand(8, 4))  # type: ignore[arg-type]
    with pytest.raises(
        SpikingError, match=r"Sequential does not run on batches of shape \[B, 5\]: layer \"0\" \(Linear\(in"
    ) as seen:
        from_ann(chain(), torch.rand(8, 5))
    assert capfd.readouterr().err == ""  # nothing of torch's own
    assert "cannot take [B, 5] in float32. Give batches as the network takes them." in str(seen.value)
    with pytest.raises(SpikingError, match=r"does not run on batches of shape \[B, 4\]: it has more than one input"):
        from_ann(Two(), torch.rand(8, 4))
    broken = chain()
    broken[0].weight.data[0, 0] = float("nan")
    with pytest.raises(SpikingError, match=r'from_ann: "0\.weight" holds values that are not finite'):
        from_ann(broken, torch.rand(8, 4))
    with pytest.raises(SpikingError, match=r'layer "1": got a ReLU; method "qcfs" needs learned thresholds'):
        from_ann(chain(), torch.rand(8, 4), method="qcfs")
    silent = chain()
    silent[0].weight.data.zero_()
    silent[0].bias.data.fill_(-1)
    for method in ("balance", "max", "optimal"):
        with pytest.raises(SpikingError, match=r'layer "1": got \S+ as its threshold; expected a number above 0'):
            from_ann(silent, torch.rand(8, 4), method=method)
    with pytest.raises(SpikingError, match=r"quantize_activations: got Linear without a ReLU"):
        quantize_activations(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (torch.empty(0, 4), "batches: got no images"),
        ([], "batches: got no images"),
        (torch.full((8, 4), 0.5), r"batches: got 0\.5 everywhere"),
        (torch.zeros(8, 4, dtype=torch.uint8), r"batches: got dtype torch\.uint8"),
        (torch.full((8, 4), float("nan")), "batches: got values that are not finite"),
        ([[1, 2]], "batches: got int"),
        (None, "batches: got NoneType"),
        (torch.tensor(1.0), "batches: got a number"),
        ([torch.rand(3, 4), torch.rand(3, 5)], r"batches: got images of shapes \[4\] and \[5\]; expected one shape"),
    ],
)
def test_calibration_images_are_looked_at(batches, message):
    with pytest.raises(SpikingError, match=message):
        from_ann(chain(), batches)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": True}, r"from_ann\.timesteps: got True; expected a whole number"),
        ({"timesteps": 0}, r"from_ann\.timesteps: got 0; expected a whole number of at least 1"),
        ({"calibration_steps": -1}, r"from_ann\.calibration_steps: got -1"),
        ({"levels": 1.5}, r"from_ann\.levels: got 1\.5"),
        ({"percentile": 0}, r"from_ann\.percentile: got 0"),
        ({"sigma": 0}, r"from_ann\.sigma: got 0"),
        ({"method": "best"}, r"from_ann\.method: got 'best'; expected one of balance"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(SpikingError, match=message):
        from_ann(chain(), torch.rand(8, 4), **options)


def test_bodies_without_calibration_and_wired_errors():
    body = spiking_body(chain(), torch.rand(2, 4), retrainable_lif)
    assert [type(layer).__name__ for layer in body] == ["Linear", "LIF", "_Gain"]  # spikes become scores
    with pytest.raises(SpikingError, match=r'Wired: layer "a": got input from "b"'):
        Wired({"a": nn.Identity()}, {"a": ("b",)})
    with pytest.raises(SpikingError, match=r"Wired\.state: got 2 entries; expected 1"):
        Wired({"a": nn.Identity()}, {"a": ("",)})(torch.zeros(1, 1, 3), state=(None, None))
    with pytest.raises(SpikingError, match=r'layer "a": Conv2d: got input of shape'):
        Wired({"a": spiking.Conv2d(2, 2, 3)}, {"a": ("",)})(torch.zeros(1, 1, 3, 4, 4))
    with pytest.raises(SpikingError, match="percentile: got an empty tensor"):
        percentile(torch.empty(0), 50)


# Offset spikes


def counted(x, v0, threshold):
    """Spikes of each step, of one neuron, and its last membrane; and the membranes before the spikes."""
    v, spikes, before = v0, [], []
    for x_t in x:
        h = v + x_t
        before.append(h)
        spikes.append(1 if h >= threshold else 0)
        v = h - threshold * spikes[-1]
    return spikes, v, before


def test_offset_neurons_equal_a_simulation_of_each(images):
    generator = torch.Generator().manual_seed(6)
    x = 2 * torch.randn(7, 3, 50, generator=generator, dtype=torch.float64)
    threshold, rho = 0.75, 4
    neuron = OffsetLIF.of(retrainable_lif(threshold, tie="ge", v0=threshold / 2).double(), rho)
    found = neuron(x)
    moved = {"down": 0, "up": 0, "kept": 0}
    for b in range(3):
        for i in range(50):
            current, v0 = x[:, b, i].tolist(), threshold / 2
            spikes, v, before = counted(current[:rho], v0, threshold)
            start, way = v0, "kept"
            if v < 0 and sum(spikes):
                smallest = min(h for h, s in zip(before, spikes) if s)
                start, way = v0 - max(threshold, smallest - threshold + threshold / 1024), "down"
            elif v >= threshold and not all(spikes):
                largest = max(h for h, s in zip(before, spikes) if not s)
                start, way = v0 + max(threshold, threshold - largest + threshold / 1024), "up"
            again = counted(current[:rho], start, threshold)[0]
            assert found[:, b, i].tolist() == again + counted(current[rho:], start, threshold)[0]
            assert {"down": sum(again) < sum(spikes), "up": sum(again) > sum(spikes), "kept": True}[way]
            moved[way] += 1
    assert min(moved.values()) > 10


def test_offset_spikes_make_few_steps_more_exact(images):
    torch.manual_seed(2)
    layers: list[nn.Module] = [nn.Linear(64, 64), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Linear(64, 64), nn.ReLU()]
    ann = quantize_activations(nn.Sequential(*layers, nn.Linear(64, 10)), levels=4, threshold=1.0)
    x = images.flatten(1)
    plain = from_ann(ann, x, method="qcfs", timesteps=4)
    better = from_ann(ann, x, method="qcfs", timesteps=4, offset_steps=4)
    assert better.report.error < 0.8 * plain.report.error
    assert better.timesteps == 8
    assert better(encode.direct(x, 8)).shape == (4, 64, 10)
    assert str(better.report).startswith("qcfs, 4 + 4 time steps, 4 of them to calibrate offset spikes: scores within")
    assert "offset spikes calibrated over 4 steps" in str(better.report)
    with spiking.record(better) as trace:
        better.scores(x)
    assert trace.n_steps == 8  # what the energy is counted from
    state = {name: value.clone() for name, value in better.state_dict().items()}
    assert state.keys() == plain.state_dict().keys()


def test_offset_spikes_are_refused_where_they_make_no_sense(ann, images):
    with pytest.raises(SpikingError, match=r"from_ann\.offset_steps: got -1; expected a whole number of at least 0"):
        from_ann(ann, images, method="optimal", offset_steps=-1)
    with pytest.raises(
        SpikingError, match=r'offset_steps: got 4 with method="balance"; expected one level and a method'
    ):
        from_ann(ann, images, offset_steps=4)
    with pytest.raises(SpikingError, match=r"offset_steps: got 4 with levels=8"):
        from_ann(ann, images, method="optimal", levels=8, offset_steps=4)
    net = from_ann(ann, images, method="optimal", timesteps=2, offset_steps=3)
    with pytest.raises(SpikingError, match=r"OffsetLIF: got 3 time steps; expected more than the 3"):
        net(encode.direct(images, 3))
    with pytest.raises(SpikingError, match=r"OffsetLIF\.state: got a sequence in pieces"):
        net.step(images)
    with pytest.raises(SpikingError, match=r"ConvertedNet: got offset_steps=3; expected 0"):
        spiking.compile_events(net, encode.direct(images[:1], 5), strict=True)
    with pytest.raises(SpikingError, match=r"OffsetLIF\.offset_steps: got 0"):
        OffsetLIF.of(spiking.LIF(), 0)
    with pytest.raises(SpikingError, match=r'OffsetLIF\.of: got LIF\(.*expected a LIF with reset="subtract"'):
        OffsetLIF.of(spiking.LIF(reset="zero"), 2)


def test_a_branching_network_is_not_compiled_and_says_where_it_branches(images):
    torch.manual_seed(3)
    net = from_ann(Residual().eval(), images, timesteps=2)
    with pytest.raises(SpikingError, match=r'ConvertedNet: layer "down_0" takes what "relu" gives; expected a chain'):
        spiking.compile_events(net, encode.direct(images[:1], 2))
    sums = Wired({"a": nn.Identity(), "b": nn.Identity()}, {"a": ("",), "b": ("a", "")})
    assert sums.first_branch() == 'layer "b" takes what "a" and the input give'
    assert Wired({"a": nn.Identity()}, {"a": ("",)}).first_branch() == "its layers are a chain"
