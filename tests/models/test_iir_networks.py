"""The networks of IIR-SNN: published sizes, golden residual blocks and training steps (tests/golden/iir_snn)."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import spiking
from spiking import SpikingError, encode
from spiking.convert import from_ann, retrainable_lif
from spiking.convert.ann import spiking_body
from spiking.models.iir import VGG, ResNet, SpikingResNet, SpikingVGG, layer_macs
from spiking.models.iir.networks import _Block


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
