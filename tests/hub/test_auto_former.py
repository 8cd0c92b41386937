"""The published vision transformers against printed figures and a count by hand; attention written out."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hwnas.hub.auto_former import (
    PUBLISHED,
    VARIANTS,
    Attention,
    AutoFormerSpace,
    Options,
    RelativePositions,
    Tokens,
    Variant,
)
from hwnas.space import Sample

# Counted by other people's implementation of the released architectures.
PARAMETERS = {"AutoFormer-T": 5_867_944, "AutoFormer-S": 22_891_432, "AutoFormer-B": 53_691_688}
TOKENS = 14 * 14 + 1


def small(variant: Variant = "tiny") -> AutoFormerSpace:
    return AutoFormerSpace(10, variant, image_size=32)


def layers_of(sample: Sample) -> list[tuple[int, int]]:
    """Heads of attention and width of the MLP of each layer."""
    return [
        (sample[f"layer{i}/heads"], int(sample[f"layer{i}/ratio"] * sample["width"])) for i in range(sample["depth"])
    ]


def parameters_by_hand(sample: Sample, classes: int = 1000, tokens: int = TOKENS) -> int:
    width = sample["width"]
    total = 16 * 16 * 3 * width + width + (1 + tokens) * width + 2 * width + (width + 1) * classes
    for heads, inner in layers_of(sample):
        inside = 64 * heads
        total += 2 * 2 * width + 4 * 30 * 64
        total += (width + 1) * 3 * inside + (inside + 1) * width + (width + 1) * inner + (inner + 1) * width
    return total


def macs_by_hand(sample: Sample, *, relative: bool) -> int:
    width = sample["width"]
    total = 16 * 16 * 3 * width * (TOKENS - 1) + width * 1000
    for heads, inner in layers_of(sample):
        inside = 64 * heads
        total += TOKENS * (4 * width * inside + 2 * width * inner)
        total += (4 if relative else 2) * TOKENS * TOKENS * inside
    return total


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_cost_what_is_printed_and_what_is_counted_by_hand(name: str) -> None:
    published = PUBLISHED[name]
    with torch.device("meta"):
        model, image = published.model().eval(), torch.empty(1, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert model(image).shape == (1, 1000)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == PARAMETERS[name] == parameters_by_hand(published.sample)
    # The released AutoFormer-T is larger than that of the paper: 5.87M parameters.
    assert parameters == pytest.approx(published.parameters, rel=0.03 if name == "AutoFormer-T" else 0.01)
    macs = counter.get_total_flops() / 2
    assert macs == macs_by_hand(published.sample, relative=True)
    if name == "AutoFormer-S":
        assert published.macs == pytest.approx(macs, rel=0.013)
    else:
        without = macs_by_hand(published.sample, relative=False)
        assert without == pytest.approx(published.macs, rel=0.015)  # printed with two digits


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_belong_to_their_super_nets(name: str) -> None:
    with torch.device("meta"):
        spaces = {variant: AutoFormerSpace(variant=variant) for variant in get_args(Variant)}
    letter = name[-1].lower()
    assert [v for v, space in spaces.items() if space.contains(PUBLISHED[name].sample)] == [
        v for v in spaces if v.startswith(letter)
    ]


def test_the_number_of_members() -> None:
    with torch.device("meta"):
        sizes = {v: (s.size(), s.size(active_only=True)) for v in VARIANTS for s in [AutoFormerSpace(variant=v)]}
    assert sizes == {
        "tiny": (9 * 6**14, 3 * (6**12 + 6**13 + 6**14)),
        "small": (9 * 9**14, 3 * (9**12 + 9**13 + 9**14)),
        "base": (9**17, 3 * (9**14 + 9**15 + 9**16)),
    }
    # "more than 1.7 x 10^16" in the paper, which counts the layers beyond the depth as well.
    assert sizes["base"][0] == pytest.approx(1.7e16, rel=0.02)


@pytest.mark.parametrize("seed", range(2))
def test_members_run(seed: int) -> None:
    space = small()
    sample = space.random(random_state=seed)
    model = space.freeze(sample)
    assert model(torch.randn(2, *space.input_shape)).shape == (2, 10)
    assert len(model.layers) == sample["depth"]
    assert sum(p.numel() for p in model.parameters()) == parameters_by_hand(sample, classes=10, tokens=5)
    assert {type(part).__module__.split(".")[0] for part in model.modules()} == {"torch", "frozen"}


@pytest.mark.parametrize("variant", ["small", "base"])
def test_members_of_the_larger_super_nets(variant: Variant) -> None:
    with torch.device("meta"):
        space = small(variant)
        sample = space.random(random_state=0)
        model = space.freeze(sample)
        assert sum(p.numel() for p in model.parameters()) == parameters_by_hand(sample, classes=10, tokens=5)
        assert model(torch.empty(1, 3, 32, 32)).shape == (1, 10)


def test_the_space_computes_what_its_default_member_computes() -> None:
    space, x = small(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(space.freeze(space.default())(x), space(x))


def test_layers_beyond_the_depth_are_not_asked_for() -> None:
    with torch.device("meta"):
        space = small()
    sample = PUBLISHED["AutoFormer-T"].sample
    assert "layer12/heads" in sample
    assert "layer13/heads" not in sample
    assert space.contains(sample)
    assert not space.contains({**sample, "depth": 14})
    assert not space.contains({**sample, "layer3/heads": 5})
    assert space.contains({**sample, "layer13/heads": 5})


def test_a_member_can_be_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "tiny", Options(widths=(16, 24), depths=(1, 2), heads=(1, 2)))  # to be fast
    space = small()
    sample = space.default() | {"width": 24, "depth": 2, "layer0/heads": 2}
    model, x = space.freeze(sample).eval(), torch.randn(2, 3, 32, 32)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
    x = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize(("side", "reach"), [(1, 14), (3, 14), (4, 2)])
def test_relative_positions_are_those_of_the_patches(side: int, reach: int) -> None:
    positions = RelativePositions(side, reach, width=5)
    vectors = positions()
    assert vectors.shape == (side**2 + 1, side**2 + 1, 5)
    for one in range(side**2 + 1):
        for other in range(side**2 + 1):
            row = column = 0
            if one and other:
                (y, x), (v, u) = divmod(one - 1, side), divmod(other - 1, side)
                row = min(max(v - y, -reach), reach) + reach + 1
                column = min(max(u - x, -reach), reach) + reach + 1
            torch.testing.assert_close(vectors[one, other], positions.vertical[row] + positions.horizontal[column])


def test_attention_written_out() -> None:
    attention, x = Attention(24, 2, side=2), torch.randn(3, 5, 24)
    assert type(attention.qkv) is nn.Linear
    q, k, v = attention.qkv(x).split(128, -1)
    of_keys, of_values = attention.key_positions(), attention.value_positions()
    rows: list[Any] = []
    for image in range(3):
        for token in range(5):
            heads = []
            for start in (0, 64):
                part = slice(start, start + 64)
                scores = torch.stack(
                    [q[image, token, part] @ (k[image, other, part] + of_keys[token, other]) for other in range(5)]
                )
                weights = (scores / 8).softmax(0)
                heads.append(sum(weights[o] * (v[image, o, part] + of_values[token, o]) for o in range(5)))
            rows.append(attention.project(torch.cat(heads)))
    torch.testing.assert_close(attention(x), torch.stack(rows).view(3, 5, 24))


def test_the_class_token_comes_first_and_patches_have_positions() -> None:
    tokens, x = Tokens(4, 9), torch.randn(2, 9, 4)
    y = tokens(x) - tokens.positions
    torch.testing.assert_close(y[:, 1:], x)
    torch.testing.assert_close(y[:, 0], tokens.class_token[0].expand(2, 4))
    assert 0 < tokens.positions.std() < 0.05


def test_the_patches_are_averaged_for_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "tiny", Options(widths=(16,), depths=(1,), heads=(1,)))
    space, x = small(), torch.randn(2, 3, 32, 32)
    space.layers = space.norm = space.head = nn.Identity()
    patches = space.patches(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(space(x), space.tokens(patches)[:, 1:].mean(1))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="variant is 'large'; expected one of tiny, small, base"):
        AutoFormerSpace(variant="large")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images of 30 pixels cannot be cut into patches of 16"):
        AutoFormerSpace(image_size=30)
