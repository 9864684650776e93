"""Run by test_tensorflow.py: a gate, norm(x) * act(gate) or norm(x * act(gate))."""

from types import SimpleNamespace
from typing import Any

import cases
import numpy as np
import pytest
import tensorflow as tf
from as_numpy_tensorflow import PLAIN_WAYS, forward, function, to_tensor
from calls import assert_same_bits
from cases import Case
from checkers import GATINGS
from values import TYPES

import layernorm.numpy as numpy_front_end
import layernorm.tensorflow as ours
from layernorm import accuracy
from layernorm.tensorflow import formula, operators
from layernorm.tensorflow.arguments import Definition

WAYS = {"eager": lambda function: function, "graph": tf.function}
GIVEN = ("x", "gate", "weight", "bias")

each_kind = pytest.mark.parametrize("kind", cases.KINDS)
each_type = pytest.mark.parametrize("dtype", TYPES)
each_way = pytest.mark.parametrize("way", WAYS)
each_gating = pytest.mark.parametrize(
    "gating", GATINGS, ids=lambda each: "-".join(map(str, each.values()))
)
# Each activation, and each order.
few_gatings = pytest.mark.parametrize("gating", GATINGS[1:3], ids=each_gating.kwargs["ids"])


def y_and_gradients(x, gate, weight, bias, dy, **call):
    """Return y, dx, dgate, dweight and dbias; None for parameters that are None."""
    given = [x, gate, weight, bias]
    sources = [each for each in given if each is not None]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        y = forward(x, weight, bias, gate=gate, **call)
    gradients = iter(tape.gradient(y, sources, dy))
    return y, *(None if each is None else next(gradients) for each in given)


def named(y, *gradients) -> dict[str, Any]:
    names = ("y", *(f"d{name}" for name in GIVEN))
    return {
        name: each for name, each in zip(names, (y, *gradients), strict=True) if each is not None
    }


def run(way: str, case: Case, gating: dict[str, Any]) -> dict[str, np.ndarray]:
    x, dy, weight, bias = case.arrays()
    tensors = [to_tensor(each) for each in (x, case.gate(), weight, bias, dy)]
    call = {"centered": case.kind == "layer_norm"} | case.definition | gating
    results = function(y_and_gradients, way, call, tensors)(*tensors)
    given = (x, *tensors[:4])
    is_given = zip(results, given, strict=True)
    return {
        name: each.numpy()
        for name, each in named(
            *(each if one is not None else None for each, one in is_given)
        ).items()
    }


def numpys(case: Case, gating: dict[str, Any]) -> dict[str, np.ndarray]:
    x, dy, weight, bias = case.arrays()
    given = [x, weight, bias] if case.kind == "layer_norm" else [x, weight]
    front = {
        each: getattr(numpy_front_end, f"{case.kind}_{each}") for each in ("forward", "backward")
    }
    y, stats = front["forward"](*given, gate=case.gate(), **case.definition, **gating)
    dx, dweight, *dbias, dgate = front["backward"](
        *(dy, x, stats, weight),
        gate=case.gate(),
        need_dweight=True,
        zero_centered_weight=case.zero_centered_weight,
    )
    return named(y, dx, dgate, dweight, *(dbias or [None]))


@each_gating
@each_kind
def test_the_bits_are_those_of_numpy(kind, gating) -> None:
    assert_bits_of_numpy("eager", kind, gating)


@few_gatings
@each_kind
def test_the_bits_of_graphs_are_those_of_numpy(kind, gating) -> None:
    assert_bits_of_numpy("graph", kind, gating, every=17)


def assert_bits_of_numpy(way: str, kind: str, gating: dict[str, Any], every: int = 1) -> None:
    more = [each for each in cases.parameter_cases(kind) if each.layout != "channels_first"]
    more = more[::5] + cases.kept_axes_cases(kind)[::7]
    for case in (cases.gated_cases(kind) + more)[::every]:
        expected = numpys(case, gating)
        for name, result in run(way, case, gating).items():
            assert_same_bits(result, expected[name], f"{name} of {case.id}")


# x's shape, the axis, and the shapes of weight and bias.
APART = [
    ((3, 5, 33), -1, (3, 1, 33), (33,)),
    ((3, 5, 33), -1, (33,), (5, 33)),
    ((3, 5, 33), -1, (3, 1, 33), (5, 33)),
    ((3, 33, 4), 1, (3, 33, 1), (33, 4)),
    ((3, 33, 4), 1, (33,), (3, 33, 1)),
]


@pytest.mark.parametrize("way", ["eager", "graph"])
@pytest.mark.parametrize(("shape", "axis", "of_weight", "of_bias"), APART)
@each_gating
def test_weight_and_bias_may_vary_along_different_axes(
    gating, shape, axis, of_weight, of_bias, way
) -> None:
    rng = np.random.default_rng(0)
    for dtype in (tf.float32, tf.bfloat16) if way == "eager" else (tf.float32,):
        shapes = (shape, shape, of_weight, of_bias, shape)
        tensors = [tf.cast(rng.standard_normal(each), dtype) for each in shapes]
        x, gate, weight, bias, dy = (each.numpy() for each in tensors)
        y, stats = numpy_front_end.layer_norm_forward(
            x, weight, bias, gate=gate, axis=axis, **gating
        )
        dx, dweight, dbias, dgate = numpy_front_end.layer_norm_backward(
            dy, x, stats, weight, gate=gate
        )
        call = {"centered": True, "axis": axis} | gating
        results = function(y_and_gradients, way, call, tensors)(*tensors)
        for got, expected in zip(results, (y, dx, dgate, dweight, dbias), strict=True):
            assert_same_bits(got.numpy(), expected, "y or a gradient")


# The formula has one path for 16 and 32 bits, and another for 64.
@pytest.mark.parametrize(("dtype", "gating"), [("bfloat16", GATINGS[1]), ("float64", GATINGS[2])])
def test_the_formula_that_xla_compiles_is_within_the_bounds(gating, dtype) -> None:
    case = Case("layer_norm", dtype, 48, values="mean_1e4", layout="axes_apart")
    x, dy, weight, bias = case.arrays()
    results = run("xla", case, gating)
    errors = accuracy.gated_errors(
        results, x, case.gate(), weight, bias, dy, kind=case.kind, **case.definition, **gating
    )
    assert max(errors.values()) <= accuracy.GATED_BOUND, errors


EDGES = [np.inf, -np.inf, np.nan, 0.0, -0.0, 700, -700, 1e30, -1e30, 30, -30]


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_the_formulas_activation_has_its_limits_and_derivatives(activation, dtype) -> None:
    z = tf.constant(EDGES, dtype)
    one = tf.ones_like(z)[:, None]
    definition = Definition((-1,), 0.0, False, gating=(activation, True))

    @tf.function  # TensorFlow's own products flush subnormal numbers
    def y_and_slope(norm):
        with tf.GradientTape() as tape:
            tape.watch(z)
            y = norm(one, z[:, None])
        return y, tape.gradient(y, z)

    got = y_and_slope(lambda x, gate: formula.y_of(x, None, None, definition, gate))
    expected = y_and_slope(
        lambda x, gate: ours.rms_norm(x, gate=gate, eps=0.0, activation=activation)
    )
    tiny = np.finfo(dtype.as_numpy_dtype).tiny
    for one_, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(
            one_, other, rtol=1e-6 if dtype == tf.float32 else 1e-14, atol=tiny
        )


@each_type
@few_gatings
def test_the_portable_formula_is_close(gating, dtype) -> None:
    kind = "layer_norm"
    case = Case(kind, dtype, 65)
    x, gate = (tf.constant(each) for each in (case.arrays()[0], case.gate()))
    with ours.portable():
        graph = tf.function(
            lambda x, gate: getattr(ours, kind)(x, gate=gate, **gating),
            input_signature=[tf.TensorSpec((None, 65), x.dtype)] * 2,
        )
        y = graph(x, gate)
    types = {op.type for op in graph.get_concrete_function().graph.get_operations()}
    assert not any("layernorm" in each for each in types)
    expected = getattr(numpy_front_end, kind)(x.numpy(), gate=gate.numpy(), **gating)
    tolerance = 2 * float(np.finfo(np.float32).eps if dtype == "float64" else _eps(x))
    np.testing.assert_allclose(
        *(tf.cast(each, tf.float64) for each in (y, expected)), rtol=4 * tolerance, atol=tolerance
    )


def _eps(x: tf.Tensor) -> float:
    return {tf.float16: 2**-10, tf.bfloat16: 2**-7}.get(x.dtype, 2**-23)


def tensors(dtype=tf.float64, shape=(3, 4, 5)):
    """Return x, gate, weight, bias, dy."""
    rng = np.random.default_rng(0)
    shapes = (shape, shape, shape[-1:], shape[-1:], shape)
    return [tf.constant(0.5 + rng.standard_normal(each), dtype) for each in shapes]


def functions(kind, gating):
    """Return our function, and one that TensorFlow differentiates by itself."""
    definition = Definition((-1,), 1e-3, kind == "layer_norm")
    act = {"silu": tf.nn.silu, "sigmoid": tf.sigmoid}[gating["activation"]]

    def mine(x, gate, weight, bias):
        parameters = (weight, bias) if kind == "layer_norm" else (weight,)
        return getattr(ours, kind)(x, *parameters, gate=gate, eps=1e-3, **gating)

    def theirs(x, gate, weight, bias):
        bias = bias if kind == "layer_norm" else None
        if gating["norm_before_gate"]:
            return formula.y_of(x, weight, bias, definition) * act(gate)
        return formula.y_of(x * act(gate), weight, bias, definition)

    return mine, theirs


def assert_close(got, expected, tolerance=1e-10) -> None:
    for one, other in zip(tf.nest.flatten(got), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def gradients(function, given, dy):
    with tf.GradientTape() as tape:
        tape.watch(given)
        y = function(*given)
    return tape.gradient(y, given, dy, tf.UnconnectedGradients.ZERO)


@each_way
@few_gatings
@each_kind
def test_gradients_of_gradients(kind, gating, way) -> None:
    *given, dy = tensors()

    def second(function):
        def run():
            with tf.GradientTape() as tape:
                tape.watch([*given, dy])
                results = gradients(function, given, dy)
                loss = tf.add_n([tf.reduce_sum(tf.sin(each)) for each in results])
            return results, tape.gradient(loss, [*given, dy], None, tf.UnconnectedGradients.ZERO)

        return run

    mine, theirs = functions(kind, gating)
    assert_close(PLAIN_WAYS[way](second(mine))(), second(theirs)())


@each_way
def test_second_and_third_derivatives_where_weight_and_bias_vary_along_different_axes(way) -> None:
    x, gate, weight, _, dy = tensors()
    given = [
        x,
        gate,
        weight[None, None] * tf.ones((3, 1, 1), tf.float64),
        tf.random.normal((4, 5), dtype=tf.float64),
    ]

    def second(function):
        with tf.GradientTape() as tape:
            tape.watch(given)
            loss = tf.add_n(
                [tf.reduce_sum(tf.sin(each)) for each in gradients(function, given, dy)]
            )
        return tape.gradient(loss, given)

    def third(function):
        with tf.GradientTape() as tape:
            tape.watch(given)
            results = second(function)
            loss = tf.reduce_sum(results[0] * dy) + tf.reduce_sum(tf.cos(results[3]))
        return results, tape.gradient(loss, given)

    mine, theirs = functions("layer_norm", GATINGS[0])
    derivative = third if way == "eager" else second  # a graph of the third takes seconds to trace
    assert_close(PLAIN_WAYS[way](lambda: derivative(mine))(), derivative(theirs))


@few_gatings
def test_forward_mode_and_forward_over_reverse(gating) -> None:
    *given, dy = tensors()
    along = [dy, given[0], given[3], given[2]]

    def tangents(function):
        with tf.autodiff.ForwardAccumulator(given, along) as forward:
            results = [function(*given), *gradients(function, given, dy)[:3]]
        return [forward.jvp(each) for each in results]

    mine, theirs = functions("layer_norm", gating)
    expected = tangents(theirs)
    # A graph, whose tracing takes seconds, for one order of norm and gate.
    for way in PLAIN_WAYS if gating["norm_before_gate"] else ("eager",):
        assert_close(PLAIN_WAYS[way](lambda: tangents(mine))(), expected)


@each_kind
def test_jacobians_and_batches(kind) -> None:
    x, gate, weight, bias, _ = tensors(shape=(4, 5))
    mine, theirs = functions(kind, GATINGS[0])

    def jacobians(function):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x, gate])
            y = function(x, gate, weight, bias)
        return [tape.batch_jacobian(y, each) for each in (x, gate)]

    assert_close(jacobians(mine), jacobians(theirs))
    mapped = tf.vectorized_map(lambda rows: mine(*rows, weight, bias), (x, gate))
    assert_close(mapped, mine(x, gate, weight, bias), 0)


@each_type
@few_gatings
def test_results_are_written_over_inputs_that_nothing_else_reads(gating, dtype) -> None:
    case = Case(dtype=dtype, cols=769, rows=37)
    x, dy, _, _ = (each if each is None else tf.constant(each) for each in case.arrays())
    gate = tf.constant(case.gate())
    norm = lambda x, gate: ours.layer_norm(x, gate=gate, **gating)  # noqa: E731

    def twice(x, gate, dy):
        y = norm(norm(x * 2, gate * 2), gate)
        return y, *gradients(norm, [x * 2, gate * 2], dy * 2)

    got = tf.function(twice)(x, gate, dy)
    expected = norm(norm(x * 2, gate * 2), gate), *gradients(norm, [x * 2, gate * 2], dy * 2)
    for one, other in zip(got, expected, strict=True):
        assert_same_bits(one.numpy(), other.numpy(), "a result")


@each_way
@each_gating
def test_x_may_be_the_gate_and_dy_too(gating, way) -> None:
    x = tensors(tf.float32)[0]

    def results(x):
        norm = lambda x, gate: ours.layer_norm(x, gate=gate, **gating)  # noqa: E731
        return norm(x * 1, x * 1), *gradients(norm, [x, tf.identity(x)], x)

    given = x.numpy()
    y, stats = numpy_front_end.layer_norm_forward(given, gate=given, **gating)
    dx, _, _, dgate = numpy_front_end.layer_norm_backward(given, given, stats, gate=given)
    for one, other in zip(WAYS[way](results)(x), (y, dx, dgate), strict=True):
        assert_same_bits(one.numpy(), other, "a result")


def test_static_shapes_are_kept() -> None:
    for shape in ((None, 7), (2, None), None):
        given = [tf.TensorSpec(each) for each in (shape, shape, (7,), (7,))]

        def step(x, gate, weight, bias):
            call = lambda x, z, w, b: ours.layer_norm(x, w, b, gate=z)  # noqa: E731
            return call(x, gate, weight, bias), gradients(call, [x, gate, weight, bias], None)

        graph = tf.function(step).get_concrete_function(*given)
        y, of_given = graph.structured_outputs
        for each in (y, *of_given[:2]):
            assert str(each.shape) == str(given[0].shape)
        assert of_given[2].shape == of_given[3].shape == (7,)


class Block(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 7))] * 2)
    def __call__(self, x, gate):
        return ours.layer_norm(x, gate=gate, activation="sigmoid", norm_before_gate=False)


def test_a_saved_model_has_it(tmp_path) -> None:
    x, gate = (tf.random.stateless_normal((5, 7), (seed, 0)) for seed in (1, 2))
    tf.saved_model.save(Block(), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_array_equal(loaded(x, gate), Block()(x, gate))


@each_way
def test_ragged_tensors(way) -> None:
    x, gate, weight, bias, _ = tensors(tf.float32, (6, 5))
    make = tf.RaggedTensor.from_row_lengths

    def call(x, gate):
        y = ours.layer_norm(make(x, [4, 2]), weight, bias, gate=make(gate, [4, 2]))
        return y.flat_values

    expected = ours.layer_norm(x, weight, bias, gate=gate)
    assert_close(WAYS[way](call)(x, gate), expected, 0)
    with pytest.raises(TypeError, match=r"gate is of type .*Tensor, but x is a RaggedTensor"):
        ours.layer_norm(make(x, [4, 2]), gate=x)
    with pytest.raises(tf.errors.InvalidArgumentError, match="gate needs the row lengths of x"):
        WAYS[way](lambda x: ours.rms_norm(make(x, [4, 2]), gate=make(x, [2, 4])))(x)


X = tf.ones((3, 5))
ERRORS = {
    "shape": (tf.ones((3, 4)), {}, ValueError, r"gate has shape \(3, 4\), .*x of shape \(3, 5\)"),
    "would broadcast": (tf.ones((1, 5)), {}, ValueError, r"gate has shape \(1, 5\)"),
    "fewer axes": (tf.ones(5), {}, ValueError, r"gate has shape \(5,\)"),
    "type": (
        tf.ones((3, 5), tf.float64),
        {},
        TypeError,
        r"float64.*pass tf\.cast\(gate, tf\.float32\)",
    ),
    "integers": (tf.ones((3, 5), tf.int32), {}, TypeError, "gate has type int32"),
    "no tensor": (
        tf.sparse.from_dense(X),
        {},
        TypeError,
        r"gate is of type .*tf\.sparse\.to_dense",
    ),
    "activation": (X, {"activation": "relu"}, ValueError, "activation is 'relu', expected 'silu'"),
    "a function": (X, {"activation": [tf.nn.silu]}, ValueError, r"activation is \[.*silu"),
}


@pytest.mark.parametrize("name", ERRORS)
@each_way
@each_kind
def test_a_bad_gate_is_an_error(kind, way, name) -> None:
    gate, options, error, words = ERRORS[name]
    for more in ({}, {"residual": X}):
        with pytest.raises(error, match=words):
            WAYS[way](lambda more=more: getattr(ours, kind)(X, gate=gate, **options, **more))()


@pytest.mark.parametrize("way", ["graph", "portable", "xla"])
def test_a_shape_that_only_the_running_graph_knows_is_an_error_of_tensorflows(way) -> None:
    call = tf.function(
        lambda x, gate: ours.layer_norm(x, gate=gate),
        input_signature=[tf.TensorSpec(None)] * 2,
        jit_compile=way == "xla",
    )
    if way == "portable":
        with ours.portable():
            call.get_concrete_function()
    words = "gate needs x's sizes" if way == "graph" else "same (size and )?shape"
    for shape in ((1, 5), (5,)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            call(X, tf.ones(shape))


def test_a_gate_may_be_a_variable_an_array_or_a_list() -> None:
    expected = ours.layer_norm(X, gate=X)
    for gate in (tf.Variable(X), X.numpy(), X.numpy().tolist()):
        assert_close(ours.layer_norm(X, gate=gate), expected, 0)


def test_without_a_gate_its_options_are_ignored() -> None:
    y = ours.layer_norm(X + 1, activation="none", norm_before_gate=False)
    assert_close(y, ours.layer_norm(X + 1), 0)


def test_a_call_that_tensorflows_fast_path_refuses(monkeypatch) -> None:
    *given, dy = tensors(tf.float32)
    mine, _ = functions("layer_norm", GATINGS[-1])
    call = lambda: (mine(*given), gradients(mine, given, dy))  # noqa: E731
    expected = call()

    def refuse(*_):
        raise operators.core._FallbackException

    refusing = SimpleNamespace(TFE_Py_FastPathExecute=refuse)
    monkeypatch.setattr(operators, "pywrap_tfe", refusing)
    assert_close(call(), expected, 0)


@each_way
@few_gatings
@each_type
def test_with_a_residual_it_is_the_gated_norm_of_the_sum(dtype, gating, way) -> None:
    case = Case(dtype=dtype, cols=129)
    x, dy, weight, bias = case.arrays()
    residual, dtotal = case.residual()
    given = [tf.constant(each) for each in (x, residual, weight, bias, case.gate())]

    def results():
        x, residual, weight, bias, gate = given
        with tf.GradientTape() as tape:
            tape.watch(given)
            pair = ours.layer_norm(x, weight, bias, residual=residual, gate=gate, **gating)
        return *pair, *tape.gradient(pair, given, [tf.constant(dy), tf.constant(dtotal)])

    y, total, dx, dresidual, dweight, dbias, dgate = WAYS[way](results)()
    assert_same_bits(total.numpy(), (given[0] + given[1]).numpy(), "total")
    expected, stats = numpy_front_end.layer_norm_forward(
        total.numpy(), weight, bias, gate=case.gate(), **gating
    )
    of_total, *others = numpy_front_end.layer_norm_backward(
        dy, total.numpy(), stats, weight, gate=case.gate()
    )
    of_total = (tf.constant(of_total) + tf.constant(dtotal)).numpy()
    right = (expected, of_total, of_total, *others)
    for got, each in zip((y, dx, dresidual, dweight, dbias, dgate), right, strict=True):
        assert_same_bits(got.numpy(), each, "y or a gradient")


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
@each_way
def test_a_float32_stream_takes_16_bit_branches_and_gates(way, dtype) -> None:
    x, gate, weight = (tf.cast(tf.random.normal(each), dtype) for each in ((6, 40), (6, 40), (40,)))
    residual = tf.random.normal((6, 40))
    call = lambda: ours.rms_norm(x, weight, residual=residual, gate=gate)  # noqa: E731
    y, total = WAYS[way](call)()
    wide = [tf.cast(each, tf.float32) for each in (x, weight, gate)]
    expected, sums = ours.rms_norm(wide[0], wide[1], residual=residual, gate=wide[2])
    assert_same_bits(y.numpy(), tf.cast(expected, dtype).numpy(), "y")
    assert_same_bits(total.numpy(), sums.numpy(), "total")
    with pytest.raises(TypeError, match="gate has type float32"):
        ours.rms_norm(x, residual=residual, gate=residual)


@each_way
def test_empty_tensors(way) -> None:
    def results_and_gradients(x):
        weight = tf.ones(x.shape[-1])
        call = lambda x, gate, weight, bias: ours.layer_norm(x, weight, bias, gate=gate)  # noqa: E731
        return call(x, x, weight, weight), *gradients(call, [x, x + 1, weight, weight + 1], x)

    for shape in ((0, 3), (3, 0)):
        *results, dweight, dbias = WAYS[way](results_and_gradients)(tf.ones(shape))
        assert [each.shape for each in results] == [shape] * 3
        for each in (dweight, dbias):
            assert_close(each, tf.zeros(shape[-1]), 0)
