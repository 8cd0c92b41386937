from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.cost import CostModel, Factor


def _probabilities(model: CostModel, seed: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        label: torch.randn(size, generator=generator, dtype=torch.float64).softmax(0).to(dtype).requires_grad_()
        for label, size in zip(model.labels, model.domain.sizes, strict=True)
    }


def _enumerated(everything: Any, probabilities: dict[str, torch.Tensor]) -> float:
    vectors = [p.detach().double().numpy() for p in probabilities.values()]
    weights = np.prod([v[everything.rows[:, i]] for i, v in enumerate(vectors)], axis=0)
    return float(weights @ everything.costs)


@pytest.mark.parametrize("seed", range(10))
def test_equals_enumeration_with_shared_labels(
    seed: int, make_model: Callable[..., CostModel], enumerate_model: Callable[[CostModel], Any]
) -> None:
    model = make_model(seed, n_factors=9)
    probabilities = _probabilities(model, seed)
    value = model.expectation(probabilities)
    assert value.shape == ()
    assert value.item() == pytest.approx(_enumerated(enumerate_model(model), probabilities), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_equal_finite_differences(seed: int, make_model: Callable[..., CostModel]) -> None:
    model = make_model(seed, n_factors=9)
    probabilities = _probabilities(model, seed)
    names = list(probabilities)

    def function(*vectors: torch.Tensor) -> torch.Tensor:
        return model.expectation(dict(zip(names, vectors, strict=True)))

    assert torch.autograd.gradcheck(function, tuple(probabilities.values()))
    assert torch.autograd.gradgradcheck(function, tuple(probabilities.values()))


def test_one_hot_vectors_give_the_cost_of_the_sample(make_model: Callable[..., CostModel]) -> None:
    model = make_model(1)
    row = [size - 1 for size in model.domain.sizes]
    vectors = {
        label: torch.nn.functional.one_hot(torch.tensor(i), size).double()
        for label, i, size in zip(model.labels, row, model.domain.sizes, strict=True)
    }
    assert model.expectation(vectors).item() == pytest.approx(model.evaluate(np.array([row]))[0])


def test_conditional_depth(enumerate_model: Callable[[CostModel], Any]) -> None:
    blocks = [Factor((f"k{i}",), [1.0, 3.0 + i]).gated("depth", [d > i for d in range(3)]) for i in range(2)]
    model = CostModel({"k0": [3, 5], "k1": [3, 5], "depth": [0, 1, 2]}, blocks)
    probabilities = _probabilities(model, 4)
    expected = _enumerated(enumerate_model(model), probabilities)
    assert model.expectation(probabilities).item() == pytest.approx(expected, abs=1e-12)


def test_every_tensor_given_gets_a_gradient() -> None:
    model = CostModel({"a": [1, 2], "idle": [1, 2, 3]}, [Factor(("a",), [1.0, 2.0])])
    probabilities = _probabilities(model, 0)
    model.expectation(probabilities).backward()
    assert probabilities["a"].grad is not None
    torch.testing.assert_close(probabilities["a"].grad, torch.tensor([1.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(probabilities["idle"].grad, torch.zeros(3, dtype=torch.float64))


def test_a_constant_cost_can_be_differentiated() -> None:
    model = CostModel({"a": [1, 2]}, [], constant=2.0)
    probabilities = _probabilities(model, 0)
    value = model.expectation(probabilities)
    value.backward()
    assert value.item() == 2.0
    assert model.expectation({}).item() == 2.0


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_dtype_is_kept_but_not_below_single(
    dtype: torch.dtype, expected: torch.dtype, make_model: Callable[..., CostModel]
) -> None:
    model = make_model(2)
    probabilities = _probabilities(model, 0, dtype)
    value = model.expectation(probabilities)
    assert value.dtype == expected
    exact = model.expectation({k: p.double() for k, p in probabilities.items()})
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-5)


def test_autocast_does_not_touch_large_costs() -> None:
    model = CostModel({"a": [1, 2], "b": [1, 2]}, [Factor.outer({"a": [1, 2], "b": [1, 2]}, scale=1e9)])
    halves = {label: torch.full((2,), 0.5) for label in "ab"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = model.expectation(halves)
    assert value.item() == pytest.approx(2.25e9)


def test_training_works_after_a_call_in_inference_mode() -> None:
    model = CostModel({"a": [1, 2]}, [Factor(("a",), [1.0, 2.0])])
    with torch.inference_mode():
        model.expectation({"a": torch.tensor([0.5, 0.5])})
    p = torch.tensor([0.5, 0.5], requires_grad=True)
    model.expectation({"a": p}).backward()
    assert p.grad is not None


def test_missing_and_misshaped_vectors_are_named() -> None:
    model = CostModel({"a": [1, 2], "b": [1, 2]}, [Factor(("a",), [1.0, 2.0]), Factor(("b",), [1.0, 2.0])])
    with pytest.raises(ValueError, match="label 'b', but no probabilities"):
        model.expectation({"a": torch.ones(2)})
    with pytest.raises(ValueError, match=r"'b' have shape \(3,\), expected \(2,\)"):
        model.expectation({"a": torch.ones(2), "b": torch.ones(3), "other": torch.ones(9)})
