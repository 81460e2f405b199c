"""Trained networks on arrays of memory cells: the same model with its products taken by devices.

>>> import spiking
>>> net = spiking.Sequential(spiking.Linear(6, 4), spiking.LIF())
>>> chip = deploy(net, "pcm", seed=3)
>>> chip(torch.ones(5, 1, 6)).shape
torch.Size([5, 1, 4])
>>> age(chip, 30 * 86_400.0, compensation="column").training
False
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any, TypeVar

import torch
from spiking.cuda_kernels import event_conv_ops, event_linear_ops
from spiking.hw_models import draws
from spiking.hw_models.arrays import Crossbar
from spiking.hw_models.cellfile import load_cell
from spiking.hw_models.devices import Cell
from spiking.hw_models.effects import T_ROOM
from spiking.hw_models.placement import ArrayConfig
from torch import Tensor, nn
from torch.nn import functional as tf

from spiking.errors import SpikingError
from spiking.layer import sums_spikes
from spiking.neuron import Neuron

M = TypeVar("M", bound=nn.Module)
_DIGITAL = (Neuron, nn.LayerNorm)  # may hold parameters of more than one axis, which are no weights


class _OnArray(nn.Module):
    """What both kinds of layers share: an array in place of the product, and a digital gain and shift of each output behind it."""

    array: Crossbar
    gain: Tensor
    shift: Tensor
    bias: Any
    is_corrected = False

    def _wire(self, cell: Cell, config: ArrayConfig, seed: int, n: int) -> None:
        weight: Any = self.weight
        self.array = Crossbar(weight.detach().flatten(1), cell, config, seed).to(weight.device)
        self.register_buffer("gain", torch.ones(n, dtype=weight.dtype, device=weight.device), persistent=False)
        self.register_buffer("shift", torch.zeros(n, dtype=weight.dtype, device=weight.device), persistent=False)

    def correct(self, gain: Tensor, shift: Tensor) -> None:
        """Correct each output of the array digitally: gain·array(x) + shift."""
        self.gain.copy_(gain)
        self.shift.copy_(shift)
        self.is_corrected = True

    def reset_correction(self) -> None:
        """Gain 1 and shift 0: the outputs as the array gives them."""
        self.gain.fill_(1.0)
        self.shift.zero_()
        self.is_corrected = False

    def corrected(self, y: Tensor) -> Tensor:
        """Outputs that were found without correction, as they are with the present one."""
        return self._digital(y if self.bias is None else y - self._along(self.bias))

    def _digital(self, y: Tensor) -> Tensor:
        """Gain, shift and bias behind the array's outputs."""
        y = y * self._along(self.gain) if self.is_corrected else y
        return y if self._offset is None else y + self._along(self._offset)

    def _along(self, v: Tensor) -> Tensor:
        """A value for each output, to combine with outputs."""
        return v[:, None, None] if isinstance(self, nn.Conv2d) else v

    @property
    def _linear_correction(self) -> tuple[Tensor | None, Tensor | None]:
        """Gain of each output, and what is added to it: None where it changes nothing."""
        return self.gain if self.is_corrected else None, self._offset

    @property
    def _offset(self) -> Tensor | None:
        if not self.is_corrected:
            return self.bias
        return self.shift if self.bias is None else self.shift + self.bias


class ArrayLinear(_OnArray, nn.Linear):
    """A linear layer whose product is taken on an array: y = gain·array(x) + shift + bias.

    `weight` keeps what was to be written; `array` holds the devices.
    """

    def __init__(self, layer: nn.Linear, cell: Cell, config: ArrayConfig, seed: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self._wire(cell, config, seed, layer.out_features)

    def calibrate_converters(self, x: Tensor) -> None:
        """Set the range of "calibrated" converters by an input of the layer."""
        self.array.calibrate(x)

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[-1:] != (self.in_features,):
            raise SpikingError(
                f"ArrayLinear: got input of shape {list(input.shape)}; expected {self.in_features} features on the last axis."
            )
        x = input if input.is_floating_point() else input.to(self.weight.dtype)
        if self.array.is_linear:
            return self.array.linear(x, event_linear_ops.linear, *self._linear_correction)
        return self._digital(self.array(x))


class ArrayConv2d(_OnArray, nn.Conv2d):
    """A convolution whose products are taken on an array, one for each place of the window: y = gain·array(window) + shift + bias.

    Shapes: x [T, B, C, H, W] or [B, C, H, W], as `spiking.Conv2d`.
    """

    def __init__(self, layer: nn.Conv2d, cell: Cell, config: ArrayConfig, seed: int) -> None:
        nn.Module.__init__(self)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed",
                     "output_padding", "groups", "padding_mode", "_reversed_padding_repeated_twice"):  # fmt: skip
            setattr(self, name, getattr(layer, name))
        self.weight, self.bias = layer.weight, layer.bias
        self._wire(cell, config, seed, layer.out_channels)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 5:
            return self.forward(input.flatten(0, 1)).unflatten(0, input.shape[:2])
        x = input if input.is_floating_point() else input.to(self.weight.dtype)
        if self.array.is_linear:
            return self.array.linear(x, self._convolve, *self._linear_correction)
        return self._digital(self._converted(x) if self.array.converts_outputs_only else self._by_windows(x))

    def _convolve(self, x: Tensor, matrix: Tensor, offset: Tensor | None = None) -> Tensor:
        return convolve(self, x, matrix.reshape(self.weight.shape), offset)

    def calibrate_converters(self, x: Tensor) -> None:
        """Set the range of "calibrated" converters by an input of the layer."""
        x = x.flatten(0, 1) if x.dim() == 5 else x
        if self.array.converts_outputs_only:
            self.array.calibrate_by(*self._products(x))
        else:
            self.array.calibrate(self._windows(x)[0])

    def _products(self, x: Tensor) -> tuple[Callable[[Tensor, int], Tensor], Tensor]:
        """x (or its square) times a matrix at every window, [windows, n]; and the windows' largest sizes [windows, 1]."""

        def product(matrix: Tensor, power: int) -> Tensor:
            return self._convolve(x if power == 1 else x * x, matrix).movedim(1, -1).flatten(0, -2)

        top = self._padded(x.abs().amax(1, keepdim=True))
        return product, tf.max_pool2d(top, self.kernel_size, self.stride, 0, self.dilation).reshape(-1, 1)

    def _converted(self, x: Tensor) -> Tensor:
        """The products as convolutions, converted where they leave the array."""
        y = self.array.converted_products(*self._products(x))
        size = self._size(self._padded(x[:0]).shape[-2:])
        return y.unflatten(0, (len(x), *size)).movedim(-1, 1)

    def _padded(self, x: Tensor) -> Tensor:
        sides: list[int] = self._reversed_padding_repeated_twice  # type: ignore[assignment]
        return tf.pad(x, sides, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)

    def _size(self, edges: Sequence[int]) -> list[int]:
        """Rows and columns of windows of an input that was padded."""
        return [
            (edge - d * (k - 1) - 1) // s + 1
            for edge, d, k, s in zip(edges, self.dilation, self.kernel_size, self.stride)
        ]

    def _by_windows(self, x: Tensor) -> Tensor:
        """Every window of the input to the array in turn, as converters see them."""
        windows, size = self._windows(x)
        return self.array(windows).transpose(1, 2).unflatten(2, size)

    def _windows(self, x: Tensor) -> tuple[Tensor, list[int]]:
        padded = self._padded(x)
        windows = tf.unfold(padded, self.kernel_size, self.dilation, 0, self.stride)
        return windows.transpose(1, 2), self._size(padded.shape[-2:])


def convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The layer's convolution with another weight, by its spikes alone where that is quicker."""
    if sums_spikes(layer):
        return event_conv_ops.conv2d(x, weight, bias, list(layer.stride), list(layer.padding), layer.groups)  # type: ignore[arg-type]
    return layer._conv_forward(x, weight, bias)


def _supported(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and not layer.transposed
    return isinstance(layer, nn.Linear)


def check_layers(where: str, model: nn.Module, digital: Sequence[str]) -> list[str]:
    """Names of the layers that go onto arrays.

    Errors: SpikingError naming a layer with weights that no array holds, or a name that is no layer's.
    """
    names = {name for name, _ in model.named_modules()}
    for name in digital:
        if name not in names:
            raise SpikingError(
                f"{where}: digital: got {name!r}; expected names of layers: {', '.join(sorted(names - {''}))}."
            )
    found, inside = [], tuple(f"{name}." for name in digital)
    for name, layer in model.named_modules():
        if name in digital or name.startswith(inside):
            continue
        if isinstance(layer, _OnArray):
            raise SpikingError(f'{where}: layer "{name}" is on an array already. Give the model that it was made from.')
        if _supported(layer):
            found.append(name)
        elif not isinstance(layer, _DIGITAL) and any(p.dim() > 1 for p in layer.parameters(recurse=False)):
            kind = f"{type(layer).__module__}.{type(layer).__name__}"
            what = f" with {layer.groups} groups" if isinstance(layer, nn.Conv2d) else ""
            raise SpikingError(
                f'{where}: layer "{name}" ({kind}{what}) holds weights that no array here can; expected Linear or Conv2d without '
                f'groups. Leave it digital: digital=["{name}"].'
            )
    if not found:
        raise SpikingError(f"{where}: {type(model).__name__} has no Linear or Conv2d layer; expected at least one.")
    return found


def replace_layers(model: M, names: Sequence[str], make: Any) -> M:
    """The model with its named layers replaced, wherever they stand; a layer that stands in two places stays one."""
    chosen = {id(model.get_submodule(name)): make(name, model.get_submodule(name)) for name in names}
    if id(model) in chosen:
        return chosen[id(model)]
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if id(child) in chosen:
                parent._modules[key] = chosen[id(child)]
    return model


def deploy(
    model: M,
    preset: str | PathLike[str] | Cell,
    config: ArrayConfig | None = None,
    *,
    seed: int = 0,
    t: float = 0.0,
    kelvin: float = T_ROOM,
    calibration: Tensor | None = None,
    digital: Sequence[str] = (),
) -> M:
    """A copy of a trained model, in evaluation, whose Linear and Conv2d layers are on arrays of memory cells.

    Each layer's devices are those of (seed, its name): another seed is another chip. Neurons, norms, pooling and biases are digital, and
    so are the layers named in `digital`. `calibration`: inputs by which "calibrated" converters choose their range.
    Fold batch norms into the weights first where they are to be on the arrays too.

    Units: t in seconds since writing, kelvin.
    Errors: SpikingError naming the layer: weights that are not finite, or of a kind that no array holds.

    >>> chip = deploy(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), "rram-40nm", seed=1)
    >>> [name for name, _ in array_layers(chip)]
    ['0', '2']
    """
    cell, config = load_cell(preset), config or ArrayConfig()
    names = check_layers("deploy", model, digital)
    out = copy.deepcopy(model).eval()

    def make(name: str, layer: nn.Module) -> nn.Module:
        own = draws.seed_of(seed, f"layer/{name}")
        try:
            if isinstance(layer, nn.Conv2d):
                return ArrayConv2d(layer, cell, config, own)
            assert isinstance(layer, nn.Linear)
            return ArrayLinear(layer, cell, config, own)
        except SpikingError as err:
            raise SpikingError(f'deploy: layer "{name}": {err}') from err

    out = replace_layers(out, names, make).eval()
    if config.adc_range == "calibrated" and config.adc_bits is not None:
        if calibration is None:
            raise SpikingError(
                'deploy: got adc_range="calibrated" without calibration=x; expected inputs to calibrate by.'
            )
        _calibrate_converters(out, calibration)
    return age(out, t, kelvin) if t or kelvin != T_ROOM else out


def array_layers(model: nn.Module) -> Iterator[tuple[str, ArrayLinear | ArrayConv2d]]:
    """Name and layer of everything in a model that is on an array."""
    for name, layer in model.named_modules():
        if isinstance(layer, ArrayLinear | ArrayConv2d):
            yield name, layer


def age(model: M, t: float, kelvin: float = T_ROOM, compensation: str | None = None) -> M:
    """The same chip t seconds after writing and at that temperature; its corrections are reset. Returns the model given.

    `compensation`: "array" or "column" scales outputs to what unit inputs gave when it was new (`Crossbar.compensate`).
    Errors: SpikingError for a model without arrays, a negative time, or a temperature that is not in kelvin.
    """
    layers = list(array_layers(model))
    if not layers:
        raise SpikingError(f"age: {type(model).__name__} has no layer on an array; expected what deploy returned.")
    for _, layer in layers:
        layer.array.age(t, kelvin)
        if compensation is not None:
            layer.array.compensate(compensation)
        layer.reset_correction()
    return model


@torch.no_grad()
def _calibrate_converters(model: nn.Module, x: Tensor) -> None:
    """Ranges of converters layer by layer, each from what the layers before it really give."""
    handles = []

    def look(layer: ArrayLinear | ArrayConv2d, inputs: tuple[Tensor, ...]) -> None:
        if not layer.array.is_calibrated:
            layer.calibrate_converters(inputs[0])

    for _, layer in array_layers(model):
        handles.append(layer.register_forward_pre_hook(look))  # type: ignore[arg-type]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()


__all__ = ["ArrayConv2d", "ArrayLinear", "age", "array_layers", "check_layers", "convolve", "deploy", "replace_layers"]
