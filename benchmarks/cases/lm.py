"""A training step of SpikeGPT's tiny preset, with the kernels and as plain torch loops; the memory of a step of the 216-million preset.

Loops are the reference formulation of neurons and WKV, in a process of their own; products, norms and optimiser are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from spiking.benchmarks.run import Row, interleaved, memory
from spiking.cuda_kernels import backend

from spiking.models.spikegpt import SpikeGPT, SpikeGPTConfig, language_loss

NAME = "lm"
TITLE = "training steps of SpikeGPT: kernels against plain torch loops, and the memory of the largest preset"
ENVIRONMENTS = {"kernels": {"SPIKING_BACKEND": "auto"}, "loops": {"SPIKING_BACKEND": "reference"}}
BATCH, STEPS = 16, 128
LOOPS, TINY, LARGE = "torch loops", "tiny", "216m"


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    name = backend.choose(torch.device(device)).name
    name = LOOPS if name == "reference" else name
    batch, steps = (2, 16) if quick else (BATCH, STEPS)
    times = interleaved({name: _step("tiny", batch, steps, device)}, 3 if quick else 10)[name]
    speed = f"{batch * steps / min(times):,.0f} tokens/s"
    yield Row(NAME, name, times, None if name == LOOPS else LOOPS, f"{TINY}, {batch} × {steps} tokens", speed)
    if name != LOOPS and not quick:
        step = _step("216m", 1, 1024, device, optimise=False)
        memory("VmHWM", reset=True)
        times = interleaved({name: step}, 1, warm_up=0)[name]
        yield Row(
            NAME, name, times, group=f"{LARGE}, 1 × 1024 tokens", note=f"{memory('VmHWM') / 1024:.1f} GB at the peak"
        )


def _step(preset: str, batch: int, steps: int, device: str, optimise: bool = True) -> Callable[[], None]:
    torch.manual_seed(0)
    lm = SpikeGPT(SpikeGPTConfig.preset(preset)).to(device).train()
    tokens = torch.randint(lm.config.vocab_size, (batch, steps + 1), device=device)
    optimiser = torch.optim.AdamW(lm.parameters(), lr=1e-4, fused=True) if optimise else None

    def step() -> None:
        loss = language_loss(lm(tokens[:, :-1])[0], tokens[:, 1:])
        lm.zero_grad()
        loss.backward()
        if optimiser is not None:
            optimiser.step()
        loss.item()

    return step


def summary(rows: Sequence[Row]) -> list[str]:
    lines = []
    ours = next(row for row in rows if row.what != LOOPS and row.group.startswith(TINY))
    loops = next(row for row in rows if row.what == LOOPS)
    lines.append(
        f"{ours.group}: {1e3 * ours.median:.0f} ms, {loops.median / ours.median:.1f}× as fast as plain torch loops"
    )
    lines += [f"{row.group}, forward and backward: {row.note}" for row in rows if row.group.startswith(LARGE)]
    return lines
