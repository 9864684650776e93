"""accelerate(): our kernels under PyTorch's own layer norm."""

import threading
from functools import partial

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import layernorm.torch as ours  # noqa: E402
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
    """Tell from a row whose sum of squares overflows in PyTorch's own kernel."""
    return bool(F.layer_norm(torch.tensor([1e30, -1e30]), (2,))[0] == 1)


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
