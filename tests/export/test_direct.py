"""Models that are written directly, against the exporter's and against PyTorch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hwnas.export import build_many, build_onnx, export_many
from hwnas.hub import DARTSSpace, DigitsSpace, ENASSpace, ShuffleNetV2Space
from hwnas.hub.mobilenet_v3 import MobileNetV3Space
from hwnas.hub.nas_bench_201 import NASBench201Space

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def nodes(model: bytes) -> Counter[tuple[object, ...]]:
    """Count the nodes, with their attributes and the shapes of their weights."""
    graph = onnx.load_from_string(model).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    return Counter(
        (
            node.op_type,
            tuple(
                sorted(
                    (a.name, repr(onnx.helper.get_attribute_value(a))) for a in node.attribute if a.name not in DEFAULT
                )
            ),
            tuple(weights.get(name) for name in node.input if weights.get(name) != ()),
        )
        for node in graph.node
    )


DEFAULT = ("auto_pad", "alpha", "epsilon", "momentum", "transA")


def run(model: bytes, *inputs: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)}))


def trained(model: nn.Module) -> nn.Module:
    """Give normalisations something to do: the exporter leaves out shifts of zero."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.bias.data, module.weight.data):
                tensor.add_(torch.rand(tensor.shape, generator=generator))
    return model.eval()


def members() -> list[tuple[nn.Module, Tensor]]:
    cell = NASBench201Space.from_string(
        "|nor_conv_1x1~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|none~2|"
    )
    mobile = MobileNetV3Space(classes=4, width_multipliers=(0.5,), depth=(1, 1))
    found = [
        (DigitsSpace().freeze(DigitsSpace().random(random_state=3)), torch.randn(2, 1, 8, 8)),
        (NASBench201Space(channels=4, cells=1).freeze(cell), torch.randn(1, 3, 16, 16)),
        (mobile.freeze(mobile.random(random_state=0)), torch.randn(1, 3, 32, 32)),
    ]
    return [(trained(model), x) for model, x in found]


def test_nodes_are_those_of_the_exporter() -> None:
    models, inputs = zip(*members(), strict=True)
    exported = export_many(models, [(x,) for x in inputs])
    for model, x, truth in zip(models, inputs, exported, strict=True):
        built = build_onnx(model, (x,))
        assert built is not None
        assert nodes(built) == nodes(truth)
        with torch.no_grad():
            np.testing.assert_allclose(run(built, x)[0], model(x).numpy(), rtol=1e-3, atol=1e-4)


OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "clip": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": lambda x: torch.tanh(x) - 0.5 * torch.sigmoid(x) / 3,
    "average": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average all": lambda x: F.avg_pool2d(x, (2, 3)),
    "maximum": lambda x: F.max_pool2d(x, 3, 2, 1, dilation=1, ceil_mode=True),
    "maximum alone": lambda x: F.max_pool2d(x, 2),
    "mean": lambda x: x.mean((-1, -2), keepdim=True) * x,
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    "concat": lambda x: torch.cat([x, x.relu()], 1).reshape(2, -1),
    "zeros": lambda x: x + torch.zeros_like(x) + torch.ones_like(x),
    "slice": lambda x: x[:, 1:, -3:, ::2].relu(),
    "slice of all": lambda x: x[:, :, 0:].relu(),
    "slices of one axis": lambda x: x[:, 1:3] * x[:, -2:] + x[:, :2] * x[:, :-2],
    "pad": lambda x: F.pad(x, (0, 1, 2, 3)),
    "pad with a value": lambda x: F.pad(x, (1, 0, 0, 0, 2, 1), value=2.5),
    "transpose": lambda x: x.transpose(1, -1).reshape(2, -1),
    "shuffle": lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
    "split": lambda x: (lambda one, two: two * two - torch.cat([one, one, one], 1))(*x.split([1, 3], 1)),
    "split with a rest": lambda x: (lambda one, two, three: one * two.relu() + three)(*x.split(3, -1)[:2], x[..., :3]),
    "halves": lambda x: (lambda one, two: torch.cat([two.relu(), one], -2))(*x.chunk(2, -2)),
    "unused": lambda x: (x.exp() if False else x.relu(), x * 2)[0],
}


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_compute_what_pytorch_does(name: str) -> None:
    module = Function(OPERATORS[name])
    built = build_onnx(module, (X,))
    assert built is not None
    np.testing.assert_allclose(run(built, X)[0], module(X).numpy(), rtol=1e-4, atol=1e-5)


def test_views_are_written_as_the_exporter_does() -> None:
    names = ("slice", "slice of all", "slices of one axis", "pad", "pad with a value", "transpose", "shuffle")
    names += ("split", "split with a rest", "halves")
    modules = [Function(OPERATORS[name]) for name in names]
    for name, module, truth in zip(names, modules, export_many(modules, [(X,)] * len(modules)), strict=True):
        built = build_onnx(module, (X,))
        assert built is not None
        assert nodes(built) == nodes(truth), name


def test_several_results_of_one_node() -> None:
    module = Function(lambda x: x.split([1, 3], 1))
    built = build_onnx(module, (X,))
    assert built is not None
    assert [kind for kind, *_ in nodes(built)] == ["Split"]
    for result, truth in zip(run(built, X), X.split([1, 3], 1), strict=True):
        np.testing.assert_array_equal(result, truth.numpy())


@pytest.mark.parametrize("size", [32, 30])  # an odd number of pixels is padded
def test_cells_of_the_hub_need_no_exporter(size: int) -> None:
    for space in (
        DARTSSpace(width=4, num_cells=3),
        ENASSpace(width=4, num_cells=3),
        ShuffleNetV2Space(classes=4, stem_width=4, widths=(8, 16, 24, 32), depths=(1, 1, 1, 1)),
    ):
        model, x = trained(space.freeze(space.random(random_state=0))), torch.randn(1, 3, size, size)
        built = build_onnx(model, (x,))
        assert built is not None, type(space).__name__
        with torch.no_grad():
            np.testing.assert_allclose(run(built, x)[0], model(x).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, (3, 1), stride=2, padding=(1, 0), groups=2),
        nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 3)),
    ],
)
def test_layers_compute_what_pytorch_does(layer: nn.Module) -> None:
    layer = trained(layer)
    built = build_onnx(layer, (X,))
    assert built is not None
    with torch.no_grad():
        np.testing.assert_allclose(run(built, X)[0], layer(X).numpy(), rtol=1e-4, atol=1e-4)


def test_a_convolution_that_is_read_twice_keeps_its_normalisation() -> None:
    conv, norm = nn.Conv2d(4, 4, 1), trained(nn.BatchNorm2d(4))
    module = Function(lambda x: (y := conv(x)) + norm(y))
    built = build_onnx(module, (X,))
    assert built is not None
    assert "BatchNormalization" in {kind for kind, *_ in nodes(built)}
    with torch.no_grad():
        np.testing.assert_allclose(run(built, X)[0], module(X).numpy(), rtol=1e-4, atol=1e-5)


def test_nothing_is_written_that_no_output_needs() -> None:
    built = build_onnx(Function(lambda x: (x.relu(), x.tanh())[0]), (X,))
    assert built is not None
    assert [kind for kind, *_ in nodes(built)] == ["Relu"]


def test_a_constant_that_is_read_twice_stays_one() -> None:
    def function(x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        return (x + zero) * (zero + 1).tanh()

    built = build_onnx(Function(function), (X,))
    assert built is not None
    assert [kind for kind, *_ in nodes(built)] == ["Add", "Mul"]


def test_results_that_are_arguments_or_constants() -> None:
    for module in (nn.Identity(), Function(lambda x: torch.zeros_like(x))):
        built = build_onnx(module, (X,))
        assert built is not None
        np.testing.assert_array_equal(run(built, X)[0], module(X).numpy())


def test_unknown_operators_go_to_the_exporter() -> None:
    known, unknown = Function(torch.relu), Function(lambda x: torch.cumsum(x, 1))
    assert build_onnx(unknown, (X,)) is None
    done: list[int] = []
    models = build_many([known, unknown, known], [(X,)] * 3, progress=done.append)
    assert done == [1, 1, 2, 3]
    assert models[0] == models[2] == build_onnx(known, (X,))
    np.testing.assert_allclose(run(models[1], X)[0], X.cumsum(1).numpy(), rtol=1e-4, atol=1e-5)


def test_the_mode_of_the_model_stays() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.ReLU()).train()
    assert build_onnx(model, (X,)) is not None
    assert model.training
    assert model[0].training
