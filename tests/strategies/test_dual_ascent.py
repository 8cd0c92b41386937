"""Multipliers against the price of a limit where it is known in closed form, and gradients by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hwnas.cost import CostModel, Factor
from hwnas.profilers.profiler import Profiler
from hwnas.space import Categorical
from hwnas.strategies import Budget, DualAscent
from hwnas.strategies.dual_ascent import DAMPING, SHARPNESS

LABELS = [f"label_{i}" for i in range(4)]
DIMENSIONS = {label: Categorical(["cheap", "dear"], label=label) for label in LABELS}
PRICES = torch.tensor([3.0, 2.0, 4.0, 1.0], dtype=torch.float64)


def profiler(scale: float = 1.0, unit: str = "ms") -> Profiler:
    factors = [Factor((label,), np.array([0.0, price]) * scale) for label, price in zip(LABELS, PRICES, strict=True)]
    return Profiler(CostModel({label: ["cheap", "dear"] for label in LABELS}, factors, unit=unit))


def search(
    dual: DualAscent, gain: Tensor, *, steps: int = 600, learning_rate: float = 0.1
) -> tuple[list[list[float]], list[Tensor]]:
    """Gradient descent on a loss that falls by `gain` with the probability of each dear option; gives all steps."""
    alphas = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([alphas], lr=learning_rate, betas=(0.5, 0.999))
    multipliers, dear = [], []
    for _ in range(steps):
        probabilities = alphas.softmax(1)
        loss = -(gain * probabilities[:, 1]).sum() + dual(dict(zip(LABELS, probabilities, strict=True)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dual.ascend()
        multipliers.append(list(dual.multipliers))
        dear.append(probabilities[:, 1].detach())
    return multipliers, dear


@pytest.mark.parametrize(("limit", "worth"), [(2.0, 0.05), (5.0, 1.0), (8.0, 2.0)])
def test_the_multiplier_becomes_the_price_of_the_limit(limit, worth):
    """Every unit of cost is worth the same to the loss, so the limit is worth that times its size."""
    dual = DualAscent(Budget({"latency_ms": limit}, profiler()), DIMENSIONS, learning_rate=0.5, sharpness=1)
    multipliers, dear = search(dual, worth * PRICES)
    expected = torch.stack(dear[-100:]) @ PRICES
    assert expected.tolist() == pytest.approx([limit] * 100, rel=0.01)
    assert [step[0] for step in multipliers[-100:]] == pytest.approx([worth * limit] * 100, rel=0.02)


def test_what_is_preferred_comes_to_the_limit():
    """Where all labels are alike an average at the limit leaves all of them undecided, and prefers what is dear."""
    preferred = {}
    for sharpness in (1.0, SHARPNESS):
        dual = DualAscent(Budget({"latency_ms": 7.0}, profiler()), DIMENSIONS, learning_rate=0.5, sharpness=sharpness)
        _, dear = search(dual, PRICES, steps=1000, learning_rate=0.03)
        preferred[sharpness] = float((dear[-1] > 0.5).double() @ PRICES)
        assert dual.record()["budget/latency_ms/charged"] == pytest.approx(7.0, rel=0.02)
        if sharpness == 1:
            assert dear[-1].tolist() == pytest.approx([0.7] * 4, rel=0.01)
    assert preferred == {1.0: 10.0, SHARPNESS: 7.0}


def test_certain_decisions_are_charged_as_they_are():
    dual = DualAscent(Budget({"latency_ms": 4.0}, profiler()), DIMENSIONS, learning_rate=0.5)
    certain = {label: torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True) for label in LABELS}
    added = dual(certain)
    assert float(added.detach()) == pytest.approx(DAMPING * 1.5 * 1.5)
    added.backward()
    assert all(torch.isfinite(p.grad).all() for p in certain.values())
    with pytest.raises(ValueError, match=r"sharpness is 0.5; expected at least 1"):
        DualAscent(Budget({"latency_ms": 4.0}, profiler()), DIMENSIONS, learning_rate=0.5, sharpness=0.5)


def test_the_budget_goes_where_a_unit_of_cost_is_worth_most():
    gain = PRICES * torch.tensor([0.4, 0.3, 0.2, 0.1])
    dual = DualAscent(Budget({"latency_ms": 5.0}, profiler()), DIMENSIONS, learning_rate=0.5, sharpness=1)
    multipliers, dear = search(dual, gain, steps=800)
    # 3 + 2 of 10 can be afforded; what then comes at the margin is worth 0.2 to 0.3 for each millisecond.
    assert dear[-1][:2].min() > 0.9
    assert dear[-1][2:].max() < 0.1
    assert 0.2 * 5 < multipliers[-1][0] < 0.3 * 5


def test_a_limit_that_does_not_bind_costs_nothing():
    dual = DualAscent(Budget({"latency_ms": 10.5}, profiler()), DIMENSIONS, learning_rate=0.5, sharpness=1)
    multipliers, dear = search(dual, PRICES, steps=100)
    assert dear[-1].min() > 0.95
    assert {step[0] for step in multipliers} == {0.0}
    assert float(dual({label: torch.tensor([1.0, 0.0]) for label in LABELS})) == 0.0


def test_of_two_limits_the_tighter_one_has_the_price():
    other = profiler(2.0, "MACs")
    budget = Budget({"latency_ms": 6.0, "macs": 8.0}, [profiler(), other])
    dual = DualAscent(budget, DIMENSIONS, learning_rate=0.5, sharpness=1)
    assert dual.record() == {}
    multipliers, dear = search(dual, PRICES)
    assert float(dear[-1] @ PRICES) == pytest.approx(4.0, rel=0.01)
    assert multipliers[-1] == pytest.approx([0.0, 4.0], rel=0.02)
    record = dual.record()
    assert set(record) == {f"budget/{name}/{what}" for name in budget.limits for what in ("charged", "multiplier")}
    assert record["budget/macs/charged"] == pytest.approx(8.0, rel=0.01)
    assert record["budget/latency_ms/charged"] == pytest.approx(4.0, rel=0.01)
    assert record["budget/macs/multiplier"] == multipliers[-1][1]


def test_the_unit_makes_no_difference():
    found = []
    for scale, unit in ((1.0, "ms"), (1000.0, "us"), (1e-3, "s")):
        budget = Budget({f"latency_{unit}": 5.0 * scale}, profiler(scale, unit))
        found.append(search(DualAscent(budget, DIMENSIONS, learning_rate=0.5, sharpness=1), PRICES, steps=100))
    for multipliers, dear in found[1:]:
        np.testing.assert_allclose(multipliers, found[0][0], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(torch.stack(dear), torch.stack(found[0][1]), rtol=1e-6, atol=1e-9)


def test_what_is_added_and_its_gradient():
    dual = DualAscent(Budget({"latency_ms": 4.0}, profiler()), DIMENSIONS, learning_rate=0.5, sharpness=1)
    dual.multipliers = [0.7]
    dear = torch.tensor([0.9, 0.8, 0.7, 0.6], dtype=torch.float64)
    excess = float(dear @ PRICES) / 4 - 1

    def probabilities(values: Tensor) -> dict[str, Tensor]:
        return {label: torch.stack([1 - p, p]) for label, p in zip(LABELS, values, strict=True)}

    leaf = dear.clone().requires_grad_()
    added = dual(probabilities(leaf))
    added.backward()
    price = 0.7 + DAMPING * 1.7 * excess
    assert float(added.detach()) == pytest.approx(price * excess)
    assert leaf.grad.tolist() == pytest.approx((price * PRICES / 4).tolist())
    dual.ascend()
    now = 0.7 + 0.5 * 1.7 * excess
    assert dual.multipliers == pytest.approx([now])
    # Below the limit the price falls, and never under 0.
    dual(probabilities(dear * 0))
    dual.ascend()
    assert dual.multipliers == pytest.approx([now - 0.5 * (1 + now)])
    for _ in range(3):
        dual.ascend()
    assert dual.multipliers == [0.0]


def test_state():
    budget = Budget({"latency_ms": 4.0}, profiler())
    dual, other = (DualAscent(budget, DIMENSIONS, learning_rate=1.0) for _ in range(2))
    search(dual, PRICES, steps=5)
    state = dual.state_dict()
    other.load_state_dict(state)
    assert state == {"latency_ms": dual.multipliers[0]} == other.state_dict()
    assert dual.multipliers[0] > 0


def test_costs_of_another_space_are_refused():
    with pytest.raises(ValueError, match="budget latency_ms: its cost depends on the label 'label_3'"):
        DualAscent(Budget({"latency_ms": 4.0}, profiler()), {k: DIMENSIONS[k] for k in LABELS[:3]}, learning_rate=1.0)
