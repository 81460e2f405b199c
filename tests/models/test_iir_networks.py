"""The networks of IIR-SNN: published sizes, golden residual blocks and training steps (tests/golden/iir_snn)."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import spiking
from spiking import SpikingError, encode
from spiking.cli.iir import app
from spiking.convert import from_ann, retrainable_lif
from spiking.convert.ann import spiking_body
from spiking.models.iir import (
    VGG,
    ResNet,
    SpikingResNet,
    SpikingVGG,
    layer_macs,
    layer_sizes,
    price_at_rates,
    read_rates,
)
from spiking.models.iir.networks import _Block
from spiking.models.iir.watch import watch


@pytest.mark.parametrize(
    "case", ["VGG4@28", "VGG5@28", "VGG5@32", "VGG9@32", "VGG11@32", "VGG16@28", "VGG16@32", "VGG19@32"]
)
def test_every_layers_macs_are_those_of_the_published_network(golden, case):
    expected = json.loads((golden / "iir_snn/macs.json").read_text())[case]
    name, side = case.lower().split("@")
    channels = expected["layers"][0]["cin"]
    with torch.device("meta"):
        network = VGG(name, in_channels=channels, image_size=int(side))
    assert list(layer_macs(network, channels, int(side), int(side)).values()) == [x["mac"] for x in expected["layers"]]
    assert sum(p.numel() for p in network.parameters()) == sum(x["params"] for x in expected["layers"])


@pytest.mark.parametrize(
    ("name", "macs"),
    [("vgg13", 281_780_224), ("resnet12", 140_201_984), ("resnet20", 215_699_456), ("resnet34", 366_694_400)],
)
def test_total_macs(name, macs):
    with torch.device("meta"):
        network = VGG(name) if "vgg" in name else ResNet(name)
    assert sum(layer_macs(network, 3, 32, 32).values()) == macs


def test_vgg16_at_32_pixels_has_the_tables_338_million():
    with torch.device("meta"):
        network = VGG("vgg16")
    found = [round(macs / 1e6, 3) for macs in layer_macs(network, 3, 32, 32).values()]
    table = [1.769, 37.749, 18.874, 37.749, 18.874, 37.749, 37.749, 18.874, 37.749, 37.749, *[9.437] * 3]
    assert found == [*table, 8.389, 16.777, 0.041]
    with torch.device("meta"):
        large = VGG("vgg16-224", classes=1000, image_size=224)
    assert sum(layer_macs(large, 3, 224, 224).values()) == 15_470_264_320


def test_residual_blocks_are_the_published_ones(golden):
    with np.load(golden / "iir_snn/resblock.npz") as file:
        g = {key: torch.tensor(file[key]) for key in file.files}
    blocks = [_Block(*row, batch_norm=False, dropout=0.0, residual="sum") for row in g["spec"].tolist()]
    for i, block in enumerate(blocks):
        block.first[0].weight.data = g[f"block{i}/residual.0.weight"]
        block.second[0].weight.data = g[f"block{i}/residual.3.weight"]
        if f"block{i}/identity.0.weight" in g:
            block.shortcut[0].weight.data = g[f"block{i}/identity.0.weight"]
    x = g["x"]
    body = spiking_body(nn.Sequential(*blocks), x[0], retrainable_lif).to(x)
    neurons = [module for module in body.modules() if isinstance(module, spiking.LIF)]
    for p, neuron in enumerate(neurons):
        neuron.threshold.data.copy_(g[f"thr/t{p}"])
        neuron.beta.data.copy_(g[f"leak/l{p}"])
    out, state = body(x, return_state=True)
    assert torch.equal(out, g["out"])
    membranes = [part.v for part in state if part is not None and hasattr(part, "v")]
    for p, v in enumerate(membranes):
        torch.testing.assert_close(v, g[f"mem_final/{p}"].to(v), rtol=1e-5, atol=1e-5)
    (out * g["grad_out"]).sum().backward()
    for p, neuron in enumerate(neurons):
        for name, got in (("thr/t", neuron.threshold.grad), ("leak/l", neuron.beta.grad)):
            expected = g[f"grad_{name}{p}"]
            torch.testing.assert_close(got, expected.to(got), rtol=2e-5, atol=2e-5 * max(1.0, expected.abs().item()))
    named = dict(body.named_children())
    for i in range(2):
        for ours, theirs in (("first_0", "residual.0"), ("second_0", "residual.3"), ("shortcut_0", "identity.0")):
            if f"block{i}/grad/{theirs}.weight" in g:
                got, expected = named[f"{i}_{ours}"].weight.grad, g[f"block{i}/grad/{theirs}.weight"]
                assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_batch_norm_folds_as_published(golden):
    with np.load(golden / "iir_snn/bnfold.npz") as file:
        g = {key: torch.tensor(file[key]) for key in file.files}
    conv, norm = nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5, eps=float(g["eps"]))
    conv.weight.data = g["w"]
    for ours, theirs in (("weight", "gamma"), ("bias", "beta"), ("running_mean", "mean"), ("running_var", "var")):
        getattr(norm, ours).data.copy_(g[theirs])
    weight = g["w"]
    body = spiking_body(nn.Sequential(conv, norm, nn.ReLU()).to(weight), g["x"].to(weight)[:1], retrainable_lif)
    torch.testing.assert_close(body[0].weight.data, g["w_folded"].to(weight), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(body[0].bias.data, g["b_folded"].to(weight), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("make", [
    lambda **k: (VGG("vgg6", 7, 2, 12, 0.05, **k), SpikingVGG("vgg6", 7, 2, 12, 0.05, bias=k["batch_norm"])),
    lambda **k: (ResNet("resnet12", 7, 2, 12, 0.05, **k), SpikingResNet("resnet12", 7, 2, 12, 0.05, bias=k["batch_norm"])),
    lambda **k: (
        ResNet("resnet12", 7, 2, 12, 0.05, residual="sew", **k),
        SpikingResNet("resnet12", 7, 2, 12, 0.05, bias=k["batch_norm"], residual="sew"),
    ),
], ids=["vgg", "resnet", "sew"])  # fmt: skip
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_converted_network_fits_into_the_spiking_one_of_its_name(make, batch_norm, tmp_path):
    torch.manual_seed(0)
    ann, spiking_one = make(batch_norm=batch_norm)
    images = torch.rand(20, 2, 12, 12)
    ann(images)
    converted = from_ann(ann, images, timesteps=2, percentile=80.0, rescale=False)
    spiking_one.load_state_dict(converted.state_dict())
    spiking_one.eval().save_pretrained(tmp_path)
    again = type(spiking_one).from_pretrained(tmp_path)
    x = encode.direct(images, 3)
    assert torch.equal(again(x), converted(x))
    assert again.timesteps == 1


def test_spiking_networks_keep_sequences_steps_and_images_of_any_size():
    net = SpikingVGG("vgg6", classes=3, in_channels=2, image_size=20, width=0.05, timesteps=4).eval()
    x = torch.rand(4, 2, 2, 20, 20)
    whole, state = net(x), None
    for t, x_t in enumerate(x):
        y, state = net.step(x_t, state)
        torch.testing.assert_close(y, whole[t], rtol=0, atol=1e-6)
    assert net.scores(x[0]).shape == (2, 3)
    assert spiking.compile_events(net, x, strict=True)(x).shape == (4, 2, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VGG("vgg7"), r"VGG\.name: got 'vgg7'; expected one of vgg4, vgg6"),
        (lambda: ResNet("resnet18"), r"ResNet\.name: got 'resnet18'; expected one of resnet12"),
        (lambda: VGG("vgg16", image_size=8), r"VGG\.image_size: got 8; expected at least 16 for the 4 poolings"),
        (lambda: ResNet(image_size=1), r"ResNet\.image_size: got 1"),
        (lambda: VGG(classes=0), r"VGG\.classes: got 0"),
        (lambda: VGG(width=-1.0), r"VGG\.width: got -1\.0"),
        (lambda: VGG(dropout=1.0), r"VGG\.dropout: got 1\.0"),
        (lambda: ResNet(residual="mul"), r"ResNet\.residual: got 'mul'"),
        (lambda: SpikingVGG("vgg6", timesteps=0), r"SpikingVGG\.timesteps: got 0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(SpikingError, match=message):
        make()


# Sizes and prices


def test_sizes_are_the_table_of_the_published_networks(golden):
    for case, expected in json.loads((golden / "iir_snn/macs.json").read_text()).items():
        name, side = case.lower().split("@")
        if name.startswith("resnet"):
            continue
        channels = expected["layers"][0]["cin"]
        with torch.device("meta"):
            found = layer_sizes(VGG(name, in_channels=channels, image_size=int(side)), channels, int(side), int(side))
        assert [size.macs for size in found.values()] == [x["mac"] for x in expected["layers"]]
        assert [size.parameters for size in found.values()] == [x["params"] for x in expected["layers"]]
        assert [size.neurons for size in found.values()][:-1] == [x["neurons"] for x in expected["layers"]][:-1]
    with torch.device("meta"):
        residual = layer_sizes(ResNet("resnet20"), 3, 32, 32)
    assert sum(size.neurons for size in residual.values()) == 319_488


@pytest.mark.parametrize("timesteps", [1, 3])
@pytest.mark.parametrize("kind", [SpikingVGG, SpikingResNet])
def test_a_topology_is_priced_at_the_rates_of_another(kind, timesteps):
    torch.manual_seed(0)
    net = kind("vgg9" if kind is SpikingVGG else "resnet12", in_channels=1, image_size=16, width=0.1)
    images = torch.rand(3, 1, 16, 16)
    found = price_at_rates(net, images, [0.2, 0.1], timesteps)
    assert found.wanted == pytest.approx(np.linspace(0.2, 0.1, len(found.wanted)))
    wide = slice(0, 5)  # deeper layers have a few dozen neurons
    assert found.reached[wide] == pytest.approx(found.wanted[wide], abs=0.01)
    with torch.no_grad(), watch(net) as activity:
        net(encode.direct(images, timesteps))
    assert [float(spikes.mean()) for spikes in activity.spikes.values()] == pytest.approx(found.reached)
    more = price_at_rates(net, images, [0.4], timesteps)
    assert more.energy["published"]["snn"] > found.energy["published"]["snn"]
    assert more.energy["published"]["ann"] == found.energy["published"]["ann"]


def command(*arguments):
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def test_the_sizes_command_prints_the_table_and_prices_a_run(tmp_path):
    lines = command("sizes", "--network", "vgg16", "--side", "32").splitlines()
    assert lines[-1].split() == ["in", "all", "338,403,328", "39,917,248", "284,672"]
    stages = [{"timesteps": t, "rates": {"a": 0.1, "b": 0.2}} for t in (2, 1)]
    (tmp_path / "metrics.json").write_text(json.dumps({"best_start": "short", "starts": {"short": {"stages": stages}}}))
    small = ("sizes", "--network", "vgg6", "--side", "8", "--width", "0.1", "--rates", str(tmp_path / "metrics.json"))
    lines = command(*small).splitlines()
    assert "with random weights and the firing rates of" in lines[-5]
    assert [line[:15] for line in (lines[-4], lines[-2])] == ["T=2: published ", "T=1: published "]
    found = json.loads(command(*small, "--json"))
    assert [stage["timesteps"] for stage in found["stages"]] == [2, 1]
    assert found["stages"][1]["energy"]["published"]["gain"] > found["stages"][0]["energy"]["published"]["gain"]


def test_rates_that_do_not_fit(tmp_path):
    with pytest.raises(SpikingError, match=r"no\.json: there is no such file; expected the metrics\.json of a run"):
        read_rates(tmp_path / "no.json")
    bad = tmp_path / "bad.json"
    for text in ("{", "[]", '{"best_start": "a", "starts": {}}'):
        bad.write_text(text)
        with pytest.raises(SpikingError, match=r"bad\.json: it is not one; expected the metrics\.json of a run"):
            read_rates(bad)
    bad.write_text('{"best_start": "a", "starts": {"a": {"stages": [{"timesteps": 1, "rates": {"x": 2}}]}}}')
    with pytest.raises(SpikingError, match=r"bad\.json: got the rates \[2\.0\]; expected 0 to 1 spikes"):
        read_rates(bad)
    net = SpikingVGG("vgg6", in_channels=1, image_size=8, width=0.1)
    with pytest.raises(SpikingError, match=r"price_at_rates\.rates: got \[\]; expected at least one"):
        price_at_rates(net, torch.rand(1, 1, 8, 8), [], 1)
    with pytest.raises(SpikingError, match=r"price_at_rates: got a network without LIF neurons"):
        price_at_rates(torch.nn.Identity(), torch.rand(1, 1, 8, 8), [0.1], 1)
