"""The spiking U-Net and its temporal weights against the authors' code, number by number (float64 unless a test says otherwise)."""

import numpy as np
import pytest
import torch
from torch import nn

from spiking import Conv2d, SpikingError, event_driven
from spiking.models.diffusion import (
    ResBlock,
    SpikingUNet,
    TemporalWise,
    UNetConfig,
    from_published,
    temporal_weights,
    temporal_wise,
    with_threshold,
)
from spiking.models.diffusion.unet import DownBlock, TimeEmbedding, UpBlock
from spiking.neuron import Neuron

TINY = UNetConfig(image_channels=1, channels=8, multipliers=(1, 2), blocks=1)


@pytest.fixture
def load(golden):
    return lambda name: np.load(golden / "sdm" / f"{name}.npz")


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.float64))


def loaded(module: nn.Module, data, extra=None) -> nn.Module:
    weights = {name[3:]: torch.from_numpy(data[name]) for name in data.files if name.startswith("sd/")}
    module.double().load_state_dict(from_published({**weights, **(extra or {})}))
    return module


def close(got, expected, tolerance: float) -> None:
    expected = tensor(expected)
    assert got.shape == expected.shape
    assert float((got.detach() - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


def spikes_of(module: nn.Module, call):
    seen, hooks = {}, []
    for name, layer in module.named_modules():
        if isinstance(layer, Neuron):
            hooks.append(layer.register_forward_hook(lambda _, inputs, s, name=name: seen.__setitem__(name, s)))
    result = call()
    for hook in hooks:
        hook.remove()
    return result, seen


def check_module(module: nn.Module, data, inputs, tolerance: float) -> None:
    """Outputs and spikes in both modes, gradients of weights and inputs, running statistics after."""
    module.eval()
    with torch.no_grad():
        out, seen = spikes_of(module, lambda: module(*inputs))
    close(out, data["eval_out"], tolerance)
    for name, rate in zip(data["layers"], data["eval_rates"]):
        assert float(seen[name].mean()) == pytest.approx(float(rate), abs=1e-12)
        if f"eval_spk/{name}" in data.files:
            shape = tuple(data[f"eval_spk_shape/{name}"])
            expected = np.unpackbits(data[f"eval_spk/{name}"], count=int(np.prod(shape))).reshape(shape)
            assert np.array_equal(seen[name].numpy().astype(np.uint8), expected)
    module.train()
    inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    out = module(*inputs)
    close(out, data["train_out"], tolerance)
    loss = ((out - tensor(data["target"])) ** 2).mean()
    assert loss.item() == pytest.approx(float(data["train_loss"]), rel=10 * tolerance)
    loss.backward()
    grads = {name: p.grad for name, p in module.named_parameters()}
    for name in data.files:
        kind, _, rest = name.partition("/")
        if kind == "grad":
            ((ours, expected),) = from_published({rest: torch.from_numpy(data[name])}).items()
            close(grads[ours], expected, 10 * tolerance)
        elif kind == "after":
            close(module.state_dict()[from_published({rest: torch.zeros(1)}).popitem()[0]], data[name], tolerance)
        elif kind.startswith("grad_arg"):
            close(inputs[int(kind[-1])].grad, data[name], 10 * tolerance)


@pytest.mark.parametrize("name", ["resblock_same", "resblock_proj"])
def test_residual_block(load, name):
    data = load(name)
    block = loaded(ResBlock(8, 8 if name == "resblock_same" else 16, TINY), data)
    check_module(block, data, [tensor(data["x"]), tensor(data["temb"])], 1e-9)


@pytest.mark.parametrize(("name", "kind"), [("down", DownBlock), ("up", UpBlock)])
def test_sampling_blocks(load, name, kind):
    data = load(name)
    block = loaded(kind(8, TINY), data)
    module = Alone(block)
    check_module(module, data, [tensor(data["x"])], 1e-9)


class Alone(nn.Module):
    """A block that ignores the diffusion step, called without one; its names are the block's."""

    def __init__(self, block):
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        self.run = block.forward

    def forward(self, x):
        return self.run(x, None)


def test_time_embedding(load):
    data = load("time_embedding")
    for width in (8, 128):
        table = TimeEmbedding(width, 1000).table[torch.from_numpy(data["rows_t"])]
        assert float((table - torch.from_numpy(data[f"rows_d{width}"])).abs().max()) <= 1e-6
    embedding = TimeEmbedding(8, 1000).double()
    names = {"1": "hidden", "3": "output"}
    weights = {f"{names[k[16]]}{k[17:]}": torch.from_numpy(data[k]) for k in data.files if k.startswith("sd/")}
    embedding.load_state_dict(weights, strict=False)
    close(embedding(torch.from_numpy(data["t"])), data["out"], 1e-7)


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
def test_whole_network(load, mode):
    data = load("unet_tiny")
    net = loaded(SpikingUNet(TINY), data)
    with event_driven(mode):
        check_module(net, data, [tensor(data["x"]), torch.from_numpy(data["t"])], 1e-6)


def test_whole_network_in_float32(load):
    data = load("unet_tiny")
    net = loaded(SpikingUNet(TINY), data).float().eval()
    with torch.no_grad():
        out = net(torch.from_numpy(data["x"]), torch.from_numpy(data["t"]))
    close(out.double(), data["eval_out_f32"], 5e-5)


def test_thresholds_as_the_authors_set_them(load):
    data = load("unet_tiny")
    net = loaded(SpikingUNet(TINY), data).eval()
    x, t = tensor(data["x"]), torch.from_numpy(data["t"])
    for threshold, expected, rates in zip(data["tg_thr"], data["tg_out"], data["tg_rates"]):
        with torch.no_grad(), with_threshold(net, float(threshold)):
            out, seen = spikes_of(net, lambda: net(x, t))
        close(out, expected, 1e-6)
        assert np.allclose([float(seen[name].mean()) for name in data["layers"]], rates, atol=1e-12)
    with torch.no_grad():
        close(net(x, t), data["eval_out"], 1e-6)


def test_calls_do_not_remember_and_rows_do_not_meet(load):
    data = load("unet_tiny")
    net = loaded(SpikingUNet(TINY), data).eval()
    x, t = tensor(data["x"]), torch.from_numpy(data["t"])
    with torch.no_grad():
        first = net(x, t)
        assert torch.equal(net(x, t), first)
        assert float((first - tensor(data["noreset_second_out"])).abs().max()) > 1
        assert torch.allclose(net(x[:1], t[:1]), first[:1], rtol=0, atol=1e-12)


def test_temporal_weights(load):
    data, base = load("unet_tsm"), load("unet_tiny")
    net = temporal_wise(loaded(SpikingUNet(TINY), base), TINY.timesteps)
    for name in [n for n in data.files if n.startswith("p/")]:
        net.get_submodule(name[2:-5]).p.data = tensor(data[name])
    assert len(temporal_weights(net)) == sum(n.startswith("p/") for n in data.files)
    check_module(net, data, [tensor(data["x"]), torch.from_numpy(data["t"])], 1e-6)


def test_temporal_convolution(load):
    data = load("tsm_conv")
    conv = TemporalWise(_one_conv(data), 4).double()
    conv.p.data = tensor(data["sd/tsmp"]).flatten()
    x = tensor(data["x"]).unflatten(0, (4, 2)).requires_grad_()
    y = conv(x)
    close(y.flatten(0, 1), data["y"], 1e-6)
    (y.flatten(0, 1) * tensor(data["cot"])).sum().backward()
    close(x.grad.flatten(0, 1), data["gx"], 1e-6)
    close(conv.layer.weight.grad, data["gW"], 1e-6)
    close(conv.layer.bias.grad, data["gb"], 1e-6)
    close(conv.p.grad, data["gp"].flatten(), 1e-6)


def _one_conv(data):
    conv = Conv2d(3, 5, 3, padding=1)
    conv.load_state_dict({k: torch.from_numpy(data[f"sd/tsmconv.{k}"]) for k in ("weight", "bias")})
    return conv


def test_temporal_weights_of_one_change_no_bit(load):
    net = loaded(SpikingUNet(TINY), load("unet_tiny")).float().eval()
    scaled = temporal_wise(net, TINY.timesteps)
    x, t = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 500, 999])
    with torch.no_grad():
        assert torch.equal(net(x, t), scaled(x, t))
    assert sum(p.numel() for p in scaled.parameters()) - sum(p.numel() for p in net.parameters()) == 4 * 26


def test_published_sizes():
    with torch.device("meta"):
        net = SpikingUNet()
        assert sum(p.numel() for p in net.parameters()) == 66_696_413
        assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 66_568_413
        kinds = [type(layer).__name__ for layer in net.modules()]
        assert (kinds.count("Conv2d") - 1, kinds.count("IF"), kinds.count("BatchNorm2d")) == (67, 51, 54)
        assert kinds.count("Linear") == 24
        assert sum(b.numel() for b in net.buffers()) == 31_292
        wise = temporal_wise(SpikingUNet(UNetConfig(timesteps=8)), 8)
        assert sum(p.numel() for p in wise.parameters()) == 66_696_949
        small = SpikingUNet(UNetConfig(image_channels=1, channels=16, multipliers=(1, 2), blocks=1))
        assert sum(p.numel() for p in small.parameters()) == 178_029


@pytest.mark.parametrize(
    "options", [{"beta": 0.8}, {"readout": "mean"}, {"input_skip": True}, {"timesteps": 1}, {"classes": 3}]
)
def test_options(options):
    torch.manual_seed(0)
    config = UNetConfig(1, 8, (1, 2), 1, **options)
    net = SpikingUNet(config)
    x, t = torch.randn(4, 1, 8, 12), torch.tensor([0, 1, 2, 999])
    labels = torch.tensor([0, 2, -1, 1]) if config.classes else None
    y = net(x, t, labels)
    assert y.shape == x.shape
    y.square().sum().backward()
    unused = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    if config.classes:
        net.eval()
        with torch.no_grad():
            assert torch.equal(net(x, t), net(x, t, torch.full((4,), -1)))
            assert not torch.equal(net(x, t), net(x, t, labels))


def test_an_untrained_network_predicts_nothing():
    torch.manual_seed(0)
    net = SpikingUNet(UNetConfig(1, 16, (1, 2), 1)).train()
    noise = torch.randn(64, 1, 8, 8)
    loss = ((net(torch.randn(64, 1, 8, 8), torch.randint(0, 1000, (64,))) - noise) ** 2).mean()
    assert loss.item() == pytest.approx(1.0, abs=0.05)


def test_errors():
    net = SpikingUNet(TINY)
    x, t = torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])
    cases = {
        r"SpikingUNet: got images of 7×8; expected multiples of 2": (torch.zeros(2, 1, 7, 8), t),
        r"SpikingUNet: got x \[2, 3, 8, 8\]; expected \[B, 1, H, W\]": (torch.zeros(2, 3, 8, 8), t),
        r"SpikingUNet.t: got steps from 0 to 1000; expected 0 to 999": (x, torch.tensor([0, 1000])),
        r"SpikingUNet.t: got torch.int64 \[3\]; expected whole numbers \[2\]": (x, torch.tensor([0, 1, 2])),
        r"SpikingUNet.labels: got labels for a network without classes": (x, t, t),
    }
    for message, inputs in cases.items():
        with pytest.raises(SpikingError, match=message):
            net(*inputs)
    with pytest.raises(SpikingError, match=r"SpikingUNet.labels: got \[0, 3\]; expected 2 numbers from 0 to 2, or -1"):
        SpikingUNet(UNetConfig(1, 8, (1,), 1, classes=3))(x, t, torch.tensor([0, 3]))
    with pytest.raises(SpikingError, match=r"UNetConfig.channels: got 7; expected an even number"):
        UNetConfig(channels=7)
    with pytest.raises(SpikingError, match=r"UNetConfig.multipliers: got \(\); expected whole numbers"):
        UNetConfig(multipliers=())
    with pytest.raises(SpikingError, match=r'UNetConfig.readout: got "last"; expected exp or mean'):
        UNetConfig(readout="last")
    with pytest.raises(SpikingError, match=r"UNetConfig.beta: got 2; expected 0 to 1"):
        UNetConfig(beta=2)
    with (
        pytest.raises(SpikingError, match='with_threshold: got "x"; expected the name of a neuron such as neuron'),
        with_threshold(net, {"x": 1.0}),
    ):
        pass
    with (
        pytest.raises(SpikingError, match="with_threshold: got -1; expected a finite number above 0"),
        with_threshold(net, -1),
    ):
        pass
    with pytest.raises(SpikingError, match="TemporalWise: got 3 time steps; expected 4"):
        TemporalWise(nn.Linear(2, 2), 4)(torch.zeros(3, 1, 2))
    with pytest.raises(SpikingError, match=r"TemporalWise.timesteps: got 0"):
        TemporalWise(nn.Linear(2, 2), 0)
    with pytest.raises(SpikingError, match="temporal_wise: got Linear without a layer of kind Conv2d"):
        temporal_wise(nn.Linear(2, 2), 4)
    with pytest.raises(SpikingError, match="temporal_wise: got a model that has temporal weights"):
        temporal_wise(temporal_wise(net, 4), 4)
