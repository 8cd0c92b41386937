from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hwnas.errors import UnsupportedError
from hwnas.profilers import symbols, tables
from hwnas.profilers.profiler import masked
from hwnas.profilers.symbols import SymbolTable, listed_values, tabulate
from hwnas.profilers.tables import Table, conjunction, disjunction, union
from hwnas.space import Categorical, CategoricalMultiple, Numerical

A = Categorical([2, 5, 7], label="a")
B = Categorical([1, 4], label="b")


def test_tabulate_enumerates_the_labels() -> None:
    expression = A * B + A
    table = tabulate(expression)
    assert table.labels == ("a", "b")
    for (i, a), (j, b) in itertools.product(enumerate(A.values), enumerate(B.values)):
        assert table.values[i, j] == a * b + a


def test_aligned_puts_axes_in_order() -> None:
    table = Table(("a", "b"), np.arange(6).reshape(3, 2))
    assert table.aligned(("b", "c", "a")).shape == (2, 1, 3)
    assert (table.aligned(("b", "c", "a"))[:, 0, :] == table.values.T).all()
    assert union([table, Table(("c", "a"), np.zeros((1, 3)))]) == ("a", "b", "c")


def test_conditions_combine() -> None:
    first = Table(("a",), np.array([True, True, False]))
    second = Table(("b",), np.array([True, False]))
    for joined, expected in (
        (conjunction([first, second]), np.logical_and),
        (disjunction([first, second]), np.logical_or),
    ):
        assert (joined.aligned(("a", "b")) == expected.outer(first.values, second.values)).all()
    assert bool(conjunction([]).values)
    assert not bool(disjunction([]).values)


def test_symbols_follow_python_arithmetic() -> None:
    table = SymbolTable()
    a, b = table.size(tabulate(A), 2), table.size(tabulate(B), 1)
    cases = {
        "sum": (a + b, lambda x, y: x + y),
        "product": (a * b * 3, lambda x, y: x * y * 3),
        "floor": ((a * 5 - b) // 3, lambda x, y: (x * 5 - y) // 3),
        "modulo": ((a + 10) % 4, lambda x, y: (x + 10) % 4),
        "max": (torch.sym_max(a, b), max),
        "min": (torch.sym_min(a, b + 2), lambda x, y: min(x, y + 2)),
        "comparison": (a > b + 2, lambda x, y: x > y + 2),
        "square": (a**2, lambda x, y: x**2),
    }
    for name, (size, python) in cases.items():
        found = table.evaluate(size).aligned(("a", "b"))
        expected = np.array([[python(x, y) for y in B.values] for x in A.values])
        assert (np.broadcast_to(found, expected.shape) == expected).all(), name


def test_equal_sizes_share_a_symbol_and_constants_need_none() -> None:
    table = SymbolTable()
    one, other = table.size(tabulate(A + A), 4), table.size(tabulate(A * 2), 4)
    assert one is other
    assert table.size(tabulate(A * 0 + 3), 3) == 3
    assert isinstance(table.size(tabulate(A * 0 + 3), 3), int)
    assert table.evaluate(12).labels == ()
    assert table.evaluate(12).values == 12


def test_guards_are_written_down() -> None:
    table = SymbolTable()
    a = table.size(tabulate(A), 5)
    assert table.guards() == []
    assert a > 3  # the branch of the hint
    (guard,) = table.guards()
    assert table.evaluate(guard).values.tolist() == [False, True, True]


def test_what_is_not_finite_or_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match=r"'x' is a Numerical"):
        listed_values(Numerical(0, 1, label="x"))
    assert listed_values(CategoricalMultiple([1, 2, 3], 2, label="m")) == [[1, 2], [1, 3], [2, 3]]
    monkeypatch.setattr(tables, "MAX_TABLE", 5)
    monkeypatch.setattr(symbols, "MAX_DENSE", 5)
    with pytest.raises(UnsupportedError, match="a, b together: 6 combinations, more than 5"):
        tabulate(A + B)


def test_the_padding_of_a_kernel_cancels_against_it() -> None:
    table = SymbolTable()
    kernel = Categorical([3, 5, 7], label="kernel")
    size, padding = table.size(tabulate(kernel), 3), table.size(tabulate(kernel // 2), 1)
    assert table.evaluate(size).aligned(("kernel",)).tolist() == [3, 5, 7]
    assert table.evaluate(2 * padding - size + 1).labels == ()
    width = Categorical([16, 32, 48], label="width")
    wide, wider = table.size(tabulate(width), 16), table.size(tabulate(width * 2 + 8), 40)
    assert table.evaluate(wider - 2 * wide).values == 8


def test_a_part_under_conditions_over_too_many_labels_is_refused_before_it_takes_memory() -> None:
    quantity = Table(("a", "b"), np.random.default_rng(0).random((400, 400)))
    conditions = [Table((label,), np.array([True, False])) for label in "cd"]
    assert masked(quantity, conditions[:0]).values.shape == (400, 400)
    with pytest.raises(UnsupportedError, match=r"a cost depends on c, d, a, b together: \d+,000 combinations"):
        masked(quantity, conditions)
    # With few values it is no matter.
    few = masked(Table(("a", "b"), np.add.outer(np.arange(400) % 2, np.arange(400) % 3)), conditions)
    assert few.values.shape == (2, 4)
