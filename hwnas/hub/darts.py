"""The cell space of DARTS."""

from __future__ import annotations

from functools import partial

import hwnas.nn as nn
from hwnas.hub.cell_network import CellNetwork, cell_sample
from hwnas.hub.published import Published


class DARTSSpace(CellNetwork):
    """Cells of four nodes, all of which are concatenated, with eight operators; see `CellNetwork` for the rest.

    DARTS itself lets the two operators of a node read different nodes only; here they may read the same one.

    References
    ----------
    Liu, Simonyan, Yang: DARTS: Differentiable Architecture Search, ICLR 2019.

    Examples
    --------
    >>> space = DARTSSpace(width=4, num_cells=3)
    >>> model = space.freeze(space.random(random_state=0))
    >>> model.head
    Linear(in_features=64, out_features=10, bias=True)
    """

    operator_names = (
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "dil_conv_3x3",
        "dil_conv_5x5",
        "avg_pool_3x3",
        "max_pool_3x3",
        "none",
    )
    num_nodes = 4
    merge_op = "all"
    last_activation = nn.Identity


_V1 = cell_sample(
    "normal",
    (("sep_conv_3x3", 1), ("sep_conv_3x3", 0)),
    (("skip_connect", 0), ("sep_conv_3x3", 1)),
    (("skip_connect", 0), ("sep_conv_3x3", 1)),
    (("sep_conv_3x3", 0), ("skip_connect", 2)),
) | cell_sample(
    "reduce",
    (("max_pool_3x3", 0), ("max_pool_3x3", 1)),
    (("skip_connect", 2), ("max_pool_3x3", 0)),
    (("max_pool_3x3", 0), ("skip_connect", 2)),
    (("skip_connect", 2), ("avg_pool_3x3", 0)),
)
_V2 = cell_sample(
    "normal",
    (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
    (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)),
    (("sep_conv_3x3", 1), ("skip_connect", 0)),
    (("skip_connect", 0), ("dil_conv_3x3", 2)),
) | cell_sample(
    "reduce",
    (("max_pool_3x3", 0), ("max_pool_3x3", 1)),
    (("skip_connect", 2), ("max_pool_3x3", 1)),
    (("max_pool_3x3", 0), ("skip_connect", 2)),
    (("skip_connect", 2), ("max_pool_3x3", 1)),
)
_CIFAR = partial(DARTSSpace, width=36, num_cells=20)
PUBLISHED = {
    "DARTS-V1 CIFAR-10": Published(
        space=_CIFAR,
        sample=_V1,
        parameters=3.3e6,
        macs=None,
        source="Liu et al. 2019, table 1: first order",
        note="Without the auxiliary head of training. The cells that the authors released as those of first order have "
        "3.17M parameters, 4 % fewer than the table says; it says as much of those of second order, which have more.",
    ),
    "DARTS-V2 CIFAR-10": Published(
        space=_CIFAR,
        sample=_V2,
        parameters=3.3e6,
        macs=None,
        source="Liu et al. 2019, table 1: second order",
        note="Without the auxiliary head of training. 3.349M parameters, which the table rounds down.",
    ),
    "DARTS-V2 ImageNet": Published(
        space=partial(DARTSSpace, width=48, num_cells=14, dataset="imagenet"),
        sample=_V2,
        parameters=4.7e6,
        macs=574e6,
        source="Liu et al. 2019, table 3",
        note="Without the auxiliary head of training. Convolutions and the classifier have 530M multiply-adds, 7.7 % "
        "fewer than the table says; the paper does not tell what else it counts.",
    ),
}
