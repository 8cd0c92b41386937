from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hwnas.cost import CostModel, Factor
from hwnas.errors import SampleError


def _small() -> CostModel:
    return CostModel(
        {"op": ["conv", "pool"], "width": [8, 16, 32], "unused": [1, 2]},
        [
            Factor(("op", "width"), [[1.0, 2.0, 4.0], [0.5, 0.5, 0.5]], name="block"),
            Factor(("width",), [0.25, 0.5, 1.0]),
        ],
        constant=3.0,
        unit="ms",
    )


@pytest.mark.parametrize("seed", range(12))
def test_evaluate_equals_the_sum_over_factors(
    seed: int, make_model: Callable[..., CostModel], enumerate_model: Callable[[CostModel], Any]
) -> None:
    model = make_model(seed)
    everything = enumerate_model(model)
    np.testing.assert_allclose(model.evaluate(everything.rows), everything.costs, atol=1e-12)
    np.testing.assert_array_equal(model.evaluate(everything.samples), model.evaluate(everything.rows))
    np.testing.assert_array_equal(model.indices(everything.samples), everything.rows)
    assert model.evaluate(everything.samples[-1]) == model.evaluate(everything.rows)[-1]


def test_many_rows_are_evaluated_in_pieces(make_model: Callable[..., CostModel]) -> None:
    model = make_model(3, n_labels=8, n_factors=8)
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(0, size, 9001) for size in model.domain.sizes], axis=1)
    single = [model.evaluate(rows[i : i + 1])[0] for i in (0, 4095, 4096, 9000)]
    np.testing.assert_array_equal(model.evaluate(rows)[[0, 4095, 4096, 9000]], single)
    np.testing.assert_array_equal(model.evaluate(rows.astype(np.int8)), model.evaluate(rows))
    np.testing.assert_array_equal(model.evaluate(np.asfortranarray(rows)), model.evaluate(rows))


def test_one_sample_gives_a_float_and_no_samples_an_empty_array() -> None:
    model = _small()
    cost = model.evaluate({"op": "conv", "width": 16, "unused": 2})
    assert isinstance(cost, float)
    assert cost == 3.0 + 2.0 + 0.5
    assert model.evaluate([]).shape == (0,)
    assert model.indices([]).shape == (0, 3)


def test_extra_labels_are_ignored_and_idle_ones_may_be_missing() -> None:
    assert _small().evaluate({"op": "pool", "width": 8, "other": 5}) == 3.75


def test_a_label_with_a_constant_factor_may_be_missing() -> None:
    model = CostModel({"a": [1, 2], "b": [1, 2]}, [Factor(("a", "b"), [[1.0, 2.0], [1.0, 2.0]])])
    assert model.evaluate({"b": 2}) == 2.0
    with pytest.raises(SampleError, match="'b'"):
        model.evaluate({"a": 1})


def test_missing_labels_and_unknown_values_are_named() -> None:
    with pytest.raises(SampleError, match="sample 1 lacks the label 'width'"):
        _small().evaluate([{"op": "pool", "width": 8}, {"op": "pool"}])
    with pytest.raises(SampleError, match=r"64 for the label 'width'; expected one of 8, 16, 32"):
        _small().evaluate({"op": "pool", "width": 64})
    with pytest.raises(SampleError, match="'unused'"):
        _small().indices({"op": "pool", "width": 8})


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.zeros((2, 2), dtype=int), r"shape \(2, 2\)"),
        (np.zeros((2, 3)), "float64"),
        (np.array([[0, 3, 0]]), r"'width' is outside 0\.\.2"),
        (np.array([[0, -1, 0]]), r"'width' is outside 0\.\.2"),
    ],
)
def test_bad_indices_are_refused(indices: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _small().evaluate(indices)


def test_any_value_can_be_an_option() -> None:
    options = [["a", "b"], ["b", ["c"]], (1, 2), None, 3.5, {"k": [1]}, {7}]
    model = CostModel({"x": options}, [Factor(("x",), np.arange(7.0))])
    np.testing.assert_array_equal(model.evaluate([{"x": option} for option in options]), np.arange(7.0))
    assert model.evaluate({"x": [1, 2]}) == 2.0  # a tuple that has been through JSON
    drawn = model.samples(np.array([[0]]))[0]["x"]
    drawn.append("changed")
    assert options[0] == ["a", "b"]
    assert model.minimum().sample == {"x": ["a", "b"]}


def test_construction_is_checked() -> None:
    with pytest.raises(ValueError, match="'y' is not in the domain"):
        CostModel({"x": [1]}, [Factor(("y",), [1.0])])
    with pytest.raises(ValueError, match="3 entries for 'x', but that has 2 values"):
        CostModel({"x": [1, 2]}, [Factor(("x",), [1.0, 2.0, 3.0])])
    with pytest.raises(ValueError, match="boolean"):
        CostModel({"x": [1, 2]}, [], constraints=[Factor(("x",), [1.0, 0.0])])
    with pytest.raises(ValueError, match="two of its values are equal"):
        CostModel({"x": [1, 1]}, [])
    with pytest.raises(ValueError, match="no values"):
        CostModel({"x": []}, [])
    with pytest.raises(ValueError, match="finite"):
        CostModel({}, [], constant=float("inf"))


@pytest.mark.parametrize("seed", range(4))
def test_sums_and_scaling(
    seed: int, make_model: Callable[..., CostModel], enumerate_model: Callable[[CostModel], Any]
) -> None:
    a, other = make_model(seed, n_constraints=1), make_model(seed)
    both = 2.0 * a + other * np.float64(0.5) + 7
    everything = enumerate_model(a)
    expected = 2 * everything.costs + 0.5 * enumerate_model(other).costs + 7
    np.testing.assert_allclose(both.evaluate(everything.rows), expected, atol=1e-12)
    np.testing.assert_array_equal(both.allowed(everything.rows), everything.allowed)
    np.testing.assert_allclose(sum([a], start=a).evaluate(everything.rows), 2 * everything.costs, atol=1e-12)
    assert len((a + a).constraints) == 1


def test_models_of_different_labels_add_up() -> None:
    total = CostModel({"a": [1, 2]}, [Factor(("a",), [1.0, 2.0])]) + CostModel(
        {"b": [1, 2]}, [Factor(("b",), [10.0, 20.0])]
    )
    assert total.labels == ("a", "b")
    assert total.evaluate({"a": 2, "b": 1}) == 12.0


def test_models_that_do_not_fit_are_not_added() -> None:
    with pytest.raises(ValueError, match="'x' has the values"):
        CostModel({"x": [1, 2]}, []) + CostModel({"x": [2, 1]}, [])
    with pytest.raises(ValueError, match="'ms' and 'macs'"):
        CostModel({}, [], unit="ms") + CostModel({}, [], unit="macs")
    assert (CostModel({}, [], unit="ms") + CostModel({}, [])).unit == "ms"


def test_scaled_takes_a_new_unit() -> None:
    model = _small().scaled(1000.0, unit="us")
    assert model.unit == "us"
    assert model.minimum().cost == 3750.0


def test_breakdown_lists_the_parts_largest_first() -> None:
    sample = {"op": "conv", "width": 32, "unused": 1}
    assert _small().breakdown(sample) == [("block", 4.0), ("constant", 3.0), ("width", 1.0)]
    assert sum(cost for _, cost in _small().breakdown(sample)) == _small().evaluate(sample)


def test_json_round_trip_is_exact(make_model: Callable[..., CostModel]) -> None:
    model = make_model(5, n_constraints=2)
    back = CostModel.from_dict(json.loads(json.dumps(model.to_dict(), sort_keys=True)))
    assert back.labels == model.labels
    assert back.unit == model.unit
    rows = np.zeros((1, len(model.labels)), dtype=int)
    assert back.evaluate(rows)[0] == model.evaluate(rows)[0]
    for old, new in zip((*model.factors, *model.constraints), (*back.factors, *back.constraints), strict=True):
        assert (old.labels, old.name, old.is_constraint) == (new.labels, new.name, new.is_constraint)
        np.testing.assert_array_equal(old.table, new.table)


def test_json_keeps_tuples_and_lists_apart() -> None:
    options = [(1, (2, "x")), ["a"], None, True, 2.5, np.int64(4)]
    back = CostModel.from_dict(json.loads(json.dumps(CostModel({"x": options}, []).to_dict())))
    assert back.domain.values["x"] == ((1, (2, "x")), ["a"], None, True, 2.5, 4)


def test_json_refuses_what_it_cannot_keep() -> None:
    with pytest.raises(TypeError, match="'x' cannot be saved"):
        CostModel({"x": [{1, 2}]}, []).to_dict()
    with pytest.raises(ValueError, match="schema version 99, expected 1"):
        CostModel.from_dict({**_small().to_dict(), "schema_version": 99})


def test_a_model_without_labels_is_its_constant() -> None:
    model = CostModel({}, [], constant=2.0)
    assert model.evaluate({}) == 2.0
    assert model.minimum().cost == 2.0
    assert model.sample_within(n=3) == [{}, {}, {}]
    assert model.count_within(1, 2).value == 1


def test_lists_among_the_values_are_looked_up_like_others() -> None:
    model = CostModel(
        {"inputs": [[0], [0, 1], []], "mixed": [None, (1, (2, 3))], "plain": [1, 2]},
        [Factor(("inputs", "plain"), [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), Factor("mixed", [0.0, 10.0])],
    )
    samples = [
        {"inputs": [0, 1], "mixed": None, "plain": 2},
        {"inputs": (), "mixed": [1, [2, 3]], "plain": 1},
        {"inputs": [0], "mixed": (1, (2, 3)), "plain": 2},
    ]
    assert model.evaluate(samples).tolist() == [4.0, 15.0, 12.0]
    with pytest.raises(SampleError, match=r"sample 1 has \[1, 0\] for the label 'inputs'"):
        model.evaluate([samples[0], {**samples[0], "inputs": [1, 0]}])
    with pytest.raises(SampleError, match="sample 0 has 3 for the label 'inputs'"):
        model.evaluate({**samples[0], "inputs": 3})
    names = CostModel({"names": [["a", "b"], ["c"]]}, [Factor("names", [1.0, 2.0])])
    assert names.evaluate([{"names": ("a", "b")}, {"names": ["c"]}]).tolist() == [1.0, 2.0]
    with pytest.raises(SampleError, match="sample 0 has 'ab'"):
        names.evaluate({"names": "ab"})
