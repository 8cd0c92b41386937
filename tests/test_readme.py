"""The Python examples of the README and of the documentation run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def _examples(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


PAGES = [
    pytest.param(path, id=str(path.relative_to(ROOT)))
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if _examples(path)
]


@pytest.mark.parametrize("page", PAGES)
def test_examples_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "examples_of_a_page"}
    for number, example in enumerate(_examples(page), start=1):
        exec(compile(example, f"{page}, example {number}", "exec"), namespace)


def test_the_readme_has_an_example_of_about_thirty_lines() -> None:
    (example,) = _examples(ROOT / "README.md")
    assert 25 <= len(example.splitlines()) <= 45
