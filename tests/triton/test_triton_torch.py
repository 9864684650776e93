"""The GPU kernels as operators of `layernorm` and under PyTorch's own; errors."""

from functools import partial
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import torch.nn.functional as F  # noqa: E402
from as_numpy_triton import DEVICE  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

import layernorm.torch as ours  # noqa: E402
from layernorm.cli.problem import ordinary_arrays  # noqa: E402
from layernorm.torch.gpu import forward as gpu_forward  # noqa: E402
from layernorm.torch.gpu import launch as gpu_launch  # noqa: E402
from layernorm.torch.gpu import operators as gpu  # noqa: E402

operators = SimpleNamespace(**gpu.OPERATORS)
TYPES = (torch.float32, torch.bfloat16)
each_type = pytest.mark.parametrize("dtype", TYPES, ids=str)


def a_problem(dtype, shape=(3, 4, 16), axis=-1):
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    arrays = ordinary_arrays(normal, shape, axis=axis, mean=0.5)
    *given, dy = (each.to(dtype).to(DEVICE) for each in arrays)
    return [each.requires_grad_() for each in given], dy


def close(got, expected, dtype) -> None:
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=2 * tolerance)


@each_type
def test_operators_match_the_formula(dtype) -> None:
    (x, weight, bias), dy = a_problem(dtype)
    y, mean, rstd, residual = operators.layer_norm(x.detach(), weight, bias, [-1], 1e-5)
    exact = [each.detach().double().requires_grad_() for each in (x, weight, bias)]
    expected = F.layer_norm(exact[0], (16,), exact[1], exact[2])
    close(y.double(), expected.detach(), dtype)
    assert (mean.shape, rstd.shape, residual.shape) == ((3, 4, 1),) * 3
    gradients = operators.layer_norm_backward(
        *(dy, x.detach(), mean, rstd, residual, weight, bias, [2], 1e-5, False, [True] * 3)
    )
    expected = torch.autograd.grad(expected, exact, dy.double())
    for got, right in zip(gradients, expected, strict=True):
        assert got.dtype == dtype
        close(got.double(), right, dtype)
    nothing = operators.layer_norm_backward(
        *(dy, x.detach(), mean, rstd, residual, weight, bias, [2], 1e-5, False, [False] * 3)
    )
    assert [each.numel() for each in nothing] == [0, 0, 0]


# Of one size along all kept axes, they are those of the normalized shape.
@pytest.mark.parametrize("sizes", [(3, 1, 16), (1, 4, 16), (3, 4, 16), (1, 1, 16)])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
@each_type
def test_operators_take_parameters_with_all_axes_of_x(dtype, kind, sizes) -> None:
    (x, _, _), dy = a_problem(dtype)
    x, weight, bias = x.detach(), *torch.randn(2, *sizes, device=DEVICE).to(dtype)
    given = (weight, bias) if kind == "layer_norm" else (weight,)
    options = ([-1], 1e-5, True)
    y, *statistics = getattr(operators, kind)(x, *given, *options)
    gradients = getattr(operators, f"{kind}_backward")(
        *(dy, x, *statistics, *given, *options, [True] * (1 + len(given)))
    )
    exact = [each.double().requires_grad_() for each in (x, *given)]
    rows = exact[0] - exact[0].mean(-1, keepdim=True) if kind == "layer_norm" else exact[0]
    xhat = rows / (rows.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    right = xhat * (1 + exact[1]) + sum(exact[2:])
    close(y.double(), right.detach(), dtype)
    expected = torch.autograd.grad(right, exact, dy.double())
    for got, each in zip(gradients, expected, strict=True):
        assert got.dtype == dtype
        close(got.double(), each, dtype)


def test_a_bias_alone_may_vary() -> None:
    (x, _, _), dy = a_problem(torch.float32)
    x, bias = x.detach(), torch.randn(3, 1, 16, device=DEVICE)
    y, *statistics = operators.layer_norm(x, None, bias, [-1], 1e-5, False)
    _, dweight, dbias = operators.layer_norm_backward(
        *(dy, x, *statistics, None, bias, [-1], 1e-5, False, [False, False, True])
    )
    assert dweight.numel() == 0
    close(y, F.layer_norm(x, (16,)) + bias, torch.float32)
    close(dbias, dy.sum(1, keepdim=True), torch.float32)


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "sliced", "axes_apart"])
def test_y_has_the_strides_that_the_compiler_expects(layout) -> None:
    x = torch.randn(2, 6, 4, 8, device=DEVICE)
    axis = [1]
    if layout == "transposed":
        x = x.transpose(1, 3)
    elif layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = x[:, :, 1:3]
    else:
        axis = [0, 2]
    y, *_ = operators.layer_norm(x, None, None, axis, 1e-5)
    expected = torch.ops.layernorm.layer_norm(x.to("meta"), None, None, axis, 1e-5)[0]
    assert y.stride() == expected.stride()
    exact = x.double()
    centered = exact - exact.mean(axis, keepdim=True)
    right = centered / (exact.var(axis, correction=0, keepdim=True) + 1e-5).sqrt()
    close(y.double(), right, torch.float32)


@each_type
def test_pytorchs_own_operator_runs_ours(dtype, in_place_of_the_cpu) -> None:
    (x, weight, bias), dy = a_problem(dtype)
    y = F.layer_norm(x, (16,), weight, bias)
    got = torch.autograd.grad(y, (x, weight, bias), dy)
    statistics = torch.native_layer_norm(x, (16,), weight, bias, 1e-5)[1:]
    assert [each.dtype for each in statistics] == [torch.float32] * 2  # as on CUDA
    assert F.layer_norm(torch.tensor([1e30, -1e30]), (2,))[0] == 1
    exact = [each.detach().double().requires_grad_() for each in (x, weight, bias)]
    right = torch.autograd.grad(formula(exact), exact, dy.double())
    for mine, theirs in zip(got, right, strict=True):
        close(mine.double(), theirs, dtype)
    (only,) = torch.autograd.grad(F.layer_norm(x, (16,), weight, bias), weight, dy)
    close(only.double(), right[1], dtype)


def formula(exact):
    x, weight, bias = exact
    centered = x - x.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_a_call_past_the_dispatcher_has_the_bits_of_its_operator(
    kind, in_place_of_the_cpu, monkeypatch
) -> None:
    given, dy = a_problem(torch.float32, (2, 16, 5), axis=1)
    given = given if kind == "layer_norm" else given[:2]
    results = []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(gpu, "BYPASSING_DEVICES", devices)
        y = getattr(ours, kind)(given[0], (16,), *given[1:], axis=1)
        results.append([y, *torch.autograd.grad(y, given, dy)])
        assert y.grad_fn is not None
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(3, 16), (2, 20_000), (2, 16, 5), (1, 0), (0, 16)])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_y_has_the_same_bits_without_a_gradient(
    kind, shape, in_place_of_the_cpu, monkeypatch
) -> None:
    monkeypatch.setattr(gpu, "BYPASSING_DEVICES", ("cpu",))
    kept = []
    forward = gpu_forward.forward

    def seen(*arguments, save=True, **options):
        kept.append(save)
        return forward(*arguments, save=save, **options)

    monkeypatch.setattr(gpu_forward, "forward", seen)
    x = torch.randn(shape, requires_grad=True)
    expected = getattr(ours, kind)(x, (shape[1],), axis=1)
    with torch.no_grad():
        y = getattr(ours, kind)(x, (shape[1],), axis=1)
    assert torch.equal(y, expected)
    assert not y.requires_grad
    with forward_ad.dual_level():
        getattr(ours, kind)(x.detach(), (shape[1],), axis=1)
    assert kept == [True, False, True]


def test_a_call_that_a_mode_or_profiler_sees_goes_through_the_dispatcher(
    monkeypatch,
) -> None:
    monkeypatch.setattr(gpu, "BYPASSING_DEVICES", (DEVICE,))
    x = torch.ones(3, device=DEVICE)
    assert gpu.may_bypass_dispatcher(x, None, torch.nn.Parameter(x))
    assert not gpu.may_bypass_dispatcher(x, x.to("meta"))
    assert not gpu.may_bypass_dispatcher(x, torch._efficientzerotensor(3, device=DEVICE))
    assert not gpu.may_bypass_dispatcher(torch.complex(x, x).conj().imag)
    with torch.autograd.profiler.profile():
        assert not gpu.may_bypass_dispatcher(x)
    with TorchDispatchMode():
        assert not gpu.may_bypass_dispatcher(x)
    seen = []
    torch.func.vmap(lambda each: seen.append(gpu.may_bypass_dispatcher(each)) or each)(x)
    assert seen == [False]


@pytest.mark.parametrize("past_the_dispatcher", [False, True])
def test_the_front_end_reaches_the_kernels(
    past_the_dispatcher, in_place_of_the_cpu, monkeypatch
) -> None:
    monkeypatch.setattr(gpu, "BYPASSING_DEVICES", ("cpu",) if past_the_dispatcher else ())
    (x, weight, bias), dy = a_problem(torch.float32, (2, 16, 5), axis=1)
    y = ours.layer_norm(x, (16,), weight, bias, axis=1)
    got = torch.autograd.grad(y, (x, weight, bias), dy, create_graph=True)
    exact = [each.detach().double().requires_grad_() for each in (x, weight, bias)]
    moved = formula([exact[0].movedim(1, -1), *exact[1:]]).movedim(-1, 1)
    right = torch.autograd.grad(moved, exact, dy.double(), create_graph=True)
    for mine, theirs in zip(got, right, strict=True):
        close(mine.double(), theirs, torch.float32)
    second = torch.autograd.grad(got[0].square().sum(), x)[0]
    expected = torch.autograd.grad(right[0].square().sum(), exact[0])[0]
    torch.testing.assert_close(second.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("past_the_dispatcher", [False, True])
def test_the_front_end_reaches_the_kernels_with_parameters_over_kept_axes(
    past_the_dispatcher, in_place_of_the_cpu, monkeypatch
) -> None:
    monkeypatch.setattr(gpu, "BYPASSING_DEVICES", ("cpu",) if past_the_dispatcher else ())
    (x, _, _), dy = a_problem(torch.float32, (2, 5, 3, 16))
    scale, shift = torch.randn(2, 2, 1, 1, 16, device=DEVICE)
    per_head = torch.randn(3, 16, device=DEVICE)
    for weight, bias in ((scale, shift), (per_head, shift)):
        given = [x, weight.requires_grad_(), bias.requires_grad_()]
        y = ours.layer_norm(x, (16,), weight, bias)
        got = torch.autograd.grad(y, given, dy)
        exact = [each.detach().double().requires_grad_() for each in given]
        right = torch.autograd.grad(formula(exact), exact, dy.double())
        for mine, theirs in zip(got, right, strict=True):
            close(mine.double(), theirs, torch.float32)


def test_other_types_and_shapes_are_errors_that_say_what_to_do() -> None:
    x = torch.ones(2, 3, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"call it with x\.float\(\)"):
        operators.layer_norm(x.int(), None, None, [-1], 1e-5)
    with pytest.raises(RuntimeError, match="same shape as normalized_shape"):
        operators.layer_norm(x, torch.ones(2, device=DEVICE), None, [-1], 1e-5)
    with pytest.raises(RuntimeError, match="same shape as normalized_shape"):
        operators.layer_norm(x[:, None], torch.ones(2, 3, device=DEVICE), None, [-1], 1e-5)
    with pytest.raises(RuntimeError, match="one shape for both"):
        operators.layer_norm(x, torch.ones_like(x), torch.ones(3, device=DEVICE), [-1], 1e-5)
    with pytest.raises(RuntimeError, match="same shape as normalized_shape"):
        gpu.native_layer_norm(x, [3], torch.ones_like(x), None, 1e-5)
    with pytest.raises(RuntimeError, match="one device"):
        operators.layer_norm(x, torch.ones(3, device="meta"), None, [-1], 1e-5)
    with pytest.raises(RuntimeError, match=r"pass dy\.to\("):
        operators.rms_norm_backward(x.to("meta"), x, x[:, :1], None, [-1], 1e-5, False, [True] * 2)
    with pytest.raises(RuntimeError, match=r"pass dy\.to\(x\.dtype\)"):
        operators.rms_norm_backward(x.half(), x, x[:, :1], None, [-1], 1e-5, False, [True, False])


def test_rows_longer_than_2_to_the_28_are_an_error() -> None:
    x = torch.ones(1, device=DEVICE).expand(1, 2**31)
    with pytest.raises(RuntimeError, match=r"at most 268435456 on a GPU: normalize x\.cpu\(\)"):
        operators.layer_norm(x, None, None, [-1], 1e-5)


def test_the_compiler_traces_the_checks_of_a_gpu_tensor() -> None:
    def ask(x):
        x, _, _ = gpu.as_under_autocast(x, None, None, centered=False)
        return x + 1 if gpu.arguments.has_triton() else x

    x = torch.zeros(2)
    assert torch.equal(torch.compile(ask, fullgraph=True, backend="eager")(x), x + 1)


@pytest.mark.parametrize("centered", [False, True])
def test_autocast_widens_what_pytorchs_own_does(monkeypatch, centered) -> None:
    x = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, float=lambda: "widened")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    for widens in (False, True):
        monkeypatch.setattr(gpu, "WIDENS_RMS_NORM", widens)
        got, _, _ = gpu.as_under_autocast(x, None, None, centered=centered)
        assert (got == "widened") is (centered or widens)


def test_a_first_launch_into_a_graph_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch.Tensor, "device", torch.device("cuda", 0))
    with pytest.raises(RuntimeError, match="make the call once before"):
        gpu_launch.launch(None, 1, (torch.ones(2, device=DEVICE),), 4)


def test_without_triton_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(gpu.arguments, "has_triton", lambda: False)
    with pytest.raises(RuntimeError, match=r"layernorm\[triton\]"):
        operators.layer_norm(torch.ones(2, 3, device=DEVICE), None, None, [-1], 1e-5)
