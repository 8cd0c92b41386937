"""`NasExperiment`: a space, an evaluator and a strategy, brought together in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from torch import nn

from hwnas.evaluators import Evaluator
from hwnas.nn import ModelSpace
from hwnas.space import Sample
from hwnas.strategies import Strategy


class NasExperiment:
    """Search a space with a strategy.

    A one-shot strategy turns the space into a super-net and trains it, in place. A second experiment on the same space
    can then search it with a strategy that scores members one by one: these inherit the trained weights, so an
    evaluator that does not train will do.

    Parameters
    ----------
    model_space : ModelSpace
        What is searched.
    evaluator : Evaluator
        Trains and scores.
    strategy : Strategy
        How to search.

    Raises
    ------
    TypeError
        When an argument is something else.

    Examples
    --------
    >>> import hwnas.nn as nn
    >>> from hwnas.evaluators import Classification, digits
    >>> from hwnas.strategies import RandomOneShot, RegularizedEvolution
    >>> class Net(nn.ModelSpace):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.hidden = nn.LayerChoice([nn.Linear(64, 64), nn.Identity()], label="hidden")
    ...         self.head = nn.Linear(64, 10)
    ...     def forward(self, x):
    ...         return self.head(self.hidden(x.flatten(1)).relu())
    >>> data = digits()
    >>> loaders = {"train_dataloaders": data.train_loader(), "val_dataloaders": data.val_loader()}
    >>> model_space = Net()
    >>> training = Classification(max_epochs=1, accelerator="cpu", **loaders)
    >>> NasExperiment(model_space, training, RandomOneShot()).run()
    >>> scoring = Classification(max_epochs=0, accelerator="cpu", **loaders)
    >>> experiment = NasExperiment(model_space, scoring, RegularizedEvolution(population=2))
    >>> experiment.run()
    >>> [model] = experiment.export_top_models(1)
    >>> scoring.evaluate(model) == experiment.strategy.ranking()[0].score
    True
    """

    def __init__(self, model_space: ModelSpace, evaluator: Evaluator, strategy: Strategy) -> None:
        wanted = {
            "model_space": (model_space, ModelSpace),
            "evaluator": (evaluator, Evaluator),
            "strategy": (strategy, Strategy),
        }
        for name, (value, kind) in wanted.items():
            if not isinstance(value, kind):
                got = f"the class {value.__name__} itself" if isinstance(value, type) else f"a {type(value).__name__}"
                raise TypeError(f"NasExperiment: {name} is {got}; expected an instance of {kind.__qualname__}")
        self.model_space = model_space
        self.evaluator = evaluator
        self.strategy = strategy

    def run(self, *, callbacks: Sequence[L.Callback] = (), ckpt_path: str | Path | None = None) -> None:
        """Search.

        Parameters
        ----------
        callbacks, ckpt_path
            See `Strategy.run`.
        """
        self.strategy.run(self.model_space, self.evaluator, callbacks=callbacks, ckpt_path=ckpt_path)

    def export_top_models(self, n: int = 1) -> list[nn.Module]:
        """Return the best members found, best first, as plain models.

        Parameters
        ----------
        n : int
            How many at most.
        """
        return list(self.strategy.list_models(n))

    def best_sample(self) -> Sample:
        """Return the sample of the best member found."""
        return self.strategy.best_sample()
