"""The reference's axes, modes, edges, types and variants. test_reference_in_80_digits.py has its
accuracy.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest

from layernorm import reference

EXACT = [False, True]


@pytest.mark.parametrize("zero_centered_weight", [False, True])
@pytest.mark.parametrize("axis", [-1, 0, (0, 2), (2, 1), (-3, 1, 2)])
def test_forward_and_reverse_mode_are_each_other_s_transpose(axis, zero_centered_weight):
    rng = np.random.default_rng(1)
    x = rng.normal(3.0, 1.0, (5, 4, 7))
    axes = sorted(a % 3 for a in np.atleast_1d(axis))
    shape = tuple(x.shape[a] for a in axes)
    tx, dy = rng.normal(size=(2, *x.shape))
    weight, tweight, bias, tbias = rng.normal(size=(4, *shape))
    options = {"axis": axis, "zero_centered_weight": zero_centered_weight, "exact": True}
    y, ty = reference.layer_norm_jvp(x, tx, weight, tweight, bias, tbias, **options)
    dx, dweight, dbias = reference.layer_norm_backward(dy, x, weight, **options)
    right = np.sum(dx * tx) + np.sum(dweight * tweight) + np.sum(dbias * tbias)
    assert np.sum(dy * ty) == pytest.approx(float(right), rel=1e-15)
    np.testing.assert_array_equal(y, reference.layer_norm(x, weight, bias, **options))

    y, ty = reference.rms_norm_jvp(x, tx, weight, tweight, **options)
    dx, dweight = reference.rms_norm_backward(dy, x, weight, **options)
    right = np.sum(dx * tx) + np.sum(dweight * tweight)
    assert np.sum(dy * ty) == pytest.approx(float(right), rel=1e-15)
    np.testing.assert_array_equal(y, reference.rms_norm(x, weight, **options))


@pytest.mark.parametrize("axis", [0, 1, (0, 2), (2, 1), (0, 1, 2)])
def test_any_axes_are_the_last_axis_moved(axis):
    rng = np.random.default_rng(2)
    x, dy = rng.normal(size=(2, 4, 3, 6))
    axes = sorted(np.atleast_1d(axis))
    kept = [a for a in range(3) if a not in axes]
    shape = tuple(x.shape[a] for a in axes)
    weight, bias = rng.normal(size=(2, *shape))

    def flat(a):
        rows = a.transpose(*kept, *axes)
        return rows.reshape(*rows.shape[: len(kept)], -1)

    y = reference.layer_norm(x, weight, bias, axis=axis)
    dx, dweight, dbias = reference.layer_norm_backward(dy, x, weight, axis=axis)
    expected = reference.layer_norm(flat(x), weight.ravel(), bias.ravel())
    gradients = reference.layer_norm_backward(flat(dy), flat(x), weight.ravel())
    np.testing.assert_array_equal(flat(y), expected)
    np.testing.assert_array_equal(flat(dx), gradients[0])
    np.testing.assert_array_equal(dweight, gradients[1].reshape(shape))
    np.testing.assert_array_equal(dbias, gradients[2].reshape(shape))
    mean, var, rstd = reference.statistics(x, axis)
    assert mean.shape == tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    np.testing.assert_allclose(mean, x.mean(tuple(axes), keepdims=True), atol=1e-15)
    np.testing.assert_allclose(var, x.var(tuple(axes), keepdims=True), rtol=1e-14)
    np.testing.assert_allclose(rstd, 1 / np.sqrt(var + 1e-5), rtol=1e-14)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own
def test_ordinary_data_agrees_with_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    x, tx, dy = rng.normal(1.0, 2.0, (3, 6, 5, 33))
    weight, bias, tweight, tbias = rng.normal(size=(4, 5, 33))
    to = torch.tensor
    y, vjp = torch.func.vjp(
        lambda *a: torch.nn.functional.layer_norm(a[0], (5, 33), a[1], a[2], 1e-3),
        *map(to, (x, weight, bias)),
    )
    options = {"axis": (1, 2), "eps": 1e-3}
    np.testing.assert_allclose(reference.layer_norm(x, weight, bias, **options), y, atol=1e-13)
    gradients = reference.layer_norm_backward(dy, x, weight, **options)
    for ours, theirs in zip(gradients, vjp(to(dy)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-13)
    _, ty = torch.func.jvp(
        lambda *a: torch.nn.functional.layer_norm(a[0], (5, 33), a[1], a[2], 1e-3),
        tuple(map(to, (x, weight, bias))),
        tuple(map(to, (tx, tweight, tbias))),
    )
    ours = reference.layer_norm_jvp(x, tx, weight, tweight, bias, tbias, **options)[1]
    np.testing.assert_allclose(ours, ty, atol=1e-13)

    y, vjp = torch.func.vjp(
        lambda *a: torch.nn.functional.rms_norm(a[0], (5, 33), a[1], 1e-3), to(x), to(weight)
    )
    np.testing.assert_allclose(reference.rms_norm(x, weight, **options), y, atol=1e-13)
    for ours, theirs in zip(
        reference.rms_norm_backward(dy, x, weight, **options), vjp(to(dy)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-13)


@pytest.mark.parametrize("exact", EXACT)
@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("value", [0.0, 0.1, -1.7e308, 5e-324])
@pytest.mark.parametrize("cols", [1, 3, 1000, 2**17 + 1])  # 3: 0.1 + 0.1 + 0.1 is not 0.3
def test_a_constant_row_is_exactly_bias(cols, value, eps, exact):
    bias = np.linspace(-1.0, 2.0, cols)
    y = reference.layer_norm(np.full((2, cols), value), 3 * bias, bias, eps=eps, exact=exact)
    np.testing.assert_array_equal(y, [bias, bias])
    mean, var, _ = reference.statistics(np.full(cols, value), exact=exact)
    assert (mean[0], var[0]) == (value, 0)
    np.testing.assert_array_equal(
        reference.layer_norm_eps_on_std(np.full(cols, value), 3 * bias, bias, eps=eps), bias
    )


def test_rms_norm_of_zeros_is_zero_with_eps_zero():
    np.testing.assert_array_equal(reference.rms_norm(np.zeros((2, 3)), eps=0), np.zeros((2, 3)))


def test_no_derivative_where_the_function_jumps():
    x, dy = np.ones((2, 3)), np.array([[1.0, 2.0, 4.0]] * 2)
    x[1] = [1.0, 2.0, 3.0]
    dx, dweight, _ = reference.layer_norm_backward(dy, x, eps=0)
    assert np.isnan(dx[0]).all()
    assert np.isfinite(dx[1]).all()
    assert np.isfinite(dweight).all()


@pytest.mark.parametrize("exact", EXACT)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_nan_and_no_other_row_changes(bad, exact):
    x, dy = np.random.default_rng(4).normal(size=(2, 3, 8))
    weight = np.linspace(-1.0, 1.0, 8)
    good = reference.layer_norm(x, weight, exact=exact)
    good_dx, _, good_dbias = reference.layer_norm_backward(dy, x, weight, exact=exact)
    good_rms = reference.rms_norm(x, weight, exact=exact)
    x[1, 5] = bad
    y = reference.layer_norm(x, weight, exact=exact)
    dx, dweight, dbias = reference.layer_norm_backward(dy, x, weight, exact=exact)
    rms = reference.rms_norm(x, weight, exact=exact)
    for actual, expected in ((y, good), (dx, good_dx), (rms, good_rms)):
        assert np.isnan(actual[1]).all()
        np.testing.assert_array_equal(actual[[0, 2]], expected[[0, 2]])
    assert np.isnan(dweight).all()
    np.testing.assert_array_equal(dbias, good_dbias)
    assert np.isnan(np.concatenate([part[1] for part in reference.statistics(x)])).all()

    x[1, 5], dy[1, 5] = 0.0, bad
    dx, _, dbias = reference.layer_norm_backward(dy, x, weight, exact=exact)
    assert np.isnan(dx[1]).all()
    np.testing.assert_array_equal(dx[[0, 2]], good_dx[[0, 2]])
    assert not np.isfinite(dbias[5])
    assert np.isfinite(np.delete(dbias, 5)).all()


@pytest.mark.parametrize("exact", EXACT)
def test_empty_arrays(exact):
    assert reference.layer_norm(np.zeros((0, 3)), np.ones(3), exact=exact).shape == (0, 3)
    assert reference.layer_norm(np.zeros((3, 0)), np.ones(0), exact=exact).shape == (3, 0)
    none = np.zeros((0, 3))
    dx, dweight, dbias = reference.layer_norm_backward(none, none, np.ones(3), exact=exact)
    assert dx.shape == (0, 3)
    np.testing.assert_array_equal(dweight, np.zeros(3))
    np.testing.assert_array_equal(dbias, np.zeros(3))
    assert reference.layer_norm_backward(none.T, none.T, exact=exact)[0].shape == (3, 0)
    assert reference.statistics(none.T, exact=exact)[0].shape == (3, 1)


@pytest.mark.parametrize("exact", EXACT)
@pytest.mark.parametrize(
    "dtype", ["float16", ml_dtypes.bfloat16, "float32", ">f4", ">f8", "int32", np.longdouble]
)
def test_any_real_type_is_taken_and_left_unchanged(dtype, exact):
    x = np.array([[1, 5, 2], [3, -7, 4]]).astype(dtype)
    before = x.tobytes()
    expected = reference.layer_norm(x.astype(np.float64), exact=exact)
    np.testing.assert_array_equal(reference.layer_norm(x, exact=exact), expected)
    np.testing.assert_array_equal(
        reference.layer_norm_backward(x, x, exact=exact)[0],
        reference.layer_norm_backward(x.astype(np.float64), x, exact=exact)[0],
    )
    assert x.tobytes() == before


def test_errors_say_what_came():
    with pytest.raises(TypeError, match="complex128"):
        reference.layer_norm(np.zeros(3, np.complex128))
    with pytest.raises(ValueError, match=r"\(2,\).*\(4, 3\).*\(3,\)"):
        reference.layer_norm(np.zeros((4, 3)), np.zeros(2))
    with pytest.raises(ValueError, match=r"\(1,\)"):
        reference.layer_norm_backward(np.zeros((4, 3)), np.zeros((4, 3)), np.zeros(1))


def test_zero_centered_weight_is_one_plus_weight():
    x, dy = np.random.default_rng(5).normal(size=(2, 4, 6))
    weight = np.linspace(-0.5, 0.5, 6)
    for function, arguments in (
        (reference.layer_norm, (x,)),
        (reference.rms_norm, (x,)),
        (reference.layer_norm_backward, (dy, x)),
        (reference.rms_norm_backward, (dy, x)),
    ):
        for ours, plain in zip(
            function(*arguments, weight, zero_centered_weight=True),
            function(*arguments, 1 + weight),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.1])
def test_variants_are_their_formulas(eps, unbiased):
    x = np.random.default_rng(6).normal(2.0, 3.0, (4, 7))
    weight, bias = np.linspace(1.0, 2.0, 7), np.linspace(-1.0, 1.0, 7)
    deviation = x - x.mean(-1, keepdims=True)
    std = x.std(-1, ddof=int(unbiased), keepdims=True)
    np.testing.assert_allclose(
        reference.layer_norm_eps_on_std(x, weight, bias, eps=eps, unbiased=unbiased),
        deviation / (std + eps) * weight + bias,
        atol=1e-14,
    )
    if unbiased:
        np.testing.assert_allclose(
            reference.layer_norm_unbiased(x, weight, bias, eps=eps),
            deviation / np.sqrt(std**2 + eps) * weight + bias,
            atol=1e-14,
        )


def test_the_unbiased_variance_of_one_element_is_nan():
    assert np.isnan(reference.layer_norm_unbiased(np.ones((2, 1)))).all()
    assert np.isnan(reference.layer_norm_eps_on_std(np.ones((2, 1)), unbiased=True)).all()


def test_variants_are_told_apart_from_layer_norm():
    x = np.random.default_rng(7).normal(size=(4, 7))
    answers = [
        reference.layer_norm(x, eps=1e-2),
        reference.layer_norm_eps_on_std(x, eps=1e-2),
        reference.layer_norm_eps_on_std(x, eps=1e-2, unbiased=True),
        reference.layer_norm_unbiased(x, eps=1e-2),
    ]
    for one, other in itertools.combinations(answers, 2):
        assert np.abs(one - other).max() > 1e-3
