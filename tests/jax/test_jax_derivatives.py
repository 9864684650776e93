"""Derivatives of any order in both modes, and vmap."""

import functools
import itertools

import numpy as np
import pytest
from problems import a_problem

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax.test_util import check_grads  # noqa: E402

import layernorm.jax as ours  # noqa: E402
import layernorm.numpy as numpy_front_end  # noqa: E402
from layernorm import reference  # noqa: E402


def formula(x, weight, bias, *, axis=-1, eps=1e-5, centered=True):
    """Compute the definition in jax.numpy, for JAX to differentiate."""
    axes = tuple(np.atleast_1d(axis) % x.ndim)
    sizes = [size if each in axes else 1 for each, size in enumerate(x.shape)]
    d = x - x.mean(axes, keepdims=True) if centered else x
    xhat = d / jnp.sqrt((d * d).mean(axes, keepdims=True) + eps)
    return xhat * weight.reshape(sizes) + bias.reshape(sizes)


def rms_norm_and_bias(x, weight, bias, **options):
    return ours.rms_norm(x, weight, **options) + bias


PAIRS = {
    "layer_norm": (ours.layer_norm, formula),
    "rms_norm": (rms_norm_and_bias, functools.partial(formula, centered=False, eps=1e-6)),
}
each_pair = pytest.mark.parametrize("name", PAIRS)


def problem(shape=(3, 5), axis=-1):
    return tuple(map(jnp.asarray, a_problem(shape, axis)[:3]))


def assert_close(got, expected, tolerance=1e-9):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_check_grads_to_second_order_in_both_modes(x64) -> None:
    """Below, derivatives along the last axis are compared with those of the formula."""
    x, weight, bias = problem((2, 3, 2), (0, 2))
    layer_norm = functools.partial(ours.layer_norm, axis=(0, 2))
    check_grads(layer_norm, (x, weight, bias), order=2, modes=("fwd", "rev"))
    x, weight, _ = problem((2, 3, 4), 1)
    rms_norm = functools.partial(ours.rms_norm, axis=1, zero_centered_weight=True)
    check_grads(rms_norm, (x, weight), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("second", ["jvp", "vjp"])
@each_pair
def test_derivatives_of_the_tangent_along_other_tangents(name, second, x64) -> None:
    """check_grads uses x as the tangent of x, along which xhat does not change."""
    x, weight, bias = problem((3, 7))
    along = (jnp.cos(x * 7), bias, weight)
    others = (jnp.sin(x * 5), weight * bias)

    def of(function):
        def tangent(x, weight):
            return jax.jvp(function, (x, weight, bias), along)[1]

        if second == "jvp":
            return jax.jvp(tangent, (x, weight), others)[1]
        return jax.vjp(tangent, x, weight)[1](others[0])

    assert_close(*(jax.jit(functools.partial(of, each))() for each in PAIRS[name]))


@pytest.mark.parametrize("modes", ["ffr", "frr", "rfr"])
def test_third_derivatives_in_any_order_of_modes(modes, x64) -> None:
    """Of a function of one number, on which x, weight and bias all depend."""
    x, weight, bias = problem((2, 3))
    derivative = {
        "f": lambda f: lambda t: jax.jvp(f, (t,), (jnp.ones_like(t),))[1],
        "r": jax.grad,
    }

    def third(function):
        def moved(t):
            y = function(x + jnp.sin(t * x), weight * jnp.exp(t), bias + t**2)
            return jnp.sum(jnp.cos(y))

        return jax.jit(functools.reduce(lambda f, mode: derivative[mode](f), modes, moved))(0.3)

    assert_close(*map(third, PAIRS["layer_norm"]))


@each_pair
def test_jacobians_and_hessians_are_those_of_the_formula(name, x64) -> None:
    function, expected = PAIRS[name]
    arguments = problem()
    for jacobian in (jax.jacfwd, jax.jacrev):
        both = [jax.jit(jacobian(f, argnums=(0, 1, 2)))(*arguments) for f in (function, expected)]
        assert_close(*both)

    def loss(f, *arguments):
        return jnp.sum(jnp.sin(f(*arguments)))

    hessian = jax.jit(jax.hessian(loss, argnums=(1, 2, 3)), static_argnums=0)
    assert_close(hessian(function, *arguments), hessian(expected, *arguments))
    outer = jax.jit(jax.jacrev(jax.jacrev(loss, argnums=1), argnums=2), static_argnums=0)
    assert_close(outer(function, *arguments), outer(expected, *arguments))


def test_forward_mode_is_that_of_the_reference(x64) -> None:
    x, weight, bias, dx = map(jnp.asarray, a_problem((4, 9)))
    dweight, dbias = bias, weight
    _, got = jax.jvp(ours.layer_norm, (x, weight, bias), (dx, dweight, dbias))
    _, expected = reference.layer_norm_jvp(x, dx, weight, dweight, bias, dbias)
    assert_close(got, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_forward_mode_of_a_row_far_from_zero(dtype) -> None:
    x, weight, bias, tangent = (each.astype(np.float32) for each in a_problem((4, 65)))
    x = jnp.asarray(x * 0.5 + 100, dtype)
    weight, bias, tangent = (jnp.asarray(each, dtype) for each in (weight, bias, tangent))
    none = jnp.zeros_like(weight)
    _, got = jax.jvp(ours.layer_norm, (x, weight, bias), (tangent, none, none))
    widened = [np.asarray(each, np.float64) for each in (x, tangent, weight)]
    _, expected = reference.layer_norm_jvp(*widened)
    scale = np.abs(expected).max()
    assert np.abs(np.asarray(got, np.float64) - expected).max() < 4 * jnp.finfo(dtype).eps * scale


# ---- vmap

BATCHES = [
    each
    for each in itertools.product((0, 1, None), (0, None), (0, None))
    if any(dim is not None for dim in each)
]


def batched(in_axes):
    x, weight, bias = problem()
    place = {0: lambda a, n: jnp.stack([a * (1 + i) for i in range(n)]), None: lambda a, n: a}
    place[1] = lambda a, n: jnp.moveaxis(place[0](a, n), 0, 1)
    return [place[dim](each, 4) for each, dim in zip((x, weight, bias), in_axes, strict=True)]


@pytest.mark.parametrize("in_axes", BATCHES, ids=str)
def test_vmap_gives_each_member_its_result_and_its_derivatives(in_axes, x64) -> None:
    arguments = batched(in_axes)

    def everything(f, x, weight, bias):
        y, transposed = jax.vjp(f, x, weight, bias)
        tangent = jax.jvp(f, (x, weight, bias), (x, bias, weight))[1]
        return y, transposed(jnp.cos(y)), tangent

    both = [
        jax.jit(jax.vmap(functools.partial(everything, f), in_axes))(*arguments)
        for f in PAIRS["layer_norm"]
    ]
    assert_close(*both)

    def loss(f, *arguments):
        return jnp.sum(jnp.cos(jax.vmap(f, in_axes)(*arguments)))

    gradients = [
        jax.jit(jax.grad(functools.partial(loss, f), argnums=(0, 1, 2)))(*arguments)
        for f in PAIRS["layer_norm"]
    ]
    assert_close(*gradients)


def test_vmap_in_vmap(x64) -> None:
    x, weight, bias = problem((5,))
    xs = jnp.stack([x * (1 + i) for i in range(6)]).reshape(2, 3, 5)
    weights = jnp.stack([weight + i for i in range(3)])
    for inner, outer, given in (
        ((0, 0, None), (0, None, None), (xs, weights, bias)),
        ((0, None, None), (0, 0, None), (xs, weights[:2], bias)),
        ((None, 0, None), (0, None, None), (xs[:, 0], weights, bias)),
        ((0, 0, None), (None, None, 0), (xs[0], weights, jnp.stack([bias, weight]))),
    ):

        def nested(f, *arguments, inner=inner, outer=outer):
            return jnp.sum(jnp.sin(jax.vmap(jax.vmap(f, inner), outer)(*arguments)))

        both = [
            jax.jit(jax.grad(functools.partial(nested, f), argnums=(0, 1, 2)))(*given)
            for f in PAIRS["layer_norm"]
        ]
        assert_close(*both)


def test_a_batch_of_calls_is_one_call_with_more_rows_and_no_copied_weight() -> None:
    x, weight, bias, _ = (each.astype(np.float32) for each in a_problem((7, 5, 33)))
    function = jax.jit(jax.vmap(ours.layer_norm, (0, None, None)))
    text = function.lower(x, weight, bias).as_text()
    (call,) = [line for line in text.splitlines() if "layernorm_forward" in line]
    assert "(tensor<7x5x33xf32>, tensor<33xf32>, tensor<33xf32>)" in call
    np.testing.assert_array_equal(
        function(x, weight, bias), numpy_front_end.layer_norm(x, weight, bias)
    )


def test_gradients_for_each_member_are_one_call_with_the_bits_of_each() -> None:
    x, weight, bias, dy = (each.astype(np.float32) for each in a_problem((7, 20, 33)))

    def gradients(x, dy):
        return jax.vjp(ours.layer_norm, x, weight, bias)[1](dy)

    function = jax.jit(jax.vmap(gradients))
    assert function.lower(x, dy).as_text().count("layernorm_backward") == 1
    for at, got in enumerate(zip(*map(np.asarray, function(x, dy)), strict=True)):
        _, stats = numpy_front_end.layer_norm_forward(x[at], weight, bias)
        expected = numpy_front_end.layer_norm_backward(dy[at], x[at], stats, weight)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)


# ---- what the backward computes


def calls_in(function, *arguments) -> str:
    return jax.jit(function).lower(*arguments).as_text()


def test_what_is_not_needed_is_not_computed() -> None:
    x, weight, bias, _ = (each.astype(np.float32) for each in a_problem())

    def loss(x, weight, bias):
        return jnp.sum(jnp.sin(ours.layer_norm(x, weight, bias)))

    text = calls_in(jax.grad(loss), x, weight, bias)
    assert "need_dweight = false" in text
    assert "need_dbias = false" in text
    text = calls_in(jax.grad(loss, argnums=(1, 2)), x, weight, bias)
    assert "need_dx = false" in text
    forward = calls_in(ours.layer_norm, x, weight, bias)
    assert forward.count("layernorm_forward") == 1
    assert "-> tensor<6x13xf32>" in forward  # no statistics
