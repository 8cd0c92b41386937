"""Scores of single members: those of the frozen member, whatever was scored before, without a trace."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import hwnas.nn as nn
from hwnas.errors import SampleError, TrainingError
from hwnas.evaluators import evaluate_accuracy
from hwnas.space import ExpressionConstraint
from hwnas.strategies import DARTS, GumbelDARTS, Proxyless, RandomOneShot, SubnetSearch, evaluate_subnet, subnet_scores


class Widths(nn.ModelSpace):
    """Choices of layers, width, kernel size, depth and inputs."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([2, 4], label="width")
        self.stem = nn.Conv2d(1, width, nn.ValueChoice([1, 3], label="kernel"), padding="same")
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Repeat(
            lambda i: nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)), (1, 2), label="depth"
        )
        self.inputs = nn.InputChoice(2, n_chosen=1, label="inputs")
        self.layer = nn.LayerChoice(
            [nn.Identity(), nn.Linear(width, nn.ValueChoice([3, 5], label="inside")), nn.Linear(width, 3)],
            label="layer",
        )
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = self.inputs([x, self.blocks(x)])
        return self.layer(self.drop(x.mean((2, 3))))


def data(seed: int, n: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(6, 1, 5, 5, generator=generator) + i, torch.randint(0, 2, (6,), generator=generator))
        for i in range(n)
    ]


def loss(model: nn.Module, batches: Any) -> float:
    return -float(sum(F.cross_entropy(model(x), y) for x, y in batches))


def used(strategy: Any, space: Any) -> Any:
    """A super-net whose running statistics are those of no member."""
    torch.manual_seed(0)
    strategy.mutate_model(space)
    rng = torch.Generator().manual_seed(1)
    for _ in range(8):
        strategy.relaxation.resample(space.random(random_state=int(torch.randint(99, (1,), generator=rng))))
        space(torch.randn(4, 1, 5, 5, generator=rng) * 3 + 2)
    return space


def samples(space: Any, n: int = 12) -> list[dict[str, Any]]:
    return [space.random(random_state=seed) for seed in range(n)]


def by_hand(space: Any, sample: dict[str, Any], train: Any, val: Any) -> float:
    """Freeze, reset, run the training batches in training mode without dropout, score."""
    model = space.freeze(sample)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for x, _ in train:
            model(x)
        model.eval()
        return loss(model, val)


def test_the_score_is_that_of_the_frozen_member_with_its_own_statistics():
    space, train, val = used(RandomOneShot(), Widths()), data(0), data(1)
    found = [
        evaluate_subnet(space, sample, train_batches=train, val_batches=val, metric=loss) for sample in samples(space)
    ]
    expected = [by_hand(space, sample, train, val) for sample in samples(space)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert len({round(score, 4) for score in found}) > 8
    two = evaluate_subnet(space, samples(space)[0], train_batches=train, val_batches=val, metric=loss, recalibrate=2)
    assert two == pytest.approx(by_hand(space, samples(space)[0], train[:2], val), rel=1e-5)
    assert two != pytest.approx(found[0], rel=1e-5)


def test_statistics_may_stay_as_they_are():
    space, val = used(RandomOneShot(), Widths()), data(1)
    for sample in samples(space, 3):
        model = space.freeze(sample).eval()
        with torch.no_grad():
            expected = loss(model, val)
        found = evaluate_subnet(space, sample, val_batches=val, metric=loss, recalibrate=False)
        assert found == pytest.approx(expected, rel=1e-5)


def test_no_trace_is_left(kit):
    strategy = RandomOneShot()
    space = used(strategy, Widths())
    space.norm.eval()
    F.cross_entropy(space(data(3)[0][0]), data(3)[0][1]).backward()
    before = kit.snapshot(space)
    modes = [module.training for module in space.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in space.parameters()]
    present, random_state = dict(strategy.relaxation.sample), torch.random.get_rng_state()
    tensors = [id(tensor) for tensor in (*space.parameters(), *space.buffers())]

    def careless(model: nn.Module, batches: Any) -> float:
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in model.modules())
        model.train()
        return loss(model, batches) + float(torch.rand(()))

    for metric, error in ((careless, None), (lambda *_: math.nan, TrainingError), (lambda *_: {}["x"], KeyError)):
        for recalibrate in (True, False):
            for sample in samples(space, 2):
                arguments = {
                    "train_batches": data(0),
                    "val_batches": data(1),
                    "metric": metric,
                    "recalibrate": recalibrate,
                }
                if error is None:
                    evaluate_subnet(space, sample, **arguments)
                else:
                    with pytest.raises(error):
                        evaluate_subnet(space, sample, **arguments)
                assert kit.equal(kit.snapshot(space), before)
                assert [module.training for module in space.modules()] == modes
                assert strategy.relaxation.sample == present
    for parameter, gradient in zip(space.parameters(), gradients, strict=True):
        assert (parameter.grad is None and gradient is None) or torch.equal(parameter.grad, gradient)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert [id(tensor) for tensor in (*space.parameters(), *space.buffers())] == tensors


def test_scores_do_not_depend_on_the_order():
    space = used(RandomOneShot(), Widths())
    members = samples(space, 6)
    arguments = {
        "train_batches": data(0),
        "val_batches": data(1),
        "metric": lambda *a: loss(*a) + float(torch.rand(())),
    }
    one_by_one = [evaluate_subnet(space, sample, **arguments) for sample in members]
    with subnet_scores(space, **arguments) as score:
        assert [score(sample) for sample in members] == one_by_one
        assert [score(sample) for sample in reversed(members)] == one_by_one[::-1]


@pytest.mark.parametrize("strategy", [DARTS, GumbelDARTS, Proxyless])
def test_differentiable_supernets(kit, strategy):
    """Their forward pass mixes members, so the member is frozen."""
    made = strategy()
    made.run(kit.Net(), kit.evaluator())
    space, evaluator = made.supernet, made.evaluator
    logits = [parameter.clone() for parameter in made.relaxation.parameters()]
    before, random_state = kit.snapshot(space), torch.random.get_rng_state()
    train, val = list(evaluator.train_dataloaders), list(evaluator.val_dataloaders)
    for sample in samples(space, 4):
        found = evaluate_subnet(space, sample, train_batches=train, val_batches=val, metric=loss)
        assert found == pytest.approx(by_hand(space, sample, train, val), rel=1e-5)
    assert kit.equal(kit.snapshot(space), before)
    assert all(torch.equal(a, b) for a, b in zip(made.relaxation.parameters(), logits, strict=True))
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_members_with_sliced_weights_of_a_differentiable_supernet():
    space = DARTS().mutate_model(Widths())
    random_state = torch.random.get_rng_state()
    for sample in samples(space, 3):
        found = evaluate_subnet(space, sample, train_batches=data(0), val_batches=data(1), metric=loss)
        assert torch.equal(torch.random.get_rng_state(), random_state)
        assert found == pytest.approx(by_hand(space, sample, data(0), data(1)), rel=1e-5)
        torch.random.set_rng_state(random_state)  # freezing by hand may draw


def test_the_search_gives_the_same_scores(kit):
    strategy = RandomOneShot(search=SubnetSearch(max_recalibration_batches=3))
    strategy.run(kit.Net(), kit.evaluator(max_epochs=3))
    evaluator = strategy.evaluator
    for member in strategy.ranking():
        score = evaluate_subnet(
            strategy.supernet,
            member.sample,
            train_batches=evaluator.train_dataloaders,
            val_batches=evaluator.val_dataloaders,
            recalibrate=3,
        )
        assert score == member.score


def test_loaders_lists_and_iterators_of_batches(kit):
    strategy = RandomOneShot()
    strategy.run(kit.Net(), kit.evaluator())
    train, val = strategy.evaluator.train_dataloaders, strategy.evaluator.val_dataloaders
    sample = strategy.supernet.default()
    expected = evaluate_subnet(strategy.supernet, sample, train_batches=train, val_batches=val, metric=loss)
    train.sampler.set_epoch(0)
    val.sampler.set_epoch(0)
    for form in (list, lambda loader: iter(list(loader))):
        found = evaluate_subnet(
            strategy.supernet, sample, train_batches=form(train), val_batches=form(val), metric=loss
        )
        assert found == pytest.approx(expected, rel=1e-6)


def test_accuracy_is_the_default_metric():
    space, val = used(RandomOneShot(), Widths()), data(1)
    sample = samples(space)[0]
    model = space.freeze(sample).eval()
    assert evaluate_subnet(space, sample, val_batches=val, recalibrate=False) == evaluate_accuracy(model, val)


def test_inactive_labels_may_be_missing_and_others_not():
    space = used(RandomOneShot(), Widths())
    whole = {"width": 2, "kernel": 1, "depth": 1, "inputs": [0], "layer": 2, "inside": 5}
    arguments = {"train_batches": data(0), "val_batches": data(1), "metric": loss}
    without = {label: value for label, value in whole.items() if label != "inside"}
    assert evaluate_subnet(space, without, **arguments) == evaluate_subnet(space, whole, **arguments)
    with pytest.raises(SampleError, match="inside"):
        evaluate_subnet(space, {**without, "layer": 1}, **arguments)
    with pytest.raises(SampleError, match="width"):
        evaluate_subnet(space, {**whole, "width": 3}, **arguments)


def test_members_that_violate_a_constraint_are_refused(kit):
    space = kit.Net()
    space.add_mutable(ExpressionConstraint(space.first.choice != space.second.choice))
    RandomOneShot().mutate_model(space)
    with pytest.raises(SampleError, match="does not hold"):
        evaluate_subnet(space, {"layer_1": "skip", "layer_2": "skip"}, val_batches=data(1), recalibrate=False)


def test_bad_arguments(kit):
    with pytest.raises(TypeError, match="this Net is no super-net"):
        evaluate_subnet(kit.Net(), {}, val_batches=data(1))
    space = used(RandomOneShot(), Widths())
    sample = samples(space)[0]
    with pytest.raises(ValueError, match="no train_batches"):
        evaluate_subnet(space, sample, val_batches=data(1))
    with pytest.raises(ValueError, match="recalibrate is 0"):
        evaluate_subnet(space, sample, train_batches=data(0), val_batches=data(1), recalibrate=0)
    with pytest.raises(TrainingError, match="gave no batches"):
        evaluate_subnet(space, sample, train_batches=data(0), val_batches=[])
    with pytest.raises(TrainingError, match=r"the metric of the member \{.*\} is not a number"):
        evaluate_subnet(space, sample, train_batches=data(0), val_batches=data(1), metric=lambda *_: math.nan)
