"""What the latency of a member is a sum of: blocks that are measured alone, or fused kernels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Final, Literal, Protocol

import numpy as np
import torch

from hwnas.errors import UnsupportedError
from hwnas.nn import ModelSpace
from hwnas.profilers.addition import Addition
from hwnas.profilers.design import POOL, most_telling
from hwnas.profilers.fusion import Fusion
from hwnas.profilers.fusion_int8 import QuantisedFusion
from hwnas.profilers.kernel_table import KernelTable
from hwnas.profilers.latency_parts import LatencyParts, Members, Progress, random_members
from hwnas.profilers.liveness import tensors_of
from hwnas.profilers.optimised import channel_block, kernels_of
from hwnas.profilers.posterior import Array, Prior
from hwnas.profilers.target import CPU_PROVIDER, OrtTarget
from hwnas.profilers.trace import Join, Trace
from hwnas.profilers.traced_space import TracedSpace
from hwnas.space import Sample

Granularity = Literal["auto", "blocks", "kernels"]
GRANULARITIES: Final = ("auto", "blocks", "kernels")

_CHECKED: Final = 5  # members whose kernels are compared with those of ONNX Runtime


class Composition(Protocol):
    """What members are sums of: `LatencyParts` or `KernelTable`. An item is a part or a kernel."""

    @property
    def granularity(self) -> Literal["blocks", "kernels"]:
        """What the items are."""

    @property
    def keys(self) -> Sequence[str]:
        """The key of each item that is to be measured alone; without any the items are not."""

    def counts(self, samples: Sequence[Sample]) -> Array:
        """Return how often members run each item, shape (samples, items)."""

    def rough(self) -> Array:
        """Return what items may take relative to each other before anything is measured, shape (items,)."""

    def shares(self, own: Array) -> Array:
        """Return what common coefficients add to the cost of each item for itself, shape (items, shares)."""

    def common(self, own: Array, counts: Array) -> Array:
        """Return how often common coefficients count in nets, given what items take alone, shape (nets, common)."""

    def prior(self, own: Array, stderr: Array, counts: Array) -> Prior:
        """Return what is known about items among others, given what they take alone and in which nets they are."""

    def add_up(self, own: Array, coefficients: Array | None = None, constant: float = 0.0) -> Addition:
        """Return the sum of the items that a member runs, given what they take alone and what `prior` is about."""


def composition_of(
    space: ModelSpace,
    known: TracedSpace,
    members: Members,
    granularity: Granularity,
    target: OrtTarget,
    *,
    here: bool,
    progress: Progress | None = None,
) -> Composition:
    """Choose what members are sums of.

    Parameters
    ----------
    space : ModelSpace
        The space, before a strategy changes it.
    known : TracedSpace
        The same with its traces.
    members : Members
        Remembers the parts.
    granularity : {"auto", "blocks", "kernels"}
        With ``auto`` kernels, where they can be known and where what several choices return is added up.
    target : OrtTarget
        What is measured on.
    here : bool
        Whether that is this machine, which decides on layouts.
    progress : callable, optional
        Called with what is being done, how many are done and how many there are.

    Raises
    ------
    UnsupportedError
        When kernels are asked for and cannot be known.
    ValueError
        When `granularity` is none of the three.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity is {granularity!r}; expected one of {', '.join(GRANULARITIES)}")
    if granularity == "kernels" or (granularity == "auto" and any(adds_choices(trace) for trace in known.traces)):
        try:
            return _kernels(space, known, members, target, here)
        except UnsupportedError as error:
            if granularity == "kernels":
                raise UnsupportedError(
                    f"{type(space).__name__} cannot be predicted from fused kernels: {error}. Take granularity "
                    '"auto" or "blocks", which predicts it from blocks'
                ) from error
    return LatencyParts(space, known.traces, members, progress)


def adds_choices(trace: Trace) -> bool:
    """Tell whether an addition reads two tensors each of which is one of several, depending on choices."""
    joined: set[int] = set()
    for event in trace.timeline:
        if isinstance(event, Join):
            joined.add(id(event.result))
        elif event.operator.overloadpacket is torch.ops.aten.add:
            read = [id(tensor) in joined for tensor in tensors_of(event.args)]
            if len(read) == 2 and all(read):
                return True
    return False


def _kernels(space: ModelSpace, known: TracedSpace, members: Members, target: OrtTarget, here: bool) -> KernelTable:
    if target.provider != CPU_PROVIDER or target.optimization != "all" or not here:
        raise UnsupportedError(
            "fused kernels are known of models with all optimisations on the CPU of this machine only"
        )
    if len(known.traces) > 1:
        raise UnsupportedError("fused kernels are known of spaces only that one symbolic run describes")
    (trace,) = known.traces
    quantised = target.precision == "int8"
    table = KernelTable(space, QuantisedFusion(trace) if quantised else Fusion(trace, channel_block(target)))
    checked = random_members(space, _CHECKED, seed=0)
    for workload, sample in zip(
        members.workloads([members.member(each) for each in checked], target), checked, strict=True
    ):
        if kernels_of(workload.model, target) != table.counter(sample):
            message = f"ONNX Runtime {target.version} fuses other operators than expected, in {sample} for instance"
            warnings.warn(f"{message}; parts of the space are measured instead of fused kernels", stacklevel=4)
            raise UnsupportedError(message)
    return table


def calibration_members(composition: Composition, space: ModelSpace, n: int, seed: int) -> list[Sample]:
    """Choose the members that tell the most, by what items may take before any is measured."""
    if n == 0:
        return []
    pool = random_members(space, max(POOL, n), seed)
    counts = composition.counts(pool)
    own = composition.rough()
    prior = composition.prior(own, np.zeros_like(own), counts)
    return [pool[i] for i in most_telling(features_of(composition, own, counts), prior, n)]


def features_of(composition: Composition, own: Array, counts: Array) -> Array:
    """Return how often each coefficient counts in nets, given how often each item does."""
    return np.hstack([counts, composition.common(own, counts)])
