"""The command in this process and recordings for it, for the tests of its verbs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from spiking.datasets import SimulatedNMNIST, write_bin

from spiking.cli import main


@pytest.fixture(scope="session")
def recordings(tmp_path_factory) -> Path:
    """A small folder in N-MNIST's layout, filled with simulated recordings: 60 to train, 30 to test."""
    root = tmp_path_factory.mktemp("nmnist")
    for split, n in (("Train", 60), ("Test", 30)):
        data = SimulatedNMNIST(train=split == "Train", limit=n, cache_dir=root / "cache")
        for i, label in enumerate(data.labels.tolist()):
            folder = root / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            write_bin(folder / f"{i:05d}.bin", data.recording(i))
    return root


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
