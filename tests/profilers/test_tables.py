"""Tables over labels and intermediates, against their entries one by one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from hwnas.cost import Intermediate
from hwnas.errors import UnsupportedError
from hwnas.profilers import tables
from hwnas.profilers.tables import (
    Table,
    at,
    combined,
    conjunction,
    disjunction,
    folded,
    holds_always,
    place_of,
    possible,
    realised,
)

DOMAIN = {"a": [3, 5], "b": [1, 2, 4], "c": [0, 7], "d": [0, 1, 2], "e": [4, 6]}


def members(labels: Sequence[str] = tuple(DOMAIN)) -> Iterator[dict[str, Any]]:
    """Give all combinations of values of labels."""
    for values in itertools.product(*(DOMAIN[label] for label in labels)):
        yield dict(zip(labels, values, strict=True))


def random_table(generator: np.random.Generator, labels: Sequence[str], high: int = 4) -> Table:
    return Table(tuple(labels), generator.integers(high, size=[len(DOMAIN[label]) for label in labels]))


def entries(table: Table) -> list[Any]:
    """Give a quantity for each member."""
    return [at(table, member, DOMAIN) for member in members()]


# --- one table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_what_makes_no_difference_goes_and_no_more(seed: int) -> None:
    generator = np.random.default_rng(seed)
    matters = [label for label in DOMAIN if generator.random() < 0.5]
    inner = random_table(generator, matters, high=1000)  # all different, so all of them matter
    shape = [len(DOMAIN[label]) if label in matters else 1 for label in DOMAIN]
    whole = Table(tuple(DOMAIN), np.broadcast_to(inner.values.reshape(shape), [len(DOMAIN[each]) for each in DOMAIN]))
    assert whole.reduced().labels == tuple(matters)
    assert entries(whole.reduced()) == entries(whole) == entries(inner)


def test_aligned_has_an_axis_for_each_label_in_the_order_asked_for() -> None:
    table = random_table(np.random.default_rng(0), "ba")
    aligned = table.aligned(("a", "c", "b"))
    assert aligned.shape == (2, 1, 3)
    assert (aligned[:, 0, :] == table.values.T).all()


@pytest.mark.parametrize("seed", range(5))
def test_narrowed_is_the_same_quantity_over_one_label(seed: int) -> None:
    table = random_table(np.random.default_rng(seed), "abd")
    narrow = table.narrowed()
    (label,) = narrow.labels
    assert isinstance(label, Intermediate)
    assert label.labels == table.labels
    assert sorted(set(table.values.flat)) == narrow.values.tolist()
    assert entries(narrow) == entries(table)


def test_narrowed_shares_what_distinguishes_the_same_cases() -> None:
    one = Table(("a", "b"), np.array([[0, 1, 2], [1, 2, 0]]))
    scaled, other = Table(one.labels, 10 * one.values + 3), Table(one.labels, one.values[:, ::-1])
    turned = Table(("b", "a"), one.values.reshape(3, 2))
    assert scaled.narrowed().labels == one.narrowed().labels
    names = {str(each.narrowed().labels[0]) for each in (one, other, turned)}
    assert len(names) == 3  # of one name they would have to be computed in one way
    of_four = [
        Table(("a", *middle, "d"), np.arange(16).reshape(2, 2, 2, 2)).narrowed() for middle in (("b", "c"), ("bb", "c"))
    ]
    assert of_four[0].labels != of_four[1].labels  # though both are named a, ..., d


def test_narrowed_leaves_few_labels_and_tells_constants() -> None:
    single = Table(("d",), np.array([2, 2, 9]))
    assert single.narrowed() is single
    assert entries(single.narrowed(labels=1)) == entries(single)
    assert single.narrowed(labels=1).values.tolist() == [2, 9]
    constant = Table(("a", "c"), np.full((2, 2), 6)).narrowed()
    assert (constant.labels, constant.values.item()) == ((), 6)


def test_narrowed_objects_that_are_no_numbers_in_order_of_appearance() -> None:
    values = np.empty((2, 2), dtype=object)
    values[:] = [["same", "valid"], ["valid", (1, 2)]]
    narrow = Table(("a", "c"), values).narrowed()
    assert narrow.values.tolist() == ["same", "valid", (1, 2)]
    assert entries(narrow) == entries(Table(("a", "c"), values))


def test_an_intermediate_names_the_labels_it_depends_on_as_people_sort_them() -> None:
    generator = np.random.default_rng(0)
    few = Table(("x/10", "x/9"), generator.integers(9, size=(2, 2))).narrowed().labels[0]
    many = Table(tuple(f"x/{i}" for i in range(11, 0, -1)), generator.integers(9, size=[2] * 11)).narrowed().labels[0]
    assert few.startswith("x/9, x/10 (")
    assert many.startswith("x/1, ..., x/11 (")


# --- several tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 0])  # without intermediates and with
@pytest.mark.parametrize("seed", range(3))
def test_combined_is_the_operation_on_every_entry(seed: int, limit: int | None) -> None:
    generator = np.random.default_rng(seed)
    parts = [random_table(generator, labels) for labels in ("ab", "dc", "a")]
    found = combined(lambda x, y, z: x * y - z, parts, limit)
    assert entries(found) == [x * y - z for x, y, z in zip(*map(entries, parts), strict=True)]
    assert any(isinstance(label, Intermediate) for label in found.labels) == (limit == 0)


@pytest.mark.parametrize("most", [tables.MAX_DENSE, 5])
def test_folded_is_the_sum_whatever_the_order(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(tables, "MAX_DENSE", most)
    generator = np.random.default_rng(0)
    parts = [random_table(generator, labels) for labels in ("ab", "dc", "a", "bd")]
    total, turned = folded(np.add, parts), folded(np.add, parts[::-1])
    assert entries(total) == [sum(each) for each in zip(*map(entries, parts), strict=True)]
    assert total.labels == turned.labels
    assert len(total.labels) == 1


@pytest.mark.parametrize("most", [tables.MAX_TABLE, 30])
@pytest.mark.parametrize("seed", range(3))
def test_where_conditions_hold(monkeypatch: pytest.MonkeyPatch, seed: int, most: int) -> None:
    monkeypatch.setattr(tables, "MAX_TABLE", most)
    generator = np.random.default_rng(seed)
    numbers = [random_table(generator, labels) for labels in ("abd", "bdc", "a")]
    conditions = [Table(each.labels, each.values > 0) for each in numbers]
    rows = list(zip(*map(entries, conditions), strict=True))
    assert entries(conjunction(conditions)) == list(map(all, rows))
    assert entries(disjunction(conditions)) == list(map(any, rows))


def test_conditions_that_add_nothing_leave_no_label() -> None:
    some = Table(("a",), np.array([True, False]))
    always, never = (Table(("b",), np.full(3, value)) for value in (True, False))
    assert conjunction([some, always]).labels == disjunction([never, some]).labels == ("a",)
    assert conjunction([some, never]).labels == disjunction([some, always]).labels == ()
    assert conjunction([]).values.item() is True
    assert disjunction([]).values.item() is False


def test_a_table_that_would_be_too_large_is_an_error() -> None:
    wide = [Table((label,), np.arange(700)) for label in ("wide", "high")]
    with pytest.raises(UnsupportedError, match="wide, high together: 490,000 combinations, more than 200,000"):
        combined(np.add, wide)


# --- intermediates that cannot have all their values together ---------------------------------------------------------


def intermediates(seed: int) -> list[str]:
    """Give labels and intermediates, one of them computed from another one."""
    generator = np.random.default_rng(seed)
    one, other = (random_table(generator, labels, 3).narrowed().labels[0] for labels in ("ab", "bc"))
    assert isinstance(one, Intermediate)
    above = Intermediate("above", (one, "d"), np.arange(one.size * 3).reshape(one.size, 3) % 4)
    return [above, "c", "e", other, one]


@pytest.mark.parametrize("seed", range(4))
def test_which_combinations_there_are(seed: int) -> None:
    labels = intermediates(seed)
    there = {tuple(place_of(label, member, DOMAIN) for label in labels) for member in members()}
    shape = [tables.length_of(label, DOMAIN) for label in labels]
    found = np.broadcast_to(possible(labels), shape)
    assert {place for place in np.ndindex(*shape) if found[place]} == there
    assert len(there) < found.size
    for places in there:
        member = {label: DOMAIN[label][place] for label, place in realised(labels, places).items()}
        whole = {label: values[0] for label, values in DOMAIN.items()} | member
        assert tuple(place_of(label, whole, DOMAIN) for label in labels) == places
    missing = next(place for place in np.ndindex(*shape) if place not in there)
    with pytest.raises(ValueError, match="there is no member in which"):
        realised(labels, missing)


def test_a_condition_that_fails_where_there_is_no_member_holds_always() -> None:
    up, down = Intermediate("up", ("a",), [0, 1]), Intermediate("down", ("a",), [1, 0])
    differ = np.array([[False, True], [True, False]])
    assert holds_always(Table((up, down), differ))
    assert not holds_always(Table((up, down), ~differ))
    assert not holds_always(Table(("a", "b"), differ))
