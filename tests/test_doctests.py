"""The examples in the documentation strings are run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import hwnas

OPTIONAL = {"hwnas._cpu", "hwnas._cuda"}  # compiled


def module_names() -> list[str]:
    return sorted(
        info.name
        for info in pkgutil.walk_packages(hwnas.__path__, "hwnas.", onerror=lambda name: None)
        if info.name not in OPTIONAL and not info.name.endswith("__main__")
    )


@pytest.mark.parametrize("name", module_names())
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    # Objects are tested where they are defined, not where they are imported.
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert result.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(name) for name in module_names()]
    assert sum(bool(test.examples) for module in modules for test in finder.find(module)) > 5


def test_profilers_are_found() -> None:
    assert "hwnas.profilers.flops" in module_names()
