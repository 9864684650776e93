"""Run by test_tensorflow.py: derivatives, graphs, files, errors, threads."""

import doctest
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from as_numpy_tensorflow import PLAIN_WAYS
from cases import Case

import layernorm
import layernorm.numpy as numpy_front_end
import layernorm.tensorflow as ours
from layernorm.tensorflow import c_api, formula, operators
from layernorm.tensorflow.arguments import Definition

KINDS = ("layer_norm", "rms_norm")
WAYS = {"eager": lambda function: function, "graph": tf.function}

each_kind = pytest.mark.parametrize("kind", KINDS)
each_way = pytest.mark.parametrize("way", WAYS)


def test_the_kernels_are_served() -> None:
    assert c_api.missing is None
    assert c_api.serves()
    graph = tf.function(ours.layer_norm).get_concrete_function(tf.TensorSpec((2, 3))).graph
    types = {op.type for op in graph.get_operations()}
    assert "LayerNorm__import_layernorm_tensorflow" in types


@each_kind
@each_way
def test_a_flag_may_be_numpys(kind, way) -> None:
    x, weight, *_ = tensors()
    call = getattr(ours, kind)
    y = WAYS[way](lambda: call(x, weight, zero_centered_weight=np.True_))()
    assert y.numpy().tobytes() == call(x, weight, zero_centered_weight=True).numpy().tobytes()


def tensors(dtype=tf.float64, shape=(3, 4, 5), axis=(-1,)):
    rng = np.random.default_rng(0)
    x, dy, other = (tf.constant(rng.standard_normal(shape), dtype) for _ in range(3))
    sizes = [shape[each] for each in axis]
    weight, bias = (tf.constant(1 + 0.5 * rng.standard_normal(sizes), dtype) for _ in range(2))
    return x, weight, bias, dy, other


def functions(kind, axis=-1, zero_centered_weight=False):
    """Return our function, and the formula, which TensorFlow differentiates by itself."""
    axes = (axis,) if isinstance(axis, int) else axis
    definition = Definition(axes, 1e-3, kind == "layer_norm", zero_centered_weight)
    options = {"axis": axis, "eps": 1e-3, "zero_centered_weight": zero_centered_weight}

    def mine(x, weight, bias):
        if kind == "layer_norm":
            return ours.layer_norm(x, weight, bias, **options)
        return ours.rms_norm(x, weight, **options)

    def theirs(x, weight, bias):
        return formula.y_of(x, weight, bias if kind == "layer_norm" else None, definition)

    return mine, theirs


def gradients(function, x, weight, bias, dy):
    with tf.GradientTape() as tape:
        tape.watch([x, weight, bias])
        y = function(x, weight, bias)
    return tape.gradient(y, [x, weight, bias], dy, tf.UnconnectedGradients.ZERO)


def assert_close(got, expected, tolerance=1e-10) -> None:
    for one, other in zip(tf.nest.flatten(got), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


# A graph is that of the same axes counted from the end.
@pytest.mark.parametrize(
    ("axis", "ways"),
    [
        (-1, ("eager", "graph")),
        ((-2,), ("eager", "graph")),
        ((-3, -1), ("eager", "graph")),
        (0, ("eager",)),
        ((0, 2), ("eager",)),
    ],
)
@each_kind
def test_gradients_of_gradients_of_gradients(kind, axis, ways) -> None:
    axes = (axis,) if isinstance(axis, int) else axis
    x, weight, bias, dy, other = tensors(axis=axes)

    def third(function):
        def second(x, weight, dy):
            with tf.GradientTape() as tape:
                tape.watch([x, weight, dy])
                results = gradients(function, x, weight, bias, dy)
                loss = tf.add_n([tf.reduce_sum(tf.sin(each)) for each in results])
            return tape.gradient(loss, [x, weight, dy])

        def run(x, weight, dy):
            with tf.GradientTape() as tape:
                tape.watch([x, weight, dy])
                results = second(x, weight, dy)
                loss = tf.reduce_sum(results[0] * other) + tf.reduce_sum(tf.cos(results[1]))
            return results, tape.gradient(loss, [x, weight, dy])

        return run

    mine, theirs = functions(kind, axis, zero_centered_weight=True)
    expected = third(theirs)(x, weight, dy)
    for way in ways:
        assert_close(PLAIN_WAYS[way](third(mine))(x, weight, dy), expected)


@each_kind
def test_forward_mode_and_forward_over_reverse(kind) -> None:
    x, weight, bias, dy, other = tensors()

    def tangents(function):
        with tf.autodiff.ForwardAccumulator([x, weight, bias], [other, bias, weight]) as forward:
            y = function(x, weight, bias)
        return forward.jvp(y)

    def tangents_of_gradients(function):
        with tf.autodiff.ForwardAccumulator([x, weight, bias], [other, bias, weight]) as forward:
            results = gradients(function, x, weight, bias, dy)
        return [forward.jvp(each) for each in results[:2]]

    mine, theirs = functions(kind)
    expected, of_gradients = tangents(theirs), tangents_of_gradients(theirs)
    for way in PLAIN_WAYS.values():
        assert_close(tangents(way(mine)), expected)
        # The accumulator is inside the graph: outside, TensorFlow fails on the gradient of a graph.
        assert_close(way(lambda: tangents_of_gradients(mine))(), of_gradients)


@each_kind
def test_jacobians_and_batches(kind) -> None:
    x, weight, bias, _, _ = tensors(shape=(4, 5))
    mine, theirs = functions(kind)

    def jacobian(function):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x, weight, bias)
        return tape.batch_jacobian(y, x)

    assert_close(jacobian(mine), jacobian(theirs))
    mapped = tf.vectorized_map(lambda row: mine(row, weight, bias), x)
    assert_close(mapped, mine(x, weight, bias), 0)


@each_kind
def test_loops_and_conditions(kind) -> None:
    x, weight, bias, dy, _ = tensors()
    mine, theirs = functions(kind)

    def repeated(function):
        @tf.function
        def run(x, weight, bias):
            for _ in tf.range(3):
                x = tf.cond(x[0, 0, 0] > 99, lambda x=x: x, lambda x=x: function(x, weight, bias))
            return x

        return run

    got, expected = (gradients(repeated(each), x, weight, bias, dy) for each in (mine, theirs))
    assert_close(got, expected)


def test_what_needs_no_gradient_gets_none() -> None:
    x, weight, bias, dy, _ = tensors(tf.float32)
    variable = tf.Variable(weight)
    with tf.GradientTape() as tape:
        y = ours.layer_norm(x, variable, None)
    (of_weight,) = tape.gradient(y, [variable], dy)
    _, expected, _ = gradients(ours.layer_norm, x, weight, bias, dy)
    np.testing.assert_array_equal(of_weight, expected)
    with tf.GradientTape() as tape:
        tape.watch([x, bias])
        y = ours.layer_norm(x, None, bias)
    assert [each.dtype for each in tape.gradient(y, [x, bias])] == [tf.float32] * 2


@each_way
def test_a_float32_weight_beside_16_bits(way) -> None:
    x, weight, bias, dy = (
        tf.cast(each, dtype)
        for each, dtype in zip(
            tensors(), (tf.bfloat16, tf.float32, tf.float32, tf.bfloat16), strict=False
        )
    )
    y = WAYS[way](ours.layer_norm)(x, weight, bias)
    expected = numpy_front_end.layer_norm(x.numpy(), weight.numpy(), bias.numpy())
    np.testing.assert_array_equal(y, expected)
    types = [each.dtype for each in gradients(WAYS[way](ours.layer_norm), x, weight, bias, dy)]
    assert types == [tf.bfloat16, tf.float32, tf.float32]


def test_a_call_that_tensorflows_fast_path_refuses(monkeypatch) -> None:
    x, weight, bias, dy, _ = tensors(tf.float32)
    calls = (ours.layer_norm, lambda x, weight, bias: ours.layer_norm(x, None, bias))
    expected = [gradients(each, x, weight, bias, dy) for each in calls]

    def refuse(*_):
        raise operators.core._FallbackException

    refusing = SimpleNamespace(TFE_Py_FastPathExecute=refuse)
    monkeypatch.setattr(operators, "pywrap_tfe", refusing)
    for call, wanted in zip(calls, expected, strict=True):
        for got, each in zip(gradients(call, x, weight, bias, dy), wanted, strict=True):
            np.testing.assert_array_equal(got, each)
    np.testing.assert_array_equal(ours.rms_norm(x), numpy_front_end.rms_norm(x.numpy()))


def test_static_shapes_are_kept() -> None:
    for spec in (tf.TensorSpec((None, 7)), tf.TensorSpec((2, None)), tf.TensorSpec(None)):
        graph = tf.function(ours.layer_norm).get_concrete_function(spec)
        assert graph.structured_outputs.shape.as_list if spec.shape.rank else True
        assert str(graph.structured_outputs.shape) == str(spec.shape)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((tf.constant([1, 2]),), {}, TypeError, r"int32.*tf\.cast\(x, tf\.float32\)"),
        ((tf.ones((2, 3)),), {"axis": 2}, ValueError, "axis 2 is out of range"),
        ((tf.ones((2, 3)),), {"axis": (0, -2)}, ValueError, "twice"),
        ((tf.ones((2, 3)),), {"axis": 1.5}, TypeError, "expected an int"),
        ((tf.ones((2, 3)), tf.ones(2)), {}, ValueError, r"weight has shape \(2,\).*axis"),
        ((tf.ones((2, 3)), None, tf.ones((3, 1))), {}, ValueError, "bias has shape"),
        ((tf.ones((2, 3)), tf.ones(3, tf.float64)), {}, TypeError, "weight has type float64"),
        ((tf.ones((2, 3)), tf.ones(3, tf.bfloat16)), {}, TypeError, "weight has type bfloat16"),
        ((tf.ones((2, 3)),), {"eps": -1.0}, ValueError, "eps is -1.0"),
        ((tf.ones((2, 3)),), {"eps": "small"}, TypeError, "eps"),
        ((tf.ones(()),), {}, ValueError, "no axes"),
    ],
)
@each_way
def test_errors_say_what_to_do(arguments, options, error, words, way) -> None:
    call = WAYS[way](lambda *given: ours.layer_norm(*given, **options))
    with pytest.raises(error, match=words):
        call(*arguments)


def test_what_only_the_running_graph_knows_is_an_error_of_tensorflows() -> None:
    anything = [tf.TensorSpec(None)] * 2
    call = tf.function(ours.layer_norm, input_signature=anything)
    with pytest.raises(tf.errors.InvalidArgumentError, match="weight needs the sizes of x"):
        call(tf.ones((2, 3)), tf.ones(2))
    far = tf.function(lambda x: ours.layer_norm(x, axis=-3), input_signature=anything[:1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="axis is out of range for x"):
        far(tf.ones((2, 3)))


@each_way
def test_empty_tensors(way) -> None:
    for shape in ((0, 3), (3, 0), (0, 0)):
        x, weight, bias = tf.ones(shape), tf.ones(shape[1]), tf.ones(shape[1])
        dx, *of_parameters = gradients(WAYS[way](ours.layer_norm), x, weight, bias, x)
        assert dx.shape == shape
        for each in of_parameters:
            np.testing.assert_array_equal(each, np.zeros(shape[1]))


def test_the_top_level_takes_tensors_and_variables() -> None:
    x, weight, bias, _, _ = tensors(tf.float32)
    for given in (x, tf.Variable(x)):
        y = layernorm.layer_norm(given, weight, bias, axis=2)
        np.testing.assert_array_equal(y, ours.layer_norm(x, weight, bias))
        y = layernorm.rms_norm(given, weight, zero_centered_weight=True)
        np.testing.assert_array_equal(y, ours.rms_norm(x, weight, zero_centered_weight=True))
    with pytest.raises(
        TypeError, match=r"out is of type EagerTensor.*layernorm\.tensorflow cannot be written to"
    ):
        layernorm.layer_norm(x, out=x)


class Normalizer(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.linspace(1.0, 2.0, 7))

    @tf.function(input_signature=[tf.TensorSpec((None, 7))])
    def __call__(self, x):
        return ours.layer_norm(x, self.weight)


def test_a_saved_model_runs_where_ours_is_imported(tmp_path: Path) -> None:
    module, x = Normalizer(), tf.random.normal((5, 7), seed=0)
    tf.saved_model.save(module, str(tmp_path))
    np.testing.assert_array_equal(tf.saved_model.load(str(tmp_path))(x), module(x))


def test_a_data_set_maps_it() -> None:
    x = tf.random.normal((6, 7), seed=0)
    rows = tf.data.Dataset.from_tensor_slices(x).map(ours.layer_norm, num_parallel_calls=2)
    np.testing.assert_array_equal(tf.stack(list(rows)), ours.layer_norm(x))


def test_threads_that_call_at_once() -> None:
    case = Case(cols=769, rows=1009)
    x, _, weight, bias = (tf.constant(each) for each in case.arrays())
    graph = tf.function(ours.layer_norm)
    expected, results = graph(x, weight, bias), []
    workers = [
        threading.Thread(target=lambda: results.extend(graph(x, weight, bias) for _ in range(20)))
        for _ in range(4)
    ]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert len(results) == 80
    for each in results:
        np.testing.assert_array_equal(each, expected)


def test_the_page_runs() -> None:
    page = Path(__file__).parents[2] / "docs" / "tensorflow.md"
    failures, tried = doctest.testfile(str(page), module_relative=False)
    assert tried > 10
    assert failures == 0
