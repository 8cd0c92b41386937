"""What is particular to Proxyless; what it shares with GumbelDARTS is tested there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

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


def test_every_export_is_the_argmax(kit):
    strategy = Proxyless()
    strategy.mutate_model(kit.Net())
    with torch.no_grad():
        for alpha, values in zip(strategy.relaxation.parameters(), ([0.1, 0.3, 0.2], [1.0, -1.0, 0.9]), strict=True):
            alpha.copy_(torch.tensor(values))
    for _ in range(10):
        strategy.relaxation.resample({})
        assert strategy.best_sample() == {"layer_1": "conv1", "layer_2": "conv3"}


def test_bad_paths():
    with pytest.raises(ValueError, match="Proxyless: paths is 3"):
        Proxyless(paths=3)
