"""A residual on a GPU: y is the norm of the stored total = x + residual; dx has dtotal added."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
from as_numpy_triton import DEVICE, Kernels
from calls import assert_same_bits, backward, forward
from cases import KINDS, Case, of_each_kind, residual_cases
from layouts import Array
from triton_interpreter import INTERPRETED, every
from values import TYPES

import layernorm.torch as ours
from layernorm import accuracy, reference
from layernorm.torch.arguments import Definition
from layernorm.torch.gpu import backward as gpu_backward
from layernorm.torch.gpu import forward as gpu_forward
from layernorm.torch.gpu import operators as gpu

if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no GPU here", allow_module_level=True)

kernels = Kernels()
each_kind = pytest.mark.parametrize("kind", KINDS)


def assert_same_numbers(got: Array, expected: Array, what: str) -> None:
    """Assert the same bits, but of NaNs."""
    is_nan = np.isnan(got.astype(np.float64)) & np.isnan(expected.astype(np.float64))
    assert_same_bits(np.where(is_nan, 0, got), np.where(is_nan, 0, expected), what)


def check(case: Case) -> None:
    """Compare with an addition before the norm, and one behind its backward."""
    x, dy, weight, bias = case.arrays()
    residual, dtotal = case.residual()
    y, total, stats = forward(kernels, case, x, weight, bias, residual=residual)
    assert_same_numbers(total, reference.add(x, residual), "total")
    expected_y, expected = forward(kernels, case, total, weight, bias)
    assert_same_bits(y, expected_y, "y")
    for name in ("mean", "rstd", "residual"):
        if getattr(expected, name) is not None:
            assert_same_bits(getattr(stats, name), getattr(expected, name), name)

    dx, *of_parameters = backward(kernels, case, dy, total, stats, weight, dtotal=dtotal)
    alone, *others = backward(kernels, case, dy, total, stats, weight)
    for name, got, right in zip(("dweight", "dbias"), of_parameters, others, strict=True):
        if right is not None:
            assert_same_bits(got, right, name)
    given = {"dtotal": dtotal, "kind": case.kind, **case.definition}
    error, bound = accuracy.dx_error(dx, dy, total, weight, **given), accuracy.BOUNDS[case.dtype].dx
    assert error <= bound, f"dx is {error:.3g} ulp off, allowed {bound}"
    if case.dtype in ("float32", "float64"):
        assert_same_numbers(dx, reference.add(alone, dtotal), "dx")


@pytest.mark.parametrize("case", every(7, of_each_kind(residual_cases)), ids=lambda case: case.id)
def test_results_are_those_of_an_addition_and_a_norm(case: Case) -> None:
    check(case)


# 100: the sums of dweight and dbias have a kernel of their own. 300, and 40 in channels first: long
# rows, whose total the first of several launches writes.
SMALL = [
    Case("layer_norm", "float32", 100, "mixed", rows=2),
    Case("layer_norm", "float32", 300, "near_largest", rows=2),
    Case("layer_norm", "bfloat16", 304, "mean_1e4", rows=3),
    Case("rms_norm", "float16", 301, "outlier", rows=2, parameters="weight zero_centered"),
    Case("rms_norm", "float64", 260, "subnormals", rows=1, parameters=""),
    Case("layer_norm", "float32", 40, "mixed", "channels_first", along=(0,)),
    Case("rms_norm", "float16", 20, "mixed", "channels_first"),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_results_are_those_of_an_addition_and_a_norm_in_small_tiles(case, small_tiles) -> None:
    check(case)


# 64: one program a row. 300: in small tiles a long row.
@pytest.mark.parametrize("cols", [64, 300])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_dx_is_rounded_once(dtype, cols, small_tiles) -> None:
    case = Case(dtype=dtype, cols=cols, rows=2)
    x, dy, weight, bias = case.arrays()
    _, dtotal = case.residual()
    _, stats = forward(kernels, case, x, weight, bias)
    dx = backward(kernels, case, dy, x, stats, weight, dtotal=dtotal)[0]
    alone = backward(kernels, case, dy, x, stats, weight)[0]
    assert (dx != reference.add(alone, dtotal)).mean() > 0.02


@pytest.mark.parametrize(("kind", "dtype"), list(zip(KINDS * 2, TYPES, strict=True)))
def test_an_infinite_sum_makes_its_row_nan(kind: str, dtype: str) -> None:
    case = Case(kind, dtype, cols=17, rows=3)
    x, _, weight, bias = case.arrays()
    x[1] = np.finfo(np.float64).max if dtype == "float64" else 6e4 if dtype == "float16" else 3e38
    y, total, _ = forward(kernels, case, x, weight, bias, residual=x)
    assert np.isinf(total[1]).all()
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[::2].astype(np.float64)).all()


@pytest.mark.parametrize("cols", [17, 300])
def test_nan_and_infinity_in_dtotal_stay_in_their_element(cols, small_tiles) -> None:
    case = Case("layer_norm", cols=cols, rows=2)
    x, dy, weight, bias = case.arrays()
    _, dtotal = case.residual()
    _, stats = forward(kernels, case, x, weight, bias)
    expected = backward(kernels, case, dy, x, stats, weight, dtotal=dtotal)[0]
    dtotal[0, 5], dtotal[1, 2] = np.nan, np.inf
    dx = backward(kernels, case, dy, x, stats, weight, dtotal=dtotal)[0]
    assert np.isnan(dx[0, 5])
    assert dx[1, 2] == np.inf
    dx[0, 5], dx[1, 2] = expected[0, 5], expected[1, 2]
    assert_same_bits(dx, expected, "the other elements of dx")


def a_tensor(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


# x, the residual, and the axis. 16: rows are read 16 bytes at a time, from aligned addresses.
LAYOUTS: dict[str, tuple[torch.Tensor, torch.Tensor, int]] = {
    "channels first, residual channels last": (
        a_tensor(2, 6, 3, 35),
        a_tensor(2, 6, 3, 35, seed=2).to(memory_format=torch.channels_last),
        1,
    ),
    "channels last, residual channels first": (
        a_tensor(2, 6, 3, 35).to(memory_format=torch.channels_last),
        a_tensor(2, 6, 3, 35, seed=2),
        1,
    ),
    # total is contiguous: x, not the results, takes a copy. 41: not read 16 bytes at a time
    "channels last with gaps": (
        a_tensor(2, 3, 35, 48)[..., :41].permute(0, 3, 1, 2),
        a_tensor(2, 41, 3, 35, seed=2),
        1,
    ),
    "heads in a projection": (
        a_tensor(2, 7, 3, 4, 16)[:, :, 1],
        a_tensor(2, 7, 3, 4, 16, seed=2)[:, :, 2],
        -1,
    ),
    "not aligned": (a_tensor(5, 16), a_tensor(81, seed=2)[1:].view(5, 16), -1),
    "expanded": (a_tensor(5, 16), a_tensor(1, 16, seed=2).expand(5, 16), -1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_residual_and_dtotal_of_any_strides_give_the_same_bits(name: str) -> None:
    x, residual, axis = LAYOUTS[name]
    definition = Definition((axis,), 1e-5)
    before = [each.clone() for each in (x, residual)]
    results = gpu_forward.forward(x, None, None, definition, addend=residual)
    for each, old in zip((x, residual), before, strict=True):
        assert torch.equal(each, old)
    y, total, *statistics = results
    assert torch.equal(total, x + residual)
    assert total.stride() == y.stride()
    for got, right in zip(
        results,
        gpu_forward.forward(x, None, None, definition, addend=residual.clone()),
        strict=True,
    ):
        assert torch.equal(got, right)
    for got, right in zip(
        (y, *statistics), gpu_forward.forward(total, None, None, definition), strict=True
    ):
        assert torch.equal(got, right)

    def dx(dtotal: torch.Tensor | None) -> torch.Tensor:
        given = (y, total, None, total.dtype, definition, [True, False, False], statistics)
        return gpu_backward.Backward(*given, dtotal=dtotal).run()[0]

    for dtotal in (residual, x):
        assert torch.equal(dx(dtotal), dx(None) + dtotal)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0)])
def test_no_elements(shape) -> None:
    x = a_tensor(*shape)
    y, total, *statistics = gpu.OPERATORS["add_layer_norm"](x, x, None, None, [-1], 1e-5)
    assert y.shape == total.shape == shape
    dx, *of_parameters = gpu.OPERATORS["add_layer_norm_backward"](
        *(y, y, total, *statistics, None, None, [-1], 1e-5, False, [True] * 3)
    )
    assert dx.shape == shape
    assert not any(each.any() for each in of_parameters)


@each_kind
def test_the_operators_have_the_bits_of_an_addition_and_the_plain_ones(kind: str) -> None:
    x, residual, dy, dtotal = (a_tensor(2, 3, 16, seed=seed) for seed in range(4))
    parameters = [a_tensor(16, seed=seed) for seed in (5, 6)][: 2 if kind == "layer_norm" else 1]
    options, need = ([-1], 1e-5, True), [True] * (1 + len(parameters))
    run = gpu.OPERATORS
    y, total, *statistics = run[f"add_{kind}"](x, residual, *parameters, *options)
    assert torch.equal(total, x + residual)
    for got, right in zip((y, *statistics), run[kind](total, *parameters, *options), strict=True):
        assert torch.equal(got, right)
    given = (total, *statistics, *parameters, *options, need)
    dx, *of_parameters = run[f"add_{kind}_backward"](dy, dtotal, *given)
    alone, *others = run[f"{kind}_backward"](dy, *given)
    assert torch.equal(dx, alone + dtotal)
    for got, right in zip(of_parameters, others, strict=True):
        assert torch.equal(got, right)
    nothing = run[f"add_{kind}_backward"](dy, dtotal, *given[:-1], [False] * len(need))
    assert [each.numel() for each in nothing] == [0] * len(need)


def test_other_shapes_types_and_devices_are_errors_that_say_what_to_do() -> None:
    x, run = a_tensor(2, 3), gpu.OPERATORS
    bad: list[tuple[Any, str]] = [
        (x[:, :2], r"residual has shape \[2, 2\].* expected those of x, \[2, 3\]"),
        (x[0], r"residual has shape \[3\].* expected those of x, \[2, 3\]"),
        (x.half(), r"residual has .* type torch.float16.*pass residual\.to\(x\.dtype\)"),
        (x.to("meta"), "residual is on meta .*one device"),
    ]
    for residual, words in bad:
        with pytest.raises(RuntimeError, match=words):
            run["add_rms_norm"](x, residual, None, [-1], 1e-5, False)
        with pytest.raises(RuntimeError, match=words.replace("residual", "dtotal")):
            run["add_rms_norm_backward"](
                *(x, residual, x, x[:, :1], None, [-1], 1e-5, False, [True, False])
            )


@pytest.mark.parametrize("past_the_dispatcher", [False, True])
@each_kind
def test_the_front_end_reaches_the_kernels(
    kind, past_the_dispatcher, in_place_of_the_cpu, monkeypatch
) -> None:
    monkeypatch.setattr(gpu, "BYPASSING_DEVICES", ("cpu",) if past_the_dispatcher else ())
    seen = []
    launch = gpu_forward.forward

    def watched(*arguments, **options):
        seen.append(options["addend"] is not None)
        return launch(*arguments, **options)

    monkeypatch.setattr(gpu_forward, "forward", watched)
    x, residual, dy, dtotal = (a_tensor(2, 16, 5, seed=seed) for seed in range(4))
    parameters = [a_tensor(16, seed=seed) for seed in (5, 6)][: 2 if kind == "layer_norm" else 1]
    for each in (x, residual, *parameters):
        each.requires_grad_()
    norm = getattr(ours, kind)
    y, total = norm(x, (16,), *parameters, residual=residual, axis=1)
    with torch.no_grad():
        for got, right in zip(
            norm(x, (16,), *parameters, residual=residual, axis=1), (y, total), strict=True
        ):
            assert torch.equal(got, right)
    assert seen == [True, True]
    dx, dresidual, *of_parameters = torch.autograd.grad(
        (y, total), (x, residual, *parameters), (dy, dtotal)
    )
    leaf = total.detach().requires_grad_()
    alone, *others = torch.autograd.grad(
        norm(leaf, (16,), *parameters, axis=1), (leaf, *parameters), dy
    )
    assert torch.equal(dx, alone + dtotal)
    assert torch.equal(dresidual, dx)
    for got, right in zip(of_parameters, others, strict=True):
        assert torch.equal(got, right)
