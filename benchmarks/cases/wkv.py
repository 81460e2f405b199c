"""WKV of SpikeGPT, forward and forward + backward: the fused kernel against a plain torch loop and torch.compile of a 64-step chunk.

The floor is what the memory allows: one pass over as many tensors of the same size as the kernel reads and writes (forward: reads k
and v, writes y; backward: reads k, v and the gradient, writes two), in the same run. The compiled chunk is called once for every 64
steps, since compiling a whole sequence takes minutes. Longer sequences show that time and memory stay linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from spiking.benchmarks.run import Row, interleaved
from spiking.cuda_kernels import reference
from torch import Tensor

from spiking import functional as F

NAME = "wkv"
TITLE = "WKV (SpikeGPT's attention), forward and backward, against plain torch and torch.compile"
SIZES = ((1024, 4, 512), (4096, 1, 512), (65536, 1, 512))
QUICK = ((128, 2, 32),)
LOOP_STEPS = 1024  # more would be minutes of looping, and of compiling
COMPILED_CHUNK = 64
OURS, LOOP, COMPILED = "F.wkv", "torch loop", f"torch.compile, {COMPILED_CHUNK} steps a call"
FLOOR = "floor: memory"
Attention = Callable[..., Any]


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    check()
    chunk = None if quick else torch.compile(_chunk)
    for size in QUICK if quick else SIZES:
        group = "T={} B={} C={}".format(*size)
        inputs = [t.to(device).requires_grad_() for t in _inputs(*size)]
        grad = torch.randn(size, generator=torch.Generator().manual_seed(1)).to(device)
        ways: dict[str, Attention] = {OURS: F.wkv}
        if size[0] <= LOOP_STEPS:
            ways[LOOP] = _loop
            if chunk is not None:
                ways[COMPILED] = lambda *inputs: _in_chunks(chunk, *inputs)
        for what, calls in (
            ("forward", {name: _forward(way, inputs, device) for name, way in ways.items()}),
            ("forward + backward", {name: _both(way, inputs, grad, device) for name, way in ways.items()}),
        ):
            calls[FLOOR] = _floor(what, inputs[2].detach(), inputs[3].detach(), grad, device)
            fast = {name: call for name, call in calls.items() if name in (OURS, FLOOR)}
            seconds = interleaved(fast, 3 if quick else 7, 3, in_a_row=3)
            slow = {name: call for name, call in calls.items() if name not in fast}
            seconds |= interleaved(slow, 1 if quick else 2, 1)
            for name, times in seconds.items():
                per_element = f"{min(times) * 1e9 / grad.numel():.2f} ns an element"
                yield Row(NAME, name, times, OURS if name != OURS else FLOOR, f"{group} {what}", per_element)


def summary(rows: Sequence[Row]) -> list[str]:
    lines = []
    for group in dict.fromkeys(row.group for row in rows):
        times = {row.what: row.median for row in rows if row.group == group}
        against = [f"{times[FLOOR] / times[OURS]:.0%} of the memory's speed"]
        against += [f"{times[name] / times[OURS]:.1f}× as fast as {name}" for name in (LOOP, COMPILED) if name in times]
        lines.append(f"{group}: {times[OURS] * 1e3:.2f} ms, {', '.join(against)}")
    return lines


def check() -> None:
    """Outputs and gradients of all three ways agree."""
    inputs = [t.requires_grad_() for t in _inputs(70, 2, 24)]
    grad = torch.randn(70, 2, 24, generator=torch.Generator().manual_seed(1))
    for way in (_loop, lambda *given: _in_chunks(_chunk, *given)):
        ways: tuple[Attention, ...] = (way, F.wkv)
        expected, found = (torch.autograd.grad(f(*inputs)[0], inputs, grad) for f in ways)
        for a, b in zip(expected, found):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def _inputs(steps: int, batch: int, channels: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    k, v = (torch.randn(steps, batch, channels, generator=g) for _ in range(2))
    return [-torch.exp(torch.linspace(-5, 3, channels)), torch.full((channels,), -1.2), k, v]


def _rest(k: Tensor) -> Tensor:
    state = torch.zeros(3, *k.shape[1:], device=k.device)
    state[2] = reference.WKV_REST
    return state


def _loop(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return reference.wkv(w, u, k, v, _rest(k))


def _chunk(w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return reference.wkv(w, u, k, v, state)


def _in_chunks(chunk: Attention, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    state, outputs = _rest(k), []
    for k_part, v_part in zip(k.split(COMPILED_CHUNK), v.split(COMPILED_CHUNK)):
        y, state = chunk(w, u, k_part, v_part, state)
        outputs.append(y)
    return torch.cat(outputs), state


def _forward(way: Attention, inputs: Sequence[Tensor], device: str) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            way(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def _both(way: Attention, inputs: Sequence[Tensor], grad: Tensor, device: str) -> Callable[[], None]:
    def call() -> None:
        torch.autograd.grad(way(*inputs)[0], inputs, grad)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def _floor(what: str, k: Tensor, v: Tensor, grad: Tensor, device: str) -> Callable[[], None]:
    y, grad_k, grad_v = (torch.zeros_like(k) for _ in range(3))

    def call() -> None:
        torch.add(k, v, out=y)
        if what != "forward":
            torch.add(k, v, out=grad_k)
            grad_v.copy_(grad)
        if device == "cuda":
            torch.cuda.synchronize()

    return call
