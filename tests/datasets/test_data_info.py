"""`spiking data info`: figures of a file and of a set, as a table and as JSON."""

import json
import re
import subprocess
import sys

import pytest
from spiking.datasets import Events, write_bin
from spiking.datasets.events import encode_bin
from typer.testing import CliRunner

from spiking.cli.data import app
from spiking.errors import SpikingError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKING_CACHE", str(tmp_path / "cache"))


def run(*args):
    result = CliRunner().invoke(app, ["info", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.stdout


def fails(*args):
    """What was printed, and the error that the command ended with."""
    result = CliRunner().invoke(app, ["info", *map(str, args)])
    assert isinstance(result.exception, SpikingError)
    return result.stdout, str(result.exception)


def test_a_file_as_json_and_as_a_table(tmp_path, make_events):
    events = make_events(1, 300)
    write_bin(tmp_path / "one.bin", events)
    facts = json.loads(run(tmp_path / "one.bin", "--sensor", "34x34", "--json"))
    assert (facts["events"], facts["sensor"]) == (300, "34×34")
    assert facts["on_share"] == pytest.approx(events.p.mean())
    assert facts["rate_hz"] == pytest.approx(300 / events.duration * 1e6)
    shown = run(tmp_path / "one.bin")
    for told in ("300", "events/s", "(largest coordinates seen)"):
        assert told in shown.replace("\n", " ")


def test_a_set_shows_counts_per_class_of_both_splits(tree):
    facts = json.loads(run(tree, "--json"))
    assert [(s["split"], s["recordings"], s["per_class"]) for s in facts["splits"]] == [
        ("train", 3, [0, 1, 0, 2, 0, 0, 0, 0, 0, 0]),
        ("test", 2, [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    ]
    assert facts["splits"][0]["events"] == 20 + 21 + 22
    shown = run(tree)
    assert "class 9" in shown
    assert "real N-MNIST" in shown


def test_a_broken_recording_is_named_and_the_rest_of_its_split_shown(tree):
    (tree / "Test/9/00002.bin").write_bytes(b"123")
    shown, error = fails(tree, "--json")
    facts = json.loads(shown)
    assert [(s["split"], s["recordings"]) for s in facts["splits"]] == [("train", 3), ("test", 1)]
    assert "Test/9/00002.bin: byte 0: got 3 of the 5 bytes" in facts["broken"][0]
    assert error == facts["broken"][0]
    shown, _ = fails(tree)
    assert "class 9" in shown
    (tree / "Train/1/00003.bin").write_bytes(b"1234567")
    (tree / "Train/1/00004.bin").write_bytes(b"")
    shown, error = fails(tree)
    assert all(
        name in shown for name in ("Train/1/00003.bin: byte 5", "Train/1/00004.bin: got 0 bytes", "Test/9/00002")
    )
    assert error.endswith("2 more cannot be read: all are listed above.")


def test_a_set_without_one_readable_recording_is_an_error(tmp_path):
    (tmp_path / "Train" / "0").mkdir(parents=True)
    (tmp_path / "Train" / "0" / "00001.bin").write_bytes(b"123")
    with pytest.raises(SpikingError, match=r"Train/0/00001\.bin: byte 0: got 3 of the 5 bytes"):
        run(tmp_path)


def test_a_split_that_is_not_there_is_told(tree):
    import shutil

    shutil.rmtree(tree / "Test")
    facts = json.loads(run(tree, "--json"))
    assert [s["split"] for s in facts["splits"]] == ["train"]
    assert facts["broken"] == []
    assert "expected Test/<digit>/*.bin" in facts["not_found"][0]


def test_recordings_are_repaired_where_asked(tree, tmp_path):
    back = Events([9, 8], [1, 2], [3, 4], [0, 1])
    (tree / "Test/9/00002.bin").write_bytes(encode_bin(back) + b"12")
    _, error = fails(tree)
    assert "(--drop-tail on the command line)" in error
    _, error = fails(tree, "--drop-tail")
    assert "(--sort-events on the command line)" in error
    facts = json.loads(run(tree, "--drop-tail", "--sort-events", "--json"))
    assert [s["recordings"] for s in facts["splits"]] == [3, 2]
    (tmp_path / "one.bin").write_bytes(encode_bin(back) + b"12")
    assert json.loads(run(tmp_path / "one.bin", "--drop-tail", "--sort-events", "--json"))["first_us"] == 8


def test_the_command_ends_with_code_2_and_one_line(tmp_path):
    (tmp_path / "cut.bin").write_bytes(b"12345678")
    command = [
        sys.executable,
        "-P",
        "-c",
        "from spiking.cli.main import run; run()",
        "data",
        "info",
        tmp_path / "cut.bin",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"spiking: .*cut\.bin: byte 5: got 3 of the 5 bytes.*\n", done.stderr)


def test_bad_input_is_one_clear_line(tmp_path):
    (tmp_path / "cut.bin").write_bytes(b"123")
    with pytest.raises(SpikingError, match=r"cut\.bin: byte 0: got 3 of the 5 bytes"):
        run(tmp_path / "cut.bin")
    with pytest.raises(SpikingError, match="got a folder with"):
        run(tmp_path)
    with pytest.raises(SpikingError, match='--sensor: got "34"; expected WIDTHxHEIGHT'):
        run(tmp_path / "cut.bin", "--sensor", "34")
