"""Shared fixtures: where the real recordings lie, and the golden numbers that travel with the tests."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real recordings: SPIKING_SHARED, else ../shared beside the checkout."""
    folder = Path(os.environ.get("SPIKING_SHARED", HERE.parent.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real recordings: {folder}/data does not exist (set SPIKING_SHARED)")
    return folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder with golden numbers, which are part of the repository."""
    return HERE / "golden"
