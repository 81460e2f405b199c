"""`spiking lsm run`: real and simulated images, spoken digits, arrays of cells, controls, and what it refuses."""

import json
import os
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from spiking.cli.main import app
from spiking.errors import SpikingError
from spiking.models.lsm import pairing
from spiking.models.lsm.run import PRESETS, Recipe, Recordings, instances, open_recordings, reservoir, run
from spiking.models.lsm.weights import receptive_fields


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("SPIKING_CACHE", str(tmp_path_factory.getbasetemp() / "lsm-cache"))


@pytest.fixture
def real(shared):
    return str(shared / "data" / "nmnist")


def test_the_published_reservoir_on_real_recordings(real):
    found = run(Recipe(data=real, seeds=1, limit=300))
    rows = found["rows"]
    assert not found["simulated"]
    assert rows["reservoir"]["n"] == 300
    assert 0.55 < rows["reservoir"]["mean"] < 0.9  # 900 recordings give 78 %
    assert 0.02 < found["firing_rate"] < 0.2
    assert rows["reservoir"]["low"] < rows["reservoir"]["mean"] < rows["reservoir"]["high"]
    for name in found["loses_to"]:
        assert rows[name]["mean"] > rows["reservoir"]["mean"]
    assert found["synops"] < found["dense_macs"] / 4


def test_the_published_crop_is_the_published_one(real):
    recordings = open_recordings(Recipe(data=real, limit=50))
    x = next(recordings.batches())
    assert x.shape == (50, 50, 256)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert recordings.shape == (1, 16, 16)
    from spiking import datasets

    kept = np.sort(np.random.default_rng(0).permutation(900)[:50])
    events, label = datasets.NMNIST(real)[int(kept[0])]
    inside = (
        (events.p == 1) & (events.x >= 9) & (events.x < 25) & (events.y >= 9) & (events.y < 25) & (events.t < 300_000)
    )
    expected = np.zeros((50, 16, 16))
    expected[events.t[inside] // 6000, events.y[inside] - 9, events.x[inside] - 9] = 1
    assert np.array_equal(x[:, 0].reshape(50, 16, 16).numpy(), expected)
    assert recordings.labels[0] == label
    assert recordings.counts[0].sum() == inside.sum()
    tests = np.concatenate([test for _, test in recordings.splits])
    assert sorted(tests.tolist()) == list(range(50))
    assert all(not set(a) & set(b) for a, b in recordings.splits)


def test_tuned_neurons_see_squares_in_both_polarities(real):
    recipe = Recipe(data=real, preset="tuned", limit=50, neurons=30)
    lsm = reservoir(recipe, open_recordings(recipe), 0)
    seen = (lsm.w_in != 0).reshape(30, 2, 30, 30)
    assert torch.equal(seen[:, 0], seen[:, 1])
    assert seen[:, 0].sum((1, 2)).tolist() == [81] * 30
    assert float((lsm.w_rec == 0).float().mean()) > 0.95
    with pytest.raises(SpikingError, match="receptive_fields: got a size of 9 in 8 by 20 pixels"):
        receptive_fields(1, 8, 20, 3, 9, 0)


def spoken(shared, tmp_path):
    folder = tmp_path / "spoken"
    folder.mkdir()
    with zipfile.ZipFile(shared / "data/fsdd/fsdd.zip") as archive:
        for name in archive.namelist():
            if name.endswith("_0.wav") or name.endswith("_7.wav"):
                (folder / os.path.basename(name)).write_bytes(archive.read(name))
    return str(folder)


def test_spoken_digits_are_split_by_speaker(shared, tmp_path):
    recipe = Recipe(task="sound", data=spoken(shared, tmp_path), seeds=1)
    found = run(recipe)
    assert found["rows"]["reservoir"]["n"] == 20
    assert "yweweler" in found["recordings"]
    assert found["rows"]["reservoir"]["mean"] > 0.2


def test_the_command_writes_what_it_prints(real, tmp_path):
    out = tmp_path / "run"
    line = [
        "lsm",
        "run",
        "--data",
        real,
        "--seeds",
        "1",
        "--limit",
        "60",
        "--neurons",
        "40",
        "--cell",
        "ideal",
        "--out",
        str(out),
    ]
    told = CliRunner().invoke(app, line)
    assert told.exit_code == 0, told.output
    found = json.loads((out / "metrics.json").read_text())
    assert f"reservoir: {100 * found['rows']['reservoir']['mean']:.1f} %" in told.output
    plain = run(Recipe(data=real, seeds=1, limit=60, neurons=40))
    assert plain["rows"]["reservoir"] == found["rows"]["reservoir"]  # ideal arrays change nothing
    assert "neurons: 40" in (out / "config.yaml").read_text()


def test_simulated_recordings_say_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["lsm", "run", "--seeds", "1", "--limit", "60", "--neurons", "40"])
    assert told.exit_code == 0, told.output
    assert "SIMULATED reservoir: " in told.output


def test_sound_is_simulated_where_there_is_none(tmp_path, monkeypatch):
    from spiking.datasets import voices

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPIKING_CACHE", str(tmp_path))
    monkeypatch.setattr(voices, "SPEAKERS", {"train": 2, "test": 1})
    told = CliRunner().invoke(
        app, ["lsm", "run", "--task", "sound", "--preset", "tuned", "--seeds", "1", "--neurons", "40"]
    )
    assert told.exit_code == 0, told.output
    assert "SIMULATED reservoir: " in told.output


def test_recurrent_weights_are_scaled():
    recipe = Recipe(task="sound", preset="tuned", neurons=30)
    found = Recordings("", True, (1, 1, 8), 10, np.zeros(0), [], np.zeros(0), lambda: iter(()))
    tuned, plain = (reservoir(replace(recipe, preset=p), found, 0) for p in ("tuned", "published"))
    assert tuned.w_rec.std() / plain.w_rec.std() == pytest.approx(0.5 * 0.3 / 0.08, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "smell"], "--task: got 'smell'; expected images or sound"),
        (["--seeds", "0"], "--seeds: got 0; expected 1 or more"),
        (["--task", "sound", "--data", "nowhere"], "nowhere: no such file or folder"),
        (["--data", "nowhere"], "nowhere: no such file or folder"),
        (["--preset", "best"], "--preset: got 'best'; expected published or zero-shot or tuned"),
        (["--sound", "x"], "--sound: got 'x'; expected it only with --zero-shot"),
        (["--zero-shot", "--task", "sound"], "--task: got 'sound'; expected none of it with --zero-shot"),
        (["--zero-shot", "--preset", "best"], "--preset: got 'best'; expected published or soft or label-aware"),
        (["--zero-shot", "--limit", "20"], "--limit: got 20; expected 100 or more"),
    ],
)
def test_bad_options_are_named(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(app, ["lsm", "run", *options])
    assert isinstance(told.exception, SpikingError)
    assert message in str(told.exception)


def test_presets_are_the_published_numbers():
    images, sound = PRESETS["images"]["published"], PRESETS["sound"]["published"]
    assert (images.neurons, images.steps, images.beta, images.threshold, images.const) == (200, 50, 0.9, 5.0, 0.07)
    assert (sound.neurons, sound.steps, sound.beta, sound.threshold, sound.const) == (200, 129, 0.97, 5.3, 0.08)


def test_zero_shot_on_simulated_recordings_says_so_and_draws(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(pairing.PRESETS, "label-aware", replace(pairing.PRESETS["label-aware"], epochs=1))
    line = ["lsm", "run", "--zero-shot", "--preset", "label-aware", "--seeds", "1", "--limit", "200", "--neurons", "30"]
    told = CliRunner().invoke(app, [*line, "--out", "found"])
    assert told.exit_code == 0, told.output
    found = json.loads((tmp_path / "found" / "metrics.json").read_text())
    assert found["simulated"]
    assert "SIMULATED reservoirs, image to sound: unseen " in told.output
    assert set(found["rows"]) == {
        "reservoirs", "control, pairs of wrong classes", "control, projections as drawn", "reservoirs without recurrence",
        "event counts, no reservoirs",
    }  # fmt: skip
    for way in ("image to sound", "sound to image"):
        row = found["rows"]["reservoirs"][way]
        assert np.shape(row["runs"]) == (45, 1)
        assert row["unseen"]["low"] < row["unseen"]["mean"] < row["unseen"]["high"]
        assert found["shows_skill"][way] == (row["unseen"]["low"] > 0.5)
        asked = np.array(row["confusion"]).sum(1) / 45  # every query once for each pair
        assert asked.sum() == (240 if way == "sound to image" else 67)
    for name in ("confusion.png", "embedding.png"):
        assert (tmp_path / "found" / name).read_bytes().startswith(b"\x89PNG")
    assert "label-aware" in (tmp_path / "found" / "config.yaml").read_text()


def test_chips_are_measured_both_ways(real):
    recipe = Recipe(data=real, limit=60, neurons=40, cell="ideal", device="gaussian")
    found = instances(recipe, 2)
    assert found["readout fitted through the chip"] == found["exact weights"]  # ideal arrays change nothing
    assert found["readout fitted on exact weights"] == found["exact weights"]
    noisy = instances(replace(recipe, cell="rram-40nm", device="rram-40nm"), 2)
    assert (
        len(set(noisy["readout fitted through the chip"])) == 2
        or noisy["exact weights"][0] != noisy["exact weights"][1]
    )
    with pytest.raises(SpikingError, match="instances: got a recipe without a cell"):
        instances(replace(recipe, cell=""), 2)
