"""Run by test_tensorflow.py: norms in 8 bits."""

from types import SimpleNamespace
from typing import Any

import cases
import numpy as np
import pytest
import tensorflow as tf
from as_numpy_tensorflow import AsNumpy
from calls import assert_same_bits
from cases import Case
from checkers import check_quantized
from values import TYPES, dtype_of

import layernorm
import layernorm.numpy as numpy_front_end
import layernorm.tensorflow as ours
from layernorm import reference, spec
from layernorm.tensorflow import formula, operators

WAYS = {"eager": lambda function: function, "graph": tf.function}
E4M3, E5M2 = tf.dtypes.experimental.float8_e4m3fn, tf.dtypes.experimental.float8_e5m2
OURS = "QuantizedLayerNorm__import_layernorm_tensorflow"
X = tf.constant(np.random.default_rng(0).standard_normal((6, 8)), tf.float32)
WEIGHT = tf.linspace(0.5, 1.5, 8)

each_kind = pytest.mark.parametrize("kind", cases.KINDS)
each_way = pytest.mark.parametrize("way", WAYS)
each_quantized_type = pytest.mark.parametrize("q_type", spec.QUANTIZED_TYPES)


def quantized(kind, *given, **options):
    return getattr(ours, f"quantized_{kind}")(*given, **options)


def assert_same(got, expected) -> None:
    for one, other in zip(tf.nest.flatten(got), tf.nest.flatten(expected), strict=True):
        assert_same_bits(np.asarray(one), np.asarray(other), "q or the scales")


# 11: one case of each type, each of another layout.
@pytest.mark.parametrize(("way", "every"), [("eager", 1), ("graph", 11)])
@each_kind
def test_q_and_the_scales_are_those_of_y(kind, way, every) -> None:
    for case in cases.quantized_cases(kind)[::every]:
        check_quantized(AsNumpy(way), case)


@pytest.mark.parametrize("way", ["portable", "xla"])
def test_where_no_kernel_serves_they_are_those_of_the_formula(way) -> None:
    x, _, weight, bias = map(tf.constant, Case(dtype="bfloat16", cols=65).arrays())

    def both(x, weight, bias):
        q, scales = ours.quantized_layer_norm(x, weight, bias)
        return ours.layer_norm(x, weight, bias), q, scales

    graph = tf.function(both, jit_compile=way == "xla")
    if way == "portable":
        with ours.portable():
            graph.get_concrete_function(x, weight, bias)
    y, q, scales = graph(x, weight, bias)
    types = {op.type for op in graph.get_concrete_function(x, weight, bias).graph.get_operations()}
    assert not any("layernorm" in each for each in types)
    expected, expected_scales = reference.quantize(y.numpy())
    np.testing.assert_array_equal(q, expected)
    np.testing.assert_array_equal(scales, expected_scales)


def hard_to_quantize(dtype: str) -> np.ndarray:
    """Return rows of every number of the 8-bit types and the midpoints, with and without NaN.

    And multiples of them, for other scales.
    """
    every = [np.arange(-130, 131) / 2]
    for q_type in ("float8_e4m3fn", "float8_e5m2"):
        numbers = np.arange(256, dtype=np.uint8).view(dtype_of(q_type)).astype(np.float64)
        numbers = np.sort(numbers[np.isfinite(numbers)])
        every += [numbers, (numbers[1:] + numbers[:-1]) / 2]
    row = np.concatenate(every)
    rows = [row, 0 * row, 1e-44 * (row != 0), row, *(row * n / 97 for n in range(31, 90, 3))]
    rows = np.stack(rows)
    rows[3, 7], rows[4, 0], rows[5, 701], rows[6, -1] = np.inf, np.nan, np.nan, np.nan
    return rows.astype(dtype_of(dtype))


@pytest.mark.parametrize("way", ["eager", "portable", "xla"])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_formula_quantizes_as_the_reference(dtype, way) -> None:
    if (dtype, way) == ("float64", "xla"):
        pytest.skip("XLA multiplies by the reciprocals of constants")
    y = hard_to_quantize(dtype)
    given = [(q_type, scale) for q_type in spec.QUANTIZED_TYPES for scale in (None, 1.0, 0.3)]

    def all_of(y):
        return [
            formula.quantize(
                y,
                tf.as_dtype(q_type),
                scale and tf.constant(scale, spec.compute_type(dtype)),
                (-1,),
                portable=way == "portable",
            )
            for q_type, scale in given
        ]

    results = tf.function(all_of, jit_compile=True)(y) if way == "xla" else all_of(tf.constant(y))
    for (q_type, scale), (q, scales) in zip(given, results, strict=True):
        expected, expected_scales = reference.quantize(y, q_type, scale)
        got = q.numpy().astype(np.float64)
        np.testing.assert_array_equal(got, expected, f"{q_type}, scale {scale}")
        if q_type != "int8":
            np.testing.assert_array_equal(np.signbit(got[:2]), np.signbit(expected[:2]))
        if scale is None:
            np.testing.assert_array_equal(scales, expected_scales)


@pytest.mark.parametrize("q_type", ["int8", "float8_e4m3fn"])
def test_there_is_no_gradient(q_type) -> None:
    scale = tf.constant(0.05)

    def gradients(loss):
        given = [X, WEIGHT, scale]
        with tf.GradientTape() as tape:
            tape.watch(given)
            q, scales = ours.quantized_layer_norm(X, WEIGHT, dtype=q_type)
            of_scale = ours.quantized_layer_norm(X, WEIGHT, dtype=q_type, scale=scale)
            value = loss(*(tf.cast(each, tf.float32) for each in (q, scales, of_scale)))
        return tape.gradient(value, given)

    def everything(q, scales, of_scale):
        return tf.reduce_sum(q * scales) + tf.reduce_sum(of_scale)

    for way in (*WAYS.values(), lambda each: tf.function(each, jit_compile=True)):
        is_none = way(lambda: [each is None for each in gradients(everything)])()
        assert [bool(each) for each in is_none] == [True] * 3
    assert gradients(lambda q, scales, _: tf.reduce_sum(scales)) == [None] * 3
    _, of_weight, _ = gradients(lambda q, scales, _: tf.reduce_sum(q * WEIGHT))
    np.testing.assert_allclose(  # of the use beside it
        of_weight,
        tf.reduce_sum(
            tf.cast(ours.quantized_layer_norm(X, WEIGHT, dtype=q_type)[0], tf.float32), 0
        ),
    )
    with tf.autodiff.ForwardAccumulator(X, X) as forward:
        results = ours.quantized_layer_norm(X, dtype=q_type)
    assert [forward.jvp(each) for each in results] == [None, None]


@each_way
def test_the_type_may_be_a_name_or_a_type(way) -> None:
    for dtype in ("int8", tf.int8, np.int8, np.dtype("int8"), E4M3, "float8_e5m2", E5M2):
        q, _ = WAYS[way](lambda dtype=dtype: ours.quantized_rms_norm(X, dtype=dtype))()
        assert q.dtype == tf.as_dtype(dtype)


SCALES = {
    "number": 0.25,
    "NumPy's": np.float64(0.25),
    "array": np.array([0.25], np.float32),
    "scalar": tf.constant(0.25),
    "of any shape": tf.constant([[0.25]]),
    "of another type": tf.constant(0.25, tf.float64),
    "variable": tf.Variable(0.25),
}


@pytest.mark.parametrize("name", SCALES)
@each_way
def test_the_scale_may_be_a_number_or_a_tensor(way, name) -> None:
    q = WAYS[way](lambda: ours.quantized_layer_norm(X, WEIGHT, scale=SCALES[name]))()
    assert_same(q, numpy_front_end.quantized_layer_norm(X.numpy(), WEIGHT.numpy(), scale=0.25))


def test_a_scale_may_be_an_input_of_a_graph() -> None:
    scale = tf.TensorSpec(None)
    call = tf.function(lambda x, scale: ours.quantized_layer_norm(x, scale=scale))
    graph = call.get_concrete_function(tf.TensorSpec(None), scale)
    for given in (0.1, 0.4):
        expected = numpy_front_end.quantized_layer_norm(X.numpy(), scale=given)
        assert_same(graph(X, tf.constant(given)), expected)
    with pytest.raises(tf.errors.InvalidArgumentError, match="scale needs one number"):
        graph(X, tf.ones(2))


def test_static_shapes_are_kept() -> None:
    def shapes(shape, axis=-1):
        graph = tf.function(lambda x: ours.quantized_layer_norm(x, axis=axis))
        results = graph.get_concrete_function(tf.TensorSpec(shape)).structured_outputs
        return [each.shape if each.shape.rank is None else tuple(each.shape) for each in results]

    assert shapes((None, 7)) == [(None, 7), (None, 1)]
    assert shapes((2, None, 3, None), (1, -1)) == [(2, None, 3, None), (2, 1, 3, 1)]
    assert [each.rank for each in shapes(None)] == [None, None]


@each_kind
def test_it_is_one_operation_of_the_graph(kind) -> None:
    specs = [tf.TensorSpec((None, 8)), tf.TensorSpec(8)]
    graph = tf.function(lambda *given: quantized(kind, *given)).get_concrete_function(*specs).graph
    types = [op.type for op in graph.get_operations()]
    rest = {"Placeholder", "Identity", "StopGradient", "Const"}  # none of which computes
    assert [each for each in types if each not in rest] == [OURS]


def test_constants_are_folded() -> None:
    x = X.numpy()

    @tf.function
    def of_constants():
        return [
            ours.quantized_rms_norm(tf.constant(x), dtype=each) for each in spec.QUANTIZED_TYPES
        ]

    for dtype, results in zip(spec.QUANTIZED_TYPES, of_constants(), strict=True):
        assert_same(results, numpy_front_end.quantized_rms_norm(x, dtype=dtype))


@pytest.mark.parametrize("way", [*WAYS, "xla"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_empty_tensors(dtype, way) -> None:
    scales_type = spec.compute_type(dtype)
    for shape in ((0, 3), (3, 0)):
        call = lambda x: ours.quantized_layer_norm(x)  # noqa: E731
        call = tf.function(call, jit_compile=True) if way == "xla" else WAYS[way](call)
        q, scales = call(tf.ones(shape, dtype))
        assert q.shape == shape
        expected = np.full((shape[0], 1), np.finfo(scales_type).smallest_normal)
        assert_same(scales, expected)


class Quantizer(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None, 8))])
    def __call__(self, x):
        return *ours.quantized_layer_norm(x), *ours.quantized_rms_norm(x, dtype=E4M3)


def test_a_saved_model_has_it(tmp_path) -> None:
    tf.saved_model.save(Quantizer(), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    assert_same(loaded(X), Quantizer()(X))


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
def test_tensorflow_lite_takes_the_portable_one_in_int8() -> None:
    import tensorflow_lite

    with ours.portable():
        traced = tf.function(lambda x: ours.quantized_layer_norm(x, scale=0.02))
        traced = traced.get_concrete_function(tf.TensorSpec(X.shape))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced])
    q = tensorflow_lite.run(converter.convert(), X.numpy())
    expected = numpy_front_end.quantized_layer_norm(X.numpy(), scale=0.02)
    assert np.abs(q.astype(int) - expected.astype(int)).max() <= 1  # y may be on the other side


def test_vectorized_map() -> None:
    results = tf.vectorized_map(lambda row: ours.quantized_layer_norm(row, WEIGHT), X)
    assert_same(results, ours.quantized_layer_norm(X, WEIGHT))


@each_way
def test_ragged_tensors(way) -> None:
    def call(x):
        ragged = tf.RaggedTensor.from_row_lengths(x, [4, 2])
        results = ours.quantized_layer_norm(ragged, WEIGHT, dtype=E5M2)
        return [each.flat_values for each in results], [each.row_splits for each in results]

    values, splits = WAYS[way](call)(X)
    assert_same(values, ours.quantized_layer_norm(X, WEIGHT, dtype=E5M2))
    assert [each.numpy().tolist() for each in splits] == [[0, 4, 6]] * 2


def test_a_call_that_tensorflows_fast_path_refuses(monkeypatch) -> None:
    def calls():
        wide = tf.cast(X, tf.float64)
        yield ours.quantized_layer_norm(X, WEIGHT, WEIGHT, dtype=E4M3)
        yield ours.quantized_rms_norm(wide, scale=0.1)

    expected = list(calls())

    def refuse(*_):
        raise operators.core._FallbackException

    refusing = SimpleNamespace(TFE_Py_FastPathExecute=refuse)
    monkeypatch.setattr(operators, "pywrap_tfe", refusing)
    assert_same(list(calls()), expected)


@each_kind
def test_the_top_level_takes_tensors_and_variables(kind) -> None:
    for given in (X, tf.Variable(X)):
        results = getattr(layernorm, f"quantized_{kind}")(given, WEIGHT, axis=1)
        assert_same(results, quantized(kind, X, WEIGHT))
        q = getattr(layernorm, f"quantized_{kind}")(given, zero_centered_weight=True, scale=0.1)
        assert_same(q, quantized(kind, X, scale=0.1))


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "type": ({"dtype": tf.uint8}, TypeError, "dtype is uint8, expected int8.*float8_e5m2"),
    "no type": ({"dtype": "int9"}, TypeError, "dtype is int9, expected int8"),
    "scale of zero": ({"scale": 0.0}, ValueError, "scale is 0.0.*positive"),
    "scale of NaN": ({"scale": np.nan}, ValueError, "scale is nan.*positive"),
    "scales of rows": ({"scale": tf.ones((6, 1))}, ValueError, r"scale has shape \(6, 1\).*one"),
    "array": ({"scale": np.ones(6)}, ValueError, r"scale has shape \(6,\).*one number"),
    "text": ({"scale": "1"}, TypeError, "scale is '1'.*number"),
    "x": ({"x": tf.ones(3, tf.int32)}, TypeError, r"int32.*tf\.cast\(x, tf\.float32\)"),
    "weight": ({"weight": tf.ones(5)}, ValueError, r"weight has shape \(5,\)"),
    "axis": ({"axis": 2}, ValueError, "axis 2 is out of range"),
    "eps": ({"eps": -1.0}, ValueError, "eps is -1.0"),
}


@pytest.mark.parametrize("name", ERRORS)
@each_way
def test_errors_say_what_to_do(way, name) -> None:
    change, error, words = ERRORS[name]
    for kind in cases.KINDS:
        with pytest.raises(error, match=words):
            WAYS[way](lambda kind=kind: quantized(kind, **{"x": X} | change))()
