"""Tables over intermediates that cannot have all their values together."""

from __future__ import annotations

import numpy as np

from hwnas.cost import Intermediate
from hwnas.profilers.tables import Table, holds_always


def test_a_condition_that_fails_where_there_is_no_member_holds_always() -> None:
    up, down = Intermediate("up", ("a",), [0, 1]), Intermediate("down", ("a",), [1, 0])
    differ = np.array([[False, True], [True, False]])
    assert holds_always(Table((up, down), differ))
    assert not holds_always(Table((up, down), ~differ))
    assert not holds_always(Table(("a", "b"), differ))
