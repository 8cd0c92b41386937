"""Costs of all 15,625 members of NAS-Bench-201 at once, and a cost model fitted to measured latencies."""

from __future__ import annotations

import csv
import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

from hwnas.cost import CostModel, Factor
from hwnas.hub import NASBench201Space
from hwnas.hub.nas_bench_201 import OPERATIONS
from hwnas.profilers import FlopsProfiler, NumParamsProfiler

TABLE = Path(__file__).parents[2].parent / "shared" / "data" / "nas_bench_201.csv.gz"


@pytest.fixture(scope="module")
def samples() -> list[dict[str, str]]:
    texts = ("|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|".format(*names) for names in itertools.product(OPERATIONS, repeat=6))
    return [NASBench201Space.from_string(text) for text in texts]


def test_all_members_in_one_call_equal_a_loop_over_frozen_models(samples: list[dict[str, str]]) -> None:
    space = NASBench201Space(channels=4, cells=1).eval()
    x = torch.zeros(1, 3, 16, 16)
    macs, parameters = FlopsProfiler(space, x).cost_model, NumParamsProfiler(space, x).cost_model
    all_macs, all_parameters = macs.evaluate(samples), parameters.evaluate(samples)
    assert len(all_macs) == len(all_parameters) == 15_625
    assert all_macs.tolist() == [macs.evaluate(sample) for sample in samples]
    chosen = np.random.default_rng(0).choice(15_625, 60, replace=False)
    for number, i in enumerate(chosen.tolist()):
        member = space.freeze(samples[i]).eval()
        assert sum(p.numel() for p in member.parameters()) == all_parameters[i]
        if number % 4:
            continue
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            member.to("meta")(x.to("meta"))
        # PyTorch counts convolutions and products alone, two for each multiply-add.
        rest = all_macs[i] - counter.get_total_flops() / 2
        norms = [m for m in member.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert 0 <= rest < 2 * 16 * 16 * 16 * (len(norms) + 2)
    # What a member adds to the smallest one is the sum of what its operations add.
    base = all_parameters.min()
    convolutions = [sum(name == "nor_conv_3x3" for name in sample.values()) for sample in samples]
    points = [sum(name == "nor_conv_1x1" for name in sample.values()) for sample in samples]
    per = [sum(k * c * c + 2 * c for c in (4, 8, 16)) for k in (9, 1)]
    assert (all_parameters - base).tolist() == [
        a * per[0] + b * per[1] for a, b in zip(convolutions, points, strict=True)
    ]


@pytest.mark.skipif(not TABLE.is_file(), reason="the table of the benchmark is not here")
def test_a_cost_model_fitted_to_measured_latencies_ranks_them() -> None:
    with gzip.open(TABLE, "rt") as file:
        rows = list(csv.DictReader(file))
    members = [NASBench201Space.from_string(row["arch"]) for row in rows]
    latency = np.array([float(row["lat_gold_6226"]) for row in rows])
    domain = {label: list(OPERATIONS) for label in members[0]}
    indices = CostModel(domain, []).indices(members)
    one_hot = (indices[:, :, None] == np.arange(len(OPERATIONS))).reshape(len(rows), -1).astype(float)
    fitted = np.linalg.lstsq(np.column_stack([one_hot, np.ones(len(rows))]), latency, rcond=None)[0]
    tables = fitted[:-1].reshape(len(domain), -1)
    factors = [Factor((label,), table) for label, table in zip(domain, tables, strict=True)]
    model = CostModel(domain, factors, constant=float(fitted[-1]), unit="ms")
    predicted = model.evaluate(members)
    np.testing.assert_allclose(predicted, one_hot @ fitted[:-1] + fitted[-1], atol=1e-9)
    assert stats.spearmanr(predicted, latency).statistic == pytest.approx(0.989, abs=0.001)
