"""A user's network as a list of layers that a spiking network can have, read through torch.fx; or the reason why not."""

from __future__ import annotations

import copy
import math
import operator
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spiking import layer
from spiking.convert.network import INPUT
from spiking.convert.qcfs import QCFS
from spiking.errors import SpikingError
from spiking.fold import fold_batch_norm

WEIGHTS = (nn.Conv2d, nn.Linear)
_SHAPE = "spiking_shape"  # of what a node gave, in its notes


@dataclass
class Piece:
    """One layer of the spiking network to be, and where it comes from.

    `kind`: "weights", "neuron" (its module is the ANN's activation, or None), "add", "gain", "pass" (pooling, dropout, flatten).
    """

    name: str
    kind: str
    module: nn.Module | None
    inputs: list[str]
    source: str
    node: fx.Node | None = None
    did: str = ""
    shape: tuple[int, ...] = ()
    reference: str = ""  # of a gain: the piece in whose units its output is


@dataclass
class Reading:
    """The pieces in order of execution, the traced network, and the name of the piece that is the output."""

    pieces: list[Piece]
    traced: fx.GraphModule
    output: str


def _where_in_forward(err: Exception) -> str:
    """The last line of the user's own code that an error of tracing came through."""
    torchs = os.path.dirname(torch.__file__)
    frames = [f for f in traceback.extract_tb(err.__traceback__) if not f.filename.startswith((torchs, __file__, "<"))]
    return f"line {frames[-1].lineno} of {os.path.basename(frames[-1].filename)}" if frames else "its forward"


class _Shapes(fx.Interpreter):
    """Runs a network, leaves at each node the shape of the tensor that it gives, and knows where it stopped."""

    at: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.at = n
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta[_SHAPE] = tuple(result.shape)
        return result

    def stopped_at(self, dtype: torch.dtype) -> str:
        node = self.at
        if node is None or node.op == "placeholder":
            return "it has more than one input"
        name = f'"{node.name}"'
        if node.op == "call_module":
            layer = repr(self.module.get_submodule(str(node.target)))
            name = f'layer "{node.target}"{f" ({layer})" if chr(10) not in layer else ""}'
        given = " and ".join(_batch(shape_of(n)) for n in node.all_input_nodes if is_tensor(n)) or "what it is given"
        return f"{name} cannot take {given} in {str(dtype).removeprefix('torch.')}"


def _batch(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['B', *map(str, shape)])}]"


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, QCFS) or super().is_leaf_module(m, module_qualified_name)


def read(ann: nn.Module, example: Tensor) -> Reading:
    """The layers of a network in evaluation; example [B, …] fixes shapes. Errors: SpikingError naming layer and reason."""
    if not isinstance(ann, nn.Module):
        raise SpikingError(f"from_ann: got {type(ann).__name__}; expected a torch.nn.Module.")
    ann = copy.deepcopy(ann).eval()
    for name, value in ann.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise SpikingError(
                f'from_ann: "{name}" holds values that are not finite. Train the network again, or load other weights.'
            )
    tracer = _Tracer()
    try:
        graph = tracer.trace(ann)
    except SpikingError:
        raise
    except Exception as err:
        raise SpikingError(
            f"from_ann: {type(ann).__name__} cannot be traced by torch.fx: {_where_in_forward(err)} asks for the values or the "
            "number of what it is given. Let forward do the same for every input."
        ) from err
    traced = fx.GraphModule(ann, graph)
    shapes = _Shapes(traced)
    try:
        with torch.no_grad():
            shapes.run(example)
    except Exception as err:
        raise SpikingError(
            f"from_ann: {type(ann).__name__} does not run on batches of shape {_batch(tuple(example.shape[1:]))}: "
            f"{shapes.stopped_at(example.dtype)}. Give batches as the network takes them."
        ) from err
    reader = _Reader(traced)
    for node in graph.nodes:
        reader.read(node)
    if not any(piece.kind == "neuron" for piece in reader.pieces):
        raise SpikingError(f"from_ann: {type(ann).__name__} has no ReLU; expected at least one, to become neurons.")
    return Reading(reader.pieces, traced, reader.output)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of what a node gives, without the batch axis; () for what is no tensor."""
    found: tuple[int, ...] = node.meta.get(_SHAPE, ())
    return found[1:]


def is_tensor(node: fx.Node) -> bool:
    """Whether a node of a network that ran gives a tensor."""
    return _SHAPE in node.meta


class _Reader:
    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.pieces: list[Piece] = []
        self.names: dict[fx.Node, str] = {}  # which piece gives what a node gives
        self.output = INPUT
        self.called: set[str] = set()

    def read(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if INPUT in self.names.values():
                raise SpikingError(f'from_ann: got a second input "{node.name}"; expected a network of one input.')
            self.names[node] = INPUT
        elif node.op == "output":
            result = node.args[0]
            if not isinstance(result, fx.Node) or result not in self.names:
                raise SpikingError("from_ann: the network does not return one tensor; expected its class scores.")
            self.output = self.names[result]
        elif node.op == "call_module":
            module = self.traced.get_submodule(str(node.target))
            self.module(node, module)
        elif node.op in ("call_function", "call_method"):
            self.function(node)
        else:
            self.refuse(node, "a tensor of its own", "Use layers with weights instead.")

    # one node

    def module(self, node: fx.Node, module: nn.Module) -> None:
        path = str(node.target)
        twice = path in self.called
        self.called.add(path)
        if isinstance(module, WEIGHTS):
            if twice:
                self.refuse(
                    node, "called twice", "Its weights would have to hold two scales: give each use its own layer."
                )
            self.weights(node, module)
        elif isinstance(module, _BatchNorm):
            self.batch_norm(node, module)
        elif isinstance(module, (nn.ReLU, QCFS)):
            self.add(node, "neuron", module)
        elif isinstance(module, nn.Dropout):
            self.add(node, "pass", layer.Dropout(module.p), "dropout, one mask for all steps")
        elif isinstance(module, nn.Identity):
            self.skip(node)
        elif isinstance(module, nn.Flatten) and module.start_dim == 1 and module.end_dim == -1:
            self.flatten(node)
        elif isinstance(module, nn.AvgPool2d):
            self.average(node, module)
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            self.adaptive(node, module.output_size)
        elif isinstance(module, nn.MaxPool2d):
            self.maximum(node, module)
        else:
            self.refuse(node, type(module).__name__, _ADVICE.get(type(module).__name__, _KNOWN))

    def function(self, node: fx.Node) -> None:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        if not is_tensor(node):
            return  # a number on its way to view(); what is no tensor is no layer
        plain: dict[str, Callable[[], None]] = {
            "relu": lambda: self.add(node, "neuron", None),
            "relu_": lambda: self.add(node, "neuron", None),
            "flatten": lambda: self.flatten(node),
            "view": lambda: self.flatten(node),
            "reshape": lambda: self.flatten(node),
            "dropout": lambda: self.dropout(node),
            "avg_pool2d": lambda: self.average(node, _called(nn.AvgPool2d, node)),
            "max_pool2d": lambda: self.maximum(node, _called(nn.MaxPool2d, node)),
            "adaptive_avg_pool2d": lambda: self.adaptive(node, _argument(node, 1, "output_size")),
            "mean": lambda: self.mean(node),
            "contiguous": lambda: self.skip(node),
        }
        adds = node.target in (operator.add, operator.iadd, torch.add) or name in ("add", "add_", "iadd")
        if adds:
            self.addition(node)
        elif name in plain:
            plain[name]()
        else:
            self.refuse(node, f"{name}()", _ADVICE.get(name, _KNOWN))

    # kinds of layers

    def weights(self, node: fx.Node, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            ours: nn.Module = layer.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        else:
            assert isinstance(module, nn.Conv2d)
            sizes: Any = (module.kernel_size, module.stride, module.padding, module.dilation)
            more: Any = (module.groups, module.bias is not None, module.padding_mode)
            ours = layer.Conv2d(module.in_channels, module.out_channels, *sizes, *more)
        ours.to(next(module.parameters()))
        ours.load_state_dict(module.state_dict())
        self.add(node, "weights", ours, "weights kept")

    def batch_norm(self, node: fx.Node, module: _BatchNorm) -> None:
        before = self.piece(node.args[0])
        used_once = isinstance(node.args[0], fx.Node) and len(node.args[0].users) == 1
        if before is None or before.kind != "weights" or not used_once:
            self.refuse(
                node,
                type(module).__name__,
                "Only a batch norm directly behind a convolution or linear layer can be folded.",
            )
        assert before is not None
        assert before.module is not None
        try:
            folded = fold_batch_norm(nn.Sequential(before.module, module))
            before.module = next(folded.children())
        except SpikingError as err:
            raise SpikingError(f'from_ann: layer "{node.target}": {err}') from err
        before.did = f'weights kept, batch norm "{node.target}" folded in'
        self.skip(node)

    def average(self, node: fx.Node, module: nn.AvgPool2d) -> None:
        pool = layer.AvgPool2d(
            module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad,
            module.divisor_override,
        )  # fmt: skip
        self.add(node, "pass", pool, "average pooling of spikes")

    def adaptive(self, node: fx.Node, size: Any) -> None:
        given = shape_of(self.before(node))[-2:]
        wanted = [s if o is None else o for s, o in zip(given, (size, size) if isinstance(size, int | None) else size)]
        if any(s % o for s, o in zip(given, wanted)):
            self.refuse(
                node,
                f"adaptive average pooling of {list(given)} to {wanted}",
                "Windows of one size are needed: pad or resize the input.",
            )
        window = (given[0] // wanted[0], given[1] // wanted[1])
        if window == (1, 1):
            self.skip(node)
        else:
            self.add(node, "pass", layer.AvgPool2d(window), f"average pooling of {window[0]}×{window[1]}")

    def maximum(self, node: fx.Node, module: nn.MaxPool2d) -> None:
        if module.return_indices:
            self.refuse(node, "max pooling with indices", "Use it without return_indices.")
        pool = layer.MaxPool2d(
            module.kernel_size, module.stride, module.padding, module.dilation, ceil_mode=module.ceil_mode
        )
        self.add(node, "pass", pool, "maximum of spikes: exact for one step, an overestimate of rates for more")

    def mean(self, node: fx.Node) -> None:
        axes, before = _argument(node, 1, "dim"), shape_of(self.before(node))
        axes = sorted(a % (len(before) + 1) for a in ([axes] if isinstance(axes, int) else axes or ()))
        if len(before) != 3 or axes != [2, 3]:
            self.refuse(node, "mean()", "Only the mean over the two axes of an image is known.")
        self.add(node, "pass", layer.AvgPool2d((before[1], before[2])), "mean over the image")
        if len(shape_of(node)) == 1:
            self.flatten(node, f"{node.name}_flat")

    def flatten(self, node: fx.Node, name: str = "") -> None:
        before = self.names.get(self.before(node))
        given = shape_of(self.before(node)) if before is not None else ()
        if name:
            self.append(Piece(name, "pass", layer.Flatten(), [self.names[node]], str(node.target), node), node)
        elif len(given) == 1 and shape_of(node) == given:
            self.skip(node)
        elif len(shape_of(node)) == 1 and shape_of(node)[0] == math.prod(given):
            self.add(node, "pass", layer.Flatten(), "flattened")
        else:
            self.refuse(node, f"reshaping {list(given)} to {list(shape_of(node))}", "Only flattening is known.")

    def dropout(self, node: fx.Node) -> None:
        p = _argument(node, 1, "p")
        self.add(node, "pass", layer.Dropout(0.5 if p is None else p), "dropout, one mask for all steps")

    def addition(self, node: fx.Node) -> None:
        a, b = node.args[0], node.args[1] if len(node.args) > 1 else None
        if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)) or node.kwargs:
            self.refuse(node, "adding a number", "Put it into the bias of a layer.")
        assert isinstance(a, fx.Node)
        assert isinstance(b, fx.Node)
        if shape_of(a) != shape_of(b):
            self.refuse(node, f"adding {list(shape_of(b))} to {list(shape_of(a))}", "Both have to have one shape.")
        self.append(
            Piece(_plain(node.name), "add", nn.Identity(), [self.names[a], self.names[b]], node.name, node), node
        )

    # wiring

    def before(self, node: fx.Node) -> fx.Node:
        """What a node is computed from: its first argument."""
        first = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(first, fx.Node):
            self.refuse(node, "an input that is no activation", _KNOWN)
        assert isinstance(first, fx.Node)
        return first

    def piece(self, node: Any) -> Piece | None:
        name = self.names.get(node)
        return next((piece for piece in self.pieces if piece.name == name), None)

    def add(self, node: fx.Node, kind: str, module: nn.Module | None, did: str = "") -> None:
        source = str(node.target) if node.op == "call_module" else node.name
        taken = {piece.name for piece in self.pieces}
        name = _plain(source) if _plain(source) not in taken else _plain(node.name)
        before = self.names.get(self.before(node))
        if before is None:
            self.refuse(node, "an input that is no activation", _KNOWN)
        assert before is not None
        self.append(Piece(name, kind, module, [before], source, node, did, shape_of(node)), node)

    def append(self, piece: Piece, node: fx.Node) -> None:
        self.pieces.append(piece)
        self.names[node] = piece.name

    def skip(self, node: fx.Node) -> None:
        self.names[node] = self.names[self.before(node)]

    def refuse(self, node: fx.Node, what: str, advice: str) -> None:
        where = str(node.target) if node.op == "call_module" else node.name
        raise SpikingError(f'from_ann: layer "{where}": {what} cannot be converted. {advice}')


_KNOWN = (
    "Known are Conv2d, Linear, batch norm behind them, ReLU, average and max pooling, Dropout, Flatten and addition."
)
_SIGNED = "Spikes are never negative: train with ReLU instead."
_ADVICE = {
    **dict.fromkeys(("LeakyReLU", "leaky_relu", "ELU", "elu", "GELU", "gelu", "SiLU", "silu", "Tanh", "tanh"), _SIGNED),
    **dict.fromkeys(
        ("Softmax", "softmax", "LogSoftmax", "log_softmax"), "Leave it out: it does not change which class is largest."
    ),
    **dict.fromkeys(("Sigmoid", "sigmoid"), "Train with ReLU instead; at the output leave it out."),
    **dict.fromkeys(("LayerNorm", "GroupNorm", "layer_norm"), "It cannot be folded: train with batch norm instead."),
}


def _plain(name: str) -> str:
    return name.replace(".", "_")


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _called(kind: type[nn.Module], node: fx.Node) -> Any:
    """A functional pooling as the layer that it stands for."""
    options = {key: value for key, value in node.kwargs.items() if key != "input"}
    return kind(*node.args[1:], **options)
