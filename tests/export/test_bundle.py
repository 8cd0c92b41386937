"""A bundle is whole, vouches for its files, and does not appear when the model is not right."""

from __future__ import annotations

import hashlib
import json
import stat

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from hwnas.errors import UnsupportedError, VerificationError
from hwnas.export import load_bundle, write_bundle

SAMPLE = {"schema_version": 1, "values": {"net/width": 4, "net/act": "relu"}}
METADATA = {"latency_ms": 1.5, "macs": 48}


class Tied(nn.Module):
    """Encoder and decoder share a weight; a view of another storage is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 4, bias=False)
        self.decode = nn.Linear(4, 4, bias=False)
        self.decode.weight = self.encode.weight
        self.offset = nn.Buffer(torch.arange(8.0)[::2])

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x).relu()) + self.offset


def tied() -> Tied:
    torch.manual_seed(0)
    return Tied()


def batches(n: int) -> list[tuple[Tensor, ...]]:
    torch.manual_seed(1)
    return [(torch.randn(2, 4),) for _ in range(n)]


def write(folder, model=None, **kwargs):
    arguments = {"metadata": METADATA, "verify_inputs": batches(2)} | kwargs
    return write_bundle(folder, model or tied(), SAMPLE, torch.randn(2, 4), **arguments)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles") / "best"
    return write(folder)


def test_a_new_folder_has_three_files_and_nothing_is_left_beside_it(written):
    assert sorted(file.name for file in written.folder.iterdir()) == [
        "architecture.json",
        "model.onnx",
        "model.safetensors",
    ]
    assert list(written.folder.parent.iterdir()) == [written.folder]
    plain = written.folder.parent / "plain"
    plain.mkdir()
    assert stat.S_IMODE(written.folder.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    plain.rmdir()


def test_description(written):
    data = json.loads((written.folder / "architecture.json").read_text())
    assert data["schema_version"] == 1
    assert data["sample"] == SAMPLE
    assert data["metadata"] == METADATA
    assert [(entry["dtype"], entry["shape"]) for entry in data["inputs"]] == [("float32", [2, 4])]
    assert [(entry["dtype"], entry["shape"]) for entry in data["outputs"]] == [("float32", [2, 4])]
    for name in ("model.onnx", "model.safetensors"):
        content = (written.folder / name).read_bytes()
        assert data["files"][name] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert (
        data["versions"]["torch"] == torch.__version__.split("+")[0] or data["versions"]["torch"] == torch.__version__
    )
    assert data["verification"]["n_batches"] == 2


def test_names_in_the_description_run_the_model(written):
    bundle = load_bundle(written.folder)
    session = onnxruntime.InferenceSession(bundle.onnx_path, providers=["CPUExecutionProvider"])
    x = torch.randn(2, 4)
    names = [entry["name"] for entry in bundle.description["outputs"]]
    got = session.run(names, {bundle.description["inputs"][0]["name"]: x.numpy()})
    np.testing.assert_allclose(got[0], tied()(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_weights_come_back_tied(written):
    bundle = load_bundle(written.folder)
    assert bundle.description == written.description
    model = tied()
    with torch.no_grad():
        model.encode.weight.zero_()
        model.offset.zero_()
    model.load_state_dict(bundle.state_dict())
    assert model.decode.weight is model.encode.weight
    for name, tensor in tied().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_nothing_appears_when_verification_fails(tmp_path, monkeypatch):
    import hwnas.export.bundle as bundle

    right = bundle.export_onnx

    def wrong(model, *args, **kwargs):
        other = tied()
        with torch.no_grad():
            other.offset += 1
        return right(other, *args, **kwargs)

    monkeypatch.setattr(bundle, "export_onnx", wrong)
    with pytest.raises(VerificationError, match="largest difference 1"):
        write(tmp_path / "best")
    assert not list(tmp_path.iterdir())


def test_an_older_bundle_survives_a_failure_and_is_replaced_by_success(tmp_path, written):
    folder = tmp_path / "best"
    folder.mkdir()
    for file in written.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(VerificationError):
        write(folder, verify_inputs=[(torch.full((2, 4), torch.nan),)])
    assert load_bundle(folder).description == written.description

    with torch.no_grad():
        (model := tied()).offset += 1
    write(folder, model)
    assert torch.equal(load_bundle(folder).state_dict()["offset"], model.offset)
    assert (folder / "notes.txt").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors"])
def test_damage_is_found(tmp_path, written, name):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in written.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    load_bundle(folder)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(VerificationError, match=name):
        load_bundle(folder)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_bundle(folder)


def test_other_descriptions_are_refused(tmp_path, written):
    for name in ("model.onnx", "model.safetensors"):
        (tmp_path / name).write_bytes((written.folder / name).read_bytes())
    for text, message in (
        ("{", "does not describe"),
        ("[]", "does not describe"),
        ("{}", "does not describe"),
    ):
        (tmp_path / "architecture.json").write_text(text)
        with pytest.raises(UnsupportedError, match=message):
            load_bundle(tmp_path)
    (tmp_path / "architecture.json").write_text(json.dumps(written.description | {"schema_version": 2}))
    with pytest.raises(UnsupportedError, match="schema_version is 2, expected 1"):
        load_bundle(tmp_path)


def test_what_json_cannot_hold_is_refused_at_once(tmp_path):
    with pytest.raises(UnsupportedError, match="metadata has no JSON form"):
        write(tmp_path / "best", metadata={"latency_ms": float("nan")})
    assert not list(tmp_path.iterdir())
