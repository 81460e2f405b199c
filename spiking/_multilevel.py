"""Neurons that send more than one bit: graded spikes, for networks of one time step."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from spiking import functional as F
from spiking.cuda_kernels import backend, graded_ops, reference
from spiking.cuda_kernels.ops import state_dtype
from spiking.cuda_kernels.reference import Rule
from spiking.errors import SpikingError
from spiking.neuron import LIFState, Neuron
from spiking.surrogate import Triangle

SURROGATE = Triangle(1.0, scale=0.3)
_LARGEST = 1024


class MultiLevelLIF(Neuron):
    """Leaky integrate-and-fire with graded spikes: how far the membrane is above the threshold decides what is sent.

        h[t] = beta·v[t-1] + x[t];   v[t] = h[t] - threshold·s[t]
        spacing="linear":  s = floor(h / threshold) within 0…levels
        spacing="octave":  s = 2^k where 2^k < h / threshold <= 2^(k+1), k < levels (no upper end for the last); else 0

    Octaves are one-hot lanes whose products are shifts (M-LIF); one octave is the binary neuron of IIR-SNN. A graded spike
    is several bits, and energy estimates price it so: its products are multiply-accumulates, not accumulates.
    `v_leak` is where the membrane starts; half a threshold makes "linear" round instead of cut off.

    Shapes: [T, B, *] -> [T, B, *].   Gradient: octaves 0.3·max(0, 1 - |z|) at both edges of a lane; linear straight through
    where nothing is clipped; the reset passes gradient to the threshold, not through the spike.
    Errors: SpikingError naming the argument.   Oracle: cuda_kernels/reference.py::graded.
    Source: Abillama et al. 2025 (One-hot M-LIF) for octaves; Yao et al. 2025 (arXiv 2411.16061) for integer spikes.

    >>> MultiLevelLIF(levels=4)(torch.tensor([0.5, 1.0, 3.7, 9.0]).reshape(1, 1, 4)).tolist()
    [[[0.0, 1.0, 3.0, 4.0]]]
    """

    state_type = LIFState
    beta: float | Tensor
    threshold: float | Tensor

    def __init__(
        self,
        levels: int = 8,
        spacing: Literal["linear", "octave"] = "linear",
        beta: float | Tensor = 1.0,
        threshold: float | Tensor = 1.0,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        v_leak: float = 0.0,
    ) -> None:
        super().__init__()
        most = _LARGEST if spacing == "linear" else 10
        if spacing not in ("linear", "octave"):
            raise SpikingError(f'MultiLevelLIF.spacing: got {spacing!r}; expected "linear" or "octave".')
        if not (isinstance(levels, int) and 1 <= levels <= most):
            raise SpikingError(f"MultiLevelLIF.levels: got {levels!r}; expected a whole number from 1 to {most}.")
        F.check_beta("MultiLevelLIF", "beta", beta)
        F.check_threshold("MultiLevelLIF", threshold)
        self.levels, self.spacing = levels, spacing
        self.rule = Rule(SURROGATE, tie="gt" if spacing == "octave" else "ge", detach_reset=True, v_leak=v_leak)
        self.save = "value"
        self._constant("beta", beta, learn_beta)
        self._constant("threshold", threshold, learn_threshold)

    def cells(self) -> dict[str, float | Tensor]:
        beta = self.beta.clamp(0, 1) if isinstance(self.beta, torch.nn.Parameter) else self.beta
        return {"beta": beta, "threshold": self.threshold}

    def forward(self, x: Tensor, state: Any = None, return_state: bool = False) -> Any:
        """Graded spikes [T, B, *] for input [T, B, *]; with `return_state` also the state after the last step."""
        rows = None if state is None else self._rows(state, x)
        F._check_input("MultiLevelLIF", x, rows, self.rule)
        params, inner, numbers = F._cells("MultiLevelLIF", x, **self.cells(), beta_syn=0.0)
        before = None if rows is None else rows[0].to(state_dtype(x.dtype))
        call = [graded_ops.SPACINGS.index(self.spacing), self.levels], [*numbers[:2], self.rule.v_leak]
        if not torch.compiler.is_compiling() and backend.choose(x.device).name == "reference":
            s, v = graded_ops.by_reference(x, before, params, inner, *call)
        else:
            learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, before, params))
            s, v, _ = graded_ops.graded(x, before, params, inner, *call, learns)
        return (s, LIFState(v)) if return_state else s

    def lanes(self, h: Tensor, threshold: Tensor) -> list[Tensor]:
        """Which octave a membrane is in, one tensor of 0 and 1 each."""
        return reference.lanes(h, threshold, self.levels)

    def extra_repr(self) -> str:
        return f"levels={self.levels}, spacing={self.spacing!r}, {super().extra_repr()}"
