"""Additions and matrix products of two tensors, seen while a model is recorded."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spiking._rows import Rows, counting_of


class Operations(TorchFunctionMode):
    """Sees additions and matrix products of two tensors outside of the watched layers, while a pass of the model runs."""

    _ADD = frozenset({torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__})
    _PRODUCT = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm})

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows
        self._open: list[
            bool
        ] = []  # for the model and each module inside that matters: whether operations in it are its own
        self._entered = False
        self.thread = threading.get_ident()  # the one that records: what runs in others is not of the recording

    def start(self, listens: bool) -> None:
        """A pass begins; with `listens`, the model's own operations are looked at."""
        self._open = [listens]
        self._switch()

    def stop(self) -> None:
        self._open.clear()
        self._switch()

    def step_in(self, listens: bool = False) -> None:
        """A module begins. What happens inside a watched layer is its own, and must not pay for being looked at."""
        self._open.append(listens)
        self._switch()

    def step_out(self) -> None:
        if self._open:
            self._open.pop()
        self._switch()

    def _switch(self) -> None:
        wanted = bool(self._open) and self._open[-1]
        if wanted and not self._entered:
            self._entered = True
            self.__enter__()
        elif self._entered and not wanted:
            self._entered = False
            self.__exit__(None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        adds, multiplies = func in self._ADD, func in self._PRODUCT
        seen = (adds or multiplies) and len(args) == 2 and not kwargs
        if not seen or not all(isinstance(x, Tensor) and not isinstance(x, nn.Parameter) for x in args):
            return func(*args, **kwargs)
        changed = func in (Tensor.add_, Tensor.__iadd__)
        a = args[0].detach().clone() if changed else args[0]
        if changed:
            self.rows.run.copied(args[0], a)
        y = func(*args)
        with counting_of(y):
            (self.rows.addition if adds else self.rows.product)(a, args[1], y)
        return y
