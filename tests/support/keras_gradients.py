"""Gradients and arrays on any of Keras's backends."""

import atexit
import functools
import gc
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import ml_dtypes
import numpy as np

BACKEND = keras.backend.backend()
if BACKEND in ("torch", "numpy"):
    sys.modules["tensorflow"] = None  # Keras would import it to save a layer, for seconds
gc.freeze()  # Keras searches for garbage when it quantizes a layer: not in what was imported
atexit.register(gc.unfreeze)  # or nanobind tells of leaks at exit


def to_tensor(array):
    if array is None or BACKEND == "numpy":  # there Keras converts float64 arrays to float32
        return array
    if BACKEND == "torch" and array.dtype == ml_dtypes.bfloat16:
        import torch

        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return keras.ops.convert_to_tensor(array)


def to_array(tensor) -> np.ndarray:
    name = str(tensor.dtype).removeprefix("torch.")
    if BACKEND == "torch" and name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        import torch

        bits = torch.int16 if name == "bfloat16" else torch.int8
        return tensor.detach().view(bits).numpy().view(getattr(ml_dtypes, name))
    return np.asarray(tensor.detach() if BACKEND == "torch" else tensor)


class Call(NamedTuple):
    """A function with its keywords. Equal calls compare equal, so JAX compiles them once."""

    function: Callable
    options: tuple[tuple[str, Any], ...]

    def __call__(self, **given):
        return self.function(**given, **dict(self.options))


def with_gradients(call: Call, given, dy):
    """Return call(**given) and its gradients at dy by name; no gradients on the NumPy backend.

    With a residual among `given`, call(**given) is a pair of results, and so is dy.
    """
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(given)
            y = call(**given)
        return y, tape.gradient(y, given, dy)
    if BACKEND == "torch":
        import torch

        leaves = {name: each.detach().requires_grad_() for name, each in given.items()}
        y = call(**leaves)
        return y, dict(zip(leaves, torch.autograd.grad(y, leaves.values(), dy), strict=True))
    if BACKEND == "jax":
        return _compiled(call)(given, dy)
    return call(**given), {}


@functools.cache
def _compiled(call: Call):
    import jax

    def both(given, dy):
        y, transposed = jax.vjp(lambda given: call(**given), given)
        return y, transposed(dy)[0]

    return jax.jit(both)
