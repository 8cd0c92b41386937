"""Training members of a space from scratch, all of them alike."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hwnas.atomic import replacing
from hwnas.evaluators import Classification, evaluate_accuracy
from hwnas.evaluators.seeding import isolated_seed
from hwnas.experiment.narrator import Narrator
from hwnas.experiment.run_folder import RunFolder, RunFolderError
from hwnas.experiment.task import Task
from hwnas.nn import ModelSpace
from hwnas.space import Sample, sample_to_json

# The recipe of every training from scratch and of the super-net: what small residual networks are trained with.
RECIPE: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "cosine",
}


class EpochProgress(L.Callback):
    """Tells a narrator after each epoch."""

    def __init__(self, narrator: Narrator, what: str) -> None:
        self.narrator = narrator
        self.what = what

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the epoch that has ended."""
        self.narrator.progress(self.what, trainer.current_epoch + 1, trainer.max_epochs or 0)


def make_evaluator(task: Task, epochs: int, seed: int, *, validate: bool = True, **trainer: Any) -> Classification:
    """Return the evaluator with which everything in a search is trained.

    Parameters
    ----------
    task : Task
        Gives the data. Test data stays out of reach.
    epochs : int
        Passes over the training data.
    seed : int
        Of everything random in training.
    validate : bool, default True
        Whether to look at the validation data after each epoch.
    **trainer
        Further arguments of the Lightning trainer.
    """
    return Classification(
        train_dataloaders=task.data.train_loader(drop_last=True),
        val_dataloaders=task.data.val_loader(),
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=5.0,
        limit_val_batches=1.0 if validate else 0,
        seed=seed,
        **RECIPE,
        **trainer,
    )


def fresh_space(task: Task, seed: int) -> ModelSpace:
    """Return a new space with seeded weights."""
    with isolated_seed(seed):
        return task.make_space()


def fresh_member(task: Task, sample: Sample, seed: int) -> nn.Module:
    """Return a member with seeded weights of its own."""
    with isolated_seed(seed):
        member: nn.Module = task.make_space().freeze(sample)
    return member


def train_member(
    task: Task, name: str, sample: Sample, epochs: int, seed: int, folder: RunFolder, narrator: Narrator
) -> tuple[nn.Module, float, float]:
    """Train a member from scratch, or take it from the run folder when it has been trained there.

    Parameters
    ----------
    task : Task
        Space and data.
    name : str
        Names the files.
    sample : dict
        The member.
    epochs, seed : int
        As for `make_evaluator`.
    folder : RunFolder
        Where the weights are kept.
    narrator : Narrator
        Told after each epoch.

    Returns
    -------
    model : torch.nn.Module
        Trained, in evaluation mode.
    val_accuracy, test_accuracy : float
        Fractions.

    Raises
    ------
    RunFolderError
        When what is in the run folder is damaged.
    """
    model = fresh_member(task, sample, seed)
    done, weights = f"trained/{name}.json", folder.path / "trained" / f"{name}.safetensors"
    found = folder.load(done) if folder.has(done) else None
    written = sample_to_json(sample)["sample"]
    if found is not None and found["sample"] == written:  # else what was measured since has changed who is trained
        try:
            model.load_state_dict(load_file(weights))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise RunFolderError(
                f"{weights} is damaged ({error}); remove {folder.path / done} to train that member again"
            ) from error
        return model.eval(), found["val_accuracy"], found["test_accuracy"]
    evaluator = make_evaluator(task, epochs, seed, validate=False)
    evaluator.fit(model, callbacks=[EpochProgress(narrator, f"train {name}")])
    model.eval()
    with torch.no_grad():
        val = evaluate_accuracy(model, task.data.val_loader())
        test = evaluate_accuracy(model, task.data.test_loader())
    with replacing(weights) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, temporary)
    folder.save(done, {"sample": written, "val_accuracy": val, "test_accuracy": test})
    return model, val, test
