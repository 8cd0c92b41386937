from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from hwnas.errors import VerificationError
from hwnas.experiment import load_task
from hwnas.space import dump_sample

SAMPLE = {"width": 8, "act": 1}


@pytest.fixture
def member(tiny, tmp_path):
    """A member with weights of its own, beside its sample and its weights as files."""
    task = load_task(tiny)
    torch.manual_seed(5)
    model = task.make_space().freeze(SAMPLE).eval()
    dump_sample(SAMPLE, tmp_path / "sample.json")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    return model, task.example(3)


def scores(folder, images):
    runtime = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return runtime.run(None, {runtime.get_inputs()[0].name: images.numpy()})[0]


def test_what_is_written_computes_what_the_weights_compute(run, tiny, member, tmp_path):
    model, images = member
    result = run(
        "export",
        tiny,
        "--sample",
        "sample.json",
        "--weights",
        "weights.safetensors",
        "--out",
        "one",
        "--batch-size",
        3,
    )
    assert result.exit_code == 0
    assert "one/model.onnx" in result.stdout
    with torch.no_grad():
        expected = model(images).numpy()
    np.testing.assert_allclose(scores(tmp_path / "one", images), expected, rtol=1e-4, atol=1e-5)

    # A bundle, and a run folder with one in it, give the sample and the weights.
    (tmp_path / "run").mkdir()
    (tmp_path / "one").rename(tmp_path / "run" / "model")
    result = run("export", tiny, "--sample", "run", "--out", "two", "--batch-size", 3, "--json")
    assert result.exit_code == 0
    written = json.loads(result.stdout)
    assert written["sample"]["sample"] == SAMPLE
    assert written["inputs"][0]["shape"] == [3, 1, 8, 8]
    np.testing.assert_allclose(scores(tmp_path / "two", images), expected, rtol=1e-4, atol=1e-5)


def test_an_untrained_model_is_called_so_and_a_failed_verification_is_code_4(run, tiny, member, monkeypatch):
    def refuse(*_, **__):
        raise VerificationError("batch 0: everything differs")

    monkeypatch.setattr("hwnas.export.write_bundle", refuse)
    result = run("export", tiny, "--sample", "sample.json", "--out", "one")
    assert result.exit_code == 4
    assert "untrained" in result.stderr
    assert "everything differs" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("not JSON", "JSON"),
        ('{"schema_version": 1, "sample": {"width": 5, "act": 1}}', "width"),
        ('{"schema_version": 1, "sample": {"width": 4}}', "act"),
    ],
)
def test_a_sample_that_does_not_fit_is_a_usage_error(run, tiny, tmp_path, text, told):
    (tmp_path / "sample.json").write_text(text)
    result = run("export", tiny, "--sample", "sample.json", "--out", "one")
    assert result.exit_code == 2
    assert "sample.json" in result.stderr
    assert told in result.stderr
    assert not (tmp_path / "one").exists()


def test_weights_that_do_not_fit_are_a_usage_error(run, tiny, member, tmp_path):
    dump_sample({"width": 4, "act": 0}, tmp_path / "other.json")
    result = run("export", tiny, "--sample", "other.json", "--weights", "weights.safetensors", "--out", "one")
    assert result.exit_code == 2
    assert "stem.weight" in result.stderr

    result = run("export", tiny, "--sample", "sample.json", "--weights", "sample.json", "--out", "one")
    assert result.exit_code == 2
    assert "--weights" in result.stderr


def test_a_folder_without_a_choice_is_a_usage_error(run, tiny, tmp_path):
    result = run("export", tiny, "--sample", tmp_path, "--out", "one")
    assert result.exit_code == 2
    assert "architecture.json" in result.stderr
    assert run("export", tiny, "--sample", "missing.json", "--out", "one").exit_code == 2
