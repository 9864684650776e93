"""Every wrong argument raises an error that says why, before anything is written."""

import numpy as np
import pytest
from layouts import read_only
from problems import RNG, a_problem

from layernorm import numpy as front

X, WEIGHT, BIAS, DY = a_problem(dtype=np.float32)


BAD_CALLS = {
    "integers": ((X.astype(int),), {}, TypeError, r"x has type int64.*x\.astype\(np\.float32\)"),
    "bool": ((X > 3,), {}, TypeError, r"x has type bool.*x\.astype\(np\.float32\)"),
    "complex": ((X + 1j,), {}, TypeError, r"x has type complex"),
    "integer_list": (([[1, 2]],), {}, TypeError, r"x has type int64"),
    "strings": ((["a"],), {}, TypeError, r"x has type str"),
    "object": ((None,), {}, TypeError, r"x has type object"),
    "no_axes": ((np.float32(3),), {}, ValueError, r"no axes"),
    "masked": ((np.ma.masked_array(X, X > 3),), {}, TypeError, r"masked.*filled"),
    "weight_shape": (
        (X, WEIGHT[:5]),
        {},
        ValueError,
        r"weight has shape \(5,\), but x of shape \(6, 13\) normalized over axis 1 needs \(13,\)",
    ),
    "bias_shape": ((X, WEIGHT, BIAS[None]), {}, ValueError, r"bias.*bias\.reshape\(\(13,\)\)"),
    "weight_type": (
        (X, WEIGHT.astype(np.float64)),
        {},
        TypeError,
        r"weight has type float64, but x of type float32 needs float32: pass weight\.astype",
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
    inputs = [np.copy(each) for each in arguments]
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
    with pytest.raises(TypeError, match=r"dy has type float64.*dy\.astype\(np\.float32\)"):
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
