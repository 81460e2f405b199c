"""Additions and matrix products of two tensors, seen while a model is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from spiking._rows import Rows


class Operations(TorchFunctionMode):
    """Sees additions and matrix products of two tensors outside of the watched layers, while a pass of the model runs."""

    _ADD = frozenset({torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__})
    _PRODUCT = frozenset({torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm})

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows
        self.inside = 0
        self.running = self.entered = False

    def start(self) -> None:
        self.stop()
        self.inside, self.running = 0, True
        self._enter()

    def stop(self) -> None:
        self.running = False
        self._leave()

    def _enter(self) -> None:
        if self.running and not self.entered:
            self.entered = True
            self.__enter__()

    def _leave(self) -> None:
        if self.entered:
            self.entered = False
            self.__exit__(None, None, None)

    def step_in(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.inside += 1
        self._leave()  # what happens inside a watched layer is its own, and must not pay for being looked at

    def step_out(self) -> None:
        self.inside -= 1
        if not self.inside:
            self._enter()

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
        with torch.no_grad(), torch.autocast(y.device.type, enabled=False):
            (self.rows.addition if adds else self.rows.product)(a, args[1], y)
        return y
