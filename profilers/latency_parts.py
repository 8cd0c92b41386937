"""What has to be measured to predict the latency of every member of a space: its parts, and some whole members."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from hwnas.cost import CostModel, Intermediate
from hwnas.export import build_many
from hwnas.nn import ModelSpace
from hwnas.profilers.measurement import Workload
from hwnas.profilers.precision import in_precision
from hwnas.profilers.profiler import build_cost_model, domain_of, masked
from hwnas.profilers.tables import Table
from hwnas.profilers.target import OrtTarget
from hwnas.profilers.trace import Inputs
from hwnas.profilers.traced_space import TracedSpace, traced
from hwnas.profilers.units import Identity, Workpiece, members, units_of
from hwnas.space import Sample

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Part:
    """A unit of the space with the key of each of its members."""

    name: str
    labels: tuple[str, ...]
    conditions: tuple[Table, ...]
    keys: np.ndarray  # of int, positions among the distinct parts, one axis for each label


class LatencyParts:
    """The distinct parts of a space, modules without choices about structure at one shape, and whole members.

    Parameters
    ----------
    space : ModelSpace
        The space, before a strategy changes it.
    example_inputs : Tensor, tuple of Tensor or TracedSpace
        What a member is called with, or the space with its traces.
    """

    def __init__(self, space: ModelSpace, example_inputs: Inputs | TracedSpace) -> None:
        known = traced(space, example_inputs)
        self._inputs, traces = known.inputs, known.traces
        self._catalog: dict[str, tuple[str, Workpiece]] = {}
        # The traced copy holds the weights of every member, and nobody trains it.
        self._members: ModelSpace = traces[0].space
        self._space = space
        domain = domain_of(space)
        self._domain = domain
        self._parts: list[_Part] = []
        found: dict[str, tuple[int, Identity]] = {}
        for trace in traces:
            for unit in units_of(trace):
                shape = [len(domain[label]) for label in unit.labels]
                positions = np.empty(shape, dtype=int)
                for index, (sample, piece) in zip(np.ndindex(*shape), members(unit, domain), strict=True):
                    identity = self._remember(f"{unit.name} {sample or ''}".strip(), piece)
                    place, _ = found.setdefault(identity.key, (len(found), identity))
                    positions[index] = place
                self._parts.append(_Part(unit.name, unit.labels, unit.conditions, positions))
        self._distinct = [identity for _, identity in found.values()]

    @property
    def keys(self) -> list[str]:
        """Return the key of each distinct part."""
        return [identity.key for identity in self._distinct]

    @property
    def traffic(self) -> np.ndarray:
        """Return the number of elements that enter and leave each distinct part, shape (parts,)."""
        return np.array([identity.traffic for identity in self._distinct], dtype=float)

    @property
    def macs(self) -> np.ndarray:
        """Return the multiply-adds of each distinct part, shape (parts,)."""
        return np.array([identity.macs for identity in self._distinct], dtype=float)

    @property
    def weights(self) -> np.ndarray:
        """Return the number of other elements that each distinct part reads, shape (parts,)."""
        return np.array([identity.weights for identity in self._distinct], dtype=float)

    def counts(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return how often members run each distinct part.

        Parameters
        ----------
        samples : sequence of dict
            Members.

        Returns
        -------
        ndarray, shape (samples, parts)
            Whole numbers.
        """
        counts = np.zeros((len(samples), len(self._distinct)))
        index = {label: {_hashable(v): i for i, v in enumerate(values)} for label, values in self._domain.items()}

        def place(label: str, sample: Sample) -> int:
            if isinstance(label, Intermediate):
                return int(label.table[tuple(place(part, sample) for part in label.labels)])
            return index[label][_hashable(sample[label])]

        def at(table: np.ndarray, labels: tuple[str, ...], sample: Sample) -> Any:
            return table[tuple(place(label, sample) for label in labels)]

        for row, sample in zip(counts, samples, strict=True):
            for part in self._parts:
                if all(at(condition.values, condition.labels, sample) for condition in part.conditions):
                    row[at(part.keys, part.labels, sample)] += 1
        return counts

    def name(self, key: str) -> str:
        """Return what a key stands for."""
        return self._catalog[key][0]

    def member(self, sample: Sample) -> str:
        """Return the key of a whole member."""
        model: nn.Module = self._members.freeze(sample)
        return self._remember(f"member {sample}", Workpiece(model.eval(), self._inputs)).key

    def add_up(self, costs: np.ndarray, constant: float = 0.0) -> CostModel:
        """Return the sum of the parts that a member runs, given the cost of each distinct one in milliseconds."""
        parts = [(part.name, masked(Table(part.labels, costs[part.keys]), part.conditions)) for part in self._parts]
        return build_cost_model(self._space, parts, unit="ms", constant=constant)

    def workloads(self, keys: Sequence[str], target: OrtTarget, progress: Progress | None = None) -> list[Workload]:
        """Export what keys stand for, in the precision of a target.

        Parameters
        ----------
        keys : sequence of str
            Of parts, and of members that `member` has been asked for.
        target : OrtTarget
            What they are to be measured on.
        progress : callable, optional
            Called with "export", how many are done and how many there are.
        """
        say = progress or (lambda what, done, total: None)
        say("export", 0, len(keys))
        pieces = [self._catalog[key][1] for key in keys]
        models = build_many([piece.module for piece in pieces], [piece.inputs for piece in pieces])
        models = [in_precision(model, target) for model in models]
        say("export", len(keys), len(keys))
        return [Workload(key, model, self._catalog[key][0]) for key, model in zip(keys, models, strict=True)]

    def _remember(self, name: str, piece: Workpiece) -> Identity:
        identity = piece.identify()
        self._catalog.setdefault(identity.key, (name, piece))
        return identity


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def random_members(space: ModelSpace, n: int, seed: int) -> list[Sample]:
    """Return distinct random members, from which those are chosen on which predictions are calibrated.

    There are fewer than `n` where the space hardly has as many.
    """
    rng = np.random.default_rng([seed, 1])
    drawn = [space.random(random_state=rng) for _ in range(n)]
    return list({repr(sorted(sample.items())): sample for sample in drawn}.values())


def held_out_members(space: ModelSpace, n: int, seed: int) -> list[Sample]:
    """Return the members on which predictions are checked."""
    rng = np.random.default_rng(seed)
    return [space.random(random_state=rng) for _ in range(n)]
