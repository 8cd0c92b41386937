"""An evaluator that is a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from hwnas.errors import TrainingError
from hwnas.evaluators.evaluator import Evaluator
from hwnas.space import Mutable, Sample


class FunctionalEvaluator(Evaluator, Mutable):
    """Score a model with a function ``function(model, **arguments) -> metric``.

    Arguments may be choices, a learning rate for instance. The evaluator is then a space itself, and freezing it
    gives one whose arguments are plain.

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
    >>> from hwnas.nn import ValueChoice
    >>> open_evaluator = FunctionalEvaluator(evaluator.function, scale=ValueChoice([1, 2], label="scale"))
    >>> open_evaluator.freeze({"scale": 1}).evaluate(nn.Linear(3, 1))
    3.0
    """

    def __init__(self, function: Callable[..., Any], **arguments: Any) -> None:
        if not callable(function):
            raise TypeError(
                f"FunctionalEvaluator: got {function!r} ({type(function).__name__}), expected a function "
                "that takes a model and returns its metric."
            )
        self.function = function
        self.arguments = arguments

    def sub_mutables(self, sample: Sample | None = None) -> Iterator[Mutable]:
        """Yield the arguments that are choices."""
        for argument in self.arguments.values():
            if isinstance(argument, Mutable):
                yield argument

    def freeze(self, sample: Sample) -> FunctionalEvaluator:
        """Return an evaluator whose arguments are those of a sample."""
        self.validate(sample)
        plain = {
            name: argument.freeze(sample) if isinstance(argument, Mutable) else argument
            for name, argument in self.arguments.items()
        }
        return FunctionalEvaluator(self.function, **plain)

    def evaluate(self, model: nn.Module) -> float:
        """Call the function on `model`.

        Raises
        ------
        TrainingError
            If the function returns something that is not a single number, or an argument is still a choice.
        """
        open_labels = list(self.simplify())
        if open_labels:
            raise TrainingError(
                f"FunctionalEvaluator: its arguments depend on the choices {', '.join(open_labels)}; evaluate with "
                "freeze(sample)"
            )
        metric = self.function(model, **self.arguments)
        try:
            return float(metric)
        except (TypeError, ValueError, RuntimeError) as error:
            name = getattr(self.function, "__qualname__", repr(self.function))
            raise TrainingError(
                f"FunctionalEvaluator: {name} returned {metric!r} ({type(metric).__name__}), expected one "
                "number. Return the metric of the model, for example its validation accuracy."
            ) from error
