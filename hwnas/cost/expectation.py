"""The exact expectation of a cost under independent choices, differentiable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hwnas.cost.factor import Table


class Expectation:
    r"""Contract tables with probability vectors.

    .. math:: E[c] = c_0 + \sum_f \sum_{x_f} T_f(x_f) \prod_{l \in f} p_l(x_l)

    This is exact when labels are chosen independently, also when one label occurs in many tables, since every
    table holds a label at most once and expectations add up.

    Parameters
    ----------
    constant : float
        What no choice changes.
    tables : sequence of Table
        The costs.
    labels, sizes : sequences of str and int
        The names and numbers of options of all labels.
    """

    def __init__(self, constant: float, tables: Sequence[Table], labels: Sequence[str], sizes: Sequence[int]) -> None:
        self._constant = constant
        self._sizes = dict(zip(labels, sizes, strict=True))
        self._used = dict.fromkeys(labels[p] for table in tables for p in table.scope)
        # Tables of one shape are contracted together: far fewer operators for the equal blocks of a network.
        by_shape: dict[tuple[int, ...], list[Table]] = {}
        for table in tables:
            by_shape.setdefault(table.values.shape, []).append(table)
        self._groups = [
            (
                [[labels[table.scope[axis]] for table in group] for axis in range(len(shape))],
                np.stack([table.values for table in group]),
            )
            for shape, group in by_shape.items()
        ]
        self._tensors: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}

    def __call__(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Give the expected cost.

        Parameters
        ----------
        probabilities : mapping of str to Tensor, shape (n_label,)
            Labels that are not in the domain are ignored.

        Returns
        -------
        Tensor, shape ()
            In the widest of the dtypes given, float32 at least.
        """
        given = {label: p for label, p in probabilities.items() if label in self._sizes}
        for label in self._used:
            if label not in given:
                raise ValueError(
                    f"the cost depends on the label {label!r}, but no probabilities were given for it; "
                    f"give a tensor of shape ({self._sizes[label]},)"
                )
        for label, p in given.items():
            if tuple(p.shape) != (self._sizes[label],):
                raise ValueError(
                    f"the probabilities of {label!r} have shape {tuple(p.shape)}, expected ({self._sizes[label]},)"
                )
        dtype = torch.float32
        for p in given.values():
            dtype = torch.promote_types(dtype, p.dtype)
        device = next((p.device for p in given.values()), torch.device("cpu"))
        total = torch.full((), self._constant, dtype=dtype, device=device)
        for (axes, _), table in zip(self._groups, self._on(dtype, device), strict=True):
            # table: (G, n_1, ..., n_d), contracted from the last axis to the first. Multiplied and summed
            # rather than matrix-multiplied, which autocast would do in half precision: costs overflow there.
            for axis in reversed(axes):
                p = torch.stack([given[label] for label in axis]).to(dtype)  # (G, n_axis)
                table = (table * p.reshape(p.shape[0], *[1] * (table.ndim - 2), p.shape[1])).sum(-1)
            total = total + table.sum()
        # Tensors that do not matter get a gradient of zero rather than none, as with every other function.
        idle = [p for label, p in given.items() if label not in self._used and p.requires_grad]
        for p in idle:
            total = total + 0.0 * p.sum()
        return total

    def _on(self, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        key = (dtype, device)
        if key not in self._tensors:
            with torch.inference_mode(False):  # what a validation step caches must serve training too
                self._tensors[key] = [torch.tensor(t, dtype=dtype, device=device) for _, t in self._groups]
        return self._tensors[key]
