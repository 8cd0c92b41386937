"""``hwnas export``: write one member of a space as a verified ONNX bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwnas.cli.console import narration
from hwnas.cli.exit_codes import UsageError, exit_codes
from hwnas.cli.options import BatchSize, Debug, Json, Seed, Space
from hwnas.cli.output import print_json, print_lines, print_table
from hwnas.errors import SampleError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwnas.experiment import Task
    from hwnas.export import Bundle
    from hwnas.space import Mutable, Sample

VERIFIED_BATCHES = 8


def export(
    space: Space,
    sample: Annotated[
        Path,
        typer.Option(
            "--sample",
            exists=True,
            help="A sample in JSON; or a run folder or a bundle, for its choice.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder for the three files.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            exists=True,
            dir_okay=False,
            show_default="those of the run folder or bundle",
            help="Weights of the member, in safetensors.",
        ),
    ] = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Export one member of SPACE to ONNX, verify it against PyTorch on test data, write it with its weights.

    Exit code 4: the exported file computes something else than PyTorch.
    """
    with exit_codes(debug=debug), narration() as narrator:
        from hwnas.experiment import load_task
        from hwnas.export import write_bundle
        from hwnas.space import sample_to_json

        task = load_task(space, seed)
        bundle_folder = _bundle_folder(sample)
        member = _read_sample(sample, bundle_folder, task.make_space())
        if weights is None and bundle_folder is not None:
            weights = bundle_folder / "model.safetensors"
        model = _make_model(task, member, weights, seed)
        if weights is None:
            narrator.say("no --weights: the exported model is untrained")
        narrator.stage("export and verify")
        bundle = write_bundle(
            out,
            model,
            sample_to_json(member),
            task.example(batch_size),
            metadata={
                "task": task.name,
                "batch_size": batch_size,
                "weights": None if weights is None else str(weights),
            },
            verify_inputs=_test_batches(task, batch_size),
        )
    if as_json:
        print_json({"folder": str(bundle.folder), **bundle.description})
    else:
        _print(bundle)


def _bundle_folder(path: Path) -> Path | None:
    """Find the bundle in a run folder, or in a folder that is one."""
    if not path.is_dir():
        return None
    for folder in (path / "model", path):
        if (folder / "architecture.json").is_file():
            return folder
    raise UsageError(
        f"--sample: {path} has neither model/architecture.json nor architecture.json; a run folder has "
        "them once its search is done"
    )


def _read_sample(path: Path, bundle_folder: Path | None, space: Mutable) -> Sample:
    from hwnas.space import load_sample, sample_from_json

    try:
        if bundle_folder is None:
            return load_sample(path, space)
        path = bundle_folder / "architecture.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        return sample_from_json(data["sample"], space)
    except (SampleError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--sample: {path} does not fit the space: {error}") from error


def _make_model(task: Task, sample: Sample, weights: Path | None, seed: int) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from hwnas.experiment.training import fresh_member

    model = fresh_member(task, sample, seed)
    if weights is not None:
        try:
            model.load_state_dict(load_file(weights))
        except (SafetensorError, RuntimeError) as error:
            raise UsageError(f"--weights: {weights} does not fit the member: {error}") from error
    return model.eval()


def _test_batches(task: Task, size: int) -> list[tuple[Tensor, ...]]:
    images = task.data.test.tensors[0]
    starts = range(0, len(images) - size + 1, size)[:VERIFIED_BATCHES]
    return [(images[start : start + size],) for start in starts] or [(task.example(size),)]


def _print(bundle: Bundle) -> None:
    description: dict[str, Any] = bundle.description
    rows = [
        (str(bundle.folder / name), f"{known['bytes']:,}", known["sha256"][:16])
        for name, known in description["files"].items()
    ]
    description_file = bundle.folder / "architecture.json"
    rows.append((str(description_file), f"{description_file.stat().st_size:,}", ""))
    print_table("written", ["file", "bytes", "SHA-256"], rows)
    values = ", ".join(f"{name} {_brief(value)}" for name, value in description["verification"].items())
    print_lines(f"verified against PyTorch: {values}")


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
