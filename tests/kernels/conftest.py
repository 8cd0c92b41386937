"""What the tests of several operators are run for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hwnas.kernels import native


@pytest.fixture(params=["base", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn."""
    assert native.CPU is not None
    if request.param not in native.CPU.supported_isas():
        pytest.skip(f"this processor does not run {request.param}")
    before = native.CPU.current_isa()
    native.CPU.select_isa(request.param)
    yield request.param
    native.CPU.select_isa(before)


@pytest.fixture(
    params=[
        (4, 6, 5, 7),
        (2, 3, 33, 65),  # rows longer than what is worked on at a time
        (70, 9, 8, 8),  # more images than are added up at a time
        (5, 7, 1, 1),
        (3, 5),
        (2, 4, 9),
        (2, 3, 2, 3, 4),
        (3, 1100, 2, 1),
        (9, 1, 3, 3),
    ],
    ids=str,
)
def normed_shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    """Shapes of tensors whose channels are normalised."""
    shape: tuple[int, ...] = request.param
    return shape
