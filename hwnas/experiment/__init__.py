"""A search from start to end: run, stop, resume, result."""

from hwnas.experiment.narrator import Narrator, Silent
from hwnas.experiment.nas_experiment import NasExperiment
from hwnas.experiment.result import ModelRow, SearchResult
from hwnas.experiment.run_folder import RunFolder, RunFolderError
from hwnas.experiment.search import run_search
from hwnas.experiment.settings import STRATEGIES, SearchSettings
from hwnas.experiment.task import BUILT_IN, Task, TaskError, load_task

__all__ = [
    "BUILT_IN",
    "STRATEGIES",
    "ModelRow",
    "Narrator",
    "NasExperiment",
    "RunFolder",
    "RunFolderError",
    "SearchResult",
    "SearchSettings",
    "Silent",
    "Task",
    "TaskError",
    "load_task",
    "run_search",
]
