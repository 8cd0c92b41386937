"""Verification lets the true through and stops whatever differs."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from hwnas.errors import VerificationError
from hwnas.export import export_many, verify_onnx


class Scale(nn.Module):
    """Multiplies by a buffer, so that a test decides what comes out."""

    def __init__(self, factor: list[float]) -> None:
        super().__init__()
        self.factor = nn.Buffer(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, (x > 0)


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    torch.manual_seed(0)
    models = {"linear": linear(), "scale": Scale([1.0, 2.0]), "pair": Pair(), "relu": nn.ReLU()}
    shapes = [(2, 3), (2,), (2,), (2,)]
    exported = export_many(list(models.values()), [(torch.randn(shape),) for shape in shapes])
    return dict(zip(models, exported, strict=True))


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))


def test_equal_models_pass(contents, tmp_path):
    model = linear()
    inputs = [(torch.randn(2, 3),) for _ in range(3)]
    path = tmp_path / "linear.onnx"
    path.write_bytes(contents["linear"])
    result = verify_onnx(path, model, inputs)
    assert result.n_batches == 3
    assert result.n_values == 24
    assert 0 <= result.max_abs_error < 1e-5
    assert model.training  # dropout was off only meanwhile
    assert verify_onnx(contents["linear"], model, inputs) == result


def test_the_figures_are_those_of_the_difference(contents):
    # ONNX has (1, 2); PyTorch (1, 2.5): on an input of 2 the difference is 1 of 5.
    model = Scale([1.0, 2.5])
    result = verify_onnx(contents["scale"], model, [(torch.tensor([2.0, 2.0]),)], atol=2.0)
    assert result.max_abs_error == pytest.approx(1.0)
    assert result.max_rel_error == pytest.approx(0.2)
    assert dataclasses.astuple(result)[4:] == (2.0, 1e-4)


@pytest.mark.parametrize(
    ("atol", "rtol", "passes"), [(0.99, 0, False), (1.01, 0, True), (0, 0.19, False), (0, 0.21, True)]
)
def test_tolerances(contents, atol, rtol, passes):
    model, inputs = Scale([1.0, 2.5]), [(torch.tensor([2.0, 2.0]),)]
    if passes:
        verify_onnx(contents["scale"], model, inputs, atol=atol, rtol=rtol)
    else:
        with pytest.raises(
            VerificationError,
            match=r"batch 0, output 0: 1 of 2 .*difference 1, relative 0.2; worst at \(1,\)",
        ):
            verify_onnx(contents["scale"], model, inputs, atol=atol, rtol=rtol)


def test_every_batch_counts(contents):
    model = Scale([1.0, 2.5])
    with pytest.raises(VerificationError, match="batch 1"):
        verify_onnx(contents["scale"], model, [(torch.tensor([1.0, 0.0]),), (torch.tensor([0.0, 1.0]),)])


def test_every_output_and_type_counts(contents):
    class Wrong(Pair):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x >= 0

    x = torch.tensor([0.0, 1.0])
    assert verify_onnx(contents["pair"], Pair(), [(x,)]).max_abs_error == 0
    with pytest.raises(VerificationError, match="output 1"):
        verify_onnx(contents["pair"], Wrong(), [(x,)])
    with pytest.raises(VerificationError, match="2 outputs from ONNX Runtime, 1 from PyTorch"):
        verify_onnx(contents["pair"], nn.ReLU(), [(x,)])
    with pytest.raises(VerificationError, match=r"float32 of shape .* float64"):
        verify_onnx(contents["scale"], Scale([1.0, 2.0]).double(), [(x,)])


def test_not_a_number_is_never_right(contents):
    same = Scale([1.0, 2.0])
    with pytest.raises(VerificationError, match="1 of 2 values from ONNX Runtime are not numbers"):
        verify_onnx(contents["scale"], same, [(torch.tensor([1.0, math.nan]),)], atol=1e9)
    with pytest.raises(VerificationError, match="1 of 2 values from PyTorch are not numbers"):
        verify_onnx(contents["scale"], Scale([1.0, math.nan]), [(torch.ones(2),)], atol=1e9)


def test_infinities_must_be_equal(contents):
    infinite = torch.tensor([1.0, math.inf])
    assert verify_onnx(contents["scale"], Scale([1.0, 2.0]), [(infinite,)]).max_abs_error == 0
    with pytest.raises(VerificationError, match="difference inf"):
        verify_onnx(contents["scale"], Scale([1.0, -2.0]), [(infinite,)], atol=1e9, rtol=1e9)


def test_what_cannot_run_is_reported(contents, tmp_path):
    with pytest.raises(VerificationError, match="cannot load"):
        verify_onnx(b"no model", nn.ReLU(), [(torch.ones(2),)])
    with pytest.raises(VerificationError, match="cannot load"):
        verify_onnx(tmp_path / "missing.onnx", nn.ReLU(), [(torch.ones(2),)])
    with pytest.raises(VerificationError, match="batch 0: ONNX Runtime failed"):
        verify_onnx(contents["relu"], nn.ReLU(), [(torch.ones(3),)])
    with pytest.raises(VerificationError, match="2 inputs given, and the ONNX model takes 1"):
        verify_onnx(contents["relu"], nn.ReLU(), [(torch.ones(2), torch.ones(2))])
    with pytest.raises(ValueError, match="no inputs"):
        verify_onnx(contents["relu"], nn.ReLU(), [])


def test_a_changed_weight_is_found(contents):
    model = copy.deepcopy(linear())
    with torch.no_grad():
        model[0].weight[1, 2] += 0.01
    with pytest.raises(VerificationError, match="2 of 8"):
        verify_onnx(contents["linear"], model, [(torch.ones(2, 3),)])
