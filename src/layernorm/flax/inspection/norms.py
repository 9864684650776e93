"""The norms of a model: their first calls, and how far these are from float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import Array

from layernorm.flax.inspection.runners import NNX, OURS, Intercepted, Linen
from layernorm.flax.normalize import axes_of
from layernorm.inspection import measure
from layernorm.inspection.findings import Norm
from layernorm.inspection.messages import dy_is_random


@dataclass
class Watched:
    """A norm: what the report says of it, and its first call.

    Attributes:
        apply: the norm as a function of its variables and x.
        ours: the same, by our class; None if that cannot be.
        settings: the module, for its attributes.
        seconds: that a call takes by itself.
    """

    entry: Norm
    apply: Callable[[Any, Any], Any]
    ours: Callable[[Any, Any], Any] | None
    settings: Any
    variables: Any
    x: Any
    y: Any
    is_plain: bool
    dy: Any = None
    seconds: float | None = None


def record(watched: dict[str, Watched], traced: set[str], call: Intercepted) -> Any:
    """Make the call; note it, with its arrays if it is the first."""
    y = call.original()
    given = [*call.args, *call.keywords.values()]
    x = given[0] if given else None
    if call.is_copy or isinstance(x, jax.core.Tracer):  # scan calls again, with numbers
        traced.add(call.name)
        return y
    if call.name not in watched:
        kind = type(call.module)
        entry = Norm(call.name, f"{kind.__module__}.{kind.__qualname__}")
        if kind in OURS.values():
            entry.convert = "ours"
        elif kind in OURS:
            entry.convert = "yes"
        else:
            entry.convert = "no: another class than Flax's LayerNorm and RMSNorm"
        if isinstance(x, Array) and isinstance(y, Array):
            entry.x_shape, entry.x_type, entry.y_type = x.shape, x.dtype.name, y.dtype.name
        is_plain = len(given) == 1 and entry.x_shape != () and entry.x_shape == y.shape
        watched[call.name] = Watched(
            entry, call.apply, call.ours, call.module, call.variables, x, y, is_plain
        )
    watched[call.name].entry.calls += 1
    return y


def differentiate(
    run: Linen | NNX,
    watched: dict[str, Watched],
    inputs: Any,
    keywords: Any,
    output: Any,
    notes: list[str],
) -> None:
    """Find the gradients that reach the results of the first calls."""
    plain = {name: each for name, each in watched.items() if each.is_plain}

    def outputs(added: dict[str, Array]) -> list[Array]:
        waiting = dict(added)

        def add(call: Intercepted) -> Any:
            y = call.original()
            return y + waiting.pop(call.name) if call.name in waiting else y

        return arrays_of(run(run.variables, inputs, keywords, add))

    try:
        zeros = {name: jnp.zeros_like(each.y) for name, each in plain.items()}
        with jax.disable_jit():  # or a program with what was added would be kept, and run later
            found = jax.vjp(outputs, zeros)[1](random_like(arrays_of(output)))[0]
    except Exception as error:
        notes.append(dy_is_random(error))
        found = {}
    for name, each in plain.items():
        has_gradient = name in found and bool(jnp.any(found[name] != 0))
        each.entry.gradient = "the output" if has_gradient else "random"
        each.dy = found[name] if has_gradient else random_like([each.y])[0]


def judge(watched: Watched) -> None:
    """Measure the first call, on its first samples."""
    entry, settings = watched.entry, watched.settings
    weight, bias = (_named(watched.variables, name) for name in ("scale", "bias"))
    axes = _axes(watched)
    if axes is None:
        measure.fill_parameters(entry, weight, bias)
        return
    part = measure.part_that_fits(entry.x_shape, axes)
    x, y, dy = (each[part] for each in (watched.x, watched.y, watched.dy))
    dvariables, dx = jax.vjp(watched.apply, watched.variables, x)[1](dy)
    shape = [entry.x_shape[axis] for axis in axes]
    of_parameters = (weight, bias, *(_named(dvariables, name) for name in ("scale", "bias")))
    weight, bias, dweight, dbias = (
        None if each is None else each.reshape(shape) for each in of_parameters
    )
    is_centered = isinstance(settings, linen.LayerNorm | nnx.LayerNorm)
    measure.fill(
        entry,
        measure.NumpyCall(
            computes="layer_norm" if is_centered else "rms_norm",
            x=_to_numpy(x),
            y=_to_numpy(y),
            axis=axes,
            eps=settings.epsilon,
            weight=weight,
            bias=bias,
            dy=_to_numpy(dy),
            dx=_to_numpy(dx),
            dweight=dweight,
            dbias=dbias,
        ),
    )


def _axes(watched: Watched) -> tuple[int, ...] | None:
    """Return the normalized axes of a call whose definition is known."""
    settings = watched.settings
    known = type(settings) in (*OURS, *OURS.values())
    if not known or not watched.is_plain or settings.axis_name is not None:
        return None
    dims = len(watched.entry.x_shape)
    axes, features = (
        axes_of(each, dims) for each in (settings.reduction_axes, settings.feature_axes)
    )
    return axes if axes == features else None


def arrays_of(output: Any) -> list[Array]:
    """Return the floating-point arrays in what a model returns."""
    leaves = jax.tree.leaves(output)
    return [e for e in leaves if isinstance(e, Array) and jnp.issubdtype(e.dtype, jnp.floating)]


def random_like(arrays: Sequence[Array]) -> list[Array]:
    """Return normal numbers of the arrays' shapes and types, always the same."""
    key = jax.random.key(0)
    return [jax.random.normal(key, each.shape, jnp.float32).astype(each.dtype) for each in arrays]


def _named(variables: Any, name: str) -> Any:
    """Return the parameter of that name, in NumPy; None if there is none."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        keys = [str(getattr(each, "key", getattr(each, "name", ""))) for each in path]
        if name in keys:
            return _to_numpy(leaf)
    return None


def _to_numpy(array: Any) -> Any:
    return jax.device_get(array)
