"""What a training step of a sampled super-net costs, beside the same super-net written by hand in plain PyTorch.

    python benchmarks/kernels/sampled_step.py [--threads 1 2] [--rounds 7] [--steps 4]

The super-net is that of Once-for-All, made smaller: inverted residuals with a choice of expansion (3, 4, 6) and of
kernel (3, 5, 7) in each block, and a choice of depth (1 to 3) in each stage. A step draws one member uniformly, and
trains its slices of the largest weights. By hand a slice is `weight[:o, :i]` in `conv2d`, as one would write it.

Contenders start from equal weights and train the same members on the same batch: their losses are compared first. They
run in turns; ratios are medians over the rounds of the ratios within a round. On one thread the time is that of the
processor, on more it is that of the clock. The peak of memory is what the process grows by while it trains, each
contender in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import hwnas.nn as nn
from hwnas.atomic import write_text
from hwnas.kernels import native
from hwnas.kernels.bench import machine
from hwnas.supernet import OneHot, make_supernet

RESULT = Path(__file__).parent / "results" / "sampled_step.json"
EXPANSIONS, KERNELS, DEPTHS = (3, 4, 6), (3, 5, 7), (1, 2, 3)
STEM, STAGES, HEAD, CLASSES = 16, ((24, 2), (40, 2), (80, 2), (112, 1)), 480, 100
BATCH, SIZE = 32, 96


# --- hwnas ----------------------------------------------------------------------------------------------------------


class Block(torch.nn.Module):
    def __init__(self, label: str, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = nn.ValueChoice(EXPANSIONS, label=f"expansion{label}") * inputs
        kernel = nn.ValueChoice(KERNELS, label=f"kernel{label}")
        self.residual = inputs == outputs and stride == 1
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(inplace=True),
            nn.Conv2d(wide, wide, kernel, stride=stride, padding=kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(inplace=True),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class Space(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, STEM, 3, 2, 1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU6())
        inputs, stages = STEM, []
        for index, (outputs, stride) in enumerate(STAGES):
            blocks = [
                Block(f"{index}.{i}", outputs if i else inputs, outputs, 1 if i else stride) for i in range(max(DEPTHS))
            ]
            stages.append(nn.Repeat(blocks, nn.ValueChoice(DEPTHS, label=f"depth{index}")))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Sequential(nn.Conv2d(inputs, HEAD, 1, bias=False), nn.BatchNorm2d(HEAD), nn.ReLU6())
        self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.head(self.stages(self.stem(x))).mean((2, 3)))
        return y


# --- by hand --------------------------------------------------------------------------------------------------------


class BlockByHand(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = max(EXPANSIONS) * inputs
        self.inputs, self.stride, self.residual = inputs, stride, inputs == outputs and stride == 1
        self.expand = torch.nn.Conv2d(inputs, wide, 1, bias=False)
        self.norm1 = torch.nn.BatchNorm2d(wide)
        self.depthwise = torch.nn.Conv2d(wide, wide, max(KERNELS), groups=wide, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(wide)
        self.project = torch.nn.Conv2d(wide, outputs, 1, bias=False)
        self.norm3 = torch.nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, expansion: int, kernel: int) -> Tensor:
        wide, start = expansion * self.inputs, (max(KERNELS) - kernel) // 2
        y = F.conv2d(x, self.expand.weight[:wide])
        y = F.relu6(self.normalised(self.norm1, y), inplace=True)
        centre = self.depthwise.weight[:wide, :, start : start + kernel, start : start + kernel]
        y = F.conv2d(y, centre, stride=self.stride, padding=kernel // 2, groups=wide)
        y = F.relu6(self.normalised(self.norm2, y), inplace=True)
        y = self.norm3(F.conv2d(y, self.project.weight[:, :wide]))
        return x + y if self.residual else y

    def normalised(self, norm: torch.nn.BatchNorm2d, x: Tensor) -> Tensor:
        width = x.shape[1]
        norm.num_batches_tracked.add_(1)
        mean, variance = norm.running_mean[:width], norm.running_var[:width]
        return F.batch_norm(x, mean, variance, norm.weight[:width], norm.bias[:width], True, norm.momentum, norm.eps)


class ByHand(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        conv, norm = torch.nn.Conv2d(3, STEM, 3, 2, 1, bias=False), torch.nn.BatchNorm2d(STEM)
        self.stem = torch.nn.Sequential(conv, norm, torch.nn.ReLU6())
        inputs, stages = STEM, []
        for outputs, stride in STAGES:
            pairs = [(inputs, stride), *[(outputs, 1)] * (max(DEPTHS) - 1)]
            stages.append(torch.nn.ModuleList(BlockByHand(width, outputs, step) for width, step in pairs))
            inputs = outputs
        self.stages = torch.nn.ModuleList(stages)
        conv, norm = torch.nn.Conv2d(inputs, HEAD, 1, bias=False), torch.nn.BatchNorm2d(HEAD)
        self.head = torch.nn.Sequential(conv, norm, torch.nn.ReLU6())
        self.classifier = torch.nn.Linear(HEAD, CLASSES)
        self.member: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for index, blocks in enumerate(self.stages):
            for i, block in enumerate(blocks[: self.member[f"depth{index}"]]):
                x = block(x, self.member[f"expansion{index}.{i}"], self.member[f"kernel{index}.{i}"])
        y: Tensor = self.classifier(self.head(x).mean((2, 3)))
        return y


# --- contenders -----------------------------------------------------------------------------------------------------


class Contender:
    """One way to train, from the same weights as all others."""

    def __init__(self, kind: str, layout: str) -> None:
        torch.manual_seed(0)
        space = Space()
        relaxation = OneHot(space.simplify().values())
        make_supernet(space, relaxation)
        self.space, self.kernels = space, kind == "hwnas"
        self.model: torch.nn.Module = space
        self.choose: Callable[[Any], None] = relaxation.resample
        if kind == "by hand":
            by_hand = ByHand()
            with torch.no_grad():
                for one, other in zip(space.parameters(), by_hand.parameters(), strict=True):
                    other.copy_(one)
            self.model = by_hand
            self.choose = lambda sample: setattr(by_hand, "member", sample)
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
        self.y = torch.randint(0, CLASSES, (BATCH,), generator=generator)
        if layout == "channels_last":
            self.model = self.model.to(memory_format=torch.channels_last)
            self.x = self.x.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)

    def step(self, sample: Any) -> float:
        """Train one member and return its loss."""
        kernels: AbstractContextManager[Any] = nullcontext() if self.kernels else native.disabled()
        with kernels:
            self.choose(sample)
            loss = F.cross_entropy(self.model(self.x), self.y)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return float(loss.detach())


CONTENDERS = {
    f"{kind}, {layout}": (kind, layout)
    for kind in ("by hand", "hwnas, kernels off", "hwnas")
    for layout in ("contiguous", "channels_last")
}
RATIOS = (
    ("by hand, contiguous", "hwnas, contiguous"),
    ("by hand, contiguous", "hwnas, channels_last"),
    ("by hand, channels_last", "hwnas, channels_last"),
    ("hwnas, kernels off, contiguous", "hwnas, contiguous"),
    ("hwnas, kernels off, channels_last", "hwnas, channels_last"),
)


def samples(space: nn.ModelSpace) -> Iterator[Any]:
    for seed in range(1_000_000):
        yield space.random(random_state=seed)


def measure(threads: int, rounds: int, steps: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    contenders = {name: Contender(*arguments) for name, arguments in CONTENDERS.items()}
    drawn = samples(next(iter(contenders.values())).space)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    difference = 0.0
    for number in range(rounds + 1):
        members = [next(drawn) for _ in range(steps)]
        losses = {}
        turn = list(contenders.items())
        for name, contender in turn[number % len(turn) :] + turn[: number % len(turn)]:
            started = clock()
            losses[name] = [contender.step(member) for member in members]
            if number > 0:  # the first round fills caches, and tells whether all compute the same
                times[name].append((clock() - started) / steps)
        if number == 0:
            for found in losses.values():
                for one, other in zip(found, losses["by hand, contiguous"], strict=True):
                    difference = max(difference, abs(one - other))
            assert difference < 1e-3, f"the losses differ by {difference}"
    ratios = {
        f"{slow} / {fast}": summary([a / b for a, b in zip(times[slow], times[fast], strict=True)])
        for slow, fast in RATIOS
    }
    return {
        "threads": threads,
        "clock": "cpu" if threads == 1 else "wall",
        "largest_difference_of_losses": difference,
        "ms": {name: summary([1e3 * value for value in values]) for name, values in times.items()},
        "ratios": ratios,
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "quartile1": low, "quartile3": high}


def peak_bytes(name: str, steps: int) -> int:
    """Return by how much this process grows in training."""
    torch.set_num_threads(1)
    contender = Contender(*CONTENDERS[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for member, _ in zip(samples(contender.space), range(steps), strict=False):
        contender.step(member)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def recorded(path: Path, processor: str, threads: list[int]) -> list[dict[str, Any]]:
    """Return what a file has of the same processor and other numbers of threads."""
    found = json.loads(path.read_text()) if path.exists() else {"machine": {}}
    if found["machine"].get("processor") != processor:
        return []
    return [run for run in found["runs"] if run["threads"] not in threads]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="in each round")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # measures one contender, in a process of its own
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_bytes(arguments.peak, 2 * arguments.steps))
        return
    here = machine()
    # First, because a process begins with the peak of the one that started it.
    peaks = {}
    for name in CONTENDERS:
        command = [sys.executable, __file__, "--peak", name, "--steps", str(arguments.steps)]
        peaks[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    runs = [measure(threads, arguments.rounds, arguments.steps) for threads in arguments.threads]
    others = recorded(arguments.out, here["processor"], arguments.threads)
    report: dict[str, Any] = {
        "machine": here,
        "batch": BATCH,
        "size": SIZE,
        "rounds": arguments.rounds,
        "steps_per_round": arguments.steps,
        "runs": sorted([*others, *runs], key=lambda run: run["threads"]),
        "peak_bytes": peaks,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, json.dumps(report, indent=1) + "\n")
    for run in runs:
        print(f"{run['threads']} thread(s), losses differ by {run['largest_difference_of_losses']:.1e} at most")
        for name, value in run["ms"].items():
            print(f"  {name:36} {value['median']:8.1f} ms {report['peak_bytes'][name] / 2**20:8.1f} MB")
        for name, value in run["ratios"].items():
            print(f"  {name:72} {value['median']:5.2f} ({value['quartile1']:.2f}-{value['quartile3']:.2f})")


if __name__ == "__main__":
    main()
