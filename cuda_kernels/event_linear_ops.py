"""torch.library registration of `spiking::event_linear`, y = x·Wᵀ + b from the non-zeros of x, and the choice between it and torch's own.

`event_linear(x, weight, bias, bits, ones, always, membrane, threshold, reach)` -> y: x [*, in], weight [out, in]; `bits` are the spikes of
x as `_count` leaves them (None: not counted yet), `ones` says that each is exactly 1, and without `always` the cost model may still take
the dense product. The weight gradient touches active inputs only, through `spiking::event_weight_grad`; dL/dx = dL/dy·W is dense, unless
x came from neurons whose surrogate derivative is zero from |membrane - threshold| = reach on: their backward multiplies dL/dx with that
zero, so it is not computed there (`spiking::event_input_grad`).

Weights are read in panels (cpu/event_linear_api.h). They live as long as their weight and are made anew when its version counter, its
memory, or one of a few weights that are looked at has changed: an optimiser step, load_state_dict and in-place edits are always seen;
edits that hide from autograd (`weight.data[0, 0] = 1`, or through numpy) in weights up to 32 KB, in larger ones only where they touch
one of those few. On CUDA, where panels are a transposed copy (cuda/event.py), memory is not looked at, and hidden edits call for `release`.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as tf
from torch.optim.optimizer import register_optimizer_step_post_hook

from spiking.errors import SpikingError

from . import backend, cost, dense, driven, memory, watch
from .cuda import event as cuda_event
from .ops import _library as library

__all__ = ["Membrane", "at_hand", "choice", "event_linear", "has_kernel", "linear", "linear_neurons", "release"]

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
_MOST_FREE = 0.3  # share of neurons with a derivative up to which their products alone are quicker than all (measured)
_PLAIN = (Tensor, torch.nn.Parameter)
_NO_LIMIT = 1 << 62
_CALLS = 8  # how many calls without gradients a weight is assumed to serve before it changes; they share the cost of packing it
_PANEL = 64  # columns that are gathered at once, as in cpu/gather.h
_LARGEST = (1 << 32) - 64  # inputs of a row: their indices are 32-bit numbers

library.define(
    "event_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? bits, bool ones, bool always, Tensor? membrane=None, "
    "float threshold=0., float reach=0.) -> Tensor"
)
library.define(
    "event_input_grad(Tensor grad_y, Tensor weight, Tensor membrane, float threshold, float reach) -> Tensor"
)
library.define(
    "event_weight_grad(Tensor grad_y, Tensor? x, Tensor? bits, bool ones, SymInt in_features, bool always) -> Tensor"
)


# --- panels -------------------------------------------------------------------------------------------------------------


class _Ready(NamedTuple):
    """A weight whose panels are made: the compiled plan, the memory that it reads, and what the weight was then."""

    plan: Any
    panels: Tensor
    version: int
    address: int
    shape: torch.Size
    dtype: torch.dtype


class _Panels:
    """The panels of one weight as it was at its mark."""

    __slots__ = ("finite", "mark", "of", "panels", "plans", "ready")

    def __init__(self, weight: Tensor, mark: tuple[Any, ...], forget: Callable[[Any], None] | None) -> None:
        self.of = weakref.ref(weight, forget)
        self.mark = mark
        self.panels: Tensor | None = None
        self.ready: _Ready | None = None
        self.plans: dict[Any, Any] = {}  # of convolutions, by what is convolved (event_conv_ops.py)
        self.finite = True

    def drop(self) -> None:
        self.panels = self.ready = None
        self.plans.clear()


_known: dict[int, _Panels] = {}


def _panels_of(module: Any, weight: Tensor, layout: Any = None) -> _Panels:
    """The entry of a weight as it is now; its panels may still have to be made. `layout`: what else they depend on."""
    if not _keeps(weight):
        return _Panels(weight, (), None)
    key, address, strides = id(weight), weight.data_ptr(), weight.stride()
    # Memory of a device is not looked at: the host would have to wait for it.
    sample = 0 if module is None else module.event_sample(address, weight.numel() * weight.dtype.itemsize)
    mark = (weight._version, address, strides, sample, layout)
    known = _known.get(key)
    if known is None or known.mark != mark or known.of() is not weight:
        known = _known[key] = _Panels(weight, mark, lambda dead: _forget(key, dead))
    return known


def _forget_trained(optimiser: torch.optim.Optimizer, *_: Any) -> None:
    # Fused optimisers change weights without a sign: their version counters stand still. Compiled ones move them.
    if torch.compiler.is_compiling():
        return
    for group in optimiser.param_groups:
        for weight in group["params"]:
            _known.pop(id(weight), None)


register_optimizer_step_post_hook(_forget_trained)


def _keeps(weight: Tensor) -> bool:
    """Whether panels can be kept for later calls: inference tensors have no version counter that would tell when they are stale."""
    return (weight.is_contiguous() or weight.stride() == (1, weight.shape[0])) and not weight.is_inference()


def _forget(key: int, dead: Any) -> None:
    known = _known.get(key)
    if known is not None and known.of is dead:
        del _known[key]


def _packed(entry: _Panels, weight: Tensor) -> Tensor | None:
    """The panels of a CUDA device's weight (cuda/event.py), made now if need be; None where it holds infinity or NaN, which reach a
    result even through zeros."""
    if entry.panels is None and entry.finite:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return None  # nothing may wait now; a call before the capture makes them
        entry.finite = bool(torch.isfinite(weight).all())
        entry.panels = cuda_event.transposed(weight) if entry.finite else None
    return entry.panels if entry.finite else None


def _ready_for(module: Any, entry: _Panels, weight: Tensor) -> _Ready | None:
    """`_packed` for the CPU's kernels."""
    ready = entry.ready
    if ready is None and entry.finite:
        outputs, inputs = weight.shape
        # From the mark, which was made before: what changes meanwhile is noticed at the next call.
        version, address, _, sample, _ = entry.mark or (0, weight.data_ptr(), (), 0, None)
        dtype = weight.dtype
        code = _DTYPES[dtype]
        panels = memory.empty((module.event_panel_items(inputs, outputs, code),), dtype, weight.device)
        to = panels.data_ptr()
        entry.finite = module.event_panels(address, *weight.stride(), inputs, outputs, to, code, backend.threads())
        looked_at = weight.numel() * dtype.itemsize if entry.mark else 0
        plan = module.EventPlan(to, address, looked_at, sample, inputs, outputs, code)
        if entry.finite:
            entry.panels = panels
            entry.ready = ready = _Ready(plan, panels, version, address, weight.shape, dtype)
    return ready


def has_kernel(dtype: torch.dtype) -> bool:
    """Whether products in a dtype can be event-driven."""
    return dtype in _DTYPES


def release() -> None:
    """Forget all panels; they are made again when they are needed."""
    _known.clear()


# --- kernels ------------------------------------------------------------------------------------------------------------


def _compiled_for(x: Tensor, weight: Tensor) -> Any:
    """The compiled module where it can compute this call, else None."""
    dtype = x.dtype
    if not (x.is_cpu and weight.is_cpu and dtype in _DTYPES and weight.dtype == dtype and type(weight) in _PLAIN):
        return None
    outputs, inputs = weight.shape
    return _compiled() if 0 < inputs < _LARGEST and outputs and x.numel() else None


@functools.cache
def _compiled() -> Any:
    return backend.compiled() if backend.choose(torch.device("cpu")).name == "cpu" else None


def _rows_of(x: Tensor) -> Tensor:
    """x as [rows, in], neighbouring inputs side by side: a view where that is possible, so that expanded rows take no memory."""
    x = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def _training_limit(rows: int, inputs: int, outputs: int, item: int) -> int:
    """The most spikes at which forward pass and weight gradient win, though the weights are new and must be packed."""
    return cost.most_spikes_linear(rows, inputs, outputs, item, backend.threads(), "linear_training")


def choice(x: Tensor, weight: Tensor) -> cost.Choice:
    """What the cost model says of x·Wᵀ without gradients, for x as it is."""
    outputs, inputs = weight.shape
    work = cost.Work.linear(x.numel() // inputs, inputs, outputs, weight.dtype.itemsize, backend.threads())
    return cost.choose(work, int(x.count_nonzero()), cost.packing(work) / (_CALLS if _keeps(weight) else 1))


def _count(module: Any, x: Tensor, limit: int, bits: Tensor | None = None) -> int:
    """Spikes·2 + (is each exactly 1), or -1 for more than `limit`; with `bits` they are left there, a word for 64 inputs."""
    rows = _rows_of(x)
    to = 0 if bits is None else bits.data_ptr()
    tally = _Tally(*rows.shape)
    found = module.event_count(
        rows.data_ptr(), rows.stride(0), to, limit, *rows.shape, _DTYPES[x.dtype], backend.threads(), *tally.addresses
    )
    tally.leave(x, found)
    return found


class _Tally:
    """Spikes of each row and of each input, counted where a recording asks for them."""

    def __init__(self, rows: int, inputs: int) -> None:
        watching = watch.current()
        self.watch = watching if watching is not None and watching.wants_input else None
        self.addresses = (0, 0)
        if self.watch is not None:
            self.per_row, self.per_input = np.empty(rows, np.int64), np.zeros((backend.threads(), inputs), np.int32)
            self.addresses = (self.per_row.ctypes.data, self.per_input.ctypes.data)

    def leave(self, x: Tensor, found: int) -> None:
        if self.watch is not None and found >= 0:
            self.watch.leave_input(x, watch.InputCounts(self.per_row, self.per_input, bool(found & 1)))


def _bits_for(x: Tensor) -> Tensor:
    inputs = x.shape[-1]
    return torch.empty((x.numel() // inputs, -(-inputs // 64)), dtype=torch.int64)


def _forward(
    module: Any, x: Tensor, weight: Tensor, bias: Tensor | None, bits: Tensor | None, ones: bool, always: bool
) -> Tensor | None:
    """y from the spikes of x; None where the dense product is the better (or only right) choice."""
    outputs, inputs = weight.shape
    rows = _rows_of(x)
    limit = _NO_LIMIT if always else _limit(len(rows), inputs, outputs, weight)
    if limit < 0:
        return None
    entry = _panels_of(module, weight)
    if entry.panels is None and not always and _count(module, x, limit) < 0:
        return None
    ready = _ready_for(module, entry, weight)
    if ready is None:
        return None
    bias = bias if bias is None else bias.contiguous()
    y = memory.empty((*x.shape[:-1], outputs), x.dtype, x.device)
    tally = None if bits is not None else _Tally(len(rows), inputs)
    found = ready.plan.run(
        0 if bits is not None and ones else rows.data_ptr(),
        rows.stride(0),
        0 if bits is None else bits.data_ptr(),
        bits is not None,
        limit,
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        len(rows),
        backend.threads(),
        *((0, 0) if tally is None else tally.addresses),
    )
    if found == module.EVENT_STALE:  # another thread has just changed the weight
        return tf.linear(x, weight, bias)
    if tally is not None:
        tally.leave(x, found)
    return None if found < 0 else y


def _limit(rows: int, inputs: int, outputs: int, weight: Tensor) -> int:
    """The most spikes at which a call without gradients wins."""
    # Whether panels are at hand must not decide: the same call has to give the same bits each time.
    calls = _CALLS if _keeps(weight) else 1
    return cost.most_spikes_linear(rows, inputs, outputs, weight.dtype.itemsize, backend.threads(), calls=calls)


def _event_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bits: Tensor | None,
    ones: bool,
    always: bool,
    membrane: Tensor | None = None,
    threshold: float = 0.0,
    reach: float = 0.0,
) -> Tensor:
    mode = "always" if always else driven.mode()
    module = _compiled_for(x, weight) if mode != "never" else None
    y = None if module is None else _forward(module, x, weight, bias, bits, ones, mode == "always")
    return dense.linear(x, weight, bias) if y is None else y


def _event_weight_grad(
    grad_y: Tensor, x: Tensor | None, bits: Tensor | None, ones: bool, in_features: int, always: bool
) -> Tensor:
    grads = grad_y.reshape(-1, grad_y.shape[-1])
    n, outputs = grads.shape
    rows = None if x is None else _rows_of(x)
    mode = "always" if always or bits is not None else driven.mode()
    fits = grad_y.is_cpu and grad_y.dtype in _DTYPES and grad_y.numel() > 0 and mode != "never"
    module = _compiled() if fits else None
    if module is not None and bits is None and rows is not None:
        limit = _NO_LIMIT if mode == "always" else _training_limit(n, in_features, outputs, grads.dtype.itemsize)
        counted = _bits_for(rows)
        found = _count(module, rows, limit, counted) if limit >= 0 else -1
        bits, ones = (counted, bool(found & 1)) if found >= 0 else (None, False)
    if module is None or bits is None:
        assert rows is not None  # bits without x are left by a compiled forward pass only
        return dense.product(grads.t(), rows)
    threads = backend.threads()
    panels = memory.empty((threads, n, _PANEL), grads.dtype, grads.device)
    grad_weight = memory.empty((outputs, in_features), grads.dtype, grads.device)
    finite = module.event_weight_grad(
        grads.data_ptr(),
        *grads.stride(),
        panels.data_ptr(),
        bits.data_ptr(),
        0 if ones or rows is None else rows.data_ptr(),
        0 if ones or rows is None else rows.stride(0),
        grad_weight.data_ptr(),
        n,
        in_features,
        outputs,
        _DTYPES[grads.dtype],
        threads,
    )
    if not finite:  # infinity and NaN reach the gradient even through zeros
        return dense.product(grads.t(), _unpacked(bits, in_features, grads.dtype) if rows is None else rows)
    return grad_weight


def _unpacked(bits: Tensor, inputs: int, dtype: torch.dtype) -> Tensor:
    """The rows that bits of ones stand for."""
    found = (bits.unsqueeze(-1) >> torch.arange(64)) & 1
    return found.flatten(1)[:, :inputs].to(dtype)


def _event_input_grad(grad_y: Tensor, weight: Tensor, membrane: Tensor, threshold: float, reach: float) -> Tensor:
    outputs, inputs = weight.shape
    module = _compiled_for(grad_y, weight)
    known = _known.get(id(weight))
    panels = None if module is None or known is None or known.of() is not weight else known.panels
    if panels is None or driven.mode() == "never":
        return _product(grad_y, weight)
    grads, kept = grad_y.contiguous(), membrane.contiguous()
    grad_x = memory.empty((*grads.shape[:-1], inputs), grads.dtype, grads.device)
    restricted = module.event_input_grad(
        kept.data_ptr(),
        membrane.dtype == torch.int16,
        threshold,
        reach,
        1.0 if driven.mode() == "always" else _MOST_FREE,
        panels.data_ptr(),
        grads.data_ptr(),
        grad_x.data_ptr(),
        grads.numel() // outputs,
        inputs,
        outputs,
        _DTYPES[grads.dtype],
        backend.threads(),
    )
    return grad_x if restricted else _product(grads, weight)


def _product(grad_y: Tensor, weight: Tensor) -> Tensor:
    """grad_y·weight, without derivatives of its own, in memory that the next steps of a loop use again."""
    if not grad_y.is_cpu or not _plain(grad_y) or grad_y.dtype != weight.dtype or grad_y.is_complex():
        return grad_y @ weight
    if dense.is_wider(grad_y.reshape(-1, grad_y.shape[-1]), weight.t()):
        return dense.product(grad_y.reshape(-1, grad_y.shape[-1]), weight).view(*grad_y.shape[:-1], weight.shape[1])
    grad_x = memory.empty((*grad_y.shape[:-1], weight.shape[1]), weight.dtype, weight.device)
    torch.mm(grad_y.reshape(-1, grad_y.shape[-1]), weight, out=grad_x.view(-1, weight.shape[1]))
    return grad_x


for key in ("CPU", "CUDA"):
    library.impl("event_linear", _event_linear, key)
    library.impl("event_weight_grad", _event_weight_grad, key)
    library.impl("event_input_grad", _event_input_grad, key)


# --- fake ---------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("spiking::event_linear")
def _event_linear_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bits: Tensor | None,
    ones: bool,
    always: bool,
    membrane: Tensor | None = None,
    threshold: float = 0.0,
    reach: float = 0.0,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.register_fake("spiking::event_weight_grad")
def _event_weight_grad_fake(
    grad_y: Tensor, x: Tensor | None, bits: Tensor | None, ones: bool, in_features: int, always: bool
) -> Tensor:
    return grad_y.new_empty((grad_y.shape[-1], in_features))


@torch.library.register_fake("spiking::event_input_grad")
def _event_input_grad_fake(grad_y: Tensor, weight: Tensor, membrane: Tensor, threshold: float, reach: float) -> Tensor:
    return grad_y.new_empty((*grad_y.shape[:-1], weight.shape[1]))


# --- autograd -----------------------------------------------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, bits, ctx.ones, ctx.always, membrane, ctx.threshold, ctx.reach = inputs
    ctx.in_features, ctx.weight_key = x.shape[-1], id(weight)
    ctx.packed = bits is not None and ctx.ones  # 1 bit for what would be kept in 32
    kept = bits if ctx.packed else x if ctx.needs_input_grad[1] else None
    on = ctx.needs_input_grad[0]
    ctx.save_for_backward(kept, bits, weight if on else None, membrane if on else None)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    kept, bits, weight, membrane = ctx.saved_tensors
    grad_x = None
    if ctx.needs_input_grad[0] and torch.is_grad_enabled():
        grad_x = grad_y @ weight
    elif ctx.needs_input_grad[0] and membrane is None:
        grad_x = _product(grad_y, weight)
    elif ctx.needs_input_grad[0]:
        grad_x = torch.ops.spiking.event_input_grad(grad_y, weight, membrane, ctx.threshold, ctx.reach)
    known = _known.get(ctx.weight_key)
    if known is not None:  # an optimiser step will follow: the memory is of more use to the gradients
        known.drop()
    grad_weight = None
    if ctx.needs_input_grad[1]:
        if ctx.packed and torch.is_grad_enabled():
            raise SpikingError(
                "event_linear: second derivatives were asked for, but the input was kept as bits. "
                'Run the forward pass under spiking.event_driven("never").'
            )
        x = None if ctx.packed else kept
        grad_weight = torch.ops.spiking.event_weight_grad(grad_y, x, bits, ctx.ones, ctx.in_features, ctx.always)
    grad_bias = grad_y.reshape(-1, grad_y.shape[-1]).sum(0) if ctx.needs_input_grad[2] else None
    return grad_x, grad_weight, grad_bias, *(None,) * 6


torch.library.register_autograd("spiking::event_linear", _backward, setup_context=_setup_context)


def _setup_grad_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_y, x, bits, ctx.ones, _, ctx.always = inputs
    ctx.save_for_backward(grad_y, x, bits)


def _grad_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_y, x, bits = ctx.saved_tensors
    to_grad_y = torch.ops.spiking.event_linear(x, grad, None, bits, ctx.ones, ctx.always)
    return to_grad_y, grad_y @ grad if ctx.needs_input_grad[1] else None, None, None, None, None


torch.library.register_autograd("spiking::event_weight_grad", _grad_backward, setup_context=_setup_grad_context)


# --- calls --------------------------------------------------------------------------------------------------------------


def at_hand(x: Tensor, weight: Tensor, bias: Tensor | None, always: bool) -> Tensor | None:
    """The short way of `event_linear` (`always`) and `linear`: y where the weight's panels are made and no gradient is wanted; else None.

    A product of microseconds is worth as few questions as are enough. Nothing is refused here: what does not fit takes the long way.
    """
    if torch.compiler.is_compiling():
        return None
    known = _known.get(id(weight))
    ready = None if known is None else known.ready
    if ready is None or known.of() is not weight or type(x) not in _PLAIN:  # type: ignore[union-attr]
        return None
    if torch._C._len_torch_dispatch_stack() != 0 or torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    plan, _, version, address, shape, dtype = ready
    outputs, inputs = shape
    size = x.shape
    if (
        x.dtype is not dtype
        or x.layout is not torch.strided
        or not size
        or size[-1] != inputs
        or not x.is_contiguous()
        or not x.is_cpu
        or weight._version != version
        or weight.data_ptr() != address
        or weight.shape != shape
        or not weight.is_contiguous()
        or (bias is not None and not _fits(bias, outputs, dtype))
        or _learns(x, weight, bias)
        or ((watching := watch.current()) is not None and watching.wants_input)  # it counts the spikes too
    ):
        return None
    rows = x.numel() // inputs
    mode = "always" if always else driven.mode()
    if rows == 0 or mode == "never" or (not always and torch.is_autocast_enabled("cpu")):
        return None
    threads = backend.threads()
    limit = _NO_LIMIT
    if mode == "auto":
        limit = cost.most_spikes_linear(rows, inputs, outputs, dtype.itemsize, threads, calls=_CALLS)
        if limit < 0:
            return dense.linear(x, weight, bias)
    small = rows * outputs * dtype.itemsize < memory.SMALLEST
    y = x.new_empty((*size[:-1], outputs)) if small else memory.empty((*size[:-1], outputs), dtype, x.device)
    to_bias = 0 if bias is None else bias.data_ptr()
    found = plan.run(x.data_ptr(), inputs, 0, False, limit, to_bias, y.data_ptr(), rows, threads, 0, 0)
    return y if found >= 0 else dense.linear(x, weight, bias)


def _fits(bias: Tensor, outputs: int, dtype: torch.dtype) -> bool:
    return (
        type(bias) in _PLAIN
        and bias.dtype is dtype
        and bias.dim() == 1
        and bias.numel() == outputs
        and bias.is_contiguous()
        and bias.is_cpu
    )


def event_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x·Wᵀ + b from the non-zeros of x, whatever their number; see `functional.event_linear`."""
    if cuda_event.here(x) and not torch.compiler.is_compiling():
        y = _on_cuda(x, weight, bias, True)
        return tf.linear(x, weight, bias) if y is None else y
    if not torch.compiler.is_compiling() and _plain(x):
        module = _compiled_for(x, weight)
        if module is not None and not _learns(x, weight, bias):
            y = _forward(module, x, weight, bias, None, False, True)
            return dense.linear(x, weight, bias) if y is None else y
        if module is not None:
            bits = _bits_for(x)
            found = _count(module, x, _NO_LIMIT, bits)
            return torch.ops.spiking.event_linear(x, weight, bias, bits, bool(found & 1), True)
    return torch.ops.spiking.event_linear(x, weight, bias, None, False, True)


class Membrane(NamedTuple):
    """What is known of the neurons that sent a layer's input: their derivative is 0 from |values - threshold| = reach on.

    values: their membranes before the spike, as `ops.integrate` keeps them (float, or 16-bit codes).
    """

    values: Tensor
    threshold: float
    reach: float


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, sent_by: Membrane | None = None) -> Tensor:
    """torch's linear, or the event-driven one where the cost model predicts that it wins; `event_driven` says who decides.

    With `sent_by`, dL/dx may be 0 where those neurons' derivative is: nobody but they may see it.
    """
    cast = x.dtype != torch.float64 and not x.is_meta and torch.is_autocast_enabled(x.device.type)
    if cast:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if torch.compiler.is_compiling():
        return torch.ops.spiking.event_linear(x, weight, bias, None, False, False, *(sent_by or ()))
    mode = driven.mode()
    if cuda_event.here(x):
        y = None if mode == "never" else _on_cuda(x, weight, bias, mode == "always")
        return tf.linear(x, weight, bias) if y is None else y
    if not _plain(x):
        return tf.linear(x, weight, bias)
    learns = _learns(x, weight, bias)
    module = _compiled_for(x, weight) if mode != "never" else None
    if module is None:
        return dense.learnable(x, weight, bias) if learns else dense.linear(x, weight, bias)
    if not learns and not cast:
        y = _forward(module, x, weight, bias, None, False, mode == "always")
        return dense.linear(x, weight, bias) if y is None else y
    limit = _NO_LIMIT if mode == "always" else _limit_of_new(x, weight, learns)
    if limit >= 0:
        bits = _bits_for(x)
        found = _count(module, x, limit, bits)
        if found >= 0:
            ones = bool(found & 1)
            return torch.ops.spiking.event_linear(x, weight, bias, bits, ones, True, *(sent_by or ()))
    return dense.learnable(x, weight, bias) if learns else dense.linear(x, weight, bias)


def _limit_of_new(x: Tensor, weight: Tensor, learns: bool) -> int:
    """The most spikes at which a weight that serves one call only wins: it learns, or autocast made it."""
    outputs, inputs = weight.shape
    rows, item = x.numel() // inputs, x.dtype.itemsize
    if weight.requires_grad:
        return _training_limit(rows, inputs, outputs, item)
    if learns:  # only the forward pass would gain, which rarely pays for an operator with a backward of its own
        return -1
    return cost.most_spikes_linear(rows, inputs, outputs, item, backend.threads())


def _on_cuda(x: Tensor, weight: Tensor, bias: Tensor | None, always: bool) -> Tensor | None:
    """y by the event-driven CUDA kernel; None where the dense product is taken (cuda/event.py says why)."""
    learns = _learns(x, weight, bias)
    if (
        not _plain(x)
        or not (always or _keeps(weight))
        or cuda_event.why_dense(x, weight, learns=learns, always=always) is not None
    ):
        return None
    panels = _packed(_panels_of(None, weight), weight)
    return None if panels is None else cuda_event.linear(x, panels, bias, weight.shape[0])


def linear_neurons(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    params: Tensor | None,
    inner: int,
    rule: list[int],
    numbers: list[float],
) -> tuple[Tensor, Tensor] | None:
    """A linear layer and the neurons after it in one kernel: x [T, B, in] -> (spikes [T, B, out], last state); None where there is none.

    `params`, `inner`, `rule` and `numbers` are those of `ops.integrate`.
    """
    mode = driven.mode()
    if mode == "never" or not cuda_event.here(x) or not _plain(x) or not (mode == "always" or _keeps(weight)):
        return None
    if any(t is not None and t.device != x.device for t in (bias, state, params)):
        return None
    learns = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias, state, params)
    )
    if cuda_event.why_dense(x, weight, learns=learns, always=mode == "always", neurons=True) is not None:
        return None
    panels = _packed(_panels_of(None, weight), weight)
    if panels is None:
        return None
    return cuda_event.neurons(x, panels, bias, weight.shape[0], state, params, inner, rule, numbers)


def _learns(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return torch.is_grad_enabled() and (
        weight.requires_grad or x.requires_grad or (bias is not None and bias.requires_grad)
    )


def _plain(x: Tensor) -> bool:
    """Whether x is memory that kernels may read now: no fake tensor, no transform, no mode that wants to see the operators."""
    return (
        type(x) in _PLAIN
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )
