"""`layernorm.spec`: the axes, shapes, types and layouts it accepts, and its error messages."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layernorm import spec

NOT_AXES = [None, True, 1.0, "1", "ab", (True,), np.True_, [1.5], [[1]], (0, None)]


@pytest.mark.parametrize(
    ("axis", "axes"),
    [
        (-1, (2,)),
        (0, (0,)),
        ((2, 0), (0, 2)),
        ([-1, -2], (1, 2)),
        (range(3), (0, 1, 2)),
        (np.int64(1), (1,)),
        (np.array([1, -1]), (1, 2)),
        (np.array(-3), (0,)),
    ],
)
def test_axes_come_out_sorted_and_not_negative(axis, axes):
    assert spec.normalize_axes(axis, 3) == axes


@pytest.mark.parametrize("axis", NOT_AXES, ids=repr)
def test_an_axis_that_is_not_an_int_is_a_type_error(axis):
    with pytest.raises(TypeError, match=r"axis is .*expected an int.*axis=-1"):
        spec.normalize_axes(axis, 3)


@pytest.mark.parametrize(
    ("axis", "ndim", "message"),
    [
        (3, 3, "axis 3 is out of range for x with 3 axes: pass one from -3 to 2"),
        (-4, 3, "axis -4 is out of range"),
        ((0, 5), 3, "axis 5 is out of range"),
        ((), 3, "axis is empty.*pass axis=-1"),
        ((1, 1), 3, "twice"),
        ((2, -1), 3, "twice"),
        (-1, 0, r"shape \(\).*reshape"),
    ],
)
def test_axes_out_of_range_twice_or_empty_are_value_errors(axis, ndim, message):
    with pytest.raises(ValueError, match=message):
        spec.normalize_axes(axis, ndim)


def test_shapes_of_parameters_and_statistics():
    assert spec.normalized_shape((2, 3, 4, 5), (1, 3)) == (3, 5)
    assert spec.statistics_shape((2, 3, 4, 5), (1, 3)) == (2, 1, 4, 1)


@pytest.mark.parametrize("eps", [0, 0.0, 1e-12, 1, np.float32(0.5), np.array(0.5)], ids=repr)
def test_eps_is_any_real_number_from_zero(eps):
    checked = spec.check_eps(eps)
    assert type(checked) is float
    assert checked == float(eps)


@pytest.mark.parametrize("eps", [-1e-30, math.nan, math.inf, -math.inf, np.float32(-1)], ids=repr)
def test_eps_is_finite_and_not_negative(eps):
    with pytest.raises(ValueError, match=r"eps is .*finite.*eps=1e-5"):
        spec.check_eps(eps)


@pytest.mark.parametrize("eps", [None, True, "1e-5", 1j, [1e-5], np.array([1e-5])], ids=repr)
def test_eps_is_a_number(eps):
    with pytest.raises(TypeError, match=r"eps is .*expected a number"):
        spec.check_eps(eps)


@pytest.mark.parametrize("x_type", spec.TYPES)
@pytest.mark.parametrize("parameter_type", spec.TYPES)
def test_parameters_have_the_type_of_x_or_float32_beside_16_bits(x_type, parameter_type):
    fits = parameter_type == x_type or ("16" in x_type and parameter_type == "float32")
    if fits:
        spec.check_types(x_type, parameter_type, parameter_type)
        spec.check_types(x_type, None, parameter_type)
    else:
        with pytest.raises(TypeError, match=f"weight has type {parameter_type}.*needs"):
            spec.check_types(x_type, parameter_type, None)
        with pytest.raises(TypeError, match=f"bias has type {parameter_type}.*needs"):
            spec.check_types(x_type, None, parameter_type)


def test_weight_and_bias_have_one_type():
    with pytest.raises(TypeError, match="weight has type float16 and bias has type float32"):
        spec.check_types("float16", "float16", "float32")


@pytest.mark.parametrize("x_type", ["int64", "bool", "complex64", "object", "float128"])
def test_an_error_about_another_type_says_what_to_call(x_type):
    with pytest.raises(TypeError, match=f"x has type {x_type}.*: call it with x as float32"):
        spec.check_types(x_type, convert="{} as {}".format)


@pytest.mark.parametrize(
    ("shape", "axes", "message"),
    [
        ((512,), (1,), r"weight has shape \(512,\), but x of shape \(32, 1024\) .*axis 1 needs "),
        ((1024, 1), (1,), r"needs \(1024,\), or to broadcast .*: pass weight.reshape\(\(1024,\)\)"),
        ((16, 1024), (1,), r"needs \(1024,\), or to broadcast against x with these sizes: pass a"),
        ((), (1,), r"weight has shape \(\)"),
        ((1, 32, 1024), (1,), r"needs \(1024,\), or to broadcast"),
    ],
)
def test_an_error_about_a_parameters_shape_says_which_one_fits(shape, axes, message):
    with pytest.raises(ValueError, match=message):
        spec.check_parameter("weight", shape, (32, 1024), axes)


@pytest.mark.parametrize(
    ("shape", "axes", "varying"),
    [
        ((4,), (2,), ()),
        ((1, 1, 4), (2,), ()),
        ((2, 1, 4), (2,), (0,)),
        ((3, 4), (2,), (1,)),
        ((2, 3, 4), (2,), (0, 1)),
        ((3,), (1,), ()),
        ((3, 1), (1,), ()),
        ((3, 4), (1,), (2,)),
        ((2, 3, 1), (1,), (0,)),
        ((2, 4), (0, 2), ()),
        ((2, 3, 4), (0, 2), (1,)),
        ((1,), (2,), None),
        ((2, 4), (2,), None),
        ((2, 3, 1), (2,), None),
        ((1, 2, 3, 4), (2,), None),
    ],
)
def test_the_axes_along_which_a_parameter_varies(shape, axes, varying):
    assert spec.varying_axes(shape, (2, 3, 4), axes) == varying
    if varying is not None:
        full = spec.parameter_shape((2, 3, 4), axes, varying)
        np.broadcast_to(np.zeros(full), (2, 3, 4))
        assert math.prod(full) == math.prod(shape)


@pytest.mark.parametrize(
    ("given", "shape"),
    [(768, (768,)), ([3, 4], (3, 4)), ((5,), (5,)), (np.int32(7), (7,)), (0, (0,))],
)
def test_normalized_shape_of_a_layer(given, shape):
    assert spec.check_normalized_shape(given) == shape


@pytest.mark.parametrize("given", [None, True, 3.0, "3", [3.0], (True,)], ids=repr)
def test_a_normalized_shape_that_is_not_of_ints_is_a_type_error(given):
    with pytest.raises(TypeError, match="normalized_shape is"):
        spec.check_normalized_shape(given)


@pytest.mark.parametrize("given", [(), -1, (3, -4)], ids=repr)
def test_an_empty_or_negative_normalized_shape_is_a_value_error(given):
    with pytest.raises(ValueError, match="normalized_shape is"):
        spec.check_normalized_shape(given)


def test_a_layers_error_says_which_x_it_needs():
    spec.check_trailing("LayerNorm((3, 4))", (3, 4), (2, 3, 4))
    for shape in [(4, 3), (4,), (), (2, 3, 4, 1)]:
        with pytest.raises(ValueError, match=r"but LayerNorm\(\(3, 4\)\) needs \(\.\.\., 3, 4\)"):
            spec.check_trailing("LayerNorm((3, 4))", (3, 4), shape)


@pytest.mark.parametrize(
    ("shape", "axes", "layout"),
    [
        ((4, 768), (1,), (4, 768, 1)),
        ((2, 3, 4, 5), (1,), (2, 3, 20)),
        ((2, 3, 4, 5), (1, 2), (2, 12, 5)),
        ((2, 3, 4, 5), (0, 1, 2, 3), (1, 120, 1)),
        ((2, 3, 4, 5), (1, 3), None),
        ((2, 3, 1, 5), (1, 3), (2, 15, 1)),  # the kept axis between has size 1
        ((2, 3, 4, 1), (1, 3), (2, 3, 4)),  # the second normalized axis has size 1
        ((6, 1), (1,), (6, 1, 1)),
        ((2, 1, 5), (1,), (2, 1, 5)),
        ((1, 1), (0, 1), (1, 1, 1)),
        ((0, 3), (1,), (0, 3, 1)),
        ((3, 0), (1,), (3, 0, 1)),
    ],
)
def test_the_layout_follows_from_shape_and_axes(shape, axes, layout):
    assert spec.layout_of(shape, axes) == layout
    contiguous = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    collapsed = spec.collapse(shape, contiguous, axes)
    assert (collapsed and collapsed[0]) == layout


@pytest.mark.parametrize(
    ("shape", "strides", "axes", "collapsed"),
    [
        ((4, 768), (1000, 1), (1,), ((4, 768, 1), 1000, 1)),  # x[:, :768]
        ((4, 768), (1, 4), (1,), None),  # transposed: the row is not contiguous
        ((4, 768), (0, 1), (1,), None),
        ((4, 768), (-768, 1), (1,), None),
        ((4, 768), (768, -1), (1,), None),
        ((1, 768), (-5, 1), (1,), ((1, 768, 1), 768, 1)),
        ((2, 3, 4, 5), (100, 20, 5, 1), (1,), ((2, 3, 20), 100, 20)),
        ((2, 3, 4, 5), (100, 30, 5, 1), (1,), ((2, 3, 20), 100, 30)),
        ((2, 3, 4, 5), (100, 30, 6, 1), (1,), None),  # the inner axes do not merge
        ((2, 3, 5), (3, 6, 1), (2,), None),  # the outer axes do not merge
        ((3, 4), (1, 3), (0,), None),  # the inner axis is not contiguous
        ((3, 1), (7, 1), (0,), None),  # a strided single row: inner is 1, so must be contiguous
        ((3, 1), (1, 9), (0,), ((1, 3, 1), 3, 1)),
        ((6, 1), (2, -3), (1,), ((6, 1, 1), 2, 1)),
    ],
)
def test_strides_say_whether_the_layout_fits(shape, strides, axes, collapsed):
    assert spec.collapse(shape, strides, axes) == collapsed


@st.composite
def strided_views(draw):
    """Draw a view of a counting array, its axes permuted, cut, stepped over and reversed."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    whole = np.arange(math.prod(sizes)).reshape(sizes)
    view = whole.transpose(draw(st.permutations(range(whole.ndim))))
    cuts = st.sampled_from(
        [slice(None), slice(1, None), slice(None, None, 2), slice(None, None, -1)]
    )
    view = view[tuple(draw(st.one_of(st.just(slice(None)), cuts)) for _ in sizes)]
    axes = draw(st.sets(st.integers(0, view.ndim - 1), min_size=1))
    return view, tuple(sorted(axes))


@given(strided_views())
def test_a_collapsed_view_reaches_the_same_elements(drawn):
    view, axes = drawn
    if view.size == 0:
        return
    strides = [stride // view.itemsize for stride in view.strides]
    collapsed = spec.collapse(view.shape, strides, axes)
    layout = spec.layout_of(view.shape, axes)
    if collapsed is None:
        assert layout is None or not view.flags.c_contiguous
        return
    assert collapsed[0] == layout
    (outer, cols, inner), outer_stride, col_stride = collapsed
    o, c, i = np.ogrid[:outer, :cols, :inner]
    reached = view.flat[0] + o * outer_stride + c * col_stride + i
    np.testing.assert_array_equal(reached, view.reshape(layout))
    assert inner > 1 or col_stride == 1
