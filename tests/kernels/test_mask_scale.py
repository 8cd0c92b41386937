from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hwnas.errors import UnsupportedError
from hwnas.kernels import mask_scale, mask_scale_reference, native
from hwnas.kernels.mask_scale import unsupported_reason

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-13}
DTYPES = list(TOLERANCE)
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

Operation = Callable[..., Tensor]
Masks = list[Tensor]


def truth(weight: Tensor, masks: Masks, grad: Tensor) -> list[Tensor]:
    """Output and gradients in float64, by sums over indices that share no code with the library."""
    w, g = (x.detach().double().reshape(*x.shape[:2], -1) for x in (weight, grad))
    o, i, k = (mask.detach().double().reshape(-1) for mask in masks)
    names = [("o", o), ("i", i), ("k", k)]
    product = torch.einsum("o,i,k->oik", o, i, k)
    found = [product * w, product * g]
    for name, _ in names:
        (first, a), (second, b) = [entry for entry in names if entry[0] != name]
        found.append(torch.einsum(f"oik,oik,{first},{second}->{name}", w, g, a, b))
    return [x.reshape(like.shape) for x, like in zip(found, [weight, weight, *masks], strict=True)]


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = max(float(expected.abs().max()), 1.0)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype] * scale)


def arguments(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Masks]:
    weight = torch.randn(shape).to(dtype).requires_grad_()
    sizes = (shape[:1], shape[1:2], shape[2:])
    return weight, [torch.rand(size, dtype=native.accumulator(dtype)).requires_grad_() for size in sizes]


def check(weight: Tensor, masks: Masks, grad: Tensor, operation: Operation = mask_scale) -> None:
    dtype = weight.dtype
    out = operation(weight, *masks)
    grads = torch.autograd.grad(out, [weight, *masks], grad)
    expected, expected_weight, *expected_masks = truth(weight, masks, grad)
    assert out.dtype == grads[0].dtype == dtype
    close(out, expected, dtype)
    close(grads[0], expected_weight, dtype)
    for mask, actual, wanted in zip(masks, grads[1:], expected_masks, strict=True):
        assert actual.dtype == mask.dtype
        assert actual.shape == mask.shape
        # Every term of a sum is a product of two elements, in the accumulator: nothing is rounded to the data type.
        close(actual, wanted, torch.float64 if dtype == torch.float64 else torch.float32)


# Linear, Conv1d, Conv2d, depthwise, Conv3d; odd sizes, one element, more rows and more columns than a piece has.
SHAPES = [
    (1, 1),
    (7, 5),
    (70, 1100),
    (600, 50),
    (3, 4, 5),
    (33, 7, 3, 3),
    (100, 1, 5, 5),
    (9, 130, 3, 3),
    (4, 3, 2, 3, 3),
]
WITH_LAYOUT = [(shape, False) for shape in SHAPES] + [(shape, True) for shape in SHAPES if len(shape) in LAST]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "last"), WITH_LAYOUT)
def test_against_float64(isa: str, shape: tuple[int, ...], last: bool, dtype: torch.dtype) -> None:
    weight, masks = arguments(shape, dtype)
    if last:
        weight = weight.detach().to(memory_format=LAST[len(shape)]).requires_grad_()
    assert unsupported_reason(weight, masks) is None
    check(weight, masks, torch.randn(shape).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (6, 4, 3, 3)])
def test_the_reference_means_the_same(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight, masks = arguments(shape, dtype)
    check(weight, masks, torch.randn(shape).to(dtype), mask_scale_reference)


@pytest.mark.parametrize("given", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("last", [False, True])
def test_masks_that_are_left_out_are_ones(given: tuple[bool, ...], last: bool) -> None:
    weight, masks = arguments((6, 5, 3, 3))
    if last:
        weight = weight.detach().to(memory_format=torch.channels_last).requires_grad_()
    some = [mask if there else None for mask, there in zip(masks, given, strict=True)]
    filled = [mask if there else torch.ones_like(mask) for mask, there in zip(masks, given, strict=True)]
    grad = torch.randn(6, 5, 3, 3)
    expected = truth(weight, filled, grad)
    out = mask_scale(weight, *some)
    wanted = [weight, *(mask for mask in some if mask is not None)]
    close(out, expected[0], torch.float32)
    theirs = [expected[1], *(x for x, there in zip(expected[2:], given, strict=True) if there)]
    for actual, right in zip(torch.autograd.grad(out, wanted, grad), theirs, strict=True):
        close(actual, right, torch.float32)


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=4)))
def test_only_the_gradients_that_are_wanted(isa: str, needed: tuple[bool, ...]) -> None:
    weight, masks = arguments((35, 5, 3, 3))
    inputs = [x.detach().requires_grad_(need) for x, need in zip([weight, *masks], needed, strict=True)]
    grad = torch.randn(35, 5, 3, 3)
    out = mask_scale(*inputs)
    assert out.requires_grad == any(needed)
    if any(needed):
        out.backward(grad)
    expected = truth(weight, masks, grad)[1:]
    for x, need, right in zip(inputs, needed, expected, strict=True):
        if need:
            assert x.grad is not None
            close(x.grad, right, torch.float32)
        else:
            assert x.grad is None


@pytest.mark.parametrize("rank", [4, 5])
def test_a_layout_is_kept(rank: int) -> None:
    shape = (6, 5, 3, 3, 2)[:rank]
    weight, masks = arguments(shape)
    last = weight.detach().to(memory_format=LAST[rank]).requires_grad_()
    out = mask_scale(last, *masks)
    assert out.is_contiguous(memory_format=LAST[rank])
    (grad,) = torch.autograd.grad(out.sum(), [last])
    assert grad.is_contiguous(memory_format=LAST[rank])


def test_strides_of_every_kind() -> None:
    weight, masks = arguments((6, 5, 3, 3))
    grads = [torch.tensor(0.5).expand(6, 5, 3, 3), torch.randn(5, 1, 1).expand(6, 5, 3, 3), torch.randn(6, 5, 3, 3).mT]
    strided = torch.randn(5, 6, 3, 3).transpose(0, 1).requires_grad_()
    table = torch.rand(5, 3, requires_grad=True)
    for grad in grads:
        check(weight, masks, grad.to(memory_format=torch.channels_last))
        check(weight, masks, grad)
        check(strided, masks, grad)
        check(weight, [masks[0], table[:, 1].detach().requires_grad_(), masks[2]], grad)


def test_masks_of_another_type() -> None:
    weight, masks = arguments((6, 5, 3, 3), torch.bfloat16)
    mixed = [masks[0].detach().bfloat16().requires_grad_(), masks[1].detach().double().requires_grad_(), masks[2]]
    out = mask_scale(weight, *mixed)
    grads = torch.autograd.grad(out, [weight, *mixed], torch.ones(6, 5, 3, 3).bfloat16())
    expected = truth(weight, mixed, torch.ones(6, 5, 3, 3))
    assert out.dtype == torch.bfloat16
    assert [x.dtype for x in grads[1:]] == [torch.bfloat16, torch.float64, torch.float32]
    for actual, right in zip((out, *grads), expected, strict=True):
        close(actual, right, torch.bfloat16)


@pytest.mark.parametrize("shape", [(5, 1, 3, 3), (5, 7), (40, 3, 5, 5)])
def test_values_that_are_not_finite_stay_where_they_are(isa: str, shape: tuple[int, ...]) -> None:
    # Kernels that work on vectors read over the end of short rows.
    weight, masks = arguments(shape)
    with torch.no_grad():
        weight[1] = float("inf")
        weight[3] = float("nan")
    out = mask_scale(weight, *masks)
    grads = torch.autograd.grad(out, [weight, *masks], torch.ones(shape))
    assert out[[0, 2, 4]].isfinite().all()
    assert grads[0].isfinite().all()
    assert grads[1][[0, 2, 4]].isfinite().all()
    assert not grads[1][[1, 3]].isfinite().any()


def test_results_do_not_depend_on_threads_or_the_run() -> None:
    for shape in ((70, 120, 3, 3), (1200, 1, 7, 7), (40, 5000)):
        weight, masks = arguments(shape)
        grad = torch.randn(shape)
        results = []
        before = torch.get_num_threads()
        try:
            for threads in (1, 1, 2, 3):
                torch.set_num_threads(threads)
                out = mask_scale(weight, *masks)
                results.append((out, *torch.autograd.grad(out, [weight, *masks], grad)))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b)


def test_gradcheck_of_first_and_second_order() -> None:
    for shape in ((2, 3), (3, 2, 2, 2)):
        weight, masks = arguments(shape, torch.float64)
        assert torch.autograd.gradcheck(mask_scale, (weight, *masks))
        assert torch.autograd.gradgradcheck(mask_scale, (weight, *masks))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_create_graph_gives_the_same_gradients(memory_format: torch.memory_format) -> None:
    weight, masks = arguments((4, 3, 3, 3))
    weight = weight.detach().to(memory_format=memory_format).requires_grad_()
    grad = torch.randn(4, 3, 3, 3)
    with_graph = torch.autograd.grad(mask_scale(weight, *masks), [weight, *masks], grad, create_graph=True)
    without = torch.autograd.grad(mask_scale(weight, *masks), [weight, *masks], grad)
    for a, b in zip(with_graph, without, strict=True):
        torch.testing.assert_close(a, b)
        assert a.stride() == b.stride()


def test_a_weight_that_changed_after_the_forward_pass_is_noticed() -> None:
    weight, masks = arguments((3, 4))
    changed = weight * 1
    out = mask_scale(changed, *masks)
    with torch.no_grad():
        changed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_empty_weights() -> None:
    weight, masks = arguments((0, 3, 2, 2))
    out = mask_scale(weight, *masks)
    assert out.shape == weight.shape
    grads = torch.autograd.grad(out.sum(), [weight, *masks])
    assert grads[2].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.rand(3)}, ValueError, r"weight has shape \(3,\), expected 2 to 5 dimensions"),
        ({"weight": torch.rand([1] * 6)}, ValueError, "expected 2 to 5 dimensions"),
        ({"weight": [[1.0]]}, UnsupportedError, "weight is a list"),
        ({"weight": torch.ones(3, 4).int()}, UnsupportedError, "weight is torch.int32"),
        ({"out_mask": torch.rand(4)}, ValueError, r"out_mask has shape \(4,\), expected \(3,\)"),
        ({"in_mask": torch.rand(4, 1)}, ValueError, r"in_mask has shape \(4, 1\), expected \(4,\)"),
        ({"kernel_mask": torch.rand(3)}, ValueError, r"kernel_mask has shape \(3,\), expected \(2, 3\)"),
        ({"kernel_mask": torch.rand(6)}, ValueError, r"kernel_mask has shape \(6,\)"),
        ({"in_mask": torch.ones(4).bool()}, UnsupportedError, "in_mask is torch.bool"),
        ({"out_mask": 1.0}, UnsupportedError, "out_mask is a float"),
        ({"out_mask": torch.rand(3, device="meta")}, ValueError, "out_mask is on meta and weight on cpu"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], error: type[Exception], message: str) -> None:
    good = {"weight": torch.rand(3, 4, 2, 3), "out_mask": None, "in_mask": None, "kernel_mask": None}
    with pytest.raises(error, match=message):
        mask_scale(**good | change)


class Subclass(Tensor):
    pass


def test_what_the_kernel_cannot_take_runs_in_plain_pytorch() -> None:
    weight, out_mask = torch.rand(3, 4), torch.rand(3)
    cases = {
        "float16": (weight.half(), out_mask),
        "Subclass": (weight.as_subclass(Subclass), out_mask),
        "negated": (weight, torch._neg_view(out_mask)),
        "meta": (weight.to("meta"), out_mask.to("meta")),
    }
    for word, (w, mask) in cases.items():
        reason = unsupported_reason(w, [mask, None, None])
        assert reason is not None
        assert word in reason
        out = mask_scale(w, mask)
        assert out.dtype == w.dtype
        if out.device.type == "cpu":
            torch.testing.assert_close(out.to(torch.float64), (w * mask[:, None]).double(), rtol=1e-3, atol=1e-3)


def test_without_the_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "CPU", None)
    monkeypatch.setattr(native, "ENABLED", False)
    monkeypatch.setattr(native, "_cpu_problem", "switched off")
    weight, masks = arguments((6, 5, 3, 3))
    assert unsupported_reason(weight, masks) == "switched off"
    check(weight, masks, torch.randn(6, 5, 3, 3))


def test_torch_func() -> None:
    weight, masks = arguments((3, 4))
    w, (out_mask, in_mask, _) = weight.detach(), (mask.detach() for mask in masks)
    found = torch.func.grad(lambda m: mask_scale(w, m, in_mask).sum())(out_mask)
    torch.testing.assert_close(found, w @ in_mask)
    batch = torch.rand(5, 3)
    found = torch.vmap(lambda m: mask_scale(w, m))(batch)
    torch.testing.assert_close(found, batch[:, :, None] * w)
    _, tangent = torch.func.jvp(lambda m: mask_scale(w, m), (out_mask,), (torch.ones(3),))
    torch.testing.assert_close(tangent, w)


def test_opcheck() -> None:
    for shape, last in (((3, 4), False), ((4, 3, 3, 3), False), ((4, 3, 3, 3), True)):
        weight, masks = arguments(shape)
        if last:
            weight = weight.detach().to(memory_format=torch.channels_last).requires_grad_()
        torch.library.opcheck(torch.ops.hwnas.mask_scale.default, (weight, *masks))
        torch.library.opcheck(torch.ops.hwnas.mask_scale.default, (weight, None, masks[1], None))
        plain = [x.detach() for x in (weight, *masks)]
        for need_weight, need in ((True, [True, True, True]), (False, [True, False, False]), (True, [False] * 3)):
            given = (torch.randn(shape), *plain, need_weight, need, int(last))
            torch.library.opcheck(torch.ops.hwnas.mask_scale_backward.default, given)


@pytest.mark.slow
def test_compiled_in_one_graph() -> None:
    def scaled(alpha: Tensor, weight: Tensor, out_mask: Tensor) -> Tensor:
        return mask_scale(weight, out_mask, None, torch.softmax(alpha, 0).view(2, 2)).relu()

    # The backend keeps the graph as it was captured and needs no C++ compiler.
    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
    weight, (out_mask, *_) = arguments((4, 3, 2, 2))
    alpha = torch.randn(4, requires_grad=True)
    inputs = (alpha, weight, out_mask)
    expected, actual = scaled(*inputs), compiled(*inputs)
    torch.testing.assert_close(actual, expected)
    theirs = torch.autograd.grad(expected.sum(), inputs)
    for a, b in zip(torch.autograd.grad(actual.sum(), inputs), theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_an_exported_program_knows_only_pytorch() -> None:
    class Scale(torch.nn.Module):
        def forward(self, weight: Tensor, mask: Tensor) -> Tensor:
            return mask_scale(weight, mask)

    program = torch.export.export(Scale(), (torch.rand(3, 2), torch.rand(3)))
    assert not any("hwnas" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": 9}, "dtype is 9"),
        ({"weight": 0}, "weight is a null address"),
        ({"weight": 66}, "weight is not aligned to 4 bytes"),
        ({"masks": [0, 66, 0]}, r"masks\[1\] is not aligned"),
        ({"out": 0}, "out is a null address"),
        ({"shape": [1, 0, 1]}, r"shape\[1\] is 0"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_the_binding_checks_what_it_is_given(change: dict[str, object], message: str) -> None:
    assert native.CPU is not None
    good = {"dtype": 0, "weight": 64, "masks": [64, 0, 64], "out": 64, "shape": [1, 1, 1], "threads": 1}
    with pytest.raises(ValueError, match=message):
        native.CPU.mask_scale(**good | change)
    if "out" not in change:
        more = {"grad": 64, "grad_weight": 0, "grad_masks": [64, 0, 0]}
        backward = {k: v for k, v in (good | change | more).items() if k != "out"}
        with pytest.raises(ValueError, match=message):
            native.CPU.mask_scale_backward(**backward)
