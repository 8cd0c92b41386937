"""The space of NAS-Bench-101: its members, their numbers of parameters, and how many there are."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.hub import NASBench101Space
from hwnas.hub.nas_bench_101 import OPERATIONS, PUBLISHED
from hwnas.space import Sample

CONV1, CONV3, POOL = OPERATIONS


def number_of_parameters(matrix: list[list[int]], operations: list[str]) -> int:
    """Count by the formulas of the paper, from a pruned matrix and nothing of hwnas."""
    edges = np.array(matrix)
    last = len(matrix) - 1

    def convolution(n: int, m: int, kernel: int) -> int:
        return kernel * kernel * n * m + 2 * m

    def cell(n: int, m: int) -> int:
        width = np.zeros(last + 1, dtype=int)
        width[last] = m
        into_out = np.flatnonzero(edges[1:, last]) + 1
        for rank, node in enumerate(into_out):
            width[node] = math.ceil((m - rank) / len(into_out))
        for node in range(last - 1, 0, -1):
            if not edges[node, last]:
                width[node] = (width * edges[node]).max()
        inside = sum(
            {CONV1: convolution(w, w, 1), CONV3: convolution(w, w, 3), POOL: 0}[operation]
            for w, operation in zip(width[1:last].tolist(), operations[1:-1], strict=True)
        )
        return inside + sum(convolution(n, int(width[node]), 1) for node in np.flatnonzero(edges[0]))

    widths = [128] * 4 + [256] * 3 + [512] * 3
    cells = sum(cell(n, m) for n, m in itertools.pairwise(widths))
    return convolution(3, 128, 3) + cells + 512 * 10 + 10


def parameters_of(sample: Sample) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in NASBench101Space().freeze(sample).parameters())


@pytest.fixture(scope="module")
def small() -> NASBench101Space:
    return NASBench101Space(channels=6, cells=1).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_of_parameters(name: str) -> None:
    assert parameters_of(PUBLISHED[name].sample) == PUBLISHED[name].parameters


def test_other_numbers_of_parameters_are_those_of_the_formulas() -> None:
    with torch.device("meta"):
        space = NASBench101Space()
        rng = np.random.default_rng(0)
        for _ in range(15):
            sample = space.random(random_state=rng)
            found = sum(p.numel() for p in space.freeze(sample).parameters())
            assert found == number_of_parameters(*NASBench101Space.to_matrix(sample)), sample
            assert 200_000 < found <= 49_979_274


def test_the_number_of_samples(small: NASBench101Space) -> None:
    def wirings(num_nodes: int) -> int:
        product = np.array([1])
        for node in range(1, num_nodes):
            product = np.convolve(product, [0, *(math.comb(node, k) for k in range(1, node + 1))])
        return int(product[:10].sum())

    assert small.size(active_only=True) == sum(3 ** (n - 2) * wirings(n) for n in range(2, 8)) == 18_766_576


def test_all_cells_have_one_graph(small: NASBench101Space) -> None:
    assert len(small.simplify()) == 12
    member = small.freeze(small.random(random_state=5))
    cells = [member.body[i] for i in (1, 3, 5)]
    assert cells[0].inputs == cells[1].inputs == cells[2].inputs
    assert [cell.channels[0] for cell in cells] == [6, 6, 12]
    assert [cell.channels[-1] for cell in cells] == [6, 12, 24]


def test_images_become_scores(small: NASBench101Space) -> None:
    x = torch.randn(2, 3, 32, 32)
    assert small(x).shape == (2, 10)
    for seed in range(5):
        member = small.freeze(small.random(random_state=seed)).eval()
        seen: list[torch.Size] = []
        member.classifier.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].shape))
        member.body[-1].register_forward_hook(lambda *args, seen=seen: seen.append(args[-1].shape))
        assert member(x).shape == (2, 10)
        assert seen == [(2, 24, 8, 8), (2, 24)]
    assert NASBench101Space(classes=3, channels=6, cells=1)(x).shape == (2, 3)


def test_batch_normalisation_is_that_of_the_paper(small: NASBench101Space) -> None:
    norms = [m for m in small.freeze(small.default()).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(norm.eps, round(1 - norm.momentum, 6)) for norm in norms} == {(1e-5, 0.997)}
    assert not any(m.bias is not None for m in small.modules() if isinstance(m, torch.nn.Conv2d))


def test_matrices_are_read_and_written() -> None:
    matrix = [[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    operations = ["input", CONV3, POOL, "output"]
    sample = NASBench101Space.from_matrix(np.array(matrix), operations)
    assert sample == {
        "cell/num_nodes": 4, "cell/op1": CONV3, "cell/op2": POOL,
        "cell/input1": [0], "cell/input2": [0, 1], "cell/input3": [2],
    }  # fmt: skip
    assert NASBench101Space.to_matrix(sample) == (matrix, operations)


def test_dead_nodes_are_left_out_of_matrices(small: NASBench101Space) -> None:
    matrix = [[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    sample = NASBench101Space.from_matrix(matrix, ["input", CONV1, CONV3, "output"])
    assert sample == {"cell/num_nodes": 2, "cell/input1": [0]}
    for seed in range(20):
        drawn = small.random(random_state=seed)
        written = NASBench101Space.to_matrix(drawn)
        read = NASBench101Space.from_matrix(*written)
        assert small.contains(read)
        assert NASBench101Space.to_matrix(read) == written


CHAIN = [[int(j == i + 1) for j in range(8)] for i in range(8)]
FULL = [[int(j > i) for j in range(7)] for i in range(7)]


@pytest.mark.parametrize(
    ("matrix", "operations", "message"),
    [
        ([[0, 1], [0]], ["input", "output"], "square matrix"),
        ([[0, 1], [0, 0]], ["input", POOL, "output"], "one operation for each row"),
        ([[0, 1], [1, 0]], ["input", "output"], "above the diagonal"),
        ([[0, 2], [0, 0]], ["input", "output"], "expected 0 and 1"),
        ([[0, 1], [0, 0]], ["output", "input"], "expected 'input'"),
        ([[0, 1, 0], [0, 0, 1], [0, 0, 0]], ["input", "conv5x5", "output"], "conv1x1-bn-relu"),
        ([[0, 1, 0], [0, 0, 0], [0, 0, 0]], ["input", POOL, "output"], "no path"),
        (CHAIN, ["input", *[POOL] * 6, "output"], "8 nodes and 7 edges"),
        (FULL, ["input", *[POOL] * 5, "output"], "7 nodes and 21 edges"),
    ],
)
def test_bad_matrices(matrix: Any, operations: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NASBench101Space.from_matrix(matrix, operations)


def test_an_exported_member_computes_the_same() -> None:
    # Node 1 has one channel more than node 4, which reads it.
    matrix = [[0, 1, 1, 1, 0, 1], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1], [0] * 5 + [1], [0] * 6]
    sample = NASBench101Space.from_matrix(matrix, ["input", CONV3, POOL, CONV1, CONV1, "output"])
    member = NASBench101Space(channels=6, cells=1).freeze(sample).eval()
    assert member.body[1].channels == [6, 2, 2, 1, 1, 6]
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.export.export(member, (x,)).module()(x), member(x))
