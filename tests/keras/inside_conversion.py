"""Run by test_keras.py, once for each backend: what worked before `convert` works after it."""

import copy
import functools
import pickle

import keras
import numpy as np
import pytest
from keras import layers as theirs
from keras import ops
from keras_gradients import BACKEND, to_array

import layernorm.keras as ours
import layernorm.numpy as numpy_front_end
from layernorm.keras import layers

# Keras's own calls of NumPy cause the first; the others are Keras's about what the tests do.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*__array__.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*(does not support masking|rms_scaling).*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning"),
    pytest.mark.filterwarnings("ignore:[^`]*`custom_gradient` for the numpy backend:UserWarning"),
    pytest.mark.filterwarnings("ignore:The `native_serialization` parameter:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.* objects could not be loaded:UserWarning"),
]

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 6, 8)).astype(np.float32)
KERASS, OURS = "keras.src.layers.normalization.", "layernorm.keras.layers."
LN, RMS = "layer_normalization.LayerNormalization", "rms_normalization.RMSNormalization"

trains = pytest.mark.skipif(BACKEND == "numpy", reason="Keras does not train on this backend")
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own")


def build(**options) -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 8))
    y = theirs.LayerNormalization(name="first", **options)(inputs)
    y = theirs.RMSNormalization(name="second", **options)(theirs.Dense(8, name="dense")(y))
    y = theirs.TimeDistributed(theirs.LayerNormalization(name="third"), name="each")(y)
    model = keras.Model(inputs, theirs.Dense(8, name="last")(y))
    model.set_weights(
        [each + 0.1 * RNG.standard_normal(each.shape) for each in model.get_weights()]
    )
    return model


def built() -> tuple[keras.Model, np.ndarray]:
    model = build()
    return model, to_array(model(X))


def assert_gives(model, expected: np.ndarray, x: np.ndarray = X) -> None:
    np.testing.assert_allclose(to_array(model(x)), expected, rtol=1e-4, atol=1e-5)


def norms_of(model) -> list[type]:
    return [type(each) for each in model._flatten_layers() if "Norm" in type(each).__name__]


def test_undo_is_exact() -> None:
    model, expected = built()
    before = [
        (type(each), sorted(vars(each)), each.get_config()) for each in model._flatten_layers()
    ]
    done = ours.convert(model)
    assert done.swapped == {"first": KERASS + LN, "second": KERASS + RMS, "each/third": KERASS + LN}
    assert_gives(model, expected)
    undone = ours.convert(model, undo=True)
    assert undone.restored == done.swapped
    assert not undone.swapped
    after = [
        (type(each), sorted(vars(each)), each.get_config()) for each in model._flatten_layers()
    ]
    assert after == before
    np.testing.assert_array_equal(to_array(model(X)), expected)
    assert str(ours.convert(model, undo=True)) == "no norm was found"
    assert list(ours.convert(model).swapped) == list(done.swapped)


def test_undo_leaves_layers_that_were_created_as_ours() -> None:
    mine = ours.LayerNormalization(name="mine")
    model = keras.Sequential([keras.Input((6, 8)), mine, theirs.RMSNormalization(name="other")])
    ours.convert(model)
    done = ours.convert(model, undo=True)
    assert [each.split("/")[-1] for each in done.restored] == ["other"]
    ((path, reason),) = done.left.items()
    assert path.endswith("mine")
    assert reason == f"{OURS}LayerNormalization, which convert did not replace"
    assert type(mine) is ours.LayerNormalization


@pytest.mark.parametrize("undo", [False, True])
def test_a_dry_run_changes_nothing(undo) -> None:
    model, _ = built()
    if undo:
        ours.convert(model)
    model.compile("sgd", "mse")
    model.predict(X, verbose=0)
    traced, before = model.predict_function, norms_of(model)
    said = ours.convert(model, undo=undo, dry_run=True)
    assert norms_of(model) == before
    assert model.predict_function is traced
    done = ours.convert(model, undo=undo)
    assert str(said) == str(done)
    assert len(done.restored if undo else done.swapped) == 3
    assert norms_of(model) != before
    assert model.predict_function is not traced
    assert "_layernorm_converted" not in vars(build())


class Doubled(theirs.LayerNormalization):
    def call(self, inputs):
        return super().call(inputs) * 2


class Grown(theirs.RMSNormalization):
    def build(self, input_shape):
        super().build(input_shape)


class Ours(ours.LayerNormalization):
    pass


def test_what_is_left_has_a_reason() -> None:
    replaced = theirs.LayerNormalization(name="replaced")
    replaced.call = lambda inputs: inputs + 1
    network = keras.Sequential(
        [
            keras.Input((6, 8)),
            Doubled(name="doubled"),
            Grown(name="grown"),
            replaced,
            theirs.LayerNormalization(rms_scaling=True, name="scaled"),
            theirs.GroupNormalization(1, name="grouped"),
            theirs.UnitNormalization(name="unit"),
            theirs.BatchNormalization(name="batch"),
            Ours(name="mine"),
        ]
    )
    expected = to_array(network(X))
    done = ours.convert(network)
    assert not done.swapped
    reasons = {path.split("/")[-1]: reason.split(", ", 1) for path, reason in done.left.items()}
    another = "another class than the two that are replaced"
    assert {name: reason for name, (_, reason) in reasons.items()} == {
        "doubled": "a subclass, which may compute something else",
        "grown": "a subclass, which may compute something else",
        "replaced": "whose call was replaced on the layer itself",
        "scaled": "with rms_scaling=True, which is neither layer norm nor RMS norm",
        **dict.fromkeys(("grouped", "unit", "batch"), another),
    }
    assert reasons["replaced"][0] == KERASS + LN
    np.testing.assert_array_equal(to_array(network(X)), expected)


def test_layers_of_a_type_that_is_not_served_are_left() -> None:
    layer = theirs.LayerNormalization(dtype="int32", name="integers")
    assert "whose compute type is int32" in ours.convert(layer).left["integers"]


class Block(theirs.Layer):
    """Layers in lists, dicts, tuples and their likes."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = [theirs.LayerNormalization(), theirs.RMSNormalization()]
        self.named = {"x": theirs.LayerNormalization(), "y": [theirs.LayerNormalization()]}
        self.paired = (theirs.LayerNormalization(), [theirs.RMSNormalization()])

    def call(self, x):
        for each in (*self.listed, self.named["x"], *self.named["y"]):
            x = each(x)
        return self.paired[1][0](self.paired[0](x))


@pytest.mark.parametrize("first_call", ["before", "after"])
def test_layers_inside_of_attributes(first_call) -> None:
    block = Block()
    expected = to_array(block(X)) if first_call == "before" else None
    done = ours.convert(block)
    assert len(done.swapped) == 6
    assert not any(path is None or path == "None" for path in done.swapped)
    assert_gives(block, to_array(Block()(X)) if expected is None else expected)
    assert len(ours.convert(block, undo=True).restored) == 6


def test_layers_that_models_share() -> None:
    shared = theirs.LayerNormalization()
    inner = keras.Sequential([keras.Input((6, 8)), shared])
    other = keras.Sequential([keras.Input((6, 8)), theirs.Dense(8), inner, shared])
    expected = [to_array(each(X)) for each in (inner, other)]
    assert len(ours.convert(other).swapped) == 1
    for model, y in zip((inner, other), expected, strict=True):
        assert_gives(model, y)
    assert not ours.convert(inner).swapped


def test_wrappers_and_recurrent_layers() -> None:
    inputs = keras.Input((6, 8))
    y = theirs.TimeDistributed(theirs.RMSNormalization())(theirs.LayerNormalization()(inputs))
    y = theirs.Bidirectional(theirs.SimpleRNN(4, return_sequences=True))(y)
    model = keras.Model(inputs, theirs.Conv1D(3, 2)(y))
    expected = to_array(model(X))
    assert len(ours.convert(model).swapped) == 2
    assert_gives(model, expected)


@pytest.mark.parametrize("norm", [theirs.LayerNormalization, theirs.RMSNormalization])
def test_masks_go_on_or_end_as_before(norm) -> None:
    """Keras's RMS norm ends masks. A converted one and its copies do too; a new one passes them."""
    inputs = keras.Input((6, 8))
    y = norm(name="norm")(theirs.Masking()(inputs))
    model = keras.Model(inputs, theirs.GlobalAveragePooling1D()(y))
    x = X.copy()
    x[:, 3:] = 0
    expected = to_array(model(x))
    ours.convert(model)
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_gives(each, expected, x)
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    assert_gives(again, expected, x)
    ours.convert(model, undo=True)
    assert_gives(model, expected, x)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_layers_stay_frozen(frozen) -> None:
    model = build()
    model.get_layer("first").trainable = not frozen
    before = [id(each) for each in model.trainable_weights]
    ours.convert(model)
    assert model.get_layer("first").trainable is not frozen
    assert [id(each) for each in model.trainable_weights] == before


@functools.cache
def quantized() -> tuple[keras.Model, np.ndarray]:
    """Return a model, and what it gives when it is quantized."""
    source = build()
    model = keras.models.clone_model(source)
    model.set_weights(source.get_weights())
    source.quantize("int8")
    return model, to_array(source(X))


@pytest.mark.parametrize("first", ["convert", "quantize"])
def test_quantized_models(first) -> None:
    source, expected = quantized()
    model = keras.models.clone_model(source)
    model.set_weights(source.get_weights())
    if first == "convert":
        ours.convert(model)
    model.quantize("int8")
    if first == "quantize":
        ours.convert(model)
    assert norms_of(model).count(ours.LayerNormalization) == 2
    assert "int8" in str(model.get_layer("dense").dtype_policy)
    # An ulp between the norms' results may become a step of the next layer's quantization.
    np.testing.assert_allclose(to_array(model(X)), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("first", ["convert", "enable_lora"])
def test_low_rank_adaptation(first) -> None:
    model, expected = built()
    if first == "convert":
        ours.convert(model)
    model.get_layer("dense").enable_lora(2)
    if first == "enable_lora":
        ours.convert(model)
    assert_gives(model, expected)  # the adaptation begins at zero


COPIES = {
    "clone_model": keras.models.clone_model,
    "clone_function": lambda model: keras.models.clone_model(
        model, clone_function=lambda layer: type(layer).from_config(layer.get_config())
    ),
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "serialized": lambda model: keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(model)
    ),
    "configuration": lambda model: type(model).from_config(model.get_config()),
    "json": lambda model: keras.models.model_from_json(model.to_json()),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_converted_models(name) -> None:
    model, expected = built()
    ours.convert(model)
    again = COPIES[name](model)
    again.set_weights(model.get_weights())
    assert norms_of(again) == norms_of(model)
    assert_gives(again, expected)
    # Copies are made from configurations, so all their layers were created as ours.
    assert len(ours.convert(again, undo=True).left) == 3


def test_files_of_converted_models(tmp_path) -> None:
    model, expected = built()
    ours.convert(model)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    assert_gives(keras.models.load_model(tmp_path / "model.keras"), expected)
    for other in (build(), keras.models.clone_model(model)):
        other.load_weights(tmp_path / "model.weights.h5")
        assert_gives(other, expected)


def test_layers_may_be_added_and_removed() -> None:
    model = keras.Sequential([keras.Input((6, 8)), theirs.LayerNormalization(), theirs.Dense(8)])
    ours.convert(model)
    model.pop()
    model.add(theirs.RMSNormalization())
    expected = to_array(theirs.RMSNormalization()(theirs.LayerNormalization()(X)))
    assert_gives(model, expected)
    assert len(ours.convert(model).swapped) == 1
    assert_gives(model, expected)


@trains
def test_stateless_calls() -> None:
    model, expected = built()
    ours.convert(model)
    values = ([each.value for each in variables] for variables in
              (model.trainable_variables, model.non_trainable_variables))  # fmt: skip
    y, _ = model.stateless_call(*values, ops.convert_to_tensor(X))
    np.testing.assert_allclose(to_array(y), expected, rtol=1e-4, atol=1e-5)


def test_vectorized_maps() -> None:
    x = ops.convert_to_tensor(X)
    mapped = ops.vectorized_map(lambda rows: ours.layer_norm(rows), x)
    np.testing.assert_array_equal(to_array(mapped), to_array(ours.layer_norm(x)))
    layer = ours.RMSNormalization()
    layer.build((6, 8))
    mapped = ops.vectorized_map(layer, x)
    np.testing.assert_array_equal(to_array(mapped), to_array(layer(x)))


@trains
@pytest.mark.parametrize("norm", [theirs.LayerNormalization, theirs.RMSNormalization])
def test_mixed_precision_with_a_scaled_loss(norm) -> None:
    losses = []
    for convert in (False, True):
        keras.utils.set_random_seed(0)
        last = theirs.Dense(1, dtype="float32")
        model = keras.Sequential([keras.Input((8,)), norm(dtype="mixed_float16"), last])
        if convert:
            ours.convert(model)
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), 1024)
        model.compile(optimizer, "mse", jit_compile=BACKEND == "jax")
        history = model.fit(X[:, 0], X[:, 0, :1], epochs=3, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)


@trains
@pytest.mark.parametrize(
    "event", ["train_begin", "epoch_begin", "train_batch_end", "test_begin", "predict_begin"]
)
def test_callbacks_may_convert_and_undo(event, monkeypatch) -> None:
    classes, traced, call = [], [], layers._call
    monkeypatch.setattr(layers, "_call", lambda *a, **k: traced.append(a) or call(*a, **k))

    def swap(model) -> None:
        norm = model.layers[0]
        ours.convert(model, undo=type(norm) is ours.LayerNormalization)
        classes.append(type(norm))

    results = losses_and_predictions(event, swap)
    assert ours.LayerNormalization in classes
    assert traced  # no function that was traced before a swap goes on running
    for got, expected in zip(results, losses_and_predictions(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@functools.cache
def losses_and_predictions(event="epoch_end", swap=lambda model: None) -> list:
    keras.utils.set_random_seed(0)
    norm = theirs.LayerNormalization()
    model = keras.Sequential([keras.Input((6, 8)), norm, theirs.Dense(8)])
    model.compile("sgd", "mse", jit_compile=BACKEND == "jax")
    callbacks = [
        keras.callbacks.LambdaCallback(**{f"on_{event}": lambda *_, logs=None: swap(model)})
    ]
    options = {"callbacks": callbacks, "batch_size": 2, "verbose": 0}
    history = model.fit(X, X, epochs=2, shuffle=False, validation_data=(X, X), **options)
    predictions = [model.predict(X, **options) for _ in range(2)]
    return [*history.history["loss"], *history.history["val_loss"], *predictions]


# What Keras's layers take besides dense tensors of floats.


def outcome(call) -> tuple[str, object]:
    try:
        y = call()
    except Exception as error:
        return "error", type(error)
    if hasattr(y, "ragged_rank"):
        return f"ragged {y.dtype.name}", [y.row_splits, y.flat_values]
    return str(keras.backend.standardize_dtype(y.dtype)), [y]


def assert_same_outcome(call, kerass, new) -> None:
    """Call both layers: either both fail in the same way, or both give about the same."""
    assert_outcome(lambda: call(new), *outcome(lambda: call(kerass)))


def assert_outcome(call, expected_kind, expected) -> None:
    kind, got = outcome(call)
    assert kind == expected_kind
    if kind == "error":
        assert got is expected
        return
    for one, other in zip(got, expected, strict=True):
        one, other = (np.asarray(to_array(each)).astype(np.complex128) for each in (one, other))
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-2)


PAIRS = [
    (theirs.LayerNormalization, ours.LayerNormalization),
    (theirs.RMSNormalization, ours.RMSNormalization),
]
each_pair = pytest.mark.parametrize(
    ("kerass", "mine"), PAIRS, ids=["layer_norm", "rms_norm"]
)  # fmt: skip

ARRAYS = {
    "integers": np.arange(48).reshape(6, 8) * 1000,
    "small integers": np.arange(48, dtype=np.int8).reshape(6, 8),
    "flags": np.arange(48).reshape(6, 8) % 3 == 0,
    "complex": np.ones((6, 8), np.complex64),
    "a number": np.float32(3),
    "None": None,
    "an empty array": np.ones((0, 8), np.float32),
}


@pytest.mark.parametrize("name", ARRAYS)
@each_pair
def test_other_types_do_as_with_kerass_layer(kerass, mine, name) -> None:
    if name in ("complex", "integers", "small integers", "flags") and kerass is PAIRS[0][0]:
        # Keras rounds y to integers, and then converts it. Ours keeps the fractions.
        given = ops.convert_to_tensor(ARRAYS[name])
        if name != "complex":
            assert mine()(given).dtype == kerass()(given).dtype
            return
    given = ARRAYS[name]
    if isinstance(given, np.ndarray):
        given = ops.convert_to_tensor(given)
    assert_same_outcome(lambda layer: layer(given), kerass(), mine())
    layers = [each() for each in (kerass, mine)]
    for each in layers:
        each.build((None, 8))
    assert_same_outcome(lambda layer: layer(given), *layers)


def test_a_function_that_keras_does_not_make_stays() -> None:
    model = keras.Sequential([keras.Input((6, 8)), theirs.LayerNormalization()])
    model.layers[0].predict_function = len
    ours.convert(model)
    assert model.layers[0].predict_function is len


SETTINGS = {
    "epsilon=None": lambda: {"epsilon": None},
    "negative epsilon": lambda: {"epsilon": -0.25},
    "infinite epsilon": lambda: {"epsilon": float("inf")},
    "no axis": lambda: {"axis": []},
    "an axis twice": lambda: {"axis": [-1, 2]},
    "an axis out of range": lambda: {"axis": 3},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@each_pair
def test_settings_that_are_not_served_do_as_with_kerass_layer(kerass, mine, name) -> None:
    def converted():
        layer = kerass(**SETTINGS[name]())
        ours.convert(layer)
        return layer

    for new in (mine(**SETTINGS[name]()), converted()):
        old = kerass(**SETTINGS[name]())
        assert_same_outcome(lambda layer: layer(X), old, new)


@pytest.mark.parametrize("compiled", [False, True])
@each_pair
def test_epsilon_may_be_a_variable(kerass, mine, compiled) -> None:
    """Keras reads it in each call, also in a function that was traced before it changed."""

    def run(kind):
        epsilon = keras.Variable(0.5, trainable=False)
        model = keras.Sequential([keras.Input((6, 8)), kind(epsilon=epsilon)])
        call = model.predict_on_batch if compiled else model
        before = ops.convert_to_tensor(call(X))
        epsilon.assign(2.0)
        return ops.concatenate([before, ops.convert_to_tensor(call(X))])

    assert_same_outcome(run, kerass, mine)


SCALES = {
    "a number": lambda: 2.0,
    "a tensor without axes": lambda: ops.convert_to_tensor(2.0),
    "an array": lambda: np.full(8, 2.0),
    "more axes": lambda: ops.full((1, 1, 8), 2.0),
    "another size": lambda: ops.full((4,), 2.0),
    "None": lambda: None,
}


@pytest.mark.parametrize("name", SCALES)
@each_pair
def test_parameters_of_other_shapes_do_as_with_kerass_layer(kerass, mine, name) -> None:
    def run(kind):
        layer = kind()
        layer.build((None, 8))
        layer._tracker.unlock()
        setattr(layer, "scale" if kerass is PAIRS[1][0] else "gamma", SCALES[name]())
        return layer(X)

    assert_same_outcome(run, kerass, mine)


@pytest.mark.parametrize(("built", "called"), [(1, 8), (8, 1), (8, 6)])
@each_pair
def test_other_sizes_than_the_layer_was_built_for(kerass, mine, built, called) -> None:
    def run(kind):
        layer = kind()
        layer.build((None, built))
        return layer(X[..., :called])

    assert_same_outcome(run, kerass, mine)


@pytest.mark.parametrize("shape", [(4, 6, 1, 8), (4, 6, 8), (4, 8, 6), (4, 12, 4), (2, 2, 6, 8)])
def test_layers_over_mixed_axes_take_x_of_another_rank(shape) -> None:
    def run(kind):
        layer = kind(axis=[1, -1])
        layer.build((None, 6, 8))
        layer.set_weights([np.linspace(at, 2, 48).reshape(each.shape)
                           for at, each in enumerate(layer.get_weights())])  # fmt: skip
        return layer(X.reshape(shape))

    assert_same_outcome(run, theirs.LayerNormalization, ours.LayerNormalization)


@pytest.mark.parametrize("axis", [-1, 1, [1, -1], [-1, 1], [2, 1], (-1, -2)], ids=str)
@each_pair
def test_axes_are_saved_as_by_kerass_layer(kerass, mine, axis) -> None:
    layers = [each(axis=axis) for each in (kerass, mine)]
    for each in layers:
        each.build((2, 3, 4))
    old, new = (layer.get_config()["axis"] for layer in layers)
    assert (list(new), type(new)) == (list(old), type(old))


GIVEN = {
    "an array": lambda: X,
    "a wider array": lambda: X.astype(np.float64),
    "a variable": lambda: keras.Variable(X),
}


@pytest.mark.parametrize("name", GIVEN)
@each_pair
def test_call_takes_what_keras_converts(kerass, mine, name) -> None:
    def run(kind):
        layer = kind()
        layer.build((None, 8))
        return layer.call(GIVEN[name]())

    assert_same_outcome(run, kerass, mine)


@each_pair
def test_call_takes_symbolic_tensors(kerass, mine) -> None:
    results = []
    for layer in (kerass(), mine()):
        layer.build((None, 8))
        y = layer.call(keras.KerasTensor((4, 6, 8)))
        results.append((type(y), y.shape, y.dtype))
    assert results[0] == results[1]


@each_pair
def test_stateless_calls_take_arrays(kerass, mine) -> None:
    def run(kind):
        layer = kind()
        layer.build((None, 8))
        values = [np.linspace(1, 2, 8, dtype=np.float32) for _ in layer.trainable_variables]
        return layer.stateless_call(values, [], X)[0]

    assert_same_outcome(run, kerass, mine)


# The axes and sizes of the layer that is saved, and of the one that loads the file.
FILES = {
    "another order": ([1, 2], (8, 6), [1, 2], (6, 8)),
    "another rank": (-1, (2, 48), [1, 2], (6, 8)),
    "mixed axes of other sizes": ([1, -1], (4, 9), [1, -1], (6, 6)),
    "fits": ([1, 2], (6, 8), [1, 2], (6, 8)),
}


@pytest.mark.parametrize("skip_mismatch", [False, True])
@pytest.mark.parametrize("name", FILES)
@each_pair
def test_files_with_weights_of_other_shapes(kerass, mine, name, skip_mismatch, tmp_path) -> None:
    axis, shape, other_axis, other_shape = FILES[name]
    saved = keras.Sequential([keras.Input(shape), kerass(axis=axis, name="norm")])
    saved.set_weights([RNG.standard_normal(each.shape) for each in saved.get_weights()])
    saved.save_weights(tmp_path / "model.weights.h5")

    def load(kind):
        model = keras.Sequential([keras.Input(other_shape), kind(axis=other_axis, name="norm")])
        model.load_weights(tmp_path / "model.weights.h5", skip_mismatch=skip_mismatch)
        return model.weights[0].value

    assert_same_outcome(load, kerass, mine)


@on_tensorflow
@pytest.mark.parametrize("way", ["function", "map", "fit"])
@each_pair
def test_sizes_that_tensorflow_does_not_know(kerass, mine, way) -> None:
    import tensorflow as tf

    unknown = tf.TensorSpec([None, None, None])
    data = tf.data.Dataset.from_generator(lambda: iter([X]), output_signature=unknown)

    class Model(keras.Model):
        def __init__(self, norm) -> None:
            super().__init__()
            self.norm = norm

        def call(self, x):
            return self.norm(x)

    def run(kind):
        model = Model(kind())
        model(X)
        if way == "function":
            return tf.function(model, input_signature=[unknown])(X)
        if way == "map":
            return next(iter(data.map(model)))
        model.compile("sgd", "mse", jit_compile=False)
        model.fit(data.map(lambda x: (x, x)), shuffle=False, verbose=0)
        return model.weights[0].value

    assert_same_outcome(run, kerass, mine)


@on_tensorflow
@each_pair
def test_tensors_of_tensorflow_that_are_not_dense(kerass, mine) -> None:
    import tensorflow as tf

    x = tf.constant(X[0])
    ragged = tf.RaggedTensor.from_row_lengths(x, [2, 1, 3])
    for given in (
        ragged,
        tf.RaggedTensor.from_row_lengths(ragged, [1, 2]),
        tf.ragged.constant([[1.0, 2.0], [3.0]]),
        tf.sparse.from_dense(x),
        tf.IndexedSlices(x, tf.range(6)),
        tf.constant([["a", "b"]]),
        tf.Variable(x),
        tf.experimental.numpy.asarray(X[0]),
    ):
        assert_same_outcome(lambda layer, given=given: layer(given), kerass(), mine())


@on_tensorflow
@each_pair
def test_ragged_and_sparse_inputs_of_models(kerass, mine) -> None:
    import tensorflow as tf

    ragged = tf.RaggedTensor.from_row_lengths(tf.constant(X[0]), [2, 1, 3])
    sparse = tf.sparse.from_dense(X[0])
    for given, options in ((ragged, {"shape": (None, 8), "ragged": True}),
                           (sparse, {"shape": (8,), "sparse": True})):  # fmt: skip

        def model(layer, options=options) -> keras.Model:
            inputs = keras.Input(**options)
            return keras.Model(inputs, layer()(inputs))

        old, converted = model(kerass), model(kerass)
        called = outcome(lambda old=old, given=given: old(given))
        predicted = outcome(lambda old=old, given=given: old.predict(given, verbose=0))
        ours.convert(converted)
        for new in (converted, model(mine)):
            assert_outcome(lambda new=new, given=given: new(given), *called)
            assert_outcome(lambda new=new, given=given: new.predict(given, verbose=0), *predicted)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's own")
@each_pair
def test_sparse_arrays_of_jax(kerass, mine) -> None:
    from jax.experimental import sparse

    given = sparse.BCOO.fromdense(X[0])
    assert_same_outcome(lambda layer: layer(given), kerass(), mine())


# Files that run without this package.


@pytest.mark.skipif(BACKEND not in ("tensorflow", "jax"), reason="Keras's own layers fail there")
@pytest.mark.parametrize("way", ["export", pytest.param("saved_model.save", marks=on_tensorflow)])
def test_exported_models_run_without_ours(way, tmp_path) -> None:
    import tensorflow as tf

    model, expected = built()
    ours.convert(model)
    model.predict(X, verbose=0)
    if way == "export":
        model.export(tmp_path, verbose=False)
    else:
        tf.saved_model.save(model, str(tmp_path))
    # Nothing of ours is in it by name: TensorFlow here knows our operations if Keras runs on it.
    assert b"layernorm_tensorflow" not in (tmp_path / "saved_model.pb").read_bytes()
    loaded = tf.saved_model.load(str(tmp_path))
    (y,) = loaded.signatures["serving_default"](tf.constant(X)).values()
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert_gives(model, expected)


def transformed(name, function):
    import jax

    if name == "scan":

        def body(x, _):
            return function(x), None

        return lambda x: jax.lax.scan(body, x, None, length=1)[0]
    return {"jit": jax.jit, "checkpoint": jax.checkpoint, "remat": keras.remat}[name](function)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's own")
@pytest.mark.parametrize("first", ["call", "export"])
@pytest.mark.parametrize("transform", ["jit", "checkpoint", "remat", "scan"])
def test_exports_and_calls_share_no_traces(transform, first, tmp_path) -> None:
    """JAX keeps what it has traced: a file needs the formula, and calls need the kernels."""
    layer = theirs.LayerNormalization(center=False, scale=False)  # traces may not hold variables
    layer.build((None, 6, 8))
    ours.convert(layer)
    function = transformed(transform, lambda x: layer(x))

    class Model(keras.Model):
        def call(self, x):
            return function(x)

    model = Model()
    model.built = True
    if first == "call":
        model(X)
    signature = [keras.InputSpec(shape=(4, 6, 8), dtype="float32")]
    model.export(tmp_path, verbose=False, input_signature=signature)  # fails for the kernels' calls
    x = X * np.float32(1e25)  # its squares overflow in Keras
    np.testing.assert_array_equal(to_array(model(x)), numpy_front_end.layer_norm(x, eps=1e-3))


@on_tensorflow
@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.parametrize("way", ["from_keras_model", "from_saved_model", "litert"])
def test_tensorflow_lite(way, tmp_path) -> None:
    import tensorflow as tf
    import tensorflow_lite

    model, expected = built()
    ours.convert(model)
    if way == "litert":
        model.export(tmp_path / "model.tflite", format="litert", verbose=False)
        content = (tmp_path / "model.tflite").read_bytes()
    elif way == "from_saved_model":
        model.export(tmp_path, verbose=False)
        content = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path)).convert()
    else:
        content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    y = tensorflow_lite.run(content, X)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's own")
def test_exported_programs_of_pytorch(tmp_path) -> None:
    model = keras.Sequential([keras.Input((6, 8), batch_size=4), theirs.LayerNormalization()])
    expected = to_array(model(X))
    ours.convert(model)
    model.export(tmp_path / "model.pt2", format="torch", verbose=False)
    assert_gives(model, expected)
