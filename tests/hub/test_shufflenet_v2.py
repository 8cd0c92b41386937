"""The published networks against printed figures and a count by hand; how channels are mixed."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hwnas.hub.shufflenet_v2 import PUBLISHED, SCALES, ShuffleNetV2Space, ShuffleUnit
from hwnas.supernet import OneHot, make_supernet

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
# Documented by torchvision, whose strided units project to half the outgoing channels.
TORCHVISION = {
    "ShuffleNetV2 0.5x": ((24, 48, 96, 192), 1_366_792),
    "ShuffleNetV2 1.0x": ((24, 116, 232, 464), 2_278_604),
    "ShuffleNetV2 1.5x": ((24, 176, 352, 704), 3_503_624),
    "ShuffleNetV2 2.0x": ((24, 244, 488, 976), 7_393_996),
}


def small(scales: Sequence[float] = (1.0,), **options: object) -> ShuffleNetV2Space:
    settings = {"stem_width": 4, "widths": (8, 16, 20), "depths": (2, 1, 2), "last_width": 24} | options
    return ShuffleNetV2Space(10, scales=scales, **settings)


@functools.cache
def cost_of(name: str) -> tuple[int, float]:
    """Count the parameters and the multiply-adds of a published network."""
    with torch.device("meta"):
        model, image = PUBLISHED[name].model().eval(), torch.empty(1, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert model(image).shape == (1, 1000)
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() / 2


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_cost_what_is_printed(name: str) -> None:
    published = PUBLISHED[name]
    parameters, macs = cost_of(name)
    # All of them are printed in whole millions; those of ShuffleNet V2 are rounded up.
    assert -1e6 < macs - published.macs < 1e6
    if name != "ShuffleNetV2 0.5x":
        assert macs == pytest.approx(published.macs, rel=0.002)
    assert parameters == pytest.approx(published.parameters, abs=6e4)


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_differ_from_torchvision_by_the_projections(name: str) -> None:
    widths, known = TORCHVISION[name]
    difference = 0
    for width, out in itertools.pairwise(widths):
        half = out // 2
        ours, theirs = width * width + half * (out - width), width * half + half * half
        difference += ours - theirs
    assert cost_of(name)[0] == known + difference
    # Counted in osmr/imgclsmob for its network of the same rule.
    assert cost_of("ShuffleNetV2 1.0x")[0] == 2_279_760


def by_hand(kinds: str, scales: Sequence[float]) -> int:
    """Parameters of a network from the search of Guo et al., from the description of the blocks."""
    total, width, position = 27 * 16 + 2 * 16, 16, 0
    for out, depth in zip((64, 160, 320, 640), (4, 4, 8, 4), strict=True):
        for index in range(depth):
            kind, inner = kinds[position], int(out // 2 * scales[position])
            kernel = {"0": 9, "1": 25, "2": 49, "3": 9}[kind]
            inside, outside = (width, out - width) if index == 0 else (out // 2, out // 2)
            if index == 0:
                total += width * kernel + width * width + 4 * width
            if kind == "3":
                total += (inside + 2 * inner) * (9 + 2) + inside * inner + inner * inner + 2 * 2 * inner
            else:
                total += inside * inner + 2 * inner + inner * (kernel + 2)
            total += inner * outside + 2 * outside
            width, position = out, position + 1
    return total + 640 * 1024 + 2 * 1024 + 1025 * 1000


def test_searched_networks_counted_by_hand() -> None:
    assert cost_of("SPOS blocks")[0] == by_hand("21012020202300003233", [1.0] * 20)
    ids = [6, 5, 3, 5, 2, 6, 3, 4, 2, 5, 7, 5, 4, 6, 7, 4, 4, 5, 4, 3]  # as the authors print them
    assert cost_of("SPOS blocks and channels")[0] == by_hand("00311100202110202132", [SCALES[i] for i in ids])


def test_the_number_of_members() -> None:
    with torch.device("meta"):
        assert ShuffleNetV2Space().size() == 4**20
    assert small().size() == small().size(active_only=True) == 4**5
    assert small((0.5, 1.0)).size(active_only=True) == 8**5


@pytest.mark.parametrize("projection", [None, nn.Conv2d(8, 2, 1)])
def test_units_mix_channels_as_pytorch_shuffles_them(projection: nn.Module | None) -> None:
    branch = nn.Conv2d(4, 4, 3, padding=1) if projection is None else nn.Conv2d(8, 6, 1)
    unit, x = ShuffleUnit(branch, projection), torch.randn(2, 8, 5, 4)
    kept, changed = (x[:, :4], branch(x[:, 4:])) if projection is None else (projection(x), branch(x))
    expected = nn.ChannelShuffle(2)(torch.cat([kept, changed], 1))
    torch.testing.assert_close(unit(x), expected)


def test_outputs_see_inputs_of_both_halves_after_a_few_units() -> None:
    """Without the shuffle, the first half of the channels would never change; as published, the first one does not."""
    units = nn.Sequential(*(ShuffleUnit(nn.Conv2d(4, 4, 1)) for _ in range(5)))
    jacobian = torch.autograd.functional.jacobian(lambda x: units(x).flatten(), torch.randn(1, 8, 1, 1))
    assert (jacobian.view(8, 8)[1:, 1:] != 0).all()


@pytest.mark.parametrize("kind", ["shuffle3", "shuffle5", "shuffle7", "xception"])
def test_candidates_are_what_their_names_say(kind: str) -> None:
    space = small((0.5, 1.0))
    sample = {label: choice.values[0] for label, choice in space.simplify().items()}
    model = space.freeze(sample | {"stage3/block1": kind, "stage3/block1/scale": 0.5, "stage1/block0": kind})
    unit = model.stages[2][1]
    depthwise = [m for m in unit.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    kernel = 3 if kind == "xception" else int(kind[-1])
    assert [conv.kernel_size[0] for conv in depthwise] == [kernel] * (3 if kind == "xception" else 1)
    assert depthwise[-1].in_channels == 5
    assert unit.projection is None
    assert model.stages[0][0].projection[0][0].kernel_size == (kernel, kernel)


@pytest.mark.parametrize("pool", [False, True])
def test_each_stage_halves_the_image(pool: bool) -> None:
    model = small(stem_pool=pool).freeze(small().default()).eval()
    sizes = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, __, output: sizes.append(output.shape[1:]))
    model(torch.zeros(1, 3, 64, 64))
    first = 8 if pool else 16
    assert sizes == [(8, first, first), (16, first // 2, first // 2), (20, first // 4, first // 4)]


@pytest.mark.parametrize("seed", range(3))
def test_members_run(seed: int) -> None:
    space = small(SCALES[2:], dropout=0.5)
    member = space.freeze(space.random(random_state=seed)).eval()
    assert member(X).shape == (2, 10)
    assert not any(type(module).__module__.startswith("hwnas") for module in member.modules())


def test_a_member_exports() -> None:
    space = small(SCALES[2:])
    member = space.freeze(space.random(random_state=3)).eval()
    exported = torch.export.export(member, (X,)).module()
    torch.testing.assert_close(exported(X), member(X))


def test_members_inherit_from_a_supernet() -> None:
    space = small(SCALES[2:]).eval()
    sample = space.random(random_state=1)
    relaxation = OneHot(space.simplify().values())
    make_supernet(space, relaxation)
    relaxation.resample(sample)
    torch.testing.assert_close(space.freeze(sample).eval()(X), space(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (2,)}, "got 3 widths and 1 depths"),
        ({"widths": (8, 15, 20)}, r"behind 8, 15 is not possible\. Expected even widths that grow"),
        ({"widths": (8, 16, 16)}, "behind 16, 16 is not possible"),
        ({"stem_width": 8}, r"the widths are \(8, 8, 16, 20\), the stem first"),
        ({"scales": (0.2, 1.0)}, r"the scales are \(0\.2, 1\.0\); expected at least one"),
        ({"scales": ()}, r"the scales are \(\)"),
    ],
)
def test_arguments_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)
