"""Layers that take whole sequences: [T, B, …] in, [T, B, …] out.

Convolutions, pooling and norms treat every time step alike, so a sequence [T, B, C, H, W] is seen as one batch of T·B
images and folded back. Four axes [B, C, H, W] are one time step and behave as in torch. `Sequential` chains layers and
neurons, and threads the neurons' states through: at once, in chunks, or step by step gives the same output.

Source of the time-folding: Fang et al. 2023, SpikingJelly (Science Advances 9, eadi1480), section "step modes".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as tf

from spiking.cuda_kernels import cost, event_conv_ops, event_linear_ops, watch
from spiking.cuda_kernels.cuda import event as cuda_event
from spiking.cuda_kernels.mask_ops import dropout_mask
from spiking.cuda_kernels.pool_ops import average_pool, pool_moments
from spiking.errors import SpikingError

__all__ = [
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "Dropout",
    "Flatten",
    "Linear",
    "MaxPool2d",
    "Sequential",
    "TDBatchNorm1d",
    "TDBatchNorm2d",
]


def _shape(x: Tensor) -> list[int]:
    return list(x.shape)


def _images(layer: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """`run` on images [N, C, H, W], with the time axis of [T, B, C, H, W] folded into N."""
    if x.dim() == 5:
        return run(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    if x.dim() == 4:
        return run(x)
    raise SpikingError(
        f"{type(layer).__name__}: got input of shape {_shape(x)}; expected [T, B, C, H, W], or [B, C, H, W] for one step."
    )


class Linear(nn.Linear):
    """A weight from every input to every output, at every time step.

        y[t] = x[t]·Wᵀ + b

    Only spikes are multiplied where that is quicker (see `event_driven`); the choice changes results by the order of summation only.

    Shapes: x [T, B, in_features] (or any leading axes) -> [T, B, out_features].   Dtype: the weight's; spikes may be integers or bools.
    Errors: SpikingError if the last axis is not in_features.

    >>> Linear(3, 2)(torch.zeros(5, 1, 3)).shape
    torch.Size([5, 1, 2])
    """

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        y = event_linear_ops.at_hand(input, weight, bias, False)
        if y is not None:
            return y
        if not isinstance(input, Tensor) or input.layout != torch.strided:
            what = f"layout {input.layout}" if isinstance(input, Tensor) else f"type {type(input).__name__}"
            raise SpikingError(f"Linear: got input of {what}; expected a dense tensor.")
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise SpikingError(
                f"Linear: got input of shape {_shape(input)}; expected {self.in_features} features on the last axis. "
                "Put Flatten() before it if these are images."
            )
        if not (input.is_floating_point() or input.is_complex()):
            input = input.to(weight.dtype)
        return event_linear_ops.linear(input, weight, bias)

    def event_choice(self, input: Tensor) -> cost.Choice:
        """Dense or event-driven, and the predicted seconds of both, for this input in evaluation."""
        return event_linear_ops.choice(input, self.weight)


class Conv2d(nn.Conv2d):
    """torch's 2-d convolution at every time step.

    Only spikes are multiplied where that is quicker (see `event_driven`); the choice changes results by the order of summation only.
    With dilation, or padding by anything but a number of zeros, it is torch's convolution.

    Shapes: x [T, B, C_in, H, W] -> [T, B, C_out, H', W']; [B, C_in, H, W] is one time step.   Dtype: the weight's; spikes may be
    integers or bools.
    Errors: SpikingError for another number of axes or channels.

    >>> Conv2d(2, 12, 5)(torch.zeros(6, 1, 2, 34, 34)).shape
    torch.Size([6, 1, 12, 30, 30])
    """

    def forward(self, input: Tensor) -> Tensor:
        if sums_spikes(self):
            y = event_conv_ops.at_hand(input, self.weight, self.bias, self.stride, self.padding, self.groups, False)
            if y is not None:
                return y
        if input.dim() in (4, 5) and input.shape[-3] != self.in_channels:
            raise SpikingError(
                f"Conv2d: got input of shape {_shape(input)}; expected {self.in_channels} channels on the third axis "
                "from the end."
            )
        if not (input.is_floating_point() or input.is_complex()):
            input = input.to(self.weight.dtype)
        return _images(self, input, self._convolved if self.sums_spikes else super().forward)

    def event_choice(self, input: Tensor) -> cost.Choice:
        """Dense or event-driven, and the predicted seconds of both, for this input in evaluation.

        What the kernels do not know (`sums_spikes`) is priced as if it were not padded; it is dense in any case.
        """
        stride, padding, groups = self.call if self.sums_spikes else (list(self.stride), [0, 0], self.groups)
        images = input.flatten(0, 1) if input.dim() == 5 else input
        return event_conv_ops.choice(images, self.weight, stride, padding, groups)

    @property
    def sums_spikes(self) -> bool:
        """Whether the event-driven kernels know this kind of convolution."""
        return sums_spikes(self)

    def _convolved(self, images: Tensor) -> Tensor:
        return event_conv_ops.conv2d(images, self.weight, self.bias, *self.call)

    @property
    def call(self) -> tuple[list[int], list[int], int]:
        """Stride, padding and groups, as the kernels take them."""
        return list(self.stride), list(self.padding), self.groups  # type: ignore[arg-type]


def sums_spikes(conv: nn.Conv2d) -> bool:
    """Whether the event-driven kernels know this kind of convolution."""
    return conv.padding_mode == "zeros" and conv.dilation == (1, 1) and not isinstance(conv.padding, str)


class AvgPool2d(nn.AvgPool2d):
    """The mean of each window, at every time step.

    Shapes: x [T, B, C, H, W] -> [T, B, C, H', W']; [B, C, H, W] is one time step.

    >>> AvgPool2d(2)(torch.ones(6, 1, 12, 30, 30)).shape
    torch.Size([6, 1, 12, 15, 15])
    """

    def forward(self, input: Tensor) -> Tensor:
        window = _window(self)
        ours = (
            window is not None and not torch.compiler.is_compiling() and input.is_cpu and event_linear_ops._plain(input)
        )
        if ours and input.dtype in (torch.float32, torch.float64) and min(input.shape[-2:], default=0) >= (window or 1):
            return _images(self, input, lambda images: average_pool(images, window))
        return _images(self, input, super().forward)


class MaxPool2d(nn.MaxPool2d):
    """The largest value of each window, at every time step: of spikes, whether any neuron there fired.

    Shapes: x [T, B, C, H, W] -> [T, B, C, H', W']; [B, C, H, W] is one time step.

    >>> MaxPool2d(2)(torch.eye(2).reshape(1, 1, 1, 2, 2)).item()
    1.0
    """

    def forward(self, input: Tensor) -> Tensor:
        return _images(self, input, super().forward)


class Flatten(nn.Module):
    """All axes but time and batch become one.

    Shapes: x [T, B, …] -> [T, B, N].
    Errors: SpikingError if there is no axis beyond [T, B].

    >>> Flatten()(torch.zeros(6, 1, 32, 5, 5)).shape
    torch.Size([6, 1, 800])
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 3:
            raise SpikingError(f"Flatten: got input of shape {_shape(x)}; expected [T, B, …] with at least three axes.")
        return x.flatten(2)


class Dropout(nn.Module):
    """In training, silences each value with probability p: the same ones at every time step.

        y[t] = x[t]·m / (1 - p);   m ~ Bernoulli(1 - p), drawn once a sequence

    A mask drawn anew each step would average out over time and regularise nothing that a membrane integrates.
    Shapes: x [T, B, …] -> the same; the state is the mask [B, …], so that a sequence may be continued.
    Errors: SpikingError unless 0 <= p < 1.
    Source: Lee et al. 2020, Frontiers in Neuroscience 14:119, section 2.3.

    >>> y = Dropout(0.5)(torch.ones(3, 1, 8))
    >>> bool((y[0] == y[1]).all() and (y[0] == y[2]).all())
    True
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise SpikingError(f"Dropout.p: got {p}; expected 0 <= p < 1.")
        self.p = p

    def forward(self, x: Tensor, state: Tensor | None = None, return_state: bool = False) -> Any:
        if not self.training or self.p == 0:
            return (x, None) if return_state else x
        mask = dropout_mask(x[0], self.p) if state is None else state
        y = x * mask
        return (y, mask) if return_state else y

    def step(self, x_t: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        y, state = self(x_t.unsqueeze(0), state=state, return_state=True)
        return y.squeeze(0), state

    def extra_repr(self) -> str:
        return f"p={self.p}"


class BatchNorm1d(nn.BatchNorm1d):
    """Batch normalisation of features, with statistics over time and batch together.

        y = weight·(x - mean) / sqrt(var + eps) + bias;   mean, var over T·B

    Shapes: x [T, B, C] -> [T, B, C]; [B, C] is one time step.
    Source: Ioffe, Szegedy 2015 (arXiv 1502.03167); over T·B: Zheng et al. 2021 (arXiv 2011.05280).

    >>> BatchNorm1d(4)(torch.randn(6, 8, 4)).mean().abs().item() < 1e-6
    True
    """

    def forward(self, input: Tensor) -> Tensor:
        return _features(self, input, super().forward)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation of channels, with statistics over time, batch and image together.

        y = weight·(x - mean) / sqrt(var + eps) + bias;   mean, var over T·B·H·W

    Shapes: x [T, B, C, H, W] -> the same; [B, C, H, W] is one time step.
    Source: Ioffe, Szegedy 2015 (arXiv 1502.03167); over T·B: Zheng et al. 2021 (arXiv 2011.05280).

    >>> BatchNorm2d(4)(torch.randn(6, 8, 4, 5, 5)).mean().abs().item() < 1e-6
    True
    """

    def forward(self, input: Tensor) -> Tensor:
        return _images(self, input, super().forward)


def _features(layer: nn.Module, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
    """`run` on features [N, C], with the time axis of [T, B, C] folded into N."""
    if x.dim() == 3:
        return run(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    if x.dim() == 2:
        return run(x)
    raise SpikingError(
        f"{type(layer).__name__}: got input of shape {_shape(x)}; expected [T, B, C], or [B, C] for one step."
    )


class _ThresholdScaled(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose output has the standard deviation alpha·threshold before the affine part."""

    def __init__(
        self,
        num_features: int,
        threshold: float = 1.0,
        alpha: float = 1.0,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine)
        if not threshold > 0:
            raise SpikingError(f"{type(self).__name__}.threshold: got {threshold}; expected a number above 0.")
        if not alpha > 0:
            raise SpikingError(f"{type(self).__name__}.alpha: got {alpha}; expected a number above 0.")
        self.threshold = threshold
        self.alpha = alpha

    def _check_input_dim(self, input: Tensor) -> None:
        """The number of axes was checked before time was folded."""

    def _normalise(self, x: Tensor) -> Tensor:
        scale = self.alpha * self.threshold
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        weight = x.new_full((self.num_features,), scale) if self.weight is None else self.weight * scale
        return tf.batch_norm(
            x, self.running_mean, self.running_var, weight, self.bias, self.training, self.momentum or 0.0, self.eps
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, threshold={self.threshold}, alpha={self.alpha}, eps={self.eps}"


class TDBatchNorm1d(_ThresholdScaled):
    """Threshold-dependent batch normalisation (tdBN) of features: currents of the threshold's size at any depth.

        y = weight·alpha·threshold·(x - mean) / sqrt(var + eps) + bias;   mean, var over T·B

    Shapes: x [T, B, C] -> [T, B, C]; [B, C] is one time step. alpha is 1, or 1/√2 where two such branches are added.
    Errors: SpikingError unless threshold > 0 and alpha > 0.
    Source: Zheng et al. 2021 (arXiv 2011.05280), equations 7 to 9.

    >>> round(TDBatchNorm1d(1, threshold=0.5)(torch.randn(100, 100, 1)).std().item(), 2)
    0.5
    """

    def forward(self, input: Tensor) -> Tensor:
        return _features(self, input, self._normalise)


class TDBatchNorm2d(_ThresholdScaled):
    """Threshold-dependent batch normalisation (tdBN) of channels; see `TDBatchNorm1d`.

    Shapes: x [T, B, C, H, W] -> the same; [B, C, H, W] is one time step.

    >>> round(TDBatchNorm2d(1, threshold=0.5)(torch.randn(10, 10, 1, 10, 10)).std().item(), 2)
    0.5
    """

    def forward(self, input: Tensor) -> Tensor:
        return _images(self, input, self._normalise)


def _window(pool: nn.Module) -> int | None:
    """The side of a pooling layer's windows where they are square, lie side by side and cover no padding."""
    if not (_is_plain(pool, AvgPool2d) or _is_plain(pool, MaxPool2d)):
        return None
    sides = {*_two(pool.kernel_size), *_two(pool.stride)}
    plain = len(sides) == 1 and _two(pool.padding) == (0, 0) and not pool.ceil_mode
    if isinstance(pool, AvgPool2d):
        plain &= pool.divisor_override is None
    else:
        plain &= _two(pool.dilation) == (1, 1) and not pool.return_indices
    return sides.pop() if plain else None


def _two(size: Any) -> tuple[Any, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a layer is of this class and no other, so that nothing but the class's own forward may be passed over."""
    return type(layer) is kind and "forward" not in vars(layer)


def _is_watched(layer: nn.Module) -> bool:
    kinds = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(not watch.is_of_watch(hook) for hooks in kinds for hook in hooks.values())


def _normalises(norm: nn.Module, pool: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether training may run batch normalisation of [T, B, C, H, W] and the average pooling after it in one pass each way."""
    if not (_is_plain(norm, BatchNorm2d) and isinstance(pool, AvgPool2d) and norm.training and len(shape) == 5):
        return False
    assert isinstance(norm, BatchNorm2d)
    window = _window(pool)
    plain = window is not None and norm.affine and norm.track_running_stats and norm.momentum is not None
    fits = plain and shape[2] == norm.num_features and min(shape[3:]) >= (window or 1) and math.prod(shape) > shape[2]
    return fits and dtype in (torch.float32, torch.float64) and not (_is_watched(norm) or _is_watched(pool))


def _out_shape(conv: Conv2d, x: Tensor) -> tuple[int, ...]:
    steps, pads, _ = conv.call
    high, wide = (
        (size + 2 * pad - kernel) // step + 1
        for size, pad, kernel, step in zip(x.shape[3:], pads, conv.kernel_size, steps)
    )
    return *x.shape[:2], conv.out_channels, high, wide


def _convolves(conv: nn.Module, x: Tensor) -> bool:
    """Whether a convolution may run together with the normalisation and pooling after it."""
    if torch.compiler.is_compiling() or not isinstance(conv, Conv2d) or not _is_plain(conv, Conv2d):
        return False
    if not conv.sums_spikes or conv.bias is not None:
        return False
    fits = x.dim() == 5 and x.shape[2] == conv.in_channels and x.dtype == conv.weight.dtype
    return fits and min(_out_shape(conv, x)) > 0 and not _is_watched(conv)


# torch's layers that take the time axis for another one; with how many axes, and what to use instead.
_TIMELESS: dict[type, tuple[int, str]] = {
    nn.Conv2d: (5, "Conv2d"),
    nn.AvgPool2d: (5, "AvgPool2d"),
    nn.MaxPool2d: (5, "MaxPool2d"),
    nn.BatchNorm2d: (5, "BatchNorm2d"),
    nn.BatchNorm1d: (3, "BatchNorm1d"),
    nn.Flatten: (5, "Flatten"),
}


def _refuse_timeless(layer: nn.Module, x: Tensor) -> None:
    axes, ours = _TIMELESS.get(type(layer), (0, ""))
    if x.dim() == axes:
        raise SpikingError(
            f"torch.nn.{ours}: got input of shape {_shape(x)}; it knows no time axis. Use spiking.{ours} in its place."
        )


def _drives(layer: nn.Module, following: Any, x: Tensor) -> bool:
    """Whether the next layer may be asked to take this linear layer's work along; nobody must be watching what passes between."""
    if not cuda_event.here(x):
        return False
    watched = _is_watched(layer) or _is_watched(following)
    return _is_plain(layer, Linear) and _stands_for_forward(following, "after_linear") and not watched


def _together(layers: list[Any], states: tuple[Any, ...], x: Tensor) -> tuple[Any, ...] | None:
    """What the first few layers give in one pass, with the state of each; None where the first runs by itself."""
    if len(layers) < 2:
        return None
    first, second = layers[:2]
    watching = watch.current()
    if watching is not None:  # it hears of this pair; of others, layer by layer
        if not (_pools(first, x) and _may_follow(second)):
            return None
        watching.begins(second)
        s, state = second.after_pool(x, _window(first), isinstance(first, MaxPool2d), None, states[1])
        watching.together(first, second, x, s)
        return s, None, state
    if len(layers) > 2 and _convolves(first, x) and _normalises(second, layers[2], _out_shape(first, x), x.dtype):
        return _then_neuron(_conv_pooled(first, layers[2], x), second, layers[3:], states[3:], 3)
    if window := _window_after(first, second, x):
        if isinstance(second, MaxPool2d):
            return _conv_largest(first, window, x)
        if _learns_averages(first):
            return _conv_averaged(first, second, window, x), None, None
    if _normalises(first, second, tuple(x.shape), x.dtype):
        pooled, moments = pool_moments(x.flatten(0, 1), _window(second))
        found = pooled.unflatten(0, x.shape[:2]), moments, x.numel() // x.shape[2]
        return _then_neuron(found, first, layers[2:], states[2:], 2)
    if _pools(first, x) and _may_follow(second):
        s, state = second.after_pool(x, _window(first), isinstance(first, MaxPool2d), None, states[1])
        return s, None, state
    if _drives(first, second, x):
        both = second.after_linear(x, first.weight, first.bias, states[1])
        return None if both is None else (both[0], None, both[1])
    if _sends(first, second, x):
        s, state, sent_by = first.sending(x, states[0])
        return event_linear_ops.linear(s, second.weight, second.bias, sent_by), state, None
    return None


def _window_after(conv: nn.Module, pool: nn.Module, x: Tensor) -> int:
    """The side of the windows where a convolution of [T, B, C, H, W] may run together with the pooling after it, else 0."""
    if (
        torch.compiler.is_compiling()
        or not isinstance(conv, Conv2d)
        or not _is_plain(conv, Conv2d)
        or not conv.sums_spikes
    ):
        return 0
    fits = x.is_cpu and x.dim() == 5 and x.shape[2] == conv.in_channels and x.dtype in (torch.float32, torch.float64)
    same = x.dtype == conv.weight.dtype and (conv.bias is None or x.dtype == conv.bias.dtype)
    window = _window(pool) or 1
    if not (fits and same) or window == 1 or _is_watched(conv) or _is_watched(pool):
        return 0
    return window if window <= min(16, *_out_shape(conv, x)[3:]) else 0


def _conv_largest(conv: Conv2d, window: int, x: Tensor) -> tuple[Any, ...]:
    """Maxima of conv(x); from spikes, conv(x) is never all in memory; of too many of them, only the convolution has run."""
    images = x.flatten(0, 1)
    found = event_conv_ops.spikes_for(images, conv.weight, conv.bias, *conv.call)
    if found is None:
        return nn.Conv2d.forward(conv, images).unflatten(0, x.shape[:2]), None
    _, images, _, spikes = found
    call = (spikes.masks, spikes.ones, *conv.call, window)
    pooled, _ = event_conv_ops.event_conv_max(images, conv.weight, conv.bias, *call)
    return pooled.unflatten(0, x.shape[:2]), None, None


def _learns_averages(conv: Conv2d) -> bool:
    """Whether a convolution is trained that, averaged over windows, has fewer products as one convolution."""
    learns = torch.is_grad_enabled() and conv.weight.requires_grad and not torch.is_autocast_enabled("cpu")
    return learns and conv.stride == (1, 1) and conv.kernel_size != (1, 1)


def _conv_averaged(conv: Conv2d, pool: nn.Module, window: int, x: Tensor) -> Tensor:
    """Averages of conv(x) as one convolution; where something is not finite, and the sum of a window may be NaN, as two."""
    images, (_, padding, groups) = x.flatten(0, 1), conv.call
    weight, steps = event_conv_ops.averaged(conv.weight, window), [window, window]
    found = event_conv_ops.spikes_for(images, weight, conv.bias, steps, padding, groups)
    finite = event_conv_ops.is_finite(conv.weight)
    if not finite or not ((found is not None and found[3].ones) or event_conv_ops.is_finite(images)):
        return pool(conv(x))
    if found is None:
        y = tf.conv2d(images, weight, conv.bias, steps, padding, 1, groups)
    else:
        _, images, _, spikes = found
        call = (spikes.masks, spikes.ones, steps, padding, groups, True)
        y = event_conv_ops.conv_of_spikes(images, weight, conv.bias, *call)
    return y.unflatten(0, x.shape[:2])


def _sends(neuron: Any, linear: nn.Module, x: Tensor) -> bool:
    """Whether a neuron may tell the linear layer after it which input gradients it will not use; nobody else may see them."""
    if not hasattr(neuron, "sends") or not _is_plain(linear, Linear) or _is_watched(neuron) or _is_watched(linear):
        return False
    return neuron.sends() and x.dim() > 2 and x.shape[-1] == linear.in_features


def _pools(pool: nn.Module, x: Tensor) -> bool:
    """Whether a pooling layer may run together with the neuron after it."""
    window = _window(pool)
    fits = window is not None and x.dim() == 5 and min(x.shape[3:]) >= window and x.is_floating_point()
    return fits and not _is_watched(pool)


def _may_follow(neuron: Any) -> bool:
    return _stands_for_forward(neuron, "after_pool") and not _is_watched(neuron)


def _stands_for_forward(layer: nn.Module, method: str) -> bool:
    """Whether a method may run in place of forward: both are of one class, so that no subclass or layer has a forward of its own."""
    owners = [next((k for k in type(layer).__mro__ if name in vars(k)), None) for name in (method, "forward")]
    return owners[0] is not None and owners[0] is owners[1] and "forward" not in vars(layer)


def _conv_pooled(conv: Conv2d, pool: AvgPool2d, x: Tensor) -> tuple[Tensor, Tensor, int]:
    """conv(x) pooled, the moments of conv(x), and of how many numbers a channel; from spikes, conv(x) is never all in memory."""
    images, window = x.flatten(0, 1), _window(pool)
    n = math.prod(_out_shape(conv, x)) // conv.out_channels
    found = event_conv_ops.spikes_for(images, conv.weight, None, *conv.call)
    if found is None:
        pooled, moments = pool_moments(nn.Conv2d.forward(conv, images), window)
    else:
        _, images, _, spikes = found
        pooled, moments = event_conv_ops.event_conv_pool(
            images, conv.weight, spikes.masks, spikes.ones, *conv.call, window
        )
    return pooled.unflatten(0, x.shape[:2]), moments, n


def _then_neuron(
    found: tuple[Tensor, Tensor, int], norm: BatchNorm2d, layers: list[Any], states: tuple[Any, ...], ran: int
) -> tuple[Any, ...]:
    """Normalisation applied to pooled images, in the same pass as a neuron that follows: the mean of a window of a·x + b is a·mean + b."""
    pooled, moments, n = found
    mean = moments[0] / n
    variance = (moments[1] / n - mean * mean).clamp(min=0)
    scale = norm.weight.double() * (variance + norm.eps).rsqrt()
    shift = norm.bias.double() - mean * scale
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)  # type: ignore[union-attr, operator]
        for running, now in ((norm.running_mean, mean), (norm.running_var, variance * n / (n - 1))):
            running.lerp_(now.to(running.dtype), norm.momentum)  # type: ignore[union-attr, arg-type]
    affine = torch.stack([scale, shift]).to(pooled.dtype)
    if layers and _may_follow(layers[0]):
        s, state = layers[0].after_pool(pooled, 1, False, affine, states[0])
        return s, *(None,) * ran, state
    scale, shift = affine[:, :, None, None]
    return torch.addcmul(shift, pooled, scale), *(None,) * ran


class Sequential(nn.Sequential):
    """Layers and neurons one after the other, with their states in the caller's hands.

    Shapes: x [T, B, …] -> [T, B, …] from a fresh state; `state` and `return_state` continue a sequence, `step` takes one
    time step [B, …]. The state is a tuple with one entry a layer, None for layers that have none. At once, in chunks and
    step by step give the same output (batch norm in training excepted: its statistics are those of what it is shown).
    Errors: SpikingError if the state has another number of entries; errors of a layer are re-raised with its name.

    >>> net = Sequential(Linear(3, 2), Dropout(0.1))
    >>> y, state = net.step(torch.zeros(4, 3), None)
    >>> y.shape, len(state)
    (torch.Size([4, 2]), 2)
    """

    def forward(self, input: Tensor, state: tuple[Any, ...] | None = None, return_state: bool = False) -> Any:
        x = input
        after: list[Any] = []
        names, layers, states = [*self._modules], [*self.children()], self._states(state)
        done: list[Any] = []  # the states of layers that ran together with one before them
        for i, (name, layer, before) in enumerate(zip(names, layers, states)):
            try:
                if done:
                    new = done.pop(0)
                elif (together := _together(layers[i:], states[i:], x)) is not None:
                    x, new, *done = together
                elif not hasattr(layer, "step"):
                    _refuse_timeless(layer, x)
                    x, new = layer(x), None
                elif return_state or before is not None:
                    x, new = layer(x, state=before, return_state=True)
                else:
                    x, new = layer(x), None
            except SpikingError as err:
                raise SpikingError(f'layer "{name}": {err}') from err
            after.append(new)
        return (x, tuple(after)) if return_state else x

    def step(self, x_t: Tensor, state: tuple[Any, ...] | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        x, after = self(x_t.unsqueeze(0), state=state, return_state=True)
        return x.squeeze(0), after

    def _states(self, state: tuple[Any, ...] | None) -> tuple[Any, ...]:
        if state is None:
            return (None,) * len(self)
        if len(state) != len(self):
            raise SpikingError(
                f"Sequential.state: got {len(state)} entries; expected {len(self)}, one a layer. "
                "Pass on what the last call returned."
            )
        return state
