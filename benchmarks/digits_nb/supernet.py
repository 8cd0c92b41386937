"""Super-nets of digits-NB: how they are trained, and what their members score."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from journal import Journal
from space import DigitsBench, members

from hwnas.evaluators import Classification, digits
from hwnas.evaluators.digits import DataSplit
from hwnas.strategies import RandomOneShot
from hwnas.strategies.member_sampling import SamplingName
from hwnas.strategies.subnet_evaluation import subnet_scores

WEIGHT_DECAY = 5e-4
# Super-nets that train members one at a time, by their sampling. "fair" trains twelve members on each batch and
# "uniform" one; both take about as long. Chosen on seeds 10 to 12 against validation accuracies of the table.
SINGLE_PATH: dict[str, dict[str, Any]] = {
    "uniform": {"epochs": 200, "learning_rate": 0.3},
    "fair": {"epochs": 60, "learning_rate": 0.3},
}


def data_of(seed: int) -> DataSplit:
    """Return the split of the table; the seed gives the order of the images."""
    return dataclasses.replace(digits(), seed=seed)


def evaluator(data: DataSplit, epochs: int, learning_rate: float) -> Classification:
    """Return how weights are trained: on the training part alone. Strategies choose on the validation part.

    The test part stays out of reach. Nothing is validated on the way, as no strategy needs it.
    """
    return Classification(
        train_dataloaders=data.train_loader(drop_last=True),
        val_dataloaders=data.val_loader(shuffle=True),
        optimizer="sgd",
        learning_rate=learning_rate,
        weight_decay=WEIGHT_DECAY,
        max_epochs=epochs,
        accelerator="cpu",
        limit_val_batches=0,
        seed=data.seed,
    )


def single_path_journal(folder: Path) -> Journal:
    """Return the journal of the super-nets of `SINGLE_PATH`."""
    return Journal(folder / "single_path.jsonl", {"weight_decay": WEIGHT_DECAY, **SINGLE_PATH})


def single_path_scores(journal: Journal, sampling: SamplingName, seed: int) -> dict[str, Any]:
    """Train a super-net of `SINGLE_PATH` and score all members, unless the journal has it.

    Returns
    -------
    dict
        ``train_s`` and ``score_s``, processor time; ``own_statistics`` and ``shared_statistics``, the validation
        accuracy of every member in the order of `members`, with batch normalisation statistics of its own and with
        the running ones of the super-net.
    """
    for line in journal:
        if (line["sampling"], line["seed"]) == (sampling, seed):
            return line
    data, strategy, settings = data_of(seed), RandomOneShot(sampling=sampling, seed=seed), SINGLE_PATH[sampling]
    started = time.process_time()
    strategy.run(DigitsBench(), evaluator(data, settings["epochs"], settings["learning_rate"]))
    trained = time.process_time()
    own = score_all(strategy, data, recalibrate=True)
    scored = time.process_time()
    journal.add(
        {
            "sampling": sampling,
            "seed": seed,
            "train_s": round(trained - started, 1),
            "score_s": round(scored - trained, 1),
            "own_statistics": own.round(6).tolist(),
            "shared_statistics": score_all(strategy, data, recalibrate=False).round(6).tolist(),
        }
    )
    return single_path_scores(journal, sampling, seed)


def score_all(strategy: RandomOneShot, data: DataSplit, *, recalibrate: bool) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the validation accuracy of every member with the weights of the super-net.

    Parameters
    ----------
    strategy : RandomOneShot
        After its run.
    data : DataSplit
        The training part gives the statistics, as one batch.
    recalibrate : bool
        Whether each member gets batch normalisation statistics of its own.

    Returns
    -------
    ndarray, shape (768,)
        In the order of `members`.
    """
    with subnet_scores(
        strategy.supernet,
        val_batches=[data.val.tensors],
        train_batches=[data.train.tensors],
        recalibrate=recalibrate,
    ) as score:
        return np.array([score(sample) for sample in members()])
