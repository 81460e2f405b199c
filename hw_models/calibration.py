"""A deployed network beside the one that it was made from: what its arrays do to each layer, and digital corrections of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from spiking.hw_models.deploy import ArrayConv2d, ArrayLinear, array_layers
from torch import Tensor, nn

from spiking.errors import SpikingError

M = TypeVar("M", bound=nn.Module)


_FITTED = 1 << 16  # places of a convolution that a correction is fitted to


@torch.no_grad()
def _outputs(model: nn.Module, x: Tensor, names: Sequence[str]) -> dict[str, list[Tensor]]:
    """What the named layers give at each call, [everything, outputs]; of convolutions, at places evenly apart."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, inputs: Any, y: Tensor) -> None:
            found[name].append(_rows(layer, y))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    was = model.training
    try:
        model.eval()(x)
    finally:
        model.train(was)
        for handle in handles:
            handle.remove()
    for name, parts in found.items():
        if not parts:
            raise SpikingError(
                f'layer "{name}" does not run in a pass of {type(model).__name__}; expected every layer to.'
            )
    return found


def _rows(layer: nn.Module, y: Tensor) -> Tensor:
    """Outputs [N, n] of one call."""
    if not isinstance(layer, nn.Conv2d):
        return y.flatten(0, -2)
    images = y.flatten(0, -4) if y.dim() > 3 else y.unsqueeze(0)
    places = images.flatten(2)
    n = places.shape[-1]
    some = min(n, max(1, _FITTED // len(places)))
    return places[..., torch.arange(some, device=y.device) * n // some].transpose(1, 2).flatten(0, 1)


def calibrate(deployed: M, model: nn.Module, x: Tensor) -> M:
    """Correct each output of each array digitally, by one gain and one shift, until it fits the model's own. Returns `deployed`.

        gain = cov(y, y')/var(y');   shift = mean(y) - gain·mean(y')

    y is what the layer of the trained model gives for the inputs x, y' what the array gives, layer after layer, so that later layers
    see what corrected earlier ones send. No labels are used. The chip's devices are not written again.
    Errors: SpikingError if the two models have other layers, or if x is not finite.

    >>> from spiking.hw_models.deploy import deploy
    >>> net = nn.Sequential(nn.Linear(8, 4))
    >>> x = torch.rand(200, 8)
    >>> chip = deploy(net, "pcm", t=1e7, seed=2)
    >>> before = (chip(x) - net(x)).abs().mean()
    >>> bool((calibrate(chip, net, x)(x) - net(x)).abs().mean() < before / 2)
    True
    """
    return calibrate_to(deployed, wanted_outputs(deployed, model, x), x)


def wanted_outputs(deployed: nn.Module, model: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    """What the layers of the trained model give that stand on arrays in the deployed one: the same for every chip."""
    if not x.isfinite().all():
        raise SpikingError("calibrate: got inputs with NaN or infinity; expected finite ones.")
    names = [name for name, _ in array_layers(deployed)]
    _same_layers("calibrate", model, names)
    return _outputs(model, x, names)


@torch.no_grad()
def calibrate_to(deployed: M, wanted: dict[str, list[Tensor]], x: Tensor) -> M:
    """As `calibrate`, with what `wanted_outputs` found. Returns `deployed`."""
    layers = dict(array_layers(deployed))
    for layer in layers.values():
        layer.reset_correction()
    if all(len(parts) == 1 for parts in wanted.values()):
        # Each layer runs once: it is corrected as soon as it has run, before what comes next sees its outputs.

        def corrected(layer: ArrayLinear | ArrayConv2d, name: str) -> Any:
            def hook(_: nn.Module, inputs: Any, y: Tensor) -> Tensor:
                _fit(layer, _rows(layer, y), wanted[name][0])
                return layer.corrected(y)

            return hook

        handles = [layer.register_forward_hook(corrected(layer, name)) for name, layer in layers.items()]
        try:
            deployed.eval()(x)
        finally:
            for handle in handles:
                handle.remove()
        return deployed
    for name, layer in layers.items():
        _fit(layer, torch.cat(_outputs(deployed, x, [name])[name]), torch.cat(wanted[name]))
    return deployed


def _fit(layer: ArrayLinear | ArrayConv2d, given: Tensor, wanted: Tensor) -> None:
    """The gain and the shift of each output [N, n] that was not corrected yet."""
    mean, target = given.mean(0, dtype=torch.float64), wanted.mean(0, dtype=torch.float64)
    given, wanted = given - mean.to(given), wanted - target.to(wanted)
    variance = given.square().mean(0, dtype=torch.float64)
    covariance = (given * wanted).mean(0, dtype=torch.float64)
    bias = 0.0 if layer.bias is None else layer.bias.detach().double()
    size = wanted.square().mean(0, dtype=torch.float64) + (target - bias).square()
    # An output that never moves says nothing of its gain.
    gain = torch.where(variance > 1e-12 * size, covariance / variance, 1.0)
    layer.correct(gain, target - bias - gain * (mean - bias))


class LayerError(NamedTuple):
    """What one layer's array does to its outputs, for the same inputs to the network.

    `error`: root mean square of the difference over that of the model's own outputs; `correlation` of the two; `gain`: slope of the
    array's outputs over the model's; `weight_error`: the same as error, of the weights as they are read; `noise`: what two passes
    differ by, as a standard deviation over the outputs' root mean square; `clipped`: share of the last conversions out of range.
    """

    name: str
    inputs: int
    outputs: int
    tiles: int
    error: float
    correlation: float
    gain: float
    weight_error: float
    noise: float
    clipped: float


def layer_errors(deployed: nn.Module, model: nn.Module, x: Tensor) -> list[LayerError]:
    """How far each array is from the layer that it stands for, in a pass of x; errors of earlier layers are in the later ones.

    >>> from spiking.hw_models.deploy import deploy
    >>> net = nn.Sequential(nn.Linear(8, 4))
    >>> (found,) = layer_errors(deploy(net, "ideal"), net, torch.rand(5, 8))
    >>> found.name, found.tiles, found.error < 1e-5
    ('0', 2, True)
    """
    layers = list(array_layers(deployed))
    names = [name for name, _ in layers]
    _same_layers("layer_errors", model, names)
    wanted, given, again = (
        {name: torch.cat(parts) for name, parts in _outputs(m, x, names).items()} for m in (model, deployed, deployed)
    )
    found = []
    for name, layer in layers:
        y, z, other = (each[name].double() for each in (wanted, given, again))
        size = float(y.square().mean().sqrt()) or 1.0
        yc, zc = y - y.mean(0), z - z.mean(0)
        cov, vy, vz = (float((a * b).mean()) for a, b in ((yc, zc), (yc, yc), (zc, zc)))
        weight = layer.weight.detach().flatten(1).double()
        read = layer.gain[:, None].double() * layer.array.matrix.double()
        n, m = layer.array.shape
        found.append(
            LayerError(
                name=name,
                inputs=m,
                outputs=n,
                tiles=layer.array.n_tiles,
                error=float((z - y).square().mean().sqrt()) / size,
                correlation=cov / math.sqrt(vy * vz) if vy and vz else 0.0,
                gain=cov / vy if vy else 0.0,
                weight_error=float((read - weight).norm() / weight.norm().clamp(min=1e-300)),
                noise=float((z - other).square().mean().sqrt()) / math.sqrt(2) / size,
                clipped=layer.array.clipped,
            )
        )
    return found


def _same_layers(where: str, model: nn.Module, names: Sequence[str]) -> None:
    known = dict(model.named_modules())
    for name in names:
        if name not in known:
            raise SpikingError(
                f'{where}: {type(model).__name__} has no layer "{name}"; expected the model that was deployed.'
            )


__all__ = ["LayerError", "calibrate", "calibrate_to", "layer_errors", "wanted_outputs"]
