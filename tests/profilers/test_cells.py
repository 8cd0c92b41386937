"""Costs of spaces of cells whose loose ends are concatenated, against frozen members."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hwnas.cost import CostModel
from hwnas.hub import AmoebaNetSpace, DARTSSpace, ENASSpace, NASNetSpace
from hwnas.profilers import ActivationMemoryProfiler, FlopsProfiler, NumParamsProfiler, TracedSpace

X = torch.zeros(1, 3, 32, 32)


def norms(model: torch.nn.Module) -> list[int]:
    """Multiply-adds of batch normalisations, which PyTorch's counter leaves out; filled when the model runs."""
    found: list[int] = []
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(lambda m, args, y: found.append((2 if m.affine else 1) * y.numel()))
    return found


@pytest.mark.parametrize("cls", [NASNetSpace, DARTSSpace])
def test_members_cost_what_they_cost_frozen(cls: type) -> None:
    space = cls(width=4, num_cells=3)
    traced = TracedSpace(space, X)
    macs, size = FlopsProfiler(space, traced).cost_model, NumParamsProfiler(space, traced).cost_model
    assert bool(macs.intermediates) == bool(size.intermediates) == (cls is NASNetSpace)
    for seed in range(3):
        sample = space.random(random_state=seed)
        member = space.freeze(sample).eval()
        extra = norms(member)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            member(X)
        assert macs.evaluate(sample) == counter.get_total_flops() // 2 + sum(extra)
        assert size.evaluate(sample) == sum(p.numel() for p in member.parameters())
    for model in (macs, size):
        check_bounds(model)
    if cls is NASNetSpace:  # the concatenation writes the loose ends and no more
        written = ActivationMemoryProfiler(space, traced).cost_model
        ends = {label: [0] for label in written.labels if "/input_" in label}
        chain = {f"normal/input_{node}_0": [node - 1] for node in range(3, 7)}
        rest = {label: values[0] for label, values in written.domain.values.items()}
        all_loose, one_loose = written.evaluate({**rest, **ends}), written.evaluate({**rest, **ends, **chain})
        assert all_loose > one_loose


# Wide enough that PyTorch looks at the number of loose ends, to choose how a convolution lies in memory.
@pytest.mark.parametrize("cls", [ENASSpace, AmoebaNetSpace])
def test_a_glance_at_a_size_that_changes_nothing_is_no_branch(cls: type) -> None:
    space = cls(width=8, num_cells=3)
    macs = FlopsProfiler(space, X).cost_model
    one_loose = {f"normal/input_{node}_{k}": [node - 1] for node in range(3, 7) for k in range(2)}
    for seed in range(2):
        for sample in (drawn := space.random(random_state=seed), {**drawn, **one_loose}):
            member = space.freeze(sample).eval()
            extra = norms(member)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                member(X)
            assert macs.evaluate(sample) == counter.get_total_flops() // 2 + sum(extra)


def check_bounds(model: CostModel) -> None:
    """The expectation of uniform choices is between the bounds, and random members are."""
    least, most = model.minimum().cost, model.maximum().cost
    p = {label: torch.full((len(v),), 1 / len(v), requires_grad=True) for label, v in model.domain.values.items()}
    rows = torch.stack([torch.randint(len(v), (20_000,)) for v in model.domain.values.values()], 1).numpy()
    costs = model.evaluate(rows)
    assert least <= costs.min()
    assert costs.max() <= most
    assert model.expectation(p).item() == pytest.approx(costs.mean(), abs=5 * costs.std() / 20_000**0.5)
