"""Where neurons lie on a many-core chip: who connects to whom, which core holds whom, what does not fit.

A weight layer connects inputs to outputs along each axis independently: a convolution's connections are the product of a
channel matrix with one small matrix per spatial axis. From these, the connections of each input element into any range of
outputs follow exactly, without the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from spiking.hw_models.hardware import Hardware

from spiking.errors import SpikingError
from spiking.trace import EventTrace, LayerTrace


class Connectivity:
    """Connections of one weight layer between flat input and flat output elements (C order), from its shapes.

    >>> import torch, spiking
    >>> conv = torch.nn.Conv2d(1, 2, 3, padding=1)
    >>> with spiking.record(conv) as trace:
    ...     _ = conv(torch.ones(1, 1, 4, 4))
    >>> Connectivity(trace.layers[0]).reach(0, 16).reshape(4, 4)[0].tolist()     # into the first channel's 16 outputs
    [4, 6, 6, 4]
    """

    def __init__(self, row: LayerTrace) -> None:
        self.row = row
        self.linear = row.kind == "linear"
        self.n_out, self.n_in = row.n_outputs, row.n_inputs
        if self.linear:
            self.lead = math.prod(row.out_shape[:-1])
            return
        c = row.config
        dims = len(row.in_shape) - 1
        self.transposed = row.kind.startswith("convtranspose")
        self.groups = int(c.get("groups", 1))
        kernel = row.weight_shape[2:]
        dilation = axis_values(c.get("dilation", 1), dims)
        stride = axis_values(c.get("stride", 1), dims)
        padding = padding_values(c.get("padding", 0), kernel, dilation)
        wraps = c.get("padding_mode", "zeros") == "circular"
        self.axes = [
            _axis(row.in_shape[1 + d], row.out_shape[1 + d], kernel[d], stride[d], padding[d], dilation[d],
                  self.transposed, wraps)
            for d in range(dims)
        ]  # fmt: skip
        if row.fan_out.size and not np.array_equal(self.reach(0, self.n_out), row.fan_out):
            raise SpikingError(
                f"layer {row.name}: its connections cannot be rebuilt from its settings {c}; expected a linear or "
                "convolutional layer with zero or circular padding."
            )

    def reach(self, start: int, stop: int) -> np.ndarray:
        """Connections of each input element into the outputs start…stop-1, int64 [n_in]."""
        if self.linear:
            return self._reach_linear(start, stop)
        channels = self.row.out_shape[0]
        plane = self.n_out // channels
        c_in = self.row.in_shape[0]
        per_group, in_group = channels // self.groups, c_in // self.groups
        found = np.zeros((c_in, self.n_in // c_in), np.int64)
        first, last = start // plane, (stop - 1) // plane
        parts: list[tuple[int, int, int, int]] = []  # channels first…last-1, positions a…b-1 of each
        if first == last:
            parts.append((first, first + 1, start - first * plane, stop - first * plane))
        else:
            whole = first if start == first * plane else first + 1
            end = last + 1 if stop == (last + 1) * plane else last
            if whole > first:
                parts.append((first, first + 1, start - first * plane, plane))
            if end > whole:
                parts.append((whole, end, 0, plane))
            if end <= last:
                parts.append((last, last + 1, 0, stop - last * plane))
        for c0, c1, a, b in parts:
            mask = np.zeros(plane, np.int64)
            mask[a:b] = 1
            spread = self._adjoint(mask)
            for g in range(c0 // per_group, (c1 - 1) // per_group + 1):
                covered = min(c1, (g + 1) * per_group) - max(c0, g * per_group)
                found[g * in_group : (g + 1) * in_group] += covered * spread
        return found.reshape(-1)

    def _reach_linear(self, start: int, stop: int) -> np.ndarray:
        width, features = self.row.out_shape[-1], self.row.in_shape[-1]
        at = np.arange(self.lead)
        covered = np.clip(stop - at * width, 0, width) - np.clip(start - at * width, 0, width)
        return np.repeat(covered, features).astype(np.int64)

    def _adjoint(self, mask: np.ndarray) -> np.ndarray:
        """Connections of each position of the input plane into the marked positions of the output plane."""
        values = mask.reshape([m.shape[0] for m in self.axes])
        for d, matrix in enumerate(self.axes):
            values = np.moveaxis(np.tensordot(matrix, values, axes=(0, d)), 0, d)
        return values.reshape(-1)

    def inputs(self, start: int, stop: int) -> int:
        """Distinct input elements that reach the outputs start…stop-1."""
        return int(np.count_nonzero(self.reach(start, stop)))


def axis_values(value: Any, dims: int) -> list[int]:
    """A layer's setting as one value per spatial axis."""
    return [int(v) for v in value] if isinstance(value, tuple | list) else [int(value)] * dims


def padding_values(value: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """A layer's padding before each spatial axis, "same" and "valid" included."""
    if value == "same":
        return [d * (k - 1) // 2 for k, d in zip(kernel, dilation)]
    return [0] * len(kernel) if value == "valid" else axis_values(value, len(kernel))


def _axis(
    n_in: int, n_out: int, kernel: int, stride: int, padding: int, dilation: int, transposed: bool, wraps: bool
) -> np.ndarray:
    """Connections along one axis, int64 [n_out, n_in]."""
    found = np.zeros((n_out, n_in), np.int64)
    for k in range(kernel):
        a = np.arange(n_in if transposed else n_out)
        b = a * stride - padding + k * dilation
        limit = n_out if transposed else n_in
        if wraps and not transposed:
            b = b % limit
        inside = (b >= 0) & (b < limit)
        pairs = (b[inside], a[inside]) if transposed else (a[inside], b[inside])
        np.add.at(found, pairs, 1)
    return found


class Core(NamedTuple):
    """A range of one layer's neurons on one core."""

    core: int
    start: int
    stop: int


@dataclass(frozen=True)
class Mesh:
    """Tiles in columns, each with its cores: tile id → (id div height, id mod height); core id = tile·cores + offset."""

    width: int
    height: int
    cores_per_tile: int

    @property
    def cores(self) -> int:
        """Cores of one chip."""
        return self.width * self.height * self.cores_per_tile

    def tile(self, core: int) -> tuple[int, int]:
        """(x, y) of a core's tile; cores beyond one chip lie on further chips to the right."""
        return divmod(core // self.cores_per_tile, self.height)

    def hops(self, a: int, b: int) -> tuple[int, int]:
        """(east-west, north-south) hops between the tiles of two cores, first along x, then along y."""
        (xa, ya), (xb, yb) = self.tile(a), self.tile(b)
        return abs(xa - xb), abs(ya - yb)

    def links(self, a: int, b: int) -> list[tuple[int, int, int, int]]:
        """Links on the way from core a to core b: (x, y) of the tile that is left and of the next, first along x."""
        (x, y), (xb, yb) = self.tile(a), self.tile(b)
        tiles = [(i, y) for i in range(x, xb, 1 if xb > x else -1)]
        tiles += [(xb, j) for j in range(y, yb, 1 if yb > y else -1)]
        return [(*here, *there) for here, there in zip(tiles, [*tiles[1:], (xb, yb)])]


@dataclass
class Projection:
    """Spikes of one source population into the cores of one target population.

    `reach` [cores of the target, source elements]: connections of a source element into a core; where it is not zero, the
    source sends one packet per spike to that core. `source_core` [source elements] is where each of them lies.
    """

    name: str
    row: LayerTrace
    target: str
    cores: list[int]
    reach: np.ndarray
    source_core: np.ndarray


@dataclass
class Placement:
    """Cores of each population, in the order of their ids; `synapse_bits` of each core and its distinct inputs."""

    mesh: Mesh
    chips: int
    populations: dict[str, list[Core]]
    inputs: list[str]
    projections: list[Projection] = field(default_factory=list, repr=False)
    synapse_bits: dict[int, int] = field(default_factory=dict, repr=False)
    axons_in: dict[int, int] = field(default_factory=dict, repr=False)

    @property
    def n_cores(self) -> int:
        """Cores in use."""
        return sum(len(cores) for cores in self.populations.values())

    @property
    def n_tiles(self) -> int:
        """Tiles in use."""
        return len({self.mesh.tile(c.core) for cores in self.populations.values() for c in cores})

    def utilisation(self) -> dict[str, float]:
        """Neurons over neuron slots of the cores of each population, 0…1."""
        most = max((c.stop - c.start for cores in self.populations.values() for c in cores), default=1)
        return {
            name: sum(c.stop - c.start for c in cores) / (len(cores) * most) if cores else 0.0
            for name, cores in self.populations.items()
        }

    def draw(self) -> Any:
        """A matplotlib figure of the chip: one square per core, coloured by the population that it holds."""
        from matplotlib import colormaps
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        mesh, side = self.mesh, math.ceil(math.sqrt(self.mesh.cores_per_tile))
        width = mesh.width * self.chips
        figure = Figure(figsize=(1.2 + 0.7 * width, 1.2 + 0.7 * mesh.height), layout="constrained")
        ax = figure.add_subplot()
        for x in range(width):
            for y in range(mesh.height):
                ax.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor="0.75", linewidth=0.8))
        colours = colormaps["tab10"]
        for i, (name, cores) in enumerate(self.populations.items()):
            for j, core in enumerate(cores):
                x, y = mesh.tile(core.core)
                row, column = divmod(core.core % mesh.cores_per_tile, side)
                cell = 0.84 / side
                place = (x - 0.42 + column * cell, y - 0.42 + row * cell)
                label = name if j == 0 else None
                ax.add_patch(Rectangle(place, 0.9 * cell, 0.9 * cell, color=colours(i % 10), label=label))
        ax.set(
            xlim=(-0.6, width - 0.4), ylim=(mesh.height - 0.4, -0.6), aspect="equal", xlabel="tile x", ylabel="tile y"
        )
        legend = ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for text in legend.get_texts():
            text.set_parse_math(False)  # a layer may be called "$\frac$"
        return figure


@dataclass(frozen=True)
class Limits:
    """What one core holds."""

    neurons: int
    axons_in: int
    axons_out: int
    synapse_bits: int
    weight_bits: int


def limits(chip: Hardware, precision_bits: int) -> Limits:
    """The limits of a chip's cores; no limit where the hardware file states none."""
    none = 2**62
    return Limits(
        neurons=int(chip.get("max_neurons")) or none,
        axons_in=int(chip.get("max_axons_in")) or none,
        axons_out=int(chip.get("max_axons_out")) or none,
        synapse_bits=int(chip.get("synapse_memory")) or none,
        weight_bits=min(precision_bits, int(chip.get("weight_bits")) or precision_bits),
    )


def mesh_of(chip: Hardware) -> Mesh:
    """The chip's mesh of tiles."""
    return Mesh(*(int(chip[name].value) for name in ("tiles_x", "tiles_y", "cores_per_tile")))


def place(
    trace: EventTrace,
    chip: Hardware,
    *,
    chips: int = 1,
    weight_sharing: bool = False,
    weight_bits: int = 8,
) -> Placement:
    """Place a network on a many-core chip: layer after layer, neurons in C order, a new core where a limit is met.

    Populations are the input of each layer that reads it, the neuron rows, and the outputs of weight layers that end
    without neurons. A core belongs to one population. Limits: neurons, distinct inputs, (source neuron, target core)
    pairs, and bits of synapses per core; `weight_sharing` stores a convolution's kernel once per core.
    Errors: SpikingError saying by how much the network does not fit on `chips` chips, or which neuron alone breaks a limit.

    >>> import torch, spiking
    >>> from spiking import hw_models
    >>> net = torch.nn.Sequential(torch.nn.Linear(300, 2000), spiking.LIF(), torch.nn.Linear(2000, 10))
    >>> with spiking.record(net) as trace:
    ...     _ = net(torch.ones(1, 1, 300))
    >>> found = hw_models.place(trace, hw_models.load("loihi"))
    >>> {name: len(cores) for name, cores in found.populations.items()}       # 2000 · 300 weights of 8 bit: 5 cores
    {'(input)': 1, '1': 5, '2': 1}
    """
    mesh = mesh_of(chip)
    allowed = limits(chip, weight_bits)
    graph = Graph(trace)
    parts = _split(graph, allowed, weight_sharing)
    needed = sum(len(p) for p in parts.values())
    if needed > mesh.cores * chips:
        short = needed - mesh.cores * chips
        raise SpikingError(
            f"place: the network needs {needed} cores and {chip.name} has {mesh.cores * chips} "
            f"({chips} chip{'s' * (chips != 1)}): {short} short ({short / needed:.0%}). Pass chips="
            f"{math.ceil(needed / mesh.cores)}, or use a smaller network."
        )
    populations, core = {}, 0
    for name, ranges in parts.items():
        populations[name] = [Core(core + i, a, b) for i, (a, b) in enumerate(ranges)]
        core += len(ranges)
    found = Placement(mesh, math.ceil(core / mesh.cores) or 1, populations, list(graph.inputs))
    for source, target, row, links in graph.projections():
        found.projections.append(_projection(source, target, row, links, populations, graph))
    for projection in found.projections:
        for core_id, reach in zip(projection.cores, projection.reach):
            bits = _synapse_bits(int(reach.sum()), projection.row, allowed.weight_bits, weight_sharing)
            found.synapse_bits[core_id] = found.synapse_bits.get(core_id, 0) + bits
            found.axons_in[core_id] = found.axons_in.get(core_id, 0) + int(np.count_nonzero(reach))
    return found


def _synapse_bits(connections: int, row: LayerTrace, bits: int, sharing: bool) -> int:
    if sharing and row.kind != "linear":
        return min(connections, math.prod(row.weight_shape)) * bits
    return connections * bits


class Graph:
    """Populations of a trace, and the weight layers between them; pooling and norms between two are looked through."""

    def __init__(self, trace: EventTrace) -> None:
        self.trace = trace
        self.rows = {row.name: row for row in trace.layers}
        self.sizes: dict[str, int] = {}
        self.inputs: dict[str, LayerTrace] = {}
        self.links: list[tuple[str, str, LayerTrace, Connectivity]] = []
        read: dict[str, list[LayerTrace]] = {}
        for row in trace.layers:
            for source in row.operand_of:
                read.setdefault(source, []).append(row)
        targets = {row.name: self._target(row, read) for row in trace.layers if row.is_weight_layer}
        sources = {name: self._source(self.rows[name]) for name in targets}
        for name, source in sources.items():
            if source not in self.rows and self.rows[name].operand_class != "analogue":
                self.inputs.setdefault(source, self.rows[name])
        for source, row in self.inputs.items():
            self.sizes[source] = row.n_inputs
        for row in trace.layers:
            if row.kind == "neuron" or (row.is_weight_layer and targets[row.name] == row.name):
                self.sizes[row.name] = row.n_outputs
        for name, target in targets.items():
            if self.rows[name].operand_class != "analogue":
                self.links.append((sources[name], target, self.rows[name], Connectivity(self.rows[name])))

    def _source(self, row: LayerTrace) -> str:
        """The neuron row behind a weight layer's operand, or a name of its own for an input that no row made."""
        if row.config.get("recurrent"):
            return row.name.removesuffix(".recurrent")
        seen = row
        while seen.operand_of:
            before = self.rows.get(seen.operand_of[0])
            if before is None:
                return seen.operand_of[0]
            if before.kind == "neuron":
                return before.name
            if before.is_weight_layer:
                break
            seen = before
        return f"({row.name} input)"

    def _target(self, row: LayerTrace, read: dict[str, list[LayerTrace]]) -> str:
        """The neuron row that integrates a weight layer's output, or the layer itself."""
        if row.config.get("recurrent"):
            return row.name.removesuffix(".recurrent")
        seen = [row]
        while seen:
            current = seen.pop()
            for reader in read.get(current.name, []):
                if reader.kind == "neuron":
                    return reader.name
                if not reader.is_weight_layer:
                    seen.append(reader)
        return row.name

    def incoming(self, name: str) -> list[tuple[LayerTrace, Connectivity]]:
        """Weight layers into a population."""
        return [(row, c) for _, target, row, c in self.links if target == name and self._fits(row, name)]

    def _fits(self, row: LayerTrace, target: str) -> bool:
        return row.n_outputs == self.sizes[target]

    def projections(self) -> Iterator[tuple[str, str, LayerTrace, list[tuple[LayerTrace, Connectivity]]]]:
        """(source, target, first row, rows) of each pair of populations; layers that share both share their packets."""
        pairs: dict[tuple[str, str, int], list[tuple[LayerTrace, Connectivity]]] = {}
        for source, target, row, c in self.links:
            pairs.setdefault((source, target, row.n_inputs), []).append((row, c))
        for (source, target, _), rows in pairs.items():
            yield source, target, rows[0][0], rows

    def pooled(self, row: LayerTrace, c: Connectivity, target: str) -> Callable[[int, int], np.ndarray]:
        """Connections of each source element into the target's neurons start…stop-1."""
        if self._fits(row, target):
            return c.reach
        scale = row.n_outputs / self.sizes[target]  # the outputs are pooled before their neurons: by equal shares
        return lambda a, b: c.reach(int(a * scale), max(int(b * scale), int(a * scale) + 1))


def _split(graph: Graph, allowed: Limits, sharing: bool) -> dict[str, list[tuple[int, int]]]:
    """Ranges of neurons per core of each population; from the last to the first, since fan-out needs the targets."""
    parts: dict[str, list[tuple[int, int]]] = {}
    for name in reversed(list(graph.sizes)):
        size = graph.sizes[name]
        incoming = [(row, graph.pooled(row, c, name)) for _, target, row, c in graph.links if target == name]
        outgoing = _out_edges(graph, name, parts)

        def fits(a: int, b: int, incoming: Any = incoming, outgoing: Any = outgoing) -> bool:
            if b - a > allowed.neurons:
                return False
            axons = bits = 0
            for row, reach in incoming:
                reached = reach(a, b)
                axons += int(np.count_nonzero(reached))
                bits += _synapse_bits(int(reached.sum()), row, allowed.weight_bits, sharing)
            return (
                axons <= allowed.axons_in
                and bits <= allowed.synapse_bits
                and int(outgoing[a:b].sum()) <= allowed.axons_out
            )

        ranges, start = [], 0
        while start < size:
            low, high = start, min(size, start + allowed.neurons)
            if fits(start, high):
                low = high
            else:
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (middle, high) if fits(start, middle) else (low, middle)
            if low == start:
                raise SpikingError(_one_neuron(name, start, incoming, int(outgoing[start]), allowed, sharing))
            ranges.append((start, low))
            start = low
        parts[name] = ranges
    return {name: parts[name] for name in graph.sizes}


def _out_edges(graph: Graph, name: str, parts: dict[str, list[tuple[int, int]]]) -> np.ndarray:
    """Target cores of each element of a population, as far as they are placed."""
    edges = np.zeros(graph.sizes[name], np.int64)
    for source, target, row, rows in graph.projections():
        if source != name or target not in parts or target == name:
            continue
        reached = np.zeros(row.n_inputs, np.int64)
        for a, b in parts[target]:
            reached += reduce(np.logical_or, [graph.pooled(r, c, target)(a, b) > 0 for r, c in rows])
        edges += _by_source(reached, graph.sizes[name])
    return edges


def _by_source(values: np.ndarray, size: int) -> np.ndarray:
    """Values per operand element as values per source element; pooled elements count for their first neuron."""
    if len(values) == size:
        return values
    found = np.zeros(size, values.dtype)
    np.add.at(found, np.arange(len(values)) * size // len(values), values)
    return found


def _one_neuron(
    name: str, at: int, incoming: Sequence[tuple[LayerTrace, Any]], edges: int, allowed: Limits, sharing: bool
) -> str:
    reached = [(row, reach(at, at + 1)) for row, reach in incoming]
    axons = sum(int(np.count_nonzero(r)) for _, r in reached)
    bits = sum(_synapse_bits(int(r.sum()), row, allowed.weight_bits, sharing) for row, r in reached)
    for got, limit, what in (
        (axons, allowed.axons_in, "distinct inputs"),
        (bits, allowed.synapse_bits, "bits of synapses"),
        (edges, allowed.axons_out, "target cores"),
    ):
        if got > limit:
            return (
                f"place: neuron {at} of {name} alone needs {got:,} {what} and a core has {limit:,}: "
                f"{got - limit:,} too many. Use a layer with a smaller fan-in, or other hardware."
            )
    return f"place: neuron {at} of {name} does not fit on a core."


def _projection(
    source: str,
    target: str,
    row: LayerTrace,
    rows: list[tuple[LayerTrace, Connectivity]],
    populations: dict[str, list[Core]],
    graph: Graph,
) -> Projection:
    cores = populations[target]
    reach = np.zeros((len(cores), row.n_inputs), np.int64)
    for other, c in rows:
        into = graph.pooled(other, c, target)
        for i, core in enumerate(cores):
            reach[i] += into(core.start, core.stop)
    lies = np.repeat([c.core for c in populations[source]], [c.stop - c.start for c in populations[source]])
    if len(lies) != row.n_inputs:
        lies = lies[np.arange(row.n_inputs) * len(lies) // row.n_inputs]
    return Projection(row.name, row, target, [c.core for c in cores], reach, lies)
