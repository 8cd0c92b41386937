"""The cell space of AmoebaNet."""

from __future__ import annotations

from functools import partial

from hwnas.hub.cell_network import CellNetwork, cell_sample
from hwnas.hub.cell_operators import OPERATORS, narrow_row_then_column
from hwnas.hub.published import Published


class AmoebaNetSpace(CellNetwork):
    """Cells of five nodes, of which the loose ends are concatenated, with 8 operators; see `CellNetwork` for the rest.

    The operator ``conv_7x1_1x7`` works on a quarter of the channels, as in the authors' code.

    References
    ----------
    Real, Aggarwal, Huang, Le: Regularized Evolution for Image Classifier Architecture Search, AAAI 2019.

    Examples
    --------
    >>> space = AmoebaNetSpace(width=4, num_cells=3)
    >>> len(space.simplify())
    40
    """

    operator_names = (
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "sep_conv_7x7",
        "avg_pool_3x3",
        "max_pool_3x3",
        "dil_sep_conv_3x3",
        "conv_7x1_1x7",
    )
    operators = OPERATORS | {"conv_7x1_1x7": partial(narrow_row_then_column, kernel=7)}
    stem_of_cells = True


_A = cell_sample(
    "normal",
    (("avg_pool_3x3", 1), ("max_pool_3x3", 1)),
    (("sep_conv_3x3", 0), ("skip_connect", 0)),
    (("skip_connect", 1), ("avg_pool_3x3", 0)),
    (("sep_conv_3x3", 1), ("sep_conv_5x5", 2)),
    (("avg_pool_3x3", 5), ("sep_conv_3x3", 1)),
) | cell_sample(
    "reduce",
    (("sep_conv_3x3", 0), ("avg_pool_3x3", 1)),
    (("max_pool_3x3", 1), ("sep_conv_7x7", 2)),
    (("max_pool_3x3", 0), ("max_pool_3x3", 1)),
    (("sep_conv_3x3", 4), ("conv_7x1_1x7", 1)),
    (("avg_pool_3x3", 0), ("sep_conv_7x7", 1)),
)
# The authors' cells concatenate more than their loose ends.
_SPACE_A = partial(AmoebaNetSpace, always_output={"normal": (0,), "reduce": (2, 4)})
_NOTE = "Without the auxiliary head of training. The cells are those of the authors' code."
PUBLISHED = {
    "AmoebaNet-A N=6 F=32": Published(
        space=partial(_SPACE_A, width=32, num_cells=20),
        sample=_A,
        parameters=2.6e6,
        macs=None,
        source="Real et al. 2019, table 1",
        note=f"{_NOTE} 2.559M parameters, which the table rounds up.",
    ),
    "AmoebaNet-A N=6 F=36": Published(
        space=partial(_SPACE_A, width=36, num_cells=20),
        sample=_A,
        parameters=3.2e6,
        macs=None,
        source="Real et al. 2019, table 1",
        note=_NOTE,
    ),
    "AmoebaNet-A N=4 F=50": Published(
        space=partial(_SPACE_A, width=50, num_cells=14, dataset="imagenet"),
        sample=_A,
        parameters=5.1e6,
        macs=555e6,
        source="Real et al. 2018 (arXiv 1802.01548), comparison of mobile-size models on ImageNet",
        note=_NOTE,
    ),
}
