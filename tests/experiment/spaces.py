"""Tiny spaces, in a file of their own as a user would write them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import hwnas.nn as nn
from hwnas.evaluators import DataSplit, digits


class Tiny(nn.ModelSpace):
    """Two widths and three blocks: six members."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([4, 8], label="width")
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        blocks = {
            "conv3": nn.Conv2d(width, width, 3, padding=1, bias=False),
            "conv1": nn.Conv2d(width, width, 1, bias=False),
            "skip": nn.Identity(),
        }
        self.block = nn.LayerChoice(blocks, label="block")
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


class Diverging(Tiny):
    """Fails in training alone, when everything has been measured."""

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores * float("nan") if self.training else scores


def data(seed: int) -> DataSplit:
    """A part of the digits, so that an epoch takes no time."""
    whole = digits(seed=seed)

    def first(part: TensorDataset, n: int) -> TensorDataset:
        return TensorDataset(*(torch.clone(tensor[:n]) for tensor in part.tensors))

    rows = {name: rows[:n] for (name, rows), n in zip(whole.rows.items(), (96, 64, 40), strict=True)}
    return DataSplit(first(whole.train, 96), first(whole.val, 64), first(whole.test, 40), rows, 16, seed)
