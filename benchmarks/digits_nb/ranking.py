"""How well single-path super-nets rank the members of digits-NB, with and without statistics of their own.

    python benchmarks/digits_nb/ranking.py [--seeds 10] [--journal build/digits_nb] [--out FILE]

A super-net is trained on random members, one for each batch or, for fair sampling, twelve. Then all 768 members are
scored on the validation part with the weights that they share, once with the running statistics of the super-net and
once with statistics of their own, and the rankings are compared with that of the table.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ground_truth import GroundTruth, tau
from supernet import SINGLE_PATH, single_path_journal, single_path_scores

from hwnas.atomic import write_text

ROOT = Path(__file__).parents[2]
OUT = ROOT / "benchmarks" / "results" / "digits_nb_ranking.json"


def compare(line: dict[str, Any], truth: GroundTruth) -> dict[str, Any]:
    """Compare the scores of a super-net with the table."""
    row = {key: line[key] for key in ("sampling", "seed", "train_s", "score_s")}
    best = truth.test.mean(1)
    for name in ("own_statistics", "shared_statistics"):
        scores = np.array(line[name])
        row[name] = {
            "tau_val": round(tau(scores, truth.val.mean(1)), 4),
            "tau_test": round(tau(scores, best), 4),
            "mean_score": round(float(scores.mean()), 4),
            "regret": round(100 * float(best.max() - best[scores == scores.max()].mean()), 2),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--journal", type=Path, default=ROOT / "build" / "digits_nb")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    journal = single_path_journal(arguments.journal)
    lines = [single_path_scores(journal, sampling, seed) for sampling in SINGLE_PATH for seed in range(arguments.seeds)]
    truth = GroundTruth.load()
    rows = [compare(line, truth) for line in lines]
    for row in rows:
        print(row)
    record = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "settings": SINGLE_PATH,
        "supernets": rows,
    }
    write_text(arguments.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
