"""An evaluator that is a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from hwnas.errors import TrainingError
from hwnas.evaluators.evaluator import Evaluator


class FunctionalEvaluator(Evaluator):
    """Score a model with a function ``function(model, **arguments) -> metric``.

    Parameters
    ----------
    function : callable
        Takes the model first. Returns a number, or a tensor or an array with one element.
    **arguments
        Passed to the function by name at every call.

    Raises
    ------
    TypeError
        If `function` cannot be called.

    Examples
    --------
    >>> evaluator = FunctionalEvaluator(lambda model, scale: scale * model.in_features, scale=2.0)
    >>> evaluator.evaluate(nn.Linear(3, 1))
    6.0
    """

    def __init__(self, function: Callable[..., Any], **arguments: Any) -> None:
        if not callable(function):
            raise TypeError(
                f"FunctionalEvaluator: got {function!r} ({type(function).__name__}), expected a function "
                "that takes a model and returns its metric."
            )
        self.function = function
        self.arguments = arguments

    def evaluate(self, model: nn.Module) -> float:
        """Call the function on `model`.

        Raises
        ------
        TrainingError
            If the function returns something that is not a single number.
        """
        metric = self.function(model, **self.arguments)
        try:
            return float(metric)
        except (TypeError, ValueError, RuntimeError) as error:
            name = getattr(self.function, "__qualname__", repr(self.function))
            raise TrainingError(
                f"FunctionalEvaluator: {name} returned {metric!r} ({type(metric).__name__}), expected one "
                "number. Return the metric of the model, for example its validation accuracy."
            ) from error
