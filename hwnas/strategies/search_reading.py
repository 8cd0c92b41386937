"""What a search over shared weights looks like at a moment: how decided it is, what it prefers, what that costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hwnas.profilers.penalties import ProfilerPenalty
from hwnas.profilers.profiler import Profiler
from hwnas.space import LabeledMutable, Sample
from hwnas.strategies.architecture_key import active_labels
from hwnas.supernet import MixedCandidates, Relaxation

if TYPE_CHECKING:
    from hwnas.strategies.oneshot import OneShotStrategy

MAX_LOGGED = 64
"""Labels with more values are not logged."""

DRAWS = 256
"""Members by which a distribution is described that has no probabilities for single labels."""


class WatchedCost(NamedTuple):
    """A cost that a search looks at.

    Parameters
    ----------
    profiler : Profiler
        Gives it.
    target : float
        What the search may spend, in the unit of the profiler; infinite if there is no limit.
    """

    profiler: Profiler
    target: float = math.inf


def watched_penalties(penalty: ProfilerPenalty) -> dict[str, WatchedCost]:
    """Return the costs of a penalty by the names under which they are logged: the first one, and those besides."""
    first, *others = penalty.parts
    found = {"arch/expected_cost": WatchedCost(first.profiler, first.baseline)}
    for part in others:
        found.setdefault(f"penalty/{part.profiler.name}/expected", WatchedCost(part.profiler, part.baseline))
    return found


class SearchReading(NamedTuple):
    """What a search prefers at a moment.

    Parameters
    ----------
    probabilities : dict of str to Tensor, shape (number of values,)
        For each label of at most `MAX_LOGGED` values, in the order of `grid_values`.
    skip_probabilities : dict of str to float
        For each layer choice, by its label, that offers candidates with and candidates without parameters: the
        probability of those without.
    choices : list of str
        Those of them that are part of the preferred architecture.
    skips : list of str
        Those of them whose preferred candidate has no parameters.
    costs : dict of str to float
        The expected costs by the names under which they are logged, in the units of their profilers.
    """

    probabilities: dict[str, Tensor]
    skip_probabilities: dict[str, float]
    choices: list[str]
    skips: list[str]
    costs: dict[str, float]

    @property
    def entropies(self) -> dict[str, float]:
        """The entropy of each label, in nats."""
        return {label: _entropy(distribution) for label, distribution in self.probabilities.items()}

    @property
    def entropy(self) -> float | None:
        """The mean entropy of the labels, in nats; None where nothing has a distribution."""
        entropies = self.entropies.values()
        return sum(entropies) / len(entropies) if entropies else None

    @property
    def skip_share(self) -> float:
        """The share of the layer choices whose preferred candidate has no parameters; 0 where there are none."""
        return len(self.skips) / len(self.choices) if self.choices else 0.0

    def headline(self) -> dict[str, float]:
        """Return what is shown while the search runs: entropy and costs."""
        return self.costs if self.entropy is None else {"arch/entropy": self.entropy, **self.costs}

    def record(self, dimensions: Mapping[str, LabeledMutable]) -> dict[str, float]:
        """Return everything, by the names under which loggers receive it."""
        record = self.costs | distribution_record(dimensions, self.probabilities)
        record |= {f"arch/entropy/{label}": entropy for label, entropy in self.entropies.items()}
        if self.choices:
            record["arch/skips"] = float(len(self.skips))
            record["arch/skip_share"] = self.skip_share
            total = sum(self.skip_probabilities[label] for label in self.choices)
            record["arch/skip_probability"] = total / len(self.choices)
        return record


def read_search(strategy: OneShotStrategy, free: Mapping[str, Sequence[Any]]) -> SearchReading:
    """Look at a search.

    Where the relaxation has a distribution for each label, probabilities and expected costs are exact. Else they are
    frequencies and means over `DRAWS` members that the strategy draws. Of a strategy that trains no architecture only
    the costs are read.

    Parameters
    ----------
    strategy : OneShotStrategy
        With a super-net. Nothing of it changes.
    free : mapping of str to sequence
        The candidates without parameters; see `skip_candidates`.
    """
    dimensions = strategy.relaxation.dimensions
    costs = strategy.watched_costs()
    trained = next(strategy.architecture.parameters(), None) is not None
    draws = strategy.draws(DRAWS) if trained or costs else []
    probabilities: dict[str, Tensor] = {}
    preferred: Sample = {}
    with torch.no_grad():
        if trained:
            probabilities = _all_frequencies(dimensions, draws) if draws else label_probabilities(strategy.relaxation)
            preferred = {
                label: list(dimension.grid_values())[int(probabilities[label].argmax())]
                if label in probabilities
                else strategy.relaxation.export(label)
                for label, dimension in dimensions.items()
            }
        expected = {name: _expected(strategy, cost.profiler, draws) for name, cost in costs.items()}
    skip_probabilities = {
        label: float(probabilities[label][[list(dimensions[label].grid_values()).index(name) for name in names]].sum())
        for label, names in free.items()
        if label in probabilities
    }
    active = set(active_labels(strategy.supernet, preferred)) if preferred else set()
    choices = [label for label in skip_probabilities if label in active]
    skips = [label for label in choices if preferred[label] in free[label]]
    return SearchReading(probabilities, skip_probabilities, choices, skips, expected)


def label_probabilities(relaxation: Relaxation) -> dict[str, Tensor]:
    """Return the distribution of each label that has one and has at most `MAX_LOGGED` values; detached.

    Returns
    -------
    dict of str to Tensor, shape (number of values,)
        In the order of `grid_values`, in double precision, on the CPU.
    """
    found: dict[str, Tensor] = {}
    for label, dimension in relaxation.dimensions.items():
        if dimension.count_values() <= MAX_LOGGED:
            probabilities = relaxation.probabilities(label)
            if probabilities is not None:
                found[str(label)] = probabilities.detach().to("cpu", torch.float64)
    return found


def skip_candidates(supernet: nn.Module) -> dict[str, list[Any]]:
    """Return which candidates have no parameters: skip connections, pooling, zeros.

    Those of batch normalisations do not count.

    Returns
    -------
    dict of str to list
        Names of candidates by the label of their layer choice. Choices all or none of whose candidates have
        parameters are left out.
    """
    has_parameters: dict[str, dict[Any, bool]] = {}
    for module in supernet.modules():
        if isinstance(module, MixedCandidates):
            for label in module.search_space_spec():
                known = has_parameters.setdefault(str(label), {})
                for name, candidates in module.named_candidates().items():
                    known[name] = known.get(name, False) or any(map(_has_parameters, candidates))
    free = {label: [name for name, has in known.items() if not has] for label, known in has_parameters.items()}
    return {label: names for label, names in free.items() if 0 < len(names) < len(has_parameters[label])}


def _has_parameters(candidate: nn.Module) -> bool:
    layers = (part for part in candidate.modules() if not isinstance(part, _BatchNorm))
    return any(True for part in layers for _ in part.parameters(recurse=False))


def _all_frequencies(dimensions: Mapping[str, LabeledMutable], draws: Sequence[Sample]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for label, dimension in dimensions.items():
        if dimension.count_values() <= MAX_LOGGED:
            values = list(dimension.grid_values())
            positions = torch.tensor([values.index(sample[label]) for sample in draws])
            found[str(label)] = positions.bincount(minlength=len(values)).double() / len(draws)
    return found


def _expected(strategy: OneShotStrategy, profiler: Profiler, draws: Sequence[Sample]) -> float:
    model = profiler.cost_model
    if draws:
        return float(model.evaluate(draws).mean())
    probabilities = {label: strategy.relaxation.probabilities(label) for label in model.factor_labels}
    return float(profiler.expectation({label: p for label, p in probabilities.items() if p is not None}))


def distribution_record(
    dimensions: Mapping[str, LabeledMutable], probabilities: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return what loggers receive about distributions.

    Parameters
    ----------
    dimensions : mapping of str to LabeledMutable
        Of the space.
    probabilities : mapping of str to Tensor, shape (number of values,)
        For some labels, in the order of `grid_values`.

    Returns
    -------
    dict of str to float
        ``arch/<label>/<value>``, the probabilities, and ``arch/entropy``, the mean entropy of the labels in nats.
    """
    record = {
        f"arch/{label}/{value}": probability
        for label, distribution in probabilities.items()
        for value, probability in zip(dimensions[label].grid_values(), distribution.tolist(), strict=True)
    }
    if probabilities:
        record["arch/entropy"] = sum(map(_entropy, probabilities.values())) / len(probabilities)
    return record


def _entropy(distribution: Tensor) -> float:
    return float(torch.special.entr(distribution).sum())
