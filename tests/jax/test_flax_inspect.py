"""layernorm.flax.inspect: what it finds, that it is right, and that it leaves no trace."""

import math
import warnings

import numpy as np
import pytest
from short_inspections import times_are_short  # noqa: F401

jax = pytest.importorskip("jax")
pytest.importorskip("flax", minversion="0.12")

import jax.numpy as jnp  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from flax import linen, nnx

import layernorm.flax as ours  # noqa: E402
from layernorm import accuracy  # noqa: E402
from layernorm.flax import linen as ours_in_linen  # noqa: E402
from layernorm.flax import nnx as ours_in_nnx  # noqa: E402
from layernorm.flax.inspection import timing  # noqa: E402
from layernorm.inspection import measure  # noqa: E402

COLS = 12


@pytest.fixture
def untimed(monkeypatch):
    """Compile nothing: for tests of other things than times."""
    times = {"own": 2.0, "ours": 1.0}
    monkeypatch.setattr(timing, "_medians", lambda calls, given, seconds: times)


def rows(*shape, mean=0.0, seed=4):
    return np.random.default_rng(seed).normal(mean, 1, shape).astype(np.float32)


class Linen(linen.Module):
    """Calls a function of itself."""

    function: object

    @linen.compact
    def __call__(self, *inputs, **keywords):
        return self.function(*inputs, **keywords)


class NNX(nnx.Module):
    """Calls a function of itself, with a layer norm, an RMS norm and a linear layer."""

    def __init__(self, function, **parts) -> None:
        rngs = nnx.Rngs(0)
        self.second = nnx.RMSNorm(COLS, rngs=rngs)
        self.first = nnx.LayerNorm(COLS, rngs=rngs)
        self.linear = nnx.Linear(COLS, COLS, rngs=rngs)
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def __call__(self, *inputs, **keywords):
        return self.function(self, *inputs, **keywords)


def bound(module, *inputs, mutable=False, **keywords):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = module.init(keys, *inputs, **keywords)
    random = np.random.default_rng(3)
    variables = jax.tree.map(
        lambda each: each + random.normal(0, 0.1, each.shape).astype(np.float32), variables
    )
    return module.bind(variables, rngs={"dropout": jax.random.key(2)}, mutable=mutable)


def in_linen(x):
    first = linen.LayerNorm(name="first")
    return linen.RMSNorm(name="second")(linen.Dense(COLS)(first(first(x))))


def in_nnx(self, x):
    return self.second(self.linear(self.first(self.first(x))))


def make(kind):
    if kind == "linen":
        return bound(Linen(in_linen), rows(5, COLS))
    model = NNX(in_nnx)
    for each in (model.first.scale, model.first.bias, model.second.scale):
        each[...] += 0.1 * rows(COLS)
    return model


in_both = pytest.mark.parametrize("kind", ["linen", "nnx"])


@in_both
def test_every_norm_is_found_in_the_order_of_the_calls(kind, untimed):
    report = ours.inspect(make(kind), rows(5, COLS))
    found = [(each.name, each.calls, each.computes, each.convert) for each in report.norms]
    assert found == [("first", 2, "layer_norm", "yes"), ("second", 1, "rms_norm", "yes")]
    assert [each.kind.rpartition(".")[2] for each in report.norms] == ["LayerNorm", "RMSNorm"]
    assert {each.gradient for each in report.norms} == {"the output"}
    assert [each.share for each in report.norms] == [2.0, 1.0]  # calls, each as long as the model
    assert report.share == 3.0


@in_both
def test_errors_are_those_of_the_measure(kind, untimed):
    x = rows(5, COLS, mean=3e3)
    model = make(kind)
    norm = ours.inspect(model, x).norms[0]
    if kind == "linen":
        parameters = model.variables["params"]["first"]
        weight, bias = parameters["scale"], parameters["bias"]
        y = linen.LayerNorm().apply({"params": parameters}, x)
    else:
        weight, bias = model.first.scale[...], model.first.bias[...]
        y = model.first(x)
    weight, bias, y = map(np.asarray, (weight, bias, y))
    assert norm.errors["y"] == accuracy.y_error(y, x, weight, bias, eps=1e-6)
    assert norm.errors["y"] > norm.bounds["y"] == accuracy.BOUNDS["float32"].y
    assert norm.rows.mean_over_std > 1e3
    assert norm.weight.smallest == float(weight.min())
    assert norm.bias.largest == float(bias.max())


def test_gradients_are_those_of_a_backward_from_the_output(monkeypatch, untimed):
    seen = []
    monkeypatch.setattr(measure, "fill", lambda entry, call: seen.append(call))
    x = rows(5, COLS)
    for factor in (1, 3):
        ours.inspect(bound(Linen(lambda x, n=factor: n * linen.LayerNorm()(x)), x), x)
    once, three = seen
    np.testing.assert_array_equal(three.dy, 3 * once.dy)
    np.testing.assert_allclose(once.dbias, once.dy.sum(0), rtol=1e-4, atol=1e-5)
    xhat = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    np.testing.assert_allclose(once.dweight, (once.dy * xhat).sum(0), rtol=1e-3, atol=1e-4)
    assert once.weight.shape == once.dweight.shape == (COLS,)
    assert once.dx.shape == x.shape


@in_both
def test_ours_are_within_the_bounds(kind, untimed):
    x = rows(5, COLS, mean=3e3)
    if kind == "linen":
        parts = (ours_in_linen.LayerNorm(), ours_in_linen.RMSNorm())
        model = bound(linen.Sequential(parts), x)
    else:
        parts = (ours_in_nnx.LayerNorm(COLS, rngs=nnx.Rngs(0)),
                 ours_in_nnx.RMSNorm(COLS, rngs=nnx.Rngs(0)))  # fmt: skip
        model = nnx.Sequential(*parts)
    report = ours.inspect(model, x)
    for norm in report.norms:
        assert norm.convert == "ours"
        assert norm.errors.keys() >= {"y", "dx", "dweight"}
        assert all(error <= norm.bounds[name] for name, error in norm.errors.items()), norm
    assert report.notes == ["no norm is left to convert, so nothing was compared by time"]
    assert report.forward is None
    assert report.share == 2.0  # each takes as long as the model, as `untimed` has it
    assert report.forward is None


@in_both
def test_bfloat16(kind, untimed):
    x = jnp.asarray(rows(5, COLS), jnp.bfloat16)
    options = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
    if kind == "linen":
        model = ours_in_linen.LayerNorm(**options)
        model = model.bind(model.init(jax.random.key(0), x))
    else:
        model = ours_in_nnx.LayerNorm(COLS, **options, rngs=nnx.Rngs(0))
    (norm,) = ours.inspect(model, x).norms
    assert norm.name == "(the model)"
    assert norm.x_type == norm.y_type == norm.weight.type == "bfloat16"
    assert all(error <= norm.bounds[name] for name, error in norm.errors.items()), norm


def test_axes(untimed):
    def function(x):
        both = linen.LayerNorm(reduction_axes=(-1, 0), feature_axes=(0, 1))(x)
        first = linen.RMSNorm(reduction_axes=0, feature_axes=0)(both)
        return linen.LayerNorm(reduction_axes=(0, 1), feature_axes=-1)(first)

    x = rows(5, COLS)
    both, first, unlike = ours.inspect(bound(Linen(function), x), x).norms
    assert both.normalized_shape == (5, COLS)
    assert first.normalized_shape == (5,)
    for norm in (both, first):
        assert all(error < 5 for error in norm.errors.values()), norm
    assert unlike.errors == {}  # the formula has no weight of its own axes
    assert unlike.weight is not None


def test_the_part_that_is_judged_has_whole_rows(monkeypatch, untimed):
    norm, x = linen.LayerNorm(reduction_axes=0, feature_axes=0), rows(5, COLS)
    monkeypatch.setattr(measure, "MOST_ELEMENTS", 5 * 3)
    (found,) = ours.inspect(norm.bind(norm.init(jax.random.key(0), x)), x).norms
    assert found.rows.count == 3
    assert found.errors["dweight"] < 5


def test_masks_and_other_arguments_are_counted_but_not_judged(untimed):
    model = bound(Linen(lambda x: linen.LayerNorm()(x, mask=x > 0)), rows(5, COLS))
    (norm,) = ours.inspect(model, rows(5, COLS)).norms
    assert (norm.calls, norm.errors, norm.forward) == (1, {}, None)


def test_other_classes_are_told_and_not_judged(untimed):
    class PairNorm(linen.Module):
        def __call__(self, x):
            return x, x[0]

    def function(x):
        x, _ = PairNorm(name="pair")(linen.GroupNorm(2, name="group")(x))
        return linen.LayerNorm(name="last")(x=x)

    group, pair, last = ours.inspect(bound(Linen(function), rows(5, COLS)), rows(5, COLS)).norms
    assert group.convert == pair.convert == "no: another class than Flax's LayerNorm and RMSNorm"
    assert group.errors == pair.errors == {}
    assert group.weight is not None
    assert last.errors["dx"] < 5


def test_a_subclass_that_calls_its_base_class_is_one_call(untimed):
    class DoubledNorm(nnx.LayerNorm):
        def __call__(self, x):
            return 2 * super().__call__(x)

    model = NNX(lambda self, x: self.doubled(self.first(x)),
                doubled=DoubledNorm(COLS, rngs=nnx.Rngs(0)))  # fmt: skip
    first, doubled = ours.inspect(model, rows(5, COLS)).norms
    assert (first.calls, doubled.calls, doubled.errors) == (1, 1, {})
    assert doubled.convert.startswith("no: ")


OUTPUTS = {
    "nested": (lambda y: ([y, {"y": (y, None)}], 3), "the output"),
    "none": (lambda y: None, "random"),
    "integers": (lambda y: y.argmax(-1), "random"),
    "stopped": (jax.lax.stop_gradient, "random"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_gradients_come_from_whatever_floating_point_outputs_there_are(name, untimed):
    function, gradient = OUTPUTS[name]
    model = bound(Linen(lambda x: function(linen.LayerNorm()(x))), rows(5, COLS))
    (norm,) = ours.inspect(model, rows(5, COLS)).norms
    assert norm.gradient == gradient
    assert norm.errors["dx"] < 5


@pytest.mark.parametrize("shape", [(COLS,), (0, COLS)])
def test_few_rows(shape, untimed):
    norm = linen.LayerNorm()
    model = norm.bind(norm.init(jax.random.key(0), rows(2, COLS)))
    (found,) = ours.inspect(model, rows(*shape)).norms
    assert found.x_shape == shape
    assert found.rows.count == (0 if 0 in shape else 1)


def test_rows_that_are_not_finite(untimed):
    x = rows(5, COLS)
    x[1, 2] = math.nan
    (norm,) = ours.inspect(make_one(x), x).norms
    assert norm.errors["y"] < 5


def make_one(x):
    return bound(Linen(lambda x: linen.LayerNorm()(x)), x)


def test_other_types_than_floating_point_are_not_judged(untimed):
    x = rows(5, COLS).astype(np.int32)
    norm = linen.LayerNorm()
    (found,) = ours.inspect(norm.bind(norm.init(jax.random.key(0), x)), x).norms
    assert found.x_type == "int32"
    assert found.errors == {}


# times


@in_both
def test_ours_is_what_is_timed_as_ours(kind, monkeypatch):
    """Of the norms by themselves and of the model, forward and backward; `own` never runs ours."""
    module = ours_in_linen if kind == "linen" else ours_in_nnx
    ran, timed = [], {}
    for name in ("LayerNorm", "RMSNorm"):
        cls = getattr(module, name)

        def call(self, x, *, name=name, own=cls.__call__):
            ran.append(name)
            return own(self, x)

        monkeypatch.setattr(cls, "__call__", linen.compact(call) if kind == "linen" else call)

    def medians(calls, *, around, seconds):
        for which, each in calls.items():
            ran.clear()
            with around(which):
                each()
            timed.setdefault(which, []).append(list(ran))
        return {"own": 3.0, "ours": 1.0}

    monkeypatch.setattr(measure, "medians", medians)
    report = ours.inspect(make(kind), rows(5, COLS))
    first, second = ["LayerNorm"], ["RMSNorm"]
    every = ["LayerNorm", "LayerNorm", "RMSNorm"]
    assert timed == {
        "own": [[]] * 6,
        "ours": [first, first, second, second, every, every],
    }
    assert report.training.gain == 3.0


def test_the_inputs_are_no_constants_of_what_is_timed(monkeypatch):
    given_to = []

    def medians(calls, given, seconds):
        given_to.append(given)
        return dict.fromkeys(("own", "ours"), 1.0)

    monkeypatch.setattr(timing, "_medians", medians)
    x = rows(5, COLS)
    model = bound(Linen(lambda x, n, scale: n * scale * linen.LayerNorm()(x)), x, 2, scale=1.5)
    ours.inspect(model, x, 2, scale=1.5)
    *_, (trained, arrays), _ = given_to
    assert [each.shape for each in trained] == [(COLS,), (COLS,)]
    assert [each.shape for each in arrays] == [(5, COLS)]


# no trace


def state_of(model):
    variables = model.variables if isinstance(model, linen.Module) else nnx.state(model)
    return [
        np.asarray(jax.random.key_data(each) if jnp.issubdtype(each.dtype, jax.dtypes.prng_key)
                   else each).copy()
        for each in jax.tree.leaves(variables)
    ]  # fmt: skip


def assert_same(before, after):
    for was, now in zip(before, after, strict=True):
        np.testing.assert_array_equal(was, now)


class Statistics(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.BatchNorm(use_running_average=not train)(x)
        return linen.LayerNorm()(linen.Dropout(0.5, deterministic=not train)(x))


def test_a_bound_module_is_left_as_it_was():
    x = rows(5, COLS)
    model = bound(Statistics(), x, False, mutable=["batch_stats"])
    before = state_of(model)
    batch, layer = ours.inspect(model, x, True).norms
    assert (batch.calls, layer.calls) == (1, 1)
    assert_same(before, state_of(model))
    model(x, True)
    with pytest.raises(AssertionError):  # what a call of the model itself changes
        assert_same(before, state_of(model))


class Count(nnx.Variable):
    """A number that a model changes."""


def test_each_run_of_a_module_of_nnx_starts_from_the_same_state(monkeypatch, untimed):
    seen = []
    monkeypatch.setattr(measure, "fill", lambda entry, call: seen.append(call))

    def function(self, x):
        self.count[...] += 1
        return self.first(x) * self.count[...]

    for start in (0, 2):
        ours.inspect(NNX(function, count=Count(jnp.array(start))), rows(5, COLS))
    np.testing.assert_array_equal(seen[1].dy, 3 * seen[0].dy)


def test_a_module_of_nnx_is_left_as_it_was():
    def function(self, x):
        self.count[...] += 1
        return self.first(self.dropout(self.batch(x)))

    model = NNX(function, count=Count(jnp.array(0)), dropout=nnx.Dropout(0.5, rngs=nnx.Rngs(1)),
                batch=nnx.BatchNorm(COLS, rngs=nnx.Rngs(2)))  # fmt: skip
    before, x = state_of(model), rows(5, COLS)
    batch, layer = ours.inspect(model, x).norms
    assert (batch.calls, layer.calls) == (1, 1)
    assert_same(before, state_of(model))
    model(x)
    with pytest.raises(AssertionError):
        assert_same(before, state_of(model))


class InheritedNorm(nnx.LayerNorm):
    """Has no `__call__` of its own."""


@pytest.mark.parametrize("raises", [False, True])
def test_classes_are_left_as_they_were(raises, untimed):
    def function(self, x):
        y = self.inherited(self.first(x))
        if raises:
            raise KeyError("no such token")
        return y

    before = nnx.LayerNorm.__call__
    model = NNX(function, inherited=InheritedNorm(COLS, rngs=nnx.Rngs(0)))
    if raises:
        with pytest.raises(RuntimeError, match=r"NNX raised KeyError .* after 2 calls .* token"):
            ours.inspect(model, rows(5, COLS))
    else:
        assert [each.calls for each in ours.inspect(model, rows(5, COLS)).norms] == [1, 1]
    assert nnx.LayerNorm.__call__ is before
    assert "__call__" not in vars(InheritedNorm)


# transformations


class Block(linen.Module):
    @linen.compact
    def __call__(self, x, _=None):
        return linen.Dense(COLS)(linen.LayerNorm(name="norm")(x)), None


EACH = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}

LIFTED = {
    "jit": (linen.jit, {}),
    "scan": (linen.scan, {**EACH, "length": 3}),
    "remat": (linen.remat, {}),
    "vmap": (linen.vmap, EACH),
}


@pytest.mark.parametrize("name", LIFTED)
def test_lifted_modules_are_measured_or_named(name, untimed):
    lift, options = LIFTED[name]
    lifted = lift(Block, **options)

    def function(x, alone):
        y = lifted(name="block")(x, None)[0]
        return y if alone else linen.LayerNorm(name="last")(y)

    x = rows(5, COLS)
    report = ours.inspect(bound(Linen(function), x, False), x, False)
    inner, *last = report.norms
    if name in ("jit", "scan"):
        assert (inner.name, inner.calls) == ("block.norm", 3 if name == "scan" else 1)
        assert inner.errors["dx"] < 5
        assert [each.name for each in last] == ["last"]
        return
    assert inner.name == "last"
    assert report.notes[0].endswith("which hide their numbers: block.norm")
    with pytest.raises(ValueError, match=r"only inside of transformations .*: block.norm; pass"):
        ours.inspect(bound(Linen(function), x, True), x, True)


def test_a_compiled_part_keeps_nothing_of_what_ran_in_it():
    """Flax keeps the program of `linen.jit`, so no gradient may be traced through it."""
    block = linen.jit(Block)
    model = bound(Linen(lambda x: block(name="block")(x)[0]), rows(5, COLS))
    expected = model(rows(5, COLS))
    report = ours.inspect(model, rows(5, COLS))
    assert report.norms[0].gradient == "the output"
    assert report.training is not None
    np.testing.assert_array_equal(model(rows(5, COLS)), expected)


def call(norm, x):
    return norm(x)


@nnx.vmap(in_axes=0, out_axes=0)
def make_norm(rngs):
    return nnx.LayerNorm(COLS, rngs=rngs)


OF_NNX = {
    "jit": lambda self, x: nnx.jit(call)(self.first, x),
    "remat": lambda self, x: nnx.remat(call)(self.first, x),
    "scan": lambda self, x: nnx.scan(
        lambda x, norm: norm(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
    )(x, self.stacked),
}


@pytest.mark.parametrize("name", OF_NNX)
def test_transformed_modules_of_nnx_are_named(name):
    inner, x = OF_NNX[name], rows(5, COLS)
    parts = {"stacked": make_norm(nnx.Rngs(0).split(3))} if name == "scan" else {}
    report = ours.inspect(NNX(lambda self, x: self.second(inner(self, x)), **parts), x)
    assert [each.name for each in report.norms] == ["second"]
    assert report.notes[0].endswith("which hide their numbers: a LayerNorm")
    assert report.training is not None
    if name != "jit":  # once is enough
        return
    with pytest.raises(ValueError, match="only inside of transformations"):
        ours.inspect(NNX(inner, **parts), x)


def test_inside_of_jit_is_said_clearly():
    model = NNX(lambda self, x: self.first(x))
    inspect = nnx.jit(lambda model, x: ours.inspect(model, x).share)
    with pytest.raises(ValueError, match=r"only inside of transformations such as .* nnx.jit"):
        inspect(model, rows(5, COLS))


# input that is wrong


@pytest.mark.parametrize(
    ("make_model", "error", "words"),
    [
        (lambda x: "model", TypeError, "of type str, expected a flax.nnx.Module or a bound"),
        (lambda x: linen.LayerNorm(), TypeError, r"not bound to its variables: .*bind"),
        (lambda x: bound(linen.Dense(3), x), ValueError, "Dense called no norm"),
        (lambda x: nnx.Linear(COLS, 3, rngs=nnx.Rngs(0)), ValueError, "Linear called no norm"),
        (lambda x: bound(Linen(in_linen), x[:, :3]), RuntimeError, "raised .* after 0 calls"),
    ],
)  # fmt: skip
def test_bad_input_is_said_clearly(make_model, error, words):
    x = rows(5, COLS)
    with pytest.raises(error, match=words):
        ours.inspect(make_model(x), x)


def test_without_the_random_numbers_that_it_needs():
    x = rows(5, COLS)
    model = bound(Statistics(), x, False)
    unbound, variables = model.unbind()
    with pytest.raises(RuntimeError, match=r'InvalidRngError .* needs PRNG for "dropout"'):
        ours.inspect(unbound.bind(variables, mutable=["batch_stats"]), x, True)


def test_a_backward_that_raises_is_noted(untimed):
    @jax.custom_vjp
    def wrong(x):
        return x

    def backward(rest, dy):
        raise KeyError("no backward")

    wrong.defvjp(lambda x: (x, None), backward)
    model = bound(Linen(lambda x: wrong(linen.LayerNorm()(x))), rows(5, COLS))
    report = ours.inspect(model, rows(5, COLS))
    assert "backward raised KeyError: 'no backward'" in report.notes[0]
    assert report.norms[0].gradient == "random"


# how it is shown


def test_the_text_has_a_line_for_each_norm():
    report = ours.inspect(make("nnx"), rows(5, COLS))
    for each in report.norms:
        assert sum(line.startswith(each.name) for line in str(report).splitlines()) >= 2
    assert "convert takes: 2" in str(report)
