"""Multiply-adds of every member of a space, from one symbolic forward pass."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

from hwnas.nn import ModelSpace
from hwnas.profilers.macs import FORMULAS, Formula, is_free
from hwnas.profilers.profiler import Profiler, build_cost_model
from hwnas.profilers.trace import Inputs
from hwnas.profilers.traced_space import TracedSpace, traced


class FlopsProfiler(Profiler):
    """Multiply-adds in inference, as fvcore counts them.

    What an input choice leaves behind unused is not counted, as it is not part of an exported model.

    Parameters
    ----------
    space : ModelSpace
        The space, before a strategy changes it.
    example_inputs : Tensor, tuple of Tensor or TracedSpace
        What a member is called with; the batch counts. Or the space with its traces, which profilers share.
    formulas : mapping, optional
        Counts of further operators, or other counts of known ones; see `hwnas.profilers.macs.formula`.

    Attributes
    ----------
    uncounted : dict
        How often each operator ran for which no count is known. It counts nothing, and there is a warning.

    Examples
    --------
    >>> import torch
    >>> import hwnas.nn as nn
    >>> class Net(nn.ModelSpace):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.conv = nn.Conv2d(3, nn.ValueChoice([8, 16], label="width"), 3)
    ...     def forward(self, x):
    ...         return self.conv(x)
    >>> profiler = FlopsProfiler(Net(), torch.zeros(1, 3, 6, 6))
    >>> profiler.profile({"width": 8})  # 8 filters of 27 weights at 16 positions
    3456.0
    """

    def __init__(
        self,
        space: ModelSpace,
        example_inputs: Inputs | TracedSpace,
        *,
        formulas: Mapping[Any, Formula] | None = None,
    ) -> None:
        known = {**FORMULAS, **(formulas or {})}
        self.uncounted: Counter[str] = Counter()
        parts = []
        for trace in traced(space, example_inputs).traces:
            for call in trace.operators:
                count = known.get(call.operator.overloadpacket)
                if count is not None:
                    macs = trace.symbols.evaluate(count(*call.args, **call.kwargs, output=call.output))
                    parts.append((call.module, trace.logic.masked(macs, call.conditions)))
                elif not is_free(call.operator):
                    self.uncounted[str(call.operator)] += 1
        super().__init__(build_cost_model(space, parts, unit="MACs"))
        if self.uncounted:
            names = ", ".join(f"{name} ({times} times)" for name, times in self.uncounted.items())
            warnings.warn(
                f"no count of multiply-adds is known for {names}; they count as zero. Pass `formulas` to count them",
                stacklevel=2,
            )
