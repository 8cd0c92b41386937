"""Statistics by hand, restoration to the bit, and nothing else disturbed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hwnas.errors import UnsupportedError
from hwnas.evaluators import evaluate_accuracy, recalibrate_batch_norm, recalibrated
from hwnas.evaluators.recalibrate import in_precision_of


def model() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 2, 3),
        nn.BatchNorm2d(2),
    )
    net(torch.randn(4, 3, 9, 9) + 5)  # statistics far from those to be found
    return net


def batches(n: int = 3, size: int = 6) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(size, 3, 9, 9) * (i + 1) + i for i in range(n)]


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_first_layer_equals_statistics_by_hand():
    net, data = model(), batches()
    recalibrate_batch_norm(net, data)
    features = [net[0](batch) for batch in data]
    # Batches of equal size: the mean of means is the mean over all of them together.
    torch.testing.assert_close(net[1].running_mean, torch.cat(features).mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    variances = torch.stack([each.var((0, 2, 3), correction=1) for each in features])
    torch.testing.assert_close(net[1].running_var, variances.mean(0), rtol=1e-5, atol=1e-6)
    assert net[1].num_batches_tracked == 3


def test_deeper_layers_see_normalised_batches_without_dropout():
    net, data = model(), batches()
    recalibrate_batch_norm(net, data)
    features = []
    for batch in data:
        first = net[0](batch)
        mean, variance = first.mean((0, 2, 3), keepdim=True), first.var((0, 2, 3), correction=0, keepdim=True)
        normal = (first - mean) / (variance + net[1].eps).sqrt()
        normal = normal * net[1].weight.view(-1, 1, 1) + net[1].bias.view(-1, 1, 1)
        features.append(net[4](normal.relu()))
    torch.testing.assert_close(net[5].running_mean, torch.cat(features).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_the_past_leaves_no_trace():
    first, second = model(), model()
    second(torch.randn(4, 3, 9, 9) * 100)
    recalibrate_batch_norm(first, batches())
    recalibrate_batch_norm(second, batches())
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_only_statistics_change():
    net = model()
    net[1].momentum, net[5].momentum = 0.3, None
    net[5].eval()
    flags = [module.training for module in net.modules()]
    before = snapshot(net)
    recalibrate_batch_norm(net, batches())
    assert [module.training for module in net.modules()] == flags
    assert (net[1].momentum, net[5].momentum) == (0.3, None)
    assert all(parameter.grad is None for parameter in net.parameters())
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {
        f"{layer}.{name}" for layer in (1, 5) for name in ("running_mean", "running_var", "num_batches_tracked")
    }


@pytest.mark.parametrize("fail", [False, True])
def test_context_restores_to_the_bit(fail):
    net = model().eval()
    before = snapshot(net)
    buffers = [id(buffer) for buffer in net.buffers()]
    try:
        with recalibrated(net, batches()):
            assert not torch.equal(net[1].running_mean, before["1.running_mean"])
            if fail:
                raise KeyError
    except KeyError:
        assert fail
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [id(buffer) for buffer in net.buffers()] == buffers
    assert net[1].momentum == 0.1


def test_flags_and_buffers_come_back_when_a_forward_pass_fails():
    net = model()
    before = snapshot(net)
    with pytest.raises(RuntimeError), recalibrated(net, [batches()[0], torch.randn(2, 5, 9, 9)]):
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert net[1].momentum == 0.1


def test_max_batches_takes_no_more_than_it_needs():
    def endless():
        while True:
            yield next(data)

    few, net = model(), model()
    data = iter(batches(3))
    recalibrate_batch_norm(net, endless(), max_batches=2)
    assert len(list(data)) == 1
    recalibrate_batch_norm(few, batches(3)[:2])
    assert torch.equal(net[1].running_mean, few[1].running_mean)


class Sliced(nn.BatchNorm2d):
    """Normalises the first `width` channels with prefixes of its tensors."""

    width = 2

    def forward(self, x: Tensor) -> Tensor:
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        prefix = slice(0, self.width)
        return F.batch_norm(
            x,
            self.running_mean[prefix],
            self.running_var[prefix],
            self.weight[prefix],
            self.bias[prefix],
            self.training,
            factor,
            self.eps,
        )


def test_sliced_batch_norm():
    net = nn.Sequential(Sliced(4))
    net[0].running_mean.fill_(7)
    data = [torch.randn(5, 2, 3, 3) + i for i in range(3)]
    with recalibrated(net, data):
        mean = torch.cat(data).mean((0, 2, 3))
        torch.testing.assert_close(net[0].running_mean[:2], mean, rtol=1e-5, atol=1e-6)
        assert net[0].running_mean[2:].eq(0).all()
    assert net[0].running_mean.eq(7).all()


def test_layers_without_statistics_and_models_without_layers_are_left_alone():
    net = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.InstanceNorm1d(3, track_running_stats=True))
    before = snapshot(net)
    recalibrate_batch_norm(net, [])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_batches_of_tuples_and_what_is_none():
    net = nn.Sequential(nn.BatchNorm1d(2))
    recalibrate_batch_norm(net, [(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 1]))])
    assert net[0].running_mean.tolist() == [2.0, 3.0]
    before = snapshot(net)
    with pytest.raises(ValueError, match="no batches"):
        recalibrate_batch_norm(net, [])
    with pytest.raises(ValueError, match="max_batches is 0"):
        recalibrate_batch_norm(net, [torch.ones(2, 2)], max_batches=0)
    with (
        pytest.raises(UnsupportedError, match="a batch is a dict"),
        recalibrated(net, [{"x": torch.ones(2, 2)}]),
    ):
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_data_has_the_type_of_the_model():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    data = [(torch.randn(4, 2), torch.tensor([0, 1, 1, 0]))]
    recalibrate_batch_norm(net.double(), data)
    mean = net[0](data[0][0].double()).mean(0)
    torch.testing.assert_close(net[1].running_mean, mean)
    assert evaluate_accuracy(net.bfloat16(), data) in (0, 0.25, 0.5, 0.75, 1)
    batch = {"x": [torch.randn(1), torch.arange(2)], "name": "batch"}
    converted = in_precision_of(net.double(), batch)
    assert [tensor.dtype for tensor in converted["x"]] == [torch.float64, torch.int64]
    assert converted["name"] == "batch"
    assert in_precision_of(nn.Identity(), batch) is batch


def test_accuracy_counts_samples_not_batches():
    net = nn.Sequential(nn.Dropout(0.9), nn.Identity())
    scores = torch.eye(3)
    loader = [(scores, torch.tensor([0, 1, 2])), (scores[:1], torch.tensor([2]))]
    assert evaluate_accuracy(net, loader) == 3 / 4
    assert net.training
    assert net[0].training
    with pytest.raises(ValueError, match="no samples"):
        evaluate_accuracy(net, [])
