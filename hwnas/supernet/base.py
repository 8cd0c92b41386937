"""`BaseSuperNetModule`: the extension point for modules of a super-net."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn
from typing_extensions import Self

from hwnas.nn import MutableModule
from hwnas.space import LabeledMutable, Mutable, Sample
from hwnas.supernet.relaxation import Relaxation


class BaseSuperNetModule(MutableModule):
    """A module of a super-net: it holds the weights of all its members and asks a relaxation what to compute.

    It is still a mutable module: `simplify`, `validate` and `freeze` work on a super-net as on the space from
    which it was made, and freezing gives the member with the weights that it has inside the super-net.

    Subclasses derive from the primitive as well, and implement `own_mutables`, `forward` and `mutate`; `lower` where
    the primitive does not freeze as it should.

    Attributes
    ----------
    relaxation : Relaxation
        Where mixtures come from. It is shared by the whole super-net and not registered as a submodule: its
        parameters belong to the architecture, not to the weights.
    """

    _search_machinery = True
    relaxation: Relaxation

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._search_machinery = True  # of a subclass, too, a frozen model keeps only what it derives from besides

    def attach(self, relaxation: Relaxation) -> None:
        """Ask `relaxation` from now on."""
        object.__setattr__(self, "relaxation", relaxation)

    @classmethod
    def adopt(cls, module: nn.Module, relaxation: Relaxation) -> Self:
        """Take over everything that `module` is made of.

        Parameters
        ----------
        module : torch.nn.Module
            An instance of the primitive from which this class derives. It is not to be used afterwards.
        relaxation : Relaxation
            Whom to ask.

        Returns
        -------
        BaseSuperNetModule
            The same parameters, submodules and labels, computing a mixture.
        """
        mixed = cls.__new__(cls)
        vars(mixed).update(vars(module))
        mixed.attach(relaxation)
        return mixed

    def lower(self, sample: Sample, memo: dict[int, Any]) -> nn.Module:
        """Freeze as the primitive from which the class derives does."""
        memo[id(self.relaxation)] = None  # not to be copied
        lowered = super().lower(sample, memo)
        if vars(lowered).get("relaxation", self) is None:
            del lowered.relaxation
        return lowered

    def own_mutables(self) -> Iterator[Mutable]:
        """Yield the decisions of this module itself, not those of modules below it."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it decides (own_mutables)")

    def search_space_spec(self) -> dict[str, LabeledMutable]:
        """Return the dimensions that this module itself decides, by label."""
        return {label: leaf for own in self.own_mutables() for label, leaf in own.simplify().items()}

    def resample(self, memo: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Sample the decisions of this module.

        The relaxation belongs to the whole super-net and decides every label that the memo lacks, so let the memo
        grow from one module to the next.

        Parameters
        ----------
        memo : dict
            Labels that are decided already; the super-net takes them over.
        rng : numpy.random.Generator, optional
            Where draws come from.

        Returns
        -------
        dict
            What is new. Empty when everything is in the memo or nothing is ever sampled.
        """
        own = self.search_space_spec()
        return {label: value for label, value in self.relaxation.resample(memo, rng).items() if label in own}

    def export(self, memo: Sample) -> Sample:
        """Return the preferred value of each label of this module that is not in `memo`."""
        return {label: self.relaxation.export(label) for label in self.search_space_spec() if label not in memo}

    def export_probs(self, memo: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the distribution over the values of each label of this module that is not in `memo`."""
        found = {label: self.relaxation.probabilities(label) for label in self.search_space_spec() if label not in memo}
        return {label: probabilities.detach() for label, probabilities in found.items() if probabilities is not None}

    @classmethod
    def mutate(
        cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> BaseSuperNetModule | bool | tuple[BaseSuperNetModule | None, bool]:
        """Turn `module` into a module of a super-net, or leave it alone; a mutation hook.

        Parameters
        ----------
        module : torch.nn.Module
            What may be replaced.
        name : str
            Its full name.
        memo : dict
            Free for hooks to share things in.
        mutate_kwargs : dict
            Holds the relaxation under ``"relaxation"``.

        Returns
        -------
        BaseSuperNetModule, bool, or tuple
            The replacement; or whether to keep the module and skip later hooks; or both in this order, with
            None for the module to keep it.
        """
        raise NotImplementedError(f"{cls.__name__} does not say what it replaces (mutate)")
