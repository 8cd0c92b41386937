"""ONNX models in 8-bit integers, built from those in float32 in the form that ONNX Runtime fuses (QDQ)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import UnsupportedError

if TYPE_CHECKING:
    import onnx

MIN_OPSET: Final = 13
"""From that version on QuantizeLinear takes one scale for each channel."""

_WEIGHTED: Final = frozenset(["Conv", "Gemm", "MatMul"])
ARITHMETIC: Final = _WEIGHTED | frozenset(
    ["Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid", "Softmax"]
)
"""Operators of which ONNX Runtime has integer kernels with scales of their own for inputs and outputs."""

# Operators that only move values: integers stay what they are.
_MOVES: Final = frozenset(
    [
        *("DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "Reshape"),
        *("Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
    ]
)

# Weights take 7 bits: on x86 without VNNI two products of 8-bit numbers are added in 16 bits, which would saturate.
_WEIGHT_MAX: Final = 63
_LEAST_RANGE: Final = 1e-6
_RUNS: Final = 4

Array = NDArray[Any]


def quantise(model: bytes, *, seed: int = 0) -> bytes:
    """Give the model in 8-bit integers that stands for a float32 model.

    Around each operator of `ARITHMETIC` the values are quantised, with scales from runs on random inputs: unsigned
    8-bit activations with one scale for each tensor, signed weights with one scale for each output channel, 32-bit
    biases. ONNX Runtime replaces each such operator by an integer kernel. Other operators compute in float32 between a
    conversion from integers and one back. Inputs and outputs of the model stay what they are.

    It is made to be timed. Its outputs are near those of the float32 model on inputs like the random ones; for use in
    earnest, scales have to come from real data.

    Parameters
    ----------
    model : bytes
        A serialised ONNX model with static input shapes.
    seed : int, default 0
        Seed of the random inputs: normally distributed, integers zero.

    Returns
    -------
    bytes
        A serialised ONNX model. The same one where no operator has integer kernels.

    Raises
    ------
    UnsupportedError
        The version of its operators is too old, it is quantised already, or it cannot be run.
    """
    import onnx

    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < MIN_OPSET:
        raise UnsupportedError(
            f"quantise: the model has version {opset} of the ONNX operators, expected {MIN_OPSET} or later. Export it "
            "again"
        )
    if any(node.op_type == "DequantizeLinear" for node in proto.graph.node):
        raise UnsupportedError("quantise: the model is quantised already. Give the float32 model")
    _global_pooling(proto.graph)
    plan = _Plan(proto.graph)
    if not plan.tensors:
        return model
    _Rewriting(plan, _ranges(proto, plan.tensors, seed)).apply(proto.graph)
    return bytes(proto.SerializeToString())


class _Plan:
    """Which nodes and tensors of a graph become integers.

    Attributes
    ----------
    arithmetic : set of str
        The first outputs of the nodes that get an integer kernel.
    tensors : list of str
        The activations that are quantised, in the order of the graph.
    same : dict of str to str
        Tensors that have the scale of another one, by name.
    uses : Counter of str
        How many nodes read a tensor.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        from onnx import TensorProto

        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.outputs = [value.name for value in graph.output]
        self._floats = {
            value.name
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        chosen = [node for node in graph.node if node.op_type in ARITHMETIC and self._has_kernel(node)]
        self.arithmetic = {node.output[0] for node in chosen}
        self.same: dict[str, str] = {}
        wanted = {name for node in chosen for name in (*self._activations(node), node.output[0])}
        self.uses = Counter(name for node in graph.node for name in node.input)
        for node in graph.node:
            source = node.input[0] if node.input else ""
            if source not in wanted:
                continue
            if node.op_type in _MOVES:
                results = [name for name in node.output if name in self._floats]
                wanted.update(results)
                self.same.update(dict.fromkeys(results, source))
            elif self._clamps_from_zero(node):
                wanted.add(node.output[0])
                if source in self.arithmetic and self.uses[source] == 1 and source not in self.outputs:
                    wanted.remove(source)  # the clamping vanishes in the arithmetic before it
        made = [*(value.name for value in graph.input), *(name for node in graph.node for name in node.output)]
        self.tensors = [name for name in made if name in wanted]

    def _activations(self, node: onnx.NodeProto) -> list[str]:
        names = node.input[:2] if node.op_type in _WEIGHTED else node.input
        return [name for name in names if name not in self.weights]

    def _has_kernel(self, node: onnx.NodeProto) -> bool:
        activations = self._activations(node)
        if not activations or not {*activations, node.output[0]} <= self._floats:
            return False
        if node.op_type == "MatMul":
            return node.input[0] in activations
        if node.op_type in _WEIGHTED:
            plain = all(each.f == 1.0 for each in node.attribute if each.name in ("alpha", "beta"))
            return plain and node.input[0] in activations and all(name in self.weights for name in node.input[1:])
        return True

    def _clamps_from_zero(self, node: onnx.NodeProto) -> bool:
        from onnx import numpy_helper

        low = self.weights.get(node.input[1]) if node.op_type == "Clip" and len(node.input) > 1 else None
        return node.op_type == "Relu" or (low is not None and float(numpy_helper.to_array(low)) == 0.0)


class _Rewriting:
    """Puts conversions to integers and back into a graph: ``QuantizeLinear`` and ``DequantizeLinear``."""

    def __init__(self, plan: _Plan, ranges: Mapping[str, tuple[float, float]]) -> None:
        self._plan = plan
        self._grids: dict[str, tuple[Array, Array]] = {}
        for name in plan.tensors:
            self._grids[name] = self._grids[plan.same[name]] if name in plan.same else _grid(*ranges[name])
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def apply(self, graph: onnx.GraphProto) -> None:
        """Rewrite the graph."""
        for value in graph.input:
            self._convert(value.name, value.name)
        for node in graph.node:
            self._rewrite(node)
        used = {*self._plan.outputs, *(name for node in self._nodes for name in node.input)}
        kept = [tensor for name, tensor in self._plan.weights.items() if name in used]
        for field in ("node", "initializer", "value_info"):
            graph.ClearField(field)
        graph.node.extend(self._nodes)
        graph.initializer.extend([*kept, *self._constants.values()])

    def _rewrite(self, node: onnx.NodeProto) -> None:
        rewritten = type(node)()
        rewritten.CopyFrom(node)
        for position, name in enumerate(node.input):
            if name in self._grids:
                rewritten.input[position] = f"{name}.restored"
            elif name in self._plan.weights and node.output[0] in self._plan.arithmetic:
                rewritten.input[position] = self._weight(node, position)
        for position, name in enumerate(node.output):
            if name in self._grids and name in self._plan.outputs:
                rewritten.output[position] = f"{name}.exact"
        self._nodes.append(rewritten)
        for name, exact in zip(node.output, rewritten.output, strict=True):
            self._convert(name, exact)

    def _convert(self, name: str, exact: str) -> None:
        """Quantise a tensor that has just been made, and restore it for those that read it."""
        if name not in self._grids:
            return
        scale, zero = self._grids[name]
        grid = [self._constant(f"{name}.scale", scale), self._constant(f"{name}.zero", zero)]
        self._add("QuantizeLinear", [exact, *grid], f"{name}.integers")
        if self._plan.uses[name]:
            self._add("DequantizeLinear", [f"{name}.integers", *grid], f"{name}.restored")
        if exact != name:  # an output of the graph, which keeps its name
            self._add("DequantizeLinear", [f"{name}.integers", *grid], name)

    def _weight(self, node: onnx.NodeProto, position: int) -> str:
        """Replace a constant that an arithmetic node reads by integers; give the name of what it reads then."""
        from onnx import numpy_helper

        name = node.input[position]
        values = numpy_helper.to_array(self._plan.weights[name])
        where = f"{node.output[0]}.{position}"
        axis = 0
        if node.op_type not in _WEIGHTED:
            scale, zero = _grid(float(values.min()), float(values.max()))
            integers = _rounded(values / scale + zero, 0, 255, np.uint8)
        elif position == 1:
            axis = _channel_axis(node, values.ndim)
            scale = _channel_scale(values, axis)
            shape = [-1 if each == axis else 1 for each in range(values.ndim)]
            integers = _rounded(values / scale.reshape(shape), -_WEIGHT_MAX, _WEIGHT_MAX, np.int8)
            zero = np.zeros(scale.shape, np.int8)
        else:  # a bias: in the unit of the sum to which it is added
            weight = numpy_helper.to_array(self._plan.weights[node.input[1]])
            channels = _channel_scale(weight, _channel_axis(node, weight.ndim))
            scale = (self._grids[node.input[0]][0] * channels).astype(np.float32)
            integers = _rounded(values / scale, -(2**31), 2**31 - 1, np.int32)
            zero = np.zeros(scale.shape, np.int32)
        parts = [("integers", integers), ("scale", scale), ("zero", zero)]
        inputs = [self._constant(f"{where}.{kind}", array) for kind, array in parts]
        return self._add("DequantizeLinear", inputs, f"{where}.restored", axis=axis)

    def _constant(self, name: str, values: Array) -> str:
        from onnx import numpy_helper

        self._constants[name] = numpy_helper.from_array(values, name)
        return name

    def _add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self._nodes.append(
            helper.make_node(operator, list(inputs), [output], name=f"{output}/{operator}", **attributes)
        )
        return output


def _grid(low: float, high: float) -> tuple[Array, Array]:
    """Return scale and zero point of the unsigned 8-bit numbers that cover a range, with 0 among them."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, _LEAST_RANGE) / 255
    return np.array(scale, np.float32), np.array(round(-low / scale), np.uint8)


def _rounded(values: Array, low: int, high: int, kind: type[np.integer[Any]]) -> Array:
    return np.clip(np.rint(values.astype(np.float64)), low, high).astype(kind)


def _channel_axis(node: onnx.NodeProto, rank: int) -> int:
    """Return the axis of a weight along which its output channels lie."""
    if node.op_type == "Conv":
        return 0
    transposed = any(each.name == "transB" and each.i for each in node.attribute)
    return 0 if transposed else rank - 1


def _channel_scale(values: Array, axis: int) -> Array:
    """Return the scale of the weights of each output channel, shape (channels,)."""
    others = tuple(each for each in range(values.ndim) if each != axis)
    largest = np.abs(values).max(axis=others, initial=_LEAST_RANGE)
    return np.asarray(largest / _WEIGHT_MAX, np.float32)


def _global_pooling(graph: onnx.GraphProto) -> None:
    """Write means over the whole plane, which have no integer kernel, as global pooling, which has one."""
    from onnx import TensorProto, helper, numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.input, *graph.value_info)}
    nodes = []
    for node in graph.node:
        axes = weights.get(node.input[1]) if node.op_type == "ReduceMean" and len(node.input) == 2 else None
        whole = axes is not None and sorted(a % 4 for a in numpy_helper.to_array(axes).tolist()) == [2, 3]
        if not whole or ranks.get(node.input[0]) != 4:
            nodes.append(node)
            continue
        keeps = all(each.i for each in node.attribute if each.name == "keepdims")
        pooled = node.output[0] if keeps else f"{node.output[0]}.plane"
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name))
        if not keeps:
            graph.value_info.append(helper.make_tensor_value_info(pooled, TensorProto.FLOAT, None))
            nodes.append(helper.make_node("Flatten", [pooled], [node.output[0]], name=f"{node.name}/Flatten"))
    graph.ClearField("node")
    graph.node.extend(nodes)


def _ranges(proto: onnx.ModelProto, names: Sequence[str], seed: int) -> dict[str, tuple[float, float]]:
    """Run the float32 model on random inputs; give the least and the largest value of some tensors."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    there = {value.name for value in (*watched.graph.output, *watched.graph.input)}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in there
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
        made = [value.name for value in session.get_outputs()]
        rng, found = np.random.default_rng(seed), np.zeros((2, len(names)))
        for _ in range(_RUNS):
            feeds = _random_inputs(proto.graph, rng)
            values = {**feeds, **dict(zip(made, session.run(made, feeds), strict=True))}
            found[0] = np.minimum(found[0], [values[name].min(initial=0.0) for name in names])
            found[1] = np.maximum(found[1], [values[name].max(initial=0.0) for name in names])
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
        raise UnsupportedError(f"quantise: ONNX Runtime cannot run the float32 model: {error}") from error
    return {name: (float(low), float(high)) for name, low, high in zip(names, *found, strict=True)}


def _random_inputs(graph: onnx.GraphProto, rng: np.random.Generator) -> dict[str, Array]:
    from onnx import helper

    feeds: dict[str, Array] = {}
    for value in graph.input:
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        random = np.issubdtype(kind, np.floating)
        feeds[value.name] = (rng.standard_normal(shape) if random else np.zeros(shape)).astype(kind)
    return feeds
