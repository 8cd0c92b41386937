"""Tasks are made from names and files, and whatever is wrong is told with the place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hwnas.experiment import BUILT_IN, TaskError, load_task

SPACE = """
import hwnas.nn as nn

class Net(nn.ModelSpace):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, nn.ValueChoice({widths}, label="width"))

    def forward(self, x):
        return {result}
"""
SCORES = "self.head(x.flatten(1))"


@pytest.fixture
def write(tmp_path: Path):
    def make(text: str) -> str:
        (tmp_path / "net.py").write_text(text)
        return f"{tmp_path}/net.py:Net"

    return make


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_built_in(name: str) -> None:
    task = load_task(name, seed=1)
    assert task.name == name
    assert isinstance(task.make_space(), BUILT_IN[name])
    assert task.make_space() is not task.make_space()


def test_a_file_without_data_is_trained_on_the_digits(write) -> None:
    name = write(SPACE.format(widths=[10, 11], result=SCORES))
    one, other = load_task(name, seed=1), load_task(name, seed=2)
    assert one.name == name
    assert one.make_space().size() == 2
    digits = load_task("digits", seed=1)
    assert torch.equal(one.data.test.tensors[0], digits.data.test.tensors[0])
    assert not torch.equal(one.data.test.tensors[0], other.data.test.tensors[0])


def test_data_of_the_file_is_used_with_the_seed(spaces: Path) -> None:
    task = load_task(f"{spaces}:Tiny", seed=5)
    assert task.data.seed == 5
    assert [len(part) for part in (task.data.train, task.data.val, task.data.test)] == [96, 64, 40]


@pytest.mark.parametrize("size", [1, 3, 96, 200])
def test_the_example_has_the_size_that_is_asked_for(tiny, size: int) -> None:
    images = tiny.data.train.tensors[0]
    example = tiny.example(size)
    assert example.shape == (size, 1, 8, 8)
    assert torch.equal(example[-1], images[(size - 1) % 96])


@pytest.mark.parametrize("name", ["mnist", "Digits", "net:Net", ""])
def test_an_unknown_name_is_told_with_what_there_is(name: str) -> None:
    with pytest.raises(TaskError, match=r"unknown space .*digits.*path/to/file\.py:ClassName"):
        load_task(name)


def test_what_may_have_been_meant() -> None:
    with pytest.raises(TaskError, match=r"Did you mean digits\?$"):
        load_task("Digit")
    with pytest.raises(TaskError, match=r"file\.py:ClassName$"):
        load_task("mnist")
    with pytest.raises(TaskError, match=r"nets/net\.py is a file; give the class .*: nets/net\.py:ClassName$"):
        load_task("nets/net.py")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(TaskError, match=r"no file nowhere/net\.py"):
        load_task("nowhere/net.py:Net")


def test_a_syntax_error_is_told_with_file_and_line(write) -> None:
    with pytest.raises(TaskError, match=r"SyntaxError.*net\.py, line 3"):
        load_task(write("x = 1\n\nclass (:\n"))


@pytest.mark.parametrize("relative", [False, True])
def test_an_error_in_the_file_is_told_with_file_and_line(
    write, relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write("def broken():\n    return 1 / 0\n\n\nbroken()\n")
    if relative:
        monkeypatch.chdir(tmp_path)
        name = "net.py:Net"
    with pytest.raises(TaskError, match=r"net\.py failed with ZeroDivisionError: line 2: division by zero"):
        load_task(name)


def test_the_line_is_the_users_even_if_the_error_comes_from_elsewhere(write) -> None:
    with pytest.raises(TaskError, match=r"net\.py failed with JSONDecodeError: line 2: "):
        load_task(write("import json\njson.loads('{')\n"))


def test_the_spaces_of_a_file_are_told(write) -> None:
    name = write(SPACE.format(widths=[10], result=SCORES) + "\nclass Plain:\n    pass\n")
    for missing in ("Ned", "Plain", "nn"):
        with pytest.raises(TaskError, match=rf"net\.py has no ModelSpace named '{missing}'; it has Net\. "):
            load_task(name.replace(":Net", f":{missing}"))
    with pytest.raises(TaskError, match="it has none"):
        load_task(write("x = 1\n"))


@pytest.mark.parametrize(
    ("widths", "result", "told"),
    [
        ([3, 4], SCORES, r"\(2, 3\); expected scores of shape \(2, 10\)"),
        ([10], "self.head(x.flatten(1)).unsqueeze(0)", r"\(1, 2, 10\); expected"),
        ([10], "self.head(x.flatten(1))[:1]", r"\(1, 10\); expected"),
        ([10], "[self.head(x.flatten(1))]", r"list; expected"),
        ([10], "self.head(x)", r"fails on data of shape \(2, 1, 8, 8\): RuntimeError: line 10: "),
    ],
)
def test_a_member_that_does_not_fit_the_data_is_told(write, widths: list[int], result: str, told: str) -> None:
    with pytest.raises(TaskError, match=told):
        load_task(write(SPACE.format(widths=widths, result=result)))


def test_a_file_without_data_is_told_what_its_members_were_run_on(write) -> None:
    text = SPACE.format(widths=[3], result=SCORES)
    told = r"; expected scores of shape \(2, 10\)"
    with pytest.raises(TaskError, match=told + r"\. These are the built-in digits; .* data\(seed\) in .*net\.py$"):
        load_task(write(text))
    own = "\nfrom hwnas.evaluators import digits\n\ndef data(seed):\n    return digits(seed=seed)\n"
    with pytest.raises(TaskError, match=told + "$"):
        load_task(write(text + own))


def test_a_space_that_cannot_be_built_is_told(write) -> None:
    text = SPACE.format(widths=[10], result=SCORES).replace("super().__init__()", "super().__init__(); self.missing")
    with pytest.raises(TaskError, match=r"cannot be built: AttributeError: line 6: .*missing"):
        load_task(write(text))


def test_data_that_fails_is_told(write) -> None:
    text = SPACE.format(widths=[10], result=SCORES)
    with pytest.raises(TaskError, match=r"net\.py: data\(seed=4\) failed with OSError: line 13: no disk"):
        load_task(write(text + "\ndef data(seed):\n    raise OSError('no disk')\n"), seed=4)
    with pytest.raises(TaskError, match=r"net\.py: data\(seed=0\) returned a tuple; expected .*DataSplit"):
        load_task(write(text + "\ndef data(seed):\n    return 1, 2\n"))
