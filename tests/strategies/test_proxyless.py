"""What is particular to Proxyless; what it shares with GumbelDARTS is tested there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hwnas.evaluators import seeded_loader
from hwnas.strategies import Proxyless


def test_only_the_drawn_path_trains_and_only_two_compete(kit):
    space, strategy = kit.Net(), Proxyless(0.1)
    strategy.mutate_model(space)
    blocks = {"layer_1": space.first, "layer_2": space.second}
    ran: list[tuple[bool, str, str]] = []
    for label, block in blocks.items():
        for name in kit.costs:

            def note(*_: Any, label: str = label, name: str = name) -> None:
                if torch.is_grad_enabled():
                    ran.append((any(p.requires_grad for p in space.parameters()), label, name))

            block.candidate(name).register_forward_hook(note)
    gradients: list[bool] = []

    class Module(kit.Module):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            drawn = {label: name for trains, label, name in ran if trains}
            assert sum(trains for trains, _, _ in ran) == 2
            for label in blocks:
                assert sum(not trains and where == label for trains, where, _ in ran) == 2
            for label, block in blocks.items():
                for name in ("conv3", "conv1"):
                    trained = [p.grad is not None for p in block.candidate(name).parameters()]
                    assert trained == [drawn[label] == name] * len(trained)
                    gradients.append(trained[0])
            ran.clear()

    strategy.run(space, kit.evaluator(Module()))
    assert set(gradients) == {True, False}


@pytest.mark.parametrize("paths", [2, None])
def test_the_third_candidate_stays_as_probable_as_it_was(kit, paths):
    space = kit.Net()
    strategy = Proxyless(0.3, paths=paths, arc_betas=(0.5, 0.999), arc_weight_decay=0.1)
    strategy.mutate_model(space)
    log = []

    def note() -> None:
        log.append([strategy.relaxation.probabilities(label).clone() for label in ("layer_1", "layer_2")])

    evaluator = kit.evaluator(callbacks=[kit.Probe(start=note)])
    strategy.run(space, evaluator, callbacks=[kit.Probe(start=note)])
    for before, after in zip(log[::2], log[1::2], strict=True):
        for old, new in zip(before, after, strict=True):
            moved = int(((old - new).abs() > 1e-6).sum())
            assert moved == (2 if paths == 2 else 3)


def test_the_optimiser_is_that_of_the_paper(kit):
    strategy = Proxyless()
    assert (strategy.paths, strategy.arc_betas, strategy.arc_weight_decay) == (2, (0.0, 0.999), 0.0)


@pytest.mark.parametrize("candidates", [1, 100])
def test_the_argmax_is_preferred(kit, candidates):
    strategy = Proxyless(candidates=candidates)
    strategy.mutate_model(kit.Net())
    with torch.no_grad():
        for alpha, values in zip(strategy.relaxation.parameters(), ([0.1, 0.3, 0.2], [1.0, -1.0, 0.9]), strict=True):
            alpha.copy_(torch.tensor(values))
    for _ in range(10):
        strategy.relaxation.resample({})
        assert strategy.present_sample() == {"layer_1": "conv1", "layer_2": "conv3"}


def test_bad_paths():
    with pytest.raises(ValueError, match="Proxyless: paths is 3"):
        Proxyless(paths=3)


def test_bad_candidates():
    with pytest.raises(ValueError, match="Proxyless: candidates is 0"):
        Proxyless(candidates=0)


def validation_losses(kit, strategy, module):
    """Loss of every member with statistics of its own, by plain PyTorch."""
    train, val = (torch.utils.data.default_collate(list(kit.images(part))) for part in (kit.train, kit.val))
    losses = {}
    for sample in strategy.supernet.grid():
        model = strategy.supernet.freeze(sample)
        norms = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = 1.0
        with torch.no_grad():
            model.train()(train[0])  # one batch of all: its own statistics
            scores = model.eval()(val[0])
        losses[tuple(sample.values())] = float(torch.nn.functional.cross_entropy(scores, val[1]))
    return losses


def run_in_one_batch(kit, **options):
    loaders = {
        name: seeded_loader(kit.images(part), len(part), shuffle=False, seed=1)
        for name, part in (("train_dataloaders", kit.train), ("val_dataloaders", kit.val))
    }
    module, strategy = kit.Module(), Proxyless(0.1, **options)
    strategy.run(kit.Net(), kit.evaluator(module, **loaders, max_epochs=3))
    return strategy, module


def test_the_best_of_the_drawn_members_is_returned(kit):
    strategy, module = run_in_one_batch(kit)
    before = kit.snapshot(strategy.supernet)
    ranking = strategy.ranking()
    losses = validation_losses(kit, strategy, module)
    assert [tuple(member.sample.values()) for member in ranking] == sorted(losses, key=losses.__getitem__)
    assert [-member.score for member in ranking] == pytest.approx(sorted(losses.values()), rel=1e-4)
    assert strategy.best_sample() == ranking[0].sample
    assert strategy.ranking() is ranking
    assert kit.equal(before, kit.snapshot(strategy.supernet))
    assert module.model is strategy.supernet


@pytest.mark.parametrize("aggregate", ["add", "mul"])
def test_the_penalty_counts_where_members_are_scored(kit, aggregate):
    profiler = kit.profiler()
    penalty = {"profiler": profiler, "baseline": 10.0, "scale": 0.5, "aggregate": aggregate}
    strategy, module = run_in_one_batch(kit, penalty=penalty)
    joined = {}
    for values, loss in validation_losses(kit, strategy, module).items():
        relative = (1 + sum(kit.costs[value] for value in values)) / 10
        joined[values] = loss + 0.5 * (relative - 1) if aggregate == "add" else loss * relative**0.5
    assert [-member.score for member in strategy.ranking()] == pytest.approx(sorted(joined.values()), rel=1e-4)


def test_only_as_many_members_as_asked_for_are_scored_and_all_are_within_the_budget(kit):
    profiler = kit.profiler()
    options = {"budget": {"macs": 11.5}, "profilers": profiler}
    few, _ = run_in_one_batch(kit, candidates=3, **options)
    assert len(few.ranking()) == 3
    assert few.present_sample() in [member.sample for member in few.ranking()]
    everything, _ = run_in_one_batch(kit, **options)
    feasible = {tuple(s.values()) for s in everything.supernet.grid() if profiler.profile(s) <= 11.5}
    assert {tuple(member.sample.values()) for member in everything.ranking()} == feasible
    none, _ = run_in_one_batch(kit, candidates=1, **options)
    assert none.best_sample() == none.present_sample()
