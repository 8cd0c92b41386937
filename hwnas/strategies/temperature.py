"""How the temperature of a search falls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LinearTemperatureScheduler:
    """A temperature that falls linearly from the first epoch to the last.

    Parameters
    ----------
    init : float
        In the first epoch.
    min : float
        In the last epoch; above 0 and at most `init`.

    Raises
    ------
    ValueError
        When an argument is out of its range.

    Examples
    --------
    >>> schedule = LinearTemperatureScheduler(1.0, 0.2)
    >>> [round(schedule.at(epoch, epochs=5), 2) for epoch in range(5)]
    [1.0, 0.8, 0.6, 0.4, 0.2]
    """

    init: float
    min: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.init) and 0 < self.min <= self.init):
            raise ValueError(
                f"temperature: init is {self.init} and min {self.min}; expected finite numbers with 0 < min <= init"
            )

    def at(self, epoch: int, epochs: int | None) -> float:
        """Return the temperature of an epoch.

        Parameters
        ----------
        epoch : int
            Counted from 0.
        epochs : int, optional
            How many there are; None or -1 where that is not known.

        Raises
        ------
        ValueError
            When a temperature has to fall over an unknown number of epochs.
        """
        if self.init == self.min:
            return self.init
        if epochs is None or epochs < 0:
            raise ValueError(
                f"temperature: it falls from {self.init} to {self.min} over the epochs, but the trainer has no "
                "max_epochs. Give the evaluator max_epochs, or use a constant temperature"
            )
        share = epoch / (epochs - 1) if epochs > 1 else 0.0
        return self.init + (self.min - self.init) * share


Temperature = float | tuple[float, float] | Mapping[str, float] | LinearTemperatureScheduler


def as_temperature_scheduler(temperature: Temperature) -> LinearTemperatureScheduler:
    """Make a schedule of its short forms.

    Parameters
    ----------
    temperature : float, (float, float), mapping or LinearTemperatureScheduler
        A constant; the first and the last temperature; or these under the keys ``init`` and ``min``.

    Raises
    ------
    TypeError
        When it is something else.
    ValueError
        When a number is out of its range.
    """
    given: Any = temperature
    if isinstance(given, LinearTemperatureScheduler):
        return given
    if isinstance(given, Mapping) and set(given) == {"init", "min"}:
        return LinearTemperatureScheduler(**given)
    if isinstance(given, int | float) and not isinstance(given, bool):
        return LinearTemperatureScheduler(given, given)
    if isinstance(given, tuple) and len(given) == 2:
        return LinearTemperatureScheduler(*given)
    raise TypeError(
        f"temperature is {temperature!r}; expected a number, (first, last), {{'init': first, 'min': last}}, or a "
        "LinearTemperatureScheduler"
    )
