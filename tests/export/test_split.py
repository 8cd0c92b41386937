"""Cutting graphs that no exporter is needed for: inner graphs, and groups that are not apart."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwnas.export.split import split_model


def value(name: str, shape: list[int], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes, inputs, outputs, weights=()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "whole", inputs, outputs, initializer=list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_what_an_inner_graph_takes_from_outside_comes_along():
    def branch(name: str, operator: str) -> onnx.GraphProto:
        # `w` and `double` belong to the outer graph.
        nodes = [
            helper.make_node(operator, ["double", "w"], [f"{name}_inner"]),
            helper.make_node("Neg", [f"{name}_inner"], [name]),
        ]
        return helper.make_graph(nodes, name, [], [value(name, [2])])

    nodes = [
        helper.make_node("Add", ["x", "x"], ["double"]),
        helper.make_node("If", ["flag"], ["y"], then_branch=branch("then", "Add"), else_branch=branch("else", "Mul")),
        helper.make_node("Relu", ["other"], ["z"]),
    ]
    weight = numpy_helper.from_array(np.array([3.0, 4.0], dtype=np.float32), "w")
    whole = model(
        nodes,
        [value("flag", [], TensorProto.BOOL), value("x", [2]), value("other", [1])],
        [value("y", [2]), value("z", [1])],
        [weight],
    )
    first, second = split_model(whole, [2, 1], [1, 1], scope="models")
    assert [node.op_type for node in second.graph.node] == ["Relu"]
    assert not second.graph.initializer
    onnx.checker.check_model(first, full_check=True)
    session = onnxruntime.InferenceSession(first.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.array([1.0, -5.0], dtype=np.float32)
    assert session.run(None, {"flag": np.array(True), "x": x})[0].tolist() == [-5.0, 6.0]
    assert session.run(None, {"flag": np.array(False), "x": x})[0].tolist() == [-6.0, 40.0]


def test_groups_that_are_not_apart_are_refused():
    whole = model(
        [helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Relu", ["b"], ["d"])],
        [value("a", [1]), value("b", [1])],
        [value("c", [1]), value("d", [1])],
    )
    with pytest.raises(ValueError, match=r"group 0 needs \['b'\]"):
        split_model(whole, [1, 1], [1, 1], scope="models")
    with pytest.raises(ValueError, match="2 inputs and 2 outputs"):
        split_model(whole, [1], [1], scope="models")
