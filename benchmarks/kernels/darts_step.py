"""What a DARTS step costs with native kernels, without them, and in plain PyTorch.

    python benchmarks/kernels/darts_step.py [--cells 8] [--batch 32] [--channels 16] [--rounds 5] [--threads 1 2]

The space is that of DARTS for CIFAR-10: cells of four nodes, which read two inputs and all nodes before them along 14
edges with eight candidates each. A step computes the gradients of the architecture on one batch, then those of the
weights on another, and updates both. Three ways compute the same:

- ``plain``: a super-net written by hand in PyTorch, once as it is and once in channels_last;
- ``without kernels``: the super-net of hwnas with its compiled kernels switched off, in both layouts;
- ``with kernels``: the same super-net with them.

``--compile`` adds ``compiled``, the plain super-net whose cells torch.compile compiles. That takes minutes for each
cell, twice: take few cells. ``--autocast`` runs all in bfloat16 as `torch.autocast` has it.

All start with the same weights; that their losses agree over the first steps is checked. On one thread, times are those
that the process spends, so on a busy machine waiting does not count; on more, those of the clock. All run in turns and
meet the same load; ratios are medians over the rounds. The peak of memory is that of a process of its own with one
thread, less what it has before its first step. What was recorded for other numbers of threads stays.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import hwnas.nn as nn
from hwnas.atomic import write_text
from hwnas.hub.cell_operators import OPERATORS, FactorizedReduce, relu_conv_norm
from hwnas.hub.darts import DARTSSpace
from hwnas.kernels import native
from hwnas.kernels.bench import machine
from hwnas.supernet import Softmax, make_supernet, normalise_candidates

RESULT = Path(__file__).parent / "results" / "darts_step.json"
NAMES = DARTSSpace.operator_names
NODES = 4
LAYOUTS = ("NCHW", "channels_last")
WAYS = {
    f"{way}, {layout}": (way, layout)
    for way, layout in itertools.product(("plain", "compiled", "without kernels", "with kernels"), LAYOUTS)
}
STEPS = 2  # whose losses are compared; they warm up, too
TOLERANCE = {False: 1e-3, True: 3e-2}  # in float32; in bfloat16


class Align(torch.nn.Module):
    """Bring the two inputs of a cell to one shape."""

    def __init__(self, older: int, newer: int, channels: int, halve: bool) -> None:
        super().__init__()
        self.older = FactorizedReduce(older, channels) if halve else relu_conv_norm(older, channels)
        self.newer = relu_conv_norm(newer, channels)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        return [self.older(inputs[0]), self.newer(inputs[1])]


def operation(name: str, channels: int, stride: int, source: int) -> torch.nn.Module:
    """Make a candidate for an edge; in reduction cells those that read an input of the cell halve its size."""
    return OPERATORS[name](channels, stride if source < 2 else 1)


class Edges:
    """Callables for the candidates of a cell, as `hwnas.nn.Cell` takes them."""

    def __init__(self, channels: int, stride: int) -> None:
        self.channels, self.stride = channels, stride

    def candidates(self) -> dict[str, Callable[[int, int, int], torch.nn.Module]]:
        return {name: self.maker(name) for name in NAMES}

    def maker(self, name: str) -> Callable[[int, int, int], torch.nn.Module]:
        return lambda node, op, source: operation(name, self.channels, self.stride, source)


class PlainCell(torch.nn.Module):
    """A cell by hand: all edges, each a sum of normalised candidates weighted by a softmax."""

    def __init__(self, older: int, newer: int, channels: int, stride: int, halve: bool) -> None:
        super().__init__()
        self.preprocessor = Align(older, newer, channels, halve)
        self.edges = torch.nn.ModuleList(
            torch.nn.ModuleList(self.candidate(name, channels, stride, source) for name in NAMES)
            for node in range(2, 2 + NODES)
            for source in range(node)
        )

    @staticmethod
    def candidate(name: str, channels: int, stride: int, source: int) -> torch.nn.Module:
        """Make a candidate whose output is normalised, batch normalisations without scale and shift."""
        made = operation(name, channels, stride, source)
        for part in made.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.weight = part.bias = None
                part.affine = False
        if isinstance(made, torch.nn.Sequential):  # ends with one
            return made
        return torch.nn.Sequential(made, torch.nn.BatchNorm2d(channels, affine=False, track_running_stats=False))

    def forward(self, older: Tensor, newer: Tensor, alphas: list[Tensor], betas: list[Tensor]) -> Tensor:
        states = self.preprocessor([older, newer])
        edges = iter(self.edges)
        for alpha, beta in zip(alphas, betas, strict=True):
            read = []
            for source, weight in zip(list(states), torch.softmax(beta, 0), strict=True):
                of_edge = zip(torch.softmax(alpha, 0), next(edges), strict=True)
                read.append(weight * sum(share * candidate(source) for share, candidate in of_edge))
            states.append(sum(read))  # type: ignore[arg-type]
        return torch.cat(states[2:], 1)


def plan(cells: int, channels: int) -> Iterator[tuple[str, int, int, int, int, bool]]:
    """Yield label, channels, stride, channels of both inputs and whether the older one is larger, for each cell."""
    older = newer = 3 * channels
    halve = False
    for index in range(cells):
        reduces = index in (cells // 3, 2 * cells // 3)
        channels *= 2 if reduces else 1
        yield "reduce" if reduces else "normal", channels, 2 if reduces else 1, older, newer, halve
        older, newer, halve = newer, NODES * channels, reduces


def stem(channels: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, channels, 3, padding=1, bias=False), torch.nn.BatchNorm2d(channels))


class Plain(torch.nn.Module):
    """The super-net by hand."""

    def __init__(self, cells: int, channels: int) -> None:
        super().__init__()
        self.stem = stem(3 * channels)
        self.cells, self.labels = torch.nn.ModuleList(), []
        for label, width, stride, older, newer, halve in plan(cells, channels):
            self.labels.append(label)
            self.cells.append(PlainCell(older, newer, width, stride, halve))
        self.head = torch.nn.Linear(NODES * width, 10)
        self.alphas = {label: [torch.zeros(len(NAMES)) for _ in range(NODES)] for label in self.labels}
        self.betas = {label: [torch.zeros(node) for node in range(2, 2 + NODES)] for label in self.labels}

    def forward(self, x: Tensor) -> Tensor:
        older = newer = self.stem(x)
        for label, cell in zip(self.labels, self.cells, strict=True):
            older, newer = newer, cell(older, newer, self.alphas[label], self.betas[label])
        scores: Tensor = self.head(newer.mean((2, 3)))
        return scores


class Space(nn.ModelSpace):
    """The same for hwnas."""

    def __init__(self, cells: int, channels: int) -> None:
        super().__init__()
        self.stem = stem(3 * channels)
        self.cells = nn.ModuleList(
            nn.Cell(
                Edges(width, stride).candidates(),
                NODES,
                num_predecessors=2,
                merge_op="all",
                preprocessor=Align(older, newer, width, halve),
                label=label,
            )
            for label, width, stride, older, newer, halve in plan(cells, channels)
        )
        self.head = nn.Linear(NODES * width_of_last(cells, channels), 10)

    def forward(self, x: Tensor) -> Tensor:
        older = newer = self.stem(x)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        scores: Tensor = self.head(newer.mean((2, 3)))
        return scores


def width_of_last(cells: int, channels: int) -> int:
    return list(plan(cells, channels))[-1][1]


# --- a step -----------------------------------------------------------------------------------------------------------


def make(way: str, cells: int, channels: int) -> tuple[torch.nn.Module, list[Tensor]]:
    """Return a super-net and the parameters of its architecture; the same numbers in every way."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    if way in ("plain", "compiled"):
        plain = Plain(cells, channels)
        named = {
            f"{label}/{kind}_{node + 2}_0": table[label][node]
            for label in plain.alphas
            for kind, table in (("op", plain.alphas), ("input", plain.betas))
            for node in range(NODES)
        }
        model: torch.nn.Module = plain
    else:
        space = Space(cells, channels)
        relaxation = Softmax(space.simplify().values())
        model = make_supernet(space, relaxation)
        normalise_candidates(model)
        named = {label: relaxation.alpha(label) for label in relaxation.dimensions}
    present = [named[label] for label in sorted(named)]
    with torch.no_grad():
        for parameter in sorted_weights(model):
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(fan_in, 1) ** 0.5)
        for alpha in present:
            alpha.copy_(torch.randn(alpha.shape, generator=generator))
    return model, present


def sorted_weights(model: torch.nn.Module) -> list[Tensor]:
    """Return the weights in the order in which the edges of the plain super-net stand."""
    if isinstance(model, Plain):
        parts = [model.stem, *model.cells, model.head]
    else:
        parts = [model.stem]
        for cell in model.cells:  # type: ignore[union-attr]
            made = [row for (operation,) in cell.ops for row in operation.made]
            parts += [cell.preprocessor, *made]
        parts.append(model.head)  # type: ignore[arg-type]
    return [parameter for part in parts for parameter in part.parameters()]


def step_of(way: str, layout: str, arguments: argparse.Namespace) -> Callable[[], tuple[float, float]]:
    """Return a step of one way; it gives both losses."""
    model, alphas = make(way, arguments.cells, arguments.channels)
    generator = torch.Generator().manual_seed(2)
    batches = [
        (
            torch.randn(arguments.batch, 3, arguments.size, arguments.size, generator=generator),
            torch.randint(0, 10, (arguments.batch,), generator=generator),
        )
        for _ in range(2)
    ]
    if way == "compiled":
        for cell in model.cells:  # type: ignore[union-attr]
            cell.compile()
    if layout == "channels_last":
        model = model.to(memory_format=torch.channels_last)
        batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in batches]
    weights = list(model.parameters())
    turns = (
        (alphas, weights, torch.optim.Adam(alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)),
        (weights, alphas, torch.optim.SGD(weights, lr=0.025, momentum=0.9, weight_decay=3e-4)),
    )

    def step() -> tuple[float, float]:
        losses = []
        for (here, others, optimizer), (x, y) in zip(turns, batches, strict=True):
            for tensor in here:
                tensor.requires_grad_(True)
            for tensor in others:
                tensor.requires_grad_(False)
            with native.disabled() if way == "without kernels" else nullcontext():
                with torch.autocast("cpu", enabled=arguments.autocast):
                    loss = F.cross_entropy(model(x), y)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses[0], losses[1]

    return step


# --- measuring --------------------------------------------------------------------------------------------------------


def check_losses(found: dict[str, list[tuple[float, float]]], tolerance: float) -> None:
    """Raise unless all ways computed the same losses."""
    expected = next(iter(found.values()))
    for name, losses in found.items():
        torch.testing.assert_close(
            losses, expected, rtol=tolerance, atol=tolerance, msg=f"{name}: {losses}, {expected}"
        )


@contextmanager
def timed(into: list[float], clock: Callable[[], float]) -> Iterator[None]:
    started = clock()
    yield
    into.append(clock() - started)


def peak_bytes(name: str, arguments: argparse.Namespace) -> int:
    """Return how much memory a step needs, in a process of its own."""
    sizes = [f"--{key}={getattr(arguments, key)}" for key in ("cells", "channels", "batch", "size")]
    command = [sys.executable, __file__, "--peak", name, *sizes, *(["--autocast"] if arguments.autocast else [])]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(found.stdout.split()[-1])


def print_peak(name: str, arguments: argparse.Namespace) -> None:
    step = step_of(*WAYS[name], arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def print_profile(name: str, arguments: argparse.Namespace) -> None:
    step = step_of(*WAYS[name], arguments)
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=50))


def measure(names: Sequence[str], threads: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the steps of all ways in turns on some threads."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    steps = {name: step_of(*WAYS[name], arguments) for name in names}
    first: dict[str, float] = {}
    losses = {}
    for name, step in steps.items():
        started = time.perf_counter()
        losses[name] = [step() for _ in range(STEPS)]
        first[name] = time.perf_counter() - started
    check_losses(losses, TOLERANCE[arguments.autocast])
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(arguments.rounds):
        for name in names[:: -1 if turn % 2 else 1]:
            with timed(seconds[name], clock):
                steps[name]()

    def speedup(slow: str, fast: str) -> float:
        return statistics.median(one / other for one, other in zip(seconds[slow], seconds[fast], strict=True))

    return {
        "threads": threads,
        "clock": "cpu" if threads == 1 else "wall",
        "losses": losses,
        "ways": {
            name: {
                "milliseconds": [1e3 * value for value in seconds[name]],
                "median_ms": 1e3 * statistics.median(seconds[name]),
                "first_steps_s": first[name],
                "speedup_over_plain_of_this_layout": speedup(f"plain, {WAYS[name][1]}", name),
                "speedup_over_plain_nchw": speedup("plain, NCHW", name),
            }
            for name in names
        },
    }


def recorded(path: Path, processor: str, settings: dict[str, Any], threads: Sequence[int]) -> list[dict[str, Any]]:
    """Return what a file has of the same step on the same processor with other numbers of threads."""
    report = json.loads(path.read_text()) if path.exists() else {"machine": {}}
    if report["machine"].get("processor") != processor or any(report[key] != settings[key] for key in settings):
        return []
    return [run for run in report["runs"] if run["threads"] not in threads]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also what torch.compile makes of the plain cells")
    parser.add_argument("--autocast", action="store_true", help="in bfloat16 where torch.autocast has it")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--peak", choices=list(WAYS), help="print the memory that one way needs, and end")
    parser.add_argument("--profile", choices=list(WAYS), help="print where the time of one way goes, and end")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak or arguments.profile:
        (print_peak if arguments.peak else print_profile)(arguments.peak or arguments.profile, arguments)
        return
    names = [name for name, (way, _) in WAYS.items() if arguments.compile or way != "compiled"]
    here = machine()
    peaks = {name: peak_bytes(name, arguments) for name in names if WAYS[name][0] != "compiled"}
    settings = {key: getattr(arguments, key) for key in ("cells", "channels", "batch", "size", "autocast")}
    runs = [measure(names, threads, arguments) for threads in arguments.threads]
    report: dict[str, Any] = {
        "machine": here,
        **settings,
        "peak_bytes": peaks,
        "runs": sorted(
            [*recorded(arguments.out, here["processor"], settings, arguments.threads), *runs],
            key=lambda run: run["threads"],
        ),
    }
    for run in runs:
        print(f"{run['threads']} thread(s)")
        print(f"  {'way':32} {'ms':>9} {'NCHW / it':>11} {'plain / it':>11} {'peak':>10} {'of plain':>9}")
        for name, way in run["ways"].items():
            line = f"  {name:32} {way['median_ms']:9.1f} {way['speedup_over_plain_nchw']:11.2f}"
            line += f" {way['speedup_over_plain_of_this_layout']:11.2f}"
            if name in peaks:
                line += f" {peaks[name] / 2**20:7.0f} MB {peaks[name] / peaks[f'plain, {WAYS[name][1]}']:9.2f}"
            print(line)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
