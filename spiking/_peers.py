"""Neurons of other libraries, by name: what one update costs and what it keeps, so that a run of theirs can be recorded.

Nothing is imported from them: a module is known by the package and the name of its class or of a class that it extends.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from spiking.errors import SpikingError

# (package, class): words of state, multiplications and additions of one update. Every one compares once with its threshold.
_NEURONS: dict[tuple[str, str], tuple[int, int, int]] = {
    ("snntorch", "Leaky"): (1, 1, 1),
    ("snntorch", "Lapicque"): (1, 2, 1),
    ("snntorch", "Synaptic"): (2, 2, 2),
    ("snntorch", "Alpha"): (3, 3, 3),
    ("spikingjelly", "SimpleIFNode"): (1, 0, 1),
    ("spikingjelly", "IFNode"): (1, 0, 1),
    ("spikingjelly", "SimpleLIFNode"): (1, 1, 2),
    ("spikingjelly", "LIFNode"): (1, 1, 2),
    ("spikingjelly", "ParametricLIFNode"): (1, 1, 2),
    ("spikingjelly", "CUBALIFNode"): (2, 2, 2),
    ("spikingjelly", "NonSpikingIFNode"): (1, 0, 1),
    ("spikingjelly", "NonSpikingLIFNode"): (1, 1, 2),
    ("norse", "LIF"): (2, 2, 4),
    ("norse", "LIFCell"): (2, 2, 4),
    ("norse", "LIFBoxCell"): (1, 1, 3),
    ("norse", "IAF"): (1, 0, 1),
    ("norse", "IAFCell"): (1, 0, 1),
    ("norse", "LI"): (2, 2, 4),
    ("norse", "LICell"): (2, 2, 4),
    ("norse", "LIBoxCell"): (1, 1, 3),
    ("sinabs", "LIF"): (1, 2, 1),
    ("sinabs", "IAF"): (1, 0, 1),
    ("sinabs", "ExpLeak"): (1, 2, 1),
}
_HOMES = ("snntorch._neurons", "spikingjelly.activation_based.neuron", "norse.torch.module", "sinabs.layers")
_BASES = {
    ("snntorch", "SpikingNeuron"),
    ("spikingjelly", "BaseNode"),
    ("spikingjelly", "SimpleBaseNode"),
    ("spikingjelly", "NonSpikingBaseNode"),
    ("norse", "SNNCell"),
    ("norse", "SNNRecurrentCell"),
    ("norse", "SNN"),
    ("norse", "SNNRecurrent"),
    ("sinabs", "StatefulLayer"),
}


def _names(module: nn.Module) -> list[tuple[str, str]]:
    """(package, class) of the module's classes that lie where the libraries keep their neurons."""
    return [
        (cls.__module__.partition(".")[0], cls.__name__)
        for cls in type(module).__mro__
        if cls.__module__.startswith(_HOMES)
    ]


def is_neuron(module: nn.Module) -> bool:
    """True for a spiking neuron of another library."""
    return any(name in _BASES for name in _names(module))


def batch_first(module: nn.Module) -> bool:
    """True for a neuron that takes [B, T, *]."""
    return ("sinabs", "StatefulLayer") in _names(module)


def describe(name: str, layer: Any) -> dict[str, Any]:
    """Type, state, reset and arithmetic of one update of a neuron, as our own `describe()` states them.

    Errors: SpikingError naming the layer, if its weights or its arithmetic are not known.
    """
    names = _names(layer)
    kind = f"{names[0][0]}.{names[0][1]}"
    found = next((_NEURONS[n] for n in names if n in _NEURONS), None)
    if found is None or any(own in names[0][1] for own in ("Recurrent", "RLeaky", "RSynaptic")):
        known = ", ".join(n for package, n in _NEURONS if package == names[0][0])
        raise SpikingError(
            f"record: layer {name}: got a neuron {kind}, whose weights or arithmetic are not known here; expected one of "
            f"{known}. Convert the model with from_peer, or use one of these."
        )
    words, mul, add = found
    words += getattr(layer, "tau_syn", None) is not None
    reset = _reset(layer)
    operations = {"mul": mul, "add": add, "cmp": 1, "reset_add": int(reset == "subtract")}
    return {"type": kind, "state_vars": words, "reset": reset, "ops": operations}


def _reset(layer: Any) -> str:
    if hasattr(layer, "reset_mechanism"):
        return str(layer.reset_mechanism)
    if hasattr(layer, "reset_fn"):
        return "subtract" if "Subtract" in type(layer.reset_fn).__name__ else "zero"
    if hasattr(layer, "v_reset"):
        return "subtract" if layer.v_reset is None else "zero"
    return "zero"
