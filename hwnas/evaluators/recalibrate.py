"""Batch normalisation statistics of a sub-network, and its accuracy with them.

The running statistics of a super-net mix those of all its sub-networks and fit none of them, so a sub-network
is scored after its own have been estimated.

References
----------
Guo et al., Single Path One-Shot Neural Architecture Search with Uniform Sampling, 2020, section 3.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from hwnas.errors import UnsupportedError
from hwnas.export.mode import evaluation_mode
from hwnas.supernet import kept_statistics


def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Any], *, max_batches: int | None = None) -> None:
    """Replace the running statistics of batch normalisation by their average over `batches`, in place.

    Each batch has the same weight, whatever its size: leave a smaller last batch out. Only batch
    normalisation is in training mode meanwhile (dropout, for one, is not); flags and momenta are put back. No
    gradient is computed.

    Parameters
    ----------
    model : nn.Module
        A module without batch normalisation, or whose batch normalisation keeps no statistics, is left as it
        is.
    batches : iterable
        Of training data: tensors, or tuples and lists whose first element is the input.
    max_batches : int, optional
        How many batches to use at most.

    Raises
    ------
    ValueError
        If there is no batch, or `max_batches` is less than 1. The model is unchanged then.
    """
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"recalibrate_batch_norm: max_batches is {max_batches}, expected at least 1, or None for all.")
    layers = _layers(model)
    if not layers:
        return
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise ValueError("recalibrate_batch_norm: no batches. Give at least one batch of training data.")

    momenta = [layer.momentum for layer in layers]
    device = _device(model)
    with evaluation_mode(model), torch.no_grad():
        try:
            for layer in layers:
                layer.reset_running_stats()
                # PyTorch's way to say: a plain average over all batches since the reset.
                layer.momentum = None
                layer.training = True
            for batch in itertools.islice(itertools.chain([first], remaining), max_batches):
                model(in_precision_of(model, _inputs(batch).to(device)))
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum


@contextmanager
def recalibrated(model: nn.Module, batches: Iterable[Any], *, max_batches: int | None = None) -> Iterator[None]:
    """Run a block with recalibrated statistics; afterwards the model has its own again, bit for bit.

    Parameters
    ----------
    model, batches, max_batches
        See `recalibrate_batch_norm`.
    """
    with kept_statistics(model):
        recalibrate_batch_norm(model, batches, max_batches=max_batches)
        yield


def evaluate_accuracy(model: nn.Module, loader: Iterable[Any]) -> float:
    """Return the fraction of samples whose highest score is at the target.

    Parameters
    ----------
    model : nn.Module
        Gives scores, shape (N, C). It is in evaluation mode meanwhile and keeps its flags.
    loader : iterable
        Of (input, target) batches.

    Raises
    ------
    ValueError
        If there is no sample.
    """
    device = _device(model)
    right, seen = 0, 0
    with evaluation_mode(model), torch.no_grad():
        for inputs, targets in loader:
            scores = model(in_precision_of(model, inputs.to(device)))
            right += int((scores.argmax(dim=1) == targets.to(device)).sum())
            seen += len(targets)
    if not seen:
        raise ValueError("evaluate_accuracy: the loader gave no samples.")
    return right / seen


def in_precision_of(model: nn.Module, data: Any) -> Any:
    """Return data with floating-point tensors of the type that the model computes in, as a trainer hands it over.

    Parameters
    ----------
    model : nn.Module
        Its first floating-point parameter says which. Without one, `data` is returned as it is.
    data : Any
        A tensor, or tuples, lists and dictionaries of tensors.
    """
    types = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]

    def convert(value: Any) -> Any:
        return value.to(types[0]) if isinstance(value, Tensor) and value.is_floating_point() else value

    return pytree.tree_map(convert, data) if types else data


def _layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch normalisations that keep statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None
    ]


def _inputs(batch: Any) -> Tensor:
    inputs = batch[0] if isinstance(batch, tuple | list) and batch else batch
    if not isinstance(inputs, Tensor):
        raise UnsupportedError(
            f"recalibrate_batch_norm: a batch is a {type(batch).__name__}, expected a tensor, or a tuple or "
            "list whose first element is the input tensor. Give a generator that picks the input of your "
            "batches."
        )
    return inputs


def _device(model: nn.Module) -> torch.device:
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")
