"""One liquid state machine over whole recordings: the fused kernel against the same reservoir in four other libraries and in Brian2.

Every contestant gets the same weights and the same events. The torch libraries multiply the input of all steps at once and loop over
time, as their documentation does; their recurrent product is dense, or torch's sparse one where the weights are sparse. Brian2 has
its own event-driven synapses (compiled) and no batch, so that it runs where the batch is 1; neither building its network nor preparing
a run is timed: its seconds are those of LONGER times the events in one run, less those of the events once, over LONGER - 1.
`check` compares all spikes in float64. In float32 a spike may move where a membrane comes within rounding of the threshold, and what
follows moves with it: how many do is each row's note. Peers: pip install spiking[peers] brian2.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from spiking.benchmarks.run import Row, interleaved
from spiking.cuda_kernels import reference
from torch import Tensor
from torch.nn import functional as tf

from spiking.models.lsm import LiquidStateMachine, Weights

NAME = "lsm"
TITLE = "a liquid state machine against snnTorch, SpikingJelly, Norse, a torch loop and Brian2"
OURS, LOOP, BRIAN = "spiking", "torch loop", "brian2"
BETA, THRESHOLD, INPUTS = 0.9, 5.0, 256
DENSITY = 0.05  # of the input
LONGER = 11
SPARSE = 0.01  # recurrent connections of a sparse reservoir, of all


class Size(NamedTuple):
    """Steps, recordings at once, neurons, and the share of recurrent connections that there are."""

    steps: int
    batch: int
    neurons: int
    share: float

    def __str__(self) -> str:
        kind = "dense" if self.share == 1 else f"{100 * self.share:g} % recurrent"
        return f"N={self.neurons} {kind}, batch {self.batch}, T={self.steps}"


SIZES = (
    Size(50, 128, 200, 1.0),
    Size(50, 1, 200, 1.0),
    Size(50, 1, 1000, 1.0),
    Size(50, 1, 2000, 1.0),
    Size(50, 16, 2000, SPARSE),
    Size(50, 1, 10000, SPARSE),
    Size(50, 16, 10000, SPARSE),
)
QUICK = (Size(10, 2, 50, 1.0), Size(10, 1, 60, 0.1))
Run = Callable[[Tensor], Tensor]  # x [T, B, I] -> spikes [T, B, N]


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    check()
    with torch.no_grad():
        for size in QUICK if quick else SIZES:
            x, weights = _events(size).to(device), _weights(size, torch.float32)
            weights = Weights(weights.w_in.to(device), None if weights.w_rec is None else weights.w_rec.to(device))
            calls = _contestants(size, weights)
            expected = calls[OURS](x)
            notes = {
                name: f"{float((call(x) != expected).float().mean()):.1e} of spikes differ"
                for name, call in calls.items()
            }
            notes[OURS] = f"{float(expected.mean()):.3f} spikes per neuron and step"
            runs = {name: _timed(call, x) for name, call in calls.items() if name != BRIAN}
            seconds = interleaved({OURS: runs.pop(OURS)}, 3 if quick else 15, 3)
            seconds |= interleaved(runs, 2 if quick else 3, 1)
            if BRIAN in calls:
                long = x.repeat(LONGER, 1, 1)
                once = interleaved({"once": _timed(calls[BRIAN], x), "often": _timed(calls[BRIAN], long)}, 2, 1)
                seconds[BRIAN] = [(b - a) / (LONGER - 1) for a, b in zip(once["once"], once["often"])]
            for name, times in seconds.items():
                yield Row(NAME, name, times, OURS if name != OURS else None, str(size), notes[name])


def _timed(call: Run, x: Tensor) -> Callable[[], None]:
    def timed() -> None:
        if call(x).is_cuda:
            torch.cuda.synchronize()

    return timed


def summary(rows: Sequence[Row]) -> list[str]:
    lines = []
    for group in dict.fromkeys(row.group for row in rows):
        times = {row.what: row.median for row in rows if row.group == group}
        against = [f"{seconds / times[OURS]:.0f}× {name}" for name, seconds in times.items() if name != OURS]
        lines.append(f"{group}: {times[OURS] * 1e3:.2f} ms; as fast as {', '.join(against)} (targets 10×, Brian2 20×)")
    return lines


def check() -> None:
    """All contestants give the same spikes in float64, dense and sparse."""
    for size in (Size(30, 1, 60, 1.0), Size(30, 1, 300, 0.05), Size(20, 3, 60, 1.0)):
        x, weights = _events(size).double(), _weights(size, torch.float64)
        rest = x.new_zeros(size.batch, size.neurons)
        expected, _ = reference.reservoir(x, weights.w_in, weights.w_rec, None, rest, rest, BETA, THRESHOLD)
        assert expected.any()
        with torch.no_grad():
            for name, call in _contestants(size, weights).items():
                if not torch.equal(call(x).to(expected), expected):
                    raise AssertionError(f"{name} gives other spikes at {size}")


def _events(size: Size) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    return (torch.rand(size.steps, size.batch, INPUTS, generator=draws) < DENSITY).float()


def _weights(size: Size, dtype: torch.dtype) -> Weights:
    """About as active as the published reservoir is on its recordings, whatever the size."""
    draws, n = torch.Generator().manual_seed(0), size.neurons
    w_in = 0.7 * torch.randn(n, INPUTS, generator=draws, dtype=dtype)
    w_rec = torch.randn(n, n, generator=draws, dtype=dtype) * 0.46 * math.sqrt(200 / (n * size.share))
    if size.share < 1:
        w_rec = torch.where(torch.rand(n, n, generator=draws) < size.share, w_rec, 0)
    return Weights(w_in, w_rec)


def _contestants(size: Size, weights: Weights) -> dict[str, Run]:
    assert weights.w_rec is not None
    n = size.neurons
    lsm = LiquidStateMachine(INPUTS, n, beta=BETA, threshold=THRESHOLD, weights=weights)
    found: dict[str, Run] = {OURS: lsm.spikes}
    recur = _recurrent(weights.w_rec, size.share)
    for name, make in {LOOP: _torch, "snntorch": _snntorch, "spikingjelly": _spikingjelly, "norse": _norse}.items():
        try:
            found[name] = _looped(make, weights.w_in, recur)
        except ImportError as err:
            print(f"bench: {name} is left out: {err} (pip install spiking[peers])", file=sys.stderr)
    if size.batch == 1 and weights.w_in.device.type == "cpu":
        try:
            found[BRIAN] = _Brian(size, weights)
        except ImportError as err:
            print(f"bench: brian2 is left out: {err} (pip install brian2)", file=sys.stderr)
    return found


def _recurrent(w_rec: Tensor, share: float) -> Callable[[Tensor], Tensor]:
    if share == 1:
        return lambda s: s @ w_rec.T
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        sparse = w_rec.to_sparse_csr()
    return lambda s: (sparse @ s.T).T


Step = Callable[[Tensor, Any], tuple[Tensor, Any]]  # (current, state) -> (spikes, state)


def _looped(make: Callable[[], Step], w_in: Tensor, recur: Callable[[Tensor], Tensor]) -> Run:
    make()  # ImportError now, not when it is timed

    def call(x: Tensor) -> Tensor:
        step, state = make(), None
        drive = tf.linear(x, w_in)
        s, spikes = torch.zeros_like(drive[0]), []
        for t in range(len(x)):
            s, state = step(drive[t] + recur(s), state)
            s = s.to(drive.dtype)  # some return float32 whatever they are given
            spikes.append(s)
        return torch.stack(spikes)

    return call


def _torch() -> Step:
    def step(current: Tensor, state: Any) -> tuple[Tensor, Any]:
        u = current if state is None else BETA * state[0] * (1 - state[1]) + current
        s = (u > THRESHOLD).to(u.dtype)
        return s, (u, s)

    return step


def _snntorch() -> Step:
    import snntorch

    node = snntorch.Leaky(beta=BETA, threshold=THRESHOLD, reset_mechanism="zero", reset_delay=False)
    return lambda current, state: node(current, node.reset_mem() if state is None else state)


def _spikingjelly() -> Step:
    from spikingjelly.activation_based import neuron

    above = math.nextafter(THRESHOLD, math.inf)  # its neuron fires at the threshold
    node = neuron.LIFNode(tau=1 / (1 - BETA), decay_input=False, v_threshold=above, v_reset=0.0, step_mode="s").eval()
    return lambda current, state: (node(current), None)


def _norse() -> Step:
    from norse.torch import LIFBoxCell, LIFBoxParameters

    rate = torch.tensor((1 - BETA) / 1e-3, dtype=torch.float64)
    cell = LIFBoxCell(LIFBoxParameters(tau_mem_inv=rate, v_th=torch.tensor(THRESHOLD)))
    gain = 1 / (1 - BETA)  # its input is multiplied with dt/tau
    return lambda current, state: cell(current * gain, state)


class _Brian:
    """The reservoir as a Brian2 network: events that arrive, then the threshold, then the reset, in every step of 1 ms."""

    def __init__(self, size: Size, weights: Weights) -> None:
        import brian2 as b2

        assert weights.w_rec is not None
        self.b2, self.size = b2, size
        b2.prefs.core.default_float_dtype = np.float64 if weights.w_in.dtype == torch.float64 else np.float32
        b2.defaultclock.dt = 1 * b2.ms
        names = {"beta": BETA, "limit": THRESHOLD}
        # Names are the same in every network, so that each piece of code is compiled once.
        group = b2.NeuronGroup(
            size.neurons, "v : 1", threshold="v > limit", reset="v = 0", namespace=names, name="reservoir"
        )
        group.run_regularly("v = beta*v", when="groups", name="leak")
        self.source = b2.SpikeGeneratorGroup(INPUTS, [], [] * b2.ms, name="events")
        parts = [group, self.source]
        for name, source, w in (("input", self.source, weights.w_in), ("recurrent", group, weights.w_rec)):
            receiver, sender = w.nonzero(as_tuple=True)
            synapses = b2.Synapses(source, group, "w : 1", on_pre="v_post += w", name=name)
            synapses.connect(i=sender.numpy(), j=receiver.numpy())
            synapses.w = w[receiver, sender].numpy()
            parts.append(synapses)
        self.monitor = b2.SpikeMonitor(group, name="spikes")
        self.network = b2.Network(*parts, self.monitor, *group.contained_objects)
        self.network.schedule = ["start", "groups", "synapses", "thresholds", "resets", "end"]
        self.network.store()

    def __call__(self, x: Tensor) -> Tensor:
        b2, steps = self.b2, len(x)
        self.network.restore()
        t, i = x[:, 0].nonzero(as_tuple=True)
        self.source.set_spikes(i.numpy(), t.numpy() * b2.ms)
        # What a source sends in a step arrives in the next one: one step more than there are events.
        self.network.run((steps + 1) * b2.ms, namespace={})
        spikes = x.new_zeros(steps, 1, self.size.neurons)
        when = torch.as_tensor((self.monitor.t / b2.ms).round().astype("int64")) - 1
        spikes[when, 0, torch.as_tensor(self.monitor.i[:].astype("int64"))] = 1
        return spikes
