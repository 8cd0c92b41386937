"""Published architectures are members of their spaces, and the page of the hub says what was counted."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

import hwnas.hub
import hwnas.nn
from hwnas.hub import Published, published

ROOT = Path(__file__).parent.parent.parent
FILES = [
    module
    for info in pkgutil.iter_modules(hwnas.hub.__path__)
    if hasattr(module := importlib.import_module(f"hwnas.hub.{info.name}"), "PUBLISHED")
]


def test_no_architecture_is_lost_among_the_others() -> None:
    names = [name for module in FILES for name in module.PUBLISHED]
    assert sorted(names) == sorted(published())
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", published())
def test_it_is_a_member_of_its_space_with_a_source(name: str) -> None:
    architecture = published()[name]
    with torch.device("meta"):
        space = architecture.space()
    space.validate(architecture.sample)
    assert set(architecture.sample) <= set(space.simplify())
    assert architecture.source


def test_a_note_tells_where_a_figure_of_the_page_is_off() -> None:
    lines = (ROOT / "docs" / "hub.md").read_text().partition("<!-- figures")[2].splitlines()
    rows = [line for line in lines if line.startswith("| ")][1 : 1 + len(published())]
    assert len(rows) == len(published())
    for row in rows:
        name, _, _, parameters, _, _, macs, _ = (cell.strip() for cell in row.strip("|").split("|"))
        off = [abs(float(deviation.split()[0])) > 1 for deviation in (parameters, macs) if "%" in deviation]
        assert not any(off) or name.endswith(")"), row


def test_counts_are_those_of_a_model_that_can_be_counted_by_hand() -> None:
    class Net(hwnas.nn.ModelSpace):
        input_shape = (3, 4, 4)

        def __init__(self) -> None:
            super().__init__()
            self.conv = hwnas.nn.Conv2d(3, hwnas.nn.ValueChoice([2, 5], label="width"), 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    architecture = Published(Net, {"width": 5}, None, None, "here")
    assert architecture.count() == (3 * 5 * 9 + 5, 16 * 3 * 5 * 9)
    assert architecture.model()(torch.zeros(1, 3, 4, 4)).shape == (1, 5, 4, 4)
