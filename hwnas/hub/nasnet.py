"""The cell space of NASNet."""

from __future__ import annotations

from functools import partial

from hwnas.hub.cell_network import CellNetwork, cell_sample
from hwnas.hub.published import Published


class NASNetSpace(CellNetwork):
    """Cells of five nodes, of which the loose ends are concatenated, with 13 operators; see `CellNetwork` for the rest.

    References
    ----------
    Zoph, Vasudevan, Shlens, Le: Learning Transferable Architectures for Scalable Image Recognition, CVPR 2018.

    Examples
    --------
    >>> space = NASNetSpace(width=4, num_cells=3)
    >>> model = space.freeze(space.default())
    >>> model.cells[0].output_node_indices
    [2, 3, 4, 5, 6]
    """

    operator_names = (
        "skip_connect",
        "conv_1x1",
        "conv_3x3",
        "conv_3x1_1x3",
        "conv_7x1_1x7",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "sep_conv_7x7",
        "dil_conv_3x3",
        "avg_pool_3x3",
        "max_pool_3x3",
        "max_pool_5x5",
        "max_pool_7x7",
    )
    stem_of_cells = True


_A = cell_sample(
    "normal",
    (("sep_conv_5x5", 1), ("sep_conv_3x3", 0)),
    (("sep_conv_5x5", 0), ("sep_conv_3x3", 0)),
    (("avg_pool_3x3", 1), ("skip_connect", 0)),
    (("avg_pool_3x3", 0), ("avg_pool_3x3", 0)),
    (("sep_conv_3x3", 1), ("skip_connect", 1)),
) | cell_sample(
    "reduce",
    (("sep_conv_5x5", 1), ("sep_conv_7x7", 0)),
    (("max_pool_3x3", 1), ("sep_conv_7x7", 0)),
    (("avg_pool_3x3", 1), ("sep_conv_5x5", 0)),
    (("skip_connect", 3), ("avg_pool_3x3", 2)),
    (("sep_conv_3x3", 2), ("max_pool_3x3", 1)),
)
# Six tensors make up the 1056 or 768 channels of the names: the authors' cells concatenate more than their loose ends.
_SPACE_A = partial(NASNetSpace, always_output={"normal": (0,), "reduce": (3,)})
_NOTE = "Without the auxiliary head of training. The authors do not project the older input of the first cell."
PUBLISHED = {
    "NASNet-A 6@768": Published(
        space=partial(_SPACE_A, width=32, num_cells=20),
        sample=_A,
        parameters=3.3e6,
        macs=None,
        source="Zoph et al. 2018, table 1",
        note=_NOTE,
    ),
    "NASNet-A 4@1056": Published(
        space=partial(_SPACE_A, width=44, num_cells=14, dataset="imagenet"),
        sample=_A,
        parameters=5.3e6,
        macs=564e6,
        source="Zoph et al. 2018, table 3",
        note=f"{_NOTE} Convolutions and the classifier have 558M multiply-adds, 1.1 % fewer than the table says; the "
        "paper does not tell what else it counts.",
    ),
}
