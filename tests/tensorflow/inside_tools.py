"""Run by test_tensorflow.py: what people do with TensorFlow's own operations works with ours.

The right value is that of the same layer norm in TensorFlow's own operations, in float64.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_lite
from tensorflow.python.framework.config import disable_op_determinism
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import layernorm
import layernorm.numpy as numpy_front_end
import layernorm.tensorflow as ours

RNG = np.random.default_rng(0)
X, DY = (tf.constant(RNG.standard_normal((6, 8))) for _ in range(2))
WEIGHT, BIAS = (tf.constant(1 + 0.5 * RNG.standard_normal(8)) for _ in range(2))
GIVEN = [X, WEIGHT, BIAS]
WAYS = {"eager": lambda function: function, "graph": tf.function}
OURS = "LayerNorm__import_layernorm_tensorflow"

each_way = pytest.mark.parametrize("way", WAYS)


def theirs(x, weight, bias):
    d = x - tf.reduce_mean(x, -1, keepdims=True)
    return d * tf.math.rsqrt(tf.reduce_mean(d * d, -1, keepdims=True) + 1e-5) * weight + bias


def dense(results) -> list[np.ndarray | None]:
    flat = tf.nest.flatten(results)
    return [each if each is None else tf.convert_to_tensor(each).numpy() for each in flat]


def assert_ours_does_as_theirs(call, way: str = "eager") -> None:
    """Compare call(our function), eagerly or in a graph, with call(their function)."""
    got, expected = dense(WAYS[way](lambda: call(ours.layer_norm))()), dense(call(theirs))
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        if other is None:
            assert one is None
        else:
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def gradients(function, loss=lambda y: tf.reduce_sum(y * DY), **options):
    with tf.GradientTape(**options) as tape:
        tape.watch(GIVEN)
        value = loss(function(*GIVEN))
    return tape.gradient(value, GIVEN)


def test_a_sparse_gradient_reaches_x() -> None:
    """tf.gather's gradient is IndexedSlices, which an eager tape passes on as they are."""
    x = tf.Variable(tf.random.stateless_normal((6, 8), (0, 0), dtype=tf.float64))

    def gradient(function):
        with tf.GradientTape() as tape:
            y = tf.gather(function(x, WEIGHT, BIAS), [1, 3])
            loss = tf.reduce_sum(y**2)
        return tape.gradient(loss, x)

    assert_ours_does_as_theirs(gradient)


PICKS = {
    "gather": lambda y: tf.gather(y, [1, 3, 3, 5]),
    "take": lambda y: keras.ops.take(y, [0, 0, 2], axis=0),
    "embedding_lookup": lambda y: tf.nn.embedding_lookup(y, [4, 4]),
    "slices": lambda y: y[1:3, ::2],
    "boolean_mask": lambda y: tf.boolean_mask(y, [True, False, True, False, False, True]),
}


# In a graph the gradient of each but "slices" is IndexedSlices.
@pytest.mark.parametrize(
    ("way", "pick"),
    [*(("eager", each) for each in PICKS), ("graph", "gather"), ("graph", "slices")],
)
def test_sparse_gradients_and_their_gradients(way, pick) -> None:
    def second(function):
        with tf.GradientTape() as outer:
            outer.watch(GIVEN)
            first = gradients(function, lambda y: tf.reduce_sum(tf.sin(PICKS[pick](y))))
            loss = tf.reduce_sum(PICKS[pick](tf.convert_to_tensor(first[0])) ** 2)
            loss += sum(tf.reduce_sum(tf.gather(each, [3, 3, 1]) ** 2) for each in first[1:])
        return first, outer.gradient(loss, GIVEN)

    assert_ours_does_as_theirs(second, way)


@each_way
def test_embeddings_before_the_norm(way) -> None:
    table = tf.Variable(X)

    def gradient(function):
        with tf.GradientTape() as tape:
            y = function(tf.nn.embedding_lookup(table, [1, 1, 4]), WEIGHT, BIAS)
            loss = tf.reduce_sum(tf.gather(y, [0, 0, 2]) ** 3)
        return tape.gradient(loss, table)

    assert_ours_does_as_theirs(gradient, way)


def test_a_sparse_gradient_may_be_given() -> None:
    def gradient(function):
        with tf.GradientTape() as tape:
            tape.watch(GIVEN)
            y = function(*GIVEN)
        slices = tf.IndexedSlices(DY[:2], [1, 1], tf.constant([6, 8]))
        return tape.gradient(y, GIVEN, slices)

    assert_ours_does_as_theirs(gradient)


@each_way
def test_gradients_of_results_that_are_not_used(way) -> None:
    def unused(function):
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(GIVEN)
            first = gradients(function)
        of_dweight = outer.gradient(first[1] ** 2, [X, WEIGHT])
        with tf.GradientTape() as tape:
            tape.watch(GIVEN)
            function(*GIVEN)
            loss = tf.reduce_sum(X**2)
        return of_dweight, tape.gradient(loss, GIVEN, unconnected_gradients="zero")

    assert_ours_does_as_theirs(unused, way)


@tf.custom_gradient
def doubled(x):
    return x, lambda dy: 2 * dy


def inside_custom_gradient(function):
    @tf.custom_gradient
    def norm(x, weight, bias):
        with tf.GradientTape() as tape:
            tape.watch([x, weight, bias])
            y = function(x, weight, bias)
        return y, lambda dy: [2 * each for each in tape.gradient(y, [x, weight, bias], dy)]

    return gradients(norm)


def persistent(function):
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(GIVEN)
        y = function(*GIVEN)
        losses = [tf.reduce_sum(y * DY), tf.reduce_sum(tf.gather(y, [1, 1, 4]) ** 2)]
    return [tape.gradient(each, GIVEN) for each in losses]


def jacobians(function):
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(GIVEN)
        y = function(*GIVEN)
    return tape.jacobian(y, X), tape.jacobian(y, X, experimental_use_pfor=False)


def in_a_while_loop(function):
    def several(x, weight, bias):
        body = lambda i, x: (i + 1, function(x, weight, bias))  # noqa: E731
        return tf.while_loop(lambda i, _: i < 3, body, (0, x))[1]

    return gradients(several)


def rowwise(function):
    def row(x):
        return function(x, WEIGHT, BIAS)

    return [
        tf.map_fn(row, X, parallel_iterations=4),
        tf.vectorized_map(row, X),
        tf.scan(lambda so_far, x: row(so_far + x), X),
        tf.foldl(lambda so_far, x: row(so_far + x), X),
    ]


def in_branches(function):
    results = []
    for chosen in (True, False):
        branches = [lambda: function(*GIVEN), lambda: X]
        results += [
            tf.cond(tf.constant(chosen), *branches),
            tf.switch_case(tf.constant(int(chosen)), branches),
        ]
    return results


def autographed(function):
    @tf.function(reduce_retracing=True)
    def run(x):
        for _ in tf.range(2):
            x = x * 2 if tf.reduce_sum(x) > 1e9 else function(x, WEIGHT, BIAS)
        return x

    return [run(tf.tile(X, [copies, 1])) for copies in (1, 2, 3)]


def from_python(function):
    call = lambda x: function(x, WEIGHT, BIAS)  # noqa: E731
    return tf.py_function(call, [X], tf.float64), tf.numpy_function(
        lambda x: call(x).numpy(), [X], tf.float64
    )


def constants(function):
    return function(*(tf.constant(each.numpy()) for each in GIVEN)) + 0


def compiled(function):
    return tf.function(lambda: gradients(function), jit_compile=True)()


TOOLS = {
    "custom_gradient inside": lambda function: gradients(lambda *given: doubled(function(*given))),
    "custom_gradient around": inside_custom_gradient,
    "recompute_grad": lambda function: gradients(tf.recompute_grad(function)),
    "persistent tape": persistent,
    "jacobian": jacobians,
    "while_loop": in_a_while_loop,
    "rows": rowwise,
    "branches": in_branches,
    "constant folding": constants,
}


@pytest.mark.parametrize("tool", TOOLS)
@each_way
def test_tools(way, tool) -> None:
    assert_ours_does_as_theirs(TOOLS[tool], way)


@pytest.mark.parametrize(
    "tool", [autographed, from_python, compiled], ids=lambda tool: tool.__name__
)
def test_tools_with_functions_of_their_own(tool) -> None:
    assert_ours_does_as_theirs(tool)


def test_a_session_of_version_1() -> None:
    def run(function):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            x = tf.compat.v1.placeholder(tf.float64, (None, 8))
            weight, bias = (tf.constant(each.numpy()) for each in GIVEN[1:])
            y = function(x, weight, bias)
            first = tf.gradients(tf.gather(y, [1, 1, 3]) ** 2, [x, weight, bias])
            return session.run([y, first, tf.gradients(first[0] ** 2, [x, weight])], {x: X.numpy()})

    assert_ours_does_as_theirs(run)


def test_data_sets() -> None:
    rows = tf.tile(X, [10, 1])

    def run(function):
        call = lambda x: function(x, WEIGHT, BIAS)  # noqa: E731
        whole = tf.data.Dataset.from_tensor_slices(rows).batch(7)
        in_python = tf.data.Dataset.from_tensor_slices(rows)
        return [
            *whole.map(call, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2),
            *in_python.map(lambda x: tf.py_function(call, [x], tf.float64), num_parallel_calls=3),
        ]

    assert_ours_does_as_theirs(run)


def test_frozen_functions() -> None:
    def run(function):
        weight = tf.Variable(WEIGHT)
        traced = tf.function(lambda x: function(x, weight, BIAS)).get_concrete_function(X)
        return convert_variables_to_constants_v2(traced)(X)

    assert_ours_does_as_theirs(run)


def test_grapplers_options() -> None:
    names = ("constant_folding", "remapping", "arithmetic_optimization", "function_optimization")
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options(dict.fromkeys(names, True))
    try:
        assert_ours_does_as_theirs(tf.function(lambda function: gradients(function)))
    finally:
        tf.config.optimizer.set_experimental_options(before)


def test_functions_that_run_eagerly() -> None:
    tf.config.run_functions_eagerly(True)
    try:
        assert_ours_does_as_theirs(lambda function: gradients(tf.function(function)))
    finally:
        tf.config.run_functions_eagerly(False)


def test_the_check_of_numerics() -> None:
    tf.debugging.enable_check_numerics()
    try:
        assert_ours_does_as_theirs(lambda function: gradients(tf.function(function)))
        with pytest.raises(tf.errors.InvalidArgumentError, match="NaN"):
            ours.layer_norm(X * np.nan)
    finally:
        tf.debugging.disable_check_numerics()


def test_the_profiler() -> None:
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            assert_ours_does_as_theirs(lambda function: tf.function(function)(*GIVEN))
        assert list(Path(folder).rglob("*.xplane.pb"))


def test_determinism() -> None:
    x = tf.random.stateless_normal((64, 8), (0, 0))

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.gather(ours.layer_norm(x), [1, 1, 3]) ** 2)
        return tape.gradient(loss, x)

    tf.config.experimental.enable_op_determinism()
    try:
        results = [gradient(), gradient(), tf.function(gradient)()]
    finally:
        disable_op_determinism()
    assert len({each.numpy().tobytes() for each in results}) == 1


# What is no tensor.

RAGGED = tf.RaggedTensor.from_row_lengths(X, [2, 1, 3])
TWICE_RAGGED = tf.RaggedTensor.from_row_lengths(
    tf.RaggedTensor.from_row_lengths(tf.reshape(X, (6, 2, 4)), [2, 1, 3]), [1, 2]
)


@pytest.mark.parametrize("axis", [-1, 2])
@each_way
def test_ragged_axes_are_kept(way, axis) -> None:
    y = WAYS[way](lambda x: ours.layer_norm(x, WEIGHT, BIAS, axis=axis))(RAGGED)
    assert isinstance(y, tf.RaggedTensor)
    np.testing.assert_array_equal(y.flat_values, ours.layer_norm(X, WEIGHT, BIAS))
    np.testing.assert_array_equal(y.row_splits, RAGGED.row_splits)
    np.testing.assert_array_equal(layernorm.rms_norm(RAGGED).flat_values, ours.rms_norm(X))


def test_ragged_axes_inside_of_ragged_ones() -> None:
    for axis in (-1, (-2, -1), 3, (3, 4)):
        y = ours.layer_norm(TWICE_RAGGED, axis=axis)
        of_values = -1 if axis in (-1, 4) else -2 if axis == 3 else (-2, -1)
        expected = ours.layer_norm(TWICE_RAGGED.flat_values, axis=of_values)
        np.testing.assert_array_equal(y.flat_values, expected)
        assert y.shape.as_list() == TWICE_RAGGED.shape.as_list()


def test_gradients_through_ragged_tensors() -> None:
    with tf.GradientTape() as tape:
        tape.watch(X)
        y = ours.layer_norm(tf.RaggedTensor.from_row_lengths(X, [2, 1, 3]), WEIGHT, BIAS)
        loss = tf.reduce_sum(y.flat_values * DY)
    np.testing.assert_array_equal(tape.gradient(loss, X), gradients(ours.layer_norm)[0])


def test_a_data_set_of_ragged_tensors() -> None:
    rows = tf.data.Dataset.from_tensors(RAGGED).map(ours.layer_norm)
    np.testing.assert_array_equal(next(iter(rows)).flat_values, ours.layer_norm(X))


@pytest.mark.parametrize("axis", [0, 1, -2, (1, 2)], ids=str)
def test_a_ragged_axis_is_an_error_that_says_what_to_do(axis) -> None:
    with pytest.raises(TypeError, match=r"RaggedTensor of 3 axes.*pass one, or x\.to_tensor\(\)"):
        ours.layer_norm(RAGGED, axis=axis)


ODD = {
    "sparse": (tf.sparse.from_dense(X), r"tf\.sparse\.to_dense\({}\)"),
    "slices": (tf.IndexedSlices(X, tf.range(6)), r"tf\.math\.unsorted_segment_sum\({}\.values"),
    "symbolic": (keras.KerasTensor((2, 8)), r"layernorm\.keras"),
    "array of tensors": (tf.TensorArray(tf.float32, 2), r"{}\.stack\(\)"),
    "a dict": ({"x": X}, "is of type dict, expected a tensor"),
    "a data set": (tf.data.Dataset.from_tensors(X), "expected a tensor"),
}


@pytest.mark.parametrize("kind", ODD)
@each_way
def test_what_is_no_tensor_is_an_error_that_says_what_to_do(way, kind) -> None:
    given, words = ODD[kind]
    with pytest.raises(TypeError, match=words.format("x")):
        WAYS[way](lambda: ours.layer_norm(given))()
    with pytest.raises(TypeError, match=words.format("weight")):
        WAYS[way](lambda: ours.layer_norm(X, given))()


def test_none_and_ragged_weights_are_errors_that_say_what_to_do() -> None:
    with pytest.raises(TypeError, match="x is of type NoneType, expected a tensor"):
        ours.layer_norm(None)
    with pytest.raises(TypeError, match=r"bias is of type RaggedTensor.*bias\.to_tensor\(\)"):
        ours.layer_norm(X, None, RAGGED)


@each_way
def test_errors_name_tensorflows_functions(way) -> None:
    with pytest.raises(ValueError, match=r"pass tf\.reshape\(weight, \(8,\)\)"):
        WAYS[way](lambda: ours.layer_norm(X, tf.ones((8, 1), tf.float64)))()
    with pytest.raises(ValueError, match=r"tf\.reshape\(x, \[1\]\)"):
        WAYS[way](lambda: ours.layer_norm(tf.constant(1.0)))()


@pytest.mark.parametrize(
    "make",
    [np.float64, np.float32, np.int64, list, tf.Variable, keras.Variable],
    ids=["float64", "float32", "int64", "list", "Variable", "keras.Variable"],
)
@each_way
def test_weights_that_are_no_tensors_take_a_type_of_xs(way, make) -> None:
    x, weight = RNG.standard_normal((5, 8)).astype(np.float32), np.arange(8, dtype=np.float32)
    given = make(weight)
    y = WAYS[way](lambda: ours.rms_norm(x, given))()
    np.testing.assert_array_equal(y, numpy_front_end.rms_norm(x, weight))
    if isinstance(given, np.ndarray | list):
        narrow = WAYS[way](lambda: ours.rms_norm(tf.cast(x, tf.bfloat16), given))()
        assert narrow.dtype == tf.bfloat16


def test_arrays_of_tensorflows_numpy() -> None:
    x = tf.experimental.numpy.asarray(X.numpy())
    np.testing.assert_array_equal(ours.layer_norm(x), ours.layer_norm(X))


# Graphs that run without this package.


class Normalizer(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(tf.linspace(1.0, 2.0, 8))

    @tf.function(input_signature=[tf.TensorSpec((None, 8))])
    def __call__(self, x):
        return ours.layer_norm(x, self.weight)


RUN_ALONE = """
import sys
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
y = model(tf.constant(np.load(sys.argv[2])))
assert "layernorm" not in sys.modules
np.save(sys.argv[2], y)
try:
    tf.saved_model.load(sys.argv[3])
except Exception as error:
    assert "import_layernorm_tensorflow" in str(error)
else:
    raise AssertionError("it runs without ours")
"""


def test_without_ours_a_portable_saved_model_runs_and_another_says_what_to_import(tmp_path) -> None:
    x = RNG.standard_normal((5, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    module = Normalizer()
    with ours.portable():
        tf.saved_model.save(module, str(tmp_path / "model"))
    tf.saved_model.save(Normalizer(), str(tmp_path / "other"))
    paths = [str(tmp_path / each) for each in ("model", "x.npy", "other")]
    subprocess.run([sys.executable, "-c", RUN_ALONE, *paths], check=True, capture_output=True)
    expected = numpy_front_end.layer_norm(x, module.weight.numpy())
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected, rtol=1e-6, atol=1e-6)


def types_in(function, *specs) -> set[str]:
    graph = tf.function(function).get_concrete_function(*specs).graph
    return {op.type for op in graph.get_operations()}


def test_portable_ends_with_its_context_and_leaves_eager_calls() -> None:
    spec = tf.TensorSpec((None, 8))
    x = tf.cast(X, tf.float32)
    with ours.portable():
        assert OURS not in types_in(lambda x: ours.layer_norm(x), spec)
        np.testing.assert_array_equal(ours.layer_norm(x), numpy_front_end.layer_norm(x.numpy()))
        with pytest.raises(TypeError), ours.portable():
            ours.layer_norm(None)
        assert OURS not in types_in(lambda x: ours.layer_norm(x), spec)
    assert OURS in types_in(lambda x: ours.layer_norm(x), spec)
    portable_norm = ours.portable()(lambda x: ours.layer_norm(x))
    assert OURS not in types_in(portable_norm, spec)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_the_portable_formula(kind, dtype) -> None:
    """It takes rows of a large mean, and rows whose squares overflow or vanish in float32."""
    x = RNG.standard_normal((6, 96))
    x[1] += 1e4
    if dtype in ("bfloat16", "float32", "float64"):
        x[2] *= 1e30
        x[3] *= 1e-30
    x = tf.cast(x, dtype)
    of_parameters = "float64" if dtype == "float64" else "float32"
    parameters = [tf.linspace(0.5, 1.5, 96), tf.linspace(-1.0, 1.0, 96)]
    parameters = [tf.cast(each, of_parameters) for each in parameters][
        : 2 if kind == "layer_norm" else 1
    ]
    options = {"axis": (1,), "eps": 1e-70, "zero_centered_weight": True}
    with ours.portable():
        y = tf.function(lambda x: getattr(ours, kind)(x, *parameters, **options))(x)
    wide = [each.numpy().astype(np.float64) for each in (x, *parameters)]
    expected = getattr(numpy_front_end, kind)(*wide, **options)
    rounding = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 1e-6, "float64": 1e-14}[dtype]
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y.numpy().astype(np.float64), expected, rounding, rounding)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
def test_tensorflow_lite_takes_portable_functions() -> None:
    x = RNG.standard_normal((5, 8)).astype(np.float32)
    with ours.portable():
        traced = tf.function(
            lambda x: ours.rms_norm(ours.layer_norm(x, tf.range(8.0), tf.ones(8)))
        ).get_concrete_function(tf.TensorSpec((5, 8)))
    y = tensorflow_lite.run(tf.lite.TFLiteConverter.from_concrete_functions([traced]).convert(), x)
    once = numpy_front_end.layer_norm(x, np.arange(8, dtype=np.float32), np.ones(8, np.float32))
    np.testing.assert_allclose(y, numpy_front_end.rms_norm(once), rtol=1e-5, atol=1e-6)
