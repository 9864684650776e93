"""A residual: bits, derivatives, transforms, compilers, layers, memory, errors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from as_numpy_torch import to_array, to_tensor  # noqa: E402
from calls import assert_same_bits, backward, forward  # noqa: E402
from cases import Case, of_each_kind, residual_cases  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

import layernorm  # noqa: E402
import layernorm.numpy  # noqa: E402
import layernorm.torch as ours  # noqa: E402
from layernorm.torch import functional, over_axes  # noqa: E402

# x and residual, axis, weight, bias
SHAPES = {
    "last axis": ((2, 3, 5), -1, (5,), (5,)),
    "channels first": ((2, 5, 3, 2), 1, (5,), (5,)),
    "adaptive": ((2, 3, 5), -1, (2, 1, 5), (2, 1, 5)),
    "unlike each other": ((2, 3, 2, 5), -1, (2, 1, 1, 5), (2, 5)),
}
# NumPy's total is C-contiguous; PyTorch's has x's memory format, and so rows of another layout.
CASES = [case for case in of_each_kind(residual_cases) if case.layout != "channels_last_in_memory"]

each_shape = pytest.mark.parametrize("name", SHAPES)
each_norm = pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])


def arguments(name: str, dtype=torch.float64) -> tuple[list[Tensor], Callable, Callable]:
    """Return x, residual, weight and bias, our function of them, and PyTorch's operations."""
    shape, axis, *of_parameters = SHAPES[name]
    random = torch.Generator().manual_seed(3)
    given = [
        torch.randn(each, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
        for each in (shape, shape, *of_parameters)
    ]

    def fused(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return ours.layer_norm(x, [shape[axis]], weight, bias, residual=residual, axis=axis)

    def composed(
        x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = x + residual
        y = F.layer_norm(total.movedim(axis, -1), [shape[axis]]).movedim(-1, axis)
        if weight.dim() == 1:
            weight, bias = (
                each.unflatten(0, (-1, *[1] * (-1 - axis % -len(shape)))) for each in (weight, bias)
            )
        return y * weight + bias, total

    return given, fused, composed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_bits_are_those_of_the_numpy_front_end(case: Case) -> None:
    x, dy, weight, bias = case.arrays()
    residual, dtotal = case.residual()
    y, total, stats = forward(layernorm.numpy, case, x, weight, bias, residual=residual)
    expected = (
        y,
        total,
        *backward(
            *(layernorm.numpy, case, dy, total, stats, weight),
            dtotal=dtotal,
            need_dweight=weight is not None,
        ),
    )
    tensors = [to_tensor(each) for each in (x, residual, weight, bias)]
    wanted = [each.requires_grad_() for each in tensors if each is not None]
    x, residual, *parameters = tensors
    if case.kind == "rms_norm":
        parameters.pop()
    results = getattr(over_axes, case.kind)(x, *parameters, residual=residual, **case.definition)
    of_total = [to_tensor(each) for each in (dy, dtotal)]
    dx, dresidual, *of_parameters = torch.autograd.grad(results, wanted, of_total)
    with torch.no_grad():
        alone = getattr(over_axes, case.kind)(x, *parameters, residual=residual, **case.definition)
    for pair in (results, alone):
        for name, got, right in zip(("y", "total"), pair, expected, strict=False):
            assert_same_bits(to_array(got).copy(), right, name)
    assert_same_bits(to_array(dresidual), to_array(dx), "the gradient of residual")
    given = [each for each in (weight, bias) if each is not None]
    for got, right, _ in zip((dx, *of_parameters), expected[2:], (x, *given), strict=False):
        assert_same_bits(to_array(got), right, "a gradient")


@each_shape
def test_every_derivative_is_that_of_the_composition(name) -> None:
    given, fused, composed = arguments(name)
    for got, expected in zip(fused(*given), composed(*given), strict=True):
        torch.testing.assert_close(got, expected)
    assert torch.autograd.gradcheck(fused, given)
    assert torch.autograd.gradgradcheck(fused, given)
    along = tuple(torch.randn_like(each) for each in given)
    values = tuple(each.detach() for each in given)

    def derivative(function: Callable) -> Callable:
        def loss(*values: Tensor) -> Tensor:
            y, total = function(*values)
            return (y**3 + y * total).sum()

        return torch.func.grad(loss, argnums=(0, 1, 2, 3))

    for change in (lambda function: function, derivative):
        tangents = [torch.func.jvp(change(f), values, along)[1] for f in (fused, composed)]
        torch.testing.assert_close(*tangents)


@each_norm
def test_one_of_the_results_may_go_unused(norm) -> None:
    x, residual = (torch.randn(6, 8, dtype=torch.float64).requires_grad_() for _ in range(2))
    weight = torch.randn(8, dtype=torch.float64).requires_grad_()
    function = getattr(ours, norm)
    for chosen in (0, 1):
        results = function(x, 8, weight, residual=residual)
        total = x + residual
        expected = (function(total, 8, weight), total)[chosen]
        inputs = (x, residual, weight) if chosen == 0 else (x, residual)
        dy = torch.randn_like(x)
        got = torch.autograd.grad(results[chosen], inputs, dy)
        for mine, right in zip(got, torch.autograd.grad(expected, inputs, dy), strict=True):
            assert torch.equal(mine, right)
    for needing in (residual, weight):
        leaves = [each if each is needing else each.detach() for each in (x, residual, weight)]
        y, _ = function(leaves[0], 8, leaves[2], residual=leaves[1])
        assert torch.autograd.grad(y.sum(), needing)[0].shape == needing.shape


@each_shape
def test_compiled_graphs_have_the_bits_of_eager_calls(name) -> None:
    given, fused, _ = arguments(name, torch.float32)
    for dynamic in (False, True):
        compiled = torch.compile(fused, fullgraph=True, dynamic=dynamic)
        for got, expected in zip(compiled(*given), fused(*given), strict=True):
            assert torch.equal(got, expected)
        losses = [
            (y.sin() + total.cos()).sum() for y, total in (f(*given) for f in (compiled, fused))
        ]
        results = [torch.autograd.grad(loss, given) for loss in losses]
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected)
        torch._dynamo.reset()


def test_the_compiled_backward_rounds_16_bits_once() -> None:
    given, fused, _ = arguments("last axis", torch.bfloat16)
    results = []
    for function in (torch.compile(fused, fullgraph=True), fused):
        y, total = function(*given)
        results.append(torch.autograd.grad((y, total), given, (given[0].detach(),) * 2))
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


@each_norm
@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 1)])
def test_a_batch_is_one_call_with_the_bits_of_each(norm, dims) -> None:
    sizes = [(6, 32) if dim is None else (7, 6, 32) for dim in dims]
    x, residual = (
        torch.randn(size).movedim(0, dim or 0) for size, dim in zip(sizes, dims, strict=True)
    )
    weight = torch.randn(32)

    def both(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return getattr(ours, norm)(x, 32, weight, residual=residual)

    def gradient(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        def loss(residual: Tensor) -> Tensor:
            y, total = both(x, residual)
            return (y.sin() + total.sin()).sum()

        return (torch.func.grad(loss)(residual),)

    for function in (both, gradient):
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            batch = torch.vmap(function, in_dims=dims)(x, residual)
        for member in range(7):
            each = [
                given if dim is None else given.select(dim, member)
                for given, dim in zip((x, residual), dims, strict=True)
            ]
            for got, expected in zip(batch, function(*each), strict=True):
                assert torch.equal(got[member], expected)
        calls = [event.count for event in seen.key_averages() if "layernorm::" in event.key]
        assert calls, "no operator of ours was called"
        assert max(calls) <= 2  # a transform may show the call, and then its operator's


@each_shape
def test_exported_and_traced_graphs_are_the_composition(name) -> None:
    given, fused, _ = arguments(name, torch.float32)

    class Model(torch.nn.Module):
        def forward(self, *given: Tensor) -> tuple[Tensor, Tensor]:
            return fused(*given)

    values = tuple(each.detach() for each in given)
    for graph in (
        torch.export.export(Model(), values).module(),
        torch.jit.trace(fused, values, check_trace=False),
    ):
        for got, expected in zip(graph(*values), fused(*values), strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("layer", [ours.LayerNorm, ours.RMSNorm])
def test_layers_take_a_residual(layer) -> None:
    module = layer(8)
    x, residual = torch.randn(4, 8), torch.randn(4, 8)
    y, total = module(x, residual)
    assert torch.equal(total, x + residual)
    assert torch.equal(y, module(total))
    assert torch.equal(module(x, residual=residual)[0], y)
    scripted = torch.jit.script(module)
    torch.testing.assert_close(scripted(total), y)
    with pytest.raises(torch.jit.Error, match="residual"):
        scripted(x, residual)


@each_norm
@pytest.mark.parametrize("norm_of_gradients", [False, True])
def test_a_checkpointed_block_has_the_gradients_of_one_that_is_not(norm, norm_of_gradients) -> None:
    x, residual = (torch.randn(4, 8, requires_grad=True) for _ in range(2))

    def block(x: Tensor, residual: Tensor) -> Tensor:
        y, total = getattr(ours, norm)(x, 8, residual=residual)
        return y.sin() + total

    results = []
    for run in (
        block,
        lambda *a: torch.utils.checkpoint.checkpoint(block, *a, use_reentrant=False),
    ):
        gradients = torch.autograd.grad(
            run(x, residual).sum(), (x, residual), create_graph=norm_of_gradients
        )
        if norm_of_gradients:
            gradients = torch.autograd.grad(gradients[0].square().sum(), (x, residual))
        results.append(gradients)
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_who_knows_pytorchs_operators_sees_an_addition_and_a_norm() -> None:
    class Watched(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None) -> Any:
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    seen: list[Any] = []
    x, residual = torch.randn(4, 8), torch.randn(4, 8)
    y, total = ours.layer_norm(x.as_subclass(Watched), 8, residual=residual)
    assert Tensor.add in seen or Tensor.__add__ in seen
    assert F.layer_norm in seen
    torch.testing.assert_close(y.as_subclass(Tensor), ours.layer_norm(x + residual, 8))
    assert type(total) is Watched


@each_norm
def test_views_are_not_copied(norm) -> None:
    projected = torch.randn(2, 50, 3 * 64)
    x, residual, dtotal = projected.split(64, -1)
    weight = torch.ones(64).requires_grad_()
    function = getattr(ours, norm)
    expected = function(x + residual, (64,), weight)
    x = x.detach().requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        y, total = function(x, (64,), weight, residual=residual)
        torch.autograd.grad((y, total), (x, weight), (torch.ones_like(y), dtotal))
    assert y.is_contiguous()
    assert total.is_contiguous()
    assert torch.equal(y, expected)
    copies = [
        e.key for e in seen.key_averages() if e.key in ("aten::copy_", "aten::clone", "aten::add")
    ]
    assert copies == []


def test_in_channels_last_memory_no_result_is_moved() -> None:
    x, residual = (torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last) for _ in range(2))
    y, total = ours.layer_norm(x, 8, axis=1, residual=residual)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert total.is_contiguous(memory_format=torch.channels_last)
    mixed, _ = ours.layer_norm(x, 8, axis=1, residual=residual.contiguous())
    assert torch.equal(y, mixed)


def test_the_top_level_takes_a_residual() -> None:
    x, residual = torch.randn(4, 8), torch.randn(4, 8)
    out = torch.empty(4, 8)
    y, total = layernorm.layer_norm(x, residual=residual, out=out)
    assert y is out
    assert torch.equal(total, x + residual)
    with pytest.raises(TypeError, match="total is of type Tensor, expected None"):
        layernorm.layer_norm(x, residual=residual, total=out)
    arrays = layernorm.rms_norm(x.numpy(), residual=residual.numpy(), total=residual.numpy())
    assert np.array_equal(arrays[1], total.numpy())
    assert np.shares_memory(arrays[1], residual.numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_norm
def test_a_float32_stream_takes_16_bit_branches(norm, dtype) -> None:
    x, residual = torch.randn(6, 40).to(dtype).requires_grad_(), torch.randn(6, 40)
    weight = torch.randn(40).to(dtype).requires_grad_()
    residual.requires_grad_()
    y, total = getattr(ours, norm)(x, 40, weight, residual=residual)
    assert y.dtype == dtype
    assert torch.equal(total, x + residual)
    assert torch.equal(y, getattr(ours, norm)(total, 40, weight.float()).to(dtype))
    dy, dtotal = torch.randn(6, 40).to(dtype), torch.randn(6, 40)
    dx, dresidual, dweight = torch.autograd.grad((y, total), (x, residual, weight), (dy, dtotal))
    assert torch.equal(dx, dresidual.to(dtype))
    wide = total.detach().requires_grad_()
    alone = torch.autograd.grad(getattr(ours, norm)(wide, 40, weight.float()), wide, dy.float())[0]
    assert torch.equal(dresidual, alone + dtotal)
    assert dweight.dtype == dtype
    module = (ours.LayerNorm if norm == "layer_norm" else ours.RMSNorm)(40, dtype=dtype)
    assert module(x, residual)[0].dtype == dtype


@each_norm
def test_errors_say_what_to_do(norm) -> None:
    function, x = getattr(ours, norm), torch.randn(4, 8)
    before = x.clone()
    for residual, error, words in (
        (x[:, 1:], RuntimeError, r"residual has shape \[4, 7\], but the input \[4, 8\]"),
        (x[0], RuntimeError, r"residual has shape \[8\], but the input \[4, 8\]"),
        (x.double(), RuntimeError, "residual has type float64, but the input has type float32"),
        (x.numpy(), TypeError, "ndarray"),
        (x.to("meta"), RuntimeError, "residual is on meta and x on cpu"),
    ):
        for call in (
            lambda residual: function(x, 8, residual=residual),
            lambda residual: getattr(over_axes, norm)(x, residual=residual),
        ):
            with pytest.raises(error, match=words):
                call(residual)
    with pytest.raises(TypeError, match="dropout"):
        function(x, 8, residual=x, dropout=0.1)
    assert torch.equal(x, before)
    operator = getattr(torch.ops.layernorm, f"add_{norm}")
    parameters = (None, None) if norm == "layer_norm" else (None,)
    for residual in (x[:, 1:], x.double(), x[0]):
        with pytest.raises(RuntimeError, match="residual needs x's sizes and type"):
            operator(x, residual, *parameters, [-1], 1e-5)


@each_norm
def test_without_elements(norm) -> None:
    for shape in ((0, 5), (3, 0)):
        x = torch.zeros(shape, requires_grad=True)
        y, total = getattr(ours, norm)(x, shape[-1], residual=x)
        assert y.shape == total.shape == shape
        assert torch.autograd.grad((y.sum(), total.sum()), x)[0].shape == shape


@each_norm
def test_the_general_path_gives_the_bits_of_the_fast_path(norm, monkeypatch) -> None:
    given = [torch.randn(6, 40).requires_grad_() for _ in range(2)]
    weight = torch.randn(40).requires_grad_()
    dy, dtotal = torch.randn(6, 40), torch.randn(6, 40)

    def results(**changes: Any) -> list[Tensor]:
        for name, value in changes.items():
            monkeypatch.setattr(functional, name, value)
        y, total = getattr(ours, norm)(given[0], 40, weight, residual=given[1])
        assert (type(y.grad_fn).__name__ == "FastPathNormOfSumBackward") == (not changes)
        return [y, total, *torch.autograd.grad((y, total), (*given, weight), (dy, dtotal))]

    fast, general = results(), results(torch_try_forward=lambda *_: None)
    assert all(map(torch.equal, fast, general))


@each_norm
def test_lazily_negated_tensors_are_taken_with_their_sign(norm) -> None:
    x, residual, gradient = (torch.randn(4, 8) for _ in range(3))
    negated = torch._neg_view(residual)
    x.requires_grad_()
    results = getattr(ours, norm)(x, 8, residual=negated)
    expected = getattr(ours, norm)(x, 8, residual=-residual)
    assert torch.equal(results[1], x - residual)
    given = (torch._neg_view(gradient),) * 2
    got = torch.autograd.grad(results, x, given)[0]
    assert torch.equal(got, torch.autograd.grad(expected, x, (-gradient,) * 2)[0])
