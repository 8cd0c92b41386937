from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.errors import SampleError, TrainingError
from hwnas.evaluators import Evaluator, FunctionalEvaluator
from hwnas.nn import ValueChoice


def test_calls_the_function_with_its_arguments():
    model = nn.Linear(3, 2)
    calls = []

    def score(given, scale, *, shift=0):
        calls.append(given)
        return given.in_features * scale + shift

    evaluator = FunctionalEvaluator(score, scale=2, shift=1)
    assert isinstance(evaluator, Evaluator)
    assert evaluator.evaluate(model) == 7.0
    assert calls == [model]
    assert evaluator.arguments == {"scale": 2, "shift": 1}


@pytest.mark.parametrize("metric", [np.float32(0.5), torch.tensor([0.5]), 0.5])
def test_one_number_in_any_form(metric):
    result = FunctionalEvaluator(lambda model: metric).evaluate(nn.Identity())
    assert type(result) is float
    assert result == 0.5


@pytest.mark.parametrize("metric", [None, torch.ones(2), {"acc": 1.0}, "high"])
def test_anything_else_is_an_error(metric):
    with pytest.raises(TrainingError, match="expected one number"):
        FunctionalEvaluator(lambda model: metric).evaluate(nn.Identity())


def test_the_function_must_be_one():
    with pytest.raises(TypeError, match="expected a function"):
        FunctionalEvaluator(3)


def test_arguments_may_be_choices():
    rate = ValueChoice([1e-3, 1e-2, 1e-1], label="rate")
    evaluator = FunctionalEvaluator(lambda model, rate, steps: rate * steps, rate=rate, steps=rate * 0 + 3)
    assert list(evaluator.simplify()) == ["rate"]
    assert evaluator.size() == 3
    assert evaluator.freeze({"rate": 1e-2}).evaluate(nn.Identity()) == pytest.approx(3e-2)
    assert evaluator.simplify()  # freezing has not changed it
    with pytest.raises(TrainingError, match=r"depend on the choices rate; evaluate with freeze"):
        evaluator.evaluate(nn.Identity())
    with pytest.raises(SampleError, match="rate: 5 is not one of the values"):
        evaluator.freeze({"rate": 5})
