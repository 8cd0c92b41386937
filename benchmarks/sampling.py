"""How long it takes to draw members of a large space and to check that they belong to it.

    python benchmarks/sampling.py [--members 1000] [--nni PYTHON]

The space is the one of MobileNetV3. With ``--nni``, the path of an interpreter that has ``nni==3.0`` installed, the
space of the same name of that library is sampled and checked beside it, in turns, so that both meet the same load. Both
draw a value for each label without freezing a model.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from pathlib import Path

from hwnas.hub import MobileNetV3Space

NNI = """
import time, warnings
warnings.filterwarnings("ignore")
from nni.nas.hub.pytorch import MobileNetV3Space
started = time.perf_counter()
space = MobileNetV3Space()
print(time.perf_counter() - started, len(space.simplify()), flush=True)
while True:
    input()
    started = time.perf_counter()
    for _ in range({members}):
        sample = {{}}
        for mutable in space.simplify().values():
            mutable.random(sample)
        space.validate(sample)
    print(time.perf_counter() - started, flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nni", help="an interpreter with nni==3.0")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sampling.json")
    arguments = parser.parse_args()

    started = time.perf_counter()
    space = MobileNetV3Space()
    built_s = time.perf_counter() - started
    report = {
        "python": platform.python_version(),
        "hwnas": {"build_s": built_s, "labels": len(space.simplify())},
    }
    few = max(1, arguments.members // 100)  # of the other library, which takes far longer
    other = None
    if arguments.nni:
        other = subprocess.Popen(
            [arguments.nni, "-c", NNI.format(members=few)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        build_s, labels = other.stdout.readline().split()
        report["nni"] = {"build_s": float(build_s), "labels": int(labels)}

    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(arguments.rounds):
        started = time.perf_counter()
        for seed in range(arguments.members):
            space.validate(space.random(random_state=turn * arguments.members + seed))
        ours.append((time.perf_counter() - started) / arguments.members * 1e3)
        if other is not None:
            other.stdin.write("\n")
            other.stdin.flush()
            theirs.append(float(other.stdout.readline()) / few * 1e3)
    if other is not None:
        other.kill()

    report["hwnas"] |= {"ms_per_member": statistics.median(ours), "rounds_ms": ours}
    print(f"hwnas: {report['hwnas']['labels']} labels, {statistics.median(ours):.3f} ms a member")
    if theirs:
        ratio = statistics.median(their / our for their, our in zip(theirs, ours, strict=True))
        report["nni"] |= {"ms_per_member": statistics.median(theirs), "rounds_ms": theirs}
        report["ratio"] = ratio
        print(
            f"nni 3.0: {report['nni']['labels']} labels, {statistics.median(theirs):.1f} ms a member, "
            f"{ratio:.0f} times as long"
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
