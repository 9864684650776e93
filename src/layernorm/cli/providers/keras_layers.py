"""Keras's layer and ours, on the backend that KERAS_BACKEND names, by default JAX."""

import importlib
import os
from typing import Any, ClassVar

from layernorm.cli.problem import Problem
from layernorm.cli.providers.provider import Unsupported

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

# The provider that runs a function of x, weight and bias as Keras does on this backend.
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
    """`keras.layers.LayerNormalization`, called without state as `fit` calls it."""

    name: ClassVar[str] = "keras"
    distribution: ClassVar[str] = "keras"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.layer: Any = keras.layers.LayerNormalization

    def function(self, problem: Problem) -> Any:
        """Return the layer, whose weights are arguments."""
        layer = self.layer(axis=problem.axis, epsilon=problem.eps, dtype=problem.type_name)
        layer.build(problem.x.shape)

        def apply(x: Any, weight: Any, bias: Any) -> Any:
            return layer.stateless_call([weight, bias], [], x)[0]

        return apply


class OursKeras(Keras):
    """`layernorm.keras.LayerNormalization`, used as Keras's own."""

    name: ClassVar[str] = "layernorm"
    distribution: ClassVar[str] = "layernorm"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        from layernorm.keras import LayerNormalization

        self.layer = LayerNormalization
