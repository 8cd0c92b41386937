"""Classification under Lightning against loops written by hand."""

from __future__ import annotations

import math

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from hwnas.errors import TrainingError
from hwnas.evaluators import Classification, ClassificationModule, captured_logs, seeded_loader


def model(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def data(n: int = 50) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(n, 4, generator=generator)
    return TensorDataset(x, x[:, :3].argmax(1))


def evaluator(**kwargs) -> Classification:
    arguments = {
        "train_dataloaders": seeded_loader(data(), 16, shuffle=True, seed=1),
        "val_dataloaders": seeded_loader(data(37), 16, shuffle=False),
        "max_epochs": 2,
        "accelerator": "cpu",
    }
    return Classification(**(arguments | kwargs))


def by_hand(net, optimizer, epochs, rate=lambda epoch: None, clip=None, accumulate=1):
    loader = seeded_loader(data(), 16, shuffle=True, seed=1)
    net.train()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate(epoch) or group["lr"]
        batches = list(loader)
        for step, (x, y) in enumerate(batches):
            (F.cross_entropy(net(x), y) / accumulate).backward()
            if (step + 1) % accumulate == 0 or step + 1 == len(batches):
                if clip:
                    nn.utils.clip_grad_norm_(net.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()


def assert_equal(first: nn.Module, second: nn.Module, **tolerance: float) -> None:
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(
            a, b, msg=lambda text, name=name: f"{name}: {text}", **(tolerance or {"rtol": 0, "atol": 0})
        )


def test_two_epochs_of_sgd_equal_a_loop_by_hand():
    ours, theirs = model(), model()
    evaluator(optimizer="sgd", learning_rate=0.1, momentum=0.8, weight_decay=0.01).fit(ours)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.8, weight_decay=0.01)
    by_hand(theirs, optimizer, 2, rate=lambda epoch: 0.1 * (1 + math.cos(math.pi * epoch / 2)) / 2)
    assert_equal(ours, theirs, rtol=1e-6, atol=1e-7)


def test_adam_with_clipping_and_accumulation_equals_a_loop_by_hand():
    ours, theirs = model(), model()
    kwargs = {"gradient_clip_val": 0.1, "accumulate_grad_batches": 3, "weight_decay": 0.1}
    evaluator(schedule=None, learning_rate=0.01, **kwargs).fit(ours)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01, weight_decay=0.1)
    by_hand(theirs, optimizer, 2, clip=0.1, accumulate=3)
    assert_equal(ours, theirs, rtol=1e-6, atol=1e-7)


def test_metrics_are_means_over_samples():
    net = model()
    logged = evaluator().validate(net)
    x, y = data(37).tensors  # batches of 16, 16 and 5
    net.eval()
    accuracy = (net(x).argmax(1) == y).double().mean().item()
    assert logged["val_acc"] == pytest.approx(accuracy, abs=1e-6)
    assert logged["default"] == logged["val_acc"]
    assert logged["val_loss"] == pytest.approx(F.cross_entropy(net(x), y).item(), rel=1e-6)


def test_evaluate_trains_then_scores():
    net = model()
    ours = evaluator(learning_rate=0.05, max_epochs=8)
    score = ours.evaluate(net)
    x, y = data(37).tensors
    assert score == pytest.approx((net.eval()(x).argmax(1) == y).double().mean().item(), abs=1e-6)
    assert score > 0.6


def test_training_metrics_of_the_epoch():
    trainer = evaluator(max_epochs=1, optimizer=lambda p: torch.optim.SGD(p, lr=0.0)).fit(net := model())
    loader = seeded_loader(data(), 16, shuffle=True, seed=1)
    net.train()
    right = sum((net(x).argmax(1) == y).sum().item() for x, y in loader)
    loss = sum(F.cross_entropy(net(x), y).item() * len(y) for x, y in loader) / 50
    assert float(trainer.callback_metrics["train_acc"]) == pytest.approx(right / 50)
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(loss)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_resumed_at_an_epoch_boundary_equals_uninterrupted_to_the_bit(tmp_path, dropout):
    def keep() -> L.Callback:
        return L.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)

    kwargs = {"optimizer": "sgd", "learning_rate": 0.1, "max_epochs": 4}
    whole = model(dropout)
    evaluator(**kwargs).fit(whole, callbacks=[keep()])
    torch.manual_seed(123)
    part = model(dropout)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.zero_()
    evaluator(**kwargs).fit(part, callbacks=[keep()], ckpt_path=tmp_path / "epoch=1.ckpt")
    assert_equal(part, whole)


def test_one_seed_one_result_and_the_callers_random_state_is_untouched():
    first, second, third = model(0.5), model(0.5), model(0.5)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    evaluator(seed=3).fit(first)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    evaluator(seed=3).fit(second)
    evaluator(seed=4).fit(third)
    assert_equal(first, second)
    assert not torch.equal(first[0].weight, third[0].weight)


def test_each_fit_starts_afresh():
    ours = evaluator(optimizer="sgd", learning_rate=0.1)
    first, second = model(), model()
    ours.fit(first)
    ours.fit(second)
    assert_equal(first, second)


def test_frozen_parameters_stay_and_no_optimiser_sees_them():
    net = model()
    net[0].weight.requires_grad_(False)
    before = net[0].weight.clone()
    module = ClassificationModule(weight_decay=0.5, schedule=None)
    module.set_model(net)
    optimizer = module.configure_optimizers()
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in net.parameters()} - {id(net[0].weight)}
    evaluator(weight_decay=0.5).fit(net)
    assert torch.equal(net[0].weight, before)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(TrainingError, match=r"Flatten.*no parameter that requires a gradient"):
        evaluator().fit(nn.Flatten())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training(value):
    class Explodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
            self.calls += scores.requires_grad
            return F.cross_entropy(scores, targets) + (value if self.calls == 6 else 0)

    with pytest.raises(TrainingError, match=rf"epoch 1, step 5 \(batch 1 of the epoch\): the training loss is {value}"):
        evaluator(criterion=Explodes()).fit(model())


@pytest.mark.parametrize(("mode", "watched"), [("min", "val_loss"), ("max", "default")])
def test_plateau_schedules_watch_the_validation(mode, watched):
    def schedule(optimizer):
        # Nothing counts as better, so every epoch after the first cuts the rate.
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, mode, factor=0.1, patience=0, threshold=1e9, threshold_mode="abs"
        )

    trainer = evaluator(schedule=schedule, learning_rate=1.0, max_epochs=3).fit(model())
    assert trainer.lr_scheduler_configs[0].monitor == watched
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)


def test_cosine_needs_epochs():
    with pytest.raises(ValueError, match="max_epochs is -1"):
        evaluator(max_epochs=-1, max_steps=3).fit(model())


def test_classes_are_checked():
    with pytest.raises(TrainingError, match=r"scores of shape \(16, 3\), expected \(N, 5\)"):
        evaluator(num_classes=5).fit(model())
    bad = TensorDataset(torch.randn(4, 4), torch.tensor([0, 1, 2, 3]))
    with pytest.raises(TrainingError, match="targets from 0 to 3, expected 0 to 2"):
        evaluator(num_classes=3, train_dataloaders=seeded_loader(bad, 4, shuffle=False)).fit(model())
    evaluator(num_classes=3).validate(model())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"weight_decay": -1}, "weight_decay is -1"),
        ({"optimizer": "lion"}, "optimizer is 'lion'"),
        ({"schedule": "step"}, "schedule is 'step'"),
    ],
)
def test_arguments_are_checked(kwargs, message):
    with pytest.raises(ValueError, match=message):
        evaluator(**kwargs)


def test_steps_can_be_called_without_a_trainer(recwarn):
    module = ClassificationModule()
    net = model()
    module.set_model(net)
    batch = list(data(16).tensors)
    with captured_logs(module) as logged:
        loss = module.training_step(batch, 0)
        with torch.no_grad():
            module.validation_step(batch, 0)
    torch.testing.assert_close(loss, F.cross_entropy(net(batch[0]), batch[1]))
    assert set(logged) == {"train_loss", "train_acc", "val_loss", "val_acc", "default"}
    assert "log" not in vars(module)
    assert not list(recwarn)
