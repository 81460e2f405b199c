"""Checkpoints of the authors' code: tensors by name, read without running anything that a file may hold."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import torch
from torch import Tensor

from spiking.errors import SpikingError
from spiking.models.spikegpt.config import SpikeGPTConfig

__all__ = ["config_of", "read_weights"]

_WRAPPERS = ("module.", "_forward_module.", "_orig_mod.")
# Buffers of neurons, and the query head that the authors' code builds with a width of 0.
_UNUSED = re.compile(r"(^|\.)(copy_mask|head_q\.weight|head_k\.weight|lif\d?\..*|atan\..*|surrogate_function\..*)$")


def read_weights(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Tensors of a checkpoint by their names here.

    Names are those of the authors' code; what a data-parallel wrapper puts before them is left out. Nothing but tensors is unpickled.
    Errors: SpikingError if there is no such file, or it holds anything else.
    """
    where = fspath(path)
    try:
        found: Any = torch.load(where, map_location="cpu", weights_only=True)
    except OSError as err:
        raise SpikingError(f"{where}: cannot be read: {err.strerror or err}.") from err
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as err:
        raise SpikingError(
            f"{where}: holds more than tensors, or is cut; expected a state_dict saved by torch.save. "
            "Nothing in it was run; save the state_dict alone where you trust the file."
        ) from err
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise SpikingError(f"{where}: got {type(found).__name__}; expected a state_dict, names and tensors.")
    weights = {}
    for name, tensor in found.items():
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        if not _UNUSED.search(name):
            weights[name] = tensor
    return weights


def config_of(weights: Mapping[str, Tensor], where: str, **changes: Any) -> SpikeGPTConfig:
    """The network that the shapes of these weights belong to, as published; `changes` says what shapes cannot, as `ctx_len`."""
    shapes = {name: tuple(weights[name].shape) for name in ("emb.weight", "head.weight") if name in weights}
    if set(shapes) != {"emb.weight", "head.weight"} or len(set(shapes.values())) > 1 or len(shapes["emb.weight"]) != 2:
        raise SpikingError(
            f"{where}: got emb.weight and head.weight of shapes {list(shapes.values())}; expected [vocabulary, width] twice. "
            "Is this a SpikeGPT checkpoint?"
        )
    vocabulary, width = shapes["emb.weight"]
    blocks = {int(match[1]) for match in (re.match(r"blocks\.(\d+)\.", name) for name in weights) if match}
    if blocks != set(range(len(blocks))) or not blocks:
        raise SpikingError(f"{where}: got blocks {sorted(blocks)}; expected 0, 1, 2, … without a gap.")
    known = {
        "vocab_size": vocabulary,
        "n_embd": width,
        "n_layer": len(blocks),
        "ctx_len": 1024,
        "ffn_pre": "blocks.0.ffnPre.key.weight" in weights,
        "init": "published",
    }
    return SpikeGPTConfig(**{**known, **changes})
