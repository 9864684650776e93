"""Weight and bias that vary along kept axes: derivatives, transforms, compilers, memory, errors."""

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

import layernorm  # noqa: E402
import layernorm.torch as ours  # noqa: E402
from layernorm import accuracy  # noqa: E402

# x, axis, weight, bias
SHAPES = {
    "adaptive": ((2, 3, 5), -1, (2, 1, 5), (2, 1, 5)),
    "each head": ((2, 3, 2, 5), -1, (2, 5), (2, 5)),
    "channels first": ((2, 5, 3, 2), 1, (2, 5, 1, 1), (2, 5, 1, 1)),
    "behind the normalized axis": ((2, 5, 3, 2), 1, (5, 3, 1), (5, 3, 1)),
    "unlike each other": ((2, 3, 2, 5), -1, (2, 1, 1, 5), (2, 5)),
    "all alike": ((2, 3, 5), -1, (1, 1, 5), (1, 5)),
}

each_shape = pytest.mark.parametrize("name", SHAPES)


def arguments(name: str, dtype=torch.float64) -> tuple[list[Tensor], Callable, Callable]:
    """Return x, weight and bias, our function of them, and PyTorch's operations."""
    shape, axis, *of_parameters = SHAPES[name]
    random = torch.Generator().manual_seed(3)
    given = [
        torch.randn(each, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
        for each in (shape, *of_parameters)
    ]

    def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ours.layer_norm(x, [shape[axis]], weight, bias, axis=axis, zero_centered_weight=True)

    def composed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.layer_norm(x.movedim(axis, -1), [shape[axis]]).movedim(-1, axis)
        return y * (1 + weight) + bias

    return given, fused, composed


@each_shape
def test_every_derivative_is_that_of_the_composition(name) -> None:
    given, fused, composed = arguments(name)
    torch.testing.assert_close(fused(*given), composed(*given))
    assert torch.autograd.gradcheck(fused, given)
    assert torch.autograd.gradgradcheck(fused, given)
    along = tuple(torch.randn_like(each) for each in given)
    values = tuple(each.detach() for each in given)
    for order in (0, 1):

        def derivative(function: Callable, order: int = order) -> Callable:
            if order == 0:
                return function
            return torch.func.grad(lambda *a: (function(*a) ** 3).sum(), argnums=(0, 1, 2))

        tangents = [torch.func.jvp(derivative(f), values, along)[1] for f in (fused, composed)]
        torch.testing.assert_close(*tangents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_gradients_of_parameters_unlike_each_other_are_within_their_bounds(dtype) -> None:
    x = torch.randn(40, 50, 4, 16).to(dtype).requires_grad_()
    weight = torch.randn(40, 1, 1, 16).to(dtype).requires_grad_()
    bias = torch.randn(50, 4, 16).to(dtype).requires_grad_()
    dy = torch.randn(x.shape).to(dtype)
    y = ours.layer_norm(x, (16,), weight, bias)
    dweight, dbias = torch.autograd.grad(y, (weight, bias), dy)
    assert dweight.shape == weight.shape
    assert dbias.shape == bias.shape
    if dtype not in (torch.float32, torch.float64):
        return  # NumPy has no bfloat16 of its own
    arrays = [each.detach().numpy() for each in (dweight, dbias, dy, x)]
    bound = accuracy.BOUNDS[str(dtype).removeprefix("torch.")].parameter
    assert accuracy.dweight_error(arrays[0], arrays[2], arrays[3]) <= bound
    assert accuracy.dbias_error(arrays[1], arrays[2]) <= bound


@each_shape
def test_compiled_graphs_have_the_bits_of_eager_calls(name) -> None:
    given, fused, _ = arguments(name, torch.float32)
    for dynamic in (False, True):
        compiled = torch.compile(fused, fullgraph=True, dynamic=dynamic)
        y = compiled(*given)
        assert torch.equal(y, fused(*given))
        results = [torch.autograd.grad(f(*given).sin().sum(), given) for f in (compiled, fused)]
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected)
        torch._dynamo.reset()


def test_a_batch_of_weights_is_one_call_with_the_bits_of_each() -> None:
    x, weight, bias = torch.randn(7, 6, 32), torch.randn(7, 32), torch.randn(32)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return ours.layer_norm(x, (32,), weight, bias)

    def gradient(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.grad(lambda weight: norm(x, weight).sin().sum())(weight)

    for function in (norm, gradient):
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            batch = torch.vmap(function)(x, weight)
        each = torch.stack([function(*pair) for pair in zip(x, weight, strict=True)])
        assert torch.equal(batch, each)
        calls = [event.count for event in seen.key_averages() if "layernorm::" in event.key]
        assert calls, "no operator of ours was called"
        assert max(calls) <= 2  # a transform may show the call, and then its operator's


@each_shape
def test_exported_and_traced_graphs_are_the_composition(name) -> None:
    given, fused, _ = arguments(name, torch.float32)

    class Model(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return fused(x, weight, bias)

    values = tuple(each.detach() for each in given)
    for graph in (
        torch.export.export(Model(), values).module(),
        torch.jit.trace(fused, values, check_trace=False),
    ):
        torch.testing.assert_close(graph(*values), fused(*values))


@pytest.mark.parametrize("weight_shape", [(64,), (3, 64)])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_queries_in_a_fused_projection_are_not_copied(kind, weight_shape) -> None:
    projected = torch.randn(2, 50, 3 * 3 * 64)
    query = projected[..., : 3 * 64].unflatten(-1, (3, 64))
    weight = torch.ones(weight_shape).requires_grad_()
    norm = getattr(ours, kind)
    expected = norm(query.contiguous(), (64,), weight)
    x = query.detach().requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        y = norm(x, (64,), weight)
        gradients = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    assert y.is_contiguous()
    assert torch.equal(y, expected)
    copies = [e.key for e in seen.key_averages() if e.key in ("aten::copy_", "aten::clone")]
    assert copies == []
    own = query.contiguous().requires_grad_()
    again = torch.autograd.grad(norm(own, (64,), weight), (own, weight), torch.ones_like(y))
    for got, right in zip(gradients, again, strict=True):
        assert torch.equal(got, right)


def test_numpys_signature() -> None:
    x, scale, shift = torch.randn(2, 5, 8), torch.randn(2, 1, 8), torch.randn(2, 1, 8)
    y = layernorm.layer_norm(x, scale, shift, zero_centered_weight=True)
    right = layernorm.layer_norm(x.numpy(), scale.numpy(), shift.numpy(), zero_centered_weight=True)
    np.testing.assert_array_equal(y.numpy(), right)
    out = torch.empty_like(x)
    assert layernorm.layer_norm(x, scale, shift, zero_centered_weight=True, out=out) is out
    assert torch.equal(out, y)


@pytest.mark.parametrize(
    "weight_shape", [(2, 1, 7), (3, 1, 8), (2, 5, 1), (1, 2, 5, 8), (5,), (2, 8)]
)
def test_shapes_that_do_not_broadcast_are_errors(weight_shape) -> None:
    x, weight = torch.randn(2, 5, 8), torch.randn(weight_shape)
    for call in (
        lambda: ours.layer_norm(x, (8,), weight),
        lambda: ours.rms_norm(x, (8,), weight),
        lambda: ours.layer_norm(x, (8,), None, weight),
        lambda: layernorm.layer_norm(x, weight),
        lambda: torch.ops.layernorm.layer_norm(x, weight, None, [-1], 1e-5),
    ):
        with pytest.raises(RuntimeError, match="same shape as normalized_shape"):
            call()


def test_a_weight_of_another_type_is_an_error() -> None:
    x, weight = torch.randn(2, 5, 8), torch.randn(2, 1, 8).double()
    with pytest.raises(RuntimeError, match="mixed dtype"):
        ours.layer_norm(x, (8,), weight)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_a_batch_shares_a_weight_of_each_group(norm) -> None:
    x, weight = torch.randn(5, 2, 3, 8), torch.randn(3, 8)

    def function(x: Tensor) -> Tensor:
        return getattr(ours, norm)(x, 8, weight)

    batch = torch.vmap(function)(x)
    for member, got in zip(x, batch, strict=True):
        assert torch.equal(got, function(member))
