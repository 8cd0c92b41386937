"""Plain modules as ONNX models without PyTorch's exporter, which takes a thousand times as long.

Measuring a space takes many models of few operators. A module is run once, and each operator that is known here is
written down as the node that the exporter would make of it; see `build_onnx`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hwnas.export.mode import evaluation_mode
from hwnas.export.onnx import export_many
from hwnas.export.outputs import output_tensors

if TYPE_CHECKING:
    import onnx

# What the exporter of PyTorch 2.13 writes.
_OPSET = 20
_IR_VERSION = 10
_END = 2**63 - 1  # of a slice that has none

aten = torch.ops.aten
_SAME = (aten.alias, aten.detach, aten.lift_fresh, aten.clone)
_CONSTANT = (aten.zeros_like, aten.ones_like, aten.full_like, aten.new_zeros, aten.new_ones, aten.new_full)
_ELEMENTWISE = {
    aten.relu: "Relu",
    aten.sigmoid: "Sigmoid",
    aten.tanh: "Tanh",
    aten.hardswish: "HardSwish",
    aten.add: "Add",
    aten.mul: "Mul",
    aten.sub: "Sub",
    aten.div: "Div",
}


class _UnknownError(Exception):
    """An operator that is not written here."""


def build_onnx(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes | None:
    """Write a plain module as an ONNX model, node for node as the exporter does.

    Parameters
    ----------
    model : nn.Module
        Run once in evaluation mode. It keeps its training flags.
    inputs : tuple of Tensor
        Its arguments.

    Returns
    -------
    bytes or None
        A self-contained model with inputs and outputs in the order of arguments and results; None when it has an
        operator that is not known here, or does something that depends on values.
    """
    recorder = _Recorder(inputs)
    try:
        with evaluation_mode(model), torch.no_grad(), recorder:
            outputs = output_tensors(model(*recorder.inputs))
        return recorder.finish(outputs)
    except _UnknownError:
        return None


def build_many(
    models: Sequence[nn.Module],
    inputs: Sequence[tuple[Tensor, ...]],
    *,
    progress: Callable[[int], None] | None = None,
) -> list[bytes]:
    """Write many plain modules as ONNX models: directly where all operators are known, else with `export_many`.

    Parameters
    ----------
    models : sequence of nn.Module
        As for `export_many`.
    inputs : sequence of tuple of Tensor
        The arguments of each.
    progress : callable, optional
        Called with how many are done.

    Returns
    -------
    list of bytes
        In the order of `models`.

    Raises
    ------
    UnsupportedError
        See `export_many`.
    """
    say = progress or (lambda done: None)
    built: list[bytes | None] = []
    for model, each in zip(models, inputs, strict=True):
        built.append(build_onnx(model, each))
        say(sum(known is not None for known in built))
    rest = [i for i, model in enumerate(built) if model is None]
    exported = export_many(
        [models[i] for i in rest],
        [inputs[i] for i in rest],
        progress=lambda done: say(len(models) - len(rest) + done),
    )
    found = iter(exported)
    return [next(found) if model is None else model for model in built]


class _Recorder(TorchDispatchMode):
    """Turns each operator on something that depends on the inputs into nodes; the rest are weights."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Copies, because two arguments that are one tensor would become one input.
        self.inputs = [tensor.detach().clone() for tensor in inputs]
        self._names = {id(tensor): f"input_{i}" for i, tensor in enumerate(self.inputs)}
        self._alive: list[Any] = list(self.inputs)  # so that no identity is used twice
        self._weights: dict[str, Tensor] = {}
        self._weight_names: dict[int, str] = {}
        self._nodes: list[onnx.NodeProto] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        self._alive.append(output)
        packet = func.overloadpacket
        if packet in _CONSTANT or not any(self._is_known(leaf) for leaf in pytree.tree_leaves((args, kwargs))):
            return output
        if packet in _SAME:
            self._names[id(output)] = self.name(args[0])
            return output
        if packet not in _WRITERS or (kwargs and packet not in (aten.mean,)):
            raise _UnknownError(str(func))
        results = [output] if isinstance(output, Tensor) else list(output)
        written = _WRITERS[packet](self, results[0], *args)
        names = [written] if isinstance(written, str) else written
        # Without the statistics of a normalisation, or the positions of a maximum.
        self._names.update((id(result), name) for result, name in zip(results, names, strict=False))
        return output

    def _is_known(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and id(leaf) in self._names

    def name(self, value: Any, like: Tensor | None = None) -> str:
        """Return the name of a tensor; one that does not depend on the inputs becomes a weight."""
        if not isinstance(value, Tensor):
            value = torch.tensor(value, dtype=None if like is None else like.dtype)
            self._alive.append(value)
        if id(value) in self._names:
            return self._names[id(value)]
        if id(value) not in self._weight_names:
            self._weight_names[id(value)] = f"weight_{len(self._weights)}"
            self._weights[self._weight_names[id(value)]] = value
            self._alive.append(value)
        return self._weight_names[id(value)]

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        return self.nodes(kind, inputs, 1, **attributes)[0]

    def nodes(self, kind: str, inputs: list[str], n_outputs: int, **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs."""
        from onnx import helper

        stem = f"{kind.lower()}_{len(self._nodes)}"
        outputs = [stem, *(f"{stem}_{i}" for i in range(1, n_outputs))]
        self._nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
        return outputs

    def finish(self, outputs: list[Tensor]) -> bytes:
        """Return the model."""
        import onnx
        from onnx import helper, numpy_helper

        types = {torch.float32: onnx.TensorProto.FLOAT, torch.int64: onnx.TensorProto.INT64}
        tensors = [*self.inputs, *outputs]
        if any(tensor.dtype not in types for tensor in tensors):
            raise _UnknownError("a type of numbers")
        # Two results that are one tensor, or a result that is an argument, need a name of their own.
        names = [self.node("Identity", [self.name(tensor)]) for tensor in outputs]
        _drop_unused(self._nodes, names)
        _merge_batch_norms(self._nodes, self._weights)
        _drop_last_identities(self._nodes, names)
        used = {name for node in self._nodes for name in node.input}
        graph = helper.make_graph(
            self._nodes,
            "main_graph",
            [helper.make_tensor_value_info(f"input_{i}", types[t.dtype], t.shape) for i, t in enumerate(self.inputs)],
            [
                helper.make_tensor_value_info(name, types[t.dtype], t.shape)
                for name, t in zip(names, outputs, strict=True)
            ],
            [
                numpy_helper.from_array(tensor.detach().contiguous().numpy(), name)
                for name, tensor in self._weights.items()
                if name in used
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        onnx.checker.check_model(model)
        content: bytes = model.SerializeToString(deterministic=True)
        return content


def _drop_unused(nodes: list[onnx.NodeProto], outputs: list[str]) -> None:
    """Take out what no output needs; ONNX Runtime would run it."""
    needed = set(outputs)
    for node in reversed(nodes[:]):
        if needed.isdisjoint(node.output):
            nodes.remove(node)
        else:
            needed.update(node.input)


def _drop_last_identities(nodes: list[onnx.NodeProto], names: list[str]) -> None:
    """Let the node in front of an Identity at the end write the output, where nothing else reads it."""
    readers: dict[str, int] = {}
    for node in nodes:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    makers = {name: (node, i) for node in nodes for i, name in enumerate(node.output)}
    for node in [node for node in nodes if node.op_type == "Identity" and node.output[0] in names]:
        source = node.input[0]
        if source in makers and readers[source] == 1:
            maker, position = makers[source]
            maker.output[position] = node.output[0]
            nodes.remove(node)


def _merge_batch_norms(nodes: list[onnx.NodeProto], weights: dict[str, Tensor]) -> None:
    """Fold each normalisation into the convolution in front of it, where nothing else reads that one."""
    readers: dict[str, int] = {}
    for node in nodes:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    makers = {node.output[0]: node for node in nodes}
    for norm in [node for node in nodes if node.op_type == "BatchNormalization"]:
        conv = makers.get(norm.input[0])
        if conv is None or conv.op_type != "Conv" or readers[conv.output[0]] > 1:
            continue
        gain, shift, mean, variance = (weights[name] for name in norm.input[1:])
        kernel = weights[conv.input[1]]
        scale = gain / (variance + norm.attribute[0].f).sqrt()
        bias = weights[conv.input[2]] if len(conv.input) > 2 else torch.zeros_like(mean)
        stem = norm.output[0]
        weights[f"{stem}_kernel"] = kernel * scale.reshape(-1, *[1] * (kernel.ndim - 1))
        weights[f"{stem}_bias"] = (bias - mean) * scale + shift
        del conv.input[1:]
        conv.input.extend([f"{stem}_kernel", f"{stem}_bias"])
        conv.output[0] = stem
        makers[stem] = conv
        nodes.remove(norm)


Writer = Callable[..., str | list[str]]  # gives the names of the results


def _elementwise(kind: str) -> Writer:
    def write(graph: _Recorder, out: Tensor, *operands: Any) -> str:
        return graph.node(kind, [graph.name(operand, like=out) for operand in operands])

    return write


def _convolution(
    graph: _Recorder, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any,
    dilation: Any, transposed: bool, output_padding: Any, groups: int,
) -> str:  # fmt: skip
    if transposed or graph._is_known(weight):
        raise _UnknownError("transposed convolution")
    return graph.node(
        "Conv",
        [graph.name(each) for each in (x, weight, bias) if each is not None],
        group=groups,
        pads=[*padding, *padding],
        strides=list(stride),
        dilations=list(dilation),
        kernel_shape=list(weight.shape[2:]),
    )


def _batch_norm(graph: _Recorder, out: Tensor, x: Tensor, gain: Any, shift: Any, mean: Any, variance: Any,
                training: bool, momentum: float, eps: float) -> str:  # fmt: skip
    if training or any(each is None for each in (gain, shift, mean, variance)):
        raise _UnknownError("normalisation by the batch")
    return graph.node(
        "BatchNormalization", [graph.name(each) for each in (x, gain, shift, mean, variance)], epsilon=eps
    )


def _hardtanh(graph: _Recorder, out: Tensor, x: Tensor, low: float = -1.0, high: float = 1.0) -> str:
    return graph.node("Clip", [graph.name(x), graph.name(float(low), like=out), graph.name(float(high), like=out)])


def _hardsigmoid(graph: _Recorder, out: Tensor, x: Tensor) -> str:
    return graph.node("HardSigmoid", [graph.name(x)], alpha=1 / 6, beta=0.5)


def _silu(graph: _Recorder, out: Tensor, x: Tensor) -> str:
    return graph.node("Mul", [graph.name(x), graph.node("Sigmoid", [graph.name(x)])])


def _gelu(graph: _Recorder, out: Tensor, x: Tensor) -> str:
    return graph.node("Gelu", [graph.name(x)], approximate="none")


def _mean(graph: _Recorder, out: Tensor, x: Tensor, axes: Any, keepdim: bool = False) -> str:
    axes = graph.name([axis % x.ndim for axis in axes])
    return graph.node("ReduceMean", [graph.name(x), axes], keepdims=int(keepdim), noop_with_empty_axes=0)


def _window(kernel: Any, stride: Any, padding: Any) -> dict[str, list[int]]:
    kernel, stride, padding = (
        [each] * 2 if isinstance(each, int) else list(each) for each in (kernel, stride, padding)
    )
    kernel, stride, padding = (each * 2 if len(each) == 1 else each for each in (kernel, stride, padding))
    return {"kernel_shape": kernel, "strides": stride or kernel, "pads": [*padding, *padding]}


def _average_pool(
    graph: _Recorder, out: Tensor, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True, divisor: Any = None,
) -> str:  # fmt: skip
    if divisor is not None:
        raise _UnknownError("a divisor of its own")
    window = _window(kernel, stride, padding)
    return graph.node(
        "AveragePool", [graph.name(x)], ceil_mode=int(ceil_mode), count_include_pad=int(count_include_pad), **window
    )


def _max_pool(
    graph: _Recorder, out: Tensor, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> str:  # fmt: skip
    dilations = _window(dilation, (), 0)["kernel_shape"]
    window = _window(kernel, stride, padding)
    return graph.node(
        "MaxPool", [graph.name(x)], ceil_mode=int(ceil_mode), storage_order=0, dilations=dilations, **window
    )


def _linear(graph: _Recorder, out: Tensor, bias: Tensor, x: Tensor, weight: Tensor) -> str:
    if graph._is_known(weight) or bias.ndim != 1:
        raise _UnknownError("a product of two inputs")
    return graph.node("Gemm", [graph.name(x), graph.name(weight.t()), graph.name(bias)], alpha=1.0, beta=1.0, transB=1)


def _reshape(graph: _Recorder, out: Tensor, x: Tensor, shape: Any) -> str:
    return graph.node("Reshape", [graph.name(x), graph.name(list(out.shape))], allowzero=1)


def _slice(
    graph: _Recorder, out: Tensor, x: Tensor, axis: int = 0, start: int | None = None, end: int | None = None,
    step: int = 1,
) -> str:  # fmt: skip
    if out.shape == x.shape:
        return graph.name(x)
    first, last = start or 0, _END if end is None else end
    return graph.node("Slice", [graph.name(x), *(graph.name([each]) for each in (first, last, axis % x.ndim, step))])


def _pad(graph: _Recorder, out: Tensor, x: Tensor, pads: Any, value: float = 0.0) -> str:
    # In pairs, the last dimension first.
    missing = [0] * (x.ndim - len(pads) // 2)
    before, after = ([*missing, *pads[side::2][::-1]] for side in (0, 1))
    values = [graph.name(float(value), like=out)] if value else []
    return graph.node("Pad", [graph.name(x), graph.name([*before, *after]), *values], mode="constant")


def _transpose(graph: _Recorder, out: Tensor, x: Tensor, one: int, other: int) -> str:
    axes = list(range(x.ndim))
    axes[one], axes[other] = axes[other], axes[one]
    return graph.node("Transpose", [graph.name(x)], perm=axes)


def _split(graph: _Recorder, out: Tensor, x: Tensor, size: Any, axis: int = 0) -> list[str]:
    whole = x.shape[axis]
    if isinstance(size, int) and whole % size == 0:
        return graph.nodes("Split", [graph.name(x)], whole // size, axis=axis % x.ndim, num_outputs=whole // size)
    sizes = [min(size, whole - start) for start in range(0, whole, size)] if isinstance(size, int) else list(size)
    return graph.nodes("Split", [graph.name(x), graph.name(sizes)], len(sizes), axis=axis % x.ndim)


def _concat(graph: _Recorder, out: Tensor, tensors: Any, axis: int = 0) -> str:
    return graph.node("Concat", [graph.name(tensor) for tensor in tensors], axis=axis)


_WRITERS: dict[Any, Writer] = {
    **{packet: _elementwise(kind) for packet, kind in _ELEMENTWISE.items()},
    aten.convolution: _convolution,
    aten.native_batch_norm: _batch_norm,
    aten._native_batch_norm_legit_no_training: lambda graph, out, x, gain, shift, mean, variance, momentum, eps: (
        _batch_norm(graph, out, x, gain, shift, mean, variance, False, momentum, eps)
    ),
    aten.hardtanh: _hardtanh,
    aten.hardsigmoid: _hardsigmoid,
    aten.silu: _silu,
    aten.gelu: _gelu,
    aten.mean: _mean,
    aten.avg_pool2d: _average_pool,
    aten.max_pool2d_with_indices: _max_pool,
    aten.addmm: _linear,
    aten.view: _reshape,
    aten._unsafe_view: _reshape,
    aten.slice: _slice,
    aten.constant_pad_nd: _pad,
    aten.transpose: _transpose,
    aten.split: _split,
    aten.split_with_sizes: _split,
    aten.cat: _concat,
}
