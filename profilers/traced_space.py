"""A space with its traces, so that several profilers of one space share them."""

from __future__ import annotations

from collections.abc import Sequence

from hwnas.nn import ModelSpace
from hwnas.profilers.trace import Inputs, Trace
from hwnas.profilers.tracing import trace_everywhere
from hwnas.supernet import DEFAULT_HOOKS, MutationHook


class TracedSpace:
    """A model space that has been run symbolically; profilers take it in place of example inputs.

    Parameters
    ----------
    space : ModelSpace
        The space, before a strategy changes it. It is not changed here.
    example_inputs : Tensor or tuple of Tensor
        What a member is called with.
    hooks : sequence of callable, optional
        How primitives become modules that can be traced, as in `hwnas.supernet.make_supernet`.

    Attributes
    ----------
    space : ModelSpace
        The space itself.
    inputs : tuple of Tensor
        What a member is called with.
    traces : tuple of Trace
        For every sample exactly one of them holds.

    Raises
    ------
    UnsupportedError
        When shapes depend on choices in a way that cannot be followed.

    Examples
    --------
    >>> import torch
    >>> import hwnas.nn as nn
    >>> from hwnas.profilers import FlopsProfiler, NumParamsProfiler
    >>> class Net(nn.ModelSpace):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv = nn.Conv2d(3, nn.ValueChoice([8, 16], label="width"), 3)
    ...     def forward(self, x):
    ...         return self.conv(x)
    >>> net = Net()
    >>> traced = TracedSpace(net, torch.zeros(1, 3, 6, 6))
    >>> FlopsProfiler(net, traced).profile({"width": 8}), NumParamsProfiler(net, traced).profile({"width": 8})
    (3456.0, 224.0)
    """

    def __init__(
        self, space: ModelSpace, example_inputs: Inputs, *, hooks: Sequence[MutationHook] = DEFAULT_HOOKS
    ) -> None:
        self.space = space
        self.inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        self.traces: tuple[Trace, ...] = tuple(trace_everywhere(space, self.inputs, hooks=hooks))


def traced(space: ModelSpace, example_inputs: Inputs | TracedSpace) -> TracedSpace:
    """Return a space with its traces: those that were made already, or new ones.

    Raises
    ------
    ValueError
        When the traces are those of another space.
    """
    if not isinstance(example_inputs, TracedSpace):
        return TracedSpace(space, example_inputs)
    if example_inputs.space is not space:
        raise ValueError(
            f"the traces are those of another {type(example_inputs.space).__name__}; give a profiler the space that "
            "was traced, or example inputs"
        )
    return example_inputs
