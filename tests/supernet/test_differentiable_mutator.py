"""Differentiable search in plain loops of PyTorch."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.cost import CostModel, Factor
from hwnas.errors import SampleError, TrainingError, UnsupportedError
from hwnas.space import ExpressionConstraint, Numerical
from hwnas.supernet import BinaryGates, DifferentiableMutator, GumbelSoftmax, OneHot, Softmax, is_supernet

ALL = [Softmax, GumbelSoftmax, BinaryGates]


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


class Net(nn.ModelSpace):
    """``first`` and ``second`` are one choice; what is right for the toy task is square, tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.bend()
        self.second = self.bend()
        self.last = nn.LayerChoice([nn.ReLU(), nn.Sigmoid(), nn.Tanh()], label="last")
        self.scale = nn.Linear(3, 3)
        nn.init.eye_(self.scale.weight)
        nn.init.zeros_(self.scale.bias)

    @staticmethod
    def bend() -> nn.Module:
        return nn.LayerChoice({"keep": nn.Identity(), "square": Square(), "tanh": nn.Tanh()}, label="bend")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.scale(self.first(x) + self.second(-x) - 1))


class Normed(nn.ModelSpace):
    """With batch normalisation, dropout, a width and a depth."""

    def __init__(self) -> None:
        super().__init__()
        width = nn.ValueChoice([2, 4], label="width")
        self.conv = nn.Conv2d(1, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Repeat(nn.Dropout(0.5), (1, 2), label="depth")
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.norm(self.conv(x))).mean((2, 3)))


def prepared(
    space: nn.ModelSpace, relaxation: Any = Softmax, **options: Any
) -> tuple[nn.ModelSpace, DifferentiableMutator]:
    mutator = DifferentiableMutator(relaxation, **options)
    mutator.prepare_from_supernet(space)
    return space, mutator


def batch(seed: int) -> tuple[Tensor, Tensor]:
    x = 3 * torch.rand(32, 3, generator=torch.Generator().manual_seed(seed)) - 1.5
    return x, (2 * x.square() - 2).tanh()


def search(
    space: nn.ModelSpace, mutator: DifferentiableMutator, steps: range, optimizers: Any = None, **adam: Any
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Train weights and architecture in turn, as a user would write it."""
    weights, architecture = optimizers or (
        torch.optim.SGD(space.parameters(), lr=0.2),
        torch.optim.Adam(mutator.parameters(), lr=0.1, **adam),
    )
    for step in steps:
        x, y = batch(2 * step)
        with mutator.architecture_step():
            architecture.zero_grad()
            (space(x) - y).square().mean().backward()
            architecture.step()
        x, y = batch(2 * step + 1)
        with mutator.weight_step():
            weights.zero_grad()
            (space(x) - y).square().mean().backward()
            weights.step()
    return weights, architecture


@pytest.mark.parametrize("relaxation", ALL)
def test_a_plain_loop_finds_the_right_candidates(relaxation: Any) -> None:
    space, mutator = prepared(Net(), relaxation)
    search(space, mutator, range(80))
    sample = mutator.search_subnet()
    assert sample == {"bend": "square", "last": 2}
    mutator.eval()
    model = space.freeze(sample)
    assert not isinstance(model, nn.ModelSpace)
    x, y = batch(1000)
    assert (model(x) - y).square().mean() < 0.2  # of 0.65 with the other candidates
    torch.testing.assert_close(space(x), model(x))


# --- architecture parameters -------------------------------------------------------------------------------------


def test_one_parameter_for_each_label_beside_the_weights() -> None:
    space, mutator = prepared(Net())
    params = mutator.arch_params
    assert isinstance(params, torch.nn.ParameterDict)
    assert {space_id: len(parameter) for space_id, parameter in params.items()} == {"bend": 3, "last": 3}
    assert list(map(id, mutator.parameters())) == [id(parameter) for parameter in params.values()]
    assert {name for name, _ in space.named_parameters()} == {"scale.weight", "scale.bias"}
    assert space.first.relaxation is space.second.relaxation is mutator.relaxation


def test_the_two_halves_of_preparing() -> None:
    space, mutator = Net(), DifferentiableMutator()
    built = mutator.build_arch_params(space)
    assert list(built) == ["bend", "last"]
    assert not is_supernet(space)
    with torch.no_grad():
        built["last"][1] = 9.0
    mutator.modify_supernet_forward(space)
    assert mutator.search_subnet()["last"] == 1


def test_labels_that_pytorch_would_not_take_as_names() -> None:
    class Odd(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            names = ["a.b", "values", "training", "x/y"]
            self.layers = nn.ModuleList(nn.LayerChoice([nn.ReLU(), nn.Tanh()], label=name) for name in names)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    space, mutator = prepared(Odd())
    assert [id(mutator.arch_params[label]) for label in space.simplify()] == list(map(id, mutator.parameters()))


def test_gradient_equals_finite_differences() -> None:
    space, mutator = prepared(Net())
    space.double()
    mutator.double()
    with torch.no_grad():
        for parameter in mutator.parameters():
            parameter.copy_(torch.randn(len(parameter)))
    x, y = (tensor.double() for tensor in batch(0))

    def loss() -> Tensor:
        with mutator.architecture_step():
            return (space(x) - y).square().mean()

    for parameter, gradient in zip(
        mutator.parameters(), torch.autograd.grad(loss(), list(mutator.parameters())), strict=True
    ):
        assert gradient.abs().max() > 1e-4
        for i in range(len(parameter)):
            values = []
            for change in (1e-5, -1e-5):
                before = parameter[i].item()
                parameter.data[i] += change
                values.append(loss().item())
                parameter.data[i] = before
            assert gradient[i].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-8)


# --- labels that are not searched --------------------------------------------------------------------------------


def test_skipped_labels_have_no_parameter_and_keep_their_default() -> None:
    torch.manual_seed(3)
    space, mutator = prepared(Net(), skip=["bend"])
    assert list(mutator.arch_params) == ["last"]
    x, _ = batch(0)
    p = torch.softmax(mutator.arch_params["last"], 0)
    hidden = space.scale(x - x - 1)
    torch.testing.assert_close(space(x), p[0] * hidden.relu() + p[1] * hidden.sigmoid() + p[2] * hidden.tanh())
    sample = mutator.search_subnet()
    assert sample["bend"] == "keep"
    assert mutator.probabilities()["bend"].tolist() == [1.0, 0.0, 0.0]
    space.freeze(sample)


def test_skipped_widths_and_values() -> None:
    class Called(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.ValueChoice([2.0, 3.0], label="factor")
            width = nn.ValueChoice([2, 4], label="width", default=4)
            self.linear = nn.Linear(3, width)
            self.act = nn.LayerChoice([nn.Identity(), Square()], label="act")

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.linear(x)) * self.factor()

    space, mutator = prepared(Called(), skip={"factor", "width"})
    x, _ = batch(0)
    p = torch.softmax(mutator.arch_params["act"], 0)
    hidden = space.linear(x)
    torch.testing.assert_close(space(x), 2.0 * (p[0] * hidden + p[1] * hidden.square()))
    assert space(x).shape == (32, 4)
    assert mutator.search_subnet().items() >= {"factor": 2.0, "width": 4}.items()


def test_a_module_that_is_searched_in_part_is_refused() -> None:
    class Partly(nn.ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(
                nn.ValueChoice([2, 3], label="inputs", default=3), nn.ValueChoice([2, 4], label="outputs")
            )

    with pytest.raises(
        UnsupportedError, match=r"linear: .*Linear is decided by \['inputs'\], which are skipped, and by \['outputs'\]"
    ):
        prepared(Partly(), skip="inputs")


# --- steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relaxation", ALL)
def test_an_architecture_step_leaves_no_trace_in_the_model(relaxation: Any) -> None:
    space, mutator = prepared(Normed(), relaxation)
    before = {name: tensor.clone() for name, tensor in space.state_dict().items()}
    x = torch.randn(4, 1, 5, 5)
    with mutator.architecture_step():
        space(x).square().sum().backward()
    assert all(parameter.grad is None for parameter in space.parameters())
    assert any(parameter.grad is not None for parameter in mutator.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in space.state_dict().items())
    assert all(parameter.requires_grad for parameter in (*space.parameters(), *mutator.parameters()))


@pytest.mark.parametrize("relaxation", ALL)
def test_a_weight_step_leaves_no_trace_in_the_architecture(relaxation: Any) -> None:
    space, mutator = prepared(Normed(), relaxation)
    with mutator.weight_step():
        space(torch.randn(4, 1, 5, 5)).square().sum().backward()
    assert all(parameter.grad is None for parameter in mutator.parameters())
    assert space.conv.weight.grad is not None
    assert space.norm.num_batches_tracked == 1
    assert all(parameter.requires_grad for parameter in mutator.parameters())


def test_an_architecture_step_of_a_larger_model() -> None:
    space, mutator = prepared(Net())
    model = nn.Sequential(space, nn.BatchNorm1d(3))
    with mutator.architecture_step(model):
        model(batch(0)[0]).tanh().sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model[1].num_batches_tracked == 0


def test_weights_that_were_frozen_stay_frozen() -> None:
    space, mutator = prepared(Net())
    space.scale.bias.requires_grad_(False)
    with mutator.architecture_step():
        pass
    assert [p.requires_grad for p in (space.scale.weight, space.scale.bias)] == [True, False]


def test_each_step_draws_and_nothing_else_does() -> None:
    space, mutator = prepared(Net(), GumbelSoftmax, temperature=0.5, seed=1)
    assert mutator.relaxation.temperature == 0.5
    x, _ = batch(0)
    with mutator.weight_step():
        first, again = space(x), space(x)
    assert torch.equal(first, again)
    with mutator.weight_step():
        assert not torch.equal(space(x), first)
    assert set(mutator.resample()) == {"bend", "last"}
    assert prepared(Net())[1].resample() == {}


def test_seeds() -> None:
    def numbers(seed: int) -> list[float]:
        _, mutator = prepared(Net(), GumbelSoftmax, seed=seed)
        mixture = mutator.relaxation.mixture(mutator.relaxation.dimension("last"))
        return [*mutator.arch_params["last"].tolist(), *mixture.weights.tolist()]

    assert numbers(1) == numbers(1)
    assert not set(numbers(1)) & set(numbers(2))


# --- cost --------------------------------------------------------------------------------------------------------


def cost() -> CostModel:
    domain = {"bend": ["keep", "square", "tanh"], "last": [0, 1, 2]}
    tables = {"bend": [1.0, 5.0, 2.0], "last": [0.0, 7.0, 3.0]}
    return CostModel(domain, [Factor((label,), torch.tensor(table).numpy()) for label, table in tables.items()])


@pytest.mark.parametrize("skip", [[], ["bend"]])
def test_expected_cost_trains_every_parameter(skip: list[str]) -> None:
    _, mutator = prepared(Net(), skip=skip)
    p = mutator.probabilities()
    expected = p["bend"] @ torch.tensor([1.0, 5.0, 2.0]) + p["last"] @ torch.tensor([0.0, 7.0, 3.0])
    torch.testing.assert_close(mutator.expected_cost(cost()), expected)
    mutator.expected_cost(cost()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in mutator.parameters())


# --- export ------------------------------------------------------------------------------------------------------


def test_export_is_the_most_probable_member_that_meets_the_constraints() -> None:
    space = Net()
    bend, last = space.first.choice, space.last.choice
    space.add_mutable(ExpressionConstraint((bend == "keep") == (last == 0)))
    _, mutator = prepared(space)
    logits = {"bend": [2.0, 1.5, 0.0], "last": [0.0, 2.0, 1.0]}
    with torch.no_grad():
        for label, values in logits.items():
            mutator.arch_params[label].copy_(torch.tensor(values))

    def score(sample: dict[str, Any]) -> float:
        bends = ["keep", "square", "tanh"]
        return logits["bend"][bends.index(sample["bend"])] + logits["last"][sample["last"]]

    best = max(space.grid(), key=score)
    assert mutator.search_subnet() == mutator.search_subnet() == best
    mutator.eval()  # and so does evaluation mode
    x, _ = batch(0)
    torch.testing.assert_close(space(x), space.freeze(best)(x))
    mutator.train()
    assert not torch.allclose(space(x), space.freeze(best)(x))


@pytest.mark.parametrize("skip", [[], ["bend"]])
def test_export_where_the_probable_ones_are_all_invalid(skip: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwnas.supernet.most_probable.MAX_COMBINATIONS", 1)
    space = Net()
    space.add_mutable(ExpressionConstraint(space.last.choice == 1))
    _, mutator = prepared(space, skip=skip)
    with torch.no_grad():
        mutator.arch_params["last"].copy_(torch.tensor([3.0, 0.0, 0.0]))
    sample = mutator.search_subnet()
    assert sample["last"] == 1
    assert not skip or sample["bend"] == "keep"


def test_export_without_any_valid_sample() -> None:
    space = Net()
    space.add_mutable(ExpressionConstraint(space.first.choice == "tanh"))
    _, mutator = prepared(space, skip=["bend"])
    with pytest.raises(SampleError):
        mutator.search_subnet()


# --- going on later ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relaxation", ALL)
def test_a_search_goes_on_bit_for_bit(relaxation: Any) -> None:
    def fresh() -> tuple[nn.ModelSpace, DifferentiableMutator]:
        torch.manual_seed(0)
        return prepared(Net(), relaxation, seed=5)

    whole = fresh()
    search(*whole, range(8))

    space, mutator = fresh()
    optimizers = search(space, mutator, range(4))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (space, mutator, *optimizers)], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    space, mutator = prepared(Net(), relaxation, seed=77)
    optimizers = search(space, mutator, range(0))
    for part, state in zip((space, mutator, *optimizers), states, strict=True):
        part.load_state_dict(state)
    search(space, mutator, range(4, 8), optimizers)

    for one, other in zip(whole, (space, mutator), strict=True):
        for parameter, same in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(parameter, same)


def test_the_state_of_another_space_is_refused() -> None:
    _, mutator = prepared(Net())
    _, other = prepared(Net(), skip=["bend"])
    with pytest.raises(TrainingError, match=r"labels \['bend', 'last'\], this one is over \['last'\]"):
        other.load_state_dict(mutator.state_dict())


# --- what cannot be done -----------------------------------------------------------------------------------------


class Plain(nn.ModelSpace):
    """No choices."""


class Continuous(nn.ModelSpace):
    """A dimension without listed values."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(Numerical(0.0, 0.5, label="p"))


class Undivided(nn.ModelSpace):
    """An argument that cannot be mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, groups=nn.ValueChoice([1, 2], label="groups"))


@pytest.mark.parametrize(
    ("space", "options", "error", "message"),
    [
        (torch.nn.Linear(2, 2), {}, TypeError, "expected a hwnas.nn.ModelSpace, got a Linear"),
        (Plain(), {}, ValueError, "Plain has no choices"),
        (Continuous(), {}, TypeError, "'p' is a Numerical; .* choice among listed values"),
        (Undivided(), {}, UnsupportedError, r"Conv2d at conv: argument 'groups' \(labels groups\) cannot be relaxed"),
        (Net(), {"skip": ["frist"]}, ValueError, r"no labels \['frist'\]; it has \['bend', 'last'\]"),
        (Net(), {"skip": ["bend", "last"]}, ValueError, "every label of the space"),
    ],
)
def test_spaces_that_cannot_be_prepared(space: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        prepared(space, **options)


def test_a_relaxation_without_parameters_is_refused() -> None:
    with pytest.raises(TypeError, match="OneHot has no architecture parameters; use Softmax"):
        prepared(Net(), lambda mutables, seed: OneHot(mutables))


def test_a_mutator_and_a_super_net_are_prepared_once() -> None:
    space, mutator = prepared(Net())
    with pytest.raises(RuntimeError, match="has prepared a super-net already; make a mutator for each"):
        mutator.prepare_from_supernet(Net())
    with pytest.raises(TypeError, match="is a super-net already"):
        prepared(space)


@pytest.mark.parametrize(
    "use",
    [
        lambda mutator: mutator.resample(),
        lambda mutator: mutator.search_subnet(),
        lambda mutator: mutator.arch_params,
        lambda mutator: mutator.expected_cost(cost()),
        lambda mutator: mutator.architecture_step().__enter__(),
        lambda mutator: mutator.weight_step().__enter__(),
        lambda mutator: mutator.modify_supernet_forward(Net()),
        lambda mutator: mutator.state_dict(),
        lambda mutator: mutator.eval(),
    ],
)
def test_nothing_works_before_preparing(use: Any) -> None:
    with pytest.raises(RuntimeError, match="call prepare_from_supernet"):
        use(DifferentiableMutator())


def test_no_architecture_step_in_evaluation_mode() -> None:
    _, mutator = prepared(Net())
    mutator.eval()
    with pytest.raises(RuntimeError, match="evaluation mode"), mutator.architecture_step():
        pass


def test_the_second_half_of_preparing_is_missed() -> None:
    mutator = DifferentiableMutator()
    mutator.build_arch_params(Net())
    with pytest.raises(RuntimeError, match="call modify_supernet_forward"):
        mutator.search_subnet()


def test_hooks_of_the_caller_and_of_the_space_come_first() -> None:
    seen: list[str] = []

    def hook(who: str) -> Any:
        return lambda module, name, memo, kwargs: seen.append(f"{who} {name}")

    class Hooked(Net):
        def extra_oneshot_hooks(self, owner: Any) -> list[Any]:
            assert isinstance(owner, DifferentiableMutator)
            return [hook("space")]

    prepared(Hooked(), mutation_hooks=[hook("caller")])
    assert seen[:2] == ["caller first", "space first"]
