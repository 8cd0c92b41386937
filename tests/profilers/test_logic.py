"""Combinations of the conditions of a trace: the same as without memory, each made once."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from hwnas.profilers import logic as module
from hwnas.profilers.logic import ALWAYS, NEVER, Logic
from hwnas.profilers.tables import Table, conjunction, disjunction

A = Table(("a",), np.array([True, False, False]))
B = Table(("b",), np.array([True, True, False]))
SIZE = Table(("b",), np.array([2, 5, 7]))


def same(found: Table, expected: Table) -> bool:
    return found.labels == expected.labels and np.array_equal(found.values, expected.values)


def test_results_are_those_of_the_tables() -> None:
    logic = Logic()
    assert same(logic.all([A, B]), conjunction([A, B]))
    assert same(logic.any([A, B]), disjunction([A, B]))
    assert (logic.masked(SIZE, [A, B]).aligned(("a", "b")) == (A.values[:, None] & B.values) * SIZE.values).all()
    assert (logic.product(SIZE, SIZE).values == SIZE.values**2).all()


def test_what_holds_always_or_never() -> None:
    logic = Logic()
    assert logic.all([ALWAYS, A]) is logic.any([NEVER, A]) is A
    assert not logic.all([NEVER, A]).values.any()
    assert logic.any([ALWAYS, A]).values.all()
    assert logic.all([]).values.item() is True
    assert logic.any([]).values.item() is False


def test_each_combination_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(conditions: list[Table]) -> Table:
        calls.append(len(conditions))
        return conjunction(conditions)

    monkeypatch.setattr(module, "conjunction", counted)
    logic = Logic()
    assert logic.all([A, B]) is logic.all([B, A]) is logic.all([A, B, A, ALWAYS])
    assert calls == [2]


def test_what_was_combined_is_kept_so_that_nothing_else_gets_its_identity() -> None:
    logic = Logic()
    condition = Table(("c",), np.array([True, False]))
    kept = weakref.ref(condition)
    logic.all([A, condition])
    del condition
    gc.collect()
    assert kept() is not None


def test_operations_on_the_same_tables_are_told_apart() -> None:
    logic = Logic()
    both, either, product = logic.all([A, B]), logic.any([A, B]), logic.product(A, B)
    assert both.values.sum() == product.values.sum() == 2
    assert either.values.sum() == 7


def test_equal_results_are_one_object() -> None:
    logic = Logic()
    copy = Table(A.labels, A.values.copy())
    assert logic.same(A) is logic.same(copy)
    numbers = Table(A.labels, A.values.astype(np.int64))
    turned = Table(A.labels, ~A.values)
    renamed = Table(("b",), A.values)
    assert len({id(logic.same(each)) for each in (A, numbers, turned, renamed)}) == 4
    assert logic.all([A, Table(B.labels, B.values.copy())]) is logic.all([A, B])


def test_a_table_of_objects_is_left_as_it_is() -> None:
    one, other = (Table(("a",), np.array(["same", "valid"], dtype=object)) for _ in range(2))
    logic = Logic()
    assert logic.same(one) is one
    assert logic.same(other) is other
