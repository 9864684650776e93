"""A gate: y = norm(x) * act(gate), or norm(x * act(gate)); and its derivatives."""

import functools
import warnings

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from adapter import parameters  # noqa: E402
from as_numpy_jax import formula_backward, formula_forward, to_jax  # noqa: E402
from calls import assert_same_bits, backward, forward  # noqa: E402
from cases import KINDS, Case, gated_cases, of_each_kind  # noqa: E402
from checkers import GATINGS  # noqa: E402
from jax import export  # noqa: E402
from jax_renamed import enable_x64  # noqa: E402
from layouts import Array, axes_of, dense  # noqa: E402
from problems import a_problem  # noqa: E402

import layernorm.jax as ours  # noqa: E402
import layernorm.numpy as numpy_front_end  # noqa: E402
from layernorm import accuracy, reference  # noqa: E402
from layernorm.jax.definition import Definition, Gating  # noqa: E402

# A contiguous x is read in place in most layouts; one that separates the normalized axes is not.
DENSE_ALIKE = ("heads_of_a_projection", "channels_last_in_memory")
CASES = [each for each in of_each_kind(gated_cases) if each.layout not in DENSE_ALIKE]
each_gating = pytest.mark.parametrize(
    "gating",
    GATINGS,
    ids=lambda g: f"{g['activation']}_{'after' if g['norm_before_gate'] else 'before'}",
)


def gated(kind, x, gate, *parameters, **options):
    return getattr(ours, kind)(x, *parameters, gate=gate, **options)


def layer_norm(x, gate, weight, bias, **options):
    return ours.layer_norm(x, weight, bias, gate=gate, **options)


def arrays_of(case: Case) -> tuple[Array | None, ...]:
    """Return x, gate, weight, bias and dy, contiguous."""
    x, dy, weight, bias = case.arrays()
    return tuple(map(dense, (x, case.gate(), weight, bias, dy)))


@functools.partial(jax.jit, static_argnames=("kind", "options"))
def results_of(kind, arrays, dy, own, options):
    """For each gating, return y without and with derivatives, and the gradients for `own`."""
    results = []
    for gating in GATINGS:
        function = functools.partial(gated, kind, **dict(options), **gating)
        _, transposed = jax.vjp(function, *arrays[:2], *own)
        results.append((function(*arrays), jax.vjp(function, *arrays)[0], transposed(dy)))
    return results


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_bits_are_those_of_the_numpy_front_end(case: Case) -> None:
    x, gate, weight, bias, dy = arrays_of(case)
    count = 2 if case.kind == "layer_norm" else 1
    own = parameters(x, weight, bias, **case.definition)[:count]
    with enable_x64(True):
        every = results_of(
            case.kind,
            tuple(map(to_jax, (x, gate, *(weight, bias)[:count]))),
            to_jax(dy),
            tuple(map(to_jax, own)),
            tuple(case.definition.items()),
        )
    for gating, (plain, differentiated, found) in zip(GATINGS, every, strict=True):
        y, stats = forward(numpy_front_end, case, x, weight, bias, gate=gate, **gating)
        dx, *rest = backward(numpy_front_end, case, dy, x, stats, weight, gate=gate)
        for got in (plain, differentiated):
            assert_same_bits(np.asarray(got), y, f"y, {gating}")
        expected = (dx, rest[-1], *rest[:count])
        names = ("dx", "dgate", "dweight", "dbias")
        for got, right, name in zip(found, expected, names, strict=False):
            assert_same_bits(np.asarray(got), right, f"{name}, {gating}")


@pytest.mark.parametrize(
    ("kind", "dtype", "layout", "gating"),
    [
        ("layer_norm", "float32", "contiguous", GATINGS[0]),
        ("layer_norm", "float64", "contiguous", GATINGS[3]),
        ("rms_norm", "bfloat16", "channels_first", GATINGS[1]),
    ],
)
def test_the_formulas_of_other_devices_are_within_the_bounds(kind, dtype, layout, gating) -> None:
    case = Case(kind, dtype, 63, layout=layout)
    x, gate, weight, bias, dy = arrays_of(case)
    axes = axes_of(case.definition["axis"], x.ndim)
    definition = Definition(
        axes, case.definition["eps"], kind == "layer_norm", gating=Gating(*gating.values())
    )

    @jax.jit
    def results_of(x, gate, weight, bias, dy):
        y, *statistics = formula_forward(x, weight, bias, None, gate, definition=definition)
        gradients = formula_backward(
            *(dy, x, statistics, weight, None, gate, bias),
            definition=definition,
            need=(True, True, kind == "layer_norm"),
            parameter_type=x.dtype,
        )
        return y, *gradients

    with enable_x64(True):
        found = map(np.asarray, results_of(*map(to_jax, (x, gate, weight, bias, dy))))
    names = ("y", "dx", "dweight", *(["dbias"] if kind == "layer_norm" else []), "dgate")
    errors = accuracy.gated_errors(
        dict(zip(names, found, strict=True)),
        *(x, gate, weight, bias, dy),
        kind=kind,
        **case.definition,
        **gating,
    )
    assert max(errors.values()) <= accuracy.GATED_BOUND, errors


# ---- derivatives


def formula(x, gate, weight, bias=None, *, residual=None, activation="silu", norm_before_gate=True):
    """Compute the definition in jax.numpy, for JAX to differentiate; without a bias RMS norm."""
    x = x if residual is None else x + residual
    act = gate / (1 + jnp.exp(-gate)) if activation == "silu" else 1 / (1 + jnp.exp(-gate))
    u = x if norm_before_gate else x * act
    d = u if bias is None else u - u.mean(-1, keepdims=True)
    eps = 1e-6 if bias is None else 1e-5
    n = d / jnp.sqrt((d * d).mean(-1, keepdims=True) + eps) * weight
    n = n if bias is None else n + bias
    y = n * act if norm_before_gate else n
    return y if residual is None else (y, x)


PAIR = (layer_norm, formula)
OF_RMS_NORM = (functools.partial(gated, "rms_norm"), formula)


def problem(shape=(3, 5)):
    """Return x, gate, weight and bias in float64."""
    x, weight, bias, gate = map(jnp.asarray, a_problem(shape))
    return x, gate, weight, bias


def float32_problem(shape=(6, 33)):
    return tuple(np.asarray(each, np.float32) for each in problem(shape))


def assert_close(got, expected) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("pair", "gating"),
    [*zip([PAIR, PAIR, OF_RMS_NORM, OF_RMS_NORM], GATINGS, strict=True)],
    ids=("layer_silu_after", "layer_silu_before", "rms_sigmoid_after", "rms_sigmoid_before"),
)
def test_higher_derivatives_are_those_of_the_formula(pair, gating, x64) -> None:
    arrays = problem()[: 3 if pair is OF_RMS_NORM else 4]
    along = tuple(jnp.cos(7 * each) for each in arrays)
    every = tuple(range(len(arrays)))

    def of(function):
        function = functools.partial(function, **gating)

        def gradient(*arrays):
            return jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), every)(*arrays)

        def tangent(*arrays):
            return jax.jvp(function, arrays, along)[1]

        def along_itself(*arrays):
            return jax.jvp(gradient, arrays, along)[1]

        third = [jax.jvp(along_itself, arrays, along)[1]] if gating is GATINGS[1] else []
        return (
            *(gradient(*arrays), tangent(*arrays), along_itself(*arrays), *third),
            jax.jvp(tangent, arrays, along)[1],
            jax.vjp(gradient, *arrays)[1](along),
            jax.vjp(tangent, *arrays)[1](arrays[0]),
        )

    assert_close(*(jax.jit(functools.partial(of, each))() for each in pair))


@pytest.mark.parametrize("moving", range(4))
def test_derivatives_along_one_argument_are_those_of_the_formula(moving, x64) -> None:
    arrays = problem()

    def of(function):
        results = []
        for norm_before_gate in (True, False):

            def moved(array, norm_before_gate=norm_before_gate):
                given = (*arrays[:moving], array, *arrays[moving + 1 :])
                return function(*given, norm_before_gate=norm_before_gate)

            array = arrays[moving]
            tangent = jax.jvp(moved, (array,), (jnp.cos(array),))[1]
            results += [tangent, jax.vjp(moved, array)[1](arrays[0]), jax.jacrev(moved)(array)]
        return results

    assert_close(*(jax.jit(functools.partial(of, each))() for each in PAIR))


def lowered(function, *arrays) -> str:
    return jax.jit(function).lower(*arrays).as_text()


@each_gating
def test_forward_and_backward_are_one_call_each_and_nothing_else_of_xs_size(gating) -> None:
    x, gate, weight, bias = float32_problem()

    def results(x, gate, weight, bias, dy):
        y, transposed = jax.vjp(functools.partial(layer_norm, **gating), x, gate, weight, bias)
        return y, transposed(dy)

    text = lowered(results, x, gate, weight, bias, x)
    large = [each for each in text.splitlines() if "= stablehlo" in each and "6x33xf32" in each]
    assert ["layernorm_forward" in each for each in large] == [True, False]
    assert ["layernorm_backward" in each for each in large] == [False, True]
    text = lowered(functools.partial(layer_norm, **gating), x, gate, weight, bias)
    assert "-> tensor<6x33xf32>" in text  # no statistics


@pytest.mark.parametrize("at", [0, 1])
def test_a_gradient_of_x_or_the_gate_alone_computes_no_other_and_has_the_same_bits(at) -> None:
    arrays = float32_problem()
    for gating in GATINGS:
        function = functools.partial(layer_norm, **gating)
        every = jax.jit(lambda *a, f=function: jax.vjp(f, *a)[1](a[0]))(*arrays)

        def alone(*arrays, f=function):
            given = list(arrays)
            _, transposed = jax.vjp(lambda one: f(*given[:at], one, *given[at + 1 :]), arrays[at])
            return transposed(arrays[0])[0]

        text = lowered(alone, *arrays)
        needs = {0: "need_dx", 1: "need_dgate"}
        for each, name in needs.items():
            assert f"{name} = {str(each == at).lower()}" in text
        assert "need_dweight = false" in text
        got = np.asarray(jax.jit(alone)(*arrays))
        assert_same_bits(got, np.asarray(every[at]), f"gradient {at}, {gating}")


def test_derivatives_where_the_gate_is_infinite(x64) -> None:
    """act and act' have their limits; so has a tangent, which JAX's operations compute."""
    x = jnp.asarray([[1.0, -2.0, 3.0, 0.5]])
    gate = jnp.asarray([[-jnp.inf, jnp.inf, 0.5, -2.0]])
    large = jnp.where(jnp.isinf(gate), jnp.sign(gate) * 1e5, gate)
    for activation in ("silu", "sigmoid"):
        function = functools.partial(gated, "rms_norm", activation=activation)
        y, tangent = jax.jvp(function, (x, gate), (x, x))
        dx, dgate = jax.vjp(function, x, gate)[1](jnp.ones_like(x))
        right, of_large = jax.jvp(function, (x, large), (x, x))
        right_dx, right_dgate = jax.vjp(function, x, large)[1](jnp.ones_like(x))
        finite = np.isfinite(y)
        assert finite.tolist() == [[True, activation == "sigmoid", True, True]]
        assert_close(y[finite], right[finite])
        assert_close(tangent[finite], of_large[finite])
        assert_close(dgate, right_dgate)
        if activation == "sigmoid":
            assert_close(dx, right_dx)


# ---- a residual beside the gate


@each_gating
def test_with_a_residual_the_sum_is_an_addition_before_the_gated_norm(gating, x64) -> None:
    arrays = *problem(), jnp.cos(3 * problem()[0])

    def of(function):
        def both(x, gate, weight, bias, residual):
            return function(x, gate, weight, bias, residual=residual, **gating)

        def loss(*arrays):
            y, total = both(*arrays)
            return jnp.sum(jnp.sin(y) * jnp.cos(total))

        every = tuple(range(5))
        return both(*arrays), jax.grad(loss, every)(*arrays), jax.jvp(both, arrays, arrays)[1]

    assert_close(*(jax.jit(functools.partial(of, each))() for each in PAIR))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_a_residual_the_bits_are_those_of_numpy(dtype) -> None:
    case = Case(dtype=dtype, cols=33)
    x, gate, weight, bias, dy = arrays_of(case)
    residual, dtotal = map(dense, case.residual())
    for gating in GATINGS:
        y, total, stats = forward(
            numpy_front_end, case, x, weight, bias, residual=residual, gate=gate, **gating
        )
        dx, dweight, dbias, dgate = backward(
            numpy_front_end, case, dy, total, stats, weight, gate=gate, dtotal=dtotal
        )

        @jax.jit
        def results(x, residual, gate, weight, bias, dy, dtotal, gating=gating):
            function = functools.partial(gated, "layer_norm", **gating)
            pair, transposed = jax.vjp(
                lambda x, r, *rest: function(x, *rest, residual=r),
                *(x, residual, gate, weight, bias),
            )
            return *pair, *transposed((dy, dtotal))

        found = results(x, residual, gate, weight, bias, dy, dtotal)
        expected = (y, total, dx, dx, dgate, dweight, dbias)
        for got, right in zip(map(np.asarray, found), expected, strict=True):
            assert_same_bits(got, right, str(gating))


@pytest.mark.parametrize("kind", KINDS)
def test_a_float32_stream_takes_16_bit_branches_and_gates(kind) -> None:
    rng = np.random.default_rng(4)
    x, residual, gate = (jnp.asarray(rng.standard_normal((6, 40)), "float32") for _ in range(3))
    x, gate = x.astype("bfloat16"), gate.astype("bfloat16")
    for gating in GATINGS:
        function = functools.partial(gated, kind, residual=residual, **gating)
        (y, total), transposed = jax.vjp(function, x, gate)
        wide = [each.astype("float32") for each in (x, gate)]
        (right, sums), backward = jax.vjp(function, *wide)
        found = (y, total, *transposed((x, residual)))
        expected = (right, sums, *backward((wide[0], residual)))
        for got, each in zip(found, expected, strict=True):
            assert_same_bits(np.asarray(got), np.asarray(each.astype(got.dtype)), "a result")
        assert [each.dtype for each in found] == ["bfloat16", "float32", "bfloat16", "bfloat16"]


# ---- vmap


@pytest.mark.parametrize(
    ("in_axes", "norm_before_gate"),
    [
        ((0, 0, None, None), True),
        ((1, None, None, None), False),
        ((None, 0, 0, None), False),
        ((0, 1, None, 0), True),
    ],
    ids=str,
)
def test_vmap_gives_each_member_its_results_and_derivatives(in_axes, norm_before_gate, x64) -> None:
    arrays = [
        each
        if dim is None
        else jnp.moveaxis(jnp.stack([each * (1 + at) for at in range(4)]), 0, dim)
        for each, dim in zip(problem(), in_axes, strict=True)
    ]

    def everything(f, *arrays):
        f = functools.partial(f, norm_before_gate=norm_before_gate)
        y, transposed = jax.vjp(f, *arrays)
        return y, transposed(y), jax.jvp(f, arrays, arrays)[1]

    def loss(f, *arrays):
        return jnp.sum(jnp.sin(jax.vmap(f, in_axes)(*arrays)))

    members = [jax.vmap(functools.partial(everything, each), in_axes) for each in PAIR]
    assert_close(*(jax.jit(each)(*arrays) for each in members))
    gradient = jax.grad(loss, argnums=(1, 2, 3, 4))
    assert_close(*(jax.jit(functools.partial(gradient, each))(*arrays) for each in PAIR))


@each_gating
def test_a_batch_is_one_call_with_the_bits_of_each_member(gating) -> None:
    x, gate, weight, bias = float32_problem((7, 5, 33))

    def results(x, gate):
        function = functools.partial(layer_norm, **gating)
        y, transposed = jax.vjp(function, x, gate, weight, bias)
        return y, transposed(gate)

    text = lowered(jax.vmap(results), x, gate)
    assert text.count("layernorm_forward") == text.count("layernorm_backward") == 1
    assert "transpose" not in text
    found = jax.jit(jax.vmap(results))(x, gate)
    one = jax.jit(results)
    for at in range(len(x)):
        for got, right in zip(*map(jax.tree.leaves, (found, one(x[at], gate[at]))), strict=True):
            assert_same_bits(np.asarray(got[at]), np.asarray(right), f"member {at}")


# ---- parameters over kept axes


@pytest.mark.parametrize(
    ("shape", "axis", "of_weight", "of_bias", "parameter_type"),
    [
        ((3, 33, 4, 5), 1, (33, 4, 1), (33, 4, 1), "float32"),  # in another order of the axes
        # each is repeated along the other's axis
        ((3, 5, 33), -1, (3, 1, 33), (5, 33), "bfloat16"),
    ],
    ids=str,
)
def test_parameters_over_kept_axes_go_with_a_gate(
    shape, axis, of_weight, of_bias, parameter_type
) -> None:
    rng = np.random.default_rng(4)
    x, gate, dy = (np.asarray(jnp.asarray(rng.normal(0.5, 1, shape), "bfloat16")) for _ in range(3))
    weight, bias = (
        np.asarray(jnp.asarray(rng.normal(0.5, 1, each), parameter_type))
        for each in (of_weight, of_bias)
    )
    for gating in GATINGS:
        y, stats = numpy_front_end.layer_norm_forward(
            x, weight, bias, gate=gate, axis=axis, **gating
        )
        gradients = numpy_front_end.layer_norm_backward(dy, x, stats, weight, gate=gate)
        function = functools.partial(layer_norm, axis=axis, **gating)

        @jax.jit
        def results(x, gate, weight, bias, dy, function=function):
            y, transposed = jax.vjp(function, x, gate, weight, bias)
            return y, *transposed(dy)

        y_found, dx, dgate, *of_parameters = map(np.asarray, results(x, gate, weight, bias, dy))
        same = [(y_found, y), (dx, gradients[0]), (dgate, gradients[3])]
        others = list(zip(of_parameters, gradients[1:3], strict=True))
        for got, right in same if of_weight != of_bias else same + others:
            assert_same_bits(got, right, str(gating))
        for got, right in others:  # a sum of the gradients of the repeats
            np.testing.assert_allclose(*(np.asarray(a, float) for a in (got, right)), rtol=0.02)


# ---- programs


def test_without_jit_in_an_export_and_for_another_platform() -> None:
    arrays = float32_problem()
    expected = np.asarray(jax.jit(layer_norm)(*arrays))
    with jax.disable_jit():
        assert_same_bits(np.asarray(layer_norm(*arrays)), expected, "y")
    (rows,) = export.symbolic_shape("rows")
    shapes = [
        jax.ShapeDtypeStruct((rows, 33), "float32") if each.ndim == 2 else each for each in arrays
    ]
    names = ("layernorm_forward", "layernorm_backward")
    checks = [export.DisabledSafetyCheck.custom_call(each) for each in names]
    exported = export.export(jax.jit(layer_norm), disabled_checks=checks)(*shapes)
    again = export.deserialize(exported.serialize(vjp_order=1))

    def results(function):
        y, transposed = jax.vjp(function, *arrays)
        return y, transposed(arrays[0])

    found = [jax.tree.leaves(results(each)) for each in (again.call, layer_norm)]
    for got, right in zip(*found, strict=True):
        assert_same_bits(np.asarray(got), np.asarray(right), "a result")
    gradient = jax.grad(lambda *a: jnp.sum(layer_norm(*a)), argnums=(0, 1, 2))
    text = jax.jit(gradient).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert "layernorm_" not in text
    with_residual = jax.jit(lambda x, *rest: layer_norm(x, *rest, residual=x)).trace(*arrays)
    text = with_residual.lower(lowering_platforms=("cuda",)).as_text()
    assert "optimization_barrier" in text  # y is the norm of the rounded sum


def test_without_elements() -> None:
    for shape in ((0, 3), (2, 0)):
        x = jnp.zeros(shape)
        y, transposed = jax.vjp(lambda x, z: ours.layer_norm(x, gate=z), x, x)
        assert y.shape == shape
        assert [each.shape for each in transposed(y)] == [shape, shape]


# ---- arguments

X = np.ones((32, 64), np.float32)
ERRORS = {
    "shape": ({"gate": X[:, 1:]}, ValueError, r"gate .*\(32, 63\).*\(32, 64\)"),
    "would broadcast": ({"gate": X[0]}, ValueError, r"gate .*\(64,\).*\(32, 64\)"),
    "type": ({"gate": X.astype(np.float16)}, TypeError, "gate .*float16.*float32.*jnp.asarray"),
    "text": ({"gate": "text"}, TypeError, "gate is of type str"),
    "activation": ({"gate": X, "activation": "relu"}, ValueError, "activation .*'relu'.*silu"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_gate_is_an_error_while_the_call_is_traced(kind, name) -> None:
    given, error, words = ERRORS[name]
    for residual in ({}, {"residual": X}):
        with pytest.raises(error, match=words):
            getattr(ours, kind)(X, **given, **residual)


def test_without_a_gate_its_other_arguments_are_ignored() -> None:
    x, *_ = float32_problem()
    y = ours.layer_norm(x, activation="relu", norm_before_gate=False)
    assert_same_bits(np.asarray(y), np.asarray(ours.layer_norm(x)), "y")


# ---- modules


def flax_layers(dtype):
    """Return (name, our call), each of x and options."""
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


def composed(layer, x, gate, *, activation, norm_before_gate, **options):
    """Return the gated norm by the layer without a gate."""
    z = gate.astype("float32")
    act = jax.nn.sigmoid(z) * (z if activation == "silu" else 1)
    if norm_before_gate:
        return layer(x, **options).astype("float32") * act
    return layer((x.astype("float32") * act).astype(x.dtype), **options)


def assert_is_gated(layer, x, residual, gate, gatings=GATINGS, **options) -> None:
    for gating in gatings:
        y = layer(x, gate=gate, **gating, **options)
        assert y.dtype == layer(x, **options).dtype
        assert_near(y, composed(layer, x, gate, **gating, **options), x.dtype)
        y, total = layer(x, residual=residual, gate=gate, **gating, **options)
        expected = reference.add(np.asarray(x), np.asarray(residual))
        assert_same_bits(np.asarray(total), expected, "total")
        assert_near(y, layer(jnp.asarray(expected), gate=gate, **gating, **options), x.dtype)


def assert_near(y, expected, x_dtype="float32") -> None:
    tolerance = 1e-5 if y.dtype == x_dtype == "float32" else 0.02  # `composed` rounds twice
    got, right = (np.asarray(each, float) for each in (y, expected))
    np.testing.assert_allclose(got, right, rtol=tolerance, atol=tolerance * np.abs(right).max())


# Where the result has another type than x, and with a mask, more than one call computes them.
@pytest.mark.parametrize(
    ("x_dtype", "dtype"), [("float32", None), ("bfloat16", None), ("float32", "bfloat16")]
)
def test_flax_modules_take_a_gate(x_dtype, dtype) -> None:
    rng = np.random.default_rng(6)
    x, residual, gate = (jnp.asarray(rng.normal(0.5, 2, (5, 64)), x_dtype) for _ in range(3))
    mask = jnp.asarray(rng.random((5, 64)) < 0.7)
    for name, layer in flax_layers(dtype):
        assert_is_gated(layer, x, residual, gate)
        assert_is_gated(layer, x, residual, gate, GATINGS[::3], mask=mask)
        text = lowered(lambda x, z, layer=layer: layer(x, gate=z), x, gate)
        assert text.count("@layernorm_forward") == 1, name
        assert "exponential" not in text
        for options in ({}, {"mask": mask}):
            with pytest.raises(ValueError, match="gate has shape"):
                layer(x, gate=gate[0], **options)
            with pytest.raises(TypeError, match="gate has type float16"):
                layer(x, gate=gate.astype("float16"), **options)
            with pytest.raises(ValueError, match="activation is 'relu'"):
                layer(x, gate=gate, activation="relu", **options)


def test_a_flax_module_that_leaves_the_call_to_flax_takes_a_gate() -> None:
    pytest.importorskip("flax", minversion="0.12")
    from layernorm.flax import linen

    x, gate, *_ = map(jnp.asarray, float32_problem())
    module = linen.LayerNorm(reduction_axes=(), feature_axes=-1)
    variables = module.init(jax.random.key(0), x)
    layer = functools.partial(module.apply, variables)
    for gating in GATINGS:
        assert_near(layer(x, gate=gate, **gating), composed(layer, x, gate, **gating))


@pytest.mark.parametrize(
    ("name", "dtype", "use_bias"),
    [
        ("LayerNorm", "bfloat16", True),
        ("RMSNorm", "float32", False),
        ("RMSNorm", "float32", True),
        ("RMSNorm", "bfloat16", True),
    ],
)
def test_equinox_modules_take_a_gate(name, dtype, use_bias) -> None:
    pytest.importorskip("equinox")
    import layernorm.equinox as modules

    rng = np.random.default_rng(7)
    x, residual, gate = (jnp.asarray(rng.normal(0.5, 2, (5, 64)), dtype) for _ in range(3))
    module = getattr(modules, name)(64, use_bias=use_bias)

    def layer(x, residual=None, gate=None, **gating):
        given = {"residual": residual, "gate": gate}
        given = {each: value for each, value in given.items() if value is not None}
        return jax.vmap(lambda x, given: module(x, **given, **gating))(x, given)

    assert_is_gated(layer, x, residual, gate)
    is_composed = name == "RMSNorm" and use_bias
    text = lowered(lambda x, z: layer(x, gate=z), x, gate)
    assert text.count("@layernorm_forward") == 1
    assert ("exponential" in text) == is_composed
    state = object()
    y, passed = module(x[0], state, gate=gate[0])
    assert passed is state
    assert_near(y, layer(x, gate=gate)[0])
    with pytest.raises(ValueError, match="gate has shape"):
        module(x[0], gate=gate)
    with pytest.raises(ValueError, match="activation is 'relu'"):
        module(x[0], gate=gate[0], activation="relu")


def test_an_equinox_module_that_leaves_the_call_to_equinox_takes_a_gate() -> None:
    pytest.importorskip("equinox")
    import layernorm.equinox as modules

    x, gate, *_ = (jnp.asarray(each[0]) for each in float32_problem()[:2])
    module = modules.RMSNorm(33, eps=-0.01)
    for gating in GATINGS:
        assert_near(module(x, gate=gate, **gating), composed(module, x, gate, **gating))
