"""`spiking deploy`: what it prints, what it leaves behind, how it goes on and how it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ("--trials", "2", "--calibrate", "8")


def test_a_study_prints_both_columns_and_leaves_figures(spiking, recordings, tmp_path):
    chips = ("--preset", "pcm", "--preset", "rram-40nm", "--time", "0", "--time", "30d")
    arguments = ("deploy", "pretrained", *chips, "--data", recordings, *SMALL)
    code, out, err = spiking(*arguments, "--out", "chips")
    assert code == 0, err
    assert str(recordings) in out
    assert "calibrated: mean (5–95 %)" in out
    assert "30 d" in out
    assert err.count("chip 2/2 after 30 d") == 2
    assert {p.name for p in (tmp_path / "chips").iterdir()} == {
        "pcm",
        "rram-40nm",
        "deploy.json",
        "accuracy.png",
        "accuracy.svg",
    }
    code, again, err = spiking(*arguments, "--out", "chips", "--json")
    assert code == 0
    assert "chip" not in err, "every figure was there"
    found = json.loads(again)
    assert found == json.loads((tmp_path / "chips/deploy.json").read_text(encoding="utf-8"))
    drifted = [row for row in found["studies"][0]["rows"] if row["time"] > 0]
    assert [row["column"] for row in drifted] == ["trained clean", "calibrated"]
    assert drifted[1]["mean"] > drifted[0]["mean"] + 0.2


def test_converters_and_wires(spiking, recordings):
    hardware = ("--preset", "ideal", "--adc-bits", 8, "--wire", 0.35)
    code, out, err = spiking("deploy", "pretrained", *hardware, "--limit", 4, "--data", recordings, *SMALL, "--json")
    assert code == 0, err
    assert "adc_bits=8" in json.loads(out)["config"]


def test_presets_are_listed(spiking):
    code, out, _ = spiking("deploy", "--list")
    assert code == 0
    assert "rram-wan" in out
    code, out, _ = spiking("deploy", "--list", "--json")
    assert {"name", "G_min", "constants"} <= json.loads(out)[0].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pretrained",), "spiking deploy: got no RUN or no --preset"),
        (("nowhere", "--preset", "pcm"), "nowhere: not a finished run"),
        (("pretrained", "--preset", "pmc"), "cell: got 'pmc'"),
        (("pretrained", "--preset", "pcm", "--time", "soon"), "--time: got 'soon'; expected seconds"),
        (
            ("pretrained", "--preset", "pcm", "--time=-1"),
            "--time: got t=-1.0; expected seconds since programming, 0 or more",
        ),
        (("pretrained", "--preset", "pcm", "--kelvin", "25"), "--kelvin: got 25.0 K; expected kelvin"),
        (("pretrained", "--preset", "pcm", "--compensate", "both"), "--compensate: got 'both'"),
        (("pretrained", "--preset", "pcm", "--adc-bits", "0"), "--adc-bits: got 0 bits; expected 2 to 32"),
        (
            ("pretrained", "--preset", "pcm", "--adc-bits", "6", "--calibrate", "0"),
            "--adc-bits: got it with --calibrate 0",
        ),
        (("pretrained", "--preset", "pcm", "--wire=-1"), "--wire: got -1.0 ohms; expected 0 or more"),
        (("pretrained", "--preset", "pcm", "--limit", "0"), "--limit: got 0"),
        (("pretrained", "--preset", "pcm", "--trials", "0"), "--trials: got 0; expected at least one chip"),
        (
            ("pretrained", "--preset", "pcm", "--calibrate", "-3"),
            "--calibrate: got -3; expected a number of recordings",
        ),
    ],
)
def test_bad_input_is_told_in_one_line(spiking, recordings, arguments, message):
    code, _, err = spiking("deploy", *arguments, "--data", recordings)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_run_of_ones_own_under_torchrun(tmp_path):
    command = Path(sys.executable).with_name("spiking")
    environment = {
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
        "SPIKING_CACHE": str(tmp_path / "cache"),
        "PATH": "/usr/bin",
    }
    train = [command, "train", "nmnist", "--epochs", "1", "--out", "run"]
    subprocess.run(train, cwd=tmp_path, env=environment, check=True, capture_output=True)
    deploy = [str(command), "deploy", "run", "--preset", "rram-wan", "--trials", "3", "--limit", "30", "--out", "chips"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, *deploy], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3 chips") == 1
    assert {p.name for p in (tmp_path / "chips/rram-wan").iterdir()} == {
        "setting.json",
        "trials-0.jsonl",
        "trials-1.jsonl",
    }
