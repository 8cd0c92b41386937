"""The operators' tests once more, on kernels built with AddressSanitizer and UndefinedBehaviorSanitizer.

PyTorch's memory then has guard zones as well: its allocations go through those of the sanitizer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPERATORS = sorted({path.stem for path in (ROOT / "csrc" / "cpu").glob("*.cpp")} - {"isa"} | {"bn_clamp"})

# What goes through a compiler or a checker of operators calls the same kernels once more, and slowly.
SELECTION = ["-m", "not slow", "-k", "not compiled and not opcheck and not exported and not big"]

pytestmark = pytest.mark.slow


def library(name: str) -> str:
    """Path of a library that comes with the compiler."""
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    if not path.is_absolute():
        pytest.skip(f"the compiler has no {name}")
    return str(path.resolve())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package lies with an instrumented module."""
    pybind11 = pytest.importorskip("pybind11")
    for tool in ("cmake", "ninja", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} to build the kernels with")
    library("libasan.so")
    place = tmp_path_factory.mktemp("sanitized")
    options = {
        "HWNAS_SANITIZE": "ON",
        "HWNAS_CUDA": "OFF",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    arguments = [f"-D{name}={value}" for name, value in options.items()]
    for command in (
        ["cmake", "-S", ROOT, "-B", place / "build", "-G", "Ninja", *arguments],
        ["cmake", "--build", place / "build"],
        ["cmake", "--install", place / "build", "--prefix", place],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for entry in (ROOT / "hwnas").iterdir():
        if entry.suffix != ".so":
            (place / "hwnas" / entry.name).symlink_to(entry)
    return place


def run(folder: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        # The C++ library comes second, before torch loads it: the sanitizer has to find its exceptions.
        "LD_PRELOAD": f"{library('libasan.so')} {library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    own = "import sys; from hwnas.kernels import native; assert native.CPU.__file__.startswith(sys.argv.pop(1))\n"
    return subprocess.run(
        [sys.executable, "-c", own + code, str(folder), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("operator", OPERATORS)
def test_nothing_is_found(operator: str, folder: Path) -> None:
    tests = ROOT / "tests" / "kernels" / f"test_{operator}.py"
    options = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    result = run(folder, "import pytest; sys.exit(pytest.main(sys.argv[1:]))", str(tests), *options, *SELECTION)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-8000:]
    assert " passed" in result.stdout


PAST_THE_END = """
import torch
w, x, out = torch.ones(1), torch.ones(100), torch.empty({out})
native.CPU.mixed_sum(0, w.data_ptr(), [x.data_ptr()], out.data_ptr(), {size}, 1)
"""


@pytest.mark.parametrize(("size", "out", "access"), [(101, 200, "READ"), (100, 99, "WRITE")])
def test_an_access_past_the_end_is_found(size: int, out: int, access: str, folder: Path) -> None:
    result = run(folder, PAST_THE_END.format(size=size, out=out))
    assert result.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in result.stderr
    assert f"{access} of size" in result.stderr
    assert run(folder, PAST_THE_END.format(size=100, out=100)).returncode == 0
