"""Replaces a model's norms by ours, in place, and back."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import keras

from layernorm import spec
from layernorm.keras.layers import LayerNormalization, RMSNormalization

_OURS = {
    keras.layers.LayerNormalization: LayerNormalization,
    keras.layers.RMSNormalization: RMSNormalization,
}
_KERASS = {ours: kerass for kerass, ours in _OURS.items()}

_COMPILED = ("train_function", "test_function", "predict_function")

# The name of an attribute that only layers which `convert` has swapped have.
_MARK = "_layernorm_converted"


@dataclass
class Conversion:
    """What `convert` did, or with dry_run=True would do: layers by their paths.

    Attributes:
        swapped: those that are ours now, with the class that each had.
        left: those that look like a norm but stay as they are, with the reason.
        restored: those that `undo=True` turned back, with the class that each has again.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    restored: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"swapped {path}: {kind}" for path, kind in self.swapped.items()]
        lines += [f"restored {path}: {kind}" for path, kind in self.restored.items()]
        lines += [f"left    {path}: {reason}" for path, reason in self.left.items()]
        return "\n".join(lines) or "no norm was found"


def convert(model: Any, *, undo: bool = False, dry_run: bool = False) -> Conversion:
    """Replace every LayerNormalization and RMSNormalization of `model` by ours, in place.

    Weights, names, the optimizer's state, the model's graph and the settings of `compile` stay as
    they are. Functions that Keras has traced are traced again. Only instances of Keras's own two
    classes are replaced. Subclasses and other norms stay, and so does a layer whose `call` was
    replaced, whose type is not one of ours, or that has rms_scaling=True.

    Args:
        model: any Keras model or layer, built or not.
        undo: turn the layers that an earlier `convert` replaced into Keras's own again. Layers that
            were created as ours stay ours, and so do those of a clone or of a file.
        dry_run: only say what would be done.
    Returns: what was swapped or restored, and which norms were left and why.
    Raises: TypeError if `model` is not a layer.
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            f"model is of type {type(model).__name__}, expected a Keras model or layer: "
            "pass the model"
        )
    done = Conversion()
    found = list(norms_of(model, undo))
    for path, layer, reason in found:
        kind = type(layer)
        if reason:
            done.left[path] = f"{kind_of(kind)}, {reason}"
        elif undo:
            done.restored[path] = kind_of(_KERASS[kind])
        else:
            done.swapped[path] = kind_of(kind)
    if (done.swapped or done.restored) and not dry_run:
        for _, layer, reason in found:
            if not reason:
                swap_back(layer) if undo else swap(layer)
        _forget_what_was_traced(model)
    return done


def norms_of(model: Any, undo: bool) -> Iterator[tuple[str, Any, str]]:
    """Yield each norm with a path of its own, and why it is left, or ""."""
    paths: set[str] = set()
    for layer in model._flatten_layers():
        reason = _why_not_undone(layer) if undo else _why_left(layer)
        if reason is None:
            continue
        path, number = layer.path or layer.name, 1  # there is no path before the layer is built
        while path in paths:
            number += 1
            path = f"{layer.path or layer.name} ({number})"
        paths.add(path)
        yield path, layer, reason


def _why_left(layer: Any) -> str | None:
    """Return why a norm is left, "" for one to be swapped, None for no norm and for ours."""
    kind = type(layer)
    if kind not in _OURS:
        if isinstance(layer, tuple(_KERASS)):
            return None
        if isinstance(layer, tuple(_OURS)):
            return "a subclass, which may compute something else"
        return "another class than the two that are replaced" if _is_named_norm(kind) else None
    if "call" in vars(layer):
        return "whose call was replaced on the layer itself"
    if getattr(layer, "rms_scaling", False):
        return "with rms_scaling=True, which is neither layer norm nor RMS norm"
    if layer.compute_dtype not in spec.TYPES:
        return f"whose compute type is {layer.compute_dtype}, expected one of {_listed()}"
    return ""


def _why_not_undone(layer: Any) -> str | None:
    if not isinstance(layer, tuple(_KERASS)):
        return None
    if type(layer) not in _KERASS or _MARK not in vars(layer):
        return "which convert did not replace"
    return ""


def kind_of(kind: type) -> str:
    """Return the name of a class, with its module's."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_named_norm(kind: type) -> bool:
    return "norm" in kind.__name__.lower()


def _listed() -> str:
    return ", ".join(spec.TYPES)


def swap(layer: Any) -> None:
    """Make one of Keras's own layers ours."""
    _turn_into(_OURS[type(layer)], layer)
    vars(layer)[_MARK] = True


def swap_back(layer: Any) -> None:
    """Take `swap` back."""
    _turn_into(_KERASS[type(layer)], layer)
    del vars(layer)[_MARK]


def _turn_into(kind: type, layer: Any) -> None:
    layer.__class__ = kind
    # Keras reads it when it creates a layer, and ours takes a residual and a gate too.
    signature = inspect.signature(layer.call)
    vars(layer)["_call_signature"] = signature
    vars(layer)["call_signature_parameters"] = list(signature.parameters)


def _forget_what_was_traced(model: Any) -> None:
    for layer in model._flatten_layers():
        for name in _COMPILED:
            if getattr(layer, name, None) is not None and hasattr(layer, f"make_{name}"):
                setattr(layer, name, _made_anew(layer, name))


def _made_anew(model: Any, name: str) -> Callable[..., Any]:
    """Return a function that has Keras make the function anew: a running `fit` calls it next."""

    def function(*arguments: Any) -> Any:
        setattr(model, name, None)
        getattr(model, f"make_{name}")()
        return getattr(model, name)(*arguments)

    return function
