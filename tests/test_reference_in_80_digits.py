"""The reference is the definition: judged by mpmath, which shares only the formula with it.

Values are computed from the textbook lines in 80 digits; derivatives by differences of those
values, so that no derivation is trusted. The float64 reference has to meet the contract for float64
(5 ulp). The exact one judges float64, and is allowed a fiftieth of an ulp.
"""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layernorm import reference

DIGITS = 80
ULP = 2.0**-52  # at 1
TOLERANCE = {False: 5 * ULP, True: ULP / 50}  # by `exact`
SMALLEST = 2.0**-1074
LARGEST = np.finfo(np.float64).max

ROWS = {
    "ordinary": [0.3, -1.2, 2.5, 0.7, -0.1],
    "mean of 2**20 standard deviations": [2.0**20 + v for v in (0.3, -1.2, 2.5, 0.7, -0.1)],
    "float32 near its largest": [3e38, -3.4e38, 1e38, 2e38, 3.3e38],
    "float64 near its largest": [1.7e308, -1.79e308, 1e308, 1.5e308, -3e307],
    "float64 largest, same sign": [1.7e308, 1.79e308, 1.75e308, 1.71e308, 1.77e308],
    "subnormal": [5e-324, 1e-322, -3e-323, 0.0, 2e-320],
    "neighboring numbers": [1.0, 1.0 + ULP, 1.0, 1.0 - ULP / 2, 1.0],
    "one outlier": [1e16, 1.0, 2.0, -1.0, 0.5],
    "every scale at once": [1e308, 1e-308, -1e150, 1.0, 5e-324],
    "two values": [0.1, 0.1, 0.1, 0.1, 0.2],
}
EPS = [0.0, 1e-12, 1e-5, 1e3]
EXACT = [False, True]


def exactly(values):
    return [mpmath.mpf(float(v)) for v in np.ravel(values)]


def as_mpf(value):
    """The exact value of a float64 or a long double: its mantissa is the sum of two float64."""
    if not np.isfinite(value):
        return mpmath.mpf(float(value))
    mantissa, exponent = np.frexp(value)
    high = float(mantissa)
    return (mpmath.mpf(high) + float(mantissa - high)) * mpmath.mpf(2) ** int(exponent)


def defined_rstd_and_xhat(x, eps, centered):
    mean = sum(x) / len(x) if centered else mpmath.mpf(0)
    var = sum((v - mean) ** 2 for v in x) / len(x)
    if var + eps == 0:
        return mpmath.inf, [mpmath.mpf(0)] * len(x)
    rstd = 1 / mpmath.sqrt(var + eps)
    return rstd, [(v - mean) * rstd for v in x]


def defined(x, weight, bias, eps, centered):
    _, xhat = defined_rstd_and_xhat(x, eps, centered)
    return [a * w + b for a, w, b in zip(xhat, weight, bias, strict=True)]


def assert_close(actual, expected, scale, exact):
    """|actual - expected| <= tolerance * scale, or the rounding of a subnormal result."""
    assert actual.shape == (len(expected),)
    for a, e, s in zip(actual, expected, scale, strict=True):
        if not exact and abs(e) > LARGEST:
            assert abs(a) >= LARGEST / 2
            continue
        bound = TOLERANCE[exact] * s + (0 if exact else SMALLEST)
        assert abs(as_mpf(a) - e) <= bound, (a, mpmath.nstr(e, 25))


def assert_y_is_defined(x, weight, bias, eps, centered, exact):
    with mpmath.workdps(DIGITS):
        mp_x, mp_w, mp_b = exactly(x), exactly(weight), exactly(bias)
        _, xhat = defined_rstd_and_xhat(mp_x, mpmath.mpf(eps), centered)
        expected = defined(mp_x, mp_w, mp_b, mpmath.mpf(eps), centered)
        scale = [
            max(abs(w) * max(1, abs(a)), abs(b)) for a, w, b in zip(xhat, mp_w, mp_b, strict=True)
        ]
        if centered:
            y = reference.layer_norm(x, weight, bias, eps=eps, exact=exact)
        else:
            y = reference.rms_norm(x, weight, eps=eps, exact=exact)
        assert y.dtype == (np.longdouble if exact else np.float64)
        assert_close(y, expected, scale, exact)


@pytest.mark.parametrize("exact", EXACT)
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("name", ROWS)
def test_y_is_the_definition_in_80_digits(name, eps, centered, exact):
    weight = [1.5, -0.3, 1.0, 2.0, 0.01]
    bias = [0.2, -0.7, 3.0, 0.0, 1.1] if centered else [0.0] * 5
    assert_y_is_defined(np.array(ROWS[name]), weight, bias, eps, centered, exact)


@pytest.mark.parametrize("exact", EXACT)
@pytest.mark.parametrize("mean", [0.0, 1e2, 2.0**20])
@pytest.mark.parametrize("cols", [3, 129, 5000])  # 129: one more than NumPy's block of a sum
def test_y_of_long_rows_is_the_definition_in_80_digits(cols, mean, exact):
    x = np.random.default_rng(cols).normal(mean, 1.0, cols)
    assert_y_is_defined(x, np.ones(cols), np.zeros(cols), 1e-5, True, exact)


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None)
@given(
    x=st.lists(finite, min_size=1, max_size=6),
    eps=st.sampled_from([0.0, SMALLEST, 1e-5, 1e300]),
    centered=st.booleans(),
    exact=st.booleans(),
)
def test_y_is_the_definition_for_every_finite_row(x, eps, centered, exact):
    assert_y_is_defined(x, [1.0] * len(x), [0.0] * len(x), eps, centered, exact)


@pytest.mark.parametrize("exact", EXACT)
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("name", ROWS)
def test_statistics_are_the_definition_in_80_digits(name, centered, exact):
    x = np.array(ROWS[name])
    mean, var, rstd = reference.statistics(x, -1, 1e-5, centered=centered, exact=exact)
    with mpmath.workdps(DIGITS):
        mp_x, eps = exactly(x), mpmath.mpf(1e-5)
        mp_mean = sum(mp_x) / len(x) if centered else mpmath.mpf(0)
        mp_var = sum((v - mp_mean) ** 2 for v in mp_x) / len(x)
        # in units of the standard deviation, but no closer than a number can be
        unit = max(mpmath.sqrt(mp_var), abs(mp_mean) / 5)
        assert_close(mean, [mp_mean], [unit], exact)
        assert_close(var, [mp_var], [mp_var], exact)
        assert_close(rstd, [1 / mpmath.sqrt(mp_var + eps)], [1 / mpmath.sqrt(mp_var + eps)], exact)


def backward(dy, x, weight, eps, centered, exact):
    if centered:
        return reference.layer_norm_backward(dy, x, weight, eps=eps, exact=exact)
    return *reference.rms_norm_backward(dy, x, weight, eps=eps, exact=exact), None


def differences(function, values, steps):
    """Central differences of a function of a list, in each of its elements."""
    for i, step in enumerate(steps):
        up, down = list(values), list(values)
        up[i] += step
        down[i] -= step
        yield (function(up) - function(down)) / (2 * step)


@pytest.mark.parametrize("exact", EXACT)
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("name", ROWS)
def test_gradients_are_differences_of_the_definition(name, eps, centered, exact):
    x = np.array(ROWS[name])
    weight = np.array([1.5, -0.3, 1.0, 2.0, 0.01])
    dy = np.array([0.4, 1.1, -2.0, 0.6, 1.7])
    dx, dweight, dbias = backward(dy, x, weight, eps, centered, exact)
    with mpmath.workdps(DIGITS):
        mp_x, mp_w, mp_b, mp_dy = map(exactly, (x, weight, np.zeros(5), dy))
        mp_eps = mpmath.mpf(eps)

        def loss(x, weight, bias):
            y = defined(x, weight, bias, mp_eps, centered)
            return sum(a * b for a, b in zip(mp_dy, y, strict=True))

        rstd, xhat = defined_rstd_and_xhat(mp_x, mp_eps, centered)
        step = [mpmath.mpf(10) ** -25 / rstd] * 5
        expected = list(differences(lambda v: loss(v, mp_w, mp_b), mp_x, step))
        largest_g = max(abs(a * b) for a, b in zip(mp_dy, mp_w, strict=True))
        assert_close(dx, expected, [rstd * max(1, abs(a)) * largest_g for a in xhat], exact)

        ones = [mpmath.mpf(1)] * 5
        expected = list(differences(lambda v: loss(mp_x, v, mp_b), mp_w, ones))
        scale = [abs(a) * max(1, abs(b)) for a, b in zip(mp_dy, xhat, strict=True)]
        assert_close(dweight, expected, scale, exact)
        if centered:
            expected = list(differences(lambda v: loss(mp_x, mp_w, v), mp_b, ones))
            assert_close(dbias, expected, map(abs, mp_dy), exact)


@pytest.mark.parametrize("exact", EXACT)
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("name", ROWS)
def test_jvp_is_a_difference_of_the_definition(name, centered, exact):
    x = np.array(ROWS[name])
    eps = 1e-12
    weight, bias = np.array([1.5, -0.3, 1.0, 2.0, 0.01]), np.array([0.2, -0.7, 3.0, 0.0, 1.1])
    dweight, dbias = np.array([0.9, 0.2, -0.4, 1.0, 0.0]), np.array([-1.0, 0.5, 0.1, 2.0, 0.3])
    with mpmath.workdps(DIGITS):
        rstd, xhat = defined_rstd_and_xhat(exactly(x), mpmath.mpf(eps), centered)
        direction = np.array([0.4, 1.1, -2.0, 0.6, 1.7])
        if centered:
            y, dy = reference.layer_norm_jvp(
                x, direction, weight, dweight, bias, dbias, eps=eps, exact=exact
            )
        else:
            bias, dbias = np.zeros(5), np.zeros(5)
            y, dy = reference.rms_norm_jvp(x, direction, weight, dweight, eps=eps, exact=exact)

        def along(step):
            moved = [
                [a + step * b for a, b in zip(exactly(v), exactly(d), strict=True)]
                for v, d in ((x, direction), (weight, dweight), (bias, dbias))
            ]
            return defined(*moved, mpmath.mpf(eps), centered)

        step = mpmath.mpf(10) ** -25 / max(rstd, 1)
        expected = [(u - d) / (2 * step) for u, d in zip(along(step), along(-step), strict=True)]
        unit = 2 * max(rstd, 1)  # the largest tangent, the largest weight
        assert_close(dy, expected, [2 * unit * max(1, abs(a)) for a in xhat], exact)
        assert_close(y, along(mpmath.mpf(0)), [3 * max(1, abs(a)) for a in xhat], exact)


@pytest.mark.parametrize("exact", EXACT)
@pytest.mark.parametrize("scale", [1e-307, 1.0, 1e300])
def test_gradients_survive_products_beyond_float64(scale, exact):
    x, weight = np.array([0.3, -1.2, 2.5]), np.array([1.5, -0.3, 1.0])
    dy = np.array([[0.4, 1.1, -2.0], [0.1, 0.2, 0.3]])
    plain = reference.layer_norm_backward(dy, np.array([x, x]), weight, exact=True)
    # dy * weight is the same, although weight alone is at the end of the range
    dx, _, _ = reference.layer_norm_backward(
        dy / scale, np.array([x, x]), weight * scale, exact=exact
    )
    np.testing.assert_allclose(dx, plain[0], rtol=1e-13)
    dx, dweight, dbias = reference.layer_norm_backward(
        dy * scale, np.array([x, x]), weight, exact=exact
    )
    rounding = {"rtol": 1e-13, "atol": 10 * SMALLEST}  # 1e-307: some results are subnormal
    for scaled, unscaled in zip((dx, dweight, dbias), plain, strict=True):
        np.testing.assert_allclose(scaled, unscaled * scale, **rounding)


@pytest.mark.parametrize("exact", EXACT)
def test_tiny_gradients_beside_zeros_do_not_vanish(exact):
    x, weight = np.array([0.3, -1.2, 2.5, 0.1]), np.array([1.5, -0.3, 1.0, 2.0])
    dy = np.array([0.4, 1.1, -2.0, 0.0])
    plain = reference.layer_norm_backward(dy, x, weight, eps=0, exact=True)[0]
    # dy * weight is about 2**-1600, less than the smallest float64; dx, 2**-800, can be written
    far = np.array([-800, -800, -800, 1000])
    dx = reference.layer_norm_backward(
        dy * 2.0**-800, x * 2.0**-800, np.ldexp(weight, far), eps=0, exact=exact
    )[0]
    np.testing.assert_allclose(dx, plain * 2.0**-800, rtol=1e-13)


def test_sums_over_many_rows_are_pairwise():
    dy = np.full((100_000, 2), 0.1)  # added one by one, this is off by 2e-12 of its value
    _, _, dbias = reference.layer_norm_backward(dy, dy)
    np.testing.assert_allclose(dbias, math.fsum(dy[:, 0]), rtol=5 * ULP)
