"""y = x·Wᵀ + b at a few densities and shapes: event-driven against torch's dense product and the sparse matrices of torch and scipy.

Every contestant gets the same x and W in the same run; the sparse ones get x already converted (their conversion is a row of its own).
`auto` is `spiking.Linear` as users call it, counting and choosing included; `never loses` asks it for an input without a zero, in
pairs with `torch.nn.Linear`. The fit takes the event-driven kernel's time over the number of spikes, from 1 to 30 % density.
On CUDA the rows are those of event_cuda.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

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
PAIRS = (density.Pair(DENSE, EVENT), density.Pair(DENSE, AUTO, "F.linear, as a layer"))


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
    if device == "cpu":
        calls |= _sparse(x, w, b)
    seconds = interleaved(calls, max(3, repeats // 3), 2, in_a_row=3)
    for name, times in seconds.items():
        yield Row(NAME, name, times, DENSE if name != DENSE else None, density.group(_name(shape), share))


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


def _line(shape: tuple[int, int, int], weight: Tensor, bias: Tensor, device: str, repeats: int) -> Iterable[Row]:
    w, b = weight.to(device), bias.to(device)
    inputs = {share: _spikes(*shape[:2], share).to(device) for share in density.FIT}
    yield from density.line(NAME, _name(shape), inputs, lambda x: F.event_linear(x, w, b), max(3, repeats // 3))


def _worst(shape: tuple[int, int, int], device: str, repeats: int) -> Iterable[Row]:
    layer, plain = spiking.Linear(*shape[1:]), torch.nn.Linear(*shape[1:])
    plain.load_state_dict(layer.state_dict())
    x = torch.rand(shape[0], shape[1], generator=torch.Generator().manual_seed(1)).add_(0.1).to(device)
    layer.to(device), plain.to(device)
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
    return [*density.speedups(rows, PAIRS), *density.fits(rows), *density.overheads(rows)]


def figure(rows: Sequence[Row]) -> Figure:
    """Speed-up over density, a line a shape."""
    return density.figure(rows, PAIRS[0], "event-driven linear layer, float32")
