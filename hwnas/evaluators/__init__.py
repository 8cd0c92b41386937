"""Training and scoring of models, and the data for it."""

from __future__ import annotations

from hwnas.evaluators.classification import Classification, ClassificationModule
from hwnas.evaluators.digits import DataSplit, digits
from hwnas.evaluators.evaluator import Evaluator
from hwnas.evaluators.functional import FunctionalEvaluator
from hwnas.evaluators.lightning import Lightning, LightningModule, captured_logs
from hwnas.evaluators.loaders import SeededLoader, SeededSampler, seeded_loader
from hwnas.evaluators.recalibrate import evaluate_accuracy, recalibrate_batch_norm, recalibrated

__all__ = [
    "Classification",
    "ClassificationModule",
    "DataSplit",
    "Evaluator",
    "FunctionalEvaluator",
    "Lightning",
    "LightningModule",
    "SeededLoader",
    "SeededSampler",
    "captured_logs",
    "digits",
    "evaluate_accuracy",
    "recalibrate_batch_norm",
    "recalibrated",
    "seeded_loader",
]
