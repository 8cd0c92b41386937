from __future__ import annotations

import numpy as np
import pytest
import torch

from hwnas.evaluators import digits

PARTS = ("train", "val", "test")


@pytest.mark.parametrize("seed", [0, 7])
def test_parts_are_disjoint_complete_and_stratified(seed):
    data = digits(seed)
    assert [len(getattr(data, part)) for part in PARTS] == [718, 539, 540]
    rows = np.concatenate([data.rows[part] for part in PARTS])
    assert sorted(rows) == list(range(1797))
    whole = torch.cat([getattr(data, part).tensors[1] for part in PARTS]).bincount() / 1797
    for part in PARTS:
        targets = getattr(data, part).tensors[1]
        # No class is more than one sample off its share.
        assert torch.all((targets.bincount() - whole * len(targets)).abs() <= 1)


def test_rows_name_the_samples():
    from sklearn.datasets import load_digits

    images, targets = load_digits(return_X_y=True)
    data = digits(3)
    x, y = data.val.tensors
    assert x.shape == (539, 1, 8, 8)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert np.array_equal(y.numpy(), targets[data.rows["val"]])
    # Normalised by an affine map: perfectly correlated with the pixels.
    pixels = images[data.rows["val"]].ravel()
    assert np.corrcoef(pixels, x.numpy().ravel())[0, 1] == pytest.approx(1.0)


def test_normalised_over_the_training_part_only():
    data = digits(0)
    train = data.train.tensors[0].double()
    assert train.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert abs(data.test.tensors[0].double().mean().item()) > 1e-5


def test_seeded():
    first, again, other = digits(0), digits(0), digits(1)
    assert all(np.array_equal(first.rows[part], again.rows[part]) for part in PARTS)
    assert torch.equal(first.train.tensors[0], again.train.tensors[0])
    assert not np.array_equal(first.rows["train"], other.rows["train"])


def test_loaders():
    data = digits(0, batch_size=100)
    assert [len(x) for x, _ in data.train_loader()] == [100] * 7 + [18]
    assert [len(x) for x, _ in data.train_loader(drop_last=True)] == [100] * 7
    assert torch.equal(torch.cat([y for _, y in data.val_loader()]), data.val.tensors[1])
    assert torch.equal(torch.cat([y for _, y in data.test_loader()]), data.test.tensors[1])
    shuffled = torch.cat([y for _, y in data.val_loader(shuffle=True)])
    assert not torch.equal(shuffled, data.val.tensors[1])
    assert torch.equal(shuffled.bincount(), data.val.tensors[1].bincount())
