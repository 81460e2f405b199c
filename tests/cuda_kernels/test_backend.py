"""Which implementation runs, and what is said where one cannot."""

import json
import os
import subprocess
import sys
import tempfile

import pytest
import torch
from spiking.cuda_kernels import backend

from spiking import SpikingError

ELSEWHERE = tempfile.gettempdir()  # python -c looks into the working directory first: never the repository
CODE = """
import json, torch
from spiking.cuda_kernels import backend
from spiking import functional as F
choice = backend.choose(torch.device("cpu"))
s, v = F.lif(torch.full((4, 1, 1), 0.6), beta=0.5)
module = backend.compiled()
print(json.dumps([choice.name, choice.not_used, s.flatten().tolist(), module.level() if module else None, backend.arena_on()]))
"""


def _run(code=CODE, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SPIKING_")} | variables
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ELSEWHERE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_default_on_a_cpu_says_why_cuda_is_not_used():
    name, not_used, spikes, _, arena = json.loads(_run().stdout)
    assert name == ("cpu" if backend.compiled() else "reference")
    assert not_used["cuda"] == "the tensors are on cpu"
    assert spikes == [0.0, 0.0, 1.0, 0.0]
    assert arena == (backend.compiled() is not None)


def test_the_reference_can_be_asked_for():
    name, not_used, spikes, _, _ = json.loads(_run(SPIKING_BACKEND="reference").stdout)
    assert (name, spikes) == ("reference", [0.0, 0.0, 1.0, 0.0])
    assert set(not_used) == {"cpu", "cuda"}


@pytest.mark.skipif(backend.compiled() is None, reason="the compiled module was not built")
def test_every_level_and_the_arena_switch_are_settings():
    for level in backend.compiled().levels():
        assert json.loads(_run(SPIKING_LEVEL=level, SPIKING_ARENA="off").stdout)[3:] == [level, False]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"SPIKING_BACKEND": "tpu"},
            "environment variable SPIKING_BACKEND: got 'tpu'; expected one of auto, cpu, cuda, reference",
        ),
        ({"SPIKING_BACKEND": "cuda"}, 'backend "cuda" cannot run here: the tensors are on cpu'),
        ({"SPIKING_LEVEL": "v9"}, "environment variable SPIKING_LEVEL: got 'v9'; expected one of"),
        ({"SPIKING_ARENA": "maybe"}, "environment variable SPIKING_ARENA: got 'maybe'; expected one of on, off"),
        (
            {"SPIKING_ARENA_MB": "lots"},
            "environment variable SPIKING_ARENA_MB: got 'lots'; expected a whole number of megabytes",
        ),
    ],
)
def test_settings_that_cannot_be_met_are_named(variables, message):
    if backend.compiled() is None and "SPIKING_BACKEND" not in variables:
        pytest.skip("the compiled module was not built")
    done = _run(**variables)
    assert done.returncode != 0
    assert f"SpikingError: {message}" in done.stderr


def test_without_the_compiled_module_the_reference_runs_and_says_so_once():
    code = "import sys\nsys.modules['spiking.cuda_kernels._cpu'] = None\n" + CODE + CODE
    done = _run(code)
    assert json.loads(done.stdout.splitlines()[0])[:1] == ["reference"]
    assert done.stderr.count("the CPU kernels were not built") == 1


def test_a_choice_for_another_device_names_it():
    choice = backend.choose(torch.device("meta"))
    assert choice.name == "reference"
    assert choice.not_used == {"cpu": "the tensors are on meta", "cuda": "the tensors are on meta"}


def test_the_report_is_plain_data():
    facts = json.loads(json.dumps(backend.report()))
    assert facts["threads"] == torch.get_num_threads()
    if backend.compiled() is not None:
        assert facts["compiled"]["level"] in facts["compiled"]["levels"]
        assert facts["memory"]["fresh_ms_per_128_mb"] > 0
        assert facts["memory"]["reused_ms_per_128_mb"] > 0


def test_the_report_says_what_would_help_the_rest_of_a_model(monkeypatch):
    if backend.compiled() is None:
        pytest.skip("the compiled module was not built")

    class Slow:
        def page_fault_seconds(self, n_bytes):
            return 10.0

    assert "start Python with MALLOC_MMAP_MAX_=0" in backend._memory(Slow())["what_would_help_the_rest_of_a_model"]
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")
    assert backend._memory(Slow())["what_would_help_the_rest_of_a_model"].startswith("nothing more")


def test_a_choice_that_cannot_run_is_an_error(monkeypatch):
    monkeypatch.setenv("SPIKING_BACKEND", "cuda")
    backend._wanted.cache_clear()
    try:
        with pytest.raises(SpikingError, match=r'backend "cuda" cannot run here: the tensors are on cpu'):
            backend.choose(torch.device("cpu"))
    finally:
        monkeypatch.undo()
        backend._wanted.cache_clear()
