"""Run as ``python measure.py``: measures the models of its folder with onnxruntime, and writes ``results.json``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import onnxruntime

from hwnas.errors import HwnasError
from hwnas.profilers.device import describe_device
from hwnas.profilers.measurement import References, Workload
from hwnas.profilers.measuring import measure
from hwnas.profilers.target import OrtTarget


def main(folder: Path) -> None:
    """Measure, and write the results beside the models, all or nothing."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    target = OrtTarget.from_dict({**plan["target"], "onnxruntime": onnxruntime.__version__})
    names = {entry["key"]: entry["name"] for entry in plan["workloads"]}
    models = {key: (folder / "models" / f"{key}.onnx").read_bytes() for key in names}

    def progress(done: int, total: int) -> None:
        print(f"\r{done} of {total} models measured", end="", file=sys.stderr, flush=True)

    session = measure(
        [Workload(key, models[key], name) for key, name in names.items()],
        target,
        budget_s=plan["budget_s"],
        relative_error=plan["relative_error"],
        seed=plan["seed"],
        references=References(*((folder / f"{name}.onnx").read_bytes() for name in ("identity", "canary"))),
        progress=progress,
    )
    print(file=sys.stderr)
    results = {
        "schema_version": plan["schema_version"],
        "device": describe_device().to_dict(),
        "target": target.to_dict(),
        "session": dataclasses.asdict(session),
    }
    unfinished = folder / "results.json.part"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(results, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / "results.json")
    print(f"wrote {folder / 'results.json'}; bring the folder back")


if __name__ == "__main__":
    try:
        main(Path(__file__).resolve().parent)
    except HwnasError as error:
        sys.exit(f"error: {error}")
