"""docs/specification.md, "Accuracy", in ulp of the definition."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from calls import backward, forward
from cases import (
    Case,
    along_xhat_cases,
    dy_cases,
    eps_cases,
    kept_axes_cases,
    layout_cases,
    of_each_kind,
    parameter_cases,
    value_cases,
    width_cases,
)
from checkers import check_backward, check_forward, judge_gradients, judge_y
from values import dtype_of

import layernorm.numpy as ours
from layernorm import accuracy, reference


def each(*cases: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


@each(*of_each_kind(width_cases))
def test_y_is_within_its_bound_for_every_width(case: Case) -> None:
    check_forward(ours, case)


@each(*of_each_kind(width_cases))
def test_gradients_are_within_their_bounds_for_every_width(case: Case) -> None:
    check_backward(ours, case)


@each(*of_each_kind(value_cases))
def test_y_is_within_its_bound_for_every_kind_of_values(case: Case) -> None:
    check_forward(ours, case)


@each(*of_each_kind(value_cases))
def test_gradients_are_within_their_bounds_for_every_kind_of_values(case: Case) -> None:
    check_backward(ours, case)


@each(*of_each_kind(dy_cases))
def test_gradients_are_within_their_bounds_for_every_kind_of_dy(case: Case) -> None:
    check_backward(ours, case)


@each(*of_each_kind(along_xhat_cases))
def test_gradients_are_within_their_bounds_for_dy_along_xhat(case: Case) -> None:
    check_backward(ours, case)


def dx_error_of(
    kind: str, x, dy, weight, axis: int, zero_centered_weight: bool = True, eps: float = 1e-6
) -> float:
    centered = {"zero_centered_weight": zero_centered_weight}
    definition = {"axis": axis, "eps": eps, **centered}
    _, stats = getattr(ours, f"{kind}_forward")(x, weight, **definition)
    dx = getattr(ours, f"{kind}_backward")(dy, x, stats, weight, **centered)[0]
    return accuracy.dx_error(dx, dy, x, weight, kind=kind, **definition)


# A strided row is summed in one lane, and g * xhat may be large beside their sum.
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_dx_of_short_strided_rows_is_within_its_bound(kind, dtype) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 400_000)).astype(dtype)
    weight = (0.5 * rng.standard_normal(9)).astype(dtype)
    dy = np.broadcast_to(rng.standard_normal(x.shape[1:]).astype(dtype), x.shape)
    assert dx_error_of(kind, x, dy, weight, 0) <= accuracy.BOUNDS[dtype].dx


# Where dy is far from zero, an RMS norm's dx is nearly twice its scale, and so are its roundings.
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [0, 1])
def test_dx_that_is_large_beside_its_scale_is_within_its_bound(axis, dtype) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((5, 200_000)).astype(dtype)
    dy = (1e4 + rng.standard_normal(x.shape)).astype(dtype)
    weight = (1e-3 * rng.standard_normal(5)).astype(dtype)
    if axis == 1:
        x, dy = np.ascontiguousarray(x.T), np.ascontiguousarray(dy.T)
    assert dx_error_of("rms_norm", x, dy, weight, axis) <= accuracy.BOUNDS[dtype].dx


# Each product dy * weight is of one size, 2**100 or 2**905, which takes scaled rows. Its factors
# come from all of the type's range.
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_dx_of_factors_far_apart_is_within_its_bound(kind, axis, dtype) -> None:
    product, least, most = (905, -118, 1020) if dtype == "float64" else (100, -26, 124)
    rng = np.random.default_rng(5)
    exponents = np.linspace(least, most, 40).round()
    dy = (rng.uniform(1, 2, (6, 40)) * 2**exponents).astype(dtype)
    weight = (rng.uniform(1, 2, 40) * 2 ** (product - exponents)).astype(dtype)
    x = rng.standard_normal(dy.shape).astype(dtype)
    if axis == 0:
        x, dy = np.ascontiguousarray(x.T), np.ascontiguousarray(dy.T)
    assert dx_error_of(kind, x, dy, weight, axis, False) <= accuracy.BOUNDS[dtype].dx


# x takes scaled rows. Where dy or the weight is 0 the other is huge; the other products are tiny,
# or of factors from both ends of the range.
@pytest.mark.parametrize(
    ("dtype", "of_x", "huge", "factors"),
    [
        ("float32", 1e-24, 1e30, (1e-18, 1e-18)),
        ("float32", 1e-24, 2.0**125, (2.0**-140, 2.0**125)),
        ("float64", 1e200, 1e300, (1e-150, 1e-150)),
        ("float64", 1e200, 2.0**1021, (2.0**-1060, 2.0**1021)),
    ],
)
@pytest.mark.parametrize("axis", [0, 1])
def test_dx_of_huge_factors_beside_zeros_is_within_its_bound(
    axis, dtype, of_x, huge, factors
) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((6, 40))
    dy, weight = rng.uniform(1, 2, (6, 40)), rng.uniform(1, 2, 40)
    dy *= np.resize([huge, 0, factors[0]], 40)
    weight *= np.resize([0, huge, factors[1]], 40)
    x, dy, weight = (each.astype(dtype) for each in (of_x * x, dy, weight))
    if axis == 0:
        x, dy = np.ascontiguousarray(x.T), np.ascontiguousarray(dy.T)
    error = dx_error_of("layer_norm", x, dy, weight, axis, False, eps=0)
    assert error <= accuracy.BOUNDS[dtype].dx


# The products dy * weight are subnormal, and rstd is large, so dx is not.
@pytest.mark.parametrize(
    ("dtype", "of_x", "factor"), [("float32", 1e-18, 1e-20), ("float64", 1e-120, 1e-157)]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_dx_of_subnormal_products_is_within_its_bound(axis, dtype, of_x, factor) -> None:
    rng = np.random.default_rng(5)
    x, dy = rng.standard_normal((2, 40, 40))
    weight = rng.standard_normal(40)
    x, dy, weight = (
        (scale * each).astype(dtype) for scale, each in ((of_x, x), (factor, dy), (factor, weight))
    )
    assert dx_error_of("rms_norm", x, dy, weight, axis, False, eps=0) <= accuracy.BOUNDS[dtype].dx


@pytest.mark.parametrize("eps", [1e60, 1e78, 1e84, 1e120])
@pytest.mark.parametrize("axis", [0, 1])
def test_dx_beside_a_huge_eps_is_within_its_bound(axis, eps) -> None:
    x, dy = np.random.default_rng(5).standard_normal((2, 33, 33)).astype("float32")
    dy *= np.float32(1e30)
    assert dx_error_of("layer_norm", x, dy, None, axis, False, eps) <= accuracy.BOUNDS["float32"].dx


@each(*of_each_kind(layout_cases))
def test_y_is_within_its_bound_for_every_axis_and_layout(case: Case) -> None:
    check_forward(ours, case)


@each(*of_each_kind(layout_cases))
def test_gradients_are_within_their_bounds_for_every_axis_and_layout(case: Case) -> None:
    check_backward(ours, case)


@each(*of_each_kind(eps_cases))
def test_y_is_within_its_bound_for_every_eps(case: Case) -> None:
    check_forward(ours, case)


@each(*of_each_kind(eps_cases))
def test_gradients_are_within_their_bounds_for_every_eps(case: Case) -> None:
    check_backward(ours, case)


# Equal terms round alike, and their roundings add up in each lane of a sum.
@pytest.mark.parametrize("cols", [7, 16, 92])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_y_of_rows_of_two_values_is_within_its_bound(kind, dtype, axis, cols) -> None:
    rng = np.random.default_rng(cols)
    rows = 100_000 // cols
    distance, middle = rng.uniform(0.5, 4, (rows, 1)), rng.uniform(-2, 2, (rows, 1))
    x = middle + np.where(rng.random((rows, cols)) < 0.5, -distance, distance)
    x = np.ascontiguousarray(x.T if axis == 0 else x).astype(dtype)
    weight, bias = (rng.uniform(*ends, cols).astype(dtype) for ends in ((1.5, 2), (-1, 1)))
    parameters = (weight,) if kind == "rms_norm" else (weight, bias)
    y = getattr(ours, kind)(x, *parameters, axis=axis, eps=1e-6)
    error = accuracy.y_error(y, x, *parameters, axis=axis, eps=1e-6, kind=kind)
    assert error <= accuracy.BOUNDS[dtype].y


# So do those of all lanes, where a row is of runs of equal elements.
@pytest.mark.parametrize(("first", "cols"), [(1024, 2048), (64, 700), (700, 768)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_y_of_rows_of_two_runs_is_within_its_bound(kind, dtype, first, cols) -> None:
    values = np.random.default_rng(cols).standard_normal((700, 2)).astype(dtype)
    x = np.where(np.arange(cols) < first, values[:, :1], values[:, 1:])
    error = accuracy.y_error(getattr(ours, kind)(x, eps=1e-6), x, eps=1e-6, kind=kind)
    assert error <= accuracy.BOUNDS[dtype].y


@each(*of_each_kind(parameter_cases))
def test_y_is_within_its_bound_for_every_set_of_parameters(case: Case) -> None:
    check_forward(ours, case)


@each(*of_each_kind(parameter_cases))
def test_gradients_are_within_their_bounds_for_every_set_of_parameters(case: Case) -> None:
    check_backward(ours, case)


@each(*of_each_kind(kept_axes_cases))
def test_y_is_within_its_bound_for_parameters_over_kept_axes(case: Case) -> None:
    check_forward(ours, case)


@each(*of_each_kind(kept_axes_cases))
def test_gradients_are_within_their_bounds_for_parameters_over_kept_axes(case: Case) -> None:
    check_backward(ours, case)


# Each two of kind, type and layout meet.
each_pair = pytest.mark.parametrize(
    ("kind", "dtype", "layout"),
    [
        ("layer_norm", "float32", "contiguous"),
        ("layer_norm", "bfloat16", "channels_first"),
        ("rms_norm", "float32", "channels_first"),
        ("rms_norm", "bfloat16", "contiguous"),
    ],
)


@each_pair
def test_dweight_and_dbias_are_within_their_bounds_for_a_million_rows(kind, dtype, layout) -> None:
    rows = 10**6 if layout == "contiguous" else 10**6 // 15
    check_backward(ours, Case(kind, dtype, cols=5, layout=layout, rows=rows))


# Where the terms of a sum are equal, so are the roundings of its additions, and they add up.
@each_pair
def test_dweight_and_dbias_are_within_their_bounds_for_many_equal_rows(kind, dtype, layout) -> None:
    rows = 150_000 if layout == "contiguous" else 150_000 // 15
    case = Case(  # 21: vectors, and a tail
        kind, dtype, cols=21, layout=layout, rows=rows, parameter_dtype="float32"
    )
    x, dy, weight, bias = case.arrays()
    for each in (x, dy):
        one_row = np.moveaxis(each, case.axis, -1).reshape(-1, case.cols)[0].copy()
        np.moveaxis(each, case.axis, -1)[...] = one_row
    _, stats = forward(ours, case, x, weight, bias)
    judge_gradients(case, backward(ours, case, dy, x, stats, weight), dy, x, weight)


SHORT_ROWS = [(1, 1.0), (2, 1.0), (3, 1.0), (5, 1.0), (9, 1.0), (7, 1e160), (7, 1e-160)]


@pytest.mark.parametrize(("cols", "scale"), SHORT_ROWS)
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_rstd_of_float64_rows_is_within_two_ulp(kind, cols, scale) -> None:
    """Its error counts twice in dx, where dx is small because dy lies along xhat."""
    x = scale * np.random.default_rng(cols).standard_normal((60_000 // cols, cols))
    _, stats = forward(ours, Case(kind, "float64", eps=1e-5), x, None, None)
    centered = kind == "layer_norm"
    *_, exact = reference.statistics(x, eps=1e-5, centered=centered, exact=True)
    error = np.abs(stats.rstd - exact)
    assert (error <= 2 * np.spacing(exact.astype(np.float64))).all()


# One element is nearly twice the type's largest number from the mean.
@each_pair
def test_rows_whose_differences_overflow_are_within_their_bounds(kind, dtype, layout) -> None:
    case = Case(kind, dtype, cols=400, layout=layout)
    x, dy, weight, bias = case.arrays()
    largest = float(ml_dtypes.finfo(dtype_of(dtype)).max)
    np.moveaxis(x, case.axis, -1)[...] = -largest
    np.moveaxis(x, case.axis, -1)[..., 3] = largest
    y, stats = forward(ours, case, x, weight, bias)
    judge_y(case, y, x, weight, bias)
    judge_gradients(case, backward(ours, case, dy, x, stats, weight), dy, x, weight)


# Each term of dweight is subnormal, or zero in the last rows; together they could lose many ulp.
@each_pair
def test_dweight_of_tiny_terms_is_within_its_bound(kind, dtype, layout) -> None:
    case = Case(kind, dtype, cols=48, layout=layout, rows=3000)
    x, dy, weight, bias = case.arrays()
    rows = np.moveaxis(dy, case.axis, -1).reshape(-1, case.cols)
    tiny = np.zeros_like(rows)
    smallest = float(ml_dtypes.finfo(dtype_of(dtype)).smallest_subnormal)
    tiny[:-100] = (np.round(20 * rows[:-100].astype("float64")) * smallest).astype(dy.dtype)
    np.moveaxis(dy, case.axis, -1)[...] = tiny.reshape(np.moveaxis(dy, case.axis, -1).shape)
    _, stats = forward(ours, case, x, weight, bias)
    judge_gradients(case, backward(ours, case, dy, x, stats, weight), dy, x, weight)


# The terms of dweight are tiny, and the means far from zero: xhat needs the residual, not given.
@pytest.mark.parametrize("axis", [0, 1])
def test_dweight_of_tiny_terms_without_residual_is_within_its_bound(axis) -> None:
    rng = np.random.default_rng(5)
    x = (2.0**20 + rng.standard_normal((300, 300))).astype("float32")
    dy = (1e-40 * rng.standard_normal(x.shape)).astype("float32")
    weight = np.ones(300, "float32")
    _, stats = ours.layer_norm_forward(x, weight, axis=axis, eps=1e-6)
    _, dweight, _ = ours.layer_norm_backward(dy, x, replace(stats, residual=None), weight)
    error = accuracy.dweight_error(dweight, dy, x, axis=axis, eps=1e-6, kind="layer_norm")
    assert error <= accuracy.BOUNDS["float32"].parameter
