"""Differentiable search in a loop of plain PyTorch: small networks for handwritten digits, cheap ones preferred.

Weights are trained on the training part, the architecture on the validation part, and the result is reported on the
test part, which the search never sees. Takes some seconds on one core.

    python examples/plain_pytorch_search.py --epochs 8 --seed 0
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

import hwnas.nn as nn
from hwnas.evaluators import digits
from hwnas.profilers import FlopsProfiler
from hwnas.supernet import DifferentiableMutator


class Digits(nn.ModelSpace):
    """One width, and three layers of which each is a convolution, a depthwise one, or nothing."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([8, 16, 24], label="width")
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.layers = nn.ModuleList(
            nn.LayerChoice(
                {
                    "full": nn.Conv2d(width, width, 3, padding=1),
                    "depthwise": nn.Conv2d(width, width, 3, padding=1, groups=width),
                    "none": nn.Identity(),
                },
                label=f"layer{i}",
            )
            for i in range(3)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(3))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images, shape (N, 1, 8, 8), to scores, shape (N, 10)."""
        x = self.stem(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x)).relu()
        return self.head(x.mean((2, 3)))


def accuracy(model: torch.nn.Module, loader: DataLoader[Any]) -> float:
    """Return the share of images that a model classifies rightly."""
    model.eval()
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).float() for x, y in loader]
    return torch.cat(right).mean().item()


def main(epochs: int = 8, seed: int = 0) -> float:
    """Search, train what was found, and return its accuracy on the test part."""
    torch.manual_seed(seed)
    data = digits(seed=seed)
    space = Digits()
    # Before the space is changed.
    profiler = FlopsProfiler(space, torch.zeros(1, 1, 8, 8))
    largest = profiler.cost_model.maximum().cost

    mutator = DifferentiableMutator(seed=seed)
    mutator.prepare_from_supernet(space)
    weights = torch.optim.SGD(space.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-4)
    architecture = torch.optim.Adam(mutator.parameters(), lr=0.1, betas=(0.5, 0.999), weight_decay=1e-3)

    for epoch in range(epochs):
        pairs = zip(data.train_loader(), data.val_loader(shuffle=True), strict=False)
        for (x, y), (x_val, y_val) in pairs:
            if epoch >= epochs // 4:  # the weights have a head start
                with mutator.architecture_step():
                    cost = mutator.expected_cost(profiler)
                    loss = F.cross_entropy(space(x_val), y_val) + 0.2 * torch.log(cost / largest)
                    architecture.zero_grad()
                    loss.backward()
                    architecture.step()
            with mutator.weight_step():
                loss = F.cross_entropy(space(x), y)
                weights.zero_grad()
                loss.backward()
                weights.step()
        entropy = mutator.relaxation.entropy() / math.log(3)
        print(
            f"epoch {epoch}: loss {loss:.3f}, expected cost {mutator.expected_cost(profiler) / 1e3:.0f} kMACs, "
            f"undecided {entropy:.2f}"
        )

    sample = mutator.search_subnet()
    print(f"found {sample}: {profiler.profile(sample) / 1e3:.0f} of {largest / 1e3:.0f} kMACs")

    torch.manual_seed(seed)
    model = Digits().freeze(sample)  # a plain model with weights of its own
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-4)
    for _ in range(2 * epochs):
        model.train()
        for x, y in data.train_loader():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    score = accuracy(model, data.test_loader())
    print(f"test accuracy {score:.3f}")
    return score


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8, help="of the search")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
