from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from hwnas.cli import profile
from hwnas.cli.profile_subject import Subject, load_subject
from hwnas.cli.profile_table import _print_members
from hwnas.experiment import TaskError
from hwnas.hub import NASBench201Space


def test_figures_of_a_space_that_can_be_counted_by_hand(run, tiny, tmp_path):
    options = (tiny, "--batch-size", 2, "--seconds", 0.5, "--members", 8)
    result = run("profile", *options, "--check", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["members"] == 4
    # Two images of 64 pixels: 9 weights for each channel, then the head.
    assert found["costs"]["macs"]["min"] == 2 * (4 * 9 * 64 + 4 * 10)
    assert found["costs"]["macs"]["max"] == 2 * (8 * 9 * 64 + 8 * 10)
    assert found["costs"]["parameters"]["min"] == 4 * 9 + 4 + 4 * 10 + 10
    assert found["costs"]["parameters"]["max"] == 8 * 9 + 8 + 8 * 10 + 10
    latency = list(found["costs"]["latency_ms"].values())
    assert latency == sorted(latency)
    median = found["median_member"]
    assert sum(part["latency_ms"] for part in median["parts"]) == pytest.approx(median["latency_ms"])
    assert found["fvcore"]["largest_difference"] == 0
    assert found["fvcore"]["largest_torch_difference"] == 0
    assert found["accuracy"]["n"] == 8

    ends = [found["fastest_member"], found["slowest_member"]]
    assert [member["latency_ms"] for member in ends] == [latency[0], latency[-1]]
    assert all(set(member["sample"]) == {"width", "act"} for member in ends)

    # Everything is in the store now.
    result = run("profile", *options, "--plot", "figure.svg")
    assert result.exit_code == 0
    texts = [element.text for element in ElementTree.parse(tmp_path / "figure.svg").iter() if element.text]
    assert any("; 4 members" in text for text in texts)
    assert any(text.startswith("latency (ms) against MACs: rank correlation") for text in texts)
    assert "4 members" in result.stdout
    assert "slowest: width = " in result.stdout
    assert "stem" in result.stdout
    assert "fvcore" not in result.stdout


def test_precision_of_what_is_measured(run, tiny):
    result = run("profile", tiny, "--batch-size", 1, "--seconds", 0.5, "--members", 8, "--precision", "int8", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["target"]["precision"] == "int8"
    for refused in ("fp16", "fp8"):
        result = run("profile", tiny, "--precision", refused)
        assert result.exit_code == 1
        assert f"precision is '{refused}'" in result.stderr or f"precision '{refused}' is refused" in result.stderr


def test_a_difference_to_fvcore_is_a_failure(run, monkeypatch):
    check = {
        "members": 20,
        "largest_difference": 0.5,
        "sample": {"width": 8},
        "macs": 30.0,
        "fvcore_macs": 20.0,
        "uncounted": ["aten::silu"],
    }
    monkeypatch.setattr(profile, "require_fvcore", lambda: None)
    subject = Subject("digits", None, lambda n: None)
    monkeypatch.setattr("hwnas.cli.profile_subject.load_subject", lambda *_: subject)
    monkeypatch.setattr(profile, "_profile", lambda *_, **__: {"fvcore": check})
    result = run("profile", "digits", "--check", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["fvcore"]["macs"] == 30
    assert "50.0 %" in result.stderr
    assert "aten::silu" in result.stderr


def test_without_fvcore_the_message_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "fvcore.nn", None)
    result = run("profile", "digits", "--check")
    assert result.exit_code == 1
    assert "hwnas[check]" in result.stderr
    assert "Traceback" not in result.stderr


def test_spaces_of_the_hub_are_known_by_name(tiny):
    subject = load_subject("NASBench201Space", seed=1)
    assert subject.make_space is NASBench201Space
    assert (subject.batch_size, subject.example(2).shape) == (1, (2, 3, 32, 32))
    assert subject.example(2).equal(load_subject("NASBench201Space", seed=1).example(2))
    assert load_subject(tiny).batch_size == load_subject("digits").batch_size == 64
    with pytest.raises(TaskError, match=r"unknown space 'Nobody'; built in: digits, .*MobileNetV3Space.*file\.py:Cl"):
        load_subject("Nobody")
    with pytest.raises(TaskError, match=r"Did you mean NASBench201Space\?$"):
        load_subject("NASBENCH202SPACE")


def test_a_plot_has_to_have_a_folder(run, tiny):
    result = run("profile", tiny, "--plot", "nowhere/figure.svg")
    assert result.exit_code == 1
    assert "there is no folder nowhere" in result.stderr


@pytest.mark.parametrize(("option", "value"), [("--members", "1"), ("--batch-size", "0"), ("--seconds", "0")])
def test_bad_values_are_usage_errors(run, option, value):
    assert run("profile", "digits", option, value).exit_code == 2


def test_a_store_that_cannot_be_opened_is_a_failure(run, tiny, tmp_path):
    (tmp_path / "store").write_text("no database at all, whatever its name may be")
    result = run("profile", tiny, "--store", "store")
    assert result.exit_code == 1
    assert "--store" in result.stderr


def test_measuring_on_another_device(run, tiny, tmp_path):
    options = (tiny, "--batch-size", 2, "--seconds", 0.5, "--members", 3, "--measure-on", "folder")
    prepared = run("profile", *options)
    assert prepared.exit_code == 0, prepared.stderr
    assert "python measure.py" in prepared.stderr
    assert run("profile", *options).exit_code == 1  # not run yet
    subprocess.run([sys.executable, "folder/measure.py"], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    result = run("profile", *options, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["device"] == json.loads((tmp_path / "folder" / "results.json").read_text())["device"]
    assert found["accuracy"]["n"] == 3


def test_memory_is_told_when_it_is_asked_for(run, tiny):
    options = (tiny, "--batch-size", 2, "--seconds", 0.5, "--members", 4)
    found = json.loads(run("profile", *options, "--memory", "--json").stdout)
    # Two images of 64 pixels in floats: convolution, activation; the mean and the head are smaller.
    activations, peak = found["costs"]["activation_bytes"], found["costs"]["peak_bytes"]
    assert activations["min"] >= 2 * 64 * 4 * 4
    assert list(activations.values()) == sorted(activations.values())
    assert 2 * 64 * 4 * 5 <= peak["min"] <= activations["min"] + 2 * 64 * 4
    assert peak["max"] <= activations["max"] + 2 * 64 * 4
    for member in ("fastest_member", "median_member", "slowest_member"):
        assert found[member]["peak_bytes"] > 0
    table = run("profile", *options, "--memory").stdout
    assert "peak memory (bytes)" in table
    assert "activations (bytes)" in table
    table = run("profile", *options).stdout
    assert "bytes" not in table


@pytest.mark.parametrize("length", range(1, 21))
def test_long_members_are_broken_between_choices(capsys, length):
    sample = {"x" * length: 1, **{f"stage{i}/block": f"conv {i}" for i in range(9)}}
    member = {"sample": sample, "latency_ms": 1.0}
    members = {"fastest_member": None, "median_member": None, "slowest_member": member}
    _print_members({"costs": {"latency_ms": {}}, **members})
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("slowest: "))
    told = [line for line in lines[start:] if line]
    assert len(told) > 1
    assert all(len(line) < 80 for line in told)
    assert " ".join(map(str.strip, told)) == "slowest: " + ", ".join(f"{key} = {sample[key]}" for key in sample)
    assert all(line.startswith("  stage") and " = " in line for line in told[1:])
