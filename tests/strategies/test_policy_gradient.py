"""A bandit with a known best arm, and what must not change a policy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hwnas.space import Categorical, MutableDict, Sample
from hwnas.strategies.controller import Controller
from hwnas.strategies.policy_gradient import ControllerLearning, PolicyGradient

ARMS = ["a", "b", "c", "d"]
BEST = {"first": "c", "second": "b", "third": "c"}


def bandit() -> MutableDict:
    return MutableDict({name: Categorical(ARMS, label=name) for name in BEST})


def reward(sample: Sample, rng: np.random.Generator) -> float:
    """Of the best arm 0.9, less for each label that differs; the noise is as large as a difference."""
    return 0.9 - 0.1 * sum(sample[label] != value for label, value in BEST.items()) + 0.1 * rng.normal()


def probability(controller: Controller, sample: Sample) -> float:
    return math.exp(controller.log_probability(sample))


def trained(learning: ControllerLearning, updates: int) -> Controller:
    controller = Controller(bandit(), hidden=16)
    learner, rng = PolicyGradient(controller, learning), np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        samples = controller.draw(20, generator)
        learner.update(samples, [reward(sample, rng) for sample in samples])
    return controller


@pytest.mark.parametrize(("algorithm", "updates"), [("ppo", 60), ("reinforce", 150)])
def test_the_best_of_64_arms_becomes_likely(algorithm, updates):
    controller = trained(ControllerLearning(algorithm=algorithm), updates)
    assert controller.greedy() == BEST
    assert probability(controller, BEST) > 0.9


def test_rewards_may_have_any_size_and_offset():
    ends = []
    for scale, offset in ((1.0, 0.0), (1e4, -5e5)):
        controller = Controller(bandit(), hidden=16)
        learner, rng = PolicyGradient(controller, ControllerLearning()), np.random.default_rng(0)
        generator = torch.Generator().manual_seed(0)
        for _ in range(30):
            samples = controller.draw(20, generator)
            learner.update(samples, [scale * reward(sample, rng) + offset for sample in samples])
        ends.append(probability(controller, BEST))
    assert ends[0] == pytest.approx(ends[1], rel=0.05)
    assert ends[0] > 3 / 64


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
@pytest.mark.parametrize("value", [0.1, 0.0, 1 / 3, -7e5])
def test_equal_rewards_teach_nothing(algorithm, value):
    controller = Controller(bandit(), hidden=16)
    learner = PolicyGradient(controller, ControllerLearning(algorithm=algorithm, entropy_weight=0))
    before = {name: tensor.clone() for name, tensor in controller.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        learner.update(controller.draw(7, generator), [value] * 7)
    assert all(torch.equal(before[name], tensor) for name, tensor in controller.state_dict().items())


def test_equal_rewards_with_the_default_bonus_leave_a_uniform_policy_uniform():
    controller = Controller(bandit(), hidden=16)
    learner, generator = PolicyGradient(controller, ControllerLearning()), torch.Generator().manual_seed(0)
    for _ in range(20):
        entropy = learner.update(controller.draw(20, generator), [0.5] * 20)
    assert entropy == pytest.approx(3 * math.log(4), abs=1e-3)


def test_the_entropy_bonus_draws_to_the_uniform_policy():
    space = Categorical(ARMS, weights=[0.85, 0.05, 0.05, 0.05], label="arm")
    controller = Controller(space, hidden=16)
    learner, generator = (
        PolicyGradient(controller, ControllerLearning(entropy_weight=0.1)),
        torch.Generator().manual_seed(0),
    )
    entropies = [learner.update(controller.draw(20, generator), [0.5] * 20) for _ in range(60)]
    assert entropies[0] == pytest.approx(-(0.85 * math.log(0.85) + 0.15 * math.log(0.05)), abs=1e-5)
    assert entropies[-1] > 1.3 > entropies[0]


def test_a_step_follows_the_estimated_gradient():
    """One step of plain gradient ascent in place of Adam, against the formula worked out by hand."""
    space = Categorical(["a", "b"], label="arm")
    controller = Controller(space, hidden=4)
    learner = PolicyGradient(controller, ControllerLearning(algorithm="reinforce", entropy_weight=0, gradient_clip=1e9))
    learner.optimizer = torch.optim.SGD(controller.parameters(), lr=1.0)
    learner.baseline, learner.variance = 1.0, 4.0
    learner.update([{"arm": "a"}, {"arm": "a"}, {"arm": "b"}], [2.0, 0.0, 4.0])
    variance = 0.9 * 4 + 0.1 * (1 + 1 + 9) / 3
    # d log p(a) / d bias = (1/2, -1/2), and the opposite for b.
    slope = (1 - 1 - 3) / 3 / 2 / math.sqrt(variance)
    assert controller.heads[0].bias.tolist() == pytest.approx([slope, -slope])
    assert learner.variance == pytest.approx(variance)
    assert learner.baseline == pytest.approx(0.9 * 1 + 0.1 * 2)


def test_ppo_stops_where_a_ratio_is_clipped():
    space = Categorical(["a", "b"], label="arm")

    def ratio(clip: float) -> float:
        controller = Controller(space, hidden=4)
        learner = PolicyGradient(
            controller, ControllerLearning(clip=clip, ppo_steps=50, entropy_weight=0, learning_rate=1e-3)
        )
        learner.baseline, learner.variance = 0.0, 1.0
        learner.update([{"arm": "a"}], [1.0])
        return probability(controller, {"arm": "a"}) / 0.5

    # Adam coasts a little past the point at which the gradient ends.
    assert 1.05 < ratio(0.05) < 1.09
    assert ratio(0.05) < ratio(0.4)


def test_a_state_goes_on_bit_for_bit():
    def learner() -> PolicyGradient:
        return PolicyGradient(Controller(bandit(), hidden=16), ControllerLearning())

    def go_on(learner: PolicyGradient, seed: int) -> None:
        rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        for _ in range(3):
            samples = learner.controller.draw(5, generator)
            learner.update(samples, [reward(sample, rng) for sample in samples])

    whole = learner()
    go_on(whole, 0)
    resumed = learner()
    resumed.load_state_dict(whole.state_dict())
    state = resumed.state_dict()
    assert (state["baseline"], state["variance"]) == (whole.baseline, whole.variance)
    resumed.optimizer.load_state_dict(whole.optimizer.state_dict())
    twin = learner()
    go_on(twin, 0)
    go_on(twin, 1)
    go_on(resumed, 1)
    for a, b in zip(twin.controller.parameters(), resumed.controller.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "sarsa"}, "algorithm is 'sarsa'; expected 'ppo' or 'reinforce'"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected a number above 0"),
        ({"clip": -1.0}, "clip is -1.0"),
        ({"gradient_clip": float("nan")}, "gradient_clip is nan"),
        ({"entropy_weight": -0.1}, "entropy_weight is -0.1; expected at least 0"),
        ({"baseline_decay": 1.0}, "baseline_decay is 1.0; expected at least 0 and below 1"),
        ({"ppo_steps": 0}, "ppo_steps is 0; expected at least 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ControllerLearning(**arguments)
