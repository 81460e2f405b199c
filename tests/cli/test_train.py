"""`spiking train nmnist`: what it leaves behind, what it says last, and how it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml

from spiking import EventTrace
from spiking.models import NMNISTNet

TRAIN, TEST = 60, 30
SMALL = ("--epochs", "2", "--batch-size", "16", "--time-bins", "4")
COMMAND = Path(sys.executable).with_name("spiking")


def test_a_run_leaves_everything_behind_and_ends_with_the_answer(spiking, recordings, tmp_path):
    code, out, err = spiking("train", "nmnist", "--data", recordings, *SMALL)
    assert code == 0, err
    run = tmp_path / "runs" / "nmnist-1"
    names = {p.name for p in run.iterdir()}
    assert names >= {
        "config.yaml", "metrics.jsonl", "metrics.json", "checkpoint.safetensors", "model", "predictions.npz", "trace.h5",
        "report.html", "report.json", "confusion.png", "confusion.svg", "firing_rates.png", "firing_rates.svg",
    }  # fmt: skip
    help_page = " ".join(spiking("train", "nmnist", "--help")[1].split())
    for path in (p for p in run.rglob("*") if p.is_file()):
        known = {
            "best-": "best-NNNN.safetensors",
            "confusion": "confusion.png and .svg",
            "firing": "firing_rates.png and .svg",
        }
        assert next((text for start, text in known.items() if path.name.startswith(start)), path.name) in help_page
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["n_train"] + metrics["n_validation"] == TRAIN
    assert metrics["n_test"] == TEST
    last = out.splitlines()[-3:]
    accuracy = metrics["accuracy"]
    assert last[0].startswith(f"accuracy {100 * accuracy['value']:.1f} % (95 % interval {100 * accuracy['low']:.1f}–")
    assert f"linear baseline on the same time bins {100 * metrics['linear_baseline']['value']:.1f} %" in last[0]
    assert last[1].startswith(f"SNN/ANN energy {metrics['energy']['ratio']['nominal']:.3g} (")
    assert f"{metrics['energy']['n_warnings']} warning" in last[1]
    assert last[1].endswith(" on digital-45nm")
    assert last[2] == "report: runs/nmnist-1/report.html"
    assert [line[:9] for line in err.splitlines() if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert EventTrace.load(run / "trace.h5").n_samples == TEST
    predictions = np.load(run / "predictions.npz")
    assert (predictions["spiking"] == predictions["label"]).mean() == pytest.approx(accuracy["value"])
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["epochs"] == 2
    assert "N-MNIST classifier" in (run / "model" / "README.md").read_text()
    model = NMNISTNet.from_pretrained(run / "model")
    assert model(torch.zeros(4, 1, 2, 34, 34)).shape == (4, 1, 10)


def test_json_prints_the_figures_and_nothing_else(spiking, recordings):
    code, out, _ = spiking("train", "nmnist", "--data", recordings, *SMALL, "--model", "mlp", "--json", "--seed", "3")
    assert code == 0
    metrics = json.loads(out)
    assert metrics["seed"] == 3
    assert metrics["recipe"]["model"]["kind"] == "mlp"


def test_settings_come_from_defaults_then_the_file_then_the_line(spiking, recordings, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train:\n  epochs: 1\n  lr: 1e-3\n  batch_size: 16\nmodel: {kind: mlp, hidden: 8}\n")
    code, _, err = spiking("train", "nmnist", "--data", recordings, "--config", file, "--lr", "0.002", "--out", "a")
    assert code == 0, err
    resolved = yaml.safe_load(Path("a/config.yaml").read_text())
    assert resolved["train"]["lr"] == 0.002
    assert resolved["train"]["epochs"] == 1
    assert resolved["model"]["hidden"] == 8
    assert resolved["frames"]["time_bins"] == 6
    code, _, err = spiking("train", "nmnist", "--config", "a/config.yaml", "--out", "b")
    assert code == 0, err
    assert Path("b/config.yaml").read_text() == Path("a/config.yaml").read_text()
    a, b = (json.loads(Path(run, "metrics.json").read_text()) for run in "ab")
    assert a["accuracy"] == b["accuracy"]
    assert a["test_loss"] == b["test_loss"]


def test_the_number_of_epochs_follows_from_the_number_of_recordings():
    from spiking.cli.train import _with_epochs
    from spiking.models.nmnist import Recipe

    class Split(NamedTuple):
        train: range
        test: range
        simulated: bool = False

    recordings = Split(range(800), range(100))
    assert _with_epochs(Recipe(), recordings, {}, {}).train.epochs == 100
    assert _with_epochs(Recipe(folds=5), recordings, {}, {}).train.epochs == 100
    assert _with_epochs(Recipe(), Split(range(60_000), range(10_000)), {}, {}).train.epochs == 5
    assert _with_epochs(Recipe(), Split(range(1442), range(355), True), {}, {}).train.epochs == 15
    chosen = {"train": {"epochs": 7}}
    assert _with_epochs(Recipe(), recordings, chosen, {}) == Recipe()
    assert _with_epochs(Recipe(), recordings, {}, chosen) == Recipe()


def test_a_finished_run_is_never_overwritten_and_may_be_resumed(spiking, recordings):
    arguments = ("train", "nmnist", "--data", recordings, *SMALL, "--model", "mlp", "--out", "here")
    assert spiking(*arguments)[0] == 0
    before = Path("here/metrics.json").read_bytes()
    code, _, err = spiking(*arguments)
    assert code == 2
    assert err == "spiking: here: is not empty. Add --resume to go on with the run in it, or name another folder.\n"
    assert Path("here/metrics.json").read_bytes() == before
    assert spiking(*arguments, "--resume")[0] == 0
    code, _, err = spiking("train", "nmnist", "--out", "here", "--resume", "--lr", "0.5")
    assert (code, err.count("\n")) == (2, 1)
    assert err == (
        "spiking: --lr: got 0.5; the run in here was started with 0.004. Leave the option out, or start another run.\n"
    )


def test_a_resumed_run_may_be_given_more_epochs(spiking, recordings):
    arguments = ("train", "nmnist", "--data", recordings, *SMALL, "--model", "mlp", "--out", "here")
    assert spiking(*arguments)[0] == 0
    code, _, err = spiking("train", "nmnist", "--out", "here", "--resume", "--epochs", "4")
    assert code == 0, err
    assert "epochs raised from 2 to 4: from epoch 3 on the learning rate follows the longer half cosine" in err
    assert [line[:9] for line in err.splitlines() if line.startswith("epoch ")] == ["epoch 3/4", "epoch 4/4"]
    assert len(Path("here/metrics.jsonl").read_text().splitlines()) == 4
    assert yaml.safe_load(Path("here/config.yaml").read_text())["train"]["epochs"] == 4
    code, _, err = spiking("train", "nmnist", "--out", "here", "--resume", "--epochs", "3")
    assert code == 2
    assert "--epochs: got 3; the run in here was started with 4. A run can be made longer, not shorter." in err


def test_what_the_machine_lacks_is_said_before_there_is_a_run(spiking, recordings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    Path("mine.yaml").write_text("train: {device: cuda, log_with: wandb}\n")
    cases = {
        ("--device", "cuda"): '--device: got "cuda"; torch sees no CUDA device here. Use "auto" or "cpu".',
        ("--mixed-precision", "fp16"): '--mixed-precision: got "fp16"; it needs a GPU. Use "bf16" or "no" on a CPU.',
        ("--log-with", "tensorboard"): '--log-with: got "tensorboard", which is not installed. '
        "Install it (pip install tensorboard), or leave it out.",
        ("--config", "mine.yaml"): 'mine.yaml: train: device: got "cuda"; torch sees no CUDA device here. '
        'Use "auto" or "cpu".',
        (
            "--config",
            "mine.yaml",
            "--device",
            "cpu",
        ): 'mine.yaml: train: log_with: got "wandb", which is not installed. '
        "Install it (pip install wandb), or leave it out.",
    }
    for options, message in cases.items():
        code, out, err = spiking("train", "nmnist", "--data", recordings, *options)
        assert (code, out, err) == (2, "", f"spiking: {message}\n")
    assert not Path("runs").exists()


def test_recordings_are_repaired_where_the_line_asks_for_it(spiking, recordings, tmp_path):
    import shutil

    root = tmp_path / "damaged"
    shutil.copytree(recordings, root)
    victim = next((root / "Train" / "3").iterdir())
    victim.write_bytes(victim.read_bytes()[:-3])
    arguments = ("train", "nmnist", "--data", root, *SMALL, "--model", "mlp", "--out", "here")
    code, _, err = spiking(*arguments)
    assert code == 2
    assert "leave the rest out with drop_tail=True (--drop-tail on the command line)" in err
    code, _, err = spiking(*arguments, "--drop-tail")
    assert code == 0, err
    assert yaml.safe_load(Path("here/config.yaml").read_text())["drop_tail"] is True
    assert spiking("train", "nmnist", "--out", "here", "--resume")[0] == 0


def test_folds_print_every_fold_and_keep_every_prediction(spiking, recordings, tmp_path):
    code, out, err = spiking(
        "train", "nmnist", "--data", recordings, *SMALL, "--model", "mlp", "--folds", "2", "--out", "cv"
    )
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("2-fold cross-validation of 90 recordings, seed 0, 2 epochs fixed beforehand")
    assert lines[1].startswith("spiking network: ")
    assert lines[2].startswith("logistic regression, three time bins: ")
    assert lines[3].startswith("SVM with radial kernel, three time bins: ")
    assert "95 % interval" in lines[3]
    found = np.load("cv/predictions.npz")
    folds = np.load("cv/folds.npz")
    assert np.array_equal(found["fold"], folds["fold"])
    assert np.bincount(folds["fold"]).tolist() == [45, 45]
    metrics = json.loads(Path("cv/metrics.json").read_text())
    assert metrics["pooled"]["spiking"]["hits"] == int((found["spiking"] == found["label"]).sum())
    again = spiking("train", "nmnist", "--data", recordings, "--out", "cv", "--resume")
    assert again[0] == 0
    assert again[1] == out


def test_ctrl_c_saves_and_the_resumed_run_gives_the_same_answer(spiking, recordings, tmp_path):
    """A real process, stopped by SIGINT in its second epoch; resumed, it ends as if it had not been."""
    arguments = ["train", "nmnist", "--data", recordings, "--epochs", "4", "--batch-size", "2", "--time-bins", "4"]
    cut = subprocess.Popen(
        [COMMAND, *map(str, arguments), "--out", "cut"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not cut.stderr.readline().startswith("epoch 1/4"):
        assert cut.poll() is None
    time.sleep(0.05)
    cut.send_signal(signal.SIGINT)
    _, err = cut.communicate(timeout=120)
    assert cut.returncode == 130, err
    assert "stopped and saved; go on with: spiking train nmnist --out cut --resume" in err
    assert "Traceback" not in err
    assert spiking(*arguments, "--out", "cut", "--resume")[0] == 0
    assert spiking(*arguments, "--out", "whole")[0] == 0
    whole, resumed = (json.loads(Path(run, "metrics.json").read_text()) for run in ("whole", "cut"))
    for name in ("accuracy", "test_loss", "firing_rates", "best_epoch"):
        assert whole[name] == resumed[name]
    a, b = (Path(run, "model", "model.safetensors").read_bytes() for run in ("whole", "cut"))
    assert a == b


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere: no such file or folder; expected N-MNIST there."),
        (["--epochs", "0"], "--epochs: got 0; expected at least 1."),
        (["--model", "transformer"], '--model: got "transformer"; expected conv or mlp.'),
        (["--time-bins", "0"], "--time-bins: got 0; expected 1 to 1000."),
        (["--folds", "1"], "--folds: got 1; expected 0 (none) or at least 2."),
        (["--mixed-precision", "int4"], '--mixed-precision: got "int4"; expected no or bf16 or fp16.'),
        (["--config", "none.yaml"], "none.yaml: no such file or directory; expected a YAML file of settings."),
        (["--resume"], "--resume: got no --out, and there is no run in runs/; expected a run that was stopped."),
        (
            ["--resume", "--out", "x"],
            "x: there is no run to resume here (no config.yaml). Leave --resume out to start one.",
        ),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(spiking, arguments, message):
    code, out, err = spiking("train", "nmnist", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"spiking: {message}")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", 'mine.yaml: train: unknown setting "epoch"; expected one of epochs,'),
        ("train: {epoch: 3}", 'Did you mean "epochs"?'),
        ("train: {epochs: three}", "mine.yaml: train: epochs: got 'three'; expected a whole number."),
        ("train: {epochs: true}", "mine.yaml: train: epochs: got True; expected a whole number."),
        ("model: {reset: hard}", "mine.yaml: model: reset: got 'hard'; expected subtract or zero or none."),
        ("train: {epochs: 0}", "mine.yaml: train: epochs: got 0; expected at least 1."),
        ("frames: {zoom: 2}", "mine.yaml: frames: zoom: got 2.0; expected 0 to 0.9."),
        ("validation: 2", "mine.yaml: validation: got 2.0; expected 0 to 0.9."),
        ("train: 3", "mine.yaml: train: got 3; expected settings of its own, indented below it."),
        ("[1, 2]", "mine.yaml: got a list; expected settings as `name: value` lines."),
        ("a: [", "mine.yaml: not a YAML file: "),
    ],
)
def test_a_wrong_setting_in_a_file_is_named(spiking, text, message):
    Path("mine.yaml").write_text(text)
    code, _, err = spiking("train", "nmnist", "--config", "mine.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    code, _, err = spiking("train", "nmnist", "--config", "mine.yaml", "--lr", "0.1")  # an option for the same section
    assert code == 2
    assert message in err


def test_too_many_folds_are_refused_by_the_rarest_class(spiking, recordings):
    code, _, err = spiking("train", "nmnist", "--data", recordings, "--folds", "50")
    assert code == 2
    assert "--folds: got 50; expected 2 to 8, the recordings of the rarest class." in err


def test_a_damaged_recording_is_named_with_its_byte(spiking, recordings, tmp_path):
    import shutil

    root = tmp_path / "damaged"
    shutil.copytree(recordings, root)
    victim = next((root / "Train" / "3").iterdir())
    victim.write_bytes(victim.read_bytes()[:-3])
    code, _, err = spiking("train", "nmnist", "--data", root)
    assert (code, err.count("\n")) == (2, 1)
    assert str(victim) in err
    assert "2 of the 5 bytes of an event" in err


def test_a_damaged_checkpoint_is_named(spiking, recordings):
    arguments = ("train", "nmnist", "--data", recordings, *SMALL, "--model", "mlp", "--out", "here")
    assert spiking(*arguments)[0] == 0
    file = Path("here/checkpoint.safetensors")
    file.write_bytes(file.read_bytes()[:-7])
    code, _, err = spiking(*arguments, "--resume")
    assert code == 2
    assert "here/checkpoint.safetensors: not a whole safetensors file" in err.splitlines()[-1]
