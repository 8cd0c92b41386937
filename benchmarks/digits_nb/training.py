"""Training of members of digits-NB from scratch: the recipe of the table, and nothing else.

The networks are so small that what surrounds an operator costs more than the operator. So the trainings of one member
under several seeds run side by side as one network of as many groups: each group has weights, images in an order, and
statistics of its own, and the sum of the losses gives each the gradient that it would have alone. Three together take
little more than half the time of three in a row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from space import DigitsBench, Head
from torch import Tensor, nn

from hwnas.evaluators.digits import DataSplit
from hwnas.space import Sample


@dataclass(frozen=True)
class Recipe:
    """How every member is trained.

    Attributes
    ----------
    learning_rate, momentum, weight_decay : float
        Of SGD; the learning rate falls to 0 along a cosine, step by step.
    batch_size, epochs : int
        The last batch of an epoch is smaller.
    """

    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64
    epochs: int = 12

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What the trainings of one member gave, one entry for each seed.

    Attributes
    ----------
    val_correct, test_correct : list of int
        Images classified rightly, of 539 and of 540.
    seconds : float
        Processor time of all trainings together, with the validation; the test is not part of it.
    """

    val_correct: list[int]
    test_correct: list[int]
    seconds: float


class GroupedHead(nn.Module):
    """Heads side by side; group g looks at the g-th part of the channels.

    Parameters
    ----------
    heads : sequence of Head
        One for each group.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([head.linear.weight.detach().T for head in heads]))  # (G, C, 10)
        self.bias = nn.Parameter(torch.stack([head.linear.bias.detach()[None] for head in heads]))  # (G, 1, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map shape (N, G * C, H, W) to scores, shape (G, N, 10)."""
        features = x.mean((2, 3)).view(len(x), len(self.weight), -1).transpose(0, 1)  # (G, N, C)
        return torch.baddbmm(self.bias, features, self.weight)


def side_by_side(models: Sequence[nn.Module]) -> nn.Module:
    """Join models of one architecture to a network of as many groups. The first is used up.

    Parameters
    ----------
    models : sequence of nn.Module
        Frozen members, initialised.

    Returns
    -------
    nn.Module
        Maps images, shape (N, G, 8, 8), one image for each group, to scores, shape (G, N, 10).
    """
    first, groups = models[0], len(models)
    if isinstance(first, Head):
        return GroupedHead([model for model in models if isinstance(model, Head)])
    if isinstance(first, nn.BatchNorm2d):
        return nn.BatchNorm2d(first.num_features * groups)
    if isinstance(first, nn.Conv2d):
        joined = nn.Conv2d(
            first.in_channels * groups,
            first.out_channels * groups,
            first.kernel_size,  # type: ignore[arg-type]
            padding=first.padding,  # type: ignore[arg-type]
            groups=first.groups * groups,
            bias=False,
        )
        with torch.no_grad():
            joined.weight.copy_(torch.cat([model.weight for model in models]))  # type: ignore[misc]
        return joined
    for name, _ in list(first.named_children()):
        setattr(first, name, side_by_side([getattr(model, name) for model in models]))
    return first


def initialised(space: DigitsBench, sample: Sample, seed: int) -> nn.Module:
    """Build a member with weights that depend on the seed alone."""
    model = space.freeze(sample)
    torch.manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def fit(model: nn.Module, images: Tensor, targets: Tensor, seeds: Sequence[int], recipe: Recipe) -> None:
    """Train models side by side; each seed gives the order of the images of its group.

    Parameters
    ----------
    model : nn.Module
        From `side_by_side`; trained in place.
    images : Tensor, shape (N, 1, 8, 8)
        All of them.
    targets : Tensor, shape (N,)
        Classes.
    seeds : sequence of int
        Of the orders, one for each group.
    recipe : Recipe
        The settings.
    """
    optimizer = torch.optim.SGD(
        model.parameters(),
        recipe.learning_rate,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    orders = [torch.Generator().manual_seed(seed) for seed in seeds]
    steps = recipe.epochs * math.ceil(len(images) / recipe.batch_size)
    step = 0
    model.train()
    for _ in range(recipe.epochs):
        epoch = torch.stack([torch.randperm(len(images), generator=order) for order in orders], dim=1)
        for rows in epoch.split(recipe.batch_size):  # (batch, G)
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad()
            scores = model(images[rows].squeeze(2))
            # The mean over all is the mean over groups of what each group would minimise alone.
            loss = len(seeds) * F.cross_entropy(scores.flatten(0, 1), targets[rows].T.flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1


@torch.inference_mode()
def count_correct(model: nn.Module, images: Tensor, targets: Tensor, groups: int) -> list[int]:
    """Count for each group the images that it classifies rightly, in evaluation mode."""
    model.eval()
    right = model(images.expand(-1, groups, -1, -1)).argmax(2) == targets
    return [int(count) for count in right.sum(1)]


def train_member(space: DigitsBench, sample: Sample, seeds: Sequence[int], data: DataSplit, recipe: Recipe) -> Outcome:
    """Train one member from scratch under some seeds and evaluate it.

    Parameters
    ----------
    space : DigitsBench
        Its weights play no part.
    sample : dict
        The member.
    seeds : sequence of int
        Each gives the weights and the order of the images of one training.
    data : DataSplit
        Trained on the training part.
    recipe : Recipe
        The settings.

    Returns
    -------
    Outcome
        On the validation and the test part.
    """
    started = time.process_time()
    model = side_by_side([initialised(space, sample, seed) for seed in seeds])
    fit(model, *data.train.tensors, seeds, recipe)
    val_correct = count_correct(model, *data.val.tensors, len(seeds))
    seconds = time.process_time() - started
    return Outcome(val_correct, count_correct(model, *data.test.tensors, len(seeds)), seconds)
