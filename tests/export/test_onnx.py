"""Exports compute what PyTorch computes, stand alone, and leave the model as it was."""

from __future__ import annotations

import ast

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from hwnas.errors import UnsupportedError
from hwnas.export import export_many, export_onnx
from hwnas.export.onnx import TENSORS
from hwnas.export.split import SCOPES


def run(model: bytes | str, *inputs: Tensor) -> list[Tensor]:
    content = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    feed = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, feed)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu()).mean((2, 3)))


class Mixer(nn.Module):
    """Two inputs and a nested result of three tensors, one of which comes twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, tuple[Tensor, ...]]:
        total = self.linear(a) + b
        return {"first": (total, total * 2), "second": (total,)}


class Ignorant(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return b + 1


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net()
    model(torch.randn(8, 3, 6, 6))  # statistics other than 0 and 1
    return model


def test_one_model(tmp_path, capfd, recwarn):
    model = net()
    model.norm.eval()  # flags that differ must come back as they were
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]

    path = export_onnx(model, torch.randn(2, 3, 6, 6), tmp_path / "sub" / "net.onnx")

    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [file.name for file in path.parent.iterdir()] == ["net.onnx"]  # weights inside
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(run(path, x)[0], model.eval()(x), rtol=1e-5, atol=1e-6)


def test_exports_are_reproducible_and_hold_no_trace_of_this_machine(tmp_path):
    contents = []
    for name in ("a.onnx", "b.onnx"):
        torch.manual_seed(0)
        contents.append(export_onnx(nn.Linear(3, 2), torch.randn(1, 3), tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert b".py" not in contents[0]
    assert b"stack_trace" not in contents[0]


def test_dynamic_batch(tmp_path):
    model = net().eval()
    path = export_onnx(model, torch.randn(1, 3, 6, 6), tmp_path / "net.onnx", dynamic_batch=True)
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 6, 6)
        torch.testing.assert_close(run(path, x)[0], model(x), rtol=1e-5, atol=1e-6)


def test_opset(tmp_path):
    path = export_onnx(nn.ReLU(), torch.randn(1), tmp_path / "net.onnx", opset=18)
    assert [entry.version for entry in onnx.load(path).opset_import if entry.domain == ""] == [18]


def test_what_cannot_be_exported_leaves_no_file(tmp_path):
    with pytest.raises(UnsupportedError, match="Branching cannot be exported"):
        export_onnx(Branching(), torch.randn(3), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_dynamic_batch_needs_a_dimension(tmp_path):
    with pytest.raises(UnsupportedError, match="input 0 has no dimensions"):
        export_onnx(nn.Identity(), torch.tensor(1.0), tmp_path / "net.onnx", dynamic_batch=True)


def candidates() -> tuple[list[nn.Module], list[tuple[Tensor, ...]]]:
    torch.manual_seed(1)
    shared = nn.Linear(4, 4)
    twin = nn.Linear(4, 4)
    twin.load_state_dict(shared.state_dict())
    x = torch.randn(2, 4)
    models: list[nn.Module] = [
        net(1),
        nn.Identity(),
        Mixer(),
        shared,
        nn.Sequential(shared, nn.ReLU(), shared),
        shared,
        twin,
        nn.Embedding(7, 3),
        Ignorant(),
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)),
    ]
    inputs: list[tuple[Tensor, ...]] = [
        (torch.randn(1, 3, 6, 6),),
        (torch.randn(1, 3, 6, 6),),
        (x, x),  # one tensor twice is still two inputs
        (x,),
        (x,),
        (x,),
        (x,),
        (torch.tensor([[1, 2, 6]]),),
        (torch.randn(3), torch.randn(2)),
        (torch.randn(1, 3, 5, 5),),
    ]
    return models, inputs


@pytest.fixture(scope="module")
def exported():
    models, inputs = candidates()
    return models, inputs, export_many(models, inputs)


def test_many_compute_what_pytorch_computes(exported):
    models, inputs, contents = exported
    assert len(contents) == len(models)
    torch.manual_seed(2)
    for model, example, content in zip(models, inputs, contents, strict=True):
        assert model.training
        fresh = [torch.randn_like(each) if each.is_floating_point() else each.flip(-1) for each in example]
        model.eval()
        expected = torch.utils._pytree.tree_leaves(model(*fresh))
        model.train()
        got = run(content, *fresh)
        assert len(got) == len(expected)
        for ours, truth in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-6)


def test_many_stand_alone(exported):
    models, _, contents = exported
    weights = [
        sum(len(tensor.raw_data) for tensor in onnx.load_from_string(each).graph.initializer) for each in contents
    ]
    for model, content, size in zip(models, contents, weights, strict=True):
        proto = onnx.load_from_string(content)
        onnx.checker.check_model(proto, full_check=True)
        # Not more weights than the model has: nobody else's came along. (Shape constants are small.)
        own = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        assert size <= own + 64
    assert [node.op_type for node in onnx.load_from_string(contents[1]).graph.node] == ["Identity"]
    # Each of the three that are one module, or equal to it, has its own copy of the weights.
    assert weights[3] == weights[5] == weights[6] == 80


def test_splitting_gives_the_graph_of_a_single_export(tmp_path):
    models, inputs = [nn.ReLU(), net(2)], [(torch.randn(3),), (torch.randn(2, 3, 6, 6),)]
    single = onnx.load(export_onnx(models[1], inputs[1], tmp_path / "single.onnx")).graph
    part = onnx.load_from_string(export_many(models, inputs)[1]).graph
    assert [node.op_type for node in part.node] == [node.op_type for node in single.node]
    assert scopes(part) == scopes(single)
    assert scopes(part)[-1] == ["", "head"]
    assert shapes(part) == shapes(single)


def scopes(graph: onnx.GraphProto) -> list[list[str]]:
    # The last entry is the operator's own name, which is counted through the whole graph.
    texts = [entry.value for node in graph.node for entry in node.metadata_props if entry.key == SCOPES]
    assert len(texts) == len(graph.node)
    return [ast.literal_eval(text)[:-1] for text in texts]


def shapes(graph: onnx.GraphProto) -> list[list[int]]:
    values = [*graph.input, *graph.output]
    return [[size.dim_value for size in value.type.tensor_type.shape.dim] for value in values]


def test_chunks_change_nothing(exported):
    models, inputs, whole = exported
    chunked = export_many(models[1:4], inputs[1:4], chunk=2)
    for ours, theirs in zip(chunked, whole[1:4], strict=True):
        one, other = onnx.load_from_string(ours).graph, onnx.load_from_string(theirs).graph
        assert [node.op_type for node in one.node] == [node.op_type for node in other.node]


def test_models_of_many_tensors_are_exported_alone(monkeypatch):
    together = []

    def export(models, inputs, first, opset):
        together.append((first, len(models)))
        return [b""] * len(models)

    monkeypatch.setattr("hwnas.export.onnx._export_together", export)
    large, small = nn.Sequential(*[nn.Linear(1, 1) for _ in range(TENSORS // 2)]), nn.Linear(1, 1)
    models, done = [small, small, large, large, small, small, small], []
    assert len(export_many(models, [(torch.zeros(1, 1),)] * 7, chunk=2, progress=done.append)) == 7
    assert together == [(0, 2), (2, 1), (3, 1), (4, 2), (6, 1)]
    assert done == [2, 3, 4, 6, 7]


def test_the_candidate_at_fault_is_named():
    models = [nn.ReLU(), Branching(), nn.ReLU()]
    with pytest.raises(UnsupportedError, match=r"candidate 1 \(Branching\)"):
        export_many(models, [(torch.randn(3),)] * 3)


def test_a_result_that_is_no_tensor_is_named():
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return x + 1, None

    with pytest.raises(UnsupportedError, match=r"candidate 0 \(Odd\).*output 1 is None"):
        export_many([Odd()], [(torch.randn(3),)])


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="2 models and 1 inputs"):
        export_many([nn.ReLU(), nn.ReLU()], [(torch.randn(3),)])
    with pytest.raises(ValueError, match="chunk is 0"):
        export_many([nn.ReLU()], [(torch.randn(3),)], chunk=0)
    with pytest.raises(UnsupportedError, match="input 0 is a list"):
        export_many([nn.ReLU()], [([1.0],)])
    assert export_many([], []) == []
