"""Whole runs on small sets: what lands in the folder, that the parts agree, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from spiking import EventTrace, SpikingError
from spiking.cli.runs import keep
from spiking.convert import from_ann
from spiking.models.iir import PRESETS, VGG, Recipe, SpikingResNet, SpikingVGG, open_images, run
from spiking.models.iir.run import _report, parse_schedule
from spiking.progress import Display
from spiking.training import TrainConfig

TRAIN = TrainConfig(epochs=4, batch_size=20, lr=0.05, weight_decay=5e-4, warmup_epochs=0, ema_decay=0, device="cpu")


def idx(array):
    head = (0x800 + array.ndim).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Idx files of images 12×12 in which one of four quarters is bright."""
    place = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, n in (("train", 240), ("t10k", 60)):
        labels = np.arange(n) % 4
        images = rng.integers(0, 120, (n, 12, 12)) * (rng.random((n, 12, 12)) < 0.2)
        for image, label in zip(images, labels):
            image[6 * (label // 2) :, 6 * (label % 2) :][:6, :6] += 100
        (place / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        (place / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    return place


def small(folder, **options):
    settings = {"network": "vgg6", "width": 0.1, "stage_epochs": 1, "stage_lr": 1e-3, "dropout": 0.0, "train": TRAIN}
    return Recipe(data=str(folder), **{**settings, **options})


def test_a_run_leaves_everything_in_its_folder(folder, tmp_path):
    found = run(small(folder, preset="compare"), tmp_path, display=Display())
    assert {"ann", *PRESETS, "metrics.json", "model", "trace.h5", "report.html"} < {p.name for p in tmp_path.iterdir()}
    assert found["ann"]["value"] > 0.9
    steps_levels = [(f["timesteps"], f["levels"]) for f in found["unretrained"]]
    assert steps_levels == [(5, 1), (1, 8)]
    assert all(f["test"]["value"] > 0.8 for f in found["unretrained"])
    steps = {name: [stage["timesteps"] for stage in start["stages"]] for name, start in found["starts"].items()}
    assert steps == {"short": [1], "published": [5, 4, 3, 2, 1], "direct": [1]}
    published = found["starts"]["published"]["stages"]
    assert published[0]["test"]["value"] > 0.5
    gains = [stage["energy"]["published"]["gain"] for stage in published]
    assert gains[0] < gains[-1]
    assert found["starts"]["direct"]["stages"][0]["warnings"]
    assert found["best_start"] in PRESETS
    assert {"conventional", "short T=1", "published T=5"} <= set(found["latency"])
    assert json.loads((tmp_path / "metrics.json").read_text())["n_test"] == 60
    assert (tmp_path / "accuracy_energy.png").read_bytes().startswith(b"\x89PNG")
    model = SpikingVGG.from_pretrained(tmp_path / "model")
    data = open_images(small(folder))
    x, labels = data.test.batch(np.arange(60), None)
    last = found["starts"][found["best_start"]]["stages"][-1]
    assert float((model.scores(x[0]).argmax(1) == labels).float().mean()) == pytest.approx(last["test"]["value"])
    assert EventTrace.load(tmp_path / "trace.h5").n_steps == 1


def test_a_network_that_no_chip_holds_is_reported_without_it(tmp_path):
    """The size that the command has by default on MNIST is more than Loihi's 128 cores hold."""
    images = torch.rand(20, 1, 28, 28)
    network = from_ann(VGG("vgg6", 10, 1, 28, 0.25).eval(), images, timesteps=1)
    said = []
    display = Display()
    display.message = said.append
    data, stage = SimpleNamespace(calibration=images, name="mnist"), SimpleNamespace(timesteps=1, test=None)
    path = _report(network, data, tmp_path, stage, display)
    assert re.search(r"not in the report: place: the network needs \d+ cores and loihi has 128", "\n".join(said))
    document = json.loads(Path(path).with_suffix(".json").read_text())
    assert "loihi" not in json.dumps(document["estimates"])
    assert "rram-crossbar" in json.dumps(document["estimates"])


@pytest.mark.parametrize(
    "options", [{"residual": "sum"}, {"residual": "sew"}, {"batch_norm": True, "percentile": 97.0}]
)
def test_residual_networks_and_batch_norms(folder, tmp_path, options):
    recipe = small(
        folder,
        network="resnet12",
        width=0.1,
        schedule="2,1",
        calibration_steps=1,
        graded_levels=1,
        converted_steps=0,
        **options,
    )
    found = run(recipe, tmp_path, display=Display())
    assert found["unretrained"] == []
    assert [stage["timesteps"] for stage in found["starts"]["short"]["stages"]] == [2, 1]
    assert SpikingResNet.from_pretrained(tmp_path / "model").timesteps == 1


def test_a_set_is_called_by_its_name_although_its_files_look_like_mnists(folder, tmp_path):
    (tmp_path / "fashion-mnist").symlink_to(folder)
    assert open_images(replace(small(folder), data="fashion", root=str(tmp_path))).name == "fashion"
    assert open_images(small(folder)).name == "mnist"


def test_the_seed_decides_and_test_images_stay_apart(folder):
    one, same, other = (open_images(small(folder, train=replace(TRAIN, seed=s))) for s in (0, 0, 1))
    assert one.train.indices.tolist() == same.train.indices.tolist() != other.train.indices.tolist()
    assert not set(one.train.indices) & set(one.validation.indices)
    assert len(one.train) + len(one.validation) == 240
    assert len(one.test) == 60
    limited = open_images(small(folder, limit=100))
    assert (len(limited.train) + len(limited.validation), len(limited.test)) == (100, 20)
    assert torch.equal(one.calibration, same.calibration)


def command(*arguments, cwd):
    spiking = Path(sys.executable).with_name("spiking")
    call = [spiking] if spiking.exists() else [sys.executable, "-P", "-c", "from spiking.cli.main import run; run()"]
    return subprocess.run([*call, "iir", "run", *map(str, arguments)], cwd=cwd, capture_output=True, text=True)


def test_the_command_runs_resumes_and_prints(folder, tmp_path):
    options = (
        "--data",
        folder,
        "--width",
        "0.06",
        "--epochs",
        "2",
        "--stage-epochs",
        "1",
        "--schedule",
        "1",
        "--device",
        "cpu",
    )
    ran = command(*options, "--batch-size", "20", "--json", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    metrics = json.loads(ran.stdout)
    assert metrics["recipe"]["width"] == 0.06
    again = command("--resume", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    lines = again.stdout.splitlines()
    assert lines[0].startswith("conventional network: test ")
    assert any(line.startswith("short, T=1: test ") for line in lines)
    assert any(
        re.match(r"one image on this machine \(\d+ threads?, medians of .*\): conventional [\d.]+ ms, short T=1", line)
        for line in lines
    )
    assert any(re.fullmatch(r"short, T=1: [\d.]+× as fast as the dense network", line) for line in lines)
    shown = json.loads((tmp_path / "runs/iir-1/metrics.json").read_text())
    assert shown["starts"]["short"]["stages"][0]["test"] == metrics["starts"]["short"]["stages"][0]["test"]
    changed = command("--resume", "--width", "0.1", cwd=tmp_path)
    assert changed.returncode == 2
    assert changed.stderr.strip() == (
        "spiking: --width: got 0.1; the run in runs/iir-1 was started with 0.06. Leave the option out, or start another run."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--data", "mnist", "--root", "nowhere"),
            r"spiking: mnist: got none of mnist in nowhere; expected one of them.",
        ),
        (("--data", "nowhere"), "spiking: nowhere: there is no such file or folder"),
        (("--preset", "best"), "spiking: --preset: got 'best'; expected one of short, published, direct, compare."),
        (("--schedule", "5;1"), "spiking: --schedule: got '5;1'; expected numbers of steps such as 5,4,3,2,1."),
        (("--schedule", "1,2"), "spiking: --schedule: got '1,2'; expected numbers of at least 1, each smaller than"),
        (("--network", "vgg9"), "spiking: VGG.image_size: got 12; expected at least 16 for the 4 poolings."),
    ],
)
def test_the_command_refuses_in_one_line_and_leaves_nothing(folder, tmp_path, arguments, message):
    given = arguments if "--data" in arguments else ("--data", folder, *arguments)
    ran = command(*given, cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.startswith(message)
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("split", "n", "message"),
    [
        ("train", 240, "got training labels up to 12, but none is 10; expected images of every class."),
        ("t10k", 60, "got the label 12 among the test images; expected 0 to 9, as in training."),
    ],
)
def test_labels_out_of_range_are_refused_before_a_folder_is_made(folder, tmp_path, split, n, message):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    labels = np.arange(n) % 4
    labels[17] = 12
    (data / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    ran = command("--data", data, cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"spiking: {data}: {message}")
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_resumed_run_refuses_the_checkpoint_of_another_stage(folder, tmp_path):
    recipe = small(folder, schedule="2,1", calibration_steps=1, graded_levels=1, train=replace(TRAIN, epochs=1))
    out = tmp_path / "run"
    run(recipe, out, display=Display())
    keep(out, recipe)
    shutil.copy(out / "short/T2/stage.safetensors", out / "short/T1/stage.safetensors")
    ran = command("--resume", "--out", out, cwd=tmp_path)
    assert ran.returncode == 2
    assert "T1/stage.safetensors: the checkpoint's model has timesteps=2; this one has timesteps=1" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "x"}, r"Recipe\.preset: got 'x'"),
        ({"sigma": 0.0}, r"Recipe\.sigma: got 0\.0; expected a number above 0"),
        ({"percentile": 101.0}, r"Recipe\.percentile: got 101\.0; expected a number above 0, at most 100"),
        ({"validation": 0.0}, r"Recipe\.validation: got 0\.0"),
        ({"stage_epochs": 0}, r"Recipe\.stage_epochs: got 0"),
        ({"loss": "mse"}, r"LadderConfig\.loss: got 'mse'"),
        ({"schedule": "2,2"}, r"Recipe\.schedule: got '2,2'; expected numbers of at least 1, each smaller"),
        ({"schedule": "1,0"}, r"Recipe\.schedule: got '1,0'; expected numbers of at least 1, each smaller"),
        ({"network": "vgg7"}, r"Recipe\.network: got 'vgg7'; expected one of vgg5, vgg4, vgg6, "),
        ({"width": 0.0}, r"Recipe\.width: got 0\.0; expected a number above 0"),
        ({"schedule": "1,a"}, r"Recipe\.schedule: got '1,a'"),
        ({"residual": "x"}, r"Recipe\.residual: got 'x'; expected one of sum, sew"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(SpikingError, match=message):
        Recipe(**options)


def test_images_that_do_not_fit(tmp_path, folder):
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((60, 9, 9))))
    with pytest.raises(SpikingError, match=r"training images \[1, 12, 12\] and test images \[1, 9, 9\]"):
        open_images(small(tmp_path))
    for split, n in (("train", 240), ("t10k", 60)):
        (tmp_path / f"{split}-images-idx3-ubyte").write_bytes(idx(np.zeros((n, 9, 8))))
    with pytest.raises(SpikingError, match=r"got images of 8×9; expected square ones"):
        open_images(small(tmp_path))
    assert parse_schedule("") == ()
