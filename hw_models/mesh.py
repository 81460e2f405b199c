"""Many-core chips with a mesh of routers: energy of a placed network, and the time of its steps.

    E = Σ synops·e_synop + Σ steps [idle·e_idle + active·e_active] + spikes·e_spike
          + Σ packets (e_out + e_in + hops_ew·e_ew + hops_ns·e_ns)

A spike sends one packet to each core that holds a target of it, first along x, then along y. For a fixed placement this
is linear in the spikes, so the counts per neuron give the energy of all hops exactly; lists of events are needed for the
time only, which is a maximum over the cores in each step:

    overlapped (low)    barrier + max over cores of max(generate, receive)
    serial              barrier + max generate + max receive + the longest path
    congested (high)    serial + what the busiest link is occupied: packets that pass it, one after the other
    nominal             overlapped + 0.2 (serial − overlapped)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from spiking.hw_models.digital import Costs, Prices, host_prices
from spiking.hw_models.event import host_terms, interval, readouts, synapse_terms, synops
from spiking.hw_models.hardware import PRECISIONS, Hardware
from spiking.hw_models.intervals import Interval, Term
from spiking.hw_models.mapping import Mesh, Placement, Projection, place

from spiking.trace import EventTrace, LayerTrace

OVERLAP = 0.2  # nominal between the overlapped and the serial time of a step


class Route(NamedTuple):
    """What one spike of each source element sends: packets, hops along x and y, connections; each [source elements]."""

    packets: np.ndarray
    hops_x: np.ndarray
    hops_y: np.ndarray
    synops: np.ndarray


def route(projection: Projection, mesh: Mesh) -> Route:
    """Packets and hops of one spike of each source element, over all cores that hold a target of it."""
    hit = projection.reach != 0
    hops_x, hops_y = _distances(projection, mesh)
    return Route(hit.sum(0), (hit * hops_x).sum(0), (hit * hops_y).sum(0), projection.reach.sum(0))


def _distances(projection: Projection, mesh: Mesh) -> tuple[np.ndarray, np.ndarray]:
    """Hops along x and along y, each [target cores, source elements]."""
    sources, which = np.unique(projection.source_core, return_inverse=True)
    pairs = np.array([[mesh.hops(int(s), c) for s in sources] for c in projection.cores]).reshape(
        len(projection.cores), len(sources), 2
    )
    return pairs[:, which, 0], pairs[:, which, 1]


Link = tuple[int, int, int, int]  # (x, y) of the tile that is left, and of the next


def crossings(projection: Projection, mesh: Mesh) -> tuple[list[Link], np.ndarray]:
    """Links that the projection uses, and how many packets of one spike of each source element pass each: [elements, links]."""
    routes = {
        (source, d): mesh.links(source, target)
        for source in np.unique(projection.source_core).tolist()
        for d, target in enumerate(projection.cores)
    }
    links = sorted({link for route in routes.values() for link in route})
    column = {link: i for i, link in enumerate(links)}
    found = np.zeros((projection.reach.shape[1], len(links)))
    for (source, d), links_passed in routes.items():
        here = projection.source_core == source
        sent = (projection.reach[d] != 0) & here
        for link in links_passed:
            found[sent, column[link]] += 1
    return links, found


def hop_time(link: Link, t: Times) -> float:
    """Seconds that a packet occupies a link."""
    return t.hop_ew if link[0] != link[2] else t.hop_ns


def spike_prices(placement: Placement, chip: Hardware) -> dict[str, np.ndarray]:
    """Joules of one spike of each source element, by the weight layer that reads it, float64 [source elements].

    The energy of all spikes is these prices times the counts of spikes: an exact gradient of the energy. Spikes of
    neurons cost `spike` besides, once for all layers that read them.
    """
    found: dict[str, np.ndarray] = {}
    for projection in placement.projections:
        r = route(projection, placement.mesh)
        found[projection.name] = (
            r.synops * chip.get("synop")
            + r.packets * (chip.get("packet_out") + chip.get("packet_in"))
            + r.hops_x * chip.get("hop_ew")
            + r.hops_y * chip.get("hop_ns")
        )
    return found


def cost(
    trace: EventTrace,
    chip: Hardware,
    precision: str,
    accounting: str,
    reuse_static: bool,
    chips: int,
    weight_sharing: bool,
) -> Costs:
    """The spiking network, placed on the mesh."""
    prices, host = Prices(chip, precision), host_prices(chip, precision)
    terms: list[Term] = []
    on_chip = [row for row in trace.layers if row.is_weight_layer and row.operand_class != "analogue"]
    for row in trace.layers:
        if row in on_chip:
            terms += synapse_terms(row, prices, accounting)
        elif row.is_weight_layer or row.kind in ("matmul", "norm"):
            terms += host_terms(row, host, accounting, reuse_static)
    found = Costs(terms)
    if accounting != "published":
        bits = min(PRECISIONS[precision], 8)
        placement = place(trace, chip, chips=chips, weight_sharing=weight_sharing, weight_bits=bits)
        terms += _neuron_terms(trace, prices)
        terms += _packet_terms(placement, prices)
        found.latency = latency(trace, placement, prices)
        if "core_power" in chip.constants:
            power = prices.constant("core_power")
            found.static, found.static_group = interval(power) * placement.n_cores, power.group
        found.facts = {
            "placement": placement,
            "cores": placement.n_cores,
            "chips": placement.chips,
            "packets": sum(t.amount for t in terms if t.group == prices.constant("packet_out").group) / trace.n_samples,
        }
    found.terms = [term._replace(amount=term.amount / trace.n_samples) for term in terms]
    found.used = list(dict.fromkeys([*prices.used, *host.used]))
    return found


def _neuron_terms(trace: EventTrace, prices: Prices) -> list[Term]:
    """Every neuron in every step, idle or active; and what a spike costs at its neuron."""
    idle, active = interval(prices.constant("neuron_idle")), interval(prices.constant("neuron_active"))
    group = prices.constant("neuron_active").group
    terms = []
    for row in trace.layers:
        updates = int(row.counts["updates"].sum())
        if row.kind == "neuron" and updates:
            shares = _active_shares(row)
            price = Interval(*(i + (a - i) * share for i, a, share in zip(idle, active, shares)))
            terms.append(Term(row.name, "neurons", updates, price, group, "updates"))
            if "spike" in prices.chip.constants:
                spike = prices.constant("spike")
                spikes = int(row.counts["spikes"].sum())
                terms.append(Term(row.name, "neurons", spikes, interval(spike), spike.group, "spikes"))
    for row in readouts(trace):
        terms.append(Term(row.name, "neurons", row.n_outputs * int(row.calls.sum()), active, group))
    return terms


def _active_shares(row: LayerTrace) -> Interval:
    """Share of a row's updates that meet an active neuron: one with input, or with a potential that is not zero.

    Low: updates with input. High: neurons that can have had input so far. Nominal: the most that had it at once.
    """
    updates, with_input = row.counts["updates"], row.counts["updates_active"]
    most = np.minimum(np.maximum.accumulate(with_input), updates)
    could = np.minimum(np.cumsum(with_input), updates)
    whole = int(updates.sum())
    return Interval(int(with_input.sum()) / whole, int(most.sum()) / whole, int(could.sum()) / whole)


def _packet_terms(placement: Placement, prices: Prices) -> list[Term]:
    terms = []
    known = prices.chip.constants
    for projection in placement.projections:
        r, counts = route(projection, placement.mesh), projection.row.spike_count
        events, unrolled = synops(projection.row)
        more = unrolled / events if events else 1.0  # a graded value is sent as spikes
        for amount, names in (
            (counts @ r.packets, ("packet_out", "packet_in")),
            (counts @ r.hops_x, ("hop_ew",)),
            (counts @ r.hops_y, ("hop_ns",)),
        ):
            for name in names:
                if name in known:
                    c = prices.constant(name)
                    price = interval(c)._replace(low=c.low / more)
                    terms.append(Term(projection.name, "communication", float(amount) * more, price, c.group, "syn"))
    return terms


# time


def barrier(chip: Hardware, tiles: int, chips: int) -> Interval:
    """Seconds of the barrier over that many tiles, between the published points; nothing if the file has none."""
    if chips > 1 and "barrier_chips_time" in chip.constants:
        return interval(chip["barrier_chips_time"])
    points = sorted(
        (int(name.split("_")[1]), interval(c))
        for name, c in chip.constants.items()
        if name.startswith("barrier_") and name != "barrier_chips_time"
    )
    if not points:
        return Interval(0.0, 0.0, 0.0)
    at = [n for n, _ in points]
    return Interval(*(float(np.interp(tiles, at, [p[i] for _, p in points])) for i in range(3)))


class Times(NamedTuple):
    """Seconds of one event of each kind."""

    synop: float
    idle: float
    active: float
    spike: float
    packet_out: float
    packet_in: float
    hop_ew: float
    hop_ns: float


_TIMES = ("synop", "neuron_idle", "neuron_active", "spike", "packet_out", "packet_in", "hop_ew", "hop_ns")


def times(chip: Hardware, end: int) -> Times:
    """The chip's times at their low (0), nominal (1) or high (2) values; 0 for what the file does not state."""
    known = chip.constants
    return Times(*(interval(known[f"{n}_time"])[end] if f"{n}_time" in known else 0.0 for n in _TIMES))


def latency(trace: EventTrace, placement: Placement, prices: Prices) -> Interval | None:
    """Seconds per sample: exact steps where the trace holds events, else bounds from the counts of each step."""
    chip = prices.chip
    if "synop_time" not in chip.constants:
        return None
    wait = barrier(chip, placement.n_tiles, placement.chips)
    exact = _recorded(trace, placement)
    ends = []
    for end in range(3):
        t = times(chip, end)
        seconds = _from_events(exact, t) if exact else _from_counts(trace, placement, t)
        ends.append([s + trace.n_steps * wait[end] for s in seconds])
    for name in _TIMES:
        if f"{name}_time" in chip.constants:
            prices.constant(f"{name}_time")
    return Interval(ends[0][0], ends[1][0] + OVERLAP * (ends[1][1] - ends[1][0]), ends[2][2])


def step_times(
    generate: np.ndarray, receive: np.ndarray, path: np.ndarray, occupied: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(overlapped, serial, congested) seconds of each step besides the barrier.

    `generate` and `receive` are [steps, cores], `path` (the longest) [steps], `occupied` [steps, links]. Congested: the
    busiest sender, link and receiver of the step work one after the other. That covers what queues in front of links and
    receivers add, unless many cores wait for each other in a chain.
    """
    g, r, busiest = (a.max(1) if a.size else np.zeros(len(path)) for a in (generate, receive, occupied))
    return np.maximum(g, r), g + r + path, g + r + path + busiest


class Traffic:
    """What the spikes [steps, elements] of one projection send and deliver, by core and step.

    `spikes` is an array or a scipy sparse array of zeros and ones.
    """

    def __init__(self, projection: Projection, spikes: Any, mesh: Mesh) -> None:
        hit = (projection.reach != 0).astype(np.float64)
        self.source_cores, which = np.unique(projection.source_core, return_inverse=True)
        self.cores = projection.cores
        packets = np.zeros((len(which), len(self.source_cores)))
        packets[np.arange(len(which)), which] = hit.sum(0)
        self.sent = np.asarray(spikes @ packets)
        self.packets = np.asarray(spikes @ hit.T)
        self.synops = np.asarray(spikes @ projection.reach.T.astype(np.float64))
        self._spikes, self._hit, self._hops = spikes, hit, _distances(projection, mesh)
        self._paths: dict[tuple[float, float], np.ndarray] = {}
        self.links, crossed = crossings(projection, mesh)
        self._crossed = np.asarray(spikes @ crossed)

    def occupied(self, t: Times) -> dict[Link, np.ndarray]:
        """Seconds of each step, [steps], in which packets pass a link."""
        return {link: self._crossed[:, i] * hop_time(link, t) for i, link in enumerate(self.links)}

    def receive(self, t: Times) -> np.ndarray:
        """Seconds of receiving, [steps, target cores]."""
        return self.packets * t.packet_in + self.synops * t.synop

    def path(self, t: Times) -> np.ndarray:
        """Seconds of the longest path of a packet in each step."""
        key = (t.hop_ew, t.hop_ns)
        if key not in self._paths:
            hops_x, hops_y = self._hops
            seconds = self._hit * (hops_x * t.hop_ew + hops_y * t.hop_ns)
            longest = seconds.max(0) if len(seconds) else np.zeros(seconds.shape[1])
            s = self._spikes
            if hasattr(s, "multiply"):
                self._paths[key] = s.multiply(longest).tocsr().max(1).toarray().reshape(-1)
            else:
                self._paths[key] = (s * longest).max(1)
        return self._paths[key]


class _Recorded(NamedTuple):
    """Events of a placed run, by core: neurons and their active share, spikes fired, and the traffic of projections."""

    neurons: dict[int, tuple[int, np.ndarray]]
    fired: dict[int, np.ndarray]
    traffic: list[Traffic]
    n_samples: int
    n_rows: int


def _recorded(trace: EventTrace, placement: Placement) -> _Recorded | None:
    """The events of every projection, or None if the trace does not hold them."""
    traffic = []
    for projection in placement.projections:
        spikes = trace.spike_matrix(projection.row)
        if spikes is None:
            return None
        traffic.append(Traffic(projection, spikes, placement.mesh))
    if not traffic:
        return None
    neurons: dict[int, tuple[int, np.ndarray]] = {}
    fired: dict[int, np.ndarray] = {}
    for name, cores in placement.populations.items():
        if name in placement.inputs:
            continue
        row = trace[name]
        share = row.counts["updates_active"] / np.maximum(row.counts["updates"], 1)
        share = np.tile(share if row.kind == "neuron" else np.ones(trace.n_steps), trace.n_samples)
        spikes = trace.spike_matrix(row) if row.kind == "neuron" else None
        if spikes is not None:
            member = np.zeros((row.n_outputs, len(cores)))
            for i, core in enumerate(cores):
                member[core.start : core.stop, i] = 1
            fired |= {core.core: column for core, column in zip(cores, np.asarray(spikes @ member).T)}
        neurons |= {core.core: (core.stop - core.start, share) for core in cores}
    return _Recorded(neurons, fired, traffic, trace.n_samples, trace.n_samples * trace.n_steps)


def _from_events(recorded: _Recorded, t: Times) -> tuple[float, ...]:
    """(overlapped, serial, congested) seconds per sample without barriers, step by step."""
    generate: dict[int, np.ndarray] = {}
    receive: dict[int, np.ndarray] = {}
    occupied: dict[Link, np.ndarray] = {}
    longest = np.zeros(recorded.n_rows)
    for core, (n, share) in recorded.neurons.items():
        generate[core] = n * (t.idle + share * (t.active - t.idle))
    for core, spikes in recorded.fired.items():
        generate[core] = generate[core] + spikes * t.spike
    for traffic in recorded.traffic:
        for i, core in enumerate(traffic.source_cores.tolist()):
            generate[core] = generate.get(core, 0.0) + traffic.sent[:, i] * t.packet_out
        for core, seconds in zip(traffic.cores, traffic.receive(t).T):
            receive[core] = receive.get(core, 0.0) + seconds
        longest = np.maximum(longest, traffic.path(t))
        for link, seconds in traffic.occupied(t).items():
            occupied[link] = occupied.get(link, 0.0) + seconds
    columns = ([*generate.values()], [*receive.values()], [*occupied.values()] or [np.zeros(recorded.n_rows)])
    per_core, received, links = (np.stack(c, 1) for c in columns)
    return tuple(float(s.sum()) / recorded.n_samples for s in step_times(per_core, received, longest, links))


def _from_counts(trace: EventTrace, placement: Placement, t: Times) -> tuple[float, ...]:
    """Bounds of the same: events spread evenly over the cores of their population, or all on one of them."""
    steps, n = trace.n_steps, trace.n_samples
    generate = {name: (np.zeros(steps), np.zeros(steps)) for name in placement.populations}
    receive = {name: (np.zeros(steps), np.zeros(steps)) for name in placement.populations}
    longest, busiest = np.zeros(steps), np.zeros(steps)
    for name, cores in placement.populations.items():
        if name in placement.inputs:
            continue
        row = trace[name]
        size = sum(c.stop - c.start for c in cores)
        most = max(c.stop - c.start for c in cores)
        active = row.counts["updates_active"] / n if row.kind == "neuron" else np.full(steps, float(size))
        fired = row.counts["spikes"] / n
        mean = (size * t.idle + active * (t.active - t.idle) + fired * t.spike) / len(cores)
        worst = most * t.idle + np.minimum(active, most) * (t.active - t.idle) + np.minimum(fired, most) * t.spike
        generate[name] = (mean, worst)
    for projection in placement.projections:
        r = route(projection, placement.mesh)
        fired = projection.row.counts["in_nnz"] / n
        synapses = projection.row.counts["syn"] / n
        source = next(
            (name for name, cores in placement.populations.items() if int(projection.source_core[0]) in _ids(cores)), ""
        )
        targets, sources = len(projection.cores), len(np.unique(projection.source_core))
        few, many = (float(f(r.packets)) if r.packets.size else 0.0 for f in (np.min, np.max))
        widest = float(projection.reach.max()) if projection.reach.size else 0.0
        a, b = generate[source]
        generate[source] = (a + fired * few * t.packet_out / sources, b + fired * many * t.packet_out)
        a, b = receive[projection.target]
        receive[projection.target] = (
            a + (fired * few * t.packet_in + synapses * t.synop) / targets,
            b + fired * t.packet_in + np.minimum(synapses, fired * widest) * t.synop,
        )
        hops_x, hops_y = _distances(projection, placement.mesh)
        path = ((projection.reach != 0) * (hops_x * t.hop_ew + hops_y * t.hop_ns)).max() if projection.reach.size else 0
        longest = np.maximum(longest, np.where(fired > 0, path, 0.0))
        links, crossed = crossings(projection, placement.mesh)
        if links:
            busiest += fired * float((crossed * [hop_time(link, t) for link in links]).max())
    g_low, g_high = (np.max([v[i] for v in generate.values()], axis=0) for i in (0, 1))
    r_low, r_high = (np.max([v[i] for v in receive.values()], axis=0) for i in (0, 1))
    serial = g_high + r_high + longest
    return float(np.maximum(g_low, r_low).sum()), float(serial.sum()), float((serial + busiest).sum())


def _ids(cores: list[Any]) -> range:
    return range(cores[0].core, cores[-1].core + 1)
