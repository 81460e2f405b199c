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
from spiking.convert.network import Wired
from spiking.errors import SpikingError
from spiking.neuron import LIF, Neuron

__all__ = ["Activity", "Finding", "diagnose", "watch"]

SILENT, BUSY = 1e-3, 0.9  # spikes per neuron and step
NO_GRADIENT = 0.01  # share of a layer's neurons with a surrogate gradient, below which it does not learn
FAR_ABOVE = 0.5  # share of membranes above twice the threshold, where the surrogate ends; 0.46 still trained well
VANISHING = 1e-4  # gradient norm of the first layer with weights over that of the last
SAMPLES = 10  # images a class, from which on an answer that never comes is no accident
DEFAULTS = (1.0, 0.4)  # thresholds before calibration: ours, and that of the published code


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


def diagnose(
    model: nn.Module, images: Tensor, timesteps: int, labels: Tensor | None = None, trained: bool = False
) -> list[Finding]:
    """What stands in the way of training a converted network at so many time steps; images [B, …], labels [B].

    Silent layers (below 0.001 spikes per neuron and step), layers without surrogate gradient, thresholds of 0, outputs that
    are equal for all images: training cannot change any of these, since nothing reaches the weights. Then: layers that first
    fire after the first step, saturated ones, leaks below 0, thresholds in residual networks that were never calibrated,
    classes that are never the answer (from ten images a class on); with labels, a first layer whose gradient is below a
    ten-thousandth of the last one's; of a `trained` network, leaks that are all at their limit of 1.
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
        with torch.no_grad(), watch(model) as activity:
            scores = model(encode.direct(images, timesteps)).sum(0)
        return _of_network(model, activity, scores, images, timesteps, labels, trained)
    finally:
        model.train(training)


def _of_network(
    model: nn.Module,
    activity: Activity,
    scores: Tensor,
    images: Tensor,
    timesteps: int,
    labels: Tensor | None,
    trained: bool,
) -> list[Finding]:
    found = []
    membranes = activity.membranes()
    for name, (neuron, _, spikes) in activity.layers.items():
        found += _of_layer(name, neuron, spikes, membranes[name], timesteps)
    if len(images) > 1 and bool((scores == scores[0]).all()):
        text = (
            "the output is the same for all images: no activity reaches it. Calibrate over as many steps as you train."
        )
        found.append(Finding("", "constant output", text, stops=True))
    if any(finding.stops for finding in found):
        return found  # what follows from that is no news
    answers, classes = len(scores.argmax(1).unique()), scores.shape[1]
    if answers < classes and len(images) >= SAMPLES * classes:
        text = f"only {answers} of {classes} classes are ever the answer, for {len(images)} images."
        found.append(Finding("", "dead output", text))
    found += _never_calibrated(model)
    neurons = {name: neuron for name, (neuron, _, _) in activity.layers.items()}
    learned = all(isinstance(neuron.beta, nn.Parameter) for neuron in neurons.values())
    if trained and timesteps > 1 and learned and all(_leak(neuron) >= 1 for neuron in neurons.values()):
        text = "the leaks of all layers are at their limit, 1: nothing is forgotten. Raise threshold_lr to have them learned."
        found.append(Finding("", "leaks", text))
    if labels is not None and len(labels):
        if not (len(labels) == len(scores) and labels.min() >= 0 and labels.max() < classes):
            raise SpikingError(
                f"diagnose.labels: got classes {int(labels.min())} to {int(labels.max())}; expected 0 to {classes - 1}, one for each "
                f"of {len(scores)} images."
            )
        found += _of_gradients(model, images, timesteps, labels)
    return found


def _leak(neuron: Any) -> float:
    return float(torch.as_tensor(neuron.beta).detach().max())


def _never_calibrated(model: nn.Module) -> list[Finding]:
    """Neurons of a residual network that kept a threshold from before calibration, while others have one of their own."""
    found: list[Finding] = []
    for prefix, wired in model.named_modules():
        if not isinstance(wired, Wired):
            continue
        thresholds = {
            name: float(torch.as_tensor(layer.cells()["threshold"]).detach().mean())
            for name, layer in wired.named_children()
            if isinstance(layer, Neuron)
        }
        for value in DEFAULTS:
            kept = [name for name, own in thresholds.items() if abs(own - value) < 1e-6]
            if 2 <= len(kept) < len(thresholds):
                name = f"{prefix}.{kept[0]}".lstrip(".")
                text = (
                    f'layer "{name}" and {len(kept) - 1} more have the threshold {value:g}, as before calibration; others have '
                    "one of their own. Convert with from_ann, which calibrates residual blocks too."
                )
                found.append(Finding(name, "default threshold", text))
    return found


def _of_gradients(model: nn.Module, images: Tensor, timesteps: int, labels: Tensor) -> list[Finding]:
    layers = {
        name: layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.weight.requires_grad
    }
    with torch.enable_grad():
        value = nn.functional.cross_entropy(model(encode.direct(images, timesteps)).sum(0), labels)
        grads = torch.autograd.grad(value, list(layers.values()), allow_unused=True)
    norms = {name: 0.0 if grad is None else float(grad.norm()) for name, grad in zip(layers, grads)}
    if len(norms) < 2:
        return []
    (first, small), *_, (last, large) = norms.items()
    if small >= VANISHING * large:
        return []
    text = (
        f'the gradient of layer "{first}" is {small:.2g}, that of "{last}" {large:.2g}: the first layers will not learn. Lower the '
        "thresholds (sigma=0.3 to 0.6), or start with more time steps."
    )
    return [Finding(first, "vanishing gradient", text)]


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
    if _leak(neuron) < 0:
        text = f'layer "{name}" has a leak of {_leak(neuron):.3g}; expected 0 to 1. It acts as 0.'
        found.append(Finding(name, "leaks", text))
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
