"""What a training run shows: bars with loss, accuracy and firing rates on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import IO, Any

__all__ = ["Display", "PlainDisplay", "RichDisplay", "open_display", "summary"]


class Display:
    """Shows nothing; the others do. A training run calls start, then step and epoch, message at any time, and close."""

    def start(self, epochs: int, steps: int, epoch: int) -> None:
        """A run of so many epochs of so many steps begins (or goes on) at an epoch."""

    def step(self, step: int, running: dict[str, Any]) -> None:
        """So many steps of the epoch are done; `running` holds loss, accuracy and rates so far, samples and seconds."""

    def epoch(self, record: dict[str, Any], epochs: int) -> None:
        """An epoch is complete."""

    def message(self, text: str) -> None:
        """A line for the reader."""

    def close(self) -> None:
        """The run is over, or was stopped."""


def summary(record: dict[str, Any], rates: bool = True) -> str:
    """Loss, accuracies and firing rates of an epoch, complete or not, on one line."""
    parts = [f"loss {record['loss']:.3f}"]
    if "accuracy" in record:
        parts.append(f"accuracy {100 * record['accuracy']:5.1f} %")
    elif "validation_loss" in record:
        parts.append(f"validation {record['validation_loss']:.3f}")
    if "validation_accuracy" in record:
        parts.append(f"validation {100 * record['validation_accuracy']:5.1f} %")
    if rates and record["rates"]:
        parts.append("rates " + " ".join(f"{name} {rate:.3f}" for name, rate in record["rates"].items()))
    return "  ".join(parts)


class PlainDisplay(Display):
    """One line an epoch. `summary(record, rates)` words its figures, those of unfinished epochs too."""

    def __init__(self, file: IO[str] | None = None, summary: Callable[..., str] = summary) -> None:
        self._file, self._summary = file or sys.stderr, summary

    def epoch(self, record: dict[str, Any], epochs: int) -> None:
        self.message(f"epoch {record['epoch'] + 1}/{epochs}  {self._summary(record)}  {record['seconds']:.1f} s")

    def message(self, text: str) -> None:
        print(text, file=self._file, flush=True)


class RichDisplay(Display):
    """Two bars: epochs, and the steps of this one."""

    def __init__(self, console: Any, summary: Callable[..., str] = summary) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._summary = summary
        self._progress = Progress(
            TextColumn("{task.description:<6}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
        )

    def start(self, epochs: int, steps: int, epoch: int) -> None:
        self._progress.start()
        self._epochs = self._progress.add_task("epochs", total=epochs, completed=epoch, figures="")
        self._steps = self._progress.add_task("steps", total=steps, figures="")

    def step(self, step: int, running: dict[str, Any]) -> None:
        self._progress.update(self._steps, completed=step, figures=self._summary(running))

    def epoch(self, record: dict[str, Any], epochs: int) -> None:
        self._progress.update(self._epochs, completed=record["epoch"] + 1, figures=self._summary(record, rates=False))
        self._progress.update(self._steps, completed=0)

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


def open_display(summary: Callable[..., str] = summary) -> Display:
    """Bars if standard error is a terminal, plain lines otherwise; `summary(record, rates)` words the figures."""
    from rich.console import Console

    console = Console(stderr=True)
    return RichDisplay(console, summary) if console.is_terminal else PlainDisplay(summary=summary)
