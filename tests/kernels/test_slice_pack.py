from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hwnas.errors import UnsupportedError
from hwnas.kernels import native, slice_pack, slice_unpack
from hwnas.kernels.layout import FORMATS
from hwnas.kernels.slice_pack import slice_pack_reference, slice_unpack_reference, unsupported_reason

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

# The whole weight and the slice: Linear, Conv1d, Conv2d, depthwise, Conv3d; one dimension cut, all, nearly none.
CASES = [
    ((7, 5), (4, 3)),
    ((7, 5), (7, 3)),
    ((7, 5), (4, 5)),
    ((6, 4, 7), (5, 4, 4)),
    ((6, 4, 5, 7), (3, 2, 3, 3)),
    ((6, 4, 5, 7), (6, 4, 5, 3)),
    ((6, 4, 5, 7), (6, 4, 2, 7)),
    ((6, 4, 3, 3), (1, 1, 1, 1)),
    ((40, 1, 7, 7), (33, 1, 3, 3)),
    ((300, 70, 1, 1), (201, 55, 1, 1)),
    ((130, 70, 3, 3), (129, 70, 3, 3)),
    ((5, 4, 3, 5, 7), (3, 3, 1, 4, 3)),
]
WITH_LAYOUT = [(*case, False) for case in CASES] + [(*case, True) for case in CASES if len(case[0]) in LAST]


def places(whole: tuple[int, ...], part: tuple[int, ...]) -> Tensor:
    """For each element of the slice its place in the whole, by arithmetic on indices."""
    index = torch.zeros(part, dtype=torch.int64)
    for d, (w, p) in enumerate(zip(whole, part, strict=True)):
        first = (w - p) // 2 if d >= 2 else 0
        shape = [1] * len(part)
        shape[d] = p
        index = index * w + torch.arange(first, first + p).view(shape)
    return index


def whole_weight(shape: tuple[int, ...], last: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    weight = torch.randn(shape).to(dtype)
    return (weight.to(memory_format=LAST[len(shape)]) if last else weight).requires_grad_()


def packed(weight: Tensor, size: tuple[int, ...]) -> Tensor:
    return slice_pack(weight, size[0], size[1], size[2:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "size", "last"), WITH_LAYOUT)
def test_every_element_and_every_gradient(
    isa: str, shape: tuple[int, ...], size: tuple[int, ...], last: bool, dtype: torch.dtype
) -> None:
    weight = whole_weight(shape, last, dtype)
    assert unsupported_reason(weight) is None
    index = places(shape, size)
    part = packed(weight, size)
    assert torch.equal(part, weight.detach().contiguous().view(-1)[index])
    grad = torch.randn(size).to(dtype)
    (found,) = torch.autograd.grad(part, [weight], grad)
    expected = torch.zeros(shape, dtype=dtype)
    expected.view(-1)[index] = grad
    assert torch.equal(found, expected)
    for x in (part, found):
        assert x.dtype == dtype
        assert x.is_contiguous(memory_format=LAST[len(shape)] if last else torch.contiguous_format)


@pytest.mark.parametrize(("shape", "size", "last"), WITH_LAYOUT)
def test_the_reference_means_the_same(shape: tuple[int, ...], size: tuple[int, ...], last: bool) -> None:
    weight = whole_weight(shape, last).detach()
    part = packed(weight, size)
    memory_format = LAST[len(shape)] if last else torch.contiguous_format
    other = slice_pack_reference(weight, size)
    assert torch.equal(part, other)
    assert part.is_contiguous(memory_format=memory_format)
    assert other.is_contiguous(memory_format=memory_format)
    whole = slice_unpack(part, shape, memory_format)
    other = slice_unpack_reference(part, shape, FORMATS.index(memory_format))
    assert torch.equal(whole, other)
    assert whole.is_contiguous(memory_format=memory_format)
    assert other.is_contiguous(memory_format=memory_format)


def test_the_whole_is_not_copied() -> None:
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    assert slice_pack(weight, 4, 3) is weight
    assert slice_pack(weight, 4, 3, (3, 3)) is weight
    part = slice_pack(weight, 4, 2)
    assert part is not weight
    assert part.data_ptr() != weight.data_ptr()


def test_nothing_but_zeros_outside(isa: str) -> None:
    # What was in the memory before, and what is not finite inside, must not show.
    part = torch.full((20, 9, 3, 3), float("nan"))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        for _ in range(3):
            torch.full((50, 20, 7, 7), 7.0)
            whole = slice_unpack(part, (50, 20, 7, 7), memory_format)
            assert int(whole.isnan().sum()) == part.numel()
            assert int((whole == 0).sum()) == whole.numel() - part.numel()


def test_strides_of_every_kind() -> None:
    shape, size = (6, 5, 7, 7), (4, 3, 3, 3)
    strided = torch.randn(5, 6, 7, 7).transpose(0, 1).requires_grad_()
    index = places(shape, size)
    for weight in (strided, whole_weight(shape, False), whole_weight(shape, True)):
        for grad in (
            torch.tensor(0.5).expand(size),
            torch.randn(3, 1, 1).expand(size),
            torch.randn(size).to(memory_format=torch.channels_last),
            torch.randn(size).mT,
        ):
            part = packed(weight, size)
            assert torch.equal(part, weight.detach().contiguous().view(-1)[index])
            (found,) = torch.autograd.grad(part, [weight], grad)
            expected = torch.zeros(shape)
            expected.view(-1)[index] = grad.contiguous()
            assert torch.equal(found, expected)


def test_gradients_add_up() -> None:
    weight = torch.randn(6, 5, requires_grad=True)
    (slice_pack(weight, 4, 3).sum() + 2 * slice_pack(weight, 2, 5).sum()).backward()
    expected = torch.zeros(6, 5)
    expected[:4, :3] += 1
    expected[:2] += 2
    assert weight.grad is not None
    assert torch.equal(weight.grad, expected)


def test_results_do_not_depend_on_threads() -> None:
    weight = torch.randn(700, 300, requires_grad=True)
    grad = torch.randn(601, 203)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            part = slice_pack(weight, 601, 203)
            results.append((part, *torch.autograd.grad(part, [weight], grad)))
    finally:
        torch.set_num_threads(before)
    for part, found in results:
        assert torch.equal(part, weight[:601, :203])
        assert torch.equal(found[:601, :203], grad)
        assert found.abs().sum() == found[:601, :203].abs().sum()


def test_gradcheck_of_first_and_second_order() -> None:
    for shape, last in (((3, 2), False), ((3, 2, 3, 3), False), ((3, 2, 3, 3), True)):
        weight = whole_weight(shape, last, torch.float64)
        size = (2, 1, *[1 for _ in shape[2:]])
        assert torch.autograd.gradcheck(lambda w, size=size: packed(w, size), (weight,))
        assert torch.autograd.gradgradcheck(lambda w, size=size: packed(w, size), (weight,))
        part = torch.randn(size, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda p, shape=shape: slice_unpack(p, shape), (part,))


def test_a_gradient_is_wanted_only_of_what_requires_it() -> None:
    weight = torch.randn(4, 3)
    assert not slice_pack(weight, 2, 2).requires_grad
    weight.requires_grad_()
    with torch.no_grad():
        assert not slice_pack(weight, 2, 2).requires_grad
    assert slice_pack(weight, 2, 2).requires_grad


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.rand(3), 1, 1), ValueError, r"weight has shape \(3,\), expected 2 to 5 dimensions"),
        (([[1.0]], 1, 1), UnsupportedError, "weight is a list"),
        ((torch.rand(3, 4), 4, 1), ValueError, "out_channels is 4, expected 1 to 3"),
        ((torch.rand(3, 4), 0, 1), ValueError, "out_channels is 0"),
        ((torch.rand(3, 4), 3, 5), ValueError, "in_channels is 5, expected 1 to 4"),
        ((torch.rand(3, 4, 5), 3, 4, (6,)), ValueError, r"kernel_size\[0\] is 6, expected 1 to 5"),
        ((torch.rand(3, 4, 5, 5), 3, 4, (3,)), ValueError, r"kernel_size is \(3,\), expected 2 sizes"),
    ],
)
def test_errors_of_packing_name_the_argument(
    arguments: tuple[object, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        slice_pack(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], (3,)), UnsupportedError, "part is a list"),
        ((torch.rand(3), (3,)), ValueError, r"part has shape \(3,\)"),
        ((torch.rand(3, 2), (3, 2, 1)), ValueError, r"no slice .* of shape \(3, 2, 1\)"),
        ((torch.rand(3, 3), (3, 2)), ValueError, r"no slice .* of shape \(3, 2\)"),
        ((torch.rand(3, 2), (3, 2), torch.channels_last), ValueError, "memory_format is torch.channels_last"),
        ((torch.rand(3, 2), (3, 2), torch.preserve_format), ValueError, "memory_format is torch.preserve_format"),
    ],
)
def test_errors_of_unpacking_name_the_argument(
    arguments: tuple[object, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        slice_unpack(*arguments)


class Subclass(Tensor):
    pass


def test_what_the_kernel_cannot_take_runs_in_plain_pytorch() -> None:
    weight = torch.rand(3, 4)
    cases = {
        "int64": torch.arange(12).view(3, 4),
        "Subclass": weight.as_subclass(Subclass),
        "negated": torch._neg_view(weight),
        "meta": weight.to("meta"),
    }
    for word, w in cases.items():
        reason = unsupported_reason(w)
        assert reason is not None
        assert word in reason
        part = slice_pack(w, 2, 3)
        assert part.dtype == w.dtype
        if part.device.type == "cpu":
            assert torch.equal(part, w[:2, :3])
            assert torch.equal(slice_unpack(part, (3, 4))[:2, :3], part)


def test_without_the_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "CPU", None)
    monkeypatch.setattr(native, "ENABLED", False)
    monkeypatch.setattr(native, "_cpu_problem", "switched off")
    weight = torch.randn(6, 5, 7, 7, requires_grad=True)
    assert unsupported_reason(weight) == "switched off"
    part = slice_pack(weight, 4, 3, (3, 3))
    (found,) = torch.autograd.grad(part.sum(), [weight])
    expected = torch.zeros(6, 5, 7, 7)
    expected[:4, :3, 2:5, 2:5] = 1
    assert torch.equal(found, expected)


def test_torch_func() -> None:
    weight = torch.rand(3, 4)
    expected = torch.zeros(3, 4)
    expected[:2, :3] = 1
    assert torch.equal(torch.func.grad(lambda w: slice_pack(w, 2, 3).sum())(weight), expected)
    batch = torch.rand(5, 3, 4)
    assert torch.equal(torch.vmap(lambda w: slice_pack(w, 2, 3))(batch), batch[:, :2, :3])
    _, tangent = torch.func.jvp(lambda w: slice_pack(w, 2, 3), (weight,), (weight,))
    assert torch.equal(tangent, weight[:2, :3])


def test_opcheck() -> None:
    for shape, size, last in (((3, 4), [2, 3], False), ((4, 3, 3, 3), [2, 2, 1, 1], True), ((2, 3), [2, 3], False)):
        weight = whole_weight(shape, last)
        torch.library.opcheck(torch.ops.hwnas.slice_pack.default, (weight, size))
        part = torch.randn(size).requires_grad_()
        torch.library.opcheck(torch.ops.hwnas.slice_unpack.default, (part, shape, int(last)))


@pytest.mark.slow
def test_compiled_in_one_graph() -> None:
    def sliced(weight: Tensor) -> Tensor:
        return slice_pack(weight, 3, 2, (1, 1)).relu() + slice_pack(weight, 4, 3).sum()

    # The backend keeps the graph as it was captured and needs no C++ compiler.
    compiled = torch.compile(sliced, fullgraph=True, backend="aot_eager")
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    expected, actual = sliced(weight), compiled(weight)
    torch.testing.assert_close(actual, expected)
    (a,), (b,) = (torch.autograd.grad(y.sum(), [weight]) for y in (actual, expected))
    torch.testing.assert_close(a, b)


def test_an_exported_program_knows_only_pytorch() -> None:
    class Cut(torch.nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return slice_pack(weight, 2, 1)

    program = torch.export.export(Cut(), (torch.rand(3, 2),))
    assert not any("hwnas" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("operator", ["slice_pack", "slice_unpack"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"element_size": 3}, "element_size is 3"),
        ({"source": 0}, "source is a null address"),
        ({"target": 66}, "target is not aligned to 4 bytes"),
        ({"whole": [1] * 6}, "whole has 6 dimensions"),
        ({"start": [0]}, "start 1 and size 2"),
        ({"size": [2, 0]}, "in dimension 1 0 elements"),
        ({"start": [0, 1]}, "in dimension 1 2 elements from 1 do not lie inside 2"),
        ({"start": [-1, 0]}, "in dimension 0"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_the_binding_checks_what_it_is_given(operator: str, change: dict[str, object], message: str) -> None:
    good = {
        "element_size": 4,
        "source": 64,
        "target": 64,
        "whole": [2, 2],
        "start": [0, 0],
        "size": [2, 2],
        "threads": 1,
    }
    with pytest.raises(ValueError, match=f"{operator}: .*{message}"):
        getattr(native.CPU, operator)(**good | change)
