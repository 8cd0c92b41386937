"""Data loaders whose order depends on the seed and the epoch, and on nothing else."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, Sampler, Subset, TensorDataset

from hwnas.evaluators.seeding import isolated_seed


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


class RankSampler(DistributedSampler[int]):
    """The part of a `SeededSampler` that belongs to one of several processes: every so many-th index.

    Together, batch by batch, the processes read what one process would read with a batch so many times as large.
    Where the indices cannot be shared out evenly the first ones are given once more.

    Parameters
    ----------
    sampler : SeededSampler
        Of all the data. It is given the epoch.
    rank, ranks : int
        Which of how many processes.
    """

    def __init__(self, sampler: SeededSampler, *, rank: int, ranks: int) -> None:
        super().__init__(sampler, num_replicas=ranks, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.sampler = sampler

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        super().set_epoch(epoch)
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        """Give each index of the part once."""
        return itertools.islice(itertools.cycle(self.sampler), self.rank, self.total_size, self.num_replicas)


class SeededLoader(DataLoader[Any]):
    """A `DataLoader` whose place in a pass belongs to the checkpoints of `lightning.Trainer`.

    A run that goes on from a checkpoint written in the middle of an epoch goes on with the batch that would have come
    next. Of batches that were read before nothing is loaded. What a data set draws from the global generators, to
    augment its items for example, depends on the seed, the epoch and the indices of the batch.

    Its sampler is a `SeededSampler` or a `RankSampler`. Make it with `seeded_loader`.
    """

    _epoch = 0
    _given = 0
    _resumes = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Give the batches of the epoch of the sampler."""
        # This is a generator: the trainer sets the epoch after it has asked for an iterator.
        epoch = getattr(self.sampler, "epoch", 0)
        skipped = self._given if self._resumes and self._epoch == epoch else 0
        self._epoch, self._given, self._resumes = epoch, skipped, False
        rest = self.replace(batch_sampler=_Rest(self.batch_sampler, skipped))
        if not isinstance(self.dataset, TensorBatches) and self.generator is not None:
            rest = rest.replace(dataset=_SeededItems(self.dataset, self.generator.initial_seed(), epoch))
        for batch in DataLoader.__iter__(rest):
            self._given += 1
            yield batch

    def replace(self, **parts: Any) -> SeededLoader:
        """Return a copy that has other parts.

        Parameters
        ----------
        **parts
            ``sampler``, ``batch_sampler``, ``dataset``.
        """
        other = copy.copy(self)
        vars(other).update(parts)  # `DataLoader` refuses to set them
        return other

    def state_dict(self) -> dict[str, int]:
        """Return the epoch of the last pass and how many of its batches have been given."""
        return {"epoch": self._epoch, "batches": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next pass go on from a state, if it is one of the same epoch."""
        self._epoch, self._given, self._resumes = state["epoch"], state["batches"], True


class _SeededItems(Dataset[Any]):
    """Items of a data set that may draw from the global generators: each batch by seed, epoch and its first index.

    So it does not matter which batches were read before, nor in which process.
    """

    def __init__(self, dataset: Any, seed: int, epoch: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = epoch

    def __getitems__(self, indices: Sequence[int]) -> Any:
        if not len(indices):
            return []
        entropy = np.random.SeedSequence((self.seed, self.epoch, indices[0])).generate_state(1, np.uint64)
        with isolated_seed(int(entropy[0]) >> 1):
            if hasattr(self.dataset, "__getitems__"):
                return self.dataset.__getitems__(indices)
            return [self.dataset[index] for index in indices]


class _Rest(Sampler[list[int]]):
    """All batches of indices but the first."""

    def __init__(self, batches: Any, skipped: int) -> None:
        self.batches = batches
        self.skipped = skipped

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(iter(self.batches), self.skipped, None)

    def __len__(self) -> int:
        return len(self.batches) - self.skipped


def for_rank(loaders: Any, rank: int, ranks: int) -> Any:
    """Return loaders for one fit in one of several processes that train together.

    Parameters
    ----------
    loaders : Any
        What `lightning.Trainer.fit` takes.
    rank, ranks : int
        Which of how many processes.

    Returns
    -------
    Any
        With a fresh `SeededLoader` in place of each one, which starts at the beginning of a pass and reads the part of
        the data that belongs to the process. Everything else as it is.
    """
    if isinstance(loaders, SeededLoader) and isinstance(loaders.sampler, SeededSampler):
        everything = copy.copy(loaders.sampler)
        sampler = everything if ranks == 1 else RankSampler(everything, rank=rank, ranks=ranks)
        assert loaders.batch_size is not None
        batches = BatchSampler(sampler, loaders.batch_size, loaders.drop_last)
        loader = loaders.replace(sampler=sampler, batch_sampler=batches)
        loader.load_state_dict({"epoch": 0, "batches": 0})
        return loader
    if isinstance(loaders, list | tuple):
        return type(loaders)(for_rank(loader, rank, ranks) for loader in loaders)
    if isinstance(loaders, dict):
        return {name: for_rank(loader, rank, ranks) for name, loader in loaders.items()}
    return loaders


class TensorBatches(TensorDataset):
    """A `TensorDataset` that gives a whole batch by one indexing instead of many items to be stacked."""

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the items `indices` of every tensor, stacked along the first dimension."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return tuple(tensor[rows] for tensor in self.tensors)


def seeded_loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    shuffle: bool,
    seed: int | np.random.Generator = 0,
    drop_last: bool = False,
    num_workers: int = 0,
) -> SeededLoader:
    """Build a loader whose batches depend only on the seed and the epoch.

    A `TensorDataset`, or a `Subset` of one, is read batch by batch rather than item by item. See `SeededLoader`.

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
    SeededLoader
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
    return SeededLoader(
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
