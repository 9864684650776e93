"""Runs a model, and has each call of a norm intercepted."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flax import linen, nnx

from layernorm.flax import linen as ours_in_linen
from layernorm.flax import nnx as ours_in_nnx

OURS: dict[type, Any] = {
    linen.LayerNorm: ours_in_linen.LayerNorm,
    linen.RMSNorm: ours_in_linen.RMSNorm,
    nnx.LayerNorm: ours_in_nnx.LayerNorm,
    nnx.RMSNorm: ours_in_nnx.RMSNorm,
}


_THE_MODEL = "(the model)"


@dataclass
class Intercepted:
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
Intercept = Callable[[Intercepted], Any]


class Linen:
    """Runs a bound module of `flax.linen`."""

    def __init__(self, model: Any) -> None:
        scope = model.scope
        self._rngs = {name: rng.as_jax_rng() for name, rng in scope.rngs.items()}
        self._mutable = scope.mutable
        self._module, self.variables = model.unbind()

    def __call__(self, variables: Any, args: Any, keywords: Any, intercept: Intercept) -> Any:
        """Return what the model returns, with `intercept` in the place of each norm."""

        def interceptor(following: Any, args: Any, keywords: Any, context: Any) -> Any:
            module = context.module
            if context.method_name != "__call__" or not _is_norm(module):
                return following(*args, **keywords)
            of_norm = module.variables
            plain = module.clone(parent=None, name=None)
            cls = OURS.get(type(module))
            replaced = None if cls is None else _with_arguments_of(module, cls)
            call = Intercepted(
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


class NNX:
    """Runs copies of a module of `flax.nnx`."""

    def __init__(self, model: Any) -> None:
        self._graph, self.variables = nnx.split(nnx.clone(model))

    def __call__(self, variables: Any, args: Any, keywords: Any, intercept: Intercept) -> Any:
        """Return what the model returns, with `intercept` in the place of each norm."""
        model = nnx.merge(self._graph, variables, copy=True)
        norms = {id(module): path for path, module in nnx.iter_modules(model) if _is_norm(module)}
        classes = {type(module) for _, module in nnx.iter_modules(model) if _is_norm(module)}

        running: list[int] = []

        def watched(original: Any, module: Any, args: Any, keywords: Any) -> Any:
            if id(module) in running:  # the norm has called that of its base class
                return original(module, *args, **keywords)
            path = norms.get(id(module), [f"a {type(module).__name__}"])
            cls = OURS.get(type(module))
            call = Intercepted(
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


def runner_of(model: Any) -> Linen | NNX:
    """Return what runs the model.

    Raises: TypeError if it is no model of Flax, or not bound.
    """
    if isinstance(model, nnx.Module):
        return NNX(model)
    if not isinstance(model, linen.Module):
        raise TypeError(
            f"model is of type {type(model).__name__}, expected a flax.nnx.Module or a bound "
            "flax.linen.Module: pass the model"
        )
    if model.scope is None:
        raise TypeError(
            f"{type(model).__name__} is not bound to its variables: pass model.bind(variables)"
        )
    return Linen(model)


def _is_norm(module: Any) -> bool:
    return "norm" in type(module).__name__.lower()
