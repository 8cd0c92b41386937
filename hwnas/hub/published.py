"""Architectures from papers, as members of the spaces of the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hwnas.nn import ModelSpace
from hwnas.space import Sample


@dataclass(frozen=True)
class Published:
    """An architecture from a paper, as a member of a space.

    Parameters
    ----------
    space : callable
        Gives the space with the settings of the paper.
    sample : dict
        The member.
    parameters : float or None
        Number of parameters that the paper prints; None where it prints none.
    macs : float or None
        Multiply-adds of one image that the paper prints; None where it prints none.
    source : str
        Paper and table of the figures.
    note : str
        What the figures leave out, and why the built model deviates, if it does.
    """

    space: Callable[[], ModelSpace]
    sample: Sample
    parameters: float | None
    macs: float | None
    source: str
    note: str = ""

    def model(self) -> nn.Module:
        """Return the architecture as a plain PyTorch model, newly initialised."""
        frozen: nn.Module = self.space().freeze(self.sample)
        return frozen

    def count(self) -> tuple[int, int]:
        """Count what was built, without memory for its weights.

        Returns
        -------
        tuple of int
            The parameters, and the multiply-adds of one image in convolutions and matrix products.
        """
        with torch.device("meta"):
            space = self.space()
            model = space.freeze(self.sample).eval()
            image = torch.empty(1, *space.input_shape)  # type: ignore[misc]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
        return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2
