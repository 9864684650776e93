"""8 bits: q = y / scale, where y is what `layer_norm` returns; to derivatives constants."""

import functools
import math

import ml_dtypes
import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from as_numpy_jax import OPTIMIZED, formula_forward, to_jax  # noqa: E402
from calls import assert_same_bits  # noqa: E402
from cases import KINDS, Case, of_each_kind, quantized_cases  # noqa: E402
from checkers import QUANTIZATIONS  # noqa: E402
from jax import export  # noqa: E402
from jax_renamed import enable_x64  # noqa: E402
from layouts import axes_of, dense  # noqa: E402
from problems import a_problem  # noqa: E402

import layernorm  # noqa: E402
import layernorm.jax as ours  # noqa: E402
import layernorm.numpy as numpy_front_end  # noqa: E402
from layernorm import reference, spec  # noqa: E402
from layernorm.jax import formulas  # noqa: E402
from layernorm.jax.definition import Definition, Quantizing  # noqa: E402

# Layouts that a contiguous x reads in place are like one, and so are widths.
ALIKE = ("rows_reversed", "heads_of_a_projection", "channels_last_in_memory")
CASES = [
    case
    for case in of_each_kind(quantized_cases)
    if case.layout not in ALIKE
    and case.cols not in (3, 17, 769, 4097)
    and (case.kind == "layer_norm" or case.cols == 257)
]


@functools.partial(jax.jit, static_argnames=("kind", "options"))
def results_of(kind, arrays, options):
    """Return the results of every quantization, from one program."""
    function = functools.partial(getattr(ours, f"quantized_{kind}"), **dict(options))
    return [function(*arrays, dtype=dtype, scale=scale) for dtype, scale in QUANTIZATIONS]


def assert_same(found, expected, what: str = "") -> None:
    """Compare q and the scales, or q alone."""
    pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
    for name, (got, right) in zip(("q", "scales"), pairs, strict=False):
        got, right = np.asarray(got), np.asarray(right)
        assert got.dtype == right.dtype
        assert got.shape == right.shape
        assert_same_bits(got.view(np.uint8), right.view(np.uint8), f"{name} {what}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_bits_are_those_of_the_numpy_front_end(case: Case) -> None:
    x, _, weight, bias = map(dense, case.arrays())
    arrays = (x, weight, bias)[: 3 if case.kind == "layer_norm" else 2]
    with enable_x64(True):
        options = tuple(case.definition.items())
        every = results_of(case.kind, tuple(map(to_jax, arrays)), options)
    function = getattr(numpy_front_end, f"quantized_{case.kind}")
    for (dtype, scale), found in zip(QUANTIZATIONS, every, strict=True):
        expected = function(*arrays, dtype=dtype, scale=scale, **case.definition)
        assert_same(found, expected, f"{dtype}, scale {scale}")


# ---- the formulas of other devices


@pytest.mark.parametrize(
    ("kind", "dtype", "layout"),
    [
        ("layer_norm", "float32", "contiguous"),
        ("layer_norm", "bfloat16", "axes_apart"),
        ("rms_norm", "float64", "channels_first"),
    ],
)
def test_the_formulas_quantize_y_exactly(kind, dtype, layout) -> None:
    case = Case(kind, dtype, 48, layout=layout)
    x, _, weight, bias = map(dense, case.arrays())
    axes = axes_of(case.definition["axis"], x.ndim)
    plain = Definition(axes, case.eps, kind == "layer_norm")
    own = [
        plain._replace(quantizing=Quantizing(q_type, s is not None)) for q_type, s in QUANTIZATIONS
    ]

    wide = "float64" if dtype == "float64" else "float32"
    compiled = functools.partial(jax.jit, compiler_options=OPTIMIZED)

    def given(scale):
        return None if scale is None else jnp.asarray(scale, wide)

    @compiled
    def of_y(x, weight, bias):
        y, *_ = formula_forward(x, weight, bias, definition=plain)
        pairs = zip(QUANTIZATIONS, own, strict=True)
        return y, [formulas.quantized(y, given(scale), each) for (_, scale), each in pairs]

    @compiled
    def whole(x, weight, bias):
        """Here y is not a result."""
        return [
            formula_forward(x, weight, bias, scale=given(QUANTIZATIONS[at][1]), definition=own[at])
            for at in (0, 3)
        ]

    with enable_x64(True):
        y, every = of_y(*map(to_jax, (x, weight, bias)))
        of_x = whole(*map(to_jax, (x, weight, bias)))
    for (q_type, scale), (q, *scales) in zip(QUANTIZATIONS, every, strict=True):
        rows = np.moveaxis(np.asarray(y), axes, range(-len(axes), 0))
        rows = rows.reshape(*rows.shape[: -len(axes)], -1)
        expected, expected_scales = reference.quantize(rows, q_type, scale)
        got = np.moveaxis(np.asarray(q), axes, range(-len(axes), 0)).reshape(rows.shape)
        assert q.dtype == q_type
        np.testing.assert_array_equal(got.astype(float), expected)
        if scale is None:
            np.testing.assert_array_equal(np.asarray(scales[0]), expected_scales[..., 0])
    for found, right in zip(of_x, (every[0], every[3]), strict=True):
        assert_same(found, right)


def everything_near(dtype: np.dtype) -> np.ndarray:
    """Return the numbers of the 8-bit types, the midpoints, what is beside these, and four more."""
    found = [np.arange(-300, 301) / 2]
    for q_type in ("float8_e4m3fn", "float8_e5m2"):
        every = np.arange(256, dtype=np.uint8).view(q_type).astype(float)
        every = np.sort(every[np.isfinite(every)])
        found += [every, (every[1:] + every[:-1]) / 2, 1.03 * every]
    numbers = np.concatenate(found).astype(dtype)
    beside = [np.nextafter(numbers, dtype.type(to)) for to in (-1e6, 1e6)]
    return np.concatenate([numbers, *beside, np.array([np.nan, np.inf, -np.inf, -0.0], dtype)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_formulas_round_to_nearest_even_and_saturate(dtype) -> None:
    y = everything_near(np.dtype(dtype))

    @functools.partial(jax.jit, compiler_options=OPTIMIZED)
    def quantized(y):
        of_types = [Definition((0,), 0.0, quantizing=Quantizing(each, True)) for each in TYPES]
        return [formulas.quantized(y, jnp.ones((), y.dtype), each)[0] for each in of_types]

    with enable_x64(True):
        every = quantized(jnp.asarray(y))
    for name, q in zip(TYPES, every, strict=True):
        expected, _ = reference.quantize(y, name, 1.0)
        got = np.asarray(q).astype(float)
        np.testing.assert_array_equal(got, expected)
        if name != "int8":
            np.testing.assert_array_equal(*map(np.signbit, (got[:-4], expected[:-4])))
            assert np.signbit(got[-1])


TYPES = list(spec.QUANTIZED_TYPES)


def test_the_scales_of_the_formulas_are_at_least_normal_and_let_a_nan_through() -> None:
    y = np.ones((4, 40), np.float32)
    y[1], y[2, 35], y[3, 3] = 0, np.nan, np.inf
    plain = Definition((1,), 0.0)

    @functools.partial(jax.jit, compiler_options=OPTIMIZED)
    def quantized(y):
        return [
            formulas.quantized(y, None, plain._replace(quantizing=Quantizing(each, False)))
            for each in TYPES
        ]

    for name, (q, scales) in zip(TYPES, quantized(y), strict=True):
        expected, expected_scales = reference.quantize(y, name)
        np.testing.assert_array_equal(np.asarray(q).astype(float), expected)
        np.testing.assert_array_equal(scales, expected_scales[:, 0])
        assert scales[1] == np.finfo(np.float32).smallest_normal


# ---- programs


def problem(shape=(6, 33)):
    """Return x, weight and bias in float32."""
    return [each.astype(np.float32) for each in a_problem(shape)[:3]]


def lowered(function, *arrays) -> str:
    return jax.jit(function).lower(*arrays).as_text()


def test_it_is_one_call_and_no_array_of_xs_size_but_q() -> None:
    for scale, results in ((None, "(tensor<6x33xi8>, tensor<6xf32>)"), (0.1, "tensor<6x33xi8>")):
        function = functools.partial(ours.quantized_layer_norm, scale=scale)
        text = lowered(function, *problem())
        large = [each for each in text.splitlines() if "= stablehlo" in each and "6x33x" in each]
        assert ["layernorm_forward" in each for each in large] == [True]
        assert f"-> {results}" in large[0]


def test_without_jit_in_an_export_and_for_another_platform() -> None:
    arrays = problem()
    name = export.DisabledSafetyCheck.custom_call("layernorm_forward")
    (rows,) = export.symbolic_shape("rows")
    shapes = [jax.ShapeDtypeStruct((rows, 33), "float32"), *arrays[1:]]
    for dtype, scale in (("float8_e4m3fn", None), ("int8", 0.1)):
        function = functools.partial(ours.quantized_layer_norm, dtype=dtype, scale=scale)
        expected = numpy_front_end.quantized_layer_norm(*arrays, dtype=dtype, scale=scale)
        with jax.disable_jit():
            assert_same(function(*arrays), expected)
        exported = export.export(jax.jit(function), disabled_checks=[name])(*shapes)
        assert_same(export.deserialize(exported.serialize()).call(*arrays), expected)
        text = jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
        assert "layernorm_" not in text
        assert "optimization_barrier" in text  # q is that of the rounded y


def test_derivatives_are_zero() -> None:
    x, weight, bias = map(jnp.asarray, problem())

    def loss(x, weight, bias, scale):
        q, scales = ours.quantized_layer_norm(x, weight, bias, dtype="float8_e4m3fn")
        static = ours.quantized_rms_norm(x, weight, scale=scale)
        return (q.astype("float32") * scales).sum() + static.astype("float32").sum()

    arrays = (x, weight, bias, jnp.float32(0.1))
    every = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*arrays)
    assert not any(each.any() for each in every)
    assert jax.jvp(loss, arrays, arrays)[1] == 0
    # With another way to x, there is its gradient alone.
    straight = jax.grad(lambda x: jnp.sum(x * ours.quantized_layer_norm(x)[1]))(x)
    assert_same_bits(
        np.asarray(straight), np.broadcast_to(ours.quantized_layer_norm(x)[1], x.shape), "dx"
    )


@pytest.mark.parametrize(
    "in_axes", [(0, None, None, None), (1, 0, None, None), (None, 0, 0, None), (0, 0, None, 0)]
)
@pytest.mark.parametrize("is_given", [False, True])
def test_vmap_gives_each_member_its_bits(in_axes, is_given) -> None:
    arrays = [*problem((5, 33)), np.float32(0.03)]
    given = [
        each if dim is None else np.moveaxis(np.stack([each, 2 * each, each - 1]), 0, dim)
        for each, dim in zip(arrays, in_axes, strict=True)
    ]
    if in_axes[3] is not None:
        given[3] = np.array([0.03, 0.05, 0.02], np.float32)

    def function(x, weight, bias, scale):
        scale = scale if is_given else None
        return ours.quantized_layer_norm(x, weight, bias, scale=scale)

    batch = jax.vmap(function, in_axes)
    found = jax.jit(batch)(*given)
    text = lowered(batch, *given)
    assert text.count("@layernorm_forward") == 1
    is_composed = is_given and in_axes[3] is not None
    assert ("divide" in text) == is_composed
    for at in range(3):
        member = [
            each if dim is None else np.take(each, at, dim)
            for each, dim in zip(given, in_axes, strict=True)
        ]
        x, weight, bias, scale = member
        scale = scale if is_given else None
        right = numpy_front_end.quantized_layer_norm(x, weight, bias, scale=scale)
        assert_same(jax.tree.map(lambda each, at=at: each[at], found), right, f"of member {at}")


def test_parameters_over_kept_axes_in_another_order_of_the_axes() -> None:
    x, weight, bias = problem((3, 33, 4, 5))
    weight, bias = x[0, :, :, :1], x[1, :, :, 1:2]
    found = jax.jit(functools.partial(ours.quantized_layer_norm, axis=1))(x, weight, bias)
    assert_same(found, numpy_front_end.quantized_layer_norm(x, weight, bias, axis=1))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 0, 3)])
def test_without_elements(shape) -> None:
    x = np.zeros(shape, np.float32)
    for scale in (None, 0.1):
        expected = numpy_front_end.quantized_layer_norm(x, scale=scale)
        assert_same(ours.quantized_layer_norm(x, scale=scale), expected)


# ---- arguments

X = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)


def test_the_type_may_be_a_name_or_a_type() -> None:
    for name in TYPES:
        expected = numpy_front_end.quantized_layer_norm(X, dtype=name)
        for dtype in (name, getattr(jnp, name), jnp.dtype(name), getattr(ml_dtypes, name, np.int8)):
            assert_same(ours.quantized_layer_norm(X, dtype=dtype), expected)
    assert_same(layernorm.quantized_rms_norm(jnp.asarray(X)), ours.quantized_rms_norm(X))


def test_the_scale_may_be_any_single_number() -> None:
    expected = numpy_front_end.quantized_layer_norm(X, scale=0.25)
    every = (0.25, np.float64(0.25), np.array([0.25]), jnp.asarray([[0.25]], "bfloat16"))
    for scale in every:
        assert_same(ours.quantized_layer_norm(X, scale=scale), expected)
    traced = jax.jit(lambda scale: ours.quantized_layer_norm(X, scale=scale))
    for scale in every:
        assert_same(traced(scale), expected)
    on_device = jnp.asarray(X)
    with jax.transfer_guard("disallow"):
        for scale in every[::3]:
            assert_same(ours.quantized_layer_norm(on_device, scale=scale), expected)
    with jax.numpy_dtype_promotion("strict"):
        assert_same(ours.quantized_layer_norm(X, scale=every[3]), expected)


ERRORS = {
    "another type": ({"dtype": "uint8"}, TypeError, "uint8.*int8, float8_e4m3fn or float8_e5m2"),
    "wide type": ({"dtype": jnp.float32}, TypeError, "float32.*int8"),
    "scale of zero": ({"scale": 0.0}, ValueError, "scale is 0.0.*positive"),
    "negative array": ({"scale": jnp.float32(-1)}, ValueError, "scale is -1.0.*positive"),
    "scale of NaN": ({"scale": math.nan}, ValueError, "scale is nan.*positive"),
    "scales of rows": ({"scale": np.ones((32, 1))}, ValueError, r"scale has shape \(32, 1\).*one"),
    "text": ({"scale": "1"}, TypeError, "scale is '1'.*number"),
    "x": ({"x": X.astype(int)}, TypeError, "x has type int"),
    "weight": ({"weight": X[0, :5]}, ValueError, r"\(5,\).*\(64,\)"),
    "axis": ({"axis": 2}, ValueError, "axis"),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_call_is_an_error(kind, name) -> None:
    change, error, words = ERRORS[name]
    with pytest.raises(error, match=words):
        getattr(ours, f"quantized_{kind}")(**{"x": X} | change)


def test_a_traced_scale_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"scale has shape \(2,\).*one number"):
        jax.jit(lambda scale: ours.quantized_layer_norm(X, scale=scale))(np.ones(2, np.float32))
