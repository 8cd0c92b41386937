"""Training from scratch: seeded, the same for all, and taken from the run folder where it has been done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hwnas.evaluators import evaluate_accuracy
from hwnas.experiment import RunFolder, RunFolderError, Silent, Task, training
from hwnas.experiment.training import fresh_member, fresh_space, make_evaluator, train_member

SAMPLE = {"width": 4, "block": "conv1"}


class Listener(Silent):
    def __init__(self) -> None:
        self.told: list[tuple[str, int, int]] = []

    def progress(self, what: str, done: int, total: int) -> None:
        self.told.append((what, done, total))


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_weights_depend_on_the_seed_alone(tiny: Task) -> None:
    before = torch.get_rng_state()
    assert equal(fresh_member(tiny, SAMPLE, 0), fresh_member(tiny, SAMPLE, 0))
    assert not equal(fresh_member(tiny, SAMPLE, 0), fresh_member(tiny, SAMPLE, 1))
    assert equal(fresh_space(tiny, 0), fresh_space(tiny, 0))
    assert not equal(fresh_space(tiny, 0), fresh_space(tiny, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_test_data_is_out_of_reach(tiny: Task) -> None:
    evaluator = make_evaluator(tiny, 1, 0)
    assert evaluator.train_dataloaders.dataset.tensors[0] is tiny.data.train.tensors[0]
    assert evaluator.val_dataloaders.dataset.tensors[0] is tiny.data.val.tensors[0]


def test_a_member_is_trained_once(tiny: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, listener = RunFolder(tmp_path / "run", {}), Listener()
    model, val, test = train_member(tiny, "chosen", SAMPLE, 2, 0, folder, listener)
    assert listener.told == [("train chosen", 1, 2), ("train chosen", 2, 2)]
    assert not model.training
    assert not equal(model, fresh_member(tiny, SAMPLE, 0))
    assert (val, test) == (
        evaluate_accuracy(model, tiny.data.val_loader()),
        evaluate_accuracy(model, tiny.data.test_loader()),
    )
    assert folder.load("trained/chosen.json") == {"sample": SAMPLE, "val_accuracy": val, "test_accuracy": test}

    monkeypatch.setattr(training, "make_evaluator", None)  # training again would fail
    again, *accuracies = train_member(tiny, "chosen", SAMPLE, 2, 0, folder, listener)
    assert equal(again, model)
    assert not again.training
    assert accuracies == [val, test]


def test_training_cut_off_before_its_record_is_done_again(tiny: Task, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", {})
    model, *accuracies = train_member(tiny, "chosen", SAMPLE, 1, 0, folder, Silent())
    (folder.path / "trained" / "chosen.json").unlink()
    (folder.path / "trained" / "chosen.safetensors").write_bytes(b"half a file")
    again, *repeated = train_member(tiny, "chosen", SAMPLE, 1, 0, folder, Silent())
    assert equal(again, model)
    assert repeated == accuracies


def test_weights_that_are_damaged_or_missing_are_told(tiny: Task, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", {})
    train_member(tiny, "chosen", SAMPLE, 1, 0, folder, Silent())
    weights = folder.path / "trained" / "chosen.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RunFolderError, match=r"chosen\.safetensors is damaged .*remove .*chosen\.json"):
        train_member(tiny, "chosen", SAMPLE, 1, 0, folder, Silent())


def test_what_was_trained_under_that_name_counts_only_for_its_own_sample(tiny: Task, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", {})
    train_member(tiny, "finalist0", SAMPLE, 1, 0, folder, Silent())
    other = {"width": 8, "block": "skip"}
    model, val, _ = train_member(tiny, "finalist0", other, 1, 0, folder, Silent())
    assert model.head.in_features == 8
    assert folder.load("trained/finalist0.json")["sample"] == other
    assert folder.load("trained/finalist0.json")["val_accuracy"] == val
