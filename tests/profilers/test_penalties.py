from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hwnas.cost import CostModel, Factor
from hwnas.profilers.penalties import (
    ExpectationProfilerPenalty,
    SampleProfilerPenalty,
    as_expectation_penalty,
    as_sample_penalty,
)
from hwnas.profilers.profiler import Profiler
from hwnas.space import Categorical
from hwnas.supernet import Softmax

A, B = Categorical([0, 1, 2], label="a"), Categorical(["x", "y"], label="b")


@pytest.fixture
def profiler() -> Profiler:
    factors = [
        Factor(("a",), np.array([1.0, 2.0, 4.0])),
        Factor(("a", "b"), np.array([[5.0, 1.0], [3.0, 7.0], [2.0, 9.0]])),
    ]
    return Profiler(CostModel({"a": A.values, "b": B.values}, factors, unit="ms"))


@pytest.fixture
def relaxation() -> Softmax:
    made = Softmax([A, B]).double()
    with torch.no_grad():
        made.alpha("a").copy_(torch.tensor([0.3, -0.5, 0.9]))
        made.alpha("b").copy_(torch.tensor([-0.2, 0.4]))
    return made


def probabilities(relaxation: Softmax) -> dict[str, Tensor]:
    return {label: relaxation.probabilities(label) for label in relaxation.dimensions}


EXCESS = {
    "linear": lambda r: r,
    "positive": lambda r: max(r, 0.0),
    "negative": lambda r: min(r, 0.0),
    "absolute": abs,
}


@pytest.mark.parametrize("nonlinear", EXCESS)
@pytest.mark.parametrize("aggregate", ["add", "mul"])
@pytest.mark.parametrize("baseline", [3.0, 30.0])  # below and above every cost of the samples
def test_formulas(profiler: Profiler, nonlinear: Any, aggregate: Any, baseline: float) -> None:
    penalty = SampleProfilerPenalty(profiler, baseline, 0.7, nonlinear=nonlinear, aggregate=aggregate)
    for sample in ({"a": 0, "b": "x"}, {"a": 2, "b": "y"}):
        joint, cost = penalty(2.5, sample)
        assert cost == profiler.profile(sample)
        excess = EXCESS[nonlinear](cost / baseline - 1)
        expected = 2.5 + 0.7 * excess if aggregate == "add" else 2.5 * (1 + excess) ** 0.7
        assert joint == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("nonlinear", EXCESS)
@pytest.mark.parametrize("aggregate", ["add", "mul"])
def test_penalty_trains_every_alpha(profiler: Profiler, relaxation: Softmax, nonlinear: Any, aggregate: Any) -> None:
    """The gradient reaches the architecture, as finite differences say."""
    cost = profiler.expectation(probabilities(relaxation)).item()
    baseline = cost * 1.5 if nonlinear == "negative" else cost / 1.5
    penalty = ExpectationProfilerPenalty(profiler, baseline, 2.0, nonlinear=nonlinear, aggregate=aggregate)
    loss = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    joint, expected = penalty(loss, probabilities(relaxation))
    assert expected.item() == pytest.approx(cost)
    gradients = torch.autograd.grad(joint, [loss, *relaxation.parameters()])
    assert gradients[0] != 0
    for alpha, gradient in zip(relaxation.parameters(), gradients[1:], strict=True):
        assert (gradient.abs() > 1e-3).all()
        for i in range(len(alpha)):
            both = []
            with torch.no_grad():
                for step in (1e-6, -2e-6):
                    alpha[i] += step
                    both.append(penalty(loss, probabilities(relaxation))[0].item())
                alpha[i] += 1e-6
            assert float(gradient[i]) == pytest.approx((both[0] - both[1]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("aggregate", ["add", "mul"])
def test_the_unit_of_the_cost_does_not_matter(profiler: Profiler, relaxation: Softmax, aggregate: Any) -> None:
    loss = torch.tensor(1.0, dtype=torch.float64)
    results = []
    for factor, unit in ((1.0, "ms"), (1000.0, "us")):
        scaled = Profiler(profiler.cost_model.scaled(factor, unit))
        joint, _ = ExpectationProfilerPenalty(scaled, 4.0 * factor, 0.3, aggregate=aggregate)(
            loss, probabilities(relaxation)
        )
        results.append((joint.item(), *[g.tolist() for g in torch.autograd.grad(joint, list(relaxation.parameters()))]))
    for ms, us in zip(*results, strict=True):
        assert ms == pytest.approx(us, rel=1e-12)


def test_the_expectation_of_one_member_is_its_cost(profiler: Profiler) -> None:
    penalty = ExpectationProfilerPenalty(profiler, 4.0)
    one = {"a": torch.tensor([0.0, 1.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    joint, cost = penalty(torch.tensor(1.0), one)
    sampled, same = SampleProfilerPenalty(profiler, 4.0)(1.0, {"a": 1, "b": "y"})
    assert float(cost) == same == 9.0
    assert float(joint) == pytest.approx(sampled)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": 0.0}, "baseline is 0.0; expected a positive number in ms"),
        ({"baseline": math.inf}, "baseline is inf"),
        ({"baseline": 1.0, "nonlinear": "square"}, "nonlinear is 'square'"),
        ({"baseline": 1.0, "aggregate": "sub"}, "aggregate is 'sub'"),
    ],
)
def test_errors(profiler: Profiler, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpectationProfilerPenalty(profiler, **options)


def test_the_dictionary_form(profiler: Profiler) -> None:
    made = as_expectation_penalty(
        {"profiler": profiler, "baseline": 2.0, "scale": 0.5, "nonlinear": "positive"}, "DARTS"
    )
    assert made is not None
    assert (made.baseline, made.scale, made.nonlinear) == (2.0, 0.5, "positive")
    assert as_expectation_penalty(made, "DARTS") is made
    assert as_expectation_penalty(None, "DARTS") is None


def test_several_penalties_at_once(profiler: Profiler, relaxation: Softmax) -> None:
    other = Profiler(CostModel({"b": B.values}, [Factor(("b",), np.array([3.0, 8.0]))], unit="MACs"))
    sample, loss = {"a": 2, "b": "y"}, 2.5
    forms: list[Any] = [
        {"profiler": profiler, "baseline": 5.0, "scale": 0.3},
        {"profiler": other, "baseline": 4.0, "scale": 0.7, "aggregate": "mul"},
    ]
    joint = as_sample_penalty([forms[0], SampleProfilerPenalty(**forms[1])], "DARTS")
    assert joint is not None
    # Sums and products of a loss do not commute: the order is that of the list.
    assert joint(loss, sample) == (pytest.approx((loss + 0.3 * (13 / 5 - 1)) * (8 / 4) ** 0.7), 13.0)
    assert [part.baseline for part in joint.parts] == [5.0, 4.0]

    expected = as_expectation_penalty(forms, "DARTS")
    assert expected is not None
    given = {label: p.detach().requires_grad_() for label, p in probabilities(relaxation).items()}
    value, cost = expected(torch.tensor(loss, dtype=torch.float64), given)
    costs = [each.expectation(given) for each in (profiler, other)]
    exact = (loss + 0.3 * (costs[0] / 5 - 1)) * (costs[1] / 4) ** 0.7
    torch.testing.assert_close((value, cost), (exact, costs[0]))
    gradients = [torch.autograd.grad(each, list(given.values()), retain_graph=True) for each in (value, exact)]
    torch.testing.assert_close(*gradients)


def test_forms_of_penalties(profiler: Profiler) -> None:
    single = SampleProfilerPenalty(profiler, 5.0)
    assert as_sample_penalty(single, "DARTS") is single is as_sample_penalty([single], "DARTS")
    assert single.parts == (single,)
    assert as_sample_penalty([], "DARTS") is None is as_expectation_penalty([], "DARTS")
    assert as_sample_penalty(None, "DARTS") is None
    with pytest.raises(TypeError, match="SampleProfilerPenalty; architectures are distributions here"):
        as_expectation_penalty([{"profiler": profiler, "baseline": 5.0}, single], "DARTS")
    with pytest.raises(TypeError, match="needs a SampleProfilerPenalty"):
        as_sample_penalty(3.0, "DARTS")  # type: ignore[arg-type]
