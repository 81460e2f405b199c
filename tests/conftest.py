"""Shared fixtures: where the real recordings lie, and the golden numbers that travel with the tests."""

import os
from pathlib import Path

import pytest
from spiking.cuda_kernels import backend

HERE = Path(__file__).parent
MODULE = backend.compiled()


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


@pytest.fixture(params=MODULE.levels() if MODULE else ["reference"])
def level(request):
    """Each instruction set of this machine in turn, the widest again afterwards; "reference" where nothing was compiled."""
    if MODULE is not None:
        MODULE.set_level(request.param)
    yield request.param
    if MODULE is not None:
        MODULE.set_level(MODULE.levels()[0])
