"""The order of batches is a function of seed and epoch, in a loop of one's own and under Lightning."""

from __future__ import annotations

import random
from itertools import chain

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from hwnas.evaluators import Lightning, LightningModule, seeded_loader
from hwnas.evaluators.loaders import SeededLoader, TensorBatches, for_rank


class Items(Dataset):
    """Items without tensors behind them: read one by one."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, index / 2


def table(n: int = 10) -> TensorDataset:
    return TensorDataset(torch.arange(n), torch.arange(n).float() / 2)


def epochs(loader: DataLoader, n: int) -> list[list[list[int]]]:
    result = []
    for epoch in range(n):
        loader.sampler.set_epoch(epoch)
        result.append([batch[0].tolist() for batch in loader])
    return result


@pytest.mark.parametrize("dataset", [table(), Items(), TensorBatches(*table().tensors)])
def test_each_item_once_and_in_the_same_order_for_any_dataset(dataset):
    seen = epochs(seeded_loader(dataset, 4, shuffle=True, seed=3), 3)
    for epoch in seen:
        assert [len(batch) for batch in epoch] == [4, 4, 2]
        assert sorted(chain(*epoch)) == list(range(10))
    assert seen[0] != seen[1] != seen[2]
    assert seen == epochs(seeded_loader(table(), 4, shuffle=True, seed=3), 3)
    assert seen != epochs(seeded_loader(table(), 4, shuffle=True, seed=4), 3)


def test_batches_have_the_form_of_an_ordinary_loader():
    ordinary = DataLoader(table(), batch_size=4)
    for ours, theirs in zip(seeded_loader(table(), 4, shuffle=False), ordinary, strict=True):
        assert type(ours) is type(theirs)
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))


def test_order_does_not_depend_on_the_past_or_on_global_state():
    loader = seeded_loader(table(), 4, shuffle=True, seed=3)
    expected = epochs(loader, 4)
    for _ in range(3):
        list(loader)
    torch.manual_seed(99)
    np.random.seed(99)
    assert epochs(loader, 4) == expected
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_drop_last_and_no_shuffle():
    loader = seeded_loader(table(), 4, shuffle=False, drop_last=True)
    assert len(loader) == 2
    assert epochs(loader, 2) == [[[0, 1, 2, 3], [4, 5, 6, 7]]] * 2


def test_subsets_stay_in_memory_and_within_their_rows():
    subset = Subset(Subset(table(), [9, 7, 5, 3, 1]), [0, 2, 4])
    loader = seeded_loader(subset, 2, shuffle=True, seed=0)
    assert isinstance(loader.dataset, TensorBatches)
    assert sorted(chain(*epochs(loader, 1)[0])) == [1, 5, 9]


def test_a_subclass_keeps_its_own_reading():
    class Doubled(TensorDataset):
        def __getitem__(self, index):
            return tuple(2 * tensor for tensor in super().__getitem__(index))

    loader = seeded_loader(Doubled(torch.arange(4)), 4, shuffle=False)
    assert next(iter(loader))[0].tolist() == [0, 2, 4, 6]


def test_workers_give_the_same_batches():
    assert epochs(seeded_loader(table(), 4, shuffle=True, seed=3, num_workers=1), 2) == epochs(
        seeded_loader(table(), 4, shuffle=True, seed=3), 2
    )


def test_a_generator_is_a_seed():
    first, second = (
        epochs(seeded_loader(table(), 4, shuffle=True, seed=np.random.default_rng(5)), 2) for _ in range(2)
    )
    assert first == second


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="batch_size is 0"):
        seeded_loader(table(), 0, shuffle=True)
    with pytest.raises(ValueError, match="no items"):
        seeded_loader(TensorDataset(torch.empty(0)), 2, shuffle=True)


class Recorder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch[0].tolist()))
        return self.model(batch[1][:, None]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.0)


@pytest.mark.parametrize("dataset", [table(), Items()])
def test_lightning_sets_the_epoch(dataset, tmp_path):
    def keep() -> L.Callback:
        return L.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)

    module = Recorder()
    loader = seeded_loader(dataset, 4, shuffle=True, seed=3)
    expected = [(epoch, batch) for epoch, batches in enumerate(epochs(loader, 4)) for batch in batches]
    evaluator = Lightning(module, train_dataloaders=loader, max_epochs=4, accelerator="cpu")
    model = nn.Linear(1, 1).double() if isinstance(dataset, Items) else nn.Linear(1, 1)

    evaluator.fit(model, callbacks=[keep()])
    assert module.seen == expected

    # A fit resumed after two epochs goes on with the third, and a new one starts from epoch 0 again.
    module.seen.clear()
    evaluator.fit(model, callbacks=[keep()], ckpt_path=tmp_path / "epoch=1.ckpt")
    assert module.seen == expected[6:]
    module.seen.clear()
    evaluator.fit(model)
    assert module.seen == expected


def read(loader: SeededLoader, epoch: int) -> list:
    loader.sampler.set_epoch(epoch)
    return [batch[0].tolist() for batch in loader]


@pytest.mark.parametrize("dataset", [table(), Items()])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_pass_goes_on_where_another_stopped(dataset, workers):
    def fresh() -> SeededLoader:
        return seeded_loader(dataset, 3, shuffle=True, seed=3, num_workers=workers)

    whole = fresh()
    expected = [read(whole, epoch) for epoch in range(2)]
    started = iter(whole)
    for _ in range(2):
        next(started)
    state = whole.state_dict()
    assert state == {"epoch": 1, "batches": 2}
    resumed = fresh()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert read(resumed, 1) == expected[1][2:]
    assert read(resumed, 1) == expected[1]  # the next pass is whole
    resumed.load_state_dict(state)
    assert read(resumed, 0) == expected[0]  # of another epoch
    assert len(resumed) == 4


def test_nothing_is_loaded_of_what_is_left_out():
    loaded: list[int] = []

    class Watched(Items):
        def __getitem__(self, index: int) -> tuple[int, float]:
            loaded.append(index)
            return super().__getitem__(index)

    loader = seeded_loader(Watched(), 3, shuffle=False)
    loader.load_state_dict({"epoch": 0, "batches": 2})
    list(loader)
    assert loaded == [6, 7, 8, 9]


class Random(Dataset):
    """Draws from all global generators."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index, float(torch.rand(())), np.random.random(), random.random()], dtype=torch.float64)


def test_what_a_data_set_draws_depends_on_seed_and_epoch_and_nothing_else():
    def batches(epoch: int, *, workers: int = 0, skip: int = 0, seed: int = 3) -> list:
        loader = seeded_loader(Random(), 4, shuffle=True, seed=seed, num_workers=workers)
        loader.load_state_dict({"epoch": epoch, "batches": skip})
        loader.sampler.set_epoch(epoch)
        torch.manual_seed(skip)
        before = torch.get_rng_state()
        found = [batch.tolist() for batch in loader]
        assert torch.equal(before, torch.get_rng_state())
        return found

    first = batches(0)
    assert batches(0) == batches(0, workers=2) == first
    assert batches(0, workers=1, skip=2) == batches(0, skip=2) == first[2:]
    columns = np.array(list(chain(*first)))
    assert len(np.unique(columns[:, 1:])) == 30
    assert not np.isin(columns[:, 1:], np.array(list(chain(*batches(1))))).any()
    assert not np.isin(columns[:, 1:], np.array(list(chain(*batches(0, seed=4))))).any()


@pytest.mark.parametrize("n", [12, 11, 1])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_parts_of_processes_are_the_whole(n, ranks):
    """Batch by batch they are what one process reads; what is missing at the end is read twice."""
    loader = seeded_loader(table(n), 2, shuffle=True, seed=3)
    parts = [for_rank(loader, rank, ranks) for rank in range(ranks)]
    whole = seeded_loader(table(n), 2 * ranks, shuffle=True, seed=3)
    for epoch in (0, 1):
        read_by = [read(part, epoch) for part in parts]
        assert len({len(batches) for batches in read_by}) == 1
        assert all(len(batches) == len(part) for batches, part in zip(read_by, parts, strict=True))
        together = [sorted({*chain(*step)}) for step in zip(*read_by, strict=True)]
        alone = read(whole, epoch)
        assert {*chain(*together)} == {*range(n)}
        assert together[: n // (2 * ranks)] == [sorted(batch) for batch in alone][: n // (2 * ranks)]
    assert loader.sampler.epoch == 0


def test_each_fit_has_loaders_of_its_own():
    loader, other = seeded_loader(table(), 4, shuffle=True), DataLoader(table())
    loader.load_state_dict({"epoch": 0, "batches": 1})
    (own, same), nested = for_rank([loader, other], 0, 1), for_rank({"a": loader}, 0, 1)["a"]
    assert same is other
    assert own is not loader
    assert read(own, 0) == read(nested, 0) == epochs(seeded_loader(table(), 4, shuffle=True), 1)[0]


def test_a_loader_that_cannot_go_on_is_named(tmp_path):
    def keep() -> L.Callback:
        return L.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2)

    plain = DataLoader(table(), 4)
    evaluator = Lightning(Recorder(), train_dataloaders=plain, max_epochs=1, accelerator="cpu")
    evaluator.fit(nn.Linear(1, 1), callbacks=[keep()])
    with pytest.warns(UserWarning, match="your dataloader is not resumable"):
        evaluator.fit(nn.Linear(1, 1), callbacks=[keep()], ckpt_path=tmp_path / "step=2.ckpt")
