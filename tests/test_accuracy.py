"""`layernorm.accuracy` itself: it passes the right answer and catches one that is an ulp off."""

import ml_dtypes
import numpy as np
import pytest

from layernorm import accuracy, reference
from layernorm.accuracy import (
    BOUNDS,
    dbias_error,
    dweight_error,
    dx_error,
    parameter_error,
    y_error,
)

TYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
SIXTEEN_BITS = ["float16", "bfloat16"]
every_type = pytest.mark.parametrize("name", TYPES)


def rounded(exact, name):
    """Round long doubles to `name` once: to float64 first would round twice."""
    dtype = TYPES[name]
    near = exact.astype(np.float64).astype(dtype)
    both = [near, np.nextafter(near, dtype.type(-np.inf)), np.nextafter(near, dtype.type(np.inf))]
    distance = [np.abs(v.astype(np.float64).astype(np.longdouble) - exact) for v in both]
    return np.choose(np.argmin(distance, axis=0), both).astype(dtype)


def example(name, axis=-1, shape=(6, 129)):
    """x, weight, bias and dy; beyond 16 bits, x has a mean of 100 standard deviations."""
    rng = np.random.default_rng(10)
    normalized = tuple(shape[a] for a in sorted(np.atleast_1d(axis) % len(shape)))
    far = 0.0 if name in SIXTEEN_BITS else 100.0
    x, dy = rng.normal(far, 1.0, shape), rng.normal(1.0, 1.0, shape)
    weight, bias = rng.normal(size=(2, *normalized))
    return tuple(a.astype(TYPES[name]) for a in (x, weight, bias, dy))


def moved(values, index, ulps, scale, name):
    """Move one element away from zero by `ulps` of the type `name` at `scale`, as float64."""
    out = values.astype(np.longdouble)
    out[index] += np.sign(out[index]) * ulps * accuracy.ulp(np.longdouble(scale), name)
    return out


def test_bounds_are_those_of_the_contract():
    assert BOUNDS["float32"] == (5, 5, 4)
    assert BOUNDS["float64"] == (5, 5, 5)  # in float64 ulp: the contract asks 4 of float32
    assert BOUNDS["float16"] == BOUNDS["bfloat16"] == (0.51, 5, 4)
    assert BOUNDS.keys() == TYPES.keys()


@every_type
def test_ulp_is_the_distance_to_the_next_number(name):
    dtype = TYPES[name]
    info = ml_dtypes.finfo(dtype)
    values = np.array([1.0, 1.5, 3.0, info.max, info.tiny, info.tiny / 2, 0.0], np.longdouble)
    values = values.astype(np.float64).astype(dtype)
    below = np.nextafter(values[1:4], dtype.type(0))  # info.max has no next number
    gaps = values[1:4].astype(np.longdouble) - below.astype(np.float64)
    np.testing.assert_array_equal(accuracy.ulp(values[1:4].astype(np.longdouble), name), gaps)
    smallest = np.nextafter(dtype.type(0), dtype.type(1)).astype(np.float64)
    np.testing.assert_array_equal(accuracy.ulp(values[4:].astype(np.longdouble), name), smallest)
    assert accuracy.ulp(np.longdouble(1.0), name) == info.eps
    assert accuracy.ulp(np.nextafter(np.longdouble(1), 0), name) == info.eps / 2


@every_type
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("axis", [-1, 0, (1, 0)])
def test_the_exact_answer_rounded_once_passes(name, kind, axis):
    x, weight, bias, dy = example(name, axis)
    options = {"axis": axis, "eps": 1e-3}
    dx, dweight, dbias = reference.layer_norm_backward(dy, x, weight, exact=True, **options)
    y = reference.layer_norm(x, weight, bias, exact=True, **options)
    if kind == "rms_norm":
        bias = None
        y = reference.rms_norm(x, weight, exact=True, **options)
        dx, dweight = reference.rms_norm_backward(dy, x, weight, exact=True, **options)
    options["kind"] = kind
    assert 0 < y_error(rounded(y, name), x, weight, bias, **options) <= 0.5
    worst = dx_error(rounded(dx, name), dy, x, weight, **options)
    # dx can be twice its scale, and half an ulp of it a whole one
    assert worst == 0 if name in SIXTEEN_BITS else 0 < worst <= 1
    assert dweight_error(rounded(dweight, name), dy, x, **options) == 0
    assert dbias_error(rounded(dbias, name), dy, axis=axis) == 0


@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("element", ["bias", "weight", "xhat"])
def test_six_ulp_in_one_element_of_y_are_caught(name, element):
    x, weight, bias, _ = example(name)
    xhat = reference.normalize(x, exact=True)
    terms = {
        "bias": np.broadcast_to(np.abs(bias), x.shape),
        "weight": np.broadcast_to(np.abs(weight), x.shape),
        "xhat": np.abs(weight * xhat),  # larger than |y|: the bias cancels some of it
    }
    exact = reference.layer_norm(x, weight, bias, exact=True)
    judged = terms.pop(element)
    others = np.maximum.reduce([*terms.values(), np.abs(exact)])
    scale = np.maximum(judged, others)
    decides = accuracy.ulp(others, name) < accuracy.ulp(scale, name)
    index = tuple(np.argwhere(decides)[0])
    for ulps in (3.5, 6.0):  # with the rounding: at most 4, at least 5.5
        y = rounded(moved(exact, index, ulps, scale[index], name), name)
        assert abs(y_error(y, x, weight, bias) - ulps) <= 0.5
    assert y_error(y, x, weight, bias) > BOUNDS[name].y


@pytest.mark.parametrize("name", SIXTEEN_BITS)
def test_the_wrong_neighbor_in_16_bits_is_caught(name):
    x, weight, bias, _ = example(name)
    exact = reference.layer_norm(x, weight, bias, exact=True)
    y = rounded(exact, name)
    i = int(np.argmax(np.abs(reference.normalize(x) * weight)))  # there the scale is |y| or nearly
    y.flat[i] = np.nextafter(y.flat[i], y.dtype.type(np.inf))
    assert y_error(y, x, weight, bias) > BOUNDS[name].y


@pytest.mark.parametrize("name", SIXTEEN_BITS)
def test_rounding_twice_is_told_from_rounding_once(name):
    """Rounding xhat to 16 bits before the weight, as ONNX specifies, breaks the bound."""
    x, weight, bias, _ = example(name)
    early = rounded(reference.normalize(x), name).astype(np.float32)
    y = (early * weight.astype(np.float32) + bias.astype(np.float32)).astype(TYPES[name])
    assert y_error(y, x, weight, bias) > BOUNDS[name].y


@every_type
def test_six_ulp_in_one_element_of_dx_are_caught(name):
    x, weight, _, dy = example(name)
    exact = reference.layer_norm_backward(dy, x, weight, exact=True)[0]
    _, _, rstd = reference.statistics(x, exact=True)
    g = np.abs(dy.astype(np.float64) * weight.astype(np.float64)).max(-1, keepdims=True)
    scale = rstd * g * np.maximum(1, np.abs(reference.normalize(x)))
    compute = "float64" if name == "float64" else "float32"
    index = np.unravel_index(np.argmin(np.abs(exact) / scale), x.shape)
    for ulps in (4.0, 6.0):
        dx = rounded(moved(exact, index, ulps, scale[index], compute), name)
        if name in SIXTEEN_BITS:  # the rounding may hide it: then it is not an error
            assert dx_error(dx, dy, x, weight) <= ulps
        else:
            assert abs(dx_error(dx, dy, x, weight) - ulps) <= 0.5
    dx[index] = np.nextafter(dx[index], dx.dtype.type(np.inf))
    dx[index] = np.nextafter(dx[index], dx.dtype.type(np.inf))
    if name in SIXTEEN_BITS:
        dx[0, 0] = np.nextafter(rounded(exact, name)[0, 0], dx.dtype.type(np.inf))
    assert dx_error(dx, dy, x, weight) > BOUNDS[name].dx


@every_type
def test_one_ulp_too_many_in_a_parameter_gradient_is_caught(name):
    compute = "float64" if name == "float64" else "float32"
    for parameter in {name, compute} & set(TYPES):
        terms = np.array([[1.0, -1.0], [0.75, 1.0]], np.longdouble)  # sums 1.75, 0; of |.| 1.75, 2
        unit = 2.0**-52 if compute == "float64" else 2.0**-23
        bound = int(BOUNDS[name].parameter)
        for ulps, caught in ((bound, False), (bound + 1, True)):
            gradient = rounded(np.array([1.75, ulps * 2 * unit], np.longdouble), parameter)
            error = parameter_error(gradient, terms)
            # of this, an eighth may be the rounding of a float16 so near zero
            assert ulps - 0.125 <= error <= ulps
            assert (error > BOUNDS[name].parameter) == caught


@pytest.mark.parametrize("parameter", SIXTEEN_BITS)
def test_only_the_last_rounding_of_a_parameter_gradient_is_forgiven(parameter):
    dtype = TYPES[parameter]
    gap = float(ml_dtypes.finfo(dtype).eps)
    unit = 2.0**-23
    for value, below, above in ((1.5, gap, gap), (1.0, gap / 2, gap)):  # 1: a power of two
        for side in (-below / 2, above / 2):
            for beyond in (-3, 3, 5):
                exact = value + side + np.sign(side) * beyond * unit
                error = parameter_error(np.array([value], dtype), np.array([[exact]]))
                ulps = beyond * unit / float(accuracy.ulp(np.float64(exact), "float32"))
                assert error == pytest.approx(max(ulps, 0.0))


@every_type
def test_nan_in_the_wrong_place_is_infinitely_wrong(name):
    x, weight, bias, dy = example(name)
    x[2, 3] = np.nan
    y = rounded(reference.layer_norm(x, weight, bias, exact=True), name)
    dx, dweight, dbias = reference.layer_norm_backward(dy, x, weight, exact=True)
    dx, dweight, dbias = (rounded(part, name) for part in (dx, dweight, dbias))
    assert y_error(y, x, weight, bias) <= 0.51
    assert dx_error(dx, dy, x, weight) <= 0.5
    assert dweight_error(dweight, dy, x) == 0
    for row, value in ((2, 1.0), (2, np.inf), (1, np.nan)):
        for right, error in (
            (y, lambda wrong: y_error(wrong, x, weight, bias)),
            (dx, lambda wrong: dx_error(wrong, dy, x, weight)),
        ):
            wrong = right.copy()
            wrong[row, 0] = value
            assert error(wrong) == np.inf
    wrong = dweight.copy()
    wrong[0] = 0.0
    assert dweight_error(wrong, dy, x) == np.inf
    wrong = dbias.copy()
    wrong[0] = np.nan
    assert dbias_error(wrong, dy) == np.inf


def test_where_dy_is_infinite_dx_may_be_nan_or_infinite_but_not_a_number():
    x, weight, _, dy = example("float32")
    dy[1, 4] = np.inf
    dx = reference.layer_norm_backward(dy, x, weight)[0].astype(np.float32)
    dx[1, :2] = np.inf, -np.inf
    assert dx_error(dx, dy, x, weight) <= 0.5
    dx[1, 3] = 1.0
    assert dx_error(dx, dy, x, weight) == np.inf


def test_rows_without_a_derivative_are_not_judged():
    x = np.ones((2, 4), np.float32)
    x[1] = [1, 2, 3, 4]
    dy = np.array([[1, -2, 3, 5]] * 2, np.float32)
    dx = reference.layer_norm_backward(dy, x, eps=0)[0].astype(np.float32)
    dx[0] = [0, np.inf, np.nan, -3]
    assert dx_error(dx, dy, x, eps=0) <= 0.5
    assert dx_error(dx, dy, x, eps=1e-5) == np.inf
    dx[1, 0] += 1
    assert dx_error(dx, dy, x, eps=0) > 1e5


@every_type
def test_infinity_is_right_exactly_where_the_answer_rounds_to_it(name):
    dtype = TYPES[name]
    largest = np.array([ml_dtypes.finfo(dtype).max], dtype)
    infinity = np.array([np.inf], dtype)
    ulp = accuracy.ulp(largest.astype(np.longdouble), name)
    x = np.zeros(1, dtype)
    bound = 0.51
    for share, right, wrong in ((0.4, largest, infinity), (0.6, infinity, largest)):
        bias = largest.astype(np.longdouble) + share * ulp
        assert y_error(right, x, None, bias) <= bound
        assert y_error(wrong, x, None, bias) > bound
        assert y_error(-infinity, x, None, bias) > 1e2
    assert y_error(infinity, x, None, largest.astype(np.longdouble) * 4) == 0
    assert y_error(largest, x, None, largest.astype(np.longdouble) * 4) > 1e2
    assert y_error(infinity, x, None, np.array([1.0])) > 1e2
    assert parameter_error(infinity, [[largest[0]], [largest[0]]]) == 0
    assert parameter_error(-infinity, [[largest[0]], [largest[0]]]) > 1e2


@every_type
def test_subnormal_answers_are_judged_by_the_smallest_number(name):
    dtype = TYPES[name]
    smallest = np.nextafter(np.zeros(3, dtype), dtype.type(1))
    x = np.array([1, 2, 4], dtype)
    exact = reference.layer_norm(x, smallest, exact=True)
    assert y_error(rounded(exact, name), x, smallest) <= 0.5
    assert y_error(6 * smallest, x, smallest) > 5
    assert y_error(np.zeros(3, dtype), x, np.zeros(3, dtype)) == 0
    assert dx_error(np.zeros(3, dtype), np.zeros(3, dtype), x) == 0
    assert dx_error(6 * smallest, np.zeros(3, dtype), x) > 5


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_known_faults_are_caught(name):
    x, weight, bias, dy = example(name)
    mean = x.mean(-1, keepdims=True)
    var = (x**2).mean(-1, keepdims=True) - mean**2
    _, _, rstd = reference.statistics(x)
    wrong = {
        "E[x^2] - E[x]^2": (x - mean) / np.sqrt(var + x.dtype.type(1e-5)) * weight + bias,
        "one rounded mean": (x - (mean + np.spacing(mean))) * rstd * weight + bias,
        "eps on std": reference.layer_norm_eps_on_std(x, weight, bias, eps=1e-5),
        "unbiased": reference.layer_norm_unbiased(x, weight, bias),
        "no bias": reference.layer_norm(x, weight),
        "zero-centered": reference.layer_norm(x, weight, bias, zero_centered_weight=True),
        "rms norm": reference.rms_norm(x, weight) + bias,
    }
    for y in wrong.values():
        assert y_error(y.astype(x.dtype), x, weight, bias) > BOUNDS[name].y
    xhat = reference.normalize(x)
    g = dy * weight.astype(np.float64)
    dropped = {
        "mean(g)": rstd * (g - xhat * (g * xhat).mean(-1, keepdims=True)),
        "xhat * mean(g * xhat)": rstd * (g - g.mean(-1, keepdims=True)),
        "rstd": reference.layer_norm_backward(dy, x, weight)[0] / rstd,
        "weight": reference.layer_norm_backward(dy, x)[0],
    }
    for dx in dropped.values():
        assert dx_error(dx.astype(x.dtype), dy, x, weight) > BOUNDS[name].dx
    average = (dy * xhat).mean(0).astype(x.dtype)
    assert dweight_error(average, dy, x) > BOUNDS[name].parameter
    assert dbias_error(dy.mean(0), dy) > BOUNDS[name].parameter


def test_a_sum_in_16_bits_is_caught():
    dy = np.random.default_rng(11).normal(1.0, 1.0, (2000, 3)).astype(ml_dtypes.bfloat16)
    dbias = np.zeros(3, ml_dtypes.bfloat16)
    for row in dy:
        dbias += row
    assert dbias_error(dbias, dy) > 1e3 * BOUNDS["bfloat16"].parameter


def test_zero_centered_weight_counts_as_one_plus_weight():
    x, weight, bias, dy = example("float32")
    weight = (weight * 1e-3).astype(np.float32)  # the scale is 1 + weight, not weight
    y = reference.layer_norm(x, weight, bias, zero_centered_weight=True).astype(np.float32)
    dx = reference.layer_norm_backward(dy, x, weight, zero_centered_weight=True)[0]
    dx = dx.astype(np.float32)
    assert y_error(y, x, weight, bias, zero_centered_weight=True) <= 0.5
    assert dx_error(dx, dy, x, weight, zero_centered_weight=True) <= 0.5
    assert y_error(y, x, weight, bias) > 1e3
    assert dx_error(dx, dy, x, weight) > 1e3


def test_empty_arrays_have_no_error():
    for shape in ((0, 3), (3, 0)):
        none = np.zeros(shape, np.float32)
        parameter = np.zeros(shape[1:], np.float32)
        assert y_error(none, none, parameter, parameter) == 0
        assert dx_error(none, none, none, parameter) == 0
        assert dweight_error(parameter, none, none) == 0
        assert dbias_error(parameter, none) == 0
    assert dbias_error(np.ones(3, np.float32), np.zeros((0, 3), np.float32)) > 5


def test_a_wrong_shape_or_type_is_an_error_not_a_measurement():
    x = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"y has shape \(3,\), expected \(4, 3\)"):
        y_error(x[0], x)
    with pytest.raises(ValueError, match=r"dx has shape \(1, 3\), expected \(4, 3\)"):
        dx_error(x[:1], x, x)
    with pytest.raises(ValueError, match=r"gradient has shape \(4,\), expected \(3,\)"):
        dbias_error(x[:, 0], x)
    with pytest.raises(TypeError, match="int64"):
        y_error(x.astype(np.int64), x)
    with pytest.raises(ValueError, match="group_norm"):
        y_error(x, x, kind="group_norm")
