"""Two tiny ONNX networks that take part in every session: one that does nothing, one that feels the load."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

# Old enough for every ONNX Runtime of the last years, so that the graphs never need conversion.
_OPSET = 17
_IR_VERSION = 8


def identity_model() -> bytes:
    """Build a network of one Identity node: its latency is the overhead of a run.

    Returns
    -------
    bytes
        A serialised ONNX model with input ``x``, shape (1, 16).
    """
    return _serialise("identity", [helper.make_node("Identity", ["x"], ["y"])], [], (1, 16), (1, 16))


def canary_model() -> bytes:
    """Build a small convolutional network whose latency tells how busy the machine is.

    Dense, depthwise and pointwise convolutions and a linear layer, so that it leans on the arithmetic units
    as well as on the caches. Its weights are fixed (He initialisation, seed 0).

    Returns
    -------
    bytes
        A serialised ONNX model with input ``x``, shape (1, 16, 32, 32).
    """
    rng = np.random.default_rng(0)
    weights = {
        "dense": _he(rng, (32, 16, 3, 3)),
        "depthwise": _he(rng, (32, 1, 3, 3)),
        "pointwise": _he(rng, (64, 32, 1, 1)),
        "linear": _he(rng, (10, 64)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "dense"], ["a"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "depthwise"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=32),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "pointwise"], ["e"], kernel_shape=[1, 1]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "linear"], ["y"], transB=1),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return _serialise("canary", nodes, tensors, (1, 16, 32, 32), (1, 10))


def _he(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    scale = np.sqrt(2.0 / np.prod(shape[1:]))
    weights: NDArray[np.float32] = (rng.standard_normal(shape) * scale).astype(np.float32)
    return weights


def _serialise(
    name: str,
    nodes: list[onnx.NodeProto],
    tensors: list[onnx.TensorProto],
    input_shape: tuple[int, ...],
    output_shape: tuple[int, ...],
) -> bytes:
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
