"""The command itself: version, help, verbs that cannot be loaded, and how quickly it is there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spiking import __version__
from spiking.cli import doctor, main

COMMAND = str(Path(sys.executable).with_name("spiking"))


def test_version_is_the_packages(spiking):
    assert spiking("--version") == (0, f"spiking {__version__}\n", "")


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        (
            OSError(28, "No space left on device", "run/figure.png"),
            2,
            "spiking: run/figure.png: No space left on device. Free",
        ),
        (KeyboardInterrupt(), 130, "spiking: stopped"),
    ],
)
def test_a_full_disk_and_ctrl_c_end_with_one_line(spiking, monkeypatch, fault, code, line):
    def stop() -> None:
        raise fault

    monkeypatch.setattr(main, "app", stop)
    found, _, err = spiking("train")
    assert found == code
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_help_lists_every_verb(spiking):
    code, out, _ = spiking("--help")
    assert code == 0
    assert all(verb in out for verb in main.VERBS)
    assert "Not available" not in out


def test_help_teaches(spiking):
    code, out, _ = spiking("train", "nmnist", "--help")
    assert code == 0
    for needed in ("spiking train nmnist --resume", "10.17632/468j46mzdv.1", "test.zip", "SIMULATED", "exit code 130"):
        assert needed in " ".join(out.split())


def test_a_verb_that_cannot_be_loaded_says_why_and_breaks_no_other(spiking, monkeypatch):
    monkeypatch.setitem(main.VERBS, "broken", "spiking.cli.no_such_module")
    code, _, err = spiking("broken", "x", "--y")
    assert code == 2
    assert err.startswith("spiking: spiking broken: not available here: No module named 'spiking.cli.no_such_module'")
    assert err.count("\n") == 1
    code, out, _ = spiking("--help")
    assert code == 0
    assert "Not available here" in out
    assert "train" in out


@pytest.mark.parametrize("verb", list(main.VERBS))
def test_every_verb_has_help(spiking, verb):
    code, out, _ = spiking(verb, "--help")
    assert code == 0
    assert f" {verb} [OPTIONS]" in out


@pytest.mark.parametrize("arguments", [["nonsense"], ["train", "nonsense"], ["train", "nmnist", "--epochs", "many"]])
def test_usage_errors_have_exit_code_2(spiking, arguments):
    assert spiking(*arguments)[0] == 2


def test_a_real_process_ends_with_one_line_and_code_2(tmp_path):
    found = subprocess.run(
        [COMMAND, "train", "nmnist", "--data", "nowhere"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.startswith("spiking: nowhere: no such file or folder")
    assert found.stderr.count("\n") == 1


def test_the_command_loads_only_what_every_verb_needs():
    code = (
        "import sys, spiking.cli.main; "
        "print([m for m in ('matplotlib', 'h5py', 'sklearn', 'accelerate', 'scipy', 'huggingface_hub', 'yaml') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "[]", found.stderr


def test_doctor_prints_a_table_and_json(spiking):
    from spiking.cuda_kernels import backend

    code, out, _ = spiking("doctor")
    assert code == 0
    assert "torch" in out
    code, out, _ = spiking("doctor", "--json")
    assert code == 0
    assert set(json.loads(out)) == set(backend.report())


def test_doctor_rows_are_flat_and_readable():
    facts = {"threads": 2, "cuda": {"not_used": {"cupy": "is not installed"}}, "levels": ["v3", "v2"], "ms": 41.7612}
    assert list(doctor._rows(facts)) == [
        ("threads", "2"),
        ("cuda: not used: cupy", "is not installed"),
        ("levels", "v3, v2"),
        ("ms", "41.76"),
    ]
