"""Finds out what the norms of a Flax model do, with the user's data."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen, nnx
from jax import Array

from layernorm.flax import linen as ours_in_linen
from layernorm.flax import nnx as ours_in_nnx
from layernorm.flax.normalize import axes_of
from layernorm.inspection import measure
from layernorm.inspection.findings import Norm, Times
from layernorm.inspection.report import Report

_OURS: dict[type, Any] = {
    linen.LayerNorm: ours_in_linen.LayerNorm,
    linen.RMSNorm: ours_in_linen.RMSNorm,
    nnx.LayerNorm: ours_in_nnx.LayerNorm,
    nnx.RMSNorm: ours_in_nnx.RMSNorm,
}

_THE_MODEL = "(the model)"

_OF_A_NORM = 0.05
_OF_THE_MODEL = 2.0
"""Seconds to time each of them for."""


def inspect(model: Any, *inputs: Any, **keywords: Any) -> Report:
    """Run `model` on the inputs, and report on each norm in it: errors, times, ranges.

    A norm is a module whose class is named after one. The first call of each is recorded, with the
    gradient that reaches its result from random gradients of the model's outputs, and judged in
    float64 by `layernorm.accuracy`; the errors are in ulp. Then the call is timed, compiled, as it
    is and with our class, and so is the whole model. A norm's share of the forward is the time of
    its calls by themselves over that of the model.

    Where the report speaks of `convert`, which Flax has none of, "yes" is a norm of Flax's own two
    classes: `layernorm.flax` has classes of these names that take the same arguments.

    The model stays as it is: what runs are copies. Not while another thread runs a model of
    `flax.nnx`.

    Args:
        model: a `flax.nnx.Module`, or a `flax.linen.Module` that is bound to its variables:
            `model.bind(variables)`.
        inputs, keywords: those of a call of the model.
    Returns: a `layernorm.inspection.report.Report`, to print or to save as a page.
    Raises: TypeError if model is no such module; ValueError if it has no norm; RuntimeError if the
        model raises, from what it raised.
    """
    run = _runner(model)
    inputs, keywords = jax.tree.map(_to_array, (inputs, keywords))
    watched: dict[str, _Watched] = {}
    traced: set[str] = set()
    record = functools.partial(_record, watched, traced)
    try:
        with jax.disable_jit():  # numbers, not tracers
            output = run(run.variables, inputs, keywords, record)
    except Exception as error:
        raise RuntimeError(
            f"{type(model).__name__} raised {type(error).__name__} on these inputs, after "
            f"{sum(each.entry.calls for each in watched.values())} calls of norms: {error}"
        ) from error
    unseen = ", ".join(sorted(traced - watched.keys()))
    if not watched and unseen:
        raise ValueError(
            f"{type(model).__name__} called norms only inside of transformations as remat, vmap or "
            f"nnx.jit, which hide their numbers: {unseen}; pass the model without these"
        )
    if not watched:
        raise ValueError(f"{type(model).__name__} called no norm: no module named after one")
    report = Report(
        model=f"{type(model).__module__}.{type(model).__qualname__}",
        framework=f"Flax {flax.__version__}, JAX {jax.__version__}",
        device=jax.default_backend(),
        norms=[each.entry for each in watched.values()],
    )
    if unseen:
        report.notes.append(
            "not measured, because they run inside of transformations as remat, vmap or nnx.jit, "
            f"which hide their numbers: {unseen}"
        )
    _differentiate(run, watched, inputs, keywords, output, report.notes)
    for each in watched.values():
        _judge(each)
        _time(each)
    if any(each.ours is not None for each in watched.values()):
        _time_model(run, inputs, keywords, output, report)
    else:
        report.notes.append("no norm is left to convert, so nothing was compared by time")
    return report


@dataclass
class _Watched:
    """A norm: what the report says of it, and its first call.

    Attributes:
        apply: the norm as a function of its variables and x.
        ours: the same, by our class; None if that cannot be.
        settings: the module, for its attributes.
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


@dataclass
class _Call:
    """A call of a norm, as a runner sees it.

    Attributes:
        name: the module's path; its class if that is a transformation's copy of the module.
    """

    name: str
    is_copy: bool
    module: Any
    variables: Any
    args: tuple[Any, ...]
    keywords: dict[str, Any]
    original: Callable[[], Any]
    apply: Callable[[Any, Any], Any]
    ours: Callable[[Any, Any], Any] | None


# What is done in the place of a norm's call, whose result it returns.
_Intercept = Callable[[_Call], Any]


class _Linen:
    """Runs a bound module of `flax.linen`."""

    def __init__(self, model: Any) -> None:
        scope = model.scope
        self._rngs = {name: rng.as_jax_rng() for name, rng in scope.rngs.items()}
        self._mutable = scope.mutable
        self._module, self.variables = model.unbind()

    def __call__(self, variables: Any, args: Any, keywords: Any, intercept: _Intercept) -> Any:
        def interceptor(following: Any, args: Any, keywords: Any, context: Any) -> Any:
            module = context.module
            if context.method_name != "__call__" or not _is_norm(module):
                return following(*args, **keywords)
            of_norm = module.variables
            plain = module.clone(parent=None, name=None)
            cls = _OURS.get(type(module))
            replaced = None if cls is None else _with_arguments_of(module, cls)
            call = _Call(
                name=".".join(module.path) or _THE_MODEL,
                is_copy=False,
                module=module,
                variables=of_norm,
                args=args,
                keywords=keywords,
                original=functools.partial(following, *args, **keywords),
                apply=plain.apply,
                ours=None if replaced is None else replaced.apply,
            )
            return intercept(call)

        with linen.intercept_methods(interceptor):
            output, _ = self._module.apply(
                variables, *args, rngs=self._rngs, mutable=self._mutable or [], **keywords
            )
        return output


def _with_arguments_of(module: Any, cls: Any) -> Any:
    given = {
        each.name: getattr(module, each.name)
        for each in dataclasses.fields(module)
        if each.init and each.name not in ("parent", "name")
    }
    return cls(**given, parent=None)


class _NNX:
    """Runs copies of a module of `flax.nnx`."""

    def __init__(self, model: Any) -> None:
        self._graph, self.variables = nnx.split(nnx.clone(model))

    def __call__(self, variables: Any, args: Any, keywords: Any, intercept: _Intercept) -> Any:
        model = nnx.merge(self._graph, variables, copy=True)
        norms = {id(module): path for path, module in nnx.iter_modules(model) if _is_norm(module)}
        classes = {type(module) for _, module in nnx.iter_modules(model) if _is_norm(module)}

        running: list[int] = []

        def watched(original: Any, module: Any, args: Any, keywords: Any) -> Any:
            if id(module) in running:  # the norm has called that of its base class
                return original(module, *args, **keywords)
            path = norms.get(id(module), [f"a {type(module).__name__}"])
            cls = _OURS.get(type(module))
            call = _Call(
                name=".".join(map(str, path)) or _THE_MODEL,
                is_copy=id(module) not in norms,
                module=module,
                variables=nnx.state(module),
                args=args,
                keywords=keywords,
                original=functools.partial(original, module, *args, **keywords),
                apply=_applied(module, type(module)),
                ours=None if cls is None else _applied(module, cls),
            )
            running.append(id(module))
            try:
                return intercept(call)
            finally:
                running.pop()

        with contextlib.ExitStack() as back:
            for cls in classes:
                _watch_class(cls, watched, back)
            return model(*args, **keywords)


def _watch_class(cls: Any, watched: Callable[..., Any], back: contextlib.ExitStack) -> None:
    """Call `watched` in the place of the class's `__call__`, until `back` is closed."""
    original = cls.__call__
    if "__call__" in vars(cls):
        back.callback(setattr, cls, "__call__", original)
    else:
        back.callback(delattr, cls, "__call__")

    @functools.wraps(original)
    def call(module: Any, *args: Any, **keywords: Any) -> Any:
        return watched(original, module, args, keywords)

    cls.__call__ = call


def _applied(module: Any, cls: Any) -> Callable[..., Any]:
    """Return a norm, as one of class `cls`, as a function of its state and arguments."""
    graph, _ = nnx.split(module)

    def apply(state: Any, *args: Any, **keywords: Any) -> Any:
        twin = nnx.merge(graph, state, copy=True)
        twin.__class__ = cls
        return twin(*args, **keywords)

    return apply


def _runner(model: Any) -> _Linen | _NNX:
    if isinstance(model, nnx.Module):
        return _NNX(model)
    if not isinstance(model, linen.Module):
        raise TypeError(
            f"model is of type {type(model).__name__}, expected a flax.nnx.Module or a bound "
            "flax.linen.Module: pass the model"
        )
    if model.scope is None:
        raise TypeError(
            f"{type(model).__name__} is not bound to its variables: pass model.bind(variables)"
        )
    return _Linen(model)


def _is_norm(module: Any) -> bool:
    return "norm" in type(module).__name__.lower()


# ---- the norms, one by one


def _record(watched: dict[str, _Watched], traced: set[str], call: _Call) -> Any:
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
        if kind in _OURS.values():
            entry.convert = "ours"
        elif kind in _OURS:
            entry.convert = "yes"
        else:
            entry.convert = "no: another class than Flax's LayerNorm and RMSNorm"
        if isinstance(x, Array) and isinstance(y, Array):
            entry.x_shape, entry.x_type, entry.y_type = x.shape, x.dtype.name, y.dtype.name
        is_plain = len(given) == 1 and entry.x_shape != () and entry.x_shape == y.shape
        watched[call.name] = _Watched(
            entry, call.apply, call.ours, call.module, call.variables, x, y, is_plain
        )
    watched[call.name].entry.calls += 1
    return y


def _differentiate(
    run: _Linen | _NNX,
    watched: dict[str, _Watched],
    inputs: Any,
    keywords: Any,
    output: Any,
    notes: list[str],
) -> None:
    """Find the gradients that reach the results of the first calls."""
    plain = {name: each for name, each in watched.items() if each.is_plain}

    def outputs(added: dict[str, Array]) -> list[Array]:
        waiting = dict(added)

        def add(call: _Call) -> Any:
            y = call.original()
            return y + waiting.pop(call.name) if call.name in waiting else y

        return _arrays(run(run.variables, inputs, keywords, add))

    try:
        zeros = {name: jnp.zeros_like(each.y) for name, each in plain.items()}
        with jax.disable_jit():  # or a program with what was added would be kept, and run later
            found = jax.vjp(outputs, zeros)[1](_random_like(_arrays(output)))[0]
    except Exception as error:
        notes.append(f"the gradients of norms are of random dy: the backward raised {error}")
        found = {}
    for name, each in plain.items():
        has_gradient = name in found and bool(jnp.any(found[name] != 0))
        each.entry.gradient = "the output" if has_gradient else "random"
        each.dy = found[name] if has_gradient else _random_like([each.y])[0]


def _judge(watched: _Watched) -> None:
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
        measure.Call(
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


def _axes(watched: _Watched) -> tuple[int, ...] | None:
    """Return the normalized axes of a call whose definition is known."""
    settings = watched.settings
    known = type(settings) in (*_OURS, *_OURS.values())
    if not known or not watched.is_plain or settings.axis_name is not None:
        return None
    dims = len(watched.entry.x_shape)
    axes, features = (
        axes_of(each, dims) for each in (settings.reduction_axes, settings.feature_axes)
    )
    return axes if axes == features else None


def _time(watched: _Watched) -> None:
    """Time a norm by itself, and ours in its place."""
    if watched.ours is None or not watched.is_plain:
        return
    calls = {"own": watched.apply, "ours": watched.ours}
    given = (watched.variables, watched.x)
    watched.entry.forward = _compare(calls, given, _OF_A_NORM)
    trained = {name: _differentiated(each) for name, each in calls.items()}
    watched.entry.training = _compare(trained, (*given, watched.dy), _OF_A_NORM)


def _differentiated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of its arguments and dy that returns the arguments' gradients."""
    return lambda *given: jax.vjp(function, *given[:-1])[1](given[-1])


# ---- the model


def _time_model(
    run: _Linen | _NNX, inputs: Any, keywords: Any, output: Any, report: Report
) -> None:
    """Time the model as it is, and with our classes."""
    given, structure = jax.tree.flatten((inputs, keywords))
    variables, of_variables = jax.tree.flatten(run.variables)
    is_array = [isinstance(each, Array) for each in given]
    is_trained = [jnp.issubdtype(jnp.result_type(each), jnp.floating) for each in variables]

    def model(ours: bool) -> Callable[..., Any]:
        def intercept(call: _Call) -> Any:
            if not ours or call.ours is None:
                return call.original()
            return call.ours(call.variables, *call.args, **call.keywords)

        def forward(trained: Sequence[Any], arrays: Sequence[Any]) -> Any:
            args, named = jax.tree.unflatten(structure, _merged(given, arrays, is_array))
            state = jax.tree.unflatten(of_variables, _merged(variables, trained, is_trained))
            return _arrays(run(state, args, named, intercept))

        return forward

    arrays = [each for each, wanted in zip(given, is_array, strict=True) if wanted]
    trained = [each for each, wanted in zip(variables, is_trained, strict=True) if wanted]
    calls = {"own": model(ours=False), "ours": model(ours=True)}
    report.forward = _compare(calls, (trained, arrays), _OF_THE_MODEL)
    dys = _random_like(_arrays(output))
    if dys and trained:
        of_loss = {
            name: lambda trained, arrays, dys, each=each: jax.vjp(
                lambda given: each(given, arrays), trained
            )[1](dys)
            for name, each in calls.items()
        }
        report.training = _compare(of_loss, (trained, arrays, dys), _OF_THE_MODEL)
    for norm in report.norms:
        if norm.forward is not None:
            norm.share = norm.calls * norm.forward.own / report.forward.own
    shares = [norm.share for norm in report.norms if norm.share is not None]
    report.share = sum(shares) if shares else None


def _merged(values: Sequence[Any], others: Sequence[Any], chosen: Sequence[bool]) -> list[Any]:
    """Return the values with the others in the chosen places."""
    following: Iterator[Any] = iter(others)
    return [
        next(following) if is_chosen else each
        for each, is_chosen in zip(values, chosen, strict=True)
    ]


def _compare(calls: dict[str, Callable[..., Any]], given: Any, seconds: float) -> Times:
    """Time the calls, compiled."""
    compiled = {name: jax.jit(call) for name, call in calls.items()}
    timed = {
        name: functools.partial(lambda call: jax.block_until_ready(call(*given)), call)
        for name, call in compiled.items()
    }
    found = measure.medians(timed, around=lambda name: nullcontext(), seconds=seconds)
    return Times(**found)


# ---- arrays


def _to_array(given: Any) -> Any:
    """Return an array of JAX's for one of NumPy's, which would be a constant of the program."""
    kind = getattr(getattr(given, "dtype", None), "kind", "O")
    return given if kind in "OSU" or isinstance(given, Array) else jnp.asarray(given)


def _arrays(output: Any) -> list[Array]:
    leaves = jax.tree.leaves(output)
    return [e for e in leaves if isinstance(e, Array) and jnp.issubdtype(e.dtype, jnp.floating)]


def _random_like(arrays: Sequence[Array]) -> list[Array]:
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
