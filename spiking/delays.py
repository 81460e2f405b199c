"""Synaptic delays that are learned: every connection has a weight, and a number of time steps that a spike takes on it.

While a layer trains, a spike arrives spread over the steps around its delay, as a Gaussian whose width shrinks, so that there is a
gradient to the delay; in evaluation every delay is a whole number of steps and a spike arrives at one of them.

Source: Hammouamri, Khalfaoui-Hassani, Masquelier 2024 (ICLR; arXiv 2306.17670), with the positions of Khalfaoui-Hassani, Pellegrini,
Masquelier 2023 (ICLR; arXiv 2112.03740).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as tf

from spiking.errors import SpikingError
from spiking.layer import Linear

__all__ = ["DelayedLinear"]

WIDEST, NARROWEST = 0.5, 0.5  # first width as a share of max_delay, last width in steps: those of the source


class DelayedLinear(Linear):
    """A weight and a learned delay from every input to every output.

        y[t, o] = b[o] + Σ_i w[o, i]·Σ_k g_k(d[o, i])·x[t - k, i],   k = 0 … max_delay
        in training     g_k(d) = exp(-(k - d)²/2σ²) / Σ_j exp(-(j - d)²/2σ²)
        in evaluation   g_k(d) = 1 where k is the whole number nearest d, else 0

    σ falls from max_delay/2 to 0.5 steps, by the same factor each time, over the first `anneal` calls in training, which
    `passes` counts. Delays start evenly spread over 0 … max_delay and are kept there where they are used. Nothing arrives before the
    first step; what would arrive after the last one is lost. Learn delays faster than weights: the source takes 100 times.

    Shapes: x [T, B, in_features] -> [T, B, out_features]. The state is the last max_delay inputs, [max_delay, B, in_features], so that a
    sequence may be continued.   Units: delays are in time steps.   Traces count a spike once for each of its weights, when it is sent.
    Errors: SpikingError for another number of axes or features, a max_delay or anneal below 0.
    Source: Hammouamri, Khalfaoui-Hassani, Masquelier 2024 (arXiv 2306.17670).

    >>> layer = DelayedLinear(1, 1, max_delay=4, bias=False).eval()
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(2.0), layer.delay.fill_(3.2)
    >>> layer(torch.tensor([1.0, 0, 0, 0, 0, 0]).reshape(6, 1, 1)).flatten().tolist()
    [0.0, 0.0, 0.0, 2.0, 0.0, 0.0]
    """

    passes: Tensor

    def __init__(self, in_features: int, out_features: int, max_delay: int, bias: bool = True, anneal: int = 0) -> None:
        super().__init__(in_features, out_features, bias=bias)
        for name, value in {"max_delay": max_delay, "anneal": anneal}.items():
            if value < 0 or int(value) != value:
                raise SpikingError(f"DelayedLinear.{name}: got {value}; expected a whole number, 0 or more.")
        self.max_delay, self.anneal = int(max_delay), int(anneal)
        self.delay = nn.Parameter(torch.empty_like(self.weight).uniform_(0, max_delay))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    @property
    def sigma(self) -> float:
        """Width in steps of the Gaussian that the next call in training takes."""
        widest = max(NARROWEST, WIDEST * self.max_delay)
        done = min(1.0, int(self.passes) / self.anneal) if self.anneal else 1.0
        return float(widest * (NARROWEST / widest) ** done)

    @property
    def steps(self) -> Tensor:
        """Delays as evaluation takes them, whole numbers of steps, int64 [out_features, in_features]."""
        return self.delay.detach().clamp(0, self.max_delay).round().long()

    def kernel(self) -> Tensor:
        """Weights by the steps after which they act, [max_delay + 1, out_features, in_features]."""
        if not self.training:
            return self.weight * tf.one_hot(self.steps, self.max_delay + 1).permute(2, 0, 1).to(self.weight.dtype)
        at = torch.arange(self.max_delay + 1, device=self.delay.device, dtype=self.delay.dtype)
        apart = (at[:, None, None] - self.delay.clamp(0, self.max_delay)) / self.sigma
        return self.weight * torch.softmax(-0.5 * apart * apart, 0)

    def forward(self, input: Tensor, state: Tensor | None = None, return_state: bool = False) -> Any:
        if input.dim() != 3 or input.shape[-1] != self.in_features:
            raise SpikingError(
                f"DelayedLinear: got input of shape {list(input.shape)}; expected [T, B, {self.in_features}]. "
                "For one time step call layer.step(x_t, state)."
            )
        x = input.to(self.weight.dtype)
        before = x.new_zeros(self.max_delay, *x.shape[1:]) if state is None else state
        x = torch.cat([before, x])
        y = _Delayed.apply(x, self.kernel())
        if self.training:
            self.passes.add_(1)
        if self.bias is not None:
            y = y + self.bias
        return (y, x[len(input) :]) if return_state else y

    def step(self, x_t: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One time step: x_t [B, in_features] and the state before (None: silence) -> [B, out_features] and the state after."""
        y, after = self(x_t.unsqueeze(0), state=state, return_state=True)
        return y.squeeze(0), after

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, max_delay={self.max_delay}, anneal={self.anneal}"


class _Delayed(torch.autograd.Function):
    """Σ_k x[t + K - 1 - k]·W_kᵀ for x [T + K - 1, B, in]: one product a delay, each on a part of x where it lies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel)
        k, steps = len(kernel), len(x) - len(kernel) + 1
        y = x.new_zeros(steps * x.shape[1], kernel.shape[1])
        for at, weight in enumerate(kernel):
            y.addmm_(x[k - 1 - at : k - 1 - at + steps].flatten(0, 1), weight.t())
        return y.unflatten(0, (steps, x.shape[1]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, kernel = ctx.saved_tensors
        k, steps = len(kernel), len(x) - len(kernel) + 1
        grad = grads[0].contiguous().flatten(0, 1)
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        grad_kernel = torch.empty_like(kernel) if ctx.needs_input_grad[1] else None
        for at, weight in enumerate(kernel):
            part = slice(k - 1 - at, k - 1 - at + steps)
            if grad_x is not None:
                grad_x[part].flatten(0, 1).addmm_(grad, weight)
            if grad_kernel is not None:
                torch.mm(grad.t(), x[part].flatten(0, 1), out=grad_kernel[at])
        return grad_x, grad_kernel
