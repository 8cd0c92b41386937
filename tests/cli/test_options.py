from __future__ import annotations

from pathlib import Path

import pytest

from hwnas.cli.options import default_store


def test_the_store_is_in_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_store() == tmp_path / "hwnas" / "latency.sqlite"


@pytest.mark.parametrize("value", [None, "", "relative/folder"])
def test_without_an_absolute_cache_folder_it_is_in_home(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert default_store() == Path.home() / ".cache" / "hwnas" / "latency.sqlite"
