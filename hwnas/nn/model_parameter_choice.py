"""`ModelParameterChoice`: a choice whose value the constructor of a space can use like any other value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from hwnas.nn.value_choice import given_weights
from hwnas.space import Categorical, Sample
from hwnas.space.labels import resolve_label

if TYPE_CHECKING:
    from torch import nn

Assignment = tuple[tuple[str, Any], ...]
"""Values of the parameters in the order in which the constructor asks for them."""

MAX_VARIANTS = 1000


@dataclass
class _Construction:
    """A space under construction."""

    given: dict[str, Any]
    met: dict[str, Categorical] = field(default_factory=dict)


_current: ContextVar[_Construction | None] = ContextVar("hwnas_construction", default=None)


class ModelParameterChoice:
    """Choose a value that is known while the model is constructed.

    Unlike a `ValueChoice` it gives a real value at once, which can stand in an ``if``, in ``range``, or be an
    argument of any function. While the space itself is constructed that is the default; to freeze a sample with
    another value, the space is constructed once more.

    Super-nets cannot hold such a choice, as they are constructed once. Prefer `ValueChoice`, `Repeat` and
    `LayerChoice` where they serve.

    Parameters
    ----------
    candidates : sequence
        The values: numbers, strings, booleans, None, or tuples of these.
    weights, prior : sequence of float, optional
        Probability of each value in random sampling. `prior` is the older spelling.
    default : callable or value, optional
        The default value, or a function that picks it from the candidates, such as `FIRST` and `LAST`.
    label : str, optional
        Choices of one label are one dimension of the space.

    Returns
    -------
    Any
        One of the candidates; never an object of this class.

    Raises
    ------
    RuntimeError
        Outside the constructor of a `ModelSpace`.
    ValueError
        When the candidates or the default do not fit.

    Examples
    --------
    >>> import torch
    >>> import hwnas.nn as nn
    >>> class Net(nn.ModelSpace):
    ...     def __init__(self):
    ...         super().__init__()
    ...         width = nn.ModelParameterChoice([4, 8], label="width")
    ...         self.token = nn.Parameter(torch.zeros(1, width))
    ...     def forward(self, x):
    ...         return x + self.token
    >>> Net().freeze({"width": 8}).token.shape
    torch.Size([1, 8])
    """

    def __new__(
        cls,
        candidates: Sequence[Any],
        *,
        weights: Sequence[float] | None = None,
        prior: Sequence[float] | None = None,
        default: Any = None,
        label: str | None = None,
    ) -> Any:
        """Return the chosen value."""
        construction = _current.get()
        if construction is None:
            raise RuntimeError(
                "a ModelParameterChoice is made in the constructor of a ModelSpace, which can run again with another "
                "value; here no space is under construction"
            )
        candidates = list(candidates)
        if default is None and None not in candidates:
            default = cls.FIRST
        options = {"default": default(candidates) if callable(default) else default} if candidates else {}
        choice = Categorical(
            candidates, weights=given_weights(weights, prior), label=resolve_label(label, "parameter"), **options
        )
        known = construction.met.setdefault(choice.label, choice)
        if not known.equals(choice):
            raise ValueError(
                f"two different model parameters have the label {choice.label!r}: {known!r} and {choice!r}"
            )
        return construction.given.get(choice.label, choice.default_value())

    @staticmethod
    def FIRST(sequence: Sequence[Any] | None = None) -> Any:  # noqa: N802 - the established name
        """Pick the first item; without arguments, return this function."""
        return ModelParameterChoice.FIRST if sequence is None else sequence[0]

    @staticmethod
    def LAST(sequence: Sequence[Any] | None = None) -> Any:  # noqa: N802 - the established name
        """Pick the last item; without arguments, return this function."""
        return ModelParameterChoice.LAST if sequence is None else sequence[-1]


@contextmanager
def construction(given: dict[str, Any] | None = None) -> Iterator[dict[str, Categorical]]:
    """Let `ModelParameterChoice` take its values from `given`, and note the choices that are met.

    Parameters
    ----------
    given : dict, optional
        Values by label; the defaults stand in for the others.

    Yields
    ------
    dict
        Label to choice, filled while the ``with`` block runs.
    """
    present = _Construction(given or {})
    token = _current.set(present)
    try:
        yield present.met
    finally:
        _current.reset(token)


def under_construction() -> bool:
    """Tell whether a space is being constructed."""
    return _current.get() is not None


class Variants:
    """The models that a constructor gives with different values of its model parameters.

    Parameters
    ----------
    construct : callable
        Constructs the model once more.
    model : torch.nn.Module
        What it gives with the defaults.
    met : dict
        The model parameters that were met then.
    """

    def __init__(self, construct: Callable[[], nn.Module], model: nn.Module, met: dict[str, Categorical]) -> None:
        self.construct = construct
        self._built: dict[Assignment, tuple[nn.Module, dict[str, Categorical]]] = {}
        self._default = (model, met)

    def walk(self, sample: Sample | None) -> Iterator[Categorical | nn.Module]:
        """Yield the model parameters that are met and the models that come of them.

        Parameters
        ----------
        sample : dict, optional
            With a sample, the one model that it asks for comes last; without one, all of them are yielded.

        Yields
        ------
        Categorical or torch.nn.Module
            A model parameter comes before its value is read from the sample.
        """
        yield from self._walk((), sample, [0])

    def _walk(self, decided: Assignment, sample: Sample | None, count: list[int]) -> Iterator[Categorical | nn.Module]:
        model, met = self._variant(decided)
        known = dict(decided)
        choice = next((choice for label, choice in met.items() if label not in known), None)
        if choice is None:
            count[0] += 1
            if count[0] > MAX_VARIANTS:
                raise ValueError(
                    f"the model parameters {list(met)} have more than {MAX_VARIANTS} combinations, and the model is "
                    "constructed for each to find its choices. Use ValueChoice or Repeat for some of them"
                )
            yield model
            return
        yield choice
        values = choice.values if sample is None else [choice.canonical(sample[choice.label])]
        for value in values:
            yield from self._walk((*decided, (str(choice.label), value)), sample, count)

    def _variant(self, decided: Assignment) -> tuple[nn.Module, dict[str, Categorical]]:
        model, met = self._default
        if all(label in met and met[label].default_value() == value for label, value in decided):
            return self._default
        if decided not in self._built:
            with construction(dict(decided)) as found:
                try:
                    # Only its choices are of interest, so it needs no memory.
                    with torch.device("meta"):
                        model = self.construct()
                except Exception:  # a constructor may compute with the values of its tensors
                    model = self.construct()
            self._built[decided] = model, found
        return self._built[decided]

    def model_of(self, sample: Sample) -> nn.Module:
        """Return the model that a valid sample asks for: the default one, or one that is constructed anew."""
        default, _ = self._default
        values = {}
        for found in self.walk(sample):
            if isinstance(found, Categorical):
                values[str(found.label)] = found.canonical(sample[found.label])
            elif found is default:
                return default
        with construction(values):
            model = self.construct()
        reference = next(default.parameters(), None)
        return model.train(default.training).to(None if reference is None else reference.device)
