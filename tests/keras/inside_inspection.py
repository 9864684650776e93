"""Run by test_keras.py, once for each backend: what `inspect` finds, and no trace of it."""

import keras
import numpy as np
import pytest
from keras import layers as theirs
from keras import ops
from keras_gradients import BACKEND, to_array
from short_inspections import times_are_short  # noqa: F401

import layernorm.keras as ours
from layernorm import accuracy
from layernorm.inspection import measure
from layernorm.keras import layers
from layernorm.keras.inspection import timing

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*__array__.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:[^`]*`custom_gradient` for the numpy backend:UserWarning"),
]

COLS = 8
X = np.random.default_rng(0).standard_normal((4, 6, COLS)).astype(np.float32)

has_gradients = BACKEND != "numpy"
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own")
trains = pytest.mark.skipif(not has_gradients, reason="Keras does not train on this backend")


@pytest.fixture
def untimed(monkeypatch):
    """Compile nothing: for tests of other things than times."""
    times = {"own": 2.0, "ours": 1.0}
    monkeypatch.setattr(timing, "_medians", lambda *given, **options: times)


class Block(keras.Model):
    """Makes its norms in another order than it calls them in, one of them twice, one never."""

    def __init__(self) -> None:
        super().__init__(name="block")
        self.last = theirs.RMSNormalization(name="last")
        self.never = theirs.LayerNormalization(name="never")
        self.first = theirs.LayerNormalization(name="first", epsilon=1e-4)
        self.dense = theirs.Dense(COLS, name="dense")
        self.own = ours.LayerNormalization(name="own")
        self.never.build(X.shape)

    def call(self, x, scale=None, training=None):
        y = self.last(self.own(self.dense(self.first(self.first(x)))))
        y = y if scale is None else y * scale
        return {"y": [y, None], "place": ops.argmax(y, axis=-1)}


def randomize(model):
    random = np.random.default_rng(3)
    model.set_weights([each + random.normal(0, 0.1, each.shape) for each in model.get_weights()])
    return model


def block():
    keras.utils.set_random_seed(0)
    model = Block()
    model(X)
    return randomize(model)


def sequential(*parts):
    keras.utils.set_random_seed(0)
    return randomize(keras.Sequential([keras.Input(X.shape[1:]), *parts], name="model"))


def names(report):
    return [each.name.rpartition("/")[2] for each in report.norms]


def test_every_norm_is_found_in_the_order_of_the_calls(untimed):
    report = ours.inspect(block(), X, scale=X)
    found = [(each.calls, each.computes, each.convert) for each in report.norms]
    assert names(report) == ["first", "own", "last", "never"]
    assert found == [
        (2, "layer_norm", "yes"),
        (1, "layer_norm", "ours"),
        (1, "rms_norm", "yes"),
        (0, None, "yes"),
    ]
    assert [each.eps for each in report.norms] == [1e-4, 1e-3, 1e-6, None]
    gradients = [each.gradient for each in report.norms if each.calls]
    assert gradients == (["the output"] if has_gradients else [""]) * 3
    assert [each.share for each in report.norms] == [2.0, 1.0, 1.0, None]
    assert report.share == 4.0
    assert report.mode == "inference"
    assert (report.notes == []) == has_gradients
    assert "never was not called." in str(report)


def test_errors_are_those_of_the_measure(untimed):
    norm = theirs.LayerNormalization(name="norm")
    model = sequential(norm, theirs.Dense(3))
    x = X + np.float32(1e3)
    (found,) = ours.inspect(model, x).norms
    weight, bias = norm.get_weights()
    assert found.errors["y"] == accuracy.y_error(to_array(norm(x)), x, weight, bias, eps=1e-3)
    assert found.errors["y"] > found.bounds["y"] == accuracy.BOUNDS["float32"].y
    assert found.rows.count == 24
    assert found.rows.mean_over_std > 500
    assert found.weight.largest == float(weight.max())
    assert found.bias.smallest == float(bias.min())
    assert found.errors.keys() == ({"y", "dx", "dweight", "dbias"} if has_gradients else {"y"})


@trains
def test_gradients_are_those_of_a_backward_from_the_output(monkeypatch, untimed):
    seen = []
    monkeypatch.setattr(measure, "fill", lambda entry, call: seen.append(call))
    norm = theirs.LayerNormalization()
    for factor in (1, 3):
        inputs = keras.Input(X.shape[1:])
        ours.inspect(keras.Model(inputs, factor * norm(inputs)), X)
    once, three = seen
    np.testing.assert_array_equal(three.dy, 3 * once.dy)
    np.testing.assert_allclose(once.dbias, once.dy.sum((0, 1)), rtol=1e-4, atol=1e-5)
    xhat = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(once.dweight, (once.dy * xhat).sum((0, 1)), rtol=1e-3, atol=1e-4)


def test_ours_are_within_the_bounds(untimed):
    model = sequential(ours.LayerNormalization(), theirs.Dense(COLS), ours.RMSNormalization())
    report = ours.inspect(model, X + np.float32(1e3))
    for norm in report.norms:
        assert norm.convert == "ours"
        assert all(error <= norm.bounds[name] for name, error in norm.errors.items()), norm
    assert report.notes[-1] == "no norm is left to convert, so nothing was compared by time"
    assert report.forward is None
    assert report.share == 2.0  # each takes as long as the model, as `untimed` has it


def test_mixed_bfloat16(untimed):
    pytest.importorskip("ml_dtypes")
    policy = {"dtype": "mixed_bfloat16"}
    model = sequential(theirs.Dense(COLS, **policy), ours.LayerNormalization(**policy))
    (norm,) = ours.inspect(model, X).norms
    assert (norm.x_type, norm.y_type, norm.weight.type) == ("bfloat16", "bfloat16", "float32")
    assert all(error <= norm.bounds[name] for name, error in norm.errors.items()), norm


def test_lists_of_axes(monkeypatch, untimed):
    model = sequential(ours.LayerNormalization(axis=[2, 1]), ours.RMSNormalization(axis=1))
    both, first = ours.inspect(model, X).norms
    assert (both.normalized_shape, first.normalized_shape) == ((6, COLS), (6,))
    assert (both.rows.count, first.rows.count) == (4, 4 * COLS)
    monkeypatch.setattr(measure, "MOST_ELEMENTS", 2 * 6 * COLS)
    both, first = ours.inspect(model, X).norms
    assert (both.rows.count, first.rows.count) == (2, 2 * COLS)
    for norm in (both, first):
        assert all(error <= norm.bounds[name] for name, error in norm.errors.items()), norm


def test_dead_units(untimed):
    norm = theirs.LayerNormalization()
    model = sequential(norm)
    norm.gamma.assign([1, 1, 1, 0, 9e-4, -2, 1, 1])
    (found,) = ours.inspect(model, X).norms
    assert (found.weight.smallest, found.weight.largest, found.dead) == (-2.0, 1.0, 2)


@pytest.mark.filterwarnings("ignore:You passed `rms_scaling=True`:UserWarning")
def test_other_classes_are_told_and_not_judged(untimed):
    class PairNorm(theirs.Layer):
        def call(self, x):
            return x, x

    keras.utils.set_random_seed(0)
    inputs = keras.Input(X.shape[1:])
    y = theirs.GroupNormalization(2)(theirs.BatchNormalization()(inputs))
    y = theirs.UnitNormalization()(y)
    model = keras.Model(inputs, theirs.LayerNormalization(rms_scaling=True)(PairNorm()(y)[0]))
    report = ours.inspect(model, X)
    assert len(report.norms) == 5
    assert all(each.convert.startswith("no: ") for each in report.norms)
    assert all(each.errors == {} for each in report.norms)
    assert [each.weight is not None for each in report.norms] == [True, True, False, False, True]


@trains
def test_outputs_without_a_gradient(untimed):
    inputs = keras.Input(X.shape[1:])
    y = theirs.LayerNormalization()(inputs)
    both = keras.Model(inputs, [y, 2 * inputs])
    (norm,) = ours.inspect(both, X).norms
    assert norm.gradient == "the output"
    (norm,) = ours.inspect(keras.Model(inputs, ops.argmax(y, axis=-1)), X).norms
    assert norm.gradient == "random"
    assert norm.errors["dx"] < 5


def test_frozen_layers(untimed):
    model = sequential(theirs.LayerNormalization(), theirs.Dense(3))
    model.trainable = False
    report = ours.inspect(model, X)
    assert report.norms[0].errors.keys() == ({"y", "dx"} if has_gradients else {"y"})
    assert report.training is None


def test_layers_inside_of_others_and_shared_ones(untimed):
    shared = theirs.LayerNormalization(name="shared")
    inside = theirs.LayerNormalization(name="inside")
    model = sequential(shared, theirs.Dense(COLS), shared, theirs.TimeDistributed(inside))
    report = ours.inspect(model, X)
    assert {name: each.calls for name, each in zip(names(report), report.norms, strict=True)} == {
        "shared": 2,
        "inside": X.shape[1],
    }
    assert all(each.errors["y"] < 5 for each in report.norms)


class Cell(theirs.Layer):
    """A recurrent cell with a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.state_size = COLS
        self.norm, self.dense = theirs.LayerNormalization(name="norm"), theirs.Dense(COLS)

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build(shape)

    def call(self, x, states):
        y = self.norm(self.dense(x) + states[0])
        return y, [y]


def test_norms_inside_of_recurrent_cells(untimed):
    (norm,) = ours.inspect(sequential(theirs.RNN(Cell())), X).norms
    assert norm.calls in (6, 7)  # Keras may call the cell once to see what it returns
    assert norm.errors["y"] < 5


def test_inputs_by_keyword_and_in_training(untimed):
    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.norm = theirs.LayerNormalization()
            self.drop = theirs.Dropout(0.5)

        def call(self, x, *, training=None):
            return self.norm(inputs=self.drop(x, training=training))

    model = Model()
    model(X)
    seed = to_array(model.drop.seed_generator.state.value).copy()
    report = ours.inspect(model, X, training=True)
    assert report.mode == "training"
    assert report.norms[0].errors["y"] < 5
    np.testing.assert_array_equal(to_array(model.drop.seed_generator.state.value), seed)


# times


def test_ours_is_what_is_timed_as_ours(monkeypatch):
    ran, timed, model = [], {}, block()
    for cls in (layers.LayerNormalization, layers.RMSNormalization):

        def call(self, *args, own=cls.call, **keywords):
            ran.append(self.name)
            return own(self, *args, **keywords)

        monkeypatch.setattr(cls, "call", call)

    def medians(calls, *, around, seconds):
        for which, each in calls.items():
            ran.clear()
            with around(which):
                each()
            timed.setdefault(which, []).append(list(ran))
        return {"own": 3.0, "ours": 1.0}

    monkeypatch.setattr(measure, "medians", medians)
    report = ours.inspect(model, X)
    ways = 1 + has_gradients
    assert timed == {
        # first, own by itself, last, the model
        "own": [*[[]] * ways, ["own"], *[[]] * ways, *[["own"]] * ways],
        "ours": [
            *[["first"]] * ways,
            *[["last"]] * ways,
            *[["first", "first", "own", "last"]] * ways,
        ],
    }
    assert report.forward.gain == 3.0
    assert (report.training is not None) == has_gradients


# no trace


def state_of(model):
    return [
        *(to_array(each.value).copy() for each in model.variables),
        *((type(each), sorted(vars(each))) for each in model._flatten_layers()),
        *((each.trainable, each.losses) for each in model._flatten_layers()),
        *(str(vars(each)["_call_signature"]) for each in model._flatten_layers()),
    ]


def assert_same(before, after):
    for was, now in zip(before, after, strict=True):
        if isinstance(was, np.ndarray):
            np.testing.assert_array_equal(was, now)
        else:
            assert was == now


def test_the_model_is_left_as_it_was():
    model = block()
    expected, before, x = to_array(model(X)["y"][0]), state_of(model), X.copy()
    ours.inspect(model, X)
    assert_same(before, state_of(model))
    np.testing.assert_array_equal(X, x)
    np.testing.assert_array_equal(to_array(model(X)["y"][0]), expected)


def test_functions_that_were_compiled_before_work_as_before():
    model = sequential(theirs.LayerNormalization(), theirs.Dense(COLS), theirs.BatchNormalization())
    model.compile("sgd", "mse")
    expected = model.predict(X, verbose=0)
    predict = model.predict_function
    if has_gradients:
        model.fit(X, X, verbose=0)
        expected, train = model.predict(X, verbose=0), model.train_function
    before = state_of(model)
    ours.inspect(model, X)
    assert_same(before, state_of(model))
    assert model.predict_function is predict
    np.testing.assert_array_equal(model.predict(X, verbose=0), expected)
    if has_gradients:
        assert model.train_function is train
        model.fit(X, X, verbose=0)
        assert np.isfinite(model.predict(X, verbose=0)).all()


def test_a_model_that_was_converted_stays_so():
    model = sequential(theirs.LayerNormalization(), ours.LayerNormalization(), theirs.Dense(COLS))
    expected = to_array(model(X))
    done = ours.convert(model)
    before = state_of(model)
    first, second = ours.inspect(model, X).norms
    assert first.convert == second.convert == "ours"
    assert_same(before, state_of(model))
    assert ours.convert(model, undo=True).restored == done.swapped
    np.testing.assert_array_equal(to_array(model(X)), expected)


class Raising(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.norm = theirs.LayerNormalization()
        self.norm.build(X.shape)
        self.built = True

    def call(self, x):
        self.norm(x)
        raise KeyError("no such token")


def test_a_model_that_raises_is_left_as_it_was():
    model = Raising()
    model.norm.call = own = lambda x: x + 1
    before = state_of(model)
    with pytest.raises(RuntimeError, match=r"Raising raised KeyError .* after 1 calls .* token"):
        ours.inspect(model, X)
    assert_same(before, state_of(model))
    assert model.norm.call is own


@on_tensorflow
@pytest.mark.parametrize("is_timed", [False, True])
def test_functions_of_the_models_own_keep_nothing_of_what_ran_in_them(is_timed, monkeypatch):
    import tensorflow as tf

    traced = []

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.norm = theirs.LayerNormalization()
            self.norm.build(X.shape)
            self.built = True

        @tf.function
        def call(self, x):
            if not tf.executing_eagerly():
                traced.append(type(self.norm))
            return self.norm(x)

    if not is_timed:
        times = {"own": 2.0, "ours": 1.0}
        monkeypatch.setattr(timing, "_medians", lambda *given, **options: times)
    model = Model()
    (norm,) = ours.inspect(model, X).norms
    assert norm.gradient == "the output"
    assert norm.errors["dx"] < 5
    assert not tf.config.functions_run_eagerly()
    assert set(traced) == ({theirs.LayerNormalization} if is_timed else set())
    np.testing.assert_array_equal(model(X), Model()(X))


# input that is wrong, or of another kind


def unbuilt():
    return Block()


def idle():
    class Idle(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.idle = theirs.LayerNormalization(name="idle")
            self.built = True

        def call(self, x):
            return x

    return Idle()


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: "model", TypeError, "of type str, expected a Keras model or layer"),
        (unbuilt, ValueError, "Block is not built: call it once before"),
        (lambda: sequential(theirs.Dense(3)), ValueError, "Sequential has no norm"),
        (idle, ValueError, "Idle called none of its norms, idle"),
        (Raising, RuntimeError, "raised KeyError"),
    ],
)
def test_bad_input_is_said_clearly(make, error, words):
    with pytest.raises(error, match=words):
        ours.inspect(make(), X)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows, untimed):
    (norm,) = ours.inspect(sequential(theirs.LayerNormalization()), X[:rows]).norms
    assert norm.x_shape == (rows, 6, COLS)
    assert norm.rows.count == 6 * rows


@on_tensorflow
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_strings(kind, untimed):
    import tensorflow as tf

    words = theirs.StringLookup(vocabulary=["a", "b"])
    inputs = keras.Input((3,), dtype="string")
    y = theirs.LayerNormalization()(theirs.Embedding(3, COLS)(words(inputs)))
    given = [["a", "b", "c"], ["b", "b", "a"]]
    given = tf.constant(given) if kind == "tensor" else np.array(given)
    (norm,) = ours.inspect(keras.Model(inputs, y), given).norms
    assert norm.x_shape == (2, 3, COLS)
    assert norm.gradient == "the output"
