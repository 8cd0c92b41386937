from __future__ import annotations

import json
import sqlite3
import sys

import pytest
import torch

from hwnas.profilers import LatencyStore


@pytest.fixture
def findings(run):
    def examine(*arguments):
        result = run("doctor", "--json", *arguments)
        found = json.loads(result.stdout)
        healthy = all(finding["state"] != "fail" for finding in found["findings"])
        assert found["healthy"] is healthy
        assert result.exit_code == (0 if healthy else 1)
        return {finding["name"]: finding for finding in found["findings"]}

    return examine


def test_all_is_well_here(findings):
    found = findings()
    assert found["torch"] == {"name": "torch", "state": "ok", "detail": torch.__version__}
    assert "CPUExecutionProvider" in found["ONNX Runtime providers"]["detail"]
    assert {"hwnas", "python", "onnx", "onnxruntime", "lightning", "device", "CPU kernels", "threads"} <= set(found)
    assert all(finding["state"] != "fail" for finding in found.values())


def test_the_table_has_a_mark_for_each(run):
    result = run("doctor")
    assert result.exit_code == 0
    assert any(line.split()[:2] == ["ok", "torch"] for line in result.stdout.splitlines())


def test_the_store_is_not_made_by_looking(findings, tmp_path):
    path = tmp_path / "new" / "store.sqlite"
    assert findings("--store", path)["latency store"]["state"] == "ok"
    assert not path.parent.exists()


def test_the_rows_of_the_store_are_counted(findings, tmp_path):
    path = tmp_path / "store.sqlite"
    LatencyStore(path).close()
    assert "0 rows" in findings("--store", path)["latency store"]["detail"]


def test_a_store_that_does_not_open_is_a_failure(findings, tmp_path):
    path = tmp_path / "other.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    found = findings("--store", path)["latency store"]
    assert found["state"] == "fail"
    assert "another program" in found["detail"]


def test_a_package_that_does_not_load_is_a_failure_and_the_rest_is_examined(findings, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # import raises ImportError
    found = findings()
    assert found["onnxscript"]["state"] == "fail"
    assert "cannot be imported" in found["onnxscript"]["detail"]
    assert found["threads"]["state"] == "ok"


def test_missing_kernels_are_a_warning(findings, monkeypatch):
    from hwnas.kernels import native

    monkeypatch.setattr(native, "CPU", None)
    monkeypatch.setattr(native, "_cpu_problem", "no compiler")
    found = findings()["CPU kernels"]
    assert found["state"] == "warn"
    assert "no compiler" in found["detail"]


def test_every_operator_is_listed(findings, monkeypatch):
    from hwnas.kernels import native

    found = findings()
    for name in native.OPERATORS:
        assert found[f"operator {name}"]["state"] == "ok"
        assert "compiled for cpu" in found[f"operator {name}"]["detail"]
    with native.disabled():
        found = findings()
    assert found["operator mixed_sum"] == {"name": "operator mixed_sum", "state": "ok", "detail": "plain PyTorch"}
    assert "switched off by native.disabled()" in found["CPU kernels"]["detail"]


def test_a_module_that_lacks_an_operator_is_a_warning(findings, monkeypatch):
    from hwnas.kernels import native

    monkeypatch.setattr(native, "OPERATORS", ("mixed_sum", "of_tomorrow"))
    found = findings()
    assert found["operator mixed_sum"]["state"] == "ok"
    assert found["operator of_tomorrow"]["state"] == "warn"
    assert "is older than hwnas" in found["operator of_tomorrow"]["detail"]


def test_a_check_that_breaks_is_a_failure_and_the_rest_is_examined(findings, monkeypatch):
    from hwnas.kernels import native

    def broken():
        raise OSError("libgomp is gone")

    monkeypatch.setattr(native, "describe", broken)
    found = findings()
    assert found["native kernels"]["state"] == "fail"
    assert "libgomp is gone" in found["native kernels"]["detail"]
    assert "threads" in found
