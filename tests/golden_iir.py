"""The golden networks of IIR-SNN (tests/golden/iir_snn) as torch layers."""

import json
from typing import Any

import numpy as np
import torch
from torch import nn

import spiking


def golden_ann(golden: Any, name: str) -> tuple[nn.Sequential, dict[str, np.ndarray]]:
    """The golden network as torch layers, and its arrays."""
    with np.load(golden / f"iir_snn/{name}.npz") as file:
        g = {key: file[key] for key in file.files}
    weights = [key for key in g if key.startswith("w/") and key.endswith("weight")]
    layers: list[nn.Module] = []
    convolutions = iter(key for key in weights if "features" in key)
    for entry in json.loads(str(g["cfg"])):
        layers += [nn.AvgPool2d(2)] if entry == "A" else [weighted(g, next(convolutions)), nn.ReLU()]
    layers.append(nn.Flatten())
    for key in weights:
        layers += [weighted(g, key), nn.ReLU()] if "classifier" in key else []
    return nn.Sequential(*layers[:-1]), g


def weighted(g: dict[str, np.ndarray], key: str) -> nn.Module:
    weight, bias = torch.tensor(g[key]), g.get(key.replace("weight", "bias"))
    made: nn.Module
    if weight.dim() == 4:
        made = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=bias is not None)
    else:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    state = {"weight": weight} if bias is None else {"weight": weight, "bias": torch.tensor(bias)}
    made.load_state_dict(state)
    return made


def neurons(net: nn.Module) -> list[Any]:
    return [module for module in net.modules() if isinstance(module, spiking.Neuron)]
