"""What every strategy with shared weights checks, and how it goes on later."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import hwnas.nn as nn
from hwnas.errors import TrainingError
from hwnas.evaluators import FunctionalEvaluator
from hwnas.space import Categorical, ExpressionConstraint
from hwnas.strategies import DARTS, GumbelDARTS, OneShotCallback, Proxyless, RandomOneShot, SubnetSearch
from hwnas.supernet import MixedLayer, is_supernet

STRATEGIES = [DARTS, RandomOneShot]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_space_becomes_a_supernet_in_place(kit, strategy):
    space, made = kit.Net(), strategy()
    labels = list(space.simplify())
    assert made.mutate_model(space) is space is made.supernet
    assert is_supernet(space)
    assert list(space.simplify()) == labels
    ours = {id(parameter) for parameter in made.relaxation.parameters()}
    assert not ours & {id(parameter) for parameter in space.parameters()}
    with pytest.raises(TypeError, match="super-net already"):
        strategy().mutate_model(space)


def test_what_is_no_space(kit):
    with pytest.raises(TypeError, match=r"expected a hwnas.nn.ModelSpace, got a Linear"):
        DARTS().mutate_model(torch.nn.Linear(1, 1))

    class Plain(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

    with pytest.raises(ValueError, match="has no choices"):
        DARTS().mutate_model(Plain())


def test_order_of_hooks(kit):
    calls: list[str] = []

    def hook(name: str, stop: bool = False) -> Any:
        def call(module: nn.Module, path: str, memo: dict, kwargs: dict) -> Any:
            if isinstance(module, nn.LayerChoice) and path == "first":
                calls.append(name)
                assert kwargs["relaxation"] is not None
            return False

        return call

    class Extra(kit.Net):
        def extra_oneshot_hooks(self, strategy: Any) -> list:
            assert isinstance(strategy, DARTS)
            return [hook("space")]

    class Strategy(DARTS):
        def default_mutation_hooks(self) -> list:
            return [hook("default"), *super().default_mutation_hooks()]

    space = Extra()
    Strategy(mutation_hooks=[hook("given")]).mutate_model(space)
    assert calls == ["given", "space", "default"]
    assert isinstance(space.first, MixedLayer)


def test_evaluators_that_cannot_train_a_supernet(kit):
    strategy = DARTS()
    with pytest.raises(TypeError, match=r"FunctionalEvaluator.*needs hwnas.evaluators.Lightning"):
        strategy.run(kit.Net(), FunctionalEvaluator(lambda model: 0.0))
    for name in ("train_dataloaders", "val_dataloaders"):
        with pytest.raises(ValueError, match=f"has no {name}"):
            strategy.run(kit.Net(), kit.evaluator(**{name: None}))
    loader = kit.evaluator().train_dataloaders
    with pytest.raises(ValueError, match="are one object"):
        strategy.run(kit.Net(), kit.evaluator(train_dataloaders=loader, val_dataloaders=loader))
    with pytest.raises(ValueError, match="expected one loader, got a list of 2"):
        strategy.run(kit.Net(), kit.evaluator(val_dataloaders=[loader, loader]))
    module = kit.Module()
    module.learning_rate = Categorical([0.1, 0.2], label="lr")
    with pytest.raises(ValueError, match=r"holds choices \(learning_rate\)"):
        strategy.run(kit.Net(), kit.evaluator(module))
    with pytest.raises(ValueError, match=r"holds choices \(criterion\)"):
        strategy.run(kit.Net(), kit.evaluator(kit.Module(criterion=kit.Net())))
    space = kit.Net()
    with pytest.raises(TypeError):
        strategy.run(space, None)
    assert not is_supernet(space)


def test_a_module_that_was_used_before_is_fine(kit):
    evaluator = kit.evaluator()
    for strategy in (DARTS(), DARTS()):
        strategy.run(kit.Net(), evaluator)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_before_the_run(strategy):
    made = strategy()
    for ask in (lambda: made.supernet, lambda: made.relaxation, lambda: made.evaluator, made.best_sample):
        with pytest.raises(RuntimeError, match="has not searched yet"):
            ask()
    assert made.state_dict() == {}
    with pytest.raises(ValueError, match="limit is 0"):
        made.list_models(0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_models_are_plain_and_have_the_weights_of_the_supernet(kit, strategy):
    made, space = strategy(), kit.Net()
    made.run(space, kit.evaluator())
    models = list(made.list_models(3))
    assert len(models) == 3
    for model in models:
        assert all("hwnas" not in type(module).__module__ for module in model.modules())
        assert torch.equal(model.head.weight, space.head.weight)
        assert model.head.weight is not space.head.weight
    (best,) = made.list_models()
    twin = space.freeze(made.best_sample())
    assert [type(m) for m in best.modules()] == [type(m) for m in twin.modules()]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_state_points_at_the_last_checkpoint(kit, strategy, tmp_path):
    first = strategy()
    first.run(kit.Net(), kit.evaluator(max_epochs=2), callbacks=[ModelCheckpoint(tmp_path)])
    state = first.state_dict()
    assert state == {"ckpt_path": str(tmp_path / "epoch=1-step=12.ckpt")}

    module = kit.Module()
    second = strategy()
    second.load_state_dict(state)
    assert second.state_dict() == state
    second.run(kit.Net(), kit.evaluator(module, max_epochs=3), callbacks=[ModelCheckpoint(tmp_path)])
    assert len(module.seen["weights"]) == 24  # the third epoch alone
    assert second.state_dict() == {"ckpt_path": str(tmp_path / "epoch=2-step=18.ckpt")}


def test_state_while_the_search_runs(kit, tmp_path):
    strategy, states = DARTS(), []
    strategy.run(
        kit.Net(),
        kit.evaluator(max_epochs=2),
        callbacks=[ModelCheckpoint(tmp_path), kit.Probe(end=lambda: states.append(strategy.state_dict()))],
    )
    assert states[5] == {}
    assert states[6] == {"ckpt_path": str(tmp_path / "epoch=0-step=6.ckpt")}


def test_training_goes_on_with_the_same_supernet(kit):
    space, strategy = kit.Net(), RandomOneShot(search=SubnetSearch(evaluations=2))
    strategy.run(space, kit.evaluator())
    before = strategy.ranking()
    strategy.run(space, kit.evaluator())
    assert strategy.ranking() is not before


def test_checkpoints_of_something_else(kit, tmp_path):
    DARTS().run(kit.Net(), kit.evaluator(), callbacks=[ModelCheckpoint(tmp_path)])
    (path,) = tmp_path.glob("*.ckpt")

    class Other(DARTS):
        pass

    with (
        pytest.raises(TrainingError, match=r"no state of hwnas.Other; it has states of .*hwnas.DARTS"),
        pytest.warns(UserWarning, match="callbacks used to create the checkpoint"),
    ):
        Other().run(kit.Net(), kit.evaluator(max_epochs=2), callbacks=[ModelCheckpoint(tmp_path)], ckpt_path=path)

    class Renamed(kit.Net):
        def __init__(self) -> None:
            super().__init__()
            for old, new in (("first", "one"), ("second", "two")):
                choice = getattr(self, old)
                setattr(self, old, nn.LayerChoice(dict(zip(choice.names, choice, strict=True)), label=new))

    with pytest.raises(
        TrainingError, match=r"over the labels \['layer_1', 'layer_2'\], this space has \['one', 'two'\]"
    ):
        DARTS().run(Renamed(), kit.evaluator(max_epochs=2), callbacks=[ModelCheckpoint(tmp_path)], ckpt_path=path)


@pytest.mark.parametrize(
    ("kind", "options"), [(Proxyless, {"paths": 2}), (Proxyless, {"paths": None}), (GumbelDARTS, {"hard": True})]
)
@pytest.mark.parametrize("left", [[5.0, 0.0, 0.0], [-1e3, 0.0, 0.0]], ids=["drawn again", "given a member"])
def test_what_is_drawn_meets_the_constraints(kit, kind, options, left):
    space, strategy = kit.Net(), kind(**options)
    first, second = space.first.choice, space.second.choice
    space.add_mutable(ExpressionConstraint((first == "conv3") & (second != "conv3")))
    strategy.mutate_model(space)
    callback, trainer = OneShotCallback(strategy), SimpleNamespace(world_size=1, global_rank=0, global_step=0)
    strategy.relaxation.requires_grad_(False)  # as in the step of the weights
    with torch.no_grad():
        strategy.relaxation.alphas[0].copy_(torch.tensor(left))
    seconds = set()
    for _ in range(40):
        callback.resample(trainer, {})
        drawn = [strategy.relaxation.mixture(choice).values for choice in (first, second)]
        assert drawn[0] == ("conv3",)
        assert len(drawn[1]) == 1
        seconds |= set(drawn[1])
        trainer.global_step += 1
    assert seconds == {"conv1", "skip"}
