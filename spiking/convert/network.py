"""Spiking networks for images: a body of layers, read out by its output current.

`SpikingNet` is what conversions and the image models of this library have in common. Its body is a `Sequential` where
the layers form a chain, and a `Wired` where they branch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spiking import encode
from spiking.engine import Readout
from spiking.errors import SpikingError
from spiking.layer import Sequential, _is_watched

__all__ = ["SpikingNet", "Wired"]

INPUT = ""  # the name under which a Wired knows its own input


class Wired(nn.Module):
    """Layers that branch and join: each takes the sum of what earlier ones gave; the last one's output is the result.

    `inputs[name]` says whose outputs a layer takes, "" being the network's own input. States as in `Sequential`: a tuple
    with one entry a layer, None for layers that have none; at once, in chunks and step by step give the same output.

    Shapes: x [T, B, …] -> [T, B, …].
    Errors: SpikingError for an input that no earlier layer makes, or a state with another number of entries; errors of a
    layer are re-raised with its name.

    >>> net = Wired({"a": nn.Linear(3, 3), "b": nn.Identity()}, {"a": ("",), "b": ("a", "")})
    >>> x = torch.rand(5, 1, 3)
    >>> torch.equal(net(x), net.a(x) + x)
    True
    """

    def __init__(self, layers: Mapping[str, nn.Module], inputs: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.inputs = {name: tuple(inputs[name]) for name in layers}
        known = {INPUT}
        for name, layer in layers.items():
            for source in self.inputs[name] or ("nothing",):
                if source not in known:
                    raise SpikingError(
                        f'Wired: layer "{name}": got input from "{source}"; expected "" or an earlier layer.'
                    )
            self.add_module(name, layer)
            known.add(name)
        last_use = {source: name for name in layers for source in self.inputs[name]}
        self._done_with = {
            name: [source for source, last in last_use.items() if last == name] for name in layers
        }  # what is let go after a layer

    def forward(self, x: Tensor, state: tuple[Any, ...] | None = None, return_state: bool = False) -> Any:
        layers = dict(self.named_children())
        if state is not None and len(state) != len(layers):
            raise SpikingError(
                f"Wired.state: got {len(state)} entries; expected {len(layers)}, one a layer. Pass on what the last call returned."
            )
        values = {INPUT: x}
        after: list[Any] = []
        y = x
        for (name, layer), before in zip(layers.items(), state or (None,) * len(layers)):
            first, *more = (values[source] for source in self.inputs[name])
            for other in more:
                first = first + other
            new = None
            try:
                if hasattr(layer, "step") and (return_state or before is not None):
                    y, new = layer(first, state=before, return_state=True)
                else:
                    y = layer(first)
            except SpikingError as err:
                raise SpikingError(f'layer "{name}": {err}') from err
            values[name] = y
            after.append(new)
            for source in self._done_with[name]:
                del values[source]
        return (y, tuple(after)) if return_state else y

    def step(self, x_t: Tensor, state: tuple[Any, ...] | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        y, after = self(x_t.unsqueeze(0), state=state, return_state=True)
        return y.squeeze(0), after

    def first_branch(self) -> str:
        """The first layer that does not take what the one before it gives, in words."""
        before = INPUT
        for name, sources in self.inputs.items():
            if sources != (before,):
                given = " and ".join(f'"{source}"' if source else "the input" for source in sources)
                return f'layer "{name}" takes what {given} give{"s" * (len(sources) == 1)}'
            before = name
        return "its layers are a chain"


class SpikingNet(nn.Module, ABC):
    """A spiking classifier of images: input [T, B, C, H, W], output currents [T, B, classes]. Not to be built itself.

    The last layer has weights and no neuron; what decides is the sum of its currents over time. An input that is the
    same at every step (`encode.direct`) passes the first layer once.
    """

    body: Sequential | Wired

    @property
    @abstractmethod
    def timesteps(self) -> int:
        """For how many time steps the network is meant."""

    def forward(self, x: Tensor, state: tuple[Any, ...] | None = None, return_state: bool = False) -> Any:
        if state is None and not return_state and x.dim() > 2 and x.shape[0] > 1 and x.stride(0) == 0:
            found = self._with_one_first_pass(x)
            if found is not None:
                return found
        return self.body(x, state=state, return_state=return_state)

    def step(self, x_t: Tensor, state: tuple[Any, ...] | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        """One time step: x_t [B, C, H, W] and the state before -> currents [B, classes] and the state after."""
        return self.body.step(x_t, state)

    def scores(self, images: Tensor, timesteps: int | None = None) -> Tensor:
        """What decides, [B, classes]: the mean output current over the time steps; images [B, C, H, W]."""
        return self(encode.direct(images, self.timesteps if timesteps is None else timesteps)).mean(0)

    def event_chain(self) -> tuple[list[nn.Module], Readout]:
        """The layers in order and what decides, for `spiking.compile_events`.

        Errors: SpikingError where the layers branch.
        """
        if isinstance(self.body, Wired):
            raise SpikingError(
                f"{type(self).__name__}: {self.body.first_branch()}; expected a chain. Only chains are compiled: run the network as "
                "it is."
            )
        return [self.body], Readout("rate")

    def _with_one_first_pass(self, x: Tensor) -> Tensor | None:
        """The output for an input that is the same at every step; None where the first layer has to see each of them."""
        (name, first), *rest = self.body.named_children()
        weights = isinstance(self.body, Sequential) and isinstance(first, (nn.Conv2d, nn.Linear)) and rest
        if not weights or _is_watched(first) or torch.compiler.is_compiling():
            return None
        try:
            current = first(x[:1])
        except SpikingError as err:
            raise SpikingError(f'layer "{name}": {err}') from err
        return Sequential(OrderedDict(rest))(current.expand(x.shape[0], *current.shape[1:]))
