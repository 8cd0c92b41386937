"""Each class of `torch.nn` has a twin that takes choices, and its types are written down for editors."""

from __future__ import annotations

import ast
import copy
import inspect
import io
import pickle
import pydoc
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.nn import twins
from hwnas.nn.holding import OF_PYTORCH
from hwnas.nn.parametrized import signature_of

ROOT = Path(__file__).parents[2]
TWINS = {name: getattr(nn, name) for name in twins.__all__ if getattr(nn, name) is not getattr(torch.nn, name)}

# Twin: (constant arguments, the argument that is chosen, its default and another value).
Row = tuple[dict[str, Any], str, Any, Any]
IN_OUT = {"in_channels": 4, "out_channels": 4}
TABLE: dict[str, Row] = {
    **{f"AdaptiveAvgPool{n}d": ({}, "output_size", 2, 3) for n in (1, 2, 3)},
    **{f"AdaptiveMaxPool{n}d": ({}, "output_size", 2, 3) for n in (1, 2, 3)},
    "AdaptiveLogSoftmaxWithLoss": ({"in_features": 16, "n_classes": 20}, "cutoffs", (5,), (5, 10)),
    **{name: ({}, "p", 0.5, 0.1) for name in ("AlphaDropout", "FeatureAlphaDropout", "Dropout")},
    **{f"Dropout{n}d": ({}, "p", 0.5, 0.1) for n in (1, 2, 3)},
    **{f"AvgPool{n}d": ({}, "kernel_size", 2, 3) for n in (1, 2, 3)},
    **{f"MaxPool{n}d": ({}, "kernel_size", 2, 3) for n in (1, 2, 3)},
    **{f"MaxUnpool{n}d": ({}, "kernel_size", 2, 3) for n in (1, 2, 3)},
    **{f"LPPool{n}d": ({"norm_type": 2}, "kernel_size", 2, 3) for n in (1, 2, 3)},
    **{f"FractionalMaxPool{n}d": ({"kernel_size": 2}, "output_size", 2, 3) for n in (2, 3)},
    **{f"Conv{n}d": ({"out_channels": 4, "kernel_size": 3}, "in_channels", 2, 3) for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": ({**IN_OUT, "kernel_size": 3}, "groups", 1, 2) for n in (1, 2, 3)},
    **{f"LazyConv{n}d": ({"kernel_size": 3}, "out_channels", 2, 3) for n in (1, 2, 3)},
    **{f"LazyConvTranspose{n}d": ({"out_channels": 3}, "kernel_size", 2, 3) for n in (1, 2, 3)},
    **{f"BatchNorm{n}d": ({}, "num_features", 2, 3) for n in (1, 2, 3)},
    **{f"InstanceNorm{n}d": ({"num_features": 2}, "affine", False, True) for n in (1, 2, 3)},
    **{f"LazyBatchNorm{n}d": ({}, "eps", 1e-5, 1e-3) for n in (1, 2, 3)},
    **{f"LazyInstanceNorm{n}d": ({}, "affine", False, True) for n in (1, 2, 3)},
    **{f"{kind}Pad{n}d": ({}, "padding", 1, 2) for kind in ("Circular", "Reflection", "Replication", "Zero")
       for n in (1, 2, 3)},
    **{f"ConstantPad{n}d": ({"padding": 1}, "value", 0.0, 0.5) for n in (1, 2, 3)},
    **{name: ({}, "reduction", "mean", "sum") for name in (
        "BCELoss", "BCEWithLogitsLoss", "CTCLoss", "GaussianNLLLoss", "HingeEmbeddingLoss", "KLDivLoss", "L1Loss",
        "MSELoss", "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss", "NLLLoss", "PoissonNLLLoss", "SmoothL1Loss",
        "SoftMarginLoss")},
    **{name: ({}, "margin", 1.0, 0.5) for name in (
        "CosineEmbeddingLoss", "MarginRankingLoss", "MultiMarginLoss", "TripletMarginLoss",
        "TripletMarginWithDistanceLoss")},
    "CrossEntropyLoss": ({"weight": torch.ones(3)}, "label_smoothing", 0.0, 0.1),
    "HuberLoss": ({}, "delta", 1.0, 2.0),
    "LinearCrossEntropyLoss": ({"in_features": 3}, "num_classes", 4, 5),
    "Bilinear": ({"in1_features": 2, "out_features": 3}, "in2_features", 2, 3),
    "CELU": ({}, "alpha", 1.0, 2.0),
    "ELU": ({}, "alpha", 1.0, 2.0),
    "ChannelShuffle": ({}, "groups", 2, 3),
    "CosineSimilarity": ({}, "dim", 1, 2),
    "CrossMapLRN2d": ({}, "size", 3, 5),
    "LocalResponseNorm": ({}, "size", 3, 5),
    "Embedding": ({"num_embeddings": 5}, "embedding_dim", 3, 4),
    "EmbeddingBag": ({"num_embeddings": 5, "embedding_dim": 3}, "mode", "mean", "sum"),
    "Flatten": ({}, "start_dim", 1, 2),
    "Unflatten": ({"dim": 1}, "unflattened_size", (2, 3), (3, 2)),
    "Fold": ({"kernel_size": 2}, "output_size", 4, 6),
    "Unfold": ({}, "kernel_size", 2, 3),
    "GELU": ({}, "approximate", "none", "tanh"),
    "GLU": ({}, "dim", -1, 1),
    **{name: ({"input_size": 3}, "hidden_size", 4, 5) for name in ("GRU", "LSTM", "GRUCell", "LSTMCell")},
    "RNN": ({"input_size": 3, "hidden_size": 4}, "nonlinearity", "tanh", "relu"),
    "RNNBase": ({"mode": "GRU", "input_size": 3, "hidden_size": 4}, "num_layers", 1, 2),
    "RNNCell": ({"input_size": 3, "hidden_size": 4}, "bias", True, False),
    "RNNCellBase": ({"input_size": 3, "hidden_size": 4, "bias": True}, "num_chunks", 1, 2),
    "GroupNorm": ({"num_channels": 6}, "num_groups", 2, 3),
    "LayerNorm": ({}, "normalized_shape", 3, (3, 4)),
    "RMSNorm": ({}, "normalized_shape", 3, (3, 4)),
    "SyncBatchNorm": ({}, "num_features", 2, 3),
    **{name: ({}, "lambd", 0.5, 1.0) for name in ("Hardshrink", "Softshrink")},
    **{name: ({}, "inplace", False, True) for name in (
        "Hardsigmoid", "Hardswish", "Mish", "ReLU", "ReLU6", "SELU", "SiLU")},
    "Hardtanh": ({}, "max_val", 1.0, 2.0),
    "LazyLinear": ({}, "out_features", 3, 4),
    "LeakyReLU": ({}, "negative_slope", 0.01, 0.2),
    "Linear": ({"in_features": 3}, "out_features", 4, 5),
    **{name: ({}, "dim", 1, -1) for name in ("LogSoftmax", "Softmax", "Softmin")},
    "MultiheadAttention": ({"embed_dim": 12}, "num_heads", 2, 3),
    "PReLU": ({}, "num_parameters", 1, 3),
    "PairwiseDistance": ({}, "p", 2.0, 1.0),
    "PixelShuffle": ({}, "upscale_factor", 2, 3),
    "PixelUnshuffle": ({}, "downscale_factor", 2, 3),
    "RReLU": ({}, "lower", 0.125, 0.25),
    "Softplus": ({}, "beta", 1.0, 2.0),
    "Threshold": ({"threshold": 0.1}, "value", 0.0, 1.0),
    "Transformer": (
        {"d_model": 4, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1, "batch_first": True},
        "dim_feedforward", 4, 6),
    "TransformerDecoderLayer": ({"d_model": 4, "nhead": 2}, "dim_feedforward", 4, 6),
    "TransformerEncoderLayer": ({"nhead": 2, "dim_feedforward": 8}, "d_model", 4, 6),
    "TransformerDecoder": (
        {"decoder_layer": torch.nn.TransformerDecoderLayer(4, 2, 8)}, "num_layers", 1, 2),
    "TransformerEncoder": (
        {"encoder_layer": torch.nn.TransformerEncoderLayer(4, 2, 8), "enable_nested_tensor": False},
        "num_layers", 1, 2),
    "Upsample": ({}, "scale_factor", 2.0, 3.0),
    "UpsamplingBilinear2d": ({}, "size", 4, 6),
    "UpsamplingNearest2d": ({}, "scale_factor", 2.0, 3.0),
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
each_twin = pytest.mark.parametrize("name", TWINS)


def made(name: str) -> Any:
    constant, argument, default, other = TABLE[name]
    return TWINS[name](**constant, **{argument: nn.ValueChoice([default, other], label="x")})


def plain(name: str, value: Any) -> Any:
    constant, argument, *_ = TABLE[name]
    return getattr(torch.nn, name)(**constant, **{argument: value})


def attributes(module: torch.nn.Module) -> dict[str, Any]:
    """Return what is not a tensor, a module or a hook, of all modules inside."""
    simple = int | float | str | bool | tuple | list | None
    return {
        f"{path}.{name}": value if isinstance(value, simple) and name != "_flat_weights" else type(value)
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if name not in OF_PYTORCH and name != "_flat_weight_refs"
    }


def shapes(module: torch.nn.Module) -> dict[str, Any]:
    lazy = torch.nn.parameter.is_lazy
    return {name: "lazy" if lazy(tensor) else tensor.shape for name, tensor in module.state_dict().items()}


def test_each_class_with_arguments_has_a_twin() -> None:
    without = {
        name
        for name in dir(torch.nn)
        if isinstance(cls := getattr(torch.nn, name), type) and issubclass(cls, torch.nn.Module) and name not in TWINS
    }
    assert without == {
        "Container", "DataParallel", "Identity", "LogSigmoid", "Module", "ModuleDict", "ModuleList", "NLLLoss2d",
        "ParameterDict", "ParameterList", "Sequential", "Sigmoid", "Softmax2d", "Softsign", "Tanh", "Tanhshrink",
    }  # fmt: skip
    assert not TWINS.keys() - TABLE.keys(), "give these classes a row in TABLE"


@each_twin
def test_frozen_it_is_the_plain_module(name: str) -> None:
    _, _, default, other = TABLE[name]
    twin = made(name)
    cls = getattr(torch.nn, name)
    assert isinstance(twin, cls)
    assert isinstance(twin, TWINS[name])
    assert list(twin.simplify()) == ["x"]
    torch.manual_seed(1)
    frozen = twin.freeze({"x": other})
    torch.manual_seed(1)
    direct = plain(name, other)
    assert type(frozen) is cls
    assert attributes(frozen) == attributes(direct)
    assert shapes(frozen) == shapes(direct)
    assert repr(frozen) == repr(direct)
    assert frozen._forward_pre_hooks.keys() == frozen._forward_pre_hooks_with_kwargs.keys()
    assert len(frozen._forward_pre_hooks) == len(direct._forward_pre_hooks)
    kept = twin.state_dict()
    for key, tensor in frozen.state_dict().items():
        if not torch.nn.parameter.is_lazy(tensor):
            same_as = [
                s for s in (kept.get(key), direct.state_dict()[key]) if s is not None and s.shape == tensor.shape
            ]
            assert any(torch.equal(tensor, value) for value in same_as)
    kept_default = twin.freeze({"x": default})
    assert type(kept_default) is cls
    assert attributes(kept_default) == attributes(plain(name, default))
    for key, tensor in kept_default.state_dict().items():
        assert torch.nn.parameter.is_lazy(tensor) or torch.equal(tensor, twin.state_dict()[key])


@each_twin
def test_without_choices_it_is_the_plain_class(name: str) -> None:
    constant, argument, default, _ = TABLE[name]
    module = TWINS[name](**constant, **{argument: default})
    assert type(module) is getattr(torch.nn, name)
    assert isinstance(module, TWINS[name])


# PyTorch cannot copy buffers without a shape.
@pytest.mark.parametrize("name", [name for name in TWINS if not (name.startswith("Lazy") and "Norm" in name)])
def test_copies_and_pickles(name: str) -> None:
    twin = made(name)
    for other in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert type(other) is TWINS[name]
        assert list(other.simplify()) == ["x"]
        assert shapes(other.freeze({"x": TABLE[name][3]})) == shapes(plain(name, TABLE[name][3]))


@each_twin
def test_editors_and_help_see_the_arguments(name: str) -> None:
    twin = TWINS[name]
    assert twin is getattr(nn, name)
    assert (twin.__module__, twin.__qualname__) == ("hwnas.nn", name)
    assert f"torch.nn.modules.{getattr(torch.nn, name).__module__.rpartition('.')[2]}.{name}" in twin.__doc__
    assert inspect.signature(twin) == signature_of(getattr(torch.nn, name))
    assert pickle.loads(pickle.dumps(twin)) is twin


def test_help_can_be_rendered() -> None:
    text = pydoc.render_doc(nn.Conv2d, renderer=pydoc.plaintext)
    assert "Conv2d(in_channels" in text
    assert "arguments that may be choices" in text


def test_the_signature_of_a_derived_class_is_its_own() -> None:
    class Own(nn.Conv2d):
        def __init__(self, width: Any, *, act: bool = True) -> None:
            super().__init__(3, width, 3)

    class Same(nn.Conv2d):
        pass

    assert str(inspect.signature(Own)).startswith("(width: 'Any', *, act: 'bool' = True)")
    assert inspect.signature(Same) == inspect.signature(torch.nn.Conv2d)


# The stub


def stub() -> ast.Module:
    return ast.parse((ROOT / "hwnas/nn/twins.pyi").read_text())


def value_of(node: ast.expr) -> Any:
    """Evaluate the default of a parameter: a literal, or a name inside torch.nn."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        value: Any = torch.nn
        for name in ast.unparse(node).split("."):
            value = getattr(value, name)
        return value


def parameters_in_stub(definition: ast.FunctionDef) -> list[tuple[str, Any, Any]]:
    arguments = definition.args
    named = [*arguments.posonlyargs, *arguments.args]
    defaults = [inspect.Parameter.empty] * (len(named) - len(arguments.defaults)) + [
        value_of(d) for d in arguments.defaults
    ]
    positional = [(a.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD, d) for a, d in zip(named, defaults, strict=True)]
    keyword = [
        (a.arg, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty if d is None else value_of(d))
        for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    return positional[1:] + keyword


def test_the_stub_says_what_the_installed_torch_has() -> None:
    classes = {node.name: node for node in stub().body if isinstance(node, ast.ClassDef)}
    imported = {
        alias.asname
        for node in stub().body
        if isinstance(node, ast.ImportFrom) and node.module == "torch.nn"
        for alias in node.names
    }
    advice = "bring hwnas/nn/twins.pyi up to date with torch " + torch.__version__
    assert classes.keys() == TWINS.keys(), f"{advice}: classes"
    assert imported == set(twins.__all__) - TWINS.keys(), f"{advice}: imports"
    for name, node in classes.items():
        assert [ast.unparse(base) for base in node.bases] == ["ParametrizedModule", f"torch.nn.{name}"]
        (constructor,) = node.body
        assert isinstance(constructor, ast.FunctionDef)
        in_torch = [(p.name, p.kind, p.default) for p in signature_of(getattr(torch.nn, name)).parameters.values()]
        assert parameters_in_stub(constructor) == in_torch, f"{advice}: arguments of {name}"


def test_the_recurrent_networks_take_the_arguments_that_torch_documents() -> None:
    """Their constructors are written with `*args`; what they take stands only in overloads for type checkers."""
    if sys.version_info < (3, 11):
        pytest.skip("overloads are not kept")
    from typing import get_overloads

    for cls in (torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU):
        documented = inspect.signature(get_overloads(cls.__init__)[0]).parameters.values()
        expected = [(p.name, p.default) for p in documented][1:]
        assert [(p.name, p.default) for p in signature_of(cls).parameters.values()] == expected


@pytest.mark.slow
def test_type_checkers_accept_choices_and_nothing_else(tmp_path: Path) -> None:
    good = """
import torch
import hwnas.nn as nn
k = nn.ValueChoice([3, 5])
conv = nn.Conv2d(3, nn.ValueChoice([32, 64]), kernel_size=nn.ValueChoice([3, 5]), padding=(k - 1) // 2)
layers = nn.Sequential(conv, nn.MaxPool2d((k, k), stride=2), nn.ReLU(), nn.Dropout(nn.ValueChoice([0.1, 0.2])))
kernel: tuple[int, ...] = conv.kernel_size
class MyConv(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(super().forward(input))
"""
    bad = ['nn.Conv1d("x")', 'nn.Linear("x", 3)', "nn.Linear(3, 4, bais=True)", "nn.Upsample(2, mode=3)"]
    (tmp_path / "good.py").write_text(good)
    (tmp_path / "bad.py").write_text("import hwnas.nn as nn\n" + "\n".join(bad))
    # With the settings and the cache of the project, as the whole of torch is read otherwise.
    options = ["--config-file", "pyproject.toml", "--no-error-summary"]
    files = [str(tmp_path / "good.py"), str(tmp_path / "bad.py")]
    command = [sys.executable, "-m", "mypy", *options, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = [line.split(":") for line in done.stdout.splitlines() if ": error:" in line]
    assert {Path(file).name for file, *_ in errors} == {"bad.py"}, done.stdout
    assert {int(line) for _, line, *_ in errors} == set(range(2, 2 + len(bad))), done.stdout


# Some classes have more to them


def run(module: torch.nn.Module, *inputs: Tensor) -> Any:
    with torch.no_grad():
        return module.eval()(*inputs)


@pytest.mark.parametrize("cls", ["RNN", "LSTM", "GRU"])
def test_recurrent_networks_run(cls: str) -> None:
    twin = getattr(nn, cls)(3, nn.ValueChoice([4, 5], label="hidden"), nn.ValueChoice([1, 2], label="layers"))
    assert list(twin.arguments) == ["input_size", "hidden_size", "num_layers"]
    x = torch.randn(7, 2, 3)
    for sample in ({"hidden": 4, "layers": 1}, {"hidden": 5, "layers": 2}):
        frozen = twin.freeze(sample)
        output, _ = run(frozen, x)
        assert output.shape == (7, 2, sample["hidden"])
        again = getattr(torch.nn, cls)(3, sample["hidden"], sample["layers"])
        again.load_state_dict(frozen.state_dict())
        torch.testing.assert_close(run(again, x)[0], output)
    torch.testing.assert_close(run(twin, x)[0], run(twin.freeze({"hidden": 4, "layers": 1}), x)[0])


def test_a_recurrent_network_computes_with_the_weights_that_it_kept() -> None:
    twin = nn.GRU(3, 4, batch_first=nn.ValueChoice([False, True], label="b"))
    x = torch.randn(7, 2, 3)
    frozen = twin.freeze({"b": True})
    assert torch.equal(frozen.weight_hh_l0, twin.weight_hh_l0)
    torch.testing.assert_close(run(frozen, x.transpose(0, 1))[0].transpose(0, 1), run(twin, x)[0])
    buffer = io.BytesIO()
    torch.save(frozen, buffer)
    buffer.seek(0)
    torch.testing.assert_close(run(torch.load(buffer, weights_only=False), x)[0], run(frozen, x)[0])


def test_lazy_modules_get_their_shapes_before_and_after_freezing() -> None:
    x = torch.randn(2, 3, 8, 8)
    twin = nn.LazyConv2d(nn.ValueChoice([4, 6], label="w"), 3)
    late = twin.freeze({"w": 6})
    assert run(late, x).shape == (2, 6, 6, 6)
    assert type(late) is torch.nn.Conv2d
    assert not late._forward_pre_hooks

    y = run(twin, x)  # the twin now has the shapes of the default member, and is still a twin
    assert isinstance(twin, nn.LazyConv2d)
    default = twin.freeze({"w": 4})
    assert type(default) is torch.nn.Conv2d
    torch.testing.assert_close(run(default, x), y)
    other = twin.freeze({"w": 6})
    assert run(other, x).shape == (2, 6, 6, 6)
    loaded = twin.freeze({"w": 6})
    loaded.load_state_dict(other.state_dict())
    torch.testing.assert_close(run(loaded, x), run(other, x))


def test_choices_inside_a_module_that_is_an_argument() -> None:
    width = nn.ValueChoice([4, 8], label="width")
    layer = nn.TransformerEncoderLayer(width, 2, width * 2, batch_first=True)
    encoder = nn.TransformerEncoder(layer, nn.ValueChoice([1, 3], label="depth"), enable_nested_tensor=False)
    assert encoder.simplify().keys() == {"depth", "width"}
    for depth in (1, 3):
        for value in (4, 8):
            frozen = encoder.freeze({"depth": depth, "width": value})
            assert type(frozen) is torch.nn.TransformerEncoder
            assert {type(part).__module__.split(".")[0] for part in frozen.modules()} == {"torch"}
            assert len(frozen.layers) == depth
            assert run(frozen, torch.randn(2, 5, value)).shape == (2, 5, value)
    ours = {p.data_ptr() for p in [*encoder.parameters(), *layer.parameters()]}
    assert not ours & {p.data_ptr() for p in frozen.parameters()}


def test_tensors_among_the_arguments_are_not_shared() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    loss = nn.CrossEntropyLoss(weight=weight, label_smoothing=nn.ValueChoice([0.0, 0.2], label="s"))
    for smoothing in (0.0, 0.2):
        frozen = loss.freeze({"s": smoothing})
        assert torch.equal(frozen.weight, weight)
        assert frozen.weight.data_ptr() != weight.data_ptr()
        x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
        expected = torch.nn.functional.cross_entropy(x, y, weight, label_smoothing=smoothing)
        torch.testing.assert_close(frozen(x, y), expected)
