"""The contract, kept by the GPU kernels: the checks that the NumPy front end passes.

On a GPU all cases run. The interpreter takes tenths of a second for each, and runs a sample.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch
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
    along_xhat_cases,
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
from triton_interpreter import INTERPRETED, every
from values import TYPES, dtype_of

from layernorm.torch.gpu import long_rows as gpu_long_rows

if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no GPU here", allow_module_level=True)  # once, not for each of 2,800 cases

ours = Kernels()


class OneForward(Kernels):
    """Runs the first forward only, and repeats its results: for checks of the same case."""

    results: Any = None

    def _forward(self, *arguments: Any, **options: Any) -> Any:
        if self.results is None:
            self.results = super()._forward(*arguments, **options)
        return self.results


def check(case: Case) -> None:
    impl = OneForward()
    check_forward(impl, case)
    check_backward(impl, case)


def short(cases: list[Case]) -> list[Case]:
    """Leave out long rows in the interpreter."""
    return [case for case in cases if case.cols <= 1025] if INTERPRETED else cases


def each(cases: Sequence[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


@each(every(31, short(of_each_kind(value_cases))))
def test_results_are_within_their_bounds_for_every_kind_of_values(case: Case) -> None:
    check(case)


@each(every(17, short(of_each_kind(width_cases))))
def test_results_are_within_their_bounds_for_every_width(case: Case) -> None:
    check(case)


@each(every(31, short(of_each_kind(layout_cases, parameter_cases))))
def test_results_are_within_their_bounds_for_every_layout_and_parameter(case: Case) -> None:
    check(case)


@each(every(11, short(of_each_kind(eps_cases))))
def test_results_are_within_their_bounds_for_every_eps(case: Case) -> None:
    check(case)


@each([case for case in every(47, of_each_kind(dy_cases)) if case.dtype != "float64"])
def test_gradients_are_within_their_bounds_for_every_kind_of_dy(case: Case) -> None:
    check_backward(ours, case)


@each(every(13, of_each_kind(along_xhat_cases)))
def test_gradients_are_within_their_bounds_for_dy_along_xhat(case: Case) -> None:
    check_backward(ours, case)


# In tiles of their real size.
LONG = [
    # the sums of dweight and dbias do not fit beside dx
    Case("layer_norm", "float32", cols=5000, values="mean_2_to_20", rows=2),
    Case("layer_norm", "float32", cols=300, layout="channels_first"),
    # long rows
    Case("layer_norm", "float64", cols=8200, values="mean_2_to_20", rows=1),
    Case("layer_norm", "float32", cols=3000, layout="first_axis", values="mean_2_to_20"),
    Case("rms_norm", "bfloat16", cols=2049, layout="middle_axis", rows=1),
    Case("layer_norm", "float64", cols=1030, layout="middle_axis", rows=1),
]
# In small tiles. 100: the sums do not fit beside dx. 257 to 301: long rows.
SHORT = every(
    5,
    [
        Case(kind, dtype, cols, values=values, rows=2)
        for kind in KINDS
        for dtype in TYPES
        for cols, values in (
            *((100, "near_largest"), (100, "mean_1e4"), (300, "near_largest"), (300, "subnormals")),
            *((257, "mean_2_to_20"), (260, "outlier"), (257, "constant"), (301, "ordinary")),
            *((300, "first_is_outlier"), (260, "near_largest_one_sign")),
            *((260, "smallest_normals"), (260, "mixed")),
        )
    ],
)
SHORT_CHANNELS_FIRST = [
    # long rows, 15 in a tile, of many kinds of values; the last tile is ragged
    Case("layer_norm", "float32", 40, values="mixed", layout="channels_first"),
    Case("layer_norm", "float64", 40, values="mixed", layout="channels_first"),
    Case("rms_norm", "bfloat16", 40, values="mixed", layout="channels_first", parameters=""),
    Case("layer_norm", "float16", 40, layout="first_axis", parameters="weight zero_centered"),
    Case("layer_norm", "float32", 100, "near_largest", "first_axis"),
    Case("layer_norm", "bfloat16", 60, "mean_1e4", "middle_two_axes"),
    # one program a row
    *every(3, [Case("layer_norm", dtype, 20, layout="channels_first") for dtype in TYPES]),
    *every(3, [Case("layer_norm", dtype, 13, layout="axes_apart") for dtype in TYPES]),
]
SHORT_OTHERS = [
    Case("layer_norm", "float32", 300, layout="cols_reversed", rows=2),
    *(
        Case("layer_norm", dtype, 300, dy_values=values, rows=2)
        for dtype in ("float32", "bfloat16")
        for values in ("near_largest", "subnormals")
    ),
    *(
        Case(kind, dtype, 300, "two_values", dy_values="along_xhat", rows=9, parameters="")
        for kind in KINDS
        for dtype in ("float32", "float64")
    ),
]


@each(LONG)
def test_long_rows_are_within_their_bounds(case: Case) -> None:
    check(case)


def test_y_of_a_long_row_with_a_nearly_empty_last_block_is_within_its_bound() -> None:
    check_forward(ours, Case("layer_norm", "bfloat16", cols=16387, rows=1))


@each([*SHORT, *SHORT_CHANNELS_FIRST, *SHORT_OTHERS])
def test_short_rows_in_small_tiles_are_within_their_bounds(case: Case, small_tiles) -> None:
    check(case)


@pytest.mark.parametrize(
    ("parameters", "dtype"),
    every(3, list(product(["weight", "bias", "", "weight zero_centered"], TYPES))),
)
def test_parameters_of_long_rows_are_optional(parameters, dtype, small_tiles) -> None:
    check(Case(dtype=dtype, cols=260, rows=1, parameters=parameters))


@pytest.mark.parametrize("layout", ["contiguous", "channels_first"])
def test_the_mean_of_a_long_row_is_summed_up_once(layout, small_tiles, monkeypatch) -> None:
    """Another kernel may add in another order, and the squares are around the first one's mean."""
    launch = gpu_long_rows.launch

    def launch_and_lose_the_sums(kernel, programs, arguments, *others, **constants) -> None:
        launch(kernel, programs, arguments, *others, **constants)
        if kernel.__name__ == "long_row_squares":
            arguments[kernel.arg_names.index("sum_ptr")].fill_(np.nan)

    monkeypatch.setattr(gpu_long_rows, "launch", launch_and_lose_the_sums)
    check_forward(ours, Case(cols=300, values="mean_2_to_20", layout=layout, rows=2))


@pytest.mark.parametrize("values", ["mean_2_to_20", "ordinary", "constant"])
@pytest.mark.parametrize("cols", [63, 100, 300])
def test_a_residual_that_was_not_saved_is_recomputed(values, cols, small_tiles) -> None:
    check_backward(Kernels(residual=False), Case(cols=cols, values=values, rows=2))


def test_a_residual_is_recomputed_beside_rows_whose_statistics_are(small_tiles) -> None:
    case = Case(cols=40, values="mixed", layout="channels_first")
    check_backward(Kernels(residual=False), case)


@pytest.mark.parametrize("values", ["mean_1e4", "near_largest"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_saved(kind, dtype, values) -> None:
    check_statistics(ours, Case(kind, dtype, cols=67, values=values))


@pytest.mark.parametrize(("kind", "dtype"), every(3, list(product(KINDS, ["float32", "bfloat16"]))))
def test_many_rows_are_within_their_bounds(kind, dtype) -> None:
    # in the interpreter, more tiles than the 8 programs that share the sums
    rows, samples = (1030, 17) if INTERPRETED else (65537, 4096)
    check_backward(ours, Case(kind, dtype, cols=5, rows=rows))
    check_backward(ours, Case(kind, dtype, cols=48, rows=samples, layout="channels_first"))


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
        *(("contiguous", 300, 2), ("middle_axis", 67, 1)),  # long rows
    ],
)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_constant_row_gives_exactly_bias(dtype, layout, cols, rows, eps, small_tiles) -> None:
    case = Case(dtype=dtype, cols=cols, layout=layout, rows=rows, eps=eps)
    check_constant_rows_give_bias(ours, case)


@pytest.mark.parametrize(("cols", "rows"), [(19, 8), (300, 1)])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_constant_row_with_eps_0_has_rstd_0_and_dx_0(dtype, cols, rows, small_tiles) -> None:
    case = Case(dtype=dtype, cols=cols, rows=rows, values="constant", eps=0.0)
    x, dy, weight, bias = case.arrays()
    _, stats = forward(ours, case, x, weight, bias)
    assert (stats.rstd == 0).all()
    assert (backward(ours, case, dy, x, stats, weight)[0] == 0).all()


@pytest.mark.parametrize("cols", [19, 300])
@pytest.mark.parametrize("eps", [0.0, 1e-60])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_constant_row_of_subnormals_has_its_element_as_the_mean(
    dtype, eps, cols, small_tiles
) -> None:
    x = np.full((1, cols), 1e-39, dtype_of(dtype))
    y, stats = ours.layer_norm_forward(x, eps=eps)
    assert_equal_values(y, np.zeros_like(x), "y")
    assert (stats.mean == x[0, 0].astype(np.float32)).all()


# 19, 100, 257: each ends in padding lanes, where (x - mean) * rstd overflows.
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
    ("kind", "bad", "layout", "cols", "rows", "dtype"),
    every(
        5,
        [
            (*kind_and_bad, *shape, dtype)
            for kind_and_bad in (
                *(("layer_norm", np.nan), ("layer_norm", np.inf), ("rms_norm", -np.inf)),
            )
            for shape in (("contiguous", 5, 7), ("channels_first", 3, 1))
            for dtype in TYPES
        ],
    ),
)
def test_a_row_with_nan_or_infinity_is_nan_and_no_other_row_changes(
    kind, bad, layout, cols, rows, dtype
) -> None:
    case = Case(kind, dtype, cols, layout=layout, rows=rows)
    check_a_row_that_is_not_finite_stays_alone(ours, case, bad)


def test_sums_of_g_that_overflow_both_ways_are_recomputed() -> None:
    # infinity - infinity is NaN in the sum of g; eps leaves that of g * xhat small
    signs = np.repeat([1.0, -1.0, 0.0], [4, 4, 8])
    x = (1e-13 * signs).astype(np.float32)[None]
    dy = (3e38 * signs).astype(np.float32)[None]
    _, stats = ours.layer_norm_forward(x, eps=100.0)
    dx, _, _ = ours.layer_norm_backward(dy, x, stats)
    np.testing.assert_allclose(dx, dy / 10, rtol=0, atol=5 * np.spacing(np.float32(3e37)))


# In blocks of 128: 0 and 127 at the ends of the first, 299 in the last.
@pytest.mark.parametrize("col", [0, 127, 128, 299])
def test_a_long_row_with_nan_or_infinity_is_nan(col, small_tiles) -> None:
    case = Case(cols=300, rows=2)
    x, dy, weight, bias = case.arrays()
    x[1, col] = np.inf if col % 2 else np.nan
    y, stats = forward(ours, case, x, weight, bias)
    dx, _, _ = backward(ours, case, dy, x, stats, weight, need_dweight=False, need_dbias=False)
    assert np.isnan(y[1]).all()
    assert np.isnan(dx[1]).all()
    assert np.isfinite(y[0]).all()
    assert np.isfinite(dx[0]).all()


@pytest.mark.parametrize(("kind", "bad", "col"), [(KINDS[0], np.nan, 39), (KINDS[1], np.inf, 0)])
def test_a_long_row_with_nan_changes_none_of_its_neighbors(kind, col, bad, small_tiles) -> None:
    case = Case(kind, cols=40, layout="first_axis")
    x, dy, weight, bias = case.arrays()
    expected = forward_and_backward(ours, case, x, dy, weight, bias)
    x[col, 2] = bad
    got = forward_and_backward(ours, case, x, dy, weight, bias)
    others = np.arange(x.shape[1]) != 2
    for name in ("y", "dx"):
        assert np.isnan(got[name][:, 2]).all()
        assert_same_bits(got[name][:, others], expected[name][:, others], name)


@pytest.mark.parametrize("layout", ["contiguous", "channels_first", "axes_apart"])
def test_zero_strides_give_the_right_answer(layout) -> None:
    check_zero_strides(ours, Case(cols=48, layout=layout))
