"""Training an image classifier, or any model that gives one score for each class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from hwnas.errors import TrainingError
from hwnas.evaluators.lightning import DEFAULT_METRIC, Lightning, LightningModule

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
ScheduleFactory = Callable[[Optimizer], Any]


class ClassificationModule(LightningModule):
    """Minimise a criterion on (input, target) batches; the metric is the accuracy on the validation data.

    Logs ``train_loss`` and ``train_acc`` (fraction right, in training mode) for each epoch, and on the
    validation data ``val_loss``, ``val_acc`` and ``default``, which equals ``val_acc``. Epoch figures are
    means over samples, whatever the sizes of the batches.

    Parameters
    ----------
    criterion : nn.Module or callable
        Takes scores, shape (N, C), and targets, shape (N,); returns a mean over the batch.
    learning_rate : float
        Above 0.
    weight_decay : float
        At least 0. An L2 term on the gradient for both named optimisers.
    optimizer : {"adam", "sgd"} or callable
        A callable takes the trainable parameters and returns an optimiser; the three numbers above and below
        are then not used.
    momentum : float
        Of "sgd".
    schedule : {"cosine"}, None or callable
        Of the learning rate. "cosine" falls to 0 over ``max_epochs``, one step an epoch. A callable takes the
        optimiser and returns a scheduler that steps once an epoch, or a dictionary as Lightning takes it. A
        `ReduceLROnPlateau` watches ``val_loss``, or ``default`` where its mode is "max".
    num_classes : int, optional
        When given, outputs and targets are checked against it.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """

    def __init__(
        self,
        *,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer: str | OptimizerFactory = "adam",
        momentum: float = 0.9,
        schedule: str | ScheduleFactory | None = "cosine",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise ValueError(f"learning_rate is {learning_rate}, expected a number above 0.")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay is {weight_decay}, expected at least 0.")
        if isinstance(optimizer, str) and optimizer not in ("adam", "sgd"):
            raise ValueError(f"optimizer is {optimizer!r}, expected 'adam', 'sgd' or a callable.")
        if isinstance(schedule, str) and schedule != "cosine":
            raise ValueError(f"schedule is {schedule!r}, expected 'cosine', None or a callable.")
        self.criterion = nn.CrossEntropyLoss() if criterion is None else criterion
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.momentum = momentum
        self.schedule = schedule
        self.num_classes = num_classes

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch, shape ().

        Raises
        ------
        TrainingError
            If the loss is not finite.
        """
        loss, accuracy, size = self._score(batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"epoch {self.current_epoch}, step {self.global_step} (batch {batch_idx} of the epoch): the "
                f"training loss is {loss.item()}. Lower the learning rate (now {self.learning_rate:g}), clip "
                "gradients with gradient_clip_val=1.0, and look for infinite or missing values in the data."
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True)
        self.log("train_acc", accuracy, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log loss and accuracy of a batch."""
        loss, accuracy, size = self._score(batch)
        self.log("val_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True)
        self.log("val_acc", accuracy, on_step=False, on_epoch=True, prog_bar=True, batch_size=size, sync_dist=True)
        self.log(DEFAULT_METRIC, accuracy, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Build the optimiser, and the schedule if there is one, for the trainable parameters of the model.

        Raises
        ------
        TrainingError
            If no parameter is trainable.
        ValueError
            If the schedule is "cosine" and the trainer has no ``max_epochs``.
        """
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not parameters:
            raise TrainingError(
                f"the model ({type(self.model).__name__}) has no parameter that requires a gradient, so "
                "there is nothing to train. Score it with validate() instead."
            )
        optimizer = self._make_optimizer(parameters)
        if self.schedule is None:
            return optimizer
        schedule = self._cosine(optimizer) if isinstance(self.schedule, str) else self.schedule(optimizer)
        if isinstance(schedule, ReduceLROnPlateau):
            watched = DEFAULT_METRIC if schedule.mode == "max" else "val_loss"
            schedule = {"scheduler": schedule, "monitor": watched}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def _make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
        assert callable(self.optimizer)
        return self.optimizer(parameters)

    def _cosine(self, optimizer: Optimizer) -> CosineAnnealingLR:
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError(
                f"schedule='cosine' needs the number of epochs, and max_epochs is {epochs}. Give max_epochs, "
                "or another schedule."
            )
        return CosineAnnealingLR(optimizer, T_max=epochs)

    def _score(self, batch: Any) -> tuple[Tensor, Tensor, int]:
        """Return the loss, shape (), the fraction right, shape (), and the number of samples."""
        inputs, targets = batch
        scores = self.model(inputs)
        if self.num_classes is not None:
            self._check_classes(scores, targets)
        accuracy = (scores.detach().argmax(dim=1) == targets).float().mean()
        return self.criterion(scores, targets), accuracy, len(targets)

    def _check_classes(self, scores: Tensor, targets: Tensor) -> None:
        if scores.shape[1] != self.num_classes:
            raise TrainingError(
                f"the model ({type(self.model).__name__}) gives scores of shape {tuple(scores.shape)}, "
                f"expected (N, {self.num_classes}). Make its last layer {self.num_classes} wide, or change "
                "num_classes."
            )
        if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < self.num_classes:
            raise TrainingError(
                f"targets from {int(targets.min())} to {int(targets.max())}, expected 0 to "
                f"{self.num_classes - 1}. Number the classes from 0, or change num_classes."
            )


class Classification(Lightning):
    """Train and score classifiers.

    Parameters
    ----------
    train_dataloaders, val_dataloaders
        Loaders of (input, target) batches.
    criterion, learning_rate, weight_decay, optimizer, momentum, schedule, num_classes
        See `ClassificationModule`.
    fit_kwargs, seed, **trainer_kwargs
        See `Lightning`.

    Examples
    --------
    >>> from hwnas.evaluators import Classification, digits
    >>> data = digits(seed=0)
    >>> evaluator = Classification(
    ...     train_dataloaders=data.train_loader(), val_dataloaders=data.val_loader(), max_epochs=1,
    ...     accelerator="cpu",
    ... )
    >>> accuracy = evaluator.evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    """

    def __init__(
        self,
        *,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer: str | OptimizerFactory = "adam",
        momentum: float = 0.9,
        schedule: str | ScheduleFactory | None = "cosine",
        num_classes: int | None = None,
        fit_kwargs: dict[str, Any] | None = None,
        seed: int = 0,
        **trainer_kwargs: Any,
    ) -> None:
        module = ClassificationModule(
            criterion=criterion,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            optimizer=optimizer,
            momentum=momentum,
            schedule=schedule,
            num_classes=num_classes,
        )
        super().__init__(
            module,
            train_dataloaders=train_dataloaders,
            val_dataloaders=val_dataloaders,
            fit_kwargs=fit_kwargs,
            seed=seed,
            **trainer_kwargs,
        )
