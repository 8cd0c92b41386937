"""The usage that the older library documents for its mutation primitives, with nothing but the import changed."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hwnas.nn as nn
from hwnas.evaluators import FunctionalEvaluator


class PoolBN(torch.nn.Module):
    """A pooling layer and a normalisation, a module of the user."""

    def __init__(self, pool: str, channels: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.pool = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}[pool](kernel, stride, padding)
        self.bn = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.pool(x))


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def check(space: nn.ModelSpace, *inputs: Tensor) -> None:
    """Run the space, and some of its members."""
    space(*inputs)
    for seed in range(4):
        sample = space.random(random_state=seed)
        space.validate(sample)
        space.freeze(sample)(*inputs)


# -- LayerChoice ---------------------------------------------------------------------------------------------


def test_layer_choice_of_modules() -> None:
    class Net(nn.ModelSpace):
        def __init__(self, channels: int = 8, stride: int = 1) -> None:
            super().__init__()
            self.layer = nn.LayerChoice(
                [
                    PoolBN("max", channels, 3, stride, 1),
                    nn.Conv2d(channels, channels, 3, stride, 1),
                    nn.Identity(),
                ]
            )

        def forward(self, x: Tensor) -> Tensor:
            out = self.layer(x)
            return out

    check(Net(), torch.randn(2, 8, 5, 5))


def test_layer_choice_of_named_modules_can_be_edited() -> None:
    op_choice = nn.LayerChoice(
        OrderedDict(
            [
                ("conv3x3", nn.Conv2d(3, 16, 128)),
                ("conv5x5", nn.Conv2d(5, 16, 128)),
                ("conv7x7", nn.Conv2d(7, 16, 128)),
            ]
        )
    )
    assert op_choice.names == ["conv3x3", "conv5x5", "conv7x7"]
    del op_choice["conv5x5"]
    op_choice[1] = nn.Conv3d(3, 16, 3)
    assert len(op_choice) == len(list(op_choice)) == 2
    assert isinstance(op_choice["conv7x7"], torch.nn.Conv3d)


# -- InputChoice ---------------------------------------------------------------------------------------------


def test_input_choice_without_the_number_of_candidates() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.input_switch = nn.InputChoice(n_chosen=1)

        def forward(self, tensor1: Tensor, tensor2: Tensor, tensor3: Tensor) -> Tensor:
            out = self.input_switch([tensor1, tensor2, tensor3])
            return out

    space = Net()
    check(space, *(torch.full((1,), float(i)) for i in range(3)))
    (label,) = space.simplify()
    assert space.freeze({label: [2]})(*(torch.full((1,), float(i)) for i in range(3))) == 2


# -- ValueChoice ---------------------------------------------------------------------------------------------


def test_value_choice_as_an_argument() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, nn.ValueChoice([32, 64]), kernel_size=nn.ValueChoice([3, 5, 7]))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    assert Net().size() == 6
    check(Net(), torch.randn(1, 3, 8, 8))


def test_value_choice_as_an_argument_of_an_evaluator() -> None:
    def train_and_evaluate(model_cls: torch.nn.Module, learning_rate: float) -> float:
        return learning_rate

    evaluator = FunctionalEvaluator(train_and_evaluate, learning_rate=nn.ValueChoice([1e-3, 1e-2, 1e-1]))
    (label,) = evaluator.simplify()
    assert evaluator.freeze({label: 1e-2}).evaluate(nn.Identity()) == 1e-2


def test_width_multiplier() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            scale = nn.ValueChoice([1.0, 1.5, 2.0])
            self.conv1 = nn.Conv2d(3, round(scale * 16), 1)
            self.conv2 = nn.Conv2d(round(scale * 16), round(scale * 64), 1)
            self.conv3 = nn.Conv2d(round(scale * 64), round(scale * 256), 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv3(self.conv2(self.conv1(x)))

    assert Net().size() == 3
    check(Net(), torch.randn(1, 3, 2, 2))


def test_kernel_size_and_padding_are_coupled() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            ks = nn.ValueChoice([3, 5, 7])
            self.conv = nn.Conv2d(3, 16, kernel_size=ks, padding=(ks - 1) // 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    space = Net()
    for sample in space.grid():
        assert space.freeze(sample)(torch.randn(1, 3, 8, 8)).shape == (1, 16, 8, 8)


def test_layers_that_are_concatenated() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.linear1 = nn.Linear(3, nn.ValueChoice([1, 2, 3], label="a"))
            self.linear2 = nn.Linear(3, nn.ValueChoice([4, 5, 6], label="b"))
            self.final = nn.Linear(nn.ValueChoice([1, 2, 3], label="a") + nn.ValueChoice([4, 5, 6], label="b"), 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.final(torch.cat([self.linear1(x), self.linear2(x)], 1))

    space = Net()
    assert space.size() == 9
    for sample in space.grid():
        assert space.freeze(sample)(torch.randn(2, 3)).shape == (2, 2)


def test_one_label_is_one_choice() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(10, nn.ValueChoice([32, 64, 128], label="hidden_dim")),
                nn.Linear(nn.ValueChoice([32, 64, 128], label="hidden_dim"), 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    assert Net().size() == 3
    check(Net(), torch.randn(2, 10))


def test_one_instance_is_one_choice() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            hidden_dim = nn.ValueChoice([128, 512])
            self.fc = nn.Sequential(nn.Linear(64, hidden_dim), nn.Linear(hidden_dim, 10))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    assert Net().size() == 2
    check(Net(), torch.randn(2, 64))


def test_a_range_over_a_choice_is_refused_with_advice() -> None:
    with pytest.raises(TypeError, match="has no value before a sample is chosen"):
        for _ in range(nn.ValueChoice([1, 2, 3])):
            pass


def test_value_choice_called_in_forward() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.dropout_rate = nn.ValueChoice([0.0, 1.0])

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, self.dropout_rate())

    space = Net()
    (label,) = space.simplify()
    assert space.freeze({label: 1.0})(torch.ones(4)).sum() == 0
    assert space.freeze({label: 0.0})(torch.ones(4)).sum() == 4


def test_functions_of_value_choices() -> None:
    chosen = nn.ValueChoice.condition(nn.ValueChoice([1, 2]) > nn.ValueChoice([0, 3]), 2, 1)
    assert chosen.evaluate([1, 0]) == 2
    assert chosen.evaluate([2, 3]) == 1
    a, b = nn.ValueChoice([1, 5]), nn.ValueChoice([2, 3])
    assert nn.ValueChoice.max(a, b).evaluate([1, 3]) == 3
    assert nn.ValueChoice.min([a, b, 4]).evaluate([5, 3]) == 3
    assert nn.ValueChoice.max(1, 2) == 2
    assert nn.ValueChoice.to_int(a / 2).evaluate([5]) == 2
    assert type(nn.ValueChoice.to_float(a).evaluate([5])) is float
    assert a.all_options() == [1, 5]
    assert a.inner_choices() == [a]


# -- ModelParameterChoice ------------------------------------------------------------------------------------


def test_model_parameter_choice_in_a_condition() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.has_auxiliary_head = nn.ModelParameterChoice([False, True])
            if self.has_auxiliary_head is True:
                self.auxiliary_head = nn.Linear(4, 2)
            else:
                self.auxiliary_head = None
            assert type(self.has_auxiliary_head) is bool

        def forward(self, x: Tensor) -> Tensor:
            return x if self.auxiliary_head is None else self.auxiliary_head(x)

    space = Net()
    (label,) = space.simplify()
    assert space.freeze({label: False})(torch.randn(1, 4)).shape == (1, 4)
    assert space.freeze({label: True})(torch.randn(1, 4)).shape == (1, 2)


def test_model_parameter_choice_and_repeat_give_the_same_depths() -> None:
    class Loop(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            depth = nn.ModelParameterChoice(list(range(3, 10)), label="depth")
            blocks = []
            for _ in range(depth):
                blocks.append(Block())
            self.blocks = nn.Sequential(*blocks)

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x)

    class Repeated(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Repeat(Block(), (3, 9), label="depth")

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x)

    loop, repeated = Loop(), Repeated()
    assert list(loop.grid()) == list(repeated.grid())
    for sample in loop.grid():
        assert len(loop.freeze(sample).blocks) == len(repeated.freeze(sample).blocks) == sample["depth"]


def test_a_parameter_of_a_chosen_shape() -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            parameter_dim = nn.ModelParameterChoice([64, 128, 256], default=nn.ModelParameterChoice.LAST(), label="dim")
            self.token = nn.Parameter(torch.zeros(1, parameter_dim, 32, 32))

    assert Net().token.shape == (1, 256, 32, 32)
    assert Net().freeze({"dim": 128}).token.shape == (1, 128, 32, 32)


# -- Repeat --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "depths"),
    [
        (lambda: nn.Repeat(Block(), 3), {3}),
        (lambda: nn.Repeat(Block(), (1, 3)), {1, 2, 3}),
        (lambda: nn.Repeat(Block(), nn.ValueChoice([1, 3, 5])), {1, 3, 5}),
        (lambda: nn.Repeat(nn.LayerChoice([Block(), nn.Identity()]), (1, 3)), {1, 2, 3}),
        (
            lambda: nn.Repeat(lambda index: nn.LayerChoice([Block(), nn.Identity()], label=f"layer{index}"), (1, 3)),
            {1, 2, 3},
        ),
        (lambda: nn.Repeat([Block(), Block()], (0, 2)), {0, 1, 2}),
    ],
)
def test_repeat(make: object, depths: set[int]) -> None:
    class Net(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = make()  # type: ignore[operator]

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks(x)

    space = Net()
    assert {len(space.freeze(sample).blocks) for sample in space.grid()} == depths
    check(space, torch.randn(2, 4))


def test_copies_of_a_layer_choice_choose_alike_and_those_of_a_factory_do_not() -> None:
    class Net(nn.ModelSpace):
        def __init__(self, blocks: object) -> None:
            super().__init__()
            self.blocks = nn.Repeat(blocks, (1, 3))  # type: ignore[arg-type]

    def choice(label: str | None = None) -> nn.LayerChoice:
        return nn.LayerChoice([Block(), nn.Identity()], label=label)

    assert Net(choice("one")).size() == 3 * 2
    assert Net(lambda index: choice(f"layer{index}")).size() == 3 * 2**3


# -- Cell ----------------------------------------------------------------------------------------------------


def test_cell_of_modules() -> None:
    cell = nn.Cell([nn.Conv2d(32, 32, 3, padding=1), nn.MaxPool2d(3, 1, padding=1)], 4, 1, 2)
    input1, input2 = torch.randn(1, 32, 6, 6), torch.randn(1, 32, 6, 6)
    assert cell([input1, input2]).shape == (1, 4 * 32, 6, 6)
    assert torch.equal(cell(input1, input2), cell([input1, input2]))
    single = nn.Cell([nn.Conv2d(32, 32, 3, padding=1), nn.MaxPool2d(3, 1, padding=1)], 4)
    assert single(input1).shape == (1, 4 * 32, 6, 6)


def test_cell_with_loose_ends() -> None:
    cell = nn.Cell(
        [nn.Conv2d(32, 32, 3, padding=1), nn.MaxPool2d(3, 1, padding=1)], 4, 1, 2, merge_op="loose_end", label="cell"
    )
    assert list(cell.output_node_indices) == [2, 3, 4, 5]
    frozen = cell.freeze(cell.random(random_state=0))
    cell_out_channels = len(frozen.output_node_indices) * 32
    assert frozen([torch.randn(1, 32, 6, 6)] * 2).shape == (1, cell_out_channels, 6, 6)


def test_cell_of_a_factory() -> None:
    cell = nn.Cell(
        [
            lambda node_index, op_index, input_index: nn.Conv2d(
                32, 32, 3, stride=2 if input_index < 1 else 1, padding=1
            ),
        ],
        1,
        1,
        2,
        label="cell",
    )
    sizes = {
        choice: cell.freeze({"cell/op_2_0": 0, "cell/input_2_0": [choice]})(
            torch.randn(1, 32, 8, 8), torch.randn(1, 32, 8, 8)
        ).shape[-1]
        for choice in (0, 1)
    }
    assert sizes == {0: 4, 1: 8}


def test_cell_with_a_preprocessor() -> None:
    class Preprocessor:
        def __init__(self) -> None:
            self.conv1 = nn.Conv2d(16, 32, 1)
            self.conv2 = nn.Conv2d(64, 32, 1)

        def forward(self, x: list[Tensor]) -> list[Tensor]:
            return [self.conv1(x[0]), self.conv2(x[1])]

    cell = nn.Cell(
        [nn.Conv2d(32, 32, 3, padding=1), nn.MaxPool2d(3, 1, padding=1)], 4, 1, 2, preprocessor=Preprocessor()
    )
    assert cell([torch.randn(1, 16, 8, 8), torch.randn(1, 64, 8, 8)]).shape == (1, 128, 8, 8)


# -- NasBench101Cell, NasBench201Cell, AutoActivation ------------------------------------------------------


def test_nas_bench_101_cell() -> None:
    def conv_bn_relu(num_features: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(num_features, num_features, 1), nn.BatchNorm2d(num_features), nn.ReLU())

    def projection_fn(in_features: int, out_features: int) -> nn.Module:
        return nn.Conv2d(in_features, out_features, 1)

    cell = nn.NasBench101Cell([conv_bn_relu, conv_bn_relu], 8, 16, projection_fn, label="cell")
    x = torch.randn(2, 8, 4, 4)
    assert cell(x).shape == (2, 16, 4, 4)
    for seed in range(5):
        assert cell.freeze(cell.random(random_state=seed))(x).shape == (2, 16, 4, 4)


def test_nas_bench_201_cell() -> None:
    cell = nn.NasBench201Cell(
        [
            lambda in_features, out_features: nn.Linear(in_features, out_features),
            lambda in_features, out_features: nn.Linear(in_features, out_features, bias=False),
        ],
        10,
        16,
        label="cell",
    )
    assert cell.size() == 2 ** (4 * 3 // 2)
    x = torch.randn(2, 10)
    assert cell(x).shape == cell.freeze(cell.random(random_state=0))(x).shape == (2, 16)


def test_auto_activation() -> None:
    activation = nn.AutoActivation(unit_num=2, label="act")
    x = torch.randn(7)
    assert activation(x).shape == activation.freeze(activation.random(random_state=1))(x).shape == (7,)
