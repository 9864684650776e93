"""A gate: bits, derivatives, transforms, compilers, layers, memory, errors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from as_numpy_torch import to_array, to_tensor  # noqa: E402
from calls import assert_same_bits, backward, forward  # noqa: E402
from cases import Case, gated_cases, of_each_kind  # noqa: E402
from checkers import GATINGS  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

import layernorm  # noqa: E402
import layernorm.numpy  # noqa: E402
import layernorm.torch as ours  # noqa: E402
from layernorm.torch import functional, over_axes  # noqa: E402

# x and gate, axis, weight, bias
SHAPES = {
    "last axis": ((2, 3, 5), -1, (5,), (5,)),
    "channels first": ((2, 5, 3, 2), 1, (5,), (5,)),
    "adaptive": ((2, 3, 5), -1, (2, 1, 5), (2, 1, 5)),
    "unlike each other": ((2, 3, 2, 5), -1, (2, 1, 1, 5), (2, 5)),
}
# Of channels last in memory NumPy reads strided rows, and PyTorch contiguous ones: other bits.
CASES = [case for case in of_each_kind(gated_cases) if case.layout != "channels_last_in_memory"]

each_shape = pytest.mark.parametrize("name", SHAPES)
each_norm = pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
each_gating = pytest.mark.parametrize(
    "gating",
    GATINGS,
    ids=lambda g: f"{g['activation']}_{'after' if g['norm_before_gate'] else 'before'}",
)


def activated(gate: Tensor, activation: str) -> Tensor:
    return F.silu(gate) if activation == "silu" else torch.sigmoid(gate)


def arguments(
    name: str, gating: dict[str, Any], dtype=torch.float64
) -> tuple[list[Tensor], Callable, Callable]:
    """Return x, gate, weight and bias, our function of them, and PyTorch's operations."""
    shape, axis, *of_parameters = SHAPES[name]
    random = torch.Generator().manual_seed(3)
    given = [
        torch.randn(each, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
        for each in (shape, shape, *of_parameters)
    ]

    def fused(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ours.layer_norm(x, [shape[axis]], weight, bias, gate=gate, axis=axis, **gating)

    def composed(x: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        act = activated(gate, gating["activation"])
        u = x if gating["norm_before_gate"] else x * act
        n = F.layer_norm(u.movedim(axis, -1), [shape[axis]]).movedim(-1, axis)
        if weight.dim() == 1:
            weight, bias = (
                each.unflatten(0, (-1, *[1] * (-1 - axis % -len(shape)))) for each in (weight, bias)
            )
        n = n * weight + bias
        return n * act if gating["norm_before_gate"] else n

    return given, fused, composed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_bits_are_those_of_the_numpy_front_end(case: Case) -> None:
    for gating in GATINGS:
        x, dy, weight, bias = case.arrays()
        gate = case.gate()
        y, stats = forward(layernorm.numpy, case, x, weight, bias, gate=gate, **gating)
        dx, dweight, dbias, dgate = backward(layernorm.numpy, case, dy, x, stats, weight, gate=gate)
        tensors = [to_tensor(each) for each in (x, gate, weight, bias)]
        wanted = [each.requires_grad_() for each in tensors if each is not None]
        of_x, of_gate, *parameters = tensors
        if case.kind == "rms_norm":
            parameters.pop()
        function = getattr(over_axes, case.kind)
        result = function(of_x, *parameters, gate=of_gate, **gating, **case.definition)
        gradients = torch.autograd.grad(result, wanted, to_tensor(dy))
        with torch.no_grad():
            alone = function(of_x, *parameters, gate=of_gate, **gating, **case.definition)
        for got in (result, alone):
            assert_same_bits(to_array(got).copy(), y, "y")
        expected = {"dx": dx, "dgate": dgate}
        expected |= {} if weight is None else {"dweight": dweight}
        expected |= {} if bias is None else {"dbias": dbias}
        for got, (name, right) in zip(gradients, expected.items(), strict=True):
            assert_same_bits(to_array(got), right, name)


@each_gating
@each_shape
def test_every_derivative_is_that_of_the_composition(name, gating) -> None:
    given, fused, composed = arguments(name, gating)
    torch.testing.assert_close(fused(*given), composed(*given))
    assert torch.autograd.gradcheck(fused, given, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(fused, given, fast_mode=True)
    along = tuple(torch.randn_like(each) for each in given)
    values = tuple(each.detach() for each in given)

    def derivative(function: Callable) -> Callable:
        return torch.func.grad(lambda *values: (function(*values) ** 3).sum(), argnums=(0, 1, 2, 3))

    for change in (lambda function: function, derivative):
        tangents = [torch.func.jvp(change(f), values, along)[1] for f in (fused, composed)]
        torch.testing.assert_close(*tangents)
    third = [
        torch.func.grad(
            lambda *v, f=f: sum((g**2).sum() for g in derivative(f)(*v)), argnums=(0, 1)
        )(*values)
        for f in (fused, composed)
    ]
    torch.testing.assert_close(*third)


@each_gating
def test_first_gradients_that_are_differentiated_again_are_as_exact(gating) -> None:
    given, fused, _ = arguments("last axis", gating, torch.float32)
    wide = [each.detach().double().requires_grad_() for each in given]
    dy = torch.randn(2, 3, 5)
    exact = torch.autograd.grad(fused(*wide), wide, dy.double())
    for create_graph in (False, True):
        gradients = torch.autograd.grad(fused(*given), given, dy, create_graph=create_graph)
        for got, expected in zip(gradients, exact, strict=True):
            torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=2e-6)


@each_norm
@each_gating
def test_only_one_gradient_may_be_needed(norm, gating) -> None:
    leaves = [torch.randn(6, 8).requires_grad_() for _ in range(2)]
    leaves.append(torch.randn(8).requires_grad_())

    def gradients(given: list[Tensor], wanted: list[Tensor]) -> tuple[Tensor, ...]:
        y = getattr(ours, norm)(given[0], 8, given[2], gate=given[1], **gating)
        return torch.autograd.grad(y, wanted, torch.ones_like(y))

    every = gradients(leaves, leaves)
    for at, needing in enumerate(leaves):
        given = [each if each is needing else each.detach() for each in leaves]
        assert torch.equal(gradients(given, [needing])[0], every[at])


@each_gating
@each_shape
def test_compiled_graphs_have_the_bits_of_eager_calls(name, gating) -> None:
    given, fused, _ = arguments(name, gating, torch.float32)
    dynamic = gating["activation"] == "silu"
    compiled = torch.compile(fused, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    assert torch.equal(compiled(*given), fused(*given))
    results = [torch.autograd.grad(f(*given).sin().sum(), given) for f in (compiled, fused)]
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
    torch._dynamo.reset()


def test_inductor_compiles_it() -> None:
    given, fused, _ = arguments("last axis", GATINGS[0], torch.bfloat16)
    results = []
    for function in (torch.compile(fused, fullgraph=True), fused):
        y = function(*given)
        results.append((y, *torch.autograd.grad(y, given, given[0].detach())))
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


@each_norm
@each_gating
@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 1)])
def test_a_batch_is_one_call_with_the_bits_of_each(norm, dims, gating) -> None:
    sizes = [(6, 32) if dim is None else (7, 6, 32) for dim in dims]
    x, gate = (
        torch.randn(size).movedim(0, dim or 0) for size, dim in zip(sizes, dims, strict=True)
    )
    weight = torch.randn(32)

    def function(x: Tensor, gate: Tensor) -> Tensor:
        return getattr(ours, norm)(x, 32, weight, gate=gate, **gating)

    def gradient(x: Tensor, gate: Tensor) -> Tensor:
        return torch.func.grad(lambda gate: function(x, gate).sin().sum())(gate)

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        batch = torch.vmap(function, in_dims=dims)(x, gate)
    gradients = torch.vmap(gradient, in_dims=dims)(x, gate)
    for member in range(7):
        each = [
            given if dim is None else given.select(dim, member)
            for given, dim in zip((x, gate), dims, strict=True)
        ]
        assert torch.equal(batch[member], function(*each))
        torch.testing.assert_close(gradients[member], gradient(*each))
    calls = [event.count for event in seen.key_averages() if "layernorm::" in event.key]
    assert calls, "no operator of ours was called"
    assert max(calls) <= 2  # a transform may show the call, and then its operator's


@pytest.mark.parametrize("norm", ["gated_layer_norm", "gated_rms_norm"])
def test_the_operators_of_a_batch_are_those_of_its_members(norm) -> None:
    x, gate, dy = (torch.randn(3, 4, 8) for _ in range(3))
    parameters = [torch.randn(3, 8) for _ in range(2 if norm == "gated_layer_norm" else 1)]
    options = ([-1], 1e-5, False, True, True)
    need = [True] * (2 + len(parameters))

    def call(x: Tensor, gate: Tensor, dy: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        y, *statistics = getattr(torch.ops.layernorm, norm)(x, gate, *parameters, *options)
        backward = getattr(torch.ops.layernorm, f"{norm}_backward")
        return y, *backward(dy, x, gate, *statistics, *parameters, *options, need)

    batch = torch.vmap(call)(x, gate, dy, *parameters)
    for member in range(3):
        alone = call(*(each[member] for each in (x, gate, dy, *parameters)))
        for got, expected in zip(batch, alone, strict=True):
            assert torch.equal(got[member], expected)


@pytest.mark.parametrize("norm", ["gated_layer_norm", "gated_rms_norm"])
def test_the_operators_keep_pytorchs_rules(norm) -> None:
    x, gate = (torch.randn(4, 8, requires_grad=True) for _ in range(2))
    parameters = [torch.randn(8, requires_grad=True) for _ in range(2 if "layer" in norm else 1)]
    options = ([-1], 1e-5, False, False, False)
    operator = getattr(torch.ops.layernorm, norm).default
    torch.library.opcheck(operator, (x, gate, *parameters, *options))


@each_gating
@each_shape
def test_exported_and_traced_graphs_are_the_composition(name, gating) -> None:
    given, fused, _ = arguments(name, gating, torch.float32)

    class Model(torch.nn.Module):
        def forward(self, *given: Tensor) -> Tensor:
            return fused(*given)

    values = tuple(each.detach() for each in given)
    program = torch.export.export(Model(), values)
    assert "layernorm." not in str(program.graph)
    for graph in (program.module(), torch.jit.trace(fused, values, check_trace=False)):
        torch.testing.assert_close(graph(*values), fused(*values))


@each_gating
@pytest.mark.parametrize("layer", [ours.LayerNorm, ours.RMSNorm])
def test_layers_take_a_gate(layer, gating) -> None:
    module = layer(8)
    x, residual, gate = (torch.randn(4, 8) for _ in range(3))
    function = ours.layer_norm if layer is ours.LayerNorm else ours.rms_norm
    parameters = list(module.parameters())
    expected = function(x, 8, *parameters, eps=module.eps, gate=gate, **gating)
    assert torch.equal(module(x, gate=gate, **gating), expected)
    y, total = module(x, residual, gate, **gating)
    assert torch.equal(total, x + residual)
    assert torch.equal(y, module(total, gate=gate, **gating))
    scripted = torch.jit.script(module)
    torch.testing.assert_close(scripted(x), module(x))
    with pytest.raises(torch.jit.Error, match="gate"):
        scripted(x, None, gate)


@each_norm
@each_gating
def test_with_a_residual_the_gradient_of_total_is_added(norm, gating) -> None:
    x, residual, gate, dy, dtotal = (torch.randn(4, 8) for _ in range(5))
    x.requires_grad_()
    residual.requires_grad_()
    results = getattr(ours, norm)(x, 8, residual=residual, gate=gate, **gating)
    dx, dresidual = torch.autograd.grad(results, (x, residual), (dy, dtotal))
    total = (x + residual).detach().requires_grad_()
    y = getattr(ours, norm)(total, 8, gate=gate, **gating)
    assert torch.equal(results[0], y)
    expected = torch.autograd.grad(y, total, dy)[0] + dtotal
    assert torch.equal(dx, expected)
    assert torch.equal(dresidual, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_norm
def test_a_float32_stream_takes_16_bit_branches(norm, dtype) -> None:
    x, gate, weight = (torch.randn(size).to(dtype) for size in ((6, 40), (6, 40), 40))
    residual = torch.randn(6, 40)
    y, total = getattr(ours, norm)(x, 40, weight, residual=residual, gate=gate)
    assert y.dtype == dtype
    assert torch.equal(total, x + residual)
    wide = getattr(ours, norm)(total, 40, weight.float(), gate=gate.float())
    assert torch.equal(y, wide.to(dtype))


@each_norm
def test_a_checkpointed_block_has_the_gradients_of_one_that_is_not(norm) -> None:
    x, gate = (torch.randn(4, 8, requires_grad=True) for _ in range(2))

    def block(x: Tensor, gate: Tensor) -> Tensor:
        return getattr(ours, norm)(x, 8, gate=gate).sin()

    plain = torch.autograd.grad(block(x, gate).sum(), (x, gate))
    y = torch.utils.checkpoint.checkpoint(block, x, gate, use_reentrant=False)
    for got, expected in zip(torch.autograd.grad(y.sum(), (x, gate)), plain, strict=True):
        assert torch.equal(got, expected)


@each_gating
def test_who_knows_pytorchs_operators_sees_a_norm_and_a_product(gating) -> None:
    class Watched(Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None) -> Any:
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    seen: list[Any] = []
    x, gate = torch.randn(4, 8), torch.randn(4, 8)
    y = ours.layer_norm(x.as_subclass(Watched), 8, gate=gate, **gating)
    assert F.layer_norm in seen
    torch.testing.assert_close(y.as_subclass(Tensor), ours.layer_norm(x, 8, gate=gate, **gating))


@each_norm
@each_gating
def test_views_are_not_copied(norm, gating) -> None:
    projected = torch.randn(2, 50, 3 * 64)
    x, gate, dy = projected.split(64, -1)
    weight = torch.ones(64).requires_grad_()
    function = getattr(ours, norm)
    expected = function(x.contiguous(), 64, weight, gate=gate.contiguous(), **gating)
    x, gate = x.detach().requires_grad_(), gate.detach().requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        y = function(x, (64,), weight, gate=gate, **gating)
        torch.autograd.grad(y, (x, gate, weight), dy)
    assert y.is_contiguous()
    assert torch.equal(y, expected)
    copies = [
        e.key
        for e in seen.key_averages()
        if e.key in ("aten::copy_", "aten::clone", "aten::mul", "aten::silu", "aten::sigmoid")
    ]
    assert copies == []


def test_the_top_level_takes_a_gate() -> None:
    x, gate, residual = (torch.randn(4, 8) for _ in range(3))
    out = torch.empty(4, 8)
    y = layernorm.layer_norm(x, gate=gate, activation="sigmoid", norm_before_gate=False, out=out)
    assert y is out
    given = {"activation": "sigmoid", "norm_before_gate": False}
    assert torch.equal(y, ours.layer_norm(x, 8, gate=gate, **given))
    arrays = layernorm.layer_norm(x.numpy(), gate=gate.numpy(), **given)
    assert np.array_equal(arrays, y.numpy())
    y, total = layernorm.rms_norm(x, gate=gate, residual=residual, out=out)
    assert y is out
    assert torch.equal(total, x + residual)


@each_norm
def test_errors_say_what_to_do(norm) -> None:
    function, x = getattr(ours, norm), torch.randn(4, 8)
    before = x.clone()
    for gate, error, words in (
        (x[:, 1:], RuntimeError, r"gate has shape \[4, 7\], but the input \[4, 8\]"),
        (x[0], RuntimeError, r"gate has shape \[8\], but the input \[4, 8\]"),
        (x.double(), RuntimeError, "gate has type float64, but the input has type float32"),
        (x.numpy(), TypeError, "ndarray"),
        (x.to("meta"), RuntimeError, "gate is on meta and x on cpu"),
    ):
        for call in (
            lambda gate: function(x, 8, gate=gate),
            lambda gate: function(x, 8, gate=gate, residual=x),
            lambda gate: getattr(over_axes, norm)(x, gate=gate),
        ):
            with pytest.raises(error, match=words):
                call(gate)
    with pytest.raises(ValueError, match=r"activation is 'gelu', expected 'silu'"):
        function(x, 8, gate=x, activation="gelu")
    assert torch.equal(x, before)
    operator = getattr(torch.ops.layernorm, f"gated_{norm}")
    parameters = (None, None) if norm == "layer_norm" else (None,)
    for gate in (x[:, 1:], x.double(), x[0]):
        with pytest.raises(RuntimeError, match="gate needs x's sizes and type"):
            operator(x, gate, *parameters, [-1], 1e-5, False, True, True)


@each_norm
def test_without_elements(norm) -> None:
    for shape in ((0, 5), (3, 0)):
        x = torch.zeros(shape, requires_grad=True)
        y = getattr(ours, norm)(x, shape[-1], gate=x)
        assert y.shape == shape
        assert torch.autograd.grad(y.sum(), x)[0].shape == shape


@each_norm
@each_gating
def test_the_general_path_gives_the_bits_of_the_fast_path(norm, gating, monkeypatch) -> None:
    given = [torch.randn(size).requires_grad_() for size in ((6, 40), (6, 40), 40)]
    x, gate, weight = given
    dy = torch.randn(6, 40)

    def results(**changes: Any) -> list[Tensor]:
        for name, value in changes.items():
            monkeypatch.setattr(functional, name, value)
        y = getattr(ours, norm)(x, 40, weight, gate=gate, **gating)
        assert (type(y.grad_fn).__name__ == "FastPathGatedNormBackward") == (not changes)
        return [y, *torch.autograd.grad(y, given, dy)]

    fast, general = results(), results(torch_try_forward=lambda *_: None)
    assert all(map(torch.equal, fast, general))


@each_norm
def test_a_changed_bias_is_an_error_of_the_backward(norm) -> None:
    """dgate needs the bias that the forward had."""
    x, gate, *parameters = (
        torch.randn(size, requires_grad=True) for size in ((4, 8), (4, 8), 8, 8)
    )
    parameters = parameters[: 2 if norm == "layer_norm" else 1]
    y = getattr(ours, norm)(x, 8, *parameters, gate=gate)
    with torch.no_grad():
        parameters[-1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@each_norm
@each_gating
def test_lazily_negated_tensors_are_taken_with_their_sign(norm, gating) -> None:
    x, gate, dy = (torch.randn(4, 8) for _ in range(3))
    x.requires_grad_()
    y = getattr(ours, norm)(x, 8, gate=torch._neg_view(gate), **gating)
    expected = getattr(ours, norm)(x, 8, gate=-gate, **gating)
    assert torch.equal(y, expected)
    got = torch.autograd.grad(y, x, torch._neg_view(dy))[0]
    assert torch.equal(got, torch.autograd.grad(expected, x, -dy)[0])
