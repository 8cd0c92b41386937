"""digits-NB: the space, the recipe, the table, and what is claimed from it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from hwnas.evaluators import digits
from hwnas.export import export_onnx
from hwnas.profilers import RangeProfilerFilter

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "digits_nb"
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The modules of the benchmark, which are no package; afterwards their names are free again."""
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    kept = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            del sys.modules[name]
        sys.modules.update(kept)


@pytest.fixture(scope="module")
def truth(bench: SimpleNamespace) -> Any:
    return bench.ground_truth.GroundTruth.load()


# -- the space ------------------------------------------------------------------------------------------------


def test_the_space_has_768_members(bench: SimpleNamespace) -> None:
    space, listed = bench.space.DigitsBench(), bench.space.members()
    names = [bench.space.name_of(sample) for sample in listed]
    assert space.size() == len(set(names)) == 768
    assert {bench.space.name_of(sample) for sample in space.grid()} == set(names)
    assert [bench.space.sample_of(name) for name in names] == listed


def test_every_operator_and_width_gives_scores(bench: SimpleNamespace) -> None:
    space, images = bench.space.DigitsBench(), torch.randn(2, 1, 8, 8)
    for operator in bench.space.OPERATORS:
        for width in bench.space.WIDTHS:
            member = space.freeze({**dict.fromkeys(bench.space.SLOTS, operator), "width": width})
            assert member(images).shape == (2, 10)


# -- the recipe -----------------------------------------------------------------------------------------------


def test_training_is_the_recipe_in_plain_pytorch(bench: SimpleNamespace) -> None:
    """Side by side each seed reaches what it reaches alone, with PyTorch's optimiser and schedule."""
    training, recipe = bench.training, bench.training.Recipe(epochs=2)
    space, sample, seeds = bench.space.DigitsBench(), bench.space.sample_of("conv3-separable3-conv1-skip-2"), (0, 5)
    images, targets = (tensor[:100] for tensor in digits().train.tensors)
    images = images.double()
    joined = training.side_by_side([training.initialised(space, sample, seed).double() for seed in seeds]).double()
    training.fit(joined, images, targets, seeds, recipe)
    joined.eval()
    for group, seed in enumerate(seeds):
        model = training.initialised(space, sample, seed).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2 * 2)
        order = torch.Generator().manual_seed(seed)
        for _ in range(2):
            rows = torch.randperm(100, generator=order)
            for batch in (rows[:64], rows[64:]):
                optimizer.zero_grad()
                F.cross_entropy(model(images[batch]), targets[batch]).backward()
                optimizer.step()
                schedule.step()
        model.eval()
        scores = joined(images.expand(-1, len(seeds), -1, -1))
        torch.testing.assert_close(scores[group], model(images), rtol=1e-6, atol=1e-6)


def test_a_training_depends_on_its_seed_alone(bench: SimpleNamespace) -> None:
    training, recipe = bench.training, bench.training.Recipe(epochs=1)
    sample, data = bench.space.sample_of("conv3-skip-separable3-conv1-4"), digits()

    def trained(seed: int) -> bytes:
        space = bench.space.DigitsBench()  # with other weights each time
        model = training.side_by_side([training.initialised(space, sample, seed)])
        training.fit(model, *data.train.tensors, (seed,), recipe)
        return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())

    def first(seed: int) -> torch.Tensor:
        return next(training.initialised(bench.space.DigitsBench(), sample, seed).parameters())

    assert trained(3) == trained(3)
    assert trained(3) != trained(4)
    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


def test_members_are_counted_on_their_own_part(bench: SimpleNamespace) -> None:
    training = bench.training
    space, sample, data = bench.space.DigitsBench(), bench.space.sample_of("skip-skip-conv1-skip-2"), digits()
    found = training.train_member(space, sample, (0, 1), data, training.Recipe(epochs=1))
    model = training.side_by_side([training.initialised(space, sample, seed) for seed in (0, 1)])
    training.fit(model, *data.train.tensors, (0, 1), training.Recipe(epochs=1))
    model.eval()
    for part, counts in ((data.val, found.val_correct), (data.test, found.test_correct)):
        images, targets = part.tensors
        with torch.no_grad():
            scores = model(images.expand(-1, 2, -1, -1))
        assert counts == [int((each.argmax(1) == targets).sum()) for each in scores]
    assert found.seconds > 0


# -- latency --------------------------------------------------------------------------------------------------


def test_a_member_composed_of_parts_is_the_member(bench: SimpleNamespace, tmp_path: Path) -> None:
    sample = bench.space.sample_of("conv3-separable3-skip-conv1-2")
    composed = bench.latency.compose(bench.latency.export_parts([sample]), sample)
    images = torch.zeros(bench.latency.BATCH_SIZE, 1, 8, 8)
    whole = onnx.load(export_onnx(bench.space.DigitsBench().freeze(sample), images, tmp_path / "whole.onnx"))

    def operators(model: onnx.ModelProto) -> list[str]:
        return [node.op_type for node in model.graph.node]

    assert operators(onnx.load_from_string(composed)) == operators(whole)
    medians, _ = bench.latency.measure_all([composed], repeats=2)
    assert medians.shape == (1, 2)
    assert (medians > 0).all()


# -- files ----------------------------------------------------------------------------------------------------


def test_a_journal_survives_a_kill_and_refuses_other_settings(bench: SimpleNamespace, tmp_path: Path) -> None:
    journal_type = bench.journal.Journal
    path = tmp_path / "folder" / "journal.jsonl"
    journal_type(path, {"epochs": 1}).add({"name": "a"})
    with path.open("a") as file:
        file.write('{"name": "b", "val')
    again = journal_type(path, {"epochs": 1})
    again.add({"name": "c"})
    assert list(again) == list(journal_type(path, {"epochs": 1})) == [{"name": "a"}, {"name": "c"}]
    with pytest.raises(ValueError, match="move it away"):
        journal_type(path, {"epochs": 2})


def made_up_table(bench: SimpleNamespace, folder: Path) -> Path:
    """A table with figures from which every entry can be told."""
    trained = {
        bench.space.name_of(sample): {
            "val_correct": [row % 500, 1, 2],
            "test_correct": [row % 400, 3, 4],
            "seconds": 2.0,
        }
        for row, sample in enumerate(bench.space.members())
    }
    latency = bench.journal.Journal(folder / "latency.jsonl", {})
    microseconds = [[1000.0 + row, 5000.0, 0.5] for row in range(768)]
    latency.add({"latency_us": microseconds, "single_training": 0.5, "clock": "thread_time"})
    path = folder / "table.json"
    bench.table.write_table(path, trained, latency, bench.training.Recipe())
    return path


def test_a_table_is_read_as_it_was_written(bench: SimpleNamespace, tmp_path: Path) -> None:
    truth = bench.ground_truth.GroundTruth.load(made_up_table(bench, tmp_path))
    rows = np.arange(768)
    np.testing.assert_allclose(truth.val[:, 0], rows % 500 / 539)
    np.testing.assert_allclose(truth.test[:, 0], rows % 400 / 540)
    np.testing.assert_allclose(truth.latency, 1 + rows / 1e3)
    np.testing.assert_allclose(truth.seconds, 1.0)
    assert truth.budgets() == pytest.approx({"25%": 1.19175, "50%": 1.3835, "75%": 1.57525})


def test_a_table_of_another_space_is_refused(bench: SimpleNamespace, tmp_path: Path) -> None:
    path = made_up_table(bench, tmp_path)
    record = json.loads(path.read_text())
    del record["members"]["conv3-conv3-conv3-conv3-2"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="767 members"):
        bench.ground_truth.GroundTruth.load(path)


def test_random_search_trains_as_many_members_as_begin_in_time(bench: SimpleNamespace, tmp_path: Path) -> None:
    truth = bench.ground_truth.GroundTruth.load(made_up_table(bench, tmp_path))  # one second for each training
    regret = bench.search.Regret(truth, truth.budgets()["25%"])
    assert len(regret.feasible) == 192
    assert [regret.random_search(seconds, np.random.default_rng(0))[0] for seconds in (0.1, 1.0, 1.1, 1e9)] == [
        1,
        1,
        2,
        192,
    ]
    assert regret.of[regret.feasible].min() == 0.0


# -- what is recorded -----------------------------------------------------------------------------------------


def test_the_cost_model_is_the_table(bench: SimpleNamespace, truth: Any) -> None:
    profiler = truth.profiler()
    assert profiler.name == "latency_ms"
    costs = profiler.cost_model.evaluate(bench.space.members())
    np.testing.assert_array_equal(costs, np.median(truth.latency_ms, axis=1))
    assert [truth.row(sample) for sample in bench.space.members()] == list(range(768))
    for budget in truth.budgets().values():
        within = RangeProfilerFilter(profiler, max=budget)
        accepted = [within(sample) for sample in bench.space.members()]
        assert accepted == list(truth.latency <= budget)


def test_the_table_is_a_real_trade_off(truth: Any) -> None:
    found = truth.summary()
    assert truth.val.shape == truth.test.shape == (768, 3)
    assert found["mean_test_accuracy_range"][0] < 0.5
    assert found["mean_test_accuracy_range"][1] > 0.95
    assert min(found["tau_val_between_seeds"]) > 0.6
    assert 0.1 < found["tau_mean_test_latency"] < 0.7
    assert found["tau_latency_between_halves"] > 0.8


def test_recorded_searches_follow_from_the_table(bench: SimpleNamespace, truth: Any) -> None:
    record = json.loads((RESULTS / "digits_nb_search.json").read_text())
    assert record["references"] == bench.search.references(truth)
    assert record["settings"]["budgets_ms"] == truth.budgets()
    assert record["settings"]["strategies"] == bench.search.SETTINGS
    assert {row["strategy"] for row in record["strategies"]} == set(bench.search.SETTINGS)
    for row in record["strategies"]:
        assert row["searches"] == row["within_budget"] == len(row["members"]) >= 1
        regret = bench.search.Regret(truth, truth.budgets()[row["budget"]])
        chosen = [truth.row(bench.space.sample_of(name)) for name in row["members"]]
        assert bench.search.spread(regret.of[chosen]) == row["regret"]


def test_statistics_of_their_own_rank_members_better(truth: Any) -> None:
    supernets = json.loads((RESULTS / "digits_nb_ranking.json").read_text())["supernets"]
    assert len(supernets) >= 3
    for row in supernets:
        assert row["own_statistics"]["tau_test"] >= row["shared_statistics"]["tau_test"] + 0.1
    assert np.median([row["own_statistics"]["tau_test"] for row in supernets]) >= 0.5
