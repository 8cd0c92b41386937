"""`Task`: what is searched, on which data."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from hwnas.errors import HwnasError
from hwnas.evaluators import DataSplit, digits
from hwnas.hub import DigitsSpace
from hwnas.nn import ModelSpace


class TaskError(HwnasError):
    """A task cannot be made: the space is unknown, its file fails, or it does not fit the data."""


@dataclass(frozen=True)
class Task:
    """A model space and the data on which its members are trained.

    Parameters
    ----------
    name : str
        As it was asked for.
    make_space : callable
        Gives a new space; called again wherever a fresh one is needed.
    data : DataSplit
        Training, validation and test data.
    """

    name: str
    make_space: Callable[[], ModelSpace]
    data: DataSplit

    def example(self, batch_size: int) -> Tensor:
        """Return the first images of the training data, as many as are classified at once."""
        images = self.data.train.tensors[0]
        repeats = -(-batch_size // len(images))
        return images.repeat(repeats, *[1] * (images.dim() - 1))[:batch_size]


BUILT_IN: dict[str, type[ModelSpace]] = {"digits": DigitsSpace}


def load_task(name: str, seed: int = 0) -> Task:
    """Make a task by name.

    Parameters
    ----------
    name : str
        A built-in name, or ``path/to/file.py:ClassName``. Such a file may define ``data(seed)``, which returns a
        `hwnas.evaluators.DataSplit`; without it the members are trained on the built-in digits.
    seed : int, default 0
        Of the split of the data.

    Returns
    -------
    Task
        Checked: the default member runs on the data.

    Raises
    ------
    TaskError
        When the name is unknown, or the file fails or does not fit; the message says where.
    """
    if name in BUILT_IN:
        return Task(name, BUILT_IN[name], digits(seed=seed))
    file, separator, class_name = name.rpartition(":")
    if not separator or not file.endswith(".py"):
        raise unknown_space(name, tuple(BUILT_IN))
    path = Path(file)
    module = _import_file(path)
    space_class = getattr(module, class_name, None)
    if not (inspect.isclass(space_class) and issubclass(space_class, ModelSpace)):
        found = [key for key, value in vars(module).items() if _is_space(value)]
        raise TaskError(
            f"{path} has no ModelSpace named {class_name!r}; it has {', '.join(found) or 'none'}. "
            "Derive the class from hwnas.nn.ModelSpace"
        )
    make_data = getattr(module, "data", digits)
    try:
        data = make_data(seed=seed)
    except Exception as error:
        raise TaskError(f"{path}: data(seed={seed}) failed with {_told(error, path)}") from error
    if not isinstance(data, DataSplit):
        raise TaskError(
            f"{path}: data(seed={seed}) returned a {type(data).__name__}; expected a hwnas.evaluators.DataSplit"
        )
    task = Task(name, space_class, data)
    _check(task, path, digits=make_data is digits)
    return task


def unknown_space(name: str, known: Sequence[str]) -> TaskError:
    """Return the error for a name that stands for no space, with what may have been meant.

    Parameters
    ----------
    name : str
        As it was given.
    known : sequence of str
        The names that stand for a space.
    """
    if name.endswith(".py"):
        return TaskError(f"{name} is a file; give the class of the space in it too: {name}:ClassName")
    lowered = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    meant = f". Did you mean {lowered[near[0]]}?" if near else ""
    return TaskError(
        f"unknown space {name!r}; built in: {', '.join(known)}. For a space of your own write "
        f"path/to/file.py:ClassName{meant}"
    )


def _is_space(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, ModelSpace) and value is not ModelSpace


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TaskError(f"there is no file {path}; a space is given as path/to/file.py:ClassName")
    name = f"hwnas_space_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise TaskError(f"{path} cannot be loaded as a Python module")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and the like look their module up
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise TaskError(f"{path} failed with {_told(error, path)}") from error
    return module


def _told(error: Exception, path: Path) -> str:
    """Describe an error with the last line of the user's file that it came through."""
    file = os.path.abspath(path)  # as the import system writes it
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    # The message of a syntax error has its line already.
    line = f"line {lines[-1]}: " if lines and not isinstance(error, SyntaxError) else ""
    return f"{type(error).__name__}: {line}{error}"


def _check(task: Task, path: Path, *, digits: bool) -> None:
    """Run the default member once on real data, which may be the built-in digits."""
    try:
        space = task.make_space()
    except Exception as error:
        raise TaskError(f"{task.name} cannot be built: {_told(error, path)}") from error
    images = task.example(2)
    hint = f". These are the built-in digits; for other data define data(seed) in {path}" if digits else ""
    try:
        with torch.no_grad():
            scores = space.freeze(space.robust_default()).eval()(images)
    except Exception as error:
        raise TaskError(
            f"{task.name}: the default member fails on data of shape {tuple(images.shape)}: {_told(error, path)}{hint}"
        ) from error
    classes = int(task.data.train.tensors[1].max()) + 1
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != 2 or scores.shape[1] < classes:
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise TaskError(
            f"{task.name}: the default member returns {shape}; expected scores of shape (2, {classes}){hint}"
        )
