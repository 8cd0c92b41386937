"""In which order of memory the super-nets of the hub train faster on a CPU: NCHW or channels last.

    python benchmarks/kernels/layouts.py [--rounds 6]

A step is the forward and the backward pass: of random members (`sampled`), or of all candidates at once (`mixtures`).
Both orders compute the same, which is checked, and take turns; ratios are medians over the rounds of the time that the
process spends on one thread, with the least and the largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import hwnas.hub
from hwnas.atomic import write_text
from hwnas.kernels.bench import machine
from hwnas.supernet import OneHot, Softmax, lay_out_channels_last, make_supernet, order_does_not_matter

RESULT = Path(__file__).parent / "results" / "layouts.json"
# Space, whether of mixtures, images in a batch, their size.
STEPS = (
    ("DigitsSpace", False, 64, 8),
    ("DigitsSpace", True, 64, 8),
    ("ProxylessNASSpace", False, 8, 96),
    ("MobileNetV3Space", False, 8, 96),
    ("ShuffleNetV2Space", False, 8, 96),
    ("NASBench201Space", False, 16, 32),
    ("NASBench201Space", True, 16, 32),
    ("NASBench101Space", False, 4, 32),
    ("DARTSSpace", False, 8, 32),
)
TOLERANCE = 1e-3


def make(name: str, mixtures: bool, channels_last: bool) -> tuple[Any, OneHot | Softmax]:
    torch.manual_seed(0)
    space = getattr(hwnas.hub, name)()
    relaxation: OneHot | Softmax = (Softmax if mixtures else OneHot)(space.simplify().values())
    make_supernet(space, relaxation)
    assert order_does_not_matter(space)
    if channels_last:
        lay_out_channels_last(space)
    return space, relaxation


def measure(name: str, mixtures: bool, batch: int, size: int, rounds: int) -> dict[str, Any]:
    made = [make(name, mixtures, channels_last) for channels_last in (False, True)]
    torch.manual_seed(1)
    images = torch.randn(batch, made[0][0].input_shape[0], size, size)
    ms: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        losses = [0.0, 0.0]
        for order in (0, 1) if turn % 2 else (1, 0):
            space, relaxation = made[order]
            if isinstance(relaxation, OneHot):
                relaxation.resample(space.random(random_state=turn))
            torch.manual_seed(turn)  # drop path
            started = time.process_time()
            found = space(images)
            loss = (found[0] if isinstance(found, tuple) else found).square().mean()
            loss.backward()
            space.zero_grad()
            if turn:  # the first one fills caches
                ms[order].append(1e3 * (time.process_time() - started))
            losses[order] = loss.item()
        assert abs(losses[0] - losses[1]) <= TOLERANCE * abs(losses[0]), f"{name}: the losses are {losses}"
    ratios = [nchw / last for nchw, last in zip(*ms, strict=True)]
    return {
        "space": name,
        "step": "mixtures" if mixtures else "sampled",
        "batch": batch,
        "size": size,
        "nchw_ms": statistics.median(ms[0]),
        "ratio": {"median": statistics.median(ratios), "least": min(ratios), "largest": max(ratios)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for step in STEPS:
        rows.append(row := measure(*step, arguments.rounds))
        ratio = row["ratio"]
        print(
            f"{row['space']:20} {row['step']:9} {row['nchw_ms']:8.1f} ms in NCHW, channels last is "
            f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['largest']:.2f}) times as fast",
            flush=True,
        )
    report = {
        "machine": machine(),
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
