"""The order of memory of a super-net: faster, and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.evaluators import Classification
from hwnas.hub import NASBench201Space
from hwnas.kernels import native
from hwnas.strategies import DARTS, RandomOneShot
from hwnas.supernet import OneHot, Softmax, lay_out_channels_last, make_supernet, order_does_not_matter


class Stem(nn.Module):
    """Code of a user."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Net(nn.ModelSpace):
    """Reads its features in the one order that `view` allows."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([4, 6], label="width")
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layer = nn.LayerChoice([nn.Conv2d(width, 4, 3, padding=1), nn.Conv2d(width, 4, 1)], label="layer")
        self.head = nn.Linear(4 * 8 * 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x)).view(len(x), -1))


def small() -> NASBench201Space:
    torch.manual_seed(0)
    return NASBench201Space(classes=2, channels=4, cells=1)


def is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def evaluator(channels: int = 3) -> Classification:
    torch.manual_seed(1)
    data = torch.utils.data.TensorDataset(torch.randn(8, channels, 8, 8), torch.arange(8) % 2)
    loaders = [torch.utils.data.DataLoader(data, batch_size=4) for _ in range(2)]
    return Classification(train_dataloaders=loaders[0], val_dataloaders=loaders[1], max_epochs=1)


@pytest.mark.parametrize("relaxation", [OneHot, Softmax])
def test_features_follow_the_weights_and_results_stay(relaxation: type[OneHot] | type[Softmax]) -> None:
    space = small()
    relaxed = relaxation(space.simplify().values())
    make_supernet(space, relaxed)
    if isinstance(relaxed, OneHot):
        relaxed.resample({label: "nor_conv_3x3" for label in relaxed.dimensions})
    other = copy.deepcopy(space)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    lay_out_channels_last(other)
    seen: list[Tensor] = []
    other.body[-1].register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.randn(2, 3, 16, 16)
    gradients = []
    for net in (space, other):
        net(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert is_channels_last(seen[0])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    before = next(other.parameters()).detach().clone()
    assert gradients[0][0].any()
    optimizer.step()  # of the parameters as they were before
    assert not torch.equal(before, next(other.parameters()))
    for name, tensor in space.state_dict().items():
        assert other.state_dict()[name].shape == tensor.shape


@pytest.mark.parametrize("strategy", [DARTS, RandomOneShot])
def test_a_search_uses_it_where_the_code_allows(strategy: type[DARTS] | type[RandomOneShot]) -> None:
    space = small()
    made = strategy()
    made.run(space, evaluator())
    assert is_channels_last(space.stem[0].weight)
    member = made.freeze(space.random(random_state=0))
    x = torch.randn(2, 3, 16, 16)
    reference = copy.deepcopy(member).to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(member.eval()(x), reference.eval()(x), rtol=1e-4, atol=1e-5)


def test_code_of_others_keeps_the_order_it_was_written_for() -> None:
    space = Net()
    RandomOneShot().run(space, evaluator())  # `view` would raise
    assert space.stem.weight.is_contiguous()


def test_who_asks_for_it_gets_it() -> None:
    class Flattened(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.stem(x)).flatten(1))

    space, strategy = Flattened(), RandomOneShot()
    strategy.mutate_model(space).to(memory_format=torch.channels_last)
    strategy.run(space, evaluator())
    assert is_channels_last(space.stem.weight)


def test_the_switch_of_the_kernels_is_its_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ENABLED", False)
    space = small()
    RandomOneShot().run(space, evaluator())
    assert space.stem[0].weight.is_contiguous()


def test_whose_code_is_known() -> None:
    assert order_does_not_matter(small())
    assert order_does_not_matter(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), nn.Identity()))
    assert not order_does_not_matter(torch.nn.Sequential(torch.nn.ReLU(), Stem()))
