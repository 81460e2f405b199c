"""What a report says, as plain data: the JSON beside the page, and all that the page shows but the recording.

`report.schema.json` beside this file describes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
from spiking.hw_models.energy import Estimate, Twin, by_rate
from spiking.hw_models.hardware import ACCOUNTINGS, MARKS
from spiking.hw_models.intervals import Interval, total
from spiking.hw_models.mapping import Placement

from spiking.errors import SpikingError

VERSION = "1.1"


def document(
    estimates: Sequence[Estimate],
    *,
    title: str = "",
    facts: Mapping[str, str] | None = None,
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """The report's content as plain data; `labels` say whose each estimate is, where there are several traces.

    Errors: SpikingError if the labels are not as many as the estimates.
    """
    if labels and len(labels) != len(estimates):
        raise SpikingError(f"report: got {len(labels)} labels of {len(estimates)} estimates; expected one each.")
    trace = estimates[0].trace
    priced = [e.accountings() for e in estimates]
    return {
        "schema": "spiking-report",
        "version": VERSION,
        "created_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "title": title or f"Energy of {trace.model_name}",
        "facts": {str(k): str(v) for k, v in (facts or {}).items()},
        "trace": {
            "model_name": trace.model_name,
            "model_hash": trace.model_hash,
            "data_id": trace.data_id,
            "n_samples": trace.n_samples,
            "n_steps": trace.n_steps,
            "seed": trace.seed,
            "dtype": trace.dtype,
            "device": trace.device,
            "recorded_utc": trace.created,
            "software": trace.software,
        },
        "estimates": [
            {"label": str(label), **_estimate(e, of)}
            for label, e, of in zip(labels or [""] * len(estimates), estimates, priced)
        ],
        "activity": [_activity(row) for row in trace.neurons],
        "assumptions": _assumptions(estimates),
        "constants": _constants(priced),
        "bibtex": _bibtex(priced),
    }


def _interval(i: Interval) -> dict[str, float | None]:
    """A figure as plain data; null where it does not exist."""
    return {k: (None if math.isnan(v) else float(v)) for k, v in zip(("low", "nominal", "high"), i)}


def _estimate(e: Estimate, priced: Mapping[str, Estimate]) -> dict[str, Any]:
    return {
        "hardware": e.hardware.name,
        "hardware_title": e.hardware.title,
        "precision": e.precision,
        "accounting": e.accounting,
        "accuracy": e.accuracy,
        "energy_J": _interval(e.energy),
        "ann_J": _interval(e.ann),
        "ratio": _interval(e.ratio),
        "sampling_J": _interval(e.sampling),
        "ratio_sampling": _interval(e.ratio_sampling),
        "energy_drawn_J": _interval(e.energy_drawn),
        "ratio_drawn": _interval(e.ratio_drawn),
        "latency_s": None if e.latency is None else e.latency.nominal,
        "latency_bounds_s": None if e.latency is None else _interval(e.latency),
        "realtime_J": None if e.realtime is None else _interval(e.realtime),
        "spike_rate": e.spike_rate,
        "rate_curve": _rate_curve(e),
        "fair": None if e.fair is None else e.fair.name,
        "twins": [_twin(twin) for twin in e.twins],
        "tornado_J": {name: list(ends) for name, ends in e.tornado.items()},
        "variance_share": e.shares,
        "cores": e.facts.get("cores"),
        "arrays": e.facts.get("arrays"),
        "placement": _placement(e.facts.get("placement")),
        "ann_steps": e.ann_steps,
        "by_source_J": e.by_source,
        "warnings": [{"code": w.code, "text": w.text} for w in e.warnings],
        "layers": [
            {
                "name": row.name,
                "kind": row.kind,
                "operand_class": row.operand_class,
                "energy_J": _interval(row.energy),
                "ann_J": _interval(row.ann),
                "by_source_J": row.by_source,
                "syn": row.syn,
                "ac": row.ac,
                "mac": row.mac,
                "updates": row.updates,
                "spikes": row.spikes,
            }
            for row in e.per_layer
        ],
        "accountings": [_accounting(priced[name]) for name in ACCOUNTINGS],
    }


def _twin(twin: Twin) -> dict[str, Any]:
    return {
        "name": twin.name,
        "title": twin.title,
        "energy_J": _interval(twin.energy),
        "ratio": _interval(twin.ratio),
        "ratio_drawn": _interval(twin.ratio_drawn),
        "ratio_sampling": _interval(twin.ratio_sampling),
        "break_even_rate": None if twin.break_even is None else _interval(twin.break_even),
    }


def _rate_curve(e: Estimate) -> dict[str, Any] | None:
    """The energy as a straight line over the rate of the spikes, if the trace has any."""
    active, fixed = by_rate(e)
    if not any(t.amount for t in active):
        return None
    return {
        "rate": e.spike_rate,
        "fixed_J": _interval(total(fixed)),
        "per_rate_J": _interval(total(active) * (1 / e.spike_rate)),
    }


def _placement(found: object) -> dict[str, Any] | None:
    if not isinstance(found, Placement):
        return None
    utilisation = found.utilisation()
    return {
        "tiles": [found.mesh.width * found.chips, found.mesh.height],
        "cores_per_tile": found.mesh.cores_per_tile,
        "populations": [
            {
                "name": name,
                "utilisation": utilisation[name],
                "cores": [
                    {"id": c.core, "tile": list(found.mesh.tile(c.core)), "neurons": c.stop - c.start} for c in cores
                ],
            }
            for name, cores in found.populations.items()
        ],
    }


def _accounting(priced: Estimate) -> dict[str, Any]:
    return {
        "accounting": priced.accounting,
        "energy_J": _interval(priced.energy),
        "energy_drawn_J": _interval(priced.energy_drawn),
        "fair": None if priced.fair is None else _twin(priced.fair),
        "ann_J": _interval(priced.ann),
        "ratio": _interval(priced.ratio),
        "ratio_sampling": _interval(priced.ratio_sampling),
    }


def _activity(row: Any) -> dict[str, Any]:
    updates = np.maximum(row.counts["updates"], 1)
    return {
        "name": row.name,
        "type": str(row.neuron.get("type", row.module)),
        "neurons": row.n_outputs,
        "firing_rate": row.firing_rate,
        "rate_per_step": (row.counts["spikes"] / updates).tolist(),
        "silent": row.silent,
        "saturated": row.saturated,
        "readout": row.neuron.get("output") == "membrane",
    }


def _assumptions(estimates: Sequence[Estimate]) -> list[str]:
    trace = estimates[0].trace
    passes = sorted({e.ann_steps for e in estimates})
    text = [
        "Counts come from a recorded run: operations are counted connection by connection, without zero padding.",
        f"The equal ANN has the same weights at the same precision, runs every layer densely, and needs "
        f"{' or '.join(str(p) for p in passes)} pass{'' if passes == [1] else 'es'} per sample; for event recordings "
        "one pass means that it gets the whole recording as one dense input.",
        "Neurons are updated in every step, whether they get input or not.",
        "A batch normalisation in eval mode directly behind its weights is folded into them and costs nothing.",
        "Low and high are bounds over the intervals of all constants; both networks use the same constants. "
        "The interval over samples is a bootstrap (5–95 %, 1000 resamples) with nominal constants.",
    ]
    text.append(
        "In the accounting with-memory every operation moves its weight and its accumulator, without reuse, in both "
        "networks; spikes move as addresses through a queue, activations of the ANN as words."
    )
    if trace.recurrent:
        text.append("The model is recurrent, so the equal ANN is charged for every step, too.")
    for e in estimates:
        text += [f"{e.hardware.name}: {note}" for note in e.hardware.notes]
    return list(dict.fromkeys(text))


def _constants(priced: Sequence[Mapping[str, Estimate]]) -> list[dict[str, Any]]:
    """Every constant of the estimates and of their twins, under all accountings."""
    rows = {}
    for accountings in priced:
        for e in accountings.values():
            for c in (*e.constants, *(c for twin in e.twins for c in twin.constants)):
                rows[c.chip, c.name] = {
                    "hardware": c.chip,
                    "name": c.name,
                    "value": c.value / c.factor,
                    "low": c.low / c.factor,
                    "high": c.high / c.factor,
                    "unit": c.unit,
                    "single_source": c.single_source,
                    "source": c.source,
                    "bounds": list(c.bounds),
                    "mark": MARKS[c.mark],
                    "note": c.note,
                }
    return list(rows.values())


def _bibtex(priced: Sequence[Mapping[str, Estimate]]) -> dict[str, str]:
    return dict(sorted({key: text for of in priced for e in of.values() for key, text in e.sources.items()}.items()))
