"""Taking an ONNX model apart into models that share nothing but the file they came from."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

# Where the exporter notes the modules that a node belongs to, from the root to the operator.
SCOPES = "pkg.torch.onnx.name_scopes"


def split_model(
    proto: onnx.ModelProto, n_inputs: Sequence[int], n_outputs: Sequence[int], *, scope: str
) -> list[onnx.ModelProto]:
    """Cut a model whose inputs and outputs stand in consecutive groups into one model for each group.

    Nodes and weights that several groups use are copied into each.

    Parameters
    ----------
    proto : onnx.ModelProto
        The whole. It is not changed.
    n_inputs, n_outputs : sequence of int
        The sizes of the groups, in the order of the graph's inputs and outputs.
    scope : str
        The list of modules in which group i is module i. It is taken off the nodes' scopes.

    Returns
    -------
    list of onnx.ModelProto
        Each with all inputs of its group, used or not.

    Raises
    ------
    ValueError
        If the sizes do not add up, or a group needs an input of another.
    """
    import onnx

    graph = proto.graph
    if sum(n_inputs) != len(graph.input) or sum(n_outputs) != len(graph.output):
        raise ValueError(
            f"split_model: the graph has {len(graph.input)} inputs and {len(graph.output)} outputs, and the "
            f"groups have {sum(n_inputs)} and {sum(n_outputs)}."
        )
    producers = {name: position for position, node in enumerate(graph.node) for name in node.output if name}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    shapes = {value.name: value for value in graph.value_info}

    parts = []
    next_input, next_output = 0, 0
    for group, (n_in, n_out) in enumerate(zip(n_inputs, n_outputs, strict=True)):
        inputs = graph.input[next_input : next_input + n_in]
        outputs = graph.output[next_output : next_output + n_out]
        next_input, next_output = next_input + n_in, next_output + n_out

        positions, weights = _ancestors([value.name for value in outputs], graph.node, producers)
        missing = weights - {value.name for value in inputs} - set(initializers)
        if missing:
            raise ValueError(f"split_model: group {group} needs {sorted(missing)}, which is outside of it.")

        part = onnx.ModelProto()
        part.CopyFrom(proto)
        part.ClearField("graph")
        part.graph.name = graph.name
        part.graph.input.extend(inputs)
        part.graph.output.extend(outputs)
        part.graph.node.extend(graph.node[position] for position in sorted(positions))
        part.graph.initializer.extend(tensor for name, tensor in initializers.items() if name in weights)
        made = {name for node in part.graph.node for name in node.output}
        part.graph.value_info.extend(shape for name, shape in shapes.items() if name in made)
        for node in part.graph.node:
            _relative_scopes(node, f"{scope}.{group}")
        parts.append(part)
    return parts


def _ancestors(
    outputs: Sequence[str], nodes: Sequence[onnx.NodeProto], producers: dict[str, int]
) -> tuple[set[int], set[str]]:
    """Return the positions of the nodes that `outputs` need, and the names that no node makes."""
    positions: set[int] = set()
    sources: set[str] = set()
    pending = list(outputs)
    while pending:
        name = pending.pop()
        if name not in producers:
            sources.add(name)
        elif producers[name] not in positions:
            positions.add(producers[name])
            pending.extend(_names_used(nodes[producers[name]]))
    return positions, sources


def _names_used(node: onnx.NodeProto) -> Iterator[str]:
    """Give the names that a node reads, those that its inner graphs take from outside included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs:
            own = {value.name for value in inner.input} | {tensor.name for tensor in inner.initializer}
            own |= {name for each in inner.node for name in each.output}
            for each in inner.node:
                yield from (name for name in _names_used(each) if name not in own)
            yield from (value.name for value in inner.output if value.name not in own)


def _relative_scopes(node: onnx.NodeProto, root: str) -> None:
    """Rewrite a node's scopes as seen from the module `root`."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            scopes = [name for name in ast.literal_eval(entry.value) if name]
            names = [name[len(root) :].lstrip(".") if _inside(name, root) else name for name in scopes]
            entry.value = repr(names if names[:1] == [""] else ["", *names])


def _inside(name: str, root: str) -> bool:
    return name == root or name.startswith(f"{root}.")
