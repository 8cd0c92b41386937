"""Budgets: upper limits on costs that hold for what a strategy returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Protocol, runtime_checkable

from torch import Tensor

from hwnas.errors import BudgetError
from hwnas.evaluators import Evaluator, Lightning
from hwnas.nn import ModelSpace
from hwnas.profilers.filters import AllOf, RangeProfilerFilter, quantile_of_confidence
from hwnas.profilers.flops import FlopsProfiler
from hwnas.profilers.latency import OnnxRuntimeLatencyProfiler
from hwnas.profilers.measurement import Measurement
from hwnas.profilers.parameters import NumParamsProfiler
from hwnas.profilers.profiler import Profiler
from hwnas.space import Sample
from hwnas.strategies.batches import load_batches, single_loader
from hwnas.supernet import is_supernet

BUILT: Mapping[str, Callable[[ModelSpace, Tensor], Profiler]] = {
    "macs": FlopsProfiler,
    "parameters": NumParamsProfiler,
    "latency_ms": OnnxRuntimeLatencyProfiler,
}
"""Costs whose profiler is built from the space and one sample when none is given."""

TO_SPARE = 0.02
"""Two sessions on one machine differ by a few percent: what is to meet a limit again is measured with this to spare."""

GROUP = 4
"""Members that are measured together."""

MAX_MEASURED_IN_VAIN = 100
"""Members in a row that may be measured above the limit."""


@runtime_checkable
class MeasuringProfiler(Protocol):
    """A profiler that predicts latencies and can measure whole members too, where the device is this one."""

    measures_here: bool

    def measure(self, samples: Sequence[Sample]) -> list[Measurement]:
        """Measure members, in their order."""


class Budget:
    """Upper limits on costs, all of which hold for every member that a strategy returns.

    Parameters
    ----------
    limits : mapping of str to float
        The largest cost for each name. Names carry the unit; they are those of `Profiler.name`, such as
        ``latency_ms``, ``macs`` (multiply-adds) and ``parameters``.
    profilers : Profiler or sequence of Profiler
        Give the costs, built from the space before a strategy changes it. Those that are not named are not used.
        Where none is given for ``macs``, ``parameters`` or ``latency_ms``, `Strategy.run` builds one with its default
        settings for one sample of the training data. So latency is that of ONNX Runtime on the CPU of this machine,
        which is measured for up to a minute, anew in each run; with a profiler of your own it can come from a
        `hwnas.profilers.LatencyStore`.
    confidence : float, optional
        Least probability of each limit, 0.5 <= confidence < 1, where costs are predicted with an error; see
        `hwnas.profilers.RangeProfilerFilter`. Without it predictions count as they are.

    Raises
    ------
    ValueError
        When a limit is not a positive number, a name is not known, two profilers have one name, or the confidence is
        out of its range.

    Examples
    --------
    >>> from hwnas.cost import CostModel, Factor
    >>> model = CostModel({"width": [8, 16]}, [Factor(("width",), [1.0, 2.0])], unit="ms")
    >>> budget = Budget({"latency_ms": 1.5}, Profiler(model))
    >>> budget.meets({"width": 8}), budget.meets({"width": 16})
    (True, False)
    """

    def __init__(
        self,
        limits: Mapping[str, float],
        profilers: Profiler | Sequence[Profiler] = (),
        *,
        confidence: float | None = None,
    ) -> None:
        quantile_of_confidence(confidence)
        self.confidence = confidence
        if not limits:
            raise ValueError('budget: it has no limit; expected something like {"latency_ms": 3.0}')
        for name, limit in limits.items():
            if not (isinstance(limit, int | float) and math.isfinite(limit) and limit > 0):
                raise ValueError(f"budget: the limit of {name!r} is {limit!r}; expected a positive number")
        self.limits: dict[str, float] = {name: float(limit) for name, limit in limits.items()}
        self.profilers: dict[str, Profiler] = {}
        for profiler in [profilers] if isinstance(profilers, Profiler) else profilers:
            if self.profilers.setdefault(profiler.name, profiler) is not profiler:
                raise ValueError(
                    f"budget: two profilers are named {profiler.name!r}; give one of them another name, as "
                    "Profiler(cost_model, name=...)"
                )
        for name in self.limits:
            if name not in self.profilers and name not in BUILT:
                raise ValueError(
                    f"budget: no profiler gives {name!r}. Those given are of {', '.join(self.profilers) or 'nothing'}; "
                    f"{', '.join(BUILT)} need none. Pass the profiler of {name!r} as profilers=..."
                )

    def __repr__(self) -> str:
        """Show the limits and the confidence."""
        shown = [f"{name} <= {limit:g}" for name, limit in self.limits.items()]
        shown += [] if self.confidence is None else [f"confidence {self.confidence:g}"]
        return f"Budget({', '.join(shown)})"

    @property
    def missing(self) -> list[str]:
        """Names for which there is no profiler yet."""
        return [name for name in self.limits if name not in self.profilers]

    def completed(self, space: ModelSpace, evaluator: Evaluator) -> Budget:
        """Return the budget with the profilers that it lacks, built from a space and one sample of training data.

        Parameters
        ----------
        space : ModelSpace
            Before a strategy changes it.
        evaluator : Evaluator
            Its first training batch gives the sample: the first tensor of it, or the batch itself.

        Raises
        ------
        ValueError
            When the space is a super-net, or the evaluator has no such data.
        """
        missing = self.missing
        if not missing:
            return self
        if is_supernet(space):
            raise ValueError(
                f"budget: the space is a super-net, whose {', '.join(missing)} cannot be counted. Build the profilers "
                "before a strategy changes the space, and pass them as profilers=..."
            )
        example = _one_sample(evaluator, missing)
        built = [BUILT[name](space, example) for name in missing]
        return Budget(self.limits, [*self.profilers.values(), *built], confidence=self.confidence)

    @cached_property
    def ranges(self) -> tuple[RangeProfilerFilter, ...]:
        """A filter for each limit.

        Raises
        ------
        BudgetError
            When a limit is below the minimum; it names the minimum and what blocks it.
        ValueError
            When a profiler is missing, or does not know the error that a confidence needs.
        """
        if self.missing:
            raise ValueError(
                f"budget: there is no profiler of {', '.join(self.missing)} yet. Strategy.run builds it from the space "
                "and the training data; before that pass it as profilers=..."
            )
        return tuple(
            RangeProfilerFilter(self.profilers[name], max=limit, confidence=self.confidence)
            for name, limit in self.limits.items()
        )

    @property
    def bounds(self) -> dict[str, float]:
        """For each name what the predicted cost may be at most: the limit, lower by what the confidence asks for."""
        found = {}
        for name, within in zip(self.limits, self.ranges, strict=True):
            assert within.high is not None
            found[name] = within.high
        return found

    def meets(self, sample: Sample) -> bool:
        """Tell whether a member is within all limits, by its predicted cost."""
        return all(accepts(sample) for accepts in self.ranges)

    def excess(self, sample: Sample) -> float:
        """Return the largest cost of a member relative to its bound, minus 1; predicted, no unit."""
        return max(self.profilers[name].profile(sample) / bound for name, bound in self.bounds.items()) - 1

    def measured(
        self,
        samples: Iterable[Sample],
        *,
        group: int = GROUP,
        to_spare: float = TO_SPARE,
        on_group: Callable[[int, int], None] | None = None,
    ) -> Iterator[Sample]:
        """Yield those members that meet the measured limits, when they are measured as a whole.

        Members are measured a few at a time, and only as many as are asked for. Of those whose cost is counted, not
        measured, nothing is asked. Members that would be too slow even if their latency stayed as far below the
        prediction as that of any member so far are left out without being measured.

        Parameters
        ----------
        samples : iterable of dict
            Members within the budget as predicted, best first.
        group : int
            How many are measured together.
        to_spare : float
            Fraction of the limit that has to be left. Where no member leaves it, one that only just meets the limit
            is yielded.
        on_group : callable, optional
            Told after each group how many met the limits so far, and how many were measured.

        Raises
        ------
        BudgetError
            When none is within the limits; it tells the nearest.
        """
        timed = [
            (name, profiler, self.limits[name])
            for name, profiler in self.profilers.items()
            if name in self.limits and isinstance(profiler, MeasuringProfiler) and profiler.measures_here
        ]
        if not timed:
            yield from samples
            return
        lowest = dict.fromkeys((name for name, _, _ in timed), math.inf)  # measured over predicted latency
        passed = total = in_vain = 0
        nearest: tuple[float, str, float, Sample] | None = None
        promising = (
            sample
            for sample in samples
            if total == 0 or all(lowest[name] * profiler.profile(sample) <= limit for name, profiler, limit in timed)
        )
        while in_vain < MAX_MEASURED_IN_VAIN and (members := list(islice(promising, group))):
            worst = [(0.0, "", 0.0)] * len(members)  # the largest fraction of a limit, its name, the latency
            for name, profiler, limit in timed:
                for i, (sample, found) in enumerate(zip(members, profiler.measure(members), strict=True)):
                    lowest[name] = min(lowest[name], found.latency_ms / profiler.profile(sample))
                    worst[i] = max(worst[i], (found.latency_ms / limit, name, found.latency_ms))
            total += len(members)
            within = [sample for sample, (use, _, _) in zip(members, worst, strict=True) if use <= 1 - to_spare]
            passed += len(within)
            in_vain = 0 if within else in_vain + len(members)
            if on_group is not None:
                on_group(passed, total)
            best = min(range(len(members)), key=worst.__getitem__)
            if nearest is None or worst[best][0] < nearest[0]:
                nearest = *worst[best], members[best]
            yield from within
        if passed or nearest is None:
            return
        use, name, latency, sample = nearest
        if use > 1:
            raise BudgetError(
                f"members are predicted within {self!r}, but of {total} that were measured as a whole the nearest "
                f"takes {latency:.3f} ms ({name}). Raise the limit a little, or let the profiler measure longer",
                nearest=latency,
            )
        yield sample


def as_budget(
    budget: Budget | Mapping[str, float] | None, profilers: Profiler | Sequence[Profiler] | None
) -> Budget | None:
    """Make a budget of what strategies take as `budget` and `profilers`.

    Raises
    ------
    ValueError
        When there are profilers and no budget; see `Budget` for others.
    """
    given = [profilers] if isinstance(profilers, Profiler) else list(profilers or ())
    if budget is None:
        if given:
            raise ValueError('profilers are given, but no budget; expected something like budget={"macs": 1e6}')
        return None
    if isinstance(budget, Budget):
        every = [*budget.profilers.values(), *given]
        return Budget(budget.limits, every, confidence=budget.confidence) if given else budget
    return Budget(budget, given)


def joined(filter: Callable[[Sample], bool] | None, budget: Budget | None) -> Callable[[Sample], bool] | None:
    """Return a filter for both; None where there is neither."""
    parts = [*(() if filter is None else (filter,)), *(() if budget is None else budget.ranges)]
    return None if not parts else parts[0] if len(parts) == 1 else AllOf(parts)


def _one_sample(evaluator: Evaluator, missing: Sequence[str]) -> Tensor:
    advice = f"Build the profiler of {', '.join(missing)} and pass it as profilers=..."
    if not isinstance(evaluator, Lightning) or evaluator.train_dataloaders is None:
        raise ValueError(f"budget: the evaluator has no train_dataloaders, of which a sample is needed. {advice}")
    (batch,) = load_batches(single_loader(evaluator.train_dataloaders, "train_dataloaders"), 1)
    inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(inputs, Tensor) or inputs.dim() == 0:
        raise ValueError(
            f"budget: a training batch is a {type(batch).__name__} that does not begin with a tensor, so it is unknown "
            f"what a model is called with. {advice}"
        )
    return inputs[:1]
