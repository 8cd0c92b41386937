"""Quantised models run integer kernels in ONNX Runtime, and compute nearly what the float32 models compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from hwnas.errors import UnsupportedError
from hwnas.export import export_many, quantise

Array = np.ndarray[Any, Any]
# A network of some layers whose weights have 7 bits; a scale or a zero point that is wrong is far beyond.
NEAR = 0.1
FLOAT_KERNELS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "Add", "Mul", "Concat", "AveragePool", "Relu"}


def graph_of(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, Array] = {},
    *,
    shape: Sequence[int] = (1, 8, 12, 12),
    outputs: Sequence[str] = ("y",),
    opset: int = 20,
) -> bytes:
    """Serialise a graph with the input ``x``."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def between_convolutions(nodes: Sequence[NodeProto], constants: Mapping[str, Array] = {}) -> bytes:
    """Serialise a graph in which nodes from ``a`` to ``b`` stand between two convolutions."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((8, 8, 1, 1)).astype(np.float32) / 3 for name in ("first", "second")}
    first = helper.make_node("Conv", ["x", "first"], ["a"])
    second = helper.make_node("Conv", ["b", "second"], ["y"])
    return graph_of([first, *nodes, second], {**weights, **constants})


def session_of(model: bytes, optimised: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def kernels(model: bytes, folder: Path) -> list[str]:
    """Tell what ONNX Runtime really runs."""
    session_of(model, folder / "optimised.onnx")
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


def run(model: bytes, seed: int = 1) -> list[Array]:
    session, rng = session_of(model), np.random.default_rng(seed)
    feeds = {value.name: rng.standard_normal(value.shape).astype(np.float32) for value in session.get_inputs()}
    return [np.asarray(output) for output in session.run(None, feeds)]


def error(model: bytes, seed: int = 1) -> float:
    """Tell how far the quantised outputs are from the float ones, relative to their size."""
    pairs = zip(run(model, seed), run(quantise(model), seed), strict=True)
    return max(float(np.sqrt(((exact - near) ** 2).mean() / (exact**2).mean())) for exact, near in pairs)


def integers(*values: int) -> Array:
    return np.array(values, np.int64)


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


node = helper.make_node
TWICE = np.array([1, 1, 2, 2], np.float32)
BETWEEN: dict[str, tuple[list[NodeProto], dict[str, Array], set[str]]] = {
    "nothing": ([node("Identity", ["a"], ["b"])], {}, set()),
    "relu": ([node("Relu", ["a"], ["b"])], {}, set()),
    "relu6": ([node("Clip", ["a", "low", "high"], ["b"])], {"low": scalar(0), "high": scalar(6)}, set()),
    "leaky relu": ([node("LeakyRelu", ["a"], ["b"])], {}, {"QLinearLeakyRelu"}),
    "sigmoid": ([node("Sigmoid", ["a"], ["b"])], {}, {"QLinearSigmoid"}),
    "softmax": ([node("Softmax", ["a"], ["b"], axis=-1)], {}, {"QLinearSoftmax"}),
    "silu": ([node("Sigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["b"])], {}, {"QLinearSigmoid", "QLinearMul"}),
    "add": ([node("Relu", ["a"], ["r"]), node("Add", ["a", "r"], ["b"])], {}, {"QLinearAdd"}),
    "add, relu": ([node("Add", ["a", "x"], ["s"]), node("Relu", ["s"], ["b"])], {}, {"QLinearAdd"}),
    "constant": ([node("Add", ["a", "k"], ["b"])], {"k": np.ones((8, 1, 1), np.float32)}, {"QLinearAdd"}),
    "scalar": ([node("Mul", ["a", "k"], ["b"])], {"k": scalar(-0.3)}, {"QLinearMul"}),
    "concat, pool": (
        [node("Concat", ["a", "x"], ["c"], axis=2), node("MaxPool", ["c"], ["b"], kernel_shape=[2, 1])],
        {},
        {"QLinearConcat"},
    ),
    "average": ([node("AveragePool", ["a"], ["b"], kernel_shape=[2, 2])], {}, {"QLinearAveragePool"}),
    "mean": (
        [node("Relu", ["a"], ["r"]), node("ReduceMean", ["r", "axes"], ["b"])],
        {"axes": integers(-1, 2)},
        {"QLinearGlobalAveragePool"},
    ),
    "slice": ([node("Slice", ["a", "i", "j"], ["b"])], {"i": integers(0, 0, 2), "j": integers(1, 8, 9)}, {"Slice"}),
    "shuffle": (
        [node("Split", ["a"], ["c", "d"], axis=1, num_outputs=2), node("Concat", ["d", "c"], ["b"], axis=1)],
        {},
        {"Split", "QLinearConcat"},
    ),
    "gather": ([node("Gather", ["a", "i"], ["b"], axis=1)], {"i": integers(7, 6, 5, 4, 3, 2, 1, 0)}, {"Gather"}),
    "resize": (
        [node("Resize", ["a", "", "k"], ["b"], mode="nearest")],
        {"k": np.array([1, 1, 2, 2], "f4")},
        {"Resize"},
    ),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_operators_between_convolutions(name: str, tmp_path: Path) -> None:
    nodes, constants, expected = BETWEEN[name]
    model = between_convolutions(nodes, constants)
    found = kernels(quantise(model), tmp_path)
    assert found.count("QLinearConv") == 2
    assert expected <= set(found)
    assert not FLOAT_KERNELS & set(found)
    # One conversion at the input, one at the output; a Relu of a value that is also used without it needs two more.
    conversions = found.count("QuantizeLinear") + found.count("DequantizeLinear")
    assert conversions == (4 if name == "add" else 2)
    assert error(model) < NEAR


def test_what_has_no_integer_kernel_stays_in_float(tmp_path: Path) -> None:
    model = between_convolutions([node("HardSigmoid", ["a"], ["s"]), node("Mul", ["a", "s"], ["b"])])
    found = kernels(quantise(model), tmp_path)
    assert found.count("QLinearConv") == 2
    assert {"HardSigmoid", "QLinearMul"} <= set(found) or {"HardSigmoid", "Mul"} <= set(found)
    assert error(model) < NEAR


class Block(nn.Module):
    """An inverted bottleneck with squeeze and excitation, a pooled branch, a normalisation that precedes, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 5, padding=2, groups=16), nn.BatchNorm2d(16), nn.ReLU6())
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.behind = nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.max, self.average = nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(x)
        gate = self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        y = self.max(x + self.project(y * nn.functional.hardsigmoid(gate)))
        y = self.behind(y) + self.average(y)
        return self.head(y.mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.project, self.out = nn.LayerNorm(16), nn.Linear(16, 48, bias=False), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(self.norm(x)).chunk(3, -1)
        return x + self.out(torch.softmax(q @ k.transpose(1, 2) / 4, -1) @ v)


@pytest.fixture(scope="module")
def exported() -> dict[str, bytes]:
    torch.manual_seed(0)
    models = {"block": Block(), "attention": Attention()}
    inputs = [(torch.randn(2, 3, 16, 16),), (torch.randn(2, 6, 16),)]
    return dict(zip(models, export_many(list(models.values()), inputs), strict=True))


def test_a_convolutional_network(exported: dict[str, bytes], tmp_path: Path) -> None:
    model = exported["block"]
    found = kernels(quantise(model), tmp_path)
    assert found.count("QLinearConv") == 6
    assert {"QGemm", "QLinearAdd", "QLinearMul", "QLinearAveragePool", "QLinearGlobalAveragePool"} <= set(found)
    assert not {"Conv", "FusedConv", "Gemm", "Relu", "Clip", "Add", "AveragePool", "ReduceMean"} & set(found)
    assert "HardSigmoid" in found  # it has no integer kernel
    assert error(model) < NEAR
    assert [output.shape for output in run(quantise(model))] == [(2, 10)]


def test_attention(exported: dict[str, bytes], tmp_path: Path) -> None:
    found = kernels(quantise(exported["attention"]), tmp_path)
    assert {"QLinearMatMul", "QLinearSoftmax", "QLinearAdd"} <= set(found)
    assert not {"MatMul", "Gemm", "Softmax"} & set(found)
    assert error(exported["attention"]) < NEAR


def test_each_channel_of_a_weight_has_its_scale() -> None:
    rng = np.random.default_rng(0)
    size = 10.0 ** np.arange(-4, 4)
    for operator, axis, shape in (("Conv", 0, (8, 8, 1, 1)), ("Gemm", 0, (8, 8)), ("MatMul", 1, (8, 8))):
        broadcast = [-1 if each == axis else 1 for each in range(len(shape))]
        weight = (rng.standard_normal(shape) * size.reshape(broadcast)).astype(np.float32)
        attributes = {"transB": 1} if operator == "Gemm" else {}
        nodes = [helper.make_node(operator, ["x", "w"], ["y"], **attributes)]
        model = graph_of(nodes, {"w": weight}, shape=(1, 8, 3, 3) if operator == "Conv" else (4, 8))
        graph = onnx.load_from_string(quantise(model)).graph
        tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        (restored,) = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] == "y.1.integers"]
        scale = tensors["y.1.scale"].reshape(broadcast)
        others = tuple(each for each in range(len(shape)) if each != axis)
        np.testing.assert_allclose(tensors["y.1.scale"], np.abs(weight).max(axis=others) / 63, rtol=1e-6, atol=2e-8)
        assert (np.abs(tensors["y.1.integers"] * scale - weight) <= 0.51 * scale).all()
        assert restored.attribute[0].i == axis


def test_biases_are_exact() -> None:
    bias = np.array([100, -100, 0.5, 0, 3, -7, 20, 1e-3], np.float32)
    weight = np.full((8, 8, 1, 1), 0.01, np.float32)
    model = graph_of([node("Conv", ["x", "w", "bias"], ["y"])], {"w": weight, "bias": bias}, shape=(1, 8, 3, 3))
    graph = onnx.load_from_string(quantise(model)).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    np.testing.assert_allclose(tensors["y.2.integers"] * tensors["y.2.scale"], bias, atol=1e-3)
    np.testing.assert_allclose(tensors["y.2.scale"], tensors["x.scale"] * tensors["y.1.scale"], rtol=1e-6)
    assert tensors["y.2.integers"].dtype == np.int32


def test_outputs_that_are_used_inside_too(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 8, 1, 1)).astype(np.float32)
    nodes = [
        node("Conv", ["x", "w"], ["y"]),
        node("Relu", ["y"], ["z"]),
        node("Conv", ["z", "w"], ["u"]),
        node("Shape", ["u"], ["s"]),
        node("Cast", ["s"], ["v"], to=TensorProto.FLOAT),
    ]
    model = graph_of(nodes, {"w": weight}, outputs=("y", "z", "u", "v"))
    quantised = quantise(model)
    assert [value.name for value in onnx.load_from_string(quantised).graph.output] == ["y", "z", "u", "v"]
    assert kernels(quantised, tmp_path).count("QLinearConv") == 2
    assert error(model) < NEAR


def test_what_stays_as_it_is(tmp_path: Path) -> None:
    for operator in ("Relu", "Exp", "Identity"):
        model = graph_of([node(operator, ["x"], ["y"])])
        assert quantise(model) == model
    scaled = graph_of([node("Gemm", ["x", "w"], ["y"], alpha=0.5)], {"w": np.eye(4, dtype="f4")}, shape=(2, 4))
    assert quantise(scaled) == scaled
    made = graph_of([node("Exp", ["x"], ["e"]), node("Gemm", ["x", "e"], ["y"])], shape=(4, 4))
    assert quantise(made) == made
    assert "QLinearMatMul" in kernels(quantise(graph_of([node("MatMul", ["x", "x"], ["y"])], shape=(4, 4))), tmp_path)


def test_the_same_model_always_gives_the_same_one(exported: dict[str, bytes]) -> None:
    model = exported["block"]
    assert quantise(model) == quantise(model) != quantise(model, seed=1)


def test_what_cannot_be_quantised_is_refused() -> None:
    weight = {"w": np.ones((8, 8, 1, 1), np.float32)}
    convolution = [node("Conv", ["x", "w"], ["y"])]
    with pytest.raises(UnsupportedError, match="version 11 of the ONNX operators, expected 13"):
        quantise(graph_of(convolution, weight, opset=11))
    with pytest.raises(UnsupportedError, match="quantised already"):
        quantise(quantise(graph_of(convolution, weight)))
    with pytest.raises(UnsupportedError, match="cannot run the float32 model"):
        quantise(
            graph_of(
                [node("Conv", ["x", "w"], ["a"]), node("Gather", ["a", "i"], ["y"])], {**weight, "i": integers(99)}
            )
        )
