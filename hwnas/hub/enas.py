"""The cell space of ENAS."""

from __future__ import annotations

from functools import partial

from hwnas.hub.cell_network import CellNetwork, cell_sample
from hwnas.hub.published import Published


class ENASSpace(CellNetwork):
    """Cells of five nodes, of which the loose ends are concatenated, with 5 operators; see `CellNetwork` for the rest.

    It is what the paper calls the micro search space. The paper has no network for ImageNet; here its stem is made of
    convolutions.

    References
    ----------
    Pham, Guan, Zoph, Le, Dean: Efficient Neural Architecture Search via Parameter Sharing, ICML 2018.

    Examples
    --------
    >>> space = ENASSpace(width=4, num_cells=3)
    >>> space.simplify()["normal/op_2_0"].values
    ['skip_connect', 'sep_conv_3x3', 'sep_conv_5x5', 'avg_pool_3x3', 'max_pool_3x3']
    """

    operator_names = ("skip_connect", "sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3")


_MICRO = cell_sample(
    "normal",
    (("avg_pool_3x3", 0), ("sep_conv_3x3", 0)),
    (("skip_connect", 0), ("sep_conv_5x5", 0)),
    (("skip_connect", 0), ("sep_conv_5x5", 1)),
    (("sep_conv_3x3", 1), ("sep_conv_5x5", 0)),
    (("avg_pool_3x3", 0), ("sep_conv_5x5", 1)),
) | cell_sample(
    "reduce",
    (("sep_conv_3x3", 1), ("sep_conv_3x3", 1)),
    (("max_pool_3x3", 0), ("avg_pool_3x3", 0)),
    (("sep_conv_5x5", 1), ("sep_conv_5x5", 3)),
    (("sep_conv_3x3", 1), ("skip_connect", 0)),
    (("max_pool_3x3", 0), ("sep_conv_5x5", 1)),
)
PUBLISHED = {
    "ENAS micro": Published(
        space=partial(ENASSpace, width=36, num_cells=17),
        sample=_MICRO,
        parameters=4.6e6,
        macs=None,
        source="Pham et al. 2018, table 2",
        note="The paper gives neither the number of cells nor that of channels. Both, and the cells, are here those of "
        "the script that the authors released: 3.73M parameters in this space, 19 % fewer than the table says. The "
        "authors' code projects the newer input of every cell twice, which adds 0.16M; with six normal cells instead "
        "of five to a stage it would have 4.59M.",
    ),
}
