"""Regret of the search strategies on digits-NB, under three latency budgets.

    python benchmarks/digits_nb/search.py [--seeds 0 1 ...] [--journal build/digits_nb] [--out FILE]

Each strategy searches under each budget, on training and validation data. What it returns is looked up in the table:
its regret is the best mean test accuracy of any member within the budget, less that of the member that was chosen.
Beside it stand random search, which trains as many random members within the budget from scratch as fit into the
processor time of the search, and a random member within the budget.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ground_truth import TABLE, Array, GroundTruth
from journal import Journal
from space import DigitsBench, members, name_of, sample_of
from supernet import SINGLE_PATH, WEIGHT_DECAY, data_of, evaluator, single_path_journal, single_path_scores

from hwnas.atomic import write_text
from hwnas.space import Sample
from hwnas.strategies import DARTS, ENAS, GumbelDARTS, OneShotStrategy, Proxyless

ROOT = Path(__file__).parents[2]
OUT = ROOT / "benchmarks" / "results" / "digits_nb_search.json"
REPETITIONS = 200  # of random search, for each search

# Epochs have 11 steps. The architecture makes hundreds of steps here where it makes tens of thousands on larger data,
# so its learning rate is larger than the defaults by as much.
SETTINGS: dict[str, dict[str, Any]] = {
    "RandomOneShot": {"sampling": "fair", **SINGLE_PATH["fair"]},
    "ENAS": {"epochs": 200, "learning_rate": 0.3, "warmup_epochs": 150, "updates_per_epoch": 2},
    "DARTS": {"epochs": 15, "learning_rate": 0.1, "warmup_epochs": 3, "arc_learning_rate": 0.03},
    "GumbelDARTS": {"epochs": 15, "learning_rate": 0.1, "warmup_epochs": 3, "arc_learning_rate": 0.03},
    "DARTS, budget afterwards": {"epochs": 15, "learning_rate": 0.1, "warmup_epochs": 3, "arc_learning_rate": 0.03},
    "Proxyless": {"epochs": 150, "learning_rate": 0.3, "warmup_epochs": 120, "arc_learning_rate": 0.03},
}
BUDGETED: dict[str, Callable[..., OneShotStrategy]] = {
    "ENAS": ENAS,
    "DARTS": DARTS,
    "GumbelDARTS": GumbelDARTS,
    "Proxyless": Proxyless,
}


def search_under(name: str, seed: int, budget_ms: float, truth: GroundTruth) -> Sample:
    """Search under one budget and return the best member."""
    settings = dict(SETTINGS[name])
    epochs, learning_rate = settings.pop("epochs"), settings.pop("learning_rate")
    strategy = BUDGETED[name](budget={"latency_ms": budget_ms}, profilers=truth.profiler(), seed=seed, **settings)
    strategy.run(DigitsBench(), evaluator(data_of(seed), epochs, learning_rate))
    return strategy.best_sample()


def search_without(seed: int, truth: GroundTruth) -> dict[str, Sample]:
    """Search with DARTS and no budget, and return the most probable member within each budget."""
    settings = dict(SETTINGS["DARTS, budget afterwards"])
    epochs, learning_rate = settings.pop("epochs"), settings.pop("learning_rate")
    strategy = DARTS(seed=seed, **settings)
    strategy.run(DigitsBench(), evaluator(data_of(seed), epochs, learning_rate))
    ranked = list(strategy.ranked_samples())
    return {
        quantile: next(sample for sample in ranked if truth.latency[truth.row(sample)] <= budget)
        for quantile, budget in truth.budgets().items()
    }


def best_within(scores: Array, budget_ms: float, truth: GroundTruth) -> Sample:
    """Return the member with the best score within a budget, the faster one of equals."""
    order = np.lexsort((truth.latency, -scores))
    return members()[next(row for row in order if truth.latency[row] <= budget_ms)]


def run_searches(
    journal: Journal, supernets: Journal, seeds: Sequence[int], strategies: Sequence[str], truth: GroundTruth
) -> None:
    """Run what is missing, seed by seed; one line of the journal is one search."""
    done = {(line["strategy"], line["seed"], line["budget"]) for line in journal}

    def record(strategy: str, seed: int, budget: str, sample: Sample, seconds: float) -> None:
        line = {"strategy": strategy, "seed": seed, "budget": budget, "member": name_of(sample)}
        journal.add({**line, "seconds": round(seconds, 2)})
        print(f"seed {seed} {strategy:<26} {budget:>4} {name_of(sample):<44} {seconds:6.1f} s", flush=True)

    for seed in seeds:
        for strategy in strategies:
            missing = {q: limit for q, limit in truth.budgets().items() if (strategy, seed, q) not in done}
            if not missing:
                continue
            started = time.process_time()
            if strategy == "RandomOneShot":
                # What a member scores does not depend on the budget: one super-net and one scoring serve all.
                found = single_path_scores(supernets, SETTINGS[strategy]["sampling"], seed)
                for quantile, limit in missing.items():
                    sample = best_within(np.array(found["own_statistics"]), limit, truth)
                    record(strategy, seed, quantile, sample, found["train_s"] + found["score_s"])
            elif strategy in BUDGETED:
                for quantile, limit in missing.items():
                    started = time.process_time()
                    sample = search_under(strategy, seed, limit, truth)
                    record(strategy, seed, quantile, sample, time.process_time() - started)
            else:
                samples = search_without(seed, truth)
                seconds = time.process_time() - started
                for quantile in missing:
                    record(strategy, seed, quantile, samples[quantile], seconds)


class Regret:
    """Regrets under one budget.

    Parameters
    ----------
    truth : GroundTruth
        The table.
    budget_ms : float
        The budget.
    """

    def __init__(self, truth: GroundTruth, budget_ms: float) -> None:
        self.truth = truth
        self.feasible = np.flatnonzero(truth.latency <= budget_ms)
        self.of = truth.test.mean(1)[self.feasible].max() - truth.test.mean(1)

    def random_search(self, seconds: float, rng: np.random.Generator) -> tuple[int, float]:
        """Train random members for so long, take the best on validation; return how many, and the regret.

        The last one may end late: it is trained if it begins in time. Training and validation are looked up, those of
        one training seed.
        """
        order = rng.permutation(self.feasible)
        seed = int(rng.integers(self.truth.val.shape[1]))
        began = np.cumsum(self.truth.seconds[order]) - self.truth.seconds[order]
        trained = order[began < seconds]
        return len(trained), float(self.of[trained[np.argmax(self.truth.val[trained, seed])]])


def spread(regrets: Any) -> dict[str, float]:
    """Return median and 90th percentile, in percent points of accuracy."""
    percent = 100 * np.asarray(regrets)
    return {"median": round(float(np.median(percent)), 2), "p90": round(float(np.quantile(percent, 0.9)), 2)}


def summarise(journal: Journal, truth: GroundTruth) -> list[dict[str, Any]]:
    """Return a row for each strategy and budget."""
    rows = []
    rng = np.random.default_rng(0)
    for strategy in SETTINGS:
        for quantile, budget in truth.budgets().items():
            regret = Regret(truth, budget)
            lines = [line for line in journal if (line["strategy"], line["budget"]) == (strategy, quantile)]
            if not lines:
                continue
            chosen = [truth.row(sample_of(line["member"])) for line in lines]
            beside = [regret.random_search(line["seconds"], rng) for line in lines for _ in range(REPETITIONS)]
            rows.append(
                {
                    "strategy": strategy,
                    "budget": quantile,
                    "searches": len(lines),
                    "seconds": round(float(np.median([line["seconds"] for line in lines])), 1),
                    "within_budget": int(sum(truth.latency[row] <= budget for row in chosen)),
                    "regret": spread(regret.of[chosen]),
                    "random_search": spread([found for _, found in beside]),
                    "random_search_members": float(np.median([count for count, _ in beside])),
                    "members": [line["member"] for line in lines],
                }
            )
    return rows


def references(truth: GroundTruth) -> list[dict[str, Any]]:
    """Return for each budget what needs no search: a random member, and the best on validation."""
    rows = []
    mean_val: Array = truth.val.mean(1)
    for quantile, budget in truth.budgets().items():
        regret = Regret(truth, budget)
        best = regret.feasible[np.argmax(mean_val[regret.feasible])]
        rows.append(
            {
                "budget": quantile,
                "budget_ms": round(budget, 4),
                "feasible": len(regret.feasible),
                "best_mean_test_accuracy": round(float(truth.test.mean(1)[regret.feasible].max()), 4),
                "random_member": spread(regret.of[regret.feasible]),
                "best_mean_validation": round(100 * float(regret.of[best]), 2),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(10)), help="none: only sum up")
    parser.add_argument("--strategies", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "digits_nb")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    truth = GroundTruth.load(arguments.table)
    settings = {
        "weight_decay": WEIGHT_DECAY,
        "strategies": SETTINGS,
        "budgets_ms": truth.budgets(),
    }
    journal = Journal(arguments.journal / "search.jsonl", settings)
    supernets = single_path_journal(arguments.journal)
    run_searches(journal, supernets, arguments.seeds, arguments.strategies, truth)
    record = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "settings": settings,
        "repetitions_of_random_search": REPETITIONS,
        "references": references(truth),
        "strategies": summarise(journal, truth),
    }
    write_text(arguments.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
