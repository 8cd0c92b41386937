"""Costs that depend on very many labels together, against frozen members and against enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import hwnas.nn as nn
from hwnas.cost import CostModel
from hwnas.cost.intermediate import base_labels
from hwnas.errors import UnsupportedError
from hwnas.profilers import (
    ActivationMemoryProfiler,
    FlopsProfiler,
    NumParamsProfiler,
    PeakMemoryProfiler,
    TracedSpace,
    parameters,
    symbols,
    tables,
)
from hwnas.profilers.symbols import tabulate
from hwnas.profilers.tables import Table, conjunction, possible, realised
from hwnas.space import Categorical, CategoricalMultiple, condition, length, maximum, minimum, to_int
from hwnas.space.node import Sample


class DenseNet(nn.ModelSpace):
    """Every layer reads all before it; with a floor division and a maximum over all widths at the end."""

    def __init__(self, layers: int, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        total: Any = 3
        chosen = []
        for number in range(1, layers + 1):
            width = nn.ValueChoice(widths, label=f"width{number}")
            self.layers.append(
                nn.Sequential(nn.BatchNorm2d(total), nn.ReLU(), nn.Conv2d(total, width, 3, padding=1, bias=False))
            )
            total = total + width
            chosen.append(width)
        kernel = nn.ValueChoice([1, 3], label="kernel")
        self.transition = nn.Conv2d(total, total // 2, kernel, padding=kernel // 2)
        self.bottleneck = nn.Conv2d(total // 2, maximum(chosen), 1)
        self.head = nn.Linear(maximum(chosen), 2)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        y = self.bottleneck(self.transition(torch.cat(features, 1)).relu())
        scores: Tensor = self.head(y.mean((2, 3)))
        return scores


@pytest.fixture
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use intermediates at once."""
    for module in (tables, symbols, parameters):
        monkeypatch.setattr(module, "MAX_DENSE", 8)


def counted(space: nn.ModelSpace, sample: Sample, x: Tensor) -> tuple[int, int]:
    """Multiply-adds of convolutions and products by PyTorch's counter, and parameters, of a frozen member."""
    member = space.freeze(sample).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        member(x)
    return counter.get_total_flops() // 2, sum(p.numel() for p in member.parameters())


def norms(space: nn.ModelSpace, sample: Sample, x: Tensor) -> int:
    """Multiply-adds of batch normalisations, which that counter leaves out."""
    found = []
    member = space.freeze(sample).eval()
    for module in member.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda m, args, y: found.append(2 * y.numel()))
    with torch.no_grad():
        member(x)
    return sum(found)


@pytest.mark.usefixtures("small_tables")
def test_a_small_space_of_dense_connections_member_by_member() -> None:
    space, x = DenseNet(3, [2, 4, 5]), torch.zeros(1, 3, 4, 4)
    traced = TracedSpace(space, x)
    assert len(traced.traces) == 1
    macs, size = FlopsProfiler(space, traced).cost_model, NumParamsProfiler(space, traced).cost_model
    assert macs.intermediates
    assert size.intermediates
    domain = macs.domain.values
    members = [dict(zip(domain, values, strict=True)) for values in itertools.product(*domain.values())]
    truth = [counted(space, member, x) for member in members]
    flops = np.array([count + norms(space, member, x) for (count, _), member in zip(truth, members, strict=True)])
    np.testing.assert_array_equal(macs.evaluate(members), flops)
    np.testing.assert_array_equal(size.evaluate(members), [n for _, n in truth])
    assert macs.minimum().cost == flops.min()
    assert macs.maximum().cost == flops.max()
    p = {label: torch.full((len(values),), 1 / len(values), dtype=torch.double) for label, values in domain.items()}
    assert macs.expectation(p).item() == pytest.approx(flops.mean(), rel=1e-12)
    limit = float(np.quantile(flops, 0.2))
    assert macs.count_within(high=limit).value == (flops <= limit).sum()
    assert {tuple(s.values()) for s in macs.sample_within(high=limit, n=400)} == {
        tuple(s.values()) for s, cost in zip(members, flops, strict=True) if cost <= limit
    }


def test_memory_is_the_same_with_and_without_intermediates(monkeypatch: pytest.MonkeyPatch) -> None:
    space, x = DenseNet(2, [2, 4, 5]), torch.zeros(1, 3, 4, 4)
    found = []
    for limit in (4096, 6):
        for module in (tables, symbols, parameters):
            monkeypatch.setattr(module, "MAX_DENSE", limit)
        traced = TracedSpace(space, x)
        written, peak = ActivationMemoryProfiler(space, traced), PeakMemoryProfiler(space, traced)
        domain = peak.cost_model.domain.values
        members = [dict(zip(domain, values, strict=True)) for values in itertools.product(*domain.values())]
        found.append((written.cost_model.evaluate(members), peak.evaluate(members)))
        assert (peak.cost_model.evaluate(members) >= found[-1][1]).all()
    assert written.cost_model.intermediates
    for dense, parts in zip(*found, strict=True):
        np.testing.assert_array_equal(dense, parts)


def test_a_large_space_of_dense_connections() -> None:
    space, x = DenseNet(12, [4, 8, 12, 16]), torch.zeros(1, 3, 4, 4)
    traced = TracedSpace(space, x)
    macs, size = FlopsProfiler(space, traced).cost_model, NumParamsProfiler(space, traced).cost_model
    for seed in range(2):
        member = space.random(random_state=seed)
        count, n = counted(space, member, x)
        assert macs.evaluate(member) == count + norms(space, member, x)
        assert size.evaluate(member) == n
    least, most = macs.minimum(), macs.maximum()
    assert set(least.sample.values()) == {4, 1}
    assert set(most.sample.values()) == {16, 3}
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(n, size=20_000) for n in macs.domain.sizes], axis=1)
    costs = macs.evaluate(rows)
    p = {label: torch.full((len(v),), 1 / len(v), requires_grad=True) for label, v in macs.domain.values.items()}
    expected = macs.expectation(p)
    assert expected.item() == pytest.approx(costs.mean(), abs=5 * costs.std() / 20_000**0.5)
    expected.backward()
    assert all((v.grad.diff() > 0).all() for v in p.values())
    # One member in some ten thousand.
    limit = least.cost + (float(np.median(costs)) - least.cost) * 0.25
    drawn = macs.evaluate(macs.sample_within(high=limit, n=20, seed=0))
    assert (drawn <= limit).all()
    assert len(set(drawn.tolist())) > 1


A = Categorical([1, 2, 4], label="a")
B = Categorical([3, 5], label="b")
C = Categorical([0, 7], label="c")
D = CategoricalMultiple([0, 1, 2], label="d")
EXPRESSIONS: dict[str, Any] = {
    "sum": A + B + C + A,
    "difference": A - B - C,
    "products": A * B * C + B * 2,
    "floor": (A + B + C) // 3,
    "extremes": maximum(A, B, minimum(C, A * 2)),
    "guarded": condition(C > 0, A // condition(C > 0, C, 1) + B, -1),
    "only where it can be": condition(C > 0, B // C, A),
    "subset": length(D) + A * to_int(D[0] == 0) - B,
    "tuples": condition(A > B, 1, 2) * 10 + C,
    "text": condition(A + B > C, "same", "valid"),
}


@pytest.mark.usefixtures("small_tables")
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_operator_by_operator(name: str) -> None:
    expression = EXPRESSIONS[name]
    table = tabulate(expression)
    leaves = expression.leaves()
    assert set(base_labels(table.labels)) <= {leaf.label for leaf in leaves}
    domain = {leaf.label: list(leaf.grid_values()) for leaf in leaves}
    for values in itertools.product(*domain.values()):
        sample = dict(zip(domain, values, strict=True))
        assert tables.at(table, sample, domain) == expression.evaluate(sample)


@pytest.mark.usefixtures("small_tables")
def test_what_cannot_be_computed_is_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        tabulate(A + B // C)


def test_a_sum_over_thirty_labels() -> None:
    choices = [Categorical([8, 16, 24, 32], label=f"w{i}") for i in range(30)]
    table = tabulate(sum(choices[1:], choices[0]))
    assert table.values.tolist() == list(range(240, 961, 8))
    # Prefixes share their partial sums.
    before = tabulate(sum(choices[1:29], choices[0]))
    assert before.labels[0] in table.labels[0].labels  # type: ignore[attr-defined]


def test_products_of_many_different_numbers_are_refused() -> None:
    primes = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53]
    choices = [Categorical([p, 10 * p + 1, 100 * p + 7], label=f"w{i:02d}") for i, p in enumerate(primes)]
    expression: Any = choices[0]
    for choice in choices[1:]:
        expression = expression * choice
    with pytest.raises(UnsupportedError, match=r"w00, w01, .* together: .* too many different values"):
        tabulate(expression)


def test_conditions_over_very_many_labels() -> None:
    rng = np.random.default_rng(0)
    parts = [Table((f"l{i}", f"l{i + 1}"), rng.random((6, 6)) < 0.9) for i in range(12)]
    whole = conjunction(parts)
    domain = {f"l{i}": list(range(6)) for i in range(13)}
    for _ in range(200):
        sample = {label: int(rng.integers(6)) for label in domain}
        assert bool(tables.at(whole, sample, domain)) == all(bool(tables.at(part, sample, domain)) for part in parts)


def enumerated(function: Callable[[int, int, int], int]) -> Table:
    values = np.array([[[function(a, b, c) for c in range(3)] for b in range(3)] for a in range(3)])
    return Table(("a", "b", "c"), values).narrowed()


def test_which_combinations_there_are_and_a_member_of_each() -> None:
    total, most = enumerated(lambda a, b, c: a + b + c), enumerated(lambda a, b, c: max(a, b))
    labels = (*total.labels, "a", *most.labels, "other")
    assert possible(labels).shape == (7, 3, 3, 1)
    there = possible(labels[:3])
    truth = np.zeros((7, 3, 3), dtype=bool)
    for a, b, c in itertools.product(range(3), repeat=3):
        truth[a + b + c, a, max(a, b)] = True
    np.testing.assert_array_equal(there, truth)
    for s, a, m in np.argwhere(truth):
        found = realised(labels, (int(s), int(a), int(m), 5))
        assert found == {"a": a, "b": found["b"], "c": found["c"], "other": 5}
        assert (found["a"] + found["b"] + found["c"], max(found["a"], found["b"])) == (s, m)
    with pytest.raises(ValueError, match="there is no member"):
        realised(labels, (6, 0, 2, 0))


def test_equal_quantities_share_an_intermediate() -> None:
    one, other = enumerated(lambda a, b, c: a + b + c), enumerated(lambda a, b, c: 8 * (a + b + c) + 3)
    assert one.labels == other.labels
    assert one.labels != enumerated(lambda a, b, c: a + b + 2 * c).labels
    model = CostModel(dict.fromkeys("abc", range(3)), [])
    assert model.intermediates == ()
