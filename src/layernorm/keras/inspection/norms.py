"""The norms of a model: their first calls, and how far these are from float64."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from layernorm.inspection import measure
from layernorm.inspection.findings import Norm
from layernorm.inspection.messages import dy_is_random
from layernorm.keras.conversion import kind_of, norms_of
from layernorm.keras.inspection.backend import (
    BACKEND,
    eager,
    gradients_of,
    is_floating,
    random_like,
    to_array,
    to_tensor,
    type_of,
)
from layernorm.keras.layers import LayerNormalization, RMSNormalization

_LAYER_NORMS = (keras.layers.LayerNormalization, LayerNormalization)


_RMS_NORMS = (keras.layers.RMSNormalization, RMSNormalization)


@dataclass(eq=False)
class Watched:
    """A norm: its entry in the report, its first call, and the seconds that it takes by itself."""

    entry: Norm
    layer: Any
    x: Any = None
    y: Any = None
    dy: Any = None
    seconds: float | None = None

    @property
    def to_convert(self) -> bool:
        """Whether `convert` would take it."""
        return self.entry.convert == "yes"


class Runner:
    """Calls the model as a function of its weights and of the arrays among its inputs."""

    def __init__(self, model: Any, inputs: Any, keywords: Any) -> None:
        self.model = model
        self._structure = (inputs, keywords)
        self._given = [to_tensor(each) for each in keras.tree.flatten(self._structure)]
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
        return [each for each in keras.tree.flatten(outputs) if is_floating(each)]


def norms_in(model: Any) -> list[Watched]:
    """Return the layers that are norms, or look like some."""
    paths = {id(layer): (path, reason) for path, layer, reason in norms_of(model, undo=False)}
    watched = []
    for layer in model._flatten_layers():
        kind = kind_of(type(layer))
        if isinstance(layer, LayerNormalization | RMSNormalization):
            watched.append(Watched(Norm(layer.path or layer.name, kind, convert="ours"), layer))
        elif id(layer) in paths:
            path, reason = paths[id(layer)]
            convert = f"no: {reason}" if reason else "yes"
            watched.append(Watched(Norm(path, kind, convert=convert), layer))
    return watched


@contextlib.contextmanager
def calls_replaced(
    watched: Sequence[Watched], instead: Callable[[Watched, Any, Any, Any], Any]
) -> Iterator[None]:
    """Have calls of the norms call `instead`, with the norm's own `call` and the arguments."""
    before = [vars(each.layer).get("call") for each in watched]
    for each in watched:
        own = each.layer.call

        def call(*args: Any, norm: Watched = each, own: Any = own, **keywords: Any) -> Any:
            return instead(norm, own, args, keywords)

        vars(each.layer)["call"] = functools.wraps(own)(call)
    try:
        yield
    finally:
        for each, kept in zip(watched, before, strict=True):
            del vars(each.layer)["call"]
            if kept is not None:
                vars(each.layer)["call"] = kept


def record(called: list[Watched], watched: Watched, own: Any, args: Any, keywords: Any) -> Any:
    """Make the call; note it, with its arrays if it is the first."""
    y = own(*args, **keywords)
    watched.entry.calls += 1
    if watched.entry.calls == 1:
        called.append(watched)
    given = (*args, *keywords.values())
    x: Any = given[0] if given else None
    if watched.entry.calls == 1 and is_floating(x) and is_floating(y):
        watched.entry.x_shape = tuple(x.shape)
        watched.entry.x_type, watched.entry.y_type = type_of(x), type_of(y)
        if not any(ops.is_tensor(each) for each in given[1:]) and x.shape == y.shape:
            watched.x, watched.y = x, y
    return y


def differentiate(
    run: Runner, called: Sequence[Watched], dys: Sequence[Any], notes: list[str]
) -> None:
    """Find the gradients that reach the results of the first calls."""
    plain = [each for each in called if each.y is not None]
    if BACKEND == "numpy":
        notes.append("Keras has no gradients on the NumPy backend")
        return

    def outputs(*added: Any) -> list[Any]:
        waiting = dict(zip(plain, added, strict=True))

        def add(watched: Watched, own: Any, args: Any, keywords: Any) -> Any:
            y = own(*args, **keywords)
            return y + waiting.pop(watched) if watched in waiting else y

        with calls_replaced(plain, add):
            return run(run.weights, run.arrays)

    try:
        with eager():
            found = gradients_of(outputs, [ops.zeros_like(each.y) for each in plain], dys)
    except Exception as error:
        notes.append(dy_is_random(error))
        found = [None] * len(plain)
    for each, dy in zip(plain, found, strict=True):
        has_gradient = dy is not None and bool(ops.any(ops.not_equal(dy, 0)))
        each.entry.gradient = "the output" if has_gradient else "random"
        each.dy = dy if has_gradient else random_like(each.y)


def judge(watched: Watched) -> None:
    """Measure the first call, on its first samples."""
    layer, entry = watched.layer, watched.entry
    variables = [_variable(layer, "gamma", "scale"), _variable(layer, "beta")]
    weight, bias = (None if each is None else to_array(each) for each in variables)
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
        found = gradients_of(lambda x, *weights: [applied(layer, x, weights)], [x, *values], [dy])
        trained = [id(each) for each in layer.trainable_variables]
        of_variable = dict(zip(trained, found[1:], strict=True))
        gradients = {"dy": dy, "dx": found[0]}
        for name, variable in zip(("dweight", "dbias"), variables, strict=True):
            gradients[name] = of_variable.get(id(variable))
    measure.fill(
        entry,
        measure.NumpyCall(
            computes="layer_norm" if type(layer) in _LAYER_NORMS else "rms_norm",
            x=to_array(x),
            y=to_array(y),
            axis=axes,
            eps=float(layer.epsilon),
            weight=weight,
            bias=bias,
            **{name: to_array(each) for name, each in gradients.items() if each is not None},
        ),
    )


def _variable(layer: Any, *names: str) -> Any:
    """Return the layer's variable with one of the names; None if there is none."""
    attributes = (getattr(layer, name, None) for name in names)  # `scale` may be an option
    return next((each for each in attributes if isinstance(each, keras.Variable)), None)


def applied(layer: Any, x: Any, weights: Sequence[Any]) -> Any:
    """Return what the layer makes of x with other weights."""
    others = [each.value for each in layer.non_trainable_variables]
    return layer.stateless_call(list(weights), others, x)[0]
