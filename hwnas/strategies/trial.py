"""`Trial`: a member that has been tried; and what is kept of trials for going on later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hwnas.errors import SampleError
from hwnas.space import Sample, sample_from_json, sample_to_json
from hwnas.strategies.architecture_key import Key, architecture_key
from hwnas.strategies.feasible import FeasibleSampler


@dataclass(frozen=True)
class Trial:
    """A member that has been tried.

    Parameters
    ----------
    number : int
        Its place in the history, from 0.
    sample : dict
        A value for each label.
    score : float or None
        The metric of the evaluator; None when the trial failed.
    cost : float or None
        In the unit of the profiler of the filter; None without one.
    key : tuple
        See `hwnas.strategies.architecture_key`.
    error : str or None
        Why it failed.
    """

    number: int
    sample: Sample
    score: float | None
    cost: float | None
    key: Key
    error: str | None = None


class Outcome(NamedTuple):
    """What the evaluator made of an architecture: a score, or why there is none."""

    sample: Sample
    score: float | None
    error: str | None


def outcomes_to_state(outcomes: Mapping[Key, Outcome]) -> dict[str, Any]:
    """Write outcomes in JSON types."""
    return {
        "trials": [
            {"sample": sample_to_json(sample), "score": score, "error": error}
            for sample, score, error in outcomes.values()
        ]
    }


def check_state(state: Any) -> None:
    """Raise unless something has the form of what `outcomes_to_state` gives; an empty mapping will do.

    Raises
    ------
    ValueError
        With the beginning of what was got.
    """
    trials = state.get("trials", []) if isinstance(state, Mapping) else None
    wanted = set(Outcome._fields)
    if not isinstance(trials, list) or not all(isinstance(trial, Mapping) and wanted <= set(trial) for trial in trials):
        raise ValueError(f"{str(state)[:80]!r} is no state of a search; expected what state_dict() gave")


def outcomes_from_state(state: Mapping[str, Any], sampler: FeasibleSampler) -> dict[Key, Outcome]:
    """Read what `outcomes_to_state` wrote.

    Parameters
    ----------
    state : dict
        That `check_state` has looked at.
    sampler : FeasibleSampler
        Of the space.

    Raises
    ------
    SampleError
        When the outcomes are of another space.
    """
    found: dict[Key, Outcome] = {}
    for trial in state.get("trials", ()):
        sample = sample_from_json(trial["sample"], sampler.space)
        labels, here = sorted(trial["sample"]["sample"]), sorted(map(str, sampler.dimensions))
        if labels != here:
            raise SampleError(
                f"the state is of a search over the labels {labels}, this space has {here}. Construct the space with "
                "the code that the state was made with"
            )
        key = architecture_key(sampler.space, sampler.dimensions, sample)
        found[key] = Outcome(sample, trial["score"], trial["error"])
    return found
