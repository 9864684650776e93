"""A residual: (y, total), total = x + residual, and y the norm of total; and their derivatives."""

import functools
import warnings

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from adapter import parameters  # noqa: E402
from as_numpy_jax import formula_backward, formula_forward, to_jax  # noqa: E402
from calls import assert_same_bits, backward, forward  # noqa: E402
from cases import KINDS, Case, of_each_kind, residual_cases  # noqa: E402
from jax import export  # noqa: E402
from jax.test_util import check_grads  # noqa: E402
from jax_renamed import enable_x64  # noqa: E402
from layouts import Array, axes_of, dense  # noqa: E402
from problems import a_problem  # noqa: E402
from values import TYPES  # noqa: E402

import layernorm.jax as ours  # noqa: E402
import layernorm.numpy as numpy_front_end  # noqa: E402
from layernorm import accuracy, reference  # noqa: E402
from layernorm.jax.definition import Definition  # noqa: E402

# A contiguous x is read in place in most layouts; one that separates the normalized axes is not.
DENSE_ALIKE = ("rows_reversed", "heads_of_a_projection", "channels_last_in_memory")
CASES = [each for each in of_each_kind(residual_cases) if each.layout not in DENSE_ALIKE]


def of_sum(kind, x, residual, *parameters, **options):
    return getattr(ours, kind)(x, *parameters, residual=residual, **options)


@functools.partial(jax.jit, static_argnames=("kind", "options"))
def results_of(kind, arrays, cotangents, own, options):
    """Return the results without and with derivatives, and the gradients for `own`."""
    plain = of_sum(kind, *arrays, **dict(options))
    _, transposed = jax.vjp(functools.partial(of_sum, kind, **dict(options)), *arrays[:2], *own)
    return (
        plain,
        jax.vjp(functools.partial(of_sum, kind, **dict(options)), *arrays)[0],
        transposed(cotangents),
    )


def arrays_of(case: Case) -> tuple[Array | None, ...]:
    """Return x, residual, weight, bias, dy and dtotal, contiguous."""
    x, dy, weight, bias = case.arrays()
    residual, dtotal = case.residual()
    return tuple(map(dense, (x, residual, weight, bias, dy, dtotal)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_bits_are_those_of_the_numpy_front_end(case: Case) -> None:
    x, residual, weight, bias, dy, dtotal = arrays_of(case)
    y, total, stats = forward(numpy_front_end, case, x, weight, bias, residual=residual)
    gradients = backward(numpy_front_end, case, dy, total, stats, weight, dtotal=dtotal)
    count = 2 if case.kind == "layer_norm" else 1
    own = parameters(x, weight, bias, **case.definition)[:count]
    with enable_x64(True):
        plain, differentiated, found = results_of(
            case.kind,
            tuple(map(to_jax, (x, residual, *(weight, bias)[:count]))),
            tuple(map(to_jax, (dy, dtotal))),
            tuple(map(to_jax, own)),
            tuple(case.definition.items()),
        )
        for of_one in (plain, differentiated):
            for got, expected, name in zip(of_one, (y, total), ("y", "total"), strict=True):
                assert_same_bits(np.asarray(got), expected, name)
        dx, dresidual, *of_parameters = map(np.asarray, found)
    assert_same_bits(dx, gradients[0], "dx")
    assert_same_bits(dresidual, gradients[0], "dresidual")
    for got, expected in zip(of_parameters, gradients[1:], strict=False):
        assert_same_bits(got, expected, "dweight or dbias")


# XLA flushes subnormal numbers to 0, so none are in these values.
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("kind", "layout", "values"),
    [("layer_norm", "contiguous", "mean_1e4"), ("rms_norm", "channels_first", "ordinary")],
)
def test_the_formulas_of_other_devices_are_within_the_bounds(kind, dtype, layout, values) -> None:
    case = Case(kind, dtype, 63, values=values, layout=layout)
    x, residual, weight, bias, dy, dtotal = arrays_of(case)
    options = {"kind": kind, **case.definition}
    axes = axes_of(case.definition["axis"], x.ndim)
    definition = Definition(axes, case.definition["eps"], kind == "layer_norm")

    @jax.jit
    def both(x, residual, weight, bias, dy, dtotal):
        y, total, *statistics = formula_forward(x, weight, bias, residual, definition=definition)
        need = (True, weight is not None, bias is not None)
        gradients = formula_backward(
            *(dy, total, statistics, weight, dtotal),
            definition=definition,
            need=need,
            parameter_type=x.dtype,
        )
        return y, total, gradients[0]

    with enable_x64(True):
        y, total, dx = map(np.asarray, both(*map(to_jax, arrays_of(case))))
    assert_same_bits(total, reference.add(x, residual), "total")
    bounds = accuracy.BOUNDS[dtype]
    # y is the norm of the rounded sum, which XLA does not keep by itself.
    assert accuracy.y_error(y, total, weight, bias, **options) <= bounds.y
    assert accuracy.dx_error(dx, dy, total, weight, dtotal=dtotal, **options) <= bounds.dx


# ---- derivatives


def formula(x, residual, weight, bias, *, axis=-1):
    """Compute the definition in jax.numpy, for JAX to differentiate."""
    total = x + residual
    d = total - total.mean(axis, keepdims=True)
    return d / jnp.sqrt((d * d).mean(axis, keepdims=True) + 1e-5) * weight + bias, total


def layer_norm(x, residual, weight, bias, **options):
    return ours.layer_norm(x, weight, bias, residual=residual, **options)


PAIR = (layer_norm, formula)


def problem(shape=(3, 5)):
    """Return x, residual, weight and bias in float64."""
    x, weight, bias, residual = map(jnp.asarray, a_problem(shape))
    return x, residual, weight, bias


def assert_close(got, expected) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_check_grads_to_second_order_in_both_modes(x64) -> None:
    """Of RMS norm; below, derivatives of layer norm are compared with those of the formula."""
    x, residual, weight, _ = problem((2, 3))
    rms_norm = functools.partial(of_sum, "rms_norm", zero_centered_weight=True)
    check_grads(rms_norm, (x, residual, weight), order=2, modes=("fwd", "rev"))


LOSSES = {
    "y and total": lambda y, total: jnp.sum(jnp.sin(y) * jnp.cos(total)),
    "y": lambda y, total: jnp.sum(jnp.sin(y)),
    "total": lambda y, total: jnp.sum(jnp.sin(total) ** 2),
}


@pytest.mark.parametrize("used", LOSSES)
def test_derivatives_to_third_order_are_those_of_the_formula(used, x64) -> None:
    arrays = problem()
    along = tuple(jnp.cos(7 * each) for each in arrays)

    def of(function):
        def loss(*arrays):
            return LOSSES[used](*function(*arrays))

        def gradient(*arrays):
            return jax.grad(loss, argnums=(0, 1, 2, 3))(*arrays)

        def tangent(*arrays):
            return jax.jvp(function, arrays, along)[1]

        def along_itself(*arrays):
            return jax.jvp(gradient, arrays, along)[1]

        if used != "y and total":
            return gradient(*arrays), along_itself(*arrays)
        cotangents = (arrays[1], arrays[0])
        return (
            gradient(*arrays),
            tangent(*arrays),
            jax.jacrev(gradient, argnums=(0, 3))(*arrays),
            along_itself(*arrays),
            jax.jvp(along_itself, arrays, along)[1],
            jax.jvp(tangent, arrays, along)[1],
            jax.vjp(tangent, *arrays)[1](cotangents),
        )

    assert_close(*(jax.jit(functools.partial(of, each))() for each in PAIR))


@pytest.mark.parametrize("moving", range(4))
def test_derivatives_along_one_argument_are_those_of_the_formula(moving, x64) -> None:
    """The others have no tangents: total has none where only a parameter moves."""
    arrays = problem()

    def of(function):
        def moved(array):
            return function(*arrays[:moving], array, *arrays[moving + 1 :])

        def tangent(array):
            return jax.jvp(moved, (array,), (jnp.cos(array),))[1]

        array = arrays[moving]
        _, transposed = jax.vjp(moved, array)
        second = jax.jvp(lambda c: transposed((arrays[0], c)), (arrays[1],), (arrays[0],))
        third = jax.jvp(tangent, (array,), (array,))
        return tangent(array), second, third, jax.jacrev(moved)(array)

    assert_close(*(jax.jit(functools.partial(of, each))() for each in PAIR))


def lowered(function, *arrays) -> str:
    return jax.jit(function).lower(*arrays).as_text()


def test_forward_and_backward_are_one_call_each_and_nothing_else_of_xs_size() -> None:
    x, weight, bias, dy = (each.astype(np.float32) for each in a_problem((6, 33)))

    def results(x, residual, weight, bias, dy, dtotal):
        result, transposed = jax.vjp(layer_norm, x, residual, weight, bias)
        return result, transposed((dy, dtotal))

    text = lowered(results, x, dy, weight, bias, dy, x)
    large = [each for each in text.splitlines() if "= stablehlo" in each and "6x33xf32" in each]
    assert ["layernorm_forward" in each for each in large] == [True, False]
    assert ["layernorm_backward" in each for each in large] == [False, True]
    text = lowered(layer_norm, x, dy, weight, bias)
    assert "-> (tensor<6x33xf32>, tensor<6x33xf32>)" in text  # no statistics


def test_what_is_not_used_is_not_computed() -> None:
    x, weight, bias, residual = (each.astype(np.float32) for each in a_problem((6, 33)))

    def text(used):
        def loss(*arrays):
            return LOSSES[used](*layer_norm(*arrays))

        return lowered(jax.grad(loss, argnums=(0, 1)), x, residual, weight, bias)

    assert "has_dtotal = true" in text("y and total")
    assert "has_dtotal = false" in text("y")
    assert "layernorm_backward" not in text("total")
    plain = lowered(jax.grad(lambda w: jnp.sum(layer_norm(x, residual, w, bias)[0])), weight)
    assert "has_dtotal = false" in plain
    assert "need_dx = false" in plain


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gradient_of_y_or_total_alone_has_the_bits_of_numpy(dtype) -> None:
    case = Case(dtype=dtype, cols=33)
    x, residual, weight, bias, dy, dtotal = arrays_of(case)
    _, total, stats = forward(numpy_front_end, case, x, weight, bias, residual=residual)
    expected = backward(numpy_front_end, case, dy, total, stats, weight)
    arrays = [jnp.asarray(each) for each in (x, residual, weight, bias)]
    _, of_y = jax.vjp(lambda *a: layer_norm(*a)[0], *arrays)
    _, of_total = jax.vjp(lambda *a: layer_norm(*a)[1], *arrays)
    found = [np.asarray(each) for each in of_y(jnp.asarray(dy))]
    for got, right in zip(found, (expected[0], *expected), strict=True):
        assert_same_bits(got, right, "a gradient of y")
    dx, dresidual, *rest = map(np.asarray, of_total(jnp.asarray(dtotal)))
    assert_same_bits(dx, dtotal, "dx")
    assert_same_bits(dresidual, dtotal, "dresidual")
    assert not any(each.any() for each in rest)


# ---- vmap


@pytest.mark.parametrize(
    "in_axes",
    [(0, 0, None, None), (1, None, None, None), (None, 0, 0, None), (0, 1, 0, 0)],
    ids=str,
)
def test_vmap_gives_each_member_its_results_and_derivatives(in_axes, x64) -> None:
    arrays = [
        each
        if dim is None
        else jnp.moveaxis(jnp.stack([each * (1 + at) for at in range(4)]), 0, dim)
        for each, dim in zip(problem(), in_axes, strict=True)
    ]

    def everything(f, *arrays):
        (y, total), transposed = jax.vjp(f, *arrays)
        return y, total, transposed((total, y)), jax.jvp(f, arrays, arrays)[1]

    def loss(f, *arrays):
        return LOSSES["y and total"](*jax.vmap(f, in_axes)(*arrays))

    members = [
        jax.jit(jax.vmap(functools.partial(everything, each), in_axes))(*arrays) for each in PAIR
    ]
    assert_close(*members)
    gradient = jax.grad(loss, argnums=(1, 2, 3, 4))
    assert_close(*(jax.jit(functools.partial(gradient, each))(*arrays) for each in PAIR))


def test_a_batch_is_one_call_with_the_bits_of_each_member() -> None:
    x, weight, bias, residual = (each.astype(np.float32) for each in a_problem((7, 5, 33)))

    def results(x, residual):
        result, transposed = jax.vjp(layer_norm, x, residual, weight, bias)
        return result, transposed((residual, x))

    text = lowered(jax.vmap(results), x, residual)
    assert text.count("layernorm_forward") == text.count("layernorm_backward") == 1
    assert "transpose" not in text
    found = jax.jit(jax.vmap(results))(x, residual)
    for at in range(len(x)):
        expected = jax.jit(results)(x[at], residual[at])
        for got, right in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            assert_same_bits(np.asarray(got[at]), np.asarray(right), f"member {at}")


# ---- parameters over kept axes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "axis", "of_weight", "of_bias"),
    [
        ((3, 5, 33), -1, (3, 1, 33), (3, 1, 33)),
        ((3, 33, 4, 5), 1, (33, 4, 1), (33, 4, 1)),  # in another order of the axes
        ((3, 5, 33), -1, (3, 1, 33), (5, 33)),  # each is repeated along the other's axis
    ],
    ids=str,
)
@pytest.mark.parametrize("parameter_type", ["float32", None])
def test_parameters_over_kept_axes_go_with_a_residual(
    shape, axis, of_weight, of_bias, dtype, parameter_type
) -> None:
    rng = np.random.default_rng(4)
    x, residual, dy, dtotal = (
        np.asarray(jnp.asarray(rng.normal(0.5, 1, shape), dtype)) for _ in range(4)
    )
    weight, bias = (
        np.asarray(jnp.asarray(rng.normal(0.5, 1, each), parameter_type or dtype))
        for each in (of_weight, of_bias)
    )
    y, total, stats = numpy_front_end.layer_norm_forward(
        x, weight, bias, residual=residual, axis=axis
    )
    dx, *gradients = numpy_front_end.layer_norm_backward(dy, total, stats, weight, dtotal=dtotal)
    function = functools.partial(layer_norm, axis=axis)

    @jax.jit
    def results(x, residual, weight, bias, dy, dtotal):
        result, transposed = jax.vjp(function, x, residual, weight, bias)
        return *result, *transposed((dy, dtotal))

    found = map(np.asarray, results(x, residual, weight, bias, dy, dtotal))
    expected = [y, total, dx, dx, *gradients]
    names = ("y", "total", "dx", "dresidual", "dweight", "dbias")
    for got, right, name in zip(found, expected, names, strict=True):
        if of_weight == of_bias or name in ("y", "total", "dx", "dresidual"):
            assert_same_bits(got, right, name)
        else:  # a sum of the gradients of the repeats
            np.testing.assert_allclose(*(np.asarray(a, float) for a in (got, right)), rtol=0.02)


# ---- programs


def float32_problem():
    x, weight, bias, residual = (each.astype(np.float32) for each in a_problem((6, 33)))
    return x, residual, weight, bias


def test_a_residual_stream_in_scan_with_checkpoint(x64) -> None:
    """The sum of each layer is the next layer's residual."""
    x, residual, weight, bias = problem((4, 5))
    weights = jnp.stack([weight, weight + 1, weight - 1])

    def run(f, x, residual, weights):
        @jax.checkpoint
        def layer(carry, weight):
            x, residual = carry
            y, total = f(x, residual, weight, bias)
            return (jnp.sin(y), total), None

        (y, total), _ = jax.lax.scan(layer, (x, residual), weights)
        return jnp.sum(y * total)

    gradient = jax.value_and_grad(run, argnums=(1, 2, 3))
    both = [jax.jit(functools.partial(gradient, each))(x, residual, weights) for each in PAIR]
    assert_close(*both)


def test_without_jit_and_with_donated_arguments() -> None:
    arrays = float32_problem()
    expected = jax.jit(layer_norm)(*arrays)
    with jax.disable_jit():
        for got, right in zip(layer_norm(*arrays), expected, strict=True):
            assert_same_bits(np.asarray(got), np.asarray(right), "y or total")
    given = [jnp.array(each) for each in arrays]
    found = jax.jit(layer_norm, donate_argnums=(0, 1))(*given)
    assert [each.is_deleted() for each in given] == [True, True, False, False]
    for got, right in zip(found, expected, strict=True):
        assert_same_bits(np.asarray(got), np.asarray(right), "y or total")


def test_an_exported_program_takes_any_number_of_rows_and_can_be_differentiated() -> None:
    arrays = float32_problem()
    (rows,) = export.symbolic_shape("rows")
    shapes = [
        jax.ShapeDtypeStruct((rows, 33), "float32") if each.ndim == 2 else each for each in arrays
    ]
    names = ("layernorm_forward", "layernorm_backward")
    checks = [export.DisabledSafetyCheck.custom_call(each) for each in names]
    exported = export.export(jax.jit(layer_norm), disabled_checks=checks)(*shapes)
    again = export.deserialize(exported.serialize(vjp_order=1))

    def results(function):
        result, transposed = jax.vjp(function, *arrays)
        return result, transposed((arrays[1], arrays[0]))

    found = [jax.tree.leaves(results(each)) for each in (again.call, layer_norm)]
    for got, right in zip(*found, strict=True):
        assert_same_bits(np.asarray(got), np.asarray(right), "a result")


def test_other_platforms_get_the_formulas() -> None:
    def loss(*arrays):
        return LOSSES["y and total"](*layer_norm(*arrays))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*float32_problem())
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "layernorm_" not in text
    assert "optimization_barrier" in text


# ---- arguments


X = np.ones((32, 64), np.float32)
ERRORS = {
    "shape": (X[:, 1:], ValueError, r"residual .*\(32, 63\).*\(32, 64\)"),
    "would broadcast": (X[0], ValueError, r"residual .*\(64,\).*\(32, 64\)"),
    "16 bits": (X.astype(np.float16), TypeError, "residual .*float16.*float32.*jnp.asarray"),
    "integers": (X.astype(np.int32), TypeError, "residual .*int32.*float32"),
    "a number": (1.0, ValueError, r"residual .*\(\).*\(32, 64\)"),
    "text": ("text", TypeError, "residual is of type str"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_residual_is_an_error_while_the_call_is_traced(kind, name) -> None:
    residual, error, words = ERRORS[name]
    with pytest.raises(error, match=words):
        of_sum(kind, X, residual)
    if isinstance(residual, np.ndarray):
        with pytest.raises(error, match=words):
            jax.jit(functools.partial(of_sum, kind)).lower(X, residual)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_float32_stream_takes_16_bit_branches(kind, dtype) -> None:
    rng = np.random.default_rng(4)
    x, residual, dtotal = (jnp.asarray(rng.standard_normal((6, 40)), "float32") for _ in range(3))
    weight = jnp.asarray(rng.standard_normal(40), dtype)
    x = x.astype(dtype)
    (y, total), transposed = jax.vjp(functools.partial(of_sum, kind), x, residual, weight)
    dx, dresidual, dweight = transposed((x, dtotal))
    assert y.dtype == dx.dtype == dweight.dtype == dtype
    wide, backward = jax.vjp(
        lambda x: of_sum(kind, x, residual, weight.astype("float32")), x.astype("float32")
    )
    (alone,) = backward((x.astype("float32"), dtotal))
    for got, right in (
        *((y, wide[0].astype(dtype)), (total, wide[1])),
        *((dresidual, alone), (dx, alone.astype(dtype))),
    ):
        assert_same_bits(np.asarray(got), np.asarray(right), "a result")


def test_without_elements() -> None:
    for shape in ((0, 3), (2, 0)):
        x = jnp.zeros(shape)
        (y, total), transposed = jax.vjp(lambda x, r: ours.layer_norm(x, residual=r), x, x)
        assert y.shape == total.shape == shape
        assert [each.shape for each in transposed((y, total))] == [shape, shape]


# ---- modules


def flax_layers(dtype):
    """Return (name, our call, a call that composes), each of x, residual and options."""
    pytest.importorskip("flax", minversion="0.12")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import flax.nnx

        from layernorm.flax import linen, nnx
    for name in ("LayerNorm", "RMSNorm"):
        module = getattr(linen, name)(dtype=dtype)
        variables = module.init(jax.random.key(0), X)
        yield f"linen.{name}", functools.partial(module.apply, variables)
        yield f"nnx.{name}", getattr(nnx, name)(64, dtype=dtype, rngs=flax.nnx.Rngs(0))


def assert_is_norm_of_sum(layer, x, residual, **options) -> None:
    y, total = layer(x, residual=residual, **options)
    expected = reference.add(np.asarray(x), np.asarray(residual))
    assert_same_bits(np.asarray(total), expected, "total")
    right = layer(jnp.asarray(expected), **options)
    assert_same_bits(np.asarray(y), np.asarray(right), "y")


# Where the result has another type than x, and with a mask, more than one call computes them.
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16"])
def test_flax_modules_take_a_residual(x_dtype, dtype) -> None:
    rng = np.random.default_rng(6)
    x, residual = (jnp.asarray(rng.normal(1, 2, (5, 64)), x_dtype) for _ in range(2))
    mask = jnp.asarray(rng.random((5, 64)) < 0.7)
    for name, layer in flax_layers(dtype):
        assert_is_norm_of_sum(layer, x, residual)
        assert_is_norm_of_sum(layer, x, residual, mask=mask)
        text = lowered(lambda x, r, layer=layer: layer(x, residual=r), x, residual)
        calls = 1 if x_dtype == (dtype or "float32") else 2
        assert text.count("@layernorm_forward") == calls, name
        with pytest.raises(ValueError, match="residual has shape"):
            layer(x, residual=residual[0])
        with pytest.raises(ValueError, match="residual has shape"):
            layer(x, residual=residual[0], mask=mask)


def test_a_flax_module_that_leaves_the_call_to_flax_takes_a_residual() -> None:
    pytest.importorskip("flax", minversion="0.12")
    from layernorm.flax import linen

    x, residual, *_ = float32_problem()
    module = linen.LayerNorm(reduction_axes=(), feature_axes=-1)
    variables = module.init(jax.random.key(0), x)
    y, total = module.apply(variables, x, residual=residual)
    assert_same_bits(np.asarray(total), x + residual, "total")
    assert_same_bits(np.asarray(y), np.asarray(module.apply(variables, total)), "y")


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_equinox_modules_take_a_residual(name, dtype, use_bias) -> None:
    pytest.importorskip("equinox")
    import layernorm.equinox as modules

    rng = np.random.default_rng(7)
    x, residual = (jnp.asarray(rng.normal(1, 2, (5, 64)), dtype) for _ in range(2))
    module = getattr(modules, name)(64, use_bias=use_bias)

    def layer(x, residual=None):
        if residual is None:
            return jax.vmap(module)(x)
        return jax.vmap(lambda x, r: module(x, residual=r))(x, residual)

    assert_is_norm_of_sum(layer, x, residual)
    is_rounded_after_the_bias = (name, dtype, use_bias) == ("RMSNorm", "bfloat16", True)
    calls = 2 if is_rounded_after_the_bias else 1
    assert lowered(layer, x, residual).count("@layernorm_forward") == calls
    state = object()
    (y, total), passed = module(x[0], state, residual=residual[0])
    assert passed is state
    assert_same_bits(np.asarray(y), np.asarray(layer(x, residual)[0][0]), "y")
    assert_same_bits(np.asarray(total), np.asarray(layer(x, residual)[1][0]), "total")
    with pytest.raises(ValueError, match="residual has shape"):
        module(x[0], residual=residual)
