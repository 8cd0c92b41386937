"""Data loaders whose order depends on the seed and the epoch, and on nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, TensorDataset


class SeededSampler(Sampler[int]):
    """Indices in an order that is a function of (seed, epoch).

    `lightning.Trainer` calls `set_epoch` before each epoch, a resumed one included. In a loop of your own
    call it yourself: without it every pass has the order of epoch 0.

    Parameters
    ----------
    length : int
        Number of items.
    shuffle : bool
        False gives 0, 1, 2, ... in every epoch.
    seed : int
        At least 0.
    """

    def __init__(self, length: int, *, shuffle: bool, seed: int) -> None:
        self.length = length
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Give each index once."""
        if not self.shuffle:
            return iter(range(self.length))
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        return iter(order.tolist())

    def __len__(self) -> int:
        """Return the number of items."""
        return self.length


class TensorBatches(TensorDataset):
    """A `TensorDataset` that gives a whole batch by one indexing instead of many items to be stacked."""

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the items `indices` of every tensor, stacked along the first dimension."""
        rows = torch.as_tensor(indices)
        return tuple(tensor[rows] for tensor in self.tensors)


def seeded_loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    shuffle: bool,
    seed: int | np.random.Generator = 0,
    drop_last: bool = False,
    num_workers: int = 0,
) -> DataLoader[Any]:
    """Build a loader whose batches depend only on the seed and the epoch.

    A `TensorDataset`, or a `Subset` of one, is read batch by batch rather than item by item.

    Parameters
    ----------
    dataset : Dataset
        With a length.
    batch_size : int
        At least 1.
    shuffle : bool
        Whether to draw a new order in each epoch.
    seed : int or numpy.random.Generator
        A generator is drawn from once.
    drop_last : bool
        Whether to leave out a last batch that is smaller than `batch_size`.
    num_workers : int
        Processes that read the data.

    Returns
    -------
    DataLoader
        Its ``sampler`` is a `SeededSampler`.

    Raises
    ------
    ValueError
        If the dataset has no items or `batch_size` is less than 1.
    """
    length = len(dataset)  # type: ignore[arg-type]
    if length < 1:
        raise ValueError("seeded_loader: the dataset has no items.")
    if batch_size < 1:
        raise ValueError(f"seeded_loader: batch_size is {batch_size}, expected at least 1.")
    if isinstance(seed, np.random.Generator):
        seed = int(seed.integers(2**31))
    tensors = _tensors_of(dataset)
    return DataLoader(
        dataset if tensors is None else TensorBatches(*tensors),
        batch_size=batch_size,
        sampler=SeededSampler(length, shuffle=shuffle, seed=seed),
        drop_last=drop_last,
        num_workers=num_workers,
        collate_fn=None if tensors is None else _unchanged,
        # The loader draws a seed for its workers at every pass. From a generator of its own, the pass leaves
        # the global one alone.
        generator=torch.Generator().manual_seed(seed),
    )


def _tensors_of(dataset: Dataset[Any]) -> tuple[Tensor, ...] | None:
    """Return the tensors behind a dataset that lies in memory, else None."""
    # Exact types: a subclass may do anything in __getitem__, augment for example.
    if type(dataset) in (TensorDataset, TensorBatches):
        return dataset.tensors  # type: ignore[attr-defined, no-any-return]
    if type(dataset) is Subset:
        tensors = _tensors_of(dataset.dataset)
        if tensors is not None:
            rows = torch.as_tensor(dataset.indices)
            return tuple(tensor[rows] for tensor in tensors)
    return None


def _unchanged(batch: Any) -> Any:
    return list(batch)
