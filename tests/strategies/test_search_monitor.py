"""What a monitor sees against brute force; searches that collapse and searches that do not; logs and progress bars."""

from __future__ import annotations

import csv
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import hwnas.nn as nn
from hwnas.cost import CostModel, Factor
from hwnas.evaluators import Lightning, LightningModule, seeded_loader
from hwnas.profilers.filters import RangeProfilerFilter
from hwnas.profilers.profiler import Profiler
from hwnas.space import Sample
from hwnas.strategies import DARTS, ENAS, GumbelDARTS, Proxyless, RandomOneShot, SearchMonitor
from hwnas.strategies.search_reading import DRAWS, read_search, skip_candidates

LABELS = [f"layer{i}" for i in range(4)]


class Chain(nn.ModelSpace):
    """Four times a convolution, or nothing, or a blur."""

    def __init__(self, other: nn.Module | None = None) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))  # so that every member has something to train
        other = other or nn.Identity()
        self.layers = nn.Sequential(
            *(nn.LayerChoice({"conv": nn.Conv2d(2, 2, 3, padding=1), "skip": other}, label=x) for x in LABELS)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * self.gain


class Reproduce(LightningModule):
    """Learns to give back the input: nothing is better than a skip connection, and a blur cannot do it."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        return F.mse_loss(self.model(x), x)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("default", -self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.05)


def evaluator(**options: Any) -> Lightning:
    """2 batches of 4 to train, 2 to validate."""

    def loader(seed: int) -> Any:
        x = torch.randn(8, 2, 4, 6, generator=torch.Generator().manual_seed(seed))
        return seeded_loader(TensorDataset(x), 4, shuffle=True, seed=seed)

    arguments = {"max_epochs": 4, "accelerator": "cpu", "log_every_n_steps": 1, **options}
    return Lightning(Reproduce(), train_dataloaders=loader(0), val_dataloaders=loader(1), **arguments)


class EachEpoch(L.Callback):
    """Notes the architecture before the monitor may change it."""

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy
        self.states: list[dict[str, Tensor]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parameters = self.strategy.architecture.named_parameters()
        self.states.append({name: parameter.detach().clone() for name, parameter in parameters})


class Rows(CSVLogger):
    """Keeps what it is given, by epoch."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if any(name.startswith(("arch/skip", "arch/expected")) for name in metrics) and "arch/loss" not in metrics:
            self.rows.append(dict(metrics))
        super().log_metrics(metrics, step)


@pytest.mark.parametrize("kind", [DARTS, GumbelDARTS])
def test_a_search_that_collapses_says_so(kind, tmp_path):
    torch.manual_seed(0)
    monitor, logger = SearchMonitor(), Rows(tmp_path)
    strategy = kind(0.2, warmup_epochs=1)
    with pytest.warns(UserWarning, match="the search collapses: after . epochs . of 4 layer choices") as caught:
        strategy.run(Chain(), evaluator(logger=logger, max_epochs=6), callbacks=[monitor])
    assert len([w for w in caught if "collapses" in str(w.message)]) == 1
    assert logger.rows[-1]["arch/skips"] >= 3
    assert len(logger.rows) == 6
    masses = [row["arch/skip_probability"] for row in logger.rows]
    assert masses[0] == pytest.approx(0.5, abs=1e-2)  # the warm-up
    assert masses[-1] > 0.6
    assert 1 < monitor.collapsed_after <= 6
    assert monitor.healthy_after == monitor.collapsed_after - 1
    exported = [strategy.relaxation.export(label) for label in LABELS]
    assert exported.count("skip") == logger.rows[-1]["arch/skips"]


def test_a_search_that_finds_convolutions_does_not():
    torch.manual_seed(0)
    strategy, monitor = DARTS(0.2), SearchMonitor()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strategy.run(Chain(nn.AvgPool2d(3, 1, 1)), evaluator(max_epochs=6), callbacks=[monitor])
    assert monitor.collapsed_after is None
    assert monitor.healthy_after == 6
    assert monitor.reading.skip_share < 0.5


def test_the_usual_monitor_warns():
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="would go back to the last epoch without a collapse"):
        DARTS(0.2).run(Chain(), evaluator())


def test_stopping_keeps_the_last_healthy_architecture():
    torch.manual_seed(0)
    strategy = DARTS(0.1)
    space = Chain()
    strategy.mutate_model(space)
    notes = EachEpoch(strategy)
    monitor = SearchMonitor(stop_on_collapse=True)
    with pytest.warns(UserWarning, match="Training stops"):
        strategy.run(space, evaluator(max_epochs=20), callbacks=[monitor, notes])
    assert len(notes.states) == monitor.collapsed_after < 20
    assert monitor.healthy_after == monitor.collapsed_after - 1 >= 1
    healthy = notes.states[monitor.healthy_after - 1]
    for name, parameter in strategy.architecture.named_parameters():
        assert torch.equal(parameter, healthy[name])
        assert not torch.equal(parameter, notes.states[-1][name])
    assert strategy.best_sample() == {label: strategy.relaxation.export(label) for label in LABELS}


def test_a_collapse_in_the_first_epoch_goes_back_to_the_beginning(kit):
    torch.manual_seed(0)
    strategy, space = DARTS(2.0), Chain()
    strategy.mutate_model(space)
    before = kit.snapshot(strategy.relaxation)
    with pytest.warns(UserWarning, match="after 1 epoch . of 4 .* without a collapse, 0 epochs"):
        strategy.run(space, evaluator(max_epochs=3), callbacks=[SearchMonitor(stop_on_collapse=True)])
    assert kit.equal(before, kit.snapshot(strategy.relaxation))


WRITTEN: dict[str, dict[str, Any]] = {
    "epoch": {"save_on_train_epoch_end": True},
    "validation": {"save_on_train_epoch_end": False},
    "batch": {"every_n_train_steps": 2},
}


@pytest.mark.parametrize(("stop", "when"), [(False, "epoch"), (True, "epoch"), (True, "validation"), (True, "batch")])
def test_a_resumed_run_equals_the_whole_run(kit, tmp_path, stop, when):
    """Checkpoints are written at the end of an epoch, when the monitor has looked, or shortly before."""

    def run(name: str, ckpt_path: Any = None) -> tuple[Any, Any, list[dict[str, float]]]:
        torch.manual_seed(0 if ckpt_path is None else 9)
        strategy, monitor = DARTS(0.1), SearchMonitor(stop_on_collapse=stop)
        logger = Rows(tmp_path / f"logs_{name}")
        checkpoint = ModelCheckpoint(tmp_path / "checkpoints", save_top_k=-1, **WRITTEN[when])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the search collapses")  # of which the checkpoint may know
            strategy.run(
                Chain(), evaluator(max_epochs=6, logger=logger), callbacks=[monitor, checkpoint], ckpt_path=ckpt_path
            )
        return monitor, kit.snapshot(strategy.relaxation), logger.rows

    whole, state, rows = run("whole")
    collapsed = whole.collapsed_after
    for epoch in (0, collapsed - 1):
        path = tmp_path / "checkpoints" / f"epoch={epoch}-step={2 * epoch + 2}.ckpt"
        resumed, again, rest = run(f"resumed{epoch}", path)
        assert kit.equal(state, again)
        mine, theirs = resumed.state_dict(), whole.state_dict()
        assert kit.equal(mine.pop("healthy"), theirs.pop("healthy"))
        assert mine == theirs
        assert rest == rows[len(rows) - len(rest) :]
        assert len(rest) == len(rows) - epoch - (when == "epoch")
    saved = torch.load(path, weights_only=True)["callbacks"]["hwnas.SearchMonitor"]
    assert set(saved["at_first"]) == set(LABELS)


def test_costs_above_their_target_ask_for_cheap_candidates():
    def run(baseline: float) -> SearchMonitor:
        torch.manual_seed(0)
        factors = [Factor((label,), np.array([1.0, 0.0])) for label in LABELS]
        domain = {label: ["conv", "skip"] for label in LABELS}
        profiler = Profiler(CostModel(domain, factors, constant=10.0, unit="MACs"))
        monitor = SearchMonitor()
        DARTS(0.2, penalty={"profiler": profiler, "baseline": baseline, "scale": 1e-3}).run(
            Chain(), evaluator(max_epochs=4), callbacks=[monitor]
        )
        return monitor

    assert run(baseline=10.0).collapsed_after is None
    with pytest.warns(UserWarning, match="collapses"):
        run(baseline=20.0)


def test_a_threshold_of_one_and_few_choices():
    torch.manual_seed(0)
    DARTS(0.2).run(Chain(), evaluator(), callbacks=[SearchMonitor(threshold=1.0)])
    DARTS(0.2).run(Chain(), evaluator(), callbacks=[SearchMonitor(rise=1.0)])
    space = Chain()
    del space.layers[2:]
    DARTS(0.2).run(space, evaluator())


def test_an_enas_goes_back_too():
    """Its controller is the architecture."""
    strategy = ENAS(batches_per_update=2, updates_per_epoch=1, hidden=8)
    before = []

    class Push(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            before.append([parameter.detach().clone() for parameter in strategy.controller.parameters()])
            if trainer.current_epoch == 1:
                for head in strategy.controller.heads:
                    torch.nn.init.constant_(head.bias[1:], 5.0)

    with pytest.warns(UserWarning, match="after 3 epochs 4 of 4"):
        strategy.run(Chain(), evaluator(max_epochs=5), callbacks=[SearchMonitor(stop_on_collapse=True), Push()])
    assert len(before) == 3
    assert all(map(torch.equal, strategy.controller.parameters(), before[1]))


class Varied(nn.ModelSpace):
    """A depth, a nested choice, a width, a choice of pooling alone."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([2, 4], label="width")
        self.stem = nn.Conv2d(1, width, 1)

        def block(index: int) -> nn.Module:
            inner = nn.LayerChoice([nn.Conv2d(width, width, 1), nn.Identity(), nn.MaxPool2d(3, 1, 1)], label="inner")
            candidates = {
                "conv": nn.Conv2d(width, width, 1),
                "norm": nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.BatchNorm2d(width)),
                "inner": inner,
                "skip": nn.Identity(),
            }
            return nn.LayerChoice(candidates, label=f"block{index}")

        self.blocks = nn.Repeat(block, (1, 2), label="depth")
        self.pool = nn.LayerChoice([nn.MaxPool2d(3, 1, 1), nn.Identity()], label="pool")
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))).mean((2, 3)))


FREE = {"block0": ["norm", "skip"], "block1": ["norm", "skip"], "inner": [1, 2]}


@pytest.mark.parametrize("normalised", [False, True])
def test_which_candidates_have_no_parameters(normalised):
    space, strategy = Varied(), DARTS(normalise_candidates=normalised)
    strategy.mutate_model(space)
    assert skip_candidates(space) == FREE


@pytest.mark.parametrize("factory", [False, True])
def test_which_candidates_of_a_cell_have_no_parameters(factory):
    def conv(node: int, op: int, source: int) -> torch.nn.Module:
        return torch.nn.Conv2d(1, 1, 1)

    def skip(node: int, op: int, source: int) -> torch.nn.Module:
        return torch.nn.Identity()

    def reduced(node: int, op: int, source: int) -> torch.nn.Module:
        return torch.nn.Identity() if source else torch.nn.Conv2d(1, 1, 1)

    class Cells(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            made = {"conv": conv, "skip": skip, "reduced": reduced}
            named = made if factory else {name: make(0, 0, 0) for name, make in made.items()}
            self.cell = nn.Cell(named, num_nodes=1, num_predecessors=2, label="cell")

    space = Cells()
    DARTS().mutate_model(space)
    assert skip_candidates(space) == {"cell/op_2_0": ["skip"]}


def test_a_label_of_several_choices_has_parameters_where_one_has():
    class Twice(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.LayerChoice([nn.Conv2d(1, 1, 1), nn.Identity()], label="layer")
            self.second = nn.LayerChoice([nn.Identity(), nn.Identity()], label="layer")

    space = Twice()
    DARTS().mutate_model(space)
    assert skip_candidates(space) == {"layer": [1]}


def test_readings_by_brute_force():
    space = Varied()
    strategy = DARTS()
    strategy.mutate_model(space)
    generator = torch.Generator().manual_seed(3)
    seen = Counter()
    for _ in range(20):
        alphas = {}
        for label in strategy.relaxation.dimensions:
            alpha = strategy.relaxation.alpha(label)
            with torch.no_grad():
                alpha.copy_(torch.randn(alpha.shape, generator=generator))
            alphas[str(label)] = alpha.detach().double().numpy()
        reading = read_search(strategy, skip_candidates(space))
        values = {str(label): list(d.grid_values()) for label, d in strategy.relaxation.dimensions.items()}
        p = {label: np.exp(a) / np.exp(a).sum() for label, a in alphas.items()}
        best = {label: values[label][int(a.argmax())] for label, a in alphas.items()}
        blocks = ["block0", "block1"][: best["depth"]]
        active = blocks + (["inner"] if "inner" in [best[block] for block in blocks] else [])
        assert sorted(reading.choices) == sorted(active)
        skips = [label for label in active if best[label] in FREE[label]]
        assert sorted(reading.skips) == sorted(skips)
        assert reading.skip_share == pytest.approx(len(skips) / len(active))
        for label, names in FREE.items():
            mass = sum(p[label][values[label].index(name)] for name in names)
            assert reading.skip_probabilities[label] == pytest.approx(mass, rel=1e-5)
        entropies = {label: -float((q * np.log(q)).sum()) for label, q in p.items()}
        assert reading.entropies == pytest.approx(entropies, rel=1e-5)
        assert reading.entropy == pytest.approx(np.mean(list(entropies.values())), rel=1e-5)
        record = reading.record(strategy.relaxation.dimensions)
        assert record["arch/block0/norm"] == pytest.approx(p["block0"][1], rel=1e-5)
        assert record["arch/entropy/width"] == pytest.approx(entropies["width"], rel=1e-5)
        assert record["arch/entropy"] == pytest.approx(reading.entropy)
        seen[len(skips)] += 1
    assert len(seen) == 3


def test_an_enas_is_read_by_its_draws(kit):
    space = kit.Net()
    space.first.choice.weights = None
    strategy = ENAS(penalty={"profiler": kit.profiler(), "baseline": 5.0, "scale": -0.1}, hidden=4)
    strategy.mutate_model(space)
    with torch.no_grad():
        strategy.controller.heads[0].bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    state = torch.random.get_rng_state()
    reading = read_search(strategy, skip_candidates(space))
    assert torch.equal(state, torch.random.get_rng_state())
    exact = torch.softmax(torch.tensor([0.0, 1.0, 2.0]).double(), 0)
    deviation = (exact * (1 - exact) / DRAWS).sqrt()
    assert ((reading.probabilities["layer_1"] - exact).abs() < 4 * deviation).all()
    assert reading.skips[0] == "layer_1"
    drawn = strategy.draws(DRAWS)
    assert reading.costs["arch/expected_cost"] == pytest.approx(np.mean([kit.profiler().profile(s) for s in drawn]))
    assert torch.equal(read_search(strategy, {}).probabilities["layer_2"], reading.probabilities["layer_2"])


def test_proxyless_is_read_by_its_probabilities(kit):
    strategy = Proxyless()
    strategy.mutate_model(kit.Net())
    reading = read_search(strategy, skip_candidates(strategy.supernet))
    expected = torch.softmax(strategy.relaxation.alpha("layer_1"), 0)
    torch.testing.assert_close(reading.probabilities["layer_1"].float(), expected.detach())


def test_of_a_random_search_the_cost_is_read(kit, tmp_path):
    def cost(sample: Sample) -> float:
        return kit.profiler().profile(sample)

    logger = Rows(tmp_path)
    strategy = RandomOneShot(RangeProfilerFilter(kit.profiler(), max=12.0))
    strategy.run(kit.Net(), kit.evaluator(logger=logger, max_epochs=2))
    expected = np.mean([cost(sample) for sample in strategy.draws(DRAWS)])
    assert logger.rows == [{"arch/expected_cost": pytest.approx(expected)}] * 2
    within = [s for s in strategy.supernet.grid() if cost(s) <= 12]
    assert expected == pytest.approx(np.mean([cost(s) for s in within]), rel=0.2)


def test_csv_logs(kit, tmp_path):
    logger = CSVLogger(tmp_path)
    penalty = {"profiler": kit.profiler(), "baseline": 5.0, "scale": -0.1}
    ENAS(batches_per_update=2, updates_per_epoch=1, penalty=penalty, hidden=4).run(
        kit.Net(), kit.evaluator(logger=logger, max_epochs=2)
    )
    rows = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines()))
    ours = [row for row in rows if row["arch/entropy"]]
    assert [int(row["step"]) for row in ours] == [6, 12]
    for row in ours:
        p = [float(row[f"arch/layer_1/{value}"]) for value in kit.costs]
        assert sum(p) == pytest.approx(1)
        assert float(row["arch/entropy/layer_1"]) == pytest.approx(-sum(q * math.log(q) for q in p if q))
        assert float(row["arch/skips"]) in (0, 1, 2)
        assert 1 <= float(row["arch/expected_cost"]) <= 19


def test_tensorboard_logs(kit, tmp_path):
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger

    DARTS().run(kit.Net(), kit.evaluator(logger=TensorBoardLogger(tmp_path)))
    assert list(tmp_path.rglob("events.out.tfevents*"))


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_the_progress_bar_shows_entropy_and_cost(kit, bar, capsys):
    shown: list[dict[str, Any]] = []

    class Capture(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            shown.append(dict(trainer.progress_bar_metrics))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            shown.append(dict(trainer.progress_bar_metrics))

    strategy = DARTS(0.1, penalty={"profiler": kit.profiler(), "baseline": 5.0})
    options = {"enable_progress_bar": True, "callbacks": [bar()], "max_epochs": 2}
    strategy.run(kit.Net(), kit.evaluator(**options), callbacks=[Capture()])
    assert all({"arch/entropy", "arch/expected_cost"} <= set(metrics) for metrics in shown)
    reading = read_search(strategy, {})
    assert shown[-1]["arch/entropy"] == pytest.approx(reading.entropy, rel=1e-5)
    assert shown[-1]["arch/expected_cost"] == pytest.approx(reading.costs["arch/expected_cost"], rel=1e-5)
    assert shown[0]["arch/expected_cost"] != shown[-1]["arch/expected_cost"]
    assert "entropy" in capsys.readouterr().out


def test_without_a_progress_bar_nothing_is_logged_through_the_module(kit):
    trainers: list[L.Trainer] = []

    class Keep(L.Callback):
        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            trainers.append(trainer)

    DARTS().run(kit.Net(), kit.evaluator(), callbacks=[Keep()])
    assert not any(name.startswith("arch/") for name in trainers[0].callback_metrics)


@pytest.mark.parametrize("arguments", [{"threshold": 1.5}, {"rise": -0.1}, {"threshold": math.nan}])
def test_bad_arguments(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        SearchMonitor(**arguments)


def test_a_monitor_without_a_strategy(kit):
    with pytest.raises(RuntimeError, match="watches no strategy"):
        kit.evaluator(callbacks=[SearchMonitor()]).fit(kit.Net())
