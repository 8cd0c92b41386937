"""A search under a latency budget, from the model space to the verified ONNX file."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from hwnas.errors import BudgetError, HwnasError
from hwnas.experiment.checkpoints import WholeCheckpoints, existing_checkpoint
from hwnas.experiment.latency_table import is_table, latency_table
from hwnas.experiment.narrator import Narrator, Silent
from hwnas.experiment.result import ModelRow, SearchResult
from hwnas.experiment.run_folder import RunFolder
from hwnas.experiment.settings import SearchSettings
from hwnas.experiment.task import Task
from hwnas.experiment.training import EpochProgress, fresh_space, make_evaluator, train_member
from hwnas.export import export_many, write_bundle
from hwnas.profilers import (
    FlopsProfiler,
    LatencyStore,
    Measurement,
    NumParamsProfiler,
    OnnxRuntimeLatencyProfiler,
    OrtTarget,
    TableProfiler,
    Workload,
    measure,
)
from hwnas.profilers.precision import in_precision
from hwnas.space import Sample, sample_from_json, sample_to_json
from hwnas.strategies import (
    DARTS,
    ENAS,
    Budget,
    GumbelDARTS,
    OneShotStrategy,
    Proxyless,
    RandomOneShot,
    SubnetSearch,
)
from hwnas.strategies.budget import TO_SPARE
from hwnas.strategies.feasible import FeasibleSampler
from hwnas.strategies.scored import ScoredOneShot

# Training batches from which the statistics of a member are estimated before it is scored.
RECALIBRATION_BATCHES = 6
# A search takes hundreds of steps, not the tens of thousands for which the published rates are meant.
ARC_LEARNING_RATE = 3e-3
RANDOM_BASELINE_SEED = 77_000

_Latency = OnnxRuntimeLatencyProfiler | TableProfiler


def run_search(
    task: Task,
    settings: SearchSettings,
    folder: str | Path,
    *,
    store: str | Path | None = None,
    latency_from: str | Path | None = None,
    resume: bool = False,
    narrator: Narrator | None = None,
) -> SearchResult:
    """Find the most accurate member of a space that meets a latency budget, and export it.

    The stages: measure the parts of the space; train a super-net on members within the budget; score members on it by
    validation accuracy; measure the best ones as a whole, train those that meet the budget from scratch, and choose by
    validation accuracy; train beside them, alike, a random member within the same budget, the fastest and the largest
    member; export, verify, measure again.

    Parameters
    ----------
    task : Task
        The space and the data.
    settings : SearchSettings
        The budget and everything else that decides the outcome.
    folder : path-like
        The run folder. A stopped run goes on from there.
    store : path-like, optional
        The latency store, shared by runs; in memory unless given.
    latency_from : path-like, optional
        Latencies of another device: a folder of `hwnas.profilers.prepare_folder`, made with the same space, batch size
        and seed, that came back from the device with its results, or a CSV or YAML file of `latency_ms`, see
        `hwnas.profilers.TableProfiler`. The budget is then that of the device, and nothing is measured: what is chosen
        meets the budget as predicted. A table knows no error, so its figures count as they are.
    resume : bool, default False
        Whether to go on with the run in `folder`.
    narrator : Narrator, optional
        Told what happens.

    Returns
    -------
    SearchResult
        Also written to ``result.json`` in the run folder; the model is in ``model/``.

    Raises
    ------
    HwnasError
        When the results of another device are not those of the settings, or a table is wrong; nothing is written then.
    BudgetError
        When no member meets the budget. The message names the minimum and what blocks it.
    RunFolderError, StoreError, TrainingError, VerificationError
        When a stage fails. What was finished before is kept.
    """
    described = {"task": task.name, **settings.to_dict()}
    if latency_from is not None:
        described["latency_from"] = str(latency_from)
    table = None
    if latency_from is not None and is_table(Path(latency_from)):
        table = latency_table(fresh_space(task, settings.seed), Path(latency_from))
        # A run does not go on with other figures than it began with.
        described["latency_table"] = hashlib.sha256(Path(latency_from).read_bytes()).hexdigest()
    run = _Run(task, settings, RunFolder(folder, described, resume=resume), narrator, latency_from, table)
    with LatencyStore(store) as opened, torch_threads(settings.train_threads):
        return run.search(opened)


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Let PyTorch use `n` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    def __init__(
        self,
        task: Task,
        settings: SearchSettings,
        folder: RunFolder,
        narrator: Narrator | None,
        latency_from: str | Path | None = None,
        table: TableProfiler | None = None,
    ) -> None:
        self.task, self.settings, self.folder = task, settings, folder
        self.latency_from, self.table = latency_from, table
        self.narrator: Narrator = Silent() if narrator is None else narrator
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        self.narrator.stage(title)
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 2)

    def search(self, store: LatencyStore) -> SearchResult:
        settings, example = self.settings, self.task.example(self.settings.batch_size)
        space = fresh_space(self.task, settings.seed)
        with self.stage("profile", "measure the parts of the space"):
            profiler = self.table or self._measuring_profiler(space, example, store)
            budget = self._budget(profiler)
        with self.stage("supernet", f"train the super-net on members within {budget.bounds['latency_ms']:.3g} ms"):
            strategy = self._train_supernet(space, budget)
        with self.stage("search", "search on the super-net"):
            ranked = self._rank(strategy, profiler)
        with self.stage("choose", "measure and train the best members as a whole"):
            finalists = self._finalists(ranked, profiler)
            tried = [self._train(f"finalist{rank}", sample) for rank, sample in enumerate(finalists)]
            # The first of the best by validation accuracy; test data has no say.
            best = max(range(len(tried)), key=lambda rank: (tried[rank][1], -rank))
            chosen = finalists[best]
        samples = {"chosen": chosen, **self._baselines(profiler, budget)}
        with self.stage("train", "train what the choice is compared with"):
            trained = {"chosen": tried[best]}
            trained.update({name: self._train(name, samples[name]) for name in samples if name != "chosen"})
        with self.stage("export", "export, verify, measure again"):
            models = {name: model for name, (model, _, _) in trained.items()}
            metadata = {
                "task": self.task.name,
                "settings": settings.to_dict(),
                "val_accuracy": trained["chosen"][1],
                "test_accuracy": trained["chosen"][2],
                "predicted_latency_ms": profiler.profile(chosen),
                **self._origin(profiler),
            }
            bundle = write_bundle(
                self.folder.path / "model",
                models["chosen"],
                sample_to_json(chosen),
                example,
                metadata=metadata,
                verify_inputs=self._test_batches(),
            )
            measured = self._measure_models(models, bundle.onnx_path.read_bytes(), profiler)
        flops, parameters = self._counts()
        rows = tuple(
            ModelRow(
                name=name,
                sample=sample,
                val_accuracy=trained[name][1],
                test_accuracy=trained[name][2],
                predicted_ms=profiler.profile(sample),
                predicted_stderr_ms=None if isinstance(profiler, TableProfiler) else profiler.stderr(sample),
                measured_ms=measured[name].latency_ms if name in measured else None,
                measured_stderr_ms=measured[name].stderr_ms if name in measured else None,
                macs=flops.profile(sample),
                parameters=int(parameters.profile(sample)),
            )
            for name, sample in samples.items()
        )
        result = SearchResult(
            task=self.task.name,
            settings=settings.to_dict(),
            rows=rows,
            latency={}
            if isinstance(profiler, TableProfiler)
            else {"overhead_ms": profiler.overhead_ms, "relative_residual": profiler.relative_residual},
            verification=bundle.description["verification"],
            folder=str(self.folder.path),
            seconds=self.seconds,
        )
        self.folder.save("result.json", result.to_dict())
        return result

    def _measuring_profiler(self, space: Any, example: torch.Tensor, store: LatencyStore) -> OnnxRuntimeLatencyProfiler:
        """Return the profiler of this device, or of the one that a folder came back from."""
        settings = self.settings
        target = OrtTarget(intra_op_threads=settings.threads, precision=settings.precision)
        profiler = OnnxRuntimeLatencyProfiler(
            space,
            example,
            target if self.latency_from is None else None,
            store=store,
            budget_s=settings.profile_s,
            seed=settings.seed,
            results=self.latency_from,
            progress=self.narrator.progress,
        )
        self._check_target(profiler.target)
        if profiler.contended:
            self.narrator.say(profiler.advice)
        return profiler

    def _origin(self, profiler: _Latency) -> dict[str, Any]:
        """Return what latencies are those of, for the description of the exported model."""
        if isinstance(profiler, TableProfiler):
            return {"latency_from": Path(str(self.latency_from)).name}
        return {"device": profiler.device.to_dict(), "target": profiler.target.to_dict()}

    def _check_target(self, target: OrtTarget) -> None:
        for name, given, found in (
            ("threads", self.settings.threads, target.intra_op_threads),
            ("precision", self.settings.precision, target.precision),
        ):
            if given != found:
                raise HwnasError(
                    f"{self.latency_from} was measured with {name} {found}, and the search is for {name} {given}. Give "
                    f"--{name} {found}, or prepare and run the folder with --{name} {given}"
                )

    def _budget(self, profiler: _Latency) -> Budget:
        """Return the budget that members are looked at within; raise when none meets that of the settings."""
        settings = self.settings
        low, high = profiler.cost_model.minimum().cost, profiler.cost_model.maximum().cost
        if isinstance(profiler, TableProfiler):
            others = sorted(set(self.task.make_space().simplify()) - set(profiler.labels))
            told = f"; it does not name {', '.join(others)}, which cost nothing then" if others else ""
            self.narrator.say(f"by {self.latency_from} members take from {low:.3f} to {high:.3f} ms{told}")
            budget = Budget({"latency_ms": settings.max_latency_ms}, profiler)
            _ = budget.ranges  # raises when there is no member
            return budget
        self.narrator.say(
            f"members take from {low:.3f} to {high:.3f} ms; whole members agree with their prediction within "
            f"{100 * profiler.relative_residual:.1f} % (standard deviation of {len(profiler.anchors)})"
        )
        budget = Budget(
            {"latency_ms": settings.max_latency_ms * (1 - TO_SPARE)}, profiler, confidence=settings.confidence
        )
        with suppress(BudgetError):
            self.narrator.say(
                f"{budget.bounds['latency_ms']:.3f} ms as predicted are within the budget of "
                f"{settings.max_latency_ms:g} ms with a probability of {100 * settings.confidence:g} %"
            )
            return budget
        # So near the minimum there is nothing to spare.
        budget = Budget({"latency_ms": settings.max_latency_ms}, profiler)
        limit = budget.bounds["latency_ms"]  # raises when there is no member
        self.narrator.say(
            f"no member is within the budget with a probability of {100 * settings.confidence:g} %; those that are "
            f"predicted to take at most {limit:.3f} ms are looked at"
        )
        return budget

    def _train_supernet(self, space: Any, budget: Budget) -> OneShotStrategy:
        settings = self.settings
        strategy = self._strategy(budget)
        checkpoints = self.folder.path / "supernet"
        last = checkpoints / "last.ckpt"
        # Without a metric to watch the one that is kept is the latest: one file, replaced after every epoch.
        keep = ModelCheckpoint(dirpath=checkpoints, filename="last", save_top_k=1, enable_version_counter=False)
        evaluator = make_evaluator(
            self.task, settings.supernet_epochs, settings.seed, validate=False, plugins=[WholeCheckpoints()]
        )
        strategy.run(
            space,
            evaluator,
            callbacks=[keep, EpochProgress(self.narrator, "super-net")],
            ckpt_path=existing_checkpoint(last),
        )
        return strategy

    def _strategy(self, budget: Budget) -> OneShotStrategy:
        settings = self.settings

        def scored(_: object, done: int, total: int) -> None:
            self.narrator.progress("score", done, total)

        differentiable = {"darts": DARTS, "gumbel": GumbelDARTS}
        if settings.strategy in differentiable:
            return differentiable[settings.strategy](ARC_LEARNING_RATE, budget=budget, seed=settings.seed)
        if settings.strategy == "proxyless":
            proxyless = Proxyless(
                ARC_LEARNING_RATE,
                budget=budget,
                candidates=settings.evaluations,
                max_recalibration_batches=RECALIBRATION_BATCHES,
                seed=settings.seed,
            )
            proxyless.search.on_evaluation = scored
            return proxyless
        if settings.strategy == "enas":
            enas = ENAS(
                budget=budget,
                candidates=settings.evaluations,
                max_recalibration_batches=RECALIBRATION_BATCHES,
                seed=settings.seed,
            )
            enas.search.on_evaluation = scored
            return enas
        search = SubnetSearch(
            evaluations=settings.evaluations,
            max_recalibration_batches=RECALIBRATION_BATCHES,
            seed=settings.seed,
            on_evaluation=scored,
        )
        return RandomOneShot(budget=budget, search=search, seed=settings.seed)

    def _rank(self, strategy: OneShotStrategy, profiler: _Latency) -> list[Sample]:
        """Return members that are predicted within the limit, the most promising first."""
        if self.folder.has("ranking.json"):
            space = strategy.supernet
            return [sample_from_json(entry["sample"], space) for entry in self.folder.load("ranking.json")]
        scored: list[tuple[Sample, float | None]]
        if isinstance(strategy, ScoredOneShot):
            scored = [(member.sample, member.score) for member in strategy.ranking()]
        else:
            ranked = itertools.islice(strategy.ranked_samples(), self.settings.evaluations)
            scored = [(sample, None) for sample in ranked]
        self.folder.save(
            "ranking.json",
            [
                {"sample": sample_to_json(sample), "score": score, "predicted_ms": profiler.profile(sample)}
                for sample, score in scored
            ],
        )
        return [sample for sample, _ in scored]

    def _finalists(self, ranked: list[Sample], profiler: _Latency) -> list[Sample]:
        """Return the first members of the ranking that meet the budget when they are measured as a whole."""

        def told(passed: int, total: int) -> None:
            self.narrator.say(f"{passed} of {total} best-scored members are measured within the budget")

        size = self.settings.finalists
        budget = Budget({"latency_ms": self.settings.max_latency_ms}, profiler)
        return list(itertools.islice(budget.measured(ranked, group=size, on_group=told), size))

    def _baselines(self, profiler: _Latency, budget: Budget) -> dict[str, Sample]:
        """Return what the choice is compared with."""
        model = profiler.cost_model
        seed = RANDOM_BASELINE_SEED + self.settings.seed
        return {
            "random": FeasibleSampler(self.task.make_space(), budget.ranges, seed=seed).sample(0),
            "fastest": model.minimum().sample,
            "largest": model.maximum().sample,
        }

    def _train(self, name: str, sample: Sample) -> tuple[nn.Module, float, float]:
        settings = self.settings
        return train_member(self.task, name, sample, settings.train_epochs, settings.seed, self.folder, self.narrator)

    def _test_batches(self) -> list[tuple[torch.Tensor, ...]]:
        """Return test images in batches of the exported size; the last ones that do not fill a batch are left out."""
        images, size = self.task.data.test.tensors[0], self.settings.batch_size
        if len(images) < size:
            return [(self.task.example(size),)]
        return [(images[start : start + size],) for start in range(0, len(images) - size + 1, size)]

    def _measure_models(
        self, models: dict[str, nn.Module], exported: bytes, profiler: _Latency
    ) -> dict[str, Measurement]:
        """Measure the exported file and the other models, interleaved, anew; nothing is known of another device."""
        if isinstance(profiler, TableProfiler) or not profiler.measures_here:
            return {}
        example = self.task.example(self.settings.batch_size)
        others = [name for name in models if name != "chosen"]
        graphs = export_many([models[name] for name in others], [(example,)] * len(others))
        workloads = [
            Workload(name, in_precision(graph, profiler.target))
            for name, graph in zip(["chosen", *others], [exported, *graphs], strict=True)
        ]
        result = measure(
            workloads,
            profiler.target,
            budget_s=min(self.settings.profile_s, 20.0),
            min_visits=20,
            floor_ms=profiler.store.canary_floor_ms(profiler.device.key, profiler.target.key),
            seed=self.settings.seed,
        )
        return dict(result.measurements)

    def _counts(self) -> tuple[FlopsProfiler, NumParamsProfiler]:
        space, example = (
            fresh_space(self.task, self.settings.seed),
            self.task.example(self.settings.batch_size),
        )
        return FlopsProfiler(space, example), NumParamsProfiler(space, example)
