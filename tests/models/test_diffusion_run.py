"""From images to samples: data, training with exact resume, the threshold search, and the commands as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from spiking import SpikingError
from spiking.checkpoint import load
from spiking.cli.config import to_yaml
from spiking.cli.main import run as cli
from spiking.models.diffusion import SpikingDiffusion
from spiking.models.diffusion.data import DiffusionBatches, InMemory, load_digits, objective, open_images, scaled
from spiking.models.diffusion.metrics import frechet_distance
from spiking.models.diffusion.run import Recipe, build, evaluate, feature_sets, gaussian_fit, grid, run, save_animation
from spiking.models.diffusion.threshold import search_threshold
from spiking.progress import Display
from spiking.training import TrainConfig

QUICK = TrainConfig(
    epochs=2, batch_size=64, lr=2e-3, weight_decay=0.0, warmup_epochs=0, clip_norm=1.0, ema_decay=0.9, device="cpu"
)
TINY = Recipe(channels=4, timesteps=2, steps=3, grid_epochs=2, gamma_pairs=16, train=QUICK)


def few(n: int = 128):
    digits = load_digits()
    return digits._replace(train=InMemory(digits.train.images[:n]), train_labels=digits.train_labels[:n])


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# data


def test_digits_are_split_once_and_for_all():
    digits = load_digits()
    assert (len(digits.train), len(digits.test), digits.classes) == (1400, 397, 10)
    x, labels = DiffusionBatches(digits.train, digits.train_labels, pad=2).batch(np.array([5, 0]), None)
    assert x.shape == (1, 2, 1, 12, 12)
    assert (float(x.min()), float(x.max())) == (-1, 1)
    assert labels.tolist() == digits.train_labels[[5, 0]].tolist()


def test_mirrored_images_depend_on_epoch_and_index():
    digits = load_digits()
    data = DiffusionBatches(digits.train, digits.train_labels, flip=True, seed=1)
    plain, _ = data.batch(np.arange(20), None)
    whole, _ = data.batch(np.arange(20), 3)
    part, _ = data.batch(np.array([7, 2]), 3)
    assert torch.equal(part[0], whole[0, [7, 2]])
    mirrored = [torch.equal(a, b.flip(2)) and not torch.equal(a, b) for a, b in zip(whole[0], plain[0])]
    kept = [torch.equal(a, b) for a, b in zip(whole[0], plain[0])]
    assert 0 < sum(mirrored) < 20
    assert sum(mirrored) + sum(kept) == 20


def test_folder_of_pictures_is_read_as_needed(tmp_path):
    g = np.random.default_rng(0)
    for i in range(41):
        (tmp_path / f"{i % 3}").mkdir(exist_ok=True)
        Image.fromarray(g.integers(0, 255, (10, 12, 3), dtype=np.uint8)).save(tmp_path / f"{i % 3}" / f"{i:02d}.png")
    images = open_images(str(tmp_path))
    assert (len(images.train), len(images.test), images.shape, images.classes) == (38, 3, (3, 10, 12), 0)
    first = np.asarray(Image.open(images.train.files[4])).transpose(2, 0, 1)
    assert np.array_equal(images.train.read(np.array([4]))[0], first)
    assert open_images(str(tmp_path), side=6, crop=8).train.read(np.array([0, 1])).shape == (2, 3, 6, 6)
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(images.train.files[1])
    with pytest.raises(
        SpikingError, match=r"got a picture of 5×5; expected 10×12 as .*Resize all on reading with --side"
    ):
        images.train.read(np.array([1]))
    images.train.files[2].write_bytes(b"no picture")
    with pytest.raises(SpikingError, match=r"not a picture that can be read"):
        images.train.read(np.array([2]))


def test_bad_places(tmp_path):
    with pytest.raises(SpikingError, match=r"got 0 pictures; expected at least 2 files ending in .png"):
        open_images(str(tmp_path))
    with pytest.raises(
        SpikingError, match=r"--data: got nowhere; expected digits, mnist, fashion, cifar10, or a folder"
    ):
        open_images("nowhere")
    with pytest.raises(SpikingError, match=r"--data mnist: found no mnist in .*Name its folder with --root"):
        open_images("mnist", str(tmp_path))


def test_fashion_is_found(shared):
    images = open_images("fashion", str(shared / "data"))
    assert images.shape == (1, 28, 28)
    with pytest.raises(
        SpikingError, match=r"--multipliers: got 1,2,2,2 for images of 28×28; 4 levels need multiples of 8"
    ):
        build(Recipe(multipliers="1,2,2,2"), images)
    assert build(Recipe(multipliers="1,2,2,2", pad=2, channels=4), images).config.unet.image_channels == 1


# training


def test_a_run_trains_draws_and_saves(tmp_path):
    images = few()
    metrics = run(TINY, tmp_path, data=images, display=Display())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert "accuracy" not in lines[0]
    assert {p.name for p in tmp_path.glob("samples*.png")} == {"samples-0002.png", "samples.png"}
    assert 0 < metrics["test_loss"] < 2
    model = SpikingDiffusion.from_pretrained(tmp_path / "model")
    assert (model.gamma >= 0).all()
    assert torch.equal(
        model.sample(2, 8, steps=3, sampler="analytic").images, model.sample(2, 8, steps=3, sampler="analytic").images
    )
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == ((9 * 10 + 1) * 4,) * 2


def test_second_stage_has_a_control_of_equal_length(tmp_path):
    metrics = run(
        replace(TINY, temporal_epochs=1, temporal_lr=1e-3, grid_epochs=0), tmp_path, data=few(), display=Display()
    )
    assert metrics["test_loss_temporal"] != metrics["test_loss_control"]
    model = SpikingDiffusion.from_pretrained(tmp_path / "model")
    assert model.config.temporal
    assert any(not torch.equal(p, torch.ones_like(p)) for name, p in model.named_parameters() if name.endswith(".p"))


def test_evaluation_loss_is_the_same_each_time():
    torch.manual_seed(0)
    model = build(TINY, load_digits()).eval()
    x = scaled(load_digits().test.images[:32])[None]
    first = objective(model, x, torch.zeros(32, dtype=torch.int64)).loss
    assert torch.equal(first, objective(model, x, torch.zeros(32, dtype=torch.int64)).loss)


def test_killed_at_a_random_step_and_resumed_to_the_same_bits(tmp_path):
    """`spiking diffusion train` of about 100 steps, killed with no warning, against one that was left alone."""
    recipe = replace(TINY, steps=2, grid_epochs=0, train=replace(QUICK, epochs=5, seed=3))
    run(recipe, tmp_path / "whole", display=Display())
    (tmp_path / "c.yaml").write_text(to_yaml(recipe))
    arguments = ["train", "--config", "c.yaml", "--out", "cut"]
    command = [sys.executable, "-P", "-c", "from spiking.cli.main import run; run()", "diffusion", *arguments]
    process = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoint = tmp_path / "cut" / "checkpoint.safetensors"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(float(np.random.default_rng().uniform(0, 0.3)))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run(recipe, tmp_path / "cut", resume=True, display=Display())
    one, two = (load(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "cut"))
    assert one.state["position"]["epoch"] == two.state["position"]["epoch"] == 5
    for name, value in one.model.items():
        assert torch.equal(value, two.model[name]), name
    for name, value in one.average.items():
        assert torch.equal(value, two.average[name]), name


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    images = few()
    run(replace(TINY, grid_epochs=0), tmp_path, data=images, display=Display())
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    broken = images._replace(train=InMemory(images.train.images * np.float32("nan")))
    longer = replace(TINY, grid_epochs=0, train=replace(QUICK, epochs=3))
    with pytest.raises(SpikingError, match=r"the input of sample \d+ holds values that are not finite"):
        run(longer, tmp_path, resume=True, data=broken, display=Display())
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    with pytest.raises(SpikingError, match=r"channels"):
        run(replace(longer, channels=6), tmp_path, resume=True, data=images, display=Display())


# figures


def test_distances_stand_beside_real_images_and_a_normal_fit():
    digits = load_digits()
    features = feature_sets(few(400), seeds=2)
    found = evaluate(digits, {"noise": lambda n, seed: torch.rand(n, 1, 8, 8) * 2 - 1}, features, n=200)
    names = [row["digits-frechet"]["mean"] for row in (found["real"], found["gaussian"], found["noise"])]
    assert names == sorted(names)
    assert found["real"]["precision"]["mean"] > 0.8
    assert len(found["real"]["recall"]["values"]) == 2
    with pytest.raises(SpikingError, match="feature_sets: got pictures, which has no labels"):
        feature_sets(digits._replace(classes=0, name="pictures"))


def test_threshold_search_reports_on_what_it_has_not_seen(tmp_path):
    asked = []

    def metric(threshold, seed, report):
        asked.append((threshold, seed, report))
        return abs(threshold - 1.02) + 0.02 * seed + (0.5 if report else 0)

    found = search_threshold(metric, (0.98, 1.02), seeds=2, cache=tmp_path / "cache.json")
    assert found.chosen == 1.02
    assert {(s, r) for _, s, r in asked} == {(0, False), (1, False), (2, True), (3, True)}
    assert set(found.tried) == {0.98, 1.0, 1.02}
    assert not found.is_better  # by less than the spread
    assert "no better than 1 beyond the spread over seeds" in str(found)
    n = len(asked)
    assert search_threshold(metric, (0.98, 1.02), seeds=2, cache=tmp_path / "cache.json") == found
    assert len(asked) == n
    assert search_threshold(lambda t, s, r: abs(t - 1.02) + 1e-6 * s, (1.02,), seeds=2).is_better
    assert found.plot().get_xlabel() == "threshold of all neurons"
    (tmp_path / "cache.json").write_text("[1")
    with pytest.raises(SpikingError, match="not a cache of a threshold search"):
        search_threshold(metric, cache=tmp_path / "cache.json")
    with pytest.raises(SpikingError, match=r"search_threshold.seeds: got 0"):
        search_threshold(metric, seeds=0)


def test_grids_and_animations(tmp_path):
    sheet = grid(torch.linspace(-1, 1, 3)[:, None, None, None].expand(3, 1, 40, 40), columns=2)
    assert sheet.shape == (83, 83)
    assert [int(sheet[5, 5]), int(sheet[5, 50]), int(sheet[50, 5]), int(sheet[50, 50])] == [0, 128, 255, 64]
    assert grid(torch.zeros(2, 3, 8, 8)).shape == (40, 76, 3)
    x = torch.randn(4, 1, 8, 8)
    save_animation([(9, x, x), (0, -x, x)], tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as moving:
        assert moving.n_frames == 2


@pytest.mark.parametrize(("field", "value", "message"), [
    ("pad", -1, "Recipe.pad: got -1; expected at least 0"),
    ("gamma_pairs", 0, "Recipe.gamma_pairs: got 0; expected at least 1"),
    ("temporal_lr", 0.0, "Recipe.temporal_lr: got 0.0; expected a number above 0"),
    ("multipliers", "1,x", "Recipe.multipliers: got '1,x'; expected whole numbers"),
])  # fmt: skip
def test_recipe_errors(field, value, message):
    with pytest.raises(SpikingError, match=message):
        Recipe(**{field: value})


# commands


def test_commands_refuse_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for arguments, message in {
        ("train", "--data", "nowhere"): "--data: got nowhere; expected digits",
        ("train", "--data", "empty"): "empty: got 0 pictures; expected at least 2",
        ("train", "--multipliers", "1,2,2,2,2"): "--multipliers: got 1,2,2,2,2 for images of 8×8",
        ("sample", "--model", "empty"): "empty: there is no model.safetensors here",
        ("eval", "--seeds", "0"): "--seeds: got 0; expected at least 1",
    }.items():
        monkeypatch.setattr("sys.argv", ["spiking", "diffusion", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli()
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.strip().splitlines()) == 1
        assert not (tmp_path / "runs").exists()


def test_the_model_that_ships_makes_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv", ["spiking", "diffusion", "sample", "--n", "100", "--steps", "10", "--animation", "a.gif", "--json"]
    )
    with pytest.raises(SystemExit) as stopped:
        cli()
    assert stopped.value.code == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["sampler"], made["calls"], made["images"]) == ("analytic", 10, 100)
    with Image.open(tmp_path / "a.gif") as moving:
        assert moving.n_frames == 10
    model, digits = SpikingDiffusion.pretrained(), load_digits()
    with torch.no_grad():
        assert float(model.loss(scaled(digits.test.images), generator=torch.Generator().manual_seed(1))) < 0.33
    feature = feature_sets(digits, seeds=1)[0]
    images = model.sample(100, 8, steps=10, sampler="analytic").images
    test = feature(scaled(digits.test.images))
    assert frechet_distance(feature(images), test) < frechet_distance(
        feature(gaussian_fit(scaled(digits.train.images), 100)), test
    )
