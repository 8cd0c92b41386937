"""The space of NAS-Bench-201: its members, their size, and which of them the benchmark counts as one."""

from __future__ import annotations

import csv
import gzip
import itertools
import logging
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hwnas.hub import NASBench201Space
from hwnas.hub.nas_bench_201 import OPERATIONS, PUBLISHED
from hwnas.profilers import FlopsProfiler, NumParamsProfiler
from hwnas.supernet import OneHot, make_supernet

TABLE = Path(__file__).parents[2].parent / "shared" / "data" / "nas_bench_201.csv.gz"
EVERY = "|{0}~0|+|{0}~0|{0}~1|+|{0}~0|{0}~1|{0}~2|"


def costs(model: torch.nn.Module, size: int = 32) -> tuple[int, float]:
    """Parameters, and multiply-adds as PyTorch's own counter finds them, without running anything."""
    x = torch.zeros(1, 3, size, size, device="meta")
    with FlopCounterMode(display=False) as counter:
        model.eval()(x)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2


@pytest.fixture(scope="module")
def small() -> NASBench201Space:
    return NASBench201Space(channels=4, cells=1).eval()


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    if not TABLE.is_file():
        pytest.skip("the table of the benchmark is not here")
    with gzip.open(TABLE, "rt") as file:
        return list(csv.DictReader(file))


def test_the_number_of_members(small: NASBench201Space) -> None:
    assert small.size() == 5**6 == 15_625
    assert list(small.simplify()) == [f"cell/{i}_{j}" for j in range(1, 4) for i in range(j)]


def test_all_members_of_the_table_are_read_and_written(rows: list[dict[str, str]], small: NASBench201Space) -> None:
    samples = [NASBench201Space.from_string(row["arch"]) for row in rows]
    assert [NASBench201Space.to_string(sample) for sample in samples] == [row["arch"] for row in rows]
    assert len({tuple(sample.items()) for sample in samples}) == 15_625
    assert all(small.contains(sample) for sample in samples[::50])


def test_the_members_are_divided_as_in_the_table(rows: list[dict[str, str]]) -> None:
    forms = [NASBench201Space.canonical(NASBench201Space.from_string(row["arch"])) for row in rows]
    pairs = {(form, row["unique"]) for form, row in zip(forms, rows, strict=True)}
    assert len(pairs) == len(set(forms)) == len({row["unique"] for row in rows}) == 6_466


def test_the_number_of_different_members() -> None:
    texts = ("|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*names) for names in itertools.product(OPERATIONS, repeat=6))
    assert len({NASBench201Space.canonical(NASBench201Space.from_string(text)) for text in texts}) == 6_466


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (EVERY.format("none"), "#+#+#"),
        (EVERY.format("skip_connect"), "0+0+0+0"),
        (
            "|nor_conv_1x1~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|",
            "#+#+(#+(0)@nor_conv_1x1)@avg_pool_3x3",
        ),
        ("|none~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|", "#+(#+#)@nor_conv_3x3+0"),
    ],
)
def test_forms_by_hand(text: str, form: str) -> None:
    assert NASBench201Space.canonical(NASBench201Space.from_string(text)) == form


def test_a_member_is_written_by_target() -> None:
    sample = NASBench201Space.from_string(
        "|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|"
    )
    assert sample == {
        "cell/0_1": "none", "cell/0_2": "skip_connect", "cell/1_2": "nor_conv_1x1",
        "cell/0_3": "nor_conv_3x3", "cell/1_3": "avg_pool_3x3", "cell/2_3": "none",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no cell of NAS-Bench-201"),
        ("|none~0|+|none~0|none~1|", "is no cell"),
        (EVERY.format("none") + "+|none~0|none~1|none~2|none~3|", "is no cell"),
        ("|none~0|+|none~1|none~0|+|none~0|none~1|none~2|", "is no cell"),
        ("none~0+|none~0|none~1|+|none~0|none~1|none~2|", "is no cell"),
        (EVERY.format("dil_conv"), "unknown operation 'dil_conv'.*none, skip_connect"),
    ],
)
def test_bad_texts(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NASBench201Space.from_string(text)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    published = PUBLISHED[name]
    with torch.device("meta"):
        parameters, macs = costs(published.model())
    if published.parameters is not None:
        assert published.macs is not None
        assert parameters == published.parameters
        assert macs + 10 == published.macs  # the table counts the biases of the classifier
    else:
        # Each 3x3 convolution adds to the smallest member, in 5 cells of each of 3 widths, 9 c c + 2 c parameters.
        convolutions = NASBench201Space.to_string(published.sample).count("3x3"), 1
        added = [sum(5 * (k * c * c + 2 * c) for c in (16, 32, 64)) for k in (9, 1)]
        assert parameters == 73_306 + sum(n * a for n, a in zip(convolutions, added, strict=True)) == 1_073_466


@pytest.mark.parametrize(
    ("classes", "size", "published"),
    [
        (100, 32, {"none": (79_156, 7.7889e6), "nor_conv_3x3": (1_537_396, 220.12554e6)}),
        (120, 16, {"none": (80_456, 1.9534e6), "nor_conv_3x3": (1_538_696, 55.03756e6)}),
    ],
)
def test_published_sizes_for_the_other_data_sets(
    classes: int, size: int, published: dict[str, tuple[int, float]]
) -> None:
    with torch.device("meta"):
        space = NASBench201Space(classes)
        for operation, (parameters, macs) in published.items():
            model = space.freeze(NASBench201Space.from_string(EVERY.format(operation)))
            assert costs(model, size) == (parameters, macs - classes)


def test_pooling_and_skips_have_no_parameters(small: NASBench201Space) -> None:
    counts = {
        name: sum(p.numel() for p in small.freeze(NASBench201Space.from_string(EVERY.format(name))).parameters())
        for name in OPERATIONS
    }
    assert counts["none"] == counts["skip_connect"] == counts["avg_pool_3x3"] < counts["nor_conv_1x1"]


def test_a_member_without_connections_gives_one_answer(small: NASBench201Space) -> None:
    # The reduction and the classifier see zeros, whatever the image.
    member = small.freeze(NASBench201Space.from_string(EVERY.format("none"))).eval()
    scores = member(torch.randn(3, 3, 32, 32))
    assert scores.shape == (3, 10)
    torch.testing.assert_close(scores, scores[:1].expand(3, 10))


def test_the_average_ignores_the_border(small: NASBench201Space) -> None:
    ones = torch.ones(1, 2, 4, 4)
    torch.testing.assert_close(OPERATIONS["avg_pool_3x3"](2, 2)(ones), ones)


def test_supernet_and_member_compute_the_same() -> None:
    space = NASBench201Space(channels=4, cells=1).eval()
    relaxation = OneHot(space.simplify().values())
    make_supernet(space, relaxation)
    x = torch.randn(2, 3, 16, 16)
    for seed in range(3):
        sample = space.random(random_state=seed)
        relaxation.resample(sample)
        with torch.no_grad():
            torch.testing.assert_close(space(x), space.freeze(sample).eval()(x))


def test_profiled_costs_are_those_of_fvcore_and_pytorch(small: NASBench201Space) -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    x = torch.zeros(1, 3, 32, 32)
    flops, parameters = FlopsProfiler(small, x), NumParamsProfiler(small, x)
    for seed in range(3):
        sample = small.random(random_state=seed)
        member = small.freeze(sample).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            counted = fvcore.FlopCountAnalysis(member, x).unsupported_ops_warnings(False).total()
        assert flops.profile(sample) == counted, sample
        assert parameters.profile(sample) == sum(p.numel() for p in member.parameters()), sample
