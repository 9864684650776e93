"""Weight and bias that vary along kept axes: adaptive layer norm, per-head and grouped norms."""

import functools

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from as_numpy_jax import compact_formulas, to_jax  # noqa: E402
from calls import assert_same_bits  # noqa: E402
from jax import export  # noqa: E402
from jax.test_util import check_grads  # noqa: E402
from jax_renamed import enable_x64  # noqa: E402
from values import TYPES, dtype_of  # noqa: E402

import layernorm.jax as ours  # noqa: E402
import layernorm.numpy as numpy_front_end  # noqa: E402
from layernorm import accuracy, spec  # noqa: E402

# x's shape, the axis, and the shapes of weight and bias. 33: the last vector is partly padding.
ALIKE = {
    "adaptive": ((3, 5, 33), -1, (3, 1, 33), (3, 1, 33)),
    "adaptive, several blocks of rows": ((2, 1203, 33), -1, (2, 1, 33), (2, 1, 33)),
    "per head": ((2, 5, 3, 16), -1, (3, 16), (3, 16)),
    "per head and sample": ((2, 5, 3, 16), -1, (2, 1, 3, 16), (2, 1, 3, 16)),
    "per token": ((3, 5, 33), -1, (3, 5, 33), (3, 5, 33)),
    "channels first": ((3, 33, 4, 5), 1, (3, 33, 1, 1), (3, 33, 1, 1)),
    "channels first, varying behind": ((3, 33, 4, 5), 1, (33, 4, 1), (33, 4, 1)),
    "separated axes": ((2, 3, 4, 5), (1, 3), (2, 3, 1, 5), (2, 3, 1, 5)),
    "separated by the varying axis": ((2, 3, 4, 5), (1, 3), (3, 4, 5), (3, 4, 5)),
    "size 1 before a varying axis": ((1, 4, 33), (0, 2), (1, 4, 33), (1, 4, 33)),
    "all axes, none varies": ((3, 5, 33), -1, (1, 1, 33), (33,)),
    "weight alone": ((3, 5, 33), -1, (5, 33), None),
    "bias alone": ((3, 5, 33), -1, None, (5, 33)),
}
# Those that vary along fewer axes are repeated: their gradients are sums of those of the repeats.
MIXED = {
    "scale per sample, shared shift": ((3, 5, 33), -1, (3, 1, 33), (33,)),
    "shared scale, shift per token": ((3, 5, 33), -1, (33,), (5, 33)),
    "other axes": ((3, 5, 33), -1, (3, 1, 33), (5, 33)),
    "other axes, channels first": ((3, 33, 4, 5), 1, (3, 33, 1, 1), (33, 4, 1)),
    "thousands of repeats": ((2, 5000, 9), -1, (2, 1, 9), (5000, 9)),
}
every = pytest.mark.parametrize("name", [*ALIKE, *MIXED])


def problem(name: str, dtype: str = "float32", kind: str = "layer_norm"):
    """Return x, weight, bias, dy and the axis."""
    shape, axis, *parameters = (ALIKE | MIXED)[name]
    rng = np.random.default_rng(5)
    x, dy = rng.normal(3, 1, shape), rng.normal(0.5, 1, shape)
    weight, bias = (None if each is None else rng.normal(0.3, 1, each) for each in parameters)
    bias = None if kind == "rms_norm" else bias
    arrays = (x, weight, bias, dy)
    return *(None if each is None else each.astype(dtype_of(dtype)) for each in arrays), axis


def numpy_results(kind, x, weight, bias, dy, axis, *, eps=1e-5, zero_centered_weight=False):
    forward = getattr(numpy_front_end, f"{kind}_forward")
    backward = getattr(numpy_front_end, f"{kind}_backward")
    given = (weight, bias) if kind == "layer_norm" else (weight,)
    zero_centered = {"zero_centered_weight": zero_centered_weight}
    y, stats = forward(x, *given, axis=axis, eps=eps, **zero_centered)
    return [y, *backward(dy, x, stats, weight, **zero_centered)]


@functools.partial(jax.jit, static_argnames=("kind", "options"))
def jax_results(kind, x, weight, bias, dy, options):
    """Return y, dx and those of dweight and dbias that there are."""
    given = {"weight": weight, "bias": bias}
    given = {name: each for name, each in given.items() if each is not None}

    def function(x, given):
        return getattr(ours, kind)(x, **given, **dict(options))

    y, transposed = jax.vjp(function, x, given)
    dx, found = transposed(dy)
    return [y, dx, found.get("weight"), found.get("bias")]


def results_of(kind, x, weight, bias, dy, **options):
    with enable_x64(True):
        found = jax_results(kind, *map(to_jax, (x, weight, bias, dy)), tuple(options.items()))
        return [None if each is None else np.asarray(each) for each in found]


def is_repeated(parameter, name) -> bool:
    """Tell whether the other parameter varies along more axes than this one."""
    shape, axis, *parameters = (ALIKE | MIXED)[name]
    axes = spec.normalize_axes(axis, len(shape))
    own = spec.varying_axes(parameter.shape, shape, axes)
    varying = [spec.varying_axes(each, shape, axes) for each in parameters if each is not None]
    return any(set(each) - set(own) for each in varying)


def judge(kind, found, x, weight, bias, dy, axis, *, eps=1e-5, zero_centered_weight=False) -> None:
    """Check that results are within the bounds."""
    y, dx, dweight, dbias = found
    bounds, options = accuracy.BOUNDS[x.dtype.name], {"kind": kind, "axis": axis, "eps": eps}
    weighted = options | {"zero_centered_weight": zero_centered_weight}
    assert accuracy.y_error(y, x, weight, bias, **weighted) <= bounds.y
    assert accuracy.dx_error(dx, dy, x, weight, **weighted) <= bounds.dx
    if dweight is not None:
        assert accuracy.dweight_error(dweight, dy, x, **options) <= bounds.parameter
    if dbias is not None:
        assert accuracy.dbias_error(dbias, dy, axis=axis) <= bounds.parameter


# RMS norm differs in nothing that concerns these shapes, nor do two 16-bit types.
@pytest.mark.parametrize(
    ("kind", "dtype"), [*(("layer_norm", dtype) for dtype in TYPES), ("rms_norm", "float32")]
)
@every
def test_the_bits_are_those_of_the_numpy_front_end(name, kind, dtype) -> None:
    x, weight, bias, dy, axis = problem(name, dtype, kind)
    options = {"zero_centered_weight": weight is not None and name != "per token", "eps": 1e-3}
    found = results_of(kind, x, weight, bias, dy, axis=axis, **options)
    y, dx, *gradients = numpy_results(kind, x, weight, bias, dy, axis, **options)
    assert_same_bits(found[0], y, "y")
    if name in MIXED:
        judge(kind, found, x, weight, bias, dy, axis, **options)
    if name == "other axes, channels first":
        return  # NumPy's backward reads strided rows for the weight, and contiguous ones for bias
    assert_same_bits(found[1], dx, "dx")
    for parameter, got, expected in zip((weight, bias), found[2:], gradients, strict=False):
        if parameter is not None:
            assert got.dtype == parameter.dtype
            assert got.shape == parameter.shape
            if not is_repeated(parameter, name):
                assert_same_bits(got, expected, "a gradient")


@pytest.mark.parametrize(("kind", "dtype"), [("layer_norm", "float32"), ("rms_norm", "bfloat16")])
@pytest.mark.parametrize("name", [each for each in (*ALIKE, *MIXED) if "blocks" not in each])
def test_the_formulas_of_other_devices_are_within_the_bounds(name, kind, dtype) -> None:
    x, weight, bias, dy, axis = problem(name, dtype, kind)
    found = compact_formulas(kind, *map(to_jax, (x, weight, bias, dy)), axis)
    found = [None if each is None else np.asarray(each) for each in found]
    judge(kind, found, x, weight, bias, dy, axis)


# ---- derivatives


def formula(x, weight, bias, *, axis):
    """Compute the definition in jax.numpy, for JAX to differentiate."""
    axes = spec.normalize_axes(axis, x.ndim)

    def spread(parameter):
        if parameter.ndim == len(axes):
            return jnp.expand_dims(parameter, [a for a in range(x.ndim) if a not in axes])
        return parameter

    d = x - x.mean(axes, keepdims=True)
    xhat = d / jnp.sqrt((d * d).mean(axes, keepdims=True) + 1e-5)
    y = xhat if weight is None else xhat * spread(weight)
    return y if bias is None else y + spread(bias)


def small_problem(name: str):
    """Return the arrays in float64, of few elements, as a dict without those that are None."""
    *arrays, axis = problem(name, "float64")
    few = dict(zip(("x", "weight", "bias", "dy"), arrays, strict=True))
    few = {
        key: each[tuple(slice(0, 4) for _ in each.shape)]
        for key, each in few.items()
        if each is not None
    }
    return {key: jnp.asarray(each) for key, each in few.items()}, axis


def assert_close(got, expected) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


# Of few elements, the others are like one of these.
DIFFERENTIATED = [
    each for each in (*ALIKE, *MIXED) if "blocks" not in each and "thousands" not in each
]


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_first_second_and_third_derivatives_are_those_of_the_formula(name, x64) -> None:
    given, axis = small_problem(name)
    dy = given.pop("dy")
    along = jax.tree.map(lambda each: jnp.cos(7 * each), given)

    def of(function):
        def called(given):
            weight, bias = given.get("weight"), given.get("bias")
            return function(given["x"], weight, bias, axis=axis)

        def loss(given):
            return jnp.sum(jnp.sin(called(given)) * dy)

        def tangent(given):
            return jax.jvp(called, (given,), (along,))[1]

        def along_itself(given):
            return jax.jvp(jax.grad(loss), (given,), (along,))[1]

        return (
            jax.grad(loss)(given),
            tangent(given),
            along_itself(given),
            jax.vjp(tangent, given)[1](dy),
            jax.jvp(along_itself, (given,), (along,))[1],
        )

    assert_close(*(jax.jit(functools.partial(of, each))() for each in (ours.layer_norm, formula)))


def test_derivatives_are_those_of_finite_differences(x64) -> None:
    given, axis = small_problem("other axes")
    function = functools.partial(ours.layer_norm, axis=axis)
    arguments = [given[each] for each in ("x", "weight", "bias")]
    check_grads(function, arguments, order=2, modes=("fwd", "rev"))


# ---- vmap


def batched(parameter, times: int):
    return None if parameter is None else np.stack([parameter * (1 + at) for at in range(times)])


VMAPPED = ("adaptive", "per head", "channels first", "channels first, varying behind", "other axes")


@pytest.mark.parametrize(
    ("in_axes", "dtype"),
    [
        ((0, 0, 0), "float32"),
        ((None, 0, 0), "float32"),
        ((0, None, None), "float32"),
        ((0, 0, None), "float32"),
        ((0, 0, None), "bfloat16"),  # the bias is widened
    ],
    ids=str,
)
@pytest.mark.parametrize("name", VMAPPED)
def test_vmap_gives_each_member_the_bits_of_its_own_call(name, in_axes, dtype) -> None:
    x, weight, bias, dy, axis = problem(name, dtype)
    given = [
        each if dim is None else batched(each, 3)
        for each, dim in zip((x, weight, bias), in_axes, strict=True)
    ]

    def results(x, weight, bias):
        y, transposed = jax.vjp(functools.partial(ours.layer_norm, axis=axis), x, weight, bias)
        return y, *transposed(dy)

    found = jax.jit(jax.vmap(results, in_axes))(*given)
    for at in range(3):
        member = [
            each if dim is None else each[at] for each, dim in zip(given, in_axes, strict=True)
        ]
        for got, expected in zip(found, jax.jit(results)(*member), strict=True):
            assert_same_bits(np.asarray(got[at]), np.asarray(expected), f"member {at}")


@pytest.mark.parametrize("in_axes", [(0, 0, None), (None, 0, None), (0, None, 0)], ids=str)
def test_a_parameter_that_a_batch_shares_gets_the_sum_rounded_once(in_axes) -> None:
    x, weight, bias, dy, _ = problem("adaptive", "bfloat16")
    members = 1000
    given = [
        each if dim is None else np.broadcast_to(each, (members, *each.shape))
        for each, dim in zip((x, weight, bias), in_axes, strict=True)
    ]
    _, transposed = jax.vjp(jax.jit(jax.vmap(ours.layer_norm, in_axes)), *map(jnp.asarray, given))
    found = transposed(jnp.broadcast_to(jnp.asarray(dy), (members, *dy.shape)))
    bound = accuracy.BOUNDS["bfloat16"].parameter
    every_x, every_dy = (np.broadcast_to(each, (members, *each.shape)) for each in (x, dy))
    if in_axes[1] is None:
        dweight = np.asarray(found[1])[None]
        assert accuracy.dweight_error(dweight, every_dy, every_x) <= bound
    else:
        assert accuracy.dbias_error(np.asarray(found[2])[None], every_dy) <= bound


def test_batches_within_batches_of_both_kinds() -> None:
    """Batches of rows and of parameters in turns: more than the kernels read in place."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2,) * 11 + (5,)).astype(np.float32)
    weight = rng.normal(size=(2,) * 5 + (5,)).astype(np.float32)
    function = ours.layer_norm
    for _ in range(5):
        function = jax.vmap(jax.vmap(function, (0, None)), (0, 0))
    found = jax.jit(function)(x, weight)
    spread = weight.reshape((2, 1) * 5 + (1, 5))
    expected = ours.layer_norm(x, spread)
    plain = numpy_front_end.layer_norm(x) * spread
    assert_same_bits(np.asarray(found), np.asarray(expected), "y")
    assert_same_bits(np.asarray(found), plain, "y")
    dweight = jax.jit(jax.grad(lambda w: jnp.sum(function(x, w) * x)))(weight)
    terms = numpy_front_end.layer_norm(x).astype(float) * x
    summed = terms.sum((1, 3, 5, 7, 9, 10))
    np.testing.assert_allclose(dweight, summed, rtol=1e-5, atol=1e-5)


# ---- programs and mistakes


def test_an_adaptive_layer_norm_is_one_call_without_copies() -> None:
    x, weight, bias, dy, _ = problem("adaptive")

    def results(x, weight, bias, dy):
        y, transposed = jax.vjp(ours.layer_norm, x, weight, bias)
        return y, *transposed(dy)

    text = jax.jit(results).lower(x, weight, bias, dy).as_text()
    (forward,) = [each for each in text.splitlines() if "layernorm_forward" in each]
    (backward,) = [each for each in text.splitlines() if "layernorm_backward" in each]
    assert "(tensor<3x5x33xf32>, tensor<3x33xf32>, tensor<3x33xf32>)" in forward
    assert backward.endswith("-> (tensor<3x5x33xf32>, tensor<3x33xf32>, tensor<3x33xf32>)")
    assert "transpose" not in text
    # Axes of size 1 are added and removed, nothing is repeated.
    for line in text.splitlines():
        assert "broadcast" not in line or line.endswith("-> tensor<3x1x33xf32>")


def test_an_exported_program_takes_any_number_of_samples() -> None:
    x, weight, bias, dy, _ = problem("adaptive")
    (samples,) = export.symbolic_shape("samples")
    shapes = [
        jax.ShapeDtypeStruct((samples, *each.shape[1:]), "float32")
        for each in (x, weight, bias, dy)
    ]

    def results(x, weight, bias, dy):
        y, transposed = jax.vjp(ours.layer_norm, x, weight, bias)
        return [y, *transposed(dy)]

    checks = [
        export.DisabledSafetyCheck.custom_call(each)
        for each in ("layernorm_forward", "layernorm_backward")
    ]
    exported = export.export(jax.jit(results), disabled_checks=checks)(*shapes)
    again = export.deserialize(exported.serialize())
    for of in (slice(None), slice(1)):  # one sample too: then the weight varies along an axis of 1
        given = [each[of] for each in (x, weight, bias, dy)]
        expected = numpy_results("layer_norm", *given, -1)
        for got, right in zip(again.call(*given), expected, strict=True):
            assert_same_bits(np.asarray(got), right, "a result")


def test_without_elements() -> None:
    x, weight = jnp.zeros((3, 0, 5)), jnp.ones((3, 1, 5))
    y, transposed = jax.vjp(ours.layer_norm, x, weight)
    dx, dweight = transposed(y)
    assert y.shape == dx.shape == x.shape
    assert dweight.shape == weight.shape
    assert (dweight == 0).all()


@pytest.mark.parametrize(
    ("weight", "axis"),
    [
        ((3, 33), -1),  # for each sample: it has to be (3, 1, 33)
        ((2, 1, 33), -1),
        ((3, 5, 1), -1),  # does not have the normalized size
        ((1,), -1),
        ((1, 3, 5, 33), -1),
        ((3, 5, 32), (0, 1)),
        ((5, 1), (0, 1)),
    ],
    ids=str,
)
def test_parameters_that_do_not_broadcast_are_told_while_the_call_is_traced(weight, axis) -> None:
    x, given = jnp.ones((3, 5, 33)), jnp.ones(weight)
    for name, arguments in (("weight", (given,)), ("bias", (None, given))):
        for function in (ours.layer_norm, jax.jit(ours.layer_norm, static_argnames="axis")):
            with pytest.raises(ValueError, match=rf"{name} has shape .*, but x of shape"):
                function(x, *arguments, axis=axis)
