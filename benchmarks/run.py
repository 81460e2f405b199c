"""The one benchmark runner: cases in, a table and JSON out, with the machine and the versions that the figures belong to.

A case is a module in `cases/` with `NAME`, `TITLE`, `rows(quick, device, data)` and, where it wants, `ENVIRONMENTS` (each a child
process with these variables set), `summary(rows)` (lines that answer what the case was built to ask), `figure(rows)` (drawn where the
caller names a folder) and `LONG = True` (runs only where it is named). A case checks results before it times them. Rows compare within
their group: the ratio is the reference's median over the row's.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import pkgutil
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from types import ModuleType
from typing import Any

from spiking.errors import SpikingError

__all__ = ["Row", "draw", "interleaved", "list_cases", "machine", "memory", "ratio_of", "run", "table"]


@dataclass(frozen=True)
class Row:
    """One contestant: seconds of each repeat, and the row of its group that it is compared with."""

    case: str
    what: str
    seconds: list[float]
    reference: str | None = None
    group: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        return median(self.seconds)


def interleaved(
    contestants: Mapping[str, Callable[[], Any]], repeats: int, warm_up: dict[str, int] | int = 3, in_a_row: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call, contestant after contestant, round by round, so that all meet the same load.

    `in_a_row` calls of each contestant follow one another in a round; above 1, one more goes before them untimed, so that
    none is charged for what the one before it left in the caches.

    >>> sorted(interleaved({"a": lambda: None, "b": lambda: None}, repeats=2, warm_up=1))
    ['a', 'b']
    """
    for name, call in contestants.items():
        for _ in range(warm_up if isinstance(warm_up, int) else warm_up.get(name, 3)):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, call in contestants.items():
            if in_a_row > 1:
                call()
            for _ in range(in_a_row):
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    return seconds


def list_cases() -> dict[str, str]:
    """Name and title of every case."""
    return {case.NAME: case.TITLE for case in _cases()}


def _cases() -> list[ModuleType]:
    from spiking.benchmarks import cases

    return [
        importlib.import_module(f"{cases.__name__}.{module.name}") for module in pkgutil.iter_modules(cases.__path__)
    ]


def machine() -> dict[str, Any]:
    """What the figures belong to: processor, cores, threads, allocator settings, versions."""
    import torch

    packages = ("torch", "numpy", "snntorch", "spikingjelly", "norse", "sinabs", "tonic", "spiking")
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "malloc": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
    }
    if torch.cuda.is_available():
        facts["cuda"] = torch.cuda.get_device_name()
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def memory(what: str, reset: bool = False) -> float:
    """Megabytes of this process: "VmRSS" is resident now, "VmHWM" was at the peak, which `reset` lets start anew (Linux)."""
    if reset:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(what)) / 1024


def run(names: Sequence[str], quick: bool = False, device: str = "cpu", data: str | None = None) -> dict[str, Any]:
    """Run cases (all where none is named) -> {"machine", "rows", "summary"}.

    Errors: SpikingError for a case that does not exist or a device that is not there.
    """
    known = {case.NAME: case for case in _cases()}
    for name in names:
        if name not in known:
            raise SpikingError(f'bench: got the case "{name}"; expected one of {", ".join(known)}.')
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SpikingError(
                "bench: got --device cuda, but torch sees no CUDA device. Use --device cpu, or run it where a GPU is."
            )
    rows: list[Row] = []
    summary: list[str] = []
    for name in names or [name for name, case in known.items() if not getattr(case, "LONG", False)]:
        case = known[name]
        environments = getattr(case, "ENVIRONMENTS", None)
        if environments is None:
            found = list(case.rows(quick, device, data))
        else:
            found = [row for setting in environments.values() for row in _child(name, setting, quick, device, data)]
        rows += found
        if hasattr(case, "summary"):
            summary += [f"{name}: {line}" for line in case.summary(found)]
    return {"machine": machine(), "rows": rows, "summary": summary}


def _child(name: str, variables: dict[str, str], quick: bool, device: str, data: str | None) -> list[Row]:
    """The rows of a case in a process of its own: allocator settings are read once, at the start."""
    arguments = [
        sys.executable,
        "-m",
        "spiking.benchmarks.run",
        "--child",
        name,
        "--device",
        device,
        *(["--quick"] if quick else []),
    ]
    if data is not None:
        arguments += ["--data", os.path.abspath(data)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")} | variables
    with tempfile.TemporaryDirectory() as elsewhere:  # never the repository: its folders would shadow the package
        done = subprocess.run(arguments, env=environment, cwd=elsewhere, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SpikingError(
            f'bench: the case "{name}" stopped with exit code {done.returncode}; its own message is above.'
        )
    return [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def draw(rows: Sequence[Row], folder: str) -> list[str]:
    """Save the figure of every case that has one, as NAME.png and NAME.svg in a folder; returns their paths."""
    made: list[str] = []
    for case in _cases():
        of_case = [row for row in rows if row.case == case.NAME]
        if of_case and hasattr(case, "figure"):
            os.makedirs(folder, exist_ok=True)
            drawing = case.figure(of_case)
            for ending, settings in (("png", {"dpi": 110}), ("svg", {"metadata": {"Date": None}})):
                path = os.path.join(folder, f"{case.NAME}.{ending}")
                drawing.savefig(path, **settings)
                made.append(path)
    return made


def table(rows: Sequence[Row]) -> Any:
    """A rich table: median, spread, and how many times as fast as the reference each row is."""
    from rich.table import Table

    shown = Table(title=None, box=None, header_style="bold")
    for column, justify in (
        ("case", "left"),
        ("what", "left"),
        ("median ms", "right"),
        ("min … max", "right"),
        ("× ref.", "right"),
    ):
        shown.add_column(column, justify=justify)  # type: ignore[arg-type]
    shown.add_column("note")
    group = None
    for row in rows:
        if group not in (None, (row.case, row.group)):
            shown.add_section()
        group = (row.case, row.group)
        ratio = ratio_of(row, rows)
        spread = f"{min(row.seconds) * 1e3:.3g} … {max(row.seconds) * 1e3:.3g}"
        label = f"{row.case} {row.group}".strip()
        shown.add_row(
            label, row.what, f"{row.median * 1e3:.3g}", spread, "" if ratio is None else f"{ratio:.2f}", row.note
        )
    return shown


def ratio_of(row: Row, rows: Sequence[Row]) -> float | None:
    """The reference's median over this row's, within the group."""
    if row.reference is None:
        return None
    reference = next((r for r in rows if (r.case, r.group, r.what) == (row.case, row.group, row.reference)), None)
    return None if reference is None else reference.median / row.median


def as_json(result: dict[str, Any]) -> str:
    rows = [
        dataclasses.asdict(row) | {"median": row.median, "ratio": ratio_of(row, result["rows"])}
        for row in result["rows"]
    ]
    return json.dumps({**result, "rows": rows}, indent=1)


def _main() -> None:
    parser = argparse.ArgumentParser(
        description="Rows of one case as JSON; used by the runner for its child processes."
    )
    parser.add_argument("--child", required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data")
    given = parser.parse_args()
    case = next(case for case in _cases() if given.child == case.NAME)
    # Through the imported module, not through __main__: a case builds its rows with that class.
    print(json.dumps([dataclasses.asdict(row) for row in case.rows(given.quick, given.device, given.data)]))


if __name__ == "__main__":
    _main()
