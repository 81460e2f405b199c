"""`spiking train ntidigits`: what it leaves behind, what it says, how it is stopped and how it refuses."""

import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import yaml
from spiking.datasets import voices

from spiking import EventTrace
from spiking.models import NTIDIGITSNet

COMMAND = Path(sys.executable).with_name("spiking")
SMALL = ("--epochs", "2", "--batch-size", "16", "--steps", "12", "--hidden", "8", "--max-delay", "3")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Wav files of two training speakers and of the test speaker, each digit once; one of another rate."""
    root = tmp_path_factory.mktemp("digits")
    for digit in range(10):
        for speaker, name in enumerate(("ann", "bob", "yweweler")):
            sound = voices.speak(digit, speaker, [digit])
            with wave.open(str(root / f"{digit}_{name}_0.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(16000 if (digit, name) == (4, "bob") else 8000)
                file.writeframes((sound / np.abs(sound).max() * 30000).astype("<i2").tobytes())
    return root


def test_a_run_leaves_everything_behind_and_ends_with_the_answer(spiking, digits, tmp_path):
    code, out, err = spiking("train", "ntidigits", "--data", digits, *SMALL)
    assert code == 0, err
    assert f"warning: {digits}: 1 of 20 recordings were resampled (8000 samples a second)" in err
    run = tmp_path / "runs" / "ntidigits-1"
    help_page = " ".join(spiking("train", "ntidigits", "--help")[1].split())
    for path in (p for p in run.rglob("*") if p.is_file()):
        known = {"confusion": "confusion.png and .svg", "firing": "firing_rates.png and .svg"}
        assert next((text for start, text in known.items() if path.name.startswith(start)), path.name) in help_page
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["n_train"], metrics["n_validation"], metrics["n_test"]) == (20, 0, 10)
    assert metrics["told"] == [f"{digits}: 1 of 20 recordings were resampled (8000 samples a second)"]
    assert "SIMULATED cochlea (gammatone)" in metrics["recordings"]
    last = out.splitlines()[-3:]
    assert last[0].startswith(f"accuracy {100 * metrics['accuracy']['value']:.1f} % (95 % interval ")
    assert "logistic regression on counts in five parts" in last[0]
    assert last[1].endswith(" on digital-45nm")
    assert last[2] == "report: runs/ntidigits-1/report.html"
    assert [line[:9] for line in err.splitlines() if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert EventTrace.load(run / "trace.h5").n_samples == 10
    model = NTIDIGITSNet.from_pretrained(run / "model")
    assert (model.config.hidden, model.config.max_delay) == (8, 3)
    assert set(metrics["firing_rates"]) == {"body.lif1", "body.lif2", "output"}


def test_without_data_digits_are_simulated_and_said_to_be(spiking, monkeypatch):
    monkeypatch.setattr(voices, "SPEAKERS", {"train": 2, "test": 1})
    monkeypatch.setattr(voices, "TAKES", {"train": 1, "test": 1})
    code, out, err = spiking("train", "ntidigits", *SMALL, "--no-recurrent", "--max-delay", "0", "--out", "here")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("20 SIMULATED spoken digits")
    assert lines[1].startswith("SIMULATED accuracy")
    assert lines[2].startswith("SIMULATED SNN/ANN energy")
    assert "SIMULATED" in Path("here/report.html").read_text()
    assert "trained on SIMULATED recordings" in Path("here/model/README.md").read_text()
    settings = yaml.safe_load(Path("here/config.yaml").read_text())
    assert settings["model"]["recurrent"] is False


def test_a_speaker_held_out_chooses_the_epoch(spiking, digits):
    code, out, _ = spiking("train", "ntidigits", "--data", digits, *SMALL, "--validation", "bob", "--json")
    assert code == 0
    metrics = json.loads(out)
    assert (metrics["n_train"], metrics["n_validation"]) == (10, 10)
    code, _, err = spiking("train", "ntidigits", "--data", digits, *SMALL, "--validation", "yweweler")
    assert (code, err.splitlines()[-1]) == (
        2,
        "spiking: --validation: got 'yweweler'; expected one of several training speakers: ann, bob.",
    )


def test_a_stopped_run_ends_with_the_same_bits(spiking, digits):
    arguments = ("train", "ntidigits", "--data", digits, *SMALL)
    assert spiking(*arguments, "--out", "whole")[0] == 0
    assert spiking(*arguments, "--out", "again")[0] == 0
    assert spiking(*arguments, "--out", "again", "--resume")[0] == 0
    whole, again = (json.loads(Path(run, "metrics.json").read_text()) for run in ("whole", "again"))
    assert whole["test_loss"] == again["test_loss"]
    code, _, err = spiking("train", "ntidigits", "--out", "whole", "--resume", "--max-delay", "5")
    assert code == 2
    assert err.startswith("spiking: --max-delay: got 5; the run in whole was started with 3.")


def test_the_command_refuses_in_one_line(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "text.wav").write_text("no sound")
    done = subprocess.run(
        [COMMAND, "train", "ntidigits", "--data", "other"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "other: got 1 files, none named <digit>_<speaker>_<take>.wav; expected spoken digits." in done.stderr
