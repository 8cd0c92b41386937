"""Batches for the parts of a search that happen outside the trainer's own loops."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch.utils.data import DataLoader, Sampler

from hwnas.errors import TrainingError
from hwnas.evaluators.seeding import isolated_seed


def single_loader(loaders: Any, name: str) -> Iterable[Any]:
    """Return the only loader of what a trainer takes as loaders.

    Raises
    ------
    ValueError
        When there are several, or none.
    """
    if isinstance(loaders, list | tuple) and len(loaders) == 1:
        loaders = loaders[0]
    if loaders is None or isinstance(loaders, list | tuple | dict):
        got = "none" if loaders is None else f"a {type(loaders).__name__} of {len(loaders)}"
        raise ValueError(f"{name}: expected one loader, got {got}. Join the data sets into one loader")
    loader: Iterable[Any] = loaders
    return loader


def load_batches(
    loader: Iterable[Any], limit: int | None = None, *, device: torch.device | None = None, seed: int = 0
) -> list[Any]:
    """Load batches of epoch 0 into memory, the same at every call.

    Parameters
    ----------
    loader : iterable
        Of batches.
    limit : int, optional
        How many at most.
    device : torch.device, optional
        Where to put them.
    seed : int
        For loaders that shuffle or augment with the global generators. These are left as they were.

    Raises
    ------
    TrainingError
        When there is no batch.
    """
    with isolated_seed(seed):
        _set_epoch(loader, 0)
        batches = list(itertools.islice(_own_workers(loader), limit))
    if not batches:
        raise TrainingError("the loader gave no batches; check its data set, batch size and drop_last")
    return batches if device is None else [move_data_to_device(batch, device) for batch in batches]


class CyclingBatches:
    """Batches without end, pass after pass, that can go on where another run stopped.

    Samplers with `set_epoch` are told the number of the pass; others are seeded by it. Several processes take turns:
    each gets every so many-th batch, and what they get at one time follows one another in the data.

    Parameters
    ----------
    loader : iterable
        Of batches; it can be iterated over many times.
    seed : int
        At least 0.
    """

    def __init__(self, loader: Iterable[Any], *, seed: int = 0) -> None:
        self._loader = _own_workers(loader)
        self._seed = seed
        self._rank, self._ranks = 0, 1
        self._passes = 0
        self._position = 0
        self._iterator: Iterator[Any] | None = None

    def share(self, rank: int, ranks: int) -> None:
        """Give only the batches of one of several processes.

        Parameters
        ----------
        rank, ranks : int
            Which of how many.
        """
        self._rank, self._ranks = rank, ranks
        self._iterator = None

    def __iter__(self) -> Iterator[Any]:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return the next batch.

        Raises
        ------
        TrainingError
            When a pass has no batches.
        """
        # All processes come to the same place, which is therefore the state of each of them.
        batches = [self._advance(turn) for turn in range(self._ranks)]
        return batches[self._rank]

    def _advance(self, turn: int) -> Any:
        """Return the batch of a process, which only that process needs to have."""
        if self._iterator is None:
            self._iterator = self._start(self._position, turn)
        found = list(itertools.islice(self._iterator, 1))
        if not found:
            self._passes, self._position = self._passes + 1, 0
            self._iterator = self._start(0, turn)
            found = list(itertools.islice(self._iterator, 1))
        if not found:
            raise TrainingError("the validation loader gave no batches; check its data set, batch size and drop_last")
        self._position += 1
        return found[0]

    def _start(self, skip: int, turn: int) -> Iterator[Any]:
        loader, leave_out = self._loader, skip
        if (skip or self._ranks > 1) and isinstance(loader, DataLoader) and loader.batch_sampler is not None:
            turns = _Turns(loader.batch_sampler, skip, (self._rank - turn) % self._ranks, self._ranks)
            chosen, leave_out = copy.copy(loader), 0
            # `DataLoader` refuses to set them.
            vars(chosen).update(batch_sampler=turns, collate_fn=_CollateSome(loader.collate_fn), _iterator=None)
            loader = chosen
        # Loaders decide on the order when the first batch is taken, so that happens inside the seeded block.
        with isolated_seed((self._seed + 0x9E3779B1 * (self._passes + 1)) % 2**63):
            _set_epoch(self._loader, self._passes)
            iterator = iter(loader)
            head = list(itertools.islice(iterator, leave_out + 1))
        return itertools.chain(head[leave_out:], iterator)

    def state_dict(self) -> dict[str, int]:
        """Return the pass and the position in it."""
        return {"passes": self._passes, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a state."""
        self._passes, self._position = state["passes"], state["position"]
        self._iterator = None


class _Turns(Sampler[list[int]]):
    """Batches of indices without the first ones; those of other processes are empty, so that nothing is loaded."""

    def __init__(self, batches: Iterable[list[int]], skip: int, first: int, step: int) -> None:
        self.batches = batches
        self.skip = skip
        self.first = first
        self.step = step

    def __iter__(self) -> Iterator[list[int]]:
        rest = itertools.islice(self.batches, self.skip, None)
        return (indices if i % self.step == self.first else [] for i, indices in enumerate(rest))


class _CollateSome:
    """Makes a batch of items, and None of no items."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, items: Any) -> Any:
        return self.collate(items) if len(items) else None


def _own_workers(loader: Iterable[Any]) -> Iterable[Any]:
    """Give a loader with persistent workers a twin: all iterators of one such loader are the same object."""
    if isinstance(loader, DataLoader) and loader.persistent_workers:
        twin = copy.copy(loader)
        twin._iterator = None
        return twin
    return loader


def _set_epoch(loader: Iterable[Any], epoch: int) -> None:
    samplers = [
        getattr(loader, "sampler", None),
        getattr(getattr(loader, "batch_sampler", None), "sampler", None),
    ]
    for sampler in samplers:
        set_epoch = getattr(sampler, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
