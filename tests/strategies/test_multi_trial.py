"""What every strategy with trials does: each architecture once, failures, ranking, going on later."""

from __future__ import annotations

import itertools
import json
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import hwnas.nn as nn
from hwnas.errors import SampleError, TrainingError
from hwnas.evaluators import FunctionalEvaluator
from hwnas.profilers.filters import RangeProfilerFilter
from hwnas.space import Sample
from hwnas.strategies import MultiTrialStrategy, Trial


class Listed(MultiTrialStrategy):
    """Tries what it is given."""

    def __init__(self, samples: Iterable[Sample], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.samples = samples
        self.answers: list[Trial] = []

    def proposals(self, sampler: Any) -> Generator[Sample, Trial, None]:
        for sample in self.samples:
            self.answers.append((yield sample))


class Pair(nn.ModelSpace):
    """Two numbers; the second has an effect only where the first is not 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ValueChoice([0, 1, 2], label="a")
        inner = nn.Linear(1, nn.ValueChoice([1, 2, 3], label="b"))
        self.layer = nn.LayerChoice([nn.Identity(), inner], label="layer")


def pair(a: int, b: int, layer: int = 1) -> Sample:
    return {"a": a, "b": b, "layer": layer}


class Score(FunctionalEvaluator):
    """10 a + b, or what a dictionary says; counts its calls."""

    def __init__(self, exceptions: dict[int, Any] | None = None) -> None:
        self.asked: list[int] = []

        def function(model: Any) -> float:
            value = 10 * model.a() + getattr(model.layer, "out_features", 0)
            self.asked.append(value)
            found = (exceptions or {}).get(value, value)
            if isinstance(found, BaseException):
                raise found
            return float(found)

        super().__init__(function)


ALL = [pair(a, b) for a in range(3) for b in (1, 2, 3)]


def test_history_and_ranking() -> None:
    heard: list[Any] = []
    strategy = Listed(ALL[:4], evaluations=10, on_evaluation=lambda *event: heard.append(event))
    evaluator = Score()
    strategy.run(Pair(), evaluator)
    assert evaluator.asked == [1, 2, 3, 11]
    trials = strategy.trials()
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert [trial.sample for trial in trials] == ALL[:4]
    assert heard == [(trial, trial.number + 1, 10) for trial in trials]
    # The generator ends when it is told of the last one.
    assert strategy.answers == trials
    assert [trial.score for trial in strategy.ranking()] == [11, 3, 2, 1]
    assert strategy.best_sample() == pair(1, 1)
    assert [model.layer.out_features for model in strategy.list_models(2)] == [1, 3]


def test_least_is_best() -> None:
    strategy = Listed(ALL, mode="min")
    strategy.run(Pair(), Score())
    assert [trial.score for trial in strategy.ranking()][:2] == [1, 2]
    assert strategy.best_sample() == pair(0, 1)


def test_cost_decides_between_equals(kit: Any) -> None:
    chosen = [{"layer_1": first, "layer_2": "skip"} for first in kit.costs]
    strategy = Listed(chosen, filter={"profiler": kit.profiler(), "max": 100})
    strategy.run(kit.Net(), FunctionalEvaluator(lambda model: 1.0))
    assert [trial.cost for trial in strategy.ranking()] == [1.0, 3.0, 10.0]
    assert isinstance(strategy.filter, RangeProfilerFilter)


def test_each_architecture_is_evaluated_once() -> None:
    samples = [pair(1, 1, layer=0), pair(1, 2, layer=0), pair(1, 2), pair(1, 1, layer=0)]
    strategy, evaluator = Listed(samples), Score()
    strategy.run(Pair(), evaluator)
    assert evaluator.asked == [10, 12]
    assert [trial.number for trial in strategy.answers] == [0, 0, 1, 0]
    assert strategy.answers[1].sample == samples[0]


def test_the_budget_counts_evaluations() -> None:
    strategy, evaluator = Listed(itertools.cycle(ALL[:1] + ALL), evaluations=4), Score()
    strategy.run(Pair(), evaluator)
    assert len(evaluator.asked) == len(strategy.trials()) == 4


def test_it_ends_when_nothing_new_comes() -> None:
    strategy = Listed(itertools.cycle(ALL[:2]))
    strategy.run(Pair(), Score())
    assert len(strategy.trials()) == 2


def test_failures_are_recorded(caplog: pytest.LogCaptureFixture) -> None:
    faults = {1: TrainingError("diverged"), 2: float("nan"), 3: float("inf"), 12: SampleError("odd")}
    strategy = Listed(ALL)
    strategy.run(Pair(), Score(faults))
    errors = {trial.number: trial.error for trial in strategy.trials() if trial.score is None}
    assert list(errors) == [0, 1, 2, 4]
    assert errors[0] == "TrainingError: diverged"
    assert errors[1] == "the score is nan; expected a finite number"
    assert [trial.score for trial in strategy.ranking()] == [23, 22, 21, 13, 11]
    assert "trial 0 failed: TrainingError: diverged" in caplog.messages


def test_it_stops_when_everything_fails_at_the_start() -> None:
    faults = {value: TrainingError(f"no {value}") for value in range(30)}
    evaluator = Score(faults)
    strategy = Listed(ALL, probation=3)
    with pytest.raises(TrainingError, match=r"all of the 3 members that were tried failed; .* no 3"):
        strategy.run(Pair(), evaluator)
    assert len(evaluator.asked) == 3
    with pytest.raises(RuntimeError, match=r"no trial has succeeded"):
        strategy.best_sample()
    with pytest.raises(TrainingError, match=r"all of the 9 members"):
        Listed(ALL, probation=10).run(Pair(), Score(faults))


def test_one_success_is_enough() -> None:
    faults = {value: TrainingError("no") for value in range(30) if value != 2}
    strategy = Listed(ALL, probation=3)
    strategy.run(Pair(), Score(faults))
    assert len(strategy.trials()) == 9


def test_other_exceptions_end_the_search_and_lose_nothing() -> None:
    strategy = Listed(ALL)
    with pytest.raises(ZeroDivisionError):
        strategy.run(Pair(), Score({11: ZeroDivisionError()}))
    assert [trial["score"] for trial in strategy.state_dict()["trials"]] == [1, 2, 3]


def test_going_on(tmp_path: Path) -> None:
    stopped = Listed(ALL)
    with pytest.raises(KeyboardInterrupt):
        stopped.run(Pair(), Score({2: TrainingError("diverged"), 12: KeyboardInterrupt()}))
    text = json.dumps(stopped.state_dict(), allow_nan=False)
    whole = Listed(ALL)
    whole.run(Pair(), Score({2: TrainingError("diverged")}))

    by_state, evaluator, heard = Listed(ALL, on_evaluation=lambda *event: heard.append(event)), Score(), []
    by_state.load_state_dict(json.loads(text))
    assert by_state.state_dict() == json.loads(text)
    by_state.run(Pair(), evaluator)
    assert evaluator.asked == [12, 13, 21, 22, 23]
    assert len(heard) == 5
    assert by_state.trials() == whole.trials()
    assert by_state.state_dict() == whole.state_dict()

    (tmp_path / "state.json").write_text(text)
    by_file, evaluator = Listed(ALL), Score()
    by_file.run(Pair(), evaluator, ckpt_path=tmp_path / "state.json")
    assert by_file.trials() == whole.trials()
    assert len(evaluator.asked) == 5
    # A state is for one run.
    by_file.run(Pair(), evaluator)
    assert len(evaluator.asked) == 5 + 9


def test_interrupted_before_everything_is_replayed() -> None:
    first = Listed(ALL[:4])
    first.run(Pair(), Score())
    second = Listed([ALL[0], ALL[8]])
    second.load_state_dict(first.state_dict())
    with pytest.raises(KeyboardInterrupt):
        second.run(Pair(), Score({23: KeyboardInterrupt()}))
    assert second.state_dict() == first.state_dict()


def test_a_larger_budget_goes_further() -> None:
    small, large, evaluator = Listed(ALL, evaluations=3), Listed(ALL, evaluations=5), Score()
    small.run(Pair(), evaluator)
    large.load_state_dict(small.state_dict())
    large.run(Pair(), evaluator)
    assert evaluator.asked == [1, 2, 3, 11, 12]


def test_states_that_do_not_belong() -> None:
    strategy = Listed(ALL)
    for wrong in ([], {"trials": [{"sample": {}}]}, {"trials": 3}):
        with pytest.raises(ValueError, match=r"no state of a search"):
            strategy.load_state_dict(wrong)  # type: ignore[arg-type]
    strategy.load_state_dict({})
    strategy.run(Pair(), Score())

    class More(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.ValueChoice([0, 1], label="c")

    class Other(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.ValueChoice([5, 6], label="a")

    larger = Listed([pair(0, 1) | {"c": 0}])
    larger.run(More(), FunctionalEvaluator(lambda model: 0.0))
    for state, space in ((strategy.state_dict(), Other()), (larger.state_dict(), Pair())):
        resumed = Listed(ALL)
        resumed.load_state_dict(state)
        with pytest.raises(SampleError):
            resumed.run(space, Score())


def test_draws_do_not_depend_on_what_was_evaluated_before() -> None:
    space, scores = Pair(), []
    state = torch.random.get_rng_state()
    for samples in (ALL, ALL[::-1]):
        strategy = Listed(samples, seed=3)
        strategy.run(space, FunctionalEvaluator(lambda model: torch.rand(())))
        scores.append({trial.key: trial.score for trial in strategy.trials()})
    assert scores[0] == scores[1]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_models_are_those_that_were_evaluated() -> None:
    seen: list[Any] = []

    def score(model: nn.Module) -> float:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return float(model.layer.out_features)

    strategy = Listed(ALL[:3])
    strategy.run(Pair(), FunctionalEvaluator(score))
    for model, weights in zip(strategy.list_models(3), seen[::-1], strict=True):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_choices_of_the_evaluator_are_searched_too() -> None:
    class Width(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, nn.ValueChoice([1, 2], label="width"))

    def product(model: Any, rate: int) -> int:
        return model.layer.out_features * rate

    evaluator = FunctionalEvaluator(product, rate=nn.ValueChoice([5, 7], label="rate"))
    strategy = Listed([{"width": width, "rate": rate} for width in (1, 2) for rate in (5, 7)])
    strategy.run(Width(), evaluator)
    assert [trial.score for trial in strategy.trials()] == [5, 7, 10, 14]
    assert next(strategy.list_models()).layer.out_features == 2
    again = Listed([strategy.best_sample()])
    again.load_state_dict(strategy.state_dict())
    again.run(Width(), evaluator)
    assert again.best_sample() == {"width": 2, "rate": 7}


def test_callbacks_reach_the_trainer(kit: Any) -> None:
    started: list[int] = []
    own = kit.Probe(start=lambda: started.append(1))
    further = kit.Probe(start=lambda: started.append(2))
    samples = [{"layer_1": "skip", "layer_2": name} for name in ("skip", "conv1")]
    evaluator = kit.evaluator(callbacks=own, limit_train_batches=1)
    Listed(samples).run(kit.Net(), evaluator, callbacks=[further])
    assert started == [1, 2, 1, 2]
    Listed(samples).run(kit.Net(), evaluator)
    assert started == [1, 2, 1, 2, 1, 1]
    with pytest.raises(TypeError, match=r"callbacks are for hwnas.evaluators.Lightning"):
        Listed(ALL).run(Pair(), Score(), callbacks=[further])


def test_wrong_arguments() -> None:
    for arguments, message in (
        ({"evaluations": 0}, r"Listed: evaluations is 0"),
        ({"mode": "maximize"}, r"Listed: mode is 'maximize'; expected 'max' or 'min'"),
        ({"max_recalibration_batches": -1}, r"max_recalibration_batches is -1"),
        ({"seed": -1}, r"seed is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            Listed(ALL, **arguments)
    strategy = Listed(ALL)
    with pytest.raises(RuntimeError, match=r"has not searched yet"):
        strategy.ranking()
    with pytest.raises(RuntimeError, match=r"has not searched yet"):
        strategy.freeze(ALL[0])
    with pytest.raises(TypeError, match=r"expected a hwnas.nn.ModelSpace, got a Linear"):
        strategy.run(nn.Linear(1, 1), Score())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Wrap a function in FunctionalEvaluator"):
        strategy.run(Pair(), len)  # type: ignore[arg-type]

    class Fixed(nn.ModelSpace):
        """Decides nothing."""

    with pytest.raises(ValueError, match=r"this Fixed has no choices"):
        strategy.run(Fixed(), Score())
    strategy.run(Pair(), Score())
    with pytest.raises(ValueError, match=r"limit is 0"):
        strategy.list_models(0)
