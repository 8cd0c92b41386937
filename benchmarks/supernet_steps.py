"""What a step of a super-net costs beside the same super-net written by hand in plain PyTorch.

    python benchmarks/supernet_steps.py [--rounds 15] [--steps 4]

Two super-nets. In the first each slot is a mixture of five candidates, and a step is that of DARTS: gradients of the
architecture on one batch, then gradients of the weights on another. In the second, blocks of inverted bottlenecks have
a choice of expansion and of kernel, and a step trains one random member. By hand, a mixture is a sum of products with a
softmax, and a member takes slices of the largest weights. Both sides have equal weights; that they compute the same is
checked first.

Times are those that the processor spends on one thread: on a busy machine, waiting for it does not count. Both sides
run in turns, so that they meet the same load; the ratio is the median of the ratios of the rounds. The peak of memory
is what one step allocates at most on top of what there was before, by the record of PyTorch's allocator
(`torch.profiler`): gradients and activations, without the weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import hwnas.nn as nn
from hwnas.kernels import native
from hwnas.supernet import OneHot, Softmax, make_supernet

CHANNELS, SLOTS = 16, 6
EXPANSIONS, KERNELS = (2, 3, 4), (3, 5)
SHAPES = {"64 images of 8 x 8": (64, 8), "32 images of 24 x 24": (32, 24)}


# --- mixtures -------------------------------------------------------------------------------------------------------


def convolution(kernel: int, groups: int = 1) -> torch.nn.Module:
    conv = torch.nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=kernel // 2, groups=groups, bias=False)
    return torch.nn.Sequential(conv, torch.nn.BatchNorm2d(CHANNELS), torch.nn.ReLU())


def candidates() -> dict[str, torch.nn.Module]:
    return {
        "conv3": convolution(3),
        "conv1": convolution(1),
        "depthwise": torch.nn.Sequential(convolution(3, CHANNELS), convolution(1)),
        "pool": torch.nn.AvgPool2d(3, 1, 1),
        "skip": torch.nn.Identity(),
    }


class Mixtures(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.slots = nn.Sequential(*(nn.LayerChoice(candidates(), label=f"slot{i}") for i in range(SLOTS)))
        self.head = nn.Linear(CHANNELS, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.slots(self.stem(x)).mean((2, 3)))
        return y


class MixturesByHand(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.slots = torch.nn.ModuleList(torch.nn.ModuleList(candidates().values()) for _ in range(SLOTS))
        self.head = torch.nn.Linear(CHANNELS, 10)
        self.alphas = [torch.nn.Parameter(1e-3 * torch.randn(5)) for _ in range(SLOTS)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for slot, alpha in zip(self.slots, self.alphas, strict=True):
            weights = torch.softmax(alpha, 0)
            x = sum(weight * candidate(x) for weight, candidate in zip(weights, slot, strict=True))
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def darts_step(
    model: torch.nn.Module, weights: list[Tensor], alphas: list[Tensor], batches: Sequence[tuple[Tensor, Tensor]]
) -> Callable[[], None]:
    """Return a step: of the architecture on the first batch, of the weights on the second one."""
    architecture = torch.optim.Adam(alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    optimizer = torch.optim.SGD(weights, lr=0.01, momentum=0.9)

    def step() -> None:
        for here, others, update, (x, y) in zip(
            (alphas, weights), (weights, alphas), (architecture, optimizer), batches, strict=True
        ):
            for tensor in here:
                tensor.requires_grad_(True)
            for tensor in others:
                tensor.requires_grad_(False)
            F.cross_entropy(model(x), y).backward()
            update.step()
            update.zero_grad()

    return step


def mixtures(batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Callable[[], None], Callable[[], None]]:
    space = Mixtures()
    relaxation = Softmax(space.simplify().values())
    make_supernet(space, relaxation)
    by_hand = MixturesByHand()
    ours, theirs = list(space.parameters()), list(by_hand.parameters())
    with torch.no_grad():
        for one, other in zip([*ours, *relaxation.parameters()], [*theirs, *by_hand.alphas], strict=True):
            other.copy_(one)
    check_equal(space, by_hand, batches[0][0])
    return (
        darts_step(space, ours, list(relaxation.parameters()), batches),
        darts_step(by_hand, theirs, by_hand.alphas, batches),
    )


# --- members --------------------------------------------------------------------------------------------------------


class Block(torch.nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        wide = nn.ValueChoice(EXPANSIONS, label=f"expansion{index}") * CHANNELS
        kernel = nn.ValueChoice(KERNELS, label=f"kernel{index}")
        self.layers = nn.Sequential(
            nn.Conv2d(CHANNELS, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, CHANNELS, 1, bias=False),
            nn.BatchNorm2d(CHANNELS),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.layers(x)
        return y


class Members(nn.ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(i) for i in range(SLOTS)))
        self.head = nn.Linear(CHANNELS, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return y


class BlockByHand(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        wide = max(EXPANSIONS) * CHANNELS
        self.expand = torch.nn.Conv2d(CHANNELS, wide, 1, bias=False)
        self.norm1 = torch.nn.BatchNorm2d(wide)
        self.depthwise = torch.nn.Conv2d(wide, wide, max(KERNELS), groups=wide, bias=False)
        self.norm2 = torch.nn.BatchNorm2d(wide)
        self.project = torch.nn.Conv2d(wide, CHANNELS, 1, bias=False)
        self.norm3 = torch.nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor, expansion: int, kernel: int) -> Tensor:
        wide, start = expansion * CHANNELS, (max(KERNELS) - kernel) // 2
        y = F.conv2d(x, self.expand.weight[:wide])
        y = F.relu(self.normalised(self.norm1, y))
        centre = self.depthwise.weight[:wide, :, start : start + kernel, start : start + kernel]
        y = F.conv2d(y, centre, padding=kernel // 2, groups=wide)
        y = F.relu(self.normalised(self.norm2, y))
        y = F.conv2d(y, self.project.weight[:, :wide])
        z: Tensor = x + self.norm3(y)
        return z

    def normalised(self, norm: torch.nn.BatchNorm2d, x: Tensor) -> Tensor:
        width = x.shape[1]
        norm.num_batches_tracked.add_(1)
        return F.batch_norm(
            x,
            norm.running_mean[:width],
            norm.running_var[:width],
            norm.weight[:width],
            norm.bias[:width],
            True,
            norm.momentum,
            norm.eps,
        )


class MembersByHand(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.blocks = torch.nn.ModuleList(BlockByHand() for _ in range(SLOTS))
        self.head = torch.nn.Linear(CHANNELS, 10)
        self.member = [(EXPANSIONS[0], KERNELS[0])] * SLOTS

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, (expansion, kernel) in zip(self.blocks, self.member, strict=True):
            x = block(x, expansion, kernel)
        y: Tensor = self.head(x.mean((2, 3)))
        return y


def sampled_step(
    model: torch.nn.Module, draw: Callable[[], None], batches: Sequence[tuple[Tensor, Tensor]]
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = batches[0]

    def step() -> None:
        draw()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def members(batches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Callable[[], None], Callable[[], None]]:
    space = Members()
    relaxation = OneHot(space.simplify().values())
    make_supernet(space, relaxation)
    by_hand = MembersByHand()
    with torch.no_grad():
        for one, other in zip(space.parameters(), by_hand.parameters(), strict=True):
            other.copy_(one)
    # The same members on both sides, in the same order.
    samples = [space.random(random_state=seed) for seed in range(64)]
    plain = [[(sample[f"expansion{i}"], sample[f"kernel{i}"]) for i in range(SLOTS)] for sample in samples]
    drawn, drawn_by_hand = itertools.cycle(samples), itertools.cycle(plain)

    def draw() -> None:
        relaxation.resample(next(drawn))

    def draw_by_hand() -> None:
        by_hand.member = next(drawn_by_hand)

    relaxation.resample(samples[0])
    by_hand.member = plain[0]
    check_equal(space, by_hand, batches[0][0])
    return sampled_step(space, draw, batches), sampled_step(by_hand, draw_by_hand, batches)


# --- measuring ------------------------------------------------------------------------------------------------------


def check_equal(one: torch.nn.Module, other: torch.nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(one(x), other(x), rtol=1e-4, atol=1e-5)


def seconds(step: Callable[[], None], steps: int) -> float:
    started = time.process_time()
    for _ in range(steps):
        step()
    return (time.process_time() - started) / steps


def peak_bytes(step: Callable[[], None]) -> int:
    """Return what a step allocates at most at one time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        step()
    found: Any = profile.profiler
    events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(pair: tuple[Callable[[], None], Callable[[], None]], rounds: int, steps: int) -> dict[str, Any]:
    hwnas, by_hand = pair
    for step in (hwnas, by_hand):
        seconds(step, 2)
    times: list[tuple[float, float]] = []
    for number in range(rounds):
        if number % 2:
            other, one = seconds(by_hand, steps), seconds(hwnas, steps)
        else:
            one, other = seconds(hwnas, steps), seconds(by_hand, steps)
        times.append((one, other))
    ours, theirs = zip(*times, strict=True)
    ratios = [one / other for one, other in times]
    peaks = peak_bytes(hwnas), peak_bytes(by_hand)
    return {
        "hwnas_ms": summary([1e3 * t for t in ours]),
        "by_hand_ms": summary([1e3 * t for t in theirs]),
        "ratio": summary(ratios),
        "hwnas_peak_bytes": peaks[0],
        "by_hand_peak_bytes": peaks[1],
        "peak_ratio": peaks[0] / peaks[1],
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "quartile1": low, "quartile3": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="in each round")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "supernet_steps.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": 1,
        "native_kernels": native.CPU is not None,
        "rounds": arguments.rounds,
        "steps_per_round": arguments.steps,
        "steps": {},
    }
    print(f"{'step':28} {'batch':22} {'hwnas':>9} {'by hand':>9} {'ratio (quartiles)':>20} {'peak':>10} {'ratio':>6}")
    for shape, (count, size) in SHAPES.items():
        batches = [(torch.randn(count, 3, size, size), torch.randint(0, 10, (count,))) for _ in range(2)]
        for name, make in {"DARTS": mixtures, "sampled": members}.items():
            found = measure(make(batches), arguments.rounds, arguments.steps)
            report["steps"][f"{name}, {shape}"] = found
            ratio = found["ratio"]
            print(
                f"{name:28} {shape:22} {found['hwnas_ms']['median']:6.1f} ms {found['by_hand_ms']['median']:6.1f} ms "
                f"{ratio['median']:7.2f} ({ratio['quartile1']:.2f}-{ratio['quartile3']:.2f}) "
                f"{found['hwnas_peak_bytes'] / 2**20:7.1f} MB {found['peak_ratio']:6.2f}"
            )
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
