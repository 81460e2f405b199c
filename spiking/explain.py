"""Why each layer runs dense or event-driven: what it was given, what the cost model predicts for both, and what both took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spiking.cuda_kernels import backend, event_conv_ops, event_linear_ops
from spiking.cuda_kernels.cuda import event as cuda_event

from .errors import SpikingError
from .functional import event_driven

__all__ = ["Explained", "explain"]

NOT_FINITE = "a weight is infinite or NaN, which reaches results even through zeros"


@dataclass(frozen=True)
class Explained:
    """One layer that can choose: share of its inputs that are not zero, the choice and its reason, seconds predicted and measured.

    On CUDA the shape decides and nothing is predicted: those two are NaN.
    """

    name: str
    layer: str
    density: float
    choice: str
    reason: str
    event_predicted_s: float
    dense_predicted_s: float
    event_s: float
    dense_s: float


@torch.no_grad()
def explain(model: nn.Module, x: Tensor, *, show: bool = True) -> list[Explained]:
    """Run a model once and say for every `Linear` and `Conv2d` what it chose, why, and whether that was right; prints a table.

    A layer is timed twice on the input that it met, dense and event-driven, both after one call to warm up. Where the model is trained, a
    call costs a weight gradient besides and the limit is another; this is about evaluation. The model is not changed.

    Errors: SpikingError if the model has no layer that can choose, or for other things than a model and a tensor.

    >>> import spiking
    >>> net = spiking.Sequential(spiking.Linear(4096, 1024), spiking.LIF())
    >>> rows = explain(net, (torch.rand(8, 1, 4096) < 0.02).float(), show=False)
    >>> rows[0].name, rows[0].choice
    ('0', 'event-driven')
    """
    if not isinstance(model, nn.Module) or not isinstance(x, Tensor):
        given = f"{type(model).__name__} and {type(x).__name__}"
        raise SpikingError(f"explain: got {given}; expected a model and the tensor that it is to be run on.")
    inputs: dict[str, Tensor] = {}
    layers: dict[str, Any] = {name: layer for name, layer in model.named_modules() if hasattr(layer, "event_choice")}
    if not layers:
        raise SpikingError(
            f"explain: {type(model).__name__} has no spiking.Linear or spiking.Conv2d, so there is no choice to explain."
        )

    def keep(name: str, module: nn.Module, given: tuple[Any, ...]) -> None:
        inputs.setdefault(name, given[0])

    handles = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in layers.items()]
    was_training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        model(x)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in was_training.items():
            module.training = training
    rows = [_explained(name, layers[name], given) for name, given in inputs.items()]
    if show:
        print(table(rows))
    return rows


def _explained(name: str, layer: Any, x: Tensor) -> Explained:
    if cuda_event.here(x):
        return _on_cuda(name, layer, x)
    predicted = layer.event_choice(x)
    reason = _why_not(layer, x)
    event = predicted.event and reason is None
    if reason is None:
        reason = f"{predicted.event_s / predicted.dense_s:.2f} of the dense time predicted"
        reason += (
            ""
            if event or predicted.event_s > predicted.dense_s
            else ", not enough to pay for packing the weights and for errors of the prediction"
        )
    return _row(name, layer, x, event, reason, predicted.event_s, predicted.dense_s)


def _on_cuda(name: str, layer: Any, x: Tensor) -> Explained:
    """There the shape decides; spikes are not counted and no time is predicted."""
    if isinstance(layer, nn.Linear):
        reason = cuda_event.why_dense(x.to(layer.weight.dtype), layer.weight, learns=False)
    else:
        reason = "convolutions are dense on CUDA (cuDNN)"
    if reason is None and not bool(layer.weight.isfinite().all()):
        reason = NOT_FINITE
    said = reason or f"at most {cuda_event.MOST_ROWS} rows share the weights"
    return _row(name, layer, x, reason is None, said, math.nan, math.nan)


def _row(
    name: str, layer: Any, x: Tensor, event: bool, reason: str, event_predicted_s: float, dense_predicted_s: float
) -> Explained:
    seconds = {}
    for mode in ("always", "never"):
        with event_driven(mode):  # type: ignore[arg-type]
            seconds[mode] = _seconds(lambda: layer.forward(x))
    return Explained(
        name,
        repr(layer),
        int(x.count_nonzero()) / max(1, x.numel()),
        "event-driven" if event else "dense",
        reason,
        event_predicted_s,
        dense_predicted_s,
        seconds["always"],
        seconds["never"],
    )


def _why_not(layer: Any, x: Tensor) -> str | None:
    if x.device.type != "cpu":
        return f"the event-driven kernels run on CPUs and CUDA devices; the input is on {x.device.type}"
    if backend.choose(x.device).name != "cpu":
        return backend.choose(x.device).not_used["cpu"]
    if isinstance(layer, nn.Conv2d) and not layer.sums_spikes:  # type: ignore[operator]
        return "the event-driven kernels know no dilation, and padding by numbers of zeros alone"
    if not (event_linear_ops if isinstance(layer, nn.Linear) else event_conv_ops).has_kernel(layer.weight.dtype):
        return f"there is no event-driven kernel for {layer.weight.dtype}"
    if not bool(layer.weight.isfinite().all()):
        return NOT_FINITE
    return None


def _seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        _wait()
        start = time.perf_counter()
        call()
        _wait()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[repeats // 2]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def table(rows: list[Explained]) -> str:
    """The rows as text: name, density, choice, predicted and measured milliseconds of both, and the reason."""
    head = ("layer", "density", "choice", "event ms (pred.)", "dense ms (pred.)", "reason")
    lines = [head]
    for row in rows:
        event = _both(row.event_s, row.event_predicted_s)
        dense = _both(row.dense_s, row.dense_predicted_s)
        lines.append((f"{row.name} {row.layer}", f"{100 * row.density:.2f} %", row.choice, event, dense, row.reason))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(line, widths)), line[-1]]) for line in lines)


def _both(measured: float, predicted: float) -> str:
    return f"{measured * 1e3:.3g}" + ("" if math.isnan(predicted) else f" ({predicted * 1e3:.3g})")
