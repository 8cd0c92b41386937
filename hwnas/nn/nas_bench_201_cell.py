"""`NasBench201Cell`: a cell in which the operation of every connection is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from hwnas.nn.layer_choice import LayerChoice
from hwnas.nn.mutable_module import MutableModule
from hwnas.space.labels import Label, resolve_label

EdgeFactory = Callable[[int, int], nn.Module]


class NasBench201Cell(MutableModule):
    """The cell of NAS-Bench-201: tensors in a row, with an operation from each one to every later one.

    The first tensor is the input; each other one is the sum of what the operations make of those before it; the last
    one is the output. The operation from tensor i to tensor j is a `LayerChoice` with the label ``{label}/{i}_{j}``,
    so the cell has ``len(op_candidates) ** (num_tensors * (num_tensors - 1) / 2)`` members. Cells of one label choose
    alike.

    Parameters
    ----------
    op_candidates : sequence or mapping of callable
        Each makes an operation from the numbers of channels of its input and of its output. A sequence is chosen from
        by position, a mapping by name.
    in_features, out_features : int
        Channels of the first tensor and of all others.
    num_tensors : int, default 4
        Number of tensors, the input included.
    label : str, optional
        Prefix of the labels of the cell.

    Raises
    ------
    ValueError
        When there are fewer than two tensors or no candidates.
    TypeError
        When a callable returns something that is no module.

    Examples
    --------
    >>> import hwnas.nn as nn
    >>> candidates = {"conv": lambda n, m: nn.Conv2d(n, m, 1), "pool_conv": lambda n, m: nn.Sequential(
    ...     nn.AvgPool2d(3, 1, 1), nn.Conv2d(n, m, 1))}
    >>> cell = nn.NasBench201Cell(candidates, 8, 16, num_tensors=3, label="cell")
    >>> list(cell.simplify())
    ['cell/0_1', 'cell/0_2', 'cell/1_2']
    >>> cell.size()
    8

    References
    ----------
    Dong, Yang: NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search, ICLR 2020.
    """

    def __init__(
        self,
        op_candidates: Sequence[EdgeFactory] | Mapping[str, EdgeFactory],
        in_features: int,
        out_features: int,
        num_tensors: int = 4,
        label: str | None = None,
    ) -> None:
        super().__init__()
        prefix = resolve_label(label, "cell")
        if num_tensors < 2:
            raise ValueError(f"NasBench201Cell {prefix!r}: num_tensors is {num_tensors}; expected at least 2")
        if not op_candidates:
            raise ValueError(f"NasBench201Cell {prefix!r}: there are no op_candidates; give at least one")
        self.num_tensors = num_tensors
        self.edges = nn.ModuleDict()
        for target in range(1, num_tensors):
            for source in range(target):
                features = out_features if source else in_features
                self.edges[f"{source}_{target}"] = LayerChoice(
                    {name: factory(features, out_features) for name, factory in op_candidates.items()}
                    if isinstance(op_candidates, Mapping)
                    else [factory(features, out_features) for factory in op_candidates],
                    label=Label(f"{prefix}/{source}_{target}"),
                )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the last tensor.

        Parameters
        ----------
        x : Tensor, shape (N, in_features, *)
            The first tensor.

        Returns
        -------
        Tensor, shape (N, out_features, *)
            The last tensor.
        """
        tensors = [x]
        for target in range(1, self.num_tensors):
            total = self.edges[f"0_{target}"](x)
            for source in range(1, target):
                total = total + self.edges[f"{source}_{target}"](tensors[source])
            tensors.append(total)
        return tensors[-1]
