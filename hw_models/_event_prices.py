"""What one event of each layer costs on a chip, found by asking the chip's own estimate about many of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from spiking.hw_models.energy import Estimate, estimate, spiking_costs
from spiking.hw_models.hardware import Hardware
from spiking.hw_models.mapping import Placement
from spiking.hw_models.mesh import spike_prices
from torch import Tensor

from spiking._counters import Levels
from spiking.trace import EventTrace, LayerTrace

CURVED = ("crossbar", "macro")
"""Kinds of hardware on which energy is not linear in the events: a row block without a spike is not read."""

_EVENTS = 2**40  # a price is what so many cost
_COUNTED = ("syn", "syn_eff", "in_nnz", "spikes", "out_nnz", "pool_adds")  # counters that follow the spikes
_LEVELS = {"spikes": Levels((1.0,)), "graded": Levels((1.0, 2.0)), "analogue": Levels(None)}


@dataclass
class RowPrices:
    """Joules of one layer, by class of its operand where that matters.

    `fixed`: per sample, whatever its events. `operand`: of one non-zero of each input element, float64 [inputs]. `spike`: of
    one output spike besides. `pool`: of one addition of a pooling that follows spikes. `unrolled`: a graded value of k levels
    costs k events.
    """

    row: LayerTrace
    fixed: dict[str, float] = field(default_factory=dict)
    operand: dict[str, Tensor] = field(default_factory=dict)
    spike: float = 0.0
    pool: float = 0.0
    unrolled: bool = False


class EventPrices:
    """Prices of all layers of a recorded network on a chip; `fixed` joules per sample of layers that read no operand.

    Errors: those of `estimate`.
    """

    def __init__(self, trace: EventTrace, chip: Hardware, options: Mapping[str, Any]) -> None:
        found = estimate(trace, chip, **options)
        self.trace, self.chip = trace, chip
        self._settings = (found.precision, found.accounting, False, found.options)
        self.rows = {row.name: RowPrices(row) for row in trace.layers}
        packets = _packets(found)
        for kind in _LEVELS:
            for name, joules in self._all(kind).items():
                self.rows[name].fixed[kind] = joules
        for kind in ("spikes", "graded"):
            per_synop, per_event = self._each(kind, syn=_EVENTS), self._each(kind, in_nnz=_EVENTS)
            twice = self._each(kind, syn=_EVENTS, in_nnz=_EVENTS, in_abs_sum=2 * _EVENTS * _LEVELS[kind].classify()[1])
            for name, prices in self.rows.items():
                if prices.row.is_weight_layer:
                    fan_out = torch.from_numpy(prices.row.fan_out.astype(np.float64))
                    prices.operand[kind] = fan_out * per_synop[name] + per_event[name]
                    if name in packets:
                        prices.operand[kind] += torch.from_numpy(packets[name])
                    prices.unrolled |= twice[name] > 1.5 * (per_synop[name] + per_event[name])
        for name, joules in self._each("spikes", spikes=_EVENTS).items():
            self.rows[name].spike = joules
        for name, joules in self._each("spikes", pool_adds=_EVENTS).items():
            self.rows[name].pool = joules if _follows_spikes(self.rows[name].row, trace) else 0.0
        self.fixed = math.fsum(p.fixed["spikes"] for p in self.rows.values() if not p.row.is_weight_layer)

    def joules(
        self, kind_of: Callable[[str], str], events_of: Callable[[str], Mapping[str, float]]
    ) -> dict[str, float]:
        """Joules per sample of each layer, leakage excepted, if its operand were of a class and it saw so many events."""
        rows = []
        for row in self.trace.layers:
            kept = () if _follows_spikes(row, self.trace) else ("pool_adds",)
            rows.append(_probe(row, kind_of(row.name), events_of(row.name), kept))
        found = dict.fromkeys(self.rows, 0.0)
        for term in spiking_costs(replace(self.trace, layers=rows), self.chip, *self._settings).terms:
            found[term.layer] += term.amount * term.price.nominal
        return found

    def _all(self, kind: str, **events: float) -> dict[str, float]:
        return self.joules(lambda _: kind, lambda _: events)

    def _each(self, kind: str, **events: float) -> dict[str, float]:
        """Joules of one of the events in each layer."""
        per_sample = self.trace.n_samples / _EVENTS
        return {name: (e - self.rows[name].fixed[kind]) * per_sample for name, e in self._all(kind, **events).items()}


def _packets(found: Estimate) -> dict[str, np.ndarray]:
    """Joules of the packets of one spike of each input element, by the layer that reads it, where a mesh carries them."""
    placement = found.facts.get("placement")
    if not isinstance(placement, Placement):
        return {}
    synop = found.hardware.get("synop")
    fans = {projection.name: projection.row.fan_out for projection in placement.projections}
    return {name: p - fans[name] * synop for name, p in spike_prices(placement, found.hardware).items()}


def _follows_spikes(row: LayerTrace, trace: EventTrace) -> bool:
    """Whether a pooling adds as its input's spikes say; what a norm puts out has no zeros to leave out."""
    kinds = {other.name: other.kind for other in trace.layers}
    return row.kind == "avgpool" and not any(kinds.get(source) == "norm" for source in row.operand_of)


def _probe(row: LayerTrace, kind: str, events: Mapping[str, float], kept: tuple[str, ...]) -> LayerTrace:
    """A row with an operand of a class, and so many events in place of what its spikes caused."""
    counts = dict(row.counts)
    for name in _COUNTED:
        if name not in kept:
            counts[name] = np.zeros_like(counts[name])
            counts[name][0] = events.get(name, 0)
    in_abs_sum = np.zeros(row.n_steps)
    in_abs_sum[0] = events.get("in_abs_sum", 0.0)
    return replace(
        row,
        counts=counts,
        levels=_LEVELS[kind],
        levels_step=[],
        in_abs_sum=in_abs_sum,
        spike_count=np.zeros_like(row.spike_count),
    )
