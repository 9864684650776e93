"""The contract, kept by the GPU kernels: the checks that the NumPy front end passes.

A part of its cases, since the interpreter takes a tenth of a second for each; all on a GPU.
"""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from as_numpy_triton import Kernels
from calls import (
    assert_equal_values,
    assert_same_bits,
    backward,
    forward,
    forward_and_backward,
)
from cases import (
    KINDS,
    Case,
    dy_cases,
    eps_cases,
    layout_cases,
    of_each_kind,
    parameter_cases,
    value_cases,
    width_cases,
)
from checkers import (
    check_a_row_that_is_not_finite_stays_alone,
    check_backward,
    check_constant_rows_give_bias,
    check_forward,
    check_statistics,
    check_zero_strides,
)
from triton_interpreter import INTERPRETED
from values import TYPES, dtype_of

ours = Kernels()


def some(cases: list[Case], step: int) -> list[Case]:
    """Every `step`-th case in the interpreter, none of them wide; all on a GPU."""
    if not INTERPRETED:
        return cases
    return [case for case in cases if case.cols <= 1025][::step]


def each(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


# Steps without a factor in common with the families' periods, so that each type and kind comes up.
@each(some(of_each_kind(value_cases), 31))
def test_results_are_within_their_bounds_for_every_kind_of_values(case: Case) -> None:
    check_forward(ours, case)
    check_backward(ours, case)


@each(some(of_each_kind(width_cases), 17))
def test_results_are_within_their_bounds_for_every_width(case: Case) -> None:
    check_forward(ours, case)
    check_backward(ours, case)


@each(some(of_each_kind(layout_cases, parameter_cases), 31))
def test_results_are_within_their_bounds_for_every_layout_and_parameter(case: Case) -> None:
    check_forward(ours, case)
    check_backward(ours, case)


@each(some(of_each_kind(eps_cases), 11))
def test_results_are_within_their_bounds_for_every_eps(case: Case) -> None:
    check_forward(ours, case)
    check_backward(ours, case)


@each([case for case in some(of_each_kind(dy_cases), 47) if case.dtype != "float64"])
def test_gradients_are_within_their_bounds_for_every_kind_of_dy(case: Case) -> None:
    check_backward(ours, case)


# In tiles as they are: 5000: dweight and dbias take a kernel of their own. 16387: rows in chunks,
# the last one nearly empty.
WIDE = [
    Case("layer_norm", "float32", cols=5000, values="mean_2_to_20", rows=2),
    Case("layer_norm", "bfloat16", cols=16387, rows=1),
    Case("layer_norm", "float64", cols=8200, values="mean_2_to_20", rows=1),
    Case("layer_norm", "float32", cols=300, layout="channels_first"),  # no room for the sums
    # channels first in chunks of several rows
    Case("layer_norm", "float32", cols=3000, layout="first_axis", values="mean_2_to_20"),
    Case("rms_norm", "bfloat16", cols=2049, layout="middle_axis", rows=1),
    Case("layer_norm", "float64", cols=1030, layout="middle_axis", rows=1),
]
# In small ones: 100: no room for the sums; 257, 260, 300: in chunks.
SMALL = [
    Case(kind, dtype, cols, values=values, rows=2)
    for kind in KINDS
    for dtype in TYPES
    for cols, values in (
        *((100, "near_largest"), (100, "mean_1e4"), (300, "near_largest"), (300, "subnormals")),
        *((257, "mean_2_to_20"), (260, "outlier"), (257, "constant"), (300, "first_is_outlier")),
        *((301, "ordinary"), (260, "near_largest_one_sign"), (260, "smallest_normals")),
    )
]
SMALL = SMALL[::4] if INTERPRETED else SMALL
SMALL += [
    Case("layer_norm", dtype, cols, layout=layout)
    for dtype in TYPES
    for cols, layout in ((20, "channels_first"), (13, "axes_apart"), (300, "cols_reversed"))
]
# Channels first in chunks; 15 rows side by side: of many kinds of values, and a ragged last tile.
SMALL += [
    Case(kind, dtype, 40, values="mixed", layout="channels_first", parameters=given)
    for kind, dtype, given in (
        *(("layer_norm", "float32", "weight bias"), ("layer_norm", "float64", "weight bias")),
        *(("rms_norm", "bfloat16", ""), ("layer_norm", "float16", "weight zero_centered")),
    )
]
SMALL += [
    Case("layer_norm", "float32", 100, "near_largest", "first_axis"),
    Case("layer_norm", "bfloat16", 60, "mean_1e4", "middle_two_axes"),
]
SMALL += [
    Case("layer_norm", dtype, 300, dy_values=values, rows=2)
    for dtype in ("float32", "bfloat16")
    for values in ("near_largest", "subnormals")
]


@each(WIDE)
def test_rows_too_wide_for_one_program_are_within_their_bounds(case: Case) -> None:
    check_forward(ours, case)
    check_backward(ours, case)


@each(SMALL)
def test_narrow_rows_in_chunks_are_within_their_bounds(case: Case, small_tiles) -> None:
    check_forward(ours, case)
    check_backward(ours, case)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("parameters", ["weight", "bias", "", "weight zero_centered"])
def test_parameters_of_rows_in_chunks_are_optional(parameters, dtype, small_tiles) -> None:
    check_forward(ours, Case(dtype=dtype, cols=260, rows=1, parameters=parameters))
    check_backward(ours, Case(dtype=dtype, cols=260, rows=1, parameters=parameters))


@pytest.mark.parametrize("values", ["mean_2_to_20", "ordinary", "constant"])
@pytest.mark.parametrize("cols", [63, 100, 300])
def test_a_residual_that_was_not_saved_is_worked_out_again(values, cols, small_tiles) -> None:
    check_backward(Kernels(residual=False), Case(cols=cols, values=values, rows=2))


def test_a_residual_is_worked_out_for_the_neighbors_of_rows_measured_again(small_tiles) -> None:
    case = Case(cols=40, values="mixed", layout="channels_first")
    check_backward(Kernels(residual=False), case)


@pytest.mark.parametrize("values", ["mixed", "near_largest"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_saved(kind, dtype, values) -> None:
    if values == "mixed":  # with an rstd that float32 cannot hold
        values = "mean_1e4"
    check_statistics(ours, Case(kind, dtype, cols=67, values=values))


# 65537 rows and a shape of several axes; the interpreter has fewer.
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_many_rows_are_within_their_bounds(kind, dtype) -> None:
    rows = 1000 if INTERPRETED else 65537
    check_backward(ours, Case(kind, dtype, cols=5, rows=rows))
    check_backward(ours, Case(kind, dtype, cols=48, rows=rows // 16, layout="channels_first"))


@pytest.mark.parametrize(("shape", "axis"), [((0, 8), -1), ((3, 0, 8), -1), ((0, 8, 5), 1)])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_zero_rows_give_empty_y_and_dx_and_zero_dweight_and_dbias(kind, dtype, shape, axis) -> None:
    x = np.empty(shape, dtype_of(dtype))
    weight = np.ones(8, x.dtype)
    y, stats = getattr(ours, f"{kind}_forward")(x, weight, axis=axis)
    dx, *parameters = getattr(ours, f"{kind}_backward")(x, x, stats, weight)
    assert y.shape == dx.shape == shape
    for gradient in parameters:
        assert_same_bits(gradient, np.zeros(8, x.dtype), "gradient of a parameter")


@pytest.mark.parametrize(("shape", "axis"), [((4, 0), -1), ((0, 0), 1), ((2, 0, 3), 1)])
def test_a_zero_size_normalized_axis_gives_an_empty_result(shape, axis) -> None:
    x, weight = np.empty(shape, np.float32), np.empty(0, np.float32)
    y, stats = ours.layer_norm_forward(x, weight, axis=axis)
    dx, *parameters = ours.layer_norm_backward(x, x, stats, weight)
    assert y.shape == dx.shape == shape
    assert all(gradient.shape == (0,) for gradient in parameters)


@pytest.mark.parametrize("layout", ["contiguous", "channels_first"])
@pytest.mark.parametrize("values", ["ordinary", "near_largest", "subnormals"])
@pytest.mark.parametrize("dtype", TYPES)
def test_one_element_gives_exactly_bias(dtype, layout, values) -> None:
    for eps in (0.0, 1e-5):
        case = Case(dtype=dtype, cols=1, layout=layout, values=values, eps=eps)
        x, _, weight, bias = case.arrays()
        y, _ = forward(ours, case, x, weight, bias)
        assert_equal_values(y, np.full_like(y, bias.item()), "y")


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize(
    ("layout", "cols", "rows"),
    [
        *(("contiguous", 3, 8), ("contiguous", 67, 8), ("channels_first", 13, 2)),  # 1/n is rounded
        *(("contiguous", 300, 2), ("middle_axis", 67, 1)),  # and in chunks
    ],
)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_constant_row_gives_exactly_bias(dtype, layout, cols, rows, eps, small_tiles) -> None:
    case = Case(dtype=dtype, cols=cols, layout=layout, rows=rows, eps=eps)
    check_constant_rows_give_bias(ours, case)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_constant_row_with_eps_0_has_rstd_0_and_dx_0(dtype, small_tiles) -> None:
    for cols in (19, 300):
        case = Case(dtype=dtype, cols=cols, rows=8, values="constant", eps=0.0)
        x, dy, weight, bias = case.arrays()
        _, stats = forward(ours, case, x, weight, bias)
        assert (stats.rstd == 0).all()
        assert (backward(ours, case, dy, x, stats, weight)[0] == 0).all()


@pytest.mark.parametrize("eps", [0.0, 1e-60])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_constant_row_of_subnormals_has_its_element_as_the_mean(dtype, eps, small_tiles) -> None:
    for cols in (19, 300):
        x = np.full((2, cols), 1e-39, dtype_of(dtype))
        y, stats = ours.layer_norm_forward(x, eps=eps)
        assert_equal_values(y, np.zeros_like(x), "y")
        assert (stats.mean == x[0, 0].astype(np.float32)).all()


# 19, 100, 257: behind the last column of each is some padding, where x - mean overflows times rstd.
@pytest.mark.parametrize("cols", [19, 100, 257])
def test_a_constant_row_of_large_numbers_has_a_finite_dx(cols, small_tiles) -> None:
    x = np.full((2, cols), 3e38, np.float32)
    dy = np.random.default_rng(cols).normal(size=x.shape).astype(np.float32)
    _, stats = ours.layer_norm_forward(x)
    dx, _, _ = ours.layer_norm_backward(dy, x, stats)
    expected = (dy - dy.mean(-1, keepdims=True, dtype=np.float64)) / np.sqrt(1e-5)
    bound = 5 * np.spacing(np.float32(np.abs(dy).max() / np.sqrt(1e-5)))
    np.testing.assert_allclose(dx, expected, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("kind", "bad"), [("layer_norm", np.nan), ("layer_norm", np.inf), ("rms_norm", -np.inf)]
)
@pytest.mark.parametrize(
    ("layout", "cols", "rows"), [("contiguous", 5, 7), ("channels_first", 3, 1)]
)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_row_with_nan_or_infinity_is_nan_and_no_other_row_changes(
    kind, dtype, layout, cols, rows, bad
) -> None:
    case = Case(kind, dtype, cols, layout=layout, rows=rows)
    check_a_row_that_is_not_finite_stays_alone(ours, case, bad)


def test_a_sum_of_g_that_overflows_both_ways_is_made_again() -> None:
    # infinity - infinity is NaN in the sum of g; eps leaves that of g * xhat small
    signs = np.repeat([1.0, -1.0, 0.0], [4, 4, 8])
    x = (1e-13 * signs).astype(np.float32)[None]
    dy = (3e38 * signs).astype(np.float32)[None]
    _, stats = ours.layer_norm_forward(x, eps=100.0)
    dx, _, _ = ours.layer_norm_backward(dy, x, stats)
    np.testing.assert_allclose(dx, dy / 10, rtol=0, atol=5 * np.spacing(np.float32(3e37)))


@pytest.mark.parametrize("place", [0, 63, 64, 299])
def test_a_row_in_chunks_with_nan_is_nan_wherever_the_nan_stands(place, small_tiles) -> None:
    case = Case(cols=300, rows=2)
    x, dy, weight, bias = case.arrays()
    x[1, place] = np.inf if place % 2 else np.nan
    y, stats = forward(ours, case, x, weight, bias)
    dx, _, _ = backward(ours, case, dy, x, stats, weight)
    assert np.isnan(y[1]).all()
    assert np.isnan(dx[1]).all()
    assert np.isfinite(y[0]).all()
    assert np.isfinite(dx[0]).all()


@pytest.mark.parametrize(("kind", "bad", "place"), [(KINDS[0], np.nan, 39), (KINDS[1], np.inf, 0)])
def test_a_row_with_nan_changes_none_of_its_neighbors_in_chunks(
    kind, place, bad, small_tiles
) -> None:
    case = Case(kind, cols=40, layout="first_axis")
    x, dy, weight, bias = case.arrays()
    expected = forward_and_backward(ours, case, x, dy, weight, bias)
    x[place, 2] = bad
    got = forward_and_backward(ours, case, x, dy, weight, bias)
    others = np.arange(x.shape[1]) != 2
    for name in ("y", "dx"):
        assert np.isnan(got[name][:, 2]).all()
        assert_same_bits(got[name][:, others], expected[name][:, others], name)


@pytest.mark.parametrize("layout", ["contiguous", "channels_first", "axes_apart"])
def test_zero_strides_give_the_right_answer(layout) -> None:
    check_zero_strides(ours, Case(cols=48, layout=layout))
