from __future__ import annotations

import subprocess
import sys

import pytest

VERBS = ("search", "profile", "export", "bench", "doctor")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_verb_and_loads_no_torch():
    asked = [["--help"], *([verb, "--help"] for verb in VERBS), ["bench", "kernels", "--help"]]
    done = python(
        "import sys\n"
        "from hwnas.cli import app\n"
        f"for arguments in {asked}:\n"
        "    code = app(arguments, standalone_mode=False)\n"
        "    assert not code, (arguments, code)\n"
        "heavy = {'torch', 'lightning', 'onnx', 'onnxruntime', 'numpy', 'sklearn'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))\n"
    )
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout
    assert all(verb in done.stdout for verb in VERBS)


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "hwnas", "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert "Usage: hwnas" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["sing"],
        ["search"],
        ["search", "digits"],
        ["search", "digits", "--max-latency-ms", "soon"],
        ["bench", "tea"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_parsed_is_a_usage_error(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr
