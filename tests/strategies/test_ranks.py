"""What processes tell each other, with one process and with a second one that is played."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from hwnas.errors import TrainingError
from hwnas.strategies import DARTS
from hwnas.strategies.ranks import allow_unused_parameters, check_agreement, mean_gradients, mean_number

ALONE: Any = SimpleNamespace(world_size=1)


def two(other: list[Tensor]) -> Any:
    """Return the trainer of one of two processes; the other one contributes `other`, one tensor after the other."""

    def reduce(tensor: Tensor, reduce_op: str) -> Tensor:
        theirs = other.pop(0)
        assert theirs.shape == tensor.shape
        return {"max": torch.maximum(tensor, theirs), "mean": (tensor + theirs) / 2}[reduce_op]

    return SimpleNamespace(world_size=2, strategy=SimpleNamespace(reduce=reduce, root_device=torch.device("cpu")))


def sent(call: Any) -> list[Tensor]:
    """Return what a process contributes."""
    tensors: list[Tensor] = []

    def reduce(tensor: Tensor, reduce_op: str) -> Tensor:
        tensors.append(tensor.clone())
        return tensor

    call(SimpleNamespace(world_size=2, strategy=SimpleNamespace(reduce=reduce, root_device=torch.device("cpu"))))
    return tensors


PARAMETERS = [torch.zeros(2), torch.zeros(2, 2), torch.zeros(3)]


def test_gradients():
    ours = [torch.tensor([1.0, 2.0]), None, None]
    theirs = [torch.tensor([3.0, -2.0]), torch.ones(2, 2), None]
    assert mean_gradients(ALONE, PARAMETERS, ours) is ours
    other = sent(lambda trainer: mean_gradients(trainer, PARAMETERS, theirs))
    first, second, third = mean_gradients(two(other), PARAMETERS, ours)
    assert first is not None
    assert second is not None
    assert first.tolist() == [2.0, 0.0]
    assert second.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert third is None


def test_a_gradient_that_is_not_finite_is_so_everywhere():
    for value in (float("inf"), float("nan")):
        theirs = [torch.tensor([value, 0.0]), None, None]
        other = sent(lambda trainer, theirs=theirs: mean_gradients(trainer, PARAMETERS, theirs))
        mean = mean_gradients(two(other), PARAMETERS, [torch.ones(2), None, None])[0]
        assert mean is not None
        assert not bool(torch.isfinite(mean).all())


def test_numbers():
    assert mean_number(ALONE, 0.1) == 0.1
    assert mean_number(two(sent(lambda trainer: mean_number(trainer, 0.3))), 0.1) == 0.2


STATE = {"alpha": torch.tensor([1.0, 2.0]), "step": 3, "more": [{"flag": torch.tensor(True)}, None]}
DIFFERENT = [
    {**STATE, "alpha": torch.tensor([1.0, 2.5])},
    {**STATE, "alpha": torch.tensor([1.0, -2.0])},
    {**STATE, "step": 4},
    {**STATE, "more": [{"flag": torch.tensor(False)}, None]},
    {**STATE, "more": [{"mark": torch.tensor(True)}, None]},
]


def test_agreement():
    def ask(trainer: Any, value: Any = STATE) -> None:
        check_agreement(trainer, "the state", value)

    ask(ALONE)
    ask(two(sent(ask)))
    for value in DIFFERENT:
        with pytest.raises(TrainingError, match=r"processes of the search disagree on the state.*integer as its seed"):
            ask(two(sent(lambda trainer, value=value: ask(trainer, value))))


@pytest.mark.parametrize(
    "strategy",
    [
        "ddp_spawn",
        "ddp_fork",
        "ddp_notebook",
        "ddp_spawn_find_unused_parameters_true",
        DDPStrategy(start_method="spawn"),
    ],
)
def test_processes_that_take_their_results_with_them(kit, strategy):
    space = kit.Net()
    with pytest.raises(ValueError, match=r'forked or spawned.*Give strategy="ddp"'):
        DARTS().run(space, kit.evaluator(strategy=strategy, devices=2))
    DARTS().check_evaluator(kit.evaluator(strategy=DDPStrategy(), devices=2))


def test_unused_parameters_are_allowed_unless_they_are_forbidden():
    for strategy, expected in ((DDPStrategy(), True), (DDPStrategy(find_unused_parameters=False), False)):
        trainer: Any = SimpleNamespace(strategy=strategy)
        allow_unused_parameters(trainer)
        assert strategy._ddp_kwargs == {"find_unused_parameters": expected}
    allow_unused_parameters(SimpleNamespace(strategy=None))  # type: ignore[arg-type]
