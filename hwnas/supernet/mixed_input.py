"""`InputChoice` in a super-net."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from hwnas.errors import UnsupportedError
from hwnas.kernels import mixed_sum
from hwnas.nn import InputChoice
from hwnas.nn.input_choice import check_candidate_inputs, reduce_tensors
from hwnas.space import Mutable
from hwnas.supernet.base import BaseSuperNetModule


class MixedInput(BaseSuperNetModule, InputChoice):
    """The mixture of the inputs of an `InputChoice`.

    When several inputs are active at once, a sum adds each of them as often as it is expected to be chosen,
    and a mean divides by the expected number of inputs: it stays a mean. Of a single input that is chosen, every
    reduction is the weighted sum.
    """

    _search_machinery = True

    def own_mutables(self) -> Iterator[Mutable]:
        """Yield the choice."""
        yield self.choice

    def forward(self, candidate_inputs: Sequence[Tensor]) -> Any:
        """Reduce the active inputs.

        Parameters
        ----------
        candidate_inputs : sequence of Tensor
            As many as were declared.

        Returns
        -------
        Tensor or list of Tensor
            Their reduction.
        """
        check_candidate_inputs(self.label, self.n_candidates, candidate_inputs)
        mixture = self.relaxation.subset(self.choice)
        if mixture.weights is None:
            return reduce_tensors(mixture.select(candidate_inputs, mixture.values[0]), self.reduction)
        total = mixed_sum(mixture.weights, list(candidate_inputs))
        if self.reduction == "mean":
            return total / mixture.weights.sum()
        return [total] if self.reduction == "none" else total

    @classmethod
    def mutate(
        cls, module: nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> BaseSuperNetModule | bool:
        """Replace an `InputChoice`.

        Raises
        ------
        UnsupportedError
            When several inputs would have to be mixed whose reduction is a list or a concatenation.
        """
        if not isinstance(module, InputChoice) or isinstance(module, BaseSuperNetModule):
            return False
        relaxation = mutate_kwargs["relaxation"]
        if relaxation.differentiable and module.reduction not in ("sum", "mean") and module.n_chosen != 1:
            raise UnsupportedError(
                f"InputChoice {module.label!r} (at {name}): reduction {module.reduction!r} has no meaning for a "
                "weighted mixture of several inputs; use 'sum' or 'mean', n_chosen=1, or a strategy that samples one "
                "architecture"
            )
        return cls.adopt(module, relaxation)
