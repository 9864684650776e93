"""Run by test_tensorflow.py: weight and bias that vary along kept axes too.

Adaptive layer norm has a weight for each sample, per-head norms one for each head.
"""

import functools

import numpy as np
import pytest
import tensorflow as tf
from calls import assert_same_bits
from values import TYPES, dtype_of

import layernorm.numpy as numpy_front_end
import layernorm.tensorflow as ours
from layernorm import accuracy, reference, spec

# x's shape, the axis, and the shapes of weight and bias. 33: the last vector is partly padding.
SHAPES = {
    "adaptive": ((3, 5, 33), -1, (3, 1, 33), (3, 1, 33)),
    "per head": ((2, 5, 3, 16), -1, (3, 16), (3, 16)),
    "per head and sample": ((2, 5, 3, 16), -1, (2, 1, 3, 16), (2, 1, 3, 16)),
    "per token": ((3, 5, 33), -1, (3, 5, 33), (3, 5, 33)),
    "channels first": ((3, 33, 4, 5), 1, (3, 33, 1, 1), (3, 33, 1, 1)),
    "channels first, varying behind": ((3, 33, 4, 5), 1, (33, 4, 1), (33, 4, 1)),
    "separated axes": ((2, 3, 4, 5), (1, 3), (2, 3, 1, 5), (2, 3, 1, 5)),
    "separated by the varying axis": ((2, 3, 4, 5), (1, 3), (3, 4, 5), (3, 4, 5)),
    "in front": ((33, 4, 5), 0, (33, 4, 1), (33, 4, 1)),
    "all axes, none varies": ((3, 5, 33), -1, (1, 1, 33), (33,)),
    "weight alone": ((3, 5, 33), -1, (5, 33), None),
    "bias alone": ((3, 5, 33), -1, None, (5, 33)),
    "bias alone, channels first": ((3, 33, 4, 5), 1, None, (33, 4, 1)),
    # Here layernorm.numpy repeats one, and sums the gradients of the repeats: in another order.
    "scale per sample, shared shift": ((3, 5, 33), -1, (3, 1, 33), (33,)),
    "shared scale, shift per sample": ((3, 33, 4, 5), 1, (33,), (3, 33, 1, 1)),
    "each its axis": ((3, 5, 33), -1, (3, 1, 33), (5, 33)),
    "each its axis, channels first": ((3, 33, 4, 5), 1, (3, 33, 1, 1), (33, 4, 1)),
}
WAYS = ("eager", "graph", "sizes unknown", "axes unknown")
SAME_TYPES = [(each, each) for each in TYPES]
TYPES_OF_GRAPHS = [("float32", "float32"), ("bfloat16", "float32")]
every = pytest.mark.parametrize("name", SHAPES)
each_type = pytest.mark.parametrize("dtype", TYPES)
each_way = pytest.mark.parametrize("way", WAYS)


def problem(name, dtype="float64", parameter_dtype=None):
    """Return the axis, and arrays by name: x, dy, weight and bias, without those that are None."""
    shape, axis, *parameters = SHAPES[name]
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(3, 1, shape), "dy": rng.normal(0.5, 1, shape)}
    arrays = {key: each.astype(dtype_of(dtype)) for key, each in arrays.items()}
    for key, each in zip(("weight", "bias"), parameters, strict=True):
        if each is not None:
            arrays[key] = rng.normal(1, 0.5, each).astype(dtype_of(parameter_dtype or dtype))
    return axis, arrays


def is_repeated(key, name) -> bool:
    """Tell whether the other parameter varies along an axis along which this one does not."""
    shape, axis, *parameters = SHAPES[name]
    axes = spec.normalize_axes(axis, len(shape))
    own, other = (spec.varying_axes(each or (33,), shape, axes) for each in parameters)
    if key == "bias":
        own, other = other, own
    return None not in parameters and bool(set(other) - set(own))


def with_gradients(function, dy, **given):
    """Return y, and the gradients by name."""
    with tf.GradientTape() as tape:
        tape.watch(given)
        y = function(**given)
    return {"y": y} | {f"d{key}": each for key, each in tape.gradient(y, given, dy).items()}


def y_alone(function, **given):
    return function(**given)


def run(way, measure, arrays, norm=ours.layer_norm, **options):
    """Call measure(norm with these options, **arrays), with tensors.

    Eagerly, or in a graph that knows more or less: the less, the more shapes share one.
    """
    tensors = {key: tf.constant(each) for key, each in arrays.items()}
    if way == "eager":
        return measure(functools.partial(norm, **options), **tensors)
    shapes = [tuple(each.shape) for each in tensors.values()]
    if way == "sizes unknown":
        shapes = [(None,) * len(each) for each in shapes]
    elif way.startswith("axes unknown"):
        shapes = [None] * len(shapes)
    types = [each.dtype for each in tensors.values()]
    specs = tuple(map(tf.TensorSpec, shapes, types, tensors))
    graph = traced(way, measure, norm, tuple(options.items()), specs)
    return graph(*tensors.values())


@functools.cache
def traced(way, measure, norm, options, specs):
    function = functools.partial(norm, **dict(options))
    names = [each.name for each in specs]

    def measured(*given):
        return measure(function, **dict(zip(names, given, strict=True)))

    compiled = "xla" in way
    return tf.function(measured, input_signature=specs, jit_compile=compiled, autograph=False)


@pytest.mark.parametrize(
    ("way", "types"),
    [
        *(("eager", each) for each in (*SAME_TYPES, ("bfloat16", "float32"))),
        *(("axes unknown", each) for each in SAME_TYPES),
        *zip(("graph", "sizes unknown"), TYPES_OF_GRAPHS, strict=True),
    ],
    ids=lambda each: each if isinstance(each, str) else "-".join(each),
)
@every
def test_the_bits_are_those_of_numpy(name, types, way) -> None:
    axis, arrays = problem(name, *types)
    options = {"axis": axis, "eps": 1e-3, "zero_centered_weight": name != "adaptive"}
    results = run(way, with_gradients, arrays, **options)

    x, dy, weight, bias = (arrays.get(key) for key in ("x", "dy", "weight", "bias"))
    y, stats = numpy_front_end.layer_norm_forward(x, weight, bias, **options)
    of_weight = {"zero_centered_weight": options["zero_centered_weight"]}
    gradients = numpy_front_end.layer_norm_backward(dy, x, stats, weight, **of_weight)
    expected = {"y": y, **dict(zip(("dx", "dweight", "dbias"), gradients, strict=True))}
    for key, result in results.items():
        array = arrays["x" if key == "y" else key[1:]]
        assert result.shape == array.shape, key
        assert result.dtype == array.dtype, key
        if not is_repeated(key[1:], name):
            assert_same_bits(result.numpy(), expected[key].astype(array.dtype), key)


@pytest.mark.parametrize("way", ["eager", "axes unknown"])
@each_type
@pytest.mark.parametrize("name", [each for each in SHAPES if "head" in each or "first" in each])
def test_rms_norm_too(name, dtype, way) -> None:
    axis, arrays = problem(name, dtype)
    if "weight" not in arrays:
        return
    arrays.pop("bias")
    results = run(way, with_gradients, arrays, ours.rms_norm, axis=axis)
    y, stats = numpy_front_end.rms_norm_forward(arrays["x"], arrays["weight"], axis=axis)
    dx, dweight = numpy_front_end.rms_norm_backward(
        arrays["dy"], arrays["x"], stats, arrays["weight"]
    )
    for key, each in {"y": y, "dx": dx, "dweight": dweight}.items():
        assert_same_bits(results[key].numpy(), each, key)


def judge(results, arrays, axis) -> None:
    """Check that the results are within the bounds."""
    x, dy, weight, bias = (arrays.get(key) for key in ("x", "dy", "weight", "bias"))
    bounds, found = accuracy.BOUNDS[x.dtype.name], {k: e.numpy() for k, e in results.items()}
    assert accuracy.y_error(found["y"], x, weight, bias, axis=axis, eps=1e-5) <= bounds.y
    assert accuracy.dx_error(found["dx"], dy, x, weight, axis=axis, eps=1e-5) <= bounds.dx
    if weight is not None:
        error = accuracy.dweight_error(found["dweight"], dy, x, axis=axis, eps=1e-5)
        assert error <= bounds.parameter
    if bias is not None:
        assert accuracy.dbias_error(found["dbias"], dy, axis=axis) <= bounds.parameter


@each_type
def test_sums_over_thousands_of_rows_are_within_the_bounds(dtype) -> None:
    """TensorFlow's own sums are not."""
    rng = np.random.default_rng(0)
    shapes = {"x": (4, 5000, 8), "dy": (4, 5000, 8), "weight": (4, 5000, 8), "bias": (8,)}
    arrays = {key: rng.normal(0.5, 1, shape) for key, shape in shapes.items()}
    arrays = {key: each.astype(dtype_of(dtype)) for key, each in arrays.items()}
    for way in ("eager", "axes unknown"):
        judge(run(way, with_gradients, arrays, axis=-1), arrays, -1)


# Each axis and each set of parameters once; a graph that is not compiled has all of SHAPES.
OF_XLA = [
    *("adaptive", "per head", "per token", "channels first", "separated axes", "in front"),
    *("weight alone", "bias alone", "scale per sample, shared shift", "each its axis"),
    "each its axis, channels first",
]


@pytest.mark.parametrize("name", OF_XLA)
def test_the_formula_that_xla_compiles_is_within_the_bounds(name) -> None:
    ways = (("graph, xla", "float32"), ("axes unknown, xla", "bfloat16"))
    way, dtype = ways[OF_XLA.index(name) % 2]
    axis, arrays = problem(name, dtype)
    judge(run(way, with_gradients, arrays, axis=axis), arrays, axis)


@pytest.mark.parametrize("way", ["graph", "axes unknown"])
@every
def test_the_portable_formula_is_that_of_the_reference(name, way) -> None:
    axis, arrays = problem(name)
    arrays.pop("dy")
    with ours.portable():
        y = run(f"{way}, portable", y_alone, arrays, axis=axis)
    np.testing.assert_allclose(y, reference.layer_norm(**arrays, axis=axis), rtol=1e-12, atol=1e-12)


def theirs(x, weight=None, bias=None, *, axis):
    """Compute the definition in TensorFlow's operations, for TensorFlow to differentiate."""
    axes = spec.normalize_axes(axis, x.shape.rank)

    def spread(parameter):
        if parameter.shape.rank != len(axes):
            return parameter
        sizes = tf.where([a in axes for a in range(x.shape.rank)], tf.shape(x), 1)
        return tf.reshape(parameter, sizes)

    d = x - tf.reduce_mean(x, axes, keepdims=True)
    y = d * tf.math.rsqrt(tf.reduce_mean(d * d, axes, keepdims=True) + 1e-5)
    y = y if weight is None else y * spread(weight)
    return y if bias is None else y + spread(bias)


def derivatives(function, dy, **given):
    """Return first and second derivatives, and tangents."""
    with tf.GradientTape() as tape:
        tape.watch([dy, given])
        first = with_gradients(function, dy, **given)
        loss = tf.add_n([tf.reduce_sum(tf.sin(each)) for each in first.values()])
    second = tape.gradient(loss, [dy, given])
    along = {key: tf.cos(7 * each) for key, each in given.items()}
    with tf.autodiff.ForwardAccumulator(list(given.values()), list(along.values())) as forward:
        y = function(**given)
    return first, second, forward.jvp(y)


@every
def test_first_and_second_derivatives_are_those_of_the_definition(name) -> None:
    axis, arrays = problem(name)
    expected = run("eager", derivatives, arrays, theirs, axis=axis)
    # Tracing takes seconds. What has the axis -1 shares one graph; of axis 1 there is one.
    has_graph = "alone" not in name and name != "in front" and axis != 1
    has_graph = has_graph or name == "bias alone, channels first"
    ways = ("eager", "axes unknown") if has_graph else ("eager",)
    for way in ways:
        found = run(way, derivatives, arrays, axis=axis)
        for got, each in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
            assert got.shape == each.shape
            np.testing.assert_allclose(got, each, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["each its axis", "channels first"])
def test_a_session_of_version_1(name) -> None:
    axis, arrays = problem(name)

    def results(function):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            given = {
                key: tf.compat.v1.placeholder(tf.float64, [None] * each.ndim)
                for key, each in arrays.items()
                if key != "dy"
            }
            y = function(**given, axis=axis)
            first = tf.gradients(y, list(given.values()), arrays["dy"])
            second = tf.gradients(tf.sin(first[0]), [given["x"], given["weight"]])
            return session.run([y, first, second], {given[key]: arrays[key] for key in given})

    found, expected = (tf.nest.flatten(results(each)) for each in (ours.layer_norm, theirs))
    for got, each in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, each, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["adaptive", "each its axis", "bias alone"])
def test_it_is_one_operation_of_the_graph(name) -> None:
    """Parameters are not copied first."""
    axis, arrays = problem(name)
    arrays.pop("dy")
    specs = [tf.TensorSpec([None, *each.shape[1:]], each.dtype) for each in arrays.values()]
    call = lambda *given: ours.layer_norm(**dict(zip(arrays, given, strict=True)), axis=axis)  # noqa: E731
    graph = tf.function(call).get_concrete_function(*specs).graph
    kinds = [op.type for op in graph.get_operations() if op.type not in ("Placeholder", "Identity")]
    assert kinds == ["LayerNorm__import_layernorm_tensorflow"]


class Modulated(tf.Module):
    @tf.function(
        input_signature=[tf.TensorSpec((None, None, 33)), *[tf.TensorSpec((None, 33))] * 2]
    )
    def __call__(self, x, scale, shift):
        return ours.layer_norm(x, scale[:, None], shift[:, None], zero_centered_weight=True)


def test_a_saved_model_takes_any_number_of_samples(tmp_path) -> None:
    tf.saved_model.save(Modulated(), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    _, arrays = problem("adaptive", "float32")
    for samples in (1, 3):
        x, scale, shift = (arrays[key][:samples] for key in ("x", "weight", "bias"))
        expected = numpy_front_end.layer_norm(x, scale, shift, zero_centered_weight=True)
        assert_same_bits(loaded(x, scale[:, 0], shift[:, 0]).numpy(), expected, "y")


@each_way
def test_parameters_of_as_many_axes_as_are_normalized(way) -> None:
    """They have the normalized shape, unless shapes that are known say otherwise."""
    x, rows = np.arange(15.0).reshape(3, 1, 5), np.arange(5.0)
    arrays = {"x": x, "weight": rows, "bias": np.ones(1)}
    if way in ("eager", "graph"):
        expected = np.ones((3, 1, 5))
        np.testing.assert_array_equal(run(way, y_alone, arrays, axis=1), expected)
        results = run(way, with_gradients, arrays | {"dy": np.ones((3, 1, 5))}, axis=1)
        assert results["dweight"].shape == rows.shape
        assert results["dbias"].numpy() == [15]
    else:
        with pytest.raises(tf.errors.InvalidArgumentError, match="weight needs the sizes of x"):
            run(way, y_alone, arrays, axis=1)


def test_without_elements() -> None:
    for name in ("adaptive", "shared scale, shift per sample", "bias alone"):
        axis, arrays = problem(name)
        arrays = {key: each[:0] if each.shape[0] == 3 else each for key, each in arrays.items()}
        for way in WAYS:
            for key, each in run(way, with_gradients, arrays, axis=axis).items():
                np.testing.assert_array_equal(each, np.zeros(arrays[key.strip("yd") or "x"].shape))


X = tf.ones((3, 5, 4, 8))


@pytest.mark.parametrize(
    ("shape", "axis", "words"),
    [
        ((4, 1), -1, r"weight has shape \(4, 1\).*needs \(8,\), or to broadcast against x"),
        ((2, 8), -1, r"weight has shape \(2, 8\)"),
        ((2, 1, 1, 8), -1, r"weight has shape \(2, 1, 1, 8\)"),
        ((1, 3, 5, 4, 8), -1, r"weight has shape \(1, 3, 5, 4, 8\)"),
        ((3, 1, 4, 1), (1, 3), r"normalized over axes \(1, 3\) needs \(5, 8\)"),
        ((), -1, r"weight has shape \(\)"),
    ],
)
def test_shapes_that_do_not_broadcast_are_errors(shape, axis, words) -> None:
    call = functools.partial(ours.layer_norm, axis=axis)
    for name in ("weight", "bias"):
        of_parameter = functools.partial(call, X, **{name: tf.ones(shape)})
        for way in (lambda call: call, tf.function):
            with pytest.raises(ValueError, match=words.replace("weight", name)):
                way(of_parameter)()
    specs = [tf.TensorSpec(None), tf.TensorSpec(None)]
    with pytest.raises(tf.errors.InvalidArgumentError, match="weight needs the sizes of x"):
        tf.function(call, input_signature=specs)(X, tf.ones(shape))


def test_sizes_that_are_known_are_checked_while_a_graph_is_built() -> None:
    x = tf.TensorSpec((None, None, 8))

    def trace(shape):
        call = tf.function(lambda x, weight: ours.layer_norm(x, weight))
        return call.get_concrete_function(x, tf.TensorSpec(shape))

    for shape in ((None, 1, 8), (None, 8), (None, None, None), (None,), None):
        assert str(trace(shape).output_shapes) == str(x.shape)
    for shape in ((None, 1, 7), (None, 1), (1, 1, 1, None)):
        with pytest.raises(ValueError, match=r"weight has shape .*of shape \(None, None, 8\)"):
            trace(shape)


def test_a_weight_of_another_type_is_an_error() -> None:
    with pytest.raises(TypeError, match="weight has type float64, but x of type float32"):
        ours.layer_norm(X, tf.ones((3, 1, 1, 8), tf.float64))
    with pytest.raises(TypeError, match="weight has type float32 and bias has type bfloat16"):
        ours.layer_norm(tf.cast(X, tf.bfloat16), tf.ones((4, 8)), tf.ones((8,), tf.bfloat16))


def test_too_many_axes_apart_are_an_error() -> None:
    ours.layer_norm(tf.ones([2, 2] * 4 + [3]), tf.ones([2, 1] * 4 + [3]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most four groups: move the axes"):
        ours.layer_norm(tf.ones([2, 2] * 5 + [3]), tf.ones([2, 1] * 5 + [3]))
