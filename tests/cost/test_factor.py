from __future__ import annotations

import numpy as np
import pytest

from hwnas.cost import Factor
from hwnas.cost.factor import compile_tables


def test_outer_is_the_product_of_its_vectors() -> None:
    factor = Factor.outer({"a": [1, 2], "b": [3, 4, 5]}, scale=10.0)
    assert factor.labels == ("a", "b")
    np.testing.assert_array_equal(factor.table, [[30, 40, 50], [60, 80, 100]])


def test_gating_adds_the_controlling_label_or_uses_its_axis() -> None:
    factor = Factor(("a",), np.array([1.0, 2.0, 3.0]))
    gated = factor.gated("depth", [False, True])
    assert gated.labels == ("depth", "a")
    np.testing.assert_array_equal(gated.table, [[0, 0, 0], [1, 2, 3]])
    np.testing.assert_array_equal(factor.gated("a", [True, False, True]).table, [1, 0, 3])


def test_a_gated_constraint_allows_everything_where_inactive() -> None:
    gated = Factor(("a",), np.array([True, False])).gated("depth", [False, True])
    np.testing.assert_array_equal(gated.table, [[True, True], [True, False]])


def test_restrict_slices() -> None:
    table = np.arange(6.0).reshape(2, 3)
    factor = Factor(("a", "b"), table).restrict("b", 1)
    assert factor.labels == ("a",)
    np.testing.assert_array_equal(factor.table, table[:, 1])
    assert factor.restrict("unknown", 0) is factor


def test_the_table_is_a_read_only_copy() -> None:
    table = np.zeros(2)
    factor = Factor(("a",), table)
    table[0] = 5
    assert factor.table[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        factor.table[0] = 1


@pytest.mark.parametrize(
    ("labels", "table", "message"),
    [
        (("a", "a"), np.zeros((2, 2)), "occurs twice"),
        (("a",), np.zeros((2, 2)), "need 1 axes"),
        (("a",), np.zeros(0), "needs an option"),
        (("a",), np.array([1.0, np.inf]), r"entry \(1,\) is inf"),
        (("a",), np.array([np.nan, 1.0]), r"entry \(0,\) is nan"),
    ],
)
def test_bad_tables_are_refused(labels: tuple[str, ...], table: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Factor(labels, table)


def test_constraints_cannot_be_scaled() -> None:
    with pytest.raises(TypeError, match="constraint"):
        Factor(("a",), np.array([True])) * 2.0


def test_compiling_merges_equal_and_contained_scopes_and_drops_constant_axes() -> None:
    rng = np.random.default_rng(0)
    ab, ba, b = rng.random((2, 3)), rng.random((3, 2)), rng.random(3)
    constant_in_c = np.repeat(rng.random((2, 1)), 4, axis=1)
    tables = compile_tables(
        [
            Factor(("a", "b"), ab),
            Factor(("b", "a"), ba),
            Factor(("b",), b),
            Factor(("a", "c"), constant_in_c),
            Factor(("c",), np.full(4, 7.0)),
        ],
        ["a", "b", "c"],
    )
    by_scope = {table.scope: table.values for table in tables}
    assert by_scope.keys() == {(0, 1), ()}
    np.testing.assert_allclose(by_scope[0, 1], ab + ba.T + b + constant_in_c[:, :1])
    assert float(by_scope[()]) == 7.0


def test_compiled_constraints_are_conjoined() -> None:
    a, b = np.array([True, True, False]), np.array([[True, False], [True, True], [True, True]])
    (table,) = compile_tables([Factor(("a",), a), Factor(("a", "b"), b)], ["a", "b"])
    np.testing.assert_array_equal(table.values, a[:, None] & b)
