"""`ValueChoice`: one of several values, as an argument, in arithmetic, or called in `forward`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hwnas.space import Categorical, LabeledMutable, MutableExpression, functions


class ValueChoice(Categorical):
    """Choose one of several values.

    It can be an argument of a module of `hwnas.nn`, take part in arithmetic, or, once it is an attribute of a
    module, be called in `forward` to give the chosen value.

    Parameters
    ----------
    candidates : sequence
        The values: numbers, strings, booleans, None, or tuples of these. They are unique.
    weights, prior : sequence of float, optional
        Probability of each value in random sampling. `prior` is the older spelling.
    default : optional
        The value of the default sample; the first one unless given.
    label : str, optional
        Choices of one label are one dimension of the space. Made up from the scope unless given.

    Examples
    --------
    >>> import hwnas.nn as nn
    >>> kernel = nn.ValueChoice([3, 5, 7], label="kernel")
    >>> padding = (kernel - 1) // 2
    >>> padding.evaluate({"kernel": 5})
    2
    """

    def __init__(
        self,
        candidates: Sequence[Any],
        *,
        weights: Sequence[float] | None = None,
        prior: Sequence[float] | None = None,
        label: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(candidates, weights=given_weights(weights, prior), label=label, **kwargs)
        self._reader: Callable[[MutableExpression], Any] | None = None

    @property
    def candidates(self) -> list[Any]:
        """The values to choose from."""
        return list(self.values)

    def all_options(self) -> list[Any]:
        """Return every value that the choice can take."""
        return self.all_values()

    def inner_choices(self) -> list[LabeledMutable]:
        """Return the choices that this value depends on: itself."""
        return self.leaves()

    max = staticmethod(functions.maximum)
    min = staticmethod(functions.minimum)
    condition = staticmethod(functions.condition)
    to_int = staticmethod(functions.to_int)
    to_float = staticmethod(functions.to_float)

    def read_with(self, reader: Callable[[MutableExpression], Any] | None) -> None:
        """Make calls give `reader(self)`, as a super-net does; None restores the default value.

        Parameters
        ----------
        reader : callable, optional
            Gives the present value of the choice.
        """
        self._reader = reader

    def __call__(self) -> Any:
        """Return the present value: the default, or what a super-net has sampled."""
        if self._reader is not None:
            return self._reader(self)
        return self.default_value()


def given_weights(weights: Sequence[float] | None, prior: Sequence[float] | None) -> Sequence[float] | None:
    """Accept both spellings of the probabilities of a choice.

    Raises
    ------
    ValueError
        When both are given.
    """
    if weights is not None and prior is not None:
        raise ValueError("`weights` and its older spelling `prior` are both given; give one of them")
    return prior if weights is None else weights
