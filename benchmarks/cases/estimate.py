"""What a trace of ten million events costs to price: seconds on each piece of hardware that ships, and the memory at the peak.

The shipped N-MNIST network is recorded with the place of every spike until the trace holds ten million of them, and saved. A process
of its own reads the file and prices it on one chip after the other, with the ANN beside it, the draws, the bootstrap and the warnings.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from spiking.benchmarks.run import Row, memory

import spiking
from spiking import hw_models
from spiking.models.nmnist import NMNISTNet

NAME = "estimate"
TITLE = "pricing a trace of ten million events on every chip: seconds and peak memory"
EVENTS, QUICK = 10_000_000, 100_000
LOAD, ALL = "read the file", "all chips"


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.h5"
        group = _record(path, QUICK if quick else EVENTS)
        runs = [_child(path) for _ in range(1 if quick else 3)]
    note = f"{runs[0]['trace_mb']:.0f} MB for the trace"
    yield Row(NAME, LOAD, [run["load_s"] for run in runs], None, group, note)
    for chip in runs[0]["chips"]:
        yield Row(NAME, chip, [run["chips"][chip] for run in runs], None, group)
    peak = max(run["peak_mb"] for run in runs)
    seconds = [sum(run["chips"].values()) for run in runs]
    yield Row(NAME, ALL, seconds, None, group, f"{len(runs[0]['chips'])} chips, peak {peak:.0f} MB above the trace")


def _record(path: Path, events: int) -> str:
    """Record until the trace holds that many events; says what was recorded."""
    network, batch = NMNISTNet.pretrained().eval(), 256
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), spiking.record(network, events=True, data_id="random events", seed=0) as trace:
        while sum(len(row.events) for row in trace.layers if row.events is not None) < events:
            network((torch.rand(6, batch, 2, 34, 34, generator=generator) < 0.3).float())
    held = sum(len(row.events) for row in trace.layers if row.events is not None)
    trace.save(path)
    return f"{held / 1e6:.1f} M events, {trace.n_samples} samples"


def _child(path: Path) -> dict[str, Any]:
    arguments = [sys.executable, "-W", "ignore", "-m", __spec__.name, str(path)]
    done = subprocess.run(arguments, cwd=path.parent, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _main() -> None:
    parser = argparse.ArgumentParser(description="Price one trace on every chip; prints seconds and megabytes as JSON.")
    parser.add_argument("trace")
    before = memory("VmRSS")
    start = time.perf_counter()
    trace = spiking.EventTrace.load(parser.parse_args().trace)
    load = time.perf_counter() - start
    held = memory("VmRSS", reset=True)
    chips = {}
    for name in hw_models.available():
        start = time.perf_counter()
        hw_models.estimate(trace, name)
        chips[name] = time.perf_counter() - start
    print(json.dumps({"load_s": load, "trace_mb": held - before, "chips": chips, "peak_mb": memory("VmHWM") - held}))


def summary(rows: Sequence[Row]) -> list[str]:
    """The whole, and what it hangs on."""
    by_name = {row.what: row for row in rows}
    whole = by_name.pop(ALL)
    load = by_name.pop(LOAD)
    slowest = max(by_name.values(), key=lambda row: row.median)
    return [
        f"{whole.group} priced in {whole.median:.2f} s ({whole.note}); {slowest.what} alone {slowest.median:.2f} s; "
        f"reading the file {load.median:.2f} s"
    ]


if __name__ == "__main__":
    _main()
