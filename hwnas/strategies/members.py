"""Members of a space as they are scored one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hwnas.evaluators import Evaluator, Lightning, recalibrate_batch_norm
from hwnas.nn import ModelSpace
from hwnas.space import Sample
from hwnas.strategies.batches import load_batches, single_loader
from hwnas.supernet import is_supernet


class Members:
    """Freezes members for an evaluator.

    Those of a super-net inherit its weights. Its running statistics of batch normalisation fit none of them, so those
    of a member are estimated on training batches, provided that the evaluator is a `Lightning` that does not train:
    training adapts them itself, and other evaluators have no training data.

    Parameters
    ----------
    space : ModelSpace
        Plain, or a super-net.
    evaluator : Evaluator
        That will score.
    max_batches : int, optional
        Training batches for the statistics; None for all, 0 to leave the statistics of the super-net.
    seed : int
        Of the order of the batches.

    Raises
    ------
    ValueError
        When training data is needed and the evaluator has none.
    """

    def __init__(self, space: ModelSpace, evaluator: Evaluator, *, max_batches: int | None = 20, seed: int = 0) -> None:
        self.space = space
        self._device = torch.device("cpu")
        self._batches: list[Any] | None = None
        if not isinstance(evaluator, Lightning) or evaluator.trains or max_batches == 0:
            return
        if not is_supernet(space) or not any(isinstance(module, _BatchNorm) for module in space.modules()):
            return
        if evaluator.train_dataloaders is None:
            raise ValueError(
                "the evaluator has no train_dataloaders, on which the batch normalisation statistics of each member of "
                "the super-net are estimated. Give it some, or max_recalibration_batches=0 to the strategy"
            )
        loader = single_loader(evaluator.train_dataloaders, "train_dataloaders")
        self._device = evaluator.trainer().strategy.root_device
        self._batches = load_batches(loader, max_batches, device=self._device, seed=seed)

    def freeze(self, sample: Sample) -> nn.Module:
        """Return a member. Some weights of a plain space are drawn here, from PyTorch's global generator.

        Parameters
        ----------
        sample : dict
            A value for each active label.
        """
        model: nn.Module = self.space.freeze(sample)
        if self._batches is not None:
            home = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
            recalibrate_batch_norm(model.to(self._device), self._batches)
            model.to(home)
        return model
