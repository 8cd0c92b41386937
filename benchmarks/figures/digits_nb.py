"""The table of digits-NB, and what its searches and rankings recorded."""

from __future__ import annotations

import json
from typing import Any

from ground_truth import TABLE, GroundTruth

RESULTS = TABLE.parent


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a table; the first column is text, the others are figures."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def of_the_table(truth: GroundTruth) -> str:
    """Return what the table says as a whole."""
    found = truth.summary()

    def shown(value: Any) -> str:
        return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

    names = {
        "members": "members",
        "val_accuracy_range": "validation accuracy of a training, lowest and highest",
        "mean_test_accuracy_range": "mean test accuracy of a member, lowest and highest",
        "latency_ms_range": "latency in ms, lowest and highest",
        "tau_val_between_seeds": "Kendall tau of validation accuracy between training seeds",
        "tau_test_between_seeds": "Kendall tau of test accuracy between training seeds",
        "tau_mean_val_mean_test": "Kendall tau of mean validation and mean test accuracy",
        "tau_mean_test_latency": "Kendall tau of mean test accuracy and latency",
        "tau_latency_between_repeats": "Kendall tau of latency between two repeats: lowest, median, highest",
        "tau_latency_between_halves": "Kendall tau of latency between two halves of the repeats",
        "latency_scatter": "standard deviation of a repeat over the latency: median and 90th percentile of members",
        "train_s_median": "processor seconds of one training, median",
    }
    return markdown(["the table", "value"], [[name, shown(found[key])] for key, name in names.items()])


def of_the_searches(record: dict[str, Any]) -> str:
    """Return the regrets."""

    def pair(value: dict[str, float]) -> str:
        return f"{value['median']:.2f} / {value['p90']:.2f}"

    rows = []
    for reference in record["references"]:
        budget = reference["budget"]
        name = f"{budget} ({reference['budget_ms']:.3f} ms)"
        for row in record["strategies"]:
            if row["budget"] == budget:
                members = f"{row['random_search_members']:.0f}"
                regrets = [pair(row["regret"]), pair(row["random_search"]), members]
                rows.append([name, row["strategy"], str(row["searches"]), f"{row['seconds']:.0f}", *regrets])
        rows.append([name, "a random member", "", "", pair(reference["random_member"]), "", ""])
        rows.append([name, "best mean validation accuracy", "", "", f"{reference['best_mean_validation']:.2f}", "", ""])
    head = ["budget", "strategy", "searches", "seconds", "regret", "random search of equal cost", "its members"]
    return markdown(head, rows)


def of_the_rankings(record: dict[str, Any]) -> str:
    """Return Kendall's tau of the super-nets."""
    rows = []
    for row in record["supernets"]:
        own, shared = row["own_statistics"], row["shared_statistics"]
        figures = [own["tau_val"], own["tau_test"], shared["tau_val"], shared["tau_test"]]
        name = f"{row['sampling']}, {row['seed']}"
        rows.append([name, f"{row['train_s']:.0f}", *(f"{figure:.2f}" for figure in figures)])
    head = ["super-net", "seconds", "own, validation", "own, test", "shared, validation", "shared, test"]
    return markdown(head, rows)


def figures() -> str:
    """Return all tables of the page."""
    search = json.loads((RESULTS / "digits_nb_search.json").read_text())
    ranking = json.loads((RESULTS / "digits_nb_ranking.json").read_text())
    return "\n".join([of_the_table(GroundTruth.load()), of_the_searches(search), of_the_rankings(ranking)])
