"""How well a trained network does on many chips: accuracy over device instances, time since writing and temperature.

Trial k is the chip of seed (seed, k), whoever runs it: with `torchrun` the ranks share the trials out among them. Every finished
figure is a line in a file, so a study that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from spiking.hw_models import draws
from spiking.hw_models.calibration import calibrate_to, wanted_outputs
from spiking.hw_models.cellfile import load_cell
from spiking.hw_models.deploy import age, array_layers, deploy
from spiking.hw_models.devices import Cell, check_kelvin, check_time
from spiking.hw_models.effects import T_ROOM
from spiking.hw_models.placement import ArrayConfig
from torch import Tensor, nn

from spiking.checkpoint import write_atomically
from spiking.errors import SpikingError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("trained clean", "calibrated")
BAND = (5.0, 95.0)


class Band(NamedTuple):
    """Mean over chips, and the 5th and 95th percentile."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} % ({100 * self.low:.1f}–{100 * self.high:.1f})"


@dataclass
class MonteCarlo:
    """Accuracies of a study: `accuracy` [columns, trials, times, temperatures], NaN where a trial has not run.

    Columns: "trained clean", the network as it was trained; "calibrated", with the corrections of `calibrate` through the same
    chip, if calibration inputs were given. `clean`: accuracy without hardware, on the same `n` samples.
    """

    cell: str
    clean: float
    n: int
    times: tuple[float, ...]
    temperatures: tuple[float, ...]
    columns: tuple[str, ...]
    accuracy: np.ndarray
    setting: dict[str, Any] = field(default_factory=dict)

    @property
    def trials(self) -> int:
        return self.accuracy.shape[1]

    def band(self, column: str = COLUMNS[0], time: int = 0, temperature: int = 0) -> Band:
        """Mean and 5–95 % band over the chips, at a time and a temperature by their index."""
        values = self.accuracy[self.columns.index(column), :, time, temperature]
        return Band(float(values.mean()), *(float(v) for v in np.percentile(values, BAND)))

    def loss(self, column: str = COLUMNS[0], time: int = 0, temperature: int = 0) -> tuple[float, float, float]:
        """Accuracy lost to the hardware, clean minus mean, with its 95 % interval over the chips: (loss, low, high)."""
        lost = self.clean - self.accuracy[self.columns.index(column), :, time, temperature]
        half = 1.96 * float(lost.std(ddof=1)) / math.sqrt(len(lost)) if len(lost) > 1 else math.inf
        return float(lost.mean()), float(lost.mean()) - half, float(lost.mean()) + half

    def rows(self) -> Iterator[dict[str, Any]]:
        """One flat record for each time, temperature and column, in JSON's types."""
        for i, t in enumerate(self.times):
            for j, kelvin in enumerate(self.temperatures):
                for column in self.columns:
                    band, loss = self.band(column, i, j), self.loss(column, i, j)
                    yield {"cell": self.cell, "time": t, "kelvin": kelvin, "column": column, **band._asdict(),
                           "loss": loss[0], "loss_low": loss[1] if self.trials > 1 else None,
                           "loss_high": loss[2] if self.trials > 1 else None, "trials": self.trials}  # fmt: skip

    def table(self) -> Any:
        """A rich table: a row for each time and temperature, a column for each way of training."""
        from rich.table import Table

        shown = Table(
            title=f"{self.cell}: {self.trials} chips, {self.n} samples, clean {100 * self.clean:.1f} %", box=None
        )
        for name in ("time", "kelvin", *(f"{c}: mean (5–95 %)" for c in self.columns)):
            shown.add_column(name, justify="right")
        for i, t in enumerate(self.times):
            for j, kelvin in enumerate(self.temperatures):
                shown.add_row(duration(t), f"{kelvin:g}", *(str(self.band(column, i, j)) for column in self.columns))
        return shown

    def plot(self, ax: Axes | None = None, temperature: int = 0) -> Axes:
        """Accuracy over time since writing, with the 5–95 % band over the chips; the clean accuracy as a dashed line."""
        from spiking import plot

        series = {column: 100 * self.accuracy[k, :, :, temperature] for k, column in enumerate(self.columns)}
        ax = plot.bands(self.times, series, ax, log=True, reference=100 * self.clean)
        ax.set(
            xlabel="seconds since writing",
            ylabel="accuracy (%)",
            title=f"{self.cell}, {self.temperatures[temperature]:g} K",
        )
        return ax


def duration(seconds: float) -> str:
    """A time in the unit in which people say it.

    >>> duration(0), duration(90), duration(7200), duration(2_592_000), duration(31_557_600)
    ('0 s', '1.5 min', '2 h', '30 d', '1 a')
    """
    for unit, size in (("a", 31_557_600.0), ("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def monte_carlo(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]],
    preset: str | PathLike[str] | Cell,
    trials: int = 20,
    times: Sequence[float] = (0.0,),
    temperatures: Sequence[float] = (T_ROOM,),
    *,
    config: ArrayConfig | None = None,
    calibration: Tensor | None = None,
    compensation: str | None = None,
    scores: Callable[[nn.Module, Tensor], Tensor] | None = None,
    seed: int = 0,
    digital: Sequence[str] = (),
    out: str | PathLike[str] | None = None,
    progress: bool = True,
) -> MonteCarlo:
    """Accuracy of a trained network on `trials` chips, at every time since writing and every temperature.

    `data`: batches (x [T, B, …], labels [B]). `scores(model, x)` gives [B, classes]; without it the model's own `scores`, or the mean of
    its output over time. With `calibration` inputs each chip is also corrected by `calibrate`, and the result has a column for either.
    `out`: a folder that keeps every finished figure; a second call with the same arguments goes on, and may ask for more trials.
    Under `torchrun` trial k runs on rank k mod n; every rank returns the whole result.

    Units: times in seconds since writing, temperatures in kelvin.
    Errors: SpikingError for no trials or samples, a negative time, a folder that holds another study; those of `deploy`.

    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> x = torch.rand(50, 4)
    >>> study = monte_carlo(net, [(x, net(x).argmax(1))], "rram-40nm", trials=3, times=(0.0, 3600.0), progress=False)
    >>> study.accuracy.shape, study.clean
    ((1, 3, 2, 1), 1.0)
    """
    cell, batches = load_cell(preset), [(x, labels) for x, labels in data]
    n = sum(len(labels) for _, labels in batches)
    if not isinstance(trials, int) or trials < 1 or not times or not temperatures or not n:
        raise SpikingError(
            f"monte_carlo: got {trials} trials, {len(times)} times, {len(temperatures)} temperatures and {n} samples; "
            "expected a whole number of each, 1 or more."
        )
    for t in times:
        check_time("monte_carlo: times", t)
    for kelvin in temperatures:
        check_kelvin("monte_carlo: temperatures", kelvin)
    model = model.eval()
    judge = scores or _scores
    columns = COLUMNS[: 1 if calibration is None else 2]
    setting = _setting(model, batches, cell, config, calibration, compensation, seed, digital)
    rank, world = _rank()
    store = _Store(None if out is None else Path(out), setting, rank)
    chips = [
        k for k in range(rank, trials, world) if not all((k, t, T) in store.done for t in times for T in temperatures)
    ]
    wanted: dict[str, list[Tensor]] = {}
    with _progress(progress and rank == 0, len(chips) * len(times) * len(temperatures)) as advance:
        for k in chips:
            chip = deploy(
                model, cell, config, seed=draws.seed_of(seed, f"trial/{k}"), calibration=calibration, digital=digital
            )
            for t in times:
                for kelvin in temperatures:
                    if (k, t, kelvin) in store.done:
                        continue
                    age(chip, t, kelvin, compensation)
                    for _, layer in array_layers(chip):  # a figure does not depend on what was read before it
                        layer.array.restart_reads(f"{t}/{kelvin}")
                    found = [_accuracy(chip, batches, judge)]
                    if calibration is not None:
                        wanted = wanted or wanted_outputs(chip, model, calibration)
                        calibrate_to(chip, wanted, calibration)
                        found.append(_accuracy(chip, batches, judge))
                    store.add(k, t, kelvin, found)
                    advance(f"chip {k + 1}/{trials} after {duration(t)} at {kelvin:g} K: " + _line(columns, found))
    done = _gathered(store.done, world)
    accuracy = np.full((len(columns), trials, len(times), len(temperatures)), np.nan)
    for k in range(trials):
        for i, t in enumerate(times):
            for j, kelvin in enumerate(temperatures):
                accuracy[:, k, i, j] = done[k, t, kelvin]
    return MonteCarlo(
        cell.name, _accuracy(model, batches, judge), n, tuple(times), tuple(temperatures), columns, accuracy, setting
    )


def _scores(model: nn.Module, x: Tensor) -> Tensor:
    own: Any = getattr(model, "scores", None)
    if callable(own):
        return own(x)
    y = model(x)
    return y.float().mean(0) if y.dim() == 3 else y


@torch.no_grad()
def _accuracy(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], judge: Callable[[nn.Module, Tensor], Tensor]
) -> float:
    right = 0
    for x, labels in batches:
        scores = judge(model, x)
        if scores.dim() != 2 or len(scores) != len(labels):
            raise SpikingError(
                f"monte_carlo: got scores {list(scores.shape)} for {len(labels)} labels and inputs {list(x.shape)}; expected "
                "scores [B, classes], one row a label. Give scores=, where the model's outputs are others."
            )
        right += int((scores.argmax(1) == labels).sum())
    return right / sum(len(labels) for _, labels in batches)


def _line(columns: Sequence[str], found: Sequence[float]) -> str:
    return ", ".join(f"{column} {100 * value:.1f} %" for column, value in zip(columns, found))


# What was found, on disk


def _setting(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    cell: Cell,
    config: ArrayConfig | None,
    calibration: Tensor | None,
    compensation: str | None,
    seed: int,
    digital: Sequence[str],
) -> dict[str, Any]:
    """What a figure depends on, beside trial, time and temperature: all of it JSON."""
    import hashlib

    from spiking._recorder import model_hash

    def digest(*tensors: Tensor) -> str:
        total = hashlib.sha256()
        for tensor in tensors:
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return total.hexdigest()[:16]

    return {
        "model": model_hash(model)[:16],
        "data": digest(*(v for pair in batches for v in pair)),
        "cell": cell.name,
        "effects": hashlib.sha256(repr(cell).encode()).hexdigest()[:16],
        "config": repr(config or ArrayConfig()),
        "calibration": None if calibration is None else digest(calibration),
        "compensation": compensation,
        "seed": seed,
        "digital": list(digital),
    }


class _Store:
    """Finished figures by (trial, time, kelvin), and the folder that keeps them: a line each, in a file of this rank's own."""

    def __init__(self, folder: Path | None, setting: dict[str, Any], rank: int) -> None:
        self.done: dict[tuple[int, float, float], list[float]] = {}
        self._path = None if folder is None else folder / f"trials-{rank}.jsonl"
        if folder is None:
            return
        stated = folder / "setting.json"
        if stated.exists():
            self._compare(stated, setting)
        elif rank == 0:
            write_atomically(stated, (json.dumps(setting, indent=2) + "\n").encode())
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("trials-*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    self.done[row["trial"], row["time"], row["kelvin"]] = row["accuracy"]
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue  # a line that was being written when the run was stopped; its figure is found again
        text = self._path.read_text(encoding="utf-8") if self._path is not None and self._path.exists() else ""
        if text and not text.endswith("\n"):
            self._write("\n")

    def _compare(self, path: Path, setting: dict[str, Any]) -> None:
        try:
            started = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as err:
            raise SpikingError(f"{path}: not the setting of a study: {err}. Name another folder.") from err
        for name, value in setting.items():
            if started.get(name) != value:
                raise SpikingError(
                    f"{path}: the study was started with {name}={started.get(name)!r}; got {value!r}. "
                    "Go on with the same, or name another folder."
                )

    def add(self, trial: int, t: float, kelvin: float, accuracy: list[float]) -> None:
        self.done[trial, t, kelvin] = accuracy
        self._write(json.dumps({"trial": trial, "time": t, "kelvin": kelvin, "accuracy": accuracy}) + "\n")

    def _write(self, text: str) -> None:
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(text)


# Ranks, progress


def _rank() -> tuple[int, int]:
    """Rank and number of ranks; starts the process group where torchrun launched this process."""
    from torch import distributed

    if not distributed.is_available():
        return 0, 1
    if not distributed.is_initialized():
        if not distributed.is_torchelastic_launched():
            return 0, 1
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
    return distributed.get_rank(), distributed.get_world_size()


def _gathered(
    done: dict[tuple[int, float, float], list[float]], world: int
) -> dict[tuple[int, float, float], list[float]]:
    if world == 1:
        return done
    from torch import distributed

    parts: list[Any] = [None] * world
    distributed.all_gather_object(parts, done)
    return {key: value for part in parts for key, value in part.items()}


@contextmanager
def _progress(wanted: bool, total: int) -> Iterator[Callable[[str], None]]:
    """A bar if standard error is a terminal, a line for each figure in a log."""
    if not wanted or not total:
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: print(text, file=sys.stderr, flush=True)
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("chips", total=total)

        def advance(text: str) -> None:
            bar.update(task, advance=1, description=text)

        yield advance


__all__ = ["Band", "MonteCarlo", "duration", "monte_carlo"]
