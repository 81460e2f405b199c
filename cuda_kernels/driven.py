"""Who decides between dense and event-driven kernels: the cost model, or the caller."""

from __future__ import annotations

from contextvars import ContextVar, Token
from types import TracebackType
from typing import Literal, TypeAlias

from spiking.errors import SpikingError

__all__ = ["Mode", "event_driven", "mode"]

Mode: TypeAlias = Literal["auto", "always", "never"]

_mode: ContextVar[Mode] = ContextVar("spiking_event_driven", default="auto")


def mode() -> Mode:
    """The mode in force in this thread or task."""
    return _mode.get()


class event_driven:
    """Say how `Linear` and `Conv2d` decide: `"auto"` counts the spikes and takes what the cost model predicts to be quicker, `"always"`
    takes the event-driven kernels wherever they exist, `"never"` takes torch's dense ones.

    In force from the call on, or inside a `with` block only; for the calling thread (or asyncio task), others are not touched. No result
    depends on it beyond the order of float summation.

    Errors: SpikingError for another word.

    >>> with event_driven("never"):
    ...     mode()
    'never'
    >>> mode()
    'auto'
    """

    def __init__(self, mode: Mode) -> None:
        if mode not in ("auto", "always", "never"):
            raise SpikingError(f'event_driven: got {mode!r}; expected "auto", "always" or "never".')
        self._token: Token[Mode] | None = _mode.set(mode)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._token is not None:
            _mode.reset(self._token)
            self._token = None
