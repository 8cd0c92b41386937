"""Conditions that a sample must meet. They have no label and no key in the sample."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from hwnas.errors import SampleError
from hwnas.space.expression import MutableExpression
from hwnas.space.mutable import Mutable
from hwnas.space.node import Sample


class Constraint(Mutable):
    """A condition on samples.

    A subclass implements `violation`, and `sub_mutables` with the choices on which it depends, all of which
    count as active when the constraint is.
    """

    is_constraint = True

    @abstractmethod
    def violation(self, sample: Sample) -> str | None:
        """Say how a sample violates the condition, None if it does not.

        Parameters
        ----------
        sample : dict
            Holds the labels of `sub_mutables`. Read it by label, without copying it: it may be under
            construction.
        """

    def holds(self, sample: Sample) -> bool:
        """Tell whether the sample meets the condition. Override it where `violation` makes costly texts."""
        return self.violation(sample) is None

    def as_expression(self) -> MutableExpression | None:
        """Return an expression that says the same, by which the constraint can be stored; None if there is none."""
        return None

    def check_contains(self, sample: Sample) -> SampleError | None:
        """Check the labels, then the condition."""
        error = super().check_contains(sample)
        if error is not None:
            return error
        reason = self.violation(sample)
        return None if reason is None else SampleError(reason)

    def freeze(self, sample: Sample) -> None:
        """Check the sample; a constraint has no value."""
        self.validate(sample)


class ExpressionConstraint(Constraint):
    """The condition that an expression is true.

    Parameters
    ----------
    expression : MutableExpression
        Usually a comparison. Combine several with ``&`` and ``|``, not with ``and`` and ``or``.
    label : str, optional
        A name for error messages; it is no label of the space.

    Raises
    ------
    TypeError
        If `expression` does not depend on any choice.
    """

    def __init__(self, expression: MutableExpression, label: str | None = None) -> None:
        if not isinstance(expression, MutableExpression):
            raise TypeError(
                f"a constraint needs an expression of choices, got {expression!r} of type "
                f"{type(expression).__name__}; the operands seem to be plain values"
            )
        self.expression = expression
        self.label = label

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield the expression."""
        yield self.expression

    def as_expression(self) -> MutableExpression:
        """Return the expression."""
        return self.expression

    def holds(self, sample: Sample) -> bool:
        """Tell whether the expression is true."""
        return bool(self.expression.compute(lambda leaf: sample[leaf.label]))

    def violation(self, sample: Sample) -> str | None:
        """Say so if the expression is false."""
        if self.holds(sample):
            return None
        values = ", ".join(f"{leaf.label}={sample[leaf.label]!r}" for leaf in self.expression.leaves())
        name = "the constraint" if self.label is None else f"the constraint {self.label!r}"
        return f"{name} {self.expression.text()} does not hold for {values}"

    def __repr__(self) -> str:
        """Return the expression."""
        name = "" if self.label is None else f", label={self.label!r}"
        return f"ExpressionConstraint({self.expression.text()}{name})"
