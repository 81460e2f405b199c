"""The ladder: golden training steps, its stages, resuming, its warnings and refusals."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_iir import golden_ann, neurons
from torch import nn

import spiking
from spiking import SpikingError, checkpoint, encode, loss
from spiking.convert import from_ann
from spiking.interrupt import Interrupted
from spiking.models.iir import LadderConfig, ResNet, diagnose, price, published_energy, reduce_timesteps
from spiking.models.iir.ladder import Stage, _StageRun
from spiking.models.iir.watch import watch
from spiking.progress import Display
from spiking.training import TensorBatches, TrainConfig


def quick(**options):
    train = TrainConfig(epochs=2, batch_size=20, lr=1e-3, weight_decay=0, warmup_epochs=0, ema_decay=0, device="cpu")
    return LadderConfig(train, traced=40, **options)


@pytest.fixture(scope="module")
def data():
    """Images 8×8 in which one of four quarters is bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 4
    x = 0.4 * torch.rand(160, 1, 1, 8, 8, generator=generator)
    for i, label in enumerate(labels.tolist()):
        x[i, 0, 0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 0.4
    return TensorBatches(x, labels)


@pytest.fixture(scope="module")
def ann(data):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, 16, bias=False), nn.ReLU(), nn.Linear(16, 4, bias=False),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(data.x[:, 0]), data.labels).backward()
        optimizer.step()
    return net


def converted(ann, data, **options):
    return from_ann(ann, data.x[:, 0], **{"timesteps": 3, "calibration_steps": 1, **options})


# Golden


@pytest.mark.parametrize("name", ["net_a", "net_bias"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("dropout", ["0.0", "0.2"])
def test_two_training_steps_are_the_published_ones(golden, name, steps, dropout, monkeypatch):
    ann, g = golden_ann(golden, name)
    with np.load(golden / f"iir_snn/{name}_train.npz") as file:
        prefix = f"T{steps}_d{dropout}/"
        t = {key.removeprefix(prefix): torch.tensor(file[key]) for key in file.files if key.startswith(prefix)}
    x = torch.tensor(g["x"])
    net = from_ann(ann, x, timesteps=1, rescale=False)
    layers = [layer for layer in net.body if isinstance(layer, (nn.Conv2d, nn.Linear))]
    names = [key.removeprefix("grad/") for key in t if key.startswith("grad/")]
    weights = [n for n in names if "features" in n and n.endswith("weight")]
    weights += [n for n in names if "classifier" in n and n.endswith("weight")]
    ours = {n: layer.weight for n, layer in zip(weights, layers)}
    ours |= {n.replace("weight", "bias"): layer.bias for n, layer in zip(weights, layers) if layer.bias is not None}
    places = sorted({int(n.partition(".t")[2]) for n in names if n.startswith("threshold")})
    for place, neuron, threshold, leak in zip(places, neurons(net), t["thr0"].tolist(), t["leak0"].tolist()):
        neuron.threshold.data.fill_(threshold)
        neuron.beta.data.fill_(leak)
        ours |= {f"threshold.t{place}": neuron.threshold, f"leak.l{place}": neuron.beta}
    stage = Stage(net, steps).train()
    run = _StageRun(stage, LadderConfig(), None, False, Display())
    optimizer = run.optimizer(stage, TrainConfig(lr=1e-4, weight_decay=0))
    for step in range(2):
        masks = [t[key] for key in t if key.startswith(f"mask_step{step}/")]
        hooks = [_masking(net, x, mask) for mask in masks]
        result = run.objective(stage, x.unsqueeze(0), t["labels"] if "labels" in t else t["y"])
        optimizer.zero_grad()
        result.loss.backward()
        for hook in hooks:
            hook.remove()
        if step == 0:
            torch.testing.assert_close(result.logits, t["logits"], rtol=0, atol=1e-5)
            torch.testing.assert_close(result.loss.double(), t["loss"].double(), rtol=1e-6, atol=1e-6)
            gradients = {n: p.grad.clone() for n, p in ours.items()}
            for n, got in gradients.items():
                expected = t[f"grad/{n}"]
                assert (got - expected).abs().max() <= 2e-5 * expected.abs().max().clamp(min=1e-6), n
        else:
            torch.testing.assert_close(result.loss.double(), t["loss_step1"].double(), rtol=1e-5, atol=1e-5)
        optimizer.step()
    for n, p in ours.items():
        certain = gradients[n].abs() > 1e-6  # elsewhere Adam takes full steps on rounding
        difference = (p.detach() - t[f"after2/{n}"]).abs()
        assert difference[certain].numel() == 0 or difference[certain].max() <= 5e-7, n
        assert difference.max() <= 2.1e-4, n


def _masking(net, x, mask):
    """Multiply the spikes of the neuron layer that has the mask's shape with it, as the dropout layer behind it would."""
    with torch.no_grad(), watch(net) as activity:
        net(x.unsqueeze(0))
    fitting = [neuron for neuron, _, spikes in activity.layers.values() if spikes.shape[1:] == mask.shape]
    return fitting[0].register_forward_hook(lambda layer, args, out: out * mask)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_published_energy_of_the_golden_network(golden, steps):
    ann, g = golden_ann(golden, "net_a")
    x = torch.tensor(g["x"])
    expected = json.loads((golden / "iir_snn/energy.json").read_text())["steps"][f"T{steps}"]
    found, trace = price(from_ann(ann, x, timesteps=1, sigma=0.6, rescale=False), x, steps)
    assert [1e12 * joules for joules in published_energy(trace)] == pytest.approx(
        [expected["E_paper_pJ"], expected["E_ann_pJ"]], rel=1e-12
    )
    assert found["published"]["gain"] == pytest.approx(expected["E_ann_pJ"] / expected["E_paper_pJ"])
    assert found["operations"]["gain"] < found["published"]["gain"]
    assert set(found["twins"]) == {f"q{int(np.ceil(np.log2(steps + 1)))}", "int8", "fp32"}


def test_the_ratio_with_memory_says_when_the_spiking_network_costs_more(golden):
    ann, g = golden_ann(golden, "net_a")
    x = torch.tensor(g["x"])
    net = from_ann(ann, x, timesteps=1, sigma=0.6, rescale=False)
    assert price(net, x, 5)[0]["twins"]["fp32"] > 1 > price(net, x, 1)[0]["twins"]["fp32"]
    assert price(net, x, 5)[0]["published"]["gain"] > 1


def test_tet_loss_of_the_reference(golden):
    with np.load(golden / "iir_snn/tet.npz") as file:
        for case in "012":
            g = {key[2:]: torch.tensor(file[key]) for key in file.files if key.startswith(f"{case}/")}
            out = g["out"].transpose(0, 1).clone().requires_grad_()
            value = loss.tet(out, g["y"], mix=float(g["lamb"]), target=float(g["mean"]))
            value.backward()
            torch.testing.assert_close(value.double(), g["loss"].double(), rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(out.grad.transpose(0, 1).double(), g["grad"].double(), rtol=1e-5, atol=1e-7)


# Looking before training


def test_diagnose_names_what_long_calibration_leaves_silent(golden):
    ann, g = golden_ann(golden, "net_a")
    x = torch.tensor(g["x"])

    def found(**options):
        return diagnose(from_ann(ann, x, timesteps=1, rescale=False, **options), x, timesteps=1)

    long = found(calibration_steps=500)
    assert [(f.layer, f.kind) for f in long] == [
        *((f"body.{i}", "silent") for i in (4, 6, 10, 12)),
        ("", "constant output"),
    ]
    assert all(f.stops for f in long)
    assert "Convert with calibration_steps=1, or lower all thresholds" in long[0].text
    assert found(calibration_steps=1) == []
    assert found(calibration_steps=1, sigma=0.6) == []


def test_diagnose_sees_late_and_saturated_layers(golden):
    ann, g = golden_ann(golden, "net_a")
    x = torch.tensor(g["x"])
    late = diagnose(from_ann(ann, x, timesteps=1, rescale=False, calibration_steps=500), x, timesteps=5)
    assert {"late"} <= {f.kind for f in late}
    saturated = diagnose(from_ann(ann, x, timesteps=1, sigma=0.2), x, timesteps=2)
    assert "saturated" in {f.kind for f in saturated}
    assert "does not fire in the first step" in next(f.text for f in late if f.kind == "late")


def test_diagnose_sees_classes_that_never_win_and_gradients_that_vanish(ann, data):
    net = converted(ann, data)
    x, labels = data.x[:, 0], data.labels
    assert diagnose(net, x, 3, labels) == []
    with torch.no_grad():
        net.body[-1].weight[:2] = -1.0
    dead = diagnose(net, x, 3, labels)
    assert [f.kind for f in dead] == ["dead output"]
    assert re.fullmatch(r"only [12] of 4 classes are ever the answer, for 160 images\.", dead[0].text)
    assert not dead[0].stops
    assert diagnose(net, x[:39], 3) == []  # too few to say so
    net = converted(ann, data)
    with torch.no_grad():
        net.body[0].weight.mul_(1e6)
        neurons(net)[0].threshold.mul_(1e6)  # the same spikes
    (vanishing,) = diagnose(net, x, 3, labels)
    assert (vanishing.layer, vanishing.kind) == ("body.0", "vanishing gradient")
    assert not any(p.grad is not None for p in net.parameters())
    with pytest.raises(SpikingError, match=r"diagnose\.labels: got classes 1 to 4; expected 0 to 3"):
        diagnose(net, x, 3, labels + 1)


def test_diagnose_sees_leaks_at_their_limits(ann, data):
    net = converted(ann, data)
    x = data.x[:, 0]
    assert diagnose(net, x, 3) == []
    assert [f.kind for f in diagnose(net, x, 3, trained=True)] == ["leaks"]
    assert diagnose(net, x, 1, trained=True) == []  # nothing is ever forgotten within one step
    neurons(net)[0].beta.data.fill_(0.9)
    assert diagnose(net, x, 3, trained=True) == []
    neurons(net)[0].beta.data.fill_(-0.1)
    (found,) = diagnose(net, x, 3)
    assert found.text == 'layer "body.1" has a leak of -0.1; expected 0 to 1. It acts as 0.'


def test_diagnose_sees_residual_thresholds_that_were_never_calibrated():
    torch.manual_seed(0)
    ann, x = ResNet("resnet12", in_channels=1, image_size=8, width=0.1), torch.rand(8, 1, 8, 8)
    net = from_ann(ann, x, timesteps=1)
    assert "default threshold" not in {f.kind for f in diagnose(net, x, 1)}
    for name, layer in net.body.named_children():
        if isinstance(layer, spiking.LIF) and name.startswith("blocks"):
            layer.threshold.data.fill_(0.4)
    found = [f for f in diagnose(net, x, 2) if f.kind == "default threshold"]
    assert [f.layer for f in found] == ["body.blocks_0_act1"]
    assert "and 7 more have the threshold 0.4, as before calibration" in found[0].text


def test_a_threshold_that_no_activity_gives_is_an_error():
    ann = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    ann[0].bias.data.fill_(-10.0)
    with pytest.raises(SpikingError, match=r'layer "1": got -.* as its threshold; expected a number above 0'):
        from_ann(ann, torch.rand(20, 4), timesteps=1)


def test_a_stage_at_chance_is_stopped_or_said(ann, data):
    generator = torch.Generator().manual_seed(3)
    guesses = TensorBatches(torch.rand(data.x.shape, generator=generator), data.labels)  # nothing to be seen
    long = replace(quick(), train=replace(quick().train, epochs=3, lr=1e-6))
    chance = r"reduce_timesteps: T=1: after 2 epochs \d+\.\d % of validation images are right.*calibration_steps=1"
    with pytest.raises(SpikingError, match=chance):
        reduce_timesteps(converted(ann, data), guesses, guesses, (1,), config=long, display=Display())
    said = reduce_timesteps(
        converted(ann, data), guesses, guesses, (1,), config=replace(long, on_silent="warn"), display=Display()
    )
    assert sum("nothing is learned" in text for text in said.stages[0].warnings) == 1
    assert said.stages[0].epochs == 3
    reduce_timesteps(
        converted(ann, data), guesses, guesses, (1,), config=quick(), display=Display()
    )  # it is over by then


def test_diagnose_and_watch_refuse():
    with pytest.raises(SpikingError, match=r"diagnose\.timesteps: got 0"):
        diagnose(nn.Linear(2, 2), torch.zeros(1, 2), 0)
    with pytest.raises(SpikingError, match=r"diagnose\.images: got none"):
        diagnose(nn.Linear(2, 2), torch.zeros(0, 2), 1)
    with pytest.raises(SpikingError, match=r'watch: layer "0": got LIF.*expected LIF neurons with reset="subtract"'):
        watch(nn.Sequential(spiking.LIF(reset="zero"))).__enter__()


def test_membranes_are_those_of_the_neurons(ann, data):
    net = converted(ann, data)
    for neuron in neurons(net):
        neuron.beta.data.fill_(0.8)
    with watch(net) as activity:
        net(encode.direct(data.x[:10, 0], 4))
    for name, h in activity.membranes().items():
        assert torch.equal((h > 1).float(), activity.spikes[name]), name


# The ladder


def test_stages_report_and_leave_the_model_as_it_was(ann, data):
    net = converted(ann, data)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = reduce_timesteps(net, data, data, (3, 2, 1), config=quick(), test=data, display=Display())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [stage.timesteps for stage in found.stages] == [3, 2, 1] == list(found.models)
    assert found.model is found.models[1]
    for stage in found.stages:
        assert stage.validation_accuracy == pytest.approx(stage.test.value)  # the same data here
        assert stage.test.n == 160
        assert len(stage.rates) == len(stage.thresholds) == 3
        assert all(0 <= leak <= 1 for leak in stage.leaks.values())
        assert stage.energy["published"]["gain"] > 0
        assert stage.seconds_per_image > 0
    assert found.stages[0].validation_accuracy > 0.9
    assert found.stages[0].energy["published"]["snn"] > found.stages[2].energy["published"]["snn"]
    assert spiking.compile_events(
        found.model, data.x.transpose(0, 1), strict=True
    )  # nothing of the trainer is left in it
    scores = found.models[2].scores(data.x[:, 0], timesteps=2)
    assert (scores.argmax(1) == data.labels).float().mean() == pytest.approx(found.stages[1].test.value)


def test_each_stage_begins_where_the_one_before_ended(ann, data):
    config = quick()
    started = []

    class Seen(Display):
        def start(self, epochs, steps, epoch):
            started.append(epoch)

    frozen = LadderConfig(
        TrainConfig(epochs=1, batch_size=160, lr=1e-12, weight_decay=0, warmup_epochs=0, ema_decay=0, device="cpu"),
        traced=40,
    )
    first = reduce_timesteps(converted(ann, data), data, data, (3,), config=config, display=Seen())
    second = reduce_timesteps(first.model, data, data, (2,), config=frozen, display=Seen())
    both = reduce_timesteps(converted(ann, data), data, data, (3, 2), config=config, display=Seen())
    assert both.stages[0].validation_accuracy == first.stages[0].validation_accuracy
    assert both.stages[1].before == pytest.approx(second.stages[0].before)
    assert started == [0] * 4


def test_a_stopped_ladder_goes_on_to_the_same_bits(ann, data, tmp_path):
    whole = reduce_timesteps(converted(ann, data), data, data, (2, 1), config=quick(), display=Display())

    class Stopping(TensorBatches):
        calls = 0

        def batch(self, indices, epoch):
            if epoch is not None:
                type(self).calls += 1
                if type(self).calls == 21:  # 8 steps an epoch: in the first epoch of the second stage
                    import signal

                    signal.raise_signal(signal.SIGTERM)
            return super().batch(indices, epoch)

    with pytest.raises(Interrupted):
        reduce_timesteps(
            converted(ann, data),
            Stopping(data.x, data.labels),
            data,
            (2, 1),
            config=quick(),
            run_dir=tmp_path,
            display=Display(),
        )
    assert (tmp_path / "T2/stage.safetensors").is_file()
    assert not (tmp_path / "T1/stage.safetensors").exists()
    again = reduce_timesteps(
        converted(ann, data), data, data, (2, 1), config=quick(), run_dir=tmp_path, resume=True, display=Display()
    )
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert again.stages[0].rates == whole.stages[0].rates
    finished = reduce_timesteps(
        converted(ann, data), data, data, (2, 1), config=quick(), run_dir=tmp_path, resume=True, display=Display()
    )
    assert finished.stages[1].seconds == again.stages[1].seconds  # read, not trained again


def test_checkpoints_of_other_stages_and_runs_are_refused(ann, data, tmp_path):
    reduce_timesteps(converted(ann, data), data, data, (2,), config=quick(), run_dir=tmp_path, display=Display())
    (tmp_path / "T1").mkdir()
    (tmp_path / "T2/stage.safetensors").rename(tmp_path / "T1/stage.safetensors")
    with pytest.raises(
        SpikingError, match=r"stage\.safetensors: the checkpoint's model has timesteps=2; this one has timesteps=1"
    ):
        checkpoint.restore(tmp_path / "T1/stage.safetensors", Stage(converted(ann, data), 1))
    with pytest.raises(SpikingError, match=r"ladder\.json: the run was started with schedule=\[2\]; got \[1\]"):
        reduce_timesteps(
            converted(ann, data), data, data, (1,), config=quick(), run_dir=tmp_path, resume=True, display=Display()
        )
    with pytest.raises(SpikingError, match="got resume=True without run_dir"):
        reduce_timesteps(converted(ann, data), data, data, (1,), config=quick(), resume=True, display=Display())


def test_a_silent_start_is_stopped_or_said(ann, data):
    net = converted(ann, data)
    for neuron in neurons(net):
        neuron.threshold.data.mul_(100)
    with pytest.raises(
        SpikingError, match=r'reduce_timesteps: T=1: layer "body\.1" is silent at 1 step.*calibration_steps=1'
    ):
        reduce_timesteps(net, data, data, (1,), config=quick(), display=Display())
    found = reduce_timesteps(net, data, data, (1,), config=quick(on_silent="warn"), display=Display())
    assert any("is silent" in text for text in found.stages[0].warnings)
    assert found.stages[0].validation_accuracy == 0.25


@pytest.mark.parametrize(
    "options", [{"loss": "tet"}, {"membrane_weight": 0.1}, {"rate_weight": 1.0, "least_rate": 0.3}]
)
def test_optional_losses_train_and_change_what_is_learned(ann, data, options):
    plain = reduce_timesteps(converted(ann, data), data, data, (2,), config=quick(), display=Display())
    other = reduce_timesteps(converted(ann, data), data, data, (2,), config=quick(**options), display=Display())
    assert other.stages[0].validation_accuracy > 0.8
    assert other.stages[0].thresholds != plain.stages[0].thresholds


def test_thresholds_may_learn_faster_and_stay_positive(ann, data):
    net = converted(ann, data)
    slow, fast = (
        reduce_timesteps(net, data, data, (1,), config=quick(threshold_lr=s), display=Display()).stages[0]
        for s in (0.0, 20.0)
    )
    start = {name: n.threshold.item() for name, n in net.named_modules() if isinstance(n, spiking.LIF)}
    assert slow.thresholds == start
    assert all(abs(fast.thresholds[name] - start[name]) > 0.01 for name in start)
    assert all(value >= 1e-3 for value in fast.thresholds.values())


def test_labels_and_samples_that_do_not_fit(ann, data):
    wrong = TensorBatches(data.x, data.labels + 1)
    with pytest.raises(SpikingError, match=r"labels: got classes 1 to 4; expected 0 to 3"):
        reduce_timesteps(converted(ann, data), wrong, data, (1,), config=quick(), display=Display())
    frames = TensorBatches(data.x.expand(-1, 3, -1, -1, -1), data.labels)
    with pytest.raises(SpikingError, match=r"got samples of 3 time steps; expected images"):
        reduce_timesteps(converted(ann, data), frames, data, (1,), config=quick(), display=Display())


def test_weights_that_are_not_finite(ann, data):
    net = converted(ann, data)
    net.body[0].weight.data[0, 0] = float("nan")
    with pytest.raises(SpikingError, match=r'reduce_timesteps: "body\.0\.weight" holds values that are not finite'):
        reduce_timesteps(net, data, data, (1,), config=quick(), display=Display())


@pytest.mark.parametrize("schedule", [(), (1, 2), (2, 2), (2, 0), (1.5, 1)])
def test_schedules_decrease(ann, data, schedule):
    with pytest.raises(SpikingError, match=r"reduce_timesteps\.schedule: got \["):
        reduce_timesteps(nn.Identity(), data, data, schedule, display=Display())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mse"}, r"LadderConfig\.loss: got 'mse'"),
        ({"on_silent": "go"}, r"LadderConfig\.on_silent: got 'go'"),
        ({"threshold_lr": -1}, r"LadderConfig\.threshold_lr: got -1"),
        ({"least_rate": 2}, r"LadderConfig\.least_rate: got 2"),
        ({"dropout": 1.0}, r"LadderConfig\.dropout: got 1\.0"),
        ({"traced": 0}, r"LadderConfig\.traced: got 0"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(SpikingError, match=message):
        LadderConfig(**options)
