"""Schedules and their short forms."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hwnas.strategies.temperature import LinearTemperatureScheduler, as_temperature_scheduler


def test_linear_from_the_first_epoch_to_the_last() -> None:
    schedule = LinearTemperatureScheduler(1.0, 0.4)
    assert [schedule.at(epoch, 4) for epoch in range(4)] == pytest.approx([1.0, 0.8, 0.6, 0.4])
    assert schedule.at(0, 1) == 1.0


def test_a_constant_needs_no_number_of_epochs() -> None:
    schedule = LinearTemperatureScheduler(0.5, 0.5)
    assert [schedule.at(7, epochs) for epochs in (None, -1, 10)] == [0.5] * 3
    for epochs in (None, -1):
        with pytest.raises(ValueError, match="max_epochs"):
            LinearTemperatureScheduler(1.0, 0.5).at(0, epochs)


@pytest.mark.parametrize(
    "form", [(2.0, 0.5), {"init": 2.0, "min": 0.5}, {"min": 0.5, "init": 2}, LinearTemperatureScheduler(2.0, 0.5)]
)
def test_forms(form: Any) -> None:
    assert as_temperature_scheduler(form) == LinearTemperatureScheduler(2.0, 0.5)


@pytest.mark.parametrize("number", [3, 0.7])
def test_a_number_is_a_constant(number: float) -> None:
    assert as_temperature_scheduler(number) == LinearTemperatureScheduler(number, number)


@pytest.mark.parametrize("form", ["1", None, True, (1.0,), (1.0, 0.5, 0.1), {"init": 1.0}, {"init": 1, "max": 2}])
def test_other_forms_are_refused(form: Any) -> None:
    with pytest.raises(TypeError, match="temperature is"):
        as_temperature_scheduler(form)


@pytest.mark.parametrize(
    "numbers", [(0.5, 1.0), (1.0, 0.0), (1.0, -1.0), (math.inf, 1.0), (math.nan, 1.0), (1, math.nan)]
)
def test_bad_numbers(numbers: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 < min <= init"):
        LinearTemperatureScheduler(*numbers)
