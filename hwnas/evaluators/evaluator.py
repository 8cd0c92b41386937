"""What every evaluator offers: one number for one model."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn


class Evaluator(ABC):
    """Trains and scores a model.

    One-shot strategies need more than a number and therefore ask for `hwnas.evaluators.Lightning`; strategies
    that train each candidate by itself work with any evaluator.
    """

    @abstractmethod
    def evaluate(self, model: nn.Module) -> float:
        """Train `model`, in place, and return its metric.

        Parameters
        ----------
        model : nn.Module
            An ordinary model without choices.

        Returns
        -------
        float
            The metric named ``default``. Whether more is better is for the strategy to know.
        """
