"""docs/specification.md, "Edges": each line of its table but more than 2^32 elements, which is in
test_many_elements.py."""

import numpy as np
import pytest
from calls import assert_equal_values, assert_same_bits, backward, forward, unchanged
from cases import EPS, KINDS, PARAMETERS, Case
from checkers import (
    check_a_row_that_is_not_finite_stays_alone,
    check_constant_rows_give_bias,
    check_every_element_is_written,
    check_in_place,
    check_other_types_are_rejected,
    check_partial_overlap_is_rejected,
    check_read_only_inputs,
    check_zero_strides,
)
from layouts import LAYOUTS, at_offset, poisoned, sliced, strided, unaligned
from values import TYPES, dtype_of

import layernorm.numpy as ours

each_kind = pytest.mark.parametrize("kind", KINDS)
each_type = pytest.mark.parametrize("dtype", TYPES)
paths = ("contiguous", "channels_first", "axes_apart")  # through the kernels
each_path = pytest.mark.parametrize("layout", paths)
each_eps = pytest.mark.parametrize("eps", [0.0, 1e-5])


@pytest.mark.parametrize(("shape", "axis"), [((0, 8), -1), ((3, 0, 8), -1), ((0, 8, 5), 1)])
@each_type
@each_kind
def test_zero_rows_give_empty_y_and_dx_and_zero_dweight_and_dbias(kind, dtype, shape, axis) -> None:
    x = np.empty(shape, dtype_of(dtype))
    weight = np.ones(8, x.dtype)
    y, stats = getattr(ours, f"{kind}_forward")(x, weight, axis=axis)
    dx, *parameters = getattr(ours, f"{kind}_backward")(x, x, stats, weight)
    assert y.shape == dx.shape == shape
    assert y.dtype == dx.dtype == x.dtype
    for gradient in parameters:
        assert_same_bits(gradient, np.zeros(8, x.dtype), "gradient of a parameter")


@pytest.mark.parametrize(("shape", "axis"), [((4, 0), -1), ((0, 0), 1), ((2, 0, 3), 1)])
@each_type
@each_kind
def test_a_zero_size_normalized_axis_gives_an_empty_result(kind, dtype, shape, axis) -> None:
    x = np.empty(shape, dtype_of(dtype))
    weight = np.empty(0, x.dtype)
    y, stats = getattr(ours, f"{kind}_forward")(x, weight, axis=axis)
    dx, *parameters = getattr(ours, f"{kind}_backward")(x, x, stats, weight)
    assert y.shape == dx.shape == shape
    assert all(gradient.shape == (0,) for gradient in parameters)
    assert getattr(ours, kind)(x, axis=axis).shape == shape


@each_eps
@pytest.mark.parametrize("values", ["ordinary", "near_largest", "subnormals", "constant"])
@each_path
@each_type
def test_one_element_gives_exactly_bias(dtype, layout, values, eps) -> None:
    case = Case(dtype=dtype, cols=1, layout=layout, values=values, eps=eps)
    x, _, weight, bias = case.arrays()
    y, _ = forward(ours, case, x, weight, bias)
    assert_equal_values(y, np.full_like(y, bias.item()), "y")
    y, _ = forward(ours, case, x, weight, None)
    assert_equal_values(y, np.zeros_like(y), "y without bias")


@each_eps
@pytest.mark.parametrize(
    ("layout", "cols"),
    # 3, 7, 1000: 1/n is rounded. 4097 and 65537 are summed in blocks.
    [(layout, cols) for layout in paths for cols in (2, 3, 7, 16, 67, 1000)]
    + [("contiguous", 4097), ("contiguous", 65537)],
)
@each_type
def test_a_constant_row_gives_exactly_bias(dtype, layout, cols, eps) -> None:
    check_constant_rows_give_bias(
        ours, Case(dtype=dtype, cols=cols, layout=layout, rows=8, eps=eps)
    )


@pytest.mark.parametrize("parameters", PARAMETERS)
@each_type
def test_a_constant_row_gives_exactly_bias_for_every_set_of_parameters(dtype, parameters) -> None:
    parameter_dtype = "float32" if dtype in ("float16", "bfloat16") and parameters else None
    case = Case(dtype=dtype, cols=67, parameters=parameters, rows=8, eps=0.0)
    check_constant_rows_give_bias(ours, case)
    check_constant_rows_give_bias(ours, case.but(parameter_dtype=parameter_dtype))


@each_path
@each_type
def test_a_row_of_zeros_gives_zero_in_rms_norm(dtype, layout) -> None:
    for eps in EPS:
        case = Case("rms_norm", dtype, cols=33, layout=layout, eps=eps)
        x, _, weight, _ = case.arrays()
        y, _ = forward(ours, case, np.zeros_like(x), weight, None)
        assert_equal_values(y, np.zeros_like(y), f"y, eps {eps}")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("layout", "cols", "rows"),
    # 67: whole vectors, then a tail; the inner 67 and 15 likewise. 5: no whole vector.
    [
        ("contiguous", 67, 5),
        ("contiguous", 5, 19),
        ("channels_first", 6, 2),
        ("channels_first_67", 3, 2),
        ("axes_apart", 12, 2),
    ],
)
@each_type
@each_kind
def test_a_row_with_nan_or_infinity_is_nan_and_no_other_row_changes(
    kind, dtype, layout, cols, rows, bad
) -> None:
    case = Case(kind, dtype, cols, layout=layout, rows=rows)
    check_a_row_that_is_not_finite_stays_alone(ours, case, bad)


@pytest.mark.parametrize("place", [0, 1, 4095, 4096, 65535, 65536])
@each_kind
def test_a_long_row_with_nan_is_nan_wherever_the_nan_stands(kind, place) -> None:
    case = Case(kind, cols=65537, rows=2)
    x, dy, weight, bias = case.arrays()
    for bad in (np.nan, np.inf):
        x[1, place] = bad
        y, stats = forward(ours, case, x, weight, bias)
        dx, _, _ = backward(ours, case, dy, x, stats, weight)
        assert np.isnan(y[1]).all()
        assert np.isnan(dx[1]).all()
        assert np.isfinite(y[0]).all()
        assert np.isfinite(dx[0]).all()


@each_kind
def test_infinities_of_both_signs_make_their_row_nan(kind) -> None:
    case = Case(kind, cols=67)
    x, dy, weight, bias = case.arrays()
    x[2, 3], x[2, 66] = np.inf, -np.inf
    y, stats = forward(ours, case, x, weight, bias)
    dx, _, _ = backward(ours, case, dy, x, stats, weight)
    assert np.isnan(y[2]).all()
    assert np.isnan(dx[2]).all()
    assert np.isnan(y).sum() == np.isnan(dx).sum() == 67


@each_path
@each_type
@each_kind
def test_zero_strides_give_the_right_answer(kind, dtype, layout) -> None:
    check_zero_strides(ours, Case(kind, dtype, cols=48, layout=layout))


@each_path
@each_type
@each_kind
def test_read_only_data_gives_the_same_bits(kind, dtype, layout) -> None:
    check_read_only_inputs(ours, Case(kind, dtype, cols=48, layout=layout))


@pytest.mark.parametrize("lay", [strided(-1), strided(3), unaligned], ids=["-1", "3", "unaligned"])
@each_type
@each_kind
def test_parameters_of_any_strides_give_the_same_bits(kind, dtype, lay) -> None:
    case = Case(kind, dtype, cols=67)
    x, dy, weight, bias = case.arrays()
    expected, stats = forward(ours, case, x, weight, bias)
    laid = [None if parameter is None else lay(parameter) for parameter in (weight, bias)]
    y, _ = forward(ours, case, x, *laid)
    assert_same_bits(y, expected, "y")
    gradients = backward(ours, case, dy, x, stats, weight)
    for got, right in zip(backward(ours, case, dy, x, stats, laid[0]), gradients, strict=True):
        if right is not None:
            assert_same_bits(got, right, "gradient")


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "read_only"])
@each_type
@each_kind
def test_out_that_is_x_itself_is_written_in_place(kind, dtype, layout) -> None:
    check_in_place(ours, Case(kind, dtype, cols=40, layout=layout, values="mixed"))


@each_type
def test_out_that_is_another_view_of_all_of_x_is_written_in_place(dtype) -> None:
    case = Case(dtype=dtype, cols=67)
    x, _, weight, bias = case.arrays()
    expected, _ = forward(ours, case, x, weight, bias)
    forward(ours, case, x, weight, bias, out=x[:])
    assert_same_bits(x, expected, "y in place")


@each_path
@each_type
@each_kind
def test_out_is_written_in_every_element_and_returned(kind, dtype, layout) -> None:
    check_every_element_is_written(ours, Case(kind, dtype, cols=67, layout=layout))


@pytest.mark.parametrize("lay", [sliced, strided(-1, 1), strided(1, -2), strided(3, 1), unaligned])
@each_type
@each_kind
def test_out_may_have_any_strides(kind, dtype, lay) -> None:
    case = Case(kind, dtype, cols=67)
    x, _, weight, bias = case.arrays()
    expected, _ = forward(ours, case, x, weight, bias)
    out = lay(poisoned(x.shape, x.dtype))
    forward(ours, case, x, weight, bias, out=out)
    assert_same_bits(out, expected, "out")


def test_nothing_beside_out_is_written() -> None:
    case = Case(cols=67)
    x, _, weight, bias = case.arrays()
    frame = np.full((7, 75), 7.0, np.float32)
    forward(ours, case, x, weight, bias, out=frame[1:-1, 3:-5])
    inside = np.zeros(frame.shape, bool)
    inside[1:-1, 3:-5] = True
    assert (frame[~inside] == 7).all()
    for elements in (0, 1, 3):
        buffer = np.full(x.size + 40, 7.0, np.float32)
        out = buffer[8 + elements : 8 + elements + x.size].reshape(x.shape)
        forward(ours, case, at_offset(x, elements), weight, bias, out=out)
        assert (buffer[: 8 + elements] == 7).all()
        assert (buffer[8 + elements + x.size :] == 7).all()


@each_path
@each_type
def test_out_that_overlaps_x_in_part_is_an_error(dtype, layout) -> None:
    check_partial_overlap_is_rejected(ours, Case(dtype=dtype, cols=48, layout=layout))


def test_out_beside_x_in_one_array_is_no_overlap() -> None:
    case = Case(cols=8)
    _, _, weight, bias = case.arrays()
    both = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    for x, out in ((both[:, :8], both[:, 8:]), (both[:, ::2], both[:, 1::2])):
        expected, _ = forward(ours, case, x, weight, bias)
        with unchanged(x=x):
            forward(ours, case, x, weight, bias, out=out)
        assert_same_bits(out, expected, "out")


@pytest.mark.parametrize(
    "dtype",
    ["int8", "uint8", "int32", "int64", "uint64", "bool", "complex64", "complex128"],
)
@each_kind
def test_integers_bool_and_complex_are_a_type_error_that_says_what_to_call(kind, dtype) -> None:
    check_other_types_are_rejected(ours, kind, np.dtype(dtype))


WIDER = ["g"] if np.dtype("g") != np.float64 else []


@pytest.mark.parametrize("dtype", [*WIDER, "O", "U3", "S3", "M8[s]", "m8[s]", "V4", "f4,i4"])
@each_kind
def test_every_other_type_is_a_type_error_that_says_what_to_call(kind, dtype) -> None:
    check_other_types_are_rejected(ours, kind, np.dtype(dtype))


@pytest.mark.parametrize("x", [[1, 2, 3], [True, False], [1j]])
def test_lists_of_other_types_are_a_type_error(x) -> None:
    with pytest.raises(TypeError, match=r"np\.asarray\(x, np\.float32\)"):
        ours.layer_norm(x)
