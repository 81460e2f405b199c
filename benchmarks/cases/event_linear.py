"""y = x·Wᵀ + b at a few densities and shapes: event-driven against torch's dense product, the sparse matrices of torch and scipy, and
brainevent's event-driven operators (JAX) where they are installed.

Every contestant gets the same x and W in the same run; the sparse ones get x already converted (their conversion is a row of its own).
Calls follow one another, as the steps of a network that is used do: a median over STEADY calls in a row is what a call takes once the
caches hold what it reads again and again. The rows "in turn" time single calls, each after the dense product has pushed all of that out.
`auto` is `spiking.Linear` as users call it, counting and choosing included; `never loses` asks it for an input without a zero, in
pairs with `torch.nn.Linear`. The fit takes the event-driven kernel's time over the number of spikes, from 1 to 30 % density.
On CUDA the rows are those of event_cuda.py.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from spiking.benchmarks import density, event_cuda
from spiking.benchmarks.run import Row, interleaved
from torch import Tensor
from torch.nn import functional as tf

import spiking
from spiking import functional as F

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "event_linear"
TITLE = "event-driven linear layer against dense and sparse products"
SHAPES = ((1, 4096, 4096), (16, 4096, 4096), (256, 1024, 1024))  # rows, inputs, outputs
QUICK = ((2, 256, 128),)
SMALL = ((1, 128, 64), (32, 256, 128), (64, 784, 128))  # where a call takes less than a millisecond
DENSITIES = (0.02, 0.05, 0.10, 0.20)
DENSE, EVENT, AUTO = "F.linear", "F.event_linear", "spiking.Linear, auto"
LAYER = "torch.nn.Linear"
IN_TURN = (f"{DENSE}, in turn", f"{EVENT}, in turn")
PAIRS = (
    density.Pair(DENSE, EVENT),
    density.Pair(DENSE, AUTO, "F.linear, as a layer"),
    density.Pair(IN_TURN[0], IN_TURN[1], "F.linear, single calls in turn"),
    density.Pair("brainevent", EVENT),
)
BRAINEVENT = "brainevent"
STEADY = 72  # after a dense pass over 64 MB, it takes some 20 calls until a cache that is shared keeps what they read
# Times as fast as F.linear, by shape at DENSITIES: a prototype's figures.
TARGETS = {
    (1, 4096, 4096): (176, 86, 39, 16),
    (16, 4096, 4096): (33, 8.4, 3.9, 1.7),
    (256, 1024, 1024): (14, 7.4, 4.3, 2.2),
}


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    check()
    if device == "cuda":
        yield from event_cuda.rows(NAME, quick)
        return
    with torch.no_grad():
        for shape in QUICK if quick else SHAPES:
            weight, bias = _weights(*shape[1:])
            for share in DENSITIES:
                yield from _contest(shape, share, weight, bias, device, 3 if quick else 15)
            yield from _line(shape, weight, bias, device, 3 if quick else 15)
        for shape in QUICK if quick else (*SHAPES, *SMALL):
            yield from _worst(shape, device, 3 if quick else 40)
        yield from _beside_brainevent(QUICK if quick else SHAPES)


def _weights(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(outputs, inputs, generator=g), torch.randn(outputs, generator=g)


def _spikes(rows: int, inputs: int, share: float) -> Tensor:
    return (torch.rand(rows, inputs, generator=torch.Generator().manual_seed(1)) < share).float()


def _contest(
    shape: tuple[int, int, int], share: float, weight: Tensor, bias: Tensor, device: str, repeats: int
) -> Iterable[Row]:
    layer = spiking.Linear(shape[1], shape[2])
    layer.load_state_dict({"weight": weight, "bias": bias})
    layer.to(device)
    x, w, b = (t.to(device) for t in (_spikes(*shape[:2], share), weight, bias))
    calls: dict[str, Callable[[], Any]] = {
        DENSE: lambda: tf.linear(x, w, b),
        EVENT: lambda: F.event_linear(x, w, b),
        AUTO: lambda: layer(x),
    }
    name = density.group(_name(shape), share)
    seconds = interleaved(calls, max(2, repeats // 5), 2, in_a_row=STEADY)
    if device == "cpu":
        seconds |= interleaved(_sparse(x, w, b), 2, 1, in_a_row=3)
    for what, times in seconds.items():
        yield Row(NAME, what, times, DENSE if what != DENSE else None, name)
    both = {what: calls[of] for what, of in zip(IN_TURN, (DENSE, EVENT))}
    for what, times in interleaved(both, repeats, 1).items():
        yield Row(NAME, what, times, IN_TURN[0] if what != IN_TURN[0] else None, name)


def _name(shape: tuple[int, int, int]) -> str:
    return f"{shape[0]} × {shape[1]}→{shape[2]}"


def _sparse(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Callable[[], Any]]:
    """x as a compressed sparse row matrix, in torch and in scipy."""
    from scipy import sparse

    with warnings.catch_warnings():  # torch calls its sparse layouts beta
        warnings.simplefilter("ignore")
        ours = x.to_sparse_csr()
    theirs, columns, b = sparse.csr_array(x.numpy()), weight.t().contiguous(), bias.numpy()
    flat = columns.numpy()
    return {
        "torch.sparse": lambda: ours @ columns + bias,
        "scipy.sparse": lambda: theirs @ flat + b,
        "scipy.sparse, converted": lambda: sparse.csr_array(x.numpy()) @ flat + b,
    }


def _beside_brainevent(shapes: Sequence[tuple[int, int, int]]) -> Iterable[Row]:
    """brainevent's product of binary events and a dense matrix, compiled by JAX, where it is installed.

    Last and by itself: JAX and numba bring threads of their own, which slow down whatever runs beside them.
    """
    try:
        import brainevent
        import jax
    except ImportError as err:
        print(f"bench: brainevent is left out: {err} (pip install brainevent jax numba)", file=sys.stderr)
        return
    product = jax.jit(lambda s, w, b: brainevent.BinaryArray(s) @ w + b)
    for shape in shapes:
        weight, bias = _weights(*shape[1:])
        columns, b = (jax.numpy.asarray(t.numpy()) for t in (weight.t().contiguous(), bias))
        for share in DENSITIES:
            x = _spikes(*shape[:2], share)
            events = jax.numpy.asarray((x[0] if len(x) == 1 else x).bool().numpy())
            theirs = functools.partial(_ready, product, events, columns, b)
            ours = functools.partial(F.event_linear, x, weight, bias)
            if not np.allclose(theirs(), ours().numpy().reshape(theirs().shape), atol=1e-2):
                raise AssertionError("the contestants disagree")
            group = f"{BRAINEVENT}: {density.group(_name(shape), share)}"
            for what, times in interleaved({BRAINEVENT: theirs, EVENT: ours}, 1, 2, in_a_row=STEADY).items():
                yield Row(NAME, what, times, BRAINEVENT if what != BRAINEVENT else None, group)


def _ready(product: Callable[..., Any], *arrays: Any) -> Any:
    """JAX returns before it has computed."""
    return product(*arrays).block_until_ready()


def _line(shape: tuple[int, int, int], weight: Tensor, bias: Tensor, device: str, repeats: int) -> Iterable[Row]:
    w, b = weight.to(device), bias.to(device)
    inputs = {share: _spikes(*shape[:2], share).to(device) for share in density.FIT}
    yield from density.line(NAME, _name(shape), inputs, lambda x: F.event_linear(x, w, b), max(2, repeats // 5), STEADY)


def _worst(shape: tuple[int, int, int], device: str, repeats: int) -> Iterable[Row]:
    layer, plain = spiking.Linear(*shape[1:]), torch.nn.Linear(*shape[1:])
    x = torch.rand(shape[0], shape[1], generator=torch.Generator().manual_seed(1)).add_(0.1).to(device)
    layer.to(device)
    plain.weight, plain.bias = (
        layer.weight,
        layer.bias,
    )  # two copies would lie differently in memory, and differ in speed
    yield from density.worst(NAME, _name(shape), {LAYER: lambda: plain(x), AUTO: lambda: layer(x)}, repeats)


def check() -> None:
    """All sides agree before anything is timed."""
    weight, bias = _weights(300, 70)
    x = _spikes(9, 300, 0.1)
    expected = tf.linear(x.double(), weight.double(), bias.double())
    for y in (F.event_linear(x, weight, bias), *(call() for call in _sparse(x, weight, bias).values())):
        if not torch.allclose(torch.as_tensor(y).double(), expected, atol=1e-4):
            raise AssertionError("the contestants disagree")


def summary(rows: Sequence[Row]) -> list[str]:
    """Speed-ups per shape, the fit of time over spikes, and what `auto` costs where nothing can be gained."""
    if rows and rows[0].group.startswith("cuda"):
        return event_cuda.summary(rows)
    steady = density.speedups(rows, PAIRS[:1], _target)
    return [*steady, *density.speedups(rows, PAIRS[1:]), *density.fits(rows), *density.overheads(rows)]


def _target(shape: str, share: float) -> float | None:
    targets = {_name(of): dict(zip(DENSITIES, wanted)) for of, wanted in TARGETS.items()}
    wanted = targets.get(shape, {}).get(share)
    return None if wanted is None else wanted * density.SLACK


def figure(rows: Sequence[Row]) -> Figure:
    """Speed-up over density, a line a shape."""
    return density.figure(rows, PAIRS[0], "event-driven linear layer, float32")
