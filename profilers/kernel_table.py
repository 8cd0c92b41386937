"""Members of a cell space as sums of fused kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from hwnas.nn import ModelSpace
from hwnas.profilers.addition import Addition
from hwnas.profilers.design import AVERAGED_INTEGER, rough_costs
from hwnas.profilers.fusion import Fusion
from hwnas.profilers.kernel import Kernel
from hwnas.profilers.member_graphs import Ints
from hwnas.profilers.posterior import Array, Prior
from hwnas.profilers.profiler import build_cost_model, domain_of
from hwnas.profilers.symbols import hashable
from hwnas.profilers.tables import Table, check_table_size
from hwnas.space import Sample

COMMON = 0.3  # how much of a typical net each common coefficient may explain, as a standard deviation
CROWDING = 0.1  # the same for what kernels take more in nets of many
_CHUNK = 4096  # members at once, to bound the memory


class KernelTable:
    """How often each member of a space runs each fused kernel.

    Which operators are fused depends on all choices around, so the members are listed one by one.

    Parameters
    ----------
    space : ModelSpace
        The space, before a strategy changes it.
    fusion : Fusion
        Finds the kernels of members, from the trace of the space.

    Raises
    ------
    UnsupportedError
        When there are too many members, or operators whose fusion is not known.

    Attributes
    ----------
    kernels : list of Kernel
        The distinct ones.
    """

    granularity: Final = "kernels"
    keys: tuple[str, ...] = ()  # nothing is measured but whole members

    def __init__(self, space: ModelSpace, fusion: Fusion) -> None:
        self._space, self._domain = space, domain_of(space)
        sizes = [len(values) for values in self._domain.values()]
        check_table_size(sizes, self._domain)
        grid = np.indices(sizes).reshape(len(sizes), -1)
        chunks = [self._count(fusion, grid[:, i : i + _CHUNK]) for i in range(0, grid.shape[1], _CHUNK)]
        self.kernels: list[Kernel] = fusion.kernels
        self._table = np.zeros((grid.shape[1], len(self.kernels)), dtype=np.int16)
        start = 0
        for chunk in chunks:
            self._table[start : start + len(chunk), : chunk.shape[1]] = chunk
            start += len(chunk)
        self._sizes = tuple(sizes)

    def _count(self, fusion: Fusion, grid: Ints) -> Ints:
        found = fusion.run(dict(zip(self._domain, grid, strict=True)))
        counts = np.zeros((grid.shape[1], len(fusion.kernels)), dtype=np.int16)
        for _, numbers in found:
            (where,) = np.nonzero(numbers >= 0)
            counts[where, numbers[where]] += 1
        return counts

    def counts(self, samples: Sequence[Sample]) -> Array:
        """Return how often members run each kernel, shape (samples, kernels)."""
        index = {label: {hashable(v): i for i, v in enumerate(values)} for label, values in self._domain.items()}
        rows = [
            np.ravel_multi_index([index[label][hashable(sample[label])] for label in self._domain], self._sizes)
            for sample in samples
        ]
        return self._table[rows].astype(float)

    def counter(self, sample: Sample) -> Counter[Kernel]:
        """Return the kernels of one member."""
        (row,) = self.counts([sample])
        return Counter({kernel: int(n) for kernel, n in zip(self.kernels, row, strict=True) if n})

    def add_up(self, own: Array, coefficients: Array | None = None, constant: float = 0.0) -> Addition:
        """Return the sum of the kernels that a member runs.

        Parameters
        ----------
        own : ndarray, shape (kernels,)
            What each may take, in milliseconds.
        coefficients : ndarray, shape (kernels + common,), optional
            Those of `prior`: what each kernel takes, and the common ones. Without them each takes `own`.
        constant : float, default 0
            Milliseconds added to every member.
        """
        costs, crowding = own, np.zeros_like(own)
        if coefficients is not None:
            n = len(own)
            costs = coefficients[:n] + self.shares(own) @ coefficients[n:-1]
            crowding = coefficients[-1] * own  # of each for every kernel of the net; see `common`
        total = self._table @ costs + self._table.sum(1) * (self._table @ crowding)
        table = Table(tuple(self._domain), total.reshape(self._sizes))

        def breakdown(sample: Sample) -> list[tuple[str, float]]:
            (counts,) = self.counts([sample])
            each = costs + counts.sum() * crowding
            parts = [
                (f"{counts[i]:g} x {self.kernels[i].title}", float(counts[i] * each[i])) for i in np.flatnonzero(counts)
            ]
            return sorted([("constant", constant), *parts], key=lambda part: part[1], reverse=True)

        model = build_cost_model(self._space, [("kernels", table)], unit="ms", constant=constant)
        return Addition(model, breakdown)

    def rough(self) -> Array:
        """Return what kernels may take relative to each other before any net is measured."""
        slow = [AVERAGED_INTEGER if each.operator.endswith("QLinearAveragePool") else 1.0 for each in self.kernels]
        macs = np.array([kernel.macs for kernel in self.kernels]) * slow
        traffic = np.array([kernel.traffic for kernel in self.kernels], dtype=float)
        return rough_costs(macs, traffic) if len(self.kernels) else np.zeros(0)

    def shares(self, own: Array) -> Array:
        """Return what coefficients common to several kernels multiply, shape (kernels, common).

        First come time, number, elements and weights, then the time of each family and that of each shape alone.
        """
        families = [kernel.family for kernel in self.kernels]
        shapes = [kernel.shape for kernel in self.kernels]
        members = [[each == one for each in kinds] for kinds in (families, shapes) for one in dict.fromkeys(kinds)]
        traffic = np.array([kernel.traffic for kernel in self.kernels], dtype=float)
        weights = np.array([kernel.weights for kernel in self.kernels], dtype=float)
        return np.stack([own, np.ones_like(own), traffic, weights, *(own * member for member in members)], 1)

    def common(self, own: Array, counts: Array) -> Array:
        """Return how often common coefficients count in nets, given how often each kernel does, shape (nets, common).

        The last one is what all kernels take for each kernel of the net: in a long one less of what a kernel needs is
        still in the cache.
        """
        crowding = counts.sum(1) * (counts @ own)
        return np.hstack([counts @ self.shares(own), crowding[:, None]])

    def prior(self, own: Array, stderr: Array, counts: Array) -> Prior:
        """Return what is known about kernels before any net is measured but how long nets take on the whole.

        Multiply-adds, elements and operators say roughly how kernels compare. So each coefficient of `common` may
        explain a good part of a net, each family and each shape deviates by an unknown share of its time, and each
        kernel by another one.

        Parameters
        ----------
        own : ndarray, shape (kernels,)
            What they may take, in milliseconds.
        stderr : ndarray, shape (kernels,)
            Standard errors of that; zero, as they are not measured alone.
        counts : ndarray, shape (nets, kernels)
            Of typical nets.

        Returns
        -------
        Prior
            Of one coefficient for each kernel and the common ones.
        """
        features = self.common(own, counts)
        typical = features[:, [0, 1, 2, 3, -1]].mean(0)
        shares = np.array([COMMON] * 4 + [CROWDING]) * typical[0]
        explained = np.divide(shares, typical, out=np.zeros(5), where=typical > 0) ** 2
        kernels, kinds = np.zeros_like(own), np.zeros(features.shape[1] - 5)
        return Prior(
            mean=np.concatenate([own, np.zeros(features.shape[1])]),
            variance=np.concatenate([stderr**2, explained[:4], kinds, explained[4:]]),
            groups=[
                np.concatenate([own, np.zeros(features.shape[1])]),
                np.concatenate([kernels, np.zeros(4), kinds + 1.0, np.zeros(1)]),
            ],
        )
