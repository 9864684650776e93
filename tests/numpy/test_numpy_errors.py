"""Every wrong argument raises an error that says why, before anything is written."""

import numpy as np
import pytest
from layouts import read_only
from numpy.lib import recfunctions
from problems import RNG, a_problem

from layernorm import numpy as front

X, WEIGHT, BIAS, DY = a_problem(dtype=np.float32)


BAD_CALLS = {
    "integers": (
        (X.astype(int),),
        {},
        TypeError,
        r"x has type int64.*np\.asarray\(x, np\.fl",
    ),
    "bool": ((X > 3,), {}, TypeError, r"x has type bool.*np\.asarray\(x, np\.float32\)"),
    "complex": ((X + 1j,), {}, TypeError, r"x has type complex"),
    "integer_list": (([[1, 2]],), {}, TypeError, r"x has type int64"),
    "strings": ((["a"],), {}, TypeError, r"x has type str.*np\.asarray\(x, np\.float32\)"),
    "none": ((None,), {}, TypeError, r"x is of type NoneType.*pass a numpy\.ndarray"),
    "dict": (({1: 2},), {}, TypeError, r"x is of type dict.*pass a numpy\.ndarray"),
    "list_with_none": (([1.0, None],), {}, TypeError, r"x is of type list.*lists of floats"),
    "objects": ((X.astype(object),), {}, TypeError, r"x has type object.*np\.asarray\(x, np\.fl"),
    "dates": ((X.astype("M8[s]"),), {}, TypeError, r"x has type datetime64\[s\].*np\.asarray\(x"),
    "fields": (
        (np.zeros(3, "f4,i4"),),
        {},
        TypeError,
        r"x has type void64 with the fields f0, f1.*structured_to_unstructured\(x, np\.float32\)",
    ),
    "list_weight": (
        (X, WEIGHT.tolist()),
        {},
        TypeError,
        r"np\.asarray\(weight, np\.float32\)",
    ),
    "weight_of_words": ((X, "a"), {}, TypeError, r"weight has type str"),
    "no_axes": ((np.float32(3),), {}, ValueError, r"no axes"),
    "masked": ((np.ma.masked_array(X, X > 3),), {}, TypeError, r"x is.*masked.*filled\(x"),
    "nothing_masked": ((np.ma.masked_array(X),), {}, TypeError, r"x is.*masked.*filled\(x"),
    "masked_in_a_list": (([np.ma.masked_array(X[0])],), {}, TypeError, r"x is.*masked.*filled"),
    "masked_bias": ((X, None, np.ma.array(BIAS)), {}, TypeError, r"bias is.*masked.*filled\(bias"),
    "weight_shape": (
        (X, WEIGHT[:5]),
        {},
        ValueError,
        r"weight has shape \(5,\), but x of shape \(6, 13\) normalized over axis 1 needs \(13,\)",
    ),
    "bias_shape": (
        (X, WEIGHT, BIAS[:, None]),
        {},
        ValueError,
        r"np\.asarray\(bias\)\.reshape\(\(13,",
    ),
    "weight_type": (
        (X, WEIGHT.astype(np.float64)),
        {},
        TypeError,
        r"weight has type float64, but x of type float32 needs float32: pass np\.asarray\(weight",
    ),
    "mixed": (
        (X.astype(np.float16), WEIGHT, BIAS.astype(np.float16)),
        {},
        TypeError,
        r"weight has type float32 and bias has type float16",
    ),
    "axis_range": ((X,), {"axis": 2}, ValueError, r"axis 2 is out of range"),
    "axis_twice": ((X,), {"axis": (0, -2)}, ValueError, r"twice"),
    "axis_type": ((X,), {"axis": 1.0}, TypeError, r"axis is 1\.0"),
    "eps_negative": ((X,), {"eps": -1e-5}, ValueError, r"eps is -1e-05"),
    "eps_nan": ((X,), {"eps": float("nan")}, ValueError, r"eps is nan"),
    "eps_type": ((X,), {"eps": "small"}, TypeError, r"eps is 'small'"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_failing_call_says_why_and_leaves_everything_as_it_was(name):
    arguments, options, error, message = BAD_CALLS[name]
    out = np.full(X.shape, 7, X.dtype)
    inputs = [np.array(each, copy=True) for each in arguments]
    for call in (front.layer_norm, front.layer_norm_forward):
        with pytest.raises(error, match=message):
            call(*arguments, **options, out=out)
        with pytest.raises(error, match=message):
            call(*arguments, **options)
    assert (out == 7).all()
    for given, before in zip(arguments, inputs, strict=True):
        np.testing.assert_array_equal(np.asarray(given), before)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((6, 12), np.float32), ValueError, r"out has shape \(6, 12\).*\(6, 13\)"),
        (np.zeros((1, 6, 13), np.float32), ValueError, "out has shape"),
        (np.zeros((6, 13), np.float64), TypeError, "out has type float64"),
        (read_only(np.zeros((6, 13), np.float32)), ValueError, "out is read-only"),
        ([[0.0] * 13] * 6, TypeError, "out is of type list"),
        (
            np.ma.masked_array(np.zeros((6, 13), np.float32)),
            TypeError,
            "out is of type Masked",
        ),
    ],
)
def test_an_out_that_cannot_take_y_is_rejected(out, error, message):
    before = np.copy(out)
    with pytest.raises(error, match=message):
        front.layer_norm(X, WEIGHT, BIAS, out=out)
    with pytest.raises(error, match=message):
        front.rms_norm(X, WEIGHT, out=out)
    np.testing.assert_array_equal(np.asarray(out), before)


@pytest.mark.parametrize(
    "out_of",
    [
        lambda whole: whole[1:7, :13],
        lambda whole: whole[:6, 1:14],
        lambda whole: whole[:6, :13][::-1],
        lambda whole: whole[:6, :13][:, ::-1],
        lambda whole: whole.reshape(-1)[5 : 5 + 78].reshape(6, 13),
    ],
)
def test_an_out_that_overlaps_x_in_part_is_rejected(out_of):
    whole = RNG.normal(size=(8, 20))
    before = whole.copy()
    with pytest.raises(ValueError, match=r"out overlaps x in part.*pass out=x"):
        front.layer_norm(whole[:6, :13], out=out_of(whole))
    np.testing.assert_array_equal(whole, before)


def test_an_out_that_overlaps_a_parameter_or_itself_is_rejected():
    x, weight, bias, _ = a_problem()
    whole = np.zeros((7, 13))
    whole[6] = weight
    with pytest.raises(ValueError, match="out overlaps weight"):
        front.layer_norm(x, whole[0], bias, out=whole[:6])
    with pytest.raises(ValueError, match="out overlaps bias"):
        front.layer_norm(x, weight, whole[3], out=whole[:6])
    same_row = np.lib.stride_tricks.as_strided(whole, (6, 13), (0, 8))
    with pytest.raises(ValueError, match="out overlaps itself"):
        front.layer_norm(x, weight, bias, out=same_row)


def test_a_backward_that_does_not_fit_the_forward_says_why():
    _, stats = front.layer_norm_forward(X, WEIGHT, BIAS)
    _, rms_stats = front.rms_norm_forward(X, WEIGHT)
    backward = front.layer_norm_backward
    with pytest.raises(ValueError, match=r"dy has shape \(5, 13\)"):
        backward(DY[:5], X, stats, WEIGHT)
    with pytest.raises(TypeError, match=r"dy has type float64.*np\.asarray\(dy, np\.float32\)"):
        backward(DY.astype(np.float64), X, stats, WEIGHT)
    with pytest.raises(ValueError, match=r"stats\.mean has shape \(6, 1\).*needs \(5, 1\)"):
        backward(DY[:5], X[:5], stats, WEIGHT)
    with pytest.raises(ValueError, match="pass the x given to the forward"):
        backward(DY[0], X[0], stats, WEIGHT)
    with pytest.raises(TypeError, match=r"stats\.mean has type float32"):
        backward(DY.astype(np.float64), X.astype(np.float64), stats)
    with pytest.raises(TypeError, match=r"stats is of type tuple.*layer_norm_forward"):
        backward(DY, X, (1, 2), WEIGHT)
    with pytest.raises(ValueError, match=r"stats came without a mean.*layer_norm_forward"):
        backward(DY, X, rms_stats, WEIGHT)
    with pytest.raises(ValueError, match=r"stats came with a mean.*rms_norm_forward"):
        front.rms_norm_backward(DY, X, stats, WEIGHT)
    with pytest.raises(ValueError, match=r"weight has shape \(5,\)"):
        backward(DY, X, stats, WEIGHT[:5])
    half, half_stats = X.astype(np.float16), front.layer_norm_forward(X.astype(np.float16), WEIGHT)
    with pytest.raises(TypeError, match="weight has type float16, but the forward's weight"):
        backward(DY.astype(np.float16), half, half_stats[1], WEIGHT.astype(np.float16))


def test_a_list_whose_parts_differ_in_length_is_named():
    with pytest.raises(ValueError, match=r"weight is a list that makes no array.*one length"):
        front.layer_norm(X, [[1.0, 2.0], [3.0]])


def test_what_the_messages_tell_to_call_works():
    for x in ([[1, 2, 4]], np.array([["1", "2", "4"]]), np.array([[1, 2, 4]], object)):
        with pytest.raises(TypeError, match=r"call it with np\.asarray\(x, np\.float32\)"):
            front.layer_norm(x)
        y = front.layer_norm(np.asarray(x, np.float32))
        np.testing.assert_array_equal(y, front.layer_norm(np.float32([[1, 2, 4]])))
    fields = np.array([(1, 2, 4)], "f4,i4,f8")
    x = recfunctions.structured_to_unstructured(fields, np.float32)
    np.testing.assert_array_equal(front.layer_norm(x), y)
    weight = [[1.0], [2.0], [3.0]]
    x = np.array([[1.0, 2.0, 4.0]])
    with pytest.raises(ValueError, match=r"pass np\.asarray\(weight\)\.reshape\(\(3,\)\)"):
        front.layer_norm(x, weight)
    assert front.layer_norm(x, np.asarray(weight).reshape((3,))).shape == (1, 3)
    masked = np.ma.masked_array(np.float32([[1, 2, 9]]), [[False, False, True]])
    np.testing.assert_array_equal(front.layer_norm(np.ma.filled(masked, 4)), y)


def test_a_dy_and_a_gradient_with_a_mask_are_told():
    _, stats = front.layer_norm_forward(X, WEIGHT, BIAS)
    with pytest.raises(TypeError, match=r"dy is.*masked"):
        front.layer_norm_backward(np.ma.masked_array(DY), X, stats, WEIGHT)
    with pytest.raises(TypeError, match=r"data is.*masked"):
        front.Parameter(np.ma.masked_array(WEIGHT))
    parameter = front.Parameter(WEIGHT.copy(), np.ma.masked_array(WEIGHT))
    for optimizer in (front.SGD([parameter], 0.1), front.Adam([parameter])):
        with pytest.raises(TypeError, match=r"grad is.*masked"):
            optimizer.step()
    np.testing.assert_array_equal(parameter.data, WEIGHT)
    layer = front.LayerNorm(13)
    with pytest.raises(TypeError, match=r"bias is.*masked"):
        layer.load_state_dict({"weight": WEIGHT, "bias": np.ma.masked_array(BIAS)})
    np.testing.assert_array_equal(layer.weight.data, np.ones(13))
    with pytest.raises(TypeError, match=r"state is of type NoneType.*state_dict"):
        layer.load_state_dict(None)
