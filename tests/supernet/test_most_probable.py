"""Against brute force over all combinations."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.space import Categorical, CategoricalMultiple
from hwnas.supernet import Softmax
from hwnas.supernet.most_probable import most_probable, ranked_options


def relaxation(mutable, logits: list[float]) -> Softmax:
    made = Softmax([mutable])
    with torch.no_grad():
        made.alpha(mutable.label).copy_(torch.tensor(logits))
    return made.double()


LOGITS = [0.3, -1.0, 0.8, 0.1]


def test_one_of_several():
    made = relaxation(Categorical("abcd", label="x"), LOGITS)
    assert [value for value, _ in ranked_options(made, "x")] == ["c", "a", "d", "b"]
    assert [score for _, score in ranked_options(made, "x")] == pytest.approx(
        sorted(torch.log_softmax(torch.tensor(LOGITS), 0).tolist(), reverse=True)
    )


@pytest.mark.parametrize("n_chosen", [None, 1, 2, 4])
def test_subsets(n_chosen):
    mutable = CategoricalMultiple("abcd", n_chosen, label="x")
    made = relaxation(mutable, LOGITS)
    totals = {str(s): sum(LOGITS["abcd".index(item)] for item in s) for s in mutable.grid_values()}
    assert [str(s) for s, _ in ranked_options(made, "x")] == sorted(totals, key=lambda s: -totals[s])
    assert ranked_options(made, "x")[0][0] == made.export("x")


def test_subsets_too_many_to_list():
    made = relaxation(CategoricalMultiple(range(20), 10, label="x"), [0.1 * i for i in range(20)])
    assert ranked_options(made, "x") == [(list(range(10, 20)), 0.0)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.floats(-5, 0), min_size=1, max_size=4), min_size=1, max_size=4))
def test_order_of_combinations(scores):
    options = {str(i): sorted(enumerate(s), key=lambda option: -option[1]) for i, s in enumerate(scores)}
    found = list(most_probable(options))
    expected = set(itertools.product(*(range(len(s)) for s in scores)))
    assert {tuple(sample.values()) for sample in found} == expected
    assert len(found) == len(expected)
    totals = [sum(s[sample[str(i)]] for i, s in enumerate(scores)) for sample in found]
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(totals))
