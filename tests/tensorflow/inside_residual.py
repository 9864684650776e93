"""Run by test_tensorflow.py: a residual, which is added to x first."""

from types import SimpleNamespace

import cases
import numpy as np
import pytest
import tensorflow as tf
from as_numpy_tensorflow import PLAIN_WAYS, forward, function, to_tensor
from calls import assert_same_bits
from cases import Case
from values import TYPES

import layernorm
import layernorm.numpy as numpy_front_end
import layernorm.tensorflow as ours
from layernorm import accuracy
from layernorm.tensorflow import formula, operators
from layernorm.tensorflow.arguments import Definition

WAYS = {"eager": lambda function: function, "graph": tf.function}
GIVEN = ("x", "residual", "weight", "bias")
NAMES = ("y", "total", *(f"d{name}" for name in GIVEN))

each_kind = pytest.mark.parametrize("kind", cases.KINDS)
each_type = pytest.mark.parametrize("dtype", TYPES)
each_way = pytest.mark.parametrize("way", WAYS)


def y_total_and_gradients(x, residual, weight, bias, dy, dtotal, **call):
    """Return y, total, dx, dresidual, dweight and dbias; None for parameters that are None."""
    given = [x, residual, weight, bias]
    with tf.GradientTape() as tape:
        tape.watch([each for each in given if each is not None])
        results = forward(x, weight, bias, residual=residual, **call)
    sources = [each for each in given if each is not None]
    gradients = iter(tape.gradient(results, sources, [dy, dtotal]))
    return *results, *(None if each is None else next(gradients) for each in given)


def run(way: str, case: Case) -> dict[str, np.ndarray]:
    x, dy, weight, bias = case.arrays()
    residual, dtotal = case.residual()
    tensors = [to_tensor(each) for each in (x, residual, weight, bias, dy, dtotal)]
    call = {"centered": case.kind == "layer_norm"} | case.definition
    results = function(y_total_and_gradients, way, call, tensors)(*tensors)
    is_given = (True, True, *(each is not None for each in tensors[:4]))
    named = zip(NAMES, results, is_given, strict=True)
    return {name: each.numpy() for name, each, given in named if given}


def numpys(case: Case) -> dict[str, np.ndarray]:
    x, dy, weight, bias = case.arrays()
    residual, dtotal = case.residual()
    given = [x, weight, bias] if case.kind == "layer_norm" else [x, weight]
    front = {
        each: getattr(numpy_front_end, f"{case.kind}_{each}") for each in ("forward", "backward")
    }
    y, total, stats = front["forward"](*given, residual=residual, **case.definition)
    dx, *of_parameters = front["backward"](
        *(dy, total, stats, weight),
        dtotal=dtotal,
        need_dweight=True,
        zero_centered_weight=case.zero_centered_weight,
    )
    return dict(zip(NAMES, (y, total, dx, dx, *of_parameters), strict=False))


def few(kind: str) -> list[Case]:
    """Return cases of other sets of parameters, of float32 ones too, that vary along any axes."""
    of_parameters = [
        each for each in cases.parameter_cases(kind) if each.layout != "channels_first"
    ]
    return of_parameters[::5] + cases.kept_axes_cases(kind)[::7]


# 5: other layouts of each type.
@pytest.mark.parametrize(("way", "every"), [("eager", 1), ("graph", 5)])
@each_kind
def test_the_bits_are_those_of_numpy(kind, way, every) -> None:
    for case in (*cases.residual_cases(kind)[::every], *few(kind)):
        expected = numpys(case)
        for name, result in run(way, case).items():
            assert_same_bits(result, expected[name], f"{name} of {case.id}")


def assert_within_bounds(case: Case, got: dict[str, np.ndarray]) -> None:
    _, dy, weight, bias = case.arrays()
    _, dtotal = case.residual()
    definition = {"kind": case.kind} | case.definition
    assert_same_bits(got["total"], numpys(case)["total"], "total")
    bounds = accuracy.BOUNDS[case.dtype]
    assert accuracy.y_error(got["y"], got["total"], weight, bias, **definition) <= bounds.y
    for name in ("dx", "dresidual"):
        error = accuracy.dx_error(got[name], dy, got["total"], weight, dtotal=dtotal, **definition)
        assert error <= bounds.dx, name
    definition.pop("zero_centered_weight")
    error = accuracy.dweight_error(got["dweight"], dy, got["total"], **definition)
    assert error <= bounds.parameter


# The formula has one path for 16 and 32 bits, and another for 64.
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@each_kind
def test_the_formula_that_xla_compiles_is_within_the_bounds(kind, dtype) -> None:
    case = Case(kind, dtype, 48, values="mean_1e4", layout="axes_apart")
    assert_within_bounds(case, run("xla", case))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@each_kind
def test_the_portable_formula_normalizes_the_stored_total(kind, dtype) -> None:
    case = Case(kind, dtype, 65)
    with ours.portable():
        graph = tf.function(lambda x, residual: getattr(ours, kind)(x, residual=residual))
        x, residual = (tf.constant(each) for each in (case.arrays()[0], case.residual()[0]))
        y, total = graph(x, residual)
    types = {op.type for op in graph.get_concrete_function(x, residual).graph.get_operations()}
    assert not any("layernorm" in each for each in types)
    expected, expected_total = getattr(numpy_front_end, kind)(x.numpy(), residual=residual.numpy())
    assert_same_bits(total.numpy(), expected_total, "total")
    assert (y.numpy() != expected).mean() < 0.01  # of a total that was not rounded: a half


def tensors(dtype=tf.float64, shape=(3, 4, 5)):
    """Return x, residual, weight, bias, dy, dtotal."""
    rng = np.random.default_rng(0)
    shapes = (shape, shape, shape[-1:], shape[-1:], shape, shape)
    return [tf.constant(0.5 + rng.standard_normal(each), dtype) for each in shapes]


def functions(kind):
    """Return our function, and one that TensorFlow differentiates by itself."""
    definition = Definition((-1,), 1e-3, kind == "layer_norm")

    def mine(x, residual, weight, bias):
        parameters = (weight, bias) if kind == "layer_norm" else (weight,)
        return getattr(ours, kind)(x, *parameters, residual=residual, eps=1e-3)

    def theirs(x, residual, weight, bias):
        total = x + residual
        bias = bias if kind == "layer_norm" else None
        return formula.y_of(total, weight, bias, definition), total

    return mine, theirs


def assert_close(got, expected, tolerance=1e-10) -> None:
    for one, other in zip(tf.nest.flatten(got), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def gradients(function, given, of_results, use=lambda y, total: (y, total)):
    with tf.GradientTape() as tape:
        tape.watch(given)
        results = use(*function(*given))
    return tape.gradient(results, given, of_results, tf.UnconnectedGradients.ZERO)


USES = {
    "y": lambda y, total: [y],
    "total": lambda y, total: [total],
    "half": lambda y, total: [tf.gather(y, [0, 2]), tf.gather(total, [1, 1])],  # IndexedSlices
}


@pytest.mark.parametrize("use", USES)
@each_way
@each_kind
def test_results_that_are_not_used_have_no_gradient(kind, way, use) -> None:
    *given, dy, _ = tensors()
    of_results = [dy] if use != "half" else [dy[:2], dy[1:]]
    got, expected = (
        PLAIN_WAYS[way](lambda each=each: gradients(each, given, of_results, USES[use]))()
        for each in functions(kind)
    )
    assert_close(got, expected)


@pytest.mark.parametrize("shape", [(64, 768), (3, 5), (None, 5), None])
def test_the_backward_is_the_plain_one_where_a_graph_does_not_use_total(shape) -> None:
    def step(x, residual):
        return gradients(
            lambda *given: ours.layer_norm(given[0], residual=given[1]),
            [x, residual],
            None,
            USES["y"],
        )

    specs = [tf.TensorSpec(shape)] * 2
    graph = tf.function(step).get_concrete_function(*specs).graph
    types = {op.type for op in graph.get_operations()}
    assert operators.BACKWARD in types
    assert operators.OF_SUM_BACKWARD not in types


@each_way
@each_kind
def test_gradients_of_gradients_of_gradients(kind, way) -> None:
    x, residual, weight, bias, dy, dtotal = tensors()

    def third(function):
        def second(x, residual, weight, dy, dtotal):
            with tf.GradientTape() as tape:
                tape.watch([x, residual, weight, dy, dtotal])
                results = gradients(function, [x, residual, weight, bias], [dy, dtotal])
                loss = tf.add_n([tf.reduce_sum(tf.sin(each)) for each in results])
            return tape.gradient(loss, [x, residual, weight, dy, dtotal])

        def run():
            given = [x, residual, weight, dy, dtotal]
            with tf.GradientTape() as tape:
                tape.watch(given)
                results = second(*given)
                loss = tf.reduce_sum(results[0] * dy) + tf.reduce_sum(tf.cos(results[2]))
            return results, tape.gradient(loss, given)

        return run

    mine, theirs = functions(kind)
    assert_close(PLAIN_WAYS[way](third(mine))(), third(theirs)())


@each_kind
def test_forward_mode_and_forward_over_reverse(kind) -> None:
    *given, dy, dtotal = tensors()
    along = [dtotal, dy, given[3], given[2]]

    def tangents(function):
        with tf.autodiff.ForwardAccumulator(given, along) as forward:
            results = function(*given)
            of_given = gradients(function, given, [dy, dtotal])[:3]
        return [forward.jvp(each) for each in (*results, *of_given)]

    mine, theirs = functions(kind)
    expected = tangents(theirs)
    for way in PLAIN_WAYS.values():
        assert_close(way(lambda: tangents(mine))(), expected)


@each_kind
def test_jacobians_and_batches(kind) -> None:
    x, residual, weight, bias, _, _ = tensors(shape=(4, 5))
    mine, theirs = functions(kind)

    def jacobians(function):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y, total = function(x, residual, weight, bias)
        return [tape.batch_jacobian(each, x) for each in (y, total)]

    assert_close(jacobians(mine), jacobians(theirs))
    mapped = tf.vectorized_map(lambda rows: mine(*rows, weight, bias), (x, residual))
    assert_close(mapped, mine(x, residual, weight, bias), 0)


@each_type
def test_results_are_written_over_inputs_that_nothing_else_reads(dtype) -> None:
    case = Case(dtype=dtype, cols=769, rows=37)
    x, residual = (tf.constant(each) for each in (case.arrays()[0], case.residual()[0]))

    def twice(norm, x, residual):
        y, total = norm(x * 2, residual=residual * 2)
        return norm(y, residual=total)

    got = tf.function(lambda *given: twice(layernorm.layer_norm, *given))(x, residual)
    y, total = numpy_front_end.layer_norm((x * 2).numpy(), residual=(residual * 2).numpy())
    expected = numpy_front_end.layer_norm(y, residual=total)
    for one, other, name in zip(got, expected, ("y", "total"), strict=True):
        assert_same_bits(one.numpy(), other, name)


@each_way
def test_x_may_be_the_residual_too(way) -> None:
    x = tensors(tf.float32)[0]
    y, total = WAYS[way](lambda x: ours.layer_norm(x * 1, residual=x * 1))(x)
    again = WAYS[way](lambda x: ours.layer_norm(x, residual=x))(x)
    expected = numpy_front_end.layer_norm(x.numpy(), residual=x.numpy())
    for results in ((y, total), again):
        for one, other in zip(results, expected, strict=True):
            assert_same_bits(one.numpy(), other, "y or total")


def test_static_shapes_are_kept() -> None:
    for shape in ((None, 7), (2, None), None):
        given = [
            tf.TensorSpec(shape),
            tf.TensorSpec(shape),
            tf.TensorSpec((7,)),
            tf.TensorSpec((7,)),
        ]

        def step(x, residual, weight, bias):
            call = lambda x, r, w, b: ours.layer_norm(x, w, b, residual=r)  # noqa: E731
            return call(x, residual, weight, bias), gradients(
                call, [x, residual, weight, bias], None
            )

        graph = tf.function(step).get_concrete_function(*given)
        results, of_given = graph.structured_outputs
        for each in (*results, *of_given[:2]):
            assert str(each.shape) == str(given[0].shape)
        assert of_given[2].shape == (7,)


class Block(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 7))] * 2)
    def __call__(self, x, residual):
        return ours.layer_norm(x, residual=residual)


def test_a_saved_model_has_it(tmp_path) -> None:
    x, residual = (tf.random.stateless_normal((5, 7), (seed, 0)) for seed in (1, 2))
    tf.saved_model.save(Block(), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for one, other in zip(loaded(x, residual), Block()(x, residual), strict=True):
        np.testing.assert_array_equal(one, other)


@each_way
def test_ragged_tensors(way) -> None:
    x, residual, weight, bias, _, _ = tensors(tf.float32, (6, 5))
    make = tf.RaggedTensor.from_row_lengths

    def call(x, residual):
        y, total = ours.layer_norm(make(x, [4, 2]), weight, bias, residual=make(residual, [4, 2]))
        return y.flat_values, total.flat_values

    expected = ours.layer_norm(x, weight, bias, residual=residual)
    assert_close(WAYS[way](call)(x, residual), expected, 0)
    with pytest.raises(TypeError, match=r"residual is of type .*Tensor, but x is a RaggedTensor"):
        ours.layer_norm(make(x, [4, 2]), residual=x)
    with pytest.raises(tf.errors.InvalidArgumentError, match="residual needs the row lengths of x"):
        WAYS[way](lambda x: ours.rms_norm(make(x, [4, 2]), residual=make(x, [2, 4])))(x)


X = tf.ones((3, 5))
ERRORS = {
    "shape": (tf.ones((3, 4)), ValueError, r"residual has shape \(3, 4\), .*x of shape \(3, 5\)"),
    "would broadcast": (tf.ones((1, 5)), ValueError, r"residual has shape \(1, 5\)"),
    "fewer axes": (tf.ones(5), ValueError, r"residual has shape \(5,\)"),
    "a number": (1.0, ValueError, r"residual has shape \(\)"),
    "type": (
        tf.ones((3, 5), tf.float64),
        TypeError,
        r"float64.*pass tf\.cast\(residual, tf\.float32\)",
    ),
    "16 bits": (tf.ones((3, 5), tf.bfloat16), TypeError, "residual has type bfloat16"),
    "integers": (tf.ones((3, 5), tf.int32), TypeError, "residual has type int32"),
    "no tensor": (
        tf.sparse.from_dense(X),
        TypeError,
        r"residual is of type .*tf\.sparse\.to_dense",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
@each_way
@each_kind
def test_a_bad_residual_is_an_error(kind, way, name) -> None:
    residual, error, words = ERRORS[name]
    with pytest.raises(error, match=words):
        WAYS[way](lambda: getattr(ours, kind)(X, residual=residual))()


@pytest.mark.parametrize("way", ["graph", "portable"])
def test_a_shape_that_only_the_running_graph_knows_is_an_error_of_tensorflows(way) -> None:
    call = tf.function(
        lambda x, residual: ours.layer_norm(x, residual=residual),
        input_signature=[tf.TensorSpec(None)] * 2,
    )
    if way == "portable":
        with ours.portable():
            call.get_concrete_function()
    words = "residual needs x's sizes" if way == "graph" else "must have the same size and shape"
    for shape in ((1, 5), (5,)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            call(X, tf.ones(shape))


def test_a_residual_may_be_a_variable_an_array_or_a_list() -> None:
    expected = ours.layer_norm(X, residual=X)
    for residual in (tf.Variable(X), X.numpy(), X.numpy().tolist()):
        assert_close(ours.layer_norm(X, residual=residual), expected, 0)


def test_a_call_that_tensorflows_fast_path_refuses(monkeypatch) -> None:
    *given, dy, dtotal = tensors(tf.float32)
    mine, _ = functions("layer_norm")
    call = lambda: (mine(*given), gradients(mine, given, [dy, dtotal]))  # noqa: E731
    expected = call()

    def refuse(*_):
        raise operators.core._FallbackException

    refusing = SimpleNamespace(TFE_Py_FastPathExecute=refuse)
    monkeypatch.setattr(operators, "pywrap_tfe", refusing)
    assert_close(call(), expected, 0)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
@each_way
@each_kind
def test_a_float32_stream_takes_16_bit_branches(kind, way, dtype) -> None:
    norm = getattr(ours, kind)
    x, weight = tf.cast(tf.random.normal((6, 40)), dtype), tf.cast(tf.random.normal((40,)), dtype)
    residual, dtotal, dy = tf.random.normal((6, 40)), tf.random.normal((6, 40)), x

    def run():
        with tf.GradientTape() as tape:
            tape.watch([x, residual, weight])
            results = norm(x, weight, residual=residual)
        return *results, *tape.gradient(results, [x, residual, weight], [dy, dtotal])

    y, total, dx, dresidual, dweight = WAYS[way](run)()
    assert [each.dtype for each in (y, dx, dweight)] == [dtype] * 3
    wide = [tf.cast(each, tf.float32) for each in (x, weight, dy)]
    with tf.GradientTape() as tape:
        tape.watch(wide[0])
        expected = norm(wide[0], wide[1], residual=residual)
    alone = tape.gradient(expected, wide[0], [wide[2], dtotal])
    for got, right in (
        *((y, tf.cast(expected[0], dtype)), (total, expected[1])),
        *((dresidual, alone), (dx, tf.cast(alone, dtype))),
    ):
        assert bool(tf.reduce_all(got == right))


@each_way
def test_empty_tensors(way) -> None:
    def results_and_gradients(x):
        call = lambda x, residual: ours.layer_norm(x, residual=residual)  # noqa: E731
        return *call(x, x), *gradients(call, [x, x + 1], [x, x])

    for shape in ((0, 3), (3, 0)):
        results = WAYS[way](results_and_gradients)(tf.ones(shape))
        assert [each.shape for each in results] == [shape] * 4
