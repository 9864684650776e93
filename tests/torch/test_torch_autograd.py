"""docs/specification.md, "Derivatives", of every kind, and the transforms that ask for them."""

from contextlib import nullcontext

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import layernorm.torch as ours  # noqa: E402


def doubles(*sizes: int) -> "torch.Tensor":
    generator = torch.Generator().manual_seed(sum(sizes))
    made = torch.randn(sizes, generator=generator, dtype=torch.float64) + 2
    return made.requires_grad_()


CALLS = {
    "layer_norm": (lambda x, w, b: ours.layer_norm(x, (5,), w, b), [(3, 5), (5,), (5,)]),
    "without_bias": (lambda x, w: ours.layer_norm(x, (5,), w), [(3, 5), (5,)]),
    "without_weight": (lambda x, b: ours.layer_norm(x, (5,), None, b), [(3, 5), (5,)]),
    "alone": (lambda x: ours.layer_norm(x, (5,)), [(3, 5)]),
    "two_axes": (lambda x, w, b: ours.layer_norm(x, (2, 5), w, b), [(3, 2, 5), (2, 5), (2, 5)]),
    "channels_first": (lambda x, w: ours.layer_norm(x, 4, w, axis=1), [(2, 4, 3), (4,)]),
    "axes_apart": (lambda x, w: ours.layer_norm(x, (2, 3), w, axis=(0, 2)), [(2, 4, 3), (2, 3)]),
    "transposed": (lambda x, w: ours.layer_norm(x.t(), (3,), w), [(3, 5), (3,)]),
    "rms_norm": (lambda x, w: ours.rms_norm(x, (5,), w, eps=1e-3), [(3, 5), (5,)]),
    "rms_norm_alone": (lambda x: ours.rms_norm(x, (5,)), [(3, 5)]),
    "zero_centered": (
        lambda x, w: ours.rms_norm(x, (5,), w, eps=1e-3, zero_centered_weight=True),
        [(3, 5), (5,)],
    ),
    "zero_centered_layer_norm": (
        lambda x, w, b: ours.layer_norm(x, (5,), w, b, 1e-3, zero_centered_weight=True),
        [(3, 5), (5,), (5,)],
    ),
    "no_rows": (lambda x, w: ours.layer_norm(x, (5,), w), [(0, 5), (5,)]),
}

each_call = pytest.mark.parametrize("call", CALLS)


@each_call
def test_first_derivatives_are_right_in_both_modes_and_batched(call) -> None:
    function, sizes = CALLS[call]
    inputs = tuple(doubles(*size) for size in sizes)
    assert gradcheck(
        function,
        inputs,
        check_forward_ad=True,
        check_batched_grad=inputs[0].numel() > 0,
        check_batched_forward_grad=inputs[0].numel() > 0,
    )


@each_call
def test_second_derivatives_are_right(call) -> None:
    function, sizes = CALLS[call]
    inputs = tuple(doubles(*size) for size in sizes)
    batched = inputs[0].numel() > 0
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, check_batched_grad=batched)


def test_third_derivatives_are_right() -> None:
    x, weight = doubles(2, 4), doubles(4)

    def gradient(x, weight):
        y = ours.layer_norm(x, (4,), weight)
        return torch.autograd.grad(y.sin().sum(), (x, weight), create_graph=True)

    assert gradgradcheck(gradient, (x, weight))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)], ids=str)
def test_each_gradient_is_the_same_alone(wanted) -> None:
    every = [torch.randn(size) for size in ((7, 13), (13,), (13,))]
    dy = torch.randn(7, 13)
    inputs = [each.clone().requires_grad_() for each in every]
    full = torch.autograd.grad(ours.layer_norm(inputs[0], (13,), *inputs[1:]), inputs, dy)
    inputs = [each.clone().requires_grad_(at in wanted) for at, each in enumerate(every)]
    y = ours.layer_norm(inputs[0], (13,), *inputs[1:])
    got = torch.autograd.grad(y, [inputs[at] for at in wanted], dy)
    for at, gradient in zip(wanted, got, strict=True):
        assert torch.equal(gradient, full[at])


def test_no_graph_is_kept_without_a_gradient() -> None:
    x, weight = torch.randn(3, 5), torch.randn(5, requires_grad=True)
    assert ours.layer_norm(x, (5,), weight).requires_grad
    with torch.no_grad():
        assert not ours.layer_norm(x, (5,), weight).requires_grad
    with torch.inference_mode():
        assert ours.layer_norm(x, (5,), weight).is_inference()
    assert not ours.layer_norm(x, (5,), weight.detach()).requires_grad


def test_a_parameter_changed_in_place_before_the_backward_is_an_error() -> None:
    x, weight = torch.randn(3, 5), torch.randn(5, requires_grad=True)
    y = ours.layer_norm(x, (5,), weight)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_saved_tensors_go_through_hooks() -> None:
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.clone()

    x, weight = torch.randn(3, 5, requires_grad=True), torch.randn(5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = ours.layer_norm(x, (5,), weight)
    assert packed == [(3, 5), (5,)]  # the statistics are small, and the node keeps them
    expected = torch.autograd.grad(ours.layer_norm(x, (5,), weight).sin().sum(), (x, weight))
    got = torch.autograd.grad(y.sin().sum(), (x, weight))
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_bits(reentrant) -> None:
    layer = ours.LayerNorm(13)
    x = torch.randn(7, 13, requires_grad=True)
    expected = torch.autograd.grad(layer(x).sin().sum(), x)
    got = x.detach().clone().requires_grad_()
    checkpoint(layer, got, use_reentrant=reentrant).sin().sum().backward()
    assert torch.equal(got.grad, expected[0])


@pytest.mark.parametrize("profiled", ["the forward", "the backward"])
@pytest.mark.filterwarnings("ignore:.*Profiler clears events")  # before 2.12
def test_checkpointing_of_what_is_profiled_in_part(profiled) -> None:
    # The profiler rules out the fast path: the general path has to save as many tensors.
    layers = torch.nn.Sequential(ours.LayerNorm(5), torch.nn.Linear(5, 5), ours.LayerNorm(5))
    x = torch.randn(3, 5, requires_grad=True)
    expected = torch.autograd.grad(layers(x).sin().sum(), x)
    with torch.profiler.profile() if profiled == "the forward" else nullcontext():
        y = checkpoint(layers, x, use_reentrant=False).sin().sum()
    with torch.profiler.profile() if profiled == "the backward" else nullcontext():
        got = torch.autograd.grad(y, x)
    assert torch.equal(got[0], expected[0])


def test_a_list_of_sizes_that_changes_before_the_backward_changes_nothing() -> None:
    x, sizes = torch.randn(3, 5, requires_grad=True), [5]
    y = ours.layer_norm(x, sizes)
    expected = torch.autograd.grad(y.sin().sum(), x, retain_graph=True)
    sizes.insert(0, 3)
    assert torch.equal(torch.autograd.grad(y.sin().sum(), x)[0], expected[0])


def weighted(x, weight, bias):
    return ours.layer_norm(x, (13,), weight, bias)


def arguments(dtype=torch.float32):
    return tuple(torch.randn(size).to(dtype) for size in ((7, 3, 13), (13,), (13,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("in_dims", [(0, None, None), (1, None, None), (0, None, 0)], ids=str)
def test_vmap_gives_the_bits_of_the_calls_it_stands_for(dtype, in_dims) -> None:
    x, weight, bias = arguments(dtype)
    size = x.shape[in_dims[0]]
    if in_dims[2] is not None:
        bias = torch.randn(size, 13).to(dtype)
    got = torch.func.vmap(weighted, in_dims)(x, weight, bias)
    for at in range(size):
        here = bias if in_dims[2] is None else bias[at]
        assert torch.equal(got[at], weighted(x.select(in_dims[0], at), weight, here))


def test_gradients_of_each_sample_are_those_of_the_sample_alone() -> None:
    x, weight, bias = arguments()

    def loss(x, weight, bias):
        return weighted(x, weight, bias).sin().sum()

    gradient = torch.func.grad(loss, argnums=(0, 1, 2))
    got = torch.func.vmap(gradient, (0, None, None))(x, weight, bias)
    for at in range(len(x)):
        inputs = [each.clone().requires_grad_() for each in (x[at], weight, bias)]
        expected = torch.autograd.grad(loss(*inputs), inputs)
        assert all(torch.equal(each[at], one) for each, one in zip(got, expected, strict=True))


def test_hessians_agree_with_pytorch() -> None:
    x, weight = torch.randn(2, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    hessians = [
        torch.func.hessian(lambda x, f=f: f(x, (5,), weight).sin().sum())(x)
        for f in (ours.layer_norm, F.layer_norm)
    ]
    torch.testing.assert_close(*hessians)


def test_forward_mode_agrees_with_reverse_mode() -> None:
    x, weight, bias = arguments(torch.float64)
    tangents = tuple(torch.randn_like(each) for each in (x, weight, bias))
    y, tangent = torch.func.jvp(weighted, (x, weight, bias), tangents)
    assert torch.equal(y, weighted(x, weight, bias))
    inputs = [each.clone().requires_grad_() for each in (x, weight, bias)]
    dy = torch.randn_like(y)
    gradients = torch.autograd.grad(weighted(*inputs), inputs, dy)
    products = [(g * t).sum() for g, t in zip(gradients, tangents, strict=True)]
    torch.testing.assert_close((tangent * dy).sum(), sum(products))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_forward_mode_keeps_16_bit_types(dtype) -> None:
    x, weight, bias = arguments(dtype)
    _, tangent = torch.func.jvp(lambda x: weighted(x, weight, bias), (x,), (x,))
    assert tangent.dtype == dtype


def test_gradients_of_gradients_of_16_bit_types_have_their_types() -> None:
    x, weight, bias = (each.requires_grad_() for each in arguments(torch.bfloat16))
    (dx,) = torch.autograd.grad(weighted(x, weight, bias).float().sin().sum(), x, create_graph=True)
    second = torch.autograd.grad(dx.float().sin().sum(), (x, weight))
    assert [each.dtype for each in second] == [torch.bfloat16] * 2
