"""The cost of every architecture of a space, as a sum of small tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from hwnas.cost.bounded import Bounded
from hwnas.cost.compiled import Compiled
from hwnas.cost.counting import Count, count_within
from hwnas.cost.domain import Domain
from hwnas.cost.expectation import Expectation
from hwnas.cost.factor import Factor
from hwnas.cost.intermediate import Intermediate, base_labels, closure
from hwnas.cost.sampler import BudgetSampler
from hwnas.cost.serialize import (
    SCHEMA_VERSION,
    check_schema,
    decode_factor,
    decode_intermediates,
    decode_value,
    encode_factor,
    encode_intermediate,
    encode_value,
)
from hwnas.errors import BudgetError

if TYPE_CHECKING:
    from torch import Tensor

Sample = dict[str, Any]

# Budget samplers kept for the next call with the same budget.
_SAMPLERS = 4


@dataclass(frozen=True)
class Extreme:
    """The smallest or largest cost, and an architecture that has it.

    Parameters
    ----------
    cost : float
        The cost, in the unit of the model.
    sample : dict of str to object
        The architecture.
    """

    cost: float
    sample: Sample


class CostModel:
    """A cost: a constant plus one number from each factor.

    FLOPs, parameters, memory and measured latency all take this form, so whatever is written against it
    (penalties, filters, bounds, reports, budgets) serves them all.

    Parameters
    ----------
    domain : mapping of str to sequence
        Every label of the space with its values, in order.
    factors : iterable of Factor
        The addends. Many may share labels, and labels need not have any. An `Intermediate` that one depends on is
        computed from the labels.
    constant : float
        What no choice changes.
    unit : str
        The unit of the cost, such as ``"ms"``; shown in messages.
    constraints : iterable of Factor
        Boolean factors; only combinations that all of them allow are members of the space. Bounds, draws and
        counts honour them. `evaluate` and `expectation` do not look at them.

    Raises
    ------
    ValueError
        If a factor has a label that is not in the domain, or a table that does not fit it, or intermediates of one
        name differ.
    """

    def __init__(
        self,
        domain: Mapping[str, Sequence[Any]],
        factors: Iterable[Factor],
        *,
        constant: float = 0.0,
        unit: str = "",
        constraints: Iterable[Factor] = (),
    ) -> None:
        self.domain = Domain(domain)
        self.unit = unit
        self.factors: tuple[Factor, ...] = tuple(factors)
        self.constraints: tuple[Factor, ...] = tuple(constraints)
        self._offset = float(constant)
        if not math.isfinite(self._offset):
            raise ValueError(f"the constant is {constant}, expected a finite number")
        named = (label for factor in (*self.factors, *self.constraints) for label in factor.labels)
        self.intermediates: tuple[Intermediate, ...] = tuple(closure(named).values())
        self._sizes = dict(zip(self.labels, self.domain.sizes, strict=True))
        for each in self.intermediates:
            if each in self._sizes:
                raise ValueError(f"{str(each)!r} is the name of a label and of an intermediate; rename one of them")
            self._check(Factor(each.labels, each.table, f"intermediate {str(each)!r}"))
            self._sizes[each] = each.size
        for factor in self.factors:
            self._check(factor)
        for constraint in self.constraints:
            self._check(constraint)
            if not constraint.is_constraint:
                raise ValueError(
                    f"{constraint.title}: a constraint needs a boolean table, got {constraint.table.dtype}"
                )
        self._compiled = self._compile(self.domain, self.intermediates, self.constraints)
        self._samplers: dict[Any, BudgetSampler] = {}

    def _check(self, factor: Factor) -> None:
        for label, size in zip(factor.labels, factor.table.shape, strict=True):
            if label not in self._sizes:
                raise ValueError(
                    f"{factor.title}: the label {label!r} is not in the domain; "
                    f"it has {', '.join(self.labels) or 'none'}"
                )
            if size != (expected := self._sizes[label]):
                raise ValueError(
                    f"{factor.title}: the table has {size} entries for {label!r}, but that has {expected} values"
                )

    def _compile(
        self, domain: Domain, intermediates: Sequence[Intermediate], constraints: Sequence[Factor]
    ) -> Compiled:
        costs = [Factor(f.labels, f.table.astype(np.float64)) if f.is_constraint else f for f in self.factors]
        return Compiled(domain, intermediates, costs, constraints, self._offset, self.unit)

    @property
    def constant(self) -> float:
        """What no choice changes, in the unit of the cost."""
        return self._offset

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels of the domain, in order."""
        return self.domain.labels

    @property
    def factor_labels(self) -> tuple[str, ...]:
        """The labels on which the cost depends, in the order in which factors name them."""
        return base_labels(label for factor in self.factors for label in factor.labels)

    # -- one or many architectures -------------------------------------------------------------------------

    def indices(self, samples: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> npt.NDArray[np.intp]:
        """Turn samples into option indices.

        Parameters
        ----------
        samples : mapping or sequence of mappings
            Label to value. Labels that are not in the domain are ignored.

        Returns
        -------
        ndarray, shape (n_labels,) or (n_samples, n_labels)

        Raises
        ------
        SampleError
            If a label of the domain is missing or has a value that is not in the domain.
        """
        if isinstance(samples, Mapping):
            row: npt.NDArray[np.intp] = self.indices([samples])[0]
            return row
        rows = np.empty((len(samples), len(self.labels)), dtype=np.intp)
        for p, column in enumerate(self.domain.columns(self.labels, samples)):
            rows[:, p] = column
        return rows

    def samples(self, indices: npt.NDArray[np.integer[Any]]) -> list[Sample]:
        """Turn option indices, shape (n_samples, n_labels), into samples."""
        return [self.domain.sample(row) for row in indices.tolist()]

    @overload
    def evaluate(self, samples: Mapping[str, Any]) -> float: ...

    @overload
    def evaluate(
        self, samples: Sequence[Mapping[str, Any]] | npt.NDArray[np.integer[Any]]
    ) -> npt.NDArray[np.float64]: ...

    def evaluate(
        self, samples: Mapping[str, Any] | Sequence[Mapping[str, Any]] | npt.NDArray[np.integer[Any]]
    ) -> float | npt.NDArray[np.float64]:
        """Give the cost of one or many architectures.

        Parameters
        ----------
        samples : mapping, sequence of mappings, or ndarray of int, shape (n_samples, n_labels)
            One sample, many samples, or option indices in the order of `labels`, by far the fastest.
            Labels that are not in the domain are ignored, and labels that no cost depends on may be missing.

        Returns
        -------
        float or ndarray, shape (n_samples,)
            A float for one sample.

        Raises
        ------
        SampleError
            If a label that the cost depends on is missing or has an unknown value.
        ValueError
            If an array has the wrong shape or type, or an index is out of range.
        """
        if isinstance(samples, Mapping):
            return float(self.evaluate([samples])[0])
        if isinstance(samples, np.ndarray):
            return self._compiled.evaluate(samples)
        used = self._compiled.used_labels
        columns = self.domain.columns([self.labels[p] for p in used], samples)
        return self._compiled.sum(dict(zip(used, columns, strict=True)), len(samples))

    def allowed(self, samples: Sequence[Mapping[str, Any]] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.bool_]:
        """Tell for each sample, or each row of option indices, whether the constraints allow it."""
        rows = samples if isinstance(samples, np.ndarray) else self.indices(samples)
        return self._compiled.allowed(rows)

    def breakdown(self, sample: Mapping[str, Any]) -> list[tuple[str, float]]:
        """Give what each factor adds to the cost of a sample, largest first.

        Returns
        -------
        list of (str, float)
            The factor's name, or its labels where it has none. The constant, unless 0, is ``"constant"``.
        """
        parts = [("constant", self._offset)] if self._offset else []
        columns = self.domain.columns(self.factor_labels, [sample])
        at = {label: int(column[0]) for label, column in zip(self.factor_labels, columns, strict=True)}
        for each in closure(label for factor in self.factors for label in factor.labels).values():
            at[each] = int(each.table[tuple(at[label] for label in each.labels)])
        for factor in self.factors:
            index = tuple(at[label] for label in factor.labels)
            parts.append((factor.name or ", ".join(factor.labels) or "constant", float(factor.table[index])))
        return sorted(parts, key=lambda part: part[1], reverse=True)

    # -- distributions -------------------------------------------------------------------------------------

    def expectation(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Give the expected cost when labels are chosen independently; differentiable.

        Exact, also where factors share labels. Constraints are not taken into account.

        Parameters
        ----------
        probabilities : mapping of str to Tensor, shape (n_label,)
            One vector for every label that the cost depends on. Vectors of other labels of the domain get a
            zero gradient; labels that are not in the domain are ignored.

        Returns
        -------
        Tensor, shape ()
            In the widest of the dtypes given, float32 at least.

        Raises
        ------
        ValueError
            If a label that the cost depends on has no vector, or a vector has the wrong shape.
        """
        return self._expectation(probabilities)

    @cached_property
    def _expectation(self) -> Expectation:
        compiled = self._compiled
        return Expectation(compiled)

    # -- bounds --------------------------------------------------------------------------------------------

    def minimum(self) -> Extreme:
        """Give the smallest cost that the constraints allow, exactly, by variable elimination.

        Raises
        ------
        BudgetError
            If the constraints allow nothing.
        UnsupportedError
            If factors tie too many labels together.
        """
        return self._extreme(1)

    def maximum(self) -> Extreme:
        """Give the largest cost that the constraints allow; see `minimum`."""
        return self._extreme(-1)

    def _extreme(self, sign: int) -> Extreme:
        best = self._compiled.optimum(sign)
        if best is None:
            raise BudgetError("no architecture satisfies the constraints; relax them")
        return Extreme(float(self._compiled.evaluate(best[None])[0]), self.domain.sample(best[: len(self.labels)]))

    # -- budgets -------------------------------------------------------------------------------------------

    def sampler(
        self,
        low: float | None = None,
        high: float | None = None,
        weights: Mapping[str, Sequence[float]] | None = None,
    ) -> BudgetSampler:
        """Give the `BudgetSampler` of a budget; the last few are kept, so asking again is cheap."""
        prior = None if weights is None else tuple((k, tuple(map(float, w))) for k, w in sorted(weights.items()))
        key = (low, high, prior)
        if key not in self._samplers:
            made = BudgetSampler([Bounded.of(self._compiled, low, high)], weights)
            while len(self._samplers) >= _SAMPLERS:
                self._samplers.pop(next(iter(self._samplers)))
            self._samplers[key] = made
        return self._samplers[key]

    def sample_within(
        self,
        low: float | None = None,
        high: float | None = None,
        n: int = 1,
        seed: int | np.random.Generator = 0,
        weights: Mapping[str, Sequence[float]] | None = None,
    ) -> list[Sample]:
        """Draw architectures whose cost is within a budget, from the prior conditioned on the budget.

        Independent draws, made by dynamic programming rather than by blind rejection; see `BudgetSampler`.

        Parameters
        ----------
        low, high : float, optional
            The budget, in the unit of the model; both ends belong to it.
        n : int
            How many.
        seed : int or numpy.random.Generator
            The source of randomness.
        weights : mapping of str to sequence of float, shape (n_label,), optional
            Prior weights of the options. Labels left out are uniform.

        Raises
        ------
        BudgetError
            If no architecture is within the budget; names the nearest reachable cost and what blocks it.
        """
        return self.samples(self.sampler(low, high, weights).draw(n, seed))

    def count_within(self, low: float | None = None, high: float | None = None) -> Count:
        """Count the members whose cost is within a range, both ends included.

        Returns
        -------
        Count
            The number with bounds; see `hwnas.cost.counting.count_within` for when it is exact.
        """
        return count_within([Bounded.of(self._compiled, low, high)])

    # -- arithmetic ----------------------------------------------------------------------------------------

    # NumPy numbers on the left leave the arithmetic to this class.
    __array_ufunc__ = None

    def __add__(self, other: CostModel | float) -> CostModel:
        """Add a model of the same space, or of other labels, or a constant."""
        if isinstance(other, (int, float, np.number)):
            other = CostModel({}, (), constant=float(other), unit=self.unit)
        if not isinstance(other, CostModel):
            return NotImplemented
        if self.unit and other.unit and self.unit != other.unit:
            raise ValueError(f"costs in {self.unit!r} and {other.unit!r} cannot be added; scale one to a common unit")
        return CostModel(
            self.domain.union(other.domain).values,
            (*self.factors, *other.factors),
            constant=self._offset + other._offset,
            unit=self.unit or other.unit,
            constraints=dict.fromkeys((*self.constraints, *other.constraints)),
        )

    __radd__ = __add__

    def __mul__(self, scale: float) -> CostModel:
        """Scale the cost; the unit stays (see `scaled`)."""
        if not isinstance(scale, (int, float, np.number)):
            return NotImplemented
        return self.scaled(float(scale))

    __rmul__ = __mul__

    def scaled(self, scale: float, unit: str | None = None) -> CostModel:
        """Give the model multiplied by `scale`, in another unit if one is given."""
        return CostModel(
            self.domain.values,
            [factor * scale for factor in self.factors],
            constant=self._offset * scale,
            unit=self.unit if unit is None else unit,
            constraints=self.constraints,
        )

    # -- text and files ------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """Show the size, not the tables."""
        unit = f", unit={self.unit!r}" if self.unit else ""
        return f"CostModel({len(self.labels)} labels, {len(self.factors)} factors{unit})"

    def to_dict(self) -> dict[str, Any]:
        """Give a JSON-able form, exact to the last bit, with its schema version.

        Raises
        ------
        TypeError
            If a value of the domain is not made of None, bool, int, float, str, tuples and lists.
        """
        return {
            "schema_version": SCHEMA_VERSION,
            "unit": self.unit,
            "constant": self._offset,
            # Pairs, because the order of labels matters and that of the keys of a JSON object need not last.
            "domain": [[k, [encode_value(v, k) for v in values]] for k, values in self.domain.values.items()],
            "intermediates": [encode_intermediate(each) for each in self.intermediates],
            "factors": [encode_factor(factor) for factor in self.factors],
            "constraints": [encode_factor(constraint) for constraint in self.constraints],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CostModel:
        """Read what `to_dict` gave.

        Raises
        ------
        ValueError
            If the data has another schema version.
        """
        check_schema(data)
        known = decode_intermediates(data.get("intermediates", ()))
        return cls(
            {label: [decode_value(value) for value in values] for label, values in data["domain"]},
            [decode_factor(factor, known) for factor in data["factors"]],
            constant=data["constant"],
            unit=data["unit"],
            constraints=[decode_factor(constraint, known, constraint=True) for constraint in data["constraints"]],
        )
