"""Handwritten digits, 8x8, that come with scikit-learn: a data set that needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from hwnas.evaluators.loaders import seeded_loader

# 40, 30 and 30 per cent of 1,797.
N_TRAIN, N_VAL, N_TEST = 718, 539, 540


@dataclass(frozen=True)
class DataSplit:
    """Data in three disjoint parts.

    Attributes
    ----------
    train, val, test : TensorDataset
        Inputs, shape (N, 1, 8, 8), float32, and targets, shape (N,), int64.
    rows : dict of str to ndarray of int
        For ``train``, ``val`` and ``test``, which rows of the original data they hold.
    batch_size : int
        Of the loaders.
    seed : int
        Of the split and of the order of batches.
    """

    train: TensorDataset
    val: TensorDataset
    test: TensorDataset
    rows: dict[str, np.ndarray[Any, np.dtype[np.int64]]]
    batch_size: int
    seed: int

    def train_loader(self, *, shuffle: bool = True, drop_last: bool = False) -> DataLoader[Any]:
        """Give batches for training."""
        return self._loader(self.train, shuffle, drop_last)

    def val_loader(self, *, shuffle: bool = False, drop_last: bool = False) -> DataLoader[Any]:
        """Give batches for choosing: for validation, or to train the architecture on."""
        return self._loader(self.val, shuffle, drop_last)

    def test_loader(self) -> DataLoader[Any]:
        """Give batches for the final report. A search must not see them."""
        return self._loader(self.test, False, False)

    def _loader(self, data: TensorDataset, shuffle: bool, drop_last: bool) -> DataLoader[Any]:
        return seeded_loader(data, self.batch_size, shuffle=shuffle, seed=self.seed, drop_last=drop_last)


def digits(seed: int = 0, batch_size: int = 64) -> DataSplit:
    """Load scikit-learn's digits: 718 to train, 539 to validate, 540 to test, stratified by class.

    Parameters
    ----------
    seed : int
        Of the split and of the order of batches.
    batch_size : int
        Of the loaders.

    Returns
    -------
    DataSplit
        Pixels are shifted and scaled to mean 0 and standard deviation 1 over the training part.

    Raises
    ------
    ImportError
        If scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("digits needs scikit-learn: pip install scikit-learn.") from error

    images, targets = load_digits(return_X_y=True)
    everything = np.arange(len(targets))
    train, rest = train_test_split(
        everything, train_size=N_TRAIN, test_size=N_VAL + N_TEST, stratify=targets, random_state=seed
    )
    val, test = train_test_split(rest, train_size=N_VAL, test_size=N_TEST, stratify=targets[rest], random_state=seed)
    # Over the training part alone: the rest must not leak into it.
    mean, deviation = images[train].mean(), images[train].std()
    pixels = torch.tensor((images - mean) / deviation, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(targets, dtype=torch.int64)

    def part(rows: np.ndarray[Any, np.dtype[np.int64]]) -> TensorDataset:
        return TensorDataset(pixels[torch.as_tensor(rows)], labels[torch.as_tensor(rows)])

    rows = {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}
    return DataSplit(
        part(rows["train"]),
        part(rows["val"]),
        part(rows["test"]),
        rows=rows,
        batch_size=batch_size,
        seed=seed,
    )
