"""A space, an evaluator and a strategy in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hwnas.nn as nn
from hwnas.evaluators import FunctionalEvaluator
from hwnas.experiment import NasExperiment
from hwnas.strategies import RandomOneShot, RegularizedEvolution, Strategy


class Widths(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, nn.ValueChoice([1, 2, 3, 4], label="width"))


WIDTH = FunctionalEvaluator(lambda model: model.layer.out_features)


def test_run_and_results() -> None:
    space, strategy = Widths(), RegularizedEvolution()
    experiment = NasExperiment(space, WIDTH, strategy)
    assert (experiment.model_space, experiment.evaluator, experiment.strategy) == (space, WIDTH, strategy)
    assert experiment.run() is None
    assert experiment.best_sample() == {"width": 4}
    assert [model.layer.out_features for model in experiment.export_top_models(3)] == [4, 3, 2]
    assert [model.layer.out_features for model in experiment.export_top_models()] == [4]
    assert type(experiment.export_top_models()[0].layer) is torch.nn.Linear


def test_results_need_a_run() -> None:
    experiment = NasExperiment(Widths(), WIDTH, RegularizedEvolution())
    with pytest.raises(RuntimeError, match=r"has not searched yet"):
        experiment.export_top_models()
    with pytest.raises(RuntimeError, match=r"has not searched yet"):
        experiment.best_sample()


def test_everything_reaches_the_strategy(tmp_path: Path) -> None:
    class Noted(RegularizedEvolution):
        def run(self, *args: Any, **kwargs: Any) -> None:
            self.given = args, kwargs

    strategy, space = Noted(), Widths()
    NasExperiment(space, WIDTH, strategy).run(callbacks=["callback"], ckpt_path=tmp_path)  # type: ignore[list-item]
    assert strategy.given == ((space, WIDTH), {"callbacks": ["callback"], "ckpt_path": tmp_path})


def test_going_on(tmp_path: Path) -> None:
    first = RegularizedEvolution(evaluations=2, population=2)
    NasExperiment(Widths(), WIDTH, first).run()
    (tmp_path / "state.json").write_text(json.dumps(first.state_dict()))
    calls: list[int] = []
    counting = FunctionalEvaluator(lambda model: calls.append(1) or model.layer.out_features)
    NasExperiment(Widths(), counting, RegularizedEvolution(population=2)).run(ckpt_path=tmp_path / "state.json")
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (nn.Linear(1, 1), WIDTH, RegularizedEvolution()),
            r"model_space is a Linear; expected an instance of ModelSpace",
        ),
        ((Widths, WIDTH, RegularizedEvolution()), r"model_space is the class Widths itself; .* ModelSpace"),
        ((Widths(), len, RegularizedEvolution()), r"evaluator is a builtin_function_or_method; .* Evaluator"),
        ((Widths(), WIDTH, RandomOneShot), r"strategy is the class RandomOneShot itself; .* Strategy"),
    ],
)
def test_wrong_types(arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        NasExperiment(*arguments)
    assert not isinstance(RandomOneShot, Strategy)
