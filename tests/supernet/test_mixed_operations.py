"""Every mixed operation: sampled it is the frozen member, relaxed it is the expectation over the members."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import UnsupportedError
from hwnas.kernels import slice_pack
from hwnas.supernet import (
    MixedOperation,
    OneHot,
    Relaxation,
    Softmax,
    make_supernet,
    mixed_operation,
    supernet_modules,
)


def choice(values: Sequence[Any], label: str) -> nn.ValueChoice:
    return nn.ValueChoice(values, label=label)


def width(*values: int) -> nn.ValueChoice:
    return choice(values or (2, 4), "width")


def heads() -> nn.ValueChoice:
    return choice([1, 2], "heads")


class One(nn.ModelSpace):
    """One layer as a space; what it takes beside the first input is given at construction."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.layer = make()

    def forward(self, *x: Tensor) -> Any:
        y = self.layer(*x)
        return y[0] if isinstance(y, tuple) else y


def supernet_of(make: Callable[[], Any], kind: type[Relaxation]) -> tuple[One, Any]:
    torch.manual_seed(0)
    space = One(make)
    relaxation = kind(space.simplify().values())
    make_supernet(space, relaxation)
    space.double()
    relaxation.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*space.parameters(), *space.buffers(), *relaxation.parameters()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5)
    assert isinstance(space.layer, MixedOperation)
    return space, relaxation


def images(*sizes: int) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def indices(*sizes: int) -> Tensor:
    return torch.randint(0, 4, sizes, generator=torch.Generator().manual_seed(1))


def attended(*widths: int) -> tuple[Tensor, ...]:
    return tuple(images(3, 2, width) for width in widths)


Cut = Callable[..., tuple[Tensor, ...]]


def channels(sample: dict[str, Any], x: Tensor) -> tuple[Tensor, ...]:
    return (x[:, : sample["width"]],)


def last(sample: dict[str, Any], *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(x[..., : sample["width"]] for x in inputs)


def whole(sample: dict[str, Any], *inputs: Tensor) -> tuple[Tensor, ...]:
    return inputs


def of_attention(sample: dict[str, Any], query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    return query[..., : sample["width"]], key[..., : sample["width"] + 1], value


def query_only(sample: dict[str, Any], query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    return query[..., : sample["width"]], key, value


def centred(layer: Any, *arguments: Any, **options: Any) -> Any:
    kernel = choice([1, 3], "kernel")
    return layer(*arguments, kernel, padding=kernel // 2 * options.get("dilation", 1), **options)


# The layer, inputs as wide as the largest member, and what a member gets of them. All have a meaning as a mixture.
CASES: dict[str, tuple[Callable[[], Any], tuple[Tensor, ...], Cut]] = {
    "Linear": (lambda: nn.Linear(3, width()), (images(3, 3),), whole),
    "Conv1d": (lambda: centred(nn.Conv1d, 2, width()), (images(2, 2, 5),), whole),
    "Conv2d": (
        lambda: nn.Conv2d(2, width(), choice([(1, 3), (3, 1)], "k"), padding="same"),
        (images(2, 2, 5, 5),),
        whole,
    ),
    "Conv2d depthwise": (
        lambda: centred(nn.Conv2d, width(), width(), groups=width()),
        (images(2, 4, 5, 5),),
        channels,
    ),
    "Conv3d": (lambda: centred(nn.Conv3d, 2, width(), padding_mode="circular"), (images(2, 2, 3, 4, 5),), whole),
    "ConvTranspose1d": (lambda: centred(nn.ConvTranspose1d, 2, width(), stride=2), (images(2, 2, 5),), whole),
    "ConvTranspose2d": (
        lambda: centred(nn.ConvTranspose2d, 2, width(), stride=2, output_padding=1, dilation=2),
        (images(2, 2, 4, 4),),
        whole,
    ),
    "ConvTranspose2d depthwise": (
        lambda: nn.ConvTranspose2d(width(), width() * 2, 3, groups=width()),
        (images(2, 4, 4, 4),),
        channels,
    ),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, width(), 2, bias=False), (images(2, 2, 3, 3, 3),), whole),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(width()), (images(3, 4),), channels),
    "BatchNorm1d of sequences": (lambda: nn.BatchNorm1d(width()), (images(3, 4, 5),), channels),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(width(), momentum=None), (images(3, 4, 2, 2),), channels),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(width()), (images(3, 4, 2, 2, 2),), channels),
    "LayerNorm": (lambda: nn.LayerNorm(width(), choice([1e-5, 0.5], "eps")), (images(3, 4),), last),
    "LayerNorm of images": (lambda: nn.LayerNorm([width(), 3]), (images(2, 4, 3),), channels),
    "LayerNorm switches": (
        lambda: nn.LayerNorm(4, 1e-5, choice([True, False], "affine"), choice([False, True], "bias")),
        (images(2, 4),),
        whole,
    ),
    "GroupNorm": (lambda: nn.GroupNorm(choice([1, 2], "groups"), width()), (images(3, 4, 2, 2),), channels),
    "GroupNorm of a size": (
        lambda: nn.GroupNorm(width() // 2, width(), affine=choice([True, False], "affine")),
        (images(3, 4, 2),),
        channels,
    ),
    "RMSNorm": (lambda: nn.RMSNorm(width(), choice([None, 0.5], "eps")), (images(3, 4),), last),
    "RMSNorm switch": (
        lambda: nn.RMSNorm((3, 4), elementwise_affine=choice([True, False], "affine")),
        (images(2, 3, 4),),
        whole,
    ),
    "Embedding": (lambda: nn.Embedding(4, width(), padding_idx=-1), (indices(3, 5),), whole),
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(width(4, 8), heads(), batch_first=True),
        attended(8, 8, 8),
        last,
    ),
    "MultiheadAttention of other widths": (
        lambda: nn.MultiheadAttention(width(4, 8), heads(), kdim=width(4, 8) + 1, vdim=6, add_bias_kv=True),
        attended(8, 9, 6),
        of_attention,
    ),
    "MultiheadAttention packed or not": (
        lambda: nn.MultiheadAttention(width(4, 8), 2, bias=False, kdim=8, vdim=8, add_zero_attn=True),
        attended(8, 8, 8),
        query_only,
    ),
}

# Only one architecture at a time has a meaning, or the width of the input is that of the output.
SAMPLED: dict[str, tuple[Callable[[], Any], tuple[Tensor, ...], Cut]] = {
    "Linear": (lambda: nn.Linear(width(), width(), bias=choice([True, False], "bias")), (images(3, 4),), last),
    "Conv1d": (
        lambda: nn.Conv1d(width(), 4, 3, choice([1, 2], "stride"), dilation=choice([1, 2], "dilation")),
        (images(2, 4, 7),),
        channels,
    ),
    "Conv2d of tuples": (
        lambda: nn.Conv2d(width(), width() * 2, (choice([1, 3], "k"), 2), groups=choice([1, 2], "groups")),
        (images(2, 4, 5, 5),),
        channels,
    ),
    "Conv3d": (
        lambda: nn.Conv3d(2, 2, 3, padding=choice([0, (0, 1, 2)], "padding"), padding_mode="replicate"),
        (images(2, 2, 3, 4, 5),),
        whole,
    ),
    "ConvTranspose1d": (
        lambda: nn.ConvTranspose1d(width(), 3, choice([1, 2, 4], "k"), bias=choice([False, True], "bias")),
        (images(2, 4, 5),),
        channels,
    ),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(
            width(), width() * 2, 3, choice([1, 2], "stride"), choice([0, 1], "pad"), groups=choice([1, 2], "groups")
        ),
        (images(2, 4, 5, 5),),
        channels,
    ),
    "ConvTranspose3d": (
        lambda: nn.ConvTranspose3d(width(), 2, 2, 2, output_padding=choice([0, (1, 0, 1)], "extra")),
        (images(2, 4, 3, 3, 3),),
        channels,
    ),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4, affine=choice([True, False], "affine")), (images(3, 4),), whole),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(4, choice([0.1, 1.0], "eps")), (images(3, 4, 2, 2, 2),), whole),
    "Embedding": (
        lambda: nn.Embedding(choice([4, 7], "rows"), width(), choice([None, 2, -2], "pad"), scale_grad_by_freq=True),
        (indices(3, 5),),
        whole,
    ),
    "Embedding of bounded norm": (lambda: nn.Embedding(4, width(), max_norm=1.0), (indices(3, 5),), whole),
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(
            8, heads(), bias=choice([True, False], "bias"), add_bias_kv=choice([True, False], "kv"),
            add_zero_attn=choice([True, False], "zero"),
        ),
        attended(8, 8, 8),
        whole,
    ),
}  # fmt: skip


def nonzero(module: torch.nn.Module) -> np.ndarray[Any, Any]:
    """Return the gradients of a module that are not zero, sorted."""
    gradients = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None] or [torch.zeros(0)])
    return np.sort(gradients[gradients != 0].numpy())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("make", "inputs", "cut"),
    [pytest.param(*case, id=name) for table in (CASES, SAMPLED) for name, case in table.items()],
)
def test_sampled_it_is_the_frozen_member(
    make: Callable[[], Any], inputs: tuple[Tensor, ...], cut: Cut, training: bool
) -> None:
    space, relaxation = supernet_of(make, OneHot)
    space.train(training)
    initial = copy.deepcopy(space.state_dict())
    samples = list(space.grid())
    assert len(samples) == space.size() > 1
    for sample in samples:
        relaxation.resample(sample)
        member = space.freeze(sample)
        assert not any(base.__module__.startswith("hwnas") for m in member.modules() for base in type(m).__mro__)
        of_space = {t.untyped_storage().data_ptr() for t in space.state_dict().values()}
        assert not of_space & {t.untyped_storage().data_ptr() for t in member.state_dict().values()}
        y, expected = space(*cut(sample, *inputs)), member(*cut(sample, *inputs))
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-8)
        with torch.no_grad():  # attention takes another way
            torch.testing.assert_close(
                space(*cut(sample, *inputs)), member(*cut(sample, *inputs)), rtol=1e-6, atol=1e-8
            )
        if y.requires_grad:
            space.zero_grad()
            weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
            (y * weights).sum().backward()
            (expected * weights).sum().backward()
            # The same gradients and, as there are as many, zeros everywhere outside of the slice.
            np.testing.assert_allclose(nonzero(space), nonzero(member), rtol=1e-6, atol=1e-12)
        for name, tensor in space.freeze(sample).state_dict().items():  # running statistics, bounded norms
            torch.testing.assert_close(tensor, member.state_dict()[name], rtol=1e-6, atol=1e-8)
        space.load_state_dict(initial)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_relaxed_it_is_the_expectation_over_the_members(name: str, training: bool) -> None:
    make, inputs, cut = CASES[name]
    space, relaxation = supernet_of(make, Softmax)
    space.train(training)
    y = space(*inputs)
    expected = torch.zeros_like(y)
    for sample in space.grid():
        member = space.freeze(sample)(*cut(sample, *inputs)).detach()
        places = tuple(slice(size) for size in member.shape)
        probability = torch.ones((), dtype=torch.float64)
        for label, value in sample.items():
            values = relaxation.dimension(label).values
            probability = probability * relaxation.probabilities(label)[values.index(value)]
        whole_output = torch.zeros_like(y).detach()
        whole_output[places] = member
        expected = expected + probability * whole_output
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-8)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    parameters = list(relaxation.parameters())
    found = torch.autograd.grad((y * weights).sum() + y.square().sum(), parameters)
    exact = torch.autograd.grad((expected * weights).sum() + expected.square().sum(), parameters)
    assert all(gradient.abs().max() > 1e-6 for gradient in exact)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", [OneHot, Softmax])
@pytest.mark.parametrize("name", CASES)
def test_the_state_of_a_supernet_can_be_restored(name: str, kind: type[Relaxation]) -> None:
    make, inputs, cut = CASES[name]
    space, relaxation = supernet_of(make, kind)
    other, same = supernet_of(make, kind)
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.zero_()
    other.load_state_dict(space.state_dict())
    sample = space.default()
    for found in (relaxation, same):
        found.resample(sample)
    given = inputs if kind is Softmax else cut(sample, *inputs)
    assert torch.equal(space.eval()(*given), other.eval()(*given))


REFUSED = {
    "Conv1d stride": (lambda: nn.Conv1d(4, 4, 3, stride=choice([1, 2], "bad")), "stride"),
    "Conv2d filters of fixed groups": (lambda: nn.Conv2d(4, choice([4, 8], "bad"), 3, groups=2), "out_channels"),
    "Conv3d kernels": (lambda: nn.Conv3d(2, 2, choice([1, 3], "bad")), "kernel_size"),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(2, 2, 3, 2, 0, choice([0, 1], "bad")), "output_padding"),
    "ConvTranspose2d groups": (lambda: nn.ConvTranspose2d(4, 4, 3, groups=choice([1, 2], "bad")), "groups"),
    "BatchNorm1d affine": (lambda: nn.BatchNorm1d(4, affine=choice([True, False], "bad")), "affine"),
    "Concatenation": (lambda: nn.LayerNorm(choice([2, 4], "bad") + choice([2, 4], "b")), "normalized_shape"),
    "Embedding rows": (lambda: nn.Embedding(choice([4, 8], "bad"), 4), "num_embeddings"),
    "MultiheadAttention bias": (lambda: nn.MultiheadAttention(4, 2, bias=choice([True, False], "bad")), "bias"),
    "Dropout": (lambda: nn.Dropout(choice([0.1, 0.5], "bad")), "p"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_relaxed_is_named(what: str) -> None:
    make, argument = REFUSED[what]
    with pytest.raises(UnsupportedError, match=rf"at layer: argument '{argument}' \(labels .*bad\).*RandomOneShot"):
        supernet_of(make, Softmax)
    supernet_of(make, OneHot)


def test_dropout_has_the_rate_of_the_sample() -> None:
    space, relaxation = supernet_of(lambda: nn.Dropout(choice([0.0, 0.5, 1.0], "p")), OneHot)
    x = torch.ones(10_000)
    for rate in (0.0, 0.5, 1.0):
        relaxation.resample({"p": rate})
        torch.manual_seed(0)
        y = space.train()(x)
        assert (y == 0).double().mean().item() == pytest.approx(rate, abs=0.02)
        member = space.freeze({"p": rate})
        assert type(member.layer) is torch.nn.Dropout
        torch.manual_seed(0)
        assert torch.equal(y, member(x))
        assert torch.equal(space.eval()(x), x)


def test_sparse_gradients_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"Embedding at layer.*width.*sparse=False"):
        supernet_of(lambda: nn.Embedding(4, width(), sparse=True), OneHot)


def test_weights_of_attention() -> None:
    space, relaxation = supernet_of(lambda: nn.MultiheadAttention(8, heads(), batch_first=True), OneHot)
    x = images(2, 3, 8)
    mask = torch.tensor([[False, False, True]] * 2)
    for count in (1, 2):
        relaxation.resample({"heads": count})
        options = {"key_padding_mask": mask, "average_attn_weights": False}
        found = space.layer(query=x, key=x, value=x, **options)
        torch.testing.assert_close(found, space.freeze({"heads": count}).layer(x, x, x, **options))
        assert space.layer(x, x, x, need_weights=False)[1] is None
    space, relaxation = supernet_of(lambda: nn.MultiheadAttention(8, heads(), batch_first=True), Softmax)
    p = relaxation.probabilities("heads")
    members = [space.freeze({"heads": count}).layer(x, x, x) for count in (1, 2)]
    for found, *each in zip(space.layer(x, x, x), *members, strict=True):
        torch.testing.assert_close(found, p[0] * each[0] + p[1] * each[1])
    y, weights = space.layer(x, x, x, need_weights=False)
    torch.testing.assert_close(y, space.layer(x, x, x)[0])
    assert weights is None
    with pytest.raises(UnsupportedError, match=r"labels heads.*average_attn_weights=True"):
        space.layer(x, x, x, average_attn_weights=False)


def test_a_transposed_convolution_as_large_as_asked_for() -> None:
    space, relaxation = supernet_of(lambda: nn.ConvTranspose2d(2, width(), 3, stride=2, padding=1), OneHot)
    x = images(1, 2, 4, 4)
    for sample in space.grid():
        relaxation.resample(sample)
        for size in ([7, 8], [1, sample["width"], 8, 8]):
            found = space.layer(x, output_size=size)
            torch.testing.assert_close(found, space.freeze(sample).layer(x, output_size=size))
            assert list(found.shape[2:]) == size[-2:]


def test_frozen_parameters_stay_frozen_whatever_the_mode() -> None:
    space, _ = supernet_of(lambda: nn.MultiheadAttention(width(4, 8), 2), OneHot)
    space.layer.out_proj.weight.requires_grad_(False)
    with torch.no_grad():
        member = space.freeze({"width": 4}).layer
    trained = {name: parameter.requires_grad for name, parameter in member.named_parameters()}
    assert trained == {
        "in_proj_weight": True, "in_proj_bias": True, "out_proj.weight": False, "out_proj.bias": True
    }  # fmt: skip


def test_freezing_leaves_the_random_state_alone() -> None:
    for name in CASES:
        space, _ = supernet_of(CASES[name][0], OneHot)
        before = torch.random.get_rng_state()
        space.freeze(space.default())
        assert torch.equal(torch.random.get_rng_state(), before), name


class Transformer(nn.ModelSpace):
    """A residual stream of chosen width through attention and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        size = width(4, 8)
        self.embed = nn.Embedding(4, size)
        self.before, self.attention = nn.LayerNorm(size), nn.MultiheadAttention(size, heads(), batch_first=True)
        self.mlp = nn.Sequential(nn.RMSNorm(size), nn.Linear(size, size * 2), nn.GELU(), nn.Linear(size * 2, size))
        self.head = nn.Linear(size, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        scores: Tensor = self.head((x + self.mlp(x)).mean(1))
        return scores


@pytest.mark.parametrize("kind", [OneHot, Softmax])
def test_a_decided_transformer_is_the_frozen_member(kind: type[Relaxation]) -> None:
    space = Transformer()
    relaxation: Any = kind(space.simplify().values())
    make_supernet(space, relaxation).double()
    tokens = indices(2, 5)
    for sample in space.grid():
        if isinstance(relaxation, OneHot):
            relaxation.resample(sample)
        else:
            with torch.no_grad():
                for label, value in sample.items():
                    values = relaxation.dimension(label).values
                    relaxation.alpha(label).copy_(torch.tensor([200.0 if v == value else -200.0 for v in values]))
        torch.testing.assert_close(space(tokens), space.freeze(sample)(tokens), rtol=1e-6, atol=1e-8)
    exported: dict[str, Any] = {}
    for module in supernet_modules(space):
        exported.update(module.export(exported))
    assert exported == sample


# --- classes that hwnas knows nothing of ---------------------------------------------------------------------------


class Scaled(torch.nn.Module):
    """Uses its arguments as numbers, and has a child, a buffer, and a table that is no part of its state."""

    def __init__(self, size: int, offset: float, /, *, norm: bool = False) -> None:
        super().__init__()
        if size < 2:
            raise ValueError("too small")
        self.offset = offset
        self.scale = torch.nn.Parameter(torch.rand(size))
        self.project = torch.nn.Linear(size, size + 1)
        self.norm = torch.nn.BatchNorm1d(size) if norm else torch.nn.Identity()
        self.register_buffer("table", torch.linspace(0, 1, size), persistent=False)

    def forward(self, x: Tensor, shift: float = 0.0) -> Tensor:
        y: Tensor = self.project(self.norm(x) * self.scale + self.table) + self.offset + shift
        return y


def scaled() -> Any:
    return nn.parametrized(Scaled)(width(), choice([0.0, 1.0], "offset"), norm=choice([False, True], "norm"))


@pytest.mark.parametrize("training", [False, True])
def test_any_class_is_the_frozen_member(training: bool) -> None:
    space, relaxation = supernet_of(scaled, OneHot)
    assert isinstance(space.layer, Scaled)
    space.train(training)
    initial = copy.deepcopy(space.state_dict())
    before = torch.random.get_rng_state()
    for sample in space.grid():
        relaxation.resample(sample)
        member = space.freeze(sample).layer
        assert type(member) is Scaled
        x = images(3, 4)[:, : sample["width"]]
        y, expected = space.layer(x, shift=2.0), member(x, shift=2.0)
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-8)
        space.zero_grad()
        y.square().sum().backward()
        expected.square().sum().backward()
        np.testing.assert_allclose(nonzero(space), nonzero(member), rtol=1e-6, atol=1e-12)
        for name, tensor in space.freeze(sample).layer.state_dict().items():
            torch.testing.assert_close(tensor, member.state_dict()[name], rtol=1e-6, atol=1e-8)
        space.load_state_dict(initial)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_any_class_can_be_sampled_only() -> None:
    with pytest.raises(UnsupportedError, match=r"Scaled at layer: argument 'size' \(labels width\).*RandomOneShot"):
        supernet_of(scaled, Softmax)
    with pytest.raises(UnsupportedError, match=r"layer.*hidden"):
        supernet_of(lambda: nn.LSTM(4, choice([2, 4], "hidden")), OneHot)


def test_parameters_that_are_no_slices_of_one_are_refused() -> None:
    class Outer(torch.nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(size, 12 // size))

    with pytest.raises(UnsupportedError, match=r"Outer \(labels width\): no member has all .*\(4, 6\)"):
        supernet_of(lambda: nn.parametrized(Outer)(width()), OneHot)


def test_names_that_are_needed_are_refused() -> None:
    class Relaxed(Scaled):
        relaxation = 3

    with pytest.raises(UnsupportedError, match=r"Relaxed at layer.*relaxation would hide"):
        supernet_of(lambda: nn.parametrized(Relaxed)(width(), 0.0), OneHot)


def test_members_that_cannot_be_made_are_none() -> None:
    space, relaxation = supernet_of(lambda: nn.parametrized(Scaled)(choice([2, 1, 4], "width"), 0.0), OneHot)
    relaxation.resample({"width": 4})
    assert space(images(3, 4)).shape == (3, 5)


def test_slices_are_prefixes_of_each_projection_and_centres_of_kernels() -> None:
    space, _ = supernet_of(lambda: nn.MultiheadAttention(width(4, 8), 2), OneHot)
    whole, member = space.layer, space.freeze({"width": 4}).layer
    rows = [row for start in (0, 8, 16) for row in range(start, start + 4)]
    assert torch.equal(member.in_proj_weight, whole.in_proj_weight[rows, :4])
    assert torch.equal(member.in_proj_bias, whole.in_proj_bias[rows])
    assert torch.equal(member.out_proj.weight, whole.out_proj.weight[:4, :4])
    for layer in (nn.Conv1d, nn.ConvTranspose1d):
        space, _ = supernet_of(lambda: layer(2, 2, choice([1, 5], "k")), OneHot)  # noqa: B023
        assert torch.equal(space.freeze({"k": 1}).layer.weight, space.layer.weight[:, :, 2:3])


@pytest.mark.parametrize("reduction", ["sum", "mean", "concat", "none"])
def test_of_one_input_every_reduction_is_the_weighted_sum(reduction: Any) -> None:
    class Inputs(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.choice = nn.InputChoice(3, 1, reduction, label="inputs")

        def forward(self, *x: Tensor) -> Any:
            return self.choice(x)

    space = Inputs()
    relaxation = Softmax(space.simplify().values())
    make_supernet(space, relaxation)
    x = torch.randn(3, 2, 4)
    y = space(*x)
    expected = torch.einsum("k,kij->ij", relaxation.probabilities("inputs"), x)
    assert isinstance(y, list) == (reduction == "none")
    torch.testing.assert_close(y[0] if reduction == "none" else y, expected)
    several: Any = nn.Sequential(nn.InputChoice(3, 2, "concat", label="inputs"))
    with pytest.raises(UnsupportedError, match=r"'inputs'.*'concat'.*n_chosen=1"):
        make_supernet(several, relaxation)


# Layers of whose weight more than the first dimension is cut: there a copy of the slice can be faster than a view.
CUT: dict[str, tuple[Callable[[], Any], tuple[Tensor, ...]]] = {
    "Linear": (lambda: nn.Linear(width(), choice([3, 5], "outputs")), (images(3, 2),)),
    "Conv1d": (lambda: centred(nn.Conv1d, 2, width()), (images(2, 2, 5),)),
    "Conv2d": (lambda: centred(nn.Conv2d, width(), width(), bias=False), (images(2, 2, 5, 5),)),
    "Conv3d": (lambda: centred(nn.Conv3d, width(), 3), (images(2, 2, 3, 4, 5),)),
    "ConvTranspose2d": (lambda: centred(nn.ConvTranspose2d, 2, width()), (images(2, 2, 4, 4),)),
}


@pytest.mark.parametrize("name", CUT)
def test_a_packed_slice_trains_like_a_view(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, (x,) = CUT[name]
    packed: list[tuple[int, ...]] = []

    def spy(weight: Tensor, *sizes: Any) -> Tensor:
        part = slice_pack(weight, *sizes)
        packed.append(tuple(part.shape))
        return part

    monkeypatch.setattr(mixed_operation, "slice_pack", spy)
    found = []
    for least in (mixed_operation.PACKED_FROM, 0):
        monkeypatch.setattr(mixed_operation, "PACKED_FROM", least)
        space, relaxation = supernet_of(make, OneHot)
        first, *_, last = space.grid()
        assert packed == []
        relaxation.resample(first)  # the smallest values
        y = space(x)
        y.square().sum().backward()
        found.append([y, *(parameter.grad for parameter in space.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert len(packed) == 1
    assert packed[0] == tuple(space.freeze(first).layer.weight.shape)
    with torch.no_grad():
        space(x)
    relaxation.resample(last)  # the whole, which nobody copies
    space(torch.cat([x, x], 1) if name in ("Linear", "Conv2d", "Conv3d") else x)
    assert len(packed) == 1
