"""Replaces a model's norms by ours, in place."""

from dataclasses import dataclass, field
from typing import Any

import keras

from layernorm.keras.layers import LayerNormalization, RMSNormalization

_OURS = {
    keras.layers.LayerNormalization: LayerNormalization,
    keras.layers.RMSNormalization: RMSNormalization,
}

_COMPILED = ("train_function", "test_function", "predict_function")


@dataclass
class Conversion:
    """What `convert` did: the paths of layers, with the class that each had.

    Attributes:
        swapped: layers that are ours now.
        left: layers that have "norm" in the name of their class, and were left as they are.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"swapped {path}: {kind}" for path, kind in self.swapped.items()]
        lines += [f"left    {path}: {kind}" for path, kind in self.left.items()]
        return "\n".join(lines) or "no norm was found"


def convert(model: Any) -> Conversion:
    """Replace every LayerNormalization and RMSNormalization of `model` by ours, in place.

    Weights, names, the optimizer's state, the model's graph and the settings of `compile` stay as
    they are. Functions that Keras has traced are traced again. Only instances of Keras's own two
    classes are replaced: subclasses and other norms stay.

    Args:
        model: any Keras model or layer, built or not.
    Returns: what was swapped, and which norms were left.
    Raises: TypeError if `model` is not a layer.
    """
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(
            f"model is of type {type(model).__name__}, expected a Keras model or layer: "
            "pass the model"
        )
    done = Conversion()
    for layer in model._flatten_layers():
        kind = type(layer)
        named = f"{kind.__module__}.{kind.__qualname__}"
        if kind in _OURS:
            layer.__class__ = _OURS[kind]
            layer.supports_masking = True
            done.swapped[layer.path] = named
        elif "norm" in kind.__name__.lower() and kind not in _OURS.values():
            done.left[layer.path] = named
        for name in _COMPILED:
            if getattr(layer, name, None) is not None:
                setattr(layer, name, None)
    return done
