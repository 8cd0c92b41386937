"""Second-order gradients against exact ones, the virtual step against the real one, and nothing left behind."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

import hwnas.nn as nn
from hwnas.errors import TrainingError, UnsupportedError
from hwnas.evaluators.seeding import kept_random_states
from hwnas.strategies import DARTS, GumbelDARTS, Proxyless
from hwnas.strategies.unrolled_step import virtual_step


class Smooth(nn.ModelSpace):
    """A width, a layer, a depth; differentiable many times."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([2, 4], label="width")
        self.stem = nn.Conv2d(1, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.layer = nn.LayerChoice([nn.Tanh(), nn.Softplus(), nn.Identity()], label="layer")
        self.body = nn.Repeat(lambda i: nn.Sequential(nn.Conv2d(width, width, 1), nn.Tanh()), (0, 2), label="depth")
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.layer(self.norm(self.stem(x))))
        return self.head(self.dropout(x.mean((2, 3))))


def spied(base: type[DARTS], look: Any, *args: Any, **options: Any) -> DARTS:
    """Return a second-order strategy that calls `look` around each gradient of the architecture."""

    class Spied(base):
        def callback(self) -> L.Callback:
            step = super().callback()
            original = step.differentiate

            def differentiate(trainer: Any, pl_module: Any, batches: Any, *rest: Any) -> Any:
                check = look(step, trainer, pl_module, batches)
                found = original(trainer, pl_module, batches, *rest)
                check(found)
                return found

            step.differentiate = differentiate
            return step

    return Spied(*args, unrolled=True, **options)


def exact(
    step: Any, optimizer: SGD, space: nn.ModelSpace, batches: Any, *, through: bool = True
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Differentiate the loss behind a step of SGD, with the graph of the step, or without."""
    (group,) = optimizer.param_groups
    buffers = {name: buffer.clone() for name, buffer in space.named_buffers()}
    names = [name for name, _ in space.named_parameters()]
    weights = [parameter.detach().clone().requires_grad_() for parameter in space.parameters()]

    def loss(weights: list[Tensor], batch: Any) -> Tensor:
        with kept_random_states():
            state = {name: buffer.clone() for name, buffer in buffers.items()}
            scores = torch.func.functional_call(space, {**state, **dict(zip(names, weights, strict=True))}, (batch[0],))
        return F.cross_entropy(scores, batch[1])

    step.relaxation.requires_grad_(True)
    gradients = torch.autograd.grad(loss(weights, batches.training), weights, create_graph=True)
    after = []
    for parameter, weight, gradient in zip(space.parameters(), weights, gradients, strict=True):
        change = gradient + group["weight_decay"] * weight
        if group["momentum"]:
            velocity = optimizer.state.get(parameter, {}).get("momentum_buffer")
            fresh = change if velocity is None else group["momentum"] * velocity + (1 - group["dampening"]) * change
            change = change + group["momentum"] * fresh if group["nesterov"] else fresh
        after.append(weight - group["lr"] * (change if through else change.detach()))
    total = loss(after, batches.validation)
    if step.penalty is not None:
        total = total * (1 + (expected_cost(step) / 5.0 - 1).abs()) ** 0.7
    gradients = torch.autograd.grad(total, step.parameters)
    step.relaxation.requires_grad_(False)
    return total.detach(), gradients


def expected_cost(step: Any) -> Tensor:
    costs = torch.tensor([9.0, 2.0, 0.0], dtype=torch.float64)
    return 1.0 + sum(step.relaxation.probabilities(label) @ costs for label in ("layer_1", "layer_2"))


OPTIMISERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9, "weight_decay": 0.01},
    "dampened": {"momentum": 0.8, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
}


def double_run(kit: Any, strategy: DARTS, space: nn.ModelSpace, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    strategy.mutate_model(space)
    relaxation = strategy.relaxation.double()
    with torch.no_grad():
        for alpha in relaxation.parameters():
            alpha.add_(torch.randn(alpha.shape))
    module = kit.Module(optimizer=lambda parameters: SGD(parameters, lr=0.3, **options))
    strategy.run(space, kit.evaluator(module, precision="64-true", limit_train_batches=3, limit_val_batches=0))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_the_gradient_is_that_through_a_step_of_the_weights(kit, monkeypatch, optimiser):
    monkeypatch.setattr("hwnas.strategies.unrolled_step.RADIUS", 1e-4)
    compared: list[float] = []

    def look(step: Any, trainer: Any, pl_module: Any, batches: Any) -> Any:
        loss, gradients = exact(step, trainer.optimizers[0], pl_module.model, batches)
        _, direct = exact(step, trainer.optimizers[0], pl_module.model, batches, through=False)

        def check(found: Any) -> None:
            torch.testing.assert_close(found.loss, loss, rtol=1e-12, atol=0)
            torch.testing.assert_close(found.gradients, gradients, rtol=0, atol=1e-8)
            assert max(float((a - b).abs().max()) for a, b in zip(gradients, direct, strict=True)) > 1e-4
            compared.append(float(loss))

        return check

    double_run(kit, spied(DARTS, look, 0.05), Smooth(), OPTIMISERS[optimiser])
    assert len(compared) == 3


@pytest.mark.parametrize(
    ("base", "options"), [(GumbelDARTS, {}), (GumbelDARTS, {"hard": True}), (DARTS, {"penalty": True})]
)
def test_draws_and_penalties(kit, monkeypatch, base, options):
    monkeypatch.setattr("hwnas.strategies.unrolled_step.RADIUS", 1e-4)
    if "penalty" in options:
        penalty = {"profiler": kit.profiler(), "baseline": 5.0, "scale": 0.7}
        options = {"penalty": {**penalty, "nonlinear": "absolute", "aggregate": "mul"}}
    compared = []

    def look(step: Any, trainer: Any, pl_module: Any, batches: Any) -> Any:
        loss, gradients = exact(step, trainer.optimizers[0], pl_module.model, batches)

        def check(found: Any) -> None:
            torch.testing.assert_close(found.loss, loss, rtol=1e-12, atol=0)
            compared.append(found.loss)
            if step.penalty is not None:
                torch.testing.assert_close(found.cost, expected_cost(step), rtol=1e-12, atol=0)
            torch.testing.assert_close(found.gradients, gradients, rtol=1e-5, atol=1e-8)

        return check

    class Smoother(kit.Net):
        """All candidates have a part in each step of the weights."""

        def __init__(self) -> None:
            super().__init__()
            for name in ("first", "second"):
                layers = {"conv3": nn.Conv2d(4, 4, 3, padding=1), "conv1": nn.Conv2d(4, 4, 1), "skip": nn.Tanh()}
                setattr(self, name, nn.LayerChoice(layers, label=f"layer_{1 if name == 'first' else 2}"))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(torch.tanh(self.stem(x)))).mean((2, 3)))

    double_run(kit, spied(base, look, 0.05, **options), Smoother(), {})
    assert len(compared) == 3


def test_the_finite_difference_of_the_paper_is_near_enough(kit):
    errors, curvatures = [], []

    def look(step: Any, trainer: Any, pl_module: Any, batches: Any) -> Any:
        _, gradients = exact(step, trainer.optimizers[0], pl_module.model, batches)

        def check(found: Any) -> None:
            errors.append(max(float((a - b).abs().max()) for a, b in zip(found.gradients, gradients, strict=True)))
            curvatures.append(max(float(gradient.abs().max()) for gradient in gradients))

        return check

    double_run(kit, spied(DARTS, look), Smooth(), OPTIMISERS["momentum"])
    assert all(error < 1e-3 * size for error, size in zip(errors, curvatures, strict=True))


@pytest.mark.parametrize("options", [*OPTIMISERS.values(), {"maximize": True, "momentum": 0.5, "weight_decay": 0.1}])
def test_the_virtual_step_is_the_real_one(options):
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(3, 2).double()), torch.nn.Parameter(torch.randn(4).double())]
    unused = torch.nn.Parameter(torch.ones(2))
    optimizer = SGD(
        [{"params": weights[:1], "lr": 0.2}, {"params": [*weights[1:], unused], "lr": 0.05}], lr=1.0, **options
    )
    for _ in range(3):
        gradients = [torch.randn_like(weight) for weight in weights]
        before = [weight.detach().clone() for weight in weights]
        state = copy.deepcopy(optimizer.state_dict())
        results, factors = [], []
        for nudge in (0.0, 1.0):
            given = {weight: gradient + nudge for weight, gradient in zip(weights, gradients, strict=True)}
            factors.append(virtual_step(optimizer, {**given, unused: None}))
            results.append([weight.detach().clone() for weight in weights])
            with torch.no_grad():
                for weight, old in zip(weights, before, strict=True):
                    weight.copy_(old)
        assert str(optimizer.state_dict()) == str(state)
        assert unused not in factors[0]
        for weight, still, nudged in zip(weights, *results, strict=True):  # a step is linear in the gradient
            torch.testing.assert_close(nudged - still, torch.full_like(still, factors[0][weight]))
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()
        for weight, virtual in zip(weights, results[0], strict=True):
            torch.testing.assert_close(weight.detach(), virtual, rtol=1e-12, atol=1e-12)


def state_of(space: torch.nn.Module, optimizer: Optimizer) -> list[Any]:
    gradients = [None if p.grad is None else p.grad.clone() for p in space.parameters()]
    moments = [{k: v.clone() for k, v in s.items() if v is not None} for s in optimizer.state.values()]
    states = torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1].copy()), random.getstate()
    return [{k: v.clone() for k, v in space.state_dict().items()}, gradients, moments, *states]


def test_nothing_is_left_behind_and_the_coming_batch_was_used(kit):
    calls: list[Any] = []
    trained: list[Any] = []

    class Module(kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0] + 0.1 * np.random.rand() + 0.1 * random.random()
            return super().training_step([x, batch[1]], batch_idx)

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            trained.append(batch[0])

    def look(step: Any, trainer: Any, pl_module: Any, batches: Any) -> Any:
        calls.append(batches.training[0])
        return lambda found: None

    space, strategy, module = kit.Net(dropout=0.5), spied(DARTS, look, 0.1), Module()
    states: list[list[Any]] = []
    # Callbacks of the evaluator come before that of the strategy, those of the run behind it.
    probe = kit.Probe(start=lambda: states.append(state_of(space, module.trainer.optimizers[0])))
    strategy.run(space, kit.evaluator(module, max_epochs=2, callbacks=[probe]), callbacks=[probe, Keep()])
    for before, after in zip(states[::2], states[1::2], strict=True):
        assert after[-1] == before[-1]
        torch.testing.assert_close(after[:-1], before[:-1], rtol=0, atol=0)
    assert not torch.equal(states[1][0]["head.weight"], states[2][0]["head.weight"])
    assert all(gradient is not None for gradient in states[-1][1])
    assert len(calls) == 12
    for used, then in zip(calls, trained, strict=True):
        assert torch.equal(used, then)


def run(kit: Any, strategy: DARTS, module: Any, **options: Any) -> list[Tensor]:
    torch.manual_seed(0)
    strategy.run(kit.Net(dropout=0.5), kit.evaluator(module, **options))
    return [alpha.detach().clone() for alpha in strategy.relaxation.parameters()]


@pytest.mark.parametrize("base", [DARTS, GumbelDARTS])
def test_without_a_learning_rate_it_is_first_order(kit, base):
    def alphas(rate: float, unrolled: bool) -> list[Tensor]:
        module = kit.Module(optimizer=lambda parameters: SGD(parameters, lr=rate, momentum=0.9))
        return run(kit, base(0.1, unrolled=unrolled), module, limit_train_batches=3, limit_val_batches=0)

    def same(a: list[Tensor], b: list[Tensor]) -> bool:
        return all(map(torch.equal, a, b))

    assert same(alphas(0.0, True), alphas(0.0, False))
    assert not same(alphas(0.1, True), alphas(0.1, False))


def test_a_search_is_repeatable_and_logged(kit):
    first = run(kit, DARTS(0.1, unrolled=True), kit.Module())
    assert all(map(torch.equal, first, run(kit, DARTS(0.1, unrolled=True), kit.Module())))
    strategy = GumbelDARTS(0.1, unrolled=True, temperature=(1.0, 0.2))
    run(kit, strategy, kit.Module(), max_epochs=2)
    assert strategy.relaxation.temperature == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ({"optimizer": "adam"}, {}, r"DARTS\(unrolled=True\): the weights are trained by Adam"),
        ({}, {"accumulate_grad_batches": 2}, "accumulate_grad_batches is 2; expected 1"),
        ({}, {"precision": "bf16-mixed"}, "precision is bf16-mixed; expected 32-true or 64-true"),
    ],
)
def test_steps_that_cannot_be_foreseen_are_refused_by_name(kit, module, options, message):
    with pytest.raises(UnsupportedError, match=message):
        DARTS(unrolled=True).run(kit.Net(), kit.evaluator(kit.Module(**module), **options))


def test_a_derived_optimiser_is_refused(kit):
    class Own(SGD):
        pass

    module = kit.Module(optimizer=lambda parameters: Own(parameters, lr=0.1))
    with pytest.raises(UnsupportedError, match="trained by Own"):
        DARTS(unrolled=True).run(kit.Net(), kit.evaluator(module))


def test_several_processes_are_refused(kit):
    strategy = DARTS(unrolled=True)
    strategy.mutate_model(kit.Net())
    strategy._evaluator = kit.evaluator()
    trainer = SimpleNamespace(
        optimizers=[SGD(strategy.supernet.parameters(), lr=0.1)],
        accumulate_grad_batches=1,
        precision="32-true",
        world_size=2,
        max_epochs=1,
    )
    with pytest.raises(UnsupportedError, match="the number of processes is 2; expected 1"):
        strategy.callback().on_fit_start(trainer, SimpleNamespace(device=torch.device("cpu")))


def test_gates_have_no_second_order():
    with pytest.raises(UnsupportedError, match="Proxyless: unrolled=True is not defined"):
        Proxyless(unrolled=True)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_skipped_batches(kit):
    for skipped in ("training", "validation"):

        class Module(kit.Module):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                number = int(batch[0][0, 0, 0, 0])
                if (number in kit.val) == (skipped == "validation"):  # noqa: B023
                    return None
                return super().training_step(batch, batch_idx)

        space = kit.Net()
        strategy = DARTS(0.1, unrolled=True)
        strategy.mutate_model(space)
        before = kit.snapshot(strategy.relaxation), kit.snapshot(space)
        strategy.run(space, kit.evaluator(Module()))
        assert kit.equal(before[0], kit.snapshot(strategy.relaxation))
        assert kit.equal(before[1], kit.snapshot(space)) == (skipped == "training")


def test_a_loss_that_is_not_finite_names_the_batch(kit):
    class Module(kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if int(batch[0][0, 0, 0, 0]) in kit.train else loss

    with pytest.raises(TrainingError, match=r"architecture step 0 .*: the loss on the training batch is nan"):
        DARTS(unrolled=True).run(kit.Net(), kit.evaluator(Module()))


def test_weights_are_restored_after_an_error(kit):
    class Module(kit.Module):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if int(batch[0][0, 0, 0, 0]) in kit.val:
                raise RuntimeError("broken")
            return super().training_step(batch, batch_idx)

    space, strategy = kit.Net(), DARTS(unrolled=True)
    strategy.mutate_model(space)
    before = kit.snapshot(space)
    with pytest.raises(RuntimeError, match="broken"):
        strategy.run(space, kit.evaluator(Module()))
    assert kit.equal(before, kit.snapshot(space))
