"""A super-net that is its best member for a while, so that validation scores what a search would give now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hwnas.evaluators import recalibrate_batch_norm
from hwnas.evaluators.seeding import isolated_seed
from hwnas.strategies.batches import load_batches
from hwnas.strategies.oneshot import OneShotStrategy
from hwnas.supernet import Softmax, kept_statistics


@contextmanager
def best_member(
    strategy: OneShotStrategy, run: Callable[[Any], None], *, max_batches: int | None = 20
) -> Iterator[None]:
    """Make a super-net the member that the search prefers at present, with batch normalisation statistics of its own.

    The running statistics of a super-net are those of its mixture, or of all that was drawn, and fit no member. Those
    of the member are estimated on training batches; afterwards the super-net has its own again, bit for bit. No
    random state is changed.

    Parameters
    ----------
    strategy : OneShotStrategy
        With a super-net and an evaluator.
    run : callable
        Makes a training step of a batch without training anything. The statistics see what the super-net sees in
        it, whatever the step does with its batch before.
    max_batches : int, optional
        Training batches for the statistics; None for all, 0 to leave them as they are.

    Raises
    ------
    SampleError
        When no member satisfies the constraints.
    """
    supernet, relaxation = strategy.supernet, strategy.relaxation
    if isinstance(relaxation, Softmax):
        relaxation.settle(strategy.present_sample())
    relaxation.eval()
    try:
        with kept_statistics(supernet):
            if max_batches != 0 and any(isinstance(module, _BatchNorm) for module in supernet.modules()):
                batches = _as_trained_on(strategy.evaluator.train_dataloaders)
                steps = _Steps(supernet, run, load_batches(batches, max_batches, seed=strategy.seed))
                with isolated_seed(strategy.seed):
                    recalibrate_batch_norm(steps, torch.arange(len(steps.batches)))
            yield
    finally:
        relaxation.train()
        if isinstance(relaxation, Softmax):
            relaxation.settle({})


def _as_trained_on(loaders: Any) -> Iterable[Any]:
    """Return batches of the form that a trainer makes of its loaders: of several, one collection."""
    if isinstance(loaders, CombinedLoader):
        combined = CombinedLoader(loaders.iterables, loaders._mode)  # the trainer may be in the middle of that one
    elif isinstance(loaders, list | tuple | dict):
        combined = CombinedLoader(loaders, "max_size_cycle")
    else:
        batches: Iterable[Any] = loaders
        return batches
    return (batch for batch, _, _ in combined)


class _Steps(nn.Module):
    """Training steps in the form of a model: the input is the number of a batch."""

    def __init__(self, supernet: nn.Module, run: Callable[[Any], None], batches: Sequence[Any]) -> None:
        super().__init__()
        self.supernet = supernet
        self.run, self.batches = run, batches

    def forward(self, number: Tensor) -> None:
        self.run(self.batches[int(number)])
