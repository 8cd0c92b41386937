"""Descriptions of whole spaces in JSON: dimensions, what is active when, and constraints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hwnas.errors import HwnasError, SampleError
from hwnas.space.categorical import Categorical, CategoricalMultiple
from hwnas.space.constraint import Constraint, ExpressionConstraint
from hwnas.space.expression import LAZY, OPERATORS, MutableExpression, Operation
from hwnas.space.labels import Label
from hwnas.space.mutable import LabeledMutable, Mutable
from hwnas.space.node import Node, Sample
from hwnas.space.numerical import Numerical
from hwnas.space.walk import Partial, Structure, UncountableError, Undecided

SPACE_SCHEMA_VERSION = 1


class SpaceError(HwnasError, ValueError):
    """A space cannot be described in JSON, or a description cannot be read."""


def space_to_json(mutable: Mutable) -> dict[str, Any]:
    """Describe a space in JSON types.

    Parameters
    ----------
    mutable : Mutable
        The space.

    Returns
    -------
    dict
        ``schema_version``; ``labels``, the description of each dimension by label, in order; ``active``, a list of
        what the space consists of: a label, a constraint, or a switch that tells for each value of a label what
        else is active.

    Raises
    ------
    SpaceError
        If a continuous dimension decides what is active, or a constraint cannot be written as an
        expression.
    """
    structure = mutable.structure()
    return {
        "schema_version": SPACE_SCHEMA_VERSION,
        "labels": {str(label): dimension.describe() for label, dimension in structure.dimensions.items()},
        "active": _distinct(_describe(structure.root, structure, Partial())),
    }


def space_from_json(data: Any) -> Mutable:
    """Make a space from its description.

    Parameters
    ----------
    data : dict
        What `space_to_json` gave.

    Returns
    -------
    Mutable
        A space with the same dimensions, conditions and constraints. It samples, counts and validates as the
        original does, and freezes a sample to its active part.

    Raises
    ------
    SpaceError
        If `data` is no such description, or its schema version is unknown.
    """
    if not isinstance(data, dict) or not {"labels", "active"} <= data.keys():
        raise SpaceError(f"expected an object with 'schema_version', 'labels' and 'active', got {str(data)[:80]!r}")
    version = data.get("schema_version")
    if type(version) is not int or version != SPACE_SCHEMA_VERSION:
        raise SpaceError(
            f"the space has schema version {version!r}, this version of hwnas reads {SPACE_SCHEMA_VERSION}; describe "
            "the space again, or read it with the version of hwnas that wrote it"
        )
    try:
        dimensions = {label: _dimension(label, described) for label, described in data["labels"].items()}
        return _DescribedSpace(dimensions, [_part(part, dimensions) for part in data["active"]])
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise SpaceError(f"the description of the space is damaged: {problem!r}") from problem


class _Switch(Mutable):
    """What is active beyond a label, by its value."""

    def __init__(self, choice: LabeledMutable, cases: list[tuple[Any, list[Mutable]]]) -> None:
        self.choice = choice
        self.cases = cases

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        yield self.choice
        value = None if sample is None else sample[self.choice.label]
        for case, parts in self.cases:
            if sample is None or case == value:
                yield from parts

    def freeze(self, sample: Sample) -> Any:
        raise NotImplementedError("a part of a described space is frozen with the space")


class _DescribedSpace(Mutable):
    """A space that was read from its description; it freezes to the active part of a sample."""

    def __init__(self, dimensions: dict[str, LabeledMutable], parts: list[Mutable]) -> None:
        self.dimensions = dimensions
        self.parts = parts

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        if sample is None:  # the order of the labels is that of the original
            yield from self.dimensions.values()
        yield from self.parts

    def freeze(self, sample: Sample) -> Sample:
        self.validate(sample)
        structure = self.structure()
        found: Sample = {}

        def visit(node: Node) -> None:
            label = node.own_label()
            if label is not None:
                found[label] = structure.dimension(label).canonical(sample[label])
            for part in structure.active(node, sample):
                visit(part)

        visit(self)
        return found


def _describe(node: Node, structure: Structure, partial: Partial) -> Iterator[Any]:
    own = node.own_label()
    if own is not None:
        yield str(own)
    if node.is_constraint:
        yield _describe_constraint(node)
        return
    try:
        parts = structure.active(node, partial)
    except Undecided as need:
        dimension = structure.dimension(need.label)
        cases = []
        try:
            values = list(dimension.grid_values())
        except UncountableError as problem:
            raise SpaceError(f"what is active depends on {need.label!r}: {problem}") from problem
        for value in values:
            inner = Partial({**partial, need.label: value})
            cases.append([_plain(value), _distinct(_describe(node, structure, inner))])
        if all(case == cases[0][1] for _, case in cases):
            yield need.label
            yield from cases[0][1]
        else:
            yield {"switch": need.label, "cases": cases}
        return
    for part in parts:
        yield from _describe(part, structure, partial)


def _distinct(parts: Iterator[Any]) -> list[Any]:
    found: dict[str, Any] = {}
    for part in parts:
        found.setdefault(json.dumps(part), part)
    return list(found.values())


def _describe_constraint(node: Node) -> dict[str, Any]:
    expression = node.as_expression() if isinstance(node, Constraint) else None
    if expression is None:
        raise SpaceError(
            f"the constraint {node!r} is Python code, which has no description; write it as an ExpressionConstraint, "
            "or give it as_expression()"
        )
    described = {"constraint": _describe_operand(expression)}
    name = node.label if isinstance(node, ExpressionConstraint) else None
    return described if name is None else {**described, "name": name}


def _describe_operand(operand: Any) -> Any:
    if isinstance(operand, Operation):
        return {"operator": operand.name, "operands": [_describe_operand(part) for part in operand.operands]}
    if isinstance(operand, LabeledMutable):
        return {"label": str(operand.label)}
    if isinstance(operand, slice):
        return {"operator": "slice", "operands": [operand.start, operand.stop, operand.step]}
    if type(operand) in (tuple, list):
        return {"operator": type(operand).__name__, "operands": [_describe_operand(part) for part in operand]}
    if operand is None or isinstance(operand, bool | int | float | str):
        return operand
    raise SpaceError(f"the constant {operand!r} of type {type(operand).__name__} in an expression is no JSON value")


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _dimension(label: str, described: dict[str, Any]) -> LabeledMutable:
    options = dict(described)
    kind = options.pop("kind")
    full = Label(label)
    if kind == Categorical.kind:
        values, default = _tuples(options["values"]), _tuple(options["default"])
        return Categorical(values, weights=options["weights"], default=default, label=full)
    if kind == CategoricalMultiple.kind:
        values, several = _tuples(options["values"]), _tuples(options["default"])
        return CategoricalMultiple(values, options["n_chosen"], weights=options["weights"], default=several, label=full)
    if kind == Numerical.kind:
        return Numerical(**{name: value for name, value in options.items() if value is not None}, label=full)
    raise SpaceError(f"label {label!r} is of the unknown kind {kind!r}")


def _tuples(values: list[Any]) -> list[Any]:
    return [_tuple(value) for value in values]


def _tuple(value: Any) -> Any:
    """Undo what JSON did to a value of a categorical dimension, which is never a list."""
    return tuple(_tuples(value)) if isinstance(value, list) else value


def _part(part: Any, dimensions: dict[str, LabeledMutable]) -> Mutable:
    if isinstance(part, str):
        return dimensions[part]
    if "switch" in part:
        choice = dimensions[part["switch"]]
        cases = [(choice.restore(value), [_part(sub, dimensions) for sub in subs]) for value, subs in part["cases"]]
        return _Switch(choice, cases)
    return ExpressionConstraint(_operand(part["constraint"], dimensions), label=part.get("name"))


def _operand(described: Any, dimensions: dict[str, LabeledMutable]) -> Any:
    if not isinstance(described, dict):
        return described
    if "label" in described:
        leaf = dimensions[described["label"]]
        if not isinstance(leaf, MutableExpression):
            raise SampleError("it takes no part in arithmetic", (leaf.label,))
        return leaf
    name = described["operator"]
    if name not in OPERATORS and name not in LAZY:
        raise SpaceError(f"unknown operator {name!r} in a constraint")
    return Operation(name, *(_operand(part, dimensions) for part in described["operands"]))
