from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hwnas.nn as nn
from hwnas.errors import SampleError


def three(**options: object) -> nn.LayerChoice:
    return nn.LayerChoice([nn.ReLU(), nn.Tanh(), nn.Sigmoid()], label="act", **options)


def test_a_sequence_is_chosen_from_by_position() -> None:
    choice = three()
    assert choice.names == [0, 1, 2]
    assert len(choice) == 3
    assert [type(c) for c in choice] == [torch.nn.ReLU, torch.nn.Tanh, torch.nn.Sigmoid]
    assert choice[1] is choice.candidates[1]
    assert isinstance(choice.freeze({"act": 2}), torch.nn.Sigmoid)


def test_a_mapping_is_chosen_from_by_name() -> None:
    # Names that are attributes of containers of PyTorch, or hold dots, are as good as others.
    choice = nn.LayerChoice({"forward": nn.ReLU(), "a.b": nn.Tanh()}, label="act")
    assert choice.names == ["forward", "a.b"]
    assert isinstance(choice["a.b"], nn.Tanh)
    assert isinstance(choice.freeze({"act": "a.b"}), torch.nn.Tanh)
    with pytest.raises(KeyError, match=r"act.*no candidate 2.*forward"):
        choice[2]


def test_names_cannot_be_changed_from_outside() -> None:
    choice = three()
    choice.names.append(9)
    assert choice.names == [0, 1, 2]


def test_replacing_a_candidate() -> None:
    choice = three()
    choice[1] = nn.GELU()
    assert choice.names == [0, 1, 2]
    assert isinstance(choice.freeze({"act": 1}), torch.nn.GELU)
    with pytest.raises(KeyError, match="no candidate 7"):
        choice[7] = nn.GELU()


def test_deleting_keeps_names_and_renormalises_weights() -> None:
    choice = three(weights=[0.5, 0.3, 0.2], default=2)
    del choice[0]
    assert choice.names == [1, 2]
    assert choice.choice.weights == pytest.approx([0.6, 0.4])
    assert choice.default() == {"act": 2}
    del choice[2]
    assert choice.default() == {"act": 1}
    assert choice.choice.weights == [1.0]
    assert isinstance(choice(torch.zeros(1)), Tensor)
    with pytest.raises(ValueError, match="last candidate 1 cannot be deleted"):
        del choice[1]
    with pytest.raises(KeyError, match="no candidate 0"):
        del choice[0]


def test_deleting_all_weight_leaves_a_uniform_choice() -> None:
    choice = three(weights=[1.0, 0.0, 0.0])
    del choice[0]
    assert {choice.random(random_state=seed)["act"] for seed in range(20)} == {1, 2}


def test_unfrozen_forward_runs_the_default() -> None:
    x = torch.randn(5)
    torch.testing.assert_close(three()(x), x.relu())
    torch.testing.assert_close(three(default=1)(x), x.tanh())
    two_arguments = nn.LayerChoice([nn.Bilinear(2, 2, 1)], label="b")
    assert two_arguments(torch.ones(1, 2), torch.ones(1, 2)).shape == (1, 1)


def test_nested_choices_are_dimensions_and_only_active_ones_are_checked() -> None:
    inner = nn.LayerChoice([nn.ReLU(), nn.ELU()], label="inner")
    outer = nn.LayerChoice({"deep": nn.Sequential(nn.Identity(), inner), "flat": nn.Tanh()}, label="outer")
    assert list(outer.simplify()) == ["outer", "inner"]
    assert isinstance(outer.freeze({"outer": "deep", "inner": 1})[1], torch.nn.ELU)
    assert isinstance(outer.freeze({"outer": "flat"}), torch.nn.Tanh)
    with pytest.raises(SampleError, match="inner"):
        outer.freeze({"outer": "deep"})
    assert outer.size(active_only=True) == 3


def test_equal_labels_are_one_dimension() -> None:
    class Net(nn.ModelSpace):
        def __init__(self, second: list[nn.Module]) -> None:
            super().__init__()
            self.a = nn.LayerChoice([nn.ReLU(), nn.Tanh()], label="act")
            self.b = nn.LayerChoice(second, label="act")

    model = Net([nn.ELU(), nn.SiLU()]).freeze({"act": 1})
    assert (type(model.a), type(model.b)) == (torch.nn.Tanh, torch.nn.SiLU)
    with pytest.raises(ValueError, match=r"two different mutables have the label 'act'"):
        Net([nn.ELU()]).simplify()


def test_labels_are_made_up_alike_for_every_instance() -> None:
    class Net(nn.ModelSpace, label_prefix="net"):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.LayerChoice([nn.ReLU(), nn.Tanh()])
            self.b = nn.LayerChoice([nn.ReLU(), nn.Tanh()])

    assert list(Net().simplify()) == list(Net().simplify())
    assert len(Net().simplify()) == 2
    assert all(label.startswith("net/") for label in Net().simplify())


def test_both_spellings_of_weights() -> None:
    assert three(prior=[0.2, 0.3, 0.5]).choice.weights == [0.2, 0.3, 0.5]
    assert {three(prior=[0, 0, 1]).random(random_state=s)["act"] for s in range(5)} == {2}
    with pytest.raises(ValueError, match=r"weights.*prior.*both"):
        three(prior=[0.2, 0.3, 0.5], weights=[0.2, 0.3, 0.5])


def test_errors() -> None:
    with pytest.raises(TypeError, match=r"'act'.*candidate 1 is 3"):
        nn.LayerChoice([nn.ReLU(), 3], label="act")
    with pytest.raises(ValueError, match="no values"):
        nn.LayerChoice([], label="act")
    with pytest.raises(ValueError, match="2 weights for 3"):
        three(weights=[0.5, 0.5])
    with pytest.raises(ValueError, match="default"):
        three(default=3)


def test_named_candidates_have_positions_too() -> None:
    choice = nn.LayerChoice(
        {"conv3x3": nn.Conv2d(3, 8, 3), "conv5x5": nn.Conv2d(3, 8, 5), "conv7x7": nn.Conv2d(3, 8, 7)}
    )
    del choice["conv5x5"]
    choice[1] = nn.Conv3d(3, 8, 1)
    assert choice.names == ["conv3x3", "conv7x7"]
    assert choice["conv7x7"] is choice[1] is choice[-1]
    for wrong in (2, -3, "conv5x5"):
        with pytest.raises(KeyError, match="its candidates are"):
            choice[wrong]
    numbered = nn.LayerChoice([nn.ReLU(), nn.SiLU(), nn.Identity()])
    del numbered[1]
    assert isinstance(numbered[2], torch.nn.Identity)  # the key that stands in samples
    with pytest.raises(KeyError):
        numbered[1]
