"""What has to be measured to predict the latency of every member of a space: some whole members, and its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from torch import nn

from hwnas.cost import Intermediate
from hwnas.export import build_many
from hwnas.nn import ModelSpace
from hwnas.profilers.addition import Addition
from hwnas.profilers.design import rough_costs
from hwnas.profilers.measurement import Workload
from hwnas.profilers.posterior import Prior
from hwnas.profilers.precision import in_precision
from hwnas.profilers.profiler import build_cost_model, domain_of, masked
from hwnas.profilers.symbols import hashable
from hwnas.profilers.tables import Table, length_of
from hwnas.profilers.target import OrtTarget
from hwnas.profilers.trace import Trace
from hwnas.profilers.traced_space import TracedSpace
from hwnas.profilers.units import Identity, Workpiece, units_of
from hwnas.profilers.units import members as members_of
from hwnas.space import Sample

Progress = Callable[[str, int, int], None]

COMMON = 0.3  # how much of a typical net each common coefficient may explain, as a standard deviation

HELD_OUT = 10_000  # added to the seed of a profiler, it gives the members of its report


def silent(what: str, done: int, total: int) -> None:
    """Do nothing with progress."""


class Members:
    """What has to be measured, by key, and how it becomes a model.

    Parameters
    ----------
    space : TracedSpace
        The space with its traces.
    """

    def __init__(self, space: TracedSpace) -> None:
        self._inputs = space.inputs
        self._catalog: dict[str, tuple[str, Workpiece]] = {}
        # The traced copy holds the weights of every member, and nobody trains it.
        self._space: ModelSpace = space.traces[0].space

    def name(self, key: str) -> str:
        """Return what a key stands for."""
        return self._catalog[key][0]

    def members(self, samples: Sequence[Sample], progress: Progress | None = None) -> list[str]:
        """Return the keys of whole members."""
        say = progress or silent
        keys = []
        for number, sample in enumerate(samples):
            say("build members", number, len(samples))
            keys.append(self.member(sample))
        say("build members", len(samples), len(samples))
        return keys

    def member(self, sample: Sample) -> str:
        """Return the key of a whole member."""
        model: nn.Module = self._space.freeze(sample)
        return self.remember(f"member {sample}", Workpiece(model.eval(), self._inputs)).key

    def remember(self, name: str, piece: Workpiece) -> Identity:
        """Return what a module computes, which from now on stands behind its key."""
        identity = piece.identify()
        self._catalog.setdefault(identity.key, (name, piece))
        return identity

    def workloads(self, keys: Sequence[str], target: OrtTarget, progress: Progress | None = None) -> list[Workload]:
        """Export what keys stand for, in the precision of a target.

        Parameters
        ----------
        keys : sequence of str
            Of what was remembered, and of members that `member` has been asked for.
        target : OrtTarget
            What they are to be measured on.
        progress : callable, optional
            Called with "export", how many are done and how many there are.
        """
        say = progress or silent
        say("export", 0, len(keys))
        pieces = [self._catalog[key][1] for key in keys]
        models = build_many(
            [piece.module for piece in pieces],
            [piece.inputs for piece in pieces],
            progress=lambda done: say("export", done, len(keys)),
        )
        models = [in_precision(model, target) for model in models]
        return [Workload(key, model, self._catalog[key][0]) for key, model in zip(keys, models, strict=True)]


@dataclass(frozen=True)
class _Part:
    """A unit of the space with the key of each of its members."""

    name: str
    labels: tuple[str, ...]
    conditions: tuple[Table, ...]
    keys: np.ndarray  # of int, positions among the distinct parts, one axis for each label


class LatencyParts:
    """The distinct parts of a space: modules without choices about structure at one shape.

    Parameters
    ----------
    space : ModelSpace
        The space, before a strategy changes it.
    traces : sequence of Trace
        Of the space.
    members : Members
        Remembers the parts.
    progress : callable, optional
        Called with what is being done, how many are done and how many there are.
    """

    granularity: Final = "blocks"

    def __init__(
        self, space: ModelSpace, traces: Sequence[Trace], members: Members, progress: Progress | None = None
    ) -> None:
        say = progress or silent
        self._space = space
        domain = domain_of(space)
        self._domain = domain
        self._parts: list[_Part] = []
        found: dict[str, tuple[int, Identity]] = {}
        for trace in traces:
            say("cut into parts", 0, 1)
            units = list(units_of(trace))
            say("cut into parts", 1, 1)
            for number, unit in enumerate(units):
                say("find parts", number, len(units))
                # Combinations that no member has are left at zero.
                positions = np.zeros([length_of(label, domain) for label in unit.labels], dtype=int)
                for places, sample, piece in members_of(unit, domain):
                    identity = members.remember(f"{unit.name} {sample or ''}".strip(), piece)
                    place, _ = found.setdefault(identity.key, (len(found), identity))
                    positions[places] = place
                self._parts.append(_Part(unit.name, unit.labels, unit.conditions, positions))
            say("find parts", len(units), len(units))
        self._distinct = [identity for _, identity in found.values()]

    @property
    def keys(self) -> list[str]:
        """Return the key of each distinct part."""
        return [identity.key for identity in self._distinct]

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
        index = {label: {hashable(v): i for i, v in enumerate(values)} for label, values in self._domain.items()}

        def place(label: str, sample: Sample) -> int:
            if isinstance(label, Intermediate):
                return int(label.table[tuple(place(part, sample) for part in label.labels)])
            return index[label][hashable(sample[label])]

        def at(table: np.ndarray, labels: tuple[str, ...], sample: Sample) -> Any:
            return table[tuple(place(label, sample) for label in labels)]

        for row, sample in zip(counts, samples, strict=True):
            for part in self._parts:
                if all(at(condition.values, condition.labels, sample) for condition in part.conditions):
                    row[at(part.keys, part.labels, sample)] += 1
        return counts

    def add_up(self, own: np.ndarray, coefficients: np.ndarray | None = None, constant: float = 0.0) -> Addition:
        """Return the sum of the parts that a member runs.

        Parameters
        ----------
        own : ndarray, shape (n_parts,)
            What each distinct part takes alone, in milliseconds.
        coefficients : ndarray, shape (n_parts + 3,), optional
            Those of `prior`: what each part takes among others, and the common ones. What it takes alone unless given.
        constant : float, default 0
            Milliseconds added to every member.
        """
        costs = own
        if coefficients is not None:
            costs = coefficients[: len(own)] + self.shares(own) @ coefficients[len(own) :]
        parts = [(part.name, masked(Table(part.labels, costs[part.keys]), part.conditions)) for part in self._parts]
        model = build_cost_model(self._space, parts, unit="ms", constant=constant)
        return Addition(model, model.breakdown)

    def rough(self) -> np.ndarray:
        """Return what parts may take relative to each other before any is measured, shape (parts,)."""
        macs = np.array([identity.macs for identity in self._distinct], dtype=float)
        return rough_costs(macs, self._traffic + self._weights)

    @property
    def _traffic(self) -> np.ndarray:
        return np.array([identity.traffic for identity in self._distinct], dtype=float)

    @property
    def _weights(self) -> np.ndarray:
        return np.array([identity.weights for identity in self._distinct], dtype=float)

    def shares(self, own: np.ndarray) -> np.ndarray:
        """Return what coefficients common to all parts multiply, shape (parts, 3): time, elements and weights."""
        return np.stack([own, self._traffic, self._weights], 1)

    def common(self, own: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return how often these coefficients count in nets, given how often each part does, shape (nets, 3)."""
        return np.asarray(counts @ self.shares(own))

    def prior(self, own: np.ndarray, stderr: np.ndarray, counts: np.ndarray) -> Prior:
        """Return what is known about parts among others once they have been measured alone.

        ONNX Runtime keeps a blocked layout from one convolution to the next; a part on its own enters and leaves it.
        The weights of a part on its own stay in the cache, those of a net do not. So time may come on top in proportion
        to the time alone, to the elements that enter and leave, and to the weights, each up to a good part of a net.
        Beyond that each part may deviate on its own, by an unknown share of its time, and by an unknown share of what
        it takes to pass its elements on: so cheap parts deviate more.

        Parameters
        ----------
        own : ndarray, shape (n_parts,)
            Latency of each part, less an empty run, in milliseconds.
        stderr : ndarray, shape (n_parts,)
            Standard errors of that.
        counts : ndarray, shape (n_nets, n_parts)
            How often each part is in each of some nets.

        Returns
        -------
        Prior
            Of one coefficient for each part and the common ones.
        """
        shares = self.shares(own)
        typical = (counts @ shares).mean(0)
        common = np.divide(COMMON * typical[0], typical, out=np.zeros(3), where=typical > 0)
        traffic = shares[:, 1]
        timed = (own > 0) & (traffic > 0)
        cheapest = float((own[timed] / traffic[timed]).min()) if timed.any() else 0.0
        return Prior(
            mean=np.append(own, np.zeros(3)),
            variance=np.append(stderr**2, common**2),
            groups=[np.append(own, np.zeros(3)), np.append(cheapest * traffic, np.zeros(3))],
        )


def random_members(space: ModelSpace, n: int, seed: int) -> list[Sample]:
    """Return distinct random members, from which those are chosen on which predictions are calibrated.

    There are fewer than `n` where the space hardly has as many.
    """
    rng = np.random.default_rng([seed, 1])
    drawn = [space.random(random_state=rng) for _ in range(n)]
    return list({repr(sorted(sample.items())): sample for sample in drawn}.values())


def report_seed(seed: int) -> int:
    """Return the seed of the members on which a profiler with some seed is checked."""
    return HELD_OUT + seed


def held_out_members(space: ModelSpace, n: int, seed: int) -> list[Sample]:
    """Return the members on which predictions are checked."""
    rng = np.random.default_rng(seed)
    return [space.random(random_state=rng) for _ in range(n)]
