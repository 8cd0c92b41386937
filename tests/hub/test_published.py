"""Published architectures are members of their spaces, and the page of the hub says what was counted."""

from __future__ import annotations

import importlib
import importlib.util
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


def test_the_page_of_the_hub_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    specification = importlib.util.spec_from_file_location("hub_figures", ROOT / "benchmarks" / "hub_figures.py")
    assert specification is not None
    assert specification.loader is not None
    figures = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(figures)
    table = figures.table()
    assert table in (ROOT / "docs" / "hub.md").read_text(), "run python benchmarks/hub_figures.py"
    # Where a figure is off by more than one percent, a note tells why.
    for row in table.splitlines()[2 : 2 + len(published())]:
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
