"""The published networks against the figures of their authors; what may be skipped."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hwnas.hub.proxylessnas import PUBLISHED, STAGES, ProxylessNASSpace
from hwnas.supernet import OneHot, make_supernet

# What the collection of networks of osmr/imgclsmob counts for its own implementation.
PARAMETERS = {
    "Proxyless-Mobile": 4_080_512,
    "Proxyless-CPU": 4_361_648,
    "Proxyless-GPU": 7_119_848,
    "Proxyless-Mobile-14": 6_857_568,
}
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small() -> ProxylessNASSpace:
    return ProxylessNASSpace(10, stem_width=4, widths=(4, 8, 8, 8, 12, 12, 16), last_width=32)


@pytest.fixture(scope="module")
def space() -> ProxylessNASSpace:
    return small()


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
    assert parameters == PARAMETERS[name]
    assert macs == pytest.approx(published.macs, rel=0.0003)
    if published.parameters is not None:
        assert parameters == pytest.approx(published.parameters, rel=0.001)


def test_every_block_but_the_first_of_a_stage_may_be_skipped(space: ProxylessNASSpace) -> None:
    assert space.size() == space.size(active_only=True) == 6**6 * 7**15
    choices = space.simplify()
    assert len(choices) == 21
    for number, (_, blocks) in enumerate(STAGES, start=1):
        for index in range(blocks):
            names = choices[f"stage{number}/block{index}"].values
            assert ("skip" in names) == (index > 0)
            assert names[:6] == ["k3_e3", "k3_e6", "k5_e3", "k5_e6", "k7_e3", "k7_e6"]


def test_blocks_are_what_their_names_say(space: ProxylessNASSpace) -> None:
    skipped = {label: "skip" if "skip" in choice.values else "k3_e3" for label, choice in space.simplify().items()}
    for name in ("k5_e3", "k7_e6", "skip"):
        model = space.freeze(skipped | {"stage2/block1": name})
        block = model.stages[1][1]
        if name == "skip":
            assert isinstance(block, nn.Identity)
        else:
            depthwise = block.depthwise[0]
            assert depthwise.kernel_size == (int(name[1]), int(name[1]))
            assert depthwise.groups == depthwise.in_channels == 8 * int(name[-1])
            assert block.shortcut
            assert not model.stages[1][0].shortcut


def test_the_image_shrinks_by_32(space: ProxylessNASSpace) -> None:
    model = space.freeze(space.default()).eval()
    sizes = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, __, output: sizes.append(output.shape[-1]))
    model(torch.zeros(1, 3, 64, 64))
    assert sizes == [16, 8, 4, 4, 2, 2]


@pytest.mark.parametrize("seed", range(3))
def test_members_run(space: ProxylessNASSpace, seed: int) -> None:
    member = space.freeze(space.random(random_state=seed)).eval()
    assert member(X).shape == (2, 10)
    assert not any(type(module).__module__.startswith("hwnas") for module in member.modules())


def test_a_member_exports(space: ProxylessNASSpace) -> None:
    member = space.freeze(space.random(random_state=3)).eval()
    exported = torch.export.export(member, (X,)).module()
    torch.testing.assert_close(exported(X), member(X))


def test_members_inherit_from_a_supernet() -> None:
    space = small().eval()
    sample = space.random(random_state=5)
    relaxation = OneHot(space.simplify().values())
    make_supernet(space, relaxation)
    relaxation.resample(sample)
    torch.testing.assert_close(space.freeze(sample).eval()(X), space(X))


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"got the widths \(8, 8\); expected 7"):
        ProxylessNASSpace(widths=(8, 8))


def test_dropout_drops_features() -> None:
    space = ProxylessNASSpace(10, stem_width=4, widths=(4, 8, 8, 8, 12, 12, 16), last_width=32, dropout=1.0)
    model = space.freeze(space.default()).train()
    torch.testing.assert_close(model(X), model.classifier.bias.expand(2, -1))
