"""Networks of other libraries, unmodified, under `record`: counts against sums over what the layers emitted."""

import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spiking
from spiking import _peers, hw_models
from spiking.errors import SpikingError

T, B = 5, 3


def need(library: str) -> Any:
    """The library, or a skip."""
    return pytest.importorskip(library, reason=f"{library} is not installed; it is in spiking[peers]")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def emitted():
    """Collects what the modules of a model emit, through hooks of its own."""
    seen: dict[str, list[Tensor]] = {}

    def watch(model: nn.Module, kinds: tuple[type, ...]) -> dict[str, list[Tensor]]:
        for name, module in model.named_modules():
            if isinstance(module, kinds):
                first = lambda m, x, y, name=name: seen.setdefault(name, []).append(y[0] if isinstance(y, tuple) else y)  # noqa: E731
                module.register_forward_hook(first)
        return seen

    return watch


def total(parts: list[Tensor]) -> int:
    return sum(int(torch.count_nonzero(p)) for p in parts)


@pytest.mark.filterwarnings("ignore")
def test_snntorch_in_a_loop_outside_of_the_model(emitted):
    snn = need("snntorch")
    from snntorch import utils

    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), snn.Leaky(beta=0.5, threshold=0.2, init_hidden=True), nn.Flatten(),
        nn.Linear(27, 4), snn.Leaky(beta=0.5, threshold=0.05, init_hidden=True, output=True),
    )  # fmt: skip
    x = torch.rand(B, 1, 8, 8)
    utils.reset(net)
    plain = torch.stack([net(x)[0] for _ in range(T)])
    utils.reset(net)
    seen = emitted(net, (snn.Leaky,))
    with torch.no_grad(), spiking.record(net, steps=T, step_by_step=True, keep_spikes=1, events=True) as trace:
        found = torch.stack([net(x)[0] for _ in range(T)])
    assert torch.equal(plain, found)
    assert (trace.n_steps, trace.n_samples) == (T, B)
    spikes = torch.stack(seen["2"])
    assert trace["2"].counts["spikes"].tolist() == [int(s.sum()) for s in spikes]
    assert trace["2"].counts["spikes"].sum() > 0
    assert trace["4"].counts["syn"].tolist() == [4 * int(s.sum()) for s in spikes]
    assert trace["4"].operand_class == "binary"
    assert trace["0"].operand_class == "analogue"
    assert trace["0"].repeated_input
    assert trace["5"].spikes_sample.tolist() == torch.stack(seen["5"]).sum((0, 2)).int().tolist()
    assert trace["2"].neuron["type"] == "snntorch.Leaky"
    assert trace["2"].neuron["reset"] == "subtract"
    kept = trace.recordings[0]
    assert kept.input.shape == (T, 1, 8, 8)
    assert (kept.spikes["2"] == spikes[:, 0].numpy()).all()
    assert kept.output.shape == (T, 4)
    assert hw_models.estimate(trace).energy.nominal > 0


@pytest.mark.filterwarnings("ignore")
def test_snntorch_in_a_loop_inside_of_the_model(emitted):
    snn = need("snntorch")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)
            self.lif1, self.lif2 = snn.Leaky(beta=0.9, threshold=0.1), snn.Synaptic(alpha=0.8, beta=0.9, threshold=0.1)

        def forward(self, x: Tensor) -> Tensor:
            mem1, (syn2, mem2), out = self.lif1.init_leaky(), self.lif2.init_synaptic(), []
            for x_t in x:
                spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
                spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
                out.append(spk2)
            return torch.stack(out)

    net = Net()
    seen = emitted(net, (snn.Leaky, snn.Synaptic))
    with torch.no_grad(), spiking.record(net) as trace:
        out = net((torch.rand(T, B, 6) < 0.5).float())
    assert trace["lif1"].counts["spikes"].sum() == total(seen["lif1"]) > 0
    assert trace["lif2"].counts["spikes"].sum() == int(out.sum())
    assert trace["fc2"].counts["syn"].sum() == 4 * total(seen["lif1"])
    assert trace["lif2"].neuron["state_vars"] == 2
    assert trace["fc2"].operand_of == ("lif1",)


@pytest.mark.filterwarnings("ignore")
def test_spikingjelly_nmnist_network_on_whole_sequences(emitted):
    need("spikingjelly")
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.model.parametric_lif_net import NMNISTNet

    net = NMNISTNet(channels=4, spiking_neuron=neuron.ParametricLIFNode, v_threshold=0.1).eval()
    functional.set_step_mode(net, "m")
    x = (torch.rand(T, B, 2, 34, 34) < 0.2).float()
    with torch.no_grad():
        plain = net(x)
        functional.reset_net(net)
        seen = emitted(net, (neuron.ParametricLIFNode,))
        with spiking.record(net) as trace:
            assert torch.equal(net(x), plain)
    neurons = trace.neurons
    assert [row.name for row in neurons] == list(seen)
    for row in neurons:
        assert row.counts["spikes"].tolist() == seen[row.name][0].flatten(1).sum(1).int().tolist()
    assert neurons[0].counts["spikes"].sum() > 0
    ones = nn.functional.conv2d(x.flatten(0, 1), torch.ones(4, 2, 3, 3), padding=1)
    assert trace["conv_fc.0"].counts["syn"].sum() == int(ones.sum())
    assert trace["conv_fc.10"].counts["syn"].sum() == 2048 * int(trace["conv_fc.10"].counts["in_nnz"].sum())
    assert trace["conv_fc.1"].folded_into == "conv_fc.0"
    assert neurons[0].neuron["reset"] == "zero"


@pytest.mark.filterwarnings("ignore")
def test_norse_on_whole_sequences(emitted):
    norse = need("norse.torch")
    net = norse.SequentialState(norse.Lift(nn.Linear(6, 8)), norse.LIF(), nn.Linear(8, 4), norse.LI())
    seen = emitted(net, (norse.LIF,))
    with torch.no_grad(), spiking.record(net) as trace:
        net(20 * (torch.rand(T, B, 6) < 0.8).float())
    assert trace["1"].counts["spikes"].tolist() == seen["1"][0].flatten(1).sum(1).int().tolist()
    assert trace["2"].counts["syn"].sum() == 4 * total(seen["1"])
    assert trace["3"].neuron["output"] == "membrane"
    assert hw_models.estimate(trace, "digital-sram").energy.nominal > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("squeeze", [False, True])
def test_sinabs_has_the_batch_first(emitted, squeeze):
    sinabs = need("sinabs.layers")
    neuron = (lambda: sinabs.IAFSqueeze(batch_size=B)) if squeeze else sinabs.IAF
    net = nn.Sequential(nn.Linear(6, 8), neuron(), nn.Linear(8, 4), neuron())
    x = (torch.rand(B, T, 6) < 0.5).float()
    with torch.no_grad():
        net[0].weight.abs_()
        seen = emitted(net, (sinabs.IAF,))
        with spiking.record(net, keep_spikes=1) as trace:
            net(x.flatten(0, 1) if squeeze else x)
    assert (trace.n_steps, trace.n_samples) == (T, B)
    spikes = seen["1"][0].reshape(B, T, 8)
    assert trace["0"].counts["in_nnz"].tolist() == x.sum((0, 2)).int().tolist()
    assert trace["0"].syn_sample.tolist() == (8 * x.sum((1, 2))).int().tolist()
    assert trace["1"].counts["spikes"].tolist() == (spikes != 0).sum((0, 2)).tolist()
    assert trace["1"].spikes_sample.tolist() == (spikes != 0).sum((1, 2)).tolist()
    assert trace["1"].counts["spikes"].sum() > 0
    assert (trace.recordings[0].input == x[0].numpy()).all()
    assert trace.recordings[0].output.shape == (T, 4)


@pytest.mark.filterwarnings("ignore")
def test_neurons_with_weights_of_their_own_are_refused():
    snn = need("snntorch")
    net = nn.Sequential(nn.Linear(4, 4), snn.RLeaky(beta=0.9, linear_features=4, init_hidden=True))
    message = r"record: layer 1: got a neuron snntorch\.RLeaky, whose weights or arithmetic are not known"
    with pytest.raises(SpikingError, match=message), spiking.record(net, steps=1, step_by_step=True):
        net(torch.ones(2, 4))


def test_every_listed_neuron_exists():
    for package, name in _peers._NEURONS:
        home = next(h for h in _peers._HOMES if h.startswith(package))
        if importlib.util.find_spec(package) is None:
            pytest.skip("the libraries are not installed; they are in spiking[peers]")
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = __import__({"norse": "norse.torch", "sinabs": "sinabs.layers"}.get(package, home), fromlist=[name])
        assert hasattr(module, name) or any(hasattr(m, name) for m in vars(module).values()), (package, name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["snntorch", "spikingjelly"])
def test_the_example_prices_their_network(library, monkeypatch, capsys, tmp_path):
    need(library)
    monkeypatch.setattr(sys, "argv", ["peer_energy.py", library, "--out", str(tmp_path / "report.html")])
    runpy.run_path(str(Path(__file__).parent.parent / "examples" / "peer_energy.py"), run_name="__main__")
    assert capsys.readouterr().out.count("SNN/ANN energy") == 2


# a loop over time outside of the model, with layers of torch alone


def test_steps_are_joined_to_one_pass():
    net = nn.Linear(6, 4, bias=False)
    x = (torch.rand(T, B, 6) < 0.5).float()
    with spiking.record(net) as whole:
        net(x)
    with spiking.record(net, steps=T, step_by_step=True) as stepped:
        for x_t in [*x, *x]:
            net(x_t)
    assert stepped.n_samples == 2 * B
    assert stepped.layers[0].counts["syn"].tolist() == (2 * whole.layers[0].counts["syn"]).tolist()
    assert stepped.layers[0].syn_sample.tolist() == 2 * whole.layers[0].syn_sample.tolist()


def steps_of(*batches: int) -> None:
    net = nn.Linear(2, 2)
    with spiking.record(net, steps=3, step_by_step=True):
        for n in batches:
            net(torch.ones(n, 2))


def test_a_pass_of_too_few_steps_is_refused():
    with pytest.raises(SpikingError, match="record: got 2 steps of the last pass; expected 3"):
        steps_of(1, 1, 1, 1, 1)


def test_steps_of_different_batches_are_refused():
    with pytest.raises(SpikingError, match="record: step 2: got 3 samples after 1 in the step before"):
        steps_of(1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_by_step": True}, "got step_by_step=True without steps"),
        ({"steps": 0}, "got steps=0; expected 1 or more"),
    ],
)
def test_bad_steps_are_refused(options, message):
    with pytest.raises(SpikingError, match=message):
        spiking.record(nn.Linear(2, 2), **options)
