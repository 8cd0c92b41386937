"""Tempered Gumbel samples: the relaxation of GumbelDARTS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hwnas.space import LabeledMutable
from hwnas.supernet.sampled_softmax import Active, SampledSoftmax, gumbel_noise, straight_through


class GumbelSoftmax(SampledSoftmax):
    """Weights are ``softmax((logits + noise) / temperature)`` with one draw of Gumbel noise for each label.

    The largest weight is that of a value that was drawn from the softmax of the logits, at any temperature; the lower
    the temperature, the nearer the weights are to it alone.

    FBNet charges the cost with the tempered weights, SNAS takes the expected cost of the drawn architecture. Here the
    cost is charged as in SNAS, with its exact expectation: `probabilities` does not depend on noise or temperature.

    Parameters
    ----------
    mutables : iterable of LabeledMutable
        The dimensions of the space, all of them choices among listed values.
    temperature : float, default 1.0
        Above 0.
    hard : bool, default False
        Whether the forward pass takes the drawn value alone, with weight one. The gradient is still that of the
        tempered weights (straight-through). Where no gradient of the architecture is wanted, only the drawn
        value runs.
    seed : int, default 0
        See `SampledSoftmax`.

    Raises
    ------
    ValueError
        When the temperature is not above 0.
    UnsupportedError
        See `SampledSoftmax`.

    References
    ----------
    Jang, Gu, Poole: Categorical Reparameterization with Gumbel-Softmax, ICLR 2017.
    Wu et al.: FBNet: Hardware-Aware Efficient ConvNet Design via Differentiable Neural Architecture Search, CVPR 2019.
    Xie, Zheng, Liu, Lin: SNAS: Stochastic Neural Architecture Search, ICLR 2019.

    Examples
    --------
    >>> from hwnas.space import Categorical
    >>> depth = Categorical([1, 2, 3], label="depth")
    >>> relaxation = GumbelSoftmax([depth], temperature=0.5, hard=True)
    >>> sorted(relaxation.mixture(depth).weights.tolist())
    [0.0, 0.0, 1.0]
    """

    def __init__(
        self, mutables: Iterable[LabeledMutable], *, temperature: float = 1.0, hard: bool = False, seed: int = 0
    ) -> None:
        self._noise: dict[str, Tensor] = {}
        self._drawn: dict[str, int] = {}
        super().__init__(mutables, seed=seed)
        self.temperature = temperature
        self.hard = hard

    @property
    def temperature(self) -> float:
        """The divisor of the perturbed logits."""
        return self._temperature

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"GumbelSoftmax: temperature is {temperature}; expected a finite number above 0")
        self._temperature = float(temperature)

    def draw(self, label: str, given: int | None, generator: torch.Generator) -> int:
        """Draw the noise of a label; where a value is given, exchange its noise so that it is the largest."""
        logits = self.logits(label).detach().to("cpu", torch.float64)
        perturbed = logits + gumbel_noise(len(logits), generator)
        position = int(perturbed.argmax())
        if given is not None:
            perturbed[[position, given]] = perturbed[[given, position]]
            position = given
        self._noise[label] = (perturbed - logits).to(self.alpha(label))
        self._drawn[label] = position
        return position

    def active(self, label: str) -> Active:
        """Return all values with their tempered weights; the drawn one alone where that is enough."""
        position = self._drawn[label]
        if self.hard and not self.trains_architecture():
            return Active((position,), None)
        logits = self.logits(label)
        weights = torch.softmax((logits + self._noise[label].to(logits)) / self.temperature, 0)
        return Active(tuple(range(len(logits))), straight_through(weights, position) if self.hard else weights)

    def get_extra_state(self) -> Any:
        """Return how far the draws have come, and the temperature."""
        return {**super().get_extra_state(), "temperature": self.temperature}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Go on with the draws and the temperature from a state."""
        super().set_extra_state(state)
        self.temperature = state["temperature"]
