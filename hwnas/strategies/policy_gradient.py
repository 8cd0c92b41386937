"""How a controller learns from rewards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hwnas.space import Sample
from hwnas.strategies.controller import Controller

Algorithm = Literal["ppo", "reinforce"]

_ROUNDING = 1e-9
"""Relative differences of rewards that are none."""


@dataclass(frozen=True)
class ControllerLearning:
    """How a controller is trained.

    Parameters
    ----------
    algorithm : {"ppo", "reinforce"}
        See `PolicyGradient`.
    learning_rate : float
        Of Adam.
    entropy_weight : float
        Of the entropy, in nats, against advantages, whose scale is 1.
    baseline_decay : float
        What the moving averages keep at an update; at least 0, below 1.
    clip : float
        How far PPO lets a ratio go from 1 before it has no gradient.
    ppo_steps : int
        Steps of PPO in an update.
    gradient_clip : float
        Largest norm of the gradient.

    Raises
    ------
    ValueError
        When an argument is out of its range.
    """

    algorithm: Algorithm = "ppo"
    learning_rate: float = 5e-3
    entropy_weight: float = 0.01
    baseline_decay: float = 0.9
    clip: float = 0.2
    ppo_steps: int = 4
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.algorithm not in ("ppo", "reinforce"):
            raise ValueError(f"ControllerLearning: algorithm is {self.algorithm!r}; expected 'ppo' or 'reinforce'")
        if not 0 <= self.baseline_decay < 1:
            raise ValueError(
                f"ControllerLearning: baseline_decay is {self.baseline_decay}; expected at least 0 and below 1"
            )
        if not self.entropy_weight >= 0:
            raise ValueError(f"ControllerLearning: entropy_weight is {self.entropy_weight}; expected at least 0")
        if self.ppo_steps < 1:
            raise ValueError(f"ControllerLearning: ppo_steps is {self.ppo_steps}; expected at least 1")
        for name in ("learning_rate", "clip", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"ControllerLearning: {name} is {getattr(self, name)}; expected a number above 0")


class PolicyGradient:
    """Raises the probability of samples whose reward is above a moving average.

    The advantage of a sample is ``(reward - baseline) / scale``: the baseline is the moving average of the rewards
    before this update, the scale the root of that of the squared differences from it, this update included. So
    rewards may be of any size, and equal rewards teach nothing. With ``"reinforce"`` an update is one step along
    the gradient of ``advantage * log p``; with ``"ppo"`` it is several, of the clipped objective, with one ratio of
    probabilities for each label. To both belongs a bonus for the entropy.

    Samples that constraints or a filter refused are not part of an update. The gradient of the probability of being
    accepted, which is therefore left out, is multiplied by the mean advantage, which the baseline keeps near 0.

    Parameters
    ----------
    controller : Controller
        To be trained.
    learning : ControllerLearning
        How.

    References
    ----------
    Williams: Simple statistical gradient-following algorithms for connectionist reinforcement learning, 1992.
    Schulman et al.: Proximal Policy Optimization Algorithms, 2017.
    """

    def __init__(self, controller: Controller, learning: ControllerLearning) -> None:
        self.controller = controller
        self.learning = learning
        self.optimizer = torch.optim.Adam(controller.parameters(), lr=learning.learning_rate)
        self.baseline: float | None = None
        self.variance = 0.0

    def update(self, samples: Sequence[Sample], rewards: Sequence[float]) -> float:
        """Learn from samples that the controller has drawn since the last update.

        Parameters
        ----------
        samples : sequence of dict
            At least one.
        rewards : sequence of float
            One for each, finite; greater is better.

        Returns
        -------
        float
            The entropy of the policy before the update, in nats, estimated from the samples.
        """
        advantages = self._advantages(rewards)
        decisions = self.controller.decisions(samples)
        with torch.no_grad():
            before, entropies = self.controller(decisions)
        for _ in range(self.learning.ppo_steps if self.learning.algorithm == "ppo" else 1):
            log_p, entropy = self.controller(decisions)
            objective = self._objective(log_p, before, advantages[:, None].to(log_p))
            loss = -(objective + self.learning.entropy_weight * entropy).sum(1).mean()
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.controller.parameters(), self.learning.gradient_clip)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return float(entropies.sum(1).mean())

    def _objective(self, log_p: Tensor, before: Tensor, advantages: Tensor) -> Tensor:
        """Return what is to be raised, shape (samples, labels)."""
        if self.learning.algorithm == "reinforce":
            return advantages * log_p
        ratio = (log_p - before).exp()
        clip = self.learning.clip
        return torch.minimum(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip))

    def _advantages(self, rewards: Sequence[float]) -> Tensor:
        values = torch.tensor(rewards, dtype=torch.float64)
        mean = float(values.mean())
        first = self.baseline is None
        baseline = mean if self.baseline is None else self.baseline
        differences = values - baseline
        keep = 0.0 if first else self.learning.baseline_decay
        self.variance = keep * self.variance + (1 - keep) * float(differences.square().mean())
        self.baseline = keep * baseline + (1 - keep) * mean
        scale = math.sqrt(self.variance)
        # Adam would make a step of full size of the tiniest gradient, even of a rounding error.
        if scale <= _ROUNDING * max(abs(baseline), float(values.abs().max())):
            return torch.zeros_like(values)
        return differences / scale

    def state_dict(self) -> dict[str, Any]:
        """Return the controller, its optimiser and the moving averages."""
        return {
            "controller": self.controller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "baseline": self.baseline,
            "variance": self.variance,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.controller.load_state_dict(state["controller"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.baseline, self.variance = state["baseline"], state["variance"]
