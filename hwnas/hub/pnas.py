"""The cell space of PNAS."""

from __future__ import annotations

from functools import partial

from hwnas.hub.cell_network import CellNetwork, cell_sample
from hwnas.hub.published import Published


class PNASSpace(CellNetwork):
    """One kind of cell, of five nodes that are all concatenated, with eight operators; see `CellNetwork` for the rest.

    Reduction cells differ from the others in their stride alone, so the only label prefix is ``cell``.

    References
    ----------
    Liu et al.: Progressive Neural Architecture Search, ECCV 2018.

    Examples
    --------
    >>> space = PNASSpace(width=4, num_cells=3)
    >>> len(space.simplify())
    20
    """

    operator_names = (
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "sep_conv_7x7",
        "conv_7x1_1x7",
        "avg_pool_3x3",
        "max_pool_3x3",
        "dil_conv_3x3",
    )
    merge_op = "all"
    normal_label = reduction_label = "cell"
    stem_of_cells = True


_PNASNET_5 = cell_sample(
    "cell",
    (("sep_conv_5x5", 0), ("max_pool_3x3", 0)),
    (("sep_conv_7x7", 1), ("max_pool_3x3", 1)),
    (("sep_conv_5x5", 1), ("sep_conv_3x3", 1)),
    (("sep_conv_3x3", 4), ("max_pool_3x3", 1)),
    (("sep_conv_3x3", 0), ("skip_connect", 1)),
)
_NOTE = (
    "Without the auxiliary head of training. As in the authors' code, N cells to a stage include the one with a stride."
)
PUBLISHED = {
    "PNASNet-5 N=3 F=48": Published(
        space=partial(PNASSpace, width=48, num_cells=9),
        sample=_PNASNET_5,
        parameters=3.2e6,
        macs=None,
        source="Liu et al. 2018, comparison on CIFAR-10",
        note=_NOTE,
    ),
    "PNASNet-5 N=3 F=54": Published(
        space=partial(PNASSpace, width=54, num_cells=9, dataset="imagenet"),
        sample=_PNASNET_5,
        parameters=5.1e6,
        macs=588e6,
        source="Liu et al. 2018, comparison of mobile-size models on ImageNet",
        note=_NOTE,
    ),
}
