"""A search from start to end, on a machine whose latencies are known: six members, one microsecond for each weight."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from typer.testing import CliRunner, Result

from hwnas.cli import app
from hwnas.cost import CostModel, Factor
from hwnas.errors import BudgetError, HwnasError, StoreError, TrainingError, VerificationError
from hwnas.experiment import (
    STRATEGIES,
    ModelRow,
    RunFolderError,
    SearchResult,
    SearchSettings,
    Silent,
    Task,
    load_task,
    run_search,
)
from hwnas.experiment import search as search_module
from hwnas.experiment.run_folder import RunFolder
from hwnas.export import export_onnx, load_bundle, verify_onnx
from hwnas.profilers import OrtTarget, Profiler, Workload, describe_device, prepare_folder
from hwnas.space import sample_from_json

# Copies of a run lie elsewhere, and Lightning says so.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")

BUDGET = 0.25  # all but the largest member, which takes 0.738 ms
WEIGHTS = {  # stem, block and head
    (width, block): 9 * width + inside + 10 * width
    for width in (4, 8)
    for block, inside in (("conv3", 9 * width**2), ("conv1", width**2), ("skip", 0))
}
EPOCHS = 3


def settings(**changes: Any) -> SearchSettings:
    given = {"batch_size": 4, "supernet_epochs": EPOCHS, "train_epochs": 1, "evaluations": 20, "profile_s": 2.0}
    return SearchSettings(**{"max_latency_ms": BUDGET, **given, **changes})


def latency_of(sample: dict[str, Any]) -> float:
    return 0.01 + 1e-3 * WEIGHTS[sample["width"], sample["block"]]


Finished = dict[str, tuple[Path, SearchResult]]


@pytest.fixture(scope="session")
def finished(tiny: Task, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished search for each strategy."""
    runs = {}
    for strategy in STRATEGIES:
        folder = tmp_path_factory.mktemp("runs") / strategy
        runs[strategy] = folder, run_search(tiny, settings(strategy=strategy), folder, store=store)
    return runs


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Callable[..., Path]:
    """Copy a finished run without what its last stages left."""

    def without(*names: str, strategy: str = "random-oneshot") -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(finished[strategy][0], folder)
        for path in (found for name in names for found in folder.glob(name)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return folder

    return without


@pytest.fixture
def command(store: Path, spaces: Path, tmp_path: Path) -> Callable[..., Result]:
    """Run `hwnas search` in this process."""

    def run(*words: object, space: str = "Tiny", **options: object) -> Result:
        given = {
            "max_latency_ms": BUDGET, "batch_size": 4, "epochs": EPOCHS, "train_epochs": 1, "evaluations": 20,
            "profile_seconds": 2.0, "store": store, "out": tmp_path / "run", **options,
        }  # fmt: skip
        arguments = [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        return CliRunner().invoke(
            app, ["search", f"{spaces}:{space}", *arguments, *map(str, words)], catch_exceptions=False
        )

    return run


# -- what a search leaves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_rows_are_four_members_trained_alike(finished: Finished, strategy: str) -> None:
    _, result = finished[strategy]
    assert [row.name for row in result.rows] == ["chosen", "random", "fastest", "largest"]
    rows = {row.name: row for row in result.rows}
    assert rows["fastest"].sample == {"width": 4, "block": "skip"}
    assert rows["largest"].sample == {"width": 8, "block": "conv3"}
    for row in result.rows:
        assert row.measured_ms == pytest.approx(latency_of(row.sample), rel=1e-6)
        assert row.predicted_ms == pytest.approx(latency_of(row.sample), rel=0.2)
        assert 0 <= row.val_accuracy <= 1
        assert 0 <= row.test_accuracy <= 1
        width = row.sample["width"]
        assert row.parameters == WEIGHTS[width, row.sample["block"]] + 2 * width + 10
        convolutions = WEIGHTS[width, row.sample["block"]] - 10 * width
        assert row.macs >= 4 * (64 * convolutions + 10 * width)
    assert rows["random"].measured_ms <= BUDGET


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_choice_meets_the_budget(finished: Finished, strategy: str) -> None:
    folder, result = finished[strategy]
    assert result.chosen is result.rows[0]
    assert result.meets_budget
    assert result.chosen.measured_ms <= BUDGET
    ranking = json.loads((folder / "ranking.json").read_text())
    assert all(entry["predicted_ms"] <= BUDGET for entry in ranking)
    assert result.chosen.sample in [entry["sample"]["sample"] for entry in ranking]


def test_every_member_within_the_budget_is_scored_once_best_first(finished: Finished) -> None:
    folder, _ = finished["random-oneshot"]
    ranking = json.loads((folder / "ranking.json").read_text())
    found = {(entry["sample"]["sample"]["width"], entry["sample"]["sample"]["block"]) for entry in ranking}
    assert found == {key for key in WEIGHTS if key != (8, "conv3")}
    assert len(ranking) == 5
    scores = [entry["score"] for entry in ranking]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_choice_is_the_best_finalist_on_validation_data(finished: Finished, strategy: str) -> None:
    folder, result = finished[strategy]
    ranking = [entry["sample"]["sample"] for entry in json.loads((folder / "ranking.json").read_text())]
    finalists = [json.loads(path.read_text()) for path in sorted((folder / "trained").glob("finalist*.json"))]
    assert [finalist["sample"] for finalist in finalists] == [s for s in ranking if latency_of(s) <= BUDGET][:4]
    best = max(finalists, key=lambda finalist: finalist["val_accuracy"])  # the first of equals
    assert result.chosen.sample == best["sample"]
    assert result.chosen.val_accuracy == best["val_accuracy"]
    assert result.chosen.test_accuracy == best["test_accuracy"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_result_is_written_as_it_was_returned(finished: Finished, strategy: str) -> None:
    folder, result = finished[strategy]
    written = json.loads((folder / "result.json").read_text(), parse_constant=pytest.fail)
    assert written == json.loads(json.dumps(result.to_dict()))
    assert written["meets_budget"] is True
    assert SearchSettings.from_dict(written["settings"]) == settings(strategy=strategy)
    assert ModelRow(**written["rows"][0]) == result.chosen
    assert set(written["seconds"]) == {"profile", "supernet", "search", "choose", "train", "export"}
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]  # no temporaries


def test_whether_the_budget_is_met_is_what_was_measured(finished: Finished) -> None:
    _, result = finished["random-oneshot"]
    data = asdict(result)
    for measured, meets in ((BUDGET, True), (BUDGET * 1.001, False)):
        row = ModelRow(**{**asdict(result.chosen), "measured_ms": measured})
        assert SearchResult(**{**data, "rows": (row,)}).meets_budget is meets


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_exported_model_is_the_choice_and_classifies_as_reported(
    finished: Finished, strategy: str, tiny: Task
) -> None:
    folder, result = finished[strategy]
    bundle = load_bundle(folder / "model")
    space = tiny.make_space()
    sample = sample_from_json(bundle.sample, space)
    assert sample == result.chosen.sample
    model = space.freeze(sample).eval()
    model.load_state_dict(bundle.state_dict())
    images, targets = tiny.data.test.tensors
    verify_onnx(bundle.onnx_path, model, [(images[:4],), (images[4:8],)])
    # The accuracy of the file itself, image by image.
    session = onnxruntime.InferenceSession(bundle.onnx_path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    scores = [torch.tensor(session.run(None, {name: images[i : i + 4].numpy()})[0]) for i in range(0, 40, 4)]
    accuracy = (torch.cat(scores).argmax(1) == targets).double().mean()
    assert float(accuracy) == pytest.approx(result.chosen.test_accuracy)
    assert bundle.metadata["test_accuracy"] == result.chosen.test_accuracy
    assert result.verification["n_batches"] == 10
    assert result.verification["max_abs_error"] < 1e-4


# -- the same again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["random-oneshot", "darts"])
def test_one_seed_and_one_store_choose_the_same(
    finished: Finished, strategy: str, tiny: Task, store: Path, tmp_path: Path
) -> None:
    folder, result = finished[strategy]
    torch.manual_seed(1234)  # what others have drawn before makes no difference
    again = run_search(tiny, settings(strategy=strategy), tmp_path / "again", store=store)
    weights, expected = (
        torch.load(path / "supernet" / "last.ckpt", weights_only=True)["state_dict"]
        for path in (tmp_path / "again", folder)
    )
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert again.rows == result.rows
    assert (tmp_path / "again" / "ranking.json").read_bytes() == (folder / "ranking.json").read_bytes()
    assert (tmp_path / "again" / "model" / "model.onnx").read_bytes() == (folder / "model" / "model.onnx").read_bytes()


class Impatient(Silent):
    """Presses Ctrl+C when some progress is told."""

    def __init__(self, what: str, done: int) -> None:
        self.moment = what, done

    def progress(self, what: str, done: int, total: int) -> None:
        if (what, done) == self.moment:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("strategy", "moments"),
    [
        ("random-oneshot", [("super-net", 2), ("score", 3), ("train finalist1", 1), ("train random", 1)]),
        ("darts", [("super-net", 3)]),
        ("enas", [("super-net", 2)]),
    ],
)
def test_an_interrupted_search_goes_on_to_the_same_end(
    finished: Finished, strategy: str, moments: list[tuple[str, int]], tiny: Task, store: Path, tmp_path: Path
) -> None:
    folder, result = finished[strategy]
    for moment in moments:
        with pytest.raises(KeyboardInterrupt):
            run_search(
                tiny,
                settings(strategy=strategy),
                tmp_path,
                store=store,
                resume=True,
                narrator=Impatient(*moment),
            )
        assert (tmp_path / "supernet" / "last.ckpt").exists()
        assert not (tmp_path / "result.json").exists()
    again = run_search(tiny, settings(strategy=strategy), tmp_path, store=store, resume=True)
    assert again.rows == result.rows
    assert (tmp_path / "ranking.json").read_bytes() == (folder / "ranking.json").read_bytes()


def test_a_finished_run_is_not_trained_again(
    copy: Callable[..., Path], finished: Finished, tiny: Task, store: Path
) -> None:
    class Listener(Silent):
        told: list[str] = []  # noqa: RUF012

        def progress(self, what: str, done: int, total: int) -> None:
            self.told.append(what)

    again = run_search(tiny, settings(), copy(), store=store, resume=True, narrator=Listener())
    assert again.rows == finished["random-oneshot"][1].rows
    # The space is read once more, for what its members are predicted to take; nothing is measured or trained.
    assert set(Listener.told) <= {"trace", "cut into parts", "find parts", "build members"}


# -- what stops a search -------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_impossible_budget_names_the_minimum(tiny: Task, store: Path, tmp_path: Path, strategy: str) -> None:
    with pytest.raises(BudgetError, match=r"0\.08") as caught:
        run_search(tiny, settings(max_latency_ms=0.05, strategy=strategy), tmp_path / "run", store=store)
    assert caught.value.nearest == pytest.approx(latency_of({"width": 4, "block": "skip"}), rel=0.05)
    assert "0.05" in str(caught.value)


def test_an_impossible_budget_is_exit_code_3(command: Callable[..., Result]) -> None:
    result = command(max_latency_ms=0.05)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "0.08" in result.stderr


def test_members_that_are_slower_than_predicted_are_not_chosen(
    copy: Callable[..., Path], tiny: Task, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hwnas.profilers import Measurement, OnnxRuntimeLatencyProfiler

    def slow(profiler: Any, samples: list[dict[str, Any]]) -> list[Measurement]:
        measured = [0.2 if sample == {"width": 4, "block": "conv1"} else 0.3 for sample in samples]
        return [Measurement(ms, 0.001, 20, False) for ms in measured]

    monkeypatch.setattr(OnnxRuntimeLatencyProfiler, "measure", slow)
    folder = copy("trained", "model", "result.json")
    result = run_search(tiny, settings(), folder, store=store, resume=True)
    assert result.chosen.sample == {"width": 4, "block": "conv1"}

    monkeypatch.setattr(
        OnnxRuntimeLatencyProfiler, "measure", lambda _, samples: [Measurement(0.3, 0.001, 20, False)] * len(samples)
    )
    with pytest.raises(BudgetError, match=r"takes 0\.300 ms") as caught:
        run_search(tiny, settings(), folder, store=store, resume=True)
    assert caught.value.nearest == 0.3


def test_test_data_has_no_say(copy: Callable[..., Path], tiny: Task, store: Path) -> None:
    folder = copy("model", "result.json")
    accuracies = {0: (0.5, 0.9), 1: (0.75, 0.1), 2: (0.75, 0.8), 3: (0.25, 1.0)}
    for rank, (val, test) in accuracies.items():
        record = folder / "trained" / f"finalist{rank}.json"
        found = {**json.loads(record.read_text()), "val_accuracy": val, "test_accuracy": test}
        record.write_text(json.dumps(found))
    result = run_search(tiny, settings(), folder, store=store, resume=True)
    assert (result.chosen.val_accuracy, result.chosen.test_accuracy) == accuracies[1]  # the first of the best


def test_a_loss_that_is_not_finite_is_told(spaces: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="loss is nan"):
        run_search(load_task(f"{spaces}:Diverging"), settings(), tmp_path / "run", store=store)


def test_a_loss_that_is_not_finite_is_exit_code_1(command: Callable[..., Result]) -> None:
    result = command(space="Diverging")
    assert result.exit_code == 1
    assert "loss is nan" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def wrong_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export another model than the one that was trained."""

    def export(model: torch.nn.Module, example: Any, path: Path, **options: Any) -> Path:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with torch.no_grad():
            next(model.parameters()).mul_(1.1)
        export_onnx(model, example, path, **options)
        model.load_state_dict(before)
        return path

    monkeypatch.setattr("hwnas.export.bundle.export_onnx", export)


def test_a_model_that_is_not_verified_is_not_handed_over(
    wrong_export: None, copy: Callable[..., Path], tiny: Task, store: Path
) -> None:
    folder = copy("model", "result.json")
    with pytest.raises(VerificationError, match="differ"):
        run_search(tiny, settings(), folder, store=store, resume=True)
    assert not (folder / "model").exists()
    assert not (folder / "result.json").exists()


def test_a_model_that_is_not_verified_is_exit_code_4(
    wrong_export: None, copy: Callable[..., Path], command: Callable[..., Result]
) -> None:
    folder = copy("model", "result.json")
    config = json.loads((folder / "config.json").read_text())
    config["task"] = str(config["task"])
    result = command("--resume", out=folder)
    assert result.exit_code == 4
    assert "differ" in result.stderr


def test_a_damaged_store_is_told(tiny: Task, tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"no database at all " * 100)
    with pytest.raises(StoreError, match=r"store\.sqlite"):
        run_search(tiny, settings(), tmp_path / "run", store=tmp_path / "store.sqlite")


@pytest.mark.parametrize("name", ["ranking.json", "trained/random.json"])
def test_a_damaged_stage_is_told(copy: Callable[..., Path], name: str, tiny: Task, store: Path) -> None:
    folder = copy()
    (folder / name).write_text("{")
    with pytest.raises(RunFolderError, match=f"{name} is damaged"):
        run_search(tiny, settings(), folder, store=store, resume=True)


def test_a_damaged_checkpoint_is_told(copy: Callable[..., Path], tiny: Task, store: Path) -> None:
    folder = copy()
    checkpoint = folder / "supernet" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(RunFolderError, match=r"last\.ckpt is damaged; remove it"):
        run_search(tiny, settings(), folder, store=store, resume=True)


def test_another_run_in_the_folder_is_told(copy: Callable[..., Path], tiny: Task, store: Path) -> None:
    folder = copy()
    with pytest.raises(RunFolderError, match="holds a run already"):
        run_search(tiny, settings(), folder, store=store)
    with pytest.raises(RunFolderError, match="differently: seed, train_epochs"):
        run_search(tiny, settings(seed=1, train_epochs=2), folder, store=store, resume=True)


def test_a_search_in_int8(tiny: Task, machine: Any, store: Path, tmp_path: Path) -> None:
    """Everything that is measured is quantised, what is exported is not, and the budget keeps its confidence."""
    before = len(machine.seen)
    quick = settings(precision="int8", confidence=0.75, supernet_epochs=1, evaluations=4, finalists=1)
    result = run_search(tiny, quick, tmp_path / "run", store=store)
    seen = machine.seen[before:]
    assert len(seen) > 4
    assert {precision for precision, _ in seen} == {"int8"}
    assert all(b"QuantizeLinear" in model for _, model in seen if b"Conv" in model or b"Gemm" in model)
    assert b"QuantizeLinear" not in (tmp_path / "run" / "model" / "model.onnx").read_bytes()
    assert load_bundle(tmp_path / "run" / "model").metadata["target"]["precision"] == "int8"
    ranking = json.loads((tmp_path / "run" / "ranking.json").read_text())
    assert all(entry["predicted_ms"] <= 0.98 * BUDGET for entry in ranking)
    assert result.settings["confidence"] == 0.75


def test_the_budget_that_members_are_looked_at_within(tiny: Task, tmp_path: Path) -> None:
    """Predictions of 1, 2 and 3 ms with an error of 5 %, and 2 % to spare for the difference of two sessions."""

    class Predicted(Profiler):
        relative_residual = least_relative_stderr = 0.05
        anchors = ()

        def stderr(self, sample: Any) -> float:
            return 0.05 * self.profile(sample)

    class Listener(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    said: list[str] = []
    model = CostModel({"width": [1, 2, 3]}, [Factor(("width",), [1.0, 2.0, 3.0])], unit="ms")
    profiler: Any = Predicted(model)

    def bound(limit: float, confidence: float = 0.9) -> float:
        asked = settings(max_latency_ms=limit, confidence=confidence)
        run = search_module._Run(tiny, asked, RunFolder(tmp_path / f"{limit} {confidence}", {}), Listener())
        return run._budget(profiler).bounds["latency_ms"]

    assert bound(2.5) == pytest.approx(2.5 * 0.98 / (1 + 0.05 * 1.281552), rel=1e-6)
    assert bound(2.5, 0.5) == pytest.approx(2.5 * 0.98)
    assert "with a probability of 50 %" in said[-1]
    assert bound(1.01) == 1.01  # the fastest member is so near that nothing can be spared
    assert "no member is within the budget with a probability of 90 %" in said[-1]
    with pytest.raises(BudgetError):
        bound(0.99)


def test_a_search_for_another_device(tiny: Task, machine: Any, tmp_path: Path) -> None:
    """One that is ten times as slow; the same machine, asked for models in a folder, stands in for it."""
    device = tmp_path / "device"
    prepare_folder(device, tiny.make_space(), tiny.example(4), held_out=0)
    plan = json.loads((device / "plan.json").read_text())
    models = {each["key"]: (device / "models" / f"{each['key']}.onnx").read_bytes() for each in plan["workloads"]}
    session = asdict(machine([Workload(key, model) for key, model in models.items()], OrtTarget()))
    for found in (*session["measurements"].values(), session["overhead"]):
        found["latency_ms"], found["stderr_ms"] = 10 * found["latency_ms"], 10 * found["stderr_ms"]
    results = {"schema_version": plan["schema_version"], "target": plan["target"], "session": session}
    about = {**describe_device().to_dict(), "cpu_model": "a slow one"}
    (device / "results.json").write_text(json.dumps({**results, "device": about}))

    before = machine.measured
    quick = settings(max_latency_ms=10 * BUDGET, supernet_epochs=1, evaluations=4, finalists=1)
    result = run_search(tiny, quick, tmp_path / "run", latency_from=device)
    assert machine.measured == before  # nothing here
    for row in result.rows:
        assert row.predicted_ms == pytest.approx(10 * latency_of(row.sample), rel=0.2)
        assert row.measured_ms is None
    assert result.meets_budget
    assert load_bundle(tmp_path / "run" / "model").metadata["device"]["cpu_model"] == "a slow one"
    with pytest.raises(RunFolderError, match="latency_from"):
        run_search(tiny, quick, tmp_path / "run", resume=True)
    with pytest.raises(HwnasError, match=r"was measured with threads 1.*Give --threads 1"):
        run_search(tiny, settings(threads=2), tmp_path / "other", latency_from=device)
    with pytest.raises(BudgetError):
        run_search(tiny, settings(max_latency_ms=0.05), tmp_path / "impossible", latency_from=device)
