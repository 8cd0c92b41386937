"""What holds for every space of the hub: its members are plain PyTorch and go where plain PyTorch goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import hwnas.hub
from hwnas.hub.mobilenet_v3 import SMALL
from hwnas.nn import ModelSpace
from hwnas.space import space_from_json, space_to_json

SMALL_ONES: dict[str, tuple[Callable[[], ModelSpace], int]] = {
    "AmoebaNetSpace": (lambda: hwnas.hub.AmoebaNetSpace(width=4, num_cells=3), 8),
    "AutoFormerSpace": (lambda: hwnas.hub.AutoFormerSpace(classes=10, image_size=32), 32),
    "DARTSSpace": (lambda: hwnas.hub.DARTSSpace(width=4, num_cells=3), 8),
    "DigitsSpace": (hwnas.hub.DigitsSpace, 8),
    "ENASSpace": (lambda: hwnas.hub.ENASSpace(width=4, num_cells=3), 8),
    "MobileNetV3Space": (lambda: hwnas.hub.MobileNetV3Space(classes=10, skeleton=SMALL), 32),
    "NASBench101Space": (lambda: hwnas.hub.NASBench101Space(channels=8, cells=1), 8),
    "NASBench201Space": (lambda: hwnas.hub.NASBench201Space(channels=4, cells=1), 8),
    "NASNetSpace": (lambda: hwnas.hub.NASNetSpace(width=4, num_cells=3), 8),
    "PNASSpace": (lambda: hwnas.hub.PNASSpace(width=4, num_cells=3), 8),
    "ProxylessNASSpace": (lambda: hwnas.hub.ProxylessNASSpace(classes=10), 32),
    "ShuffleNetV2Space": (lambda: hwnas.hub.ShuffleNetV2Space(classes=10), 32),
}


def test_none_is_forgotten() -> None:
    assert set(SMALL_ONES) == {name for name in hwnas.hub.__all__ if name.endswith("Space")}


@pytest.mark.parametrize("name", SMALL_ONES)
def test_members_are_plain_pytorch(name: str) -> None:
    make, size = SMALL_ONES[name]
    space = make()
    sample = space.random(random_state=1)
    assert sample == make().random(random_state=1)
    model = space.freeze(sample).eval()
    assert not any(type(part).__module__.startswith("hwnas") for part in model.modules())
    held = {tensor.data_ptr() for tensor in [*space.parameters(), *space.buffers()] if tensor.numel()}
    assert held.isdisjoint(tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()] if tensor.numel())
    assert space.size() >= 15_625  # of NAS-Bench-201, the smallest
    image = torch.randn(2, space.input_shape[0], size, size)
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(image)
        assert expected.shape == (2, 10)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(image), expected)


@pytest.mark.parametrize("name", ["AutoFormerSpace", "MobileNetV3Space", "NASBench101Space", "NASNetSpace"])
def test_members_can_be_exported(name: str) -> None:
    make, size = SMALL_ONES[name]
    space = make()
    model = space.freeze(space.random(random_state=2)).eval()
    image = torch.randn(1, space.input_shape[0], size, size)
    exported = torch.export.export(model, (image,)).module()
    torch.testing.assert_close(exported(image), model(image))


@pytest.mark.parametrize("name", SMALL_ONES)
def test_descriptions_say_the_same_as_the_spaces(name: str) -> None:
    space = SMALL_ONES[name][0]()
    described = space_from_json(space_to_json(space))
    for seed in range(3):
        sample = space.random(random_state=seed)
        assert described.random(random_state=seed) == sample
        assert space.contains(described.freeze(sample))
    if name != "NASBench101Space":  # takes seconds, see tests/nn/test_nas_bench_101_cell.py
        assert described.size(active_only=True) == space.size(active_only=True)
