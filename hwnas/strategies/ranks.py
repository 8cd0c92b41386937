"""What the processes of a distributed search tell each other: gradients, metrics, and that they do the same."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from hwnas.errors import TrainingError
from hwnas.evaluators import Lightning
from hwnas.strategies.gradients import Gradients


def check_launcher(evaluator: Lightning) -> None:
    """Raise where the processes of a trainer would end with their results inside them.

    Raises
    ------
    ValueError
        When they are forked or spawned: this process would keep the untrained super-net.
    """
    strategy = evaluator.trainer_kwargs.get("strategy", "auto")
    start = strategy if isinstance(strategy, str) else getattr(strategy, "_start_method", "popen")
    if any(method in start for method in ("spawn", "fork", "notebook")):
        raise ValueError(
            f"the trainer has the strategy {strategy!r}, which trains in processes that are forked or spawned; what "
            'they find does not come back to this one. Give strategy="ddp", and start the search as a script'
        )


def allow_unused_parameters(trainer: L.Trainer) -> None:
    """Tell `DistributedDataParallel` that members leave parameters of the super-net without a gradient."""
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)


def mean_gradients(trainer: L.Trainer, parameters: Sequence[Tensor], gradients: Gradients) -> Gradients:
    """Return the mean over all processes; None for parameters that have a gradient in none of them.

    All processes get the same, bit for bit. One value that is not finite makes the mean so everywhere.

    Parameters
    ----------
    trainer : lightning.Trainer
        That trains.
    parameters : sequence of Tensor
        Of one floating-point type.
    gradients : sequence of Tensor or None
        One for each parameter.
    """
    if trainer.world_size == 1:
        return gradients
    filled = [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    present = filled[0].new_tensor([gradient is not None for gradient in gradients])
    flat = torch.cat([*(gradient.flatten() for gradient in filled), present])
    mean = trainer.strategy.reduce(flat, reduce_op="mean").split([*(part.numel() for part in filled), len(filled)])
    return [
        part.view_as(gradient) if found else None
        for part, gradient, found in zip(mean, filled, mean[-1].tolist(), strict=False)
    ]


def mean_number(trainer: L.Trainer, number: float) -> float:
    """Return the mean of a number over all processes."""
    if trainer.world_size == 1:
        return number
    value = torch.tensor(number, dtype=torch.float64, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(value, reduce_op="mean"))


def check_agreement(trainer: L.Trainer, what: str, value: Any) -> None:
    """Raise unless all processes have the same value.

    Parameters
    ----------
    trainer : lightning.Trainer
        That trains.
    what : str
        What it is, for the message.
    value : Any
        Tensors, mappings and sequences of them, and whatever `repr` tells apart.

    Raises
    ------
    TrainingError
        In all processes, when they differ.
    """
    if trainer.world_size == 1:
        return
    checksum = _checksum(value, 0)
    ends = torch.tensor([checksum, -checksum], device=trainer.strategy.root_device)
    largest, smallest = trainer.strategy.reduce(ends, reduce_op="max").tolist()
    if largest != -smallest:
        raise TrainingError(
            f"the processes of the search disagree on {what}. Each runs the same script: give the strategy an integer "
            "as its seed, and make sure that a filter or a penalty comes to the same result in all of them (load "
            "latencies that were measured once rather than measuring in each)"
        )


def take_buffers_of_first(trainer: L.Trainer, module: nn.Module) -> None:
    """Give all processes the buffers of the first, such as running statistics, of which each has its own."""
    if trainer.world_size > 1:
        own = dict(module.named_buffers())
        first = trainer.strategy.broadcast({name: buffer.cpu() for name, buffer in own.items()})
        for name, buffer in own.items():
            buffer.copy_(first[name])


def _checksum(value: Any, start: int) -> int:
    if isinstance(value, Tensor):
        return zlib.crc32(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes(), start)
    if isinstance(value, Mapping):
        return _checksum([part for item in value.items() for part in item], start)
    if isinstance(value, list | tuple):
        for part in value:
            start = _checksum(part, start)
        return start
    return zlib.crc32(repr(value).encode(), start)
