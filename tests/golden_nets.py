"""The golden layers and the four small networks behind the golden energy figures, of plain torch layers and one neuron."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spiking.trace import EventTrace, record

FOLDER = Path(__file__).parent / "golden" / "energy"
NETS: dict[str, dict[str, Any]] = {net["name"]: net for net in json.loads((FOLDER / "nets.json").read_text())}
ARRAYS = dict(np.load(FOLDER / "nets.npz"))
MICRO: list[dict[str, Any]] = json.loads((FOLDER / "micro.json").read_text())
MICRO_ARRAYS = dict(np.load(FOLDER / "micro.npz"))


def micro_layer(case: dict[str, Any]) -> nn.Module:
    """The layer of a golden case, with its weights."""
    w = torch.tensor(MICRO_ARRAYS[f"{case['name']}.w"]).float()
    kind, c, bias = case["kind"], case["config"], case["bias"]
    if kind == "linear":
        layer: nn.Module = nn.Linear(w.shape[1], w.shape[0], bias=bias)
    else:
        transposed, dims = kind.startswith("convT"), kind[-2:]
        options = {k: tuple(c[k]) for k in ("stride", "padding", "dilation")} | {"groups": c["groups"], "bias": bias}
        if transposed:
            options["output_padding"] = tuple(c["output_padding"])
        factor_in, factor_out = (1, c["groups"]) if transposed else (c["groups"], 1)
        n_in, n_out = (w.shape[0], w.shape[1]) if transposed else (w.shape[1], w.shape[0])
        name = f"{'ConvTranspose' if transposed else 'Conv'}{dims}"
        layer = getattr(nn, name)(n_in * factor_in, n_out * factor_out, tuple(w.shape[2:]), **options)
    with torch.no_grad():
        layer.weight.copy_(w)
        if bias:
            layer.bias.copy_(torch.tensor(MICRO_ARRAYS[f"{case['name']}.b"]))
    return layer


class Neuron(nn.Module):
    """Leaky integrate-and-fire over [T, B, *]: the smallest module that says of itself what it is."""

    def __init__(self, beta: float = 0.75, threshold: float = 1.0, reset: str = "subtract") -> None:
        super().__init__()
        self.beta, self.threshold, self.reset = beta, threshold, reset

    def describe(self) -> dict[str, Any]:
        return {"type": "LIF", "state_vars": 1, "beta": self.beta, "threshold": self.threshold, "reset": self.reset}

    def fire(self, v: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        h = self.beta * v + current
        s = (h >= self.threshold).to(h.dtype)
        return s, (h - self.threshold * s if self.reset == "subtract" else h * (1 - s))

    def forward(self, x: Tensor) -> Tensor:
        v, out = torch.zeros_like(x[0]), []
        for current in x:
            s, v = self.fire(v, current)
            out.append(s)
        return torch.stack(out)


class Recurrent(Neuron):
    """The same neurons with dense recurrent weights, applied to the spikes of the step before."""

    def __init__(self, size: int, **options: Any) -> None:
        super().__init__(**options)
        self.recurrent = nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        s = v = torch.zeros_like(x[0])
        out = []
        for current in x:
            s, v = self.fire(v, current + self.recurrent(s))
            out.append(s)
        return torch.stack(out)


class Frames(nn.Module):
    """A plain layer applied to all steps at once, as [T·B, …]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A golden network with its weights, and its input [T, B, *]."""
    net = NETS[name]
    modules: dict[str, nn.Module] = {}
    for layer in net["layers"]:
        key, kind = layer["name"], layer["kind"]
        if kind == "neuron":
            facts = layer["neuron"]
            options = {k: facts[k] for k in ("beta", "threshold", "reset")}
            modules[key] = Recurrent(layer["n"], **options) if name == "recurrent" else Neuron(**options)
        elif kind in ("linear", "conv2d") and not key.endswith(".recurrent"):
            modules[key] = _weights(layer, ARRAYS[f"{name}/{key}.w"], ARRAYS.get(f"{name}/{key}.b"))
        elif kind == "avgpool":
            modules[key] = Frames(nn.AvgPool2d(layer["k"]))
        elif kind == "maxpool":
            modules[key] = Frames(nn.MaxPool2d(layer["k"]))
    if name == "recurrent":
        with torch.no_grad():
            modules["lif"].recurrent.weight.copy_(torch.tensor(ARRAYS["recurrent/rec.recurrent.w"]))
    if name == "conv":
        modules["flatten"] = nn.Flatten(2)
    x = torch.tensor(ARRAYS[f"{name}/input"]).float()
    return Net(modules, name), x


def _weights(layer: dict[str, Any], w: np.ndarray, b: np.ndarray | None) -> nn.Module:
    if layer["kind"] == "linear":
        module: nn.Module = nn.Linear(w.shape[1], w.shape[0], bias=b is not None)
    else:
        c = layer["config"]
        module = nn.Conv2d(
            w.shape[1] * c["groups"],
            w.shape[0],
            w.shape[2:],
            stride=c["stride"],
            padding=c["padding"],
            groups=c["groups"],
            bias=b is not None,
        )
    with torch.no_grad():
        module.weight.copy_(torch.tensor(w))
        if b is not None:
            module.bias.copy_(torch.tensor(b))
    return module if layer["kind"] == "linear" else Frames(module)


class Net(nn.Module):
    """The layers in order; "residual" adds its input to the first spikes, as SEW-ResNet does."""

    def __init__(self, modules: dict[str, nn.Module], name: str) -> None:
        super().__init__()
        self.names = {key.replace(".", "_"): key for key in modules}
        self.kind = name
        for key, module in modules.items():
            self.add_module(key.replace(".", "_"), module)
        order = [layer["name"].replace(".", "_") for layer in NETS[name]["layers"]]
        if name == "conv":
            order.insert(order.index("fc"), "flatten")
        self.order = [key for key in order if key in self.names]

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for key in self.order:
            y = getattr(self, key)(y)
            if self.kind == "residual" and key == "lif0":
                y = y + x
        return y


def golden_name(name: str) -> str:
    """The name that the golden file uses for a row of the recorded network."""
    name = name.removesuffix(".layer")
    return {"rec_input": "rec.input", "lif.recurrent": "rec.recurrent", "lif0+(input)": "add"}.get(name, name)


def recorded(name: str) -> EventTrace:
    """The trace of a golden network, its rows under the names of the golden file."""
    model, x = build(name)
    with record(model) as trace, torch.no_grad():
        model(x)
    for row in trace.layers:
        row.name = golden_name(row.name)
        row.operand_of = tuple(golden_name(source) for source in row.operand_of)
    return trace
