"""The space of the digits: how large it is, and that all its forms compute the same."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from hwnas.export import export_onnx
from hwnas.hub import DigitsSpace
from hwnas.profilers import FlopsProfiler, NumParamsProfiler
from hwnas.space import Sample
from hwnas.supernet import OneHot, make_supernet

X = torch.randn(4, *DigitsSpace.input_shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def space() -> DigitsSpace:
    return DigitsSpace().eval()


def supernet_of(space: DigitsSpace) -> tuple[DigitsSpace, OneHot]:
    """Make a super-net with batch normalisations that do something."""
    supernet = copy.deepcopy(space)
    relaxation = OneHot(supernet.simplify().values())
    make_supernet(supernet, relaxation)
    for module in supernet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return supernet.eval(), relaxation


def test_the_number_of_members(space: DigitsSpace) -> None:
    # Three widths, and in each of two stages a depth of 1 to 3 and three blocks of four kinds.
    assert space.size() == 3 * (3 * 4**3) ** 2 == 110_592


def extreme(space: DigitsSpace, pick: str) -> Sample:
    return {label: {"first": m.values[0], "last": m.values[-1]}[pick] for label, m in space.simplify().items()}


@pytest.mark.parametrize("pick", ["first", "last"])
@pytest.mark.parametrize("batch", [1, 3])
def test_images_become_scores(space: DigitsSpace, pick: str, batch: int) -> None:
    member = space.freeze(extreme(space, pick)).eval()
    assert member(X[:batch]).shape == (batch, 10)
    seen: list[torch.Size] = []
    member.head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    member(X)
    width = {"first": 16, "last": 48}[pick]
    assert seen == [(4, 2 * width, 4, 4)]


def test_the_number_of_classes() -> None:
    space = DigitsSpace(classes=3)
    assert space.freeze(space.default()).eval()(X).shape == (4, 3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_supernet_member_and_onnx_compute_the_same(space: DigitsSpace, seed: int, tmp_path: Path) -> None:
    sample = space.random(random_state=seed)
    supernet, relaxation = supernet_of(space)
    relaxation.resample(sample)
    member = supernet.freeze(sample).eval()
    with torch.no_grad():
        shared, frozen = supernet(X), member(X)
    path = export_onnx(member, X, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (exported,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    assert frozen.std() > 0.01
    torch.testing.assert_close(shared, frozen, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(exported, frozen.numpy(), rtol=1e-5, atol=1e-5)


def test_counts_are_those_of_fvcore_and_pytorch(space: DigitsSpace) -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    flops, parameters = FlopsProfiler(space, X), NumParamsProfiler(space, X)
    for seed in range(5):
        sample = space.random(random_state=seed)
        member = space.freeze(sample).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            counted = fvcore.FlopCountAnalysis(member, X).unsupported_ops_warnings(False).total()
        assert flops.profile(sample) == counted, sample
        assert parameters.profile(sample) == sum(p.numel() for p in member.parameters()), sample
