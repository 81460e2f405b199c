"""Networks on arrays: what is replaced and what is refused, corrections, training through the noise, studies over many chips."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from spiking.hw_models import (
    ArrayConfig,
    Cell,
    age,
    array_layers,
    calibrate,
    crossbar,
    deploy,
    layer_errors,
    load_cell,
    monte_carlo,
    noise_aware,
)
from spiking.hw_models.curves import Constant, Proportional
from spiking.hw_models.effects import Faults, ProgrammingNoise, WhiteNoise
from spiking.hw_models.montecarlo import duration
from spiking.hw_models.wires import Wires
from torch import nn
from torch.testing import assert_close

import spiking
from spiking import LIF, Conv2d, Flatten, Linear, Recurrent, Sequential, SpikingError, hw_models
from spiking.progress import Display
from spiking.training import TensorBatches, TrainConfig, Trainer

MONTH = 30 * 86_400.0
QUIET = Cell("quiet", 1e-6, 1e-4, programming=ProgrammingNoise(Constant(2.0)))  # every read of it is the same
NOISY = Cell("noisy", 20e-6, 80e-6, pairing="two-sided", reads=(WhiteNoise(Proportional(0.05)),))


def seeded(make, seed: int = 0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


@pytest.fixture
def net() -> Sequential:
    return seeded(
        lambda: Sequential(
            Conv2d(2, 4, 3, padding=1), LIF(threshold=0.3), Conv2d(4, 3, 3, stride=2, bias=False), LIF(threshold=0.3),
            Flatten(), Linear(3 * 3 * 3, 5), LIF(threshold=0.3),
        ).eval()
    )  # fmt: skip


@pytest.fixture
def x() -> torch.Tensor:
    return (torch.rand(6, 3, 2, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.3).float()


# What is replaced


def test_ideal_cells_change_nothing(net, x):
    chip = deploy(net, "ideal")
    assert torch.equal(chip(x), net(x))
    assert [name for name, _ in array_layers(chip)] == ["0", "2", "5"]
    assert chip.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1, "stride": 2},
        {"dilation": 2},
        {"padding": "same"},
        {"padding": 2, "padding_mode": "circular"},
        {"kernel_size": (3, 1), "padding": (0, 2)},
    ],
    ids=str,
)
def test_convolutions_through_converters_are_convolutions(options, x):
    layer = seeded(lambda: Conv2d(**{"in_channels": 2, "out_channels": 4, "kernel_size": 3, **options}))
    plain, through = deploy(layer, "ideal"), deploy(layer, "ideal", ArrayConfig(input_bits=20, adc_bits=24))
    for images in (x, x[0]):
        assert_close(plain(images), layer(images), rtol=1e-4, atol=1e-5)
        assert_close(through(images), layer(images), rtol=1e-3, atol=1e-4)


def test_converters_act_on_every_window(x):
    layer = seeded(lambda: Conv2d(2, 4, 3))
    config = ArrayConfig(adc_bits=6, adc_range=3.0)
    windows = torch.nn.functional.unfold(x[0], 3).transpose(1, 2)
    array = dict(array_layers(deploy(layer, "ideal", config)))[""].array
    expected = array(windows).transpose(1, 2).reshape(3, 4, 6, 6) + layer.bias.detach()[:, None, None]
    assert_close(deploy(layer, "ideal", config)(x[0]), expected)
    assert not torch.allclose(expected, layer(x[0]), atol=1e-3)


def test_recurrent_weights_are_on_an_array():
    layer = seeded(lambda: Recurrent(LIF(threshold=0.2), 6))
    x = torch.rand(5, 2, 6, generator=torch.Generator().manual_seed(0))
    assert [name for name, _ in array_layers(deploy(layer, "ideal"))] == ["recurrent"]
    assert torch.equal(deploy(layer, "ideal")(x), layer(x))


def test_a_layer_in_two_places_is_one_array():
    shared = nn.Linear(4, 4)
    chip = deploy(nn.Sequential(shared, nn.ReLU(), shared), QUIET)
    assert chip[0] is chip[2]


def test_named_layers_stay_digital(net):
    chip = deploy(net, QUIET, digital=["5"])
    assert [name for name, _ in array_layers(chip)] == ["0", "2"]
    assert type(chip[5]) is Linear


def test_the_model_given_is_untouched_and_chips_are_by_seed(net, x):
    before = copy.deepcopy(net.state_dict())
    a, again, b = (deploy(net, QUIET, seed=s) for s in (0, 0, 1))
    assert torch.equal(a(x), again(x))
    assert not torch.equal(a[0].array.matrix, b[0].array.matrix)
    assert not torch.equal(a[0].array.devices.at()[..., :2, :2], a[2].array.devices.at()[..., :2, :2])
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_chips_stream_and_copy(net, x):
    chip = deploy(net, QUIET)
    state, steps = None, []
    for frame in x:
        s, state = chip.step(frame, state)
        steps.append(s)
    assert torch.equal(torch.stack(steps), chip(x))
    assert torch.equal(copy.deepcopy(chip)(x), chip(x))


def test_traces_of_a_chip_count_its_layers(net, x):
    chip = deploy(net, "ideal")
    with torch.no_grad(), spiking.record(chip) as trace:
        chip(x)
    with torch.no_grad(), spiking.record(net) as plain:
        net(x)
    assert [row.kind for row in trace.layers] == [row.kind for row in plain.layers]
    assert [row.counts["syn"].sum() for row in trace.layers] == [row.counts["syn"].sum() for row in plain.layers]


@pytest.mark.parametrize("t", [0.0, MONTH])
def test_a_chips_trace_is_priced_by_its_own_devices(net, x, t, tmp_path):
    chip = age(deploy(net, "pcm", seed=2), t)
    with torch.no_grad(), spiking.record(chip) as trace:
        chip(x)
    trace.save(tmp_path / "trace.h5")
    trace = spiking.EventTrace.load(tmp_path / "trace.h5")
    found = hw_models.estimate(trace, "rram-crossbar", accounting="published")
    volts, seconds = load_cell("pcm").v_read, hw_models.load("rram-crossbar")["read_time"].value
    layers, whole = dict(array_layers(chip)), 0.0
    for row in trace.layers:
        if row.is_weight_layer:
            devices = layers[row.name].array.devices
            siemens = devices.read_moments(t)[0].sum((0, 1, 3)).numpy()
            assert_close(row.row_siemens, siemens, rtol=1e-12, atol=0)
            facts = row.config["cell"]
            assert (facts["name"], facts["t"], facts["kelvin"]) == ("pcm", t, 300.0)
            assert facts["v_read"] == pytest.approx([0.05, 0.2, 0.3])
            assert facts["t_read"] == pytest.approx([250e-9] * 3)
            joules = volts**2 * seconds * float(crossbar.row_counts(row) @ siemens)
            terms = [term for term in found.terms if term.layer == row.name]
            assert [term.group for term in terms] == ["cells"]
            assert sum(term.amount * term.price.nominal for term in terms) == pytest.approx(
                joules / x.shape[1], rel=1e-9
            )
            whole += joules / x.shape[1]
    macro, plain = hw_models.estimate(trace, "pcm-crossbar"), copy.deepcopy(trace)
    for row in plain.layers:
        row.row_siemens = np.zeros(0)
    assert macro.energy == hw_models.estimate(plain, "pcm-crossbar").energy  # a published price holds its cells
    assert macro.facts["cells"].nominal == pytest.approx(whole * 250e-9 / seconds, rel=1e-9)


def test_devices_that_drifted_away_are_read_for_less(net, x):
    def joules(t: float) -> float:
        chip = age(deploy(net, "pcm", seed=2), t)
        with torch.no_grad(), spiking.record(chip) as trace:
            chip(x[:1])
        (first, *_) = trace.layers
        found = hw_models.estimate(trace, "rram-crossbar", accounting="published")
        return sum(term.amount * term.price.nominal for term in found.terms if term.layer == first.name)

    assert joules(MONTH) < 0.8 * joules(0.0)


def test_a_file_with_conductances_of_other_rows_is_refused(net, x, tmp_path):
    chip = deploy(net, "pcm")
    with torch.no_grad(), spiking.record(chip) as trace:
        chip(x)
    trace.layers[0].row_siemens = trace.layers[0].row_siemens[:-1]
    trace.save(tmp_path / "trace.h5")
    with pytest.raises(SpikingError, match=r"got row_siemens of 17 rows of a weight \[4, 2, 3, 3\]"):
        spiking.EventTrace.load(tmp_path / "trace.h5")


def test_rows_behind_a_reflected_edge_cannot_be_priced():
    layer = Sequential(Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), LIF())
    chip = deploy(layer, "pcm")
    with torch.no_grad(), spiking.record(chip) as trace:
        chip(torch.ones(2, 1, 1, 4, 4))
    with pytest.raises(SpikingError, match="layer 0 was on memory cells, and a padding other than zeros hides"):
        hw_models.estimate(trace, "rram-crossbar")


# Time and corrections


def test_age_moves_all_arrays_and_comes_back(net, x):
    chip = deploy(net, "pcm", ArrayConfig(read="none"), seed=2)
    new = [layer.array.matrix.clone() for _, layer in array_layers(chip)]
    age(chip, MONTH)
    assert all(
        float(layer.array.matrix.abs().sum()) < 0.7 * float(m.abs().sum())
        for (_, layer), m in zip(array_layers(chip), new)
    )
    assert torch.equal(deploy(net, "pcm", ArrayConfig(read="none"), seed=2, t=MONTH)(x), chip(x))
    age(chip, MONTH, compensation="array")
    for (_, layer), matrix in zip(array_layers(chip), new):
        assert float(layer.array.matrix.abs().sum()) == pytest.approx(float(matrix.abs().sum()), rel=1e-5)
    age(chip, 0.0)
    assert all(torch.equal(layer.array.matrix, m) for (_, layer), m in zip(array_layers(chip), new))


def test_calibration_undoes_gains_and_offsets(net, x):
    chip = deploy(net, "ideal")
    with torch.no_grad():
        for _, layer in array_layers(chip):
            layer.array.matrix *= torch.linspace(0.3, 0.8, len(layer.array.matrix))[:, None]
    assert not torch.equal(chip(x), net(x))
    errors = layer_errors(chip, net, x)
    assert errors[0].error > 0.3
    assert_close(calibrate(chip, net, x)(x), net(x))
    corrected = layer_errors(chip, net, x)
    assert max(e.error for e in corrected) < 1e-4
    assert all(e.gain == pytest.approx(1, abs=1e-4) and e.correlation == pytest.approx(1, abs=1e-6) for e in corrected)
    age(chip, 0.0)
    assert all(bool((layer.gain == 1).all()) for _, layer in array_layers(chip))


def test_layer_errors_tell_static_from_fresh(net, x):
    static = layer_errors(deploy(net, QUIET), net, x)[0]
    assert static.error > 0.005
    assert static.noise == 0
    assert static.weight_error > 0.005
    fresh = layer_errors(deploy(net, NOISY), net, x)[0]
    assert fresh.noise > 0.01
    assert fresh.weight_error < 1e-5
    assert (fresh.name, fresh.inputs, fresh.outputs, fresh.tiles) == ("0", 18, 4, 2)
    clipped = layer_errors(deploy(net, "ideal", ArrayConfig(adc_bits=8, adc_range=0.5)), net, x)[0]
    assert clipped.clipped > 0.01


def test_calibrated_converters_see_what_earlier_layers_send(net, x):
    config = ArrayConfig(adc_bits=8, adc_range="calibrated")
    with pytest.raises(SpikingError, match=r'deploy: got adc_range="calibrated" without calibration=x'):
        deploy(net, "ideal", config)
    chip = deploy(net, "ideal", config, calibration=x)
    assert layer_errors(chip, net, x)[0].error < 0.02
    assert (
        layer_errors(chip, net, x)[0].error
        < layer_errors(deploy(net, "ideal", replace(config, adc_range="max")), net, x)[0].error
    )


# Refusals


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Linear(2, 2), nn.Conv1d(1, 1, 2)),
            r'deploy: layer "1" \(torch\.nn\.modules\.conv\.Conv1d\) holds weights',
        ),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), r'layer "0" \(.*Conv2d with 2 groups\)'),
        (nn.Sequential(nn.Embedding(3, 2)), r'layer "0" \(.*Embedding\).*Leave it digital: digital=\["0"\]'),
        (nn.MultiheadAttention(4, 2), r'layer "" \(.*MultiheadAttention\)'),
        (nn.Sequential(nn.ReLU()), r"deploy: Sequential has no Linear or Conv2d layer"),
    ],
)
def test_layers_that_no_array_holds_are_named(model, message):
    with pytest.raises(SpikingError, match=message):
        deploy(model, "ideal")


def test_bad_use_is_refused(net, x):
    with pytest.raises(SpikingError, match=r"deploy: digital: got 'lost'; expected names of layers: 0, 1"):
        deploy(net, "ideal", digital=["lost"])
    broken = copy.deepcopy(net)
    broken[2].weight.data[0] = float("nan")
    with pytest.raises(SpikingError, match=r'deploy: layer "2": Crossbar: got 36 weights that are NaN'):
        deploy(broken, "ideal")
    with pytest.raises(SpikingError, match=r'deploy: layer "0" is on an array already'):
        deploy(deploy(net, "ideal"), "ideal")
    with pytest.raises(SpikingError, match=r"got t=-1; expected seconds since programming"):
        deploy(net, "ideal", t=-1)
    with pytest.raises(SpikingError, match=r"got 80 K; expected kelvin"):
        age(deploy(net, "ideal"), 0.0, 80)
    with pytest.raises(SpikingError, match=r"age: Sequential has no layer on an array"):
        age(net, 0.0)
    with pytest.raises(SpikingError, match=r'calibrate: Sequential has no layer "2"'):
        calibrate(deploy(net, "ideal"), Sequential(LIF()), x)
    with pytest.raises(SpikingError, match=r"calibrate: got inputs with NaN or infinity"):
        calibrate(deploy(net, "ideal"), net, torch.full_like(x, float("nan")))
    with pytest.raises(SpikingError, match=r"ArrayLinear: got input of shape \[2, 3\]; expected 5"):
        deploy(nn.Linear(5, 2), "ideal")(torch.zeros(2, 3))

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    idle = Idle()
    with pytest.raises(SpikingError, match=r'layer "idle" does not run in a pass of Idle'):
        calibrate(deploy(idle, "ideal"), idle, torch.zeros(1, 2))


# Training through the noise


def test_noise_aware_is_another_chip_every_pass_and_the_plain_network_in_evaluation(net, x):
    learner = noise_aware(net, "pcm", clip=0)
    torch.manual_seed(0)
    first, second = learner.train()(x), learner(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, learner(x))
    assert torch.equal(learner.eval()(x), net(x))
    net.load_state_dict(learner.state_dict())
    assert [name for name, _ in array_layers(deploy(learner, "ideal"))] == ["0", "2", "5"]


def test_noise_aware_noise_is_the_chips(net):
    """Mean and spread of a layer's outputs over training passes are those over chips and reads."""
    layer = seeded(lambda: nn.Linear(20, 6)).eval()
    x = torch.rand(1, 20, generator=torch.Generator().manual_seed(0))
    learner = noise_aware(layer, "rram-40nm", clip=0).train()
    torch.manual_seed(0)
    with torch.no_grad():
        trained = torch.cat([learner(x) for _ in range(400)])
        chips = torch.cat([deploy(layer, "rram-40nm", seed=s)(x) for s in range(400)])
    assert_close(trained.mean(0), chips.mean(0), rtol=0, atol=0.02)
    assert float((trained.std(0) / chips.std(0)).mean()) == pytest.approx(1, abs=0.08)


def test_gradients_pass_as_if_written_exactly():
    layer = seeded(lambda: nn.Linear(5, 3))
    learner = noise_aware(layer, QUIET, clip=0).train()
    x = torch.rand(4, 5)
    learner(x).sum().backward()
    layer(x).sum().backward()
    assert_close(learner.weight.grad, layer.weight.grad)


def test_weights_are_clipped():
    layer = seeded(lambda: nn.Linear(50, 30))
    layer.weight.data[0, 0] = 30.0
    learner = noise_aware(layer, "pcm", clip=2.0).train()
    learner(torch.rand(1, 50))
    assert float(learner.weight.detach().abs().max()) < 3
    assert float(layer.weight.detach().max()) == 30


def test_training_through_the_noise_recovers_half_of_what_it_costs():
    """Two overlapping classes, a cell so noisy that the clean network loses; the same network trained on noisy cells."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    centres = torch.rand(4, 24, generator=generator)
    rates = (centres[labels] * 0.5 + 0.25)[:, None]
    x = (torch.rand(400, 8, 24, generator=generator) < rates).float()
    data, held_out = TensorBatches(x[:200], labels[:200]), (x[200:].transpose(0, 1), labels[200:])
    cell = replace(NOISY, programming=ProgrammingNoise(Constant(6.0)), faults=Faults(0.03, 0.03))

    def trained(model: nn.Module, epochs: int) -> nn.Module:
        Trainer(
            model, config=TrainConfig(epochs=epochs, batch_size=20, lr=1e-2, warmup_epochs=1), display=Display()
        ).fit(data)
        return model.eval()

    clean = trained(seeded(lambda: Sequential(Linear(24, 32), LIF(), Linear(32, 4), LIF())), 12)
    aware = trained(noise_aware(clean, cell, clip=1.5), 12)
    lost, recovered = (
        monte_carlo(model, [held_out], cell, trials=25, progress=False).band().mean for model in (clean, aware)
    )
    without = monte_carlo(clean, [held_out], "ideal", trials=1, progress=False).clean
    assert without - lost > 0.05
    assert recovered - lost > 0.5 * (without - lost)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": -1}, r"noise_aware: got clip=-1"),
        ({"config": ArrayConfig(adc_bits=8)}, r"noise_aware: got ArrayConfig\(adc_bits=8\); expected no converters"),
        ({"digital": ["lost"]}, r"noise_aware: digital: got 'lost'"),
    ],
)
def test_noise_aware_refuses(net, options, message):
    with pytest.raises(SpikingError, match=message):
        noise_aware(net, "pcm", **options)


# Studies over chips


@pytest.fixture
def task():
    net = seeded(lambda: nn.Sequential(nn.Linear(10, 3)))
    x = torch.rand(80, 10, generator=torch.Generator().manual_seed(0))
    return net, [(x[:50], net(x[:50]).argmax(1)), (x[50:], net(x[50:]).argmax(1))]


def study(task, **options):
    net, data = task
    defaults = {"trials": 4, "times": (0.0, MONTH), "temperatures": (300.0, 353.15), "progress": False}
    return monte_carlo(net, data, "pcm", **{**defaults, **options})


def test_a_study_has_both_columns(task):
    found = study(task, calibration=task[1][0][0], compensation="column")
    assert found.columns == ("trained clean", "calibrated")
    assert found.accuracy.shape == (2, 4, 2, 2)
    assert (found.clean, found.n, found.trials) == (1.0, 80, 4)
    band = found.band("calibrated", 1, 0)
    assert band.low <= band.mean <= band.high <= 1
    loss = found.loss("trained clean", 1)
    assert loss[1] <= loss[0] <= loss[2]
    rows = list(found.rows())
    assert len(rows) == 8
    json.dumps(rows)
    assert {"cell", "time", "kelvin", "column", "mean", "low", "high", "loss"} <= rows[0].keys()
    assert found.table().row_count == 4


def test_trials_are_chips_by_number_whoever_runs_them(task):
    few, more = study(task, trials=2), study(task, trials=4)
    assert np.array_equal(few.accuracy, more.accuracy[:, :2])
    assert not np.array_equal(study(task, seed=1).accuracy, more.accuracy)
    assert np.array_equal(study(task, times=(MONTH,)).accuracy[:, :, 0], more.accuracy[:, :, 1])


def test_a_stopped_study_goes_on_to_the_same_figures(task, tmp_path):
    whole = study(task)
    study(task, out=tmp_path, trials=2)
    path = tmp_path / "trials-0.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:5]) + lines[5][:7], encoding="utf-8")  # killed while writing
    resumed = study(task, out=tmp_path)
    assert np.array_equal(resumed.accuracy, whole.accuracy)
    rows = path.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("{") and line.endswith("}") for line in rows) == 16
    before = path.stat().st_mtime_ns
    assert np.array_equal(study(task, out=tmp_path).accuracy, whole.accuracy)
    assert path.stat().st_mtime_ns == before


KILLED = """
import sys, torch
from spiking.hw_models import monte_carlo
net, data = torch.load(sys.argv[1], weights_only=False)
monte_carlo(net, data, "pcm", trials=10_000, out=sys.argv[2], progress=True)
"""


def test_a_study_that_was_killed_goes_on(task, tmp_path):
    net, data = task
    (tmp_path / "study.py").write_text(KILLED, encoding="utf-8")
    torch.save(task, tmp_path / "task.pt")
    command = [sys.executable, str(tmp_path / "study.py"), str(tmp_path / "task.pt"), str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for _ in range(4):
            running.stderr.readline()
        running.kill()
    assert running.returncode == -9
    path = tmp_path / "out/trials-0.jsonl"
    before = path.read_text(encoding="utf-8").splitlines()
    assert len(before) >= 4
    resumed = monte_carlo(net, data, "pcm", trials=len(before) + 2, out=tmp_path / "out", progress=False)
    assert np.array_equal(
        resumed.accuracy, monte_carlo(net, data, "pcm", trials=len(before) + 2, progress=False).accuracy
    )
    assert len(path.read_text(encoding="utf-8").splitlines()) <= len(before) + 3


def test_a_folder_of_another_study_is_refused(task, tmp_path):
    study(task, out=tmp_path, trials=1)
    with pytest.raises(SpikingError, match=r"setting\.json: the study was started with seed=0; got 1"):
        study(task, out=tmp_path, seed=1)
    with pytest.raises(SpikingError, match=r"started with config='ArrayConfig\(\)'; got 'ArrayConfig\(adc_bits=6\)'"):
        study(task, out=tmp_path, config=ArrayConfig(adc_bits=6))
    (tmp_path / "setting.json").write_text("{", encoding="utf-8")
    with pytest.raises(SpikingError, match=r"setting\.json: not the setting of a study"):
        study(task, out=tmp_path)


def test_a_study_is_drawn_with_its_band(task):
    ax = study(task, calibration=task[1][0][0]).plot()
    assert [line.get_label() for line in ax.lines[:2]] == ["trained clean", "calibrated"]
    assert len(ax.collections) == 2
    assert ax.get_xscale() == "symlog"


def test_progress_is_a_line_for_each_figure(task, capsys):
    study(task, trials=1, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("chip 1/1 after 30 d at 300 K: trained clean ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 2.5}, r"monte_carlo: got 2\.5 trials"),
        (
            {"scores": lambda model, x: model(x)[1:]},
            r"monte_carlo: got scores \[49, 3\] for 50 labels and inputs \[50, 10\]; expected scores \[B, classes\]",
        ),
        ({"trials": 0}, r"monte_carlo: got 0 trials, 2 times, 2 temperatures and 80 samples"),
        ({"times": (-5.0,)}, r"monte_carlo: times: got t=-5\.0; expected seconds"),
        (
            {"temperatures": (25.0,)},
            r"monte_carlo: temperatures: got 25\.0 K; expected kelvin from 150 to 700\. 80 °C is 353\.15 K",
        ),
        ({"compensation": "row"}, r"Crossbar\.compensate: got 'row'"),
    ],
)
def test_a_study_refuses(task, options, message):
    with pytest.raises(SpikingError, match=message):
        study(task, **options)


def test_durations():
    assert [duration(t) for t in (1.0, 60.0, 3600.0, 86_400.0, 31_557_600.0)] == ["1 s", "1 min", "1 h", "1 d", "1 a"]


RANKS = """
import json, sys, torch
from torch import distributed, nn
from spiking.hw_models import monte_carlo
net, data = torch.load(sys.argv[1], weights_only=False)
found = monte_carlo(net, data, "pcm", trials=5, out=sys.argv[2], progress=False)
if distributed.get_rank() == 0:
    print(json.dumps(found.accuracy.tolist()))
distributed.destroy_process_group()
"""


def test_ranks_share_the_trials(task, tmp_path):
    net, data = task
    (tmp_path / "study.py").write_text(RANKS, encoding="utf-8")
    torch.save(task, tmp_path / "task.pt")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(tmp_path / "study.py"), str(tmp_path / "task.pt"), str(tmp_path / "two")],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    together = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[[")))
    assert together == monte_carlo(net, data, "pcm", trials=5, progress=False).accuracy.tolist()
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"setting.json", "trials-0.jsonl", "trials-1.jsonl"}


# The N-MNIST network


def test_the_packaged_network_on_a_chip():
    from spiking.models.nmnist import NMNISTNet

    net = NMNISTNet.pretrained()
    x = (torch.rand(6, 4, 2, 34, 34, generator=torch.Generator().manual_seed(0)) < 0.05).float()
    chip = deploy(net, "rram-40nm", ArrayConfig(wires=Wires(0.35, 0.35)))
    errors = layer_errors(chip, net, x)
    assert [e.name for e in errors] == ["body.conv1", "body.conv2", "body.linear"]
    assert 0.05 < errors[0].error < 1
    assert isinstance(load_cell("rram-40nm"), Cell)
    assert Path(load_cell("rram-40nm").path).name == "rram-40nm.toml"
