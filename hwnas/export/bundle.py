"""What is handed over after a search: the model in two forms, and a description that vouches for both."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hwnas import __version__
from hwnas.atomic import replacing, write_text
from hwnas.errors import UnsupportedError, VerificationError
from hwnas.export.onnx import export_onnx
from hwnas.export.verify import verify_onnx

SCHEMA_VERSION = 1
MODEL, WEIGHTS, DESCRIPTION = "model.onnx", "model.safetensors", "architecture.json"


@dataclass(frozen=True)
class Bundle:
    """A folder with ``model.onnx``, ``model.safetensors`` and ``architecture.json``.

    Attributes
    ----------
    folder : pathlib.Path
        Where they are.
    description : dict
        The content of ``architecture.json``: ``schema_version``, ``sample``, ``metadata``, ``inputs`` and
        ``outputs`` (name, dtype and shape of each; a free dimension is a string), ``verification``, ``files``
        (SHA-256 and size) and ``versions``.
    """

    folder: Path
    description: dict[str, Any]

    @property
    def sample(self) -> dict[str, Any]:
        """The architecture, as it was given."""
        return self.description["sample"]  # type: ignore[no-any-return]

    @property
    def metadata(self) -> dict[str, Any]:
        """Costs and whatever else was given."""
        return self.description["metadata"]  # type: ignore[no-any-return]

    @property
    def onnx_path(self) -> Path:
        """The ONNX model."""
        return self.folder / MODEL

    def state_dict(self) -> dict[str, Tensor]:
        """Read the weights, for ``load_state_dict`` of the PyTorch model."""
        from safetensors.torch import load_file

        return load_file(self.folder / WEIGHTS)


def write_bundle(
    folder: str | os.PathLike[str],
    model: nn.Module,
    sample_json: Mapping[str, Any],
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    metadata: Mapping[str, Any],
    verify_inputs: Sequence[tuple[Tensor, ...]],
    dynamic_batch: bool = False,
    atol: float = 1e-5,
    rtol: float = 1e-4,
) -> Bundle:
    """Export a model, verify it, and write the bundle; nothing appears before the model is verified.

    A new folder appears as a whole. In one that exists the three files are replaced one by one, the
    description last; should that be cut off, `load_bundle` refuses the mixture.

    Parameters
    ----------
    folder : path-like
        Where to write.
    model : nn.Module
        The final model. It keeps its training flags.
    sample_json : mapping
        The architecture as JSON can hold it.
    example_inputs : Tensor or tuple of Tensor
        See `export_onnx`.
    metadata : mapping
        Costs and whatever else belongs to the architecture, as JSON can hold it.
    verify_inputs : sequence of tuple of Tensor
        Inputs on which ONNX Runtime and PyTorch must agree.
    dynamic_batch : bool
        See `export_onnx`.
    atol, rtol : float
        See `verify_onnx`.

    Returns
    -------
    Bundle
        What was written.

    Raises
    ------
    VerificationError
        If the exported model computes something else.
    UnsupportedError
        If the model cannot be exported, or the sample or the metadata have no JSON form.
    """
    target = Path(folder)
    for name, data in (("sample_json", sample_json), ("metadata", metadata)):
        _check_json(name, data)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        export_onnx(model, example_inputs, temporary / MODEL, dynamic_batch=dynamic_batch)
        verification = verify_onnx(temporary / MODEL, model, verify_inputs, atol=atol, rtol=rtol)
        _write_weights(model, temporary / WEIGHTS)
        inputs, outputs = _signature(temporary / MODEL)
        description = {
            "schema_version": SCHEMA_VERSION,
            "sample": dict(sample_json),
            "metadata": dict(metadata),
            "inputs": inputs,
            "outputs": outputs,
            "verification": vars(verification),
            "files": {name: _fingerprint(temporary / name) for name in (MODEL, WEIGHTS)},
            "versions": _versions(),
        }
        write_text(temporary / DESCRIPTION, json.dumps(description, indent=2, allow_nan=False) + "\n")
        _move(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    # As a reader will see it: tuples have become lists, keys text.
    return Bundle(target, json.loads(json.dumps(description)))


def load_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Read a bundle and check that its files are the ones that were written together.

    Parameters
    ----------
    folder : path-like
        As given to `write_bundle`.

    Raises
    ------
    FileNotFoundError
        If one of the three files is missing.
    UnsupportedError
        If the description is not one, or was written by a later version with another schema.
    VerificationError
        If a file differs from its SHA-256.
    """
    source = Path(folder)
    for name in (DESCRIPTION, MODEL, WEIGHTS):
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source}: {name} is missing; a bundle has {DESCRIPTION}, {MODEL} and {WEIGHTS}.")
    try:
        description = json.loads((source / DESCRIPTION).read_text(encoding="utf-8"))
        schema, files = description["schema_version"], description["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedError(f"{source / DESCRIPTION} does not describe a bundle: {error!r}.") from error
    if schema != SCHEMA_VERSION:
        raise UnsupportedError(
            f"{source / DESCRIPTION}: schema_version is {schema!r}, expected {SCHEMA_VERSION}. Read it with "
            "the version of hwnas that wrote it, which stands under versions."
        )
    for name in (MODEL, WEIGHTS):
        expected, got = files.get(name), _fingerprint(source / name)
        if got != expected:
            raise VerificationError(
                f"{source / name} is not the file that {DESCRIPTION} describes: expected {expected}, got "
                f"{got}. Write the bundle again, or fetch it from where it is whole."
            )
    return Bundle(source, description)


def _check_json(name: str, data: Mapping[str, Any]) -> None:
    try:
        json.dumps(dict(data), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UnsupportedError(
            f"write_bundle: {name} has no JSON form: {error}. Use text, finite numbers, lists and dictionaries."
        ) from error


def _write_weights(model: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    # The format has no shared tensors: a tied weight is written under each of its names, so that any reader
    # gets the whole state; tying is the model's own doing and is there again once the model is built.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})


def _signature(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return name, dtype and shape of the inputs and of the outputs."""
    import onnx

    def describe(value: onnx.ValueInfoProto) -> dict[str, Any]:
        kind = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        shape = [size.dim_param or size.dim_value for size in kind.shape.dim]
        return {"name": value.name, "dtype": str(dtype), "shape": shape}

    graph = onnx.load(path).graph
    return [describe(value) for value in graph.input], [describe(value) for value in graph.output]


def _fingerprint(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _versions() -> dict[str, str | None]:
    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors")
    return {
        "hwnas": __version__,
        "python": platform.python_version(),
        **{package: of(package) for package in packages},
    }


def _move(temporary: Path, target: Path) -> None:
    """Make the folder `temporary` the folder `target`, or its files the files there."""
    # mkdtemp makes private folders; what people exchange follows the umask.
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o777 & ~mask)
    if not target.exists():
        temporary.rename(target)
        return
    for name in (MODEL, WEIGHTS, DESCRIPTION):
        (temporary / name).replace(target / name)
