"""`Profiler`: what every cost of a model space has in common, and how traces become cost models."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hwnas.cost import CostModel, Factor
from hwnas.profilers.symbols import listed_values, tabulate
from hwnas.profilers.tables import Table, combined, conjunction, disjunction, length_of
from hwnas.space import CategoricalMultiple, Constraint, Mutable, Sample
from hwnas.space.node import Node
from hwnas.space.walk import Partial, Structure, Undecided

MAX_SUBSETS = 4096  # a label with more values than that is left out of the domain

_TIMES = ("s", "ms", "us", "ns")


class Profiler:
    """A cost of the members of a space.

    Parameters
    ----------
    cost_model : CostModel
        The cost as a sum of factors.
    name : str, optional
        How budgets call the cost; see the property.

    Attributes
    ----------
    cost_model : CostModel
        Bounds, expectation, and draws within a budget are written against it.
    """

    _name: str | None = None

    def __init__(self, cost_model: CostModel, *, name: str | None = None) -> None:
        self.cost_model = cost_model
        self._name = name

    @property
    def unit(self) -> str:
        """Unit of the cost, such as ``MACs`` or ``ms``."""
        return self.cost_model.unit

    @property
    def name(self) -> str:
        """Name of the cost, which carries its unit: ``macs``, ``parameters``, ``latency_ms``.

        Unless it was given it is the unit in lower case, and a time is a latency.
        """
        if self._name is not None:
            return self._name
        unit = "_".join(self.unit.lower().split())
        return f"latency_{unit}" if unit in _TIMES else unit

    def profile(self, sample: Sample) -> float:
        """Return the cost of one member, in the unit of the profiler.

        Parameters
        ----------
        sample : dict
            The member.
        """
        return float(self.cost_model.evaluate(sample))

    @property
    def least_relative_stderr(self) -> float:
        """The least that `stderr` is of any member, relative to its cost; 0 unless a subclass knows better.

        Draws at a confidence level start from it: what it leaves out is never drawn, and `stderr` decides on the rest.
        So a value that is too low costs time, and one that is too high leaves out members that are near the limit.
        """
        return 0.0

    def stderr(self, sample: Sample) -> float:
        """Return the standard deviation of the true cost of one member around `profile`, in the unit of the profiler.

        0 for costs that are counted. NaN where it is not known.

        Parameters
        ----------
        sample : dict
            The member.
        """
        return 0.0

    def stderrs(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return `stderr` of many members, shape (n_samples,); a subclass may be faster at it than one by one.

        Parameters
        ----------
        samples : sequence of dict
            The members.
        """
        return np.array([self.stderr(sample) for sample in samples], dtype=float)

    def expectation(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Return the expected cost, in the unit of the profiler.

        Parameters
        ----------
        probabilities : mapping of str to Tensor, shape (number of values,)
            A distribution for every label on which the cost depends. Gradients reach all of them.

        Returns
        -------
        Tensor, shape ()
            Exact for independent labels.
        """
        return self.cost_model.expectation(probabilities)


def domain_of(space: Mutable) -> dict[str, Sequence[Any]]:
    """Return the values of every label that a cost may depend on.

    Numerical dimensions and subsets with very many values are left out: no cost is tabulated over them.
    """
    domain: dict[str, Sequence[Any]] = {}
    for label, mutable in space.simplify().items():
        try:
            countable = mutable.count_values()
        except ValueError:
            continue
        if isinstance(mutable, CategoricalMultiple) and countable > MAX_SUBSETS:
            continue
        domain[label] = listed_values(mutable)
    return domain


def constraints_of(space: Mutable) -> list[Factor]:
    """Return the constraints of a space as boolean factors, which hold where a constraint is not active.

    Raises
    ------
    TypeError
        For a constraint that is no expression, since it cannot be tabulated.
    """
    structure = space.structure()
    found: dict[tuple[int, str], Factor] = {}

    def visit(node: Node, decided: Sample) -> None:
        if isinstance(node, Constraint):
            key = id(node), repr(decided)
            if key not in found:
                found[key] = _limited(node, decided, structure)
        elif structure.restricted(node):
            try:
                parts = structure.active(node, Partial(decided))
            except Undecided as need:
                for value in listed_values(structure.dimension(need.label)):
                    visit(node, {**decided, need.label: value})
            else:
                for part in parts:
                    visit(part, decided)

    visit(structure.root, {})
    return list(found.values())


def _limited(constraint: Constraint, decided: Sample, structure: Structure) -> Factor:
    """Tabulate a constraint that is active under the decided labels alone."""
    expression = constraint.as_expression()
    if expression is None:
        raise TypeError(
            f"costs cannot honour the constraint {constraint!r}; write it as an ExpressionConstraint, or give it "
            "as_expression()"
        )
    inactive = [
        Table((label,), np.array([other != value for other in listed_values(structure.dimension(label))]))
        for label, value in decided.items()
    ]
    holds = tabulate(expression)
    table = disjunction([*inactive, Table(holds.labels, holds.values.astype(bool))])
    return Factor(table.labels, table.values, name=repr(constraint))


def masked(quantity: Table, conditions: Iterable[Table]) -> Table:
    """Return a quantity where the conditions hold, and zero elsewhere.

    Raises
    ------
    UnsupportedError
        When it depends on too many labels together.
    """
    return combined(np.multiply, [conjunction(conditions), quantity])


def build_cost_model(space: Mutable, parts: Iterable[tuple[str, Table]], unit: str, constant: float = 0.0) -> CostModel:
    """Add up named tables to a cost model over the labels of a space.

    Parameters
    ----------
    space : Mutable
        Gives the domain and the constraints.
    parts : iterable of (str, Table)
        Addends; the names show in breakdowns. Parts of one name and the same labels are merged.
    unit : str
        Of all of them.
    constant : float, default 0
        What every member costs in addition.

    Returns
    -------
    CostModel
        Over every label of the space.
    """
    merged: dict[tuple[str, tuple[str, ...]], np.ndarray] = {}
    for name, table in parts:
        key = (name, table.labels)
        values = table.values.astype(float)
        merged[key] = merged[key] + values if key in merged else values
    domain = domain_of(space)
    factors = []
    for (name, labels), values in merged.items():
        shape = tuple(length_of(label, domain) for label in labels)
        full = values if values.shape == shape else np.broadcast_to(values, shape)
        factors.append(Factor(labels, full, name=name))
    return CostModel(domain, factors, constant=constant, unit=unit, constraints=constraints_of(space))


def combinations(domain: Mapping[str, Sequence[Any]], labels: Sequence[str]) -> Iterator[Sample]:
    """Yield every partial sample over some labels, the last label varying fastest."""
    for values in itertools.product(*(domain[label] for label in labels)):
        yield dict(zip(labels, values, strict=True))
