"""Every strategy with shared weights on every primitive: what docs/strategies/matrix.md says is so."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hwnas.space import CategoricalMultiple, Sample
from hwnas.strategies import ENAS, OneShotStrategy
from hwnas.strategies.feasible import FeasibleSampler
from hwnas.supernet import BaseSuperNetModule, BinaryGates, OneHot, SampledSoftmax, Softmax, supernet_modules
from hwnas.supernet.candidate_norm import MixedCandidates

ROOT = Path(__file__).parent.parent.parent


def matrix_of_the_page() -> ModuleType:
    specification = importlib.util.spec_from_file_location(
        "strategy_matrix", ROOT / "benchmarks" / "strategy_matrix.py"
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


MATRIX = matrix_of_the_page()
ADVICE = "run python benchmarks/report.py matrix"
PAGE = ROOT / "docs" / "strategies" / "matrix.md"
COMBINATIONS = [
    pytest.param(case, strategy, id=f"{case.replace('`', '')}-{strategy}")
    for case, strategy in itertools.product(MATRIX.CASES, MATRIX.STRATEGIES)
]


@pytest.fixture(scope="module")
def page() -> dict[str, dict[str, str | None]]:
    """Return why a strategy refuses a primitive, according to the page; None where it does not."""
    lines = PAGE.read_text().partition("<!-- figures")[2].partition("<!-- end")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    notes = dict(line.removesuffix(".").split(". ", 1) for line in lines if line[:1].isdigit())
    said = {
        name: {
            strategy: notes[cell.removeprefix("no (").removesuffix(")")] if cell.startswith("no (") else None
            for strategy, cell in zip(rows[0][1:], cells, strict=True)
        }
        for name, *cells in rows[2:]
    }
    assert {reason for row in said.values() for reason in row.values()} == {None, *notes.values()}, ADVICE
    return said


def test_the_page_has_all_primitives_and_strategies(page: dict[str, dict[str, str | None]]) -> None:
    assert list(page) == list(MATRIX.CASES), ADVICE
    assert all(list(row) == list(MATRIX.STRATEGIES) for row in page.values()), ADVICE


@pytest.mark.parametrize(("name", "strategy_name"), COMBINATIONS)
def test_what_the_page_says(page: dict[str, dict[str, str | None]], name: str, strategy_name: str) -> None:
    case, strategy = MATRIX.CASES[name], MATRIX.STRATEGIES[strategy_name]()
    reason = MATRIX.refusal(case, strategy)
    assert reason == page[name][strategy_name], ADVICE
    if reason is not None:
        labels = case.space().simplify()
        assert "ModelParameterChoice" in reason or any(label in reason for label in (*labels, "'cell'"))
        return
    x = case.inputs()
    fill(strategy)
    for sample in drawn(strategy):
        forward_at_a_decided_architecture_is_the_frozen_member(strategy, sample, x)
        frozen_members_are_plain(strategy, sample)
        weights_have_the_gradients_of_the_member(strategy, sample, x)
        export_repeats_itself(strategy, sample)
        resample_honours_the_memo(strategy, sample, x)
    gradients_of_the_architecture(strategy, x)


def fill(strategy: OneShotStrategy) -> None:
    """Give every parameter and statistic a value of its own, so that a wrong slice shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*strategy.supernet.parameters(), *strategy.supernet.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)


def drawn(strategy: OneShotStrategy) -> Iterator[Sample]:
    """Yield samples, of ENAS those of its controller."""
    sampler = FeasibleSampler(strategy.supernet, seed=1)
    if isinstance(strategy, ENAS):
        yield from strategy.controller.draw(2, torch.Generator().manual_seed(0), sampler.accepts)
    else:
        yield from map(sampler.sample, range(2))


def decide(strategy: OneShotStrategy, sample: Sample) -> None:
    """Make a relaxation as good as certain of a sample."""
    relaxation = strategy.relaxation
    relaxation.train().requires_grad_(True)
    if isinstance(relaxation, Softmax):
        with torch.no_grad():
            for label, value in sample.items():
                dimension = relaxation.dimension(label)
                chosen = value if isinstance(dimension, CategoricalMultiple) else [value]
                relaxation.alpha(label).copy_(
                    torch.tensor([200.0 if v in chosen else -200.0 for v in dimension.values])
                )
        relaxation.resample({})
    else:
        assert relaxation.resample(sample) == {}


def normalises(strategy: OneShotStrategy) -> bool:
    """Tell whether the search normalises what frozen members do not."""
    norms = [module.norm for module in supernet_modules(strategy.supernet) if isinstance(module, MixedCandidates)]
    return any(norm is not None and norm._one_dimensional for norm in norms)


def output(strategy: OneShotStrategy, model: Any, x: Tensor) -> Tensor:
    torch.manual_seed(0)  # of dropout
    y: Tensor = model(x)
    return y


def forward_at_a_decided_architecture_is_the_frozen_member(
    strategy: OneShotStrategy, sample: Sample, x: Tensor
) -> None:
    space = strategy.supernet.eval()
    decide(strategy, sample)
    expected = space.freeze(sample)(x)
    if not normalises(strategy):
        torch.testing.assert_close(space(x), expected, rtol=1e-5, atol=1e-8)
    strategy.relaxation.eval()
    torch.testing.assert_close(space(x), expected, rtol=1e-5, atol=1e-8)


def frozen_members_are_plain(strategy: OneShotStrategy, sample: Sample) -> None:
    member = strategy.supernet.freeze(sample)
    for part in member.modules():
        kinds = [*type(part).__mro__, *(kind for value in vars(part).values() for kind in type(value).__mro__)]
        assert not any(kind.__module__.startswith("hwnas") for kind in kinds)
    ours = {tensor.untyped_storage().data_ptr() for tensor in strategy.supernet.state_dict().values()}
    assert not ours & {tensor.untyped_storage().data_ptr() for tensor in member.state_dict().values() if tensor.numel()}


def weights_have_the_gradients_of_the_member(strategy: OneShotStrategy, sample: Sample, x: Tensor) -> None:
    """In a step of the weights; slices that the member does not have get no gradient, or zeros."""
    space = strategy.supernet.train()
    decide(strategy, sample)
    strategy.relaxation.requires_grad_(False).train(not normalises(strategy))
    member = space.freeze(sample)
    for model in (space, member):
        model.zero_grad()
        y = output(strategy, model, x)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y) + y.square()).sum().backward()
    np.testing.assert_allclose(gradients(space), gradients(member), rtol=1e-5, atol=1e-8)


def gradients(model: torch.nn.Module) -> Any:
    """Return the gradients that are not zero, sorted."""
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    joined = torch.cat(parts) if parts else torch.zeros(0)
    assert torch.isfinite(joined).all()
    return np.sort(joined[joined.abs() > 1e-9].numpy())


def export_repeats_itself(strategy: OneShotStrategy, sample: Sample) -> None:
    decide(strategy, sample)
    assert {label: strategy.relaxation.export(label) for label in sample} == sample
    for again in range(2):
        if again:
            strategy.relaxation.eval()
        exported: Sample = {}
        for module in supernet_modules(strategy.supernet):
            new = module.export(exported)
            assert not set(new) & set(exported)
            exported.update(new)
        assert exported == {label: value for label, value in sample.items() if label in exported}
        assert set(exported) == labels_of(supernet_modules(strategy.supernet))


def labels_of(modules: list[BaseSuperNetModule]) -> set[str]:
    """Return what the modules decide; a value that is called in `forward` belongs to none."""
    return {label for module in modules for label in module.search_space_spec()}


def resample_honours_the_memo(strategy: OneShotStrategy, sample: Sample, x: Tensor) -> None:
    space, relaxation = strategy.supernet, strategy.relaxation
    relaxation.train()
    memo = dict(list(sample.items())[::2])
    before = {label: value for label, value in memo.items()}
    new = relaxation.resample(memo, np.random.default_rng(2))
    assert memo == before
    if isinstance(relaxation, Softmax) and not isinstance(relaxation, SampledSoftmax):
        assert new == {}
        return
    assert not set(new) & set(memo)
    full = memo | new
    assert set(full) == set(sample)
    for module in supernet_modules(space):
        assert module.resample(full, np.random.default_rng(3)) == {}
    one_path = isinstance(relaxation, OneHot | BinaryGates) or getattr(relaxation, "hard", False)
    if one_path and space.contains(full) and not normalises(strategy):
        relaxation.requires_grad_(False)
        torch.testing.assert_close(
            output(strategy, space.train(), x), output(strategy, space.freeze(full).train(), x), rtol=1e-5, atol=1e-8
        )


def gradients_of_the_architecture(strategy: OneShotStrategy, x: Tensor) -> None:
    """Reach every label; those of mixtures are finite differences."""
    space, relaxation = strategy.supernet.train(), strategy.relaxation
    if isinstance(relaxation, OneHot):
        assert not relaxation.differentiable
        return
    assert isinstance(relaxation, Softmax)
    relaxation.train().requires_grad_(True)
    with torch.no_grad():
        for label in relaxation.dimensions:
            alpha = relaxation.alpha(label)
            alpha.copy_(torch.linspace(-0.5, 0.5, len(alpha)))

    def loss() -> Tensor:
        y = output(strategy, space, x)
        return (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y) + y.square()).sum()

    # A branch that is closed passes nothing on to the choices in it, so one draw is not enough.
    one_path = isinstance(relaxation, BinaryGates) or getattr(relaxation, "hard", False)
    rng = np.random.default_rng(4)
    space.zero_grad()
    relaxation.zero_grad()
    for _ in range(8 if one_path else 1):
        relaxation.resample({}, rng)
        loss().backward()
    for label in relaxation.dimensions:
        gradient = relaxation.alpha(label).grad
        assert gradient is not None, label
        assert torch.isfinite(gradient).all(), label
        assert len(gradient) == 1 or gradient.abs().max() > 1e-9, label
    assert all(torch.isfinite(p.grad).all() for p in space.parameters() if p.grad is not None)
    if one_path:
        return
    assert all(parameter.grad is not None for parameter in space.parameters())
    generator = torch.Generator().manual_seed(5)
    for tensors in (list(relaxation.parameters()), list(space.parameters())):
        directions = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]
        slope = sum((t.grad * d).sum() for t, d in zip(tensors, directions, strict=True) if t.grad is not None)
        ends = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                for tensor, direction in zip(tensors, directions, strict=True):
                    tensor.add_(direction, alpha=step)
                ends.append(loss())
            for tensor, direction in zip(tensors, directions, strict=True):
                tensor.add_(direction, alpha=1e-6)
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-6, slope, rtol=1e-5, atol=1e-5)
