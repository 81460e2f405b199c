"""LIF forward + backward over a whole sequence: ours (arena on and off, three ways to save) against every peer and torch.compile.

Each call runs forward and backward from input current to input gradient, several in a row as in a training loop. The floor is
what the arithmetic cannot beat: the kernel reads x, writes s and h, then reads h and the gradient and writes the input's gradient;
the floor makes the same three reads and three writes over five tensors of the same size, as plain copies into reused memory, timed
in the same run. The note of each row says what autograd keeps for the backward pass, beyond the input, per neuron and step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from spiking.benchmarks import peers
from spiking.benchmarks.run import Row, interleaved
from spiking.cuda_kernels import memory
from torch import Tensor

from spiking import functional as F
from spiking import surrogate

NAME = "lif"
TITLE = "LIF forward + backward, beta 0.9, soft reset, against peers"
ENVIRONMENTS = {
    "default": {},
    # What helps peers most on large tensors: glibc then keeps freed blocks instead of unmapping them.
    "tuned": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"},
}
SIZES = ((4, 1 << 20), (16, 1 << 18), (100, 1 << 14), (16, 1 << 21))
QUICK = ((4, 1 << 14), (16, 1 << 12))
BETA = 0.9
FLOOR = "floor: 3 copies"
OURS = "spiking"
COMPILED = "torch.compile"


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    check()
    allocator = "tuned" if "MALLOC_MMAP_MAX_" in os.environ else "default"
    for steps, neurons in QUICK if quick else SIZES:
        x = (
            torch.randn(steps, 1, neurons, generator=torch.Generator().manual_seed(0))
            .mul_(0.5)
            .add_(0.1)
            .to(device)
            .requires_grad_()
        )
        grad = torch.rand(steps, 1, neurons, generator=torch.Generator().manual_seed(1)).to(device)
        calls = {name: _call(run, x, grad, device) for name, run in {**_ours(), **_peers(quick)}.items()}
        calls[FLOOR] = _copies(x, grad, device)
        warm_up = {name: 3 if name.startswith((OURS, "floor")) else 10 for name in calls}
        seconds: dict[str, list[float]] = {}
        # Ours without the arena is timed apart: switching it empties the arena.
        together = {name: call for name, call in calls.items() if name != "spiking, arena off"}
        seconds.update(interleaved(together, 3 if quick else 5, warm_up, in_a_row=3))
        memory.limit(0)
        seconds.update(interleaved({"spiking, arena off": calls["spiking, arena off"]}, 5, 3, in_a_row=3))
        memory.limit(8 << 30)
        memory.release()
        kept = {name: kept_bytes(run, x) / x.numel() for name, run in {**_ours(), **_peers(quick)}.items()}
        for name, times in seconds.items():
            note = f"keeps {kept[name]:.2f} bytes" if name in kept else ""
            yield Row(NAME, name, times, OURS if name != OURS else FLOOR, f"T={steps} N={neurons} {allocator}", note)


def kept_bytes(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes that autograd keeps between forward and backward beyond the input itself; views of one block count once."""
    kept: dict[int, int] = {}
    held = []  # what is freed early would lend its address to the next

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        held.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run(x)
    return sum(n for address, n in kept.items() if address != x.untyped_storage().data_ptr())


def _call(run: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor, device: str) -> Callable[[], Any]:
    def call() -> None:
        torch.autograd.grad(run(x), x, grad)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def _copies(x: Tensor, grad: Tensor, device: str) -> Callable[[], None]:
    x = x.detach()
    s, h, grad_x = (torch.zeros_like(x) for _ in range(3))

    def call() -> None:
        s.copy_(x)
        h.copy_(grad)
        grad_x.copy_(h)
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def _ours() -> dict[str, Callable[[Tensor], Tensor]]:
    return {
        OURS: lambda x: F.lif(x, beta=BETA)[0],
        "spiking, half": lambda x: F.lif(x, beta=BETA, save="half")[0],
        "spiking, recompute": lambda x: F.lif(x, beta=BETA, save="recompute")[0],
        "spiking, arena off": lambda x: F.lif(x, beta=BETA)[0],
    }


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grads[0] / (1 + (math.pi * u) ** 2)


def _plain(x: Tensor) -> Tensor:
    v, spikes = torch.zeros_like(x[0]), []
    for x_t in x.unbind(0):
        h = BETA * v + x_t
        s = _Step.apply(h - 1)
        v = h - s
        spikes.append(s)
    return torch.stack(spikes)


def _peers(quick: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    found: dict[str, Callable[[Tensor], Tensor]] = {name: make(BETA) for name, make in peers.installed().items()}
    if not quick:
        found[COMPILED] = torch.compile(_plain, fullgraph=True)
    return found


def check() -> None:
    """Ours and the plain loop spike alike before anything is timed."""
    x = torch.randn(20, 1, 500, generator=torch.Generator().manual_seed(3))
    ours = F.lif(x, beta=BETA, surrogate=surrogate.ATan(2.0))[0]
    if not torch.equal(ours, _plain(x)):
        raise AssertionError("the contestants disagree")


def summary(rows: Sequence[Row]) -> list[str]:
    """The ratios that the case was built for, per allocator setting."""
    lines = []
    for allocator in ENVIRONMENTS:
        by_group: dict[str, dict[str, float]] = {}
        for row in rows:
            if row.group.endswith(allocator):
                by_group.setdefault(row.group, {})[row.what] = row.median
        against = {
            g: min((m[p] for p in peers.NEURONS if p in m), default=math.nan) / m[OURS] for g, m in by_group.items()
        }
        known = {g: r for g, r in against.items() if not math.isnan(r)}
        if known:
            mean = math.prod(known.values()) ** (1 / len(known))
            each = ", ".join(f"{g.rsplit(' ', 1)[0]}: {r:.1f}×" for g, r in known.items())
            lines.append(
                f"{allocator} allocator, against the fastest peer: geometric mean {mean:.1f}×, lowest {min(known.values()):.1f}× ({each})"
            )
        compiled = {g: m[COMPILED] / m[OURS] for g, m in by_group.items() if COMPILED in m}
        if compiled:
            lines.append(
                f"{allocator} allocator, against torch.compile: " + ", ".join(f"{r:.1f}×" for r in compiled.values())
            )
        floor = ", ".join(
            f"{g.rsplit(' ', 1)[0]}: {100 * m[FLOOR] / m[OURS]:.0f} %" for g, m in by_group.items() if FLOOR in m
        )
        lines.append(f"{allocator} allocator, share of the bandwidth floor reached: {floor}")
    notes = {row.what: row.note.removeprefix("keeps ") for row in rows if row.note and row.group == rows[0].group}
    kept = ", ".join(f"{name}: {note}" for name, note in notes.items() if "arena" not in name)
    lines.append(f"kept for the backward pass per neuron and step, beyond the input: {kept}")
    return lines
