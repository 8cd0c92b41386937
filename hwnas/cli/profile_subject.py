"""What is profiled: a space of the hub by name, or the space of a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.nn import ModelSpace

BATCH_SIZE = 64
"""Inputs at once where none are asked for; of a space of the hub, one."""


@dataclass(frozen=True)
class Subject:
    """A space and what its members are called with.

    Parameters
    ----------
    name : str
        As it was asked for.
    make_space : callable
        Gives a new space.
    example : callable
        Gives as many inputs as it is told.
    batch_size : int
        How many inputs are taken when nobody says.
    """

    name: str
    make_space: Callable[[], ModelSpace]
    example: Callable[[int], Tensor]
    batch_size: int = BATCH_SIZE


def load_subject(name: str, seed: int = 0) -> Subject:
    """Find what a name stands for.

    Parameters
    ----------
    name : str
        A class of `hwnas.hub`, such as ``MobileNetV3Space``, with its default settings; or what
        `hwnas.experiment.load_task` takes.
    seed : int, default 0
        Of the inputs.

    Raises
    ------
    TaskError
        When the name is unknown, or the file fails or does not fit.
    """
    import torch

    from hwnas import hub
    from hwnas.experiment import load_task
    from hwnas.experiment.task import BUILT_IN, unknown_space

    spaces = {
        key: value for key in hub.__all__ if isinstance(value := getattr(hub, key), type) and key.endswith("Space")
    }
    if name in spaces:
        space = spaces[name]
        with torch.device("meta"):
            shape = tuple(space().input_shape)

        def random_images(n: int) -> Tensor:
            return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))

        return Subject(name, space, random_images, batch_size=1)
    if name not in BUILT_IN and not name.rpartition(":")[0].endswith(".py"):
        raise unknown_space(name, [*BUILT_IN, *spaces])
    task = load_task(name, seed)
    return Subject(task.name, task.make_space, task.example)
