"""Run by test_keras.py, once for each backend: the layers, and the functions."""

import doctest
import importlib
import importlib.util
import inspect
import itertools
from pathlib import Path

import cases
import keras
import keras_foreign_suite as foreign_suite
import layouts
import numpy as np
import provider_results
import pytest
from calls import assert_same_bits, forward_and_backward
from checkers import GATINGS, QUANTIZATIONS
from keras import ops
from keras_gradients import BACKEND, Call, to_array, to_tensor, with_gradients
from layouts import dense
from pairs import half_of_all
from values import dtype_of

import layernorm
import layernorm.keras as ours
import layernorm.numpy as numpy_front_end
from layernorm import reference
from layernorm.keras import backends, formula

# Keras's own calls of NumPy cause it.
pytestmark = pytest.mark.filterwarnings("ignore:.*__array__.*:DeprecationWarning")

RNG = np.random.default_rng(0)
PAIRS = {
    "layer_norm": (ours.LayerNormalization, keras.layers.LayerNormalization, 1e-3),
    "rms_norm": (ours.RMSNormalization, keras.layers.RMSNormalization, 1e-6),
}
POLICIES = (
    *("float32", "float16", "bfloat16", "float64"),
    *("mixed_bfloat16", "mixed_float16"),
)
PROVIDERS = {"Keras": "keras_layers", "OursKeras": "keras_layers"}
if BACKEND == "tensorflow":
    PROVIDERS |= {"TensorFlow": "tensorflow_graph", "OursTensorFlow": "tensorflow_graph"}
each_kind = pytest.mark.parametrize("kind", PAIRS)
each_gating = pytest.mark.parametrize(
    "gating", GATINGS, ids=lambda each: "-".join(map(str, each.values()))
)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_the_front_end_of_the_backend_does_the_work() -> None:
    name = backends.front_end().__name__
    assert name == f"layernorm.{BACKEND}" + (".over_axes" if BACKEND == "torch" else "")


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's own")
@pytest.mark.parametrize("translator", ["keras.src.export.onnx", "keras.src.export.openvino"])
def test_keras_translates_the_formula(translator) -> None:
    """Its translators know JAX's primitives, but none of ours."""
    assert importlib.util.find_spec(translator)
    within = {"__name__": translator, "front_end": backends.front_end}
    assert eval("front_end()", within) is formula


def passed_on(kind: str) -> list[cases.Case]:
    """Return every layout and option in one type, and every set of parameters in the others.

    The arguments go to the front end of the backend as they are; its own tests have every case, and
    every width. JAX compiles each case: it has half of them for each norm.
    """
    every = [
        case
        for case in cases.dense_front_end_cases(kind)
        if (case.dtype == "bfloat16" or (case.layout == "contiguous" and not case.along))
        and (case.rows is None or (case.dtype == "bfloat16" and case.cols == 129))
    ]
    return every[cases.KINDS.index(kind) % 2 :: 2] if BACKEND == "jax" else every


@each_kind
def test_the_bits_are_those_of_the_numpy_front_end(kind) -> None:
    """On the NumPy backend only y, because that backend has no gradients."""
    for case in passed_on(kind):
        x, dy, weight, bias = arrays = [dense(each) for each in case.arrays()]
        expected = forward_and_backward(numpy_front_end, case, *arrays)
        given = {"x": x, "weight": weight, "bias": bias}
        given = {name: to_tensor(each) for name, each in given.items() if each is not None}
        call = Call(getattr(ours, kind), tuple(case.definition.items()))
        y, gradients = with_gradients(call, given, to_tensor(dy))
        results = {"y": y} | {f"d{name}": each for name, each in gradients.items()}
        for name, result in results.items():
            assert_same_bits(to_array(result), expected[name], f"{name} of {case.id}")


@each_kind
def test_the_bits_with_a_residual_are_those_of_the_numpy_front_end(kind) -> None:
    forward, backward = (getattr(numpy_front_end, f"{kind}_{e}") for e in ("forward", "backward"))
    for case in cases.residual_cases(kind)[::5]:  # each type, in other layouts
        x, dy, weight, bias = (dense(each) for each in case.arrays())
        residual, dtotal = (dense(each) for each in case.residual())
        parameters = {"weight": weight, "bias": bias}
        parameters = {name: each for name, each in parameters.items() if each is not None}
        y, total, stats = forward(x, **parameters, residual=residual, **case.definition)
        dx, *of_parameters = backward(
            *(dy, total, stats, weight),
            dtotal=dtotal,
            need_dweight=True,
            zero_centered_weight=case.zero_centered_weight,
        )
        expected = dict(zip(("dweight", "dbias"), of_parameters, strict=False))
        expected |= {"y": y, "total": total, "dx": dx, "dresidual": dx}
        given = {"x": x, "residual": residual} | parameters
        given = {name: to_tensor(each) for name, each in given.items()}
        call = Call(getattr(ours, kind), tuple(case.definition.items()))
        results, gradients = with_gradients(call, given, (to_tensor(dy), to_tensor(dtotal)))
        results = dict(zip(("y", "total"), results, strict=True))
        results |= {f"d{name}": each for name, each in gradients.items()}
        assert set(results) >= {"y", "total"} | {f"d{name}" for name in given if gradients}
        for name, result in results.items():
            assert_same_bits(to_array(result), expected[name], f"{name} of {case.id}")


@pytest.mark.parametrize("axis", [-1, 1, [1, -1], [-1, 1], [2, 3], (1, 2, 3), [0]], ids=str)
@each_kind
def test_layers_over_any_axis_have_the_parameters_in_xs_order(kind, axis) -> None:
    mine, _, eps = PAIRS[kind]
    x = normal(6, 4, 5, 3) + 1e4  # a large mean too
    layer = mine(axis=axis)
    layer.build(x.shape)
    shape = tuple(x.shape[each] for each in layouts.axes_of(axis, x.ndim))
    weights = [normal(*shape) for _ in layer.weights]
    assert [tuple(each.shape) for each in layer.weights] == [shape] * len(weights)
    layer.set_weights(weights)
    expected = getattr(numpy_front_end, kind)(x, *weights, axis=axis, eps=eps)
    assert_same_bits(to_array(layer(x)), expected, "y")


@each_kind
def test_weights_configurations_and_names_are_kerass(kind) -> None:
    mine, theirs, _ = PAIRS[kind]
    new, old = mine(axis=[1, 2]), theirs(axis=[1, 2])
    for layer in (new, old):
        layer.build((None, 4, 5))
    assert [each.name for each in new.weights] == [each.name for each in old.weights]
    for got, expected in zip(new.get_weights(), old.get_weights(), strict=True):
        assert_same_bits(got, expected, "first values")
    configurations = [layer.get_config() for layer in (new, old)]
    for each in configurations:
        each.pop("name")
    assert configurations[0] == configurations[1]
    assert isinstance(mine.from_config(new.get_config()), theirs)
    assert mine.__init__.__defaults__ == theirs.__init__.__defaults__


@pytest.mark.parametrize(
    ("kind", "policy", "autocast"), [*half_of_all(PAIRS, POLICIES, (True, False))]
)
def test_types_are_those_of_kerass_layer(kind, policy, autocast) -> None:
    mine, theirs, _ = PAIRS[kind]
    for dtype in ("float16", "bfloat16", "float32", "float64", "int32", "int8", "bool"):
        x = ops.cast(np.arange(6).reshape(2, 3), dtype)
        results = []
        for build in (mine, theirs):
            layer = build(dtype=policy, autocast=autocast)
            y = layer(x)
            results.append(
                [keras.backend.standardize_dtype(each.dtype) for each in (y, *layer.weights)]
            )
        assert results[0] == results[1], f"x of type {dtype}"
        converted = theirs(dtype=policy, autocast=autocast)
        ours.convert(converted)
        assert converted(x).dtype == y.dtype


@pytest.mark.parametrize("policy", ["int8_from_mixed_bfloat16", "float8_from_float32"])
@each_kind
def test_quantized_policies_fail_as_in_kerass_layer(kind, policy) -> None:
    for build in PAIRS[kind][:2]:
        with pytest.raises(NotImplementedError):
            build(dtype=policy)(normal(2, 3))


def test_integers_are_normalized_in_float32() -> None:
    x = np.array([[1000, 1001, 100000]], np.int32)
    for policy in ("float32", "mixed_float16"):  # float16 does not reach 100000
        y = ours.LayerNormalization(dtype=policy)(ops.convert_to_tensor(x))
        expected = numpy_front_end.layer_norm(x.astype(np.float32), eps=1e-3)
        assert_same_bits(to_array(y), expected.astype(to_array(y).dtype), "y")


def test_a_mixed_policy_does_not_round_the_weights() -> None:
    x, weight, bias = normal(5, 7), normal(7), normal(7)
    layer = ours.RMSNormalization(dtype="mixed_bfloat16")
    layer.build(x.shape)
    layer.set_weights([weight])
    narrow = ops.cast(x, "bfloat16")
    y = to_array(layer(narrow))
    assert_same_bits(y, numpy_front_end.rms_norm(to_array(narrow), weight), "y")
    layer = ours.LayerNormalization(dtype="mixed_bfloat16")
    layer.build(x.shape)
    layer.set_weights([weight, bias])
    expected = numpy_front_end.layer_norm(to_array(narrow), weight, bias, eps=1e-3)
    assert_same_bits(to_array(layer(narrow)), expected, "y")


EXAMPLES = normal(512, 32)
LABELS = (EXAMPLES @ normal(32, 10)).argmax(axis=1)


def small_model(layer) -> keras.Model:
    inputs = keras.Input(shape=(32,))
    return keras.Model(inputs, keras.layers.Dense(10)(layer(inputs)))


trains = pytest.mark.skipif(BACKEND == "numpy", reason="Keras does not train on this backend")


@trains
@pytest.mark.parametrize(("kind", "jit"), [("layer_norm", True), ("rms_norm", False)])
def test_training_goes_as_with_keras(kind, jit) -> None:
    if BACKEND == "torch" and jit:
        pytest.skip("torch.compile has its own tests")
    losses = []
    for layer in PAIRS[kind][:2]:
        keras.utils.set_random_seed(0)
        model = small_model(layer())
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, jit_compile=jit)
        history = model.fit(EXAMPLES, LABELS, epochs=3, batch_size=64, verbose=0)
        losses.append(history.history["loss"])
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@each_kind
def test_files_go_both_ways(kind, tmp_path) -> None:
    mine, theirs, _ = PAIRS[kind]
    x = normal(5, 32)
    new, old = small_model(mine()), small_model(theirs())
    for model in (new, old):
        model.set_weights([normal(*each.shape) for each in model.weights])
    expected = [to_array(model(x)) for model in (new, old)]
    for model, name in ((new, "new"), (old, "old")):
        model.save(tmp_path / f"{name}.keras")
        model.save_weights(tmp_path / f"{name}.weights.h5")
    loaded = keras.models.load_model(tmp_path / "new.keras")
    assert type(loaded.layers[1]) is mine
    assert_same_bits(to_array(loaded(x)), expected[0], "y of our file")
    swapped = keras.models.load_model(tmp_path / "old.keras")
    ours.convert(swapped)
    assert type(swapped.layers[1]) is mine
    np.testing.assert_allclose(to_array(swapped(x)), expected[1], rtol=1e-4, atol=1e-4)
    new.load_weights(tmp_path / "old.weights.h5")
    np.testing.assert_allclose(to_array(new(x)), expected[1], rtol=1e-4, atol=1e-4)
    old.load_weights(tmp_path / "new.weights.h5")
    np.testing.assert_allclose(to_array(old(x)), expected[0], rtol=1e-4, atol=1e-4)


def test_weights_that_keras_made_in_another_order_are_reshaped(tmp_path) -> None:
    old = keras.layers.LayerNormalization(axis=[1, -1])
    old.build((None, 4, 5, 3))
    gamma = normal(3, 4)
    old.set_weights([gamma, normal(3, 4)])
    store = {str(at): np.asarray(each) for at, each in enumerate(old.get_weights())}
    new = ours.LayerNormalization(axis=[1, -1])
    new.build((None, 4, 5, 3))
    new.load_own_variables(store)
    assert_same_bits(new.get_weights()[0], gamma.reshape(4, 3), "gamma")
    x = normal(2, 4, 5, 3)
    expected = to_array(new(x))
    ours.convert(old)
    assert_same_bits(to_array(old(x)), expected, "y of a converted layer")


def test_convert_swaps_in_place_and_keeps_the_rest() -> None:
    inputs = keras.Input((4, 5))
    y = keras.layers.LayerNormalization(axis=[1, 2], name="first")(inputs)
    y = keras.layers.RMSNormalization(name="second")(y)
    y = keras.layers.GroupNormalization(1, name="third")(y)
    inner = keras.Sequential([keras.Input((4, 5)), keras.layers.LayerNormalization(name="fourth")])
    model = keras.Model(inputs, inner(y))
    x = normal(2, 4, 5)
    expected = model.predict(x, verbose=0)
    before = [id(each) for each in model.weights]
    done = ours.convert(model)
    assert [type(model.get_layer(each)) for each in ("first", "second")] == [
        ours.LayerNormalization,
        ours.RMSNormalization,
    ]
    assert {each.split("/")[-1] for each in done.swapped} == {"first", "second", "fourth"}
    assert {each.split("/")[-1] for each in done.left} == {"third"}
    assert "swapped" in str(done)
    assert [id(each) for each in model.weights] == before
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5)
    assert not ours.convert(model).swapped
    with pytest.raises(TypeError, match="expected a Keras model or layer"):
        ours.convert([model])


@pytest.mark.parametrize("call", ["predict", "test", pytest.param("train", marks=trains)])
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_convert_reaches_functions_that_were_traced_before(call) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.LayerNormalization()])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=BACKEND == "jax")
    x = np.array([[1e30, -1e30]], np.float32)  # their squares overflow in Keras
    y = np.array([[1, -1]], np.float32)

    def error() -> float:
        if call == "predict":
            return np.square(model.predict_on_batch(x) - y).mean()
        model.reset_metrics()
        return float(getattr(model, f"{call}_on_batch")(x, y))

    assert error() != 0
    ours.convert(model)
    model.set_weights([np.ones(2), np.zeros(2)])
    assert error() == 0


@each_kind
def test_symbolic_tensors(kind, tmp_path) -> None:
    inputs = keras.Input((4, None, 8), dtype="float32")
    y = getattr(layernorm, kind)(inputs)
    y = getattr(ours, kind)(y, axis=1)
    assert (y.shape, y.dtype) == ((None, 4, None, 8), "float32")
    model = keras.Model(inputs, y)
    x = normal(2, 4, 3, 8)
    front = getattr(numpy_front_end, kind)
    assert_same_bits(to_array(model(x)), front(front(x), axis=1), "y")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert_same_bits(to_array(again(x)), to_array(model(x)), "y of the file")
    with pytest.raises(ValueError, match="weight has shape"):
        getattr(ours, kind)(inputs, normal(7))
    with pytest.raises(
        TypeError, match=r"out is of type KerasTensor.*layernorm\.keras cannot be written to"
    ):
        getattr(layernorm, kind)(inputs, out=inputs)
    layer = PAIRS[kind][0]()
    assert layer(inputs).shape == (None, 4, None, 8)


@each_kind
def test_layers_take_a_residual(kind) -> None:
    mine, _, eps = PAIRS[kind]
    layer, x, residual = mine(), normal(6, 5), normal(6, 5)
    layer.build(x.shape)
    weights = [normal(5) for _ in layer.weights]
    layer.set_weights(weights)
    expected = getattr(numpy_front_end, kind)(x, *weights, residual=residual, eps=eps)
    converted = PAIRS[kind][1]()
    converted.build(x.shape)
    converted.set_weights(weights)
    ours.convert(converted)
    for call in (layer, converted, lambda x, residual: layer(x, residual=residual)):
        for got, each, name in zip(call(x, residual), expected, ("y", "total"), strict=True):
            assert_same_bits(to_array(got), each, name)
    ours.convert(converted, undo=True)
    with pytest.raises(TypeError):
        converted(x, residual)


@each_kind
def test_a_residual_in_a_functional_model(kind, tmp_path) -> None:
    """A layer and a function, of symbolic tensors, with shapes that are partly unknown."""
    inputs = [keras.Input((None, 8)), keras.Input((None, 8))]
    y, total = PAIRS[kind][0]()(*inputs)
    y, total = getattr(layernorm, kind)(y, residual=total)
    for each in (y, total):
        assert (each.shape, each.dtype) == ((None, None, 8), "float32")
    model = keras.Model(inputs, [y, total])
    x, residual = normal(2, 3, 8), normal(2, 3, 8)
    front = getattr(numpy_front_end, kind)
    expected = front(x, residual=residual, eps=PAIRS[kind][2])
    expected = front(expected[0], residual=expected[1])
    model.save(tmp_path / "model.keras")
    for each in (model, keras.models.load_model(tmp_path / "model.keras")):
        results = each([to_tensor(x), to_tensor(residual)])
        for got, right, name in zip(results, expected, ("y", "total"), strict=True):
            assert_same_bits(to_array(got), right, name)


@each_kind
def test_shapes_and_types_with_a_residual(kind) -> None:
    for policy in POLICIES:
        layer = PAIRS[kind][0](dtype=policy)
        for dtype in ("float32", "bfloat16", "int32"):
            x = ops.cast(np.ones((2, 3)), dtype)
            symbolic = keras.KerasTensor((2, 3), dtype)
            results, symbols = layer(x, x), layer(symbolic, symbolic)
            assert [tuple(each.shape) for each in (*results, *symbols)] == [(2, 3)] * 4
            assert results[0].dtype == layer(x).dtype
            assert symbols[0].dtype == layer(symbolic).dtype
            total, symbol = (
                keras.backend.standardize_dtype(e[1].dtype) for e in (results, symbols)
            )
            assert total == symbol
    assert layer.compute_output_shape((2, 3)) == (2, 3)
    assert layer.compute_output_shape((2, 3), (2, 3)) == ((2, 3), (2, 3))


@each_kind
def test_kerass_own_code_with_a_residual(kind) -> None:
    """It runs where ours cannot, on the sum."""
    x, residual = normal(3, 4), normal(3, 4)
    plain = to_array(PAIRS[kind][0](epsilon=0.0)(x + residual))
    y, total = PAIRS[kind][0](epsilon=-1e-9)(x, residual)
    assert_same_bits(to_array(total), x + residual, "total")
    np.testing.assert_allclose(to_array(y), plain, rtol=1e-4, atol=1e-5)


BAD_RESIDUALS = {
    "shape": (np.ones((2, 1), np.float32), ValueError, r"residual has shape [\[(]2, 1[\])]"),
    "type": (np.ones((2, 3), np.float16), TypeError, "residual has type float16"),
}


@pytest.mark.parametrize("name", BAD_RESIDUALS)
@each_kind
def test_a_bad_residual_is_an_error(kind, name) -> None:
    residual, error, words = BAD_RESIDUALS[name]
    error = (error, RuntimeError) if BACKEND == "torch" else error  # as PyTorch's own
    x, residual = (ops.convert_to_tensor(each) for each in (normal(2, 3), residual))
    symbolic = [keras.KerasTensor(each.shape, each.dtype) for each in (x, residual)]
    layer = PAIRS[kind][0](autocast=False)
    for given in ((x, residual), symbolic):
        with pytest.raises(error, match=words):
            getattr(ours, kind)(given[0], residual=given[1])
        with pytest.raises(error, match=words):
            layer(*given)
    with pytest.raises(error, match=words):
        getattr(formula, kind)(x, residual=residual)


@pytest.mark.skipif(BACKEND == "numpy", reason="NumPy arrays carry no mask")
@each_kind
def test_the_mask_of_x_goes_to_both_results(kind) -> None:
    x = ops.convert_to_tensor(normal(2, 3, 4))
    masked = keras.layers.Masking()(x)
    for each in PAIRS[kind][0]()(masked, x):
        assert each._keras_mask is not None


@each_kind
def test_the_formula_with_a_residual(kind) -> None:
    x, residual = normal(3, 5), normal(3, 5)
    got = getattr(formula, kind)(*map(ops.convert_to_tensor, (x,)), residual=residual)
    expected = getattr(numpy_front_end, kind)(x, residual=residual)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(to_array(one), other, rtol=1e-5, atol=1e-5)


class Block(keras.layers.Layer):
    """A residual connection around a dense layer, with or without the fused call."""

    def __init__(self, norm, fused) -> None:
        super().__init__()
        self.dense, self.norm, self.fused = keras.layers.Dense(32), norm, fused

    def call(self, x):
        if self.fused:
            y, total = self.norm(self.dense(x), x)
        else:
            total = self.dense(x) + x
            y = self.norm(total)
        return y + 0.5 * total


@trains
def test_training_with_a_residual() -> None:
    losses = []
    for fused in (True, False):
        keras.utils.set_random_seed(0)
        model = small_model(Block(ours.LayerNormalization(), fused))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, jit_compile=BACKEND == "jax")
        history = model.fit(EXAMPLES, LABELS, epochs=2, batch_size=64, verbose=0)
        losses.append(history.history["loss"])
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@each_kind
def test_the_bits_with_a_gate_are_those_of_the_numpy_front_end(kind) -> None:
    forward, backward = (getattr(numpy_front_end, f"{kind}_{e}") for e in ("forward", "backward"))
    for at, case in enumerate(cases.gated_cases(kind)[::5]):
        gating = GATINGS[at % 4]
        x, dy, weight, bias = (dense(each) for each in case.arrays())
        gate = dense(case.gate())
        parameters = {"weight": weight, "bias": bias}
        parameters = {name: each for name, each in parameters.items() if each is not None}
        y, stats = forward(x, **parameters, gate=gate, **case.definition, **gating)
        dx, dweight, *dbias, dgate = backward(
            *(dy, x, stats, weight),
            gate=gate,
            need_dweight=True,
            zero_centered_weight=case.zero_centered_weight,
        )
        expected = {"y": y, "dx": dx, "dgate": dgate, "dweight": dweight}
        expected |= {"dbias": dbias[0]} if dbias else {}
        given = {"x": x, "gate": gate} | parameters
        given = {name: to_tensor(each) for name, each in given.items()}
        call = Call(getattr(ours, kind), tuple((case.definition | gating).items()))
        y, gradients = with_gradients(call, given, to_tensor(dy))
        results = {"y": y} | {f"d{name}": each for name, each in gradients.items()}
        assert set(results) >= {f"d{name}" for name in given if gradients}
        for name, result in results.items():
            assert_same_bits(to_array(result), expected[name], f"{name} of {case.id}")


@each_gating
@each_kind
def test_layers_take_a_gate(kind, gating) -> None:
    mine, theirs, eps = PAIRS[kind]
    layer, converted = mine(), theirs()
    x, residual, gate = (normal(6, 5) for _ in range(3))
    weights = [normal(5) for _ in range(2 if kind == "layer_norm" else 1)]
    for each in (layer, converted):
        each.build(x.shape)
        each.set_weights(weights)
    ours.convert(converted)
    front = getattr(numpy_front_end, kind)
    expected = front(x, *weights, gate=gate, eps=eps, **gating)
    pair = front(x, *weights, residual=residual, gate=gate, eps=eps, **gating)
    for each in (layer, converted):
        assert_same_bits(to_array(each(x, gate=gate, **gating)), expected, "y")
        assert_same_bits(to_array(each(x, None, gate, **gating)), expected, "y")
        results = each(x, residual, gate, **gating)
        for got, right, name in zip(results, pair, ("y", "total"), strict=True):
            assert_same_bits(to_array(got), right, name)
    ours.convert(converted, undo=True)
    with pytest.raises(TypeError):
        converted(x, gate=gate)


@each_kind
def test_a_gate_in_a_functional_model(kind, tmp_path) -> None:
    """A layer and a function, of symbolic tensors, with shapes that are partly unknown."""
    inputs = [keras.Input((None, 8)) for _ in range(3)]
    x, residual, gate = inputs
    gating = {"activation": "sigmoid", "norm_before_gate": False}
    y, total = PAIRS[kind][0]()(x, residual, gate, **gating)
    y = PAIRS[kind][0]()(y, gate=total)
    y = getattr(ours, kind)(y, gate=gate, **gating)
    results = getattr(ours, kind)(y, residual=total, gate=gate)
    for each in results:
        assert (each.shape, each.dtype) == ((None, None, 8), "float32")
    model = keras.Model(inputs, results)
    x, residual, gate = arrays = [normal(2, 3, 8) for _ in range(3)]
    front, eps = getattr(numpy_front_end, kind), PAIRS[kind][2]
    y, total = front(x, residual=residual, gate=gate, eps=eps, **gating)
    y = front(front(y, gate=total, eps=eps), gate=gate, **gating)
    expected = front(y, residual=total, gate=gate)
    model.save(tmp_path / "model.keras")
    for each in (model, keras.models.load_model(tmp_path / "model.keras")):
        results = each([to_tensor(array) for array in arrays])
        for got, right, name in zip(results, expected, ("y", "total"), strict=True):
            assert_same_bits(to_array(got), right, name)


@each_kind
def test_the_configuration_without_a_gate_has_none(kind) -> None:
    inputs = keras.Input((8,))
    model = keras.Model(inputs, getattr(ours, kind)(inputs))
    assert not {"activation", "norm_before_gate"} & set(model.layers[-1].get_config())
    layer = PAIRS[kind][0]()
    layer(normal(2, 8), gate=normal(2, 8))
    assert set(layer.get_config()) == set(PAIRS[kind][1]().get_config())


@each_kind
def test_shapes_and_types_with_a_gate(kind) -> None:
    for policy in POLICIES:
        layer = PAIRS[kind][0](dtype=policy)
        for dtype in ("float32", "bfloat16", "int32"):
            x = ops.cast(np.ones((2, 3)), dtype)
            symbolic = keras.KerasTensor((2, 3), dtype)
            y, symbol = layer(x, gate=x), layer(symbolic, gate=symbolic)
            assert tuple(y.shape) == tuple(symbol.shape) == (2, 3)
            types = {keras.backend.standardize_dtype(each.dtype) for each in (y, symbol)}
            assert types == {layer.compute_dtype}
    assert layer.compute_output_shape((2, 3), gate_shape=(2, 3)) == (2, 3)
    assert layer.compute_output_shape((2, 3), (2, 3), (2, 3)) == ((2, 3), (2, 3))


@each_gating
@each_kind
def test_kerass_own_code_with_a_gate(kind, gating) -> None:
    """It runs where ours cannot, and the gate is applied in the compute type."""
    x, residual, gate = (normal(3, 4) for _ in range(3))
    given = {"gate": gate, **gating}
    expected = PAIRS[kind][0](epsilon=0.0)(x, residual, **given)
    results = PAIRS[kind][0](epsilon=-1e-9)(x, residual, **given)
    for got, right in zip(results, expected, strict=True):
        np.testing.assert_allclose(to_array(got), to_array(right), rtol=1e-4, atol=1e-5)
    y = PAIRS[kind][0](epsilon=-1e-9, dtype="bfloat16")(x, **given)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"


@each_kind
def test_a_bad_gate_is_an_error(kind) -> None:
    x = ops.convert_to_tensor(normal(2, 3))
    bad = {
        name: (ops.convert_to_tensor(each), *rest) for name, (each, *rest) in BAD_RESIDUALS.items()
    }
    for gate, error, words in bad.values():
        error = (error, RuntimeError) if BACKEND == "torch" else error  # as PyTorch's own
        words = words.replace("residual", "gate")
        layer = PAIRS[kind][0](autocast=False)
        symbolic = [keras.KerasTensor(each.shape, each.dtype) for each in (x, gate)]
        for given in ((x, gate), symbolic):
            with pytest.raises(error, match=words):
                getattr(ours, kind)(given[0], gate=given[1])
            with pytest.raises(error, match=words):
                layer(given[0], gate=given[1])
        with pytest.raises(error, match=words):
            getattr(formula, kind)(x, gate=gate)
    for given in (x, keras.KerasTensor((2, 3))):
        for call in (getattr(ours, kind), PAIRS[kind][0](), PAIRS[kind][0](epsilon=-1e-9)):
            with pytest.raises(ValueError, match="activation is 'relu', expected 'silu'"):
                call(given, gate=given, activation="relu")


@pytest.mark.skipif(BACKEND == "numpy", reason="NumPy arrays carry no mask")
@each_kind
def test_the_mask_of_x_goes_to_y_beside_a_gate(kind) -> None:
    x = ops.convert_to_tensor(normal(2, 3, 4))
    layer = PAIRS[kind][0]()
    assert layer(keras.layers.Masking()(x), gate=x)._keras_mask is not None
    assert getattr(layer(x, gate=x * 1), "_keras_mask", None) is None


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # of Keras's sigmoid in NumPy
@each_gating
@each_kind
def test_the_formula_with_a_gate(kind, gating) -> None:
    x, residual, gate = (normal(3, 5) for _ in range(3))
    gate[0, :2] = -np.inf
    options = {"gate": gate, "residual": residual, **gating}
    got = getattr(formula, kind)(ops.convert_to_tensor(x), **options)
    expected = getattr(numpy_front_end, kind)(x, **options)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(to_array(one), other, rtol=1e-5, atol=1e-5)


class GatedBlock(keras.layers.Layer):
    """A norm of one dense layer's results, gated by another's, with or without the fused call."""

    def __init__(self, norm, fused) -> None:
        super().__init__()
        self.one, self.other = keras.layers.Dense(32), keras.layers.Dense(32)
        self.norm, self.fused = norm, fused

    def call(self, x):
        y, gate = self.one(x), self.other(x)
        if self.fused:
            return self.norm(y, gate=gate, norm_before_gate=False)
        return self.norm(y * ops.silu(gate))


@trains
def test_training_with_a_gate() -> None:
    losses = []
    for fused in (True, False):
        keras.utils.set_random_seed(0)
        model = small_model(GatedBlock(ours.RMSNormalization(), fused))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, jit_compile=BACKEND == "jax")
        history = model.fit(EXAMPLES, LABELS, epochs=2, batch_size=64, verbose=0)
        losses.append(history.history["loss"])
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


# x's shape, the axis, and the shapes of weight and bias.
KEPT_AXES = {
    "adaptive": ((3, 5, 33), -1, (3, 1, 33), (3, 1, 33)),
    "per head": ((2, 5, 3, 16), -1, (3, 16), (3, 16)),
    "per token": ((3, 5, 33), -1, (3, 5, 33), (3, 5, 33)),
    "channels first": ((3, 33, 4, 5), 1, (3, 33, 1, 1), (3, 33, 1, 1)),
    "channels first, varying behind": ((3, 33, 4, 5), 1, (33, 4, 1), (33, 4, 1)),
    "separated axes": ((2, 3, 4, 5), (1, 3), (2, 3, 1, 5), (2, 3, 1, 5)),
    "shared shift": ((3, 5, 33), -1, (3, 1, 33), (33,)),
}
each_set = pytest.mark.parametrize("name", KEPT_AXES)


@each_set
@pytest.mark.parametrize(("kind", "dtype"), [("layer_norm", "float32"), ("rms_norm", "bfloat16")])
def test_parameters_that_vary_along_kept_axes(kind, dtype, name) -> None:
    shape, axis, *parameters = KEPT_AXES[name]
    parameters = parameters if kind == "layer_norm" else parameters[:1]
    x, dy, *parameters = (
        (normal(*each) + 0.5).astype(dtype_of(dtype)) for each in (shape, shape, *parameters)
    )
    options = {"axis": axis, "zero_centered_weight": name == "adaptive"}
    y, stats = getattr(numpy_front_end, f"{kind}_forward")(x, *parameters, **options)
    backward = getattr(numpy_front_end, f"{kind}_backward")
    gradients = backward(
        dy, x, stats, parameters[0], zero_centered_weight=options["zero_centered_weight"]
    )
    expected = dict(zip(("dx", "dweight", "dbias"), gradients, strict=False)) | {"y": y}

    given = dict(zip(("x", "weight", "bias"), map(to_tensor, (x, *parameters)), strict=False))
    call = Call(getattr(ours, kind), tuple(options.items()))
    got, gradients = with_gradients(call, given, to_tensor(dy))
    results = {"y": got} | {f"d{key}": each for key, each in gradients.items()}
    for key, result in results.items():
        assert tuple(result.shape) == tuple((given | {"": x})[key[1:]].shape), key
        if (name, key) != ("shared shift", "dbias"):  # a sum, whose order is the framework's
            assert_same_bits(to_array(result), expected[key].astype(x.dtype), key)


@each_set
@each_kind
def test_the_formula_of_parameters_that_vary_along_kept_axes(kind, name) -> None:
    shape, axis, *parameters = KEPT_AXES[name]
    parameters = parameters if kind == "layer_norm" else parameters[:1]
    x, *parameters = (normal(*each) for each in (shape, *parameters))
    got = getattr(formula, kind)(*map(ops.convert_to_tensor, (x, *parameters)), axis=axis)
    expected = getattr(reference, kind)(x, *parameters, axis=axis)
    np.testing.assert_allclose(to_array(got), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="weight has shape"):
        getattr(formula, kind)(x, normal(1), axis=axis)


@each_kind
def test_symbolic_parameters(kind, tmp_path) -> None:
    """An adaptive norm as a part of a functional model."""
    x, scale, shift = (keras.Input(each) for each in ((None, 33), (1, 33), (1, 33)))
    parameters = (scale, shift) if kind == "layer_norm" else (scale,)
    y = getattr(ours, kind)(x, *parameters, zero_centered_weight=True)
    assert y.shape == (None, None, 33)
    model = keras.Model([x, *parameters], y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for samples in (1, 3):
        given = [normal(samples, size, 33) for size in (5, 1, 1)][: 1 + len(parameters)]
        expected = getattr(numpy_front_end, kind)(*given, zero_centered_weight=True)
        for each in (model, loaded):
            assert_same_bits(to_array(each([to_tensor(one) for one in given])), expected, "y")


@pytest.mark.parametrize(
    ("shape", "axis"), [((1, 7), -1), ((None, 1), -1), ((2, None, 4, 1), (1, 3)), ((5, 6, 8), -1)]
)
def test_symbolic_parameters_that_do_not_broadcast_are_errors(shape, axis) -> None:
    x = keras.Input((4, None, 8), batch_size=3)
    with pytest.raises(ValueError, match=r"weight has shape .*x of shape \(3, 4, None, 8\)"):
        ours.rms_norm(x, keras.KerasTensor(shape), axis=axis)
    assert ours.rms_norm(x, keras.KerasTensor((None, 1, None, 8))).shape == x.shape


@each_kind
def test_the_8_bits_are_those_of_the_numpy_front_end(kind) -> None:
    # 11: one case of each type, each of another layout.
    for case, (dtype, scale) in itertools.product(cases.quantized_cases(kind)[::11], QUANTIZATIONS):
        x, _, weight, bias = (dense(each) for each in case.arrays())
        given = {"x": x, "weight": weight, "bias": bias}
        given = {name: each for name, each in given.items() if each is not None}
        options = {"dtype": dtype, "scale": scale, **case.definition}
        expected = getattr(numpy_front_end, f"quantized_{kind}")(**given, **options)
        given = {name: to_tensor(each) for name, each in given.items()}
        results = getattr(ours, f"quantized_{kind}")(**given, **options)
        assert isinstance(results, tuple) == (scale is None)
        assert_same_quantized(results, expected)


def assert_same_quantized(results, expected) -> None:
    results = results if isinstance(results, tuple | list) else [results]
    expected = expected if isinstance(expected, tuple | list) else [expected]
    for got, right in zip(results, expected, strict=True):
        assert keras.backend.standardize_dtype(got.dtype) == right.dtype.name
        assert_same_bits(to_array(got), right, "q or the scales")


@each_kind
def test_8_bits_in_a_functional_model(kind, tmp_path) -> None:
    x, scale = keras.Input((None, 4, 8)), keras.Input((), batch_size=1)
    call, front = (getattr(each, f"quantized_{kind}") for each in (layernorm, numpy_front_end))
    q, scales = call(x, dtype="float8_e5m2", axis=(2, 3))
    assert (q.shape, q.dtype) == (x.shape, "float8_e5m2")
    assert (scales.shape, scales.dtype) == ((None, None, 1, 1), "float32")
    results = [q, scales, call(x, scale=0.05), call(x, scale=scale)]
    assert [each.dtype for each in results[2:]] == ["int8", "int8"]
    model = keras.Model([x, scale], results)
    given, number = normal(2, 3, 4, 8), np.full(1, 0.04, np.float32)
    expected = [*front(given, dtype="float8_e5m2", axis=(2, 3))]
    expected += [front(given, scale=each) for each in (0.05, number)]
    model.save(tmp_path / "model.keras")
    for each in (model, keras.models.load_model(tmp_path / "model.keras")):
        assert_same_quantized(each([to_tensor(given), to_tensor(number)]), expected)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@each_kind
def test_the_formula_in_8_bits_is_that_of_the_reference(kind) -> None:
    x = normal(5, 8)
    x[1], x[2, 3], x[3] = 0, np.nan, 1e4
    x = ops.convert_to_tensor(x)
    y = to_array(getattr(formula, kind)(x))
    for dtype, scale in QUANTIZATIONS:
        results = getattr(formula, f"quantized_{kind}")(x, dtype=dtype, scale=scale)
        expected, expected_scales = reference.quantize(y, dtype, scale)
        q, *scales = results if scale is None else [results]
        assert keras.backend.standardize_dtype(q.dtype) == dtype
        np.testing.assert_array_equal(to_array(ops.cast(q, "float32")), expected)
        for each in scales:
            np.testing.assert_array_equal(to_array(each), expected_scales)


@each_kind
def test_a_bad_type_or_scale_is_an_error(kind) -> None:
    call, x = getattr(ours, f"quantized_{kind}"), normal(2, 3)
    for given in (ops.convert_to_tensor(x), keras.KerasTensor((2, 3))):
        with pytest.raises(TypeError, match="dtype is int9, expected int8, float8_e4m3fn or"):
            call(given, dtype="int9")
        with pytest.raises(TypeError, match="dtype is float32, expected int8"):
            call(given, dtype=ops.convert_to_tensor(x).dtype)
        with pytest.raises(ValueError, match=r"scale is -1\.0, expected a positive"):
            call(given, scale=-1.0)
    with pytest.raises(ValueError, match="weight has shape"):
        call(keras.KerasTensor((2, 3)), normal(4))


@pytest.mark.skipif(BACKEND == "numpy", reason="NumPy arrays carry no mask")
@each_kind
def test_masks_go_through(kind) -> None:
    layer = PAIRS[kind][0]()
    x = ops.convert_to_tensor(normal(2, 3, 4))
    masked = keras.layers.Masking()(x)
    assert layer(masked)._keras_mask is not None


@each_kind
def test_the_formula_where_no_front_end_is(kind) -> None:
    x, weight, bias = normal(3, 4, 5) + 1e4, normal(4, 5), normal(4, 5)
    parameters = (weight, bias) if kind == "layer_norm" else (weight,)
    options = {"axis": (1, 2), "zero_centered_weight": True}
    got = getattr(formula, kind)(ops.convert_to_tensor(x), *parameters, **options)
    expected = getattr(numpy_front_end, kind)(x, *parameters, **options)
    np.testing.assert_allclose(to_array(got), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PROVIDERS)
def test_bench_and_check_ask_for_the_same_as_numpy(name, monkeypatch) -> None:
    pytest.importorskip("rich")
    if BACKEND == "tensorflow":
        import tensorflow as tf

        # TensorFlow allows that only before its first operation.
        set_once = "set_intra_op_parallelism_threads"
        monkeypatch.setattr(tf.config.threading, set_once, lambda threads: None)
    module = importlib.import_module(f"layernorm.cli.providers.{PROVIDERS[name]}")
    provider = getattr(module, name)(1)
    layouts = [provider_results.ROWS, provider_results.CHANNELS_FIRST]
    if (BACKEND, name) == ("torch", "Keras"):
        layouts.pop()  # Keras is wrong there
    provider_results.assert_results_are_numpys(provider, layouts)


@pytest.mark.parametrize(
    ("axis", "words"), [(4, "out of bounds|out of range"), ([1, -2], "duplicate|multiple times")]
)
def test_axes_out_of_range(axis, words) -> None:
    x = normal(2, 3, 4)
    with pytest.raises(Exception, match=words) as expected:
        keras.layers.LayerNormalization(axis=axis)(x)
    with pytest.raises(expected.type, match=words):
        ours.LayerNormalization(axis=axis)(x)


@trains
def test_the_page_runs() -> None:
    page = Path(__file__).parents[2] / "docs" / "keras.md"
    failures, tried = doctest.testfile(str(page), module_relative=False)
    assert tried > 10
    assert failures == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_kerass_own_tests_pass_on_our_layers() -> None:
    if not foreign_suite.SDISTS:
        pytest.skip(
            "could not import Keras's tests: pip download keras --no-deps --no-binary keras "
            "-d build/sdists"
        )
    done = foreign_suite.run(foreign_suite.SDISTS[-1])
    assert done.wasSuccessful(), done.failures + done.errors
    assert done.testsRun == 11
    assert not done.skipped


@pytest.mark.skipif(BACKEND != "tensorflow", reason="once is enough")
def test_what_is_public_documents_itself(monkeypatch) -> None:
    with monkeypatch.context() as without_others:  # they take long to import
        without_others.setattr(importlib.util, "find_spec", lambda name: None)
        import test_architecture as rules
    import layernorm.tensorflow

    functions = {"layer_norm", "rms_norm"} | rules.QUANTIZED
    classes = {"LayerNormalization", "RMSNormalization"}
    public = {
        ours: functions | classes | {"convert", "inspect"},
        layernorm.tensorflow: functions | {"portable"},
    }
    monkeypatch.setattr(rules, "PUBLIC", public)
    for module in public:
        rules.test_public_names_are_those_of_the_init(module)
        rules.test_every_public_class_and_method_documents_itself(module)
        for name in module.__all__:
            if inspect.isfunction(getattr(module, name)):
                assert rules.missing_parts(getattr(module, name)) == []
