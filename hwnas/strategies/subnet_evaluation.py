"""The score of a single member with the weights that it has in a super-net."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hwnas.errors import TrainingError
from hwnas.evaluators import evaluate_accuracy, recalibrate_batch_norm
from hwnas.evaluators.recalibrate import in_precision_of
from hwnas.evaluators.seeding import isolated_seed
from hwnas.export.mode import evaluation_mode
from hwnas.nn import ModelSpace
from hwnas.space import Sample
from hwnas.strategies.batches import load_batches
from hwnas.supernet import OneHot, kept_statistics, supernet_modules

Metric = Callable[[nn.Module, Sequence[Any]], float]


def evaluate_subnet(
    supernet: ModelSpace,
    sample: Sample,
    *,
    val_batches: Iterable[Any],
    train_batches: Iterable[Any] | None = None,
    metric: Metric | None = None,
    recalibrate: bool | int = 20,
    device: torch.device | None = None,
    seed: int = 0,
) -> float:
    """Score one member of a super-net. Afterwards the super-net is what it was before, bit for bit.

    The running statistics of batch normalisation in a super-net mix those of all members, so those of the member are
    estimated first, on training batches. The score does not depend on what was scored before.

    To score many members use `subnet_scores`, which loads the batches once.

    Parameters
    ----------
    supernet : ModelSpace
        Of any strategy, trained. One that runs a single member at a time computes the member itself; of others the
        member is frozen, which copies its weights.
    sample : dict
        A value for each active label.
    val_batches : iterable
        A loader, or batches; loaded into memory.
    train_batches : iterable, optional
        For the statistics.
    metric : callable, optional
        Takes a model and the validation batches; gives a number, greater is better. The model is in evaluation mode
        and gradients are off. The accuracy unless given.
    recalibrate : bool or int
        On how many training batches at most the statistics are estimated. True for all of them; False to use the
        running statistics as they are.
    device : torch.device, optional
        Where to compute; where the super-net is unless given.
    seed : int
        Of loaders that shuffle and of metrics that are random.

    Returns
    -------
    float
        What the metric gives.

    Raises
    ------
    TypeError
        When it is no super-net.
    SampleError
        When the sample is no member.
    ValueError
        When there are no training batches to estimate statistics on.
    TrainingError
        When the score is not a number.

    Examples
    --------
    >>> import torch, hwnas.nn as nn
    >>> from hwnas.strategies import RandomOneShot, evaluate_subnet
    >>> class Net(nn.ModelSpace):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layer = nn.LayerChoice([nn.Identity(), nn.Flatten()], label="layer")
    ...     def forward(self, x):
    ...         return self.layer(x)
    >>> net = RandomOneShot().mutate_model(Net())
    >>> batch = torch.eye(3), torch.tensor([0, 1, 0])
    >>> evaluate_subnet(net, {"layer": 0}, train_batches=[batch], val_batches=[batch])
    0.6666666666666666
    """
    with subnet_scores(
        supernet,
        val_batches=val_batches,
        train_batches=train_batches,
        metric=metric,
        recalibrate=recalibrate,
        device=device,
        seed=seed,
    ) as score:
        return score(sample)


@contextmanager
def subnet_scores(
    supernet: ModelSpace,
    *,
    val_batches: Iterable[Any],
    train_batches: Iterable[Any] | None = None,
    metric: Metric | None = None,
    recalibrate: bool | int = 20,
    device: torch.device | None = None,
    seed: int = 0,
) -> Iterator[Callable[[Sample], float]]:
    """Give a function that scores members of a super-net, all on the same batches.

    The super-net is on the device until the block ends; between two scores it is what it was before.

    Parameters
    ----------
    supernet, val_batches, train_batches, metric, recalibrate, device, seed
        See `evaluate_subnet`.

    Yields
    ------
    callable
        Takes a sample and returns its score.
    """
    if not supernet_modules(supernet):
        raise TypeError(
            f"this {type(supernet).__name__} is no super-net; make it one with `mutate_model` or `run` of a strategy"
        )
    measure: Metric = evaluate_accuracy if metric is None else metric
    home = next((parameter.device for parameter in supernet.parameters()), torch.device("cpu"))
    device = home if device is None else device
    training = _training_batches(train_batches, recalibrate, device, seed)
    validation = in_precision_of(supernet, load_batches(val_batches, device=device, seed=seed))

    def score(sample: Sample) -> float:
        # Metrics may be random, so that each is seeded alike, whatever was scored before.
        with (
            _member(supernet, sample) as model,
            evaluation_mode(model),
            kept_statistics(model),
            isolated_seed(seed),
            torch.no_grad(),
        ):
            if training:
                recalibrate_batch_norm(model, training)
            found = float(measure(model, validation))
        if math.isnan(found):
            raise TrainingError(f"the metric of the member {sample} is not a number")
        return found

    try:
        supernet.to(device)
        yield score
    finally:
        supernet.to(home)


def _training_batches(
    batches: Iterable[Any] | None, recalibrate: bool | int, device: torch.device, seed: int
) -> list[Any]:
    if recalibrate is False:
        return []
    limit = None if recalibrate is True else recalibrate
    if limit is not None and limit < 1:
        raise ValueError(f"recalibrate is {limit}; expected True, False or a number of batches, at least 1")
    if batches is None:
        raise ValueError(
            "there are no train_batches on which to estimate the batch normalisation statistics of the member. Give "
            "some, or recalibrate=False"
        )
    return load_batches(batches, limit, device=device, seed=seed)


@contextmanager
def _member(supernet: ModelSpace, sample: Sample) -> Iterator[nn.Module]:
    """Give a model that computes a member."""
    supernet.validate(sample)
    relaxation = supernet_modules(supernet)[0].relaxation
    if not isinstance(relaxation, OneHot):
        with isolated_seed(0):  # reconstructed layers draw weights before they get theirs
            model = supernet.freeze(sample)
        yield model
        return
    before = relaxation.sample
    relaxation.resample({**supernet.default(), **sample})
    try:
        yield supernet
    finally:
        relaxation.resample(before)
