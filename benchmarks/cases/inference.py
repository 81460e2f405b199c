"""Inference latency of the network that ships with the package, on recordings: dense torch and peers against ours, plain and compiled.

Every contestant has the same weights and the same readout, a membrane that adds up the output currents. Step by step, each call gets one
frame of one recording and the state that the call before gave back; its rows show the median and the 95th percentile over all steps of all
recordings. The recordings decide the density of the spikes, which is measured and printed.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from spiking.benchmarks import peers
from spiking.benchmarks.run import Row, interleaved
from torch import Tensor, nn

from spiking import LIF, AvgPool2d, BatchNorm2d, Conv2d, Flatten, Linear, SpikingError, compile_events
from spiking.engine import EventNetwork, early_exit_cost
from spiking.models.nmnist import EventBatches, NMNISTNet, Recipe
from spiking.models.nmnist.run import open_recordings

NAME = "inference"
TITLE = "inference latency of the shipped N-MNIST network, batch 1 and 32, against dense torch and peers"
DENSE, FOLDED, PLAIN, OURS = "dense torch", "dense torch, norms folded", "spiking, plain", "spiking, compiled"
STEPS, ONE, MANY = "batch 1, step by step", "batch 1, whole sequence", "batch 32, whole sequence"
EVENTS, EXITS = "batch 1, recording to scores", "batch 1, early exit"
PEERS = ("snntorch", "spikingjelly", "norse")
BATCH = 32
STEP_US = 52_500  # the width of the frames that the network was trained on


class TorchLIF(nn.Module):
    """The neuron as one writes it in torch."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def advance(self, x_t: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = x_t if v is None else self.beta * v + x_t
        s = (h >= 1.0).to(h.dtype)
        return s, h - s

    def forward(self, x: Tensor) -> Tensor:
        v, spikes = None, []
        for x_t in x.unbind(0):
            s, v = self.advance(x_t, v)
            spikes.append(s)
        return torch.stack(spikes)


class Network:
    """The shipped network made of torch's layers and somebody's neurons."""

    def __init__(self, net: NMNISTNet, make: Callable[[float], nn.Module], fold: bool = False) -> None:
        self.beta = net.config.output_beta
        self.layers: list[Any] = []
        for layer in net.body.children():
            new = make(float(layer.cells()["beta"])) if isinstance(layer, LIF) else _torch_layer(layer)
            if fold and isinstance(new, nn.BatchNorm2d):
                new = torch.nn.utils.fusion.fuse_conv_bn_eval(self.layers.pop(), new)
            self.layers.append(new.eval())

    def scores(self, x: Tensor) -> Tensor:
        steps, batch = x.shape[:2]
        x = x.flatten(0, 1)
        for layer in self.layers:
            neuron = hasattr(layer, "advance")
            x = layer(x.unflatten(0, (steps, batch))).flatten(0, 1) if neuron else layer(x)
        v = total = torch.zeros_like(x[:batch])
        for current in x.unflatten(0, (steps, batch)):
            v = self.beta * v + current
            total = total + v
        return total / steps

    def step(self, x: Tensor, state: list[Any] | None) -> tuple[Tensor, list[Any]]:
        """One frame [B, 2, 34, 34] -> the readout's membrane and the state."""
        after: list[Any] = []
        before = [None] * (len(self.layers) + 1) if state is None else state
        for layer, own in zip(self.layers, before):
            new = None
            if hasattr(layer, "advance"):
                x, new = layer.advance(x, own)
            else:
                x = layer(x)
            after.append(new)
        v = x if before[-1] is None else self.beta * before[-1] + x
        return v, [*after, v]


def _torch_layer(layer: Any) -> nn.Module:
    """torch's own layer with the same weights."""
    made: nn.Module
    if isinstance(layer, Conv2d):
        size = (layer.in_channels, layer.out_channels, layer.kernel_size)
        made = nn.Conv2d(*size, layer.stride, layer.padding, bias=layer.bias is not None)  # type: ignore[arg-type]
    elif isinstance(layer, BatchNorm2d):
        made = nn.BatchNorm2d(layer.num_features, eps=layer.eps)
    elif isinstance(layer, Linear):
        made = nn.Linear(layer.in_features, layer.out_features)
    elif isinstance(layer, AvgPool2d):
        made = nn.AvgPool2d(layer.kernel_size, layer.stride)
    elif isinstance(layer, Flatten):
        made = nn.Flatten()
    else:
        raise SpikingError(f"inference: got a layer {type(layer).__name__}; expected those of the shipped network.")
    made.load_state_dict(layer.state_dict())
    return made.eval()


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    if device != "cpu":
        raise SpikingError(f"inference: got --device {device}; expected cpu. Compiled networks run there only.")
    recordings = open_recordings(Recipe(data=data or ""))
    batches = EventBatches(recordings.test, threads=torch.get_num_threads())
    net = NMNISTNet.pretrained().eval()
    n = min(BATCH if quick else 10 * BATCH, len(batches) // BATCH * BATCH)
    x, labels = batches.batch(np.arange(n), None)
    source = "simulated" if recordings.simulated else "real"
    with torch.inference_mode():
        ours = compile_events(net, x)
        theirs = {DENSE: Network(net, TorchLIF), FOLDED: Network(net, TorchLIF, fold=True)}
        for name in peers.installed(*PEERS):
            make: Callable[..., nn.Module] = peers.NEURONS[name]
            theirs[name] = Network(net, functools.partial(make, reset_delay=False) if name == "snntorch" else make)
        notes = check(net, ours, theirs, x)
        notes[OURS] += f"; {densities(net, x)}; {n} {source} recordings"
        stepped: dict[str, Callable[[Tensor, Any], tuple[Any, Any]]] = {name: one.step for name, one in theirs.items()}
        stepped |= {PLAIN: net.step, OURS: ours.step}
        for name, seconds in step_by_step(stepped, x[:, : 8 if quick else 40]).items():
            p95 = f"p95 {np.quantile(seconds, 0.95) * 1e6:.0f} µs"
            yield _row(name, seconds, STEPS, f"{p95}; {notes[name]}")
        whole: dict[str, Callable[[Tensor], Tensor]] = {name: one.scores for name, one in theirs.items()}
        whole |= {PLAIN: net.scores, OURS: ours.scores}
        for group, batch, rounds in ((ONE, 1, 5 if quick else 40), (MANY, BATCH, 3 if quick else 15)):
            parts = iter([part.contiguous() for part in x.split(batch, dim=1)] * 1000)
            given = {"x": next(parts)}
            calls = {name: functools.partial(_call, run, given) for name, run in whole.items()}
            seconds_of: dict[str, list[float]] = {name: [] for name in calls}
            for k in range(rounds):
                given["x"] = next(parts)
                for name, times in interleaved(calls, 1, warm_up=3 if k == 0 else 1).items():
                    seconds_of[name] += times
            for name, seconds in seconds_of.items():
                yield _row(name, seconds, group, f"p95 {np.quantile(seconds, 0.95) * 1e6:.0f} µs")
        yield from _events(net, ours, recordings.test, 10 if quick else 60)
        yield from _early_exits(ours, x, labels, quick)


def _row(name: str, seconds: Sequence[float], group: str, note: str) -> Row:
    return Row(NAME, name, list(seconds), None if name == DENSE else DENSE, group, note)


def _call(run: Callable[[Tensor], Tensor], given: dict[str, Tensor]) -> Tensor:
    return run(given["x"])


def step_by_step(contestants: dict[str, Callable[[Tensor, Any], tuple[Any, Any]]], x: Tensor) -> dict[str, list[float]]:
    """Seconds of every step: recording after recording, each contestant on all steps of one before the next has its turn."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for k in range(-2, x.shape[1]):  # the first two warm up
        frames = [frame[max(k, 0)].unsqueeze(0).contiguous() for frame in x]
        for name, step in contestants.items():
            state: Any = None
            for frame in frames:
                start = time.perf_counter()
                _, state = step(frame, state)
                if k >= 0:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def check(net: NMNISTNet, ours: EventNetwork, theirs: dict[str, Network], x: Tensor) -> dict[str, str]:
    """Predictions of all contestants, before anything is timed -> what to say of each. Ours have to be dense torch's."""
    found = {name: one.scores(x).argmax(1) for name, one in theirs.items()}
    found |= {PLAIN: net.scores(x).argmax(1), OURS: ours.scores(x).argmax(1)}
    n = x.shape[1]
    agree = {name: int((classes == found[DENSE]).sum()) for name, classes in found.items()}
    if agree[PLAIN] != n or agree[OURS] != n:
        raise AssertionError(f"the contestants disagree: {agree} of {n} predictions are dense torch's")
    dense, compiled, v = None, None, torch.empty(0)
    for frame in x[:, :BATCH]:
        v, dense = theirs[DENSE].step(frame, dense)
        _, compiled = ours.step(frame, compiled)
    assert compiled is not None
    if not torch.allclose(v, compiled[1].v, atol=1e-3):
        raise AssertionError("the last membranes of dense torch and of the compiled network differ")
    return {name: f"{count} of {n} predictions as dense torch" for name, count in agree.items()}


def densities(net: NMNISTNet, x: Tensor) -> str:
    """Share of non-zero values in the input and in each neuron layer's output."""
    shares = [float((x != 0).float().mean())]
    for layer in net.body.children():
        x = layer(x)
        if isinstance(layer, LIF):
            shares.append(float(x.mean()))
    return "density " + " / ".join(f"{100 * share:.1f}" for share in shares) + " %"


def _events(net: NMNISTNet, ours: EventNetwork, events: Any, n: int) -> Iterable[Row]:
    """From the events of one recording to scores: framed and run, or run as events. The camera's motion is left in, for all alike."""
    chosen = [events[k] for k in range(min(n, len(events)))]
    seconds: dict[str, list[float]] = {DENSE: [], OURS: [], "spiking, run_events": []}
    dense = Network(net, TorchLIF)
    for k, recording in enumerate([*chosen[:2], *chosen]):
        held = {"events": recording}

        def framed(scores: Callable[[Tensor], Tensor], held: dict[str, Any] = held) -> Tensor:
            e = held["events"]
            steps = int(e.t[-1]) // STEP_US + 1
            frames = torch.zeros(steps, 2, 34, 34)
            frames[torch.from_numpy(e.t // STEP_US), torch.from_numpy(e.p.astype(np.int64)),
                   torch.from_numpy(e.y.astype(np.int64)), torch.from_numpy(e.x.astype(np.int64))] = 1  # fmt: skip
            return scores(frames.unsqueeze(1))

        def raw(held: dict[str, Any] = held) -> Tensor:
            _, membrane = ours.run_events(held["events"], STEP_US * 1e-6, start=0, clip=True, return_membrane=True)
            return membrane.mean(0)

        calls: dict[str, Callable[[], Tensor]] = {
            DENSE: functools.partial(framed, dense.scores),
            OURS: functools.partial(framed, ours.scores),
            "spiking, run_events": raw,
        }
        results = {}
        for name, call in calls.items():
            start = time.perf_counter()
            results[name] = call()
            if k >= 2:
                seconds[name].append(time.perf_counter() - start)
        if not torch.allclose(results[OURS], results["spiking, run_events"], atol=1e-3):
            raise AssertionError("frames and events of one recording give different scores")
    for name, times in seconds.items():
        yield _row(name, times, EVENTS, f"p95 {np.quantile(times, 0.95) * 1e6:.0f} µs")


def _early_exits(ours: EventNetwork, x: Tensor, labels: Tensor, quick: bool) -> Iterable[Row]:
    margins = (0.1, 0.5) if quick else (0.1, 0.3, 0.5, 1.0, 2.0)
    costs = early_exit_cost(ours, [(x, labels)], margins)
    one = copy.copy(x[:, :1]).contiguous()
    calls: dict[str, Callable[[], Any]] = {OURS: lambda: ours.scores(one)}
    calls |= {f"margin {m:g}": functools.partial(ours.early_exit, one, m) for m in margins}
    notes = {
        f"margin {c.margin:g}": f"accuracy {100 * c.accuracy:.1f} %, {100 * c.steps:.0f} % of the steps" for c in costs
    }
    notes[OURS] = f"accuracy {100 * costs[0].full_accuracy:.1f} %"
    for name, seconds in interleaved(calls, 5 if quick else 50).items():
        yield Row(NAME, name, seconds, None if name == OURS else OURS, EXITS, notes[name])


def summary(rows: Sequence[Row]) -> list[str]:
    """How many times as fast the compiled network is as dense torch and as the fastest peer, in each way to run it."""
    lines = []
    for group in (STEPS, ONE, MANY):
        seconds = {row.what: row.median for row in rows if row.group == group}
        fastest = min((name for name in PEERS if name in seconds), key=seconds.__getitem__, default=None)
        line = (
            f"{group}: {seconds[OURS] * 1e6:.0f} µs, {seconds[DENSE] / seconds[OURS]:.1f}× dense torch, "
            f"{seconds[FOLDED] / seconds[OURS]:.1f}× that with norms folded"
        )
        if fastest:
            line += f", {seconds[fastest] / seconds[OURS]:.1f}× the fastest peer ({fastest})"
        lines.append(line)
    return lines
