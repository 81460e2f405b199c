"""Which modules of a model a recorder watches, and what they say about themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

from torch import Tensor, nn

from spiking import _counters as counters
from spiking import _peers as peers

Kind: TypeAlias = Literal["weights", "neuron", "pool", "norm"]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OTHER_NORMS = tuple(
    kind
    for kind in (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, getattr(nn, "RMSNorm", None))
    if kind is not None
)
_CHAINS = ("spiking.layer.Sequential", "torch.nn.modules.container.Sequential")
_HARMLESS = (*_CHAINS, "spiking.layer.Flatten", "spiking.layer.Dropout", "torch.nn.modules.flatten.Flatten",
             "torch.nn.modules.linear.Identity", "torch.nn.modules.dropout.Dropout")  # fmt: skip


def watched(model: nn.Module) -> list[tuple[str, nn.Module, Kind]]:
    """The modules to watch: nothing inside a watched module is watched again, so that nothing counts twice."""
    found: list[tuple[str, nn.Module, Kind]] = []
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        kind = _kind(module)
        if kind is not None:
            found.append((name, module, kind))
            inside += (f"{name}." if name else "",)
    return found


def listened(model: nn.Module, layers: Iterable[nn.Module]) -> dict[nn.Module, bool]:
    """Modules whose start and end matter to who listens for operations, with whether there can be any in them.

    A `Sequential` only passes tensors on; modules in it that are not watched may do anything, unless they are known not to.
    """
    inside = {part for watched_layer in layers for part in watched_layer.modules()}
    found: dict[nn.Module, bool] = {}
    for module in model.modules():
        if module in inside or _class_of(module) not in _CHAINS:
            continue
        found[module] = False
        for part in module.children():
            if part not in inside and _class_of(part) not in _HARMLESS:
                found[part] = True
    return found


def in_quiet(model: nn.Module, listens: dict[nn.Module, bool]) -> set[nn.Module]:
    """Modules of the model that run only where nobody listens for operations, so that it need not be switched off for them."""
    parents = [(module, listens.get(module, True)) for module in model.modules()]
    loud = {part for module, heard in parents if heard for part in module.children()}
    return {part for module, heard in parents if not heard for part in module.children()} - loud


def _class_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _kind(module: nn.Module) -> Kind | None:
    if counters.layer_kind(module) is not None:
        return "weights"
    if is_neuron(module) or peers.is_neuron(module):
        return "neuron"
    if pool_dims(module):
        return "pool"
    if isinstance(module, BATCH_NORMS + _OTHER_NORMS) or re.search(
        r"(Batch|Layer|Group|RMS)Norm", type(module).__name__
    ):
        return "norm"
    return None


def is_neuron(module: nn.Module) -> bool:
    """True for a spiking neuron, which says so itself through `describe()`, and for a recurrent layer of such."""
    if recurrent_weights(module) is not None and isinstance(getattr(module, "neuron", None), nn.Module):
        return True
    says: Any = getattr(module, "describe", None)
    return callable(says) and "state_vars" in says()


def recurrent_weights(module: nn.Module) -> nn.Linear | None:
    """The weights that carry a layer's own spikes of the step before, if it has any."""
    found = getattr(module, "recurrent", None)
    return found if isinstance(found, nn.Linear) else None


def describe(layer: Any) -> dict[str, Any]:
    """What a neuron says about itself, in plain numbers and strings."""
    return {key: plain(value) for key, value in layer.describe().items()}


def plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().item() if value.numel() == 1 else value.detach().float().mean().item()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def pool_dims(module: nn.Module) -> int:
    """Spatial axes of a pooling layer; 0 if the module is none."""
    found = re.search(r"(Avg|Max)Pool([123])d$", type(module).__name__)
    return int(found[2]) if found else 0
