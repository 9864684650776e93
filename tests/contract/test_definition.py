"""docs/specification.md, "Definition": formulas, what the backward uses, defaults."""

import inspect
import math

import numpy as np
import pytest
from calls import assert_same_bits, backward, forward
from cases import KINDS, Case
from checkers import check_statistics
from values import TYPES

import layernorm
import layernorm.numpy as ours
from layernorm import reference, spec

RNG = np.random.default_rng(7)


def test_y_of_a_row_worked_by_hand() -> None:
    # mean 2.5, biased variance 1.25 (the unbiased one is 5/3), and eps = 0.31
    y = ours.layer_norm(np.array([1.0, 2.0, 3.0, 4.0]), eps=0.31)
    rstd = 1 / math.sqrt(1.56)
    np.testing.assert_allclose(y, np.array([-1.5, -0.5, 0.5, 1.5]) * rstd, rtol=2e-15)


def test_eps_is_added_to_the_variance_inside_the_root() -> None:
    # Variance 0.0001 and eps 0.0003: the divisor is 0.02; outside the root it would be 0.0103.
    y = ours.layer_norm(np.array([0.01, -0.01]), eps=0.0003)
    np.testing.assert_allclose(y, [0.5, -0.5], rtol=1e-14)


def test_variance_is_taken_around_the_mean() -> None:
    # E[x^2] - E[x]^2 in float32 is noise here: the answers in use range from 316 to 1000.
    y = ours.layer_norm(np.array([10000, 10001, 10002], np.float32), eps=0)
    np.testing.assert_allclose(y, [-math.sqrt(1.5), 0, math.sqrt(1.5)], rtol=1e-6)


def test_rms_norm_is_the_same_with_mean_zero() -> None:
    # mean(x^2) = (9 + 16) / 2 = 12.5, and eps brings it to 16.
    y = ours.rms_norm(np.array([3.0, 4.0]), np.array([2.0, -1.0]), eps=3.5)
    np.testing.assert_allclose(y, [1.5, -1.0], rtol=2e-15)
    half = RNG.standard_normal((4, 32))
    x = np.concatenate([half, -half], axis=1)  # its mean is 0 exactly
    np.testing.assert_allclose(ours.rms_norm(x), ours.layer_norm(x, eps=1e-6), rtol=0, atol=1e-14)


def test_weight_multiplies_before_bias_is_added() -> None:
    x, weight, bias = RNG.standard_normal((3, 16))
    plain = ours.layer_norm(x)
    np.testing.assert_allclose(
        ours.layer_norm(x, weight, bias), plain * weight + bias, rtol=0, atol=1e-13
    )


SHAPES_OF_PARAMETERS = {
    "adaptive": ((3, 5, 16), -1, (3, 1, 16), (3, 1, 16)),
    "each head": ((3, 5, 4, 16), -1, (4, 16), (4, 16)),
    "each token": ((3, 5, 16), -1, (3, 5, 16), (3, 5, 16)),
    "channels first": ((3, 16, 2, 5), 1, (3, 16, 1, 1), (3, 16, 1, 1)),
    "behind the normalized axis": ((3, 16, 2, 5), 1, (16, 2, 1), (16, 2, 1)),
    "between normalized axes": ((4, 3, 8), (0, 2), (4, 3, 8), (4, 3, 8)),
    "all alike": ((3, 5, 16), -1, (1, 1, 16), (1, 16)),
    "unlike each other": ((3, 5, 4, 16), -1, (3, 1, 1, 16), (4, 16)),
    "an axis of one element": ((3, 1, 5), 1, (5,), (5,)),
    "one shared": ((3, 5, 4, 16), -1, (16,), (5, 1, 16)),
}


@pytest.mark.parametrize("name", SHAPES_OF_PARAMETERS)
def test_parameters_over_kept_axes_are_broadcast(name) -> None:
    shape, axis, of_weight, of_bias = SHAPES_OF_PARAMETERS[name]
    x, weight, bias = map(RNG.standard_normal, (shape, of_weight, of_bias))
    y = ours.layer_norm(x, weight, bias, axis=axis)
    normalized = spec.normalized_shape(shape, spec.normalize_axes(axis, x.ndim))
    scale, shift = (
        each.reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim)) if each.shape == normalized else each
        for each in (weight, bias)
    )
    expected = ours.layer_norm(x, axis=axis) * scale + shift
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", SHAPES_OF_PARAMETERS)
def test_gradients_have_the_shapes_of_their_parameters(name) -> None:
    shape, axis, of_weight, of_bias = SHAPES_OF_PARAMETERS[name]
    x, dy, weight, bias = map(RNG.standard_normal, (shape, shape, of_weight, of_bias))
    for given in ((weight, bias), (weight, None), (None, bias)):
        _, stats = ours.layer_norm_forward(x, *given, axis=axis)
        dx, *gradients = ours.layer_norm_backward(
            dy, x, stats, given[0], need_dbias=given[1] is not None
        )
        expected = reference.layer_norm_backward(dy, x, given[0], axis=axis)
        np.testing.assert_allclose(dx, expected[0], rtol=0, atol=1e-12)
        for at, (parameter, gradient) in enumerate(zip(given, gradients, strict=True)):
            if parameter is None:
                assert gradient is None
                continue
            right = reference.layer_norm_backward(
                dy, x, None, axis=axis, parameter_shape=parameter.shape
            )[1 + at]
            assert gradient.shape == parameter.shape
            np.testing.assert_allclose(gradient, right, rtol=0, atol=1e-12)


def test_weight_and_bias_are_optional_separately() -> None:
    x, weight, bias = RNG.standard_normal((3, 16))
    plain = ours.layer_norm(x)
    np.testing.assert_allclose(ours.layer_norm(x, weight), plain * weight, rtol=0, atol=1e-13)
    np.testing.assert_allclose(ours.layer_norm(x, bias=bias), plain + bias, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_centered_weight_means_one_plus_weight(kind) -> None:
    x, weight = RNG.standard_normal((2, 16))
    normalize = getattr(ours, kind)
    shifted = normalize(x, weight, zero_centered_weight=True)
    np.testing.assert_allclose(shifted, normalize(x, 1 + weight), rtol=0, atol=1e-13)


@pytest.mark.parametrize("axis", [0, 1, 2, (0, 1), (1, 2), (0, 2), (2, 0, 1), -2])
def test_any_axes_may_be_normalized(axis) -> None:
    x = RNG.standard_normal((3, 4, 5))
    axes = (axis,) if isinstance(axis, int) else axis
    mean, std = x.mean(axes, keepdims=True), x.std(axes, keepdims=True)
    np.testing.assert_allclose(
        ours.layer_norm(x, axis=axis, eps=0), (x - mean) / std, rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("axis", [-1, 1, (0, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_function(kind, axis) -> None:
    """Central differences of y itself, so that no formula for the backward is trusted."""
    x, dy = RNG.standard_normal((2, 3, 4, 5))
    shape = np.mean(x, tuple(a for a in range(3) if a not in np.atleast_1d(axis) % 3)).shape
    weight, bias = RNG.standard_normal((2, *shape))
    given = {"x": x, "weight": weight} | ({"bias": bias} if kind == "layer_norm" else {})
    normalize, step = getattr(ours, kind), 1e-6

    def differences(name: str) -> np.ndarray:
        gradient = np.empty_like(given[name])
        for at in np.ndindex(gradient.shape):
            moved = [given | {name: given[name].copy()} for _ in range(2)]
            moved[0][name][at] += step
            moved[1][name][at] -= step
            above, below = (normalize(**arguments, axis=axis, eps=0.1) for arguments in moved)
            gradient[at] = (dy * (above - below)).sum() / (2 * step)
        return gradient

    _, stats = getattr(ours, f"{kind}_forward")(**given, axis=axis, eps=0.1)
    gradients = getattr(ours, f"{kind}_backward")(dy, x, stats, weight)
    for name, gradient in zip(given, gradients, strict=True):
        np.testing.assert_allclose(gradient, differences(name), rtol=1e-6, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_call_without_statistics_gives_the_same_bits(kind, dtype) -> None:
    case = Case(kind, dtype, cols=67)
    x, _, weight, bias = case.arrays()
    parameters = (weight,) if kind == "rms_norm" else (weight, bias)
    y, _ = forward(ours, case, x, weight, bias)
    assert_same_bits(getattr(ours, kind)(x, *parameters, **case.definition), y, "y")
    assert_same_bits(getattr(layernorm, kind)(x, *parameters, **case.definition), y, "y")


def test_a_list_is_converted_by_asarray() -> None:
    np.testing.assert_allclose(ours.layer_norm([1.0, 3.0], [2.0, 2.0], [1.0, 1.0], eps=0), [-1, 3])


@pytest.mark.parametrize("values", ["ordinary", "mean_1e4", "mean_2_to_20", "outlier", "ramp"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_first", "axes_apart", "row_slice"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_its_statistics(kind, dtype, layout, values) -> None:
    check_statistics(ours, Case(kind, dtype, cols=35, layout=layout, values=values))


@pytest.mark.parametrize("layout", ["contiguous", "channels_first"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_backward_uses_exactly_what_the_forward_stored(kind, layout) -> None:
    # Twice the rstd is twice the xhat, without a rounding: dweight has to follow bit by bit.
    case = Case(kind, cols=67, layout=layout)
    x, dy, weight, bias = case.arrays()
    _, stats = forward(ours, case, x, weight, bias)
    _, dweight, _ = backward(ours, case, dy, x, stats, weight)
    stats.rstd[...] *= 2
    _, doubled, _ = backward(ours, case, dy, x, stats, weight)
    assert_same_bits(doubled, 2 * dweight, "dweight")


def test_what_is_not_needed_is_none() -> None:
    case = Case(cols=16)
    x, dy, weight, bias = case.arrays()
    _, stats = ours.layer_norm_forward(x, weight, bias)
    full = ours.layer_norm_backward(dy, x, stats, weight)
    for dropped, flag in enumerate(("need_dx", "need_dweight", "need_dbias")):
        part = ours.layer_norm_backward(dy, x, stats, weight, **{flag: False})
        for index, (got, expected) in enumerate(zip(part, full, strict=True)):
            if index == dropped:
                assert got is None
            else:
                assert_same_bits(got, expected, f"result {index} without {flag}")


def test_dweight_is_needed_where_there_is_a_weight() -> None:
    x, dy, _, _ = Case(cols=16).arrays()
    _, stats = ours.layer_norm_forward(x)
    assert ours.layer_norm_backward(dy, x, stats)[1] is None
    assert ours.layer_norm_backward(dy, x, stats, need_dweight=True)[1].shape == (16,)
    _, stats = ours.rms_norm_forward(x)
    assert ours.rms_norm_backward(dy, x, stats)[1] is None


@pytest.mark.parametrize("front_end", [ours, layernorm], ids=["layernorm.numpy", "layernorm"])
@pytest.mark.parametrize(("kind", "eps"), [("layer_norm", 1e-5), ("rms_norm", 1e-6)])
def test_defaults(front_end, kind, eps) -> None:
    x = 1e-3 * RNG.standard_normal((3, 4, 5))  # a variance of 1e-6: eps decides
    normalize = getattr(front_end, kind)
    explicit = normalize(x, axis=-1, eps=eps, zero_centered_weight=False)
    assert_same_bits(normalize(x), explicit, "y with the defaults")


def test_signatures() -> None:
    layer_norm = inspect.signature(ours.layer_norm)
    assert list(layer_norm.parameters) == [
        *("x", "weight", "bias"),
        *("residual", "gate", "activation", "norm_before_gate"),
        *("axis", "eps", "out", "total", "zero_centered_weight"),
    ]
    assert layer_norm.parameters["eps"].default == 1e-5
    assert layer_norm.parameters["axis"].kind is inspect.Parameter.KEYWORD_ONLY
    assert inspect.signature(ours.rms_norm).parameters["eps"].default == 1e-6
