from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hwnas.experiment import RunFolder, RunFolderError

CONFIG: dict[str, Any] = {"task": "digits", "seed": 0, "max_latency_ms": 1.0}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "run", CONFIG)
    assert not folder.has("ranking.json")
    folder.save("trained/chosen.json", {"accuracy": 0.5})
    assert folder.has("trained/chosen.json")
    assert folder.load("trained/chosen.json") == {"accuracy": 0.5}
    assert folder.load("config.json") == CONFIG


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    RunFolder(tmp_path, CONFIG)
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(RunFolderError, match="is not empty and holds no run") as caught:
        RunFolder(tmp_path, CONFIG, resume=resume)
    assert "--out" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_is_gone_on_with_only_when_asked(tmp_path: Path) -> None:
    RunFolder(tmp_path, CONFIG).save("result.json", 1)
    with pytest.raises(RunFolderError, match="--resume"):
        RunFolder(tmp_path, CONFIG)
    assert RunFolder(tmp_path, dict(CONFIG), resume=True).load("result.json") == 1


def test_resume_without_a_run_begins_one(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", CONFIG, resume=True)
    assert (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({**CONFIG, "seed": 1}, "seed"),
        ({**CONFIG, "task": "a.py:A", "max_latency_ms": 2.0}, "max_latency_ms, task"),
        ({**CONFIG, "threads": 2}, "threads"),
        ({key: value for key, value in CONFIG.items() if key != "seed"}, "seed"),
    ],
)
def test_what_differs_from_the_run_before_is_named(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    RunFolder(tmp_path, CONFIG)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(RunFolderError, match=f"started differently: {named}[.]"):
        RunFolder(tmp_path, changed, resume=True)
    assert (tmp_path / "config.json").read_text() == before


def test_values_that_json_writes_differently_are_no_difference(tmp_path: Path) -> None:
    RunFolder(tmp_path, {"shape": (1, 2)})
    assert RunFolder(tmp_path, {"shape": (1, 2)}, resume=True).load("config.json") == {"shape": [1, 2]}


@pytest.mark.parametrize("content", [b'{"seed": 0', b"", b"\xff\xfe\x00", b"[1, 2]"], ids=str)
def test_a_damaged_configuration_is_told(tmp_path: Path, content: bytes) -> None:
    RunFolder(tmp_path, CONFIG)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RunFolderError, match=r"config\.json is damaged"):
        RunFolder(tmp_path, CONFIG, resume=True)


def test_a_damaged_stage_is_told_with_what_to_do(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, CONFIG)
    (tmp_path / "ranking.json").write_text("[{")
    with pytest.raises(RunFolderError, match=r"ranking\.json is damaged .*; remove it"):
        folder.load("ranking.json")


def test_numbers_that_json_does_not_have_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="JSON"):
        folder.save("result.json", {"latency": float("nan")})
    assert not folder.has("result.json")


def test_a_disk_that_is_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("hwnas.experiment.run_folder.write_text", full)
    with pytest.raises(RunFolderError, match="cannot be written: No space left on device; choose another") as caught:
        RunFolder(tmp_path / "run", CONFIG)
    assert str(tmp_path / "run") in str(caught.value)


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        RunFolder(tmp_path / "run" / "one", CONFIG)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_may_only_be_read_is_told_at_once(tmp_path: Path, resume: bool) -> None:
    if resume:
        RunFolder(tmp_path, CONFIG)
        (tmp_path / "config.json").chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(RunFolderError, match="cannot be written: Permission denied"):
            RunFolder(tmp_path, CONFIG, resume=resume)
    finally:
        tmp_path.chmod(0o755)
