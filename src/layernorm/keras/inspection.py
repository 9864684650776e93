"""Finds out what the norms of a Keras model do, with the user's data."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from layernorm.inspection import measure
from layernorm.inspection.findings import Norm, Times
from layernorm.inspection.report import Report
from layernorm.keras.conversion import kind_of, norms_of, swap, swap_back
from layernorm.keras.layers import LayerNormalization, RMSNormalization

_BACKEND = keras.backend.backend()

_LAYER_NORMS = (keras.layers.LayerNormalization, LayerNormalization)
_RMS_NORMS = (keras.layers.RMSNormalization, RMSNormalization)

_OF_A_NORM = 0.05
_OF_THE_MODEL = 2.0
"""Seconds to time each of them for."""


def inspect(model: Any, *inputs: Any, **keywords: Any) -> Report:
    """Run `model` on the inputs, and report on each norm in it: errors, times, ranges.

    A norm is a layer that `layernorm.keras.convert` would take or report as left, or one of ours.
    The first call of each is recorded, with the gradient that reaches its result from random
    gradients of the model's outputs, and judged in float64 by `layernorm.accuracy`; the errors are
    in ulp. Then the call is timed, compiled as `predict` would, as it is and with our layer, and so
    is the whole model. A norm's share of the forward is the time of its calls by themselves over
    that of the model. On the NumPy backend there are no gradients.

    The model runs some dozens of times, with training=False unless the keywords say otherwise, and
    is left as it was: weights, classes, and functions that Keras has traced. Not while another
    thread runs it.

    Args:
        model: a Keras model or layer that is built, with at least one norm.
        inputs, keywords: those of a call of the model: arrays, or tensors of the backend.
    Returns: a `layernorm.inspection.report.Report`, to print or to save as a page.
    Raises: TypeError if model is not a layer; ValueError if it is not built, has no norm, or called
        none; RuntimeError if the model raises, from what it raised.
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            f"model is of type {type(model).__name__}, expected a Keras model or layer: "
            "pass the model"
        )
    if not model.built:
        raise ValueError(f"{type(model).__name__} is not built: call it once before")
    watched = _norms(model)
    if not watched:
        raise ValueError(
            f"{type(model).__name__} has no norm: no LayerNormalization, RMSNormalization or layer "
            "whose class is named after a norm"
        )
    run = _Runner(model, inputs, keywords)
    called: list[_Watched] = []
    try:
        with _eager(), _calls_replaced(watched, functools.partial(_record, called)):
            outputs = run(run.weights, run.arrays)
    except Exception as error:
        raise RuntimeError(
            f"{type(model).__name__} raised {type(error).__name__} on these inputs, after "
            f"{sum(each.entry.calls for each in called)} calls of norms: {error}"
        ) from error
    if not called:
        names = ", ".join(each.entry.name for each in watched)
        raise ValueError(f"{type(model).__name__} called none of its norms, {names}")
    return _report(run, watched, called, outputs)


@dataclass(eq=False)
class _Watched:
    """A norm: its entry in the report, and its first call."""

    entry: Norm
    layer: Any
    x: Any = None
    y: Any = None
    dy: Any = None

    @property
    def can_be_swapped(self) -> bool:
        return self.entry.convert == "yes"


class _Runner:
    """Calls the model as a function of its weights and of the arrays among its inputs."""

    def __init__(self, model: Any, inputs: Any, keywords: Any) -> None:
        self.model = model
        self._structure = (inputs, keywords)
        self._given = [_to_tensor(each) for each in keras.tree.flatten(self._structure)]
        self._is_array = [keras.ops.is_tensor(each) for each in self._given]
        self.arrays = [e for e, is_one in zip(self._given, self._is_array, strict=True) if is_one]
        self.weights = [each.value for each in model.trainable_variables]
        self.is_training = bool(keywords.get("training"))

    def __call__(self, weights: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        """Return the floating-point tensors among the outputs."""
        following = iter(arrays)
        given = [
            next(following) if is_array else each
            for each, is_array in zip(self._given, self._is_array, strict=True)
        ]
        inputs, keywords = keras.tree.pack_sequence_as(self._structure, given)
        others = [each.value for each in self.model.non_trainable_variables]
        outputs, _ = self.model.stateless_call(list(weights), others, *inputs, **keywords)
        return [each for each in keras.tree.flatten(outputs) if _is_floating(each)]


def _report(
    run: _Runner, watched: Sequence[_Watched], called: Sequence[_Watched], outputs: Any
) -> Report:
    report = Report(
        model=kind_of(type(run.model)),
        framework=f"Keras {keras.__version__} on {_BACKEND}",
        device=str(getattr(outputs[0], "device", "cpu")) if outputs else "cpu",
        mode="training" if run.is_training else "inference",
        norms=[each.entry for each in called] + [e.entry for e in watched if not e.entry.calls],
    )
    dys = [_random_like(each) for each in outputs]
    _differentiate(run, called, dys, report.notes)
    for each in called:
        _judge(each)
        _time(each)
    if not any(each.can_be_swapped for each in called):
        report.notes.append("no norm is left to convert, so nothing was compared by time")
        return report
    report.forward = _compare(run, (run.weights, run.arrays), called, _OF_THE_MODEL)
    if dys and run.weights and _BACKEND != "numpy":

        def backward(weights: Any, arrays: Any, dys: Any) -> Any:
            return _gradients(lambda *given: run(given, arrays), weights, dys)

        given = (run.weights, run.arrays, dys)
        report.training = _compare(backward, given, called, _OF_THE_MODEL, needs_gradients=True)
    for each in called:
        if each.entry.forward is not None:
            each.entry.share = each.entry.calls * each.entry.forward.own / report.forward.own
    shares = [each.entry.share for each in called if each.entry.share is not None]
    report.share = sum(shares) if shares else None
    return report


# ---- the norms, one by one


def _norms(model: Any) -> list[_Watched]:
    paths = {id(layer): (path, reason) for path, layer, reason in norms_of(model, undo=False)}
    watched = []
    for layer in model._flatten_layers():
        kind = kind_of(type(layer))
        if isinstance(layer, LayerNormalization | RMSNormalization):
            watched.append(_Watched(Norm(layer.path or layer.name, kind, convert="ours"), layer))
        elif id(layer) in paths:
            path, reason = paths[id(layer)]
            convert = f"no: {reason}" if reason else "yes"
            watched.append(_Watched(Norm(path, kind, convert=convert), layer))
    return watched


@contextlib.contextmanager
def _calls_replaced(
    watched: Sequence[_Watched], instead: Callable[[_Watched, Any, Any, Any], Any]
) -> Iterator[None]:
    """Have calls of the norms call `instead`, with the norm's own `call` and the arguments."""
    before = [vars(each.layer).get("call") for each in watched]
    for each in watched:
        own = each.layer.call

        def call(*args: Any, norm: _Watched = each, own: Any = own, **keywords: Any) -> Any:
            return instead(norm, own, args, keywords)

        vars(each.layer)["call"] = functools.wraps(own)(call)
    try:
        yield
    finally:
        for each, kept in zip(watched, before, strict=True):
            del vars(each.layer)["call"]
            if kept is not None:
                vars(each.layer)["call"] = kept


def _record(called: list[_Watched], watched: _Watched, own: Any, args: Any, keywords: Any) -> Any:
    """Make the call; note it, with its arrays if it is the first."""
    y = own(*args, **keywords)
    watched.entry.calls += 1
    if watched.entry.calls == 1:
        called.append(watched)
    given = (*args, *keywords.values())
    x: Any = given[0] if given else None
    if watched.entry.calls == 1 and _is_floating(x) and _is_floating(y):
        watched.entry.x_shape = tuple(x.shape)
        watched.entry.x_type, watched.entry.y_type = _type_of(x), _type_of(y)
        if not any(ops.is_tensor(each) for each in given[1:]) and x.shape == y.shape:
            watched.x, watched.y = x, y
    return y


def _differentiate(
    run: _Runner, called: Sequence[_Watched], dys: Sequence[Any], notes: list[str]
) -> None:
    """Find the gradients that reach the results of the first calls."""
    plain = [each for each in called if each.y is not None]
    if _BACKEND == "numpy":
        notes.append("Keras has no gradients on the NumPy backend")
        return

    def outputs(*added: Any) -> list[Any]:
        waiting = dict(zip(plain, added, strict=True))

        def add(watched: _Watched, own: Any, args: Any, keywords: Any) -> Any:
            y = own(*args, **keywords)
            return y + waiting.pop(watched) if watched in waiting else y

        with _calls_replaced(plain, add):
            return run(run.weights, run.arrays)

    try:
        with _eager():
            found = _gradients(outputs, [ops.zeros_like(each.y) for each in plain], dys)
    except Exception as error:
        notes.append(f"the gradients of norms are of random dy: the backward raised {error}")
        found = [None] * len(plain)
    for each, dy in zip(plain, found, strict=True):
        has_gradient = dy is not None and bool(ops.any(ops.not_equal(dy, 0)))
        each.entry.gradient = "the output" if has_gradient else "random"
        each.dy = dy if has_gradient else _random_like(each.y)


def _judge(watched: _Watched) -> None:
    """Measure the first call, on its first samples."""
    layer, entry = watched.layer, watched.entry
    variables = [_variable(layer, "gamma", "scale"), _variable(layer, "beta")]
    weight, bias = (None if each is None else _to_array(each) for each in variables)
    axes = layer.axis if isinstance(getattr(layer, "axis", None), list | tuple | int) else None
    known = type(layer) in (*_LAYER_NORMS, *_RMS_NORMS) and not getattr(layer, "rms_scaling", False)
    if watched.x is None or axes is None or not known:
        measure.fill_parameters(entry, weight, bias)
        return
    rank = len(entry.x_shape)
    axes = sorted(range(rank)[each] for each in ([axes] if isinstance(axes, int) else axes))
    part = measure.part_that_fits(entry.x_shape, axes)
    x, y = watched.x[part], watched.y[part]
    gradients: dict[str, Any] = {}
    if watched.dy is not None:
        dy = watched.dy[part]
        values = [each.value for each in layer.trainable_variables]
        found = _gradients(lambda x, *weights: [_applied(layer, x, weights)], [x, *values], [dy])
        trained = [id(each) for each in layer.trainable_variables]
        of_variable = dict(zip(trained, found[1:], strict=True))
        gradients = {"dy": dy, "dx": found[0]}
        for name, variable in zip(("dweight", "dbias"), variables, strict=True):
            gradients[name] = of_variable.get(id(variable))
    measure.fill(
        entry,
        measure.Call(
            computes="layer_norm" if type(layer) in _LAYER_NORMS else "rms_norm",
            x=_to_array(x),
            y=_to_array(y),
            axis=axes,
            eps=float(layer.epsilon),
            weight=weight,
            bias=bias,
            **{name: _to_array(each) for name, each in gradients.items() if each is not None},
        ),
    )


def _variable(layer: Any, *names: str) -> Any:
    """Return the layer's variable with one of the names; None if there is none."""
    attributes = (getattr(layer, name, None) for name in names)  # `scale` may be an option
    return next((each for each in attributes if isinstance(each, keras.Variable)), None)


def _applied(layer: Any, x: Any, weights: Sequence[Any]) -> Any:
    others = [each.value for each in layer.non_trainable_variables]
    return layer.stateless_call(list(weights), others, x)[0]


def _time(watched: _Watched) -> None:
    """Time a norm by itself, and ours in its place."""
    if not watched.can_be_swapped or watched.x is None:
        return
    layer = watched.layer
    weights = [each.value for each in layer.trainable_variables]

    def forward(x: Any, weights: Any) -> Any:
        return _applied(layer, x, weights)

    def training(x: Any, weights: Any, dy: Any) -> Any:
        return _gradients(lambda x, *given: [_applied(layer, x, given)], [x, *weights], [dy])

    watched.entry.forward = _compare(forward, (watched.x, weights), [watched], _OF_A_NORM)
    if watched.dy is not None:
        given = (watched.x, weights, watched.dy)
        watched.entry.training = _compare(
            training, given, [watched], _OF_A_NORM, needs_gradients=True
        )


def _compare(
    function: Any,
    given: Any,
    watched: Sequence[_Watched],
    seconds: float,
    *,
    needs_gradients: bool = False,
) -> Times:
    """Time a call, compiled, as it is and with our layers in the place of those watched."""

    def around(name: str) -> AbstractContextManager[object]:
        return _swapped(watched) if name == "ours" else nullcontext()

    compiled = {name: _compiled(function, needs_gradients) for name in ("own", "ours")}
    calls = {
        name: functools.partial(lambda call: _finished(call(*given)), call)
        for name, call in compiled.items()
    }
    return Times(**measure.medians(calls, around=around, seconds=seconds))


@contextlib.contextmanager
def _swapped(watched: Sequence[_Watched]) -> Iterator[None]:
    """Make the layers ours; what Keras has traced before stays as it is."""
    with contextlib.ExitStack() as back:
        for each in watched:
            if each.can_be_swapped:
                swap(each.layer)
                back.callback(swap_back, each.layer)
        yield


# ---- the backend


def _gradients(function: Callable[..., Any], given: Sequence[Any], dys: Sequence[Any]) -> list[Any]:
    """Return the gradients of the arguments of a function that returns a list."""
    framework = importlib.import_module(_BACKEND)
    if _BACKEND == "jax":
        return list(framework.vjp(function, *given)[1](list(dys)))
    if _BACKEND == "tensorflow":
        given = [framework.convert_to_tensor(each) for each in given]
        with framework.GradientTape() as tape:
            tape.watch(given)
            results = function(*given)
        return list(tape.gradient(results, given, output_gradients=list(dys)))
    leaves = [each.detach().requires_grad_() for each in given]
    with framework.enable_grad():
        results = function(*leaves)
    with_graph = [(y, dy) for y, dy in zip(results, dys, strict=True) if y.requires_grad]
    if not with_graph or not leaves:
        return [None] * len(leaves)
    results, dys = zip(*with_graph, strict=True)
    return list(framework.autograd.grad(results, leaves, dys, allow_unused=True))


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """Give the norms numbers, not tracers, and have no function of the model traced."""
    if _BACKEND == "jax":
        with importlib.import_module("jax").disable_jit():
            yield
    elif _BACKEND == "tensorflow":
        settings = importlib.import_module("tensorflow").config
        before = settings.functions_run_eagerly()
        settings.run_functions_eagerly(True)
        try:
            yield
        finally:
            settings.run_functions_eagerly(before)
    else:
        yield


def _compiled(function: Any, needs_gradients: bool) -> Any:
    """Return the function as `predict` would run it."""
    if _BACKEND == "jax":
        # Of the same function, JAX would run what it has traced with other layers.
        return importlib.import_module("jax").jit(lambda *given: function(*given))
    if _BACKEND == "tensorflow":
        return importlib.import_module("tensorflow").function(function, autograph=False)
    if _BACKEND == "torch" and not needs_gradients:
        return importlib.import_module("torch").no_grad()(function)
    return function


def _finished(results: Any) -> Any:
    """Wait for the results."""
    if _BACKEND == "jax":
        importlib.import_module("jax").block_until_ready(results)
    return results


def _to_tensor(given: Any) -> Any:
    kind = getattr(getattr(given, "dtype", None), "kind", "")
    return ops.convert_to_tensor(given) if kind in "biuf" and kind else given


def _random_like(given: Any) -> Any:
    return ops.cast(keras.random.normal(given.shape, dtype="float32", seed=0), given.dtype)


def _is_floating(given: Any) -> bool:
    return ops.is_tensor(given) and keras.backend.is_float_dtype(_type_of(given))


def _type_of(given: Any) -> str:
    return str(keras.backend.standardize_dtype(given.dtype))


def _to_array(given: Any) -> Any:
    array = ops.convert_to_numpy(given)
    if _type_of(given) != "bfloat16" or array.dtype.name == "bfloat16":
        return array
    # PyTorch's have become float32.
    return array.astype(importlib.import_module("ml_dtypes").bfloat16)
