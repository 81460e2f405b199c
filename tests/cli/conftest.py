"""The command in this process, for the tests of its verbs."""

from __future__ import annotations

import sys

import pytest
import torch

from spiking.cli import main


@pytest.fixture
def spiking(monkeypatch, capsys, tmp_path):
    """Run the command in this process, in an empty folder: exit code, standard output, standard error."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPIKING_CACHE", str(tmp_path / "cache"))

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["spiking", *map(str, arguments)])
        code = 0
        try:
            main.run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        out, err = capsys.readouterr()
        return code, out, err

    yield call
    torch.set_num_threads(threads)
