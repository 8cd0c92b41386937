"""`Embedding` in a super-net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hwnas.errors import UnsupportedError
from hwnas.nn import ParametrizedModule
from hwnas.supernet.base import BaseSuperNetModule
from hwnas.supernet.mixed_operation import MixedOperation, ever, width_mask


class MixedEmbedding(MixedOperation, torch.nn.Embedding):  # type: ignore[misc]  # PyTorch annotates a `freeze`
    """The first rows and the first columns of one table."""

    _search_machinery = True
    mixable = ("embedding_dim",)
    sizes = ("num_embeddings", "embedding_dim")

    @classmethod
    def maximal_arguments(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the largest size of the table; the row for padding is told at each call."""
        return super().maximal_arguments(arguments) | {"padding_idx": None}

    def sliced_state(self, values: dict[str, Any]) -> dict[str, Tensor]:
        """Return the table of the member."""
        return {"weight": self.weight[: values["num_embeddings"], : values["embedding_dim"]]}

    def forward_sliced(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Look indices up in the slice."""
        return self._look_up(x, self.sliced_state(values)["weight"], values)

    def forward_mixed(self, x: Tensor, values: dict[str, Any]) -> Tensor:
        """Look indices up in the whole table and mask the output."""
        y = self._look_up(x, self.weight, values)
        mask = width_mask(values["embedding_dim"], self.weight.shape[1], y)
        return y if mask is None else y * mask

    def _look_up(self, x: Tensor, weight: Tensor, values: dict[str, Any]) -> Tensor:
        return F.embedding(
            x,
            weight,
            values.get("padding_idx"),
            values.get("max_norm", self.max_norm),
            values.get("norm_type", self.norm_type),
            values.get("scale_grad_by_freq", self.scale_grad_by_freq),
        )

    @classmethod
    def mutate(
        cls, module: torch.nn.Module, name: str, memo: dict[str, Any], mutate_kwargs: dict[str, Any]
    ) -> BaseSuperNetModule | bool:
        """Replace a twin of `Embedding`; see `MixedOperation.mutate`.

        Raises
        ------
        UnsupportedError
            When its gradients would be sparse, which slices cannot pass on.
        """
        mixed = super().mutate(module, name, memo, mutate_kwargs)
        if mixed and isinstance(module, ParametrizedModule) and ever(module.arguments.get("sparse", False)):
            raise UnsupportedError(
                f"Embedding at {name}: sparse gradients cannot pass through a slice of a table, so it cannot be part "
                f"of a super-net with choices among its arguments ({', '.join(module.simplify())}). Use sparse=False"
            )
        return mixed
