"""Stopping at a safe point: Ctrl-C and SIGTERM are noted, and the loop that asks decides when to obey."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

__all__ = ["Interrupted", "watch_signals"]


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after its state was saved to `checkpoint` (None without a run directory)."""

    def __init__(self, signum: int, checkpoint: Path | None) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.checkpoint = checkpoint


@contextmanager
def watch_signals() -> Iterator[Callable[[], int | None]]:
    """Inside, the first SIGINT or SIGTERM is only noted, and the given function tells of it; a second Ctrl-C interrupts.

    Outside the main thread, where Python allows no handlers, nothing is ever noted.

    >>> with watch_signals() as received:
    ...     signal.raise_signal(signal.SIGINT)
    ...     received() == signal.SIGINT
    True
    """
    noted: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(signum)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: noted[0] if noted else None
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
