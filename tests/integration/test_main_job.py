"""The command itself, in processes of its own that measure, are killed and interrupted, and go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

SPACE = Path(__file__).parents[1] / "experiment" / "spaces.py"
# Long enough to be hit in the middle.
EPOCHS = 60
PATIENCE_S = 120


def arguments(folder: Path, store: Path, *more: str) -> list[str]:
    options = {
        "--max-latency-ms": "1000", "--batch-size": "4", "--epochs": str(EPOCHS), "--train-epochs": "1",
        "--evaluations": "20", "--profile-seconds": "2", "--store": str(store), "--out": str(folder),
    }  # fmt: skip
    words = [word for pair in options.items() for word in pair]
    return [sys.executable, "-m", "hwnas", "search", f"{SPACE}:Tiny", *words, *more]


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env=environment,
        # Tests in the background inherit that Ctrl+C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def stop(process: subprocess.Popen[str], when: Callable[[], bool], how: signal.Signals) -> tuple[str, str]:
    """Send a signal as soon as a condition holds."""
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not when() and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        process.send_signal(how)
        return process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()


def finish(command: list[str]) -> tuple[str, str]:
    process = start(command)
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, stderr
    return stdout, stderr


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "latency.sqlite"


@pytest.fixture(scope="module")
def uninterrupted(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return folder, *finish(arguments(folder, store, "--json"))


def test_one_command_finds_exports_and_verifies(uninterrupted: tuple[Path, str, str]) -> None:
    folder, stdout, stderr = uninterrupted
    result = json.loads(stdout, parse_constant=pytest.fail)
    assert result == json.loads((folder / "result.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["chosen", "random", "fastest", "largest"]
    assert result["meets_budget"] is True
    assert all(row["measured_ms"] > 0 and row["measured_stderr_ms"] > 0 for row in result["rows"])
    assert result["verification"]["n_batches"] == 10
    assert "train the super-net" in stderr
    session = onnxruntime.InferenceSession(folder / "model" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [4, 1, 8, 8]
    assert session.get_outputs()[0].shape == [4, 10]


def test_killed_then_interrupted_it_goes_on_to_the_same_end(
    uninterrupted: tuple[Path, str, str], store: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    checkpoint = folder / "supernet" / "last.ckpt"
    process = start(arguments(folder, store))
    stop(process, checkpoint.exists, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "ranking.json").exists()

    written = checkpoint.stat().st_mtime_ns
    process = start(arguments(folder, store, "--resume"))
    stdout, stderr = stop(process, lambda: checkpoint.stat().st_mtime_ns != written, signal.SIGINT)
    assert process.returncode == 130
    assert stdout == ""
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    assert not (folder / "ranking.json").exists()  # still in the middle of the training

    stdout, _ = finish(arguments(folder, store, "--resume", "--json"))
    first, _, _ = uninterrupted
    assert (folder / "ranking.json").read_bytes() == (first / "ranking.json").read_bytes()
    compared = [json.loads((path / "result.json").read_text()) for path in (folder, first)]
    for row, expected in zip(*(result["rows"] for result in compared), strict=True):
        for figure in ("name", "sample", "val_accuracy", "test_accuracy", "predicted_ms", "macs", "parameters"):
            assert row[figure] == expected[figure]
    assert (folder / "model" / "model.onnx").read_bytes() == (first / "model" / "model.onnx").read_bytes()
