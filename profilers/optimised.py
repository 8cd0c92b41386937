"""The kernels of a model as ONNX Runtime itself has fused them, read from the graph that it saves."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime

from hwnas.profilers.fusion_int8 import TO_FIRST, TO_LAST
from hwnas.profilers.kernel import Kernel
from hwnas.profilers.target import OrtTarget

if TYPE_CHECKING:
    import onnx

_CONVOLUTIONS: Final = ("Conv", "FusedConv", "QLinearConv")
_WINDOWED: Final = (*_CONVOLUTIONS, "AveragePool", "MaxPool", "QLinearAveragePool", "NhwcMaxPool")
_BLOCKED: Final = "com.microsoft.nchwc"


def optimised_graph(model: bytes, target: OrtTarget) -> onnx.GraphProto:
    """Return the graph that a session runs.

    Parameters
    ----------
    model : bytes
        A serialised ONNX model.
    target : OrtTarget
        Whose options hold; its provider has to be installed.
    """
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        options = target.session_options()
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(model, options, providers=[target.provider])
        return onnx.load(options.optimized_model_filepath).graph


def channel_block(target: OrtTarget) -> int:
    """Return how many channels convolutions put side by side on this machine, 0 where they keep the plain layout."""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("Conv", ["x", "weight"], ["y"], kernel_shape=[1, 1])
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in "xy"]
    graph = helper.make_graph([node], "convolution", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    found = optimised_graph(model.SerializeToString(), target)
    if all(node.domain != _BLOCKED for node in found.node):
        return 0
    return max(int(tensor.dims[0]) for tensor in found.initializer)  # weights are filled up to a whole block


def kernels_of(model: bytes, target: OrtTarget) -> Counter[Kernel]:
    """Count the kernels that a session runs.

    Parameters
    ----------
    model : bytes
        A serialised ONNX model with static shapes.
    target : OrtTarget
        Whose options hold.
    """
    from onnx import helper

    graph, block = optimised_graph(model, target), max(channel_block(target), 1)
    weights = {tensor.name for tensor in graph.initializer}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shapes.update((v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim)) for v in graph.input)
    found: Counter[Kernel] = Counter()
    for node in graph.node:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        operands = _operands(node)
        if node.op_type == "QLinearAdd":
            operands.sort(key=weights.__contains__)  # an addend that is a weight may lie with channels last
        read = [shapes[name] for name in operands]
        shape = _output_shape(node.op_type, read, attributes)
        entered = node.op_type == "ReorderInput"
        filled = (shape[0], -(-shape[1] // block) * block, *shape[2:]) if entered else shape
        shapes.update(dict.fromkeys(node.output, filled))
        constant = node.op_type in ("Add", "QLinearAdd") and not weights.isdisjoint(operands)
        added = node.op_type in _CONVOLUTIONS and sum(name not in weights for name in operands) > 1
        found[_kernel(node, read, shape, attributes, added, constant)] += 1
    return found


def _operands(node: onnx.NodeProto) -> list[str]:
    """Return what a node reads, without scales and zero points."""
    operator = node.op_type
    if operator == "QLinearConcat":
        return list(node.input[2::3])
    if operator in ("QLinearConv", "QLinearAdd", "QGemm"):
        return [node.input[0], node.input[3]]
    if operator.startswith(("QLinear", "Quantize", "Dequantize")):
        return [node.input[0]]
    return [name for name in node.input if name]


def _kernel(
    node: onnx.NodeProto,
    read: Sequence[tuple[int, ...]],
    shape: tuple[int, ...],
    attributes: dict[str, Any],
    added: bool,
    constant: bool,
) -> Kernel:
    operator, first = node.op_type, read[0]
    stride = next(iter(attributes.get("strides", [1])))
    if operator == "Transpose":
        return Kernel(TO_LAST if attributes["perm"][1] == 2 else TO_FIRST, (), 1, first, first[1])
    if _is_plain(node, attributes):
        operator = f"plain {operator}"
    if node.op_type in _CONVOLUTIONS:
        operator, window, groups = operator.replace("Fused", ""), (*read[1][2:], stride), attributes.get("group", 1)
        return Kernel(operator, window, groups, first, shape[1], bool(attributes.get("activation")), added)
    if node.op_type in _WINDOWED:
        return Kernel(operator, (*attributes["kernel_shape"], stride), 1, first, shape[1])
    reduces = node.op_type in ("ReduceMean", "QLinearGlobalAveragePool", "Gemm", "QGemm")
    return Kernel(operator, (), 1, first if reduces else shape, shape[1], constant=constant)


def _is_plain(node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
    """Tell whether an operator that may run in another layout has its channels second and not in blocks."""
    if node.op_type in ("Conv", "FusedConv"):
        return bool(node.domain != _BLOCKED)
    if node.op_type == "QLinearConcat":
        return bool(attributes["axis"] == 1)
    return node.op_type.startswith("QLinear") and attributes.get("channels_last") == 0


def _output_shape(operator: str, read: Sequence[tuple[int, ...]], attributes: dict[str, Any]) -> tuple[int, ...]:
    """Return the shape of what a node returns, with channels second whatever the layout.

    ONNX does not infer it behind operators of ONNX Runtime.
    """
    first = read[0]
    if operator in _WINDOWED:
        window = read[1][2:] if "Conv" in operator else attributes["kernel_shape"]
        ones = [1] * len(window)
        strides, dilations = attributes.get("strides", ones), attributes.get("dilations", ones)
        pads = attributes.get("pads", [0] * 2 * len(window))
        padded = [size + sum(pads[i :: len(window)]) for i, size in enumerate(first[2:])]
        covered = [d * (k - 1) + 1 for d, k in zip(dilations, window, strict=True)]
        up = math.ceil if attributes.get("ceil_mode") else math.floor
        sizes = [up((p - c) / s) + 1 for p, c, s in zip(padded, covered, strides, strict=True)]
        return (first[0], read[1][0] if "Conv" in operator else first[1], *sizes)
    if operator == "ReorderOutput":
        return (first[0], attributes["channels"], *first[2:])
    if operator in ("Concat", "QLinearConcat"):
        return (first[0], sum(each[1] for each in read), *first[2:])
    if operator in ("Gemm", "QGemm"):
        return (first[0], read[1][0 if attributes.get("transB") else 1])
    if operator == "QLinearGlobalAveragePool":
        return (*first[:2], 1, 1)
    if operator in ("ReduceMean", "Flatten"):
        return first[:2]
    return max(read, key=len)
