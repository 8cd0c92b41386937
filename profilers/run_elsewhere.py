"""Run as ``python measure.py``: measures the models of its folder with onnxruntime, and writes ``results.json``.

What is finished is kept every few seconds, so a run after one that was killed goes on where that one ended.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from pathlib import Path

import onnxruntime

from hwnas.errors import HwnasError
from hwnas.profilers.device import Device, describe_device
from hwnas.profilers.measurement import Measurement, References, SessionResult, Workload
from hwnas.profilers.measuring import measure
from hwnas.profilers.session_scale import Scale
from hwnas.profilers.store import LatencyStore
from hwnas.profilers.target import OrtTarget

JOURNAL = "unfinished.sqlite"  # what has been measured so far


REFERENCES = 12  # models of a run that was killed which the next one measures again, to tell how far the device drifted


def main(folder: Path) -> None:
    """Measure what is not known yet, and write the results beside the models, all or nothing."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    target = OrtTarget.from_dict({**plan["target"], "onnxruntime": onnxruntime.__version__})
    names = {entry["key"]: entry["name"] for entry in plan["workloads"]}
    device = describe_device()
    journal = folder / JOURNAL
    with LatencyStore(journal) as store:
        known = store.lookup(list(names), device.key, target.key)
        if known:
            print(f"going on: {len(known)} of {len(names)} models were measured before", file=sys.stderr)
        again = sorted(known, key=lambda key: known[key].stderr_ms / known[key].latency_ms)[:REFERENCES]
        wanted = [*(key for key in names if key not in known), *again]
        record = functools.partial(store.record, device, target)
        session = measure(
            [Workload(key, (folder / "models" / f"{key}.onnx").read_bytes(), names[key]) for key in wanted],
            target,
            budget_s=plan["budget_s"] * min(len(wanted) / len(names), 1.0) if names else plan["budget_s"],
            relative_error=plan["relative_error"],
            min_visits=plan["min_visits"],
            floor_ms=store.canary_floor_ms(device.key, target.key),
            seed=plan["seed"],
            references=References(*((folder / f"{name}.onnx").read_bytes() for name in ("identity", "canary"))),
            anchors=again,
            record=record,
            progress=lambda done, total: _say(done + len(names) - total, len(names)),
        )
        record(session)
        print(file=sys.stderr)
        results = {
            "schema_version": plan["schema_version"],
            "device": device.to_dict(),
            "target": target.to_dict(),
            "session": dataclasses.asdict(_joined(session, store, list(names), device, target)),
        }
    unfinished = folder / "results.json.part"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(results, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / "results.json")
    journal.unlink()
    print(f"wrote {folder / 'results.json'}; bring the folder back")


def _say(done: int, total: int) -> None:
    print(f"\r{max(done, 0)} of {total} models measured", end="", file=sys.stderr, flush=True)


def _joined(
    session: SessionResult, store: LatencyStore, keys: list[str], device: Device, target: OrtTarget
) -> SessionResult:
    """Return the last session with what those before it have measured, all on the scale of the first."""
    scale = store.sessions(device.key, target.key)[-1].scale
    return dataclasses.replace(
        session,
        measurements=store.lookup(keys, device.key, target.key),
        overhead=_scaled(session.overhead, scale),
        canary=_scaled(session.canary, scale),
        canary_floor_ms=session.canary_floor_ms * scale.at(session.canary_floor_ms),
    )


def _scaled(found: Measurement, scale: Scale) -> Measurement:
    factor = scale.at(found.latency_ms)
    return dataclasses.replace(found, latency_ms=found.latency_ms * factor, stderr_ms=found.stderr_ms * factor)


if __name__ == "__main__":
    try:
        main(Path(__file__).resolve().parent)
    except HwnasError as error:
        sys.exit(f"error: {error}")
