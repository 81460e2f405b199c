"""What the neurons of a network do while it runs, and the warnings that follow from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spiking import encode
from spiking._multilevel import MultiLevelLIF
from spiking.errors import SpikingError
from spiking.neuron import LIF, Neuron

__all__ = ["Activity", "Finding", "diagnose", "watch"]

SILENT, BUSY = 1e-3, 0.9  # spikes per neuron and step
NO_GRADIENT = 0.01  # share of a layer's neurons with a surrogate gradient, below which it does not learn
FAR_ABOVE = 0.2  # share of membranes above twice the threshold, where the surrogate ends


@dataclass
class Activity:
    """Input currents and output spikes of every neuron layer, [T, B, *], in the order in which they ran."""

    layers: dict[str, tuple[Any, Tensor, Tensor]] = field(default_factory=dict)

    @property
    def spikes(self) -> dict[str, Tensor]:
        return {name: spikes for name, (_, _, spikes) in self.layers.items()}

    def membranes(self) -> dict[str, Tensor]:
        """Membranes before the reset in units of the threshold, h/threshold [T, B, *]; gradients flow through them."""
        found = {}
        for name, (neuron, current, spikes) in self.layers.items():
            beta, threshold = (torch.as_tensor(c, device=current.device) for c in neuron.cells().values())
            v = torch.full_like(current[0], neuron.rule.v_leak)
            steps = []
            for x, s in zip(current, spikes):
                h = beta * v + x + (1 - beta) * neuron.rule.v_leak
                v = h - threshold * s.detach()
                steps.append(h / threshold)
            found[name] = torch.stack(steps)
        return found


@contextmanager
def watch(model: nn.Module) -> Iterator[Activity]:
    """Inside, every pass of the model leaves its activity in what is given.

    Errors: SpikingError naming a neuron layer that is not of the kind that conversions make (soft reset, no refractory time).

    >>> from spiking.convert import retrainable_lif
    >>> model = nn.Sequential(nn.Linear(2, 2), retrainable_lif())
    >>> with watch(model) as activity:
    ...     _ = model(torch.zeros(3, 1, 2))
    >>> activity.membranes()["1"].shape
    torch.Size([3, 1, 2])
    """
    activity = Activity()
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, Neuron):
            plain = isinstance(layer, (LIF, MultiLevelLIF)) and layer.rule.reset == "subtract"
            if not plain or layer.rule.refractory or layer.rule.reset_delay or layer.rule.residual_reset:
                raise SpikingError(
                    f'watch: layer "{name}": got {layer!r}; expected LIF neurons with reset="subtract" and no delays.'
                )
            handles.append(layer.register_forward_hook(_keep(activity, name), with_kwargs=True))
    try:
        yield activity
    finally:
        for handle in handles:
            handle.remove()


def _keep(activity: Activity, name: str) -> Any:
    def keep(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        spikes = output[0] if isinstance(output, tuple) else output
        activity.layers[name] = (layer, args[0] if args else kwargs["x"], spikes)

    return keep


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: in which layer ("" for the output), of which kind, and the sentence that says so.

    `stops`: whether training would be in vain.
    """

    layer: str
    kind: str
    text: str
    stops: bool = False


@torch.no_grad()
def diagnose(model: nn.Module, images: Tensor, timesteps: int) -> list[Finding]:
    """What stands in the way of training a converted network at so many time steps; images [B, …].

    Silent layers (below 0.001 spikes per neuron and step), layers without surrogate gradient, outputs that are equal for
    all images: training cannot change any of these, since nothing reaches the weights. Then: layers that first fire after
    the first step, saturated ones, and thresholds and leaks out of range.
    Errors: as `watch`; SpikingError if timesteps < 1 or there are no images.

    >>> from spiking.convert import retrainable_lif
    >>> model = nn.Sequential(nn.Linear(4, 8), retrainable_lif(threshold=1e3), nn.Linear(8, 2))
    >>> [finding.kind for finding in diagnose(model, torch.rand(5, 4), timesteps=1)]
    ['silent', 'constant output']
    """
    if timesteps < 1:
        raise SpikingError(f"diagnose.timesteps: got {timesteps}; expected at least 1.")
    if not len(images):
        raise SpikingError("diagnose.images: got none; expected some training images.")
    training = model.training
    model.eval()
    try:
        with watch(model) as activity:
            scores = model(encode.direct(images, timesteps)).sum(0)
    finally:
        model.train(training)
    found = []
    membranes = activity.membranes()
    for name, (neuron, _, spikes) in activity.layers.items():
        found += _of_layer(name, neuron, spikes, membranes[name], timesteps)
    if len(images) > 1 and bool((scores == scores[0]).all()):
        text = (
            "the output is the same for all images: no activity reaches it. Calibrate over as many steps as you train."
        )
        found.append(Finding("", "constant output", text, stops=True))
    return found


def _of_layer(name: str, neuron: Any, spikes: Tensor, membrane: Tensor, timesteps: int) -> list[Finding]:
    rate, first = float((spikes != 0).float().mean()), float((spikes[0] != 0).float().mean())
    threshold = float(torch.as_tensor(neuron.cells()["threshold"]).detach().mean())
    remedy = f"Convert with calibration_steps={timesteps}, or lower all thresholds (sigma=0.3 to 0.6)."
    if not threshold > 0:
        return [
            Finding(name, "threshold", f'layer "{name}" has the threshold {threshold:.3g}; expected more than 0.', True)
        ]
    if rate < SILENT:
        text = f'layer "{name}" is silent at {timesteps} step{"s" * (timesteps != 1)}: {rate:.2g} spikes per neuron and step. {remedy}'
        return [Finding(name, "silent", text, stops=True)]
    found = []
    reached = float(((membrane - 1).abs() < 1).float().mean())
    if reached < NO_GRADIENT:
        text = f'layer "{name}" has a surrogate gradient in {100 * reached:.2g} % of its neurons only, so it does not learn. {remedy}'
        found.append(Finding(name, "no gradient", text, stops=True))
    if timesteps > 1 and first < SILENT:
        text = f'layer "{name}" does not fire in the first step (later {rate:.2g}): fewer time steps will starve it. {remedy}'
        found.append(Finding(name, "late", text))
    far = float((membrane > 2).float().mean())
    if rate > BUSY or far > FAR_ABOVE:
        text = (
            f'layer "{name}" is saturated: {rate:.2g} spikes per neuron and step, {100 * far:.0f} % of membranes above twice '
            "the threshold. Raise its threshold."
        )
        found.append(Finding(name, "saturated", text))
    return found
