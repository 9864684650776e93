"""accelerate(): our kernels under PyTorch's own layer norm and RMS norm."""

import threading
from functools import partial

import foreign_norms as foreign
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import layernorm  # noqa: E402
import layernorm.torch as ours  # noqa: E402
from layernorm import accuracy  # noqa: E402
from layernorm.cli.problem import ordinary_arrays  # noqa: E402

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

each_type = pytest.mark.parametrize("dtype", TYPES, ids=str)


def a_problem(dtype, rows=37, cols=769, mean=1e3):
    generator = torch.Generator().manual_seed(cols)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    *given, _ = ordinary_arrays(normal, (rows, cols), mean=mean)
    return [each.to(dtype).requires_grad_() for each in given]


def results(function, inputs, seed=1):
    y = function(inputs[0], inputs[0].shape[1:], *inputs[1:])
    generator = torch.Generator().manual_seed(seed)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    return [y, *torch.autograd.grad(y, inputs, dy)]


def assert_same(got, expected) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def is_accelerated() -> bool:
    """Tell from a row whose sum of squares overflows in PyTorch's own kernels."""
    row = torch.tensor([1e30, -1e30])
    layer_norm, rms_norm = (bool(norm(row, (2,))[0] == 1) for norm in (F.layer_norm, F.rms_norm))
    assert layer_norm == rms_norm
    return layer_norm


@each_type
def test_accelerated_gives_the_bits_of_our_functions(dtype) -> None:
    inputs = a_problem(dtype)
    expected = results(ours.layer_norm, inputs)
    with ours.accelerate():
        assert_same(results(F.layer_norm, inputs), expected)


def test_mixed_types_give_the_bits_of_our_functions() -> None:
    inputs = a_problem(torch.float32)
    inputs[0] = inputs[0].detach().bfloat16().requires_grad_()
    expected = results(ours.layer_norm, inputs)
    with ours.accelerate():
        assert_same(results(F.layer_norm, inputs), expected)


@each_type
def test_statistics_have_pytorchs_types(dtype) -> None:
    x, weight, bias = a_problem(dtype)
    expected = torch.native_layer_norm(x, weight.shape, weight, bias, 1e-5)
    with ours.accelerate():
        got = torch.native_layer_norm(x, weight.shape, weight, bias, 1e-5)
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine.dtype, mine.shape, mine.stride()) == (
            theirs.dtype,
            theirs.shape,
            theirs.stride(),
        )


@each_type
def test_a_backward_may_come_after_the_acceleration_has_ended(dtype) -> None:
    x, weight, bias = a_problem(dtype, mean=0)
    with ours.accelerate():
        y = F.layer_norm(x, weight.shape, weight, bias)
    expected = torch.autograd.grad(F.layer_norm(x, weight.shape, weight, bias), x, y.detach())
    torch.testing.assert_close(torch.autograd.grad(y, x, y.detach()), expected)


@each_type
def test_a_forward_may_come_before_the_acceleration_begins(dtype) -> None:
    x, weight, bias = a_problem(dtype, mean=0)
    y = F.layer_norm(x, weight.shape, weight, bias)
    expected = torch.autograd.grad(y, x, y.detach(), retain_graph=True)
    with ours.accelerate():
        got = torch.autograd.grad(y, x, y.detach())
    # PyTorch's own kernel stored the statistics of a 16-bit x in 16 bits.
    coarse = {"rtol": 2e-2, "atol": 1e-2} if x.itemsize == 2 else {}
    torch.testing.assert_close(got, expected, **coarse)


def test_statistics_that_came_another_way_are_used_as_they_are() -> None:
    x, weight, bias = (each.detach() for each in a_problem(torch.float32, mean=10))
    dy = torch.randn_like(x)
    with ours.accelerate():
        _, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, 1e-5)
        every = [True] * 3
        backward = torch.ops.aten.native_layer_norm_backward
        expected = backward(dy, x, weight.shape, mean, rstd, weight, bias, every)
        copied = backward(dy, x, weight.shape, mean.clone(), rstd.clone(), weight, bias, every)
        torch.testing.assert_close(copied, expected)
        other = backward(dy, x, weight.shape, mean, 2 * rstd, weight, bias, every)
        assert not torch.equal(other[0], expected[0])
        mean.add_(1)  # the residual stored behind it no longer belongs to it
        other = backward(dy, x, weight.shape, mean, rstd, weight, bias, every)
        shifted = backward(dy, x, weight.shape, mean.clone(), rstd, weight, bias, every)
        assert_same(other, shifted)


def test_it_ends_with_the_context_and_with_undo() -> None:
    assert not is_accelerated()
    with ours.accelerate():
        assert is_accelerated()
        with ours.accelerate():
            assert is_accelerated()
        assert is_accelerated()
    assert not is_accelerated()
    held = ours.accelerate()
    assert is_accelerated()
    held.undo()
    held.undo()
    assert not is_accelerated()


def test_it_ends_with_an_error() -> None:
    with pytest.raises(KeyError), ours.accelerate():
        raise KeyError
    assert not is_accelerated()


def test_threads_may_come_and_go() -> None:
    wrong = []

    def work() -> None:
        for _ in range(50):
            with ours.accelerate():
                if not is_accelerated():
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
    assert not is_accelerated()


def test_a_model_that_nobody_edited_is_accelerated_with_all_its_transforms() -> None:
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    x = torch.randn(2, 5, 16)
    expected = layer(x)
    with ours.accelerate():
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(checkpoint(layer, x, use_reentrant=False), expected)
        batched = torch.func.vmap(lambda x: F.layer_norm(x, (16,)))(x)
        torch.testing.assert_close(batched, F.layer_norm(x, (16,)))
        _, tangent = torch.func.jvp(lambda x: F.layer_norm(x, (16,)), (x,), (x,))
    _, expected_tangent = torch.func.jvp(lambda x: F.layer_norm(x, (16,)), (x,), (x,))
    torch.testing.assert_close(tangent, expected_tangent)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_forward_mode_of_16_bit_types(dtype) -> None:
    x = torch.randn(3, 16).to(dtype)
    with ours.accelerate():
        _, tangent = torch.func.jvp(lambda x: F.layer_norm(x, (16,)), (x,), (x,))
    assert tangent.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64], ids=str)
def test_other_types_are_errors_that_say_what_to_do(dtype) -> None:
    x = torch.ones(2, 3, dtype=dtype)
    with ours.accelerate(), pytest.raises(RuntimeError, match=r"call it with x\.float\(\)"):
        F.layer_norm(x, (3,))


def test_no_rows_and_no_columns() -> None:
    for sizes, shape in (((0, 3), (3,)), ((3, 0), (0,))):
        x = torch.ones(sizes)
        expected = torch.native_layer_norm(x, shape, None, None, 1e-5)
        with ours.accelerate():
            got = torch.native_layer_norm(x, shape, None, None, 1e-5)
        torch.testing.assert_close(got, expected, equal_nan=True)


def test_every_layout_has_pytorchs_results() -> None:
    x = torch.randn(4, 5, 6)
    for each in (
        x.transpose(0, 1),
        x.transpose(1, 2),
        x[:, ::2],
        x.flip(0)[1:],
        x[:1].expand(4, 5, 6),
    ):
        expected = F.layer_norm(each, each.shape[-1:])
        with ours.accelerate():
            got = F.layer_norm(each, each.shape[-1:])
        torch.testing.assert_close(got, expected)
        assert got.stride() == expected.stride()


# RMS norm, which PyTorch composes of other operators on the CPU


@pytest.mark.parametrize(
    ("dtype", "weight_type"),
    [*((each, each) for each in TYPES), *((each, torch.float32) for each in TYPES[2:])],
    ids=str,
)
def test_accelerated_rms_norm_gives_the_bits_of_our_function(dtype, weight_type) -> None:
    x, weight, _ = a_problem(dtype)
    weight = weight.detach().to(weight_type).requires_grad_()
    expected = results(ours.rms_norm, [x, weight])
    with ours.accelerate():
        assert_same(results(F.rms_norm, [x, weight]), expected)
        strided = x.detach().t().contiguous().t().requires_grad_()
        assert_same(results(F.rms_norm, [strided, weight]), expected)
        with torch.no_grad():
            assert torch.equal(F.rms_norm(x, weight.shape, weight), expected[0])
        with torch.inference_mode():
            for each in (x, x.clone(), strided.clone()):
                assert torch.equal(F.rms_norm(each, weight.shape, weight), expected[0])


def accelerated_and_not(call):
    expected = call()
    with ours.accelerate():
        return call(), expected


RMS_TRANSFORMS = {
    "vmap": lambda f, x: torch.func.vmap(f)(x),
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).sin().sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),))[1],
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(lambda x: f(x).sin().sum()))(x),
    "hessian": lambda f, x: torch.func.hessian(lambda x: f(x).sin().sum())(x),
    "functionalize": lambda f, x: torch.func.functionalize(f)(x),
    "compile": lambda f, x: torch.compile(f, fullgraph=True, backend="aot_eager")(x),
    "checkpoint": lambda f, x: checkpoint(f, x, use_reentrant=False),
    "trace": lambda f, x: torch.jit.trace(f, x)(x),
}


@pytest.mark.parametrize("transform", RMS_TRANSFORMS)
def test_transforms_of_rms_norm_are_as_they_were(transform) -> None:
    weight = torch.linspace(1, 2, 8)
    x = torch.randn(3, 8)
    got, expected = accelerated_and_not(
        lambda: RMS_TRANSFORMS[transform](lambda x: F.rms_norm(x, (8,), weight), x)
    )
    torch.testing.assert_close(got, expected)


def test_forward_mode_and_second_derivatives_of_rms_norm() -> None:
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)

    def call(x):
        return F.rms_norm(x, (8,), None, 1e-3)

    with ours.accelerate():
        assert torch.autograd.gradcheck(call, x, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(call, x, check_fwd_over_rev=True)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.float8_e4m3fn], ids=str)
def test_other_types_of_rms_norm_are_pytorchs(dtype) -> None:
    def outcome():
        try:
            return F.rms_norm(torch.arange(6).reshape(2, 3).to(dtype), (3,))
        except Exception as error:  # to compare any error
            return type(error), str(error)

    got, expected = accelerated_and_not(outcome)
    if isinstance(expected, tuple):
        assert got == expected
    else:
        torch.testing.assert_close(got, expected)
    weight = torch.ones(3, dtype=torch.bfloat16)  # a pair that our kernels do not take
    torch.testing.assert_close(
        *accelerated_and_not(lambda: F.rms_norm(torch.arange(6.0).reshape(2, 3), (3,), weight))
    )


def test_graphs_of_rms_norm_are_as_they_were() -> None:
    x = torch.randn(3, 8)

    def graphs():
        exported = torch.export.export(torch.nn.RMSNorm(8), (x,))
        made = make_fx(lambda x: F.rms_norm(x, (8,)))(x)
        with torch.inference_mode():
            inferred = torch.export.export(torch.nn.RMSNorm(8), (x,)).run_decompositions()
        every = (exported.graph, exported.run_decompositions().graph, inferred.graph, made.graph)
        return [[str(node.target) for node in graph.nodes] for graph in every]

    got, expected = accelerated_and_not(graphs)
    assert got == expected


def test_nested_tensors_and_modes_get_pytorchs_rms_norm() -> None:
    def nested():
        x = torch.nested.nested_tensor([torch.eye(3), torch.ones(1, 3)], layout=torch.jagged)
        return F.rms_norm(x, (3,)).values()

    def seen():
        with FlopCounterMode(display=False), Operators() as mode:
            F.rms_norm(torch.ones(2, 3), (3,))
        return mode.names

    torch.testing.assert_close(*accelerated_and_not(nested))
    got, expected = accelerated_and_not(seen)
    assert got == expected
    assert "aten.rsqrt.default" in got


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_errors_of_rms_norm_are_pytorchs() -> None:
    for call in (
        lambda: F.rms_norm(torch.ones(2, 3), (4,)),
        lambda: F.rms_norm(torch.ones(2, 3), ()),
        lambda: F.rms_norm(torch.ones(2, 3), (3,), torch.ones(2)),
        lambda: F.rms_norm([1.0], (1,)),
    ):
        with pytest.raises((RuntimeError, TypeError)) as expected:
            call()
        with ours.accelerate(), pytest.raises(expected.type):
            call()


def test_features_of_inference_mode_go_into_a_rms_norm_that_is_trained() -> None:
    with torch.inference_mode():
        x = torch.randn(3, 8)
    expected = torch.nn.RMSNorm(8)
    expected(x).sum().backward()
    accelerated, swapped, llama = torch.nn.RMSNorm(8), torch.nn.RMSNorm(8), foreign.LlamaNorm(8)
    ours.convert(torch.nn.ModuleList([swapped, llama]))
    torch.nn.init.ones_(llama.weight)
    for module in (ours.RMSNorm(8), swapped, llama):
        module(x).sum().backward()
        torch.testing.assert_close(module.weight.grad, expected.weight.grad)
    with ours.accelerate():
        accelerated(x).sum().backward()
    torch.testing.assert_close(accelerated.weight.grad, expected.weight.grad)
    weight = torch.ones(8, requires_grad=True)
    layernorm.rms_norm(x, weight, eps=2.0**-23).sum().backward()
    torch.testing.assert_close(weight.grad, expected.weight.grad)
    before, after = foreign.FormulaNorm(8), foreign.FormulaNorm(8)
    assert ours.convert(after).swapped
    for each in (before, after):
        each(x).sum().backward()
    torch.testing.assert_close(after.weight.grad, before.weight.grad)


def test_statistics_of_pytorchs_own_kernel_come_without_eps() -> None:
    """Nothing may be taken for eps: docs/specification.md says how accurate dx is then."""
    up = torch.rand(4000, 33, generator=torch.Generator().manual_seed(0)) < 0.5
    x, dy = 3 * torch.where(up, 1.3, -0.7), torch.where(up, 1.0, -1.0)
    _, mean, rstd = torch.native_layer_norm(x, (33,), None, None, 1e-5)
    backward = torch.ops.aten.native_layer_norm_backward
    with ours.accelerate():
        dx = backward(dy, x, (33,), mean, rstd, None, None, [True, False, False])[0]
    assert accuracy.dx_error(dx.numpy(), dy.numpy(), x.numpy()) <= 7.4


def test_an_infinite_dy_makes_its_row_nan_without_eps() -> None:
    x, dy = torch.randn(2, 3, 33, generator=torch.Generator().manual_seed(0))
    dy[1, 4] = torch.inf
    _, mean, rstd = torch.native_layer_norm(x, (33,), None, None, 1e-5)
    backward = torch.ops.aten.native_layer_norm_backward
    with ours.accelerate():
        dx = backward(dy, x, (33,), mean, rstd, None, None, [True, False, False])[0]
    assert dx.isnan().all(1).tolist() == [False, True, False]
    assert dx[::2].isfinite().all()
