"""What is handed to Lightning, and what is kept off the console and off global state."""

from __future__ import annotations

import logging
import signal
import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hwnas.errors import TrainingError
from hwnas.evaluators import Lightning, LightningModule, captured_logs


class Module(LightningModule):
    def __init__(self, metric: str = "default") -> None:
        super().__init__()
        self.metric = metric

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log_dict({self.metric: 0.25, "other": 2.0})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.1)


def loader() -> DataLoader:
    return DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=2)


def evaluator(module: Module | None = None, **kwargs) -> Lightning:
    arguments = {
        "train_dataloaders": loader(),
        "val_dataloaders": loader(),
        "max_epochs": 1,
        "accelerator": "cpu",
    }
    return Lightning(module or Module(), **(arguments | kwargs))


def test_metrics():
    assert evaluator().evaluate(nn.Linear(2, 1)) == 0.25
    assert evaluator().validate(nn.Linear(2, 1)) == {"default": 0.25, "other": 2.0}


def test_validate_does_not_train():
    model = nn.Linear(2, 1)
    before = model.weight.clone()
    evaluator().validate(model)
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("limit", ["max_epochs", "max_steps"])
def test_nothing_to_train_is_scored_as_it_is(limit):
    class NeverFits(Module):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            raise AssertionError

    model = nn.Linear(2, 1)
    before = model.weight.clone()
    ours = evaluator(NeverFits(), **{limit: 0})
    assert not ours.trains
    assert ours.evaluate(model) == 0.25
    assert torch.equal(model.weight, before)
    assert evaluator().trains
    assert evaluator(max_steps=3).trains
    with pytest.raises(TrainingError, match=r"no metric named 'default'; logged: .*accuracy"):
        evaluator(Module("accuracy"), **{limit: 0}).evaluate(model)


@pytest.mark.parametrize("kwargs", [{"val_dataloaders": None}, {"module": Module("accuracy")}])
def test_a_missing_metric_is_named(kwargs):
    with pytest.raises(TrainingError, match="no metric named 'default'"):
        evaluator(**kwargs).evaluate(nn.Linear(2, 1))


def test_quiet_and_without_side_effects(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    levels = {name: logging.getLogger(name).level for name in ("lightning.pytorch", "lightning.fabric")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluator().evaluate(nn.Linear(2, 1))
        evaluator().validate(nn.Linear(2, 1))
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    assert {name: logging.getLogger(name).level for name in levels} == levels


def test_a_checkpoint_callback_switches_checkpoints_on(tmp_path):
    evaluator().fit(nn.Linear(2, 1), callbacks=[ModelCheckpoint(tmp_path, save_last=True)])
    assert (tmp_path / "last.ckpt").exists()
    assert evaluator(callbacks=ModelCheckpoint(tmp_path)).trainer().checkpoint_callback is not None


def test_trainer_arguments_are_passed_on(tmp_path):
    ours = evaluator(
        gradient_clip_val=0.5,
        accumulate_grad_batches=2,
        default_root_dir=tmp_path,
        limit_train_batches=1,
        precision=64,
    )
    trainer = ours.trainer()
    assert trainer.gradient_clip_val == 0.5
    assert trainer.accumulate_grad_batches == 2
    assert trainer.default_root_dir == str(tmp_path)
    assert trainer.precision == "64-true"
    assert ours.trainer() is not trainer
    assert ours.fit(nn.Linear(2, 1)).global_step == 1


def test_fit_arguments_are_passed_on():
    class Data(L.LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return loader()

        val_dataloader = train_dataloader

    ours = evaluator(train_dataloaders=None, val_dataloaders=None, fit_kwargs={"datamodule": Data()})
    assert ours.fit(nn.Linear(2, 1)).global_step == 2
    assert ours.validate(nn.Linear(2, 1)) == {"default": 0.25, "other": 2.0}


def test_replace_changes_a_copy():
    ours = evaluator()
    module, other = Module(), loader()
    theirs = ours.replace(module=module, val_dataloaders=other, max_epochs=5, devices=1)
    assert (theirs.module, theirs.val_dataloaders) == (module, other)
    assert theirs.train_dataloaders is ours.train_dataloaders
    assert theirs.trainer_kwargs == {"max_epochs": 5, "accelerator": "cpu", "devices": 1}
    assert ours.trainer_kwargs == {"max_epochs": 1, "accelerator": "cpu"}
    assert ours.module is not module


def test_a_plain_lightning_module_is_refused():
    with pytest.raises(TypeError, match="LightningModule, whose model can be set"):
        Lightning(L.LightningModule(), train_dataloaders=loader())


def test_captured_logs_nest_and_end():
    module = Module()
    with captured_logs(module) as outer:
        module.log("a", 1)
        with captured_logs(module) as inner:
            module.validation_step([torch.ones(1)], 0)
        module.log("b", torch.tensor(2.0), prog_bar=True)
    assert outer == {"a": 1, "b": 2.0}
    assert inner == {"default": 0.25, "other": 2.0}
    assert module.log.__func__ is L.LightningModule.log


def test_an_interrupt_comes_out_as_one_and_leaves_the_signal_alone():
    class Interrupt(L.Callback):
        def on_train_batch_start(self, *args) -> None:
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        evaluator().fit(nn.Linear(2, 1), callbacks=[Interrupt()])
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # that of the first fit
def test_callbacks_that_remember_begin_anew_with_each_fit(tmp_path):
    class Falling(Module):
        """Scores 3, 2, 1, ... in the first fit and so on in later ones."""

        score = 100.0

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            Falling.score -= 1
            self.log("default", Falling.score)

    class Told(L.Callback):
        def __init__(self) -> None:
            self.epochs: list[int] = []

        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.epochs.append(trainer.current_epoch)

    stopping, told = EarlyStopping("default", mode="max", patience=2), Told()
    checkpoint = ModelCheckpoint(tmp_path, monitor="default", mode="max")
    ours = evaluator(Falling(), callbacks=[stopping, checkpoint, told], max_epochs=9)
    best = []
    for _ in range(2):
        ours.fit(nn.Linear(2, 1))
        best.append(float(checkpoint.best_model_score))
        assert checkpoint.best_model_path.endswith(".ckpt")
        assert stopping.wait_count == 2
    assert told.epochs == [0, 1, 2, 0, 1, 2]
    assert best[1] < best[0]
    ours.validate(nn.Linear(2, 1))
    assert checkpoint.best_model_path
