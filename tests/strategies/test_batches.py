"""Cycling over a loader, and going on in the middle of a pass."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from hwnas.errors import TrainingError
from hwnas.evaluators import seeded_loader
from hwnas.strategies.batches import CyclingBatches, load_batches, single_loader

DATA = TensorDataset(torch.arange(10))


def plain(**kwargs) -> DataLoader:
    return DataLoader(DATA, batch_size=3, **kwargs)


LOADERS = {
    "seeded": lambda: seeded_loader(DATA, 3, shuffle=True),
    "shuffled": lambda: plain(shuffle=True),
    "list": lambda: [[torch.tensor([i])] for i in range(4)],
}


def take(batches, n: int) -> list[list[int]]:
    return [batch[0].tolist() for batch in itertools.islice(batches, n)]


@pytest.mark.parametrize("kind", LOADERS)
def test_goes_on_where_it_stopped(kind):
    whole = CyclingBatches(LOADERS[kind](), seed=3)
    expected = take(whole, 11)
    for stop in (0, 1, 4, 6):
        first = CyclingBatches(LOADERS[kind](), seed=3)
        head = take(first, stop)
        torch.rand(stop)
        second = CyclingBatches(LOADERS[kind](), seed=3)
        second.load_state_dict(first.state_dict())
        assert head + take(second, 11 - stop) == expected


@pytest.mark.parametrize("kind", ["seeded", "shuffled"])
def test_each_pass_is_complete_and_in_its_own_order(kind):
    state = torch.random.get_rng_state()
    batches = take(CyclingBatches(LOADERS[kind](), seed=3), 8)
    passes = [[i for batch in half for i in batch] for half in (batches[:4], batches[4:])]
    assert [sorted(each) for each in passes] == [list(range(10))] * 2
    assert passes[0] != passes[1]
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_take_turns(kind, ranks):
    """Also over the end of a pass, and from a place in the middle that any of them has written down."""
    expected = take(CyclingBatches(LOADERS[kind](), seed=3), 7 * ranks)
    parts = [CyclingBatches(LOADERS[kind](), seed=3) for _ in range(ranks)]
    for rank, part in enumerate(parts):
        part.share(rank, ranks)
    heads = [take(part, 3) for part in parts]
    states = [part.state_dict() for part in parts]
    assert states == states[:1] * ranks
    for rank, part in enumerate(parts):
        resumed = CyclingBatches(LOADERS[kind](), seed=3)
        resumed.share(rank, ranks)
        resumed.load_state_dict(states[0])
        rest = take(part, 4)
        assert heads[rank] + rest == expected[rank::ranks]
        assert take(resumed, 4) == rest


def test_batches_of_other_processes_are_not_loaded():
    loaded: list[int] = []

    class Watched(Dataset):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> int:
            loaded.append(index)
            return index

    batches = CyclingBatches(DataLoader(Watched(), batch_size=3))
    batches.share(1, 2)
    assert [next(batches).tolist() for _ in range(2)] == [[3, 4, 5], [9]]
    assert loaded == [3, 4, 5, 9]
    resumed = CyclingBatches(DataLoader(Watched(), batch_size=3))
    resumed.load_state_dict({"passes": 0, "position": 2})
    loaded.clear()
    assert next(resumed).tolist() == [6, 7, 8]
    assert loaded == [6, 7, 8]


def test_a_loader_in_use_elsewhere():
    """All iterators of a loader with persistent workers are one object; here they must not be."""
    loader = plain(num_workers=1, persistent_workers=True)
    cycling = CyclingBatches(loader)
    assert take(cycling, 1) == [[0, 1, 2]]
    assert take(loader, 2) == [[0, 1, 2], [3, 4, 5]]
    assert take(cycling, 2) == [[3, 4, 5], [6, 7, 8]]


def test_nothing_to_give():
    with pytest.raises(TrainingError, match="no batches"):
        next(CyclingBatches([]))
    with pytest.raises(TrainingError, match="no batches"):
        next(itertools.islice(CyclingBatches(iter([1])), 1, None))
    with pytest.raises(TrainingError, match="no batches"):
        load_batches([])


def test_in_memory():
    loader = seeded_loader(DATA, 3, shuffle=True)
    loader.sampler.set_epoch(5)
    first = [batch[0].tolist() for batch in load_batches(loader, 2)]
    loader.sampler.set_epoch(7)
    assert [batch[0].tolist() for batch in load_batches(loader, device=torch.device("cpu"))][:2] == first
    shuffled = plain(shuffle=True)
    assert str(load_batches(shuffled)) == str(load_batches(shuffled)) != str(load_batches(shuffled, seed=1))


def test_single_loader():
    assert single_loader(["x"], "here") == "x"
    for several, got in ((["x", "y"], "a list of 2"), ({"a": "x"}, "a dict of 1"), (None, "none")):
        with pytest.raises(ValueError, match=f"here: expected one loader, got {got}"):
            single_loader(several, "here")
