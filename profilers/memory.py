"""Memory that the members of a space need, in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hwnas.cost.domain import Domain
from hwnas.cost.intermediate import closure
from hwnas.nn import ModelSpace
from hwnas.profilers.allocations import INPUT, Allocation, allocations_of
from hwnas.profilers.peak_bound import peak_bound
from hwnas.profilers.profiler import Profiler, build_cost_model, domain_of
from hwnas.profilers.tables import Table, union
from hwnas.profilers.trace import Inputs
from hwnas.profilers.traced_space import TracedSpace, traced
from hwnas.space import Sample

_CHUNK = 256  # samples at a time: there is a number for each step and sample


class ActivationMemoryProfiler(Profiler):
    """Bytes of all tensors that the operators of one forward pass write in inference.

    This is the memory when nothing is freed and, but for statistics and masks that only training has, the most that
    the backward pass can find kept; it also tells how much memory traffic a member causes. Views and in-place
    operators write nothing new. Inputs and weights are not counted, nor is what an operator allocates for itself
    while it runs.

    Parameters
    ----------
    space : ModelSpace
        The space, before a strategy changes it.
    example_inputs : Tensor, tuple of Tensor or TracedSpace
        What a member is called with; the batch counts. Or the space with its traces, which profilers share.

    Raises
    ------
    UnsupportedError
        When a sum has as many terms as a choice of any number of inputs.

    Examples
    --------
    >>> import torch
    >>> import hwnas.nn as nn
    >>> class Net(nn.ModelSpace):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv = nn.Conv2d(3, nn.ValueChoice([8, 16], label="width"), 3)
    ...     def forward(self, x):
    ...         return self.conv(x).relu()
    >>> ActivationMemoryProfiler(Net(), torch.zeros(1, 3, 6, 6)).profile({"width": 8})  # two of 8 x 4 x 4 floats
    1024.0
    """

    def __init__(self, space: ModelSpace, example_inputs: Inputs | TracedSpace) -> None:
        parts = [
            (allocation.name, allocation.size)
            for trace in traced(space, example_inputs).traces
            for allocation in allocations_of(trace, uses=False)
            if allocation.name != INPUT
        ]
        super().__init__(build_cost_model(space, parts, unit="bytes"), name="activation_bytes")


class PeakMemoryProfiler(Profiler):
    """The most bytes of tensors that are alive at the same time during inference.

    A tensor lives from the operator that writes it to the last operator that reads it; inputs live from the start,
    and outputs to the end. While an operator runs its inputs and outputs are alive. Views and in-place operators
    take no memory of their own. Weights are not counted, since devices often keep them elsewhere, nor is what an
    operator allocates for itself while it runs. PyTorch in eager mode may need more, as Python variables keep
    tensors alive; a runtime that fuses operators may need less.

    The peak is a maximum over time, and no sum of small factors in general. `profile` and `evaluate` are exact.
    `cost_model`, and with it bounds, budgets and the expectation, is an upper bound: a table over the labels that
    decide most, with the largest peak over the others. Where parts of the model with labels of their own each decide
    much, it is the sum of what they need beyond the largest peak that all members reach. It is exact where few labels
    decide about the peak (`is_exact`). What `cost_model.sample_within` draws below a limit never exceeds it; with a
    lower limit it promises nothing.

    Parameters
    ----------
    space : ModelSpace
        The space, before a strategy changes it.
    example_inputs : Tensor, tuple of Tensor or TracedSpace
        What a member is called with; the batch counts. Or the space with its traces, which profilers share.

    Attributes
    ----------
    is_exact : bool
        Whether `cost_model` gives the peak itself.

    Raises
    ------
    UnsupportedError
        When a sum has as many terms as a choice of any number of inputs.

    References
    ----------
    Lin et al.: MCUNet: Tiny Deep Learning on IoT Devices, NeurIPS 2020.

    Examples
    --------
    >>> import torch
    >>> import hwnas.nn as nn
    >>> class Net(nn.ModelSpace):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv = nn.Conv2d(3, nn.ValueChoice([8, 16], label="width"), 3)
    ...     def forward(self, x):
    ...         return self.conv(x).sum()
    >>> profiler = PeakMemoryProfiler(Net(), torch.zeros(1, 3, 6, 6))
    >>> profiler.profile({"width": 8})  # 3 x 6 x 6 and 8 x 4 x 4 floats
    944.0
    """

    def __init__(self, space: ModelSpace, example_inputs: Inputs | TracedSpace) -> None:
        self._domain = Domain(domain_of(space))
        self._timelines = [allocations_of(trace) for trace in traced(space, example_inputs).traces]
        tables = (
            table
            for timeline in self._timelines
            for allocation in timeline
            for table in (allocation.size, *(when for _, when in allocation.uses))
        )
        self._intermediates = closure(union(tables)).values()
        bound = peak_bound(self._timelines)
        self.is_exact = bound.is_exact
        model = build_cost_model(space, bound.parts, unit="bytes", constant=bound.floor)
        super().__init__(model, name="peak_bytes")

    def profile(self, sample: Sample) -> float:
        """Return the peak of one member, in bytes."""
        return float(self.evaluate([sample])[0])

    def evaluate(self, samples: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Return the peaks of many members, in bytes.

        Parameters
        ----------
        samples : sequence of mapping
            The members.

        Returns
        -------
        ndarray, shape (n_samples,)
            Exact.
        """
        labels = self._domain.labels
        peaks = [np.zeros(0)]
        for start in range(0, len(samples), _CHUNK):
            columns = self._domain.columns(labels, samples[start : start + _CHUNK])
            index: dict[str, np.ndarray] = dict(zip(labels, columns, strict=True))
            for each in self._intermediates:
                index[each] = each.table[tuple(index[label] for label in each.labels)]
            n = len(samples[start : start + _CHUNK])
            peaks.append(np.max([_peaks(timeline, index, n) for timeline in self._timelines], axis=0))
        return np.concatenate(peaks)


def _peaks(timeline: Sequence[Allocation], index: Mapping[str, np.ndarray], n: int) -> np.ndarray:
    """Return the largest number of bytes that are alive at one step, for samples given by option indices."""

    def at(table: Table) -> np.ndarray:
        return np.broadcast_to(table.values[tuple(index[label] for label in table.labels)], n)

    members = np.arange(n)
    change = np.zeros((max(step for a in timeline for step in (a.step, *(use for use, _ in a.uses))) + 3, n))
    for allocation in timeline:
        size, last = at(allocation.size), np.full(n, allocation.step)
        for step, where in allocation.uses:  # in ascending order
            last[at(where)] = step
        change[allocation.step + 1] += size  # from here
        change[last + 2, members] -= size  # and no longer behind the last step
    peaks: np.ndarray = change.cumsum(0).max(0)
    return peaks
