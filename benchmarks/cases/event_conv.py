"""Convolutions at a few densities and shapes: event-driven against torch's (oneDNN), planes by planes and channels last.

Every contestant gets the same x and weights in the same run, the event-driven kernel in the order of memory of the dense call that it is
compared with. `auto` is `spiking.Conv2d` as users call it, counting and choosing included; `never loses` asks it for an input without a
zero, in pairs with `torch.nn.Conv2d`. The fit takes the event-driven kernel's time over the number of spikes, from 1 to 30 % density.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from spiking.benchmarks import density
from spiking.benchmarks.run import Row, interleaved
from torch import Tensor
from torch.nn import functional as tf

import spiking
from spiking import functional as F

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "event_conv"
TITLE = "event-driven convolution against torch's, over densities"
DENSITIES = (0.02, 0.05, 0.10, 0.20, 1.0)
DENSE, EVENT, AUTO = "F.conv2d", "F.event_conv2d", "spiking.Conv2d, auto"
LAST = ", channels last"
LAYER = "torch.nn.Conv2d"
PAIRS = (
    density.Pair(DENSE, EVENT),
    density.Pair(DENSE + LAST, EVENT + LAST),
    density.Pair(DENSE, AUTO, "F.conv2d, as a layer"),
)
TARGETS = {0.02: 4.0, 0.05: 4.0, 0.10: 2.5, 0.20: 1.5}  # a prototype's, for 3×3


class Shape(NamedTuple):
    """Images, channels in, their side, channels out, side of the kernel, padding."""

    images: int
    inputs: int
    side: int
    outputs: int
    kernel: int
    padding: int

    def __str__(self) -> str:
        return f"{self.images} × {self.inputs}→{self.outputs} at {self.side}×{self.side}, {self.kernel}×{self.kernel}"


SHAPES = (
    Shape(1, 32, 16, 64, 3, 1),
    Shape(64, 32, 16, 64, 3, 1),
    Shape(1, 64, 16, 128, 3, 1),
    Shape(16, 64, 16, 128, 3, 1),
    Shape(1, 12, 15, 32, 5, 0),
    Shape(256, 12, 15, 32, 5, 0),
)
QUICK = (Shape(2, 8, 6, 16, 3, 1),)


def rows(quick: bool, device: str, data: str | None = None) -> Iterable[Row]:
    check()
    repeats = 3 if quick else 15
    with torch.no_grad():
        for shape in QUICK if quick else SHAPES:
            weight, bias = (t.to(device) for t in _weights(shape))
            for share in DENSITIES:
                yield from _contest(shape, share, weight, bias, device, max(3, repeats // 3))
            inputs = {share: _spikes(shape, share).to(device) for share in density.FIT}
            call = _event(shape, weight, bias)
            yield from density.line(NAME, str(shape), inputs, call, max(3, repeats // 3))
        for shape in QUICK if quick else SHAPES:
            yield from _worst(shape, device, 3 if quick else 40)


def _weights(shape: Shape) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    size = (shape.outputs, shape.inputs, shape.kernel, shape.kernel)
    return torch.randn(size, generator=g), torch.randn(shape.outputs, generator=g)


def _spikes(shape: Shape, share: float) -> Tensor:
    g = torch.Generator().manual_seed(1)
    return (torch.rand(shape.images, shape.inputs, shape.side, shape.side, generator=g) < share).float()


def _event(shape: Shape, weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: F.event_conv2d(x, weight, bias, padding=shape.padding)


def _layer(kind: type[torch.nn.Conv2d], shape: Shape, weight: Tensor, bias: Tensor) -> torch.nn.Conv2d:
    layer = kind(shape.inputs, shape.outputs, shape.kernel, padding=shape.padding)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer.to(weight.device)


def _contest(shape: Shape, share: float, weight: Tensor, bias: Tensor, device: str, repeats: int) -> Iterable[Row]:
    planes = _spikes(shape, share).to(device)
    last, weight_last = (t.contiguous(memory_format=torch.channels_last) for t in (planes, weight))
    layer, event = _layer(spiking.Conv2d, shape, weight, bias), _event(shape, weight, bias)
    calls: dict[str, Callable[[], Any]] = {
        DENSE: lambda: tf.conv2d(planes, weight, bias, padding=shape.padding),
        EVENT: lambda: event(planes),
        AUTO: lambda: layer(planes),
        DENSE + LAST: lambda: tf.conv2d(last, weight_last, bias, padding=shape.padding),
        EVENT + LAST: lambda: event(last),
    }
    for name, times in interleaved(calls, repeats, 2, in_a_row=3).items():
        reference = None if name.startswith(DENSE) else DENSE + (LAST if name.endswith(LAST) else "")
        yield Row(NAME, name, times, reference, density.group(str(shape), share))


def _worst(shape: Shape, device: str, repeats: int) -> Iterable[Row]:
    weight, bias = (t.to(device) for t in _weights(shape))
    x = (torch.rand(_spikes(shape, 0).shape, generator=torch.Generator().manual_seed(1)) + 0.1).to(device)
    plain, auto = (_layer(kind, shape, weight, bias) for kind in (torch.nn.Conv2d, spiking.Conv2d))
    plain.weight, plain.bias = auto.weight, auto.bias
    yield from density.worst(NAME, str(shape), {LAYER: lambda: plain(x), AUTO: lambda: auto(x)}, repeats)


def check() -> None:
    """Both sides agree before anything is timed."""
    for shape in (Shape(2, 5, 9, 20, 3, 1), Shape(2, 12, 15, 32, 5, 0)):
        weight, bias = _weights(shape)
        x = _spikes(shape, 0.1)
        expected = tf.conv2d(x.double(), weight.double(), bias.double(), padding=shape.padding)
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            if not torch.allclose(_event(shape, weight, bias)(given).double(), expected, atol=1e-4):
                raise AssertionError("the contestants disagree")


def _target(shape: str, share: float) -> float | None:
    known = TARGETS.get(share) if shape.endswith("3×3") else None
    return None if known is None else known * density.SLACK


def summary(rows: Sequence[Row]) -> list[str]:
    """Speed-ups per shape, the fit of time over spikes, and what `auto` costs where nothing can be gained."""
    return [*density.speedups(rows, PAIRS, _target), *density.fits(rows), *density.overheads(rows)]


def figure(rows: Sequence[Row]) -> Figure:
    """Speed-up over density, a line a shape."""
    return density.figure(rows, PAIRS[1], "event-driven convolution, float32")
