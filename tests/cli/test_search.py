from __future__ import annotations

import inspect
import json
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from hwnas.cli.search import search
from hwnas.errors import BudgetError, HwnasError, StoreError, TrainingError, VerificationError
from hwnas.experiment import STRATEGIES, RunFolderError, SearchSettings

ENOUGH = ("search", "digits", "--max-latency-ms", "1")

# Stands in for hwnas.experiment, so that the process is up at once.
SLOW_SEARCH = """
import signal, sys, time, types, warnings
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits SIG_IGN
experiment = types.ModuleType("hwnas.experiment")
experiment.TaskError = type("TaskError", (Exception,), {})
experiment.SearchSettings = dict
experiment.load_task = lambda name, seed: name
def run_search(*_, narrator, **__):
    warnings.warn("the machine is busy")
    narrator.say("under way")
    time.sleep(60)
experiment.run_search = run_search
sys.modules["hwnas.experiment"] = experiment
from hwnas.cli import main
main()
"""


def test_the_table_is_on_stdout_and_the_story_on_stderr(run, fake_search):
    fake_search()
    result = run(*ENOUGH)
    assert result.exit_code == 0
    assert "98.8 %" in result.stdout  # validation accuracy
    assert "97.5 %" in result.stdout  # test accuracy
    assert "0.980 ± 0.004" in result.stdout
    assert "stage1/block0=sep3" in result.stdout
    assert "measure the parts" not in result.stdout
    assert "measure: 5 of 10" in result.stderr
    assert "printed by whatever" in result.stderr


def test_json_is_the_only_thing_on_stdout(run, fake_search, make_result):
    fake_search()
    result = run(*ENOUGH, "--json")
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert found["rows"][0]["sample"] == make_result().chosen.sample
    assert found["meets_budget"] is True
    assert found["latency"]["relative_residual"] is None  # not a number, so not JSON
    assert "printed by whatever" in result.stderr


def test_every_option_arrives(run, fake_search, tmp_path):
    calls = fake_search()
    options = {
        "--strategy": "darts",
        "--seed": 3,
        "--batch-size": 5,
        "--threads": 2,
        "--precision": "int8",
        "--confidence": 0.75,
        "--epochs": 7,
        "--train-epochs": 8,
        "--evaluations": 9,
        "--profile-seconds": 1.5,
        "--out": tmp_path / "run",
        "--store": tmp_path / "store.sqlite",
        "--latency-from": tmp_path / "pi5",
    }
    result = run(*ENOUGH, *(word for pair in options.items() for word in pair), "--resume")
    assert result.exit_code == 0
    (call,) = calls
    assert call["settings"] == SearchSettings(
        max_latency_ms=1.0,
        strategy="darts",
        seed=3,
        batch_size=5,
        threads=2,
        precision="int8",
        confidence=0.75,
        supernet_epochs=7,
        train_epochs=8,
        evaluations=9,
        profile_s=1.5,
    )
    assert call["task"].name == "digits"
    assert call["folder"] == tmp_path / "run"
    assert call["store"] == tmp_path / "store.sqlite"
    assert call["latency_from"] == tmp_path / "pi5"
    assert call["resume"] is True


TABLE = """width,act,latency_ms
,,0.5
4,,1.0
8,,2.0
,0,0.25
,1,0.75
"""


def by_table(sample):
    return 0.5 + {4: 1.0, 8: 2.0}[sample["width"]] + {0: 0.25, 1: 0.75}[sample["act"]]


YAML_TABLE = """
cost: latency_ms
constant: 0.5
tables:
  - {labels: [width], rows: [[4, 1.0], [8, 2.0]]}
  - {labels: [act], rows: [[0, 0.25], [1, 0.75]]}
"""


@pytest.mark.parametrize(("name", "text"), [("phone.csv", TABLE), ("phone.YML", YAML_TABLE)])
def test_a_search_by_a_table_of_another_device(run, tiny, tmp_path, monkeypatch, name, text):
    monkeypatch.setattr("hwnas.profilers.latency.measure", None)
    monkeypatch.setattr("hwnas.experiment.search.measure", None)
    (tmp_path / name).write_text(text)
    quick = ("--epochs", 1, "--train-epochs", 1, "--evaluations", 4, "--finalists", 1, "--out", "run", "--json")
    # Met exactly by one of two members within the budget: nothing is taken off for an error that is not known.
    asked = ("search", tiny, "--max-latency-ms", 2.25, "--latency-from", name, *quick)
    result = run(*asked)
    assert result.exit_code == 0, result.stderr
    assert f"by {name} members take from 1.750 to 3.250 ms\n" in result.stderr
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    for row in found["rows"]:
        assert row["predicted_ms"] == pytest.approx(by_table(row["sample"]))
        assert row["predicted_stderr_ms"] is row["measured_ms"] is None
    chosen, _, fastest, largest = found["rows"]
    assert chosen["sample"]["width"] == 4
    assert (fastest["predicted_ms"], largest["predicted_ms"]) == (1.75, 3.25)
    assert found["meets_budget"]
    assert found["latency"] == {}
    ranking = json.loads((tmp_path / "run" / "ranking.json").read_text())
    assert sorted(each["predicted_ms"] for each in ranking) == [1.75, 2.25]

    again = run(*asked, "--resume")
    assert json.loads(again.stdout)["rows"] == found["rows"]
    (tmp_path / name).write_text(text.replace("0.25", "0.26"))
    changed = run(*asked, "--resume")
    assert changed.exit_code == 1
    assert "started differently: latency_table" in changed.stderr


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        (
            "t.csv",
            TABLE.replace("8,,2.0\n", ""),
            ["t.csv: of 2 combinations of width 1", "width=8", "0 where it costs"],
        ),
        ("t.csv", TABLE.replace("8,,2.0", "16,,2.0"), ["t.csv, line 4", "'16' is no value of 'width'", "[4, 8]"]),
        ("t.csv", TABLE.replace("width", "wide"), ["t.csv, line 3", "no label 'wide'", "['act', 'width']"]),
        ("t.csv", TABLE.replace("8,,2.0", "8,,fast"), ["t.csv, line 4", "'fast'", "expected a number"]),
        ("t.csv", TABLE + ",,0.5\n", ["t.csv, line 7", "the constant stands already at", "line 2"]),
        ("t.csv", TABLE.replace("latency_ms", "energy_mj"), ["t.csv: its cost is 'energy_mj'", "'latency_ms'"]),
        (
            "t.csv",
            TABLE.replace(",,0.5", ",,-2"),
            ["t.csv: the figures of the member", "'width': 4", "add up to -0.75 ms"],
        ),
        ("t.yaml", YAML_TABLE.replace("[8,", "[9,"), ["t.yaml, table 0, row 2", "9 is no value of 'width'"]),
        ("t.yaml", YAML_TABLE.replace("2.0", "yes"), ["t.yaml, table 0, row 2", "True", "expected a finite number"]),
        ("t.csv", None, ["t.csv cannot be read"]),
        ("t.txt", TABLE, ["t.txt: its suffix is '.txt'; expected .csv, .yaml or .yml"]),
        ("t.json", TABLE, ["t.json is no JSON file"]),
        ("phone", None, ["phone cannot be read", "measure.py"]),
    ],
)
def test_a_table_that_is_wrong_is_told_before_anything_is_done(run, tiny, tmp_path, name, text, told):
    if text is not None:
        (tmp_path / name).write_text(text)
    result = run("search", tiny, "--max-latency-ms", 2, "--latency-from", name, "--out", "run")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for words in told:
        assert words in result.stderr
    if name.startswith("t.") and name != "t.json":
        assert not (tmp_path / "run").exists()


def test_a_budget_below_every_figure_of_a_table(run, tiny, tmp_path):
    (tmp_path / "t.csv").write_text("width,latency_ms\n4,1.0\n8,2.0\n")
    result = run("search", tiny, "--max-latency-ms", 0.9, "--latency-from", "t.csv", "--out", "run")
    assert result.exit_code == 3
    assert "it does not name act, which cost nothing then" in result.stderr
    assert "1 ms" in result.stderr.splitlines()[-1]


def test_the_defaults_are_those_of_the_settings():
    names = {"supernet_epochs": "epochs", "profile_s": "profile_seconds"}
    given = inspect.signature(search).parameters
    for field in fields(SearchSettings):
        if field.name not in ("max_latency_ms", "finalists"):
            assert given[names.get(field.name, field.name)].default == field.default, field.name


def test_the_help_names_every_strategy(run):
    shown = run("search", "--help").stdout
    assert all(strategy in shown for strategy in STRATEGIES)


def test_each_run_gets_a_folder_and_all_share_the_store(run, fake_search, tmp_path):
    calls = fake_search()
    assert run(*ENOUGH).exit_code == 0
    assert calls[0]["folder"].parent == Path("runs")
    assert calls[0]["folder"].name.startswith("digits-")
    assert calls[0]["store"] == tmp_path / "cache" / "hwnas" / "latency.sqlite"
    assert calls[0]["resume"] is False


def test_what_was_not_measured_is_not_made_up(run, fake_search, make_result):
    fake_search(make_result(None))
    result = run(*ENOUGH)
    assert result.exit_code == 0
    assert "not measured" in result.stdout
    assert "predicted from figures of another device" in result.stdout
    assert "warning" not in result.stdout


def test_a_measured_latency_over_the_budget_is_pointed_out(run, fake_search, make_result):
    fake_search(lambda: make_result(measured_ms=1.1))
    result = run(*ENOUGH)
    assert result.exit_code == 0
    assert "warning" in result.stdout
    assert "10.0 % over the budget of 1 ms" in result.stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BudgetError("the fastest member takes 2.5 ms; stem alone takes 2 ms", nearest=2.5), 3),
        (VerificationError("batch 0: 3 of 80 values differ"), 4),
        (StoreError("it is a database of another program"), 1),
        (TrainingError("the loss is NaN"), 1),
        (RunFolderError("the run folder cannot be written"), 1),
        (HwnasError("something else"), 1),
        (PermissionError(13, "Permission denied", "/somewhere"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_its_message_and_its_exit_code(run, fake_search, error, code):
    fake_search(error)
    result = run(*ENOUGH, "--json")
    assert result.exit_code == code
    assert result.stdout == ""
    assert f"error: {error}" in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback_and_keeps_the_exit_code(run, fake_search):
    fake_search(BudgetError("too tight"))
    result = run(*ENOUGH, "--debug")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert "error: too tight" in result.stderr


def test_a_fault_of_the_program_is_not_hidden(run, fake_search):
    fake_search(ZeroDivisionError("oops"))
    with pytest.raises(ZeroDivisionError):
        run(*ENOUGH)


@pytest.mark.parametrize(
    "wrong",
    [
        ("--max-latency-ms", "0"),
        ("--max-latency-ms", "nan"),
        ("--strategy", "luck"),
        ("--profile-seconds", "-1"),
        ("--epochs", "0"),
        ("--threads", "0"),
        ("--batch-size", "many"),
        ("--out", __file__),
    ],
    ids=" ".join,
)
def test_a_bad_value_is_a_usage_error(run, fake_search, wrong):
    calls = fake_search()
    result = run(*ENOUGH, *wrong)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert wrong[0].strip("-").split("-")[0] in result.stderr
    assert not calls


def test_resume_needs_a_folder(run, fake_search):
    calls = fake_search()
    result = run(*ENOUGH, "--resume")
    assert result.exit_code == 2
    assert "--out" in result.stderr
    assert not calls


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ("mnist", ["'mnist'", "digits", "path/to/file.py:ClassName"]),
        ("nowhere.py:Net", ["nowhere.py"]),
        ("{tiny}er", ["'Tinyer'", "Tiny"]),
    ],
)
def test_an_unknown_space_is_a_usage_error(run, fake_search, tiny, space, told):
    calls = fake_search()
    result = run("search", space.format(tiny=tiny), "--max-latency-ms", 1)
    assert result.exit_code == 2
    assert all(words in result.stderr for words in told)
    assert "Traceback" not in result.stderr
    assert not calls


@pytest.mark.parametrize(
    ("text", "line"),
    [("x = 1\n\nboom()\n", "line 3"), ("x = 1\nclass (:\n", "line 2")],
    ids=["name", "syntax"],
)
def test_a_file_that_fails_is_told_with_its_line(run, fake_search, tmp_path, text, line):
    fake_search()
    (tmp_path / "broken.py").write_text(text)
    result = run("search", f"{tmp_path}/broken.py:Net", "--max-latency-ms", 1)
    assert result.exit_code == 2
    assert "broken.py" in result.stderr
    assert line in result.stderr
    assert "Traceback" not in result.stderr


def _as_lightning_does() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def _as_lightning_does_on_sigterm() -> None:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    raise SIGTERMException


@pytest.mark.parametrize(
    "interrupt",
    [KeyboardInterrupt(), _as_lightning_does, _as_lightning_does_on_sigterm],
    ids=["plain", "fit", "term"],
)
def test_an_interrupt_tells_how_to_go_on(run, fake_search, interrupt):
    calls = fake_search(interrupt)
    result = run(*ENOUGH, "--seed", 4)
    assert result.exit_code == 130
    assert result.stdout == ""
    again = f"hwnas search digits --max-latency-ms 1 --seed 4 --out {calls[0]['folder']} --resume"
    assert again in result.stderr
    assert "Traceback" not in result.stderr


def test_what_is_given_already_is_not_said_twice(run, fake_search):
    fake_search(KeyboardInterrupt())
    result = run(*ENOUGH, "--out", "my run", "--resume")
    assert "hwnas search digits --max-latency-ms 1 --out 'my run' --resume\n" in result.stderr


def test_another_end_from_within_is_a_failure_even_with_code_0(run, fake_search):
    fake_search(SystemExit(0))
    result = run(*ENOUGH)
    assert result.exit_code == 1
    assert "SystemExit(0)" in result.stderr


def test_ctrl_c_ends_the_process_with_130():
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_SEARCH, *ENOUGH],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        told = []
        for line in iter(process.stderr.readline, ""):
            told.append(line.strip())
            if told[-1] == "under way":
                break
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert stdout == ""
    assert "warning: the machine is busy" in told
    assert "--resume" in stderr
    assert "Traceback" not in stderr
