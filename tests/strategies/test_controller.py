"""The policy against enumeration, finite differences and counted draws."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hwnas.errors import BudgetError
from hwnas.space import (
    Categorical,
    CategoricalMultiple,
    ExpressionConstraint,
    Mutable,
    MutableDict,
    Numerical,
    Sample,
)
from hwnas.strategies.controller import Controller


def mixed_space() -> MutableDict:
    return MutableDict(
        {
            "op": Categorical(["a", "b", "c"], weights=[0.6, 0.3, 0.1], label="op"),
            "two": CategoricalMultiple([0, 1, 2, 3], 2, weights=[0.4, 0.3, 0.2, 0.1], label="two"),
            "some": CategoricalMultiple(["x", "y", "z"], weights=[0.9, 0.5, 0.2], label="some"),
            "one": CategoricalMultiple([0, 1], 1, label="one"),
        }
    )


def moved(space: Mutable, size: float = 1.0) -> Controller:
    """Return a controller far from where it starts, in double precision."""
    controller = Controller(space, hidden=8, seed=3).double()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return controller


def key(sample: Sample) -> tuple[Any, ...]:
    return tuple(tuple(v) if isinstance(v, list) else v for v in sample.values())


def distribution(controller: Controller, points: list[Sample]) -> torch.Tensor:
    with torch.no_grad():
        return controller(controller.decisions(points))[0].sum(1).exp()


def chi_square(counts: Counter, points: list[Sample], probabilities: torch.Tensor, n: int) -> float:
    """Return how many standard deviations the statistic is above its mean; rare points are joined."""
    expected = (probabilities * n).tolist()
    common = [(counts[key(p)], e) for p, e in zip(points, expected, strict=True) if e >= 5]
    rest = n - sum(c for c, _ in common), n - sum(e for _, e in common)
    cells = common + ([rest] if rest[1] > 1 else [])
    statistic = sum((c - e) ** 2 / e for c, e in cells)
    freedom = len(cells) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def test_it_starts_at_the_priors_exactly():
    space = mixed_space()
    points = list(space.grid())
    leaves = space.simplify()
    expected = [math.prod(leaves[label].probability(value) for label, value in p.items()) for p in points]
    assert sum(expected) == pytest.approx(1)
    assert distribution(Controller(space), points).tolist() == pytest.approx(expected, rel=1e-4)


def test_probabilities_sum_to_one_and_later_labels_depend_on_earlier_ones():
    space = mixed_space()
    controller, points = moved(space), list(space.grid())
    p = distribution(controller, points)
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)

    def of_one(op: str) -> float:
        here = torch.tensor([point["op"] == op for point in points])
        chosen = torch.tensor([point["one"] == [1] for point in points])
        return float(p[here & chosen].sum() / p[here].sum())

    assert abs(of_one("a") - of_one("b")) > 0.01


def test_a_subset_consists_of_independent_items_given_that_it_is_not_empty():
    space = CategoricalMultiple(["x", "y", "z"], label="some")
    controller = moved(space)
    with torch.no_grad():
        h, _ = controller.cell(controller.start[None])
        q = controller.heads[0](h)[0].sigmoid().tolist()
    points = list(space.grid())
    for point, p in zip(points, distribution(controller, points).tolist(), strict=True):
        mass = math.prod(q[i] if item in point["some"] else 1 - q[i] for i, item in enumerate(space.values))
        assert p == pytest.approx(mass / (1 - math.prod(1 - x for x in q)))


@pytest.mark.parametrize("size", [0.0, 0.5])
def test_frequencies_are_the_probabilities(size):
    space, n = mixed_space(), 6000
    controller, points = moved(space, size), list(space.grid())
    drawn = controller.draw(n, torch.Generator().manual_seed(0))
    assert abs(chi_square(Counter(map(key, drawn)), points, distribution(controller, points), n)) < 4
    assert all(space.contains(sample) for sample in drawn)


def test_gradients_of_log_probabilities_and_entropies_are_right():
    parts = mixed_space()
    space = MutableDict({"all": parts, "not": ExpressionConstraint(parts.simplify()["op"] != "b")})
    controller = moved(space, 0.3)
    decisions = controller.decisions([space.random(random_state=i) for i in range(3)])
    names = [name for name, _ in controller.named_parameters()]

    def outputs(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.func.functional_call(controller, dict(zip(names, tensors, strict=True)), decisions)

    assert torch.autograd.gradcheck(outputs, tuple(controller.parameters()), eps=1e-6, atol=1e-7, fast_mode=True)


def test_the_entropy_is_that_of_the_enumerated_distribution():
    space = mixed_space()
    controller, points = moved(space, 0.5), list(space.grid())
    with torch.no_grad():
        log_p, entropies = controller(controller.decisions(points))
    p = log_p.sum(1).exp()
    # Weighted by the probabilities the estimate has no noise.
    assert float((p * entropies.sum(1)).sum()) == pytest.approx(float(torch.special.entr(p).sum()))


def constrained() -> MutableDict:
    a, b, c = (Categorical([0, 1, 2, 3], label=name) for name in "abc")
    return MutableDict({"a": a, "b": b, "c": c, "up": ExpressionConstraint(a < b), "sum": ExpressionConstraint(b != c)})


def test_only_valid_samples_are_drawn_and_all_of_them():
    space = constrained()
    controller = Controller(space, hidden=8)
    drawn = controller.draw(2000, torch.Generator().manual_seed(0))
    assert {key(sample) for sample in drawn} == {key(point) for point in space.grid()}
    assert space.contains(controller.greedy())


def test_constraints_are_part_of_the_probabilities():
    # No value of a leaves none to b and c except a = 3, which is drawn again.
    space = constrained()
    controller, points = moved(space, 0.5), list(space.grid())
    p = distribution(controller, points)
    assert float(p.sum()) < 1
    n = 6000
    drawn = controller.draw(n, torch.Generator().manual_seed(1))
    assert abs(chi_square(Counter(map(key, drawn)), points, p / p.sum(), n)) < 4


def test_the_greedy_sample_takes_the_most_probable_value_of_each_label_in_turn():
    space = MutableDict({name: Categorical([0, 1, 2], label=name) for name in "ab"})
    controller, points = moved(space, 0.5), list(space.grid())
    p = distribution(controller, points).reshape(3, 3)
    first = int(p.sum(1).argmax())
    assert controller.greedy() == {"a": first, "b": int(p[first].argmax())}
    assert len({(sample["a"], sample["b"]) for sample in (controller.greedy() for _ in range(5))}) == 1


def test_a_greedy_dead_end_is_none():
    a = Categorical([3, 0], label="a")
    b = Categorical([1, 2], label="b")
    space = MutableDict({"a": a, "b": b, "up": ExpressionConstraint(a < b)})
    controller = Controller(space)
    assert controller.greedy() is None
    assert {sample["a"] for sample in controller.draw(50, torch.Generator().manual_seed(0))} == {0}


def test_values_of_weight_zero_are_never_drawn():
    space = MutableDict(
        {
            "op": Categorical(["a", "b", "c"], weights=[0.5, 0.0, 0.5], label="op"),
            "some": CategoricalMultiple(["x", "y", "z"], weights=[1.0, 0.5, 0.0], label="some"),
        }
    )
    drawn = moved(space).draw(300, torch.Generator().manual_seed(0))
    assert {sample["op"] for sample in drawn} == {"a", "c"}
    assert {tuple(sample["some"]) for sample in drawn} == {("x",), ("x", "y")}


def test_refused_samples_are_drawn_again():
    space = mixed_space()
    controller = Controller(space)
    accepts: Callable[[Sample], bool] = lambda sample: sample["op"] == "c" and sample["one"] == [0]  # noqa: E731
    drawn = controller.draw(40, torch.Generator().manual_seed(0), accepts)
    assert len(drawn) == 40
    assert all(accepts(sample) for sample in drawn)


def test_a_filter_that_refuses_everything_is_named():
    with pytest.raises(BudgetError, match="of the controller in a row"):
        Controller(Categorical([0, 1], label="a")).draw(1, torch.Generator(), lambda sample: False)


def test_seeds():
    space = mixed_space()
    first, again, other = (Controller(space, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.start, other.start)
    draws = [first.draw(20, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)]
    assert draws[0] == draws[1] != draws[2]


def test_samples_share_no_list():
    controller = Controller(mixed_space())
    for sample in controller.draw(50, torch.Generator().manual_seed(0)):
        sample["two"].append("spoilt")
        sample["some"].clear()
    assert all(mixed_space().contains(sample) for sample in controller.draw(50, torch.Generator().manual_seed(0)))


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(TypeError, match="'width' is a Numerical"):
        Controller(MutableDict({"width": Numerical(0, 1, label="width")}))
    with pytest.raises(ValueError, match="'some' has 8191 values; a controller takes at most 4096"):
        Controller(CategoricalMultiple(range(13), label="some"))
