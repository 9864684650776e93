"""Keras's layers and ours, on the backend that KERAS_BACKEND names, by default JAX."""

import importlib
import os
from typing import Any, ClassVar

from layernorm.cli.problem import Problem
from layernorm.cli.providers.provider import Unsupported

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

# The provider that runs a function of x and the parameters as Keras does on this backend.
_RUN_BY = {
    "jax": ("jitted", "Jax"),
    "numpy": ("numpy_formula", "NumpyFunction"),
    "tensorflow": ("tensorflow_graph", "TensorFlowLayer"),
    "torch": ("pytorch", "TorchFunction"),
}


def _runner() -> Any:
    backend = keras.backend.backend()
    if backend not in _RUN_BY:
        raise Unsupported(f"keras is set to its {backend} backend: KERAS_BACKEND=jax")
    module, name = _RUN_BY[backend]
    return getattr(importlib.import_module(f"layernorm.cli.providers.{module}"), name)


_Runner: Any = _runner()


class Keras(_Runner):
    """The layers of `keras.layers`, called without state as `fit` calls them."""

    name: ClassVar[str] = "keras"
    distribution: ClassVar[str] = "keras"

    def layer(self, problem: Problem) -> Any:
        """Return the class of the layer."""
        if problem.kind == "layer_norm":
            return keras.layers.LayerNormalization
        if problem.is_channels_first:
            raise Unsupported("keras has no RMS norm over another axis than the last")
        return keras.layers.RMSNormalization

    def function(self, problem: Problem) -> Any:
        """Return the layer, whose weights are arguments."""
        layer_of = self.layer(problem)
        layer = layer_of(axis=problem.axis, epsilon=problem.eps, dtype=problem.type_name)
        layer.build(problem.x.shape)

        def apply(x: Any, *parameters: Any) -> Any:
            return layer.stateless_call(list(parameters), [], x)[0]

        return apply


class OursKeras(Keras):
    """The layers of `layernorm.keras`, used as Keras's own."""

    name: ClassVar[str] = "layernorm"
    distribution: ClassVar[str] = "layernorm"

    def layer(self, problem: Problem) -> Any:
        """Return the class of the layer."""
        from layernorm.keras import LayerNormalization, RMSNormalization

        return LayerNormalization if problem.kind == "layer_norm" else RMSNormalization
